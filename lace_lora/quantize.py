"""The frozen denoiser in 4 bits (NF4 with double quantisation), made layer by layer and kept for the next start.

It is read tensor by tensor and quantised as it comes, so that it is whole nowhere: neither in the computer's memory nor
on the GPU.

diffusers refuses to quantise without a GPU and bitsandbytes does not, so the layers are put in by hand: the same code
then serves a T4 and a laptop. A 4-bit layer computes in the dtype that it was quantised from.

A quantised one must stay in training mode, also while it is looked at: on a CPU with avx512_bf16 a forward pass in
evaluation mode packs the weights anew, and no backward pass is possible afterwards. No family has dropout.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, families, tensor_files
from lace_lora.coefficients import NF4_BYTES, NF4_FILE_BYTES
from lace_lora.errors import LaceError, MachineError
from lace_lora.families import folders, loading
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.machine import GIB

with quiet():
    import torch
    from safetensors.torch import load_file
    from torch import Tensor, nn

BLOCK = 64  # numbers that share a scale; a layer whose sides are no multiples of it stays as it is

Say = Callable[[str], None]


@dataclass(frozen=True)
class FourBits:
    """That a base is to be had in 4 bits: where it is kept for the next start, and who is told when it is made."""

    cache_dir: str | Path
    say: Say = print


def load_nf4(model: str, dtype: torch.dtype, device: str, cache_dir: str | Path, say: Say = print) -> Any:
    """The base's denoiser with its linear layers in NF4, all else in dtype; from the kept file where there is one.

    Raises MachineError where bitsandbytes is missing, and ModelError where the model is damaged.
    """
    check_bitsandbytes()
    kept = kept_folder(model, dtype, cache_dir)
    if kept.is_dir():
        problem = checkpoint.problem_of(kept)
        if problem is None:
            return _from_files(kept, model, dtype, device)
        say(f"{kept} is passed over ({problem}); the {layout(model).denoiser} is quantised again.")
    denoiser, done, left = _quantised(model, dtype, device)
    say(f"nf4       {done} linear layers in 4 bits ({size_gib(denoiser):.2f} GB in all), {left} too narrow for it")
    try:
        checkpoint.save_folder(kept, lambda folder: _write(folder, model, denoiser))
    except LaceError as error:
        say(f"! The 4-bit {layout(model).denoiser} could not be kept for the next start: {error}")
    return denoiser


def file_name(model: str, number: int) -> str:
    """The name of one of the kept files, from 1 on."""
    return f"{layout(model).denoiser}-{number:05d}.safetensors"


def kept_folder(model: str, dtype: torch.dtype, cache_dir: str | Path) -> Path:
    """Where the quantised denoiser of a model is kept: by its content, the dtype and bitsandbytes' series."""
    series = ".".join(metadata.version("bitsandbytes").split(".")[:2])
    part = layout(model).denoiser
    text = f"{folders.identity(model, [part])} {dtype} {series}"
    return Path(cache_dir).expanduser() / f"{part}-nf4-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def check_bitsandbytes() -> None:
    """Raises MachineError, with what to do, where the package is missing."""
    try:
        with quiet():
            import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "quantization nf4 needs the package bitsandbytes: pip install bitsandbytes. Or set quantization none."
        ) from error


def can_be_quantised(layer: nn.Linear) -> bool:
    """Whether both sides are multiples of the block."""
    return layer.in_features % BLOCK == 0 and layer.out_features % BLOCK == 0


def size_gib(module: nn.Module) -> float:
    """GiB of all weights, with the scales of the quantised ones."""
    total = sum(buffer.untyped_storage().nbytes() for buffer in module.buffers())
    for parameter in module.parameters():
        total += parameter.untyped_storage().nbytes()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            parts = [state.absmax, *([state.state2.absmax] if state.state2 is not None else [])]
            total += sum(part.untyped_storage().nbytes() for part in parts)
    return total / GIB


