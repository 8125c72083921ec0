"""Populations of drawn pictures whose distances are known, and how often intervals from few of them hold the truth.

The truth is known because pictures are drawn, with replacement, from a population whose every pair is measured; for
Gaussian features it is an integral. Each repeat is one evaluation of fresh pictures. See evidence.py.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
from PIL import Image, ImageFilter

from lace_lora import weight_free
from lace_lora.demo import draw
from lace_lora.mmd import Sample, distance, mean_distance
from lace_lora.resampling import Array, Estimate, Interval, interval, ratio_interval, symmetric_interval
from lace_lora.scores import LEVEL

MADE, TRAINING, HELD_OUT = 30, 250, (25, 8, 5, 3)
DRAWN_PX = 192
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # for which share of the prompts the drawn LoRA draws lace
NEARLY = 0.9  # the hard case: one prompt in ten fails, so that three pictures of thirty decide
BLURS = (0.0, 0.5, 1.0, 2.0, 4.0)  # px at DRAWN_PX
PROMPTS = ((30, 1), (8, 4), (6, 5), (5, 6), (3, 10), (1, 30))  # prompts and seeds of about thirty pictures
ALIKE = 0.5  # of the variance of pictures, which those of one prompt share
TINTS = (1.0, 0.9, 0.8, 0.6, 0.4)  # of the red that is there

Chance = numpy.random.Generator
Rows = Mapping[str, Array]
Fresh = Callable[[Chance], tuple[Rows, Mapping[str, float]]]


@dataclass(frozen=True)
class Repeats:
    """How one case came out over all repeats.

    truth    the distances "base", "lora", "held out", and "match"
    covered  of each, how often the interval held the truth; of "match" where it was given
    others   the same of other intervals for the distances: "base, percentiles", "base, symmetric", …
    width    median width of the match's interval; None where there was none
    refused  how often there was no match
    mean     of the LoRA's distance over all repeats; without bias it is its truth
    """

    truth: Mapping[str, float]
    covered: Mapping[str, float]
    others: Mapping[str, float]
    width: float | None
    refused: int
    count: int
    mean: float


# -- pictures of a known kind --


def softened(picture: Image.Image, px: float) -> Image.Image:
    """Blurred, as a LoRA draws that has not learnt the threads."""
    return picture.filter(ImageFilter.GaussianBlur(px)) if px else picture


def tinted(picture: Image.Image, red: float) -> Image.Image:
    """With less of its red."""
    return picture.convert("RGB", (red, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0))


@functools.cache
def lace(first: int, count: int, side: int = DRAWN_PX) -> tuple[Image.Image, ...]:
    """Drawn lace; other numbers are other pieces."""
    return tuple(draw.lace(number, side)[0] for number in range(first, first + count))


@functools.cache
def plain(count: int, side: int = DRAWN_PX) -> tuple[Image.Image, ...]:
    """Drawn plain textile."""
    return tuple(draw.plain(number, side)[0] for number in range(count))


@functools.cache
def drawn_rows(count: int) -> dict[str, Array]:
    """Features of drawn populations: "training" and "other" lace, "plain" cloth, and "other" lace altered in steps."""
    other = lace(100_000, count)
    sets = {"training": lace(0, count), "other": other, "plain": plain(count)}
    sets |= {f"blur {px:g}": [softened(one, px) for one in other] for px in BLURS[1:]}
    sets |= {f"tint {red:g}": [tinted(one, red) for one in other] for red in TINTS[1:]}
    return {name: weight_free.features_of(pictures) for name, pictures in sets.items()}


def populations(count: int, seed: int = 7) -> dict[str, Rows]:
    """Cases by name, each with rows "training", "base" and "lora"; row by row the last two have one prompt and seed.

    A LoRA at step 0.5 draws lace for half of the prompts and what the base draws for the others; a soft one always
    draws lace whose threads are blurred. What is held out comes from the population of "training".
    """
    rows, chance = drawn_rows(count), numpy.random.default_rng(seed)
    turn = chance.permutation(count) / count
    cases = {}
    for step in sorted((*STEPS, NEARLY)):
        lora = numpy.where((turn < step)[:, None], rows["other"], rows["plain"])
        cases[f"lace for {step:.0%} of the prompts"] = lora
    cases |= {f"always lace, blurred by {px:g} px": rows[f"blur {px:g}"] for px in BLURS[1:]}
    found = {name: {"training": rows["training"], "base": rows["plain"], "lora": lora} for name, lora in cases.items()}
    found["base draws soft lace, LoRA half as soft"] = {
        "training": rows["training"], "base": rows["blur 2"], "lora": rows["blur 1"]}  # fmt: skip
    return found


# -- the truth, and one evaluation --


def population_distance(one: Array, other: Array) -> float:
    """The energy distance of two populations of which these are all members: every pair counts, also one's own."""
    across, own, others = (float(apart(a, b).mean()) for a, b in ((one, other), (one, one), (other, other)))
    return 2 * across - own - others


