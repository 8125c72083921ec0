"""Cuts: which pixels are learnt, and that their size numbers tell of exactly these pixels."""

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import cuts, shapes
from lace_lora.cuts import Cut, Cutting
from lace_lora.data_utils import open_picture

ORIENTATION = 0x0112
# How a camera stores an upright picture when it writes that orientation: the inverse of what a viewer does.
STORED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose members
SIZES = [(320, 200), (200, 320), (300, 300), (480, 160), (301, 199)]


# -- shapes --


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (768, 64), (512, 64), (96, 16), (64, 32), (40, 32)])
def test_buckets_have_at_most_the_wished_area_and_sides_that_the_model_takes(resolution: int, step: int) -> None:
    found = shapes.buckets(resolution, step)
    assert (resolution // step * step,) * 2 in found
    assert all(height * width <= resolution**2 and height % step == 0 and width % step == 0 for height, width in found)
    assert all(max(one) <= 3 * min(one) for one in found)
    assert {(width, height) for height, width in found} == set(found)


def test_bucket_steps_suit_the_training_size_and_the_model() -> None:
    assert [shapes.bucket_step(side, pixel_step=32) for side in (1024, 512, 256)] == [64, 64, 32]
    assert shapes.bucket_step(96, pixel_step=16) == 16


def test_cuts_by_hand() -> None:
    square = cuts.cut_of(1500, 1500, 1024, 64)
    assert (square.resized_hw, square.crop_top_left, square.target_hw) == ((1024, 1024), (0, 0), (1024, 1024))
    # 3 : 2 → 832 × 1216 is the nearest shape; scaled to cover it, 1248 px wide, of which 16 fall on each side.
    wide = cuts.cut_of(3000, 2000, 1024, 64)
    assert wide == Cut((2000, 3000), (832, 1248), (0, 16), (832, 1216))
    turned = cuts.cut_of(3000, 2000, 1024, 64, quarter_turns=3)
    assert turned == Cut((3000, 2000), (1248, 832), (16, 0), (1216, 832), False, 3)
    # Odd rest: 33 px too wide; 16 fall left, 17 right, and the other way round in the mirrored picture.
    odd, mirrored = (cuts.cut_of(97, 64, 64, 32, is_flipped) for is_flipped in (False, True))
    assert (odd.resized_hw, odd.crop_top_left, mirrored.crop_top_left) == ((64, 97), (0, 16), (0, 17))


def test_random_crops_lie_evenly_from_border_to_border_and_need_room() -> None:
    wide = cuts.cuts_of(3000, 2000, Cutting(1024, 64, "random"))
    assert [cut.crop_top_left for cut in wide] == [(0, 0), (0, 11), (0, 21), (0, 32)]
    tall = cuts.cuts_of(2000, 3000, Cutting(1024, 64, "random"))
    assert [cut.crop_top_left for cut in tall] == [(0, 0), (11, 0), (21, 0), (32, 0)]
    square = cuts.cuts_of(1500, 1500, Cutting(1024, 64, "random"))
    assert square == (cuts.cut_of(1500, 1500, 1024, 64),)
    hardly = cuts.cuts_of(1030, 1024, Cutting(1024, 64, "random"))  # 6 px too wide: less than a latent cell
    assert hardly == (cuts.cut_of(1030, 1024, 1024, 64),)


def test_a_large_scan_is_also_learnt_by_tiles_at_full_sharpness() -> None:
    """By hand: 2200 × 1700 px in buckets of 512 px: (448, 576) is nearest, so 4 × 4 tiles of it cover the scan."""
    found = cuts.cuts_of(2200, 1700, Cutting(512, 64, "tiles"))
    whole, tiles = found[:16], found[16:]
    assert set(whole) == {cuts.cut_of(2200, 1700, 512, 64)} and whole[0].target_hw == (448, 576)
    assert {cut.resized_hw for cut in tiles} == {(1700, 2200)} and {cut.original_hw for cut in tiles} == {(1700, 2200)}
    tops, lefts = (sorted({cut.crop_top_left[axis] for cut in tiles}) for axis in (0, 1))
    assert tops == [0, 417, 835, 1252] and lefts == [0, 541, 1083, 1624] and len(set(tiles)) == 16
    # 1.9 tiles along the longer side: nothing would be won.
    assert cuts.cuts_of(1090, 847, Cutting(512, 64, "tiles")) == (cuts.cut_of(1090, 847, 512, 64),)


def test_a_scan_too_large_for_sixteen_tiles_is_scaled_down_until_they_cover_it() -> None:
    tiles = cuts.cuts_of(12000, 12000, Cutting(1024, 64, "tiles"))[16:]
    assert len(tiles) == 16 and {cut.resized_hw for cut in tiles} == {(4096, 4096)}
    assert {cut.crop_top_left for cut in tiles} == {
        (top, left) for top in range(0, 4096, 1024) for left in range(0, 4096, 1024)
    }


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(24, 20000), height=st.integers(24, 20000), resolution=st.sampled_from([64, 512, 1024]),
    crop=st.sampled_from(["center", "random", "tiles"]), flips=st.booleans(), turns=st.booleans(),
)  # fmt: skip
def test_every_cut_lies_in_its_picture_and_tiles_leave_no_gap(
    width: int, height: int, resolution: int, crop: cuts.Crop, flips: bool, turns: bool
) -> None:
    cutting = Cutting(resolution, shapes.bucket_step(resolution, 32), crop, flips, turns)
    found = cuts.cuts_of(width, height, cutting)
    plain = cuts.cuts_of(width, height, Cutting(resolution, cutting.step, crop))
    assert len(found) == len(plain) * (2 if flips else 1) * (4 if turns else 1)
    assert len(set(plain)) <= (4 if crop == "random" else 1 + cuts.TILES if crop == "tiles" else 1)
    for cut in found:
        (top, left), (high, wide), resized = cut.crop_top_left, cut.target_hw, cut.resized_hw
        assert 0 <= top <= resized[0] - high and 0 <= left <= resized[1] - wide
        assert sorted(cut.original_hw) == sorted((height, width))
        assert (cut.original_hw == (height, width)) == (cut.quarter_turns % 2 == 0 or height == width)
        assert cut.target_hw in (plain[0].target_hw, plain[0].target_hw[::-1])
    if crop == "tiles" and len(plain) > 1:
        tiles = plain[len(plain) // 2 :]
        assert plain[0] == cuts.cut_of(width, height, resolution, cutting.step)
        for axis, side in ((0, tiles[0].resized_hw[0]), (1, tiles[0].resized_hw[1])):
            assert side <= (height, width)[axis]  # never enlarged
            starts = sorted({cut.crop_top_left[axis] for cut in tiles})
            size = tiles[0].target_hw[axis]
            assert starts[-1] + size == side and starts[0] == 0
            assert all(after - before <= size for before, after in zip(starts, starts[1:], strict=False))


# -- pixels --


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose red says how far right, and whose green how far down, a pixel lies."""
    across, down = numpy.meshgrid(numpy.arange(width), numpy.arange(height))
    pixels = numpy.stack([across * 255 / (width - 1), down * 255 / (height - 1), 0 * across], axis=-1)
    return Image.fromarray(pixels.round().astype(numpy.uint8))


def upright_places(cut: Cut) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the scaled upright picture each pixel of a cut lies, by what it says: x and y, px, [target h, w].

    Whole pictures of coordinates are turned and mirrored by numpy, then cut: the slow way round.
    """
    height, width = cut.scaled_hw
    down, across = numpy.meshgrid(numpy.arange(height) + 0.5, numpy.arange(width) + 0.5, indexing="ij")
    (top, left), (high, wide) = cut.crop_top_left, cut.target_hw
    both = []
    for places in (across, down):
        turned = numpy.rot90(places, cut.quarter_turns)
        turned = turned[:, ::-1] if cut.is_flipped else turned
        assert turned.shape == cut.resized_hw
        both.append(torch.from_numpy(turned[top : top + high, left : left + wide].copy()))
    return both[0], both[1]


def stored_as(picture: Image.Image, orientation: int, path: Path) -> Path:
    stored = picture if orientation == 1 else picture.transpose(Image.Transpose(STORED[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(path, exif=exif)
    return path


@pytest.mark.parametrize("crop", ["center", "random", "tiles"])
@pytest.mark.parametrize("size", SIZES)
def test_size_numbers_tell_of_the_pixels_really_cut(size: tuple[int, int], crop: cuts.Crop, tmp_path: Path) -> None:
    """Each cut pixel of a gradient tells where it was taken; original, crop and target must say the same.

    For 8 EXIF orientations × flips × quarter turns × shapes × crops.
    """
    upright = gradient(*size)
    for orientation in range(1, 9):
        picture = open_picture(stored_as(upright, orientation, tmp_path / f"{orientation}.png"))
        assert picture.size == size
        found = cuts.cuts_of(*picture.size, Cutting(96, 16, crop, flips=True, quarter_turns=True))
        assert {(cut.is_flipped, cut.quarter_turns) for cut in found} == {(f, t) for f in (0, 1) for t in range(4)}
        for cut in dict.fromkeys(found):
            pixels_CHW = cuts.pixels_of(picture, cut)
            assert pixels_CHW.shape == (3, *cut.target_hw) and pixels_CHW.dtype == torch.float32
            seen_x, seen_y = ((pixels_CHW[axis] + 1) / 2 * cut.scaled_hw[1 - axis] for axis in (0, 1))
            told_x, told_y = upright_places(cut)
            for seen, told in ((seen_x, told_x), (seen_y, told_y)):
                assert (seen - told).abs().median() < 1 and (seen - told).abs().max() < 2.5


def test_scaled_once_or_each_time_the_pixels_are_the_same() -> None:
    """What is cut from the shared scaled picture equals turning, mirroring and cutting the whole of it, to the bit."""
    picture = gradient(300, 210)
    for cut in cuts.cuts_of(300, 210, Cutting(96, 16, "tiles", flips=True, quarter_turns=True)):
        whole = picture.resize((cut.scaled_hw[1], cut.scaled_hw[0]), Image.Resampling.LANCZOS)
        turned = numpy.rot90(numpy.asarray(whole), cut.quarter_turns)
        turned = turned[:, ::-1] if cut.is_flipped else turned
        (top, left), (high, wide) = cut.crop_top_left, cut.target_hw
        expected = turned[top : top + high, left : left + wide].astype(numpy.float32) / 127.5 - 1
        assert numpy.array_equal(cuts.pixels_of(picture, cut).permute(1, 2, 0).numpy(), expected)


def test_a_picture_of_the_right_size_is_not_scaled_again() -> None:
    picture = gradient(96, 96)
    assert cuts.scaled(picture, cuts.cut_of(96, 96, 96, 16)) is picture
