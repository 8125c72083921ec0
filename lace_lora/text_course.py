"""The course of a text adapter's training, as TRL's trainer tells it: logged, looked at, kept, and stopped in time.

The trainer writes its checkpoints file by file; here each becomes complete or absent, and is resumed only when whole.
"""

import os
import shutil
from pathlib import Path
from time import perf_counter
from typing import Any

from lace_lora import checkpoint
from lace_lora.counting import seconds_in_words
from lace_lora.families.quiet import quiet
from lace_lora.journal import Journal
from lace_lora.machine import GIB
from lace_lora.mirror import Mirror
from lace_lora.recipe import Recipe
from lace_lora.stopping import Stop
from lace_lora.text_folder import TextFolder

with quiet():
    import torch
    from transformers import TrainerCallback

LINES_A_RUN = 12


class Course(TrainerCallback):
    """What happens between the steps. The names of its methods are those that transformers calls."""

    def __init__(
        self, folder: TextFolder, record: Journal, recipe: Recipe, total: int, stop: Stop, say: Any, drive: Mirror
    ) -> None:
        self.folder, self.record, self.recipe, self.total = folder, record, recipe, total
        self.stop, self.say, self.drive, self.began = stop, say, drive, perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock of a step."""
        self.began = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """A request to stop is met between two steps, and what was learnt is kept."""
        if self.stop.asked:
            control.should_training_stop = control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """A line of log.jsonl for each step."""
        if not logs or "loss" not in logs:
            return
        step = int(state.global_step)
        row = {
            "step": step, "loss": float(logs["loss"]), "lr": float(logs.get("learning_rate", 0.0)),
            "seconds": round(perf_counter() - self.began, 4), "epoch": round(float(state.epoch or 0.0), 4),
        }  # fmt: skip
        self.record.add([row], self.total, peak_vram_gb())
        self.drive.deliver_progress()
        every = max(1, -(-self.total // LINES_A_RUN))
        if step in (1, self.total) or step % every == 0:
            left = seconds_in_words(self.record.seconds_left(step, self.total))
            pace = f"{self.record.seconds_a_step():.2f} s each  {left} left"
            self.say(f"step {step:>{len(str(self.total))}}/{self.total}  loss {self.record.recent_loss():.4f}  {pace}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any) -> Any:
        """A look at the held-out pairs: noted, and the end where there was no progress for long enough."""
        loss, step = (metrics or {}).get("eval_loss"), int(state.global_step)
        if loss is None or any(row["step"] == step for row in self.record.looks):
            return control
        before = [row["val_loss"] for row in self.record.looks if row["step"] > 0]
        is_best = step > 0 and (not before or loss < min(before))
        self.record.add_look({"step": step, "val_loss": float(loss), "is_best": is_best})
        self.record.resume_clock()
        self.say(f"held out    loss {loss:.4f} at step {step}{', the best so far' if is_best else ''}")
        if step < self.total and self.has_lost_patience():
            control.should_training_stop = True
        return control

    def has_lost_patience(self) -> bool:
        """Whether there were as many looks without progress as the recipe allows; then it is noted and said."""
        looks, best, patience = self.record.looks, self.record.best_step(), self.recipe.early_stopping_patience
        since = sum(row["step"] > (best or 0) for row in looks)
        if not patience or best is None or since < patience:
            return False
        self.record.facts["stopped_early_at"] = looks[-1]["step"]
        self.say(f"stopped     early: no progress since step {best}")
        return True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What the trainer has just written becomes a checkpoint that is whole, and older ones go."""
        step = int(state.global_step)
        written = Path(args.output_dir) / f"checkpoint-{step}"
        kept = self.folder.run.checkpoint(step)
        checkpoint.save_folder(kept, lambda partial: _moved(written, partial))
        shutil.rmtree(written, ignore_errors=True)
        best = self.record.best_step()
        checkpoint.prune(
            self.folder.run.checkpoints, self.recipe.checkpoints_to_keep, kept,
            best=None if best is None else self.folder.run.checkpoint(best),
        )  # fmt: skip
        self.drive.deliver()
        self.record.resume_clock()


def peak_vram_gb() -> float | None:
    """The most GPU memory that was used so far; None without a GPU."""
    return round(torch.cuda.max_memory_allocated() / GIB, 2) if torch.cuda.is_available() else None


def _moved(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        os.replace(path, target / path.name)
