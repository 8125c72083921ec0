"""Sheets of designs: as many as asked for, resumable, with everything that made them."""

import dataclasses
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageChops
from safetensors.torch import load_file, save_file

from lace_lora import between_stages, checkpoint, inference, order, pictures, production, run_folder, sheet, stages
from lace_lora.batches import batch_size
from lace_lora.config import load
from lace_lora.errors import AdapterError, MachineError, ModelError, RunError, SettingsError
from lace_lora.families import memory, sdxl
from lace_lora.machine import Machine
from tests.drawing import Asked, cut_at, files_of, picture_at, quiet_run, rows_of, settings_of
from tests.test_stages import made_lora, watch_networks


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes 0.3 s each time with all these libraries loaded."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


@pytest.fixture(scope="module")
def whole(models: dict[str, str], made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of six pictures, made without a break in batches of two."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(order, "batch_size", lambda *given: 2)
        quiet_run(settings_of(folder, made_run, models))
    return files_of(folder / "lace/images")


@pytest.fixture
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "batch_size", lambda *given: 2)


# -- what comes out --


def test_L6_twenty_four_are_exactly_twenty_four_with_one_row_each(asked: Asked, tmp_path: Path) -> None:
    lines: list[str] = []
    shown: list[inference.Generation] = []
    made = inference.run(
        asked(num_images=24, prompts=("<lace> leaf", "star of <lace>")), say=lines.append, show=shown.append
    )
    folder = tmp_path / "out/lace/images/sheet"
    assert made == shown and [one.index for one in made] == list(range(24))
    names = [f"{kind}_{index:03d}.png" for kind in ("base_result", "refined_output") for index in range(24)]
    whole = ["contact_sheet.png", "images.jsonl", "index.html", "request.json", "sheet.zip"]
    assert sorted(files_of(folder)) == sorted([*names, *whole])
    rows = rows_of(folder)
    assert [row["seed"] for row in rows] == list(range(24)) and len({row["adapter_digest"] for row in rows}) == 1
    assert [row["prompt"] for row in rows] == ["<lace> leaf", "star of <lace>"] * 12
    assert {picture_at(one.path).size for one in made} == {(32, 32)}
    assert len({one.path.read_bytes() for one in made}) == 24
    assert len(lines) <= 40 and any(line.startswith("picture   24/24") for line in lines)


def test_L17_the_defaults_are_thirty_steps_of_dpm_and_the_users_negative_prompt(asked: Asked) -> None:
    config = load(num_images=1)
    assert (config.num_inference_steps, config.scheduler) == (30, "dpmpp_2m")
    [made] = quiet_run(asked(num_images=1, num_inference_steps=None, refiner_start=None))
    assert (made.num_inference_steps, made.scheduler, made.negative_prompt) == (30, "dpmpp_2m", "grainy, low quality")


def test_L7_refined_and_unrefined_pictures_lie_side_by_side_and_differ(asked: Asked) -> None:
    for made in quiet_run(asked(num_images=2)) + quiet_run(asked(num_images=2, refine="img2img", refine_strength=0.5)):
        assert made.refined is not None and made.refined.name == f"refined_output_{made.index:03d}.png"
        assert made.base.read_bytes() != made.refined.read_bytes()


def test_L15_L16_jpg_and_no_refinement(asked: Asked, tmp_path: Path) -> None:
    made = quiet_run(asked(num_images=2, refine="none", image_format="jpg"))
    assert [one.path.name for one in made] == ["base_result_000.jpg", "base_result_001.jpg"]
    assert not list((tmp_path / "out").rglob("refined*")) and picture_at(made[0].path).format == "JPEG"
    assert rows_of(made[0].path.parent)[0]["refined"] is None


def test_a_picture_carries_what_made_it_and_no_path_of_a_home(asked: Asked, tmp_path: Path) -> None:
    """C7: the text that other tools read, and everything that is needed to make it again."""
    made = quiet_run(asked(num_images=1))[0]
    text, details = pictures.read_parameters(made.path), pictures.read_details(made.path)
    assert "a photo of <lace>\nNegative prompt: grainy, low quality\nSteps: 4, Sampler: DPM++ 2M" in text
    [row] = rows_of(made.path.parent)
    assert row == json.loads(json.dumps(made.row()))
    assert details == {name: value for name, value in row.items() if name not in (*sheet.PLACES, *sheet.LABELS)}
    assert (details["pretrained_model"], details["refiner_model"]) == ("tiny-sdxl", "tiny-refiner")
    assert details["refiner_prompt"] == "a photo of a painting" and details["versions"]["torch"] == torch.__version__
    everything = b"".join(files_of(made.path.parent).values())
    assert str(tmp_path).encode() not in everything and str(Path.home()).encode() + b"/" not in everything


