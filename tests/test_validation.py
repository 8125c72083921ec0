"""Looks at held-out pictures: fixed noise, the best checkpoint, early stopping (L14, P19)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lace_lora import adapter, checkpoint, parts, sitting, steps, train, validation
from lace_lora.config import Config
from lace_lora.families import sdxl
from lace_lora.processes import Processes
from lace_lora.run_folder import RunFolder
from tests.conftest import draw_lace, draw_threads
from tests.training import assert_same, parts_and_pictures, quietly, result_of, stop_after

ALONE = Processes(0, 1, "cpu")
SIZES = ((96, 96), (128, 80), (80, 128), (100, 100), (140, 90), (64, 64), (90, 70), (70, 70))


@pytest.fixture
def eight(settings: Config, tmp_path: Path) -> Config:
    """Eight pictures, of which two are held out."""
    update = {"images_dir": str(draw_lace(tmp_path / "eight", SIZES)), "validation_fraction": 0.25, "validate_every": 2}
    return settings.model_copy(update=update)


def looks_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for row in checkpoint.read_json_lines(folder.log) if "val_loss" in row]


def views_of(settings: Config) -> tuple[parts.Parts, validation.Views]:
    made, encoded = parts_and_pictures(settings)
    return made, validation.Views.of(encoded.cache, encoded.cache, settings.seed)


def test_held_out_pictures_are_never_learnt_and_looked_at_from_step_0_on(eight: Config) -> None:
    said: list[str] = []
    seen: list[train.Step] = []
    train.run(eight, say=said.append, show=seen.append)
    folder = RunFolder.of(eight)
    rows = looks_of(folder)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10]
    learnt = {name for step in seen for name in step.names}
    assert len(learnt) == 6, "two of eight are held out"
    assert any(line.startswith("held out  2 of 8 pictures, never learnt") for line in said)
    assert [step.number for step in seen if step.validation] == [2, 4, 6, 8, 10]
    record = json.loads(folder.record.read_text())
    best = min(rows[1:], key=lambda row: row["val_loss"])
    assert record["best_step"] == best["step"] and record["verdict"]
    assert json.loads(folder.best.read_text()) == {"step": best["step"], "val_loss": best["val_loss"]}
    assert checkpoint.problem_of(folder.checkpoint(best["step"])) is None, "the best one is kept whatever its age"


def test_a_look_changes_nothing_and_the_next_one_sees_the_same(eight: Config) -> None:
    made, views = views_of(eight)
    before = parts.learnt(made)
    torch.manual_seed(1)
    first = validation.look(made, views, eight, 0, ALONE)
    torch.manual_seed(2)
    assert validation.look(made, views, eight, 0, ALONE) == first
    assert all(torch.equal(before[name], one) for name, one in parts.learnt(made).items())
    # The held-out set and the probe are the same pictures here, so their losses must be too.
    assert first["val_loss"] == pytest.approx(first["train_probe_loss"], abs=1e-7)


def test_a_look_is_the_mean_of_four_stratified_times_of_each_picture(
    eight: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, views = views_of(eight)
    asked: list[torch.Tensor] = []
    predict = sdxl.predict
    monkeypatch.setattr(sdxl, "predict", lambda *words: asked.append(words[2]) or predict(*words))
    validation.look(made, views, eight, 0, ALONE)
    assert len(asked) == 16
    for times in asked:
        assert [int(time) // 250 for time in times] == [0, 1, 2, 3]
    assert len({tuple(times.tolist()) for times in asked}) == 8, "each picture has its own times, in both sets the same"


@pytest.mark.parametrize("count", [2, 3])
def test_processes_see_what_one_sees(count: int, eight: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """C19: each fills its places of one vector; the sum is exact."""
    made, views = views_of(eight)
    alone = validation.look(made, views, eight, 0, ALONE)
    vectors: list[torch.Tensor] = []
    monkeypatch.setattr(Processes, "sum_", lambda self, tensors: vectors.append(tensors[0].clone()))
    for rank in range(count):
        validation.look(made, views, eight, 0, Processes(rank, count, "cpu"))
    together = sum(vectors).tolist()
    assert sum(together[:8]) / 8 == alone["val_loss"]
    assert all(int((vector != 0).sum()) <= -(-16 // count) for vector in vectors)


def test_a_run_that_is_cut_has_the_same_looks_as_an_unbroken_one(eight: Config) -> None:
    whole, broken = (eight.model_copy(update={"run_name": name}) for name in ("whole", "broken"))
    train.run(whole, say=quietly)
    for number in (3, 4, 7):
        train.run(broken, say=quietly, show=stop_after(number))
    train.run(broken, say=quietly)
    assert looks_of(RunFolder.of(broken)) == looks_of(RunFolder.of(whole))
    assert_same(RunFolder.of(broken), RunFolder.of(whole))


def test_training_stops_early_when_patience_is_lost_and_keeps_the_best(
    eight: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = eight.model_copy(update={"early_stopping_patience": 2, "max_train_steps": 40})
    losses = iter([1.0, 0.9, 0.8, 0.85, 0.84, 0.7, 0.6])
    look = validation.look
    monkeypatch.setattr(validation, "look", lambda *words: look(*words) | {"val_loss": next(losses)})
    said: list[str] = []
    made = train.run(changed, say=said.append)
    folder = RunFolder.of(changed)
    assert made.facts.step == 4 and made.is_complete, "0.8, after step 4, was the best"
    record = json.loads(folder.record.read_text())
    assert (record["state"], record["step"], record["stopped_early_at"]) == ("finished", 8, 8)
    assert said[-1].startswith("finished  early, at step 8: no better look since step 4")
    kept = made.state
    assert json.loads((folder.checkpoint(4) / parts.STATE_FILE).read_text())["step"] == 4
    again: list[str] = []
    assert train.run(changed, say=again.append).digest == made.digest and "is finished" in again[-1]
    # With patience switched off it goes on from where it was, not from the best.
    goes_on = train.run(changed.model_copy(update={"early_stopping_patience": 0, "max_train_steps": 10}), say=quietly)
    assert goes_on.facts.step == 10 and any(not torch.equal(kept[name], goes_on.state[name]) for name in kept)


def test_looks_since_the_best_are_counted_from_it() -> None:
    def rows(*losses: float) -> list[dict[str, Any]]:
        return [{"step": place, "val_loss": loss} for place, loss in enumerate(losses)]

    assert validation.looks_since_best([]) == 0
    assert validation.looks_since_best(rows(0.1)) == 0, "before training nothing was learnt"
    assert validation.looks_since_best(rows(0.1, 0.5)) == 0
    assert validation.looks_since_best(rows(1, 0.5, 0.6, 0.7)) == 2
    assert validation.is_best({"step": 1, "val_loss": 0.5}, rows(0.1))
    assert not validation.is_best({"step": 2, "val_loss": 0.5}, rows(0.1, 0.5))
    assert not validation.is_best({"step": 0, "val_loss": 0.0}, [])


def test_a_learnt_style_shows_on_pictures_that_were_never_learnt(settings: Config, tmp_path: Path) -> None:
    """The held-out loss falls where there is something in common to learn."""
    same = draw_threads(tmp_path / "many", 16)
    update = {
        "images_dir": str(same), "validation_fraction": 0.25, "validate_every": 20, "max_train_steps": 40,
        "learning_rate": 3e-3, "lora_targets": "attention+ff", "train_batch_size": 4, "caption_dropout": 0.0,
        "lr_scheduler": "constant", "checkpoint_every": 100,
    }  # fmt: skip
    train.run(settings.model_copy(update=update), say=quietly)
    rows = looks_of(RunFolder.of(settings))
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]


def test_too_few_pictures_hold_none_out_and_say_so(settings: Config) -> None:
    said: list[str] = []
    train.run(settings.model_copy(update={"max_train_steps": 1, "validation_fraction": 0.05}), say=said.append)
    assert "held out  none: 0.05 of 6 pictures is less than one" in said
    assert not looks_of(RunFolder.of(settings))


def test_averaging_optimizers_are_looked_at_by_their_average(eight: Config) -> None:
    """schedulefree: the weights that are learnt from are not those that count; looking must not move either."""
    from lace_lora import optimizers

    changed = eight.model_copy(update={"optimizer": "schedulefree", "validate_every": 1})
    if optimizers.missing("schedulefree"):
        pytest.skip(str(optimizers.missing("schedulefree")))
    made, encoded = parts_and_pictures(changed)
    views = validation.Views.of(encoded.cache, encoded.cache, 0)
    other, _ = parts_and_pictures(changed)
    looked, plain = [], []
    for step in steps.steps(made, encoded, None, changed, 0):
        looked.append(step.loss)
        row = validation.look(made, views, changed, step.number, ALONE)
    for step in steps.steps(other, encoded, None, changed, 0):
        plain.append(step.loss)
    assert looked == plain
    averaged = parts.learnt(made)
    assert any(not torch.equal(averaged[name], master) for name, master in made.masters.items())
    fresh, _ = parts_and_pictures(changed.model_copy(update={"optimizer": "adamw"}))
    parts.take_up(fresh, averaged)
    assert validation.look(fresh, views, changed, 10, ALONE)["val_loss"] == pytest.approx(row["val_loss"], abs=1e-6)


LOSSES = (1.0, 0.9, 0.8, 0.85, 0.84, 0.7, 0.6, 0.5)


def drawn_from(monkeypatch: pytest.MonkeyPatch, losses: Sequence[float | None] = LOSSES) -> None:
    """Looks whose loss is that of their place, whenever and in whichever session they are made."""
    look = validation.look

    def found(made: parts.Parts, views: validation.Views, settings: Config, step: int, *rest: Any) -> dict[str, Any]:
        return look(made, views, settings, step, *rest) | {"val_loss": losses[step // 2]}

    monkeypatch.setattr(validation, "look", found)


def test_an_early_end_that_is_cut_off_ends_the_same_when_it_is_called_again(
    eight: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L14, P19: between its last checkpoint and its adapter; it must not train on."""
    drawn_from(monkeypatch)
    update = {"early_stopping_patience": 2, "max_train_steps": 14}
    whole, cut = (eight.model_copy(update=update | {"run_name": name}) for name in ("whole", "cut"))
    train.run(whole, say=quietly)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sitting, "finish", lambda now: raise_(KeyboardInterrupt()))
        train.run(cut, say=quietly)
    assert train.run(cut, say=quietly).facts.step == 4
    assert_same(RunFolder.of(cut), RunFolder.of(whole))