def apart(one: Array, other: Array) -> Array:
    """Euclidean distances of rows, N × M."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2 * one @ other.T
    return numpy.sqrt(numpy.maximum(squares, 0))


def gaussian_distance(features: int, shift: float) -> float:
    """The energy distance of two standard normal distributions `shift` apart: 2 E|X − Y| − E|X − X'| − E|Y − Y'|.

    With E √Q = 1 / (2 √π) · ∫ (1 − E exp(−t Q)) t^(−3/2) dt of the noncentral χ² Q = |X − Y|², over t = exp(u).
    """

    return 2 * (gaussian_length(features, shift) - gaussian_length(features, 0.0))


@functools.lru_cache(maxsize=1000)
def gaussian_length(features: int, shift: float, variance: float = 2.0) -> float:
    """The mean length of a normal vector `shift` away from zero, with that variance in each of its features."""
    scale = math.sqrt(variance / 2)
    t = numpy.exp(numpy.linspace(-30, 30, 6001))
    laplace = (1 + 4 * t) ** (-features / 2) * numpy.exp(-t * (shift / scale) ** 2 / (1 + 4 * t))
    return scale * float(numpy.trapezoid((1 - laplace) / numpy.sqrt(t), numpy.log(t)) / (2 * math.sqrt(math.pi)))


def mixture_distance(centres: Array, variance: float) -> float:
    """The energy distance of normal pictures around so many centres (P × F), equally often, from a standard normal."""
    features = centres.shape[1]
    across = numpy.mean(
        [gaussian_length(features, float(far), 1 + variance) for far in numpy.linalg.norm(centres, axis=1)]
    )
    own = numpy.mean(
        [gaussian_length(features, float(far), 2 * variance) for far in numpy.round(apart(centres, centres), 9).ravel()]
    )
    return float(2 * across - own) - gaussian_length(features, 0.0)


def evaluated(
    samples: Mapping[str, Array], groups: Sequence[object] | None = None
) -> tuple[dict[str, Estimate], Interval | None]:
    """The three distances, and the interval of the style match, as the evaluation computes them.

    groups  the prompt of each row of "base" and "lora", where they are taken together
    """
    training = Sample.of("training", samples["training"])
    variety = mean_distance(training)
    made = {one: Sample.of("made", samples[one], groups) for one in ("base", "lora")}
    made["held out"] = Sample.of("held out", samples["held out"])
    found = {one: distance(sample, training, variety) for one, sample in made.items()}
    return found, ratio_interval(found["base"] - found["lora"], found["base"] - found["held out"], LEVEL)


def plain_percentiles(estimate: Estimate, level: float) -> Interval:
    """The usual interval of a bootstrap, of the same draws."""
    draws = estimate.drawn[numpy.isfinite(estimate.drawn)]
    low, high = numpy.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


WAYS = {"ours": interval, "percentiles": plain_percentiles, "symmetric": symmetric_interval}


def repeated(fresh: Fresh, repeats: int, seed: int = 0, groups: Sequence[object] | None = None) -> Repeats:
    """Evaluate fresh samples so many times; `fresh` gives "training", "base", "lora", "held out", and their truth.

    groups  the prompt of each row that is made, where they are taken together
    """
    chance = numpy.random.default_rng(seed)
    hits: dict[str, list[bool]] = {}
    widths: list[float] = []
    truths: list[Mapping[str, float]] = []
    values: list[float] = []
    for _ in range(repeats):
        samples, truth = fresh(chance)
        truths.append(truth)
        found, match = evaluated(samples, groups)
        values.append(found["lora"].value)
        for (name, one), (way, bounds_of) in itertools.product(found.items(), WAYS.items()):
            low, high = bounds_of(one, LEVEL)
            hits.setdefault(name if way == "ours" else f"{name}, {way}", []).append(low <= truth[name] <= high)
        if match:
            hits.setdefault("match", []).append(match[0] <= truth["match"] <= match[1])
            widths.append(match[1] - match[0])
    shares = {name: float(numpy.mean(one)) for name, one in hits.items()}
    return Repeats(
        {name: float(numpy.mean([truth[name] for truth in truths])) for name in truths[0]},
        {name: share for name, share in shares.items() if "," not in name},
        {name: share for name, share in shares.items() if "," in name},
        float(numpy.median(widths)) if widths else None,
        repeats - len(widths),
        repeats,
        float(numpy.mean(values)),
    )


def drawn_samples(rows: Rows, made: int, training: int, held_out: int) -> Fresh:
    """Fresh samples of drawn populations, in the scale of that repeat's training photographs, and the truth in it."""

    def fresh(chance: Chance) -> tuple[Rows, Mapping[str, float]]:
        population = len(rows["training"])
        learnt, unseen = (chance.integers(population, size=count) for count in (training, held_out))
        pairs = chance.integers(len(rows["base"]), size=made)
        scale = weight_free.Scale.of(rows["training"][learnt])
        scaled = {name: scale.apply(one) for name, one in rows.items()}
        samples = {
            "training": scaled["training"][learnt],
            "held out": scaled["training"][unseen],
            "base": scaled["base"][pairs],
            "lora": scaled["lora"][pairs],
        }
        far = {name: population_distance(scaled[name], scaled["training"]) for name in ("base", "lora")}
        return samples, {**far, "held out": 0.0, "match": (far["base"] - far["lora"]) / far["base"]}

    return fresh


