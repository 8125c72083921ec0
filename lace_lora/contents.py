"""What the folder of a run holds, here or on Drive: asked of the files alone, so that a copy can be told from another.

Every function lets an OSError through: what cannot be asked must not count as missing.
"""

import json
from pathlib import Path
from typing import Any

from lace_lora import checkpoint
from lace_lora.run_folder import RunFolder


def facts(run: RunFolder) -> dict[str, Any]:
    """run.json; empty where there is none, or none that can be read."""
    return json_in(run.record)


def json_in(path: Path) -> dict[str, Any]:
    """What a .json file holds by name; empty where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records are of the same training: begun with the same settings and pictures, at the same time."""
    return all(one.get(name) == other.get(name) for name in ("id", "started"))


def holds_run(run: RunFolder) -> bool:
    """Whether anything of a training is there."""
    return checkpoint.size_of(run.record) is not None or checkpoint.size_of(run.log) is not None or has_learnt(run)


def has_learnt(run: RunFolder) -> bool:
    """Whether a training kept anything of what it learnt."""
    files = (run.adapter_weights, run.adapter_for_tools)  # the latter alone where it was trained elsewhere
    return bool(checkpoint.numbered(run.checkpoints)) or any(checkpoint.size_of(one) is not None for one in files)


def newest_step(run: RunFolder) -> int:
    """The step of the newest whole checkpoint; 0 without one."""
    newest, _ = checkpoint.newest(run.checkpoints)
    return 0 if newest is None else checkpoint.number_in(newest.name) or 0


def last_step(log: Path) -> int:
    """The last step whose loss is logged; 0 without one."""
    rows = [] if checkpoint.size_of(log) is None else checkpoint.read_json_lines(log)
    return max((int(row["step"]) for row in rows if "loss" in row and "step" in row), default=0)


def best_step(log: Path, until: int) -> int | None:
    """The step of the lowest validation loss up to a step; looks whose loss was no number do not count."""
    looks = [row for row in checkpoint.read_json_lines(log) if row.get("val_loss") is not None]
    rows = [row for row in looks if 0 < row.get("step", 0) <= until]
    return int(min(rows, key=lambda row: row["val_loss"])["step"]) if rows else None
