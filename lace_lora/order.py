"""An order for a sheet of designs: what decides its pictures, checked before a model is loaded, and what is kept of it.

What was learnt (base model, concept token, class words, size) comes from the adapter, the rest from the settings.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import get_args

import torch
from PIL import Image
from torch import Tensor

from lace_lora import adapter as adapters
from lace_lora import families, finishing, four_bits, queries, repeats, settling, sheet, stages, wanted
from lace_lora.batches import Batch, batch_size, check_pair, check_size
from lace_lora.between_stages import Pictures
from lace_lora.conditions import forces_zeros
from lace_lora.config import Config
from lace_lora.errors import ModelError, PicturesError, SettingsError
from lace_lora.families import folders, known, limits
from lace_lora.families import vae as other_vae
from lace_lora.families.folders import identity
from lace_lora.families.layouts import layout
from lace_lora.file_names import public_name
from lace_lora.finishing import Finishing
from lace_lora.four_bits import Based
from lace_lora.image_files import open_picture
from lace_lora.machine import Machine, Precision
from lace_lora.pictures import parameters_text
from lace_lora.quantize import FourBits
from lace_lora.run_folder import RunFolder, Shard, SheetFolder
from lace_lora.sampling import Refining, Sampling, refiner_begin, start_begin
from lace_lora.sheet import Generation, Placed
from lace_lora.shelf import Shelf
from lace_lora.workplace import Workplace

# Raised by hand when the same request would give other pictures than an earlier version of this code drew.
DRAWING = 1
RANK_AT_MOST = 128  # as the setting has it
LONGEST_JPEG_TEXT = 60_000  # bytes; a JPEG's comment and its EXIF hold 65,533 each

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """A sheet that is being made: with what, where, and which pictures in which batches."""

    run: RunFolder
    base_model: str
    refiner_model: str
    vae_model: str | None
    lora: adapters.Adapter
    lora_scale: float
    sampling: Sampling
    refining: Refining | None
    dtype: torch.dtype
    device: str
    placed: Placed
    at_once: dict[tuple[int, int], int]  # pictures in a batch by width and height
    shard: Shard
    shelf: Shelf
    finishing: Finishing
    packs: bool  # a zip too
    asked_name: str  # of the sheet, which another request may have
    start: Image.Image | None = None  # what every picture begins with
    starts: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # its latents CHW by width and height
    four_bits: FourBits | None = None  # the base in NF4; None as it is

    @property
    def folder(self) -> SheetFolder:
        """Where the sheet is drawn."""
        return self.placed.folder

    @property
    def workplace(self) -> Workplace:
        """Where it is drawn, and where it is kept."""
        return self.placed.workplace

    @property
    def pictures(self) -> tuple[Generation, ...]:
        """All pictures of the sheet, this process's and others'."""
        return self.placed.pictures

    @property
    def batches(self) -> list[Pictures]:
        """What this process draws."""
        return self.placed.batches

    @property
    def own(self) -> frozenset[int]:
        """Numbers of the pictures that this process draws or takes over."""
        return frozenset(chain(self.placed.reused, *self.batches))

    def kept_as(self, stage: str) -> str:
        """The name under which a stage keeps its latents: those of another precision are not taken up."""
        return f"{stage}-{self.pictures[0].precision}{'-nf4' if self.four_bits else ''}"

    @property
    def quantization(self) -> str:
        """Of the base: none or nf4."""
        return "nf4" if self.four_bits else "none"

    def batch(self, numbers: Pictures, *, for_refiner: bool = False) -> Batch:
        """A batch as the stages take it, in the words of the base or of the refiner."""
        rows = [self.pictures[index] for index in numbers]
        prompts = tuple(row.refiner_prompt if for_refiner else row.prompt for row in rows)
        negatives, seeds = tuple(row.negative_prompt for row in rows), tuple(row.seed for row in rows)
        size = rows[0].width, rows[0].height
        return Batch(prompts, negatives, seeds, *size, None if for_refiner else self.starts.get(size))


@dataclass(frozen=True)
class Asked:
    """What the settings ask for, checked and with nothing written: the pictures, and what decides them."""

    config: Config  # as the base model's family can draw by it
    run: RunFolder
    shard: Shard
    lora: adapters.Adapter
    base_model: str
    refiner_model: str
    refining: Refining | None
    precision: Precision
    start: Image.Image | None
    pictures: list[Generation]
    models: list[str]  # texts that tell them apart
    based: Based


def asked(config: Config, machine: Machine, say: Say = print) -> Asked:
    """What is asked for, with the decision whether the base is drawn with in 4 bits: the one that is drawn by.

    What was learnt (base model, concept token, class words, size) is read from the adapter, never from the settings.
    Models that are not here are fetched. Raises as `prepare`, but for a missing package.
    """
    shard = shard_of(config)
    run = RunFolder.of(config)
    lora = adapters.load(run.root)
    for line in fetch_notices(config, lora):
        say(line)
    base_model = base_model_of(config, lora, say)
    config = within_family(config, lora, base_model, say)
    refining, refiner_model = _refining(config, base_model)
    precision, why = machine.precision(config.mixed_precision)
    say(f"drawing   with {public_name(base_model)} and the adapter of {run.name} in {why}")
    if not lora.is_complete:
        say(f"! This adapter's training was stopped at step {lora.facts.step}; lace-lora train goes on with it.")

    begin_with = wanted.start_of(config, run)
    try:
        start = open_picture(begin_with) if begin_with else None
    except PicturesError as error:
        raise SettingsError(f"The picture to begin with (start_picture) will not do: {error}") from error
    pictures, before = wanted.pictures(config, run, lora, wanted.Models(base_model, refiner_model, precision), say)
    both = [base_model, *([refiner_model] if refiner_model else [])]
    _check(config, pictures, both, refining, say)
    models = models_of(both, config.vae_model)
    models += [precision] if config.mixed_precision != "auto" else []  # auto may be finished on another machine
    based = _based(config, run, lora, base_model, pictures, models, machine, shard)
    pictures = [replace(one, quantization=based.quantization) for one in pictures]
    wanted.tell_changes(config, before, pictures, say)
    return Asked(
        config, run, shard, lora, base_model, refiner_model, refining, precision, start, pictures, models, based
    )


def fetch_notices(config: Config, lora: adapters.Adapter) -> list[str]:
    """What is said of models that drawing will fetch first."""
    refiner = known.fetch_notice(config.refiner_model) if config.refine != "none" else ()
    return [*known.fetch_notice(lora.facts.base_model), *refiner]


def prepare(config: Config, machine: Machine, say: Say = print, shelf: Shelf | None = None) -> Order:
    """Everything that decides the pictures, checked before a model is loaded; afterwards the request is on the disk.

    shelf  where models stay between stages; None lets each go after its stage

    Raises MachineError where the package for 4 bits is missing and the sheet is not begun; else it is told once there
    is something to draw (see four_bits).
    """
    found = asked(config, machine, say)
    config, pictures = found.config, found.pictures
    in_bits = four_bits.base(config, found.based, say)
    sizes = {(one.width, one.height) for one in pictures}
    at_once = {size: batch_size(found.base_model, *size, machine) for size in sizes}
    return Order(
        run=found.run,
        base_model=found.base_model,
        refiner_model=found.refiner_model,
        vae_model=config.vae_model,
        lora=found.lora,
        lora_scale=config.lora_scale,
        sampling=sampling_of(config),
        refining=found.refining,
        dtype=stages.DTYPES[found.precision],
        device=machine.device,
        placed=placed(config, found.run, pictures, found.models, at_once, found.shard, say),
        at_once=at_once,
        shard=found.shard,
        shelf=shelf or Shelf(0),
        finishing=Finishing.of(config),
        packs=config.zip,
        asked_name=config.sheet_name,
        start=found.start,
        four_bits=in_bits,
    )


def based_on(config: Config, lora: adapters.Adapter, base_model: str, size: tuple[int, int], machine: Machine) -> Based:
    """In what the base is drawn with: in 4 bits where that is set, or where it would not fit as it is.

    size  of the largest picture, px
    """
    return Based(*settling.drawn_in(as_drawn(config, lora, base_model, size), machine))


def as_drawn(config: Config, lora: adapters.Adapter, base_model: str, size: tuple[int, int]) -> Config:
    """The settings with the LoRA's base model and shape and the size of what is drawn: as they are planned for."""
    rank = min(lora.facts.rank, RANK_AT_MOST)  # one that was trained elsewhere may be larger
    shape = {"rank": rank, "lora_targets": _targets_of(lora.facts) or config.lora_targets}
    return config.with_preset(shape | {"pretrained_model": base_model, "width": size[0], "height": size[1]})


