"""A folder that stands for Drive, whose file system fails where a test wants it to."""

import builtins
import errno
import io
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

TOUCHED = ("stat", "replace", "mkdir", "scandir", "listdir", "unlink", "fsync", "rmdir")


class Drive:
    """Calls of the file system below its folder are counted, and fail where the test decides."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = 0
        self.fails_at: Collection[int] = ()
        self.number = errno.ENOTCONN
        self.only_writes = False

    def fail(self, calls: Collection[int], number: int = errno.ENOTCONN, only_writes: bool = False) -> None:
        """Count calls from one, and fail at these: all that touch Drive, or only those that change it."""
        self.calls, self.fails_at, self.number, self.only_writes = 0, calls, number, only_writes

    def touch(self, name: str, path: Any, words: tuple[Any, ...]) -> None:
        """What a call does before it is made."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(self.root):
            changes = name in ("replace", "mkdir", "unlink", "fsync", "rmdir")
            changes |= name == "open" and any(sign in str(words[:1]) for sign in "wax+")
            if self.only_writes and not changes:
                return
            self.calls += 1
            if self.calls in self.fails_at:
                raise OSError(self.number, os.strerror(self.number), str(path))


def failing(root: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    """A Drive at a folder, which is made."""
    drive = Drive(root)
    (root / "MyDrive").mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a test needs no power cut
    for module, name in [(os, name) for name in TOUCHED] + [(builtins, "open"), (io, "open")]:
        real = getattr(module, name)

        def touched(path: Any, *words: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            drive.touch(name, path, words)
            return real(path, *words, **more)

        monkeypatch.setattr(module, name, touched)
    return drive
