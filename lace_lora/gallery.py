"""The gallery form of notebook 02: pages of thumbnails, each with its caption, its verdict, and whether it is learnt.

What is typed is saved as it is typed (see album). The pictures are filled anew for every page, so the notebook never
holds more of them than one page shows, and those as thumbnails.
"""

import html
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import ipywidgets
from IPython.display import display

from lace_lora.album import VIEWS, Album, Card
from lace_lora.caption_lint import Finding
from lace_lora.captioners import Captioner
from lace_lora.file_names import printable
from lace_lora.form_parts import button, message, telling
from lace_lora.notebook import HOVER, has_front_end
from lace_lora.swatch import Swatch
from lace_lora.swatch_form import SwatchForm

PAGE = 12  # cards: 4 in a row at 900 px
CARD_PX = 230
SIGNS = {"ok": ("✓", "#2f855a"), "note": ("!", "#975a16"), "unusable": ("✗", "#c53030")}
LINES = 20  # of the plain text, where no front-end draws widgets


class Fields:
    """What a person changes of one picture: caption, whether it is learnt, its preparation.

    Each picture has its own for as long as the gallery lives. Browsers hold typed text back while the kernel is busy,
    and let a click on "next" overtake it: fields that were handed on to the next picture would take it for its own.

    changed  called after each change
    prepare  called when the button is pressed
    """

    def __init__(self, album: Album, name: str, changed: Callable[[], None], prepare: Callable[[str], None]) -> None:
        self._album, self._name, self._changed = album, name, changed
        self._is_filling = False
        self.caption = ipywidgets.Textarea(rows=5, layout=ipywidgets.Layout(width=f"{CARD_PX - 14}px"))
        self.caption.placeholder = album.settings.instance_prompt
        setattr(self.caption, HOVER, f"caption of {printable(name)}")
        self.use = ipywidgets.Checkbox(description="learn from it", indent=False)
        self.use.layout.width = "110px"
        self.prepare = ipywidgets.Button(description="prepare", layout=ipywidgets.Layout(width="80px"))
        self.note = ipywidgets.HTML()
        for part in ("caption", "use", "prepare", "note"):
            getattr(self, part).add_class(f"lace-gallery-{part}")
        self.widgets = (self.caption, ipywidgets.HBox([self.use, self.prepare]), self.note)
        self.caption.observe(self._typed, names="value")
        self.use.observe(self._switched, names="value")
        self.prepare.on_click(lambda _: prepare(name))
        self.fill()

    def lock(self) -> None:
        """Take no changes until it is filled again: what is typed meanwhile would only be read afterwards."""
        for widget in (self.caption, self.use, self.prepare):
            widget.disabled = True

    def fill(self) -> None:
        """Show the card as it stands in the album now; what is only typed differently stays as it is typed."""
        card = self._album.cards[self._name]
        self._is_filling = True
        try:
            if " ".join(self.caption.value.split()) != card.caption:
                self.caption.value = card.caption
            self.use.value = card.is_used
            for widget in (self.caption, self.use, self.prepare):
                widget.disabled = card.verdict == "unusable"
        finally:
            self._is_filling = False

    def _typed(self, change: dict[str, Any]) -> None:
        kept: list[str] = []
        self._change(lambda: kept.append(self._album.write_caption(self._name, change["new"])))
        if change["new"].strip() and kept and kept[0] != " ".join(change["new"].split()):
            self._say(f"kept as: {kept[0]}")

    def _switched(self, change: dict[str, Any]) -> None:
        self._change(lambda: self._album.use(self._name, change["new"]))
        if self._album.cards[self._name].is_used != change["new"]:  # it could not be kept
            self.fill()

    def _change(self, act: Callable[[], None]) -> None:
        if self._is_filling:
            return
        self._say("")
        with telling(self._say):
            act()
        self._changed()

    def _say(self, words: str, is_wrong: bool = False) -> None:
        self.note.value = message(words, is_wrong)


class Tile:
    """A place of the page: the picture and what is said of it stay here, the fields are those of the card shown."""

    def __init__(self, album: Album) -> None:
        self._album = album
        self.name = ""
        self.picture = ipywidgets.Image(format="jpeg", layout=ipywidgets.Layout(max_width=f"{CARD_PX - 12}px"))
        self.about = ipywidgets.HTML()
        self.widget = ipywidgets.VBox(layout=ipywidgets.Layout(width=f"{CARD_PX}px", margin="4px"))
        for part, name in ((self.widget, "card"), (self.picture, "picture"), (self.about, "about")):
            part.add_class(f"lace-gallery-{name}")

    def show(self, name: str, fields: Fields | None) -> None:
        """Show a card with its fields, or nothing."""
        self.name = name
        self.widget.layout.display = "flex" if fields else "none"
        self.widget.children = [self.picture, self.about, *fields.widgets] if fields else []
        self.picture.value = self._album.thumbnail(name) if fields else b""
        self.about.value = _about(self._album.cards[name]) if fields else ""


