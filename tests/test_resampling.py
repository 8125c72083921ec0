"""Estimates drawn again: against tables, hand-computed standard errors and draws by hand (D8)."""

import math

import numpy
import pytest

from lace_lora.intervals import mean
from lace_lora.resampling import DRAWS, Estimate, interval, ratio_interval, symmetric_interval, t_quantile, weights


@pytest.mark.parametrize(
    ("degrees", "level", "tabled"),
    [(1, 0.95, 12.7062), (2, 0.95, 4.3027), (5, 0.99, 4.0321), (29, 0.95, 2.0452), (100, 0.9, 1.6602),
     (math.inf, 0.95, 1.9600)],
)  # fmt: skip
def test_quantiles_of_the_t_distribution_are_those_of_printed_tables(degrees, level, tabled):
    """D8."""
    assert t_quantile(degrees, level) == pytest.approx(tabled, rel=1e-4)


def test_the_symmetric_interval_of_a_mean_is_students():
    """D8: mean ± t · s / √n, computed with statistics of numpy."""
    values = numpy.random.default_rng(2).normal(3, 2, size=12)
    low, high = symmetric_interval(mean(values.tolist()), 0.95)
    reach = 2.200985 * values.std(ddof=1) / math.sqrt(12)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), rel=1e-4)


def test_a_difference_of_paired_means_is_less_uncertain_than_of_separate_ones():
    """D8: samples of one name move together, those of two names do not."""
    chance = numpy.random.default_rng(0)
    base = chance.normal(size=30)
    tuned = base + 1 + 0.1 * chance.normal(size=30)
    pairs = mean(tuned.tolist(), name="made") - mean(base.tolist(), name="made")
    separate = mean(tuned.tolist(), name="one") - mean(base.tolist(), name="other")
    assert pairs.variance == pytest.approx((tuned - base).var(ddof=1) / 30)
    assert separate.variance == pytest.approx(tuned.var(ddof=1) / 30 + base.var(ddof=1) / 30)
    assert pairs.drawn.std() == pytest.approx(pairs.variance**0.5, rel=0.1)
    assert separate.drawn.std() == pytest.approx(separate.variance**0.5, rel=0.1)
    assert pairs.degrees == pytest.approx(29)
    ours = tuned.var(ddof=1) / 30, base.var(ddof=1) / 30
    assert separate.degrees == pytest.approx(sum(ours) ** 2 / (ours[0] ** 2 / 29 + ours[1] ** 2 / 29))


def test_sums_and_multiples_are_those_of_their_values():
    """D8: with and without each group."""
    one, other = mean([1.0, 2.0, 6.0], name="a"), mean([4.0, 8.0, 9.0], name="b")
    both = one * 3 - other
    assert both.value == pytest.approx(3 * 3 - 7)
    assert both.without["a"] == pytest.approx([3 * 4 - 7, 3 * 3.5 - 7, 3 * 1.5 - 7])
    assert both.without["b"] == pytest.approx([9 - 8.5, 9 - 6.5, 9 - 6])


def test_draws_are_the_same_every_time_and_for_one_name_together():
    """D8: as many as there are groups, each time; other names are drawn on their own."""
    counts = weights("made", 12)
    assert counts.shape == (DRAWS, 12) and (counts.sum(1) == 12).all()
    weights.cache_clear()
    assert (weights("made", 12) == counts).all()
    assert (weights("training", 12) != counts).any()
    assert numpy.corrcoef(counts[:, 0], weights("training", 12)[:, 0])[0, 1] == pytest.approx(0, abs=0.15)


def test_a_mean_drawn_again_is_the_mean_of_what_was_drawn():
    """D8: with groups of two sizes, by hand."""
    estimate = mean([1.0, 3.0, 8.0], ["a", "a", "b"], name="x")
    for draw in range(5):
        a, b = weights("x", 2)[draw]
        assert estimate.drawn[draw] == pytest.approx((a * (1 + 3) + b * 8) / (2 * a + b))


