"""Predicted against measured: bytes of live tensors and seconds of a training step, on a CPU.

python -m benchmarks.plan                    the demo model and one of SDXL's shape, 57 million parameters; 15 minutes
python -m benchmarks.plan --models demo      one of them

The plan's formulas are those of lace_lora/stage_needs.py, with coefficients that benchmarks/count.py counts on each
model's architecture, as it does for SDXL. Seconds are predicted from the FLOPs and what one calibration tells of the
machine: the time that any step takes and the speed, from the first two rows of the model, a small step and a large one.
"""

import argparse
import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import count, hardware, loops, meters
from benchmarks.contenders import Contender, Task
from benchmarks.model import SIZES, build, draw_pictures
from lace_lora import stage_needs, throughput
from lace_lora.coefficients import Coefficients, shipped
from lace_lora.config import load
from lace_lora.demo import base_dir
from lace_lora.stage_needs import Job

MEMORY_WITHIN, TIME_WITHIN = 0.10, 0.20


@dataclass(frozen=True)
class Setting:
    """What is varied."""

    side_px: int
    batch: int = 1
    rank: int = 16
    targets: str = "attention"
    checkpointing: str = "none"
    dtype: str = "fp32"


DEMO = (
    Setting(96), Setting(96, batch=4), Setting(96, rank=64), Setting(192), Setting(128, batch=2, targets="up_blocks"),
    Setting(192, batch=2, checkpointing="transformers"), Setting(192, batch=2, checkpointing="full"),
    Setting(96, batch=4, targets="attention+ff"), Setting(96, batch=4, targets="attention+ff+conv"),
)  # fmt: skip
SMALL = (
    Setting(256), Setting(512), Setting(512, checkpointing="transformers"), Setting(512, checkpointing="full"),
    Setting(256, batch=4), Setting(512, rank=64), Setting(512, targets="attention+ff"),
)  # fmt: skip


def run(name: str, settings: Sequence[Setting], work: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each setting of a model."""
    folder, coefficients = _model(name, work)
    rows = []
    for setting in settings:
        pictures = draw_pictures(work / f"pictures_{setting.side_px}", setting.side_px)
        task = Task(str(folder), str(pictures), str(work), setting.side_px, setting.rank, setting.targets)
        one = Contender("ours", setting.dtype, setting.batch, setting.checkpointing)
        seconds, found = measured(task, one, rounds)
        job = job_of(setting, coefficients)
        told = stage_needs.training_gib(job) * stage_needs.GIB / 1e6 + found["data_mb"]
        rows.append(asdict(setting) | {
            "model": name, "peak_mb": found["peak_mb"], "predicted_mb": told, "seconds": seconds,
            "gflop": setting.batch * stage_needs.picture_flop(job) / 1e9,
        })  # fmt: skip
    for row in rows:
        row["predicted_seconds"] = predicted(row["gflop"], rows[:2])
        print(line(row), flush=True)
    return rows


def measured(task: Task, contender: Contender, rounds: int) -> tuple[float, dict[str, float]]:
    """CPU seconds of a step, the least of some rounds of three, and bytes of live tensors in one more."""
    steps = loops.LOOPS[contender.loop](task, contender)
    with contextlib.redirect_stdout(io.StringIO()):
        next(steps)  # encodes the pictures, and makes the optimizer's state
    seconds = []
    for _ in range(rounds):
        read = meters.seconds()
        for _ in range(3):
            next(steps)
        seconds.append(read()["cpu_s"] / 3)
    read = meters.memory()
    next(steps)
    found = read()
    steps.close()
    return min(seconds), found


def predicted(gflop: float, calibration: Sequence[dict[str, Any]]) -> float:
    """Seconds of a step: what any step takes, and its FLOPs by the speed, both from a small and a large one."""
    small, large = calibration[0], calibration[-1]
    pace = (large["seconds"] - small["seconds"]) / max(1e-9, large["gflop"] - small["gflop"])
    return float(small["seconds"] + (gflop - small["gflop"]) * pace)


def job_of(setting: Setting, coefficients: Coefficients) -> Job:
    """The plan's job of one setting."""
    config = load(
        preset="none", resolution=setting.side_px, train_batch_size=setting.batch, rank=setting.rank,
        lora_targets=setting.targets, gradient_checkpointing=setting.checkpointing, quantization="none",
        gradient_accumulation_steps=1, max_train_steps=1, num_processes=1, validate_every=0,
    )  # fmt: skip
    return Job(config, 1, throughput.machine("cpu"), "bf16" if setting.dtype == "bf16" else "fp32", coefficients)


def line(row: dict[str, Any]) -> str:
    """A row of the page."""
    memory, time = row["predicted_mb"] / row["peak_mb"] - 1, row["predicted_seconds"] / row["seconds"] - 1
    what = f"{row['side_px']} px, batch {row['batch']}, {row['targets']} r{row['rank']}, {row['checkpointing']}"
    return (
        f"| {row['model']} | {what} | {row['peak_mb']:.0f} | {row['predicted_mb']:.0f} | {memory:+.1%} | "
        f"{row['seconds']:.3f} | {row['predicted_seconds']:.3f} | {time:+.0%} |"
    )


def page(facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The results as a page."""
    memory = [abs(row["predicted_mb"] / row["peak_mb"] - 1) for row in rows]
    times = [abs(row["predicted_seconds"] / row["seconds"] - 1) for row in rows]
    return "\n".join([
        "# Predicted against measured", "",
        f"{facts['date']}, {facts['hardware']}, one thread; `{facts['command']}`; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()), "",
        "MB of live tensors at most in a step; CPU seconds of a step, the least of a few rounds. The first two rows of "
        "a model are its calibration.", "",
        "| model | setting | MB measured | predicted | off by | s measured | predicted | off by |",
        "|---|---|---|---|---|---|---|---|", *map(line, rows), "",
        f"Memory: {sum(one <= MEMORY_WITHIN for one in memory)} of {len(rows)} within {MEMORY_WITHIN:.0%}, the worst "
        f"{max(memory):.1%}. Time: {sum(one <= TIME_WITHIN for one in times)} of {len(rows)} within "
        f"{TIME_WITHIN:.0%}, the worst {max(times):.0%}.", "",
    ])  # fmt: skip


def _model(name: str, work: Path) -> tuple[Path, Coefficients]:
    """Its folder, and its coefficients: those that ship, or counted now and kept."""
    if name == "demo":
        return base_dir(), Coefficients(shipped("demo"), px_a_cell=4)
    folder = build(work / name, name)
    kept = work / f"{name}.json"
    if not kept.is_file():
        size = SIZES[name]
        what = replace(count.of_folders(folder, folder), refiner=size.refiner)
        kinds = sorted({setting.targets for setting in SMALL})
        kept.write_text(count.as_text(count.counted(what, print, kinds)), encoding="utf-8")
    return folder, Coefficients(json.loads(kept.read_text(encoding="utf-8")))


def main() -> None:
    """Measure and write a page and its numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description="Predicted against measured.")
    parser.add_argument("--models", nargs="+", choices=["demo", "small"], default=["demo", "small"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("benchmark_work"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in given.models:
        rows += run(name, DEMO if name == "demo" else SMALL, given.work, given.rounds)
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m benchmarks.plan --models {' '.join(given.models)}",
        "hardware": hardware.name("cpu"), "versions": hardware.versions(),
    }  # fmt: skip
    target = given.results / f"plan-cpu-{facts['date']}"
    target.with_suffix(".json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(page(facts, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
