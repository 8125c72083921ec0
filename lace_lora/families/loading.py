"""Loading one part of a model's folder, frozen and whole, with sentences where that cannot be.

Onto a GPU a part goes tensor by tensor: the computer's memory holds a few of them at a time, never a copy of the whole.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lace_lora.errors import ModelError
from lace_lora.families.folders import model_folder, part_config, weight_files, weight_variant
from lace_lora.families.libraries import of_diffusers, of_transformers
from lace_lora.families.quiet import quiet
from lace_lora.machine import is_out_of_memory

with quiet():
    import torch
    from safetensors import SafetensorError, safe_open
    from torch import Tensor


def load_network(kind: str, model: str, part: str, dtype: torch.dtype, device: str) -> Any:
    """A network of diffusers, of that class, on a device. Raises ModelError where it is missing or damaged."""
    return _load(of_diffusers(kind), model, part, {"torch_dtype": dtype}, dtype, device)


def load_encoder(kind: str, model: str, part: str, dtype: torch.dtype, device: str) -> Any:
    """The same of transformers."""
    return _load(of_transformers(kind), model, part, {"dtype": dtype}, dtype, device)


def empty_network(kind: str, model: str, part: str) -> Any:
    """A network's layers without weights, on the meta device: for filling from elsewhere, and for counting."""
    config = part_config(model_folder(model), part)
    with quiet(), torch.device("meta"):
        return of_diffusers(kind).from_config(config)


def tensors(model: str, part: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a network of diffusers with its name, one after the other, on the CPU, numbers in `dtype`.

    Raises ModelError where a file is missing or damaged.
    """
    folder = Path(model_folder(model)) / part
    for path in weight_files(folder, wants_half=dtype in (torch.float16, torch.bfloat16)):
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():
                    tensor = opened.get_tensor(name)
                    yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor
        except (OSError, SafetensorError) as error:
            raise damaged(folder, error) from error


def damaged(folder: Path, error: BaseException) -> ModelError:
    """What is said of a part that cannot be loaded."""
    return ModelError(
        f"{folder} cannot be loaded ({first_line(error)}). Its files are damaged or of another model; fetch it again."
    )


def incomplete(folder: Path, example: str) -> ModelError:
    """What is said of a part that lacks weights, of which one is named."""
    return ModelError(
        f"{folder} does not hold all weights that its config promises (first: {example}). Fetch the model again."
    )


def load_tokenizer(kind: str, model: str, part: str) -> Any:
    """A tokenizer: small and quick, for counting tokens before anything else is loaded."""
    folder = Path(model_folder(model))
    try:
        with quiet():
            return of_transformers(kind).from_pretrained(folder / part)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"The tokenizers in {folder} cannot be read ({first_line(error)}). Fetch the model again."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says in a line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _load(
    kind: Any, model: str, part: str, dtype_argument: dict[str, torch.dtype], dtype: torch.dtype, device: str
) -> Any:
    """One frozen part. diffusers below 0.40 knows only torch_dtype=, transformers 5 prefers dtype=."""
    folder = Path(model_folder(model)) / part
    variant = weight_variant(folder, wants_half=dtype in (torch.float16, torch.bfloat16))
    try:
        with quiet():
            module, report = kind.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **dtype_argument,
                **straight_to(device),
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise damaged(folder, error) from error
    lacking = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    if lacking or report.get("mismatched_keys"):
        raise incomplete(folder, lacking[0] if lacking else str(next(iter(report["mismatched_keys"]))))
    return module.requires_grad_(False).eval().to(device)  # buffers that no file holds, too


def straight_to(device: str) -> dict[str, Any]:
    """What both libraries are told so that each tensor goes to a GPU as it is read; nothing for the CPU."""
    return {} if torch.device(device).type == "cpu" else {"device_map": {"": torch.device(device)}}
