"""dataset.json of version 2: swatches, what is left out, other tools' keys; and how training follows it (C6, L11)."""

import json
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import examples
from lace_lora.annotations import (
    DATASET,
    Dataset,
    Example,
    add_image,
    chosen,
    dataset_text,
    load_dataset,
)
from lace_lora.config import Config
from lace_lora.data_utils import save_dataset
from lace_lora.errors import PicturesError
from lace_lora.swatch import Swatch
from tests.conftest import draw_threads
from tests.test_swatch import swatches
from tests.training import quietly

TOKEN = "a photo of <myspecialstyle>"
NAMES = ("a.jpg", "sub/büyük İ.jpg", "tab'\".jpg", "d.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, one in a sub-folder."""
    root = tmp_path_factory.mktemp("pictures")
    for name in NAMES:
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "white").save(root / name)
    return root


captions = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=30).filter(
    str.strip
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def datasets(draw: st.DrawFn, root: Path) -> Dataset:
    """Any dataset that add_image can build."""
    dataset = Dataset(root)
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=6)):
        dataset = add_image(
            dataset,
            name,
            draw(st.none() | captions),
            use=draw(st.none() | st.booleans()),
            swatch=draw(st.none() | swatches()),
        )
    return dataset


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_dataset_is_saved_and_loaded_equal(folder, data):
    """C6: captions, swatches, what is left out; and saved again it is the same text."""
    dataset = data.draw(datasets(folder))
    file = save_dataset(dataset)
    assert load_dataset(folder) == load_dataset(file) == dataset
    assert dataset_text(load_dataset(file)) == file.read_text(encoding="utf-8")
    assert hash(dataset) == hash(load_dataset(file))
    for left in folder.glob("*.bak*"):
        left.unlink()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text().filter(lambda key: key not in ("version", "images")), json_values, max_size=3),
    st.dictionaries(
        st.text().filter(lambda key: key not in ("path", "caption", "use", "swatch")), json_values, max_size=3
    ),
    st.dictionaries(
        st.text().filter(lambda key: key not in ("corners", "even_light", "crop", "cm")), json_values, max_size=3
    ),
    st.sampled_from([1, 2]),
)
def test_keys_of_other_tools_survive_loading_changing_and_saving(
    tmp_path_factory, of_file, of_image, of_swatch, version
):
    """C6: at the top, of a picture, and inside its swatch."""
    root = tmp_path_factory.mktemp("other")
    Image.new("RGB", (40, 30)).save(root / "a.jpg")
    Image.new("RGB", (40, 30)).save(root / "b.jpg")
    image = {"path": "a.jpg", "caption": "old", "swatch": {"even_light": 0.5, **of_swatch}, **of_image}
    written = {"version": version, "images": [image], **of_file}
    (root / DATASET).write_text(json.dumps(written), encoding="utf-8")
    dataset = load_dataset(root)
    assert dataset.examples[0].swatch == Swatch(even_light=0.5)
    save_dataset(add_image(add_image(dataset, "a.jpg", "new", use=False), "b.jpg", "second"))
    image |= {"caption": "new", "use": False}
    second = {"path": "b.jpg", "caption": "second"}
    found = json.loads((root / DATASET).read_text(encoding="utf-8"))
    assert found == {**written, "version": 2, "images": [image, second]}
    assert load_dataset(root).other == dataset.other


def test_a_file_of_version_1_still_loads(folder):
    """C6: as it was written before there were swatches."""
    text = '{"version": 1, "images": [{"path": "a.jpg", "caption": "rozet"}, {"path": "d.jpg", "caption": "yaprak"}]}'
    (folder / DATASET).write_text(text, encoding="utf-8")
    assert load_dataset(folder) == Dataset(
        folder, (Example(folder / "a.jpg", "rozet"), Example(folder / "d.jpg", "yaprak"))
    )


