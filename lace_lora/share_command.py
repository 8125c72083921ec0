"""The commands `package`, `import` and `inspect`: a LoRA to give away, and those that others made."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lace_lora.command_words import Verb
from lace_lora.config import Config
from lace_lora.errors import AdapterError, SettingsError

if TYPE_CHECKING:
    from lace_lora.foreign import Foreign

RUN = {"runs": typer.Argument(metavar="RUN", help="a run by its name in lora_output_dir, or its folder")}
FILE = {"files": typer.Argument(metavar="FILE", help="a LoRA as .safetensors, or the folder of a package or a run")}
SWITCHES = {
    "photographs": "also show photographs that were learnt from, in its report, and designs begun with a picture"
}

Ready = Callable[[Config], Config]
Say = Callable[[str], None]


def add_to(verb: Verb, ready: Ready, say: Say) -> None:
    """Make the three commands.

    verb   registers a function as a command, by its name, switches and texts
    ready  mounts Drive where it is wanted, and gives the settings with their preset
    """

    @verb("package", SWITCHES, RUN)
    def package(config: Config, runs: list[str], photographs: bool) -> None:
        """Pack a run to give it away: the LoRA in both forms, card, samples, workflow, report; and upload it if set."""
        pack(ready(config), runs or [], photographs, say)

    @verb("import", {}, FILE)
    def take_in(config: Config, files: list[str]) -> None:
        """Bring in a LoRA made elsewhere as a run of its own, from which generate draws."""
        bring_in(ready(config), files or [], say)

    @verb("inspect", {}, FILE)
    def inspect(config: Config, files: list[str]) -> None:
        """Say what a LoRA file is: format, rank, strength, trigger word, base model, and what of it does not fit."""
        settings = ready(config)
        for number, name in enumerate(_named(files or [], "inspect")):
            say("\n".join([*([""] if number else []), *_read(name, settings).lines()]))


def pack(settings: Config, runs: list[str], photographs: bool, say: Say) -> None:
    """Pack the named run, or that of the settings."""
    from lace_lora import compare, package
    from lace_lora.run_folder import RunFolder

    if len(runs) > 1:
        raise SettingsError("Name one run, such as: lace-lora package lace")
    run = compare.find(runs[0], settings.lora_output_dir) if runs else RunFolder.of(settings)
    made = package.run(run, push_to_hub=settings.push_to_hub, shows_photographs=photographs, say=say)
    say(f"zip       {made.zip}")


def bring_in(settings: Config, files: list[str], say: Say) -> None:
    """Read a LoRA and keep it as a run: run_name where that is set, else by the name of its file."""
    from lace_lora import foreign
    from lace_lora.run_folder import RunFolder

    if len(files) != 1:
        raise SettingsError("Name one file, such as: lace-lora import style.safetensors")
    found = _read(files[0], settings)
    facts, given = found.adapter.facts, settings.given
    told: dict[str, Any] = {
        name: getattr(settings, name) for name in ("concept_token", "class_prompt") if name in given
    }
    if "concept_token" in told and "instance_prompt" not in given:
        told["instance_prompt"] = told["concept_token"]
    told |= {"instance_prompt": settings.instance_prompt} if "instance_prompt" in given else {}
    found = replace(found, adapter=replace(found.adapter, facts=replace(facts, **told)))
    for line in found.lines():
        say(line)
    path = Path(files[0]).expanduser()
    name = settings.run_name if "run_name" in given else foreign.title_of(path.resolve())
    run = RunFolder(Path(settings.lora_output_dir).expanduser() / name)
    foreign.keep(found, run, say)
    asked = found.words.preferred_strength
    scale = "" if asked is None else f" --lora-scale {asked:g}"
    say(f"Draw with it: lace-lora generate --run-name {name}{scale}")


def _read(name: str, settings: Config) -> "Foreign":
    """A LoRA as it fits the base model, or SDXL itself: where no GPU is, the base is a miniature that nobody chose."""
    from lace_lora import foreign

    if "pretrained_model" in settings.overridden:
        return foreign.read(name, settings.pretrained_model)
    try:
        return foreign.read(name)
    except AdapterError as error:
        try:
            return foreign.read(name, settings.pretrained_model)
        except AdapterError:
            raise error from None


def _named(files: list[str], command: str) -> list[str]:
    if not files:
        raise SettingsError(f"Name a file, such as: lace-lora {command} style.safetensors")
    return files
