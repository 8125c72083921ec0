"""Pictures and captions of a run: what is refused, noted, left out or held out (L4, L11)."""

import os
from pathlib import Path

import pytest

from lace_lora import examples, train
from lace_lora.config import Config
from lace_lora.data_utils import Example
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.run_folder import RunFolder
from tests.training import quietly


def test_annotations_are_written_where_there_are_none(settings: Config, lace_folder: Path) -> None:
    """L13."""
    one = settings.model_copy(update={"images_dir": str(lace_folder), "max_train_steps": 1})
    train.run(one, say=quietly)
    lines = (lace_folder / "annotations.txt").read_text().splitlines()
    assert len(lines) == 6 and all(line.split("\t")[1] == "a photo of <myspecialstyle>" for line in lines)


def test_captions_without_the_concept_token_are_refused(settings: Config, lace_folder: Path) -> None:
    """L4."""
    with pytest.raises(
        SettingsError, match="instance_prompt 'a photo' does not hold the concept token <myspecialstyle>"
    ):
        train.run(settings.model_copy(update={"instance_prompt": "a photo"}), say=quietly)
    (lace_folder / "annotations.txt").write_text("lace_0.jpg\ta <myspecialstyle>\nlace_1.jpg\ta leaf\n")
    with pytest.raises(
        PicturesError, match=r"1 of 2 captions in .* do not hold the concept token .*\(first: lace_1.jpg\)"
    ):
        train.run(settings.model_copy(update={"images_dir": str(lace_folder)}), say=quietly)


def test_captions_of_a_read_only_folder_stand_in_the_runs_own(
    settings: Config, lace_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    one = settings.model_copy(update={"images_dir": str(lace_folder), "max_train_steps": 1})
    for _ in range(2):
        assert len(examples.read(one, quietly)) == 6
    train.run(one, say=quietly)
    assert not (lace_folder / "annotations.txt").exists()
    assert train.run(one.model_copy(update={"max_train_steps": 2}), say=quietly).facts.step == 2
    assert len(RunFolder.of(one).annotations.read_text().splitlines()) == 6


def test_captions_that_are_too_long_are_told_with_the_words_that_are_lost(settings: Config) -> None:
    """L4: and the concept token's parts; the test's tokenizer has one token a letter."""
    long = Example(Path("a/long.jpg"), "a <myspecialstyle> " + "x " * 57 + "rosette")
    notes = examples.word_notes(settings, [Example(Path("short.jpg"), "a <myspecialstyle>"), long])
    assert notes[0] == "concept   <myspecialstyle> is read as plain text of 16 tokens"
    assert notes[1].startswith("! 1 captions are too long and lose their end (first: long.jpg loses 'osette').")
    assert len(examples.word_notes(settings, [Example(Path("short.jpg"), "a <myspecialstyle>")])) == 1


def test_pictures_without_a_line_are_counted_and_left_out(settings: Config, lace_folder: Path) -> None:
    (lace_folder / "annotations.txt").write_text(
        "lace_0.jpg\ta <myspecialstyle>\nlace_3.jpg\ta <myspecialstyle> leaf\n"
    )
    said: list[str] = []
    found = examples.read(settings.model_copy(update={"images_dir": str(lace_folder)}), said.append)
    assert sorted(one.path.name for one in found) == ["lace_0.jpg", "lace_3.jpg"]
    assert "4 pictures have no line" in said[0] and "first: lace_1.jpg" in said[0]
