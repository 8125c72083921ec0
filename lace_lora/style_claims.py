"""What may be claimed of a style match and of a drift, from the number and its interval: decided once, for everybody.

The sentence beside the number, the verdict and the mark of the report all speak from this, so that none of them says
that the style was learnt where another says that little was.

A claim needs the number on its side of the mark, and an interval that does not reach far beyond that mark.
"""

from typing import Literal

# Of the way from the base model to lace that was never learnt from.
LEARNT, PARTLY = 0.5, 0.2
MOST_OF_PART = (LEARNT + 1) / 2  # an interval of "in part" ends below this: above, it may as well be learnt
MOST_OF_LITTLE = (PARTLY + LEARNT) / 2  # the same of "little"
LEAKS = 0.25  # of that way, which plain prompts may go before it disturbs
FEWEST_PROMPTS = 5  # with fewer that differ, nothing is known of other prompts

Style = Literal["away", "little", "not shown", "part", "learnt", "nearer", "cannot tell"]
Drift = Literal["untouched", "moved a little", "moved", "away", "cannot tell"]

# Marks of the report: of "learnt" it is good, of these a problem, of all others worth a closer look.
PROBLEMS: tuple[Style, ...] = ("away", "little")


def style(value: float, low: float | None, high: float | None) -> Style:
    """What a style match shows: 0 is the base model, 1 is lace that was never learnt from.

    away         further from the photographs than the base model
    little       not far, and surely not far; it may be nothing
    not shown    it may be nothing, and it may be much
    part         a part of the way
    learnt       half of the way or more
    nearer       nearer than lace that was never learnt from: look for copies
    cannot tell  surely something, but how much is open; or there is no interval

    low, high  its interval; None where there is none
    """
    if low is None or high is None:
        return "cannot tell"
    if high < 0:
        return "away"
    if low > 1:
        return "nearer"
    if value < PARTLY and high <= MOST_OF_LITTLE:
        return "little"
    if low <= 0:
        return "not shown"
    if value >= LEARNT and low >= LEARNT / 2:
        return "learnt"
    if PARTLY <= value < LEARNT and low >= PARTLY / 2 and high <= MOST_OF_PART:
        return "part"
    return "cannot tell"


def drift(value: float, low: float | None, high: float | None) -> Drift:
    """What the same number of prompts without the token shows.

    untouched       it may be nothing, and is surely not much
    moved a little  surely something, and surely not much
    moved           surely more than LEAKS
    away            surely, but away from the photographs
    cannot tell     it may be much, and it may be little or nothing; or there is no interval
    """
    if low is None or high is None:
        return "cannot tell"
    if high < 0:
        return "away"
    if low > LEAKS:
        return "moved"
    if high > LEAKS or low < -LEAKS:
        return "cannot tell"
    return "moved a little" if low > 0 else "untouched"


def only_these(prompts: int) -> str:
    """What must be said with numbers of so few prompts; empty where there are enough, or none is known."""
    if not 0 < prompts < FEWEST_PROMPTS:
        return ""
    these = "this one prompt" if prompts == 1 else f"these {prompts} prompts"
    return f"For {these} only: other prompts may differ."
