"""Folders that something is to be written into: those that must be there already, and those that are made.

The empty folder that an unmounted Drive leaves takes files as any other folder, and with files in it Drive cannot be
mounted again. So whoever writes into a folder that a person works in asks first whether it is still there.
"""

import os
from pathlib import Path

from lace_lora.errors import MachineError, RunError
from lace_lora.file_names import printable

NOT_THERE = "If it lies on Drive, Drive is not connected any more: run the notebook again from the top."


def check_there(folder: Path) -> None:
    """Raises MachineError where a folder is gone, or its Drive does not answer; none is made in its place."""
    if not os.path.isdir(folder):
        raise MachineError(f"Nothing was saved: {printable(folder)} is not there any more. {NOT_THERE}")


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there now."""
    folder = folder.expanduser().absolute()
    return next(one for one in (folder, *folder.parents) if os.path.isdir(one))


def make(folder: Path, what: str, instead: str) -> None:
    """Make a folder and those above it, unless it is there.

    what     it is, and instead: what to do where it cannot be made, both in the sentence

    Raises RunError where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{what} {printable(folder)} cannot be made ({reason}). {instead}") from error
