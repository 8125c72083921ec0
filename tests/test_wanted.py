"""What is drawn besides plain prompts: prompts of files, captions, starred designs, variations, sketches."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageDraw

from lace_lora import checkpoint, inference, queries, references, stages, stars
from lace_lora.errors import RunError, SettingsError
from lace_lora.families import memory
from lace_lora.run_folder import RunFolder, SheetFolder
from tests.drawing import Asked, picture_at, quiet_run, rows_of, seeds_drawn

PROMPTS = ("<lace> leaf", "<lace> star", "<lace> rosette")


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


def starred(designs: list[inference.Generation], *indexes: int) -> SheetFolder:
    folder = SheetFolder(designs[0].path.parent)
    stars.set_stars(folder, indexes)
    return folder


# -- favourites --


def test_L7_only_the_starred_designs_are_refined_and_their_base_pictures_are_the_same(asked: Asked) -> None:
    """Drawn without a refiner, three of six are starred; refined, they have the same base pictures, pixel for pixel."""
    drafts = quiet_run(asked(prompts=PROMPTS, refine="none", negative_prompt="{grainy}"))
    starred(drafts, 1, 2, 5)
    lines: list[str] = []
    refined = inference.run(asked(favourites_of="sheet", refine="ensemble"), say=lines.append)
    assert [(one.prompt, one.seed, one.negative_prompt) for one in refined] == [
        (PROMPTS[index % 3], index, "{grainy}") for index in (1, 2, 5)
    ]
    for one, index in zip(refined, (1, 2, 5), strict=True):
        assert not ImageChops.difference(picture_at(one.base), picture_at(drafts[index].path)).getbbox()
        assert one.refined is not None and one.refined.is_file()
    assert not any("look different" in line or "overruled" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"guidance_scale": 7.0}, "guidance_scale 5.0 → 7.0"), ({"lora_scale": 0.5}, "lora_scale 1.0 → 0.5"),
     ({"repeat": "straight"}, "repeat none → straight"), ({"num_inference_steps": 6}, "num_inference_steps 4 → 6")],
)  # fmt: skip
def test_a_setting_that_changes_the_starred_designs_is_named(asked: Asked, changes: dict[str, Any], told: str) -> None:
    starred(quiet_run(asked(num_images=1)), 0)
    lines: list[str] = []
    inference.run(asked(favourites_of="sheet", **changes), say=lines.append)
    assert [line for line in lines if line.startswith("! The designs of before were drawn otherwise") and told in line]


def test_what_starred_designs_bring_with_them_is_named_where_it_is_set(asked: Asked) -> None:
    starred(quiet_run(asked(num_images=1)), 0)
    lines: list[str] = []
    inference.run(asked(favourites_of="sheet", negative_prompt="blue"), say=lines.append)
    assert any("Not used" in line and "negative_prompt" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"favourites_of": "sheet"}, "No design of sheet is a favourite"), ({"favourites_of": "shet"}, "sheet"),
     ({"vary": "sheet/9"}, "9"), ({"vary": "0"}, "must say of which sheet: sheet/0"),
     ({"vary": "sheet/0", "favourites_of": "sheet"}, "are both set")],
)  # fmt: skip
def test_what_cannot_be_drawn_again_is_a_sentence_before_anything_is_loaded(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], said: str
) -> None:
    quiet_run(asked(num_images=1))
    monkeypatch.setattr(stages, "encode_prompts", None)
    with pytest.raises((RunError, SettingsError), match=said):
        quiet_run(asked(**given))


def test_a_starred_row_that_somebody_broke_is_a_sentence(asked: Asked) -> None:
    folder = starred(quiet_run(asked(num_images=1)), 0)
    row = json.loads(folder.manifest.read_text())
    for broken in ({"seed": "many"}, {"width": None}, {"prompt": 7, "seed": None}):
        folder.manifest.write_text(json.dumps(row | broken) + "\n", encoding="utf-8")
        with pytest.raises(SettingsError, match="does not tell how it was made"):
            quiet_run(asked(favourites_of="sheet"))


# -- variations --


def test_L7_variations_share_the_prompt_and_go_on_as_the_same_sheet(asked: Asked) -> None:
    drawn = quiet_run(asked(prompts=PROMPTS))
    first = quiet_run(asked(vary="sheet/1", num_images=2))
    assert {one.prompt for one in first} == {PROMPTS[1]}
    assert [one.seed for one in first] == queries.near_seeds(drawn[1].seed, 2)
    again = quiet_run(asked(vary="sheet/1", num_images=2))
    assert again == first
    more = quiet_run(asked(vary="sheet/1", num_images=3))
    assert [one.path.read_bytes() for one in more[:2]] == [one.path.read_bytes() for one in first]


def test_L7_a_variation_of_the_picture_begins_with_it(asked: Asked) -> None:
    """The row tells with what it began; and how much may change makes a difference."""
    drawn = quiet_run(asked(prompts=PROMPTS))
    seen = set()
    for strength in (0.5, 0.8):
        [made] = quiet_run(
            asked(vary="sheet/1", vary_by="picture", start_strength=strength, num_images=1, refine="img2img")
        )
        assert (made.start_picture, made.start_strength) == (drawn[1].path.name, strength)
        assert made.start_digest == checkpoint.sha256(drawn[1].path)
        seen.add(picture_at(made.path).tobytes())
    [by_seed] = quiet_run(asked(vary="sheet/1", num_images=1))
    assert by_seed.start_picture is None and by_seed.seed == made.seed
    assert len({picture_at(by_seed.path).tobytes(), *seen}) == 3


def test_what_a_variation_does_not_share_with_its_design_is_named(asked: Asked) -> None:
    """A tile of a repeat is not varied into a picture with edges without a word."""
    quiet_run(asked(num_images=1, repeat="straight", print_width_cm=4.0))
    lines: list[str] = []
    inference.run(asked(num_images=1, vary="sheet/0"), say=lines.append)
    told = next(line for line in lines if "drawn otherwise" in line)
    assert "repeat straight → none" in told and "dpi 20.32 → 300" in told and "seed" not in told
    lines.clear()
    inference.run(asked(num_images=1, vary="sheet/0", repeat="straight", print_width_cm=4.0), say=lines.append)
    assert not any("drawn otherwise" in line for line in lines)


# -- begun with a picture, and told by files --


def test_L7_a_sketch_decides_where_the_design_is_light(asked: Asked, tmp_path: Path) -> None:
    """The same seed, begun with a sketch whose left half is white: the latents of both sizes of it are made."""
    sketch = Image.new("RGB", (80, 40), "black")
    ImageDraw.Draw(sketch).rectangle((0, 0, 39, 39), fill="white")
    sketch.save(tmp_path / "sketch.png")
    [plain] = quiet_run(asked(num_images=1, refine="none"))
    [begun] = quiet_run(
        asked(num_images=1, refine="none", start_picture=str(tmp_path / "sketch.png"), start_strength=0.3)
    )
    assert picture_at(plain.path).tobytes() != picture_at(begun.path).tobytes()
    assert begun.start_picture == "sketch.png" and str(tmp_path) not in json.dumps(begun.row())
    [other] = quiet_run(
        asked(num_images=1, refine="none", start_picture=str(tmp_path / "sketch.png"), start_strength=0.8)
    )
    assert other.path.parent != begun.path.parent


def test_a_start_that_leaves_no_step_is_refused_before_anything_is_loaded(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40), "white").save(tmp_path / "sketch.png")
    monkeypatch.setattr(stages, "encode_prompts", None)
    with pytest.raises(SettingsError, match=r"start_strength 0\.2 of 4 steps leaves the base none"):
        quiet_run(asked(start_picture=str(tmp_path / "sketch.png"), start_strength=0.2))
    assert not (tmp_path / "out/lace/images").exists()
    # Where nothing is begun with, it is of no account: vary_by alone begins with nothing.
    monkeypatch.undo()
    assert len(quiet_run(asked(num_images=1, vary_by="picture", start_strength=0.2))) == 1


def test_P20_a_prompts_file_gives_rows_of_their_own_size_seed_and_count(asked: Asked, tmp_path: Path) -> None:
    rows = [
        {"prompt": "<lace> {leaf|star}", "count": 2, "seed": 70},
        {"prompt": "<lace> mesh", "width": 64, "negative_prompt": "blue"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = quiet_run(asked(prompts_file=str(tmp_path / "prompts.jsonl"), base_prompt="fine {prompt}", num_images=3))
    told = [(one.prompt, one.seed, one.negative_prompt, picture_at(one.path).size) for one in made]
    assert told[0] == ("fine <lace> leaf", 70, "grainy, low quality", (32, 32))
    assert told[1] == ("fine <lace> mesh", told[1][1], "blue", (64, 32))
    assert told[2] == ("fine <lace> star", 71, "grainy, low quality", (32, 32))
    # Each can be drawn alone.
    alone = quiet_run(asked(prompts=("fine <lace> star",), seed=71, num_images=1))
    assert not ImageChops.difference(picture_at(alone[0].path), picture_at(made[2].path)).getbbox()


def test_P20_captions_are_drawn_where_they_are_asked_for(asked: Asked, lace_folder: Path) -> None:
    names = sorted(path.name for path in lace_folder.glob("*.jpg"))
    lines = [f"{name}\t<lace> number {place}\n" for place, name in enumerate(names)]
    (lace_folder / "annotations.txt").write_text("".join(lines), encoding="utf-8")
    words = {"concept_token": "<lace>", "instance_prompt": "a photo of <lace>"}
    made = quiet_run(asked(prompts_file="captions", images_dir=str(lace_folder), num_images=3, **words))
    assert [one.prompt for one in made] == [f"<lace> number {place}" for place in range(3)]
    assert [row["prompt"] for row in rows_of(made[0].path.parent)] == [one.prompt for one in made]


def prompts_of(folder: Path, *rows: dict[str, Any]) -> str:
    """A prompts file of those rows."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_P20_P22_subset_and_reference_stand_in_the_row_and_are_nothing_of_the_picture(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P20, P22: designs of which the label alone changes are taken over, byte for byte."""
    drawn = seeds_drawn(monkeypatch)
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "Rose drawing.png")
    leaf, star = {"prompt": "<lace> leaf", "seed": 5}, {"prompt": "<lace> star", "seed": 6}
    plain = quiet_run(asked(prompts_file=prompts_of(tmp_path, leaf, star), num_images=2))
    labels = {"subset": " Leaves ", "reference_path": "Rose drawing.png"}
    made = quiet_run(asked(prompts_file=prompts_of(tmp_path, leaf | labels, star | {"subset": "stars"}), num_images=2))
    assert drawn == [5, 6], "nothing was drawn a second time"
    assert made[0].path.parent != plain[0].path.parent
    assert [one.path.read_bytes() for one in made] == [one.path.read_bytes() for one in plain]

    rows = rows_of(made[0].path.parent)
    assert [row["subset"] for row in rows] == ["Leaves", "stars"] and rows[1]["reference"] is None
    assert all(row["subset"] is row["reference"] is None for row in rows_of(plain[0].path.parent))
    run = RunFolder(made[0].path.parents[2])
    kept = references.of(run, rows[0])
    assert kept is not None and kept.parent == run.references
    assert re.fullmatch(r"[0-9a-f]{12}-rose-drawing\.png", kept.name) and rows[0]["reference"] == kept.name
    assert kept.read_bytes() == (tmp_path / "Rose drawing.png").read_bytes()
    assert str(tmp_path) not in (made[0].path.parent / "images.jsonl").read_text(encoding="utf-8")
    # The same request once more is the same sheet.
    again = quiet_run(asked(prompts_file=prompts_of(tmp_path, leaf | labels, star | {"subset": "stars"}), num_images=2))
    assert [one.path for one in again] == [one.path for one in made] and drawn == [5, 6]


