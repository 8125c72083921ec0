"""The four stages of a picture, on tensors: encode prompts, denoise, refine, decode.

Each stage borrows its own model from a shelf, works through everything it is given, and hands the model back before the
next one begins. A shelf with room keeps it for the next sheet; without one it is let go, so that there are never two
UNets in memory. Either way a model is read once however many pictures are asked for. The last stage is in painting.

The loop is ours and not the pipelines' because they cannot be had without the parts that a stage must not hold: without
a VAE StableDiffusionXLPipeline takes 8 px a latent cell for granted and the img2img one fails; and one pass of the base
here gives both its own finished picture and the noisy one that the refiner takes over. tests/test_stages.py holds
the result against both pipelines.

B batch · C latent channels (4) · H,W latent cells (px/8). Widths come from the model's configs, never from here.
"""

import hashlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lace_lora import adapter as adapters
from lace_lora import families, quantize, repeats, tokens
from lace_lora.batches import Batch, in_batches, texts_of
from lace_lora.conditions import Conditions, conditions_of
from lace_lora.conditions import Words as Words
from lace_lora.families import Family, folders
from lace_lora.families.layouts import Layout, layout
from lace_lora.families.seam import Encoded
from lace_lora.mishaps import check_finite, out_of_memory
from lace_lora.painting import decode as decode
from lace_lora.painting import encode_start as encode_start
from lace_lora.quantize import FourBits
from lace_lora.sampling import (
    Refining,
    Sampling,
    begin_at,
    first_sigma,
    noise,
    noised,
    refiner_begin,
    scaled,
    start_begin,
)
from lace_lora.shelf import Shelf, Wanted

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    shelf: Shelf | None = None,
) -> dict[str, Encoded]:
    """Every different prompt as the denoisers read it, on the CPU. The refiner takes the second encoder's part of it.

    lora   where it changed the text encoders or learnt a word: for the base's prompts only, the refiner never saw it
    shelf  where the encoders are borrowed; without one they are loaded, and let go at the end

    One prompt at a time: in a batch the last bits would depend on the neighbours, and a sheet that is finished later
    has others.
    """
    shelf = shelf or Shelf(0)
    with out_of_memory("reading the prompts"), shelf.lent(_text(model, dtype, device, lora, lora_scale)) as text:
        encode = families.of(model).encode_captions
        encoded = {prompt: text.compute(encode, [prompt]) for prompt in sorted(set(prompts))}
        return {name: Encoded(one.text_BLD.cpu(), one.pooled_BP.cpu()) for name, one in encoded.items()}


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
    shelf: Shelf | None = None,
    four_bits: FourBits | None = None,
) -> Iterator[Drawn]:
    """Draw with the base's denoiser, the LoRA fused in at `lora_scale`; latents come on the CPU, in its units.

    Every picture is drawn to its end by the base: the unrefined picture is kept beside the refined one, and for an
    ensemble the latents on the way, at the refiner's start, cost nothing more.

    shelf      where the denoiser is borrowed; without one it is loaded, and let go at the end
    four_bits  the base in NF4, the LoRA beside its layers as in training, where fusing would lose it; None as it is

    Raises OutOfMemory when memory runs out although nothing else is left on the shelf, and MachineError when a
    picture's numbers overflow.
    """
    shelf, family, sizes = shelf or Shelf(0), families.of(model), layout(model)

    def draw(denoiser: Any, batch: Batch) -> Drawn:
        return _draw(_Net(denoiser, model, family, sizes, device), batch, words, sampling, refining)

    with out_of_memory("drawing"), shelf.lent(_denoiser(model, dtype, device, lora, lora_scale, four_bits)) as lent:
        for batch in batches:
            yield lent.compute(draw, batch)


