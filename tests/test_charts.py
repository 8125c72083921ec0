"""Charts of a set of numbers: what is counted where, and the same in words (P30, L2)."""

import xml.etree.ElementTree as tree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lace_lora import charts


def counts_in(text: str) -> list[int]:
    """The counts of a histogram's or a bar chart's lines."""
    return [int(line.split("■")[0].split()[-1]) for line in text.splitlines() if line.startswith("  ")]


def bars_in(svg: str) -> list[float]:
    """Heights of the bars, without the paper."""
    return [float(one.get("height")) for one in tree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")][1:]


@given(
    st.lists(st.floats(-1e4, 1e4, allow_nan=False).map(lambda value: round(value, 3)), min_size=1, max_size=60),
    st.one_of(st.none(), st.integers(-12_000, 12_000)),
)
def test_every_value_is_counted_once_and_bars_are_as_high_as_their_counts(values, mark):
    """P30: whatever the values, whole or not, alike or far apart."""
    chart = charts.histogram(values, "title", "px", mark, "mark")
    counts = counts_in(chart.text)
    assert sum(counts) == len(values) and len(counts) <= 26
    heights = bars_in(chart.svg)
    assert heights == pytest.approx([max(heights) * count / max(counts) for count in counts], abs=0.1)


@given(st.lists(st.integers(0, 2000), min_size=2, max_size=40))
def test_each_value_lies_in_the_step_that_is_named(values):
    """P30: by the words of the steps alone, counted again."""
    text = charts.histogram([float(one) for one in values], "title").text
    for line in text.splitlines()[1:]:
        span, count = line.split("■")[0].rsplit(maxsplit=1)
        low, _, high = span.strip().partition(" to ")
        if max(values) < 100 or len({*values}) == 1:  # larger numbers are rounded to whole ones, which these are
            assert sum(float(low) <= one <= float(high or low) for one in values) == int(count), line


def test_by_hand():
    """P30: three short sides against a resolution; the median is the middle one."""
    chart = charts.histogram([512, 600, 1100], "short sides", "px", 1024, "resolution")
    first, *lines = chart.text.splitlines()
    assert first == "short sides: 3 pictures, 512 to 1100 px, half have 600 px or more; resolution at 1024 px"
    assert lines[0].split() == ["500", "to", "549", "1", "■" * 24] and lines[-1].split()[:3] == ["1100", "to", "1149"]
    assert counts_in(chart.text) == [1, 0, 1, *[0] * 9, 1]
    assert chart.svg.count(charts._MARKED) == 12, "eleven bars begin below the resolution, and its line"
    assert f'aria-label="{first}"' in chart.svg and repr(chart) == chart.text and chart._repr_html_() == chart.svg


def test_what_is_named_is_text_and_many_names_are_cut():
    """L2: nothing is taken for HTML; of twenty names fourteen are shown, and that is said."""
    chart = charts.bars({f"<b>{number}": 20 - number for number in range(20)}, "names")
    assert "<b>" not in chart.svg and "names (and 6 others)" in chart.svg and len(counts_in(chart.text)) == 14
    tree.fromstring(chart.svg)


def test_nothing_to_show_is_said():
    """P30: a folder without captions, one without JPEG files."""
    for chart in (charts.histogram([], "t"), charts.bars({}, "t"), charts.colours([], "t", "")):
        assert chart.text == "t: nothing to show" and "nothing to show" in chart.svg


def test_several_stand_beside_each_other_and_are_read_one_after_the_other():
    """P30."""
    one, two = charts.bars({"a": 1}, "one"), charts.colours([(1, 2, 3)], "two", "1 dark")
    both = charts.beside(one, two)
    assert both.text == f"{one.text}\n\n{two.text}" and one.svg in both.svg and "rgb(1, 2, 3)" in both.svg
