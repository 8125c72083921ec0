"""Means, paired differences and counts with what chance alone could have made of them: for pictures, texts, ratings."""

import math
from collections.abc import Sequence

import numpy

from lace_lora.decimals import decimals_of, shown
from lace_lora.resampling import Estimate, Interval, symmetric_interval, t_quantile, weights
from lace_lora.scores import LEVEL, Better, Score, Topic

# Of five numbers, however skewed, the interval of their mean still covers the truth in eight of ten cases; of fewer it
# is too wide to say anything.
FEWEST = 5

Groups = Sequence[object] | None


def mean(values: Sequence[float], groups: Groups = None, name: str = "") -> Estimate:
    """The mean of all values, without each group of them, and drawn again.

    values  finite numbers, one or more
    groups  a label for each value; equal labels belong together (seeds of one prompt). None: each stands alone
    name    of the sample, see Estimate

    Raises ValueError where a value is not finite, there is none, or labels are not one a value.
    """
    numbers = numpy.asarray(values, dtype=numpy.float64)
    if numbers.ndim != 1 or not len(numbers) or not numpy.isfinite(numbers).all():
        raise ValueError(f"a mean needs finite numbers in one row; got shape {numbers.shape}: {numbers[:5]}.")
    labels = list(range(len(numbers))) if groups is None else list(groups)
    if len(labels) != len(numbers):
        raise ValueError(f"one group a value; got {len(labels)} for {len(numbers)} values.")
    place = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    within = numpy.array([place[label] for label in labels])
    if len(place) < 2:
        return Estimate(float(numbers.mean()))
    sums, counts = numpy.bincount(within, numbers), numpy.bincount(within)
    without = (numbers.sum() - sums) / (len(numbers) - counts)
    draws = weights(name, len(place))
    return Estimate(float(numbers.mean()), {name: without}, (draws @ sums) / (draws @ counts))


def mean_interval(values: Sequence[float], groups: Groups = None) -> Interval | None:
    """Where the true mean lies in LEVEL of all cases; None where fewer than FEWEST groups, or none that differ, tell.

    Mean ± t · standard error, over groups (for single values that is Student's interval). The percentiles of a
    bootstrap are narrower and cover less, see benchmarks/results/evidence-*.md: of ten normal numbers in 91 of 100
    repeats where this covers in 95, of ten exponential ones in 83 where this does in 89.
    """
    return _interval(mean(values, groups))


def paired(
    id: str,
    name: str,
    topic: Topic,
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    better: Better = "higher",
    groups: Groups = None,
    who: tuple[str, str] = ("the base model", "the LoRA"),
    what: str = "pairs",
) -> Score:
    """How much the tuned values lie above the base's, pair by pair: mean of tuned − base, with its interval.

    base, tuned  one finite number a pair, in the same order: the same prompt and seed, the same question
    groups       a label a pair; equal labels belong together
    who, what    how a sentence calls the two sides, and several pairs

    Raises ValueError where there are not as many of both, or a number is not finite.
    """
    if len(base) != len(tuned):
        raise ValueError(f"{id}: pairs need one value of each side; got {len(base)} and {len(tuned)}.")
    count = len(base)
    if count < FEWEST:
        refusal = f"only {count} {what}: too few to tell {who[1]} from {who[0]}. Make {FEWEST} or more, better 30."
        return Score(id, name, topic, None, count=count, better=better, refusal=refusal)
    estimate = mean(numpy.subtract(tuned, base).tolist(), groups)
    bounds = _interval(estimate)
    low, high = bounds or (None, None)
    means = _paired_sentence(estimate.value, bounds, count, better, who, what)
    return Score(id, name, topic, estimate.value, low, high, count, means, better)


def sign_test(wins: int, losses: int) -> float:
    """How often chance alone parts so many answers at least so unevenly (exact, two-sided), 0..1.

    Ties ("same", "neither") are left out before. 18 of 30 is not yet more than chance (0.36), 21 of 30 is (0.043).

    Raises ValueError for negative counts.
    """
    if min(wins, losses) < 0:
        raise ValueError(f"answers cannot be fewer than none; got {wins} and {losses}.")
    count = wins + losses
    tail = sum(math.comb(count, more) for more in range(max(wins, losses), count + 1))
    return min(1.0, 2 * tail / 2**count)


def wins_needed(count: int) -> int | None:
    """How many of so many answers one side must win to be more than chance at LEVEL; None where no number is enough."""
    enough = (wins for wins in range(count // 2 + 1, count + 1) if sign_test(wins, count - wins) < 1 - LEVEL)
    return next(enough, None)


def share(count: int, of: int) -> Interval:
    """Where the true share of yes lies in LEVEL of all cases, 0..1, also where all or none were yes.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    Raises ValueError where `count` is not among 0 … `of`, or `of` is 0.
    """
    if not 0 <= count <= of or of < 1:
        raise ValueError(f"a share needs a count of 0 to {of} of at least one; got {count} of {of}.")
    z = t_quantile(math.inf, LEVEL)
    part, wide = count / of, z * z / of
    middle = (part + wide / 2) / (1 + wide)
    reach = math.sqrt(part * (1 - part) * wide + wide * wide / 4) / (1 + wide)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _interval(estimate: Estimate) -> Interval | None:
    counts = [len(values) for values in estimate.without.values()]
    if not counts or min(counts) < FEWEST or estimate.variance == 0:
        return None
    return symmetric_interval(estimate, LEVEL)


def _paired_sentence(
    value: float, bounds: Interval | None, count: int, better: Better, who: tuple[str, str], what: str
) -> str:
    """What a paired difference says."""
    base, tuned = who
    far = shown(abs(value), decimals_of((value, *(bounds or ()))))
    if bounds is None:
        return f"{_first(tuned)} and {base} differ by the same {far} in all {count} {what}, or by too few to tell."
    if bounds[0] <= 0 <= bounds[1]:
        return f"Whether {tuned} differs from {base} cannot be told from {count} {what}: chance alone moves it as far."
    direction = "above" if value > 0 else "below"
    judged = {"": "", "higher": ", which is " + ("better" if value > 0 else "worse")}
    judged["lower"] = ", which is " + ("worse" if value > 0 else "better")
    return (
        f"{_first(tuned)} lies {far} {direction} {base} on average{judged[better]}; with {count} {what} "
        "that is more than chance."
    )


def _first(words: str) -> str:
    return words[:1].upper() + words[1:]
