"""The look for copies among pictures: each that was made is laid on the photographs that were learnt.

Pictures held out of training are unseen, and so is each learnt photograph for those of other pieces: what these reach
sets the threshold (see copy_check).
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy
from numpy.typing import NDArray
from PIL import Image

from lace_lora import counting, unseen
from lace_lora.comparisons import Kept
from lace_lora.copy_check import check
from lace_lora.errors import PicturesError
from lace_lora.file_names import printable
from lace_lora.image_files import read_picture
from lace_lora.nearest import SIDE, Searched, print_of, with_detail_of
from lace_lora.scores import CopyCheck
from lace_lora.search_programs import Question
from lace_lora.views import Fingerprint

# Below it nothing is called a copy. Of 69 photographs of different pieces of real lace no two reach 0.75, and of 250
# drawn pieces of one ground no two 0.79; what is called a copy of them in benchmarks.copies has 0.9 and more, and six
# pictures that the miniature model learnt by heart have 0.85 to 0.92 when it draws them again.
FLOOR = 0.82
LIKENESS = "how well the threads of both lie on each other, turned, mirrored, cut and shifted as fits best (1: same)"
FEATURE_NEIGHBOURS = 8  # that a style model adds to what the coarse views find

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


def look(
    made: Sequence[tuple[str, Picture]],
    learnt: Sequence[Learnt],
    held_out: Sequence[Learnt] = (),
    features: Features | None = None,
    say: Say = print,
    cache_dir: str | Path | None = None,
) -> CopyCheck:
    """The nearest learnt photograph of each picture that was made, and whether it is a copy of it.

    made       names and pictures, or their files
    learnt     what was trained on. Photographs of one piece share a group: they say nothing about how alike two pieces
               are. Where every picture is known to show another piece, each has a group of its own.
    held_out   what was not trained on, of pieces that were not
    features   of a style model: what it finds alike is compared too, and its distance is told
    say        is told what cannot be read, which is left out, and how far it is
    cache_dir  where comparisons are kept, which are not made again; None keeps none

    Reads every file once. Takes a fifth of a second for each picture that was made or held out, and for unseen.MOST
    learnt ones. Finds what was turned, mirrored, shifted by a tenth, relit, cut by 15 % of its height and width (most
    of what was cut by 15 % on every side too); not a small part of a photograph, such as a tile of a scan, nor a
    single motif that was drawn again in other surroundings.
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
    comparing = []
    for side_px, numbers in classes:
        shown, unseen_ones = (
            {one: with_detail_of(prints[one], side_px) for one in prints} for prints in (known, apart)
        )
        kept = Kept(Searched(list(shown.values())), cache_dir, say)
        of_class = {one: new[one][1] for one in numbers}
        comparing.append(_Compared(of_class, made, learnt, held_out, shown, unseen_ones, near, asked, kept))
    every = len(new) + len(classes) * (len(apart) + len(asked))
    tell = counting.lines(say, "compared", every, sum(one.known_before for one in comparing))
    checks = [one.check(tell, say if one is comparing[0] else lambda line: None) for one in comparing]
    return replace(
        checks[0], pairs=tuple(sorted((pair for one in checks for pair in one.pairs), key=lambda one: -one.likeness))
    )


def opened(picture: Picture) -> tuple[Image.Image | None, str]:
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


# -- inside --


@dataclass(frozen=True)
class _Compared:
    """What was made of one size class, and all that it is compared with at the detail of that class.

    new           fingerprints of it, by their numbers in `made`
    known, apart  the same by their numbers in `learnt` and `held_out`
    asked         places in `known` of those that are compared with the others
    kept          the search among `known`
    """

    new: Mapping[int, Fingerprint]
    made: Sequence[tuple[str, Picture]]
    learnt: Sequence[Learnt]
    held_out: Sequence[Learnt]
    known: Mapping[int, Fingerprint]
    apart: Mapping[int, Fingerprint]
    near: "_Near"
    asked: Sequence[int]
    kept: Kept

    @cached_property
    def groups(self) -> list[Hashable]:
        """Of what is searched."""
        return [self.learnt[one].group for one in self.known]

    @cached_property
    def questions(self) -> list[Question]:
        """What is searched for: all that was made, what was never learnt, and learnt ones outside their own pieces."""
        own = [[place for place, group in enumerate(self.groups) if group == self.groups[one]] for one in self.asked]
        numbers = [list(self.known)[place] for place in self.asked]
        return [
            (list(self.new.values()), self.near.also("made", self.new), []),
            (list(self.apart.values()), self.near.also("held_out", self.apart), []),
            ([self.known[one] for one in numbers], self.near.also("learnt", numbers), own),
        ]

    @property
    def known_before(self) -> int:
        """How many of these comparisons are known from before."""
        return self.kept.known(self.questions)

    def check(self, tell: Callable[[int], None], say: Say) -> CopyCheck:
        """The nearest of each that was made; then that of each unseen one, in the same way."""
        groups, near, apart, new = self.groups, self.near, self.apart, self.new
        found, others, among = self.kept.nearest(self.questions, tell)
        names = [self.learnt[number].name for number in self.known]

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
        image, fault = opened(picture)
        if image is None:
            faults.append(f"{printable(name)}: {fault}")
        else:
            found[number] = max(image.size), print_of(image)
    return found


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
