"""How many decimals show numbers that belong together, so that a small difference is not shown as none."""

import math
from collections.abc import Iterable

_MOST = 8


def decimals_of(values: Iterable[float | None], least: int = 2) -> int:
    """As many that none is shown as 0 only for being small, and that the ends of an interval are told apart.

    values  a number and the ends of its interval, or numbers of one row; None and 0 tell nothing
    least   as many at least; 0 where they are percents. Numbers of 1000 and more have none.
    """
    known = [value for value in values if value is not None]
    largest = max((abs(value) for value in known), default=0.0)
    if largest >= 1000:
        return 0
    needed = [least]
    if largest > 0:
        # Two digits of the largest number, of a percent one.
        needed.append(min(least, 1) - math.floor(math.log10(largest)))
        spread = max(known) - min(known)
        # The first digit of half of what the interval spans.
        needed += [math.ceil(-math.log10(spread / 2))] if spread > 0 else []
    return min(_MOST, max(needed))


def shown(value: float, decimals: int) -> str:
    """The number with so many decimals; what rounds to nothing has no sign."""
    return f"{value:z.{decimals}f}"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """ "0.62 (0.41 to 0.83)"; the number alone where it has no interval."""
    decimals = decimals_of((value, low, high))
    if low is None or high is None:
        return shown(value, decimals)
    return f"{shown(value, decimals)} ({shown(low, decimals)} to {shown(high, decimals)})"


def percent(value: float, low: float | None = None, high: float | None = None) -> str:
    """A share in percents: "62 %", or "62 %, between 41 and 83 %" where it has an interval."""
    ends = [None if one is None else 100 * one for one in (value, low, high)]
    decimals = decimals_of(ends, least=0)
    said = f"{shown(100 * value, decimals)} %"
    if low is None or high is None:
        return said
    return f"{said}, between {shown(100 * low, decimals)} and {shown(100 * high, decimals)} %"
