"""Charts and sentences about the course of a training (L14, P19)."""

import math
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from lace_lora import curves


def looks(*losses: float, probe: tuple[float, ...] | None = None) -> list[dict[str, Any]]:
    probes = probe or losses
    return [
        {"step": 100 * place, "val_loss": loss, "train_probe_loss": other, "is_best": False}
        for place, (loss, other) in enumerate(zip(losses, probes, strict=True))
    ]


def steps(count: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 0.1 + 0.05 * math.sin(step)} for step in range(1, count + 1)]


def points_of(svg: str) -> list[list[str]]:
    tree = ElementTree.fromstring(svg)
    return [line.attrib["points"].split() for line in tree.iter() if line.tag.endswith("polyline")]


def test_a_smoothed_line_is_the_mean_of_all_so_far_with_fading_weights() -> None:
    assert curves.smoothed([4.0]) == [4.0]
    assert curves.smoothed([1.0, 1.0, 1.0]) == pytest.approx([1.0, 1.0, 1.0])
    by_hand = (0.5**2 * 1 + 0.5 * 2 + 4) / (0.5**2 + 0.5 + 1)
    assert curves.smoothed([1.0, 2.0, 4.0], keep=0.5)[-1] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "too few looks"),
        (looks(0.14, 0.13), "too few looks"),
        (looks(0.14, 0.13, 0.12, 0.11), "still learning"),
        (looks(0.14, 0.12, 0.11, 0.115, 0.125, probe=(0.14, 0.12, 0.11, 0.10, 0.09)), "copying since step 200"),
        (looks(0.14, 0.12, 0.11, 0.115, 0.125, probe=(0.14, 0.12, 0.11, 0.12, 0.13)), "has not fallen since"),
        (looks(0.14, 0.1401, 0.1399, 0.1400), "no change on held-out pictures yet"),
        (looks(0.14, 0.12, 0.11, 0.1101, 0.1102, probe=(0.14, 0.12, 0.11, 0.10, 0.09)), "still learning"),
    ],
)
def test_the_sentence_says_what_the_looks_show(rows: list[dict[str, Any]], words: str) -> None:
    assert words in curves.verdict(rows)


def test_a_chart_is_one_picture_that_needs_nothing_else() -> None:
    svg = curves.chart([*looks(0.14, 0.12, 0.13), *steps(200)])
    ElementTree.fromstring(svg)
    assert "<script" not in svg and not re.search(r"(href|src|@import|url\()", svg)
    assert "best: step 100" in svg and "held-out pictures" in svg and "training (smoothed)" in svg


def test_lines_go_where_the_numbers_are() -> None:
    """Left to right with the steps; lower losses lie lower; the last step stands at the right border."""
    single, smooth, learnt, held_out = points_of(curves.chart([*steps(20), *looks(0.2, 0.1, probe=(0.2, 0.15))]))
    xs = [float(point.split(",")[0]) for point in single]
    assert len(single) == len(smooth) == 20 and xs == sorted(xs)
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in held_out)
    assert x1 > x0 and y1 > y0, "y grows downwards"
    assert x1 == 720 - 16 and float(learnt[1].split(",")[1]) < y1


@pytest.mark.parametrize("rows", [[], steps(1), looks(0.1), [{"step": 1, "loss": None}, {"step": 2, "loss": math.nan}]])
def test_a_chart_of_next_to_nothing_is_still_a_chart(rows: list[dict[str, Any]]) -> None:
    assert "nan" not in curves.chart(rows)
    ElementTree.fromstring(curves.chart(rows))


def test_long_runs_are_thinned_and_keep_their_end() -> None:
    svg = curves.chart(steps(20_000))
    assert max(len(line) for line in points_of(svg)) <= curves.POINTS_AT_MOST + 1 and len(svg) < 60_000
    assert points_of(svg)[0][-1].startswith("704.0,")


def test_ticks_are_round_numbers_within_the_bounds() -> None:
    assert curves.ticks(0, 1000, 5) == [0, 200, 400, 600, 800, 1000]
    assert curves.ticks(0.083, 0.21, 5) == pytest.approx([0.1, 0.15, 0.2])
