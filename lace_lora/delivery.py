"""A folder on Drive and the one on this machine in which the work is done: what is finished is copied over and checked.

A Drive that is full, read-only or gone is said once, tried again after a pause that grows, and costs no work. Whoever
works decides what is copied and in which order; see mirror (a training) and workplace (a sheet of designs).
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lace_lora import checkpoint
from lace_lora.checkpoint import size_of
from lace_lora.config import Config
from lace_lora.copying import Seen, copy_file, look, reason_of
from lace_lora.errors import LaceError
from lace_lora.machine import drive_is_mounted

PAUSES = (15.0, 600.0)  # seconds from a failed delivery to the next one: at first, and at most; doubled each time
ATTEMPTS = (1.0, 4.0, 15.0)  # pauses in seconds while something is taken from Drive
READERS = 8  # at once: Drive takes its time for each small file
ASIDE = ".set_aside"
MEMORY_SECONDS = 30.0  # between two notes of what was delivered, where they are written for single files

Say = Callable[[str], None]


@dataclass
class Delivery:
    """A folder on Drive and its working folder; where the folder is not on Drive both are the same, and none copies."""

    remote: Path
    local: Path
    base: Path  # on Drive: where this folder is gone, Drive is; none is made above it
    drive: Path  # where Drive is mounted
    say: Say
    seen: dict[str, Seen] = field(default_factory=dict)  # by name in the folder
    trouble: str | None = None
    pause: float = PAUSES[0]
    next_try: float = 0.0
    told_at: float = 0.0
    remembered_at: float = 0.0

    @classmethod
    def of(
        cls, remote: Path, base: Path, drive_mount_path: str | Path, cache_dir: str | Path, say: Say, kind: str
    ) -> "Delivery":
        """The working folder: below cache_dir where the folder is on Drive, else the folder itself.

        kind  of work, the name of the folder in cache_dir
        """
        drive = _real(drive_mount_path)
        if not _real(remote).is_relative_to(drive):
            return cls.nowhere(remote, say)
        cache = _real(cache_dir)
        if cache.is_relative_to(drive):  # a working folder on Drive would be none
            cache = _real(Config.model_fields["cache_dir"].default)
        digest = hashlib.sha256(os.fsencode(_real(remote))).hexdigest()[:12]
        found = cls(remote, cache / kind / digest / remote.name, base, drive, say)
        found.recall()
        return found

    @classmethod
    def nowhere(cls, folder: Path, say: Say) -> "Delivery":
        """Of a folder in which the work itself is done."""
        return cls(folder, folder, folder.parent, Path(), say)

    @property
    def is_on_drive(self) -> bool:
        """Whether there is anything to copy."""
        return self.local != self.remote

    # -- trying --

    def attempt(self, copy: Callable[[], None], *, is_part: bool = False) -> bool:
        """Copy, unless Drive failed a moment ago; say when it goes away and when it is back. Returns whether it went.

        is_part  of what is owed: then what was copied is noted now and then only
        """
        if not self.is_on_drive:
            return True
        if time.monotonic() < self.next_try:
            return False
        try:
            self.check_there()
            copy()
        except (OSError, LaceError) as error:
            self.away(error)
            return False
        finally:
            self.told_at = time.monotonic()
            if not is_part or self.told_at - self.remembered_at >= MEMORY_SECONDS:
                self.remember()
        if self.trouble is not None:
            checkpoint.sweep(self.remote, also_own=True)
            self.trouble, self.pause, self.next_try = None, PAUSES[0], 0.0
            self.say(f"Drive is back: everything is in {self.remote}.")
        return True

    def insist(self, deliver: Callable[[], bool], seconds: float) -> bool:
        """Deliver, tried again for as long as that; returns whether everything is there."""
        until, pause = time.monotonic() + seconds, 1.0
        self.next_try = 0.0
        while not deliver():
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause, self.next_try = min(2 * pause, 30.0), 0.0
        return True

    def away(self, error: Exception, failed: str = "Copying to Drive failed") -> None:
        """Drive failed: say what did, unless the reason was said, and wait before the next attempt."""
        reason = reason_of(error)
        if reason != self.trouble:
            self.say(f"{failed} ({reason}). The work goes on and is kept in {self.local}; copying is tried again.")
        self.trouble = reason
        self.next_try, self.pause = time.monotonic() + self.pause, min(2 * self.pause, PAUSES[1])

    def check_there(self) -> None:
        """Raises OSError where Drive is not there.

        The empty folder that an unmounted Drive leaves takes files as any other, and with files in it Drive cannot be
        mounted again.
        """
        if size_of(self.base) is None or not drive_is_mounted(self.drive):
            raise OSError(errno.ENOTCONN, "Drive is not mounted", str(self.base))

    # -- copying; OSErrors of Drive go through --

    def copy_changed(self, files: Iterable[Path]) -> None:
        """Copy those of these files to Drive that it does not have as they are; each is read back."""
        for path in files:
            name = self.name_of(path)
            seen, target = self.seen.get(name), self.remote / name
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
            self.make_folders(target.parent)
            before = look(path, "")  # a log that grows meanwhile is copied again the next time
            self.seen[name] = replace(before, sha256=copy_file(path, target))

    def make_folders(self, folder: Path) -> None:
        """Make a folder on Drive, but none above the base: where that is gone, Drive is."""
        inside = [one for one in (folder, *folder.parents) if one != self.base and one.is_relative_to(self.base)]
        for one in reversed(inside):
            if size_of(one) is None:
                one.mkdir(exist_ok=True)

    def bring_file(self, path: Path) -> None:
        """Copy a file of Drive here."""
        target = self.local / path.relative_to(self.remote)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.seen[self.name_of(target)] = look(target, copy_file(path, target))

    def name_of(self, path: Path) -> str:
        """How a file of the working folder is called in either."""
        return path.relative_to(self.local).as_posix()

    # -- what was copied --

    def remember(self) -> None:
        """Note beside the working folder what Drive has."""
        facts = {"remote": str(self.remote), "files": {name: asdict(one) for name, one in self.seen.items()}}
        with suppress(LaceError):  # forgotten, everything is copied once more
            checkpoint.write_json(self._memory, facts)
        self.remembered_at = time.monotonic()

    def recall(self) -> None:
        """Take up what was noted, by whichever process."""
        self.seen = {}
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            facts = json.loads(self._memory.read_text(encoding="utf-8"))
            if facts["remote"] == str(self.remote):
                self.seen = {name: Seen(**one) for name, one in facts["files"].items()}

    def forget(self) -> None:
        """Note nothing any more, once the working folder is gone."""
        self.seen = {}
        self._memory.unlink(missing_ok=True)

    @property
    def _memory(self) -> Path:
        return self.local.parent / "delivered.json"


def set_aside(folder: Path) -> Path:
    """Rename a working folder that is not to be used; returns its new name, which no earlier one has."""
    aside, number = folder.with_name(f"{folder.name}{ASIDE}"), 2
    while aside.exists():
        aside, number = folder.with_name(f"{folder.name}{ASIDE}-{number}"), number + 1
    os.replace(folder, aside)
    return aside


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))
