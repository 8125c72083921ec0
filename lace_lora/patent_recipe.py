"""The patent recipe: what is data in turning claims into prompts, read from the YAML files of recipes/patent.

A folder of your own with files of the same names changes what it names; the rest stays as it ships.
"""

import hashlib
import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from lace_lora.config import nearest
from lace_lora.errors import SettingsError
from lace_lora.file_names import printable

FOLDER = Path(__file__).parent / "recipes/patent"
FILES = ("terms.yaml", "template.yaml", "negative.yaml", "heuristics.yaml")
# What a template may name.
FIELDS = ("category", "main_feature", "details", "claim_id", "patent_id", "figures", "title")


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """All data of the recipe; what each name means stands beside it in the YAML files.

    Lengths are in characters, words or CLIP tokens as their names and files say; luminance is 0..255, shares 0..1.
    """

    terms: Mapping[str, str]
    template: str
    concept_token: str = Field(min_length=1)
    instance_prompt: str = Field(min_length=1)
    class_prompt: str = Field(min_length=1)
    budget: int = Field(ge=8, le=75)
    negative_prompt: str
    negative_by_word: Mapping[str, str]
    language: str = Field(min_length=2, max_length=3)
    least_letters: int = Field(ge=0)
    least_certainty: float = Field(ge=0, le=1)
    longest_claim: int = Field(ge=1)
    longest_feature: int = Field(ge=1)
    claim_words: tuple[str, ...] = Field(min_length=1)
    transitions: tuple[str, ...] = Field(min_length=1)
    ink_below: int = Field(ge=1, le=254)
    paper_above: int = Field(ge=2, le=255)
    most_colour: float = Field(ge=0, le=1)
    colour_step: int = Field(ge=1, le=255)
    most_grey: float = Field(ge=0, le=1)
    darkest_line: int = Field(ge=0, le=255)
    least_ink: float = Field(ge=0, le=1)
    most_ink: float = Field(ge=0, le=1)

    @field_validator("template")
    @classmethod
    def _template(cls, template: str) -> str:
        if fault := template_fault(template):
            raise ValueError(fault)
        return template

    @field_validator("claim_words")
    @classmethod
    def _expressions(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        for one in expressions:
            try:
                re.compile(one)
            except re.error as error:
                raise ValueError(f"{one!r} is no regular expression ({error})") from error
        return expressions

    @property
    def digest(self) -> str:
        """What tells one recipe from another: sha256 of all its data."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def changed(self, **values: Any) -> "Recipe":
        """The same with other values, checked again; None leaves one as it is. Raises SettingsError."""
        given = {name: value for name, value in values.items() if value is not None}
        return of(self.model_dump() | given, "the recipe")


def read(folder: str | Path | None = None) -> Recipe:
    """The recipe that ships, with what the YAML files of a folder change.

    Raises one SettingsError that names every wrong value, or says why a file cannot be read.
    """
    values = {name: value for file in FILES for name, value in _content(FOLDER / file).items()}
    if folder is not None:
        own = Path(folder).expanduser()
        found = [own / file for file in FILES if (own / file).is_file()]
        if not found:
            raise SettingsError(f"There is no recipe in {printable(own)}: it needs one of {', '.join(FILES)}.")
        values |= {name: value for file in found for name, value in _content(file).items()}
    return of(values, printable(folder or FOLDER))


def of(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe of these values; where: what to call their place. Raises SettingsError with all that is wrong."""
    unknown = [name for name in values if name not in Recipe.model_fields]
    faults = [f"no value called {name!r}{nearest(str(name), list(Recipe.model_fields))}" for name in unknown]
    try:
        recipe = Recipe.model_validate({name: value for name, value in values.items() if name not in unknown})
    except ValidationError as error:
        for one in error.errors():
            place = ".".join(map(str, one["loc"]))
            faults.append(f"{place}: {one['msg'].removeprefix('Value error, ')}")
    if faults:
        raise SettingsError(f"{where} is no recipe: {'; '.join(faults)}")
    return recipe


def template_fault(template: str) -> str:
    """Why a template cannot be filled in, or nothing; says which fields there are."""
    known = f"the fields are {', '.join(FIELDS)}"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"the template {template!r} cannot be read ({error}); {known}"
    named = [name for _, name, _, _ in parts if name is not None]
    unknown = [name for name in named if name not in FIELDS]
    if unknown:
        return f"the template has no field {unknown[0]!r}; {known}"
    if any(form or conversion for _, _, form, conversion in parts):
        return f"the template {template!r} formats a field; write its name alone, such as {{category}}; {known}"
    return "" if "main_feature" in named else f"the template does not say {{main_feature}}; {known}"


def _content(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise SettingsError(f"{printable(path)} cannot be read as YAML ({first}). Correct it and run again.") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{printable(path)} must hold names and values, as the file of that name that ships.")
    return values
