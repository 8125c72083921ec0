"""Structural similarity (P22), against a direct double loop and against scikit-image's numbers."""

import math

import numpy
import pytest
from PIL import Image, ImageChops, ImageFilter

from lace_lora.errors import PicturesError
from lace_lora.run_folder import RunFolder
from lace_lora.ssim import against_references, fitted, reference_score, ssim


def threads(size=(48, 40), seed=0):
    """Pale lines on a dark ground, by numpy alone, so that no version of Pillow draws them otherwise."""
    down, across = numpy.mgrid[: size[1], : size[0]]
    light = numpy.zeros(size[::-1])
    for slope, step in numpy.random.default_rng(seed).integers(3, 11, (4, 2)):
        light = numpy.maximum(light, (slope * across + (step - 6) * down) % (slope * 7) < slope * 2)
    return Image.fromarray((numpy.array([20, 24, 60]) + light[:, :, None] * [215, 206, 140]).astype(numpy.uint8))


def noise(size=(48, 40), seed=0):
    """Every px by itself."""
    values = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def slow(one, other):
    """The formula, place by place."""
    x, y = (numpy.asarray(each, dtype=float) @ [0.2126, 0.7152, 0.0722] / 255 for each in (one, other))
    weights = {(r, c): math.exp(-(r * r + c * c) / (2 * 1.5**2)) for r in range(-5, 6) for c in range(-5, 6)}
    total = sum(weights.values())
    found = []
    for row in range(5, x.shape[0] - 5):
        for column in range(5, x.shape[1] - 5):
            seen = [(x[row + r, column + c], y[row + r, column + c], w / total) for (r, c), w in weights.items()]
            mx, my = (sum(point[which] * point[2] for point in seen) for which in (0, 1))
            vx = sum(w * (a - mx) ** 2 for a, _, w in seen)
            vy = sum(w * (b - my) ** 2 for _, b, w in seen)
            both = sum(w * (a - mx) * (b - my) for a, b, w in seen)
            above = (2 * mx * my + 0.0001) * (2 * both + 0.0009)
            found.append(above / ((mx * mx + my * my + 0.0001) * (vx + vy + 0.0009)))
    return sum(found) / len(found)


def test_P22_an_identical_picture_has_exactly_one_and_noise_less_than_a_fifth():
    """P22."""
    assert ssim(threads(), threads()) == 1.0 and ssim(noise(), noise()) == 1.0
    assert abs(ssim(threads(), noise())) < 0.2 and abs(ssim(noise(), noise(seed=1))) < 0.2
    assert ssim(threads(), ImageChops.invert(threads())) < 0


PAIRS = {
    "other threads": (threads(), threads(seed=1)),
    "half as large": (threads((96, 80)).reduce(2), threads((96, 80), seed=1).reduce(2)),
    "noise": (threads(), noise()),
    "brighter": (threads(), threads().point(lambda value: min(255, value + 40))),
    "flat": (Image.new("RGB", (20, 14), "white"), Image.new("RGB", (20, 14), (250, 0, 0))),
    "one window": (noise((11, 11)), threads((11, 11))),
}
# scikit-image 0.26: structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
# data_range=1) of the luminances above.
SCIKIT_IMAGE = {
    "other threads": 0.087029816323,
    "half as large": -0.048335054356,
    "noise": 0.043501996752,
    "brighter": 0.984510488696,
    "flat": 0.399564263811,
    "one window": -0.213441641417,
}


@pytest.mark.parametrize("name", PAIRS)
def test_P22_it_is_the_formula_place_by_place_and_what_scikit_image_gives(name):
    """P22."""
    one, other = PAIRS[name]
    found = ssim(one, other)
    assert found == pytest.approx(slow(one, other), abs=1e-9)
    assert found == pytest.approx(SCIKIT_IMAGE[name], abs=1e-9)
    assert found == pytest.approx(ssim(other, one), abs=1e-12)


