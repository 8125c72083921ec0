"""Comparisons of photographs with photographs, kept: they are the same whatever is drawn, and take most of the time.

They are kept by all that they depend on: the pixels of both, what was asked of each, and the code that compares.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, nearest, placements, registration, views
from lace_lora.errors import LaceError
from lace_lora.nearest import Found, Searched
from lace_lora.views import Fingerprint

# So many are searched for together, and kept when they are done. Always the same ones: in another company the last bits
# of a coarse likeness are others, and an answer could be too.
TOGETHER = 25

Say = Callable[[str], None]
Question = tuple[Sequence[Fingerprint], Sequence[Collection[int]], Sequence[Collection[int]]]  # as Searched.nearest has


class Kept:
    """A search that remembers its answers.

    folder  where; None keeps nothing
    say     is told where an answer cannot be kept, once
    """

    def __init__(self, searched: Searched, folder: Path | None, say: Say = print) -> None:
        self._searched, self._say = searched, say
        self._path = folder / f"{_digest(_code(), *searched.prints)}.json" if folder else None
        self._answers = _read(self._path)

    def known(self, question: Question) -> int:
        """How many of those that are asked for are known."""
        return sum(len(part[0]) for part in _parts(question) if _key(part) in self._answers)

    def nearest(self, question: Question, tell: Callable[[int], None] = lambda more: None) -> list[Found | None]:
        """As Searched.nearest; `tell` hears only of those that were not known."""
        found: list[Found | None] = []
        for part in _parts(question):
            key = _key(part)
            if key not in self._answers:
                fresh = self._searched.nearest(*part, tell=tell)
                self._answers[key] = [asdict(one) if one else None for one in fresh]
                self._write()
            found += [Found(**one) if one else None for one in self._answers[key]]
        return found

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            checkpoint.write_json(self._path, self._answers)
        except LaceError as error:
            self._say(f"! What was compared could not be kept for the next time: {error}")
            self._path = None


def _parts(question: Question) -> list[Question]:
    made, also, barred = question
    cuts = [slice(first, first + TOGETHER) for first in range(0, len(made), TOGETHER)]
    return [(made[cut], also[cut], barred[cut]) for cut in cuts]


def _key(part: Question) -> str:
    made, also, barred = part
    places = json.dumps([[sorted(map(int, one)) for one in each] for each in (also, barred)])
    return _digest(places.encode(), *made)


def _read(path: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):  # none yet, or damaged: it is written anew
        return {}
    return found if isinstance(found, dict) else {}


def _digest(*parts: bytes | Fingerprint) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.tobytes())
    return digest.hexdigest()[:32]


@lru_cache(1)
def _code() -> bytes:
    files = [Path(str(room.__file__)) for room in (nearest, placements, registration, views)]
    return b"".join(file.read_bytes() for file in files)
