"""What finished runs took on this machine, kept below cache_dir, where it corrects the plan's next estimate.

measured.json there holds a row for each kind of work that was measured, and selftest.json what `lace-lora selftest`
found. A run's own run.json has its rows too: a machine that is new, such as a fresh one in Colab, reads them there. All
of it may be deleted at any time; what is damaged or missing only leaves the estimate as it was.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from lace_lora import __version__, checkpoint, throughput
from lace_lora.errors import LaceError
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder
from lace_lora.throughput import Speed, Work

KEPT, SELFTEST = "measured.json", "selftest.json"  # below cache_dir
RUN, TEST = "run", "selftest"
ROWS_AT_MOST = 100
LARGEST_BYTES = 4_000_000  # a file that is larger was not written here
# No run takes years, and no number here is as large as this: a file that says so is damaged.
LONGEST_SECONDS, BEYOND_BELIEF = 1e8, 1e15
RUNS_LOOKED_AT = 8  # on a machine that is new; they may lie on Drive
# What memory may differ by before it is taken for a mistake of the measurement. Less than was counted would mean trust
# that costs a crash, more only a smaller batch.
SHARES = (0.8, 2.0)


@dataclass(frozen=True)
class Figure:
    """What some work took, and what is to be known of it to tell whether other work is alike.

    machine     throughput.kind of it
    model       coefficients.Coefficients.name
    detail      workload.detail
    seconds     of the work, 0 where only memory was measured
    peak_gb     of the GPU while training, without CUDA's own, GiB; 0 where it is not known
    fixed_gb    of this, weights, LoRA and encoded pictures, whose size is exact
    planned_gb  what was planned for the rest, the activations
    by          run or selftest
    """

    stage: str
    machine: str
    model: str
    precision: str
    quantization: str
    detail: str
    seconds: float
    work: Work
    checkpointing: str = ""
    peak_gb: float = 0.0
    fixed_gb: float = 0.0
    planned_gb: float = 0.0
    checkpoint_bytes: float = 0.0
    at: str = ""
    by: str = RUN
    version: str = __version__

    def source_for(self, stage: str, detail: str) -> str:
        """Where the seconds of a stage are known from, in words: measured, or scaled from what is much like it."""
        how = "measured" if (stage, detail) == (self.stage, self.detail) else "scaled"
        if self.by == RUN:
            return f"{how} {'on' if how == 'measured' else 'from'} your last run"
        return f"{how} {'by' if how == 'measured' else 'from'} the self-test of {self.at[:10]}"

    @property
    def kind(self) -> tuple[str, ...]:
        """Figures of one kind replace each other."""
        return (self.stage, self.machine, self.model, self.precision, self.quantization, self.detail, self.by)


@dataclass(frozen=True)
class Experience:
    """All figures that are known, the oldest first, and speeds that the self-test found, by throughput.kind."""

    figures: tuple[Figure, ...] = ()
    speeds: Mapping[str, Speed] = field(default_factory=dict)

    def speed(self, machine: Machine) -> Speed | None:
        """How fast a machine is: as its self-test found, else by the table; None for a GPU that neither knows."""
        return self.speeds.get(throughput.kind(machine)) or throughput.of(machine)

    def find(
        self, stage: str, machine: str, model: str, precision: str, quantization: str, detail: str
    ) -> Figure | None:
        """The newest figure of such work on such a machine; first of the same detail, and runs before self-tests."""
        kind = (stage, machine, model, precision, quantization)
        found = [one for one in self.figures if one.kind[:5] == kind and one.seconds]
        return max(found, key=lambda one: (one.detail == detail, one.by == RUN, one.at), default=None)

    def activations_share(self, machine: str, model: str, precision: str, checkpointing: str) -> float:
        """What activations took of what was planned for them, in the newest run; 1 where that is not known.

        Only figures of this version count, because another one may have planned otherwise.
        """
        kind = ("train", machine, model, precision)
        found = [one for one in self.figures if one.kind[:4] == kind and one.checkpointing == checkpointing]
        found = [one for one in found if one.peak_gb and one.planned_gb and one.version == __version__]
        if not found:
            return 1.0
        newest = max(found, key=lambda one: one.at)
        share = (newest.peak_gb - newest.fixed_gb) / newest.planned_gb
        return min(max(share, SHARES[0]), SHARES[1])


NOTHING = Experience()


def read(cache_dir: str | Path, machine: Machine | None = None, runs_dir: str | Path | None = None) -> Experience:
    """All that is known here. Never fails: a file that is missing or damaged tells nothing.

    runs_dir  looked into where nothing is known of this machine: the run.json of the newest eight there
    """
    folder = Path(cache_dir).expanduser()
    tested = _content(folder / SELFTEST)
    figures = [*_figures(tested.get("figures")), *_figures(_content(folder / KEPT).get("figures"))]
    if machine is not None and runs_dir and not any(one.machine == throughput.kind(machine) for one in figures):
        figures += _of_runs(Path(runs_dir).expanduser())
    return Experience(tuple(figures), _speeds(tested.get("speeds")))


def keep(cache_dir: str | Path, figures: Iterable[Figure]) -> None:
    """Add figures to those kept below cache_dir; each replaces the earlier one of its kind. Never fails."""
    path = Path(cache_dir).expanduser() / KEPT
    kept = {one.kind: one for one in _figures(_content(path).get("figures"))}
    for one in figures:
        kept.pop(one.kind, None)  # the newest stands last
        kept[one.kind] = one
    with suppress(OSError, LaceError):  # a disk that is full loses a figure, not the run
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path, {"figures": as_rows(list(kept.values())[-ROWS_AT_MOST:])})


def as_rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Figures as they stand in a file."""
    return [asdict(one) for one in figures]


