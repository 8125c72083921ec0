"""The trainers at Replicate as data: what our settings are called there, and what a training or a picture costs.

The table is plan_data/trainers.yaml.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lace_lora import costs, throughput
from lace_lora.config import Config
from lace_lora.sheet import Generation

FILE = Path(throughput.FILE).with_name("trainers.yaml")


@dataclass(frozen=True)
class Cost:
    """What something is estimated to cost, in dollars, and how that was worked out."""

    usd: float
    assumption: str

    def __str__(self) -> str:
        """In a sentence."""
        return f"about {costs.money(self.usd)} ({self.assumption}; {costs.as_of()})"


@lru_cache(maxsize=1)
def table() -> Mapping[str, Mapping[str, Any]]:
    """Every trainer by its name in backend_trainer."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["trainers"]
    return found


def inputs(row: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What the trainer is given, but for the pictures; numbers in place of auto must be settled."""
    words = {name: str(getattr(config, name)) for name in ("concept_token", "instance_prompt")}
    told = {name: text.format(**words) for name, text in row.get("words", {}).items()}
    return _mapped(row, lambda name: getattr(config, name)) | told


def unused(row: Mapping[str, Any], config: Config) -> list[str]:
    """Settings of the LoRA and its training that somebody set and that this trainer does not know."""
    from lace_lora.config import fields_of

    known = {*row["settings"], "gradient_checkpointing", "compile", "max_train_steps"}
    decided = [name for group in ("adapter", "training") for name, _ in fields_of(group)]
    return [name for name in decided if name in config.given and name not in known]


def drawing_inputs(row: Mapping[str, Any], one: Generation) -> dict[str, Any]:
    """What a trained version is given to draw a design."""
    return _mapped(row["draw"], lambda name: getattr(one, name))


def training_cost(row: Mapping[str, Any], minutes: float) -> Cost:
    """What a training is estimated to cost. minutes: that its steps take on the trainer's GPU, as planned."""
    if "usd" in row:
        return Cost(float(row["usd"]), "one price for a training")
    return _on(row["gpu"], max(minutes + row["minutes"], row["least_minutes"]))


def drawing_cost(row: Mapping[str, Any], pictures: int) -> Cost:
    """What so many designs are estimated to cost."""
    return _on(row["draw"]["gpu"], pictures * row["draw"]["seconds_a_picture"] / 60)


def _on(gpu: str, minutes: float) -> Cost:
    price = next(one for one in costs.of(gpu, minutes) if one.offer == "Replicate")
    return Cost(price.usd, f"{price.assumption} on {gpu}")


def _mapped(row: Mapping[str, Any], value_of: Any) -> dict[str, Any]:
    """Our values under their names there, within their bounds, beside what is always the same."""
    found = dict(row.get("fixed", {}))
    for name, there in row["settings"].items():
        value = value_of(name)
        low, high = row.get("least", {}).get(there), row.get("most", {}).get(there)
        value = value if low is None else max(low, value)
        value = value if high is None else min(high, value)
        found[there] = str(value) if there in row.get("texts", ()) else value
    return found
