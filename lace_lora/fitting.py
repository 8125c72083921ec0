"""What fits into a machine's memory, and where it does not: the changes that would make it fit, the mildest first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lace_lora import stage_needs, throughput
from lace_lora.machine import Machine
from lace_lora.stage_needs import Job, Stage

SPARE = 0.95  # part of a memory that can be used; the rest is lost between blocks of different sizes, or the system's
ADVISED = 3  # changes that are named
MODES = ("none", "transformers", "full")
TRAINING = ("encode pictures", "encode captions", "class pictures", "train", "sample")
DRAWING = ("generate", "refine", "decode")
VRAM, RAM = "GPU memory", "memory (RAM)"


@dataclass(frozen=True)
class Misfit:
    """A stage that does not fit, into which memory, and how much that has; sizes in GiB."""

    stage: str
    memory: str  # VRAM or RAM
    needs_gb: float
    has_gb: float


@dataclass(frozen=True)
class Change:
    """Settings that would fit, what they cost, and what would be needed then."""

    settings: dict[str, Any]
    cost: str
    needs_gb: float
    has_gb: float

    def __str__(self) -> str:
        """The change as a person would write it, and the proof."""
        told = " and ".join(f"{name} {value}" for name, value in self.settings.items()) or self.cost
        cost = f" ({self.cost})" if self.settings else ""
        return f"{told}{cost}; would fit: {self.needs_gb:.1f} of {self.has_gb:.1f} GB"


def misfits(stages: Iterable[Stage], machine: Machine) -> list[Misfit]:
    """Every stage that does not fit into the GPU's memory or the computer's; a size that is not known refuses nothing.

    A CPU has no GPU memory to run out of, but its own.
    """
    found = []
    for stage in stages:
        if machine.gpu_name and 0 < machine.vram_gb * SPARE < stage.memory_gb:
            found.append(Misfit(stage.name, VRAM, stage.memory_gb, machine.vram_gb))
        if 0 < machine.ram_gb * SPARE < stage.ram_gb:
            found.append(Misfit(stage.name, RAM, stage.ram_gb, machine.ram_gb))
    return found


def has_room(job: Job, names: Sequence[str]) -> bool:
    """Whether the named stages fit into the memory that they are computed in: the GPU's, or the computer's without one.

    What the computer holds beside a GPU is no help in choosing: no setting of a training makes it less.
    """
    short = misfits((stage for stage in stage_needs.stages(job) if stage.name in names), job.machine)
    return all(one.memory != _computed_in(job.machine) for one in short)


def changes(job: Job, names: Sequence[str], memory: str) -> list[Change]:
    """At most three changes with which the named stages would fit, each tried; the one that costs least first.

    memory  the one that is short; the others must suffice too

    Single changes come first, then what they make together, last a larger GPU.
    """
    short = _Short(job, tuple(names), memory)
    found = [tried for settings, cost in _single(job) if (tried := short.tried(settings, cost))]
    together: dict[str, Any] = {}
    for settings, _ in _single(job):
        if len(found) >= ADVISED:
            break
        together |= settings  # of two checkpointing modes the later one, which saves more
        tried = short.tried(dict(together), "together") if len(together) > 1 else None
        if tried and all(tried.settings != one.settings for one in found):
            found.append(tried)
    larger = short.on_larger() if len(found) < ADVISED and memory == VRAM else None
    return [*found, *([larger] if larger else [])][:ADVISED]


def sentence(misfit: Misfit, machine: Machine, advised: Sequence[Change], is_sure: bool = True) -> str:
    """What does not fit, or may not, and what would."""
    what = "Training" if misfit.stage in TRAINING else "Drawing designs"
    verdict = "would not fit" if is_sure else "may not fit"
    where = machine.gpu_name if misfit.memory == VRAM else "this computer"
    first = (
        f"{what} {verdict}: the stage “{misfit.stage}” needs {misfit.needs_gb:.1f} GB of {misfit.memory}, and "
        f"{where} has {misfit.has_gb:.1f} GB."
    )
    if not advised:
        return f"{first} No setting makes it fit; choose a machine with more memory."
    listed = "\n".join(f"  {number}. {change}" for number, change in enumerate(advised, 1))
    return f"{first} Next to try, the one that costs least first:\n{listed}"


# -- inside --


def _computed_in(machine: Machine) -> str:
    return VRAM if machine.gpu_name else RAM


def _single(job: Job) -> Iterator[tuple[dict[str, Any], str]]:
    """Changes in the order of what they cost: nothing, time, precision, then what is learnt or seen."""
    config, native = job.config, 128 * job.model.px_a_cell
    batch, batches = int(config.train_batch_size), int(config.gradient_accumulation_steps)
    if batch > 1:
        smaller = {"train_batch_size": 1, "gradient_accumulation_steps": min(256, batch * batches)}
        yield smaller, "the same updates, a little slower"
    if job.precision == "fp32" and config.mixed_precision == "no":
        half = "fp16" if job.machine.gpu_name and job.machine.capability < (8, 0) else "bf16"
        yield {"mixed_precision": half}, "half the memory, and faster on a GPU"
    at = MODES.index(str(config.gradient_checkpointing))
    for mode in MODES[at + 1 :]:
        yield {"gradient_checkpointing": mode}, _slower(job, mode)
    if config.sample_every:
        yield {"sample_every": 0}, "no sample pictures while training"
    if config.quantization != "nf4" and job.machine.gpu_name:
        yield {"quantization": "nf4"}, "the base in 4 bits, slower steps"
    if config.optimizer in ("adamw", "prodigy", "schedulefree"):
        yield {"optimizer": "adamw8bit"}, "learns nearly the same; needs bitsandbytes"
    for name in ("train_text_encoder", "learn_concept_token"):
        if getattr(config, name):
            yield {name: False}, "the text encoders stay as they are"
    for side in (768, 512):
        if side < int(config.resolution) <= 2 * native:
            yield {"resolution": side}, "less detail"
    for side in (1024, 768, 512):
        if job.design_cells > job.model.cells(side, side) and (config.width or config.height):
            yield {"width": side, "height": side}, "smaller designs"
    if config.rank > 16:
        yield {"rank": 16}, "holds a style, fewer of its finest stitches"


def _slower(job: Job, mode: str) -> str:
    other = replace(job, config=job.config.with_preset({"gradient_checkpointing": mode}))
    return f"{stage_needs.picture_flop(other) / stage_needs.picture_flop(job) - 1:.0%} more work a step"


@dataclass(frozen=True)
class _Short:
    """Stages of a job that do not fit, and the memory that is short."""

    job: Job
    names: tuple[str, ...]
    memory: str

    def tried(self, settings: dict[str, Any], cost: str) -> Change | None:
        """The change, where every named stage fits with it."""
        config = self.job.config.with_preset(settings)
        precision, _ = self.job.machine.precision(config.mixed_precision)
        return self._proof(replace(self.job, config=config, precision=precision), settings, cost)

    def on_larger(self) -> Change | None:
        """The same settings on the smallest GPU that holds them."""
        needs = max(stage.memory_gb for stage in stage_needs.stages(self.job) if stage.name in self.names)
        gpu = throughput.larger(needs / SPARE, self.job.machine.vram_gb)
        if gpu is None:
            return None
        return self._proof(replace(self.job, machine=throughput.machine(gpu)), {}, f"another GPU, such as {gpu}")

    def _proof(self, job: Job, settings: dict[str, Any], cost: str) -> Change | None:
        chosen = [stage for stage in stage_needs.stages(job) if stage.name in self.names]
        if misfits(chosen, job.machine):
            return None
        if self.memory == VRAM:
            return Change(settings, cost, max(stage.memory_gb for stage in chosen), job.machine.vram_gb)
        return Change(settings, cost, max(stage.ram_gb for stage in chosen), job.machine.ram_gb)
