"""The gallery of notebook 04: the designs of a sheet page by page, to star, to look at closely and in repeat, to vary.

Stars are saved as they are set (see stars). Only the page that is shown is made, of small pictures, and one large one
at a time, so that a sheet of 100,000 designs opens as one of 24 does and the notebook stays small.
"""

import html
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import display

from lace_lora import page as pages
from lace_lora import stars
from lace_lora.errors import LaceError
from lace_lora.file_names import printable
from lace_lora.form_parts import Said, button, message, picture
from lace_lora.notebook import HOVER, PICTURE_WIDTH_PX, has_front_end
from lace_lora.run_folder import RunFolder, SheetFolder
from lace_lora.stars import NO_STAR, STAR, Designs

PAGE = 24  # designs: a usual sheet at once
CARD_PX = 216
# What a page of 24 and a large picture take of a notebook that keeps its widgets, as Colab's do: under 1 MB in all.
CARD_BYTES, LARGE_BYTES = 10_000, 180_000
PROMPT_SIGNS, MOST_SIGNS = 140, 2000  # of the prompt, on a card and elsewhere
KEPT = 2 * PAGE  # designs of other pages whose buttons are kept for late clicks
LINES = 20  # of the plain text, where no front-end draws widgets
ITSELF, BEFORE = "the design", "before the refiner"
# What can be looked at of a design where it is there: itself, and pictures of page.BESIDE.
VERSIONS = (ITSELF, BEFORE, "in repeat", "mask", "cut out", "enlarged")

# The button that enlarges lies over its picture, so that a click there counts; where styles are not applied it stands
# below it with its words.
STYLE = f"""<style>
.lace-designs-card {{ position: relative }}
.lace-designs-card > .jupyter-widgets {{ margin-left: 0; margin-right: 0 }}
.lace-designs-picture img {{ display: block; width: {CARD_PX}px; height: {CARD_PX}px; object-fit: contain }}
.lace-designs-card .lace-designs-picture, .lace-designs-card .lace-designs-picture * {{ margin: 0; flex-shrink: 0 }}
.lace-designs-card button.lace-designs-look {{ position: absolute; top: 0; left: 0; height: {CARD_PX}px; margin: 0;
  width: {CARD_PX}px !important; color: transparent; background: transparent; border: 0; box-shadow: none;
  cursor: zoom-in }}
.lace-designs-card button.lace-designs-look:focus-visible {{ outline: 3px solid #2b6cb0; outline-offset: -3px }}
.lace-designs-starred {{ box-shadow: 0 0 0 2px #b7791f }}
.lace-designs-large {{ grid-column: 1 / -1 }}
.lace-designs-large img {{ display: block; max-width: 100%; max-height: 85vh; object-fit: contain }}
</style>"""
_SOFT = "opacity:0.75;line-height:1.3;overflow-wrap:anywhere"


class DesignGallery:
    """A sheet opened to choose from; a cell that ends with it shows it. No widgets are made where nobody draws them.

    wish  the settings that a person asked for by a button, to be put over others: {"vary": "sheet/3", …}; empty before
    """

    def __init__(self, parent: Path, sheet: SheetFolder | None, on_vary: Callable[[str], None] | None) -> None:
        self._on_vary = on_vary
        self.sheets = stars.sheets_in(parent)
        self.wish: dict[str, str | None] = {}
        self.open(sheet or next(iter(self.sheets), SheetFolder(parent)))

    def open(self, sheet: SheetFolder) -> None:
        """Go over to a sheet; what cannot be read of it is said instead of it."""
        self.sheet, self.wish, self.fault = sheet, {}, ""
        self.rows: Designs = {}
        self.starred: frozenset[int] = frozenset()
        try:
            self.rows = stars.rows(sheet, ("seed", "prompt"))
            self.starred = stars.read(sheet)
        except LaceError as error:
            self.fault = str(error)

    def turn_star(self, index: int) -> bool:
        """Star a design that has none, or take its star away, on the disk at once; returns whether it has one now."""
        on = index not in self.starred
        self.starred = stars.set_star(self.sheet, index, on, designs=self.rows)
        return on

    def vary(self, index: int) -> str:
        """Wish for more like a design, and call on_vary where that is given; returns what is to be done next."""
        named = stars.address(self.sheet, index)
        self.wish = {"vary": named, "favourites_of": None}
        if self._on_vary is None:
            return f"{named} is to be varied: run the next cell."
        self._on_vary(named)
        return ""

    def draw_again(self) -> str:
        """Wish for the favourites once more; returns what is to be done next."""
        self.wish = {"vary": None, "favourites_of": self.sheet.root.name}
        return f"The favourites of {printable(self.sheet.root.name)} are to be drawn again: run the next cell."

    def picture(self, index: int) -> Path:
        """The picture to look at."""
        return stars.picture_of(self.sheet, self.rows[index])

    def versions(self, index: int) -> dict[str, Path]:
        """What can be looked at of a design, by names of VERSIONS."""
        own, base = self.picture(index), self.rows[index]["base"]
        found = {ITSELF: own} | ({BEFORE: self.sheet.root / base} if base not in (None, own.name) else {})
        made = {name: pages.beside(own, name) for name in VERSIONS[2:]}
        return found | {name: path for name, path in made.items() if path.is_file() and not path.is_symlink()}

    def counted(self) -> str:
        """How many designs there are, and which are favourites; or why there are none."""
        if self.rows:
            return stars.counted(self.sheet, self.rows, self.starred)
        draw = "Draw some first: run the cell Generate, or lace-lora generate."
        return self.fault or f"No finished designs in {printable(self.sheet.root)} yet. {draw}"

    def __repr__(self) -> str:
        """The sheet and its favourites as plain lines."""
        loved = [index for index in self.rows if index in self.starred]
        lines = [f"{STAR} {stars.described(self.sheet, index, self.rows[index])}" for index in loved[:LINES]]
        more = [f"… and {len(loved) - LINES} more"] if len(loved) > LINES else []
        return "\n".join([self.counted(), *lines, *more])

    @cached_property
    def form(self) -> "DesignForm":
        """The widgets, made when they are first asked for."""
        return DesignForm(self)

    def _ipython_display_(self) -> None:
        if has_front_end():
            display(self.form.widget)
        else:
            print(repr(self))


