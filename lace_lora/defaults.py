"""A person's own defaults: values written into the settings file, of which every other line stays as it is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lace_lora import clashes, config_text, places
from lace_lora import config as declared
from lace_lora.config import DRIVE_FILE, GROUPS, Config
from lace_lora.declarations import group_of
from lace_lora.errors import MachineError, PicturesError, SettingsError
from lace_lora.machine import drive_is_mounted, in_colab
from lace_lora.own_files import OwnFile

NEW_FILE = "# My own settings of Lace LoRA. Every name that may stand here: lace-lora settings --yaml\n\n"
BOM = "\ufeff"  # some editors on Windows begin a file with it


@dataclass
class _Sitting:
    """A settings file, its text before the first save and after the last, and what was saved between."""

    file: OwnFile
    before: str
    after: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class Defaults:
    """A person's settings file through one sitting; what stood there before stays beside it as config.yaml.bak."""

    def __init__(self) -> None:
        self._sittings: dict[Path, _Sitting] = {}
        self._told: list[str] = []

    def save(self, values: Mapping[str, Any], drive_mount_path: str, as_before: Iterable[str] = ()) -> str:
        """Write these settings into the file that notebooks read (see `place`); return what was written where.

        Every value is written, also one that equals the declared default: left out, it would be the preset's turn, as
        it is of one that is auto.

        as_before  names that were saved in this sitting and for which the file is to say again what it said before

        Raises SettingsError where the file cannot be read, changed or written, or would hold settings that cannot work
        together; MachineError for a Drive that is not mounted and for a full disk. Nothing is changed then.
        """
        path = place(drive_mount_path)
        self._told.clear()
        whole = path.resolve()
        text = _read(path) if path.exists() else NEW_FILE
        new = _Sitting(OwnFile(whole, self._told.append, base=places.nearest(whole.parent)), text)
        sitting = self._sittings.setdefault(whole, new)
        back = [name for name in as_before if name in sitting.values]
        kept = {name: value for name, value in sitting.values.items() if name not in back} | dict(values)
        if text == sitting.after:
            after = with_values(sitting.before, kept, path)
        else:  # somebody else wrote there, and what they wrote stays
            after = with_values(_taken_back(text, sitting.before, back, path), values, path)
        _check_together(text, after, path)
        try:
            sitting.file.write(after)
        except PicturesError as error:  # in the words of a folder of photographs
            if isinstance(error.__cause__, MachineError):  # a full disk, or a Drive that does not answer
                raise MachineError(str(error.__cause__)) from error
            raise SettingsError(
                f"{path.absolute()} cannot be written ({_reason(error)}), and stays as it was. Make it writable, or "
                f"write into a file config.yaml beside the notebook: {_in_words(values)}."
            ) from error
        sitting.after, sitting.values = after, kept
        backups = "".join(f" {line[0].upper()}{line[1:]}." for line in self._told)
        goes = " It lies on this Colab machine and goes with it." if _is_fleeting(path, drive_mount_path) else ""
        told = [_in_words(values)] if values else []
        told += [f"{', '.join(back)} as before the first save"] if back else []
        written = f"Saved in {path.absolute()}: {'; '.join(told)}."
        return f"{written} Every notebook that reads this file begins with it.{goes}{backups}"


def place(drive_mount_path: str) -> Path:
    """The settings file to write: the one that was found, else that of Drive in Colab, else config.yaml here.

    Raises MachineError in Colab while Drive is not mounted: a folder made there would stand in its way.
    """
    if found := declared.found(drive_mount_path):
        return found[0]
    if not in_colab():
        return Path("config.yaml")
    if not drive_is_mounted(drive_mount_path):
        raise MachineError(
            f"Drive is not mounted at {drive_mount_path}, so nothing was saved. Press the folder sign at the left edge "
            "of the window, then the sign of Drive above the list of files; once Drive is there, save again."
        )
    return Path(drive_mount_path) / DRIVE_FILE


def with_values(text: str, values: Mapping[str, Any], path: Path = Path("config.yaml")) -> str:
    """The text of a settings file with these values: lines changed in place, all others byte for byte as they were.

    A name that the file lacks takes the place of its generated comment line (`# rank: 16  # size of the adapter …`), or
    stands below the heading of its group, or at the end.

    path  where the text comes from, for the messages

    Raises SettingsError for a text that is no settings file, or whose form does not allow it.
    """
    mark, body = (BOM, text.removeprefix(BOM)) if text.startswith(BOM) else ("", text)
    try:
        before = yaml.safe_load(body) or {}
        for name, value in values.items():
            body = _with_value(body, name, value)
        after = yaml.safe_load(body) or {}
        is_right = {**before, **{name: after[name] for name in values}} == after and all(
            getattr(Config().model_copy(update={name: after[name]}), name) == value for name, value in values.items()
        )
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError, SettingsError):
        is_right = False
    if not is_right:
        raise SettingsError(
            f"{path.absolute()} is written in a form that cannot be changed line by line, and stays as it was. Write "
            f"there yourself: {_in_words(values)}."
        )
    return mark + body


def _read(path: Path) -> str:
    """The text of a settings file that can be loaded."""
    declared.load(path)
    return path.read_bytes().decode("utf-8")


