"""How a setting is declared, and what its declaration says: group, unit, bounds, choices. Those of a run: config."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.fields import FieldInfo

# JSON schema's names of bounds, and pydantic's.
SCHEMA_BOUNDS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
GROUPS = {
    "where": "Where things are",
    "pictures": "Pictures and words",
    "captions": "Suggested captions",
    "model": "Base model",
    "adapter": "Size of the LoRA",
    "training": "Training",
    "keeping": "Keeping what is finished",
    "pictures out": "New designs",
    "finishing": "Made of each design",
    "evidence": "Is it good, is it new",
}


def setting(default: Any, group: str, description: str, unit: str = "", **bounds: Any) -> Any:
    """One declared setting: its default, group (see GROUPS), help, unit and pydantic bounds."""
    return Field(default, description=description, json_schema_extra={"group": group, "unit": unit}, **bounds)


def group_of(field: FieldInfo) -> str:
    """The group that a setting stands in, a key of GROUPS."""
    return str(_extra(field)["group"])


def unit_of(field: FieldInfo) -> str:
    """The unit of a setting ("px", "steps"), or an empty text."""
    return str(_extra(field)["unit"])


def bounds_of(field: FieldInfo) -> dict[str, float]:
    """The bounds of a setting by pydantic's names: ge, gt, le, lt, multiple_of (only those that are set)."""
    return {name: part[key] for part in _parts(field) for key, name in SCHEMA_BOUNDS.items() if key in part}


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The values that a setting offers by name, such as ("auto",) or ("cosine", "constant", "linear")."""
    parts = _parts(field)
    return tuple(str(value) for part in parts for value in part.get("enum", [part["const"]] if "const" in part else []))


def bounds_text(field: FieldInfo) -> str:
    """The bounds and choices of a setting in words, such as "32 to 2048, multiple of 8, or auto"."""
    bounds, choices = bounds_of(field), choices_of(field)
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    parts = []
    if low is not None and high is not None:
        above, below = "above " if "gt" in bounds else "", "below " if "lt" in bounds else ""
        parts.append(f"{above}{low:g} to {below}{_number(high)}")
    if "multiple_of" in bounds:
        parts.append(f"multiple of {bounds['multiple_of']:g}")
    if choices:
        parts.append(("or " if parts else "") + ", ".join(choices))
    return ", ".join(parts)


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean rank?" for the nearest known name, or an empty text when nothing is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "."


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _parts(field: FieldInfo) -> list[dict[str, Any]]:
    """The JSON schema of a setting, and of each kind that it may have."""
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    schema = TypeAdapter(kind).json_schema()
    return [schema, *schema.get("anyOf", [])]


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), "every setting is declared by setting()"
    return extra
