"""Flux.1 (dev and schnell): a transformer over packed latents that reads T5, and CLIP's pooled text.

B batch · C latent channels (16) · H,W latent cells (px/8) · L tokens (512; schnell 256) · D text width (4096)
P pooled (768) · N places (2 by 2 cells each). Widths come from the model's configs, never from here.
Latents are BCHW everywhere; only inside predict are they packed to [B, N, 4C].
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
from lace_lora.families.folders import model_folder, part_config
from lace_lora.families.latents import encode_images as encode_images
from lace_lora.families.latents import load_vae as load_vae
from lace_lora.families.latents import scale_latents as scale_latents
from lace_lora.families.latents import unscale_latents as unscale_latents
from lace_lora.families.loading import empty_network, load_network
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded, TextParts

with quiet():
    import numpy
    import torch
    from torch import Tensor

FAMILY = "flux"
WORDLESS: Literal["zeros", "empty"] = "empty"
GUIDANCE: Literal["classifier-free", "embedded"] = "embedded"
HEADER: Mapping[str, str] = {"modelspec.architecture": "flux-1-dev/lora", "ss_base_model_version": "flux1"}
TOKENS_FIT = 511  # of the 512 that T5 reads for dev; one is the end
_ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": flow_text.T5}
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
# A pattern for the whole name: the transformer's last layer is called proj_out too, and is none of these.
_WITH_FEED_FORWARD = (
    r".*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out"
    r"|ff\.net\.0\.proj|ff\.net\.2|ff_context\.net\.0\.proj|ff_context\.net\.2|proj_mlp|\d+\.proj_out)"
)
_TARGETS = {"attention": _ATTENTION, "attention+ff": [_WITH_FEED_FORWARD]}


def load_denoiser(model: str, dtype: torch.dtype, device: str) -> Any:
    """The frozen transformer in the given dtype. Raises ModelError where it is missing or damaged."""
    return load_network("FluxTransformer2DModel", model, DENOISER, dtype, device)


def empty_denoiser(model: str) -> Any:
    """The transformer's layers without weights, on the meta device: for filling from elsewhere, and for counting."""
    return empty_network("FluxTransformer2DModel", model, DENOISER)


def load_text(model: str, dtype: torch.dtype, device: str) -> TextParts:
    """CLIP and T5 with their tokenizers; T5 in bf16 where fp16 is asked for (see flow_text)."""
    return flow_text.load(model, _ENCODERS, _tokens(model), dtype, device)


def load_tokenizers(model: str) -> tuple[Any, ...]:
    """The tokenizers alone: small and quick, for counting tokens before anything is loaded."""
    return flow_text.load_tokenizers(model, _ENCODERS, _tokens(model))


@torch.no_grad()
def encode_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """Captions as the pipeline encodes them: T5's states, and CLIP's pooled text. Tests compare with encode_prompt."""
    return read_captions(text, captions)


def read_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """The same with gradients."""
    pooled_BP = clip.outputs(text.tokenizers[0], text.encoders[0], captions).pooler_output
    return Encoded(flow_text.t5(text.tokenizers[1], text.encoders[1], captions), pooled_BP)


def predict(
    denoiser: Any,
    noisy_BCHW: Tensor,
    times_B: Tensor,
    words: Encoded,
    size_numbers_BS: Tensor,
    guidance_B: Tensor | None = None,
) -> Tensor:
    """The transformer's prediction, BCHW, float32, from latents packed and unpacked here.

    guidance_B  how strictly Flux-dev follows its words in its one pass; None for 1, no more than the pictures that are
                learnt do, which is what kohya's documentation advises for training. schnell takes none
    """
    dtype = base_dtype(denoiser)
    height, width = noisy_BCHW.shape[-2:]
    guidance_B = torch.ones_like(times_B, dtype=torch.float32) if guidance_B is None else guidance_B.float()
    prediction_BNc = denoiser(
        hidden_states=pack(noisy_BCHW.to(dtype)),
        timestep=times_B.float() / flow.TIMES,  # the transformer multiplies it again
        guidance=guidance_B if denoiser.config.guidance_embeds else None,
        pooled_projections=words.pooled_BP.to(dtype),
        encoder_hidden_states=words.text_BLD.to(dtype),
        txt_ids=torch.zeros(words.text_BLD.shape[1], 3, device=noisy_BCHW.device),
        img_ids=places(height, width).to(noisy_BCHW.device),
        return_dict=False,
    )[0]
    return unpack(torch.as_tensor(prediction_BNc), (height, width)).float()


def pack(latents_BCHW: Tensor) -> Tensor:
    """Latents as the transformer reads them, [B, N, 4C]: 2 by 2 cells side by side, row after row."""
    batch, channels, height, width = latents_BCHW.shape
    cut = latents_BCHW.reshape(batch, channels, height // flow.PATCH, flow.PATCH, width // flow.PATCH, flow.PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(packed_BNc: Tensor, cells_hw: tuple[int, int]) -> Tensor:
    """The way back, BCHW."""
    height, width = cells_hw
    cut = packed_BNc.reshape(len(packed_BNc), height // flow.PATCH, width // flow.PATCH, -1, flow.PATCH, flow.PATCH)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(packed_BNc), -1, height, width)


def places(height: int, width: int) -> Tensor:
    """Where each place lies, [N, 3]: 0, its row, its column."""
    rows, columns = torch.arange(height // flow.PATCH), torch.arange(width // flow.PATCH)
    where = torch.cartesian_prod(rows, columns).float()
    return torch.cat([torch.zeros(len(where), 1), where], dim=1)


def base_dtype(denoiser: Any) -> torch.dtype:
    """The dtype of the frozen weights, whatever dtype a LoRA in them has and whichever are in 4 bits: biases never."""
    dtype: torch.dtype = denoiser.x_embedder.bias.dtype
    return dtype


def lora_targets(kind: str) -> list[str]:
    """Endings of the module names that get a LoRA, or one pattern for the whole name (+ff).

    The single blocks have their attention's output and their feed-forward's in one layer, proj_out: +ff learns it.
    Raises SettingsError for a kind that only a UNet has.
    """
    return flow.targets(_TARGETS, kind, "Flux")


def make_sampler(
    name: str, model: str, steps: int, cells_hw: tuple[int, int], prediction_type: str | None = None
) -> Any:
    """The model's own scheduler, its times set as FluxPipeline sets them: from 1 down to 1/steps, shifted by the size.

    Raises SettingsError for a sampler that is not made for flow matching.
    """
    scheduler = flow.sampler(name, model)
    scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1 / steps, steps), mu=flow.mu(scheduler.config, cells_hw))
    return scheduler


def _tokens(model: str) -> int:
    """As many of T5's as the model was trained with: 512, and 256 for schnell, which takes no guidance."""
    return TOKENS_FIT + 1 if part_config(model_folder(model), DENOISER).get("guidance_embeds") else 256
