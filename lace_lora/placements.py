"""Where one picture may lie on another: coarse views correlated over turns, mirrorings, scales and shifts.

Coordinates are (down, right) from a picture's centre, in parts of the side of the square that it was fitted into.
"""

from collections.abc import Sequence

import numpy

from lace_lora.views import COARSE, Array, Maps

TEMPLATE = 16  # the middle of a coarse view: in any cut that takes away at most a third of a side
BETWEEN = (0.0, 0.5)  # a fine mesh is out of step half a cell further on, so windows stand between cells too
SHIFTS = COARSE - TEMPLATE + 1

_QUARTER_TURN, _MIRROR = numpy.array([[0, -1], [1, 0]]), numpy.diag([1, -1])
SYMMETRIES = [
    numpy.linalg.matrix_power(_MIRROR, mirrored) @ numpy.linalg.matrix_power(_QUARTER_TURN, turns)
    for mirrored in range(2)
    for turns in range(4)
]


def templates(view: Array) -> Array:
    """The middle of a coarse view, turned and mirrored as SYMMETRIES, each one row of length one."""
    edge = (COARSE - TEMPLATE) // 2
    middle = _sheet(view)[edge:-edge, edge:-edge]
    turned = [numpy.rot90(middle, turns) for turns in range(4)]
    return _rows_of_length_one(numpy.array([*turned, *(one[:, ::-1] for one in turned)]))


def windows(view: Array, scales: Sequence[float]) -> Array:
    """Every place of the template on a coarse view, each one row of length one: by scale, BETWEEN, down, right."""
    sheet = _sheet(view)
    cut = [
        numpy.lib.stride_tricks.sliding_window_view(_enlarged(sheet, scale, between), (TEMPLATE, TEMPLATE))
        for scale in scales
        for between in BETWEEN
    ]
    return _rows_of_length_one(numpy.array(cut).reshape(-1, TEMPLATE, TEMPLATE))


def placements(templates_of_one: Array, windows_of_other: Array, scales: Sequence[float], count: int) -> Maps:
    """The best ways to lay one coarse view on the other: affine maps between their coordinates, count × 2 × 3.

    scales  those of the windows, ascending

    Neighbours of a better one (a shift by one cell, the next scale) are left out: finer views find them.
    """
    shape = (len(SYMMETRIES), len(scales), len(BETWEEN), SHIFTS, SHIFTS)
    every = (templates_of_one @ windows_of_other.T).reshape(shape)
    found = []
    for _ in range(count):
        symmetry, scale, between, down, right = (int(part) for part in numpy.unravel_index(every.argmax(), shape))
        near, downs, rights = (slice(max(0, part - 1), part + 2) for part in (scale, down, right))
        every[symmetry, near, :, downs, rights] = -2
        moved = (numpy.array([down, right]) + BETWEEN[between] - (COARSE - TEMPLATE) / 2) / COARSE
        found.append(numpy.column_stack([SYMMETRIES[symmetry], moved]) / scales[scale])
    return numpy.array(found)


def _sheet(view: Array) -> Array:
    """A coarse view in the middle of a square of zeros."""
    down, right = ((COARSE - length) // 2 for length in view.shape)
    return numpy.pad(view, ((down, down), (right, right)))


def _enlarged(sheet: Array, scale: float, between: float) -> Array:
    """The sheet, enlarged about its centre and moved up and left by a part of a cell; what leaves it is lost."""
    middle = (COARSE - 1) / 2
    places = (numpy.arange(COARSE) + between - middle) / scale + middle
    weights = numpy.maximum(0, 1 - abs(places[:, None] - numpy.arange(COARSE))).astype(numpy.float32)
    return weights @ sheet @ weights.T


def _rows_of_length_one(squares: Array) -> Array:
    """Each square as a row of length one; a blank one stays zero, like nothing."""
    rows = squares.reshape(len(squares), -1)
    return rows / numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
