"""Pictures in batches: what is computed at once, of one size, and how many that may be.

C latent channels (4) · H,W latent cells (px/8)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lace_lora import throughput
from lace_lora.errors import ModelError, SettingsError
from lace_lora.families.layouts import layout
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
    """Pictures computed at once on this machine, 8 at most; the plan counts with the same number."""
    downscale = layout(model).downscale
    return throughput.pictures_at_once((width // downscale) * (height // downscale), machine)


def texts_of(batches: Iterable[Batch]) -> set[str]:
    """All texts that the batches need encoded."""
    return {text for batch in batches for text in (*batch.prompts, *batch.negative_prompts)}


def check_size(model: str, width: int, height: int) -> None:
    """Raises SettingsError, with the nearest size that will do, where a model cannot draw pictures of that size."""
    sizes = layout(model)
    for name, side in (("width", width), ("height", height)):
        if side % sizes.side_step:
            low = side // sizes.side_step * sizes.side_step
            nearest = f"{low} or {low + sizes.side_step}" if low else f"{sizes.side_step}"
            raise SettingsError(f"{name} is {side} px, and this base model needs a multiple of {sizes.side_step}; use "
                                f"{nearest}.")  # fmt: skip
        if sizes.largest_px and side > sizes.largest_px:
            raise SettingsError(f"{name} is {side} px, and this base model draws {sizes.largest_px} px at most.")


def check_pair(base_model: str, refiner_model: str) -> None:
    """Raises ModelError where a refiner cannot take this base's latents."""
    base, refiner = layout(base_model), layout(refiner_model)
    is_same = base.latent_channels == refiner.latent_channels and base.downscale == refiner.downscale
    if not is_same or refiner.text_width > base.text_width:
        raise ModelError(
            f"The refiner {refiner_model} does not fit the base {base_model}: their latents or texts differ in shape. "
            "Choose the refiner that belongs to this base, or refine none."
        )