def test_the_interval_is_of_percentiles_further_out_by_what_few_degrees_ask_for():
    """D8: of nine degrees, t = 2.2622; times √(10 / 9) that is 2.3845, beyond which 0.855 % of a normal lie."""
    draws = numpy.arange(1000.0)
    few = Estimate(500.0, {"a": numpy.linspace(0, 1, 10)}, draws)
    assert few.degrees == pytest.approx(9)
    assert interval(few, 0.95) == pytest.approx((0.00855 * 999, (1 - 0.00855) * 999), abs=0.05)
    sure = Estimate(500.0, {"a": numpy.linspace(0, 1, 100_001)}, draws)
    assert interval(sure, 0.95) == pytest.approx((0.025 * 999, 0.975 * 999), abs=0.05)


def test_the_interval_of_a_skewed_estimate_is_skewed_and_draws_of_nothing_do_not_count():
    """D8: draws with a long upper tail."""
    draws = numpy.exp(numpy.random.default_rng(0).normal(size=1000))
    low, high = interval(Estimate(1.0, {"a": numpy.linspace(0, 1, 30)}, draws), 0.95)
    assert 1 - low < 0.5 * (high - 1)
    holed = numpy.concatenate([draws, numpy.full(400, numpy.nan)])
    assert interval(Estimate(1.0, {"a": numpy.linspace(0, 1, 30)}, holed), 0.95) == pytest.approx((low, high))


def test_a_ratio_is_that_of_each_draw():
    """D8: where above is a part of below in every draw, the ratio is certain however uncertain both are."""
    below = mean(numpy.random.default_rng(1).normal(5, 3, size=40).tolist())
    assert ratio_interval(below * 0.6, below, 0.95) == pytest.approx((0.6, 0.6))
    other = mean(numpy.random.default_rng(2).normal(3, 1, size=40).tolist(), name="other")
    low, high = ratio_interval(other, below, 0.95)
    ratios = numpy.sort(other.drawn / below.drawn)
    assert ratios[0] <= low <= ratios[25] < other.value / below.value < ratios[-25] <= high <= ratios[-1]
    upside_down = ratio_interval(other * -1, below * -1, 0.95)
    assert upside_down == pytest.approx((low, high))


def test_a_ratio_covers_the_truth_as_often_as_it_says():
    """D8: 3 / 5, from thirty pairs."""
    chance = numpy.random.default_rng(5)
    hits = []
    for _ in range(200):
        below = chance.normal(5, 4, size=30)
        above = 0.6 * below + chance.normal(0, 2, size=30)
        low, high = ratio_interval(mean(above.tolist()), mean(below.tolist()), 0.95)
        hits.append(low <= 0.6 <= high)
    assert 0.92 <= numpy.mean(hits) <= 0.99


def test_draws_in_which_the_number_below_is_lost_do_not_count():
    """D8: one draw in a hundred below zero would give ratios of the other sign."""
    draws = numpy.linspace(1, 3, 1000)
    draws[::100] = -0.01
    groups = {"a": numpy.linspace(0, 1, 400)}
    below = Estimate(2.0, groups, draws)
    found = ratio_interval(Estimate(1.0), below, 0.95)
    kept = Estimate(0.5, groups, 1 / draws[draws > 0])
    assert found == pytest.approx(interval(kept, 0.95))


def test_there_is_no_ratio_to_what_may_be_zero():
    """D8: refused as soon as the interval below holds zero, and not before."""
    up, apart = mean([3.0, 4.0, 5.0, 4.0, 3.5]), mean([-1.0, -0.5, 0.0, 0.5, 1.0])
    low, _ = interval(apart, 0.95)

    def lifted(by: float) -> Estimate:
        return apart + Estimate(by)

    assert ratio_interval(up, lifted(-0.98 * low), 0.95) is None
    assert ratio_interval(up, lifted(-1.02 * low), 0.95) is not None
    assert ratio_interval(up, lifted(0.98 * low), 0.95) is None
    assert ratio_interval(up, Estimate(0.0), 0.95) is None


def test_a_ratio_to_a_certain_number_is_a_scaled_interval():
    """D8: dividing by a constant divides the interval."""
    up = mean([3.0, 4.0, 5.0, 4.0, 3.5])
    low, high = interval(up, 0.95)
    assert ratio_interval(up, Estimate(4.0), 0.95) == pytest.approx((low / 4, high / 4))
