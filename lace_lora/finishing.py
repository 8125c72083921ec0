"""What is made of every finished design: laid in repeat, its mask, cut out, its outline, enlarged.

Files lie beside the picture under the names of page.BESIDE. They can be asked for long after the picture was drawn, and
are made again where the settings that decide them change; nothing is drawn for it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import checkpoint, cloth, counting, masks, outlines, page, pictures, stopping
from lace_lora.cloth import Repeat
from lace_lora.config import Config
from lace_lora.errors import MachineError, PicturesError, SettingsError
from lace_lora.run_folder import SheetFolder
from lace_lora.sheet import Generation, is_closed, read_finished

IN_REPEAT, MASK, CUT_OUT, OUTLINE, ENLARGED = page.BESIDE

Say = Callable[[str], None]


@dataclass(frozen=True)
class Finishing:
    """What is made of each design, and how."""

    preview: str  # auto, none, plain or mirrored
    mask: bool
    outline: bool
    lace: Any  # auto, light or dark
    threshold: Any  # auto, otsu or local
    upscale: float

    @classmethod
    def of(cls, config: Config) -> "Finishing":
        """As the settings say."""
        return cls(config.preview, config.mask, config.outline, config.lace, config.threshold, config.upscale)

    def kinds(self, repeat: str) -> dict[str, dict[str, Any]]:
        """The files beside each design by their names in page.BESIDE, each with all but the picture that decides it."""
        tones = {"lace": self.lace, "threshold": self.threshold}
        kinds: dict[str, dict[str, Any]] = {}
        if self.preview in ("plain", "mirrored") or (self.preview == "auto" and repeat != "none"):
            kinds[IN_REPEAT] = {"mirrored": self.is_mirrored}
        if self.mask:
            kinds |= {MASK: tones, CUT_OUT: tones}
        if self.outline:
            kinds[OUTLINE] = tones | {"mirrored": self.is_mirrored}
        if self.upscale > 1:
            kinds[ENLARGED] = {"upscale": self.upscale, "mirrored": self.is_mirrored}
        return kinds

    @property
    def is_mirrored(self) -> bool:
        """Whether every other tile will be turned over."""
        return self.preview == "mirrored"

    def check(self, repeat: Repeat, size: tuple[int, int]) -> None:
        """Refuse what cannot be made of designs of that size, w × h px, before any is drawn.

        Raises SettingsError for tiles that cannot be laid so or get too large, MachineError for a missing package.
        """
        cloth.check(size, repeat, self.is_mirrored)
        if self.upscale > 1:
            cloth.check_enlarged(size, self.upscale)
        if self.outline and (problem := outlines.missing_package()):
            raise MachineError(problem)


def finish(
    folder: SheetFolder,
    designs: Sequence[Generation],
    sheet: Sequence[Generation],
    asked: Finishing,
    stop: stopping.Stop,
    say: Say,
) -> bool:
    """Make what is missing beside the designs; returns whether anything was.

    sheet  all designs of the folder: what was made of them with other settings is taken away first, and so is the zip,
           which is packed again when all is there

    What cannot be made of one design is said, and the others go on.
    """
    kinds = asked.kinds(sheet[0].repeat)
    _clear_stale(folder, kinds, sheet)
    missing = [(one, [kind for kind in kinds if not page.beside(one.path, kind).is_file()]) for one in designs]
    missing = [(one, lacking) for one, lacking in missing if lacking]
    if missing:
        folder.zip.unlink(missing_ok=True)
    tell = counting.lines(say, "finishing", len(missing))
    for one, lacking in stop.until(missing):
        for line in _finish_one(one, lacking, asked):
            say(f"! {one.path.name}: {line}")
        tell(1)
    return any(page.beside(one.path, kind).is_file() for one, lacking in missing for kind in lacking)


def is_finished(folder: SheetFolder, sheet: Sequence[Generation], asked: Finishing, is_packed: bool) -> bool:
    """Whether all designs of a sheet are there with all that is made of them, and the sheet was finished as a whole."""
    kinds = asked.kinds(sheet[0].repeat)
    before = _made_with(folder)
    return (
        is_closed(folder, pack=is_packed)
        and len(read_finished(folder, sheet)) == len(sheet)
        and all(before.get(kind) == kinds[kind] for kind in kinds)
        and all(page.beside(one.path, kind).is_file() for one in sheet for kind in kinds)
    )


def _made_with(folder: SheetFolder) -> dict[str, Any]:
    """With which settings each kind of file beside the designs was made."""
    try:
        before = json.loads(folder.finishing.read_text(encoding="utf-8"))
        return before if isinstance(before, dict) else {}
    except (OSError, ValueError):
        return {}


def _clear_stale(folder: SheetFolder, kinds: dict[str, dict[str, Any]], sheet: Sequence[Generation]) -> None:
    """Take away what was made with other settings than those that stand, and put down the new ones."""
    before = _made_with(folder)
    changed = [kind for kind in kinds if before.get(kind) != kinds[kind]]
    for kind in changed:
        folder.zip.unlink(missing_ok=True)
        for one in sheet:
            page.beside(one.path, kind).unlink(missing_ok=True)
    if changed:
        checkpoint.write_json(folder.finishing, dict(sorted((before | kinds).items())))


def _finish_one(one: Generation, lacking: list[str], asked: Finishing) -> list[str]:
    """Make the files that a design lacks; returns what could not be made, and why."""
    repeat: Any = one.repeat
    mirrored = asked.is_mirrored
    problems = []
    with Image.open(one.path) as opened:
        picture = opened.convert("RGB")
    try:
        if IN_REPEAT in lacking:
            laid = cloth.preview(picture, repeat, one.dpi, mirrored=mirrored)
            _write(laid, page.beside(one.path, IN_REPEAT), one, {"preview": asked.preview})
    except (PicturesError, SettingsError) as error:
        problems.append(str(error))
    try:
        if ENLARGED in lacking:
            large = cloth.enlarged(picture, repeat, factor=asked.upscale, mirrored=mirrored)
            _write(large, page.beside(one.path, ENLARGED), one, {"upscale": asked.upscale}, dpi=one.dpi * asked.upscale)
    except (PicturesError, SettingsError) as error:
        problems.append(str(error))
    if not {MASK, CUT_OUT, OUTLINE} & set(lacking):
        return problems
    try:
        found = masks.mask(picture, repeat, lace=asked.lace, threshold=asked.threshold)
        told = {"lace": found.lace, "threshold": found.threshold, "why": found.why, "share": round(found.share, 4)}
        if "!" in found.why:
            problems.append(found.why)
        if MASK in lacking:
            _write(found.image, page.beside(one.path, MASK), one, told, dpi=one.dpi)
        cut = masks.alpha(picture, found.image, repeat)
        if CUT_OUT in lacking:
            _write(cut, page.beside(one.path, CUT_OUT), one, told, dpi=one.dpi)
        if OUTLINE in lacking:
            width_cm, _ = cloth.print_size(*picture.size, one.dpi)
            drawing = outlines.outline(cut.getchannel("A"), width_cm, repeat, mirrored=mirrored, title=one.prompt)
            checkpoint.write_text(page.beside(one.path, OUTLINE), drawing)
    except PicturesError as error:
        problems.append(str(error))
    return problems


def _write(image: Image.Image, path: Path, one: Generation, more: dict[str, Any], *, dpi: float | None = None) -> None:
    details = one.details() | more
    pictures.write_picture(image, path, pictures.parameters_text(details), details, dpi=dpi)
