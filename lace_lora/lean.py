"""The LoRA of a frozen linear layer in the fewest passes over memory: PEFT's layer, its forward pass written anew.

PEFT multiplies the LoRA's product by its scale and adds it to the layer's in passes of their own, and autograd sums the
two gradients of the input in another. Here each of these is part of a matrix product that has to be done anyway:
measured on SDXL's shape, that is up to 6 % of a step (benchmarks/results). Parameters, names and state stay PEFT's.

N rows of all pictures · I numbers in · O numbers out · R rank
"""

from typing import Any

from lace_lora.families.quiet import quiet

with quiet():
    import torch
    from peft.tuners.lora.layer import Linear
    from torch import Tensor, nn
    from torch.autograd.function import once_differentiable
    from torch.nn import functional


class LeanLinear(Linear):
    """PEFT's LoRA of a linear layer with a leaner forward pass; where it is more than plain, it is PEFT's own."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with the LoRA in it. Hooks on lora_A and lora_B do not run."""
        name = _only_adapter(self)
        if name is None or args or kwargs or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        base, down_RI, up_OR = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        if not x.dtype == base.weight.dtype == down_RI.dtype == up_OR.dtype:
            return super().forward(x)
        output_NO = _linear(x.reshape(-1, x.shape[-1]), base.weight, base.bias, down_RI, up_OR, self.scaling[name])
        return output_NO.view(*x.shape[:-1], output_NO.shape[-1])


def make_lean(module: nn.Module) -> int:
    """Give each plain PEFT Linear in `module` the leaner forward pass, in place; return how many there are.

    Plain: one LoRA of two matrices on a frozen nn.Linear, with neither dropout nor bias. DoRA, NF4 and convolutions
    stay PEFT's. Call it after the LoRA is attached and before blocks are compiled. Every forward pass looks again:
    with adapters disabled, merged, switched or added, under autocast and for mixed dtypes the layer is PEFT's own.
    """
    plain = [layer for layer in module.modules() if type(layer) is Linear and _only_adapter(layer) is not None]
    for layer in plain:
        layer.__class__ = LeanLinear
    return len(plain)


def _only_adapter(layer: Any) -> str | None:
    """The name of the one active, plain LoRA of a layer; None where there is none, several or another kind."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    base = layer.base_layer
    is_plain = (
        name in layer.lora_A
        and name not in layer.lora_variant  # DoRA and its kin
        and type(layer.lora_dropout[name]) is nn.Identity
        and type(layer.lora_B[name]) is nn.Linear
        and layer.lora_B[name].bias is None
        and type(base) is nn.Linear
        and not layer.fan_in_fan_out
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
    )
    return name if is_plain else None


def _linear(
    x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
) -> Tensor:
    """x·Wᵀ + b + scale · (x·Aᵀ)·Bᵀ, [N, O]."""
    if torch.compiler.is_compiling():  # a compiler joins these itself, and knows no autograd of ours
        return functional.linear(x_NI, weight_OI, bias_O) + scale * (x_NI @ down_RI.t() @ up_OR.t())
    output_NO: Tensor = _Linear.apply(x_NI, weight_OI, bias_O, down_RI, up_OR, scale)
    return output_NO


class _Linear(torch.autograd.Function):
    """The same with its gradients by hand; keeps what autograd would keep, x and x·Aᵀ."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Any, down_RI: Tensor, up_OR: Tensor, scale: float):  # type: ignore[no-untyped-def]  # noqa: E501
        output_NO = functional.linear(x_NI, weight_OI, bias_O)
        within_NR = functional.linear(x_NI, down_RI)
        ctx.save_for_backward(x_NI, within_NR, weight_OI, down_RI, up_OR)
        ctx.scale = scale
        return output_NO.addmm_(within_NR, up_OR.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, within_NR, weight_OI, down_RI, up_OR = ctx.saved_tensors
        needs_x, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
        for_x, for_down, for_up = None, None, None
        if needs_up:
            for_up = (above_NO.t() @ within_NR).mul_(ctx.scale)
        if needs_x or needs_down:
            for_within_NR = (above_NO @ up_OR).mul_(ctx.scale)
            if needs_down:
                for_down = for_within_NR.t() @ x_NI
            if needs_x:
                for_x = (above_NO @ weight_OI).addmm_(for_within_NR, down_RI)
        return for_x, None, None, for_down, for_up, None
