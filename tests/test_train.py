"""Training: exact resume, weights of a loss, schedules, and what happens when it is ended (L5, L13, L14, P15–P19)."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lace_lora import adapter, cache, checkpoint, config, journal, schedule, stages, steps, train
from lace_lora.config import Config
from lace_lora.data_utils import Example, open_picture
from lace_lora.errors import MachineError, PicturesError, RunError, SettingsError
from lace_lora.families import sdxl
from lace_lora.run_folder import RunFolder
from tests.conftest import draw_lace, losses_of

CLOCK = ("seconds", "started", "updated", "seconds_per_step", "eta_seconds")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_lace(tmp_path_factory.mktemp("train") / "pictures")


@pytest.fixture
def settings(tiny_sdxl: Path, pictures: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Ten updates of two pictures; the cache is shared by all tests here."""
    return config.load(
        preset="none",
        pretrained_model=str(tiny_sdxl),
        images_dir=str(pictures),
        lora_output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path_factory.getbasetemp() / "shared_cache"),
        resolution=64,
        rank=4,
        alpha=8,
        max_train_steps=10,
        train_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        checkpoint_every=5,
    )


def quietly(_: str) -> None:
    pass


def result_of(folder: RunFolder) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """LoRA, optimizer state and log without the clock of a finished run."""
    newest, _ = checkpoint.newest(folder.checkpoints)
    assert newest is not None
    rows = [
        {name: value for name, value in row.items() if name not in CLOCK}
        for row in checkpoint.read_json_lines(folder.log)
    ]
    return load_file(folder.adapter_weights), load_file(newest / steps.OPTIMIZER_FILE), rows