def test_adding_a_picture_again_changes_only_what_is_given(folder):
    """C6: a new caption does not undo the person's straightening, nor her leaving it out."""
    one = Swatch(even_light=1)
    dataset = add_image(Dataset(folder), "a.jpg", "first", use=False, swatch=one)
    assert add_image(dataset, "a.jpg", "second").examples == (Example(folder / "a.jpg", "second", one, False),)
    assert add_image(dataset, "a.jpg", use=True).examples == (Example(folder / "a.jpg", "first", one, True),)
    assert add_image(dataset, "a.jpg", swatch=Swatch()).examples == (Example(folder / "a.jpg", "first", None, False),)
    assert add_image(dataset, "d.jpg", swatch=one).examples[1] == Example(folder / "d.jpg", "", one)


def test_the_plain_keys_are_left_away(folder):
    """C6: the file stays as short as that of version 1 where nothing was decided."""
    dataset = add_image(
        add_image(Dataset(folder), "a.jpg", "lace"), "d.jpg", "lace", use=False, swatch=Swatch(crop=(0, 0, 1, 0.5))
    )
    assert json.loads(dataset_text(dataset))["images"] == [
        {"path": "a.jpg", "caption": "lace"},
        {"path": "d.jpg", "caption": "lace", "use": False, "swatch": {"crop": [0, 0, 1, 0.5]}},
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"version": 3, "images": []}', "has version 3, not 1 or 2. Update Lace LoRA first."),
        ('{"version": true, "images": []}', "has version True, not 1 or 2. Take dataset.json.bak or build it anew."),
        ('{"version": "2", "images": []}', "has version 2, not 1 or 2. Take dataset.json.bak"),
        ('{"version": 2, "images": [3]}', "is damaged, or no dataset of Lace LoRA"),
        ('{"version": 2, "images": [' + "[" * 100_000, "is damaged, or no dataset of Lace LoRA"),
        ('{"version": 2, "images": [{"path": "a.jpg", "use": 0}]}', "use of image 1 is neither true nor false"),
        ('{"version": 2, "images": [{"path": "a.jpg", "swatch": 3}]}', "image 1: A swatch is written as names"),
        (
            '{"version": 2, "images": [{"path": "a.jpg", "swatch": {"crop": [1, 0, 0, 1]}}, {"path": "../z.jpg"}]}',
            "2 problems: image 2 leads outside the folder: ../z.jpg; image 1: The crop .* keeps nothing",
        ),
        ('{"version": 2, "images": [{"path": "../a.jpg", "use": false}]}', "image 1 leads outside the folder"),
        ('{"version": 2, "images": [{"path": "a.jpg", "caption": "a\\tb"}]}', "image 1 holds a tab"),
        ('{"version": 2, "images": [{"path": "a.jpg"}, {"path": "a.jpg"}]}', "image 2 names a.jpg again"),
    ],
)  # fmt: skip
def test_what_cannot_be_has_its_sentence(folder, content, sentence):
    """C6."""
    (folder / DATASET).write_text(content, encoding="utf-8")
    with pytest.raises(PicturesError, match=sentence):
        load_dataset(folder)


@pytest.mark.parametrize("more", [{"use": False}, {}])
def test_a_picture_that_is_gone_keeps_its_place(folder, more):
    """C6: deleting a photograph shuts no door, and its row is still there after saving."""
    dataset = {"version": 2, "images": [{"path": "gone.jpg", "caption": "", **more}]}
    (folder / DATASET).write_text(json.dumps(dataset), encoding="utf-8")
    loaded = load_dataset(folder)
    assert loaded.examples == (Example(folder / "gone.jpg", "", None, not more),)
    assert json.loads(dataset_text(loaded)) == dataset


def test_half_a_character_in_another_tools_text_can_be_saved(folder):
    (folder / DATASET).write_text('{"version": 2, "images": [], "note": "\\ud800 ü"}', encoding="utf-8")
    save_dataset(add_image(load_dataset(folder), "a.jpg", "lace"))
    assert load_dataset(folder).other == (("", '{"note": "\\ud800 \\u00fc"}'),)