def test_P20_rows_of_a_version_without_labels_are_taken_over_too(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P20: and a request without labels has the digest that it had before there were any."""
    drawn = seeds_drawn(monkeypatch)
    made = quiet_run(asked(prompts=("<lace> leaf",), num_images=1))
    folder = made[0].path.parent
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    assert not {"subset", "reference"} & request["shared"].keys()
    [row] = rows_of(folder)
    old = {name: value for name, value in row.items() if name not in ("subset", "reference")}
    (folder / "images.jsonl").write_text(json.dumps(old) + "\n", encoding="utf-8")
    more = quiet_run(asked(prompts=("<lace> leaf", "<lace> star"), num_images=2))
    assert len(drawn) == 2 and more[0].path.read_bytes() == made[0].path.read_bytes()


def test_P20_starred_designs_drawn_again_keep_their_subset_and_reference(asked: Asked, tmp_path: Path) -> None:
    """P20, P22: also where the drawing has gone from beside the prompts file since."""
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "rose.png")
    row = {"prompt": "<lace> leaf", "subset": "leaves", "reference_path": "rose.png"}
    made = quiet_run(asked(prompts_file=prompts_of(tmp_path, row), num_images=1, refine="none"))
    (tmp_path / "rose.png").unlink()
    run = RunFolder(made[0].path.parents[2])
    stars.set_star(SheetFolder(made[0].path.parent), 0)
    said: list[str] = []
    [again] = quiet_run(asked(favourites_of="sheet"), say=said.append)
    assert (again.subset, again.reference) == ("leaves", made[0].reference) and len(list(run.references.iterdir())) == 1
    assert not [line for line in said if "reference" in line or "subset" in line]


def test_P22_references_that_are_not_there_or_no_pictures_are_refused_at_the_door_with_all_their_rows(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P22: before a model is loaded or a file is written."""
    drawn = seeds_drawn(monkeypatch)
    (tmp_path / "notes.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "drawings").mkdir()
    Image.new("L", (40, 30)).save(tmp_path / "drawings" / "gül.png")
    names = ["gone.png", "drawings\\gül.png", "notes.png", "drawings", "drawings/gu\u0308l.png"]
    rows = [{"prompt": f"<lace> {number}", "reference_path": name} for number, name in enumerate(names)]
    with pytest.raises(SettingsError) as caught:
        quiet_run(asked(prompts_file=prompts_of(tmp_path, *rows), num_images=5))
    lines = str(caught.value).splitlines()[1:-1]
    assert lines == [
        f"  line 1: reference_path 'gone.png' is not there; it is looked for beside the prompts file, in {tmp_path}",
        lines[1],
        f"  line 4: reference_path 'drawings' is not there; it is looked for beside the prompts file, in {tmp_path}",
    ]
    assert lines[1].startswith("  line 3: reference_path 'notes.png' is no picture that can be read: ")
    assert not drawn and not (tmp_path / "out/lace/images").exists()
    assert not (tmp_path / "out/lace/references").exists()
