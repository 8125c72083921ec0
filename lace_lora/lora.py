"""The LoRA on a model's layers: put on for training, read and set, and fused into the weights for generation.

A LoRA adds strength · B·A to a weight W, strength being alpha / rank, or alpha / √rank with rsLoRA; A is [rank, in], B
[out, rank] and begins at zero. DoRA then gives each output's row its own learnt length: m · W' / ‖W'‖.
Names are those of files: the part (unet or transformer, text_encoder, text_encoder_2), then PEFT's without its
adapter's name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lace_lora import schedule
from lace_lora.errors import ModelError
from lace_lora.families import quiet
from lace_lora.families.folders import DENOISERS
from lace_lora.families.lora_names import MAGNITUDE as MAGNITUDE
from lace_lora.families.lora_names import TEXT_TARGETS as TEXT_TARGETS
from lace_lora.families.lora_names import A as A
from lace_lora.families.lora_names import B as B
from lace_lora.families.lora_names import strength_of as strength_of
from lace_lora.families.unets import lora_targets

with quiet.quiet():
    import torch
    from torch import Tensor, nn

NAME = "default"  # PEFT's name of the one adapter that we train


@dataclass(frozen=True)
class Shape:
    """What a LoRA is like. `targets` is the setting lora_targets; of text encoders attention learns."""

    rank: int
    alpha: float
    targets: str
    use_dora: bool = False
    use_rslora: bool = False

    @property
    def strength(self) -> float:
        """What B·A is multiplied by."""
        return strength_of(self.rank, self.alpha, self.use_rslora)


@dataclass(frozen=True)
class Learnt:
    """The LoRA of one layer."""

    down: Tensor  # A: [rank, in], or [rank, in, height, width] of a convolution
    up: Tensor  # B: [out, rank], or [out, rank, 1, 1]
    magnitude: Tensor | None  # of DoRA: as many numbers as outputs

    @property
    def is_dora(self) -> bool:
        """Whether it learnt lengths of its own."""
        return self.magnitude is not None


# -- training --


def attach(
    module: Any, part: str, shape: Shape, seed: int, targets: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Put a LoRA on a denoiser or a text encoder; return its parameters by the names of files, float32.

    targets  layers of the denoiser, as its family names them for shape.targets; None for those of a UNet

    A is drawn from (seed, name of the module) uniformly within ±1/sqrt(in), as PEFT and kohya draw it; B is zero.
    Raises ModelError where a target is nowhere in the module.
    """
    is_denoiser = part in DENOISERS
    targets = list(targets or lora_targets(shape.targets)) if is_denoiser else list(TEXT_TARGETS)
    _check_targets(module, targets)
    with quiet.quiet():
        from peft import inject_adapter_in_model

        config = _config(shape, targets[0] if _is_pattern(targets) else targets)
        if is_denoiser:
            module.add_adapter(config, adapter_name=NAME)
        else:
            inject_adapter_in_model(config, module, adapter_name=NAME)
    found = parameters({part: module})
    layers = dict(module.named_modules())
    for name, parameter in found.items():
        parameter.data = parameter.data.float()  # fp16 masters cannot be unscaled, and lose small updates
        _begin(name, parameter, layers, part, seed)
    return found


