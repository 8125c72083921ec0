"""Files and folders that are complete or absent, never half. Knows folders, not models.

A file is written under a partial name, flushed to the disk and renamed. A folder is written under a partial name, gets
a marker with the sha256 of each of its files, is read back, and is renamed; only folders whose marker fits their files
are complete. A partial name tells which process wrote it, so that two cannot disturb each other, and what a killed one
left can be told from what is being written.
"""

import errno
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from lace_lora.errors import LaceError, MachineError, RunError

MARKER = "complete.json"
DAMAGED = ".damaged"
PARTIAL, OLD = ".partial", ".old"  # being written or deleted; an earlier folder, while another takes its place
FORGOTTEN_SECONDS = 24 * 3600
NO_ANSWER = (errno.ENOTCONN, errno.EIO, errno.ESTALE)  # what a Drive that was dropped gives


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it holds the old content or all of the new, whenever the power goes."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            file.write(data)
            _flush(file.fileno())

    write_file(path, write)


def write_text(path: Path, text: str) -> None:
    """The same for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """The same for a value as indented JSON; half a character, as in names that are no UTF-8, is escaped."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """The same for a writer of its own (a picture, a safetensors file): it gets the partial path to write to."""
    partial = partial_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_new(path: Path, data: bytes) -> bool:
    """Write a file that is not there yet; False where another process has written it first, whose content stays.

    Where the file system knows no hard links (Drive), of two processes at one moment the last one counts.
    """
    partial = partial_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                _flush(file.fileno())
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            except OSError:
                if path.exists():
                    return False
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return True


def append_line(path: Path, line: str) -> None:
    """Add one line to a log in a single write, so that a cut can only lose or shorten the last line."""
    with writing(path), open(path, "ab") as file:
        file.write(line.encode("utf-8") + b"\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a last line that a cut left half is passed over. No file gives no rows."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a text may hold other line breaks
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return rows


def save_folder(folder: Path, write: Callable[[Path], None], sums: Mapping[str, str] | None = None) -> None:
    """Write a folder that is complete or absent: `write` gets an empty folder to fill.

    sums  the sha256 that each file must have, where that is known (of a copy); without it, what can be read of it right
          after writing, before it goes to the disk

    The files are read back from the disk before anything else is touched. Raises MachineError when the disk is full or
    gives back other bytes, RunError when it cannot be written; an earlier folder of that name then stands as it was.
    """
    partial = partial_of(folder)
    with writing(folder):
        partial.mkdir(parents=True)
        try:
            write(partial)
            expected = sums_of(partial) if sums is None else sums
            (partial / MARKER).write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
            for path in _files(partial):
                to_disk(path)
            _names_to_disk(partial)
            if problem := _difference(partial):
                raise MachineError(
                    f"What was written to {folder} cannot be read back: {problem}. The disk may be failing. What was "
                    "finished before stays as it was. Run again to go on from there, with another lora_output_dir if "
                    "it happens again."
                )
            _put_in_place(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def problem_of(folder: Path) -> str | None:
    """Why a folder does not count as complete, in a few words, or None when every file is as it was written."""
    try:
        return _difference(folder)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def marked_sums(folder: Path) -> dict[str, str]:
    """The sha256 of each file as the folder's marker tells. Raises OSError or ValueError where it cannot be read."""
    sums = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    if not isinstance(sums, dict):
        raise ValueError("it lists no files")
    return sums


def sums_of(folder: Path) -> dict[str, str]:
    """The sha256 of each file below a folder, by its name there."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in _files(folder)}


def newest(parent: Path) -> tuple[Path | None, list[str]]:
    """The newest complete folder `…-<number>` in parent, and a sentence for each newer one that was passed over."""
    notes: list[str] = []
    for folder in reversed(numbered(parent)):
        problem = problem_of(folder)
        if problem is None:
            return folder, notes
        notes.append(f"{folder.name} is passed over: {problem}.")
    return None, notes


def prune(parent: Path, keep: int, written: Path, best: Path | None = None) -> list[Path]:
    """Delete all but the newest `keep` complete folders, and those numbered above `written`, the one just saved.

    best  is never deleted, and not counted when it is an older one

    Those above `written` were passed over as damaged when their work was begun again; counted by their numbers they
    would outlive the good ones. What has no marker does not count and stays for a look.
    """
    found = numbered(parent)
    stale = found[found.index(written) + 1 :] if written in found else []
    complete = [folder for folder in found if (folder / MARKER).is_file() and folder not in stale]
    dropped = [folder for folder in complete[:-keep] + stale if folder != best]
    for folder in dropped:
        with suppress(OSError):  # one that stays is in nobody's way
            delete(folder)
    return dropped


def set_aside_after(parent: Path, newest: Path | None) -> None:
    """Rename the folders above the newest whole one to `….damaged`: for a look, and in nobody's way."""
    found = numbered(parent)
    for folder in found[found.index(newest) + 1 :] if newest in found else found:
        aside = folder.with_name(folder.name + DAMAGED)
        with suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)


