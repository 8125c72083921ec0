"""Progress told in a few lines, whatever the number of things: what is done, the pace, and what is left to wait for."""

from collections.abc import Callable
from time import perf_counter

LINES = 12  # at most, whatever the number of things


def lines(say: Callable[[str], None], what: str, total: int, done: int = 0) -> Callable[[int], None]:
    """A counter that is told how many more are finished and says "what done/total" now and then."""
    began, first, every = perf_counter(), done, max(1, -(-total // LINES))

    def tell(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done // every > before // every or done == total:
            each = (perf_counter() - began) / (done - first)
            left = f"  {each * (total - done):.0f} s left" if done < total else ""
            say(f"{what:<9} {done:>{len(str(total))}}/{total}  {each:.1f} s each{left}")

    return tell
