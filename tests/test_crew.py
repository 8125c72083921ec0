"""Doing a sweep: several at a time, resumable, one that fails stops no other, here and on Slurm (L12, P17, P27)."""

import csv
import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lace_lora import batch_command, combination, crew, lock, main
from lace_lora.combination import Record, Task, Work
from lace_lora.errors import MachineError, NotebookError, SettingsError
from lace_lora.sweep import Slurm
from tests.test_batch import LOAD, write

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)

# In place of a training: writes what a run leaves, fails for some ranks, and when asked to stop saves and says so.
STAND_IN = """
import json, os, pathlib, signal, sys, time
words = dict(word[2:].split("=", 1) for word in sys.argv[2:])
rank, here = int(words["rank"]), pathlib.Path("out") / words["run_name"]
here.mkdir(parents=True, exist_ok=True)
with open(here / "times.txt", "a") as file:
    print(sys.argv[1], os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), file=file)
def stop(*_):
    (here / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
(here / "begun").touch()
if rank == 13:
    sys.exit("a banner\\nThe disk is full. Make room.")
if rank == 14:
    os.kill(os.getpid(), signal.SIGKILL)
while rank == 15 and not (here / "saved").exists():
    time.sleep(0.01)
facts = {"id": "a", "state": "finished", "step": rank, "total": 16, "settings": {}}
(here / "run.json").write_text(json.dumps(facts))
(here / "best.json").write_text(json.dumps({"step": 1, "val_loss": rank / 100}))
print("learnt with", rank)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(combination, "BOOT", STAND_IN)
    monkeypatch.setattr(crew, "LOOK_SECONDS", 0.02)


def a_sweep(ranks: list[int], jobs: int = 2, verbs: tuple[str, ...] = ("train", "generate"), **more: Any) -> Path:
    Path("try.yaml").write_text(json.dumps({"grid": {"rank": ranks}, **more.pop("parts", {})}))
    shared = {"preset": "none", "lora_output_dir": "out"}
    return batch_command.run_sweep(Path("try.yaml"), shared, Path("done"), verbs=verbs, jobs=jobs, **more)


def times(rank: int) -> list[list[str]]:
    """Each start of a command for a rank: verb, GPU, threads."""
    path = Path(f"out/try-rank-{rank}/times.txt")
    return [line.split() for line in path.read_text().splitlines()] if path.is_file() else []


def states() -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["state"] for path in Path("done").glob("*/combination.json")}


def a_task(rank: int, verbs: tuple[str, ...] = ("train",)) -> Task:
    name = f"try-rank-{rank}"
    given = {"preset": "none", "lora_output_dir": "out", "rank": rank, "run_name": name}
    return Task(name, given, verbs, Path("done") / name)


def quietly(_: str) -> None:
    pass


def test_every_combination_is_done_once_and_the_table_says_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """L12, P17: the same line again runs nothing."""
    table = a_sweep([4, 8, 12])
    assert [[verb for verb, _, _ in times(rank)] for rank in (4, 8, 12)] == [["train", "generate"]] * 3
    assert table == Path("done/results.md")
    lines = table.read_text().splitlines()
    assert lines[0] == "| rank | state | step | val_loss | seconds | folder |"
    assert [cell.strip() for cell in lines[3].split("|")][1:5] == ["8", "finished", "8/16", "0.0800"]
    rows = list(csv.DictReader(Path("done/results.csv").open()))
    assert [(row["rank"], row["val_loss"], row["error"]) for row in rows] == [(r, v, "") for r, v in zip(
        ("4", "8", "12"), ("0.04", "0.08", "0.12"), strict=True)]  # fmt: skip
    said = capsys.readouterr().out
    assert "3 combinations of rank" in said and "2/3  try-rank-8 is finished, " in said and "0.1200" in said
    assert "learnt with 8" in Path("done/try-rank-8/log.txt").read_text()
    a_sweep([4, 8, 12])
    assert len(times(4)) == 2 and "1/3  try-rank-4 is finished already" in capsys.readouterr().out


def test_one_that_fails_or_is_killed_stops_no_other_and_only_it_is_done_again() -> None:
    """L12, P17: with its sentence, at the end, and exit code 1."""
    with pytest.raises(NotebookError) as error:
        a_sweep([13, 14, 4])
    lines = str(error.value).splitlines()
    assert lines[0] == "2 of 3 combinations failed:"
    assert lines[1] == "try-rank-13: train: The disk is full. Make room."
    assert lines[2].startswith("try-rank-14: train: it was killed (SIGKILL), most often because memory ran out.")
    assert states() == {"try-rank-13": "failed", "try-rank-14": "failed", "try-rank-4": "finished"}
    assert [verb for verb, _, _ in times(13)] == ["train"], "what would follow is not begun"
    text = Path("done/results.md").read_text()
    assert "- **try-rank-13**: train: The disk is full. Make room." in text
    with pytest.raises(NotebookError):
        a_sweep([13, 14, 4])
    assert len(times(13)) == 2 and len(times(4)) == 2


def test_other_settings_or_a_run_that_is_gone_are_done_anew() -> None:
    """L12: also where config.yaml changed in between."""
    a_sweep([4])
    Path("config.yaml").write_text("max_train_steps: 7\n")
    a_sweep([4])
    assert len(times(4)) == 4
    a_sweep([4])
    assert len(times(4)) == 4
    Path("out/try-rank-4/run.json").unlink()
    a_sweep([4])
    assert len(times(4)) == 6


def after(path: str, do: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a file is there."""

    def wait() -> None:
        until = time.monotonic() + 30
        while not Path(path).exists() and time.monotonic() < until:
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_ctrl_c_saves_what_runs_begins_nothing_new_and_the_next_call_goes_on() -> None:
    """L12, L14."""
    thread = after("out/try-rank-15/begun", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        a_sweep([15, 4, 8], jobs=1)
    thread.join()
    assert Path("out/try-rank-15/saved").exists() and states() == {"try-rank-15": "stopped"} and not times(4)
    text = Path("done/results.md").read_text()
    assert "| 15 | stopped |" in text and "| 4 | waiting |" in text
    a_sweep([15, 4, 8], jobs=1)
    assert set(states().values()) == {"finished"} and len(times(15)) == 3


def test_a_second_ctrl_c_ends_everything_at_once() -> None:
    """L12: also a process that takes no notice of the first."""
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.SIGINT = signal.SIGUSR1\n"
    combination.BOOT = deaf + STAND_IN  # monkeypatch puts it back

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = after("out/try-rank-15/begun", twice)
    with pytest.raises(KeyboardInterrupt):
        a_sweep([15], jobs=1)
    thread.join()
    assert not Path("out/try-rank-15/saved").exists()


def test_processes_share_the_gpus_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """P17: each of several processes has a GPU of its own; one alone has all."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    tasks = [a_task(rank) for rank in (1, 2, 3, 4)]
    crew.run_here(tasks, 2, quietly, ["5", "7"])
    assert {times(rank)[0][1] for rank in (1, 2)} == {"5", "7"}
    assert {times(rank)[0][2] for rank in (1, 2, 3, 4)} == {"4"}
    crew.run_here([a_task(6)], 1, quietly, ["5", "7"])
    assert times(6) == [["train", "None", "None"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    assert batch_command._gpus(2) == ["GPU-a", "GPU-b"] and batch_command._gpus(3) == ["0", "1", "2"]


def test_two_callers_do_not_do_the_same_at_once() -> None:
    """L12."""
    task = a_task(4)
    task.output.mkdir(parents=True)
    with lock.lock(task.output, quietly, combination.LOCK):
        (record,) = crew.run_here([task], 1, quietly)
    assert record.state == "failed" and "is being worked on already" in record.sentence and not times(4)


def test_a_record_that_is_damaged_counts_for_nothing() -> None:
    """L12."""
    a_sweep([4])
    path = Path("done/try-rank-4/combination.json")
    for text in ("{", "[]", '{"state": "finished"}'):
        path.write_text(text)
        assert Record.read(a_task(4)).state == "waiting" and not combination.is_finished(a_task(4))


def test_values_reach_the_command_whatever_they_hold() -> None:
    """L12: by the line's own reader."""
    import typer

    odd = {
        "rank": 4, "alpha": None, "use_dora": True, "lora_scale": -1.0, "negative_prompt": "-x, a=b",
        "prompts": ["a, b", "--c"], "image_types": [".jpg", ".png"],
    }  # fmt: skip
    task = Task("a", odd, ("train",), Path("done/a"))
    group: Any = typer.main.get_command(main.app)
    words = main.rewritten(task.lines()[0], main._commands())
    taken = group.commands["train"].make_context("train", words[1:]).params
    shown = {name: taken[name] for name in odd}
    assert {name: main.options.as_text(name, value) for name, value in shown.items()} == {
        "rank": "4", "alpha": "", "use_dora": "true", "lora_scale": "-1.0", "negative_prompt": "-x, a=b",
        "prompts": "a, b\n--c", "image_types": ".jpg,.png",
    }  # fmt: skip
    line = Task("a", odd, (), Path("done/a")).lines()[0]
    assert line[:3] == ["notebooks", "--output", "done/a"] and "prompts=a, b\n--c" in line


def test_switches_of_a_sweep_need_a_sweep_and_a_folder_that_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    """L12."""
    for more in (["--jobs", "2"], ["--slurm"], ["--verbs", "train"]):
        assert main.run(["notebooks", "--output", "done", *more]) == 1
        assert "Add --sweep with its file." in capsys.readouterr().err
    Path("file").touch()
    Path("try.yaml").write_text("grid: {rank: [1, 2]}")
    line = ["notebooks", "--output", "file/x", "--sweep", "try.yaml", "--verbs", "train"]
    assert main.run(line) == 1 and "cannot be made" in capsys.readouterr().err


# -- notebooks, through and through --


def test_a_sweep_of_notebooks_keeps_each_and_fails_with_cell_and_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """L12, P17: by the command itself; the other combination goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combination, "BOOT", REAL)
        notebook()
        Path("try.yaml").write_text("grid: {rank: [9, 4]}")
        assert main.run(["notebooks", "--output", "done", "--sweep", "try.yaml", "--jobs", "2"]) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert err[0] == "1 of 2 combinations failed:"
    assert err[1].startswith("try-rank-9: 01_first.ipynb, cell “Learn”: The disk is full. Make room. (see done/try-")
    assert Path("try-rank-4").read_text() == "int 4" and not Path("try-rank-9").exists()
    assert Path("done/try-rank-4/01_first.ipynb").is_file() and Path("done/try-rank-9/01_first.ipynb").is_file()
    assert main.run(["notebooks", "--output", "done", "--sweep", "try.yaml", "-p", "rank", "3"]) == 1
    assert "rank varies, and is given beside the file too" in capsys.readouterr().err


REAL = combination.BOOT


def notebook() -> None:
    """One that keeps what it was given, and refuses ranks above 8."""
    code = (
        f"#@title Learn\n{LOAD}\nfrom lace_lora.errors import RunError\nif rank > 8:"
        "\n    raise RunError('The disk is full. Make room.')"
        "\nfrom pathlib import Path\nPath(run_name).write_text(f'{type(rank).__name__} {rank}')"
    )
    write(Path("notebooks/01_first.ipynb"), "rank = None\nrun_name = None", code)


# -- Slurm --


def test_without_submitit_or_slurm_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """P17."""
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(SettingsError, match="submitit is not installed. Type: pip install 'lace-lora.slurm.'"):
        crew.submit([a_task(4)], Slurm(), Path("done/slurm"), quietly)
    monkeypatch.undo()
    pytest.importorskip("submitit")
    monkeypatch.setattr(crew.shutil, "which", lambda name: None)
    with pytest.raises(MachineError, match="There is no Slurm on this machine"):
        crew.submit([a_task(4)], Slurm(), Path("done/slurm"), quietly)


def test_submitit_does_the_same_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    """P17: submitit's executor for trying things out."""
    pytest.importorskip("submitit")
    with pytest.raises(NotebookError, match="try-rank-13: train: The disk is full"):
        a_sweep([13, 4], slurm=True, parts={"slurm": {"cluster": "debug"}})
    assert states() == {"try-rank-13": "failed", "try-rank-4": "finished"}
    with pytest.raises(NotebookError):
        a_sweep([13, 4], slurm=True, parts={"slurm": {"cluster": "debug"}})
    assert len(times(13)) == 2 and len(times(4)) == 2
    assert "2/2  try-rank-4 is finished already" in capsys.readouterr().out


def test_submitit_does_it_in_a_process_of_its_own() -> None:
    """P17: what is sent is read back there; the command itself refuses the setting, and its sentence comes back."""
    pytest.importorskip("submitit")
    given = {"preset": "none", "lora_output_dir": "out", "resolution": "auto", "images_dir": "no folder"}
    task = Task("a", given | {"run_name": "a"}, ("check",), Path("done/a"))
    said: list[str] = []
    (record,) = crew.submit([task], Slurm(cluster="local"), Path("done/slurm"), said.append)
    assert record.state == "failed" and record.sentence.startswith("check: ") and "no folder" in record.sentence
    assert said[0].startswith("1/1  a is job ") and said[-1].startswith("1/1  a failed: check: ")


def test_a_job_that_died_without_a_word_is_a_failure() -> None:
    """P17: killed for its memory, say."""
    pytest.importorskip("submitit")
    task = a_task(4)

    class Gone:
        job_id = "7"
        paths = type("Paths", (), {"stderr": Path("done/slurm/7.err")})

        def done(self) -> bool:
            return True

    Record(task.name, state="running").write(task)
    crew._await({0: Gone()}, [task], quietly)
    assert Record.read(task).sentence == "its job ended without a word; what it said is in done/slurm/7.err."


FAKE = {
    "sbatch": '#!/bin/sh\ncat "$1" > script.sh; echo "$@" >> calls.txt; echo "Submitted batch job 4711"\n',
    "srun": "#!/bin/sh\nexit 0\n",
    "sacct": "#!/bin/sh\nprintf 'JobID|State|NodeList\\n4711_[0-1]|PENDING|None\\n'\n",
}


def test_slurm_is_asked_once_for_all_and_not_again_for_what_waits_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P17, P27: by a stand-in of Slurm's commands that keeps what it was given."""
    pytest.importorskip("submitit")
    for name, text in FAKE.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(crew.time, "sleep", ctrl_c)
    asked = Slurm(partition="gpu", minutes=90, gpus=1, cpus=6, memory_gb=24, at_once=1, setup=("module load cuda",))
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            crew.submit([a_task(4), a_task(8)], asked, Path("done/slurm"), said.append)
    assert len(Path("calls.txt").read_text().splitlines()) == 1
    assert said[:2] == ["1/2  try-rank-4 is job 4711_0", "2/2  try-rank-8 is job 4711_1"]
    assert "1/2  try-rank-4 is job 4711_0, sent before" in said and "The jobs go on" in said[-1]
    script = Path("script.sh").read_text()
    for line in (
        "--partition=gpu", "--time=90", "--gpus-per-node=1", "--cpus-per-task=6", "--mem=24GB", "--array=0-1%1",
        "--ntasks-per-node=1", "--job-name=lace-lora",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, line
    assert "module load cuda\nexport PYTHONPATH=" in script


def test_when_the_time_of_a_job_ends_it_saves_and_is_sent_again() -> None:
    """P17, L14: what submitit asks of it shortly before."""
    pytest.importorskip("submitit")
    work = Work(a_task(15))
    ended: list[Record] = []
    thread = threading.Thread(target=lambda: ended.append(work()))
    thread.start()
    after("out/try-rank-15/begun", lambda: None).join()
    again = work.checkpoint()
    thread.join(10)
    assert ended[0].state == "stopped" and Path("out/try-rank-15/saved").exists()
    assert again.function.task == work.task and again.function().state == "finished"
