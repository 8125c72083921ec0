"""The command line `lace-lora`: one command for each verb, and every setting as an option by its own name.

Options are made from the declarations in config.py, so they cannot differ from it. Only the verbs load torch, and only
when they are called. A user's mistake ends with one sentence on stderr and exit code 1; `--debug` shows the traceback.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lace_lora import (
    __version__,
    batch_command,
    cancel_command,
    claims_command,
    config_text,
    frames_command,
    options,
    plan_command,
    runs_command,
    selftest_command,
    serve_command,
    share_command,
    text_command,
)
from lace_lora import config as declared
from lace_lora.command_words import PROGRAM, rewritten, usage_sentence
from lace_lora.config import Config
from lace_lora.errors import LaceError, MachineError, SettingsError

if TYPE_CHECKING:
    from lace_lora.estimate import Plan

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
# Newer typer carries a click of its own, older typer imports the other one: this is the class in both.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name=PROGRAM,
    epilog=f"Every setting is an option, by the name it has in config.yaml: {PROGRAM} train --help lists them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("-", "_"),  # --max-train-steps is --max_train_steps
    },
)


def door() -> None:
    """The entry point of `lace-lora` and of `python -m lace_lora.main`."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command line; return 0, or 1 with a sentence on stderr, or 130 when Ctrl-C ended it."""
    debug = "--debug" in words
    try:
        line = rewritten([word for word in words if word != "--debug"], _commands())
        code = app(args=line, prog_name=PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except LaceError as error:
        return _failed(str(error), debug)
    except UsageError as error:
        return _failed(usage_sentence(error, words), debug)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # nothing that we foresaw: still one sentence, and where the rest is to be had
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        return _failed(f"Something unforeseen went wrong ({reason}). Add --debug to see where.", debug)


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    mode: Annotated[
        str | None, typer.Option(metavar="train|inference", help="short for the command train, or generate")
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="say which")] = False,
) -> None:
    """Photographs of lace in, a LoRA for Stable Diffusion XL and new, refined textile designs out."""


def verb(
    name: str, switches: Mapping[str, str] = MappingProxyType({}), lists: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function of a Config a command, with `--config` and every setting as an option.

    switches  options of this command alone, which the function takes too: name and help
    lists     the same for texts, which may be repeated: name, and how typer is to take them
    """

    def register(work: Callable[..., None]) -> Callable[..., None]:
        def command(config_files: list[Path] | None, debug: bool, **given: Any) -> None:
            chosen = {name: given.pop(name) for name in (*switches, *lists)}
            overrides = {name: options.as_text(name, value) for name, value in given.items()}
            work(declared.load(*(config_files or declared.found()), **overrides), **chosen)

        parameters = options.parameters(switches, lists)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, help=inspect.getdoc(work))(command)
        return work

    return register


@verb("check")
def check(config: Config) -> None:
    """Look at every picture and say what is wrong with it; the photographs and their folder stay as they are."""
    from lace_lora import check as room
    from lace_lora import counting

    settled = _looked_at(config)
    tell: Callable[[int], None] | None = None

    def progress(done: int, total: int) -> None:
        nonlocal tell
        tell = tell or counting.lines(lambda line: print(line, file=sys.stderr, flush=True), "pictures", total)
        tell(1)

    said: list[str] = []
    report = room.run(settled, progress, said.append)
    print(report)
    captions = {record.name: record.caption for record in report.usable}
    if any(captions.values()):
        _lint(settled, captions)
    print(*said, sep="\n")


SWITCHES = {
    "overwrite": "also for pictures that have a caption; the earlier annotations.txt is kept as .bak",
    "mend": "also mend captions where that needs no judgement: concept token first, no tabs, no phrase in nearly all",
}


@verb("annotate", SWITCHES)
def annotate(config: Config, overwrite: bool, mend: bool) -> None:
    """Write annotations.txt: a caption for every picture, suggested where a captioner is set; others stay."""
    from lace_lora import annotate as room
    from lace_lora import machine

    settled = _looked_at(config)
    here = machine.Machine.here(settled.drive_mount_path)
    captioner = room.captioner_of(settled, here, _say)
    path = room.run(settled, captioner=captioner, overwrite=overwrite, mend=mend, say=_say)
    captions = room.learnt(settled)
    _lint(settled, captions)
    print(f"{len(captions)} captions in {path}")


def _lint(config: Config, captions: Mapping[str, str]) -> None:
    from lace_lora import annotate, caption_lint

    for line in caption_lint.describe(annotate.lint(config, captions)):
        print(f"! {line}")


@app.command("export-captions")
def export_captions(
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="where copies of the pictures go, with their captions")],
    kind: Annotated[
        str, typer.Option("--as", metavar="KIND", help="metadata.jsonl (Hugging Face), .txt or .caption (kohya)")
    ] = "metadata.jsonl",
    images_dir: Annotated[
        str | None, typer.Option(help="folder with your photographs, else that of config.yaml")
    ] = None,
    config_files: Annotated[list[Path] | None, typer.Option("--config", metavar="FILE", help="settings file")] = None,
) -> None:
    """Copy the pictures that are learnt, with their captions as other tools read them, into a folder of its own."""
    from lace_lora import annotate, caption_export

    settings = declared.load(*(config_files or declared.found()), images_dir=images_dir)
    settled = _looked_at(settings)
    names = annotate.planned(settled, _say)
    written = caption_export.write(settled.images_dir, names, kind, to=to, say=_say)
    print(f"{len(names)} pictures with captions: {written}")


@verb("plan", plan_command.SWITCHES, plan_command.TEXTS)
def plan(config: Config, json: bool, compare: list[str], gpu: str | None) -> None:
    """Say what will run, what every stage needs, how long it takes and what it costs, before anything is downloaded."""
    plan_command.run(config, json, compare, gpu, lambda: _planned(config))


@verb("selftest", {}, selftest_command.TEXTS)
def selftest(config: Config, json: list[str] | None) -> None:
    """Try the whole job on this machine in a few steps: encode, train, be killed, resume, draw; say what works."""
    selftest_command.run(config, json, _say)


@verb("train")
def train(config: Config) -> None:
    """Learn the style of the pictures; called again, it goes on where it stopped."""
    from lace_lora import launch
    from lace_lora import train as room

    _open(config)
    adapter = room.run(config, say=_say)
    if launch.tells():
        print(adapter)
    if not adapter.is_complete and not launch.is_worker():
        raise KeyboardInterrupt  # stopped and saved: a script must not take it for finished


@verb("cancel")
def cancel(config: Config) -> None:
    """Stop the training that a place elsewhere (backend) does for this run."""
    cancel_command.run(_open(config.model_copy(update={"preset": "none"})), _say)


@verb("generate")
def generate(config: Config) -> None:
    """Draw new designs in the style that was learnt, and refine them; called again, it makes what is missing."""
    from lace_lora import inference as room

    _open(config)
    designs = room.run(config, say=_say)
    print(f"{len(designs)} designs in {designs.folder.root}" if designs else "no designs yet")
    if designs.owed:
        raise MachineError(f"Not all of the designs are on Drive; they are in {designs.folder.root}: see above.")
    if not designs.is_complete:
        raise KeyboardInterrupt  # stopped and saved: a script must not take it for finished


GRID = {
    "words": typer.Argument(metavar="PROMPT…", help="what to draw, else the first of prompts or the instance prompt"),
    "scales": typer.Option(metavar="NUMBERS", help="lora_scale from left to right, such as 0,0.5,1; 0 is the base"),
    "steps": typer.Option(metavar="NUMBERS", help="checkpoints by their step; without it all that are kept"),
    "seeds": typer.Option(metavar="NUMBERS", help="seeds that every checkpoint draws; without it the setting seed"),
}
ONLY_COMPARE = {"compare": "instead one strip: the base model above the finished LoRA, at three seeds or at --seeds"}


@verb("grid", ONLY_COMPARE, GRID)
def grid(
    config: Config, words: list[str], scales: list[str], steps: list[str], seeds: list[str], compare: bool
) -> None:
    """Draw every checkpoint at every strength, all on one page; called again, it makes what is missing."""
    from lace_lora import grid as room

    _open(config)
    drawn_from = room.numbers("seeds", seeds, int)
    if compare and (scales or steps):
        raise SettingsError("--compare takes no --scales and no --steps; --lora-scale sets the strength.")
    if compare:
        room.compare(config, words or (), drawn_from, say=_say)
        return
    strengths, chosen = room.numbers("scales", scales, float), room.numbers("steps", steps, int)
    if not room.run(config, words or (), drawn_from, strengths or room.SCALES, chosen or None, say=_say).is_complete:
        raise KeyboardInterrupt


STARS = {"designs": typer.Argument(metavar="SHEET/NUMBER…", help="such as sheet/3; none lists all favourites")}


@verb("star", {"off": "take the stars away"}, STARS)
def star(config: Config, designs: list[str], off: bool) -> None:
    """Mark designs as favourites, for favourites_of; without a name, list those of every sheet."""
    from lace_lora import machine, presets, stars
    from lace_lora.run_folder import RunFolder

    settled = presets.settle(config, machine.Machine.here(config.drive_mount_path)).config
    print(*stars.set_all(RunFolder.of(settled), designs or [], on=not off), sep="\n")


@verb("evaluate")
def evaluate(config: Config) -> None:
    """Measure a run: is it good, and is it new? Writes scores.json and report.html; called again, it goes on."""
    from lace_lora import evaluate as room

    _open(config)
    found = room.run(config, say=_say)
    print(found)
    if not found.is_complete:
        raise KeyboardInterrupt


@verb("report")
def report(config: Config) -> None:
    """Write the page about a run, report.html, from what its folder holds."""
    from lace_lora import evaluate as room
    from lace_lora.run_folder import RunFolder

    print(f"Open {room.write_report(RunFolder.of(_open(config)))} to see everything on one page.")


@verb("demo")
def demo(config: Config) -> None:
    """Run the whole job in minutes with the miniature model that ships: no GPU, no download, no photographs."""
    from lace_lora.demo import job

    page = job.run(config, _say)
    if page.is_dir():  # stopped before there was a page to write
        raise KeyboardInterrupt


app.command()(batch_command.notebooks)
runs_command.add_to(verb, lambda config: _open(config))
share_command.add_to(verb, lambda config: _open(config), lambda line: _say(line))
verb("serve", {}, serve_command.SERVE)(serve_command.serve)
verb("space", {}, serve_command.SPACE)(serve_command.space)
app.command()(claims_command.claims)
app.command()(frames_command.frames)
app.command()(text_command.text)


@app.command()
def presets() -> None:
    """List the presets that ship, each with what it is for."""
    from lace_lora import presets as room

    print("auto: chosen for this machine, and said by the command plan\nnone: no preset")
    for name in room.names():
        print(f"{name}: {room.read(name).about}")


@app.command()
def settings(
    yaml: Annotated[bool, typer.Option("--yaml", help="as the config.yaml that ships (so without an option)")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="as the tables of documentation.md")] = False,
) -> None:
    """Print every setting with its default, bounds and meaning."""
    if yaml and markdown:
        raise SettingsError("Choose one of --yaml and --markdown.")
    print(options.table() if markdown else config_text.shipped_yaml(), end="")


def _open(config: Config) -> Config:
    """Mount Drive where it is wanted, and say on stderr, in a frame, when it is the demo that will run."""
    from lace_lora import banner, colab, machine, presets

    folders = (config.images_dir, config.lora_output_dir)
    if machine.in_colab() and any(Path(folder).is_relative_to(config.drive_mount_path) for folder in folders):
        print(colab.mount_drive(config.drive_mount_path)[1], file=sys.stderr)
    settled = presets.settle(config, machine.Machine.here(config.drive_mount_path, config.lora_output_dir))
    if settled.banner:
        print(banner.framed(settled.banner), file=sys.stderr)
    return settled.config


def _looked_at(config: Config) -> Config:
    from lace_lora import estimate

    _open(config)
    return estimate.for_looking(config, say=_say)


def _planned(config: Config) -> "Plan":
    from lace_lora import estimate

    _open(config)
    return estimate.foresee(config)


def _say(line: str) -> None:
    """Print what a room says, but for the banner, which stands in its frame already."""
    from lace_lora.presets import DEMO_BANNER

    if line != DEMO_BANNER:
        print(line, flush=True)


def _commands() -> list[str]:
    return [str(command.name or getattr(command.callback, "__name__", "")) for command in app.registered_commands]


def _failed(sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    from lace_lora import launch

    print(f"{launch.FAILED if launch.is_worker() else ''}{sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    door()
