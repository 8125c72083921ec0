"""A form of notebook 05: the designs of a sheet, one at a time, for experts to rate.

Each rating is in the table as soon as it is given (see rating). No widgets are made where nobody draws them.
"""

import html
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import ipywidgets

from lace_lora import opinions, rating, references, stars
from lace_lora.answering import MOST_BYTES, MOST_SIGNS, SIDE_PX, STYLE, TOO_QUICK, Look, halve, show, wrapping
from lace_lora.errors import LaceError
from lace_lora.file_names import printable
from lace_lora.form_parts import Said, button, message, picture
from lace_lora.rating import ASKED, HIGHEST, LOWEST, Rating, Ratings
from lace_lora.run_folder import RunFolder, SheetFolder


class Experts:
    """The designs of a sheet to rate; a cell that ends with it shows them, or the means in lines.

    names  what adapters are called, by their digests: {"3fb2…": "step 750"}
    """

    def __init__(self, run: RunFolder, sheet: SheetFolder | None, names: Mapping[str, str]) -> None:
        self.run, self.sheet, self.names, self.fault = run, sheet, names, ""
        self.rows: dict[int, dict[str, Any]] = {}
        try:
            self.sheet = sheet or stars.sheet_of(run, "")
            self.rows = stars.rows(self.sheet, ("prompt", "adapter_digest", "reference"))
        except LaceError as error:
            self.fault = str(error)

    @property
    def sheet_name(self) -> str:
        """The sheet's name, as the table has it."""
        return printable(self.sheet.root.name) if self.sheet else ""

    def ratings(self) -> Ratings:
        """All ratings of the run."""
        return rating.read(self.run)

    def told(self) -> str:
        """The means of each adapter, a line each, and what could not be understood in the table."""
        return "\n".join(rating.summary(self.ratings(), self.names))

    def __repr__(self) -> str:
        try:
            return self.fault or self.told()
        except LaceError as error:
            return str(error)

    @cached_property
    def form(self) -> "ExpertForm":
        """The widgets, made when they are first asked for."""
        return ExpertForm(self)

    def _ipython_display_(self) -> None:
        show(self)


