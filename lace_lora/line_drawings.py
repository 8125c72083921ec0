"""Whether a picture is a line drawing as patent offices take them: black lines on white, dark, and without colour.

The limits are the recipe's; they follow 37 CFR 1.84 (a) (black ink), (b) (no photographs), (l) (lines dark and dense).
"""

from dataclasses import dataclass

import numpy
from PIL import Image

from lace_lora.patent_recipe import Recipe

LARGEST_PX = 1600  # longer side at which a picture is looked at


@dataclass(frozen=True)
class Drawing:
    """What can be measured of a drawing; shares are of all its pixels, luminance is 0..255.

    colour    share whose channels differ by more than the recipe's colour_step
    ink       share that is darker than ink_below
    grey      share that is neither ink nor paper: shading, or edges that were smoothed
    darkness  luminance that the darker half of the ink stays below; 255 where there is no ink
    """

    colour: float
    ink: float
    grey: float
    darkness: float


def measured(picture: Image.Image, recipe: Recipe) -> Drawing:
    """Measure an upright picture without transparency, as image_files.open_picture gives it."""
    shrink = max(picture.size) / LARGEST_PX
    if shrink > 1:  # nearest, since smoothing would make grey of black and white
        size = (max(1, round(picture.width / shrink)), max(1, round(picture.height / shrink)))
        picture = picture.resize(size, Image.Resampling.NEAREST)
    rgb = numpy.asarray(picture.convert("RGB"), numpy.int16)
    light = numpy.asarray(picture.convert("L"))
    spread = rgb.max(axis=-1) - rgb.min(axis=-1)
    is_ink, is_paper = light < recipe.ink_below, light > recipe.paper_above
    return Drawing(
        colour=float((spread > recipe.colour_step).mean()),
        ink=float(is_ink.mean()),
        grey=float((~is_ink & ~is_paper).mean()),
        darkness=float(numpy.median(light[is_ink])) if is_ink.any() else 255.0,
    )


def faults(drawing: Drawing, recipe: Recipe) -> tuple[str, ...]:
    """What keeps a picture from being a line drawing, each as a sentence's end; none where it is one."""
    found = []
    if drawing.colour > recipe.most_colour:
        found.append(f"{drawing.colour:.1%} of it is in colour ({recipe.most_colour:.1%} at most)")
    if drawing.ink < recipe.least_ink:
        found.append(f"it is nearly empty ({drawing.ink:.2%} ink, {recipe.least_ink:.2%} at least)")
    elif drawing.ink > recipe.most_ink:
        found.append(f"{drawing.ink:.0%} of it is dark ({recipe.most_ink:.0%} at most): is it a photograph?")
    if drawing.grey > recipe.most_grey:
        found.append(f"{drawing.grey:.0%} of it is grey ({recipe.most_grey:.0%} at most): scan it in black and white")
    if drawing.ink >= recipe.least_ink and drawing.darkness > recipe.darkest_line:
        found.append(
            f"its lines are pale (luminance {drawing.darkness:.0f}, {recipe.darkest_line} at most): scan it darker"
        )
    return tuple(found)
