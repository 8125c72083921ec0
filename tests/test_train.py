"""Training from end to end: exact resume, and what happens when it is ended (L14, P15, P18, P19, C12, C13)."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lace_lora import adapter, cache, checkpoint, config, journal, parts, samples, schedule, train, validation
from lace_lora.config import Config
from lace_lora.errors import AdapterError, MachineError, RunError
from lace_lora.families import sdxl
from lace_lora.losses import Pictures, losses_of_batch
from lace_lora.run_folder import RunFolder
from tests.conftest import draw_lace, losses_of
from tests.training import assert_same, parts_and_pictures, quietly, stop_after


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


def test_a_lora_learns(settings: Config) -> None:
    """The same pictures at the same times and noise are predicted better after training than before."""
    easy = {"learning_rate": 3e-3, "max_train_steps": 30, "caption_dropout": 0.0, "lora_targets": "attention+ff"}
    changed = settings.model_copy(
        update=easy | {"lr_scheduler": "constant", "train_batch_size": 4, "checkpoint_every": 100}
    )
    made = train.run(changed, say=quietly)
    fresh, encoded = parts_and_pictures(changed)
    before = loss_over(fresh, encoded, changed)
    parts.take_up(fresh, made.state)
    assert loss_over(fresh, encoded, changed) < 0.99 * before


@torch.no_grad()
def loss_over(fresh: parts.Parts, encoded: Pictures, settings: Config) -> float:
    return sum(float(losses_of_batch(fresh, encoded, number, settings).sum()) for number in range(1000, 1015))


def test_a_finished_run_is_given_back_without_work(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train.run(settings, say=quietly)
    monkeypatch.setattr(parts, "assemble", lambda *_: pytest.fail("loaded a model"))
    monkeypatch.setattr(cache, "build", lambda *_, **__: pytest.fail("encoded pictures"))
    said: list[str] = []
    assert train.run(settings, say=said.append).digest == first.digest
    assert "lace is finished: 10 steps are made" in said[-1]


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

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert train.run(settings, say=quietly, show=show).facts.step == 3
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


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
    file = folder.checkpoint(6) / parts.OPTIMIZER_FILE
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


def test_logged_learning_rates_are_those_of_the_schedule(settings: Config) -> None:
    train.run(settings.model_copy(update={"lr_warmup_ratio": 0.3}), say=quietly)
    rows = checkpoint.read_json_lines(RunFolder.of(settings).log)
    assert [row["lr"] for row in rows] == [schedule.learning_rate(step, 10, 1e-3, "cosine", 0.3) for step in range(10)]
    assert rows[0]["lr"] < rows[1]["lr"] < rows[2]["lr"] < rows[3]["lr"] == 1e-3


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
    assert all(bool(torch.isfinite(one).all()) for one in load_file(folder.checkpoint(5) / parts.LORA_FILE).values())
    monkeypatch.setattr(sdxl, "predict", predict)
    assert train.run(settings, say=quietly).is_complete


def starving_at(*calls: int) -> Callable[..., torch.Tensor]:
    """A prediction that finds no memory at these calls."""
    predict, count = sdxl.predict, 0

    def starving(*words: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(*words)

    return starving


def test_running_out_of_memory_names_the_next_three_settings(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """L19: a person chose to keep all activations, so the run ends with a sentence, and what was saved stays."""
    chosen = settings.model_copy(update={"gradient_checkpointing": "none"})
    with monkeypatch.context() as patch, pytest.raises(MachineError) as caught:
        patch.setattr(sdxl, "predict", starving_at(8))
        train.run(chosen, say=quietly)
    assert str(caught.value).endswith(
        "ran out of memory after step 7. Next to try: gradient_checkpointing full; or, under another run_name, "
        "train_batch_size 1 with gradient_accumulation_steps 2 or resolution 32."
    )
    folder = RunFolder.of(chosen)
    assert checkpoint.newest(folder.checkpoints)[0] == folder.checkpoint(7), "what was made is saved"
    said: list[str] = []
    made = train.run(chosen.model_copy(update={"gradient_checkpointing": "full"}), say=said.append)
    assert made.is_complete and "resumed   after step 7" in said  # and the run goes on with less


def test_a_run_that_fails_between_two_steps_loses_none_and_goes_on_as_an_unbroken_one(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L14, P19: what shows the steps fails, or the log, or a look; those that were made are saved and logged."""
    update = {"checkpoint_every": 100, "validation_fraction": 0.3, "validate_every": 4}
    whole, cut = (settings.model_copy(update=update | {"run_name": name}) for name in ("whole", "cut"))
    train.run(whole, say=quietly)
    folder = RunFolder.of(cut)

    def show(step: train.Step) -> None:
        if step.number == 3:
            raise ValueError("the window is gone")

    with pytest.raises(ValueError, match="the window is gone"):
        train.run(cut, say=quietly, show=show)
    assert checkpoint.newest(folder.checkpoints)[0] == folder.checkpoint(3)
    with monkeypatch.context() as patch, pytest.raises(MachineError, match="ran out of memory"):
        patch.setattr(validation, "look", starving_at(1))
        train.run(cut, say=quietly)
    assert checkpoint.newest(folder.checkpoints)[0] == folder.checkpoint(4), "and its look is made up for"
    append = checkpoint.append_line

    def full(path: Path, line: str) -> None:
        if '"step": 6' in line:
            raise MachineError("The disk is full.")
        append(path, line)

    with monkeypatch.context() as patch, pytest.raises(MachineError, match="The disk is full"):
        patch.setattr(checkpoint, "append_line", full)
        train.run(cut, say=quietly)
    train.run(cut, say=quietly)
    assert_same(folder, RunFolder.of(whole))


