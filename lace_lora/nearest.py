"""The photograph that a picture is most like: searched coarsely, laid onto it ever finer, compared by threads.

Unlike near_duplicates, which asks whether two photographs are one, this always answers: with the nearest photograph and
how alike the two are. It tries deeper cuts, compares at twice the size, and does not mind where a third is another.

Coordinates are (down, right) from a picture's centre, in parts of the longer side.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy
from PIL import Image

from lace_lora.placements import SYMMETRIES, placements, templates, windows
from lace_lora.registration import laid, on_the_grid_of
from lace_lora.views import COARSE, Array, Fingerprint, Maps, blur, fingerprint, pixels_of, views

# At 256 px the threads of a piece tell it from the same design worked again: on drawn lace whose seeds change little
# but the thickness of threads, another piece reached 0.986 and the worst copy 0.994; at 128 px both reached 0.97.
SIDE = 256
SIDES = (COARSE, 56, 128)  # of the smaller views by which pictures are laid on each other
# A photograph of 3 : 2 that was cut to a square is enlarged by 1.5 when it is fitted into the same square.
SCALES = (0.86, 0.93, 1.0, 1.075, 1.16, 1.25, 1.36, 1.48)
_MOST_SHRUNK, _MOST_ENLARGED, _MOST_STRETCHED = 1.22, 1.6, 1.1

# How many are laid on it. Fifty drawn pieces of one design are alike at every coarse view; and of a fine mesh in one
# frame, cut by 15 %, the coarse view tells so little that up to 92 of 250 others came first.
CANDIDATES = 100
_UNMOVED = 4
_FOLLOWED, _FEWER_FOLLOWED, _THOROUGH = 24, 8, 8  # placements: of the first, of the others; how many are the first
# Of those that were laid on each other at a view, that many go on, if not so much worse than the best.
_KEPT = ((100, 0.4), (100, 0.4), (32, 0.15), (8, 0.05))
_FINE_KEPT = 256
_TILES = 8  # a side
_THREADS_PX = 5.0  # what is smooth over more than that is light and cloth, not threads
_SMOOTH_PX = 0.7  # grain and JPEG's ringing


Row = tuple[int, float, Maps]  # a place, how well it lies, and the ways in which it may


@dataclass(frozen=True)
class Found:
    """The nearest of those that were searched.

    place     of the nearest, in what was handed in
    likeness  of the threads where the one lies on the other, 0..1; half of the lace is more alike, half less
    how       how it lies there, in words ("mirrored, a cut-out"); empty where it lies as it is
    """

    place: int
    likeness: float
    how: str


class Searched:
    """Photographs, ready to be searched for the nearest ones.

    prints  of SIDE px each
    """

    def __init__(self, prints: Sequence[Fingerprint]) -> None:
        self.prints = tuple(prints)
        self._views = [views_of(print_) for print_ in prints]
        self._kept_fine: dict[int, tuple[Array, Array]] = {}

    def __len__(self) -> int:
        return len(self.prints)

    def nearest(
        self,
        made: Sequence[Fingerprint],
        also: Sequence[Collection[int]] = (),
        barred: Sequence[Collection[int]] = (),
        tell: Callable[[int], None] = lambda more: None,
    ) -> list[Found | None]:
        """The nearest of each that was made; None where all are barred.

        also    for each, places to look at closely whatever their coarse likeness: what a style model finds alike
        barred  for each, places to leave out: photographs of its own piece
        tell    is told after each that one more is done
        """
        views_M = [views_of(print_) for print_ in made]
        templates_M = [templates(view[0]) for view in views_M]
        coarse_ML = self._coarse(templates_M)
        for number, places in enumerate(barred):
            coarse_ML[number, list(places)] = -2
        closely = [self._closely(coarse_L, also[number] if also else ()) for number, coarse_L in enumerate(coarse_ML)]
        rough = self._rough(templates_M, closely)
        found = []
        for number, places in enumerate(closely):
            maps = [rough.pop((number, place)) for place in places]
            found.append(self._best(made[number], views_M[number], places, maps) if places else None)
            tell(1)
        return found

    def _coarse(self, templates_M: Sequence[Array]) -> Array:
        """How alike the coarse views are at their best placement: correlation, M made × L searched."""
        found = numpy.zeros((len(templates_M), len(self)), numpy.float32)
        if templates_M:
            rows = numpy.concatenate(templates_M)
            for place, (coarse, *_) in enumerate(self._views):
                every = rows @ windows(coarse, SCALES).T
                found[:, place] = every.reshape(len(templates_M), -1).max(axis=1)
        return found

    def _closely(self, coarse_L: Array, also: Collection[int]) -> list[int]:
        """The places that are looked at closely, in falling order of their coarse likeness; what is barred has -2."""
        order = numpy.argsort(-coarse_L, kind="stable").tolist()
        return [
            place for rank, place in enumerate(order) if coarse_L[place] > -2 and (rank < CANDIDATES or place in also)
        ]

    def _rough(self, templates_M: Sequence[Array], closely: Sequence[Sequence[int]]) -> dict[tuple[int, int], Maps]:
        """Ways to lay each on the places that are looked at closely; the windows of a place are made once."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for number, places in enumerate(closely):
            for rank, place in enumerate(places):
                wanted.setdefault(place, []).append((number, _FOLLOWED if rank < _THOROUGH else _FEWER_FOLLOWED))
        found: dict[tuple[int, int], Maps] = {}
        for place, rows in wanted.items():
            every = windows(self._views[place][0], SCALES)
            found |= {(number, place): placements(templates_M[number], every, SCALES, count) for number, count in rows}
        return found

    def _best(self, print_: Fingerprint, one: Sequence[Array], places: Sequence[int], maps: Sequence[Maps]) -> Found:
        """The nearest of a few; of them those that lie badly are left behind at each finer view."""
        rows = [self._laid(one, 0, (place, 0.0, maps_K23), 3, 12) for place, maps_K23 in zip(places, maps, strict=True)]
        rows = [self._laid(one, 0, row, 4, 3 if len(row[2]) < 12 else 8) for row in _within(rows, *_KEPT[0])]
        # Where a fifth was shifted in, moving a coarse view may lead away from the right place: the first ones keep it.
        unmoved = dict(zip(places[:_THOROUGH], maps, strict=False))
        rows = [
            (
                place,
                likeness,
                numpy.concatenate([maps_K23, unmoved[place][:_UNMOVED]]) if place in unmoved else maps_K23,
            )
            for place, likeness, maps_K23 in rows
        ]
        rows = [self._laid(one, 1, row, 5, 1) for row in _within(rows, *_KEPT[1])]
        rows = [self._laid(one, 2, row, 5, 1, stride=2) for row in _within(rows, *_KEPT[2])]
        found, pixels, fine = [], _luminance(print_), views(print_, ())[0]
        for place, _, maps_123 in _within(rows, *_KEPT[3]):
            other_fine, other_pixels = self._fine(place)
            _, maps_123 = laid(fine, other_fine, SIDE, maps_123, rounds=3, stride=3)
            likeness = agreement(pixels, other_pixels, maps_123[0]) if _is_a_copys(maps_123[0]) else 0.0
            found.append(Found(place, likeness, in_words(maps_123[0])))
        return max(found, key=lambda one: one.likeness)

    def _fine(self, place: int) -> tuple[Array, Array]:
        """View and luminance of a place at full size; the last ones are kept, for they take half a megabyte each."""
        found = self._kept_fine.get(place)
        if found is None:
            if len(self._kept_fine) >= _FINE_KEPT:
                self._kept_fine.clear()
            found = self._kept_fine[place] = (views(self.prints[place], ())[0], _luminance(self.prints[place]))
        return found

    def _laid(self, one: Sequence[Array], level: int, row: Row, rounds: int, keep: int, stride: int = 1) -> Row:
        """A row moved on until its views of that level lie on each other as well as they can, with its best maps."""
        place, _, maps_K23 = row
        likeness_K, maps_K23 = laid(one[level], self._views[place][level], SIDES[level], maps_K23, rounds, stride)
        best = numpy.argsort(-likeness_K, kind="stable")[:keep]
        return place, float(likeness_K[best[0]]), maps_K23[best]


