"""Photographs: listed, opened, checked, annotated, and kept in dataset.json (L1, L10, L11, P4, C5, C6, C17)."""

import inspect
import io
import json
import os
import struct
import tempfile
import unicodedata
import zlib
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageOps

from lace_lora import checkpoint, data_utils, image_files, survey
from lace_lora.check_report import CheckReport, ImageRecord
from lace_lora.data_utils import (
    Dataset,
    Example,
    add_image,
    check_images,
    create_annotations,
    list_images,
    load_dataset,
    open_picture,
    read_annotations,
    save_dataset,
)
from lace_lora.errors import LaceError, PicturesError, SettingsError
from lace_lora.file_names import relative_name

PROMPT = "a photo of <myspecialstyle>"


def drawn(width: int = 90, height: int = 70) -> Image.Image:
    """A picture that looks different from every side."""
    image = Image.new("RGB", (width, height), (20, 30, 60))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, width // 2, height // 4), (230, 60, 40))
    pen.ellipse((width // 2, height // 2, width - 4, height - 4), (240, 235, 220))
    return image


def jpg(folder: Path, name: str, image: Image.Image | None = None, **saving: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or drawn()).save(path, "JPEG", **saving)
    return path


def encoded(image: Image.Image, kind: str, **saving: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **saving)
    return file.getvalue()


def opened(tmp_path: Path, data: bytes, name: str = "picture.png") -> image_files.OpenedPicture:
    path = tmp_path / name
    path.write_bytes(data)
    return image_files.read_picture(path)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


# Listing


def test_the_signature_of_list_images_is_the_users_own():
    """L10."""
    parameters = inspect.signature(list_images).parameters
    assert list(parameters) == ["image_dir", "extensions"]
    assert parameters["extensions"].default == {".jpg"}


def test_pictures_are_listed_in_order_with_sub_folders_and_whatever_case_their_endings_have(tmp_path):
    """L1, L10."""
    for name in ("b.JPG", "a.jpg", "sub/deeper/c.Jpg", "sub-2.jpg", "d.jpeg", "e.png", ".hidden.jpg", "._a.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.jpg").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        "a.jpg",
        "b.JPG",
        "sub/deeper/c.Jpg",
        "sub-2.jpg",
    ]
    assert list_images(str(tmp_path)) == sorted(list_images(tmp_path))
    assert [path.name for path in list_images(tmp_path, (".JPEG", "png"))] == ["d.jpeg", "e.png"]


def test_three_hundred_pictures_are_found(tmp_path):
    """L1."""
    for number in range(300):
        (tmp_path / f"lace-{number:03}.jpg").touch()
    assert len(list_images(tmp_path)) == 300


def test_a_linked_folder_is_looked_into_once_even_when_it_leads_back(tmp_path):
    """L10: Drive shows shortcuts as links."""
    jpg(tmp_path / "elsewhere", "a.jpg")
    album = tmp_path / "album"
    album.mkdir()
    (album / "shortcut").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(album)
    assert [path.relative_to(album).as_posix() for path in list_images(album)] == ["shortcut/a.jpg"]


def test_a_missing_folder_is_named_with_the_nearest_name(tmp_path):
    """L10."""
    (tmp_path / "babanne-images").mkdir()
    with pytest.raises(PicturesError, match="There is no folder .*babane-images. Did you mean .*babanne-images?"):
        list_images(tmp_path / "babane-images")
    with pytest.raises(PicturesError, match="There is no folder .*nowhere/photos. Correct images_dir."):
        list_images(tmp_path / "nowhere" / "photos")


def test_drive_that_is_not_mounted_is_thought_of():
    """L2."""
    with pytest.raises(PicturesError, match="Mount Drive first, or correct images_dir."):
        list_images("/content/drive/MyDrive/babanne-images")


def test_a_file_in_place_of_a_folder_is_said(tmp_path):
    """L10."""
    with pytest.raises(PicturesError, match="a.jpg is a file; images_dir must be the folder"):
        list_images(jpg(tmp_path, "a.jpg"))


def test_an_empty_folder_is_said(tmp_path):
    """L10."""
    with pytest.raises(PicturesError, match=r"No \.jpg in .* \(the folder is empty\)\. Put the pictures there"):
        list_images(tmp_path)


def test_a_folder_of_heic_only_says_how_many_and_what_to_do(tmp_path):
    """L10."""
    for name in ("a.HEIC", "b.HEIC", "c.HEIC"):
        (tmp_path / name).touch()
    with pytest.raises(PicturesError) as caught:
        list_images(tmp_path)
    assert str(caught.value).startswith(f"No .jpg in {tmp_path} (3 .HEIC found). ")
    assert str(caught.value).endswith('add ".heic" to image_types.')


def test_pictures_of_another_kind_can_be_added_and_other_files_cannot(tmp_path):
    """L10."""
    (tmp_path / "a.png").touch()
    with pytest.raises(PicturesError, match=r'\(1 \.png found\)\. Add "\.png" to image_types\.'):
        list_images(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "a.pdf")
    with pytest.raises(PicturesError, match=r"\(1 \.pdf found\)\. Export the pictures as JPEG"):
        list_images(tmp_path)


def test_no_kinds_at_all_is_a_mistake_in_the_settings(tmp_path):
    """L10."""
    with pytest.raises(SettingsError, match="image_types names no kind"):
        list_images(tmp_path, ())


# Opening one picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_stands_upright(tmp_path, orientation):
    """L1: compared with Pillow's own exif_transpose."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = jpg(tmp_path, "a.jpg", exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
    result = image_files.read_picture(path)
    assert numpy.array_equal(numpy.asarray(result.image), numpy.asarray(expected))
    assert result.notes == ((f"turned by its EXIF orientation ({orientation})",) if orientation > 1 else ())


def test_sixteen_bit_greys_are_scaled_and_not_clipped_to_white(tmp_path):
    """L1: 65535 / 257 = 255, by hand."""
    ramp = (numpy.arange(64 * 64, dtype=numpy.uint32).reshape(64, 64) * 16).astype(numpy.uint16)
    result = opened(tmp_path, encoded(Image.fromarray(ramp), "PNG"))
    assert numpy.array_equal(numpy.asarray(result.image)[..., 0], numpy.rint(ramp / 257.0).astype(numpy.uint8))
    assert result.notes == ("16-bit grey, scaled to 8 bits",)


def test_big_endian_and_floating_point_tiffs_come_out_alike(tmp_path):
    """L1."""
    ramp = (numpy.arange(64 * 64, dtype=numpy.uint32).reshape(64, 64) * 16).astype(numpy.uint16)
    expected = numpy.rint(ramp / 257.0)
    unit = Image.fromarray((ramp / 65535).astype(numpy.float32))
    wide = Image.fromarray(ramp.astype(numpy.int32))
    for number, image in enumerate((unit, wide)):
        result = opened(tmp_path, encoded(image, "TIFF"), f"{number}.tif")
        assert numpy.abs(numpy.asarray(result.image)[..., 1] - expected).max() <= 1
    big = struct.pack(">2sHI", b"MM", 42, 8) + struct.pack(">H", 8)
    tags = {256: 64, 257: 64, 258: 16, 259: 1, 262: 1, 273: 110, 278: 64, 279: 8192}
    big += b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items()) + bytes(4)
    result = opened(tmp_path, big.ljust(110, b"\0") + ramp.astype(">u2").tobytes(), "big.tif")
    assert numpy.array_equal(numpy.asarray(result.image)[..., 2], expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_is_laid_on_white_and_hidden_colours_stay_hidden(tmp_path, mode):
    """L1: the left half is transparent black, the right half opaque grey 90."""
    grey = numpy.full((64, 64), 90, dtype=numpy.uint8)
    grey[:, :32] = 0
    if mode in ("RGBA", "LA"):
        alpha = Image.fromarray(numpy.where(grey == 90, 255, 0).astype(numpy.uint8))
        image = Image.fromarray(grey).convert(mode)
        image.putalpha(alpha)
        data = encoded(image, "PNG")
    else:
        image = Image.fromarray(grey).convert(mode)
        hidden = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
        data = encoded(image, "PNG", transparency=hidden)
    result = opened(tmp_path, data)
    pixels = numpy.asarray(result.image)
    assert (pixels[:, :32] == 255).all()
    assert (pixels[:, 32:] == 90).all()
    assert result.notes == ("has transparency, laid on white",)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    """L1: 200 at alpha 128 over white is 227.4."""
    image = Image.new("RGBA", (64, 64), (200, 200, 200, 128))
    image.putpixel((0, 0), (0, 0, 0, 255))
    pixels = numpy.asarray(opened(tmp_path, encoded(image, "PNG")).image)
    assert pixels[5, 5, 0] == round(200 * 128 / 255 + 255 * 127 / 255)
    assert tuple(pixels[0, 0]) == (0, 0, 0)


def test_an_alpha_channel_that_hides_nothing_is_not_worth_a_word(tmp_path):
    result = opened(tmp_path, encoded(drawn().convert("RGBA"), "PNG"))
    assert result.notes == ()
    assert numpy.array_equal(numpy.asarray(result.image), numpy.asarray(drawn()))


def test_print_colours_become_rgb(tmp_path):
    """L1: no ink is white, all black ink is black."""
    image = Image.new("CMYK", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (32, 0, 64, 64))
    result = opened(tmp_path, encoded(image, "JPEG", quality=100), "a.jpg")
    assert result.image.getpixel((4, 4)) == pytest.approx((255, 255, 255), abs=3)
    assert result.image.getpixel((60, 4)) == pytest.approx((0, 0, 0), abs=3)
    assert result.notes == ("CMYK print colours converted to RGB",)


def test_lab_colours_become_rgb(tmp_path):
    """L1: L* = 53.6 without colour is sRGB 128 (CIE 1976)."""
    # Pillow stores L* as 0..255, and a* and b* as signed bytes shifted by 128.
    image = Image.merge("LAB", [Image.new("L", (64, 64), value) for value in (round(53.585 * 2.55), 128, 128)])
    image.putpixel((0, 0), (0, 128, 128))
    result = opened(tmp_path, encoded(image, "TIFF"), "a.tif")
    assert result.image.getpixel((9, 9)) == pytest.approx((128, 128, 128), abs=2)


def test_an_embedded_colour_profile_is_obeyed(tmp_path):
    """L1: a profile whose red and blue are exchanged turns stored red into blue."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = plain.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    exchanged = exchanged.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    result = opened(tmp_path, encoded(image, "PNG", icc_profile=exchanged))
    assert result.image.getpixel((9, 9)) == pytest.approx((0, 0, 255), abs=2)
    assert result.image.getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=2)
    assert result.notes[0].startswith("colours converted to sRGB from test")
    assert opened(tmp_path, encoded(image, "PNG", icc_profile=plain)).notes == ()


