"""Names of any signs, annotations.txt and dataset.json of any content: a record for each picture, or one sentence.

What is read is kept on writing; nothing that stands in a file raises anything but PicturesError (P4, L1, L11, C6).
"""

import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lace_lora import caption_files
from lace_lora.annotations import ANNOTATIONS, DATASET, load_dataset, read_annotations
from lace_lora.check_report import CheckReport
from lace_lora.data_utils import create_annotations, list_images, save_dataset
from lace_lora.errors import LaceError, PicturesError
from lace_lora.file_names import relative_name
from tests.test_check_fuzz import FEW, SOUND, checked, watched

PROMPT = "a photo of <myspecialstyle>"

# ---- names

ODD_NAMES = [
    "ışık.jpg", "I.jpg", "İ.jpg", "i\u0307.jpg", "é.jpg", "e\u0301.jpg", "Å.jpg", "\u212b.jpg", "ﬁ.jpg", "ß.JPG",
    "a\tb.jpg", "a\nb.jpg", "a\r\nb.jpg", "a\u2028b.jpg", "a\x1b[31mred.jpg", "\u202egpj.exe.jpg", "\ufeffa.jpg",
    '"quoted".jpg', "it's.jpg", "`id`.jpg", "$(id).jpg", "a;b|c.jpg", "-rf.jpg", "--help.jpg", "%s%n.jpg", "{0}.jpg",
    "<img src=x onerror=alert(1)>.jpg", "&amp;.jpg", "a..jpg", " lead.jpg", "trail .jpg", "~.jpg",
    "写真.jpg", "🧵.jpg", "CON.jpg", "*.jpg", "?.jpg", "a\\b.jpg", "C:a.jpg", "#1.jpg", "x" * 240 + ".jpg",
    "raw\udcff.jpg", "\udced\udca0\udc80.jpg", "annotations.txt.jpg", "dataset.json.jpg",
]  # fmt: skip
SIGNS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
NAMES = st.text(SIGNS, min_size=1, max_size=20).filter(lambda name: not name.startswith("."))


def planted(folder: Path, names: list[str]) -> set[str]:
    """Copies of one picture under these names; those that the disk takes."""
    for name in names:
        try:
            (folder / name).write_bytes(SOUND[0])
        except OSError:
            continue
    return {name for name in os.listdir(folder) if name.casefold().endswith(".jpg") and name[0] != "."}


def agrees_with_the_lines(folder: Path, report: CheckReport) -> None:
    """annotations.txt has one line with one tab for each usable picture, and is read again as that picture."""
    text = create_annotations(folder, PROMPT, checked=report).read_bytes().decode("utf-8")
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == len(report.usable) and all(line.count("\t") == 1 for line in lines)
    assert [one.path for one in read_annotations(folder)] == [record.path for record in report.usable]


def test_every_odd_name_has_its_record_and_those_that_a_line_can_hold_are_usable(tmp_path):
    """L1, P4: Turkish, NFC and NFD, tabs, quotes, line breaks, bytes that are no text, dashes, HTML."""
    there = planted(tmp_path, ODD_NAMES)
    assert len(there) >= 40
    report = checked(tmp_path, {".jpg"})
    assert {record.path.name for record in report.records} == there
    refused = {record.path.name for record in report.records if not record.is_usable}
    for name in there - refused:
        name.encode()
        assert not re.search(r"[\t\n\r\u2028]", name)
    spelt = {unicodedata.normalize("NFC", name) for name in there - refused}
    assert len(spelt) == len(there - refused), "no two names that an editor may make one"
    assert {"ışık.jpg", "I.jpg", "İ.jpg", "-rf.jpg", '"quoted".jpg', "写真.jpg"} <= there - refused
    assert {"a\tb.jpg", "a\nb.jpg", "raw\udcff.jpg"} <= refused
    agrees_with_the_lines(tmp_path, report)


@watched
@given(st.lists(st.builds(lambda name, ending: name + ending, NAMES, st.sampled_from([".jpg", ".JPG", ".jpg "])),
                min_size=1, max_size=8))  # fmt: skip
@FEW
def test_pictures_of_any_name_are_checked_and_annotated(names):
    """L1, L11, P4."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        there = planted(folder, [*names, "a.jpg"])
        report = checked(folder, {".jpg"})
        assert {record.path.name for record in report.records} == there
        agrees_with_the_lines(folder, report)


@given(st.text(max_size=30), st.booleans())
@example("\ud800", True)
@example("a\0b", False)
@settings(max_examples=200, deadline=None)
def test_a_name_from_any_text_stays_in_the_folder_or_is_none(text, is_absolute):
    """L1: also half characters, which JSON can hold and no disk can."""
    folder = Path("/nowhere/photographs")
    name = relative_name(folder, f"/{text}" if is_absolute else text)
    assert name is None or Path(os.path.normpath(folder / name)).is_relative_to(folder)


# ---- annotations.txt and dataset.json


LINES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"a.jpg\tlace", b"b.jpg\t", b"../a.jpg\tx", b"/etc/passwd\tx", b"a.jpg\t\tx", b"\xef\xbb\xbf",
                         b"a.jpg\0\tx", "e\u0301.jpg\tışık".encode(), b"\xff\xfe", b"a" * 5000 + b"\tx", b"\r"]),
    ),
    max_size=6,
)  # fmt: skip


@watched
@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r", b""]))
@FEW
def test_annotations_of_any_bytes_are_read_or_refused_with_a_sentence(lines, between):
    """L11, P4: by the check, by training, and where they are written again; a path never leads outside."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("a.jpg", "b.jpg", "é.jpg"):
            (folder / name).write_bytes(SOUND[1])
        (folder / ANNOTATIONS).write_bytes(between.join(lines))
        report = checked(folder, {".jpg"})
        assert all(record.is_usable for record in report.records)
        caption_files.read(folder, list_images(folder))
        try:
            examples = read_annotations(folder)
        except PicturesError as error:
            assert str(error).isprintable()
        else:
            assert {one.path.parent for one in examples} == {folder}
        try:
            create_annotations(folder, PROMPT, checked=report)
        except PicturesError:
            create_annotations(folder, PROMPT, checked=report, overwrite=True)
        assert len(read_annotations(folder)) == 3


