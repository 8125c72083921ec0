"""The form in which a person prepares one photograph: straightened, evenly lit, cut to the lace, a length marked.

Both pictures are made from a small view, so that a change shows at once; what is handed on are parts of the sides,
which hold for the original. Works with ipywidgets 7.7 (Colab's) and 8, where no picture takes clicks: hence sliders.
"""

import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import ipywidgets
from IPython.display import display
from PIL import Image, ImageDraw, ImageFont

from lace_lora import swatch as swatches
from lace_lora.errors import LaceError
from lace_lora.notebook import HOVER, has_front_end
from lace_lora.swatch import Box, Corners, Mark, Point, Swatch

VIEW_PX = 720  # long side of what is worked on
SHOWN_PX = 360  # long side of what is shown
JPEG_QUALITY = 82
CORNERS = ("1 top left", "2 top right", "3 bottom right", "4 bottom left")  # in the order of Swatch.corners
ENDS = ("one end", "other end")
# Where the sliders stand before a person moves them.
START_CORNERS: Corners = ((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95))
START_MARK: Mark = ((0.3, 0.5), (0.7, 0.5), 0.0)  # no length yet: a made-up one would be taken for a measured one
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# Bright lines with dark edges are seen on white and on black lace; the two told apart by colour-blind people too.
_CORNER_INK, _MARK_INK, _EDGE = (255, 64, 160), (64, 220, 255), (20, 20, 20)
_FINER = 2  # times as large as shown is what is drawn on: lines come out smooth
_FEWEST_PX = 8  # of the view on a side; swatch.apply asks for as many
_TICK_PERCENT = 0.1  # 0.36 px of what is shown: arrow keys and typed numbers reach it, a hand lands near


class PercentSlider:
    """A slider of a part of a side, 0..1, shown in percent; with two handles where it is a range.

    What was put in comes back to the last digit until a handle is moved off it: a slider's ticks must not round what
    was measured more finely. (A slider from 0 to 1 with percent signs would take a typed 40 for 4000 %.)
    """

    def __init__(self, name: str, description: str, hover: str, start: Sequence[float]) -> None:
        kind = ipywidgets.FloatSlider if len(start) == 1 else ipywidgets.FloatRangeSlider
        ends = {"min": 0.0, "max": 100.0, "step": _TICK_PERCENT, "readout_format": ".4"}
        self.widget = _named(name, kind(continuous_update=False, **ends, **_labelled(f"{description} %", hover)))
        self._exact: dict[float, float] = {}
        self.put(start)

    def put(self, parts: Sequence[float]) -> None:
        """Show one part, or the two of a range; the slider stands on the nearest tick."""
        shown = [round(100 * part, 1) for part in parts]
        self._exact = dict(zip(shown, parts, strict=True))
        self.widget.value = shown[0] if len(shown) == 1 else tuple(shown)

    def parts(self) -> tuple[float, ...]:
        """The part, or both of a range."""
        value = self.widget.value
        shown = [round(one, 1) for one in (value if isinstance(value, tuple) else (value,))]
        return tuple(self._exact.get(one, round(one / 100, 4)) for one in shown)


PointSliders = tuple[PercentSlider, PercentSlider]  # across and down


