"""Two forms of notebook 05: pairs of pictures to choose from without knowing whose they are, and designs to rate.

Each answer is saved as it is given (see blind and rating). One pair or design is made at a time, of small pictures, so
that the notebook stays small. No widgets are made where nobody draws them.
"""

import html
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import display

from lace_lora import blind, opinions, rating, references, stars
from lace_lora.errors import LaceError
from lace_lora.file_names import printable
from lace_lora.form_parts import button, message, picture, telling
from lace_lora.notebook import has_front_end
from lace_lora.rating import ASKED, HIGHEST, LOWEST, Rating, Ratings
from lace_lora.run_folder import RunFolder, SheetFolder

SIDE_PX, MOST_BYTES = 560, 150_000  # of a picture in a form
# A click that comes sooner after a new picture is the second half of a double click, or waited while the kernel was
# busy: nobody has looked at the picture by then.
LOOKED_SECONDS = 0.35
QUESTION = "Which of the two would you rather have?"
SAID_IN_WORDS: dict[blind.Said, str] = {"left": "1 left", "right": "2 right", "same": "3 same", "neither": "4 neither"}
MOST_SIGNS = 600  # of a prompt
TOO_QUICK = "That click came before the picture could be looked at, so it does not count. Answer once more."

STYLE = f"""<style>
.lace-rating-picture, .lace-rating-picture * {{ margin: 0 }}
.lace-rating-picture img {{ display: block; width: 100%; max-width: {SIDE_PX}px; max-height: {SIDE_PX}px;
  object-fit: contain }}
.lace-rating-said {{ max-width: 720px }}
</style>"""


class Blind:
    """Pairs to choose from; a cell that ends with it shows them, or says in a line how far they are.

    Whose picture stands where is told to nobody before the end, nor is it in the notebook.
    """

    def __init__(
        self, run: RunFolder, asked: Sequence[blind.Pair], name: str, other: str, question: str, fault: str = ""
    ) -> None:
        self.run, self.asked, self.name, self.other, self.question = run, asked, name, other, question
        self.fault = fault  # why there are no pairs

    def left(self) -> list[blind.Pair]:
        """The pairs that are still to be answered."""
        return blind.unanswered(self.asked, blind.answers(self.run))

    @property
    def count(self) -> int:
        """How many pairs there are; two of the same pictures are one."""
        return len({pair.place for pair in self.asked})

    def result(self) -> blind.Result:
        """What the answers to these pairs show by now."""
        places = {pair.place for pair in self.asked}
        given = [answer for answer in blind.answers(self.run) if answer.place in places]
        return blind.result(given, self.name, self.other)

    def told(self) -> str:
        """The result in words, with what cannot be shown."""
        early = "" if not self.left() else (
            " This is not the end: whoever stops where the result pleases takes chance for a result."
        )  # fmt: skip
        limits = blind.limits(blind.answers(self.run))
        return self.result().sentence + early + (f" {limits}" if limits else "")

    def __repr__(self) -> str:
        if self.fault:
            return self.fault
        try:
            done = self.count - len(self.left())
            if done == self.count and self.count:
                return self.told()
            where = "Open this notebook in a browser and run this cell to answer."
            return f"Blind pairs of {self.other} and {self.name}: {done} of {self.count} answered. {where}"
        except LaceError as error:
            return str(error)

    @cached_property
    def form(self) -> "BlindForm":
        """The widgets, made when they are first asked for."""
        return BlindForm(self)

    def _ipython_display_(self) -> None:
        _show(self)


