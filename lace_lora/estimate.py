"""What a run needs on this machine, how long it takes, and the settings that are left to the plan. Arithmetic only.

What a model takes was counted on its architecture (coefficients), what a machine does stands in a table of which each
row says whether it was measured (throughput). Nothing here loads torch, so that a form can plan at every change.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from lace_lora import (
    coefficients,
    demo,
    experience,
    fitting,
    own_folders,
    plans,
    presets,
    stage_needs,
)
from lace_lora.config import Config
from lace_lora.data_utils import count_pictures, create_annotations
from lace_lora.errors import MachineError
from lace_lora.experience import NOTHING, Experience
from lace_lora.families import folders
from lace_lora.machine import GIB, Machine, models_folder
from lace_lora.plans import Caution as Caution
from lace_lora.plans import Choice as Choice
from lace_lora.plans import Plan as Plan
from lace_lora.plans import side_by_side as side_by_side
from lace_lora.stage_needs import Job

PICTURES_AN_UPDATE = 4  # make its direction steady
SIDES = (1024, 768, 512)  # tried from the model's own downwards where nothing else makes it fit


def prepare(config: Config, machine: Machine | None = None, say: Callable[[str], None] = print) -> Plan:
    """Settle a run: apply the preset, draw the demo's pictures where the demo wants them, count pictures, plan.

    What earlier runs on this machine took is read here, once, and kept in the plan.

    Raises PicturesError or SettingsError where the folder or a setting cannot be used; and the errors of
    own_folders.make, which makes missing folders where that is wanted.
    """
    machine = machine or Machine.here(config.drive_mount_path, config.lora_output_dir)
    settled = presets.settle(config, machine)
    settings = settled.config
    # Only into the demo's own folder, and again where a cut left it half: annotations.txt is written last.
    if presets.draws_its_own(settled) and not (Path(settings.images_dir) / "annotations.txt").is_file():
        from lace_lora.demo.draw import write_lace_folder

        say(f"Drawing the demo's pictures of lace into {settings.images_dir} …")
        drawn = write_lace_folder(Path(settings.images_dir))
        captions: dict[str | Path, str] = {path: f"{settings.instance_prompt} {caption}" for path, caption in drawn}
        create_annotations(settings.images_dir, settings.instance_prompt, settings.image_types, captions)
    with own_folders.answering(settings):
        own_folders.make(settings, say)
        pictures = count_pictures(settings.images_dir, set(settings.image_types))
        known = experience.read(settings.cache_dir, machine, settings.lora_output_dir)
    return plan(settled, machine, pictures, known)


def for_looking(config: Config, say: Callable[[str], None] = print) -> Config:
    """The settings under which photographs are looked at and captioned: a person's own are judged for SDXL.

    Without a GPU the demo's miniature learns at 96 px, at which no photograph is too small; but she looks through her
    photographs on such a machine for the training on another one. Raises as `prepare`.
    """
    settled = presets.settle(config, Machine.here(config.drive_mount_path, config.lora_output_dir))
    found = prepare(config, say=say).config
    is_judged_for_sdxl = settled.preset == "demo" and not presets.draws_its_own(settled)
    if is_judged_for_sdxl and "resolution" in settled.reasons:
        return found.with_preset({"resolution": SIDES[0] if config.resolution == "auto" else config.resolution})
    return found


def again(earlier: Plan, settings: Config, gradient_checkpointing: str) -> Plan:
    """The plan once more, for settings that a run keeps from its first session, maybe on another GPU.

    gradient_checkpointing  as it was asked for: auto is chosen anew, for what really runs here
    """
    free = settings.with_preset({"gradient_checkpointing": gradient_checkpointing})
    settled = presets.Settled(free, earlier.preset, earlier.preset_why, {}, earlier.banner)
    return plan(settled, earlier.machine, earlier.pictures, earlier.known)


def plan(settled: presets.Settled, machine: Machine, pictures: int, known: Experience = NOTHING) -> Plan:
    """Fill in what is still `auto`, each with its reason, and say what every stage will need.

    known  what earlier runs took, which corrects times and memory where they were on such a machine

    What a person wrote is never changed; what it costs is said. Reads no file of a run: it is asked at every change.
    """
    choosing = _Choosing(settled, machine, pictures, known)
    choosing.settle()
    job = choosing.job()
    stages = stage_needs.stages(job)
    training = next(stage for stage in stages if stage.name == "train")
    misfits = tuple(fitting.misfits(stages, machine))
    return Plan(
        config=job.config,
        machine=machine,
        preset=settled.preset,
        preset_why=settled.why,
        banner=settled.banner,
        pictures=pictures,
        choices=tuple(choosing.choices),
        precision=job.precision,
        vram_gb=training.memory_gb,
        minutes=training.minutes,
        warnings=_warnings(job, misfits),
        may_save_memory=choosing.may_save_memory,
        stages=stages,
        misfits=misfits,
        is_counted=job.model.is_counted,
        encoded_gb=stage_needs.encoded_bytes(job) / GIB,
        downloads=tuple(one for one in stage_needs.downloads(job.config, job.model) if not _is_here(one[0])),
        remarks=(*_remarks(job), *choosing.costs()),
        elsewhere=plans.elsewhere(job),
        known=known,
    )


def refusal(found: Plan, stages: tuple[str, ...] = fitting.TRAINING) -> str | None:
    """Why the plan's named stages cannot begin, with three changes that would fit; None where nothing speaks against.

    Only what was counted on this very architecture is refused, and only into memories whose size is known; must_fit
    false lets a person try all the same. Of the computer's memory only what was counted refuses: what Python and its
    libraries hold of it is an estimate, so that a computer that is short by less is warned (see Plan.warnings).
    """
    misfits = [one for one in found.misfits if one.stage in stages and _is_sure(one, found.machine)]
    if not misfits or not found.is_counted or not found.config.must_fit:
        return None
    job = found.job
    last = "To begin all the same, because this machine may do better than the plan thinks: must_fit false."
    return f"{fitting.sentence(misfits[0], found.machine, fitting.changes(job, stages, misfits[0].memory))}\n{last}"


def _is_sure(misfit: fitting.Misfit, machine: Machine) -> bool:
    counted = misfit.needs_gb - (stage_needs.PROGRAM_GIB[machine.device] if misfit.memory == fitting.RAM else 0.0)
    return counted > misfit.has_gb * fitting.SPARE


def check_fits(found: Plan, stages: tuple[str, ...] = fitting.TRAINING) -> None:
    """Raises MachineError with the refusal, before anything is loaded or fetched."""
    words = refusal(found, stages)
    if words:
        raise MachineError(words)


def check_drawing(config: Config, machine: Machine) -> Plan:
    """The same for new designs, before their models are loaded; returns their plan.

    config  settled, its numbers may still be auto; its base model and sizes are those that will be drawn with
    """
    found = plan(presets.Settled(config, "none", "as set", {}), machine, 1)
    check_fits(found, fitting.DRAWING)
    return found


# -- choosing --


@dataclass
class _Choosing:
    """Settings on their way from auto to numbers."""

    settled: presets.Settled
    machine: Machine
    pictures: int
    known: Experience

    def __post_init__(self) -> None:
        self.config = self.settled.config
        self.choices = [Choice(name, getattr(self.config, name), why) for name, why in self.settled.reasons.items()]
        self.as_set = self.config.given - set(self.settled.reasons)
        self.may_save_memory = self.config.gradient_checkpointing == "auto"
        self.model = coefficients.of(self.config.pretrained_model)
        self.native_px = _native_side(self.config.pretrained_model)
        self.precision, self.why_precision = self.machine.precision(self.config.mixed_precision)

    def settle(self) -> None:
        """All choices, in the order in which they depend on each other."""
        if self.config.optimizer.endswith("8bit") and importlib.util.find_spec("bitsandbytes") is None:
            self._put("optimizer", "adamw", self._without_8bit())
        self._choose("mixed_precision", {"fp32": "no"}.get(self.precision, self.precision), self.why_precision)
        self._choose("resolution", *self._resolution())
        self._choose("train_batch_size", *self._batch())
        self._processes()
        for name, value, why in self._memory():
            self._choose(name, value, why)
        self._samples()
        config = self.config
        seen = self.pictures * config.dataset_repeats * config.num_train_epochs
        steps = max(1, ceil(seen / stage_needs.pictures_an_update(config)))
        self._choose("max_train_steps", steps, f"{config.num_train_epochs} passes over {self.pictures} pictures")

    def job(self, **changes: object) -> Job:
        """What is settled so far; what is still auto counts as its least."""
        least = {"resolution": self.native_px, "train_batch_size": 1, "gradient_accumulation_steps": 1,
                 "max_train_steps": 1, "num_processes": 1, "gradient_checkpointing": "none",
                 "quantization": "none"}  # fmt: skip
        open_ones = {name: value for name, value in least.items() if getattr(self.config, name) == "auto"}
        values = open_ones | changes
        config = self.config.with_preset(values) if values else self.config
        return Job(config, self.pictures, self.machine, self.precision, self.model, self.known)

    def costs(self) -> list[str]:
        """What a person's own settings cost against what would have been chosen, a sentence each."""
        now, found = self.job(), []
        if "resolution" in self.as_set and self.config.resolution != self.native_px:
            share = stage_needs.picture_flop(now) / stage_needs.picture_flop(self.job(resolution=self.native_px))
            found.append(f"resolution {self.config.resolution}, as set: {_times(share)} the work of {self.native_px}")
        mode = str(self.config.gradient_checkpointing)
        if "gradient_checkpointing" in self.as_set and mode != "none":
            without = self.job(gradient_checkpointing="none")
            more = stage_needs.picture_flop(now) / stage_needs.picture_flop(without) - 1
            needless = ", and everything would fit without" if fitting.has_room(without, ("train",)) else ""
            found.append(f"gradient_checkpointing {mode}, as set: {more:.0%} more work{needless}")
        if "quantization" in self.as_set and self.config.quantization == "nf4":
            plain, small = stage_needs.train(self.job(quantization="none")), stage_needs.train(now)
            slower = f"{small.seconds / plain.seconds - 1:.0%} more time, " if small.seconds and plain.seconds else ""
            saved = plain.weights_gb - small.weights_gb
            found.append(f"quantization nf4, as set: {slower}{saved:.1f} GB less memory, the base a little coarser")
        if self.config.mixed_precision == "no" and "mixed_precision" in self.as_set and self.machine.gpu_name:
            more_gb = self.model.weight_bytes("unet", 2) / GIB
            found.append(f"mixed_precision no, as set: {more_gb:.1f} GB more for the base, and no fast units are used")
        return found

    def _choose(self, name: str, value: object, why: str) -> None:
        if getattr(self.config, name) == "auto":
            self._put(name, value, why)

    def _put(self, name: str, value: object, why: str) -> None:
        self.config = self.config.with_preset({name: value})
        self.choices = [one for one in self.choices if one.setting != name] + [Choice(name, value, why)]

    def _resolution(self) -> tuple[int, str]:
        """The model's own side, or the next smaller one that fits with all that saves memory."""
        is_free = self.config.resolution == "auto" and self.model.is_counted
        sides = [self.native_px, *(side for side in SIDES if side < self.native_px and is_free)]
        fitting_ones = (side for side in sides if self._fitting(self._wished(), resolution=side))
        side = next(fitting_ones, self.native_px) if is_free else self.native_px
        if side == self.native_px:
            return side, "the size that the base model was trained at"
        return side, f"{self.native_px} px, at which the base model was trained, would not fit"

    def _batch(self) -> tuple[int, str]:
        """As many of four pictures at once as fit without checkpointing; a CPU gains nothing by it."""
        free = self.machine.gpu_name and self.config.gradient_accumulation_steps == "auto"
        for batch in (4, 2) if free else ():
            if fitting.has_room(self.job(train_batch_size=batch, gradient_accumulation_steps=2), ("train",)):
                return batch, f"{batch} pictures at once fit without checkpointing, and are faster"
        return 1, "the least memory; accumulation makes up for it"

    def _processes(self) -> None:
        """A process for each GPU, and a batch of an update for each process."""
        count = max(1, self.machine.gpu_count if self.machine.gpu_name else 1)
        batches, is_free = self.config.gradient_accumulation_steps, self.config.num_processes == "auto"
        if is_free and "gradient_accumulation_steps" in self.settled.reasons and int(batches) < count:
            self._put("gradient_accumulation_steps", count, f"a batch for each of {count} GPUs")
        elif is_free and batches != "auto" and int(batches) < count:
            why = f"an update has {batches} batches, so that {count} GPUs have no work for all"
            self._choose("num_processes", batches, why)
        self._choose("num_processes", count, f"one for each of {count} GPUs" if count > 1 else "one GPU, or none")
        least = max(PICTURES_AN_UPDATE // int(self.config.train_batch_size), int(self.config.num_processes), 1)
        self._choose("gradient_accumulation_steps", least, "four pictures an update make its direction steady")

    def _fitting(self, stages: tuple[str, ...], **changes: object) -> list[tuple[str, str]]:
        """Quantization and checkpointing with which stages fit, in the order in which they cost time."""
        config = self.config
        kinds = [kind for kind in ("none", "nf4") if config.quantization in ("auto", kind)]
        modes = [mode for mode in fitting.MODES if config.gradient_checkpointing in ("auto", mode)]
        return [
            (kind, mode)
            for kind in kinds
            for mode in modes
            if fitting.has_room(self.job(quantization=kind, gradient_checkpointing=mode, **changes), stages)
        ]

    def _memory(self) -> list[tuple[str, str, str]]:
        """The fastest that fits on this machine; where nothing does, what needs least."""
        fitting_ones = self._fitting(self._wished()) or self._fitting(("train",))
        quantization, mode = fitting_ones[0] if fitting_ones else ("nf4", "full")
        if not fitting_ones and not self.machine.gpu_name:  # 4 bits are no help against a full computer
            quantization = "none"
        why = {
            "none": "everything fits without, and is faster",
            "transformers": "activations of the transformer blocks would not fit beside the model",
            "full": "activations would not fit beside the model",
        }[mode]
        small = quantization == "nf4"
        why_small = "the base model would not fit in half precision" if small else "the base model fits as it is"
        return [("quantization", quantization, why_small), ("gradient_checkpointing", mode, why)]

    def _wished(self) -> tuple[str, ...]:
        """The stages that memory is chosen for: rows of samples only where a person asked for them."""
        return ("train", "sample") if "sample_every" in self.as_set else ("train",)

    def _samples(self) -> None:
        """Rows of samples that a preset wishes are left out where they would not fit beside the training."""
        is_wished = self.config.sample_every and "sample_every" in self.settled.reasons
        if is_wished and not fitting.has_room(self.job(), ("sample",)):
            self._put("sample_every", 0, "pictures would not fit beside the training on this GPU")

    def _without_8bit(self) -> str:
        more = 6 * stage_needs.learnt_numbers(self.job()) / 1e6  # two moments of four bytes instead of one
        return (
            f"{self.config.optimizer} needs the package bitsandbytes, which is not installed (pip install "
            f"bitsandbytes); adamw learns the same and takes {more:.0f} MB more"
        )


# -- what is said --


def _remarks(job: Job) -> list[str]:
    """What costs memory or time beside the UNet's steps, a sentence each: trained text encoders, looks, DoRA."""
    config, found = job.config, []
    if stage_needs.learns_text(config) and config.pretrained_model != demo.MODEL:  # its encoders weigh next to nothing
        asked = [name for name in ("train_text_encoder", "learn_concept_token") if getattr(config, name)]
        found.append(
            f"{' and '.join(asked)}: both text encoders stay in memory, {stage_needs.text_gib(job):.1f} GB more, and "
            f"every caption is encoded in its step, {stage_needs.text_share(job):.0%} more work"
        )
    if count := stage_needs.looks(config):
        found.append(f"looks at held-out pictures: {count}, at most {stage_needs.look_share(job):.0%} more work")
    if config.use_dora:
        found.append("use_dora: what it takes beside a plain LoRA was not counted; expect more memory and time")
    if not job.model.is_counted:
        found.append("this base model has a shape of its own: its numbers are SDXL's, scaled by its weights")
    return found


def _warnings(job: Job, misfits: tuple[fitting.Misfit, ...]) -> tuple[Caution, ...]:
    config, machine = job.config, job.machine
    found: list[Caution] = []

    def warn(setting: str, sentence: str) -> None:
        found.append(Caution(setting, sentence))

    for stages, setting in ((fitting.TRAINING, "train_batch_size"), (fitting.DRAWING, "width")):
        short = [one for one in misfits if one.stage in stages]
        if short and job.model.is_counted:
            advised = fitting.changes(job, stages, short[0].memory)
            warn(setting, fitting.sentence(short[0], machine, advised, is_sure=_is_sure(short[0], machine)))
    rate = config.learning_rate
    if config.optimizer == "prodigy" and rate < 0.1:
        warn(
            "learning_rate",
            f"prodigy finds its own rate, times learning_rate: 1 is usual, {rate:g} learns little.",
        )
    elif config.optimizer != "prodigy" and rate > 1e-2:
        warn("learning_rate", f"learning_rate {rate:g} is far above the usual 1e-4; the LoRA may turn to noise.")
    if int(config.num_processes) > int(config.gradient_accumulation_steps):
        warn(
            "num_processes",
            f"num_processes is {config.num_processes}, but an update has gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} batches: the other processes have nothing to do. Raise it, or take "
            "fewer processes.",
        )
    if config.rank >= 64 and machine.gpu_name and machine.vram_gb < 24:
        warn("rank", f"rank {config.rank} on {machine.vram_gb:.0f} GB is tight and overfits soon; 16 holds a style.")
    if machine.gpu_name is None and _native_side(config.pretrained_model) >= 512:
        warn(
            "pretrained_model",
            "SDXL on a CPU takes hours for a few steps. Choose a GPU, or preset demo for a first look.",
        )
    return tuple(found)


def _native_side(model: str) -> int:
    """The side that a model was trained at; read from its folder where it is one, else SDXL's 1024 px."""
    path = Path(demo.locate(model)).expanduser()
    return folders.layout(str(path)).side_px if path.is_dir() else 1024


def _is_here(model: str) -> bool:
    """Whether a model is a folder of this machine, or lies in Hugging Face's cache, whole or in part."""
    if Path(demo.locate(model)).expanduser().is_dir():
        return True
    name = f"models--{model.replace('/', '--')}"
    return any((place / name).is_dir() for place in (models_folder(), models_folder() / "hub"))


def _times(share: float) -> str:
    return f"{share:.1f} times" if share >= 1.05 else f"{share:.0%} of"
