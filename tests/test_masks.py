"""Lace told from its ground, cut out, and drawn as an outline (L15, L16)."""

import importlib
import io
import re
import shutil
import subprocess
from functools import cache
from xml.etree import ElementTree

import numpy
import pytest
from PIL import Image, ImageChops, ImageFilter

from lace_lora import cloth, masks, outlines
from lace_lora.demo import lace
from lace_lora.errors import MachineError, PicturesError, SettingsError

SEEDS = range(5)  # one of each kind: rosette, border, mesh, leaf, scallop


@cache
def drawn(seed: int, side: int = 96) -> Image.Image:
    return lace.draw_lace(lace.lace_spec(seed), seed, side)


@cache
def pen_work(seed: int) -> Image.Image:
    """The threads of the same lace at 96 px, L, four times as large, straight from the pen that draws it."""
    sheet = lace.Threads(96 * 4, numpy.random.default_rng((22, seed)))
    lace.DRAWERS[lace.lace_spec(seed).kind](sheet, sheet.rng)
    return sheet.sheet


def cover(seed: int) -> numpy.ndarray:
    """How much thread there is in each pixel, 0..1."""
    return numpy.asarray(pen_work(seed).resize((96, 96), Image.Resampling.BOX)) / 255


def dyed(covered: numpy.ndarray, thread: tuple[int, int, int], ground: tuple[int, int, int]) -> Image.Image:
    mixed = covered[..., None] * numpy.array(thread) + (1 - covered[..., None]) * numpy.array(ground)
    return Image.fromarray(numpy.rint(mixed).astype(numpy.uint8))


def under_a_lamp(picture: Image.Image, darkest: float) -> Image.Image:
    across = darkest ** numpy.linspace(0, 1, picture.width)
    return Image.fromarray((numpy.asarray(picture) * across[:, None]).astype(numpy.uint8))


def common(one: object, other: object) -> float:
    """Area in common as a share of the area of both."""
    first, second = (numpy.asarray(shape) > 0 for shape in (one, other))
    return float((first & second).sum() / (first | second).sum())


# Masks


@pytest.mark.parametrize("seed", SEEDS)
def test_lace_is_where_the_pen_drew_thread(seed):
    """L15."""
    found = masks.mask(drawn(seed))
    assert (found.lace, found.threshold) == ("light", "otsu")
    assert common(found.image, cover(seed) >= 0.5) > 0.93
    assert found.share == pytest.approx((numpy.asarray(found.image) == 255).mean())
    assert set(numpy.unique(found.image)) == {0, 255}


@pytest.mark.parametrize("seed", SEEDS)
def test_dark_lace_on_light_ground_is_found_as_well(seed):
    """L15: the negative of a picture has the same lace."""
    light, dark = masks.mask(drawn(seed)), masks.mask(ImageChops.invert(drawn(seed)))
    assert (light.lace, dark.lace) == ("light", "dark")
    assert common(light.image, dark.image) > 0.99


def test_the_lace_is_the_tone_that_encloses_more_holes_and_the_number_is_said():
    """L15: a grid of 5 × 4 windows is one piece with 20 holes."""
    grid = numpy.full((110, 130), 30, numpy.uint8)
    grid[5:-5, 5:-5] = 230
    for row in range(4):
        for column in range(5):
            grid[20 + row * 20 : 30 + row * 20, 20 + column * 20 : 30 + column * 20] = 30
    found = masks.mask(Image.fromarray(grid))
    assert found.lace == "light"
    assert "the light tone encloses 19 more holes than it has pieces" in found.why
    turned = masks.mask(Image.fromarray(255 - grid))
    assert turned.lace == "dark"
    assert "the dark tone encloses 19 more holes than it has pieces" in turned.why


def test_where_holes_do_not_tell_the_lighter_tone_is_taken_and_it_is_said():
    """L15."""
    half = Image.new("L", (64, 64), 40)
    half.paste(200, (32, 0, 64, 64))
    found = masks.mask(half)
    assert found.lace == "light" and "do not tell" in found.why
    assert numpy.asarray(found.image)[:, 32:].all() and not numpy.asarray(found.image)[:, :32].any()


def test_light_or_dark_can_be_set_by_hand():
    """L15."""
    light, dark = (masks.mask(drawn(0), lace=kind) for kind in ("light", "dark"))
    assert (numpy.asarray(light.image) != numpy.asarray(dark.image)).all()
    assert dark.lace == "dark" and dark.why.startswith("dark lace: as asked for")


