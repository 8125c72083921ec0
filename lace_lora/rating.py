"""What experts say of single designs: clarity and compliance from 1 to 5, in a table that opens in Excel.

A rating is a row, added at once; of several by one person of one design the last counts. The table may be changed by
hand: rows that cannot be understood are named and stay where they are, since nothing here writes the file anew.
"""

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from statistics import mean
from typing import Any

from lace_lora import checkpoint, places, tables
from lace_lora.counting import counted
from lace_lora.errors import SettingsError
from lace_lora.file_names import printable
from lace_lora.prompt_files import one_line
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Score

LOWEST, HIGHEST = 1, 5
ASKED = {
    "clarity": "Is everything in it clear to see?",
    "compliance": "Does it show what was asked for?",
}
LONGEST_NAME = 100  # characters
_LARGEST = 16 * 1024**2  # bytes
_NAMED_AT_MOST = 20  # faults
_DIGITS = 8  # of an adapter's digest, where it has no name


@dataclass(frozen=True)
class Rating:
    """What one person said of one design; None where they said nothing of it.

    sheet, design  the sheet's name and the design's number in it
    adapter        digest of the adapter that drew it, as its row has it
    rater          a name, or empty
    at             when, UTC
    """

    sheet: str
    design: int
    adapter: str
    clarity: int | None
    compliance: int | None
    rater: str = ""
    at: str = ""

    @property
    def of(self) -> tuple[str, str, int]:
        """Whose rating of which design it is: another one with the same takes its place."""
        return self.rater.casefold(), self.sheet, self.design


COLUMNS = tuple(field.name for field in fields(Rating))


