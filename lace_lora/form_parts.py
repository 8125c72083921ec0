"""Parts of the forms in notebooks, for people who look and for screen readers: buttons, messages, small pictures."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import ipywidgets

from lace_lora import pictures
from lace_lora.errors import LaceError

# Dark words on a ground of their own, so that they are read in a dark theme too; what they are is said in words.
WRONG = "color:#7b1919;background:#fde8e8;border-left:4px solid #c53030"
CAUTION = "color:#5f370e;background:#fef3c7;border-left:4px solid #b7791f"
QUALITIES = (85, 75, 65, 50, 35, 20)  # of a JPEG, until it is small enough


def button(words: str, css_class: str = "") -> ipywidgets.Button:
    """A button as wide as its words; tests in a browser find it by its class."""
    made = ipywidgets.Button(description=words, layout=ipywidgets.Layout(width="auto"))
    if css_class:
        made.add_class(css_class)
    return made


def message(text: str, is_wrong: bool = False) -> str:
    """A text as HTML in which nothing is taken for HTML, read out when it appears; nothing for an empty text."""
    if not text:
        return ""
    role, colour = ("alert", "#c53030") if is_wrong else ("status", "inherit")
    shown = html.escape(text).replace("\n", "<br>")
    return f"<span role='{role}' style='color:{colour};line-height:1.3'>{shown}</span>"


def notice(text: str, is_wrong: bool = False) -> str:
    """A sentence in a box of HTML that is read out when it appears: an amber warning, or what is wrong, in red."""
    role, look, word = ("alert", WRONG, "") if is_wrong else ("status", CAUTION, "<b>Warning:</b> ")
    style = f"{look};padding:4px 8px;margin:3px 0;line-height:1.35;border-radius:2px;overflow-wrap:anywhere"
    return f"<div role='{role}' style='{style}'>{word}{html.escape(text)}</div>"


class Fold:
    """Widgets below a button that shows and hides them; ipywidgets' own Accordion opens for the mouse alone."""

    def __init__(self, children: Sequence[ipywidgets.Widget], css_class: str) -> None:
        self.button = ipywidgets.ToggleButton(layout=ipywidgets.Layout(width="auto", max_width="100%"))
        self.button.add_class(css_class)
        self.body = ipywidgets.VBox(list(children))
        self.widget = ipywidgets.VBox([self.button, self.body])
        self._words = ""
        self.button.observe(lambda _: self._draw(), names="value")
        self._draw()

    def say(self, words: str) -> None:
        """What is folded, in words; whether it is open stands before them."""
        self._words = words
        self._draw()

    def _draw(self) -> None:
        is_open = self.button.value
        self.button.icon = "caret-down" if is_open else "caret-right"
        self.button.description = f"{'Hide' if is_open else 'Show'} {self._words}"
        self.body.layout.display = "flex" if is_open else "none"


@contextmanager
def telling(say: Callable[[str, bool], None]) -> Iterator[None]:
    """An error in a widget's callback would be lost in a log that nobody sees: it is said instead."""
    try:
        yield
    except LaceError as error:
        say(str(error), True)
    except Exception as error:
        say(f"Something unforeseen went wrong ({type(error).__name__}: {error}).", True)


class Said:
    """The line of a form that says what was done, or what went wrong."""

    def __init__(self, line: ipywidgets.HTML) -> None:
        self._line = line

    def __call__(self, words: str, is_wrong: bool = False) -> None:
        """Say this in place of what was said before."""
        self._line.value = message(words, is_wrong)

    def doing(self, act: Callable[[], None]) -> None:
        """Do what a click asks for; what was said before is over, and an error is said."""
        self("")
        with telling(self):
            act()


def picture(path: Path, told: str, side_px: int, most_bytes: int) -> str:
    """A picture as an HTML element that tells a screen reader what it is; ipywidgets' own Image cannot.

    side_px, most_bytes  what the JPEG in it may have at most, so that the notebook stays small
    """
    try:
        stat = path.stat()
    except OSError:
        return f"<img alt='{html.escape(told)} (its file is gone)'>"
    data = base64.b64encode(_jpeg(path, stat.st_mtime_ns, stat.st_size, side_px, most_bytes)).decode("ascii")
    return f"<img alt='{html.escape(told)}' src='data:image/jpeg;base64,{data}'>"


@lru_cache(maxsize=240)  # paging back shows them at once, also from Drive
def _jpeg(path: Path, mtime_ns: int, size: int, side_px: int, most_bytes: int) -> bytes:
    """A picture as a JPEG of at most so many bytes, if need be a coarser and then a smaller one.

    A file that cannot be read gives one that says so. mtime_ns and size tell what is drawn anew from what was seen.
    """
    shown = pictures.thumbnail(path, side_px)
    for quality in QUALITIES:
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= most_bytes or (side_px == 1 and quality == QUALITIES[-1]):
            return buffer.getvalue()
    return _jpeg(path, mtime_ns, size, side_px // 2, most_bytes)