def test_red_thread_on_green_cloth_is_found_though_both_are_equally_light():
    """L15: their grey values are the same, so no threshold of grey could tell them apart."""
    red, green = (200, 40, 40), (38, 121, 38)
    picture = dyed(cover(2), red, green)
    assert numpy.ptp(numpy.asarray(picture.convert("L")).astype(int)) <= 1
    found = masks.mask(picture)
    assert common(found.image, cover(2) >= 0.5) > 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_under_a_lamp_local_thresholds_are_chosen_and_find_what_one_threshold_loses(seed):
    """L15: the right edge has a third of the left edge's light."""
    lit, truth = under_a_lamp(drawn(seed), 0.3), cover(seed) >= 0.5
    found = masks.mask(lit)
    assert found.threshold == "local" and "local thresholds" in found.why
    assert common(found.image, truth) > 0.9
    assert common(masks.mask(lit, threshold="otsu", lace="light").image, truth) < common(found.image, truth)
    assert masks.mask(drawn(seed)).threshold == "otsu"
    assert masks.mask(drawn(seed), threshold="local").threshold == "local"


def test_otsus_threshold_is_the_best_of_all():
    """L15. Oracle: the variance between both parts, tried for every level."""
    rng = numpy.random.default_rng(0)
    for _ in range(20):
        centres, widths = rng.uniform(20, 235, 2), rng.uniform(3, 40, 2)
        tones = rng.normal(centres, widths, (400, 2)).clip(0, 255).astype(numpy.uint8)

        def between(level: float, tones: numpy.ndarray = tones) -> float:
            low, high = tones[tones <= level], tones[tones > level]
            return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

        cut, separability = masks._otsu(tones)
        assert between(cut) == pytest.approx(max(map(between, range(256))))
        assert separability == pytest.approx(between(cut) / tones.size**2 / tones.var())


@pytest.mark.parametrize("repeat", ["straight", "half-drop", "brick"])
@pytest.mark.parametrize("threshold", ["otsu", "local"])
def test_the_mask_of_a_rolled_tile_is_the_mask_rolled(repeat, threshold):
    """L15: what lies beyond an edge is the neighbour, so a tile can begin anywhere."""
    tile = under_a_lamp(drawn(4), 0.6)
    whole = masks.mask(tile, repeat, threshold=threshold)
    for right, down in ((31, 0), (0, 50), (77, 13)):
        box = (right, down, right + 96, down + 96)
        begun = masks.mask(cloth.cut(tile, repeat, box), repeat, threshold=threshold)
        assert begun.image.tobytes() == cloth.cut(whole.image, repeat, box).tobytes()
        assert begun.why == whole.why
    assert masks.mask(tile, "none", threshold="local").image.tobytes() != whole.image.tobytes()


def test_a_band_may_begin_anywhere_along_its_length():
    """L15."""
    tile, box = drawn(1), (40, 0, 136, 96)
    whole = masks.mask(tile, "band", threshold="local")
    begun = masks.mask(cloth.cut(tile, "band", box), "band", threshold="local")
    assert begun.image.tobytes() == cloth.cut(whole.image, "band", box).tobytes()


def test_a_picture_of_one_tone_is_refused_and_one_of_noise_is_told():
    """L15."""
    with pytest.raises(PicturesError, match="of one tone, so there is no lace.*Choose another picture"):
        masks.mask(Image.new("RGB", (40, 40), (90, 80, 70)))
    bell = numpy.random.default_rng(0).normal(128, 20, (96, 96)).clip(0, 255).astype(numpy.uint8)
    assert "! lace and ground hardly differ" in masks.mask(Image.fromarray(bell)).why
    assert "!" not in masks.mask(drawn(0)).why
    with pytest.raises(SettingsError, match="has no half"):
        masks.mask(drawn(0).crop((0, 0, 96, 95)), "half-drop")


# Cut out


