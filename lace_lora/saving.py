"""What a form keeps as a person's own defaults: what was changed, once, and taken back when it is reset."""

from collections.abc import Mapping
from typing import Any

from lace_lora import presets
from lace_lora.config import Config
from lace_lora.defaults import Defaults


class Saving:
    """A form's way to the settings file; it knows what it has put there."""

    def __init__(self) -> None:
        self._defaults = Defaults()
        self._saved: dict[str, Any] = {}

    def save(self, settings: Config, changed: Mapping[str, Any], preset: str) -> str:
        """Write what is changed and not yet written; what was written and then reset goes back to what stood there.

        settings  the form's, with what was changed
        preset    the name of the one in force

        Returns what was written where. Raises the errors of Defaults.save.
        """
        wanted = {name: getattr(settings, name) for name in changed}
        unsaved = {
            name: value for name, value in wanted.items() if name not in self._saved or self._saved[name] != value
        }
        reset = [name for name in self._saved if name not in wanted]
        if not unsaved and not reset:
            since = " since it was saved" if self._saved else ""
            return f"Nothing was changed in this form{since}, so nothing was written."
        sentence = self._defaults.save(unsaved, settings.drive_mount_path, as_before=reset)
        self._saved = wanted
        if beaten := [name for name in unsaved if name in presets.beaten_by(preset, settings)]:
            sentence += (
                f" On this machine the demo is in force, which brings its own {', '.join(beaten)}: what is saved "
                "counts where there is a GPU, or with another preset."
            )
        return sentence
