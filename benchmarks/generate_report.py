"""The rows of benchmarks.generate as a page: what was measured, and against whom the targets are reached."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.report import ratios, table, told

Row = Mapping[str, Any]
FEWER = 0.2  # of the FLOPs, at the default split
PARTS = ("base unet", "refiner unet", "vae encode", "vae decode", "text 1", "text 2")


def line(row: Row, timed: int) -> str:
    """A row while it is measured."""
    if "error" in row:
        return f"{row['name']:<46} {row['error']}"
    seconds = f"{statistics.median(row['cpu_s']):>7.3f} CPU s  {statistics.median(row['clock_s']):>7.3f} s"
    return f"{row['name']:<46} {seconds} a picture of {timed}"


def page(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The report in Markdown."""
    libraries = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    threads = f", {facts['threads']} thread" if facts["device"] == "cpu" else ""
    load = ", ".join(f"{one:g}" for one in facts["load"])
    steps, usual = facts["steps"], int(facts["steps"] * 0.3)
    intro = [
        f"# A sheet of designs, {facts['date']}",
        f"    {facts['command']}",
        f"{facts['hardware']}{threads}. {libraries}.",
        f"Model size `{facts['size']}` with random weights, {facts['dtype']}, pictures of {facts['side_px']} px, "
        f"{steps} steps of {facts['scheduler']}, guidance {facts['guidance_scale']:g}, the same prompts and seeds for "
        f"all. Loads are those of a sheet of {facts['pictures']} pictures. Seconds are of {facts['timed']} pictures a "
        f"round, {facts['rounds']} rounds in turns. The machine's load after each round: {load}. What each row is, and "
        "how it is measured: benchmarks/README.md.",
        f"`{steps} + {usual}` is {steps} steps of the base and a picture of it, then the img2img pipeline at "
        f"diffusers' default strength 0.3, which makes {usual} of {steps} steps. `{steps} + {steps}` is the same with "
        f"{steps} steps really made by the refiner (strength 0.3 of a schedule that long; strength 1 would throw the "
        "base's picture away). Where a row says nothing else, one prompt at a time and both pipelines kept in memory.",
    ]
    good = [row for row in rows if "error" not in row]
    parts = [*intro, "## Loads", _loads(facts, good), "## FLOPs", _flops(facts, good)]
    parts += ["## Seconds", _seconds(good), "## Memory", _memory(good)]
    if failed := [[row["name"], row["error"]] for row in rows if "error" in row]:
        parts += ["## What could not run", table("way | why", failed)]
    if options := list(_options(facts, good)):
        parts += [
            "## What options of ours take",
            table("option | FLOPs, of ours | FLOPs at SDXL's size, of ours | CPU s, of ours", options),
        ]
    if targets := list(_targets(facts, good)):
        parts += ["## Targets", table("target | measured | reached", targets), _plainly(facts, good)]
    return "\n\n".join(parts) + "\n"


def gflop(facts: Mapping[str, Any], row: Row, at: str = "") -> float:
    """GFLOP a picture: how often each part was computed, times what it takes.

    at  empty for the measured size, "sdxl_" for SDXL's true sizes and 1024 px
    """
    each = facts[f"{at}gflop_a_row{'' if row['is_fused'] else '_unfused'}"]
    return float(sum(each[part] * number for part, number in row["rows"].items()))


# -- tables --


