"""Line drawings of machine parts drawn by program, as patents show them: black lines on white, numerals on lead lines.

Everything follows from a few words and numbers; no chance is drawn, so equal parts give equal bytes. Their names are
made of words that the miniature model knows: star wheel, ring nut, heart cam, leaf spring.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 384  # px
LINE = 5 / 384  # of the side
KINDS = ("star wheel", "ring nut", "heart cam", "leaf spring", "wave washer", "diamond plate", "flower knob",
         "zigzag rack", "grid plate", "dotted disc")  # fmt: skip
HOLES = ("none", "round", "square", "star")

Array = NDArray[np.float64]
Points = list[tuple[float, float]]

# Seven strokes of a numeral in a box of 1 × 2, y down: top, upper right, lower right, bottom, lower left, upper left,
# middle.
_STROKES = (((0, 0), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (1, 2)), ((0, 2), (1, 2)), ((0, 1), (0, 2)), ((0, 0), (0, 1)),
            ((0, 1), (1, 1)))  # fmt: skip
_DIGITS = ("012345", "12", "01643", "01623", "5612", "05623", "056234", "012", "0123456", "012356")


@dataclass(frozen=True)
class Part:
    """A machine part: its kind, how many teeth, slots, leaves, waves or holes, the hole in its middle, its numerals."""

    kind: str
    count: int = 6
    hole: str = "round"
    numerals: tuple[int, ...] = ()


def drawing(part: Part, side: int = SIDE) -> Image.Image:
    """The part as a picture of black and white alone, side × side px.

    Raises ValueError for a kind or hole that cannot be drawn.
    """
    if part.kind not in KINDS or part.hole not in HOLES:
        raise ValueError(f"{part.kind} with a {part.hole} hole cannot be drawn; kinds are {', '.join(KINDS)}.")
    picture = Image.new("1", (side, side), 1)
    pen = ImageDraw.Draw(picture)
    width = max(1, round(LINE * side))
    for points in _outlines(part):
        _line(pen, points, side, width)
    for place, numeral in enumerate(part.numerals):
        _lead(pen, place, numeral, side, width)
    return picture


def write(part: Part, path: Path, side: int = SIDE) -> Path:
    """Write the drawing as PNG, whole or not at all; an equal file is left alone."""
    buffer = io.BytesIO()
    drawing(part, side).save(buffer, "PNG")
    if not path.exists() or path.read_bytes() != buffer.getvalue():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)
    return path


# -- inside: points are in 0..1 of the side, y down --


def _outlines(part: Part) -> list[Points]:
    count, outlines = part.count, []
    turn = np.linspace(0, 2 * np.pi, 241)
    if part.kind == "star wheel":
        outlines = [_polar(np.arange(2 * count + 1) * np.pi / count, np.where(np.arange(2 * count + 1) % 2, 0.2, 0.36))]
    elif part.kind == "ring nut":
        is_slot = (turn * count / (2 * np.pi) + 0.2) % 1 < 0.4
        outlines = [_polar(turn, np.where(is_slot, 0.29, 0.36)), _polar(turn, np.full(241, 0.22))]
    elif part.kind == "heart cam":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        outlines = [_points(0.5 + x / 48, 0.48 - y / 48), *_bow_of_holes(count, 0.14, 0.025)]
    elif part.kind == "leaf spring":
        outlines = [_leaf(0.36 - 0.06 * number, 0.40 + 0.075 * number) for number in range(min(count, 5))]
    elif part.kind == "wave washer":
        wave = 0.04 * np.sin(count * turn)
        outlines = [_polar(turn, 0.33 + wave), _polar(turn, 0.23 + wave)]
    elif part.kind == "diamond plate":
        outlines = [_polar(np.arange(5) * np.pi / 2, np.full(5, 0.38)), *_ring_of_holes(count, 0.18, 0.03)]
    elif part.kind == "flower knob":
        outlines = [_polar(turn, 0.29 + 0.07 * np.cos(count * turn))]
    elif part.kind == "zigzag rack":
        x = np.linspace(0.12, 0.88, 2 * count + 1)
        y = np.where(np.arange(2 * count + 1) % 2, 0.34, 0.46)
        outlines = [[*_points(x, y), (0.88, 0.66), (0.12, 0.66), (0.12, 0.46)]]
    elif part.kind == "grid plate":
        lines = np.linspace(0.16, 0.84, count + 1)
        outlines = [[(0.16, one), (0.84, one)] for one in lines] + [[(one, 0.16), (one, 0.84)] for one in lines]
    else:
        outlines = [_polar(turn, np.full(241, 0.36)), *_ring_of_holes(count, 0.26, 0.04)]
    middle = {"leaf spring": (0.5, 0.40), "zigzag rack": (0.5, 0.56)}.get(part.kind, (0.5, 0.5))
    return [*outlines, *_hole(part.hole, middle, 0.05 if part.kind in ("leaf spring", "zigzag rack") else 0.085)]


def _hole(hole: str, middle: tuple[float, float], radius: float) -> list[Points]:
    angles = {"round": np.linspace(0, 2 * np.pi, 61), "square": np.arange(5) * np.pi / 2 + np.pi / 4}
    if hole == "star":
        corners = np.arange(11)
        return [_polar(corners * np.pi / 5, np.where(corners % 2, 0.45, 1.1) * radius, middle)]
    return [_polar(angles[hole], np.full(len(angles[hole]), radius), middle)] if hole in angles else []


def _ring_of_holes(count: int, at: float, radius: float) -> list[Points]:
    turn = np.linspace(0, 2 * np.pi, 41)
    middles = (2 * np.pi * number / max(1, count) for number in range(max(0, count)))
    return [
        _polar(turn, np.full(41, radius), (0.5 + at * float(np.sin(one)), 0.5 - at * float(np.cos(one))))
        for one in middles
    ]


def _bow_of_holes(count: int, at: float, radius: float) -> list[Points]:
    """Holes in a half circle below the middle, from side to side."""
    turn = np.linspace(0, 2 * np.pi, 41)
    angles = np.linspace(np.pi / 2, 3 * np.pi / 2, max(0, count)).tolist()
    return [_polar(turn, np.full(41, radius), (0.5 + at * np.sin(one), 0.5 - at * np.cos(one))) for one in angles]


def _leaf(half: float, y: float) -> Points:
    x = np.linspace(-1, 1, 61)
    bow, thick = 0.10 * x**2, 0.03 * np.sqrt(np.clip(1 - x**2, 0, 1))
    upper, lower = _points(0.5 + half * x, y - bow - thick), _points(0.5 + half * x, y - bow + thick)
    return [*upper, *lower[::-1]]


def _polar(angles: Array, radii: Array, middle: tuple[float, float] = (0.5, 0.5)) -> Points:
    return _points(middle[0] + radii * np.sin(angles), middle[1] - radii * np.cos(angles))


def _points(x: Array, y: Array) -> Points:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _line(pen: ImageDraw.ImageDraw, points: Points, side: int, width: int) -> None:
    pen.line([(x * side, y * side) for x, y in points], fill=0, width=width, joint="curve")


def _lead(pen: ImageDraw.ImageDraw, place: int, numeral: int, side: int, width: int) -> None:
    """A numeral in a corner, with a line that leads to the part."""
    x, y = ((0.86, 0.06), (0.06, 0.06), (0.86, 0.84), (0.06, 0.84))[place % 4]
    start = (x - 0.01 if x > 0.5 else x + 0.11, y + 0.05)
    _line(pen, [start, (0.5 + 0.5 * (start[0] - 0.5), 0.5 + 0.5 * (start[1] - 0.5))], side, max(1, width // 2))
    for column, digit in enumerate(str(numeral)[:2]):
        for stroke in _DIGITS[int(digit)]:
            ends = [(x + 0.055 * column + 0.035 * a, y + 0.045 * b) for a, b in _STROKES[int(stroke)]]
            _line(pen, ends, side, max(1, width // 2))
