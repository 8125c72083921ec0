"""Is what was made new, or a copy of a photograph that was learnt? Each picture beside the photograph most like it.

What is called a copy is measured, not agreed on: a picture that is more like a learnt photograph than anything unseen
is, by a margin. Pictures held out of training are unseen, and so is each learnt photograph for those of other pieces.

`threshold`, `check` and `memorised` know nothing of pictures: whatever has a likeness of 0 to 1 can be asked the same.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lace_lora import counting, unseen
from lace_lora.errors import PicturesError
from lace_lora.file_names import printable
from lace_lora.image_files import read_picture
from lace_lora.nearest import SIDE, Searched, print_of, with_detail_of
from lace_lora.pictures import font_of, line_height, thumbnail, wrapped
from lace_lora.scores import CopyCheck, Nearest
from lace_lora.views import Fingerprint

# Below it nothing is called a copy. Of 69 photographs of different pieces of real lace no two reach 0.75, and of 250
# drawn pieces of one ground no two 0.79; what is called a copy of them in benchmarks.copies has 0.9 and more, and six
# pictures that the miniature model learnt by heart have 0.85 to 0.92 when it draws them again.
FLOOR = 0.82
MARGIN = 0.2  # of the way from the highest unseen likeness to 1
LIKENESS = "how well the threads of both lie on each other, turned, mirrored, cut and shifted as fits best (1: same)"
FEATURE_NEIGHBOURS = 8  # that a style model adds to what the coarse views find

PAIRS = 24  # a page, which must still be read on a phone
_COLUMNS, _TILE_PX, _FONT_PX, _GAP_PX, _EDGE_PX = 2, 250, 20, 16, 8
_PAPER, _INK, _NEW, _COPY = (246, 245, 242), (45, 45, 45), (225, 223, 218), (178, 34, 34)

Say = Callable[[str], None]
Picture = Image.Image | Path | str | Callable[[], Image.Image]  # or what opens it, which may raise PicturesError
Rows = NDArray[numpy.floating]


@dataclass(frozen=True)
class Learnt:
    """A photograph that was learnt: its name, its file, and what all photographs of its piece have in common."""

    name: str
    picture: Picture
    group: Hashable


@dataclass(frozen=True)
class Features:
    """Rows of a style model, one for each of what is handed to `look` and in the same order: N × F."""

    made: Rows
    learnt: Rows
    held_out: Rows | None = None


# -- for anything that has a likeness --


def threshold(unseen_likeness: Sequence[float], floor: float) -> float:
    """Above it, something made is called a copy: a little above all that anything unseen reached, or the floor.

    Of new things 1 in n + 1 lies above the highest of n unseen ones, on average; 4 of 100 did in one run: the margin.
    """
    return max(floor, (1 - MARGIN) * max([0.0, *unseen_likeness]) + MARGIN)


def check(
    made: Sequence[str],
    nearest: Sequence[str],
    likeness: Sequence[float],
    unseen_likeness: Sequence[float],
    *,
    floor: float,
    compares: str,
    calibrated_on: int | None = None,
    how: Sequence[str] = (),
    feature_distance: Sequence[float] = (),
) -> CopyCheck:
    """What was made beside what it is most like, the most alike first, with those called copies that are more alike
    than anything unseen was.

    made, nearest, likeness  one each: a name, the name of the nearest thing learnt, how alike they are
    unseen_likeness          how alike things that were not learnt are to the nearest thing learnt
    floor                    below it nothing is called a copy
    compares                 what the likeness compares, in words
    calibrated_on            as how many the unseen count; None is all of them. Fewer where they are not independent
    how, feature_distance    one each, where they are known: see scores.Nearest

    Raises ValueError where there is not one of each.
    """
    limit = threshold(unseen_likeness, floor)
    hows = how or [""] * len(made)
    distances: Sequence[float | None] = feature_distance or [None] * len(made)
    rows = zip(made, nearest, likeness, hows, distances, strict=True)
    pairs = [Nearest(one, other, alike, alike > limit, words, apart) for one, other, alike, words, apart in rows]
    return CopyCheck(
        compares,
        limit,
        len(unseen_likeness) if calibrated_on is None else calibrated_on,
        tuple(sorted(pairs, key=lambda pair: -pair.likeness)),
    )


def memorised(found: CopyCheck, made: str = "designs", learnt: str = "photographs") -> str:
    """The verdict in one or two sentences: whether what was made is new, and what to do where it is not.

    made, learnt  what they are called, in the plural
    """
    if found.refusal:
        return f"Whether {made} are copies was not measured: {found.refusal}"
    count, copies = len(found.pairs), found.copies
    if not count:
        return f"There were no {made} to compare with the {learnt} that were learnt."
    if not copies:
        return _nothing_copied(found, made, learnt)
    named = ", ".join(f"{_short(pair.made)} of {_short(pair.nearest)}" for pair in copies[:3])
    more = f" and {len(copies) - 3} more" if len(copies) > 3 else ""
    is_are = "is a copy" if len(copies) == 1 else "are copies"
    verdict = (
        f"{len(copies)} of {count} {made} {is_are} of {learnt} that were learnt: {named}{more}. "
        f"Do not show or sell them as new. Take an earlier checkpoint, train fewer steps, or learn more {learnt}."
    )
    if found.calibrated_on and len(copies) <= count / (found.calibrated_on + 1):
        verdict += f" By chance alone up to 1 of {found.calibrated_on + 1} new {made} is called a copy: look yourself."
    return verdict


def _nothing_copied(found: CopyCheck, made: str, learnt: str) -> str:
    """The same where nothing is called a copy, with what is nearest to being one."""
    first, limit = found.pairs[0], found.threshold or 0.0
    begins = f"; copies begin above {limit:.2f}" if first.likeness <= limit else ""  # it may be of another size class
    nearest = (
        f"The most alike, {_short(first.made)} beside {_short(first.nearest)}, has a likeness of "
        f"{first.likeness:.2f}{begins}."
    )
    if limit >= unseen.ALIKE:
        return (
            f"The {learnt} of this set are so alike (threshold {limit:.2f}) that a copy can hardly be told from "
            f"something new here: look yourself. None of {len(found.pairs)} {made} was called a copy. {nearest}"
        )
    return f"None of {len(found.pairs)} {made} is a copy of the {learnt} that were learnt. {nearest}"


# -- pictures --


def look(
    made: Sequence[tuple[str, Picture]],
    learnt: Sequence[Learnt],
    held_out: Sequence[Learnt] = (),
    features: Features | None = None,
    say: Say = print,
) -> CopyCheck:
    """The nearest learnt photograph of each picture that was made, and whether it is a copy of it.

    made      names and pictures, or their files
    learnt    what was trained on. Photographs of one piece share a group: they say nothing about how alike two pieces
              are. Where every picture is known to show another piece, each has a group of its own.
    held_out  what was not trained on, of pieces that were not
    features  of a style model: what it finds alike is compared too, and its distance is told
    say       is told what cannot be read, which is left out, and how far it is

    Reads every file once and writes nothing. Takes a fifth of a second for each picture that was made or held out, and
    for unseen.MOST learnt ones. Finds what was turned, mirrored, shifted by a tenth, relit, cut by 15 % of its height
    and width (most of what was cut by 15 % on every side too); not a small part of a photograph, such as a tile of a
    scan, nor a single motif that was drawn again in other surroundings.
    """
    faults: list[str] = []
    say(f"copies    {len(made)} pictures and {len(held_out)} unseen photographs to lay on {len(learnt)} learnt ones")
    new = _read(made, faults)
    known, apart = (
        {number: print_ for number, (_, print_) in _read(rows, faults).items()}
        for rows in ([(one.name, one.picture) for one in learnt], [(one.name, one.picture) for one in held_out])
    )
    for fault in faults:
        say(f"left out of the copy check: {fault}")
    if not new or not known:
        missing = "photograph that was learnt" if new else "picture that was made"
        return CopyCheck(LIKENESS, refusal=f"no {missing} could be read.")

    # Small pictures cannot show what a photograph does: those of one size are compared with as much detail.
    groups, near = [learnt[number].group for number in known], _Near(features, list(known))
    asked = unseen.asked([learnt[number].name for number in known], groups, {held_out[one].group for one in apart})
    classes = _by_size({number: side_px for number, (side_px, _) in new.items()})
    tell = counting.lines(say, "compared", len(new) + len(classes) * (len(apart) + len(asked)))
    checks = [
        _Compared(side_px, made, learnt, held_out, known, apart, near, asked).check(
            {number: new[number][1] for number in numbers}, tell, say if place == 0 else lambda line: None
        )
        for place, (side_px, numbers) in enumerate(classes)
    ]
    return replace(
        checks[0], pairs=tuple(sorted((pair for one in checks for pair in one.pairs), key=lambda one: -one.likeness))
    )


@dataclass(frozen=True)
class _Compared:
    """What was made of one size class, and all that it is compared with at the detail of that class.

    known, apart  fingerprints by their numbers in `learnt` and `held_out`
    asked         places in `known` of those that are compared with the others
    """

    side_px: int
    made: Sequence[tuple[str, Picture]]
    learnt: Sequence[Learnt]
    held_out: Sequence[Learnt]
    known: Mapping[int, Fingerprint]
    apart: Mapping[int, Fingerprint]
    near: "_Near"
    asked: Sequence[int]

    def check(self, new: Mapping[int, Fingerprint], tell: Callable[[int], None], say: Say) -> CopyCheck:
        """The nearest of each that was made; then that of each unseen one, in the same way."""
        known, apart = (
            {number: with_detail_of(print_, self.side_px) for number, print_ in prints.items()}
            for prints in (self.known, self.apart)
        )
        searched, groups, near = Searched(list(known.values())), [self.learnt[one].group for one in known], self.near
        found = searched.nearest(list(new.values()), near.also("made", new), tell=tell)
        own = [[place for place, group in enumerate(groups) if group == groups[number]] for number in self.asked]
        numbers = [list(known)[place] for place in self.asked]
        others = searched.nearest(list(apart.values()), near.also("held_out", apart), tell=tell)
        among = searched.nearest([known[one] for one in numbers], near.also("learnt", numbers), own, tell)
        names = [self.learnt[number].name for number in known]

        # What sets the threshold: all that is new, and not a copy that somebody took for unseen.
        rows = [(self.held_out[number], one) for number, one in zip(apart, others, strict=True) if one is not None]
        asked = [(place, one) for place, one in zip(self.asked, among, strict=True) if one is not None]
        alike = [one.likeness for _, one in asked]
        if not unseen.are_alike_by_design(groups, alike, [one.likeness for _, one in rows]):
            _say_copied(
                [(one.name, names[at.place], at.likeness) for one, at in rows]
                + [(names[place], names[at.place], at.likeness) for place, at in asked],
                say,
            )
            rows = [row for row in rows if row[1].likeness < unseen.ALIKE]
            asked = [row for row in asked if row[1].likeness < unseen.ALIKE]
        pairs = [(number, one) for number, one in zip(new, found, strict=True) if one is not None]
        return check(
            [self.made[number][0] for number, _ in pairs],
            [names[one.place] for _, one in pairs],
            [one.likeness for _, one in pairs],
            [one.likeness for _, one in (*rows, *asked)],
            floor=FLOOR,
            compares=LIKENESS,
            calibrated_on=unseen.worth({one.group for one, _ in rows}, groups, [place for place, _ in asked]),
            how=[one.how for _, one in pairs],
            feature_distance=[near.distance(number, one.place) for number, one in pairs] if near.is_there else (),
        )


def _say_copied(rows: Sequence[tuple[str, str, float]], say: Say) -> None:
    """Name those of the unseen that are copies: name, the nearest learnt one's name, likeness."""
    copied = [row for row in rows if row[2] >= unseen.ALIKE]
    if copied:
        told = [f"{printable(name)} (like {printable(other)}, {alike:.2f})" for name, other, alike in copied[:3]]
        more = f" and {len(copied) - 3} more" if len(copied) > 3 else ""
        say(f"! not taken for other pieces, since they show what was learnt: {', '.join(told)}{more}")