def test_prompts_of_any_kind_stay_text(asked: Asked, tmp_path: Path) -> None:
    prompts = ("../../../etc/<lace>", 'a "quoted" <lace>, 100%', "<lace> çiçek 🌸", "two\nlines\u2028of <lace>")
    made = quiet_run(asked(num_images=4, prompts=prompts))
    assert [one.prompt for one in made] == [*prompts[:3], "two lines of <lace>"]
    assert [pictures.read_details(one.path)["prompt"] for one in made] == [one.prompt for one in made]
    assert {one.path.parent for one in made} == {tmp_path / "out/lace/images/sheet"}


# -- what the adapter says --


def test_the_adapter_decides_model_token_words_and_size_and_the_settings_do_not(
    asked: Asked, tiny_sdxl_v: Path
) -> None:
    lines: list[str] = []
    settings = asked(
        num_images=1,
        instance_prompt=None,
        pretrained_model=str(tiny_sdxl_v),
        class_prompt="a photo of a car",
        resolution=64,
    )
    [made] = inference.run(settings.model_copy(update={"width": None, "height": None}), say=lines.append)
    assert (made.pretrained_model, made.prompt, made.concept_token) == ("tiny-sdxl", "a photo of <lace>", "<lace>")
    assert (made.width, made.height, made.refiner_prompt) == (32, 32, "a photo of a painting")
    assert [line for line in lines if "made for" in line and f"not pretrained_model {tiny_sdxl_v}" in line]


def test_a_base_model_that_is_gone_is_replaced_by_the_one_that_is_set(
    asked: Asked, tiny_sdxl: Path, tmp_path: Path
) -> None:
    made_lora(tiny_sdxl, run_folder.RunFolder(tmp_path / "out" / "lace"), base_model="/gone/model", resolution=32)
    lines: list[str] = []
    [made] = inference.run(asked(num_images=1), say=lines.append)
    assert made.pretrained_model == "tiny-sdxl"
    assert any("made for /gone/model, which is not to be found" in line for line in lines)
    unset = load(preset="none", lora_output_dir=str(tmp_path / "out"), num_images=1)
    with pytest.raises(ModelError, match="/gone/model.*set pretrained_model to where it lies now"):
        quiet_run(unset)


def test_a_token_that_is_missing_is_put_in_and_said(asked: Asked) -> None:
    lines: list[str] = []
    prompts = ("a leaf", "a <myspecialstyle> star", "<LACE> rose")
    made = inference.run(asked(num_images=4, prompts=prompts), say=lines.append)
    told = ["<lace> a leaf", "a <lace> star", "<LACE> rose", "<lace> a leaf"]
    assert [one.prompt for one in made] == told
    assert made[0].refiner_prompt == "a photo of a painting, a leaf" and made[1].refiner_prompt == "a painting star"
    assert "! 2 of 3 prompts lacked <lace>; it is put in, as in '<lace> a leaf'." in lines


def test_words_beyond_75_tokens_are_named(asked: Asked) -> None:
    lines: list[str] = []
    inference.run(asked(num_images=1, prompts=("<lace> " + "leaf " * 40 + "and bobbin",)), say=lines.append)
    [line] = [line for line in lines if "75 tokens" in line]
    assert line.startswith("! Too long for the model") and "bobbin" in line


def test_a_run_without_an_adapter_says_train_first(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"Train one first \(lace-lora train"):
        quiet_run(asked(run_name="another"))
    assert not (tmp_path / "out/another/images").exists()


def test_what_cannot_work_is_refused_before_anything_is_drawn(asked: Asked, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stages, "denoise", None)
    with pytest.raises(ModelError, match="No model folder ./no-refiner"):
        quiet_run(asked(refiner_model="./no-refiner"))
    with pytest.raises(SettingsError, match="refine_strength 0.1 of 4 steps leaves the refiner none"):
        quiet_run(asked(refine="img2img", refine_strength=0.1))
    assert not (tmp_path / "out/lace/images").exists()


