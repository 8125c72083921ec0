"""What a run tells of itself: run.json with its id, state and progress, and log.jsonl with a line for every step.

The id is the sha256 of the settings that decide the result and of the data: equal settings and pictures give equal ids.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from time import monotonic
from typing import Any

from lace_lora import __version__, checkpoint, contents
from lace_lora import config as settings_of
from lace_lora.config import Config
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder

# What decides the numbers that come out. Not among them: where files are, how memory is saved, the number format (auto
# takes what the GPU has, and a run may go on on another one) and the number of steps, which may be raised to go on.
IDENTITY = (
    "concept_token", "resolution", "crop", "random_flip", "quarter_turns", "dataset_repeats", "validation_fraction",
    "pretrained_model", "vae_model", "quantization", "rank", "alpha", "lora_targets", "use_dora", "use_rslora",
    "train_text_encoder", "learn_concept_token", "seed", "train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler", "lr_warmup_ratio", "optimizer", "max_grad_norm", "loss", "min_snr_gamma",
    "noise_offset", "caption_dropout", "prior_loss_weight",
)  # fmt: skip
WITH_CLASS_PICTURES, WITH_TOKEN, WITH_START = ("class_prompt", "num_class_images"), ("class_prompt",), ("start_from",)
IMPORTED = "imported"  # the state of a run that holds a LoRA made elsewhere
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")
WRITE_EVERY_SECONDS = 2.0  # run.json; Drive is slow with small files
PACES = 20


@dataclass
class Journal:
    """The open record of the run that is going on."""

    folder: RunFolder
    facts: dict[str, Any]
    writes: bool = True  # of several processes only the first one does
    losses: list[float] = field(default_factory=list)
    looks: list[dict[str, Any]] = field(default_factory=list)  # at the held-out pictures
    paces: list[float] = field(default_factory=list)  # seconds a step of the last few whiles of this session
    written_at: float = 0.0
    read_at: float = 0.0
    # What comes up every so many steps and is no part of a step's time: looks, samples, checkpoints; seconds each.
    between: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether all steps that are asked for have been made, or it was found that more would not help."""
        is_early = self.facts.get("stopped_early_at") is not None
        return bool(self.facts["state"] == "finished" and (is_early or self.facts["step"] >= self.facts["total"]))

    def begin_at(self, step: int) -> None:
        """Cut the log back to a step that is resumed from, so that no step stands in it twice."""
        rows = [row for row in checkpoint.read_json_lines(self.folder.log) if row.get("step", 0) <= step]
        if step == 0:
            rows = []
        self.losses = [row["loss"] for row in rows if "loss" in row]
        self.looks = [row for row in rows if "val_loss" in row]
        if self.writes:
            checkpoint.write_text(self.folder.log, "".join(json.dumps(row) + "\n" for row in rows))
        self.read_at = monotonic()
        self.tell("running", step=step, stopped_early_at=None)

    def add(self, rows: Sequence[dict[str, Any]], total: int, peak_vram_gb: float | None) -> None:
        """Log finished steps, and bring run.json up to date now and then."""
        now = monotonic()
        self.paces = [*self.paces, (now - self.read_at) / len(rows)][-PACES:]
        self.read_at = now
        if self.writes:
            checkpoint.append_line(self.folder.log, "\n".join(json.dumps(row) for row in rows))
        self.losses += [row["loss"] for row in rows]
        step = rows[-1]["step"]
        if now - self.written_at < WRITE_EVERY_SECONDS and step < total:
            return
        self.tell(
            "running", step=step, total=total, loss=self.recent_loss(), seconds_per_step=self.seconds_a_step(),
            eta_seconds=round(self.seconds_left(step, total)), peak_vram_gb=peak_vram_gb,
        )  # fmt: skip

    def add_look(self, row: dict[str, Any]) -> None:
        """Log a look at the held-out pictures."""
        self.looks.append(row)
        if self.writes:
            checkpoint.append_line(self.folder.log, json.dumps(row))
            if row["is_best"]:
                checkpoint.write_json(self.folder.best, {"step": row["step"], "val_loss": row["val_loss"]})

    def resume_clock(self) -> None:
        """What was done since the last step (a look, samples, a checkpoint) is no part of the next one's time."""
        self.read_at = monotonic()

    def tell(self, state: str, **changes: Any) -> None:
        """Write run.json with a new state and other changed facts."""
        self.facts |= {"state": state, "updated": _now()} | changes
        percent = 100 * self.facts["step"] / max(1, self.facts["total"])
        if self.writes:
            checkpoint.write_json(self.folder.record, self.facts | {"percent": round(percent, 1)})
        self.written_at = monotonic()

    def best_step(self) -> int | None:
        """The step of the best look so far, or None."""
        later = [row for row in self.looks if row["step"] > 0 and row["val_loss"] is not None]
        return min(later, key=lambda row: row["val_loss"])["step"] if later else None

    def recent_loss(self) -> float | None:
        """Mean of the last 20 losses: single ones jump with their timestep."""
        tail = self.losses[-20:]
        return sum(tail) / len(tail) if tail else None

    def seconds_a_step(self) -> float:
        """The median of the last whiles: a slow first step or a pause does not count."""
        paces = sorted(self.paces)
        return paces[len(paces) // 2] if paces else 0.0

    def seconds_left(self, step: int, total: int) -> float:
        """Seconds until the last step at the present pace, with what comes up between the steps."""
        rest = sum((total // every - step // every) * seconds for every, seconds in self.between.values() if every)
        return self.seconds_a_step() * (total - step) + rest


def settle(asked: Config, planned: Config, folder: RunFolder) -> tuple[Config, list[str]]:
    """The planned settings, but for those that this run began with where nobody asks for others; and a line on these.

    A preset or a plan may choose otherwise in a later session, on another GPU; a run goes on as it began.
    Raises RunError for a folder that holds a LoRA made elsewhere: training would overwrite it.
    """
    if contents.facts(folder).get("state") == IMPORTED:
        raise RunError(
            f"{folder.root} holds a LoRA that was made elsewhere, which training would overwrite. Choose another "
            f"run_name and set start_from {folder.root}: it then learns on from there."
        )
    facts = _read(folder) if has_learnt(folder) else {}
    earlier = dict(facts.get("settings", {}))
    if facts.get("num_train_epochs") == planned.num_train_epochs:
        earlier["max_train_steps"] = facts["total"]
    is_free = {name for name in earlier if name not in asked.given or getattr(asked, name) == "auto"}
    kept = {name: earlier[name] for name in sorted(is_free) if earlier[name] != _value(planned, name)}
    if not kept:
        return planned, []
    listed = ", ".join(f"{name} {value}" for name, value in kept.items())
    return planned.with_preset(kept), [f"this run began with {listed}, and goes on so"]


def open_run(folder: RunFolder, settings: Config, data_digest: str, *, writes: bool = True) -> Journal:
    """The journal of a new run, or of the one that is there already.

    Raises RunError naming the settings that differ, old and new, where the run there was begun with others.
    """
    wanted, earlier = _deciding(settings), _read(folder) if has_learnt(folder) else {}
    if earlier:
        _check_same(folder, earlier, wanted, data_digest)
    text = json.dumps(wanted, sort_keys=True) + data_digest
    begun = {"id": hashlib.sha256(text.encode()).hexdigest(), "state": "new", "step": 0, "started": _now()}
    total = int(settings.max_train_steps)
    kept = {name: earlier[name] for name in begun if name in earlier}
    if total < kept.get("step", 0):
        raise RunError(
            f"{folder.root} has {kept['step']} steps already and max_train_steps is {total}. "
            "Choose another run_name for a shorter training."
        )
    facts = begun | kept | {"run_name": folder.name, "total": total, "settings": wanted, "data_digest": data_digest}
    rest = {"num_train_epochs": settings.num_train_epochs, "versions": versions(), "loss": earlier.get("loss")}
    early = {"stopped_early_at": earlier.get("stopped_early_at")}
    return Journal(folder, facts | rest | early, writes)


def versions() -> dict[str, str]:
    """Versions of what computes, for adapter.json and run.json."""
    found = {"lace_lora": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def has_learnt(folder: RunFolder) -> bool:
    """Whether a run kept anything of its training; a first try that left nothing binds nobody to its settings."""
    is_learnt = folder.adapter_weights.is_file() or folder.adapter_for_tools.is_file()  # the latter alone: elsewhere
    return is_learnt or bool(checkpoint.numbered(folder.checkpoints))


def _deciding(settings: Config) -> dict[str, Any]:
    names = IDENTITY + (WITH_CLASS_PICTURES if settings.prior_loss_weight else ())
    names += WITH_TOKEN if settings.learn_concept_token and not settings.prior_loss_weight else ()
    names += WITH_START if settings.start_from else ()
    return {name: _value(settings, name) for name in names}


def _value(settings: Config, name: str) -> Any:
    return settings.lora_alpha() if name == "alpha" else getattr(settings, name)


def _read(folder: RunFolder) -> dict[str, Any]:
    try:
        facts = json.loads(folder.record.read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) and "settings" in facts else {}
    except (OSError, ValueError):
        return {}


def _check_same(folder: RunFolder, earlier: dict[str, Any], wanted: dict[str, Any], data_digest: str) -> None:
    defaults = {name: field.default for name, field in settings_of.Config.model_fields.items()}
    before = {name: defaults[name] for name in wanted} | earlier["settings"]
    changed = [f"{name} {before.get(name)} → {value}" for name, value in wanted.items() if before.get(name) != value]
    if earlier.get("data_digest") != data_digest:
        changed.append("the pictures or their captions")
    if changed:
        unknown = [name for name in before if name in settings_of.Config.model_fields and name not in wanted]
        changed += [f"{name} no longer used" for name in unknown]
        raise RunError(
            f"{folder.root} holds a run that was begun differently: {', '.join(changed)}. "
            "Choose another run_name to train anew, or put back what was changed to go on. What decides no result may "
            "change on the way: max_train_steps, checkpoint_every, checkpoint_minutes, checkpoints_to_keep, "
            "validate_every, early_stopping_patience, sample_every, mixed_precision, gradient_checkpointing, "
            "attention_backend, compile, num_processes, log_with."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
