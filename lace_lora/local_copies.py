"""Photographs on Drive, copied once to this machine's disk: Drive's mount is slow at reading a file twice.

All of a folder are copied side by side before anything reads them one by one. What was copied stays, so that a copying
that was cut off goes on; a photograph that Drive does not give, tried again and again, is that photograph's problem.
"""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lace_lora.checkpoint import PARTIAL, is_forgotten
from lace_lora.copying import copy_file
from lace_lora.counting import seconds_in_words
from lace_lora.image_files import LARGEST_FILE_GB

READERS = 12  # at once: Drive takes its time for each file
PAUSES = (1.0, 3.0, 8.0)  # seconds before a photograph is tried again
LINES = 12  # of progress, at most
FOLDER = "photographs"  # below cache_dir
NAMED = 20  # signs of a name's digest; two of a thousand names are alike once in 10^18 folders


Say = Callable[[str], None]


@dataclass(frozen=True)
class Copies:
    """Where photographs are read: a copy on this machine, or the file itself; and why some cannot be."""

    places: Mapping[Path, Path] = field(default_factory=dict)
    faults: Mapping[Path, str] = field(default_factory=dict)


def copy_all(paths: Iterable[Path], cache_dir: str | Path, say: Say) -> Copies:
    """Copies of photographs on Drive, those that are not here yet made side by side; see local_copy.

    say  is told how many are copied, how much, and what is left to wait for

    Where Drive does not answer at all, only the first photographs wait for it.
    """
    wanted = list(dict.fromkeys(paths))
    places: dict[Path, Path] = {}
    faults: dict[Path, str] = {}
    patience = _Patience()
    readers = ThreadPoolExecutor(READERS)
    try:
        sizes = dict(zip(wanted, readers.map(_missing_bytes, wanted, [cache_dir] * len(wanted)), strict=True))
        tell = _progress(say, [size for size in sizes.values() if size])
        copied = {readers.submit(patience.copy, path, cache_dir): path for path in wanted}
        for done in as_completed(copied):
            path = copied[done]
            try:
                places[path] = done.result()
            except OSError as error:
                faults[path] = f"cannot be read from Drive ({error.strerror or error})"
            if sizes[path]:
                tell(sizes[path])
    finally:  # also where the person stops it: what is copied stays
        readers.shutdown(wait=False, cancel_futures=True)
    if faults:
        first = next(path for path in wanted if path in faults)
        say(f"! {len(faults)} photographs {faults[first]}; the first is {first.name}")
    return Copies(places, faults)


def is_on_drive(folder: Path, drive_mount_path: str | Path) -> bool:
    """Whether a folder lies below the place where Drive is mounted, also through links."""
    drive = os.path.realpath(Path(drive_mount_path).expanduser())
    return Path(os.path.realpath(folder)).is_relative_to(drive)


def local_copy(path: Path, cache_dir: str | Path) -> Path:
    """A copy of a file on this machine, made unless it was made before and the file is as it was (size and time).

    returns  the copy, below cache_dir; the file itself where it is none, is larger than any photograph, or where this
             disk is full

    Raises OSError where Drive does not answer.
    """
    if not os.path.isfile(path):  # a link to nothing, or a pipe, which would be waited for without end
        return path
    found = path.stat()
    if found.st_size > LARGEST_FILE_GB * 2**30:
        return path
    folder, name = Path(cache_dir).expanduser() / FOLDER, _digest(os.fsencode(os.path.abspath(path)))
    copy = _copy_of(path, cache_dir, found)
    if copy.is_file() and copy.stat().st_size == found.st_size:
        return copy
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob(f"{name}-*"):
            # What another process writes or has just finished of the file as it is now stays.
            is_earlier = other.suffix != PARTIAL and other.name != copy.name
            if is_earlier or is_forgotten(other):
                other.unlink(missing_ok=True)
        copy_file(path, copy)
        if copy.stat().st_size != found.st_size:  # Drive gave less than it has, and no error
            copy.unlink()
            raise OSError(errno.EIO, "Drive gave only a part of it", str(path))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return path
        raise
    return copy


def _copy_of(path: Path, cache_dir: str | Path, found: os.stat_result) -> Path:
    """Where the copy lies of a file as it is now."""
    name, version = os.fsencode(os.path.abspath(path)), f"{found.st_size} {found.st_mtime_ns}".encode()
    return Path(cache_dir).expanduser() / FOLDER / f"{_digest(name)}-{_digest(version)}{path.suffix}"


def _missing_bytes(path: Path, cache_dir: str | Path) -> int:
    """How much is to be copied of a file; 0 where it was copied before, or Drive does not say."""
    with suppress(OSError):
        found = path.stat()
        copy = _copy_of(path, cache_dir, found)
        return 0 if copy.is_file() and copy.stat().st_size == found.st_size else found.st_size
    return 0


class _Patience:
    """How long a photograph is waited for: not at all, once as many as are copied at once came to nothing in a row."""

    def __init__(self) -> None:
        self._given_up = 0
        self._one = threading.Lock()

    def copy(self, path: Path, cache_dir: str | Path) -> Path:
        """The copy of a file, tried again after pauses."""
        for pause in PAUSES:
            try:
                return self._count(local_copy(path, cache_dir))
            except OSError:
                if self._given_up >= READERS:
                    raise
            time.sleep(pause)
        try:
            return self._count(local_copy(path, cache_dir))
        except OSError:
            with self._one:
                self._given_up += 1
            raise

    def _count(self, place: Path) -> Path:
        with self._one:
            self._given_up = 0
        return place


def _progress(say: Say, sizes: list[int]) -> Callable[[int], None]:
    """A counter of copied bytes that says now and then how far it is."""
    began, total, every = time.perf_counter(), sum(sizes), max(1, -(-len(sizes) // LINES))
    count = done = 0
    if sizes:
        say(f"copying   {len(sizes)} photographs, {total / 1e6:.0f} MB, from Drive to this machine")

    def tell(size: int) -> None:
        nonlocal count, done
        count, done = count + 1, done + size
        if count % every == 0 or count == len(sizes):
            left = (time.perf_counter() - began) / done * (total - done)
            waits = f"  {seconds_in_words(left)} left"
            amount = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB{waits if count < len(sizes) else ''}"
            say(f"copied    {count:>{len(str(len(sizes)))}}/{len(sizes)}  {amount}")

    return tell


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:NAMED]