def parameters(modules: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The LoRA's parameters of all parts by the names of files."""
    found = {}
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            if f".{NAME}." in name:
                plain = name.replace(f".{NAME}.", ".")
                # PEFT's files name a magnitude without its last part.
                found[f"{part}.{plain.removesuffix('.weight') if MAGNITUDE in plain else plain}"] = parameter
    return found


def state_of(modules: Mapping[str, Any]) -> dict[str, Tensor]:
    """A copy of the LoRA's tensors on the CPU, float32."""
    return {name: one.detach().to("cpu", torch.float32, copy=True) for name, one in parameters(modules).items()}


# -- generation --


def layers_of(state: Mapping[str, Tensor], part: str) -> dict[str, Learnt]:
    """The LoRA of each layer of a part, by the layer's name in the module; both halves must be there."""
    prefix = f"{part}."
    names = [
        name.removeprefix(prefix).removesuffix(A) for name in state if name.startswith(prefix) and name.endswith(A)
    ]
    return {
        name: Learnt(state[f"{prefix}{name}{A}"], state[f"{prefix}{name}{B}"], state.get(f"{prefix}{name}{MAGNITUDE}"))
        for name in names
    }


def misfit(module: Any, learnt: Mapping[str, Learnt]) -> str | None:
    """The first layer that a LoRA does not fit, with the reason, or None."""
    modules = dict(module.named_modules())
    for name, one in learnt.items():
        weight = getattr(modules.get(name), "weight", None)
        shape = (one.up.shape[0], *one.down.shape[1:])
        if weight is None:
            return f"{name} (no such layer)"
        there = tuple(getattr(weight, "quant_state", weight).shape)  # 4 bits are packed in another shape
        if there != shape:
            return f"{name} (shape {there}, not {shape})"
    return None


def put_on(module: Any, learnt: Mapping[str, Learnt], shape: Shape, strength: float) -> None:
    """Put a LoRA beside the layers of a denoiser in 4 bits, which would lose it if it were fused into them.

    shape     its rank, and whether it is DoRA's
    strength  of B·A; with DoRA the learnt lengths count whole, whatever it is

    As in training the LoRA is in the base's own precision. One that is on these very layers gets the new values.
    """
    layers = {name: one for name, one in module.named_modules() if hasattr(one, "lora_A")}
    if layers.keys() != learnt.keys():
        names = "|".join(map(re.escape, learnt))  # a pattern: names in a list would be taken for endings
        with quiet.quiet():
            module.add_adapter(_config(shape, names), adapter_name=NAME)
        layers = {name: one for name, one in module.named_modules() if hasattr(one, "lora_A")}
        assert layers.keys() == learnt.keys(), sorted(layers.keys() ^ learnt.keys())[:3]
    for name, one in learnt.items():
        layer = layers[name]
        layer.scaling[NAME] = strength
        halves = {layer.lora_A[NAME]: one.down, layer.lora_B[NAME]: one.up}
        if one.magnitude is not None:
            halves[layer.lora_magnitude_vector[NAME]] = one.magnitude
        for half, values in halves.items():
            dtype = _dtype_beside(layer)
            half.weight = nn.Parameter(
                values.to(half.weight.device, dtype).view(half.weight.shape), requires_grad=False
            )


@torch.no_grad()
def fuse(module: Any, learnt: Mapping[str, Learnt], strength: float) -> None:
    """Add a LoRA to the weights of a module: no extra work in each step, and no second copy of anything.

    strength  of B·A; with DoRA the learnt lengths count whole, whatever it is, as in PEFT
    """
    modules = dict(module.named_modules())
    for name, one in learnt.items():
        weight = modules[name].weight
        weight.copy_(fused(weight, one, strength).to(weight.dtype))


def fused(weight: Tensor, one: Learnt, strength: float) -> Tensor:
    """A weight with its LoRA, float32, on the weight's device, so that rounding happens once."""
    up, down = (half.to(weight.device, torch.float32) for half in (one.up, one.down))
    together = weight.float() + strength * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    if one.magnitude is None:
        return together
    sides = (-1, *[1] * (weight.dim() - 1))
    length = together.flatten(1).norm(dim=1).view(sides)
    return together * (one.magnitude.to(weight.device, torch.float32).view(sides) / length)


# -- inside --


def _dtype_beside(layer: Any) -> torch.dtype:
    """What the LoRA of a layer is computed in: the dtype of its weights, or what they were before they had 4 bits."""
    base = layer.get_base_layer()
    state = getattr(base.weight, "quant_state", None)
    dtype: torch.dtype = base.weight.dtype if state is None else state.dtype
    return dtype


def _config(shape: Shape, targets: str | list[str]) -> Any:
    """What PEFT is told: a pattern for whole names, or their endings."""
    from peft import LoraConfig

    return LoraConfig(
        r=shape.rank, lora_alpha=shape.alpha, target_modules=targets, lora_dropout=0.0, use_dora=shape.use_dora,
        use_rslora=shape.use_rslora,
    )  # fmt: skip


def _check_targets(module: Any, targets: Sequence[str]) -> None:
    names = [name for name, _ in module.named_modules()]
    absent = [target for target in targets if not any(_is_meant(name, target, targets) for name in names)]
    if absent:
        raise ModelError(
            f"This model has no layers called {', '.join(absent)}, so it cannot get this LoRA. Choose another base."
        )


def _is_meant(name: str, target: str, targets: Sequence[str]) -> bool:
    return bool(re.fullmatch(target, name)) if _is_pattern(targets) else name.endswith(f".{target}")


def _is_pattern(targets: Sequence[str]) -> bool:
    return len(targets) == 1 and "(" in targets[0]


def _begin(name: str, parameter: nn.Parameter, layers: Mapping[str, Any], part: str, seed: int) -> None:
    """First values, by place: so that they are the same whatever else was drawn before."""
    if name.endswith(A):
        bound = 1 / math.sqrt(parameter[0].numel())
        chance = schedule.generator(seed, "lora", name)
        parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=chance))
    elif name.endswith(B):
        parameter.data.zero_()
    else:  # each row begins with the length that it has, so that nothing changes yet
        layer = layers[name.removeprefix(f"{part}.").removesuffix(MAGNITUDE)]
        weight = _plain_weight(layer.get_base_layer())
        parameter.data.copy_(weight.flatten(1).norm(dim=1).view(parameter.shape))


def _plain_weight(layer: Any) -> Tensor:
    """A layer's weight in float32, also of a 4-bit one."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.detach().float()
    import bitsandbytes

    whole: Tensor = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
    return whole.float()
