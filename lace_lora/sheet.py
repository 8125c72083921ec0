"""A sheet of designs on the disk: its request, its rows, its pictures, and the latents between two stages.

A sheet that was cut off is finished with the same bytes: request.json holds the batches in which it is computed,
images.jsonl one row for each finished picture, and latents/ what a stage left of a batch.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import checkpoint, pictures
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder, SheetFolder

with quiet():
    import safetensors.torch
    from safetensors import SafetensorError
    from torch import Tensor

# Not part of what was asked for: a sheet may be finished on another machine, and then says so in its rows.
CIRCUMSTANCES = ("precision", "versions")
ON_CONTACT_SHEET = 240  # pictures; with more the page could not be opened


@dataclass(frozen=True)
class Generation:
    """One picture and all that makes it. Paths are where it lies; a row of images.jsonl has file names."""

    index: int
    prompt: str
    refiner_prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    refine: str
    refiner_start: float | None
    refine_strength: float | None
    width: int
    height: int
    lora_scale: float
    concept_token: str
    adapter_digest: str
    pretrained_model: str
    refiner_model: str | None
    precision: str
    base: Path
    refined: Path | None
    versions: Mapping[str, str] = field(repr=False)

    @property
    def path(self) -> Path:
        """The picture to look at: the refined one, or the base's where nothing was refined."""
        return self.refined or self.base

    def row(self) -> dict[str, Any]:
        """The picture as a row of images.jsonl: values that JSON knows, files by name only."""
        return asdict(self) | {"base": self.base.name, "refined": self.refined.name if self.refined else None}


def place(
    run: RunFolder, name: str, wanted: Sequence[Generation], models: Sequence[str]
) -> tuple[SheetFolder, list[Generation]]:
    """The folder for a request, which was begun for it or is free, and its pictures with their paths there.

    models  texts that tell the models apart, since two may have one name
    """
    told = [{name: value for name, value in one.row().items() if name not in CIRCUMSTANCES} for one in wanted]
    digest = hashlib.sha256(json.dumps([list(models), told], sort_keys=True).encode()).hexdigest()
    folder = run.free_sheet(name, digest)
    if not folder.request.is_file():
        shared = {name: value for name, value in told[0].items() if all(row[name] == value for row in told)}
        checkpoint.write_json(folder.request, {"digest": digest, "pictures": len(wanted), "shared": shared})
    return folder, [_under(folder.root, one) for one in wanted]


def batches_of(folder: SheetFolder, count: int, batch: int) -> tuple[tuple[int, ...], ...]:
    """Which pictures are computed together: as recorded when the sheet was begun, else in batches of `batch`."""
    request = json.loads(folder.request.read_text(encoding="utf-8"))
    recorded = request.get("batches", [])
    if sorted(index for one in recorded for index in one) != list(range(count)):
        recorded = [list(range(start, min(start + batch, count))) for start in range(0, count, batch)]
        checkpoint.write_json(folder.request, request | {"batches": recorded})
    return tuple(tuple(one) for one in recorded)


def read_finished(folder: SheetFolder, wanted: Sequence[Generation]) -> dict[int, Generation]:
    """Pictures that are complete: a row and its files.

    The rows are put in order first: a cut can leave the last one half, and the next would be added to that half.
    """
    rows = {row.get("index"): row for row in checkpoint.read_json_lines(folder.manifest)}
    found = {}
    for one in wanted:
        row = rows.get(one.index)
        if row and one.base.is_file() and (one.refined is None or one.refined.is_file()):
            found[one.index] = replace(one, **{name: row[name] for name in CIRCUMSTANCES})
    _write_rows(folder, found.values())
    return found


def add(folder: SheetFolder, one: Generation, base: Image.Image, refined: Image.Image | None) -> None:
    """Write a finished picture, unrefined and refined, and then its row. The files carry what made them."""
    for image, path in ((base, one.base), (refined, one.refined)):
        if image is not None and path is not None:
            pictures.write_picture(image, path, pictures.parameters_text(one.row()), one.row())
    checkpoint.append_line(folder.manifest, _line(one))


def close(folder: SheetFolder, done: Sequence[Generation]) -> None:
    """Finish a sheet: rows in order, all pictures on one page, nothing left between stages."""
    _write_rows(folder, done)
    write_contact_sheet(folder, done)
    shutil.rmtree(folder.latents, ignore_errors=True)


def write_contact_sheet(folder: SheetFolder, done: Sequence[Generation]) -> None:
    """Put the finished pictures on one page, all of them or those that there are when somebody stopped."""
    shown = done[:ON_CONTACT_SHEET]
    page = pictures.contact_sheet([one.path for one in shown], labels=[f"{one.index}: {one.prompt}" for one in shown])
    checkpoint.write_file(folder.contact_sheet, lambda path: page.save(path, "PNG"))


def keep(folder: SheetFolder, stage: str, batch: int, tensors: Mapping[str, Tensor]) -> None:
    """Put down what a stage made of a batch."""
    checkpoint.write_bytes(_kept_at(folder, stage, batch), safetensors.torch.save(dict(tensors)))


def kept(folder: SheetFolder, stage: str, batch: int) -> dict[str, Tensor] | None:
    """What a stage made of a batch, or None where there is nothing that can be read."""
    path = _kept_at(folder, stage, batch)
    try:
        found: dict[str, Tensor] | None = safetensors.torch.load_file(path) if path.is_file() else None
    except SafetensorError:
        return None
    return found


def forget(folder: SheetFolder, stage: str, batch: int) -> None:
    """Delete what a stage left of a batch, once its pictures are finished."""
    _kept_at(folder, stage, batch).unlink(missing_ok=True)


# -- inside --


def _under(root: Path, one: Generation) -> Generation:
    return replace(one, base=root / one.base, refined=root / one.refined if one.refined else None)


def _kept_at(folder: SheetFolder, stage: str, batch: int) -> Path:
    return folder.latents / f"{stage}-{batch:05d}.safetensors"


def _write_rows(folder: SheetFolder, done: Iterable[Generation]) -> None:
    text = "".join(_line(one) + "\n" for one in done)
    before = folder.manifest.read_bytes() if folder.manifest.is_file() else b""
    if text.encode("utf-8") != before:
        checkpoint.write_text(folder.manifest, text)


def _line(one: Generation) -> str:
    return json.dumps(one.row(), ensure_ascii=False)