def _targets_of(facts: adapters.AdapterFacts) -> str | None:
    """The kind of targets that a LoRA has, as the setting calls it; None for one of another kind."""
    family = families.named(facts.family)
    for kind in get_args(Config.model_fields["lora_targets"].annotation):
        with suppress(SettingsError):  # a kind that this family has not
            if tuple(family.lora_targets(kind)) == tuple(facts.lora_targets):
                return str(kind)
    return None


def largest(pictures: Sequence[Generation]) -> tuple[int, int]:
    """Width and height of the largest, px."""
    return max(((one.width, one.height) for one in pictures), key=lambda size: size[0] * size[1])


def _based(
    config: Config, run: RunFolder, lora: adapters.Adapter, base_model: str, pictures: Sequence[Generation],
    models: Sequence[str], machine: Machine, shard: Shard,
) -> Based:  # fmt: skip
    """What the pictures are drawn with: the base as it is, or in 4 bits.

    Where that is left open, a sheet is finished as it was begun, whatever the plan would choose on this machine.
    """
    drawn_in = _place_of(config, run, shard, lambda line: None)

    def is_begun(quantization: str) -> bool:
        so = [replace(one, quantization=quantization) for one in pictures]
        return sheet.is_begun(run, config.sheet_name, so, models, drawn_in)

    planned = based_on(config, lora, base_model, largest(pictures), machine)
    if is_begun(planned.quantization):
        return replace(planned, is_begun=True)
    other = "none" if planned.quantization == "nf4" else "nf4"
    return Based(other, four_bits.BEGUN, True) if config.quantization == "auto" and is_begun(other) else planned


