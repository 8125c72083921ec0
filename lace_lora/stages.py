"""The four stages of a picture, on tensors: encode prompts, denoise, refine, decode.

Each stage loads its own model, works through everything it is given, and gives the model back before the next one is
loaded: never two UNets in memory, and every model is read once however many pictures are asked for.

The loop is ours and not the pipelines' because they cannot be had without the parts that a stage must not hold: without
a VAE StableDiffusionXLPipeline takes 8 px a latent cell for granted and the img2img one fails; and one pass of the base
here gives both its own finished picture and the noisy one that the refiner takes over. tests/test_stages.py holds
the result against both pipelines.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
S size numbers (6 for the base, 5 for the refiner). Widths come from the model's configs, never from here.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lace_lora import adapter as adapters
from lace_lora import tokens
from lace_lora.errors import ModelError
from lace_lora.families import sdxl as family
from lace_lora.families import vae as other_vae
from lace_lora.families.folders import Layout
from lace_lora.machine import Machine
from lace_lora.mishaps import check_finite, out_of_memory
from lace_lora.sampling import Refining, Sampling, begin_at, make_scheduler, noise, refiner_begin

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Scores that SDXL's refiner is told for what is wanted and what is not: diffusers' defaults (arXiv 2307.01952).
AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5

Words = Mapping[str, family.Encoded]


@dataclass(frozen=True)
class Batch:
    """Pictures computed at once, all of one size; each tuple has one entry a picture."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Drawn:
    """What the base leaves: its finished latents and, for an ensemble, the noisy ones at the refiner's start."""

    finished_BCHW: Tensor
    handed_over_BCHW: Tensor | None


# -- the four stages --


def encode_prompts(
    model: str,
    prompts: Iterable[str],
    *,
    lora: "adapters.Adapter | None" = None,
    lora_scale: float = 1.0,
    dtype: torch.dtype,
    device: str,
) -> dict[str, family.Encoded]:
    """Every different prompt as the UNets read it, on the CPU. The refiner takes the second encoder's part of it.

    lora  where it changed the text encoders or learnt a word: for the base's prompts only, the refiner never saw it

    One prompt at a time: in a batch the last bits would depend on the neighbours, and a sheet that is finished later
    has others.
    """
    with out_of_memory("reading the prompts"):
        text = family.load_text(model, dtype, device)
        try:
            if lora is not None and lora.facts.train_text_encoder:
                adapters.fuse_text(text, lora, lora_scale)
            if lora is not None and lora.token_rows:
                tokens.put_in(text, lora.facts.concept_token, lora.token_rows)
            encoded = {prompt: family.encode_captions(text, [prompt]) for prompt in sorted(set(prompts))}
            return {name: family.Encoded(one.text_BLD.cpu(), one.pooled_BP.cpu()) for name, one in encoded.items()}
        finally:
            del text
            family.give_back_memory()


def denoise(
    model: str,
    batches: Iterable[Batch],
    words: Words,
    sampling: Sampling,
    *,
    refining: Refining | None = None,
    lora: "adapters.Adapter | None" = None,
    lora_scale: float = 1.0,
    dtype: torch.dtype,
    device: str,
) -> Iterator[Drawn]:
    """Draw with the base UNet, the LoRA fused into it at `lora_scale`; latents come on the CPU, in the UNet's units.

    Every picture is drawn to its end by the base: the unrefined picture is kept beside the refined one, and for an
    ensemble the latents on the way, at the refiner's start, cost nothing more.

    Raises MachineError when memory runs out or a picture's numbers overflow.
    """
    with out_of_memory("drawing"):
        net = _net(model, dtype, device)
        try:
            if lora is not None and lora_scale != 0:
                adapters.fuse(net.unet, lora, lora_scale)
            for batch in batches:
                yield _draw(net, batch, words, sampling, refining)
        finally:
            del net
            family.give_back_memory()


def denoise_with(
    unet: Any, model: str, batches: Iterable[Batch], words: Words, sampling: Sampling, *, device: str
) -> Iterator[Drawn]:
    """The same with a UNet that is in memory already, such as the one being trained with its LoRA on it.

    model  whose UNet it is: its layout and its schedule
    """
    net = _Net(unet, model, family.layout(model), device)
    for batch in batches:
        yield _draw(net, batch, words, sampling, None)


def refine(
    model: str,
    work: Iterable[tuple[Batch, Tensor]],
    words: Words,
    sampling: Sampling,
    refining: Refining,
    *,
    base_model: str,
    dtype: torch.dtype,
    device: str,
) -> Iterator[Tensor]:
    """Refine latents with the refiner's UNet, never with the LoRA, which was made for another UNet.

    work        each batch, its prompts in words that the refiner knows, and the base's latents BCHW: those handed over
                for an ensemble, the finished ones for img2img
    base_model  whose schedule it is: both run the same scheduler, config and number of steps
    returns     finished latents BCHW on the CPU, one a batch
    """
    with out_of_memory("refining"):
        net = _net(model, dtype, device)
        try:
            for batch, latents_BCHW in work:
                yield _touch_up(net, batch, latents_BCHW, words, sampling, refining, base_model)
        finally:
            del net
            family.give_back_memory()


