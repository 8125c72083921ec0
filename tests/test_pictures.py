"""Sheets to look at, and picture files that carry what made them (L6, L15, L17, C4)."""

import json
import os
import struct
import zlib

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import pictures
from lace_lora.errors import LaceError, PicturesError, SettingsError
from lace_lora.pictures import (
    contact_sheet,
    parameters_text,
    read_details,
    read_parameters,
    slug,
    strip,
    thumbnail,
    write_picture,
)

PROMPT = "a photo of <myspecialstyle>, ışıklı dantel gülü 🌸"
DETAILS = {
    "prompt": PROMPT,
    "negative_prompt": "grainy, low quality",
    "num_inference_steps": 30,
    "scheduler": "dpmpp_2m",
    "guidance_scale": 5.0,
    "seed": 7,
    "width": 1024,
    "height": 768,
    "pretrained_model": "stabilityai/stable-diffusion-xl-base-1.0",
}
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def plain(colour: tuple[int, int, int], width: int = 80, height: int = 80) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def place_of(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the pixels of that colour, which must fill their rectangle."""
    rows, columns = numpy.nonzero((numpy.asarray(sheet) == colour).all(axis=2))
    left, top = columns.min(), rows.min()
    width, height = columns.max() - left + 1, rows.max() - top + 1
    assert len(rows) == width * height
    return int(left), int(top), int(width), int(height)


def has_ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return bool((numpy.asarray(sheet.crop(box).convert("L")) < 100).any())


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read by hand from the PNG specification."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        (checksum,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert zlib.crc32(data[at + 4 : at + 8 + length]) == checksum
        at += 12 + length
    return chunks


# Sheets


def test_a_contact_sheet_shows_every_picture_once_in_reading_order():
    """L6."""
    sheet = contact_sheet([plain(colour) for colour in COLOURS], columns=3, thumb_px=60)
    places = [place_of(sheet, colour) for colour in COLOURS]
    assert all(place[2:] == (60, 60) for place in places)
    lefts, tops = [place[0] for place in places], [place[1] for place in places]
    assert lefts[0] < lefts[1] < lefts[2] and lefts[3:] == lefts[:2]
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]
    assert sheet.height > tops[3] + 60


def test_pictures_keep_their_shape_and_stand_in_the_middle_of_their_cell():
    """L6."""
    sheet = contact_sheet([plain(COLOURS[0], 200, 100), plain(COLOURS[1], 50, 100)], thumb_px=80)
    wide, tall = (place_of(sheet, colour) for colour in COLOURS[:2])
    assert wide[2:] == (80, 40)
    assert tall[2:] == (40, 80)
    assert wide[1] - tall[1] == 20


def test_labels_stand_under_their_pictures_and_are_cut_where_they_would_run_over():
    """L6."""
    blank = contact_sheet([plain(COLOURS[0]), plain(COLOURS[1])], thumb_px=90)
    sheet = contact_sheet([plain(COLOURS[0]), plain(COLOURS[1])], thumb_px=90, labels=["word " * 50, ""])
    assert sheet.height > blank.height
    left, top, width, height = place_of(sheet, COLOURS[0])
    right = place_of(sheet, COLOURS[1])[0]
    assert has_ink(sheet, (left, top + height, left + width, sheet.height))
    assert not has_ink(sheet, (left + width, top + height, right, sheet.height))
    assert not has_ink(sheet, (right, top + height, right + width, sheet.height))


def test_a_title_stands_above_all_pictures():
    sheet = contact_sheet([plain(COLOURS[0])], thumb_px=200, title="Twenty-four designs")
    assert has_ink(sheet, (0, 0, sheet.width, place_of(sheet, COLOURS[0])[1]))


def test_a_strip_has_base_above_lora_at_the_same_seeds_with_labels():
    """L6, L16."""
    rows = [[plain(COLOURS[0]), plain(COLOURS[1])], [plain(COLOURS[2]), plain(COLOURS[3])]]
    sheet = strip(rows, ["base", "LoRA"], ["seed 1", "seed 2"], thumb_px=100)
    places = [place_of(sheet, colour) for colour in COLOURS[:4]]
    assert places[0][0] == places[2][0] < places[1][0] == places[3][0]
    assert places[0][1] == places[1][1] < places[2][1] == places[3][1]
    for left, top, _, height in places[::2]:
        assert has_ink(sheet, (0, top, left, top + height))
    for left, top, width, _ in places[:2]:
        assert has_ink(sheet, (left, 0, left + width, top))


def test_a_file_that_cannot_be_read_gets_a_tile_that_says_so(tmp_path):
    """L6: one bad file does not cost the sheet."""
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    sheet = contact_sheet([tmp_path / "bad.jpg", plain(COLOURS[0])], thumb_px=120)
    left, top, *_ = place_of(sheet, COLOURS[0])
    assert has_ink(sheet, (0, top, left, top + 120))


def test_pictures_are_taken_from_files_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain(COLOURS[0], 100, 50).save(tmp_path / "a.png", exif=exif)
    assert thumbnail(tmp_path / "a.png", 40).size == (20, 40)


def test_a_thumbnail_never_loses_a_very_thin_picture():
    assert thumbnail(plain(COLOURS[0], 5000, 3), 100).size == (100, 1)


def test_sheets_of_nothing_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(PicturesError, match="There are no pictures to lay out"):
        contact_sheet([])
    with pytest.raises(PicturesError, match="There are no pictures to lay out"):
        strip([[]], ["base"])
    with pytest.raises(PicturesError, match="one label a picture: 1 for 2 pictures"):
        contact_sheet([plain(COLOURS[0])] * 2, labels=["x"])
    with pytest.raises(PicturesError, match="one label a row: 1 for 2 rows"):
        strip([[plain(COLOURS[0])]] * 2, ["x"])


@pytest.mark.parametrize("fonts", [pictures._FONTS, ()], ids=["this machine's font", "Pillow's own font"])
def test_turkish_labels_show_letters_and_no_empty_boxes(monkeypatch, fonts):
    """L6: Pillow's own font lacks ğ, ş, ı and İ."""
    monkeypatch.setattr(pictures, "_FONTS", fonts)
    pictures.font_of.cache_clear()
    font = pictures.font_of(16)
    text = pictures.drawable("göğüs ışığı İŞ – 2 × 🌸\u200d", font)
    pictures.font_of.cache_clear()
    missing = bytes(font.getmask("\uffff"))
    assert all(sign == " " or bytes(font.getmask(sign)) != missing for sign in text)
    assert text in ("göğüs ışığı İŞ – 2 × ?", "gogus isigi IS - 2 x ?") or fonts


# Files


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG"])
def test_pictures_carry_their_details_and_parameters_in_both_formats(tmp_path, name):
    """L15, L17: emoji and Turkish letters come back."""
    text = parameters_text(DETAILS)
    write_picture(plain(COLOURS[0]), tmp_path / name, text, DETAILS)
    assert read_details(tmp_path / name) == DETAILS
    assert read_parameters(tmp_path / name) == text
    with Image.open(tmp_path / name) as image:
        assert image.getpixel((9, 9)) == pytest.approx(COLOURS[0], abs=2)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_png_pixels_and_chunks_are_what_other_tools_expect(tmp_path):
    """L15: read without Pillow; ASCII text is a tEXt chunk, other text an iTXt chunk in UTF-8."""
    noise = Image.effect_noise((50, 40), 90).convert("RGB")
    write_picture(noise, tmp_path / "a.png", "lace\nSteps: 30", {"prompt": PROMPT})
    chunks = png_chunks((tmp_path / "a.png").read_bytes())
    assert (b"tEXt", b"parameters\0lace\nSteps: 30") in chunks
    stored = next(data for kind, data in chunks if kind == b"tEXt" and data.startswith(b"lace_lora\0"))
    assert json.loads(stored.split(b"\0")[1].decode("ascii")) == {"prompt": PROMPT}
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == noise.tobytes()
    write_picture(noise, tmp_path / "a.png", PROMPT, {})
    chunks = png_chunks((tmp_path / "a.png").read_bytes())
    assert (b"iTXt", b"parameters\0\0\0\0\0" + PROMPT.encode("utf-8")) in chunks


def test_jpeg_parameters_are_a_user_comment_as_a1111_writes_it(tmp_path):
    """L15: read without Pillow; EXIF tag 0x9286, UNICODE, UTF-16-BE."""
    write_picture(plain(COLOURS[0]), tmp_path / "a.jpg", PROMPT, DETAILS)
    data = (tmp_path / "a.jpg").read_bytes()
    exif = data[data.index(b"Exif\0\0") + 6 :]
    order = ">" if exif[:2] == b"MM" else "<"
    stored = b"UNICODE\0" + PROMPT.encode("utf-16-be")
    entry = struct.pack(order + "HHI", 0x9286, 7, len(stored))  # tag, type "undefined", length
    (offset,) = struct.unpack(order + "I", exif[exif.index(entry) + 8 :][:4])
    assert exif[offset : offset + len(stored)] == stored


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    """L6: a resumed sheet equals an unbroken one."""
    for kind in ("png", "jpg"):
        files = [tmp_path / f"{number}.{kind}" for number in (1, 2)]
        for file in files:
            write_picture(plain(COLOURS[0]), file, PROMPT, DETAILS)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_cut_while_writing_leaves_the_earlier_picture_and_no_half_one(tmp_path, monkeypatch):
    """L15."""
    write_picture(plain(COLOURS[0]), tmp_path / "a.png", "first", {})
    before = (tmp_path / "a.png").read_bytes()

    def cut(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(LaceError, match="disk is full"):
        write_picture(plain(COLOURS[1]), tmp_path / "a.png", "second", {})
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_other_formats_are_refused_with_the_setting_to_correct(tmp_path):
    """L15."""
    with pytest.raises(SettingsError, match="a.bmp: pictures are written as png or jpg; correct image_format."):
        write_picture(plain(COLOURS[0]), tmp_path / "a.bmp", "", {})


def test_pictures_without_details_or_that_are_no_pictures_are_said(tmp_path):
    plain(COLOURS[0]).save(tmp_path / "a.png")
    plain(COLOURS[0]).save(tmp_path / "a.jpg", comment="made elsewhere")
    (tmp_path / "b.png").write_bytes(b"nothing")
    for name in ("a.png", "a.jpg"):
        with pytest.raises(PicturesError, match=f"{name} does not say how it was made"):
            read_details(tmp_path / name)
        assert read_parameters(tmp_path / name) == ""
    with pytest.raises(PicturesError, match=r"b\.png cannot be read \(damaged"):
        read_details(tmp_path / "b.png")
    with pytest.raises(PicturesError, match=r"c\.png cannot be read \(No such file"):
        read_parameters(tmp_path / "c.png")


@given(st.text(), st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()))
@settings(max_examples=40, deadline=None)
def test_details_of_every_script_come_back_from_png_and_jpeg(tmp_path_factory, prompt, more):
    """L15."""
    details = {**more, "prompt": prompt}
    for kind in ("png", "jpg"):
        path = tmp_path_factory.getbasetemp() / f"any.{kind}"
        write_picture(plain(COLOURS[0], 8, 8), path, parameters_text({"prompt": prompt}), details)
        assert read_details(path) == details


def test_the_parameters_have_the_lines_that_other_tools_read():
    """L17: the defaults stand in them."""
    assert parameters_text(DETAILS) == (
        f"{PROMPT}\n"
        "Negative prompt: grainy, low quality\n"
        "Steps: 30, Sampler: DPM++ 2M, CFG scale: 5.0, Seed: 7, Size: 1024x768, "
        "Model: stable-diffusion-xl-base-1.0, Version: Lace LoRA"
    )


def test_the_refiner_stands_in_the_parameters_as_it_was_used():
    """L7, L15."""
    refiner = {"refiner_model": "stabilityai/stable-diffusion-xl-refiner-1.0", "refiner_start": 0.85}
    ensemble = parameters_text({**DETAILS, **refiner, "refine": "ensemble"})
    assert "Refiner: stable-diffusion-xl-refiner-1.0, Refiner switch at: 0.85" in ensemble
    assert "Denoising strength: 0.3" in parameters_text({**DETAILS, "refine_strength": 0.3, "refine": "img2img"})
    assert "efin" not in parameters_text({**DETAILS, **refiner, "refine": "none"})


def test_missing_facts_are_left_out_and_separators_are_quoted():
    text = parameters_text({"prompt": "lace", "negative_prompt": "", "seed": 0, "pretrained_model": "models/a, b: c"})
    assert text == 'lace\nSeed: 0, Model: "a, b: c", Version: Lace LoRA'


# Names


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a photo of <myspecialstyle>, 100%!", "a-photo-of-myspecialstyle-100"),
        ("../../etc/passwd", "etc-passwd"),
        ("Göğüs ışığı", "göğüs-ışığı"),
        ("🌸", "picture"),
        ("", "picture"),
        ("CON", "picture-con"),
        ("x" * 99, "x" * 60),
    ],
)
def test_a_prompt_becomes_a_safe_part_of_a_file_name(prompt, name):
    """L15: a prompt never becomes a path."""
    assert slug(prompt) == name


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_prompt_at_all_makes_an_unsafe_name(prompt):
    """L15."""
    name = slug(prompt)
    assert 0 < len(name) <= 60
    assert len(name.encode("utf-8")) < 250
    assert all(sign.isalnum() or sign == "-" for sign in name)
    assert not name.startswith("-") and not name.endswith("-")