def delete(folder: Path) -> None:
    """Delete a folder so that a cut leaves it whole or gone: a complete one that lacks files would be in the way."""
    rest = partial_of(folder)
    os.replace(folder, rest)
    shutil.rmtree(rest, ignore_errors=True)


def numbered(parent: Path) -> list[Path]:
    """Folders named `<word>-<number>` in parent, by number; partial ones are left out. No parent holds none.

    Raises OSError where the file system does not answer: taken for an empty folder, it would cost finished work.
    """
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [parent / name for name in sorted((one for one in names if number_in(one) is not None), key=_by_number)]


def number_in(name: str) -> int | None:
    """250 for step-000250; None for a name that is not `<word>-<number>`."""
    word, _, number = name.rpartition("-")
    return int(number) if word and number.isdecimal() else None


def size_of(path: Path) -> int | None:
    """The size of a file or folder in bytes; None where there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def sweep(root: Path, *, also_own: bool = False) -> None:
    """Clear away what killed processes left half-written or half-deleted anywhere below a folder.

    also_own  also what this process left, where it is known to write nothing there now

    What a living process of this machine writes is left alone, and what another machine wrote, for a day. A folder
    whose successor never took its place is put back.
    """
    for place, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(place, name)
            if not is_forgotten(path, also_own):
                continue
            with suppress(OSError):
                earlier = path.with_name(name.rsplit(".", 2)[0])
                if path.suffix == OLD and not earlier.exists():
                    os.replace(path, earlier)
                elif path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
        folders[:] = [name for name in folders if Path(name).suffix not in (PARTIAL, OLD)]


def sweep_file(path: Path) -> None:
    """The same for one file only, in a folder where other programs' files may have such names."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}"):
        if is_forgotten(left):
            with suppress(OSError):
                left.unlink()


def is_forgotten(path: Path, also_own: bool = False) -> bool:
    """Whether it is a partial name on which nobody is at work any more: see sweep."""
    if path.suffix not in (PARTIAL, OLD):
        return False
    machine, _, process = path.stem.rpartition(".")[2].partition("-")
    number = process.partition("-")[0]
    if machine == this_machine() and number.isdecimal():
        return also_own if int(number) == os.getpid() else not is_running(int(number))
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS
    return False


def partial_of(path: Path) -> Path:
    """A name beside `path` to write to, which no other process and no other thread takes."""
    return _beside(path, PARTIAL)


def is_running(pid: int, started: float | None = None) -> bool:
    """Whether a process of this machine lives; begun at `started` (seconds since 1970), as numbers are used again."""
    try:
        process = psutil.Process(pid)
        is_another = started is not None and abs(process.create_time() - started) > 2
        return not is_another and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@cache
def this_machine() -> str:
    """A short name of this computer since it was started, within which a process id means one process only.

    Containers may share a host's name and its start, but not its process ids.
    """
    told = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            told.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text(encoding="ascii"))
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:8]


def sha256(path: Path) -> str:
    """sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what an operating system says about a full disk or a missing permission into a sentence about `path`."""
    try:
        yield
    except LaceError:
        raise
    except OSError as error:
        raise _sentence(error, path) from error


def _sentence(error: OSError, path: Path) -> LaceError:
    kept = "What was finished before stays as it was."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"The disk is full: {path} could not be written. {kept} Free some space and run again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(f"No permission to write {path}. {kept} Choose another folder with lora_output_dir.")
    if error.errno in NO_ANSWER:
        return MachineError(f"Drive is not answering: {path} could not be written. {kept} Mount Drive and run again.")
    return RunError(f"{path} could not be written ({error.strerror or error}). {kept}")


def to_disk(path: Path) -> None:
    """Have a file written to the disk itself, and read from there the next time, where the system knows how."""
    with open(path, "rb+") as file:  # Windows flushes none that is open for reading only
        _flush(file.fileno())
        with suppress(AttributeError, OSError):  # not on macOS and Windows
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some network file systems have no fsync
            raise


def _difference(folder: Path) -> str | None:
    """problem_of, but for a file system that does not answer: then OSError."""
    try:
        sums = marked_sums(folder)
    except FileNotFoundError:
        return "it was cut off while being written"
    except ValueError as error:
        return f"its marker cannot be read ({error})"
    for name, expected in sums.items():
        if size_of(folder / name) is None:
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} is not as it was written (its checksum differs)"
    return None


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename a written folder; one that is there already goes only when the other has its place."""
    old, is_there = _beside(folder, OLD), folder.exists()
    if is_there:
        os.replace(folder, old)
    try:
        os.replace(partial, folder)
    except BaseException:
        if is_there:
            os.replace(old, folder)
        raise
    _names_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _names_to_disk(folder: Path) -> None:
    """A rename is on the disk when the folder is: older checkpoints are deleted only after that."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems do not flush them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{this_machine()}-{os.getpid()}-{secrets.token_hex(3)}{suffix}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _by_number(name: str) -> tuple[int, str]:
    return number_in(name) or 0, name
