"""Sheets that share work: earlier pictures taken over, several processes at one sheet, files made of each design."""

import json
import multiprocessing
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from lace_lora import cloth, finishing, inference, lock, order, page, pictures, repeats, sheet
from lace_lora.errors import MachineError, RunError, SettingsError
from lace_lora.families import memory
from lace_lora.run_folder import RunFolder, Shard, SheetFolder
from tests.drawing import Asked, files_of, picture_at, quiet_run, rows_of, seeds_drawn, settings_of

PROMPTS = ("<lace> leaf", "<lace> star", "<lace> rosette")


@pytest.fixture(autouse=True)
def _batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)
    monkeypatch.setattr(order, "batch_size", lambda *given: 2)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the pictures that the base draws."""
    return seeds_drawn(monkeypatch)


# -- taken over --


def test_L7_changing_one_prompt_draws_its_pictures_only_and_takes_the_others_over(
    asked: Asked, tmp_path: Path, drawn: list[int]
) -> None:
    lines: list[str] = []
    first = quiet_run(asked(prompts=PROMPTS))
    before = files_of(first[0].path.parent)
    drawn.clear()
    other = inference.run(asked(prompts=(PROMPTS[0], "<lace> mesh", PROMPTS[2])), say=lines.append)
    assert drawn == [1, 4] and any(line.startswith("taken     4 pictures") for line in lines)
    assert [one.path.parent.name for one in other] == ["sheet-2"] * 6
    for index in (0, 2, 3, 5):
        assert other[index].path.read_bytes() == first[index].path.read_bytes()
        assert other[index].base.read_bytes() == first[index].base.read_bytes()
    assert [row["prompt"] for row in rows_of(other[0].path.parent)] == [PROMPTS[0], "<lace> mesh", PROMPTS[2]] * 2
    assert files_of(first[0].path.parent) == before

    # A picture that is taken over at another place of its sheet is the same file too.
    drawn.clear()
    swapped = quiet_run(asked(prompts=("<lace> mesh",), seed=1, num_images=1))
    assert drawn == [] and swapped[0].path.read_bytes() == other[1].path.read_bytes()


def test_what_an_earlier_sheet_has_lost_meanwhile_is_drawn(
    asked: Asked, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after the request was written; then half of the earlier sheet is deleted."""
    first = quiet_run(asked(prompts=PROMPTS))
    expected = [one.path.read_bytes() for one in first]
    more = asked(prompts=PROMPTS, num_images=8)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(sheet, "take_over", stop_here)
        quiet_run(more)
    for one in first[:3]:
        one.path.unlink()
    drawn.clear()
    made = quiet_run(more)
    assert sorted(drawn) == [0, 1, 2, 6, 7]
    assert [one.path.read_bytes() for one in made[:6]] == expected and len(made) == 8
    request = json.loads((made[0].path.parent / "request.json").read_text())
    assert sorted(request["reused"]) == ["3", "4", "5"]


def stop_here(*given: Any) -> Any:
    raise SystemExit


def test_another_size_in_print_draws_nothing_and_gives_the_files_of_a_sheet_made_for_it(
    asked: Asked, made_run: Path, models: dict[str, str], tmp_path: Path, drawn: list[int]
) -> None:
    """L16: the same pixels; only what is written into the file differs."""
    quiet_run(asked(num_images=2))
    drawn.clear()
    other = quiet_run(asked(num_images=2, print_width_cm=4.0))
    assert drawn == []
    fresh = quiet_run(settings_of(tmp_path / "fresh", made_run, models, num_images=2, print_width_cm=4.0))
    assert [one.path.read_bytes() for one in other] == [one.path.read_bytes() for one in fresh]
    assert round(picture_at(other[0].path).info["dpi"][0], 1) == round(32 / (4 / 2.54), 1)


