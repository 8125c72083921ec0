"""The runs in a folder, listed whatever state they are in, and shown again and again (C12, C13)."""

import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lace_lora import checkpoint, lock, main, run_list, runs
from lace_lora.errors import MachineError, RunError, SettingsError
from lace_lora.run_folder import RunFolder
from lace_lora.runs import Job, Listing
from lace_lora.scores import CopyCheck, Evaluation, Nearest, Score

FACTS = {"id": "a" * 64, "state": "finished", "step": 10, "total": 10, "loss": 0.25, "settings": {}}


def a_run(parent: Path, name: str, age: float = 0.0, **facts: Any) -> RunFolder:
    """A run of which only run.json is there, written `age` seconds ago."""
    run = RunFolder(parent / name).create()
    moment = datetime.now(UTC) - timedelta(seconds=age)
    checkpoint.write_json(run.record, {**FACTS, "updated": moment.isoformat(timespec="seconds"), **facts})
    os.utime(run.record, (time.time() - age,) * 2)
    return run


@pytest.fixture
def graveyard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One run of each kind that people have, and of each kind that a machine leaves when it goes away."""
    parent = tmp_path / "out"
    good = a_run(parent, "good", age=60)
    checkpoint.write_json(good.best, {"step": 8, "val_loss": 0.0812})
    pairs = (Nearest("sheet/1", "lace_3.jpg", 0.9, True), Nearest("sheet/2", "lace_1.jpg", 0.2, False))
    scores = (Score("style_match", "style match", "style", 0.714),)
    Evaluation("good", "now", scores=scores, copies=CopyCheck(pairs=pairs)).write(good)
    os.utime(good.best, (time.time() - 60,) * 2)
    os.utime(good.scores, (time.time() - 60,) * 2)
    a_run(parent, "cut", age=120, state="running", step=4, eta_seconds=90)
    a_run(parent, "failed", age=180, state="failed", step=2, error="The GPU ran out of memory.\nTry rank 8.")
    a_run(parent, "half", age=240).record.write_text('{"id": "aa", "state": "fini')
    a_run(parent, "list", age=250).record.write_text("[1, 2]")
    a_run(parent, "odd", age=300, state=7, step="many", total=None, loss="low", updated=5, eta_seconds=[])
    a_run(parent, "huge", age=310, step=10**400, total=2**70, percent=float("inf"))
    a_run(parent, "scored", age=320).scores.parent.mkdir()
    (parent / "scored/evaluation/scores.json").write_text('{"kind": "of an older version"}')
    (parent / "adapter only/adapter").mkdir(parents=True)
    (parent / "adapter only/adapter/pytorch_lora_weights.safetensors").write_bytes(b"x" * 2000)
    (parent / "photographs").mkdir()
    (parent / "photographs/a.jpg").write_bytes(b"x")
    (parent / ".hidden").mkdir()
    (parent / "a file").touch()
    (parent / "nowhere").symlink_to(tmp_path / "gone")
    a_run(parent, "dead")
    there = Path.stat

    def no_answer(path: Path, **more: Any) -> os.stat_result:
        if path.is_relative_to(parent / "dead"):
            raise OSError(107, "Transport endpoint is not connected")
        return there(path, **more)

    monkeypatch.setattr(Path, "stat", no_answer)
    return parent


def test_every_odd_folder_is_listed_with_what_is_wrong_and_none_is_an_error(graveyard: Path) -> None:
    """C13."""
    found = runs.look(graveyard)
    states = {job.name: job.state for job in found.jobs}
    assert states == {
        "good": "finished", "cut": "cut off", "failed": "failed", "half": "unreadable", "list": "unreadable",
        "odd": "unreadable", "huge": "finished", "scored": "finished", "adapter only": "unreadable",
        "dead": "unreadable",
    }  # fmt: skip
    said = {job.name: " ".join(job.problems) for job in found.jobs}
    assert not said["good"] and not said["cut"]
    assert said["failed"] == "The GPU ran out of memory. Try rank 8."
    assert "run.json cannot be understood. Nothing of a training is kept" in said["half"]
    assert "run.json cannot be understood" in said["list"]
    assert "there is no run.json. Train under this name again, and it goes on." in said["adapter only"]
    assert "run.json lacks its state or its steps" in said["odd"] and "lacks" in said["huge"]
    assert "Write it again: lace-lora evaluate" in said["scored"]
    assert "dead cannot be read (Transport endpoint is not connected). If it lies on Drive, mount" in said["dead"]
    assert found.others == ("photographs",) and not found.trouble


def test_a_run_tells_progress_scores_copies_and_its_size(graveyard: Path) -> None:
    """C13."""
    good, cut = (next(job for job in runs.jobs(graveyard) if job.name == name) for name in ("good", "cut"))
    assert (good.percent, good.val_loss, good.best_step, good.style_match, good.copies) == (100, 0.0812, 8, 0.714, 1)
    files = [path for path in (graveyard / "good").rglob("*") if path.is_file()]
    assert good.size_bytes == sum(len(path.read_bytes()) for path in files) > 300
    assert (cut.percent, cut.eta_seconds, cut.val_loss, cut.copies) == (40, None, None, None)
    assert not good.is_under_way and not cut.is_under_way


def test_the_newest_change_comes_first_also_where_it_is_a_design(tmp_path: Path) -> None:
    """C13."""
    old, _ = a_run(tmp_path, "old", age=5000), a_run(tmp_path, "new", age=100)
    assert [job.name for job in runs.jobs(tmp_path)] == ["new", "old"]
    design = old.sheet("sheet").refined(0, "png")
    design.parent.mkdir(parents=True)
    design.touch()
    assert [job.name for job in runs.jobs(tmp_path)] == ["old", "new"]
    assert runs.jobs(tmp_path / "no such folder") == []


def test_only_a_living_process_is_under_way_and_its_time_left_runs_on(tmp_path: Path) -> None:
    """C12: run.json is written every few seconds, and its time left is as old as it is."""
    run = a_run(tmp_path, "lace", age=30, state="running", step=5, eta_seconds=90.0)
    with lock.lock(run.root, print):
        (now,) = runs.jobs(tmp_path)
        assert now.is_under_way and now.state == "running"
        assert now.eta_seconds == pytest.approx(60, abs=5)
    (after,) = runs.jobs(tmp_path)
    assert not after.is_under_way and after.state == "cut off" and after.eta_seconds is None


def test_a_run_of_which_designs_are_being_drawn_is_under_way(tmp_path: Path) -> None:
    """C13: by the lock of any part of a sheet."""
    run = a_run(tmp_path, "lace")
    sheet = run.sheet("sheet").root
    sheet.mkdir(parents=True)
    with lock.lock(sheet, print, name="drawing-2-of-4.lock"):
        assert [(job.state, job.is_under_way) for job in runs.jobs(tmp_path)] == [("drawing", True)]
    assert [(job.state, job.is_under_way) for job in runs.jobs(tmp_path)] == [("finished", False)]
    (run.root / lock.LOCK).write_text(json.dumps(dict.fromkeys(lock.Holder.__annotations__, "odd")))
    assert [job.is_under_way for job in runs.jobs(tmp_path)] == [False], "a lock that says nothing is none"


def test_a_folder_of_runs_that_does_not_answer_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C13: Drive that went away."""

    def dead(path: Any) -> Any:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(runs.os, "scandir", dead)
    found = runs.look(tmp_path)
    assert found.jobs == () and "mount Drive again" in found.trouble
    with pytest.raises(MachineError, match="cannot be read .Transport endpoint is not connected"):
        run_list.show(tmp_path)


