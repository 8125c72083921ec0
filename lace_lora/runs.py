"""The runs in a folder as their own files tell: state, progress, what is best, scores, size on the disk, last change.

Nothing is written here. A folder that is damaged or does not answer is told of, with what is wrong; it is never an
error, because one bad run must not hide the others.
"""

import math
import os
import stat
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lace_lora import contents, lock
from lace_lora.checkpoint import OLD, PARTIAL
from lace_lora.errors import LaceError
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation

UNDER_WAY = ("running", "preparing")  # states that a killed process leaves behind it, too
CUT_OFF, DRAWING, UNREADABLE = "cut off", "drawing", "unreadable"
MAIN_SCORE = "style_match"


@dataclass(frozen=True)
class Job:
    """One run. What its folder does not say is None, or an empty text.

    state         preparing, running, finished, stopped, failed, cut off (killed), drawing (designs, now), unreadable
    loss          mean of the last training losses
    updated       when run.json was written, as it says
    eta_seconds   seconds left of a training that goes on now
    val_loss      the lowest loss on held-out pictures, after best_step
    style_match   that score of evaluation/scores.json
    copies        designs that are copies of photographs, as the evaluation found
    size_bytes    of all files of the run
    changed       when a file of the run changed last, in seconds since 1970
    is_under_way  whether a process is at work in the folder now
    problems      sentences: why it failed, or what of it cannot be read
    """

    name: str
    folder: Path
    id: str = ""
    state: str = UNREADABLE
    step: int = 0
    total: int = 0
    loss: float | None = None
    updated: str = ""
    eta_seconds: float | None = None
    val_loss: float | None = None
    best_step: int | None = None
    style_match: float | None = None
    copies: int | None = None
    size_bytes: int | None = None
    changed: float = 0.0
    is_under_way: bool = False
    problems: tuple[str, ...] = ()

    @property
    def percent(self) -> float | None:
        """How much of the training is done, 0 to 100."""
        return min(100.0, max(0.0, 100 * self.step / self.total)) if self.total > 0 else None

    def __str__(self) -> str:
        """One line of a list."""
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        return f"{self.name:<20} {self.state:<9} step {self.step}/{self.total}{loss}  {self.updated}  {self.id[:12]}"


@dataclass(frozen=True)
class Listing:
    """What lies in a folder of runs.

    jobs     the runs, those changed last first
    others   names of folders that hold no run
    trouble  why the folder itself cannot be read; empty where it can
    """

    jobs: tuple[Job, ...] = ()
    others: tuple[str, ...] = ()
    trouble: str = ""


def look(lora_output_dir: str | Path) -> Listing:
    """Everything in a folder of runs; a folder that is not there holds none."""
    parent, jobs, others = Path(lora_output_dir).expanduser(), [], []
    try:
        with os.scandir(parent) as entries:
            names = sorted(entry.name for entry in entries if _may_be_folder(entry))
    except FileNotFoundError:
        return Listing()
    except OSError as error:
        return Listing(trouble=_trouble(parent, error))
    for name in names:
        if name.startswith(".") or Path(name).suffix in (PARTIAL, OLD):
            continue
        job = read(RunFolder(parent / name))
        if job is None:
            others.append(name)
        else:
            jobs.append(job)
    return Listing(tuple(sorted(jobs, key=lambda job: (-job.changed, job.name))), tuple(others))


def jobs(lora_output_dir: str | Path) -> list[Job]:
    """All runs in a folder, those changed last first."""
    return list(look(lora_output_dir).jobs)


def read(run: RunFolder) -> Job | None:
    """One run, or None where the folder holds nothing of any."""
    job = Job(run.name, run.root)
    try:
        if not contents.holds_run(run):
            return None
        size, changed, problem = measured(run.root)
        job = replace(job, size_bytes=size, changed=changed, problems=(problem,) if problem else ())
        facts = contents.facts(run)
        if not facts:
            return _without_record(job, run)
        job = _with_facts(job, facts)
        job = _with_place(job, run)
        return _with_evidence(job, run)
    except OSError as error:
        return replace(job, problems=(*job.problems, _trouble(run.root, error)))


