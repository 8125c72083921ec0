"""A benchmark's rows as a page: what was measured, and whether the targets are reached."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
BARE = ("hand", "peft", "lean", "peft-autocast")
SAME_FLOPS = 1e-3  # how far two counts may lie apart and still be called equal
NEAR = 1.05  # ours may take this much of the leanest bare loop's time
SAME_PEAK = 1e-3  # of the peak: ours holds the tables of the noise schedule too, some 20 kB
FASTER = {"none": 1.25, "full": 1.6}  # than diffusers' script, by its checkpointing
SHARE = 0.45  # of the GPU's matmul rate: bf16, compiled, batch 4


def line(row: Row) -> str:
    """A row while it is measured."""
    if "error" in row:
        return f"{row['name']:<44} {row['error']}"
    seconds = f"{statistics.median(row['cpu_s']):>8.3f} CPU s  {statistics.median(row['clock_s']):>8.3f} s"
    work = f"{row['gflop']:>9.1f} GFLOP" if row.get("gflop") else ""
    memory = f"{row['peak_vram_gib']:>6.1f} GiB" if "peak_vram_gib" in row else f"{row['peak_mb']:>8.0f} MB"
    return f"{row['name']:<44} {seconds}  {work}  {memory}"


def command(words: Sequence[str], program: str = "benchmarks.train") -> str:
    """The command line with folders cut to their last name."""
    return " ".join([f"python -m {program}", *(Path(word).name if "/" in word else word for word in words)])


def page(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The report in Markdown."""
    libraries = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    threads = "" if facts["matmul_flop_s"] else f", {facts['threads']} thread a process"
    parts = [
        f"# One training step, {facts['date']}",
        f"    {facts['command']}",
        f"{facts['hardware']}{threads}. {libraries}.",
        f"Model size `{facts['size']}`, pictures of {facts['side_px']} px, {facts['rounds']} rounds. What each row is, "
        "and how it is measured: benchmarks/README.md.",
    ]
    if facts["script"]:
        asked, digest = facts["script"]["asks for"], facts["script"]["sha256"][:12]
        parts.append(f"diffusers' script: it asks for diffusers {asked} or later; sha256 {digest}….")
    if facts["matmul_flop_s"]:
        rates = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {kind}" for kind, rate in facts["matmul_flop_s"].items())
        parts += [f"Plain matrix products: {rates}.", _gpu_table(facts, rows)]
        targets = list(_gpu_targets(facts, rows))
    else:
        scripts = {row["group"] for row in rows if row["loop"] == "diffusers"}
        parts += ["## Beside bare loops", _bare_table([row for row in rows if row["group"] not in scripts])]
        if scripts:
            parts += ["## Beside diffusers' script", _script_table([row for row in rows if row["group"] in scripts])]
        targets = list(_targets(rows))
    return "\n\n".join([*parts, "## Targets", table("target | precision, batch | measured | reached", targets)]) + "\n"


# -- tables --


def _bare_table(rows: Sequence[Row]) -> str:
    head = (
        "loop | precision | batch | CPU s a step | of the leanest bare loop | GFLOP | live tensors at most, MB | "
        "encoded pictures, MB"
    )
    found = []
    for row in rows:
        first = [row["loop"], row["dtype"], row["batch"]]
        if "error" in row:
            found.append([*first, row["error"], "", "", "", ""])
            continue
        leanest = _leanest(rows, row)
        ratio = told(ratios(row["cpu_s"], leanest["cpu_s"])) if leanest else ""
        found.append([*first, *_numbers(row, ratio), f"{_peak_mb(row):.2f}", f"{row['data_mb']:.1f}"])
    return table(head, found)


def _script_table(rows: Sequence[Row]) -> str:
    head = (
        "loop | precision | batch | checkpointing | CPU s a step | of ours with the same checkpointing | "
        "of ours without | GFLOP | live tensors at most, MB"
    )
    found = []
    for row in rows:
        first = [row["loop"], row["dtype"], row["batch"], row["checkpointing"]]
        if "error" in row:
            found.append([*first, row["error"], "", "", "", ""])
            continue
        same, without = (_ours_beside(rows, row, mode) for mode in (row["checkpointing"], "none"))
        seconds, same_ratio, gflop = _numbers(row, told(ratios(row["cpu_s"], same["cpu_s"])) if same else "")
        ratio = told(ratios(row["cpu_s"], without["cpu_s"])) if without else ""
        found.append([*first, seconds, same_ratio, ratio, gflop, f"{_peak_mb(row):.1f}"])
    return table(head, found)


