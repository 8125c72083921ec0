"""Prompts in a file: a list of texts or a table, each row with what it asks for beside the prompt.

.txt    one prompt a line; a line of `#` and a space is a comment. A table out of Excel ("Unicode text") is read as one
.csv    a table (.tsv too): the first row names the columns; separated by comma, semicolon or tab, whichever that row
        shows, since Excel writes semicolons where the comma stands in numbers
.jsonl  a line a row: "a prompt", or {"prompt": …, "count": …}
.yaml   a list (.yml too): - a prompt, or - prompt: … with the other columns below

Columns: prompt, and where they are wanted count, seed, negative_prompt, width, height. What is left empty is not asked
for: the settings decide. Texts are UTF-8, with or without a byte order mark, or UTF-16 with one.
"""

import codecs
import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lace_lora.config import Config, bounds_of
from lace_lora.errors import SettingsError
from lace_lora.file_names import has_broken_unicode, printable

LARGEST = 16 * 1024**2  # bytes; more is no list of prompts
LARGEST_YAML = 1024**2  # PyYAML reads about 100 kB a second
LONGEST_PROMPT = 10_000  # characters; the models read 75 tokens, some 400 characters
SEEDS = 2**32  # torch's CPU generator tells only so many apart; drawing goes on beyond the setting's bound
_NAMED_AT_MOST = 50  # faults; more cannot be read on a screen
_NO_SEPARATOR = "\x1f"  # the sign that is meant for it and that nobody types: cells of a table of one column
_YAML = (".yaml", ".yml")
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Asked:
    """What one row asks for. None where it says nothing: then the settings decide.

    count         pictures of this row; None shares what the others leave of num_images
    seed          of its first picture, the next ones follow on
    width, height in px
    """

    prompt: str
    count: int | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None


COLUMNS = tuple(field.name for field in fields(Asked))


class _Row(NamedTuple):
    """A row of a file before it is checked: a prompt alone or cells, where it stands, and why it cannot be read."""

    place: str
    value: Any
    fault: str = ""


class _Cells(list[tuple[Any, Any]]):
    """Names and values of a row in their order; a dict would hide a name that stands there twice."""


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
    text = _text_of(file, LARGEST_YAML if kind in _YAML else LARGEST)
    try:
        rows = _READERS[kind](text)
    except _Unreadable as error:
        raise SettingsError(f"{printable(file)} {error}") from error
    asked: list[Asked] = []
    faults: list[str] = []
    for row in rows:
        one, wrong = (None, [row.fault]) if row.fault else _checked(row.value)
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


# -- rows --


class _Unreadable(Exception):
    """Why nothing of a file can be read, as the end of a sentence that its name begins."""