def print_of(picture: Image.Image) -> Fingerprint:
    """The fingerprint of a picture by which it is searched and found: SIDE × SIDE."""
    return fingerprint(picture, SIDE)


def with_detail_of(print_: Fingerprint, side_px: int) -> Fingerprint:
    """The fingerprint that the same picture would have, had it been made with that longer side."""
    if side_px >= SIDE:
        return print_
    whole = Image.fromarray(pixels_of(print_).astype(numpy.uint8))
    size = [max(2, round(length * side_px / SIDE)) for length in whole.size]
    return print_of(whole.resize((size[0], size[1]), Image.Resampling.LANCZOS))


def views_of(print_: Fingerprint) -> tuple[Array, ...]:
    """The views of SIDES: local contrast by which pictures are laid on each other."""
    return views(print_, SIDES)[:-1]


def agreement(one: Array, other: Array, map_23: Maps) -> float:
    """How well the threads of two pictures lie on each other under a map, 0..1.

    Both are compared on the grid of the one that shows more, and so holds less detail, tile by tile: a part that was
    cut, painted over or shifted in costs no more than its place. Tiles count by their contrast: cloth says nothing.

    one, other  luminance at SIDE
    returns     the weighted median of the tiles' correlations; 0 where too little overlaps
    """
    if numpy.linalg.det(map_23[:, :2]) ** 2 < 1:
        back_22 = numpy.linalg.inv(map_23[:, :2])
        one, other, map_23 = other, one, numpy.column_stack([back_22, -back_22 @ map_23[:, 2]])
    laid_HW, inside_HW = on_the_grid_of(one, other, map_23, SIDE)
    rows, columns = (blur(length, _THREADS_PX) for length in one.shape)
    share_HW = rows @ inside_HW @ columns.T + 1e-6
    mine_HW, theirs_HW = (
        (picture - (rows @ (picture * inside_HW) @ columns.T) / share_HW) * inside_HW for picture in (one, laid_HW)
    )
    count, mine, theirs, both = (
        _by_tiles(numpy.asarray(one, numpy.float32))
        for one in (inside_HW, mine_HW**2, theirs_HW**2, mine_HW * theirs_HW)
    )
    whole = (SIDE // _TILES) ** 2
    # What is left of a tile's mean after the surroundings were taken away is next to nothing.
    likeness = both / numpy.sqrt(mine * theirs + 1e-9)
    weight = numpy.sqrt(mine / max(float(mine.sum()), 1e-9)) + numpy.sqrt(theirs / max(float(theirs.sum()), 1e-9))
    weight = numpy.where(count > 0.6 * whole, weight, 0)
    order = numpy.argsort(likeness)
    up_to = numpy.cumsum(weight[order])
    if up_to[-1] <= 0:
        return 0.0
    return max(0.0, float(likeness[order][numpy.searchsorted(up_to, up_to[-1] / 2)]))


def in_words(map_23: Maps) -> str:
    """How one picture lies on another, from the map between their coordinates; empty where it lies as it is."""
    linear, moved = map_23[:, :2], map_23[:, 2]
    scale = float(numpy.sqrt(abs(numpy.linalg.det(linear))))
    alike = [float((linear / scale * symmetry).sum()) for symmetry in SYMMETRIES]
    words = [_SYMMETRIES_IN_WORDS[int(numpy.argmax(alike))]]
    if scale < 0.95:
        words.append("a cut-out")
    elif scale > 1.05:
        words.append("with something around it")
    if scale >= 0.95 and float(abs(moved).max()) > 0.03:
        words.append("shifted")
    return ", ".join(word for word in words if word)


# In the order of placements.SYMMETRIES: what was done to the photograph to get the picture.
_SYMMETRIES_IN_WORDS = (
    "",
    "turned a quarter to the right",
    "turned upside down",
    "turned a quarter to the left",
    "mirrored",
    "mirrored and turned a quarter to the right",
    "mirrored and turned upside down",
    "mirrored and turned a quarter to the left",
)


def _within(rows: Sequence[Row], at_most: int, margin: float) -> list[Row]:
    """The best rows, not much worse than the best one."""
    ordered = sorted(rows, key=lambda row: -row[1])
    return [row for row in ordered[:at_most] if row[1] >= ordered[0][1] - margin]


def _luminance(print_: Fingerprint) -> Array:
    pixels = pixels_of(print_)
    rows, columns = (blur(length, _SMOOTH_PX) for length in pixels.shape)
    return (rows @ pixels @ columns.T).astype(numpy.float32)


def _by_tiles(values_HW: Array) -> Array:
    """Sums over the tiles, row by row; a border narrower than a tile is a tile of its own."""
    side = SIDE // _TILES
    cuts = [numpy.arange(0, length, side) for length in values_HW.shape]
    sums: Array = numpy.add.reduceat(numpy.add.reduceat(values_HW, cuts[0], axis=0), cuts[1], axis=1)
    return sums.ravel()


def _is_a_copys(map_23: Maps) -> bool:
    """Whether a picture that was cut or turned can lie like this. Beyond, meshes of different width fit each other."""
    longer, shorter = numpy.linalg.svd(map_23[:, :2], compute_uv=False)
    is_large_enough, is_small_enough = shorter * _MOST_ENLARGED >= 1, longer <= _MOST_SHRUNK
    return bool(is_large_enough and is_small_enough and longer <= _MOST_STRETCHED * shorter)
