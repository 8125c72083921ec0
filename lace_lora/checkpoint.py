"""Files and folders that are complete or absent, never half. Knows folders, not models.

A file is written as `name.partial`, flushed to the disk and renamed. A folder is written as `name.partial`, gets a
marker with the sha256 of each of its files, and is renamed; only folders whose marker fits their files are complete.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lace_lora.errors import LaceError, MachineError, RunError

MARKER = "complete.json"
PARTIAL = ".partial"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it holds the old content or all of the new, whenever the power goes."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            file.write(data)
            _to_disk(file.fileno())

    write_file(path, write)


def write_text(path: Path, text: str) -> None:
    """The same for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """The same for a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """The same for a writer of its own (a picture, a safetensors file): it gets the partial path to write to."""
    partial = path.with_name(path.name + PARTIAL)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str) -> None:
    """Add one line to a log in a single write, so that a cut can only lose or shorten the last line."""
    with writing(path), open(path, "ab") as file:
        file.write(line.encode("utf-8") + b"\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a last line that a cut left half is passed over. No file gives no rows."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder that is complete or absent: `write` gets an empty folder to fill.

    Raises MachineError when the disk is full, RunError when it cannot be written; an earlier folder of that name then
    stands as it was.
    """
    partial, old = folder.with_name(folder.name + PARTIAL), folder.with_name(folder.name + ".old")
    with writing(folder):
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write(partial)
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            for path in files:
                with open(path, "rb") as file:
                    _to_disk(file.fileno())
            sums = {path.relative_to(partial).as_posix(): sha256(path) for path in files}
            write_json(partial / MARKER, sums)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)


def problem_of(folder: Path) -> str | None:
    """Why a folder does not count as complete, in a few words, or None when every file is as it was written."""
    marker = folder / MARKER
    try:
        sums = json.loads(marker.read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256(folder / name) != expected:
                return f"{name} is not as it was written (its checksum differs)"
    except FileNotFoundError:
        return "it was cut off while being written"
    except (OSError, ValueError, AttributeError) as error:
        return f"its marker cannot be read ({error})"
    return None


def newest(parent: Path) -> tuple[Path | None, list[str]]:
    """The newest complete folder `…-<number>` in parent, and a sentence for each newer one that was passed over."""
    notes: list[str] = []
    for folder in reversed(numbered(parent)):
        problem = problem_of(folder)
        if problem is None:
            return folder, notes
        notes.append(f"{folder.name} is passed over: {problem}.")
    return None, notes


def prune(parent: Path, keep: int, written: Path) -> list[Path]:
    """Delete all but the newest `keep` complete folders, and those numbered above `written`, the one just saved.

    Such folders were passed over as damaged when their work was begun again; counted by their numbers they would
    outlive the good ones. What has no marker does not count and stays for a look.
    """
    found = numbered(parent)
    stale = found[found.index(written) + 1 :] if written in found else []
    complete = [folder for folder in found if (folder / MARKER).is_file() and folder not in stale]
    dropped = complete[:-keep] + stale
    for folder in dropped:
        shutil.rmtree(folder, ignore_errors=True)
    return dropped


def numbered(parent: Path) -> list[Path]:
    """Folders named `<word>-<number>` in parent, by number; partial ones are left out."""
    folders = [path for path in parent.glob("*-*") if path.is_dir() and path.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))


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
    if error.errno in (errno.ENOTCONN, errno.EIO, errno.ESTALE):
        return MachineError(f"Drive is not answering: {path} could not be written. {kept} Mount Drive and run again.")
    return RunError(f"{path} could not be written ({error.strerror or error}). {kept}")


def _to_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no fsync
            raise
