"""The plan again, as a person changes settings: by arithmetic alone, so that a form can ask at every change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lace_lora import costs, estimate, experience, plans, presets, throughput
from lace_lora.config import Config
from lace_lora.data_utils import count_pictures
from lace_lora.errors import LaceError, ModelError, PicturesError
from lace_lora.estimate import Caution, Plan
from lace_lora.experience import Experience
from lace_lora.fitting import DRAWING, RAM, TRAINING, VRAM
from lace_lora.machine import Machine
from lace_lora.presets import Settled

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Drawing:
    """What new designs need: settled settings, and the plan that tells the time and memory of drawing them."""

    settled: Settled
    plan: Plan


Planned = Plan | Settled | Drawing
Replan = Callable[[Config], Planned]


@dataclass(frozen=True)
class Shown:
    """What a form shows beside the settings: the values that will run, why, the preset in force, what to beware of.

    rows  the summary of a plan; none where there is no plan
    """

    planned: Config
    preset: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[tuple[str, str], ...] = ()
    cautions: tuple[Caution, ...] = ()

    @classmethod
    def of(cls, config: Config, found: Planned | None) -> "Shown":
        """From a plan, from settled settings, or from the settings alone."""
        if found is None:
            return cls(config)
        if isinstance(found, Settled):
            return cls(found.config, found.preset, found.reasons)
        if isinstance(found, Drawing):
            settled = found.settled
            cautions = tuple(one for one in found.plan.warnings if one.setting == "width")
            return cls(settled.config, settled.preset, settled.reasons, tuple(drawing_summary(found)), cautions)
        reasons = {one.setting: one.why for one in found.choices}
        return cls(found.config, found.preset, reasons, tuple(plan_summary(found)), found.warnings)


def resettler(machine: Machine) -> Callable[[Config], Settled]:
    """A function that applies the preset of changed settings on a machine, where nothing is to be planned."""
    return lambda config: presets.settle(config, machine)


def drawing(machine: Machine, base_model: str = "", resolution: int = 0) -> Callable[[Config], Drawing]:
    """A function that tells what new designs need on a machine.

    base_model, resolution  of the adapter (AdapterFacts), which draws with the model and at the size that it learnt
    """
    known: Experience | None = None
    learnt = {
        name: value for name, value in {"pretrained_model": base_model, "resolution": resolution}.items() if value
    }

    def replan(config: Config) -> Drawing:
        nonlocal known
        settled = presets.settle(config, machine)
        if known is None:
            known = experience.read(settled.config.cache_dir, machine, settled.config.lora_output_dir)
        drawn_with = learnt | {"quantization": settled.draws_in}
        as_learnt = Settled(settled.config.with_preset(drawn_with), settled.preset, settled.why, {})
        return Drawing(settled, estimate.plan(as_learnt, machine, 1, known))  # the pictures learnt do not matter here

    return replan


def replanner(first: Plan) -> Replan:
    """A function that plans changed settings for the machine and the pictures of a first plan (estimate.prepare).

    Pictures are counted again only when their folder or their file types change; nothing is written, and the demo's
    pictures are not drawn. What it is given is the settings as asked for, with `auto` and without a preset's values.

    It raises the LaceError that says what is in the way; a folder that cannot be used is not looked at again either.
    """
    looked_at: tuple[str, tuple[str, ...]] = (first.config.images_dir, first.config.image_types)
    found: int | PicturesError = first.pictures

    def replan(config: Config) -> Plan:
        nonlocal looked_at, found
        settled = presets.settle(config, first.machine)
        asked = (settled.config.images_dir, settled.config.image_types)
        if asked != looked_at:
            looked_at, found = asked, _counted(settled)
        if isinstance(found, PicturesError):
            raise PicturesError(str(found))
        return estimate.plan(settled, first.machine, found, first.known)

    return replan


def about(error: LaceError) -> Caution:
    """Why no plan can be made, as a caution with the setting that it is about; "preset" where none stands out."""
    if isinstance(error, PicturesError):
        return Caution("images_dir", str(error))
    return Caution("pretrained_model" if isinstance(error, ModelError) else "preset", str(error))


def plan_summary(plan: Plan) -> Rows:
    """What a person must know before starting, as rows of (name, value): fits, time, cost, steps, passes.

    The cost is Colab's own of the whole job, designs included, and stands only there: one's own machine costs nothing.
    """
    config, minutes = plan.config, plan.total_minutes
    pictures_a_step = int(config.train_batch_size) * int(config.gradient_accumulation_steps)
    return [
        ("GPU memory", _memory(plan.machine, plan.vram_gb, plan.verdict(VRAM))),
        *_ram(plan, TRAINING),
        ("time", _time(plan.minutes, plan.time_is)),
        *_cost(plan.machine, minutes),
        ("steps", f"{config.max_train_steps} of {pictures_a_step} pictures"),
        ("passes", f"{plan.epochs:.1f} over {plan.pictures} pictures at {config.resolution} px"),
    ]


def drawing_summary(found: Drawing) -> Rows:
    """The same for new designs: fits, time, cost, and how many of which size."""
    plan, config = found.plan, found.plan.config
    stages = [stage for stage in plan.stages if stage.name in DRAWING]
    seconds = [stage.seconds for stage in stages]
    minutes = None if None in seconds else sum(one for one in seconds if one is not None) / 60
    sources = [stage.source for stage in stages]
    time_is = plans.known_from(next((one for one in sources if one == throughput.ESTIMATED), sources[0]))
    needs_gb = max(stage.memory_gb for stage in stages)
    rows = [("GPU memory", _memory(plan.machine, needs_gb, plan.verdict(VRAM, DRAWING))), *_ram(plan, DRAWING)]
    if plan.stage("generate").quantization == "nf4":
        rows.append(("base", "drawn with in 4 bits, a little coarser"))
    size = f"{config.width or config.resolution} × {config.height or config.resolution} px"
    if config.favourites_of or config.prompts_file:  # how many these are is not known before they are read
        return [*rows, ("designs", f"as many as {'favourites_of' if config.favourites_of else 'prompts_file'} names")]
    designs = ("designs", f"{config.num_images} of {size}")
    return [*rows, ("time", _time(minutes, time_is)), *_cost(plan.machine, minutes), designs]


def _memory(machine: Machine, vram_gb: float, verdict: str) -> str:
    if machine.gpu_name is None:
        return f"no GPU; runs on the CPU, {machine.cpu_cores} cores"
    return f"{verdict.partition(' (')[0]}: needs {vram_gb:.1f} of {machine.vram_gb:.1f} GB on {machine.gpu_name}"


def _ram(plan: Plan, stages: tuple[str, ...]) -> Rows:
    """A row on the computer's memory, where that is short."""
    verdict = plan.verdict(RAM, stages)
    return [] if verdict == "fits" else [("memory", f"{verdict} of this computer's {plan.machine.ram_gb:.1f}")]


def _cost(machine: Machine, minutes: float | None) -> Rows:
    """Colab's price, where this is Colab and has one."""
    if not machine.is_colab or machine.gpu_name is None or minutes is None:
        return []
    gpu = throughput.name_of(machine.gpu_name, machine.vram_gb)
    found = [price for price in costs.of(gpu, minutes) if gpu and price.offer == "Colab"]
    return [("cost", f"{price} ({costs.as_of()})" if price.usd else str(price)) for price in found]


def _time(minutes: float | None, time_is: str) -> str:
    return "not known for this machine" if minutes is None else f"{plans.about(minutes)} ({time_is})"


def _counted(settled: presets.Settled) -> int | PicturesError:
    """How many pictures are to be learnt, or why they cannot be counted."""
    folder = settled.config.images_dir
    if presets.draws_its_own(settled) and not Path(folder).is_dir():
        return PicturesError(f"The demo's pictures are not drawn yet: {folder} is filled when the training begins.")
    try:
        return count_pictures(folder, set(settled.config.image_types))
    except PicturesError as error:
        return error
    except OSError as error:
        return PicturesError(
            f"{folder} cannot be read ({error.strerror or error}). Mount Drive, or correct images_dir."
        )