class SwatchForm:
    """Widgets for the swatch of one photograph; `.widget` is the box that holds them.

    changed  is called with every sound swatch that a person makes, at once; what it raises (LaceError) is shown

    `fill` shows a photograph. A combination that Swatch refuses has its sentence below the fields; it is not handed
    on, and the picture on the right stays as it was.
    """

    def __init__(self, changed: Callable[[Swatch], None]) -> None:
        self._changed = changed
        self._swatch = Swatch()
        self._view: Image.Image | None = None
        self._image_size = (0, 0)
        self._after_of: Swatch | None = None
        self._is_filling = False
        self._make_fields()
        self._make_pictures()
        parts = [self._pictures, self.sizes, *self._rows, self.fault, self.as_it_is]
        self.widget = ipywidgets.VBox(parts, layout=ipywidgets.Layout(max_width="100%", display="none"))
        self.widget.add_class("lace-swatch")

    @property
    def swatch(self) -> Swatch:
        """The swatch that was filled in or handed on last."""
        return self._swatch

    def fill(self, picture: Image.Image, swatch: Swatch | None, image_size: tuple[int, int] | None = None) -> None:
        """Show a photograph and what is kept of it; calls nobody, and leaves the picture as it is.

        picture     upright, 8-bit; a small one will do
        swatch      as kept; None for a photograph as it is
        image_size  width and height of the upright original, px, where `picture` is a smaller view of it
        """
        self._swatch = swatch or Swatch()
        self._image_size = image_size or picture.size
        self._view = _fitted(picture, VIEW_PX)
        self._after_of = None
        crop = self._swatch.crop or WHOLE
        self._is_filling = True
        try:
            self.straighten.value = self._swatch.corners is not None
            points = (*(self._swatch.corners or START_CORNERS), *(self._swatch.cm or START_MARK)[:2])
            for (across, down), (x, y) in zip((*self.corners, *self.ends), points, strict=True):
                across.put((x,))
                down.put((y,))
            self.even_light.put((self._swatch.even_light,))
            self.crop_across.put(crop[0::2])
            self.crop_down.put(crop[1::2])
            self.mark.value = self._swatch.cm is not None
            self.length_cm.value = (self._swatch.cm or START_MARK)[2]
        finally:
            self._is_filling = False
        self.widget.layout.display = "flex"
        self._show(self._too_little(self._swatch))

    def __repr__(self) -> str:
        """What is done to the photograph, as plain lines."""
        if self._view is None:
            return "No photograph is shown yet."
        kept, lines = self._swatch, [self._sizes_text()]
        if kept.corners is not None:
            places = (f"{name} ({_percents(point)})" for name, point in zip(CORNERS, kept.corners, strict=True))
            lines.append(f"straightened by its corners {', '.join(places)}")
        if kept.even_light:
            lines.append(f"light evened out by {_percents([kept.even_light])}")
        if kept.crop is not None:
            lines.append(f"cropped to ({_percents(kept.crop)}): left, top, right, bottom")
        if kept.cm is not None:
            start, end, length_cm = kept.cm
            lines.append(f"marked: {length_cm:g} cm from ({_percents(start)}) to ({_percents(end)})")
        return "\n".join(lines if len(lines) > 1 else [*lines, "left as it is"])

    def _ipython_display_(self) -> None:
        if has_front_end():
            display(self.widget)
        else:
            print(repr(self))

    # -- widgets --

    def _make_fields(self) -> None:
        self.straighten = _checkbox("straighten", "straighten by four corners of a rectangle of lace")
        numbered = enumerate(zip(CORNERS, START_CORNERS, strict=True), start=1)
        self.corners = [_point_sliders(f"corner-{number}", name, start) for number, (name, start) in numbered]
        told = "0 leaves it, 100 takes away how a lamp or a window falls off"
        self.even_light = PercentSlider("even-light", "even out the light", told, (0,))
        kept = "what is kept of the straightened picture; table and hands are cut away"
        self.crop_across = PercentSlider("crop-across", "keep across", f"{kept}, from its left side", (0, 1))
        self.crop_down = PercentSlider("crop-down", "keep down", f"{kept}, from its upper side", (0, 1))
        self.mark = _checkbox("mark", "mark centimetres")
        numbered = enumerate(zip(ENDS, START_MARK[:2], strict=True), start=1)
        self.ends = [_point_sliders(f"end-{number}", name, start) for number, (name, start) in numbered]
        labels = _labelled("length (cm)", "centimetres of lace between the two ends")
        self.length_cm = _named("length", ipywidgets.FloatText(value=0.0, **labels))
        wide = ipywidgets.Layout(width="280px", max_width="100%")
        self.as_it_is = ipywidgets.Button(description="back to the photograph as it is", layout=wide)
        self._rows = self._arranged()
        sliders = [self.even_light, self.crop_across, self.crop_down, *chain(*self.corners, *self.ends)]
        for widget in (self.straighten, self.mark, self.length_cm, *(slider.widget for slider in sliders)):
            widget.observe(lambda _: self._update(), names="value")
        _named("as-it-is", self.as_it_is).on_click(lambda _: self._leave_as_it_is())

    def _arranged(self) -> list[ipywidgets.Widget]:
        """The fields from top to bottom; what belongs to a tick is folded away without it."""
        points = (*self.corners, *self.ends)
        one, two, three, four, *ends = (ipywidgets.VBox([across.widget, down.widget]) for across, down in points)
        hint = "Move 1 to 4 onto the corners of what is a rectangle in truth."
        self._corner_box = _folding("corners", hint, [one, two, four, three])  # as they lie in the photograph
        hint = "Lay the line along a ruler or a side that you have measured; a longer line is more exact."
        self._mark_box = _folding("marking", hint, [*ends, self.length_cm])
        always = _two_columns([self.crop_across.widget, self.crop_down.widget, self.even_light.widget])
        return [self.straighten, self._corner_box, always, self.mark, self._mark_box]

    def _make_pictures(self) -> None:
        self.before, self.after = (_named(name, ipywidgets.Image(format="jpeg")) for name in ("before", "after"))
        self.sizes, self.fault = (_named(name, ipywidgets.HTML()) for name in ("sizes", "fault"))
        shown = []
        for words, picture in (("before, as photographed", self.before), ("after", self.after)):
            picture.layout = ipywidgets.Layout(max_width="100%", object_fit="contain")
            # What it shows stands above it as text: ipywidgets 8.1 fails on a tooltip of a picture.
            shown.append(ipywidgets.VBox([_hint(words), picture], layout=ipywidgets.Layout(margin="4px")))
        self._pictures = ipywidgets.HBox(shown, layout=ipywidgets.Layout(flex_flow="row wrap"))

    # -- what a person does --

    def _update(self, wanted: Swatch | None = None) -> None:
        """Hand on what the widgets say, or the swatch that they were set to, and show it or what is wrong."""
        if self._is_filling or self._view is None:
            return
        try:
            made = wanted or self._read()
            fault = self._too_little(made)
            if not fault and made != self._swatch:
                self._changed(made)
                self._swatch = made
        except LaceError as error:  # raised from a widget's callback it would be lost in the log
            fault = str(error)
        self._show(fault)

    def _leave_as_it_is(self) -> None:
        """Take every change away; corners and mark wait where they were, should a tick be set again."""
        self._is_filling = True
        self.straighten.value = self.mark.value = False
        self.even_light.put((0,))
        self.crop_across.put((0, 1))
        self.crop_down.put((0, 1))
        self._is_filling = False
        self._update(Swatch())

    def _read(self) -> Swatch:
        """What the widgets say. Raises SettingsError with what is wrong."""
        (left, right), (top, bottom) = self.crop_across.parts(), self.crop_down.parts()
        crop = (left, top, right, bottom)
        return Swatch(
            corners=self._marked_corners(),
            even_light=self.even_light.parts()[0],
            crop=crop if crop != WHOLE or self._swatch.crop == WHOLE else None,
            cm=self._marked_length() if self.length_cm.value else None,
        )

    def _marked_corners(self) -> Corners | None:
        """Where the corners stand, sound or not; None where nothing is straightened."""
        if not self.straighten.value:
            return None
        one, two, three, four = map(_point, self.corners)
        return one, two, three, four

    def _marked_length(self) -> Mark | None:
        if not self.mark.value:
            return None
        start, end = map(_point, self.ends)
        return start, end, self.length_cm.value

    def _too_little(self, made: Swatch) -> str:
        """A sentence where too little is left of the photograph to be shown here or learnt from."""
        assert self._view is not None
        if not made.changes_pixels or min(swatches.size_after(self._view.size, made)) >= _FEWEST_PX:
            return ""
        width, height = swatches.size_after(self._image_size, made)
        return f"Only {width} × {height} px would be left of the photograph. Keep a larger part of it, or leave it out."

    # -- what a person sees --

    def _show(self, fault: str) -> None:
        """Draw both pictures anew, the right one from the last sound swatch; say sizes, and what is wrong."""
        assert self._view is not None
        self._corner_box.layout.display = "flex" if self.straighten.value else "none"
        self._mark_box.layout.display = "flex" if self.mark.value else "none"
        self.before.value = _jpeg(drawn(self._view, self._marked_corners(), self._marked_length()))
        pixels = replace(self._swatch, cm=None)
        if pixels != self._after_of:  # evening out the light takes a moment, and moving the mark needs none of it
            is_left = not self._too_little(pixels)
            self.after.value = _jpeg(_fitted(swatches.apply(self._view, pixels if is_left else None), SHOWN_PX))
            self._after_of = pixels
        self.sizes.value = f"<span role='status'>{html.escape(self._sizes_text())}</span>"
        self.fault.value = f"<b role='alert' style='color:#c53030'>{html.escape(fault)}</b>" if fault else ""

    def _sizes_text(self) -> str:
        before, after = self._image_size, swatches.size_after(self._image_size, self._swatch)
        said = [f"before {before[0]} × {before[1]} px", f"after {after[0]} × {after[1]} px"]
        scale = swatches.px_per_cm(before, self._swatch)
        if scale is not None:
            said += [f"{scale:.4g} px per cm", f"{after[0] / scale:.3g} × {after[1] / scale:.3g} cm"]
        elif self.mark.value:
            said.append("write the length of the line in cm, and it is marked")
        return " · ".join(said)


