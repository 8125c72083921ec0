"""Pictures in batches: what is computed at once, of one size, and how many that may be.

C latent channels (4) · H,W latent cells (px/8)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lace_lora.errors import ModelError
from lace_lora.families import sdxl as family
from lace_lora.machine import Machine


@dataclass(frozen=True)
class Batch:
    """Pictures computed at once, all of one size; each tuple has one entry a picture."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    start_CHW: Tensor | None = field(default=None, compare=False)  # latents of a picture that all begin with


def in_batches(
    prompts: Sequence[str], negative_prompts: Sequence[str], seeds: Sequence[int], width: int, height: int, batch: int
) -> list[Batch]:
    """Pictures of one size in batches of `batch`, the last one with what is left."""
    starts = range(0, len(seeds), batch)
    cuts = [slice(start, start + batch) for start in starts]
    return [Batch(tuple(prompts[cut]), tuple(negative_prompts[cut]), tuple(seeds[cut]), width, height) for cut in cuts]


def batch_size(model: str, width: int, height: int, machine: Machine) -> int:
    """Pictures computed at once, 8 at most: on a GPU as many latent cells as one SDXL picture of 1024 px has, which
    with guidance fits beside the UNet in 15 GB, and two or four times as many in 20 or 36 GB.

    On a CPU a batch saves next to nothing (the demo's 96 px: 8 at once 2.92 s, one by one 3.02 s), and a small one
    loses less when it is cut off.
    """
    downscale = family.layout(model).downscale
    cells = (width // downscale) * (height // downscale)
    room = 128 * 128 * (4 if machine.vram_gb >= 36 else 2 if machine.vram_gb >= 20 else 1)
    return max(1, min(8, (room if machine.gpu_name else 48 * 48) // cells))


def texts_of(batches: Iterable[Batch]) -> set[str]:
    """All texts that the batches need encoded."""
    return {text for batch in batches for text in (*batch.prompts, *batch.negative_prompts)}


def check_pair(base_model: str, refiner_model: str) -> None:
    """Raises ModelError where a refiner cannot take this base's latents."""
    base, refiner = family.layout(base_model), family.layout(refiner_model)
    is_same = base.latent_channels == refiner.latent_channels and base.downscale == refiner.downscale
    if not is_same or refiner.text_width > base.text_width:
        raise ModelError(
            f"The refiner {refiner_model} does not fit the base {base_model}: their latents or texts differ in shape. "
            "Choose the refiner that belongs to this base, or refine none."
        )
