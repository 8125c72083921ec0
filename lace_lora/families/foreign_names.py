"""What other tools call the tensors of an SDXL LoRA, read back into our names by the layers of the model it is for.

kohya and A1111 write lora_unet_… with Stability's places, others with diffusers'; ComfyUI's trainer diffusion_model.…;
diffusers and PEFT have written four forms. All become (part, layer, role), and only layers that there are count.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from lace_lora.errors import AdapterError
from lace_lora.families import sdxl
from lace_lora.families.folders import model_folder, part_config
from lace_lora.families.known import SDXL_UNET
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.families.random_model import SDXL_SIZE
from lace_lora.families.sdxl_names import original_place

with quiet():
    import torch
    from diffusers import UNet2DConditionModel
    from torch import Tensor, nn
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Shape = tuple[int, ...]
PARTS = ("unet", "text_encoder", "text_encoder_2")
# A tensor's role in the LoRA of its layer, by what its name ends with.
_ROLES = {
    "down": r"\.lora_down\.weight|\.lora_A(\.\w+)?\.weight|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(\.\w+)?\.weight|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "magnitude": r"\.dora_scale|\.lora_magnitude_vector(\.\w+)*",
}
_ROLE = re.compile("|".join(f"(?P<{role}>{ending})$" for role, ending in _ROLES.items()))
# Tensors that are no LoRA, in words; the first that fits is said.
_NO_LORA = (
    (
        r".*\.(lokr_|hada_|oft_|boft_|glora_|ia3|a\d\.|b\d\.)",
        "are of another kind of adapter (LyCORIS: LoHa, LoKr, OFT)",
    ),
    (r".*\.(diff|diff_b|w_norm|b_norm|set_weight)$", "change norms, biases or whole weights, which no LoRA can hold"),
    (r".*(clip_[lg]|emb_params|string_to_param|token)", "are the embedding of a word, to be loaded beside the LoRA"),
)
_PREFIXES = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lycoris_", "unet"),
    ("unet.base_model.model.", "unet"),
    ("base_model.model.", "unet"),
    ("unet.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
)
_TEXT_ROOT = "text_model."


@dataclass(frozen=True)
class Named:
    """What a file's names say.

    layers    tensor names by role, for each layer of the model by its part and name
    strange   tensors that have no place, by the reason in words
    """

    layers: Mapping[tuple[str, str], Mapping[str, str]]
    strange: Mapping[str, tuple[str, ...]]


def model_layers(model: str | None) -> dict[str, dict[str, Shape]]:
    """The weights of a base model that a LoRA may change, by part and layer; of SDXL itself where model is None.

    Built without weights. Raises ModelError where the model's folder cannot be read.
    """
    with quiet(), torch.device("meta"):
        parts = _true_parts() if model is None else _parts_of(model)
    kinds = (nn.Linear, nn.Conv2d)
    return {
        part: {name: tuple(one.weight.shape) for name, one in module.named_modules() if isinstance(one, kinds)}
        for part, module in parts.items()
    }


def layers_per_block(model: str | None) -> int:
    """As the base model has them: 2 in SDXL itself."""
    return 2 if model is None else layout(model).layers_per_block


def read(names: Iterable[str], layers: Mapping[str, Mapping[str, Shape]], per_block: int) -> Named:
    """Find the layer and the role of each tensor; what has none is given with the reason."""
    table = _table(layers, per_block)
    found: dict[tuple[str, str], dict[str, str]] = {}
    strange: dict[str, list[str]] = {}
    for name in sorted(names):
        role = _ROLE.search(name)
        if role is None or role.lastgroup is None:
            reason = next((words for sign, words in _NO_LORA if re.match(sign, name)), "are of no kind that is known")
            strange.setdefault(reason, []).append(name)
            continue
        kind = next(one for one in _ROLES if role[one] is not None)
        place = _place(name[: role.start()], table)
        if place is None:
            strange.setdefault("belong to layers that an SDXL model does not have", []).append(name)
        else:
            found.setdefault(place, {})[kind] = name
    for place, roles in list(found.items()):
        if not {"down", "up"} <= roles.keys():
            del found[place]
            is_other = any(key.startswith(_stem(next(iter(roles.values())))) for one in strange.values() for key in one)
            reason = "belong to layers that are of another kind" if is_other else "lack their other half"
            strange.setdefault(reason, []).extend(roles.values())
    return Named(found, {reason: tuple(sorted(given)) for reason, given in strange.items()})


def halves(tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor | None] | str:
    """A [rank, in…], B [out, rank…] and DoRA's lengths of a layer, float32, from a file's tensors by role.

    shape    of the layer's weight: [out, in], or [out, in, height, width] of a convolution
    returns  a text where they do not fit it: why

    A convolution that LyCORIS cut in three (down, mid, up) is put together again: A = mid · down.
    """
    down, up = tensors["down"].float(), tensors["up"].float()
    if "mid" in tensors:
        down = torch.einsum("pqkl,qi->pikl", tensors["mid"].float(), down.flatten(1))
    rank = down.shape[0]
    if down.numel() != rank * prod(shape[1:]) or up.numel() != shape[0] * rank or up.shape[0] != shape[0]:
        return "have another shape than the model's layers"
    sides = [1] * (len(shape) - 2)
    magnitude = tensors.get("magnitude")
    if magnitude is not None:
        is_by_output = magnitude.numel() == shape[0] and (magnitude.dim() == 1 or magnitude.shape[0] == shape[0])
        if not is_by_output:
            return "hold DoRA's lengths along the inputs, which cannot be drawn with"
        magnitude = magnitude.float().reshape(-1)
    return down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *sides), magnitude


# -- inside --


def _parts_of(model: str) -> dict[str, Any]:
    folder = model_folder(model)
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    encoders = {part: kind(CLIPTextConfig(**part_config(folder, part))) for part, kind in kinds.items()}
    return {"unet": sdxl.empty_denoiser(model), **encoders}


def _true_parts() -> dict[str, Any]:
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    encoders = {
        part: kind(
            CLIPTextConfig(
                hidden_size=tower.width,
                intermediate_size=4 * tower.width,
                num_hidden_layers=tower.layers,
                num_attention_heads=tower.heads,
                projection_dim=tower.width,
            )
        )
        for part, kind, tower in zip(PARTS[1:], kinds, SDXL_SIZE.towers, strict=True)
    }
    return {"unet": UNet2DConditionModel.from_config(SDXL_UNET), **encoders}


def _table(layers: Mapping[str, Mapping[str, Shape]], per_block: int) -> dict[tuple[str, str], tuple[str, str]]:
    """Every layer by each name that it may have, dots as underscores: that is how kohya writes them."""
    table: dict[tuple[str, str], tuple[str, str]] = {}
    for part, names in layers.items():
        for name in names:
            known = [name]
            if part == "unet":
                known += _original(name, per_block)
            else:
                known += [name.removeprefix(_TEXT_ROOT), f"{_TEXT_ROOT}{name.removeprefix(_TEXT_ROOT)}"]
            table |= {(part, _flat(one)): (part, name) for one in known}
    return table


def _original(name: str, per_block: int) -> list[str]:
    try:
        return [original_place(f"unet.{name}", per_block)]
    except AdapterError:
        return []


def _place(named: str, table: Mapping[tuple[str, str], tuple[str, str]]) -> tuple[str, str] | None:
    tries = [(part, named.removeprefix(prefix)) for prefix, part in _PREFIXES if named.startswith(prefix)]
    for part, layer in [*tries, ("unet", named)]:
        flat = _flat(layer)
        # diffusers' attention processors named their output projection without the place in its list.
        for one in (flat, f"{flat}_0"):
            if (part, one) in table:
                return table[part, one]
    return None


def _flat(name: str) -> str:
    return name.replace(".processor.", ".").replace(".", "_")


def _stem(name: str) -> str:
    return name.rpartition(".")[0] + "."