# -- drawing --


def drawn(view: Image.Image, corners: Corners | None, mark: Mark | None) -> Image.Image:
    """The photograph at SHOWN_PX with its corners, numbered 1 to 4, and the marked line with its length; RGB.

    corners, mark  in parts of the photograph, as in Swatch; sound or not, so that what is wrong can be seen
    """
    shown = _fitted(view, SHOWN_PX)
    if corners is None and mark is None:
        return shown
    canvas = view.resize((_FINER * shown.width, _FINER * shown.height))
    pen, right, bottom = ImageDraw.Draw(canvas), canvas.width - 1, canvas.height - 1
    if corners is not None:
        _draw_corners(pen, [(x * right, y * bottom) for x, y in corners])
    if mark is not None:
        length = f"{mark[2]:g} cm" if mark[2] else "? cm"
        _draw_mark(pen, [(x * right, y * bottom) for x, y in mark[:2]], length, canvas.size)
    return canvas.resize(shown.size, Image.Resampling.BOX)


def _draw_corners(pen: ImageDraw.ImageDraw, places: list[Point]) -> None:
    middle = (sum(x for x, _ in places) / 4, sum(y for _, y in places) / 4)
    _draw_line(pen, [*places, places[0]], _CORNER_INK)
    for number, (x, y) in enumerate(places, start=1):
        for radius, ink in ((12, _EDGE), (8, _CORNER_INK)):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), ink)
        nearer = min(1.0, 44 / (math.dist((x, y), middle) or 1))  # the number stands inside
        _write(pen, (x + nearer * (middle[0] - x), y + nearer * (middle[1] - y)), str(number), _CORNER_INK)


