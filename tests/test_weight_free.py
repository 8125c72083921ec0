"""Weight-free features: what they see, what they do not mind, and that each scale fits once (D8, P20)."""

import numpy
import pytest
from PIL import Image, ImageFilter

from lace_lora import weight_free
from lace_lora.demo import draw
from lace_lora.mmd import Sample, distance
from lace_lora.style_statistics import style_statistics
from lace_lora.weight_free import COUNT, Scale, features, features_of


@pytest.fixture(scope="module")
def laces() -> list[Image.Image]:
    return [draw.lace(200_000 + number, 128)[0] for number in range(24)]


def far(rows, learnt, scale) -> float:
    return distance(Sample.of("made", scale.apply(rows)), Sample.of("training", scale.apply(learnt))).value


def test_every_picture_has_as_many_finite_numbers():
    """P20: also one pixel, a ribbon, grey, transparent and one-colour pictures."""
    odd = [Image.new("L", (1, 1)), Image.new("RGB", (2000, 20), "red"), Image.new("RGBA", (9, 900)),
           Image.new("P", (60, 61), 3), Image.effect_noise((300, 200), 50)]  # fmt: skip
    rows = features_of(odd)
    assert rows.shape == (len(odd), COUNT) and COUNT == 55 and numpy.isfinite(rows).all()
    assert features_of([]).shape == (0, COUNT)


def test_the_size_of_a_file_a_turn_and_a_mirror_hardly_matter(laces):
    """P20: against how far other pieces lie; of 600 px and of 300 there is the same to see at 256."""
    scale = Scale.of(features_of(laces))
    piece = draw.lace(7, 600)[0]
    one = scale.apply(features(piece))
    away = numpy.linalg.norm(scale.apply(features_of(laces)) - one, axis=1)
    half = piece.resize((300, 300), Image.Resampling.LANCZOS)
    turned = [piece.transpose(how) for how in (Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT)]
    for same in (half, *turned):
        assert numpy.linalg.norm(scale.apply(features(same)) - one) < 0.3 * away.min()


def test_a_picture_keeps_its_shape():
    """P20: one area for all, so that round meshes stay round; only a ribbon is made wider."""
    sizes = {(400, 400): (256, 256), (800, 200): (512, 128), (50, 200): (128, 512), (2000, 20): (2560, 64)}
    assert {size: weight_free._fitted(Image.new("RGB", size)).size for size in sizes} == sizes


def test_light_and_colour_of_one_colour_are_those_computed_by_hand():
    """P20: red (200, 100, 50): red against green 100, yellow against blue 100, saturation 150, of 255."""
    row = features(Image.new("RGB", (64, 64), (200, 100, 50)))
    assert row[:5] == pytest.approx([(0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50) / 255] * 5)
    assert row[-10:] == pytest.approx(numpy.array([100, 0, 100, 0, 150, 0, 100, 100, 100, 100]) / 255)
    assert row[6] == pytest.approx(numpy.log(0.002)) and row[7] == 0  # no edges


def test_stripes_run_straight_and_noise_does_not():
    """P20: edges share a direction in every window of stripes; white noise has no strongest waves."""
    stripes = numpy.zeros((256, 256, 3), numpy.uint8)
    stripes[:, (numpy.arange(256) // 8) % 2 == 1] = 255
    striped, noisy = features(Image.fromarray(stripes)), features(Image.effect_noise((256, 256), 60))
    straight, strongest = 9, 6 + 12 + 6
    tilted = Image.fromarray(((numpy.indices((256, 256)).sum(0) // 11) % 2 * 255).astype(numpy.uint8))
    assert features(tilted)[straight] > 0.9
    assert striped[straight] == pytest.approx(1.0, abs=1e-3) and noisy[straight] < 0.6
    assert striped[strongest] > -0.1 and noisy[strongest] < -2


def test_patterns_are_those_counted_pixel_by_pixel():
    """P20: rotation-invariant local binary patterns of a small picture, by loops; they are shares."""
    light = numpy.random.default_rng(0).random((12, 17))
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    counts = numpy.zeros(10)
    for down in range(1, 11):
        for right in range(1, 16):
            around = [light[down + y, right + x] > light[down, right] + 0.01 for y, x in ring]
            changes = sum(around[place] != around[place - 1] for place in range(8))
            counts[sum(around) if changes <= 2 else 9] += 1
    assert weight_free._patterns(light)[:10] == pytest.approx(numpy.sqrt(counts / counts.sum()))


def test_threads_gone_soft_are_seen_where_ten_statistics_do_not_see_them(laces):
    """P20: blurred by one of 256 px, as by a LoRA that has not learnt the threads."""
    learnt, rest = laces[:12], laces[12:]
    soft = [one.filter(ImageFilter.GaussianBlur(0.5)) for one in rest]
    found = {}
    for name, look in (("ours", features_of), ("ten", lambda ones: numpy.stack([*map(style_statistics, ones)]))):
        rows = look(learnt)
        spread = numpy.maximum(rows.std(0, ddof=1), 0.02)
        sharp, blurred = ((look(ones) - rows.mean(0)) / spread for ones in (rest, soft))
        found[name] = numpy.abs(blurred.mean(0) - sharp.mean(0)).max()
    assert found["ours"] > 2 * found["ten"]


def test_red_lace_is_no_blue_lace(laces):
    """P20: exchanged red and blue leave the ten statistics nearly as they are."""
    warm = [Image.merge("RGB", (r, g.point(lambda v: v * 0.8), b.point(lambda v: v * 0.5))) for r, g, b in
            (one.split() for one in laces)]  # fmt: skip
    cold = [Image.merge("RGB", one.split()[::-1]) for one in warm]
    learnt = features_of(warm[:12])
    scale = Scale.of(learnt)
    assert far(features_of(cold[12:]), learnt, scale) > 5 * abs(far(features_of(warm[12:]), learnt, scale))


def test_a_scale_is_fitted_to_the_photographs_and_minds_no_odd_one(laces):
    """P20: the middle half decides; every block counts the same; nothing divides by a spread of zero."""
    rows = features_of(laces)
    odd = rows.copy()
    odd[:2] += 1000
    with_odd = Scale.of(odd)
    assert numpy.abs(with_odd.middles - Scale.of(rows).middles).max() < 0.3
    assert (with_odd.spreads < 3 * Scale.of(rows).spreads + 0.02).all()
    grey = Scale.of(features_of([one.convert("L") for one in laces]))
    assert (grey.spreads[-10:] == 0.02).all()
    one_spread = Scale(numpy.zeros(COUNT), numpy.ones(COUNT)).apply(numpy.ones((1, COUNT)))[0]
    sizes = (6, 12, 7, 20, 10)
    starts = numpy.cumsum([0, *sizes])
    sums = [(one_spread[start : start + size] ** 2).sum() for start, size in zip(starts, sizes, strict=False)]
    assert sums == pytest.approx([numpy.arcsinh(1) ** 2] * 5)
