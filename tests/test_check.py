"""The check of a whole folder: one look a file, copies, ranks, what is written and what is left alone (P4, L1)."""

import hashlib
import io
import json
import os
import sys
import types
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFile, ImageFilter, ImageOps

from lace_lora import cuts, image_files, local_copies, near_duplicates, rules_of_thumb, shapes, survey
from lace_lora.check_report import CheckReport, ImageRecord, Likeness
from lace_lora.check_sheet import Problem, problems_sheet
from lace_lora.data_utils import check_images
from lace_lora.errors import LaceError, PicturesError
from lace_lora.image_files import how_to_include, open_bytes
from lace_lora.own_programs import Programs
from lace_lora.quality import Quality


def piece(seed: int, side: int = 320) -> Image.Image:
    """A piece of its own: threads from and to places drawn by chance."""
    chance = numpy.random.default_rng(seed)
    picture = Image.new("RGB", (side, side), (25, 28, 45))
    pen = ImageDraw.Draw(picture)
    for _ in range(60):
        pen.line(chance.integers(0, side, 4).tolist(), fill=(230, 226, 210), width=4)
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **saving: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **saving)
    return file.getvalue()


def set_of(folder: Path, count: int = 6) -> Path:
    """So many different pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"piece_{number:02d}.jpg").write_bytes(encoded(piece(number), quality=95))
    return folder


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    """Each file below a folder by its content and time of change."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# Copies


def test_copies_are_noted_with_the_name_of_the_other_and_how_sure(tmp_path):
    """P4: the same bytes, saved again, mirrored, cut by 5 %; other pieces are left in peace."""
    folder = set_of(tmp_path)
    whole = piece(0)
    (folder / "same.jpg").write_bytes((folder / "piece_00.jpg").read_bytes())
    (folder / "saved again.jpg").write_bytes(encoded(whole, quality=40))
    (folder / "mirrored.jpg").write_bytes(encoded(ImageOps.mirror(piece(1))))
    (folder / "cut.jpg").write_bytes(encoded(piece(2).crop((16, 16, 320, 320))))
    report = check_images(folder)
    notes = {record.name: "; ".join(record.notes) for record in report.records}
    assert "same bytes as piece_00.jpg" in notes["same.jpg"]
    assert "same picture as piece_00.jpg (" in notes["saved again.jpg"] and "% alike)" in notes["saved again.jpg"]
    assert (
        "same picture as mirrored.jpg" in notes["piece_01.jpg"] and "same picture as cut.jpg" in notes["piece_02.jpg"]
    )
    assert not any("same" in notes[f"piece_{number:02d}.jpg"] for number in (0, 3, 4, 5))
    assert report.groups == (
        ("cut.jpg", "piece_02.jpg"),
        ("mirrored.jpg", "piece_01.jpg"),
        ("piece_00.jpg", "same.jpg", "saved again.jpg"),
    )
    assert all(record.is_usable for record in report.records), "a copy is never a fault"


def test_the_groups_are_those_of_near_duplicates(tmp_path):
    """P4: joined from the pairs here, since finding those takes long."""
    folder = set_of(tmp_path)
    for number in (1, 4):
        for turns in (90, 180):
            (folder / f"turned_{number}_{turns}.jpg").write_bytes(encoded(piece(number).rotate(turns)))
    report = check_images(folder)
    prints = [near_duplicates.fingerprint(image_files.open_picture(record.path)) for record in report.records]
    names = [record.name for record in report.records]
    expected = [tuple(names[place] for place in group) for group in near_duplicates.groups(prints) if len(group) > 1]
    assert list(report.groups) == expected and len(expected) == 2


def test_what_may_be_one_piece_is_noted_but_joins_no_group():
    """P4."""
    records = tuple(ImageRecord(Path(name), name, 600, 600) for name in ("a", "b", "c"))
    pairs = (Likeness("a", "b", "maybe the same piece", 0.77),)
    report = CheckReport(Path("."), records, pairs=pairs)
    assert report.groups == () and "maybe one piece (77% alike): a, b" in report.summary()