class Card:
    """One design on a page: its picture, its buttons, its words.

    Each design has its own for as long as it may be clicked: a click that comes late, when the kernel was busy, must
    not reach the design that then stands in the same place.

    click  called with "star", "look" or "vary"
    like   the card whose layouts it shares: of its own they would take more of the notebook than its picture
    """

    def __init__(self, index: int, click: Callable[[str], None], like: "Card | None") -> None:
        self._index = index
        self.narrow: ipywidgets.Layout = like.narrow if like else ipywidgets.Layout(width="auto")
        self.wide: ipywidgets.Layout = like.wide if like else ipywidgets.Layout(width=f"{CARD_PX}px")
        self.star, self.look, self.vary = (ipywidgets.Button(layout=self.narrow) for _ in range(3))
        self.look.description = self.look.tooltip = f"show design {index} larger"
        self.vary.description, self.vary.tooltip = "vary this one", f"more designs like design {index}"
        self.picture, self.about = ipywidgets.HTML(layout=self.wide), ipywidgets.HTML(layout=self.wide)
        row = ipywidgets.HBox([self.star, self.vary], layout=self.wide)
        self.widget = ipywidgets.VBox([self.picture, self.look, row, self.about], layout=self.wide)
        self.widget.add_class("lace-designs-card")
        for name in ("star", "look", "vary", "picture", "about"):
            getattr(self, name).add_class(f"lace-designs-{name}")
        for name in ("star", "look", "vary"):
            getattr(self, name).on_click(lambda _, name=name: click(name))

    def fill(self, path: Path, row: Mapping[str, Any], is_starred: bool) -> None:
        """Show the design as it is now."""
        self.picture.value = picture(path, f"design {self._index}: {_prompt(row)}", CARD_PX, CARD_BYTES)
        self.about.value = _about(self._index, row)
        self.mark(is_starred)

    def mark(self, is_starred: bool) -> None:
        """Say whether the design is a favourite."""
        self.star.description = f"{STAR} starred" if is_starred else f"{NO_STAR} star"
        self.star.tooltip = f"design {self._index} is {'a' if is_starred else 'no'} favourite: click to change that"
        (self.widget.add_class if is_starred else self.widget.remove_class)("lace-designs-starred")

    def close(self) -> None:
        """Give the widgets back."""
        for widget in (self.star, self.vary, *self.widget.children, self.widget):
            if hasattr(widget, "style"):
                widget.style.close()
            widget.close()


