"""Blind pairs: a person says which of two pictures is better without knowing whose they are, and what that shows.

Each answer is a line of its own, written at once; an answer that is taken back is one more line. A pair is known by
what is in its two files, so what was answered is not asked again, in whatever order it comes.
"""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from lace_lora import checkpoint, places
from lace_lora.errors import PicturesError, RunError
from lace_lora.file_names import printable
from lace_lora.intervals import sign_test
from lace_lora.run_folder import RunFolder
from lace_lora.scores import LEVEL, Score

Place = tuple[str, frozenset[str]]
Said = Literal["left", "right", "same", "neither"]
SAID: tuple[Said, ...] = get_args(Said)
CHANCE = 1 - LEVEL  # a result that chance gives less often than this is called more than chance
ENOUGH = 30  # pairs: from 21 for one side on, they show something
_MOST_ANSWERS = 300  # more are not advised to anybody


@dataclass(frozen=True)
class Pair:
    """Two pictures beside each other, and whose they are. `key` is the same whichever of them stands on the left."""

    left: Path
    right: Path
    left_name: str
    right_name: str
    key: str

    @property
    def place(self) -> Place:
        """What it is known by: its pictures, and whose they are said to be."""
        return self.key, frozenset((self.left_name, self.right_name))


@dataclass(frozen=True)
class Answer:
    """What a person said of a pair."""

    key: str
    left_name: str
    right_name: str
    said: Said

    @property
    def better(self) -> str:
        """Whose picture is the better one; empty where none is."""
        return {"left": self.left_name, "right": self.right_name}.get(self.said, "")

    @property
    def place(self) -> Place:
        """To which pair it is the answer."""
        return self.key, frozenset((self.left_name, self.right_name))


@dataclass(frozen=True)
class Result:
    """What answers of one comparison show.

    score     the share that prefers `name` among those who prefer one, with its exact interval
    chance    how often a coin gives a result as far from the middle, 0..1
    sentence  both in words, with what cannot be shown
    """

    name: str
    other: str
    wins: int
    losses: int
    undecided: int
    chance: float
    score: Score
    sentence: str


def pairs(left_name: str, left: Sequence[Path], right_name: str, right: Sequence[Path], seed: int) -> tuple[Pair, ...]:
    """The pairs of two equally long lists in a random order, half of them with sides exchanged.

    left, right  files that belong together by their places, such as the same prompt and seed without and with a LoRA
    seed         the same seed and files give the same pairs

    Raises PicturesError where the lists differ in length, or files cannot be read (all are named).
    """
    if len(left) != len(right):
        raise PicturesError(
            f"Blind pairs need a partner for each picture: {len(left)} of {left_name}, {len(right)} of {right_name}."
        )
    digests, gone = {}, []
    for path in dict.fromkeys((*left, *right)):
        try:
            digests[path] = checkpoint.sha256(path)
        except OSError:
            gone.append(path.name)
    if gone:
        raise PicturesError(f"These pictures cannot be read: {printable(', '.join(gone))}. Draw them again.")
    chance = random.Random(seed)
    couples = list(zip(left, right, strict=True))
    chance.shuffle(couples)
    exchanged = [number % 2 == 0 for number in range(len(couples))]
    chance.shuffle(exchanged)
    made = []
    for (one, other), is_exchanged in zip(couples, exchanged, strict=True):
        key = "-".join(sorted((digests[one][:32], digests[other][:32])))
        sides = (other, one, right_name, left_name) if is_exchanged else (one, other, left_name, right_name)
        made.append(Pair(*sides, key))
    return tuple(made)


# -- answers --


def answers(run: RunFolder) -> list[Answer]:
    """The answers that stand, in the order in which they were given; those taken back are gone. Of a pair the last."""
    found: dict[Place, Answer] = {}
    for row in _rows(run):
        key, left, right, said = (row.get(name) for name in ("pair", "left", "right", "said"))
        if not (isinstance(key, str) and isinstance(left, str) and isinstance(right, str)):
            continue
        place = key, frozenset((left, right))
        found.pop(place, None)
        if said in SAID:
            found[place] = Answer(key, left, right, said)
    return list(found.values())


def record(run: RunFolder, pair: Pair, said: Said) -> None:
    """Write an answer down. Raises RunError where it cannot be written, MachineError where the run is gone (Drive)."""
    _append(run, {"pair": pair.key, "left": pair.left_name, "right": pair.right_name, "said": said})


def take_back(run: RunFolder, among: Sequence[Pair]) -> Pair | None:
    """Take back the last answer to one of these pairs; returns the pair, None where none was answered."""
    asked = {pair.place: pair for pair in among}
    last = next((asked[answer.place] for answer in reversed(answers(run)) if answer.place in asked), None)
    if last is not None:
        _append(run, {"pair": last.key, "left": last.left_name, "right": last.right_name, "said": None})
    return last


def unanswered(among: Sequence[Pair], given: Iterable[Answer]) -> list[Pair]:
    """The pairs that are still to be asked, in order; two of the same pictures are asked once."""
    known = {answer.place for answer in given}
    left: dict[Place, Pair] = {}
    for pair in among:
        if pair.place not in known:
            left.setdefault(pair.place, pair)
    return list(left.values())


# -- what they show --


