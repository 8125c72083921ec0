"""A finished picture as cloth: laid out in repeat, previewed, measured in centimetres, enlarged without a seam.

How tiles lie, w × h px each, y pointing down:

    straight   in rows and columns
    half-drop  every other column lies half a tile lower
    brick      every other row lies half a tile further right
    band       one row, as an edging runs
    none       not made to be repeated; laid like straight, and its seams show
"""

import math
from collections.abc import Iterator
from typing import Literal

from PIL import Image, ImageDraw

from lace_lora.errors import SettingsError
from lace_lora.image_files import LARGEST_PICTURE_MP, LONGEST_SIDE_PX
from lace_lora.pictures import font_of, line_height, wrapped

Repeat = Literal["none", "straight", "half-drop", "brick", "band"]
Box = tuple[int, int, int, int]  # left, top, right, bottom, px

CM_PER_INCH = 2.54
_LANCZOS_REACH = 3  # px of the coarser of both pictures that Lanczos looks at to either side
_PAPER, _INK = (246, 245, 242), (45, 45, 45)
_MARGIN_PX = 12


# Laid out


def laid(tile: Image.Image, repeat: Repeat, rows: int = 3, columns: int = 3, mirrored: bool = False) -> Image.Image:
    """The tile repeated as it would lie on cloth: columns × rows tiles, a band one row.

    mirrored  every other tile is turned over, sideways along a row and upside down along a column, so that each edge
              meets its own mirror image: a repeat that any picture can have

    Raises SettingsError for a mirrored half-drop or brick, whose edges would not meet, and for a half-drop tile of odd
    height or a brick tile of odd width, which have no half.
    """
    rows = 1 if repeat == "band" else rows
    return cut(tile, repeat, (0, 0, columns * tile.width, rows * tile.height), mirrored)


def cut(tile: Image.Image, repeat: Repeat, box: Box, mirrored: bool = False) -> Image.Image:
    """What lies in `box` of a cloth without end whose first tile has its upper left corner at 0, 0.

    A tile rolled by dx, dy along its own repeat is cut(tile, repeat, (dx, dy, dx + w, dy + h)). A band goes on above
    and below with further rows here; `laid` and `padded` never ask for them. Raises SettingsError like laid.
    """
    check(tile.size, repeat, mirrored)
    if tile.mode == "P":  # pasting would lose its colours
        tile = tile.convert("RGBA" if tile.has_transparency_data else "RGB")
    left, top, right, bottom = box
    cloth = Image.new(tile.mode, (right - left, bottom - top))
    turned = _turned(tile) if mirrored else {(0, 0): tile}
    for row, column, x, y in _places(tile.size, repeat, box):
        cloth.paste(turned[row % 2, column % 2] if mirrored else tile, (x - left, y - top))
    return cloth


