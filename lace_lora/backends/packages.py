"""Packages that only a place elsewhere needs: imported when they are asked for, and named where they are missing."""

from importlib import import_module
from typing import Any

from lace_lora.errors import MachineError


def needed(module: str, package: str, extra: str) -> Any:
    """A module of a package. Raises MachineError naming the pip install where it is missing.

    extra  of Lace LoRA that brings it
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MachineError(
            f"The package {package} is missing. Install it with: pip install {package} (or lace-lora[{extra}])."
        ) from error
