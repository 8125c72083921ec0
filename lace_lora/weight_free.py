"""Fifty-five numbers of one picture, with no network: light, edges, texture, the small patterns of threads, and colour.

For the distances of `mmd`, where no style model can be had. They see what ten statistics at 96 px (style_statistics) do
not: threads gone soft, a finer mesh, another colour of equal strength. They do not see what a picture depicts.

Measured on real and on drawn lace: benchmarks/results/evidence-*.md.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy
from PIL import Image

from lace_lora.style_statistics import VISIBLE_EDGE, Array, direction_evenness, luminance, slopes

SIDE = 256  # px: pictures are brought to an area of SIDE × SIDE, where the threads of a photographed piece can be seen
_SHORTEST = 64  # px of a side: a long edging keeps so many
_SIZES = 3  # edges and patterns are looked at in full size, half and a quarter
_OCTAVES = (2, 4, 8, 16, 32, 64, 128)  # cycles per SIDE that bound the bands of texture
_PEAKS = 0.005  # of all waves; a regular ground has most of its power in so few
_WINDOW = 8  # px in which edges share a direction or do not
_CELL = 32  # px: between such cells the light of a whole piece is even or is not
_STEP = 0.01  # of luminance, that a neighbour must be lighter by: less is grain
_FAINT = 0.002  # luminance per px added below the logarithm: flat cloth has an edge energy of about that
_SMALLEST_SPREAD = 0.02  # of every number: pictures without colour would else make a trace of it a revolution


def _light(light: Array) -> list[float]:
    """How dark and how bright it is: five quantiles of luminance, and how much its cells differ."""
    return [*numpy.quantile(light, [0.05, 0.25, 0.5, 0.75, 0.95]), float(_cells(light, _CELL).std())]


def _edges(light: Array) -> list[float]:
    """At each size: edge energy (log), share of visible edges, evenness of directions, how straight edges run on."""
    numbers = []
    for one in _sizes(light):
        across, down = slopes(one)
        steepness = numpy.hypot(across, down)
        xx, yy, xy = (_cells(part, _WINDOW) for part in (across * across, down * down, across * down))
        straight = numpy.hypot(xx - yy, 2 * xy).sum() / ((xx + yy).sum() + 1e-6)
        energy, visible = numpy.log(steepness.mean() + _FAINT), (steepness > VISIBLE_EDGE).mean()
        numbers += [float(energy), float(visible), direction_evenness(across, down), float(straight)]
    return numbers


def _texture(light: Array) -> list[float]:
    """Log shares of spectral power octave by octave, motifs to threads, and of the strongest waves: how regular it is.

    A Hann window, so that the picture's borders are no texture.
    """
    height, width = light.shape
    window = numpy.hanning(height)[:, None] * numpy.hanning(width)[None, :]
    power = numpy.abs(numpy.fft.rfft2((light - light.mean()) * window)) ** 2
    cycles = numpy.hypot(numpy.fft.fftfreq(height)[:, None], numpy.fft.rfftfreq(width)[None, :]) * SIDE
    waves = numpy.sort(power[cycles >= _OCTAVES[0]])[::-1]
    bounds = zip(_OCTAVES[:-1], _OCTAVES[1:], strict=True)
    bands = [power[(cycles >= low) & (cycles < high)].sum() for low, high in bounds]
    shares = numpy.array([*bands, waves[: max(1, round(_PEAKS * len(waves)))].sum()]) / (waves.sum() + 1e-9)
    return [float(share) for share in numpy.log(shares + 1e-4)]


def _patterns(light: Array) -> list[float]:
    """At two sizes: how often a pixel is a spot, an end, an edge, a corner … among its eight neighbours (square roots).

    Local binary patterns, the ten that stay the same when a picture is turned.
    Source: Ojala, Pietikäinen and Mäenpää 2002, "Multiresolution gray-scale and rotation invariant texture
    classification with local binary patterns", eq. 9, with the square neighbourhood.
    """
    numbers: list[float] = []
    for one in _sizes(light)[:2]:
        height, width = one.shape
        ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
        around = [one[down : down + height - 2, right : right + width - 2] for down, right in ring]
        lighter = numpy.stack([part > one[1:-1, 1:-1] + _STEP for part in around])
        changes = (lighter != numpy.roll(lighter, 1, axis=0)).sum(0)
        kinds = numpy.where(changes <= 2, lighter.sum(0), 9)
        numbers += numpy.sqrt(numpy.bincount(kinds.ravel(), minlength=10) / kinds.size).tolist()
    return numbers


def _colour(rgb: Array) -> list[float]:
    """Red against green, and yellow against blue: mean, spread, tenth and ninetieth of 100; saturation."""
    red_green, yellow_blue = rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    saturation = rgb.max(-1) - rgb.min(-1)
    numbers = [float(number) for part in (red_green, yellow_blue, saturation) for number in (part.mean(), part.std())]
    return numbers + [float(one) for part in (red_green, yellow_blue) for one in numpy.quantile(part, [0.1, 0.9])]


_BLOCKS: dict[str, tuple[int, Callable[[Array], list[float]]]] = {
    "light": (6, _light),
    "edges": (4 * _SIZES, _edges),
    "texture": (len(_OCTAVES), _texture),
    "patterns": (20, _patterns),
    "colour": (10, _colour),
}
COUNT = sum(size for size, _ in _BLOCKS.values())


def features(picture: Image.Image) -> Array:
    """The numbers of one picture, shape (COUNT,): light, edges, texture, patterns, colour; each finite.

    picture  any size and shape; brought to an area of SIDE × SIDE with its shape kept, so that round meshes stay round.
             Mirrored or turned by a quarter it has nearly the same numbers.
    """
    rgb = numpy.asarray(_fitted(picture), dtype=numpy.float64) / 255
    light = luminance(rgb)
    return numpy.array([one for name, (_, look) in _BLOCKS.items() for one in look(rgb if name == "colour" else light)])


def features_of(pictures: Iterable[Image.Image]) -> Array:
    """`features` of each picture, N × COUNT, in their order; opened one by one where they come so."""
    rows = [features(picture) for picture in pictures]
    return numpy.stack(rows) if rows else numpy.zeros((0, COUNT))


@dataclass(frozen=True)
class Scale:
    """Features in spreads of the photographs that were learnt from: fitted to those once, applied to everything.

    middles  median of each number over the photographs
    spreads  what the middle half of them spans, as a standard deviation (÷ 1.349); never less than a least one
    """

    middles: Array
    spreads: Array

    @classmethod
    def of(cls, training: Array) -> "Scale":
        """Fitted to rows N × COUNT. Quartiles: a few odd photographs move them little."""
        low, middle, high = numpy.quantile(training, [0.25, 0.5, 0.75], axis=0)
        return cls(middle, numpy.maximum((high - low) / 1.349, _SMALLEST_SPREAD))

    def apply(self, rows: Array) -> Array:
        """The rows with every block counting the same, N × COUNT.

        Far away they are pressed together (asinh: straight within a spread, then a logarithm). Straight to the end, the
        few numbers that vary least among the photographs decide alone: lace blurred by 2 px of 256 lies further away
        than plain cloth then.
        """
        weights = numpy.concatenate([numpy.full(size, size**-0.5) for size, _ in _BLOCKS.values()])
        scaled: Array = numpy.arcsinh((rows - self.middles) / self.spreads) * weights
        return scaled


def _fitted(picture: Image.Image) -> Image.Image:
    """In RGB, of an area of SIDE × SIDE."""
    enlarge = SIDE / (picture.width * picture.height) ** 0.5
    width, height = (max(_SHORTEST, round(side * enlarge)) for side in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _cells(values: Array, side: int) -> Array:
    """Means of cells of side × side; what is left over at the lower and right border is left out."""
    height, width = (length // side for length in values.shape)
    means: Array = values[: height * side, : width * side].reshape(height, side, width, side).mean((1, 3))
    return means


def _sizes(light: Array) -> list[Array]:
    """The picture in full size, half, quarter …"""
    found = [light]
    while len(found) < _SIZES:
        found.append(_cells(found[-1], 2))
    return found
