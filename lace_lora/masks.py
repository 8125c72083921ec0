"""Which pixels of a design are lace and which are ground: a mask, and the lace cut out with a clear ground.

H,W pixels · R,G,B colours 0..255
"""

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lace_lora import cloth
from lace_lora.errors import PicturesError

Floats = NDArray[numpy.float64]
Ints = NDArray[numpy.int64]
Bytes = NDArray[numpy.uint8]
Bools = NDArray[numpy.bool_]

Threshold = Literal["otsu", "local"]
Lace = Literal["light", "dark"]

_LUMA = numpy.array([0.299, 0.587, 0.114])
_FURTHEST_TONES = (0.5, 99.5)  # percentiles that become 0 and 255; what lies beyond is a spot or a glint
# Otsu's separability of one bell of tones is 0.64 (2/pi); of 51 photographs of lace, 0.71 to 0.88.
_HARDLY_TWO_TONES = 0.68
_WINDOW = 8  # a local tone is the mean of a square of this part of the short side to either side: a few meshes
_FEW = 0.02  # of a window's pixels: the weight of the whole picture's tone where a window holds one kind alone
_ROUNDS = 6
# How far the local threshold may stray from Otsu's, as a share of what parts lace from ground, before it is preferred.
_EVEN = 0.15
_FEWEST_HOLES = 3
_EDGE_PX = 2  # either side of the mask's edge where pixels may be part lace, part ground


@dataclass(frozen=True)
class LaceMask:
    """A mask with what was chosen to make it, and why."""

    image: Image.Image  # L, 255 where there is lace, 0 where the ground shows
    lace: Lace  # whether the thread is lighter or darker than the ground
    threshold: Threshold
    why: str

    @property
    def share(self) -> float:
        """How much of the picture is lace, 0..1."""
        return self.image.histogram()[255] / (self.image.width * self.image.height)


def mask(
    picture: Image.Image,
    repeat: cloth.Repeat = "none",
    *,
    lace: Lace | Literal["auto"] = "auto",
    threshold: Threshold | Literal["auto"] = "auto",
) -> LaceMask:
    """Tell lace from ground by tone. Tone is measured along the line on which the picture's colours differ most, so
    that red thread on green cloth is told apart though both are equally light.

    repeat     how the picture is laid; what lies beyond an edge is then its neighbour, and the mask of a rolled tile is
               the mask rolled
    lace       whether the thread is light or dark. auto: thread hangs together and the ground shows in holes, so the
               lace is the tone that encloses more holes than it has pieces; where that does not tell, the light one
    threshold  otsu is one for the whole picture, local goes with the tones of lace and ground nearby. auto: local where
               it strays from Otsu's by more than 15 % of what parts lace from ground, as under a lamp

    Raises PicturesError for a picture of one tone, which shows no lace, and SettingsError like cloth.laid.

    Source: Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076; the local threshold is halfway between both means,
    as Ridler and Calvard 1978 have it for a whole picture, https://doi.org/10.1109/TSMC.1978.4310039; pieces less
    holes are counted by 2 × 2 pixels as in Gray 1971, https://doi.org/10.1109/T-C.1971.223289.
    """
    cloth.check(picture.size, repeat)
    tone_HW = _tones(picture)
    cut, separability = _otsu(tone_HW)
    is_light_HW = tone_HW > cut
    apart = float(tone_HW[is_light_HW].mean() - tone_HW[~is_light_HW].mean())

    where_HW, strays, is_local = numpy.full(tone_HW.shape, cut), 0.0, threshold == "local"
    if threshold != "otsu":
        nearby_HW = _local_threshold(tone_HW, is_light_HW, repeat)
        strays = float(numpy.percentile(abs(nearby_HW - cut), 95)) / apart
        is_local = is_local or strays > _EVEN
        where_HW = nearby_HW if is_local else where_HW
    is_light_HW = tone_HW > where_HW

    holes = _holes_less_pieces(tone_HW, where_HW, repeat)
    found, because = (lace, "as asked for") if lace != "auto" else _which_is_lace(holes)
    is_lace_HW = is_light_HW if found == "light" else ~is_light_HW
    reasons = [f"{found} lace: {because}", "local thresholds" if is_local else "one threshold (Otsu)"]
    if threshold == "auto":
        reasons[1] += f": light or dye shifts it by {strays:.0%} of what parts lace from ground"
    if separability < _HARDLY_TWO_TONES:
        reasons.append("! lace and ground hardly differ in tone, look at the mask")
    drawn = Image.fromarray(numpy.where(is_lace_HW, 255, 0).astype(numpy.uint8))
    return LaceMask(drawn, found, "local" if is_local else "otsu", "; ".join(reasons))