def test_comparing_can_be_left_out(tmp_path, monkeypatch):
    """P4."""
    monkeypatch.setattr(near_duplicates, "pairs", lambda _: pytest.fail("compared"))
    assert check_images(set_of(tmp_path), compare=False).pairs == ()


# Ranks


def ranked(count: int, **changed: Quality) -> CheckReport:
    """A report of that many good pictures, some of another quality."""
    names = [f"n{number}" for number in range(count)]
    records = [
        ImageRecord(Path(name), name, 900, 900, quality=changed.get(name, Quality(0.2, 96, 0.0))) for name in names
    ]
    return CheckReport(Path("."), tuple(records))


def test_the_worst_are_shown_worst_first_and_are_no_fault():
    """P4: ten at most, never more than half, and none that is good."""
    soft = {f"n{number}": Quality(number, 96, 0.0) for number in range(1, 16)}
    report = ranked(40, **soft)
    assert [record.name for record in report.least_sharp] == [f"n{number}" for number in range(15, 5, -1)]
    assert report.most_compressed == () and all(record.verdict == "ok" for record in report.records)
    assert [record.name for record in ranked(4, **soft).least_sharp] == ["n3", "n2"]
    coarse = ranked(9, n3=Quality(0, 30, 0.0), n5=Quality(0, None, 0.9), n6=Quality(0, 95, 0.0))
    assert [record.name for record in coarse.most_compressed] == ["n5", "n3"]
    assert "look for yourself: n5 (squares of 8 px show), n3 (JPEG quality 30)" in coarse.summary()


def test_a_blurred_and_a_crushed_picture_of_a_set_are_first_of_their_ranks(tmp_path):
    """P4."""
    folder = set_of(tmp_path, 8)
    (folder / "piece_03.jpg").write_bytes(encoded(piece(3).filter(ImageFilter.GaussianBlur(3)), quality=95))
    (folder / "piece_05.jpg").write_bytes(encoded(piece(5), quality=8))
    report = check_images(folder)
    assert report.least_sharp[0].name == "piece_03.jpg" and report.most_compressed[0].name == "piece_05.jpg"
    assert all(record.is_usable for record in report.records)


# Numbers and advice


def test_sizes_and_buckets_of_the_set_are_counted(tmp_path):
    """C5, C3: shapes by hand, at 512 px in steps of 64."""
    sizes = [(512, 512), (600, 600), (850, 500), (500, 850), (300, 310)]
    records = tuple(ImageRecord(Path(str(n)), str(n), *size) for n, size in enumerate(sizes))
    facts = CheckReport(tmp_path, records, resolution=512).statistics
    assert facts["short_side_px"] == {"min": 300, "median": 500, "max": 600}
    assert facts["long_side_px"] == {"min": 310, "median": 600, "max": 850}
    assert facts["buckets"] == {"512 × 512": 3, "640 × 384": 1, "384 × 640": 1}
    assert CheckReport(tmp_path, ()).statistics["short_side_px"] == {}


@given(st.integers(64, 6000), st.integers(64, 6000), st.integers(4, 256))
@settings(max_examples=80, deadline=None)
def test_a_picture_is_counted_in_the_bucket_that_it_is_trained_in(width, height, eighths):
    """C3: the shapes here are those that training cuts."""
    resolution = 8 * eighths
    step = shapes.bucket_step(resolution, 8)
    assert shapes.bucket_of(width, height, resolution, step) == cuts.cut_of(width, height, resolution, step).target_hw


@pytest.mark.parametrize(
    ("steps", "family", "verdict"),
    [(299, "sdxl", "299 is too few"), (300, "sdxl", "300 is just enough"), (500, "sdxl", "500 is good"),
     (1200, "sdxl", "1200 is good"), (1201, "sdxl", "1201 is more than is usual"),
     (1000, "flux", "1000 is just enough"), (1800, "flux", "1800 is good"),
     (None, "flux", "plan 1200 to 1800 updates"), (None, "new", "plan 500 to 1200")],
)  # fmt: skip
def test_the_number_of_steps_is_judged_by_the_rule(steps, family, verdict):
    """C17."""
    assert f"steps: {verdict}" in rules_of_thumb.advice([(900, 900)], 512, steps, family)[-1]