# -- sheets --


def test_the_same_request_makes_nothing_again_and_another_takes_the_next_free_name(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quiet_run(asked(num_images=2))
    before = files_of(first[0].path.parent)
    other = quiet_run(asked(num_images=2, prompts=("<lace> star",)))
    assert [one.path.parent.name for one in (first[0], other[0])] == ["sheet", "sheet-2"]
    for name in ("load_denoiser", "load_vae", "load_text"):
        monkeypatch.setattr(sdxl, name, None)
    again = quiet_run(asked(num_images=2))
    assert again == first and files_of(first[0].path.parent) == before


def test_another_unet_or_vae_of_the_same_name_makes_another_sheet(
    asked: Asked, tiny_sdxl: Path, tmp_path: Path
) -> None:
    """P19: pictures of two models are never taken for one sheet. One number of a file differs, and no name or size."""
    vae = tmp_path / "vae"
    shutil.copytree(tiny_sdxl / "vae", vae)
    weights = next(vae.glob("*.safetensors"))
    tensors = {name: one + (name == "decoder.conv_out.bias") for name, one in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    own = quiet_run(asked(num_images=1, refine="none"))
    other = quiet_run(asked(num_images=1, refine="none", vae_model=str(vae)))
    assert own[0].path.parent != other[0].path.parent
    assert ImageChops.difference(picture_at(own[0].path), picture_at(other[0].path)).getbbox()

    refiner = tmp_path / "refiner" / Path(asked().refiner_model).name
    shutil.copytree(asked().refiner_model, refiner)
    before = quiet_run(asked(num_images=1, refiner_model=str(refiner)))
    data = bytearray((refiner / "unet/diffusion_pytorch_model.safetensors").read_bytes())
    data[-1] ^= 1
    (refiner / "unet/diffusion_pytorch_model.safetensors").write_bytes(data)
    after = quiet_run(asked(num_images=1, refiner_model=str(refiner)))
    assert before[0].path.parent != after[0].path.parent


@pytest.mark.parametrize(
    ("room", "name", "call"),
    [(between_stages, "keep", 4), (between_stages, "keep", 9), (checkpoint, "append_line", 3), (sheet, "close", 1)],
)
def test_a_sheet_that_was_cut_off_is_finished_with_the_same_bytes(
    asked: Asked, batches_of_two: None, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    room: Any, name: str, call: int,
) -> None:  # fmt: skip
    """The second batch of the base, the second of the refiner, the third picture, and before the last page."""
    cut_at(monkeypatch, room, name, call)
    with pytest.raises(SystemExit):
        quiet_run(asked())
    monkeypatch.setattr(order, "batch_size", lambda *given: 3)  # the batches are those of the first time
    drawn: list[int] = []
    monkeypatch.setattr(stages, "_draw", counting(stages._draw, lambda net, batch, *rest: drawn.extend(batch.seeds)))
    made = quiet_run(asked())
    assert len(made) == 6 and drawn == {("keep", 4): [2, 3, 4, 5]}.get((name, call), [])
    assert files_of(tmp_path / "out/lace/images") == whole


def counting(work: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any) -> Any:
        note(*given)
        return work(*given)

    return noted


def test_L6_every_network_is_loaded_once_and_where_memory_is_short_never_beside_another(
    asked: Asked, batches_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference.Shelf, "of", lambda *given: inference.Shelf(0))
    monkeypatch.setattr(memory, "give_back_memory", gc.collect)
    loaded = watch_networks(monkeypatch)
    assert len(quiet_run(asked())) == 6
    assert len(loaded) == 5  # two text encoders, base, refiner, VAE


def test_a_row_that_a_cut_left_half_is_written_again(asked: Asked, tmp_path: Path) -> None:
    folder = tmp_path / "out/lace/images/sheet"
    quiet_run(asked(num_images=3))
    whole = files_of(folder)
    rows = whole["images.jsonl"].splitlines(keepends=True)
    (folder / "images.jsonl").write_bytes(b"".join(rows[:1]) + rows[1][:40])
    (folder / "base_result_000.png").unlink()
    assert len(quiet_run(asked(num_images=3))) == 3
    assert files_of(folder) == whole


def test_groups_of_batches_give_the_same_sheet(
    asked: Asked, batches_of_two: None, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(production, "GROUP", 4)
    loads: list[str] = []
    monkeypatch.setattr(
        sdxl, "load_denoiser", counting(sdxl.load_denoiser, lambda model, *rest: loads.append(Path(model).name))
    )
    quiet_run(asked(), shelf=inference.Shelf(0))
    assert loads == ["tiny-sdxl", "tiny-refiner"] * 2
    assert files_of(tmp_path / "out/lace/images") == whole
    # With room, each is loaded once for all groups, and a second sheet finds all of them.
    shutil.rmtree(tmp_path / "out/lace/images")
    loads.clear()
    shelf = inference.Shelf(1e9)
    quiet_run(asked(), shelf=shelf)
    assert files_of(tmp_path / "out/lace/images") == whole
    quiet_run(asked(prompts=("<lace> star",)), shelf=shelf)
    assert loads == ["tiny-sdxl", "tiny-refiner"]


@pytest.mark.parametrize("begins", ["drawn", "refined", "picture"])
def test_stopping_finishes_the_batch_in_hand_and_keeps_what_is_finished(
    asked: Asked, batches_of_two: None, whole: dict[str, bytes], tmp_path: Path, begins: str
) -> None:
    lines: list[str] = []

    def stop_at_first(line: str) -> None:
        lines.append(line)
        if line.startswith(begins) and not any(one.startswith("Stopping") for one in lines):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    made = inference.run(asked(), say=stop_at_first)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(made) == (1 if begins == "picture" else 0)
    assert f"Stopped with {len(made)} of 6 pictures finished. Run the same again to go on." in lines
    assert (tmp_path / "out/lace/images/sheet/contact_sheet.png").is_file() == bool(made)
    assert len(quiet_run(asked())) == 6
    assert files_of(tmp_path / "out/lace/images") == whole


def test_stopping_twice_stops_at_once(asked: Asked, batches_of_two: None) -> None:
    lines: list[str] = []

    def stop_twice(line: str) -> None:
        lines.append(line)
        if line.startswith("drawn"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    assert inference.run(asked(), say=stop_twice) == []
    assert lines[-2:] == [
        "Stopped at once; the batch in hand is lost.",
        "Stopped with 0 of 6 pictures finished. Run the same again to go on.",
    ]


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, MachineError, "The disk is full: .* What was finished before stays as it was. Free some space"),
        (errno.EACCES, RunError, "No permission to write .*lora_output_dir"),
    ],
)
def test_a_disk_that_gives_out_is_a_sentence_and_earlier_sheets_stay(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], said: str
) -> None:
    quiet_run(asked(num_images=1))
    before = files_of(tmp_path / "out/lace/images/sheet")
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    with monkeypatch.context() as patched, pytest.raises(kind, match=said):
        patched.setattr(os, "fsync", full)
        quiet_run(asked(num_images=2, prompts=("<lace> star",)))
    assert files_of(tmp_path / "out/lace/images/sheet") == before
    assert len(quiet_run(asked(num_images=2, prompts=("<lace> star",)))) == 2


