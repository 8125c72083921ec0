"""Predicted against measured: bytes of live tensors and seconds of a training step, on a CPU.

python -m benchmarks.plan                    the demo model and one of SDXL's shape, 57 million parameters; half an hour
python -m benchmarks.plan --models demo      one of them

The plan is asked itself, lace_lora/stage_needs.py, with coefficients that benchmarks/count.py counts on each model's
architecture, as it does for SDXL. Seconds are those of a machine of one core, whose one finished run is known: the
first row of the model, kept as a run keeps it. The others are predicted from it; and, since a person's run may be any,
each row is also predicted from each other one.
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
from lace_lora import figures, stage_needs, throughput
from lace_lora.coefficients import Coefficients, shipped
from lace_lora.config import load
from lace_lora.demo import base_dir
from lace_lora.experience import Experience
from lace_lora.machine import Machine
from lace_lora.workload import Job

MEMORY_WITHIN, TIME_WITHIN = 0.10, 0.20
ONE_THREAD: Machine = replace(throughput.machine("cpu"), cpu_cores=1)


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


def run(name: str, settings: Sequence[Setting], work: Path, rounds: int, passes: int) -> list[dict[str, Any]]:
    """A row for each setting of a model."""
    folder, coefficients = _model(name, work)
    jobs = [job_of(setting, coefficients) for setting in settings]
    rows: list[dict[str, Any]] = []
    # One setting after the other and all of them again, so that a while in which others use the machine is not that
    # of a single row; of each the least counts.
    for again in range(passes):
        for at, setting in enumerate(settings):
            pictures = draw_pictures(work / f"pictures_{setting.side_px}", setting.side_px)
            task = Task(str(folder), str(pictures), str(work), setting.side_px, setting.rank, setting.targets)
            one = Contender("ours", setting.dtype, setting.batch, setting.checkpointing)
            seconds, found = measured(task, one, rounds)
            if again:
                rows[at]["seconds"] = min(rows[at]["seconds"], seconds)
                continue
            told = stage_needs.training_gib(jobs[at]) * stage_needs.GIB / 1e6 + found["data_mb"]
            rows.append(asdict(setting) | {
                "model": name, "peak_mb": found["peak_mb"], "predicted_mb": told, "seconds": seconds,
                "gflop": setting.batch * stage_needs.picture_flop(jobs[at]) / 1e9,
            })  # fmt: skip
    for row, job in zip(rows, jobs, strict=True):
        row["predicted_seconds"] = predicted(job, jobs[0], rows[0]["seconds"])
        row["from_each"] = [predicted(job, other, one["seconds"]) for other, one in zip(jobs, rows, strict=True)]
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


def predicted(job: Job, measured_job: Job, measured_seconds: float) -> float:
    """Seconds of a step as the plan tells them after one run of another job, which left its figure."""
    figure = figures.of_stage(measured_job, stage_needs.train(measured_job), measured_seconds)
    seconds = stage_needs.train(replace(job, known=Experience((figure,)))).seconds
    assert seconds is not None  # a figure is known
    return seconds


def job_of(setting: Setting, coefficients: Coefficients) -> Job:
    """The plan's job of one setting."""
    config = load(
        preset="none", resolution=setting.side_px, train_batch_size=setting.batch, rank=setting.rank,
        lora_targets=setting.targets, gradient_checkpointing=setting.checkpointing, quantization="none",
        gradient_accumulation_steps=1, max_train_steps=1, num_processes=1, validate_every=0,
    )  # fmt: skip
    return Job(config, 1, ONE_THREAD, "bf16" if setting.dtype == "bf16" else "fp32", coefficients)


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
    models = [row["model"] for row in rows]
    places = [at - models.index(row["model"]) for at, row in enumerate(rows)]  # among those of its model
    others = [row for row, place in zip(rows, places, strict=True) if place]
    times = [abs(row["predicted_seconds"] / row["seconds"] - 1) for row in others]
    pairs = [abs(told / row["seconds"] - 1) for row, place in zip(rows, places, strict=True)
             for known, told in enumerate(row["from_each"]) if known != place]  # fmt: skip
    return "\n".join([
        "# Predicted against measured", "",
        f"{facts['date']}, {facts['hardware']}, one thread; `{facts['command']}`; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()), "",
        "MB of live tensors at most in a step; CPU seconds of a step, the least of a few rounds, as the plan tells "
        "them after one run. The first row of a model is that run.", "",
        "| model | setting | MB measured | predicted | off by | s measured | predicted | off by |",
        "|---|---|---|---|---|---|---|---|", *map(line, rows), "",
        f"Memory: {_within(memory, MEMORY_WITHIN)}. Time, without the runs that it is predicted from: "
        f"{_within(times, TIME_WITHIN)}. Had another row been the run that is known, of all pairs of rows of a model: "
        f"{_within(pairs, TIME_WITHIN)}.", "",
    ])  # fmt: skip


def _within(off: Sequence[float], limit: float) -> str:
    return f"{sum(one <= limit for one in off)} of {len(off)} within {limit:.0%}, the worst {max(off):.1%}"


def _model(name: str, work: Path) -> tuple[Path, Coefficients]:
    """Its folder, and its coefficients: those that ship, or counted now and kept."""
    if name == "demo":
        return base_dir(), Coefficients(shipped("demo"), px_a_cell=4)
    folder = build(work / name, name)
    kept = work / f"{name}.json"
    if not kept.is_file():
        size = SIZES[name]
        what = replace(count.of_folders(folder, folder, name), refiner=size.refiner)
        kinds = sorted({setting.targets for setting in SMALL})
        kept.write_text(count.as_text(count.counted(what, print, kinds)), encoding="utf-8")
    return folder, Coefficients(json.loads(kept.read_text(encoding="utf-8")))


def main() -> None:
    """Measure and write a page and its numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description="Predicted against measured.")
    parser.add_argument("--models", nargs="+", choices=["demo", "small"], default=["demo", "small"])
    parser.add_argument("--rounds", type=int, default=3, help="of three steps, of which the quickest counts")
    parser.add_argument("--passes", type=int, default=3, help="over all settings, each time as many rounds")
    parser.add_argument("--work", type=Path, default=Path("benchmark_work"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in given.models:
        rows += run(name, DEMO if name == "demo" else SMALL, given.work, given.rounds, given.passes)
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python -m benchmarks.plan --models {' '.join(given.models)} --rounds {given.rounds} "
                   f"--passes {given.passes}",
        "hardware": hardware.name("cpu"), "versions": hardware.versions(),
    }  # fmt: skip
    target = given.results / f"plan-cpu-{facts['date']}"
    target.with_suffix(".json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(page(facts, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
