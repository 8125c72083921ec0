"""The style statistics: near for one style, far for another, and blind to size of sample."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lace_lora import style_statistics
from lace_lora.demo import draw
from lace_lora.style_statistics import style_distance


@pytest.fixture(scope="module")
def laces() -> list[Image.Image]:
    return [draw.lace(100_000 + i, 96)[0] for i in range(60)]


@pytest.fixture(scope="module")
def plains() -> list[Image.Image]:
    return [draw.plain(i, 96)[0] for i in range(24)]


@pytest.fixture(scope="module")
def white_on_black() -> list[Image.Image]:
    specs = [draw.Spec(kind, "white", "black", scale) for kind in draw.PLAIN_KINDS for scale in ("small", "medium")]
    return [draw.plain_picture(spec, i, 96) for i, spec in enumerate(specs)]


def test_two_halves_of_one_style_are_near_and_another_style_is_far(laces, plains):
    assert style_distance(laces[:30], laces[30:]) < 0.3
    assert style_distance(plains, laces) > 2.5


def test_thread_colours_alone_do_not_make_a_plain_cloth_lace(laces, white_on_black):
    assert style_distance(white_on_black, laces) > 2.0


def test_distance_falls_as_lace_replaces_plain_cloth(laces, white_on_black):
    reference, spare = laces[30:], laces[:30]
    mixed = [style_distance(white_on_black[: 24 - n] + spare[:n], reference) for n in (0, 8, 16, 24)]
    assert mixed == sorted(mixed, reverse=True)
    assert mixed[-1] < 0.5 * mixed[0]


def test_distance_is_nearly_the_same_for_a_small_and_a_large_set(laces):
    soft = [p.filter(ImageFilter.GaussianBlur(1)) for p in laces[:30]]
    large = style_distance(soft, laces[30:])
    order = np.random.default_rng(3)
    small = [style_distance([soft[i] for i in order.choice(30, 6, False)], laces[30:]) for _ in range(12)]
    assert np.mean(np.square(small)) == pytest.approx(large**2, rel=0.15)


def test_edge_energy_of_a_known_picture_is_its_hand_computed_value():
    stripes = np.zeros((8, 9, 3), np.uint8)
    stripes[:, ::2] = 255
    # Every step across is a full one, none down; forward differences leave 7 x 8 points of magnitude 1.
    assert style_statistics.edge_energy(Image.fromarray(stripes)) == pytest.approx(1.0)
    assert style_statistics.edge_energy(Image.new("RGB", (9, 9), "red")) == 0.0


def test_blur_lowers_edge_energy_and_opens_a_gap(laces):
    soft = [p.filter(ImageFilter.GaussianBlur(1)) for p in laces]
    assert style_statistics.edge_energy(soft[0]) < 0.7 * style_statistics.edge_energy(laces[0])
    assert style_statistics.edge_energy_gap(soft, laces) > 0.3
    assert style_statistics.edge_energy_gap(laces, laces) == 0.0


def test_statistics_have_their_names_and_grey_has_no_saturation():
    numbers = style_statistics.style_statistics(Image.new("RGB", (40, 40), (128, 128, 128)))
    named = dict(zip(style_statistics.STATISTICS, numbers, strict=True))
    assert named["saturation mean"] == 0 and named["edge energy"] == 0
    assert named["luminance mean"] == pytest.approx(128 / 255)
    assert np.isfinite(numbers).all()


def test_a_picture_is_measured_at_one_size_whatever_its_own(laces, plains):
    enlarged = [p.resize((192, 192), Image.Resampling.LANCZOS) for p in laces[:30]]
    assert style_distance(enlarged, laces[30:]) < 0.1 * style_distance(plains, laces[30:])


def test_score_gives_mean_and_spread_between_seeds():
    assert style_statistics.score([1.0, 2.0, 3.0]) == style_statistics.Score(2.0, 1.0, 3)
    assert style_statistics.score([4.0]) == style_statistics.Score(4.0, 0.0, 1)
    assert str(style_statistics.score([1.0, 2.0, 3.0])) == "2.000 ± 1.000"


def test_empty_measurements_and_single_pictures_are_refused_with_a_sentence(laces):
    with pytest.raises(ValueError, match="at least one value"):
        style_statistics.score([])
    with pytest.raises(ValueError, match="two pictures or more; got 1"):
        style_distance(laces[:1], laces)
