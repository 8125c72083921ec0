"""The queue behind the served doors: one after the other, nothing lost by a cut, a cancel or a shutdown (P25, L15)."""

import json
import threading

import pytest

from lace_lora import job_records, service
from lace_lora.errors import MachineError, RunError, SettingsError
from lace_lora.file_names import without_folders
from lace_lora.service import Closing, Full, Service
from tests.serving import Painter, Turnstile, asked, quiet, run_in, until


@pytest.fixture
def run(tmp_path):
    return run_in(tmp_path)


def states(found):
    return [job.state for job in found.jobs()]


def kept(run):
    """The state of each request on the disk, in the order of the sheets' names."""
    return {path.stem: json.loads(path.read_text())["state"] for path in run.served.glob("*.json")}


def test_requests_are_drawn_one_after_the_other_in_their_order(run):
    """P25: by one worker; each has its own sheet, and its pictures in it."""
    painter = Painter(run)
    with Service(run, painter, 16, quiet) as found:
        ids = [found.submit(asked(seed=seed), 2).id for seed in range(5)]
        until(lambda: states(found) == ["finished"] * 5)
        assert painter.begun == [f"served-{id}" for id in ids] and painter.most_at_once == 1
        assert [[one.seed for one in found.pictures(id).values()] for id in ids] == [[n, n + 1] for n in range(5)]
        assert all(one.path.is_file() for id in ids for one in found.pictures(id).values())


def test_a_request_is_on_the_disk_before_it_is_taken(run, monkeypatch):
    """P25: where it cannot be kept it is not taken, and nothing is left of it."""

    def full(*given):
        raise MachineError("The disk is full.")

    monkeypatch.setattr(job_records, "write", full)
    with Service(run, Painter(run), 16, quiet) as found, pytest.raises(MachineError):
        found.submit(asked(), 2)
    assert found.jobs() == [] and kept(run) == {}


def test_what_drawing_would_refuse_is_refused_at_the_door(run):
    """P25: and not when its turn comes, hours later."""

    def check(given):
        raise SettingsError(f"seed {given['seed']} will not do.")

    with Service(run, Painter(run), 16, quiet, check) as found, pytest.raises(SettingsError, match="seed 7 will not"):
        found.submit(asked(seed=7), 2)
    assert found.jobs() == [] and kept(run) == {}


def test_a_full_queue_says_when_to_come_again(run):
    """P25: the one that is drawn does not count."""
    pause = threading.Event()
    with Service(run, Painter(run, pause), 2, quiet) as found:
        first = found.submit(asked(), 2)
        until(lambda: found.job(first.id).state == "running")
        found.submit(asked(), 2), found.submit(asked(), 2)
        with pytest.raises(Full, match="2 requests are waiting") as raised:
            found.submit(asked(), 2)
        assert raised.value.seconds == service.LATER_SECONDS
        assert [found.progress(job).ahead for job in found.jobs()] == [0, 1, 2]
        pause.set()
        until(lambda: states(found) == ["finished"] * 3)
        found.submit(asked(), 2)


def test_a_waiting_request_is_cancelled_at_once_and_never_drawn(run):
    """P25."""
    pause, painter = threading.Event(), None
    painter = Painter(run, pause)
    with Service(run, painter, 16, quiet) as found:
        first, second, third = (found.submit(asked(), 2).id for _ in range(3))
        until(lambda: painter.begun)
        assert found.cancel(second).state == "cancelled"
        assert found.cancel(second).state == "cancelled" and found.cancel("0" * 16) is None
        pause.set()
        until(lambda: found.job(third).state == "finished")
        assert states(found) == ["finished", "cancelled", "finished"] and len(painter.begun) == 2


def test_cancelling_what_is_drawn_stops_it_and_keeps_what_is_finished(run):
    """P25."""
    painter = Painter(run, Turnstile(2))
    with Service(run, painter, 16, quiet) as found:
        id = found.submit(asked(num_images=5), 5).id
        until(lambda: len(found.pictures(id)) == 2)
        assert found.progress(found.job(id)).share == pytest.approx(2 / 15)  # of three stages, of which it has one
        assert found.cancel(id) is not None
        until(lambda: found.job(id).is_over)
        assert found.job(id).state == "cancelled" and list(found.pictures(id)) == [0, 1]
    assert kept(run) == {id: "cancelled"}