def _taken_back(text: str, before: str, names: Iterable[str], path: Path) -> str:
    """The text in which these settings say what they said before, while everything else stays as it is now."""
    earlier = _config_of(before)
    for name in names:
        if name in earlier.given:
            text = with_values(text, {name: getattr(earlier, name)}, path)
        elif name in _config_of(text).given:
            text = _without(text, name, before)
    return text


def _without(text: str, name: str, before: str) -> str:
    """The text without the live line of a setting, but with its generated comment line where there was one before."""
    mark, body = (BOM, text.removeprefix(BOM)) if text.startswith(BOM) else ("", text)
    key, node = _pairs(body)[name]
    start = body.rfind("\n", 0, key.start_mark.index) + 1
    end = body.find("\n", _end(body, node))
    end = len(body) if end < 0 else end + 1
    comment = next((one[0] for one in re.finditer(r"^#[^\n]*\n?", before, re.M) if _live(one[0], name, None)), "")
    return mark + body[:start] + comment + body[end:]


def _check_together(text: str, after: str, path: Path) -> None:
    """Raises SettingsError where a file would newly hold settings that cannot work together."""
    known, would = (clashes.found(_config_of(one)) for one in (text, after))
    for clash in would:
        if clash not in known:
            first, *others = clash.settings
            raise SettingsError(
                f"With this, {path.name} would not work: {clash.sentence} Change {first} and {', '.join(others)} here, "
                "and save them together."
            )


def _config_of(text: str) -> Config:
    return Config().model_copy(update=yaml.safe_load(text.removeprefix(BOM)) or {})


def _with_value(text: str, name: str, value: Any) -> str:
    pairs = _pairs(text)
    if name in pairs:
        return _replaced(text, *pairs[name], value)
    taken = [(key.start_mark.index, _end(text, node)) for key, node in pairs.values()]
    indent = " " * next((key.start_mark.column for key, _ in pairs.values()), 0)
    newline = "\r\n" if "\r\n" in text else "\n"
    group = group_of(Config.model_fields[name])
    below = None
    for found in re.finditer(r"^#[^\r\n]*", text, re.M):
        if any(start <= found.start() < end for start, end in taken):
            continue  # it looks like a comment, inside a value of several lines
        if live := _live(found[0], name, value):
            return text[: found.start()] + indent + live + text[found.end() :]
        if below is None and found[0].strip() == f"# -- {GROUPS[group]} --":
            below = found.end()
    line = indent + config_text.line(name, value)
    if below is not None:
        return text[:below] + newline + line + text[below:]
    return text + (newline if text and not text.endswith("\n") else "") + line + newline


def _live(comment: str, name: str, value: Any) -> str | None:
    """A generated comment line as the live line of its setting; None for any other comment, such as a person's own."""
    described = re.escape(f"# {Config.model_fields[name].description}")
    line = re.fullmatch(rf"# ?({name}:.* {described}.*)", comment.rstrip())
    if line is None:
        return None
    try:
        (pair,) = _pairs(line[1]).items()
        Config().model_copy(update={name: yaml.safe_load(line[1])[name]})
    except (yaml.YAMLError, SettingsError, ValueError):
        return None
    return _replaced(line[1], *pair[1], value)


def _pairs(text: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key and value of each setting as nodes, which know where they stand in the text; of two of a name the last."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return {key.value: (key, node) for key, node in root.value} if root is not None else {}


def _replaced(text: str, key: yaml.Node, node: yaml.Node, value: Any) -> str:
    """The text with another value; a comment behind a value of one line stays in its column."""
    new, start, end = config_text.scalar(value), node.start_mark.index, _end(text, node)
    if node.start_mark.line != key.end_mark.line:  # a list below its name
        colon = text.index(":", key.end_mark.index) + 1
        between, inside = text[colon:start].rstrip(), text[start:end].splitlines(keepends=True)
        kept = "".join(line for line in inside if line.lstrip().startswith("#"))
        newline = "\r\n" if "\r\n" in text else "\n"
        return text[:colon] + f" {new}".rstrip() + between + (newline + kept.rstrip() if kept else "") + text[end:]
    if start == end:
        new = f" {new}".rstrip()
    rest = text[end:]
    if "\n" not in text[start:end] and (gap := re.match(r" +(?=#)", rest)):
        rest = " " * max(1, len(gap[0]) - len(new) + end - start) + rest[gap.end() :]
    before = text[:start] if new or (rest and not rest.startswith(("\r", "\n"))) else text[:start].rstrip(" ")
    return before + new + rest


def _end(text: str, node: yaml.Node) -> int:
    """Where a value ends: YAML's own mark of one that goes over several lines lies behind the comments below it."""
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        start = node.start_mark.index
        return int(start + len(text[start : node.end_mark.index].rstrip()))
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {config_text.scalar(value)}".removesuffix(" ") for name, value in values.items())


def _reason(error: BaseException) -> str:
    """What the operating system said, at the bottom of an error."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(getattr(cause, "strerror", None) or cause)


def _is_fleeting(path: Path, drive_mount_path: str) -> bool:
    return in_colab() and not path.absolute().is_relative_to(drive_mount_path)