def test_samples_that_cannot_be_drawn_cost_no_training(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """L19."""
    changed = settings.model_copy(update={"sample_every": 5, "prompts": ("a photo of <lace>",)})
    monkeypatch.setattr(samples, "draw", starving_at(1, 2, 3, 4))
    said: list[str] = []
    assert train.run(changed, say=said.append).is_complete
    assert "! The samples of step 5 could not be drawn (memory ran out); training goes on without them." in said


def test_a_checkpoint_is_also_written_by_the_clock(settings: Config) -> None:
    """L14: sessions die by the clock."""
    timed = {"checkpoint_minutes": 1e-6, "checkpoint_every": 100, "max_train_steps": 3, "checkpoints_to_keep": 10}
    train.run(settings.model_copy(update=timed), say=quietly)
    kept = [folder.name for folder in checkpoint.numbered(RunFolder.of(settings).checkpoints)]
    assert kept == ["step-000001", "step-000002", "step-000003"]


def test_the_time_that_is_left_holds_what_comes_up_between_the_steps(settings: Config) -> None:
    """L14: 10 steps of 2 s, of which each fifth is followed by 3 s, and after the tenth 7 s."""
    record = journal.Journal(RunFolder.of(settings), {"state": "running", "step": 0, "total": 20}, writes=False)
    record.paces = [2.0]
    record.between = {"look": (5, 3.0), "checkpoint": (20, 7.0)}
    assert record.seconds_left(10, 20) == 10 * 2 + 2 * 3 + 7


def test_running_out_of_memory_where_checkpointing_is_auto_loses_nothing(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L19: the step is begun again with less kept, in this session and in the next; the numbers are the same."""
    whole, starved = (settings.model_copy(update={"run_name": name}) for name in ("whole", "starved"))
    train.run(whole, say=quietly)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(sdxl, "predict", starving_at(3))
        train.run(starved, say=said.append, show=stop_after(7))
    assert "gradient_checkpointing is transformers, and nothing is lost" in " ".join(said)
    newest = checkpoint.newest(RunFolder.of(starved).checkpoints)[0]
    assert newest and json.loads((newest / parts.STATE_FILE).read_text())["gradient_checkpointing"] == "transformers"
    train.run(starved, say=quietly)
    one, other = (adapter.load(RunFolder.of(run).root).state for run in (whole, starved))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_running_out_of_memory_while_loading_is_said_so(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def starving(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(parts, "assemble", starving)
    with pytest.raises(MachineError, match="ran out of memory before the first step. Next to try: "):
        train.run(settings, say=quietly)


def test_a_full_disk_leaves_earlier_checkpoints_and_ends_with_a_sentence(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = parts.save

    def full(made: parts.Parts, folder: Path, number: int, run_id: str) -> None:
        if number == 10:
            (folder / parts.LORA_FILE).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(made, folder, number, run_id)

    monkeypatch.setattr(parts, "save", full)
    with pytest.raises(MachineError, match="The disk is full: .*step-000010 could not be written"):
        train.run(settings, say=quietly)
    folder = RunFolder.of(settings)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000005"]
    assert checkpoint.problem_of(folder.checkpoint(5)) is None
    monkeypatch.setattr(parts, "save", save)
    assert train.run(settings, say=quietly).is_complete


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


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def test_damaged_checkpoints_are_set_aside_and_count_no_more(settings: Config) -> None:
    """L14, P19: one that is passed over must not push a whole one out; where none is whole, that is said."""
    changed = settings.model_copy(update={"max_train_steps": 8, "checkpoint_every": 2, "checkpoints_to_keep": 2})
    train.run(changed, say=quietly)
    kept = RunFolder.of(changed).checkpoints
    flip_a_byte(kept / "step-000008" / parts.LORA_FILE)
    longer = changed.model_copy(update={"max_train_steps": 9})
    said: list[str] = []
    train.run(longer, say=said.append)
    assert "resumed   after step 6" in said
    assert sorted(path.name for path in kept.iterdir()) == ["step-000008", "step-000008.damaged", "step-000009"]
    for name in ("step-000008", "step-000009"):
        flip_a_byte(kept / name / parts.LORA_FILE)
    said.clear()
    train.run(changed.model_copy(update={"max_train_steps": 10}), say=said.append)
    assert "! None of the checkpoints is whole, so training begins again with the first step." in said


def test_a_damaged_adapter_is_refused_and_written_again(settings: Config) -> None:
    """P19, L4: a flipped byte in the weights would only draw something else."""
    whole = train.run(settings, say=quietly)
    file = RunFolder.of(settings).adapter_weights
    before = file.read_bytes()
    flip_a_byte(file)
    with pytest.raises(AdapterError, match="is not as it was written .* lace-lora train writes it again"):
        adapter.load(RunFolder.of(settings).root)
    assert train.run(settings, say=quietly).digest == whole.digest and file.read_bytes() == before


def test_a_prompt_that_no_caption_holds_is_said(settings: Config, tmp_path: Path) -> None:
    """L20: captions that are there are learnt, whatever instance_prompt says."""
    own = settings.model_copy(update={"images_dir": str(draw_lace(tmp_path / "own", [(64, 64)])), "max_train_steps": 1})
    train.run(own, say=quietly)
    said: list[str] = []
    other = {"instance_prompt": "a drawing of <myspecialstyle>", "run_name": "other"}
    train.run(own.model_copy(update=other), say=said.append)
    default = config.Config.model_fields["instance_prompt"].default
    file = Path(own.images_dir) / "annotations.txt"
    file.write_text(file.read_text().replace(default, "<myspecialstyle> lace in words of its own"))
    quiet: list[str] = []
    train.run(own.model_copy(update={"instance_prompt": default, "run_name": "spelt out"}), say=quiet.append)
    assert not any("not instance_prompt" in line for line in quiet), (
        "a config.yaml that spells out the default asks nothing"
    )
    assert any("not instance_prompt 'a drawing of <myspecialstyle>'. To replace them" in line for line in said)


def test_a_list_of_runs_tells_which_was_cut_off(settings: Config) -> None:
    """L14: run.json of a killed process says that it runs."""
    train.run(settings.model_copy(update={"max_train_steps": 1}), say=quietly)
    record = RunFolder.of(settings).record
    facts = json.loads(record.read_text())
    record.write_text(json.dumps(facts | {"state": "running"}))
    assert [job.state for job in train.jobs(settings.lora_output_dir)] == ["cut off"]


def test_fewer_steps_than_are_made_are_refused(settings: Config) -> None:
    """L14: also of a run that was stopped."""
    train.run(settings, say=quietly, show=stop_after(6))
    with pytest.raises(RunError, match="has 6 steps already and max_train_steps is 3"):
        train.run(settings.model_copy(update={"max_train_steps": 3}), say=quietly)
