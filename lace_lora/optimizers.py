"""How gradients become updates: optimizers by name from well-kept packages, and their whole state as files.

State is kept by the place of its parameter, never pickled: tensors for a safetensors file, all else as JSON. It is put
back as it was, dtype by dtype; torch's own load_state_dict would turn 8-bit and fp32 states into the parameter's dtype.
"""

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lace_lora.errors import MachineError
from lace_lora.families.quiet import quiet

with quiet():
    import torch
    from torch import Tensor

BETAS, WEIGHT_DECAY = (0.9, 0.999), 1e-2
# What a name needs beside torch and transformers, and the line that brings it.
_PACKAGES = {
    "adamw8bit": "bitsandbytes",
    "paged_adamw8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
    "schedulefree": "schedulefree",
}
RATIO = "lr_ratio"  # of a group: its learning rate against that of the others

Group = dict[str, Any]


def missing(name: str) -> str | None:
    """What to install for an optimizer, or None where it can be used."""
    package = _PACKAGES.get(name)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"The optimizer {name} needs the package {package}: pip install {package}. Or set optimizer adamw."


def make(
    name: str,
    groups: Sequence[Group],
    learning_rate: float,
    *,
    weight_decay: float = WEIGHT_DECAY,
    betas: tuple[float, float] = BETAS,
) -> torch.optim.Optimizer:
    """The optimizer of that name.

    groups  torch's parameter groups: `params`, and where they differ `weight_decay` and `lr_ratio`

    adamw and the 8-bit ones read nothing from the device in a step; prodigy and adafactor do.
    paged_adamw8bit moves its state to the computer's memory when the GPU's is full; on a CPU it is plain 8-bit AdamW.

    Raises MachineError where its package is not installed.
    """
    sentence = missing(name)
    if sentence:
        raise MachineError(sentence)
    ours = [dict(group) for group in groups]
    ratios = [group.pop(RATIO, 1.0) for group in ours]
    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # prodigy prints when it is made
        optimizer = _MAKERS[name](ours, learning_rate, weight_decay, betas)
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        group[RATIO] = 1.0 if name == "prodigy" else ratio  # it refuses groups of different rates
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of the next step, times each group's ratio."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[RATIO]


@contextlib.contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The weights that count, for a look, a sample or an adapter: the average of the way, for schedulefree.

    Afterwards every weight is bit for bit what it was: the package's own way back rounds.
    """
    if not _is_schedulefree(optimizer):
        yield
        return
    with torch.no_grad():
        kept = [parameter.clone() for parameter in _parameters(optimizer)]
        optimizer.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            optimizer.train()  # type: ignore[attr-defined]
            for parameter, before in zip(_parameters(optimizer), kept, strict=True):
                parameter.copy_(before)


# -- state as files --


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that an optimizer remembers: tensors on the CPU by name, and the rest, safe for JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for place, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{place}.{name}"] = value.detach().cpu().clone().contiguous()
            else:
                numbers.setdefault(str(place), {})[name] = _plain(value)
    groups = []
    for place, group in enumerate(optimizer.param_groups):
        held = {name: value for name, value in group.items() if name != "params"}
        for name, value in held.items():
            if isinstance(value, Tensor):
                tensors[f"group {place}.{name}"] = value.detach().cpu().clone().contiguous()
        groups.append({name: _plain(value) for name, value in held.items() if not isinstance(value, Tensor)})
    return tensors, {"state": numbers, "groups": groups}


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put back what state_of gave into a fresh optimizer over the same parameters."""
    for place, (group, values) in enumerate(zip(optimizer.param_groups, rest["groups"], strict=True)):
        group.update({name: _value(value) for name, value in values.items()})
        own = {key.partition(".")[2]: one for key, one in tensors.items() if key.startswith(f"group {place}.")}
        group.update({name: one.clone() for name, one in own.items()})
    _allocate(optimizer)
    parameters = list(_parameters(optimizer))
    for place, values in rest["state"].items():
        optimizer.state[parameters[int(place)]].update({name: _value(value) for name, value in values.items()})
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if not number.startswith("group "):
            place = int(number)
            _put(optimizer.state[parameters[place]], name, tensor, parameters[place], groups[place])


def _put(state: dict[str, Any], name: str, tensor: Tensor, parameter: Tensor, group: Group) -> None:
    """Into the memory that is there (a paged state must stay paged), else as a new tensor on the right device."""
    there = state.get(name)
    if isinstance(there, Tensor) and there.shape == tensor.shape and there.dtype == tensor.dtype and name != "step":
        there.copy_(tensor)
        return
    # torch keeps the step on the CPU but for its fused and capturable kernels.
    stays = name == "step" and not (group.get("fused") or group.get("capturable"))
    state[name] = tensor.clone() if stays else tensor.to(parameter.device, copy=True)


def _allocate(optimizer: torch.optim.Optimizer) -> None:
    """bitsandbytes: let it make its states itself, paged where they are to be, before they are filled."""
    if not hasattr(optimizer, "init_state"):
        return
    optimizer.check_overrides()  # type: ignore[attr-defined]
    for group_place, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
                optimizer.init_state(group, parameter, group_place, place)
                parameter.grad = None
            # Its table of 256 values is one tensor for all parameters; they keep sharing it.
    optimizer.initialized = True  # type: ignore[attr-defined]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}  # JSON has no infinity
    return {"tuple": [_plain(one) for one in value]} if isinstance(value, tuple) else value


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value["float"]) if "float" in value else tuple(_value(one) for one in value["tuple"])
    return value


# -- by name --


def _adamw(groups: list[Group], rate: float, decay: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=decay, fused=True)


def _adamw8bit(groups: list[Group], rate: float, decay: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    import bitsandbytes

    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=rate, betas=betas, weight_decay=decay)
    return made


def _paged_adamw8bit(
    groups: list[Group], rate: float, decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    import bitsandbytes

    made: torch.optim.Optimizer = bitsandbytes.optim.PagedAdamW8bit(groups, lr=rate, betas=betas, weight_decay=decay)
    made._cpu_paged_warned = True  # type: ignore[attr-defined]  # make() says that it is not paged on a CPU
    return made


def _prodigy(groups: list[Group], rate: float, decay: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    # Its authors advise both for diffusion models: without the safeguard a warmup spoils the estimate of the rate.
    made: torch.optim.Optimizer = Prodigy(
        groups, lr=rate, betas=betas, weight_decay=decay, decouple=True, use_bias_correction=True, safeguard_warmup=True
    )
    return made


def _adafactor(groups: list[Group], rate: float, decay: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    # transformers' and not torch's: that one scales every step by the size of the weights, and B of a LoRA begins at 0.
    from transformers.optimization import Adafactor

    made: torch.optim.Optimizer = Adafactor(
        groups, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return made


def _schedulefree(groups: list[Group], rate: float, decay: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    made: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=rate, betas=betas, weight_decay=decay)
    made.train()  # type: ignore[attr-defined]
    return made


_MAKERS: dict[str, Callable[[list[Group], float, float, tuple[float, float]], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "paged_adamw8bit": _paged_adamw8bit,
    "prodigy": _prodigy,
    "adafactor": _adafactor,
    "schedulefree": _schedulefree,
}


def _is_schedulefree(optimizer: torch.optim.Optimizer) -> bool:
    return "train_mode" in optimizer.param_groups[0]


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
