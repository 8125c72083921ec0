"""A run on Google Drive: training writes to this machine's disk, and every finished thing is copied over and checked.

Drive through its mount is slow with small files, drops in the middle of a run and comes back. So a run folder on Drive
has a working folder under `cache_dir`; a Drive that fails is said once, tried again later, and costs no step.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lace_lora import checkpoint, contents
from lace_lora.checkpoint import size_of
from lace_lora.copying import copy_checkpoint, files_of, has_all, look, missing_in, reason_of
from lace_lora.delivery import ATTEMPTS, READERS, Delivery, set_aside
from lace_lora.errors import LaceError, MachineError
from lace_lora.lock import lock as lock
from lace_lora.run_folder import RunFolder

PROGRESS_SECONDS = 30.0

Say = Callable[[str], None]


@dataclass
class Mirror:
    """A run's folder on Drive and the one on this machine; where the run is not on Drive both are the same."""

    remote: RunFolder
    local: RunFolder
    delivery: Delivery
    say: Say
    damaged: set[str] = field(default_factory=set)  # checkpoints on Drive that were passed over

    @classmethod
    def of(cls, remote: RunFolder, drive_mount_path: str, cache_dir: str, say: Say) -> "Mirror":
        """The working folder of a run: below cache_dir where the run is on Drive, else the run's own."""
        delivery = Delivery.of(remote.root, remote.root.parent, drive_mount_path, cache_dir, say, "runs")
        local = RunFolder(delivery.local) if delivery.is_on_drive else remote
        return cls(remote, local, delivery, say)

    @property
    def is_on_drive(self) -> bool:
        """Whether there is anything to copy."""
        return self.delivery.is_on_drive

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
                self.delivery.check_there()
                self._bring()
                self.delivery.remember()
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
        return self.delivery.attempt(self._deliver)

    def deliver_progress(self) -> None:
        """Copy log.jsonl and run.json, at most every PROGRESS_SECONDS; all that is owed, where Drive was away."""
        if self.delivery.trouble is not None:
            self.deliver()
        elif self.is_on_drive and time.monotonic() - self.delivery.told_at >= PROGRESS_SECONDS:
            self.delivery.attempt(lambda: self.delivery.copy_changed([self.local.log, self.local.record]))

    def finish(self, seconds: float = 300.0) -> None:
        """The last delivery, tried again for as long as that. Raises MachineError telling where everything is."""
        if not self.delivery.insist(self.deliver, seconds):
            raise MachineError(
                f"Everything that was trained is in {self.local.root} on this machine, but not all of it on Drive: "
                f"{self.delivery.trouble}. Do not close this session, its disk goes with it. Mount Drive again and run "
                "the same again: it only copies."
            )

    # -- towards Drive --

    def _deliver(self) -> None:
        files = files_of(self.local.root)
        first, last = [self.local.log], [self.local.record]
        kept = checkpoint.numbered(self.local.checkpoints)
        rest = [path for path in files if path not in first + last and not path.is_relative_to(self.local.checkpoints)]
        # In the order in which they were written, as any reader of a run that was cut off would find them.
        self.delivery.copy_changed([*first, *sorted(rest, key=lambda path: (path.stat().st_mtime_ns, path))])
        whole = [folder for folder in kept if self._copy_checkpoint(folder)]
        if kept and whole and whole[-1] == kept[-1]:
            self._prune(kept)
        self.delivery.copy_changed(last)

    def _copy_checkpoint(self, folder: Path) -> bool:
        """Copy a checkpoint that Drive does not have; returns whether it is there now, whole."""
        name, target = self.delivery.name_of(folder), self.remote.root / self.delivery.name_of(folder)
        marker = folder / checkpoint.MARKER
        if not marker.is_file():
            return False
        now = look(marker, checkpoint.sha256(marker))
        seen = self.delivery.seen.get(name)
        if seen is not None and seen.sha256 == now.sha256 and has_all(target, folder):
            return True
        self.delivery.make_folders(target.parent)
        if problem := copy_checkpoint(folder, target):
            self.say(f"{folder.name} is not copied to Drive: {problem}.")
            return False
        self.delivery.seen[name] = now
        return True

    def _prune(self, kept: list[Path]) -> None:
        """Delete on Drive what was deleted here, and what is older than that; the newest one is there by now."""
        here = {folder.name for folder in kept}
        parent = self.delivery.name_of(self.local.checkpoints) + "/"
        delivered = {name.removeprefix(parent) for name in self.delivery.seen if name.startswith(parent)}
        gone, newest = delivered - here, _number(kept[-1].name)
        oldest = max((_number(name) for name in gone if _number(name) < newest), default=-1)
        for folder in checkpoint.numbered(self.remote.checkpoints):
            is_gone = folder.name in gone | self.damaged or _number(folder.name) <= oldest
            if is_gone and folder.name not in here:
                checkpoint.delete(folder)
        for name in gone:
            self.delivery.seen.pop(parent + name)
        self.damaged.clear()

    # -- from Drive --

    def _bring(self) -> None:
        # Of several processes on this machine an earlier one may have brought it already, or set it aside.
        self.delivery.recall()
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
        if not there and "run.json" in self.delivery.seen and not contents.holds_run(self.remote):
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
        self.delivery.check_there()  # a file that is missing because all are is no damage
        self.damaged.add(folder.name)
        self.delivery.seen.pop(self.delivery.name_of(self.local.checkpoints / folder.name), None)
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
        seen = self.delivery.seen.get("run.json")
        return seen is not None and checkpoint.sha256(self.remote.record) == seen.sha256

    def _note_checkpoint(self, name: str) -> None:
        marker = self.local.checkpoints / name / checkpoint.MARKER
        self.delivery.seen[self.delivery.name_of(self.local.checkpoints / name)] = look(
            marker, checkpoint.sha256(marker)
        )

    def _bring_files(self, is_newer: bool) -> None:
        """Copy small files here: all of them where Drive is newer, else those that are lacking; of logs the longer."""
        run, here, there = self.remote, contents.last_step(self.local.log), contents.last_step(self.remote.log)
        if there > here or (is_newer and there == here and size_of(run.log) is not None):
            self.delivery.bring_file(run.log)
        folders = (run.samples, run.tensorboard, run.class_images, run.adapter)
        alone = [run.config, run.annotations, run.held_out, run.best, run.record]
        found = [path for path in alone if size_of(path) is not None]
        found += [path for folder in folders if size_of(folder) is not None for path in files_of(folder)]
        wanted = [path for path in found if is_newer or not self._here(path).is_file()]
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(self.delivery.bring_file, wanted))

    def _set_aside(self, why: str) -> None:
        self.delivery.seen.clear()
        if not contents.holds_run(self.local):
            return
        aside = set_aside(self.local.root)
        self.say(f"The copy of {self.local.name} on this machine is not used, because {why}; it is in {aside} now.")

    def _here(self, path: Path) -> Path:
        return self.local.root / path.relative_to(self.remote.root)


def _number(name: str) -> int:
    return checkpoint.number_in(name) or 0
