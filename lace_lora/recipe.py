"""What a text adapter is made from, as data: a folder with recipe.yaml, and beside it a schema or grammar and examples.

A trade (CAD documents, DOT graphs) is such a folder; another one is made by copying it and changing its files. Values
that mean the same as a setting of the pictures have its name (config.py): rank, learning_rate, train_batch_size …
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lace_lora.declarations import nearest
from lace_lora.errors import SettingsError

FOLDER = Path(__file__).parent / "recipes"
FILE, SCHEMA, GRAMMAR, EXAMPLES = "recipe.yaml", "schema.json", "grammar.ebnf", "examples.jsonl"
DEMO = "demo"  # as base_model: a tiny model that is made on the spot, for a machine without a GPU

Direction = Literal["forward", "back"]
R = TypeVar("R", bound="Recipe")
Kept = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))


class Fields(BaseModel):
    """Which names the rows of a JSONL file have.

    input, output  the text that is read, and the document that is to be written
    kind           what sort of pair it is, such as code or text; "" where rows have none
    group          what is held out together, such as a graph that is described twice; "" is the document itself
    graph_type     the type that scores are told apart by, such as FSM; "" where there is none
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: str
    output: str
    kind: str = ""
    group: str = ""
    graph_type: str = ""


class Rules(BaseModel):
    """What documents must keep to, beside their schema or grammar. `check` names the rules of validate.RULES."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    check: tuple[str, ...] = ()
    parts_in: str = Field("operations", description="the list that a document is made of")
    kind_of_part: str = Field("op", description="the name, in each part, that says what it is")
    units: str = "m"
    frames: tuple[str, ...] = ("world", "part", "sketch")
    order: tuple[str, ...] = ()
    decimals: int = Field(6, ge=0, le=12)
    largest: float = Field(10.0, gt=0, description="the largest size that is reasonable, in units")


class Recipe(BaseModel):
    """Everything that decides what a text adapter learns and how it writes. Nothing ever changes one."""

    model_config = Kept
    name: str = Field(min_length=1)
    about: str
    document: Literal["json", "dot"] = Field(description="what is written: a JSON document or a DOT graph")
    # -- words --
    base_model: str = Field(description="a model of the Hugging Face hub or a folder; demo is made on the spot")
    base_models: tuple[str, ...] = Field((), description="others that are known to suit")
    system_prompt: str
    system_prompt_back: str = Field("", description="of the other direction, from document to text")
    fields: Fields
    # -- data --
    max_samples: int | None = Field(None, ge=1)
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    kinds: tuple[str, ...] = Field((), description="only pairs of these kinds; none are all")
    # -- adapter --
    rank: int = Field(16, ge=1, le=128)
    alpha: int = Field(16, ge=1, le=256)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_targets: tuple[str, ...] = Field(min_length=1)
    # -- training --
    seed: int = Field(0, ge=0)
    quantization: Literal["nf4", "none"] = "nf4"
    optimizer: Literal["paged_adamw8bit", "adamw"] = "paged_adamw8bit"
    learning_rate: float = Field(2e-4, gt=0, le=0.1)
    lr_scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    lr_warmup_ratio: float = Field(0.03, ge=0, le=0.5)
    max_length: int = Field(2048, ge=64, le=32768, description="tokens of one conversation")
    train_batch_size: int = Field(1, ge=1)
    gradient_accumulation_steps: int = Field(8, ge=1)
    num_train_epochs: int = Field(3, ge=1)
    max_train_steps: int | None = Field(None, ge=1, description="instead of num_train_epochs")
    validate_every: int = Field(20, ge=1, description="steps; a checkpoint is kept then, too")
    early_stopping_patience: int = Field(3, ge=0, description="looks without progress; 0 never stops early")
    checkpoints_to_keep: int = Field(2, ge=1)
    # -- writing --
    constraint: Literal["schema", "grammar", "none"] = "schema"
    max_new_tokens: int = Field(1200, ge=1)
    temperature: float = Field(0.0, ge=0, le=10)
    attempts: int = Field(3, ge=1, le=10)
    num_evaluated: int = Field(20, ge=1, description="held-out pairs that an evaluation answers")
    # -- judging --
    rules: Rules
    targets: dict[str, float] = Field(default_factory=dict, description="id of a score and its lowest good value")
    where: Path = Field(FOLDER, exclude=True)  # the recipe's own folder

    @cached_property
    def schema_(self) -> dict[str, Any]:
        """The JSON schema beside recipe.yaml; {} where there is none."""
        path = self.where / SCHEMA
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise SettingsError(f"{path} is no JSON ({error}). Mend it, or copy the recipe's folder anew.") from error
        if not isinstance(found, dict):
            raise SettingsError(f"{path} is no JSON schema: it must be an object in braces {{ }}.")
        return found

    @cached_property
    def grammar(self) -> str:
        """The grammar beside recipe.yaml, in the EBNF that xgrammar reads; "" where there is none."""
        path = self.where / GRAMMAR
        try:
            return path.read_text(encoding="utf-8-sig") if path.is_file() else ""
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path} is no UTF-8 text. Mend it, or copy the recipe's folder anew.") from error

    @property
    def examples(self) -> Path:
        """The pairs that come with the recipe."""
        return self.where / EXAMPLES

    def prompt_of(self, direction: Direction) -> str:
        """What the model is told to be. Raises SettingsError where the recipe knows no way back."""
        if direction == "back" and not self.system_prompt_back:
            raise SettingsError(f"The recipe {self.name} has no system_prompt_back, so it knows no way back to text.")
        return self.system_prompt if direction == "forward" else self.system_prompt_back

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values, checked as those of the file are; `rules.units` reaches into rules or fields."""
        data = self.model_dump()
        for name, value in values.items():
            outer, dot, inner = name.partition(".")
            if dot and isinstance(data.get(outer), dict):
                data[outer] = data[outer] | {inner: value}
            else:
                data[name] = value
        return _checked(type(self), data | {"where": self.where}, "--set")