class BlindForm:
    """The widgets of blind pairs.

    now  seconds of a clock that only goes on
    """

    def __init__(self, sitting: Blind, now: Callable[[], float] = time.monotonic) -> None:
        self._sitting, self._now, self._shown_at = sitting, now, 0.0
        self.pair: blind.Pair | None = None
        self.head, self.progress, self.said = (ipywidgets.HTML() for _ in range(3))
        self.pictures = {side: ipywidgets.HTML() for side in ("left", "right")}
        self.buttons = {said: button(words) for said, words in SAID_IN_WORDS.items()}
        self.typed = ipywidgets.Text(description="or type 1 to 4", placeholder="1, 2, 3 or 4", continuous_update=True)
        self.typed.style.description_width, self.typed.layout.width = "110px", "230px"
        self.back = button("◀ back to the last one")
        self.so_far = button("show the result so far")
        wrapping = {"flex_flow": "row wrap", "align_items": "flex-start"}
        self.sides = ipywidgets.HBox(
            [ipywidgets.VBox([self.pictures[side], self.buttons[side]]) for side in ("left", "right")],
            layout=ipywidgets.Layout(**wrapping),
        )
        for side in self.sides.children:
            _halve(side.layout)
        self.answering = ipywidgets.HBox(
            [self.buttons["same"], self.buttons["neither"], self.typed], layout=ipywidgets.Layout(**wrapping)
        )
        going = ipywidgets.HBox([self.back, self.so_far, self.progress], layout=ipywidgets.Layout(**wrapping))
        self.widget = ipywidgets.VBox([ipywidgets.HTML(STYLE), self.head, self.sides, self.answering, going, self.said])
        for name in "head progress said sides answering typed back so_far widget".split():
            getattr(self, name).add_class(f"lace-rating-{name.replace('_', '-')}")
        for said, one in self.buttons.items():
            one.add_class(f"lace-rating-{said}")
            one.tooltip = {"left": "the left picture", "right": "the right picture", "same": "both are as good",
                           "neither": "neither will do"}[said]  # fmt: skip
            one.on_click(lambda _, said=said: self._do(partial(self.answer, said)))
        for shown in self.pictures.values():
            shown.add_class("lace-rating-picture")
        self.typed.observe(lambda change: self._read(change["new"]), names="value")
        self.back.on_click(lambda _: self._do(self.go_back))
        self.so_far.on_click(lambda _: self._do(lambda: self._say(self._sitting.told())))
        self._do(self.show)

    def answer(self, said: blind.Said) -> None:
        """Save an answer to the pair that is shown, and show the next one."""
        if self.pair is None:
            return
        if self._now() - self._shown_at < LOOKED_SECONDS:
            self._say(TOO_QUICK)
            return
        blind.record(self._sitting.run, self.pair, said)
        self.show()

    def go_back(self) -> None:
        """Take the last answer back and show its pair again."""
        again = blind.take_back(self._sitting.run, self._sitting.asked)
        if again is None:
            self._say("There is no answer yet that could be taken back.")
            return
        self.show(again)
        self._say("Your last answer is taken back: this is its pair.")

    def show(self, pair: blind.Pair | None = None) -> None:
        """Show a pair, or the next one that is not answered; the result where all are."""
        left = self._sitting.left()
        self.pair = pair or next(iter(left), None)
        count = self._sitting.count
        done = count - len(left)
        is_over = self.pair is None
        self.head.value = f"<b>{html.escape(self._sitting.question)}</b>" if not is_over else ""
        self.progress.value = message(f"{done} of {count} answered")
        for side, shown in self.pictures.items():
            path: Path | None = getattr(self.pair, side, None)
            shown.value = picture(path, f"{side} picture, pair {done + 1}", SIDE_PX, MOST_BYTES) if path else ""
        for part in (self.sides, self.answering):
            part.layout.display = "none" if is_over else None
        self.so_far.layout.display = "none" if is_over or not done else None
        self.back.disabled = not done
        if is_over:
            nothing = self._sitting.fault or "There are no pairs to answer. Draw some designs first."
            self._say(self._sitting.told() if count else nothing)
        self._shown_at = self._now()

    # -- inside --

    def _read(self, typed: str) -> None:
        """What stands in the box after each key: its last sign counts, and the box is emptied for the next."""
        if not typed:
            return
        by_key = {words[0]: said for said, words in SAID_IN_WORDS.items()}
        key = typed.strip()[-1:]
        self.typed.value = ""
        if key in by_key:
            self._do(partial(self.answer, by_key[key]))
        elif key:
            self._say("Type 1, 2, 3 or 4: " + ", ".join(words[2:] for words in SAID_IN_WORDS.values()) + ".")

    def _do(self, act: Callable[[], None]) -> None:
        self._say("")
        with telling(self._say):
            act()

    def _say(self, words: str, is_wrong: bool = False) -> None:
        self.said.value = message(words, is_wrong)


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
        _show(self)


