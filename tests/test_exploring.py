"""A folder is looked at before anything is learnt: pictures made so that each answer is known (P30)."""

import base64
import io
from pathlib import Path

import nbformat
import numpy
import pytest
from PIL import Image, ImageDraw, ImageOps

from lace_lora import batch, check, config, exploring
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.exploring import MEASURES, Exploration
from tests.conftest import draw_threads
from tests.generated import ROOT
from tests.training import quietly

NOTEBOOK = ROOT / "notebooks/exploration/pictures.ipynb"


def ringed(path: Path, ground: int, side: int = 200, colour: tuple[int, int, int] = (255, 255, 255)) -> None:
    """A ring on a ground of one grey."""
    picture = Image.new("RGB", (side, side), (ground,) * 3)
    ImageDraw.Draw(picture).ellipse((side // 4, side // 4, 3 * side // 4, 3 * side // 4), outline=colour, width=9)
    picture.save(path, quality=95)


def explored(folder: Path, tmp_path: Path, **more: object) -> Exploration:
    settings = config.load(
        preset="none", images_dir=str(folder), resolution=256, max_train_steps=10, cache_dir=str(tmp_path / "cache"),
        lora_output_dir=str(tmp_path / "out"), concept_token="<lace>", pretrained_model=str(tmp_path), **more,
    )  # fmt: skip
    return exploring.explore(check.run(settings, say=quietly), settings, quietly)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    for name, ground, side in (("black", 0, 200), ("grey", 120, 300), ("light", 240, 500)):
        ringed(made / f"{name}.jpg", ground, side)
    return made


def test_the_ground_is_that_of_the_border_and_sorts_the_set(folder: Path, tmp_path: Path) -> None:
    """P30: by hand: the greys that were drawn, whatever stands in the middle."""
    found = explored(folder, tmp_path)
    grounds = {one.record.name: one for one in found.photographs}
    for name, grey in (("black", 0), ("grey", 120), ("light", 240)):
        one = grounds[f"{name}.jpg"]
        assert one.values["ground"] == pytest.approx(100 * grey / 255, abs=1)
        assert max(abs(part - grey) for part in one.ground) <= 2
    assert "1 dark, 1 between, 1 light" in found.light().text
    assert found.sorted_by("ground").text.splitlines() == [
        "the darkest grounds: black.jpg (0 %)", "the lightest grounds: light.jpg (94.1 %)",
    ]  # fmt: skip


def test_what_is_enlarged_is_told_by_how_much(folder: Path, tmp_path: Path) -> None:
    """P30: squares of 200, 300 and 500 px for 256: one of them, 1.28 times."""
    found = explored(folder, tmp_path)
    assert found.enlarged().startswith("1 of 3 photographs are enlarged for 256 px, the most black.jpg (1.3 times).")
    assert "short sides: 3 pictures, 200 to 500 px" in found.sizes().text
    assert "256 × 256  3" in found.sizes().text


def test_brightness_contrast_and_colour_are_those_of_the_pixels(folder: Path, tmp_path: Path) -> None:
    """P30: against Pillow's own means of the whole picture."""
    ringed(folder / "red.jpg", 0, 256, (255, 0, 0))
    found = {one.record.name: one.values for one in explored(folder, tmp_path).photographs}
    for name in ("black.jpg", "red.jpg"):
        with Image.open(folder / name) as picture:
            rgb = numpy.asarray(picture.convert("RGB"), float) / 255
        light = rgb @ [0.2126, 0.7152, 0.0722]
        assert found[name]["brightness"] == pytest.approx(100 * light.mean(), abs=0.5)
        assert found[name]["contrast"] == pytest.approx(100 * light.std(), abs=1.5)
        assert found[name]["colour"] == pytest.approx(100 * (rgb.max(-1) - rgb.min(-1)).mean(), abs=0.5)


def test_the_odd_one_out_is_the_least_typical(tmp_path: Path) -> None:
    """P30: a drawing of one ring among ten pictures of threads."""
    folder = draw_threads(tmp_path / "pictures", 10)
    ringed(folder / "odd.jpg", 120)
    found = explored(folder, tmp_path)
    assert max(found.photographs, key=lambda one: one.values["unusual"]).record.name == "odd.jpg"
    assert found.sorted_by().text.splitlines()[1].startswith("the least typical: ")
    assert "odd.jpg" in found.sorted_by().text.splitlines()[1]


def test_one_piece_twice_is_shown_in_a_row(tmp_path: Path) -> None:
    """P30: the mirrored one is found; without any there is no picture, and no front-end is given an empty one."""
    folder = draw_threads(tmp_path / "pictures", 4)
    alone = explored(folder, tmp_path).near_duplicates()
    assert alone.text == "No piece is there twice among 4 photographs." and alone.picture is None
    with Image.open(folder / "threads_0.jpg") as picture:
        ImageOps.mirror(picture).save(folder / "again.jpg", quality=95)
    twice = explored(folder, tmp_path).near_duplicates()
    assert twice.text.startswith("1 piece in 2 photographs of 5; the largest:\n  2 times: ")
    drawn = twice._repr_mimebundle_()["text/html"]
    assert "photographs of" in drawn.partition("<img")[0]  # the names stand above the picture
    shown = Image.open(io.BytesIO(base64.b64decode(drawn.partition("base64,")[2].removesuffix("'>"))))
    assert shown.width >= 2 * exploring.TILE_PX


@pytest.mark.parametrize("by", MEASURES)
def test_every_measure_sorts(folder: Path, tmp_path: Path, by: str) -> None:
    """P30: from the lowest to the highest; the page is larger with larger tiles."""
    found = explored(folder, tmp_path)
    small, large = found.sorted_by(by), found.sorted_by(by, 200)
    assert small.picture is not None and large.picture is not None and large.picture.height > small.picture.height
    values = {one.record.name: one.values[by] for one in found.photographs}
    low, high = (line.split(": ")[1].split(" (")[0] for line in small.text.splitlines())
    assert values[low] == min(values.values()) and values[high] == max(values.values())


def test_a_measure_that_there_is_not_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be sorted by 'size'; choose one of: brightness, contrast"):
        explored(folder, tmp_path).sorted_by("size")


def test_words_are_counted_once_a_caption_and_missing_captions_are_told(folder: Path, tmp_path: Path) -> None:
    """P30: small words and the token are no words that a caption names."""
    text = "black.jpg\ta <lace> of a white rose, white\ngrey.jpg\ta <lace> rose\n"
    (folder / "annotations.txt").write_text(text, encoding="utf-8")
    found = explored(folder, tmp_path)
    assert [line.split()[:2] for line in found.words().text.split("\n\n")[1].splitlines()[1:]] == [
        ["rose", "2"], ["white", "1"],
    ]  # fmt: skip
    assert found.words().text.startswith("length of captions: 2 captions, 2 to 6 words")
    assert found.findings().startswith("1 photograph without a caption: instance_prompt stands for it.")


def test_what_cannot_be_opened_any_more_is_left_out_and_too_few_are_refused(folder: Path, tmp_path: Path) -> None:
    """P30, L9: between the check and the measuring a file may go."""
    ringed(folder / "more.jpg", 60)
    found = explored(folder, tmp_path)
    (folder / "grey.jpg").unlink()
    said: list[str] = []
    again = exploring.explore(found.report, found.settings, said.append)
    assert len(again.photographs) == 3 and any(line.startswith("! left out: grey.jpg") for line in said)
    (folder / "black.jpg").unlink()
    with pytest.raises(PicturesError, match="Only 2 of the photographs in .* at least 3 are needed"):
        exploring.explore(found.report, found.settings, quietly)


def test_photographs_are_only_read(folder: Path, tmp_path: Path) -> None:
    """P30."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    found = explored(folder, tmp_path)
    for answer in (found.sizes(), found.light(), found.sharpness(), found.near_duplicates(), found.sorted_by()):
        assert repr(answer)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before


# -- the notebook --


@pytest.mark.slow
def test_papermill_runs_the_notebook_on_three_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P30: without a front-end, in a folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept = tmp_path / "kept.ipynb"
    parameters = {"images_dir": str(folder), "preset": "demo", "resolution": 256}
    batch._papermill().execute_notebook(str(NOTEBOOK), str(kept), parameters=parameters, cwd=tmp_path, **batch.QUIETLY)
    outputs = [one for cell in nbformat.read(kept, 4).cells for one in cell.get("outputs", [])]
    told = "\n".join(one.get("text") or one["data"]["text/plain"] for one in outputs)
    assert "3 pictures in" in told and "1 of 3 photographs are enlarged for 256 px" in told
    assert "the darkest: black.jpg" in told and "the most typical: " in told
    assert sum("image/svg" in str(one) or "<svg" in str(one) for one in outputs) == 4
    assert sum("data:image/jpeg" in str(one) for one in outputs) >= 2


def test_it_is_not_one_of_the_numbered_notebooks() -> None:
    """P30: a batch learns and draws; looking at the folder is no part of it."""
    assert NOTEBOOK.is_file() and NOTEBOOK not in batch.notebooks(ROOT / "notebooks")
    assert batch.parameters_of(NOTEBOOK) <= set(config.Config.model_fields)