def names() -> list[str]:
    """The recipes that ship."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{FILE}"))


def read(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name, or of a folder of your own, with other values where `changes` gives them.

    Raises SettingsError for an unknown recipe or value (with the nearest one), or one that is out of its bounds.
    """
    folder = FOLDER / name if str(name) in names() else Path(name).expanduser()
    path = folder if folder.name == FILE else folder / FILE
    if not path.is_file():
        known = ", ".join(names())
        raise SettingsError(
            f"No recipe called {str(name)!r}{nearest(str(name), names())} There are: {known}; or name a folder of "
            f"yours that holds {FILE}."
        )
    data = mapping_of(path)
    recipe = _checked(Recipe, {"name": path.parent.name} | data | {"where": path.parent}, str(path))
    return recipe.changed(changes) if changes else recipe


def mapping_of(path: Path) -> dict[str, Any]:
    """The names and values in a YAML file. Raises SettingsError where there are none."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path} holds no recipe: each line must read `name: value`.")
    return data


def value_of(text: str) -> Any:
    """A value as it is typed on a command line, read as YAML reads it; 1e-4 is a number here too."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def to_yaml(recipe: Recipe) -> str:
    """All values of a recipe, for the run's folder."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _checked(model: type[R], data: Mapping[str, Any], place: str) -> R:
    try:
        return model.model_validate(_listed(data))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            outer = problem["loc"][0] if len(problem["loc"]) > 1 else ""
            inner: dict[str, type[BaseModel]] = {"fields": Fields, "rules": Rules}
            known = inner.get(str(outer), Recipe).model_fields
            if problem["type"] == "extra_forbidden":
                lines.append(f"no value called {where!r}{nearest(str(problem['loc'][-1]), list(known))}")
            elif problem["type"] == "missing":
                lines.append(f"{where} is missing.")
            else:
                lines.append(f"{where} is {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}.")
        raise SettingsError(f"{place}: {' '.join(lines)}") from None


def _listed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A single word where a list stands, as it is typed on a command line: lora_targets=q_proj,v_proj."""
    lists = {name for name, field in Recipe.model_fields.items() if "tuple" in str(field.annotation)}
    return {
        name: [word.strip() for word in value.split(",") if word.strip()]
        if name in lists and isinstance(value, str)
        else value
        for name, value in data.items()
    }
