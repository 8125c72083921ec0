"""Draw a sheet of new designs with a run's adapter: every picture once, refined, and the unrefined one beside it.

What decides the pictures comes from the adapter and the settings; how they are drawn stands in stages, how they are
kept in sheet. A cut-off loses at most one batch of one stage.

B batch · C latent channels (4) · H,W latent cells (px/8)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lace_lora import adapter as adapters
from lace_lora import counting, journal, presets, queries, sheet, stages, stopping
from lace_lora.config import Config
from lace_lora.errors import ModelError, RunError
from lace_lora.families import folders
from lace_lora.families import sdxl as family
from lace_lora.families import vae as other_vae
from lace_lora.families.folders import identity
from lace_lora.file_names import public_name as public_name
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder, SheetFolder
from lace_lora.sampling import Refining, Sampling, make_scheduler, refiner_begin
from lace_lora.sheet import Generation as Generation

# Pictures that pass through all stages together. Each model is loaded once a group: once in all for any usual sheet,
# and for a sheet of 100,000 the encoded prompts and latents still fit in memory and on the disk.
GROUP = 240
UNET = ["unet"]
DRAWN, REFINED = "drawn", "refined"  # stages that leave latents

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A sheet that is being made: with what, where, and which pictures in which batches."""

    base_model: str
    refiner_model: str
    vae_model: str | None
    lora: adapters.Adapter
    lora_scale: float
    sampling: Sampling
    refining: Refining | None
    dtype: torch.dtype
    device: str
    folder: SheetFolder
    pictures: tuple[Generation, ...]
    batches: tuple[tuple[int, ...], ...]

    def batch(self, number: int, *, for_refiner: bool = False) -> stages.Batch:
        """A batch as the stages take it, in the words of the base or of the refiner."""
        rows = [self.pictures[index] for index in self.batches[number]]
        prompts = tuple(row.refiner_prompt if for_refiner else row.prompt for row in rows)
        negatives, seeds = tuple(row.negative_prompt for row in rows), tuple(row.seed for row in rows)
        return stages.Batch(prompts, negatives, seeds, rows[0].width, rows[0].height)


def run(config: Config, *, say: Say = print, show: Callable[[Generation], None] | None = None) -> list[Generation]:
    """Make the sheet that the settings ask for; called again, make what is missing of it.

    show     called with each picture as soon as its files are written
    returns  the finished pictures in order; fewer than asked for when it was stopped (Ctrl-C, the stop button, SIGTERM)

    Raises AdapterError where nothing was trained yet, and ModelError, SettingsError, MachineError or RunError with what
    to do; what is finished stays.
    """
    # What is asked for, and what of it is there already.
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settled = presets.settle(config, machine)
    if settled.banner:
        say(settled.banner)
    job = prepare(settled.config, machine, say)
    finished = sheet.read_finished(job.folder, job.pictures)
    missing = len(job.pictures) - len(finished)
    if missing:  # the page of a run that was stopped, which must not be taken for that of the whole sheet
        job.folder.contact_sheet.unlink(missing_ok=True)
    say(f"sheet     {job.folder.root}: {len(job.pictures)} pictures, {missing} to make")

    # Every stage for all that is missing, a group of batches at a time.
    try:
        with stopping.on_request(say, "Stopping after this batch; stop again to stop at once.") as stop:
            for group in _groups(job, finished):
                for generation in _make(job, group, finished, stop, say):
                    finished[generation.index] = generation
                    if show is not None:
                        show(generation)
    except KeyboardInterrupt:  # the second request, or one where Python delivers no signals
        say("Stopped at once; the batch in hand is lost.")

    # The sheet as a whole.
    done = [finished[index] for index in sorted(finished)]
    if len(done) < len(job.pictures):
        if done:
            sheet.write_contact_sheet(job.folder, done)
        say(f"Stopped with {len(done)} of {len(job.pictures)} pictures finished. Run the same again to go on.")
    elif missing or not job.folder.contact_sheet.is_file():
        sheet.close(job.folder, done)
        say(f"finished  {len(done)} pictures; all on one page: {job.folder.contact_sheet}")
    return done


def compare(
    config: Config, prompt: str, seeds: Sequence[int], *, say: Say = print
) -> tuple[list[Image.Image], list[Image.Image]]:
    """One prompt, as it is, at the same seeds by the base model alone and with the LoRA: (base, LoRA), unrefined."""
    return compare_all(config, [prompt], seeds, say=say)[0]


