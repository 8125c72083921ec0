"""Small charts of a set of numbers: an SVG without a script, and the same in words for terminals and screen readers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from lace_lora.counting import counted
from lace_lora.curves import ticks

WIDTH_PX, BAR_PX = 420, 20
BARS_AT_MOST = 14  # of named things
CELLS = 24  # that the longest bar takes in a line of text
_HEIGHT_PX, _LEFT, _RIGHT, _TOP, _BOTTOM = 190, 40, 14, 48, 36
_PAPER, _BAR, _MARKED, _GRID = "#fbfaf7", "#1f5f8b", "#b3541e", "#e4dfd6"
_STYLE = 'font-family="system-ui, sans-serif" font-size="12" fill="#3a3632"'

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Chart:
    """A chart as a cell shows it; where nobody draws it, its repr is the same in lines."""

    svg: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.svg


def beside(*charts: Chart) -> Chart:
    """Several as one: beside each other where there is room, their lines one below the other."""
    each = "".join(f"<div style='flex:0 1 {WIDTH_PX}px;min-width:260px'>{one.svg}</div>" for one in charts)
    held = f"<div style='display:flex;flex-wrap:wrap;gap:12px'>{each}</div>"
    return Chart(held, "\n\n".join(one.text for one in charts))


def histogram(
    values: Sequence[float], title: str, unit: str = "", mark: float | None = None, mark_words: str = "",
    what: str = "picture",
) -> Chart:  # fmt: skip
    """How many values fall where, in about a dozen equal steps between round numbers.

    mark  a value to draw a line at, with words for it; bars that begin below it have another colour
    what  one of what is counted
    """
    if not values:
        return _nothing(title)
    edges, counts = _binned(values, mark)
    tail = f" {unit}" if unit else ""
    said = (
        f"{title}: {counted(len(values), what)}, {_number(min(values))} to {_number(max(values))}{tail}, "
        f"half have {_number(median(values))}{tail} or more"
    )
    said += f"; {mark_words} at {_number(mark)}{tail}" if mark is not None else ""
    spans = [_span(low, high, _are_whole(values)) for low, high in zip(edges, edges[1:], strict=False)]
    top, bottom = _TOP, _HEIGHT_PX - _BOTTOM
    wide, tallest = (WIDTH_PX - _LEFT - _RIGHT) / len(counts), max(counts)
    body = [_text(_LEFT, 18, title, weight="bold")]
    for number, (low, count, span) in enumerate(zip(edges, counts, spans, strict=False)):
        height = (bottom - top) * count / tallest
        colour = _MARKED if mark is not None and low < mark else _BAR
        body.append(
            f'<rect x="{_LEFT + number * wide + 1:.1f}" y="{bottom - height:.1f}" width="{wide - 2:.1f}" '
            f'height="{height:.1f}" fill="{colour}"><title>{escape(span)}{escape(tail)}: {count}</title></rect>'
        )
    body += [_text(_LEFT - 6, top + 4, str(tallest), "end"), _text(_LEFT - 6, bottom + 4, "0", "end")]
    body.append(f'<line x1="{_LEFT}" x2="{WIDTH_PX - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="{_GRID}"/>')

    def place(value: float) -> float:
        return _LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (WIDTH_PX - _LEFT - _RIGHT)

    body += [_text(place(at), bottom + 16, _number(at), "middle") for at in ticks(edges[0], edges[-1], 5)]
    body.append(_text(WIDTH_PX - _RIGHT, bottom + 31, unit, "end"))
    if mark is not None:
        x, end = place(mark), "end" if place(mark) > WIDTH_PX / 2 else "start"
        line = f'y1="{top - 10}" y2="{bottom}" stroke="{_MARKED}" stroke-dasharray="4 3"'
        body += [f'<line x1="{x:.1f}" x2="{x:.1f}" {line}/>', _text(x, top - 14, f"{mark_words} {_number(mark)}", end)]
    return Chart(_svg(body, WIDTH_PX, _HEIGHT_PX, said), "\n".join([said, *_lines(spans, counts)]))


def bars(counts: Mapping[str, int], title: str) -> Chart:
    """How many there are of each name, in the order given; of more than BARS_AT_MOST the first ones."""
    if not counts:
        return _nothing(title)
    rows = list(counts.items())
    if len(rows) > BARS_AT_MOST:
        title, rows = f"{title} (and {len(rows) - BARS_AT_MOST} others)", rows[:BARS_AT_MOST]
    most, left = max(count for _, count in rows), 150
    body = [_text(8, 18, title, weight="bold")]
    for number, (name, count) in enumerate(rows):
        y, width = 30 + number * BAR_PX, (WIDTH_PX - left - 50) * count / (most or 1)
        shown = name if len(name) <= 22 else f"{name[:21]}…"
        body += [_text(left - 8, y + 13, shown, "end"), _text(left + width + 6, y + 13, str(count))]
        body.append(f'<rect x="{left}" y="{y + 2}" width="{width:.1f}" height="{BAR_PX - 5}" fill="{_BAR}"/>')
    said = f"{title}: " + ", ".join(f"{name} {count}" for name, count in rows)
    names, numbers = [name for name, _ in rows], [count for _, count in rows]
    return Chart(_svg(body, WIDTH_PX, 38 + len(rows) * BAR_PX, said), "\n".join([title, *_lines(names, numbers)]))


def colours(found: Sequence[Rgb], title: str, said: str) -> Chart:
    """Colours side by side, in the order given; `said` tells of them in words."""
    if not found:
        return _nothing(title)
    wide = (WIDTH_PX - 16) / len(found)
    body = [_text(8, 18, title, weight="bold")]
    body += [
        f'<rect x="{8 + number * wide:.2f}" y="30" width="{wide + 0.3:.2f}" height="60" fill="rgb{one}"/>'
        for number, one in enumerate(found)
    ]
    body.append(_text(8, 108, said))
    return Chart(_svg(body, WIDTH_PX, 120, f"{title}: {said}"), f"{title}: {said}")


# -- inside --


def _binned(values: Sequence[float], mark: float | None) -> tuple[list[float], list[int]]:
    """Edges of the steps, all multiples of one round number, and how many values lie in each; the last holds its end.

    Steps of whole numbers are at least 1. Where all values are the same there is one step around them.

    With a mark, the steps reach as far as it.
    """
    reach = [*values, *([mark] if mark is not None else [])]
    low, high = min(reach), max(reach)
    if high - low < 1e-9:
        return [low - 0.5, low + 0.5], [len(values)]
    inner = ticks(low, high, 12)
    step = inner[1] - inner[0] if len(inner) > 1 else high - low
    if _are_whole(values):
        step = max(1.0, step)
    first = math.floor(low / step + 1e-9) * step
    count = (
        math.floor((high - first) / step + 1e-9) + 1 if _are_whole(values) else math.ceil((high - first) / step - 1e-9)
    )
    edges = [first + number * step for number in range(count + 1)]
    counts = [0] * count
    for value in values:
        counts[min(count - 1, max(0, int((value - first) / step + 1e-9)))] += 1
    return edges, counts


def _span(low: float, high: float, are_whole: bool) -> str:
    """What lies in a step, in words; a step of whole numbers ends before the next one begins."""
    if are_whole:
        low, high = math.ceil(low), math.ceil(high) - 1
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def _are_whole(values: Sequence[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _lines(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    width, most = max(map(len, names)), max(counts) or 1
    digits = len(str(most))
    return [
        f"  {name:>{width}}  {count:>{digits}}  {'■' * -(-CELLS * count // most)}".rstrip()
        for name, count in zip(names, counts, strict=True)
    ]


def _nothing(title: str) -> Chart:
    words = f"{title}: nothing to show"
    return Chart(_svg([_text(8, 18, words)], WIDTH_PX, 30, words), words)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" {_STYLE}>{escape(words)}</text>'
    )


def _svg(body: Sequence[str], width_px: int, height_px: int, said: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px} {height_px}" role="img" '
    paper = f'<rect width="{width_px}" height="{height_px}" rx="6" fill="{_PAPER}"/>'
    around = f'style="max-width:{width_px}px;width:100%" aria-label="{escape(said)}"'
    return f"{head}{around}>{paper}{''.join(body)}</svg>"
