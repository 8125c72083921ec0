"""Rules of thumb on a set of pictures for a LoRA, each with its verdict: how many, how large, how alike, how long."""

from collections.abc import Sequence
from statistics import median

ADVISED_SIDE_PX = 512
# Updates: the least that shows a style, and what is recommended from and to.
STEPS = {"sdxl": (300, 500, 1200), "flux": (300, 1200, 1800)}


def advice(
    sizes: Sequence[tuple[int, int]], resolution: int | None = None, steps: int | None = None, family: str = "sdxl"
) -> tuple[str, ...]:
    """A sentence for each rule, or one that says that there is nothing to judge.

    sizes       width and height of each usable picture, px
    resolution  side of the training square, px, where it is known
    steps       planned updates, where they are known
    family      base model; one without numbers of its own has SDXL's
    """
    if not sizes:
        return ("number: none of the pictures can be used; the reasons stand beside each.",)
    sides = [min(size) for size in sizes]
    is_miniature = bool(resolution and resolution < ADVISED_SIDE_PX)  # its model asks for less
    lines = [
        _on_number(len(sizes)),
        "" if is_miniature else _on_size(sides),
        _on_shape([width / height for width, height in sizes]),
        _on_enlarging(sides, resolution) if resolution else "",
        "" if is_miniature else _on_steps(steps, len(sizes), family),
    ]
    return tuple(line for line in lines if line)


def _on_number(count: int) -> str:
    rule = "10–20 at the least, 100–200 recommended, 1000 and more are the most that help"
    if count < 10:
        return f"number: {count} is too few ({rule})."
    if count < 20:
        return f"number: {count} is just enough to try ({rule})."
    if count < 100:
        return f"number: {count} will do, more is better ({rule})."
    if count <= 1000:
        return f"number: {count} is good ({rule})."
    return f"number: {count} is more than is needed ({rule})."


def _on_size(sides: list[int]) -> str:
    small = sum(side < ADVISED_SIDE_PX for side in sides)
    if not small:
        return f"size: good, every short side has at least {ADVISED_SIDE_PX} px."
    return (
        f"size: {small} of {len(sides)} have a short side under {ADVISED_SIDE_PX} px (smallest {min(sides)} px); "
        "take larger originals where there are any."
    )


def _on_shape(shapes: list[float]) -> str:
    """Consistent means: four in five are within a fifth of the middle shape."""
    middle = median(shapes)
    alike = sum(1 / 1.2 <= shape / middle <= 1.2 for shape in shapes)
    if alike >= 0.8 * len(shapes):
        return f"shape: good, {alike} of {len(shapes)} have about the same aspect ratio ({middle:.2f})."
    return (
        f"shape: mixed, only {alike} of {len(shapes)} are near the aspect ratio {middle:.2f} (width / height); "
        "crop them alike for steadier results."
    )


def _on_enlarging(sides: list[int], resolution: int) -> str:
    small = [side for side in sides if side < resolution]
    if not small:
        return f"resolution: good, every picture fills {resolution} px."
    fitting = max(64, int(median(sides)) // 64 * 64)
    lower = f"; resolution {fitting} would enlarge only the smaller half" if fitting < resolution else ""
    return (
        f"resolution: {len(small)} of {len(sides)} must be enlarged to reach {resolution} px "
        f"(the smallest {resolution / min(small):.1f}×), which adds no detail{lower}."
    )


def _on_steps(steps: int | None, count: int, family: str) -> str:
    least, low, high = STEPS.get(family, STEPS["sdxl"])
    rule = f"{least} at the least, {low}–{high} recommended"
    if steps is None:
        return f"steps: plan {low} to {high} updates ({rule})."
    if steps < least:
        return f"steps: {steps} is too few ({rule})."
    if steps < low:
        return f"steps: {steps} is just enough to try ({rule})."
    if steps <= high:
        return f"steps: {steps} is good ({rule})."
    return (
        f"steps: {steps} is more than is usual ({rule}); watch the validation loss, {count} pictures may be overfitted."
    )