# -- reading --


def _content(path: Path) -> dict[str, Any]:
    try:
        told = path.stat()
        return _parsed(str(path), told.st_size, told.st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=32)
def _parsed(path: str, size: int, changed_ns: int) -> dict[str, Any]:
    """A file's content, read again only where it has changed."""
    if size > LARGEST_BYTES:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_runs(folder: Path) -> list[Figure]:
    """What the run.json of the newest runs in a folder tell."""
    try:
        records = [RunFolder(Path(entry.path)).record for entry in os.scandir(folder) if entry.is_dir()]
        newest = sorted(records, key=_changed, reverse=True)[:RUNS_LOOKED_AT]
    except OSError:
        return []
    return [one for record in newest for one in _figures(_content(record).get("figures"))]


def _changed(record: Path) -> float:
    """When a run was last at work, in seconds; 0 where there is no run."""
    try:
        return record.stat().st_mtime
    except OSError:
        return 0.0


def _figures(rows: object) -> list[Figure]:
    """Rows as figures; one that is damaged is left out."""
    found = []
    for row in rows if isinstance(rows, list) else []:
        with suppress(TypeError, ValueError, AttributeError, KeyError):
            found.append(_figure(row))
    return sorted(found, key=lambda one: one.at)


def _figure(row: Mapping[str, Any]) -> Figure:
    """Raises ValueError, TypeError or KeyError where a row is no figure."""
    values = {one.name: row[one.name] for one in fields(Figure) if one.name in row and one.name != "work"}
    figure = Figure(**values, work=Work(**row["work"]))
    work = figure.work
    numbers = (figure.seconds, figure.peak_gb, figure.fixed_gb, figure.planned_gb, figure.checkpoint_bytes,
               work.tflop, work.layers, work.nf4_gb, work.processes)  # fmt: skip
    texts = (*figure.kind, figure.checkpointing, figure.at, figure.version)
    if any(isinstance(one, bool) or not 0 <= one <= BEYOND_BELIEF for one in numbers):
        raise ValueError("a figure that is no number, or one beyond belief")
    if not work.tflop or work.processes < 1 or figure.seconds > LONGEST_SECONDS:
        raise ValueError("a figure of no work, or of years")
    if not all(isinstance(one, str) for one in texts):
        raise TypeError("a name that is no text")
    return figure


def _speeds(rows: object) -> dict[str, Speed]:
    """Speeds by machine; one that is damaged is left out."""
    found = {}
    for machine, row in rows.items() if isinstance(rows, dict) else ():
        with suppress(TypeError, ValueError):
            speed = Speed(**row)
            if all(math.isfinite(one) and one > 0 for one in (speed.half_tflops, speed.full_tflops, speed.gb_s)):
                found[machine] = speed
    return found
