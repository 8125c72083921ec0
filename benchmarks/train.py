"""Our training step against bare loops and against diffusers' script: CPU seconds, FLOPs and live memory of one step.

python -m benchmarks.train --script train_text_to_image_lora_sdxl.py     on a CPU, about half an hour
python -m benchmarks.train --device cuda --size sdxl                     on a GPU: every precision, mode and batch

What is compared is loaded at the same time and makes its steps in turns, so what slows the machine slows all alike; a
ratio is the median of the rounds' ratios. The report and its raw numbers are written to --results.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import hardware, report
from benchmarks.contenders import Contender, Runner, Task, started
from benchmarks.model import SIZES, build, draw_pictures

Row = dict[str, Any]
OURS = "ours"
BARE = ("hand", "peft", "lean")
MODES = ("none", "transformers", "full")


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write the report, anew after each group, so that what is cut short leaves what it has."""
    asked = parser().parse_args(words)
    task = prepare(asked)
    facts = facts_of(asked, task, report.command(sys.argv[1:] if words is None else words))
    target = Path(asked.results) / f"train-{asked.device}-{asked.size}-{facts['date']}"
    on_cpu = for_cpu(asked.dtypes, asked.batches, bool(asked.script))
    rows: list[Row] = []
    for number, group in enumerate(for_gpu(asked.batches) if asked.device == "cuda" else on_cpu):
        found = [row | {"group": number} for row in measure(task, group, asked.rounds)]
        rows += found
        lend_flops(rows)
        for row in found:
            print(report.line(row), flush=True)
        write(target, facts, rows)
    print(f"written: {target.name}.md and .json")


def facts_of(asked: argparse.Namespace, task: Task, command: str) -> dict[str, Any]:
    """What the rows were measured with and on."""
    return {
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": hardware.name(asked.device),
        "versions": hardware.versions(),
        "size": asked.size,
        "side_px": task.side_px,
        "rounds": asked.rounds,
        "threads": asked.threads,
        "script": script_facts(Path(asked.script)) if asked.script else None,
        "matmul_flop_s": hardware.matmul_rate() if asked.device == "cuda" else None,
    }