def _by_size(sides: Mapping[int, int]) -> list[tuple[int, list[int]]]:
    """Numbers of pictures of about one size, the most pictures first, with the longest side there, px.

    What has SIDE or more is of one class, what has less of that of the next lower power of two.
    """
    classes: dict[int, list[int]] = {}
    for number, side_px in sides.items():
        classes.setdefault(min(side_px, SIDE).bit_length(), []).append(number)
    found = [(max(sides[number] for number in numbers), numbers) for numbers in classes.values()]
    return sorted(found, key=lambda one: (-len(one[1]), -one[0]))


def _read(pictures: Sequence[tuple[str, Picture]], faults: list[str]) -> dict[int, tuple[int, Fingerprint]]:
    """Longer sides, px, and fingerprints of the pictures that can be read, by number; of others the fault is told."""
    found = {}
    for number, (name, picture) in enumerate(pictures):
        image, fault = _opened(picture)
        if image is None:
            faults.append(f"{printable(name)}: {fault}")
        else:
            found[number] = max(image.size), print_of(image)
    return found


def _opened(picture: Picture) -> tuple[Image.Image | None, str]:
    """The picture, large enough to be compared; None where it cannot be read, and why."""
    if isinstance(picture, Image.Image):
        return picture, ""
    if isinstance(picture, Path | str):
        opened = read_picture(picture, enough_px=2 * SIDE)
        return opened.image, opened.fault or ""
    try:
        return picture(), ""
    except PicturesError as error:
        return None, str(error)


