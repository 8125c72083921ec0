"""Captions in and out of other tools' files (L11, C4, C6): every kind to every other, and nothing else is touched."""

import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import caption_export, caption_files, checkpoint
from lace_lora.annotations import DATASET_VERSION, load_dataset, read_annotations
from lace_lora.caption_files import PRECEDENCE, Captions
from lace_lora.caption_lint import one_line
from lace_lora.data_utils import create_annotations, list_images, save_dataset
from lace_lora.errors import LaceError, PicturesError, SettingsError

KINDS = list(PRECEDENCE)
SIDECAR_KINDS = [".caption", ".txt"]
TRICKY = {
    "a b, c.jpg": 'a "quoted" rosette, with a \'comma\'',
    "#lead.jpg": "# not a heading",
    "sub/İnce ışık.JPG": "büyükannemin danteli, İIıi",
    "sub/caf\u00e9.jpg": "cafe\u0301 in NFD",
    "sub/deeper/100%.jpg": "<b>bold</b> & {\"json\": [1]} \\n C:\\lace",
    "-x; y='z'.jpg": "true",
    "日本 🧶.jpg": "編み物 🧶",
    "dots.in.name.jpg": "null",
}  # fmt: skip


def folder_of(root: Path, names, *, decomposed: bool = False) -> Path:
    """A folder with a file for each name, each with bytes of its own."""
    for name in names:
        path = root / (unicodedata.normalize("NFD", name) if decomposed else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def read(folder: Path) -> Captions:
    return caption_files.read(folder, list_images(folder))


def stored(folder: Path, captions, kind: str, to: Path) -> Path:
    """Written as one kind into a folder of its own; the folder to read it from."""
    said: list[str] = []
    place = caption_export.write(folder, captions, kind, to=to, say=said.append)
    return place if place.is_dir() else place.parent


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Round trips


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_every_kind_becomes_every_other_and_nothing_changes(tmp_path, first, second):
    """C6, L11: names and captions that quote, list, and are not ASCII; the person's folder stays as it was."""
    own = folder_of(tmp_path / "own", TRICKY)
    before = contents(own)
    one = stored(own, TRICKY, first, tmp_path / "one")
    assert read(one) == Captions(TRICKY, dict.fromkeys(TRICKY, first))
    two = stored(one, read(one).texts, second, tmp_path / "two")
    assert read(two).texts == TRICKY and read(two).notes == ()
    pictures = {name: data for name, data in contents(two).items() if name.casefold().endswith(".jpg")}
    assert pictures == before == contents(own)


LETTERS = st.sampled_from([*"aZ09 ,;'\"#%&()[]=+!_-.İIıiçğşé", "e\u0301", "i\u0307", "日", "🧶"])
STEMS = st.lists(LETTERS, min_size=1, max_size=12).map(lambda letters: "".join(letters).strip(" ."))
NAMES = st.tuples(st.sampled_from(["", "sub/", "İç dantel/", "e\u0301tude/a, b/"]), STEMS.filter(bool)).map(
    lambda parts: unicodedata.normalize("NFC", f"{parts[0]}{parts[1]}.jpg")
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(LETTERS, max_size=40).map("".join),
    st.sampled_from(["", "null", "[]", '{"a": 1}', "#", "\\", "\\t", "'", '"', "2024-01-01", "1e3", "a\u00a0b"]),
).map(one_line)


@given(
    st.dictionaries(NAMES, TEXTS, min_size=1, max_size=5), st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_names_and_captions_go_through_any_chain_of_kinds(captions, chain, decomposed):
    """C6, L11: also where the disk spells names in the other Unicode form; a picture without a caption keeps none."""
    with tempfile.TemporaryDirectory() as where:
        folder = folder_of(Path(where, "own"), captions, decomposed=decomposed)
        for number, kind in enumerate(chain):
            folder = stored(folder, captions, kind, Path(where, str(number)))
            assert dict(read(folder).texts) == captions
            assert read(folder).notes == ()


def test_what_is_written_is_what_the_readers_of_each_format_read(tmp_path):
    """C6, L11: our own strict readers, json line by line, and a sidecar as kohya's trainer takes it."""
    own = folder_of(tmp_path / "own", TRICKY)
    captions = dict(sorted(TRICKY.items()))
    assert caption_export.write(own, captions, "annotations.txt") == own / "annotations.txt"
    assert {one.path.relative_to(own).as_posix(): one.caption for one in read_annotations(own)} == captions
    assert caption_export.write(own, captions, "dataset.json") == own / "dataset.json"
    assert load_dataset(own).examples == tuple(read_annotations(own))
    file = caption_export.write(own, captions, "metadata.jsonl", to=tmp_path / "hf")
    assert file == tmp_path / "hf" / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_bytes().decode("utf-8").split("\n")[:-1]]
    assert {row["file_name"]: row["text"] for row in rows} == captions
    for kind in SIDECAR_KINDS:
        place = caption_export.write(own, captions, kind, to=tmp_path / kind)
        for picture in list_images(place):
            lines = Path(os.path.splitext(picture)[0] + kind).read_bytes().decode("utf-8").split("\n")
            assert lines == [captions[picture.relative_to(place).as_posix()], ""]


def test_annotations_and_dataset_are_the_bytes_that_the_package_writes_elsewhere(tmp_path):
    """L11, C6: one form of each file, whoever writes it."""
    own = folder_of(tmp_path, [])
    for name in ("a.jpg", "sub/b.jpg"):
        (own / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 80)).save(own / name)
    file = create_annotations(own, "a rosette")
    written = file.read_bytes(), save_dataset(load_dataset(caption_export.write(own, read(own).texts, "dataset.json")))
    file.unlink()
    caption_export.write(own, {"a.jpg": "a rosette", "sub/b.jpg": "a rosette"}, "annotations.txt")
    assert (file.read_bytes(), own / "dataset.json") == written
    assert sorted(contents(own)) == ["a.jpg", "annotations.txt", "dataset.json", "sub/b.jpg"]


