"""One training at a time in a folder, whatever killed the one before (P19, L14)."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from lace_lora import checkpoint, lock
from lace_lora.errors import MachineError, RunError

HOLD = """
import sys, time
from pathlib import Path
from lace_lora.lock import lock
with lock(Path(sys.argv[1]), print):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that trains in the folder `run`."""
    line = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def far_away(tmp_path):
    """The lock of another machine, with its last sign of life some seconds ago."""

    def write(seconds):
        with lock.lock(tmp_path / "run", print):
            mine = lock.holder_of(tmp_path / "run")
        then = time.time() - seconds
        holder = replace(mine, host="colab-7", machine="0123abcd", since=then - 60, refreshed=then, token="ab")
        checkpoint.write_json(tmp_path / "run" / lock.LOCK, asdict(holder))
        return holder

    return write


def test_a_lock_names_its_holder_and_is_gone_afterwards(tmp_path):
    with lock.lock(tmp_path / "run", pytest.fail):
        holder = lock.holder_of(tmp_path / "run")
        assert holder.pid == os.getpid() and abs(holder.since - time.time()) < 5
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(KeyError), lock.lock(tmp_path / "run", pytest.fail):
        raise KeyError
    assert list((tmp_path / "run").iterdir()) == []


def test_two_processes_do_not_train_in_one_folder(tmp_path, other_process):
    with pytest.raises(RunError) as caught, lock.lock(tmp_path / "run", print):
        pytest.fail("two hold the lock")
    sentence = str(caught.value)
    assert f"{tmp_path / 'run'} is being trained already, by process {other_process.pid} on " in sentence
    assert ", since 20" in sentence and "choose another run_name" in sentence
    assert lock.holder_of(tmp_path / "run").pid == other_process.pid


def test_two_threads_of_a_process_do_not_train_in_one_folder(tmp_path):
    """A notebook and something in its background."""
    held, over = threading.Event(), threading.Event()

    def hold():
        with lock.lock(tmp_path, print):
            held.set()
            over.wait(20)

    worker = threading.Thread(target=hold)
    worker.start()
    held.wait(20)
    with pytest.raises(RunError, match="is being trained already"), lock.lock(tmp_path, print):
        pass
    over.set()
    worker.join()
    with lock.lock(tmp_path, pytest.fail):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_at_once_with_a_sentence(tmp_path, other_process):
    (tmp_path / "run" / f"log.jsonl.{checkpoint.this_machine()}-{other_process.pid}-ab.partial").write_text("half")
    other_process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other_process.pid, os.WEXITED | os.WNOWAIT)
    said = []
    for _ in range(2):  # also before its parent took notice of its end
        with lock.lock(tmp_path / "run", said.append):
            assert lock.holder_of(tmp_path / "run").pid == os.getpid()
            assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.LOCK]
        other_process.wait()
    assert len(said) == 1 and f"process {other_process.pid} on " in said[0]
    assert "which ended without a word; this one goes on in its place" in said[0]


def test_a_process_with_the_number_of_a_dead_one_is_another_one(tmp_path, other_process):
    holder = lock.holder_of(tmp_path / "run")
    checkpoint.write_json(tmp_path / "run" / lock.LOCK, asdict(replace(holder, started=holder.started - 1000)))
    with lock.lock(tmp_path / "run", print):
        assert lock.holder_of(tmp_path / "run").pid == os.getpid()


def test_a_lock_that_an_earlier_cell_could_not_delete_is_its_own(tmp_path):
    """Drive was away when training ended; the kernel lives on, and the cell is run again."""
    with lock.lock(tmp_path, print):
        text = (tmp_path / lock.LOCK).read_text()
    (tmp_path / lock.LOCK).write_text(text)
    with lock.lock(tmp_path, print):
        assert json.loads((tmp_path / lock.LOCK).read_text())["token"] != json.loads(text)["token"]


def test_a_machine_that_gave_no_sign_for_long_is_gone(tmp_path, far_away):
    far_away(lock.SILENT_SECONDS + 1)
    said = []
    with lock.lock(tmp_path / "run", said.append):
        assert lock.holder_of(tmp_path / "run").pid == os.getpid()
    assert len(said) == 1 and "on colab-7, since " in said[0] and "ended without a word" in said[0]


def test_a_machine_that_may_be_gone_is_waited_for_and_then_replaced(tmp_path, far_away, monkeypatch):
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)
    far_away(lock.SILENT_SECONDS - 0.5)
    said, began = [], time.monotonic()
    with lock.lock(tmp_path / "run", said.append):
        assert 0.4 < time.monotonic() - began < 5
    assert len(said) == 2 and "It gave its last sign of life at " in said[0] and "ended without a word" in said[1]


def test_a_machine_that_gives_a_sign_meanwhile_is_left_alone(tmp_path, far_away, monkeypatch):
    holder = far_away(lock.SILENT_SECONDS - 60)

    def sleep(_):
        checkpoint.write_json(tmp_path / "run" / lock.LOCK, asdict(replace(holder, refreshed=time.time())))

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(RunError, match="is being trained already, by process .* on colab-7"):
        with lock.lock(tmp_path / "run", print):
            pass


def test_signs_of_life_are_given_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 0.02)
    with lock.lock(tmp_path, print):
        first = lock.holder_of(tmp_path)
        until = time.monotonic() + 10
        while lock.holder_of(tmp_path).refreshed == first.refreshed and time.monotonic() < until:
            time.sleep(0.01)
        last = lock.holder_of(tmp_path)
    assert last.refreshed > first.refreshed and last.token == first.token
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_one_took_is_told_of_and_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 0.02)
    said = []
    with lock.lock(tmp_path, said.append):
        taken = replace(lock.holder_of(tmp_path), token="another")
        until = time.monotonic() + 10
        while not said and time.monotonic() < until:
            checkpoint.write_json(tmp_path / lock.LOCK, asdict(taken))
            time.sleep(0.03)
    assert said == [f"Another process works in {tmp_path} too by now. Stop one of them."]
    assert lock.holder_of(tmp_path) == taken


def test_a_folder_that_vanishes_is_not_made_again_by_a_sign_of_life(tmp_path, monkeypatch):
    """Below an unmounted Drive it would be in the way of the next mount."""
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 0.02)
    with lock.lock(tmp_path / "run", print):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        time.sleep(0.2)
        assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()


def test_a_drive_that_does_not_answer_is_said_so(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(MachineError, match="Drive is not answering: .*training.lock"), lock.lock(tmp_path, print):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / lock.LOCK).write_text(text)
    with lock.lock(tmp_path, pytest.fail):
        assert lock.holder_of(tmp_path).pid == os.getpid()


def test_of_many_that_come_at_once_exactly_one_trains(tmp_path):
    lines = [sys.executable, "-c", HOLD, str(tmp_path)]
    started = [subprocess.Popen(lines, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(4)]
    try:
        ended = [process for process in started if _ends(process)]
        assert len(ended) == 3 and all(process.returncode == 1 for process in ended)
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()


def _ends(process):
    """Whether a process ends by itself rather than saying that it holds the lock."""
    if process.stdout.readline() == "holds\n":
        return False
    process.wait(20)
    return True