def test_a_broken_colour_profile_costs_only_a_note(tmp_path):
    result = opened(tmp_path, encoded(drawn(), "PNG", icc_profile=b"no profile at all"))
    assert numpy.array_equal(numpy.asarray(result.image), numpy.asarray(drawn()))
    assert result.notes == ("its colour profile is broken or of another kind, colours taken as they are",)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].putpixel((0, 0), (0, 0, 0))
    result = opened(tmp_path, encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    assert result.image.getpixel((9, 9)) == (255, 0, 0)
    assert result.notes == ("holds several pictures, the first is used",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty (0 bytes)"),
        (b"<!DOCTYPE html><html>", "a web page or text, not a picture"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC picture, which needs the package pillow-heif"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read here"),
        (b"bytes of no kind of picture", "not a picture that can be read here"),
        (encoded(drawn(), "JPEG")[:-400], "cut off before its end"),
        (encoded(drawn(300, 300), "PNG", compress_level=0)[:-9000], "cut off before its end"),
        (png_header(20000, 20000) + png_chunk(b"IDAT", b""), "claims 400 MP, more than the 200 MP"),
    ],
    ids=["empty", "web page", "HEIC", "PostScript", "no picture", "cut JPEG", "cut PNG", "bomb"],
)
def test_what_cannot_be_opened_has_its_reason(tmp_path, data, reason):
    """P4, L1: a PostScript file must not start Ghostscript."""
    result = opened(tmp_path, data, "picture.jpg")
    assert result.image is None
    assert reason in result.fault
    with pytest.raises(PicturesError, match=r"picture\.jpg: .*Replace it with a sound copy, or leave it out"):
        open_picture(tmp_path / "picture.jpg")


