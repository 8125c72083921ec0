"""The VAE that a model brings, pictures to latents, and latents between its units and the denoiser's; all families'.

B batch · C latent channels, or 3 colours · H,W latent cells, or px
"""

from typing import Any

from lace_lora.families.layouts import Layout
from lace_lora.families.loading import load_network
from lace_lora.families.quiet import quiet

with quiet():
    import torch
    from torch import Tensor


def load_vae(model: str, dtype: torch.dtype, device: str) -> Any:
    """The frozen VAE. SDXL's own overflows to NaN in fp16: ask for float32."""
    return load_network("AutoencoderKL", model, "vae", dtype, device)


@torch.no_grad()
def encode_images(vae: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents, both BCHW, float32, not scaled.

    pixels_BCHW  float32, -1..1, sides divisible by the layout's pixel_step
    """
    posterior = vae.encode(pixels_BCHW.to(device=vae.device, dtype=vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.std.float()


def scale_latents(latents_BCHW: Tensor, sizes: Layout) -> Tensor:
    """From the VAE's units to the denoiser's."""
    if sizes.latents_mean is not None and sizes.latents_std is not None:
        mean, std = (_per_channel(values, latents_BCHW) for values in (sizes.latents_mean, sizes.latents_std))
        return (latents_BCHW - mean) * sizes.scaling_factor / std
    if sizes.shift_factor:
        return (latents_BCHW - sizes.shift_factor) * sizes.scaling_factor
    return latents_BCHW * sizes.scaling_factor


def unscale_latents(latents_BCHW: Tensor, sizes: Layout) -> Tensor:
    """From the denoiser's units back to the VAE's."""
    if sizes.latents_mean is not None and sizes.latents_std is not None:
        mean, std = (_per_channel(values, latents_BCHW) for values in (sizes.latents_mean, sizes.latents_std))
        return latents_BCHW * std / sizes.scaling_factor + mean
    if sizes.shift_factor:
        return latents_BCHW / sizes.scaling_factor + sizes.shift_factor
    return latents_BCHW / sizes.scaling_factor


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
