"""What fits into a machine's memory, and where it does not: the changes that would make it fit, the mildest first."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lace_lora import stage_needs, throughput
from lace_lora.machine import Machine
from lace_lora.stage_needs import SPARE as SPARE
from lace_lora.workload import Job, Stage, cuts_a_picture

ADVISED = 3  # changes that are named
MODES = ("none", "transformers", "full")
TRAINING = ("encode pictures", "encode captions", "class pictures", "train", "sample")
DRAWING = ("generate", "refine", "decode")
VRAM, RAM = "GPU memory", "memory (RAM)"
BATCHES_AT_MOST = 256  # of an update, as the setting has it
# How much a change harms, from nothing to what is learnt and seen. What learns the same stands before what does not.
NOTHING, TIME, COMFORT, PRECISION, VIEWS, LEARNT = range(6)
SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8)  # of a side, tried in this order

# Plans again with changed settings, on a machine; what comes out is what a person would get who changed them.
Trial = Callable[[Mapping[str, Any], Machine], Job]


@dataclass(frozen=True)
class Misfit:
    """A stage that does not fit, into which memory, and how much that has; sizes in GiB.

    is_sure  whether what was counted is too much already, without what Python's libraries are estimated to hold
    """

    stage: str
    memory: str  # VRAM or RAM
    needs_gb: float
    has_gb: float
    is_sure: bool = True


@dataclass(frozen=True)
class Change:
    """Settings that would fit, what they cost, and what would be needed then."""

    settings: dict[str, Any]
    cost: str
    needs_gb: float
    has_gb: float

    def __str__(self) -> str:
        """The change as a person would write it, and the proof."""
        told = " and ".join(f"{name} {_written(value)}" for name, value in self.settings.items()) or self.cost
        cost = f" ({self.cost})" if self.settings else ""
        return f"{told}{cost}; would fit: {self.needs_gb:.1f} of {self.has_gb:.1f} GB"


def misfits(stages: Iterable[Stage], machine: Machine) -> list[Misfit]:
    """Every stage that does not fit into the GPU's memory or the computer's; a size that is not known refuses nothing.

    A CPU has no GPU memory to run out of, but its own.
    """
    found = []
    for stage in stages:
        if not stage_needs.has_room(stage, machine):
            found.append(Misfit(stage.name, VRAM, stage.memory_gb, machine.vram_gb))
        room = machine.ram_gb * SPARE
        if 0 < room < stage.ram_gb:
            is_sure = room < stage.ram_gb - stage.program_gb
            found.append(Misfit(stage.name, RAM, stage.ram_gb, machine.ram_gb, is_sure))
    return found


def has_room(job: Job, names: Sequence[str]) -> bool:
    """Whether the named stages fit into the memory that they are computed in: the GPU's, or the computer's without one.

    What the computer holds beside a GPU is no help in choosing how the GPU computes.
    """
    short = misfits((stage for stage in stage_needs.stages(job) if stage.name in names), job.machine)
    return all(one.memory != _computed_in(job.machine) for one in short)


def changes(job: Job, names: Sequence[str], memory: str, trial: Trial) -> list[Change]:
    """At most three changes with which the named stages would fit, the one that harms least first.

    memory  the one that is short; the others must suffice too
    trial   plans again; each change was tried by it, so that its figure is what a person gets who makes it

    A change that needs less than another is never named beside it with more: of each setting the mildest value that
    helps is taken, and settings are joined only where none of them helps alone and none can be left out.
    """
    search = _Search(job, tuple(names), memory, trial)
    alone, rest = [], []
    for knob in _knobs(job, names):
        change = next(filter(None, (search.tried(settings, cost) for settings, cost in knob.options)), None)
        if change:
            alone.append((knob.harm, change))
        else:
            rest.append(knob)
    if sum(harm < VIEWS for harm, _ in alone) < ADVISED:
        alone += search.together(rest)
    found = [change for _, change in sorted(alone, key=lambda one: (one[0], len(one[1].settings)))]
    if len(found) < ADVISED:
        found += filter(None, [search.on_larger()])
    return found[:ADVISED]


def sentence(misfit: Misfit, machine: Machine, advised: Sequence[Change]) -> str:
    """What does not fit, or may not, and what would."""
    what = "Training" if misfit.stage in TRAINING else "Drawing designs"
    verdict = "would not fit" if misfit.is_sure else "may not fit"
    where = machine.gpu_name if misfit.memory == VRAM else "this computer"
    first = (
        f"{what} {verdict}: the stage “{misfit.stage}” needs {misfit.needs_gb:.1f} GB of {misfit.memory}, and "
        f"{where} has {misfit.has_gb:.1f} GB."
    )
    if not advised:
        fewer = ", or learn fewer pictures" if misfit.memory == RAM and misfit.stage in TRAINING else ""
        return (
            f"{first} None of the settings that save memory makes it fit, nor do all of them together; choose a "
            f"machine with more memory{fewer}."
        )
    listed = "\n".join(f"  {number}. {change}" for number, change in enumerate(advised, 1))
    return f"{first} Next to try, the one that costs least first:\n{listed}"


# -- what can be changed --


@dataclass(frozen=True)
class _Knob:
    """Something that can be changed: values with what each costs, the mildest first."""

    harm: int
    options: tuple[tuple[dict[str, Any], str], ...]


def _knobs(job: Job, names: Sequence[str]) -> list[_Knob]:
    """All that saves memory in some of the named stages, the mildest first."""
    told = [*_of_both(job)]
    told += _of_training(job) if set(names) & set(TRAINING) else _of_drawing(job)
    return sorted((knob for knob in told if knob.options), key=lambda knob: knob.harm)


def _of_both(job: Job) -> Iterator[_Knob]:
    if job.precision == "fp32" and job.config.mixed_precision == "no":
        half = "fp16" if job.machine.gpu_name and job.machine.capability < (8, 0) else "bf16"
        faster = ", and faster" if job.machine.gpu_name else ""
        yield _Knob(TIME, (({"mixed_precision": half}, f"half the memory{faster}"),))


def _of_training(job: Job) -> Iterator[_Knob]:
    config = job.config
    yield _Knob(NOTHING, tuple(_same_updates(job)))
    seen = stage_needs.pictures_an_update(config)
    if int(config.train_batch_size) > 1 and seen > BATCHES_AT_MOST:
        cost = f"updates of {BATCHES_AT_MOST} pictures instead of {seen}"
        yield _one(COMFORT, _batches(1, BATCHES_AT_MOST), cost)
    at = MODES.index(str(config.gradient_checkpointing))
    yield _Knob(TIME, tuple(({"gradient_checkpointing": mode}, _slower(job, mode)) for mode in MODES[at + 1 :]))
    count = job.processes_in_memory
    yield _Knob(TIME, tuple(({"num_processes": fewer}, "slower") for fewer in (count // 2, 1) if 0 < fewer < count))
    if config.sample_every:
        yield _one(COMFORT, {"sample_every": 0}, "no sample pictures while training")
    if config.quantization != "nf4" and job.machine.gpu_name:
        yield _one(PRECISION, {"quantization": "nf4"}, "the base in 4 bits, a little coarser; slower steps")
    if config.optimizer in ("adamw", "prodigy", "schedulefree"):
        yield _one(PRECISION, {"optimizer": "adamw8bit"}, "learns nearly the same; needs bitsandbytes")
    for name in ("train_text_encoder", "learn_concept_token"):
        if getattr(config, name):
            yield _one(LEARNT, {name: False}, "the text encoders stay as they are")
    for name, plain, cost in (
        ("crop", "center", "pictures are cut at one place only"), ("quarter_turns", False, "pictures are not turned"),
        ("random_flip", False, "pictures are not learnt mirrored as well"),
    ):  # fmt: skip
        if cuts_a_picture(config) > cuts_a_picture(config.with_preset({name: plain})):
            yield _one(VIEWS, {name: plain}, cost)
    native, side = 128 * job.model.px_a_cell, int(config.resolution)
    smaller = [px for px in (native, native * 3 // 4, native // 2) if px < side and px % 8 == 0]
    yield _Knob(LEARNT, tuple(({"resolution": px}, "less detail") for px in smaller))
    if config.rank > 16:
        yield _one(LEARNT, {"rank": 16}, "holds a style, fewer of its finest stitches")


def _of_drawing(job: Job) -> Iterator[_Knob]:
    if job.draws_in == "none" and job.machine.gpu_name:
        yield _one(PRECISION, {"quantization": "nf4"}, "the base in 4 bits, a little coarser")
    side = int(job.config.resolution)
    asked = (job.config.width or side, job.config.height or side)
    sizes = [tuple(max(32, int(one * share) // 8 * 8) for one in asked) for share in SHARES]
    yield _Knob(LEARNT, tuple(({"width": width, "height": height}, "smaller designs") for width, height in sizes
                              if max(width, height) >= 256 and (width, height) != asked))  # fmt: skip
    if job.config.refine != "none":
        yield _one(LEARNT, {"refine": "none"}, "designs are not refined")


def _one(harm: int, settings: dict[str, Any], cost: str) -> _Knob:
    return _Knob(harm, ((settings, cost),))


def _same_updates(job: Job) -> Iterator[tuple[dict[str, Any], str]]:
    """Smaller batches, of which so many more make an update that it stays the same."""
    batch, seen = int(job.config.train_batch_size), stage_needs.pictures_an_update(job.config)
    sizes = [size for size in range(batch - 1, 0, -1) if seen % size == 0 and seen // size <= BATCHES_AT_MOST]
    for size in (one for one in sizes if one & (one - 1) == 0 or one * 2 == batch):
        yield _batches(size, seen // size), "the same updates, a little slower"


def _batches(size: int, count: int) -> dict[str, Any]:
    return {"train_batch_size": size, "gradient_accumulation_steps": count}


def _slower(job: Job, mode: str) -> str:
    other = replace(job, config=job.config.with_preset({"gradient_checkpointing": mode}))
    return f"{stage_needs.picture_flop(other) / stage_needs.picture_flop(job) - 1:.0%} more work a step"


# -- trying them --


@dataclass(frozen=True)
class _Search:
    """Stages of a job that do not fit, the memory that is short, and what was tried already."""

    job: Job
    names: tuple[str, ...]
    memory: str
    trial: Trial
    seen: dict[str, Change | None] = field(default_factory=dict)

    def tried(self, settings: dict[str, Any], cost: str, machine: Machine | None = None) -> Change | None:
        """The change, where every named stage fits with it."""
        key = f"{sorted(settings.items())} {machine}"
        if key not in self.seen:
            self.seen[key] = self._proof(self.trial(settings, machine or self.job.machine), settings, cost)
        found = self.seen[key]
        return replace(found, cost=cost) if found else None

    def together(self, knobs: Sequence[_Knob]) -> list[tuple[int, Change]]:
        """Knobs of which none helps alone, joined; each next set does without the most harmful one of the last."""
        found: list[tuple[int, Change]] = []
        while len(found) < ADVISED and (picked := self._picked(knobs)):
            change = self._joined(picked)
            found += [(max(knob.harm for knob, _ in picked), change)] if change else []
            knobs = [knob for knob in knobs if knob is not picked[-1][0]]
        return found

    def on_larger(self) -> Change | None:
        """The same settings on the smallest other machine that holds them; Colab's where it is Colab's memory."""
        here = self.job.machine
        for gpu in throughput.by_size():
            there = throughput.machine(gpu)
            has_more = there.vram_gb > here.vram_gb if self.memory == VRAM else there.ram_gb > here.ram_gb
            if not has_more or (self.memory == RAM and not (here.is_colab and there.is_colab)):
                continue
            what = "another GPU, such as" if self.memory == VRAM else "another machine in Colab, such as one with an"
            if change := self.tried({}, f"{what} {gpu}", there):
                return change
        return None

    def _picked(self, knobs: Sequence[_Knob]) -> list[tuple[_Knob, int]]:
        """The mildest knobs that fit together, each with the place of its value; [] where not even all of them do."""
        picked: list[tuple[_Knob, int]] = []
        for knob in knobs:
            picked.append((knob, len(knob.options) - 1))
            if self._joined(picked):
                break
        else:
            return []
        for one in picked[::-1]:  # what is not needed beside the others goes, the most harmful first
            others = [other for other in picked if other is not one]
            picked = others if len(others) > 1 and self._joined(others) else picked
        for at, (knob, last) in reversed([*enumerate(picked)]):
            for option in range(last):
                milder = [*picked[:at], (knob, option), *picked[at + 1 :]]
                if self._joined(milder):
                    picked = milder
                    break
        return picked

    def _joined(self, picked: Sequence[tuple[_Knob, int]]) -> Change | None:
        settings: dict[str, Any] = {}
        for knob, option in picked:
            settings |= knob.options[option][0]
        return self.tried(settings, "; ".join(knob.options[option][1] for knob, option in picked))

    def _proof(self, job: Job, settings: dict[str, Any], cost: str) -> Change | None:
        chosen = [stage for stage in stage_needs.stages(job) if stage.name in self.names]
        if misfits(chosen, job.machine):
            return None
        if self.memory == VRAM:
            return Change(settings, cost, max(stage.memory_gb for stage in chosen), job.machine.vram_gb)
        return Change(settings, cost, max(stage.ram_gb for stage in chosen), job.machine.ram_gb)


def _computed_in(machine: Machine) -> str:
    return VRAM if machine.gpu_name else RAM


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