def _draw_mark(pen: ImageDraw.ImageDraw, places: list[Point], length: str, size: tuple[int, int]) -> None:
    """A line with a stroke across each end, as in a drawing to measure, and its length beside it."""
    (x, y), (to_x, to_y) = places
    reach = math.dist(*places) or 1.0
    across_x, across_y = (y - to_y) / reach, (to_x - x) / reach
    for end_x, end_y in places:
        _draw_line(pen, [(end_x + side * across_x, end_y + side * across_y) for side in (-14, 14)], _MARK_INK)
    _draw_line(pen, places, _MARK_INK)
    beside = ((x + to_x) / 2 + 80 * abs(across_x), (y + to_y) / 2 - 40 * abs(across_y))
    # Near an edge what is written still stands inside.
    x, y = (min(max(at, 80), max(80, side - 80)) for at, side in zip(beside, size, strict=True))
    _write(pen, (x, y), length, _MARK_INK)


def _draw_line(pen: ImageDraw.ImageDraw, places: list[Point], ink: tuple[int, int, int]) -> None:
    for width, colour in ((10, _EDGE), (5, ink)):
        pen.line(places, colour, width, joint="curve")


def _write(pen: ImageDraw.ImageDraw, place: Point, words: str, ink: tuple[int, int, int]) -> None:
    """On a dark plate: on threads no letter could be read."""
    font = ImageFont.load_default(30)
    left, top, right, bottom = pen.textbbox(place, words, font, anchor="mm")
    pen.rounded_rectangle((left - 9, top - 8, right + 9, bottom + 8), 8, _EDGE)
    pen.text(place, words, ink, font, anchor="mm")


