"""One picture file, opened safely: what it shows as an upright sRGB picture, or the reason why it cannot be used.

Nothing here raises anything but PicturesError, prints, or warns, whatever bytes the file holds. Pillow's size limit,
Python's warning filters and the error stream belong to the whole process, so one picture is opened at a time: use
processes, not threads, to open several.
"""

import hashlib
import importlib
import io
import logging
import math
import os
import re
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from lace_lora.errors import PicturesError
from lace_lora.file_names import printable

LARGEST_PICTURE_MP = 200  # honest flat-bed scans reach 100 MP; a decoded picture of 200 MP takes 0.6 GB of memory
LARGEST_FILE_GB = 2
LONGEST_SIDE_PX = 65_535  # JPEG's own limit; to make one row of 200 MP smaller, Pillow takes 5 GB
# A JPEG that is drawn in ten rounds is usual. Each round goes over the whole picture, though it may be of 26 bytes:
# 10 MB of them would keep the decoder busy for hours.
MOST_SCANS = 200

# Pillow's own list also holds formats that start other programs (EPS runs Ghostscript). TGA has no signature: last.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "DDS", "JPEG2000", "AVIF", "HEIF", "TGA")
READABLE_KINDS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".jp2"}
HEIC_KINDS = {".heic", ".heif"}
_HEIC_PACKAGE = "the package pillow-heif (pip install pillow-heif; nothing has to be restarted)"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ICC_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode -> what the profile must describe
_FULL_SCALES = (1.0, 255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
_JPEG_MARKERS = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # but for those that have no length and mark no end
_one_at_a_time = threading.RLock()

# Without a handler of its own, Python prints the warnings of Pillow's loggers on the error stream.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class OpenedPicture:
    """What came of opening one file: a picture with what was done to it, or a fault."""

    image: Image.Image | None
    sha256: str
    fault: str = ""
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)  # width and height of the upright picture in the file, px; the image may be reduced
    reduced: int = 1  # how many pixels of the file one pixel of the image stands for, each way: 1, 2, 4 or 8
    luma_table: tuple[int, ...] = ()  # how coarsely a JPEG keeps light and dark, 64 steps; none in other files


@dataclass(frozen=True)
class Heard:
    """What was said while a file was open: libtiff's lines for the error stream, Pillow's warnings."""

    errors: IO[bytes] | None
    warnings: list[warnings.WarningMessage]


class _Refused(Exception):
    """A picture that is not decoded; its text is the reason."""


def open_picture(path: str | Path) -> Image.Image:
    """The picture as upright 8-bit sRGB, transparency laid on white, the first frame of several.

    Raises PicturesError with the file's name and the reason.
    """
    opened = read_picture(path)
    if opened.image is None:
        raise PicturesError(f"{printable(path)}: {opened.fault}. Replace it with a sound copy, or leave it out.")
    return opened.image


def read_picture(path: str | Path, enough_px: int | None = None) -> OpenedPicture:
    """Read the file once and open it; never raises for what the file holds, and keeps the reason instead.

    enough_px  a short side that is enough: a larger JPEG is then decoded at a half, a quarter or an eighth of its size,
               never below; all of its data is read nevertheless. None decodes it in full.
    """
    try:
        if not os.path.isfile(path):  # a link to nothing; a pipe would be waited for without end
            return OpenedPicture(None, "", "gone, or not a file")
        if Path(path).stat().st_size > LARGEST_FILE_GB * 2**30:
            return OpenedPicture(None, "", f"larger than {LARGEST_FILE_GB} GB, which no photograph is")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        return OpenedPicture(None, "", f"cannot be read from the disk ({getattr(error, 'strerror', None) or error})")
    return open_bytes(data, Path(path).suffix, enough_px)


