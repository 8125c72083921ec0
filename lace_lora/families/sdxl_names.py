"""What ComfyUI, A1111 and kohya call the layers of an SDXL LoRA, and what a LoRA file is, told by its names."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lace_lora.errors import AdapterError
from lace_lora.families.lora_names import A, in_kohyas_form, strange

if TYPE_CHECKING:
    from torch import Tensor

FAMILY = "sdxl"
OURS = "an SDXL LoRA in diffusers' names"
# The learnt rows of a concept token in our state, and as A1111 and ComfyUI call them in an SDXL embedding.
TOKEN_ROWS = {"text_encoder.concept_token": "clip_l", "text_encoder_2.concept_token": "clip_g"}
_PLACE = re.compile(
    r"unet\.(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(attentions|resnets|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "time_emb_proj": "emb_layers.1",
}
# Outside the blocks; only "full" LoRAs of other trainers change these.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
# What a set of keys looks like, in words that a person can search for; the first that fits is named.
_FORMATS = (
    (r"(unet|text_encoder):\d+:(up|down)", "an SD 1.5 LoRA in the format of the early `lora` package"),
    (r"lora_unet_(input_blocks|output_blocks|middle_block)_", "an SDXL LoRA in the names of ComfyUI, A1111 and kohya"),
    (r"lora_(unet|te\d?)_", "a LoRA in kohya's names, for SD 1.5 or another model"),
    (r"transformer\.|diffusion_model\.|lora_transformer_", "a LoRA for a transformer model such as Flux or SD 3.5"),
    (r"base_model\.model\.", "a PEFT adapter for a language model"),
    (r"unet\..*\.processor\.|unet\..*\.(lora\.down|lora_linear_layer\.down)", "a LoRA in diffusers' older names"),
    (r".*(lokr_|hada_|oft_)", "a LyCORIS adapter (LoKr, LoHa or OFT)"),
    (r"emb_params|clip_[lg]|string_to_param", "a textual inversion, not a LoRA"),
)


def format_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The format and family of a LoRA file in words, by its keys and shapes; OURS for one that we can read."""
    if not shapes:
        return "an empty file"
    if others := strange(shapes, "unet"):
        found = (words for pattern, words in _FORMATS if any(re.match(pattern, name) for name in others))
        return next(found, f"something unknown (its first tensor is called {others[0]!r})")
    if any(name.startswith("unet.down_blocks.0.attentions.") for name in shapes):
        # SDXL's first level has no attention; SD 1.5 and 2 have it there, with text 768 or 1024 wide.
        widths = {shape[1] for name, shape in shapes.items() if name.endswith(f"attn2.to_k{A}")}
        return f"a LoRA for SD {'1.5' if 768 in widths else '2' if 1024 in widths else '1.5 or 2'}"
    return OURS


def for_tools(state: "Mapping[str, Tensor]", alpha: float, layers_per_block: int) -> "dict[str, Tensor]":
    """The same LoRA in the names that ComfyUI, A1111 and kohya read; see lora_names.in_kohyas_form."""
    return in_kohyas_form(state, alpha, lambda name: _tools_key(name, layers_per_block))


def _tools_key(name: str, layers_per_block: int) -> str:
    """lora_unet_… with the UNet's original places, lora_te1_… and lora_te2_… for the text encoders."""
    part, _, place = name.partition(".")
    if part != "unet":
        number = {"text_encoder": 1, "text_encoder_2": 2}[part]
        root = place if place.startswith("text_model.") else f"text_model.{place}"
        return f"lora_te{number}_{root}".replace(".", "_")
    return "lora_unet_" + original_place(name, layers_per_block).replace(".", "_")


def original_place(name: str, layers_per_block: int) -> str:
    """Where a module of diffusers' UNet stands in the UNet that Stability published.

    unet.down_blocks.1.attentions.0.x is input_blocks.4.1.x: block 0 is the first convolution, and each level has
    layers_per_block places and one for its halving (the way up has one place more and no halving place of its own).
    """
    if name.removeprefix("unet.") in _OUTSIDE:
        return _OUTSIDE[name.removeprefix("unet.")]
    found = _PLACE.fullmatch(name)
    if not found:
        raise AdapterError(f"{name} has no name for other tools; only layers of an SDXL UNet have.")
    part, level, kind, layer, rest = found.groups()
    if kind == "resnets":
        rest = _RESNET[rest]
    if kind == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * (layers_per_block + 1)}.0.op"
    if kind == "upsamplers":
        # Behind the attention, where the level has one: the last level alone has none, and no upsampler either.
        return f"output_blocks.{int(level) * (layers_per_block + 1) + layers_per_block}.2.conv"
    inner = 0 if kind == "resnets" else 1
    if part == "mid_block":
        return f"middle_block.{2 * int(layer) + inner}.{rest}"
    if part == "down_blocks":
        return f"input_blocks.{1 + int(level) * (layers_per_block + 1) + int(layer)}.{inner}.{rest}"
    return f"output_blocks.{int(level) * (layers_per_block + 1) + int(layer)}.{inner}.{rest}"
