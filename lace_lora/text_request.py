"""What is asked of a text adapter, at the command line or in a notebook: a recipe, a direction, and where it goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lace_lora import dialogues, machine, text_plan, validate
from lace_lora import recipe as recipes
from lace_lora.errors import RunError, SettingsError
from lace_lora.recipe import Direction, Recipe
from lace_lora.text_folder import TextFolder

OUTPUT = "text_output"
BACK = "-back"  # in the name of a run of the other direction


@dataclass(frozen=True)
class Request:
    """One request.

    recipe    cad, dot, or a folder with a recipe.yaml
    data      a JSONL file of pairs, else the recipe's own examples
    output    the folder that holds the runs
    run_name  else the recipe's name
    values    of the recipe, by name, in place of those in its file
    """

    recipe: str
    direction: Direction = "forward"
    data: Path | None = None
    output: Path = Path(OUTPUT)
    run_name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, recipe: str, direction: str = "forward", data: str | Path | None = None, output: str | Path | None = None,
        run_name: str | None = None, values: Mapping[str, Any] | None = None,
    ) -> "Request":  # fmt: skip
        """From what was typed. Raises SettingsError for a direction that there is not."""
        if direction not in ("forward", "back"):
            raise SettingsError(f"direction is {direction!r} but must be forward or back.")
        place = Path(output or OUTPUT).expanduser()
        found = Path(data).expanduser() if data else None
        return cls(recipe, cast(Direction, direction), found, place, run_name or "", values or {})

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        way = BACK if self.direction == "back" else ""
        return self.output / (self.run_name or f"{Path(self.recipe).name}{way}")

    def settled(self) -> tuple[Recipe, str]:
        """The recipe that runs on this machine, and a banner where it is the demo's."""
        return text_plan.settled(recipes.read(self.recipe, self.values), machine.Machine.here(), self.values)

    def plan(self) -> str:
        """The pairs, and what training on them takes."""
        found, _ = self.settled()
        pairs = dialogues.read(self.data or found.examples, found, validate.validator(found))
        return f"{pairs}\n{text_plan.plan(found, len(pairs.learnt), machine.Machine.here())}"

    def kept(self) -> Recipe:
        """The recipe of a run that is there, with the values that were typed. Raises RunError where there is none."""
        place = TextFolder(self.folder)
        if not place.recipe.is_file():
            raise RunError(f"There is no run {self.folder}. Train it: lace-lora text train {self.recipe}")
        found = place.read_recipe()
        return found.changed(self.values) if self.values else found


def changes(values: Sequence[str]) -> dict[str, Any]:
    """`name=value` words as names with values. Raises SettingsError for a word without =."""
    found = {}
    for word in values:
        name, equals, value = word.partition("=")
        if not equals:
            raise SettingsError(f"--set needs a name and a value, such as: --set rank=8 (it was given {word!r})")
        found[name.strip()] = recipes.value_of(value)
    return found
