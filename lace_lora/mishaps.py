"""What goes wrong while pictures are drawn, as sentences: memory that runs out, numbers that overflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lace_lora.errors import MachineError
from lace_lora.families.quiet import quiet
from lace_lora.machine import is_out_of_memory

with quiet():
    import torch
    from torch import Tensor


class OutOfMemory(MachineError):
    """Memory ran out; with less at once it may do."""


@contextmanager
def out_of_memory(doing: str) -> Iterator[None]:
    """Turn running out of memory into an OutOfMemory error that names what to try next."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUBLAS" in str(error)
        # The refiner and what reads prompts are never in 4 bits.
        smaller_base = "quantization nf4" if doing == "drawing" else "mixed_precision fp16"
        raise OutOfMemory(
            f"{'The GPU' if on_gpu else 'This computer'} ran out of memory while {doing}. Next to try: smaller width "
            f"and height, {smaller_base} on a GPU, or refine none. What is finished is kept; run again to go on."
        ) from error


def check_finite(tensor_B: Tensor, names: Sequence[str], doing: str) -> None:
    """Raises MachineError naming the pictures whose numbers overflowed."""
    bad = [name for name, one in zip(names, tensor_B, strict=True) if not bool(torch.isfinite(one).all())]
    if bad:
        raise MachineError(
            f"{', '.join(bad)} became NaN while {doing}, so there is no picture to write. "
            "Next to try: mixed_precision no (fp32), a smaller lora_scale, or a smaller guidance_scale."
        )
