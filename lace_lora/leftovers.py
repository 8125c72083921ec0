"""What runs no longer need, and deleting it: never an adapter, a design, a report, or anything of a run under way.

What is found is a proposal. Deleting takes the run's lock, looks again, and leaves alone what has come to be needed.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lace_lora import checkpoint, contents, lock, runs
from lace_lora.errors import LaceError
from lace_lora.run_folder import GridFolder, RunFolder, SheetFolder
from lace_lora.runs import Job
from lace_lora.scores import Evaluation

CHECKPOINTS, CLASS_PICTURES = "checkpoints", "class pictures"
HALF_MADE, HALF_WRITTEN = "half-made pictures", "half-written files"
KINDS = {
    CHECKPOINTS: "of finished runs all but the last, the best and those that an evaluation names; a grid and "
    "`evaluate --all-checkpoints` can then show only what is left",
    CLASS_PICTURES: "of finished runs; drawn again if you train the run longer",
    HALF_MADE: "of sheets that are finished, or that nobody went on with for a week; drawn again if somebody does",
    HALF_WRITTEN: "left by what was cut off; of no use to anybody",
}
# A sheet that was cut off is gone on with from these within days, or never.
STALE_SECONDS = 7 * 24 * 3600.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go.

    kind  one of KINDS
    name  its path within the run
    """

    run: str
    kind: str
    path: Path
    name: str
    size_bytes: int


def find(jobs: Sequence[Job]) -> tuple[list[Leftover], list[str]]:
    """What can go of these runs, by kind, the largest first; and a sentence for each run that is left alone."""
    found: list[Leftover] = []
    notes = []
    for job in jobs:
        run = RunFolder(job.folder)
        try:
            if job.is_under_way or runs.is_under_way(run):
                notes.append(f"{job.name} is left alone: somebody is at work in it.")
                continue
            found += of_run(run, job)
        except OSError as error:
            notes.append(f"{job.name} is left alone: it cannot be read ({error.strerror or error}).")
    order = list(KINDS)
    return sorted(found, key=lambda one: (order.index(one.kind), -one.size_bytes, one.run, one.name)), notes


def of_run(run: RunFolder, job: Job) -> list[Leftover]:
    """What can go of one run, whether somebody is at work in it or not. Raises OSError where it cannot be read."""
    found = [(HALF_WRITTEN, path) for path in _half_written(run.root)]
    found += [(HALF_MADE, path) for path in _half_made(run)]
    if is_whole(run, job):
        found += [(CHECKPOINTS, path) for path in _spare_checkpoints(run, job)]
        if run.class_images.is_dir():
            found.append((CLASS_PICTURES, run.class_images))
    return [
        Leftover(run.name, kind, path, path.relative_to(run.root).as_posix(), _bytes_of(path)) for kind, path in found
    ]


def is_whole(run: RunFolder, job: Job) -> bool:
    """Whether a training is finished and its adapter is there as it was written, so that nothing else is needed."""
    facts = contents.facts(run)
    is_done = job.total > 0 and job.step >= job.total
    if job.state not in ("finished", runs.DRAWING) or facts.get("state") != "finished":
        return False
    if not is_done and facts.get("stopped_early_at") is None:
        return False
    from lace_lora import adapter

    return adapter.is_whole(run)


def delete(found: Sequence[Leftover], say: Say = print) -> tuple[int, list[str]]:
    """Delete what `find` found; return the bytes freed, and a sentence for what is still there.

    Under the lock of its run, so that nobody trains in it meanwhile; what is needed again by then stays. A folder is
    renamed before it is deleted: a cut leaves it whole or gone.
    """
    freed, problems = 0, []
    for root in dict.fromkeys(_root_of(one) for one in found):
        run = RunFolder(root)
        ours = [one for one in found if _root_of(one) == root]
        try:
            # Taking the lock clears away the half-written files.
            with lock.lock(root, say, work="cleared up or trained", instead="clear up later"):
                gone, kept = _delete_of(run, ours)
            freed += sum(one.size_bytes for one in gone)
            problems += kept
        except (LaceError, OSError) as error:
            problems.append(str(error))
    return freed, problems


