"""Every usable picture gets a caption, from wherever there is one (L11, C4, P4)."""

import json
import os
from pathlib import Path

import pytest

from lace_lora import annotate, check, config, data_utils, examples, main, swatch
from lace_lora.annotations import Dataset
from lace_lora.errors import PicturesError, SettingsError
from tests.conftest import draw_lace

PROMPT = "a photo of <myspecialstyle>"


@pytest.fixture
def settled(tmp_path):
    """Six pictures, a model folder that is not there, and no captioner."""
    return config.load(
        preset="none", images_dir=str(draw_lace(tmp_path / "pictures")), lora_output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path / "cache"), resolution=64, max_train_steps=1, pretrained_model=str(tmp_path / "none"),
    )  # fmt: skip


def captions(settings) -> dict[str, str]:
    folder = Path(settings.images_dir)
    return {one.path.name: one.caption for one in data_utils.read_annotations(annotate.file_of(settings), folder)}


def test_captions_of_other_tools_are_taken_and_the_rest_get_the_prompt(settled):
    """C4, L11: by the stated precedence; a line for each picture."""
    folder = Path(settled.images_dir)
    (folder / "lace_0.txt").write_text("from kohya")
    (folder / "lace_1.txt").write_text("hidden")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "lace_1.jpg", "text": "from imagefolder"}))
    dataset = data_utils.add_image(Dataset(folder), "lace_2.jpg", "from a program")
    data_utils.save_dataset(dataset)
    (folder / "annotations.txt").write_text("lace_3.jpg\tby hand\n")
    annotate.run(settled, say=lambda _: None)
    texts = captions(settled)
    told = {"lace_0.jpg": "from kohya", "lace_1.jpg": "from imagefolder", "lace_2.jpg": "from a program",
            "lace_3.jpg": "by hand"}  # fmt: skip
    assert texts == dict.fromkeys((f"lace_{n}.jpg" for n in range(6)), PROMPT) | told
    assert annotate.captions_of(settled, data_utils.check_images(folder), print) == texts
    assert (folder / "annotations.txt.bak").read_text() == "lace_3.jpg\tby hand\n"


def test_a_run_that_is_cut_while_captions_are_suggested_leaves_a_set_to_train_on(settled):
    """C4: each picture has its line from the first moment, and what was suggested is in it."""
    seen = []

    def captioner(picture):
        seen.append(picture.size)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return f"number {'one two three'.split()[len(seen) - 1]}"

    with pytest.raises(KeyboardInterrupt):
        annotate.run(settled, captioner=captioner, say=lambda _: None)
    assert list(captions(settled).values()) == [f"{PROMPT}, number one", f"{PROMPT}, number two", *[PROMPT] * 4]

    annotate.run(settled, captioner=lambda _: f"number {len(seen)}" if not seen.append(1) else "", say=lambda _: None)
    assert len(seen) == 3 + 4, "the two that were suggested before are not asked for again"


def test_the_captioner_sees_what_is_learnt_of_a_picture(settled):
    """C4: a swatch is applied before a caption is asked for."""
    folder = Path(settled.images_dir)
    half = swatch.Swatch(crop=(0, 0, 0.5, 0.5))
    data_utils.save_dataset(data_utils.add_image(Dataset(folder), "lace_0.jpg", swatch=half))
    sizes = []
    annotate.run(settled, captioner=lambda one: sizes.append(one.size) or f"lace {one.size}", say=lambda _: None)
    assert sizes[0] == swatch.open_swatch(folder / "lace_0.jpg", half).size
    assert sizes[0] != swatch.open_swatch(folder / "lace_0.jpg").size


def test_overwrite_alone_gives_the_prompt_and_with_a_captioner_asks_for_all(settled):
    """C4: existing captions are overwritten only when that is asked, and are kept beside."""
    folder = Path(settled.images_dir)
    (folder / "annotations.txt").write_text("lace_3.jpg\tby hand\n")
    answers = iter("abcdef")
    annotate.run(settled, captioner=lambda _: f"lace {next(answers) * 2}", overwrite=True, say=lambda _: None)
    assert [text.rpartition(" ")[2] for text in captions(settled).values()] == ["aa", "bb", "cc", "dd", "ee", "ff"]
    annotate.run(settled, overwrite=True, say=lambda _: None)
    assert set(captions(settled).values()) == {PROMPT}
    kept = [file.read_text() for file in folder.glob("annotations.txt.bak*")]
    assert "lace_3.jpg\tby hand\n" in kept and any("lace aa" in text for text in kept)


