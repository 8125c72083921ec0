"""Small SD 3.5, Flux-dev and Flux-schnell of the true layout with random weights, as folders; nothing is fetched."""

import json
from pathlib import Path
from typing import Any

import torch

from lace_lora.families.quiet import quiet
from tests.conftest import _save_tokenizer, _vocabulary

with quiet():
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

T5_WIDTH, CLIP_WIDTH, CHANNELS = 48, 16, 4


def sd35_config(**changes: Any) -> dict[str, Any]:
    """SD 3.5 medium's transformer with narrow layers: the first of its three blocks attends twice."""
    return {
        "sample_size": 8, "patch_size": 2, "in_channels": CHANNELS, "out_channels": CHANNELS, "num_layers": 3,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": T5_WIDTH,
        "caption_projection_dim": 16, "pooled_projection_dim": 2 * CLIP_WIDTH, "pos_embed_max_size": 16,
        "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    } | changes  # fmt: skip


def flux_config(**changes: Any) -> dict[str, Any]:
    """Flux-dev's transformer with narrow layers: two double blocks, two single ones."""
    return {
        "patch_size": 1, "in_channels": 4 * CHANNELS, "num_layers": 2, "num_single_layers": 2,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": CLIP_WIDTH, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
    } | changes  # fmt: skip


def build_sd35(folder: Path, **changes: Any) -> Path:
    """Write a small SD 3.5 folder."""
    torch.manual_seed(0)
    parts = {
        "transformer": SD3Transformer2DModel(**sd35_config(**changes)),
        "vae": _vae(scaling_factor=1.5305, shift_factor=0.0609),
        "text_encoder": _clip(CLIPTextModelWithProjection),
        "text_encoder_2": _clip(CLIPTextModelWithProjection),
        "text_encoder_3": _t5(),
    }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _write(folder, "StableDiffusion3Pipeline", parts, scheduler)


def build_flux(folder: Path, schnell: bool = False, **changes: Any) -> Path:
    """Write a small Flux folder: dev's schedule depends on the size, schnell's does not, nor takes it guidance."""
    torch.manual_seed(0)
    parts = {
        "transformer": FluxTransformer2DModel(**flux_config(guidance_embeds=not schnell, **changes)),
        "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": _clip(CLIPTextModel),
        "text_encoder_2": _t5(),
    }
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0 if schnell else 3.0, use_dynamic_shifting=not schnell, base_shift=0.5, max_shift=1.15
    )
    return _write(folder, "FluxPipeline", parts, scheduler)


def _write(folder: Path, pipeline: str, parts: dict[str, Any], scheduler: Any) -> Path:
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.39.0"}
    for part, module in parts.items():
        with quiet():
            _rouse(module).eval().save_pretrained(folder / part)
        library = "diffusers" if part in ("transformer", "vae") else "transformers"
        index[part] = [library, type(module).__name__]
        if part.startswith("text_encoder"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            is_t5 = isinstance(module, T5EncoderModel)
            _save_t5_tokenizer(folder / tokenizer) if is_t5 else _save_tokenizer(folder / tokenizer, "<|endoftext|>")
            index[tokenizer] = ["transformers", "T5TokenizerFast" if is_t5 else "CLIPTokenizer"]
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _rouse(module: Any) -> Any:
    """Norms and tables of ones would hide a factor that is applied twice or not at all; so nothing stays at one."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=chance))
    return module


def _vae(**factors: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
        **factors,
    )


def _clip(kind: Any) -> Any:
    words = len(_vocabulary())
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=CLIP_WIDTH,
        bos_token_id=words - 2,
        eos_token_id=2,  # as the real ones say; it is not their end token
        pad_token_id=1,
    )
    return kind(config)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_pieces()),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def _pieces() -> list[tuple[str, float]]:
    """A vocabulary of single signs, and a few whole words, which Unigram prefers."""
    signs = [(chr(code), -8.0) for code in range(33, 127)]
    words = [(f"▁{word}", -2.0) for word in ("lace", "white", "a", "photo", "of", "on", "dark", "rosette")]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), *signs, *words]


def _save_t5_tokenizer(folder: Path) -> None:
    tokenizer = T5TokenizerFast(vocab=_pieces(), extra_ids=0, model_max_length=512)
    assert tokenizer("white lace").input_ids[-1] == 1 and len(tokenizer("white lace").input_ids) == 3
    tokenizer.save_pretrained(folder)
