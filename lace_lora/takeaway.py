"""What a run gives to take away: the LoRA for other programs, the report, the designs; each with a button in Colab."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ipywidgets
from IPython.display import display

from lace_lora import colab, form_parts, machine
from lace_lora.notebook import has_front_end
from lace_lora.run_folder import RunFolder

MB = 1e6
AFTERWARDS = (
    " Until then the forms of this notebook save nothing, and what lies in Drive is downloaded at drive.google.com."
)


@dataclass(frozen=True)
class Thing:
    """A file to take away, and what it is for."""

    path: Path
    purpose: str

    def __str__(self) -> str:
        return f"{self.purpose}: {self.path} ({_size(self.path)})"


def things(run: RunFolder) -> list[Thing]:
    """What there is of a run: its package, the LoRA, then the report and the sheets of designs, the newest last."""
    found = [
        Thing(run.package_zip, "everything to give away, packed: the LoRA, samples, workflow, report"),
        Thing(run.adapter_for_tools, "the LoRA for ComfyUI, A1111 and the like"),
        Thing(run.adapter_weights, "the same LoRA for diffusers"),
        Thing(run.concept_token, "its concept token, to be loaded beside it as an embedding"),
        Thing(run.report, "the report, one page that needs nothing else"),
    ]
    sheets = sorted((run.sheet(path.parent.name).zip for path in run.sheets.glob("*/request.json")), key=_made_at)
    found += [
        Thing(path, f"the designs of {path.parent.name}, with masks and outlines where there are any")
        for path in sheets
    ]
    return [thing for thing in found if thing.path.is_file()]


class TakeAway:
    """The list, with buttons where a person sits at Colab; as lines elsewhere."""

    def __init__(self, run: RunFolder) -> None:
        self._things = things(run)
        self._downloads: dict[Path, ipywidgets.Button] = {}

    @cached_property
    def said(self) -> ipywidgets.HTML:
        """What came of the last press."""
        line = ipywidgets.HTML()
        line.add_class("lace-take-away-said")
        return line

    @cached_property
    def widget(self) -> ipywidgets.Widget:
        """A row for each thing, and the button that waits for Drive."""
        rows = [self._row(thing) for thing in self._things]
        whole = ipywidgets.VBox([*rows, self._into_drive(), self.said])
        whole.add_class("lace-take-away")
        return whole

    def __repr__(self) -> str:
        return (
            "\n".join(map(str, self._things)) or "There is nothing to take away yet: train first with 03_train.ipynb."
        )

    def _ipython_display_(self) -> None:
        if self._things and machine.in_colab() and has_front_end():
            display(self.widget)
        else:
            print(repr(self))

    def _row(self, thing: Thing) -> ipywidgets.Widget:
        press = form_parts.button(f"Download {thing.path.name}", "lace-take-away-download")
        press.on_click(lambda _: self._do(lambda: colab.download(thing.path)))
        self._downloads[thing.path] = press
        words = ipywidgets.HTML(html.escape(f"{thing.purpose} ({_size(thing.path)})"))
        return ipywidgets.HBox([press, words], layout=ipywidgets.Layout(flex_flow="row wrap"))

    def _into_drive(self) -> ipywidgets.Widget:
        press = form_parts.button("Wait until everything is in Drive", "lace-take-away-flush")
        press.tooltip = "the last thing to do before you close Colab; afterwards Drive is let go of"
        press.on_click(lambda _: self._do(self._let_go))
        return press

    def _let_go(self) -> str:
        """Let go of Drive; what lay there cannot be downloaded from here any more."""
        done = colab.flush_and_unmount()
        gone = [press for path, press in self._downloads.items() if not path.is_file()]
        for press in gone:
            press.disabled = True
            press.tooltip = "It lies in Drive, and Drive is not connected any more."
        return f"{done}{AFTERWARDS if gone else ''}"

    def _do(self, what: Callable[[], str]) -> None:
        say = form_parts.Said(self.said)
        say.doing(lambda: say(what()))


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / MB:.1f} MB" if size >= MB / 10 else f"{size / 1000:.0f} kB"


def _made_at(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0
