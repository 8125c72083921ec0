"""Whether the numbers of an evaluation can be believed: known distances in order, and intervals that hold the truth.

python -m benchmarks.evidence --photographs FOLDER    writes benchmarks/results/evidence-<date>.md
python -m benchmarks.evidence --only prompts          one section, into evidence-prompts-<date>.md
python -m benchmarks.evidence --repeats 20            fewer repeats, drawn pictures only, printed only

The page is made of sections: functions of what was asked for that return lines of Markdown, in SECTIONS.
"""

import argparse
import datetime
import functools
import itertools
import math
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import PIL
from PIL import Image

from benchmarks import hardware
from benchmarks.check import RESULTS
from benchmarks.coverage import (
    ALIKE,
    BLURS,
    DRAWN_PX,
    HELD_OUT,
    MADE,
    PROMPTS,
    STEPS,
    TINTS,
    TRAINING,
    Repeats,
    apart,
    drawn_rows,
    drawn_samples,
    evaluated,
    gaussian_samples,
    lace,
    ordered,
    plain,
    populations,
    prompted_samples,
    repeated,
    softened,
    tinted,
)
from lace_lora import weight_free
from lace_lora.image_files import READABLE_KINDS, open_picture
from lace_lora.intervals import mean_interval
from lace_lora.mmd import Sample, distance
from lace_lora.resampling import Array, Estimate, Interval, interval, symmetric_interval
from lace_lora.scores import LEVEL
from lace_lora.style_claims import FEWEST_PROMPTS
from lace_lora.style_statistics import style_statistics

REPEATS, LEAST_COVERED, POPULATION = 200, 0.90, 150
DRAWS = 300  # of a mean's bootstrap


@dataclass(frozen=True)
class Asked:
    """What the command asked for: photographs by file name, and how many repeats and drawn pictures."""

    photographs: Mapping[str, Image.Image] = field(default_factory=dict)
    repeats: int = REPEATS
    population: int = POPULATION


# -- kernels and features beside ours --


def gaussian_kernel(one: Array, other: Array, training: Array) -> Array:
    """As wide as the median distance between training photographs: the usual choice."""
    width = numpy.median(apart(training, training)[numpy.triu_indices(len(training), 1)])
    return numpy.exp(-(apart(one, other) ** 2) / (2 * width**2))


def cubic_kernel(one: Array, other: Array, training: Array) -> Array:
    """(x · y / F + 1)³, the kernel of KID."""
    return (one @ other.T / one.shape[1] + 1) ** 3


def minus_distance(one: Array, other: Array, training: Array) -> Array:
    """−|x − y|: that of mmd."""
    return -apart(one, other)


KERNELS = {"−distance (ours)": minus_distance, "Gaussian": gaussian_kernel, "cubic (KID)": cubic_kernel}


def kernel_distance(kernel: Callable[[Array, Array, Array], Array], one: Array, other: Array) -> tuple[float, Interval]:
    """Unbiased squared MMD with any kernel, and value ± t · standard error; `other` are the training photographs."""
    across, own, others = kernel(one, other, other), kernel(one, one, other), kernel(other, other, other)

    def value(a: Sequence[int], b: Sequence[int]) -> float:
        inner = [k[numpy.ix_(s, s)] for k, s in ((own, a), (others, b))]
        means = [(k.sum() - numpy.trace(k)) / (len(k) * (len(k) - 1)) for k in inner]
        return float(sum(means) - 2 * across[numpy.ix_(a, b)].mean())

    a, b = list(range(len(one))), list(range(len(other)))
    without = {
        "one": numpy.array([value([*a[:i], *a[i + 1 :]], b) for i in a]),
        "other": numpy.array([value(a, [*b[:i], *b[i + 1 :]]) for i in b]),
    }
    estimate = Estimate(value(a, b), without)
    return estimate.value, symmetric_interval(estimate, LEVEL)


def ten_statistics(pictures: Sequence[Image.Image]) -> Array:
    """The ten of style_statistics, at 96 px."""
    return numpy.stack([style_statistics(picture) for picture in pictures])


def scaled_like(training: Array, rows: Array) -> Array:
    """In robust spreads of the training photographs, as weight_free.Scale does, whatever the features are."""
    low, middle, high = numpy.quantile(training, [0.25, 0.5, 0.75], axis=0)
    return numpy.arcsinh((rows - middle) / numpy.maximum((high - low) / 1.349, 0.02))


# -- real photographs --

SERIES = {
    "nets (ASN…)": r"ASN.*",
    "Flanders grounds (…-1.JPG)": r"\d+-1\.JPG",
    "grounds with names": r"[A-Za-z_-]{3,}\.jpg",
}
SIDE_OF_DRAWN = 256  # px, beside photographs: what features look at


