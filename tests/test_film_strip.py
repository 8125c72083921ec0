"""The film strip: a row a step, a column a prompt (L14)."""

import numpy
import pytest
from PIL import Image

from lace_lora.film_strip import GAP_PX, LABEL_PX, PAPER, film_strip


def test_rows_lie_below_each_other_and_prompts_in_columns() -> None:
    colours = [["red", "lime"], ["blue", "yellow"], ["black", "white"]]
    rows = [
        (f"step {100 * place}", [Image.new("RGB", (64, 64), one) for one in row]) for place, row in enumerate(colours)
    ]
    page = film_strip(rows, side_px=128)
    for number, row in enumerate(colours):
        for column, colour in enumerate(row):
            middle = (LABEL_PX + column * (128 + GAP_PX) + 64, GAP_PX + number * (128 + GAP_PX) + 64)
            assert page.getpixel(middle) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    label = numpy.asarray(page)[:, :LABEL_PX]
    assert (label != PAPER).any(axis=2).sum() > 100, "labels are written"


def test_small_pictures_grow_by_whole_pixels_and_shapes_are_kept() -> None:
    checks = Image.fromarray(numpy.indices((32, 48)).sum(0).astype(numpy.uint8) % 2 * 255).convert("RGB")
    page = numpy.asarray(film_strip([("step 0", [checks])], side_px=96))
    inside = page[GAP_PX + 16 : GAP_PX + 80, LABEL_PX : LABEL_PX + 96]
    assert numpy.array_equal(inside, numpy.asarray(checks).repeat(2, axis=0).repeat(2, axis=1))


def test_an_empty_strip_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        film_strip([("step 0", [])])