# Which one counts


def test_the_stated_order_decides_picture_by_picture_and_differences_are_noted(tmp_path):
    """C4: the order of the docstring, tried by taking one file after the other away."""
    folder = folder_of(tmp_path, ["a.jpg", "b.jpg"])
    for kind in KINDS:
        if kind in SIDECAR_KINDS:
            (folder / f"a{kind}").write_text(f"from {kind}", encoding="utf-8")
        elif kind == "metadata.jsonl":
            (folder / kind).write_text('{"file_name": "a.jpg", "text": "from metadata.jsonl"}\n', encoding="utf-8")
        else:
            caption_export.write(folder, {"a.jpg": f"from {kind}"}, kind)
    (folder / "b.txt").write_text("of its own", encoding="utf-8")
    for number, kind in enumerate(["annotations.txt", "dataset.json", "metadata.jsonl", ".caption", ".txt"]):
        captions = read(folder)
        assert captions.texts == {"a.jpg": f"from {kind}", "b.jpg": "of its own"}
        assert captions.sources == {"a.jpg": kind, "b.jpg": ".txt"}
        assert len(captions.notes) == 4 - number
        if not number:
            assert captions.notes[3] == ".txt files: not as in annotations.txt, which counts (a.jpg)"
        (folder / f"a{kind}" if kind in SIDECAR_KINDS else folder / kind).unlink()


def test_an_empty_caption_does_not_hide_another(tmp_path):
    """C4."""
    folder = folder_of(tmp_path, ["a.jpg", "b.jpg"])
    (folder / "annotations.txt").write_text("a.jpg\t\n", encoding="utf-8")
    (folder / "a.txt").write_text("a rosette", encoding="utf-8")
    assert read(folder) == Captions({"a.jpg": "a rosette", "b.jpg": ""}, {"a.jpg": ".txt"})


def test_the_metadata_nearest_to_a_picture_counts(tmp_path):
    """C4: imagefolder's sub-folders have files of their own."""
    folder = folder_of(tmp_path, ["a.jpg", "sub/b.jpg", "sub/c.jpg"])
    rows = ['{"file_name": "a.jpg", "caption": "A"}', '{"file_name": "sub/b.jpg", "text": "far"}']
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "sub" / "metadata.jsonl").write_text('{"file_name": "b.jpg", "text": "near"}', encoding="utf-8")
    assert read(folder).texts == {"a.jpg": "A", "sub/b.jpg": "near", "sub/c.jpg": ""}