def decode(
    model: str, work: Iterable[tuple[str, Tensor]], *, device: str, vae_model: str | None = None
) -> Iterator[Image.Image]:
    """Latents to pictures, one at a time. SDXL's VAE overflows to NaN in fp16, so it runs in fp32.

    work       a name for each picture, used when it fails, and its latents CHW
    vae_model  another VAE than the model's own

    Raises MachineError naming a picture that is not finite; nothing is ever replaced by black.
    """
    with out_of_memory("turning latents into pictures"):
        sizes = family.layout(model)
        vae = other_vae.load(vae_model, sizes, torch.float32, device) if vae_model else None
        vae = vae or family.load_vae(model, torch.float32, device)
        try:
            for name, latents_CHW in work:
                latents_BCHW = family.unscale_latents(latents_CHW[None].to(device=device, dtype=torch.float32), sizes)
                with torch.no_grad():
                    pixels_BCHW = vae.decode(latents_BCHW, return_dict=False)[0]
                check_finite(pixels_BCHW, [name], "decoding")
                yield _picture(pixels_BCHW[0])
        finally:
            del vae
            family.give_back_memory()


def draw_plain(
    model: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    width: int,
    height: int,
    *,
    steps: int,
    guidance_scale: float,
    negative_prompt: str = "",
    scheduler: str = "dpmpp_2m",
    dtype: torch.dtype,
    device: str,
    batch: int = 1,
    vae_model: str | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Image.Image]:
    """Pictures of the base model alone, no LoRA and no refiner: class pictures for prior preservation.

    prompts, seeds  one of each a picture; a picture depends on its own prompt and seed only
    batch           pictures computed at once
    returns         the pictures in order, each as soon as it is decoded (all are drawn before the first is)
    """
    batches = in_batches(prompts, [negative_prompt] * len(prompts), seeds, width, height, batch)
    words = encode_prompts(model, texts_of(batches), dtype=dtype, device=device)
    sampling = Sampling(scheduler, steps, guidance_scale)
    finished: list[Tensor] = []
    for drawn in denoise(model, batches, words, sampling, dtype=dtype, device=device):
        finished += drawn.finished_BCHW
    say(f"drawn {len(finished)} pictures of {width} × {height} px")
    named = [(f"{prompt!r} with seed {seed}", one) for prompt, seed, one in zip(prompts, seeds, finished, strict=True)]
    yield from decode(model, named, device=device, vae_model=vae_model)


# -- what the stages are given --


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


# -- inside --


@dataclass(frozen=True)
class _Conditions:
    """What the UNet is told beside the latents; the unwanted half first where the prompt is followed by guidance."""

    text_BLD: Tensor
    pooled_BP: Tensor
    time_ids_BS: Tensor
    guidance_scale: float


@dataclass(frozen=True)
class _Net:
    """A UNet in hand, and what is known of its model."""

    unet: Any
    model: str
    sizes: Layout
    device: str


def _net(model: str, dtype: torch.dtype, device: str) -> _Net:
    return _Net(family.load_unet(model, dtype, device), model, family.layout(model), device)


def _draw(net: _Net, batch: Batch, words: Words, sampling: Sampling, refining: Refining | None) -> Drawn:
    """One batch from noise to finished latents."""
    scheduler = make_scheduler(sampling.scheduler, net.model, sampling.steps)
    handover = 0
    if refining is not None and refining.mode == "ensemble":
        handover = refiner_begin(scheduler, sampling.steps, refining)
    conditions = _conditions(net, batch, words, sampling.guidance_scale)
    latents_BCHW = noise(batch.seeds, _cells(net.sizes, batch)).to(net.device) * scheduler.init_noise_sigma
    handed_over_BCHW = None
    for number, stepped_BCHW in enumerate(_steps(net.unet, scheduler, 0, latents_BCHW, conditions), start=1):
        latents_BCHW = stepped_BCHW
        if number == handover:
            handed_over_BCHW = latents_BCHW.cpu()
    check_finite(latents_BCHW, [f"The picture of seed {seed}" for seed in batch.seeds], "drawing")
    return Drawn(latents_BCHW.cpu(), handed_over_BCHW)