@pytest.mark.slow
def test_killed_in_the_middle_a_sheet_is_finished_with_the_same_bytes(
    asked: Asked, models: dict[str, str], made_run: Path, tmp_path: Path
) -> None:
    quiet_run(settings_of(tmp_path / "whole", made_run, models, num_images=10))
    config = asked(num_images=10)
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(include=set(config.given))), encoding="utf-8")
    code = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from lace_lora import config, inference\n"
        "inference.run(config.load(**json.load(open(sys.argv[1]))), say=lambda line: print(line, flush=True))"
    )
    for signs in ("drawn", "refined", "picture    4/10"):
        command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(signs):
                    process.kill()
        assert process.returncode == -signal.SIGKILL
    quiet_run(config)
    assert files_of(tmp_path / "out/lace/images") == files_of(tmp_path / "whole/lace/images")


# -- the rest --


def test_compare_draws_the_same_seeds_with_and_without_the_lora(asked: Asked, tmp_path: Path) -> None:
    settings = asked(lora_scale=0.7)
    [(base, lora), (_, star)] = inference.compare_all(settings, ["plain <lace> leaf", "star"], [5, 9], say=print)
    assert inference.compare(settings, "star", [9], say=print)[1][0].tobytes() == star[1].tobytes()
    none, _ = inference.compare(asked(lora_scale=0.0), "plain <lace> leaf", [9], say=lambda line: None)
    assert len(base) == len(lora) == 2 and base[1].tobytes() == none[0].tobytes() != lora[1].tobytes()
    assert not (tmp_path / "out/lace/images").exists()
    [same] = quiet_run(settings.model_copy(update={"num_images": 1, "seed": 9, "prompts": ("plain <lace> leaf",)}))
    assert picture_at(same.base).tobytes() == lora[1].tobytes()


