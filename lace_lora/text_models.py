"""Trained text adapters on their base model: one, or two directions on one base, switched in milliseconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from lace_lora import language_models, text, validate, writer
from lace_lora.errors import AdapterError
from lace_lora.families.quiet import quiet
from lace_lora.recipe import Direction, Recipe
from lace_lora.text import TextAdapter
from lace_lora.validate import Validator
from lace_lora.writer import Writer

with quiet():
    from peft import PeftModel


# What peft calls the adapter of each direction; it refuses names that a layer has itself, such as forward.
NAMES = {"forward": "to_document", "back": "to_text"}


@dataclass(frozen=True)
class Loaded:
    """A base model with one or more adapters, by their names (the directions): `use` chooses one.

    model, tokenizer  as transformers and peft have them
    adapters          what each is
    """

    model: Any
    tokenizer: Any
    recipe: Recipe
    adapters: Mapping[str, TextAdapter]
    how: str

    @property
    def validator(self) -> Validator:
        """The rules of the recipe."""
        return validate.validator(self.recipe)

    def use(self, direction: Direction) -> float:
        """Switch to the adapter of a direction; the seconds that it took. Raises AdapterError where there is none."""
        if direction not in self.adapters:
            raise AdapterError(f"No adapter for {direction} is loaded; there is {', '.join(self.adapters)}.")
        began = perf_counter()
        self.model.set_adapter(NAMES[direction])
        return perf_counter() - began

    def writer(self, direction: Direction) -> Writer:
        """What writes in a direction; switches to its adapter."""
        self.use(direction)
        return writer.writer(self.model, self.tokenizer, self.recipe, self.validator, direction)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside the block the base model writes, without any adapter."""
        with self.model.disable_adapter():
            yield


def load(folder: Path, *others: Path, recipe: Recipe | None = None, device: str | None = None) -> Loaded:
    """The adapter of a run on its base model, and those of other runs on the same one.

    recipe  instead of the run's own, with other values for writing (constraint, attempts, temperature …)

    Raises AdapterError where a run has no whole adapter, where they are for different base models, or both for one
    direction; ModelError where the base model cannot be had.
    """
    adapters = [text.load(place) for place in (folder, *others)]
    first = adapters[0]
    directions = [str(one.card["direction"]) for one in adapters]
    for one in adapters[1:]:
        if one.card["base_model"] != first.card["base_model"]:
            raise AdapterError(
                f"{one.folder.run.name} was trained on {one.card['base_model']} and {first.folder.run.name} on "
                f"{first.card['base_model']}; only adapters of one base model can be switched."
            )
    if len(set(directions)) < len(directions):
        said = f"Both adapters go {directions[0]}."
        raise AdapterError(f"{said} Train the other direction: lace-lora text train --direction back")
    chosen = recipe or first.folder.read_recipe()
    base, words, how = language_models.load(chosen, device)
    with quiet():
        model = PeftModel.from_pretrained(base, str(first.folder.run.adapter), adapter_name=NAMES[directions[0]])
        for one, name in zip(adapters[1:], directions[1:], strict=True):
            model.load_adapter(str(one.folder.run.adapter), adapter_name=NAMES[name])
    model.requires_grad_(False)
    return Loaded(model.eval(), words, chosen, dict(zip(directions, adapters, strict=True)), how)