def _fitted(picture: Image.Image, longest_px: int) -> Image.Image:
    """A copy in RGB whose longer side is at most so long."""
    part = min(1.0, longest_px / max(picture.size))
    width, height = (max(1, round(side * part)) for side in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _jpeg(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # thin coloured lines stay so
    return encoded.getvalue()


# -- parts of the form --


def _named(name: str, widget: Any) -> Any:
    """The widget, with a class by which styles and browser tests find it."""
    widget.add_class(f"lace-swatch-{name}")
    return widget


def _labelled(description: str, hover: str) -> dict[str, Any]:
    return {
        "description": description,
        HOVER: hover,
        "style": {"description_width": "min(180px, 48%)"},
        "layout": ipywidgets.Layout(width="auto", max_width="420px"),
    }


def _percents(parts: Sequence[float]) -> str:
    return ", ".join(f"{100 * part:.1f} %" for part in parts)


def _checkbox(name: str, description: str) -> ipywidgets.Checkbox:
    wide = ipywidgets.Layout(width="auto", max_width="100%")
    return _named(name, ipywidgets.Checkbox(description=description, indent=False, layout=wide))


def _hint(words: str) -> ipywidgets.HTML:
    return ipywidgets.HTML(f"<span style='opacity:0.75'>{html.escape(words)}</span>")


def _point_sliders(name: str, description: str, start: Point) -> PointSliders:
    return (
        PercentSlider(f"{name}-across", f"{description}, across", "from the left side of the photograph", start[:1]),
        PercentSlider(f"{name}-down", f"{description}, down", "from its upper side", start[1:]),
    )


def _point(sliders: PointSliders) -> Point:
    return sliders[0].parts()[0], sliders[1].parts()[0]


def _folding(name: str, hint: str, children: Sequence[ipywidgets.Widget]) -> ipywidgets.VBox:
    """Fields that are folded away until a box is ticked."""
    return _named(name, ipywidgets.VBox([_hint(hint), _two_columns(children)]))


def _two_columns(children: Sequence[ipywidgets.Widget]) -> ipywidgets.GridBox:
    """Two beside each other, one below the other in a narrow window."""
    columns = "repeat(auto-fit, minmax(min(320px, 100%), 1fr))"
    layout = ipywidgets.Layout(grid_template_columns=columns, max_width="860px", grid_gap="2px 12px")
    return ipywidgets.GridBox(list(children), layout=layout)
