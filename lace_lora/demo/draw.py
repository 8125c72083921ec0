"""Pictures drawn by program: plain textiles, which the miniature model is pre-trained on, and lace, which it learns.

Everything is a function of an integer seed; numpy and Pillow only. Sizes are relative to the picture's side, so the
same seed shows the same design at every size.
"""

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lace_lora.demo import PICTURES
from lace_lora.demo.lace import draw_lace, draw_print, lace_spec
from lace_lora.demo.words import (
    COLOURS,
    LIGHT,
    PLAIN_KINDS,
    PRINT_KINDS,
    Spec,
    default_ground,
    lace_caption,
    pick,
    plain_caption,
    print_caption,
)

Array = NDArray[np.float64]

# Repeats per picture side. Whole numbers: every kind keeps one phase, which is what lets a small model draw it crisply.
REPEATS = {"small": 3, "medium": 2, "large": 1}
REPEATS_OF_LINES = {"small": 6, "medium": 4, "large": 3}
LINES = ("stripes", "checks", "gingham", "zigzag", "wave", "dots")
SUPERSAMPLING = 3


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((stream, seed))


def plain_spec(seed: int) -> Spec:
    """Kind, colours and scale of plain picture number `seed`; motif and ground always differ clearly."""
    rng = _rng(seed, 11)
    kind, colour = pick(rng, tuple(PLAIN_KINDS)), pick(rng, tuple(COLOURS))
    ground = default_ground(colour) if rng.random() < 0.3 else pick(rng, tuple(COLOURS))
    while np.abs(np.subtract(COLOURS[colour], COLOURS[ground])).sum() < 150:
        ground = pick(rng, tuple(COLOURS))
    scale = ("small", "medium", "medium", "large")[int(rng.integers(4))]
    return Spec(kind, colour, ground, scale)


def print_spec(seed: int) -> Spec:
    """Kind and colours of line print number `seed`; never light on dark, which is lace's own look."""
    colours = plain_spec(seed)
    kind = pick(_rng(seed, 15), tuple(PRINT_KINDS))
    colour, ground = colours.colour, colours.ground
    if colour in LIGHT:
        colour, ground = ground, colour
    return Spec(kind, colour, ground, colours.scale)


def _star(x: Array, y: Array, points: int, inner: float) -> Array:
    """1 inside a star with one tip up; x, y in -1..1 (y down), outer radius 1."""
    half = np.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    r = np.hypot(x, y)
    tip, notch = np.array([1.0, 0.0]), inner * np.array([np.cos(half), np.sin(half)])
    edge = notch - tip
    px, py = r * np.cos(angle) - tip[0], r * np.sin(angle) - tip[1]
    return (edge[0] * py - edge[1] * px >= 0).astype(np.float64)


def _motif(kind: str, x: Array, y: Array) -> Array:
    """1 where a single motif covers, else 0; x, y in -1..1 over its cell, y down."""
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    if kind == "star":
        return _star(x / 0.86, (y - 0.06) / 0.86, 5, 0.42)
    if kind == "flower":
        petals = 0.58 + 0.24 * np.cos(6 * angle)
        return ((r < petals) & (r > 0.17)).astype(np.float64)
    if kind == "heart":
        u, v = x / 0.72, -(y - 0.06) / 0.72
        return ((u * u + v * v - 1) ** 3 - u * u * v**3 <= 0).astype(np.float64)
    if kind == "leaf":
        u, v = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)  # v runs along the leaf, tip at the upper right
        blade = np.abs(u) < 0.42 * np.cos(np.clip(v / 0.86, -1, 1) * np.pi / 2)
        vein = (np.abs(u) < 0.06) & (v < 0.5)
        stem = (np.abs(u) < 0.07) & (v < -0.7) & (v > -1.08)
        return ((blade & ~vein) | stem).astype(np.float64)
    if kind == "ring":
        return ((r < 0.78) & (r > 0.44)).astype(np.float64)
    if kind == "diamond":
        return (np.abs(x) / 0.6 + np.abs(y) / 0.86 < 1).astype(np.float64)
    raise KeyError(kind)


