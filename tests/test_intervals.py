"""Means, pairs, signs and shares: against binomial sums, printed tables and what chance makes of them (D8, P24)."""

import itertools
import math

import numpy
import pytest

from lace_lora import intervals
from lace_lora.intervals import mean, mean_interval, paired, share, sign_test, wins_needed


def test_eighteen_of_thirty_is_not_yet_more_than_chance_and_twenty_one_is():
    """P24: two-sided binomial sums, as in printed tables."""
    assert sign_test(18, 12) == pytest.approx(0.3616, abs=1e-4)
    assert sign_test(21, 9) == pytest.approx(0.0428, abs=1e-4)
    assert wins_needed(30) == 21 and wins_needed(6) == 6 and wins_needed(5) is None


def test_the_sign_test_is_the_share_of_all_ways_to_answer():
    """P24: counted out for all answers of seven, whoever wins."""
    every = [sum(answers) for answers in itertools.product((0, 1), repeat=7)]
    for wins in range(8):
        uneven = sum(abs(one - 3.5) >= abs(wins - 3.5) for one in every) / len(every)
        assert sign_test(wins, 7 - wins) == pytest.approx(uneven)
    assert sign_test(0, 0) == 1.0
    with pytest.raises(ValueError, match="cannot be fewer than none"):
        sign_test(-1, 3)


def test_an_interval_of_a_mean_covers_as_often_as_it_says():
    """D8: ten numbers at a time, normal and skewed; percentiles of a bootstrap reach 91 and 86 of 100."""
    chance = numpy.random.default_rng(3)
    normal = [mean_interval(chance.normal(size=10).tolist()) for _ in range(800)]
    skewed = [mean_interval(chance.exponential(size=10).tolist()) for _ in range(800)]
    assert numpy.mean([low <= 0 <= high for low, high in normal]) == pytest.approx(0.95, abs=0.02)
    assert numpy.mean([low <= 1 <= high for low, high in skewed]) > 0.88


def test_values_of_one_group_are_left_out_together():
    """D8: four seeds of each of six prompts that differ are six things, not twenty-four."""
    prompts = numpy.random.default_rng(0).normal(size=6)
    values = numpy.repeat(prompts, 4).tolist()
    groups = [number // 4 for number in range(24)]
    assert mean(values, groups).variance == pytest.approx(prompts.var(ddof=1) / 6)
    low, high = mean_interval(values, groups)
    reach = 2.5706 * prompts.std(ddof=1) / math.sqrt(6)
    assert (high - low) / 2 == pytest.approx(reach, rel=1e-3)


def test_there_is_no_interval_of_few_groups_or_of_equal_numbers():
    """D8."""
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) is None
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 1, 2, 2, 3, 3]) is None
    assert mean_interval([2.0] * 9) is None
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is not None


@pytest.mark.parametrize(
    ("values", "groups", "says"),
    [([], None, "finite numbers"), ([1.0, math.nan], None, "finite numbers"), ([1.0, 2.0], [1], "one group a value")],
)
def test_a_mean_refuses_what_is_no_row_of_numbers(values, groups, says):
    """D8."""
    with pytest.raises(ValueError, match=says):
        mean(values, groups)


def test_a_paired_difference_says_what_it_is_and_what_it_means():
    """D8: ten pairs, one unit better in each, with a little noise."""
    base = numpy.random.default_rng(0).normal(size=10)
    noise = numpy.linspace(-0.2, 0.2, 10)
    score = paired("words", "prompt following", "words", base.tolist(), (base + 1 + noise).tolist())
    assert (score.id, score.topic, score.count, score.better) == ("words", "words", 10, "higher")
    reach = 2.2622 * noise.std(ddof=1) / math.sqrt(10)
    assert (score.value, score.low, score.high) == pytest.approx((1, 1 - reach, 1 + reach), rel=1e-3)
    expected = "The LoRA lies 1.00 above the base model on average, which is better; with 10 pairs that is more than"
    assert score.means.startswith(expected)


def test_the_sentence_of_a_difference_follows_sign_side_and_chance():
    """D8: worse is said where it is worse, and nothing is claimed where the interval holds zero."""
    zeros, ones = [0.0] * 6, [1.0, 1.1, 0.9, 1.0, 1.2, 0.8]
    say = {
        ("higher", True): "above the base model on average, which is better",
        ("higher", False): "below the base model on average, which is worse",
        ("lower", True): "above the base model on average, which is worse",
        ("lower", False): "below the base model on average, which is better",
        ("", True): "above the base model on average;",
    }
    for (better, rises), words in say.items():
        pair = (zeros, ones) if rises else (ones, zeros)
        assert words in paired("a", "a", "other", *pair, better=better).means
    unsure = paired("a", "a", "other", zeros, [1.0, -1.0, 0.5, -0.5, 0.1, 0.0], who=("before", "after"), what="texts")
    assert unsure.low < 0 < unsure.high
    assert unsure.means == (
        "Whether after differs from before cannot be told from 6 texts: chance alone moves it as far."
    )
    same = paired("a", "a", "other", zeros, zeros)
    assert same.value == 0 and same.low is None and "differ by the same 0.00 in all 6 pairs" in same.means


def test_too_few_pairs_are_refused_with_what_to_do():
    """D8."""
    score = paired("words", "prompt following", "words", [1.0] * 4, [2.0] * 4)
    assert score.value is None and score.count == 4
    assert score.refusal == "only 4 pairs: too few to tell the LoRA from the base model. Make 5 or more, better 30."
    with pytest.raises(ValueError, match="words: pairs need one value of each side; got 1 and 2"):
        paired("words", "prompt following", "words", [1.0], [2.0, 3.0])


def test_a_share_has_an_interval_also_where_all_or_none_were_yes():
    """D8: figures of Wilson's interval as printed; it never leaves 0..1."""
    assert share(15, 30) == pytest.approx((0.3315, 0.6685), abs=1e-4)
    assert share(30, 30) == pytest.approx((0.8865, 1.0), abs=1e-4)
    assert share(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="a share needs"):
            share(*bad)


def test_the_level_is_that_of_all_scores(monkeypatch):
    """D8: a wider level, a wider interval."""
    values = [1.0, 2.0, 4.0, 3.0, 5.0]
    usual = mean_interval(values)
    monkeypatch.setattr(intervals, "LEVEL", 0.99)
    sure = mean_interval(values)
    assert sure[0] < usual[0] < usual[1] < sure[1]
