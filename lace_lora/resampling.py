"""Estimates that know how far they can be trusted: each is computed again from samples as chance might have made them.

What belongs together is drawn together, so photographs of one piece count as one, and two pictures drawn from one
prompt and seed move together. The draws are fixed: the same numbers in give the same interval out.

How the interval was chosen (benchmarks/results/evidence-*.md): percentiles of a bootstrap follow skewed estimates, such
as the distance of a LoRA that fails for one prompt in four, but of thirty pictures they are too narrow; value ± t ·
standard error is wide enough, but misses such skewed truths in up to 16 of 100 repeats. So percentiles are taken,
further out by what t and the small sample ask for.
"""

import functools
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]
Interval = tuple[float, float]

DRAWS = 1000
_FINE = 4001  # points on which the t distribution is integrated: four digits of its quantiles and more


@dataclass(frozen=True)
class Estimate:
    """A number computed from samples, and the same number from samples as chance might have made them.

    value    from everything
    without  for each sample by name: the value without each of its groups
    drawn    DRAWS values, each from samples drawn again (see `weights`); NaN where nothing could be compared. One
             number, or none, where the value is certain.

    Samples of one name in two estimates are the same groups in the same order; they vary together.
    """

    value: float
    without: Mapping[str, Array] = field(default_factory=dict)
    drawn: Array = field(default_factory=lambda: numpy.zeros(0))

    def __add__(self, other: "Estimate") -> "Estimate":
        """Their sum; a sample that only one of them knows leaves the other as it is."""
        names = [*self.without, *(name for name in other.without if name not in self.without)]
        sums = {name: self._without(name) + other._without(name) for name in names}
        return Estimate(self.value + other.value, sums, self._drawn() + other._drawn())

    def __mul__(self, factor: float) -> "Estimate":
        """So many times the number."""
        without = {name: factor * values for name, values in self.without.items()}
        return Estimate(factor * self.value, without, factor * self._drawn())

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Their difference: what both owe to the same pictures falls out of its interval too."""
        return self + other * -1

    def _without(self, name: str) -> Array:
        return self.without.get(name, numpy.full(1, self.value))

    def _drawn(self) -> Array:
        return self.drawn if self.drawn.size else numpy.full(1, self.value)

    @property
    def variance(self) -> float:
        """Of the value, over fresh samples of the same sizes: Σ over samples of (n − 1) / n · Σ (value_g − mean)².

        Source: Efron and Stein 1981, "The jackknife estimate of variance": on average it is never too small.
        """
        return sum(_spread(values) for values in self.without.values())

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the variance, where small samples add to it (Satterthwaite 1946, eq. 17); 1 or more."""
        parts = [(len(values), _spread(values)) for values in self.without.values() if len(values) > 1]
        total = sum(part for _, part in parts)
        weighed = sum(part**2 / (count - 1) for count, part in parts)
        return max(1.0, total**2 / weighed) if weighed > 0 else math.inf


@functools.lru_cache(maxsize=32)
def weights(name: str, groups: int) -> Array:
    """How often each group stands in each draw, DRAWS × groups: drawn with replacement, the same for the same name."""
    chance = numpy.random.default_rng((zlib.crc32(name.encode()), groups))
    counts: Array = chance.multinomial(groups, numpy.full(groups, 1 / groups), DRAWS).astype(numpy.float64)
    counts.flags.writeable = False
    return counts


def interval(estimate: Estimate, level: float) -> Interval:
    """Where the true number lies in `level` of all cases (0..1): percentiles of the draws, further out than usual.

    Source: Hesterberg 2015, "What teachers should know about the bootstrap", 4.2: expanded percentiles.
    """
    return _percentiles(estimate._drawn(), estimate.degrees, level)


def symmetric_interval(estimate: Estimate, level: float) -> Interval:
    """The same as value ± t · standard error: for means, where it covers as well and is Student's own."""
    reach = t_quantile(estimate.degrees, level) * math.sqrt(estimate.variance)
    return estimate.value - reach, estimate.value + reach


def ratio_interval(above: Estimate, below: Estimate, level: float) -> Interval | None:
    """Where the true ratio above / below lies in `level` of all cases; None where `below` is not told from zero.

    Nothing is said of a ratio to what may be nothing: its percentiles would be as wide as chance has it.
    """
    low, high = interval(below, level)
    if low <= 0 <= high or below.value == 0:
        return None
    rest = above - below * (above.value / below.value)  # what keeps the ratio from being certain
    below_draws = below._drawn()
    is_told = below_draws * math.copysign(1, below.value) > 0
    ratios = above._drawn() / numpy.where(is_told, below_draws, numpy.nan)
    return _percentiles(ratios, rest.degrees, level)


def t_quantile(degrees: float, level: float) -> float:
    """How many standard errors to either side hold `level` (0..1) of Student's t distribution.

    With x = √ν · tan θ the density of x becomes cos(θ)^(ν − 1), which is integrated; beyond 1e5 degrees it is the
    normal distribution in four digits.
    """
    degrees = min(max(degrees, 1.0), 1e5)
    # The density is nothing beyond 40 standard deviations, except where there are so few degrees that all is needed.
    angles = numpy.linspace(0, min(math.pi / 2, math.atan(40 / math.sqrt(degrees)) * 1.5), _FINE)
    heights = numpy.cos(angles).clip(0, 1) ** (degrees - 1)
    inside = numpy.concatenate([[0.0], numpy.cumsum(heights[1:] + heights[:-1])])
    return math.sqrt(degrees) * math.tan(float(numpy.interp(level * inside[-1], inside, angles)))


def _percentiles(draws: Array, degrees: float, level: float) -> Interval:
    """With tails as small as normal ones beyond t · √((ν + 1) / ν): n draws of n vary by (n − 1) / n too little."""
    degrees = min(degrees, 1e5)
    tail = NormalDist().cdf(-t_quantile(degrees, level) * math.sqrt((degrees + 1) / degrees))
    low, high = numpy.quantile(draws[numpy.isfinite(draws)], [tail, 1 - tail])
    return float(low), float(high)


def _spread(values: Array) -> float:
    """(n − 1) / n · Σ (value − mean)²."""
    return float((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())
