"""The favourites among the designs of a sheet, kept in its starred.json, and the names by which people call one design.

What stands in images.jsonl and starred.json may have been changed by hand or come from elsewhere: numbers are taken
from there, and of files only the names of pictures that lie in the sheet's own folder.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, counting, places
from lace_lora.config import nearest
from lace_lora.errors import LaceError, RunError
from lace_lora.file_names import printable
from lace_lora.own_files import backup_name
from lace_lora.run_folder import RunFolder, SheetFolder

STAR, NO_STAR = "★", "☆"
STARRED = "starred"  # the list in starred.json
KINDS = {".png", ".jpg", ".jpeg"}
SHOWN = 6  # of names or runs of numbers in a sentence

_DRAW = "Draw some first: lace-lora generate"
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
# refined_output_003.png, and what may lie beside it: refined_output_003_repeat.png
_PICTURE = re.compile(r"(?:refined_output|base_result)_(\d{1,9})(?:_\w+)?(?:\.\w+)?", re.ASCII | re.IGNORECASE)

Say = Callable[[str], None]
Designs = Mapping[int, Mapping[str, Any]]

_log = logging.getLogger(__name__)


# -- designs --


def rows(folder: SheetFolder, only: Collection[str] = ()) -> dict[int, dict[str, Any]]:
    """The finished designs of a sheet by number, in order: rows of images.jsonl and of the shards that drew for it.

    only  fields that are wanted, beside index, base and refined; none means all

    The last row of a number counts, those of images.jsonl after those of shards. Designs whose picture is gone are left
    out; `base` and `refined` are names of pictures in the folder itself, or None. Other values are as they stand there.
    """
    there = _pictures_in(folder.root)
    wanted = {"index", "base", "refined", *only}
    found: dict[int, dict[str, Any]] = {}
    for manifest in (*folder.all_rows()[1:], folder.manifest):
        for row in _lines(manifest):
            index = row.get("index")
            if type(index) is int and index >= 0:
                found[index] = {name: row[name] for name in row.keys() & wanted} if only else row
    finished = {}
    for index in sorted(found):
        row = found[index]
        if _name(row.get("refined") or row.get("base")) in there:
            own = {name: value if (value := _name(row.get(name))) in there else None for name in ("base", "refined")}
            finished[index] = row | own
    return finished


def picture_of(folder: SheetFolder, row: Mapping[str, Any]) -> Path:
    """The picture to look at of a row that `rows` gave: the refined one, or the base's where nothing was refined."""
    return folder.root / (row["refined"] or row["base"])


def sheets_in(parent: Path) -> list[SheetFolder]:
    """The sheets in a folder such as `RunFolder.sheets`, those drawn last first; no folder holds none."""
    found = []
    with suppress(OSError):
        for path in parent.iterdir():
            sheet = SheetFolder(path)
            ages = [_age(file) for file in (sheet.request, *sheet.all_rows())]
            if max(ages) > 0 and not path.name.startswith("."):
                found.append((max(ages), len(path.name), path.name, path))
    return [SheetFolder(path) for *_, path in sorted(found, reverse=True)]


# -- favourites --


def read(folder: SheetFolder, say: Say = _log.info) -> frozenset[int]:
    """The numbers that are starred, also of designs that were deleted since.

    say  is told what in the file cannot be understood, and is passed over

    Raises RunError where the file is there and cannot be read.
    """
    content, fault = _content(folder)
    if fault:
        say(fault)
    numbers = [_index(entry) for entry in content[STARRED]]
    if odd := numbers.count(None):
        say(f"{printable(folder.stars)}: {odd} of {len(numbers)} entries name no design and are passed over.")
    return frozenset(number for number in numbers if number is not None)


def favourites(folder: SheetFolder, say: Say = _log.info) -> dict[int, dict[str, Any]]:
    """The rows of the starred designs by number. Raises RunError where there are none."""
    starred = read(folder, say)
    found = {index: row for index, row in rows(folder).items() if index in starred}
    if not found:
        name = printable(folder.root.name)
        raise RunError(
            f"No design of {name} is a favourite. Star some in the gallery of notebook 04, or with: "
            f"lace-lora star {name}/0"
        )
    return found


def set_star(
    folder: SheetFolder, index: int, on: bool = True, *, designs: Designs | None = None, say: Say = _log.info
) -> frozenset[int]:
    """Star one design or take its star away, on the disk at once; see `set_stars`."""
    return set_stars(folder, [index], on, designs=designs, say=say)