class Gallery:
    """An album to look through; a cell that ends with it shows it. No widgets are made where nobody draws them.

    captioner  suggests captions; None where the settings ask for none
    """

    def __init__(self, album: Album, captioner: Captioner | None = None) -> None:
        self.album, self.captioner = album, captioner

    @cached_property
    def form(self) -> "GalleryForm":
        """The widgets, made when they are first asked for."""
        return GalleryForm(self.album, self.captioner)

    def __repr__(self) -> str:
        """The album as plain lines: verdict, name, caption."""
        cards = self.album.view()
        lines = []
        for card in cards[:LINES]:
            left_out = "" if card.is_used else "  (left out)"
            told = card.caption or f"({self.album.settings.instance_prompt})"
            lines.append(f"{SIGNS[card.verdict][0]} {printable(card.name)}  {told}{left_out}")
        more = [f"… and {len(cards) - LINES} more"] if len(cards) > LINES else []
        return "\n".join([*lines, *more, self.album.counts()])

    def _ipython_display_(self) -> None:
        if has_front_end():
            display(self.form.widget)
        else:
            print(repr(self))


class GalleryForm:
    """The widgets of a gallery.

    captioner  suggests captions; None where the settings ask for none
    """

    def __init__(self, album: Album, captioner: Captioner | None = None) -> None:
        self._album, self._captioner, self._page = album, captioner, 0
        self._fields: dict[str, Fields] = {}
        self._shown: list[str] = []  # names of the chosen view; a card that is changed does not leave it
        self.view = ipywidgets.Dropdown(options=VIEWS, value="all", description="show")
        self.back, self.next = button("◀ back"), button("next ▶")
        self.where, self.counts = ipywidgets.Label(), ipywidgets.Label()
        self.find, self.by = ipywidgets.Text(description="find"), ipywidgets.Text(description="replace by")
        self.find.layout.max_width = self.by.layout.max_width = "98%"  # with its margins: of a narrow window
        self.replace, self.undo = button("replace all"), button("undo")
        self.suggest, self.overwrite = button("suggest captions"), ipywidgets.Checkbox(indent=False)
        self.overwrite.description = "also for pictures that have one"
        self.lint, self.every = button("look over the captions"), button("show all")
        self.said, self.findings = ipywidgets.HTML(), ipywidgets.VBox()
        self.tiles = [Tile(album) for _ in range(PAGE)]
        self.preparing = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%"))
        self.cards = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start"))
        self.again = [button("◀ back"), button("next ▶")]
        self.suggest.disabled = self.overwrite.disabled = captioner is None
        if captioner is None:
            self.suggest.tooltip = "choose a captioner in the form above, and run this cell again"
        rows = [
            [self.view, self.back, self.next, self.every, self.where],
            [self.find, self.by, self.replace, self.undo],
            [self.suggest, self.overwrite, self.lint, self.counts],
        ]
        wrapping = {"flex_flow": "row wrap", "align_items": "flex-start"}
        self.widget = ipywidgets.VBox([
            *(ipywidgets.HBox(row, layout=ipywidgets.Layout(**wrapping)) for row in rows),
            self.said,
            self.findings,
            self.cards,
            ipywidgets.HBox(self.again),
        ])  # fmt: skip
        names = "view back next every where find by replace undo suggest overwrite lint counts said findings widget"
        for name in names.split():
            getattr(self, name).add_class(f"lace-gallery-{name}")
        self.view.observe(lambda _: self._choose(), names="value")
        for turning, step in zip((self.back, self.next, *self.again), (-1, 1, -1, 1), strict=True):
            self._on_click(turning, partial(self._turn, step))
        self._on_click(self.replace, self._replace_all)
        self._on_click(self.undo, self._undo)
        self._on_click(self.suggest, self._suggest)
        self._on_click(self.lint, self._lint)
        self._on_click(self.every, self._show_all)
        self._choose()

    def fields(self, name: str) -> Fields:
        """The fields of a picture, made when they are first asked for."""
        if name not in self._fields:
            self._fields[name] = Fields(self._album, name, self._count, self._prepare)
        return self._fields[name]

    def show(self, page: int) -> None:
        """Fill the tiles with a page of the chosen view; beyond the last page stays the last."""
        with telling(self._say):
            self._album.save()
        pages = max(1, -(-len(self._shown) // PAGE))
        self._page = min(max(0, page), pages - 1)
        names = self._shown[self._page * PAGE : (self._page + 1) * PAGE]
        for place, tile in enumerate(self.tiles):
            name = names[place] if place < len(names) else ""
            if name:
                self.fields(name).fill()
            tile.show(name, self.fields(name) if name else None)
        self.where.value = f"page {self._page + 1} of {pages} ({len(self._shown)} pictures)"
        for turning in (self.back, self.again[0]):
            turning.disabled = self._page == 0
        for turning in (self.next, self.again[1]):
            turning.disabled = self._page + 1 == pages
        self.preparing.children = []
        self._lay_out("")
        self._count()

    # -- what the buttons do --

    def _on_click(self, button: ipywidgets.Button, act: Callable[[], None]) -> None:
        def clicked(_: Any) -> None:
            self._say("")
            with telling(self._say):
                act()

        button.on_click(clicked)

    def _lay_out(self, prepared: str) -> None:
        """The cards in rows: the form of the one that is prepared below it, each piece of lace in a row of its own."""
        laid: list[ipywidgets.Widget] = []
        group = None
        for tile in self.tiles:
            card = self._album.cards.get(tile.name)
            if card and self.view.value == "same piece" and laid and card.group != group:
                laid.append(ipywidgets.Box(layout=ipywidgets.Layout(width="100%", height="0")))
            group = card.group if card else None
            laid += [tile.widget, self.preparing] if prepared and tile.name == prepared else [tile.widget]
        self.cards.children = laid

    def _turn(self, step: int) -> None:
        self.show(self._page + step)

    def _choose(self) -> None:
        self._shown = [card.name for card in self._album.view(self.view.value)]
        self.show(0)

    def _replace_all(self) -> None:
        count = self._album.replace_all(self.find.value, self.by.value)
        self._refill(f"replaced in {count} captions; undo takes it back" if count else "no caption says that")

    def _undo(self) -> None:
        count = self._album.undo()
        self._refill(f"{count} captions are as they were before" if count else "nothing was taken back")

    def _suggest(self) -> None:
        if self._captioner is None:
            return
        names = [card.name for card in self._album.view() if card.is_used]
        refused: list[str] = []

        def say(line: str) -> None:
            refused.extend([line] if any(printable(name) in line for name in names) else [])
            self._say(f"{line}. To stop: ■, or Runtime → Interrupt; what is there is kept.")

        for fields in self._fields.values():
            fields.lock()
        try:
            found = self._album.suggest(self._captioner, names, overwrite=self.overwrite.value, say=say)
        finally:
            for fields in self._fields.values():
                fields.fill()
            self.show(self._page)
        self._say("\n".join([found.summary, *refused[:5], *([f"… {len(refused)} in all"] if refused[5:] else [])]))

    def _lint(self) -> None:
        found = self._album.lint()
        self.findings.children = [self._finding(one) for one in found]
        self._say("" if found else "nothing is wrong with the captions")

    def _finding(self, finding: Finding) -> ipywidgets.Widget:
        concerned = f"{printable(finding.names[0])}" if finding.names else ""
        more = f" and {len(finding.names) - 1} more" if len(finding.names) > 1 else ""
        words = ipywidgets.HTML(message(f"{concerned}{more}{': ' if concerned else ''}{finding.sentence}"))
        look = button("show them", "lace-gallery-look")
        self._on_click(look, partial(self._look_at, [name for name in finding.names if name in self._album.cards]))
        if finding.mend is None:
            return ipywidgets.HBox([look, words] if finding.names else [words])
        mending = button("mend it", "lace-gallery-mend")

        def mend() -> None:
            count = self._album.mend(finding)
            self._refill(f"mended {count} captions; undo takes it back")
            self.findings.children = [self._finding(one) for one in self._album.lint()]

        self._on_click(mending, mend)
        return ipywidgets.HBox([mending, look, words], layout=ipywidgets.Layout(align_items="center"))

    def _show_all(self) -> None:
        self.view.value = "all"
        self._choose()

    def _look_at(self, names: list[str]) -> None:
        self._shown = names
        self.show(0)

    def _prepare(self, name: str) -> None:
        """A form of its own for each picture, so that a slider's late message reaches the picture it was moved for."""
        with telling(self._say):
            form = SwatchForm(partial(self._keep_swatch, name))
            form.fill(self._album.picture(name), self._album.cards[name].swatch)
            title = ipywidgets.HTML(f"<b>{html.escape(printable(name))}</b>: its file is never changed")
            done = button("close", "lace-gallery-close")
            self._on_click(done, partial(self._lay_out, ""))
            self.preparing.children = [title, form.widget, done]
            self._lay_out(name)

    def _keep_swatch(self, name: str, done: Swatch) -> None:
        self._album.prepare(name, done)  # what goes wrong the form says
        for tile in self.tiles:
            if tile.name == name:
                tile.show(name, self.fields(name))

    # -- saying --

    def _refill(self, words: str) -> None:
        self.show(self._page)
        self._say(words)

    def _count(self) -> None:
        self.counts.value = self._album.counts()

    def _say(self, words: str, is_wrong: bool = False) -> None:
        self.said.value = message(words, is_wrong)


def _about(card: Card) -> str:
    """The verdict, the name and what is worth knowing, as HTML in which nothing of a file's name is taken for HTML."""
    sign, colour = SIGNS[card.verdict]
    marks = ([f"piece {card.group}"] if card.group else []) + (["prepared"] if card.swatch else [])
    rows = [f"<b style='color:{colour}'>{sign}</b> {html.escape(printable(card.name))}"]
    rows += [f"<span style='opacity:0.75'>{html.escape(text)}</span>" for text in (*marks, *card.problems)]
    return f"<div style='line-height:1.25;overflow-wrap:anywhere'>{'<br>'.join(rows)}</div>"
