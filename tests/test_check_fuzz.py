"""Whole folders of damaged, hostile and oddly named files: the check has a record for each and ends (P4, L1, C17).

Single damaged files are those of test_check and test_data_utils. The time limits here are watchdogs against hanging;
nothing is measured.
"""

import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, features

from lace_lora import image_files
from lace_lora.annotations import ANNOTATIONS
from lace_lora.check_report import CheckReport
from lace_lora.data_utils import check_images, list_images
from lace_lora.image_files import open_bytes

KINDS = {".jpg", ".png", ".webp", ".gif", ".tif", ".avif"}
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
watched = pytest.mark.timeout(240)


def lace(seed: int = 0, side: int = 80) -> Image.Image:
    """Threads from and to places drawn by chance."""
    chance = numpy.random.default_rng(seed)
    picture = Image.new("RGB", (side, side), (25, 28, 45))
    pen = ImageDraw.Draw(picture)
    for _ in range(25):
        pen.line(chance.integers(0, side, 4).tolist(), fill=(230, 226, 210), width=3)
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **saving: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **saving)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    return exif


SOUND = [
    encoded(lace(0), "JPEG", quality=80, exif=turned(6)),
    encoded(lace(1), "JPEG", progressive=True),
    encoded(lace(2), "PNG", exif=turned(3)),
    encoded(lace(3).quantize(16), "PNG", transparency=3),
    encoded(lace(4), "WEBP"),
    encoded(lace(5).convert("RGBA"), "WEBP", save_all=True, append_images=[lace(6).convert("RGBA")]),
    encoded(lace(7), "GIF", save_all=True, append_images=[lace(8)]),
    encoded(lace(9), "TIFF"),
    encoded(lace(10), "TIFF", compression="tiff_lzw"),
    encoded(lace(11).convert("L").convert("F"), "TIFF"),
    encoded(lace(12), "BMP"),
    encoded(lace(13), "MPO", save_all=True, append_images=[lace(14)]),
]
if features.check("avif"):
    SOUND.append(encoded(lace(15), "AVIF"))

# Where, and what: a bit, a whole number of two or four bytes such as a header holds, bytes left out or twice.
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.sampled_from(["<H", ">H", "<I", ">I"]), st.floats(0, 0.3), st.sampled_from(EXTREMES)),
    st.tuples(st.sampled_from(["lose", "double"]), st.floats(0, 1), st.integers(1, 200)),
)


def damaged(sound: bytes, damages: list[tuple[str, float, int]]) -> bytes:
    data = bytearray(sound)
    for kind, where, number in damages:
        at = int(where * max(0, len(data) - 5))
        if kind == "flip":
            data[at : at + 1] = bytes([data[at] ^ number]) if data else b""
        elif kind == "lose":
            del data[at : at + number]
        elif kind == "double":
            data[at:at] = data[at : at + number]
        else:
            size = struct.calcsize(kind)
            data[at : at + size] = struct.pack(kind, number % 256**size)
    return bytes(data)


FILES = st.one_of(
    st.builds(damaged, st.sampled_from(SOUND), st.lists(DAMAGE, max_size=5)),
    st.binary(max_size=60),
)


def checked(folder: Path, kinds: set[str] = KINDS) -> CheckReport:
    """The check of a folder, and what must be true of every one: a record a file, and all of it can be written."""
    report = check_images(folder, kinds, 64, workers=0)
    assert [record.path for record in report.records] == list_images(folder, kinds)
    for record in report.records:
        assert record.verdict in ("ok", "note", "unusable")
        assert record.is_usable == (not record.fault) and (record.width > 0 or not record.is_usable)
    shown = f"{report}\n{report.as_table(only_problems=True)}"
    assert all(sign.isprintable() or sign == "\n" for sign in shown), "nothing that a terminal would obey"
    shown.encode()
    with tempfile.TemporaryDirectory() as elsewhere:
        content = json.loads(report.write(elsewhere).read_text(encoding="utf-8"))
    assert [image["verdict"] for image in content["images"]] == [record.verdict for record in report.records]
    return report


