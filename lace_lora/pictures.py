"""Pictures to look at and to keep: contact sheets, strips to compare, thumbnails, and files that say what made them."""

import io
import json
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lace_lora.checkpoint import write_bytes
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.file_names import printable, slug
from lace_lora.image_files import quiet_pillow, read_picture

__all__ = [
    "contact_sheet",
    "parameters_text",
    "read_details",
    "read_parameters",
    "slug",
    "stacked",
    "strip",
    "thumbnail",
    "write_picture",
]

Picture = Image.Image | Path | str
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

DETAILS = "lace_lora"  # name of the text chunk that holds our JSON
PARAMETERS = "parameters"  # the name that A1111 and Civitai look for
JPEG_QUALITY = 95
_UNICODE_COMMENT = b"UNICODE\0"  # the character code that opens an EXIF UserComment; A1111 writes UTF-16-BE after it

_PAPER, _INK, _FRAME = (246, 245, 242), (45, 45, 45), (225, 223, 218)
_GAP_PX = 8
# Pillow's own font lacks Turkish letters; these are on Linux and Colab, on Windows and on macOS.
_FONTS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf", "Helvetica.ttc")

_SAMPLERS = {  # our setting -> A1111's name
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "euler": "Euler",
    "ddim": "DDIM",
}


# Sheets


def thumbnail(picture: Picture, side_px: int = 256) -> Image.Image:
    """The whole picture scaled to fit a square of that side; a file that cannot be read gives a tile that says so."""
    if not isinstance(picture, Image.Image):
        opened = read_picture(picture)
        picture = opened.image or _tile_of_words(f"{Path(picture).name}: cannot be read", side_px)
    scale = side_px / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)


