"""What a family cannot do, by the names of settings: chosen otherwise and said, or refused where a person asked for it.

Data and one function, without torch, so that the plan can say it before anything is loaded or fetched.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from lace_lora.config import Config, fields_of
from lace_lora.errors import SettingsError
from lace_lora.families.layouts import FAMILIES

DRAWING = "pictures out"  # the group of what decides a design: how a LoRA was learnt does not matter any more


@dataclass(frozen=True)
class Limit:
    """Values of a setting that a family can do; the first is taken where nobody chose."""

    allowed: tuple[object, ...]
    why: str  # that it can do no others, to be read behind the name of the family


_NO_REFINER = Limit(("none",), "has no refiner")
_NO_NEW_WORD = Limit((False,), "cannot learn a new word here, only SDXL can")
# What both models of flow matching lack.
_OF_FLOW: Mapping[str, Limit] = {
    "lora_targets": Limit(("attention", "attention+ff"), "is a transformer without convolutions or an upper half"),
    "train_text_encoder": Limit((False,), "has its text encoders used as they are"),
    "learn_concept_token": _NO_NEW_WORD,
    "min_snr_gamma": Limit((0.0,), "learns flow, which weighs noise by how often each time is drawn"),
    "noise_offset": Limit((0.0,), "learns flow, which begins at noise of mean 0"),
    "refine": _NO_REFINER,
    "scheduler": Limit(("euler",), "learns flow, and the other samplers draw by predicted noise"),
    "repeat": Limit(("none",), "is a transformer without convolutions whose edges could be joined"),
}
LIMITS: Mapping[str, Mapping[str, Limit]] = {
    "sdxl": {},
    "sd15": {"refine": _NO_REFINER, "learn_concept_token": _NO_NEW_WORD},
    "sd35": _OF_FLOW,
    "flux": {
        **_OF_FLOW,
        "negative_prompt": Limit(("",), "is told how strictly to follow in one pass, and nothing to avoid"),
        "guidance_until": Limit((1.0,), "is guided without a second pass, so that there is none to leave out"),
    },
}

# Whose makers trained it in bf16, which reaches as far as float32, where fp16 ends at 65,504.
MADE_IN_BF16 = ("sd35", "flux")


@dataclass(frozen=True)
class Change:
    """A setting that gets another value for a family, and why."""

    setting: str
    value: object
    why: str


def changes(
    config: Config, family: str, as_set: AbstractSet[str] | None = None, group: str | None = None
) -> list[Change]:
    """What has to be other than it is for a family.

    as_set  names that a person chose; None means all that a file or an override gave
    group   of settings that are looked at, such as DRAWING; None means all

    Raises SettingsError for the first of those that the family cannot do.
    """
    label, found = FAMILIES[family], []
    names = {name for name, _ in fields_of(group)} if group else LIMITS[family].keys()
    for name, limit in LIMITS[family].items():
        value, wanted = getattr(config, name), limit.allowed[0]
        if name not in names or value in limit.allowed:
            continue
        if name in (config.given if as_set is None else as_set):
            others = " or ".join(map(_written, limit.allowed))
            raise SettingsError(f"{name} is {_written(value)}, but {label} {limit.why}. Set {name} {others}.")
        found.append(Change(name, wanted, f"{label} {limit.why}"))
    return found


def within(config: Config, family: str, group: str | None = None) -> tuple[Config, list[str]]:
    """The settings as a family can do them, and a line for each that was changed. Raises as `changes` does."""
    found = changes(config, family, group=group)
    if not found:
        return config, []
    lines = [f"{one.setting}: {_written(one.value)} is used, because {one.why}" for one in found]
    return config.with_preset({one.setting: one.value for one in found}), lines


def _written(value: object) -> str:
    if value is None or value == "":
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)
