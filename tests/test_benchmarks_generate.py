"""The benchmark of generation draws the same pictures every way, and counts what it says (P3, P20, P28, C10)."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import generate, generate_report, hardware, meters, model, tally, ways
from lace_lora import coefficients
from lace_lora.families import memory
from lace_lora.families.quiet import quiet
from tests.conftest import read_pixels

TINY = ["--size", "tiny", "--steps", "10", "--pictures", "3", "--batch", "2"]
OURS, ENSEMBLE = "ours", "diffusers, ensemble at 0.8"


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes 0.3 s each time with all these libraries loaded."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)
    for room in (ways, generate, meters):
        monkeypatch.setattr(room.gc, "collect", lambda: 0)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def sheet(work: Path) -> ways.Sheet:
    asked = generate.parser().parse_args([*TINY, "--work", str(work)])
    made: ways.Sheet = generate.prepare(asked)
    return made


def way_named(name: str, **changes: Any) -> ways.Way:
    [found] = [way for way in ways.for_cpu(2, 10) if way.name == name]
    return replace(found, **changes)


@pytest.mark.slow  # of a benchmark, which runs by name
@pytest.mark.parametrize("name", [OURS, ENSEMBLE, f"{ENSEMBLE}, LoRA fused"])
def test_parts_times_what_each_takes_are_the_flops_that_are_really_computed(sheet: ways.Sheet, name: str) -> None:
    """P28, P3: PyTorch's counter over the drawing itself says the same, with the LoRA fused and beside the layers."""
    few = replace(sheet, steps=5)
    with tally.tally() as found:
        read = meters.flops()
        ways.draw(few, way_named(name, settings={"refiner_start": 0.7} if name == OURS else {}), 1)
        counted = read()["gflop"]
    each = tally.gflop_a_row("tiny", sheet.side_px, model.RANK if name == ENSEMBLE else 0)
    expected = sum(each[part] * number for part, number in found.rows.items())
    if name != ENSEMBLE:  # the products B·A, once a sheet
        state = load_file(sheet.lora)
        ups = {key: one for key, one in state.items() if key.endswith(".lora_B.weight")}
        expected += sum(
            2 * up.numel() * state[key.replace("lora_B", "lora_A")].shape[1] / 1e9 for key, up in ups.items()
        )
    assert expected == pytest.approx(counted, rel=1e-9)
    # An ensemble splits one schedule, two rows a step; ours draws the base's picture to its end beside it.
    handed_over = 0 if name == OURS else found.rows["refiner unet"]
    assert found.rows["base unet"] == 2 * 5 - handed_over and found.rows["refiner unet"] > 0
    assert found.rows["vae decode"] == (2 if name == OURS else 1)


@pytest.mark.slow  # of a benchmark, which runs by name
def test_loads_are_once_a_sheet_by_stages_and_once_a_picture_where_nothing_is_kept(sheet: ways.Sheet) -> None:
    """P3."""
    few = replace(sheet, steps=7)
    for name, times in ((OURS, 1), ("diffusers, 10 + 3", 1), ("diffusers, 10 + 3, loaded for each picture", 2)):
        with tally.tally() as found:
            ways.draw(few, way_named(name), 2)
        assert found.loads == dict.fromkeys(("base unet", "refiner unet", "vae", "text 1", "text 2"), times), name
        weights = [*Path(sheet.base).glob("*/*.safetensors"), Path(sheet.refiner) / "unet"]
        weights[-1:] = [*weights[-1].glob("*.safetensors")]
        assert found.bytes_read == times * sum(path.stat().st_size for path in weights), name


def test_all_ways_draw_the_same_pictures(sheet: ways.Sheet) -> None:
    """C10: what is compared is the same work: the base's picture of both is equal but for rounding."""
    files = ways.draw(sheet, way_named(OURS), 2)
    ours = [read_pixels(path.with_name(path.name.replace("refined_output", "base_result"))) for path in files]
    with quiet():
        base, _ = ways.opened(sheet, way_named("diffusers, 10 + 3"))
        size = {"width": sheet.side_px, "height": sheet.side_px}
        theirs = base(num_inference_steps=sheet.steps, **size, **ways._asked(sheet, range(2))).images
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(mine.astype(int) - np.asarray(other).astype(int)).max() <= 2
    assert np.abs(ours[0].astype(int) - ours[1].astype(int)).max() > 10


