"""Model folders of every family with a UNet but SDXL (see conftest; tiny_flow has the others): narrow, random weights.

Classes, names and wiring are those of the real ones, so that diffusers' pipelines load and run them.
"""

import json
from pathlib import Path

from tests.conftest import _save_tokenizer, _vocabulary, vae_config


def build_tiny_sd15(folder: Path, prediction_type: str = "epsilon") -> Path:
    """Write a small Stable Diffusion 1.5: attention on the UNet's first level, one text encoder, nothing pooled."""
    import torch

    from lace_lora.families.quiet import quiet

    with quiet():
        from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=16,
    )
    words = len(_vocabulary())
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=77, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=1,
        )
    )  # fmt: skip
    vae = AutoencoderKL(**{**vae_config(), "scaling_factor": 0.18215})
    for part, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        with quiet():
            module.eval().save_pretrained(folder / part)
    _save_tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False, prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