def write(target: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """The page, and beside it the raw numbers."""
    target.parent.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(facts | {"rows": rows}, indent=1, allow_nan=False)
    target.with_name(f"{target.name}.json").write_text(numbers + "\n", encoding="utf-8")
    target.with_name(f"{target.name}.md").write_text(report.page(facts, rows), encoding="utf-8")


def prepare(asked: argparse.Namespace) -> Task:
    """The model folder and the pictures that all train on."""
    work = Path(asked.work)
    work.mkdir(parents=True, exist_ok=True)
    side = SIZES[asked.size].side_px
    return Task(
        model=str(build(work / asked.size, asked.size, asked.device)),
        pictures=str(draw_pictures(work / f"pictures_{side}", side)),
        work=str(work),
        side_px=side,
        device=asked.device,
        threads=asked.threads,
        script=str(Path(asked.script).resolve()) if asked.script else "",
        extra_packages=str(Path(asked.extra_packages).resolve()) if asked.extra_packages else "",
    )


def for_cpu(dtypes: Sequence[str], batches: Sequence[int], has_script: bool) -> list[list[Contender]]:
    """What stands beside what, for each precision and batch: ours and the bare loops; ours and the script, both ways.

    At most five in a group, since all of it is in memory together.
    """
    groups = []
    for dtype in dtypes:
        for batch in batches:
            loops = [*BARE, *(["peft-autocast"] if dtype != "fp32" else []), OURS]
            groups.append([Contender(loop, dtype, batch) for loop in loops])
            if has_script:
                ways = [(loop, mode) for mode in ("none", "full") for loop in (OURS, "diffusers")]
                groups.append([Contender(loop, dtype, batch, mode) for loop, mode in ways])
    return groups


def for_gpu(batches: Sequence[int]) -> list[list[Contender]]:
    """Ours alone: every precision, batch, checkpointing and compiling."""
    return [
        [Contender(OURS, dtype, batch, mode, compiled)]
        for dtype in ("bf16", "fp16", "nf4")
        for batch in batches
        for mode in MODES
        for compiled in ("none", "blocks")
    ]


def measure(task: Task, group: Sequence[Contender], rounds: int) -> list[Row]:
    """One row for each of a group: its rounds of seconds, FLOPs, bytes; `error` where one could not run."""
    for folder in ("runs", "diffusers"):
        shutil.rmtree(Path(task.work) / folder, ignore_errors=True)
    rows: list[Row] = [asdict(contender) | {"name": contender.name} for contender in group]
    with ExitStack() as stack:
        runners: list[tuple[Row, Runner]] = []
        for row, contender in zip(rows, group, strict=True):
            try:
                runners.append((row, stack.enter_context(started(task, contender))))
            except RuntimeError as error:  # out of memory, most often: a result too
                row["error"] = _last_words(error)
        try:
            _fill(rows=runners, rounds=rounds, device=task.device)
        except RuntimeError as error:  # one that fails in its rounds leaves the others without equal rounds
            for row in rows:
                if "data_mb" not in row:
                    row.setdefault("error", f"the group was given up: {_last_words(error)}")
    if task.device == "cuda":
        for row in rows:
            row["predicted"] = predicted(task, row)
    return rows


def _fill(rows: Sequence[tuple[Row, Runner]], rounds: int, device: str) -> None:
    """Rounds in turns, each begun by another one, and a pass of its own for everything else."""
    seconds: dict[str, list[dict[str, float]]] = {row["name"]: [] for row, _ in rows}
    for number in range(rounds if rows else 0):
        first = number % len(rows)
        for row, runner in (*rows[first:], *rows[:first]):
            seconds[row["name"]].append(runner.ask("seconds"))
    for row, runner in rows:
        row |= {kind: [one[kind] for one in seconds[row["name"]]] for kind in ("cpu_s", "clock_s")}
        row |= runner.ask("vram" if device == "cuda" else "memory")
    for row, runner in rows:
        # What is compiled is not seen by the counter, and would be traced anew under it.
        if row["compile"] == "none":
            with suppress(RuntimeError):  # the pass that counts needs more memory than the step: see lend_flops
                row |= runner.ask("flops")


def lend_flops(rows: Sequence[Row]) -> None:
    """Give a step that was not counted the FLOPs of the same work: precision and compiling change nothing in them."""

    def work(row: Row) -> tuple[str, int, str]:
        return row["loop"], row["batch"], row["checkpointing"]

    counted = {work(row): row["gflop"] for row in rows if row.get("gflop")}
    for row in rows:
        if "error" not in row and not row.get("gflop"):
            row["gflop"] = counted.get(work(row))


def script_facts(script: Path) -> dict[str, str]:
    """Which version of diffusers' script was measured: the version that it asks for, and its digest."""
    text = script.read_text(encoding="utf-8")
    asked = re.search(r'^check_min_version\("([^"]+)"\)', text, re.M)
    return {"asks for": asked[1] if asked else "no version", "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _last_words(error: Exception) -> str:
    """The last line of what a process said, with folders cut to their last name, for a cell of a table."""
    return re.sub(r"(?<![\w.])(/[^/\s'\"]+)+/", "", str(error).splitlines()[-1]).replace("|", "/")[:160]


def predicted(task: Task, row: Row) -> dict[str, float | None]:
    """GiB that PyTorch holds at most, and seconds a step, as the plan would say; None where it knows no speed."""
    from lace_lora import coefficients, config, stage_needs
    from lace_lora.machine import Machine

    settings = config.load(
        preset="none", resolution=task.side_px, train_batch_size=row["batch"], rank=task.rank, alpha=task.rank,
        gradient_accumulation_steps=1, max_train_steps=1, gradient_checkpointing=row["checkpointing"],
        quantization="nf4" if row["dtype"] == "nf4" else "none", num_processes=1, validate_every=0,
    )  # fmt: skip
    precision = "bf16" if row["dtype"] == "nf4" else row["dtype"]
    job = stage_needs.Job(settings, 1, Machine.here(), precision, coefficients.of(settings.pretrained_model))
    return {"gib": stage_needs.training_gib(job), "seconds": stage_needs.train(job).seconds}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description="Measure one training step.")
    parser.add_argument(
        "--script", default="", help="diffusers' train_text_to_image_lora_sdxl.py of the installed version"
    )
    parser.add_argument("--extra-packages", default="", help="a folder with `datasets`, where it is not installed")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="on a CPU")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each")
    parser.add_argument("--threads", type=int, default=1, help="of each process, on a CPU")
    parser.add_argument("--work", default="benchmark_work", help="a folder for the model, the pictures and logs")
    parser.add_argument("--results", default=str(Path(__file__).parent / "results"))
    return parser


if __name__ == "__main__":
    main()
