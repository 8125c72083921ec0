"""Clearing away what runs no longer need: asked for, never of a run under way, safe against cuts (C13)."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from lace_lora import checkpoint, leftovers, lock, main, run_list, runs
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation
from tests.test_runs import a_run

CHECKPOINTS = {2, 4, 6, 8, 10}


def said_nothing(_: str) -> None:
    pass


@pytest.fixture
def run(tmp_path: Path, made_run: Path) -> RunFolder:
    """A finished run with all that can be left over, and all that must stay."""
    run = RunFolder(tmp_path / "out/lace")
    shutil.copytree(made_run, run.root)
    a_run(tmp_path / "out", "lace", age=10)
    for step in CHECKPOINTS:
        checkpoint.save_folder(run.checkpoint(step), lambda folder: folder.joinpath("lora").write_bytes(b"x" * 1000))
    checkpoint.write_json(run.best, {"step": 4, "val_loss": 0.1})
    run.checkpoints.joinpath("step-000007.damaged").mkdir()
    Evaluation("lace", "now", choice={"step": 6, "finalists": [6, 2], "advice": ""}).write(run)
    run.class_images.mkdir()
    run.class_images.joinpath("class_0000.png").write_bytes(b"c" * 500)
    a_sheet(run, "finished", rows=2)
    a_sheet(run, "cut", rows=1)
    a_sheet(run, "forgotten", rows=1, age=8 * 86_400)
    run.report.write_text("a report")
    half = run.root / f"log.jsonl.{checkpoint.this_machine()}-999999999-abcdef.partial"
    half.write_bytes(b"h" * 100)
    mine = checkpoint.partial_of(run.root / "config.yaml")
    mine.write_bytes(b"being written")
    return run


def a_sheet(run: RunFolder, name: str, rows: int, age: float = 0.0) -> None:
    """A sheet of two pictures with latents, of which `rows` are finished."""
    sheet = run.sheet(name)
    checkpoint.write_json(sheet.request, {"digest": "d", "pictures": 2})
    for number in range(rows):
        sheet.refined(number, "png").write_bytes(b"png")
        checkpoint.append_line(
            sheet.manifest, json.dumps({"index": number, "refined": f"refined_output_{number:03d}.png"})
        )
    sheet.latents.mkdir()
    (sheet.latents / "0.safetensors").write_bytes(b"l" * 200)
    os.utime(sheet.latents / "0.safetensors", (time.time() - age,) * 2)


def found_in(run: RunFolder) -> dict[str, set[str]]:
    found, notes = leftovers.find(runs.jobs(run.root.parent))
    assert not notes
    by_kind: dict[str, set[str]] = {}
    for one in found:
        by_kind.setdefault(one.kind, set()).add(one.name)
    return by_kind


def files_of(run: RunFolder) -> set[str]:
    return {path.relative_to(run.root).as_posix() for path in run.root.rglob("*") if path.is_file()}


def test_what_can_go_is_all_that_nothing_needs_any_more(run: RunFolder) -> None:
    """C13: the last, the best and the advised checkpoint stay, and what a sheet that was cut off goes on from."""
    assert found_in(run) == {
        leftovers.CHECKPOINTS: {f"checkpoints/{name}" for name in ("step-000008", "step-000007.damaged")},
        leftovers.CLASS_PICTURES: {"class_images"},
        leftovers.HALF_MADE: {"images/finished/latents", "images/forgotten/latents"},
        leftovers.HALF_WRITTEN: {next(path.name for path in run.root.glob("log.jsonl.*.partial"))},
    }


def test_deleting_takes_exactly_what_was_listed(run: RunFolder) -> None:
    """C13: adapter, designs, report, evaluation and the files of living processes stay as they are."""
    before, (found, _) = files_of(run), leftovers.find(runs.jobs(run.root.parent))
    inside = {
        path.relative_to(run.root).as_posix()
        for one in found
        for path in ([one.path] if one.path.is_file() else one.path.rglob("*"))
        if path.is_file()
    }
    freed, problems = leftovers.delete(found, said_nothing)
    assert files_of(run) == before - inside and len(inside) == 6
    assert problems == [] and freed == sum(one.size_bytes for one in found) > 1900
    assert {checkpoint.number_in(path.name) for path in checkpoint.numbered(run.checkpoints)} == {2, 4, 6, 10}
    assert leftovers.find(runs.jobs(run.root.parent)) == ([], [])


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "stopped", "step": 8},
        {"state": "running"},
        {"state": "failed"},
        {"step": 8},
        {"state": "finished", "total": 0},
    ],
)
def test_checkpoints_and_class_pictures_of_a_run_that_is_not_finished_stay(
    run: RunFolder, facts: dict[str, Any]
) -> None:
    """C13, L14: it goes on from them."""
    checkpoint.write_json(run.record, json.loads(run.record.read_text()) | facts)
    assert set(found_in(run)) == {leftovers.HALF_MADE, leftovers.HALF_WRITTEN}


def test_an_early_stop_is_an_end_and_a_damaged_adapter_is_none(run: RunFolder) -> None:
    """C13: a finished run whose adapter is damaged is mended from its checkpoints."""
    facts = json.loads(run.record.read_text())
    checkpoint.write_json(run.record, facts | {"step": 8, "stopped_early_at": 8})
    assert leftovers.CHECKPOINTS in found_in(run)
    data = bytearray(run.adapter_weights.read_bytes())
    data[-1] ^= 1
    run.adapter_weights.write_bytes(bytes(data))
    assert leftovers.CHECKPOINTS not in found_in(run)


def test_the_newest_checkpoint_that_is_whole_stays_where_the_last_is_damaged(run: RunFolder) -> None:
    """C13, P19."""
    (run.checkpoint(10) / "lora").write_bytes(b"y")
    assert "checkpoints/step-000008" not in found_in(run)[leftovers.CHECKPOINTS]


@pytest.mark.parametrize("where", ["", "images/cut"])
def test_nothing_is_touched_in_a_run_under_way(run: RunFolder, where: str) -> None:
    """C13: neither while somebody trains nor while somebody draws."""
    name = "drawing-1-of-2.lock" if where else lock.LOCK
    found, _ = leftovers.find(runs.jobs(run.root.parent))
    with lock.lock(run.root / where, said_nothing, name):
        before = files_of(run)
        assert leftovers.find(runs.jobs(run.root.parent)) == ([], ["lace is left alone: somebody is at work in it."])
        freed, problems = leftovers.delete([one for one in found if one.kind != leftovers.HALF_WRITTEN], said_nothing)
        assert freed == 0 and len(problems) == 1 and files_of(run) >= {name for name in before if "partial" not in name}


def test_what_came_to_be_needed_meanwhile_stays(run: RunFolder) -> None:
    """C13: somebody trained longer between the list and the answer."""
    found, _ = leftovers.find(runs.jobs(run.root.parent))
    checkpoint.write_json(run.record, json.loads(run.record.read_text()) | {"state": "stopped", "total": 20})
    _, problems = leftovers.delete(found, said_nothing)
    assert len(problems) == 3 and "has come to be needed" in problems[0]
    assert {checkpoint.number_in(path.name) for path in checkpoint.numbered(run.checkpoints)} == CHECKPOINTS
    assert run.class_images.is_dir() and not run.sheet("finished").latents.exists()


def test_a_cut_in_the_middle_leaves_each_folder_whole_or_gone(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """C13: the power goes while files of a checkpoint are being deleted."""
    found, _ = leftovers.find(runs.jobs(run.root.parent))

    def cut(path: Path, **_: Any) -> None:
        next(iter(path.iterdir())).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        leftovers.delete([one for one in found if one.name == "checkpoints/step-000008"], said_nothing)
    monkeypatch.undo()
    kept = checkpoint.numbered(run.checkpoints)
    assert all(checkpoint.problem_of(path) is None for path in kept)
    assert {checkpoint.number_in(path.name) for path in kept} == CHECKPOINTS - {8}


def test_a_disk_that_refuses_is_said_and_the_rest_goes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """C13."""
    found, _ = leftovers.find(runs.jobs(run.root.parent))
    delete = checkpoint.delete

    def refuse(path: Path) -> None:
        if path.name == "class_images":
            raise PermissionError(13, "Permission denied")
        delete(path)

    monkeypatch.setattr(checkpoint, "delete", refuse)
    _, problems = leftovers.delete(found, said_nothing)
    assert len(problems) == 1 and "class_images could not be deleted (Permission denied)" in problems[0]
    assert run.class_images.is_dir() and not run.checkpoint(8).exists()


def test_it_asks_and_only_a_yes_deletes(run: RunFolder) -> None:
    """C13."""
    said: list[str] = []
    jobs, before = runs.jobs(run.root.parent), files_of(run)
    for answer in ("", "n", "no", "maybe"):
        run_list.clear(jobs, say=said.append, ask=lambda question, answer=answer: answer)  # type: ignore[misc]
    assert files_of(run) == before and said[-1] == "Nothing was deleted."
    text = "\n".join(said)
    assert "   1.1 kB  lace/checkpoints/step-000008" in text and "    500 B  lace/class_images" in text
    assert "checkpoints: of finished runs all but the last, the best" in text
    asked: list[str] = []
    run_list.clear(jobs, say=said.append, ask=lambda question: asked.append(question) or "y")  # type: ignore[func-returns-value]
    assert "Adapters, designs and reports stay. [y/N]" in asked[0] and said[-1].endswith("kB freed.")
    assert not run.class_images.exists()
    run_list.clear(runs.jobs(run.root.parent), say=said.append)
    assert said[-1] == "Nothing to clear away."


def test_a_script_deletes_only_with_yes(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """C13: where no terminal is nobody is asked, and nothing is waited for."""
    line = ["runs", "--preset", "none", "--lora_output_dir", str(run.root.parent), "--clean"]
    before = files_of(run)
    assert main.run(line) == 1
    out, err = capsys.readouterr()
    assert "step-000008" in out and "nobody is here to be asked. Add --yes" in err and files_of(run) == before
    assert main.run([*line, "--yes"]) == 0
    assert "freed." in capsys.readouterr().out and not run.checkpoint(8).exists()
    with pytest.raises(RunError, match="No run called 'laec'"):
        run_list.show(run.root.parent, ["laec"], clean=True)
