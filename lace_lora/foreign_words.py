"""What the metadata of a LoRA made elsewhere says: trigger words, strength, base model, by the names that tools use.

ModelSpec's modelspec.…, kohya's ss_…, PEFT's LoraConfig as diffusers keeps it, and the .json that A1111 writes beside
a file. Everything here was written by strangers: what cannot be understood is passed over.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from lace_lora.file_names import public_name

PEFT_KEY = "lora_adapter_metadata"
OFTEN = 0.9  # a tag in so many of the captions of the most frequent one is a trigger too
MOST_TRIGGERS = 5
LONGEST = 120  # characters of a text that are shown
MOST_REPEATS = 2  # signs of repetition in a pattern
_REPEATS = re.compile(r"\d+_(.+)")  # kohya's folders: how often a picture counts, then the word


@dataclass(frozen=True)
class Words:
    """What is told of a LoRA; empty or None where nothing is."""

    triggers: tuple[str, ...] = ()
    preferred_strength: float | None = None
    base_model: str = ""
    architecture: str = ""
    predicts_v: bool = False


def read(file: Path, header: Mapping[str, str]) -> Words:
    """The words about a LoRA file.

    file    beside which A1111 may have kept a .json of the same name
    header  the metadata in the file itself
    """
    beside = _json_of(file.with_suffix(".json"))
    triggers = _triggers(header, beside)
    base = _text(header.get("ss_sd_model_name")) or _text(_own(header).get("base_model"))
    return Words(
        tuple(dict.fromkeys(triggers))[:MOST_TRIGGERS],
        _number(beside.get("preferred weight")),
        public_name(base) if base and base != "None" else "",
        _text(header.get("modelspec.architecture")) or _text(header.get("ss_base_model_version")),
        header.get("modelspec.prediction_type") == "v" or header.get("ss_v_parameterization") == "True",
    )


def peft_strength(header: Mapping[str, str], place: tuple[str, str], rank: int) -> float:
    """What B·A of a layer is multiplied by, as PEFT's metadata says; 1 where it says nothing.

    place  part and name of the layer
    """
    told, (part, layer) = _json(header.get(PEFT_KEY)), place

    def of(name: str) -> Any:
        return told.get(f"{part}.{name}", told.get(name))

    patterns = of("alpha_pattern")
    pattern = next((key for key in patterns if _means(key, layer)), None) if isinstance(patterns, dict) else None
    alpha = _number(patterns[pattern] if pattern is not None and isinstance(patterns, dict) else of("lora_alpha"))
    if alpha is None:
        return 1.0
    return alpha / sqrt(rank) if of("use_rslora") else alpha / rank


# -- inside --


def _triggers(header: Mapping[str, str], beside: Mapping[str, Any]) -> list[str]:
    """From the surest source that there is."""
    own = _text(_own(header).get("concept_token"))
    stated = own or _text(header.get("modelspec.trigger_phrase")) or _text(header.get("ss_trigger_words"))
    if stated:
        return [stated]
    activation = _text(beside.get("activation text"))
    if activation:
        return [word.strip() for word in activation.split(",") if word.strip()]
    tags: Counter[str] = Counter()
    datasets = _json(header.get("ss_tag_frequency"))
    for counts in datasets.values():
        for tag, count in counts.items() if isinstance(counts, dict) else ():
            tags[_text(tag)] += count if isinstance(count, int) and count > 0 else 0
    most = max(tags.values(), default=0)
    if most > 1:
        return [tag for tag, count in tags.most_common() if tag and count >= OFTEN * most]
    named = [_REPEATS.fullmatch(str(name)) for name in [*datasets, *_json(header.get("ss_dataset_dirs"))]]
    return [_text(found[1]) for found in named if found]


def _means(pattern: str, layer: str) -> bool:
    """Whether a pattern of PEFT means a layer. One that a computer might never come to the end of is a mere name."""
    if len(pattern) > LONGEST or len(re.findall(r"[*+?{]", pattern)) > MOST_REPEATS or re.search(r"\)[*+?{]", pattern):
        return pattern == layer
    try:
        return re.match(rf"(.*\.)?({pattern})$", layer) is not None
    except re.error:
        return pattern == layer


def _own(header: Mapping[str, str]) -> dict[str, Any]:
    return _json(header.get("lace_lora"))


def _json(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _json_of(path: Path) -> dict[str, Any]:
    try:
        return _json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _text(value: Any) -> str:
    """A text on one line, without control signs."""
    if not isinstance(value, str):
        return ""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in value).split())[:LONGEST]


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value != 0
    return float(value) if is_number else None