def _gpu_table(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    head = (
        "precision | batch | checkpointing | compile | s a step | planned, s | pictures a second | peak VRAM, GiB | "
        "planned, GiB | share of the matmul rate"
    )
    found = []
    for row in rows:
        first = [row["dtype"], row["batch"], row["checkpointing"], row["compile"]]
        planned, share = row["predicted"], _share(facts, row)
        planned_s = "not known" if planned["seconds"] is None else f"{planned['seconds']:.2f}"
        if "error" in row:
            found.append([*first, row["error"], planned_s, "", "", f"{planned['gib']:.1f}", ""])
            continue
        seconds = statistics.median(row["clock_s"])
        measured = [f"{seconds:.3f}", planned_s, f"{row['batch'] / seconds:.2f}", f"{row['peak_vram_gib']:.1f}"]
        found.append([*first, *measured, f"{planned['gib']:.1f}", "" if share is None else f"{share:.0%}"])
    return table(head, found)


def table(head: str, rows: Sequence[Sequence[Any]]) -> str:
    """`head` with its columns parted by bars, and the rows under it."""
    rule = "|".join("---" for _ in head.split(" | "))
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {' | '.join(map(str, row))} |" for row in rows)])


# -- targets --


def _targets(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Every promise with what was measured; where a row is missing, none is claimed."""
    for row in rows:
        if row["loop"] != "ours" or row["checkpointing"] != "none" or "error" in row:
            continue
        where = f"{row['dtype']}, {row['batch']}"
        kept = list(_beside_bare(rows, row)) + list(_beside_script(rows, row))
        yield from ([promise, where, measured, "yes" if is_kept else "no"] for promise, measured, is_kept in kept)


def _beside_bare(rows: Sequence[Row], row: Row) -> Iterator[tuple[str, str, bool]]:
    bare = [one for one in _bare(rows, row) if one["loop"] != "peft-autocast"]
    leanest = _leanest(rows, row)
    if not bare or leanest is None:
        return
    if all(one.get("gflop") for one in (row, *bare)):
        flops = max((row["gflop"] / one["gflop"] for one in bare), key=lambda ratio: abs(ratio - 1))
        yield "FLOPs a step equal the bare loops'", f"{flops:.4f}", abs(flops - 1) <= SAME_FLOPS
    time = ratios(row["cpu_s"], leanest["cpu_s"])
    yield f"time within 5 % of the leanest bare loop ({leanest['loop']})", told(time), time[0] <= NEAR
    peak = _peak_mb(row) / min(_peak_mb(one) for one in bare)
    yield "live tensors not above the leanest bare loop's, within 0.1 %", f"{peak:.5f}", peak <= 1 + SAME_PEAK


def _beside_script(rows: Sequence[Row], row: Row) -> Iterator[tuple[str, str, bool]]:
    for one in _beside(rows, row):
        if one["loop"] == "diffusers" and "error" not in one:
            wish = FASTER[one["checkpointing"]]
            way = "without" if one["checkpointing"] == "none" else "with its"
            times = ratios(one["cpu_s"], row["cpu_s"])
            yield f"{wish:g}× faster than diffusers' script {way} checkpointing", told(times, "×"), times[0] >= wish


def _gpu_targets(facts: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[list[str]]:
    for row in rows:
        share = _share(facts, row)
        if (row["dtype"], row["batch"], row["compile"]) == ("bf16", 4, "blocks") and share is not None:
            where = f"bf16, 4, checkpointing {row['checkpointing']}"
            yield [f"{SHARE:.0%} of the matmul rate", where, f"{share:.1%}", "yes" if share >= SHARE else "no"]


# -- numbers --


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mine over theirs, round by round: median, lower and upper quartile."""
    found = [one / other for one, other in zip(mine, theirs, strict=True)]
    if len(found) < 2:
        return found[0], found[0], found[0]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return middle, low, high


def told(ratio: tuple[float, float, float], sign: str = "") -> str:
    """The median, and the quartiles in brackets."""
    middle, low, high = ratio
    return f"{middle:.3f}{sign} ({low:.3f}–{high:.3f})"


def _numbers(row: Row, ratio: str) -> list[str]:
    gflop = row.get("gflop")
    return [f"{statistics.median(row['cpu_s']):.3f}", ratio, "" if gflop is None else f"{gflop:.2f}"]


def _share(facts: Mapping[str, Any], row: Row) -> float | None:
    """FLOPs a second of a step over those of plain matrix products in the same format."""
    if "error" in row or row.get("gflop") is None:
        return None
    rate = facts["matmul_flop_s"]["float16" if row["dtype"] == "fp16" else "bfloat16"]
    return float(row["gflop"] * 1e9 / statistics.median(row["clock_s"]) / rate)


def _peak_mb(row: Row) -> float:
    """Without the encoded pictures of later steps, which a bare loop does not have."""
    return float(row["peak_mb"] - row["data_mb"])


def _beside(rows: Sequence[Row], row: Row) -> list[Row]:
    """Those that were measured in turns with a row."""
    return [one for one in rows if one["group"] == row["group"]]


def _bare(rows: Sequence[Row], row: Row) -> list[Row]:
    return [one for one in _beside(rows, row) if one["loop"] in BARE and "error" not in one]


def _leanest(rows: Sequence[Row], row: Row) -> Row | None:
    """The fastest of the bare loops beside a row; none where there is none."""
    return min(_bare(rows, row), key=lambda one: statistics.median(one["cpu_s"]), default=None)


def _ours_beside(rows: Sequence[Row], row: Row, checkpointing: str) -> Row | None:
    found = [one for one in _beside(rows, row) if one["loop"] == "ours" and "error" not in one]
    return next((one for one in found if one["checkpointing"] == checkpointing), None)