# ---- folders of damaged files


@watched
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), FILES), min_size=1, max_size=6), st.binary(max_size=80))
@FEW
def test_a_folder_of_damaged_files_has_a_record_for_each(files, annotations):
    """P4, L1: whatever their bytes are and whatever their names claim; a sound one among them stays sound."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "LARGEST_PICTURE_MP", 2)
        folder = Path(place)
        for number, (ending, data) in enumerate(files):
            (folder / f"{number}{ending}").write_bytes(data)
        (folder / "whole.png").write_bytes(encoded(lace(99), "PNG"))
        (folder / ANNOTATIONS).write_bytes(b"whole.png\tlace\n" + annotations)
        records = checked(folder).records
    assert len(records) == len(files) + 1
    assert next(record for record in records if record.name == "whole.png").is_usable


@watched
@given(st.binary(max_size=400), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.booleans())
@settings(FEW, max_examples=60)
def test_exif_data_of_any_bytes_never_spoil_the_picture(data, kind, with_header):
    """L1: the pixels are what they are, whichever way up."""
    start = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if with_header else b"")
    opened = open_bytes(encoded(lace(), kind, exif=start + data), f".{kind.casefold()}")
    assert opened.image is not None, opened.fault
    assert opened.image.size == (80, 80) and opened.sha256


@pytest.mark.parametrize("kind", ["ifd that is its own next", "a thousand tags", "orientation is a text",
                                  "orientation is 1/0", "orientation is four numbers"])  # fmt: skip
def test_exif_data_that_lead_in_circles_or_lie_are_left(kind):
    """L1."""

    def ifd(entries: list[tuple[int, int, int, bytes]], after: int) -> bytes:
        rows = b"".join(struct.pack("<HHI", *row[:3]) + row[3].ljust(4, b"\0") for row in entries)
        return struct.pack("<H", len(entries)) + rows + struct.pack("<I", after)

    entries = {
        "ifd that is its own next": [(0x8769, 4, 1, struct.pack("<I", 8)), (0x8825, 4, 1, struct.pack("<I", 8))],
        "a thousand tags": [(0x9000 + number, 7, 0x7FFFFFFF, struct.pack("<I", 8)) for number in range(1000)],
        "orientation is a text": [(0x0112, 2, 3, b"up\0")],
        "orientation is 1/0": [(0x0112, 5, 1, struct.pack("<I", 26))],
        "orientation is four numbers": [(0x0112, 3, 2, struct.pack("<HH", 6, 8))],
    }[kind]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + ifd(entries, 8) + struct.pack("<II", 1, 0)
    whole = encoded(lace())
    file = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]
    opened = open_bytes(file, ".jpg")
    assert opened.image is not None and opened.size == (80, 80), opened.fault


def test_a_jpeg_of_very_many_scans_is_refused_and_one_of_many_is_read():
    """L1: each scan of a few bytes costs a round over the whole picture; 10 MB of them cost hours."""
    whole = encoded(lace(0, 640), progressive=True)
    last = whole.rindex(b"\xff\xda")
    scan = whole[last : last + 2 + int.from_bytes(whole[last + 2 : last + 4], "big")]
    usual = whole.count(b"\xff\xda")
    most = image_files.MOST_SCANS
    for count, is_read in ((usual, True), (most, True), (most + 1, False), (10**6, False)):
        opened = open_bytes(whole[:-2] + scan * (count - usual) + whole[-2:], ".jpg", 64)
        assert (opened.image is not None) == is_read, opened.fault
        assert is_read or opened.fault.startswith("damaged (it is drawn in more than 200 rounds")
    phone = whole + b"\0" * 20 + b"\xff\xda\0\4" * 300  # a film behind the picture, as phones append one
    thumbnail = b"\xff\xd8" + b"\xff\xda\0\2" * 300
    inside = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + whole[2:]
    assert open_bytes(phone, ".jpg").image is not None and open_bytes(inside, ".jpg").image is not None


def test_a_picture_of_one_endless_row_is_refused():
    """L1: 200 MP are allowed, but in one row they take 25 bytes each to be made smaller."""
    side = image_files.LONGEST_SIDE_PX
    opened = open_bytes(png(side + 1, 1), ".png")
    assert opened.fault == f"claims 65,536 px on one side, more than the {side:,} px of any JPEG"
    assert open_bytes(png(1, side + 1), ".png").fault == opened.fault
    assert open_bytes(png(side, 1), ".png").image is not None


# ---- memory


def png(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A black PNG whose pixels are all there, packed a thousand to one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row_bytes = 1 + width * depth * {0: 1, 2: 3, 6: 4}[colour] // 8
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(row_bytes * height)) if width * height <= 10**8 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims a size that its pixels do not have."""
    if kind == "PPM":
        return f"P6 {width} {height} 255\n".encode() + bytes(30)
    if kind == "WEBP":
        frame = bytes(6) + bytes([79, 0, 0]) * 2 + bytes([100, 0, 0, 0]) + encoded(lace(), "WEBP")[12:]
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        parts = [(b"VP8X", b"\x02\0\0\0" + size), (b"ANIM", bytes(6)), (b"ANMF", frame)]
        body = b"WEBP" + b"".join(name + struct.pack("<I", len(data)) + data for name, data in parts)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    data = bytearray(encoded(lace(), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    else:
        at = struct.unpack_from("<I", data, 4)[0] + 2
        for row in range(at, at + 24, 12):  # the first two tags of a TIFF are its width and its length
            struct.pack_into("<HII", data, row + 2, 4, 1, width if row == at else height)
    return bytes(data)


IN_A_CHILD = """
import json, re, sys
from lace_lora import image_files
from lace_lora.data_utils import check_images
# Not ru_maxrss: that of a child begins with its parent's.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
image_files.LARGEST_PICTURE_MP = float(sys.argv[2])
check_images(sys.argv[3], workers=0, compare=False)
before = peak()
report = check_images(sys.argv[1], {".jpg"}, 64, workers=0)
print(json.dumps([peak() - before, {one.name: [one.width, one.height, one.fault] for one in report.records}]))
"""


def in_a_child(folder: Path, largest_mp: float, warming: Path) -> tuple[float, dict[str, list]]:
    """How many MB a check of the folder took at its peak beyond those of another folder; and what it found."""
    ran = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD, str(folder), str(largest_mp), str(warming)],
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2),
    )
    assert ran.returncode == 0, ran.stderr[-800:]
    mb, found = json.loads(ran.stdout)
    return mb, found


