"""A plan as a value: what will run, what every stage takes, what it costs, and the words in which doors print it."""

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

from lace_lora import coefficients, costs, demo, fitting, stage_needs, throughput
from lace_lora.config import Config
from lace_lora.experience import NOTHING, Experience
from lace_lora.fitting import Misfit
from lace_lora.machine import GIB, Machine
from lace_lora.presets import Choice, Settled
from lace_lora.throughput import Speed
from lace_lora.workload import Job, Stage

REASONS_SHOWN = 9  # of the choices, so that a plan stays a page that is read
ALSO_SHOWN = 6  # of those without a reason of their own; the form and --json have all


@dataclass(frozen=True)
class Caution:
    """A warning, and the setting that it is about; a form shows it beside that field."""

    setting: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Elsewhere:
    """The same training on another machine: minutes, and the cheapest price."""

    machine: str
    minutes: float | None
    prices: tuple[costs.Price, ...]
    fits: bool

    def __str__(self) -> str:
        """Such as: on a T4 67 min, free on Colab."""
        if not self.fits or self.minutes is None:
            return f"on {_a(self.machine)} it would not fit"
        price = f", {self.prices[0]}" if self.prices else ""
        return f"on {_a(self.machine)} {time(self.minutes)}{price}"


@dataclass(frozen=True)
class Plan:
    """What will run and what it takes. `config` has no `auto` left."""

    config: Config
    machine: Machine
    preset: str
    preset_why: str
    banner: str
    pictures: int
    choices: tuple[Choice, ...]
    precision: str
    vram_gb: float  # of the GPU while training
    minutes: float | None  # of training
    warnings: tuple[Caution, ...]
    may_save_memory: bool = False  # whether checkpointing was left to the plan, which may then step it up in the run
    stages: tuple[Stage, ...] = ()
    misfits: tuple[Misfit, ...] = ()
    is_counted: bool = True  # whether the numbers are of this very architecture
    encoded_gb: float = 0.0
    downloads: tuple[tuple[str, float], ...] = ()  # models to be fetched, GiB
    remarks: tuple[str, ...] = ()  # what costs memory or time, a sentence each
    elsewhere: tuple[Elsewhere, ...] = ()
    known: Experience = field(default=NOTHING, repr=False)  # what earlier runs on this machine took
    assumed: str = ""  # why the pictures were not counted; nothing where they were
    settled: Settled | None = field(default=None, repr=False, compare=False)  # what the plan was made of

    @property
    def job(self) -> Job:
        """What decides the stages."""
        precision, _ = self.machine.precision(self.config.mixed_precision)
        model = coefficients.of(self.config.pretrained_model)
        draws_in = self.settled.draws_in if self.settled else self.config.quantization
        return Job(self.config, self.pictures, self.machine, precision, model, self.known, draws_in)

    @property
    def speed(self) -> Speed | None:
        """How fast the machine is, where that is known."""
        return self.known.speed(self.machine)

    @property
    def time_is(self) -> str:
        """How the training's time is known: measured on your last run, scaled from it, measured, or estimated."""
        return known_from(self.stage("train").source if self.stages else throughput.ESTIMATED)

    @property
    def fits(self) -> bool:
        """Whether training fits, into the GPU's memory and into the computer's."""
        return not any(one.stage in fitting.TRAINING for one in self.misfits)

    @property
    def fits_in_words(self) -> str:
        """yes, NO, or perhaps where only what Python holds, which is an estimate, makes it too much."""
        short = [one for one in self.misfits if one.stage in fitting.TRAINING]
        return "NO" if any(one.is_sure for one in short) else "perhaps" if short else "yes"

    @property
    def free_bytes(self) -> float:
        """What is left of the GPU's memory beside the training, for encoded pictures."""
        return max(0.0, self.machine.vram_gb * fitting.SPARE - self.vram_gb) * GIB

    @property
    def cache_is_on_gpu(self) -> bool:
        """Whether the encoded pictures stay on the GPU; else they are streamed from the computer's memory."""
        return self.machine.gpu_name is not None and self.encoded_gb * GIB <= self.free_bytes

    @property
    def epochs(self) -> float:
        """Passes over the pictures."""
        seen = stage_needs.updates(self.config) * stage_needs.pictures_an_update(self.config)
        return seen / max(1, self.pictures * self.config.dataset_repeats)

    @property
    def ram_gb(self) -> float:
        """The most of the computer's memory, over all stages."""
        return max((stage.ram_gb for stage in self.stages), default=0.0)

    @property
    def disk_gb(self) -> float:
        """What is written, without the models."""
        return sum(stage.disk_gb for stage in self.stages)

    @property
    def download_gb(self) -> float:
        """Models that are not on this machine."""
        return sum(size for _, size in self.downloads)

    @property
    def total_minutes(self) -> float | None:
        """All stages together, without fetching and loading models."""
        minutes = [stage.minutes for stage in self.stages]
        return None if None in minutes or not minutes else sum(one for one in minutes if one is not None)

    @property
    def prices(self) -> tuple[costs.Price, ...]:
        """C15: what the whole job costs on this kind of machine, by offer."""
        if self.total_minutes is None:
            return ()
        gpu = self.machine.gpu_name
        name = throughput.name_of(gpu, self.machine.vram_gb) if gpu else None
        return () if gpu and name is None else costs.of(name, self.total_minutes, self.machine.gpu_count)

    def stage(self, name: str) -> Stage:
        """One stage by name. Raises KeyError where the job has none of that name."""
        return {stage.name: stage for stage in self.stages}[name]

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs; sizes in GiB, times in minutes, but for the stages' seconds."""
        speed = self.speed
        return {
            "preset": self.preset, "machine": dataclasses.asdict(self.machine), "precision": self.precision,
            "pictures": self.pictures, "pictures_are": "assumed" if self.assumed else "counted",
            "epochs": self.epochs, "fits": self.fits, "vram_gb": self.vram_gb,
            "ram_gb": self.ram_gb, "disk_gb": self.disk_gb, "encoded_gb": self.encoded_gb,
            "download_gb": self.download_gb, "minutes": self.minutes, "total_minutes": self.total_minutes,
            "time_is": self.time_is, "speed_is": speed.source if speed else "not known", "prices_as_of": costs.as_of(),
            "stages": [dataclasses.asdict(one) | {"memory_gb": one.memory_gb} for one in self.stages],
            "misfits": [dataclasses.asdict(one) for one in self.misfits],
            "prices": [dataclasses.asdict(one) for one in self.prices],
            "elsewhere": [dataclasses.asdict(one) for one in self.elsewhere],
            "choices": [dataclasses.asdict(one) for one in self.choices],
            "warnings": [dataclasses.asdict(one) for one in self.warnings],
            "settings": self.config.model_dump(mode="json"),
        }  # fmt: skip

    def table(self) -> str:
        """Every stage in a row, aligned."""
        rows = [("stage", "TFLOP", "GPU GB" if self.machine.gpu_name else "—", "RAM GB", "disk GB", "time")]
        for one in self.stages:
            gpu = f"{one.memory_gb:.1f}" if self.machine.gpu_name else "—"
            minutes = "not known" if one.minutes is None else time(one.minutes)
            rows.append((one.name, f"{one.tflop:,.1f}", gpu, f"{one.ram_gb:.1f}", f"{one.disk_gb:.2f}", minutes))
        wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(f"{one:<{wide[0]}}" if not at else f"{one:>{wide[at]}}" for at, one in enumerate(row))
                 for row in rows]  # fmt: skip
        sources = dict.fromkeys(stage.source for stage in self.stages)
        names = {source: [one.name for one in self.stages if one.source == source] for source in sources}
        told = [f"{source}: {', '.join(stages)}" for source, stages in names.items()] if len(names) > 1 else [*sources]
        return "\n".join([*lines, f"Times, without fetching and loading models: {'; '.join(told)}."])

    def __str__(self) -> str:
        """The plan on one page, as doors print it; `table` has every stage."""
        lines = [f"{name:<12}{value}" for name, value in self._rows()]
        lines += self._reasons()
        lines += [f"  {remark}" for remark in self.remarks]
        return "\n".join(lines + [f"! {warning}" for warning in self.warnings])

    def _rows(self) -> list[tuple[str, str]]:
        config, machine = self.config, self.machine
        steps, at_once = stage_needs.updates(config), stage_needs.pictures_an_update(config)
        gpu = f"{machine.gpu_name} ({machine.vram_gb:.1f} GB)"
        rows = [
            ("machine", gpu if machine.gpu_name else f"CPU, {machine.cpu_cores} cores"),
            ("preset", f"{self.preset} ({self.preset_why})"),
            ("base model", f"{config.pretrained_model} in {self.precision}"),
            ("pictures", f"{self.pictures}{' assumed' if self.assumed else ''}, at {config.resolution} px"),
            ("training", f"{counted(steps, 'step')} of {counted(at_once, 'picture')}, {self.epochs:.1f} passes"),
            ("GPU memory", self._gpu_words()),
            ("memory", self._ram_words()),
            ("time", self._time_words()),
        ]
        if self.download_gb:
            rate = throughput.table()["download_mb_s"]
            minutes = self.download_gb * 1024 / rate / 60
            rows.append(("download", f"{self.download_gb:.1f} GB once, {time(minutes)} at {rate} MB a second"))
        if self.elsewhere:
            rows.append(("elsewhere", f"training {'; '.join(map(str, self.elsewhere))} (estimated, {costs.as_of()})"))
        return rows

    def _gpu_words(self) -> str:
        if not self.machine.gpu_name:
            return "no GPU"
        parts = {stage.name: stage for stage in self.stages}.get("train")
        if parts is None:
            return f"{self.vram_gb:.1f} GB"
        cache = "" if not self.cache_is_on_gpu else f", {self.encoded_gb * 1024:.0f} MB of encoded pictures beside it"
        return (
            f"{self.vram_gb:.1f} GB, {self.verdict(fitting.VRAM)}: base {parts.weights_gb:.1f}, LoRA and "
            f"optimizer {parts.adapter_gb + parts.optimizer_gb:.1f}, activations {parts.activations_gb:.1f}{cache}"
            f"{self._designs(fitting.VRAM)}"
        )

    def verdict(self, memory: str, stages: tuple[str, ...] = fitting.TRAINING) -> str:
        """Whether the named stages fit into one memory: fits, may not fit, or DOES NOT FIT with the worst stage."""
        short = [one for one in self.misfits if one.memory == memory and one.stage in stages]
        if not short:
            return "fits"
        worst = max(short, key=lambda one: (one.is_sure, one.needs_gb))
        return f"{'DOES NOT FIT' if worst.is_sure else 'may not fit'} (“{worst.stage}” needs {worst.needs_gb:.1f} GB)"

    def _designs(self, memory: str) -> str:
        """A word on the designs, where training's row would else be read as theirs."""
        short = [one for one in self.misfits if one.memory == memory and one.stage in fitting.DRAWING]
        return f"; designs {'do' if any(one.is_sure for one in short) else 'may'} not fit" if short else ""

    def _ram_words(self) -> str:
        has = f" of {self.machine.ram_gb:.1f}" if self.machine.ram_gb else ""
        told = f"{self.ram_gb:.1f}{has} GB at most, {self.verdict(fitting.RAM)}{self._designs(fitting.RAM)}"
        return f"{told}; {self.disk_gb:.1f} GB are written to disk"

    def _time_words(self) -> str:
        if self.minutes is None or self.total_minutes is None:
            return "not known for this machine"
        drawing = sum(one.minutes or 0 for one in self.stages if one.name in fitting.DRAWING)
        before = self.total_minutes - self.minutes - drawing
        return (
            f"{about(self.minutes)} to train ({self.time_is}), {time(before)} before and beside it, "
            f"{time(drawing)} for {counted(self.config.num_images, 'design')}{self._price_words()}"
        )

    def _price_words(self) -> str:
        """What all of it costs; that a free session may end before it."""
        if not self.prices or self.machine.gpu_name is None or self.total_minutes is None:
            return ""
        if not self.machine.is_colab:
            return f"; all of it {self.prices[0]}, if the machine is not yours"
        first, hours = self.prices[0], throughput.table()["colab_free_hours"]
        if first.usd or self.total_minutes < 60 * hours["likely"]:
            return f"; all of it {first}"
        never = "but" if self.total_minutes >= 60 * hours["most"] else "perhaps"
        return (
            f"; all of it {first}, {never} not in one session: a free one ends after {hours['most']} h at the latest, "
            "and often sooner; a run goes on where it was"
        )

    def _reasons(self) -> list[str]:
        """The plan's own choices first, then the preset's; what is over a page stands in one line."""
        told = [choice for choice in self.choices if choice.why]
        plain_one = ("num_processes", 1)  # says little, so that it is told last
        of_preset = self._of_preset()
        own = sorted(told, key=lambda one: ((one.setting, one.value) == plain_one, one.setting in of_preset))
        shown, rest = own[:REASONS_SHOWN], own[REASONS_SHOWN:]
        lines = [f"  {choice.setting} = {_short(choice.value)}: {choice.why}" for choice in shown]
        plain = [*rest, *(choice for choice in self.choices if not choice.why)]
        also = [f"{choice.setting} {_short(choice.value)}" for choice in plain]
        more = [f"and {len(also) - ALSO_SHOWN} more"] if len(also) > ALSO_SHOWN else []
        return [*lines, f"  also set: {', '.join(also[:ALSO_SHOWN] + more)}"] if also else lines

    def _of_preset(self) -> set[str]:
        from lace_lora import presets

        return set(presets.read(self.preset).settings) if self.preset not in ("none", "auto") else set()


