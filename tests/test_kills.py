"""A training that is killed at any instant ends with the numbers of one that never was (L14, P19).

Real processes that train are killed with SIGKILL: at random instants, and at chosen calls of the file system while they
write. One warmed-up process starts them by doubling itself, so that a kill costs a second and no imports.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lace_lora import checkpoint, config
from lace_lora.errors import MachineError
from lace_lora.run_folder import RunFolder
from tests.training import CLOCK

ROOT = Path(__file__).parent.parent
CALLS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


@pytest.fixture
def killable(settings, tmp_path):
    """Settings of a training that writes a checkpoint after each step and looks at held-out pictures."""
    more = {"max_train_steps": 6, "checkpoint_every": 1, "validation_fraction": 0.3, "validate_every": 2}
    values = {name: getattr(settings, name) for name in settings.given}
    return values | more | {"drive_mount_path": str(tmp_path / "drive")}


def driven(values, folder, *, rounds, seed=0, fractions=()):
    """Train in `folder`: once unbroken, and again and again with kills; returns what the killing process counted.

    rounds     runs that are killed at random instants, once or more often, until they get through
    fractions  for each a run that is killed once, at that share of all its calls of the file system
    """
    job = {"values": values, "folder": str(folder), "rounds": rounds, "seed": seed, "fractions": fractions}
    line = [sys.executable, "-m", "tests.test_kills", json.dumps(job)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


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
    assert_equal(RunFolder.of(whole), RunFolder.of(broken))


def _allocated(path):
    """Bytes on a file system that gives whole pages; a folder takes one at most."""
    return -(-path.stat().st_size // 4096) * 4096 if path.is_file() else 4096


def assert_equal(whole, broken):
    """Bit for bit: every file of the newest checkpoint and of the adapter, and the log but for its clock."""
    mine, theirs = checkpoint.newest(whole.checkpoints)[0], checkpoint.newest(broken.checkpoints)[0]
    assert mine.name == theirs.name
    for one, other in ((mine, theirs), (whole.adapter, broken.adapter)):
        names = sorted(path.name for path in one.iterdir())
        assert names == sorted(path.name for path in other.iterdir())
        assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
    assert _log(whole) == _log(broken)
    facts, others = (json.loads(run.record.read_text()) for run in (whole, broken))
    clock = (*CLOCK, "peak_vram_gb")
    assert {name for name in facts if facts[name] != others.get(name) and name not in clock} == set()


def _log(run):
    rows = checkpoint.read_json_lines(run.log)
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


# -- the process that starts trainings and kills them --


def main(job):
    """Train unbroken, then with kills; compare after each run; print how many kills there were."""
    values, folder = job["values"], Path(job["folder"])
    _warm_up(config.load(**values))
    began = time.monotonic()
    calls = _train(values, folder / "whole", count=folder / "calls")
    seconds = time.monotonic() - began
    whole, kills = _run_in(values, folder / "whole"), 0
    draw = random.Random(job["seed"])
    rounds, number = 0, 0
    while rounds < job["rounds"]:
        before, number = kills, number + 1
        while _train(values, folder / f"round{number}", seconds=draw.uniform(0.0, seconds)) is None:
            kills += 1
        assert_equal(whole, _run_in(values, folder / f"round{number}"))
        rounds += kills > before  # one that got through at once was not killed
    for number, fraction in enumerate(job["fractions"]):
        out = folder / f"call{number}"
        kills += _train(values, out, call=1 + int(fraction * (calls - 1))) is None
        _train(values, out)
        assert_equal(whole, _run_in(values, out))
    print(json.dumps({"kills": kills, "calls": calls, "seconds": seconds}))


def _run_in(values, out):
    return RunFolder.of(config.load(**values | {"lora_output_dir": str(out)}))


def _warm_up(settings):
    """Import all that a training imports, without computing: torch's threads do not survive the doubling."""
    import torch

    torch.set_num_threads(1)
    from lace_lora import parts, train

    assert train
    parts.assemble(settings, torch.float32, "cpu", say=lambda _: None)


def _train(values, out, *, seconds=None, call=None, count=None):
    """Train in a child; returns its calls of the file system when it got through, None when it was killed.

    seconds  until it is killed from outside; None leaves it alone
    call     kill it at that call of the file system that names the run's folder or its copy
    count    a file in which the child leaves how many calls it made
    """
    if not (child := os.fork()):
        _be_trained(values, out, call, count)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # one that has ended meanwhile waits for its parent, so the number is its own
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    if status:
        return None
    return int(count.read_text()) if count else 0


def _be_trained(values, out, call, count):
    """What a child does; it never returns."""
    from lace_lora import train

    calls = 0

    def see(event, words):
        nonlocal calls
        if event in CALLS and any(str(one) in str(words) for one in (out, "/runs/")):
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)
    status = 1
    try:
        settings = config.load(**values | {"lora_output_dir": str(out)})
        said = []
        made = train.run(settings, say=said.append)
        assert made.is_complete, said
        if count:
            count.write_text(str(calls))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
