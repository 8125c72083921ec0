"""Which pictures are line drawings, and the drawings that the example draws (P4)."""

import csv
import hashlib
import io

import numpy
import pytest
from PIL import Image, ImageDraw, ImageFilter

from lace_lora import patent_example, patent_recipe
from lace_lora.demo import mechanism
from lace_lora.demo.mechanism import HOLES, KINDS, Part, drawing
from lace_lora.errors import SettingsError
from lace_lora.line_drawings import faults, measured

RECIPE = patent_recipe.read()


def lines(ink="black", ground="white", width=3) -> Image.Image:
    picture = Image.new("RGB", (200, 100), ground)
    ImageDraw.Draw(picture).line((0, 50, 199, 50), fill=ink, width=width)
    return picture


def told(picture) -> str:
    return "; ".join(faults(measured(picture, RECIPE), RECIPE))


def test_shares_are_those_that_were_drawn():
    """P4: by hand: 10 rows of 100 black, 5 of a grey, 2 of red."""
    picture = lines(width=1)
    pixels = numpy.asarray(picture).copy()
    pixels[:] = 255
    pixels[:10], pixels[10:15], pixels[15:17] = 0, 160, (255, 0, 0)
    found = measured(Image.fromarray(pixels), RECIPE)
    assert (found.colour, found.grey) == (pytest.approx(0.02), pytest.approx(0.05))
    assert found.ink == pytest.approx(0.12)  # red has a luminance of 76
    assert found.darkness == 0


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (lines(), ""), (lines("red"), "3.0% of it is in colour (0.5% at most)"), (lines("white"), "it is nearly empty"),
        (lines((120, 120, 120)), "its lines are pale (luminance 120, 90 at most): scan it darker"),
        (lines(width=60), "of it is dark (40% at most): is it a photograph?"),
        (lines(ground=(180, 180, 180)), "97% of it is grey (10% at most): scan it in black and white"),
        (lines(width=9).filter(ImageFilter.GaussianBlur(6)), "% of it is grey"),
    ],
)  # fmt: skip
def test_what_is_no_line_drawing_is_told_with_what_to_do(picture, said):
    """P4: colour, pale lines, grey paper, blur, nothing at all, and too much."""
    assert said in told(picture) and bool(said) == bool(told(picture))


def test_a_large_drawing_is_judged_as_a_small_one():
    """P4: scaling down makes no grey."""
    picture = drawing(Part("ring nut", numerals=(10, 12)), side=4000).convert("RGB")
    assert told(picture) == "" and measured(picture, RECIPE).grey == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hole", HOLES)
def test_every_part_is_a_line_drawing_inside_its_paper(kind, hole):
    """P4: black and white alone, an empty margin, another number another drawing."""
    picture = drawing(Part(kind, 5, hole, (10, 24)), side=200)
    assert picture.mode == "1" and told(picture.convert("RGB")) == ""
    ink = ~numpy.asarray(picture)
    assert not ink[:4].any() and not ink[-4:].any() and not ink[:, :4].any() and not ink[:, -4:].any()
    assert (numpy.asarray(drawing(Part(kind, 4, hole, (10, 24)), side=200)) != numpy.asarray(picture)).any()


def test_a_star_wheel_has_as_many_teeth_as_are_asked_for():
    """P4: counted on a circle between its tips and its notches."""
    for count in (5, 7, 9):
        ink = ~numpy.asarray(drawing(Part("star wheel", count, "none"), side=800))
        angles = numpy.linspace(0, 2 * numpy.pi, 600)
        x, y = 400 + 800 * 0.27 * numpy.sin(angles), 400 - 800 * 0.27 * numpy.cos(angles)
        on_line = ink[y.round().astype(int), x.round().astype(int)]
        assert int((on_line & ~numpy.roll(on_line, 1)).sum()) == 2 * count  # each tooth has two flanks


def test_parts_that_cannot_be_drawn_are_refused():
    """P4."""
    with pytest.raises(ValueError, match="cannot be drawn; kinds are star wheel"):
        drawing(Part("tea pot"))
    for name in ("tea-pot.png", "star-wheel_many_round.png"):
        with pytest.raises(SettingsError, match="is no drawing of the example"):
            patent_example.part_of(name)


def test_the_example_draws_every_reference_once_and_the_same_again(tmp_path):
    """P4, P30: 55 drawings, all different, equal bytes the second time; what is there is left alone."""
    file = patent_example.write(tmp_path / "a", side=96)
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    names = [row["reference_path"] for row in rows if row["reference_path"]]
    digests = {hashlib.sha256((file.parent / name).read_bytes()).hexdigest() for name in names}
    assert len(names) == len(digests) == 55
    again = patent_example.write(tmp_path / "b", side=96)
    assert all((again.parent / name).read_bytes() == (file.parent / name).read_bytes() for name in names)
    file.write_text("mine", encoding="utf-8")
    assert patent_example.write(tmp_path / "a", side=96).read_text(encoding="utf-8") == "mine"
    assert mechanism.SIDE == 384