def set_stars(
    folder: SheetFolder,
    indices: Iterable[int],
    on: bool = True,
    *,
    designs: Designs | None = None,
    say: Say = _log.info,
) -> frozenset[int]:
    """Star designs or take their stars away, on the disk at once; returns what is starred then.

    designs  the sheet's rows where they were read before, which takes seconds for 100,000 designs
    say      is told where a file that cannot be understood is kept

    The file is read anew and only these stars are changed in it, so that what other programs changed there stays; so do
    entries that are not understood. Raises RunError for a number that the sheet does not have, with nothing changed,
    and where the file cannot be read or written; MachineError where the sheet is gone, as with a Drive.
    """
    places.check_there(folder.root)
    designs = rows(folder) if designs is None else designs
    content, fault = _content(folder)
    entries = list(content[STARRED])
    starred = {_index(entry) for entry in entries}
    asked = dict.fromkeys(indices)
    for index in asked:
        if index not in designs and (on or index not in starred):  # a star outlives its picture, and may be taken away
            raise RunError(_no_such(folder, index, designs))
    if on:
        entries += [{"index": i, "file": picture_of(folder, designs[i]).name} for i in asked if i not in starred]
    else:
        entries = [entry for entry in entries if _index(entry) not in asked]
    if entries != content[STARRED]:
        if fault:
            _keep(folder, say)
        entries.sort(key=lambda entry: (_index(entry) is None, _index(entry) or 0))
        checkpoint.write_json(folder.stars, content | {STARRED: entries})
    return frozenset(number for entry in entries if (number := _index(entry)) is not None)


def set_all(run: RunFolder, names: Sequence[str], on: bool = True) -> list[str]:
    """Star the designs that a person names (see `place_of`), or take their stars away; no names change nothing.

    Returns lines to print: each design named, then every sheet concerned (all of them where none is named) with its
    favourites. Raises RunError with a line for each name that means no design; nothing is changed then.
    """
    placed: list[tuple[SheetFolder, int]] = []
    faults, seen = [], _Seen()
    for name in names:
        try:
            placed.append(_place(run, name, seen))
        except LaceError as error:
            faults.append(str(error))
    if faults:
        raise RunError("\n".join([*faults, *(["Nothing was changed."] if len(names) > 1 else [])]))
    lines: list[str] = []
    folders = list(dict.fromkeys(folder for folder, _ in placed)) if names else sheets_in(run.sheets)
    for folder in folders:
        designs = seen.rows(folder)
        indices = sorted({index for one, index in placed if one == folder})
        if indices:
            set_stars(folder, indices, on, designs=designs, say=lines.append)
        lines += [f"{STAR if on else NO_STAR} {described(folder, index, designs[index])}" for index in indices]
    return lines + [counted(folder, seen.rows(folder), read(folder, lines.append)) for folder in folders]


# -- the names of designs and sheets --


def place_of(run: RunFolder, named: str) -> tuple[SheetFolder, int]:
    """The sheet and number of a finished design as a person names it.

    named  sheet/3, sheet-2/007, 3 (of the sheet drawn last), refined_output_003.png, or a path to such a file

    Raises RunError that says which sheets there are, or which numbers.
    """
    return _place(run, named, _Seen())


def sheet_of(run: RunFolder, name: str) -> SheetFolder:
    """The sheet that a person names, by its name or a path to it; an empty name is the sheet drawn last.

    Raises RunError with the nearest name.
    """
    sheets = sheets_in(run.sheets)
    if not sheets:
        raise RunError(f"{printable(run.root)} holds no designs yet. {_DRAW}")
    if not name:
        return sheets[0]
    known = {printable(sheet.root.name): sheet for sheet in sheets}  # in one Unicode form, whatever the disk has
    if printable(name) in known:
        return known[printable(name)]
    for begin in (Path(), run.root, run.sheets):
        place = _real(begin / name)
        for sheet in sheets:
            if place == _real(sheet.root):
                return sheet
    there = ", ".join(list(known)[:SHOWN]) + (", …" if len(known) > SHOWN else "")
    last = printable(name).rpartition("/")[2]
    raise RunError(f"{printable(run.name)} has no sheet {printable(name)!r}{nearest(last, known)} There are: {there}.")


def described(folder: SheetFolder, index: int, row: Mapping[str, Any]) -> str:
    """One design in a line: its name, seed and prompt."""
    return f"{address(folder, index)}  seed {plain(row.get('seed'))}  {plain(row.get('prompt'))}"


def address(folder: SheetFolder, index: int) -> str:
    """The name by which one design is called everywhere, such as sheet-2/7."""
    return f"{printable(folder.root.name)}/{index}"


def counted(folder: SheetFolder, designs: Collection[int], starred: Collection[int]) -> str:
    """How many designs a sheet has, and which are favourites."""
    loved = [index for index in designs if index in starred]
    which = f" ({spans(loved)})" if loved else ""
    name = printable(folder.root.name)
    return f"{name}: {counting.counted(len(designs), 'design')}, {counting.counted(len(loved), 'favourite')}{which}"