def test_a_miniature_is_not_told_of_steps_for_sdxl():
    """C17: nor of sizes."""
    assert not any(line.startswith("steps") for line in rules_of_thumb.advice([(96, 96)], 96, 20))


# What is written


def test_nothing_in_the_persons_folder_is_changed(tmp_path):
    """P4, L1: with a cache, a report, annotations and damaged files."""
    folder = set_of(tmp_path / "photographs")
    (folder / "broken.jpg").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "annotations.txt").write_text("piece_00.jpg\tlace\n", encoding="utf-8")
    before = everything(tmp_path)
    report = check_images(folder, resolution=512, cache_dir=tmp_path / "cache", drive_mount_path=tmp_path)
    report.write(tmp_path / "run")
    after = everything(tmp_path)
    assert before == {name: found for name, found in after.items() if name.startswith("photographs/")}
    for inside in (folder, folder / "deeper"):
        with pytest.raises(PicturesError, match="lies in the folder of photographs, which is left alone. Write"):
            report.write(inside)
    assert not (folder / "deeper").exists()


def test_the_written_report_holds_everything_and_no_path_of_this_machine(tmp_path):
    """P4: for the gallery, and to be sent to somebody who helps."""
    folder = set_of(tmp_path / "photographs")
    (folder / "cut.jpg").write_bytes((folder / "piece_01.jpg").read_bytes()[:3000])
    (folder / "again.jpg").write_bytes(encoded(piece(0), quality=60))
    (folder / "annotations.txt").write_bytes("a\tışık".encode("utf-16"))
    (folder / "a.heic").touch()
    report = check_images(folder, resolution=512, cache_dir=tmp_path / "cache", steps=800)
    path = report.write(tmp_path / "run" / "check")
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert str(tmp_path) not in text and os.path.expanduser("~") not in text
    assert found["version"] == 1 and found["folder"] == "photographs" and found["resolution"] == 512
    assert [image["path"] for image in found["images"]] == [record.name for record in report.records]
    cut = next(image for image in found["images"] if image["path"] == "cut.jpg")
    assert (cut["verdict"], cut["blur_px"]) == ("unusable", None) and cut["fault"].startswith("cut off")
    assert found["groups"] == [["again.jpg", "piece_00.jpg"]] and found["pairs"][0]["kind"] == "same picture"
    assert found["statistics"] == report.statistics and found["advice"] == list(report.advice)
    assert found["skipped_kinds"] == {".heic": 1} and found["most_compressed"][0] == "again.jpg"
    with Image.open(path.with_name("problems.png")) as page:
        assert page.width > 256 and page.height > 256


def test_a_set_without_problems_has_no_page_of_them(tmp_path):
    """P4: an earlier one is taken away."""
    (tmp_path / "problems.png").touch()
    CheckReport(Path("elsewhere"), (ImageRecord(Path("a.jpg"), "a.jpg", 900, 900),)).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["check.json"]


def test_the_page_shows_forty_at_most_the_unusable_first_and_says_how_many_more(tmp_path, monkeypatch):
    """P4."""
    shown: list[Problem] = []

    def look(problems, left_out=0):
        shown.extend(problems)
        assert left_out == 12
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr("lace_lora.check_report.problems_sheet", look)
    notes = [ImageRecord(Path(f"{n}"), f"{n}", 900, 300, notes=("long shape, 3.0 : 1",)) for n in range(50)]
    faults = [ImageRecord(Path(f"x{n}"), f"x{n}", fault="empty") for n in range(2)]
    CheckReport(Path("elsewhere"), (*notes, *faults)).write(tmp_path)
    assert len(shown) == 40 and [problem.name for problem in shown[:2]] == ["x0", "x1"]


