"""What is typed is not lost where Drive is full, read-only or gone: a copy on this machine is named (L2)."""

import errno

import pytest

from lace_lora import annotate, own_files
from lace_lora.album import Album
from lace_lora.annotations import ANNOTATIONS, DATASET
from lace_lora.data_utils import check_images
from lace_lora.errors import PicturesError
from lace_lora.own_files import OwnFile, spare_of
from tests.drives import failing

ADVICE = {
    errno.ENOSPC: "Make room there, in Drive also in its bin",
    errno.EDQUOT: "Make room there, in Drive also in its bin",
    errno.EROFS: "Make its folder writable",
    errno.ENOTCONN: "Mount Drive again",
    errno.EIO: "Mount Drive again",
}


@pytest.fixture
def drive(tmp_path, monkeypatch):
    return failing(tmp_path / "drive", monkeypatch)


@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
def test_what_cannot_be_written_is_put_down_here_until_it_can(number, drive, tmp_path):
    """L2."""
    path = drive.root / "MyDrive" / ANNOTATIONS
    path.write_text("rose.jpg\tan earlier caption\n", encoding="utf-8")
    file, spare = OwnFile(path, spare=spare_of(path, tmp_path / "cache")), spare_of(path, tmp_path / "cache")
    drive.fail(range(100_000), number, only_writes=True)
    for text in ("rose.jpg\tfirst\n", "rose.jpg\tsecond: \u0131\u015f\u0131k\n"):
        with pytest.raises(PicturesError) as caught:
            file.write(text)
        assert ADVICE[number] in str(caught.value) and f"is kept in {spare} on this machine" in str(caught.value)
        assert spare.read_text(encoding="utf-8") == text
    drive.fail(())
    assert path.read_text(encoding="utf-8") == "rose.jpg\tan earlier caption\n"
    file.write("rose.jpg\tsecond: \u0131\u015f\u0131k\n")
    assert path.read_text(encoding="utf-8") == "rose.jpg\tsecond: \u0131\u015f\u0131k\n" and not spare.exists()


def test_where_this_disk_is_full_too_the_first_sentence_stands(drive, tmp_path, monkeypatch):
    path = drive.root / "MyDrive" / ANNOTATIONS

    def full(path, data):
        raise own_files.MachineError("full") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(own_files, "write_bytes", full)
    with pytest.raises(PicturesError, match=r"^Cannot write .*the disk is full.*try again\.$"):
        OwnFile(path, spare=tmp_path / "spare").write("text")


def test_two_folders_of_one_name_have_a_copy_each(tmp_path):
    spares = {spare_of(tmp_path / place / ANNOTATIONS, tmp_path / "cache") for place in ("a", "b")}
    assert len(spares) == 2 and {path.name for path in spares} == {ANNOTATIONS}


def test_captions_and_decisions_of_a_sitting_and_of_the_command_are_kept(drive, settings, pictures, tmp_path):
    """L2, L11: typed in the gallery, or written by `annotate`."""
    folder = drive.root / "MyDrive" / "pictures"
    folder.mkdir()
    for path in pictures.glob("*.jpg"):
        (folder / path.name).write_bytes(path.read_bytes())
    settings = settings.model_copy(update={"images_dir": str(folder), "cache_dir": str(tmp_path / "cache")})
    drive.fail(range(100_000), errno.ENOSPC, only_writes=True)
    with pytest.raises(PicturesError, match="Make room there"):
        annotate.run(settings, say=lambda _: None)
    kept = spare_of(folder / ANNOTATIONS, settings.cache_dir)
    assert len(kept.read_text(encoding="utf-8").splitlines()) == len(list(pictures.glob("*.jpg")))
    album = Album(check_images(folder, settings.image_types), settings, lambda _: None)
    name = next(iter(album.cards))
    with pytest.raises(PicturesError, match="is kept in"):
        album.write_caption(name, "a rose in filet crochet")
    assert f"{name}\t" in kept.read_text(encoding="utf-8") and "a rose in filet crochet" in kept.read_text("utf-8")
    with pytest.raises(PicturesError, match="is kept in"):
        album.use(name, False)
    assert name in spare_of(folder / DATASET, settings.cache_dir).read_text(encoding="utf-8")
    drive.fail(())
    album.save()
    assert "a rose in filet crochet" in (folder / ANNOTATIONS).read_text(encoding="utf-8") and not kept.exists()