# ---- how training follows it


def annotated(root: Path, count: int = 6) -> list[Path]:
    found = sorted(root.glob("*.jpg"))
    (root / "annotations.txt").write_text("".join(f"{one.name}\t{TOKEN}\n" for one in found), encoding="utf-8")
    assert len(found) == count
    return found


def test_what_is_left_out_is_counted_and_swatches_come_along(settings: Config, lace_folder: Path) -> None:
    """C6: captions are those of annotations.txt, decisions those of dataset.json."""
    paths = annotated(lace_folder)
    one = Swatch(crop=(0, 0, 0.5, 1))
    dataset = add_image(Dataset(lace_folder), "lace_1.jpg", use=False)
    dataset = add_image(dataset, "lace_2.jpg", "another caption", swatch=one)
    save_dataset(add_image(dataset, "lace_4.jpg", use=False))
    said: list[str] = []
    found = examples.read(settings.model_copy(update={"images_dir": str(lace_folder)}), said.append)
    assert {example.path for example in found} == set(paths) - {paths[1], paths[4]}
    assert {example.path.name: example.swatch for example in found if example.swatch} == {"lace_2.jpg": one}
    assert {example.caption for example in found} == {TOKEN}
    assert said == [
        "left out  2 of 6 pictures, as dataset.json says",
        "swatches  1 pictures are straightened, cropped or evenly lit on opening, as dataset.json says",
    ]


def test_a_left_out_picture_needs_neither_token_nor_line(settings: Config, lace_folder: Path) -> None:
    """C6."""
    annotated(lace_folder)
    lines = (lace_folder / "annotations.txt").read_text().replace(f"lace_0.jpg\t{TOKEN}", "lace_0.jpg\tno token")
    (lace_folder / "annotations.txt").write_text("\n".join(lines.splitlines()[:5]) + "\n")
    save_dataset(add_image(add_image(Dataset(lace_folder), "lace_0.jpg", use=False), "lace_5.jpg", use=False))
    said: list[str] = []
    assert len(examples.read(settings.model_copy(update={"images_dir": str(lace_folder)}), said.append)) == 4
    assert said == ["left out  1 of 5 pictures, as dataset.json says"]


def test_a_dataset_that_leaves_everything_out_is_refused(settings: Config, lace_folder: Path) -> None:
    """C6."""
    dataset = Dataset(lace_folder)
    for one in annotated(lace_folder):
        dataset = add_image(dataset, one, use=False)
    save_dataset(dataset)
    with pytest.raises(PicturesError, match="dataset.json leaves all 6 pictures out. Keep some of them in the gallery"):
        examples.read(settings.model_copy(update={"images_dir": str(lace_folder)}), quietly)


def test_a_dataset_built_from_python_needs_no_annotations(settings: Config, lace_folder: Path) -> None:
    """C6: its captions go into annotations.txt, and the others get the prompt."""
    save_dataset(add_image(Dataset(lace_folder), "lace_3.jpg", "a <myspecialstyle> leaf"))
    found = examples.read(settings.model_copy(update={"images_dir": str(lace_folder)}), quietly)
    captions_by_name = {one.path.name: one.caption for one in found}
    assert captions_by_name.pop("lace_3.jpg") == "a <myspecialstyle> leaf"
    assert len(captions_by_name) == 5 and set(captions_by_name.values()) == {settings.instance_prompt}


def test_examples_that_a_dataset_does_not_know_stay_as_they_are(folder):
    one = Example(folder / "a.jpg", "lace")
    assert chosen([one], Dataset(folder)) == ([one], [])


def grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L")


