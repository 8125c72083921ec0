"""The widgets of one setting, as its declaration asks for them: labelled, with unit and bounds, by mouse or keyboard.

Works with ipywidgets 7.7 (Colab's) and 8. Neither names a slider for a screen reader, nor lets a keyboard open an
Accordion (seen in their pages in a browser). So each number has a labelled box to type in, and its slider, where there
is one, is for the mouse alone: STYLE takes it out of the order of the tab key.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import ipywidgets
from pydantic.fields import FieldInfo

from lace_lora import config as declared
from lace_lora.config import Config
from lace_lora.notebook import HOVER

# A slider is for a range that a hand can aim at; wider ones get the box alone, whose sentence names the bounds
# (bounded boxes would silently turn 500 into 128).
SLIDER_TICKS = 200
LABEL_WIDTH = "200px"
NUMBER_PX, SLIDER_PX, TEXT_PX = 340, 220, 760
WIDEST = "calc(100% - 4px)"  # a widget has a margin of 2 px on either side
# Long names wrap. In a narrow window a name stands above its field, so that nothing has to be scrolled sideways.
# A hidden handle takes no focus and is not read out; what is drawn in its place can still be taken by the mouse.
STYLE = """<style>
.lace-form { container-type: inline-size; }
.lace-form .widget-label { text-align: left; white-space: normal; overflow-wrap: anywhere; height: auto;
  line-height: 1.3; align-self: center; }
