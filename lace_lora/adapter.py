"""The LoRA: put it on a UNet, save it for diffusers and for other tools, load it with care, fuse it for generation.

A LoRA adds scale · alpha / rank · B·A to a weight W; A is [rank, in], B is [out, rank] and begins at zero.
Names inside are PEFT's with diffusers' prefix: unet.<module>.lora_A.weight. They are saved unconverted, because
diffusers' own converters mix two styles, and loaders then drop part of the tensors with only a warning.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, schedule
from lace_lora.errors import AdapterError, ModelError
from lace_lora.families import quiet
from lace_lora.families import sdxl_names as naming
from lace_lora.run_folder import RunFolder

with quiet.quiet():
    import torch
    from peft import LoraConfig
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as as_safetensors
    from torch import Tensor, nn

NAME = "default"  # PEFT's name of the one adapter that we train
METADATA_KEY = "lora_adapter_metadata"  # where diffusers looks for rank and alpha
FACTS_KEY = "lace_lora"  # where our own facts stand, so that a file that was copied alone still tells what it is


@dataclass(frozen=True)
class AdapterFacts:
    """What made an adapter, as kept in adapter.json and in the header of its files."""

    family: str
    base_model: str
    rank: int
    alpha: float
    lora_targets: tuple[str, ...]
    concept_token: str = ""
    instance_prompt: str = ""
    class_prompt: str = ""
    resolution: int = 0
    prediction_type: str = "epsilon"
    layers_per_block: int = 2
    step: int = 0
    is_complete: bool = True
    data_digest: str = ""
    settings_digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """A LoRA as loaded: its facts and its tensors (float32, PEFT's names with the prefix unet.)."""

    facts: AdapterFacts
    state: Mapping[str, Tensor] = field(repr=False)
    path: Path

    @property
    def digest(self) -> str:
        """sha256 of the file."""
        return checkpoint.sha256(self.path)

    @property
    def is_complete(self) -> bool:
        """False for an adapter of a training that was stopped before its last step."""
        return self.facts.is_complete

    def rows(self) -> list[tuple[str, str]]:
        """Facts as (name, value) for a table."""
        facts = self.facts
        size = sum(tensor.numel() for tensor in self.state.values())
        return [
            ("adapter", str(self.path)),
            ("base model", facts.base_model),
            ("concept token", facts.concept_token or "none"),
            (
                "rank, alpha",
                f"{facts.rank}, {facts.alpha:g} ({len(self.state) // 2} layers, {size / 1e6:.2f} million numbers)",
            ),
            (
                "trained",
                f"{facts.step} steps at {facts.resolution} px" + ("" if facts.is_complete else ", not finished"),
            ),
        ]

    def __str__(self) -> str:
        """A small table of text."""
        return "\n".join(f"{name:<14} {value}" for name, value in self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        return _html_table(self.rows())


# -- training --


def attach(unet: Any, rank: int, alpha: float, targets: list[str], seed: int) -> dict[str, nn.Parameter]:
    """Put a LoRA on the UNet's modules that end in one of `targets`; return its parameters by name, float32.

    A is drawn from (seed, name of the module) uniformly within ±1/sqrt(in), as PEFT and kohya draw it; B is zero.
    Raises ModelError where a target is nowhere in the UNet.
    """
    modules = [name for name, _ in unet.named_modules()]
    absent = [target for target in targets if not any(name.endswith(f".{target}") for name in modules)]
    if absent:
        raise ModelError(
            f"This UNet has no layers called {', '.join(absent)}, so it cannot get this LoRA. Choose an SDXL base."
        )
    with quiet.quiet():
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0), adapter_name=NAME
        )
    found = parameters(unet)
    for name, parameter in found.items():
        parameter.data = parameter.data.float()  # fp16 masters cannot be unscaled, and lose small updates
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter[0].numel())
            drawn = torch.empty(parameter.shape).uniform_(
                -bound, bound, generator=schedule.generator(seed, "lora", name)
            )
            parameter.data.copy_(drawn)
        else:
            parameter.data.zero_()
    return found


