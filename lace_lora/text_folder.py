"""The name of every file of a text adapter's run; what means the same as in a run of pictures has its name there.

<lora_output_dir>/<run_name>/
    recipe.yaml  schema.json  grammar.ebnf  pairs.jsonl  run.json  log.jsonl
    checkpoints/step-000020/  best.json
    adapter/adapter_model.safetensors  adapter/adapter_config.json  adapter/adapter.json
    evaluation/scores.json  evaluation/answers.jsonl
    report.html
"""

from dataclasses import dataclass
from pathlib import Path

from lace_lora import checkpoint, recipe
from lace_lora.recipe import Recipe
from lace_lora.run_folder import RunFolder


@dataclass(frozen=True)
class TextFolder:
    """One run of a text adapter. `run` names what both kinds of runs have."""

    root: Path

    @property
    def run(self) -> RunFolder:
        """The same folder with the names that it shares with a run of pictures."""
        return RunFolder(self.root)

    @property
    def recipe(self) -> Path:
        """All values that it was made with."""
        return self.root / recipe.FILE

    @property
    def pairs(self) -> Path:
        """The pairs that it learnt from and those that were held out, in canonical form."""
        return self.root / "pairs.jsonl"

    @property
    def adapter_weights(self) -> Path:
        """The adapter as peft reads it, beside adapter_config.json."""
        return self.run.adapter / "adapter_model.safetensors"

    @property
    def answers(self) -> Path:
        """What an evaluation had written, one row a pair."""
        return self.run.evaluation / "answers.jsonl"

    @property
    def working(self) -> Path:
        """Where the trainer writes before a checkpoint is whole; gone when nothing is at work."""
        return self.root / f"working{checkpoint.PARTIAL}"  # so that none of it is copied to Drive

    @property
    def is_whole(self) -> bool:
        """Whether there is an adapter, and every file of it is as it was written."""
        return self.adapter_weights.is_file() and checkpoint.problem_of(self.run.adapter) is None

    def keep_recipe(self, found: Recipe) -> None:
        """Write the recipe and what lies beside it, so that the folder stands by itself."""
        checkpoint.write_text(self.recipe, recipe.to_yaml(found))
        beside = [recipe.SCHEMA, recipe.GRAMMAR]
        beside += [recipe.EXAMPLES] if found.base_model == recipe.DEMO else []  # its words are learnt from them
        for name in beside:
            if (found.where / name).is_file() and found.where != self.root:
                checkpoint.write_bytes(self.root / name, (found.where / name).read_bytes())

    def read_recipe(self) -> Recipe:
        """The recipe that the run was made with. Raises SettingsError where there is none."""
        return recipe.read(self.root)
