"""Pictures laid out as cloth, measured and enlarged without a seam (L15, L16)."""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import cloth
from lace_lora.errors import SettingsError

REPEATS = ("none", "straight", "half-drop", "brick", "band")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), numpy.uint8))


def pixels(picture: Image.Image) -> numpy.ndarray:
    return numpy.asarray(picture).astype(int)


def smooth(width: int, height: int, repeat: str) -> Image.Image:
    """A tile with structure of a few pixels that goes on across its edges in that repeat: waves of its lattice."""
    y, x = numpy.mgrid[:height, :width].astype(float)
    x, y = 2 * numpy.pi * x / width, 2 * numpy.pi * y / height
    # Half a tile along one axis and a whole one along the other must be a whole number of waves.
    both = {"half-drop": (1, 2), "brick": (2, 1)}.get(repeat, (1, 1))
    waves = [numpy.sin(both[0] * 4 * x + 1), numpy.cos(both[1] * 3 * y), numpy.sin(both[0] * 6 * x + both[1] * 5 * y)]
    return Image.fromarray(numpy.rint(numpy.stack(waves, 2) * 100 + 128).astype(numpy.uint8))


# Laid out


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(REPEATS), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0)
)
def test_every_pixel_of_a_laid_cloth_is_that_of_its_tile(repeat, half_width, half_height, rows, columns, seed):
    """L15: straight in rows, half-drop every other column half a tile lower, brick every other row half a tile over."""
    width, height = 2 * half_width, 2 * half_height
    tile = noise(width, height, seed)
    rows = 1 if repeat == "band" else rows
    y, x = numpy.mgrid[: rows * height, : columns * width]
    drop = half_height * (x // width % 2) if repeat == "half-drop" else 0
    shift = half_width * (y // height % 2) if repeat == "brick" else 0
    expected = pixels(tile)[(y - drop) % height, (x - shift) % width]
    assert (pixels(cloth.laid(tile, repeat, rows, columns)) == expected).all()


def test_a_band_lies_in_one_row_however_many_are_asked_for():
    """L15."""
    assert cloth.laid(noise(8, 6), "band", rows=5, columns=3).size == (24, 6)


@pytest.mark.parametrize("repeat", ["none", "straight"])
def test_a_mirrored_repeat_is_what_numpy_calls_symmetric(repeat):
    """L15: each edge meets its own mirror image, so that any picture joins."""
    tile = noise(7, 5)
    expected = numpy.pad(pixels(tile), ((0, 10), (0, 14), (0, 0)), mode="symmetric")
    assert (pixels(cloth.laid(tile, repeat, 3, 3, mirrored=True)) == expected).all()


def test_a_mirrored_band_is_turned_over_sideways_alone():
    """L15."""
    tile = noise(7, 5)
    expected = numpy.pad(pixels(tile), ((0, 0), (0, 14), (0, 0)), mode="symmetric")
    assert (pixels(cloth.laid(tile, "band", 3, 3, mirrored=True)) == expected).all()


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_tile_cut_out_anywhere_gives_the_same_cloth(repeat):
    """L15: a rolled tile is the same design, begun at another place."""
    tile = noise(8, 6)
    for right, down in ((3, 0), (0, 5), (5, 4), (-3, 7)):
        down = 0 if repeat == "band" else down
        begun = cloth.cut(tile, repeat, (right, down, right + 8, down + 6))
        if repeat in ("none", "straight"):
            assert (pixels(begun) == numpy.roll(pixels(tile), (-down, -right), (0, 1))).all()
        again = cloth.laid(begun, repeat, 3, 3)
        assert (pixels(again) == pixels(cloth.cut(tile, repeat, (right, down, right + 24, down + again.height)))).all()


def test_what_does_not_join_is_refused_with_what_to_do():
    """L15."""
    for repeat in ("half-drop", "brick"):
        with pytest.raises(SettingsError, match=f"A mirrored {repeat} does not join.*straight, band or none"):
            cloth.laid(noise(8, 8), repeat, mirrored=True)
    with pytest.raises(SettingsError, match="a height of 7 px has no half. Use 6 or 8 px"):
        cloth.laid(noise(8, 7), "half-drop")
    with pytest.raises(SettingsError, match="a width of 9 px has no half. Use 8 or 10 px"):
        cloth.enlarged(noise(9, 8), "brick", factor=2)
    assert cloth.laid(noise(9, 8), "half-drop").size == (27, 24)


def test_tiles_with_a_palette_or_with_clear_ground_keep_their_colours():
    """L15."""
    tile = noise(8, 6).quantize(16)
    assert (pixels(cloth.laid(tile, "straight", 1, 2))[:, 8:] == pixels(tile.convert("RGB"))).all()
    clear = noise(8, 6).convert("RGBA")
    clear.putalpha(noise(8, 6, 1).convert("L"))
    assert (pixels(cloth.laid(clear, "brick", 1, 2))[:, 8:] == pixels(clear)).all()


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_padded_tile_has_its_neighbours_around_it_where_it_has_any(repeat):
    """L15."""
    tile = noise(8, 6)
    around, (x, y) = cloth.padded(tile, repeat, 5)
    assert (x, y) == {"none": (0, 0), "band": (5, 0)}.get(repeat, (5, 5))
    assert (pixels(around)[y : y + 6, x : x + 8] == pixels(tile)).all()
    if repeat == "half-drop":
        assert (pixels(around)[y : y + 6, 0] == numpy.roll(pixels(tile), 3, 0)[:, 3]).all()


# Previews


def test_a_preview_is_bounded_and_shows_the_cloth_above_a_line_of_words():
    """L15."""
    tile = smooth(64, 48, "half-drop")
    shown = cloth.preview(tile, "half-drop", 300, longest_px=1000)
    assert shown.width == 192 and 144 < shown.height < 260
    assert (pixels(shown)[:144] == pixels(cloth.laid(tile, "half-drop"))).all()
    assert (pixels(shown)[144:] < 100).any()
    small = cloth.preview(tile, "half-drop", 300, longest_px=96)
    assert small.width == 96
    assert (pixels(small)[:72] == pixels(cloth.laid(cloth.enlarged(tile, "half-drop", factor=0.5), "half-drop"))).all()


def test_a_preview_says_the_size_of_one_tile_and_of_all_that_is_shown(monkeypatch):
    """L15: 1024 px at 300 dpi are 8.7 cm."""
    said = []
    wrapped = cloth.wrapped
    monkeypatch.setattr(cloth, "wrapped", lambda text, *rest: said.append(text) or wrapped(text, *rest))
    cloth.preview(Image.new("RGB", (1024, 512)), "half-drop", 300, longest_px=300)
    cloth.preview(Image.new("RGB", (1024, 512)), "none", 150, columns=2, mirrored=True, longest_px=300)
    cloth.preview(Image.new("RGB", (1024, 512)), "band", 300, longest_px=300)
    assert said == [
        "One tile 8.7 × 4.3 cm at 300 dpi, in half-drop repeat; 26.0 × 13.0 cm are shown",
        "One tile 17.3 × 8.7 cm at 150 dpi, in mirrored repeat; 34.7 × 26.0 cm are shown",
        "One tile 8.7 × 4.3 cm at 300 dpi, in band repeat; 26.0 × 4.3 cm are shown",
    ]


# Size in print


def test_pixels_become_centimetres_and_back():
    """L15: an inch is 2.54 cm."""
    assert cloth.print_size(300, 600, 300) == pytest.approx((2.54, 5.08))
    assert cloth.print_size(1024, 1024, 300)[0] == pytest.approx(8.67, abs=0.005)
    assert cloth.dpi_for(1024, 10) == pytest.approx(260.096)
    assert cloth.print_size(1024, 1, cloth.dpi_for(1024, 12.5))[0] == pytest.approx(12.5)
    assert cloth.print_px(10, 254) == 1000


# Enlarged


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("factor", [0.37, 1.5, 2, 3.3])
def test_an_enlarged_tile_is_one_of_the_enlarged_cloth(repeat, factor):
    """L15: so its seams are where they were, and nothing new shows there. Oracle: the cloth enlarged as a whole."""
    tile = noise(40, 24)  # edges that do not fit are the hardest case
    large = cloth.enlarged(tile, repeat, factor=factor)
    width, height = large.size
    assert abs(width - 40 * factor) <= 1 and abs(height - 24 * factor) <= 1
    around = 0 if repeat == "none" else 2  # tiles to either side
    below = 0 if repeat == "band" else around
    whole = cloth.cut(tile, repeat, (-40 * around, -24 * below, 40 + 40 * around, 24 + 24 * below))
    whole = whole.resize((width * (1 + 2 * around), height * (1 + 2 * below)), Image.Resampling.LANCZOS)
    x, y = width * around, height * below
    assert abs(pixels(large) - pixels(whole.crop((x, y, x + width, y + height)))).max() <= 1


@pytest.mark.parametrize("repeat", ["straight", "half-drop", "brick", "band"])
def test_enlarging_keeps_a_seamless_tile_seamless_where_plain_enlarging_does_not(repeat):
    """L15: steps across the seam stay as small as those within."""

    def steps_over_seam(large: Image.Image) -> tuple[float, float]:
        laid = pixels(cloth.laid(large, repeat, 1, 2))
        across = abs(numpy.diff(laid, n=2, axis=1))  # curvature: a kink is what the eye sees
        at = large.width - 1
        return across[:, at - 1 : at + 1].mean(), across[:, 8 : at - 8].mean()

    tile = smooth(48, 32, repeat)
    seam, within = steps_over_seam(cloth.enlarged(tile, repeat, factor=3))
    plain_seam, _ = steps_over_seam(tile.resize((144, 96), Image.Resampling.LANCZOS))
    assert seam < 1.3 * within < 0.8 * plain_seam


def test_a_mirrored_repeat_is_enlarged_with_its_mirror_images():
    """L15."""
    tile = noise(20, 16)
    large = cloth.enlarged(tile, "none", factor=2, mirrored=True)
    whole = cloth.laid(tile, "none", 3, 3, mirrored=True).resize((120, 96), Image.Resampling.LANCZOS)
    turned = pixels(whole)[32:64, 40:80][::-1, ::-1]
    assert abs(pixels(large) - turned).max() <= 1


def test_a_plain_picture_is_enlarged_as_pillow_does():
    """L15."""
    tile = noise(20, 16)
    plain = tile.resize((50, 40), Image.Resampling.LANCZOS)
    assert (pixels(cloth.enlarged(tile, "none", factor=2.5)) == pixels(plain)).all()
    grey = tile.convert("1")
    assert cloth.enlarged(grey, "straight", factor=2).getextrema()[0] < 255
    assert len(set(cloth.enlarged(grey, "straight", factor=3).tobytes())) > 2


def test_a_tile_is_enlarged_to_a_width_in_print_with_sides_that_can_be_halved():
    """L15: 10 cm at 300 dpi are 1181 px; half of a brick's width is a whole number."""
    assert cloth.enlarged(noise(64, 32), "straight", width_cm=10, dpi=300).size == (1181, 590)
    assert cloth.enlarged(noise(64, 32), "brick", width_cm=10, dpi=300).size == (1180, 590)
    assert cloth.enlarged(noise(32, 34), "half-drop", factor=1.5).size == (48, 52)


def test_sizes_that_cannot_be_are_refused_with_what_to_change():
    """L15."""
    for wrong in ({}, {"factor": 2, "width_cm": 10}):
        with pytest.raises(SettingsError, match="either factor or width_cm"):
            cloth.enlarged(noise(8, 8), "none", **wrong)
    with pytest.raises(SettingsError, match=r"59,055 × 59,055 px; at most 200 MP.*width in print, dpi or factor"):
        cloth.enlarged(noise(8, 8), "none", width_cm=500, dpi=300)
    with pytest.raises(SettingsError, match="become 0 × 0 px"):
        cloth.enlarged(noise(8, 8), "none", factor=0.01)
