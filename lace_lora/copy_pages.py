"""Pages to look at: everything that was made beside the learnt photograph most like it, with what is called a copy."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from lace_lora.copies import Picture, opened
from lace_lora.copy_check import memorised, short_name
from lace_lora.pictures import font_of, line_height, thumbnail, wrapped
from lace_lora.scores import CopyCheck, Nearest

PAIRS = 24  # a page, which must still be read on a phone
_COLUMNS, _TILE_PX, _FONT_PX, _GAP_PX, _EDGE_PX = 2, 250, 20, 16, 8
_PAPER, _INK, _NEW, _COPY = (246, 245, 242), (45, 45, 45), (225, 223, 218), (178, 34, 34)


def sheets(
    found: CopyCheck, open_made: Callable[[str], Picture], open_learnt: Callable[[str], Picture]
) -> Iterator[Image.Image]:
    """Every picture that was made beside the learnt photograph most like it, the most alike first; PAIRS a page.

    open_made, open_learnt  the picture of a name in the check, or its file; one that cannot be read says so
    """
    pages = -(-len(found.pairs) // PAIRS)
    for number in range(pages):
        pairs = found.pairs[number * PAIRS : (number + 1) * PAIRS]
        cards = [_card(pair, open_made(pair.made), open_learnt(pair.nearest)) for pair in pairs]
        rows = [cards[start : start + _COLUMNS] for start in range(0, len(cards), _COLUMNS)]
        head = "Left what was made, right the photograph most like it; the most alike first."
        page = f" Page {number + 1} of {pages}." if pages > 1 else ""
        yield _page([memorised(found), head + page], rows)


# -- inside --


def _page(head: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Cards in rows under a few sentences."""
    font = font_of(_FONT_PX)
    width = _COLUMNS * (rows[0][0].width + _GAP_PX) + _GAP_PX
    lines = [line for sentence in head for line in wrapped(sentence, font, width - 2 * _GAP_PX, 8)]
    top = 2 * _GAP_PX + len(lines) * line_height(font)
    heights = [max(card.height for card in row) + _GAP_PX for row in rows]
    page = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    _write(page, _GAP_PX, _GAP_PX, lines)
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            page.paste(card, (_GAP_PX + column * (card.width + _GAP_PX), top))
        top += height
    return page


def _card(pair: Nearest, made: Picture, learnt: Picture) -> Image.Image:
    """Two tiles side by side, and what is to be said of them; a copy is framed and called one."""
    font = font_of(_FONT_PX)
    width = 2 * _TILE_PX + 3 * _EDGE_PX
    verdict = f"COPY, likeness {pair.likeness:.2f}" if pair.is_copy else f"new, likeness {pair.likeness:.2f}"
    below = [
        *wrapped(f"{verdict}{': ' + pair.how if pair.is_copy and pair.how else ''}", font, width - 2 * _EDGE_PX),
        *wrapped(f"{short_name(pair.made)} | {short_name(pair.nearest)}", font, width - 2 * _EDGE_PX),
    ]
    card = Image.new(
        "RGB", (width, _TILE_PX + 2 * _EDGE_PX + len(below) * line_height(font)), _COPY if pair.is_copy else _NEW
    )
    for place, (name, picture) in enumerate(((pair.made, made), (pair.nearest, learnt))):
        image, _ = (picture, "") if isinstance(picture, Path | str) else opened(picture)
        tile = thumbnail(image or Path(name), _TILE_PX)
        left = _EDGE_PX + place * (_TILE_PX + _EDGE_PX)
        card.paste(tile, (left + (_TILE_PX - tile.width) // 2, _EDGE_PX + (_TILE_PX - tile.height) // 2))
    _write(card, _EDGE_PX, _TILE_PX + 2 * _EDGE_PX, below, "white" if pair.is_copy else _INK)
    return card


def _write(
    page: Image.Image, left: int, top: int, lines: Sequence[str], ink: str | tuple[int, int, int] = _INK
) -> None:
    font, pen = font_of(_FONT_PX), ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((left, top + number * line_height(font)), line, ink, font)
