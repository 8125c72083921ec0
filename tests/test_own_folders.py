"""A person's two folders are made where a setting asks for it, and never where Drive is to be mounted (C12, L1)."""

import errno
import os
from pathlib import Path

import pytest

from lace_lora import annotate, batch, config, estimate, listing, own_folders, train
from lace_lora.errors import MachineError, PicturesError, RunError
from tests.generated import ROOT


@pytest.fixture
def asked(tmp_path):
    """Settings with both folders missing, on a Drive or on this disk."""

    def settings(place, **changes):
        places = {"images_dir": str(place / "babanne-images"), "lora_output_dir": str(place / "lora_output")}
        more = {"preset": "none", "drive_mount_path": str(tmp_path / "drive"), "cache_dir": str(tmp_path / "cache")}
        return config.load(**places | more | changes)

    return settings


def drive_in(tmp_path):
    place = tmp_path / "drive" / "MyDrive"
    place.mkdir(parents=True)
    return place


def test_without_the_setting_nothing_is_made_and_the_sentence_names_it(asked, tmp_path):
    """L1."""
    place = drive_in(tmp_path)
    assert config.Config.model_fields["make_folders"].default is False
    with pytest.raises(PicturesError, match="There is no folder .*babanne-images.*switch make_folders on"):
        estimate.prepare(asked(place), say=pytest.fail)
    assert list(place.iterdir()) == []


def test_on_drive_both_are_made_once_and_the_sentence_says_how_photographs_come_there(asked, tmp_path, pictures):
    """L1, C12."""
    place, said = drive_in(tmp_path), []
    settings = asked(place, make_folders=True)
    with pytest.raises(PicturesError) as caught:
        estimate.prepare(settings, say=said.append)
    assert sorted(path.name for path in place.iterdir()) == ["babanne-images", "lora_output"]
    assert "is made now and empty. Put your photographs there (.jpg or .jpeg)" in str(caught.value)
    assert "open drive.google.com, go to My Drive → babanne-images" in str(caught.value)
    assert sorted(said) == [f"made      the folder {place / name}, which was missing" for name in
                            ("babanne-images", "lora_output")]  # fmt: skip
    for path in pictures.glob("*.jpg"):
        (place / "babanne-images" / path.name).write_bytes(path.read_bytes())
    own_folders.make(settings, pytest.fail)
    assert estimate.prepare(settings, say=pytest.fail).pictures == len(list(pictures.glob("*.jpg")))


def test_on_this_disk_with_the_folders_above_them(asked, tmp_path):
    settings = asked(tmp_path / "new" / "work", make_folders=True)
    with pytest.raises(PicturesError, match="copy them with your file manager"):
        own_folders.make(settings, lambda _: None)
    assert sorted(path.name for path in (tmp_path / "new" / "work").iterdir()) == ["babanne-images", "lora_output"]


@pytest.mark.parametrize("place", ["missing", "empty", "does not answer"])
def test_nothing_is_made_below_a_drive_that_is_not_mounted(place, asked, tmp_path, monkeypatch):
    """C12: with something in it Drive could not be mounted there any more."""
    drive = tmp_path / "drive"
    if place != "missing":
        drive.mkdir()
    if place == "does not answer":
        monkeypatch.setattr(own_folders.os, "listdir", lambda _: (_ for _ in ()).throw(OSError(errno.ENOTCONN, "gone")))
    settings = asked(drive / "MyDrive", make_folders=True)
    with pytest.raises(MachineError, match="lies on Drive, and Drive is not mounted at .*drive. Mount Drive first"):
        own_folders.make(settings, pytest.fail)
    monkeypatch.undo()
    assert drive.exists() == (place != "missing") and not (drive.exists() and list(drive.iterdir()))


def test_a_mounted_disk_counts_as_there_also_when_it_is_empty(tmp_path, monkeypatch):
    """A fresh disk of a rented computer."""
    (tmp_path / "drive").mkdir()
    inside = tmp_path / "drive" / "out"
    assert own_folders.is_away(inside, str(tmp_path / "drive"))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "drive")
    assert not own_folders.is_away(inside, str(tmp_path / "drive"))


def test_training_makes_no_run_folder_where_drive_is_to_be_mounted(settings, tmp_path):
    """C12: the photographs are on this disk, the runs would be on Drive."""
    away = settings.model_copy(
        update={"drive_mount_path": str(tmp_path / "drive"), "lora_output_dir": str(tmp_path / "drive/MyDrive/out")}
    )
    with pytest.raises(MachineError, match="lora_output_dir .* lies on Drive, and Drive is not mounted"):
        train.run(away, say=lambda _: None)
    assert not (tmp_path / "drive").exists()


def test_captions_of_a_folder_that_is_read_only_stay_here_while_drive_is_away(settings, tmp_path, monkeypatch):
    """C12."""
    away = settings.model_copy(
        update={"drive_mount_path": str(tmp_path / "drive"), "lora_output_dir": str(tmp_path / "drive/MyDrive/out")}
    )
    monkeypatch.setattr(annotate.os, "access", lambda *_: False)
    assert annotate.file_of(away).is_relative_to(Path(settings.cache_dir))
    assert annotate.file_of(settings).is_relative_to(Path(settings.lora_output_dir))


def test_a_folder_that_cannot_be_made_ends_with_a_sentence(asked, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="lora_output_dir .*cannot be made .Not a directory.*Choose another folder"):
        own_folders.make(asked(tmp_path / "file", make_folders=True), pytest.fail)


def test_a_name_that_is_nearly_there_is_asked_after_first(tmp_path):
    (tmp_path / "babanne-images").mkdir()
    with pytest.raises(PicturesError, match=r"Did you mean .*babanne-images\? Correct images_dir\. To have it made"):
        listing.folder_of(tmp_path / "babane-images")


def test_notebook_01_makes_the_folders_and_shows_the_check_all_the_same(tmp_path):
    """L2, P17: by papermill; the sentence on how photographs come in stands above the ticks."""
    pytest.importorskip("papermill")
    values = {"images_dir": str(tmp_path / "mine"), "lora_output_dir": str(tmp_path / "out"), "make_folders": True}
    batch._execute(ROOT / "notebooks/01_set_up.ipynb", tmp_path / "01.ipynb", values)
    assert (tmp_path / "mine").is_dir() and (tmp_path / "out").is_dir()
    said = (tmp_path / "01.ipynb").read_text(encoding="utf-8")
    assert "is made now and empty" in said and "✓ results" in said
