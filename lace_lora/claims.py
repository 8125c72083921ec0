"""Patent claims in a file, row by row: what stands in each, and what is wrong with those that cannot be used.

.csv    a table (.tsv too), as tables reads it: the first row names the columns
.jsonl  a line a row: {"claim_id": "1", "claim_text": "…", "dependent_on": ["1"], …}
.xml    a patent as the USPTO publishes it (see patent_xml)

Columns: claim_id and claim_text; and where they are known dependent_on (the claims that it refers to), category (what
the drawing shows), figure_ids, reference_path (a drawing, by its place beside the file), patent_id, title and cpc.
Lists are written "1, 2A". A row with a fault is set aside with its place, its field and a reason; all others are read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lace_lora import claim_language, patent_xml, prompt_files, tables
from lace_lora.errors import SettingsError
from lace_lora.file_names import has_broken_unicode, printable
from lace_lora.patent_recipe import Recipe
from lace_lora.tables import Cells, Row, column_name, unknown_column

LARGEST = 256 * 1024**2  # bytes
LONGEST_NAME = 200  # characters of an id, a category, a title
TABLES = (".csv", ".tsv")
KINDS = (*TABLES, ".jsonl", ".xml")
Key = tuple[str, str]  # patent_id ("" where there is none) and claim_id


@dataclass(frozen=True)
class Fault:
    """Why a row is set aside: where it stands, which column is wrong, a word for the kind, and the reason."""

    place: str
    field: str
    kind: str
    said: str

    def __str__(self) -> str:
        return f"{self.place}, {self.field}: {self.said}" if self.field else f"{self.place}: {self.said}"


class ClaimRow(BaseModel, frozen=True, extra="ignore"):
    """One row with every column checked by itself; how rows fit together is claim_links' business.

    Validation needs a context: `recipe` (a Recipe) and `folder`, the one in which the row's file lies.
    reference_path is from the root of the disk on; lists keep their order.
    """

    claim_id: str
    claim_text: str
    dependent_on: tuple[str, ...] = ()
    category: str = ""
    figure_ids: tuple[str, ...] = ()
    reference_path: str | None = None
    patent_id: str = ""
    title: str = ""
    cpc: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What tells a claim from all others."""
        return self.patent_id, self.claim_id

    @field_validator("claim_id", mode="before")
    @classmethod
    def _claim_id(cls, value: Any) -> str:
        name = _name(value, "claim_id")
        return name if name else _wrong("claim_id missing", "is empty; give each claim a name of its own")

    @field_validator("patent_id", "category", "title", mode="before")
    @classmethod
    def _names(cls, value: Any, info: ValidationInfo) -> str:
        return _name(value, str(info.field_name))

    @field_validator("claim_text", mode="before")
    @classmethod
    def _claim_text(cls, value: Any, info: ValidationInfo) -> str:
        recipe: Recipe = _context(info)["recipe"]
        if value is not None and not isinstance(value, str):
            _wrong("not a text", f"is {json.dumps(value)[:40]}, not a text")
        if has_broken_unicode(value or ""):
            _wrong("broken text", "holds half a character (broken Unicode); copy the claim again")
        text = prompt_files.one_line(value or "")
        if not text:
            _wrong("claim_text empty", "is empty; paste the claim's text")
        if len(text) > recipe.longest_claim:
            _wrong("too long", f"has {len(text):,} characters; {recipe.longest_claim:,} are the most: is it one claim?")
        spoken, certainty = claim_language.language_of(text, recipe.least_letters)
        if spoken not in (recipe.language, claim_language.UNKNOWN) and certainty >= recipe.least_certainty:
            _wrong("language", f"is in another language ({spoken}, not {recipe.language}); translate it")
        if not claim_language.is_claim(text, recipe.claim_words):
            _wrong("no claim", 'has none of the words of a claim, such as "comprising" or "wherein"')
        return text

    @field_validator("dependent_on", mode="before")
    @classmethod
    def _dependent_on(cls, value: Any) -> tuple[str, ...]:
        return tuple(re.sub(r"^claims?\s+(?=\S)", "", one, flags=re.I) for one in _members(value))

    @field_validator("figure_ids", mode="before")
    @classmethod
    def _figure_ids(cls, value: Any) -> tuple[str, ...]:
        found: list[str] = []
        for one in _members(value):
            span = re.fullmatch(r"(\d{1,3})\s*[-–]\s*(\d{1,3})", one)
            named = claim_language.figures_in(f"Fig. {one}") if span else (claim_language.figure_id(one),)
            if None in named:
                _wrong("figure_ids", f"{printable(one[:40])!r} is no figure; write numbers such as 3 or 2A")
            found += [name for name in named if name]
        return tuple(dict.fromkeys(found))

    @field_validator("cpc", mode="before")
    @classmethod
    def _cpc(cls, value: Any) -> tuple[str, ...]:
        found: list[str] = []
        for one in _members(value):
            named = claim_language.cpc_in(one)
            if len(named) != 1:
                _wrong("cpc", f"{printable(one[:40])!r} is no class of the CPC; write it as G06F 17/30")
            found += named
        return tuple(dict.fromkeys(found))

    @field_validator("reference_path", mode="before")
    @classmethod
    def _reference_path(cls, value: Any, info: ValidationInfo) -> str | None:
        if value is not None and not isinstance(value, str):
            _wrong("not a text", f"is {json.dumps(value)[:40]}, not a text")
        found, fault = prompt_files.reference_of(_context(info)["folder"], value or "", "the claims file")
        if fault:
            _wrong("reference_path", fault.removeprefix("reference_path "))
        return found


COLUMNS = tuple(ClaimRow.model_fields)


