"""Photographs on Drive, copied once to this machine's disk: Drive's mount is slow at reading a file twice."""

import errno
import hashlib
import os
from pathlib import Path

from lace_lora.copying import copy_file
from lace_lora.image_files import LARGEST_FILE_GB

FOLDER = "photographs"  # below cache_dir
NAMED = 20  # signs of a name's digest; two of a thousand names are alike once in 10^18 folders


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
    folder = Path(cache_dir).expanduser() / FOLDER
    name = _digest(os.fsencode(os.path.abspath(path)))
    copy = folder / f"{name}-{_digest(f'{found.st_size} {found.st_mtime_ns}'.encode())}{path.suffix}"
    if copy.is_file() and copy.stat().st_size == found.st_size:
        return copy
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob(f"{name}-*"):
            earlier.unlink(missing_ok=True)
        copy_file(path, copy)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return path
        raise
    return copy


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:NAMED]
