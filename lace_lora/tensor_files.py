"""Tensors to a file: safetensors' writer, whose errors of the operating system come as OSErrors again."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from lace_lora.families.quiet import quiet

with quiet():
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    from torch import Tensor


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError, with its number, where the disk is full or does not answer.

    safetensors says "I/O error: No space left on device (os error 28)" in an error of its own, which nobody who waits
    for a full disk would catch.
    """
    try:
        save_file(dict(tensors), path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
