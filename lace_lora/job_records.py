"""What a served door keeps of a request on the disk: what was asked for, how far it came, and which sheet is its own.

A request is written before it is accepted, so a power cut loses none. Its designs are in its sheet, as everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, contents
from lace_lora.run_folder import RunFolder, SheetFolder

WAITING, RUNNING, FINISHED, CANCELLED, FAILED = "waiting", "running", "finished", "cancelled", "failed"
STATES = (WAITING, RUNNING, FINISHED, CANCELLED, FAILED)
UNFINISHED = (WAITING, RUNNING)
# A request that was under way each time when the process was killed may be what kills it, for instance by its memory.
MOST_CUT_OFFS = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class Picture:
    """One finished design of a request: its number in the sheet, what made it, and where it lies."""

    number: int
    prompt: str
    seed: int
    width: int
    height: int
    path: Path


@dataclass(frozen=True)
class Job:
    """One request.

    asked     the settings that it named, complete
    sheet     the folder of its designs, by its name in the run
    total     designs that were asked for
    created, started, ended   ISO 8601, UTC; empty until then
    error     why it failed, in a sentence
    cut_offs  how often the process was killed while it was drawn
    notes     what was said of its prompts and settings, in sentences
    """

    id: str
    asked: Mapping[str, Any]
    sheet: str
    total: int
    created: str
    state: str = WAITING
    started: str = ""
    ended: str = ""
    error: str = ""
    cut_offs: int = 0
    notes: Sequence[str] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in UNFINISHED

    def ending(self, state: str, error: str = "") -> "Job":
        """The same, over now."""
        return replace(self, state=state, error=error, ended=now())


def now() -> str:
    """This moment as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat()


def write(run: RunFolder, job: Job) -> None:
    """Keep a request; raises MachineError or RunError where it cannot be written."""
    checkpoint.write_json(run.served_job(job.id), asdict(job))


def read_all(run: RunFolder, say: Say) -> list[Job]:
    """All requests that are kept, the oldest first; one that cannot be read is said and stays on the disk.

    What was under way when the process ended waits again: its sheet goes on where it was. After MOST_CUT_OFFS such
    ends it has failed.
    """
    found = []
    for path in sorted(run.served.glob("*.json")):
        job = _read(path)
        if job is None:
            say(f"! {path} cannot be understood, so that request is left alone.")
        else:
            found.append(_after_cut(job))
    return sorted(found, key=lambda job: (job.created, job.id))


def pictures_in(sheet: SheetFolder) -> dict[int, Picture]:
    """The finished designs of a sheet by their numbers, as its rows tell; only files of the sheet itself."""
    found = {}
    for row in (row for path in sheet.all_rows() for row in checkpoint.read_json_lines(path)):
        try:
            name = str(row.get("refined") or row["base"])
            picture = Picture(
                int(row["index"]), str(row["prompt"]), int(row["seed"]), int(row["width"]), int(row["height"]),
                sheet.root / name,
            )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        if Path(name).name == name and checkpoint.size_of(picture.path):
            found[picture.number] = picture
    return found


# -- inside --


def _after_cut(job: Job) -> Job:
    if job.state != RUNNING:
        return job
    cut_offs = job.cut_offs + 1
    job = replace(job, state=WAITING, cut_offs=cut_offs)
    if cut_offs < MOST_CUT_OFFS:
        return job
    return job.ending(
        FAILED,
        f"The server was ended {cut_offs} times while these designs were drawn, perhaps for want of memory. Ask for "
        "smaller or fewer ones.",
    )


def _read(path: Path) -> Job | None:
    values = contents.json_in(path)
    names = {field.name for field in fields(Job)}
    try:
        job = Job(**{name: value for name, value in values.items() if name in names})
    except TypeError:
        return None
    texts = (job.id, job.sheet, job.created, job.state, job.started, job.ended, job.error)
    is_sound = all(isinstance(text, str) for text in texts) and isinstance(job.asked, dict) and job.id == path.stem
    numbers = (job.total, job.cut_offs)
    is_sound = is_sound and all(isinstance(number, int) and number >= 0 for number in numbers)
    is_sound = is_sound and isinstance(job.notes, list | tuple) and all(isinstance(note, str) for note in job.notes)
    return job if is_sound and job.state in STATES and Path(job.sheet).name == job.sheet != "" else None
