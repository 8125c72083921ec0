"""A run on Google Drive: training writes to this machine's disk, and every finished thing is copied over and checked.

Drive through its mount is slow with small files, drops in the middle of a run and comes back. So a run folder on Drive
has a working folder under `cache_dir`; a Drive that fails is said once, tried again later, and costs no step.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lace_lora import checkpoint, contents
from lace_lora.checkpoint import size_of
from lace_lora.config import Config
from lace_lora.copying import (
    Seen,
    copy_checkpoint,
    copy_file,
    files_of,
    has_all,
    look,
    missing_in,
    reason_of,
)
from lace_lora.errors import LaceError, MachineError
from lace_lora.lock import lock as lock
from lace_lora.run_folder import RunFolder

PROGRESS_SECONDS = 30.0
PAUSES = (15.0, 600.0)  # seconds from a failed delivery to the next one: at first, and at most; doubled each time
ATTEMPTS = (1.0, 4.0, 15.0)  # pauses in seconds while a run is taken from Drive
READERS = 8  # at once: Drive takes its time for each small file
ASIDE = ".set_aside"

Say = Callable[[str], None]


@dataclass
class Mirror:
    """A run's folder on Drive and the one on this machine; where the run is not on Drive both are the same."""

    remote: RunFolder
    local: RunFolder
    drive: Path  # where Drive is mounted
    is_mount: bool
    say: Say
    seen: dict[str, Seen] = field(default_factory=dict)  # by name in the run folder
    damaged: set[str] = field(default_factory=set)  # checkpoints on Drive that were passed over
    trouble: str | None = None
    pause: float = PAUSES[0]
    next_try: float = 0.0
    told_at: float = 0.0

    @classmethod
    def of(cls, remote: RunFolder, drive_mount_path: str, cache_dir: str, say: Say) -> "Mirror":
        """The working folder of a run: below cache_dir where the run is on Drive, else the run's own."""
        drive = _real(drive_mount_path)
        if not _real(remote.root).is_relative_to(drive):
            return cls(remote, remote, drive, False, say)
        cache = _real(cache_dir)
        if cache.is_relative_to(drive):  # a working folder on Drive would be none
            cache = _real(Config.model_fields["cache_dir"].default)
        digest = hashlib.sha256(str(_real(remote.root)).encode()).hexdigest()[:12]
        local = RunFolder(cache / "runs" / digest / remote.name)
        seen = _recall(_memory_of(local), str(remote.root))
        return cls(remote, local, drive, os.path.ismount(drive), say, seen)

    @property
    def is_on_drive(self) -> bool:
        """Whether there is anything to copy."""
        return self.local.root != self.remote.root

    def bring(self) -> None:
        """Before training: take from Drive what this machine lacks, or has of an earlier time.

        The newest whole checkpoint decides which side is taken. Of checkpoints only the newest whole and the best one
        are copied. A run that is another one than the one here, or whose folder was deleted on Drive, sets the copy
        here aside. Raises MachineError when Drive does not answer.
        """
        if not self.is_on_drive:
            return
        for pause in (*ATTEMPTS, None):
            try:
                self._check_drive()
                self._bring()
                self._remember()
                return
            except (OSError, LaceError) as error:
                if pause is None:
                    raise MachineError(
                        f"What is kept of {self.remote.name} in {self.remote.root} could not be copied to this machine "
                        f"({reason_of(error)}). Nothing was changed there. Mount Drive again, see that there is room "
                        f"for it in {self.local.root.parent}, and run again."
                    ) from error
            time.sleep(pause)

    def deliver(self) -> bool:
        """Copy all that is new or changed to Drive; returns whether everything is there. Never stops a training.

        In the order log, other files, checkpoints, run.json, so that at any cut what is on Drive can be gone on from.
        Each file is read back before it takes its name, each checkpoint before an older one is deleted. Runs in the
        thread that calls it: a checkpoint of 300 MB took 3 s between two folders of one disk (two-core machine), and
        takes as long as Drive needs to swallow it otherwise. What did not change is not read again.
        """
        return self._attempt(self._deliver)

    def deliver_progress(self) -> None:
        """Copy log.jsonl and run.json, at most every PROGRESS_SECONDS; all that is owed, where Drive was away."""
        if self.trouble is not None:
            self.deliver()
        elif self.is_on_drive and time.monotonic() - self.told_at >= PROGRESS_SECONDS:
            self._attempt(lambda: self._copy_changed([self.local.log, self.local.record]))

    def finish(self, seconds: float = 300.0) -> None:
        """The last delivery, tried again for as long as that. Raises MachineError telling where everything is."""
        until, pause = time.monotonic() + seconds, 1.0
        self.next_try = 0.0
        while not self.deliver():
            left = until - time.monotonic()
            if left <= 0:
                raise MachineError(
                    f"Everything that was trained is in {self.local.root} on this machine, but not all of it on Drive: "
                    f"{self.trouble}. Do not close this session, its disk goes with it. Mount Drive again and run the "
                    "same again: it only copies."
                )
            time.sleep(min(pause, left))
            pause, self.next_try = min(2 * pause, 30.0), 0.0

    # -- towards Drive --

    def _attempt(self, copy: Callable[[], None]) -> bool:
        """Copy, unless Drive failed a moment ago; say when it goes away and when it is back."""
        if not self.is_on_drive:
            return True
        if time.monotonic() < self.next_try:
            return False
        try:
            self._check_drive()
            copy()
        except (OSError, LaceError) as error:
            self._away(error)
            return False
        finally:
            self.told_at = time.monotonic()
            self._remember()
        if self.trouble is not None:
            checkpoint.sweep(self.remote.root, also_own=True)
            self.trouble, self.pause, self.next_try = None, PAUSES[0], 0.0
            self.say(f"Drive is back: everything is in {self.remote.root}.")
        return True

    def _away(self, error: Exception) -> None:
        reason = reason_of(error)
        if reason != self.trouble:
            self.say(
                f"Copying to Drive failed ({reason}). The work goes on and is kept in {self.local.root}; "
                "copying is tried again."
            )
        self.trouble = reason
        self.next_try, self.pause = time.monotonic() + self.pause, min(2 * self.pause, PAUSES[1])

    def _deliver(self) -> None:
        files = files_of(self.local.root)
        first, last = [self.local.log], [self.local.record]
        kept = checkpoint.numbered(self.local.checkpoints)
        rest = [path for path in files if path not in first + last and not path.is_relative_to(self.local.checkpoints)]
        # In the order in which they were written, as any reader of a run that was cut off would find them.
        self._copy_changed([*first, *sorted(rest, key=lambda path: (path.stat().st_mtime_ns, path))])
        whole = [folder for folder in kept if self._copy_checkpoint(folder)]
        if kept and whole and whole[-1] == kept[-1]:
            self._prune(kept)
        self._copy_changed(last)

    def _copy_changed(self, files: Iterable[Path]) -> None:
        for path in files:
            name = self._name(path)
            seen, target = self.seen.get(name), self.remote.root / name
            if not path.is_file():
                continue
            is_there = seen is not None and size_of(target) == seen.size
            if seen is not None and is_there:
                if seen.is_of(path):
                    continue
                now = look(path, checkpoint.sha256(path))
                if now.sha256 == seen.sha256:
                    self.seen[name] = now
                    continue
            self._make_folders(target.parent)
            before = look(path, "")  # a log that grows meanwhile is copied again the next time
            self.seen[name] = replace(before, sha256=copy_file(path, target))

    def _copy_checkpoint(self, folder: Path) -> bool:
        """Copy a checkpoint that Drive does not have; returns whether it is there now, whole."""
        name, target = self._name(folder), self.remote.root / self._name(folder)
        marker = folder / checkpoint.MARKER
        if not marker.is_file():
            return False
        now = look(marker, checkpoint.sha256(marker))
        seen = self.seen.get(name)
        if seen is not None and seen.sha256 == now.sha256 and has_all(target, folder):
            return True
        self._make_folders(target.parent)
        if problem := copy_checkpoint(folder, target):
            self.say(f"{folder.name} is not copied to Drive: {problem}.")
            return False
        self.seen[name] = now
        return True

    def _prune(self, kept: list[Path]) -> None:
        """Delete on Drive what was deleted here, and what is older than that; the newest one is there by now."""
        here = {folder.name for folder in kept}
        parent = self._name(self.local.checkpoints) + "/"
        delivered = {name.removeprefix(parent) for name in self.seen if name.startswith(parent)}
        gone, newest = delivered - here, _number(kept[-1].name)
        oldest = max((_number(name) for name in gone if _number(name) < newest), default=-1)
        for folder in checkpoint.numbered(self.remote.checkpoints):
            is_gone = folder.name in gone | self.damaged or _number(folder.name) <= oldest
            if is_gone and folder.name not in here:
                checkpoint.delete(folder)
        for name in gone:
            self.seen.pop(parent + name)
        self.damaged.clear()

    def _make_folders(self, folder: Path) -> None:
        """Make a folder on Drive, but none above the folder of all runs: where that is gone, Drive is."""
        inside = [one for one in (folder, *folder.parents) if one.is_relative_to(self.remote.root)]
        for one in reversed(inside):
            if size_of(one) is None:
                one.mkdir(exist_ok=True)

    def _check_drive(self) -> None:
        """Raises OSError where Drive is not there.

        The empty folder that an unmounted Drive leaves takes files as any other, and with files in it Drive cannot be
        mounted again.
        """
        is_unmounted = self.is_mount and not os.path.ismount(self.drive)
        parent = self.remote.root.parent
        if is_unmounted or not parent.is_dir():
            raise OSError(errno.ENOTCONN, "Drive is not mounted", str(parent))

    # -- from Drive --

    def _bring(self) -> None:
        # Of several processes on this machine an earlier one may have brought it already, or set it aside.
        self.seen = _recall(_memory_of(self.local), str(self.remote.root))
        checkpoint.sweep(self.local.root)
        if why := self._why_useless():
            self._set_aside(why)
        mine = contents.newest_step(self.local)
        newest = self._newest_on_drive(mine)
        # The checkpoint last: it is what decides, should this be cut off and begun again.
        self._bring_files(is_newer=newest is not None or not contents.holds_run(self.local))
        self._bring_newest(newest)
        self._bring_best()

    def _why_useless(self) -> str | None:
        """Why the copy here must not be gone on from, or None."""
        there, here = contents.facts(self.remote), contents.facts(self.local)
        if not there and "run.json" in self.seen and not contents.holds_run(self.remote):
            return "its folder was deleted on Drive"
        if not there or not here or self._is_as_delivered() or contents.is_same(there, here):
            return None
        # A first try that learnt nothing is none that work is given up for, unless that was of other settings.
        is_other = contents.has_learnt(self.local) and there.get("id") != here.get("id")
        return "Drive holds another training of that name" if contents.has_learnt(self.remote) or is_other else None

    def _newest_on_drive(self, mine: int) -> Path | None:
        """The newest checkpoint on Drive above step `mine` that can be gone on from; says which were passed over."""
        logged = max(contents.last_step(self.remote.log), contents.last_step(self.local.log))
        for folder in reversed(checkpoint.numbered(self.remote.checkpoints)):
            number = _number(folder.name)
            if number <= mine:
                return None
            if folder.name in self.damaged:
                continue
            problem = missing_in(folder)
            if problem is None and logged < number:
                problem = f"log.jsonl ends at step {logged}"
            if problem is None:
                return folder
            self._pass_over(folder, problem)
        return None

    def _pass_over(self, folder: Path, problem: str) -> None:
        self._check_drive()  # a file that is missing because all are is no damage
        self.damaged.add(folder.name)
        self.seen.pop(self._name(self.local.checkpoints / folder.name), None)
        self.say(f"{folder.name} on Drive is passed over: {problem}.")

    def _bring_newest(self, wanted: Path | None) -> None:
        """Copy a checkpoint here, or the one before where it is damaged."""
        while wanted is not None:
            problem = copy_checkpoint(wanted, self.local.checkpoints / wanted.name)
            if problem is None:
                self._note_checkpoint(wanted.name)
                return
            self._pass_over(wanted, problem)
            wanted = self._newest_on_drive(contents.newest_step(self.local))

    def _bring_best(self) -> None:
        """Copy the best checkpoint here, which an early end goes back to."""
        number = contents.best_step(self.local.log, contents.newest_step(self.local))
        if number is None:
            return
        best, mine = self.remote.checkpoint(number), self.local.checkpoint(number)
        if checkpoint.problem_of(mine) is not None and best.name not in self.damaged and missing_in(best) is None:
            if problem := copy_checkpoint(best, mine):
                self._pass_over(best, problem)
            else:
                self._note_checkpoint(best.name)

    def _is_as_delivered(self) -> bool:
        """Whether nobody else wrote run.json on Drive since this machine did: then this machine knows best."""
        seen = self.seen.get("run.json")
        return seen is not None and checkpoint.sha256(self.remote.record) == seen.sha256

    def _note_checkpoint(self, name: str) -> None:
        marker = self.local.checkpoints / name / checkpoint.MARKER
        self.seen[self._name(self.local.checkpoints / name)] = look(marker, checkpoint.sha256(marker))

    def _bring_files(self, is_newer: bool) -> None:
        """Copy small files here: all of them where Drive is newer, else those that are lacking; of logs the longer."""
        run, here, there = self.remote, contents.last_step(self.local.log), contents.last_step(self.remote.log)
        if there > here or (is_newer and there == here and size_of(run.log) is not None):
            self._bring_file(run.log)
        folders = (run.samples, run.tensorboard, run.class_images, run.adapter)
        alone = [run.config, run.annotations, run.held_out, run.best, run.record]
        found = [path for path in alone if size_of(path) is not None]
        found += [path for folder in folders if size_of(folder) is not None for path in files_of(folder)]
        wanted = [path for path in found if is_newer or not self._here(path).is_file()]
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(self._bring_file, wanted))

    def _bring_file(self, path: Path) -> None:
        target = self._here(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.seen[self._name(target)] = look(target, copy_file(path, target))

    def _set_aside(self, why: str) -> None:
        aside = self.local.root.with_name(self.local.name + ASIDE)
        self.seen.clear()
        if not contents.holds_run(self.local):
            return
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.local.root, aside)
        self.say(f"The copy of {self.local.name} on this machine is not used, because {why}; it is in {aside} now.")

    # -- what was copied --

    def _remember(self) -> None:
        facts = {"remote": str(self.remote.root), "files": {name: asdict(one) for name, one in self.seen.items()}}
        with suppress(LaceError):  # forgotten, everything is copied once more
            checkpoint.write_json(_memory_of(self.local), facts)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.local.root).as_posix()

    def _here(self, path: Path) -> Path:
        return self.local.root / path.relative_to(self.remote.root)


def _recall(memory: Path, remote: str) -> dict[str, Seen]:
    try:
        facts = json.loads(memory.read_text(encoding="utf-8"))
        return {name: Seen(**one) for name, one in facts["files"].items()} if facts["remote"] == remote else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _memory_of(local: RunFolder) -> Path:
    return local.root.parent / "delivered.json"


def _number(name: str) -> int:
    return checkpoint.number_in(name) or 0
