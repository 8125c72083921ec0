"""A run on Drive: everything arrives whole, whatever fails or is killed, and goes on from what is newest (P19, L14)."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lace_lora import checkpoint, machine, mirror
from lace_lora.errors import MachineError
from lace_lora.lock import LOCK
from lace_lora.mirror import Mirror
from lace_lora.run_folder import RunFolder
from tests.drives import Drive, failing

ROOT = Path(__file__).parent.parent
EVERY_CALL = pytest.mark.parametrize(
    "stride", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["every seventh call", "every call"]
)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    return failing(tmp_path / "drive", monkeypatch)


@pytest.fixture
def pair(drive, tmp_path):
    """A mirror as a training makes it, and what it said."""
    return Pair(drive, tmp_path / "cache")


class Pair:
    def __init__(self, drive, cache):
        self.remote = RunFolder(drive.root / "MyDrive" / "lora_output" / "lace").create()
        self.said = []
        self.cache = cache
        self.mirror = self.again()

    def again(self, cache=None):
        """The mirror of a later session, on this machine or one with another disk."""
        return Mirror.of(self.remote, str(self.remote.root.parents[2]), str(cache or self.cache), self.said.append)


def train(run, first, last, *, every=5, keep=2, best=None, id_="a", started="now", state="running"):
    """What a training writes between two steps, in its order."""
    for step in range(first, last + 1):
        (run.root / "adapter").mkdir(parents=True, exist_ok=True)
        checkpoint.append_line(run.log, json.dumps({"step": step, "loss": step / 7}))
        if step % every == 0:
            checkpoint.append_line(run.log, json.dumps({"step": step, "val_loss": 0.1 if step == best else 1.0}))
            checkpoint.write_text(run.sample(step, 0), f"picture {step}")
            save(run, step)
            kept = run.checkpoint(best) if best else None
            checkpoint.prune(run.checkpoints, keep, run.checkpoint(step), kept)
    checkpoint.write_json(run.record, {"id": id_, "started": started, "state": state, "step": last})


def save(run, step):
    def write(folder):
        (folder / "lora.safetensors").write_text(f"weights {step} " * 300)
        (folder / "state.json").write_text(f"{step}")

    checkpoint.save_folder(run.checkpoint(step), write)


def files(run):
    """Every file below a run folder with its bytes."""
    found = sorted(path for path in run.root.rglob("*") if path.is_file())
    return {path.relative_to(run.root).as_posix(): path.read_bytes() for path in found}


def checkpoints(run):
    return [path.name for path in checkpoint.numbered(run.checkpoints)]


def damage(path):
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(bytes(data))


def test_a_run_that_is_not_on_drive_stays_where_it_is(tmp_path):
    run = RunFolder(tmp_path / "out" / "lace").create()
    mirrored = Mirror.of(run, str(tmp_path / "drive"), str(tmp_path / "cache"), pytest.fail)
    assert mirrored.local is run and not mirrored.is_on_drive
    train(run, 1, 10)
    before = files(run)
    mirrored.bring()
    mirrored.deliver_progress()
    mirrored.finish(0)
    assert mirrored.deliver() and files(run) == before and not (tmp_path / "cache").exists()


def test_the_working_folder_has_the_runs_name_and_each_run_its_own(pair, drive):
    other = Mirror.of(
        RunFolder(drive.root / "MyDrive" / "other" / "lace"), str(drive.root), str(pair.cache), pytest.fail
    )
    assert pair.mirror.local.name == other.local.name == "lace"
    assert pair.mirror.local.root != other.local.root
    assert all(one.local.root.is_relative_to(pair.cache / "runs") for one in (pair.mirror, other))


def test_a_cache_on_drive_is_no_place_to_work_in(pair, drive, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert pair.again(drive.root / "MyDrive" / "cache").local.root.is_relative_to(tmp_path / "home" / ".cache")


def test_what_was_delivered_equals_what_was_made_and_only_changes_are_copied(pair, drive):
    """P19."""
    run = pair.mirror.local
    train(run, 1, 12)
    (run.root / f"half.1-2-3{checkpoint.PARTIAL}").write_text("half")
    (run.root / LOCK).write_text("{}")
    assert pair.mirror.deliver() and pair.said == []
    assert files(pair.remote) == {
        name: data for name, data in files(run).items() if not name.startswith(("half", "training.lock"))
    }
    copied = []
    original = os.replace
    os.replace = lambda source, target: copied.append(Path(target).name) or original(source, target)
    try:
        for mirrored in (pair.mirror, pair.again()):  # the same session, and a later one
            assert mirrored.deliver()
        assert {name for name in copied if name != "delivered.json"} == set()
        train(run, 13, 15)
        checkpoint.write_bytes(run.sample(5, 0), run.sample(5, 0).read_bytes())  # written anew, but the same
        assert pair.mirror.deliver()
    finally:
        os.replace = original
    deleted = [name for name in copied if name.startswith("step-000005.")]
    assert sorted(set(copied) - {"delivered.json", *deleted}) == [
        "log.jsonl", "run.json", "sample_00.png", "step-000015",
    ]  # fmt: skip
    assert checkpoints(pair.remote) == checkpoints(run) == ["step-000010", "step-000015"]


def test_the_best_checkpoint_stays_on_drive_too(pair):
    train(pair.mirror.local, 1, 30, best=10)
    assert pair.mirror.deliver()
    assert checkpoints(pair.remote) == ["step-000010", "step-000025", "step-000030"]


@EVERY_CALL
@pytest.mark.parametrize("comes_back", [True, False], ids=["one call fails", "all calls from there on fail"])
def test_a_drive_that_fails_at_any_call_loses_nothing(comes_back, stride, drive, tmp_path):
    """P19: at every call in turn; Drive can be gone on from meanwhile, and equals this machine afterwards."""
    failed, is_through = 0, False
    while not is_through:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.rmtree(drive.root / "MyDrive" / "lora_output", ignore_errors=True)
        pair = Pair(drive, tmp_path / "cache")
        run = pair.mirror.local
        train(run, 1, 2, every=2, keep=1)
        assert pair.mirror.deliver()
        train(run, 3, 4, every=2, keep=1)
        drive.fail((failed + 1,) if comes_back else range(failed + 1, 10_000))
        is_delivered = pair.mirror.deliver()
        is_through = drive.calls <= failed
        drive.fail(())
        assert is_delivered or len(pair.said) == 1 and "Copying to Drive failed (Drive does not answer:" in pair.said[0]
        checkpoint.sweep(pair.remote.root, also_own=True)
        newest, _ = checkpoint.newest(pair.remote.checkpoints)
        assert newest is not None, f"failed at call {failed + 1}"
        assert f'"step": {int(newest.name[-6:])}, "loss"' in pair.remote.log.read_text(), f"failed at call {failed + 1}"
        pair.mirror.delivery.next_try = 0.0
        assert pair.mirror.deliver()
        assert files(pair.remote) == files(run), f"failed at call {failed + 1}"
        assert is_delivered or pair.said[1:] == [f"Drive is back: everything is in {pair.remote.root}."]
        failed += stride
    assert failed > 60


def test_a_byte_that_drive_changes_is_noticed_and_copied_again(pair, drive, monkeypatch):
    """P19."""
    run = pair.mirror.local
    train(run, 1, 5)
    assert pair.mirror.deliver()
    train(run, 6, 10)
    flush, wrong = os.fsync, {"lora.safetensors", "sample_00.png"}

    def flip(descriptor):
        flush(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        found = {name for name in wrong if path.is_relative_to(drive.root) and path.name.startswith(name)}
        if found:
            os.pwrite(descriptor, b"X", 2)
            wrong.difference_update(found)

    monkeypatch.setattr(os, "fsync", flip)
    reasons = ["it is not read back as it was written", "lora.safetensors is not as it was written"]
    for _ in range(2):
        assert not pair.mirror.deliver()
        assert checkpoints(pair.remote) == ["step-000005"] and checkpoint.newest(pair.remote.checkpoints)[0]
        pair.mirror.delivery.next_try = 0.0
    assert all(any(reason in line for line in pair.said) for reason in reasons) and wrong == set()
    assert pair.mirror.deliver() and files(pair.remote) == files(run)


def test_a_checkpoint_that_is_damaged_here_never_replaces_a_good_one_there(pair):
    run = pair.mirror.local
    train(run, 1, 10)
    assert pair.mirror.deliver()
    good = files(pair.remote)
    damage(run.checkpoint(10) / "lora.safetensors")
    pair.mirror.delivery.seen.clear()  # as after a lost memory: everything is copied once more
    pair.mirror.deliver()
    assert files(pair.remote) == good
    assert pair.said == [
        "step-000010 is not copied to Drive: lora.safetensors is not as it was written (its checksum differs)."
    ]


def test_a_drive_that_vanishes_gets_no_folders_in_its_place_and_everything_when_it_is_back(pair, drive, tmp_path):
    """An empty mount point takes files as any folder; with files in it Drive cannot be mounted again."""
    train(pair.mirror.local, 1, 5)
    assert pair.mirror.deliver()
    drive.root.rename(tmp_path / "gone")
    drive.root.mkdir()
    train(pair.mirror.local, 6, 10)
    for _ in range(3):
        pair.mirror.delivery.next_try = 0.0
        assert not pair.mirror.deliver()
    assert list(drive.root.iterdir()) == []
    assert pair.said == [
        "Copying to Drive failed (Drive does not answer: Drive is not mounted). The work goes on and is kept in "
        f"{pair.mirror.local.root}; copying is tried again."
    ]
    drive.root.rmdir()
    (tmp_path / "gone").rename(drive.root)
    pair.mirror.delivery.next_try = 0.0
    assert pair.mirror.deliver() and files(pair.remote) == files(pair.mirror.local)


def test_a_mount_that_is_none_any_more_is_not_written_to(pair, drive, monkeypatch):
    mounts = {drive.root}
    monkeypatch.setattr(machine, "in_colab", lambda: True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) in mounts)
    mirrored = pair.again()
    train(mirrored.local, 1, 5)
    mounts.clear()
    assert not mirrored.deliver() and files(pair.remote) == {}
    mounts.add(drive.root)
    mirrored.delivery.next_try = 0.0
    assert mirrored.deliver() and files(pair.remote) == files(mirrored.local)


def test_pauses_between_attempts_grow_and_nothing_is_tried_within_them(pair, drive, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(mirror.time, "monotonic", lambda: now[0])
    train(pair.mirror.local, 1, 5)
    drive.fail(range(10_000), errno.ENOSPC)
    waits = []
    for _ in range(8):
        assert not pair.mirror.deliver()
        waits.append(pair.mirror.delivery.next_try - now[0])
        calls = drive.calls
        now[0] += waits[-1] - 0.1
        assert not pair.mirror.deliver() and drive.calls == calls
        now[0] += 0.2
    assert waits == pytest.approx([15, 30, 60, 120, 240, 480, 600, 600])
    assert len(pair.said) == 1 and "no room is left; empty Drive's bin or delete something there" in pair.said[0]
    drive.fail(())
    pair.mirror.deliver_progress()  # owed, so that not only the log is copied
    assert files(pair.remote) == files(pair.mirror.local) and len(pair.said) == 2


def test_log_and_record_appear_on_drive_now_and_then(pair, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(mirror.time, "monotonic", lambda: now[0])
    seen = []
    for step in range(1, 9):
        train(pair.mirror.local, step, step)
        pair.mirror.deliver_progress()
        seen.append(json.loads(pair.remote.record.read_text())["step"])
        now[0] += 10
    assert seen == [1, 1, 1, 4, 4, 4, 7, 7]
    assert sorted(files(pair.remote)) == ["log.jsonl", "run.json"]


def test_the_end_waits_for_drive(pair, drive, monkeypatch):
    train(pair.mirror.local, 1, 5)
    drive.fail(range(10_000), errno.EIO)
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            drive.fail(())

    monkeypatch.setattr(mirror.time, "sleep", sleep)
    pair.mirror.finish()
    assert waited == [1, 2, 4] and files(pair.remote) == files(pair.mirror.local)
    assert len(pair.said) == 2


def test_a_drive_that_stays_away_ends_with_the_place_of_everything_and_what_to_do(pair, drive):
    train(pair.mirror.local, 1, 5)
    drive.fail(range(10_000))
    with pytest.raises(MachineError) as caught:
        pair.mirror.finish(0.05)
    sentence = str(caught.value)
    assert f"is in {pair.mirror.local.root} on this machine" in sentence and "Drive does not answer" in sentence
    assert "Mount Drive again and run the same again: it only copies" in sentence
    drive.fail(())
    later = pair.again()
    later.bring()
    later.finish(0)
    assert files(pair.remote) == files(later.local) and checkpoints(later.local) == ["step-000005"]


# -- from Drive --


def test_a_new_machine_gets_the_newest_and_the_best_checkpoint_and_the_small_files(pair, tmp_path):
    """L14."""
    train(pair.mirror.local, 1, 30, keep=3, best=10)
    checkpoint.write_text(pair.mirror.local.class_images / "class_0000.png", "class")
    checkpoint.write_text(pair.mirror.local.adapter_weights, "adapter")
    assert pair.mirror.deliver()
    checkpoint.write_text(pair.remote.sheet("designs").contact_sheet, "not for training")
    later = pair.again(tmp_path / "other_cache")
    later.bring()
    assert checkpoints(later.local) == ["step-000010", "step-000030"]
    left_out = ("checkpoints/step-000020", "checkpoints/step-000025", "images")
    expected = {name: data for name, data in files(pair.remote).items() if not name.startswith(left_out)}
    assert files(later.local) == expected and pair.said == []
    # Those that were not brought are nobody's to delete, until older ones than those brought are.
    train(later.local, 31, 35, keep=3, best=10)
    assert later.deliver()
    assert checkpoints(pair.remote) == [f"step-{step:06d}" for step in (10, 20, 25, 30, 35)]
    train(later.local, 36, 45, keep=3, best=10)
    assert later.deliver()
    assert checkpoints(pair.remote) == [f"step-{step:06d}" for step in (10, 35, 40, 45)] == checkpoints(later.local)


def test_the_side_with_the_newer_checkpoint_wins(pair, tmp_path):
    """L14: here first, then a while on another machine, then here again."""
    train(pair.mirror.local, 1, 10)
    assert pair.mirror.deliver()
    elsewhere = pair.again(tmp_path / "other_cache")
    elsewhere.bring()
    train(elsewhere.local, 11, 20)
    assert elsewhere.deliver()
    here = pair.again()
    here.bring()
    assert "step-000020" in checkpoints(here.local) and here.local.log.read_text() == elsewhere.local.log.read_text()
    train(here.local, 21, 25)  # not delivered: this machine is ahead
    ahead = files(here.local)
    here = pair.again()
    here.bring()
    assert files(here.local) == ahead and here.deliver()
    assert checkpoint.newest(pair.remote.checkpoints)[0].name == "step-000025"


def test_what_this_machine_lost_is_brought_though_it_is_not_behind(pair):
    train(pair.mirror.local, 1, 10)
    checkpoint.write_text(pair.mirror.local.class_images / "class_0000.png", "class")
    assert pair.mirror.deliver()
    before = files(pair.mirror.local)
    shutil.rmtree(pair.mirror.local.class_images)
    lines = pair.mirror.local.log.read_text().splitlines(keepends=True)
    pair.mirror.local.log.write_text("".join(lines[:4]))  # a power cut forgot what was not on the disk yet
    later = pair.again()
    later.bring()
    assert files(later.local) == before


def test_a_run_that_was_deleted_on_drive_does_not_come_back(pair):
    train(pair.mirror.local, 1, 10)
    assert pair.mirror.deliver()
    shutil.rmtree(pair.remote.root)
    pair.remote.create()
    later = pair.again()
    for _ in range(2):  # in each process of a training
        later.bring()
    assert files(later.local) == {}
    aside = later.local.root.with_name("lace.set_aside")
    assert pair.said == [
        f"The copy of lace on this machine is not used, because its folder was deleted on Drive; it is in {aside} now."
    ]
    assert checkpoints(RunFolder(aside)) == ["step-000005", "step-000010"]
    train(later.local, 1, 5, id_="b")
    assert later.deliver() and files(pair.remote) == files(later.local)


def test_a_run_folder_that_is_deleted_while_it_is_trained_is_made_whole_again(pair):
    train(pair.mirror.local, 1, 10)
    assert pair.mirror.deliver()
    shutil.rmtree(pair.remote.root)
    train(pair.mirror.local, 11, 15)
    assert pair.mirror.deliver() and files(pair.remote) == files(pair.mirror.local)


def test_another_training_of_that_name_on_drive_is_gone_on_from_instead(pair, tmp_path):
    train(pair.mirror.local, 1, 10)
    assert pair.mirror.deliver()
    shutil.rmtree(pair.remote.root)
    elsewhere = Pair(Drive(pair.remote.root.parents[2]), tmp_path / "other_cache").mirror
    train(elsewhere.local, 1, 5, id_="b")
    assert elsewhere.deliver()
    later = pair.again()
    later.bring()
    assert files(later.local) == files(pair.remote) and "because Drive holds another training" in pair.said[0]


def test_a_first_try_on_drive_that_learnt_nothing_gives_way_to_work_done_here(pair):
    """Drive was away since: what is there was written by this machine, or is of the same settings."""
    train(pair.mirror.local, 1, 3, started="early")
    pair.mirror.deliver_progress()
    train(pair.mirror.local, 1, 10, started="later")
    ahead = files(pair.mirror.local)
    for memory in ("kept", "lost"):
        later = pair.again()
        if memory == "lost":
            (later.local.root.parent / "delivered.json").unlink()
        later.bring()
        assert files(later.local) == ahead and pair.said == [], memory


def test_a_damaged_checkpoint_on_drive_is_passed_over_and_mended(pair, tmp_path):
    """L14, P19."""
    train(pair.mirror.local, 1, 20, keep=3)
    assert pair.mirror.deliver()
    damage(pair.remote.checkpoint(20) / "lora.safetensors")
    (pair.remote.checkpoint(15) / "state.json").unlink()
    later = pair.again(tmp_path / "other_cache")
    later.bring()
    assert pair.said == [
        "step-000020 on Drive is passed over: lora.safetensors is not as it was written (its checksum differs).",
        "step-000015 on Drive is passed over: state.json is missing.",
    ]
    assert checkpoints(later.local) == ["step-000010"]
    assert later.deliver() and checkpoints(pair.remote)[-1] == "step-000010"  # damaged ones are of no use to anybody
    rows = [row for row in checkpoint.read_json_lines(later.local.log) if row["step"] <= 10]  # as a resume cuts it
    checkpoint.write_text(later.local.log, "".join(json.dumps(row) + "\n" for row in rows))
    train(later.local, 11, 20, keep=3)
    assert later.deliver()
    assert checkpoint.newest(pair.remote.checkpoints) == (pair.remote.checkpoint(20), [])
    assert files(pair.remote) == files(later.local)


def test_a_checkpoint_that_the_log_does_not_reach_is_passed_over(pair, tmp_path):
    train(pair.mirror.local, 1, 10)
    assert pair.mirror.deliver()
    lines = pair.remote.log.read_text().splitlines(keepends=True)
    pair.remote.log.write_text("".join(lines[:8]))
    later = pair.again(tmp_path / "other_cache")
    later.bring()
    assert pair.said == ["step-000010 on Drive is passed over: log.jsonl ends at step 7."]
    assert checkpoints(later.local) == ["step-000005"]


@EVERY_CALL
def test_bringing_is_tried_again_at_any_call_that_fails(stride, drive, tmp_path, monkeypatch):
    """P19: what cannot be read for a moment must not count as missing."""
    monkeypatch.setattr(mirror, "ATTEMPTS", (0.0,))
    monkeypatch.setattr(mirror, "READERS", 1)
    pair = Pair(drive, tmp_path / "cache")
    train(pair.mirror.local, 1, 20, best=5)
    assert pair.mirror.deliver()
    failed, expected = 0, None
    while drive.calls >= failed:
        shutil.rmtree(tmp_path / "other_cache", ignore_errors=True)
        later = pair.again(tmp_path / "other_cache")
        drive.fail((failed,))
        later.bring()
        expected = expected or files(later.local)
        assert files(later.local) == expected, f"failed at call {failed}"
        failed += stride
    assert checkpoints(later.local) == ["step-000005", "step-000020"] and failed > 40 and pair.said == []


def test_a_drive_that_is_away_at_the_start_ends_with_a_sentence(pair, drive, monkeypatch):
    monkeypatch.setattr(mirror, "ATTEMPTS", (0.0, 0.0))
    drive.fail(range(10_000))
    with pytest.raises(MachineError, match="could not be copied to this machine .Drive does not answer.* Mount Drive"):
        pair.mirror.bring()


# Delivers and brings again and again; is killed at the k-th call on Drive or in the working folder, and tries again.
KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.test_mirror import Mirror, RunFolder, checkpoint, checkpoints, files, train
from lace_lora.lock import lock
CALLS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "shutil.copyfile")
base, calls, at = Path(sys.argv[1]), 0, 0
def count(event, args):
    global calls
    if event in CALLS and str(base) in str(args):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
def mirrored(cache="cache"):
    remote = RunFolder(base / "drive" / "MyDrive" / "lora_output" / "lace").create()
    return Mirror.of(remote, str(base / "drive"), str(base / cache), print)
def deliver():
    mirrored().deliver()
def bring():
    mirrored("new").bring()
sys.addaudithook(count)
os.fsync = lambda _: None
for work in (deliver, bring):
    for number in range(1, 1000, int(sys.argv[3])):
        shutil.rmtree(base, ignore_errors=True)
        one = mirrored()
        train(one.local, 1, 4, every=2, keep=1, best=2)
        one.deliver()
        train(one.local, 5, 8, every=2, keep=1 + (work is bring), best=2)
        if work is bring:
            one.deliver()
        if not (child := os.fork()):
            calls, at = 0, number
            work()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        after = mirrored("cache" if work is deliver else "new")
        with lock(after.remote.root, print):
            after.bring()
            assert after.deliver()
        local, remote = files(after.local), files(after.remote)
        assert checkpoints(after.local) == ["step-000002", "step-000008"], number
        here_only = "checkpoints/step-000006"  # neither the newest nor the best
        assert local == {name: data for name, data in remote.items() if not name.startswith(here_only)}, number
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
    assert number > 40, number
"""


@EVERY_CALL
def test_a_kill_at_any_call_of_a_delivery_or_a_bringing_is_made_good(stride, tmp_path):
    """L14, P19."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "base"), str(ROOT), str(stride)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
