"""Sample pictures while training: the same prompts and seeds after every so many steps, and a film strip of them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from lace_lora import checkpoint, schedule, stages
from lace_lora.batches import Batch, in_batches, texts_of
from lace_lora.config import Config
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded
from lace_lora.film_strip import film_strip
from lace_lora.parts import Parts, averaged
from lace_lora.run_folder import RunFolder
from lace_lora.sampling import Sampling

with quiet():
    import torch

PROMPTS_AT_MOST = 4


@dataclass(frozen=True)
class Wanted:
    """The pictures of one row: their prompts as the denoiser reads them, their seeds and their size."""

    batches: tuple[Batch, ...]
    words: stages.Words
    sampling: Sampling


def prepare(settings: Config, dtype: torch.dtype, device: str) -> Wanted | None:
    """Encode the first prompts once, so that no text encoder is needed later; None where no samples are wanted."""
    if not settings.sample_every:
        return None
    prompts = (settings.prompts or (settings.instance_prompt,))[:PROMPTS_AT_MOST]
    seeds = [schedule.seed(settings.seed, "sample", number) for number in range(len(prompts))]
    sizes = layout(settings.pretrained_model)
    side = max(sizes.pixel_step, int(settings.resolution) // sizes.pixel_step * sizes.pixel_step)
    # One by one: what a picture looks like must not depend on its neighbours, and the denoiser shares its memory here.
    batches = in_batches(prompts, [settings.negative_prompt] * len(prompts), seeds, side, side, 1)
    words = {}
    if not settings.train_text_encoder and not settings.learn_concept_token:
        words = stages.encode_prompts(settings.pretrained_model, texts_of(batches), dtype=dtype, device=device)
    return Wanted(
        tuple(batches), words, Sampling(settings.scheduler, settings.num_inference_steps, settings.guidance_scale)
    )


def draw(parts: Parts, wanted: Wanted, settings: Config, folder: RunFolder, step: int) -> tuple[Path, ...]:
    """Draw the row of `step` with the LoRA as it is, and put it on the film strip; returns the pictures' paths.

    The VAE is in memory for the seconds that this takes, and no second UNet.
    """
    paths = tuple(folder.sample(step, number) for number in range(len(wanted.batches)))
    if all(path.is_file() for path in paths):
        return paths
    with torch.no_grad(), averaged(parts):
        words = wanted.words or _read(parts, wanted)
        drawn = stages.denoise_with(
            parts.denoiser, settings.pretrained_model, wanted.batches, words, wanted.sampling, device=parts.device
        )
        latents = [(batch.prompts[0], one.finished_BCHW[0]) for batch, one in zip(wanted.batches, drawn, strict=True)]
    pictures = stages.decode(settings.pretrained_model, latents, device=parts.device, vae_model=settings.vae_model)
    for path, picture in zip(paths, pictures, strict=True):
        checkpoint.write_file(path, partial(picture.save, format="PNG"))
    write_film_strip(folder)
    return paths


def write_film_strip(folder: RunFolder) -> None:
    """All rows so far on one page, so that one prompt stands in one column."""
    rows = []
    for place in checkpoint.numbered(folder.samples):
        row = [Image.open(path).convert("RGB") for path in sorted(place.glob("sample_*.png"))]
        rows += [(f"step {int(place.name.rpartition('-')[2])}", row)] if row else []
    checkpoint.write_file(folder.film_strip, partial(film_strip(rows).save, format="PNG"))


def _read(parts: Parts, wanted: Wanted) -> dict[str, Encoded]:
    """The prompts as the text encoders that are being trained read them now."""
    assert parts.text is not None
    found = {text: parts.family.encode_captions(parts.text, [text]) for text in sorted(texts_of(wanted.batches))}
    return {text: Encoded(one.text_BLD.cpu(), one.pooled_BP.cpu()) for text, one in found.items()}
