"""Which pixels of a picture are learnt: shapes of one area, crops, tiles of large scans, flips and quarter turns.

A picture gets a tuple of cuts. Each is encoded once and carries what SDXL is told of it, so that what chance decides
while training (which cut is looked at) never needs the picture again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy
import torch
from PIL import Image
from torch import Tensor

from lace_lora.shapes import Hw, bucket_of

Crop = Literal["center", "random", "tiles"]
PLACES = 4  # of a crop along the side on which a picture is too long
PLACES_APART_PX = 8  # a latent cell; nearer ones would cost an encoding each and show next to nothing new
TILES = 16  # of a scan, at most
_TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut: the settings that decide it, and the step that bucket_step gives for them."""

    resolution: int  # side of the square whose area all buckets have, px
    step: int  # sides of buckets are multiples of it, px
    crop: Crop = "center"
    flips: bool = False
    quarter_turns: bool = False


@dataclass(frozen=True)
class Cut:
    """Some pixels of an upright picture: it is turned, scaled to resized_hw, mirrored, then target_hw is cut out of it.

    All sizes and places are those of the turned and mirrored picture, because that is what the model is shown.
    """

    original_hw: Hw
    resized_hw: Hw
    crop_top_left: Hw
    target_hw: Hw
    is_flipped: bool = False
    quarter_turns: int = 0  # counter-clockwise, 0..3

    @property
    def scaled_hw(self) -> Hw:
        """To what the upright picture is scaled, before it is turned."""
        height, width = self.resized_hw
        return (width, height) if self.quarter_turns % 2 else (height, width)


# -- cuts --


