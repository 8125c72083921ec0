"""Stable Diffusion 3.5 (medium and large, and 3 medium): a transformer that reads two CLIPs and T5 side by side.

B batch · C latent channels (16) · H,W latent cells (px/8) · L tokens (77 + 256) · D text width (4096)
P pooled (768 + 1280). Widths come from the model's configs, never from here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lace_lora.families import clip, flow, flow_text
from lace_lora.families.flow import DENOISER as DENOISER
from lace_lora.families.flow import add_noise as add_noise
from lace_lora.families.flow import checkpoint_activations as checkpoint_activations
from lace_lora.families.flow import for_other_tools as for_other_tools
from lace_lora.families.flow import noising as noising
from lace_lora.families.flow import size_numbers as size_numbers
from lace_lora.families.flow import target as target
from lace_lora.families.flow import times as times
from lace_lora.families.flow import weights as weights
from lace_lora.families.flow_text import count_tokens as count_tokens
from lace_lora.families.flow_text import words_cut as words_cut
from lace_lora.families.latents import encode_images as encode_images
from lace_lora.families.latents import load_vae as load_vae
from lace_lora.families.latents import scale_latents as scale_latents
from lace_lora.families.latents import unscale_latents as unscale_latents
from lace_lora.families.loading import empty_network, load_network
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded, TextParts

with quiet():
    import torch
    from torch import Tensor
    from torch.nn.functional import pad

FAMILY = "sd35"
WORDLESS: Literal["zeros", "empty"] = "empty"
GUIDANCE: Literal["classifier-free", "embedded"] = "classifier-free"
HEADER: Mapping[str, str] = {
    "modelspec.architecture": "stable-diffusion-3/lora",
    "ss_base_model_version": "sd3",
}
TOKENS_FIT = 255  # of the 256 that T5 reads here; one is the end
_ENCODERS = {
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": flow_text.T5,
}
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
_TARGETS = {"attention": _ATTENTION, "attention+ff": [*_ATTENTION, *_FEED_FORWARD]}


def load_denoiser(model: str, dtype: torch.dtype, device: str) -> Any:
    """The frozen transformer in the given dtype. Raises ModelError where it is missing or damaged."""
    return load_network("SD3Transformer2DModel", model, DENOISER, dtype, device)


def empty_denoiser(model: str) -> Any:
    """The transformer's layers without weights, on the meta device: for filling from elsewhere, and for counting."""
    return empty_network("SD3Transformer2DModel", model, DENOISER)


def load_text(model: str, dtype: torch.dtype, device: str) -> TextParts:
    """Three tokenizers and text encoders; T5 in bf16 where fp16 is asked for (see flow_text)."""
    return flow_text.load(model, _ENCODERS, TOKENS_FIT + 1, dtype, device)


def load_tokenizers(model: str) -> tuple[Any, ...]:
    """The tokenizers alone: small and quick, for counting tokens before anything is loaded."""
    return flow_text.load_tokenizers(model, _ENCODERS, TOKENS_FIT + 1)


@torch.no_grad()
def encode_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """Captions as the pipeline encodes them: both CLIPs side by side, made as wide as T5, then T5 behind them.

    Tests compare with StableDiffusion3Pipeline.encode_prompt.
    """
    return read_captions(text, captions)


def read_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """The same with gradients."""
    first, second = (clip.outputs(*pair, captions) for pair in zip(text.tokenizers[:2], text.encoders[:2], strict=True))
    t5_BLD = flow_text.t5(text.tokenizers[2], text.encoders[2], captions)
    clip_BLd = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    clip_BLD = pad(clip_BLd, (0, t5_BLD.shape[-1] - clip_BLd.shape[-1]))
    return Encoded(torch.cat([clip_BLD, t5_BLD.to(clip_BLD.dtype)], dim=-2), torch.cat([first[0], second[0]], dim=-1))


def predict(
    denoiser: Any,
    noisy_BCHW: Tensor,
    times_B: Tensor,
    words: Encoded,
    size_numbers_BS: Tensor,
    guidance_B: Tensor | None = None,
) -> Tensor:
    """The transformer's prediction, BCHW, float32. Times enter in float32, all else in the base weights' dtype."""
    dtype = base_dtype(denoiser)
    prediction_BCHW = denoiser(
        hidden_states=noisy_BCHW.to(dtype),
        timestep=times_B.float(),
        encoder_hidden_states=words.text_BLD.to(dtype),
        pooled_projections=words.pooled_BP.to(dtype),
        return_dict=False,
    )[0]
    return torch.as_tensor(prediction_BCHW).float()


def base_dtype(denoiser: Any) -> torch.dtype:
    """The dtype of the frozen weights, whatever dtype a LoRA in them has and whichever are in 4 bits."""
    dtype: torch.dtype = denoiser.pos_embed.proj.weight.dtype
    return dtype


def lora_targets(kind: str) -> list[str]:
    """Endings of the module names that get a LoRA: the attention of pictures and of words, +ff both feed-forwards.

    Raises SettingsError for a kind that only a UNet has.
    """
    return flow.targets(_TARGETS, kind, "Stable Diffusion 3.5")


def make_sampler(
    name: str, model: str, steps: int, cells_hw: tuple[int, int], prediction_type: str | None = None
) -> Any:
    """The model's own scheduler, its times set as StableDiffusion3Pipeline sets them.

    Raises SettingsError for a sampler that is not made for flow matching.
    """
    scheduler = flow.sampler(name, model)
    if scheduler.config.use_dynamic_shifting:
        scheduler.set_timesteps(steps, mu=flow.mu(scheduler.config, cells_hw))
    else:
        scheduler.set_timesteps(steps)
    return scheduler