def series(photographs: Mapping[str, Image.Image]) -> dict[str, list[Image.Image]]:
    """The photographs of each series, in the order of their names."""
    return {
        name: [photographs[file] for file in sorted(photographs) if re.fullmatch(pattern, file)]
        for name, pattern in SERIES.items()
    }


def halves(rows: Array, seed: int) -> tuple[Array, Array]:
    """Two random halves."""
    order = numpy.random.default_rng(seed).permutation(len(rows))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]


def from_half(half: Array, rows: Array) -> tuple[float, Interval]:
    """The distance of rows from a half of a series, in that half's scale."""
    scale = weight_free.Scale.of(half)
    training = Sample.of("training", scale.apply(half))
    found = distance(Sample.of("made", scale.apply(rows)), training)
    return found.value, interval(found, LEVEL)


@functools.cache
def drawn_beside() -> dict[str, Array]:
    """Features of 30 pieces of drawn lace and 30 of drawn plain textile, in the size of photographs."""
    drawn = {"drawn lace": lace(0, 30, SIDE_OF_DRAWN), "plain textile": plain(30, SIDE_OF_DRAWN)}
    return {name: weight_free.features_of(pictures) for name, pictures in drawn.items()}


# -- the sections of the page --


def shifted_styles(asked: Asked) -> list[str]:
    """Drawn styles shifted by known amounts: order, and coverage at each number of held-out photographs."""
    rows = drawn_rows(asked.population)
    steps = populations(asked.population)
    mixed = {f"mix {step:g}": steps[f"lace for {step:.0%} of the prompts"]["lora"] for step in STEPS}
    kinds = {
        "lace for fewer of the prompts": [f"mix {step:g}" for step in reversed(STEPS)],
        "lace more and more blurred": ["other", *(f"blur {px:g}" for px in BLURS[1:])],
        "lace with less and less red": ["other", *(f"tint {red:g}" for red in TINTS[1:])],
    }
    lines = [
        "## A drawn style shifted by known amounts",
        "",
        f"{MADE} made, {TRAINING} training photographs, weight-free features. Of {asked.repeats} repeats, in how many "
        "the distances of all five steps come out in their true order:",
        "",
        "| shift | in order |",
        "|---|---|",
    ]
    for name, order in kinds.items():
        lines.append(f"| {name} | {ordered({**rows, **mixed}, order, asked.repeats):.0%} |")
    lines += ["", *_coverage_head()]
    for name, case in steps.items():
        for held_out in HELD_OUT if name.startswith(("lace for 75", "base")) else HELD_OUT[:1]:
            found = repeated(drawn_samples(case, MADE, TRAINING, held_out), asked.repeats)
            lines.append(_coverage_row(name, held_out, found))
    return lines


def gaussian_styles(asked: Asked) -> list[str]:
    """The same of Gaussian features, whose truth is an integral."""
    lines = ["## Gaussian features", "", "The base lies `shift` spreads away, the LoRA part of the way back.", ""]
    lines += _coverage_head()
    for features, shift, step in itertools.product((10, 100), (2.0, 4.0), (0.5, 1.0)):
        for held_out in HELD_OUT:
            fresh = gaussian_samples(features, shift, step, MADE, TRAINING, held_out)
            found = repeated(fresh, asked.repeats)
            lines.append(_coverage_row(f"{features} features, shift {shift:g}, {step:.0%} back", held_out, found))
    return lines


def means_of_few(asked: Asked) -> list[str]:
    """How often the interval of a mean holds it: Student's, which is ours, against the bootstrap's percentiles."""
    chance = numpy.random.default_rng(1)
    draws: dict[str, tuple[Callable[[int], Array], float]] = {
        "normal": (lambda n: chance.normal(size=n), 0.0),
        "exponential": (lambda n: chance.exponential(size=n), 1.0),
    }
    lines = ["## Means and paired differences", "", "| numbers | how many | ours | percentiles of a bootstrap |"]
    lines.append("|---|---|---|---|")
    for (name, (fresh, true)), count in itertools.product(draws.items(), (5, 10, 30)):
        ours = usual = 0
        for _ in range(5 * asked.repeats):
            numbers = fresh(count)
            low, high = mean_interval(numbers.tolist()) or (math.nan, math.nan)
            ours += low <= true <= high
            again = numbers[chance.integers(count, size=(DRAWS, count))].mean(1)
            low, high = numpy.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            usual += low <= true <= high
        lines.append(f"| {name} | {count} | {ours / asked.repeats / 5:.0%} | {usual / asked.repeats / 5:.0%} |")
    return lines


