"""Forms drawn from the settings' declarations, for people who click: a form returns a Config and decides nothing.

Works with ipywidgets 7.7 (Colab's) and 8. Where no front-end draws widgets (papermill, nbval), a form shows its values
as plain lines instead, and `form.config()` gives the same settings as an untouched form in a browser.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
from IPython.display import display
from pydantic.fields import FieldInfo

from lace_lora import config as declared
from lace_lora.config import Config
from lace_lora.errors import SettingsError
from lace_lora.estimate import Plan
from lace_lora.notebook import HOVER, has_front_end
from lace_lora.presets import Settled

# A slider is for a range that a hand can aim at; wider ones get a box to type in, whose sentence names the bounds
# (bounded boxes would silently turn 500 into 128).
SLIDER_TICKS = 200
LABEL_WIDTH = "min(190px, 40%)"  # in a narrow window the field must still be seen
NOTE_MARGIN = "0 0 6px min(198px, 42%)"
NUMBER_PX = 480
TEXT_PX = 760
# Words of the checkbox beside a number that may be left to the plan, or left empty.
LEFT_OPEN = {"auto": "auto", None: "leave empty"}


@dataclass(frozen=True)
class Drawn:
    """A setting on the screen: the widgets that a person touches, and how to read them."""

    inputs: tuple[ipywidgets.Widget, ...]
    read: Callable[[], Any]


class SettingsForm:
    """Widgets for some settings; `.config()` is the Config with what the person changed."""

    def __init__(self, config: Config, names: Sequence[str], planned: Config, reasons: Mapping[str, str]) -> None:
        self._config = config
        self._reasons = reasons
        self._drawn = {name: _draw(name, getattr(config, name), getattr(planned, name)) for name in names}
        self._notes = {name: ipywidgets.HTML() for name in names}
        # What an untouched widget reads as: a slider may round, and that must not count as a change.
        self._untouched = {name: drawn.read() for name, drawn in self._drawn.items()}
        self.widget = ipywidgets.VBox([self._row(name) for name in names])
        self.widget.add_class("lace-form")

    def config(self) -> Config:
        """The settings with what was changed in the form; untouched, exactly those that it was drawn from.

        Raises SettingsError with the sentence that also stands beside the field.
        """
        changed = self.changed()
        return self._config.model_copy(update=changed) if changed else self._config

    def changed(self) -> dict[str, Any]:
        """What the person changed, by name; it can be put over other settings."""
        now = {name: drawn.read() for name, drawn in self._drawn.items()}
        return {name: value for name, value in now.items() if value != self._untouched[name]}

    def __repr__(self) -> str:
        """The form as plain lines: name, value, unit, and why it was chosen."""
        shown = {name: _as_text(drawn) for name, drawn in self._drawn.items()}
        names, values = max(map(len, shown)), min(48, max(map(len, shown.values())))
        lines = []
        for name, value in shown.items():
            unit, why = declared.unit_of(Config.model_fields[name]), self._reasons.get(name, "")
            lines.append(f"{name:<{names}}  {value:<{values}}  {unit:<9} {why}".rstrip())
        return "\n".join(lines)

    def _ipython_display_(self) -> None:
        if has_front_end():
            display(self.widget)
        else:
            print(repr(self))

    def _row(self, name: str) -> ipywidgets.Widget:
        """The widgets of a setting, and below them its help or, while a value is wrong, the sentence that says so."""
        drawn, note = self._drawn[name], self._notes[name]
        note.add_class(f"lace-{name}-note")
        for widget in drawn.inputs:
            widget.observe(lambda _: self._say(name), names="value")
        self._say(name)
        note.layout.margin = NOTE_MARGIN
        row = ipywidgets.VBox([ipywidgets.HBox(drawn.inputs) if len(drawn.inputs) > 1 else drawn.inputs[0], note])
        row.add_class(f"lace-{name}-row")
        return row

    def _say(self, name: str) -> None:
        changed = {key: value for key, value in self.changed().items() if key == name}
        try:
            self._config.model_copy(update=changed)
        except SettingsError as error:
            self._notes[name].value = f"<b role='alert' style='color:#c53030'>{html.escape(str(error))}</b>"
        else:
            why = self._reasons.get(name)
            words = f"{Config.model_fields[name].description}{f' (chosen: {why})' if why else ''}"
            self._notes[name].value = f"<span style='opacity:0.75;line-height:1.3'>{html.escape(words)}</span>"


def settings_form(config: Config, names: Sequence[str], plan: Plan | Settled | None = None) -> SettingsForm:
    """A form for the named settings of `config`; a plan adds the values that will run, and why they were chosen.

    plan   of estimate.prepare, or of presets.settle where no pictures need to be counted

    What is `auto` stays so until a person takes the tick away: a run that goes on elsewhere then keeps its own choices.

    Raises SettingsError for a name that is no setting, with the nearest one.
    """
    for name in names:
        if name not in Config.model_fields:
            raise SettingsError(f"form: no setting called {name!r}{declared.nearest(name, Config.model_fields)}")
    reasons = (
        plan.reasons if isinstance(plan, Settled) else {one.setting: one.why for one in plan.choices} if plan else {}
    )
    return SettingsForm(config, names, plan.config if plan else config, reasons)


def _draw(name: str, asked: Any, planned: Any) -> Drawn:
    """The widgets that suit a setting's declaration, starting at what will run."""
    field = Config.model_fields[name]
    choices, bounds = declared.choices_of(field), declared.bounds_of(field)
    value = asked if asked == "auto" else planned
    if isinstance(field.default, bool):
        drawn = _plain(ipywidgets.Checkbox(value=value, indent=True, **_labelled(name)))
    elif isinstance(field.default, tuple):
        drawn = _lines(name, value)
    elif choices and not bounds:
        drawn = _plain(ipywidgets.Dropdown(options=list(choices), value=value, **_labelled(name)))
    elif not bounds:
        drawn = _plain(ipywidgets.Text(value=value, continuous_update=False, **_labelled(name, TEXT_PX)))
    elif "auto" in choices or field.default is None:
        drawn = _open_number(name, field, value, planned)
    else:
        drawn = _plain(_number(name, field, value))
    for widget in drawn.inputs:
        widget.add_class(f"lace-{name}" if widget is drawn.inputs[0] else f"lace-{name}-open")
    return drawn


