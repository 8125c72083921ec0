"""Photographs on Drive come to this machine side by side, once, and none holds up the others (L2, L1)."""

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lace_lora import check, checkpoint, config, examples, local_copies, train
from lace_lora.data_utils import check_images
from lace_lora.errors import PicturesError
from lace_lora.local_copies import copy_all
from tests.drawing import files_of
from tests.generated import ROOT
from tests.test_check import set_of


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(local_copies, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def photographs(tmp_path):
    return sorted(set_of(tmp_path / "drive" / "MyDrive" / "photographs", 20).iterdir())


def failing_copies(monkeypatch, fails):
    """Copies fail with an error of Drive where `fails` says so of a name and how often it was tried."""
    real, tried, guard = local_copies.copy_file, {}, threading.Lock()

    def copy(source, target):
        with guard:
            tried[source.name] = tried.get(source.name, 0) + 1
        if fails(source.name, tried[source.name]):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        return real(source, target)

    monkeypatch.setattr(local_copies, "copy_file", copy)
    return tried


def test_all_are_copied_byte_for_byte_and_what_is_said_adds_up(photographs, tmp_path):
    """L2: how many, how many megabytes, what is left to wait for."""
    said = []
    copies = copy_all(photographs, tmp_path / "cache", said.append)
    assert copies.faults == {} and list(copies.places.keys() - set(photographs)) == []
    assert all(copies.places[path].read_bytes() == path.read_bytes() for path in photographs)
    assert len(set(copies.places.values())) == 20
    megabytes = sum(path.stat().st_size for path in photographs) / 1e6
    assert said[0] == f"copying   20 photographs, {megabytes:.0f} MB, from Drive to this machine"
    assert 3 <= len(said) <= 1 + local_copies.LINES
    counts = [re.fullmatch(r"copied {4,5}(\d+)/20  \d+ of \d+ MB  \d+ s left", line) for line in said[1:-1]]
    assert all(counts) and [int(found[1]) for found in counts if found] == list(range(2, 20, 2))
    assert said[-1] == f"copied    20/20  {megabytes:.0f} of {megabytes:.0f} MB"


def test_they_are_copied_side_by_side(photographs, tmp_path, monkeypatch):
    """L2: each waits until eight are at work; one after another would never get there."""
    together, real = threading.Barrier(8, timeout=20), local_copies.copy_file
    first = set(photographs[:16])

    def copy(source, target):
        if source in first:
            together.wait()
        return real(source, target)

    monkeypatch.setattr(local_copies, "copy_file", copy)
    monkeypatch.setattr(local_copies, "READERS", 8)
    assert copy_all(photographs, tmp_path / "cache", lambda _: None).faults == {}


def test_a_copying_that_was_cut_off_goes_on_where_it_was(photographs, tmp_path, monkeypatch):
    """L2."""
    with monkeypatch.context() as patch:
        failing_copies(patch, lambda name, _: name > "piece_12.jpg")
        assert len(copy_all(photographs, tmp_path / "cache", lambda _: None).places) == 13
    tried, said = failing_copies(monkeypatch, lambda name, number: False), []
    copy_all(photographs, tmp_path / "cache", said.append)
    assert sorted(tried) == [f"piece_{number}.jpg" for number in range(13, 20)] and "copying   7 photographs" in said[0]
    copy_all(photographs, tmp_path / "cache", pytest.fail)
    assert len(tried) == 7 and not any(number > 1 for number in tried.values())


def test_a_photograph_is_tried_again_and_one_that_never_comes_is_its_own_problem(photographs, tmp_path, monkeypatch):
    """L1, L2: the others are checked."""
    never = "piece_03.jpg"
    tried = failing_copies(monkeypatch, lambda name, number: name == never or (name > "piece_15.jpg" and number < 4))
    said = []
    report = check_images(
        photographs[0].parent, cache_dir=tmp_path / "cache", drive_mount_path=tmp_path / "drive", say=said.append
    )
    assert {record.name: record.fault for record in report.records if record.fault} == {
        never: "cannot be read from Drive (Input/output error)"
    }
    assert tried[never] == 4 and tried["piece_16.jpg"] == 4 and len(report.usable) == 19
    assert said[-1] == f"! 1 photographs cannot be read from Drive (Input/output error); the first is {never}"


def test_a_drive_that_is_gone_is_not_waited_for_by_each_photograph(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(local_copies, "READERS", 2)
    tried = failing_copies(monkeypatch, lambda *_: True)
    assert len(copy_all(photographs, tmp_path / "cache", lambda _: None).faults) == 20
    assert sum(tried.values()) <= 20 + (2 + 2) * 3


def test_a_file_that_comes_short_is_no_copy(photographs, tmp_path, monkeypatch):
    """L2: Drive ended it early, without an error."""
    real = local_copies.copy_file

    def short(source, target):
        found = real(source, target)
        if source.name == "piece_00.jpg":
            target.write_bytes(target.read_bytes()[:-9])
        return found

    monkeypatch.setattr(local_copies, "copy_file", short)
    copies = copy_all(photographs, tmp_path / "cache", lambda _: None)
    assert copies.faults == {photographs[0]: "cannot be read from Drive (Drive gave only a part of it)"}
    assert len(files_of(tmp_path / "cache")) == 19


def test_training_reads_each_photograph_once_from_drive_and_tells_their_own_names(settings, tmp_path, monkeypatch):
    """L2, L14: what is learnt is the same, and the run names the photographs, not their copies."""
    folder = tmp_path / "drive" / "pictures"
    folder.mkdir(parents=True)
    for path in Path(settings.images_dir).glob("*.jpg"):
        (folder / path.name).write_bytes(path.read_bytes())
    values = {name: getattr(settings, name) for name in settings.given}
    values |= {"images_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    values |= {"drive_mount_path": str(tmp_path / "drive")}
    far = config.load(**values)
    said = []
    check.run(far.model_copy(update={"resolution": 64, "max_train_steps": 10}), say=said.append)
    assert any(line.startswith("copying ") for line in said)
    found = examples.read(far, lambda _: None)
    assert {one.path.parent for one in found} == {folder} and folder not in {one.file.parent for one in found}
    near = examples.read(settings, lambda _: None)
    assert train.cache.data_digest(found) == train.cache.data_digest(near)
    (folder / "lace_99.jpg").write_bytes(b"no picture")
    with open(folder / "annotations.txt", "a", encoding="utf-8") as file:
        file.write(f"lace_99.jpg\ta photo of {settings.concept_token}\n")
    broken = [one for one in examples.read(far, lambda _: None) if one.path.name == "lace_99.jpg"]
    with pytest.raises(PicturesError, match=r"drive/pictures/lace_99\.jpg|^lace_99\.jpg"):
        train.cache.fingerprints(broken, far.cache_dir, lambda _: None)


def test_training_without_some_of_its_photographs_is_refused(settings, tmp_path, monkeypatch):
    """L2: learning from fewer of them would be another training."""
    folder = set_of(tmp_path / "drive" / "pictures", 4)
    update = {"images_dir": str(folder), "drive_mount_path": str(tmp_path / "drive"), "cache_dir": str(tmp_path / "c")}
    far = settings.model_copy(update=update)
    examples.read(far, lambda _: None)
    (folder / "piece_02.jpg").touch()
    failing_copies(monkeypatch, lambda name, _: True)
    with pytest.raises(PicturesError, match="1 of 4 photographs did not come from Drive: piece_02.jpg cannot be read"):
        examples.read(far, lambda _: None)


SLOW = """
import sys, time
from pathlib import Path
from lace_lora import checkpoint, local_copies
real, sign = checkpoint.to_disk, Path(sys.argv[3])
def wait(path):
    print("writing", flush=True)
    while not sign.exists():
        time.sleep(0.01)
    real(path)
checkpoint.to_disk = wait
print(local_copies.local_copy(Path(sys.argv[1]), sys.argv[2]))
"""


def test_several_processes_copy_one_photograph_at_a_time_and_keep_each_others(photographs, tmp_path):
    """L2: two are in the middle of it while a third begins and ends."""
    cache, sign = tmp_path / "cache", tmp_path / "sign"
    line = [sys.executable, "-c", SLOW, str(photographs[0]), str(cache), str(sign)]
    others = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    try:
        assert [one.stdout.readline() for one in others] == ["writing\n"] * 2
        mine = local_copies.local_copy(photographs[0], cache)
        sign.touch()
        assert [one.communicate()[0] for one in others] == [f"{mine}\n"] * 2
    finally:
        for one in others:
            one.kill()
    assert mine.read_bytes() == photographs[0].read_bytes() and list(mine.parent.iterdir()) == [mine]


def test_of_earlier_versions_and_of_killed_processes_nothing_stays(photographs, tmp_path):
    """A photograph that was changed is copied again; what a living process writes stays."""
    earlier = local_copies.local_copy(photographs[0], tmp_path / "cache")
    living = checkpoint.partial_of(earlier)
    dead = earlier.with_name(f"{earlier.name}.{checkpoint.this_machine()}-999999999-ab.partial")
    photographs[0].write_bytes(photographs[1].read_bytes() + b" ")
    for path in (living, dead):
        path.write_bytes(b"half")
    now = local_copies.local_copy(photographs[0], tmp_path / "cache")
    assert sorted(now.parent.iterdir()) == sorted([now, living])
