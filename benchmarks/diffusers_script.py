"""diffusers' own train_text_to_image_lora_sdxl.py as it is, stopped after each optimizer step by PyTorch's own hook.

The script is fetched by the person who runs the benchmark. It needs the package `datasets`, and torchvision, of which
it uses five transforms; where torchvision is not installed, stand-ins with the same meaning are put in its place.
"""

import importlib
import importlib.util
import os
import random
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps

from benchmarks.contenders import PRECISIONS, Contender, Pace, Task

NEVER = "1000000"  # steps


def run(task: Task, contender: Contender, pace: Pace) -> None:
    """Run the script with the task's pictures, rank and size; Pace.step_done is called after each optimizer step."""
    if task.targets != "attention":
        raise ValueError(f"The script trains a LoRA on attention only, not on {task.targets}.")
    if task.extra_packages:
        sys.path.append(task.extra_packages)  # last, so that the installed versions of all others stay
    if task.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # These look for torchvision when they are imported, and must find what is really there.
    for library in ("datasets", "diffusers", "transformers"):
        importlib.import_module(library)
    if importlib.util.find_spec("torchvision") is None:
        _stand_in()
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: pace.step_done())
    sys.argv = [task.script, *arguments(task, contender)]
    runpy.run_path(task.script, run_name="__main__")


def arguments(task: Task, contender: Contender) -> list[str]:
    """The script's command line."""
    output = Path(task.work) / "diffusers"
    named = {
        "pretrained_model_name_or_path": task.model,
        "train_data_dir": task.pictures,
        "cache_dir": str(output / "cache"),
        "output_dir": str(output),
        "caption_column": "text",
        "resolution": str(task.side_px),
        "train_batch_size": str(contender.batch),
        "rank": str(task.rank),
        "mixed_precision": PRECISIONS[contender.dtype],
        "max_train_steps": NEVER,
        "checkpointing_steps": NEVER,
        "learning_rate": "1e-4",
        "lr_warmup_steps": "0",
        "seed": "0",
    }
    listed = [part for name, value in named.items() for part in (f"--{name}", value)]
    return [*listed, "--center_crop", *(["--gradient_checkpointing"] if contender.checkpointing == "full" else [])]


# -- five transforms with torchvision's meaning, for pictures of PIL --


class _Resize:
    """The shorter side gets this length."""

    def __init__(self, side: int, interpolation: Any = Image.Resampling.BILINEAR) -> None:
        self.side, self.interpolation = side, interpolation

    def __call__(self, picture: Image.Image) -> Image.Image:
        factor = self.side / min(picture.size)
        size = (int(picture.width * factor), int(picture.height * factor))
        return picture.resize(size, self.interpolation)


class _CenterCrop:
    """A square from the middle."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, picture: Image.Image) -> Image.Image:
        top, left = (round((length - self.side) / 2) for length in (picture.height, picture.width))
        return _crop(picture, top, left, self.side, self.side)


class _RandomCrop(_CenterCrop):
    """A square from anywhere."""

    @staticmethod
    def get_params(picture: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height, width."""
        height, width = size
        top, left = random.randint(0, picture.height - height), random.randint(0, picture.width - width)
        return top, left, height, width


class _RandomHorizontalFlip:
    """Mirrored; the script decides itself when."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if random.random() < self.p else picture


class _ToTensor:
    """CHW, float32, 0..1."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        pixels_HWC = torch.from_numpy(numpy.array(picture))
        return pixels_HWC.permute(2, 0, 1).contiguous().float().div(255)


class _Normalize:
    """Minus the mean, by the deviation."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __call__(self, pixels_CHW: torch.Tensor) -> torch.Tensor:
        return (pixels_CHW - self.mean) / self.std


class _Compose:
    """One after the other."""

    def __init__(self, steps: list[Any]) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


def _crop(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return picture.crop((left, top, left + width, top + height))


def _stand_in() -> None:
    """Put the five transforms where the script imports torchvision's."""
    package, transforms, functional = (
        _module(name) for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    )
    made = {
        "Resize": _Resize, "CenterCrop": _CenterCrop, "RandomCrop": _RandomCrop, "Compose": _Compose,
        "RandomHorizontalFlip": _RandomHorizontalFlip, "ToTensor": _ToTensor, "Normalize": _Normalize,
        "InterpolationMode": Image.Resampling,
    }  # fmt: skip
    vars(transforms).update(made)
    vars(functional).update(crop=_crop)
    vars(transforms).update(functional=functional)
    vars(package).update(transforms=transforms)


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    sys.modules[name] = module
    return module
