"""Train a LoRA: `run(config)` does it all, in the order in which it reads.

Whatever cuts a run off, the same call goes on from the last checkpoint and ends with the numbers of an unbroken run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lace_lora import adapter as adapters
from lace_lora import cache, checkpoint, data_utils, estimate, journal, schedule, stages, steps, stopping
from lace_lora import config as settings_of
from lace_lora.adapter import Adapter, AdapterFacts
from lace_lora.config import Config
from lace_lora.data_utils import Example
from lace_lora.errors import LaceError, MachineError, PicturesError, SettingsError
from lace_lora.families import folders, sdxl
from lace_lora.families.quiet import quiet
from lace_lora.journal import Job as Job
from lace_lora.journal import Journal
from lace_lora.journal import jobs as jobs
from lace_lora.run_folder import RunFolder
from lace_lora.steps import Step as Step

with quiet():
    import torch

GIB = 1024**3
LINES_A_RUN = 25  # of progress
CLASS_PICTURES_AT_ONCE = 20  # a cut-off while they are drawn loses at most these

Say = Callable[[str], None]


def run(config: Config, *, say: Say = print, show: Callable[[Step], None] | None = None) -> Adapter:
    """Train as the settings say and return the adapter; called again, go on where it stopped.

    say   is told facts, a line each; progress too, unless `show` is given
    show  is called with every Step, for a bar or a plot

    A first interrupt (Ctrl-C, the notebook's stop, SIGTERM) finishes the step, saves, and returns the adapter as far as
    it is, with is_complete False; a second one stops at once. Raises a LaceError that says what to do where a run
    cannot begin or go on; what was saved before stays as it was.
    """
    # Plan: what runs here, and why. A run that goes on keeps what was chosen when it began.
    _check_alone()
    plan, folder = _planned(config, say)
    settings, dtype, device = plan.config, stages.DTYPES[plan.precision], plan.machine.device

    # Check: pictures and captions, and what is in the run's folder already.
    examples = cache.in_order(read_examples(settings, say))
    for line in folders.fetch_notice(settings.pretrained_model):
        say(line)
    record = journal.open_run(folder, settings, cache.data_digest(examples))
    if record.is_finished and folder.adapter_weights.is_file():
        say(f"{folder.name} is finished: all {settings.max_train_steps} steps are made, in {folder.root}.")
        return adapters.load(folder.root)
    checkpoint.write_text(folder.config, settings_of.to_yaml(settings))
    checkpoint.write_text(folder.annotations, "".join(f"{one.path}\t{one.caption}\n" for one in examples))

    with _told(record, settings):
        # Cache: every picture and caption is encoded once; afterwards only the UNet is in memory.
        record.tell("preparing")
        for note in word_notes(settings, examples):
            say(note)
        pictures = _encoded("pictures", examples, settings, dtype, device, say)
        drawn = draw_class_pictures(settings, folder, dtype, device, say)
        class_pictures = _encoded("class pictures", drawn, settings, dtype, device, say) if drawn else None

        # Resume: from the newest checkpoint that is whole.
        parts = steps.assemble(settings, dtype, device)
        start = done = _resume(parts, folder, record, say)
        record.begin_at(start)

        # Train: stop only between two steps.
        forget_peak_vram(device)
        progress = show or _printer(record, say)
        with stopping.on_request(say, "Stopping: this step is finished and saved first.") as stop:
            for step in steps.steps(parts, pictures, class_pictures, settings, start):
                done = step.number
                record.add(step.as_row(), step.total, peak_vram_gb(device))
                progress(step)
                if done % settings.checkpoint_every == 0 or done == step.total or stop.asked:
                    save_checkpoint(parts, folder, record, done, settings.checkpoints_to_keep)
                if stop.asked:
                    break

        # Save: the adapter, also of a training that was stopped.
        saved = adapters.save(adapters.state_of(parts.unet), folder, facts_of(settings, parts, record, done))
        record.tell("finished" if saved.is_complete else "stopped", step=done, loss=record.recent_loss(), eta_seconds=0)
    del parts
    sdxl.give_back_memory()
    stopped = f"Stopped at step {done} of {settings.max_train_steps}. Run the same again to go on."
    say(f"finished  {done} steps; the adapter is {folder.adapter_weights}" if saved.is_complete else stopped)
    return saved


def _planned(config: Config, say: Say) -> tuple[estimate.Plan, RunFolder]:
    """The plan for what really runs, said, and the run's folder."""
    plan = estimate.prepare(config, say=say)
    folder = RunFolder.of(plan.config).create()
    settings, kept = journal.settle(config, plan.config, folder)
    if kept:
        plan = estimate.again(plan, settings, config.gradient_checkpointing)
    for line in [*([plan.banner] if plan.banner else []), str(plan), *kept]:
        say(line)
    return plan, folder


def command(config: Config) -> list[str]:
    """The words of the line that trains with these settings under Accelerate.

    `run` trains in its own process, on one device, and needs no such line.
    """
    words = ["accelerate", "launch", "--num_processes", "1", "--num_machines", "1"]
    # The base's weights are held in the wished format by our own loader, so Accelerate converts nothing.
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lace_lora.main", "train"]
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if value != field.default and value is not None and name not in dict(settings_of.fields_of("pictures out")):
            texts = value if isinstance(value, tuple) else [value]
            words += [
                word
                for text in texts
                for word in (f"--{name}", str(text).lower() if isinstance(text, bool) else str(text))
            ]
    return words


def read_examples(settings: Config, say: Say) -> list[Example]:
    """Pictures with captions, from annotations.txt, which is written first where the folder has none.

    Raises SettingsError or PicturesError where a caption lacks the concept token: its picture would teach the style to
    prompts that do not ask for it.
    """
    if settings.concept_token.casefold() not in settings.instance_prompt.casefold():
        raise SettingsError(
            f"instance_prompt {settings.instance_prompt!r} does not hold the concept token {settings.concept_token}. "
            f"Write for example: a photo of {settings.concept_token}"
        )
    types, images_dir = set(settings.image_types), Path(settings.images_dir).expanduser()
    path = images_dir / "annotations.txt"
    if not path.is_file():
        # A folder that cannot be written to (shared with you, read only) gets its captions in the run's folder.
        path = path if os.access(images_dir, os.W_OK) else RunFolder.of(settings).annotations
        data_utils.create_annotations(images_dir, settings.instance_prompt, types, file=path, say=say)
        say(f"captions  written to {path}")
    examples = data_utils.read_annotations(path, images_dir)
    without = [one.path.name for one in examples if settings.concept_token.casefold() not in one.caption.casefold()]
    if without:
        raise PicturesError(
            f"{len(without)} of {len(examples)} captions in {path} do not hold the concept token "
            f"{settings.concept_token} (first: {without[0]}). "
            "Add it to them, or set concept_token to the word that they use."
        )
    listed = {one.path.resolve() for one in examples}
    unlisted = [one.name for one in data_utils.list_images(images_dir, types) if one.resolve() not in listed]
    if unlisted:
        say(
            f"! {len(unlisted)} pictures have no line in {path} and are left out (first: {unlisted[0]}); "
            "`lace-lora annotate` adds them."
        )
    return examples


def word_notes(settings: Config, examples: list[Example]) -> list[str]:
    """How the model reads the words: the parts of the concept token, and the ends of captions that it never sees."""
    tokenizers = sdxl.load_tokenizers(settings.pretrained_model)
    parts = sdxl.count_tokens(tokenizers, settings.concept_token)
    notes = [f"concept   {settings.concept_token} is read as plain text of {parts} tokens"]
    cut = {one.path.name: words for one in examples if (words := sdxl.words_cut(tokenizers, one.caption))}
    if cut:
        name, words = next(iter(cut.items()))
        notes.append(
            f"! {len(cut)} captions are too long and lose their end (first: {name} loses {words!r}). "
            "Shorten them in annotations.txt."
        )
    return notes


def draw_class_pictures(
    settings: Config, folder: RunFolder, dtype: torch.dtype, device: str, say: Say
) -> list[Example]:
    """Pictures that keep plain prompts plain: drawn once by the base model from class_prompt, only what is missing.

    None where prior_loss_weight is 0.
    """
    if not settings.prior_loss_weight:
        return []
    resolution, step = int(settings.resolution), sdxl.layout(settings.pretrained_model).pixel_step
    side = max(step, resolution // step * step)
    _forget_other_class_pictures(
        folder,
        {
            "base_model": settings.pretrained_model,
            "class_prompt": settings.class_prompt,
            "seed": settings.seed,
            "side_px": side,
            "num_class_images": settings.num_class_images,
            "batch": int(settings.train_batch_size),
        },
    )
    paths = [folder.class_images / f"class_{number:04d}.png" for number in range(settings.num_class_images)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    if missing:
        say(f"class     drawing {len(missing)} of {len(paths)} pictures of {settings.class_prompt!r}")
    # Always in the same groups, the finished ones too where one of a group is missing: a picture's last bits depend on
    # its neighbours in a batch, and a run that was cut here must learn from the same pictures as an unbroken one.
    for first in range(0, len(paths), CLASS_PICTURES_AT_ONCE):
        numbers = range(first, min(first + CLASS_PICTURES_AT_ONCE, len(paths)))
        if not any(number in missing for number in numbers):
            continue
        drawn = stages.draw_plain(
            settings.pretrained_model,
            [settings.class_prompt] * len(numbers),
            [_seed(settings.seed, "class", number) for number in numbers],
            side,
            side,
            steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            negative_prompt=settings.negative_prompt,
            scheduler=settings.scheduler,
            dtype=dtype,
            device=device,
            batch=int(settings.train_batch_size),
            say=say,
        )
        for number, picture in zip(numbers, drawn, strict=True):
            if number in missing:
                checkpoint.write_file(paths[number], partial(picture.save, format="PNG"))
    return [Example(path, settings.class_prompt) for path in paths]


def _forget_other_class_pictures(folder: RunFolder, made_from: dict[str, str | int]) -> None:
    """Delete class pictures of another prompt, model, seed or size, which a first try may have left in the folder."""
    record = folder.class_images / "made_from.json"
    text = json.dumps(made_from, indent=2, ensure_ascii=False) + "\n"
    if not record.is_file() or record.read_text(encoding="utf-8") != text:
        shutil.rmtree(folder.class_images, ignore_errors=True)
        checkpoint.write_text(record, text)


def save_checkpoint(parts: steps.Parts, folder: RunFolder, record: Journal, step: int, keep: int) -> None:
    """Write a checkpoint whole, and only then delete the oldest."""
    checkpoint.save_folder(folder.checkpoint(step), lambda path: steps.save(parts, path, step, record.facts["id"]))
    checkpoint.prune(folder.checkpoints, keep, written=folder.checkpoint(step))


def facts_of(settings: Config, parts: steps.Parts, record: Journal, step: int) -> AdapterFacts:
    """What adapter.json tells of this training."""
    return AdapterFacts(
        family=sdxl.FAMILY,
        base_model=settings.pretrained_model,
        rank=settings.rank,
        alpha=settings.lora_alpha(),
        lora_targets=tuple(sdxl.lora_targets(settings.lora_targets)),
        concept_token=settings.concept_token,
        instance_prompt=settings.instance_prompt,
        class_prompt=settings.class_prompt,
        resolution=int(settings.resolution),
        prediction_type=parts.sizes.prediction_type,
        layers_per_block=parts.sizes.layers_per_block,
        step=step,
        is_complete=step >= int(settings.max_train_steps),
        data_digest=record.facts["data_digest"],
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


def _encoded(
    name: str, examples: list[Example], settings: Config, dtype: torch.dtype, device: str, say: Say
) -> steps.Pictures:
    """Pictures through the cache, and the order in which they will be learnt."""
    encoded = cache.build(
        examples, settings.pretrained_model, int(settings.resolution),
        flips=settings.random_flip, dtype=dtype, device=device, cache_dir=settings.cache_dir, say=say,
    )  # fmt: skip
    buckets = tuple(sample.bucket for sample in encoded.samples)
    repeats = settings.dataset_repeats if name == "pictures" else 1
    stream = schedule.Stream(name, buckets, int(settings.train_batch_size), repeats, settings.seed)
    return steps.Pictures(encoded, stream)


def _check_alone() -> None:
    """Several processes would write over each other's files."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise MachineError(
            f"Training runs in one process, but {processes} were started. Start it with --num_processes 1."
        )


def _resume(parts: steps.Parts, folder: RunFolder, record: Journal, say: Say) -> int:
    """Take up the newest whole checkpoint, saying what was passed over; return the number of steps that it holds."""
    found, notes = checkpoint.newest(folder.checkpoints)
    for note in notes:
        say(note)
    if found is None:
        return 0
    start = steps.restore(parts, found, record.facts["id"])
    say(f"resumed   after step {start}")
    return start


@contextmanager
def _told(record: Journal, settings: Config) -> Iterator[None]:
    """Keep run.json true when something ends the run, and turn running out of memory into a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        record.tell("stopped")
        raise
    except LaceError as error:
        _tell_failed(record, str(error))
        raise
    except Exception as error:
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
        sentence = _out_of_memory(record, settings) if is_memory else f"{type(error).__name__}: {error}"
        _tell_failed(record, sentence)
        if not is_memory:
            raise
        raise MachineError(sentence) from error


def _tell_failed(record: Journal, sentence: str) -> None:
    try:
        record.tell("failed", error=sentence)
    except LaceError:
        pass  # a disk that is full for a checkpoint is full for run.json too; the first error is the one to tell


def _out_of_memory(record: Journal, settings: Config) -> str:
    """The sentence with the next three settings to try, those that help most first."""
    used = ""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        used = f" ({torch.cuda.max_memory_reserved() / GIB:.1f} of {total / GIB:.1f} GB)"
    batch, resolution = int(settings.train_batch_size), int(settings.resolution)
    smaller = next((side for side in (1024, 768, 512) if side < resolution), resolution // 2)
    advice = [
        "gradient_checkpointing full" if settings.gradient_checkpointing != "full" else "",
        f"train_batch_size 1 with gradient_accumulation_steps {batch * int(settings.gradient_accumulation_steps)}"
        if batch > 1
        else "",
        f"resolution {smaller}",
        "lora_targets attention" if settings.lora_targets != "attention" else "",
        f"rank {max(4, settings.rank // 2)}" if settings.rank > 4 else "",
        "a GPU with more memory",
    ]
    best = [one for one in advice if one][:3]
    where = f"at step {len(record.losses) + 1}" if record.facts["state"] == "running" else "before the first step"
    what = "The GPU" if torch.cuda.is_available() else "This computer"
    return f"{what} ran out of memory {where}{used}. Next to try: {', '.join(best[:-1])}, or {best[-1]}."


def _printer(record: Journal, say: Say) -> Callable[[Step], None]:
    """Progress as a few aligned lines, whatever the length of the run."""

    def show(step: Step) -> None:
        every = max(1, -(-step.total // (LINES_A_RUN - 2)))
        if step.number not in (1, step.total) and step.number % every:
            return
        memory = f"  {torch.cuda.max_memory_allocated() / GIB:.1f} GB" if torch.cuda.is_available() else ""
        left = record.seconds_left(step.number, step.total)
        remaining = f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"
        width = len(str(step.total))
        say(
            f"step {step.number:>{width}}/{step.total}  loss {record.recent_loss():.4f}  "
            f"{record.seconds_a_step():.2f} s/step{memory}  {remaining}"
        )

    return show


def _seed(*place: int | str) -> int:
    """A seed below 2**31 that depends on its place only."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, place)).encode()).digest()[:4], "big") >> 1
