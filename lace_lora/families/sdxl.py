"""Stable Diffusion XL: a UNet told of two encoders' text, pooled text and sizes; ε- or v-prediction.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
S size numbers (6 for the base, 5 for the refiner). Widths come from the model's configs, never from here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lace_lora.errors import ModelError
from lace_lora.families import clip, sdxl_names
from lace_lora.families.clip import TOKENS_FIT as TOKENS_FIT
from lace_lora.families.clip import count_tokens as count_tokens
from lace_lora.families.clip import words_cut as words_cut
from lace_lora.families.diffusion import add_noise as add_noise
from lace_lora.families.diffusion import make_sampler as make_sampler
from lace_lora.families.diffusion import noising as noising
from lace_lora.families.diffusion import target as target
from lace_lora.families.diffusion import times as times
from lace_lora.families.diffusion import weights as weights
from lace_lora.families.latents import encode_images as encode_images
from lace_lora.families.latents import load_vae as load_vae
from lace_lora.families.latents import scale_latents as scale_latents
from lace_lora.families.latents import unscale_latents as unscale_latents
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded as Encoded
from lace_lora.families.seam import TextParts as TextParts
from lace_lora.families.unets import DENOISER as DENOISER
from lace_lora.families.unets import base_dtype as base_dtype
from lace_lora.families.unets import checkpoint_activations as checkpoint_activations
from lace_lora.families.unets import empty_denoiser as empty_denoiser
from lace_lora.families.unets import load_denoiser as load_denoiser
from lace_lora.families.unets import lora_targets as lora_targets

with quiet():
    import torch
    from torch import Tensor

FAMILY = "sdxl"
WORDLESS: Literal["zeros", "empty"] = "zeros"  # the pipeline guides with zeros where nothing is said
GUIDANCE: Literal["classifier-free", "embedded"] = "classifier-free"
HEADER: Mapping[str, str] = {
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "ss_base_model_version": "sdxl_base_v1-0",
}


def load_text(model: str, dtype: torch.dtype, device: str) -> TextParts:
    """Both tokenizers and text encoders of a base model; of a refiner the second pair, the only one it has."""
    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    if layout(model).is_refiner:
        del kinds["text_encoder"]
    tokenizers = load_tokenizers(model)
    encoders = tuple(
        clip.load_clip(kind, model, part, tokenizer, dtype, device)
        for (part, kind), tokenizer in zip(kinds.items(), tokenizers, strict=True)
    )
    return TextParts(tokenizers, encoders)


def load_tokenizers(model: str) -> tuple[Any, ...]:
    """The tokenizers alone: small and quick, for counting tokens before anything is loaded."""
    parts = ("tokenizer_2",) if layout(model).is_refiner else ("tokenizer", "tokenizer_2")
    return tuple(clip.load_clip_tokenizer(model, part) for part in parts)


@torch.no_grad()
def encode_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """Captions as the pipeline encodes them: penultimate layers of all encoders side by side, pooled by the last one.

    Longer captions are cut at 77 tokens; see words_cut. Tests compare with StableDiffusionXLPipeline.encode_prompt.
    """
    return read_captions(text, captions)


def read_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """The same with gradients, for encoders that are trained."""
    hidden_BLd, pooled_BP = [], None
    for tokenizer, encoder in zip(text.tokenizers, text.encoders, strict=True):
        output = clip.outputs(tokenizer, encoder, captions)
        hidden_BLd.append(output.hidden_states[-2])
        pooled_BP = output[0] if output[0].ndim == 2 else pooled_BP
    if pooled_BP is None:
        raise ModelError("The text encoders give no pooled text: text_encoder_2 must be a CLIPTextModelWithProjection.")
    return Encoded(torch.cat(hidden_BLd, dim=-1), pooled_BP)


def size_numbers(original_hw: tuple[int, int], crop_top_left: tuple[int, int], target_hw: tuple[int, int]) -> Tensor:
    """SDXL's size numbers as float32 [6]: original height, width, crop top, left, target height, width, in px.

    float32 all the way through the sinusoid: bfloat16 would turn 1333 into 1336 and change the embedding (cosine 0.82).
    """
    return torch.tensor([*original_hw, *crop_top_left, *target_hw], dtype=torch.float32)


def predict(
    denoiser: Any,
    noisy_BCHW: Tensor,
    times_B: Tensor,
    words: Encoded,
    size_numbers_BS: Tensor,
    guidance_B: Tensor | None = None,
) -> Tensor:
    """The UNet's prediction, BCHW, float32. All but times and size numbers enters in the base weights' dtype."""
    dtype = base_dtype(denoiser)
    conditions = {"text_embeds": words.pooled_BP.to(dtype), "time_ids": size_numbers_BS.float()}
    prediction_BCHW = denoiser(
        noisy_BCHW.to(dtype),
        times_B,
        encoder_hidden_states=words.text_BLD.to(dtype),
        added_cond_kwargs=conditions,
        return_dict=False,
    )[0]
    return torch.as_tensor(prediction_BCHW).float()


def for_other_tools(state: Mapping[str, Tensor], alpha: float, layers_per_block: int) -> dict[str, Tensor]:
    """kohya's names, with the UNet's layers where Stability published them; see sdxl_names."""
    return sdxl_names.for_tools(state, alpha, layers_per_block)