def alpha(picture: Image.Image, lace_mask: Image.Image, repeat: cloth.Repeat = "none") -> Image.Image:
    """The lace alone, RGBA: the ground clear, and at the edges of threads the ground's colour taken out again.

    lace_mask  L, at least 128 where there is lace; as LaceMask.image

    A pixel at an edge is part thread, part ground. Its alpha is where it lies between the colours of thread and ground
    nearby, its colour what is left without the ground (no dark fringe on light cloth). Laid over its own ground it
    is the picture again. Clear pixels keep the thread's colour, so that enlarging brings no fringe back.

    Raises PicturesError where mask and picture are not of one size, or the mask is all lace or all ground.
    """
    if picture.size != lace_mask.size:
        raise PicturesError(
            f"The mask has {lace_mask.width} × {lace_mask.height} px and the picture {picture.width} × "
            f"{picture.height}. Take the mask that was made of this picture."
        )
    rgb = numpy.asarray(picture.convert("RGB"))
    is_lace_HW = numpy.asarray(lace_mask.convert("L")) >= 128
    if is_lace_HW.all() or not is_lace_HW.any():
        raise PicturesError(
            "The mask is all lace or all ground, so that nothing can be cut out. Make it again with lace or threshold "
            "set by hand."
        )
    # Thread and ground, each as its purest pixels nearby: first all of a kind, then those that are far from the other.
    certain_HW = is_lace_HW.astype(numpy.float64)
    for _ in range(2):
        thread = _colour_nearby(rgb, _trust(certain_HW) * is_lace_HW, repeat)
        ground = _colour_nearby(rgb, _trust(1 - certain_HW) * ~is_lace_HW, repeat)
        across = thread - ground
        certain_HW = ((rgb - ground) * across).sum(2) / numpy.maximum((across**2).sum(2), 1.0)
        certain_HW = certain_HW.clip(0, 1)

    is_edge_HW = _at_edge(lace_mask, repeat)
    alpha_HW = numpy.rint(numpy.where(is_edge_HW, certain_HW, is_lace_HW) * 255) / 255
    part = numpy.maximum(alpha_HW, 1 / 255)[:, :, None]
    colour = numpy.where(alpha_HW[:, :, None] > 0, ground + (rgb - ground) / part, thread)
    # A pixel that holds a tenth of thread tells ten times its noise of the thread's colour: there, what is nearby.
    colour = numpy.where(part < 0.5, colour * part * 2 + thread * (1 - part * 2), colour)
    layers = numpy.dstack([colour, alpha_HW * 255])
    return Image.fromarray(numpy.rint(layers.clip(0, 255)).astype(numpy.uint8))


# -- tones --


def _tones(picture: Image.Image) -> Bytes:
    """Every pixel's place on the line along which the colours differ most, 0 dark .. 255 light.

    Sums are whole numbers, and the rest is done pixel by pixel: where a pixel lies makes no difference to its tone.
    """
    rgb = numpy.asarray(picture.convert("RGB"))
    flat = rgb.reshape(-1, 3).astype(numpy.int64)
    means = flat.sum(axis=0) / len(flat)
    spread = (flat.T @ flat) / len(flat) - numpy.outer(means, means)
    line = numpy.linalg.eigh(spread)[1][:, -1]
    line = line if line @ _LUMA > 0 else -line
    place_HW = rgb[:, :, 0] * line[0] + rgb[:, :, 1] * line[1] + rgb[:, :, 2] * line[2]
    low, high = numpy.percentile(place_HW, _FURTHEST_TONES)
    if high - low < 1:
        low, high = place_HW.min(), place_HW.max()
    if high - low < 1:
        raise PicturesError(
            "The picture is of one tone, so there is no lace to be told from a ground. Choose another picture."
        )
    return numpy.asarray(numpy.rint((place_HW - low) / (high - low) * 255).clip(0, 255), numpy.uint8)


def _otsu(tone_HW: Bytes) -> tuple[float, float]:
    """The threshold that parts the tones best, and how much of their variance is between both parts, 0..1.

    Where several do equally well, as in an empty stretch between two tones, the middle of them.
    """
    counts = numpy.bincount(tone_HW.ravel(), minlength=256) / tone_HW.size
    levels = numpy.arange(256)
    below, moment = counts.cumsum()[:-1], (counts * levels).cumsum()[:-1]
    mean = float(counts @ levels)
    weight = below * (1 - below)
    between = numpy.where(weight > 1e-12, (mean * below - moment) ** 2 / numpy.maximum(weight, 1e-12), 0.0)
    best = numpy.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(best.mean()), float(between.max() / (counts @ (levels - mean) ** 2))


