"""Frames of a video as pictures: one out of every so many, the sharpest near it, and no piece of lace twice.

A video is read twice: once to measure, when hardly anything is kept, and once to write what was chosen. PyAV (extra
`video`), which brings FFmpeg's decoders along, is imported only where a video is read.
"""

import csv
import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from lace_lora import checkpoint, near_duplicates, places, quality
from lace_lora.counting import counted
from lace_lora.errors import MachineError, PicturesError, SettingsError
from lace_lora.file_names import printable, slug

PACKAGE = "av"
EVERY = 30  # frames: a second of most videos
LOOKED_AT = 3  # frames of each stretch, evenly spread; the sharpest of them stands for it
SIDE_PX = 1024  # at which sharpness counts, as in training
# A stretch whose sharpest frame is that much blunter than the median of all, and not sharp by itself, was filmed while
# the camera moved.
SOFT, SOFT_PX = 1.5, 2.0
MOST = 2000  # stretches; comparing more pictures with each other takes hours
JPEG_QUALITY = 95
LIST = "frames.csv"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Frame:
    """One frame that was looked at: its number from 0, its time in seconds, the width of its edges (see quality)."""

    number: int
    seconds: float
    blur_px: float


@dataclass(frozen=True)
class Taken:
    """What was taken out of a video, and what was not.

    written  files, in the video's order, with their frames
    soft     frames of stretches without a sharp one
    alike    frames that show what another one shows more sharply
    count    frames of the video
    """

    folder: Path
    written: tuple[tuple[Path, Frame], ...]
    soft: tuple[Frame, ...]
    alike: tuple[Frame, ...]
    count: int

    def __repr__(self) -> str:
        left = f"{len(self.soft)} left out as blurred, {len(self.alike)} as showing the same as another"
        taken = counted(len(self.written), "picture")
        return f"{taken} out of {counted(self.count, 'frame')}; {left}: {printable(self.folder)}"


def take(
    video: str | Path, output: str | Path, *, every: int = EVERY, keeps_alike: bool = False, say: Say = print
) -> Taken:
    """Write the chosen frames of a video as JPEG into a folder, with frames.csv, which tells of each where it was.

    every        frames of a stretch, of which one is taken at most
    keeps_alike  also write frames that show the same piece as another one
    say          is told what could not be read

    Files are named by their frame, so the same video gives the same files; one that is there already stays.

    Raises MachineError where PyAV is missing, PicturesError where the file is no video that can be read or nothing in
    it is sharp enough, SettingsError where `every` cannot be, RunError where the folder cannot be written.
    """
    path = Path(video).expanduser()
    if every < 1:
        raise SettingsError(f"One of every {every} frames cannot be taken; --every is at least 1, such as {EVERY}.")
    if not path.is_file():
        raise PicturesError(f"There is no video {printable(path)}. Give the place of a file such as lace.mp4.")
    folder = Path(output).expanduser()

    # Look at some frames of each stretch, and keep no more of them than a number and a fingerprint.
    best, count = _sharpest(path, every, say)
    if not best:
        raise PicturesError(f"{printable(path)} holds no picture that can be read. Try to play it; convert it to .mp4.")
    limit = max(SOFT * median(frame.blur_px for frame, _ in best), SOFT_PX)
    sharp = [one for one in best if one[0].blur_px <= limit]
    soft = [frame for frame, _ in best if frame.blur_px > limit]
    chosen = [frame for frame, _ in sharp]
    if not keeps_alike:
        groups = near_duplicates.groups([print_ for _, print_ in sharp])
        chosen = [min((sharp[place][0] for place in group), key=lambda one: one.blur_px) for group in groups]
    chosen = sorted(chosen, key=lambda frame: frame.number)
    alike = [frame for frame, _ in sharp if frame not in chosen]

    # Write those that were chosen.
    places.make(folder, "The folder for frames", "Choose another --output.")
    written = _write(path, folder, chosen, say)
    rows = [(file.name, frame.number, f"{frame.seconds:.3f}", f"{frame.blur_px:.2f}") for file, frame in written]
    out = io.StringIO()
    csv.writer(out).writerows([("file", "frame", "seconds", "blur_px"), *rows])
    checkpoint.write_text(folder / LIST, out.getvalue())
    return Taken(folder, tuple(written), tuple(soft), tuple(alike), count)


# -- inside --


def _sharpest(path: Path, every: int, say: Say) -> tuple[list[tuple[Frame, near_duplicates.Fingerprint]], int]:
    """The sharpest frame of each stretch with its fingerprint, and how many frames there are."""
    found: list[tuple[Frame, near_duplicates.Fingerprint]] = []
    step, count = max(1, every // LOOKED_AT), 0
    for number, seconds, picture_of in _frames(path, say):
        count = number + 1
        if (number % every) % step or (number % every) // step >= LOOKED_AT:
            continue
        if number // every >= MOST:
            raise SettingsError(f"{printable(path)} gives more than {MOST:,} pictures. Choose a larger --every.")
        picture = picture_of()
        frame = Frame(number, seconds, quality.measured(picture, SIDE_PX).blur_px)
        if not found or found[-1][0].number // every != number // every:
            found.append((frame, near_duplicates.fingerprint(picture)))
        elif frame.blur_px < found[-1][0].blur_px:
            found[-1] = (frame, near_duplicates.fingerprint(picture))
    return found, count


def _write(path: Path, folder: Path, chosen: Sequence[Frame], say: Say) -> list[tuple[Path, Frame]]:
    by_number = {frame.number: frame for frame in chosen}
    written = []
    for number, _, picture_of in _frames(path, say):
        if number not in by_number:
            continue
        file = folder / f"{slug(path.stem, 40)}_{number:06d}.jpg"
        if not file.is_file():
            picture = picture_of()
            checkpoint.write_file(file, lambda partial, picture=picture: _save(picture, partial))  # type: ignore[misc]
        written.append((file, by_number[number]))
        if len(written) == len(by_number):
            break
    return written


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _frames(path: Path, say: Say) -> Iterator[tuple[int, float, Callable[[], Image.Image]]]:
    """Number and time of each frame, and what makes an upright picture of it; a fault ends it and is said."""
    package = _package()
    with _opened(package, path) as video:
        if not video.streams.video:
            raise PicturesError(f"{printable(path)} holds no pictures, only sound. Give a video.")
        stream = video.streams.video[0]
        stream.thread_type = "AUTO"
        number = 0
        try:
            for number, frame in enumerate(video.decode(stream)):
                yield number, float(frame.time or 0.0), lambda frame=frame: _upright(frame)  # type: ignore[misc]
        except package.FFmpegError as error:
            reason = f"({error.strerror}); what came before counts"
            say(f"! {printable(path.name)} cannot be read after frame {number} {reason}")


@contextmanager
def _opened(package: Any, path: Path) -> Iterator[Any]:
    try:
        video = package.open(str(path))
    except (package.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PicturesError(
            f"{printable(path)} is no video that can be read ({reason}). Try to play it; convert it to .mp4."
        ) from error
    try:
        yield video
    finally:
        video.close()


def _upright(frame: Any) -> Image.Image:
    """A telephone films lying down and says so beside the picture: by how many degrees to turn it against the clock."""
    picture: Image.Image = frame.to_image().convert("RGB")
    turn = round(getattr(frame, "rotation", 0) or 0)
    return picture.rotate(turn, expand=True) if turn else picture


def _package() -> Any:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise MachineError(
            f"Reading a video needs the package {PACKAGE}, which is not installed. Type pip install {PACKAGE} (in a "
            f"notebook: %pip install {PACKAGE}), then run this again."
        ) from error