def test_the_literal_thirty_are_thirty_steps_of_the_refiner(sheet: ways.Sheet) -> None:
    """C10: '10 + 10' makes ten and '10 + 3' three, two rows each."""
    for name, steps in (("diffusers, 10 + 10", 10), ("diffusers, 10 + 3", 3)):
        with tally.tally() as found:
            ways.draw(sheet, way_named(name), 1)
        assert (found.rows["base unet"], found.rows["refiner unet"]) == (20, 2 * steps)
        assert (found.rows["vae encode"], found.rows["vae decode"]) == (1, 2)


def test_the_growth_of_a_process_is_its_own_and_not_its_parents() -> None:
    """P28: a new process has held less than this one, which holds 200 MB more than all that it could import."""
    held = np.ones(200_000_000, dtype=np.uint8)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(meters.most_held_mb).result() < meters.most_held_mb() - held.nbytes / 2e6


@pytest.mark.slow
def test_every_way_for_a_gpu_is_walked_through_without_one(sheet: ways.Sheet, monkeypatch: pytest.MonkeyPatch) -> None:
    """C10: the rows with offloading ask diffusers for it on both pipelines, the others do not."""
    offloaded: list[str] = []
    for kind in (ways.StableDiffusionXLPipeline, ways.StableDiffusionXLImg2ImgPipeline):
        monkeypatch.setattr(kind, "enable_model_cpu_offload", lambda self, device: offloaded.append(device))
    few = replace(sheet, steps=7)
    wanted = ways.for_gpu(2, 7)
    for way in wanted:
        offloaded.clear()
        assert len(ways.draw(few, way, 1)) == 1
        assert len(offloaded) == (2 if way.is_offloaded else 0), way.name
    assert len({way.name for way in wanted}) == len(wanted) and sum(way.is_offloaded for way in wanted) == 3
    assert [way.name.removesuffix(", cpu offload") for way in wanted if way.is_offloaded] == [
        way.name for way in wanted[3:6]
    ]


@pytest.mark.slow  # of a benchmark, which runs by name
def test_sdxls_true_sizes_are_those_that_the_plan_knows() -> None:
    """C10, P28: without a weight; the base's pass is what the plan counts with; the refiner has its published size."""
    each = tally.gflop_a_row("sdxl", 1024, model.RANK)
    sizes = coefficients.of("stabilityai/stable-diffusion-xl-base-1.0")
    lora = 16 * 2 * sizes.table["training"]["attention"]["parameters_a_rank"] * 128 * 128 / 1e9  # at most, in GFLOP
    plain = sizes.forward_flop("denoiser", 128 * 128) / 1e9
    assert plain < each["base unet"] < plain + lora
    assert each["refiner unet"] == pytest.approx(sizes.forward_flop("refiner", 128 * 128) / 1e9, rel=0.001)
    assert each["text 1"] + each["text 2"] == pytest.approx(sizes.caption_flop() / 1e9, rel=0.001)
    for way in ("encode", "decode"):
        assert each[f"vae {way}"] == pytest.approx(sizes.vae_flop(way, 128 * 128) / 1e9, rel=0.001)
    with torch.device("meta"), quiet():
        refiner = tally.UNet2DConditionModel(**model.SIZES["sdxl"].refiner)
    assert sum(one.numel() for one in refiner.parameters()) / 1e6 == pytest.approx(2259.5, abs=0.1)