def _local_threshold(tone_HW: Bytes, is_light_HW: Bools, repeat: cloth.Repeat) -> Floats:
    """Halfway between the tones of light and of dark nearby, found anew until light and dark stay the same."""
    reach = max(8, min(tone_HW.shape) // _WINDOW)
    few = _FEW * (2 * reach + 1) ** 2
    whole = {kind: float(tone_HW[is_light_HW == kind].mean()) for kind in (True, False)}
    halfway_HW = numpy.zeros(tone_HW.shape)
    for _ in range(_ROUNDS):
        halfway_HW = numpy.zeros(tone_HW.shape)
        for kind in (True, False):
            is_kind_HW = is_light_HW == kind
            summed = _sums_nearby(tone_HW * is_kind_HW, reach, repeat)
            counted = _sums_nearby(is_kind_HW.astype(numpy.uint8), reach, repeat)
            halfway_HW += (summed + few * whole[kind]) / (counted + few) / 2
        changed_HW = tone_HW > halfway_HW
        if (changed_HW == is_light_HW).all():
            break
        is_light_HW = changed_HW
    return halfway_HW


# -- light or dark --


def _holes_less_pieces(tone_HW: Bytes, where_HW: Floats, repeat: cloth.Repeat) -> int:
    """How many more holes than pieces the light tone has; for the dark tone it is the same number below nought.

    Every 2 × 2 pixels with one light pixel are a corner that sticks out, with three one that sticks in; a piece has
    four more of the first kind, a hole four more of the second. Slightly blurred first: specks are pieces, too.
    """
    radius = max(tone_HW.shape) / 768  # small pictures have threads of two pixels, and hardly any noise
    above = numpy.clip(tone_HW.astype(numpy.float64) - where_HW + 128, 0, 255)
    around, (x, y) = cloth.padded(Image.fromarray(numpy.rint(above).astype(numpy.uint8)), repeat, int(4 * radius) + 2)
    is_light = numpy.asarray(around.filter(ImageFilter.GaussianBlur(radius))) > 128
    height, width = tone_HW.shape
    # In repeat every corner counts once; of a plain picture only those that lie inside it do.
    is_light = is_light[y : y + height + (y > 0), x : x + width + (x > 0)].astype(numpy.uint8)
    lit = is_light[:-1, :-1] + is_light[1:, :-1] + is_light[:-1, 1:] + is_light[1:, 1:]
    return (int((lit == 3).sum()) - int((lit == 1).sum())) // 4


def _which_is_lace(holes: int) -> tuple[Lace, str]:
    if abs(holes) < _FEWEST_HOLES:
        return "light", "holes and pieces do not tell, so the lighter tone is taken"
    lace: Lace = "light" if holes > 0 else "dark"
    return lace, f"the {lace} tone encloses {abs(holes)} more holes than it has pieces"


# -- nearby --


def _around(values_HW: Bytes, repeat: cloth.Repeat, margin: int) -> Bytes:
    """With a margin on all sides: the neighbours where it is laid in repeat, else its own mirror image."""
    picture, (x, y) = cloth.padded(Image.fromarray(values_HW), repeat, margin)
    return numpy.pad(numpy.asarray(picture), ((margin - y,) * 2, (margin - x,) * 2), mode="symmetric")


def _sums_nearby(values_HW: Bytes, reach: int, repeat: cloth.Repeat) -> Ints:
    """The sum of the square of 2 · reach + 1 pixels around each pixel; whole numbers, so exact wherever it lies."""
    total = numpy.pad(_around(values_HW, repeat, reach), ((1, 0), (1, 0))).astype(numpy.int64)
    total = total.cumsum(axis=0).cumsum(axis=1)
    side = 2 * reach + 1
    return numpy.asarray(total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side])


def _trust(certain_HW: Floats) -> Floats:
    return numpy.asarray(certain_HW**4)


def _colour_nearby(rgb: Bytes, trust_HW: Floats, repeat: cloth.Repeat) -> Floats:
    """The mean colour nearby, H × W × 3, of the pixels that are trusted; where none is near, that of all of them."""
    reach = max(4, min(trust_HW.shape) // 32)
    trust = numpy.rint(trust_HW * 255).astype(numpy.uint8)
    few = _FEW * 255
    counted = _sums_nearby(trust, reach, repeat) + few
    layers = []
    for colour_HW in (rgb[:, :, 0], rgb[:, :, 1], rgb[:, :, 2]):
        weighted = numpy.rint(colour_HW * (trust / 255)).astype(numpy.uint8)
        whole = float(weighted.sum()) / max(1.0, float(trust.sum()) / 255)
        layers.append((_sums_nearby(weighted, reach, repeat) * 255 + few * whole) / counted)
    return numpy.dstack(layers)


def _at_edge(lace_mask: Image.Image, repeat: cloth.Repeat) -> Bools:
    """Whether lace and ground are both within _EDGE_PX of a pixel."""
    mask_HW = numpy.where(numpy.asarray(lace_mask.convert("L")) >= 128, 255, 0).astype(numpy.uint8)
    around = Image.fromarray(_around(mask_HW, repeat, _EDGE_PX))
    size = 2 * _EDGE_PX + 1
    inside = (slice(_EDGE_PX, -_EDGE_PX), slice(_EDGE_PX, -_EDGE_PX))
    brightest = numpy.asarray(around.filter(ImageFilter.MaxFilter(size)))[inside]
    darkest = numpy.asarray(around.filter(ImageFilter.MinFilter(size)))[inside]
    return numpy.asarray(brightest != darkest)