def _place_of(config: Config, run: RunFolder, shard: Shard, say: Say) -> Callable[[SheetFolder], Workplace]:
    """In which place a sheet of the run is drawn, by its folder."""

    def drawn_in(kept: SheetFolder) -> Workplace:
        if shard.of > 1:
            return Workplace.at(kept, say)
        return Workplace.of(run, kept, config.drive_mount_path, config.cache_dir, say)

    return drawn_in


def placed(
    config: Config, run: RunFolder, pictures: Sequence[Generation], models: Sequence[str],
    at_once: dict[tuple[int, int], int], shard: Shard, say: Say,
) -> Placed:  # fmt: skip
    """The sheet with its place: one on Drive is drawn on this machine, unless nothing is to be made or many share it.

    Several processes see what the others have finished in the folder itself.
    """
    drawn_in = _place_of(config, run, shard, say)
    placed = sheet.place(run, config.sheet_name, pictures, models, at_once, shard, drawn_in)
    kept = placed.workplace.kept
    is_there = placed.workplace.is_apart and not placed.folder.root.is_dir()
    if is_there and finishing.is_finished(kept, sheet.lying_in(kept, pictures), Finishing.of(config), config.zip):
        return placed.lying_in(Workplace.at(kept, say))
    return placed


def models_of(models: Sequence[str], vae_model: str | None) -> list[str]:
    """Texts that differ wherever the models would draw other pictures, and wherever this code would."""
    told = [f"drawing {DRAWING}"]
    for model in models:
        # Its noise schedule counts too: a corrected one draws other pictures.
        told += [identity(model), identity(model, [layout(model).denoiser, "scheduler"])]
        told += [f"zeros for an empty prompt: {forces_zeros(model)}"]
    return told + ([other_vae.identity(vae_model)] if vae_model else [])