def test_a_shutdown_parks_what_is_drawn_and_the_next_start_goes_on_with_it(run):
    """P25: every picture is drawn once, by whichever process, and nothing that was taken is lost."""
    first = Painter(run, Turnstile(2))
    with Service(run, first, 16, quiet) as found:
        ids = [found.submit(asked(num_images=4), 4).id for _ in range(3)]
        until(lambda: len(first.drawn) == 2)
    with pytest.raises(Closing):
        found.submit(asked(), 2)
    assert "running" not in kept(run).values()
    second = Painter(run)
    with Service(run, second, 16, quiet) as found:
        until(lambda: all(found.job(id).state == "finished" for id in ids))
        assert all(len(found.pictures(id)) == 4 for id in ids)
    assert sorted(first.drawn + second.drawn) == sorted((f"served-{id}", n) for id in ids for n in range(4))
    assert [job.id for job in found.jobs()] == ids


def killed(run, ids, state="running", **more):
    """Records as a process leaves them that was killed while it drew the first."""
    for place, id in enumerate(ids):
        job = job_records.Job(id, asked(num_images=3), f"served-{id}", 3, f"2026-01-01T00:00:0{place}")
        changes = {"state": state} | more if not place else {}
        job_records.write(run, job_records.replace(job, **changes))


def test_what_was_drawn_when_the_process_was_killed_goes_on_first(run):
    """P25, L15."""
    ids = ["a" * 16, "b" * 16]
    killed(run, ids)
    painter = Painter(run)
    with Service(run, painter, 1, quiet) as found:
        until(lambda: states(found) == ["finished"] * 2)
    assert painter.begun == [f"served-{id}" for id in ids] and found.job(ids[0]).cut_offs == 1


def test_what_ends_the_process_three_times_has_failed_and_the_others_are_drawn(run):
    """P25: one request that is too large for the machine must not keep the server from all others."""
    ids = ["a" * 16, "b" * 16]
    killed(run, ids, cut_offs=2)
    with Service(run, Painter(run), 16, quiet) as found:
        until(lambda: found.job(ids[1]).state == "finished")
        assert found.job(ids[0]).state == "failed" and "ended 3 times" in found.job(ids[0]).error
    assert kept(run) == {ids[0]: "failed", ids[1]: "finished"}


def test_after_a_restart_finished_requests_still_show_their_pictures(run):
    """P25: out of the sheet's own rows; a row that names a file elsewhere shows none."""
    with Service(run, Painter(run), 16, quiet) as found:
        id = found.submit(asked(), 2).id
        until(lambda: found.job(id).is_over)
        before = found.pictures(id)
    secret = run.root / "secret.png"
    secret.write_bytes(b"secret")
    row = {"index": 7, "prompt": "x", "seed": 1, "width": 8, "height": 8, "base": "../../secret.png"}
    manifest = run.sheet(f"served-{id}").manifest
    manifest.write_text(manifest.read_text() + json.dumps(row) + "\nnonsense\n[]\n{}\n")
    with Service(run, Painter(run), 16, quiet) as found:
        assert found.pictures(id) == before and len(before) == 2
        assert found.pictures("0" * 16) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}', '{"id": 3}', "null"])
def test_a_record_that_cannot_be_read_is_said_and_stays(run, text):
    """P25."""
    run.served_job("x").write_text(text)
    said = []
    with Service(run, Painter(run), 16, said.append) as found:
        assert found.jobs() == []
    assert any("cannot be understood" in line for line in said) and run.served_job("x").read_text() == text


@pytest.mark.parametrize("sheet", ["../up", "/etc", "", "a/b"])
def test_a_record_that_names_a_folder_elsewhere_is_none(run, sheet):
    """P25: no path out of a file of requests becomes one on the disk."""
    killed(run, ["a" * 16], sheet=sheet)
    with Service(run, Painter(run), 16, quiet) as found:
        assert found.jobs() == []


def test_an_error_is_told_without_folders_and_the_next_request_is_drawn(run):
    """P25: a sentence of ours says what to do; of anything else the log has the traceback."""
    said = []
    painter = Painter(run, error=SettingsError(f"No adapter in {run.root}/x.safetensors. Train first."))
    with Service(run, painter, 16, said.append) as found:
        first = found.submit(asked(), 2).id
        until(lambda: found.job(first).is_over)
        painter.error = ValueError("a secret: /srv/x")
        second = found.submit(asked(), 2).id
        until(lambda: found.job(second).is_over)
        painter.error = None
        third = found.submit(asked(), 2).id
        until(lambda: found.job(third).is_over)
        assert found.is_working
    assert found.job(first).error == "No adapter in x.safetensors. Train first."
    assert "unforeseen" in found.job(second).error and "secret" not in found.job(second).error
    assert any("Traceback" in line and "a secret" in line for line in said)
    assert states(found) == ["failed", "failed", "finished"]


