"""The frozen denoiser in 4 bits (NF4 with double quantisation), made layer by layer and kept for the next start.

diffusers refuses to quantise without a GPU and bitsandbytes does not, so the layers are put in by hand: the same code
then serves a T4 and a laptop. A 4-bit layer computes in the dtype that it was quantised from.

A quantised one must stay in training mode, also while it is looked at: on a CPU with avx512_bf16 a forward pass in
evaluation mode packs the weights anew, and no backward pass is possible afterwards. No family has dropout.
"""

import hashlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, families, tensor_files
from lace_lora.errors import LaceError, MachineError
from lace_lora.families import folders
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.machine import GIB

with quiet():
    import torch
    from safetensors.torch import load_file
    from torch import Tensor, nn

BLOCK = 64  # numbers that share a scale; a layer whose sides are no multiples of it stays as it is
LINEAR_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a number: 4 bits, its share of an 8-bit scale, and of that one's own

Say = Callable[[str], None]


def load_nf4(model: str, dtype: torch.dtype, device: str, cache_dir: str | Path, say: Say = print) -> Any:
    """The base's denoiser with its linear layers in NF4, all else in dtype; from the kept file where there is one.

    Raises MachineError where bitsandbytes is missing.
    """
    _check_bitsandbytes()
    kept = kept_folder(model, dtype, cache_dir)
    if kept.is_dir():
        problem = checkpoint.problem_of(kept)
        if problem is None:
            return _from_file(kept / file_name(model), model, dtype, device)
        say(f"{kept} is passed over ({problem}); the {layout(model).denoiser} is quantised again.")
    denoiser = families.of(model).load_denoiser(model, dtype, "cpu")
    done, left = quantise(denoiser, device)
    denoiser.to(device)
    say(f"nf4       {done} linear layers in 4 bits ({size_gib(denoiser):.2f} GB in all), {left} too narrow for it")
    try:
        checkpoint.save_folder(kept, lambda folder: tensor_files.write(folder / file_name(model), _state_of(denoiser)))
    except LaceError as error:
        say(f"! The 4-bit {layout(model).denoiser} could not be kept for the next start: {error}")
    return denoiser


def file_name(model: str) -> str:
    """The name of the kept file."""
    return f"{layout(model).denoiser}.safetensors"


def kept_folder(model: str, dtype: torch.dtype, cache_dir: str | Path) -> Path:
    """Where the quantised denoiser of a model is kept: by its content, the dtype and bitsandbytes' series."""
    series = ".".join(metadata.version("bitsandbytes").split(".")[:2])
    part = layout(model).denoiser
    text = f"{folders.identity(model, [part])} {dtype} {series}"
    return Path(cache_dir).expanduser() / f"{part}-nf4-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def quantise(module: nn.Module, device: str) -> tuple[int, int]:
    """Replace the linear layers inside `module` by 4-bit ones on `device`, one after the other.

    returns  how many were replaced, and how many stay because a side is no multiple of 64
    """
    linear = list(_linear_layers(module))
    fitting = [(parent, name, layer) for parent, name, layer in linear if can_be_quantised(layer)]
    for parent, name, layer in fitting:
        small = _empty_4bit(layer, layer.weight.dtype)
        small.weight = _params4bit()(layer.weight.data, requires_grad=False, quant_type="nf4", module=small)
        small.bias = layer.bias
        setattr(parent, name, small.to(device))  # moving it is what quantises it
    module.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT asks for this before it uses its 4-bit layers
    return len(fitting), len(linear) - len(fitting)


def can_be_quantised(layer: nn.Linear) -> bool:
    """Whether both sides are multiples of the block."""
    return layer.in_features % BLOCK == 0 and layer.out_features % BLOCK == 0


def size_gib(module: nn.Module) -> float:
    """GiB of all weights, with the scales of the quantised ones."""
    total = 0
    for parameter in module.parameters():
        total += parameter.untyped_storage().nbytes()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            parts = [state.absmax, *([state.state2.absmax] if state.state2 is not None else [])]
            total += sum(part.untyped_storage().nbytes() for part in parts)
    return total / GIB


def planned_gib(module: nn.Module, bytes_a_number: int = 2) -> float:
    """What size_gib will be after `quantise`, counted from shapes alone (a module on the meta device will do)."""
    small = sum(layer.weight.numel() for _, _, layer in _linear_layers(module) if can_be_quantised(layer))
    whole = sum(parameter.numel() for parameter in module.parameters())
    return (small * LINEAR_BYTES + (whole - small) * bytes_a_number) / GIB


# -- inside --


def _check_bitsandbytes() -> None:
    try:
        with quiet():
            import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "quantization nf4 needs the package bitsandbytes: pip install bitsandbytes. Or set quantization none."
        ) from error


def _params4bit() -> Any:
    import bitsandbytes

    return bitsandbytes.nn.Params4bit


def _empty_4bit(layer: nn.Linear, dtype: torch.dtype) -> Any:
    import bitsandbytes

    return bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )


def _linear_layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every plain linear layer with the module that holds it and its name there."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                yield parent, name, child


def _state_of(denoiser: nn.Module) -> dict[str, Tensor]:
    """All tensors, the quantised ones with their scales; copies, because layers share a table and files may not."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in denoiser.state_dict().items()}


def _from_file(file: Path, model: str, dtype: torch.dtype, device: str) -> Any:
    """Fill an empty denoiser from the kept file: the half-precision weights are never read."""
    denoiser = families.of(model).empty_denoiser(model)
    tensors = load_file(file, device=device)
    for parent, name, layer in list(_linear_layers(denoiser)):
        if can_be_quantised(layer):
            setattr(parent, name, _empty_4bit(layer, dtype))
    quantised = {name for name, module in denoiser.named_modules() if type(module).__name__ == "Linear4bit"}
    for name in quantised:
        prefix = f"{name}.weight"
        scales = {key: tensors.pop(key) for key in list(tensors) if key.startswith(f"{prefix}.")}
        module = denoiser.get_submodule(name)
        module.weight = _params4bit().from_prequantized(tensors.pop(prefix), scales, device=device, module=module)
    denoiser.load_state_dict(tensors, strict=False, assign=True)
    empty = [name for name, parameter in denoiser.named_parameters() if parameter.is_meta]
    assert not empty, f"{file} lacks {empty[:3]}, which its checksum says it held"
    denoiser.is_loaded_in_4bit = True
    return denoiser.requires_grad_(False).eval()