def denoise_with(
    denoiser: Any, model: str, batches: Iterable[Batch], words: Words, sampling: Sampling, *, device: str
) -> Iterator[Drawn]:
    """The same with a denoiser that is in memory already, such as the one being trained with its LoRA on it.

    model  whose it is: its layout and its schedule
    """
    net = _Net(denoiser, model, families.of(model), layout(model), device)
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
    shelf: Shelf | None = None,
) -> Iterator[Tensor]:
    """Refine latents with the refiner's UNet, never with the LoRA, which was made for another UNet.

    work        each batch, its prompts in words that the refiner knows, and the base's latents BCHW: those handed over
                for an ensemble, the finished ones for img2img
    base_model  whose schedule it is: both run the same scheduler, config and number of steps
    shelf       where the UNet is borrowed; without one it is loaded, and let go at the end
    returns     finished latents BCHW on the CPU, one a batch
    """
    shelf, family, sizes = shelf or Shelf(0), families.of(model), layout(model)

    def touch_up(unet: Any, batch: Batch, latents_BCHW: Tensor) -> Tensor:
        net = _Net(unet, model, family, sizes, device)
        return _touch_up(net, batch, latents_BCHW, words, sampling, refining, base_model)

    with out_of_memory("refining"), shelf.lent(_denoiser(model, dtype, device)) as lent:
        for batch, latents_BCHW in work:
            yield lent.compute(touch_up, batch, latents_BCHW)


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
    four_bits: FourBits | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Image.Image]:
    """Pictures of the base model alone, no LoRA and no refiner: class pictures for prior preservation.

    prompts, seeds  one of each a picture; a picture depends on its own prompt and seed only
    batch           pictures computed at once
    four_bits       the base in NF4; None as it is
    returns         the pictures in order, each as soon as it is decoded (all are drawn before the first is)
    """
    batches = in_batches(prompts, [negative_prompt] * len(prompts), seeds, width, height, batch)
    words = encode_prompts(model, texts_of(batches), dtype=dtype, device=device)
    sampling = Sampling(scheduler, steps, guidance_scale)
    finished: list[Tensor] = []
    for drawn in denoise(model, batches, words, sampling, dtype=dtype, device=device, four_bits=four_bits):
        finished += drawn.finished_BCHW
    say(f"drawn {len(finished)} pictures of {width} × {height} px")
    named = [(f"{prompt!r} with seed {seed}", one) for prompt, seed, one in zip(prompts, seeds, finished, strict=True)]
    yield from decode(model, named, device=device, vae_model=vae_model)


# -- what the stages borrow --


def _text(model: str, dtype: torch.dtype, device: str, lora: "adapters.Adapter | None", lora_scale: float) -> Wanted:
    """The text encoders, with what a LoRA changed in them and the word that it learnt."""
    changes = lora if lora is not None and lora.changes_text else None

    def load() -> Any:
        text = families.of(model).load_text(model, dtype, device)
        if changes is not None and changes.facts.train_text_encoder:
            adapters.fuse_text(text, changes, lora_scale)
        if changes is not None and changes.token_rows:
            tokens.put_in(text, changes.facts.concept_token, changes.token_rows)
        return text

    folder = Path(folders.model_folder(model))
    parts = [part for part in folders.parts_of(folder) if part.startswith("text_encoder")]
    tokenizers = [part for part in folders.parts_of(folder) if part.startswith("tokenizer")]
    return Wanted(
        load,
        lambda: ("text", folders.identity(model, parts + tokenizers), dtype, device, _fused(changes, lora_scale)),
        lambda: folders.weight_bytes([folder / part for part in parts], dtype.itemsize),
    )


def _denoiser(
    model: str,
    dtype: torch.dtype,
    device: str,
    lora: "adapters.Adapter | None" = None,
    lora_scale: float = 1.0,
    four_bits: FourBits | None = None,
) -> Wanted:
    """What draws, with the LoRA fused into it, or put on it where it is in 4 bits."""
    changes, part = lora if lora_scale != 0 else None, layout(model).denoiser

    def load() -> Any:
        if four_bits is not None:
            denoiser = quantize.load_nf4(model, dtype, device, four_bits.cache_dir, four_bits.say)
            if changes is not None:
                adapters.put_on(denoiser, changes, lora_scale)
            return denoiser.train()  # as it was learnt with; no family has dropout
        denoiser = families.of(model).load_denoiser(model, dtype, device)
        if changes is not None:
            adapters.fuse(denoiser, changes, lora_scale)
        return denoiser

    def size_bytes() -> int:
        if four_bits is None:
            return folders.weight_bytes([folder], dtype.itemsize)
        beside = sum(one.numel() for one in changes.state.values()) * dtype.itemsize if changes else 0
        return quantize.planned_bytes(families.of(model).empty_denoiser(model), dtype.itemsize) + beside

    folder = Path(folders.model_folder(model)) / part
    base = "none" if four_bits is None else "nf4"
    return Wanted(
        load,
        lambda: (part, folders.identity(model, [part]), dtype, device, base, _fused(changes, lora_scale)),
        size_bytes,
    )