def compare_all(
    config: Config, prompts: Sequence[str], seeds: Sequence[int], *, say: Say = print
) -> list[tuple[list[Image.Image], list[Image.Image]]]:
    """The same for several prompts, one pair each, with every model loaded once for all. Writes nothing."""
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settings = presets.settle(config, machine).config
    lora = adapters.load(RunFolder.of(settings).root)
    base_model = _base_model(settings, lora, say)
    precision, _ = machine.precision(settings.mixed_precision)
    dtype, device = stages.DTYPES[precision], machine.device

    # Every prompt at every seed, without and with the LoRA.
    asked = [(prompt, seed) for prompt in prompts for seed in seeds]
    told, drawn_from = [prompt for prompt, _ in asked], [seed for _, seed in asked]
    width, height = _size(settings, lora, base_model)
    count, negatives = stages.batch_size(base_model, width, height, machine), [settings.negative_prompt] * len(asked)
    batches = stages.in_batches(told, negatives, drawn_from, width, height, count)
    sampled = Sampling(settings.scheduler, settings.num_inference_steps, settings.guidance_scale)
    latents: list[Tensor] = []
    words: stages.Words = {}
    for lora_scale in (0.0, settings.lora_scale):
        if not words or lora.changes_text:
            with_text = lora if lora_scale and lora.changes_text else None
            words = stages.encode_prompts(
                base_model, stages.texts_of(batches), lora=with_text, lora_scale=lora_scale, dtype=dtype, device=device
            )
        say(f"drawing {len(asked)} pictures with lora_scale {lora_scale:g}")
        for drawn in stages.denoise(
            base_model, batches, words, sampled, lora=lora, lora_scale=lora_scale, dtype=dtype, device=device
        ):
            latents += drawn.finished_BCHW

    # Pictures, in pairs.
    named = zip([f"{prompt!r} with seed {seed}" for prompt, seed in asked * 2], latents, strict=True)
    images = list(stages.decode(base_model, named, device=device, vae_model=settings.vae_model))
    base, styled = images[: len(asked)], images[len(asked) :]
    cuts = [slice(start, start + len(seeds)) for start in range(0, len(asked), len(seeds))]
    return [(base[cut], styled[cut]) for cut in cuts]


# -- what is asked for --


def prepare(config: Config, machine: Machine, say: Say = print) -> Job:
    """Everything that decides the pictures, checked before a model is loaded; afterwards the request is on the disk.

    What was learnt (base model, concept token, class words, size) is read from the adapter, never from the settings.
    """
    run = RunFolder.of(config)
    lora = adapters.load(run.root)
    refiners = [config.refiner_model] if config.refine != "none" else []
    for line in [line for model in (lora.facts.base_model, *refiners) for line in folders.fetch_notice(model)]:
        say(line)
    base_model = _base_model(config, lora, say)
    refining, refiner_model = _refining(config, base_model)
    precision, why = machine.precision(config.mixed_precision)
    say(f"drawing   with {public_name(base_model)} and the adapter of {run.name} in {why}")
    if not lora.is_complete:
        say(f"! This adapter's training was stopped at step {lora.facts.step}; lace-lora train goes on with it.")

    wanted = _pictures(config, lora, base_model, refiner_model, precision, say)
    texts = dict.fromkeys(text for one in wanted for text in (one.prompt, one.negative_prompt))
    tokenizers = family.load_tokenizers(base_model)
    for line in queries.too_long({text: end for text in texts if (end := family.words_cut(tokenizers, text))}):
        say(line)
    models = [
        text for model in (base_model, refiner_model) if model for text in (identity(model), identity(model, UNET))
    ]
    models += [other_vae.identity(config.vae_model)] if config.vae_model else []
    folder, placed = sheet.place(run, config.sheet_name, wanted, models)
    count = stages.batch_size(base_model, placed[0].width, placed[0].height, machine)
    return Job(
        base_model=base_model,
        refiner_model=refiner_model,
        vae_model=config.vae_model,
        lora=lora,
        lora_scale=config.lora_scale,
        sampling=Sampling(config.scheduler, config.num_inference_steps, config.guidance_scale),
        refining=refining,
        dtype=stages.DTYPES[precision],
        device=machine.device,
        folder=folder,
        pictures=tuple(placed),
        batches=sheet.batches_of(folder, len(placed), count),
    )


