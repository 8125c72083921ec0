"""Every setting as an option of a command, made from its declaration: names, units, bounds, defaults, groups."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from lace_lora import config as declared
from lace_lora import config_text


def parameters(
    switches: Mapping[str, str] = MappingProxyType({}), lists: Mapping[str, Any] = MappingProxyType({})
) -> list[inspect.Parameter]:
    """`--config`, `--debug` and one option a setting, in the order and groups of the declarations.

    switches  options of one command alone, which are on or off: name and help
    lists     texts of one command alone, which may be repeated: name, and typer.Argument(…) or typer.Option(…)
    """
    files = typer.Option("--config", metavar="FILE", help="settings file, else config.yaml here; repeated, later wins")
    debug = typer.Option("--debug", help="show the whole traceback of an error")
    found = [_parameter(name, list[str] | None, taken) for name, taken in lists.items()]
    found += [_parameter("config_files", list[Path] | None, files), _parameter("debug", bool, debug, default=False)]
    for name, about in switches.items():
        found.append(_parameter(name, bool, typer.Option(f"--{name}", help=about), default=False))
    for group, title in declared.GROUPS.items():
        for name, field in declared.fields_of(group):
            option = typer.Option(f"--{name}", metavar=_metavar(field), help=_help(field), rich_help_panel=title)
            found.append(_parameter(name, list[str] | None if _is_list(field) else str | None, option))
    return found


def as_text(name: str, value: str | Sequence[str] | None) -> str | None:
    """An option's value as one text, which config.load turns into the setting's kind; None where it was not given."""
    if value is None or isinstance(value, str):
        return value
    return ("\n" if name in declared.BY_LINE else ",").join(value) or None


def table() -> str:
    """The settings as a Markdown table for documentation.md, one group after the other."""
    lines = []
    for group, title in declared.GROUPS.items():
        lines += [f"### {title}", "", "| setting | default | unit, bounds | what it does |", "|---|---|---|---|"]
        for name, field in declared.fields_of(group):
            note = ", ".join(part for part in (declared.unit_of(field), declared.bounds_text(field)) if part)
            default = f"`{config_text.scalar(field.default)}`" if field.default not in (None, ()) else "empty"
            lines.append(f"| `{name}` | {default} | {note} | {field.description} |")
        lines.append("")
    return "\n".join(lines)


def _parameter(name: str, kind: Any, option: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _is_list(field: FieldInfo) -> bool:
    return isinstance(field.default, tuple)


def _metavar(field: FieldInfo) -> str:
    """What stands for the value in --help: true|false, the choices, the unit, or the kind."""
    choices, bounds = declared.choices_of(field), declared.bounds_of(field)
    if isinstance(field.default, bool):
        return "true|false"
    if choices and not bounds:
        return "|".join(choices)
    return declared.unit_of(field).upper() or ("NUMBER" if {"ge", "gt"} & bounds.keys() else "TEXT")


def _help(field: FieldInfo) -> str:
    """Meaning, unit, bounds and default of a setting; in round brackets, since --help takes square ones for markup."""
    default = ", ".join(field.default) if _is_list(field) else field.default
    default = str(default).lower() if isinstance(default, bool) else default
    notes = [declared.unit_of(field), declared.bounds_text(field), "may be repeated" if _is_list(field) else ""]
    notes.append(f"default {'empty' if default in (None, '') else str(default)}")
    return f"{field.description} ({'; '.join(note for note in notes if note)})"
