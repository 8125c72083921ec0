"""What stands in the fields of a form, in plain values: what was asked for, what will run, what a person changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from lace_lora import clashes, queries, replanning
from lace_lora import config as declared
from lace_lora.config import Config
from lace_lora.errors import LaceError, SettingsError
from lace_lora.estimate import Caution
from lace_lora.replanning import Replan, Shown


class Entries:
    """The values of some settings; what is `auto` stays so until a person changes it.

    asked   the settings as they were asked for, with `auto` and without a preset's values
    shown   what runs with what stands here, or with the last values that could be planned
    wrong   the sentence of each value that will not do, by name
    clashing  what cannot work together with another setting, by the name of the field beside which it is to be said
    """

    def __init__(self, asked: Config, names: Sequence[str], first: Shown, replan: Replan | None) -> None:
        self.asked, self.names, self.shown, self._replan = asked, tuple(names), first, replan
        self.changes: dict[str, Any] = {}  # as a person entered them, so they may be wrong
        self.in_the_way: Caution | None = None  # why what is shown is not of what stands here
        self.wrong: dict[str, str] = {}
        if replan and not first.rows:
            self._plan_again()
        self._first, self.clashing = self.shown, self._clashing()

    def value(self, name: str) -> Any:
        """What stands in a field: what was entered, else `auto` where that was asked for, else what will run."""
        if name in self.changes:
            return self.changes[name]
        asked = getattr(self.asked, name)
        return asked if asked == "auto" else getattr(self.shown.planned, name)

    def text(self, name: str) -> str:
        """The same as a line of text shows it."""
        value, planned = self.value(name), getattr(self.shown.planned, name)
        if value in (None, "", ()):
            return "(empty)"
        if value == "auto" and planned != "auto" and declared.bounds_of(Config.model_fields[name]):
            return f"auto: {planned}"
        return " | ".join(value) if isinstance(value, tuple) else str(value)

    def config(self) -> Config:
        """The settings with what was changed; untouched, exactly those that were asked for. Raises SettingsError."""
        return self.asked.model_copy(update=self.changes) if self.changes else self.asked

    def change(self, changes: Mapping[str, Any]) -> None:
        """Take over all that a person has changed by now, and plan again."""
        self.changes = dict(changes)
        self.wrong = self._wrong()
        self._plan_again()
        self.clashing = self._clashing()

    def reset(self) -> None:
        """Go back to what was asked for at first."""
        self.shown = self._first
        self.change({})

    def cautions(self) -> list[Caution]:
        """What the plan warns of, or why there is none."""
        found = list(self.shown.cautions)
        return [*found, self.in_the_way] if self.in_the_way and not self.wrong else found

    def differs(self, name: str) -> bool:
        """Whether a field shows anything else than the setting's default; a wrong value does."""
        value, default = self.value(name), Config.model_fields[name].default
        if value == default:
            return False
        try:
            return bool(getattr(Config().model_copy(update={name: value}), name) != default)
        except SettingsError:
            return True

    def _plan_again(self) -> None:
        """What runs with what stands here; the last that was found stays, with the reason, where nothing is."""
        if self._replan is None:
            return
        try:
            settings = self.config()
        except SettingsError as error:
            self.in_the_way = Caution(min(self.wrong, default=""), str(error))
            return
        try:
            self.shown = Shown.of(settings, self._replan(settings))
        except LaceError as error:
            self.in_the_way = replanning.about(error)
            return
        self.in_the_way = None

    def _wrong(self) -> dict[str, str]:
        found = {}
        for name, value in self.changes.items():
            try:
                self.asked.model_copy(update={name: value})
            except SettingsError as error:
                found[name] = str(error)
        return found

    def _clashing(self) -> dict[str, str]:
        good = {name: value for name, value in self.changes.items() if name not in self.wrong}
        settings, found = self.shown.planned.model_copy(update=good), {}
        if "prompts" in self.names:
            found["prompts"] = queries.fault_of(settings.prompts, settings.base_prompt or "", settings.concept_token)
        for clash in clashes.found(settings):
            for name in [name for name in clash.settings if name in self.names][:1]:
                found[name] = clash.sentence
        return {name: sentence for name, sentence in found.items() if sentence}