def planned_bytes(module: nn.Module, bytes_a_number: int = 2) -> int:
    """What all of it will take in 4 bits, counted from shapes alone (a module on the meta device will do)."""
    small = sum(layer.weight.numel() for _, _, layer in _linear_layers(module) if can_be_quantised(layer))
    whole = sum(one.numel() for one in (*module.parameters(), *module.buffers()))
    return round(small * NF4_BYTES + (whole - small) * bytes_a_number)


# -- inside --


def _quantised(model: str, dtype: torch.dtype, device: str) -> tuple[Any, int, int]:
    """The denoiser out of the model's own files, each layer quantised on `device` as it is read.

    returns  it; how many layers are in 4 bits, and how many linear ones are not because a side is no multiple of 64
    """
    part, denoiser = layout(model).denoiser, families.of(model).empty_denoiser(model)
    linear = len(list(_linear_layers(denoiser)))
    small = {f"{name}.weight": layer for name, layer in _with_4bit_layers(denoiser, dtype).items()}
    folder, rest, waiting = Path(folders.model_folder(model)) / part, {}, set(small)
    for name, tensor in loading.tensors(model, part, dtype):
        if name not in small:
            rest[name] = tensor.to(device)
            continue
        layer = small[name]
        if tensor.shape != (layer.out_features, layer.in_features):
            raise loading.incomplete(folder, name)
        weight = _params4bit()(tensor, requires_grad=False, quant_type="nf4", module=layer)
        layer.weight = weight.to(device)  # moving it is what quantises it
        waiting.discard(name)
    if waiting:
        raise loading.incomplete(folder, min(waiting))
    try:
        _filled(denoiser, rest)
    except RuntimeError as error:  # of another shape
        raise loading.damaged(folder, error) from error
    if empty := _empty(denoiser):
        raise loading.incomplete(folder, empty[0])
    return denoiser, len(small), linear - len(small)


def _with_4bit_layers(denoiser: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Put an empty 4-bit layer in the place of each linear one that can be quantised; these, by name."""
    for parent, name, layer in list(_linear_layers(denoiser)):
        if can_be_quantised(layer):
            setattr(parent, name, _empty_4bit(layer, dtype))
    return {name: one for name, one in denoiser.named_modules() if type(one).__name__ == "Linear4bit"}


def _filled(denoiser: Any, rest: dict[str, Tensor]) -> Any:
    """The denoiser with its other tensors, frozen."""
    denoiser.load_state_dict(rest, strict=False, assign=True)
    denoiser.is_loaded_in_4bit = True  # PEFT asks for this before it uses its 4-bit layers
    return denoiser.requires_grad_(False).eval()


def _empty(denoiser: Any) -> list[str]:
    """Names of tensors that are not there yet."""
    return [name for name, one in (*denoiser.named_parameters(), *denoiser.named_buffers()) if one.is_meta]


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


def _write(folder: Path, model: str, denoiser: nn.Module) -> None:
    """All tensors, the quantised ones with their scales, in files of NF4_FILE_BYTES: no more is copied at once.

    Copies, because layers share a table and files may not.
    """
    number, held, size = 1, {}, 0
    for name, tensor in denoiser.state_dict().items():
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += held[name].nbytes
        if size >= NF4_FILE_BYTES:
            tensor_files.write(folder / file_name(model, number), held)
            number, held, size = number + 1, {}, 0
    if held:
        tensor_files.write(folder / file_name(model, number), held)


def _from_files(folder: Path, model: str, dtype: torch.dtype, device: str) -> Any:
    """Fill an empty denoiser from the kept files: the half-precision weights are never read."""
    denoiser = families.of(model).empty_denoiser(model)
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file, device=device)
    for name, layer in _with_4bit_layers(denoiser, dtype).items():
        prefix = f"{name}.weight"
        scales = {key: tensors.pop(key) for key in list(tensors) if key.startswith(f"{prefix}.")}
        layer.weight = _params4bit().from_prequantized(tensors.pop(prefix), scales, device=device, module=layer)
    _filled(denoiser, tensors)
    assert not _empty(denoiser), f"{folder} lacks {_empty(denoiser)[:3]}, which its checksums say it held"
    return denoiser
