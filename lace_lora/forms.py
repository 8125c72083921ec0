"""Forms drawn from the settings' declarations, for people who click: a form returns a Config and decides nothing.

Works with ipywidgets 7.7 (Colab's) and 8. Where no front-end draws widgets (papermill, nbval), a form shows its values
as plain lines instead, and `form.config()` gives the same settings as an untouched form in a browser.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
from IPython.display import display

from lace_lora import config as declared
from lace_lora import presets, replanning
from lace_lora.config import GROUPS, Config
from lace_lora.defaults import Defaults
from lace_lora.errors import LaceError, SettingsError
from lace_lora.estimate import Caution, Plan
from lace_lora.fields import STYLE, draw, help_of
from lace_lora.form_parts import Fold, button, message, notice, telling
from lace_lora.notebook import has_front_end
from lace_lora.presets import Settled
from lace_lora.replanning import Replan


@dataclass(frozen=True)
class Shown:
    """What a form shows beside the settings: the values that will run, why, the preset in force, what to beware of."""

    planned: Config
    preset: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    plan: Plan | None = None

    @classmethod
    def of(cls, config: Config, plan: Plan | Settled | None) -> "Shown":
        """From a plan, from settled settings, or from the settings alone."""
        if plan is None:
            return cls(config)
        if isinstance(plan, Settled):
            return cls(plan.config, plan.preset, plan.reasons)
        return cls(plan.config, plan.preset, {one.setting: one.why for one in plan.choices}, plan)


class SettingsForm:
    """Widgets for some settings; `.config()` is the Config with what the person changed."""

    def __init__(
        self, config: Config, basic: Sequence[str], groups: Sequence[str], first: Shown, replan: Replan | None
    ) -> None:
        self._config, self._first, self._shown, self._replan = config, first, first, replan
        folded = {
            group: [name for name, _ in declared.fields_of(group) if name not in basic] for group in groups
        }  # one fold a group
        self._basic = tuple(basic)
        names = [*basic, *(name for group in folded.values() for name in group)]
        self._drawn = {name: draw(name, getattr(config, name), getattr(first.planned, name)) for name in names}
        # What an untouched widget reads as: a box may hold the same value in other words, and that is no change.
        self._untouched = {name: drawn.read() for name, drawn in self._drawn.items()}
        self._saved: dict[str, Any] = {}
        self._defaults = Defaults()
        self._in_the_way: Caution | None = None  # why the plan is not of what stands in the form
        self._is_quiet = False
        self._notes = {name: ipywidgets.HTML() for name in names}
        self._summary, self._said = ipywidgets.HTML(), ipywidgets.HTML()
        self._summary.add_class("lace-form-plan")
        self._said.add_class("lace-form-said")
        rows = {name: self._row(name) for name in names}
        self._folds = {
            group: (Fold([rows[name] for name in inside], f"lace-fold-{group.replace(' ', '-')}"), inside)
            for group, inside in folded.items()
            if inside
        }
        self.widget = ipywidgets.VBox(
            [
                ipywidgets.HTML(STYLE),
                self._summary,
                *(rows[name] for name in basic),
                *(fold.widget for fold, _ in self._folds.values()),
                self._buttons(),
                self._said,
            ],
            layout=ipywidgets.Layout(width="100%"),
        )
        self.widget.add_class("lace-form")
        if replan and first.plan is None:
            self._plan_again()
        self._tell_all()

    def config(self) -> Config:
        """The settings with what was changed in the form; untouched, exactly those that it was drawn from.

        Raises SettingsError with the sentence that also stands beside the field.
        """
        changed = self.changed()
        return self._config.model_copy(update=changed) if changed else self._config

    def changed(self) -> dict[str, Any]:
        """What the person changed, by name; it can be put over other settings."""
        now = {name: drawn.read() for name, drawn in self._drawn.items()}
        return {name: value for name, value in now.items() if value != self._untouched[name]}

    def reset(self) -> None:
        """Have every field show again what the form was drawn from; what was saved stays saved."""
        with self._quietly():
            for name, drawn in self._drawn.items():
                drawn.show(getattr(self._config, name), getattr(self._first.planned, name))
                self._untouched[name] = drawn.read()
        self._changed()

    def save(self) -> str:
        """Write what was changed in the form into the person's settings file; return what was written where.

        A second time, only what was changed since. Raises a LaceError that says why nothing was written.
        """
        settings, changed = self.config(), self.changed()
        # What was saved and then reset is written as it was asked for at first, not as the preset shows it.
        wanted = {name: getattr(settings if name in changed else self._config, name) for name in self._drawn}
        unsaved = {
            name: value
            for name, value in wanted.items()
            if (self._saved[name] != value if name in self._saved else name in changed)
        }
        if not unsaved:
            since = " since it was saved" if self._saved else ""
            return f"Nothing was changed in this form{since}, so nothing was written."
        sentence = self._defaults.save(unsaved, settings.drive_mount_path)
        self._saved |= unsaved
        beaten = [name for name in unsaved if name in presets.read("demo").settings] if self._is_demo() else []
        if beaten:
            sentence += (
                f" On this machine the demo is in force, which brings its own {', '.join(beaten)}: what is saved "
                "counts where there is a GPU, or with another preset."
            )
        return sentence

    def __repr__(self) -> str:
        """The form as plain lines: name, value, unit, and why it was chosen; of the folded ones what was changed."""
        shown = {name: self._drawn[name].text() for name in self._drawn if name in self._basic or self._differs(name)}
        if not shown:
            return "(no settings)"
        names, values = max(map(len, shown)), min(48, max(map(len, shown.values())))
        lines = []
        for name, value in shown.items():
            unit, why = declared.unit_of(Config.model_fields[name]), self._shown.reasons.get(name, "")
            lines.append(f"{name:<{names}}  {value:<{values}}  {unit:<9} {why}".rstrip())
        return "\n".join(lines)

    def _ipython_display_(self) -> None:
        if has_front_end():
            display(self.widget)
        else:
            print(repr(self))

    def _row(self, name: str) -> ipywidgets.Widget:
        """The widgets of a setting; below them its help or, while a value is wrong, the sentence, and warnings."""
        drawn, note = self._drawn[name], self._notes[name]
        note.add_class(f"lace-{name}-note")
        note.add_class("lace-note")
        for widget in drawn.inputs:
            widget.observe(lambda _: self._changed(), names="value")
        row = ipywidgets.VBox([drawn.row(), note])
        row.add_class(f"lace-{name}-row")
        return row

    def _buttons(self) -> ipywidgets.Widget:
        reset, save = button("Reset", "lace-form-reset"), button("Save as my defaults", "lace-form-save")

        def reset_and_say(_: object) -> None:
            self.reset()
            self._say("Every field shows again what it began with.", False)

        def save_and_say(_: object) -> None:
            with telling(self._say):
                self._say(self.save(), False)

        reset.on_click(reset_and_say)
        save.on_click(save_and_say)
        return ipywidgets.HBox([reset, save], layout=ipywidgets.Layout(flex_flow="row wrap"))

    def _say(self, text: str, is_wrong: bool) -> None:
        self._said.value = notice(f"Nothing was saved. {text}", True) if is_wrong else message(text)

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
        self._say("", False)
        if self._replan:
            self._plan_again()
        self._tell_all()

    def _plan_again(self) -> None:
        """The plan for what stands in the form; the last one stays, with the reason, where none can be made."""
        assert self._replan is not None
        try:
            settings = self.config()
        except SettingsError as error:
            self._in_the_way = Caution(min(self._wrong(), default=""), str(error))
            return
        try:
            self._shown = Shown.of(settings, self._replan(settings))
        except LaceError as error:
            self._in_the_way = replanning.about(error)
            return
        self._in_the_way = None
        changed = self.changed()
        with self._quietly():
            for name, drawn in self._drawn.items():
                planned = getattr(self._shown.planned, name)
                if name not in changed:
                    drawn.show(getattr(self._config, name), planned)
                    self._untouched[name] = drawn.read()
                elif drawn.read() == "auto":
                    drawn.show("auto", planned)

    def _wrong(self) -> dict[str, str]:
        """The sentence of each value that will not do, by name."""
        found = {}
        for name, value in self.changed().items():
            try:
                self._config.model_copy(update={name: value})
            except SettingsError as error:
                found[name] = str(error)
        return found

    def _cautions(self) -> list[Caution]:
        """What the plan warns of, or why there is none."""
        found = list(self._shown.plan.warnings) if self._shown.plan else []
        return [*found, self._in_the_way] if self._in_the_way and not self._wrong() else found

    def _tell_all(self) -> None:
        """Write the summary, the note of every field and the words of every fold."""
        wrong, cautions = self._wrong(), self._cautions()
        for name, note in self._notes.items():
            beside = "".join(notice(caution.sentence) for caution in cautions if caution.setting == name)
            note.value = notice(wrong[name], True) if name in wrong else self._help(name) + beside
        for group, (fold, inside) in self._folds.items():
            differing = sum(self._differs(name) for name in inside)
            warned = sum(caution.setting in inside for caution in cautions)
            parts = [
                f"{len(inside)} settings",
                f"{differing} differ from the defaults" if differing else "all defaults",
            ]
            parts += [f"warnings: {warned}"] if warned else []
            parts += [f"to be mended: {sum(name in wrong for name in inside)}"] if wrong.keys() & set(inside) else []
            fold.say(f"{GROUPS[group]} ({', '.join(parts)})")
        self._summary.value = self._plan_as_html(list(wrong), cautions)

    def _plan_as_html(self, wrong: list[str], cautions: list[Caution]) -> str:
        """The summary of the plan, with the warnings that have no field here, and where the others stand."""
        plan = self._shown.plan
        if plan is None and not self._in_the_way:
            return ""
        rows = replanning.plan_summary(plan) if plan else []
        left = "style='text-align:left;padding:1px 12px 1px 0;vertical-align:top'"
        cells = "".join(
            f"<tr><th scope='row' {left}>{html.escape(name)}</th><td {left}>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        lines = []
        if wrong:
            lines.append(notice(f"The plan below is of the last good values: correct {', '.join(wrong)}.", True))
        elif self._in_the_way:
            what = "The plan below is of the last values that could be planned" if plan else "There is no plan yet"
            lines.append(notice(f"{what}; see {self._in_the_way.setting}."))
        lines += [notice(one.sentence) for one in cautions if one.setting not in self._drawn]
        beside = list(dict.fromkeys(one.setting for one in cautions if one.setting in self._drawn))
        if beside and not self._in_the_way:
            lines.append(notice(f"read what stands below {', '.join(beside)}."))
        table = f"<table style='line-height:1.4;margin:2px 0 6px;border:0'>{cells}</table>" if cells else ""
        return f"<div role='status' aria-label='The plan' style='line-height:1.4'>{''.join(lines)}{table}</div>"

    def _help(self, name: str) -> str:
        why = self._shown.reasons.get(name)
        is_auto = self._drawn[name].read() == "auto"
        takes = f"auto takes {getattr(self._shown.planned, name)}" if is_auto else "chosen"
        words = f"{help_of(name)}{f' ({takes}: {why})' if why else ''}"
        return f"<div style='opacity:0.85;line-height:1.35'>{html.escape(words)}</div>"

    def _differs(self, name: str) -> bool:
        """Whether a field shows anything else than the setting's default; a wrong value does."""
        value, default = self._drawn[name].read(), Config.model_fields[name].default
        if value == default:
            return False
        try:
            return bool(getattr(Config().model_copy(update={name: value}), name) != default)
        except SettingsError:
            return True

    def _is_demo(self) -> bool:
        return self._shown.preset == "demo"


def settings_form(
    config: Config,
    basic: Sequence[str],
    plan: Plan | Settled | None = None,
    groups: Sequence[str] = (),
    replan: Replan | None = None,
) -> SettingsForm:
    """A form for settings of `config`; a plan adds the values that will run, and why they were chosen.

    basic   names of the settings that stand open, in this order
    plan    of estimate.prepare, or of presets.settle where no pictures need to be counted
    groups  keys of declarations.GROUPS, of which every other setting is folded away, one fold a group
    replan  of replanning.replanner: the plan is drawn above the fields, and again whenever a value changes

    What is `auto` stays so until a person takes the tick away: a run that goes on elsewhere then keeps its own choices.

    Raises SettingsError for a name that is no setting or a group that is none, with the nearest one.
    """
    for what, asked, known in (("setting", basic, Config.model_fields), ("group of settings", groups, GROUPS)):
        for name in asked:
            if name not in known:
                raise SettingsError(f"form: no {what} called {name!r}{declared.nearest(name, known)}")
    return SettingsForm(config, basic, groups, Shown.of(config, plan), replan)
