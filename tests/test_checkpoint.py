"""Complete or absent, never half (P19, L14)."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from lace_lora import checkpoint
from lace_lora.errors import MachineError, RunError


def filled(text):
    def write(folder):
        (folder / "weights.bin").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "state.json").write_text("{}")

    return write


def test_a_saved_folder_is_complete_and_its_newest_is_found(tmp_path):
    for step in (2, 10):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled(str(step)))
    found, notes = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step-000010" and notes == []


def test_a_writer_that_fails_leaves_the_earlier_folder_and_no_remains(tmp_path):
    folder = tmp_path / "step-000001"
    checkpoint.save_folder(folder, filled("first"))

    def fail(partial):
        (partial / "weights.bin").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_folder(folder, fail)
    assert (folder / "weights.bin").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_folder_with_one_changed_byte_is_passed_over_with_a_sentence(tmp_path):
    for step in (1, 2):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("same"))
    weights = tmp_path / "step-000002" / "weights.bin"
    weights.write_text("sbme")
    found, notes = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step-000001"
    assert notes == ["step-000002 is passed over: weights.bin is not as it was written (its checksum differs)."]


def test_a_folder_without_marker_or_file_is_passed_over(tmp_path):
    checkpoint.save_folder(tmp_path / "step-000003", filled("x"))
    (tmp_path / "step-000003" / "weights.bin").unlink()
    (tmp_path / "step-000004").mkdir()
    found, notes = checkpoint.newest(tmp_path)
    assert found is None
    assert "cut off while being written" in notes[0] and "weights.bin is missing" in notes[1]


def test_pruning_keeps_the_newest_complete_ones(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("x"))
    (tmp_path / "step-000009").mkdir()  # never finished: it must not count as one of those kept, nor outlive them
    checkpoint.prune(tmp_path, keep=2, written=tmp_path / "step-000003")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_pruning_never_keeps_a_damaged_folder_before_the_one_just_written(tmp_path):
    """P19: 100 is good, 200 was damaged, the work went on from 100 to 150."""
    for step in (100, 200, 150):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("x"))
    (tmp_path / "step-000200" / "weights.bin").write_text("y")
    checkpoint.prune(tmp_path, keep=1, written=tmp_path / "step-000150")
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-000150", [])


def test_pruning_never_deletes_the_best_one_and_does_not_count_it_when_it_is_older(tmp_path):
    """P19."""
    for step in range(1, 7):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("x"))
    newest, best = tmp_path / "step-000006", tmp_path / "step-000002"
    dropped = checkpoint.prune(tmp_path, keep=2, written=newest, best=best)
    assert [path.name for path in dropped] == ["step-000001", "step-000003", "step-000004"]
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step-000002", "step-000005", "step-000006"]
    checkpoint.prune(tmp_path, keep=2, written=newest, best=newest)
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step-000005", "step-000006"]


def test_a_disk_that_gives_back_other_bytes_costs_no_earlier_folder(tmp_path, monkeypatch):
    """P19: written, read back, and only then does anything older go."""
    for step in (1, 2):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("first"))
    flush = os.fsync

    def flip(descriptor):
        flush(descriptor)
        if os.fstat(descriptor).st_size == len("second"):
            os.pwrite(descriptor, b"S", 0)

    monkeypatch.setattr(os, "fsync", flip)
    for step in (2, 3):  # in the place of another one, and beside it
        with pytest.raises(MachineError, match=f"step-00000{step} cannot be read back: weights.bin is not as it was"):
            checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("second"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-000002", [])
    assert (tmp_path / "step-000002" / "weights.bin").read_text() == "first"


def test_an_earlier_folder_keeps_its_name_when_the_new_one_cannot_take_it(tmp_path, monkeypatch):
    folder = tmp_path / "step-000001"
    checkpoint.save_folder(folder, filled("first"))
    replace = os.replace

    def failing(source, target):
        if str(source).endswith(checkpoint.PARTIAL):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(MachineError, match="Drive is not answering"):
        checkpoint.save_folder(folder, filled("second"))
    assert checkpoint.problem_of(folder) is None and (folder / "weights.bin").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_file_system_that_does_not_answer_is_not_taken_for_an_empty_folder(tmp_path, monkeypatch):
    checkpoint.save_folder(tmp_path / "step-000001", filled("x"))

    def failing(path):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Transport endpoint"):
        checkpoint.newest(tmp_path)


def test_several_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """Every reader finds all of what one of them wrote."""
    path, values = tmp_path / "run.json", [str(number) * 50_000 for number in range(4)]
    found = set()

    def write(value):
        for _ in range(15):
            checkpoint.write_text(path, value)

    writers = [threading.Thread(target=write, args=(value,)) for value in values]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found |= {path.read_text()} if path.is_file() else set()
    assert found <= set(values) and path.read_text() in values
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_what_killed_processes_left_is_cleared_away_and_what_living_ones_write_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living, here, day = os.getppid(), checkpoint.this_machine(), checkpoint.FORGOTTEN_SECONDS
    ages = {
        f"log.jsonl.{here}-{ended.pid}-abc123.partial": 0,
        f"run.json.{here}-{living}-abc123.partial": 2 * day,
        f"run.json.{here}-{os.getpid()}-abc123.partial": 2 * day,
        "run.json.0123abcd-1-abc123.partial": day - 60,
        "old.json.0123abcd-1-abc123.partial": day + 60,
        "design.png.partial": day + 60,
        "mine.txt": 2 * day,
    }
    for name, age in ages.items():
        (tmp_path / "inner").mkdir(exist_ok=True)
        (tmp_path / "inner" / name).write_text("x")
        os.utime(tmp_path / "inner" / name, (time.time() - age,) * 2)
    half = tmp_path / f"step-000002.{here}-{ended.pid}-abc123.partial"
    checkpoint.save_folder(half, filled("x"))
    checkpoint.sweep(tmp_path)
    assert not half.exists()
    left = {name for name in ages if (tmp_path / "inner" / name).exists()}
    assert left == {*list(ages)[1:4], "mine.txt"}
    checkpoint.sweep(tmp_path, also_own=True)
    assert {path.name for path in (tmp_path / "inner").iterdir()} == left - {list(ages)[2]}


def test_a_folder_whose_successor_never_took_its_place_is_put_back(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark = f"{checkpoint.this_machine()}-{ended.pid}-abc123"
    checkpoint.save_folder(tmp_path / f"step-000001.{mark}.old", filled("first"))
    checkpoint.save_folder(tmp_path / "step-000002", filled("second"))
    checkpoint.save_folder(tmp_path / f"step-000002.{mark}.old", filled("first"))
    checkpoint.sweep(tmp_path)
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step-000001", "step-000002"]
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "step-000002" / "weights.bin").read_text() == "second"


# Saves step-000002 in the place of another one, then step-000003, and prunes; dies at the k-th call that names a file.
# A process without torch and threads, which can be doubled quickly and safely.
KILLED = """
import os, signal, sys
from pathlib import Path
from lace_lora import checkpoint
CALLS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir")
parent, calls, at = Path(sys.argv[1]), 0, 0
def count(event, args):
    global calls
    if event in CALLS and str(parent) in str(args):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