def _checked(value: Any) -> tuple[Asked | None, list[str]]:
    """A row as what it asks for, or all that is wrong with it."""
    if isinstance(value, str) or value is None:
        value = _Cells([("prompt", value)])
    if not isinstance(value, _Cells):
        return None, [f"is {_kind(value)}, not a prompt or a row with columns"]
    found: dict[str, Any] = {}
    faults: list[str] = []
    for written, cell in value:
        name = _column(written)
        if name not in COLUMNS:
            faults.append(_unknown(written))
        elif name in found:
            faults.append(f"names {name} twice")
        found[name] = cell
    whole = {name: _whole(name, found.get(name)) for name in ("count", "seed", "width", "height")}
    texts = {name: _text(name, found.get(name)) for name in ("prompt", "negative_prompt")}
    faults += [fault for _, fault in (*whole.values(), *texts.values()) if fault]
    prompt, unwanted = texts["prompt"][0], texts["negative_prompt"][0]
    if (prompt is not None or not faults) and (fault := text_fault(prompt or "")):
        faults.append(f"prompt {fault}")  # not where it is missing because its column is misspelt
    if unwanted and unwanted.strip() and (fault := text_fault(unwanted)):
        faults.append(f"negative_prompt {fault}")
    if faults or prompt is None:
        return None, faults
    numbers = {name: number for name, (number, _) in whole.items()}
    unwanted = None if unwanted is None else one_line(unwanted)
    return Asked(prompt=one_line(prompt), negative_prompt=unwanted, **numbers), []


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
    names = {_Cells: "a table in a table", list: "a list", int: "a very large number", float: "no usable number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _column(name: Any) -> str:
    """A column's name as people also write it: "Negative prompt" is negative_prompt."""
    return re.sub(r"[\s-]+", "_", str(name).strip()).casefold()


def _unknown(name: Any) -> str:
    near = difflib.get_close_matches(_column(name), COLUMNS, n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(COLUMNS)}"
    return f"there is no column {printable(str(name)[:40])!r}; {advice}"


def _complaint(file: Path, faults: Sequence[str], kind: str) -> str:
    """All faults of a file, a line each."""
    more = [f"and {len(faults) - _NAMED_AT_MOST} more"] if len(faults) > _NAMED_AT_MOST else []
    quotes = " A prompt that begins with { or holds a colon and a space must stand in quotes." if kind in _YAML else ""
    lines = "\n".join(f"  {fault}" for fault in [*faults[:_NAMED_AT_MOST], *more])
    return f"{printable(file)} cannot be drawn from:\n{lines}\nCorrect this and run again.{quotes}"


# -- files --


def _text_of(file: Path, largest: int) -> str:
    """A text file of this system or of Windows, of at most so many bytes, its line ends made one."""
    if not file.is_file():
        raise SettingsError(f"There is no prompts file {printable(file)}. Write one, or leave prompts_file empty.")
    try:
        with open(file, "rb") as opened:
            data = opened.read(largest + 1)
    except OSError as error:
        raise SettingsError(f"Cannot read {printable(file)} ({error.strerror}). Check who may read it.") from error
    if len(data) > largest:
        advice = "split it, or write it as .jsonl" if largest < LARGEST else "split it"
        raise SettingsError(f"{printable(file)} is larger than {largest / 1024**2:g} MB: {advice}.")
    is_marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    how = "In Excel choose the file type CSV UTF-8, elsewhere save it as UTF-8."
    try:
        text = data.decode("utf-16" if is_marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        where = "" if is_marked else f" in {_numbered(_lines_not_utf8(data))}"
        raise SettingsError(f"{printable(file)} is not UTF-8 text{where}. {how}") from error
    if "\0" in text:
        raise SettingsError(f"{printable(file)} holds zero bytes, so it is no text, or in another encoding. {how}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines_not_utf8(data: bytes) -> list[int]:
    """The numbers of the lines that are not UTF-8."""
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            found.append(number)
    return found


def _numbered(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:20])) + (f" and {len(lines) - 20} more" if len(lines) > 20 else "")
    return f"line{'s' * (len(lines) > 1)} {shown}"


def _from_lines(text: str) -> list[_Row]:
    lines = text.split("\n")
    head = next((line for line in lines if line.strip()), "")
    if "\t" in head and {_column(cell) for cell in head.split("\t")} - {""} <= {*COLUMNS}:
        return _from_table(text)
    rows = [_Row(f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return [row for row in rows if not re.match(r"\s*#(\s|$)", row.value)]


def _from_table(text: str) -> list[_Row]:
    """Rows of a table by their numbers in a spreadsheet: the one with the columns' names is 1."""
    told, text = _told_separator(text)
    separator = told or max((",", ";", "\t"), key=lambda sign: _names_in(text, sign))
    if not told and _names_in(text, separator) < 2:
        separator = _separator_unknown(text, separator)
    header: list[str] = []
    rows: list[_Row] = []
    for number, cells, fault in _table(text, separator):
        place = f"row {number}"
        if fault:
            rows.append(_Row(place, None, fault))
        elif not any(cell.strip() for cell in cells):
            continue
        elif not header:
            header = [_column(cell) for cell in cells]
            rows += [_Row(place, None, fault) for fault in _header_faults(cells)]
            if "prompt" not in header:
                return rows
        elif any(cell.strip() for cell in cells[len(header) :]):
            why = "has more cells than there are columns; put a text with a separator in quotes"
            rows.append(_Row(place, None, why))
        else:
            named = zip(header, cells, strict=False)
            known = {name: cell if cell.strip() else None for name, cell in named if name in COLUMNS}
            rows.append(_Row(place, _Cells(known.items())))
    return rows


def _table(text: str, separator: str) -> Iterator[tuple[int, list[str], str]]:
    """Numbered rows; where quotes are wrong, that in place of the row, and the rest unread."""
    number = 0
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=separator, strict=True), 1):
            yield number, cells, ""
    except csv.Error as error:
        yield number + 1, [], f"its quotes cannot be read ({error}); the rows below were not read"


def _header_faults(header: Sequence[str]) -> list[str]:
    names = [_column(cell) for cell in header]
    faults = [_unknown(cell) for cell, name in zip(header, names, strict=True) if name and name not in COLUMNS]
    faults += [f"names {name} twice" for name in COLUMNS if names.count(name) > 1]
    return faults if "prompt" in names else [*faults, "there is no column prompt; the first row names the columns"]


def _told_separator(text: str) -> tuple[str, str]:
    """The separator of a first line `sep=;`, which Excel understands and hides, and the text below."""
    told = re.match(r'"?sep=([,;\t|])"?\s*?\n', text, flags=re.I)
    return (told[1], text[told.end() :]) if told else ("", text)


def _names_in(text: str, separator: str) -> int:
    """How many columns the first row names when it is separated so."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return len({_column(cell.strip(' "')) for cell in first.split(separator)} & {*COLUMNS})


def _separator_unknown(text: str, likely: str) -> str:
    """What separates a table that names one column or none: nothing, if no separator stands in its first row."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return next((sign for sign in (likely, ",", ";", "\t") if sign in first), _NO_SEPARATOR)


def _from_json_lines(text: str) -> list[_Row]:
    rows: list[_Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        place = f"line {number}"
        if not line.strip():
            continue
        try:
            rows.append(_Row(place, json.loads(line, object_pairs_hook=_Cells)))
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "a number or brackets without end"
            advice = 'write "a prompt" or {"prompt": "…", "count": 2}'
            rows.append(_Row(place, None, f"is not JSON ({why}); {advice}"))
    return rows


class _Loader(yaml.SafeLoader):
    """YAML whose plain words stay texts (no, 2024, 12:30 are prompts too) and whose rows keep a name given twice."""

    yaml_implicit_resolvers = {
        sign: [(tag, form) for tag, form in known if tag == _NULL]
        for sign, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: _Cells(loader.construct_pairs(node, deep=True)))


def _from_yaml(text: str) -> list[_Row]:
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
    if not isinstance(rows, list) or isinstance(rows, _Cells):
        kind = "names and values" if isinstance(rows, _Cells) else _kind(rows)
        raise _Unreadable(f"holds {kind}, not a list. Begin each row with `- `: - a prompt, or - prompt: …")
    return [_Row(f"row {number}", value) for number, value in enumerate(rows, 1)]


_READERS: dict[str, Callable[[str], list[_Row]]] = {
    ".txt": _from_lines,
    ".csv": _from_table,
    ".tsv": _from_table,
    ".jsonl": _from_json_lines,
} | dict.fromkeys(_YAML, _from_yaml)
