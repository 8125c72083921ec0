"""What a page about a run is built of: safe text, numbers that tell where they come from, pictures within a budget.

Nothing here trusts what a run's files hold: a value of any kind becomes text of bounded length, a picture that cannot
be read becomes a small note. The page that comes of it needs no script and loads nothing.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora.decimals import decimals_of as decimals_of  # of all numbers on a page
from lace_lora.decimals import shown as _rounded
from lace_lora.errors import LaceError
from lace_lora.file_names import printable
from lace_lora.image_files import read_picture

LONGEST = 600  # signs of one text on the page
MOST_ITEMS = 40  # of a list in one cell
MOST_FILE_BYTES = 64 * 2**20  # of a text file of a run that is read for the page: a log of a million steps is smaller
# A page is mailed as it is: 4.3 MB of pictures are 5.8 MB as text, below the 10 MB that every mailbox takes.
PICTURE_BYTES = 4_300_000
SMALLEST_BYTES = 20_000  # with less left, a picture is named instead
_QUALITIES = (88, 80, 72, 62)
_SMALLER = (1.0, 0.8, 0.64, 0.5, 0.4, 0.25)  # of the widest, tried in this order
MARKS = {"good": "Good", "closer": "Look closer", "problem": "Problem"}
_SIGNS = {  # drawn in a circle of 24: a tick, a lens, an exclamation mark
    "good": '<path d="M7 12.5l3.4 3.5L17 8.6"/>',
    "closer": '<circle cx="11" cy="11" r="4"/><path d="M14 14l3.4 3.4"/>',
    "problem": '<path d="M12 6.4v7.2M12 16.8v.8"/>',
}

STYLE = """
:root { color-scheme: light dark; --ink: #23201c; --paper: #fbf8f2; --card: #f3eee3; --line: #d3c9b8; --soft: #635b50;
  --accent: #7a3b3b; --good: #2c6135; --closer: #7d5200; --problem: #a02318 }
@media (prefers-color-scheme: dark) { :root { --ink: #eee7db; --paper: #1d1b19; --card: #282521; --line: #4b453d;
  --soft: #b3a999; --accent: #e0adad; --good: #93cf9c; --closer: #e9bd6b; --problem: #ff9d8f } }
* { box-sizing: border-box }
body { font: 16px/1.55 Georgia, "Times New Roman", serif; color: var(--ink); background: var(--paper);
  max-width: 66rem; margin: 0 auto; padding: 1.5rem; overflow-wrap: anywhere; -webkit-text-size-adjust: 100% }
h1 { font-weight: normal; margin: 0 0 .2rem; line-height: 1.2 }
h2 { font-weight: normal; color: var(--accent); margin: 2.4rem 0 .5rem; border-bottom: 1px solid var(--line) }
h3 { font-weight: normal; font-size: 1.1rem; margin: 1.4rem 0 .3rem }
p, ul, ol { margin: .5rem 0 } ul, ol { padding-left: 1.4rem }
.soft, figcaption { color: var(--soft); font-size: .92rem }
.source { color: var(--soft); font-size: .8rem; margin: .5rem 0 0 } code { font: .92em/1.4 ui-monospace, monospace }
.note { border-left: 3px solid var(--line); padding-left: .7rem; color: var(--soft); font-size: .92rem }
nav a { display: inline-block; padding: .25rem .8rem .25rem 0; color: var(--accent) }
figure { margin: .8rem 0 } figcaption { margin-top: .2rem }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line) }
.verdict { background: var(--card); border: 1px solid var(--line); border-left: 6px solid; padding: .8rem 1rem;
  margin: 1.2rem 0 } .verdict p { color: var(--ink) } .verdict p.source { color: var(--soft) }
.verdict .mark { display: flex; align-items: center; gap: .5rem; margin: 0 0 .4rem; font-size: 1.25rem; color: inherit }
.mark svg { flex: none; width: 1.7em }
.good { color: var(--good) } .closer { color: var(--closer) } .problem { color: var(--problem) }
table { border-collapse: collapse; width: 100%; font-size: .95rem; margin: .5rem 0 }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: normal } thead th { color: var(--soft); font-size: .85rem }
td.number { font-variant-numeric: tabular-nums } tr.advised { background: var(--card) }
table.scores { table-layout: fixed } .scores th:nth-child(1) { width: 23% } .scores th:nth-child(2) { width: 19% }
.scores th:nth-child(3) { width: 23% } table.settings { table-layout: fixed } .settings th:nth-child(1) { width: 27% }
 svg.bar { display: block; width: 100%; max-width: 14rem; color: var(--accent) }
svg.bar text { font: 10px/1 Georgia, serif; fill: var(--soft) } data { white-space: nowrap }
table.facts { width: auto } table.facts th { color: var(--soft); white-space: nowrap }
details { margin: .6rem 0; border-top: 1px solid var(--line) } summary { cursor: pointer; padding: .5rem 0 }
.side { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)) }
@media (max-width: 40rem) { body { padding: 1rem } table.wide thead { display: none }
  table.wide tr { display: block; padding: .5rem .4rem; border-bottom: 1px solid var(--line) }
  table.wide th, table.wide td { display: block; width: auto; border: 0; padding: .1rem 0 }
  table.wide th[scope] { font-weight: bold; width: auto } table.facts th { white-space: normal }
  table.wide td:not([data-name=""], :empty)::before { content: attr(data-name) ": "; color: var(--soft);
  font-size: .85rem }
  figure.long div { overflow-x: auto } figure.long img { max-width: none; height: 11rem; width: auto } }