def raise_(error: BaseException) -> None:
    raise error


def test_an_early_end_does_not_take_a_damaged_best_checkpoint(eight: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """P19: it says so and keeps the last weights, which are sound."""
    drawn_from(monkeypatch)
    changed = eight.model_copy(update={"early_stopping_patience": 2, "max_train_steps": 14})
    finish = sitting.finish

    def damaged(now: sitting.Sitting) -> adapter.Adapter:
        file = now.folder.checkpoint(4) / parts.LORA_FILE
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
        return finish(now)

    monkeypatch.setattr(sitting, "finish", damaged)
    said: list[str] = []
    made = train.run(changed, say=said.append)
    assert made.facts.step == 8 and made.is_complete
    assert any("step-000004, is not used: lora.safetensors is not as it was written" in line for line in said)


def test_switching_looks_off_on_the_way_changes_nothing_that_is_learnt(eight: Config) -> None:
    """L14: held-out pictures stay held out, so validate_every may change while a run goes on."""
    whole, cut = (eight.model_copy(update={"run_name": name}) for name in ("whole", "cut"))
    train.run(whole, say=quietly)
    train.run(cut, say=quietly, show=stop_after(5))
    train.run(cut.model_copy(update={"validate_every": 0}), say=quietly)
    one, other = (result_of(RunFolder.of(run)) for run in (whole, cut))
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (one[2], other[2])]
    assert losses[0] == losses[1]


