"""One pass over photographs: each file is read once and decoded once, and all that is asked of it comes from that.

Many pictures are looked at by programs of their own, two of them, so that a file that hangs or kills its decoder costs
that program and not the notebook. They speak in lines of JSON.
"""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
from PIL import Image

from lace_lora import near_duplicates, quality
from lace_lora.checkpoint import write_bytes, writing
from lace_lora.errors import LaceError
from lace_lora.image_files import read_picture
from lace_lora.own_programs import READY, Programs
from lace_lora.quality import Quality

WORKERS = 2  # Colab has two cores; each holds one picture
LONGEST_SECONDS = 120.0  # the largest picture that is opened takes some ten
FEW_MB = 20  # up to that, a program of its own takes longer to start than it saves
THUMBNAILS = "thumbnails"  # below cache_dir
THUMBNAIL_PX = 256
_THUMBNAIL_QUALITY = 85

Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True)
class Look:
    """What one look at a file gave; sizes of the upright picture, px."""

    width: int = 0
    height: int = 0
    sha256: str = ""
    fault: str = ""
    notes: tuple[str, ...] = ()
    quality: Quality | None = None
    fingerprint: near_duplicates.Fingerprint | None = None


def look_at(path: Path, side_px: int, thumbnails: Path | None = None) -> Look:
    """Read, decode and measure one file.

    side_px     short side at which pictures are trained; no more than needed for it is decoded of a JPEG
    thumbnails  folder for a small JPEG named by the content, THUMBNAIL_PX at most each way; None makes none
    """
    opened = read_picture(path, enough_px=side_px)
    if opened.image is None:
        return Look(sha256=opened.sha256, fault=opened.fault)
    if thumbnails is not None:
        with suppress(LaceError):  # a full disk: the picture itself is shown instead
            _write_thumbnail(opened.image, thumbnail_path(thumbnails, opened.sha256))
    measured = quality.measured(opened.image, side_px, opened.reduced, opened.luma_table)
    print_ = near_duplicates.fingerprint(opened.image)
    return Look(*opened.size, opened.sha256, "", opened.notes, measured, print_)


def look_at_all(
    paths: Sequence[Path],
    side_px: int,
    *,
    cache_dir: Path | None = None,
    places: Mapping[Path, Path] = MappingProxyType({}),
    faults: Mapping[Path, str] = MappingProxyType({}),
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Look]:
    """The same for many files, in their order.

    cache_dir  folder for small pictures; None makes none
    places     where a file is read instead: its copy on this machine
    faults     files that are not read, and why
    workers    programs that decode side by side; 0 does it in this one; None decides by how much there is
    progress   is told after each picture how many are done, and of how many
    """
    thumbnails = cache_dir / THUMBNAILS if cache_dir is not None else None
    if thumbnails is not None:
        with writing(thumbnails):
            thumbnails.mkdir(parents=True, exist_ok=True)
    count = min(WORKERS if _are_many(paths) else 0, len(paths)) if workers is None else workers
    ask = _Workers() if count else None
    looks: list[Look] = []

    def one(path: Path) -> Look:
        if path in faults:
            return Look(fault=faults[path])
        here = places.get(path, path)
        return ask.look(here, side_px, thumbnails) if ask else look_at(here, side_px, thumbnails)

    with ThreadPoolExecutor(max(1, count)) as threads:
        try:
            for done, look in enumerate(threads.map(one, paths), 1):
                looks.append(look)
                if progress is not None:
                    progress(done, len(paths))
        finally:  # also where the person stops it
            threads.shutdown(wait=False, cancel_futures=True)
            if ask is not None:
                ask.end()
    return looks


def thumbnail_path(thumbnails: Path, sha256: str) -> Path:
    """Where the small picture of a content lies."""
    return thumbnails / f"{sha256}.jpg"


def _write_thumbnail(picture: Image.Image, path: Path) -> None:
    if path.is_file():
        return
    small = picture.copy() if max(picture.size) <= THUMBNAIL_PX else _smaller(picture)
    file = BytesIO()
    small.save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
    write_bytes(path, file.getvalue())


def _smaller(picture: Image.Image) -> Image.Image:
    scale = THUMBNAIL_PX / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _are_many(paths: Sequence[Path]) -> bool:
    total = 0
    for path in paths:
        with suppress(OSError):  # a link to nothing
            total += path.stat().st_size
    return total > FEW_MB * 1e6


# -- programs of their own --


class _Workers:
    """One program for each thread that asks."""

    def __init__(self) -> None:
        self._programs = Programs("lace_lora.survey")
        self.end = self._programs.end

    def look(self, path: Path, side_px: int, thumbnails: Path | None) -> Look:
        """What look_at gives, or the fault that the program hung or ended over it, twice."""
        request = json.dumps([str(path), side_px, str(thumbnails) if thumbnails else None])
        for _ in range(2):  # the first end may be another picture's doing, when memory ran out
            program = self._programs.of_this_thread()
            if program is None:
                return Look(fault="not looked at") if self._programs.is_over else look_at(path, side_px, thumbnails)
            answer, is_too_long = _asked(program, request)
            if answer.endswith("\n"):  # else it was ended in the middle of its answer
                return _look_of(json.loads(answer))
            self._programs.replace()
            if is_too_long:
                return Look(fault=f"took longer than {LONGEST_SECONDS:.0f} s to open")
        return Look(fault="damaged so that it ends the program that opens it, or too large for the memory")


def _asked(program: "subprocess.Popen[str]", request: str) -> tuple[str, bool]:
    """The program's answer, empty where it ended over it, and whether it was ended because it took too long."""
    is_too_long = threading.Event()

    def stop() -> None:
        is_too_long.set()
        program.kill()

    watchdog = threading.Timer(LONGEST_SECONDS, stop)
    watchdog.start()
    try:
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write(request + "\n")
        program.stdin.flush()
        return program.stdout.readline(), is_too_long.is_set()
    except (OSError, ValueError):  # it ended before, or all was ended
        return "", is_too_long.is_set()
    finally:
        watchdog.cancel()


def _row_of(look: Look) -> dict[str, Any]:
    """A look as values that JSON knows."""
    print_ = look.fingerprint
    words = {"fingerprint": None if print_ is None else base64.b64encode(print_.tobytes()).decode("ascii")}
    return asdict(replace(look, fingerprint=None)) | words


def _look_of(row: dict[str, Any]) -> Look:
    measured, text = row.pop("quality"), row.pop("fingerprint")
    print_ = None
    if text is not None:
        found = numpy.frombuffer(base64.b64decode(text), near_duplicates.FINGERPRINT_DTYPE)
        print_ = found.reshape(near_duplicates.FINGERPRINT_SHAPE)
    notes = tuple(row.pop("notes"))
    return Look(**row, notes=notes, quality=Quality(**measured) if measured else None, fingerprint=print_)


def _answer_lines() -> None:
    """Answer each line of the standard input until it ends; nothing else may reach the standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    answers.write(READY)
    answers.flush()
    for line in sys.stdin:
        path, side_px, thumbnails = json.loads(line)
        look = look_at(Path(path), side_px, Path(thumbnails) if thumbnails else None)
        answers.write(json.dumps(_row_of(look)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _answer_lines()
