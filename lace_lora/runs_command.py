"""The commands `runs` and `compare`: what lies in lora_output_dir, and two runs side by side."""

from collections.abc import Callable

import typer

from lace_lora.command_words import PROGRAM, Verb
from lace_lora.config import Config
from lace_lora.errors import SettingsError

PAIR = {"runs": typer.Argument(metavar="RUN OTHER", help="two runs by their names in lora_output_dir, or folders")}
SHOWN = {"names": typer.Argument(metavar="RUN…", help="only these; without a name, all in lora_output_dir")}
SWITCHES = {
    "watch": "show the list again every few seconds, until Ctrl-C",
    "clean": "list what the runs no longer need, with sizes, and delete it after asking",
    "yes": "with --clean: delete without asking",
}


def add_to(verb: Verb, ready: Callable[[Config], Config]) -> None:
    """Make the two commands.

    verb   registers a function as a command, by its name, switches and texts
    ready  mounts Drive where it is wanted, and gives the settings with their preset
    """

    @verb("compare", {}, PAIR)
    def compare(config: Config, runs: list[str]) -> None:
        """Two runs side by side: settings that differ, scores, and whether a difference is more than chance."""
        from lace_lora import compare as room

        if len(runs or []) != 2:
            raise SettingsError(f"Name two runs, such as: {PROGRAM} compare lace lace-2")
        folder = ready(config).lora_output_dir
        print(room.compare(*(room.find(name, folder) for name in runs)))

    @verb("runs", SWITCHES, SHOWN)
    def runs(config: Config, names: list[str], watch: bool, clean: bool, yes: bool) -> None:
        """List the runs in lora_output_dir, those changed last first: state, progress, what is best, scores, size."""
        from lace_lora import machine, presets, run_list

        folder = presets.settle(config, machine.Machine.here(config.drive_mount_path)).config.lora_output_dir
        run_list.show(folder, names or (), watch=watch, clean=clean, yes=yes)
