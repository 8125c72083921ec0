"""Photographs and captions as trainers elsewhere take them: each picture as it is learnt, its caption beside it."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from lace_lora import checkpoint, swatch
from lace_lora.data_utils import Example

LONGEST_PX = 2048  # of a picture that is sent; trainers make 1024 px of it
QUALITY = 95
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal pictures give equal bytes


def pictures(examples: Sequence[Example], side_px: int | None = None) -> Iterator[tuple[str, bytes, str]]:
    """Name without ending, JPEG and caption of each picture, upright and without its metadata.

    side_px  of a square that is cut from the middle; None keeps the shape, at most LONGEST_PX long
    """
    for number, one in enumerate(examples):
        picture = swatch.open_swatch(one.file, one.swatch).convert("RGB")
        picture.info = {}
        if side_px:
            picture = ImageOps.fit(picture, (side_px, side_px), Image.Resampling.LANCZOS)
        else:
            picture.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=QUALITY)
        yield f"{number:05d}", data.getvalue(), one.caption


def write_zip(examples: Sequence[Example], path: Path) -> None:
    """All of them in one zip, 00000.jpg and 00000.txt and so on; the same pictures give the same bytes."""

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as packed:
            for name, data, caption in pictures(examples):
                packed.writestr(zipfile.ZipInfo(f"{name}.jpg", FIRST_DAY), data)
                packed.writestr(zipfile.ZipInfo(f"{name}.txt", FIRST_DAY), caption)

    checkpoint.write_file(path, write)
