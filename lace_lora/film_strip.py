"""Sample pictures over the course of a training on one page: a row a step, so that one prompt stands in one column."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from lace_lora.pictures import thumbnail

LABEL_PX, GAP_PX = 92, 8
PAPER, INK = (250, 249, 246), (40, 38, 36)


def film_strip(rows: Sequence[tuple[str, Sequence[Image.Image]]], side_px: int = 256) -> Image.Image:
    """Draw the rows below each other, each with its label on the left; pictures are made to fit squares of side_px.

    Raises ValueError where there is no picture at all.
    """
    columns = max((len(row) for _, row in rows), default=0)
    if not columns:
        raise ValueError("a film strip needs at least one picture.")
    step = side_px + GAP_PX
    page = Image.new("RGB", (LABEL_PX + columns * step + GAP_PX, len(rows) * step + GAP_PX), PAPER)
    pen = ImageDraw.Draw(page)
    for number, (label, row) in enumerate(rows):
        top = GAP_PX + number * step
        pen.text((GAP_PX * 2, top + side_px // 2), label, fill=INK, anchor="lm", font_size=15)
        for column, picture in enumerate(row):
            small = _fitting(picture, side_px)
            left = LABEL_PX + column * step + (side_px - small.width) // 2
            page.paste(small, (left, top + (side_px - small.height) // 2))
    return page


def _fitting(picture: Image.Image, side_px: int) -> Image.Image:
    """Small pictures are shown larger by whole pixels, so that they are not blurred; large ones as thumbnails."""
    times = side_px // max(picture.size)
    if times > 1:
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    return thumbnail(picture, side_px)
