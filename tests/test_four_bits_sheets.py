"""Sheets, grids and class pictures with a base in 4 bits: recorded, finished as they were begun (P13, L14, C10)."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageChops

from lace_lora import evaluate, grid, inference, install, order, pictures, presets, settling, sheet, stars
from lace_lora.commissions import Limits
from lace_lora.config import Config, load
from lace_lora.errors import MachineError
from lace_lora.families import memory
from lace_lora.figures import Watch
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder
from lace_lora.stopping import Stop
from lace_lora.studio import Studio
from tests import wide_models
from tests.drawing import cut_at, files_of, picture_at, quiet_run, rows_of, seeds_drawn
from tests.test_stages import made_lora

pytest.importorskip("bitsandbytes")

Asked = Callable[..., Config]


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a finished adapter of a wide SDXL, beside its model; the 4-bit base is kept for all tests."""
    folder = tmp_path_factory.mktemp("wide")
    model = wide_models.build("sdxl", folder / "model")
    facts = {"concept_token": "<lace>", "instance_prompt": "a photo of <lace>", "class_prompt": "a photo of a painting"}
    made_lora(model, RunFolder(folder / "runs" / "lace"), resolution=32, step=9, **facts)
    return folder


@pytest.fixture
def drawn_with(made: Path, tmp_path: Path) -> Asked:
    """Settings that draw three designs in a copy of the run, in two batches; run: the name of the copy's folder."""

    def settings(copy: str = "out", **changes: Any) -> Config:
        if not (tmp_path / copy).exists():
            shutil.copytree(made / "runs", tmp_path / copy)
        small = {"num_images": 3, "num_inference_steps": 2, "width": 32, "height": 32, "refine": "none"}
        places = {"preset": "none", "lora_output_dir": str(tmp_path / copy), "cache_dir": str(made / "cache")}
        return load(pretrained_model=str(made / "model"), **places | small | changes)

    return settings


@pytest.fixture
def _in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "batch_size", lambda *_: 2)


