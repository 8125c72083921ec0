"""Decimals that belong to an interval: a small difference is not shown as none (D8)."""

import pytest

from lace_lora.decimals import decimals_of, percent, shown, with_interval
from lace_lora.intervals import paired
from lace_lora.scores import Score


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.8312, 0.71, 0.92), "0.83 (0.71 to 0.92)"),
        ((-0.0049, -0.0085, -0.0012), "-0.0049 (-0.0085 to -0.0012)"),
        ((0.3, 0.2995, 0.3005), "0.3000 (0.2995 to 0.3005)"),
        ((0.0, 0.0, 0.0), "0.00 (0.00 to 0.00)"),
        ((-0.001, -0.4, 0.4), "0.00 (-0.40 to 0.40)"),
        ((1.5, None, None), "1.50"),
        ((0.0, -1e-30, 1e-30), "0.00000000 (0.00000000 to 0.00000000)"),
        ((1234.5, 1100.2, 1300.0), "1234 (1100 to 1300)"),
    ],
)
def test_a_score_shows_as_many_decimals_as_its_interval_needs(numbers, said):
    """D8: the ends of an interval are told apart, and nothing that rounds to nothing has a sign."""
    assert with_interval(*numbers) == str(Score("a", "a", "style", *numbers)) == said


def test_percents_are_whole_but_where_that_would_make_them_nothing():
    """D8."""
    assert percent(0.624, 0.41, 0.834) == "62 %, between 41 and 83 %"
    assert percent(0.004, 0.001, 0.006) == "0.4 %, between 0.1 and 0.6 %"
    assert percent(0.05) == "5 %" and percent(0.0) == "0 %" and percent(-0.5, -0.9, -0.1).startswith("-50 %")


def test_nothing_and_none_need_no_more_than_the_least():
    """D8."""
    assert [decimals_of([]), decimals_of([None, 0.0]), decimals_of([0.0], 0), decimals_of([1000.0])] == [2, 2, 0, 0]
    assert shown(-0.001, 2) == "0.00" and shown(-0.006, 2) == "-0.01"


def test_a_small_difference_of_pairs_is_told_in_its_sentence():
    """D8: words scores differ by thousandths."""
    tuned = [-0.004, -0.005, -0.006, -0.005, -0.004, -0.006]
    means = paired("words_change", "words", "words", [0.0] * 6, tuned).means
    assert means.startswith("The LoRA lies 0.0050 below the base model on average, which is worse")
    same = paired("words_change", "words", "words", [0.0] * 6, [0.004] * 6).means
    assert "differ by the same 0.0040 in all 6 pairs" in same
