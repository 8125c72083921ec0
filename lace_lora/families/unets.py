"""The UNet of SDXL and its elders: loading it, its layers for a LoRA, its checkpointing."""

from typing import Any

from lace_lora.families.libraries import of_diffusers
from lace_lora.families.loading import empty_network, load_network
from lace_lora.families.quiet import quiet

with quiet():
    import torch

DENOISER = "unet"
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
_CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
_TARGETS = {
    "attention": _ATTENTION,
    "attention+ff": [*_ATTENTION, *_FEED_FORWARD],
    "attention+ff+conv": [*_ATTENTION, *_FEED_FORWARD, *_CONVOLUTIONS],
    "up_blocks": [r"up_blocks\..*\.(to_q|to_k|to_v|to_out\.0)"],  # a pattern for the whole name
}


def load_denoiser(model: str, dtype: torch.dtype, device: str) -> Any:
    """The frozen UNet in the given dtype. Raises ModelError where it is missing or damaged."""
    return load_network("UNet2DConditionModel", model, DENOISER, dtype, device)


def empty_denoiser(model: str) -> Any:
    """The UNet's layers without weights, on the meta device: for filling from elsewhere, and for counting."""
    return empty_network("UNet2DConditionModel", model, DENOISER)


def base_dtype(unet: Any) -> torch.dtype:
    """The dtype of the frozen weights, whatever dtype a LoRA in them has."""
    dtype: torch.dtype = unet.conv_in.weight.dtype
    return dtype


def lora_targets(kind: str) -> list[str]:
    """Endings of the module names that get a LoRA, or one pattern: attention has 560 in SDXL's UNet, +ff 700."""
    return list(_TARGETS[kind])


def checkpoint_activations(unet: Any, mode: str) -> None:
    """Which activations are computed again in the backward pass instead of kept: none, transformers, or full (all).

    At 1024 px `transformers` saves all but the convolutions' for a third more work; `full` those too, for a bit more.
    """
    if mode == "none":
        unet.disable_gradient_checkpointing()
        return
    unet.enable_gradient_checkpointing()
    if mode == "transformers":
        transformer = of_diffusers("Transformer2DModel")
        for module in unet.modules():
            if hasattr(module, "gradient_checkpointing") and not isinstance(module, transformer):
                module.gradient_checkpointing = False
