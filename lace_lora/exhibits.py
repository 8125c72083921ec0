"""The pictures that an evaluation looks at: photographs that were learnt, those that were not, and what was drawn.

A photograph is known by its name in its folder, a picture that was drawn by its path within the run folder.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from lace_lora import annotations, cache, comparisons, config, data_utils, stars
from lace_lora.annotations import Example
from lace_lora.config import Config
from lace_lora.errors import LaceError, PicturesError, SettingsError
from lace_lora.file_names import on_disk, printable
from lace_lora.run_folder import RunFolder
from lace_lora.swatch import Swatch, open_swatch

MADE_AT_MOST = 2000  # designs that are looked at, the newest sheets first; more would take hours

Say = Callable[[str], None]
Shown = tuple[Example, int]  # and the number of its piece


@dataclass(frozen=True)
class Exhibit:
    """One picture.

    name    of a photograph in its folder, or of a drawn one its path within the run folder
    group   photographs of one piece, and pictures drawn of one prompt at one seed, have the same
    swatch  what is done to a photograph on opening it
    """

    name: str
    path: Path
    group: int
    swatch: Swatch | None = None

    def open(self, side_px: int | None = None) -> Image.Image:
        """The picture, upright RGB, with at most the area of a square of side_px. Raises PicturesError."""
        picture = open_swatch(self.path, self.swatch).convert("RGB")
        scale = (side_px or math.inf) / math.sqrt(picture.width * picture.height)
        if scale >= 1:
            return picture
        width, height = (max(1, round(side * scale)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


class Design(NamedTuple):
    """A design of a sheet, and its row of images.jsonl."""

    exhibit: Exhibit
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Photographs:
    """The photographs of a run: learnt, and never learnt (held out of the training, and those of unseen_dir)."""

    learnt: tuple[Exhibit, ...]
    unseen: tuple[Exhibit, ...]

    @cached_property
    def by_name(self) -> dict[str, Exhibit]:
        """All of them by their names."""
        return {one.name: one for one in (*self.learnt, *self.unseen)}


def photographs(run: RunFolder, settings: Config, say: Say) -> Photographs:
    """What the run learnt, as its annotations.txt lists it, and what it did not.

    settings  of the run; images_dir may lie elsewhere on another machine

    Photographs that are gone or cannot be read are named and left out, and so are those of unseen_dir that show a piece
    that was learnt. Raises PicturesError where none is left, or a list of the run cannot be understood.
    """
    folder = Path(settings.images_dir).expanduser()
    rows = _rows(run)
    held_out = _held_out(run, [written for written, _ in rows], say)
    files = [_file_of(written, folder) for written, _ in rows]
    there = [number for number, path in enumerate(files) if path.is_file()]
    _say_gone([rows[number][0] for number in range(len(rows)) if number not in set(there)], say)
    listed = _with_swatches(folder, [Example(files[number], rows[number][1]) for number in there])
    more = [Example(path, "") for path in _of_folder(settings)]

    grouped = _grouped([*listed, *more], settings, say)
    apart = {number for number, place in enumerate(there) if rows[place][0] in held_out}
    learnt: list[Shown] = []
    held: list[Shown] = []
    others: list[Shown] = []
    for number, one, group in grouped:
        (others if number >= len(listed) else held if number in apart else learnt).append((one, group))
    if not learnt:
        raise PicturesError(
            f"None of the {len(rows)} photographs that were learnt can be read in {folder}. "
            "Mount Drive, or set images_dir to the folder where they are."
        )
    others = _not_learnt(others, learnt, held, say)
    unseen_dir = Path(settings.unseen_dir or "").expanduser()
    paths = [[one.path for one, _ in group] for group in (learnt, held, others)]
    names = _unique(
        [(_name(folder, path), path) for path in (*paths[0], *paths[1])]
        + [(f"{unseen_dir.name}/{_name(unseen_dir, path)}", path) for path in paths[2]]
    )
    every = [
        Exhibit(name, one.path, group, one.swatch)
        for name, (one, group) in zip(names, (*learnt, *held, *others), strict=True)
    ]
    return Photographs(tuple(every[: len(learnt)]), tuple(every[len(learnt) :]))


def check_unseen(settings: Config) -> None:
    """Raises SettingsError where unseen_dir is no folder with photographs, before anything is drawn."""
    if settings.unseen_dir:
        try:
            data_utils.list_images(Path(settings.unseen_dir).expanduser(), set(settings.image_types))
        except PicturesError as error:
            raise SettingsError(
                f"unseen_dir is {settings.unseen_dir!r}: {error} Correct unseen_dir, or leave it empty."
            ) from error


def designs(run: RunFolder, say: Say) -> list[Design]:
    """The finished designs of every sheet with their rows, the newest sheet first; at most MADE_AT_MOST of them."""
    found: list[Design] = []
    for sheet in stars.sheets_in(run.sheets):
        try:
            rows = stars.rows(sheet)
        except LaceError as error:
            say(f"! {sheet.root.name} is left out: {error}")
            continue
        for index, row in rows.items():
            path = stars.picture_of(sheet, row)
            found.append(Design(Exhibit(_name(run.root, path), path, index), row))
    if len(found) > MADE_AT_MOST:
        say(f"! {len(found):,} designs are there; the newest {MADE_AT_MOST:,} are looked at.")
    return found[:MADE_AT_MOST]


def opened(exhibits: Sequence[Exhibit], side_px: int | None = None) -> Iterator[Image.Image]:
    """The pictures one after the other, never two large ones in memory at once; see Exhibit.open."""
    return (one.open(side_px) for one in exhibits)


# -- inside --


def _rows(run: RunFolder) -> list[tuple[str, str]]:
    """Paths as they are written, and captions, of the run's own list."""
    if not run.annotations.is_file():
        raise PicturesError(f"{run.root} does not say which photographs were learnt: annotations.txt is not there.")
    rows, problems = annotations.parse(run.annotations)
    if problems:
        raise annotations.complaint(run.annotations, problems, "Correct or remove these lines.")
    return [(written, caption) for _, written, caption in rows]


