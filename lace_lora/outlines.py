"""The outline of lace as an SVG drawing of known size, for cutting, embroidery and vector programs.

vtracer (extra `vector`) finds the curves; it is imported only where an outline is asked for.
"""

import importlib
import io
import re
from html import escape

import numpy
from PIL import Image, ImageFilter

from lace_lora import cloth
from lace_lora.errors import MachineError, PicturesError

PACKAGE = "vtracer"
# vtracer places the corners of its curves on whole pixels and leaves out steps of one: traced four times as large, the
# outline of a 3 px thread is true to a quarter of a pixel (0.96 of the area in common instead of 0.85).
_FINER = 4
# Curves depend on what lies a few threads further along them. With this much traced around a tile they meet at its
# seams to 0.05 px at worst (mean of a seam; seven tiles of real and drawn lace), with 32 px to 0.4, with none to 2.7.
_MARGIN_PX = 96
_SMOOTH = 1.0  # traced pixels; takes away half steps between pixels, and keeps threads of one pixel
_SMALLEST = 6  # traced pixels; specks of less than its square, two pixels of the mask, are left out
_SHORTEST = 10.0  # of a curve, in traced pixels; vtracer's 4 gives files a third larger that look the same
_LARGEST_SIDE_PX = 4096  # of the mask
_PATH = re.compile(r'<path d="([^"]*)"[^>]*?transform="translate\((-?[\d.]+),(-?[\d.]+)\)"')
_POINT = re.compile(r"(-?[\d.]+(?:e-?\d+)?)[ ,](-?[\d.]+(?:e-?\d+)?)")


def outline(
    mask: Image.Image,
    width_cm: float,
    repeat: cloth.Repeat = "none",
    *,
    mirrored: bool = False,
    title: str = "lace",
    colour: str = "#000000",
) -> str:
    """An SVG drawing of the lace: one filled path, cut to the tile by a clip path, with its size in centimetres.

    mask      L, at least 128 where there is lace. Best is the alpha of masks.alpha, whose soft edges tell where in a
              pixel a thread ends: of lace drawn at 96 px, 0.92 of the area in common with the same drawn four times as
              large, against 0.90 from its mask
    width_cm  width in print; the height follows
    repeat    how it is laid: traced inside its own neighbours, so that the curves of tiles side by side meet
    returns   the text of an .svg file; one unit of it is one pixel of the mask

    Raises MachineError where vtracer is not installed, PicturesError for a mask without lace or one too large to
    trace, and SettingsError like cloth.laid.
    """
    problem = missing_package()
    if problem:
        raise MachineError(problem)
    width, height = mask.size
    if max(width, height) > _LARGEST_SIDE_PX:
        raise PicturesError(
            f"An outline of {width} × {height} px would be too large; at most {_LARGEST_SIDE_PX} px a side are traced. "
            "Trace the picture before it is enlarged: an outline can be printed at any size."
        )
    soft = mask.convert("L")
    if soft.getextrema()[1] < 128:  # type: ignore[operator]  # of one channel: (darkest, brightest)
        raise PicturesError("The mask holds no lace, so there is nothing to outline. Look at the mask first.")
    around, (x, y) = cloth.padded(soft, repeat, _MARGIN_PX, mirrored)
    # Where there is no neighbour, threads go straight on beyond the edge: they are cut there, not rounded off.
    beyond = ((_MARGIN_PX - y,) * 2, (_MARGIN_PX - x,) * 2)
    path = _traced(Image.fromarray(numpy.pad(numpy.asarray(around), beyond, mode="edge")))
    height_cm = width_cm * height / width
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" version="1.1" width="{width_cm:.4f}cm" height="{height_cm:.4f}cm" '
        f'viewBox="0 0 {width} {height}">\n'
        f"<title>{escape(_speakable(title))}</title>\n"
        f'<clipPath id="tile"><rect width="{width}" height="{height}"/></clipPath>\n'
        f'<g id="lace" clip-path="url(#tile)"><path fill="{escape(colour)}" d="{path}"/></g>\n'
        "</svg>\n"
    )


def missing_package() -> str | None:
    """What to do to get outlines, where the package for them is not installed; else None."""
    importlib.invalidate_caches()  # it may just have come
    try:
        importlib.import_module(PACKAGE)
    except ImportError:
        return f"SVG outlines need the package {PACKAGE}: pip install {PACKAGE}. Masks and pictures do without it."
    return None


def _traced(soft: Image.Image) -> str:
    """The curves around all that is at least half lace, in pixels of the tile inside the margin, as one path."""
    large = soft.resize((soft.width * _FINER, soft.height * _FINER), Image.Resampling.BICUBIC)
    large = large.filter(ImageFilter.GaussianBlur(_SMOOTH))
    black_is_traced = large.point([255 if tone < 128 else 0 for tone in range(256)])
    file = io.BytesIO()
    black_is_traced.convert("RGB").save(file, "PNG", compress_level=1)
    drawn = importlib.import_module(PACKAGE).convert_raw_image_to_svg(
        file.getvalue(),
        img_format="png",
        colormode="binary",
        mode="spline",
        filter_speckle=_SMALLEST,
        length_threshold=_SHORTEST,
        path_precision=1,
    )
    return " ".join(_placed(path, float(x), float(y)) for path, x, y in _PATH.findall(drawn))


def _placed(path: str, x: float, y: float) -> str:
    """A path in pixels of the tile; vtracer gives each its own origin, x, y, and writes nothing but absolute points."""

    def moved(point: re.Match[str]) -> str:
        across, down = ((float(point[part]) + start) / _FINER - _MARGIN_PX for part, start in ((1, x), (2, y)))
        return f"{across:.2f}".rstrip("0").rstrip(".") + " " + f"{down:.2f}".rstrip("0").rstrip(".")

    return _POINT.sub(moved, path.strip())


def _speakable(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(sign for sign in text if sign.isprintable())