@pytest.mark.parametrize("seed", SEEDS)
def test_lace_cut_out_has_the_cover_of_its_threads_and_no_fringe_on_other_cloth(seed):
    """L15: laid on white it is as if it had been drawn on white; cut along the mask alone, dark cloth would cling."""
    thread, ground, white = (230, 220, 200), (20, 40, 110), (255, 255, 255)
    picture = dyed(cover(seed), thread, ground)
    found = masks.mask(picture)
    cut_out = masks.alpha(picture, found.image)
    assert abs(numpy.asarray(cut_out)[..., 3] / 255 - cover(seed)).mean() < 0.03

    def on_white(lace_only: Image.Image, by: Image.Image) -> float:
        sheet = Image.new("RGB", picture.size, white)
        sheet.paste(lace_only.convert("RGB"), mask=by)
        return float(abs(numpy.asarray(sheet).astype(int) - numpy.asarray(dyed(cover(seed), thread, white))).mean())

    clean, clinging = on_white(cut_out, cut_out.getchannel("A")), on_white(picture, found.image)
    assert clean < clinging / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_lace_cut_out_and_laid_on_its_own_ground_is_the_picture_again(seed):
    """L15."""
    ground, firm = (20, 60, 30), pen_work(seed).point([255 * (ink >= 128) for ink in range(256)])
    picture = dyed(numpy.asarray(firm.reduce(4)) / 255, (240, 235, 225), ground)
    found = masks.mask(picture)

    def difference(lace_only: Image.Image, by: Image.Image) -> float:
        again = Image.new("RGB", picture.size, ground)
        again.paste(lace_only, mask=by)
        return float(abs(numpy.asarray(again).astype(int) - numpy.asarray(picture)).mean())

    cut_out = masks.alpha(picture, found.image)
    assert difference(cut_out.convert("RGB"), cut_out.getchannel("A")) < difference(picture, found.image) / 4


def test_inside_a_thread_colours_stay_and_far_from_all_threads_it_is_clear():
    """L15."""
    picture = drawn(0, 192)
    is_lace = numpy.asarray(masks.mask(picture).image)
    cut_out = numpy.asarray(masks.alpha(picture, Image.fromarray(is_lace)))
    inside = numpy.asarray(Image.fromarray(is_lace).filter(ImageFilter.MinFilter(7))) > 0
    outside = numpy.asarray(Image.fromarray(is_lace).filter(ImageFilter.MaxFilter(7))) == 0
    assert inside.any() and outside.any()
    assert (cut_out[inside][:, 3] == 255).all() and (cut_out[outside][:, 3] == 0).all()
    assert (cut_out[inside][:, :3] == numpy.asarray(picture)[inside]).all()


def test_a_rolled_tile_is_cut_out_as_the_tile_was():
    """L15."""
    tile, box = drawn(3), (50, 21, 146, 117)
    whole = masks.alpha(tile, masks.mask(tile, "half-drop").image, "half-drop")
    begun = cloth.cut(tile, "half-drop", box)
    begun = masks.alpha(begun, masks.mask(begun, "half-drop").image, "half-drop")
    assert begun.tobytes() == cloth.cut(whole, "half-drop", box).tobytes()


def test_masks_that_do_not_fit_are_refused_with_what_to_do():
    """L15."""
    with pytest.raises(PicturesError, match=r"The mask has 10 × 9 px and the picture 96 × 96\. Take the mask"):
        masks.alpha(drawn(0), Image.new("L", (10, 9), 255))
    for tone in (0, 255):
        with pytest.raises(PicturesError, match="all lace or all ground.*lace or threshold set by hand"):
            masks.alpha(drawn(0), Image.new("L", (96, 96), tone))


# Outlines

needs_vtracer = pytest.mark.skipif(outlines.missing_package() is not None, reason="vtracer is not installed")
needs_rsvg = pytest.mark.skipif(not shutil.which("rsvg-convert"), reason="rsvg-convert is not installed")


def painted(svg: str, width: int, height: int) -> Image.Image:
    """The drawing as librsvg paints it, L, black where there is lace."""
    line = ["rsvg-convert", "-w", str(width), "-h", str(height), "--background-color", "white"]
    done = subprocess.run(line, input=svg.encode(), capture_output=True, check=True)
    return Image.open(io.BytesIO(done.stdout)).convert("L")


@needs_vtracer
@needs_rsvg
@pytest.mark.parametrize("seed", SEEDS)
def test_an_outline_painted_again_is_the_mask(seed):
    """L15."""
    mask = masks.mask(drawn(seed)).image
    large = painted(outlines.outline(mask, 8), 384, 384)
    small = numpy.asarray(large.resize((96, 96), Image.Resampling.BOX)) < 128
    assert common(small, mask) > 0.98


@needs_vtracer
@needs_rsvg
def test_threads_are_cut_at_the_edge_of_a_plain_picture_and_not_rounded_off():
    """L15."""
    bar = Image.new("L", (24, 24), 0)
    bar.paste(255, (9, 0, 15, 24))
    rows = (numpy.asarray(painted(outlines.outline(bar, 2), 192, 192)) < 128).sum(axis=1)
    assert rows.min() == rows.max() == 6 * 8