def test_a_request_goes_on_where_how_it_stands_cannot_be_written(run, monkeypatch):
    """P25: a disk that fills up while designs are drawn costs no design."""
    said = []
    with Service(run, Painter(run), 16, said.append) as found:

        def full(*given):
            raise MachineError("The disk is full.")

        id = found.submit(asked(), 2).id
        monkeypatch.setattr(job_records, "write", full)
        until(lambda: found.job(id).is_over)
        assert found.job(id).state == "finished"
    assert any("could not be kept" in line for line in said)


def test_two_servers_do_not_share_a_run(run):
    """P25: both would draw the same requests."""
    with Service(run, Painter(run), 16, quiet), pytest.raises(RunError, match="serve another run"):
        with Service(run, Painter(run), 16, quiet):
            pass


def test_the_oldest_that_are_over_are_forgotten(run, monkeypatch):
    """P25: what a server keeps is bounded; sheets stay."""
    monkeypatch.setattr(service, "KEPT", 2)
    with Service(run, Painter(run), 16, quiet) as found:
        ids = [found.submit(asked(), 2).id for _ in range(4)]
        until(lambda: found.job(ids[-1]) is not None and found.job(ids[-1]).is_over)
        assert [job.id for job in found.jobs()] == ids[2:] and set(kept(run)) == set(ids[2:])
        assert found.job(ids[0]) is None and found.pictures(ids[0]) == {}
    assert len(list(run.sheets.iterdir())) == 4


def test_progress_and_the_time_that_is_left(run, monkeypatch):
    """P25: nothing is promised before anything was drawn; then the pace of one tells the time of the next."""
    clock = [0.0]
    monkeypatch.setattr(service, "monotonic", lambda: clock[0])
    monkeypatch.setattr(service, "_Work", lambda id, true=service._Work: true(id, began=clock[0]))
    pause = threading.Event()
    painter = Painter(run, pause)
    small = asked(num_images=2, num_inference_steps=10, width=64, height=64, refine="none")
    large = asked(num_images=2, num_inference_steps=20, width=128, height=64, refine="none")
    with Service(run, painter, 16, quiet) as found:
        first = found.submit(small, 2)
        until(lambda: painter.begun)
        before = found.progress(first)
        assert (before.share, before.eta_seconds, before.finished) == (0.0, None, 0)
        clock[0] = 8.0
        pause.set()
        until(lambda: found.job(first.id).is_over)
        done = found.progress(found.job(first.id))
        assert (done.share, done.eta_seconds, done.finished) == (1.0, None, 2)
        pause.clear()
        # 8 s for 2 designs · 10 steps · 64 · 64 px; a large one is four times that.
        second, third = found.submit(large, 2), found.submit(small, 2)
        until(lambda: len(painter.begun) == 2)
        clock[0] += 2
        assert found.progress(second).eta_seconds == pytest.approx(32 - 2)
        assert found.progress(third).eta_seconds == pytest.approx(32 - 2 + 8)
        with pytest.raises(Full) as raised:
            found.waiting = 1
            found.submit(small, 2)
        assert raised.value.seconds == 30
        pause.set()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("No adapter in /content/drive/MyDrive/out/lace. Train.", "No adapter in lace. Train."),
        ("'/a/b.png' and ~/.cache/x/y.txt (/tmp/z)", "'b.png' and y.txt (z)"),
        ("C:\\Users\\x\\y.txt is gone", "y.txt is gone"),
        ("see file:///srv/a/b and --opt=/srv/a/c", "see b and --opt=c"),
        ("http://127.0.0.1:8000/designs/x, and/or 3/4 half-drop/brick", None),
        ("refiner_start 0.85 of 4 steps leaves none.", None),
    ],
)
def test_a_sentence_for_others_has_no_folders(text, told):
    """P25: of a path its last name; addresses, fractions and words with a slash stay."""
    assert without_folders(text) == (told or text)