def test_the_table_is_aligned_and_fits_its_columns_and_hides_what_nobody_has(graveyard: Path) -> None:
    """C13."""
    shutil.copytree(graveyard / "good", graveyard / ("a very long name of a run that somebody chose " + "x" * 18))
    lines = run_list.table(runs.look(graveyard), graveyard)
    assert all(len(line) <= 100 for line in lines)
    rows = [line for line in lines if re.match(r"\S", line)]
    assert rows[0].split() == ["run", "state", "progress", "val_loss", "style", "copies", "size", "changed"]
    end = rows[0].index("val_loss") + len("val_loss")
    of = {row.split("  ")[0].strip(): row for row in rows}
    assert of["good"][end - 6 : end] == "0.0812" and of["good"].endswith("1 min ago")
    assert "████████ 100%" in of["good"] and "███░░░░░  40%" in of["cut"]
    assert next(row for row in rows if row.startswith("a very long name")).split("  ")[0].endswith("…")
    assert "  ! The GPU ran out of memory. Try rank 8." in lines
    end_text = " ".join(lines[lines.index("") :])
    assert end_text.startswith(" 11 runs in") and end_text.endswith("Other folders there: photographs.")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40, "40 s"), (89, "89 s"), (600, "10 min"), (5399, "90 min"), (5400, "1 h 30 min"), (7200, "2 h")]
    + [(200_000, "2 days")],
)
def test_time_left_is_said_in_the_unit_that_fits(seconds: float, words: str) -> None:
    """C12."""
    assert run_list.duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9949, "9.9 kB"), (9960, "10 kB"), (999_600, "1.0 MB")]
    + [(312e6, "312 MB"), (4.24e9, "4.2 GB"), (2e12, "2.0 TB")],
)
def test_sizes_are_said_as_file_managers_do(number: float, words: str) -> None:
    """C13."""
    assert run_list.size(number) == words