def gaussian_samples(features: int, shift: float, step: float, made: int, training: int, held_out: int) -> Fresh:
    """Fresh Gaussian samples: the base `shift` spreads away, the LoRA `step` of the way (0..1) back."""
    far = {"base": gaussian_distance(features, shift), "lora": gaussian_distance(features, (1 - step) * shift)}
    truth = {**far, "held out": 0.0, "match": (far["base"] - far["lora"]) / far["base"]}
    along = numpy.eye(features)[0]

    def fresh(chance: Chance) -> tuple[Rows, Mapping[str, float]]:
        own = chance.normal(size=(made, features))
        alike = 0.5 * own + math.sqrt(0.75) * chance.normal(size=(made, features))  # one prompt and seed
        return {
            "training": chance.normal(size=(training, features)),
            "held out": chance.normal(size=(held_out, features)),
            "base": own + shift * along,
            "lora": alike + (1 - step) * shift * along,
        }, truth

    return fresh


def prompted_samples(
    features: int, shift: float, step: float, prompts: int, seeds: int, training: int, held_out: int, *, only: bool
) -> Fresh:
    """The same of fresh prompts that are drawn with several seeds each: pictures of one prompt are alike.

    only  the truth is that of these prompts alone, and not of all that could have been written
    """
    along, within = numpy.eye(features)[0], 1 - ALIKE
    every = {"base": gaussian_distance(features, shift), "lora": gaussian_distance(features, (1 - step) * shift)}

    def fresh(chance: Chance) -> tuple[Rows, Mapping[str, float]]:
        subjects = math.sqrt(ALIKE) * chance.normal(size=(prompts, features))
        centres = {"base": subjects + shift * along, "lora": subjects + (1 - step) * shift * along}
        noise = [chance.normal(size=(prompts * seeds, features)) for _ in range(2)]
        own = {"base": noise[0], "lora": 0.5 * noise[0] + math.sqrt(0.75) * noise[1]}  # one prompt and seed
        rows = {one: numpy.repeat(centres[one], seeds, axis=0) + math.sqrt(within) * own[one] for one in own}
        rows |= {"training": chance.normal(size=(training, features))}
        rows |= {"held out": chance.normal(size=(held_out, features))}
        far = {one: mixture_distance(around, within) for one, around in centres.items()} if only else every
        return rows, {**far, "held out": 0.0, "match": (far["base"] - far["lora"]) / far["base"]}

    return fresh


def ordered(rows: Mapping[str, Array], names: Sequence[str], repeats: int, seed: int = 0) -> float:
    """How often the distances of fresh samples of these steps to fresh training photographs come out in this order."""
    chance = numpy.random.default_rng(seed)
    right = 0
    for _ in range(repeats):
        learnt = rows["training"][chance.integers(len(rows["training"]), size=TRAINING)]
        scale = weight_free.Scale.of(learnt)
        training = Sample.of("training", scale.apply(learnt))
        made = chance.integers(len(rows[names[0]]), size=MADE)
        far = [distance(Sample.of("made", scale.apply(rows[name][made])), training).value for name in names]
        right += far == sorted(far)
    return right / repeats
