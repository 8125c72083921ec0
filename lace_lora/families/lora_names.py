"""How our LoRA files name their tensors (PEFT's names, which diffusers reads), and how other tools lay them out.

A LoRA's pair is [rank, in] (A, down) and [out, rank] (B, up).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lace_lora.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")  # layers of a text encoder that learn
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")  # those that can be trained


def strength_of(rank: int, alpha: float, use_rslora: bool) -> float:
    """alpha / rank, or alpha / √rank (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732)."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def strange(names: Iterable[str], denoiser: str) -> list[str]:
    """Names that no LoRA of ours has, for a model whose part that learns is called so."""
    parts = tuple(f"{part}." for part in (denoiser, *TEXT_ENCODERS))
    return [name for name in names if not (name.startswith(parts) and name.endswith((A, B, MAGNITUDE)))]


def pairs(state: "Mapping[str, Tensor]") -> "dict[str, tuple[Tensor, Tensor]]":
    """A and B of each layer, by the layer's name. Raises AdapterError for a tensor without its other half."""
    names = {name.removesuffix(A).removesuffix(B) for name in state if name.endswith((A, B))}
    names |= {name.removesuffix(MAGNITUDE) for name in state if name.endswith(MAGNITUDE)}
    alone = sorted(name for name in names if f"{name}{A}" not in state or f"{name}{B}" not in state)
    if alone:
        raise AdapterError(
            f"The LoRA has only one half of {alone[0]} ({len(alone)} such layers): the file is damaged. Train it again."
        )
    return {name: (state[f"{name}{A}"], state[f"{name}{B}"]) for name in sorted(names)}


def in_kohyas_form(state: "Mapping[str, Tensor]", alpha: float, key_of: Callable[[str], str]) -> "dict[str, Tensor]":
    """The same LoRA as ComfyUI, A1111 and kohya read it: three tensors a layer, with its alpha.

    alpha   that these tools divide by the rank: with rsLoRA larger than the setting, by √rank
    key_of  what they call a layer

    With DoRA a fourth, dora_scale: the length of each output's row. diffusers' convert_state_dict_to_kohya is not used:
    it writes alpha = rank whatever alpha is.
    """
    renamed: dict[str, Any] = {}
    layers = pairs(state)
    for name, (down, up) in layers.items():
        key = key_of(name)
        renamed |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": down.new_tensor(float(alpha)),
        }
        magnitude = state.get(f"{name}{MAGNITUDE}")
        if magnitude is not None:
            renamed[f"{key}.dora_scale"] = magnitude.reshape(-1, *[1] * (down.dim() - 1))
    lost = len(layers) - sum(key.endswith(".alpha") for key in renamed)
    if lost:
        raise AdapterError(f"{lost} layers of the LoRA got the same name for other tools.")
    return renamed