# -- inside --


def _delete_of(run: RunFolder, ours: Sequence[Leftover]) -> tuple[list[Leftover], list[str]]:
    """The same for one run, whose lock is held: what went, and sentences about what did not."""
    if runs.is_drawing(run):
        return [], [f"{run.name} is left alone: somebody has begun to draw in it."]
    job = runs.read(run)
    still = {one.path for one in of_run(run, job)} if job else set()
    gone, problems = [], []
    for one in ours:
        try:
            if one.path in still:
                checkpoint.delete(one.path)
        except OSError as error:
            problems.append(f"{one.path} could not be deleted ({error.strerror or error}).")
        if one.path.exists():
            if one.path not in still:
                problems.append(f"{one.path} stays: it has come to be needed since it was listed.")
        else:
            gone.append(one)
    return gone, problems


def _spare_checkpoints(run: RunFolder, job: Job) -> Iterator[Path]:
    """All whole checkpoints but the newest, the best and those that an evaluation names; and those set aside."""
    newest, _ = checkpoint.newest(run.checkpoints)
    if newest is None:
        return
    kept = {checkpoint.number_in(newest.name), job.best_step, *_named(run)}
    for folder in checkpoint.numbered(run.checkpoints):
        if checkpoint.number_in(folder.name) not in kept:
            yield folder
    yield from sorted(path for path in run.checkpoints.glob(f"*{checkpoint.DAMAGED}") if path.is_dir())


def _named(run: RunFolder) -> set[int]:
    """The steps that an evaluation advises to take or to compare. An evaluation that cannot be read names none."""
    try:
        found = Evaluation.read(run)
    except LaceError:
        return set()
    choice = found.choice if found else {}
    steps = [choice.get("step"), *(choice.get("finalists") or ())]
    return {step for step in steps if isinstance(step, int)}


def _half_made(run: RunFolder) -> Iterator[Path]:
    """Latents of sheets and grids that are finished, or were not touched for a week."""
    folders: list[SheetFolder | GridFolder] = [SheetFolder(path.parent) for path in run.sheets.glob("*/latents")]
    folders += [GridFolder(path.parent) for path in run.evaluation.glob("*/latents")]
    for folder in folders:
        _, changed, problem = runs.measured(folder.latents)
        changed = changed or folder.latents.stat().st_mtime
        is_stale = not problem and time.time() - changed > STALE_SECONDS
        if is_stale or (isinstance(folder, SheetFolder) and _is_finished(folder)):
            yield folder.latents


def _is_finished(sheet: SheetFolder) -> bool:
    """Whether every picture of a sheet has its row and its file."""
    total = contents.json_in(sheet.request).get("pictures")
    rows = {row.get("index"): row for path in sheet.all_rows() for row in checkpoint.read_json_lines(path)}
    names = [row.get("refined") or row.get("base") for row in rows.values()]
    is_there = all(isinstance(name, str) and (sheet.root / name).is_file() for name in names)
    return isinstance(total, int) and total > 0 and len(rows) >= total and is_there


def _half_written(root: Path) -> Iterator[Path]:
    """Partial files and folders on which nobody works any more; not those that would be put back in their place."""
    for place, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(place, name)
            if not checkpoint.is_forgotten(path):
                continue
            if path.suffix == checkpoint.PARTIAL or path.with_name(name.rsplit(".", 2)[0]).exists():
                yield path
        folders[:] = [name for name in folders if Path(name).suffix not in (checkpoint.PARTIAL, checkpoint.OLD)]


def _bytes_of(path: Path) -> int:
    return runs.measured(path)[0] if path.is_dir() else checkpoint.size_of(path) or 0


def _root_of(one: Leftover) -> Path:
    return one.path.parents[one.name.count("/")]