def test_half_a_png_is_not_taken_for_a_whole_one(tmp_path):
    """L1: Pillow's getexif() swallows the error of a broken stream, and load() then gives half a picture."""
    whole = encoded(drawn(200, 200), "PNG", compress_level=0)
    middle = len(whole) // 2
    broken = whole[:middle] + bytes(byte ^ 0x5A for byte in whole[middle : middle + 400]) + whole[middle + 400 :]
    with Image.open(io.BytesIO(broken)) as image:
        try:
            image.getexif()
        except (OSError, SyntaxError):
            pass
    result = opened(tmp_path, broken)
    assert result.image is None
    assert result.fault


@pytest.mark.parametrize("error", [TypeError("Missing dimensions"), struct.error("unpack"), RecursionError("deep"),
                                   SyntaxError("not a TIFF"), MemoryError(), ZeroDivisionError("by zero")])  # fmt: skip
def test_odd_exceptions_of_decoders_stay_with_their_file(tmp_path, monkeypatch, error):
    """L1."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert opened(tmp_path, b"some bytes").fault


def test_exif_that_cannot_be_read_costs_only_a_note(tmp_path, monkeypatch):
    """L1."""

    def fail(_):
        raise OSError("broken")

    path = jpg(tmp_path, "a.jpg")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    result = image_files.read_picture(path)
    assert result.image is not None
    assert result.notes == ("its EXIF data cannot be read, taken as upright",)


def test_the_size_limit_is_ours_and_pillows_own_is_left_as_it_was(tmp_path, monkeypatch):
    """L1: exactly the limit passes without a warning, a row more does not."""
    usual = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(image_files, "LARGEST_PICTURE_MP", 0.01)
    assert opened(tmp_path, encoded(drawn(100, 100), "PNG")).image is not None
    assert "more than the 0.01 MP" in opened(tmp_path, encoded(drawn(100, 101), "PNG")).fault
    assert usual == Image.MAX_IMAGE_PIXELS


def test_what_libtiff_writes_to_the_error_stream_becomes_the_reason(tmp_path, capfd):
    """L1: nothing of it reaches the notebook."""
    data = bytearray(encoded(drawn(200, 200), "TIFF", compression="tiff_lzw"))
    data[8:400] = bytes(392)
    result = opened(tmp_path, bytes(data), "a.tif")
    noise = capfd.readouterr()
    assert noise.out == noise.err == ""
    assert result.fault.startswith("damaged (")
    assert "decoder error" not in result.fault  # Pillow's own words, which say nothing
    assert "tempfile" not in result.fault


def test_a_name_that_lies_about_the_kind_is_noted(tmp_path):
    assert opened(tmp_path, encoded(drawn(), "PNG"), "a.jpg").notes == ("named .jpg, but a PNG inside",)
    assert opened(tmp_path, encoded(drawn(), "JPEG"), "a.jpeg").notes == ()


SOUND = {kind: encoded(drawn(), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF")}


@given(st.sampled_from(sorted(SOUND)), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
       st.floats(0.3, 1))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_whatever_bytes_are_changed_a_picture_or_a_reason_comes_out(kind, changes, length):
    """P4, L1: no exception, no warning, no noise."""
    data = bytearray(SOUND[kind])
    for where, value in changes:
        data[int(where * len(data))] = value
    with tempfile.TemporaryDirectory() as folder:
        result = opened(Path(folder), bytes(data[: int(length * len(data))]), "a.jpg")
    assert (result.image is None) == bool(result.fault)
    assert result.image is None or result.image.mode == "RGB"


# Checking


def test_the_statistics_of_four_pictures_are_exact(tmp_path):
    """C5: captions of 4 and 7 characters, two without."""
    for name in "abcd":
        jpg(tmp_path, f"{name}.jpg", Image.effect_noise((64, 64), 50 + ord(name)))
    (tmp_path / "annotations.txt").write_text("a.jpg\tlace\nb.jpg\trosette\nc.jpg\t\n", encoding="utf-8")
    report = check_images(tmp_path)
    expected = {"total_images": 4, "images_with_captions": 2, "avg_caption_length": 5.5}
    assert expected.items() <= report.statistics.items()
    (tmp_path / "annotations.txt").unlink()
    facts = check_images(tmp_path).statistics
    assert facts["total_images"] == 4 and facts["images_with_captions"] == 0 and facts["avg_caption_length"] == 0.0


def test_every_bad_file_is_named_with_its_reason_and_none_stops_the_check(tmp_path):
    """P4: a cut jpg, a tiny one, a duplicate, an empty caption."""
    whole = jpg(tmp_path, "whole.jpg", drawn(600, 600))
    (tmp_path / "twin.jpg").write_bytes(whole.read_bytes())
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-900])
    jpg(tmp_path, "tiny.jpg", drawn(40, 40))
    jpg(tmp_path, "speechless.jpg", Image.effect_noise((600, 601), 40))
    lines = ["whole.jpg\tlace", "twin.jpg\tlace", "cut.jpg\tlace", "tiny.jpg\tlace", "speechless.jpg\t "]
    (tmp_path / "annotations.txt").write_text("\n".join(lines), encoding="utf-8")
    found = {record.name: (record.verdict, record.problems) for record in check_images(tmp_path).records}
    assert found == {
        "cut.jpg": ("unusable", ("cut off before its end: the copy or download did not finish",)),
        "speechless.jpg": ("note", ("its caption in annotations.txt is empty",)),
        "tiny.jpg": ("unusable", ("only 40 × 40 px, too small to show a stitch",)),
        "twin.jpg": ("ok", ()),
        "whole.jpg": ("note", ("same bytes as twin.jpg",)),
    }


def test_small_and_long_pictures_are_noted_with_numbers(tmp_path):
    """L1, C17: 1024 / 623 = 1.64; never enlarged silently."""
    jpg(tmp_path, "a.jpg", drawn(700, 623))
    jpg(tmp_path, "b.jpg", drawn(1000, 1024))
    jpg(tmp_path, "c.jpg", drawn(900, 300))
    notes = [record.notes for record in check_images(tmp_path, resolution=1024).records]
    assert notes == [
        ("short side 623 px: enlarged 1.6× to reach 1024",),
        ("short side 1000 px: enlarged 1.02× to reach 1024",),
        ("short side 300 px: enlarged 3.4× to reach 1024", "long shape, 3.0 : 1"),
    ]
    assert check_images(tmp_path).records[2].notes[0] == "short side 300 px: 512 px or more are advised"


def test_names_that_no_line_can_hold_are_refused_and_twins_in_unicode_too(tmp_path):
    """L11."""
    composed, decomposed = (unicodedata.normalize(form, "örnek.jpg") for form in ("NFC", "NFD"))
    for name in (composed, decomposed, "tab\there.jpg", "two\nlines.jpg", 'quotes "and" ışık.jpg'):
        jpg(tmp_path, name, drawn(600, 600))
    os.rename(os.fsencode(jpg(tmp_path, "raw.jpg")), os.fsencode(tmp_path) + b"/raw\xff.jpg")
    report = check_images(tmp_path)
    faults = {record.path.name: record.fault for record in report.records}
    assert faults[composed] == faults['quotes "and" ışık.jpg'] == ""
    assert "another Unicode spelling" in faults[decomposed]
    assert "tab, a line break" in faults["tab\there.jpg"]
    assert "tab, a line break" in faults["two\nlines.jpg"]
    assert "not valid Unicode" in faults["raw\udcff.jpg"]
    assert "two\\nlines.jpg" in report.as_table()
    str(report).encode("utf-8")


def test_links_to_nothing_and_pipes_are_named_and_not_waited_for(tmp_path):
    jpg(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    faults = [record.fault for record in check_images(tmp_path).records]
    assert faults == ["", "gone, or not a file", "gone, or not a file"]


def test_other_kinds_are_counted_and_our_own_files_are_not(tmp_path):
    """L10, P4."""
    jpg(tmp_path, "a.jpg")
    for name in ("b.HEIC", "c.heic", "d.HEIC", "e.tif", "annotations.txt", "annotations.txt.bak", "dataset.json"):
        (tmp_path / name).touch()
    report = check_images(tmp_path)
    assert report.skipped_kinds == {".HEIC": 3, ".tif": 1}
    assert "skipped, not in image_types: 3 .HEIC, 1 .tif" in str(report)


def test_a_spoilt_annotations_file_is_told_by_the_check_and_does_not_stop_it(tmp_path):
    """P4."""
    jpg(tmp_path, "a.jpg")
    (tmp_path / "annotations.txt").write_text("a.jpg\tlace\nb.jpg\tlace\nno tab\n../x.jpg\tlace\n", encoding="utf-8")
    assert check_images(tmp_path).notes == (
        "annotations.txt: line 3 has no tab, not exactly one",
        "annotations.txt: line 4 leads outside the folder: ../x.jpg",
        "annotations.txt: line 2 names a picture that is gone: b.jpg",
    )
    (tmp_path / "annotations.txt").write_bytes("a.jpg\tışık".encode("utf-16"))
    assert "is not UTF-8 text" in check_images(tmp_path).notes[0]


def reported(*sizes: tuple[int, int], resolution: int | None = None) -> tuple[str, ...]:
    records = tuple(ImageRecord(Path("a.jpg"), "a.jpg", width, height) for width, height in sizes)
    return CheckReport(Path("."), records, resolution=resolution).advice


@pytest.mark.parametrize(
    ("count", "verdict"),
    [(9, "too few"), (10, "just enough"), (19, "just enough"), (20, "will do"), (100, "good"), (1000, "good"),
     (1001, "more than is needed")],
)  # fmt: skip
def test_the_number_of_pictures_is_judged_by_the_rule(count, verdict):
    """C17."""
    assert f"number: {count} is {verdict}" in reported(*[(600, 600)] * count)[0].replace("will do,", "is will do")


def test_size_shape_and_enlarging_are_judged_by_their_rules():
    """C17."""
    good = reported(*[(1200, 900)] * 10, resolution=512)
    assert good[1:] == (
        "size: good, every short side has at least 512 px.",
        "shape: good, 10 of 10 have about the same aspect ratio (1.33).",
        "resolution: good, every picture fills 512 px.",
        "steps: plan 500 to 1200 updates (300 at the least, 500–1200 recommended).",
    )
    poor = reported((600, 600), (500, 500), (600, 1200), (1200, 600), resolution=1024)
    assert "1 of 4 have a short side under 512 px (smallest 500 px)" in poor[1]
    assert "mixed, only 2 of 4" in poor[2]
    assert "4 of 4 must be enlarged to reach 1024 px (the smallest 2.0×)" in poor[3]
    assert "resolution 576 would" in poor[3]
    assert not any("size:" in line for line in reported((192, 192), resolution=96))
    assert CheckReport(Path("."), ()).advice == (
        "number: none of the pictures can be used; the reasons stand beside each.",
    )


def test_the_table_has_a_line_a_file_and_can_be_kept_to_problems(tmp_path):
    """P4."""
    jpg(tmp_path, "good.jpg", drawn(600, 600))
    (tmp_path / "bad.jpg").touch()
    report = check_images(tmp_path)
    lines = [line.split()[:2] for line in report.as_table().splitlines()]
    assert lines == [["unusable", "bad.jpg"], ["ok", "good.jpg"]]
    assert len(report.as_table(only_problems=True).splitlines()) == 1
    assert "2 pictures in" in report.summary()
    assert "1 usable, 1 not" in report.summary()


# Annotating and reading


def three(folder: Path) -> Path:
    for name in ("a.jpg", "b.JPG", "sub/c.jpg"):
        jpg(folder, name, drawn(80, 70 + ord(name[-5]) % 7))
    return folder


def test_three_pictures_give_three_lines_with_exactly_one_tab(tmp_path):
    """L11."""
    path = create_annotations(three(tmp_path), PROMPT)
    assert path == tmp_path / "annotations.txt"
    assert path.read_bytes().decode("utf-8") == f"a.jpg\t{PROMPT}\nb.JPG\t{PROMPT}\nsub/c.jpg\t{PROMPT}\n"
    expected = [Example(tmp_path / name, PROMPT) for name in ("a.jpg", "b.JPG", "sub/c.jpg")]
    assert read_annotations(tmp_path) == read_annotations(path) == expected


@pytest.mark.parametrize("prompt", ["", "  ", "a\tb", "a\nb", "a\r\nb", "a\u2028b", "half \ud83d"])
def test_a_prompt_that_no_line_can_hold_is_refused(tmp_path, prompt):
    """L11."""
    with pytest.raises(SettingsError, match="The prompt (is empty|holds).*write it on one line"):
        create_annotations(three(tmp_path), prompt)
    assert not (tmp_path / "annotations.txt").exists()


def test_single_pictures_can_have_captions_of_their_own(tmp_path, monkeypatch):
    """L11: by name, by absolute path, and by the path that list_images gives."""
    three(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    captions = {"a.jpg": "a rosette", tmp_path / "photos/b.JPG": "a border", list_images("photos")[2]: "a mesh"}
    create_annotations("photos", PROMPT, captions=captions)
    assert [example.caption for example in read_annotations("photos")] == ["a rosette", "a border", "a mesh"]


def test_captions_for_unknown_pictures_or_of_two_lines_are_all_told_at_once(tmp_path):
    """L11."""
    with pytest.raises(PicturesError, match="2 problems: z.jpg is no picture of .*; the caption of a.jpg holds"):
        create_annotations(three(tmp_path), PROMPT, captions={"z.jpg": "x", "a.jpg": "two\nlines"})


def test_what_a_person_wrote_is_kept_until_she_asks_to_overwrite_it(tmp_path):
    """L11, C4."""
    said: list[str] = []
    file = create_annotations(three(tmp_path), PROMPT)
    own = file.read_text(encoding="utf-8").replace(f"b.JPG\t{PROMPT}", "b.JPG\tbüyükannemin danteli")
    file.write_text(own, encoding="utf-8")
    jpg(tmp_path, "d.jpg")
    create_annotations(tmp_path, "new prompt", say=said.append)
    captions = {example.path.name: example.caption for example in read_annotations(tmp_path)}
    assert captions == {"a.jpg": PROMPT, "b.JPG": "büyükannemin danteli", "c.jpg": PROMPT, "d.jpg": "new prompt"}
    assert "kept 3 captions that are there already" in said
    assert (tmp_path / "annotations.txt.bak").read_text(encoding="utf-8") == own
    create_annotations(tmp_path, "new prompt", overwrite=True, say=said.append)
    assert {example.caption for example in read_annotations(tmp_path)} == {"new prompt"}
    assert "büyükannemin danteli" in (tmp_path / "annotations.txt.bak2").read_text(encoding="utf-8")
    assert "the earlier annotations.txt is kept as annotations.txt.bak2" in said


def test_annotating_again_changes_nothing(tmp_path):
    """L11."""
    file = create_annotations(three(tmp_path), PROMPT)
    before = file.stat().st_mtime_ns, file.stat().st_ino
    create_annotations(tmp_path, PROMPT)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "annotations.txt", "b.JPG", "sub"]


def test_earlier_lines_that_cannot_be_read_are_not_lost_silently(tmp_path):
    """L11."""
    file = three(tmp_path) / "annotations.txt"
    file.write_text("a.jpg\tmy\tcaption\n", encoding="utf-8")
    with pytest.raises(PicturesError, match=r"a problem: line 1 has 2 tabs, not exactly one\. Correct these lines"):
        create_annotations(tmp_path, PROMPT)
    assert file.read_text(encoding="utf-8") == "a.jpg\tmy\tcaption\n"
    create_annotations(tmp_path, PROMPT, overwrite=True)
    assert (tmp_path / "annotations.txt.bak").read_text(encoding="utf-8") == "a.jpg\tmy\tcaption\n"


def test_pictures_that_cannot_be_used_are_left_out_and_said(tmp_path):
    """L11, P4."""
    said: list[str] = []
    three(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    jpg(tmp_path, "tab\t.jpg")
    create_annotations(tmp_path, PROMPT, say=said.append)
    assert len(read_annotations(tmp_path)) == 3
    assert [line.split(":")[0] for line in said] == ["left out broken.jpg", "left out tab\\t.jpg"]


def test_a_folder_without_a_usable_picture_is_refused(tmp_path):
    """L11."""
    (tmp_path / "broken.jpg").touch()
    with pytest.raises(PicturesError, match=r"None of the 1 pictures in .* can be used \(broken\.jpg: empty"):
        create_annotations(tmp_path, PROMPT)


def test_a_folder_that_cannot_be_written_is_said_and_another_file_can_be_named(tmp_path, monkeypatch):
    """L11."""
    three(tmp_path / "photos")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(PicturesError, match=r"Cannot write .*annotations\.txt \(Permission denied\)\. Make"):
            create_annotations(tmp_path / "photos", PROMPT)
    file = create_annotations(tmp_path / "photos", PROMPT, file=tmp_path / "run" / "annotations.txt")
    assert [example.path.name for example in read_annotations(file, tmp_path / "photos")] == ["a.jpg", "b.JPG", "c.jpg"]
    assert not (tmp_path / "photos" / "annotations.txt").exists()


def test_a_cut_while_writing_leaves_the_earlier_annotations(tmp_path, monkeypatch):
    """L11."""
    file = create_annotations(three(tmp_path), PROMPT)
    before = file.read_bytes()

    def cut(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", cut)
    with pytest.raises(LaceError, match="disk is full"):
        create_annotations(tmp_path, "other", overwrite=True)
    assert file.read_bytes() == before


def test_a_check_made_before_is_not_made_again(tmp_path, monkeypatch):
    report = check_images(three(tmp_path))
    monkeypatch.setattr(survey, "look_at", lambda *_: pytest.fail("opened again"))
    create_annotations(tmp_path, PROMPT, checked=report)


def test_all_that_is_wrong_with_annotations_is_said_in_one_error(tmp_path):
    """L11."""
    jpg(tmp_path / "photos", "a.jpg")
    jpg(tmp_path, "outside.jpg")
    lines = [
        "a.jpg\tlace",
        "a.jpg\tlace again",
        "gone.jpg\tlace",
        "",
        "a.jpg lace",
        "b.jpg\tlace\tlace",
        "\tlace",
        "../outside.jpg\tlace",
        f"{tmp_path}/outside.jpg\tlace",
        "sub/../a.jpg\t",
    ]
    file = tmp_path / "photos" / "annotations.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(PicturesError) as caught:
        read_annotations(file)
    assert str(caught.value) == (
        f"{file} has 9 problems: line 5 has no tab, not exactly one; line 6 has 2 tabs, not exactly one; "
        "line 7 has no path before its tab; line 10 has no caption; line 2 names a.jpg again (first in line 1); "
        "and 4 more. Correct or remove these lines, or annotate again."
    )
    with pytest.raises(PicturesError, match="line 8 leads outside the folder: ../outside.jpg; line 9 leads outside"):
        file.write_text("\n" * 7 + "\n".join(lines[7:9]), encoding="utf-8")
        read_annotations(file)


def test_pictures_that_are_gone_are_named_or_passed_over_on_request(tmp_path):
    """L11."""
    create_annotations(three(tmp_path), PROMPT)
    (tmp_path / "b.JPG").unlink()
    with pytest.raises(PicturesError, match=r"has a problem: line 2 names a picture that is gone: b\.JPG\. Correct or"):
        read_annotations(tmp_path)
    assert [example.path.name for example in read_annotations(tmp_path, skip_missing=True)] == ["a.jpg", "c.jpg"]


def test_missing_empty_and_mis_encoded_annotations_each_have_a_sentence(tmp_path):
    """L11."""
    file = three(tmp_path) / "annotations.txt"
    with pytest.raises(PicturesError, match=r"There is no .*annotations\.txt\. Write it first: lace-lora annotate"):
        read_annotations(tmp_path)
    file.touch()
    with pytest.raises(PicturesError, match="names no picture. Annotate again"):
        read_annotations(tmp_path)
    file.write_bytes("a.jpg\tışık".encode("utf-16"))
    with pytest.raises(PicturesError, match="is not UTF-8 text .* Save it again as UTF-8"):
        read_annotations(tmp_path)


def test_annotations_of_other_editors_and_mounts_are_understood(tmp_path):
    """L11: byte order mark, Windows line ends, absolute paths, decomposed names."""
    name = "öğe.jpg"
    picture = jpg(tmp_path / "photos", unicodedata.normalize("NFD", name))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    jpg(tmp_path / "photos", "b.jpg")
    jpg(tmp_path / "photos", "c.jpg")
    text = f"\ufeff{name}\tışık\r\n{tmp_path}/photos/b.jpg\tlace\r\n{tmp_path}/link/c.jpg\tlace\r\n"
    (tmp_path / "photos" / "annotations.txt").write_bytes(text.encode("utf-8"))
    first, *others = read_annotations(tmp_path / "photos")
    assert first == Example(picture, "ışık")
    assert [example.path for example in others] == [tmp_path / "photos" / name for name in ("b.jpg", "c.jpg")]


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
PICTURE = encoded(Image.new("L", (64, 64)), "JPEG")


@given(st.dictionaries(NAMES, st.text(max_size=30), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_captions_come_back_as_they_were_given_in_every_script(captions):
    """L11."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in captions:
            (folder / f"p{name}.jpg").write_bytes(PICTURE)
        usable = {record.name for record in check_images(folder).usable}
        given_here = {
            relative_name(folder, f"p{name}.jpg"): text.strip()
            for name, text in captions.items()
            if not data_utils.caption_fault(text)
        }
        wanted = {name: given_here.get(name, PROMPT) for name in usable}
        if usable:
            create_annotations(folder, PROMPT, captions={k: v for k, v in given_here.items() if k in usable})
            back = {relative_name(folder, example.path): example.caption for example in read_annotations(folder)}
            assert back == wanted
            lines = (folder / "annotations.txt").read_text(encoding="utf-8").splitlines()
            assert [line.count("\t") for line in lines] == [1] * len(usable)


