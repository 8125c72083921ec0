"""What is known of an adapter beside its numbers, as its files carry it for us and for other programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lace_lora import families
from lace_lora.errors import AdapterError
from lace_lora.families.folders import DENOISERS
from lace_lora.families.lora_names import TEXT_TARGETS, strength_of
from lace_lora.file_names import public_name

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
    use_dora: bool = False
    use_rslora: bool = False
    train_text_encoder: bool = False
    text_targets: tuple[str, ...] = TEXT_TARGETS
    learns_token: bool = False
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

    @property
    def strength(self) -> float:
        """What B·A is multiplied by."""
        return strength_of(self.rank, self.alpha, self.use_rslora)


def told_in(file: Path, header: Mapping[str, str]) -> AdapterFacts | None:
    """Facts from the header; None for a file of another trainer."""
    if FACTS_KEY not in header:
        return None
    known = {entry.name for entry in fields(AdapterFacts)}
    try:
        values = {name: value for name, value in json.loads(header[FACTS_KEY]).items() if name in known}
        return AdapterFacts(**values | {name: tuple(values[name]) for name in values if name.endswith("_targets")})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(file, error) from error


def of_another(file: Path, header: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> AdapterFacts:
    """Facts of a file of another trainer: what diffusers' own metadata and the shapes tell."""
    try:
        peft = json.loads(header.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise _unreadable(file, error) from error
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name}
    rank = ranks.pop()
    if ranks:
        raise AdapterError(
            f"{file} has layers of different rank ({rank}, {', '.join(map(str, ranks))}), which is not supported."
        )
    targets = tuple(peft.get("unet.target_modules", ()))
    return AdapterFacts("sdxl", "not stated in the file", rank, float(peft.get("unet.lora_alpha", rank)), targets)


def check_family(file: Path, facts: AdapterFacts) -> None:
    """Raises AdapterError for an adapter of a kind of model that cannot be used here."""
    if facts.family not in families.FAMILIES:
        raise AdapterError(
            f"{file} is an adapter for {facts.family}, which cannot be used here. Choose one that was trained on one "
            f"of: {', '.join(families.FAMILIES.values())}."
        )


def for_peft(facts: AdapterFacts, part: str) -> dict[str, Any]:
    """What diffusers hands to LoraConfig. Only names that every PEFT since 0.15 knows: it refuses any other."""
    targets = list(facts.lora_targets) if part in DENOISERS else list(facts.text_targets)
    return {
        "r": facts.rank,
        "lora_alpha": facts.alpha,
        "target_modules": targets[0] if len(targets) == 1 else targets,  # a pattern stands alone
        "rank_pattern": {},  # diffusers 0.39 looks these two up
        "alpha_pattern": {},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": facts.use_dora,
        "use_rslora": facts.use_rslora,
    }


def header_of(facts: AdapterFacts, title: str) -> dict[str, str]:
    """What other tools show of a LoRA (ModelSpec 1.0.0 and kohya's ss_ names), and our own facts as JSON."""
    base_model = public_name(facts.base_model)  # where it lies on this machine is nobody's business
    predicts = {"v_prediction": "v"}.get(facts.prediction_type, facts.prediction_type)
    return {
        **families.named(facts.family).HEADER,
        "format": "pt",
        FACTS_KEY: json.dumps(asdict(facts) | {"base_model": base_model}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.prediction_type": predicts,
        "modelspec.trigger_phrase": facts.concept_token,
        "ss_sd_model_name": base_model,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": f"{facts.strength * facts.rank:g}",
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_steps": str(facts.step),
        "ss_output_name": title,
    }


def _unreadable(file: Path, error: Exception) -> AdapterError:
    return AdapterError(f"{file}: its header cannot be read ({error}). Copy or train it again.")
