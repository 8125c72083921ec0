"""Where a sheet of designs is drawn: in its own folder, or, where that is on Drive, in one on this machine.

Every finished file goes to Drive at once and is read back there. A Drive that is full, read-only or gone is said once;
drawing goes on here, and what is owed is copied as soon as Drive takes it. What Drive holds of a sheet is taken up
first, so that another machine can finish it.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lace_lora import checkpoint, lock
from lace_lora.checkpoint import size_of
from lace_lora.copying import files_of, look, reason_of
from lace_lora.delivery import ATTEMPTS, READERS, Delivery, set_aside
from lace_lora.errors import LaceError, MachineError
from lace_lora.run_folder import RunFolder, Shard, SheetFolder

LARGE_ROWS = 1e6  # bytes of images.jsonl; a larger one is not copied anew for every picture
ROWS_SECONDS = 30.0
# What is deleted while a sheet is made, and so on Drive too. Designs are not among it, nor what was asked for.
PASSING = re.compile(
    r"latents/.*|elsewhere\.json|halved.*\.jsonl|redrawn.*\.jsonl|images-\d+-of-\d+\.jsonl|contact_sheet\.png|[^/]*\.zip"
    r"|(refined_output|base_result)_\d+_[a-z]+\.[a-z]+"
)

# What never changes once it is written: then its size tells whether Drive has it.
LASTING = re.compile(r"latents/.*|(refined_output|base_result)_\d+\.[a-z]+")

UNMARKED = "This sheet could not be marked on Drive as being drawn, so do not draw it on another machine meanwhile"

Say = Callable[[str], None]


@dataclass
class Workplace:
    """A sheet's own folder, and the one in which it is drawn; the same where the sheet is not on Drive."""

    kept: SheetFolder
    folder: SheetFolder
    delivery: Delivery
    say: Say
    rows_at: float = 0.0

    @classmethod
    def of(
        cls, run: RunFolder, kept: SheetFolder, drive_mount_path: str | Path, cache_dir: str | Path, say: Say
    ) -> "Workplace":
        """The working folder of a sheet of a run: below cache_dir where the sheet is on Drive, else its own."""
        delivery = Delivery.of(kept.root, run.root, drive_mount_path, cache_dir, say, "sheets")
        return cls(kept, SheetFolder(delivery.local), delivery, say) if delivery.is_on_drive else cls.at(kept, say)

    @classmethod
    def at(cls, kept: SheetFolder, say: Say) -> "Workplace":
        """The sheet's own folder, wherever it is: where nothing is to be drawn, or several processes share it."""
        return cls(kept, kept, Delivery.nowhere(kept.root, say), say)

    @property
    def is_apart(self) -> bool:
        """Whether the sheet is drawn elsewhere than it is kept."""
        return self.delivery.is_on_drive

    def begun(self) -> SheetFolder | None:
        """The folder whose request counts: the one here where Drive has none or what was delivered, else Drive's."""
        here, there = _digest(self.folder.request), _digest(self.kept.request)
        if here is None or there is None or here == there:
            return self.folder if here else self.kept if there else None
        seen = self.delivery.seen.get(self.kept.request.name)
        return self.folder if seen is not None and seen.sha256 == there else self.kept

    @contextmanager
    def locked(self, shard: Shard, say: Say) -> Iterator[None]:
        """Keep other processes from drawing the same, here and on Drive; a Drive that takes no lock is said."""
        waits = {"name": f"drawing{shard.suffix}.lock", "work": "drawn", "instead": "share the sheet: see shard"}
        with ExitStack() as stack:
            stack.enter_context(lock.lock(self.folder.root, say, **waits))
            if self.is_apart:
                try:
                    self.delivery.check_there()
                    if size_of(self.kept.request) is None:  # a folder with nothing but a lock would be another sheet's
                        self.hand_over([self.folder.request])
                    stack.enter_context(lock.lock(self.kept.root, say, **waits))
                except (OSError, LaceError) as error:
                    if isinstance(error, LaceError) and not isinstance(error.__cause__, OSError):
                        raise  # somebody draws there
                    self.delivery.away(error, UNMARKED)
            yield

    def bring(self) -> None:
        """Before drawing: take from Drive what this machine lacks, or has of an earlier time.

        Where both changed, Drive counts. Raises MachineError where Drive does not answer, or this disk is full.
        """
        if not self.is_apart:
            return
        for pause in (*ATTEMPTS, None):
            try:
                self.delivery.check_there()
                self._bring()
                return
            except (OSError, LaceError) as error:
                if pause is None:
                    raise MachineError(
                        f"What is finished of {self.kept.root} could not be copied to this machine "
                        f"({reason_of(error)}). Nothing was changed there. Mount Drive again, see that there is room "
                        f"for it in {self.folder.root.parent}, and run again."
                    ) from error
            time.sleep(pause)

    def hand_over(self, paths: Iterable[Path]) -> None:
        """Copy finished files to Drive, in this order; all that is owed, where Drive was away. Never raises."""
        if self.delivery.trouble is not None:
            self.deliver()
        elif self.is_apart:
            self.delivery.attempt(lambda: self.delivery.copy_changed(self._in_time(paths)), is_part=True)

    def deliver(self) -> bool:
        """Copy all that is new or changed to Drive, and delete there what was here; returns whether all is there."""
        return self.delivery.attempt(self._deliver)

    def finish(self, what: str, seconds: float) -> str:
        """The last delivery, tried again for as long as that; the copy here goes once all is on Drive.

        what     is finished, in the sentence
        returns  a sentence that tells where everything is and what to do; empty where all is on Drive
        """
        if not self.is_apart:
            return ""
        with suppress(KeyboardInterrupt):  # whoever does not want to wait may stop it
            if self.delivery.insist(self.deliver, seconds):
                self._forget()
                return ""
        return (
            f"{what} in {self.folder.root} on this machine, but not all of it on Drive: {self.delivery.trouble}. "
            "Do not close this session, its disk goes with it. Make room on Drive or mount it again, and run the same "
            "again: what is finished is only copied."
        )

    # -- inside --

    def _forget(self) -> None:
        """Delete the copy here; what was set aside stays."""
        shutil.rmtree(self.folder.root, ignore_errors=True)
        self.delivery.forget()
        with suppress(OSError):
            self.folder.root.parent.rmdir()

    def _in_time(self, paths: Iterable[Path]) -> list[Path]:
        """The files but for long lists that were copied a moment ago: each design adds a line to them.

        What was asked for comes first: without it a folder on Drive would be another sheet's.
        """
        wanted = [] if self.folder.request.name in self.delivery.seen else [self.folder.request]
        for path in paths:
            is_list = path.suffix == ".jsonl" and (size_of(path) or 0) > LARGE_ROWS
            if not is_list or time.monotonic() - self.rows_at >= ROWS_SECONDS:
                wanted.append(path)
                self.rows_at = time.monotonic() if is_list else self.rows_at
        return wanted

    def _deliver(self) -> None:
        # What was asked for first: a folder without it is another sheet's. Rows after the pictures that they name.
        def order(path: Path) -> tuple[bool, bool, int, Path]:
            return path != self.folder.request, path.suffix == ".jsonl", path.stat().st_mtime_ns, path

        files = sorted(files_of(self.folder.root), key=order)
        self.delivery.copy_changed(files)
        here = {self.delivery.name_of(path) for path in files}
        for name in [name for name in self.delivery.seen if name not in here and PASSING.fullmatch(name)]:
            target = self.kept.root / name
            target.unlink(missing_ok=True)
            with suppress(OSError):  # one that still holds something
                if target.parent != self.kept.root:
                    target.parent.rmdir()
            self.delivery.seen.pop(name)

    def _bring(self) -> None:
        self.delivery.recall()
        checkpoint.sweep(self.folder.root)
        if self.folder.request.is_file() and self.begun() == self.kept:
            self._set_aside()
        wanted = [path for path in self.kept.files() if self._is_wanted(path)]
        if wanted:
            self.say(f"taken     {len(wanted)} files of {self.kept.root.name} from Drive")
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(self.delivery.bring_file, wanted))
        self.delivery.remember()

    def _is_wanted(self, path: Path) -> bool:
        """Whether a file of Drive is not here, or not as it is there by now."""
        name = path.relative_to(self.kept.root).as_posix()
        mine, seen = self.folder.root / name, self.delivery.seen.get(name)
        is_as_delivered = seen is not None and size_of(path) == seen.size
        if is_as_delivered and seen is not None and not LASTING.fullmatch(name):
            is_as_delivered = checkpoint.sha256(path) == seen.sha256
        if not mine.is_file():
            return not (is_as_delivered and PASSING.fullmatch(name))
        if is_as_delivered or path.suffix == ".jsonl" and mine.read_bytes().startswith(path.read_bytes()):
            return False
        if size_of(path) == size_of(mine) and (sha256 := checkpoint.sha256(path)) == checkpoint.sha256(mine):
            self.delivery.seen[name] = look(mine, sha256)
            return False
        return True

    def _set_aside(self) -> None:
        """The sheet here was begun apart from the one of that name on Drive."""
        aside = set_aside(self.folder.root)
        self.delivery.seen.clear()
        self.folder.root.mkdir()
        for held in aside.glob("*.lock"):
            os.replace(held, self.folder.root / held.name)
        self.say(f"Drive holds another sheet {self.kept.root.name}; what was drawn here is in {aside} now.")


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
