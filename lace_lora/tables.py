"""Text files that people make by hand or in a spreadsheet: their encodings, and tables with a row that names columns.

A table is separated by comma, semicolon or tab, whichever its first row shows, since Excel writes semicolons where the
comma stands in numbers. Whatever cannot be read is kept as a row that says why, so that nothing is lost in silence.
"""

import codecs
import csv
import difflib
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lace_lora.errors import SettingsError
from lace_lora.file_names import printable

_NO_SEPARATOR = "\x1f"  # the sign that is meant for it and that nobody types: cells of a table of one column


class Row(NamedTuple):
    """A row of a file before it is checked: what stands in it, where it stands, and why it cannot be read."""

    place: str
    value: Any
    fault: str = ""


class Cells(list[tuple[Any, Any]]):
    """Names and values of a row in their order; a dict would hide a name that stands there twice."""


def text_of(file: Path, largest: int, too_large: str = "split it") -> str:
    """A text file of this system or of Windows, of at most so many bytes, its line ends made one.

    too_large  what to do with a larger one

    UTF-8 with or without a byte order mark, or UTF-16 with one. Raises SettingsError that says what is wrong and where.
    """
    try:
        with open(file, "rb") as opened:
            data = opened.read(largest + 1)
    except OSError as error:
        raise SettingsError(f"Cannot read {printable(file)} ({error.strerror}). Check who may read it.") from error
    if len(data) > largest:
        raise SettingsError(f"{printable(file)} is larger than {largest / 1024**2:g} MB: {too_large}.")
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


def rows_of(text: str, columns: Sequence[str], needed: str) -> list[Row]:
    """Rows of a table by their numbers in a spreadsheet: the one with the columns' names is 1.

    columns  the names that are known; a column without a name is passed over
    needed   the one that must be there

    The value of a row is its Cells, with None for those left empty. Empty rows are left out.
    """
    separator, text = _separated(text, columns)
    header: list[str] = []
    rows: list[Row] = []
    for number, cells, fault in _table(text, separator):
        place = f"row {number}"
        if fault:
            rows.append(Row(place, None, fault))
        elif not any(cell.strip() for cell in cells):
            continue
        elif not header:
            header = [column_name(cell) for cell in cells]
            rows += [Row(place, None, fault) for fault in _header_faults(cells, columns, needed)]
            if needed not in header:
                return rows
        elif any(cell.strip() for cell in cells[len(header) :]):
            why = "has more cells than there are columns; put a text with a separator in quotes"
            rows.append(Row(place, None, why))
        else:
            named = zip(header, cells, strict=False)
            known = {name: cell if cell.strip() else None for name, cell in named if name in columns}
            rows.append(Row(place, Cells(known.items())))
    return rows


def json_rows(text: str, advice: str) -> list[Row]:
    """Rows of JSON lines by their numbers, an object's as Cells; advice: what to write in one that is not JSON."""
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        place = f"line {number}"
        if not line.strip():
            continue
        try:
            rows.append(Row(place, json.loads(line, object_pairs_hook=Cells)))
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "a number or brackets without end"
            rows.append(Row(place, None, f"is not JSON ({why}); {advice}"))
    return rows


def layout(text: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """What separates the cells of a table, and its columns in their order, for whoever adds a row to it."""
    separator, text = _separated(text, columns)
    first = next((cells for _, cells, _ in _table(text, separator) if any(cell.strip() for cell in cells)), [])
    return separator, [column_name(cell) for cell in first]


def column_name(name: Any) -> str:
    """A column's name as people also write it: "Negative prompt" is negative_prompt."""
    return re.sub(r"[\s-]+", "_", str(name).strip()).casefold()


def unknown_column(name: Any, columns: Sequence[str]) -> str:
    """That there is no such column, with the nearest one."""
    near = difflib.get_close_matches(column_name(name), columns, n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(columns)}"
    return f"there is no column {printable(str(name)[:40])!r}; {advice}"


# -- inside --


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


def _table(text: str, separator: str) -> Iterator[tuple[int, list[str], str]]:
    """Numbered rows; where quotes are wrong, that in place of the row, and the rest unread."""
    number = 0
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=separator, strict=True), 1):
            yield number, cells, ""
    except csv.Error as error:
        yield number + 1, [], f"its quotes cannot be read ({error}); the rows below were not read"


def _header_faults(header: Sequence[str], columns: Sequence[str], needed: str) -> list[str]:
    names = [column_name(cell) for cell in header]
    named = zip(header, names, strict=True)
    faults = [unknown_column(cell, columns) for cell, name in named if name and name not in columns]
    faults += [f"names {name} twice" for name in columns if names.count(name) > 1]
    return faults if needed in names else [*faults, f"there is no column {needed}; the first row names the columns"]


def _separated(text: str, columns: Sequence[str]) -> tuple[str, str]:
    """What separates the cells of a table, and the table without a line that says so."""
    told, text = _told_separator(text)
    separator = told or max((",", ";", "\t"), key=lambda sign: _names_in(text, sign, columns))
    if not told and _names_in(text, separator, columns) < 2:
        separator = _separator_unknown(text, separator)
    return separator, text


def _told_separator(text: str) -> tuple[str, str]:
    """The separator of a first line `sep=;`, which Excel understands and hides, and the text below."""
    told = re.match(r'"?sep=([,;\t|])"?\s*?\n', text, flags=re.I)
    return (told[1], text[told.end() :]) if told else ("", text)


def _names_in(text: str, separator: str, columns: Collection[str]) -> int:
    """How many columns the first row names when it is separated so."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return len({column_name(cell.strip(' "')) for cell in first.split(separator)} & {*columns})


def _separator_unknown(text: str, likely: str) -> str:
    """What separates a table that names one column or none: nothing, if no separator stands in its first row."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return next((sign for sign in (likely, ",", ";", "\t") if sign in first), _NO_SEPARATOR)
