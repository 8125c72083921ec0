"""What the models that are trained by flow matching share: SD 3.5 and Flux. Noising, sampling, and their transformers.

B batch · C latent channels (16) · H,W latent cells (px/8)
Picture and noise are mixed along a straight line, x_σ = (1 − σ)·x + σ·noise with σ from 0 to 1, and the model says in
which direction it runs: noise − x. A time is 1000·σ, any number between, where SDXL's are whole numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lace_lora.errors import AdapterError, SettingsError
from lace_lora.families import lora_names
from lace_lora.families.folders import model_folder, part_config
from lace_lora.families.layouts import layout
from lace_lora.families.libraries import of_diffusers
from lace_lora.families.quiet import quiet

with quiet():
    import torch
    from torch import Tensor

DENOISER = "transformer"
TIMES = 1000.0
PATCH = 2  # latent cells a side that the transformers read as one place
SAMPLERS = ("euler",)
_WITHIN = 1e-6  # the normal's quantiles of 0 and 1 are infinite


@dataclass(frozen=True)
class Noising:
    """How far training leans towards noise: σ = shift·s / (1 + (shift − 1)·s) of an unshifted s."""

    shift: float


# -- one training step's mathematics --


def noising(model: str, device: str = "cpu", side_px: int | None = None) -> Noising:
    """The shift that the model was trained with, by the scheduler that it ships.

    side_px  of the square that is learnt; None for the model's own

    Flux-dev's depends on the size, in training as in drawing: e^1.15 = 3.16 at 1024 px, 1.88 at 512.
    """
    shipped = part_config(model_folder(model), "scheduler")
    if not shipped.get("use_dynamic_shifting"):
        return Noising(float(shipped.get("shift", 1.0)))
    sizes = layout(model)
    cells = (side_px or sizes.side_px) // sizes.downscale
    return Noising(math.exp(mu(shipped, (cells, cells))))


def times(noising: Noising, within_B: Tensor) -> Tensor:
    """The times that numbers uniform in 0..1 stand for, [B], float32, 0..1000: logit-normal, then shifted.

    Source: Esser et al. 2024, sections 3.1 and 5.3.2, https://arxiv.org/abs/2403.03206; tests compare with diffusers'
    compute_density_for_timestep_sampling.
    """
    plain_B = torch.special.ndtri(within_B.double().clamp(_WITHIN, 1 - _WITHIN)).sigmoid()
    return (TIMES * shifted(plain_B, noising.shift)).float()


def shifted(plain_B: Tensor, shift: float) -> Tensor:
    """σ of an unshifted one: a larger picture needs more noise to hide as much of it."""
    return shift * plain_B / (1 + (shift - 1) * plain_B)


def add_noise(noising: Noising, latents_BCHW: Tensor, noise_BCHW: Tensor, times_B: Tensor) -> Tensor:
    """Mix latents with noise along the straight line, each image at its own time.

    latents_BCHW  float32, in the transformer's units (scale_latents); noise_BCHW standard normal
    """
    sigmas = _sigmas(times_B, latents_BCHW)
    return (1 - sigmas) * latents_BCHW + sigmas * noise_BCHW


def target(noising: Noising, latents_BCHW: Tensor, noise_BCHW: Tensor, times_B: Tensor) -> Tensor:
    """What the transformer should predict, BCHW: the direction from picture to noise, the same at every time."""
    return noise_BCHW - latents_BCHW


def weights(noising: Noising, times_B: Tensor, gamma: float) -> Tensor:
    """Weight of each image's loss, [B]: ones. Which times are drawn often is the weighting; min-SNR is for ε and v.

    Raises ValueError for a gamma above 0.
    """
    if gamma > 0:
        raise ValueError(f"min_snr_gamma {gamma:g} has no meaning for flow matching; the rooms above refuse it.")
    return torch.ones(len(times_B), device=times_B.device)


def size_numbers(original_hw: tuple[int, int], crop_top_left: tuple[int, int], target_hw: tuple[int, int]) -> Tensor:
    """None: [0]. These transformers are told nothing about sizes."""
    return torch.zeros(0)


# -- sampling --


def sampler(name: str, model: str) -> Any:
    """The scheduler that the model ships, its times not yet set.

    Raises SettingsError for a name other than euler: the others solve another equation.
    """
    if name not in SAMPLERS:
        raise SettingsError(
            f"scheduler {name} draws noise predictions, and {model} predicts flow. Use scheduler euler."
        )
    return of_diffusers("FlowMatchEulerDiscreteScheduler").from_config(part_config(model_folder(model), "scheduler"))


def mu(told: Mapping[str, Any], cells_hw: tuple[int, int]) -> float:
    """The logarithm of the shift for a picture of that many latent cells: a straight line through two sizes.

    told  the scheduler's config; without numbers of its own those of Flux' pipeline, 0.5 for 256 places of 2 by 2 cells
          and 1.15 for 4096, which are 1024 px
    """
    few, many = told.get("base_image_seq_len", 256), told.get("max_image_seq_len", 4096)
    low, high = told.get("base_shift", 0.5), told.get("max_shift", 1.15)
    places = (cells_hw[0] // PATCH) * (cells_hw[1] // PATCH)
    return float(low + (high - low) * (places - few) / (many - few))


# -- the transformer --


def targets(kinds: Mapping[str, list[str]], kind: str, what: str) -> list[str]:
    """Endings of the module names that get a LoRA. Raises SettingsError for a kind that only a UNet has."""
    if kind not in kinds:
        raise SettingsError(
            f"lora_targets {kind} has no meaning for {what}, whose transformer has neither convolutions nor an upper "
            f"half. Use {' or '.join(kinds)}."
        )
    return list(kinds[kind])


def checkpoint_activations(denoiser: Any, mode: str) -> None:
    """Which activations are computed again in the backward pass instead of kept: none, transformers, or full.

    The last two are the same here: a transformer is nothing but its blocks.
    """
    if mode == "none":
        denoiser.disable_gradient_checkpointing()
    else:
        denoiser.enable_gradient_checkpointing()


def for_other_tools(state: Mapping[str, Tensor], alpha: float, layers_per_block: int = 0) -> dict[str, Tensor]:
    """The LoRA in the names that ComfyUI's and Forge's loaders know for both families, those of OneTrainer.

    Their models hold to_q, to_k and to_v in one matrix; they know these names as parts of it.
    """
    return lora_names.in_kohyas_form(state, alpha, _key)


def _key(name: str) -> str:
    if not name.startswith(f"{DENOISER}."):
        raise AdapterError(f"{name} has no name for other tools; only a LoRA of the transformer has.")
    return f"lora_{name.replace('.', '_')}"


def _sigmas(times_B: Tensor, like: Tensor) -> Tensor:
    if len(times_B) != len(like):
        raise ValueError(f"one time per image: got {len(times_B)} for {len(like)} images.")
    return (times_B.to(device=like.device, dtype=like.dtype) / TIMES)[:, None, None, None]
