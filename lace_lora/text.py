"""Train a text adapter: `run(recipe, folder)` does it all, in the order in which it reads.

Pairs of texts, a small language model in 4 bits, a LoRA on it, TRL's SFTTrainer; the loss is on the answers alone.
Whatever cuts a run off, the same call goes on from the last checkpoint. The image side never needs this room.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lace_lora import (
    checkpoint,
    constraint,
    dialogues,
    journal,
    language_models,
    lock,
    mirror,
    stopping,
    text_course,
    text_plan,
)
from lace_lora import validate as validation
from lace_lora.config import Config
from lace_lora.dialogues import Pair, Pairs
from lace_lora.errors import AdapterError, LaceError, MachineError, RunError, TextError
from lace_lora.families.quiet import quiet
from lace_lora.journal import Journal
from lace_lora.machine import Machine, is_out_of_memory
from lace_lora.recipe import Direction, Recipe
from lace_lora.text_folder import TextFolder

with quiet():
    import torch
    from safetensors.torch import load_file

Say = Callable[[str], None]

PACKAGES = ("trl", "datasets")
DRIVE, CACHE = (str(Config.model_fields[name].default) for name in ("drive_mount_path", "cache_dir"))
# What decides no number of the training, and may change while a run goes on.
FREE = {
    "about", "base_models", "max_train_steps", "num_train_epochs", "checkpoints_to_keep", "early_stopping_patience",
    "constraint", "max_new_tokens", "temperature", "attempts", "num_evaluated", "rules", "targets",
}  # fmt: skip
SAVES_MEMORY = ("activation_checkpointing", "gradient_checkpointing")
STOPPING = "Stopping after this step; what was learnt is kept."


@dataclass(frozen=True)
class TextAdapter:
    """A finished adapter: where it is, and what adapter.json says of it."""

    folder: TextFolder
    card: Mapping[str, Any]

    @property
    def is_complete(self) -> bool:
        """Whether its training came to its end."""
        return bool(self.card.get("is_complete"))

    def __str__(self) -> str:
        size = (checkpoint.size_of(self.folder.adapter_weights) or 0) / 1e6
        rows = [
            ("adapter", f"{self.folder.run.adapter} ({size:.1f} MB)"),
            ("base model", self.card.get("base_model")),
            ("learnt", f"{self.card.get('recipe')}, {self.card.get('direction')}, {self.card.get('pairs')} pairs"),
            ("steps", f"{self.card.get('step')}; its weights are those of step {self.card.get('best_step')}"),
        ]
        return "\n".join(f"{name:<11} {value}" for name, value in rows)


def run(
    recipe: Recipe,
    folder: Path,
    data: Path | None = None,
    *,
    direction: Direction = "forward",
    drive_mount_path: str = DRIVE,
    cache_dir: str = CACHE,
    say: Say = print,
) -> TextAdapter:
    """Train an adapter and return it; called again, go on where it stopped.

    folder     the run's own folder; one on Drive is written below cache_dir first, and copied
    data       a JSONL file of pairs, else the recipe's own examples
    direction  forward: from text to document; back: from document to text

    A first interrupt finishes the step, saves, and returns the adapter as far as it is, with is_complete False. Raises
    a LaceError that says what to do where a run cannot begin or go on; what was saved before stays.
    """
    trainers = _trl()
    recipe.prompt_of(direction)
    pairs = dialogues.read(data or recipe.examples, recipe, validation.validator(recipe))
    plan = text_plan.plan(recipe, len(pairs.learnt), Machine.here())
    say(f"{pairs}\n{plan}")
    if direction == "forward":
        for note in constraint.notes(recipe, {pair.line: pair.document for pair in pairs.learnt}):
            say(f"! {note}")
    TextFolder(folder).run.create()
    with lock.lock(folder, say):
        drive = mirror.Mirror.of(TextFolder(folder).run, drive_mount_path, cache_dir, say)
        drive.bring()
        place = TextFolder(drive.local.create().root)
        record = _opened(place, folder, recipe, pairs, direction, plan.steps)
        if record.is_finished and place.is_whole:
            drive.finish()  # the one before may have been cut off while it copied
            say(f"{folder.name} is finished: {record.facts['step']} steps are made.")
            return load(folder)
        place.keep_recipe(recipe)
        dialogues.write(place.pairs, pairs)
        with _told(record, drive), stopping.on_request(say, STOPPING) as stop:
            course = text_course.Course(place, record, recipe, plan.steps, stop, say, drive)
            _train(place, recipe, pairs, direction, plan.steps, record, trainers, course, say)
        drive.finish()
    return load(folder)


def load(folder: Path) -> TextAdapter:
    """The finished adapter of a run. Raises AdapterError where there is none, or it is damaged."""
    place = TextFolder(folder)
    problem = checkpoint.problem_of(place.run.adapter) if place.run.adapter.is_dir() else "it is not there"
    if problem:
        raise AdapterError(
            f"{place.run.adapter} holds no whole text adapter: {problem}. Train it: lace-lora text train"
        )
    return TextAdapter(place, json.loads(place.run.adapter_card.read_text(encoding="utf-8")))


# -- inside --


def _train(
    place: TextFolder, recipe: Recipe, pairs: Pairs, direction: Direction, total: int, record: Journal,
    trainers: Any, course: text_course.Course, say: Say,
) -> None:  # fmt: skip
    """The training itself."""
    # Load: the base model, frozen, and its words.
    record.tell("preparing")
    model, words, how = language_models.load(recipe)
    say(f"base model  {recipe.base_model}, {how}")
    targets, notes = language_models.targets_of(model, recipe.lora_targets)
    for note in notes:
        say(f"! {note}")

    pairs = _short_enough(pairs, recipe, direction, words, say)

    # Resume: from the newest checkpoint that is whole.
    found, passed = checkpoint.newest(place.run.checkpoints)
    for note in passed:
        say(note)
    checkpoint.set_aside_after(place.run.checkpoints, found)
    shutil.rmtree(place.working, ignore_errors=True)
    start = 0 if found is None else checkpoint.number_in(found.name) or 0
    record.begin_at(start)
    if start:
        say(f"resumed     after step {start}")

    # Train: TRL's trainer, with looks at the held-out pairs, and checkpoints that are whole.
    trainer = _trainer(place, recipe, pairs, direction, total, model, words, targets, trainers, course)
    with quiet():
        if start == 0 and pairs.held_out:
            trainer.evaluate()
        record.resume_clock()
        if start < total and not course.has_lost_patience():
            trainer.train(resume_from_checkpoint=None if found is None else str(found))

    # Save: the weights of the best look, or the last ones. run.json is only written now and then.
    record.facts["step"] = max(start, int(trainer.state.global_step))
    card = _card(recipe, pairs, direction, record, targets, total)
    _save(place, trainer.model, card)
    shutil.rmtree(place.working, ignore_errors=True)
    is_complete = bool(card["is_complete"])
    record.tell("finished" if is_complete else "stopped", peak_vram_gb=text_course.peak_vram_gb(), eta_seconds=0)


def _short_enough(pairs: Pairs, recipe: Recipe, direction: Direction, words: Any, say: Say) -> Pairs:
    """The pairs whose conversation fits max_length: the trainer would cut the end off the others without a word."""

    def tokens(pair: Pair) -> int:
        row = dialogues.row_of(pair, recipe, direction, words)
        said = words.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
        return len(words(said, add_special_tokens=False)["input_ids"])

    lengths = {pair: tokens(pair) for pair in (*pairs.learnt, *pairs.held_out)}
    long = [pair for pair, length in lengths.items() if length > recipe.max_length]
    if long:
        told = ", ".join(f"line {pair.line}: {lengths[pair]}" for pair in long[: dialogues.SHOWN])
        say(f"! {len(long)} of {len(lengths)} pairs have more than max_length {recipe.max_length} tokens and are left "
            f"out ({told})")  # fmt: skip
    learnt, held_out = (
        tuple(pair for pair in part if lengths[pair] <= recipe.max_length) for part in (pairs.learnt, pairs.held_out)
    )
    if not learnt:
        raise TextError(
            f"No pair fits max_length {recipe.max_length} tokens; the shortest has {min(lengths.values())}. Set "
            "max_length higher, under another run_name."
        )
    return replace(pairs, learnt=learnt, held_out=held_out)


def _trainer(
    place: TextFolder, recipe: Recipe, pairs: Pairs, direction: Direction, total: int, model: Any, words: Any,
    targets: Sequence[str], trainers: Any, course: text_course.Course,
) -> Any:  # fmt: skip
    """TRL's trainer with the recipe's values; what is trained is float32, whatever the base is in."""
    import datasets
    from peft import LoraConfig

    def table(part: Sequence[Pair]) -> Any:
        return datasets.Dataset.from_list([dialogues.row_of(pair, recipe, direction, words) for pair in part])

    has_gpu = next(model.parameters()).is_cuda
    precision = Machine.here().precision()[0] if has_gpu else "fp32"
    looks = "steps" if pairs.held_out else "no"
    # transformers 6 gives it another name; TRL switches it on where nobody says no.
    saves_memory = next(name for name in SAVES_MEMORY if name in trainers.SFTConfig.__dataclass_fields__)
    with quiet():
        settings = trainers.SFTConfig(
            output_dir=str(place.working), max_steps=total, max_length=recipe.max_length, completion_only_loss=True,
            per_device_train_batch_size=recipe.train_batch_size, per_device_eval_batch_size=recipe.train_batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            learning_rate=recipe.learning_rate, lr_scheduler_type=recipe.lr_scheduler,
            warmup_steps=round(recipe.lr_warmup_ratio * total), seed=recipe.seed, data_seed=recipe.seed,
            optim="paged_adamw_8bit" if has_gpu and recipe.optimizer == "paged_adamw8bit" else "adamw_torch",
            bf16=precision == "bf16", fp16=precision == "fp16", use_cpu=not has_gpu, dataloader_pin_memory=has_gpu,
            eval_strategy=looks, eval_steps=recipe.validate_every, save_strategy="steps",
            save_steps=recipe.validate_every, logging_steps=1, report_to="none", disable_tqdm=True,
            **{saves_memory: has_gpu},
        )  # fmt: skip
    lora = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.lora_dropout, target_modules=list(targets),
        bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    datasets.disable_progress_bars()
    # The adapter's first weights are drawn by chance: the same for the same seed, whatever ran before.
    torch.manual_seed(recipe.seed)
    with quiet():
        trainer = trainers.SFTTrainer(
            model=model, args=settings, train_dataset=table(pairs.learnt),
            eval_dataset=table(pairs.held_out) if pairs.held_out else None, processing_class=words, peft_config=lora,
            callbacks=[course],
        )  # fmt: skip
    _quieten(trainer)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _quieten(trainer: Any) -> None:
    """Progress is told by the course; the trainer's own printer would say it again."""
    with quiet():
        from transformers import PrinterCallback
    trainer.remove_callback(PrinterCallback)


