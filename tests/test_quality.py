"""Sharpness and compression: real lace, blurred and saved again by known amounts, is ranked by them (P4)."""

import io
import os
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from lace_lora import quality
from lace_lora.image_files import open_bytes
from lace_lora.quality import blockiness, blur_px, jpeg_quality, measured
from tests.generated import ROOT

LACE = Path(os.environ.get("LACE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "lace"
needs_lace = pytest.mark.skipif(not LACE.is_dir(), reason="the shared lace photographs are not on this machine")
SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
QUALITIES = (95, 85, 75, 60, 50, 40, 30, 20, 10)


def lace() -> list[Image.Image]:
    """The middle of every fourth of the real photographs, so that it stays quick; all kinds of them are among these."""
    found = []
    for path in sorted(LACE.iterdir())[::4]:
        with Image.open(path) as image:
            width, height = image.size
            left, top = max(0, (width - 384) // 2), max(0, (height - 384) // 2)
            found.append(image.convert("RGB").crop((left, top, min(width, left + 384), min(height, top + 384))))
    return found


def blurred(grey: numpy.ndarray, sigma: float) -> numpy.ndarray:
    """A Gaussian by Fourier's transform: other code than what is tested, and exact; the picture mirrored around it."""
    if not sigma:
        return grey
    around = numpy.pad(grey, 16, mode="symmetric")
    down, right = numpy.fft.fftfreq(around.shape[0])[:, None], numpy.fft.rfftfreq(around.shape[1])[None]
    bell = numpy.exp(-2 * (numpy.pi * sigma) ** 2 * (down**2 + right**2))
    return numpy.fft.irfft2(numpy.fft.rfft2(around) * bell, around.shape)[16:-16, 16:-16].astype(numpy.float32)


def greys(picture: Image.Image) -> numpy.ndarray:
    return numpy.asarray(picture.convert("L"), numpy.float32)


def saved(picture: Image.Image, jpeg: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=jpeg)
    return Image.open(io.BytesIO(file.getvalue()))


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's, ties sharing their rank."""

    def ranks(values: list[float]) -> numpy.ndarray:
        _, place, count = numpy.unique(values, return_inverse=True, return_counts=True)
        return (numpy.cumsum(count) - (count - 1) / 2)[place]

    return float(numpy.corrcoef(ranks(one), ranks(other))[0, 1])


def variance_of_the_laplacian(grey: numpy.ndarray) -> float:
    """The usual measure."""
    middle = 4 * grey[1:-1, 1:-1]
    return float((grey[2:, 1:-1] + grey[:-2, 1:-1] + grey[1:-1, 2:] + grey[1:-1, :-2] - middle).var())


# Blur


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0, 3.5])
def test_the_blur_of_a_single_edge_is_the_sigma_that_made_it(sigma):
    """P4: by the formula for an edge, whatever its contrast."""
    edge = numpy.zeros((200, 200), numpy.float32)
    edge[:, 81:] = 200  # in the middle of a tile: two of them would each see half of it
    for contrast in (1.0, 0.2):
        assert blur_px(blurred(edge, sigma) * contrast) == pytest.approx(sigma, rel=0.15)
    assert blur_px(blurred(edge, 6.0)) > blur_px(blurred(edge, 4.0)) > 4


@needs_lace
def test_the_blur_of_real_lace_grows_with_the_sigma_and_ranks_better_than_the_laplacian():
    """P4: in every picture by itself, and over pictures of fine mesh and of plain ground together."""
    series = [[blurred(greys(picture), sigma) for sigma in SIGMAS] for picture in lace()]
    found = [[blur_px(grey) for grey in row] for row in series]
    assert all(blur <= next_ for row in found for blur, next_ in zip(row, row[1:], strict=False))
    assert all(row[-1] > row[0] + 2 for row in found)
    usual = [[-variance_of_the_laplacian(grey) for grey in row] for row in series]
    wanted = list(SIGMAS) * len(found)
    ours, theirs = (rank_correlation([blur for row in rows for blur in row], wanted) for rows in (found, usual))
    assert ours > 0.9 and ours > theirs


@needs_lace
def test_noise_and_a_coarse_jpeg_hide_no_blur():
    """P4: a phone's picture at dusk."""
    chance = numpy.random.default_rng(0)
    for picture in lace()[::3]:
        noisy = [blurred(greys(picture), sigma) + chance.normal(0, 5, greys(picture).shape) for sigma in (0, 1.5, 3)]
        sharp, soft, softest = (blur_px(one.astype(numpy.float32)) for one in noisy)
        assert sharp + 0.4 < soft < softest - 0.4
        soft_jpeg = Image.fromarray(blurred(greys(picture), 3).clip(0, 255).astype(numpy.uint8))
        assert blur_px(greys(saved(soft_jpeg, 30))) > sharp + 0.8


@needs_lace
def test_plain_ground_around_the_lace_does_not_count_as_blur():
    """P4."""
    for picture in lace()[::3]:
        cloth = Image.new("RGB", (2 * picture.width, 2 * picture.height), (90, 80, 70))
        cloth.paste(picture, (picture.width // 2, picture.height // 2))
        assert blur_px(greys(cloth)) == pytest.approx(blur_px(greys(picture)), abs=0.35)


def test_a_small_picture_that_is_enlarged_has_its_blur_enlarged_too():
    """P4: blur counts at the size of training."""
    soft = Image.effect_noise((300, 300), 80).filter(ImageFilter.GaussianBlur(3))
    as_it_is, enlarged = (measured(soft, side).blur_px for side in (300, 600))
    assert enlarged == pytest.approx(2 * as_it_is, rel=0.01)
    large = soft.resize((1200, 1200), Image.Resampling.BICUBIC)
    assert measured(large, 300).blur_px == pytest.approx(as_it_is, rel=0.1)


# Compression


@pytest.mark.parametrize("jpeg", [5, 10, 25, 50, 75, 90, 95, 100])
def test_the_quality_is_read_from_a_files_own_steps(jpeg):
    """P4: against what libjpeg was asked for; below 5 its steps reach the largest number that there is."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 40).save(file, "JPEG", quality=jpeg)
    assert jpeg_quality(open_bytes(file.getvalue(), ".jpg").luma_table) == pytest.approx(jpeg, abs=2)


def test_no_table_is_no_quality():
    """P4."""
    assert jpeg_quality(()) is None and jpeg_quality((1, 2, 3)) is None


@needs_lace
def test_blocks_show_more_the_lower_the_quality_was_even_in_a_file_of_another_kind():
    """P4: from the pixels alone, so that a picture that was saved as PNG afterwards tells too."""
    by_picture, everything, wanted = [], [], []
    for picture in lace():
        off_the_old_grid = picture.crop((3, 5, picture.width, picture.height))
        found = [blockiness(greys(saved(off_the_old_grid, jpeg))) for jpeg in QUALITIES]
        by_picture.append(rank_correlation(found, [-jpeg for jpeg in QUALITIES]))
        everything += found
        wanted += [-jpeg for jpeg in QUALITIES]
    assert min(by_picture) > 0.8 and numpy.median(by_picture) > 0.98
    assert rank_correlation(everything, wanted) > 0.8


@needs_lace
def test_blocks_are_found_after_turning_and_in_a_file_decoded_at_half_its_size():
    """P4: the grid then begins at another corner, or has squares of 4 px."""
    for picture in lace()[::4]:
        poor = saved(picture, 20).convert("RGB")
        for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_LEFT_RIGHT):
            assert blockiness(greys(poor.transpose(turn))) == pytest.approx(blockiness(greys(poor)), abs=0.05)
        large = picture.resize((2 * picture.width, 2 * picture.height))
        poor, good = (half_of(large, jpeg) for jpeg in (10, 95))
        assert blockiness(greys(poor), 4) > blockiness(greys(good), 4) + 0.05


def half_of(picture: Image.Image, jpeg: int) -> Image.Image:
    """The picture after a JPEG file that was decoded at half its size."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=jpeg)
    opened = open_bytes(file.getvalue(), ".jpg", min(picture.size) // 2)
    assert opened.reduced == 2 and opened.image is not None
    return opened.image


def test_compression_is_what_file_or_pixels_tell_whichever_is_worse():
    """P4."""
    assert quality.Quality(0, 40, 0.1).compression == pytest.approx(0.6)
    assert quality.Quality(0, 95, 0.5).compression == quality.Quality(0, None, 0.5).compression == 0.5
    assert quality.Quality(0, None, 3.0).compression == 1 and quality.Quality(0, None, 0.0).compression == 0


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_picture_has_finite_numbers(width, height, reduced, seed):
    """P4."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(numpy.uint8)
    for picture in (Image.fromarray(pixels), Image.new("RGB", (width, height), (seed % 256,) * 3)):
        found = measured(picture, 64, reduced)
        assert 0 <= found.blur_px <= quality.BLUNTEST_PX and 0 <= found.blockiness < 100 and found.jpeg_quality is None
