"""Laying one picture onto another: numpy's and Pillow's own functions are the oracle."""

import numpy
import pytest
from PIL import Image, ImageFilter

from lace_lora.registration import laid

SIDE = 64
AS_IT_IS = numpy.array([[[1.0, 0, 0], [0, 1, 0]]])


def cloth(seed: int, side: int = SIDE) -> numpy.ndarray:
    """A picture without any order, as fine as the threads of a view: float32, about -60..60."""
    noise = numpy.random.default_rng(seed).uniform(0, 255, (side, side)).astype(numpy.uint8)
    soft = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.6))
    return numpy.asarray(soft, numpy.float32) - 127.5


def moved(view: numpy.ndarray, affine_23: numpy.ndarray) -> numpy.ndarray:
    """The view as Pillow lays it: place (down, right) of the result shows the affine map's place of the view."""
    side = len(view)
    (a, b, c), (d, e, f) = affine_23
    middle = side / 2
    # Pillow counts (right, down) from the upper left corner, and to the middle of a pixel.
    right = (e, d, f * side + middle - e * middle - d * middle)
    down = (b, a, c * side + middle - b * middle - a * middle)
    return numpy.asarray(Image.fromarray(view).transform((side, side), Image.Transform.AFFINE, (*right, *down), 2))


def test_without_moving_the_likeness_is_numpys_correlation_of_what_overlaps():
    one, other = cloth(1), cloth(2) + 0.5 * cloth(1)
    shift = numpy.array([[[1.0, 0, 5 / SIDE], [0, 1, -9 / SIDE]]])
    for maps, mine, others in (
        (AS_IT_IS, one, other),
        (shift, one[: SIDE - 5, 9:], other[5:, : SIDE - 9]),
    ):
        likeness, found = laid(one, other, SIDE, maps, rounds=0)
        assert likeness[0] == pytest.approx(numpy.corrcoef(mine.ravel(), others.ravel())[0, 1], abs=1e-4)
        assert numpy.array_equal(found, maps)


@pytest.mark.parametrize(
    "truth",
    [
        [[1, 0, 0.02], [0, 1, -0.015]],
        [[1.04, 0, 0], [0, 1.04, 0.01]],
        [[0.999, 0.035, 0.01], [-0.035, 0.999, 0]],
        [[1.03, 0.01, -0.01], [-0.02, 0.97, 0.02]],
    ],
    ids=["shifted", "enlarged", "turned by two degrees", "all of these and stretched"],
)
def test_a_slight_movement_is_found_to_a_tenth_of_a_pixel(truth):
    """Where only gain and offset differ besides, as they do in other light."""
    view = cloth(3)
    affine = numpy.array(truth)
    likeness, found = laid(0.4 * moved(view, affine) + 30, view, SIDE, AS_IT_IS, rounds=12)
    assert likeness[0] > 0.98
    corners = numpy.array([[-0.4, -0.4, 1], [-0.4, 0.4, 1], [0.4, -0.4, 1], [0.4, 0.4, 1]])
    assert numpy.abs((found[0] - affine) @ corners.T).max() * SIDE < 0.1


def test_every_second_pixel_finds_the_same_movement():
    view, affine = cloth(4), numpy.array([[1.02, 0, 0.01], [0, 1.02, 0]])
    _, found = laid(moved(view, affine), view, SIDE, AS_IT_IS, rounds=12, stride=2)
    assert numpy.abs(found[0] - affine).max() * SIDE < 0.2


def test_each_placement_goes_its_own_way_and_the_best_on_it_is_kept():
    view = cloth(5)
    start = numpy.concatenate([AS_IT_IS, AS_IT_IS, AS_IT_IS])
    start[1, :, 2] += 1.5 / SIDE
    start[2, :, 2] += 0.3  # nothing to find there
    together, maps = laid(view, view, SIDE, start, rounds=8)
    assert together[0] == pytest.approx(1, abs=1e-5) and together[1] > 0.999 > 0.5 > together[2]
    for number in range(3):
        alone, its_map = laid(view, view, SIDE, start[number : number + 1], rounds=8)
        assert alone[0] == pytest.approx(together[number], abs=1e-4)
        assert numpy.allclose(its_map[0], maps[number], atol=1e-3)


def test_too_little_overlap_is_no_likeness_at_all():
    view = cloth(6)
    for share, is_enough in ((0.55, True), (0.45, False)):
        maps = AS_IT_IS.copy()
        maps[0, 0, 2] = 1 - share
        likeness, _ = laid(view, view, SIDE, maps, rounds=0)
        assert bool(likeness[0] > -1) == is_enough


def test_blank_and_striped_views_and_negatives_do_no_harm():
    """Nothing to divide by, a movement along the stripes that nothing decides, brighter that would lie on darker."""
    blank, stripes = numpy.zeros((SIDE, 10), numpy.float32), numpy.tile(cloth(7)[:1], (SIDE, 1))
    assert laid(blank, blank, SIDE, AS_IT_IS, rounds=4)[0][0] == 0
    likeness, maps = laid(stripes, stripes, SIDE, AS_IT_IS, rounds=4)
    assert likeness[0] == pytest.approx(1, abs=1e-5) and numpy.allclose(maps, AS_IT_IS, atol=1e-6)
    negative, maps = laid(cloth(8), -cloth(8), SIDE, AS_IT_IS, rounds=4)
    assert negative[0] == pytest.approx(-1, abs=1e-5) and numpy.array_equal(maps, AS_IT_IS)
