"""The page of problem pictures that a check leaves: each with its verdict, its name and the reasons below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from lace_lora.file_names import printable
from lace_lora.pictures import drawable, font_of, line_height, thumbnail, wrapped

COLUMNS = 5
_SIDE_PX, _GAP_PX, _EDGE_PX = 256, 14, 5
_FONT_PX, _NAME_LINES, _REASON_LINES = 15, 2, 5
_PAPER, _INK, _FRAME, _SOFT = (246, 245, 242), (45, 45, 45), (225, 223, 218), (110, 108, 104)
# Told apart by colour-blind people too (Okabe and Ito's vermilion, orange and blue), and by their words.
_BADGES = {"unusable": (213, 94, 0), "note": (180, 120, 0), "to look at": (0, 114, 178)}


@dataclass(frozen=True)
class Problem:
    """One picture of the page; `picture` is a file to show, or None where nothing of it can be shown."""

    picture: Path | None
    verdict: str
    name: str
    reasons: str


def problems_sheet(problems: Sequence[Problem], left_out: int = 0, columns: int = COLUMNS) -> Image.Image:
    """The pictures in rows, 256 px each way, with words below; a last line tells how many more there are.

    Raises ValueError where there are none.
    """
    if not problems:
        raise ValueError("a page of problems needs at least one; ask for none where there are none.")
    columns = min(columns, len(problems))
    rows = [problems[first : first + columns] for first in range(0, len(problems), columns)]
    drawn = [[_cell(problem) for problem in row] for row in rows]
    heights = [max(cell.height for cell in row) + _GAP_PX for row in drawn]
    foot_px = line_height(font_of(_FONT_PX)) + _GAP_PX if left_out else 0
    size = (columns * (_SIDE_PX + _GAP_PX) + _GAP_PX, sum(heights) + _GAP_PX + foot_px)
    page = Image.new("RGB", size, _PAPER)
    y = _GAP_PX
    for row, height in zip(drawn, heights, strict=True):
        for column, cell in enumerate(row):
            page.paste(cell, (_GAP_PX + column * (_SIDE_PX + _GAP_PX), y))
        y += height
    if left_out:
        words = f"and {left_out} more, all in check.json"
        ImageDraw.Draw(page).text((_GAP_PX, y), words, _INK, font_of(_FONT_PX))
    return page


def _cell(problem: Problem) -> Image.Image:
    """One picture in its frame, a coloured edge with the verdict, name and reasons below."""
    font = font_of(_FONT_PX)
    line_px = line_height(font)
    name = _lines(printable(problem.name), _NAME_LINES)
    reasons = _lines(problem.reasons, _REASON_LINES)
    height = _SIDE_PX + _EDGE_PX + 4 + line_px * (1 + len(name) + len(reasons))
    cell = Image.new("RGB", (_SIDE_PX, height), _PAPER)
    pen = ImageDraw.Draw(cell)
    pen.rectangle((0, 0, _SIDE_PX - 1, _SIDE_PX - 1), _FRAME)
    if problem.picture is None:
        pen.text((_SIDE_PX // 2, _SIDE_PX // 2), "cannot be shown", _SOFT, font, anchor="mm")
    else:
        small = thumbnail(problem.picture, _SIDE_PX)
        cell.paste(small, ((_SIDE_PX - small.width) // 2, (_SIDE_PX - small.height) // 2))
    colour = _BADGES.get(problem.verdict, _SOFT)
    pen.rectangle((0, _SIDE_PX, _SIDE_PX - 1, _SIDE_PX + _EDGE_PX - 1), colour)
    y = _SIDE_PX + _EDGE_PX + 2
    inks = [colour, *[_INK] * len(name), *[_SOFT] * len(reasons)]
    for line, ink in zip([problem.verdict, *name, *reasons], inks, strict=True):
        pen.text((0, y), line, ink, font)
        y += line_px
    return cell


def _lines(text: str, longest: int) -> list[str]:
    """The text in lines of a cell's width. A long name has no spaces, so it may break at any sign."""
    font = font_of(_FONT_PX)
    words = drawable(text, font).split(" ")
    broken = " ".join(part for word in words for part in _broken(word))
    return wrapped(broken, font, _SIDE_PX, longest)


def _broken(word: str) -> list[str]:
    """A word in parts that each fit into a cell's width."""
    font, parts = font_of(_FONT_PX), [""]
    for sign in word:
        if font.getlength(parts[-1] + sign) > _SIDE_PX:
            parts.append("")
        parts[-1] += sign
    return parts