@pytest.mark.parametrize(
    ("passed", "words"),
    [(-50, "just now"), (59, "just now"), (61, "1 min ago"), (7300, "2 h ago"), (90_000, "1 day ago")]
    + [(3 * 86_400, "3 days ago")],
)
def test_the_last_change_is_said_as_people_say_it(passed: float, words: str) -> None:
    """C13."""
    assert run_list.ago(time.time() - passed) == words
    assert run_list.ago(0) == "" and re.fullmatch(r"\d{4}-\d\d-\d\d", run_list.ago(86_400.0))


JOB = Job("lace", Path("lace"), state="running", step=1, total=4, eta_seconds=60, changed=1.0, size_bytes=1)


def looks(*jobs: Job | None) -> Callable[[], Listing]:
    """What is found at each look; then Ctrl-C."""

    def each() -> Iterator[Listing]:
        for job in jobs:
            yield Listing(trouble="Drive is away.") if job is None else Listing((job,))
        raise KeyboardInterrupt

    found = each()
    return lambda: next(found)


def test_watching_prints_only_what_is_new_where_no_terminal_is(tmp_path: Path) -> None:
    """C12: and ends cleanly with Ctrl-C."""
    out, waited = io.StringIO(), []
    further = replace(JOB, step=2, eta_seconds=40)
    only_time = replace(JOB, eta_seconds=59, changed=2.0, size_bytes=2)
    found = looks(JOB, only_time, further, None, None, further, replace(further, state="finished", step=4))
    run_list.keep_showing(found, "out", out=out, wait=waited.append)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("run ") and "1 run in out" in lines[3]
    said = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines[4:]]
    assert len(said) == 3 and all(line[2] == ":" for line in lines[4:])
    assert "50%" in said[0] and said[1] == "Drive is away." and "finished" in said[2] and "100%" in said[2]
    assert "\x1b" not in out.getvalue() and min(waited) >= run_list.EVERY_SECONDS and len(waited) == 7


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_watching_on_a_terminal_writes_over_the_table_and_never_clears_the_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C12: clearing flickers. The cursor is hidden meanwhile and given back."""
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    run_list.keep_showing(looks(JOB, replace(JOB, step=2)), "out", out=out, wait=lambda seconds: None)
    text = out.getvalue()
    assert "25%" in text and "50%" in text and "Ctrl-C ends the watching" in text
    assert "\x1b[2J" not in text and "\x1b[1A" in text
    assert text.index("\x1b[?25l") < text.index("25%") and text.rstrip().endswith("\x1b[?25h")


def test_watching_ends_when_nobody_reads_any_more() -> None:
    """C12: `lace-lora runs --watch | head`."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    run_list.keep_showing(looks(JOB), "out", out=Closed(), wait=lambda seconds: None)


def test_a_file_that_knows_no_blocks_gets_plain_signs() -> None:
    """C13: what Windows writes to a file."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict")
    run_list.keep_showing(looks(replace(JOB, step=2)), "out", out=out, wait=lambda seconds: None)
    assert b"####....  50%" in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_the_command_lists_watches_and_refuses_what_does_not_go_together(
    graveyard: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C13."""
    line = ["runs", "--preset", "none", "--lora_output_dir", str(graveyard)]
    assert main.run(line) == 0
    assert "good" in capsys.readouterr().out
    assert main.run([*line, "good"]) == 0
    assert "cut off" not in capsys.readouterr().out

    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_list.keep_showing, "__kwdefaults__", {"out": None, "wait": ctrl_c})
    assert main.run([*line, "--watch"]) == 0
    assert "good" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="one of --watch and --clean"):
        run_list.show(graveyard, watch=True, clean=True)
    with pytest.raises(SettingsError, match="Add --clean"):
        run_list.show(graveyard, yes=True)
    with pytest.raises(RunError, match="No run called 'goood' .*did you mean good"):
        run_list.show(graveyard, ["goood"])