def padded(
    tile: Image.Image, repeat: Repeat, margin_px: int, mirrored: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """The tile inside its own neighbours, and how much of them there is at either side: (x, y), px.

    A band has neighbours left and right only, a plain picture none. Raises SettingsError like laid.
    """
    if repeat == "none" and not mirrored:
        return tile, (0, 0)
    x, y = margin_px, 0 if repeat == "band" else margin_px
    return cut(tile, repeat, (-x, -y, tile.width + x, tile.height + y), mirrored), (x, y)


def check(size: tuple[int, int], repeat: Repeat, mirrored: bool = False) -> None:
    """Raise SettingsError where tiles of that size, w × h px, cannot be laid that way."""
    width, height = size
    if mirrored and repeat in ("half-drop", "brick"):
        raise SettingsError(
            f"A mirrored {repeat} does not join: a tile turned over meets its mirror image only where both lie side by "
            "side. Use the mirrored repeat with straight, band or none."
        )
    halved = {"half-drop": ("height", height), "brick": ("width", width)}.get(repeat)
    if halved and halved[1] % 2:
        side, length = halved
        raise SettingsError(
            f"A {repeat} lies half a tile over, and a {side} of {length} px has no half. Use {length - 1} or "
            f"{length + 1} px."
        )


def _places(size: tuple[int, int], repeat: Repeat, box: Box) -> Iterator[tuple[int, int, int, int]]:
    """Row, column and upper left corner of every tile that touches the box."""
    (width, height), (left, top, right, bottom) = size, box
    for row in range(top // height - 1, -(-bottom // height)):
        for column in range(left // width - 1, -(-right // width)):
            x = column * width + (width // 2 if repeat == "brick" and row % 2 else 0)
            y = row * height + (height // 2 if repeat == "half-drop" and column % 2 else 0)
            yield row, column, x, y


def _turned(tile: Image.Image) -> dict[tuple[int, int], Image.Image]:
    """The tile by whether its row and its column are odd."""
    return {
        (0, 0): tile,
        (0, 1): tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        (1, 0): tile.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        (1, 1): tile.transpose(Image.Transpose.ROTATE_180),
    }


def preview(
    tile: Image.Image,
    repeat: Repeat,
    dpi: float,
    rows: int = 3,
    columns: int = 3,
    mirrored: bool = False,
    longest_px: int = 1536,
) -> Image.Image:
    """The laid cloth, small enough to look at, above a line that says how large one repeat and all that is shown are.

    dpi         at which the tile is printed
    longest_px  bound of the longer side of the cloth; a smaller cloth is not enlarged

    The tile is made smaller before it is laid, along its own repeat, so that what shows at a seam is in the tile.
    Raises SettingsError like laid.
    """
    check(tile.size, repeat, mirrored)
    rows = 1 if repeat == "band" else rows
    shrink = min(1.0, longest_px / max(tile.width * columns, tile.height * rows))
    small = enlarged(tile, repeat, factor=shrink, mirrored=mirrored) if shrink < 1 else tile
    cloth = laid(small.convert("RGB"), repeat, rows, columns, mirrored)

    way = "in mirrored repeat" if mirrored else "laid side by side" if repeat == "none" else f"in {repeat} repeat"
    shown = print_size(tile.width * columns, tile.height * rows, dpi)
    words = f"One tile {_in_cm(*print_size(*tile.size, dpi))} at {dpi:.0f} dpi, {way}; {_in_cm(*shown)} are shown"
    font = font_of(max(11, min(22, cloth.width // 50)))
    lines = wrapped(words, font, cloth.width - 2 * _MARGIN_PX, 4)
    page = Image.new("RGB", (cloth.width, cloth.height + 2 * _MARGIN_PX + len(lines) * line_height(font)), _PAPER)
    page.paste(cloth, (0, 0))
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((_MARGIN_PX, cloth.height + _MARGIN_PX + number * line_height(font)), line, _INK, font)
    return page


def _in_cm(width_cm: float, height_cm: float) -> str:
    return f"{width_cm:.1f} × {height_cm:.1f} cm"


# Size in print


def print_size(width_px: int, height_px: int, dpi: float) -> tuple[float, float]:
    """Width and height in cm that so many pixels have in print: 1024 px at 300 dpi are 8.67 cm."""
    return width_px / dpi * CM_PER_INCH, height_px / dpi * CM_PER_INCH


def dpi_for(width_px: int, width_cm: float) -> float:
    """The resolution, dots an inch, at which so many pixels are that wide in print: 1024 px on 10 cm are 260 dpi."""
    return width_px / (width_cm / CM_PER_INCH)


# Enlarged


def enlarged(
    tile: Image.Image,
    repeat: Repeat,
    *,
    factor: float | None = None,
    width_cm: float | None = None,
    dpi: float = 300,
    mirrored: bool = False,
) -> Image.Image:
    """The tile with more pixels (Lanczos), equal to a tile cut out of the endless cloth enlarged as a whole.

    factor    how many times as wide and high; below 1 makes it smaller
    width_cm  or the width that it shall have in print at `dpi`
    mirrored  it will be laid in mirrored repeat

    What lies beyond an edge is the neighbour there, not the edge's own colour drawn out: edges enlarged alone would
    show as a seam. Sides come out as whole pixels, even ones where the repeat halves them.

    Raises SettingsError without a size to reach, and for one that is no picture any more (0 px, or too many).
    """
    if (factor is None) == (width_cm is None):
        raise SettingsError("Enlarging needs either factor or width_cm, and one of them alone.")
    check(tile.size, repeat, mirrored)
    scale = factor if factor is not None else print_px(width_cm or 0.0, dpi) / tile.width
    if tile.mode in ("1", "P"):  # Pillow would double and drop whole pixels of these
        tile = tile.convert("L" if tile.mode == "1" else "RGBA" if tile.has_transparency_data else "RGB")
    halved = {"half-drop": (1, 2), "brick": (2, 1)}.get(repeat, (1, 1))
    width, height = (whole * round(side * scale / whole) for side, whole in zip(tile.size, halved, strict=True))
    _check_large(tile.size, (width, height), scale)
    margin = math.ceil(_LANCZOS_REACH * max(1.0, tile.width / width, tile.height / height)) + 1
    around, (x, y) = padded(tile, repeat, margin, mirrored)
    # Pillow looks at what lies around the box as far as Lanczos reaches; it does not stop at the box.
    box = (x, y, x + tile.width, y + tile.height)
    return around.resize((width, height), Image.Resampling.LANCZOS, box=box)


def check_enlarged(size: tuple[int, int], factor: float) -> None:
    """Raise SettingsError where a tile of that size, w × h px, would become too large to be opened again."""
    _check_large(size, (round(size[0] * factor), round(size[1] * factor)), factor)


def _check_large(size: tuple[int, int], large: tuple[int, int], scale: float) -> None:
    (tile_width, tile_height), (width, height) = size, large
    if min(width, height) < 1 or max(width, height) > LONGEST_SIDE_PX or width * height > LARGEST_PICTURE_MP * 1e6:
        raise SettingsError(
            f"Enlarged {scale:.3g} times, {tile_width} × {tile_height} px become {width:,} × {height:,} px; at most "
            f"{LARGEST_PICTURE_MP} MP and {LONGEST_SIDE_PX:,} px a side can be opened again. Ask for another width in "
            "print, dpi or factor."
        )


def print_px(width_cm: float, dpi: float) -> int:
    """How many pixels that width takes in print."""
    return round(width_cm / CM_PER_INCH * dpi)