class ExpertForm:
    """The widgets of a sheet to rate, one design at a time."""

    def __init__(self, sitting: Experts, now: Callable[[], float] = time.monotonic) -> None:
        self._sitting, self._now, self._shown_at = sitting, now, 0.0
        self._numbers, self._place = list(sitting.rows), 0
        self.rater = ipywidgets.Text(description="your name", placeholder="may stay empty", continuous_update=False)
        self.head, self.picture, self.reference, self.progress, self.said = (ipywidgets.HTML() for _ in range(5))
        self.asked = {name: _scale(name, words) for name, words in ASKED.items()}
        self.save, self.back, self.skip = button("save and next ▶"), button("◀ back"), button("skip ▶")
        self.means = button("show the means")
        wrapping = {"flex_flow": "row wrap", "align_items": "flex-start"}
        seen = ipywidgets.HBox([self.picture, self.reference], layout=ipywidgets.Layout(**wrapping))
        going = ipywidgets.HBox(
            [self.back, self.save, self.skip, self.means, self.progress], layout=ipywidgets.Layout(**wrapping)
        )
        self.widget = ipywidgets.VBox(
            [ipywidgets.HTML(STYLE), self.rater, self.head, seen, *self.asked.values(), going, self.said]
        )
        for name in "rater head progress said save back skip means widget".split():
            getattr(self, name).add_class(f"lace-rating-{name}")
        for shown in (self.picture, self.reference):
            shown.add_class("lace-rating-picture")
            _halve(shown.layout)
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
        if self.index is None or self._now() - self._shown_at < LOOKED_SECONDS:
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
        self._shown_at = self._now()

    # -- inside --

    def _known(self) -> dict[int, Rating]:
        """This person's ratings of this sheet's designs, by their numbers."""
        rater, sheet = self.rater.value.strip().casefold(), self._sitting.sheet_name
        rows = self._sitting.ratings().rows
        return {one.design: one for one in rows if one.sheet == sheet and one.rater.casefold() == rater}

    def _first_unrated(self) -> int:
        known = self._known()
        return next((place for place, number in enumerate(self._numbers) if number not in known), 0)

    def _do(self, act: Callable[[], None]) -> None:
        self._say("")
        with telling(self._say):
            act()

    def _say(self, words: str, is_wrong: bool = False) -> None:
        self.said.value = message(words, is_wrong)


def pairs(
    run: RunFolder,
    name: str,
    pictures: Sequence[Path],
    other: str,
    other_pictures: Sequence[Path],
    seed: int = 0,
    question: str = QUESTION,
) -> Blind:
    """The form of blind pairs: pictures of `name` and of `other` that belong together by their places.

    Raises PicturesError where the lists differ in length or a file cannot be read.
    """
    return Blind(run, blind.pairs(name, pictures, other, other_pictures, seed), name, other, question)


def base_and_lora(run: RunFolder) -> Blind:
    """The form of the pairs that were measured: the base model against your LoRA. What is lacking is said in it."""
    return _asked(run, opinions.base_and_lora)


def finalists(run: RunFolder) -> Blind:
    """The form of the two checkpoints that the advice leaves to a person. What is lacking is said in it."""
    return _asked(run, opinions.finalists)


def experts(run: RunFolder, sheet: SheetFolder | None = None, names: Mapping[str, str] | None = None) -> Experts:
    """The form to rate the designs of a sheet, of the one drawn last where none is given; nothing is raised."""
    return Experts(run, sheet, names if names is not None else opinions.adapter_names(run))


# -- inside --


def _asked(run: RunFolder, sides: Callable[[RunFolder], opinions.Sides]) -> Blind:
    try:
        return pairs(run, *sides(run))
    except LaceError as error:
        return Blind(run, (), "", "", QUESTION, str(error))


def _show(sitting: Blind | Experts) -> None:
    if has_front_end():
        display(sitting.form.widget)
    else:
        print(repr(sitting))


def _halve(layout: ipywidgets.Layout) -> None:
    """Two beside each other where there is room, else one below the other."""
    layout.max_width, layout.width, layout.min_width = f"{SIDE_PX}px", "48%", "260px"
    layout.margin = "0 8px 8px 0"


def _scale(name: str, words: str) -> ipywidgets.ToggleButtons:
    """Numbers to choose from; the words at both ends tell which way is better."""
    numbers = range(LOWEST, HIGHEST + 1)
    ends = {LOWEST: f"{LOWEST} not at all", HIGHEST: f"{HIGHEST} fully"}
    made = ipywidgets.ToggleButtons(options=[(ends.get(one, str(one)), one) for one in numbers], value=None)
    made.description, made.style.button_width, made.style.description_width = f"{name}: {words}", "auto", "initial"
    made.add_class(f"lace-rating-{name}")
    return made
