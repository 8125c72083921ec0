"""Lace in even light: what a lamp or a window does to a photograph, told from what the lace does, and taken away.

N pixels of a small view · M steps from cell to cell · K terms of the light's polynomial
"""

import math

import numpy
from numpy.polynomial import polynomial
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[numpy.float64]

_AT_MOST_PX = 256  # long side of the view on which light is measured: threads of usual photographs are still apart
_DEGREE = 2  # of the light's logarithm; with 3 what is left of a drawn lamp is the same within 1 %
_DARKEST = 0.003  # linear light that is added before taking logarithms: sRGB's first ten steps
_USUAL = 0.05  # linear light above which a pixel tells of the lamp: black cloth shows the camera's noise
# Of the tones that are taken for one cloth, in natural logarithms, one after the other: narrow first is for pictures in
# nearly even light, wide first for strong lamps; the last of both is the same, so that entropies can be compared.
_NARROW_FIRST, _WIDE_FIRST = (0.1, 0.2, 0.1), (0.4, 0.2, 0.1)
_STRONGEST = math.log(4)  # no pixel is made more than 4 times brighter or darker
# White as the camera's end of the scale, or as cut out by a program, tells of no lamp; it stays white.
_NEARLY_BURNT, _BURNT = 244, 252
_TONES = numpy.linspace(-8, 3, 401)  # of logarithms of light, once a light that falls off was taken away

_steps = numpy.arange(256) / 255
_LINEAR = numpy.where(_steps <= 0.04045, _steps / 12.92, ((_steps + 0.055) / 1.055) ** 2.4).astype(numpy.float32)
_fine = numpy.arange(65536) / 65535
_ENCODED = numpy.rint(255 * numpy.where(_fine <= 0.0031308, 12.92 * _fine, 1.055 * _fine ** (1 / 2.4) - 0.055))
_ENCODED = _ENCODED.astype(numpy.uint8)


def evenly_lit(picture: Image.Image, strength: float) -> Image.Image:
    """The picture divided by its light, in linear light, RGB; a picture in even light comes back as it was.

    picture   upright, 8-bit, cut to the lace: a white table would be taken into account
    strength  how much of the fall-off is taken away, 0..1
    """
    light = _light(picture)
    pixels = numpy.asarray(picture.convert("RGB"))
    height, width, _ = pixels.shape
    down, right = _places(height), _places(width)
    even = numpy.empty_like(pixels)
    rows = max(1, 2**20 // width)  # at a time: 12 MP of floats would be 300 MB
    for top in range(0, height, rows):
        strip = pixels[top : top + rows]
        fall_off = polynomial.polygrid2d(down[top : top + rows], right, light).clip(-_STRONGEST, _STRONGEST)
        told = numpy.interp(strip.min(axis=2), (_NEARLY_BURNT, _BURNT), (strength, 0.0))
        linear = _LINEAR[strip] * numpy.exp(-told * fall_off).astype(numpy.float32)[:, :, None]
        even[top : top + rows] = _ENCODED[(linear.clip(0, 1) * 65535 + 0.5).astype(numpy.uint16)]
    return Image.fromarray(even)


def _light(picture: Image.Image) -> Floats:
    """How the light falls off: coefficients [down, right] of a polynomial for the logarithm of linear light.

    The lamp is what is smooth, lace is what comes in few tones: the polynomial is wanted that, taken away, leaves the
    fewest tones. From each of three starts, every pixel is drawn to the middle of its own tone, ever narrower, and the
    polynomial takes what is smooth of that; the start that leads to the least entropy of tones wins.
    Of a known lamp (0.35 or 0.25 at its darkest) on 68 real photographs of lace this much is left: 11 % of it (median)
    on 35 with dark ground, 6 % on 33 coloured ones; above 20 % only where a narrow strip lies on plain cloth that was
    not cropped away. What cannot be told: cloth that fills one side and is a third brighter than the net beside it is
    taken for light by about half of that. `strength` is there for such pictures.
    Source: the idea of sharpened tones is that of Sled et al. 1998, https://doi.org/10.1109/42.668698.
    """
    side = max(picture.size)
    sizes = [max(2, round(length * min(1, _AT_MOST_PX / side))) for length in picture.size]
    pixels = numpy.asarray(picture.resize((sizes[0], sizes[1]), Image.Resampling.BOX).convert("RGB"))
    linear = _LINEAR[pixels] @ numpy.array([0.2126, 0.7152, 0.0722], numpy.float32)
    tone_N = numpy.log(linear + _DARKEST).ravel().astype(numpy.float64)
    is_burnt = pixels.min(axis=2) >= _BURNT
    weight_N = (linear / (linear + _USUAL) * ~is_burnt).ravel() + 1e-6
    down, right = numpy.meshgrid(*map(_places, linear.shape), indexing="ij")
    powers = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i) if i + j]
    terms_NK = numpy.stack([(down**i * right**j).ravel() for i, j in powers], axis=1)
    means_K = numpy.average(terms_NK, axis=0, weights=weight_N)  # what is lit on average keeps its brightness
    terms_NK = terms_NK - means_K
    none_K, slope_K = numpy.zeros(len(powers)), _slope(tone_N, weight_N, terms_NK, linear.shape)
    starts = ((none_K, _NARROW_FIRST), (none_K, _WIDE_FIRST), (slope_K, _WIDE_FIRST))
    found = [_sharpened(tone_N, weight_N, terms_NK, guess_K, widths) for guess_K, widths in starts]
    best_K = min(found, key=lambda light_K: _entropy(tone_N - terms_NK @ light_K, weight_N))
    light = numpy.zeros((_DEGREE + 1, _DEGREE + 1))
    for (i, j), factor in zip(powers, best_K, strict=True):
        light[i, j] = factor
    light[0, 0] = -means_K @ best_K
    return light


