"""What a check of a folder of photographs found: a verdict and its reasons for every file, advice on the whole set.

data_utils.check_images fills these in. Only `write` touches the disk, and never the folder of photographs.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from lace_lora import rules_of_thumb
from lace_lora.check_sheet import Problem, problems_sheet
from lace_lora.checkpoint import write_file, write_json
from lace_lora.errors import PicturesError
from lace_lora.file_names import printable
from lace_lora.image_files import how_to_include
from lace_lora.near_duplicates import Kind
from lace_lora.quality import Quality
from lace_lora.shapes import bucket_of, bucket_step
from lace_lora.swatch import Swatch, px_per_cm, size_after

VERSION = 1  # of check.json
CHECK, PROBLEMS = "check.json", "problems.png"
SMALLEST_SIDE_PX = 64  # the lowest resolution there is; below it lie icons and thumbnails
LONG_SHAPE = 2.5  # longer to shorter side
WORST = 10  # shown of the least sharp and of the most compressed, but for those with nothing to see:
SHARP_PX = 0.5  # no scaled picture has narrower edges
LITTLE_LOST = 0.1  # JPEG quality 90
ON_SHEET = 40
_KINDS = "{}"  # stands for their names while advices are compared
NAMED = 6  # of a group, in a line
MAYBE: Kind = "maybe the same piece"
_CELL_PX = 8  # of a latent: what SDXL's sizes are multiples of


@dataclass(frozen=True)
class ImageRecord:
    """One file of the folder: what it is, why it cannot be used (`fault`), and what is worth knowing (`notes`)."""

    path: Path
    name: str  # relative to the folder, with /, in Unicode's composed form (NFC)
    width: int = 0  # after turning upright; 0 when the picture could not be opened
    height: int = 0
    sha256: str = ""
    fault: str = ""
    notes: tuple[str, ...] = ()
    caption: str = ""
    quality: Quality | None = None
    thumbnail: Path | None = None  # a small JPEG of it, outside the folder
    is_used: bool = True  # False where its person left it out of training
    swatch: Swatch | None = None  # what is done to it on opening

    @property
    def is_usable(self) -> bool:
        """Whether training can use it; notes do not stand in the way."""
        return not self.fault

    @property
    def learnt_size(self) -> tuple[int, int]:
        """Width and height of what is learnt of it, px."""
        whole = self.width, self.height
        return size_after(whole, self.swatch) if self.swatch else whole

    @property
    def verdict(self) -> str:
        """One of `unusable`, `note`, `ok`."""
        return "unusable" if self.fault else "note" if self.notes else "ok"

    @property
    def problems(self) -> tuple[str, ...]:
        """The fault first, then the notes."""
        return (self.fault, *self.notes) if self.fault else self.notes


@dataclass(frozen=True)
class Likeness:
    """Two pictures that show, or may show, the same piece: their names, and how sure that is, 0..1."""

    first: str
    second: str
    kind: Kind
    likeness: float

    def other(self, name: str) -> str:
        """The name of the other one of the two."""
        return self.second if name == self.first else self.first


@dataclass(frozen=True)
class CheckReport:
    """The records of a folder, and what the folder holds besides."""

    folder: Path
    records: tuple[ImageRecord, ...]
    skipped_kinds: Mapping[str, int] = field(default_factory=dict)  # ".heic" -> 3: kinds that were not asked for
    notes: tuple[str, ...] = ()  # about the folder as a whole, such as lines of annotations.txt that cannot be read
    resolution: int | None = None
    pairs: tuple[Likeness, ...] = ()  # the surest first
    steps: int | None = None  # planned updates, where they are known
    family: str = "sdxl"

    @property
    def usable(self) -> tuple[ImageRecord, ...]:
        """The pictures that training can use."""
        return tuple(record for record in self.records if record.is_usable)

    @property
    def learnt(self) -> tuple[ImageRecord, ...]:
        """The usable ones that nobody left out."""
        return tuple(record for record in self.usable if record.is_used)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of pictures of one piece, two or more each, in the folder's order; "maybe" does not join."""
        group_of: dict[str, set[str]] = {}
        for pair in self.pairs:
            if pair.kind != MAYBE:
                both = group_of.get(pair.first, {pair.first}) | group_of.get(pair.second, {pair.second})
                group_of |= dict.fromkeys(both, both)
        order = [record.name for record in self.records]
        firsts = {min(map(order.index, group)): group for group in group_of.values()}
        return tuple(tuple(sorted(firsts[first], key=order.index)) for first in sorted(firsts))

    @property
    def least_sharp(self) -> tuple[ImageRecord, ...]:
        """The least sharp pictures of this set, the worst first: ten at most, no more than half, none that is sharp."""
        return self._worst({record.name: record.quality.blur_px for record in self.usable if record.quality}, SHARP_PX)

    @property
    def most_compressed(self) -> tuple[ImageRecord, ...]:
        """The same of what compressing took away."""
        lost = {record.name: record.quality.compression for record in self.usable if record.quality}
        return self._worst(lost, LITTLE_LOST)

    @property
    def statistics(self) -> dict[str, Any]:
        """The set in numbers.

        total_images (usable or not), images_with_captions, avg_caption_length in characters over these; of what is
        learnt the smallest, middle and largest short and long side in px; how many fall into each bucket, by
        "width × height", the fullest first (only where the resolution is known); and px_per_cm, the middle one of those
        with a centimetre marked, as they are learnt, or None.
        """
        lengths = [len(record.caption) for record in self.records if record.caption]
        sides = [sorted(record.learnt_size) for record in self.learnt]
        return {
            "total_images": len(self.records),
            "images_with_captions": len(lengths),
            "avg_caption_length": sum(lengths) / len(lengths) if lengths else 0.0,
            "short_side_px": _spread([short for short, _ in sides]),
            "long_side_px": _spread([long for _, long in sides]),
            "buckets": self._buckets(),
            "px_per_cm": self._px_per_cm(),
        }

    @property
    def advice(self) -> tuple[str, ...]:
        """A verdict for each rule of thumb on a set for a LoRA: how many, how large, how alike in shape, how long."""
        sizes = [record.learnt_size for record in self.learnt]
        return rules_of_thumb.advice(sizes, self.resolution, self.steps, self.family)

    def as_table(self, *, only_problems: bool = False, at_most: int | None = None) -> str:
        """One line a file: verdict, name, size, reasons; the unusable ones first where only some are shown."""
        found = [record for record in self.records if record.problems or not only_problems]
        if at_most is not None:
            found.sort(key=lambda record: record.is_usable)
        shown = found[:at_most]
        if not shown:
            return "no problems"
        rows = [
            (record.verdict, printable(record.name), _size(record), "; ".join(record.problems) or "reads well")
            for record in shown
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows]
        return "\n".join([*lines, *([f"… and {len(found) - len(shown)} more"] if shown != found else [])])

    def __str__(self) -> str:
        return f"{self.as_table()}\n\n{self.summary()}"

    def summary(self) -> str:
        """The set in a few lines: counts, captions, shapes, copies, worst ones, what was skipped, notes, advice."""
        facts = self.statistics
        unusable, left_out = len(self.records) - len(self.usable), len(self.usable) - len(self.learnt)
        lines = [
            f"{facts['total_images']} pictures in {printable(self.folder)}: {len(self.usable)} usable"
            + (f", {unusable} not" if unusable else "")
            + (f", {left_out} left out" if left_out else ""),
            f"{facts['images_with_captions']} have captions"
            + (f", {facts['avg_caption_length']:.0f} characters on average" if facts["images_with_captions"] else ""),
        ]
        if short := facts["short_side_px"]:
            lines.append(f"short sides: {short['min']} to {short['max']} px, half have {short['median']} or more")
        if buckets := facts["buckets"]:
            named = ", ".join(f"{count} in {shape}" for shape, count in list(buckets.items())[:6])
            more = f" and {len(buckets) - 6} more shapes" if len(buckets) > 6 else ""
            lines.append(f"trained as {named}{more}")
        if scale := facts["px_per_cm"]:
            side = self.resolution or 0
            lines.append(
                f"scale: {scale:.0f} px a centimetre as learnt; a design of {side} px shows {side / scale:.0f} cm"
            )
        lines += [*self._on_copies(), *self._on_quality()]
        if self.skipped_kinds:
            kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in self.skipped_kinds.items())
            lines.append(f"skipped, not in image_types: {kinds}")
            lines += _ways_in(self.skipped_kinds)
        return "\n".join([*lines, *self.notes, *self.advice])

    def write(self, folder: str | Path) -> Path:
        """Write check.json, and problems.png where there are problems, into a folder; returns check.json's path.

        Nothing in them tells where the photographs lie: paths are relative to their folder.

        Raises PicturesError for a folder inside that of the photographs, in which nothing is changed; a LaceError where
        it cannot be written.
        """
        target = Path(folder).expanduser()
        if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(self.folder)):
            advice = "Write the report elsewhere, for example below cache_dir."
            raise PicturesError(f"{printable(target)} lies in the folder of photographs, which is left alone. {advice}")
        write_json(target / CHECK, self.as_json())
        if page := self.sheet():
            write_file(target / PROBLEMS, lambda path: page.save(path, "PNG"))
        else:
            (target / PROBLEMS).unlink(missing_ok=True)
        return target / CHECK

    def sheet(self, at_most: int = ON_SHEET) -> Image.Image | None:
        """The pictures that are worth a look on one page, the worst first; None where there are none."""
        shown = self._shown()
        return problems_sheet(shown[:at_most], left_out=max(0, len(shown) - at_most)) if shown else None

    def as_json(self) -> dict[str, Any]:
        """All of it in values that JSON knows; names and sentences as they can be printed."""
        own = f"{printable(self.folder)}/"
        return {
            "version": VERSION,
            "folder": printable(self.folder.name),
            "resolution": self.resolution,
            "statistics": self.statistics,
            "advice": list(self.advice),
            "notes": [note.replace(own, "") for note in self.notes],
            "skipped_kinds": {printable(kind): count for kind, count in self.skipped_kinds.items()},
            "images": [_row(record) for record in self.records],
            "groups": [[printable(name) for name in group] for group in self.groups],
            "pairs": [
                {"first": printable(pair.first), "second": printable(pair.second), "kind": pair.kind,
                 "likeness": round(pair.likeness, 3)}
                for pair in self.pairs
            ],
            "least_sharp": [printable(record.name) for record in self.least_sharp],
            "most_compressed": [printable(record.name) for record in self.most_compressed],
        }  # fmt: skip

    def _buckets(self) -> dict[str, int]:
        if not self.resolution:
            return {}
        step = bucket_step(self.resolution, _CELL_PX)
        found = [bucket_of(*record.learnt_size, self.resolution, step) for record in self.learnt]
        return {f"{width} × {height}": count for (height, width), count in Counter(found).most_common()}

    def _px_per_cm(self) -> float | None:
        """Of the pictures as they are learnt, scaled to the area of the training square."""
        found = []
        for record in self.learnt:
            scale, (width, height) = px_per_cm((record.width, record.height), record.swatch), record.learnt_size
            if scale and self.resolution:
                found.append(scale * self.resolution / math.sqrt(width * height))
        return round(median(found), 2) if found else None

    def _worst(self, measure: Mapping[str, float], least: float) -> tuple[ImageRecord, ...]:
        found = [record for record in self.usable if measure.get(record.name, 0) > least]
        found.sort(key=lambda record: (-measure[record.name], record.name))
        return tuple(found[: min(WORST, len(measure) // 2)])

    def _on_copies(self) -> list[str]:
        lines = [f"one piece, {len(group)} times: {_first_few(group)}" for group in self.groups]
        lines += [
            f"maybe one piece ({pair.likeness:.0%} alike): {printable(pair.first)}, {printable(pair.second)}"
            for pair in self.pairs
            if pair.kind == MAYBE
        ]
        return lines

    def _on_quality(self) -> list[str]:
        soft = [f"{printable(one.name)} ({one.quality.blur_px:.1f} px)" for one in self.least_sharp if one.quality]
        coarse = [f"{printable(one.name)} ({_compression(one.quality)})" for one in self.most_compressed if one.quality]
        lines = [f"least sharp of this set, look for yourself: {', '.join(soft)}"] if soft else []
        return lines + ([f"most compressed of this set, look for yourself: {', '.join(coarse)}"] if coarse else [])

    def _shown(self) -> list[Problem]:
        """Pictures for the sheet: those that cannot be used, the worst ones that can, and the others with notes."""
        ranks: dict[str, list[str]] = {}
        for place, record in enumerate(self.least_sharp, 1):
            ranks.setdefault(record.name, []).append(f"place {place} of the least sharp")
        for place, record in enumerate(self.most_compressed, 1):
            ranks.setdefault(record.name, []).append(f"place {place} of the most compressed")
        shown = [record for record in self.records if record.problems or record.name in ranks]
        shown.sort(key=lambda record: (record.is_usable, record.name not in ranks))
        return [
            Problem(
                record.thumbnail or (record.path if record.width else None),
                "to look at" if record.verdict == "ok" else record.verdict,
                record.name,
                "; ".join([*record.problems, *ranks.get(record.name, [])]),
            )
            for record in shown
        ]


def _row(record: ImageRecord) -> dict[str, Any]:
    measured = record.quality
    return {
        "path": printable(record.name),
        "verdict": record.verdict,
        "fault": record.fault,
        "notes": list(record.notes),
        "width": record.width,
        "height": record.height,
        "sha256": record.sha256,
        "caption": record.caption,
        "use": record.is_used,
        "blur_px": measured.blur_px if measured else None,
        "jpeg_quality": measured.jpeg_quality if measured else None,
        "blockiness": measured.blockiness if measured else None,
    }


def _spread(sides: list[int]) -> dict[str, int]:
    return {"min": min(sides), "median": int(median(sides)), "max": max(sides)} if sides else {}


def _first_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(printable, names[:NAMED])) + more


def _ways_in(kinds: Iterable[str]) -> list[str]:
    """How to include the kinds that were skipped; those that only need their name in image_types share a line."""
    by_advice: dict[str, list[str]] = {}
    for kind in kinds:
        by_advice.setdefault(how_to_include(kind).replace(f'"{kind}"', _KINDS), []).append(kind)
    lines = []
    for advice, same in by_advice.items():
        told = advice.replace(_KINDS, ", ".join(f'"{printable(kind)}"' for kind in same), 1)
        lines.append(f"to include {', '.join(map(printable, same))}: {told}")
    return lines


def _size(record: ImageRecord) -> str:
    return f"{record.width} × {record.height}" if record.width else "-"


def _compression(measured: Quality) -> str:
    if measured.jpeg_quality is not None and 1 - measured.jpeg_quality / 100 >= measured.blockiness:
        return f"JPEG quality {measured.jpeg_quality}"
    return "squares of 8 px show"
