"""What a denoiser is told beside the latents: texts, pooled texts and size numbers, as its pipeline tells it.

B batch · L tokens (77) · D text width (2048) · P pooled (1280) · S size numbers (6 for the base, 5 for the refiner)
Widths come from the model's configs, never from here; P and S are 0 where a family has none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lace_lora.batches import Batch
from lace_lora.families import Family
from lace_lora.families.folders import model_folder
from lace_lora.families.layouts import Layout
from lace_lora.families.seam import Encoded
from lace_lora.sampling import Sampling

# Scores that SDXL's refiner is told for what is wanted and what is not: diffusers' defaults (arXiv 2307.01952).
AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5

Words = Mapping[str, Encoded]


@dataclass(frozen=True)
class Conditions:
    """What a batch is told; the unwanted half first where the prompt is followed by guidance.

    guidance_B  the same as a number that the denoiser is told, where the family has it so; there is no unwanted half
    """

    words: Encoded
    size_numbers_BS: Tensor
    guidance_scale: float
    guided_steps: int  # of the schedule; the later ones are computed without the unwanted half
    guidance_B: Tensor | None = None

    def wanted(self, count: int) -> "Conditions":
        """Without the unwanted half, for a batch of `count` pictures."""
        words = Encoded(self.words.text_BLD[-count:], self.words.pooled_BP[-count:])
        return replace(self, words=words, size_numbers_BS=self.size_numbers_BS[-count:])


def conditions_of(
    batch: Batch, words: Words, sampling: Sampling, model: str, family: Family, sizes: Layout, device: str
) -> Conditions:
    """Texts and size numbers of a batch; without guidance (1 or less) the unwanted half is left out: it has no say.

    words                 every text of the batch, encoded
    model, family, sizes  whose denoiser is told, the base's or a refiner's, and its layout
    """
    parts = [_told(words, batch.prompts, sizes, _size_numbers(batch, family, sizes, AESTHETIC))]
    is_embedded = family.GUIDANCE == "embedded"
    if sampling.guidance_scale > 1 and not is_embedded:
        numbers_S = _size_numbers(batch, family, sizes, NEGATIVE_AESTHETIC)
        text_BLD, pooled_BP, numbers_BS = _told(words, batch.negative_prompts, sizes, numbers_S)
        if family.WORDLESS == "zeros" and forces_zeros(model):
            is_told_B = torch.tensor([bool(negative) for negative in batch.negative_prompts])
            text_BLD, pooled_BP = text_BLD * is_told_B[:, None, None], pooled_BP * is_told_B[:, None]
        parts.insert(0, (text_BLD, pooled_BP, numbers_BS))
    text_BLD, pooled_BP, numbers_BS = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
    guided = round(sampling.guidance_until * sampling.steps)
    guidance_B = torch.full((len(batch.seeds),), sampling.guidance_scale, device=device) if is_embedded else None
    return Conditions(Encoded(text_BLD, pooled_BP), numbers_BS, sampling.guidance_scale, guided, guidance_B)


# -- inside --


def _told(words: Words, texts: Sequence[str], sizes: Layout, numbers_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Text, pooled text and size numbers of some texts; a refiner's text is the last part, the second encoder's."""
    text_BLD = torch.cat([words[text].text_BLD[..., -sizes.text_width :] for text in texts])
    return text_BLD, torch.cat([words[text].pooled_BP for text in texts]), numbers_S.repeat(len(texts), 1)


def _size_numbers(batch: Batch, family: Family, sizes: Layout, aesthetic: float) -> Tensor:
    """The base is told an uncut picture of the size it draws; a refiner an aesthetic score in place of the target."""
    size_hw = (batch.height, batch.width)
    base_S = family.size_numbers(size_hw, (0, 0), size_hw)
    return torch.cat([base_S[:4], torch.tensor([aesthetic])]) if sizes.is_refiner else base_S


def forces_zeros(model: str) -> bool:
    """Whether an empty negative prompt means zeros, as SDXL's base was trained, or the empty text, as its refiner.

    Asked of models whose family knows zeros; the others' folders say nothing of it.
    """
    index = json.loads((Path(model_folder(model)) / "model_index.json").read_text(encoding="utf-8"))
    return bool(index.get("force_zeros_for_empty_prompt", True))
