"""How sharp a photograph is, and how much its JPEG files took away: numbers to rank a set by, never a verdict.

Both are numbers for a person to look at: a picture that is softer than the others may be the only one of its piece.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import median

import numpy
from numpy.typing import NDArray
from PIL import Image

Grey = NDArray[numpy.float32]  # height × width, luminance 0..255

# Gradients are compared after smoothing by these, px: the first is wide enough to pass over noise and JPEG's ringing.
_FINE_PX, _COARSE_PX = 1.0, 2.0
_TILE_PX = 48  # a few meshes of a ground
_BANDS = 12  # of tiles, at most: half of a picture at 1024 px
_MARGIN_PX = 9  # what smoothing twice and the gradient take from each side
_STEEPEST = 0.02  # of a tile's pixels: one edge across it; with 0.1 a lone thread on plain ground counted as blunt
_LEAST_STEEPNESS = 0.3  # of that of a rich tile; plain ground and paper lie below
_FAINTEST = 1.0  # grey levels a pixel; below it is noise
BLUNTEST_PX = 20.0  # the most that is told: nothing rises or falls at all, or it is too small to tell

_BLOCK_PX = 8  # JPEG's own
_ROWS = 400  # that many tell as much as all
_LIGHT_LEVELS = 0.5  # added below the fraction, so that a blank picture shows no blocks

# ITU-T T.81 (1992), table K.1: the luminance steps of quality 50, which libjpeg's quality scales.
_STEPS_AT_50 = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
    51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121,
    120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """What can be told of a photograph without knowing how it looked.

    blur_px       width of its edges (sigma of a Gaussian) where the short side has `side_px`; 0 is as sharp as can be
    jpeg_quality  1..100, what its file was saved with last; None where it is no JPEG
    blockiness    how much the borders of JPEG's squares stand out, 0 (not at all) to about 1; from the pixels, so that
                  it also tells of an earlier file
    """

    blur_px: float
    jpeg_quality: int | None
    blockiness: float

    @property
    def compression(self) -> float:
        """How much compressing took away, 0 (nothing) to 1: by the file or by the pixels, whichever says more."""
        by_file = 0.0 if self.jpeg_quality is None else 1 - self.jpeg_quality / 100
        return max(by_file, min(1.0, self.blockiness))


def measured(picture: Image.Image, side_px: int, reduced: int = 1, luma_table: tuple[int, ...] = ()) -> Quality:
    """The quality of an upright picture, judged at the size at which it is trained.

    side_px     short side at which sharpness counts: what is lost in scaling down to it was not there to be learnt. A
                smaller picture will be enlarged, and its blur with it.
    reduced     how many pixels of the file one of the picture stands for, as image_files.OpenedPicture tells
    luma_table  the file's JPEG steps, 64 of them, or none
    """
    grey = picture.convert("L")
    blocks = blockiness(numpy.asarray(grey, numpy.float32), _BLOCK_PX // reduced)
    short = min(grey.size)
    if short > side_px:
        size = (max(1, round(side * side_px / short)) for side in grey.size)
        grey = grey.resize((next(size), next(size)), Image.Resampling.LANCZOS, reducing_gap=3.0)
    blur = blur_px(numpy.asarray(grey, numpy.float32)) * max(1.0, side_px / short)
    return Quality(round(min(BLUNTEST_PX, blur), 2), jpeg_quality(luma_table), round(blocks, 3))


def blur_px(grey: Grey) -> float:
    """How wide the edges of a picture are: sigma of the Gaussian, px, that would have made them of sharp ones.

    An edge of width s has a gradient of 1 / sqrt(s² + a²) after smoothing by a; the ratio at two smoothings gives s,
    whatever the contrast. It is taken at the steepest pixels of each tile and its median over the tiles that have
    edges, so that plain ground and a background out of focus do not count as blur. Threads finer than the smoothing
    only make the ratio larger: fine mesh counts as sharp. On 69 photographs of real lace, blurred by 0 to 4 px, its
    rank correlation with the blur over all pictures is 0.94 (variance of the Laplacian: 0.88; that divided by the
    contrast: 0.77), and no picture's measure falls as its blur grows.
    Source: Zhuo and Sim 2011, https://doi.org/10.1016/j.patcog.2011.03.009 (one smoothing there, two here: no noise).
    """
    if min(grey.shape) <= 2 * _MARGIN_PX:
        return BLUNTEST_PX
    by_band = [_steep_tiles(band) for band in _bands(grey)]
    by_tile = [numpy.concatenate(parts) for parts in zip(*by_band, strict=True)]
    edges = max(1, round(by_tile[0].shape[1] * _STEEPEST))
    places = numpy.argpartition(-by_tile[0], edges - 1, axis=1)[:, :edges]
    steep_fine, steep_coarse = (numpy.take_along_axis(one, places, axis=1).mean(axis=1) for one in by_tile)
    has_edges = steep_fine >= max(_LEAST_STEEPNESS * numpy.quantile(steep_fine, 0.9), _FAINTEST)
    if not has_edges.any():
        return BLUNTEST_PX
    ratio = median((steep_fine / numpy.maximum(steep_coarse, 1e-6))[has_edges].tolist())
    squared = (_COARSE_PX**2 - (ratio * _FINE_PX) ** 2) / max(ratio * ratio - 1, 1e-3)
    return float(min(BLUNTEST_PX, max(0.0, squared) ** 0.5))


def blockiness(grey: Grey, period: int = _BLOCK_PX) -> float:
    """How much brighter the steps are at the borders of squares of `period` px than between them; 0 for less than 4 px.

    Each step is taken beyond its two neighbours, so that edges and shading do not count. The grid begins at one corner
    of the picture, whichever: a picture that was turned upright has it at another one.
    """
    if period < 4 or min(grey.shape) < 4 * period:
        return 0.0
    return float(numpy.mean([_along(grey, period), _along(grey.T, period)]))


def jpeg_quality(luma_table: tuple[int, ...]) -> int | None:
    """The quality, 1..100, at which libjpeg would use steps as coarse as these; None for no table.

    Only low frequencies count: the steps of high ones reach the largest number that a file holds.
    """
    if len(luma_table) != len(_STEPS_AT_50):
        return None
    low = [place for place, step in enumerate(_STEPS_AT_50) if step <= 40]
    percent = 100 * sum(luma_table[place] for place in low) / sum(_STEPS_AT_50[place] for place in low)
    quality = 5000 / percent if percent > 100 else (200 - percent) / 2
    return max(1, min(100, round(quality)))


def _along(grey: Grey, period: int) -> float:
    """The same for the borders between columns."""
    steps = abs(numpy.diff(grey[:: max(1, len(grey) // _ROWS)], axis=1))
    beyond = (steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2).mean(axis=0)  # of the border left of column 2, 3, …
    by_place = [float(beyond[(place - 2) % period :: period].mean()) for place in range(period)]
    found = 0.0
    for border in {0, grey.shape[1] % period}:
        between = [step for place, step in enumerate(by_place) if place != border]
        found = max(found, by_place[border] - median(between))
    return found / (float(steps.mean()) + _LIGHT_LEVELS)


def _bands(grey: Grey) -> Iterator[Grey]:
    """Strips of a tile's height over the whole width, evenly spread; small enough for a processor's cache."""
    high = min(_TILE_PX, grey.shape[0] - 2 * _MARGIN_PX)
    slack = grey.shape[0] - 2 * _MARGIN_PX - high
    count = min(_BANDS, slack // high + 1)
    for number in range(count):
        top = round(slack * number / max(1, count - 1))
        yield grey[top : top + high + 2 * _MARGIN_PX]


def _steep_tiles(band: Grey) -> tuple[Grey, Grey]:
    """The gradients of a band after the fine and after the coarse smoothing; a row of each holds a tile's pixels."""
    fine = _smoothed(band, _FINE_PX)
    coarse = _smoothed(fine, (_COARSE_PX**2 - _FINE_PX**2) ** 0.5)
    lost = (fine.shape[0] - coarse.shape[0]) // 2
    return _tiles(_steepness(fine[lost:-lost, lost:-lost])), _tiles(_steepness(coarse))