def known_from(source: str) -> str:
    """Where a time is known from, in the words of a summary."""
    if source == throughput.ESTIMATED:
        return "estimated"
    return source.partition(" of ")[0] if source.startswith("scaled") or "your" in source else "measured"


def counted(number: int, thing: str) -> str:
    """Such as: 1 step, 20 steps."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def time(minutes: float) -> str:
    """Minutes in words: under 1 min, 52 min, 3.4 h."""
    if minutes < 0.75:
        return "under 1 min"
    hours = minutes / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def about(minutes: float) -> str:
    """The same of an estimate: about 52 min."""
    return time(minutes) if minutes < 0.75 else f"about {time(minutes)}"


def elsewhere(job: Job) -> tuple[Elsewhere, ...]:
    """The same training on the usual machines, as they would choose precision and checkpointing."""
    if job.config.pretrained_model == demo.MODEL or not job.model.is_counted:
        return ()
    own = throughput.name_of(job.machine.gpu_name or "", job.machine.vram_gb)
    found = []
    for gpu in throughput.table()["usual"]:
        if gpu == own:
            continue
        there = throughput.machine(gpu)
        precision, _ = there.precision("auto")
        ways = [("none", mode) for mode in fitting.MODES] + [("nf4", mode) for mode in fitting.MODES]
        for quantization, mode in ways:
            memory = {"quantization": quantization, "gradient_checkpointing": mode, "num_processes": 1}
            moved = replace(job, machine=there, precision=precision, config=job.config.with_preset(memory))
            if fitting.has_room(moved, ("train",)):
                minutes = stage_needs.train(moved).minutes
                found.append(Elsewhere(gpu, minutes, costs.of(gpu, minutes or 0.0), True))
                break
        else:
            found.append(Elsewhere(gpu, None, (), False))
    return tuple(found)


def side_by_side(plans: dict[str, Plan]) -> str:
    """Plans in columns: what they set and what they take."""
    names = ["resolution", "rank", "lora_targets", "train_batch_size", "gradient_accumulation_steps",
             "max_train_steps", "quantization", "gradient_checkpointing"]  # fmt: skip
    rows = [["", *plans]]
    rows += [[name, *(_short(getattr(plan.config, name)) for plan in plans.values())] for name in names]
    for name, told in (
        ("precision", lambda plan: plan.precision),
        ("GPU memory", lambda plan: f"{plan.vram_gb:.1f} GB" if plan.machine.gpu_name else "—"),
        ("memory", lambda plan: f"{plan.ram_gb:.1f} GB"),
        ("fits", lambda plan: plan.fits_in_words),
        ("training", lambda plan: "not known" if plan.minutes is None else time(plan.minutes)),
        ("whole job", lambda plan: "not known" if plan.total_minutes is None else time(plan.total_minutes)),
        ("price", lambda plan: str(plan.prices[0]) if plan.prices else "not known"),
    ):
        rows.append([name, *(told(plan) for plan in plans.values())])
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{one:<{wide[at]}}" for at, one in enumerate(row)).rstrip() for row in rows]
    assumed = {f"{one.pictures} pictures are assumed, because none could be counted: {one.assumed}": None
               for one in plans.values() if one.assumed}  # fmt: skip
    return "\n".join([*lines, *assumed])


def _short(value: object) -> str:
    """A value in few words: a list as its items, or as their number where they are many."""
    if not isinstance(value, tuple):
        return "empty" if value == "" else str(value)
    return " ".join(map(str, value)) if len(value) <= 2 else f"({len(value)} of them)"


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "AHL" else f"a {name}"
