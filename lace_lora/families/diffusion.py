"""Denoising diffusion (DDPM) as SDXL and its elders learn it, ε or v, and the samplers that draw with it.

B batch · C latent channels (4) · H,W latent cells (px/8)
"""

from typing import Any

from lace_lora.errors import ModelError
from lace_lora.families.folders import model_folder, part_config
from lace_lora.families.libraries import of_diffusers
from lace_lora.families.quiet import quiet

with quiet():
    import torch
    from torch import Tensor

# Each with what it changes in the model's own schedule. Only samplers that draw no noise on the way, so that a picture
# is its seed's alone whatever it is computed with, and that pass the UNet once a step, so that base and refiner share
# the steps as they are counted: not the ancestral and SDE ones, nor Heun. Karras' schedule puts more of the steps into
# little noise: of 30, a refiner that starts at 0.85 has 10 there and 4 in the others.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
}


def noising(model: str, device: str = "cpu", side_px: int | None = None) -> Any:
    """The forward process that the model was trained with, taken from the scheduler that it ships, whatever the size.

    A sampler such as Euler is never used for noising: its add_noise gives a standard deviation of 8.5 at step 900.
    """
    shipped = part_config(model_folder(model), "scheduler")
    names = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "rescale_betas_zero_snr",
    )
    values = {name: shipped[name] for name in names if name in shipped}
    kind = values.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"{model} predicts {kind!r}; only epsilon and v_prediction models can be trained here.")
    if kind == "epsilon" and values.get("rescale_betas_zero_snr"):
        raise ModelError(
            f"{model} asks for zero terminal SNR with epsilon prediction: at the last time it would see nothing. "
            "Choose a v-prediction model."
        )
    scheduler = of_diffusers("DDPMScheduler")(**values, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    return scheduler


def times(noising: Any, within_B: Tensor) -> Tensor:
    """Steps of the schedule [B], long, for numbers uniform in 0..1."""
    return (within_B * noising.config.num_train_timesteps).long()


def add_noise(noising: Any, latents_BCHW: Tensor, noise_BCHW: Tensor, times_B: Tensor) -> Tensor:
    """Mix latents with noise at each image's own time: the forward process of DDPM.

    latents_BCHW  float32, in the UNet's units (scale_latents)
    noise_BCHW    same shape, standard normal
    returns       noisy latents, BCHW
    Source: Ho et al. 2020, eq. 4, https://arxiv.org/abs/2006.11239 (tests compare with DDPMScheduler.add_noise).
    """
    keep, lose = _keep_and_lose(noising, times_B, latents_BCHW)
    return keep * latents_BCHW + lose * noise_BCHW


def target(noising: Any, latents_BCHW: Tensor, noise_BCHW: Tensor, times_B: Tensor) -> Tensor:
    """What the UNet should predict, BCHW: the noise, or the velocity.

    Source: Salimans and Ho 2022, appendix D, https://arxiv.org/abs/2202.00512 (tests compare with get_velocity).
    """
    if noising.config.prediction_type == "epsilon":
        return noise_BCHW
    keep, lose = _keep_and_lose(noising, times_B, latents_BCHW)
    return keep * noise_BCHW - lose * latents_BCHW


def weights(noising: Any, times_B: Tensor, gamma: float) -> Tensor:
    """Weight of each image's loss, [B]: min(snr, γ)/snr for ε, min(snr, γ)/(snr + 1) for v; ones where gamma is 0.

    Source: Hang et al. 2023, https://arxiv.org/abs/2303.09556; its mean over all times is about 0.917 for ε and γ = 5.
    """
    if gamma == 0:
        return torch.ones(len(times_B), device=times_B.device)
    alphas_B = noising.alphas_cumprod.to(times_B.device)[times_B].float()
    snr_B = alphas_B / (1 - alphas_B)
    divisor_B = snr_B if noising.config.prediction_type == "epsilon" else snr_B + 1
    return snr_B.clamp(max=gamma) / divisor_B


def make_sampler(
    name: str, model: str, steps: int, cells_hw: tuple[int, int], prediction_type: str | None = None
) -> Any:
    """A sampler of that name over the model's own noise schedule, its times set; the size decides nothing here."""
    kind, changes = SCHEDULERS[name]
    shipped = part_config(model_folder(model), "scheduler")
    if prediction_type is not None:
        shipped = shipped | {"prediction_type": prediction_type}
    # DDIM alone clips to -1..1 by default, which is meant for pixels and would wreck latents.
    with quiet():  # diffusers' multistep scheduler warns of numpy 2 in set_timesteps
        scheduler = of_diffusers(kind).from_config({"clip_sample": False} | shipped | changes)
        scheduler.set_timesteps(steps)
    return scheduler


def _keep_and_lose(noising: Any, times_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alphas_B = noising.alphas_cumprod.to(device=like.device, dtype=like.dtype)[times_B.to(like.device)]
    if len(alphas_B) != len(like):
        raise ValueError(f"one time per image: got {len(alphas_B)} for {len(like)} images.")
    return alphas_B.sqrt()[:, None, None, None], (1 - alphas_B).sqrt()[:, None, None, None]
