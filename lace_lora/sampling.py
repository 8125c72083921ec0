"""Samplers by name, their schedules, where the refiner takes over, and the noise that a picture begins with.

B batch · C latent channels (4) · H,W latent cells (px/8)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lace_lora.cloth import Repeat
from lace_lora.errors import SettingsError
from lace_lora.families.folders import model_folder, part_config
from lace_lora.families.quiet import quiet

with quiet():
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

# Each with what it changes in the model's own schedule. Only samplers that draw no noise on the way, so that a picture
# is its seed's alone whatever it is computed with, and that pass the UNet once a step, so that base and refiner share
# the steps as they are counted: not the ancestral and SDE ones, nor Heun. Karras' schedule puts more of the steps into
# little noise: of 30, a refiner that starts at 0.85 has 10 there and 4 in the others.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {}),
}


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


def make_scheduler(name: str, model: str, steps: int, *, prediction_type: str | None = None) -> Any:
    """A sampler of that name over the model's own noise schedule, its times set."""
    kind, changes = SCHEDULERS[name]
    shipped = part_config(model_folder(model), "scheduler")
    if prediction_type is not None:
        shipped = shipped | {"prediction_type": prediction_type}
    # DDIM alone clips to -1..1 by default, which is meant for pixels and would wreck latents.
    with quiet():  # diffusers' multistep scheduler warns of numpy 2 in set_timesteps
        scheduler = kind.from_config({"clip_sample": False} | shipped | changes)
        scheduler.set_timesteps(steps)
    return scheduler


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