@dataclass(frozen=True)
class Rows:
    """What was read of claims files.

    rows    that are right by themselves, with the place of each
    faults  of the others, in the files' order
    known   keys and places of all rows that have a claim_id, also of those with a fault, in their order
    notes   what was passed over, and which columns are not known
    places  of all rows in their order, right or wrong
    """

    rows: tuple[tuple[str, ClaimRow], ...] = ()
    faults: tuple[Fault, ...] = ()
    known: tuple[tuple[Key, str], ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    places: tuple[str, ...] = ()


def read(paths: Sequence[str | Path], recipe: Recipe) -> Rows:
    """The rows of one or more files of claims, each checked by itself.

    Raises SettingsError where a file is missing, is of another kind or cannot be read as a whole; a bad row raises
    nothing.
    """
    rows: list[tuple[str, ClaimRow]] = []
    faults: list[Fault] = []
    known: list[tuple[Key, str]] = []
    notes: list[str] = []
    places: list[str] = []
    for path in paths:
        file = Path(path).expanduser()
        found, said = _rows_of(file)
        notes += said
        for row in found:
            place = f"{printable(file.name)}, {row.place}" if len(paths) > 1 else row.place
            places.append(place)
            one, wrong, key = checked(row, place, recipe, file.absolute().parent)
            faults += wrong
            rows += [(place, one)] if one else []
            known += [(key, place)] if key else []
    return Rows(tuple(rows), tuple(faults), tuple(known), tuple(notes), tuple(places))


def checked(row: Row, place: str, recipe: Recipe, folder: Path) -> tuple[ClaimRow | None, list[Fault], Key | None]:
    """A row of a file as a claim, or all that is wrong with it; and its key, where it has one."""
    if row.fault:
        return None, [Fault(place, "", "unreadable", row.fault)], None
    if not isinstance(row.value, Cells):
        return None, [Fault(place, "", "unreadable", 'is no row with columns; write {"claim_id": "1", …}')], None
    values: dict[str, Any] = {}
    twice = [Fault(place, name, "named twice", "is named twice") for name in _twice(row.value)]
    for written, cell in row.value:
        values[column_name(written)] = cell
    values = {name: values.get(name) for name in COLUMNS}
    key = _key(values)
    try:
        one = ClaimRow.model_validate(values, context={"recipe": recipe, "folder": folder})
    except ValidationError as error:
        return None, twice + [_fault(place, dict(wrong)) for wrong in error.errors()], key
    return (None, twice, key) if twice else (one, [], key)


# -- inside --


def _rows_of(file: Path) -> tuple[list[Row], list[str]]:
    """The rows of a file before they are checked, and notes about its columns."""
    kind = file.suffix.casefold()
    if kind not in KINDS:
        raise SettingsError(f"{printable(file)} is no claims file: its name must end in {', '.join(KINDS)}.")
    if not file.is_file():
        raise SettingsError(f"There is no claims file {printable(file)}. Give the place of a file with claims.")
    if kind == ".xml":
        return patent_xml.rows_of(file)
    text = tables.text_of(file, LARGEST)
    if kind not in TABLES:
        rows = tables.json_rows(text, 'write {"claim_id": "1", "claim_text": "…"}')
        names = [name for row in rows if isinstance(row.value, Cells) for name, _ in row.value]
        return rows, _unknown(file, dict.fromkeys(names))
    header = [name for name in tables.layout(text, COLUMNS)[1] if name]
    others = [name for name in dict.fromkeys(header) if name not in COLUMNS]
    return tables.rows_of(text, [*COLUMNS, *others], "claim_text"), _unknown(file, others)


def _unknown(file: Path, names: Iterable[Any]) -> list[str]:
    strange = [name for name in names if column_name(name) not in COLUMNS]
    return [f"{printable(file.name)}: {unknown_column(name, COLUMNS)}; it is passed over" for name in strange[:20]]


def _key(values: Mapping[str, Any]) -> Key | None:
    try:
        name, patent = _name(values["claim_id"], "claim_id"), _name(values["patent_id"], "patent_id")
    except PydanticCustomError:
        return None
    return (patent, name) if name else None


def _twice(cells: Cells) -> list[str]:
    names = [column_name(name) for name, _ in cells]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _fault(place: str, wrong: Mapping[str, Any]) -> Fault:
    name = str(wrong["loc"][0]) if wrong["loc"] else ""
    return Fault(place, name, str(wrong["type"]), str(wrong["msg"]))


def _context(info: ValidationInfo) -> Mapping[str, Any]:
    if not isinstance(info.context, Mapping):
        raise TypeError("validate a ClaimRow with context={'recipe': …, 'folder': …}.")
    return info.context


def _wrong(kind: str, said: str) -> Any:
    raise PydanticCustomError(kind, "{said}", {"said": said})


def _name(value: Any, column: str) -> str:
    """A short text on one line; a table's 3.0 is 3, as pandas writes whole numbers beside empty cells."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _wrong("not a text", f"is {json.dumps(value)[:40]}, not a text")
    text = prompt_files.one_line(str(value))
    if has_broken_unicode(text):
        _wrong("broken text", "holds half a character (broken Unicode)")
    if len(text) > LONGEST_NAME:
        _wrong("too long", f"has {len(text):,} characters; {LONGEST_NAME} are the most of {column}")
    return re.sub(r"^(\d+)\.0$", r"\1", text)


def _members(value: Any) -> list[str]:
    """The members of a list, or of a text with commas, semicolons or bars between them."""
    several = value if isinstance(value, list | tuple) and not isinstance(value, Cells) else [value]
    parts = [part for one in several for part in re.split(r"[,;|]|\s+and\s+", _name(one, "a list"))]
    return [part.strip() for part in parts if part.strip()]