def _touch_up(
    net: _Net,
    batch: Batch,
    latents_BCHW: Tensor,
    words: Words,
    sampling: Sampling,
    refining: Refining,
    base_model: str,
) -> Tensor:
    """One batch through the refiner, on the base's schedule but by what this UNet predicts (ε or v)."""
    prediction_type = net.sizes.prediction_type
    scheduler = make_scheduler(sampling.scheduler, base_model, sampling.steps, prediction_type=prediction_type)
    begin = refiner_begin(scheduler, sampling.steps, refining)
    conditions = _conditions(net, batch, words, sampling.guidance_scale)
    latents_BCHW = latents_BCHW.to(device=net.device, dtype=torch.float32)
    if refining.mode == "img2img":
        begin_at(scheduler, begin)
        fresh_BCHW = noise(batch.seeds, _cells(net.sizes, batch), draw=2).to(net.device)
        times_B = scheduler.timesteps[begin : begin + 1].repeat(len(batch.seeds))
        latents_BCHW = scheduler.add_noise(latents_BCHW, fresh_BCHW, times_B)
    for stepped_BCHW in _steps(net.unet, scheduler, begin, latents_BCHW, conditions):
        latents_BCHW = stepped_BCHW
    check_finite(latents_BCHW, [f"The picture of seed {seed}" for seed in batch.seeds], "refining")
    return latents_BCHW.cpu()


def _steps(unet: Any, scheduler: Any, begin: int, latents_BCHW: Tensor, conditions: _Conditions) -> Iterator[Tensor]:
    """The latents after each step from `begin` to the end of the schedule, in fp32 whatever the UNet computes in."""
    begin_at(scheduler, begin)
    copies = len(conditions.text_BLD) // len(latents_BCHW)
    for time in scheduler.timesteps[begin:]:
        scaled_BCHW = scheduler.scale_model_input(torch.cat([latents_BCHW] * copies), time)
        times_B = time.to(latents_BCHW.device).expand(len(scaled_BCHW))
        with torch.no_grad():
            predicted_BCHW = family.predict(
                unet, scaled_BCHW, times_B, conditions.text_BLD, conditions.pooled_BP, conditions.time_ids_BS
            )
        if copies == 2:
            unwanted_BCHW, wanted_BCHW = predicted_BCHW.chunk(2)
            predicted_BCHW = unwanted_BCHW + conditions.guidance_scale * (wanted_BCHW - unwanted_BCHW)
        latents_BCHW = scheduler.step(predicted_BCHW, time, latents_BCHW, return_dict=False)[0]
        yield latents_BCHW


def _conditions(net: _Net, batch: Batch, words: Words, guidance_scale: float) -> _Conditions:
    """Texts and size numbers of a batch; without guidance (1 or less) the unwanted half is left out: it has no say."""
    parts = [_told(words, batch.prompts, net.sizes, _size_numbers(batch, net.sizes, AESTHETIC))]
    if guidance_scale > 1:
        numbers_S = _size_numbers(batch, net.sizes, NEGATIVE_AESTHETIC)
        text_BLD, pooled_BP, time_ids_BS = _told(words, batch.negative_prompts, net.sizes, numbers_S)
        if _forces_zeros(net.model):
            is_told_B = torch.tensor([bool(negative) for negative in batch.negative_prompts])
            text_BLD, pooled_BP = text_BLD * is_told_B[:, None, None], pooled_BP * is_told_B[:, None]
        parts.insert(0, (text_BLD, pooled_BP, time_ids_BS))
    text_BLD, pooled_BP, time_ids_BS = (torch.cat(column).to(net.device) for column in zip(*parts, strict=True))
    return _Conditions(text_BLD, pooled_BP, time_ids_BS, guidance_scale)


def _told(words: Words, texts: Sequence[str], sizes: Layout, numbers_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Text, pooled text and size numbers of some texts; a refiner's text is the last part, the second encoder's."""
    text_BLD = torch.cat([words[text].text_BLD[..., -sizes.text_width :] for text in texts])
    return text_BLD, torch.cat([words[text].pooled_BP for text in texts]), numbers_S.repeat(len(texts), 1)


def _size_numbers(batch: Batch, sizes: Layout, aesthetic: float) -> Tensor:
    """The base is told an uncut picture of the size it draws; a refiner an aesthetic score in place of the target."""
    size_hw = (batch.height, batch.width)
    base_S = family.time_ids(size_hw, (0, 0), size_hw)
    return torch.cat([base_S[:4], torch.tensor([aesthetic])]) if sizes.is_refiner else base_S


def _forces_zeros(model: str) -> bool:
    """Whether an empty negative prompt means zeros, as SDXL's base was trained, or the empty text, as its refiner."""
    index = json.loads((Path(family.model_folder(model)) / "model_index.json").read_text(encoding="utf-8"))
    return bool(index.get("force_zeros_for_empty_prompt", True))


def _cells(sizes: Layout, batch: Batch) -> tuple[int, int, int]:
    return sizes.latent_channels, batch.height // sizes.downscale, batch.width // sizes.downscale


def _picture(pixels_CHW: Tensor) -> Image.Image:
    """From -1..1 to a picture of bytes."""
    pixels_HWC = (pixels_CHW / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((pixels_HWC * 255).round().astype(np.uint8))