def kernels_and_features(asked: Asked) -> list[str]:
    """Why this kernel, and why not the ten statistics: what each sees of blur, tint and plain cloth."""
    training, other = lace(0, 60, SIDE_OF_DRAWN), lace(100_000, 30, SIDE_OF_DRAWN)
    sets = {"unseen lace": other}
    sets |= {f"blurred by {px:g} px": [softened(one, px) for one in other] for px in (0.5, 1, 2, 4)}
    sets |= {f"{red:.0%} of its red": [tinted(one, red) for one in other] for red in (0.8, 0.6)}
    sets |= {"plain textile": plain(30, SIDE_OF_DRAWN)}
    looks = {"55 weight-free": weight_free.features_of, "10 statistics": ten_statistics}
    lines = [
        "## Other kernels and other features",
        "",
        f"30 pictures against 60 training photographs, all drawn at {SIDE_OF_DRAWN} px: the distance, and how often it "
        "holds half of its interval (above 1 it is told from nothing). “Straight” is without the pressing together of "
        "what is far.",
        "",
        f"| features | kernel | {' | '.join(sets)} |",
        f"|---|---|{'---|' * len(sets)}",
    ]
    for name, look in looks.items():
        learnt = look(training)
        scale = weight_free.Scale.of(learnt)
        ways: dict[str, Callable[[Array], Array]] = {
            name: scale.apply if name == "55 weight-free" else functools.partial(scaled_like, learnt),
            f"{name}, straight": lambda rows, scale=scale: (rows - scale.middles) / scale.spreads,
        }
        found = {one: look(pictures) for one, pictures in sets.items()}
        for (way, scaled), (kernel_name, kernel) in itertools.product(ways.items(), KERNELS.items()):
            cells = []
            for rows in found.values():
                value, (low, high) = kernel_distance(kernel, scaled(rows), scaled(learnt))
                cells.append(f"{value:.3g} ({2 * value / (high - low):.1f})")
            lines.append(f"| {way} | {kernel_name} | {' | '.join(cells)} |")
    return lines


def real_series(asked: Asked) -> list[str]:
    """Two halves of each real series against drawn lace, plain textile and the other series."""
    rows = {name: weight_free.features_of(one) for name, one in series(asked.photographs).items() if len(one) >= 10}
    if not rows:
        return []
    lines = [
        "## Real photographs",
        "",
        "Distance from one random half of a series, with its interval, for three ways to part it. Weight-free features "
        "in that half's scale.",
        "",
        f"| series | photographs | its other half | drawn lace | plain textile | {' | '.join(rows)} |",
        f"|---|---|---|---|---|{'---|' * len(rows)}",
    ]
    for (name, own), seed in itertools.product(rows.items(), range(3)):
        half, rest = halves(own, seed)
        others = [rows[one] if one != name else None for one in rows]
        found = [from_half(half, one) if one is not None else None for one in (rest, *drawn_beside().values(), *others)]
        cells = ["" if one is None else f"{one[0]:.2f} ({one[1][0]:.2f} to {one[1][1]:.2f})" for one in found]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return lines


def speed(asked: Asked) -> list[str]:
    """How long the features of 280 pictures of 1000 px take, and the distances of a whole evaluation."""
    picture = Image.effect_noise((1000, 1000), 60).convert("RGB")
    began = time.perf_counter()
    rows = weight_free.features_of([picture] * 20)
    each = (time.perf_counter() - began) / len(rows)
    chance = numpy.random.default_rng(0)
    began = time.perf_counter()
    evaluated({name: chance.normal(size=(count, 768)) for name, count in
               (("training", TRAINING), ("held out", 25), ("base", MADE), ("lora", MADE))})  # fmt: skip
    whole = time.perf_counter() - began
    return [
        "## Time",
        "",
        f"Features of 280 pictures of 1000 px, one core: {280 * each:.0f} s. Three distances with their intervals and "
        f"the style match, of 768 features: {whole:.2f} s.",
    ]


