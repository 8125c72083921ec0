"""Things counted in words, and progress told in a few lines: what is done, the pace, what is left to wait for."""

from collections.abc import Callable
from time import perf_counter

LINES = 12  # at most, whatever the number of things


class Progress(str):
    """A line of progress that also knows its numbers, for a front-end that draws a bar in its place.

    what   is counted
    done   of `total` are finished
    """

    what: str
    done: int
    total: int

    @classmethod
    def of(cls, what: str, done: int, total: int, pace: str) -> "Progress":
        """Such as "drawn      3/10  0.4 s each  3 s left"."""
        line = cls(f"{what:<9} {done:>{len(str(total))}}/{total}  {pace}")
        line.what, line.done, line.total = what, done, total
        return line


def counted(count: int, one: str, more: str = "") -> str:
    """ "1 design", "3 designs"; `more` where the plural is not made by an s."""
    return f"{count} {one if count == 1 else more or one + 's'}"


def seconds_in_words(seconds: float) -> str:
    """ "40 s", "27 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def lines(say: Callable[[str], None], what: str, total: int, done: int = 0) -> Callable[[int], None]:
    """A counter that is told how many more are finished and says "what done/total" now and then."""
    began, first, every = perf_counter(), done, max(1, -(-total // LINES))

    def tell(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done // every > before // every or done == total:
            each = (perf_counter() - began) / (done - first)
            left = f"  {seconds_in_words(each * (total - done))} left" if done < total else ""
            say(Progress.of(what, done, total, f"{each:.1f} s each{left}"))

    return tell