def test_a_preprocessor_is_any_function_handed_in(settings: Config, lace_folder: Path, tmp_path: Path) -> None:
    """C6, design.md, Extending: what it gives is learnt; photographs stay; the same function gives the same data."""
    annotated(lace_folder)
    save_dataset(add_image(Dataset(lace_folder), "lace_0.jpg", swatch=Swatch(crop=(0, 0, 0.5, 1))))
    before = {one.name: one.read_bytes() for one in lace_folder.iterdir()}
    one = settings.model_copy(update={"images_dir": str(lace_folder), "cache_dir": str(tmp_path / "cache")})
    found = examples.read(one, quietly, grey)
    assert before == {one.name: one.read_bytes() for one in lace_folder.iterdir()}
    assert found == examples.read(one, quietly, grey) and not any(example.swatch for example in found)
    sizes = []
    for example in found:
        with Image.open(example.path) as picture:
            pixels = numpy.asarray(picture.convert("RGB"))
            sizes.append(picture.size)
        assert (pixels[:, :, 0] == pixels[:, :, 1]).all() and (pixels[:, :, 0] == pixels[:, :, 2]).all()
    assert (48, 96) in sizes and (96, 96) not in sizes, "its swatch was applied first"
    assert {example.path for example in found}.isdisjoint(example.path for example in examples.read(one, quietly))
    with pytest.raises(PicturesError, match="lace_.*: the preprocessor gave NoneType, not a picture"):
        examples.read(one, quietly, lambda picture: None)  # type: ignore[arg-type, return-value]


# ---- held out, as training does it


def held_out_names(root: Path, one: Config) -> set[str]:
    found = examples.read(one.model_copy(update={"images_dir": str(root)}), quietly)
    learnt, out = examples.apart(found, one, at_most=8, say=quietly)
    assert sorted([*learnt, *out]) == list(range(len(found)))
    return {found[number].path.name for number in out}


def test_pictures_added_later_move_as_few_as_possible_and_groups_stay_whole(settings: Config, tmp_path: Path) -> None:
    """L11, D5: through examples.apart, with files on disk, their names and places changing; copies stand together."""
    root = draw_threads(tmp_path / "pictures", 20)
    one = settings.model_copy(
        update={"validation_fraction": 0.2, "validate_every": 10, "cache_dir": str(tmp_path / "cache")}
    )
    annotated(root, 20)
    before = held_out_names(root, one)
    assert len(before) == 4

    for number, added in enumerate(sorted(draw_threads(tmp_path / "more", 22).iterdir())[-2:]):
        added.rename(root / f"0_first_{number}.jpg")  # these sort before all others
    (root / "threads_3.jpg").rename(root / "z_renamed.jpg")
    before = {name.replace("threads_3.", "z_renamed.") for name in before}
    annotated(root, 22)
    after = held_out_names(root, one)
    assert len(after) == 4
    assert len(before - after) <= 2 and after - before <= {"0_first_0.jpg", "0_first_1.jpg"}

    # Copies of a held-out piece and of a learnt one: whatever is chosen, a piece never stands on both sides.
    twice = {min(after), min({path.name for path in root.glob("*.jpg")} - after)}
    for name in twice:
        with Image.open(root / name) as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / f"copy_of_{name}", quality=80)
    annotated(root, 24)
    with_copies = held_out_names(root, one)
    for name in twice:
        assert (name in with_copies) == (f"copy_of_{name}" in with_copies)


def test_another_crop_moves_nobody_out_of_training(settings: Config, tmp_path: Path) -> None:
    """L11: who is held out hangs on the photographs, not on what their swatches make of them."""
    root = draw_threads(tmp_path / "pictures", 10)
    one = settings.model_copy(
        update={"validation_fraction": 0.2, "validate_every": 10, "cache_dir": str(tmp_path / "cache")}
    )
    annotated(root, 10)
    before = held_out_names(root, one)
    dataset = Dataset(root)
    for path in root.glob("*.jpg"):
        dataset = add_image(dataset, path, swatch=Swatch(crop=(0.1, 0.2, 0.9, 1), even_light=0.5))
    save_dataset(dataset)
    assert held_out_names(root, one) == before