class Large:
    """One design large, behind the card that was clicked. Its buttons stay, so that the keyboard's focus does, too."""

    def __init__(self) -> None:
        self.index = 0
        self.head, self.picture = ipywidgets.HTML(), ipywidgets.HTML()
        self.versions = {name: button(name, "lace-designs-version") for name in VERSIONS}
        self.before, self.after = (
            button(words, "lace-designs-step") for words in ("◀ design before", "design after ▶")
        )
        self.close = button("close", "lace-designs-close")
        row = ipywidgets.HBox([*self.versions.values(), self.before, self.after, self.close])
        row.layout.flex_flow = "row wrap"
        self.widget = ipywidgets.VBox([self.head, row, self.picture])
        self.widget.add_class("lace-designs-large")

    def fill(self, designs: DesignGallery, index: int, version: str, is_first: bool, is_last: bool) -> None:
        """Show a version of a design; the design itself where it has no such version."""
        self.index, row, there = index, designs.rows[index], designs.versions(index)
        version = version if version in there else ITSELF
        title = stars.address(designs.sheet, index) + ("" if version == ITSELF else f", {version}")
        facts = f"{there[version].name} · seed {stars.plain(row.get('seed'))} · {_prompt(row)}"
        self.head.value = f"<b>{html.escape(title)}</b><div style='{_SOFT}'>{html.escape(facts)}</div>"
        self.picture.value = picture(there[version], f"{title}: {_prompt(row)}", PICTURE_WIDTH_PX, LARGE_BYTES)
        for name, one in self.versions.items():
            one.layout.display = None if name in there and len(there) > 1 else "none"
            one.button_style = "info" if name == version else ""
        self.before.disabled, self.after.disabled = is_first, is_last


