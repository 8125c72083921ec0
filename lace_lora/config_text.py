"""Settings as the text of a config.yaml: complete as a run keeps it, and short as it ships."""

from collections.abc import Collection
from typing import Any

import yaml

from lace_lora.config import GROUPS, USER_KEYS, Config, bounds_text, fields_of, unit_of


def to_yaml(config: Config, but: Collection[str] = ()) -> str:
    """The text of a complete config.yaml: every setting with its value, grouped, with unit and help as comments.

    but  names that are left out
    """
    return "\n".join(
        _section(title, [line(name, getattr(config, name)) for name, _ in fields_of(group) if name not in but])
        for group, title in GROUPS.items()
    )


def shipped_yaml() -> str:
    """The text of the config.yaml that ships: the user's eleven keys written, every other one as a comment."""
    head = (
        "# Settings of Lace LoRA. The eleven keys below are all you need; take the # away from any other line to "
        "change it.\n"
        "# auto means: chosen for your machine, with the reason printed. A number written here always wins.\n"
        "# This file is generated from lace_lora/config.py (lace-lora settings --yaml).\n\n"
    )
    eleven = [line(name, Config.model_fields[name].default) for name in USER_KEYS]
    rest = [
        _section(title, [f"# {line(name, field.default)}" for name, field in fields_of(group) if name not in USER_KEYS])
        for group, title in GROUPS.items()
    ]
    return head + "\n".join(eleven) + "\n\n" + "\n".join(rest)


def scalar(value: Any) -> str:
    """A value as YAML that every YAML reader reads back as the same kind (1.0e-05, not 1e-05)."""
    if isinstance(value, float):
        return repr(value) if "." in repr(value) else repr(value).replace("e", ".0e")
    if value is None:
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    dumped = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return str(dumped).removesuffix("\n").removesuffix("\n...")


def line(name: str, value: Any) -> str:
    """The line of a setting in a config.yaml, with its help, unit and bounds as a comment."""
    field = Config.model_fields[name]
    note = "; ".join(part for part in (unit_of(field), bounds_text(field)) if part)
    left = f"{name}: {scalar(value)}".rstrip(" ")
    return f"{left:<52} # {field.description}{f' [{note}]' if note else ''}"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"# -- {title} --", *lines, ""])