def test_mend_mends_what_lint_can_and_nothing_else(settled):
    """C4, C11."""
    folder = Path(settled.images_dir)
    words = "fern star leaf rose fan heart".split()
    lines = [f"lace_{n}.jpg\t{word} on a white table" for n, word in enumerate(words[:5])] + ["lace_5.jpg\theart"]
    (folder / "annotations.txt").write_text("\n".join(lines))
    said = []
    annotate.run(settled, mend=True, say=said.append)
    assert captions(settled) == {f"lace_{n}.jpg": f"<myspecialstyle> {word}" for n, word in enumerate(words)}
    assert "captions  6 mended" in said
    assert not [one for one in annotate.lint(settled, captions(settled)) if one.mend]


def test_a_folder_that_is_read_only_keeps_its_captions_elsewhere_and_gives_them_back(settled, monkeypatch):
    """L11: shared with you to read only; whatever the run, and also once it can be written."""
    folder = Path(settled.images_dir)
    may_write = os.access
    with monkeypatch.context() as shared:
        shared.setattr(os, "access", lambda path, mode: Path(path) != folder and may_write(path, mode))
        annotate.run(settled, captioner=lambda one: f"lace {one.size}", say=lambda _: None)
        told = captions(settled)
        assert all("lace (" in text for text in told.values()) and not (folder / "annotations.txt").exists()
        another = settled.model_copy(update={"run_name": "another"})
        assert {one.caption for one in examples.read(another, lambda _: None)} == set(told.values())
        report = check.run(another, say=lambda _: None)
        assert {record.name: record.caption for record in report.records} == told, "the check knows them, too"
    (folder / "annotations.txt").write_text(f"lace_0.jpg\t{PROMPT}\n")  # bare prompts of before hide nothing
    annotate.run(settled, say=lambda _: None)
    assert captions(settled) == told and (folder / "annotations.txt").is_file()
    (folder / "annotations.txt").write_text("lace_0.jpg\tby hand\n")
    annotate.run(settled, say=lambda _: None)
    assert captions(settled) == told | {"lace_0.jpg": "by hand"}


def test_pictures_that_are_left_out_are_not_asked_about(settled):
    """C4: a captioner may cost money."""
    folder = Path(settled.images_dir)
    data_utils.save_dataset(data_utils.add_image(Dataset(folder), "lace_4.jpg", use=False))
    asked = []
    annotate.run(settled, captioner=lambda one: asked.append(one) or f"lace {one.size}", say=lambda _: None)
    assert len(asked) == 5


def test_a_dataset_that_cannot_be_read_ends_no_plan_and_no_check(settled, capsys):
    """C6: training and the gallery say what is wrong with it."""
    folder = Path(settled.images_dir)
    (folder / "dataset.json").write_text("{")
    assert data_utils.count_pictures(folder) == 6
    assert main.run(["check", "--images-dir", str(folder), "--lora-output-dir", settled.lora_output_dir]) == 0
    assert "dataset.json is damaged" in capsys.readouterr().out


def test_lengths_are_checked_where_the_model_is_here(settled, tiny_sdxl):
    """C4: with the base model's own tokenizers; without them that is said."""
    long = {"a.jpg": f"{PROMPT} " + "lace " * 90}
    assert [one.kind for one in annotate.lint(settled, long)] == ["not checked"]
    here = settled.model_copy(update={"pretrained_model": str(tiny_sdxl)})
    assert "too long" in [one.kind for one in annotate.lint(here, long)]