def _loads(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    found = []
    for row in rows:
        each = sorted(set(row["loads"].values()))
        times = f"{each[0]}" if len(each) == 1 else f"{each[0]} to {each[-1]}"
        found.append([row["name"], times, sum(row["loads"].values()), f"{row['bytes_read'] / 1e6:.0f}"])
    return table(f"way | each model loaded, times | loads for {facts['pictures']} pictures | MB of weights read", found)


def _flops(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    ours = _named(rows, "ours")
    found = []
    for row in rows:
        passes = [f"{row['rows'].get(part, 0):g}" for part in PARTS[:4]]
        cells = [row["name"], *passes]
        for at, unit in (("", 1), ("sdxl_", 1e3)):
            taken = gflop(facts, row, at)
            cells += [f"{taken / unit:.2f}", f"{taken / gflop(facts, ours, at):.3f}" if ours else ""]
        found.append(cells)
    head = (
        "way | base UNet rows | refiner UNet rows | VAE encodes | VAE decodes | GFLOP a picture | of ours | "
        "TFLOP at SDXL's size, 1024 px | of ours"
    )
    return table(head, found)


def _seconds(rows: Sequence[Row]) -> str:
    ours = _named(rows, "ours")
    found = []
    for row in rows:
        cells = [row["name"], max(row["batch"], 1) if row["batch"] else "our own"]
        for kind in ("cpu_s", "clock_s"):
            low, middle, high = min(row[kind]), statistics.median(row[kind]), max(row[kind])
            cells += [f"{middle:.3f} ({low:.3f}–{high:.3f})", told(ratios(row[kind], ours[kind])) if ours else ""]
        found.append(cells)
    head = "way | batch | CPU s a picture (least–most) | of ours | seconds of the clock (least–most) | of ours"
    return table(head, found)


def _memory(rows: Sequence[Row]) -> str:
    if any("live_mb" in row for row in rows):
        grown = [f"{row['rss_mb']:.0f}" if "rss_mb" in row else "" for row in rows]
        found = [[row["name"], f"{row['live_mb']:.0f}", one] for row, one in zip(rows, grown, strict=True)]
        return table("way | live tensors at most, MB | growth of the process, MB", found)
    return table("way | peak VRAM, GiB", [[row["name"], f"{row['peak_vram_gib']:.2f}"] for row in rows])


def _options(facts: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[list[str]]:
    """Our options over ours without them."""
    ours = _named(rows, "ours")
    for row in rows:
        if ours and row["kind"] == "ours" and row is not ours:
            taken = [f"{gflop(facts, row, at) / gflop(facts, ours, at):.3f}" for at in ("", "sdxl_")]
            yield [row["name"], *taken, told(ratios(row["cpu_s"], ours["cpu_s"]))]


# -- targets --


def _targets(facts: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[list[str]]:
    """Every promise against every one of diffusers' ways; the median decides."""
    ours = _named(rows, "ours")
    if ours is None:
        return
    most = max(ours["loads"].values())
    yield ["ours loads each model once", f"{most}", "yes" if most == 1 else "no"]
    for row in rows:
        if row["kind"] == "ours":
            continue
        counted, true_size = fewer(facts, ours, row)
        is_kept = min(counted, true_size) >= FEWER
        measured = f"{_share(counted)}, at SDXL's size {_share(true_size)}"
        yield [f"{FEWER:.0%} fewer FLOPs than {row['name']}", measured, "yes" if is_kept else "no"]
    kind, unit = ("clock_s", "seconds") if facts["device"] == "cuda" else ("cpu_s", "CPU seconds")
    for row in rows:
        beside = ours if row["batch"] == 1 else _named(rows, "ours, in batches")
        if row["kind"] != "ours" and beside is not None:
            times = ratios(row[kind], beside[kind])
            promise = f"{beside['name']}: faster than {row['name']}, in {unit}"
            yield [promise, told(times, "×"), "yes" if times[0] > 1 else "no"]


def _plainly(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The targets in a sentence, the strictest reading first."""
    ours = _named(rows, "ours")
    assert ours is not None
    shares = {row["name"]: min(fewer(facts, ours, row)) for row in rows if row["kind"] != "ours"}
    short = [f"{name} ({_share(share)})" for name, share in shares.items() if share < FEWER]
    kept = [f"{name} ({_share(share)})" for name, share in shares.items() if share >= FEWER]
    told_short = f"At the default split the {FEWER:.0%} are not reached against: {'; '.join(short)}." if short else ""
    told_kept = f"They are reached against: {'; '.join(kept)}." if kept else "They are reached against none."
    return " ".join(one for one in (told_short, told_kept) if one)


def fewer(facts: Mapping[str, Any], ours: Row, row: Row) -> tuple[float, float]:
    """Share of another way's FLOPs that ours saves, below zero where it takes more: as counted, and at SDXL's size."""
    counted, true_size = (1 - gflop(facts, ours, at) / gflop(facts, row, at) for at in ("", "sdxl_"))
    return counted, true_size


def _share(share: float) -> str:
    return f"{share:.1%} fewer" if share >= 0 else f"{-share:.1%} more"


def _named(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row["name"] == name), None)