def parameters(unet: Any) -> dict[str, nn.Parameter]:
    """The LoRA's parameters by the name under which they are saved."""
    found = {name: parameter for name, parameter in unet.named_parameters() if f".{NAME}." in name}
    return {f"unet.{name.replace(f'.{NAME}.', '.')}": parameter for name, parameter in found.items()}


def state_of(unet: Any) -> dict[str, Tensor]:
    """A copy of the LoRA's tensors on the CPU, float32."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True) for name, parameter in parameters(unet).items()
    }


def restore(unet: Any, state: Mapping[str, Tensor]) -> None:
    """Give the LoRA on the UNet these values. Raises AdapterError unless names and shapes are exactly the same."""
    found = parameters(unet)
    wrong = sorted(found.keys() ^ state.keys()) or [name for name in found if found[name].shape != state[name].shape]
    if wrong:
        raise AdapterError(
            f"The saved LoRA does not fit the one that is trained ({len(wrong)} tensors differ, first: {wrong[0]})."
        )
    with torch.no_grad():
        for name, parameter in found.items():
            parameter.copy_(state[name])


# -- files --


def save(state: Mapping[str, Tensor], folder: RunFolder, facts: AdapterFacts) -> Adapter:
    """Write the three files of an adapter, each complete or as it was before: for diffusers, for other tools, the card.

    Raises AdapterError if a number is not finite: such an adapter would only draw black pictures.
    """
    state = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in sorted(state.items())}
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise AdapterError(f"The LoRA holds NaN or infinity ({len(bad)} tensors, first: {bad[0]}), so it is not saved.")
    header = _header(facts, folder.name)
    peft = {f"unet.{name}": value for name, value in _peft_facts(facts).items()}
    own = header | {METADATA_KEY: json.dumps(peft, sort_keys=True)}
    others = naming.for_tools(state, facts.alpha, facts.layers_per_block)
    checkpoint.write_bytes(folder.adapter_weights, _bytes_of(state, own))
    checkpoint.write_bytes(folder.adapter_for_tools, _bytes_of(others, header))
    checkpoint.write_json(folder.adapter_card, asdict(facts))
    return Adapter(facts, state, folder.adapter_weights)


def _bytes_of(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on nothing but its content: the library writes metadata in chance order."""
    data = as_safetensors(dict(state), dict(metadata))
    length = int.from_bytes(data[:8], "little")
    described = json.loads(data[8 : 8 + length])
    ordered = {"__metadata__": dict(sorted(described.pop("__metadata__").items()))} | described
    head = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)  # tensors begin at a multiple of eight
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


def load(path: str | Path) -> Adapter:
    """Read an adapter from its file, from its folder or from a run's folder.

    Raises AdapterError with the format that was found where it is not an SDXL LoRA in diffusers' names, and where facts
    and tensors do not belong together.
    """
    file = _find(Path(path).expanduser())
    try:
        with safe_open(file, framework="pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
            _check_format(file, shapes)
            state = {name: opened.get_tensor(name).float() for name in shapes}
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{file} is damaged or no safetensors file ({str(error).splitlines()[0]}). Copy or train it again."
        ) from error
    facts = _facts_of(file, header, shapes)
    _check_facts(file, facts, state)
    return Adapter(facts, state, file)


def fuse(unet: Any, adapter: Adapter, scale: float = 1.0) -> None:
    """Add the LoRA to the UNet's own weights: no extra work in each step, and no second copy of anything.

    Raises AdapterError unless every tensor finds its layer with the right shape; the UNet is then unchanged.
    """
    modules = dict(unet.named_modules())
    pairs = naming.pairs(adapter.state)
    for name, (down, up) in pairs.items():
        layer = modules.get(name.removeprefix("unet."))
        weight = getattr(layer, "weight", None)
        if weight is None or weight.shape[:2] != (up.shape[0], down.shape[1]):
            shape = (
                "no such layer"
                if weight is None
                else f"shape {tuple(weight.shape)}, not {(up.shape[0], down.shape[1])}"
            )
            raise AdapterError(
                f"{adapter.path} does not fit this base model: {name} ({shape}). "
                f"It was made for {adapter.facts.base_model}; use that model, or train a new adapter."
            )
    strength = scale * adapter.facts.alpha / adapter.facts.rank
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            weight = modules[name.removeprefix("unet.")].weight
            # On the layer's own device and in float32, so that rounding happens once.
            added = up.to(weight.device).flatten(1) @ down.to(weight.device).flatten(1)
            weight.copy_((weight.float() + strength * added.view(weight.shape)).to(weight.dtype))