def assert_same(one: RunFolder, other: RunFolder) -> None:
    """Bit for bit."""
    for mine, theirs in zip(result_of(one)[:2], result_of(other)[:2], strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert result_of(one)[2] == result_of(other)[2]


def stop_after(number: int) -> Callable[[train.Step], None]:
    """What a person does who presses stop while that step is shown."""

    def show(step: train.Step) -> None:
        if step.number == number:
            os.kill(os.getpid(), signal.SIGINT)

    return show


# -- the whole of it --


def test_a_run_leaves_exactly_these_files(settings: Config) -> None:
    """L14, P19: weights, log, checkpoints every N steps, final adapter and the settings that ran."""
    said: list[str] = []
    made = train.run(settings.model_copy(update={"max_train_steps": 12}), say=said.append)
    folder = RunFolder.of(settings)
    assert made.is_complete and made.facts.step == 12 and made.facts.alpha == 8
    files = sorted(path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*") if path.is_file())
    inside = ["complete.json", "lora.safetensors", "optimizer.safetensors", "state.json"]
    assert files == [
        "adapter/adapter.json",
        "adapter/lace.safetensors",
        "adapter/pytorch_lora_weights.safetensors",
        "annotations.txt",
        *(f"checkpoints/step-{step:06d}/{name}" for step in (10, 12) for name in inside),
        "config.yaml",
        "log.jsonl",
        "run.json",
    ]
    assert config.load(folder.config).max_train_steps == 12
    assert len(losses_of(folder.log)) == 12
    record = json.loads(folder.record.read_text())
    assert (record["state"], record["step"], record["total"], record["percent"]) == ("finished", 12, 12, 100.0)
    assert len([line for line in said if line.startswith("step ")]) <= 30
    assert "captions" in " ".join(said) and "finished  12 steps" in said[-1]


def test_annotations_are_written_where_there_are_none(settings: Config, lace_folder: Path) -> None:
    """L13."""
    one = settings.model_copy(update={"images_dir": str(lace_folder), "max_train_steps": 1})
    train.run(one, say=quietly)
    lines = (lace_folder / "annotations.txt").read_text().splitlines()
    assert len(lines) == 6 and all(line.split("\t")[1] == "a photo of <myspecialstyle>" for line in lines)


def test_a_lora_learns(settings: Config) -> None:
    """The same pictures at the same times and noise are predicted better after training than before."""
    easy = {"learning_rate": 3e-3, "max_train_steps": 30, "caption_dropout": 0.0, "lora_targets": "attention+ff"}
    changed = settings.model_copy(
        update=easy | {"lr_scheduler": "constant", "train_batch_size": 4, "checkpoint_every": 100}
    )
    made = train.run(changed, say=quietly)
    parts, encoded = parts_and_pictures(changed)
    before = loss_over(parts, encoded, changed)
    adapter.restore(parts.unet, made.state)
    assert loss_over(parts, encoded, changed) < 0.99 * before


@torch.no_grad()
def loss_over(parts: steps.Parts, encoded: steps.Pictures, settings: Config) -> float:
    return sum(float(steps.losses_of_batch(parts, encoded, number, settings).sum()) for number in range(1000, 1015))


def test_a_finished_run_is_given_back_without_work(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train.run(settings, say=quietly)
    monkeypatch.setattr(steps, "assemble", lambda *_: pytest.fail("loaded a model"))
    monkeypatch.setattr(cache, "build", lambda *_, **__: pytest.fail("encoded pictures"))
    said: list[str] = []
    assert train.run(settings, say=said.append).digest == first.digest
    assert "lace is finished: all 10 steps are made" in said[-1]


# -- exact resume --


@pytest.mark.parametrize("model", ["tiny_sdxl", "tiny_sdxl_v"])
def test_five_and_five_steps_equal_ten_bit_for_bit(
    model: str, settings: Config, request: pytest.FixtureRequest
) -> None:
    """L14: weights, optimizer, logged losses; for ε and for v."""
    base = settings.model_copy(update={"pretrained_model": str(request.getfixturevalue(model))})
    whole, broken = (base.model_copy(update={"run_name": name}) for name in ("whole", "broken"))
    train.run(whole, say=quietly)
    stopped = train.run(broken, say=quietly, show=stop_after(5))
    assert not stopped.is_complete and stopped.facts.step == 5
    train.run(broken, say=quietly)
    assert_same(RunFolder.of(whole), RunFolder.of(broken))


def test_a_stop_between_checkpoints_loses_nothing_and_says_how_to_go_on(settings: Config) -> None:
    whole, broken = (settings.model_copy(update={"run_name": name}) for name in ("whole", "broken"))
    train.run(whole, say=quietly)
    said: list[str] = []
    stopped = train.run(broken, say=said.append, show=stop_after(7))
    folder = RunFolder.of(broken)
    assert said[-1] == "Stopped at step 7 of 10. Run the same again to go on."
    assert json.loads(folder.record.read_text())["state"] == "stopped"
    assert adapter.load(folder.root).digest == stopped.digest
    again: list[str] = []
    train.run(broken, say=again.append)
    assert "resumed   after step 7" in again
    assert_same(RunFolder.of(whole), folder)


def test_sigterm_saves_too(settings: Config) -> None:
    def show(step: train.Step) -> None:
        if step.number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train.run(settings, say=quietly, show=show).facts.step == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_interrupt_stops_at_once_and_the_last_checkpoint_stays(settings: Config) -> None:
    def show(step: train.Step) -> None:
        if step.number == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train.run(settings, say=quietly, show=show)
    folder = RunFolder.of(settings)
    assert checkpoint.newest(folder.checkpoints)[0] == folder.checkpoint(5)
    assert json.loads(folder.record.read_text())["state"] == "stopped"


def test_a_run_in_another_thread_works_without_signals(settings: Config) -> None:
    made: list[adapter.Adapter] = []
    one = settings.model_copy(update={"max_train_steps": 2})
    worker = threading.Thread(target=lambda: made.append(train.run(one, say=quietly)))
    worker.start()
    worker.join()
    assert made[0].is_complete


def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(settings: Config) -> None:
    whole, broken = (
        settings.model_copy(update={"run_name": name, "checkpoint_every": 3}) for name in ("whole", "broken")
    )
    train.run(whole, say=quietly)
    train.run(broken, say=quietly, show=stop_after(6))
    folder = RunFolder.of(broken)
    file = folder.checkpoint(6) / steps.OPTIMIZER_FILE
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    said: list[str] = []
    train.run(broken, say=said.append)
    assert "step-000006 is passed over: optimizer.safetensors is not as it was written (its checksum differs)." in said
    assert "resumed   after step 3" in said
    assert_same(RunFolder.of(whole), folder)


def test_a_checkpoint_of_other_settings_is_refused_even_when_run_json_is_lost(settings: Config) -> None:
    train.run(settings, say=quietly, show=stop_after(5))
    folder = RunFolder.of(settings)
    folder.record.unlink()
    with pytest.raises(
        RunError, match="step-000005 is a checkpoint of other settings or pictures. Choose another run_name"
    ):
        train.run(settings.model_copy(update={"learning_rate": 5e-4}), say=quietly)
    folder.record.write_text("{ half a re")
    assert train.run(settings, say=quietly).is_complete


def test_one_process_at_a_time(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="runs in one process, but 2 were started. Start it with --num_processes 1"):
        train.run(settings, say=quietly)


@pytest.mark.parametrize("wait", [0.0, *(pytest.param(tenths / 20, marks=pytest.mark.slow) for tenths in range(1, 9))])
def test_a_killed_process_goes_on_and_ends_with_the_same_numbers(wait: float, settings: Config) -> None:
    """SIGKILL, which nothing can catch, at an instant that differs from run to run."""
    whole, broken = (
        settings.model_copy(update={"run_name": name, "max_train_steps": 40, "checkpoint_every": 3})
        for name in ("whole", "broken")
    )
    train.run(whole, say=quietly)
    folder = RunFolder.of(broken).create()
    file = folder.root.parent / "broken.yaml"
    file.write_text(config.to_yaml(broken))
    code = (
        "import torch; torch.set_num_threads(1); from lace_lora import config, train; "
        f"train.run(config.load({str(file)!r}), say=lambda _: None)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=Path.cwd())
    deadline = time.monotonic() + 120
    while len(checkpoint.read_json_lines(folder.log)) < 8 and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(wait)
    worker.kill()
    worker.wait()
    done = len(losses_of(folder.log))
    assert 8 <= done < 40
    said: list[str] = []
    train.run(broken, say=said.append)
    assert any(line.startswith("resumed   after step") for line in said)
    assert_same(RunFolder.of(whole), folder)


def test_more_steps_go_on_from_a_finished_run(settings: Config) -> None:
    train.run(settings, say=quietly)
    said: list[str] = []
    assert train.run(settings.model_copy(update={"max_train_steps": 12}), say=said.append).facts.step == 12
    assert "resumed   after step 10" in said
    with pytest.raises(RunError, match="has 12 steps already and max_train_steps is 11"):
        train.run(settings.model_copy(update={"max_train_steps": 11}), say=quietly)


def test_a_run_goes_on_as_it_began_when_another_machine_would_choose_otherwise(settings: Config) -> None:
    chosen = {"train_batch_size": 2, "rank": 4, "max_train_steps": 4}
    train.run(settings.model_copy(update=chosen), say=quietly, show=stop_after(2))
    values = {name: getattr(settings, name) for name in settings.given if name not in chosen}
    said: list[str] = []
    made = train.run(config.load(**values), say=said.append)  # auto would say rank 16, batch 1, 15 steps
    assert (made.facts.rank, made.facts.step) == (4, 4)
    assert "this run began with max_train_steps 4, rank 4, train_batch_size 2, and goes on so" in said


def test_other_settings_under_the_same_name_are_refused_by_name(
    settings: Config, pictures: Path, tmp_path: Path
) -> None:
    train.run(settings, say=quietly)
    before = RunFolder.of(settings).adapter_weights.read_bytes()
    with pytest.raises(
        RunError, match="begun differently: rank 4 → 8, learning_rate 0.001 → 0.0005. Choose another run_name"
    ):
        train.run(settings.model_copy(update={"learning_rate": 5e-4, "rank": 8}), say=quietly)
    draw_lace(tmp_path / "more", ((70, 70),) * 2)
    with pytest.raises(RunError, match="begun differently: the pictures or their captions. Choose another run_name"):
        train.run(settings.model_copy(update={"images_dir": str(tmp_path / "more")}), say=quietly)
    assert RunFolder.of(settings).adapter_weights.read_bytes() == before


# -- one step, by independent formulas --


def parts_and_pictures(settings: Config) -> tuple[steps.Parts, steps.Pictures]:
    torch.manual_seed(99)
    parts = steps.assemble(settings, torch.float32, "cpu")
    found = train.read_examples(settings, quietly)
    return parts, train._encoded("pictures", found, settings, torch.float32, "cpu", quietly)


def test_cached_and_uncached_losses_are_equal(settings: Config, tiny_sdxl: Path) -> None:
    """The whole path again without cache or schedule: decode, cut, encode, diffusers' add_noise, UNet, weight, mean."""
    changed = settings.model_copy(update={"caption_dropout": 0.5})
    parts, encoded = parts_and_pictures(changed)
    vae, text = (
        sdxl.load_vae(str(tiny_sdxl), torch.float32, "cpu"),
        sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu"),
    )
    wordless = 0
    for number in range(6):
        cached = steps.losses_of_batch(parts, encoded, number, changed)
        for place, visit in enumerate(encoded.stream.batch(number)):
            sample = encoded.cache.samples[visit.sample]
            chance = schedule.draw(
                encoded.stream, visit, encoded.cache.latent_shape(visit.sample), 1000, 0.5, changed.noise_offset
            )
            cut = cache.cut_of(*open_picture(sample.path).size, 64, 32, chance.is_flipped)
            mean, std = sdxl.encode_images(vae, cache.pixels_of(open_picture(sample.path), cut)[None])
            latents = (mean + std * chance.spread_CHW) * 0.13025
            timestep = torch.tensor([chance.timestep])
            noisy = parts.noising.add_noise(latents, chance.noise_CHW[None], timestep)
            words = sdxl.encode_captions(text, [sample.caption])
            keep = 0.0 if chance.is_wordless else 1.0
            wordless += chance.is_wordless
            conditions = {"text_embeds": words.pooled_BP * keep, "time_ids": cut.time_ids()[None]}
            with torch.no_grad():
                predicted = parts.unet(noisy, timestep, words.text_BLD * keep, added_cond_kwargs=conditions).sample
            snr = float(parts.noising.alphas_cumprod[timestep] / (1 - parts.noising.alphas_cumprod[timestep]))
            loss = min(snr, 5.0) / snr * torch.nn.functional.mse_loss(predicted, chance.noise_CHW[None])
            assert float(cached[place].detach()) == pytest.approx(float(loss), abs=1e-6)
    assert 0 < wordless < 12


def one_update(settings: Config, count: int = 1) -> dict[str, torch.Tensor]:
    parts, encoded = parts_and_pictures(settings)
    for _ in islice(steps.steps(parts, encoded, None, settings, 0), count):
        pass
    return adapter.state_of(parts.unet)


def test_four_batches_of_one_equal_a_batch_of_four(settings: Config, tmp_path: Path) -> None:
    """P16, in gradients: the first update of AdamW has the same length whatever the gradient, so SGD shows them."""
    same_shape = settings.model_copy(update={"images_dir": str(draw_lace(tmp_path / "square", ((70, 70),) * 8))})
    gradients = []
    for size, accumulate in ((4, 1), (1, 4), (2, 2)):
        changed = same_shape.model_copy(
            update={"train_batch_size": size, "gradient_accumulation_steps": accumulate, "max_grad_norm": 0}
        )
        parts, encoded = parts_and_pictures(changed)
        steps._backward(parts, encoded, range(accumulate), changed, weight=1.0)
        gradients.append({name: one.grad for name, one in parts.parameters.items()})
    for other in gradients[1:]:
        assert all(torch.allclose(gradients[0][name], other[name], atol=1e-5, rtol=1e-4) for name in other)
    assert max(float(one.abs().max()) for one in gradients[0].values()) > 1e-4


def test_small_batches_weigh_by_their_pictures(settings: Config, tmp_path: Path) -> None:
    """Five pictures by twos leave a batch of one at the end of an epoch; every picture of an update counts the same."""
    five = draw_lace(tmp_path / "five", ((70, 70),) * 5)
    changed = settings.model_copy(update={"images_dir": str(five), "gradient_accumulation_steps": 3})
    parts, encoded = parts_and_pictures(changed)
    batches = [steps.losses_of_batch(parts, encoded, number, changed).detach() for number in range(3)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    step = next(steps.steps(parts, encoded, None, changed, 0))
    assert step.loss == pytest.approx(float(torch.cat(batches).mean()), abs=1e-6)


def test_checkpointing_gives_the_same_weights(settings: Config) -> None:
    plain = one_update(settings, 3)
    saved = one_update(settings.model_copy(update={"gradient_checkpointing": "full"}), 3)
    assert all(torch.allclose(plain[name], saved[name], atol=1e-6) for name in plain)


def test_half_precision_base_keeps_a_float32_lora_that_learns(settings: Config) -> None:
    parts = steps.assemble(settings, torch.bfloat16, "cpu")
    found = train.read_examples(settings, quietly)
    encoded = train._encoded("pictures", found, settings, torch.bfloat16, "cpu", quietly)
    before = adapter.state_of(parts.unet)
    seen = list(islice(steps.steps(parts, encoded, None, settings, 0), 2))
    assert all(math.isfinite(step.loss) for step in seen)
    after = adapter.state_of(parts.unet)
    assert all(not torch.equal(before[name], after[name]) for name in before if ".lora_B." in name)
    assert {one.dtype for one in parts.parameters.values()} == {torch.float32}
    float32 = next(steps.steps(*parts_and_pictures(settings), None, settings, 0))
    assert seen[0].loss == pytest.approx(float32.loss, rel=0.03)


def test_loss_scaling_survives_a_resume_and_skips_an_overflow(settings: Config, tmp_path: Path) -> None:
    """fp16 needs it; it also works on a CPU, where only the scaler's own arithmetic is looked at."""

    def with_scaler() -> steps.Parts:
        parts, _ = parts_and_pictures(settings)
        return steps.Parts(**vars(parts) | {"scaler": torch.amp.GradScaler("cpu", init_scale=2.0**40, enabled=True)})

    parts, encoded = with_scaler(), parts_and_pictures(settings)[1]
    plain = parts_and_pictures(settings)[0]
    next(steps.steps(plain, encoded, None, settings, 0))
    next(steps.steps(parts, encoded, None, settings, 0))
    assert all(torch.allclose(one, plain.parameters[name], atol=1e-6) for name, one in parts.parameters.items())

    scale = parts.scaler.get_scale()
    before = adapter.state_of(parts.unet)
    overflow = next(iter(parts.parameters.values())).register_hook(lambda gradient: gradient + math.inf)
    step = next(steps.steps(parts, encoded, None, settings, 1))
    overflow.remove()
    assert not math.isfinite(step.gradient_norm) and math.isfinite(step.loss)
    assert all(torch.equal(before[name], one) for name, one in parts.parameters.items())
    assert parts.scaler.get_scale() == scale / 2
    (tmp_path / "saved").mkdir()
    steps.save(parts, tmp_path / "saved", 2, "this run")
    other = with_scaler()
    assert steps.restore(other, tmp_path / "saved", "this run") == 2
    assert other.scaler.get_scale() == scale / 2


# -- chance and schedules --


def test_learning_rates_rise_and_fall_as_the_settings_say() -> None:
    """P15, C10: warmup of min(5 %, 50) steps, then the cosine, the line, or nothing."""
    rates = [schedule.learning_rate(step, 100, 1e-3, "cosine", 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([1e-3 * (step + 1) / 6 for step in range(5)])
    assert rates[5] == pytest.approx(1e-3) and rates == sorted(rates[:6]) + sorted(rates[6:], reverse=True)
    oracle = [0.5e-3 * (1 + math.cos(math.pi * (step - 5) / 95)) for step in range(5, 100)]
    assert rates[5:] == pytest.approx(oracle) and rates[-1] > 0
    linear = [schedule.learning_rate(step, 100, 1e-3, "linear", 0.0) for step in range(100)]
    assert linear == pytest.approx([1e-3 * (100 - step) / 100 for step in range(100)])
    assert {schedule.learning_rate(step, 100, 1e-3, "constant", 0.0) for step in range(100)} == {1e-3}
    long = [schedule.learning_rate(step, 10_000, 1.0, "constant", 0.05) for step in range(60)]
    assert long.index(1.0) == 50


def test_logged_learning_rates_are_those_of_the_schedule(settings: Config) -> None:
    train.run(settings.model_copy(update={"lr_warmup_ratio": 0.3}), say=quietly)
    rows = checkpoint.read_json_lines(RunFolder.of(settings).log)
    assert [row["lr"] for row in rows] == [schedule.learning_rate(step, 10, 1e-3, "cosine", 0.3) for step in range(10)]
    assert rows[0]["lr"] < rows[1]["lr"] < rows[2]["lr"] < rows[3]["lr"] == 1e-3


def stream(buckets: str = "aabab", size: int = 2, repeats: int = 1, seed: int = 0) -> schedule.Stream:
    shapes = {"a": (64, 64), "b": (64, 96)}
    return schedule.Stream("pictures", tuple(shapes[one] for one in buckets), size, repeats, seed)


def test_every_epoch_holds_every_picture_once_in_an_order_of_its_own() -> None:
    one = stream(repeats=2)
    assert one.batches_in_epoch == 5  # six of one shape, four of the other, by twos
    orders = []
    for epoch in range(3):
        visits = [visit for number in range(5) for visit in one.batch(5 * epoch + number)]
        assert sorted((visit.sample, visit.repeat) for visit in visits) == [
            (sample, turn) for sample in range(5) for turn in (0, 1)
        ]
        assert {visit.epoch for visit in visits} == {epoch}
        orders.append([visit.sample for visit in visits])
    assert orders[0] != orders[1] != orders[2]
    for number in range(15):
        assert len({one.buckets[visit.sample] for visit in one.batch(number)}) == 1
    assert one.batch(7) == stream(repeats=2).batch(7) != stream(repeats=2, seed=1).batch(7)


def test_chance_is_a_function_of_its_place() -> None:
    place = {"shape": (4, 8, 8), "timesteps": 1000, "caption_dropout": 0.1, "noise_offset": 0.0}
    first = schedule.draw(stream(), schedule.Visit(3, 2, 0), **place)
    torch.manual_seed(5)
    again = schedule.draw(stream(), schedule.Visit(3, 2, 0), **place)
    assert torch.equal(first.noise_CHW, again.noise_CHW) and first.timestep == again.timestep
    others = [
        schedule.draw(stream(), visit, **place)
        for visit in (schedule.Visit(3, 1, 0), schedule.Visit(2, 2, 0), schedule.Visit(3, 2, 1))
    ]
    assert not any(torch.equal(first.noise_CHW, other.noise_CHW) for other in others)
    many = [schedule.draw(stream(), schedule.Visit(0, epoch, 0), **place) for epoch in range(1500)]
    assert sum(one.is_flipped for one in many) == pytest.approx(750, abs=90)
    assert sum(one.is_wordless for one in many) == pytest.approx(150, abs=45)
    times = torch.tensor([one.timestep for one in many]).float()
    assert (
        (times.min(), times.max()) < (10, 1000) and times.mean() == pytest.approx(499.5, abs=35) and times.max() > 990
    )
    noise = torch.stack([one.noise_CHW for one in many[:200]])
    assert noise.mean().abs() < 0.02 and noise.std() == pytest.approx(1, abs=0.02)


def test_noise_offset_adds_one_number_a_channel() -> None:
    place = {"shape": (4, 8, 8), "timesteps": 1000, "caption_dropout": 0.0}
    plain, moved = (schedule.draw(stream(), schedule.Visit(0, 0, 0), **place, noise_offset=size) for size in (0.0, 0.5))
    difference_CHW = moved.noise_CHW - plain.noise_CHW
    assert torch.allclose(difference_CHW, difference_CHW[:, :1, :1].expand_as(difference_CHW), atol=1e-6)
    assert difference_CHW[:, 0, 0].unique().numel() == 4


# -- prior preservation --


def test_prior_preservation_adds_a_second_term_from_pictures_of_the_base_model(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: drawn once, by the base model, from class_prompt; each with its own size; the weight is a setting."""
    drawn: list[list[int]] = []
    original = stages.draw_plain

    def spy(model: str, prompts: list[str], seeds: list[int], *words: Any, **named: Any) -> Iterator[Any]:
        drawn.append(seeds)
        assert set(prompts) == {settings.class_prompt}
        return original(model, prompts, seeds, *words, **named)

    monkeypatch.setattr(stages, "draw_plain", spy)
    update = {"prior_loss_weight": 0.7, "num_class_images": 3, "num_inference_steps": 2, "max_train_steps": 4}
    changed = settings.model_copy(update=update)
    train.run(changed, say=quietly, show=stop_after(2))
    folder = RunFolder.of(changed)
    assert [path.name for path in sorted(folder.class_images.glob("*.png"))] == [
        "class_0000.png",
        "class_0001.png",
        "class_0002.png",
    ]
    assert open_picture(folder.class_images / "class_0000.png").size == (64, 64)
    before = {path.name: path.read_bytes() for path in folder.class_images.glob("*.png")}
    (folder.class_images / "class_0001.png").unlink()
    with pytest.raises(RunError, match="num_class_images 3 → 5"):
        train.run(changed.model_copy(update={"num_class_images": 5}), say=quietly)
    made = train.run(changed, say=quietly)
    # Drawn among the same neighbours, whose last bits it shares in; what was there is not written again.
    assert made.is_complete and drawn == [drawn[0], drawn[0]]
    assert {path.name: path.read_bytes() for path in folder.class_images.glob("*.png")} == before
    rows = checkpoint.read_json_lines(folder.log)
    assert len(rows) == 4 and all(row["prior_loss"] > 0 and row["prior_loss"] != row["loss"] for row in rows)


def test_class_pictures_of_another_prompt_are_drawn_again(settings: Config) -> None:
    """L5: a first try that was stopped before its first step may have left pictures of other words."""
    update = {"prior_loss_weight": 1.0, "num_class_images": 2, "num_inference_steps": 2, "max_train_steps": 1}
    folder = RunFolder.of(settings)

    def bytes_after(prompt: str) -> bytes:
        asked = settings.model_copy(update=update | {"class_prompt": prompt})
        train.draw_class_pictures(asked, folder, torch.float32, "cpu", quietly)
        return (folder.class_images / "class_0000.png").read_bytes()

    first = bytes_after("a photo of a painting")
    assert bytes_after("a white star") != first
    assert bytes_after("a photo of a painting") == first


def test_the_prior_term_is_weighted_and_off_by_default(settings: Config) -> None:
    parts, encoded = parts_and_pictures(settings)
    other = steps.Pictures(encoded.cache, schedule.Stream("class pictures", encoded.stream.buckets, 2, 1, 0))

    def gradient(*terms: tuple[steps.Pictures, float]) -> torch.Tensor:
        for one in parts.parameters.values():
            one.grad = None
        for pictures_of, weight in terms:
            steps._backward(parts, pictures_of, range(1), settings, weight)
        return torch.cat([one.grad.flatten() for one in parts.parameters.values() if one.grad is not None])

    both = gradient((encoded, 1.0), (other, 0.25))
    assert torch.allclose(both, gradient((encoded, 1.0)) + 0.25 * gradient((other, 1.0)), atol=1e-6)
    assert Config().prior_loss_weight == 0


# -- what goes wrong --


def test_nan_stops_keeps_the_last_checkpoint_and_names_the_pictures(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, count = sdxl.predict, 0

    def overflowing(*words: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        return predict(*words) * (float("nan") if count == 8 else 1)

    monkeypatch.setattr(sdxl, "predict", overflowing)
    with pytest.raises(
        RunError, match=r"The loss became NaN at step 8, with lace_\d.jpg.* The last checkpoint is kept"
    ) as caught:
        train.run(settings, say=quietly)
    assert "mixed_precision bf16 or no" in str(caught.value)
    folder = RunFolder.of(settings)
    record = json.loads(folder.record.read_text())
    assert record["state"] == "failed" and "NaN at step 8" in record["error"]
    assert checkpoint.newest(folder.checkpoints)[0] == folder.checkpoint(5)
    assert all(bool(torch.isfinite(one).all()) for one in load_file(folder.checkpoint(5) / steps.LORA_FILE).values())
    monkeypatch.setattr(sdxl, "predict", predict)
    assert train.run(settings, say=quietly).is_complete


def test_running_out_of_memory_names_the_next_three_settings(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    predict, count = sdxl.predict, 0

    def starving(*words: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(*words)

    monkeypatch.setattr(sdxl, "predict", starving)
    with pytest.raises(MachineError) as caught:
        train.run(settings, say=quietly)
    assert str(caught.value).endswith(
        "ran out of memory at step 3. Next to try: gradient_checkpointing full, "
        "train_batch_size 1 with gradient_accumulation_steps 2, or resolution 32."
    )
    monkeypatch.setattr(sdxl, "predict", predict)
    made = train.run(settings.model_copy(update={"gradient_checkpointing": "full"}), say=quietly)
    assert made.is_complete  # and the run goes on with less


def test_running_out_of_memory_while_loading_is_said_so(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def starving(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(steps, "assemble", starving)
    with pytest.raises(MachineError, match="ran out of memory before the first step. Next to try: "):
        train.run(settings, say=quietly)


def test_a_full_disk_leaves_earlier_checkpoints_and_ends_with_a_sentence(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = steps.save

    def full(parts: steps.Parts, folder: Path, number: int, run_id: str) -> None:
        if number == 10:
            (folder / steps.LORA_FILE).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(parts, folder, number, run_id)

    monkeypatch.setattr(steps, "save", full)
    with pytest.raises(MachineError, match="The disk is full: .*step-000010 could not be written"):
        train.run(settings, say=quietly)
    folder = RunFolder.of(settings)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000005"]
    assert checkpoint.problem_of(folder.checkpoint(5)) is None
    monkeypatch.setattr(steps, "save", save)
    assert train.run(settings, say=quietly).is_complete


def test_captions_without_the_concept_token_are_refused(settings: Config, lace_folder: Path) -> None:
    """L4."""
    with pytest.raises(
        SettingsError, match="instance_prompt 'a photo' does not hold the concept token <myspecialstyle>"
    ):
        train.run(settings.model_copy(update={"instance_prompt": "a photo"}), say=quietly)
    (lace_folder / "annotations.txt").write_text("lace_0.jpg\ta <myspecialstyle>\nlace_1.jpg\ta leaf\n")
    with pytest.raises(
        PicturesError, match=r"1 of 2 captions in .* do not hold the concept token .*\(first: lace_1.jpg\)"
    ):
        train.run(settings.model_copy(update={"images_dir": str(lace_folder)}), say=quietly)


def test_captions_of_a_read_only_folder_stand_in_the_runs_own(
    settings: Config, lace_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    one = settings.model_copy(update={"images_dir": str(lace_folder), "max_train_steps": 1})
    for _ in range(2):
        assert len(train.read_examples(one, quietly)) == 6
    train.run(one, say=quietly)
    assert not (lace_folder / "annotations.txt").exists()
    assert train.run(one.model_copy(update={"max_train_steps": 2}), say=quietly).facts.step == 2
    assert len(RunFolder.of(one).annotations.read_text().splitlines()) == 6


def test_captions_that_are_too_long_are_told_with_the_words_that_are_lost(settings: Config) -> None:
    """L4: and the concept token's parts; the test's tokenizer has one token a letter."""
    long = Example(Path("a/long.jpg"), "a <myspecialstyle> " + "x " * 57 + "rosette")
    notes = train.word_notes(settings, [Example(Path("short.jpg"), "a <myspecialstyle>"), long])
    assert notes[0] == "concept   <myspecialstyle> is read as plain text of 16 tokens"
    assert notes[1].startswith("! 1 captions are too long and lose their end (first: long.jpg loses 'osette').")
    assert len(train.word_notes(settings, [Example(Path("short.jpg"), "a <myspecialstyle>")])) == 1


def test_pictures_without_a_line_are_counted_and_left_out(settings: Config, lace_folder: Path) -> None:
    (lace_folder / "annotations.txt").write_text(
        "lace_0.jpg\ta <myspecialstyle>\nlace_3.jpg\ta <myspecialstyle> leaf\n"
    )
    said: list[str] = []
    found = train.read_examples(settings.model_copy(update={"images_dir": str(lace_folder)}), said.append)
    assert [one.path.name for one in found] == ["lace_0.jpg", "lace_3.jpg"]
    assert "4 pictures have no line" in said[0] and "first: lace_1.jpg" in said[0]


# -- jobs and the launch line --


def test_jobs_are_listed_newest_first_and_ids_are_stable(settings: Config, tmp_path: Path) -> None:
    """C13: equal settings and pictures give equal ids, wherever the run lies."""
    one = settings.model_copy(update={"max_train_steps": 1})
    elsewhere = one.model_copy(update={"lora_output_dir": str(tmp_path / "elsewhere"), "run_name": "other"})
    for number, run in enumerate(
        (one.model_copy(update={"run_name": "first"}), one.model_copy(update={"run_name": "second", "rank": 2}))
    ):
        train.run(run, say=quietly)
        record = RunFolder.of(run).record
        facts = json.loads(record.read_text()) | {"updated": f"2026-01-0{number + 1}T00:00:00+00:00"}
        checkpoint.write_json(record, facts)
    train.run(elsewhere, say=quietly)
    found = train.jobs(one.lora_output_dir)
    assert [job.name for job in found] == ["second", "first"]
    assert len(found[0].id) == 64 and found[0].id != found[1].id
    assert train.jobs(tmp_path / "elsewhere")[0].id == found[1].id
    assert "finished  step 1/1  loss" in str(found[0])
    assert train.jobs(tmp_path / "nowhere") == []


def test_the_launch_line_carries_the_settings(settings: Config) -> None:
    """L13."""
    words = train.command(
        settings.model_copy(update={"random_flip": False, "num_images": 3, "image_types": (".jpg", ".png")})
    )
    assert words[:4] == ["accelerate", "launch", "--num_processes", "1"]
    assert words[words.index("-m") :][:3] == ["-m", "lace_lora.main", "train"]
    given = dict(zip(words[words.index("train") + 1 :: 2], words[words.index("train") + 2 :: 2], strict=True))
    assert (given["--rank"], given["--random_flip"], given["--resolution"]) == ("4", "false", "64")
    assert words.count("--image_types") == 2 and "--num_images" not in given and "--class_prompt" not in given


def test_progress_is_told_in_few_lines_and_record_says_how_long_it_takes(settings: Config) -> None:
    """C12: percent, ETA and state can be read while it runs."""
    said: list[str] = []
    records: list[dict[str, Any]] = []
    long = settings.model_copy(update={"max_train_steps": 60, "checkpoint_every": 1000})
    original = journal.Journal.tell
    monkey = pytest.MonkeyPatch()
    monkey.setattr(journal, "WRITE_EVERY_SECONDS", 0.0)
    monkey.setattr(
        journal.Journal,
        "tell",
        lambda self, *words, **facts: original(self, *words, **facts) or records.append(self.facts | {}),
    )
    try:
        train.run(long, say=said.append)
    finally:
        monkey.undo()
    lines = [line for line in said if line.startswith("step ")]
    assert 10 < len(lines) <= 30
    assert lines[-1].startswith(("step 60/60  loss 0.", "step 60/60  loss 1."))
    assert len({line.index("loss") for line in lines}) == 1
    running = [record for record in records if record["state"] == "running" and record["step"] > 0]
    assert [record["step"] for record in running] == list(range(1, 61))
    half = running[29]
    assert half["eta_seconds"] == pytest.approx(30 * half["seconds_per_step"], abs=0.51)
