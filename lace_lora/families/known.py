"""Base models whose architecture stands here, so that they can be planned for before they are fetched. Loads no torch.

What decides shapes in their configs at Hugging Face, as facts. `python -m benchmarks.count` counts the plan's tables on
exactly these; a new entry is all that a new base model needs here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lace_lora import demo
from lace_lora.errors import ModelError
from lace_lora.families import folders
from lace_lora.families.layouts import family_of as family_of_folder
from lace_lora.families.layouts import layout

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """A base model as its configs describe it.

    name      of its table in plan_data
    models    its names at Hugging Face, the usual one first; others of the same shape may follow
    side_px   of the square that it was trained on
    fetch_gb  what is fetched of it: half precision where it is offered, the VAE in fp32
    denoiser  its class in diffusers and its config; the keys in `shape` tell it from others
    text      its text encoders in their order: their classes in transformers, their configs, and the tokens they read
    tokens    that the denoiser reads of a caption
    refiner   the denoiser of its refiner, where it has one
    """

    name: str
    family: str
    models: tuple[str, ...]
    side_px: int
    fetch_gb: float
    denoiser: tuple[str, Config] = field(repr=False)
    vae: Config = field(repr=False)
    text: tuple[tuple[str, Config, int], ...] = field(repr=False)
    shape: tuple[str, ...]
    tokens: int = 77
    refiner: Config | None = field(default=None, repr=False)

    @property
    def shape_values(self) -> dict[str, Any]:
        """What its denoiser's config says in the keys that tell it from others."""
        return {key: self.denoiser[1][key] for key in self.shape}


_UNET = "UNet2DConditionModel"
# stabilityai/stable-diffusion-xl-base-1.0, unet/config.json: what decides shapes.
SDXL_UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
# stabilityai/stable-diffusion-xl-refiner-1.0: the same of its unet/config.json; 2259.5 million parameters.
SDXL_REFINER_UNET = SDXL_UNET | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
# stable-diffusion-v1-5/stable-diffusion-v1-5, unet/config.json: 859.5 million parameters.
SD15_UNET = {
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 2,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_CLIP_L = (
    "CLIPTextModel",
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    77,
)
_CLIP_G = (
    "CLIPTextModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
    77,
)
_VAE_OF_FLOW = _VAE | {"latent_channels": 16, "use_post_quant_conv": False, "use_quant_conv": False}
# The encoder of google/t5-v1_1-xxl: 4762 million parameters.
_T5 = (
    "T5EncoderModel",
    {
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "feed_forward_proj": "gated-gelu",
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 32128,
    },
)
# stabilityai/stable-diffusion-3.5-large, transformer/config.json: 8057 million parameters, and 90 of places.
SD35_LARGE_TRANSFORMER = {
    "attention_head_dim": 64,
    "caption_projection_dim": 2432,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 38,
    "num_layers": 38,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}
# stabilityai/stable-diffusion-3.5-medium: 2243 million, and 226 of places.
SD35_MEDIUM_TRANSFORMER = SD35_LARGE_TRANSFORMER | {
    "caption_projection_dim": 1536,
    "dual_attention_layers": list(range(13)),
    "num_attention_heads": 24,
    "num_layers": 24,
    "pos_embed_max_size": 384,
}
_TEXT_OF_SD35 = (("CLIPTextModelWithProjection", *_CLIP_L[1:]), _CLIP_G, (*_T5, 256))
# black-forest-labs/FLUX.1-dev, transformer/config.json: 11901 million parameters.
FLUX_TRANSFORMER = {
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}

SDXL = Known(
    "sdxl", "sdxl", ("stabilityai/stable-diffusion-xl-base-1.0",),
    1024, 7, (_UNET, SDXL_UNET), _VAE, (_CLIP_L, _CLIP_G),
    ("block_out_channels", "cross_attention_dim", "layers_per_block", "transformer_layers_per_block"),
    refiner=SDXL_REFINER_UNET,
)  # fmt: skip
SD15 = Known(
    "sd15", "sd15",
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4"),
    512, 2, (_UNET, SD15_UNET), _VAE, (_CLIP_L,), ("block_out_channels", "cross_attention_dim", "layers_per_block"),
)  # fmt: skip
SD35_MEDIUM = Known(
    "sd35-medium", "sd35", ("stabilityai/stable-diffusion-3.5-medium",),
    1024, 17, ("SD3Transformer2DModel", SD35_MEDIUM_TRANSFORMER), _VAE_OF_FLOW, _TEXT_OF_SD35,
    ("num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim"), 77 + 256,
)  # fmt: skip
SD35_LARGE = Known(
    "sd35-large", "sd35", ("stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-3.5-large-turbo"),
    1024, 28, ("SD3Transformer2DModel", SD35_LARGE_TRANSFORMER), _VAE_OF_FLOW, _TEXT_OF_SD35,
    ("num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim"), 77 + 256,
)  # fmt: skip
FLUX = Known(
    "flux", "flux", ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"),
    1024, 34, ("FluxTransformer2DModel", FLUX_TRANSFORMER), _VAE_OF_FLOW, (_CLIP_L, (*_T5, 512)),
    ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim"), 512,
)  # fmt: skip
ALL = {one.name: one for one in (SDXL, SD15, SD35_MEDIUM, SD35_LARGE, FLUX)}


def by_name(model: str) -> Known | None:
    """The entry of a name at Hugging Face; None where it is none of them."""
    return next((one for one in ALL.values() if model in one.models), None)


def family_of(model: str) -> str:
    """The family of a model by its folder, or by its name where it is not here; an unknown name is taken for SDXL's.

    Raises ModelError for a folder that is of no family.
    """
    if named := by_name(model):
        return named.family
    return family_of_folder(model) if _is_here(model) else SDXL.family


def side_px(model: str) -> int:
    """The side of the square that a model was trained on; SDXL's for a name that is not known."""
    if named := by_name(model):
        return named.side_px
    return layout(model).side_px if _is_here(model) else SDXL.side_px


def fetch_gb(model: str) -> float:
    """What is fetched of a model, GB; as much as of SDXL or its refiner of a name that is not known."""
    named = by_name(model)
    return named.fetch_gb if named else SDXL.fetch_gb


def fetch_notice(model: str) -> list[str]:
    """A line to say before a model is fetched, which takes minutes; none where it is on this machine already."""
    if not folders.is_to_fetch(model):
        return []
    size = f"about {fetch_gb(model):g} GB, once; several minutes in which nothing seems to happen"
    return [f"model     fetching {model} ({size}) …"]


def _is_here(model: str) -> bool:
    """Whether its folder can be read; one that is damaged is told when it is loaded."""
    path = Path(demo.locate(model)).expanduser()
    try:
        return path.is_dir() or folders.is_here(model)
    except ModelError:
        return False
