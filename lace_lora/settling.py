"""Settings on their way from auto to numbers: each choice of the plan with its reason, and what a person's own cost."""

import importlib.util
from dataclasses import dataclass, replace
from math import ceil

from lace_lora import coefficients, fitting, presets, stage_needs, throughput
from lace_lora.config import Config, fields_of
from lace_lora.errors import SettingsError
from lace_lora.experience import NOTHING, Experience
from lace_lora.families import known, limits
from lace_lora.families.layouts import FAMILIES
from lace_lora.machine import GIB, Machine
from lace_lora.presets import Choice
from lace_lora.workload import Job, Stage

PICTURES_AN_UPDATE = 4  # make its direction steady
SIDES = (1024, 768, 512)  # tried from the model's own downwards where nothing else makes it fit
STEPS_AT_MOST = 1_000_000  # as the setting has it
WRITTEN = {"fp32": "no"}  # number formats that the setting calls otherwise


@dataclass
class Choosing:
    """What is still auto becomes a number, in the order in which choices depend on each other.

    What a person wrote is never changed; a preset's value is, where it is no use on this machine.
    """

    settled: presets.Settled
    machine: Machine
    pictures: int
    known: Experience

    def __post_init__(self) -> None:
        self.config = self.settled.config
        self.choices = [Choice(name, getattr(self.config, name), why) for name, why in self.settled.reasons.items()]
        said = {name for name in self.config.given if getattr(self.config, name) != "auto"}
        self.as_set = said - set(self.settled.reasons)
        self.may_save_memory = self.config.gradient_checkpointing == "auto"
        self.model = coefficients.of(self.config.pretrained_model)
        self.native_px = native_side(self.config.pretrained_model)
        self.precision, self.why_precision = self.machine.precision(self.config.mixed_precision)

    def settle(self) -> None:
        """All choices. Raises SettingsError for what a person asked for and the base model's family cannot do."""
        family = known.family_of(self.config.pretrained_model)
        self._check_preset(family)
        for one in limits.changes(self.config, family, self.as_set):
            self._put(one.setting, one.value, one.why)
        self._leave_to_family(family)
        if self.config.optimizer.endswith("8bit") and importlib.util.find_spec("bitsandbytes") is None:
            self._put("optimizer", "adamw", self._without_8bit())
        self._number_format()
        self._choose("resolution", *self._resolution())
        self._choose("train_batch_size", *self._batch())
        self._follow_batch()
        self._processes()
        for name, value, why in self._memory():
            self._choose(name, value, why)
        self._samples()
        self._choose("max_train_steps", *self._steps())

    def job(self, **changes: object) -> Job:
        """What is settled so far; what is still auto counts as its least."""
        least = {"resolution": self.native_px, "train_batch_size": 1, "gradient_accumulation_steps": 1,
                 "max_train_steps": 1, "num_processes": 1, "gradient_checkpointing": "none",
                 "quantization": "none"}  # fmt: skip
        open_ones = {name: value for name, value in least.items() if getattr(self.config, name) == "auto"}
        values = open_ones | changes
        config = self.config.with_preset(values) if values else self.config
        draws_in = self.settled.draws_in
        return Job(config, self.pictures, self.machine, self.precision, self.model, self.known, draws_in)

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
            more_gb = self.model.weight_bytes("denoiser", 2) / GIB
            found.append(f"mixed_precision no, as set: {more_gb:.1f} GB more for the base, and no fast units are used")
        return found

    def _choose(self, name: str, value: object, why: str) -> None:
        if getattr(self.config, name) == "auto":
            self._put(name, value, why)

    def _put(self, name: str, value: object, why: str) -> None:
        self.config = self.config.with_preset({name: value})
        self.choices = [one for one in self.choices if one.setting != name] + [Choice(name, value, why)]

    def _check_preset(self, family: str) -> None:
        """A preset for one family is of no use with a model of another, which a person named beside it."""
        if self.settled.preset == "none" or self.settled.preset == "demo":
            return
        meant = presets.read(self.settled.preset).family
        if meant not in (family, presets.USUAL):
            wanted, found = (FAMILIES.get(one, one) for one in (meant, family))
            raise SettingsError(
                f"The preset {self.settled.preset} is for {wanted}, and pretrained_model "
                f"{self.config.pretrained_model} is {found}. Choose another preset, or leave pretrained_model to it."
            )

    def _leave_to_family(self, family: str) -> None:
        """A preset's size is of no use to a model of another family; nor are batches, where nobody named the preset."""
        reasons = self.settled.reasons
        if self.settled.preset == "none" or family == presets.read(self.settled.preset).family:
            return
        if "resolution" in reasons:
            self._put("resolution", self.native_px, "the size that the base model was trained at")
        if self.settled.asked is not None and self.settled.asked.preset == "auto":
            batches = reasons.keys() & {"train_batch_size", "gradient_accumulation_steps"}
            self.config = self.config.with_preset(dict.fromkeys(batches, "auto"))
            self.choices = [one for one in self.choices if one.setting not in batches]
            rest = {name: why for name, why in reasons.items() if name not in batches}
            self.settled = replace(self.settled, reasons=rest)

    # -- what is computed --

    def _number_format(self) -> None:
        """As the machine has it; a preset's that it has not is replaced, where a person's is only warned about."""
        asked, real = self.config.mixed_precision, WRITTEN.get(self.precision, self.precision)
        why = self.why_precision.partition(", ")[2]  # the format itself is said before
        if asked == "auto" or (asked != real and "mixed_precision" in self.settled.reasons):
            self._put("mixed_precision", real, why)

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

    def _follow_batch(self) -> None:
        """A preset's updates keep their size where a person chose another batch."""
        is_presets = "gradient_accumulation_steps" in self.settled.reasons
        if not is_presets or "train_batch_size" in self.settled.reasons:
            return
        wished = int(presets.read(self.settled.preset).settings.get("train_batch_size", 1))
        wished *= int(self.config.gradient_accumulation_steps)
        batch = int(self.config.train_batch_size)
        batches = max(1, round(wished / batch))
        if batches != self.config.gradient_accumulation_steps:
            why = f"an update of {wished} pictures, as in the preset"
            if batch * batches != wished:
                why = f"{batch * batches} pictures an update, the nearest to the preset's {wished}"
            self._put("gradient_accumulation_steps", batches, why)

    def _processes(self) -> None:
        """A process for each GPU, as far as the computer's memory goes, and a batch of an update for each process."""
        gpus = max(1, self.machine.gpu_count if self.machine.gpu_name else 1)
        count = next((one for one in range(gpus, 1, -1) if self._holds(one)), 1)
        batches, is_free = self.config.gradient_accumulation_steps, self.config.num_processes == "auto"
        if is_free and "gradient_accumulation_steps" in self.settled.reasons and int(batches) < count:
            self._put("gradient_accumulation_steps", count, f"a batch for each of {count} GPUs")
        elif is_free and batches != "auto" and int(batches) < count:
            why = f"an update has {batches} batches, so that {count} GPUs have no work for all"
            self._choose("num_processes", batches, why)
        alone = "there is one GPU to train on" if self.machine.gpu_name else "one process uses all cores of the CPU"
        why = alone if gpus == 1 else f"one for each of {count} GPUs"
        if count < gpus:
            why = f"the computer's memory would not hold a model for each of {gpus} GPUs"
        self._choose("num_processes", count, why)
        least = max(PICTURES_AN_UPDATE // int(self.config.train_batch_size), int(self.config.num_processes), 1)
        told = least * int(self.config.train_batch_size)
        why = "four pictures an update make its direction steady"
        self._choose("gradient_accumulation_steps", least, why if told == PICTURES_AN_UPDATE else
                     f"an update of {told} pictures, which is enough")  # fmt: skip

    def _holds(self, processes: int) -> bool:
        """Whether the computer's memory holds so many processes, each with its model."""
        stage = stage_needs.train(self.job(num_processes=processes))
        return not any(one.memory == fitting.RAM and one.is_sure for one in fitting.misfits([stage], self.machine))

    # -- how it fits --

    def _fitting(self, stages: tuple[str, ...], **changes: object) -> list[tuple[str, str]]:
        """Quantization and checkpointing with which stages fit, in the order in which they cost quality and time.

        Four bits are chosen for a GPU's memory only.
        """
        config = self.config
        kinds = [kind for kind in ("none", "nf4") if config.quantization in ("auto", kind)]
        kinds = kinds[:1] if not self.machine.gpu_name else kinds
        modes = [mode for mode in fitting.MODES if config.gradient_checkpointing in ("auto", mode)]
        return [
            (kind, mode)
            for kind in kinds
            for mode in modes
            if fitting.has_room(self.job(quantization=kind, gradient_checkpointing=mode, **changes), stages)
        ]

    def _memory(self) -> list[tuple[str, str, str]]:
        """The base as it is wherever that fits, because 4 bits make it coarser; and the least checkpointing beside it.

        Where nothing fits, what needs least.
        """
        fitting_ones = self._fitting(self._wished()) or self._fitting(("train",))
        if not fitting_ones:
            least = "the least memory, though even that does not fit"
            small = "nf4" if self.machine.gpu_name else "none"
            why = least if self.machine.gpu_name else "4 bits are chosen for a GPU's memory only"
            return [("quantization", small, why), ("gradient_checkpointing", "full", least)]
        quantization, mode = fitting_ones[0]
        why = {
            "none": "everything fits without, and is faster",
            "transformers": "activations of the transformer blocks would not fit beside the model",
            "full": "activations would not fit beside the model",
        }[mode]
        if mode != "none" and ("nf4", "none") in fitting_ones:
            why += self._faster(quantization, mode)
        why_small = "the base model fits as it is" if quantization == "none" else self._why_small(mode)
        return [("quantization", quantization, why_small), ("gradient_checkpointing", mode, why)]

    def _why_small(self, mode: str) -> str:
        """What of half precision would not fit: the model itself, or what is computed beside it."""
        plain = self._train(quantization="none", gradient_checkpointing=mode)
        room = (self.machine.vram_gb if self.machine.gpu_name else self.machine.ram_gb) * fitting.SPARE
        if plain.memory_gb - plain.activations_gb > room:
            return f"the base model would not fit in {self.precision}"
        return f"in {self.precision} the base model would leave too little room for what is computed"

    def _faster(self, quantization: str, mode: str) -> str:
        """What 4 bits would save in time, where they make checkpointing needless."""
        now = self._train(quantization=quantization, gradient_checkpointing=mode)
        other = self._train(quantization="nf4", gradient_checkpointing="none")
        if not now.seconds or not other.seconds or other.seconds >= 0.98 * now.seconds:
            return ""
        return f" (quantization nf4 would fit without, {1 - other.seconds / now.seconds:.0%} faster, the base coarser)"

    def _train(self, **changes: object) -> Stage:
        """The training's steps alone: how many there will be, and looks between them, is not settled yet."""
        return stage_needs.train(self.job(**changes, validate_every=0))

    def _wished(self) -> tuple[str, ...]:
        """The stages that memory is chosen for: rows of samples only where a person asked for them."""
        return ("train", "sample") if "sample_every" in self.as_set else ("train",)

    def _samples(self) -> None:
        """Rows of samples that a preset wishes are left out where they would not fit beside the training."""
        is_wished = self.config.sample_every and "sample_every" in self.settled.reasons
        if is_wished and not fitting.has_room(self.job(), ("sample",)):
            self._put("sample_every", 0, "pictures would not fit beside the training on this GPU")

    # -- how long --

    def _steps(self) -> tuple[int, str]:
        config = self.config
        seen, an_update = self.pictures * config.dataset_repeats * config.num_train_epochs, (
            stage_needs.pictures_an_update(config)
        )  # fmt: skip
        steps = min(STEPS_AT_MOST, max(1, ceil(seen / an_update)))
        told = f"{config.num_train_epochs} passes over {self.pictures} pictures"
        if steps * an_update < seen:
            return steps, f"the most that there can be; {told} would be more"
        return steps, told if seen % an_update == 0 else f"{told}, rounded up to whole updates of {an_update}"

    def _without_8bit(self) -> str:
        more = 6 * stage_needs.learnt_numbers(self.job()) / 1e6  # two moments of four bytes instead of one
        return (
            f"{self.config.optimizer} needs the package bitsandbytes, which is not installed (pip install "
            f"bitsandbytes); adamw learns the same and takes {more:.0f} MB more"
        )


def for_drawing(config: Config) -> presets.Settled:
    """Settled settings to plan new designs with: what the family cannot learn by is nobody's wish any more."""
    of_drawing = {name for name, _ in fields_of(limits.DRAWING)}
    learnt_by = config.given & limits.LIMITS[known.family_of(config.pretrained_model)].keys() - of_drawing
    return presets.Settled(config, "none", "as set", {name: "" for name in learnt_by})


def drawn_in(config: Config, machine: Machine) -> tuple[str, str]:
    """In what designs are drawn, none or nf4, and why: as set, else as it is wherever that fits, else in 4 bits.

    config  its base model, LoRA and largest size are those that will be drawn with; a preset's quantization is auto
    """
    if config.quantization != "auto":
        return config.quantization, "as set"
    choosing = Choosing(for_drawing(config), machine, 1, NOTHING)
    choosing.settle()
    return drawing_base(choosing.job())


def drawing_base(job: Job) -> tuple[str, str]:
    """The same of a job."""
    at_once = throughput.pictures_at_once(job.design_cells, job.machine)
    stage = stage_needs.generate(job, at_once)
    if stage.quantization == "none":
        return "none", "the base model fits as it is"
    whole = stage_needs.drawn(job, "generate", job.config.num_images, job.design_cells, at_once, "none")
    return "nf4", (
        f"{whole.memory_gb:.1f} GB would be needed in {job.precision}, and {job.machine.gpu_name} has "
        f"{job.machine.vram_gb:.1f}; in 4 bits {stage.memory_gb:.1f}, the base a little coarser"
    )


def native_side(model: str) -> int:
    """The side that a model was trained at, px; read from its folder where it is one, else as known by its name."""
    return known.side_px(model)


def _times(share: float) -> str:
    return f"{share:.1f} times" if share >= 1.05 else f"{share:.0%} of"