@watched
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_memory_stays_in_proportion_to_the_largest_picture_allowed(tmp_path):
    """P4, L1: headers that claim more are refused; those that claim as much are opened in 20 bytes a pixel."""
    folder, warming, largest_mp = tmp_path / "hostile", tmp_path / "warming", 9.0
    folder.mkdir()
    warming.mkdir()
    (warming / "a.jpg").write_bytes(SOUND[0])
    kinds = ("JPEG", "GIF", "TIFF", "PPM", "WEBP")
    for side in (2990, 16000, 65535):
        for kind in kinds:
            if kind != "WEBP" or side < 16383:
                (folder / f"{kind} {side}.jpg").write_bytes(claiming(kind, side, side))
        for name, depth, colour in (("grey", 16, 0), ("RGB", 8, 2), ("RGBA", 16, 6)):
            (folder / f"PNG {name} {side}.jpg").write_bytes(png(side, side, depth, colour))
    (folder / "PNG 2147483647.jpg").write_bytes(png(2**31 - 1, 2**31 - 1))
    mb, found = in_a_child(folder, largest_mp, warming)
    assert set(found) == {path.name for path in folder.iterdir()}
    for name, (width, height, fault) in found.items():
        if " 2990" in name and name.startswith(("PNG", "GIF", "WEBP")):
            assert (width, height, fault) == (2990, 2990, ""), name
        elif " 2990" not in name:
            assert fault.startswith(("claims ", "not a picture")), f"{name}: {fault}"
    assert mb < 20 * largest_mp + 40