def _steepness(grey: Grey) -> Grey:
    """Length of the gradient, grey levels a pixel, at all pixels but the outermost."""
    down, right = grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2]
    return numpy.asarray(numpy.hypot(down, right) / 2, numpy.float32)


def _tiles(band: Grey) -> Grey:
    """The values of each tile of a band as a row; what is left over at the right falls away."""
    high, wide = band.shape[0], min(_TILE_PX, band.shape[1])
    columns = band.shape[1] // wide
    return band[:, : columns * wide].reshape(high, columns, wide).swapaxes(0, 1).reshape(columns, high * wide)


def _smoothed(grey: Grey, sigma: float) -> Grey:
    """Gaussian, without the borders, whose surroundings are not known."""
    weights = _bell(sigma)
    reach = len(weights) // 2
    for _ in range(2):  # down, then right: the second turn of the array restores it
        length = len(grey) - 2 * reach
        total = weights[reach] * grey[reach : reach + length]
        for place in range(reach):
            opposite = 2 * reach - place
            total += weights[place] * (grey[place : place + length] + grey[opposite : opposite + length])
        grey = numpy.ascontiguousarray(total.T)
    return grey


@cache
def _bell(sigma: float) -> Grey:
    reach = round(3 * sigma)
    places = numpy.arange(-reach, reach + 1)
    weights = numpy.exp(-(places**2) / (2 * sigma * sigma))
    return (weights / weights.sum()).astype(numpy.float32)
