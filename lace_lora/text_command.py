"""The command `text`: small language adapters (text to CAD JSON, text to DOT, and back) by the same few words.

    lace-lora text recipes | plan | train | evaluate | generate | check   RECIPE

One command with a verb of its own, because nothing of it takes the settings of the pictures: its values are a recipe's.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lace_lora.declarations import nearest
from lace_lora.errors import RunError, SettingsError, TextError

if TYPE_CHECKING:
    from lace_lora.recipe import Recipe
    from lace_lora.text_models import Loaded
    from lace_lora.text_request import Request


def text(
    verb: Annotated[str, typer.Argument(metavar="VERB", help="recipes, plan, train, evaluate, generate or check")],
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="cad, dot, or a folder with your recipe.yaml")] = "",
    words: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT…", help="generate: what to write; check: files")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="JSONL file of pairs, else the examples")] = None,
    direction: Annotated[str, typer.Option("--direction", metavar="WAY", help="forward, or back to text")] = "forward",
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="where runs are kept")] = Path("text_output"),
    run_name: Annotated[str, typer.Option("--run_name", metavar="NAME", help="else the recipe's name")] = "",
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="a value of the recipe; may be repeated")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")] = False,
) -> None:
    """Adapters of a small language model: words to CAD documents or DOT graphs, and back; by recipe."""
    known = list(VERBS)
    if verb not in VERBS:
        raise SettingsError(f"No verb {verb!r}{nearest(verb, known)} There are: {', '.join(known)}.")
    if verb != "recipes" and not recipe:
        raise SettingsError(f"Name a recipe, such as: lace-lora text {verb} dot (lace-lora text recipes lists them)")
    from lace_lora import text_request

    asked = text_request.Request.of(recipe, direction, data, output, run_name, text_request.changes(values or []))
    VERBS[verb](asked, words or [])


def _recipes(asked: "Request", words: Sequence[str]) -> None:
    from lace_lora import recipe as recipes

    for name in recipes.names():
        print(f"{name}: {recipes.read(name).about}")


def _plan(asked: "Request", words: Sequence[str]) -> None:
    _settled(asked)
    print(asked.plan())


def _train(asked: "Request", words: Sequence[str]) -> None:
    from lace_lora import text as room

    adapter = room.run(_settled(asked), asked.folder, asked.data, direction=asked.direction, say=_say)
    print(adapter)
    if not adapter.is_complete:
        raise KeyboardInterrupt  # stopped and saved: a script must not take it for finished


def _evaluate(asked: "Request", words: Sequence[str]) -> None:
    from lace_lora import text_report, text_scores

    found = text_scores.run(asked.folder, asked.kept(), say=_say)
    print(found)
    print(f"Open {text_report.write(asked.folder)} to see everything on one page.")
    if missed := text_scores.missed(found):
        raise RunError(f"{len(missed)} of the targets are missed. {'; '.join(missed)}.")


def _generate(asked: "Request", words: Sequence[str]) -> None:
    if not words:
        raise SettingsError(f'Say what to write: lace-lora text generate {asked.recipe} "a disc of 40 mm, 3 mm thick"')
    loaded = _loaded(asked)
    wrong = 0
    for one in loaded.writer(asked.direction).write(list(words)):
        print(one.text)
        for issue in one.issues:
            print(f"! {issue}", file=sys.stderr)
        wrong += not one.is_valid
    if wrong:
        raise TextError(f"{wrong} of {len(words)} answers are not valid after {loaded.recipe.attempts} attempts.")


def _check(asked: "Request", words: Sequence[str]) -> None:
    """Documents in files, each with what is wrong with it."""
    from lace_lora import recipe as recipes
    from lace_lora import validate

    if not words:
        raise SettingsError(f"Name files to check, such as: lace-lora text check {asked.recipe} part.json")
    validator = validate.validator(recipes.read(asked.recipe, asked.values))
    wrong = 0
    for name in words:
        try:
            checked = validator.check(Path(name).expanduser().read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"{name} cannot be read ({error}).") from error
        print(f"{name}: {'right' if checked.is_valid else f'{len(checked.issues)} wrong'}")
        for issue in checked.issues:
            print(f"  {issue}")
        wrong += not checked.is_valid
    if wrong:
        raise TextError(f"{wrong} of {len(words)} documents are not right.")


def _loaded(asked: "Request") -> "Loaded":
    from lace_lora import text_models

    return text_models.load(asked.folder, recipe=asked.kept())


def _settled(asked: "Request") -> "Recipe":
    """The recipe that runs here; says, in a frame, when it is the demo."""
    from lace_lora import banner

    found, notice = asked.settled()
    if notice:
        print(banner.framed(notice), file=sys.stderr)
    return found


def _say(line: str) -> None:
    print(line, flush=True)


VERBS: dict[str, Callable[["Request", Sequence[str]], None]] = {
    "recipes": _recipes,
    "plan": _plan,
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "check": _check,
}
