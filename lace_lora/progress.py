"""Progress of long work in a cell: a bar and pictures where a front-end draws widgets, a few plain lines elsewhere.

Hand a fresh one to a verb: `train.run(settings, show=progress.training(run))`. Widgets are changed in place from the
cell's own thread: a `display_id` would break nbval, and an update from another thread does not show on Colab.
"""

import html
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import ipywidgets
from IPython.display import display

from lace_lora import checkpoint
from lace_lora.counting import Progress, seconds_in_words
from lace_lora.curves import chart
from lace_lora.form_parts import picture
from lace_lora.notebook import has_front_end
from lace_lora.run_folder import RunFolder

if TYPE_CHECKING:
    from lace_lora.inference import Generation
    from lace_lora.train import Step

LINES = 10  # plain lines in all, however long the work is
SECONDS_BETWEEN_CHARTS = 2.0  # the whole SVG goes to the browser
SECONDS_BETWEEN_UPDATES = 0.25  # of the widgets; a browser draws no faster anyway
THUMBNAIL_PX = 128
THUMBNAIL_BYTES = 8_000
THUMBNAILS = 24  # the newest; more would make the page heavy
MOVES = 50  # that the time left is reckoned from


class Pace:
    """How long one more takes, and the rest: by the clock over the last moves, so that what comes between counts."""

    def __init__(self) -> None:
        self._moves: deque[tuple[int, float]] = deque(maxlen=MOVES + 1)
        self._began = perf_counter()

    def move(self, number: int) -> None:
        """Note that `number` is reached; the first one only starts the clock, since a run may go on in its middle."""
        self._moves.append((number, perf_counter()))

    def words(self, number: int, total: int) -> str:
        """Such as "1.9 s each  27 min left"; nothing before there is anything to reckon from."""
        (first, then), (last, now) = self._moves[0], self._moves[-1]
        if last == first:
            return ""
        each = (now - then) / (last - first)
        if number == total:
            return f"{each:.1f} s each  {seconds_in_words(perf_counter() - self._began)} in all"
        return f"{each:.1f} s each  {seconds_in_words(each * (total - number))} left"


class Bar:
    """One line of progress that moves where a front-end draws it; else lines now and then, unless `prints` is False."""

    def __init__(self, title: str, prints: bool = True) -> None:
        self._title = title
        self._prints = prints
        self.is_drawn = has_front_end()
        self._pace = Pace()
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
        line = ipywidgets.HBox([self._bar, self._words], layout=ipywidgets.Layout(flex_flow="row wrap"))
        display(ipywidgets.VBox([line, self._chart, self._pictures]))

    def draw_chart(self, svg: str) -> None:
        """Show a chart below the bar, in place of the one before."""
        if self.is_drawn:
            self._chart.value = svg

    def move(self, number: int, total: int, words: str) -> None:
        """Go to `number` of `total`; `words` say what is known of it."""
        self._first = number if self._first is None else self._first
        self._pace.move(number)
        pace = self._pace.words(number, total)
        line = "  ".join(part for part in (f"{self._title} {number}/{total}", words, pace) if part)
        if not self.is_drawn:
            if self._prints and (number in (self._first, total) or number % max(1, round(total / (LINES - 1))) == 0):
                print(line)
            return
        if number != total and perf_counter() - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = perf_counter()
        self._bar.max, self._bar.value = total, number
        self._words.value = html.escape(line)

    def tell(self, line: Progress) -> None:
        """Go to where a line of progress is."""
        if self.is_drawn:
            self._bar.max, self._bar.value = line.total, line.done
            self._words.value = html.escape(line)

    def add(self, path: Path, told: str, name: str) -> None:
        """Put the thumbnail of a picture behind the others.

        told  what it is, for a screen reader
        name  what stands below it
        """
        if self.is_drawn:
            # HTML, since ipywidgets' own Image has no text for who cannot see it.
            shown = picture(path, told, THUMBNAIL_PX, THUMBNAIL_BYTES)
            tile = ipywidgets.HTML(f"{shown}<br><small>{html.escape(name)}</small>")
            tile.add_class("lace-thumbnail")
            tile.layout.margin = "0 8px 8px 0"
            self._pictures.children = (*self._pictures.children, tile)[-THUMBNAILS:]


def training(run: RunFolder | None = None) -> "Callable[[Step], None]":
    """What `train.run` calls with every step: number, mean loss, time left, the chart, and new sample pictures.

    run  of a training that goes on, the chart and the pictures then begin with what was done before
    """
    bar = Bar("step")
    rows: list[dict[str, Any]] = []
    shown: set[Path] = set()
    drawn_at = 0.0

    def add(number: int, paths: tuple[Path, ...]) -> None:
        for path in (path for path in paths if path not in shown):
            shown.add(path)
            bar.add(path, f"sample picture after step {number}", f"step {number}")

    def show(step: "Step") -> None:
        nonlocal drawn_at
        if run is not None and not rows:
            with suppress(OSError):  # a Drive that does not answer costs no step
                rows.extend(row for row in checkpoint.read_json_lines(run.log) if row.get("step", 0) < step.number)
                for number, paths in _samples(run, step.number):
                    add(number, paths)
        rows.append({"step": step.number, "loss": step.loss})
        recent = [row["loss"] for row in rows if "loss" in row][-20:]  # single losses jump with their timestep
        bar.move(step.number, step.total, f"loss {sum(recent) / len(recent):.3f}")
        if step.validation:
            rows.append(step.validation)
        is_due = perf_counter() - drawn_at > SECONDS_BETWEEN_CHARTS
        if bar.is_drawn and (is_due or step.validation or step.number == step.total):
            bar.draw_chart(chart(rows))
            drawn_at = perf_counter()
        add(step.number, step.samples)

    return show


class Stages:
    """What is told of long work in stages (see `say`): a bar that moves where a front-end draws one, else lines.

    say  takes everything else that is told
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._say_rest = say
        self._bar = Bar("", prints=False)

    def say(self, text: str) -> None:
        """Tell a line: progress moves the bar, which begins again with each stage; any other line is said."""
        if isinstance(text, Progress) and self._bar.is_drawn:
            self._bar.tell(text)
        else:
            self._say_rest(text)


class Gallery(Stages):
    """The same for `inference.run`, with a thumbnail of every finished picture below the bar (see `show`)."""

    def show(self, generation: "Generation") -> None:
        """Put a design behind those that are finished."""
        self._bar.add(generation.path, f"design {generation.index}: {generation.prompt}", f"{generation.index}")


def _samples(run: RunFolder, before: int) -> list[tuple[int, tuple[Path, ...]]]:
    """The sample pictures that a run has of steps before that one."""
    numbered = {checkpoint.number_in(folder.name): folder for folder in run.samples.glob("step-*")}
    found = sorted((number, folder) for number, folder in numbered.items() if number is not None and number < before)
    return [(number, tuple(sorted(folder.glob("*.png")))) for number, folder in found]