def _save(place: TextFolder, model: Any, card: dict[str, Any]) -> None:
    """Write the adapter's folder, complete or absent."""
    from peft import set_peft_model_state_dict

    best = place.run.checkpoint(card["best_step"])
    if (
        checkpoint.problem_of(best) is None
    ):  # what the model has may be later weights, or none of a run that was cut off
        set_peft_model_state_dict(model, load_file(best / place.adapter_weights.name))

    def write(partial: Path) -> None:
        model.save_pretrained(partial, safe_serialization=True)
        for extra in ("README.md", "training_args.bin"):
            (partial / extra).unlink(missing_ok=True)
        config = partial / "adapter_config.json"
        values = json.loads(config.read_text(encoding="utf-8"))
        values["target_modules"] = sorted(values["target_modules"])  # a set: its order changes with each run
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        sums = {place.adapter_weights.name: checkpoint.sha256(partial / place.adapter_weights.name)}
        text = json.dumps(card | {"sha256": sums}, indent=2, ensure_ascii=False)
        (partial / place.run.adapter_card.name).write_text(text + "\n", encoding="utf-8")

    checkpoint.save_folder(place.run.adapter, write)


def _card(
    recipe: Recipe, pairs: Pairs, direction: Direction, record: Journal, targets: Sequence[str], total: int
) -> dict[str, Any]:
    step = int(record.facts["step"])
    early = record.facts.get("stopped_early_at") is not None
    return {
        "kind": "text", "recipe": recipe.name, "direction": direction, "base_model": recipe.base_model,
        "rank": recipe.rank, "alpha": recipe.alpha, "lora_targets": list(targets), "step": step,
        "best_step": record.best_step() or step, "is_complete": early or step >= total,
        "pairs": len(pairs.learnt), "held_out": len(pairs.held_out), "data_digest": record.facts["data_digest"],
        "settings_digest": record.facts["id"], "versions": record.facts["versions"],
    }  # fmt: skip