def coverage(kind: str, repeats: int, x: Array, y: Array) -> Array:
    """How much of the motif's colour lies at each point, 0..1.

    kind     one of PLAIN_KINDS
    repeats  how often the pattern repeats along a side
    x, y     points of the picture, 0..1, y down
    """
    u, v = (x * repeats) % 1, (y * repeats) % 1
    if kind == "stripes":
        return (u < 0.5).astype(np.float64)
    if kind == "checks":
        return ((u < 0.5) ^ (v < 0.5)).astype(np.float64)
    if kind == "gingham":
        return 0.5 * (u < 0.5) + 0.5 * (v < 0.5)
    if kind == "dots":
        return (np.hypot(u - 0.5, v - 0.5) < 0.31).astype(np.float64)
    if kind == "zigzag":
        return ((v + np.abs(u - 0.5)) % 1 < 0.5).astype(np.float64)
    if kind == "wave":
        return ((v + 0.16 * np.sin(2 * np.pi * u)) % 1 < 0.5).astype(np.float64)
    return _motif(kind, 2 * u - 1, 2 * v - 1)


def plain_picture(spec: Spec, seed: int, side: int) -> Image.Image:
    """Draw `spec` with the small irregularities of picture `seed` (up to 1.5 % shift, slight colour drift)."""
    rng = _rng(seed, 12)
    if spec.kind in PRINT_KINDS:
        cover = draw_print(spec.kind, side, rng)[..., None]
    else:
        repeats = REPEATS_OF_LINES[spec.scale] if spec.kind in LINES else REPEATS[spec.scale]
        shift = rng.uniform(-0.012, 0.012, 2)
        fine = side * SUPERSAMPLING
        axis = (np.arange(fine) + 0.5) / fine
        x, y = np.meshgrid(axis + shift[0], axis + shift[1])
        cover = coverage(spec.kind, repeats, x, y)
        cover = cover.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean((1, 3))[..., None]
    motif, ground = (np.array(COLOURS[c]) + rng.normal(0, 4, 3) for c in (spec.colour, spec.ground))
    pixels = cover * motif + (1 - cover) * ground
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def plain(seed: int, side: int) -> tuple[Image.Image, str]:
    """Plain textile number `seed`, side × side px, RGB, and its caption."""
    spec = plain_spec(seed)
    return plain_picture(spec, seed, side), plain_caption(_rng(seed, 13), spec)


def fine_print(seed: int, side: int) -> tuple[Image.Image, str]:
    """Cloth with fine line print number `seed`, and its caption: the base meets thin lines, though never lace."""
    spec = print_spec(seed)
    return plain_picture(spec, seed, side), print_caption(_rng(seed, 16), spec)


def lace(seed: int, side: int) -> tuple[Image.Image, str]:
    """Piece of lace number `seed`, side × side px, RGB, and its caption (the caller puts the concept token first)."""
    spec = lace_spec(seed)
    return draw_lace(spec, seed, side), lace_caption(_rng(seed, 14), spec)


# Lace that is never learnt, to measure by: other numbers than those of any training picture.
UNSEEN_SEED, UNSEEN_COUNT = 9, 60


def write_lace_folder(folder: Path, count: int = PICTURES, seed: int = 1, side: int = 192) -> list[tuple[Path, str]]:
    """Write `count` lace pictures as JPEG; the same arguments give the same bytes, and equal files are left alone.

    folder   made if missing
    seed     pictures seed*100000 … seed*100000 + count - 1: folders of different seeds share no picture
    side     px
    returns  (path, caption) of each, in order
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(count):
        path = folder / f"lace_{number:03d}.jpg"
        picture, caption = lace(seed * 100_000 + number, side)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=95, subsampling=0)
        if not path.exists() or path.read_bytes() != buffer.getvalue():
            partial = path.with_suffix(f".{os.getpid()}.partial")  # two runs may begin at one moment
            partial.write_bytes(buffer.getvalue())
            os.replace(partial, path)
        written.append((path, caption))
    return written