def open_bytes(data: bytes, suffix: str, enough_px: int | None = None) -> OpenedPicture:
    """The same for the content of a file whose name ended in `suffix`."""
    digest = hashlib.sha256(data).hexdigest()
    with quiet_pillow(data) as heard:
        try:
            opened = _decode(data, suffix, enough_px)
        except Exception as error:  # damaged files raise TypeError, struct.error, SyntaxError and more
            return OpenedPicture(None, digest, _reason(error, data, _last_error(heard)))
        notes = list(opened.notes)
        if complaint := _last_error(heard):
            notes.append(f"damaged, parts may be wrong, look at it ({complaint})")
        if any("Corrupt EXIF" in str(warning.message) for warning in heard.warnings):
            notes.append("its EXIF data are damaged, look whether it is whole and upright")
    return replace(opened, sha256=digest, notes=tuple(notes))


def _decode(data: bytes, suffix: str, enough_px: int | None) -> OpenedPicture:
    """The picture as upright sRGB and notes on what was done; raises whatever Pillow raises."""
    notes: list[str] = []
    source = Image.open(io.BytesIO(data), formats=_readable_formats(looks_like_heic(data)))
    _refuse_endless(source, data)
    expected = Image.registered_extensions().get(suffix.casefold(), source.format)
    if source.format != expected and {source.format, expected} != {"JPEG", "MPO"}:
        notes.append(f"named {suffix}, but a {source.format} inside")
    full, luma_table = source.size, _luma_table(source)
    if enough_px and luma_table:
        enlarge = enough_px / min(full)
        source.draft(None, (math.ceil(full[0] * enlarge), math.ceil(full[1] * enlarge)))
    # load() comes before getexif(): PNG's getexif() swallows half a picture and makes the next load() succeed.
    source.load()
    reduced = round(full[0] / source.size[0])
    if _has_sixteen_bits(source, data):
        notes.append("16-bit colours, of which the upper 8 bits are used")
    picture = _to_srgb(_on_white(_to_eight_bits(source, notes), notes), source.info.get("icc_profile"), notes)
    orientation = _orientation(source, notes)
    if orientation in _TURNS:
        notes.append(f"turned by its EXIF orientation ({orientation})")
        picture = picture.transpose(_TURNS[orientation])
        full = full if orientation < 5 else (full[1], full[0])
    if picture.getcolors(maxcolors=1):
        notes.append("every pixel has the same colour")
    # Last, because it may move the file to its second frame. A phone's .jpg often carries a small second picture.
    with suppress(Exception):
        if getattr(source, "is_animated", False) and not (source.format == "MPO" and expected == "JPEG"):
            notes.append("holds several pictures, the first is used")
    return OpenedPicture(picture, "", "", tuple(notes), full, reduced, luma_table)


def _refuse_endless(source: Image.Image, data: bytes) -> None:
    """Raise _Refused for a small file that would take hours, or gigabytes, of a size that is allowed."""
    if max(source.size) > LONGEST_SIDE_PX:
        raise _Refused(f"claims {max(source.size):,} px on one side, more than the {LONGEST_SIDE_PX:,} px of any JPEG")
    if source.format in ("JPEG", "MPO") and _has_too_many_scans(data):
        raise _Refused(f"damaged (it is drawn in more than {MOST_SCANS} rounds, and no program writes so many)")


def _has_too_many_scans(data: bytes) -> bool:
    """Whether a JPEG is drawn in more than MOST_SCANS rounds, up to its end; embedded pictures are passed over."""
    place, scans = 2, 0
    while scans <= MOST_SCANS and (found := _JPEG_MARKERS.search(data, place)):
        kind, place = data[found.end() - 1], found.end()
        if kind == 0xD9:  # the end
            break
        scans += kind == 0xDA
        place += int.from_bytes(data[place : place + 2], "big")
    return scans > MOST_SCANS


def _luma_table(source: Image.Image) -> tuple[int, ...]:
    tables = getattr(source, "quantization", None)
    return tuple(tables[min(tables)]) if isinstance(tables, dict) and tables else ()


def _has_sixteen_bits(source: Image.Image, data: bytes) -> bool:
    """Whether Pillow gave 8 of 16 bits a colour; greys of 16 bits it gives whole."""
    if source.mode.startswith(("I", "F")):
        return False
    if source.format == "PNG":
        return data[24:25] == b"\x10"  # the header's bit depth
    bits = source.tag_v2.get(258, ()) if isinstance(source, TiffImagePlugin.TiffImageFile) else ()
    return isinstance(bits, tuple) and max(bits, default=8) == 16


