"""Which of a person's LoRAs is worked with: the one that the settings name, or another, chosen from a list of them."""

import html
from pathlib import Path

import ipywidgets
from IPython.display import display

from lace_lora import adapter as adapters
from lace_lora import form_parts
from lace_lora.adapter import Adapter
from lace_lora.config import Config
from lace_lora.notebook import has_front_end
from lace_lora.presets import Settled
from lace_lora.run_folder import RunFolder


class RunChoice:
    """The runs of lora_output_dir that have a LoRA; a list to choose from where a person looks and there are several.

    settings  those asked for. Where they name no run and there is none of the usual name, the newest one is taken
    settled   the same with their preset

    Raises AdapterError where there is no LoRA, with what to do.
    """

    def __init__(self, settings: Config, settled: Settled) -> None:
        self._asked, self.settled = settings, settled
        self.names = runs_with_a_lora(Path(settled.config.lora_output_dir).expanduser())
        name = settled.config.run_name
        if name not in self.names and self.names and "run_name" not in settings.given:
            name = self.names[0]
        self.take(name)

    def take(self, name: str) -> None:
        """Work with the run of that name. Raises AdapterError where its LoRA cannot be read; then nothing changes."""
        run = RunFolder(Path(self.settled.config.lora_output_dir).expanduser() / name)
        self.adapter: Adapter = adapters.load(run.root)
        self.run = run

    @property
    def settings(self) -> Config:
        """The settings that were asked for, with the run that was chosen."""
        if self.run.name == self.settled.config.run_name:
            return self._asked
        return self._asked.model_copy(update={"run_name": self.run.name})

    def __repr__(self) -> str:
        others = [name for name in self.names if name != self.run.name]
        return "\n".join([str(self.adapter), *([f"other runs     {', '.join(others)}"] if others else [])])

    def _ipython_display_(self) -> None:
        if has_front_end():
            display(self._drawn())
        else:
            print(repr(self))

    def _drawn(self) -> ipywidgets.Widget:
        """The list, where there is more than one, and below it what is known of the one that is chosen."""
        facts, said = ipywidgets.HTML(self._table()), ipywidgets.HTML()
        if len(self.names) < 2:
            return facts
        names = self.names if self.run.name in self.names else [self.run.name, *self.names]
        shown = ipywidgets.Dropdown(options=names, value=self.run.name, description="run_name")
        shown.add_class("lace-run-choice")
        say = form_parts.Said(said)

        def change(change: dict[str, str]) -> None:
            def take() -> None:
                self.take(change["new"])
                facts.value = self._table()
                say(f"Run the cells below again: they work with {self.run.name} from now on.")

            say.doing(take)

        shown.observe(change, names="value")
        return ipywidgets.VBox([shown, facts, said])

    def _table(self) -> str:
        rows = "".join(
            f"<tr><th scope='row' style='text-align:left;padding-right:1em'>{html.escape(name)}</th>"
            f"<td style='text-align:left;overflow-wrap:anywhere'>{html.escape(value)}</td></tr>"
            for name, value in self.adapter.rows()
        )
        return f"<table>{rows}</table>"


def runs_with_a_lora(folder: Path) -> list[str]:
    """Names of the runs in a folder that have learnt something, the newest first; none where it cannot be read."""
    made = {}
    try:
        for path in folder.iterdir():
            weights = RunFolder(path).adapter_weights
            if weights.is_file():
                made[path.name] = weights.stat().st_mtime
    except OSError:  # no such folder, or a Drive that does not answer: looking for the LoRA says so
        return []
    return sorted(made, key=lambda name: (-made[name], name))
