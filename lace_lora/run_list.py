"""The list of runs as a table, once or again and again, and clearing away what runs no longer need.

What can be asked of a person is asked only where one sits at a terminal.
"""

import sys
import textwrap
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TextIO

from lace_lora import config as declared
from lace_lora import leftovers
from lace_lora.errors import MachineError, RunError, SettingsError
from lace_lora.leftovers import Leftover
from lace_lora.runs import Job, Listing, look

COLUMNS = 100  # of a line
GAP = "  "
BAR_CELLS = 8
PLAIN = str.maketrans("█░…", "#.~")
MINUTE, HOUR, DAY = 60, 3600, 86400
EVERY_SECONDS = 3.0
# On Drive a look takes long: it may fill at most one part in six of the time.
REST = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Column:
    """One column: its title, what stands in it, and whether it is set to the right."""

    title: str
    text: Callable[[Job], str]
    is_right: bool = False


TABLE = (
    Column("run", lambda job: job.name),
    Column("state", lambda job: job.state),
    Column("progress", lambda job: bar(job.percent)),
    Column("left", lambda job: "" if job.eta_seconds is None else duration(job.eta_seconds), True),
    Column("val_loss", lambda job: "" if job.val_loss is None else f"{job.val_loss:.4f}", True),
    Column("style", lambda job: "" if job.style_match is None else f"{job.style_match:.2f}", True),
    Column("copies", lambda job: "" if job.copies is None else str(job.copies), True),
    Column("size", lambda job: "" if job.size_bytes is None else size(job.size_bytes), True),
    Column("changed", lambda job: ago(job.changed), True),
)


def table(listing: Listing, folder: str | Path) -> list[str]:
    """The list in lines of at most COLUMNS characters: a row a run, below it what is wrong, at the end the sum."""
    if listing.trouble:
        return textwrap.wrap(listing.trouble, COLUMNS)
    if not listing.jobs:
        return [f"No runs in {folder}."]
    return [*_rows(listing.jobs), "", *textwrap.wrap(_sum(listing, folder), COLUMNS)]


def show(
    folder: str | Path, names: Sequence[str] = (), *, watch: bool = False, clean: bool = False, yes: bool = False
) -> None:
    """What `lace-lora runs` does: print the list, keep it up to date, or clear away what runs no longer need.

    names  only these runs; all without any

    Raises SettingsError for switches that do not go together, RunError for a run that is not there or where nobody is
    here to be asked, MachineError where the folder cannot be read.
    """
    if watch and clean:
        raise SettingsError("Choose one of --watch and --clean.")
    if yes and not clean:
        raise SettingsError("--yes is the answer to what --clean asks. Add --clean.")
    if watch:
        keep_showing(lambda: _chosen(look(folder), names, folder), folder)
        return
    listing = _chosen(look(folder), names, folder)
    if listing.trouble:
        raise MachineError(listing.trouble)
    if clean:
        clear(listing.jobs, yes=yes)
    else:
        for line in table(listing, folder):
            _print(line, sys.stdout)


def clear(jobs: Sequence[Job], *, yes: bool = False, say: Say = print, ask: Callable[[str], str] | None = None) -> None:
    """List what can go with its size, ask, and delete it; nothing of a run that is under way.

    yes  delete without asking
    ask  puts a question and returns the answer; without it, a person at the terminal

    Raises RunError where there is something to delete, `yes` is not given and nobody is here to be asked.
    """
    found, notes = leftovers.find(jobs)
    for note in notes:
        say(note)
    if not found:
        say("Nothing to clear away.")
        return
    for line in _listed(found):
        say(line)
    total = size(sum(one.size_bytes for one in found))
    question = f"Delete these ({total})? Adapters, designs and reports stay. [y/N] "
    if not yes:
        if ask is None and not _is_somebody_here():
            raise RunError("Nothing was deleted, because nobody is here to be asked. Add --yes to delete these.")
        if (ask or input)(question).strip().casefold() not in ("y", "yes"):
            say("Nothing was deleted.")
            return
    freed, problems = leftovers.delete(found, say)
    for problem in problems:
        say(f"! {problem}")
    say(f"{size(freed)} freed.")


