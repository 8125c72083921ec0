"""How near to the photographs the pictures lie, how varied they are, and whether plain prompts moved too.

Works on rows of features from any embedder; what the numbers mean is said for the designer. Distances are those of
`mmd`, measured so that two of the photographs lie 1 apart on average.

    style match = (d(base, training) − d(LoRA, training)) / (d(base, training) − d(held out, training))

0 is the base model, 1 is as near as real lace that was never learnt from.

Pictures of one prompt are alike, so thirty pictures of six prompts are not thirty: with FEWEST prompts or more those of
one prompt count as one, and are never compared with each other. With fewer the numbers hold for these prompts only, and
say so. Coverage of both: benchmarks/results/evidence-prompts-*.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy

from lace_lora import style_claims
from lace_lora.decimals import percent
from lace_lora.mmd import Sample, distance, mean_distance
from lace_lora.resampling import Array, Estimate, Interval, interval, ratio_interval
from lace_lora.scores import LEVEL, Better, Score, Topic

# With three held-out pieces nothing is sure: where the base is not far away, the match held the truth in 57 of 100
# repeats. With five it did in 98 or more, but for a case in which 98 of 100 matches are refused.
# benchmarks/results/evidence-*.md
FEWEST = 5
Groups = Sequence[object] | None

AGAIN_AND_AGAIN = 0.5  # of the photographs' own variety: below it a row of pictures looks like one picture to a person

_MORE_HELD_OUT = "Raise validation_fraction, or add photographs, and train again."
_MORE_PICTURES = "Draw more of them; 30 is a good number."
_PAIRED = "made"  # the name of a sample whose pictures stand side by side with those of another


@dataclass(frozen=True)
class Reference:
    """The photographs as rows of features: those that were learnt from, and those that were held out.

    training  at least FEWEST pieces
    held_out  None where there are fewer than FEWEST pieces
    unit      mean distance between two training photographs of different pieces
    pieces    how many pieces were held out, also where that is too few
    """

    training: Sample
    held_out: Sample | None
    unit: Estimate
    pieces: int

    @classmethod
    def of(
        cls,
        training: Array,
        held_out: Array,
        training_groups: Sequence[object] | None = None,
        held_out_groups: Sequence[object] | None = None,
    ) -> "Reference | None":
        """From rows N × F and M × F (M may be 0), in one scale.

        returns  None where fewer than FEWEST pieces were learnt from, or where they do not differ from each other

        groups  a label a photograph: equal ones show one piece (near-duplicates). They count as one, and are never
                compared with each other. None: all show different pieces.

        Raises ValueError for rows that are not finite, or have not as many features as those learnt from.
        """
        if _count(training, training_groups) < FEWEST:
            return None
        learnt = Sample.of("training", training, training_groups)
        pieces = _count(held_out, held_out_groups)
        unseen = Sample.of("held out", held_out, held_out_groups) if pieces >= FEWEST else None
        unit = mean_distance(learnt)
        # Of photographs that are all but one the same, the unit would hang on that one.
        is_told = interval(unit, LEVEL)[0] > 0
        return cls(learnt, unseen, unit, pieces) if is_told else None

    def distance(self, rows: Array, name: str, groups: Groups = None) -> Estimate:
        """How far rows lie from the training photographs, two of which lie 1 apart on average.

        groups  a label a row; rows of one label are never compared with each other, and vary together
        """
        return distance(Sample.of(name, rows, groups), self.training, self.unit) * (1 / self.unit.value)

    def held_out_distance(self) -> Estimate | None:
        """The same of what was held out."""
        if self.held_out is None:
            return None
        return distance(self.held_out, self.training, self.unit) * (1 / self.unit.value)


def style_scores(
    base: Array | None, lora: Array, reference: Reference | None, groups: Groups = None
) -> tuple[Score, ...]:
    """style_base, style_lora, style_held_out: distances to the training photographs; and style_match.

    base, lora  rows N × F by the same embedder; row by row of the same prompt and seed, so that they vary together.
                None where the base model drew nothing
    reference   None where too few photographs were learnt from: then all is refused
    groups      the prompt of each row; None: each row is of another prompt

    Raises ValueError where base and LoRA have not the same number of rows, or prompts are not one a row.
    """
    groups, only = _prompts(groups)
    bases, loras = _distances(base, lora, reference, groups)
    unseen = reference.held_out_distance() if reference else None
    rows = _length(base), _length(lora)
    pieces = reference.pieces if reference else 0
    held_out = "held-out photographs' distance from the others"
    return (
        only(_distance_score("style_base", "base model's distance from your photographs", bases, rows[0], reference)),
        only(_distance_score("style_lora", "LoRA's distance from your photographs", loras, rows[1], reference)),
        _distance_score("style_held_out", held_out, unseen, pieces, reference),
        only(_match("style_match", "style match", "style", bases, loras, reference, rows[1])),
    )


def drift_score(base: Array | None, lora: Array | None, reference: Reference | None, groups: Groups = None) -> Score:
    """drift_plain: how far prompts without the token moved towards the photographs, in the unit of style_match.

    base, lora  rows N × F of pictures drawn without the token, with the same prompts and seeds; None: not drawn
    groups      the prompt of each row; None: each row is of another prompt
    """
    if lora is None:
        base = None
    groups, only = _prompts(groups)
    bases, loras = _distances(base, lora, reference, groups)
    return only(_match("drift_plain", "drift of plain prompts", "drift", bases, loras, reference, _length(lora)))


def variety_scores(
    base: Array | None, lora: Array, reference: Reference | None, groups: Groups = None
) -> tuple[Score, ...]:
    """variety_lora, variety_base, variety_training: mean distance between two pictures of one set, photographs = 1.

    base, lora  rows N × F by the same embedder and prompts
    groups      the prompt of each row: where there are enough, two pictures are of two prompts, as two photographs are
                of two pieces. None: each row is of another prompt
    """
    groups, only = _prompts(groups)
    own = _drawn(base, lora, groups)
    sets = (("variety_lora", "how varied the LoRA draws", lora, "The LoRA's pictures"),
            ("variety_base", "how varied the base model draws", base, "The base model's pictures"))  # fmt: skip
    scores = [only(_variety(id, name, own[id], _length(rows), reference, who)) for id, name, rows, who in sets]
    if reference is None:
        refusal = _too_few_photographs()
        training = Score("variety_training", "how varied your photographs are", "variety", None, refusal=refusal)
    else:
        low, high = interval(reference.unit * (1 / reference.unit.value), LEVEL)
        count = len(reference.training.rows)
        means = "Two of your training photographs differ by 1 on average: the measure for the other two."
        training = Score("variety_training", "how varied your photographs are", "variety", 1.0, low, high, count, means)
    return (*scores, training)


def _prompts(groups: Groups) -> tuple[Groups, Callable[[Score], Score]]:
    """What to group by, and how to say of a score that it holds for few prompts only."""
    prompts = len(set(groups)) if groups is not None else 0
    only = style_claims.only_these(prompts)
    if not only:
        return groups, lambda score: score
    return None, lambda score: score if score.value is None else replace(score, means=f"{score.means} {only}")


def _distances(
    base: Array | None, lora: Array | None, reference: Reference | None, groups: Groups
) -> tuple[Estimate | None, Estimate | None]:
    """Of both from the training photographs; None for one that has too few pictures."""
    if base is not None and lora is not None and len(base) != len(lora):
        raise ValueError(f"base and LoRA stand side by side, row by row; got {len(base)} and {len(lora)} rows.")
    if reference is None:
        return None, None
    found = [
        reference.distance(rows, _PAIRED, groups) if rows is not None and len(rows) >= FEWEST else None
        for rows in (base, lora)
    ]
    return found[0], found[1]


def _distance_score(id: str, name: str, found: Estimate | None, count: int, reference: Reference | None) -> Score:
    """One distance with its sentence."""
    if reference is None:
        return Score(id, name, "style", None, count=count, better="lower", refusal=_too_few_photographs())
    if found is None:
        few = f"{count or 'no'} {'piece' if count == 1 else 'pieces'} held out, {FEWEST} are needed. {_MORE_HELD_OUT}"
        drawn = f"{count or 'no'} {'picture' if count == 1 else 'pictures'}, {FEWEST} are needed. {_MORE_PICTURES}"
        refusal = few if id == "style_held_out" else drawn
        return Score(id, name, "style", None, count=count, better=_better(id), refusal=refusal)
    low, high = interval(found, LEVEL)
    if low <= 0:
        means = f"No difference from your photographs can be told with {count} of them; 0 would be none at all."
    elif id == "style_held_out":
        means = "The held-out photographs are of a somewhat other kind than those learnt from, which would give 0."
    else:
        means = "0 would be no difference from your photographs; two of those lie 1 apart on average."
    return Score(id, name, "style", found.value, low, high, count, means, _better(id))


def _better(id: str) -> Better:
    return "" if id == "style_held_out" else "lower"


def _match(
    id: str,
    name: str,
    topic: Topic,
    base: Estimate | None,
    lora: Estimate | None,
    reference: Reference | None,
    count: int,
) -> Score:
    """The ratio, or why there is none."""
    better: Better = "lower" if topic == "drift" else "higher"
    unseen = reference.held_out_distance() if reference else None
    whose = "prompts without the token" if topic == "drift" else "the same prompts"
    refusal, bounds, value = "", None, None
    if reference is None:
        refusal = _too_few_photographs()
    elif base is None or lora is None:
        refusal = (
            f"it compares {FEWEST} or more pictures of {whose}, drawn with and without the LoRA; {count or 'none'} "
            f"{'is' if count == 1 else 'are'} there in both. {_MORE_PICTURES}"
        )
    elif unseen is None:
        held = (
            f"only {reference.pieces} were" if reference.pieces > 1 else "one was" if reference.pieces else "none was"
        )
        refusal = f"it needs {FEWEST} or more pieces that were held out of training; {held}. {_MORE_HELD_OUT}"
    else:
        refusal, bounds, value = _ratio(base - lora, base - unseen)
    if value is None or bounds is None:
        return Score(id, name, topic, None, count=count, better=better, refusal=refusal)
    say = _drift_sentence if topic == "drift" else _match_sentence
    return Score(id, name, topic, value, *bounds, count, say(value, bounds), better)


def _ratio(moved: Estimate, whole: Estimate) -> tuple[str, Interval | None, float | None]:
    """(refusal, interval, value): the way that was gone, of the way that there is from the base to real lace."""
    bounds = ratio_interval(moved, whole, LEVEL)
    if whole.value < 0 and bounds is not None:
        return (
            "the base model's pictures already lie nearer to the training photographs than the held-out ones do, so "
            "there is no way left to measure. Hold out pieces of the same kind as the others.",
            None,
            None,
        )
    if bounds is None:
        return (
            "with so few pictures the base model cannot be told from real lace in this measure, so there is no way "
            "from 0 to 1 to measure on. Draw more pictures, hold out more pieces (validation_fraction), or write "
            "prompts that say less about lace.",
            None,
            None,
        )
    return "", bounds, moved.value / whole.value


_MATCH: dict[style_claims.Style, str] = {
    "away": "The LoRA draws further from your photographs than the base model does.",
    "little": "The LoRA has gone little of the way to your photographs, or nothing of it.",
    "not shown": "Whether the LoRA draws nearer to your photographs than the base model cannot be told yet.",
    "part": "The LoRA has gone about {way} of the way to your photographs: a part of it.",
    "nearer": "Nearer to your photographs than unseen real lace is: look whether it copies them.",
    "cannot tell": "The LoRA draws nearer to your photographs than the base model; how much nearer cannot be told yet.",
}
_DRIFT: dict[style_claims.Drift, str] = {
    "untouched": "Prompts without your token have not moved towards your lace as far as can be told.",
    "moved a little": "Prompts without your token have moved a little towards your lace ({way} of the way).",
    "moved": "Prompts without your token have moved towards your lace too ({way} of the way): prior_loss_weight, or "
    "fewer steps, keep them apart.",
    "away": "Prompts without your token have moved, away from your lace.",
    "cannot tell": "Whether prompts without your token have moved towards your lace cannot be told yet.",
}


def _match_sentence(value: float, bounds: Interval) -> str:
    """What a style match says."""
    scale = "0 is the base model, 1 is as near to your photographs as real lace that was never learnt from."
    claim = style_claims.style(value, *bounds)
    if claim != "learnt":
        return f"{_MATCH[claim].format(way=percent(value))} {scale}"
    if bounds[1] >= 1:
        return f"As near to your photographs as unseen real lace, as far as can be told. {scale}"
    part = f"about {percent(value)}" if value < 0.95 else "nearly all"
    return f"The LoRA has gone {part} of the way to your photographs. {scale}"


def _drift_sentence(value: float, bounds: Interval) -> str:
    """What a drift says."""
    scale = "0 is untouched, 1 is as much lace as your own photographs."
    return f"{_DRIFT[style_claims.drift(value, *bounds)].format(way=percent(value))} {scale}"


def _drawn(base: Array | None, lora: Array, groups: Groups) -> dict[str, Estimate | None]:
    """How varied each set is, in the unit of the features."""
    sets = {"variety_lora": lora, "variety_base": base}
    return {
        id: mean_distance(Sample.of(_PAIRED, rows, groups)) if rows is not None and len(rows) >= FEWEST else None
        for id, rows in sets.items()
    }


def _variety(
    id: str, name: str, own: Estimate | None, count: int, reference: Reference | None, who: str
) -> Score:  # fmt: skip
    """How varied one set is, of the photographs' variety."""
    if reference is None or own is None:
        few = f"{count or 'no'} {'picture' if count == 1 else 'pictures'}, {FEWEST} are needed. {_MORE_PICTURES}"
        refusal = few if reference else _too_few_photographs()
        return Score(id, name, "variety", None, count=count, refusal=refusal)
    bounds = ratio_interval(own, reference.unit, LEVEL)
    if bounds is None:
        refusal = "too few of your photographs differ from each other to measure by them. Add photographs."
        return Score(id, name, "variety", None, count=count, refusal=refusal)
    low, high = bounds
    if high < AGAIN_AND_AGAIN:
        means = f"{who} are all much alike: nearly the same thing is drawn again and again."
    elif high < 1:
        means = f"{who} differ less from each other than your photographs do; 1 is as much."
    elif low > 1:
        means = f"{who} differ more from each other than your photographs do; 1 is as much."
    else:
        means = f"{who} differ from each other about as much as your photographs do; 1 is as much."
    return Score(id, name, "variety", own.value / reference.unit.value, low, high, count, means)


def _too_few_photographs() -> str:
    return (
        f"fewer than {FEWEST} pieces that differ were learnt from: too few to say what their style is. Add photographs."
    )


def _count(rows: Array, groups: Sequence[object] | None) -> int:
    """How many pieces rows show."""
    return len(rows) if groups is None else len(set(groups))


def _length(rows: Array | None) -> int:
    return 0 if rows is None else len(numpy.asarray(rows))