def _held_out(run: RunFolder, listed: Sequence[str], say: Say) -> set[str]:
    """Those of the listed paths that were held out of the training.

    Both lists are of one training, so that their paths are alike; where somebody changed one of them, the listed path
    is meant that has the longest end in common.
    """
    if not run.held_out.is_file():
        try:
            fraction = config.load(run.config).validation_fraction
        except LaceError:
            fraction = 0.0
        if fraction:
            say("! held_out.txt is not there: photographs that were held out of the training count as learnt.")
        return set()
    try:
        lines = run.held_out.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PicturesError(f"{run.held_out} cannot be read ({error}). Save it as a plain UTF-8 text file.") from error
    wanted = {line for line in lines if line.strip()}
    found = wanted.intersection(listed)
    for line in sorted(wanted.difference(found)):
        shared = [(_shared(line, written), written) for written in set(listed).difference(found)]
        longest = max((count for count, _ in shared), default=0)
        alike = [written for count, written in shared if count == longest > 0]
        if len(alike) == 1:
            found.add(alike[0])
        else:
            say(f"! {printable(line)} of held_out.txt is not in annotations.txt, or there more than once.")
    return found


def _shared(one: str, other: str) -> int:
    """How many parts the ends of two paths have in common."""
    return len(os.path.commonprefix([_parts(one)[::-1], _parts(other)[::-1]]))


def _parts(written: str) -> list[str]:
    """The parts of a path, which may be of a machine that writes them with \\."""
    return [part for part in written.replace("\\", "/").split("/") if part]


def _file_of(written: str, folder: Path) -> Path:
    """The file of a path of the list: as it stands, or below images_dir by as much of it as leads to a file there."""
    if os.path.isabs(written) and os.path.isfile(written):
        return Path(written)
    parts = _parts(written) or [written]
    below = (on_disk(folder, "/".join(parts[start:])) for start in range(len(parts)))
    return next((found for found in below if found), folder / parts[-1])


def _say_gone(gone: Sequence[str], say: Say) -> None:
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        say(f"! left out, for they are gone: {', '.join(printable(path) for path in gone[:3])}{more}")


def _with_swatches(folder: Path, listed: list[Example]) -> list[Example]:
    """The same with the swatches of dataset.json; what it leaves out by now was learnt all the same."""
    if not folder.is_dir():
        return listed
    known = {one.path: one for group in annotations.chosen(listed, annotations.dataset_of(folder)) for one in group}
    return [known[one.path] for one in listed]


def _not_learnt(
    others: Sequence[Shown],
    learnt: Sequence[Shown],
    held: Sequence[Shown],
    say: Say,
) -> list[Shown]:
    """Those of unseen_dir that show no piece that was learnt; the others are named.

    Where most pieces that were learnt are near copies of others, and most of unseen_dir too, as drawn lace is, that is
    how pieces are here: then only the very same files are left out. Of the demo's 120 pieces 8 groups are made, and all
    of its 60 unseen ones are of these; 35 photographs of different pieces of real lace are as many groups.
    """
    groups = Counter(group for _, group in learnt)
    alike = sum(group in groups for _, group in others)
    by_design = 2 * alike > len(others) and 2 * len(groups) <= len(learnt)
    files = {cache.digest_of(one.path) for one, _ in learnt}
    shown = [one for one, group in others if cache.digest_of(one.path) in files or (group in groups and not by_design)]
    if shown:
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        named = ", ".join(printable(one.path.name) for one in shown[:3])
        say(f"! of unseen_dir left out, since they show pieces that were learnt: {named}{more}")
    left_out = {one.path for one in shown} | {one.path for one, _ in held}
    return [(one, group) for one, group in others if one.path not in left_out]


def _unique(names: Sequence[tuple[str, Path]]) -> list[str]:
    """Each name, with as many folders before those that collide as tell them apart."""
    found, before = [name for name, _ in names], [""]
    while found != before and len(set(found)) < len(found):
        before, count = found, Counter(found)
        found = [
            "/".join(path.parts[-len(PurePosixPath(name).parts) - 1 :]) if count[name] > 1 else name
            for name, (_, path) in zip(before, names, strict=True)
        ]
    return found


def _grouped(examples: Sequence[Example], settings: Config, say: Say) -> list[tuple[int, Example, int]]:
    """The place of each example that can be read, itself, and the number of its piece."""
    left = list(enumerate(examples))
    try:
        prints = cache.fingerprints(examples, settings.cache_dir, say)
    except PicturesError:
        left = [(place, one) for place, one in left if _opens(one, say)]
        prints = cache.fingerprints([one for _, one in left], settings.cache_dir, say)
    groups = comparisons.groups(prints, settings.cache_dir, say)
    number_of = {place: number for number, group in enumerate(groups) for place in group}
    return [(place, one, number_of[number]) for number, (place, one) in enumerate(left)]


def _opens(example: Example, say: Say) -> bool:
    try:
        open_swatch(example.path, example.swatch)
        return True
    except PicturesError as error:
        say(f"! left out: {error}")
        return False


def _of_folder(settings: Config) -> list[Path]:
    """The photographs of unseen_dir."""
    if not settings.unseen_dir:
        return []
    return data_utils.list_images(Path(settings.unseen_dir).expanduser(), set(settings.image_types))


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
