"""Stable Diffusion 1.5 and 2: a UNet told of one encoder's text and nothing else; ε- or v-prediction.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (768; 1024 in 2) · P pooled (0)
S size numbers (0). Widths come from the model's configs, never from here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lace_lora.families import clip, lora_names
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
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded, TextParts
from lace_lora.families.unets import DENOISER as DENOISER
from lace_lora.families.unets import base_dtype as base_dtype
from lace_lora.families.unets import checkpoint_activations as checkpoint_activations
from lace_lora.families.unets import empty_denoiser as empty_denoiser
from lace_lora.families.unets import load_denoiser as load_denoiser
from lace_lora.families.unets import lora_targets as lora_targets

with quiet():
    import torch
    from torch import Tensor

FAMILY = "sd15"
WORDLESS: Literal["zeros", "empty"] = "empty"  # it was trained with the empty caption, and is guided with it
GUIDANCE: Literal["classifier-free", "embedded"] = "classifier-free"
HEADER: Mapping[str, str] = {"modelspec.architecture": "stable-diffusion-v1/lora", "ss_base_model_version": "sd_v1"}


def load_text(model: str, dtype: torch.dtype, device: str) -> TextParts:
    """The tokenizer and the text encoder."""
    (tokenizer,) = load_tokenizers(model)
    encoder = clip.load_clip("CLIPTextModel", model, "text_encoder", tokenizer, dtype, device)
    return TextParts((tokenizer,), (encoder,))


def load_tokenizers(model: str) -> tuple[Any, ...]:
    """The tokenizer alone: small and quick, for counting tokens before anything is loaded."""
    return (clip.load_clip_tokenizer(model, "tokenizer"),)


@torch.no_grad()
def encode_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """Captions as the pipeline encodes them: the encoder's last layer behind its norm, and nothing pooled.

    Longer captions are cut at 77 tokens; see words_cut. Tests compare with StableDiffusionPipeline.encode_prompt.
    """
    return read_captions(text, captions)


def read_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """The same with gradients, for an encoder that is trained."""
    (tokenizer,), (encoder,) = text.tokenizers, text.encoders
    text_BLD = clip.outputs(tokenizer, encoder, captions).last_hidden_state
    return Encoded(text_BLD, text_BLD.new_zeros(len(text_BLD), 0))


def size_numbers(original_hw: tuple[int, int], crop_top_left: tuple[int, int], target_hw: tuple[int, int]) -> Tensor:
    """None: this UNet is not told of a picture's size; float32 [0]."""
    return torch.zeros(0)


def predict(
    denoiser: Any,
    noisy_BCHW: Tensor,
    times_B: Tensor,
    words: Encoded,
    size_numbers_BS: Tensor,
    guidance_B: Tensor | None = None,
) -> Tensor:
    """The UNet's prediction, BCHW, float32. All but the times enters in the base weights' dtype."""
    dtype = base_dtype(denoiser)
    prediction_BCHW = denoiser(
        noisy_BCHW.to(dtype), times_B, encoder_hidden_states=words.text_BLD.to(dtype), return_dict=False
    )[0]
    return torch.as_tensor(prediction_BCHW).float()


def for_other_tools(state: Mapping[str, Tensor], alpha: float, layers_per_block: int) -> dict[str, Tensor]:
    """kohya's names, which keep diffusers' places for this UNet: lora_unet_down_blocks_…, lora_te_text_model_…"""
    return lora_names.in_kohyas_form(state, alpha, _key)


def _key(name: str) -> str:
    part, _, place = name.partition(".")
    if part == DENOISER:
        return f"lora_unet_{place}".replace(".", "_")
    root = place if place.startswith("text_model.") else f"text_model.{place}"
    return f"lora_te_{root}".replace(".", "_")