class ExpertForm:
    """The widgets of a sheet to rate, one design at a time."""

    def __init__(self, sitting: Experts, now: Callable[[], float] = time.monotonic) -> None:
        self._sitting, self._look = sitting, Look(now)
        self._numbers, self._place = list(sitting.rows), 0
        self.rater = ipywidgets.Text(description="your name", placeholder="may stay empty", continuous_update=False)
        self.rater.layout.max_width = "98%"  # with its margins: of a narrow window
        self.head, self.picture, self.reference, self.progress, self.said = (ipywidgets.HTML() for _ in range(5))
        self._say = Said(self.said)
        self._do = self._say.doing
        self.asked = {name: _scale(name, words) for name, words in ASKED.items()}
        self.save, self.back, self.skip = button("save and next ▶"), button("◀ back"), button("skip ▶")
        self.means = button("show the means")
        seen = ipywidgets.HBox([self.picture, self.reference], layout=wrapping())
        going = ipywidgets.HBox([self.back, self.save, self.skip, self.means, self.progress], layout=wrapping())
        self.widget = ipywidgets.VBox(
            [ipywidgets.HTML(STYLE), self.rater, self.head, seen, *self.asked.values(), going, self.said]
        )
        for name in "rater head progress said save back skip means widget".split():
            getattr(self, name).add_class(f"lace-rating-{name}")
        for shown in (self.picture, self.reference):
            shown.add_class("lace-rating-picture")
            halve(shown.layout)
        self.save.on_click(lambda _: self._do(self.save_and_go_on))
        for one, step in ((self.back, -1), (self.skip, 1)):
            one.on_click(lambda _, step=step: self._do(lambda: self.show(self._place + step)))
        self.means.on_click(lambda _: self._do(lambda: self._say(self._sitting.told())))
        self.rater.observe(lambda _: self._do(lambda: self.show(self._place)), names="value")
        self._do(lambda: self.show(self._first_unrated()))

    @property
    def index(self) -> int | None:
        """The number of the design that is shown; None where there is none."""
        return self._numbers[self._place] if self._numbers else None

    def save_and_go_on(self) -> None:
        """Add the rating of the design that is shown to the table, and show the next design."""
        if self.index is None or self._look.is_too_short:
            self._say(TOO_QUICK if self._numbers else self._sitting.fault)
            return
        given = {name: scale.value for name, scale in self.asked.items()}
        if set(given.values()) == {None}:
            self._say(f"Choose a number for {' or '.join(ASKED)} first, or skip this design.")
            return
        adapter = str(self._sitting.rows[self.index].get("adapter_digest") or "unknown")
        one = Rating(self._sitting.sheet_name, self.index, adapter, **given, rater=self.rater.value.strip())
        rating.add(self._sitting.run, one)
        is_last = self._place + 1 == len(self._numbers)
        self.show(self._place + 1)
        if is_last:
            self._say(f"That was the last design.\n{self._sitting.told()}")

    def show(self, place: int) -> None:
        """Show the design in a place, with what this person said of it before."""
        if not self._numbers:
            empty = "This sheet has no finished designs yet. Draw some first: lace-lora generate"
            self._say(self._sitting.fault or empty, bool(self._sitting.fault))
            return
        self._place = min(max(0, place), len(self._numbers) - 1)
        index, sitting = self._numbers[self._place], self._sitting
        assert sitting.sheet is not None, "there are designs"
        row, address = sitting.rows[index], stars.address(sitting.sheet, index)
        prompt = stars.plain(row.get("prompt", ""))[:MOST_SIGNS]
        self.head.value = f"<b>{html.escape(address)}</b> {html.escape(prompt)}"
        path = stars.picture_of(sitting.sheet, row)
        self.picture.value = picture(path, f"design {address}: {prompt}", SIDE_PX, MOST_BYTES)
        like = references.of(sitting.run, row)
        told = f"what design {address} was to be like"
        self.reference.value = picture(like, told, SIDE_PX, MOST_BYTES) + f"<div>{told}</div>" if like else ""
        known = self._known()
        for name, scale in self.asked.items():
            scale.value = getattr(known.get(index), name, None)
        rated = sum(number in known for number in self._numbers)
        self.progress.value = message(
            f"design {self._place + 1} of {len(self._numbers)}, {rated} rated by {self.rater.value.strip() or 'you'}"
        )
        self.back.disabled, self.skip.disabled = self._place == 0, self._place + 1 == len(self._numbers)
        self._look.begins()

    # -- inside --

    def _known(self) -> dict[int, Rating]:
        """This person's ratings of this sheet's designs, by their numbers."""
        rater, sheet = self.rater.value.strip().casefold(), self._sitting.sheet_name
        rows = self._sitting.ratings().rows
        return {one.design: one for one in rows if one.sheet == sheet and one.rater.casefold() == rater}

    def _first_unrated(self) -> int:
        known = self._known()
        return next((place for place, number in enumerate(self._numbers) if number not in known), 0)


def experts(run: RunFolder, sheet: SheetFolder | None = None, names: Mapping[str, str] | None = None) -> Experts:
    """The form to rate the designs of a sheet, of the one drawn last where none is given; nothing is raised."""
    return Experts(run, sheet, names if names is not None else opinions.adapter_names(run))


# -- inside --


def _scale(name: str, words: str) -> ipywidgets.ToggleButtons:
    """Numbers to choose from; the words at both ends tell which way is better."""
    numbers = range(LOWEST, HIGHEST + 1)
    ends = {LOWEST: f"{LOWEST} not at all", HIGHEST: f"{HIGHEST} fully"}
    made = ipywidgets.ToggleButtons(options=[(ends.get(one, str(one)), one) for one in numbers], value=None)
    made.description, made.style.button_width, made.style.description_width = f"{name}: {words}", "auto", "initial"
    made.add_class(f"lace-rating-{name}")
    made.add_class("lace-rating-scale")
    return made