# -- inside --


def _find(path: Path) -> Path:
    choices = (
        [path] if path.is_file() else [RunFolder(path).adapter_weights, path / RunFolder(path).adapter_weights.name]
    )
    for choice in choices:
        if choice.is_file():
            return choice
    raise AdapterError(
        f"No adapter in {path}. Train one first (lace-lora train, or notebook 03), "
        "or check run_name and lora_output_dir."
    )


def _check_format(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Name format and family by keys and shapes before anything is loaded: diffusers takes foreign files silently."""
    kind = naming.format_of(shapes)
    if kind != naming.OURS:
        raise AdapterError(
            f"{file} is not an SDXL LoRA in diffusers' names: it looks like {kind}. "
            f"Use the file {RunFolder(file).adapter_weights.name} of a run."
        )


def _facts_of(file: Path, header: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> AdapterFacts:
    """Facts from the header; for a file of another trainer what diffusers' own metadata and the shapes tell."""
    known = {entry.name for entry in fields(AdapterFacts)}
    try:
        if FACTS_KEY in header:
            values = {name: value for name, value in json.loads(header[FACTS_KEY]).items() if name in known}
            return AdapterFacts(**values | {"lora_targets": tuple(values["lora_targets"])})
        peft = json.loads(header.get(METADATA_KEY, "{}"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(f"{file}: its header cannot be read ({error}). Copy or train it again.") from error
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name}
    rank = ranks.pop()
    if ranks:
        raise AdapterError(
            f"{file} has layers of different rank ({rank}, {', '.join(map(str, ranks))}), which is not supported."
        )
    targets = tuple(peft.get("unet.target_modules", ()))
    return AdapterFacts("sdxl", "not stated in the file", rank, float(peft.get("unet.lora_alpha", rank)), targets)


def _check_facts(file: Path, facts: AdapterFacts, state: Mapping[str, Tensor]) -> None:
    if facts.family != "sdxl":
        raise AdapterError(
            f"{file} is an adapter for {facts.family}, not for SDXL. Choose a run that was trained on SDXL."
        )
    for name, (down, up) in naming.pairs(state).items():
        if down.shape[0] != facts.rank or up.shape[1] != facts.rank:
            raise AdapterError(
                f"{file} says rank {facts.rank}, but {name} has {down.shape[0]}: the file is damaged. Train it again."
            )
        if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(
                f"{file} holds NaN or infinity in {name}: it would only draw black pictures. Train it again."
            )


def _peft_facts(facts: AdapterFacts) -> dict[str, Any]:
    """What diffusers hands to LoraConfig. Only names that every PEFT since 0.15 knows: it refuses any other."""
    return {
        "r": facts.rank,
        "lora_alpha": facts.alpha,
        "target_modules": list(facts.lora_targets),
        "rank_pattern": {},  # diffusers 0.39 looks these two up
        "alpha_pattern": {},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
    }


def _header(facts: AdapterFacts, title: str) -> dict[str, str]:
    """What other tools show of a LoRA (ModelSpec 1.0.0 and kohya's ss_ names), and our own facts as JSON."""
    predicts = {"epsilon": "epsilon", "v_prediction": "v"}[facts.prediction_type]
    return {
        "format": "pt",
        FACTS_KEY: json.dumps(asdict(facts), sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.prediction_type": predicts,
        "modelspec.trigger_phrase": facts.concept_token,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_sd_model_name": facts.base_model,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": f"{facts.alpha:g}",
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_steps": str(facts.step),
        "ss_output_name": title,
    }


def _html_table(rows: list[tuple[str, str]]) -> str:
    from html import escape

    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"
