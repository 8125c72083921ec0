"""Count what the plan is made of, on SDXL's true UNet without weights: FLOPs, kept activations and LoRA parameters.

python -m benchmarks.count            every LoRA target and checkpointing mode, at 1024 px; about two minutes
python -m benchmarks.count 768        at another size

Nothing is computed: the UNet lies on torch's meta device. Attention is replaced by one that keeps what a fused
kernel keeps (query, key, value, output and one number a row), since the meta device would unfold it.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lace_lora import adapter
from lace_lora.families import sdxl

GIB = 1024**3
RANK = 16
TARGETS = ("attention", "attention+ff", "attention+ff+conv", "up_blocks")
MODES = ("none", "transformers", "full")
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
_attention_flops = 0


class _Attention(torch.autograd.Function):
    """Fused attention's shapes: 4·N·M·d forward, 10 backward (five products where forward has two)."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        global _attention_flops
        _attention_flops += 4 * query[..., 0].numel() * key.shape[-2] * query.shape[-1]
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        context.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        global _attention_flops
        query, key, value, _, _ = context.saved_tensors
        _attention_flops += 10 * query[..., 0].numel() * key.shape[-2] * query.shape[-1]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(query, key, value)  # type: ignore[no-any-return, no-untyped-call]

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fused):
        yield


def unet_with_lora(targets: str, mode: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, int]:
    """SDXL's UNet without weights and a LoRA on it, both in half precision; and the LoRA's parameters."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
        unet = UNet2DConditionModel(**SDXL_UNET).to(dtype)
    unet.requires_grad_(False)
    parameters = adapter.attach(unet, "unet", adapter.Shape(RANK, RANK, targets), 0)
    for parameter in parameters.values():
        parameter.data = parameter.data.to(dtype)
    unet.train()
    sdxl.checkpoint_activations(unet, mode)
    return unet, sum(parameter.numel() for parameter in parameters.values())


def _forward(unet: Any, side_px: int) -> Tensor:
    cells = side_px // 8

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta", dtype=torch.bfloat16)

    conditions = {
        "text_embeds": empty(1, 1280),
        "time_ids": torch.empty(1, 6, device="meta"),
    }
    asked = (empty(1, 4, cells, cells), torch.zeros(1, device="meta"), empty(1, 77, 2048))
    predicted: Tensor = unet(*asked, added_cond_kwargs=conditions, return_dict=False)[0]
    return predicted


def kept_gib(targets: str, mode: str, side_px: int = 1024) -> float:
    """GiB kept for the backward pass of one picture, without the weights."""
    unet, _ = unet_with_lora(targets, mode)
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = tensor  # held, so that no other tensor gets its place
        return tensor

    with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = _forward(unet, side_px)
        found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / GIB
        del output
    return found


def tflop(targets: str, mode: str, side_px: int = 1024) -> tuple[float, float]:
    """TFLOP of a forward pass, and of forward and backward together."""
    global _attention_flops
    unet, _ = unet_with_lora(targets, mode)
    _attention_flops = 0
    with _fused_attention(), FlopCounterMode(display=False) as counter:
        output = _forward(unet, side_px)
        forward = counter.get_total_flops() + _attention_flops
        output.float().square().mean().backward()  # type: ignore[no-untyped-call]
    return forward / 1e12, (counter.get_total_flops() + _attention_flops) / 1e12


def main(side_px: int) -> None:
    """Print the table that estimate.py's coefficients are taken from."""
    print(f"SDXL base UNet, one picture of {side_px} px, LoRA of rank {RANK}, all in half precision")
    print(f"{'targets':<18} {'checkpointing':<13} {'kept GiB':>8} {'TFLOP':>6} {'step':>6} {'ratio':>6} parameters")
    for targets in TARGETS:
        for mode in MODES:
            forward, step = tflop(targets, mode, side_px)
            parameters = unet_with_lora(targets, mode)[1]
            numbers = f"{kept_gib(targets, mode, side_px):>8.2f} {forward:>6.2f} {step:>6.2f} {step / forward:>6.2f}"
            print(f"{targets:<18} {mode:<13} {numbers} {parameters:,}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
