"""Train a LoRA: `run(config)` does it all, in the order in which it reads.

Whatever cuts a run off, the same call goes on from the last checkpoint and ends with the numbers of an unbroken run.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from lace_lora import adapter as adapters
from lace_lora import (
    backends,
    cache,
    checkpoint,
    class_pictures,
    config_text,
    elsewhere_training,
    estimate,
    experience,
    figures,
    journal,
    launch,
    mirror,
    outcome,
    own_folders,
    processes,
    samples,
    schedule,
    sitting,
    stages,
    starting,
    trackers,
    validation,
)
from lace_lora import examples as words_and_pictures
from lace_lora import parts as state
from lace_lora.adapter import Adapter
from lace_lora.config import Config
from lace_lora.data_utils import Example
from lace_lora.examples import Preprocess as Preprocess
from lace_lora.families import known, memory
from lace_lora.families.quiet import quiet
from lace_lora.journal import Journal
from lace_lora.launch import command as command
from lace_lora.losses import Pictures
from lace_lora.parts import Parts
from lace_lora.run_folder import RunFolder
from lace_lora.runs import Job as Job
from lace_lora.runs import jobs as jobs
from lace_lora.sitting import Sitting
from lace_lora.steps import Step as Step

with quiet():
    import torch

Say = Callable[[str], None]


def run(
    config: Config,
    *,
    preprocess: Preprocess | None = None,
    say: Say = print,
    show: Callable[[Step], None] | None = None,
    place: backends.Place | None = None,
) -> Adapter:
    """Train as the settings say and return the adapter; called again, go on where it stopped.

    preprocess  a function from picture to picture, for what no swatch can do (see examples.read); with it all GPUs are
                used only in a script of yours that torchrun starts, since no command line can name a function
    say         is told facts, a line each; progress too, unless `show` is given
    show        is called with every Step, for a bar or a plot
    place       who trains, in place of what the setting backend names: a function of yours (see backends.Place)

    On several GPUs it starts one process for each, by the line that `command` gives. A first interrupt (Ctrl-C, the
    notebook's stop, SIGTERM) finishes the step, saves, and returns the adapter as far as it is, with is_complete False;
    a second one stops at once. Raises a LaceError that says what to do where a run cannot begin or go on; what was
    saved before stays as it was.
    """
    if place := place or backends.of(config.backend):
        return elsewhere_training.run(config, place, say)

    # Plan: what runs here, and why. A run that goes on keeps what was chosen when it began.
    together = processes.join()
    say = say if together.is_first else _silently
    with together.first_alone(), own_folders.answering(config):
        plan, folder, notes = _planned(config, together.count, say)
    if preprocess is None and launch.is_needed(plan.config, together.count):
        mode = "auto" if plan.may_save_memory else plan.config.gradient_checkpointing
        launch.run(plan.config.model_copy(update={"gradient_checkpointing": mode}), say)
        return adapters.load(folder.root)
    for line in notes:
        say(line)

    # Keep: one run at a time in a folder; on Drive everything is written here first, and copied.
    with mirror.lock(folder.root, say) if together.is_first else nullcontext():
        drive = mirror.Mirror.of(folder, config.drive_mount_path, config.cache_dir, say)
        with together.first_alone():
            drive.bring()
        return _run_here(plan, drive, together, preprocess, say, show)


def _run_here(
    plan: estimate.Plan,
    drive: mirror.Mirror,
    together: processes.Processes,
    preprocess: Preprocess | None,
    say: Say,
    show: Callable[[Step], None] | None,
) -> Adapter:
    """The run itself, in the working folder on this machine."""
    settings, folder = plan.config, drive.local
    dtype, device = stages.DTYPES[plan.precision], together.device

    # Check: pictures and captions, and what is in the run's folder already.
    for line in known.fetch_notice(settings.pretrained_model):
        say(line)
    with together.first_alone():
        found = words_and_pictures.read(settings, say, preprocess)
        record = journal.open_run(folder, settings, cache.data_digest(found), writes=together.is_first)
        if _is_over(record, settings) and adapters.is_whole(folder):
            if together.is_first:
                drive.finish()  # the one before may have been cut off while it copied
            say(f"{folder.name} is finished: {record.facts['step']} steps are made, in {drive.remote.root}.")
            return adapters.load(folder.root)
        if together.is_first:
            checkpoint.write_text(folder.config, config_text.to_yaml(settings))
            checkpoint.write_text(folder.annotations, "".join(f"{one.path}\t{one.caption}\n" for one in found))

    with outcome.told(record, settings, drive):
        # Cache: every picture and caption is encoded once; afterwards only the UNet is in memory.
        record.tell("preparing")
        for note in words_and_pictures.word_notes(settings, found):
            say(note)
        with together.first_alone():
            encoded = encode(found, settings, dtype, device, say)
            learnt, held_out = _apart(found, settings, folder, together, say)
            drawn = class_pictures.draw(settings, folder, dtype, device, say)
            encoded_classes = encode(drawn, settings, dtype, device, say, is_learnt=False) if drawn else None
            wanted = samples.prepare(settings, dtype, device)

        # Resume: from the newest checkpoint that is whole; or begin, with another LoRA where one is given.
        parts = state.assemble(settings, dtype, device, may_save_memory=plan.may_save_memory, say=say)
        start = _resume(parts, settings, folder, record, together, say)
        record.begin_at(start)

        # Train: stop only between two steps.
        encoded = encoded.to_device(device, plan.free_bytes, say)
        if encoded_classes is not None:
            encoded_classes = encoded_classes.to_device(device, plan.free_bytes - encoded.size_bytes, say)
        pictures = _stream("pictures", encoded.only(learnt), settings, settings.dataset_repeats)
        classes = _stream("class pictures", encoded_classes, settings, 1) if encoded_classes else None
        is_looking = bool(held_out and settings.validate_every)
        views = validation.Views.of(encoded.only(held_out), pictures.cache, settings.seed) if is_looking else None
        tracker = _tracker(settings, folder, record, start, say) if together.is_first else trackers.silent()
        progress = show or outcome.printer(record, say)
        sitting.forget_peak_vram(device)
        now = Sitting(
            settings, folder, drive, record, together, parts, views, wanted, tracker, say, progress, done=start
        )
        sitting.train(now, pictures, classes, start)

        # Save: the adapter, also of a training that was stopped; and what its steps took, for the next plan.
        saved = _saved(plan, now, start)
    del parts, now
    memory.give_back_memory()
    return saved


def _saved(plan: estimate.Plan, now: Sitting, start: int) -> Adapter:
    """The adapter as it is, and in run.json what the steps since `start` took."""
    _keep_figures(plan, now, start)
    return sitting.finish(now)


def _keep_figures(plan: estimate.Plan, now: Sitting, start: int) -> None:
    """What this sitting's steps took, in run.json and below cache_dir; nothing where they were too few to tell."""
    if now.done - start < figures.FEWEST_STEPS or not now.together.is_first:
        return
    newest, _ = checkpoint.newest(now.folder.checkpoints)
    found = figures.of_training(
        plan, now.record.seconds_a_step(), now.parts.checkpointing, sitting.peak_vram_gb(now.parts.device) or 0.0,
        sum(path.stat().st_size for path in newest.iterdir()) if newest else 0,
    )  # fmt: skip
    now.record.facts["figures"] = experience.as_rows(found)
    experience.keep(plan.config.cache_dir, found)


def _apart(
    found: Sequence[Example], settings: Config, folder: RunFolder, together: processes.Processes, say: Say
) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to learn and of those held out, whose names are kept for an evaluation."""
    learnt, held_out = words_and_pictures.apart(found, settings, validation.PICTURES_AT_MOST, say)
    if held_out and together.is_first:
        checkpoint.write_text(folder.held_out, "".join(f"{found[number].path}\n" for number in held_out))
    return learnt, held_out


def _planned(config: Config, processes_started: int, say: Say) -> tuple[estimate.Plan, RunFolder, list[str]]:
    """The plan for what really runs, the run's folder, and the plan in lines; MachineError where it cannot fit."""
    if processes_started > 1 and config.num_processes == "auto":
        config = config.model_copy(update={"num_processes": processes_started})
    plan = estimate.prepare(config, say=say)
    folder = RunFolder.of(plan.config)
    own_folders.check_drive("lora_output_dir", folder.root.parent, plan.config.drive_mount_path)
    folder.create()
    settings, kept = journal.settle(config, plan.config, folder)
    if kept:
        plan = estimate.again(plan, settings, config.gradient_checkpointing)
    starting.check(settings, folder)
    # Refused before anything of the run is written, loaded or fetched; a finished one needs no memory any more.
    if not (adapters.is_whole(folder) and adapters.load(folder.root).is_complete):
        estimate.check_fits(plan)
    banner = [plan.banner] if plan.banner else []
    return plan, folder, [*banner, str(plan), *kept]


def _is_over(record: Journal, settings: Config) -> bool:
    """Whether nothing is left to do; an early stop is no end any more once patience is switched off."""
    is_early = record.facts.get("stopped_early_at") is not None
    return record.is_finished and not (is_early and not settings.early_stopping_patience)


def encode(
    examples: Sequence[Example], settings: Config, dtype: torch.dtype, device: str, say: Say, is_learnt: bool = True
) -> cache.Cache:
    """Pictures and captions through the cache; class pictures as they are, or mirrored."""
    return cache.build(
        examples, settings.pretrained_model, int(settings.resolution),
        flips=settings.random_flip, crop=settings.crop if is_learnt else "center",
        quarter_turns=settings.quarter_turns and is_learnt, vae_model=settings.vae_model,
        dtype=dtype, device=device, cache_dir=settings.cache_dir, say=say,
    )  # fmt: skip


def _stream(name: str, encoded: cache.Cache, settings: Config, repeats: int) -> Pictures:
    """Encoded pictures and the order in which they will be learnt."""
    buckets = tuple(sample.buckets for sample in encoded.samples)
    return Pictures(encoded, schedule.Stream(name, buckets, int(settings.train_batch_size), repeats, settings.seed))


def _tracker(settings: Config, folder: RunFolder, record: Journal, start: int, say: Say) -> trackers.Tracker:
    """Where losses are sent beside the log."""
    facts = record.facts
    run_id = hashlib.sha256(f"{facts['id']} {facts['started']}".encode()).hexdigest()[:16]
    return trackers.open_tracker(
        settings.log_with, folder.tensorboard, folder.name, facts["settings"], start, say, run_id
    )


def _resume(
    parts: Parts, settings: Config, folder: RunFolder, record: Journal, together: processes.Processes, say: Say
) -> int:
    """Take up the newest whole checkpoint, saying what was passed over; return the number of steps that it holds."""
    # The first process alone looks and cleans up: a damaged one would else count among those that are kept.
    with together.first_alone():
        found, notes = checkpoint.newest(folder.checkpoints)
        for note in notes:
            say(note)
        if together.is_first:
            checkpoint.set_aside_after(folder.checkpoints, found)
    if notes and found is None:
        say("! None of the checkpoints is whole, so training begins again with the first step.")
    start = 0 if found is None else state.restore(parts, found, record.facts["id"])
    together.check_same(start, "the step to go on from")
    if start:
        say(f"resumed   after step {start}")
    else:
        starting.begin(parts, settings, say)
    return start


def _silently(_: str) -> None:
    """What the other processes say: the first one speaks for all."""
