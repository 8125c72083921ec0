"""The plan again, as a person changes settings: by arithmetic alone, so that a form can ask at every change."""

from collections.abc import Callable
from pathlib import Path

from lace_lora import costs, estimate, presets
from lace_lora.config import Config
from lace_lora.data_utils import count_pictures
from lace_lora.errors import LaceError, ModelError, PicturesError
from lace_lora.estimate import Caution, Plan

Replan = Callable[[Config], Plan]


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


def plan_summary(plan: Plan) -> list[tuple[str, str]]:
    """What a person must know before starting, as rows of (name, value): fits, time, cost, steps, passes.

    The cost is that of the whole job, designs included, and stands only where this kind of machine has a price.
    """
    config, machine = plan.config, plan.machine
    if machine.gpu_name is None:
        fits = f"no GPU; runs on the CPU, {machine.cpu_cores} cores"
    else:
        word = "fits" if plan.fits else "DOES NOT FIT"
        fits = f"{word}: needs {plan.vram_gb:.1f} of {machine.vram_gb:.1f} GB on {machine.gpu_name}"
    pictures_a_step = int(config.train_batch_size) * int(config.gradient_accumulation_steps)
    cost = [("cost", " or ".join(map(str, plan.prices[:2])) + f" ({costs.as_of()})")] if plan.prices else []
    return [
        ("GPU memory", fits),
        ("time", _duration(plan)),
        *cost,
        ("steps", f"{config.max_train_steps} of {pictures_a_step} pictures"),
        ("passes", f"{plan.epochs:.1f} over {plan.pictures} pictures at {config.resolution} px"),
    ]


def _duration(plan: Plan) -> str:
    if plan.minutes is None:
        return "not known for this machine"
    if plan.minutes < 1:
        return f"under a minute ({plan.time_is})"
    hours, rest = divmod(round(plan.minutes), 60)
    return f"about {f'{hours} h {rest} min' if hours else f'{rest} min'} ({plan.time_is})"


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
