"""What an evaluation found, as scores.json holds it: scores with their intervals, and how new what was made is.

Plain numbers and names: the same for pictures and for texts. A score that would mislead has no value and says why.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from lace_lora import checkpoint
from lace_lora.decimals import with_interval
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder

VERSION = 1  # of scores.json
LEVEL = 0.95  # of every interval

Better = Literal["higher", "lower", ""]
Topic = Literal["style", "words", "variety", "drift", "refiner", "reference", "other"]


@dataclass(frozen=True)
class Score:
    """One measurement.

    id         its name for programs, such as "style_match"; the same in every run
    name       in words
    topic      which question it answers
    value      None where it would mislead; then `refusal` says why
    low, high  the interval at LEVEL, None where there is none
    count      how many things were measured
    means      what this value means, in one sentence
    better     which way is better; empty where neither is
    """

    id: str
    name: str
    topic: Topic
    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    means: str = ""
    better: Better = ""
    refusal: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"not measured: {self.refusal}"
        return with_interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Nearest:
    """One thing that was made, and what it is most like of all that was learnt.

    made              a file of the run by its path within the run folder, or what else names it
    nearest           what was learnt: a photograph's name as annotations.txt has it, or what else names it
    likeness          how alike they are, 1 is the same; what is compared, CopyCheck.likeness says
    is_copy           whether it is more alike than anything unseen was
    how               how one lies on the other ("mirrored, turned by 90°"); may be empty
    feature_distance  how far apart the style model sees them; None without one
    """

    made: str
    nearest: str
    likeness: float
    is_copy: bool
    how: str = ""
    feature_distance: float | None = None


@dataclass(frozen=True)
class CopyCheck:
    """Whether what was made is new, or a copy of what was learnt.

    likeness       what Nearest.likeness compares, in words
    threshold      above it, something made is called a copy
    calibrated_on  how many unseen things, compared in the same way, lie below the threshold
    pairs          all that was looked at, the most alike first
    refusal        why nothing could be looked at; empty otherwise
    """

    likeness: str = ""
    threshold: float | None = None
    calibrated_on: int = 0
    pairs: tuple[Nearest, ...] = ()
    refusal: str = ""

    @property
    def copies(self) -> tuple[Nearest, ...]:
        """Those called copies."""
        return tuple(pair for pair in self.pairs if pair.is_copy)

    @property
    def false_alarms(self) -> float | None:
        """The share of new things that would be called copies, on average, where the threshold is the highest of n."""
        return 1 / (self.calibrated_on + 1) if self.calibrated_on else None


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation found of a run.

    verdict      what to think of it, a sentence each, the most important first
    judges       what measured: {"style": "facebook/dinov2-base", "words": "…"}; "weight-free …" where no model was had
    counts       how many things of each kind: training, held out, base, LoRA, designs
    copies       whether what was made is new
    overfitting  what the log says about learning and copying, in a sentence; empty where it says nothing
    choice       which checkpoint to take, and why: see choosing
    facts        adapter digest, prompts, seeds, versions, seconds: for tracing
    """

    run: str
    written: str
    verdict: tuple[str, ...] = ()
    judges: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    copies: CopyCheck = field(default_factory=CopyCheck)
    overfitting: str = ""
    choice: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether it was measured; not where somebody stopped the drawing before."""
        return not self.facts.get("missing")

    def __str__(self) -> str:
        width = max((len(score.name) for score in self.scores), default=0)
        return "\n".join([*self.verdict, *(f"{score.name:<{width}}  {score}" for score in self.scores)])

    def score(self, id: str) -> Score | None:
        """The score of that id, None where it was not measured at all."""
        return next((score for score in self.scores if score.id == id), None)

    def write(self, run: RunFolder) -> None:
        """Write scores.json, whole or not at all."""
        checkpoint.write_json(run.scores, {"version": VERSION, **_finite(asdict(self))})

    @classmethod
    def read(cls, run: RunFolder) -> Self | None:
        """The evaluation of a run, None where there is none. Raises RunError for a file that cannot be understood."""
        if not run.scores.is_file():
            return None
        try:
            told = json.loads(run.scores.read_text(encoding="utf-8"))
            if told.pop("version") != VERSION:
                raise ValueError("another version")
            pairs = tuple(Nearest(**pair) for pair in told["copies"].pop("pairs"))
            told["copies"] = CopyCheck(**told["copies"], pairs=pairs)
            told["scores"] = tuple(_score(one) for one in told["scores"])
            told["verdict"] = tuple(told["verdict"])
            return cls(**{one.name: told[one.name] for one in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{run.scores} cannot be understood. Write it again: lace-lora evaluate") from error


def _score(told: Mapping[str, Any]) -> Score:
    """A score as the file has it. Raises TypeError where something else stands for a number."""
    found = Score(**told)
    for number in (found.value, found.low, found.high, found.count):
        if isinstance(number, bool) or not isinstance(number, int | float | None):
            raise TypeError(f"{number!r} is no number")
    return found


def _finite(value: Any) -> Any:
    """JSON knows no NaN: a number that is none becomes null."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