def _opened(place: TextFolder, root: Path, recipe: Recipe, pairs: Pairs, direction: Direction, total: int) -> Journal:
    """The journal of a new run, or of the one there, which is kept in `root`.

    Raises RunError naming what differs from how it was begun.
    """
    wanted = {name: value for name, value in recipe.model_dump(mode="json").items() if name not in FREE}
    wanted |= {"direction": direction}
    earlier = _earlier(place) if journal.has_learnt(place.run) or place.is_whole else {}
    if earlier:
        before = earlier["settings"]
        changed = [
            f"{name} {before.get(name)} → {value}" for name, value in wanted.items() if before.get(name) != value
        ]
        changed += ["the pairs"] if earlier.get("data_digest") != pairs.digest else []
        if changed:
            raise RunError(
                f"{root} holds a run that was begun differently: {', '.join(changed)}. Choose another run_name "
                f"to train anew, or put back what was changed. Free to change are: {', '.join(sorted(FREE))}."
            )
    digest = hashlib.sha256((json.dumps(wanted, sort_keys=True) + pairs.digest).encode()).hexdigest()
    begun = {"id": digest, "state": "new", "step": 0, "started": datetime.now(UTC).isoformat(timespec="seconds")}
    kept = {name: earlier[name] for name in begun if name in earlier}
    facts = begun | kept | {
        "kind": "text", "run_name": place.run.name, "total": total, "settings": wanted, "data_digest": pairs.digest,
        "versions": journal.versions() | _versions(), "loss": earlier.get("loss"),
        "stopped_early_at": earlier.get("stopped_early_at"),
    }  # fmt: skip
    return Journal(place.run, facts)


