"""What a family cannot do, by the names of settings: chosen otherwise and said, or refused where a person asked for it.

Data and one function, without torch, so that the plan can say it before anything is loaded or fetched.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from lace_lora.config import Config
from lace_lora.errors import SettingsError
from lace_lora.families.layouts import FAMILIES


@dataclass(frozen=True)
class Limit:
    """Values of a setting that a family can do; the first is taken where nobody chose."""

    allowed: tuple[object, ...]
    why: str  # that it can do no others


_NO_REFINER = Limit(("none",), "it has no refiner")
_NO_NEW_WORD = Limit((False,), "a new word can be learnt for SDXL alone")
# What both models of flow matching lack.
_OF_FLOW: Mapping[str, Limit] = {
    "lora_targets": Limit(("attention", "attention+ff"), "its transformer has neither convolutions nor an upper half"),
    "train_text_encoder": Limit((False,), "its text encoders are used as they are"),
    "learn_concept_token": _NO_NEW_WORD,
    "min_snr_gamma": Limit((0.0,), "it learns flow, whose noise has its weight by how often each time is drawn"),
    "noise_offset": Limit((0.0,), "it learns flow, which begins at noise of mean 0"),
    "refine": _NO_REFINER,
    "scheduler": Limit(("euler",), "it learns flow, and the other samplers draw by predicted noise"),
    "repeat": Limit(("none",), "its transformer has no convolutions whose edges could be joined"),
}
LIMITS: Mapping[str, Mapping[str, Limit]] = {
    "sdxl": {},
    "sd15": {"refine": _NO_REFINER, "learn_concept_token": _NO_NEW_WORD},
    "sd35": _OF_FLOW,
    "flux": {
        **_OF_FLOW,
        "negative_prompt": Limit(("",), "it is told how strictly to follow in one pass, and nothing to avoid"),
        "guidance_until": Limit((1.0,), "its guidance costs no second pass that could be saved"),
    },
}


@dataclass(frozen=True)
class Change:
    """A setting that gets another value for a family, and why."""

    setting: str
    value: object
    why: str


def changes(config: Config, family: str, as_set: AbstractSet[str] | None = None) -> list[Change]:
    """What has to be other than it is for a family.

    as_set  names that a person chose; None means all that a file or an override gave

    Raises SettingsError for the first of those that the family cannot do.
    """
    label, found = FAMILIES[family], []
    for name, limit in LIMITS[family].items():
        value, wanted = getattr(config, name), limit.allowed[0]
        if value in limit.allowed:
            continue
        if name in (config.given if as_set is None else as_set):
            others = " or ".join(map(_written, limit.allowed))
            raise SettingsError(
                f"{name} is {_written(value)}, which {label} cannot do: {limit.why}. Set {name} {others}."
            )
        found.append(Change(name, wanted, f"{label}: {limit.why}"))
    return found


def within(config: Config, family: str) -> tuple[Config, list[str]]:
    """The settings as a family can do them, and a line for each that was changed. Raises as `changes` does."""
    found = changes(config, family)
    if not found:
        return config, []
    lines = [f"{one.setting}: {_written(one.value)} is used ({one.why})" for one in found]
    return config.with_preset({one.setting: one.value for one in found}), lines


def _written(value: object) -> str:
    if value is None or value == "":
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)
