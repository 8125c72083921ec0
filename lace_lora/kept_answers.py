"""Answers that take long to find, kept in a folder by all that they depend on, so that each is found once.

An answer's name is a digest of what was asked and of the code that answers: another picture, or another version of the
code, asks anew. Whatever goes wrong with the folder costs time and nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy

from lace_lora import checkpoint
from lace_lora.errors import LaceError

FOLDER = "answers"  # in cache_dir

_ADVICE = "Free some space there, or choose another cache_dir."
_told_of: set[Path] = set()

Say = Callable[[str], None]
Part = bytes | numpy.ndarray[Any, Any]  # an array counts with its shape and its dtype


class Answers:
    """What is known of one question, by the names of its parts; `known` is what was kept and what was put since.

    cache_dir  None keeps nothing
    rooms      modules whose code answers
    asked      what it is asked of
    say        is told where an answer cannot be kept, once for a folder
    """

    def __init__(
        self, cache_dir: str | Path | None, rooms: Sequence[ModuleType], asked: Sequence[Part], say: Say = print
    ) -> None:
        self._say, self._path = say, None
        if cache_dir is not None:
            self._path = Path(cache_dir).expanduser() / FOLDER / f"{digest(_code(tuple(rooms)), *asked)}.json"
        self.known: dict[str, Any] = _read(self._path)

    def put(self, name: str, answer: Any) -> None:
        """Keep a value that JSON can hold."""
        self.known[name] = answer
        if self._path is None:
            return
        try:
            checkpoint.write_json(self._path, self.known)
        except LaceError:
            folder, self._path = self._path.parent, None
            if folder not in _told_of:
                _told_of.add(folder)
                self._say(f"! {folder} cannot be written, so what was compared is compared again next time. {_ADVICE}")


def digest(*parts: Part) -> str:
    """A name for some bytes and arrays in their order."""
    found = hashlib.sha256()
    for part in parts:
        head = f"{part.dtype} {part.shape}" if isinstance(part, numpy.ndarray) else str(len(part))
        found.update(f"{head}\n".encode())
        found.update(part.tobytes() if isinstance(part, numpy.ndarray) else part)
    return found.hexdigest()[:32]


def _read(path: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):  # none yet, or damaged: it is found anew
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache(16)
def _code(rooms: tuple[ModuleType, ...]) -> bytes:
    return b"".join(Path(str(room.__file__)).read_bytes() for room in rooms)
