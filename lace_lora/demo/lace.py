"""Lace drawn by program, thread by thread: rosettes, borders, mesh grounds, leaf sprays and scallops.

One recognisable hand: white or cream cotton on a dark cloth, firm outlines around close work, posts and arches as in
crochet, picots on outer edges, and tulle between. Lengths are parts of the picture's side (0..1).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from lace_lora.demo.words import COLOURS, LACE_KINDS, Spec, pick

Array = NDArray[np.float64]
Point = tuple[float, float]

LACE_GROUNDS = ("black", "navy", "brown", "black", "navy", "blue", "green", "purple", "red")
# Dark cloths: the grammar's colours, deepened as cloth under lace is.
GROUND_DEPTH = {"blue": 0.55, "green": 0.55, "purple": 0.55, "red": 0.62, "brown": 0.62}
# 3 px of thread in a 16 px mesh at 96 px, which is four latent cells (f = 4). Finer mesh survives the VAE but comes out
# of a small UNet as noise: at two latent cells a mesh lies at the finest period that the latents can hold.
THREAD = 0.03
CELL = 1 / 6


def lace_spec(seed: int) -> Spec:
    """Motif, thread colour and ground of lace number `seed`; kinds take turns so that any run of five has all."""
    rng = np.random.default_rng((21, seed))
    kinds = tuple(LACE_KINDS)
    colour = "white" if rng.random() < 0.65 else "cream"
    return Spec(kinds[seed % len(kinds)], colour, pick(rng, LACE_GROUNDS), is_lace=True)


class Threads:
    """A sheet of threads, drawn enlarged: coverage 0..255 in `sheet`, `scale` pixels per picture side."""

    def __init__(self, scale: int, rng: np.random.Generator) -> None:
        self.scale, self.rng = scale, rng
        self.sheet = Image.new("L", (scale, scale), 0)
        self.pen = ImageDraw.Draw(self.sheet)

    def line(self, points: Sequence[Point] | Array, width: float = THREAD, ink: int = 255) -> None:
        """A thread through `points`, thickness wandering by about a tenth, with round joints."""
        path = np.asarray(points, dtype=np.float64) * self.scale
        phase, beat = self.rng.uniform(0, 6.28), self.rng.uniform(0.25, 0.5)
        for i, ((x0, y0), (x1, y1)) in enumerate(zip(path[:-1], path[1:], strict=True)):
            w = max(1.0, width * self.scale * (1 + 0.1 * np.sin(phase + beat * i)))
            self.pen.line((x0, y0, x1, y1), fill=ink, width=round(w))
            r = w / 2 - 0.5
            self.pen.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), fill=ink)

    def knot(self, at: Point, radius: float = 0.016, ink: int = 255) -> None:
        """A picot or a knot: a small solid round."""
        x, y, r = at[0] * self.scale, at[1] * self.scale, radius * self.scale
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)

    def fill(self, outline: Array, ink: int) -> None:
        """Close work (cloth stitch) inside `outline`, at `ink` coverage."""
        self.pen.polygon([tuple(p) for p in outline * self.scale], fill=ink)


def arc(centre: Point, radius: float, start: float, stop: float, squash: float = 1.0) -> Array:
    """Points on a circle; angles in turns, 0 to the right, clockwise (y down); `squash` flattens the vertical axis."""
    steps = max(6, int(abs(stop - start) * max(24, radius * 240)))
    t = np.linspace(start, stop, steps) * 2 * np.pi
    return np.stack([centre[0] + radius * np.cos(t), centre[1] + radius * squash * np.sin(t)], 1)


def polar(centre: Point, radius: float, turn: float) -> Point:
    """The point at `radius` and angle `turn` (in turns) from `centre`."""
    return centre[0] + radius * float(np.cos(2 * np.pi * turn)), centre[1] + radius * float(np.sin(2 * np.pi * turn))


def leaf_outline(base: Point, tip: Point, width: float) -> Array:
    """A pointed oval from `base` to `tip`, `width` across at its middle; closed."""
    start, axis = np.array(base), np.subtract(tip, base)
    side = np.array([-axis[1], axis[0]]) / (np.hypot(*axis) + 1e-9)
    t = np.linspace(0, 1, 14)
    bulge = (np.sin(np.pi * t**0.85) * width / 2)[:, None] * side
    spine = start + t[:, None] * axis
    return np.concatenate([spine + bulge, (spine - bulge)[::-1]])


def leaf(sheet: Threads, base: Point, tip: Point, width: float) -> None:
    """One leaf of cloth stitch: close work inside a firm outline, a vein left open."""
    outline = leaf_outline(base, tip, width)
    sheet.fill(outline, 215)
    sheet.line([base, tip], THREAD * 0.7, ink=60)
    sheet.line(outline, THREAD * 1.15)
    sheet.line([tuple(outline[-1]), tuple(outline[0])], THREAD * 1.15)


def mesh(sheet: Threads, style: str) -> None:
    """An open ground over the whole sheet: "square" (filet), "diamond" (bobbin) or "hexagon" (tulle).

    Whole numbers of cells a side, so that a mirrored piece has the same ground: small models learn one phase.
    """
    n, thin = round(1 / CELL) + 2, THREAD * 0.85
    if style == "square":
        for i in range(n):
            at = (i - 0.5) * CELL
            sheet.line([(at, -0.1), (at, 0.5), (at, 1.1)], thin)
            sheet.line([(-0.1, at), (0.5, at), (1.1, at)], thin)
    elif style == "diamond":
        for i in range(-n, 2 * n):
            at = i * 0.25
            sheet.line([(at, -0.02), (at + 1.04, 1.02)], thin)
            sheet.line([(at, -0.02), (at - 1.04, 1.02)], thin)
    else:
        row, rise = CELL * 0.84, CELL * 0.28
        for j in range(-1, round(1 / row) + 2):
            for i in range(-1, n):
                x, y = (i + 0.5 * (j % 2)) * CELL, j * row
                sheet.line([(x - CELL / 2, y), (x, y - rise), (x + CELL / 2, y)], thin)
                sheet.line([(x + CELL / 2, y), (x + CELL / 2, y + row - rise)], thin)


def overlay(below: Threads, above: Threads, region: Image.Image | None = None) -> None:
    """Put `above` on `below`; where `region` (L, 255 = inside) is given, what lies below is cut away there."""
    if region is not None:
        below.sheet.paste(0, (0, 0), region)
    below.sheet.paste(255, (0, 0), above.sheet)
    below.pen = ImageDraw.Draw(below.sheet)


def region_of(scale: int, outline: Array) -> Image.Image:
    """The inside of `outline` as an L mask."""
    mask = Image.new("L", (scale, scale), 0)
    ImageDraw.Draw(mask).polygon([tuple(p) for p in outline * scale], fill=255)
    return mask


def arches(sheet: Threads, centre: Point, inner: float, outer: float, count: int) -> None:
    """A round of chain arches standing on radius `inner`, rising to `outer`."""
    t = np.linspace(0, 1, 9)
    for i in range(count):
        radius = inner + (outer - inner) * np.sin(np.pi * t) ** 0.7
        turn = 2 * np.pi * ((i + t) / count)
        sheet.line(np.stack([centre[0] + radius * np.cos(turn), centre[1] + radius * np.sin(turn)], 1))


def posts(
    sheet: Threads, centre: Point, inner: float, outer: float, count: int, start: float = 0.0, stop: float = 1.0
) -> None:
    """Radial posts (treble stitches) between two radii, from `start` to `stop` turns."""
    for i in range(count):
        turn = start + (stop - start) * (i + 0.5) / count
        sheet.line([polar(centre, inner, turn), polar(centre, outer, turn)], THREAD * 0.9)


def rosette(sheet: Threads, centre: Point, radius: float, petals: int) -> None:
    """A doily: ring, closed petals, a firm round, chain arches at its rim; `radius` to the tips of the arches."""
    sheet.line(arc(centre, radius * 0.17, 0, 1), THREAD * 1.1)
    width = radius * 2.1 / petals
    for i in range(petals):
        turn = i / petals - 0.25
        leaf(sheet, polar(centre, radius * 0.2, turn), polar(centre, radius * 0.66, turn), width)
    sheet.line(arc(centre, radius * 0.74, 0, 1), THREAD * 1.2)
    arches(sheet, centre, radius * 0.76, radius * 0.95, 2 * petals)


def blossom(sheet: Threads, centre: Point, reach: float, petals: int) -> None:
    """Closed petals around a point, without a rim."""
    for i in range(petals):
        turn = i / petals - 0.25
        leaf(sheet, polar(centre, 0.02, turn), polar(centre, reach, turn), reach * (0.64 if petals == 4 else 0.56))


def fan(sheet: Threads, foot: Point, radius: float, up: bool) -> None:
    """A shell: posts and trellis radiating from `foot`, bound by two arcs, picots along its rim."""
    start, stop = (0.5, 1.0) if up else (0.0, 0.5)
    inner, middle, outer = 0.32 * radius, 0.66 * radius, radius
    for edge in (inner, middle, outer):
        sheet.line(arc(foot, edge, start, stop), THREAD * 1.1)
    posts(sheet, foot, inner, middle, 5, start, stop)
    posts(sheet, foot, middle, outer, 7, start, stop)
    for turn in start + (stop - start) * (np.arange(7) + 0.5) / 7:
        sheet.knot(polar(foot, radius + 0.012, float(turn)), 0.022)


def draw_rosette(sheet: Threads, rng: np.random.Generator) -> None:
    """One large doily before a tulle ground."""
    mesh(sheet, "hexagon")
    piece = Threads(sheet.scale, rng)
    rosette(piece, (0.5, 0.5), 0.46, int(rng.choice((6, 8))))
    overlay(sheet, piece, region_of(sheet.scale, arc((0.5, 0.5), 0.44, 0, 1)))


def draw_border(sheet: Threads, rng: np.random.Generator) -> None:
    """An edging: footside, a band of tulle with two motifs, a lower edge of fans with picots."""
    bottom, petals = 0.6, int(rng.choice((4, 6)))
    band = Threads(sheet.scale, rng)
    mesh(band, "hexagon")
    inside = region_of(sheet.scale, np.array([(0, 0.06), (1, 0.06), (1, bottom), (0, bottom)]))
    sheet.sheet.paste(band.sheet, (0, 0), inside)
    for x in (0.25, 0.75):
        piece = Threads(sheet.scale, rng)
        blossom(piece, (x, 0.33), 0.19, petals)
        overlay(sheet, piece, region_of(sheet.scale, arc((x, 0.33), 0.15, 0, 1)))
    for i in range(2):
        fan(sheet, ((i + 0.5) / 2, bottom), 0.24, up=False)
    for y in (0.05, bottom):
        sheet.line([(-0.1, y), (0.5, y), (1.1, y)], THREAD * 1.6)


def draw_mesh(sheet: Threads, rng: np.random.Generator) -> None:
    """An all-over ground: tulle with four blossoms of cloth stitch."""
    petals = int(rng.choice((4, 6)))
    mesh(sheet, "hexagon")
    for at in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
        piece = Threads(sheet.scale, rng)
        blossom(piece, at, 0.18, petals)
        overlay(sheet, piece, region_of(sheet.scale, arc(at, 0.14, 0, 1)))


def draw_leaves(sheet: Threads, rng: np.random.Generator) -> None:
    """A spray: a stem with paired leaves before a tulle ground, a blossom at its head."""
    mesh(sheet, "hexagon")
    cut = Threads(sheet.scale, rng)
    spray(cut, int(rng.choice((5, 6))))
    # Half a thread of bare cloth around close work, as a worked outline leaves it.
    hole = cut.sheet
    for _ in range(round(0.02 * sheet.scale)):  # the same as one large filter, whose work grows with its square
        hole = hole.filter(ImageFilter.MaxFilter(3))
    overlay(sheet, cut, hole)


def spray(sheet: Threads, petals: int) -> None:
    """The stem, its two pairs of leaves and its blossom, without a ground."""
    for at in (0.95, 0.62):
        for side in (-1, 1):
            leaf(sheet, (0.5, at), (0.5 + side * 0.36, at - 0.27), 0.17)
    sheet.line([(0.5, 1.05), (0.5, 0.7), (0.5, 0.3)], THREAD * 1.4)
    blossom(sheet, (0.5, 0.2), 0.17, petals)


def draw_scallops(sheet: Threads, rng: np.random.Generator) -> None:
    """Rows of shells, each row standing in the gaps of the one above it."""
    for row in range(5):
        y = (row + 0.95) * 0.26
        for i in range(-1, 3):
            foot = ((i + 0.5 + 0.5 * (row % 2)) / 2, y)
            piece = Threads(sheet.scale, rng)
            fan(piece, foot, 0.245, up=True)
            overlay(sheet, piece, region_of(sheet.scale, arc(foot, 0.245, 0.5, 1.0)))


def draw_print(kind: str, side: int, rng: np.random.Generator) -> Array:
    """A single ornament in line work, as printed on plain cloth: coverage 0..1, side × side px.

    kind  one of words.PRINT_KINDS. The base model has met such ornaments, as any large model has; lace puts them
          together, in light thread on dark cloth, with a ground between them.
    """
    sheet = Threads(side * 4, rng)
    if kind in ("grid", "trellis", "honeycomb"):
        mesh(sheet, {"grid": "square", "trellis": "diamond", "honeycomb": "hexagon"}[kind])
    elif kind == "scales":
        draw_scallops(sheet, rng)
    elif kind == "mandala":
        rosette(sheet, (0.5, 0.5), 0.46, int(rng.choice((6, 8))))
    else:
        spray(sheet, int(rng.choice((5, 6))))
    small = sheet.sheet.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


DRAWERS: dict[str, Callable[[Threads, np.random.Generator], None]] = {
    "rosette": draw_rosette,
    "border": draw_border,
    "mesh": draw_mesh,
    "leaf": draw_leaves,
    "scallop": draw_scallops,
}


def _cloud(rng: np.random.Generator, side: int, cells: int) -> Array:
    """Slow noise, about -1..1, side × side: uneven light and uneven dye."""
    coarse = Image.fromarray(rng.uniform(0, 255, (cells, cells)).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 127.5 - 1


def draw_lace(spec: Spec, seed: int, side: int) -> Image.Image:
    """Draw lace `spec` with the hand of picture `seed`: threads over cloth, with a soft shadow under the threads.

    returns  RGB, side × side px; the same design at every side
    """
    rng = np.random.default_rng((22, seed))
    enlarge = 4 if side <= 128 else 3
    sheet = Threads(side * enlarge, rng)
    DRAWERS[spec.kind](sheet, rng)
    small: Any = sheet.sheet.resize((side, side), Image.Resampling.BOX)
    cover = np.asarray(small, dtype=np.float64)[..., None] / 255
    drop = max(1, round(side * 0.008))
    blurred = np.asarray(small.filter(ImageFilter.GaussianBlur(side * 0.008)), dtype=np.float64)
    shadow = np.roll(blurred, (drop, drop), (0, 1))
    light = 1 + 0.06 * _cloud(rng, side, 4)[..., None]
    cloth = np.array(COLOURS[spec.ground]) * GROUND_DEPTH.get(spec.ground, 1.0) + rng.normal(0, 3, 3)
    cloth = cloth * light * (1 - 0.45 * shadow[..., None] / 255)
    thread = (np.array(COLOURS[spec.colour]) + rng.normal(0, 3, 3)) * (0.5 + 0.5 * light)
    thread = thread * (1 - 0.07 * np.abs(_cloud(rng, side, max(8, side // 6)))[..., None])
    pixels = cover * thread + (1 - cover) * cloth
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