def _fused(lora: "adapters.Adapter | None", lora_scale: float) -> Hashable:
    """What a LoRA and its scale make of a model. By the tensors in hand, because the file may be another by now."""
    if lora is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(lora.state.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest(), lora.facts.strength, lora.facts.concept_token, lora_scale


# -- inside --


@dataclass(frozen=True)
class _Net:
    """A denoiser in hand, and what is known of its model."""

    denoiser: Any
    model: str
    family: Family
    sizes: Layout
    device: str


def _draw(net: _Net, batch: Batch, words: Words, sampling: Sampling, refining: Refining | None) -> Drawn:
    """One batch from noise to finished latents."""
    cells_CHW = _cells(net.sizes, batch)
    scheduler = net.family.make_sampler(sampling.scheduler, net.model, sampling.steps, cells_CHW[1:])
    handover, begin = 0, 0
    if refining is not None and refining.mode == "ensemble":
        handover = refiner_begin(scheduler, sampling.steps, refining)
    conditions = conditions_of(batch, words, sampling, net.model, net.family, net.sizes, net.device)
    latents_BCHW = noise(batch.seeds, cells_CHW).to(net.device)
    if batch.start_CHW is None:
        latents_BCHW = latents_BCHW * first_sigma(scheduler)
    else:
        begin = start_begin(sampling, handover)
        latents_BCHW = noised(scheduler, batch.start_CHW.to(net.device)[None], latents_BCHW, begin)
    handed_over_BCHW = None
    with closing(_steps(net, scheduler, begin, latents_BCHW, conditions, sampling)) as stepping:
        for number, stepped_BCHW in enumerate(stepping, start=begin + 1):
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
    cells_CHW, predicts = _cells(net.sizes, batch), net.sizes.prediction_type
    scheduler = net.family.make_sampler(sampling.scheduler, base_model, sampling.steps, cells_CHW[1:], predicts)
    begin = refiner_begin(scheduler, sampling.steps, refining)
    conditions = conditions_of(batch, words, sampling, net.model, net.family, net.sizes, net.device)
    latents_BCHW = latents_BCHW.to(device=net.device, dtype=torch.float32)
    if refining.mode == "img2img":
        fresh_BCHW = noise(batch.seeds, cells_CHW, draw=2).to(net.device)
        latents_BCHW = noised(scheduler, latents_BCHW, fresh_BCHW, begin)
    with closing(_steps(net, scheduler, begin, latents_BCHW, conditions, sampling)) as stepping:
        for stepped_BCHW in stepping:
            latents_BCHW = stepped_BCHW
    check_finite(latents_BCHW, [f"The picture of seed {seed}" for seed in batch.seeds], "refining")
    return latents_BCHW.cpu()


def _steps(
    net: _Net, scheduler: Any, begin: int, latents_BCHW: Tensor, conditions: Conditions, sampling: Sampling
) -> Generator[Tensor, None, None]:
    """The latents after each step from `begin` to the end of the schedule, in fp32 whatever the net computes in.

    The edges of a repeat are joined from its own step on; to be closed, which gives the net its own padding back.
    """
    begin_at(scheduler, begin)
    joined_from = max(begin, round(sampling.repeat_from * sampling.steps))
    with ExitStack() as joined:
        for number, time in enumerate(scheduler.timesteps[begin:], begin):
            if number == joined_from:
                joined.enter_context(repeats.padded(net.denoiser, sampling.repeat))
            if number == max(begin, conditions.guided_steps):
                conditions = conditions.wanted(len(latents_BCHW))
            copies = len(conditions.words.text_BLD) // len(latents_BCHW)
            scaled_BCHW = scaled(scheduler, torch.cat([latents_BCHW] * copies), time)
            times_B = time.to(latents_BCHW.device).expand(len(scaled_BCHW))
            with torch.no_grad():
                predicted_BCHW = net.family.predict(
                    net.denoiser, scaled_BCHW, times_B, conditions.words, conditions.size_numbers_BS,
                    conditions.guidance_B,
                )  # fmt: skip
            if copies == 2:
                unwanted_BCHW, wanted_BCHW = predicted_BCHW.chunk(2)
                predicted_BCHW = unwanted_BCHW + conditions.guidance_scale * (wanted_BCHW - unwanted_BCHW)
            latents_BCHW = scheduler.step(predicted_BCHW, time, latents_BCHW, return_dict=False)[0]
            yield latents_BCHW


def _cells(sizes: Layout, batch: Batch) -> tuple[int, int, int]:
    return sizes.latent_channels, batch.height // sizes.downscale, batch.width // sizes.downscale
