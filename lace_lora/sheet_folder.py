"""The name of every file of a sheet of designs and of a grid, below a run's folder; no other room spells a path."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

# The files of a sheet by the names below, beside its zip; for the words after a picture's number see page.BESIDE.
_OF_A_SHEET = re.compile(
    r"(images|halved|redrawn)(-\d+-of-\d+)?\.jsonl|(request|finishing|starred|elsewhere)\.json|index\.html|contact_sheet\.png"
    r"|(refined_output|base_result)_\d+(_[a-z]+)?\.(png|jpg|svg)"
)
_LATENTS = re.compile(r"[a-z0-9-]+-\d+\.safetensors")


@dataclass(frozen=True)
class Shard:
    """One of several processes that share a sheet: its number, from 1, of how many."""

    number: int = 1
    of: int = 1

    def owns(self, place: int) -> bool:
        """Whether the thing at a place of a list, from 0, is this process's."""
        return place % self.of == self.number - 1

    @property
    def suffix(self) -> str:
        """What its own files have in their names; nothing where it is alone."""
        return f"-{self.number}-of-{self.of}" if self.of > 1 else ""


@dataclass(frozen=True)
class SheetFolder:
    """One folder of designs that were asked for together."""

    root: Path

    @property
    def manifest(self) -> Path:
        """One row a picture."""
        return self.root / "images.jsonl"

    def rows(self, shard: Shard) -> Path:
        """The rows that a process writes: images.jsonl, or a file of its own such as images-1-of-2.jsonl."""
        return self.root / f"images{shard.suffix}.jsonl"

    def all_rows(self) -> list[Path]:
        """Every file of rows that is there: images.jsonl, and those of processes that are not finished."""
        return [self.manifest, *sorted(self.root.glob("images-*-of-*.jsonl"))]

    def halved(self, shard: Shard) -> Path:
        """Batches that a process had to halve, until the sheet is finished; then the request holds them."""
        return self.root / f"halved{shard.suffix}.jsonl"

    def all_halved(self) -> list[Path]:
        """The same of every process."""
        return sorted(self.root.glob("halved*.jsonl"))

    def redrawn(self, shard: Shard) -> Path:
        """Batches of pictures that were to be taken from an earlier sheet and are gone there, until it is finished."""
        return self.root / f"redrawn{shard.suffix}.jsonl"

    def all_redrawn(self) -> list[Path]:
        """The same of every process."""
        return sorted(self.root.glob("redrawn*.jsonl"))

    @property
    def finishing(self) -> Path:
        """With which settings the files beside the pictures (masks, outlines, previews) were made."""
        return self.root / "finishing.json"

    @property
    def index(self) -> Path:
        """The page to look through."""
        return self.root / "index.html"

    @property
    def zip(self) -> Path:
        """All that is finished, to send or take away."""
        return self.root / f"{self.root.name}.zip"

    @property
    def request(self) -> Path:
        """What was asked for, its digest, and the batches in which it is computed."""
        return self.root / "request.json"

    @property
    def contact_sheet(self) -> Path:
        """All pictures of the folder on one page."""
        return self.root / "contact_sheet.png"

    @property
    def stars(self) -> Path:
        """Which designs are favourites, by their numbers."""
        return self.root / "starred.json"

    @property
    def elsewhere(self) -> Path:
        """Which designs a server elsewhere is asked for, and under which numbers; gone when the sheet is finished."""
        return self.root / "elsewhere.json"

    @property
    def latents(self) -> Path:
        """Pictures between two stages; gone when the sheet is finished."""
        return self.root / "latents"

    def files(self) -> list[Path]:
        """The files of its own that are there, by name; what a person put beside them is none, and is not touched.

        Raises OSError where the file system does not answer. No folder holds none.
        """
        found = [path for path in _entries(self.root) if _OF_A_SHEET.fullmatch(path.name) or path == self.zip]
        return sorted(found + [path for path in _entries(self.latents) if _LATENTS.fullmatch(path.name)])

    def refined(self, number: int, image_format: str) -> Path:
        """The finished picture, such as refined_output_003.png."""
        return self.root / f"refined_output_{number:03d}.{image_format}"

    def base(self, number: int, image_format: str) -> Path:
        """The same picture before the refiner, such as base_result_003.png."""
        return self.root / f"base_result_{number:03d}.{image_format}"


@dataclass(frozen=True)
class GridFolder:
    """One grid over checkpoints and strengths: a picture a cell, and all of them on a page."""

    root: Path

    @property
    def request(self) -> Path:
        """What was asked for, its digest, and which file stands in which cell."""
        return self.root / "grid.json"

    @property
    def cells(self) -> Path:
        """Parent of the pictures."""
        return self.root / "cells"

    @property
    def latents(self) -> Path:
        """Cells that are drawn and not yet pictures; gone when the grid is finished."""
        return self.root / "latents"

    def page(self, number: int) -> Path:
        """A page of the grid, from 1 on: grid.png, grid-2.png, …"""
        return self.root / ("grid.png" if number == 1 else f"grid-{number}.png")


def digest_of(sheet: SheetFolder | GridFolder) -> str | None:
    """The digest of what a sheet or a grid was asked for, or None when it holds none that can be read."""
    try:
        found = json.loads(sheet.request.read_text(encoding="utf-8")).get("digest")
        return str(found) if found else None
    except (OSError, ValueError, AttributeError):
        return None


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []
