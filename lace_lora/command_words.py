"""A command line's words as typer reads them, and what was wrong with one of them, in a sentence."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from lace_lora import config as declared
from lace_lora.errors import NotebookError, SettingsError

PROGRAM = "lace-lora"
# What makes a function a command, by its name, switches and texts (main.verb); rooms of commands are handed it.
Verb = Callable[..., Callable[[Callable[..., None]], Callable[..., None]]]
MODES = {"train": "train", "inference": "generate"}  # `--mode`, and the command that it stands for
ABOUT_ITSELF = ("--help", "-h", "--version")  # options that stand without a command


def rewritten(words: list[str], commands: Sequence[str]) -> list[str]:
    """The line as typer reads it: `--mode train` is the command train, and `-p name value` one option with one value.

    Raises SettingsError for a mode or a command that does not exist, with the nearest one, and for none at all.
    """
    words = _with_command_for_mode(words)
    if words and words[0].startswith("-") and words[0] not in ABOUT_ITSELF:
        command = next((word for word in words if word in commands), "train")
        line = shlex.join([PROGRAM, command, *(word for word in words if word != command)])
        raise SettingsError(f"Name a command first, such as: {line}")
    if words and not words[0].startswith("-") and words[0] not in commands:
        near = declared.nearest(words[0], commands)
        raise SettingsError(f"No command {words[0]!r}{near} There are: {', '.join(commands)}.")
    if words[:1] == ["notebooks"]:
        rest = iter(words)
        words = [part for word in rest for part in _paired(word, rest)]
    return _with_true(words) or ["--help"]


def usage_sentence(error: Exception, words: Sequence[str]) -> str:
    """What was wrong with the line, the nearest option, and where the options are listed."""
    line = " ".join([PROGRAM, *(word for word in words[:1] if not word.startswith("-"))])
    said = getattr(error, "format_message", error.__str__)().rstrip(".")
    option, context = str(getattr(error, "option_name", "")), getattr(error, "ctx", None)
    if type(error).__name__ == "NoSuchOption" and context:
        known = [name for parameter in context.command.params for name in parameter.opts]
        name = f"--{option.lstrip('-').replace('-', '_')}" if option.startswith("--") else option
        said = f"no option {option}{declared.nearest(name, known)}".rstrip(".")
    elif type(error).__name__ == "BadOptionUsage":
        said = f"{option} needs a value"
    return f"{line}: {said}{'' if said.endswith('?') else '.'} ({line} --help lists the options.)"


def _with_true(words: list[str]) -> list[str]:
    """A setting that is on or off may stand without a value, as a switch: --use-dora is --use-dora true."""
    switches = {name for name, field in declared.Config.model_fields.items() if isinstance(field.default, bool)}
    found: list[str] = []
    for word, after in zip_longest(words, words[1:], fillvalue="--"):
        is_switch = word.startswith("--") and word[2:].replace("-", "_") in switches
        found += [word, "true"] if is_switch and after.startswith("-") else [word]
    return found


def _with_command_for_mode(words: list[str]) -> list[str]:
    place = next((place for place, word in enumerate(words) if word.partition("=")[0] == "--mode"), None)
    if place is None or not words[0].startswith("-"):
        return words
    _, equals, mode = words[place].partition("=")
    after = place + 1 if equals else place + 2
    mode = mode if equals else "".join(words[place + 1 : after])
    if mode not in MODES:
        raise SettingsError(f"--mode is {mode!r} but must be train or inference.")
    return [MODES[mode], *words[:place], *words[after:]]


def _paired(word: str, rest: Iterator[str]) -> list[str]:
    """`-p name value`, as papermill writes it, as `-p name=value`; every other word as it is."""
    if word not in ("-p", "--parameter"):
        return [word]
    name = next(rest, None)
    value = next(rest, None) if name and "=" not in name else ""
    if name is None or value is None:
        raise NotebookError(f"{word} needs a name and a value, such as: {word} max_train_steps 20")
    return [word, name if "=" in name else f"{name}={value}"]
