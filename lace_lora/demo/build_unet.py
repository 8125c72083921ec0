"""Trains the miniature's base UNet on plain textiles, and a refiner that starts from it.

Both predict v. The base is taught as large models are: hardly any weight on the last, cleanest steps, so its pictures
stay a little soft; the refiner sees only those steps, and has seen fine thread work, so it has something to repair.
"""

# B batch · C latent channels (4) · H,W latent cells (px/4) · L tokens (77) · D text width (128) · P pooled (64)

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from lace_lora.demo.build_batches import BATCH, Words, draw_batch, picture_pool, soften, time_ids
from lace_lora.demo.build_text import WIDTH

EMA = 0.999
REFINER_STEPS = 320  # the refiner's share of the 1000 noise levels, the cleanest ones


def scheduler_config() -> EulerDiscreteScheduler:
    """v-prediction on SDXL's kind of schedule, stretched until the last level holds almost only noise (SNR 4e-5).

    Almost, not exactly, zero: every sampler then works with no special case.
    """
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.025,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )


def new_unet(side: int, text_width: int, time_ids: int) -> UNet2DConditionModel:
    """SDXL's layout in small: no attention at the first level, text_time conditioning, Linear widths of 64's multiples.

    text_width  what cross-attention reads: both towers (128) or the second alone (64)
    time_ids    6 for the base, 5 for the refiner
    """
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=text_width,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=WIDTH + 64 * time_ids,
    )


def refiner_from(base: UNet2DConditionModel, side: int) -> UNet2DConditionModel:
    """A refiner with the base's weights, its cross-attention and added conditioning cut to what a refiner is given."""
    refiner = new_unet(side, WIDTH, 5)
    weights = base.state_dict()
    for name, weight in weights.items():
        if "attn2.to_k" in name or "attn2.to_v" in name:
            weights[name] = weight[:, WIDTH:].clone()  # the second tower's half
    joint = weights["add_embedding.linear_1.weight"]
    weights["add_embedding.linear_1.weight"] = joint[:, : WIDTH + 5 * 64].clone()
    refiner.load_state_dict(weights)
    return refiner


def v_loss(
    unet: UNet2DConditionModel, alphas: Tensor, clean_BCHW: Tensor, seen_BCHW: Tensor, steps_B: Tensor,
    noise_BCHW: Tensor, conditioning: tuple[Tensor, Tensor, Tensor], is_refiner: bool,
) -> Tensor:  # fmt: skip
    """Weighted error of the v that leads from what is seen to the clean latents.

    seen_BCHW  what was noised: the clean latents, or for a refiner a softened copy that it must sharpen
    Base: weight min(snr + 1, 6) / (snr + 1). Refiner: nearly even, so that the cleanest steps count.
    """
    keep, lose = (a[steps_B][:, None, None, None] for a in (alphas.sqrt(), (1 - alphas).sqrt()))
    noisy = keep * seen_BCHW + lose * noise_BCHW
    to_clean = (noisy - keep * clean_BCHW) / lose
    target = keep * to_clean - lose * clean_BCHW
    text, pooled, ids = conditioning
    with torch.autocast("cpu", torch.bfloat16):
        added = {"text_embeds": pooled, "time_ids": ids}
        made = unet(noisy, steps_B, text, added_cond_kwargs=added).sample.float()
    error = (made - target).square().mean((1, 2, 3))
    snr = alphas[steps_B] / (1 - alphas[steps_B])
    # A softened start asks for a larger v the cleaner the step is; the clamp keeps those few from ruling the batch.
    if is_refiner:
        weight = (1 - alphas[steps_B]).clamp(min=0.02).sqrt()
    else:
        weight = torch.clamp(snr + 1, max=6) / (snr + 1)
    return (weight * error).mean()


@dataclass(frozen=True)
class Course:
    """How long and how hard to train; `minutes` is wall-clock time summed over resumed runs, whichever ends first."""

    steps: int
    minutes: float
    rate: float
    small_until: float = 0.0  # share of the course spent at the small side
    snapshot_minutes: float = 6.0


