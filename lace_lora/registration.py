"""Laying one picture onto another: the affine map under which they correlate best.

Coordinates are (down, right) from a picture's centre, in parts of the side of the square that it was fitted into: a map
found on a small view holds on a large one.
"""

import numpy

from lace_lora.views import Array, Maps

# N pixels of a view · K maps tried side by side

_LEAST_OVERLAP = 0.5  # of the smaller picture: two cuts of 15 % from opposite corners share 0.68
_DAMPING = 1e-3  # a view of one direction only (stripes) leaves the other undecided; this decides for not moving


def laid(one: Array, other: Array, side: int, affines_K23: Maps, rounds: int, stride: int = 1) -> tuple[Array, Maps]:
    """Move `one` over `other` until they correlate best, from each of K placements.

    Gauss-Newton for one ≈ gain · other(affine) + offset. The brightness of a print or a lamp goes into gain and offset,
    a cut, a lens or a slight turn into the affine map.

    one, other  views of the same `side`, at least 2 px each way
    rounds      how often to move; 0 only measures
    stride      takes every stride-th pixel of `one` each way
    returns     the best correlation met on the way, -1..1 (-1 where too little overlaps), and its map: K, K × 2 × 3
    Source: Evangelidis and Psarakis 2008, https://doi.org/10.1109/TPAMI.2008.113 (the measure; here it is solved for
    gain and offset instead of being maximised).
    """
    rows, columns = (numpy.arange(0, length, stride) - (length - 1) / 2 for length in one.shape)
    down_N, right_N = (
        grid.ravel().astype(numpy.float32) / side for grid in numpy.meshgrid(rows, columns, indexing="ij")
    )
    wanted_N = one[::stride, ::stride].ravel()
    least = _LEAST_OVERLAP * min(one.size, other.size) / stride**2
    by_3N = numpy.stack([down_N * side, right_N * side, numpy.full_like(down_N, side)])
    columns_K8N = numpy.empty((len(affines_K23), 8, len(wanted_N)), numpy.float32)
    best_K: Array = numpy.full(len(affines_K23), -1, numpy.float32)
    best_K23 = affines_K23
    for number in range(rounds + 1):
        maps = affines_K23.astype(numpy.float32)
        at = maps[:, :, :1] * down_N + maps[:, :, 1:2] * right_N + maps[:, :, 2:]
        value_KN, by_down_KN, by_right_KN, inside_KN = _between(other, at * side)
        likeness_K = numpy.where(inside_KN.sum(axis=1) < least, -1, _correlation(wanted_N, value_KN, inside_KN))
        is_better = likeness_K > best_K
        best_K = numpy.where(is_better, likeness_K, best_K)
        best_K23 = numpy.where(is_better[:, None, None], affines_K23, best_K23)
        if number < rounds:
            # Written in place: this is where a search spends its time.
            numpy.multiply(value_KN, inside_KN, out=columns_K8N[:, 0])
            columns_K8N[:, 1] = inside_KN
            for first, slope_KN in ((2, by_down_KN), (5, by_right_KN)):
                numpy.multiply((slope_KN * inside_KN)[:, None], by_3N, out=columns_K8N[:, first : first + 3])
            affines_K23 = affines_K23 + _step(columns_K8N, wanted_N, side)
    return best_K, best_K23


def on_the_grid_of(one: Array, other: Array, map_23: Maps, side: int) -> tuple[Array, Array]:
    """`other` as it lies on the pixels of `one` under a map, and 1 where it reaches them: both as `one` is shaped."""
    rows, columns = (numpy.arange(length) - (length - 1) / 2 for length in one.shape)
    down_N, right_N = (grid.ravel() / side for grid in numpy.meshgrid(rows, columns, indexing="ij"))
    at = map_23[:, :1] * down_N + map_23[:, 1:2] * right_N + map_23[:, 2:]
    value_1N, _, _, inside_1N = _between(other, (at[None] * side).astype(numpy.float32))
    return value_1N.reshape(one.shape), inside_1N.reshape(one.shape)