def _orientation(source: Image.Image, notes: list[str]) -> int:
    try:
        return int(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF raises OSError, struct.error, SyntaxError and others; the picture itself is sound
        notes.append("its EXIF data cannot be read, taken as upright")
        return 1


def _to_eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point greys to 0..255; Pillow's own conversion would clip them to white.

    The full scale is 65535 for 16-bit files, else the smallest usual one that holds the brightest pixel.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy

    values = numpy.nan_to_num(numpy.asarray(image, dtype=numpy.float32), posinf=0.0, neginf=0.0)
    full = 65535.0
    if image.mode == "F" or values.max() > full:
        full = next((scale for scale in _FULL_SCALES if values.max() <= scale), float(values.max()))
    grey = Image.fromarray(numpy.rint(values * (255 / full)).clip(0, 255).astype(numpy.uint8))
    kind = {"I": "more than 8-bit", "F": "floating-point"}.get(image.mode, "16-bit")
    notes.append(f"{kind} grey, scaled to 8 bits")
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(numpy.where(values == hidden, 0, 255).astype(numpy.uint8))))


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    """Lay transparency on white; a plain conversion would bring hidden colours to light. Palettes become RGB."""
    if image.mode in ("La", "RGBa"):  # colours already multiplied by their alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if not image.has_transparency_data:
        plain = {"1": "L", "P": "RGB"}.get(image.mode)
        return image.convert(plain) if plain else image
    layered = image.convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(layered, mask=layered.getchannel("A"))
    if layered.getchannel("A").getextrema() != (255, 255):
        notes.append("has transparency, laid on white")
    return flat.convert("L") if image.mode in ("1", "L", "LA") else flat


def _to_srgb(image: Image.Image, profile: object, notes: list[str]) -> Image.Image:
    """Convert by the embedded colour profile where there is a readable one for this kind of picture, else plainly."""
    if image.mode == "LAB":  # Pillow itself cannot convert it
        lab = ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB")
        notes.append("CIELAB colours converted to sRGB")
        return _is_there(converted)
    space = _ICC_SPACES.get(image.mode)
    if isinstance(profile, bytes) and profile and space:
        try:
            return _by_profile(image, profile, space, notes)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("its colour profile is broken or of another kind, colours taken as they are")
    if image.mode == "CMYK":
        notes.append("CMYK print colours converted to RGB")
    return image.convert("RGB")