def _base_model(config: Config, lora: adapters.Adapter, say: Say) -> str:
    """The model that the adapter was made for; the one that the settings name only where that is not to be found."""
    made_for, named = lora.facts.base_model, config.pretrained_model
    if not lora.facts.versions:  # another trainer's file, which does not say what it was made for
        return named
    is_named, is_same = "pretrained_model" in config.given, public_name(made_for) == public_name(named)
    try:
        family.model_folder(made_for)
    except ModelError as error:
        if not is_named:
            advice = "The adapter was made for it; set pretrained_model to where it lies now."
            raise ModelError(f"{error} {advice}") from error
        if not is_same:
            say(f"! The adapter was made for {made_for}, which is not to be found; drawing with {named}.")
        return named
    if is_named and not is_same:
        say(f"! The adapter was made for {made_for}; that is used, not pretrained_model {named}.")
    return made_for


def _refining(config: Config, base_model: str) -> tuple[Refining | None, str]:
    """How to refine, and with which model; what cannot work is refused before the refiner is fetched."""
    if config.refine == "none":
        return None, ""
    refining = Refining(config.refine, config.refiner_start, config.refine_strength)
    scheduler = make_scheduler(config.scheduler, base_model, config.num_inference_steps)
    refiner_begin(scheduler, config.num_inference_steps, refining)
    stages.check_pair(base_model, config.refiner_model)
    return refining, config.refiner_model


def _size(config: Config, lora: adapters.Adapter, base_model: str) -> tuple[int, int]:
    """Width and height: as set, else the side that the adapter learnt, else the base model's own."""
    side = lora.facts.resolution or family.layout(base_model).side_px
    return config.width or side, config.height or side


def _instance_prompt(config: Config, lora: adapters.Adapter) -> str:
    """What is drawn where no prompts are set: the instance prompt that is set, else the one that was learnt."""
    is_set = "instance_prompt" in config.given or not lora.facts.instance_prompt
    return config.instance_prompt if is_set else lora.facts.instance_prompt


def _pictures(
    config: Config, lora: adapters.Adapter, base_model: str, refiner_model: str, precision: str, say: Say
) -> list[Generation]:
    """Every picture asked for, in order; its files by name only, since the sheet is not chosen yet."""
    token = lora.facts.concept_token or config.concept_token
    asked = queries.shared_out(
        config.prompts or (_instance_prompt(config, lora),),
        config.num_images,
        seed=config.seed,
        negative_prompt=config.negative_prompt,
        concept_token=token,
        other_token=config.concept_token,
        class_prompt=lora.facts.class_prompt or config.class_prompt,
        say=say,
    )
    width, height = _size(config, lora, base_model)
    nowhere, digest, versions = SheetFolder(Path()), lora.digest, journal.versions()
    return [
        Generation(
            index=index,
            prompt=query.prompt,
            refiner_prompt=query.refiner_prompt,
            negative_prompt=query.negative_prompt,
            seed=query.seed,
            num_inference_steps=config.num_inference_steps,
            scheduler=config.scheduler,
            guidance_scale=config.guidance_scale,
            refine=config.refine,
            refiner_start=config.refiner_start if config.refine == "ensemble" else None,
            refine_strength=config.refine_strength if config.refine == "img2img" else None,
            width=width,
            height=height,
            lora_scale=config.lora_scale,
            concept_token=token,
            adapter_digest=digest,
            pretrained_model=public_name(base_model),
            refiner_model=public_name(refiner_model) if refiner_model else None,
            precision=precision,
            base=nowhere.base(index, config.image_format),
            refined=nowhere.refined(index, config.image_format) if refiner_model else None,
            versions=versions,
        )
        for index, query in enumerate(asked)
    ]


# -- making it --