def comparisons(given: Iterable[Answer]) -> dict[frozenset[str], list[Answer]]:
    """Answers by the two names that they compare, since one file may hold several comparisons."""
    found: dict[frozenset[str], list[Answer]] = {}
    for answer in given:
        found.setdefault(frozenset((answer.left_name, answer.right_name)), []).append(answer)
    return found


def result(given: Sequence[Answer], name: str, other: str) -> Result:
    """What the answers that compare two names show, by an exact two-sided sign test.

    Answers of other comparisons are passed over; "same" and "neither" count for no side.
    Source: Dixon and Mood 1946, https://doi.org/10.1080/01621459.1946.10501898.
    """
    here = [answer for answer in given if {answer.left_name, answer.right_name} == {name, other}]
    wins, losses = (sum(answer.better == one for answer in here) for one in (name, other))
    undecided = len(here) - wins - losses
    chance = sign_test(wins, losses)
    sentence = _sentence(name, other, wins, losses, [answer.said for answer in here])
    title = f"{name} preferred to {other}, blind"
    if not wins + losses:
        score = Score("blind_preference", title, "other", None, count=len(here), refusal=sentence)
    else:
        low, high = _interval(wins, wins + losses)
        score = Score(
            "blind_preference", title, "other", wins / (wins + losses), low, high, wins + losses, sentence, "higher"
        )
    return Result(name, other, wins, losses, undecided, chance, score, sentence)


def limits(given: Iterable[Answer]) -> str:
    """What answers that compare more than two names cannot show; nothing where there are only two."""
    found = comparisons(given)
    names = {name for pair in found for name in pair}
    if len(names) < 3:
        return ""
    total, number = sum(map(len, found.values())), _in_words(len(names))
    advice = "Take the two that you cannot decide between."
    return f"{number} of them cannot be ranked from {total} answers: each two need {ENOUGH} of their own. {advice}"


# -- inside --


def _at_least(wins: int, tries: int, share: float) -> float:
    """How often a coin that falls so with `share` falls so `wins` times or more."""
    return math.fsum(
        math.comb(tries, number) * share**number * (1 - share) ** (tries - number) for number in range(wins, tries + 1)
    )


def _interval(wins: int, tries: int) -> tuple[float, float]:
    """The exact interval of a share at LEVEL: the shares with which neither more nor fewer wins would be a surprise.

    Source: Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404.
    """
    surprise = CHANCE / 2

    def where(is_below: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            rises = _at_least(wins, tries, middle) if is_below else _at_least(wins + 1, tries, middle)
            if rises < (surprise if is_below else 1 - surprise):
                low = middle
            else:
                high = middle
        return (low + high) / 2

    return (0.0 if wins == 0 else where(True)), (1.0 if wins == tries else where(False))


def _sentence(name: str, other: str, wins: int, losses: int, said: Sequence[Said]) -> str:
    tries = wins + losses
    even = [f"{said.count(one)} “{one}”" for one in ("same", "neither") if one in said]
    besides = f" Of {len(said)} answers {' and '.join(even)} count for no side." if even else ""
    if not tries:
        return "Nobody has said yet which picture is better." if not said else f"No picture was preferred.{besides}"
    ahead, most = (name, wins) if wins >= losses else (other, losses)
    chance = sign_test(wins, losses)
    coin = f"a coin does this in {_of_a_hundred(chance)} tries"
    if wins == losses:
        verdict = f"{wins} of {tries} for each: no difference is to be seen"
    elif chance < CHANCE:
        verdict = f"{most} of {tries} for {ahead}: more than chance ({coin})"
    else:
        verdict = f"{most} of {tries} for {ahead}: not yet more than chance ({coin}).{_more_needed(most, tries)}"
    return f"{verdict.rstrip('.')}.{besides}"


def _more_needed(most: int, tries: int) -> str:
    """How many answers would tell, were the share to stay the same."""
    for number in range(tries + 1, _MOST_ANSWERS):
        wins = round(number * most / tries)
        if sign_test(wins, number - wins) < CHANCE:
            return f" If it stays so, about {number if number < 20 else -(-number // 10) * 10} answers would show it."
    return " The two are so near that hundreds of answers would not tell them apart."


def _of_a_hundred(chance: float) -> str:
    return "fewer than 1 of 100" if chance < 0.005 else f"{round(100 * chance)} of 100"


def _in_words(number: int) -> str:
    words = ("Three", "Four", "Five", "Six")
    return words[number - 3] if number < 3 + len(words) else str(number)


def _rows(run: RunFolder) -> list[dict[str, object]]:
    try:
        rows: list[object] = [*checkpoint.read_json_lines(run.blind_answers)]
    except OSError as error:
        raise RunError(
            f"{run.blind_answers} cannot be read ({error.strerror or error}). Check who may read it."
        ) from error
    return [row for row in rows if isinstance(row, dict)]


def _append(run: RunFolder, row: dict[str, object]) -> None:
    path = run.blind_answers
    places.check_there(run.root)
    line = json.dumps(row | {"at": datetime.now(UTC).isoformat(timespec="seconds")}, ensure_ascii=False)
    with checkpoint.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_cut = path.is_file() and not path.read_bytes().endswith(b"\n") and checkpoint.size_of(path)
        checkpoint.append_line(path, f"\n{line}" if is_cut else line)
