"""What came of a sweep, a row a combination: as text to print, as Markdown to keep, and as CSV with every score."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, config_text, runs
from lace_lora.combination import Record
from lace_lora.errors import LaceError
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation
from lace_lora.sweep import Sweep

COPIES = "copies"
NAMES = "results.md", "results.csv"
CELL = 28  # characters of a setting, when it is printed


@dataclass(frozen=True)
class Row:
    """One combination and what its run says.

    step    the last step and how many there are to be, None where nothing was trained
    scores  by their ids, with the number of copies; empty where nothing was evaluated
    """

    varied: Mapping[str, Any]
    record: Record
    step: tuple[int, int] | None
    val_loss: float | None
    scores: Mapping[str, float]


def rows(sweep: Sweep, records: Sequence[Record]) -> list[Row]:
    """A row a combination, in the order of the sweep."""
    return [_row(one.varied, record) for one, record in zip(sweep.combinations, records, strict=True)]


def write(folder: Path, sweep: Sweep, found: Sequence[Row]) -> list[Path]:
    """Write results.md and results.csv; return their paths. Raises RunError or MachineError where that fails."""
    markdown, every = (folder / name for name in NAMES)
    checkpoint.write_text(markdown, as_markdown(sweep, found))
    checkpoint.write_text(every, as_csv(sweep, found))
    return [markdown, every]


def as_text(sweep: Sweep, found: Sequence[Row]) -> str:
    """Aligned columns, to print."""
    titles, cells = _cells(sweep, found)
    cells = [[cell if len(cell) <= CELL or "/" in cell else f"{cell[: CELL - 1]}…" for cell in row] for row in cells]
    widths = [max(len(line[place]) for line in (titles, *cells)) for place in range(len(titles))]
    lines = (titles, *cells)
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_markdown(sweep: Sweep, found: Sequence[Row]) -> str:
    """A table, and below it why combinations failed."""
    titles, cells = _cells(sweep, found)
    lines = [titles, ["---"] * len(titles), *cells]
    text = "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)
    failed = [f"- **{row.record.name}**: {row.record.sentence}" for row in found if row.record.sentence]
    return "\n".join([text, *(["", "Failed:", "", *failed] if failed else []), ""])


def as_csv(sweep: Sweep, found: Sequence[Row]) -> str:
    """Every setting that varies and every score in full, for a spreadsheet."""
    ids = _ids(found)
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    ends = ["seconds", "folder", "error"]
    table.writerow(["name", *sweep.varying, "state", "step", "total", "val_loss", *ids, *ends])
    for row in found:
        record, (step, total) = row.record, row.step or ("", "")
        scores = [row.scores.get(one, "") for one in ids]
        settings = [_plain(row.varied, name) for name in sweep.varying]
        loss = "" if row.val_loss is None else row.val_loss
        end = [record.seconds, record.folder, record.sentence]
        table.writerow([record.name, *settings, record.state, step, total, loss, *scores, *end])
    return out.getvalue()


# -- inside --


def _row(varied: Mapping[str, Any], record: Record) -> Row:
    run = RunFolder(Path(record.folder)) if record.folder else None
    job = runs.read(run) if run else None
    if run is None or job is None:
        return Row(varied, record, None, None, {})
    step = (job.step, job.total) if job.total else None
    return Row(varied, record, step, job.val_loss, _scores(run))


def _scores(run: RunFolder) -> dict[str, float]:
    try:
        found = Evaluation.read(run)
    except (LaceError, OSError):
        return {}
    if found is None:
        return {}
    scores = {score.id: float(score.value) for score in found.scores if score.value is not None}
    if not found.copies.refusal and found.copies.pairs:
        scores[COPIES] = float(len(found.copies.copies))
    return scores


def _ids(found: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in found for name in row.scores))


def _cells(sweep: Sweep, found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the short table: the main score and the copies, of all scores that there are."""
    ids = [name for name in (runs.MAIN_SCORE, COPIES) if name in _ids(found)]
    titles = [*sweep.varying, "state", "step", "val_loss", *ids, "seconds", "folder"]
    cells = []
    for row in found:
        settings = [_plain(row.varied, name) for name in sweep.varying]
        step = "" if row.step is None else f"{row.step[0]}/{row.step[1]}"
        loss = "" if row.val_loss is None else f"{row.val_loss:.4f}"
        scores = [_score(name, row.scores.get(name)) for name in ids]
        seconds = f"{row.record.seconds:.0f}" if row.record.seconds else ""
        cells.append([*settings, row.record.state, step, loss, *scores, seconds, row.record.folder])
    return titles, cells


def _score(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if name == COPIES else f"{value:.2f}"


def _plain(varied: Mapping[str, Any], name: str) -> str:
    """A value as YAML has it, in one line; empty where this combination leaves the setting as it is."""
    return config_text.scalar(varied[name]).strip("'\"") if name in varied else ""