def test_one_picture_that_is_gone_does_not_hide_the_captions_of_the_others(tmp_path):
    """C6: in any of the three lists; what is passed over is named."""
    folder = folder_of(tmp_path, ["a.jpg", "b.jpg"])
    for kind in ("annotations.txt", "dataset.json"):
        caption_export.write(folder, {"a.jpg": "A", "b.jpg": "B"}, kind)
    (folder / "metadata.jsonl").write_text('{"file_name": "b.jpg", "text": "B"}\n', encoding="utf-8")
    (folder / "b.jpg").unlink()
    captions = read(folder)
    assert captions.texts == {"a.jpg": "A"} and len(captions.notes) == 3
    assert all("a picture that is gone: b.jpg" in note for note in captions.notes)


# Hostile and foreign files


@pytest.mark.parametrize("escape", ["../out.jpg", "sub/../../out.jpg", "{}/out.jpg", "..", ""])
def test_a_path_that_leads_outside_is_refused(tmp_path, escape):
    """P4: named in reading, an error in writing; nothing outside is read or written."""
    folder = folder_of(tmp_path / "own", ["a.jpg"])
    folder_of(tmp_path, ["out.jpg"])
    path = escape.format(tmp_path)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": path, "text": "x"}) + "\n", encoding="utf-8")
    (folder / "dataset.json").write_text(
        json.dumps({"version": 1, "images": [{"path": path, "caption": "x"}]}), encoding="utf-8"
    )
    if path:
        (folder / "annotations.txt").write_text(f"{path}\tx\n", encoding="utf-8")
    captions = read(folder)
    assert captions.texts == {"a.jpg": ""}
    assert [note.count("leads outside the folder") for note in captions.notes] == [1] * (3 if path else 2)
    for kind in KINDS:
        with pytest.raises(PicturesError, match="leads outside the folder"):
            caption_export.write(folder, {path: "x"}, kind, to=tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_picture_from_elsewhere_is_refused(tmp_path):
    """P4."""
    folder = folder_of(tmp_path / "own", ["a.jpg"])
    with pytest.raises(PicturesError, match=r"out\.jpg is not in .*own"):
        caption_files.read(folder, [tmp_path / "out.jpg"])


@pytest.mark.parametrize(
    "data",
    ["ışık, İnce".encode("utf-16"), "ışık, İnce".encode("utf-8-sig"), b"\xfe\xff" + "ışık, İnce".encode("utf-16-be"),
     "ışık, İnce\r\n".encode(), "\r\n  ışık, İnce \n\n".encode()],
)  # fmt: skip
@pytest.mark.parametrize("kind", SIDECAR_KINDS)
def test_sidecars_from_windows_are_read(tmp_path, data, kind):
    """C4: byte order marks, UTF-16, CRLF."""
    folder = folder_of(tmp_path, ["a.jpg"])
    (folder / f"a{kind}").write_bytes(data)
    assert read(folder) == Captions({"a.jpg": "ışık, İnce"}, {"a.jpg": kind})


@pytest.mark.parametrize(
    "data",
    ["ışık".encode("cp1254"), "abc".encode("utf-16-le"), b"\xff\xfea", b"\xff\xfe\x00\xd8", b"\0\0", b"\x89PNG\r\n"],
)
def test_texts_in_other_encodings_are_named(tmp_path, data):
    """C4: in every kind of file; what else there is still counts."""
    folder = folder_of(tmp_path, ["a.jpg", "b.jpg"])
    for name in ("dataset.json", "metadata.jsonl", "a.caption", "a.txt"):
        (folder / name).write_bytes(data)
    (folder / "b.txt").write_text("B", encoding="utf-8")
    captions = read(folder)
    assert captions.texts == {"a.jpg": "", "b.jpg": "B"}
    assert len(captions.notes) == 4
    assert all("is not UTF-8 text" in note and "Save it again as UTF-8" in note for note in captions.notes)


def test_the_other_lists_are_read_as_windows_writes_them(tmp_path):
    """C4, C6."""
    folder = folder_of(tmp_path, ["a.jpg"])
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.jpg", "text": "ışık"}\r\n\r\n'.encode("utf-16"))
    assert read(folder) == Captions({"a.jpg": "ışık"}, {"a.jpg": "metadata.jsonl"})
    (folder / "dataset.json").write_bytes(b"\xef\xbb\xbf" + save_text("ışık2").replace("\n", "\r\n").encode())
    (folder / "annotations.txt").write_bytes("a.jpg\tışık3\r\n".encode("utf-8-sig"))
    assert read(folder).texts == {"a.jpg": "ışık3"}
    (folder / "annotations.txt").unlink()
    assert read(folder).texts == {"a.jpg": "ışık2"}


def save_text(caption: str) -> str:
    return json.dumps({"version": 1, "images": [{"path": "a.jpg", "caption": caption}]}, indent=2)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", "{", "line 1 is not JSON"),
        ("metadata.jsonl", "[1]\n{}\n{\"file_name\": 1, \"text\": \"x\"}", "3 problems: line 1 is not JSON"),
        ("metadata.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "A"}\n' * 2, "line 2 names a.jpg again"),
        ("dataset.json", "[]", "it lists no images"),
        ("dataset.json", "{", "is damaged, or no dataset"),
        ("dataset.json", "[" * 100_000, "is damaged, or no dataset"),
        ("dataset.json", '{"version": 9, "images": []}', "has version 9, not "),
        ("dataset.json", '{"version": 1, "images": [7]}', "image 1 has no path and caption"),
        ("annotations.txt", "a.jpg caption", "line 1 has no tab"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, text, said):
    """P4: and is no error."""
    folder = folder_of(tmp_path, ["a.jpg"])
    (folder / name).write_text(text, encoding="utf-8")
    (note,) = read(folder).notes
    assert said in note and name in note


def test_a_text_of_several_lines_becomes_one_and_this_is_said(tmp_path):
    """L11: what read gives can always be written."""
    folder = folder_of(tmp_path, ["a.jpg"])
    (folder / "a.txt").write_text("a rosette\n\nin\twhite\x00"[:-1], encoding="utf-8")
    captions = read(folder)
    assert captions.texts == {"a.jpg": "a rosette in white"}
    assert captions.notes == (
        ".txt files: tabs, line breaks or invisible characters are read as spaces or left out (a.jpg)",
    )
    caption_export.write(folder, captions.texts, "annotations.txt")


KEYS = st.sampled_from(["file_name", "text", "images", "version", "path", "caption", "a.jpg"])
VALUES = st.recursive(
    st.none() | st.integers(0, 2) | st.text(max_size=5) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)
BYTES = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=60).map(lambda text: f"a.jpg\t{text}".encode("utf-8", "replace")),
    VALUES.map(lambda value: json.dumps(value).encode()),
    VALUES.map(lambda value: json.dumps({"file_name": "a.jpg", "text": value}).encode()),
    VALUES.map(lambda value: json.dumps({"version": 1, "images": [{"path": "a.jpg", "caption": value}]}).encode()),
)


@given(st.sampled_from(["annotations.txt", "dataset.json", "metadata.jsonl", "a.caption", "a.txt"]), BYTES)
@settings(max_examples=100, deadline=None)
def test_whatever_bytes_stand_in_a_file_reading_gives_captions_that_can_be_written(name, data):
    """P4, L11."""
    with tempfile.TemporaryDirectory() as where:
        folder = folder_of(Path(where), ["a.jpg"])
        (folder / name).write_bytes(data)
        captions = read(folder)
        assert list(captions.texts) == ["a.jpg"]
        (folder / name).unlink()
        caption_export.write(folder, captions.texts, "annotations.txt")
        assert read(folder).texts == captions.texts


# Sidecars


def test_pictures_that_share_a_sidecar_are_named(tmp_path):
    """C4: one stem, two endings; kohya's trainer would give both the same text."""
    folder = folder_of(tmp_path / "own", ["sub/a.jpg", "sub/a.png", "b.jpg", "b.png"])
    (folder / "sub" / "a.txt").write_text("A", encoding="utf-8")
    captions = caption_files.read(folder, list_images(folder, {".jpg", ".png"}))
    assert captions.texts == {"b.jpg": "", "b.png": "", "sub/a.jpg": "A", "sub/a.png": "A"}
    assert captions.notes == ("sub/a.txt stands beside a.jpg and a.png and is taken for each: rename one of them",)
    caption_export.write(folder, {"b.jpg": "B", "b.png": "B"}, ".txt", to=tmp_path / "same")
    with pytest.raises(PicturesError, match=r"b\.jpg and b\.png would share b\.caption, but differ"):
        caption_export.write(folder, {"b.jpg": "B", "b.png": "other"}, ".caption", to=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_sidecar_is_found_in_another_unicode_spelling(tmp_path, form):
    """C4: pictures from a Mac, texts from elsewhere, and the other way round."""
    folder = folder_of(tmp_path, ["\u0130\u00e7.jpg"], decomposed=form == "NFC")
    (folder / unicodedata.normalize(form, "\u0130\u00e7.txt")).write_text("A", encoding="utf-8")
    assert read(folder).texts == {"\u0130\u00e7.jpg": "A"}


def test_annotations_txt_is_never_the_sidecar_of_a_picture_of_that_name(tmp_path):
    """L11."""
    folder = folder_of(tmp_path / "own", ["annotations.jpg", "a.jpg"])
    caption_export.write(folder, {"a.jpg": "A"}, "annotations.txt")
    assert read(folder).texts == {"a.jpg": "A", "annotations.jpg": ""}
    with pytest.raises(PicturesError, match=r"the sidecar of annotations\.jpg would be called annotations\.txt"):
        caption_export.write(folder, {"annotations.jpg": "x"}, ".txt", to=tmp_path / "out")


@pytest.mark.parametrize("kind", SIDECAR_KINDS)
def test_a_caption_that_was_emptied_leaves_no_sidecar_behind(tmp_path, kind):
    """C4: an empty one would stop kohya's trainer; the earlier one is kept."""
    folder = folder_of(tmp_path / "own", ["a.jpg"])
    caption_export.write(folder, {"a.jpg": "A"}, kind, to=tmp_path / "out")
    caption_export.write(folder, {"a.jpg": ""}, kind, to=tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == sorted(["a.jpg", f"a{kind}.bak"])
    assert read(tmp_path / "out").texts == {"a.jpg": ""}


# Writing


@pytest.mark.parametrize("kind", ["metadata.jsonl", *SIDECAR_KINDS])
def test_the_persons_own_folder_gets_nothing_but_annotations_and_dataset(tmp_path, kind):
    """L11: neither directly, nor through a folder in it or around it, nor through a link."""
    own = folder_of(tmp_path / "album" / "own", ["a.jpg", "own/b.jpg"])
    (tmp_path / "link").symlink_to(own)
    with pytest.raises(PicturesError, match="Name a folder to export to"):
        caption_export.write(own, {"a.jpg": "A"}, kind)
    for to in (own, own / "export", own.parent, tmp_path / "link", tmp_path / "link" / "deeper", own / ".." / "own"):
        with pytest.raises(PicturesError, match="are not apart. Name a folder outside"):
            caption_export.write(own, {"own/b.jpg": "B"}, kind, to=to)
    trap = tmp_path / "export" / ("train/own" if kind == "metadata.jsonl" else "own")
    trap.parent.mkdir(parents=True)
    trap.symlink_to(own / "own")
    with pytest.raises(PicturesError, match="leads back into"):
        caption_export.write(own, {"own/b.jpg": "B"}, kind, to=tmp_path / "export")
    assert sorted(contents(own)) == ["a.jpg", "own/b.jpg"]


@pytest.mark.parametrize("kind", KINDS)
def test_another_picture_in_the_export_is_not_written_over(tmp_path, kind):
    """L11."""
    own = folder_of(tmp_path / "own", ["a.jpg"])
    out = tmp_path / "out" / ("train" if kind == "metadata.jsonl" else "")
    folder_of(out, ["a.jpg"])
    caption_export.write(own, {"a.jpg": "A"}, kind, to=tmp_path / "out")
    (out / "a.jpg").write_bytes(b"another")
    with pytest.raises(PicturesError, match=r"a\.jpg is another picture already\. Export to an empty folder"):
        caption_export.write(own, {"a.jpg": "A"}, kind, to=tmp_path / "out")
    assert (out / "a.jpg").read_bytes() == b"another"


@pytest.mark.parametrize("kind", ["annotations.txt", "dataset.json"])
def test_earlier_content_is_kept_unless_the_sitting_kept_it_already(tmp_path, kind):
    """L11: saving at every change would otherwise fill the folder with copies."""
    own = folder_of(tmp_path, ["a.jpg"])
    said: list[str] = []
    file = caption_export.write(own, {"a.jpg": "0"}, kind, say=said.append)
    first = file.read_bytes()
    caption_export.write(own, {"a.jpg": "1"}, kind, say=said.append)
    for number in range(2, 5):
        caption_export.write(own, {"a.jpg": str(number)}, kind, keep_earlier=False, say=said.append)
    assert sorted(contents(own)) == sorted(["a.jpg", kind, f"{kind}.bak"])
    assert (own / f"{kind}.bak").read_bytes() == first
    assert read(own).texts == {"a.jpg": "4"}
    assert said == [f"the earlier {kind} is kept as {kind}.bak"]


def test_what_dataset_json_holds_besides_captions_stays(tmp_path):
    """C6: what others keep there, of a picture, of one that is left out, and of the whole; also in an export."""
    own = folder_of(tmp_path / "own", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    kept = [
        {"path": "c.jpg", "caption": "C", "use": False},
        {"path": "away.jpg", "caption": "x", "use": False},
    ]
    images = [{"path": "b.jpg", "caption": "B", "corners": [1, 2.5]}, {"path": "gone.jpg", "caption": "x"}, *kept]
    before = {"version": 1, "made": "by half \ud83d a hand", "images": images}
    (own / "dataset.json").write_text(json.dumps(before), encoding="utf-8")
    said: list[str] = []
    for to in (tmp_path / "out", None):
        captions = {"a.jpg": "A", "b.jpg": "", "d.jpg": ""}
        file = caption_export.write(own, captions, "dataset.json", to=to, say=said.append)
        assert json.loads(file.read_text(encoding="utf-8")) == {
            "version": DATASET_VERSION,
            "made": "by half \ud83d a hand",
            "images": [
                {"path": "a.jpg", "caption": "A"},
                {"path": "b.jpg", "caption": "", "corners": [1, 2.5]},
                *kept,
            ],
        }
    assert "1 pictures of the earlier dataset.json are gone and left out" in said
    assert "without a caption: b.jpg and 1 more" in said
    assert json.loads((own / "dataset.json.bak").read_text(encoding="utf-8")) == before
    assert read(own) == Captions({"a.jpg": "A", "b.jpg": "", "c.jpg": "C", "d.jpg": ""},
                                 {"a.jpg": "dataset.json", "c.jpg": "dataset.json"})  # fmt: skip


@pytest.mark.parametrize("text", ["{", '{"version": 99, "images": []}'])
def test_a_dataset_that_cannot_be_understood_is_not_written_over(tmp_path, text):
    """C6."""
    own = folder_of(tmp_path, ["a.jpg"])
    (own / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(PicturesError, match="damaged|Update Lace LoRA first"):
        caption_export.write(own, {"a.jpg": "A"}, "dataset.json")
    assert (own / "dataset.json").read_text(encoding="utf-8") == text


def test_all_that_cannot_be_written_is_said_in_one_error(tmp_path):
    """L11."""
    own = folder_of(tmp_path, ["a.jpg", "b\tb.jpg", "c.jpg", "\u00e9.jpg"])
    captions = {
        "a.jpg": "two\nlines",
        "b\tb.jpg": "B",
        "gone.jpg": "x",
        "../c.jpg": "x",
        "\u00e9.jpg": "1",
        "e\u0301.jpg": "2",
    }
    with pytest.raises(PicturesError) as caught:
        caption_export.write(own, captions, "annotations.txt")
    assert str(caught.value) == (
        f"{own} has 5 problems: the caption of a.jpg holds a tab, a line break or an invisible character; "
        "b\\tb.jpg: its name holds a tab, a line break or an invisible mark: rename it; gone.jpg is gone; "
        "../c.jpg leads outside the folder; \u00e9.jpg is named twice, with different captions. "
        "Correct the captions, or rename the pictures."
    )
    assert not (own / "annotations.txt").exists()


def test_an_unknown_kind_is_refused_with_those_there_are(tmp_path):
    """C4."""
    with pytest.raises(SettingsError, match=r"no caption file of kind 'csv'; take one of annotations\.txt, dataset"):
        caption_export.write(tmp_path, {}, "csv")


@pytest.mark.parametrize("keep_earlier", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_while_writing_leaves_the_earlier_captions(tmp_path, monkeypatch, kind, keep_earlier):
    """L11."""
    own = folder_of(tmp_path / "own", ["a.jpg"])
    out = stored(own, {"a.jpg": "earlier"}, kind, tmp_path / "out")

    def cut(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", cut)
        with pytest.raises(LaceError, match="disk is full"):
            caption_export.write(own, {"a.jpg": "new"}, kind, to=tmp_path / "out", keep_earlier=keep_earlier)
    assert read(out).texts == {"a.jpg": "earlier"}


@pytest.mark.parametrize("keep_earlier", [True, False])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, keep_earlier):
    """L11."""
    own = folder_of(tmp_path, ["a.jpg"])

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.os, "replace", refuse)
    with pytest.raises(PicturesError, match=r"Cannot write .*annotations\.txt \(Permission denied\)\. Make its folder"):
        caption_export.write(own, {"a.jpg": "A"}, "annotations.txt", keep_earlier=keep_earlier)


# Hugging Face


UNSAFE = {
    "test/a.jpg": "test_a.jpg",
    "sub/Eval 2/b.jpg": "sub_Eval 2_b.jpg",
    "__old/c.jpg": "old_c.jpg",
    "x::y.jpg": "x_y.jpg",
    "my-val/d.jpg": "my-val_d.jpg",
    "my/val_d.jpg": "my/val_d.jpg",
    "test_a.jpg": "test_a.jpg",
    "lace test 1.jpg": "lace test 1.jpg",
    "testimony/e.jpg": "testimony/e.jpg",
}


def test_names_that_imagefolder_takes_for_splits_are_changed_in_the_export_and_said(tmp_path):
    """C4: and no two pictures get one name."""
    own = folder_of(tmp_path / "own", UNSAFE)
    said: list[str] = []
    file = caption_export.write(
        own, dict(zip(UNSAFE, UNSAFE, strict=True)), "metadata.jsonl", to=tmp_path / "hf", say=said.append
    )
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    names = {row["text"]: row["file_name"] for row in rows}
    assert names == UNSAFE | {"test/a.jpg": "_test_a.jpg"}
    assert {name: (file.parent / new).read_bytes().decode() for name, new in names.items()} == {n: n for n in UNSAFE}
    assert len(said) == 5


LOAD = """
import json, sys
sys.path[len(sys.path):] = sys.argv[2:]
try:
    import datasets
except ImportError:
    sys.exit(77)
datasets.disable_progress_bars()
loaded = datasets.load_dataset("imagefolder", data_dir=sys.argv[1])
print(json.dumps({split: [[row["text"], list(row["image"].size)] for row in rows] for split, rows in loaded.items()}))
"""


@pytest.mark.slow
def test_datasets_opens_what_is_exported_with_every_picture(tmp_path):
    """C4: Hugging Face's own reader is the judge; LACE_TEST_LIBRARIES may name a folder where `datasets` is."""
    captions = {name: f"caption of {name}" for name in [*UNSAFE, *TRICKY, "[x]*?.jpg", "sub/none.jpg"]}
    captions["sub/none.jpg"] = ""
    own = tmp_path / "own"
    sizes = {}
    for number, name in enumerate(captions):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        sizes[captions[name]] = [8 + number, 9]
        Image.new("RGB", (8 + number, 9), (number, 0, 0)).save(own / name, "JPEG")
    caption_export.write(own, captions, "metadata.jsonl", to=tmp_path / "hf")
    libraries = filter(None, os.environ.get("LACE_TEST_LIBRARIES", "").split(os.pathsep))
    offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "hf"), *libraries],
        capture_output=True, text=True, env=os.environ | offline, timeout=300,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("the package `datasets` is not installed")
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert list(loaded) == ["train"]
    assert dict(loaded["train"]) == sizes and len(loaded["train"]) == len(captions)
