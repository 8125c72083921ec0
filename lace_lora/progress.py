"""Progress of long work in a cell: a bar and pictures where a front-end draws widgets, a few plain lines elsewhere.

Hand a fresh one to a verb: `train.run(settings, show=progress.training())`. Widgets are changed in place from the
cell's own thread: a `display_id` would break nbval, and an update from another thread does not show on Colab.
"""

import html
import io
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import ipywidgets
from IPython.display import display

from lace_lora.curves import chart
from lace_lora.notebook import has_front_end

if TYPE_CHECKING:
    from lace_lora.inference import Generation
    from lace_lora.train import Step

LINES = 10  # plain lines in all, however long the work is
SECONDS_BETWEEN_CHARTS = 2.0  # the whole SVG goes to the browser
SECONDS_BETWEEN_UPDATES = 0.25  # of the widgets; a browser draws no faster anyway
THUMBNAIL_PX = 128
THUMBNAILS = 24  # the newest; more would make the page heavy


class Bar:
    """One line of progress that moves where a front-end draws it; else lines now and then, unless `prints` is False."""

    def __init__(self, title: str, prints: bool = True) -> None:
        self._title = title
        self._prints = prints
        self.is_drawn = has_front_end()
        self._began = perf_counter()
        self._first: int | None = None
        self._updated = 0.0
        if self.is_drawn:
            self._draw()

    def _draw(self) -> None:
        self._bar = ipywidgets.IntProgress(min=0, max=1)
        self._words = ipywidgets.HTML()
        self._chart = ipywidgets.HTML()
        self._pictures = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap"))
        named = {"bar": self._bar, "words": self._words, "chart": self._chart, "pictures": self._pictures}
        for name, widget in named.items():
            widget.add_class(f"lace-progress-{name}")
        display(ipywidgets.VBox([ipywidgets.HBox([self._bar, self._words]), self._chart, self._pictures]))

    def draw_chart(self, svg: str) -> None:
        """Show a chart below the bar, in place of the one before."""
        if self.is_drawn:
            self._chart.value = svg

    def move(self, number: int, total: int, words: str) -> None:
        """Go to `number` of `total`; `words` say what is known of it."""
        if self._first is None:  # a run that goes on starts in the middle, and the first step warms up
            self._first, self._began = number, perf_counter()
        line = "  ".join(part for part in (f"{self._title} {number}/{total}", words, self._left(number, total)) if part)
        if not self.is_drawn:
            if self._prints and (number in (self._first, total) or number % max(1, round(total / (LINES - 1))) == 0):
                print(line)
            return
        if number != total and perf_counter() - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = perf_counter()
        self._bar.max, self._bar.value = total, number
        self._words.value = html.escape(line)

    def add(self, picture: bytes, about: str) -> None:
        """Put a thumbnail (JPEG) with its name behind the others."""
        if self.is_drawn:
            image = ipywidgets.Image(value=picture, format="jpeg", width=THUMBNAIL_PX)
            image.add_class("lace-thumbnail")
            # Its name below it: a tooltip on a picture ends in a javascript error in ipywidgets 8.1.
            tile = ipywidgets.VBox([image, ipywidgets.Label(about)])
            self._pictures.children = (*self._pictures.children, tile)[-THUMBNAILS:]

    def _left(self, number: int, total: int) -> str:
        done = number - (self._first or 0)
        if done < 1:
            return ""
        seconds = (perf_counter() - self._began) / done
        left = seconds * (total - number)
        return f"{seconds:.1f} s each  {f'{left / 60:.0f} min' if left >= 90 else f'{left:.0f} s'} left"


def training() -> "Callable[[Step], None]":
    """What `train.run` calls with every step: number, mean loss, time left, the chart, and new sample pictures."""
    bar = Bar("step")
    rows: list[dict[str, Any]] = []
    drawn_at = 0.0

    def show(step: "Step") -> None:
        nonlocal drawn_at
        rows.append({"step": step.number, "loss": step.loss})
        recent = [row["loss"] for row in rows if "loss" in row][-20:]  # single losses jump with their timestep
        bar.move(step.number, step.total, f"loss {sum(recent) / len(recent):.3f}")
        if step.validation:
            rows.append(step.validation)
        is_due = perf_counter() - drawn_at > SECONDS_BETWEEN_CHARTS
        if bar.is_drawn and (is_due or step.validation or step.number == step.total):
            bar.draw_chart(chart(rows))
            drawn_at = perf_counter()
        for path in step.samples:
            bar.add(_jpeg(path), f"step {step.number}")

    return show


def gallery(total: int) -> "Callable[[Generation], None]":
    """What `inference.run` calls with every finished picture: they fill up below the bar.

    Without a front-end it prints nothing, since the stages tell their own progress.
    """
    bar = Bar("picture", prints=False)
    shown: list[int] = []

    def show(generation: "Generation") -> None:
        shown.append(generation.index)
        bar.add(_thumbnail(generation), f"{generation.index}")
        bar.move(len(shown), max(total, len(shown)), generation.path.name)

    return show


def _thumbnail(generation: "Generation") -> bytes:
    return _jpeg(generation.path)


def _jpeg(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
