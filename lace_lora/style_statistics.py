"""Weight-free style statistics: what edges, light, texture and colour say about a set of pictures, with no network.

They need no download and no GPU, and tell lace from plain cloth; they do not see what a picture depicts. Two sets with
equal statistics can still show different motifs, and a set of copies scores as well as a set of new designs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

STATISTICS = (
    "luminance mean",
    "luminance spread",
    "edge energy",
    "edge density",
    "edge directions",
    "coarse texture",
    "middle texture",
    "fine texture",
    "saturation mean",
    "saturation spread",
)
# Cycles per side that bound the texture bands: motifs | meshes | threads.
BANDS = (1.5, 6.0, 14.0, 40.0)
# A gradient above this (luminance per pixel) is an edge a person sees; sensor noise and cloth grain stay below.
VISIBLE_EDGE = 0.08
# Share of each statistic's reference spread that is always granted, so that a constant one cannot divide by zero.
SMALLEST_SPREAD = 1e-3


@dataclass(frozen=True)
class Score:
    """A measured value and how far it moves between seeds (standard deviation; 0 for a single seed)."""

    value: float
    spread: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.spread:.3f}"


def score(values: Iterable[float]) -> Score:
    """Mean and standard deviation (n − 1) of one measurement repeated over seeds.

    Raises ValueError if there is no value.
    """
    numbers = np.array(list(values), dtype=np.float64)
    if not len(numbers):
        raise ValueError("a score needs at least one value; got none.")
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return Score(float(numbers.mean()), spread, len(numbers))


def pixels_of(picture: Image.Image, side: int | None) -> Array:
    """RGB values 0..1, HW3; first shrunk or enlarged to side × side px unless `side` is None."""
    rgb = picture.convert("RGB")
    if side is not None and rgb.size != (side, side):
        rgb = rgb.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(rgb, dtype=np.float64) / 255


def luminance(pixels: Array) -> Array:
    """Luma 0..1 of RGB values, HW. Source: ITU-R BT.709 weights, applied to the sRGB values as they are."""
    weighed: Array = pixels @ np.array([0.2126, 0.7152, 0.0722])
    return weighed


def slopes(light: Array) -> tuple[Array, Array]:
    """Horizontal and vertical forward differences of `light`, cropped to the same (H-1, W-1)."""
    return light[:-1, 1:] - light[:-1, :-1], light[1:, :-1] - light[:-1, :-1]


def edge_energy(picture: Image.Image, side: int | None = None) -> float:
    """Mean gradient magnitude: mean over pixels of sqrt((dY/dx)² + (dY/dy)²), luminance (0..1) per pixel.

    Crisp threads raise it, blur lowers it. Compare pictures of one size, or give `side` (px) to bring them to one.
    """
    across, down = slopes(luminance(pixels_of(picture, side)))
    return float(np.hypot(across, down).mean())


def direction_evenness(across: Array, down: Array) -> float:
    """Entropy of edge directions over 8 bins of 22.5°, weighted by magnitude, 0 (one direction) .. 1 (all alike)."""
    bins = (np.arctan2(down, across) % np.pi / np.pi * 8).astype(int).clip(0, 7)
    weights = np.bincount(bins.ravel(), np.hypot(across, down).ravel(), minlength=8)
    shares = weights / max(weights.sum(), 1e-12)
    return float(-(shares * np.log(shares + 1e-12)).sum() / np.log(8))


def texture_shares(light: Array) -> list[float]:
    """Logarithm of the share of spectral power in each band of BANDS, cycles per side (Hann window, mean removed)."""
    height, width = light.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    power = np.abs(np.fft.rfft2((light - light.mean()) * window)) ** 2
    cycles = np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width)[None, :])
    total = power[cycles >= BANDS[0]].sum() + 1e-9
    bands = zip(BANDS[:-1], BANDS[1:], strict=True)
    return [float(np.log(power[(cycles >= low) & (cycles < high)].sum() / total + 1e-4)) for low, high in bands]


def style_statistics(picture: Image.Image, side: int = 96) -> Array:
    """The numbers of one picture, in the order of STATISTICS (weight-free: no network is involved).

    picture  any size; measured at side × side px, because edges and texture depend on it
    returns  shape (10,): luminance mean and standard deviation (0..1), edge energy (luminance/px), share of visible
             edge pixels, evenness of edge directions (0..1), log shares of power in three texture bands, mean and
             standard deviation of saturation (max − min of RGB, 0..1)
    """
    pixels = pixels_of(picture, side)
    light = luminance(pixels)
    across, down = slopes(light)
    steepness = np.hypot(across, down)
    colourfulness = pixels.max(-1) - pixels.min(-1)
    return np.array(
        [
            light.mean(),
            light.std(),
            steepness.mean(),
            (steepness > VISIBLE_EDGE).mean(),
            direction_evenness(across, down),
            *texture_shares(light),
            colourfulness.mean(),
            colourfulness.std(),
        ]
    )


def statistics_of(pictures: Sequence[Image.Image], side: int = 96) -> Array:
    """`style_statistics` of every picture, one row each.

    Raises ValueError for fewer than two pictures: one has no spread.
    """
    if len(pictures) < 2:
        raise ValueError(f"style statistics compare sets of two pictures or more; got {len(pictures)}.")
    return np.stack([style_statistics(p, side) for p in pictures])


def style_distance(pictures: Sequence[Image.Image], reference: Sequence[Image.Image], side: int = 96) -> float:
    """How far the style of `pictures` lies from that of `reference`, in spreads of the reference (weight-free).

    d = sqrt(max(0, mean over statistics of [((m − r)² − v_m/n_m − v_r/n_r) / v_r])), m and r being the two sets' means,
    v their variances (n − 1) and n their sizes. The two subtracted terms are what chance alone adds to (m − r)², so a
    set of 8 and a set of 80 pictures of one style both come out near 0 (unbiased before the square root).

    pictures, reference  two or more each, any size; measured at side × side px
    returns              0 (same style) upwards; 1 is one standard deviation of the reference away
    """
    made, true = statistics_of(pictures, side), statistics_of(reference, side)
    spread = np.maximum(true.var(0, ddof=1), SMALLEST_SPREAD**2)
    chance = made.var(0, ddof=1) / len(made) + true.var(0, ddof=1) / len(true)
    squared = ((made.mean(0) - true.mean(0)) ** 2 - chance) / spread
    return float(np.sqrt(max(0.0, float(squared.mean()))))


def edge_energy_gap(pictures: Sequence[Image.Image], reference: Sequence[Image.Image], side: int = 96) -> float:
    """How far the mean edge energy of `pictures` lies from that of `reference`, as a part of the latter (0 = equal)."""
    made = np.mean([edge_energy(p, side) for p in pictures])
    true = np.mean([edge_energy(p, side) for p in reference])
    return float(abs(made - true) / max(float(true), 1e-9))
