"""What a check of a folder of photographs found: a verdict and its reasons for every file, advice on the whole set.

Values and words only: nothing here touches the disk. data_utils.check_images fills these in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lace_lora.file_names import printable

SMALLEST_SIDE_PX = 64  # the lowest resolution there is; below it lie icons and thumbnails
LONG_SHAPE = 2.5  # longer to shorter side
ADVISED_SIDE_PX = 512


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

    @property
    def is_usable(self) -> bool:
        """Whether training can use it; notes do not stand in the way."""
        return not self.fault

    @property
    def verdict(self) -> str:
        """One of `unusable`, `note`, `ok`."""
        return "unusable" if self.fault else "note" if self.notes else "ok"

    @property
    def problems(self) -> tuple[str, ...]:
        """The fault first, then the notes."""
        return (self.fault, *self.notes) if self.fault else self.notes


@dataclass(frozen=True)
class CheckReport:
    """The records of a folder, and what the folder holds besides."""

    folder: Path
    records: tuple[ImageRecord, ...]
    skipped_kinds: Mapping[str, int] = field(default_factory=dict)  # ".heic" -> 3: kinds that were not asked for
    notes: tuple[str, ...] = ()  # about the folder as a whole, such as lines of annotations.txt that cannot be read
    resolution: int | None = None

    @property
    def usable(self) -> tuple[ImageRecord, ...]:
        """The pictures that training can use."""
        return tuple(record for record in self.records if record.is_usable)

    @property
    def statistics(self) -> dict[str, int | float]:
        """total_images (usable or not), images_with_captions, and avg_caption_length in characters over these."""
        lengths = [len(record.caption) for record in self.records if record.caption]
        return {
            "total_images": len(self.records),
            "images_with_captions": len(lengths),
            "avg_caption_length": sum(lengths) / len(lengths) if lengths else 0.0,
        }

    @property
    def advice(self) -> tuple[str, ...]:
        """A verdict for each rule of thumb on a set for a LoRA: how many, how large, how alike in shape."""
        if not self.usable:
            return ("number: none of the pictures can be used; the reasons stand beside each.",)
        sides = [min(record.width, record.height) for record in self.usable]
        is_miniature = bool(self.resolution and self.resolution < ADVISED_SIDE_PX)  # its model asks for less
        lines = [
            _on_number(len(self.usable)),
            "" if is_miniature else _on_size(sides),
            _on_shape(self.usable),
            _on_enlarging(sides, self.resolution) if self.resolution else "",
        ]
        return tuple(line for line in lines if line)

    def as_table(self, *, only_problems: bool = False) -> str:
        """One line a file: verdict, name, size, reasons."""
        rows = [
            (record.verdict, printable(record.name), _size(record), "; ".join(record.problems) or "reads well")
            for record in self.records
            if record.problems or not only_problems
        ]
        if not rows:
            return "no problems"
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows)

    def __str__(self) -> str:
        return f"{self.as_table()}\n\n{self.summary()}"

    def summary(self) -> str:
        """The set in a few lines: counts, captions, what was skipped, notes, advice."""
        facts = self.statistics
        unusable = len(self.records) - len(self.usable)
        lines = [
            f"{facts['total_images']} pictures in {printable(self.folder)}: {len(self.usable)} usable"
            + (f", {unusable} not" if unusable else ""),
            f"{facts['images_with_captions']} have captions"
            + (f", {facts['avg_caption_length']:.0f} characters on average" if facts["images_with_captions"] else ""),
        ]
        if self.skipped_kinds:
            kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in self.skipped_kinds.items())
            lines.append(f"skipped, not in image_types: {kinds}")
        return "\n".join([*lines, *self.notes, *self.advice])


def _size(record: ImageRecord) -> str:
    return f"{record.width} × {record.height}" if record.width else "-"


def _on_number(count: int) -> str:
    rule = "10–20 at the least, 100–200 recommended, 1000 and more are the most that help"
    if count < 10:
        return f"number: {count} is too few ({rule})."
    if count < 20:
        return f"number: {count} is just enough to try ({rule})."
    if count < 100:
        return f"number: {count} will do, more is better ({rule})."
    if count <= 1000:
        return f"number: {count} is good ({rule})."
    return f"number: {count} is more than is needed ({rule})."


def _on_size(sides: list[int]) -> str:
    small = sum(side < ADVISED_SIDE_PX for side in sides)
    if not small:
        return f"size: good, every short side has at least {ADVISED_SIDE_PX} px."
    return (
        f"size: {small} of {len(sides)} have a short side under {ADVISED_SIDE_PX} px (smallest {min(sides)} px); "
        "take larger originals where there are any."
    )


def _on_shape(usable: tuple[ImageRecord, ...]) -> str:
    """Consistent means: four in five are within a fifth of the middle shape."""
    shapes = [record.width / record.height for record in usable]
    middle = median(shapes)
    alike = sum(1 / 1.2 <= shape / middle <= 1.2 for shape in shapes)
    if alike >= 0.8 * len(shapes):
        return f"shape: good, {alike} of {len(shapes)} have about the same aspect ratio ({middle:.2f})."
    return (
        f"shape: mixed, only {alike} of {len(shapes)} are near the aspect ratio {middle:.2f} (width / height); "
        "crop them alike for steadier results."
    )


def _on_enlarging(sides: list[int], resolution: int) -> str:
    small = [side for side in sides if side < resolution]
    if not small:
        return f"resolution: good, every picture fills {resolution} px."
    fitting = max(64, int(median(sides)) // 64 * 64)
    lower = f"; resolution {fitting} would enlarge only the smaller half" if fitting < resolution else ""
    return (
        f"resolution: {len(small)} of {len(sides)} must be enlarged to reach {resolution} px "
        f"(the smallest {resolution / min(small):.1f}×), which adds no detail{lower}."
    )
