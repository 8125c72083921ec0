"""Designs by subset, and the pictures that they were to be like (P20, P22)."""

import numpy
import pytest
from PIL import Image

from lace_lora import references
from lace_lora.errors import SettingsError
from lace_lora.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "out" / "rose")


def drawing(path, colour="teal"):
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def test_P22_a_drawing_is_kept_once_by_its_content_and_one_that_changed_is_another(run, tmp_path):
    """P22: an evaluation on another machine finds what the design was to be like then."""
    path = drawing(tmp_path / "Gül çizimi (1).PNG")
    name = references.keep(run, path)
    assert references.keep(run, path) == name and name.endswith("-gül-çizimi-1.png")
    assert references.keep(run, run.references / name) == name, "of a design that is drawn again"
    assert references.of(run, {"reference": name}).read_bytes() == path.read_bytes()
    drawing(path, "red")
    assert references.keep(run, path) != name and len(list(run.references.iterdir())) == 2
    (run.references / name).write_bytes(b"half")
    drawing(path)
    references.keep(run, path)
    assert references.of(run, {"reference": name}).read_bytes() == path.read_bytes(), "what a cut left is mended"
    path.unlink()
    with pytest.raises(SettingsError, match="cannot be read .+ Put it back, or take it out of the prompts file"):
        references.keep(run, path)


@pytest.mark.parametrize("name", [None, "", 3, "../secret.png", "/etc/passwd", ".hidden", "a\0b", "gone.png", ["a"]])
def test_P22_a_row_that_somebody_edited_brings_no_file_from_elsewhere(run, name):
    """P22: nor does it raise."""
    run.references.mkdir(parents=True)
    drawing(run.root / "secret.png")
    drawing(run.references / ".hidden.png").rename(run.references / ".hidden")
    assert references.of(run, {"reference": name}) is None
    (run.references / "link.png").symlink_to(run.root / "secret.png")
    assert references.of(run, {"reference": "link.png"}) is None and references.of(run, {}) is None


def rows(*subsets):
    return [{"index": number, "prompt": f"lace {number}", "subset": one} for number, one in enumerate(subsets)]


def test_P20_designs_are_grouped_by_subset_in_the_order_in_which_they_come():
    """P20: however a subset is capitalised or spaced."""
    found = references.subsets(rows("Rose", None, "leaf", "rose ", "ROSE", 7, ""))
    assert {name: [row["index"] for row in group] for name, group in found.items()} == {
        "Rose": [0, 3, 4],
        "": [1, 5, 6],
        "leaf": [2],
    }


COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]


def colours_on(path):
    """Which of the colours cover a tenth of a tile or more on a page."""
    values = numpy.asarray(Image.open(path).convert("RGB")).astype(int)
    return [colour for colour in COLOURS if (abs(values - colour).max(-1) < 20).sum() > 200]


def test_P20_there_is_one_grid_for_each_value_of_the_subset_with_its_designs_alone(run):
    """P20: with safe names, no two alike, and the drawings beside their designs."""
    made = rows("a/b", "A b", "../..", "a/b")
    run.references.mkdir(parents=True)
    drawing(run.references / "k.png", COLOURS[3])
    made[1]["reference"] = "k.png"

    def picture_of(row):
        return Image.new("RGB", (30, 30), COLOURS[row["index"] % 3])

    pages = references.subset_pages(run, made, picture_of, thumb_px=64)
    assert {name: path.name for name, path in pages.items()} == {
        "a/b": "subset_a-b.png",
        "A b": "subset_a-b-2.png",
        "../..": "subset_picture.png",
    }
    assert {path.parent for path in pages.values()} == {run.evaluation}
    assert {name: colours_on(path) for name, path in pages.items()} == {
        "a/b": [COLOURS[0]],
        "A b": [COLOURS[1], COLOURS[3]],
        "../..": [COLOURS[2]],
    }


def test_P20_designs_of_no_subset_have_a_page_where_others_have_one_and_none_alone(run):
    """P20."""

    def picture_of(row):
        return Image.new("RGB", (30, 30), COLOURS[row["index"]])

    assert references.subset_pages(run, rows(None, None), picture_of) == {} and not run.evaluation.exists()
    pages = references.subset_pages(run, rows("other", None), picture_of, thumb_px=64)
    assert {name: path.name for name, path in pages.items()} == {"other": "subset_other.png", "": "subset_other-2.png"}
    assert colours_on(pages[""]) == [COLOURS[1]]
    assert references.subset_pages(run, [], picture_of) == {}