def contact_sheet(
    pictures: Sequence[Picture],
    columns: int = 6,
    thumb_px: int = 256,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """All pictures in rows, each with its label below.

    Raises PicturesError if there are none, or not one label a picture.
    """
    if labels is not None and len(labels) != len(pictures):
        raise PicturesError(f"A contact sheet needs one label a picture: {len(labels)} for {len(pictures)} pictures.")
    columns = min(columns, len(pictures)) or 1
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    below = [labels[first : first + columns] for first in range(0, len(labels), columns)] if labels else None
    return _lay_out(rows, thumb_px, below=below, title=title)


def strip(
    rows: Sequence[Sequence[Picture]],
    row_labels: Sequence[str],
    column_labels: Sequence[str] | None = None,
    thumb_px: int = 256,
    title: str = "",
) -> Image.Image:
    """Rows to compare column by column, such as base above LoRA at the same seeds; labels left and on top.

    Raises PicturesError if there are no pictures, or not one label a row.
    """
    if len(row_labels) != len(rows):
        raise PicturesError(f"A strip needs one label a row: {len(row_labels)} for {len(rows)} rows.")
    return _lay_out(rows, thumb_px, left=row_labels, top=column_labels, title=title)


def stacked(sheets: Sequence[tuple[str, Image.Image]], font_px: int = 18) -> Image.Image:
    """Sheets below each other, each under its heading, which takes as many lines as it needs (eight at most).

    Raises PicturesError if there are none.
    """
    if not sheets:
        raise PicturesError("There are no sheets to put on a page; make or choose some pictures first.")
    font = font_of(font_px)
    width = max(sheet.width for _, sheet in sheets)
    headings = [wrapped(heading, font, width - 2 * _GAP_PX, 8) for heading, _ in sheets]
    heights = [_GAP_PX + len(lines) * line_height(font) for lines in headings]
    page = Image.new("RGB", (width, sum(heights) + sum(sheet.height for _, sheet in sheets)), _PAPER)
    draw, y = ImageDraw.Draw(page), 0
    for lines, height, (_, sheet) in zip(headings, heights, sheets, strict=True):
        _write(draw, _GAP_PX, y + _GAP_PX, lines, font)
        page.paste(sheet, (0, y + height))
        y += height + sheet.height
    return page


def _lay_out(
    rows: Sequence[Sequence[Picture]],
    thumb_px: int,
    *,
    left: Sequence[str] = (),
    top: Sequence[str] | None = None,
    below: Sequence[Sequence[str]] | None = None,
    title: str = "",
) -> Image.Image:
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise PicturesError("There are no pictures to lay out; make or choose some first.")
    font = font_of(max(11, min(20, thumb_px // 14)))
    line_px = line_height(font)
    beside = [wrapped(text, font, thumb_px * 2 // 3) for text in left]
    beside_px = max((int(font.getlength(line)) + _GAP_PX for lines in beside for line in lines), default=0)
    under = [[wrapped(text, font, thumb_px) for text in row] for row in below or [[]] * len(rows)]
    under_px = [max(map(len, row), default=0) * line_px for row in under]
    head_px = (line_px + _GAP_PX) * (bool(title) + bool(top)) + _GAP_PX
    xs = [_GAP_PX + beside_px + column * (thumb_px + _GAP_PX) for column in range(columns)]

    size = (xs[-1] + thumb_px + _GAP_PX, head_px + sum(thumb_px + _GAP_PX + text_px for text_px in under_px))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        _write(draw, _GAP_PX, _GAP_PX, wrapped(title, font, size[0] - 2 * _GAP_PX, 1), font)
    for x, text in zip(xs, top or (), strict=False):
        _write(draw, x, head_px - _GAP_PX // 2 - line_px, wrapped(text, font, thumb_px, 1), font)

    y = head_px
    for number, row in enumerate(rows):
        if beside:
            _write(draw, _GAP_PX, y + (thumb_px - len(beside[number]) * line_px) // 2, beside[number], font)
        for x, picture in zip(xs, row, strict=False):
            small = thumbnail(picture, thumb_px)
            draw.rectangle((x, y, x + thumb_px - 1, y + thumb_px - 1), _FRAME)
            sheet.paste(small, (x + (thumb_px - small.width) // 2, y + (thumb_px - small.height) // 2))
        for x, lines in zip(xs, under[number], strict=False):
            _write(draw, x, y + thumb_px + 2, lines, font)
        y += thumb_px + _GAP_PX + under_px[number]
    return sheet


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], font: Font) -> None:
    for number, line in enumerate(lines):
        draw.text((x, y + number * line_height(font)), line, _INK, font)


def _tile_of_words(text: str, side_px: int) -> Image.Image:
    tile = Image.new("RGB", (side_px, side_px), _FRAME)
    font = font_of(max(11, side_px // 14))
    _write(ImageDraw.Draw(tile), _GAP_PX, side_px // 3, wrapped(text, font, side_px - 2 * _GAP_PX, 4), font)
    return tile


@cache
def font_of(size_px: int) -> Font:
    """A font that is on this machine, at a size in px."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size_px)
        except OSError:
            continue
    return ImageFont.load_default(size_px)


def line_height(font: Font) -> int:
    """Height of a line of text, px."""
    return int(font.getbbox("Ğg|")[3]) + 4


def wrapped(text: str, font: Font, width_px: int, longest: int = 2) -> list[str]:
    """The text in at most `longest` lines of that width, cut with … where it does not fit; never empty."""
    lines = [""]
    for word in drawable(text, font).split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(joined) > width_px:
            lines.append(word)
        else:
            lines[-1] = joined
    if len(lines) > longest:
        lines = [*lines[: longest - 1], " ".join(lines[longest - 1 :])]
    return [_cut(line, font, width_px) for line in lines]


def _cut(line: str, font: Font, width_px: int) -> str:
    if font.getlength(line) <= width_px:
        return line
    while line and font.getlength(line + "…") > width_px:
        line = line[:-1]
    return line.rstrip() + "…"


def drawable(text: str, font: Font) -> str:
    """The text with what the font cannot draw replaced by its plain letter, or by ?; it would show as empty boxes."""
    missing = bytes(font.getmask("\uffff"))

    def drawn(sign: str) -> str:
        if sign.isprintable() and (sign.isascii() or bytes(font.getmask(sign)) != missing):
            return sign
        plain = {"ı": "i", "×": "x", "–": "-", "—": "-", "→": ">"}.get(sign)
        plain = plain or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
        unseen = unicodedata.category(sign) in ("Cc", "Cf", "Mn")
        return plain if plain.isprintable() and plain else " " if sign.isspace() else "" if unseen else "?"

    return "".join(map(drawn, unicodedata.normalize("NFC", text)))


# Files


def write_picture(
    image: Image.Image, path: str | Path, parameters: str, details: Mapping[str, Any], *, dpi: float | None = None
) -> None:
    """Write a .png or .jpg, whole or not at all, that carries the text other tools read and our own JSON.

    parameters  what A1111 and Civitai show; see parameters_text
    details     our record of how it was made, plain values
    dpi         px an inch in print; PNG keeps whole px a metre of it, JPEG whole px an inch

    PNG holds both as text chunks. JPEG (quality 95, full colour resolution) holds the text as EXIF UserComment, as
    A1111 does, and the JSON as the file's comment. The same picture and texts always give the same bytes.
    """
    target = Path(path)
    parameters = parameters.encode("utf-8", "replace").decode()  # half characters have no place in a file
    content = json.dumps(details, default=str)  # ASCII, so that every reader agrees on what a text chunk says
    encoded = io.BytesIO()
    density: dict[str, Any] = {"dpi": (dpi, dpi)} if dpi else {}
    if target.suffix.casefold() == ".png":
        info = PngInfo()
        info.add_text(PARAMETERS, parameters)  # becomes an iTXt chunk, UTF-8, where Latin-1 does not hold it
        info.add_text(DETAILS, content)
        image.save(encoded, "PNG", pnginfo=info, **density)
    elif target.suffix.casefold() in (".jpg", ".jpeg"):
        comment = f"{DETAILS} {content}"
        exif = _exif_of(parameters)
        options = {"quality": JPEG_QUALITY, "subsampling": 0, "exif": exif, "comment": comment}
        image.convert("RGB").save(encoded, "JPEG", **options, **density)
    else:
        raise SettingsError(f"{printable(target.name)}: pictures are written as png or jpg; correct image_format.")
    write_bytes(target, encoded.getvalue())


def _exif_of(parameters: str) -> bytes:
    """An EXIF block with nothing but a UserComment.

    By hand, because Pillow writes this tag as BYTE; the standard, and the reader that A1111 uses, have UNDEFINED (7).
    """
    text = _UNICODE_COMMENT + parameters.encode("utf-16-be")
    to_exif = struct.pack(">HHHII", 1, ExifTags.IFD.Exif, 4, 1, 26)  # one entry: tag, type LONG, count, offset
    to_text = struct.pack(">HHHII", 1, ExifTags.Base.UserComment, 7, len(text), 44)
    return b"Exif\0\0" + b"MM\0*\0\0\0\x08" + to_exif + bytes(4) + to_text + bytes(4) + text


def read_details(path: str | Path) -> dict[str, Any]:
    """Our JSON out of a picture that write_picture wrote.

    Raises PicturesError if the file cannot be read, or carries none because another program saved it again.
    """
    info, _ = _read_texts(path)
    content = str(info.get(DETAILS, ""))
    comment = info.get("comment", b"")
    if isinstance(comment, bytes) and comment.startswith(DETAILS.encode() + b" "):
        content = comment.decode("ascii", "replace").partition(" ")[2]
    try:
        details = json.loads(content)
    except ValueError:
        details = None
    if not isinstance(details, dict):
        raise PicturesError(
            f"{printable(path)} does not say how it was made; take the file as Lace LoRA wrote it, not one saved again."
        )
    return details


def read_parameters(path: str | Path) -> str:
    """The text for other tools out of a .png or .jpg; empty if there is none."""
    info, comment = _read_texts(path)
    if comment.startswith(_UNICODE_COMMENT):
        return comment[len(_UNICODE_COMMENT) :].decode("utf-16-be", "replace")
    return str(info.get(PARAMETERS, ""))


def _read_texts(path: str | Path) -> tuple[dict[str | tuple[int, int], Any], bytes]:
    """Pillow's info and the EXIF UserComment of a file, without decoding its pixels."""
    try:
        data = Path(path).read_bytes()
        with quiet_pillow(data), Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
            return dict(image.info), comment if isinstance(comment, bytes) else b""
    except Exception as error:  # a damaged file raises whatever Pillow happens to stumble over
        reason = getattr(error, "strerror", None) or "damaged, or neither PNG nor JPEG"
        raise PicturesError(f"{printable(path)} cannot be read ({reason}). Take a sound copy.") from error


def parameters_text(details: Mapping[str, Any]) -> str:
    """The text that A1111 writes and A1111 and Civitai read: prompt, negative prompt, and a line of settings.

    details  by the names of our settings: prompt, negative_prompt, num_inference_steps, scheduler, guidance_scale,
             seed, width, height, pretrained_model, refiner_model, refine, refiner_start, refine_strength; what is
             missing or None is left out
    """
    lines = [str(details.get("prompt") or "")]
    if negative := details.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    scheduler = details.get("scheduler")
    width, height = details.get("width"), details.get("height")
    facts: dict[str, Any] = {
        "Steps": details.get("num_inference_steps"),
        "Sampler": _SAMPLERS.get(str(scheduler), scheduler),
        "CFG scale": details.get("guidance_scale"),
        "Seed": details.get("seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Model": _model_name(details.get("pretrained_model")),
    }
    if details.get("refine") == "img2img":
        facts["Denoising strength"] = details.get("refine_strength")
    if details.get("refine") == "ensemble":
        facts["Refiner"] = _model_name(details.get("refiner_model"))
        facts["Refiner switch at"] = details.get("refiner_start")
    facts["Version"] = "Lace LoRA"
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items() if value is not None))
    return "\n".join(lines)


def _model_name(model: Any) -> str | None:
    return Path(str(model)).name if model else None


def _quoted(value: Any) -> str:
    """A value that holds a separator is written as a JSON string, as A1111 does."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ',:\n"') else text
