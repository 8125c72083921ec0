"""What stands on the disk between two stages: the latents of each picture, and which batches had to be halved.

A batch that was cut off is computed again as it was: what a stage leaves is kept for each picture, and a batch counts
as done when all of its pictures are there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lace_lora import checkpoint
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import Shard, SheetFolder

with quiet():
    import safetensors.torch
    from safetensors import SafetensorError
    from torch import Tensor

Pictures = tuple[int, ...]  # numbers of the pictures that are computed together


@dataclass(frozen=True)
class Halving:
    """From this stage on, a batch is computed in pieces of `at_most` pictures."""

    stage: str
    batch: Pictures
    at_most: int


def keep(folder: SheetFolder, stage: str, index: int, latents: Mapping[str, Tensor]) -> None:
    """Put down what a stage made of a picture."""
    data = safetensors.torch.save({name: one.contiguous() for name, one in latents.items()})
    checkpoint.write_bytes(place(folder, stage, index), data)


def kept(folder: SheetFolder, stage: str, index: int) -> dict[str, Tensor] | None:
    """What a stage made of a picture, or None where there is nothing that can be read."""
    path = place(folder, stage, index)
    try:
        found: dict[str, Tensor] | None = safetensors.torch.load_file(path) if path.is_file() else None
    except SafetensorError:
        return None
    return found


def has_all(folder: SheetFolder, stage: str, batch: Iterable[int]) -> bool:
    """Whether a stage is through with a batch."""
    return all(kept(folder, stage, index) is not None for index in batch)


def forget(folder: SheetFolder, stage: str, batch: Iterable[int]) -> None:
    """Delete what a stage left of a batch, once its pictures are finished."""
    for index in batch:
        place(folder, stage, index).unlink(missing_ok=True)


def record(folder: SheetFolder, halvings: Iterable[Halving], shard: Shard) -> None:
    """Put down that batches are computed in pieces from now on: a picture's last bits depend on its neighbours."""
    for one in halvings:
        line = json.dumps({"stage": one.stage, "batch": list(one.batch), "at_most": one.at_most})
        checkpoint.append_line(folder.halved(shard), line)


def recorded(folder: SheetFolder, before: Iterable[Mapping[str, Any]] = ()) -> list[Halving]:
    """All halvings of a sheet in order, by whichever process.

    before  rows that the request holds already, from an earlier finish
    """
    rows = [*before, *(row for path in folder.all_halved() for row in checkpoint.read_json_lines(path))]
    return list(dict.fromkeys(Halving(str(row["stage"]), tuple(row["batch"]), int(row["at_most"])) for row in rows))


def in_pieces(batches: Iterable[Pictures], halvings: Iterable[Halving], stage: str) -> list[Pictures]:
    """The batches as a stage computes them, in order."""
    done = list(batches)
    for one in halvings:
        if one.stage == stage:
            done = [piece for batch in done for piece in (cut(batch, one.at_most) if batch == one.batch else [batch])]
    return done


def cut(batch: Sequence[int], at_most: int) -> list[Pictures]:
    """A batch in pieces of `at_most` pictures."""
    return [tuple(batch[start : start + at_most]) for start in range(0, len(batch), at_most)]


def place(folder: SheetFolder, stage: str, index: int) -> Path:
    """Where what a stage made of a picture is put down."""
    return folder.latents / f"{stage}-{index:06d}.safetensors"
