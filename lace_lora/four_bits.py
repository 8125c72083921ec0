"""Whether a base is drawn with as it is or in 4 bits, and what is said where the package for 4 bits is missing.

It is asked for before anything is written, but of what was begun in 4 bits only once there is something left to draw.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lace_lora import quantize
from lace_lora.config import Config
from lace_lora.errors import MachineError
from lace_lora.quantize import FourBits

BEGUN = "so the sheet was begun"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Based:
    """In what the base is drawn with, none or nf4, why, and whether the sheet was begun so."""

    quantization: str
    why: str
    is_begun: bool = False


def base(config: Config, based: Based, say: Say) -> FourBits | None:
    """The base in 4 bits, which is told; else None.

    Raises MachineError where the package for 4 bits is missing and nothing is begun in them.
    """
    if based.quantization == "none":
        if based.is_begun and based.why == BEGUN:
            say(f"drawing   with the base as it is: {based.why}")
        return None
    if not based.is_begun:
        check_package(because="" if config.quantization == "nf4" else based.why)
    say(f"drawing   with the base in 4 bits (nf4): {based.why}")
    return FourBits(config.cache_dir, say)


def check_package(*, begun: str = "", because: str = "") -> None:
    """Raises MachineError, with what to do, where the package for 4 bits is missing.

    begun    what was begun in 4 bits and is not finished: a sheet or a grid
    because  why the plan draws in 4 bits, where nobody asked for it
    """
    try:
        quantize.check_bitsandbytes()
    except MachineError as error:
        needed = "needs the package bitsandbytes: pip install bitsandbytes, then run the same again."
        if begun:
            raise MachineError(
                f"This {begun} was begun with the base in 4 bits, which {needed} What is finished stays; quantization "
                f"none would begin another {begun}."
            ) from error
        if because:
            raise MachineError(f"The base is to be drawn with in 4 bits ({because}), which {needed}") from error
        raise
