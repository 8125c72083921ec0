"""Class pictures for prior preservation: what the base model draws for plain words, so that plain words stay plain."""

import json
import shutil
from collections.abc import Callable
from functools import partial

from lace_lora import checkpoint, schedule, stages
from lace_lora.config import Config
from lace_lora.data_utils import Example
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.quantize import FourBits
from lace_lora.run_folder import RunFolder

with quiet():
    import torch

PICTURES_AT_ONCE = 20  # a cut-off while they are drawn loses at most these

Say = Callable[[str], None]


def draw(settings: Config, folder: RunFolder, dtype: torch.dtype, device: str, say: Say) -> list[Example]:
    """Pictures drawn once by the base model from class_prompt, only what is missing; none without prior_loss_weight.

    By the base as it learns, in 4 bits or not: plain words shall stay what they are to that base.
    """
    if not settings.prior_loss_weight:
        return []
    resolution, step = int(settings.resolution), layout(settings.pretrained_model).pixel_step
    side = max(step, resolution // step * step)
    _forget_others(folder, _made_from(settings, side))
    paths = [folder.class_images / f"class_{number:04d}.png" for number in range(settings.num_class_images)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    if missing:
        say(f"class     drawing {len(missing)} of {len(paths)} pictures of {settings.class_prompt!r}")
    # Always in the same groups, the finished ones too where one of a group is missing: a picture's last bits depend on
    # its neighbours in a batch, and a run that was cut here must learn from the same pictures as an unbroken one.
    for first in range(0, len(paths), PICTURES_AT_ONCE):
        numbers = range(first, min(first + PICTURES_AT_ONCE, len(paths)))
        if not any(number in missing for number in numbers):
            continue
        drawn = stages.draw_plain(
            settings.pretrained_model,
            [settings.class_prompt] * len(numbers),
            [schedule.seed(settings.seed, "class", number) for number in numbers],
            side,
            side,
            steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            negative_prompt=settings.negative_prompt,
            scheduler=settings.scheduler,
            dtype=dtype,
            device=device,
            batch=int(settings.train_batch_size),
            vae_model=settings.vae_model,
            four_bits=FourBits(settings.cache_dir, say) if settings.quantization == "nf4" else None,
            say=say,
        )
        for number, picture in zip(numbers, drawn, strict=True):
            if number in missing:
                checkpoint.write_file(paths[number], partial(picture.save, format="PNG"))
    return [Example(path, settings.class_prompt) for path in paths]


def _made_from(settings: Config, side: int) -> dict[str, str | int | float]:
    """All that decides what the pictures look like."""
    names = ("class_prompt", "seed", "num_class_images", "num_inference_steps", "guidance_scale", "negative_prompt")
    facts = {name: getattr(settings, name) for name in names}
    more = {
        "base_model": settings.pretrained_model,
        "vae_model": settings.vae_model or "",
        "scheduler": settings.scheduler,
        "side_px": side,
    }
    base = {"quantization": "nf4"} if settings.quantization == "nf4" else {}
    return facts | more | base | {"batch": int(settings.train_batch_size)}


def _forget_others(folder: RunFolder, made_from: dict[str, str | int | float]) -> None:
    """Delete class pictures of other settings, which a first try may have left in the folder.

    Those that a run has begun to learn from stay: guidance and the like may be changed for new designs meanwhile.
    """
    if checkpoint.numbered(folder.checkpoints):
        return
    record = folder.class_images / "made_from.json"
    text = json.dumps(made_from, indent=2, ensure_ascii=False) + "\n"
    if not record.is_file() or record.read_text(encoding="utf-8") != text:
        shutil.rmtree(folder.class_images, ignore_errors=True)
        checkpoint.write_text(record, text)