def test_P22_more_blur_and_more_shift_are_less_alike():
    """P22: a design that is shifted by a thread scores low, as its sentence says."""
    blurred = [ssim(threads(), threads().filter(ImageFilter.GaussianBlur(px))) for px in (0.5, 1, 2, 4)]
    shifted = [ssim(threads(), ImageChops.offset(threads(), px, 0)) for px in (0, 1, 3)]
    assert blurred == sorted(blurred, reverse=True) and shifted == sorted(shifted, reverse=True)


def test_P22_pictures_of_two_sizes_are_brought_to_the_smaller_ones_and_that_is_told():
    """P22: cut out of the middle where the proportions differ; in either order."""
    small = threads((48, 40))
    large = small.resize((144, 120), Image.Resampling.NEAREST)
    one, other, said = fitted(large, small)
    assert (one.size, other) == ((48, 40), small) and said == "144 × 120 px was scaled to 48 × 40 px"
    assert ssim(large, small) == ssim(small, large) > 0.9
    framed = Image.new("RGB", (204, 120), "red")
    framed.paste(large, (30, 0))
    first, second, said = fitted(small, framed)
    assert said == "204 × 120 px, its middle cut out, was scaled to 48 × 40 px"
    assert numpy.array_equal(numpy.asarray(second), numpy.asarray(one)) and first == small
    assert fitted(small, small)[2] == ""
    tall = threads((40, 48))
    assert ssim(small, tall) == ssim(tall.copy(), small)


def test_P22_grey_and_transparent_pictures_are_compared_as_they_are_seen():
    """P22: a drawing is often a grey scan, or lies on nothing."""
    grey = threads().convert("L")
    assert ssim(grey, grey.convert("RGB")) == 1.0
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert ssim(clear, Image.new("RGB", (20, 20), "white")) == 1.0


def test_P22_a_picture_smaller_than_the_window_is_a_sentence():
    """P22."""
    with pytest.raises(PicturesError, match="A picture of 60 × 10 px is too small .+: 11 px a side are the least"):
        ssim(Image.new("RGB", (60, 10)), Image.new("RGB", (60, 10)))


def test_P22_the_score_is_the_mean_and_says_what_it_means():
    """P22: and how to have it measured where no design names a reference."""
    score = reference_score([0.2, 0.6], scaled=1)
    assert (score.id, score.topic, score.count, score.better) == ("ssim", "reference", 2, "higher")
    assert score.value == pytest.approx(0.4) and "1 of 2 pairs were brought to one size" in score.means
    assert "one size" not in reference_score([0.2]).means
    none = reference_score([])
    assert none.value is None and "a column reference_path" in none.refusal


def test_P22_designs_are_compared_with_the_drawings_that_their_rows_name(tmp_path):
    """P22: others are passed over, and what cannot be read is said and costs no other."""
    run = RunFolder(tmp_path / "rose")
    run.references.mkdir(parents=True)
    threads().save(run.references / "same.png")
    threads(seed=1).resize((96, 80)).save(run.references / "larger.png")
    (run.references / "broken.png").write_bytes(b"no picture")
    design = tmp_path / "design.png"
    threads().save(design)
    rows = [{"index": 0, "reference": "same.png"}, {"index": 1}, {"index": 2, "reference": "larger.png"}]
    score = against_references(run, rows, lambda row: design)
    with Image.open(run.references / "larger.png") as larger:
        assert score.value == pytest.approx((1 + ssim(threads(), larger)) / 2) and score.count == 2
    assert "1 of 2 pairs were brought to one size" in score.means and "Left out" not in score.means
    broken = {"index": 3, "reference": "broken.png"}
    with_broken = against_references(run, [*rows, broken], lambda row: design)
    assert with_broken.count == 2 and "Left out because they cannot be compared: 1, such as " in with_broken.means
    refused = against_references(run, [broken], lambda row: design)
    assert refused.value is None and "broken.png" in refused.refusal
    assert "a column reference_path" in against_references(run, [rows[1]], lambda row: design).refusal
