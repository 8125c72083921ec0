"""Work that is killed at any instant ends with what it makes unbroken: a training (L14, P19), a sheet (L7, P3)."""

import subprocess

import pytest

from lace_lora import checkpoint, config
from lace_lora.errors import MachineError
from lace_lora.run_folder import RunFolder
from tests.drawing import settings_of
from tests.killing import assert_drawn_alike, assert_trained_alike, driven


@pytest.fixture
def killable(settings, tmp_path):
    """Settings of a training that writes a checkpoint after each step and looks at held-out pictures."""
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    more = {"max_train_steps": 6, "checkpoint_every": 1, "validation_fraction": 0.3, "validate_every": 2}
    values = {name: getattr(settings, name) for name in settings.given}
    return values | more | {"drive_mount_path": str(tmp_path / "drive")}


def test_a_training_that_is_killed_three_times_ends_with_the_same_numbers(killable, tmp_path):
    """L14: once at a random instant, once in the middle of a checkpoint, once near the end."""
    counted = driven(killable, tmp_path / "out", rounds=1, fractions=(0.5, 0.95))
    assert counted["kills"] >= 3


def test_a_training_on_drive_that_is_killed_ends_with_the_same_numbers(killable, tmp_path):
    """L14, P19: its working folder and Drive are both cut off where they are."""
    counted = driven(killable, tmp_path / "drive" / "MyDrive" / "out", rounds=0, fractions=(0.4, 0.7))
    assert counted["kills"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["out", "drive/MyDrive/out"], ids=["on this disk", "on Drive"])
def test_a_training_that_is_killed_at_many_random_instants_ends_with_the_same_numbers(killable, tmp_path, place):
    """L14, P19: runs are killed until at least 20 kills are counted."""
    kills, seed = 0, 1
    while kills < 20:
        kills += driven(killable, tmp_path / place / str(seed), rounds=4, seed=seed)["kills"]
        seed += 1


@pytest.mark.slow
@pytest.mark.parametrize("place", ["out", "drive/MyDrive/out"], ids=["on this disk", "on Drive"])
def test_a_training_that_is_killed_while_it_writes_anything_ends_with_the_same_numbers(killable, tmp_path, place):
    """L14, P19: forty places from the first call of the file system to the last."""
    fractions = [(number + 0.5) / 40 for number in range(40)]
    assert driven(killable, tmp_path / place, rounds=0, fractions=fractions)["kills"] == 40


@pytest.fixture
def drawable(asked):
    """Settings of a sheet with everything that is made of a design but the outline."""
    more = {
        "num_images": 5,
        "repeat": "straight",
        "mask": True,
        "upscale": 2.0,
        "prompts": ("<lace> leaf", "<lace> star"),
    }
    settings = asked(**more)
    return {name: getattr(settings, name) for name in settings.given}


def test_L7_a_sheet_that_is_killed_three_times_has_the_same_files_and_nothing_is_made_twice(
    drawable, made_run, tmp_path
):
    counted = driven(drawable, tmp_path / "kills", rounds=1, fractions=(0.5, 0.9), made_run=made_run)
    assert counted["kills"] >= 3


@pytest.fixture
def drawable_on_drive(drawable, tmp_path):
    """The same in a run on Drive."""
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    return drawable | {"drive_mount_path": str(tmp_path / "drive"), "cache_dir": str(tmp_path / "cache")}


def test_L7_a_sheet_on_drive_that_is_killed_has_the_same_files_and_nothing_is_made_twice(
    drawable_on_drive, made_run, tmp_path
):
    """L14: its working folder and Drive are both cut off where they are."""
    place = tmp_path / "drive" / "MyDrive" / "out"
    counted = driven(drawable_on_drive, place, rounds=0, fractions=(0.3, 0.6, 0.97), made_run=made_run)
    assert counted["kills"] == 3


@pytest.mark.slow
def test_L7_a_sheet_on_drive_that_is_killed_while_it_writes_anything_has_the_same_files(
    drawable_on_drive, made_run, tmp_path
):
    """L14: forty places from the first call of the file system to the last."""
    fractions = tuple((number + 0.5) / 40 for number in range(40))
    place = tmp_path / "drive" / "MyDrive" / "out"
    assert driven(drawable_on_drive, place, rounds=0, fractions=fractions, made_run=made_run)["kills"] == 40


@pytest.mark.slow
def test_L7_a_sheet_that_is_killed_at_many_random_instants_has_the_same_files(drawable, made_run, tmp_path):
    """Runs are killed until at least 20 kills are counted."""
    kills, seed = 0, 1
    while kills < 20:
        kills += driven(drawable, tmp_path / str(seed), rounds=4, seed=seed, made_run=made_run)["kills"]
        seed += 1


@pytest.mark.slow
def test_L7_a_sheet_that_is_killed_while_it_writes_anything_has_the_same_files(drawable, made_run, tmp_path):
    """Forty places from the first call of the file system to the last."""
    fractions = tuple((number + 0.5) / 40 for number in range(40))
    assert driven(drawable, tmp_path, rounds=0, fractions=fractions, made_run=made_run)["kills"] == 40


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and how to change its size in bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(line, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)

    yield disk, resize
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_disk_that_is_really_full_ends_with_a_sentence_and_with_room_it_goes_on(
    killable, small_disk, tmp_path, share
):
    """L14, P19."""
    from lace_lora import train

    values = killable | {"checkpoints_to_keep": 100}
    whole = config.load(**values | {"lora_output_dir": str(tmp_path / "whole")})
    train.run(whole, say=lambda _: None)
    needed = sum(_allocated(path) for path in RunFolder.of(whole).root.rglob("*"))
    disk, resize = small_disk
    resize(int(needed * share))
    broken = config.load(**values | {"lora_output_dir": str(disk / "out")})
    with pytest.raises(MachineError, match="The disk is full: .* Free some space and run again"):
        train.run(broken, say=lambda _: None)
    kept = checkpoint.numbered(RunFolder.of(broken).checkpoints)
    assert [checkpoint.problem_of(folder) for folder in kept] == [None] * len(kept)
    assert kept or share < 0.3
    resize(4 * needed)
    train.run(broken, say=lambda _: None)
    assert_trained_alike(RunFolder.of(whole), RunFolder.of(broken))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_L7_drawing_on_a_disk_that_is_really_full_ends_with_a_sentence_and_with_room_it_goes_on(
    drawable, small_disk, made_run, models, tmp_path, share
):
    from lace_lora import inference

    more = {name: drawable[name] for name in ("num_images", "repeat", "mask", "upscale", "prompts")}
    whole = settings_of(tmp_path / "whole", made_run, models, **more)
    inference.run(whole, say=lambda _: None)
    trained = sum(_allocated(path) for path in made_run.rglob("*"))
    drawn = sum(_allocated(path) for path in RunFolder.of(whole).sheets.rglob("*"))
    disk, resize = small_disk
    resize(trained + 8192 + int(drawn * share))
    broken = settings_of(disk / "out", made_run, models, **more)
    with pytest.raises(MachineError, match="The disk is full: .* Free some space and run again"):
        inference.run(broken, say=lambda _: None)
    resize(4 * (trained + drawn))
    inference.run(broken, say=lambda _: None)
    assert_drawn_alike(RunFolder.of(whole), RunFolder.of(broken))


def _allocated(path):
    """Bytes on a file system that gives whole pages; a folder takes one at most."""
    return -(-path.stat().st_size // 4096) * 4096 if path.is_file() else 4096