def _groups(job: Job, finished: dict[int, Generation]) -> Iterator[list[int]]:
    """The numbers of batches with something missing, as many at a time as make GROUP pictures."""
    waiting = [number for number, batch in enumerate(job.batches) if any(index not in finished for index in batch)]
    at_once = max(1, GROUP // max(len(batch) for batch in job.batches))
    for start in range(0, len(waiting), at_once):
        yield waiting[start : start + at_once]


def _make(
    job: Job, group: list[int], finished: dict[int, Generation], stop: stopping.Stop, say: Say
) -> Iterator[Generation]:
    """One group of batches through all stages: encode, draw, refine, decode; what a stage left before is taken up."""
    to_draw = [number for number in group if sheet.kept(job.folder, DRAWN, number) is None]
    to_refine = [number for number in group if job.refining and sheet.kept(job.folder, REFINED, number) is None]
    told = [job.batch(number) for number in to_draw] + [job.batch(number, for_refiner=True) for number in to_refine]
    # Where the adapter changed how prompts are read, the base's are read with it and the refiner's without.
    ways = [told] if not job.lora.changes_text else [told[: len(to_draw)], told[len(to_draw) :]]
    words = [_read(job, batches, place == 0) for place, batches in enumerate(ways) if batches or place == 0]
    if to_draw:
        _draw(job, to_draw, words[0], stop, say)
    if to_refine and not stop.asked:
        _refine(job, to_refine, words[-1], stop, say)
    del words
    if not stop.asked:
        yield from _decode(job, group, finished, stop, say)
    if not stop.asked:
        for stage in (DRAWN, REFINED):
            for number in group:
                sheet.forget(job.folder, stage, number)


def _read(job: Job, batches: list[stages.Batch], with_lora: bool) -> stages.Words:
    """Prompts and negative prompts of some batches, encoded; nothing is loaded for none."""
    if not batches:
        return {}
    lora, texts = job.lora if with_lora and job.lora.changes_text else None, stages.texts_of(batches)
    return stages.encode_prompts(
        job.base_model, texts, lora=lora, lora_scale=job.lora_scale, dtype=job.dtype, device=job.device
    )


def _draw(job: Job, numbers: list[int], words: stages.Words, stop: stopping.Stop, say: Say) -> None:
    """Base UNet with the LoRA: every batch once, its latents kept on the disk."""
    batches = stop.until(job.batch(number) for number in numbers)
    drawing = stages.denoise(
        job.base_model,
        batches,
        words,
        job.sampling,
        refining=job.refining,
        lora=job.lora,
        lora_scale=job.lora_scale,
        dtype=job.dtype,
        device=job.device,
    )
    tell = counting.lines(say, "drawn", sum(len(job.batches[number]) for number in numbers))
    for drawn, number in zip(drawing, numbers, strict=False):  # drawing first: it ends, and gives its model back
        both = {"finished": drawn.finished_BCHW, "handed_over": drawn.handed_over_BCHW}
        sheet.keep(job.folder, DRAWN, number, {name: tensor for name, tensor in both.items() if tensor is not None})
        tell(len(job.batches[number]))


def _refine(job: Job, numbers: list[int], words: stages.Words, stop: stopping.Stop, say: Say) -> None:
    """Refiner UNet: every batch once, its latents kept on the disk."""
    assert job.refining is not None
    begin_with = "handed_over" if job.refining.mode == "ensemble" else "finished"
    work = (
        (job.batch(number, for_refiner=True), _left(job, DRAWN, number)[begin_with]) for number in stop.until(numbers)
    )
    refining = stages.refine(
        job.refiner_model,
        work,
        words,
        job.sampling,
        job.refining,
        base_model=job.base_model,
        dtype=job.dtype,
        device=job.device,
    )
    tell = counting.lines(say, "refined", sum(len(job.batches[number]) for number in numbers))
    for finished_BCHW, number in zip(refining, numbers, strict=False):
        sheet.keep(job.folder, REFINED, number, {"finished": finished_BCHW})
        tell(len(job.batches[number]))


def _decode(
    job: Job, group: list[int], finished: dict[int, Generation], stop: stopping.Stop, say: Say
) -> Iterator[Generation]:
    """VAE: both pictures of every one that is missing, written as they come."""
    places = [(number, row, index) for number in group for row, index in enumerate(job.batches[number])]
    missing = [place for place in places if place[2] not in finished]

    def work() -> Iterator[tuple[str, Tensor]]:
        for number, row, index in stop.until(missing):
            yield job.pictures[index].base.name, _left(job, DRAWN, number)["finished"][row]
            if job.refining is not None:
                yield job.pictures[index].path.name, _left(job, REFINED, number)["finished"][row]

    images = stages.decode(job.base_model, work(), device=job.device, vae_model=job.vae_model)
    tell = counting.lines(say, "picture", len(job.pictures), len(finished))
    for _, _, index in missing:
        base = next(images, None)
        if base is None:  # somebody asked to stop
            return
        sheet.add(job.folder, job.pictures[index], base, next(images) if job.refining is not None else None)
        tell(1)
        yield job.pictures[index]


def _left(job: Job, stage: str, number: int) -> dict[str, Tensor]:
    """What a stage left of a batch, which was there a moment ago."""
    left = sheet.kept(job.folder, stage, number)
    if left is None:
        raise RunError(f"What was {stage} of batch {number} is gone from {job.folder.latents}. Run the same again.")
    return left