class _Near:
    """What a style model finds alike; nothing without one. `rows` are the numbers of the learnt ones in the search."""

    def __init__(self, features: Features | None, rows: Sequence[int]) -> None:
        self._features, self.is_there = features, features is not None
        self._learnt = _of_length_one(features.learnt)[rows] if features else None

    def also(self, kind: Literal["made", "learnt", "held_out"], numbers: Iterable[int]) -> list[list[int]]:
        """For each the places of its nearest in the search."""
        rows = getattr(self._features, kind) if self._features else None
        if rows is None or self._learnt is None:
            return []
        alike = _of_length_one(rows)[list(numbers)] @ self._learnt.T
        return [list(row) for row in numpy.argsort(-alike, axis=1, kind="stable")[:, : FEATURE_NEIGHBOURS + 1].tolist()]

    def distance(self, number: int, place: int) -> float:
        """1 - cosine between one that was made and a place of the search."""
        assert self._features is not None and self._learnt is not None
        return float(1 - _of_length_one(self._features.made)[number] @ self._learnt[place])


def _of_length_one(rows: Rows) -> NDArray[numpy.float64]:
    wide = numpy.asarray(rows, numpy.float64)
    return wide / numpy.maximum(numpy.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


# -- pages --


def sheets(
    found: CopyCheck, open_made: Callable[[str], Picture], open_learnt: Callable[[str], Picture]
) -> Iterator[Image.Image]:
    """Every picture that was made beside the learnt photograph most like it, the most alike first; PAIRS a page.

    open_made, open_learnt  the picture of a name in the check, or its file; one that cannot be read says so
    """
    pages = -(-len(found.pairs) // PAIRS)
    for number in range(pages):
        pairs = found.pairs[number * PAIRS : (number + 1) * PAIRS]
        cards = [_card(pair, open_made(pair.made), open_learnt(pair.nearest)) for pair in pairs]
        rows = [cards[start : start + _COLUMNS] for start in range(0, len(cards), _COLUMNS)]
        head = "Left what was made, right the photograph most like it; the most alike first."
        page = f" Page {number + 1} of {pages}." if pages > 1 else ""
        yield _page([f"{memorised(found)}", head + page], rows)


def _page(head: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Cards in rows under a few sentences."""
    font = font_of(_FONT_PX)
    width = _COLUMNS * (rows[0][0].width + _GAP_PX) + _GAP_PX
    lines = [line for sentence in head for line in wrapped(sentence, font, width - 2 * _GAP_PX, 8)]
    top = 2 * _GAP_PX + len(lines) * line_height(font)
    heights = [max(card.height for card in row) + _GAP_PX for row in rows]
    page = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    _write(page, _GAP_PX, _GAP_PX, lines)
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            page.paste(card, (_GAP_PX + column * (card.width + _GAP_PX), top))
        top += height
    return page


def _card(pair: Nearest, made: Picture, learnt: Picture) -> Image.Image:
    """Two tiles side by side, and what is to be said of them; a copy is framed and called one."""
    font = font_of(_FONT_PX)
    width = 2 * _TILE_PX + 3 * _EDGE_PX
    verdict = f"COPY, likeness {pair.likeness:.2f}" if pair.is_copy else f"new, likeness {pair.likeness:.2f}"
    below = [
        *wrapped(f"{verdict}{': ' + pair.how if pair.is_copy and pair.how else ''}", font, width - 2 * _EDGE_PX),
        *wrapped(f"{_short(pair.made)} | {_short(pair.nearest)}", font, width - 2 * _EDGE_PX),
    ]
    card = Image.new(
        "RGB", (width, _TILE_PX + 2 * _EDGE_PX + len(below) * line_height(font)), _COPY if pair.is_copy else _NEW
    )
    for place, (name, picture) in enumerate(((pair.made, made), (pair.nearest, learnt))):
        image, _ = (picture, "") if isinstance(picture, Path | str) else _opened(picture)
        tile = thumbnail(image or Path(name), _TILE_PX)
        left = _EDGE_PX + place * (_TILE_PX + _EDGE_PX)
        card.paste(tile, (left + (_TILE_PX - tile.width) // 2, _EDGE_PX + (_TILE_PX - tile.height) // 2))
    _write(card, _EDGE_PX, _TILE_PX + 2 * _EDGE_PX, below, "white" if pair.is_copy else _INK)
    return card


def _write(
    page: Image.Image, left: int, top: int, lines: Sequence[str], ink: str | tuple[int, int, int] = _INK
) -> None:
    font, pen = font_of(_FONT_PX), ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((left, top + number * line_height(font)), line, ink, font)


def _short(name: str) -> str:
    """A name as people read it: a design by its sheet and number, a cell of a grid by its step and seed."""
    if design := re.fullmatch(r"(?:.*/)?images/([^/]+)/(?:refined_output|base_result)_(\d+)\.\w+", name):
        return f"{design[1]}/{int(design[2])}"
    if cell := re.search(r"step-(\d+)_scale-[^/]*_seed-(\d+)_[^/]*$", name):
        return f"step {int(cell[1])}, seed {int(cell[2])}"
    if sample := re.search(r"step-(\d+)/sample_(\d+)\.\w+$", name):
        return f"step {int(sample[1])}, sample {int(sample[2])}"
    return "/".join(PurePosixPath(name).parts[-2:])