def spans(numbers: Collection[int]) -> str:
    """Numbers in words, neighbours together: 0 to 4, 7, 9 to 23; those in the middle are left out of a long list."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return ", ".join(said if len(said) <= SHOWN else [*said[: SHOWN - 1], "…", said[-1]])


def plain(value: Any) -> str:
    """A value of a row as one line of text; what is neither text nor a number is a question mark."""
    return printable(" ".join(str(value).split())) if isinstance(value, str | int | float) else "?"


# -- inside --


class _Seen:
    """The rows of sheets, each read once while several designs are named."""

    def __init__(self) -> None:
        self._rows: dict[SheetFolder, dict[int, dict[str, Any]]] = {}

    def rows(self, folder: SheetFolder) -> dict[int, dict[str, Any]]:
        if folder not in self._rows:
            self._rows[folder] = rows(folder, ("seed", "prompt"))
        return self._rows[folder]


def _place(run: RunFolder, named: str, seen: _Seen) -> tuple[SheetFolder, int]:
    sheet, _, last = named.strip().strip("\"'").replace("\\", "/").rpartition("/")
    found = _PICTURE.fullmatch(last)
    number = found[1] if found else last
    if not _NUMBER.fullmatch(number):
        sheets = [sheet_of(run, ""), *sheets_in(run.sheets)]  # the newest first, and those that are named before it
        near = max(sheets, key=lambda one: printable(one.root.name) in printable(named))
        raise RunError(
            f"{printable(named)!r} names no design. Write a sheet and a number, such as {address(near, 3)}, a number "
            "alone for a design of the newest sheet, or the name of a picture, such as refined_output_003.png. "
            f"{printable(near.root.name)} has: {_numbers(seen.rows(near))}."
        )
    folder = sheet_of(run, sheet)
    if int(number) not in seen.rows(folder):
        raise RunError(_no_such(folder, int(number), seen.rows(folder)))
    return folder, int(number)


def _no_such(folder: SheetFolder, index: int, designs: Collection[int]) -> str:
    return f"{printable(folder.root.name)} has no finished design {index}. There are: {_numbers(designs)}."


def _numbers(designs: Collection[int]) -> str:
    return spans(designs) or f"none yet. {_DRAW}"


def _content(folder: SheetFolder) -> tuple[dict[str, Any], str]:
    """What starred.json holds, with its list of entries; and a sentence where that cannot be understood."""
    try:
        data = folder.stars.read_bytes()
    except FileNotFoundError:
        return {STARRED: []}, ""
    except OSError as error:
        advice = "Drive may have gone: mount it and try again."
        raise RunError(f"{printable(folder.stars)} cannot be read ({error.strerror or error}). {advice}") from error
    try:
        content = json.loads(data.decode("utf-8-sig"))
        content = {STARRED: content} if isinstance(content, list) else content
        if isinstance(content, dict) and isinstance(content.setdefault(STARRED, []), list):
            return content, ""
        reason = f'it has no list "{STARRED}"'
    except (ValueError, RecursionError) as error:
        reason = printable(str(error))
    return {STARRED: []}, (
        f"{printable(folder.stars)} cannot be understood ({reason}), so nothing counts as starred. It is kept beside, "
        "as .bak, when the next star is set; or mend it by hand."
    )


def _keep(folder: SheetFolder, say: Say) -> None:
    """Keep a file that is not understood, as it stands, under another name."""
    with checkpoint.writing(folder.stars):
        data = folder.stars.read_bytes()
        kept = backup_name(folder.stars, data)
    if not kept.exists():
        checkpoint.write_bytes(kept, data)
    say(f"the earlier {folder.stars.name}, which could not be understood, is kept as {kept.name}")


def _index(entry: Any) -> int | None:
    """The number that an entry means: {"index": 3, "file": …}, or as people write it, 3 or "refined_output_003.png"."""
    if isinstance(entry, dict):
        entry = entry.get("index", entry.get("file"))
    if isinstance(entry, str):
        found = _PICTURE.fullmatch(entry.strip())
        entry = found[1] if found else entry.strip()
        entry = int(entry) if _NUMBER.fullmatch(entry) else None
    return entry if type(entry) is int and entry >= 0 else None


def _lines(manifest: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl file that are whole, one by one: a sheet of 100,000 designs has 150 MB of them."""
    try:
        with open(manifest, "rb") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row, dict):
                        yield row
    except FileNotFoundError:
        return
    except OSError as error:
        advice = "Drive may have gone: mount it and try again."
        raise RunError(f"{printable(manifest)} cannot be read ({error.strerror or error}). {advice}") from error


def _pictures_in(folder: Path) -> set[str]:
    """The names of pictures in a folder: a link could bring in anything, and hidden files are other programs'."""
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name
                for entry in entries
                if os.path.splitext(entry.name)[1].casefold() in KINDS
                and not entry.name.startswith(".")
                and entry.is_file(follow_symlinks=False)
            }
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _age(file: Path) -> float:
    """When a file was written last, in seconds since 1970; 0 where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _real(path: Path) -> str:
    """A path without its links; one that no disk can hold is nowhere."""
    try:
        return os.path.realpath(path.expanduser())
    except (OSError, ValueError, RuntimeError):
        return ""
