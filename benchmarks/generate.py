"""A sheet of 24 designs by stages against diffusers' pipelines: model loads, FLOPs, seconds and memory, side by side.

python -m benchmarks.generate                              on a CPU, about ten minutes
python -m benchmarks.generate --device cuda --size sdxl    on a GPU: SDXL's true sizes, also with model offloading

All ways draw in one process in turns, another one first in each round, and each begins and ends with nothing loaded; so
what slows the machine slows all alike. The report and its raw numbers are written to --results.
"""

import argparse
import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import generate_report, hardware, model, report
from benchmarks.model import SIZES

Row = dict[str, Any]
PROMPT = "a photo of <myspecialstyle> lace, piece {number}"


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    import torch

    from benchmarks import tally, ways

    asked = parser().parse_args(words)
    if asked.device == "cpu":
        torch.set_num_threads(asked.threads)
    sheet = prepare(asked)
    all_ways = (ways.for_gpu if asked.device == "cuda" else ways.for_cpu)(asked.batch, asked.steps)
    wanted = [way for way in all_ways if not asked.ways or way.name in asked.ways]
    facts = {
        "command": report.command(sys.argv[1:] if words is None else words, "benchmarks.generate"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": hardware.name(asked.device),
        "versions": hardware.versions(),
        "threads": asked.threads,
        "device": asked.device,
        "size": asked.size,
        "dtype": sheet.dtype,
        "side_px": sheet.side_px,
        "pictures": asked.pictures,
        "timed": asked.timed or asked.pictures,
        "rounds": asked.rounds,
        "steps": asked.steps,
        "guidance_scale": sheet.guidance_scale,
        "scheduler": sheet.scheduler,
        # What is not fused is computed beside the layers, by those ways that do not fuse.
        "gflop_a_row": tally.gflop_a_row(asked.size, sheet.side_px),
        "gflop_a_row_unfused": tally.gflop_a_row(asked.size, sheet.side_px, model.RANK),
        "sdxl_gflop_a_row": tally.gflop_a_row("sdxl", 1024),
        "sdxl_gflop_a_row_unfused": tally.gflop_a_row("sdxl", 1024, model.RANK),
    }
    rows, facts["load"] = measure(sheet, wanted, asked.rounds, facts["timed"], asked.pictures)
    target = Path(asked.results) / f"generate-{asked.device}-{asked.size}-{facts['date']}"
    target.parent.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(facts | {"rows": rows}, indent=1, allow_nan=False)
    target.with_name(f"{target.name}.json").write_text(numbers + "\n", encoding="utf-8")
    target.with_name(f"{target.name}.md").write_text(generate_report.page(facts, rows), encoding="utf-8")
    print(f"written: {target.name}.md and .json")


def prepare(asked: argparse.Namespace) -> Any:
    """Both model folders and a run with an adapter, and what is to be drawn with them."""
    from benchmarks import ways

    work = Path(asked.work).resolve()
    base = model.build(work / asked.size, asked.size, asked.device)
    refiner = model.build_refiner(work / f"{asked.size}-refiner", asked.size, asked.device)
    model.build_adapter(work / ways.RUN_NAME, base, SIZES[asked.size].side_px)
    return ways.Sheet(
        base=str(base),
        refiner=str(refiner),
        work=str(work),
        prompts=tuple(PROMPT.format(number=number) for number in range(asked.pictures)),
        side_px=asked.side or SIZES[asked.size].side_px,
        steps=asked.steps,
        device=asked.device,
        dtype=asked.dtype or ("fp16" if asked.device == "cuda" else "fp32"),
    )


def measure(sheet: Any, wanted: Sequence[Any], rounds: int, timed: int, pictures: int) -> tuple[list[Row], list[float]]:
    """One row for each way, `error` where it could not run; and the machine's load after each round."""
    from benchmarks import ways

    rows: list[Row] = [
        {
            "name": way.name, "kind": way.kind, "batch": way.batch, "is_fused": way.is_fused or way.kind == "ours",
            "cpu_s": [], "clock_s": [], "peak_vram_gib": 0.0,
        }
        for way in wanted
    ]  # fmt: skip
    pairs = list(zip(rows, wanted, strict=True))
    for row, way in pairs:  # what is only done once: imports, kernels chosen
        _tried(row, lambda way=way: ways.draw(sheet, way, 1))  # type: ignore[misc]
    gc.collect()
    gc.freeze()  # so that giving a model back does not mean looking through all that was imported: 0.4 s each time
    load = []
    for number in range(rounds):
        first = number % max(len(pairs), 1)
        for row, way in (*pairs[first:], *pairs[:first]):
            _tried(row, lambda row=row, way=way: timed_sheet(row, sheet, way, timed))  # type: ignore[misc]
        load.append(round(os.getloadavg()[0], 2))
    for row, way in pairs:
        _tried(row, lambda row=row, way=way: counted_sheet(row, sheet, way, timed, pictures))  # type: ignore[misc]
        print(generate_report.line(row, timed), flush=True)
    return rows, load


def _tried(row: Row, make: Any) -> None:
    """Make it, unless the row has failed before; where it fails, the row says so and the others go on."""
    from lace_lora.errors import LaceError

    if "error" in row:
        return
    try:
        make()
    except (RuntimeError, LaceError) as error:  # out of memory, most often: a result too
        row["error"] = str(error).splitlines()[-1][:160].replace("|", "/")


def timed_sheet(row: Row, sheet: Any, way: Any, count: int) -> None:
    """Seconds of one sheet, and what was loaded and computed meanwhile; on a GPU the most memory too."""
    from benchmarks import meters, tally, ways

    with tally.tally() as found:
        vram = meters.vram() if sheet.device == "cuda" else None
        read = meters.seconds()
        ways.draw(sheet, way, count)
        for kind, value in read().items():
            row[kind].append(value / count)
    if vram:
        row["peak_vram_gib"] = max(row["peak_vram_gib"], vram()["peak_vram_gib"])
    row["rows"] = {part: number / count for part, number in sorted(found.rows.items())}
    row["loads"], row["bytes_read"] = dict(sorted(found.loads.items())), found.bytes_read


def counted_sheet(row: Row, sheet: Any, way: Any, timed: int, pictures: int) -> None:
    """Passes of their own: the loads of a whole sheet, and the memory of a batch or of two pictures.

    Neither depends on the number of steps, nor the loads on the size; so these are few and small.
    """
    from benchmarks import meters, tally, ways

    few, way = replace(sheet, steps=min(10, sheet.steps)), replace(way, refiner_steps=3)
    if pictures != timed:
        with tally.tally() as found:
            ways.draw(replace(few, side_px=64), way, pictures)
        row["loads"], row["bytes_read"] = dict(sorted(found.loads.items())), found.bytes_read
    if sheet.device == "cuda":
        return
    count = max(2, way.batch)
    read = meters.memory()
    ways.draw(few, way, count)
    held = read()
    row["live_mb"] = held["peak_mb"] - held["held_mb"]
    if way.batch == 1 and not way.settings:  # each takes a process that imports everything
        row["rss_mb"] = in_own_process(few, way, count)


def in_own_process(sheet: Any, way: Any, count: int) -> float:
    """MB by which a process grew that has everything imported and then draws: the system's count."""
    context = multiprocessing.get_context("spawn")  # nothing of torch is inherited
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(growth_mb, sheet, way, count).result()


def growth_mb(sheet: Any, way: Any, count: int) -> float:
    """MB that this process holds at most while it draws, beyond what it held at most before."""
    import torch

    from benchmarks import meters, ways

    torch.set_num_threads(1)
    before = meters.most_held_mb()
    ways.draw(sheet, way, count)
    return meters.most_held_mb() - before


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description="Measure a sheet of designs.")
    parser.add_argument("--size", choices=list(SIZES), default="mini")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="", help="fp32 on a CPU, else fp16")
    parser.add_argument("--side", type=int, default=0, help="of a picture in px; the model's own by default")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pictures", type=int, default=24, help="of a sheet: model loads are counted over it")
    parser.add_argument("--timed", type=int, default=0, help="pictures that are drawn in a round; the sheet by default")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once in the ways that draw in batches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=[], help="only these, by the names in the report")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--work", default="benchmark_work", help="a folder for the models, the run and the pictures")
    parser.add_argument("--results", default=str(Path(__file__).parent / "results"))
    return parser


if __name__ == "__main__":
    main()
