"""Trains the miniature's AutoencoderKL: four latent channels, a quarter of the picture's side."""

# B batch · C latent channels (4) · H,W pixels or latent cells (px/4)

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lace_lora.demo.draw import lace, plain

Pixels = NDArray[np.uint8]
PLAIN_PICTURES, LACE_PICTURES = 1500, 1500
# Lace seeds of pre-training: far from the folders that a LoRA learns (seed * 100000 + number, seed >= 1).
LACE_SEED = 10_000


def new_vae(side: int) -> AutoencoderKL:
    """Untrained; no attention in the middle, so that no Linear layer has an odd width; norm groups of 8."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=side,
        scaling_factor=1.0,
        force_upcast=True,
        mid_block_add_attention=False,
    )


def pictures(seed: int, side: int) -> Pixels:
    """Plain and lace pictures in turn, uint8, NHW3."""
    plains = [np.asarray(plain(seed * 50_000 + i, side)[0]) for i in range(PLAIN_PICTURES)]
    laces = [np.asarray(lace(LACE_SEED + i, side)[0]) for i in range(LACE_PICTURES)]
    return np.stack([p for pair in zip(plains, laces, strict=True) for p in pair])


def batch_of(pool: Pixels, rng: np.random.Generator, size: int, crop: int) -> Tensor:
    """A batch in -1..1, BCHW: crops, mirrored and sometimes recoloured: the VAE is to learn pictures, not a palette."""
    out = np.empty((size, 3, crop, crop), np.float32)
    room = pool.shape[1] - crop
    for i in range(size):
        y, x = rng.integers(room + 1, size=2)
        picture = pool[rng.integers(len(pool)), y : y + crop, x : x + crop].astype(np.float32) / 127.5 - 1
        picture = picture.transpose(2, 0, 1)
        if rng.random() < 0.5:
            picture = picture[:, :, ::-1]
        if rng.random() < 0.5:
            picture = picture.transpose(0, 2, 1)
        if rng.random() < 0.35:
            picture = picture[rng.permutation(3)] * rng.uniform(0.4, 1.0) + rng.uniform(-0.2, 0.2)
            if rng.random() < 0.4:
                picture = picture + rng.normal(0, 0.08, picture.shape)
        out[i] = np.clip(picture, -1, 1)
    return torch.from_numpy(out).to(memory_format=torch.channels_last)


def slope(pictures_BCHW: Tensor) -> Tensor:
    """Horizontal and vertical differences, flattened into one vector."""
    across = pictures_BCHW[..., :, 1:] - pictures_BCHW[..., :, :-1]
    down = pictures_BCHW[..., 1:, :] - pictures_BCHW[..., :-1, :]
    return torch.cat([across.flatten(), down.flatten()])


def picture_loss(made_BCHW: Tensor, true_BCHW: Tensor) -> Tensor:
    """L1 + MSE + L1 of slopes: the last keeps thread edges crisp where the first two would blur them."""
    flat = functional.l1_loss(made_BCHW, true_BCHW) + functional.mse_loss(made_BCHW, true_BCHW)
    return flat + functional.l1_loss(slope(made_BCHW), slope(true_BCHW))


def train_vae(folder: Path, side: int, seed: int, steps: int, minutes: float, decoder_only: bool = False) -> None:
    """Train and save `folder`/vae (fp32).

    decoder_only  continue the saved VAE with its encoder frozen: latents, and so the UNet's world, stay as they are
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(folder / "vae") if decoder_only else new_vae(side)
    vae = vae.to(memory_format=torch.channels_last)
    trained = [*vae.decoder.parameters()] if decoder_only else [*vae.parameters()]
    top = 1e-3 if decoder_only else 3e-3
    optimizer = torch.optim.AdamW(trained, lr=top, betas=(0.9, 0.98), weight_decay=1e-4)
    pool, began = pictures(seed, side), time.monotonic()
    for step in range(steps):
        progress = max(step / steps, (time.monotonic() - began) / 60 / minutes)
        if progress >= 1:
            break
        rate = top * min(1, (step + 1) / 50) * (0.5 + 0.5 * np.cos(np.pi * progress))
        optimizer.param_groups[0]["lr"] = rate + 1e-6
        # First half on crops (the same picture area, more pictures), then whole sides, whose borders matter too.
        crop = side // 2 if progress < 0.6 and not decoder_only else side
        batch = batch_of(pool, np.random.default_rng((seed, 41, step)), 32 if crop < side else 8, crop)
        with torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(batch).latent_dist
        # fp32: at these few channels bf16 is no faster, and colours drift in it.
        made = vae.decode(posterior.mean if decoder_only else posterior.sample()).sample
        loss = picture_loss(made, batch)
        total = loss if decoder_only else loss + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"vae {step}  loss {loss.item():.4f}  psnr {psnr(vae, pool, side)}", flush=True)
    if not decoder_only:
        fold_normalisation(vae, torch.from_numpy(pool[:512]))
    print(f"vae done  psnr {psnr(vae, pool, side)}", flush=True)
    vae.save_pretrained(folder / "vae")


@torch.no_grad()
def psnr(vae: AutoencoderKL, pool: Pixels, side: int) -> dict[str, float]:
    """Reconstruction in dB on plain and lace pictures (the pool's last, which training sees as rarely as any)."""
    answer = {}
    for name, start in (("plain", -64), ("lace", -63)):
        true = torch.from_numpy(pool[start::2][:16].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        made = vae.decode(vae.encode(true).latent_dist.mean).sample.clamp(-1, 1)
        answer[name] = round(float(10 * torch.log10(4 / functional.mse_loss(made, true))), 2)
    return answer


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, pictures_NHWC: Tensor) -> None:
    """Make every latent channel zero-mean and unit-spread, exactly, by changing quant_conv and post_quant_conv.

    With z' = (z - m) / s: quant_conv gives z', post_quant_conv takes it back; log variances shift by -2 log s.
    """
    latents = encode_pictures(vae, pictures_NHWC)
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= spread[None, :, None, None]
    quant.weight[:4] /= spread[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / spread
    quant.bias[4:] -= 2 * spread.log()


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures_NHWC: Tensor, batch: int = 64) -> Tensor:
    """Mean latents of uint8 pictures, fp32, BCHW."""
    chunks = pictures_NHWC.split(batch)
    return torch.cat([vae.encode(c.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean for c in chunks])
