"""A folder of photographs before training: sizes, light, sharpness, copies, words, and which of them are unusual.

All of it describes and nothing judges: a photograph that differs most from the others may be the best of them. The
files are only read.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from lace_lora import annotate, caption_lint, charts, counting, local_copies, pictures, weight_free
from lace_lora.charts import Chart, Rgb
from lace_lora.check_report import CheckReport, ImageRecord
from lace_lora.config import Config
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.file_names import printable
from lace_lora.image_files import read_picture
from lace_lora.shapes import bucket_of, bucket_step
from lace_lora.style_statistics import luminance
from lace_lora.swatch import open_swatch

LEAST = 3  # photographs; of fewer none is more usual than the others
BORDER = 0.06  # of each side: what lies there is taken for the ground
TILE_PX, COLUMNS, TILES = 72, 5, 10  # of a sheet in the notebook: small, so that the file stays small
GROUPS, OF_A_GROUP = 3, 3  # shown of near duplicates
JPEG_QUALITY = 75
TOKENS = 75  # CLIP reads no more of a caption at a time
_CELL_PX = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measure:
    """What photographs can be sorted by: in words, its unit, and what those at both ends are called."""

    title: str
    unit: str
    lowest: str
    highest: str


MEASURES = {
    "brightness": Measure("brightness", "%", "the darkest", "the brightest"),
    "contrast": Measure("contrast", "%", "the flattest", "those with most contrast"),
    "ground": Measure("lightness of the ground", "%", "the darkest grounds", "the lightest grounds"),
    "colour": Measure("colourfulness", "%", "the greyest", "the most colourful"),
    "blur": Measure("width of edges", "px", "the sharpest", "the softest"),
    "short side": Measure("short side", "px", "the smallest", "the largest"),
    "unusual": Measure("distance from the middle of the set", "", "the most typical", "the least typical"),
}


@dataclass(frozen=True)
class Photograph:
    """One photograph in numbers.

    values  by names of MEASURES: brightness, contrast (a standard deviation), lightness of the ground and
            colourfulness in percents of the most there can be; blur as quality.Quality has it; px; and how far its
            edges, light, texture and colour lie from the middle of the set (weight_free; no unit)
    ground  what its border shows mostly
    """

    record: ImageRecord
    values: Mapping[str, float]
    ground: Rgb


@dataclass(frozen=True)
class Sheet:
    """Photographs on a page below a text that names them, as a cell shows both."""

    text: str
    picture: Image.Image | None

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """HTML where it is drawn, the text elsewhere."""
        shown = f"<div>{html.escape(self.text).replace(chr(10), '<br>')}</div>"
        if self.picture is None:
            return {"text/plain": self.text, "text/html": shown}
        buffer = io.BytesIO()
        self.picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        first = html.escape(self.text.partition("\n")[0])
        drawn = f"{shown}<img alt='{first}' src='data:image/jpeg;base64,{data}'>"
        return {"text/plain": self.text, "text/html": drawn}


@dataclass(frozen=True)
class Exploration:
    """What was found of a folder. Every question gives a chart or a page; without a front-end, lines."""

    report: CheckReport
    photographs: tuple[Photograph, ...]
    settings: Config
    tokenizers: Sequence[Any] | None = field(repr=False)

    def __repr__(self) -> str:
        return self.report.summary()

    # -- sizes --

    def sizes(self) -> Chart:
        """Short sides against the resolution, and the shapes (buckets) in which they are learnt."""
        resolution = int(self.settings.resolution)
        shorts = charts.histogram(
            [one.values["short side"] for one in self.photographs], "short sides", "px", resolution, "resolution"
        )
        return charts.beside(shorts, charts.bars(self.report.statistics["buckets"], "shapes in training, px"))

    def enlarged(self) -> str:
        """How many would have to be enlarged to be learnt, and which the most."""
        resolution = int(self.settings.resolution)
        times = {one.record.name: _enlarged(one.record.learnt_size, resolution) for one in self.photographs}
        larger = sorted((name for name, by in times.items() if by > 1.0), key=lambda name: -times[name])
        if not larger:
            return f"None of {counting.counted(len(times), 'photograph')} has to be enlarged for {resolution} px."
        named = ", ".join(f"{printable(name)} ({times[name]:.1f} times)" for name in larger[:3])
        return (
            f"{len(larger)} of {counting.counted(len(times), 'photograph')} are enlarged for {resolution} px, the most "
            f"{named}. What is enlarged stays soft: take larger photographs of these, or train at a lower resolution."
        )

    # -- light and sharpness --

    def light(self) -> Chart:
        """Brightness, contrast, colourfulness, and the colours of the grounds from dark to light."""
        drawn = [self._histogram(name) for name in ("brightness", "contrast", "colour")]
        return charts.beside(*drawn, self._grounds())

    def sharpness(self) -> Chart:
        """How wide the edges are at the size of training, and how little or much compression left of the files."""
        qualities = [one.record.quality for one in self.photographs]
        saved = [float(one.jpeg_quality) for one in qualities if one and one.jpeg_quality is not None]
        return charts.beside(self._histogram("blur"), charts.histogram(saved, "JPEG quality of the files"))

    # -- alike and unlike --

    def near_duplicates(self, tile_px: int = TILE_PX) -> Sheet:
        """Pieces that are there more than once, and the largest groups, a row each."""
        groups = sorted(self.report.groups, key=len, reverse=True)
        if not groups:
            return Sheet(
                f"No piece is there twice among {counting.counted(len(self.photographs), 'photograph')}.", None
            )
        record_of = {record.name: record for record in self.report.usable}
        rows = [[self._tile(record_of[name], tile_px) for name in group[:OF_A_GROUP]] for group in groups[:GROUPS]]
        told = [f"{len(group)} times" for group in groups[:GROUPS]]
        lines = [
            f"{counting.counted(len(groups), 'piece')} in {sum(map(len, groups))} photographs of "
            f"{len(self.photographs)}; the largest:",
            *(f"  {times}: {_first(group)}" for times, group in zip(told, groups, strict=False)),
        ]
        return Sheet("\n".join(lines), pictures.strip(rows, told, None, tile_px))

    def sorted_by(self, by: str = "unusual", tile_px: int = TILE_PX) -> Sheet:
        """Both ends of the set by one of MEASURES, each from the lowest to the highest.

        Raises SettingsError for a measure that there is not.
        """
        if by not in MEASURES:
            raise SettingsError(f"Photographs cannot be sorted by {by!r}; choose one of: {', '.join(MEASURES)}.")
        ordered = sorted(self.photographs, key=lambda one: (one.values[by], one.record.name))
        half = min(TILES // 2, len(ordered) // 2)
        measure, lines, sheets = MEASURES[by], [], []
        for words, some in ((measure.lowest, ordered[:half]), (measure.highest, ordered[-half:])):
            labels = [f"{one.values[by]:.3g} {measure.unit}".strip() for one in some]
            tiles = [self._tile(one.record, tile_px) for one in some]
            sheets.append((words, pictures.contact_sheet(tiles, COLUMNS, tile_px, labels)))
            told = (f"{printable(one.record.name)} ({label})" for one, label in zip(some, labels, strict=True))
            lines.append(f"{words}: {', '.join(told)}")
        return Sheet("\n".join(lines), pictures.stacked(sheets, 14))

    # -- words --

    def words(self) -> Chart:
        """How long the captions are, in tokens where the base model is here, else in words; and what they name."""
        token, captions = self.settings.concept_token, self._captions()
        words = [caption_lint.words_of(caption, token) for caption in captions]
        counts = Counter(word for some in words for word in set(some) - caption_lint.STOP_WORDS)
        if self.tokenizers:
            lengths = [max(len(cut.tokenize(text)) for cut in self.tokenizers) for text in captions]
            mark = TOKENS if max(lengths, default=0) > TOKENS / 2 else None
            long = charts.histogram(lengths, "length of captions", "tokens", mark, "read at once", "caption")
        else:
            long = charts.histogram([len(some) for some in words], "length of captions", "words", what="caption")
        frequent = dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))
        return charts.beside(long, charts.bars(frequent, "captions with the word"))

    def findings(self) -> str:
        """What is worth mending in the captions, a line each."""
        captions = {one.record.name: one.record.caption for one in self.photographs if one.record.caption}
        lines = caption_lint.describe(annotate.lint(self.settings, captions)) if captions else []
        bare = len(self.photographs) - len(captions)
        if bare:
            lines.insert(0, f"{counting.counted(bare, 'photograph')} without a caption: instance_prompt stands for it.")
        return "\n".join(lines) or "nothing is wrong with the captions"

    # -- inside --

    def _captions(self) -> list[str]:
        return [one.record.caption for one in self.photographs if one.record.caption]

    def _histogram(self, name: str) -> Chart:
        measure = MEASURES[name]
        return charts.histogram([one.values[name] for one in self.photographs], measure.title, measure.unit)

    def _grounds(self) -> Chart:
        ordered = sorted(self.photographs, key=lambda one: one.values["ground"])
        light = [one.values["ground"] for one in ordered]
        dark, bright = sum(one < 100 / 3 for one in light), sum(one > 200 / 3 for one in light)
        said = f"{dark} dark, {len(light) - dark - bright} between, {bright} light"
        return charts.colours([one.ground for one in ordered], "grounds, from dark to light", said)

    def _tile(self, record: ImageRecord, side_px: int) -> Image.Image:
        is_as_it_is = record.swatch is None or not record.swatch.changes_pixels
        if record.thumbnail is not None and record.thumbnail.is_file() and is_as_it_is:
            return pictures.thumbnail(record.thumbnail, side_px)
        return pictures.thumbnail(_opened(record, self.settings), side_px)


def explore(report: CheckReport, settings: Config, say: Say = print) -> Exploration:
    """Measure every photograph that would be learnt; what cannot be opened any more is named and left out.

    report    of `check.run` with the same settings, whose resolution is a number
    say       is told how far it is

    Raises PicturesError where fewer than LEAST are left.
    """
    tell = counting.lines(say, "measured", len(report.learnt))
    records, numbers, features = [], [], []
    for record in report.learnt:
        try:
            picture = _opened(record, settings).convert("RGB")
        except PicturesError as error:
            say(f"! left out: {error}")
        else:
            records.append(record)
            numbers.append(_numbers(picture))
            features.append(weight_free.features(picture))
        tell(1)
    if len(records) < LEAST:
        raise PicturesError(
            f"Only {len(records)} of the photographs in {printable(report.folder)} can be measured; at least {LEAST} "
            "are needed. Check images_dir and image_types."
        )
    rows = numpy.stack(features)
    far = numpy.linalg.norm(weight_free.Scale.of(rows).apply(rows), axis=1)
    photographs = [
        Photograph(record, values | {"unusual": float(one), **_of_record(record)}, ground)
        for record, (values, ground), one in zip(records, numbers, far, strict=True)
    ]
    return Exploration(report, tuple(photographs), settings, annotate.tokenizers_here(settings))


# -- inside --


def _opened(record: ImageRecord, settings: Config) -> Image.Image:
    """The photograph as it is learnt, large enough to be measured; of a JPEG in Drive the copy on this machine."""
    path = record.path
    if local_copies.is_on_drive(path.parent, settings.drive_mount_path):
        try:
            path = local_copies.local_copy(path, Path(settings.cache_dir).expanduser())
        except OSError as error:
            raise PicturesError(f"{printable(record.name)} cannot be read from Drive ({error.strerror}).") from error
    if record.swatch is not None and record.swatch.changes_pixels:
        return open_swatch(path, record.swatch)
    opened = read_picture(path, enough_px=2 * weight_free.SIDE)
    if opened.image is None:
        raise PicturesError(f"{printable(record.name)}: {opened.fault}")
    return opened.image


def _numbers(picture: Image.Image) -> tuple[dict[str, float], Rgb]:
    small = picture.resize((weight_free.SIDE, weight_free.SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    rgb: NDArray[numpy.float64] = numpy.asarray(small, numpy.float64) / 255
    light, width = luminance(rgb), max(1, round(BORDER * weight_free.SIDE))
    is_border = numpy.ones(light.shape, bool)
    is_border[width:-width, width:-width] = False
    ground = numpy.median(rgb[is_border], axis=0)
    values = {
        "brightness": 100 * float(light.mean()),
        "contrast": 100 * float(light.std()),
        "colour": 100 * float((rgb.max(-1) - rgb.min(-1)).mean()),
        "ground": 100 * float(luminance(ground)),
    }
    red, green, blue = (round(255 * one) for one in ground.tolist())
    return values, (red, green, blue)


def _of_record(record: ImageRecord) -> dict[str, float]:
    blur = record.quality.blur_px if record.quality else 0.0
    return {"blur": blur, "short side": float(min(record.learnt_size))}


def _enlarged(size: tuple[int, int], resolution: int) -> float:
    """By how much it is scaled to cover its bucket."""
    height, width = bucket_of(*size, resolution, bucket_step(resolution, _CELL_PX))
    return max(width / size[0], height / size[1])


def _first(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more
