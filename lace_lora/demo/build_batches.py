"""What the miniature's UNets are shown: pictures as latents, fresh captions as embeddings, micro-conditioning."""

# B batch · C latent channels (4) · H,W latent cells (px/4) · L tokens (77) · D text width (128) · P pooled (64)

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lace_lora.demo.build_text import Wording, encode, redraw_unused
from lace_lora.demo.build_vae import LACE_SEED, encode_pictures
from lace_lora.demo.draw import LINES, plain_picture, plain_spec, print_spec
from lace_lora.demo.lace import draw_lace, lace_spec
from lace_lora.demo.words import (
    EMPTY_CAPTIONS,
    OPENINGS,
    PRINT_KINDS,
    Spec,
    lace_caption,
    pick,
    plain_caption,
    print_caption,
)

POOL_SIZES = {"plain": 6000, "print": 2000, "lace": 1500}
BATCH = 32
SMALL = 16  # latent side of the cheap early steps (64 px)


@dataclass(frozen=True)
class Pool:
    """Pictures as latents (fp32, BCHW) and what they show."""

    latents: Tensor
    specs: list[Spec]


def picture_pool(folder: Path, seed: int, side: int, sort: str) -> Pool:
    """Encode the pre-training pictures of one sort once with `folder`/vae; kept beside it for the next run.

    sort  "plain" (textiles), "print" (fine line work on cloth) or "lace" (the refiner alone is shown it)
    """
    count = POOL_SIZES[sort]
    first = LACE_SEED if sort == "lace" else seed * 100_000
    seeds, kept = range(first, first + count), folder / f"pool_{sort}_{seed}.pt"
    spec_of = {"plain": plain_spec, "print": print_spec, "lace": lace_spec}[sort]
    specs = [spec_of(s) for s in seeds]
    if not kept.exists():
        vae = AutoencoderKL.from_pretrained(folder / "vae")
        draw = draw_lace if sort == "lace" else plain_picture
        drawn = [np.asarray(draw(spec, s, side)) for spec, s in zip(specs, seeds, strict=True)]
        torch.save(encode_pictures(vae, torch.from_numpy(np.stack(drawn))), kept)
    return Pool(torch.load(kept, weights_only=True), specs)


def caption_of(rng: np.random.Generator, spec: Spec) -> str:
    """Words for one picture of any sort, as pre-training phrases them."""
    if spec.is_lace:
        return pick(rng, OPENINGS).format(lace_caption(rng, spec))
    return print_caption(rng, spec) if spec.kind in PRINT_KINDS else plain_caption(rng, spec)


class Words:
    """The frozen towers and their tokenizer, giving UNet conditioning for freshly phrased captions."""

    def __init__(self, folder: Path, seed: int) -> None:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        pad_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2").pad_token_id
        self.wording = Wording(tokenizer, (tokenizer.pad_token_id, pad_2))
        self.towers = (
            CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
            CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").eval(),
        )
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def conditioning(self, captions: list[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Hidden states of both towers side by side (BLD) and pooled (BP).

        Half of the captions hold never-used words, whose embeddings are new every time; 7 % are dropped to zeros.
        """
        redraw_unused(self.towers, self.wording.unused, self.generator)
        rows = [self.wording.ids(c, rng, unknown=rng.random() < 0.5)[0] for c in captions]
        first, second, pooled = encode(self.towers, self.wording, rows)
        keep = torch.from_numpy(rng.random(len(captions)) >= 0.07).float()
        return torch.cat([first, second], -1) * keep[:, None, None], pooled * keep[:, None]


def time_ids(rng: np.random.Generator, count: int, side: int, is_refiner: bool) -> Tensor:
    """Micro-conditioning: (h, w, top, left, target h, target w), or (h, w, top, left, aesthetic score) for a refiner.

    Mostly the side itself and no crop, as the pipelines send; sometimes a larger original, as a trainer sends.
    """
    out = np.zeros((count, 5 if is_refiner else 6), np.float32)
    for row in out:
        original = side if rng.random() < 0.6 else rng.choice((64, 96, 128, 192, 256, 384, 512, 1024))
        row[:2] = original
        if rng.random() < 0.15:
            row[2:4] = rng.integers(0, 33, 2)
        row[4:] = (6.0 if rng.random() < 0.7 else rng.choice((2.5, 5.0, 7.0))) if is_refiner else side
    return torch.from_numpy(out)


def soften(latents_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Latents mixed with their own 3 × 3 average by a random share, 0 to 0.7: what a base's soft pictures look like."""
    blurred = functional.avg_pool2d(functional.pad(latents_BCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.from_numpy(rng.uniform(0, 0.7, len(latents_BCHW)) * (rng.random(len(latents_BCHW)) < 0.6))
    return torch.lerp(latents_BCHW, blurred, share.float()[:, None, None, None])


def draw_batch(pools: list[Pool], rng: np.random.Generator, small: bool) -> tuple[Tensor, list[str]]:
    """Latents (BCHW) and captions of one batch, the pools evenly; `small` takes upper left corners of repeats."""
    latents: list[Tensor] = []
    captions: list[str] = []
    while len(captions) < BATCH:
        pool = pools[int(rng.integers(len(pools)))]
        i = int(rng.integers(len(pool.specs)))
        spec = pool.specs[i]
        if small and (spec.kind in PRINT_KINDS or (spec.scale == "large" and spec.kind not in LINES)):
            continue
        text = caption_of(rng, spec)
        latents.append(pool.latents[i])
        captions.append(pick(rng, EMPTY_CAPTIONS) if rng.random() < 0.04 else text)
    stacked = torch.stack(latents)
    return (stacked[:, :, :SMALL, :SMALL] if small else stacked), captions