@needs_vtracer
@needs_rsvg
@pytest.mark.parametrize("seed", SEEDS)
def test_the_outline_of_soft_edges_is_finer_than_the_pixels(seed):
    """L15. Oracle: the same lace drawn four times as large."""
    mask = masks.mask(drawn(seed)).image
    soft = masks.alpha(drawn(seed), mask).getchannel("A")
    fine = numpy.asarray(pen_work(seed)) >= 128
    from_soft, from_mask = (
        common(numpy.asarray(painted(outlines.outline(one, 8), 384, 384)) < 128, fine) for one in (soft, mask)
    )
    assert from_soft > 0.9 and from_soft > from_mask


@needs_vtracer
@needs_rsvg
@pytest.mark.parametrize("repeat", ["straight", "half-drop", "brick", "band"])
def test_the_outline_of_a_tile_goes_on_in_its_neighbour(repeat):
    """L15: what is drawn just beyond an edge is what the neighbour has there, to a tenth of a pixel."""
    side, zoom, far = 96, 8, 4
    tile = cloth.cut(cloth.laid(drawn(0, 48), "none", 2, 2, mirrored=True), "straight", (17, 9, 17 + side, 9 + side))
    svg = outlines.outline(masks.mask(tile, repeat).image, 5, repeat)
    wide = re.sub(r' width="[^"]*" height="[^"]*" viewBox="[^"]*"', "", svg, count=1).replace(
        ' clip-path="url(#tile)"', ""
    )
    wide = wide.replace("<svg ", f'<svg viewBox="{-far} {-far} {side + 2 * far} {side + 2 * far}" ', 1)
    over = numpy.asarray(painted(wide, (side + 2 * far) * zoom, (side + 2 * far) * zoom)) / 255
    alone = painted(svg, side * zoom, side * zoom)
    laid = cloth.cut(alone, repeat, (-far * zoom, -far * zoom, (side + far) * zoom, (side + far) * zoom))
    beside = numpy.asarray(laid) / 255
    edge, end = (side + far) * zoom, far * zoom
    strips = [(slice(end, -end), slice(edge, edge + zoom), 0)]
    strips += [] if repeat == "band" else [(slice(edge, edge + zoom), slice(end, -end), 1)]
    for rows, columns, axis in strips:
        crossings = abs(numpy.diff(beside[rows, columns], axis=axis)).sum()
        assert crossings > zoom * 4
        assert abs(over[rows, columns] - beside[rows, columns]).sum() / crossings / zoom < 0.1


@needs_vtracer
def test_an_outline_is_one_path_in_one_layer_with_its_size_in_centimetres():
    """L15: any XML reader takes it, whatever its title holds."""
    mask = masks.mask(drawn(1)).image.crop((0, 0, 96, 48))
    svg = outlines.outline(mask, 12.5, title='"rose" & <leaf> \x00\n\ud800', colour="#7a3b3b")
    root = ElementTree.fromstring(svg.encode("utf-8"))
    name = {"svg": "http://www.w3.org/2000/svg"}
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("12.5000cm", "6.2500cm", "0 0 96 48")
    assert root.findtext("svg:title", None, name) == '"rose" & <leaf> '
    assert len(root.findall(".//svg:g", name)) == 1
    (path,) = root.findall(".//svg:path", name)
    assert path.get("fill") == "#7a3b3b"
    assert set(re.sub(r"[-\d. ]", "", path.get("d"))) <= set("MCLZ")
    assert svg == outlines.outline(mask, 12.5, title='"rose" & <leaf> \x00\n\ud800', colour="#7a3b3b")


@needs_vtracer
def test_what_has_no_outline_is_refused_with_what_to_do():
    """L15."""
    with pytest.raises(PicturesError, match="holds no lace.*Look at the mask first"):
        outlines.outline(Image.new("L", (32, 32), 0), 8)
    with pytest.raises(PicturesError, match="at most 4096 px a side.*before it is enlarged"):
        outlines.outline(Image.new("L", (5000, 8), 255), 8)
    with pytest.raises(SettingsError, match="A mirrored brick does not join"):
        outlines.outline(Image.new("L", (32, 32), 255), 8, "brick", mirrored=True)


def test_without_vtracer_it_is_said_what_to_install(monkeypatch):
    """L15."""

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MachineError, match=r"SVG outlines need the package vtracer: pip install vtracer\."):
        outlines.outline(masks.mask(drawn(0)).image, 8)