def measured(root: Path) -> tuple[int, float, str]:
    """Bytes of all files below a folder, when one of them changed last, and what could not be read (a sentence)."""
    total, changed, problem = 0, 0.0, ""

    def note(error: OSError) -> None:
        nonlocal problem
        problem = _trouble(Path(error.filename or root), error)

    for place, _, names in os.walk(root, onerror=note):
        for name in names:
            try:
                found = os.lstat(os.path.join(place, name))
            except FileNotFoundError:  # deleted while we look
                continue
            except OSError as error:
                note(error)
                continue
            if stat.S_ISREG(found.st_mode):
                total += found.st_size
                if not name.endswith((".lock", PARTIAL)):
                    changed = max(changed, found.st_mtime)
    return total, changed, problem


def is_under_way(run: RunFolder) -> bool:
    """Whether somebody trains in a run's folder, or draws a sheet of it. Raises OSError where it cannot be asked."""
    return lock.is_held(run.root) or is_drawing(run)


def is_drawing(run: RunFolder) -> bool:
    """Whether somebody draws a sheet of a run. Raises OSError where it cannot be asked."""
    try:
        sheets = [entry.name for entry in os.scandir(run.sheets) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return False
    locks = [path for name in sheets for path in run.sheet(name).root.glob("*.lock")]
    return any(lock.is_held(path.parent, path.name) for path in locks)


# -- inside --


def _may_be_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a mount that died: reading it will say so
        return True


def _without_record(job: Job, run: RunFolder) -> Job:
    there = run.record.is_file()
    what = "run.json cannot be understood" if there else "there is no run.json"
    kept = contents.has_learnt(run)
    advice = "Train under this name again, and it goes on." if kept else "Nothing of a training is kept in it."
    return replace(job, problems=(*job.problems, f"{what}. {advice}"), is_under_way=is_under_way(run))


def _with_facts(job: Job, facts: dict[str, Any]) -> Job:
    """What run.json says, as far as it can be understood."""
    state, step, total = facts.get("state"), _number(facts.get("step")), _number(facts.get("total"))
    error = facts.get("error")
    # An error may be of an earlier try: the state tells whether it counts.
    problems = (*job.problems, " ".join(str(error).split())) if error and state == "failed" else job.problems
    if not isinstance(state, str) or step is None or total is None:
        problems = (*problems, "run.json lacks its state or its steps. Train under this name again, and it goes on.")
    return replace(
        job,
        id=str(facts.get("id") or ""),
        state=state if isinstance(state, str) else UNREADABLE,
        step=int(step or 0),
        total=int(total or 0),
        loss=_number(facts.get("loss")),
        updated=str(facts.get("updated") or ""),
        eta_seconds=_number(facts.get("eta_seconds")),
        problems=problems,
    )


def _with_place(job: Job, run: RunFolder) -> Job:
    """Whether it goes on now, which only the locks can say."""
    is_training, written = lock.is_held(run.root), _seconds(job.updated)
    draws, state, left = is_drawing(run), job.state, None
    if state in UNDER_WAY and is_training:
        passed = time.time() - written if written else 0.0
        left = None if job.eta_seconds is None or state != "running" else max(0.0, job.eta_seconds - max(0.0, passed))
    elif state in UNDER_WAY:
        state = CUT_OFF
    if draws and not is_training:
        state = DRAWING
    return replace(
        job, state=state, eta_seconds=left, is_under_way=is_training or draws, changed=job.changed or written or 0.0
    )


def _with_evidence(job: Job, run: RunFolder) -> Job:
    """The best look at held-out pictures, and what an evaluation found."""
    best = contents.json_in(run.best)
    step, val_loss = _number(best.get("step")), _number(best.get("val_loss"))
    job = replace(job, val_loss=val_loss, best_step=None if step is None else int(step))
    try:
        found = Evaluation.read(run)
    except LaceError as error:
        return replace(job, problems=(*job.problems, str(error)))
    if found is None:
        return job
    score = found.score(MAIN_SCORE)
    copies = None if found.copies.refusal or not found.copies.pairs else len(found.copies.copies)
    return replace(job, style_match=_number(score.value) if score else None, copies=copies)


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else that a damaged file may hold."""
    try:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if is_number else None
    except OverflowError:
        return None


def _seconds(moment: str) -> float | None:
    try:
        parsed = datetime.fromisoformat(moment)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _trouble(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror or error}). If it lies on Drive, mount Drive again."