def _places(count: int) -> Floats:
    """Where pixels lie along a side, -1..1."""
    return (numpy.arange(count) + 0.5) / count * 2 - 1


def _sharpened(
    tone_N: Floats, weight_N: Floats, terms_NK: Floats, light_K: Floats, widths: tuple[float, ...]
) -> Floats:
    for width in widths:
        for _ in range(12):
            even_N = tone_N - terms_NK @ light_K
            step_K = _fitted(even_N - _middle_of_its_tone(even_N, weight_N, width), weight_N, terms_NK)
            light_K = light_K + step_K
            if abs(terms_NK @ step_K).max() < 0.003:
                break
    return light_K


def _fitted(wanted_N: Floats, weight_N: Floats, terms_NK: Floats) -> Floats:
    """Weighted least squares; a trace of damping decides for no slope where a picture has none to tell."""
    weighted = terms_NK * weight_N[:, None]
    squares = weighted.T @ terms_NK + 1e-6 * weight_N.sum() * numpy.eye(terms_NK.shape[1])
    return numpy.asarray(numpy.linalg.solve(squares, weighted.T @ wanted_N))


def _histogram(even_N: Floats, weight_N: Floats) -> tuple[Floats, Floats]:
    inside_N = even_N.clip(_TONES[0], _TONES[-1])
    counts = numpy.histogram(inside_N, _TONES, weights=weight_N)[0]
    return counts / counts.sum(), (_TONES[1:] + _TONES[:-1]) / 2


def _blurred(counts: Floats, width: float) -> Floats:
    step = _TONES[1] - _TONES[0]
    reach = numpy.arange(-int(4 * width / step), int(4 * width / step) + 1) * step
    bell = numpy.exp(-(reach**2) / (2 * width * width))
    return numpy.convolve(counts, bell / bell.sum(), "same")


def _middle_of_its_tone(even_N: Floats, weight_N: Floats, width: float) -> Floats:
    """The weighted mean of all tones near each pixel's own."""
    counts, middles = _histogram(even_N, weight_N)
    return numpy.interp(even_N, middles, _blurred(counts * middles, width) / (_blurred(counts, width) + 1e-12))


def _entropy(even_N: Floats, weight_N: Floats) -> float:
    counts = _blurred(_histogram(even_N, weight_N)[0], _WIDE_FIRST[-1])
    return float(-(counts * numpy.log(counts + 1e-12)).sum())


def _slope(tone_N: Floats, weight_N: Floats, terms_NK: Floats, shape: tuple[int, ...]) -> Floats:
    """The polynomial whose steps from cell to cell are those of the picture, but for the few large ones: edges of lace.

    Robust (Cauchy weights), so that a white motif on dark cloth is not taken for light; 24 cells along the long side.
    """
    cell = max(1, min(max(shape) // 24, min(shape) // 2))
    rows, columns = shape[0] // cell, shape[1] // cell

    def summed(values_N: Floats) -> Floats:
        whole = values_N.reshape(shape)[: rows * cell, : columns * cell]
        return numpy.asarray(whole.reshape(rows, cell, columns, cell).sum(axis=(1, 3)))

    weights = summed(weight_N)
    layers = numpy.stack([summed(weight_N * one) / weights for one in (tone_N, *terms_NK.T)], axis=2)
    steps = [
        (numpy.moveaxis(layers, axis, 0)[far:] - numpy.moveaxis(layers, axis, 0)[:-far]).reshape(-1, layers.shape[2])
        for axis in (0, 1)
        for far in (1, 2, 4)
    ]
    wanted_M, terms_MK = numpy.concatenate(steps)[:, 0], numpy.concatenate(steps)[:, 1:]
    trust_M = numpy.ones(len(wanted_M))
    light_K = numpy.zeros(terms_NK.shape[1])
    for _ in range(15):
        light_K = _fitted(wanted_M, trust_M, terms_MK)
        miss_M = abs(wanted_M - terms_MK @ light_K)
        trust_M = 1 / (1 + (miss_M / (1.5 * numpy.median(miss_M) + 0.01)) ** 2)
    return light_K
