"""Stopping without losing work: the first Ctrl-C, stop button or SIGTERM is noted, a second one stops at once."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Stop:
    """Whether somebody asked to stop."""

    asked: bool = False

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """The items, until somebody asks to stop."""
        for item in items:
            if self.asked:
                return
            yield item


@contextmanager
def on_request(
    say: Callable[[str], None], notice: str, hand_on: Callable[[], None] = lambda: None, stop: Stop | None = None
) -> Iterator[Stop]:
    """Note requests to stop inside the block, saying `notice`; the work ends where it loses nothing.

    hand_on  called once with the first request, where others must hear of it
    stop     where requests are noted; another thread may set it too

    An interrupt can otherwise land in the middle of a step or of a file. Outside the main thread, where Python delivers
    no signals, nothing changes.
    """
    stop = stop or Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        with suppress(RuntimeError, OSError):  # in the middle of another print, or nobody reads any more
            say(notice)
        hand_on()

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
