"""The files that are written into a person's folder of photographs: whole or not at all, and what they held is kept.

What stood in a file before stays beside it as `name.bak`, `name.bak2`, …; what is kept already is not kept twice.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from lace_lora.checkpoint import sweep_file, write_bytes
from lace_lora.errors import PicturesError, RunError
from lace_lora.file_names import printable

Say = Callable[[str], None]

_log = logging.getLogger(__name__)


class OwnFile:
    """A text file through one sitting, in which it may be written many times: what somebody else wrote there is kept.

    say  is told where that is kept
    """

    def __init__(self, path: Path, say: Say = _log.info) -> None:
        self.path = path
        self._say = say
        self._own: bytes | None = None  # what was written here last

    def write(self, text: str) -> None:
        """Write it, where that changes it. Raises PicturesError where the folder cannot be written."""
        data = text.encode("utf-8")
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


def backup_name(file: Path, content: bytes) -> Path:
    """The first of name.bak, name.bak2, … that is free or holds the same content."""
    names = (f"{file.name}.bak{number if number > 1 else ''}" for number in count(1))
    return next(path for path in map(file.with_name, names) if not path.exists() or path.read_bytes() == content)


@contextmanager
def writable(file: Path) -> Iterator[None]:
    """What goes wrong while this file is written, as a PicturesError that names it."""
    try:
        yield
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        reason = getattr(cause, "strerror", None) or error
        advice = "Make its folder writable, or copy the pictures to a folder that is."
        raise PicturesError(f"Cannot write {printable(file)} ({reason}). {advice}") from error