def _earlier(place: TextFolder) -> dict[str, Any]:
    try:
        found = json.loads(place.run.record.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and "settings" in found else {}
    except (OSError, ValueError):
        return {}


@contextmanager
def _told(record: Journal, drive: mirror.Mirror) -> Iterator[None]:
    """Keep run.json true when something ends the run, and turn running out of memory into a sentence.

    Whatever ends it, what is finished is handed to Drive.
    """
    try:
        yield
    except KeyboardInterrupt:
        record.tell("stopped")
        raise
    except LaceError as error:
        _failed(record, str(error))
        raise
    except Exception as error:
        sentence = OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        _failed(record, sentence)
        if not is_out_of_memory(error):
            raise
        raise MachineError(sentence) from error
    finally:
        drive.deliver()


OUT_OF_MEMORY = (
    "The GPU ran out of memory. Next to try, under another run_name: max_length 1024; train_batch_size 1 with more "
    "gradient_accumulation_steps; or a smaller base_model."
)


def _failed(record: Journal, sentence: str) -> None:
    with suppress(LaceError):
        record.tell("failed", error=sentence)


def _versions() -> dict[str, str]:
    found = {}
    for name in (*PACKAGES, "xgrammar"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _trl() -> Any:
    """TRL, or a MachineError with what to install."""
    try:
        with quiet():
            import datasets  # noqa: F401
            import trl
    except ImportError as error:
        raise MachineError(
            f"Training a text adapter needs the packages {' and '.join(PACKAGES)} ({error}). "
            "Type: pip install 'lace-lora[text]', or run the notebook's install cell."
        ) from error
    return trl