@media print { :root { --ink: #000; --paper: #fff; --card: #fff; --line: #bbb; --soft: #444; --accent: #5a2a2a;
  --good: #1d4a25; --closer: #5f3e00; --problem: #8c1a10; color-scheme: light }
  body { max-width: none; padding: 0; font-size: 11pt } nav { display: none }
  figure, tr, .verdict { break-inside: avoid }
  h2, h3 { break-after: avoid } img { max-height: 23cm; width: auto } }
"""
# No script runs and nothing is fetched, whatever stands in a name or a prompt.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


# -- text and numbers --


def text(value: Any, longest: int = LONGEST) -> str:
    """Any value as one line of HTML text of bounded length; nothing in it is taken for HTML."""
    return escape(plain(value, longest), quote=True)


def plain(value: Any, longest: int = LONGEST) -> str:
    """The same as plain text."""
    if value is None or value == "" or value == [] or value == ():
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        more = ", …" if len(value) > MOST_ITEMS else ""
        return _short(", ".join(_inner(one, longest) for one in value[:MOST_ITEMS]) + more, longest)
    if isinstance(value, Mapping):
        items = list(value.items())[:MOST_ITEMS]
        return _short(", ".join(f"{plain(name, 80)}: {_inner(one, longest)}" for name, one in items), longest)
    return _short(str(value)[: 4 * longest], longest)


def measured(value: Any) -> float | None:
    """A number as it stands in a file, or None for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def number(value: Any, decimals: int | None = None) -> str:
    """A number as HTML: rounded to read, and whole in the element's value, so that it can be traced to its file."""
    found = measured(value)
    if found is None:
        return text(value, 80)
    shown = (
        f"{value:,}"
        if isinstance(value, int)
        else _rounded(found, decimals_of([found]) if decimals is None else decimals)
    )
    return f'<data value="{value!r}">{shown}</data>'


def with_interval(value: Any, low: Any, high: Any, at_least: int = 0) -> str:
    """A number and its interval in words, as far as there is one; with `at_least` so many decimals."""
    decimals = max(at_least, decimals_of([measured(value), measured(low), measured(high)]))
    said = number(value, decimals)
    if measured(low) is None or measured(high) is None:
        return said
    return f"{said} <span class='soft'>({number(low, decimals)} to {number(high, decimals)})</span>"


# -- pieces of the page --


def page(title: str, body: str) -> str:
    """A whole page. It holds its style; a policy keeps every browser from fetching or running anything."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def source(*files: str) -> str:
    """The small line that says from which files of the run the numbers above come."""
    listed = ", ".join(f"<code>{text(name, 120)}</code>" for name in files)
    return f"<p class='source'>from {listed}</p>"


def note(words: str) -> str:
    """A small remark, such as why something is left out."""
    return f"<p class='note'>{text(words)}</p>"


def paragraph(words: Any, kind: str = "") -> str:
    """One sentence or more, beginning with a capital letter."""
    said = plain(words)
    return f"<p{f' class={kind!r}' if kind else ''}>{escape(said[:1].upper() + said[1:], quote=True)}</p>"


def fold(summary: str, body: str) -> str:
    """What is opened by a click or a touch; nothing where there is nothing to see."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>" if body else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names with what they are, as HTML, one below the other."""
    body = "".join(f"<tr><th scope='row'>{text(name, 120)}</th><td>{value}</td></tr>" for name, value in rows)
    return f"<table class='facts'>{body}</table>" if body else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], advised: Iterable[int] = (), kind: str = "") -> str:
    """A table of HTML cells; on a phone each row becomes a block that names its cells, but those of a column "".

    advised  numbers of rows, from 0, that are set off
    kind     a class of the style
    """
    off = frozenset(advised)
    names = [text(name, 80) if name else "" for name in columns]
    body = ""
    for place, (first, *cells) in enumerate(rows):
        named = zip(names[1:], cells, strict=True)
        other = "".join(f"<td data-name='{name}'>{cell}</td>" for name, cell in named)
        body += f"<tr{' class=advised' if place in off else ''}><th scope='row'>{first}</th>{other}</tr>"
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    return f"<table class='wide {kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def mark(kind: str) -> str:
    """A sign with its word, so that no colour alone says it; `kind` is one of MARKS."""
    return (
        f"<p class='mark {kind}'><svg viewBox='0 0 24 24' aria-hidden='true' fill='none' stroke='currentColor' "
        f"stroke-width='2' stroke-linecap='round'><circle cx='12' cy='12' r='10.5'/>{_SIGNS[kind]}</svg>"
        f"<strong>{MARKS[kind]}</strong></p>"
    )


def bar(value: float, low: float | None, high: float | None, axis: tuple[float, float]) -> str:
    """An interval as a stroke with its value as a dot, on an axis that tells its ends; the numbers stand beside it."""
    begin, end = axis
    left, right = 8.0, 192.0

    def place(number: float) -> float:
        return left + (number - begin) / (end - begin) * (right - left)

    ends = [one for one in (begin, end) if one == 0 or abs(one) > (end - begin) / 8]  # others would lie on the 0
    ticks = sorted({0.0, *ends})
    drawn = [f'<path d="M{left} 12H{right}" stroke="var(--line)" stroke-width="1.5"/>']
    for tick in ticks:
        anchor = "start" if place(tick) < 20 else "end" if tick == end else "middle"
        drawn.append(f'<path d="M{place(tick):.2f} 7v10" stroke="var(--line)" stroke-width="1.5"/>')
        drawn.append(f'<text x="{place(tick):.2f}" y="30" text-anchor="{anchor}">{tick:g}</text>')
    if low is not None and high is not None:
        drawn.append(
            f'<path class="interval" d="M{place(low):.2f} 12H{place(high):.2f}" stroke="currentColor" '
            'stroke-width="4" stroke-opacity="0.55" stroke-linecap="round"/>'
        )
    drawn.append(f'<circle cx="{place(value):.2f}" cy="12" r="5" fill="currentColor"/>')
    return f"<svg class='bar' viewBox='0 0 200 33' aria-hidden='true'>{''.join(drawn)}</svg>"


class Pictures:
    """The pictures of one page, which share out what the whole page may weigh."""

    def __init__(self, root: Path, most_bytes: int = PICTURE_BYTES) -> None:
        self._root, self._left = root, most_bytes

    def figure(
        self, path: Path, caption: str, widest_px: int = 1600, most_bytes: int = 500_000, is_named: bool = True
    ) -> str:
        """A picture with its caption and (is_named) its file's name, made as small as it must be.

        A file that is not there gives nothing; one that cannot be read, or for which no room is left, its name.
        """
        name = self.name_of(path)
        if path.is_symlink() or not path.is_file():  # a link could bring in anything from this computer
            return ""
        opened = read_picture(path, enough_px=widest_px // 2)
        if opened.image is None:
            return note(f"The picture {name} is left out: {opened.fault}.")
        found = encoded(opened.image, widest_px, min(most_bytes, self._left))
        if found is None:
            return note(f"{plain(caption)}: see {name}; with it this page would be too large to mail.")
        data, (width, height) = found
        self._left -= len(data)
        said = text(caption)
        file = f" · <code>{text(name, 120)}</code>" if is_named else ""
        long = " class='long'" if width > 2.2 * height else ""  # on a phone it is moved sideways within its frame
        return (
            f"<figure{long}><div><img alt='{said}' width='{width}' height='{height}' "
            f"src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'></div>"
            f"<figcaption>{said}{file}</figcaption></figure>"
        )

    def name_of(self, path: Path) -> str:
        """A file by its place within the run: where the run lies is nobody's business."""
        return printable(path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else path.name)


def encoded(picture: Image.Image, widest_px: int, most_bytes: int) -> tuple[bytes, tuple[int, int]] | None:
    """A JPEG of at most that many bytes, and its size in px: first of less quality, then smaller.

    None where even the smallest is too large.
    """
    if most_bytes < SMALLEST_BYTES:
        return None
    for part in _SMALLER:
        small = picture.convert("RGB")
        small.thumbnail((round(widest_px * part), round(4 * widest_px * part)), Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            data = io.BytesIO()
            small.save(data, "JPEG", quality=quality, optimize=True, progressive=True)
            if data.tell() <= most_bytes:
                return data.getvalue(), small.size
            if data.tell() > 2 * most_bytes:  # the lowest quality halves a file
                break
    return None


# -- what the run's files hold --


def part(what: str, build: Callable[[], str], root: Path) -> str:
    """A part of the page, or a note that it is left out: one broken file must not take the whole page with it.

    root  of the run, which is taken out of messages: where it lies is nobody's business
    """
    try:
        return build()
    except LaceError as error:
        return note(f"{what} is left out: {str(error).replace(f'{root}/', '')}")
    except Exception as error:  # what stands in a run's files may be of any kind
        return note(
            f"{what} is left out: what the run's files hold of it cannot be understood ({type(error).__name__})."
        )


def read_object(path: Path) -> dict[str, Any]:
    """The names and values of a JSON file; empty where it is not there or holds something else."""
    try:
        found = json.loads(_read(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file that are objects; empty where it is not there."""
    rows = []
    try:
        lines = _read(path).split("\n")
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _read(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(MOST_FILE_BYTES).decode("utf-8", "replace")


def _inner(value: Any, longest: int) -> str:
    """What stands in a list or a mapping; what is nested further is only told of."""
    return f"{len(value)} more" if isinstance(value, list | tuple | Mapping) else plain(value, longest)


def _short(value: str, longest: int) -> str:
    one_line = printable(" ".join(value.encode("utf-8", "replace").decode().split()))
    return one_line if len(one_line) <= longest else f"{one_line[: longest - 1].rstrip()}…"