@dataclass
class Training:
    """A UNet in training, with all that going on after an interruption needs."""

    unet: UNet2DConditionModel
    averaged: list[Tensor]  # running mean of the weights: what is kept in the end
    optimizer: torch.optim.AdamW
    step: int = 0
    minutes: float = 0.0

    @property
    def weights(self) -> list[Tensor]:
        """The trained tensors, in the order of `averaged`."""
        return list(self.unet.parameters())

    def save(self, folder: Path, name: str) -> None:
        """Write the state, then the averaged weights as the diffusers folder `folder`/`name`."""
        kept = {"unet": self.unet.state_dict(), "optimizer": self.optimizer.state_dict(), "averaged": self.averaged}
        partial, final = folder / f"{name}_state.partial", folder / f"{name}_state.pt"
        torch.save(kept | {"step": self.step, "minutes": self.minutes}, partial)
        os.replace(partial, final)
        raw = [w.detach().clone() for w in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.averaged)
            self.unet.save_pretrained(folder / name)
            torch._foreach_copy_(self.weights, raw)

    def average(self) -> None:
        """Move the running mean towards the present weights; faster in the first steps."""
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.averaged, [w.detach() for w in self.weights], 1 - keep)


def begin(folder: Path, name: str, side: int, rate: float, is_refiner: bool) -> Training:
    """A new training, or the one that `folder`/`name`_state.pt holds."""
    if is_refiner:
        unet = refiner_from(UNet2DConditionModel.from_pretrained(folder / "unet"), side // 4)
    else:
        unet = new_unet(side // 4, 2 * WIDTH, 6)
    unet = unet.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-2)
    training = Training(unet, [w.detach().clone() for w in unet.parameters()], optimizer)
    state_file = folder / f"{name}_state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        training.averaged, training.step, training.minutes = state["averaged"], state["step"], state["minutes"]
    return training


def train_unet(
    folder: Path, name: str, side: int, seed: int, course: Course, is_refiner: bool, snapshot: Callable[[], None]
) -> None:
    """Train `folder`/`name` (averaged weights, fp32), resuming from its own state file.

    snapshot  called after each save, to put a loadable model where others can use it
    """
    torch.manual_seed(seed)
    training = begin(folder, name, side, course.rate, is_refiner)
    sorts = ("plain", "print", "lace") if is_refiner else ("plain", "plain", "print")
    pools = [picture_pool(folder, seed, side, sort) for sort in sorts]
    words, alphas = Words(folder, seed), scheduler_config().alphas_cumprod
    levels, used, began, shown = REFINER_STEPS if is_refiner else 1000, training.minutes, time.monotonic(), 0.0
    saved = began
    while (progress := max(training.step / course.steps, training.minutes / course.minutes)) < 1:
        step, rng = training.step, np.random.default_rng((seed, 51 + is_refiner, training.step))
        training.optimizer.param_groups[0]["lr"] = course.rate * min(1, (step + 1) / 100, 0.02 + (1 - progress) / 0.45)
        small = progress < course.small_until or (not is_refiner and step % 5 == 4)
        clean, captions = draw_batch(pools, rng, small)
        text, pooled = words.conditioning(captions, rng)
        condition = (
            text[..., WIDTH:] if is_refiner else text,
            pooled,
            time_ids(rng, BATCH, clean.shape[-1] * 4, is_refiner),
        )
        # Stratified levels: every batch holds the whole range, which steadies so small a batch.
        steps_B = torch.from_numpy(((np.arange(BATCH) + rng.random(BATCH)) / BATCH * levels).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
        seen = soften(clean, rng) if is_refiner else clean
        loss = v_loss(training.unet, alphas, clean, seen, steps_B, noise, condition, is_refiner)
        training.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.weights, 1.0)
        training.optimizer.step()
        training.step += 1
        training.average()
        training.minutes = used + (time.monotonic() - began) / 60
        shown = 0.98 * shown + 0.02 * loss.item() if shown else loss.item()
        if training.step % 50 == 0:
            print(f"{name} {training.step}  {training.minutes:.1f} min  loss {shown:.4f}", flush=True)
        if time.monotonic() - saved > course.snapshot_minutes * 60:
            saved = time.monotonic()
            training.save(folder, name)
            snapshot()
    training.save(folder, name)
    snapshot()
