"""A form of notebook 05: pairs of pictures to choose from without knowing whose they are.

Each answer is saved as it is given (see blind). No widgets are made where nobody draws them.
"""

import html
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import ipywidgets

from lace_lora import blind, opinions
from lace_lora.answering import MOST_BYTES, SIDE_PX, STYLE, TOO_QUICK, Look, halve, show, wrapping
from lace_lora.errors import LaceError
from lace_lora.form_parts import Said, button, message, picture
from lace_lora.run_folder import RunFolder

QUESTION = "Which of the two would you rather have?"
SAID_IN_WORDS: dict[blind.Said, str] = {"left": "1 left", "right": "2 right", "same": "3 same", "neither": "4 neither"}


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
        show(self)


class BlindForm:
    """The widgets of blind pairs.

    now  seconds of a clock that only goes on
    """

    def __init__(self, sitting: Blind, now: Callable[[], float] = time.monotonic) -> None:
        self._sitting, self._look = sitting, Look(now)
        self.pair: blind.Pair | None = None
        self.head, self.progress, self.said = (ipywidgets.HTML() for _ in range(3))
        self._say = Said(self.said)
        self._do = self._say.doing
        self.pictures = {side: ipywidgets.HTML() for side in ("left", "right")}
        self.buttons = {said: button(words) for said, words in SAID_IN_WORDS.items()}
        self.typed = ipywidgets.Text(description="or type 1 to 4", placeholder="1, 2, 3 or 4", continuous_update=True)
        self.typed.style.description_width, self.typed.layout.width = "110px", "230px"
        self.back = button("◀ back to the last one")
        self.so_far = button("show the result so far")
        self.sides = ipywidgets.HBox(
            [ipywidgets.VBox([self.pictures[side], self.buttons[side]]) for side in ("left", "right")],
            layout=wrapping(),
        )
        for side in self.sides.children:
            halve(side.layout)
        self.answering = ipywidgets.HBox([self.buttons["same"], self.buttons["neither"], self.typed], layout=wrapping())
        going = ipywidgets.HBox([self.back, self.so_far, self.progress], layout=wrapping())
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
        if self._look.is_too_short:
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
        self._look.begins()

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


# -- inside --


def _asked(run: RunFolder, sides: Callable[[RunFolder], opinions.Sides]) -> Blind:
    try:
        return pairs(run, *sides(run))
    except LaceError as error:
        return Blind(run, (), "", "", QUESTION, str(error))