def save(parent, steps, text):
    for step in steps:
        checkpoint.save_folder(parent / f"step-{step:06d}", lambda folder: (folder / "weights.bin").write_text(text))
sys.addaudithook(count)
for number in range(1, 1000):
    save(parent / str(number), (1, 2), "old")
    if not (child := os.fork()):
        calls, at = 0, number
        save(parent / str(number), (2, 3), "new")
        checkpoint.prune(parent / str(number), 1, parent / str(number) / "step-000003")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
"""


def test_a_kill_at_any_call_leaves_a_whole_checkpoint_and_no_remains(tmp_path):
    """L14, P19: at every call of the file system in turn."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True)
    folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    found = []
    for folder in folders:
        checkpoint.sweep(folder)
        newest, notes = checkpoint.newest(folder)
        assert newest is not None and notes == [], f"killed at call {folder.name}"
        assert {path.name.partition(".")[2] for path in folder.iterdir()} == {""}, f"killed at call {folder.name}"
        found.append((newest.name, (newest / "weights.bin").read_text()))
    assert sorted(set(found)) == [("step-000002", "new"), ("step-000002", "old"), ("step-000003", "new")]
    assert len(folders) > 25 and [path.name for path in folders[-1].iterdir()] == ["step-000003"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run.json"
    checkpoint.write_json(path, {"step": 1})

    def fail(partial):
        partial.write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MachineError, match="The disk is full: .*run.json"):
        checkpoint.write_file(path, fail)
    assert path.read_text() == '{\n  "step": 1\n}\n'
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.ENOSPC, MachineError, "The disk is full"),
        (errno.EACCES, RunError, "No permission to write"),
        (errno.EROFS, RunError, "No permission to write"),
        (errno.ENOTCONN, MachineError, "Drive is not answering"),
        (errno.EIO, MachineError, "Drive is not answering"),
        (errno.ENAMETOOLONG, RunError, "could not be written"),
    ],
)
def test_what_the_system_says_becomes_a_sentence_that_names_the_path(tmp_path, number, kind, sentence):
    with pytest.raises(kind) as caught, checkpoint.writing(tmp_path / "adapter"):
        raise OSError(number, os.strerror(number))
    assert sentence in str(caught.value) and "adapter" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_has_its_sentence(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(RunError, match="No permission to write"):
        checkpoint.write_text(tmp_path / "run.json", "{}")


def test_a_log_line_that_a_cut_left_half_is_passed_over(tmp_path):
    log = tmp_path / "log.jsonl"
    for step in (1, 2):
        checkpoint.append_line(log, f'{{"step": {step}}}')
    with open(log, "a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in checkpoint.read_json_lines(log)] == [1, 2]
    assert checkpoint.read_json_lines(tmp_path / "none.jsonl") == []
