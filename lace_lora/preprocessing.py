"""How a model wants its pictures: sized, cut and scaled as its preprocessor_config.json says, with Pillow and numpy.

By hand, because transformers' own processors choose torchvision where it is installed, which gives other pixels, and
whose build does not load beside every torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lace_lora.errors import ModelError
from lace_lora.image_files import as_rgb

Pixels = NDArray[np.float32]

# ConvNeXT's processor, which ResNet has too, warps pictures instead of cutting them from this side (px) on.
_WARPED_FROM = 384
_BICUBIC = 3


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of a picture before a model sees it; None leaves that step out. Sides in px.

    shortest     the shorter side after sizing; the longer one keeps the proportion
    sized        height and width after sizing, whatever the proportion
    cut          height and width of what is cut out of the middle
    resample     Pillow's number of the filter
    factor       by which values 0..255 are multiplied
    mean, std    of each colour, after that
    """

    shortest: int | None
    sized: tuple[int, int] | None
    cut: tuple[int, int] | None
    resample: int
    factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def read(cls, folder: Path) -> "Preprocessing":
        """What a model's folder says. Raises ModelError where it cannot be understood or is of another kind."""
        paths = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
        path = next((path for path in paths if path.is_file()), paths[0])
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return cls._of(told.get("image_processor", told))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} does not say how the model wants its pictures in a way that is known here ({error!r}). "
                "Choose another model."
            ) from error

    @classmethod
    def _of(cls, told: Mapping[str, Any]) -> "Preprocessing":
        size, cut = told.get("size"), told.get("crop_size")
        crop_share = told.get("crop_pct")
        cuts = bool(told.get("do_center_crop", "crop_size" in told))
        shortest, sized = _sides(size, cuts or crop_share is not None) if told.get("do_resize", True) else (None, None)
        window = _window(cut) if cuts else None
        if crop_share is not None and shortest is not None:
            sized = (shortest, shortest) if shortest >= _WARPED_FROM else None
            window = None if sized else (shortest, shortest)
            shortest = None if sized else int(shortest / crop_share)
        normalizes = told.get("do_normalize", True)
        return cls(
            shortest=shortest,
            sized=sized,
            cut=window,
            resample=int(told.get("resample", _BICUBIC)),
            factor=float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else None,
            mean=_three(told["image_mean"]) if normalizes else None,
            std=_three(told["image_std"]) if normalizes else None,
        )

    def pixels(self, picture: Image.Image) -> Pixels:
        """A picture as the model takes it: float32, colours × height × width."""
        rgb = as_rgb(picture)
        width, height = rgb.size
        sized = self.sized
        if self.shortest is not None:
            longest = int(self.shortest * max(width, height) / min(width, height))
            sized = (self.shortest, longest) if height <= width else (longest, self.shortest)
        if sized is not None:
            rgb = rgb.resize((sized[1], sized[0]), Image.Resampling(self.resample))
        if self.cut is not None:
            tall, wide = self.cut
            left, top = (rgb.width - wide) // 2, (rgb.height - tall) // 2
            rgb = rgb.crop((left, top, left + wide, top + tall))  # black where the picture is smaller
        values = np.asarray(rgb).transpose(2, 0, 1).astype(np.float64)
        if self.factor is not None:
            values = values * self.factor
        if self.mean is not None and self.std is not None:
            values = (values - np.array(self.mean)[:, None, None]) / np.array(self.std)[:, None, None]
        return values.astype(np.float32)


def _sides(size: Any, keeps_proportion: bool) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side, or height and width; older files give one number for either."""
    if isinstance(size, int):
        return (size, None) if keeps_proportion else (None, (size, size))
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"]), None
    return None, _window(size)


def _window(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3:
        raise ValueError(f"three colours are needed, not {len(numbers)}")
    return numbers