@dataclass(frozen=True)
class Ratings:
    """The ratings that count, in the order of the table, and what is wrong with rows that cannot be understood."""

    rows: tuple[Rating, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Means:
    """The means of the ratings of one adapter's designs; None where nobody rated that."""

    adapter: str
    clarity: float | None
    compliance: float | None
    ratings: int
    designs: int
    raters: int


def read(run: RunFolder) -> Ratings:
    """The table of a run; no file holds no ratings.

    Raises SettingsError where it is no text, or names no columns; RunError where it cannot be read from the disk.
    """
    found: dict[tuple[str, str, int], Rating] = {}
    faults = []
    for row in _rows(_text(run)):
        rating, wrong = (None, [row.fault]) if row.fault else _checked(dict(row.value))
        faults += [f"{row.place}: {fault}" for fault in wrong]
        if rating is not None:
            found.pop(rating.of, None)
            found[rating.of] = rating
    return Ratings(tuple(found.values()), tuple(faults))


def add(run: RunFolder, rating: Rating) -> None:
    """Add a rating to the table, written as the table is: its separator, encoding and order of columns.

    Raises SettingsError for a rating that is none, or a table without a column that is needed; RunError or MachineError
    where it cannot be written, for instance while Excel on Windows has it open, or the run is gone with its Drive.
    """
    _, wrong = _checked(dict(zip(COLUMNS, astuple(rating), strict=True)))
    if wrong:
        raise SettingsError(f"This is no rating: {'; '.join(wrong)}.")
    places.check_there(run.root)
    path, text = run.ratings, _text(run)
    if broken := next((row for row in _rows(text) if row.fault.startswith("its quotes")), None):
        raise SettingsError(
            f"{printable(path)}, {broken.place}: {broken.fault}. Mend it, or move the file away to begin a new one; "
            "a rating added below would not be read either."
        )
    separator, header = tables.layout(text, COLUMNS) if text.strip() else (",", COLUMNS)
    if missing := [name for name in COLUMNS if name not in header]:
        raise SettingsError(
            f"{printable(path)} has no column {', '.join(missing)}. Put it back into the first row, or move the file "
            "away to begin a new one."
        )
    stamped = dict(zip(COLUMNS, astuple(rating), strict=True))
    stamped["at"] = rating.at or datetime.now(UTC).isoformat(timespec="seconds")
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    if not text.strip():
        writer.writerow(header)
    writer.writerow([_cell(stamped.get(name)) for name in header])
    with checkpoint.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.is_file() else b""
        coding = "utf-8-sig" if not before else _coding(before)
        begins = "" if not text.strip() or text.endswith("\n") else "\r\n"
        added = (begins + out.getvalue()).encode(coding)
        with open(path, "ab") as file:
            file.write(added)


def means(ratings: Sequence[Rating]) -> list[Means]:
    """The means of each adapter's designs, in the order in which adapters come."""
    found: dict[str, list[Rating]] = {}
    for rating in ratings:
        found.setdefault(rating.adapter, []).append(rating)
    return [
        Means(
            adapter,
            _mean(one.clarity for one in rows),
            _mean(one.compliance for one in rows),
            len(rows),
            len({(one.sheet, one.design) for one in rows}),
            len({one.rater.casefold() for one in rows}),
        )
        for adapter, rows in found.items()
    ]


def summary(ratings: Ratings, names: Mapping[str, str] | None = None) -> list[str]:
    """The means of each adapter as lines, with how many ratings they are of, and what could not be understood.

    names  what adapters are called, such as {"3fb2…": "step 750"}
    """
    lines = []
    for one in means(ratings.rows):
        name = (names or {}).get(one.adapter) or f"adapter {one.adapter[:_DIGITS]}"
        said = [f"{asked} {value:.1f}" for asked in ASKED if (value := getattr(one, asked)) is not None]
        by = counted(one.raters, "person", "people")
        of = f"{counted(one.ratings, 'rating')} of {counted(one.designs, 'design')} by {by}"
        lines.append(f"{printable(name)}: {', '.join(said)} of {HIGHEST} ({of})")
    lines = lines or ["Nobody has rated a design yet."]
    more = len(ratings.faults) - _NAMED_AT_MOST
    faults = [f"! ratings.csv, {fault}" for fault in ratings.faults[:_NAMED_AT_MOST]]
    return [*lines, *faults, *([f"! and {more} more rows that cannot be understood"] if more > 0 else [])]


def scores(ratings: Sequence[Rating], adapter: str) -> list[Score]:
    """The means of one adapter's designs as scores; none where nobody rated one."""
    one = next((one for one in means(ratings) if one.adapter == adapter), None)
    if one is None:
        return []
    told = {"clarity": "clear everything is to see", "compliance": "well the design shows what was asked for"}
    made = []
    for asked, words in told.items():
        value = getattr(one, asked)
        if value is not None:
            by = f"the opinion of {counted(one.raters, 'person', 'people')} on {counted(one.designs, 'design')}"
            text = f"How {words}, from {LOWEST} to {HIGHEST}: {by}."
            made.append(
                Score(
                    f"rated_{asked}", f"{asked}, rated", "other", value, count=one.ratings, means=text, better="higher"
                )
            )
    return made


# -- inside --


def _text(run: RunFolder) -> str:
    if not run.ratings.exists():
        return ""
    return tables.text_of(run.ratings, _LARGEST)


def _rows(text: str) -> list[tables.Row]:
    return tables.rows_of(text, COLUMNS, "design") if text.strip() else []


def _coding(data: bytes) -> str:
    """How text is written behind what is there, so that no second byte order mark comes into the middle."""
    if data.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    return "utf-16-be" if data.startswith(codecs.BOM_UTF16_BE) else "utf-8"


def _cell(value: Any) -> str:
    """A value as a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else one_line(str(value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _checked(row: Mapping[str, Any]) -> tuple[Rating | None, list[str]]:
    """A row as a rating, or all that is wrong with it."""
    faults = []
    told: dict[str, int | None] = {}
    for name in ASKED:
        text = str(row.get(name) if row.get(name) is not None else "").strip()
        found = re.fullmatch(r"([1-5])(?:[.,]0+)?", text)
        told[name] = int(found[1]) if found else None
        if text and not found:
            faults.append(f"{name} is {printable(text[:20])!r}, not a whole number from {LOWEST} to {HIGHEST}")
    if not faults and told == dict.fromkeys(ASKED):
        faults.append(f"neither {' nor '.join(ASKED)} is rated")
    number = re.fullmatch(
        r"([0-9]{1,9})(?:[.,]0+)?", str(row.get("design") if row.get("design") is not None else "").strip()
    )
    if number is None:
        faults.append(f"design is {printable(str(row.get('design') or '')[:20])!r}, not a design's number")
    texts = {name: one_line(str(row.get(name) or "")).removeprefix("'") for name in ("sheet", "adapter", "rater", "at")}
    faults += [f"{name} is empty" for name in ("sheet", "adapter") if not texts[name]]
    if len(texts["rater"]) > LONGEST_NAME:
        faults.append(f"rater has {len(texts['rater'])} characters; {LONGEST_NAME} are the most")
    if faults or number is None:
        return None, faults
    return Rating(
        texts["sheet"],
        int(number[1]),
        texts["adapter"],
        told["clarity"],
        told["compliance"],
        texts["rater"],
        texts["at"],
    ), []


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