def test_the_page_is_drawn_for_names_and_reasons_of_any_length_and_script(tmp_path):
    """P4."""
    picture = tmp_path / "a.jpg"
    piece(0).save(picture)
    problems = [
        Problem(picture, "note", "kısa.jpg", "short side 300 px"),
        Problem(None, "unusable", "x" * 300 + "\u0007\ud83d.jpg", "damaged " * 60),
        Problem(tmp_path / "gone.jpg", "to look at", "写真.jpg", ""),
    ]
    page = problems_sheet(problems, left_out=3, columns=2)
    assert page.width == 2 * 270 + 14 and 2 * 270 < page.height < 1000
    with pytest.raises(ValueError, match="at least one"):
        problems_sheet([])


def test_small_pictures_are_made_once_and_named_by_content(tmp_path):
    """L1: for the gallery."""
    folder, cache = set_of(tmp_path / "photographs", 3), tmp_path / "cache"
    Image.new("RGB", (900, 300)).save(folder / "wide.jpg")
    records = check_images(folder, cache_dir=cache).records
    made = everything(cache)
    assert {name for name in made if not name.startswith("answers/")} == {
        f"thumbnails/{record.sha256}.jpg" for record in records
    }
    with Image.open(records[-1].thumbnail) as small:
        assert small.size == (256, 85) and small.format == "JPEG"
    check_images(folder, cache_dir=cache)
    assert everything(cache) == made
    assert all(record.thumbnail is None for record in check_images(folder).records)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    """L1."""
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(LaceError, match="thumbnails could not be written"):
        check_images(set_of(tmp_path / "photographs", 1), cache_dir=tmp_path / "cache")


# One pass


def test_each_file_is_read_once_and_progress_is_told(tmp_path, monkeypatch):
    """P4."""
    folder, read, told = set_of(tmp_path), [], []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or real(path))
    check_images(folder, progress=lambda done, of: told.append((done, of)))
    assert sorted(read) == [f"piece_{number:02d}.jpg" for number in range(6)]
    assert told == [(number, 6) for number in range(1, 7)]


def test_programs_of_their_own_give_what_this_one_gives(tmp_path):
    """P4: also names that are not valid Unicode, and faults."""
    folder = set_of(tmp_path / "photographs")
    (folder / "cut.jpg").write_bytes((folder / "piece_01.jpg").read_bytes()[:3000])
    os.rename(os.fsencode(folder / "piece_02.jpg"), os.fsencode(folder) + b"/raw\xff.jpg")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing")
    here, there = (check_images(folder, workers=workers, cache_dir=tmp_path / f"cache{workers}") for workers in (0, 2))
    assert here.pairs == there.pairs
    assert [(one.name, one.problems, one.quality, one.sha256) for one in here.records] == [
        (one.name, one.problems, one.quality, one.sha256) for one in there.records
    ]
    assert everything(tmp_path / "cache0").keys() == everything(tmp_path / "cache2").keys()


