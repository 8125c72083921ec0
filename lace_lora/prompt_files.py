"""Prompts in a file: a list of texts or a table, each row with what it asks for beside the prompt.

.txt    one prompt a line; a line of `#` and a space is a comment. A table out of Excel ("Unicode text") is read as one
.csv    a table (.tsv too): the first row names the columns; separated by comma, semicolon or tab, whichever that row
        shows, since Excel writes semicolons where the comma stands in numbers
.jsonl  a line a row: "a prompt", or {"prompt": …, "count": …}
.yaml   a list (.yml too): - a prompt, or - prompt: … with the other columns below

Columns: prompt, and where they are wanted count, seed, negative_prompt, width, height. What is left empty is not asked
for: the settings decide. Texts are UTF-8, with or without a byte order mark, or UTF-16 with one.
Two more say what becomes of the designs afterwards: subset, a word by which they are grouped when they are evaluated,
and reference_path, a picture that they are to be like, by its place beside the prompts file.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from lace_lora import tables
from lace_lora.config import Config, bounds_of
from lace_lora.errors import SettingsError
from lace_lora.file_names import has_broken_unicode, on_disk, printable
from lace_lora.image_files import read_picture
from lace_lora.tables import Cells, Row, column_name, unknown_column

LARGEST = 16 * 1024**2  # bytes; more is no list of prompts
LARGEST_YAML = 1024**2  # PyYAML reads about 100 kB a second
LONGEST_SUBSET = 100  # characters
LONGEST_PROMPT = 10_000  # characters; the models read 75 tokens, some 400 characters
SEEDS = 2**32  # torch's CPU generator tells only so many apart; drawing goes on beyond the setting's bound
_NAMED_AT_MOST = 50  # faults; more cannot be read on a screen
_YAML = (".yaml", ".yml")
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Asked:
    """What one row asks for. None where it says nothing: then the settings decide.

    count         pictures of this row; None shares what the others leave of num_images
    seed          of its first picture, the next ones follow on
    width, height in px
    subset        a word by which designs are grouped
    reference_path  a picture that the designs are to be like; `read` gives it from the root of the disk on
    """

    prompt: str
    count: int | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    subset: str | None = None
    reference_path: str | None = None


COLUMNS = tuple(field.name for field in fields(Asked))
_TEXTS = ("prompt", "negative_prompt", "subset", "reference_path")


def read(path: str | Path) -> tuple[Asked, ...]:
    """The rows of a prompts file, in its order, each prompt on one line.

    Raises one SettingsError that names all wrong rows, each with what is wrong, or says why the file cannot be read.
    """
    file = Path(path).expanduser()
    kind = file.suffix.casefold()
    if kind not in _READERS:
        raise SettingsError(
            f"{printable(file)} is no prompts file: its name must end in {', '.join(_READERS)}. "
            "Save it as .txt with one prompt a line, or as .csv with a column prompt."
        )
    if not file.is_file():
        raise SettingsError(f"There is no prompts file {printable(file)}. Write one, or leave prompts_file empty.")
    is_yaml = kind in _YAML
    advice = "split it, or write it as .jsonl" if is_yaml else "split it"
    text = tables.text_of(file, LARGEST_YAML if is_yaml else LARGEST, advice)
    try:
        rows = _READERS[kind](text)
    except _Unreadable as error:
        raise SettingsError(f"{printable(file)} {error}") from error
    asked: list[Asked] = []
    faults: list[str] = []
    for row in rows:
        one, wrong = (None, [row.fault]) if row.fault else _checked(row.value, file.absolute().parent)
        faults += [f"{row.place}: {fault}" for fault in wrong]
        if one is not None:
            asked.append(one)
    if faults:
        raise SettingsError(_complaint(file, faults, kind))
    if not asked:
        raise SettingsError(f"{printable(file)} holds no prompt. Write one a line, or leave prompts_file empty.")
    if len(asked) > (most := most_pictures()):
        raise SettingsError(f"{printable(file)} holds {len(asked):,} prompts; at most {most:,} can be drawn. Split it.")
    return tuple(asked)


def most_pictures() -> int:
    """The most pictures that a sheet can have, and so the most rows."""
    return int(bounds_of(Config.model_fields["num_images"])["le"])


def one_line(text: str) -> str:
    """Without line breaks, tabs, control signs and double spaces, which tokenizers ignore and lists cannot hold."""
    signs = (" " if unicodedata.category(sign) == "Cc" else sign for sign in text if sign != "\ufeff")
    return " ".join("".join(signs).split())


def text_fault(text: str) -> str:
    """Why a text cannot be drawn from, or nothing: the end of a sentence that its name begins."""
    if not one_line(text):
        return "is empty"
    if len(text) > LONGEST_PROMPT:
        return f"has {len(text):,} characters; {LONGEST_PROMPT:,} are the most, and the models read 75 tokens"
    return "holds half a character (broken Unicode)" if has_broken_unicode(text) else ""


def reference_of(folder: Path, written: str, beside: str = "the prompts file") -> tuple[str | None, str]:
    """The picture that a row names, from the root of the disk on, and what is wrong with it; nothing for neither.

    folder  in which it is looked for, where the name is relative; spelled as on this system or as on Windows
    beside  what lies in that folder, for the sentence
    """
    text = unicodedata.normalize("NFC", written.strip())
    if not text:
        return None, ""
    home = str(Path.home()) + text[1:] if text.startswith(("~/", "~\\")) else text
    found = on_disk(folder, home) or on_disk(folder, home.replace("\\", "/"))
    if found is None:
        near = "" if Path(home).is_absolute() else f"; it is looked for beside {beside}, in {printable(folder)}"
        return None, f"reference_path {printable(text)!r} is not there{near}"
    facts = found.stat()
    if fault := _picture_fault(found, facts.st_size, facts.st_mtime_ns):
        return None, f"reference_path {printable(text)!r} is no picture that can be read: {fault}"
    return str(found), ""


# -- rows --


class _Unreadable(Exception):
    """Why nothing of a file can be read, as the end of a sentence that its name begins."""


def _checked(value: Any, folder: Path) -> tuple[Asked | None, list[str]]:
    """A row of a file in a folder as what it asks for, or all that is wrong with it."""
    if isinstance(value, str) or value is None:
        value = Cells([("prompt", value)])
    if not isinstance(value, Cells):
        return None, [f"is {_kind(value)}, not a prompt or a row with columns"]
    found: dict[str, Any] = {}
    faults: list[str] = []
    for written, cell in value:
        name = column_name(written)
        if name not in COLUMNS:
            faults.append(unknown_column(written, COLUMNS))
        elif name in found:
            faults.append(f"names {name} twice")
        found[name] = cell
    whole = {name: _whole(name, found.get(name)) for name in ("count", "seed", "width", "height")}
    texts = {name: _text(name, found.get(name)) for name in _TEXTS}
    faults += [fault for _, fault in (*whole.values(), *texts.values()) if fault]
    prompt, unwanted = texts["prompt"][0], texts["negative_prompt"][0]
    if (prompt is not None or not faults) and (fault := text_fault(prompt or "")):
        faults.append(f"prompt {fault}")  # not where it is missing because its column is misspelt
    if unwanted and unwanted.strip() and (fault := text_fault(unwanted)):
        faults.append(f"negative_prompt {fault}")
    subset = one_line(texts["subset"][0] or "") or None
    if subset and (fault := _subset_fault(subset)):
        faults.append(f"subset {fault}")
    reference, fault = reference_of(folder, texts["reference_path"][0] or "")
    faults += [fault] if fault else []
    if faults or prompt is None:
        return None, faults
    unwanted = None if unwanted is None else one_line(unwanted)
    count, seed, width, height = (number for number, _ in whole.values())
    return Asked(one_line(prompt), count, seed, unwanted, width, height, subset, reference), []


def _subset_fault(subset: str) -> str:
    if len(subset) > LONGEST_SUBSET:
        return f"has {len(subset):,} characters; {LONGEST_SUBSET} are the most, since it is a heading"
    return text_fault(subset)


@lru_cache(maxsize=4096)
def _picture_fault(path: Path, size: int, changed_ns: int) -> str:
    """Why a picture cannot be opened, or nothing; many rows may name one, so it is opened once."""
    return read_picture(path, enough_px=64).fault


def _text(name: str, cell: Any) -> tuple[str | None, str]:
    """A cell as a text, None where it is not given, and what is wrong with it."""
    if cell is None or isinstance(cell, str):
        return cell, ""
    return None, f"{name} is {_kind(cell)}, not a text; put it in quotes"


def _whole(name: str, cell: Any) -> tuple[int | None, str]:
    """A cell as a whole number inside its bounds, None where it is not given, and what is wrong with it.

    A table's 3.0 is taken for 3, as pandas writes it, and 1.000 for nothing: it is a thousand in half of Europe.
    """
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None, ""
    number: int | None = None
    if isinstance(cell, str) and (digits := re.fullmatch(r"([+-]?[0-9]{1,18})(\.0)?", cell.strip())):
        number = int(digits[1])
    elif type(cell) is int or (isinstance(cell, float) and cell.is_integer()):  # and not true or false
        number = int(cell)
    if number is None:
        shown = repr(cell[:30]) if isinstance(cell, str) else _kind(cell)
        return None, f"{name} is {shown}, not a whole number"
    low, high, step = _bounds(name)
    unit = " px" if step > 1 else ""
    if not low <= number <= high:
        return None, f"{name} is {_shortened(number)}{unit} but must be {low} to {high}"
    if number % step:
        below = number // step * step
        return None, f"{name} is {number}{unit} but must be a multiple of {step}; use {below} or {below + step}"
    return number, ""


@cache
def _bounds(name: str) -> tuple[int, int, int]:
    """Lowest, highest and step of a column: those of the setting that it stands in for."""
    if name == "seed":
        return 0, SEEDS - 1, 1
    bounds = bounds_of(Config.model_fields["num_images" if name == "count" else name])
    return int(bounds["ge"]), int(bounds["le"]), int(bounds.get("multiple_of", 1))


def _shortened(number: int) -> str:
    return str(number) if abs(number) < 10**18 else "a number of more than 18 digits"


def _kind(value: Any) -> str:
    """What kind of thing stands where another should, in words."""
    if isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 10**18):
        return json.dumps(value)
    names = {Cells: "a table in a table", list: "a list", int: "a very large number", float: "no usable number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _complaint(file: Path, faults: Sequence[str], kind: str) -> str:
    """All faults of a file, a line each."""
    more = [f"and {len(faults) - _NAMED_AT_MOST} more"] if len(faults) > _NAMED_AT_MOST else []
    quotes = " A prompt that begins with { or holds a colon and a space must stand in quotes." if kind in _YAML else ""
    lines = "\n".join(f"  {fault}" for fault in [*faults[:_NAMED_AT_MOST], *more])
    return f"{printable(file)} cannot be drawn from:\n{lines}\nCorrect this and run again.{quotes}"


# -- files --


def _from_lines(text: str) -> list[Row]:
    lines = text.split("\n")
    head = next((line for line in lines if line.strip()), "")
    if "\t" in head and {column_name(cell) for cell in head.split("\t")} - {""} <= {*COLUMNS}:
        return _from_table(text)
    rows = [Row(f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return [row for row in rows if not re.match(r"\s*#(\s|$)", row.value)]


def _from_table(text: str) -> list[Row]:
    return tables.rows_of(text, COLUMNS, "prompt")


def _from_json_lines(text: str) -> list[Row]:
    return tables.json_rows(text, 'write "a prompt" or {"prompt": "…", "count": 2}')


class _Loader(yaml.SafeLoader):
    """YAML whose plain words stay texts (no, 2024, 12:30 are prompts too) and whose rows keep a name given twice."""

    yaml_implicit_resolvers = {
        sign: [(tag, form) for tag, form in known if tag == _NULL]
        for sign, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: Cells(loader.construct_pairs(node, deep=True)))


def _from_yaml(text: str) -> list[Row]:
    try:
        rows = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise _Unreadable(
            f"is not YAML{where}: {error.problem}. Begin each row with `- `, and put a prompt in quotes "
            "that begins with { or holds a colon and a space."
        ) from error
    # PyYAML's own constructors fail in every way on wrong values behind a tag such as !!int.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Unreadable(
            "is not YAML that can be read here. Write a list with one prompt behind each `- `."
        ) from error
    if rows is None:
        return []
    if not isinstance(rows, list) or isinstance(rows, Cells):
        kind = "names and values" if isinstance(rows, Cells) else _kind(rows)
        raise _Unreadable(f"holds {kind}, not a list. Begin each row with `- `: - a prompt, or - prompt: …")
    return [Row(f"row {number}", value) for number, value in enumerate(rows, 1)]


_READERS: dict[str, Callable[[str], list[Row]]] = {
    ".txt": _from_lines,
    ".csv": _from_table,
    ".tsv": _from_table,
    ".jsonl": _from_json_lines,
} | dict.fromkeys(_YAML, _from_yaml)