def keep_showing(
    looked: Callable[[], Listing],
    folder: str | Path,
    *,
    out: TextIO | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Show the list again every few seconds, until Ctrl-C or until nobody reads any more.

    On a terminal the table is written over itself. Elsewhere it is printed once, and then a line for each run that
    changed, with the time.
    """
    out = out or sys.stdout
    try:
        if out.isatty():
            _redraw(looked, folder, out, wait)
        else:
            _print_changes(looked, folder, out, wait)
    except (KeyboardInterrupt, BrokenPipeError):
        return


def bar(percent: float | None) -> str:
    """Progress such as "████░░░░  52%"; empty where nothing is known."""
    if percent is None:
        return ""
    done = int(percent * BAR_CELLS / 100)
    return f"{'█' * done}{'░' * (BAR_CELLS - done)} {int(percent):>3}%"


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min", "3 h 5 min" or "2 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * MINUTE:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 36 * HOUR:
        hours, minutes = divmod(round(seconds / MINUTE), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / DAY:.0f} days"


def size(number: float) -> str:
    """Bytes in units of a thousand, as file managers and Drive show them: "312 MB", "4.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.1f} {unit}" if number < 9.95 and unit != "B" else f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def ago(moment: float) -> str:
    """When something changed, seconds since 1970, as "just now", "4 min ago", "3 h ago", "2 days ago" or a date."""
    if not moment:
        return ""
    passed = time.time() - moment
    if passed < MINUTE:
        return "just now"
    if passed < HOUR:
        return f"{passed // MINUTE:.0f} min ago"
    if passed < DAY:
        return f"{passed // HOUR:.0f} h ago"
    if passed < 30 * DAY:
        days = int(passed // DAY)
        return f"{days} day{'s' * (days > 1)} ago"
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d")


# -- inside --


def _rows(jobs: Sequence[Job]) -> list[str]:
    """The titles, then a line a run, and below it what is wrong."""
    cells = [[column.text(job) for column in TABLE] for job in jobs]
    # A column in which nothing stands takes no room.
    shown = [place for place in range(len(TABLE)) if any(row[place] for row in cells)]
    widths = {place: max(len(TABLE[place].title), *(len(row[place]) for row in cells)) for place in shown}
    widths[0] = min(widths[0], COLUMNS - sum(widths[place] + len(GAP) for place in shown[1:]))
    lines = [_line([column.title for column in TABLE], widths)]
    for job, row in zip(jobs, cells, strict=True):
        lines.append(_line(row, widths))
        for problem in job.problems:
            lines += textwrap.wrap(f"! {problem}", COLUMNS, initial_indent="  ", subsequent_indent="    ")
    return lines


def _line(cells: Sequence[str], widths: dict[int, int]) -> str:
    texts = []
    for place, width in widths.items():
        text = cells[place] if len(cells[place]) <= width else f"{cells[place][: width - 1]}…"
        texts.append(f"{text:>{width}}" if TABLE[place].is_right else f"{text:<{width}}")
    return GAP.join(texts).rstrip()


def _sum(listing: Listing, folder: str | Path) -> str:
    count, busy = len(listing.jobs), sum(job.is_under_way for job in listing.jobs)
    total = size(sum(job.size_bytes or 0 for job in listing.jobs))
    text = f"{count} run{'s' * (count > 1)} in {folder}, {total}"
    text += f"; {busy} under way." if busy else "."
    return f"{text} Other folders there: {', '.join(listing.others)}." if listing.others else text


def _chosen(listing: Listing, names: Collection[str], folder: str | Path) -> Listing:
    if not names or listing.trouble:
        return listing
    known = {job.name for job in listing.jobs}
    for name in names:
        if name not in known:
            raise RunError(f"No run called {name!r} in {folder}{declared.nearest(name, known)}")
    return Listing(tuple(job for job in listing.jobs if job.name in names))


def _listed(found: Sequence[Leftover]) -> list[str]:
    lines = []
    for kind in dict.fromkeys(one.kind for one in found):
        same = [one for one in found if one.kind == kind]
        lines += textwrap.wrap(f"{kind}: {leftovers.KINDS[kind]}", COLUMNS)
        lines += [f"  {size(one.size_bytes):>7}  {one.run}/{one.name}" for one in same]
    return lines


def _is_somebody_here() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def _redraw(looked: Callable[[], Listing], folder: str | Path, out: TextIO, wait: Callable[[float], None]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            lines = table(looked(), folder)
            clock = datetime.now().astimezone().strftime("%H:%M:%S")
            live.update(Text("\n".join([*lines, f"{clock}  Ctrl-C ends the watching; the runs go on."])), refresh=True)
            wait(max(EVERY_SECONDS, REST * (time.monotonic() - began)))


def _print_changes(
    looked: Callable[[], Listing], folder: str | Path, out: TextIO, wait: Callable[[float], None]
) -> None:
    before: dict[str, Job] = {}
    trouble, is_first = "", True
    while True:
        began = time.monotonic()
        listing = looked()
        now = {job.name: job for job in listing.jobs}
        if is_first:
            lines = table(listing, folder)
        else:
            news = [job for job in listing.jobs if job.name not in before or _is_news(before[job.name], job)]
            lines = _rows(news)[1:] if news else []
            lines += [f"{name} is gone" for name in before if name not in now and not listing.trouble]
            lines += [listing.trouble] if listing.trouble not in ("", trouble) else []
        clock = datetime.now().astimezone().strftime("%H:%M:%S")
        for line in lines:
            _print(line if is_first else f"{clock}  {line}", out)
        before, trouble, is_first = before if listing.trouble else now, listing.trouble, False
        wait(max(EVERY_SECONDS, REST * (time.monotonic() - began)))


def _is_news(before: Job, now: Job) -> bool:
    """Whether a row says something new; the time that passes alone does not."""
    passing = {"eta_seconds": None, "changed": 0.0, "size_bytes": None, "loss": None, "updated": "", "step": 0}
    is_further = int(before.percent or 0) != int(now.percent or 0)
    return is_further or replace(before, **passing) != replace(now, **passing)  # type: ignore[arg-type]


def _print(line: str, out: TextIO) -> None:
    """A line, in signs that the stream can write: a file on Windows may know no blocks."""
    try:
        line.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        line = line.translate(PLAIN).encode(out.encoding, "replace").decode(out.encoding)
    print(line, file=out, flush=True)