def _by_profile(image: Image.Image, profile: bytes, space: str, notes: list[str]) -> Image.Image:
    described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    name = printable(ImageCms.getProfileDescription(described).strip())
    if described.profile.xcolor_space.strip() != space:
        raise ValueError(f"a profile for {described.profile.xcolor_space}, not {space}")
    if space == "RGB" and name.startswith("sRGB"):
        return image
    converted = ImageCms.profileToProfile(
        image,
        described,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    notes.append(f"colours converted to sRGB from {name or 'its colour profile'}")
    return _is_there(converted)


def _is_there(image: Image.Image | None) -> Image.Image:
    if image is None:  # only the in-place form of Pillow's call gives None
        raise ValueError("no picture came back from the colour conversion")
    return image


def _reason(error: Exception, data: bytes, complaint: str) -> str:
    """Why a file cannot be used, in words for its owner; `complaint` is what a C library said about it."""
    text = printable(str(error).strip())
    if isinstance(error, _Refused):
        return text
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\((\d+) pixels\)", text)
        size = f"claims {int(pixels[1]) / 1e6:,.0f} MP" if pixels else "claims far too many pixels"
        return f"{size}, more than the {LARGEST_PICTURE_MP} MP that are opened here"
    if not data:
        return "empty (0 bytes): the copy or download did not finish"
    if isinstance(error, MemoryError):
        return "too large for the memory of this computer"
    if isinstance(error, UnidentifiedImageError):
        if looks_like_heic(data):
            damaged = "a HEIC picture, but damaged: copy it again, or export it as JPEG"
            return damaged if reads_heic() else f"a HEIC picture, which needs {_HEIC_PACKAGE}, or export it as JPEG"
        if data.lstrip()[:1] in (b"<", b"{"):
            return "a web page or text, not a picture: download it again"
        return "not a picture that can be read here, or damaged at its beginning"
    if any(words in text.casefold() for words in ("truncated", "end of file")) or isinstance(error, EOFError):
        return "cut off before its end: the copy or download did not finish"
    kind = "" if isinstance(error, (OSError, SyntaxError, struct.error)) else f"{type(error).__name__}: "
    return f"damaged ({complaint or kind + text})"


def looks_like_heic(data: bytes) -> bool:
    """Whether the first bytes are those of a phone's HEIC or HEIF photograph, whatever the file's name says."""
    return data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def reads_heic() -> bool:
    """Whether the package for a phone's HEIC pictures is there; asked anew each time, since it may just have come."""
    if "HEIF" in Image.OPEN:
        return True
    importlib.invalidate_caches()
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def how_to_include(kind: str) -> str:
    """What to do so that pictures of a kind, such as `.heic`, count as pictures too."""
    kind = kind.casefold()
    if kind in READABLE_KINDS or (kind in HEIC_KINDS and reads_heic()):
        return f'add "{kind}" to image_types'
    if kind in HEIC_KINDS:
        return f'export them as JPEG, or install {_HEIC_PACKAGE} and add "{kind}" to image_types'
    return "export the pictures as JPEG"


def _readable_formats(with_heic: bool) -> tuple[str, ...]:
    Image.init()
    if with_heic:
        reads_heic()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def quiet_pillow(data: bytes) -> Iterator[Heard]:
    """Our size limit instead of Pillow's, and what Pillow and libtiff say as values instead of noise."""
    with _one_at_a_time, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        usual_limit = Image.MAX_IMAGE_PIXELS
        # Pillow warns above its limit and refuses above twice its limit.
        Image.MAX_IMAGE_PIXELS = LARGEST_PICTURE_MP * 1_000_000 // 2
        try:
            if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                with tempfile.TemporaryFile() as caught, _error_stream_into(caught):
                    yield Heard(caught, warned)
            else:
                yield Heard(None, warned)
        finally:
            Image.MAX_IMAGE_PIXELS = usual_limit


def _last_error(heard: Heard) -> str:
    """The last thing, but for warnings, that a C library wrote to the error stream; empty if nothing."""
    if heard.errors is None:
        return ""
    heard.errors.seek(0)
    lines = heard.errors.read(100_000).decode("utf-8", "replace").splitlines()
    errors = [line for line in lines if line.strip() and "Warning," not in line]
    # Pillow gives libtiff this name for data in memory.
    return printable(errors[-1].removeprefix("tempfile.tif: ").rstrip(". "))[:120] if errors else ""


@contextmanager
def _error_stream_into(file: IO[bytes]) -> Iterator[None]:
    """Send file descriptor 2 elsewhere: libtiff writes there directly, past sys.stderr and past every notebook."""
    try:
        kept = os.dup(2)
    except OSError:  # a program started without an error stream
        yield
        return
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any of Pillow's modes as RGB: transparency on white, more than 8 bits stretched to what is there."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith(("I", "F")):
        import numpy

        values = numpy.nan_to_num(numpy.asarray(picture, dtype=numpy.float64), posinf=0.0, neginf=0.0)
        low, span = values.min(), (values.max() - values.min()) or 1.0
        return Image.fromarray(((values - low) * (255 / span)).round().astype(numpy.uint8)).convert("RGB")
    if picture.mode == "LAB":  # Pillow's own convert does not know it
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB") or Image.new("RGB", picture.size)
    if picture.mode in ("La", "RGBa"):  # colours already multiplied by their alpha
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(layered, mask=layered.getchannel("A"))
    return flat
