"""The shapes (buckets) that pictures are trained in: sizes of about one area, and which of them a picture gets."""

from math import lcm

Hw = tuple[int, int]  # height and width, px
WIDEST = 3.0  # sides of a bucket are never more than 3 : 1


def bucket_step(resolution: int, pixel_step: int) -> int:
    """Sides of buckets are multiples of this: 64 px as SDXL was trained (16 below 512 px), if the model can take it."""
    return lcm(64 if resolution >= 512 else 16, pixel_step)


def buckets(resolution: int, step: int) -> list[Hw]:
    """All (height, width) of about resolution² px and at most 3 : 1; never more px than resolution²."""
    square = max(step, resolution // step * step)
    found = {(square, square)}
    for short in range(step, square + 1, step):
        long = resolution * resolution // short // step * step
        if short <= long <= WIDEST * short:
            found |= {(short, long), (long, short)}
    return sorted(found)


def bucket_of(width: int, height: int, resolution: int, step: int) -> Hw:
    """The bucket of the nearest shape; of two as near the larger."""
    shape = width / height
    return min(
        buckets(resolution, step), key=lambda hw: (max(shape * hw[0] / hw[1], hw[1] / (shape * hw[0])), -hw[0] * hw[1])
    )
