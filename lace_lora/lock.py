"""One process at a time at a run or at a sheet, by a small file in its folder that names who is at work there.

File locks of the operating system do not reach through Google Drive, so the file tells of itself: which process of
which machine, and when it last gave a sign of life. What a killed process left is recognised and taken over.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil

from lace_lora import checkpoint
from lace_lora.errors import LaceError, RunError

LOCK = "training.lock"
REFRESH_SECONDS = 30.0
# A sign of life reaches another machine through Drive within a minute or two; a machine of Colab that was taken away
# gives none, and its run must go on elsewhere without anybody deleting files by hand.
SILENT_SECONDS = 300.0
LOOK_SECONDS = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """Who trains in a folder; times in seconds since 1970, by the clock of that machine."""

    host: str
    machine: str  # of this start of the computer: process ids mean something only there
    pid: int
    started: float  # of the process, because process ids are used again
    since: float
    refreshed: float
    token: str

    def __str__(self) -> str:
        """In a sentence."""
        return f"process {self.pid} on {self.host}, since {_clock(self.since)}"


@contextmanager
def lock(
    folder: Path, say: Say, name: str = LOCK, work: str = "trained", instead: str = "choose another run_name"
) -> Iterator[None]:
    """Keep other processes from working in a folder while the block runs; clear away what killed ones left there.

    name     of the lock's file
    work     what is done to the folder, and what a person can do instead of waiting, in the sentences that are said
    instead

    The lock of a process that died on this machine is taken over at once, that of another machine when it gave no sign
    of life for SILENT_SECONDS: as long is waited, saying so. Raises RunError that names who is at work there already.
    """
    path, now = folder / name, time.time()
    started = psutil.Process().create_time()
    token = os.urandom(8).hex()
    mine = Holder(platform.node(), checkpoint.this_machine(), os.getpid(), started, now, now, token)
    _take(path, mine, say, work, instead)
    over = threading.Event()
    sign = threading.Thread(target=_give_signs, args=(path, mine, over, say), name=_thread_name(mine), daemon=True)
    sign.start()
    try:
        checkpoint.sweep(folder)
        yield
    finally:
        over.set()
        sign.join(timeout=5)  # a Drive that hangs must not hold up the end
        with suppress(OSError):
            if _read(path) == mine.token:
                path.unlink()


def holder_of(folder: Path, name: str = LOCK) -> Holder | None:
    """Who works in a folder as its lock tells, alive or not; None where there is none, or none that can be read."""
    try:
        return Holder(**json.loads((folder / name).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_held(folder: Path, name: str = LOCK) -> bool:
    """Whether somebody works in a folder now, as far as the lock tells; by default: trains."""
    try:
        holder = holder_of(folder, name)
        return holder is not None and not _is_gone(holder)
    except (TypeError, ValueError):  # a lock whose values are no numbers is none
        return False


# -- inside --


def _take(path: Path, mine: Holder, say: Say, work: str, instead: str) -> None:
    """Write the own lock when the folder is free, waiting for another machine that may be gone."""
    first: Holder | None = None
    while True:
        with checkpoint.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path.parent):
                found = holder_of(path.parent, path.name)
                if found is None or _is_gone(found):
                    _write(path, mine)
                    break
        has_spoken = first is not None and (found.token, found.refreshed) != (first.token, first.refreshed)
        if found.machine == mine.machine or has_spoken:
            raise RunError(_refusal(path, found, work, instead))
        if first is None:
            first = found
            say(
                f"{path.parent.name} was {work} by {found}. It gave its last sign of life at "
                f"{_clock(found.refreshed)}; if none follows until {_clock(found.refreshed + SILENT_SECONDS)}, "
                "this one goes on in its place."
            )
        time.sleep(LOOK_SECONDS)
    if found is not None:
        say(f"{path.parent.name} was {work} by {found}, which ended without a word; this one goes on in its place.")


def _is_gone(holder: Holder) -> bool:
    """Whether nobody works under a lock any more."""
    if holder.machine != checkpoint.this_machine():
        return time.time() - holder.refreshed > SILENT_SECONDS
    if holder.pid == os.getpid():  # an earlier cell of this notebook, which could not delete its lock
        return not any(thread.name == _thread_name(holder) for thread in threading.enumerate())
    return not checkpoint.is_running(holder.pid, holder.started)


def _refusal(path: Path, holder: Holder, work: str, instead: str) -> str:
    return (
        f"{path.parent} is being {work} already, by {holder}. Wait until it has ended or stop it there, or {instead}. "
        f"If nothing is at work there any more, delete {path}."
    )


def _give_signs(path: Path, mine: Holder, over: threading.Event, say: Say) -> None:
    """Tell now and then that the process is alive, until it is over or another one took the folder."""
    while not over.wait(REFRESH_SECONDS):
        with suppress(OSError, LaceError):  # a Drive that does not answer now may do so the next time
            found = _read(path)
            if found != mine.token and found is not None:
                say(f"Another process works in {path.parent} too by now. Stop one of them.")
                return
            # Not where the folder is gone: writing there would make one on the disk below a Drive that was unmounted.
            if path.parent.is_dir() and not over.is_set():
                _write(path, replace(mine, refreshed=time.time()))


def _read(path: Path) -> str | None:
    found = holder_of(path.parent, path.name)
    return found.token if found else None


def _write(path: Path, holder: Holder) -> None:
    partial = checkpoint.partial_of(path)
    try:
        partial.write_text(json.dumps(asdict(holder), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other process of this machine look and write at the same time, where the file system can tell."""
    descriptor = None
    with suppress(ImportError, OSError):  # Windows; network file systems
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _thread_name(holder: Holder) -> str:
    return f"lock {holder.token}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