def few_prompts(asked: Asked) -> list[str]:
    """About thirty pictures of few prompts: taken together by prompt as the evaluation does, and each for itself."""
    lines = [
        "## Few prompts, several seeds each",
        "",
        f"Gaussian features: ten, base 4 spreads away, LoRA half of the way back; {TRAINING} training photographs, 25 "
        f"held out. {ALIKE:.0%} of the variance of pictures is that of their prompts. {asked.repeats} repeats, each of "
        "fresh prompts. “For these” is the truth of the drawn prompts alone, “for all” that of all that could be "
        f"written. From {FEWEST_PROMPTS} prompts on the evaluation takes pictures of one prompt together and speaks "
        "for all; with fewer it takes each for itself and speaks for these.",
        "",
        "| prompts × seeds | taken | truth | covered: base | LoRA | match | median width | refused "
        "| LoRA: truth, mean of repeats | used |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for prompts, seeds in PROMPTS:
        told = [number // seeds for number in range(prompts * seeds)]
        ways = [(None, False), (None, True)] + ([(told, False)] if prompts >= 3 else [])
        for groups, only in ways:
            fresh = prompted_samples(10, 4.0, 0.5, prompts, seeds, TRAINING, 25, only=only)
            found = repeated(fresh, asked.repeats, groups=groups)
            used = (groups is not None) == (prompts >= FEWEST_PROMPTS) and only == (prompts < FEWEST_PROMPTS)
            cells = [f"{prompts} × {seeds}", "by prompt" if groups else "each", "for these" if only else "for all"]
            cells += [
                f"{found.covered[name]:.0%}" if name in found.covered else "–" for name in ("base", "lora", "match")
            ]
            cells += ["–" if found.width is None else f"{found.width:.2f}"]
            cells += [f"{found.refused / found.count:.0%}"]
            cells += [f"{found.truth['lora']:.3f}, {found.mean:.3f}", "yes" if used else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


SECTIONS: dict[str, Callable[[Asked], list[str]]] = {
    "styles": shifted_styles,
    "gaussian": gaussian_styles,
    "prompts": few_prompts,
    "means": means_of_few,
    "kernels": kernels_and_features,
    "series": real_series,
    "time": speed,
}


NEED_NO_PHOTOGRAPHS = ("gaussian", "prompts", "means")


def _coverage_head() -> list[str]:
    return [
        f"How often each interval, meant for {LEVEL:.0%}, holds the truth (target: {LEAST_COVERED:.0%} or more); in "
        "brackets the usual percentiles of the same draws, and value ± t · standard error. The match is counted where "
        "it is not refused.",
        "",
        "| case | held out | true distance: base, LoRA | covered: base | LoRA | held out | true match | covered "
        "| median width | refused |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]


def _coverage_row(name: str, held_out: int, found: Repeats) -> str:
    def covered(key: str) -> str:
        others = [f"{found.others[f'{key}, {way}']:.0%}" for way in ("percentiles", "symmetric")]
        return f"{found.covered[key]:.0%} ({', '.join(others)})"

    cells = [
        name,
        str(held_out),
        f"{found.truth['base']:.3f}, {found.truth['lora']:.3f}",
        *(covered(key) for key in ("base", "lora", "held out")),
        f"{found.truth['match']:.2f}",
        f"{found.covered['match']:.0%}" if "match" in found.covered else "–",
        "–" if found.width is None else f"{found.width:.2f}",
        f"{found.refused / found.count:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def as_page(asked: Asked, command: str, only: str | None = None) -> str:
    """All sections, or the one that is asked for, with what they were measured on."""
    lines = [
        f"# Can the numbers of an evaluation be believed, {datetime.date.today().isoformat()}",
        "",
        f"- command: `{command}`",
        f"- {asked.repeats} repeats; populations of {asked.population} drawn pictures of {DRAWN_PX} px; "
        f"{len(asked.photographs)} real photographs",
        f"- hardware: {hardware.name('cpu')}, no GPU used",
        f"- software: Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {numpy.__version__}",
    ]
    for section in SECTIONS.values() if only is None else [SECTIONS[only]]:
        lines += ["", *section(asked)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and keep the page where all of it was measured."""
    words = argparse.ArgumentParser(description="Whether the numbers of an evaluation can be believed.")
    words.add_argument("--photographs", type=Path, help="a folder of photographs of lace")
    words.add_argument("--repeats", type=int, default=REPEATS, help="evaluations of fresh pictures a case")
    words.add_argument("--population", type=int, default=POPULATION, help="drawn pictures of each kind")
    words.add_argument("--only", choices=SECTIONS, help="this section alone, kept in a page of its own")
    given = words.parse_args()
    folder = given.photographs
    paths = [path for path in folder.iterdir() if path.suffix.casefold() in READABLE_KINDS] if folder else []
    asked = Asked({path.name: open_picture(path) for path in paths}, given.repeats, given.population)
    command = "python -m benchmarks.evidence" + " --photographs FOLDER" * bool(paths)
    command += f" --repeats {given.repeats}" * (given.repeats != REPEATS)
    command += f" --population {given.population}" * (given.population != POPULATION)
    command += f" --only {given.only}" * bool(given.only)
    text = as_page(asked, command, given.only)
    print(text)
    if (paths or given.only in NEED_NO_PHOTOGRAPHS) and (given.repeats, given.population) == (REPEATS, POPULATION):
        RESULTS.mkdir(exist_ok=True)
        section = f"{given.only}-" if given.only else ""
        page = RESULTS / f"evidence-{section}{datetime.date.today().isoformat()}.md"
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
