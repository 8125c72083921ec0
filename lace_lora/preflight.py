"""Is everything in place? One row a fact about this machine, its libraries and the two folders, before work begins."""

import os
import platform
from pathlib import Path

from lace_lora import data_utils, install
from lace_lora.config import Config
from lace_lora.errors import LaceError
from lace_lora.machine import Machine
from lace_lora.presets import Settled

Row = tuple[str, str, bool, str]  # name, what was found, whether that will do, what to do when it will not

# Versions worth reading in a report of a fault; the others are checked too, but shown only when they are wrong.
SHOWN = ("torch", "diffusers", "transformers", "peft", "accelerate", "ipywidgets")


def rows(settled: Settled, machine: Machine) -> list[Row]:
    """What was found, what will do, and what to click or type where it will not."""
    return [*machine.reasons(), *_libraries(), _photographs(settled), _output(settled.config)]


def _libraries() -> list[Row]:
    found: list[Row] = [("Python", platform.python_version(), True, "")]
    for need in install.needs():
        if need.name in SHOWN or not need.is_met:
            advice = "" if need.is_met else f'Run the install cell, or type: pip install "{need.requirement}"'
            found.append((need.name, need.found or "not installed", need.is_met, advice))
    return found


def _photographs(settled: Settled) -> Row:
    config = settled.config
    if settled.preset == "demo" and not Path(config.images_dir).exists():
        return "photographs", f"drawn by program on first use, in {config.images_dir}", True, ""
    try:
        count = data_utils.count_pictures(config.images_dir, set(config.image_types))
    except LaceError as error:
        return "photographs", config.images_dir, False, str(error)
    return "photographs", f"{count} in {config.images_dir}", True, ""


def _output(config: Config) -> Row:
    folder = Path(config.lora_output_dir).expanduser()
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.access(parent, os.W_OK):
        return "results", config.lora_output_dir, True, ""
    return (
        "results",
        config.lora_output_dir,
        False,
        "Choose another lora_output_dir, or mount Drive first: nothing can be written there.",
    )