def chooses(monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    """A machine whose plan would draw so, where that is left open."""
    real = settling.drawn_in

    def chosen(config: Config, machine: Machine) -> tuple[str, str]:
        return (quantization, "for this test") if config.quantization == "auto" else real(config, machine)

    monkeypatch.setattr(settling, "drawn_in", chosen)


def test_rows_and_files_say_it_and_another_sheet_is_no_part_of_it(drawn_with: Asked) -> None:
    """P13: a sheet of the base as it is takes nothing from one in 4 bits, nor the other way round."""
    small = inference.run(drawn_with(quantization="nf4"), say=lambda line: None)
    whole = inference.run(drawn_with(quantization="none"), say=lambda line: None)
    assert (small.folder.root.name, whole.folder.root.name) == ("sheet", "sheet-2")
    assert {row["quantization"] for row in rows_of(small.folder.root)} == {"nf4"}
    assert {row["quantization"] for row in rows_of(whole.folder.root)} == {"none"}
    assert pictures.read_details(small[0].path)["quantization"] == "nf4"
    assert json.loads(small.folder.request.read_text(encoding="utf-8"))["shared"]["quantization"] == "nf4"
    assert "quantization" not in json.loads(whole.folder.request.read_text(encoding="utf-8"))["shared"]
    difference = ImageChops.difference(picture_at(small[0].path), picture_at(whole[0].path))
    assert difference.getbbox() is not None


@pytest.mark.usefixtures("_in_pairs")
def test_a_sheet_that_was_cut_is_finished_in_four_bits_with_the_same_bytes(
    drawn_with: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L14, C10: also on a machine whose plan would draw with the base as it is; and the other way round."""
    for name, other in (("nf4", "none"), ("none", "nf4")):
        chooses(monkeypatch, name)
        unbroken = inference.run(drawn_with(f"whole {name}"), say=lambda line: None)
        with monkeypatch.context() as patch:
            cut_at(patch, sheet, "add", 2)
            with pytest.raises(SystemExit):
                quiet_run(drawn_with(f"cut {name}"))
        chooses(monkeypatch, other)
        lines: list[str] = []
        found = inference.run(drawn_with(f"cut {name}"), say=lines.append)
        assert found.folder.root.name == "sheet" and sum("so the sheet was begun" in line for line in lines) == 1
        assert files_of(found.folder.root) == files_of(unbroken.folder.root)
        assert {one.quantization for one in found} == {name}
        anew = inference.run(drawn_with(f"cut {name}", num_images=2, seed=5), say=lambda line: None)
        assert {one.quantization for one in anew} == {other}, "another sheet is drawn as this machine would"


def test_a_finished_sheet_of_before_there_was_a_choice_is_taken_for_what_it_is(
    drawn_with: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L14: nothing is drawn again, and another sheet takes its designs over."""
    done = inference.run(drawn_with(), say=lambda line: None)
    manifest = done.folder.manifest
    rows = [{name: value for name, value in row.items() if name != "quantization"} for row in rows_of(manifest.parent)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    drawn = seeds_drawn(monkeypatch)
    assert len(quiet_run(drawn_with())) == 3
    more = inference.run(drawn_with(sheet_name="more", num_images=4), say=lambda line: None)
    assert drawn == [3] and len(more) == 4
    lines: list[str] = []
    inference.run(drawn_with(vary="sheet/0", num_images=1, sheet_name="near"), say=lines.append)
    assert not any("drawn otherwise" in line for line in lines)


def test_a_grid_has_the_pictures_of_sheets(drawn_with: Asked) -> None:
    """P13: one LoRA after the other beside the same 4-bit layers, and the base alone before any of them."""
    asked = {"quantization": "nf4", "prompts": ("<lace> leaf",), "num_images": 1, "seed": 4}
    found = grid.run(drawn_with(**asked), ["<lace> leaf"], [4], [0.0, 0.5, 1.0], say=lambda line: None)
    assert found.is_complete
    for cell in found.cells:
        settings = drawn_with(**asked, lora_scale=cell.lora_scale, sheet_name=f"at-{cell.lora_scale:g}")
        [one] = quiet_run(settings)
        assert not ImageChops.difference(picture_at(one.path), picture_at(cell.path)).getbbox(), cell.lora_scale
        assert pictures.read_details(cell.path)["quantization"] == "nf4"
    whole = grid.run(drawn_with(**asked | {"quantization": "none"}), ["<lace> leaf"], [4], [1.0], say=lambda line: None)
    assert whole.cells[0].key not in {cell.key for cell in found.cells}
    pairs = inference.compare_all(drawn_with(**asked), ["<lace> leaf"], [4], say=lambda line: None)
    by_scale = {cell.lora_scale: picture_at(cell.path) for cell in found.cells}
    for image, scale in zip((pairs[0][0][0], pairs[0][1][0]), (0.0, 1.0), strict=True):
        assert not ImageChops.difference(image, by_scale[scale]).getbbox()


def test_a_missing_package_is_told_before_anything_is_loaded(
    drawn_with: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = drawn_with(quantization="nf4")
    with pytest.raises(MachineError, match="nf4 needs the package bitsandbytes: pip install bitsandbytes. Or set"):
        quiet_run(config)
    assert not RunFolder.of(config).sheets.exists()


def test_a_presets_four_bits_leave_drawing_open_and_a_persons_do_not(tmp_path: Path) -> None:
    """P13, C10."""
    t4 = Machine(True, True, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)
    for asked, expected in (({}, "auto"), ({"quantization": "nf4"}, "nf4"), ({"quantization": "none"}, "none")):
        settled = presets.settle(load(preset="lace-t4-qlora", cache_dir=str(tmp_path), **asked), t4)
        assert inference.for_drawing(settled).quantization == expected


def test_measuring_and_serving_draw_as_generating_does(drawn_with: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """P13, P20: with a preset that trains in 4 bits, all three draw as the plan says, and in 4 bits where it is set."""
    monkeypatch.setattr(evaluate, "write_report", lambda run: run.report)  # it tells of a training, and there was none
    drawn = {"num_evaluated": 4, "plain_prompts": ("a bowl",), "style_model": "none", "text_model": "none"}
    for asked, expected in (({}, "none"), ({"quantization": "nf4"}, "nf4")):
        config = drawn_with(f"as {expected}", preset="lace-t4-qlora", num_images=1, **drawn | asked)
        [design] = quiet_run(config)
        studio = Studio.open(None, config, Limits(), lambda line: None)
        served = studio.draw({}, "served", Stop(), Watch(), lambda one: None)
        evaluate.run(config, say=lambda line: None)
        run = RunFolder.of(config)
        cells = [pictures.read_details(path) for path in run.evaluation.glob("*/cells/*.png")]
        [row] = rows_of(run.sheet(served.sheet).root)
        assert design.quantization == row["quantization"] == expected
        assert len(cells) == 12 and {cell.get("quantization", "none") for cell in cells} == {expected}


def test_what_drawing_decides_is_known_before_so_that_it_can_be_installed(
    drawn_with: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2: bitsandbytes is no part of what every notebook installs, and what a preset trains with none of drawing."""
    preset = tmp_path / "own.yaml"
    preset.write_text("about: mine\nsettings: {optimizer: adamw8bit, quantization: nf4}\n", encoding="utf-8")
    for chosen in ("nf4", "none"):
        chooses(monkeypatch, chosen)
        config = drawn_with(preset=str(preset))
        for planned in (inference.as_planned(config), grid.as_planned(config)):
            assert planned == config.with_preset({"quantization": chosen})
            assert planned.overridden == config.overridden
            found = [wish.setting for wish in install.wishes(planned) if wish.need.name == "bitsandbytes"]
            assert found == (["quantization nf4"] if chosen == "nf4" else [])
    chooses(monkeypatch, "nf4")
    for backend in ("comfyui", "replicate"):
        assert inference.as_planned(drawn_with(backend=backend, quantization="nf4")).quantization == "none"
    assert inference.as_planned(drawn_with(quantization="nf4")).quantization == "nf4"
    assert grid.as_planned(drawn_with(quantization="nf4")).quantization == "nf4"


def test_what_is_installed_is_decided_by_what_will_be_drawn(
    made: Path, drawn_with: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2: by the largest of all pictures, and by the model that is on this machine where the LoRA's own is not."""
    made_lora(made / "model", RunFolder(tmp_path / "moved" / "lace"), resolution=32, step=9, base_model="/gone/model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "leaf", "width": 64, "height": 32}\n{"prompt": "star"}\n', encoding="utf-8")
    seen: list[tuple[object, ...]] = []

    def noted(config: Config, machine: Machine) -> tuple[str, str]:
        seen.append((config.pretrained_model, config.width, config.height))
        return "none", "for this test"

    monkeypatch.setattr(settling, "drawn_in", noted)
    config = drawn_with("moved", prompts_file=str(rows), num_images=2)
    inference.as_planned(config)
    assert seen == [(str(made / "model"), 64, 32)]
    quiet_run(config)
    assert seen[1:] == seen[:1]
    del seen[:]
    grid.as_planned(config)
    grid.run(config, ["<lace> leaf"], [4], [1.0], say=lambda line: None)
    assert seen == [(str(made / "model"), 32, 32)] * 2


@pytest.mark.usefixtures("_in_pairs")
def test_a_sheet_that_was_begun_in_four_bits_asks_for_the_package_only_while_it_is_not_finished(
    drawn_with: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L14, L2: on a larger GPU, too; and nothing is lost where the package is missing."""
    chooses(monkeypatch, "nf4")
    config, gridded = drawn_with(), (["<lace> leaf"], [4], [1.0])
    with monkeypatch.context() as patch:
        cut_at(patch, sheet, "add", 2)
        with pytest.raises(SystemExit):
            quiet_run(config)
    measured = grid.run(config, *gridded, say=lambda line: None)
    chooses(monkeypatch, "none")
    assert inference.as_planned(config).quantization == "nf4"
    before = files_of(RunFolder.of(config).sheets)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(
            MachineError, match="This sheet was begun.*pip install bitsandbytes, then run.*another sheet"
        ):
            quiet_run(config)
        assert files_of(RunFolder.of(config).sheets) == before
    assert len(quiet_run(config)) == 3
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    done = inference.run(config, say=lambda line: None)
    assert (len(done), done.folder.root.name, {one.quantization for one in done}) == (3, "sheet", {"nf4"})
    chooses(monkeypatch, "nf4")
    assert grid.run(config, *gridded, say=lambda line: None) == measured
    measured.cells[0].path.unlink()
    with pytest.raises(MachineError, match="This grid was begun with the base in 4 bits"):
        grid.run(config, *gridded, say=lambda line: None)
    with pytest.raises(
        MachineError, match=r"in 4 bits \(for this test\), which needs.*pip install bitsandbytes"
    ) as told:
        quiet_run(drawn_with(seed=9))
    assert "none" not in str(told.value), "a base that does not fit as it is is no way out"


def test_designs_of_before_are_compared_with_what_is_drawn_in_the_end(
    drawn_with: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L7: starred or varied on a machine that draws otherwise, it is told; on one that draws the same, it is not."""
    for begun, other in (("nf4", "none"), ("none", "nf4")):
        chooses(monkeypatch, begun)
        done = inference.run(drawn_with(begun, num_images=1), say=lambda line: None)
        stars.set_stars(done.folder, [0])
        for chosen in (begun, other):
            chooses(monkeypatch, chosen)
            for name, asked in (("again", {"favourites_of": "sheet"}), ("near", {"vary": "sheet/0", "num_images": 1})):
                lines: list[str] = []
                inference.run(drawn_with(begun, sheet_name=f"{name} {chosen}", **asked), say=lines.append)
                told = [line.rpartition(": ")[2] for line in lines if "drawn otherwise" in line]
                assert told == ([] if chosen == begun else [f"quantization {begun} → {other}."])


def test_what_is_said_of_a_base_that_would_not_fit(made: Path, tmp_path: Path) -> None:
    """C10: both numbers, and the machine's; on a large one nothing."""
    config = load(preset="none", pretrained_model="black-forest-labs/FLUX.1-dev", cache_dir=str(tmp_path))
    l4 = Machine(True, True, "NVIDIA L4", 22.2, (8, 9), 53.0, 50.0, 190.0, 12)
    quantization, why = settling.drawn_in(config, l4)
    assert quantization == "nf4"
    assert why.startswith("23.6 GB would be needed in bf16, and NVIDIA L4 has 22.2; in 4 bits 7.2, the base a little")
    a100 = Machine(True, True, "NVIDIA A100-SXM4-40GB", 39.5, (8, 0), 83.0, 80.0, 150.0, 12)
    assert settling.drawn_in(config, a100)[0] == "none"
    assert settling.drawn_in(config.model_copy(update={"quantization": "nf4"}), a100) == ("nf4", "as set")


def test_a_request_of_before_there_was_a_choice_keeps_its_digest() -> None:
    """L7: written down by the version before, so that a sheet begun with it goes on; a name that is None counts."""
    one = sheet.Generation(
        index=0, prompt="a <lace> star", refiner_prompt="a star", negative_prompt="grainy", seed=7,
        num_inference_steps=30, scheduler="dpmpp_2m", guidance_scale=5.0, refine="none", refiner_start=None,
        refine_strength=None, width=64, height=64, repeat="none", repeat_from=None, guidance_until=1.0,
        start_picture=None, start_digest=None, start_strength=None, dpi=300.0, lora_scale=1.0, concept_token="<lace>",
        adapter_digest="abc", pretrained_model="base", refiner_model=None, precision="fp32",
        base=Path("base_result_000.png"), refined=None, versions={},
    )  # fmt: skip
    digest = sheet._digest([["model"], [sheet._told(one)]])
    assert digest == "4a40ceee742b0e2926805f9703389294780695c1a9ae11b0d0bcbaf54226c962"
    assert sheet._digest([["model"], [sheet._told(replace(one, quantization="nf4"))]]) != digest