NUMBERS = st.one_of(st.integers(), st.floats(), st.just(10**400), st.booleans(), st.none())
ANYTHING = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=8), st.sampled_from(["a.jpg", "/\ud800", "../a.jpg", "\0"])),
    lambda inside: st.one_of(
        st.lists(inside, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(["path", "caption", "use", "swatch"]), st.text(max_size=4)), inside),
    ),
    max_leaves=8,
)
SWATCHES = st.fixed_dictionaries(
    {},
    optional={
        "even_light": st.one_of(st.floats(0, 1), ANYTHING),
        "crop": st.one_of(st.lists(NUMBERS, min_size=4, max_size=4), st.just([0.1, 0.1, 0.9, 0.9])),
        "corners": st.lists(st.lists(st.floats(), min_size=2, max_size=2), min_size=4, max_size=4),
        "cm": ANYTHING,
        "ours": ANYTHING,
    },
)
PATHS = st.one_of(st.sampled_from(["a.jpg", "b.jpg", "../a.jpg", "/\ud800"]), ANYTHING)
IMAGES = st.one_of(
    ANYTHING,
    st.fixed_dictionaries(
        {"path": PATHS},
        optional={"caption": st.one_of(st.just("lace"), ANYTHING), "use": st.one_of(st.booleans(), ANYTHING),
                  "swatch": st.one_of(SWATCHES, ANYTHING), "other": ANYTHING},
    ),
)  # fmt: skip
DATASETS = st.one_of(
    ANYTHING,
    st.fixed_dictionaries(
        {
            "version": st.one_of(st.just(2), st.just(1), NUMBERS),
            "images": st.one_of(st.lists(IMAGES, max_size=3), ANYTHING),
        },
        optional={"more": ANYTHING},
    ),
)


def kept_or_refused(folder: Path, text: str) -> bool:
    """Whether this dataset.json is read; if so it is saved and read again as the same, twice."""
    file = folder / DATASET
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    captions = caption_files.read(folder, list_images(folder))
    assert set(captions.texts) == {"a.jpg", "b.jpg"} and all(note.isprintable() for note in captions.notes)
    try:
        first = load_dataset(folder)
    except PicturesError as error:
        assert str(error).isprintable()
        return False
    assert all(one.path.parent == folder or not one.use for one in first.examples)
    save_dataset(first)
    again = load_dataset(folder)
    assert again.examples == first.examples
    saved = file.read_bytes()
    save_dataset(again)
    assert file.read_bytes() == saved
    return True


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(SOUND[1])
    return folder


@watched
@given(DATASETS)
@example({"version": 2, "images": [{"path": "/\ud800", "caption": "lace"}]})
@example({"version": 2, "images": [{"path": "a.jpg", "caption": "lace", "swatch": {"even_light": 0.0}}]})
@settings(FEW, max_examples=200)
def test_a_dataset_of_any_shape_is_kept_or_refused_with_a_sentence(two, content):
    """C6, P4: numbers that are huge or none, texts that no file can hold, lists for names."""
    kept_or_refused(two, json.dumps(content))


@pytest.mark.parametrize("depth", [10, 400, 985, 1500, 100_000])
@pytest.mark.parametrize("of", ["[]", '{"a":}'])
def test_a_dataset_that_is_nested_deep_is_kept_or_refused_with_a_sentence(two, of, depth):
    """P4: it could be read and not be written again, so that the next change in the gallery was lost."""
    deep = of[:-1] * depth + "1" + of[-1] * depth
    image = f'{{"path": "a.jpg", "caption": "x", "other": {deep}}}'
    is_read = kept_or_refused(two, f'{{"version": 2, "images": [{image}]}}')
    assert is_read == (depth == 10)


@watched
@given(st.binary(max_size=60), st.floats(0, 1), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
@FEW
def test_a_dataset_of_any_bytes_is_kept_or_refused_with_a_sentence(two, data, where, encoding):
    """C6, P4: of other encodings, and with bytes in its middle that belong elsewhere."""
    whole = '{"version": 2, "images": [{"path": "a.jpg", "caption": "é"}]}'.encode(encoding)
    at = int(where * len(whole))
    (two / DATASET).write_bytes(whole[:at] + data + whole[at:])
    caption_files.read(two, list_images(two))
    try:
        save_dataset(load_dataset(two))
    except LaceError as error:
        assert isinstance(error, PicturesError) and str(error).isprintable()
