"""Forms drawn from the settings' declarations, for people who click: a form returns a Config and decides nothing.

Works with ipywidgets 7.7 (Colab's) and 8. Where no front-end draws widgets (papermill, nbval), a form shows its values
as plain lines instead and makes no widgets, which would be stored in the notebook; `form.config()` gives the same
settings as an untouched form in a browser.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import ipywidgets
from IPython.display import display

from lace_lora import config as declared
from lace_lora.config import GROUPS, Config
from lace_lora.entries import Entries
from lace_lora.errors import SettingsError
from lace_lora.form_panel import FormPanel
from lace_lora.notebook import has_front_end
from lace_lora.presets import Settled
from lace_lora.replanning import Planned, Replan, Shown, resettler
from lace_lora.saving import Saving


class SettingsForm:
    """Fields for some settings; `.config()` is the Config with what the person changed.

    basic   names that stand open
    folded  names that are folded away, by their groups
    """

    def __init__(self, entries: Entries, basic: Sequence[str], folded: Mapping[str, Sequence[str]]) -> None:
        self._entries, self._basic, self._folded = entries, tuple(basic), folded
        self._saving = Saving()

    def config(self) -> Config:
        """The settings with what was changed in the form; untouched, exactly those that it was drawn from.

        Raises SettingsError with the sentence that also stands beside the field.
        """
        return self._entries.config()

    def changed(self) -> dict[str, Any]:
        """What the person changed, by name; it can be put over other settings."""
        return dict(self._entries.changes)

    def reset(self) -> None:
        """Have every field show again what the form was drawn from; what was saved stays until the next save."""
        self._entries.reset()
        if "panel" in vars(self):
            self.panel.show()

    def save(self) -> str:
        """Write what was changed in the form into the person's settings file; return what was written where.

        A second time, only what was changed since; of what was saved and then reset the file says what it said before.
        Raises a LaceError that says why nothing was written.
        """
        return self._saving.save(self.config(), self.changed(), self._entries.shown.preset)

    @cached_property
    def panel(self) -> FormPanel:
        """The widgets, made when they are first asked for."""
        return FormPanel(self._entries, self._basic, self._folded, self.reset, self.save)

    @property
    def widget(self) -> ipywidgets.Widget:
        """The one widget that holds all others."""
        return self.panel.widget

    def __repr__(self) -> str:
        """The form as plain lines: name, value, unit, and why it was chosen; of the folded ones what was changed."""
        entries = self._entries
        shown = {name: entries.text(name) for name in entries.names if name in self._basic or entries.differs(name)}
        if not shown:
            return "(no settings)"
        names, values = max(map(len, shown)), min(48, max(map(len, shown.values())))
        lines = []
        for name, value in shown.items():
            unit, why = declared.unit_of(Config.model_fields[name]), entries.shown.reasons.get(name, "")
            lines.append(f"{name:<{names}}  {value:<{values}}  {unit:<9} {why}".rstrip())
        return "\n".join(lines)

    def _ipython_display_(self) -> None:
        if has_front_end():
            display(self.widget)
        else:
            print(repr(self))


def settings_form(
    config: Config,
    basic: Sequence[str],
    plan: Planned | None = None,
    groups: Sequence[str] = (),
    replan: Replan | None = None,
) -> SettingsForm:
    """A form for settings of `config`; a plan adds the values that will run, and why they were chosen.

    basic   names of the settings that stand open, in this order
    plan    of estimate.prepare, or of presets.settle where no pictures need to be counted
    groups  keys of declarations.GROUPS, of which every other setting is folded away, one fold a group
    replan  of replanning.replanner or replanning.drawing: the plan is drawn above the fields, and again whenever a
            value changes; without one, settled settings are settled again

    What is `auto` stays so until a person takes the tick away: a run that goes on elsewhere then keeps its own choices.

    Raises SettingsError for a name that is no setting or a group that is none, with the nearest one.
    """
    for what, asked, known in (("setting", basic, Config.model_fields), ("group of settings", groups, GROUPS)):
        for name in asked:
            if name not in known:
                raise SettingsError(f"form: no {what} called {name!r}{declared.nearest(name, known)}")
    if replan is None and isinstance(plan, Settled) and plan.machine is not None:
        replan = resettler(plan.machine)
    inside = {group: [name for name, _ in declared.fields_of(group) if name not in basic] for group in groups}
    folded = {group: names for group, names in inside.items() if names}  # one fold a group
    names = [*basic, *(name for names in folded.values() for name in names)]
    return SettingsForm(Entries(config, names, Shown.of(config, plan), replan), basic, folded)
