"""How alike two pictures are in structure, place by place (SSIM): for a design that was to be like a given drawing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lace_lora import references
from lace_lora.errors import PicturesError
from lace_lora.image_files import as_rgb, open_picture
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Score
from lace_lora.style_statistics import Array, luminance, pixels_of

WINDOW_PX, SIGMA_PX = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # of luminance 0..1: they keep flat, dark places from dividing by zero


def ssim(one: Image.Image, other: Image.Image) -> float:
    """The mean structural similarity of two pictures by their luminance: 1.0 for the same picture, about 0 for noise.

    Both are brought to one size by `fitted`. In every place a Gaussian window of 11 px (σ 1.5 px) compares mean,
    contrast and structure; places where the window would stand over the border are left out.

    Raises PicturesError where a side has fewer than 11 px.
    Source: Wang et al. 2004, eq. 13, https://doi.org/10.1109/TIP.2003.819861 (tests compare with scikit-image).
    """
    first, second, _ = fitted(one, other)
    if min(first.size) < WINDOW_PX:
        raise PicturesError(
            f"A picture of {first.width} × {first.height} px is too small to be compared in structure: "
            f"{WINDOW_PX} px a side are the least."
        )
    x, y = luminance(pixels_of(first, None)), luminance(pixels_of(second, None))
    mean_x, mean_y = _smoothed(x), _smoothed(y)
    spread_x, spread_y = _smoothed(x * x) - mean_x**2, _smoothed(y * y) - mean_y**2
    together = _smoothed(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * together + _C2)
    return float((alike / ((mean_x**2 + mean_y**2 + _C1) * (spread_x + spread_y + _C2))).mean())


def fitted(one: Image.Image, other: Image.Image) -> tuple[Image.Image, Image.Image, str]:
    """Two pictures as RGB of one size, the smaller one's, and what was done to them; an empty text where nothing was.

    Where their proportions differ by more than a px, the middle of the other is cut out in those of the smaller one.
    """
    first, second = as_rgb(one), as_rgb(other)
    if first.size == second.size:
        return first, second, ""
    is_first_smaller = (first.width * first.height, first.width) < (second.width * second.height, second.width)
    small, large = (first, second) if is_first_smaller else (second, first)
    scale = min(large.width / small.width, large.height / small.height)
    cut = round(small.width * scale), round(small.height * scale)
    left, top = (large.width - cut[0]) // 2, (large.height - cut[1]) // 2
    was_cut = max(large.width - cut[0], large.height - cut[1]) > 1
    middle = large.crop((left, top, left + cut[0], top + cut[1])) if was_cut else large
    sized = middle.resize(small.size, Image.Resampling.LANCZOS)
    done = f"{large.width} × {large.height} px" + (", its middle cut out," if was_cut else "")
    said = f"{done} was scaled to {small.width} × {small.height} px"
    return (small, sized, said) if is_first_smaller else (sized, small, said)


def reference_score(values: Sequence[float], scaled: int = 0) -> Score:
    """What designs have of the drawings that they were to be like, as a score: the mean of their SSIM.

    scaled  how many pairs had to be brought to one size
    """
    name = "likeness to the reference drawings (SSIM)"
    if not values:
        why = (
            "no design names a picture that it is to be like. Give a prompts file a column reference_path to "
            "measure this."
        )
        return Score("ssim", name, "reference", None, refusal=why)
    means = (
        "1 is the same picture and 0 has nothing in common, thread by thread in the same place: a design that is "
        "shifted by a thread scores low though it looks alike."
    )
    if scaled:
        means += f" {scaled} of {len(values)} pairs were brought to one size first, which softens threads."
    return Score("ssim", name, "reference", float(np.mean(values)), count=len(values), means=means, better="higher")


def against_references(
    run: RunFolder, rows: Iterable[Mapping[str, Any]], picture_of: Callable[[Mapping[str, Any]], Path]
) -> Score:
    """The score of designs against the pictures that they were to be like; designs without one are passed over.

    rows        of images.jsonl
    picture_of  the file of a row's picture

    A pair of which a file cannot be read or is too small is left out, and that is said in the score.
    """
    values, scaled, faults = [], 0, []
    for row in rows:
        reference = references.of(run, row)
        if reference is None:
            continue
        try:
            one, other = open_picture(picture_of(row)), open_picture(reference)
            values.append(ssim(one, other))
        except PicturesError as error:
            faults.append(str(error))
            continue
        scaled += one.size != other.size
    score = reference_score(values, scaled)
    if not faults:
        return score
    left_out = f"Left out because they cannot be compared: {len(faults)}, such as {faults[0]}"
    if not values:
        return replace(score, refusal=left_out)
    return replace(score, means=f"{score.means} {left_out}")


def _smoothed(values: Array) -> Array:
    """Means under the Gaussian window, of the places where it lies wholly inside."""
    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    weights /= weights.sum()
    for axis in (0, 1):
        length = values.shape[axis] - WINDOW_PX + 1
        parts = (weight * values.take(range(start, start + length), axis=axis) for start, weight in enumerate(weights))
        values = sum(parts, start=np.zeros(()))
    return values
