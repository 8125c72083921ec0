"""What the forms of notebook 05 share: pictures beside each other, and answers that count once they were looked at.

The pictures are small and one pair or design is made at a time, so that the notebook stays small.
"""

from collections.abc import Callable
from typing import Protocol

import ipywidgets
from IPython.display import display

from lace_lora.notebook import has_front_end

SIDE_PX, MOST_BYTES = 560, 150_000  # of a picture in a form
# A click that comes sooner after a new picture is the second half of a double click, or waited while the kernel was
# busy: nobody has looked at the picture by then.
LOOKED_SECONDS = 0.35
MOST_SIGNS = 600  # of a prompt
TOO_QUICK = "That click came before the picture could be looked at, so it does not count. Answer once more."

STYLE = f"""<style>
.lace-rating-picture, .lace-rating-picture * {{ margin: 0 }}
.lace-rating-picture img {{ display: block; width: 100%; max-width: {SIDE_PX}px; max-height: {SIDE_PX}px;
  object-fit: contain }}
.lace-rating-said {{ max-width: 720px }}
.lace-rating-scale > .widget-label {{ white-space: normal; height: auto }}
</style>"""


class Look:
    """How long somebody has looked at what is shown.

    now  seconds of a clock that only goes on
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._since = now, 0.0

    def begins(self) -> None:
        """Something new is shown."""
        self._since = self._now()

    @property
    def is_too_short(self) -> bool:
        """Whether nobody can have looked yet."""
        return self._now() - self._since < LOOKED_SECONDS


class _Form(Protocol):
    @property
    def widget(self) -> ipywidgets.Widget: ...


class Sitting(Protocol):
    """What is asked, with a form that is made when somebody sees it."""

    @property
    def form(self) -> _Form:
        """The widgets."""


def show(sitting: Sitting) -> None:
    """Show the form where a front-end draws widgets, else the lines of its repr; then no widget is made."""
    if has_front_end():
        display(sitting.form.widget)
    else:
        print(repr(sitting))


def halve(layout: ipywidgets.Layout) -> None:
    """Two beside each other where there is room, else one below the other."""
    layout.max_width, layout.width, layout.min_width = f"{SIDE_PX}px", "48%", "260px"
    layout.margin = "0 8px 8px 0"


def wrapping() -> ipywidgets.Layout:
    """Of a row that takes as many lines as it needs."""
    return ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start")