class DesignForm:
    """The widgets of a gallery."""

    def __init__(self, designs: DesignGallery) -> None:
        self._designs, self._page = designs, 0
        self._shown: list[int] = []  # of the chosen view; a design that loses its star does not leave it at once
        self._cards: dict[int, Card] = {}
        self._large_behind: int | None = None  # the place on the page
        sheets = designs.sheets
        self.sheet = ipywidgets.Dropdown(description="sheet")
        self.sheet.options = [(printable(one.root.name), number) for number, one in enumerate(sheets)]
        self.sheet.value = sheets.index(designs.sheet) if designs.sheet in sheets else None
        setattr(self.sheet, HOVER, "a sheet of designs; the one drawn last comes first")
        self.only = ipywidgets.Checkbox(description="only favourites", indent=False)
        self.only.layout.width = "150px"
        self.redraw = button("draw the favourites again")
        self.redraw.tooltip = "the starred designs, with the settings that stand in the form"
        self.back, self.next = button("◀ back"), button("next ▶")
        self.again = [button("◀ back"), button("next ▶")]
        self.where, self.counts, self.said = ipywidgets.Label(), ipywidgets.HTML(), ipywidgets.HTML()
        self._say = Said(self.said)
        self._do = self._say.doing
        self.counts.layout.margin = "0 0 0 16px"
        self.large = Large()
        # Dense: cards fill the row above the large picture, which stands behind the card that was clicked.
        self.cards = ipywidgets.GridBox(layout=ipywidgets.Layout(grid_auto_flow="row dense", width="100%"))
        self.cards.layout.grid_template_columns = f"repeat(auto-fill, {CARD_PX}px)"
        self.cards.layout.grid_gap, self.cards.layout.padding = "14px", "3px"
        wrapping = {"flex_flow": "row wrap", "align_items": "center"}
        rows = [[self.sheet, self.only, self.redraw], [self.back, self.next, self.where, self.counts]]
        self.widget = ipywidgets.VBox([
            ipywidgets.HTML(STYLE),
            *(ipywidgets.HBox(row, layout=ipywidgets.Layout(**wrapping)) for row in rows),
            self.said,
            self.cards,
            ipywidgets.HBox(self.again),
        ])  # fmt: skip
        for name in "sheet only redraw back next where counts said cards widget".split():
            getattr(self, name).add_class(f"lace-designs-{name}")
        self._listen()
        self._do(self._choose)

    def _listen(self) -> None:
        for one, step in zip((self.back, self.next, *self.again), (-1, 1, -1, 1), strict=True):
            one.on_click(lambda _, step=step: self._do(lambda: self.show(self._page + step)))
        self.redraw.on_click(lambda _: self._do(lambda: self._say(self._designs.draw_again())))
        self.only.observe(lambda _: self._do(self._choose), names="value")
        self.sheet.observe(lambda change: self._do(partial(self._open, change["new"])), names="value")
        for name, one in self.large.versions.items():
            one.on_click(lambda _, name=name: self._do(partial(self._go_on, 0, name)))
        for one, step in ((self.large.before, -1), (self.large.after, 1)):
            one.on_click(lambda _, step=step: self._do(partial(self._go_on, step)))
        self.large.close.on_click(lambda _: self._do(self._close_large))

    def card(self, index: int) -> Card:
        """The card of a design, made when it is first asked for."""
        if index not in self._cards:
            sheet, like = self._designs.sheet, next(iter(self._cards.values()), None)
            self._cards[index] = Card(index, lambda what: self._do(partial(self._clicked, sheet, index, what)), like)
        return self._cards[index]

    def show(self, page: int) -> None:
        """Show a page of the chosen view; beyond the last page stays the last."""
        designs, count = self._designs, max(1, -(-len(self._shown) // PAGE))
        self._page = min(max(0, page), count - 1)
        here = self._here()
        others = [index for index in self._cards if index not in here]
        for index in others:
            self._cards[index].picture.value = ""  # a notebook that keeps its widgets holds one page of pictures
        for index in others[: max(0, len(others) - KEPT)]:
            self._cards.pop(index).close()
        designs.starred = stars.read(designs.sheet, self._say)  # another gallery may have set some
        for index in here:
            self.card(index).fill(designs.picture(index), designs.rows[index], index in designs.starred)
        self.where.value = f"page {self._page + 1} of {count}"
        for one in (self.back, self.again[0]):
            one.disabled = self._page == 0
        for one in (self.next, self.again[1]):
            one.disabled = self._page + 1 == count
        self._close_large()
        self._count()

    # -- what the buttons do --

    def _clicked(self, sheet: SheetFolder, index: int, what: str) -> None:
        if sheet != self._designs.sheet:
            return  # another one was chosen before the click came
        if what == "star":
            self.card(index).mark(self._designs.turn_star(index))
            self._count()
        elif what == "vary":
            self._say(self._designs.vary(index))
        elif index in self._here():
            self._enlarge(index, ITSELF, self._here().index(index))

    def _open(self, number: int) -> None:
        for card in self._cards.values():
            card.close()
        self._cards = {}
        self._designs.open(self._designs.sheets[number])
        self._choose()

    def _choose(self) -> None:
        designs = self._designs
        if self.only.value:
            designs.starred = stars.read(designs.sheet)
        self._shown = [index for index in designs.rows if not self.only.value or index in designs.starred]
        self.show(0)

    def _go_on(self, step: int, version: str = ITSELF) -> None:
        """Show the design so many places on large, or another version of it; a click that comes late does nothing."""
        behind = self._large_behind
        if behind is None:
            return
        place = self._shown.index(self.large.index) + step
        if place // PAGE != self._page:
            self.show(place // PAGE)
            behind = place % PAGE
        self._enlarge(self._shown[place], version, behind)

    def _enlarge(self, index: int, version: str, behind: int) -> None:
        self.large.fill(self._designs, index, version, index == self._shown[0], index == self._shown[-1])
        self._lay_out(behind)

    def _close_large(self) -> None:
        self.large.picture.value = ""
        self._lay_out(None)

    # -- saying --

    def _here(self) -> list[int]:
        return self._shown[self._page * PAGE : (self._page + 1) * PAGE]

    def _lay_out(self, large_behind: int | None) -> None:
        """The cards of the page, and the large picture behind the one in that place."""
        laid = [self.card(index).widget for index in self._here()]
        self._large_behind = large_behind
        if large_behind is not None:
            laid.insert(large_behind + 1, self.large.widget)
        self.cards.children = laid

    def _count(self) -> None:
        self.counts.value = message(self._designs.counted(), bool(self._designs.fault))
        self.redraw.disabled = not any(index in self._designs.rows for index in self._designs.starred)


def open(run_or_sheet: RunFolder | SheetFolder, *, on_vary: Callable[[str], None] | None = None) -> DesignGallery:
    """The gallery of a run, beginning with the sheet drawn last, or of one sheet and those beside it.

    on_vary  is called with a design's name, such as "sheet/3", when its button is pressed

    What cannot be read is said in the gallery; nothing is raised.
    """
    if isinstance(run_or_sheet, RunFolder):
        return DesignGallery(run_or_sheet.sheets, None, on_vary)
    return DesignGallery(run_or_sheet.root.parent, run_or_sheet, on_vary)


# -- inside --


def _prompt(row: Mapping[str, Any]) -> str:
    return stars.plain(row.get("prompt", ""))[:MOST_SIGNS]


def _about(index: int, row: Mapping[str, Any]) -> str:
    """Number, seed and the beginning of the prompt, in which nothing is taken for HTML."""
    prompt = _prompt(row)
    short = prompt if len(prompt) <= PROMPT_SIGNS else f"{prompt[:PROMPT_SIGNS].rstrip()} …"
    seed = html.escape(stars.plain(row.get("seed"))[:40])
    words = f"<div style='{_SOFT};padding-right:8px'>{html.escape(short)}</div>"
    return f"<b>{index}</b> <span style='opacity:0.75'>seed {seed}</span>{words}"