def _plain(widget: ipywidgets.Widget) -> Drawn:
    return Drawn((widget,), lambda: widget.value)


def _lines(name: str, value: tuple[str, ...]) -> Drawn:
    """Several texts: prompts one a line, short ones in one line with commas."""
    if name not in declared.BY_LINE:
        line = ipywidgets.Text(value=", ".join(value), continuous_update=False, **_labelled(name, TEXT_PX))
        return Drawn((line,), lambda: tuple(part.strip() for part in line.value.split(",") if part.strip()))
    empty = "empty means the instance prompt" if name == "prompts" else "empty takes a few everyday ones"
    hint = f"one prompt a line; {empty}"
    area = ipywidgets.Textarea(
        value="\n".join(value), placeholder=hint, rows=max(4, len(value) + 1), **_labelled(name, TEXT_PX)
    )
    return Drawn((area,), lambda: tuple(line.strip() for line in area.value.splitlines() if line.strip()))


def _open_number(name: str, field: FieldInfo, value: Any, planned: Any) -> Drawn:
    """A number with a checkbox that leaves it open: `auto`, beside the number that the plan takes, or empty."""
    nothing = "auto" if "auto" in declared.choices_of(field) else None
    start = planned if isinstance(planned, int | float) else declared.bounds_of(field)["ge"]
    number = _number(name, field, start, may_slide=False)
    box = ipywidgets.Checkbox(value=value == nothing, description=LEFT_OPEN[nothing], indent=False)
    box.layout.width = "120px"
    number.disabled = box.value
    box.observe(lambda change: setattr(number, "disabled", change["new"]), names="value")
    return Drawn((number, box), lambda: nothing if box.value else number.value)


def _number(name: str, field: FieldInfo, value: float, may_slide: bool = True) -> ipywidgets.Widget:
    """A slider where the range is small enough to aim at, else a box to type in."""
    bounds, is_whole = declared.bounds_of(field), "int" in str(field.annotation)
    low, high = bounds.get("ge", bounds.get("gt", 0.0)), bounds.get("le", bounds.get("lt", math.inf))
    step = bounds.get("multiple_of", 1.0) if is_whole else _tick(high - low, value)
    if may_slide and _is_multiple(value, step) and (high - low) / step <= SLIDER_TICKS:
        ends = {"min": low + step * ("gt" in bounds), "max": high - step * ("lt" in bounds), "step": step}
        if is_whole:
            whole = {end: int(number) for end, number in ends.items()}
            return ipywidgets.IntSlider(value=int(value), continuous_update=False, **whole, **_labelled(name))
        return ipywidgets.FloatSlider(value=value, continuous_update=False, **ends, **_labelled(name))
    if is_whole:
        return ipywidgets.IntText(value=int(value), step=int(step), **_labelled(name))
    return ipywidgets.FloatText(value=value, **_labelled(name))


def _tick(width: float, value: float) -> float:
    """One tick of a slider for fractions over a range so wide; tiny where the value lies on none: no slider then."""
    tick = 0.05 if width <= 10 else 0.5
    return tick if _is_multiple(value, tick) else 1e-9


def _is_multiple(value: float, step: float) -> bool:
    return abs(value / step - round(value / step)) < 1e-6


def _labelled(name: str, width_px: int = NUMBER_PX) -> dict[str, Any]:
    """What every widget gets: the setting's name with its unit, its help on hover, room for both."""
    field = Config.model_fields[name]
    unit = declared.unit_of(field)
    note = "; ".join(part for part in (field.description, declared.bounds_text(field)) if part)
    return {
        "description": f"{name} ({unit})" if unit else name,
        HOVER: note,
        "style": {"description_width": LABEL_WIDTH},
        "layout": ipywidgets.Layout(width=f"{width_px}px", max_width="100%"),
    }


def _as_text(drawn: Drawn) -> str:
    value = drawn.read()
    if value in (None, "", ()):
        return "(empty)"
    if value == "auto" and len(drawn.inputs) > 1:
        return f"auto: {drawn.inputs[0].value}"
    return " | ".join(value) if isinstance(value, tuple) else str(value)
