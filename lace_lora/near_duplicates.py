"""Which pictures show the same piece of lace, and which pieces are held out of training.

Pieces on one ground look alike at every small size, so nothing here is decided by a hash. Every picture is reduced to a
fingerprint; the few that could match it are found by correlating coarse views over turns, mirrorings, scales and
shifts; then one view is laid onto the other, ever finer, until threads lie on threads or do not.

Coordinates are (down, right) from a picture's centre, in parts of the longer side that fingerprints have (SIDE).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from typing import Literal

import numpy

from lace_lora.placements import placements, templates, windows
from lace_lora.registration import laid
from lace_lora.views import COARSE, SIDE, Array, Maps, Places
from lace_lora.views import Fingerprint as Fingerprint
from lace_lora.views import fingerprint as fingerprint
from lace_lora.views import views as views_of

Kind = Literal["exact", "same picture", "maybe the same piece"]

FINGERPRINT_SHAPE, FINGERPRINT_DTYPE = (SIDE, SIDE), numpy.uint8

# Measured on 69 photographs of real bobbin lace, 31 of them of like grounds in one framing, and on 17 altered copies of
# each (saved at quality 30, half and third size, cut by 5 to 15 %, mirrored, turned, relit, lit from one side, tilted
# by 2 and 4 degrees, several of these at once): the most alike two pieces reach 0.72; of 1,173 copies all reach 0.91
# (median 0.98) but two small ones of a picture of 113 px: 0.77 and 0.52. No two pieces were taken for one.
SAME_PICTURE = 0.82
MAYBE_THE_SAME_PIECE = 0.74

_MIDDLE = 56  # side of the second view, px
_SCALES = (0.86, 0.93, 1.0, 1.075, 1.16)
# That many are looked at closely. Where 40 drawn pieces fill one and the same frame, a copy that lost 15 % of it can
# still have them all before its original; of real pieces none did, whose threads differ more.
_NEIGHBOURS = 5
_LEAST_COARSE = 0.4  # the coarse likeness of copies to their originals was 0.43 or more
_PLACEMENTS = 24  # ways to lay two views on each other that are followed up: a regular mesh fits at every cell
_LEAST_LIKENESS = (0.7, 0.85)  # in the coarse and the middle view, where 99 of 100 copies reach 0.78 and 0.93
# Beyond this, meshes of different width fit each other.
_MOST_ENLARGED, _MOST_STRETCHED = 1.22, 1.1


@dataclass(frozen=True)
class Pair:
    """Two pictures that show, or may show, the same piece; a person decides what to do with them.

    first, second  their places in what was handed in, first < second
    likeness       correlation of the threads when one is laid on the other, 0..1
    kind           "exact" (no difference at the size of a fingerprint), "same picture" (saved again, cut, turned or
                   relit), "maybe the same piece" (another photograph of it, or a piece very like it)
    """

    first: int
    second: int
    likeness: float
    kind: Kind


def groups(fingerprints: Sequence[Fingerprint]) -> tuple[tuple[int, ...], ...]:
    """Pictures by the piece that they show: each group's places in ascending order, groups by their first place.

    Pictures are of one group when they are exact copies or the same picture, or when a chain of such pictures joins
    them. "Maybe the same piece" does not join: two pieces of one ground may look like that.

    Raises ValueError where an array is no fingerprint.
    """
    return joined(len(fingerprints), pairs(fingerprints))


def joined(count: int, found: Sequence[Pair]) -> tuple[tuple[int, ...], ...]:
    """The groups of `count` pictures, from the pairs that pairs() found among them."""
    lowest = numpy.arange(count)
    for pair in found:
        if pair.kind != "maybe the same piece":
            _join(lowest, pair.first, pair.second)
    return tuple(tuple(numpy.flatnonzero(lowest == low).tolist()) for low in numpy.unique(lowest))


def pairs(fingerprints: Sequence[Fingerprint]) -> list[Pair]:
    """Pictures that show, or may show, the same piece, the surest pairs first.

    Of several exact copies each is paired with the first, and of a large group not every picture with every other: as
    many pairs as join the group.

    Raises ValueError where an array is no fingerprint.
    """
    first_of: dict[bytes, int] = {}
    found = []
    for place, print_ in enumerate(fingerprints):
        if print_.shape != FINGERPRINT_SHAPE or print_.dtype != FINGERPRINT_DTYPE or not print_.any():
            found_was = f"{print_.dtype} of {print_.shape}"
            raise ValueError(f"picture {place}: {found_was} is no fingerprint; make it with fingerprint(picture).")
        first = first_of.setdefault(print_.tobytes(), place)
        if first != place:
            found.append(Pair(first, place, 1.0, "exact"))
    different = list(first_of.values())
    for one, other, likeness in _alike([views_of(fingerprints[place], (COARSE, _MIDDLE)) for place in different]):
        kind: Kind = "same picture" if likeness >= SAME_PICTURE else "maybe the same piece"
        found.append(Pair(different[one], different[other], likeness, kind))
    return sorted(found, key=lambda pair: (pair.kind != "exact", -pair.likeness, pair.first, pair.second))


def held_out(
    groups: Sequence[Sequence[int]], fraction: float, seed: int, content: Sequence[str] = ()
) -> tuple[int, ...]:
    """Places of the pictures that are held out of training: whole groups, so that no piece stands on both sides.

    groups    as groups() gives them; every place in one group
    fraction  wished share of the pictures, 0..1
    seed      another seed, another choice
    content   what names each picture whatever its place, such as its sha256: then pictures that are added later change
              the choice as little as they can. Without it the places themselves decide.
    returns   ascending; as near to the wish as whole groups come, but never more than half of the pictures. Small
              groups go first: many different pieces tell more than one piece many times. Empty where the wish is less
              than one picture, or where all show one piece.

    Raises ValueError for a fraction outside 0..1, and where `content` does not name every picture.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction of {fraction:g} cannot be held out; give a number from 0 to 1.")
    count = sum(len(group) for group in groups)
    if fraction * count < 1 - 1e-9 or len(groups) < 2:  # 1 / 49 * 49 is a little less than 1
        return ()
    if content and len(content) != count:
        raise ValueError(f"{len(content)} names of content for {count} pictures; give one for each, in the same order.")
    names = content or [str(place) for place in range(count)]
    order = sorted(groups, key=lambda group: min(_lot(seed, names[place]) for place in group))
    chosen = _near(order, round(fraction * count), at_most=count // 2)
    return tuple(sorted(place for group in chosen for place in group))


def _lot(seed: int, name: str) -> bytes:
    """A picture's lot: the same whatever other pictures there are."""
    return sha256(f"{seed}/{name}".encode()).digest()


def _near(order: Sequence[Sequence[int]], wished: int, at_most: int) -> list[Sequence[int]]:
    """The first groups in `order` that together come nearest to the wish, none larger than needed for that."""
    best = min(_totals(order, at_most), key=lambda total: (abs(total - wished), total))
    for largest in sorted({len(group) for group in order}):
        candidates = [group for group in order if len(group) <= largest]
        if best in _totals(candidates, at_most):
            break
    # reachable[i]: bit t is set where groups i, i+1, … can add up to t
    sums = accumulate(reversed(candidates), lambda bits, group: bits | bits << len(group), initial=1)
    reachable = list(reversed(list(sums)))
    chosen, left = [], best
    for group, later in zip(candidates, reachable[1:], strict=True):
        if len(group) <= left and later >> (left - len(group)) & 1:
            chosen.append(group)
            left -= len(group)
    return chosen


def _totals(groups: Sequence[Sequence[int]], at_most: int) -> list[int]:
    """Every number of pictures, 1 to `at_most`, that whole groups add up to."""
    bits = 1
    for group in groups:
        bits |= bits << len(group)
    return [total for total in range(1, at_most + 1) if bits >> total & 1]


def _join(lowest: Places, one: int, other: int) -> None:
    """Make one group of the groups of two places; lowest[place] is the lowest place that it was joined to."""
    low, high = sorted((int(lowest[one]), int(lowest[other])))
    lowest[lowest == high] = low


def _alike(views: Sequence[tuple[Array, ...]]) -> Iterator[tuple[int, int, float]]:
    """Places and likeness of the pairs that reach MAYBE_THE_SAME_PIECE.

    Each picture is compared with its nearest ones; those that joined a group look further, outside it, until nothing
    joins any more: a picture that is there ten times would else see only its copies.
    """
    coarse = _coarse_likeness([view[0] for view in views])
    lowest = numpy.arange(len(views))
    tried: set[tuple[int, int]] = set()
    while new := _neighbours(coarse, lowest).difference(tried):
        for one, other in sorted(new):
            likeness = _likeness(views[one], views[other])
            if likeness >= MAYBE_THE_SAME_PIECE:
                yield one, other, likeness
            if likeness >= SAME_PICTURE:
                _join(lowest, one, other)
        tried |= new


def _neighbours(coarse: Array, lowest: Places) -> set[tuple[int, int]]:
    """Pairs (lower, higher) of each picture with the nearest ones outside its group."""
    apart = numpy.where(lowest[:, None] == lowest[None], -1, coarse)
    nearest = numpy.argsort(-apart, axis=1, kind="stable")[:, :_NEIGHBOURS]
    return {
        (min(one, other), max(one, other))
        for one, row in enumerate(nearest.tolist())
        for other in row
        if apart[one, other] >= _LEAST_COARSE
    }


def _coarse_likeness(views: Sequence[Array]) -> Array:
    """How alike every two coarse views are at their best placement: correlation, symmetric, 1 on the diagonal."""
    middles = [templates(view) for view in views]
    rows = numpy.concatenate(middles) if middles else numpy.empty((0, 1), numpy.float32)
    found = numpy.eye(len(views), dtype=numpy.float32)
    for place in range(1, len(views)):
        every = rows[: place * len(middles[0])] @ windows(views[place], _SCALES).T
        found[place, :place] = found[:place, place] = every.reshape(place, -1).max(axis=1)
    return found


def _likeness(one: tuple[Array, ...], other: tuple[Array, ...]) -> float:
    """How well the threads of two pictures lie on each other at their best placement, 0..1; 0 where they never do."""
    affines_K23 = placements(templates(one[0]), windows(other[0], _SCALES), _SCALES, _PLACEMENTS)
    likeness_K, affines_K23 = laid(one[0], other[0], COARSE, affines_K23, rounds=3)
    best = numpy.argsort(-likeness_K, kind="stable")[:8]
    likeness_K, affines_K23 = laid(one[0], other[0], COARSE, affines_K23[best], rounds=5)
    if likeness_K.max() < _LEAST_LIKENESS[0]:
        return 0.0
    best = numpy.argsort(-likeness_K, kind="stable")[:3]
    likeness_K, affines_K23 = laid(one[1], other[1], _MIDDLE, affines_K23[best], rounds=6)
    if likeness_K.max() < _LEAST_LIKENESS[1]:
        return 0.0
    best = numpy.argsort(-likeness_K, kind="stable")[:1]
    # Every second pixel each way is enough to move by, and four times as quick; all of them tell how well it lies.
    _, affines_K23 = laid(one[2], other[2], SIDE, affines_K23[best], rounds=5, stride=2)
    likeness_K, _ = laid(one[2], other[2], SIDE, affines_K23, rounds=0)
    return max(0.0, float(likeness_K[0])) if _is_a_copys(affines_K23[0]) else 0.0


def _is_a_copys(affine_23: Maps) -> bool:
    """Whether a picture that was cut or turned can lie like this: hardly larger or smaller, hardly stretched."""
    longer, shorter = numpy.linalg.svd(affine_23[:, :2], compute_uv=False)
    return bool(longer <= _MOST_ENLARGED and 1 <= shorter * _MOST_ENLARGED and longer <= _MOST_STRETCHED * shorter)