.lace-form .widget-dropdown select { min-height: 28px; }
.lace-form .widget-checkbox .widget-label-basic { width: auto; white-space: normal; overflow-wrap: anywhere; }
.lace-form .widget-text, .lace-form .widget-dropdown, .lace-form .widget-checkbox { height: auto; }
.lace-form .lace-note { margin: 0 0 8px 208px; }
@container (max-width: 560px) {
  .lace-form .widget-text, .lace-form .widget-dropdown, .lace-form .widget-textarea { flex-flow: column; }
  .lace-form .widget-label { width: 100% !important; text-align: left; align-self: start; }
  .lace-form .widget-checkbox > .widget-label { display: none !important; }
  .lace-form .widget-text input, .lace-form .widget-dropdown select, .lace-form textarea { width: 100%; flex: none; }
  .lace-form .lace-note { margin-left: 2px; }
}
.lace-form .widget-toggle-button { white-space: normal; height: auto; text-align: left; padding: 4px 8px; }
.lace-slider .noUi-handle, .lace-slider .ui-slider-handle { visibility: hidden !important; }
.lace-slider .noUi-handle::after, .lace-slider .ui-slider-handle::after { visibility: visible; display: block;
  content: ""; position: absolute; inset: 0; width: auto; height: auto; border-radius: 50%; background: #2b6cb0; }
</style>"""


@dataclass(frozen=True)
class Drawn:
    """A setting on the screen.

    inputs  the widgets that a person touches; the first one carries the value
    read    what they say
    show    have them say `asked`, or, where that is not auto, `planned`: what will run
    aid     a slider for the mouse, beside a number
    """

    inputs: tuple[ipywidgets.Widget, ...]
    read: Callable[[], Any]
    show: Callable[[Any, Any], None]
    aid: ipywidgets.Widget | None = None

    def row(self) -> ipywidgets.Widget:
        """The widgets side by side, or below each other where the window is narrow."""
        parts = [*self.inputs[:1], *([self.aid] if self.aid else []), *self.inputs[1:]]
        if len(parts) == 1:
            return parts[0]
        return ipywidgets.HBox(parts, layout=ipywidgets.Layout(flex_flow="row wrap", max_width="100%"))


def draw(name: str, asked: Any, planned: Any) -> Drawn:
    """The widgets that suit the declaration of the setting `name`, showing these values (see Drawn)."""
    field = Config.model_fields[name]
    choices, bounds = declared.choices_of(field), declared.bounds_of(field)
    if isinstance(field.default, bool):
        drawn = _plain(ipywidgets.Checkbox(indent=True, **_labelled(name)))
    elif isinstance(field.default, tuple):
        drawn = _lines(name)
    elif choices and not bounds:
        drawn = _plain(ipywidgets.Dropdown(options=list(choices), **_labelled(name)))
    elif not bounds:
        drawn = _plain(ipywidgets.Text(continuous_update=False, **_labelled(name, TEXT_PX)), nothing="")
    elif "auto" in choices or field.default is None:
        drawn = _open_number(name, field)
    else:
        drawn = _number(name, field)
    for widget in drawn.inputs:
        widget.add_class(f"lace-{name}" if widget is drawn.inputs[0] else f"lace-{name}-open")
    drawn.show(asked, planned)
    return drawn


@cache
def help_of(name: str) -> str:
    """What a setting does, and for a number in which bounds; the bounds are read from the schema, so only once."""
    field = Config.model_fields[name]
    ends = f"; {declared.bounds_text(field)}" if declared.bounds_of(field) else ""
    return f"{field.description}{ends}"


def _shown(asked: Any, planned: Any) -> Any:
    return asked if asked == "auto" else planned


def _plain(widget: ipywidgets.Widget, nothing: Any = None) -> Drawn:
    def show(asked: Any, planned: Any) -> None:
        value = _shown(asked, planned)
        widget.value = nothing if value is None else value

    return Drawn((widget,), lambda: widget.value, show)


def _lines(name: str) -> Drawn:
    """Several texts: prompts one a line, short ones in one line with commas."""
    if name not in declared.BY_LINE:
        line = ipywidgets.Text(continuous_update=False, **_labelled(name, TEXT_PX))

        def show_line(_: Any, planned: Any) -> None:
            line.value = ", ".join(planned)

        return Drawn((line,), lambda: _parts(line.value.split(",")), show_line)
    empty = "empty means the instance prompt" if name == "prompts" else "empty takes a few everyday ones"
    area = ipywidgets.Textarea(placeholder=f"one prompt a line; {empty}", **_labelled(name, TEXT_PX))

    def show(_: Any, planned: Any) -> None:
        area.value, area.rows = "\n".join(planned), max(4, len(planned) + 1)

    return Drawn((area,), lambda: _parts(area.value.splitlines()), show)


def _parts(texts: list[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())


def _open_number(name: str, field: FieldInfo) -> Drawn:
    """A number with a checkbox that leaves it open: `auto`, beside the number that the plan takes, or empty."""
    nothing = "auto" if "auto" in declared.choices_of(field) else None
    low = declared.bounds_of(field)["ge"]
    number = _box(name, field)
    # Its own name, for a screen reader that goes from one control to the next.
    words = f"auto {name}" if nothing else f"leave {name} empty"
    box = ipywidgets.Checkbox(description=words, indent=False)
    box.layout.width, box.layout.max_width, box.layout.margin = "auto", "100%", "2px 2px 2px 10px"
    box.observe(lambda change: setattr(number, "disabled", change["new"]), names="value")

    def show(asked: Any, planned: Any) -> None:
        box.value = _shown(asked, planned) == nothing
        number.disabled = box.value
        number.value = planned if isinstance(planned, int | float) else low

    return Drawn((number, box), lambda: nothing if box.value else _read(number, field), show)


def _number(name: str, field: FieldInfo) -> Drawn:
    """A box to type in and, where the range is small enough to aim at, a slider beside it that follows and leads."""
    box, bounds = _box(name, field), declared.bounds_of(field)

    def show(_: Any, planned: Any) -> None:
        box.value = planned

    low, high = bounds.get("ge", bounds.get("gt", 0.0)), bounds.get("le", bounds.get("lt", math.inf))
    step, is_whole = box.step, _is_whole(field)
    if (high - low) / step > SLIDER_TICKS:
        return Drawn((box,), lambda: _read(box, field), show)
    low, high = low + step * ("gt" in bounds), high - step * ("lt" in bounds)
    kind, as_kind = (ipywidgets.IntSlider, int) if is_whole else (ipywidgets.FloatSlider, float)
    ends = {"min": as_kind(low), "max": as_kind(high), "step": step}
    slider = kind(readout=False, continuous_update=False, **ends)
    slider.layout.width, slider.layout.max_width = f"{SLIDER_PX}px", WIDEST
    slider.add_class("lace-slider")
    slider.add_class(f"lace-{name}-slider")

    def on_tick(value: float) -> float:
        near = min(max(value, low), high)
        return as_kind(round(low + round((near - low) / step) * step, 6))

    def follow(_: object) -> None:
        slider.value = on_tick(box.value)

    def lead(_: object) -> None:
        # Where the number lies between two ticks or out of bounds, the slider stands at the nearest: that moves none.
        if on_tick(slider.value) != on_tick(box.value):
            box.value = on_tick(slider.value)

    follow(None)
    box.observe(follow, names="value")
    slider.observe(lead, names="value")
    return Drawn((box,), lambda: _read(box, field), show, slider)


def _box(name: str, field: FieldInfo) -> ipywidgets.Widget:
    """A box for a number; the arrow keys change it by one tick."""
    bounds = declared.bounds_of(field)
    if _is_whole(field):  # an IntText would read 7.5 as 7 and 1e3 as 1, without a word
        return ipywidgets.FloatText(step=int(bounds.get("multiple_of", 1)), **_labelled(name, NUMBER_PX))
    width = bounds.get("le", bounds.get("lt", math.inf)) - bounds.get("ge", bounds.get("gt", 0.0))
    tick = 0.05 if width <= 10 else 0.5
    is_fine = "gt" in bounds and 0 < (field.default or 0) < tick  # a learning rate: 0.0001 in a range of 0 to 1
    return ipywidgets.FloatText(step=field.default if is_fine else tick, **_labelled(name, NUMBER_PX))


def _read(box: ipywidgets.Widget, field: FieldInfo) -> float:
    """The number in a box; of a setting of whole numbers an int where it is one."""
    return int(box.value) if _is_whole(field) and box.value.is_integer() else box.value


def _is_whole(field: FieldInfo) -> bool:
    return "int" in str(field.annotation)


def _labelled(name: str, width_px: int = TEXT_PX) -> dict[str, Any]:
    """What every widget gets: the setting's name with its unit, its help on hover, room for both."""
    field = Config.model_fields[name]
    unit = declared.unit_of(field)
    note = "; ".join(part for part in (field.description, declared.bounds_text(field)) if part)
    return {
        "description": f"{name} ({unit})" if unit else name,
        HOVER: note,
        "style": {"description_width": LABEL_WIDTH},
        "layout": ipywidgets.Layout(width=f"{width_px}px", max_width=WIDEST),
    }