def cut_of(
    width: int, height: int, resolution: int, step: int, is_flipped: bool = False, quarter_turns: int = 0
) -> Cut:
    """The middle of an upright picture of this size, in the bucket of the nearest shape.

    A mirrored cut comes from the mirrored picture, so its left edge is what was on the right. Turned by 90° or 270° a
    picture belongs to the transposed bucket.
    """
    hw, target_hw = _turned(width, height, resolution, step, quarter_turns)
    resized_hw = _covering(hw, target_hw)
    top_left = ((resized_hw[0] - target_hw[0]) // 2, (resized_hw[1] - target_hw[1]) // 2)
    return _side(Cut(hw, resized_hw, top_left, target_hw, quarter_turns=quarter_turns), is_flipped)


def cuts_of(width: int, height: int, cutting: Cutting) -> tuple[Cut, ...]:
    """All cuts of an upright picture of this size; the first is the whole picture, upright, as it is.

    center  the middle
    random  up to four places, spread evenly over the side that is too long: both borders of an edging are learnt as
            often as its middle, and the places depend on nothing but the size, so that all runs share the cache. Chance
            comes in when one of them is drawn for each look.
    tiles   a large scan also by tiles at full sharpness; its whole picture stands there once for each tile (encoded
            once), so that half of all looks are at whole pictures, which is what is asked for later

    Mirrored and turned cuts follow the same places. Where flips are wanted, each cut is followed by its mirrored one.
    """
    found: list[Cut] = []
    for turns in range(4 if cutting.quarter_turns else 1):
        middle = cut_of(width, height, cutting.resolution, cutting.step, quarter_turns=turns)
        places = list(_random_places(middle)) if cutting.crop == "random" else [middle]
        if cutting.crop == "tiles":
            tiles = list(_tiles(middle))
            places = [middle] * max(1, len(tiles)) + tiles
        sides = (False, True) if cutting.flips else (False,)
        found += [_side(cut, is_flipped) for cut in places for is_flipped in sides]
    return tuple(found)


# -- pixels --


def scaled(picture: Image.Image, cut: Cut) -> Image.Image:
    """The upright picture in the size that a cut is taken from; cuts with the same scaled_hw share it."""
    height, width = cut.scaled_hw
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def cut_out(scaled_picture: Image.Image, cut: Cut) -> Tensor:
    """The cut's pixels, CHW, float32, -1..1, from what `scaled` gave.

    Cut first and turned then: turning a scan of 100 MP for each of its tiles would take longer than encoding them.
    """
    piece = scaled_picture.crop(_upright_box(cut))
    turn = _TURNS[cut.quarter_turns]
    if turn is not None:
        piece = piece.transpose(turn)
    if cut.is_flipped:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels_HWC = numpy.asarray(piece, dtype=numpy.float32)
    return torch.from_numpy(pixels_HWC / 127.5 - 1).permute(2, 0, 1).contiguous()


def pixels_of(picture: Image.Image, cut: Cut) -> Tensor:
    """The same from an upright picture of any size."""
    return cut_out(scaled(picture, cut), cut)


# -- inside --


def _turned(width: int, height: int, resolution: int, step: int, quarter_turns: int) -> tuple[Hw, Hw]:
    """Size and bucket of the turned picture; the bucket is the upright one's, so that four turns need two shapes."""
    bucket_h, bucket_w = bucket_of(width, height, resolution, step)
    if quarter_turns % 2:
        return (width, height), (bucket_w, bucket_h)
    return (height, width), (bucket_h, bucket_w)


def _covering(hw: Hw, target_hw: Hw) -> Hw:
    """The smallest size of this shape that covers the target."""
    scale = max(target_hw[0] / hw[0], target_hw[1] / hw[1])
    return max(target_hw[0], round(hw[0] * scale)), max(target_hw[1], round(hw[1] * scale))


def _side(cut: Cut, is_flipped: bool) -> Cut:
    """A cut that is not mirrored, or the mirrored one of the same pixels."""
    if not is_flipped:
        return cut
    top, left = cut.crop_top_left
    left = cut.resized_hw[1] - cut.target_hw[1] - left
    return Cut(cut.original_hw, cut.resized_hw, (top, left), cut.target_hw, True, cut.quarter_turns)


def _random_places(middle: Cut) -> Iterator[Cut]:
    (resized_h, resized_w), (target_h, target_w) = middle.resized_hw, middle.target_hw
    slack = max(resized_h - target_h, resized_w - target_w)
    if slack < PLACES_APART_PX:
        yield middle
        return
    for offset in _spread(slack, min(PLACES, slack // PLACES_APART_PX + 1)):
        top_left = (offset, 0) if resized_h > target_h else (0, offset)
        yield Cut(middle.original_hw, middle.resized_hw, top_left, middle.target_hw, False, middle.quarter_turns)


def _tiles(middle: Cut) -> Iterator[Cut]:
    """Tiles of the bucket's size that cover a scan of at least two tiles a side; none for a smaller picture.

    At full sharpness where 16 are enough, else of the scan scaled down as little as needed; never enlarged.
    """
    (height, width), (target_h, target_w) = middle.original_hw, middle.target_hw
    if height < 2 * target_h and width < 2 * target_w:
        return
    smallest = max(target_h / height, target_w / width)
    scales = [1.0, *(many * side for many in range(1, TILES + 1) for side in (target_h / height, target_w / width))]
    for scale in sorted((one for one in scales if smallest <= one <= 1), reverse=True):
        resized_h, resized_w = max(target_h, round(height * scale)), max(target_w, round(width * scale))
        rows, columns = ceil(resized_h / target_h), ceil(resized_w / target_w)
        if rows * columns <= TILES:
            break
    else:
        return
    for top in _spread(resized_h - target_h, rows):
        for left in _spread(resized_w - target_w, columns):
            yield Cut((height, width), (resized_h, resized_w), (top, left), (target_h, target_w), False,
                      middle.quarter_turns)  # fmt: skip


def _spread(slack: int, count: int) -> list[int]:
    """`count` places from 0 to slack, evenly; a single one in the middle."""
    if count == 1:
        return [slack // 2]
    return [round(slack * place / (count - 1)) for place in range(count)]


def _upright_box(cut: Cut) -> tuple[int, int, int, int]:
    """Where the cut lies in the scaled upright picture: left, top, right, bottom, for Pillow."""
    (top, left), (high, wide), (height, width) = cut.crop_top_left, cut.target_hw, cut.resized_hw
    if cut.is_flipped:
        left = width - wide - left
    for _ in range(cut.quarter_turns):  # undo one: the top edge came from the right, the left edge from the top
        top, left, high, wide, height, width = left, height - high - top, wide, high, width, height
    return left, top, left + wide, top + high