def _between(view: Array, at_K2N: Array) -> tuple[Array, Array, Array, Array]:
    """The view's value between its pixels, its slope down and right (per pixel), and 1 where that is inside it: K × N.

    at_K2N  pixels down and right of the view's centre
    """
    rows, columns = view.shape
    down_KN, right_KN = at_K2N[:, 0] + numpy.float32((rows - 1) / 2), at_K2N[:, 1] + numpy.float32((columns - 1) / 2)
    inside_KN = (down_KN >= 0) & (right_KN >= 0) & (down_KN <= rows - 1) & (right_KN <= columns - 1)
    row_KN = numpy.minimum(numpy.maximum(down_KN.astype(numpy.intp), 0), rows - 2)
    column_KN = numpy.minimum(numpy.maximum(right_KN.astype(numpy.intp), 0), columns - 2)
    lower_KN, further_KN = down_KN - row_KN.astype(numpy.float32), right_KN - column_KN.astype(numpy.float32)
    flat, corner_KN = view.ravel(), row_KN * columns + column_KN
    a, b, c, d = (flat[step:].take(corner_KN) for step in (0, 1, columns, columns + 1))
    upper_KN, under_KN = a + further_KN * (b - a), c + further_KN * (d - c)
    by_down_KN, by_right_KN = under_KN - upper_KN, (b - a) + lower_KN * ((d - c) - (b - a))
    return upper_KN + lower_KN * by_down_KN, by_down_KN, by_right_KN, inside_KN.astype(numpy.float32)


def _correlation(wanted_N: Array, value_KN: Array, inside_KN: Array) -> Array:
    """Normalised cross-correlation of one row with each of K, over the pixels inside: -1..1."""
    count_K1 = numpy.maximum(inside_KN.sum(axis=1, keepdims=True), 1)
    wanted_KN = (wanted_N - (inside_KN @ wanted_N)[:, None] / count_K1) * inside_KN
    found_KN = (value_KN - (value_KN * inside_KN).sum(axis=1, keepdims=True) / count_K1) * inside_KN
    norms_K = numpy.sqrt((wanted_KN**2).sum(axis=1) * (found_KN**2).sum(axis=1))
    return (wanted_KN * found_KN).sum(axis=1) / numpy.maximum(norms_K, 1e-6)


def _step(columns_K8N: Array, wanted_N: Array, side: int) -> Maps:
    """How far to change each affine map, by least squares: K × 2 × 3, zero where brighter would have to lie on darker.

    columns_K8N  what one wanted pixel is made of: value, 1, and the slopes times each entry of the map
    """
    squares_K88 = (columns_K8N @ columns_K8N.transpose(0, 2, 1)).astype(numpy.float64)
    diagonal = numpy.arange(8)
    squares_K88[:, diagonal, diagonal] *= 1 + _DAMPING
    squares_K88[:, diagonal, diagonal] += 1e-6  # a blank view, whose slopes are all zero
    found_K8 = numpy.linalg.solve(squares_K88, (columns_K8N @ wanted_N)[:, :, None].astype(numpy.float64))[:, :, 0]
    gain_K1 = numpy.where(found_K8[:, :1] > 0.05, found_K8[:, :1], numpy.inf)
    steps_K23 = (found_K8[:, 2:] / gain_K1).reshape(-1, 2, 3)
    # The slopes hold for about a pixel: at the picture's edge (half a side away) no step may move it much further.
    reach_K = numpy.maximum(abs(steps_K23[:, :, 2]).max(axis=1), abs(steps_K23[:, :, :2]).max(axis=(1, 2)) / 2)
    return steps_K23 * numpy.minimum(1, 1.5 / side / numpy.maximum(reach_K, 1e-9))[:, None, None]
