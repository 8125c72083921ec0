"""Is what was made new, or a copy of what was learnt? The threshold, the check and the verdict in words.

What is called a copy is measured, not agreed on: what is more like something learnt than anything unseen is, by a
margin. Nothing here knows of pictures: whatever has a likeness of 0 to 1 can be asked the same.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from lace_lora import unseen
from lace_lora.scores import CopyCheck, Nearest

MARGIN = 0.2  # of the way from the highest unseen likeness to 1


def threshold(unseen_likeness: Sequence[float], floor: float) -> float:
    """Above it, something made is called a copy: a little above all that anything unseen reached, or the floor.

    Of new things 1 in n + 1 lies above the highest of n unseen ones, on average; 4 of 100 did in one run: the margin.
    """
    return max(floor, (1 - MARGIN) * max([0.0, *unseen_likeness]) + MARGIN)


def check(
    made: Sequence[str],
    nearest: Sequence[str],
    likeness: Sequence[float],
    unseen_likeness: Sequence[float],
    *,
    floor: float,
    compares: str,
    calibrated_on: int | None = None,
    how: Sequence[str] = (),
    feature_distance: Sequence[float] = (),
) -> CopyCheck:
    """What was made beside what it is most like, the most alike first, with those called copies that are more alike
    than anything unseen was.

    made, nearest, likeness  one each: a name, the name of the nearest thing learnt, how alike they are
    unseen_likeness          how alike things that were not learnt are to the nearest thing learnt
    floor                    below it nothing is called a copy
    compares                 what the likeness compares, in words
    calibrated_on            as how many the unseen count; None is all of them. Fewer where they are not independent
    how, feature_distance    one each, where they are known: see scores.Nearest

    Raises ValueError where there is not one of each.
    """
    limit = threshold(unseen_likeness, floor)
    hows = how or [""] * len(made)
    distances: Sequence[float | None] = feature_distance or [None] * len(made)
    rows = zip(made, nearest, likeness, hows, distances, strict=True)
    pairs = [Nearest(one, other, alike, alike > limit, words, apart) for one, other, alike, words, apart in rows]
    return CopyCheck(
        compares,
        limit,
        len(unseen_likeness) if calibrated_on is None else calibrated_on,
        tuple(sorted(pairs, key=lambda pair: -pair.likeness)),
    )


def memorised(found: CopyCheck, made: str = "designs", learnt: str = "photographs") -> str:
    """The verdict in one or two sentences: whether what was made is new, and what to do where it is not.

    made, learnt  what they are called, in the plural
    """
    if found.refusal:
        return f"Whether {made} are copies was not measured: {found.refusal}"
    count, copies = len(found.pairs), found.copies
    if not count:
        return f"There were no {made} to compare with the {learnt} that were learnt."
    if not copies:
        return _nothing_copied(found, made, learnt)
    named = ", ".join(f"{short_name(pair.made)} of {short_name(pair.nearest)}" for pair in copies[:3])
    more = f" and {len(copies) - 3} more" if len(copies) > 3 else ""
    is_are = "is a copy" if len(copies) == 1 else "are copies"
    verdict = (
        f"{len(copies)} of {count} {made} {is_are} of {learnt} that were learnt: {named}{more}. "
        f"Do not show or sell them as new. Take an earlier checkpoint, train fewer steps, or learn more {learnt}."
    )
    if found.calibrated_on and len(copies) <= count / (found.calibrated_on + 1):
        verdict += f" By chance alone up to 1 of {found.calibrated_on + 1} new {made} is called a copy: look yourself."
    return verdict


def short_name(name: str) -> str:
    """A name as people read it: a design by its sheet and number, a cell of a grid by its step and seed."""
    if design := re.fullmatch(r"(?:.*/)?images/([^/]+)/(?:refined_output|base_result)_(\d+)\.\w+", name):
        return f"{design[1]}/{int(design[2])}"
    if cell := re.search(r"step-(\d+)_scale-[^/]*_seed-(\d+)_[^/]*$", name):
        return f"step {int(cell[1])}, seed {int(cell[2])}"
    if sample := re.search(r"step-(\d+)/sample_(\d+)\.\w+$", name):
        return f"step {int(sample[1])}, sample {int(sample[2])}"
    return "/".join(PurePosixPath(name).parts[-2:])


# -- inside --


def _nothing_copied(found: CopyCheck, made: str, learnt: str) -> str:
    """The same where nothing is called a copy, with what is nearest to being one."""
    first, limit = found.pairs[0], found.threshold or 0.0
    begins = f"; copies begin above {limit:.2f}" if first.likeness <= limit else ""  # it may be of another size class
    nearest = (
        f"The most alike, {short_name(first.made)} beside {short_name(first.nearest)}, has a likeness of "
        f"{first.likeness:.2f}{begins}."
    )
    if limit >= unseen.ALIKE:
        return (
            f"The {learnt} of this set are so alike (threshold {limit:.2f}) that a copy can hardly be told from "
            f"something new here: look yourself. None of {len(found.pairs)} {made} was called a copy. {nearest}"
        )
    return f"None of {len(found.pairs)} {made} is a copy of the {learnt} that were learnt. {nearest}"
