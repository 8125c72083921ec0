"""Distances between sets of pictures: by hand, by slow loops, by an integral, and never biased (D8)."""

import itertools
import math

import numpy
import pytest

from lace_lora.mmd import Sample, distance, mean_distance
from lace_lora.resampling import Array, weights


def gaussians(count: int, shift: float = 0.0, seed: int = 0, features: int = 4) -> Array:
    return numpy.random.default_rng(seed).normal(size=(count, features)) + shift * numpy.eye(features)[0]


def by_loops(one: Array, other: Array, one_groups=None, other_groups=None) -> float:
    """The definition, pair by pair; pairs of one group do not count."""

    def mean(a, b, same):
        pairs = [(i, j) for i, j in itertools.product(range(len(a)), range(len(b))) if not same(i, j)]
        return sum(math.dist(a[i], b[j]) for i, j in pairs) / len(pairs)

    own = one_groups or range(len(one))
    others = other_groups or range(len(other))
    return (
        2 * mean(one, other, lambda i, j: False)
        - mean(one, one, lambda i, j: own[i] == own[j])
        - mean(other, other, lambda i, j: others[i] == others[j])
    )


def test_three_points_against_three_are_as_computed_by_hand():
    """D8: 0, 1, 2 against 10, 11, 12 on a line: 2 · 10 − 4/3 − 4/3."""
    one, other = (Sample.of(str(start), numpy.arange(start, start + 3)[:, None]) for start in (0, 10))
    assert mean_distance(one).value == pytest.approx(4 / 3)
    assert mean_distance(one).without["0"] == pytest.approx([1, 2, 1])
    assert distance(one, other).value == pytest.approx(20 - 8 / 3)


def test_the_distance_and_every_one_without_a_group_are_those_of_slow_loops():
    """D8: with near-duplicates on both sides."""
    one, other = gaussians(7, 1.0, seed=1), gaussians(9, seed=2)
    labels, others = ["a", "b", "b", "c", "d", "a", "e"], [1, 1, 1, 2, 3, 4, 5, 6, 6]
    found = distance(Sample.of("one", one, labels), Sample.of("other", other, others))
    assert found.value == pytest.approx(by_loops(one, other, labels, others))
    for place, label in enumerate("abcde"):
        kept = [number for number, own in enumerate(labels) if own != label]
        expected = by_loops(one[kept], other, [labels[number] for number in kept], others)
        assert found.without["one"][place] == pytest.approx(expected)
    for place, label in enumerate([1, 2, 3, 4, 5, 6]):
        kept = [number for number, own in enumerate(others) if own != label]
        expected = by_loops(one, other[kept], labels, [others[number] for number in kept])
        assert found.without["other"][place] == pytest.approx(expected)


def test_the_distance_of_gaussians_is_that_of_the_integral():
    """D8: on a line E|X − Y| of N(2, 1) and N(0, 1) is that of a folded normal distribution."""
    wide, shift = math.sqrt(2), 2.0
    inside = math.erf(shift / wide / math.sqrt(2))
    folded = wide * math.sqrt(2 / math.pi) * math.exp(-((shift / wide) ** 2) / 2) + shift * inside
    truth = 2 * (folded - wide * math.sqrt(2 / math.pi))
    one, other = (Sample.of(str(seed), gaussians(1500, by, seed, 1)) for seed, by in ((1, shift), (2, 0.0)))
    assert distance(one, other).value == pytest.approx(truth, rel=0.05)


def test_sets_of_one_source_are_zero_apart_on_average_however_small():
    """D8: five against forty, three hundred times; a biased distance would be about 0.4 here."""
    found = [
        distance(Sample.of("made", gaussians(5, seed=2 * seed)), Sample.of("t", gaussians(40, seed=2 * seed + 1))).value
        for seed in range(300)
    ]
    error = numpy.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(numpy.mean(found)) < 3 * error < 0.1
    assert min(found) < 0


def test_a_photograph_that_is_there_three_times_counts_as_one_piece():
    """D8: its copies are not compared with each other, and leave together."""
    rows = gaussians(6)
    tripled = numpy.concatenate([rows, rows[:1], rows[:1]])
    pieces = mean_distance(Sample.of("t", tripled, [0, 1, 2, 3, 4, 5, 0, 0]))
    as_if_different = mean_distance(Sample.of("t", tripled))
    assert as_if_different.value < pieces.value
    assert len(pieces.without["t"]) == 6 and len(as_if_different.without["t"]) == 8
    whole = mean_distance(Sample.of("t", rows[1:]))
    assert pieces.without["t"][0] == pytest.approx(whole.value)


def test_draws_are_weighted_means_pair_by_pair_and_as_unbiased_as_the_value():
    """D8: by loops for one draw with a near-duplicate; a group drawn twice is still not compared with itself."""
    one, other = gaussians(6, 1.0, seed=1), gaussians(5, seed=2)
    labels = [0, 1, 1, 2, 3, 4]
    found = distance(Sample.of("one", one, labels), Sample.of("other", other))
    counts, others = weights("one", 5)[7], weights("other", 5)[7]

    def mean(a, b, own, times, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not same(i, j)]
        shares = [own(i) * times(j) for i, j in pairs]
        return sum(share * math.dist(a[i], b[j]) for share, (i, j) in zip(shares, pairs, strict=True)) / sum(shares)

    by_label, by_place = (lambda i: counts[labels[i]]), (lambda j: others[j])
    expected = (
        2 * mean(one, other, by_label, by_place, lambda i, j: False)
        - mean(one, one, by_label, by_label, lambda i, j: labels[i] == labels[j])
        - mean(other, other, by_place, by_place, lambda i, j: i == j)
    )
    assert found.drawn[7] == pytest.approx(expected)
    large = distance(Sample.of("one", gaussians(30, 2.0, seed=3)), Sample.of("other", gaussians(60, seed=4)))
    noise = large.drawn.std() / math.sqrt(len(large.drawn))
    assert abs(large.drawn.mean() - large.value) < 4 * noise


def test_two_samples_of_one_name_are_not_compared():
    """D8: they would vary together, which is no distance between two."""
    with pytest.raises(ValueError, match="two samples called made would vary together"):
        distance(Sample.of("made", gaussians(5)), Sample.of("made", gaussians(6)))


def test_far_from_zero_small_distances_are_not_lost():
    """D8: features of some models lie about a large number."""
    one, other = gaussians(10, 1.0, seed=1), gaussians(12, seed=2)
    here = distance(Sample.of("a", one), Sample.of("b", other)).value
    there = distance(Sample.of("a", one + 1e6), Sample.of("b", other + 1e6)).value
    assert there == pytest.approx(here, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "groups", "says"),
    [
        (numpy.zeros(5), None, r"base: features must be finite numbers in N rows of F; got shape \(5,\)"),
        (numpy.full((4, 2), numpy.nan), None, "base: features must be finite"),
        (numpy.zeros((0, 4)), None, "base: features must be finite"),
        (numpy.zeros((4, 2)), [1, 2], "base: one group a row; got 2 for 4 rows"),
        (numpy.zeros((4, 2)), [1, 1, 2, 2], "base: 2 pieces that differ are too few to compare; 3 are needed"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows, groups, says):
    """D8."""
    with pytest.raises(ValueError, match=says):
        Sample.of("base", rows, groups)


def test_rows_of_two_models_are_not_compared():
    """D8."""
    with pytest.raises(ValueError, match="made has 4 features a picture, training 5"):
        distance(Sample.of("made", gaussians(5)), Sample.of("training", gaussians(5, features=5)))
