"""The nearest photograph of a picture: found whatever was done to it, told in words, compared by threads (P22, D8)."""

import numpy
import pytest
from PIL import Image, ImageDraw, ImageOps

from benchmarks.planted import drawn
from lace_lora import nearest
from lace_lora.nearest import SIDE, Searched, agreement, in_words, print_of, with_detail_of
from lace_lora.views import pixels_of

PIECES = 6
TURN = Image.Transpose
SAME = numpy.eye(2, 3)


@pytest.fixture(scope="module")
def pieces() -> list[Image.Image]:
    return [drawn(seed) for seed in range(PIECES)]


@pytest.fixture(scope="module")
def searched(pieces: list[Image.Image]) -> Searched:
    return Searched([print_of(one) for one in pieces])


def cut(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = picture.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return picture.crop(tuple(round(side) for side in box))


def painted_over(picture: Image.Image) -> Image.Image:
    """A quarter of it holds another piece."""
    other = drawn(77).resize(picture.size)
    mixed = picture.copy()
    mixed.paste(cut(other, 0, 0, 0.75, 0), (0, 0))
    return mixed


DONE = {
    "nothing": (lambda one: one, ""),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "top to bottom": (ImageOps.flip, "mirrored and turned upside down"),
    "upside down": (lambda one: one.transpose(TURN.ROTATE_180), "turned upside down"),
    "to the left": (lambda one: one.transpose(TURN.ROTATE_90), "turned a quarter to the left"),
    "to the right": (lambda one: one.transpose(TURN.ROTATE_270), "turned a quarter to the right"),
    "mirrored, then to the left": (
        lambda one: ImageOps.mirror(one).transpose(TURN.ROTATE_90), "mirrored and turned a quarter to the left",
    ),
    "mirrored, then to the right": (
        lambda one: ImageOps.mirror(one).transpose(TURN.ROTATE_270), "mirrored and turned a quarter to the right",
    ),
    "cut": (lambda one: cut(one, 0.05, 0.1, 0.1, 0.05), "a cut-out"),
    "cut to a square": (lambda one: cut(one, 1 / 12, 0, 1 / 12, 0), "a cut-out"),
    "mirrored and cut": (lambda one: ImageOps.mirror(cut(one, 0.08, 0.08, 0.07, 0.07)), "mirrored, a cut-out"),
    "wider": (lambda one: ImageOps.expand(one, 30, "black"), "with something around it"),
    "painted over": (painted_over, ""),
}  # fmt: skip


@pytest.mark.parametrize("what", DONE)
def test_the_photograph_is_found_with_what_was_done_to_it(what, pieces, searched):
    """P22: among pieces of one ground; turns and mirrorings are Pillow's own."""
    alter, words = DONE[what]
    for place, found in enumerate(searched.nearest([print_of(alter(one)) for one in pieces])):
        assert found is not None
        assert found.place == place and found.likeness > 0.9, f"{found} instead of {place}"
        assert found.how == words


def test_a_new_piece_has_a_nearest_one_that_is_not_very_alike(searched):
    """P22: there is always an answer, also for what is no lace; a likeness is 0 to 1."""
    others = [drawn(500), Image.new("RGB", (90, 200), "navy"), Image.linear_gradient("L"), Image.new("L", (1, 1))]
    found = searched.nearest([print_of(one) for one in others])
    assert all(one is not None and 0 <= one.likeness < 0.8 for one in found), found


def test_what_is_barred_is_not_found_and_what_a_style_model_names_is_looked_at(monkeypatch, pieces, searched):
    """P22: a photograph's own piece is left out; features add to the one candidate."""
    prints = [print_of(one) for one in pieces[:2]]
    told = []
    barred = searched.nearest(prints, barred=[[0], range(PIECES)], tell=told.append)
    assert barred[0] is not None and barred[0].place != 0 and barred[0].likeness < 0.8
    assert barred[1] is None and told == [1, 1]
    monkeypatch.setattr(nearest, "CANDIDATES", 1)
    wrong = searched.nearest(prints[:1], barred=[[0]])[0]
    assert wrong is not None
    other = next(place for place in range(1, PIECES) if place != wrong.place)
    looked = []
    close = Searched._best
    monkeypatch.setattr(Searched, "_best", lambda self, *rest: looked.append(rest[2]) or close(self, *rest))
    searched.nearest(prints[:1], also=[[other, 0]], barred=[[0]])
    assert looked == [[wrong.place, other]]
    assert Searched([]).nearest(prints) == [None, None] and searched.nearest([]) == []


# ---- the measure


def noise(seed: int) -> numpy.ndarray:
    return numpy.random.default_rng(seed).normal(128, 30, (SIDE, SIDE)).astype(numpy.float32)


def test_agreement_is_the_correlation_of_threads_as_numpy_has_it():
    """P22: of mixed noise, whose correlation is the share that is mixed, in every tile."""
    one, other = noise(0), noise(1)
    for share in (0.0, 0.5, 0.9):
        mixed = (share * one + (1 - share**2) ** 0.5 * other).astype(numpy.float32)
        expected = numpy.corrcoef(one.ravel(), mixed.ravel())[0, 1]
        assert agreement(one, mixed, SAME) == pytest.approx(expected, abs=0.02)
    assert agreement(one, one, SAME) == pytest.approx(1, abs=1e-4)
    assert agreement(one, 255 - one, SAME) == 0
    assert agreement(one, 0.3 * one + 90, SAME) == pytest.approx(1, abs=1e-4)


def test_agreement_forgets_a_minority_of_other_tiles_and_weighs_by_contrast():
    """P22: 3 of 8 columns of tiles are another's; and plain cloth with nothing but grain counts for nothing."""
    one, other = noise(0), noise(1)
    mixed = one.copy()
    mixed[:, : 3 * SIDE // 8] = other[:, : 3 * SIDE // 8]
    assert agreement(one, mixed, SAME) > 0.99
    mixed[:, : 5 * SIDE // 8] = other[:, : 5 * SIDE // 8]
    assert agreement(one, mixed, SAME) < 0.2
    plain = [noise(seed) / 60 + 100 for seed in (2, 3)]
    for picture in plain:
        picture[:, 5 * SIDE // 8 :] = one[:, 5 * SIDE // 8 :]
    assert agreement(plain[0], plain[1], SAME) > 0.99
    assert agreement(one, one, numpy.column_stack([numpy.eye(2), [2, 2]])) == 0, "nothing overlaps"


def test_agreement_is_mutual_under_the_way_back(pieces):
    """P22: a cut-out laid on its whole, and the whole laid on the cut-out, at the size of the coarser one."""
    whole, part = (pixels_of(print_of(one)) for one in (pieces[0], cut(pieces[0], 0.1, 0.1, 0.1, 0.1)))
    there = numpy.column_stack([0.8 * numpy.eye(2), [0, 0]])
    back = numpy.column_stack([numpy.eye(2) / 0.8, [0, 0]])
    assert agreement(part, whole, there) == pytest.approx(agreement(whole, part, back), abs=1e-6)
    assert agreement(part, whole, there) > 0.95 > agreement(part, whole, SAME)


def test_a_map_is_put_into_words_by_its_nearest_turn():
    """P22."""
    tilt = numpy.array([[0.99, -0.1], [0.1, 0.99]])
    assert in_words(numpy.column_stack([tilt, [0, 0]])) == ""
    assert in_words(numpy.column_stack([tilt, [0.05, 0]])) == "shifted"
    assert in_words(numpy.column_stack([numpy.diag([0.8, -0.8]), [0.1, 0]])) == "mirrored, a cut-out"


def test_small_pictures_are_compared_with_as_little_detail():
    """P22: a fingerprint with the detail of 64 px is that of the picture made with 64 px; larger ones stay."""
    picture = Image.new("L", (400, 300), 40)
    pen = ImageDraw.Draw(picture)
    for place in range(0, 400, 12):
        pen.line((place, 0, 399 - place, 299), 230, 3)
    print_ = print_of(picture)
    assert with_detail_of(print_, SIDE) is print_ and with_detail_of(print_, 1024) is print_
    small = print_of(picture.resize((64, 48), Image.Resampling.LANCZOS)).astype(float)
    reduced = with_detail_of(print_, 64).astype(float)
    assert abs(reduced - small).mean() < 2 < abs(print_ - small).mean()
