"""How a picture is drawn step by step: where the refiner takes over, and the noise that it begins with.

B batch · C latent channels (4) · H,W latent cells (px/8)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lace_lora.cloth import Repeat
from lace_lora.errors import SettingsError


@dataclass(frozen=True)
class Sampling:
    """How noise becomes a picture: the sampler by name, its steps and how strictly the prompt is followed.

    guidance_until  share of the steps that are guided; the last ones hardly change for it and cost half without
    start_strength  share of the steps that are made from a picture that is begun with
    repeat          how the picture joins itself at its edges
    repeat_from     share of the steps after which it does; before, it is composed as a picture with edges
    """

    scheduler: str
    steps: int
    guidance_scale: float
    guidance_until: float = 1.0
    start_strength: float = 1.0
    repeat: Repeat = "none"
    repeat_from: float = 0.0


@dataclass(frozen=True)
class Refining:
    """What the refiner does: take over at `start` of the schedule (ensemble), or redo `strength` of it (img2img)."""

    mode: Literal["ensemble", "img2img"]
    start: float
    strength: float


def noise(seeds: Sequence[int], cells_CHW: tuple[int, int, int], *, draw: int = 1) -> Tensor:
    """Standard normal noise BCHW, each picture's from a generator of its own seed on the CPU, so that it is the same
    on every machine and in every batch.

    draw  1 for the starting noise, 2 for the refiner's: the next draw of the same generator. A second generator with
          a shifted seed would not do: it is another picture's, and torch's CPU generator drops what is above 32 bits.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    draws = [[torch.randn((1, *cells_CHW), generator=generator) for _ in range(draw)] for generator in generators]
    return torch.cat([one[-1] for one in draws])


def split_at(scheduler: Any, start: float) -> int:
    """How many steps the base makes before an ensemble's refiner takes over at `start` of the schedule."""
    times = int(scheduler.config.num_train_timesteps)
    cutoff = round(times - start * times)
    return int((scheduler.timesteps >= cutoff).sum())


def refiner_begin(scheduler: Any, steps: int, refining: Refining) -> int:
    """The step at which the refiner begins: 30 steps and strength 0.3 begin at 21.

    Raises SettingsError when it would have no step, or an ensemble's base none.
    """
    if refining.mode == "img2img":
        begin = steps - min(int(steps * refining.strength), steps)
        if begin == steps:
            least = -(-1 // refining.strength)
            raise SettingsError(
                f"refine_strength {refining.strength:g} of {steps} steps leaves the refiner none. "
                f"Use num_inference_steps {least:g}, refine_strength {1 / steps + 0.005:.2f}, or refine none."
            )
        return begin
    begin = split_at(scheduler, refining.start)
    if begin in (0, steps):
        who = "the refiner" if begin else "the base"
        advice = "a smaller refiner_start" if begin else "a larger refiner_start"
        raise SettingsError(
            f"refiner_start {refining.start:g} of {steps} steps leaves {who} none. "
            f"Use {advice}, more num_inference_steps, or refine none."
        )
    return begin


def start_begin(sampling: Sampling, handover: int) -> int:
    """The step at which drawing begins from a picture: 30 steps and strength 0.6 begin at 12.

    handover  the step at which an ensemble's refiner takes over; 0 for none

    Raises SettingsError where the base would have no step.
    """
    begin = sampling.steps - min(int(sampling.steps * sampling.start_strength), sampling.steps)
    end = handover or sampling.steps
    if begin >= end:
        least = (sampling.steps - end + 1) / sampling.steps
        raise SettingsError(
            f"start_strength {sampling.start_strength:g} of {sampling.steps} steps leaves the base none before "
            f"{'the refiner takes over' if handover else 'the end'}. Use start_strength {least + 0.005:.2f} or more."
        )
    return begin


def begin_at(scheduler: Any, step: int) -> None:
    """Tell a scheduler at which of its steps it begins; DDIM finds its place by the time alone."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(step)


# -- what diffusers' samplers do not all have --


def first_sigma(scheduler: Any) -> float | Tensor:
    """What the first noise is multiplied by; nothing where noise and picture are mixed in shares."""
    sigma: float | Tensor = getattr(scheduler, "init_noise_sigma", 1.0)
    return sigma


def scaled(scheduler: Any, latents_BCHW: Tensor, time: Tensor) -> Tensor:
    """Latents as the denoiser takes them at this time."""
    if not hasattr(scheduler, "scale_model_input"):
        return latents_BCHW
    scaled_BCHW: Tensor = scheduler.scale_model_input(latents_BCHW, time)
    return scaled_BCHW


def noised(scheduler: Any, latents_BCHW: Tensor, noise_BCHW: Tensor, begin: int) -> Tensor:
    """Finished latents with the noise that they have at a step of the schedule, float32."""
    begin_at(scheduler, begin)
    times_B = scheduler.timesteps[begin : begin + 1].repeat(len(noise_BCHW))
    clean_BCHW = latents_BCHW.expand_as(noise_BCHW).float()
    if hasattr(scheduler, "scale_noise"):
        mixed_BCHW: Tensor = scheduler.scale_noise(clean_BCHW, times_B, noise_BCHW)
        return mixed_BCHW
    noised_BCHW: Tensor = scheduler.add_noise(clean_BCHW, noise_BCHW, times_B)
    return noised_BCHW
