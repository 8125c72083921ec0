"""Which checkpoint to take: none that copies, then the earliest that is as good on held-out pictures as the best.

"As good" is within one standard error: the noise of the looks is fixed, so what one picture's loss says of two
checkpoints can be subtracted, and the standard error is that of these differences.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lace_lora.curves import JITTER

COPIES_AT_MOST = 0  # among the pictures looked at of a checkpoint that may be taken


@dataclass(frozen=True)
class Row:
    """One step of the training that can be chosen, or could have been.

    val_loss    mean loss on held-out pictures; None where nobody looked at that step
    low, high   val_loss one standard error (of its difference to the lowest) down and up; None for the lowest
    looked_at   pictures of this checkpoint that were compared with what was learnt; 0 where none were
    copies      how many of these are copies; None where none were looked at
    is_kept     whether its checkpoint, or the finished adapter, is still there
    """

    step: int
    val_loss: float | None
    low: float | None
    high: float | None
    looked_at: int
    copies: int | None
    is_kept: bool
    is_lowest: bool = False
    is_advised: bool = False


@dataclass(frozen=True)
class Choice:
    """What to take, and why.

    advice     a sentence or two
    step       the step to take, None where nothing can be advised
    finalists  two steps to put before somebody blind; empty where there are no two
    """

    advice: str
    step: int | None
    finalists: tuple[int, ...]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """For Evaluation.choice."""
        return asdict(self)


def choose(
    looks: Sequence[Mapping[str, Any]], kept: Collection[int], looked_at: Mapping[int, Sequence[bool]]
) -> Choice:
    """Which checkpoint to take.

    looks      rows of log.jsonl with step, val_loss and val_losses
    kept       steps of the checkpoints that are there, and of the finished adapter
    looked_at  of each step, whether each picture of it that was compared is a copy
    """
    rows = _rows(looks, kept, looked_at)
    may_be = [row for row in rows if (row.copies or 0) <= COPIES_AT_MOST]
    lowest = next((row for row in rows if row.is_lowest), None)
    here = [row for row in may_be if row.is_kept]
    copying = [row for row in rows if (row.copies or 0) > COPIES_AT_MOST]
    if not here:
        return Choice(
            "Every checkpoint that is kept copies photographs. Train again under another run_name with fewer steps, "
            "more photographs or a lower rank.",
            None, (), rows,
        )  # fmt: skip
    good = [row for row in here if _is_as_good(row, rows)]
    if lowest is None or not good:
        taken = here[-1]
        copies = " and copies nothing" if taken.looked_at else ""
        advice = (
            f"Take step {taken.step}, the last that is kept{copies}. "
            + ("No held-out pictures were looked at, so compare the checkpoints by eye: lace-lora grid."
               if lowest is None else
               f"None that is kept is as good on held-out pictures as step {lowest.step} was.")
        )  # fmt: skip
    else:
        taken = good[0]
        advice = _advice(taken, lowest, [row for row in may_be if _is_as_good(row, rows)][0], rows)
    if unseen := [row.step for row in here if row.val_loss is None and lowest is not None]:
        advice += f" {_steps(unseen)} kept, but nobody looked at held-out pictures there (validate_every)."
    if not taken.looked_at:
        advice += " No pictures of it were compared with the photographs."
    if copying:
        whose = "them" if len(copying) > 1 else "it"
        advice += f" {_steps([row.step for row in copying])} not to be taken: pictures of {whose} are copies."
    rows = tuple(_marked(row, taken.step) for row in rows)
    return Choice(advice, taken.step, _finalists(taken, lowest, here), rows)


def _rows(
    looks: Sequence[Mapping[str, Any]], kept: Collection[int], looked_at: Mapping[int, Sequence[bool]]
) -> tuple[Row, ...]:
    seen = {int(look["step"]): look for look in looks if look["step"] > 0 and look.get("val_loss") is not None}
    best = min(seen.values(), key=lambda look: (look["val_loss"], look["step"]), default=None)
    rows = []
    for step in sorted({*seen, *kept}):
        look = seen.get(step)
        error = _standard_error(look, best) if look and best and look is not best else None
        loss = None if look is None else float(look["val_loss"])
        found = looked_at.get(step, ())
        rows.append(
            Row(
                step, loss,
                None if loss is None or error is None else loss - error,
                None if loss is None or error is None else loss + error,
                len(found), sum(found) if found else None, step in kept, best is not None and step == best["step"],
            )
        )  # fmt: skip
    return tuple(rows)


def _standard_error(look: Mapping[str, Any], best: Mapping[str, Any]) -> float:
    """Of the mean difference of a look to the best, picture by picture; where a log does not tell, the usual jitter."""
    one, other = look.get("val_losses") or (), best.get("val_losses") or ()
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
    if len(one) != len(other) or len(pairs) < 2:
        return JITTER * float(best["val_loss"])
    differences = [a - b for a, b in pairs]
    mean = sum(differences) / len(differences)
    spread = sum((one - mean) ** 2 for one in differences) / (len(differences) - 1)
    return math.sqrt(spread / len(differences))


def _is_as_good(row: Row, rows: Sequence[Row]) -> bool:
    lowest = next((one for one in rows if one.is_lowest), None)
    if lowest is None or lowest.val_loss is None or row.val_loss is None:
        return False
    return row.is_lowest or (row.low is not None and row.low <= lowest.val_loss)


def _advice(taken: Row, lowest: Row, earliest: Row, rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        why = "it is the only one that there is"
    elif taken.step == lowest.step:
        why = "it has the lowest loss on held-out pictures, and none before it is as good"
    else:
        why = f"the earliest that is kept and as good on held-out pictures as step {lowest.step}, the lowest"
    advice = f"Take step {taken.step}: {why}."
    if earliest.step < taken.step:
        advice += (
            f" Step {earliest.step} would have done already, but its checkpoint was deleted; "
            "checkpoints_to_keep says how many stay."
        )
    return advice


def _finalists(taken: Row, lowest: Row | None, here: Sequence[Row]) -> tuple[int, ...]:
    """The advised one, and the one that a person may well like better: the lowest, else the last, else the one before.

    Only among those that are kept and copy nothing.
    """
    others = [row for row in here if row.step != taken.step]
    if not others:
        return ()
    wanted = [row for row in others if lowest is not None and row.step == lowest.step]
    return taken.step, (wanted or others)[-1].step


def _marked(row: Row, step: int) -> Row:
    return Row(**{**asdict(row), "is_advised": row.step == step})


def _steps(steps: Sequence[int]) -> str:
    named = ", ".join(map(str, steps[:-1])) + f" and {steps[-1]}" if len(steps) > 1 else str(steps[0])
    return f"Step{'s' * (len(steps) > 1)} {named} {'are' if len(steps) > 1 else 'is'}"
