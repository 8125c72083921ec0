"""What is compared of two pictures: fingerprints, and views of their local contrast, free of light and exposure."""

from functools import lru_cache
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[numpy.float32]
Fingerprint = NDArray[numpy.uint8]
Places = NDArray[numpy.int_]
Maps = NDArray[numpy.float64]  # K ways to lay one picture on another, affine: K × 2 × 3

# 128 is where different pieces of one ground part from copies: the most alike two reach a likeness of 0.80 at 96 px, of
# 0.72 at 128, while copies stay above 0.9; at 192 the gap is wider still, but a copy of 300 px has lost that detail.
SIDE = 128
COARSE = 24  # side of the view by which placements are found: steps so small that no thread is laid on its neighbour


def fingerprint(picture: Image.Image, side: int = SIDE) -> Fingerprint:
    """The picture's luminance, fitted into side × side and centred; all that is needed to compare it.

    picture  upright, without transparency, as data_utils.open_picture gives it
    returns  side × side: luminance 1..255, and 0 beside the picture
    """
    enlarge = side / max(picture.size)
    width, height = (max(2, round(length * enlarge)) for length in picture.size)
    small = picture.convert("L").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    sheet: Fingerprint = numpy.zeros((side, side), numpy.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    sheet[top : top + height, left : left + width] = numpy.maximum(numpy.asarray(small), 1)
    return sheet


def pixels_of(print_: Fingerprint) -> Array:
    """The luminance that a fingerprint holds, without what lies beside the picture."""
    down, right = numpy.flatnonzero(print_.any(axis=1)), numpy.flatnonzero(print_.any(axis=0))
    return print_[down[0] : down[-1] + 1, right[0] : right[-1] + 1].astype(numpy.float32)


def views(print_: Fingerprint, sides: tuple[int, ...]) -> tuple[Array, ...]:
    """Local contrast of a picture at smaller sizes and, last, at that of its fingerprint.

    sides  of the squares into which the smaller views are fitted, px
    """
    whole = len(print_)
    pixels = _evenly_lit(pixels_of(print_), whole)
    smaller = (smoothed(pixels, whole, side) for side in sides)
    return (*(_local_contrast(one) for one in smaller), _local_contrast(pixels))


def _evenly_lit(pixels: Array, whole: int) -> Array:
    """The picture without light that falls off to one side: divided by the plane that fits its logarithm.

    Near its edges no local mean can tell such light from lace: without this, a lamp from one side parted 7 of 69
    photographs of fine mesh from their copies, and 16 of 69 long strips.
    """
    # By whole cells: in single pixels thread and gap would weigh more than light.
    coarse = smoothed(pixels, whole, COARSE)
    down, right = _grid(coarse.shape)
    slopes = numpy.stack([down.ravel(), right.ravel(), numpy.ones(coarse.size)], axis=1)
    (by_down, by_right, _), *_ = numpy.linalg.lstsq(slopes, numpy.log(coarse.ravel()), rcond=None)
    down, right = _grid(pixels.shape)
    return (pixels / numpy.exp(by_down * down + by_right * right)).astype(numpy.float32)


def _grid(shape: tuple[int, ...]) -> list[NDArray[numpy.float64]]:
    """How far down and how far right each place of an array lies, -1..1."""
    return list(numpy.meshgrid(*((numpy.arange(side) + 0.5) / side * 2 - 1 for side in shape), indexing="ij"))


def smoothed(pixels: Array, whole: int, side: int) -> Array:
    """The picture in cells of whole / side pixels; an even number each way, so that its centre is between cells.

    Gaussian with a width of 0.7 cells: with less, the threads of a fine mesh beat with the cells, and a cut of two
    pixels changed the whole coarse view.
    """
    cell = whole / side
    weights = []
    for length in pixels.shape:
        cells = 2 * max(1, round(length / cell / 2))
        centres = (numpy.arange(cells) - (cells - 1) / 2) * cell + (length - 1) / 2
        weights.append(_bell(centres, numpy.arange(length), 0.7 * cell))
    return (weights[0] @ pixels @ weights[1].T).astype(numpy.float32)


@lru_cache(64)  # pictures of a set often share their sizes, and exponents take as long as all that is done with them
def blur(length: int, width: float) -> Array:
    """The matrix that smooths `length` values: Gaussian weights of that width, rows add up to one."""
    weights = _bell(numpy.arange(length), numpy.arange(length), width)
    weights.setflags(write=False)
    return weights


def _bell(centres: NDArray[Any], places: Places, width: float) -> Array:
    """Gaussian weights of each place (columns) around each centre (rows), which add up to one."""
    weights = numpy.exp(-((centres[:, None] - places) ** 2) / (2 * width * width)) + 1e-12
    return (weights / weights.sum(axis=1, keepdims=True)).astype(numpy.float32)


def _local_contrast(pixels: Array) -> Array:
    """Light and dark against the surroundings of 2.5 px, in parts of what is usual there: free of light and exposure.

    Half of the picture's own contrast, and a quarter of a grey level, are added below the fraction: plain cloth and
    white margins stay weak instead of showing their noise.
    """
    rows, columns = (blur(length, 2.5) for length in pixels.shape)
    detail = pixels - rows @ pixels @ columns.T
    spread = numpy.sqrt(rows @ (detail * detail) @ columns.T)
    return detail / (spread + 0.5 * detail.std() + 0.25)
