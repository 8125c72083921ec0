"""What a text adapter's training will take, said before anything is downloaded: arithmetic and planning figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lace_lora import recipe as recipes
from lace_lora.machine import Machine
from lace_lora.recipe import Recipe

DEMO = "demo.yaml"  # for all recipes; one beside a recipe.yaml goes before it
# Layers of known models: (blocks, width, width of keys and values, width of the inner layer), from their config.json.
SHAPES = {
    "microsoft/Phi-3-mini-4k-instruct": (32, 3072, 3072, 8192),
    "meta-llama/Llama-3.2-3B-Instruct": (28, 3072, 1024, 8192),
    "Qwen/Qwen2.5-1.5B-Instruct": (28, 1536, 256, 8960),
    "google/gemma-2b-it": (18, 2048, 256, 16384),
    "microsoft/phi-2": (32, 2560, 2560, 10240),
}
# Planning figures, not measurements: up to so many samples, minutes, GB of GPU memory.
TIERS = ((100, (10, 30), (8, 12)), (1000, (60, 180), (12, 16)), (math.inf, (480, 1440), (16, 40)))
DEMO_BANNER = (
    "DEMO — no GPU was found, so a tiny language model that is made on the spot is used. It shows the whole job in "
    "minutes: it learns how a document looks, and hardly which word belongs where.\n"
    "To use {model}: in Colab choose Runtime → Change runtime type → a GPU."
)


@dataclass(frozen=True)
class TextPlan:
    """What will run.

    steps           optimizer updates
    adapter_mb      size of the adapter's file; None for a model whose shape is not known here
    minutes, vram_gb  planning figures (from, to) for so many pairs; None for the demo
    """

    recipe: Recipe
    pairs: int
    steps: int
    why_steps: str
    adapter_mb: float | None
    minutes: tuple[int, int] | None
    vram_gb: tuple[int, int] | None
    machine: Machine = field(repr=False)

    @property
    def fits(self) -> bool:
        """Whether this machine's GPU has at least the least of the figure; a machine without one fits the demo only."""
        return self.vram_gb is None or self.machine.vram_gb >= self.vram_gb[0]

    def __str__(self) -> str:
        found, batch = self.recipe, self.recipe.train_batch_size * self.recipe.gradient_accumulation_steps
        rows = [
            ("recipe", f"{found.name}: {found.about}"),
            ("base model", f"{found.base_model}, quantization {found.quantization}"),
            ("adapter", f"rank {found.rank}, alpha {found.alpha}, lora_dropout {found.lora_dropout:g}, {_size(self)}"),
            ("", f"lora_targets {', '.join(found.lora_targets)}"),
            ("training", f"{self.steps} steps of {batch} pairs ({self.why_steps})"),
            ("", f"learning_rate {found.learning_rate:g}, {found.lr_scheduler}, lr_warmup_ratio "
                 f"{found.lr_warmup_ratio:g}, optimizer {found.optimizer}, max_length {found.max_length}"),
            ("", f"a look at held-out pairs every {found.validate_every} steps, early_stopping_patience "
                 f"{found.early_stopping_patience}"),
            ("writing", f"constraint {found.constraint}, up to {found.attempts} attempts, temperature "
                        f"{found.temperature:g}"),
        ]  # fmt: skip
        if self.minutes and self.vram_gb:
            figures = f"{_hours(self.minutes)}, {self.vram_gb[0]} to {self.vram_gb[1]} GB of GPU memory"
            rows.append(("needs", f"{figures} for {self.pairs} pairs (planning figures, not measurements)"))
        if not self.fits:
            have = f"{self.machine.vram_gb:.0f} GB" if self.machine.gpu_name else "no GPU"
            rows.append(
                (
                    "! memory",
                    f"this machine has {have}. Next to try: max_length 1024, train_batch_size 1, a smaller model",
                )
            )
        return "\n".join(f"{name:<11} {text}" for name, text in rows)


def settled(recipe: Recipe, machine: Machine, chosen: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe that runs on this machine, and a banner where it is the demo's; values in `chosen` stay.

    Without a GPU, and where the base model is no folder here, demo.yaml takes the place of the recipe's own values:
    that of all recipes, and before it one that lies beside the recipe.yaml.
    """
    is_here = Path(recipe.base_model).expanduser().is_dir()
    if recipe.base_model != recipes.DEMO and (machine.gpu_name is not None or is_here):
        return recipe, ""
    if "base_model" in chosen and recipe.base_model != recipes.DEMO:
        return recipe, ""
    values: dict[str, Any] = {}
    for path in (recipes.FOLDER / DEMO, recipe.where / DEMO):
        if path.is_file():
            values |= recipes.mapping_of(path)
    used = {name: value for name, value in values.items() if name not in chosen}
    banner = "" if recipe.base_model == recipes.DEMO else DEMO_BANNER.format(model=recipe.base_model)
    return recipe.changed(used), banner


def plan(recipe: Recipe, pairs: int, machine: Machine) -> TextPlan:
    """What training on so many learnt pairs takes."""
    steps, why = steps_of(recipe, pairs)
    is_demo = recipe.base_model == recipes.DEMO
    minutes, vram = next((minutes, vram) for most, minutes, vram in TIERS if pairs <= most)
    return TextPlan(
        recipe, pairs, steps, why, adapter_mb(recipe), None if is_demo else minutes, None if is_demo else vram, machine
    )


def steps_of(recipe: Recipe, pairs: int) -> tuple[int, str]:
    """Optimizer updates for so many pairs, and why."""
    if recipe.max_train_steps is not None:
        return recipe.max_train_steps, "max_train_steps"
    batches = math.ceil(pairs / recipe.train_batch_size)
    an_epoch = math.ceil(batches / recipe.gradient_accumulation_steps)
    return an_epoch * recipe.num_train_epochs, f"{recipe.num_train_epochs} epochs of {pairs} pairs"


def adapter_mb(recipe: Recipe) -> float | None:
    """The adapter's file in MB: rank × (in + out) float32 numbers a layer; None for a shape that is not known here."""
    if recipe.base_model not in SHAPES:
        return None
    blocks, width, keys, inner = SHAPES[recipe.base_model]
    ends = {
        "q_proj": 2 * width, "o_proj": 2 * width, "k_proj": width + keys, "v_proj": width + keys,
        "gate_proj": width + inner, "up_proj": width + inner, "down_proj": width + inner,
    }  # fmt: skip
    numbers = blocks * recipe.rank * sum(ends.get(name, 0) for name in recipe.lora_targets)
    return numbers * 4 / 1e6


def _size(found: TextPlan) -> str:
    return "its size depends on the model" if found.adapter_mb is None else f"about {found.adapter_mb:.0f} MB"


def _hours(minutes: tuple[int, int]) -> str:
    low, high = minutes
    return f"{low} to {high} min" if high < 60 else f"{low / 60:.0f} to {high / 60:.0f} h"