@pytest.mark.parametrize(
    ("side", "gpu", "vram_gb", "count"),
    [(1024, "T4", 15, 1), (1024, "L4", 22, 2), (1024, "A100", 80, 4), (512, "T4", 15, 4), (64, "T4", 15, 8),
     (1024, None, 0, 1), (192, None, 0, 4)],
)  # fmt: skip
def test_batches_hold_what_fits(tiny_sdxl: Path, side: int, gpu: str | None, vram_gb: float, count: int) -> None:
    machine = dataclasses.replace(Machine.here(), gpu_name=gpu, vram_gb=vram_gb)
    assert batch_size(str(tiny_sdxl), side, side, machine) == count


def test_half_precision_draws_the_same_picture_coarser(asked: Asked) -> None:
    lines: list[str] = []
    [exact] = quiet_run(asked(num_images=1))
    [coarse] = inference.run(asked(num_images=1, mixed_precision="bf16", sheet_name="half"), say=lines.append)
    assert (exact.precision, coarse.precision) == ("fp32", "bf16") and any("bf16, as set" in line for line in lines)
    difference = ImageChops.difference(picture_at(exact.path), picture_at(coarse.path))
    assert 0 < max(high for _, high in difference.getextrema()) <= 12


def test_a_stopped_training_is_mentioned(asked: Asked, tiny_sdxl: Path, tmp_path: Path) -> None:
    made_lora(tiny_sdxl, run_folder.RunFolder(tmp_path / "out" / "lace"), is_complete=False, step=3, resolution=32)
    lines: list[str] = []
    inference.run(asked(num_images=1, refine="none"), say=lines.append)
    assert "! This adapter's training was stopped at step 3; lace-lora train goes on with it." in lines


def test_where_memory_runs_out_batches_are_halved_recorded_and_finished_alike(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L19: three pictures at once do not fit, at first in the base and then in the refiner; a killed sheet goes on."""
    monkeypatch.setattr(order, "batch_size", lambda *given: 4)
    lines: list[str] = []
    fits = {"base": 4, "refiner": 2}
    predict = sdxl.predict

    def short(unet: Any, cells: Any, *rest: Any) -> Any:
        name = "refiner" if rest[2].shape[-1] == 5 else "base"
        if len(cells) // 2 > fits[name]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(unet, cells, *rest)

    monkeypatch.setattr(sdxl, "predict", short)
    made = inference.run(asked(num_images=7), say=lines.append)
    assert [one.index for one in made] == list(range(7)) and all(one.path.is_file() for one in made)
    assert any("2 at once instead of 4" in line for line in lines)
    request = json.loads((made[0].path.parent / "request.json").read_text())
    assert request["batches"] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [(one["stage"], one["batch"], one["at_most"]) for one in request["halved"]] == [
        ("refined", [0, 1, 2, 3], 2), ("refined", [4, 5, 6], 2),
    ]  # fmt: skip

    # The same pictures in the recorded batches, from the start, where memory does not run out: the same bytes.
    before = {one.path.name: one.path.read_bytes() for one in made}
    for one in made:
        one.path.unlink()
    fits.update(base=9, refiner=9)
    monkeypatch.setattr(order, "batch_size", lambda *given: 7)
    at_once: list[int] = []
    for name in ("_draw", "_touch_up"):
        noted = counting(getattr(stages, name), lambda net, batch, *rest: at_once.append(len(batch.seeds)))
        monkeypatch.setattr(stages, name, noted)
    again = quiet_run(asked(num_images=7))
    assert at_once == [4, 3, 2, 2, 2, 1]
    assert {one.path.name: one.path.read_bytes() for one in again} == before

    fits.update(base=0)
    with pytest.raises(MachineError, match="ran out of memory while drawing"):
        quiet_run(asked(num_images=2, prompts=("<lace> star",)))
