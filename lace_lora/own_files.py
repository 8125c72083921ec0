"""The files that are written into a person's folder of photographs: whole or not at all, and what they held is kept.

What stood in a file before stays beside it as `name.bak`, `name.bak2`, …; what is kept already is not kept twice. What
cannot be written, because Drive is full, read-only or gone, is put down on this machine, so that nothing typed is lost.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from lace_lora.checkpoint import sweep_file, write_bytes
from lace_lora.errors import LaceError, MachineError, PicturesError, RunError
from lace_lora.file_names import printable

Say = Callable[[str], None]

_WRITABLE = "Make its folder writable, or copy the pictures to a folder that is."
_ROOM, _MOUNT = "Make room there, in Drive also in its bin, and try again.", "Mount Drive again and try again."
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = dict.fromkeys(_FULL, _ROOM) | {errno.ENOTCONN: _MOUNT, errno.EIO: _MOUNT, errno.ESTALE: _MOUNT}

_log = logging.getLogger(__name__)


class OwnFile:
    """A text file through one sitting, in which it may be written many times: what somebody else wrote there is kept.

    say    is told where that is kept
    spare  where the content is put down while the file cannot be written; see spare_of
    """

    def __init__(self, path: Path, say: Say = _log.info, spare: Path | None = None) -> None:
        self.path = path
        self._say = say
        self._spare = spare
        self._own: bytes | None = None  # what was written here last

    def write(self, text: str) -> None:
        """Write it, where that changes it. Raises PicturesError where the folder cannot be written."""
        try:
            self._write(text.encode("utf-8"))
        except PicturesError as error:
            if told := self._put_down(text, error):
                raise told from error
            raise
        if self._spare is not None:
            with suppress(OSError):
                self._spare.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        with writable(self.path):
            earlier = self.path.read_bytes() if self.path.exists() else None
            if earlier == data:
                return
            if earlier is not None and earlier != self._own:
                kept = backup_name(self.path, earlier)
                if not kept.exists():
                    write_bytes(kept, earlier)
                self._say(f"the earlier {self.path.name} is kept as {kept.name}")
            if self._own is None:
                sweep_file(self.path)
            write_bytes(self.path, data)
            self._own = data

    def _put_down(self, text: str, error: PicturesError) -> PicturesError | None:
        """The error with where the content is now, if it could be put down anywhere."""
        if self._spare is None:
            return None
        try:
            write_bytes(self._spare, text.encode("utf-8"))
        except LaceError:
            return None
        return PicturesError(
            f"{error} All of it is kept in {printable(self._spare)} on this machine until it can be written: do not "
            "close this session before, or download that file."
        )


def spare_of(path: Path, cache_dir: str | Path) -> Path:
    """Where the content of a file is put down on this machine while the file cannot be written."""
    digest = hashlib.sha256(os.fsencode(path.expanduser().absolute())).hexdigest()[:8]
    return Path(cache_dir).expanduser() / "unwritten" / digest / path.name


def backup_name(file: Path, content: bytes) -> Path:
    """The first of name.bak, name.bak2, … that is free or holds the same content."""
    names = (f"{file.name}.bak{number if number > 1 else ''}" for number in count(1))
    return next(path for path in map(file.with_name, names) if not path.exists() or path.read_bytes() == content)


@contextmanager
def writable(file: Path) -> Iterator[None]:
    """What goes wrong while this file is written, as a PicturesError that names it."""
    try:
        yield
    except (OSError, RunError, MachineError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        number = getattr(cause, "errno", None) or 0
        reason = "the disk is full" if number in _FULL else getattr(cause, "strerror", None) or error
        advice = _ADVICE.get(number, _WRITABLE)
        raise PicturesError(f"Cannot write {printable(file)} ({reason}). {advice}") from error
