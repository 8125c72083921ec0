"""Copies between this machine's disk and Drive: each is read back before it takes its name, and remembered.

Every function here lets an OSError of Drive through: what cannot be asked must not count as missing.
"""

import errno
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lace_lora import checkpoint
from lace_lora.checkpoint import size_of
from lace_lora.errors import LaceError
from lace_lora.lock import LOCK

CHUNK = 4 * 1024**2


@dataclass(frozen=True)
class Seen:
    """A file of this machine as it was when Drive had the same; size in bytes, mtime in nanoseconds."""

    size: int
    mtime: int
    inode: int
    sha256: str

    def is_of(self, path: Path) -> bool:
        """Whether the file was not touched since; one that was replaced is another inode."""
        found = path.stat()
        return (found.st_size, found.st_mtime_ns, found.st_ino) == (self.size, self.mtime, self.inode)


def look(path: Path, sha256: str) -> Seen:
    """A file as it is now."""
    found = path.stat()
    return Seen(found.st_size, found.st_mtime_ns, found.st_ino, sha256)


def copy_file(source: Path, target: Path) -> str:
    """Copy a file whole or not at all, and return the sha256 of what was copied.

    Raises OSError where it cannot be written, or is not read back as it was written; an earlier target then stays.
    """
    partial, digest = checkpoint.partial_of(target), hashlib.sha256()
    try:
        with open(source, "rb") as there, open(partial, "wb") as here:
            while chunk := there.read(CHUNK):
                digest.update(chunk)
                here.write(chunk)
        checkpoint.to_disk(partial)
        if checkpoint.sha256(partial) != digest.hexdigest():
            raise OSError(errno.EIO, "it is not read back as it was written", str(target))
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def copy_checkpoint(source: Path, target: Path) -> str | None:
    """Copy a checkpoint whole or not at all; return what is wrong with the source where it is not whole itself.

    Raises a LaceError where Drive or the disk fails.
    """
    if problem := missing_in(source):
        return problem
    sums = checkpoint.marked_sums(source)

    def fill(folder: Path) -> None:
        for name in sums:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)

    try:
        checkpoint.save_folder(target, fill, sums)
    except LaceError as error:
        if isinstance(error.__cause__, OSError):
            raise
        # The copy is not what the marker says: either it was not when it was read, or it was not written so.
        for name, expected in sums.items():
            if checkpoint.sha256(source / name) != expected:
                return f"{name} is not as it was written (its checksum differs)"
        raise
    return None


def missing_in(folder: Path) -> str | None:
    """What a checkpoint lacks, by its marker and the names of its files; None where all are there."""
    try:
        sums = checkpoint.marked_sums(folder)
    except FileNotFoundError:
        return "it was cut off while being written"
    except ValueError as error:
        return f"its marker cannot be read ({error})"
    return next((f"{name} is missing" for name in sums if size_of(folder / name) is None), None)


def has_all(target: Path, source: Path) -> bool:
    """Whether each file of a checkpoint is in another folder too, as large; its contents were checked when copied."""
    return all(size_of(target / path.relative_to(source)) == path.stat().st_size for path in files_of(source))


def files_of(folder: Path) -> list[Path]:
    """All finished files below a folder, by name; not the locks, nor what is being written."""
    if size_of(folder) is None:
        return []
    found = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not _is_unfinished(name)]
        found += [Path(place, name) for name in files if not _is_unfinished(name)]
    return sorted(found)


def reason_of(error: Exception) -> str:
    """What the system says of a copy that failed, in a few words with what helps."""
    cause = error.__cause__ if isinstance(error, LaceError) else error
    if not isinstance(cause, OSError):
        return str(error)
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no room is left; empty Drive's bin or delete something there"
    if cause.errno in checkpoint.NO_ANSWER:
        return f"Drive does not answer: {cause.strerror}"
    if cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"nothing may be written there: {cause.strerror}"
    return f"{cause.strerror or cause}{f': {cause.filename}' if cause.filename else ''}"


def _is_unfinished(name: str) -> bool:
    return Path(name).suffix in (checkpoint.PARTIAL, checkpoint.OLD, Path(LOCK).suffix)


def _raise(error: OSError) -> None:
    raise error