def test_a_look_whose_loss_is_no_number_is_never_the_best(eight: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """P19: JSON knows no NaN, and a NaN is below nothing."""
    look, shown = validation._loss, iter([*[0.5] * 4, *[math.nan] * 4])
    monkeypatch.setattr(validation, "_loss", lambda *words: look(*words) * 0 + next(shown, 0.4))
    said: list[str] = []
    train.run(eight, say=said.append)
    rows = looks_of(RunFolder.of(eight))
    assert rows[1]["val_loss"] is None and rows[1]["is_best"] is False and rows[2]["is_best"] is True
    assert any("step 2  the loss is no number" in line for line in said)
    assert "NaN" not in RunFolder.of(eight).log.read_text() + RunFolder.of(eight).best.read_text()


def test_a_run_that_is_nowhere_better_than_the_base_says_so(eight: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """P19: the best of looks that are all worse is no success."""
    drawn_from(monkeypatch, (0.5, 0.9, 0.8, 0.7, 0.6, 0.55))
    said: list[str] = []
    train.run(eight, say=said.append)
    assert any("step 2  loss 0.9000" in line and line.endswith("above the base's") for line in said)
    assert not any("best so far" in line for line in said)
    assert any(line.startswith("! No look found") and "lower learning_rate" in line for line in said)


def test_a_look_reads_captions_with_the_encoders_that_are_being_trained(eight: Config) -> None:
    """L18: cached words would show the looks of an encoder that is not there any more."""
    changed = eight.model_copy(update={"train_text_encoder": True})
    made, views = views_of(changed)
    before = validation.look(made, views, changed, 0, ALONE)["val_loss"]
    with torch.no_grad():
        for name, master in made.masters.items():
            if name.startswith("text_encoder") and ".lora_B." in name:
                master.normal_()
    parts.publish(made)
    assert validation.look(made, views, changed, 0, ALONE)["val_loss"] != before