def _check(
    config: Config, pictures: Sequence[Generation], models: Sequence[str], refining: Refining | None, say: Say
) -> None:
    """Refuse sizes that do not join or cannot be finished, and say what prompts lose, before anything is loaded."""
    step = math.lcm(*(layout(model).pixel_step for model in models))
    for width, height in dict.fromkeys((one.width, one.height) for one in pictures):
        check_size(models[0], width, height)
        repeats.check_size(config.repeat, width, height, step)
        Finishing.of(config).check(config.repeat, (width, height))
    if pictures[0].start_digest is not None:
        handover = 0
        if refining is not None and refining.mode == "ensemble":
            handover = refiner_begins(config, models[0], refining)
        start_begin(sampling_of(config), handover)
    if config.image_format == "jpg":
        for one in pictures:
            if max(len(json.dumps(one.row(), default=str)), 2 * len(parameters_text(one.row()))) > LONGEST_JPEG_TEXT:
                raise SettingsError(
                    f"A prompt of {len(one.prompt):,} characters is too long to be kept in a JPEG: {one.prompt[:60]!r} "
                    "… Shorten it, or set image_format to png."
                )
    texts = dict.fromkeys(text for one in pictures for text in (one.prompt, one.negative_prompt))
    reader = families.reader(models[0])
    for line in queries.too_long(reader.cut_of(texts), reader.fits):
        say(line)


def shard_of(config: Config) -> Shard:
    """Which part of the sheet is this process's."""
    number, of = map(int, (config.shard or "1/1").split("/"))
    if not 1 <= number <= of:
        raise SettingsError(
            f"shard is {config.shard}, but of {of} processes the first is 1/{of} and the last {of}/{of}."
        )
    return Shard(number, of)


def base_model_of(config: Config, lora: adapters.Adapter, say: Say) -> str:
    """The model that the adapter was made for; the one that the settings name only where that is not to be found."""
    made_for, named = lora.facts.base_model, config.pretrained_model
    if not lora.facts.versions:  # another trainer's file, which does not say what it was made for
        return named
    is_named, is_same = "pretrained_model" in config.given, public_name(made_for) == public_name(named)
    try:
        folders.model_folder(made_for)
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


def within_family(config: Config, lora: adapters.Adapter, base_model: str, say: Say) -> Config:
    """The settings as the base model's family can draw by them, saying what is changed.

    Raises SettingsError for what a person asked for and the family cannot do, ModelError where the LoRA is of another.
    """
    family = families.family_of(base_model)
    if lora.facts.family != family:
        made_for, found = (families.FAMILIES[one] for one in (lora.facts.family, family))
        raise ModelError(f"The adapter was made for {made_for}, and {base_model} is {found}. Set pretrained_model.")
    within, lines = limits.within(config, family, limits.DRAWING)
    for line in lines:
        say(line)
    return within


def _refining(config: Config, base_model: str) -> tuple[Refining | None, str]:
    """How to refine, and with which model; what cannot work is refused before the refiner is fetched."""
    if config.refine == "none":
        return None, ""
    refining = Refining(config.refine, config.refiner_start, config.refine_strength)
    refiner_begins(config, base_model, refining)
    check_pair(base_model, config.refiner_model)
    return refining, config.refiner_model


def refiner_begins(config: Config, base_model: str, refining: Refining) -> int:
    """The step at which the refiner begins; the schedule of a base that has one does not depend on the size.

    Raises SettingsError where the refiner would have no step, or the base none.
    """
    steps = config.num_inference_steps
    scheduler = families.of(base_model).make_sampler(config.scheduler, base_model, steps, (0, 0))
    return refiner_begin(scheduler, steps, refining)


def sampling_of(config: Config) -> Sampling:
    """How the settings draw."""
    return Sampling(
        config.scheduler, config.num_inference_steps, config.guidance_scale, config.guidance_until,
        config.start_strength, config.repeat, config.repeat_from,
    )  # fmt: skip