def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Stand in for the programs that decode: a script that gets the same lines."""
    script = tmp_path / "fake.py"
    start = "import os, sys, time; print('ready', flush=True)\nfor line in sys.stdin:\n"
    script.write_text(start + "".join(f"    {line}\n" for line in code.splitlines()), encoding="utf-8")
    real = survey.subprocess.Popen
    monkeypatch.setattr(survey.subprocess, "Popen", lambda _, **keys: real([sys.executable, str(script)], **keys))


def test_a_file_that_ends_its_decoder_costs_only_itself(tmp_path, monkeypatch):
    """L1: and the other pictures are looked at by a new program."""
    folder = set_of(tmp_path / "photographs", 3)
    code = (
        "if 'piece_01' in line: os._exit(139)\n"
        "print('{\"width\": 700, \"height\": 600, \"sha256\": \"\", \"fault\": \"\", \"notes\": [], "
        "\"quality\": null, \"fingerprint\": null}', flush=True)"
    )  # fmt: skip
    fake_program(tmp_path, monkeypatch, code)
    faults = [record.fault for record in check_images(folder, workers=2).records]
    assert faults == ["", "damaged so that it ends the program that opens it, or too large for the memory", ""]


def test_a_program_that_is_ended_in_the_middle_of_its_answer_is_asked_again(tmp_path, monkeypatch):
    """L1: an answer of many kilobytes can be cut off where memory ends the program."""
    answers = iter(['{"width": 700, "hei', json.dumps(survey._row_of(survey.Look(700, 600))) + "\n"])
    monkeypatch.setattr(survey, "_asked", lambda program, request: (next(answers), False))
    record = check_images(set_of(tmp_path / "photographs", 1), workers=1).records[0]
    assert (record.width, record.height, record.fault) == (700, 600, "")


def test_a_file_that_hangs_its_decoder_is_given_up(tmp_path, monkeypatch):
    """L1."""
    fake_program(tmp_path, monkeypatch, "time.sleep(600)")
    monkeypatch.setattr(survey, "LONGEST_SECONDS", 0.2)
    record = check_images(set_of(tmp_path / "photographs", 1), workers=1).records[0]
    assert record.fault == "took longer than 0 s to open"


def test_where_no_program_can_be_started_the_pictures_are_looked_at_here(tmp_path, monkeypatch):
    """L1."""
    monkeypatch.setattr(survey.sys, "executable", str(tmp_path / "no python"))
    assert all(
        record.verdict == "note" and record.width for record in check_images(set_of(tmp_path), workers=2).records
    )


def test_stopping_a_check_ends_its_programs(tmp_path, monkeypatch):
    """L1: the person stops the cell."""
    started, real = [], Programs._started
    monkeypatch.setattr(Programs, "_started", lambda programs: started.append(real(programs)) or started[-1])

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_images(set_of(tmp_path), workers=2, progress=stop)
    assert started and all(program.poll() is not None for program in started)


# Drive


def test_pictures_on_drive_are_copied_once_and_read_from_the_copy(tmp_path, monkeypatch):
    """L2, P4: again only when the file changed; its earlier copy then goes."""
    folder, cache = set_of(tmp_path / "drive" / "photographs", 3), tmp_path / "cache"
    copied = []
    real = local_copies.copy_file
    monkeypatch.setattr(local_copies, "copy_file", lambda one, other: copied.append(one.name) or real(one, other))
    on_drive = {"cache_dir": cache, "drive_mount_path": tmp_path / "drive"}
    first = check_images(folder, **on_drive)
    assert sorted(copied) == ["piece_00.jpg", "piece_01.jpg", "piece_02.jpg"]
    assert [record.path.parent for record in first.records] == [folder] * 3
    again = check_images(folder, **on_drive)
    assert len(copied) == 3 and [one.sha256 for one in again.records] == [one.sha256 for one in first.records]
    (folder / "piece_01.jpg").write_bytes(encoded(piece(9)))
    changed = check_images(folder, **on_drive)
    assert copied[3:] == ["piece_01.jpg"] and changed.records[1].sha256 != first.records[1].sha256
    assert len(list((cache / "photographs").iterdir())) == 3
    check_images(folder, cache_dir=tmp_path / "other", drive_mount_path=tmp_path / "elsewhere")
    assert not (tmp_path / "other" / "photographs").exists()


def test_drive_that_goes_away_is_the_reason_of_the_files_it_took_along(tmp_path, monkeypatch):
    """L2."""
    folder = set_of(tmp_path / "drive", 2)

    def copy(source, target):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(local_copies, "copy_file", copy)
    monkeypatch.setattr(local_copies, "PAUSES", (0.0,))
    report = check_images(folder, cache_dir=tmp_path / "cache", drive_mount_path=tmp_path / "drive")
    assert {record.fault for record in report.records} == {
        "cannot be read from Drive (Transport endpoint is not connected)"
    }


def test_a_full_disk_makes_no_copy_and_stops_nothing(tmp_path, monkeypatch):
    """L2."""
    path = set_of(tmp_path / "drive", 1) / "piece_00.jpg"

    def copy(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_copies, "copy_file", copy)
    assert local_copies.local_copy(path, tmp_path / "cache") == path
    assert local_copies.local_copy(tmp_path / "gone.jpg", tmp_path / "cache") == tmp_path / "gone.jpg"


# Kinds that were skipped

HEIC = b"\0\0\0\x18ftypheic" + bytes(40)


def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the package, wherever this runs."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)


def with_heif(monkeypatch: pytest.MonkeyPatch, picture: Image.Image | None) -> None:
    """The package, standing in: it opens every HEIC file as this picture, or finds all of them damaged."""

    class Plugin(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            if picture is None:
                raise SyntaxError("no HEIF")
            self._size, self._mode, self.tile = picture.size, picture.mode, []

        def load(self):
            self.im = picture.im
            return Image.Image.load(self)

    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (Plugin, lambda start: start[4:8] == b"ftyp"))

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))


def test_without_its_package_a_heic_picture_says_what_to_install(tmp_path, monkeypatch):
    """P4: and installing it is enough, in the same session; an earlier answer was kept for ever."""
    without_heif(monkeypatch)
    fault = open_bytes(HEIC, ".heic").fault
    assert fault.startswith("a HEIC picture, which needs the package pillow-heif (pip install pillow-heif")
    assert how_to_include(".HEIC").startswith("export them as JPEG, or install the package pillow-heif")
    (tmp_path / "a.HEIC").touch()
    piece(0).save(tmp_path / "b.jpg")
    assert "to include .HEIC: export them as JPEG, or install" in check_images(tmp_path).summary()
    with_heif(monkeypatch, piece(3))
    opened = open_bytes(HEIC, ".heic")
    assert opened.fault == "" and opened.size == (320, 320)
    assert how_to_include(".HEIC") == 'add ".heic" to image_types'


def test_with_its_package_a_damaged_heic_picture_is_not_sent_to_install_it_again(monkeypatch):
    """P4: that advice led in a circle."""
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with_heif(monkeypatch, None)
    fault = open_bytes(HEIC, ".heic").fault
    assert fault == "a HEIC picture, but damaged: copy it again, or export it as JPEG"


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (".PNG", 'add ".png" to image_types'),
        (".tif", 'add ".tif" to image_types'),
        (".pdf", "export the pictures as JPEG"),
    ],
)
def test_every_skipped_kind_has_its_way_in(kind, advice):
    """P4."""
    assert how_to_include(kind) == advice


# Damaged bytes

SOUND = {
    ".jpg": encoded(piece(0, 96), "JPEG", quality=90),
    ".jpeg": encoded(piece(1, 96), "JPEG", progressive=True, quality=70),
    ".png": encoded(piece(2, 96), "PNG"),
    ".webp": encoded(piece(3, 96), "WEBP", quality=80),
    ".WEBP": encoded(piece(4, 96), "WEBP", lossless=True),
}
MOST_MP = 4


@pytest.mark.timeout(300)  # a watchdog against hanging, no assertion on speed
@given(
    st.sampled_from(sorted(SOUND)),
    st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), max_size=12),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.sampled_from([None, 40]),
)
@settings(max_examples=300, deadline=None)
def test_flipped_and_missing_bytes_give_a_picture_or_a_reason_within_the_memory_allowed(kind, flips, length, enough):
    """P4, L1: bytes of the header may claim any size; nothing above the limit is ever made."""
    data = bytearray(SOUND[kind])
    for where, flip in flips:
        data[int(where * len(data))] ^= flip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "LARGEST_PICTURE_MP", MOST_MP)
        opened = open_bytes(bytes(data[: int(length * len(data))]), kind, enough)
    assert (opened.image is None) == bool(opened.fault)
    if opened.image is not None:
        assert opened.image.mode == "RGB" and opened.size[0] * opened.size[1] <= MOST_MP * 1e6
        near_duplicates.fingerprint(opened.image)


def test_a_sound_picture_that_lost_only_its_end_is_cut_off():
    """P4: every kind, at several places."""
    for kind, data in SOUND.items():
        for length in (0.5, 0.9):
            assert open_bytes(data[: int(length * len(data))], kind).image is None
