"""Comparisons of pictures with photographs, each made once: they stay the same whatever is drawn later."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lace_lora import near_duplicates, nearest, placements, registration, search_programs, views
from lace_lora.kept_answers import Answers, Say, digest
from lace_lora.near_duplicates import Pair
from lace_lora.nearest import Found, Searched
from lace_lora.search_programs import Question
from lace_lora.views import Fingerprint

# So many are searched for together, and kept when they are done. Always the same ones: in another company the last bits
# of a coarse likeness are others, and an answer could be too.
TOGETHER = 25
_LAYING = (placements, registration, views)


class Kept:
    """A search that remembers its answers in cache_dir; None keeps nothing."""

    def __init__(self, searched: Searched, cache_dir: str | Path | None, say: Say = print) -> None:
        self._searched = searched
        self._answers = Answers(cache_dir, (nearest, *_LAYING), searched.prints, say)

    def known(self, questions: Sequence[Question]) -> int:
        """How many of those that are asked for are known."""
        parts = [part for question in questions for part in _parts(question)]
        return sum(len(part[0]) for part in parts if _name(part) in self._answers.known)

    def nearest(
        self, questions: Sequence[Question], tell: Callable[[int], None] = lambda more: None
    ) -> list[list[Found | None]]:
        """As Searched.nearest for each question; `tell` hears only of those that were not known."""
        named = [[(_name(part), part) for part in _parts(question)] for question in questions]
        unknown = [(name, part) for one in named for name, part in one if name not in self._answers.known]
        fresh = dict(unknown)  # the same pictures may be asked for twice
        names = list(fresh)
        for place, answer in search_programs.answers(self._searched, list(fresh.values()), tell):
            self._answers.put(names[place], [asdict(one) if one else None for one in answer])
        if len(unknown) > len(fresh):
            tell(sum(len(made) for _, (made, *_) in unknown) - sum(len(made) for made, *_ in fresh.values()))
        return [
            [Found(**row) if row else None for name, _ in one for row in self._answers.known[name]] for one in named
        ]


def pairs(fingerprints: Sequence[Fingerprint], cache_dir: str | Path | None, say: Say = print) -> list[Pair]:
    """As near_duplicates.pairs, remembered in cache_dir; None keeps nothing."""
    answers = Answers(cache_dir, (near_duplicates, *_LAYING), fingerprints, say)
    if "pairs" not in answers.known:
        answers.put("pairs", [asdict(pair) for pair in near_duplicates.pairs(fingerprints)])
    return [Pair(**pair) for pair in answers.known["pairs"]]


def groups(
    fingerprints: Sequence[Fingerprint], cache_dir: str | Path | None, say: Say = print
) -> tuple[tuple[int, ...], ...]:
    """As near_duplicates.groups, of the pairs that are remembered."""
    return near_duplicates.joined(len(fingerprints), pairs(fingerprints, cache_dir, say))


def _parts(question: Question) -> list[Question]:
    made, also, barred = question
    cuts = [slice(first, first + TOGETHER) for first in range(0, len(made), TOGETHER)]
    return [(made[cut], also[cut], barred[cut]) for cut in cuts]


def _name(part: Question) -> str:
    made, also, barred = part
    places = json.dumps([[sorted(map(int, one)) for one in each] for each in (also, barred)])
    return digest(places.encode(), *made)
