"""The widgets of a form: its plan, its fields with what is said beside them, its folds and buttons."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import ipywidgets

from lace_lora import plan_view
from lace_lora.config import GROUPS
from lace_lora.counting import counted
from lace_lora.entries import Entries
from lace_lora.fields import STYLE, draw, help_of
from lace_lora.form_parts import Fold, Said, button, message, notice, telling


class FormPanel:
    """Widgets over the entries of a form, which hear of every change and are shown again after it.

    basic   names that stand open
    folded  names that are folded away, by their groups
    reset   called by its button
    save    called by its button; returns what is then said
    """

    def __init__(
        self, entries: Entries, basic: Sequence[str], folded: Mapping[str, Sequence[str]],
        reset: Callable[[], None], save: Callable[[], str],
    ) -> None:  # fmt: skip
        self._entries, self._is_quiet = entries, False
        planned = entries.shown.planned
        self.drawn = {name: draw(name, getattr(entries.asked, name), getattr(planned, name)) for name in entries.names}
        # What an untouched widget reads as: a box may hold the same value in other words, and that is no change.
        self._untouched = {name: drawn.read() for name, drawn in self.drawn.items()}
        self.notes = {name: ipywidgets.HTML() for name in entries.names}
        self.summary, self.said = ipywidgets.HTML(), ipywidgets.HTML()
        self._say = Said(self.said)
        self.summary.add_class("lace-form-plan")
        self.said.add_class("lace-form-said")
        rows = {name: self._row(name) for name in entries.names}
        self.folds = {
            group: (Fold([rows[name] for name in inside], f"lace-fold-{group.replace(' ', '-')}"), tuple(inside))
            for group, inside in folded.items()
        }
        self.widget = ipywidgets.VBox(
            [
                ipywidgets.HTML(STYLE),
                self.summary,
                *(rows[name] for name in basic),
                *(fold.widget for fold, _ in self.folds.values()),
                self._buttons(reset, save),
                self.said,
            ],
            layout=ipywidgets.Layout(width="100%"),
        )
        self.widget.add_class("lace-form")
        self._tell_all()

    def show(self) -> None:
        """Show what stands in the entries now."""
        asked, planned, changes = self._entries.asked, self._entries.shown.planned, self._entries.changes
        with self._quietly():
            for name, drawn in self.drawn.items():
                if name not in changes:
                    drawn.show(getattr(asked, name), getattr(planned, name))
                    self._untouched[name] = drawn.read()
                elif changes[name] == "auto":
                    drawn.show("auto", getattr(planned, name))
        self._tell_all()

    def _row(self, name: str) -> ipywidgets.Widget:
        """The widgets of a setting; below them its help or, while a value is wrong, the sentence, and warnings."""
        drawn, note = self.drawn[name], self.notes[name]
        note.add_class(f"lace-{name}-note")
        note.add_class("lace-note")
        for widget in drawn.inputs:
            widget.observe(lambda _: self._changed(), names="value")
        row = ipywidgets.VBox([drawn.row(), note])
        row.add_class(f"lace-{name}-row")
        return row

    def _buttons(self, reset: Callable[[], None], save: Callable[[], str]) -> ipywidgets.Widget:
        resetting, saving = button("Reset", "lace-form-reset"), button("Save as my defaults", "lace-form-save")

        def reset_and_say(_: object) -> None:
            reset()
            self._say("Every field shows again what it began with.")

        def save_and_say(_: object) -> None:
            with telling(self._not_saved):
                self.said.value = message(save())

        resetting.on_click(reset_and_say)
        saving.on_click(save_and_say)
        return ipywidgets.HBox([resetting, saving], layout=ipywidgets.Layout(flex_flow="row wrap"))

    def _not_saved(self, text: str, _: bool) -> None:
        self.said.value = notice(f"Nothing was saved. {text}", True)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Change widgets without that counting as a person's doing."""
        self._is_quiet = True
        try:
            yield
        finally:
            self._is_quiet = False

    def _changed(self) -> None:
        """A person changed a value: plan again, and say beside each field what there is to say."""
        if self._is_quiet:
            return
        self._say("")
        now = {name: drawn.read() for name, drawn in self.drawn.items()}
        self._entries.change({name: value for name, value in now.items() if value != self._untouched[name]})
        self.show()

    def _tell_all(self) -> None:
        """Write the summary, the note of every field and the words of every fold."""
        entries = self._entries
        wrong, cautions = entries.wrong, entries.cautions()
        clashing = {name: sentence for name, sentence in entries.clashing.items() if name not in wrong}
        for name, note in self.notes.items():
            beside = "".join(notice(caution.sentence) for caution in cautions if caution.setting == name)
            clash = notice(clashing[name], True) if name in clashing else ""
            note.value = notice(wrong[name], True) if name in wrong else self._help(name) + clash + beside
        for group, (fold, inside) in self.folds.items():
            fold.say(f"{GROUPS[group]} ({self._counted(inside, [*wrong, *clashing])})")
        self.summary.value = plan_view.as_html(entries)

    def _counted(self, inside: Sequence[str], to_mend: Sequence[str]) -> str:
        """How many settings a fold holds, and how many need a look."""
        differing = sum(self._entries.differs(name) for name in inside)
        warned = sum(caution.setting in inside for caution in self._entries.cautions())
        mending = sum(name in inside for name in to_mend)
        verb = "differs" if differing == 1 else "differ"
        parts = [
            counted(len(inside), "setting"),
            f"{differing} {verb} from the defaults" if differing else "all defaults",
        ]
        parts += [f"warnings: {warned}"] if warned else []
        parts += [f"to be mended: {mending}"] if mending else []
        return ", ".join(parts)

    def _help(self, name: str) -> str:
        shown = self._entries.shown
        why = shown.reasons.get(name)
        takes = f"auto takes {getattr(shown.planned, name)}" if self._entries.value(name) == "auto" else "chosen"
        words = f"{help_of(name)}{f' ({takes}: {why})' if why else ''}"
        return f"<div style='opacity:0.85;line-height:1.35'>{html.escape(words)}</div>"