def test_a_picture_that_is_left_out_is_not_learnt_counted_or_exported(settled, tmp_path, capsys):
    """C6: dataset.json's decision holds for training, plan and export."""
    folder = Path(settled.images_dir)
    annotate.run(settled, say=lambda _: None)
    data_utils.save_dataset(data_utils.add_image(Dataset(folder), "lace_4.jpg", use=False))
    assert data_utils.count_pictures(folder) == 5
    assert "lace_4.jpg" not in {one.path.name for one in examples.read(settled, lambda _: None)}
    to = tmp_path / "for others"
    assert main.run(["export-captions", str(to), "--images-dir", str(folder), "--as", ".txt"]) == 0
    assert sorted(file.name for file in to.glob("*.jpg")) == [f"lace_{n}.jpg" for n in (0, 1, 2, 3, 5)]
    assert (to / "lace_0.txt").read_text() == f"{PROMPT}\n"
    assert main.run(["export-captions", str(folder / "in it"), "--images-dir", str(folder)]) == 1
    assert "not apart" in capsys.readouterr().err


def test_captions_in_annotations_count_before_those_of_dataset_json_when_training(settled):
    """C6: one precedence everywhere."""
    folder = Path(settled.images_dir)
    data_utils.save_dataset(data_utils.add_image(Dataset(folder), "lace_0.jpg", f"{PROMPT} of a program"))
    annotate.run(settled, say=lambda _: None)
    file = folder / "annotations.txt"
    file.write_text(file.read_text().replace("of a program", "by hand"))
    assert f"{PROMPT} by hand" in {one.caption for one in examples.read(settled, lambda _: None)}


def test_lines_that_lead_outside_are_refused(settled):
    """L11: nothing outside the folder is read, whatever annotations.txt says."""
    folder = Path(settled.images_dir)
    (folder / "annotations.txt").write_text("../secret.jpg\tx\n")
    with pytest.raises(PicturesError, match="leads outside the folder"):
        annotate.run(settled, say=lambda _: None)
    with pytest.raises(PicturesError, match="leads outside the folder"):
        examples.read(settled, lambda _: None)


def test_a_folder_named_from_here_keeps_names_relative_to_itself(settled, monkeypatch):
    """C6, L11: images_dir as the demo has it, relative to the working folder."""
    folder = Path(settled.images_dir)
    monkeypatch.chdir(folder.parent)
    dataset = data_utils.add_image(Dataset(Path(folder.name)), Path(folder.name) / "lace_1.jpg", use=False)
    file = data_utils.save_dataset(dataset)
    assert [one["path"] for one in json.loads(file.read_text())["images"]] == ["lace_1.jpg"]
    here = settled.model_copy(update={"images_dir": folder.name})
    annotate.run(here, say=lambda _: None)
    assert data_utils.count_pictures(folder.name) == 5 == len(examples.read(here, lambda _: None))
    assert data_utils.load_dataset(folder.name) == dataset


def test_a_prompt_without_the_concept_token_is_refused_before_anything_is_written(settled):
    """C11: all captions would lack it."""
    wrong = settled.model_copy(update={"concept_token": "<danteli>"})
    with pytest.raises(SettingsError, match="does not hold the concept token <danteli>. Write for example"):
        annotate.run(wrong, say=lambda _: None)
    assert not (Path(settled.images_dir) / "annotations.txt").exists()


def test_an_export_writes_nothing_among_the_photographs_and_goes_into_no_earlier_one(settled, tmp_path, capsys):
    """C6: what an earlier export left would be learnt too."""
    folder = Path(settled.images_dir)
    before = sorted(file.name for file in folder.iterdir())
    to = tmp_path / "export"
    line = ["export-captions", str(to), "--images-dir", str(folder), "--as", ".txt"]
    assert main.run(line) == 0 and main.run(line) == 0
    assert sorted(file.name for file in folder.iterdir()) == before
    data_utils.save_dataset(data_utils.add_image(Dataset(folder), "lace_4.jpg", use=False))
    assert main.run(line) == 1 and "1 pictures that are not part of this export" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["http://me:geheim@host", "https://host?geheim", "host/x?key=geheim", "http://host#geheim"]
)
def test_an_address_with_a_key_is_refused_before_it_is_kept_or_shown(url):
    """C4: the run's config.yaml holds every setting."""
    with pytest.raises(SettingsError, match="LACE_CAPTION_KEY") as caught:
        config.load(caption_url=url)
    assert "geheim" not in str(caught.value)