def test_pictures_of_another_precision_or_model_are_not_taken_over(
    asked: Asked, drawn: list[int], tiny_refiner: Path, tmp_path: Path
) -> None:
    quiet_run(asked(num_images=2))
    drawn.clear()
    quiet_run(asked(num_images=2, sheet_name="half", mixed_precision="bf16"))
    assert drawn == [0, 1]
    refiner = tmp_path / "other" / tiny_refiner.name
    shutil.copytree(tiny_refiner, refiner)
    data = bytearray((refiner / "unet/diffusion_pytorch_model.safetensors").read_bytes())
    data[-1] ^= 1
    (refiner / "unet/diffusion_pytorch_model.safetensors").write_bytes(data)
    quiet_run(asked(num_images=2, refiner_model=str(refiner)))
    assert drawn == [0, 1, 0, 1]


def test_a_row_that_somebody_edited_brings_no_file_from_elsewhere(asked: Asked, tmp_path: Path) -> None:
    """A row may name any path; only files of the sheet's own folder are taken."""
    [first] = quiet_run(asked(num_images=1))
    secret = tmp_path / "secret.png"
    Image.new("RGB", (32, 32), "red").save(secret)
    manifest = first.path.parent / "images.jsonl"
    row = json.loads(manifest.read_text()) | {"refined": "../../../../secret.png"}
    manifest.write_text(json.dumps(row) + "\n7\n" + '{"index": 0}\n', encoding="utf-8")
    [made] = quiet_run(asked(num_images=1, sheet_name="other"))
    assert made.path.read_bytes() != secret.read_bytes()


# -- shards --


def test_P3_two_shards_give_the_files_of_one_process(
    asked: Asked, made_run: Path, models: dict[str, str], tmp_path: Path, drawn: list[int]
) -> None:
    settings = {"num_images": 7, "prompts": PROMPTS, "repeat": "straight"}
    lines: list[str] = []
    first = inference.run(asked(**settings, shard="1/2"), say=lines.append)
    assert drawn == [0, 1, 4, 5] and len(first) == 4
    assert "This part is finished; 3 of 7 pictures are other processes'." in lines
    folder = first[0].path.parent
    assert not (folder / "contact_sheet.png").exists() and (folder / "images-1-of-2.jsonl").is_file()
    assert len(quiet_run(asked(**settings, shard="2/2"))) == 7
    quiet_run(settings_of(tmp_path / "alone", made_run, models, **settings))
    assert files_of(folder.parent) == files_of(tmp_path / "alone/lace/images")
    # Called again, whichever part, nothing is drawn and nothing changes.
    drawn.clear()
    before = files_of(folder)
    for shard in ("1/2", "2/2", None):
        assert len(quiet_run(asked(**settings, shard=shard))) == 7
    assert drawn == [] and files_of(folder) == before


def test_P3_what_a_shard_left_undone_is_finished_by_one_process_alone(
    asked: Asked, made_run: Path, models: dict[str, str], tmp_path: Path, drawn: list[int]
) -> None:
    quiet_run(asked(shard="2/3"))
    drawn.clear()
    assert len(quiet_run(asked())) == 6 and drawn == [0, 1, 4, 5]
    quiet_run(settings_of(tmp_path / "alone", made_run, models))
    assert files_of(tmp_path / "out/lace/images") == files_of(tmp_path / "alone/lace/images")


def draw_shard(folder: str, made_run: str, models: dict[str, str], shard: str) -> None:
    import torch

    torch.set_num_threads(1)
    order.batch_size = lambda *given: 2  # type: ignore[assignment]
    quiet_run(settings_of(Path(folder), Path(made_run), models, shard=shard))


def test_P3_three_processes_at_one_moment_share_a_sheet(
    asked: Asked, made_run: Path, models: dict[str, str], tmp_path: Path
) -> None:
    asked()  # the run's folder
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        given = [(str(tmp_path / "out"), str(made_run), models, f"{part}/3") for part in (1, 2, 3)]
        pool.starmap(draw_shard, given)
    quiet_run(settings_of(tmp_path / "alone", made_run, models))
    assert files_of(tmp_path / "out/lace/images") == files_of(tmp_path / "alone/lace/images")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "1/0", "a/b", "-1/2"])
def test_a_shard_that_does_not_exist_is_a_sentence(asked: Asked, shard: str) -> None:
    with pytest.raises(SettingsError, match="shard is"):
        quiet_run(asked(shard=shard))


