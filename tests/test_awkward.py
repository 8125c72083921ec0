"""A verdict for every awkward file of the shared data, written before the check was, from what each file is (P4, L1).

The files are Pillow's own test pictures and one photograph in nine EXIF orientations. They lie outside the repository,
in ../shared/data/awkward; where they are missing, nothing here runs. The check is made for squares of 64 px, so that
"too small" is not what is said of everything.
"""

import os
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageOps

from lace_lora.check_report import CheckReport
from lace_lora.data_utils import check_images
from lace_lora.image_files import open_picture, read_picture
from tests.generated import ROOT

FOLDER = Path(os.environ.get("LACE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "awkward"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the shared awkward pictures are not on this machine")

CUT = "cut off before its end"
SAME = "same picture as"
# name, verdict, words that its reasons hold, why
TABLE: list[tuple[str, str, tuple[str, ...], str]] = [
    ("16_bit_binary.pgm", "unusable", ("only 20 × 100 px", "scaled to 8 bits"), "16-bit greys, a strip of 20 px"),
    ("1_trns.png", "note", ("transparency, laid on white",), "one bit a pixel, white is transparent"),
    ("Portrait_0.jpg", "ok", (), "orientation 0 does not exist: it stands as it is stored"),
    ("Portrait_1.jpg", "note", (f"{SAME} Portrait_",), "stored upright"),
    *(
        (f"Portrait_{number}.jpg", "note", (f"orientation ({number})", f"{SAME} Portrait_"), "mirrored or turned")
        for number in range(2, 9)
    ),
    ("anim_frame1.webp", "ok", (), "one frame of an animation, saved alone"),
    ("bc1.dds", "ok", (), "a game texture, sound"),
    ("broken.png", "unusable", ("damaged at its beginning",), "nothing but the signature is right"),
    ("broken_data_stream.png", "unusable", ("damaged",), "its compressed stream is spoilt"),
    ("broken_exif_dpi.jpg", "note", ("every pixel has the same colour",), "plain green; only its EXIF dpi is wrong"),
    ("crash-0e16d3bfb83be87356d026d66919deaefca44dac.tif", "unusable", ("damaged",), "offsets beyond its end"),
    ("crash-1152ec2d1a1a71395b6f2ce6721c38924d025bf3.tif", "unusable", ("damaged",), "offsets beyond its end"),
    ("crash-2020-10-test.tif", "unusable", ("damaged",), "raises TypeError in Pillow"),
    ("crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif", "unusable", ("damaged",), "raises TypeError in Pillow"),
    ("crash-74d2a78403a5a59db1fb0a2b8735ac068a75f6e3.tif", "note", ("parts may be wrong", "long shape, 6.7 : 1"),
     "a fax with one bad line: most of it is there, which only a person can weigh"),
    ("crash-f46f5b2f43c370fe65706c11449f567ecc345e74.tif", "unusable", ("damaged",), "offsets beyond its end"),
    ("decompression_bomb.gif", "unusable", ("claims 4,365 MP",), "44 bytes that claim four thousand megapixels"),
    ("decompression_bomb.ico", "unusable", ("claims 4,295 MP",), "the same as an icon"),
    ("exif.png", "ok", (), "EXIF says upright"),
    ("exif_gps_typeerror.jpg", "ok", (), "only where it was taken cannot be read, which nobody asks"),
    ("exif_imagemagick_orientation.png", "note", ("orientation (3)", f"{SAME} exif.png"), "EXIF in a chunk of text"),
    ("flower.webp", "ok", (), "sound"),
    ("frozenpond.mpo", "note", ("several pictures, the first is used",), "two pictures for the two eyes"),
    ("hopper.Lab.tif", "note", ("CIELAB colours converted",), "Pillow alone cannot convert it"),
    ("hopper.avif", "note", (f"{SAME} hopper.",), "sound, one portrait in many formats"),
    ("hopper.gif", "note", (f"{SAME} hopper.",), "the same portrait with a palette"),
    ("hopper.jpg", "note", (f"{SAME} hopper.",), "the same portrait"),
    ("hopper.webp", "note", (f"{SAME} hopper.",), "the same portrait"),
    ("hopper_16bit_qtables.jpg", "note", (f"{SAME} hopper",), "the same, with steps too coarse for 8 bits"),
    ("hopper_bad_exif.jpg", "note", ("look whether it is whole",), "in stripes; its EXIF ends before its end"),
    ("hopper_bw_500.png", "note", ("hopper",), "the same portrait in black and white dots"),
    ("hopper_gray.jpg", "note", (f"{SAME} hopper",), "the same portrait in grey"),
    ("hopper_idat_after_image_end.png", "note", (f"{SAME} hopper",), "whole; more data behind its end"),
    ("hopper_orientation_6.webp", "note", ("orientation (6)", f"{SAME} hopper"), "stored lying on its side"),
    ("hopper_orientation_8.webp", "note", ("orientation (8)", f"{SAME} hopper"), "stored lying on the other side"),
    ("hopper_webp_bits.ppm", "note", (f"{SAME} hopper",), "the same portrait"),
    ("invalid-exif-without-x-resolution.jpg", "ok", (), "almost black; only its dpi is missing"),
    ("invalid-exif.jpg", "ok", (), "its EXIF is none, and says nothing of a turn"),
    ("iss634.apng", "note", ("several pictures",), "an animation"),
    ("iss634.webp", "note", ("several pictures", f"{SAME} iss634.apng"), "the same animation"),
    ("jpeg_ff00_header.jpg", "ok", (), "an odd header that decoders pass over"),
    ("junk_jpeg_header.jpg", "ok", (), "junk before its tables that decoders pass over"),
    ("l_trns.png", "note", ("transparency, laid on white",), "grey, one of them transparent"),
    ("mode_16bit.png", "note", ("16-bit colours", "same colour", "several pictures"), "an animation of red, 16 bits"),
    ("multiple_exif.jpg", "unusable", ("only 1 × 1 px",), "one pixel"),
    ("orientation_rectangle.jpg", "unusable", ("only 1 × 2 px", "orientation (8)"), "two pixels, stored lying"),
    ("p_8.tga", "unusable", ("not a picture that can be read",), "18 bytes: a header and no pixels"),
    ("pal8badindex.bmp", "ok", (), "colours that its palette lacks are black, as in every viewer"),
    ("photoshop-200dpi-broken.jpg", "note", (f"{SAME} invalid-exif.jpg",), "only its dpi is broken"),
    ("pil_sample_cmyk.jpg", "note", ("CMYK print colours converted", ), "for print"),
    ("pil_sample_rgb.jpg", "note", (f"{SAME} pil_sample_cmyk.jpg",), "the same in RGB"),
    ("rgb_trns.png", "note", ("transparency, laid on white",), "one colour is transparent"),
    ("sugarshack.mpo", "note", ("several pictures",), "two pictures for the two eyes"),
    ("sugarshack_bad_mpo_header.jpg", "note", (f"{SAME} sugarshack.mpo",), "the first of them still reads"),
    ("tRNS_null_1x1.png", "unusable", ("only 1 × 1 px",), "one transparent pixel"),
    ("tiff_16bit_RGB_target.png", "unusable", ("only 100 × 40 px",), "too small for a stitch"),
    ("tiff_16bit_RGBa.tiff", "unusable", ("only 100 × 40 px", "16-bit colours", "transparency"), "the same, 16 bits"),
    ("tiff_16bit_RGBa_target.png", "unusable", ("only 100 × 40 px", "transparency"), "the same, 8 bits"),
    ("transparent.png", "note", ("transparency, laid on white",), "dice on nothing"),
    ("transparent.webp", "note", ("transparency, laid on white", f"{SAME} transparent.png"), "the same dice"),
    ("truncated_app14.jpg", "note", (f"{SAME} pil_sample_",), "only Adobe's marker is short: the picture is whole"),
    ("truncated_end_chunk.png", "unusable", (CUT,), "ends within its last part"),
    ("truncated_image.png", "unusable", (CUT,), "80 KB of a larger picture"),
    ("truncated_jpeg.jpg", "unusable", (CUT,), "ends within its pixels"),
    ("ultrahdr.jpg", "unusable", (CUT,), "its headers say 1512 × 2688; no pixels follow, grey all over"),
    ("xmp_tags_orientation.avif", "note", ("orientation (3)", "converted to sRGB"), "turned by its XMP"),
    ("zero_dpi.jp2", "ok", (), "a test card, sound"),
]  # fmt: skip
ONE_PIECE = (
    {f"Portrait_{number}.jpg" for number in range(9)},
    {"exif.png", "exif_imagemagick_orientation.png"},
    {"iss634.apng", "iss634.webp"},
    {"sugarshack.mpo", "sugarshack_bad_mpo_header.jpg"},
    {"transparent.png", "transparent.webp"},
    {"pil_sample_cmyk.jpg", "pil_sample_rgb.jpg", "truncated_app14.jpg"},
    {"invalid-exif.jpg", "photoshop-200dpi-broken.jpg"},
)


# Of this fax libtiff 4.7.2 reads what comes before the bad line; 4.7.0, in the pillow that Colab has, nothing.
READ_BY_NEW_LIBTIFF = "crash-74d2a78403a5a59db1fb0a2b8735ac068a75f6e3.tif"


def opens(path: Path) -> bool:
    """Whether pillow alone reads a file to its end."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CheckReport:
    kinds = {path.suffix for path in FOLDER.iterdir()}
    return check_images(FOLDER, kinds, 64, cache_dir=tmp_path_factory.mktemp("cache"))


def test_the_table_names_every_file_of_the_folder_once():
    """P4."""
    assert [name for name, *_ in TABLE] == sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize(("name", "verdict", "words", "why"), TABLE, ids=[row[0] for row in TABLE])
def test_the_check_agrees_with_the_table(report, name, verdict, words, why):
    """P4, L1."""
    record = next(record for record in report.records if record.name == name)
    reasons = "; ".join(record.problems)
    if name == READ_BY_NEW_LIBTIFF and not opens(FOLDER / name):
        verdict, words = "unusable", ("damaged",)
    assert record.verdict == verdict, f"{reasons or 'no reason'} ({why})"
    assert [word for word in words if word not in reasons] == [], f"{reasons} ({why})"


def test_pictures_of_one_piece_are_grouped_and_others_are_not(report):
    """P4: every group is of the table's, or of the one portrait that is there in many formats."""
    groups = [set(group) for group in report.groups]
    for expected in ONE_PIECE:
        assert expected in groups
    portrait = next(group for group in groups if "hopper.jpg" in group)
    assert all(name.startswith("hopper") for name in portrait)
    assert len(groups) == len(ONE_PIECE) + 1


@pytest.mark.parametrize("number", range(9))
def test_every_portrait_stands_upright(number):
    """P4, L1: as the one that is stored upright, but for the numeral in its middle; and as Pillow itself turns it."""
    path = FOLDER / f"Portrait_{number}.jpg"
    upright = open_picture(path)
    with Image.open(path) as stored:
        assert numpy.array_equal(numpy.asarray(upright), numpy.asarray(ImageOps.exif_transpose(stored)))
    model = numpy.asarray(open_picture(FOLDER / "Portrait_1.jpg"), numpy.int16)
    away = abs(numpy.asarray(upright, numpy.int16) - model).mean(axis=2)
    away[700:1000, 450:750] = 0  # the numeral
    assert upright.size == (1200, 1800)
    assert away.mean() < 4, "turned the wrong way it differs by more than thirty"
    reduced = read_picture(path, enough_px=300)
    assert reduced.size == (1200, 1800) and reduced.reduced == 4 and reduced.image.size == (300, 450)


@pytest.mark.parametrize("name", [row[0] for row in TABLE])
def test_a_reduced_decode_says_what_a_full_one_says(name):
    """P4: at an eighth of the size a JPEG is read to its end all the same."""
    full, reduced = (read_picture(FOLDER / name, enough_px=enough) for enough in (None, 1))
    assert (full.fault, full.notes, full.size, full.sha256) == (
        reduced.fault, reduced.notes, reduced.size, reduced.sha256)  # fmt: skip