@pytest.mark.slow
def test_a_run_writes_a_page_and_its_numbers(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sheet: ways.Sheet
) -> None:
    """C10: hardware, versions and command, no folder of the machine; what cannot run is a row that says so."""
    monkeypatch.setattr(generate, "in_own_process", generate.growth_mb)
    monkeypatch.setattr(generate.gc, "freeze", lambda: None)
    monkeypatch.setattr(tally, "gflop_a_row", lambda *given: dict.fromkeys(generate_report.PARTS, 1.0))
    wanted = [way_named(OURS), way_named(ENSEMBLE), ways.Way("ours, wrong", settings={"refiner_start": 0.99})]
    monkeypatch.setattr(ways, "for_cpu", lambda *given: wanted)
    few = ["--steps", "7", "--pictures", "2", "--timed", "1", "--rounds", "2"]
    generate.main([*TINY, *few, "--work", str(work), "--results", str(tmp_path)])
    facts = json.loads(next(tmp_path.glob("generate-cpu-tiny-*.json")).read_text())
    assert {"hardware", "versions", "date", "command", "load"} <= facts.keys()
    ours, theirs, failed = facts["rows"]
    assert all(len(row["cpu_s"]) == len(row["clock_s"]) == 2 for row in (ours, theirs))
    assert set(ours["loads"].values()) == {1} and 0 < ours["live_mb"] < theirs["live_mb"] and ours["rss_mb"] >= 0
    assert "refiner_start 0.99 of 7 steps leaves the refiner none" in failed["error"]
    page = next(tmp_path.glob("generate-cpu-tiny-*.md")).read_text()
    assert "| ours, wrong | refiner_start 0.99" in page and "| ours loads each model once | 1 | yes |" in page
    assert str(work) not in page + json.dumps(facts) and str(tmp_path.parent) not in page + json.dumps(facts)
    assert hardware.versions()["torch"] in page


def row_of(name: str, cpu_s: list[float], kind: str = "ensemble", **rows: float) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "batch": 1, "cpu_s": cpu_s, "clock_s": cpu_s, "peak_vram_gib": 5.0,
        "rows": rows, "loads": {"vae": 1}, "bytes_read": 1, "is_fused": kind == "ours",
    }  # fmt: skip


def facts_of(**changes: Any) -> dict[str, Any]:
    each = dict.fromkeys(generate_report.PARTS, 1.0)
    sizes = {f"{at}gflop_a_row{how}": each for at in ("", "sdxl_") for how in ("", "_unfused")}
    plain = {
        "command": "c", "date": "2026-01-01", "hardware": "h", "versions": {}, "threads": 1, "device": "cuda",
        "size": "sdxl", "dtype": "fp16", "side_px": 1024, "pictures": 24, "timed": 24, "rounds": 2, "steps": 30,
        "guidance_scale": 5.0, "scheduler": "dpmpp_2m", "load": [1.0],
    }  # fmt: skip
    return plain | sizes | changes


def test_a_target_that_is_missed_against_anybody_is_called_missed() -> None:
    """P28: the smaller saving of both sizes counts; from numbers made by hand."""
    rows = [
        row_of("ours", [2.0, 4.0], "ours", **{"base unet": 60, "refiner unet": 10}),
        row_of("far", [4.0, 8.0], **{"base unet": 60, "refiner unet": 60}),
        row_of("near", [3.0, 3.0], **{"base unet": 60, "refiner unet": 30}),
        row_of("less", [1.0, 2.0], **{"base unet": 40, "refiner unet": 16}),
    ]
    cheap_refiner = dict.fromkeys(generate_report.PARTS, 1.0) | {"refiner unet": 0.5}
    page = generate_report.page(facts_of(sdxl_gflop_a_row=cheap_refiner, sdxl_gflop_a_row_unfused=cheap_refiner), rows)
    told = [line.strip("| ").split(" | ") for line in page.partition("## Targets")[2].strip().splitlines()]
    assert told[2:9] == [
        ["ours loads each model once", "1", "yes"],
        ["20% fewer FLOPs than far", "41.7% fewer, at SDXL's size 27.8% fewer", "yes"],
        ["20% fewer FLOPs than near", "22.2% fewer, at SDXL's size 13.3% fewer", "no"],
        ["20% fewer FLOPs than less", "25.0% more, at SDXL's size 35.4% more", "no"],
        ["ours: faster than far, in seconds", "2.000× (2.000–2.000)", "yes"],
        ["ours: faster than near, in seconds", "1.125× (0.938–1.312)", "yes"],
        ["ours: faster than less, in seconds", "0.500× (0.500–0.500)", "no"],
    ]
    assert "not reached against: near (13.3% fewer); less (35.4% more)." in page
    assert "| ours | 5.00 |" in page.partition("## Memory")[2]
