"""The command `plan`: a page and a table, JSON, or several presets side by side, for this machine or another GPU."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from lace_lora import presets
from lace_lora.config import Config
from lace_lora.errors import SettingsError

if TYPE_CHECKING:
    from lace_lora.plans import Plan

SWITCHES = {"json": "everything as JSON, for other programs"}
TEXTS = {
    "compare": typer.Option(metavar="PRESETS", help="presets side by side, such as fast,lace-t4,lace-t4-qlora"),
    "gpu": typer.Option(metavar="NAME", help="plan for a machine with this GPU, such as T4, or cpu, not for this one"),
}
USUAL_PICTURES = 250  # where no folder of pictures is there to be counted


def run(
    config: Config, as_json: bool, compare: Sequence[str] | None, gpu: Sequence[str] | str | None,
    here: Callable[[], "Plan"], say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Print the plan of these settings.

    compare  names of presets, apart or with commas between them
    gpu      a GPU of the plan's table, or empty for this machine
    here     the plan for this machine, which also counts pictures

    Raises SettingsError for a preset or a GPU that there is not.
    """
    names = [name.strip() for text in compare or () for name in text.split(",") if name.strip()]
    chosen = (gpu if isinstance(gpu, str) else gpu[0]) if gpu else None
    if compare and not names:
        raise SettingsError("--compare names no preset. Name some, such as: --compare fast,lace-t4,lace-t4-qlora")
    if names:
        from lace_lora.plans import side_by_side

        plans = compared(config, names, chosen)
        text = {name: plan.as_json() for name, plan in plans.items()}
        say(json.dumps(text, indent=1) if as_json else side_by_side(plans))
        fixed = sorted({name for preset in names for name in _kept_beside(preset, config)} - {"preset"})
        if fixed and not as_json:
            say(f"Set by you, so by no preset: {', '.join(fixed)}.")
        return
    plan = elsewhere(config, chosen) if chosen else here()
    say(json.dumps(plan.as_json(), indent=1) if as_json else f"{plan}\n\n{plan.table()}" if plan.stages else str(plan))


def _kept_beside(preset: str, config: Config) -> set[str]:
    """The settings of a preset that are not taken from it."""
    if preset in ("auto", "none"):
        return set()
    return presets.kept_beside(preset, config.model_copy(update={"preset": preset})) & set(
        presets.read(preset).settings
    )


def compared(config: Config, names: Sequence[str], gpu: str | None) -> dict[str, "Plan"]:
    """A plan for each preset, all for one machine and the same pictures; nothing is drawn or fetched."""
    return {name: elsewhere(config.model_copy(update={"preset": name}), gpu) for name in names}


def elsewhere(config: Config, gpu: str | None) -> "Plan":
    """The plan for a machine with that GPU, or for this one; pictures are counted where there are any, else 250."""
    from lace_lora import estimate, throughput
    from lace_lora.machine import Machine

    here = Machine.here(config.drive_mount_path)
    return estimate.elsewhere(config, throughput.machine(gpu, here) if gpu else here, USUAL_PICTURES)