# dataset.json


def test_a_dataset_built_from_python_is_saved_and_loaded_equal(tmp_path):
    """C6."""
    dataset = Dataset(three(tmp_path))
    for name, caption in (("a.jpg", "büyük 🌸 rozet"), ("sub/c.jpg", 'a "mesh"'), ("a.jpg", "better")):
        dataset = add_image(dataset, name, caption)
    assert [example.caption for example in dataset.examples] == ["better", 'a "mesh"']
    path = save_dataset(dataset)
    assert path == tmp_path / "dataset.json"
    assert load_dataset(tmp_path) == load_dataset(path) == dataset
    assert json.loads(path.read_text(encoding="utf-8"))["images"][1] == {"path": "sub/c.jpg", "caption": 'a "mesh"'}


def test_a_dataset_keeps_its_earlier_version(tmp_path):
    """C6."""
    dataset = add_image(Dataset(three(tmp_path)), "a.jpg", "one")
    save_dataset(dataset)
    save_dataset(add_image(dataset, "b.JPG", "two"))
    assert "b.JPG" not in (tmp_path / "dataset.json.bak").read_text(encoding="utf-8")


def test_a_dataset_refuses_what_it_cannot_hold(tmp_path):
    """C6."""
    dataset = Dataset(three(tmp_path / "photos"))
    outside = jpg(tmp_path, "outside.jpg")
    for path in (outside, "gone.jpg", ".", "x" * 5000):
        with pytest.raises(PicturesError, match="There is no .* Copy the picture there first"):
            add_image(dataset, path, "lace")
    with pytest.raises(PicturesError, match="The caption of a.jpg is empty; write it on one line."):
        add_image(dataset, "a.jpg", " ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is damaged, or no dataset of Lace LoRA"),
        ("[1]", "is damaged, or no dataset of Lace LoRA"),
        ('{"version": 1, "images": [{"path": "a.jpg"}]}', "is damaged, or no dataset of Lace LoRA .*caption"),
        ('{"version": 1, "images": [{"path": 3, "caption": null}]}', "is damaged, or no dataset of Lace LoRA"),
        ('{"version": 3, "images": []}', "has version 3, not 1 or 2. Update"),
        ('{"version": 1, "images": [{"path": "a.jpg", "caption": ""}]}', "the caption of image 1 is empty"),
    ],
)
def test_a_spoilt_dataset_has_its_sentence(tmp_path, text, sentence):
    """C6."""
    (three(tmp_path) / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(PicturesError, match=sentence):
        load_dataset(tmp_path)


def test_a_dataset_that_is_not_there_is_said(tmp_path):
    """C6."""
    with pytest.raises(PicturesError, match="Cannot read .*dataset.json .*Save the dataset first."):
        load_dataset(tmp_path)


def test_importing_the_rooms_of_pictures_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, lace_lora.data_utils, lace_lora.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
