"""From photograph to swatch: straightened, cut to the lace, evenly lit, with a centimetre marked; all kept as numbers.

The person's file is never touched: `open_swatch` opens it and applies the numbers. Points are (x, y) from the top left
corner in parts of a picture's width and height, 0..1, so that they hold for a thumbnail and for the original alike.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from lace_lora import even_light
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.file_names import printable
from lace_lora.image_files import open_picture

Point = tuple[float, float]
Corners = tuple[Point, Point, Point, Point]
Box = tuple[float, float, float, float]
Mark = tuple[Point, Point, float]
Floats = NDArray[numpy.float64]

LEAST_PART = 0.01  # of a side: less than that is a slip of the mouse
# Of 3,000 simulated photographs of rectangles (tilted by up to 30 degrees, focal lengths of phones of 0.72 to 1.45 of
# the long side, centre off by up to 10 %), taking 0.8 for all gives the rectangle's shape within 1.1 % (median; nine of
# ten within 5 %); the lengths of the sides alone give it within 4.5 % (17 %).
_FOCAL_LENGTH = 0.8
_METHOD = 1  # of making pixels from these numbers; another one has pictures encoded anew
_FEWEST_PX = 8


@dataclass(frozen=True)
class Swatch:
    """What is done to an upright picture on opening it; the default leaves it as it is.

    corners     top left, top right, bottom right and bottom left of a rectangle of lace, in parts of the upright
                picture; they become the corners of the straightened one
    even_light  how much of the lamp's fall-off is taken away, 0..1
    crop        left, top, right and bottom of what is kept, in parts of the straightened picture
    cm          two points, in parts of the upright picture, and how many centimetres of lace lie between them

    Lists are taken for tuples. Raises SettingsError with what is wrong: points outside, corners that cross, a crop that
    keeps nothing, a mark without length.
    """

    corners: Corners | None = None
    even_light: float = 0.0
    crop: Box | None = None
    cm: Mark | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "corners", _points(self.corners, 4, "corners") if self.corners is not None else None)
        object.__setattr__(self, "even_light", _number(self.even_light, "even_light"))
        object.__setattr__(self, "crop", _numbers(self.crop, 4, "crop") if self.crop is not None else None)
        object.__setattr__(self, "cm", _mark(self.cm) if self.cm is not None else None)
        if fault := _light_fault(self) or _corners_fault(self) or _crop_fault(self) or _mark_fault(self):
            raise SettingsError(fault)

    @property
    def changes_pixels(self) -> bool:
        """Whether the picture is another one afterwards; a marked centimetre alone changes nothing."""
        return self.corners is not None or self.crop is not None or self.even_light > 0


# -- on opening --


def open_swatch(path: str | Path, swatch: Swatch | None = None) -> Image.Image:
    """The picture as `open_picture` gives it (upright, 8-bit sRGB), with its swatch applied.

    Raises PicturesError with the file's name where it cannot be opened, or the swatch leaves almost nothing of it.
    """
    return apply(open_picture(path), swatch, path)


def apply(image: Image.Image, swatch: Swatch | None, name: str | Path = "The picture") -> Image.Image:
    """The straightened, cropped and evenly lit picture, RGB; the picture itself where nothing is to be done.

    image  upright, 8-bit. It is straightened first, then cropped, then its light is evened out: a table or a hand that
           is cut away has no say in what the light is.
    name   of its file, for the message

    Raises PicturesError where fewer than 8 px are left on a side.
    """
    if swatch is None or not swatch.changes_pixels:
        return image
    picture = image.convert("RGB")
    if swatch.corners is not None:
        picture = _straightened(picture, swatch.corners)
    if swatch.crop is not None:
        width, height = picture.size
        left, top, right, bottom = swatch.crop
        picture = picture.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    if min(picture.size) < _FEWEST_PX:
        size_left = f"{picture.width} × {picture.height} px"
        raise PicturesError(
            f"{printable(name)}: its swatch leaves {size_left}. Mark a larger part of it, or leave it out."
        )
    return even_light.evenly_lit(picture, swatch.even_light) if swatch.even_light else picture


def digest(sha256: str, swatch: Swatch | None) -> str:
    """What names a picture's pixels (hex): the file's own sha256 where the swatch changes none of them."""
    if swatch is None or not swatch.changes_pixels:
        return sha256
    numbers = json.dumps([_METHOD, swatch.corners, swatch.even_light, swatch.crop])
    return hashlib.sha256(f"{sha256}\n{numbers}".encode()).hexdigest()


def size_after(image_size: tuple[int, int], swatch: Swatch) -> tuple[int, int]:
    """Width and height of what `apply` gives of an upright picture of this size, px, without making it."""
    width, height = _size(swatch.corners, image_size) if swatch.corners is not None else image_size
    left, top, right, bottom = swatch.crop or (0.0, 0.0, 1.0, 1.0)
    return round(right * width) - round(left * width), round(bottom * height) - round(top * height)


def px_per_cm(image_size: tuple[int, int], swatch: Swatch | None) -> float | None:
    """Pixels per centimetre of lace in what `apply` gives; None where no centimetre is marked.

    image_size  width and height of the upright picture before `apply`, px
    """
    if swatch is None or swatch.cm is None:
        return None
    *ends, length_cm = swatch.cm
    places = numpy.array(ends) * image_size
    if swatch.corners is not None:
        straight = _homography(numpy.array(swatch.corners) * image_size, _rectangle(_size(swatch.corners, image_size)))
        places = _mapped(straight, places)
    return float(numpy.hypot(*(places[1] - places[0])) / length_cm)


# -- in dataset.json --


def as_json(swatch: Swatch) -> dict[str, Any]:
    """The numbers that are not the default ones, for dataset.json."""
    return {one.name: value for one in fields(Swatch) if (value := getattr(swatch, one.name)) != one.default}


def from_json(content: Mapping[str, Any]) -> Swatch:
    """A swatch from dataset.json; keys of other tools are passed over. Raises SettingsError with what is wrong."""
    if not isinstance(content, Mapping):
        raise SettingsError('A swatch is written as names with numbers, such as {"even_light": 1.0}.')
    known = {one.name: content[one.name] for one in fields(Swatch) if one.name in content}
    return Swatch(**known)


# -- checking --


def _number(value: object, name: str) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number of 400 digits
            if math.isfinite(number := float(value)):
                return number
    raise SettingsError(f"{name} of a swatch must be a number; found {printable(repr(value))[:80]}.")


def _numbers(value: object, count: int, name: str) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise SettingsError(f"{name} of a swatch must be {count} numbers; found {printable(repr(value))[:80]}.")
    return tuple(_number(one, f"Each number of {name}") for one in value)


def _points(value: object, count: int, name: str) -> tuple[Point, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise SettingsError(f"{name} of a swatch must be {count} points (x, y); found {printable(repr(value))[:80]}.")
    found = [_numbers(point, 2, f"each point in {name}") for point in value]
    for x, y in found:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise SettingsError(
                f"The point ({x:g}, {y:g}) in {name} of a swatch lies outside the picture; points are parts of its "
                "width and height, from 0 to 1."
            )
    return tuple((x, y) for x, y in found)


def _mark(value: object) -> Mark:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        found = printable(repr(value))[:80]
        raise SettingsError(f"cm of a swatch must be two points (x, y) and a length in centimetres; found {found}.")
    start, end = _points(value[:2], 2, "cm")
    return start, end, _number(value[2], "The length in cm")


def _light_fault(swatch: Swatch) -> str:
    if 0 <= swatch.even_light <= 1:
        return ""
    return (
        f"even_light of a swatch is {swatch.even_light:g}; give a number from 0 (leave the light) to 1 (even it out)."
    )


def _corners_fault(swatch: Swatch) -> str:
    """Corners must go clockwise round a shape without dents; else lace would be mirrored or folded over."""
    if swatch.corners is None:
        return ""
    sides = numpy.roll(swatch.corners, -1, axis=0) - numpy.array(swatch.corners)
    lengths = numpy.hypot(*sides.T)
    if lengths.min() < LEAST_PART:
        return "Two corners of a swatch lie on each other; mark the four corners of a rectangle of lace."
    (x, y), (next_x, next_y) = sides.T, numpy.roll(sides, -1, axis=0).T
    sines = (x * next_y - y * next_x) / (lengths * numpy.roll(lengths, -1))
    if sines.min() < 0.1:  # a corner of less than 6 degrees, or more than 174
        return (
            "The corners of a swatch cross, lie on one line, or go the wrong way round; mark top left, top right, "
            "bottom right, bottom left, as they shall stand afterwards."
        )
    return ""


def _crop_fault(swatch: Swatch) -> str:
    if swatch.crop is None:
        return ""
    left, top, right, bottom = swatch.crop
    shown = ", ".join(f"{part:g}" for part in swatch.crop)
    if min(swatch.crop) < 0 or max(swatch.crop) > 1:
        return f"The crop ({shown}) of a swatch lies outside the picture; its sides are parts, from 0 to 1."
    if right - left < LEAST_PART or bottom - top < LEAST_PART:
        return (
            f"The crop ({shown}) of a swatch keeps nothing; left must be less than right, and top less than bottom, by "
            f"{LEAST_PART:g} at least."
        )
    return ""


def _mark_fault(swatch: Swatch) -> str:
    if swatch.cm is None:
        return ""
    *ends, length_cm = swatch.cm
    if length_cm <= 0:
        return (
            f"cm of a swatch has a length of {length_cm:g} cm; write how many centimetres lie between its two points."
        )
    if math.dist(*ends) < LEAST_PART / 10:
        return "The two points of cm of a swatch lie on each other; mark the two ends of a length that is known."
    if swatch.corners is not None:
        to_square = _homography(numpy.array(swatch.corners), _rectangle((1, 1)))
        if min(to_square[2] @ (x, y, 1) for x, y in ends) <= 0.05:
            return "cm of a swatch is marked behind the plane that its corners span; mark it on the lace itself."
    return ""


# -- straightening --


def _straightened(picture: Image.Image, corners: Corners) -> Image.Image:
    size = _size(corners, picture.size)
    to_picture = _homography(_rectangle(size), numpy.array(corners) * picture.size)
    coefficients = tuple(to_picture.ravel()[:8].tolist())
    return picture.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)


def _size(corners: Corners, image_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the straightened picture, px: the shape of the real rectangle, no side shorter than it was.

    Sides in perspective do not tell a rectangle's shape; its two directions in space do, which follow from the focal
    length. That of a phone is assumed; for a picture taken from straight above it does not matter.
    Source: Zhang and He 2007, https://doi.org/10.1016/j.dsp.2006.05.006 (with the focal length given).
    """
    places = numpy.array(corners) * image_size
    top, right, bottom, left = (math.dist(places[one], places[(one + 1) % 4]) for one in range(4))
    focal_px = _FOCAL_LENGTH * max(image_size)
    camera = _homography(_rectangle((1, 1)), (places - numpy.array(image_size) / 2) / focal_px)
    by_sides = max(top, bottom) / max(left, right)
    shape = float(numpy.linalg.norm(camera[:, 0]) / numpy.linalg.norm(camera[:, 1]))
    shape = min(max(shape, by_sides / 2), by_sides * 2)
    width = max(top, bottom, shape * max(left, right))
    width = min(width, math.sqrt(2 * image_size[0] * image_size[1] * shape))  # never more than twice the pixels
    return max(1, round(width)), max(1, round(width / shape))


def _rectangle(size: tuple[float, float]) -> Floats:
    width, height = size
    return numpy.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=numpy.float64)


def _homography(from_42: Floats, to_42: Floats) -> Floats:
    """The perspective map, 3 × 3, that takes four points to four others; its last entry is 1."""
    rows = []
    for (x, y), (u, v) in zip(from_42, to_42, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return numpy.append(numpy.linalg.solve(numpy.array(rows), to_42.ravel()), 1).reshape(3, 3)


def _mapped(map_33: Floats, places: Floats) -> Floats:
    found = numpy.column_stack([places, numpy.ones(len(places))]) @ map_33.T
    return numpy.asarray(found[:, :2] / found[:, 2:])