def test_two_orders_at_one_moment_get_a_folder_each(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the free name between looking for it and writing the request."""
    free = RunFolder.free_sheet
    taken: list[Path] = []

    def overtaken(
        run: RunFolder, name: str, digest: str, drawn_in: Callable[[SheetFolder], SheetFolder]
    ) -> SheetFolder:
        found = free(run, name, digest, drawn_in)
        if not taken:
            taken.append(found.root)
            found.root.mkdir(parents=True)
            found.request.write_text('{"digest": "of another order", "pictures": 1}', encoding="utf-8")
        return found

    monkeypatch.setattr(RunFolder, "free_sheet", overtaken)
    [made] = quiet_run(asked(num_images=1))
    assert made.path.parent.name == "sheet-2" and "another" in SheetFolder(taken[0]).request.read_text()


# -- what is made of each design --


def test_L16_every_design_gets_its_files_and_the_metadata_its_seam(asked: Asked) -> None:
    pytest.importorskip("vtracer")
    made = quiet_run(asked(num_images=2, repeat="half-drop", height=64, mask=True, outline=True, upscale=2.0, dpi=100))
    for one in made:
        files = {kind: page.beside(one.path, kind) for kind in page.BESIDE}
        assert all(path.is_file() for path in files.values())
        picture = picture_at(one.path)
        assert picture_at(files[finishing.MASK]).mode == "L" and picture_at(files[finishing.CUT_OUT]).mode == "RGBA"
        large = picture_at(files[finishing.ENLARGED])
        assert large.size == (64, 128) and round(large.info["dpi"][0]) == 200
        assert numpy.array_equal(large, cloth.enlarged(picture.convert("RGB"), "half-drop", factor=2.0))
        assert 'width="0.8128cm"' in files[finishing.OUTLINE].read_text()  # 32 px at 100 an inch
        assert picture_at(files[finishing.IN_REPEAT]).width >= 96
        assert one.seam == round(repeats.seam_score(picture, "half-drop"), 2)
        assert pictures.read_details(one.path)["seam"] == one.seam == rows_of(one.path.parent)[one.index]["seam"]
    html = (made[0].path.parent / "index.html").read_text(encoding="utf-8")
    assert html.count("_outline.svg") == 2


def test_L16_files_are_made_later_without_drawing_and_again_where_their_settings_change(
    asked: Asked, drawn: list[int]
) -> None:
    made = quiet_run(asked(num_images=2))
    masks = [page.beside(one.path, finishing.MASK) for one in made]
    assert not any(path.exists() for path in masks)
    drawn.clear()
    quiet_run(asked(num_images=2, mask=True, lace="light"))
    light = [path.read_bytes() for path in masks]
    masks[1].unlink()
    masks[0].touch()
    quiet_run(asked(num_images=2, mask=True, lace="light"))
    assert [path.read_bytes() for path in masks] == light
    quiet_run(asked(num_images=2, mask=True, lace="dark"))
    dark = [numpy.asarray(picture_at(path)) for path in masks]
    assert all(picture.mean() > 0 for picture in dark) and [path.read_bytes() for path in masks] != light
    assert drawn == []


def test_stopping_while_files_are_made_loses_none_and_goes_on(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, drawn: list[int]
) -> None:
    whole = quiet_run(asked(num_images=3, mask=True, sheet_name="whole"))
    make, calls = finishing._finish_one, []

    def cut(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise SystemExit
        return make(*given)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(finishing, "_finish_one", cut)
        quiet_run(asked(num_images=3, mask=True))
    drawn.clear()
    made = quiet_run(asked(num_images=3, mask=True))
    assert drawn == []
    same = {name: data for name, data in files_of(made[0].path.parent).items() if name.endswith("png")}
    assert same == {n: data for n, data in files_of(whole[0].path.parent).items() if n.endswith("png")}


def test_what_cannot_be_made_of_one_design_is_said_and_the_others_go_on(asked: Asked) -> None:
    """A design of one colour has no mask."""
    made = quiet_run(asked(num_images=2))
    Image.new("RGB", (32, 32), "navy").save(made[0].path)
    lines: list[str] = []
    inference.run(asked(num_images=2, mask=True), say=lines.append)
    assert [line for line in lines if line.startswith("! refined_output_000.png")]
    assert not page.beside(made[0].path, finishing.MASK).exists()
    assert page.beside(made[1].path, finishing.MASK).is_file()


def test_what_cannot_be_made_of_any_is_refused_before_drawing(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, drawn: list[int]
) -> None:
    with pytest.raises(SettingsError, match="mirrored half-drop does not join"):
        quiet_run(asked(repeat="half-drop", height=64, preview="mirrored"))
    with pytest.raises(SettingsError, match="can be opened again"):
        quiet_run(asked(width=4096, height=4096, upscale=8.0))
    monkeypatch.setattr(finishing.outlines, "missing_package", lambda: "SVG outlines need the package vtracer")
    with pytest.raises(MachineError, match="vtracer"):
        quiet_run(asked(outline=True))
    assert drawn == []


def test_L16_the_laid_cloth_is_the_pattern_that_the_networks_were_padded_for(asked: Asked) -> None:
    """Two rooms lay tiles out, one for tensors and one for pictures; they must agree."""
    tile = Image.fromarray(numpy.random.default_rng(3).integers(0, 255, (24, 32, 3), numpy.uint8))
    for repeat in ("none", "straight", "half-drop", "brick"):
        laid = numpy.asarray(cloth.laid(tile, repeat, 3, 3))  # type: ignore[arg-type]
        assert numpy.array_equal(laid, repeats.tiled(numpy.asarray(tile), repeat, 3, 3))  # type: ignore[arg-type]
    band = numpy.asarray(cloth.laid(tile, "band", 3, 3))
    assert numpy.array_equal(band, repeats.tiled(numpy.asarray(tile), "band", 1, 3))


def test_a_zip_is_left_out_where_it_is_not_wanted(asked: Asked) -> None:
    [made] = quiet_run(asked(num_images=1, zip=False))
    assert not (made.path.parent / "sheet.zip").exists() and Shard(1, 1).suffix == ""
    quiet_run(asked(num_images=1))
    assert (made.path.parent / "sheet.zip").is_file()


# -- what would mislead --


def zipped_names(folder: Path) -> set[str]:
    with zipfile.ZipFile(folder / f"{folder.name}.zip") as archive:
        return {Path(name).name for name in archive.namelist()}


def test_the_zip_holds_what_the_folder_holds_however_it_came_to_be(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks asked for later; cut off while packing; changed masks; a zip that was not wanted for a while."""
    [made] = quiet_run(asked(num_images=1))
    folder, mask = made.path.parent, "refined_output_000_mask.png"
    assert mask not in zipped_names(folder)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(page, "zipped", stop_here)
        quiet_run(asked(num_images=1, mask=True, lace="light"))
    quiet_run(asked(num_images=1, mask=True, lace="light"))
    assert mask in zipped_names(folder)
    quiet_run(asked(num_images=1, mask=True, lace="dark", zip=False))
    assert not (folder / "sheet.zip").exists()
    quiet_run(asked(num_images=1, mask=True, lace="dark"))
    with zipfile.ZipFile(folder / "sheet.zip") as archive:
        assert archive.read(f"sheet/{mask}") == (folder / mask).read_bytes()


def test_files_of_her_own_in_the_folder_are_left_alone(asked: Asked) -> None:
    [made] = quiet_run(asked(num_images=1))
    own = made.path.with_name("my_own_mask.png")
    own.write_bytes(b"hers")
    quiet_run(asked(num_images=1, mask=True))
    quiet_run(asked(num_images=1, mask=True, lace="dark"))
    assert own.read_bytes() == b"hers"


def test_a_corrected_noise_schedule_draws_other_pictures(
    asked: Asked, tiny_refiner: Path, tmp_path: Path, drawn: list[int]
) -> None:
    """Whoever repairs a model's prediction_type must not get the old pictures back."""
    refiner = tmp_path / "refiner" / tiny_refiner.name
    shutil.copytree(tiny_refiner, refiner)
    first = quiet_run(asked(num_images=1, refiner_model=str(refiner)))
    file = refiner / "scheduler/scheduler_config.json"
    shipped = json.loads(file.read_text())
    file.write_text(json.dumps(shipped | {"prediction_type": "v_prediction"}))
    drawn.clear()
    other = quiet_run(asked(num_images=1, refiner_model=str(refiner)))
    assert drawn == [0] and other[0].path.parent != first[0].path.parent
    assert other[0].path.read_bytes() != first[0].path.read_bytes()


def test_pictures_drawn_in_another_precision_are_told_from_those_of_this_one(
    asked: Asked, made_run: Path, models: dict[str, str], tmp_path: Path, drawn: list[int]
) -> None:
    """Set by hand it is another sheet; and latents of another precision are not taken up."""
    half = quiet_run(asked(num_images=2, mixed_precision="bf16"))
    full = quiet_run(asked(num_images=2, mixed_precision="no"))
    assert half[0].path.parent != full[0].path.parent and {one.precision for one in full} == {"fp32"}
    alone = quiet_run(settings_of(tmp_path / "alone", made_run, models, num_images=2, mixed_precision="no"))
    assert [one.path.read_bytes() for one in full] == [one.path.read_bytes() for one in alone]


def test_a_picture_that_another_program_saved_is_not_taken_over(asked: Asked, drawn: list[int]) -> None:
    """Retouched in place, or emptied: the new sheet draws its own, and the retouched one stays."""
    first = quiet_run(asked(num_images=3))
    expected = [one.path.read_bytes() for one in first]
    picture_at(first[0].path).rotate(90).save(first[0].path)
    first[1].base.write_bytes(b"")
    drawn.clear()
    made = quiet_run(asked(num_images=4))
    assert sorted(drawn) == [0, 1, 3]
    assert [one.path.read_bytes() for one in made[:3]] == expected


def test_P3_shards_share_what_an_earlier_sheet_has_lost(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, drawn: list[int]
) -> None:
    """Every picture is made by exactly one of them, whatever was deleted in between."""
    first = quiet_run(asked(num_images=4))
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(sheet, "take_over", stop_here)
        quiet_run(asked(num_images=5, shard="1/2"))
    first[0].path.unlink()
    first[2].path.unlink()
    drawn.clear()
    quiet_run(asked(num_images=5, shard="1/2"))
    made = quiet_run(asked(num_images=5, shard="2/2"))
    assert made.is_complete and len(made) == 5 and sorted(drawn) == [0, 2, 4]
    again = quiet_run(asked(num_images=5))
    assert again == made and not list(made.folder.root.glob("redrawn*"))


def test_two_at_one_sheet_are_told_apart(asked: Asked) -> None:
    """Without shards, a second process is refused with what to do, and loses nothing."""
    [made] = quiet_run(asked(num_images=1))
    with (
        lock.lock(made.path.parent, lambda line: None, name="drawing.lock"),
        pytest.raises(RunError, match=r"is being drawn already, by process .* share the sheet: see shard"),
    ):
        quiet_run(asked(num_images=1))
    assert len(quiet_run(asked(num_images=1))) == 1


@pytest.mark.parametrize(
    "broken",
    ['{"base": null, "index": 0}', '{"index": [1]}', "[" * 100_000, '{"index": 0, "base": 3, "refined": 3}', "null"],
)
def test_rows_that_nothing_can_be_made_of_are_passed_over(asked: Asked, broken: str) -> None:
    [made] = quiet_run(asked(num_images=1))
    with open(made.path.with_name("images.jsonl"), "a", encoding="utf-8") as file:
        file.write(broken + "\n")
    assert len(quiet_run(asked(num_images=2))) == 2


def test_a_prompt_too_long_for_a_jpeg_is_refused_before_it_is_drawn(asked: Asked, drawn: list[int]) -> None:
    with pytest.raises(SettingsError, match="too long to be kept in a JPEG"):
        quiet_run(asked(num_images=1, image_format="jpg", prompts=("<lace> " + "ж" * 9000,)))
    assert drawn == []
    assert len(quiet_run(asked(num_images=1, image_format="jpg", prompts=("<lace> " + "ж" * 900,)))) == 1
