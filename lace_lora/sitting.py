"""One sitting of a run: after each step what is due — the log, a look at held-out pictures, samples, a checkpoint."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from lace_lora import adapter as adapters
from lace_lora import checkpoint, journal, mirror, processes, samples, steps, stopping, trackers, validation
from lace_lora import parts as state
from lace_lora.adapter import Adapter, AdapterFacts
from lace_lora.config import Config
from lace_lora.curves import verdict
from lace_lora.errors import LaceError
from lace_lora.families import memory
from lace_lora.families.quiet import quiet
from lace_lora.journal import Journal
from lace_lora.losses import Pictures
from lace_lora.machine import GIB, is_out_of_memory
from lace_lora.parts import Parts
from lace_lora.run_folder import RunFolder
from lace_lora.steps import Step

with quiet():
    import torch

READ_EVERY_SECONDS = 2.0  # losses on a GPU: each look waits for the steps that are still being computed

Say = Callable[[str], None]


@dataclass
class Sitting:
    """What a training has in hand between its first step here and its last one."""

    settings: Config
    folder: RunFolder  # on this machine
    drive: mirror.Mirror
    record: Journal
    together: processes.Processes
    parts: Parts
    views: validation.Views | None
    wanted: samples.Wanted | None
    tracker: trackers.Tracker
    say: Say
    progress: Callable[[Step], None]
    unread: list[Step] = field(default_factory=list)
    done: int = 0
    saved_at: float = field(default_factory=monotonic)


def train(now: Sitting, pictures: Pictures, classes: Pictures | None, start: int) -> None:
    """All steps from `start` on, and after each what is due: a look, samples, the log, a checkpoint.

    Whatever else fails between two updates, those that are made are saved first.
    """
    if _begin(now, start):
        return
    with stopping.on_request(now.say, "Stopping: this step is finished and saved first.") as stop, _rescue(now):
        done = steps.steps(
            now.parts, pictures, classes, now.settings, start,
            processes=now.together, asked_to_stop=lambda: stop.asked, say=now.say,
        )  # fmt: skip
        for step in done:
            now.done = step.number
            now.unread.append(step)
            row = _after(now, step)
            # Alone, a stop that was asked for while this step was shown is heard at once.
            is_stopped = step.someone_stops or (now.together.count == 1 and stop.asked)
            is_early = row is not None and _has_lost_patience(now)
            if is_stopped or is_early or _is_checkpoint_due(now, step, row):
                _save_checkpoint(now)
            if is_early:
                now.record.tell("running", stopped_early_at=step.number)
            if is_stopped or is_early:
                return


def _begin(now: Sitting, start: int) -> bool:
    """What was due after the step that is gone on from and did not come about; returns whether that ends the run."""
    if start == 0 and now.together.is_first:
        shutil.rmtree(now.folder.samples, ignore_errors=True)  # of a first try that left no checkpoint
    total = int(now.settings.max_train_steps)
    if _is_look_due(now, start, total) and not any(row["step"] == start for row in now.record.looks):
        _look(now, start)
    if _is_sample_due(now, start, total):
        _draw_samples(now, start)
    now.record.resume_clock()
    is_early = _has_lost_patience(now)
    if is_early:
        now.record.tell("running", stopped_early_at=start)
    return is_early


@contextmanager
def _rescue(now: Sitting) -> Iterator[None]:
    """Save the updates that are made when anything fails between two of them."""
    try:
        yield
    except Exception:
        with suppress(Exception):  # what failed first is what is told
            _save_what_is_made(now)
        raise


def _save_what_is_made(now: Sitting) -> None:
    """A checkpoint of the updates that the weights hold, where each stands in the log and nothing is NaN."""
    made = now.parts.made
    if made is None or not all(bool(torch.isfinite(master).all()) for master in now.parts.masters.values()):
        return
    now.done = made
    _read(now)
    if len(now.record.losses) == made and checkpoint.problem_of(now.folder.checkpoint(made)) is not None:
        _save_checkpoint(now)


def _after(now: Sitting, step: Step) -> dict[str, Any] | None:
    """What follows a step; returns the row of the look at the held-out pictures, if there was one."""
    is_look = _is_look_due(now, step.number, step.total)
    is_sample = _is_sample_due(now, step.number, step.total)
    waited = monotonic() - now.record.read_at
    is_free = now.parts.device == "cpu"
    if not (is_look or is_sample or step.number == step.total or is_free or waited > READ_EVERY_SECONDS):
        return None
    earlier = _read(now)
    row = _look(now, step.number) if is_look else None
    paths = _draw_samples(now, step.number) if is_sample else ()
    for one in earlier:
        now.progress(one.with_events(row, paths) if one is step else one)
    now.record.resume_clock()
    return row


def _is_look_due(now: Sitting, number: int, total: int) -> bool:
    return now.views is not None and (number in (0, total) or number % now.settings.validate_every == 0)


def _is_sample_due(now: Sitting, number: int, total: int) -> bool:
    return now.wanted is not None and (number in (0, total) or number % now.settings.sample_every == 0)


def _read(now: Sitting) -> list[Step]:
    """Read the losses of the steps made since the last time: checked, logged; returns those steps."""
    unread = now.unread
    for step in unread:
        steps.check_finite(step, now.parts.scaler)
    now.unread = []
    if unread:
        rows = [step.as_row() for step in unread]
        now.record.add(rows, unread[-1].total, peak_vram_gb(now.parts.device))
        for row in rows:
            now.tracker.log(row["step"], {"loss": row["loss"], "learning_rate": row["lr"]})
        if now.together.is_first:
            now.drive.deliver_progress()
    return unread


def _look(now: Sitting, number: int) -> dict[str, Any] | None:
    """Look at the held-out pictures, log what was seen, and keep the best checkpoint."""
    if now.views is None:
        return None
    with _timed(now, "look", now.settings.validate_every):
        row = validation.look(now.parts, now.views, now.settings, number, now.together)
    row["is_best"] = validation.is_best(row, now.record.looks)
    now.record.add_look(row)
    values = {"validation/held_out": row["val_loss"], "validation/learnt": row["train_probe_loss"]}
    now.tracker.log(number, {name: value for name, value in values.items() if value is not None})
    now.say(_told(row, now.record.looks[0]["val_loss"]))
    return row


def _told(row: dict[str, Any], first: float | None) -> str:
    """A look in a line; `first` is the loss of the look before training."""
    if row["val_loss"] is None or row["train_probe_loss"] is None:
        return f"held out  step {row['step']}  the loss is no number; mixed_precision bf16 or no would tell more"
    share = f" ({100 * row['val_loss'] / first:.1f} % of the base's)" if first else ""
    is_below = first is None or row["val_loss"] < first
    best = ("  best so far" if is_below else "  above the base's") if row["is_best"] else ""
    learnt = f"learnt pictures {row['train_probe_loss']:.4f}"
    return f"held out  step {row['step']}  loss {row['val_loss']:.4f}{share}, {learnt}{best}"


@contextmanager
def _timed(now: Sitting, what: str, every: int) -> Iterator[None]:
    """Note how long something takes that comes up every so many steps, for the time that is left."""
    began = monotonic()
    yield
    now.record.between[what] = (every, monotonic() - began)


def _draw_samples(now: Sitting, number: int) -> tuple[Path, ...]:
    if now.wanted is None or not now.together.is_first:
        return ()
    try:
        with _timed(now, "samples", now.settings.sample_every):
            paths = samples.draw(now.parts, now.wanted, now.settings, now.folder, number)
    except Exception as error:  # a row of samples that is missing is worth no training
        reason = "memory ran out" if is_out_of_memory(error) else str(error)
        now.say(f"! The samples of step {number} could not be drawn ({reason}); training goes on without them.")
        memory.give_back_memory()
        return ()
    for place, path in enumerate(paths):
        now.tracker.picture(number, f"sample_{place}", path)
    return paths


def _has_lost_patience(now: Sitting) -> bool:
    patience = now.settings.early_stopping_patience
    return bool(patience) and validation.looks_since_best(now.record.looks) >= patience


def _is_checkpoint_due(now: Sitting, step: Step, row: dict[str, Any] | None) -> bool:
    minutes = now.settings.checkpoint_minutes
    is_time = bool(minutes) and monotonic() - now.saved_at >= 60 * minutes
    is_place = step.number % now.settings.checkpoint_every == 0 or step.number == step.total
    return is_place or is_time or (row is not None and bool(row["is_best"]))


def _save_checkpoint(now: Sitting) -> None:
    """Write a checkpoint whole, and only then delete the oldest. No number that is NaN is ever saved."""
    for step in _read(now):
        now.progress(step)
    now.saved_at = monotonic()
    if not now.together.is_first:
        return
    folder, number, run_id = now.folder, now.done, now.record.facts["id"]
    began = monotonic()
    try:
        checkpoint.save_folder(folder.checkpoint(number), lambda path: state.save(now.parts, path, number, run_id))
    except LaceError:
        with suppress(LaceError):  # a disk that has no room for a checkpoint may have some for the adapter
            adapters.save(state.learnt(now.parts), folder, facts_of(now, number, is_complete=False))
        raise
    best = now.record.best_step()
    kept = None if best is None else folder.checkpoint(best)
    checkpoint.prune(folder.checkpoints, now.settings.checkpoints_to_keep, written=folder.checkpoint(number), best=kept)
    now.drive.deliver()
    now.record.between["checkpoint"] = (now.settings.checkpoint_every, monotonic() - began)
    now.record.resume_clock()


def finish(now: Sitting) -> Adapter:
    """The adapter as it is; of a training that stopped early, the best one. Then everything to Drive."""
    record, number, total = now.record, now.done, int(now.settings.max_train_steps)
    early, best = record.facts.get("stopped_early_at"), record.best_step()
    is_complete = number >= total or early is not None
    if early is not None and best is not None:
        number = best = _go_back_to(now, best)
    facts = facts_of(now, number, is_complete)
    found = state.learnt(now.parts)
    now.tracker.close()
    if not now.together.is_first:
        return Adapter(facts, found, now.folder.adapter_weights)
    adapters.save(found, now.folder, facts)
    judged = verdict(record.looks)
    finished = {"best_step": best, "verdict": judged} if record.looks else {}
    record.tell(
        "finished" if is_complete else "stopped", step=now.done, loss=record.recent_loss(), eta_seconds=0, **finished
    )
    if record.looks:
        now.say(f"held out  {judged}")
    now.drive.finish()
    ends = f"finished  {now.done} steps; the adapter is {now.drive.remote.adapter_weights}"
    if early is not None:
        ends = f"finished  early, at step {now.done}: no better look since step {best}, whose adapter is kept"
    if record.looks and _is_nowhere_better(record.looks):
        now.say("! No look found the held-out pictures better known than by the base alone: lower learning_rate.")
    now.say(ends if is_complete else f"Stopped at step {now.done} of {total}. Run the same again to go on.")
    return adapters.load(now.drive.remote.root)


def _is_nowhere_better(looks: list[dict[str, Any]]) -> bool:
    """Whether no look after the first step is below the one before it."""
    later, first = validation.chosen_from(looks), looks[0]["val_loss"]
    return bool(later) and first is not None and all(row["val_loss"] >= first for row in later)


def _go_back_to(now: Sitting, best: int) -> int:
    """Take up the best checkpoint where it is whole; returns the step whose weights there are now."""
    folder = now.folder.checkpoint(best)
    if problem := checkpoint.problem_of(folder):
        now.say(
            f"! The best checkpoint, {folder.name}, is not used: {problem}. The adapter is that of step {now.done}."
        )
        return now.done
    return state.restore(now.parts, folder, now.record.facts["id"])


def facts_of(now: Sitting, number: int, is_complete: bool) -> AdapterFacts:
    """What adapter.json tells of this training after `number` steps."""
    settings, sizes, family = now.settings, now.parts.sizes, now.parts.family
    return AdapterFacts(
        family=family.FAMILY,
        base_model=settings.pretrained_model,
        rank=settings.rank,
        alpha=settings.lora_alpha(),
        lora_targets=tuple(family.lora_targets(settings.lora_targets)),
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        train_text_encoder=settings.train_text_encoder,
        learns_token=settings.learn_concept_token,
        concept_token=settings.concept_token,
        instance_prompt=settings.instance_prompt,
        class_prompt=settings.class_prompt,
        resolution=int(settings.resolution),
        prediction_type=sizes.prediction_type,
        layers_per_block=sizes.layers_per_block,
        step=number,
        is_complete=is_complete,
        data_digest=now.record.facts["data_digest"],
        settings_digest=settings.digest(journal.IDENTITY),
        versions=journal.versions(),
    )


def forget_peak_vram(device: str) -> None:
    """Count the most GPU memory from here on, so that run.json tells of training and not of what came before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_vram_gb(device: str) -> float | None:
    """Most GPU memory held so far, in GiB; None on a CPU."""
    return round(torch.cuda.max_memory_allocated() / GIB, 2) if device == "cuda" else None
