"""An adapter: what was learnt, as files for diffusers and for other tools, loaded with care, fused for generation.

Names inside are PEFT's with diffusers' prefix: unet.<module>.lora_A.weight. They are saved unconverted, because
diffusers' own converters mix two styles, and loaders then drop part of the tensors with only a warning.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, families
from lace_lora import lora as layers
from lace_lora.adapter_facts import FACTS_KEY as FACTS_KEY
from lace_lora.adapter_facts import METADATA_KEY as METADATA_KEY
from lace_lora.adapter_facts import AdapterFacts as AdapterFacts
from lace_lora.adapter_facts import check_family, for_peft, header_of, of_another, told_in
from lace_lora.errors import AdapterError
from lace_lora.families import lora_names, quiet
from lace_lora.families import sdxl_names as naming
from lace_lora.families.seam import TextParts
from lace_lora.file_names import public_name
from lace_lora.lora import Shape as Shape
from lace_lora.lora import attach as attach
from lace_lora.lora import parameters as parameters
from lace_lora.lora import state_of as state_of
from lace_lora.run_folder import RunFolder

with quiet.quiet():
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file
    from safetensors.torch import save as as_safetensors
    from torch import Tensor


@dataclass(frozen=True)
class Adapter:
    """What was learnt, as loaded: its facts, and its tensors by name (float32), a learnt token's rows among them."""

    facts: AdapterFacts
    state: Mapping[str, Tensor] = field(repr=False)
    path: Path

    @property
    def digest(self) -> str:
        """sha256 of the file."""
        return checkpoint.sha256(self.path)

    @property
    def token_rows(self) -> dict[str, Tensor]:
        """The learnt embeddings of the concept token, [1, width] for each text encoder; empty where none is learnt."""
        return {name: one for name, one in self.state.items() if name in naming.TOKEN_ROWS}

    @property
    def changes_text(self) -> bool:
        """Whether prompts are read otherwise than by the base model alone."""
        return self.facts.train_text_encoder or bool(self.token_rows)

    @property
    def is_complete(self) -> bool:
        """False for an adapter of a training that was stopped before its last step."""
        return self.facts.is_complete

    def rows(self) -> list[tuple[str, str]]:
        """Facts as (name, value) for a table."""
        facts = self.facts
        size = sum(tensor.numel() for tensor in self.state.values())
        count = sum(name.endswith(layers.A) for name in self.state)
        kind = "".join([", DoRA" if facts.use_dora else "", ", rsLoRA" if facts.use_rslora else ""])
        token = f"{facts.concept_token or 'none'}{' (learnt)' if facts.learns_token else ''}"
        return [
            ("adapter", str(self.path)),
            ("base model", facts.base_model),
            ("concept token", token),
            (
                "rank, alpha",
                f"{facts.rank}, {facts.alpha:g}{kind} ({count} layers, {size / 1e6:.2f} million numbers)",
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


# -- files --


def save(state: Mapping[str, Tensor], folder: RunFolder, facts: AdapterFacts) -> Adapter:
    """Write the files of an adapter, each complete or as it was before: for diffusers, for other tools, the card.

    The rows of a learnt token get a file of their own, which A1111 and ComfyUI read as an embedding.
    Raises AdapterError if a number is not finite: such an adapter would only draw black pictures.
    """
    state = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in sorted(state.items())}
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise AdapterError(f"The LoRA holds NaN or infinity ({len(bad)} tensors, first: {bad[0]}), so it is not saved.")
    header = header_of(facts, folder.name)
    rows = {naming.TOKEN_ROWS[name]: one for name, one in state.items() if name in naming.TOKEN_ROWS}
    lora = {name: one for name, one in state.items() if name not in naming.TOKEN_ROWS}
    parts = sorted({name.partition(".")[0] for name in lora})
    peft = {f"{part}.{name}": value for part in parts for name, value in for_peft(facts, part).items()}
    family = families.named(facts.family)
    others = family.for_other_tools(lora, facts.strength * facts.rank, facts.layers_per_block)
    checkpoint.write_bytes(
        folder.adapter_weights, _bytes_of(lora, header | {METADATA_KEY: json.dumps(peft, sort_keys=True)})
    )
    checkpoint.write_bytes(folder.adapter_for_tools, _bytes_of(others, header))
    if rows:
        checkpoint.write_bytes(folder.concept_token, _bytes_of(rows, header))
    files = [folder.adapter_weights, folder.adapter_for_tools, *([folder.concept_token] if rows else [])]
    sums = {file.name: checkpoint.sha256(file) for file in files}
    checkpoint.write_json(folder.adapter_card, asdict(facts) | {"sha256": sums})
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

    Raises AdapterError with the format that was found where it is not a LoRA in diffusers' names for the family that it
    tells (SDXL where it tells none), and where facts and tensors do not belong together.
    """
    file = _find(Path(path).expanduser())
    try:
        with safe_open(file, framework="pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
            told = told_in(file, header)
            _check_format(file, shapes, told)
            state = {name: opened.get_tensor(name).float() for name in shapes}
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{file} is damaged or no safetensors file ({str(error).splitlines()[0]}). Copy or train it again."
        ) from error
    _check_sum(file, _card_of(file))
    facts = _with_path(told or of_another(file, header, shapes), file)
    _check_facts(file, facts, state)
    return Adapter(facts, state | _token_rows(file, facts), file)


def read_state(file: Path, facts: AdapterFacts) -> Adapter:
    """What a training has learnt so far, out of a checkpoint's file, a learnt token's rows among it.

    facts  of the run at that step: the file itself tells none

    Raises AdapterError where it cannot be read, holds NaN, or is no LoRA of these facts.
    """
    try:
        state = {name: tensor.float() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AdapterError(f"{file} is damaged or no safetensors file ({reason}). Train on from another.") from error
    rows = [name for name in naming.TOKEN_ROWS if name in state]
    _check_format(file, {name: tuple(one.shape) for name, one in state.items() if name not in rows}, facts)
    _check_facts(file, facts, state)
    if len(rows) != (len(naming.TOKEN_ROWS) if facts.learns_token else 0):
        raise AdapterError(f"{file} does not hold what config.yaml says: {len(rows)} rows of a learnt concept token.")
    return Adapter(facts, state, file)


def is_whole(folder: RunFolder) -> bool:
    """Whether a run's adapter is there and as it was written."""
    try:
        load(folder.root)
    except AdapterError:
        return False
    return True


def format_of(family: str) -> str:
    """The format of our own files for a family, in words."""
    if family == naming.FAMILY:
        return naming.OURS
    return f"a LoRA for {families.FAMILIES.get(family, family)} in diffusers' names"


def text_modules(text: TextParts) -> dict[str, Any]:
    """The text encoders of a base model that can be trained, by their parts' names."""
    return dict(zip(lora_names.TEXT_ENCODERS, text.encoders, strict=False))


def fuse(denoiser: Any, adapter: Adapter, scale: float = 1.0) -> None:
    """Add the LoRA to the denoiser's own weights, `scale` times as strongly as it was trained.

    Raises AdapterError unless every tensor finds its layer with the right shape; the denoiser is then unchanged.
    """
    _fuse_all({families.named(adapter.facts.family).DENOISER: denoiser}, adapter, scale)


def fuse_text(text: TextParts, adapter: Adapter, scale: float = 1.0) -> None:
    """The same for the text encoders, where they were trained too."""
    _fuse_all(text_modules(text), adapter, scale)


def put_on(denoiser: Any, adapter: Adapter, scale: float = 1.0) -> None:
    """Put the LoRA beside the layers of a denoiser in 4 bits, as it was while it was trained; see lora.put_on.

    Raises AdapterError as fuse does.
    """
    from lace_lora import lean  # which loads PEFT

    facts, part = adapter.facts, families.named(adapter.facts.family).DENOISER
    learnt = _checked({part: denoiser}, adapter)[part]
    shape = Shape(facts.rank, facts.alpha, "", facts.use_dora, facts.use_rslora)
    layers.put_on(denoiser, learnt, shape, scale * facts.strength)
    lean.make_lean(denoiser)


def _fuse_all(modules: Mapping[str, Any], adapter: Adapter, scale: float) -> None:
    for part, learnt in _checked(modules, adapter).items():
        layers.fuse(modules[part], learnt, scale * adapter.facts.strength)


def _checked(modules: Mapping[str, Any], adapter: Adapter) -> dict[str, dict[str, layers.Learnt]]:
    """The LoRA of each layer of each part. Raises AdapterError where one does not fit."""
    found = {part: layers.layers_of(adapter.state, part) for part in modules}
    for part, module in modules.items():
        misfit = layers.misfit(module, found[part])
        if misfit:
            raise AdapterError(
                f"{adapter.path} does not fit this base model: {part}.{misfit}. "
                f"It was made for {adapter.facts.base_model}; use that model, or train a new adapter."
            )
    return found


# -- inside --


def _find(path: Path) -> Path:
    choices = (
        [path] if path.is_file() else [RunFolder(path).adapter_weights, path / RunFolder(path).adapter_weights.name]
    )
    for choice in choices:
        if choice.is_file():
            return choice
    theirs = RunFolder(path).adapter_for_tools
    if theirs.is_file():
        others = _card_of(theirs).get("family", naming.FAMILY) != naming.FAMILY  # whose names are not read here
        here = f", or bring it in here: lace-lora import {theirs} --run-name {path.name}-here"
        raise AdapterError(
            f"The LoRA of {path} was trained elsewhere and is in another program's format: {theirs}. Draw with the "
            f"backend that trained it, such as --backend comfyui{'' if others else here}"
        )
    raise AdapterError(
        f"No adapter in {path}. Train one first (lace-lora train, or notebook 03), "
        "or check run_name and lora_output_dir."
    )


def _check_format(file: Path, shapes: Mapping[str, tuple[int, ...]], told: AdapterFacts | None) -> None:
    """Name format and family by keys and shapes before anything is loaded: diffusers takes foreign files silently.

    told  facts that the file tells of itself; one that tells none must be an SDXL LoRA
    """
    if told is not None and told.family != "sdxl" and shapes:
        check_family(file, told)
        if not lora_names.strange(shapes, families.named(told.family).DENOISER):
            return
    kind = naming.format_of(shapes)
    family = naming.FAMILY if told is None else told.family
    if kind != format_of(family):
        ours = RunFolder(file).adapter_weights.name
        if family != naming.FAMILY:  # of our own making, as its header says, and in another form
            raise AdapterError(f"{file} is in the names that other programs read. Use {ours} of the same run.")
        raise AdapterError(
            f"{file} is not {naming.OURS}: it looks like {kind}. "
            f"Use the file {ours} of a run, or bring it in with: lace-lora import"
        )


def _with_path(facts: AdapterFacts, file: Path) -> AdapterFacts:
    """Headers go to strangers and name the base model only; the card beside a run's file says where it lies."""
    card = _card_of(file)
    same = public_name(str(card.get("base_model", ""))) == facts.base_model
    return replace(facts, base_model=card["base_model"]) if same else facts


def _check_sum(file: Path, card: Mapping[str, Any]) -> None:
    """Against the card beside a run's file; a file that lies alone has none."""
    expected = card.get("sha256", {}).get(file.name)
    if expected and checkpoint.sha256(file) != expected:
        raise AdapterError(
            f"{file} is not as it was written (its checksum in adapter.json differs). lace-lora train writes it again "
            "from the last checkpoint; or copy it again."
        )


def _card_of(file: Path) -> dict[str, Any]:
    """The card beside a run's file; nothing where there is none."""
    try:
        card = json.loads((file.parent / RunFolder(file.parent.parent).adapter_card.name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _token_rows(file: Path, facts: AdapterFacts) -> dict[str, Tensor]:
    """The rows of a learnt token, from the file beside the LoRA's."""
    if not facts.learns_token:
        return {}
    beside = file.parent / RunFolder(file.parent.parent).concept_token.name
    try:
        found = load_file(beside)
        _check_sum(beside, _card_of(file))
        return {name: found[key].float() for name, key in naming.TOKEN_ROWS.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise AdapterError(
            f"{file} was trained with a word of its own, {facts.concept_token}, and {beside.name} beside it cannot be "
            f"read ({error}). Copy both files, or train again."
        ) from error


def _check_facts(file: Path, facts: AdapterFacts, state: Mapping[str, Tensor]) -> None:
    check_family(file, facts)
    for name, (down, up) in lora_names.pairs(state).items():
        if down.shape[0] != facts.rank or up.shape[1] != facts.rank:
            raise AdapterError(
                f"{file} says rank {facts.rank}, but {name} has {down.shape[0]}: the file is damaged. Train it again."
            )
        if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise AdapterError(
                f"{file} holds NaN or infinity in {name}: it would only draw black pictures. Train it again."
            )


def _html_table(rows: list[tuple[str, str]]) -> str:
    from html import escape

    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"
