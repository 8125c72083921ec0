"""Work that is killed: a process that trains or draws in children of its own, kills them, and compares what is left.

Real processes are killed with SIGKILL: at random instants, and at chosen calls of the file system while they write. One
warmed-up process starts them by doubling itself, so that a kill costs a second and no imports.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, config
from lace_lora.run_folder import RunFolder
from tests.training import CLOCK

ROOT = Path(__file__).parent.parent
CALLS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link")

Values = dict[str, Any]


def driven(
    values: Values,
    folder: Path,
    *,
    rounds: int,
    seed: int = 0,
    fractions: tuple[float, ...] = (),
    made_run: Path | None = None,
) -> dict[str, Any]:
    """Work in `folder`: once unbroken, and again and again with kills; returns what the killing process counted.

    rounds     runs that are killed at random instants, once or more often, until they get through
    fractions  for each a run that is killed once, at that share of all its calls of the file system
    made_run   a run that is trained: then a sheet is drawn in copies of it; None trains
    """
    job = {"values": values, "folder": str(folder), "rounds": rounds, "seed": seed, "fractions": fractions}
    job["made_run"] = str(made_run) if made_run else None
    line = [sys.executable, "-m", "tests.killing", json.dumps(job)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    counted: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return counted


def assert_trained_alike(whole: RunFolder, broken: RunFolder) -> None:
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


def _log(run: RunFolder) -> list[dict[str, Any]]:
    rows = checkpoint.read_json_lines(run.log)
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_drawn_alike(whole: RunFolder, broken: RunFolder) -> None:
    """Byte for byte: every file of every sheet, and none more."""
    mine, theirs = (
        {path.relative_to(run.sheets): path.read_bytes() for path in run.sheets.rglob("*") if path.is_file()}
        for run in (whole, broken)
    )
    differing = sorted(map(str, mine.keys() ^ theirs.keys()))
    assert differing == [], f"{differing} are files of one and not of the other: {broken.root}"
    assert [str(name) for name in mine if mine[name] != theirs[name]] == []


# -- the process that starts work and kills it --


def main(job: dict[str, Any]) -> None:
    """Work unbroken, then with kills; compare after each run; print how many kills there were."""
    folder, work = Path(job["folder"]), _Work(job["values"], job["made_run"])
    work.warm_up()
    began = time.monotonic()
    calls = work.start(folder / "whole", count=folder / "calls")
    seconds = time.monotonic() - began
    kills, rounds, number = 0, 0, 0
    draw = random.Random(job["seed"])
    while rounds < job["rounds"]:
        before, number = kills, number + 1
        while work.start(folder / f"round{number}", seconds=draw.uniform(0.0, seconds)) is None:
            kills += 1
        work.compare(folder / "whole", folder / f"round{number}")
        rounds += kills > before  # one that got through at once was not killed
    for number, fraction in enumerate(job["fractions"]):
        out = folder / f"call{number}"
        kills += work.start(out, call=1 + int(fraction * ((calls or 1) - 1))) is None
        work.start(out)
        work.compare(folder / "whole", out)
    print(json.dumps({"kills": kills, "calls": calls, "seconds": seconds}))


class _Work:
    """A training, or the drawing of a sheet in copies of a run that is trained."""

    def __init__(self, values: Values, made_run: str | None) -> None:
        self.values, self.made_run = values, made_run

    def settings(self, out: Path) -> config.Config:
        return config.load(**self.values | {"lora_output_dir": str(out)})

    def run_in(self, out: Path) -> RunFolder:
        return RunFolder.of(self.settings(out))

    def warm_up(self) -> None:
        """Import all that the work imports, without computing: torch's threads do not survive the doubling."""
        import torch

        torch.set_num_threads(1)
        from lace_lora import inference, parts, train

        assert train and inference
        if self.made_run is None:
            parts.assemble(config.load(**self.values), torch.float32, "cpu", say=lambda _: None)

    def compare(self, whole: Path, broken: Path) -> None:
        (assert_drawn_alike if self.made_run else assert_trained_alike)(self.run_in(whole), self.run_in(broken))

    def start(
        self, out: Path, *, seconds: float | None = None, call: int | None = None, count: Path | None = None
    ) -> int | None:
        """Work in a child; returns its calls of the file system when it got through, None when it was killed.

        seconds  until it is killed from outside; None leaves it alone
        call     kill it at that call of the file system that names the run's folder or its copy
        count    a file in which the child leaves how many calls it made
        """
        if self.made_run and not out.exists():
            shutil.copytree(self.made_run, self.run_in(out).root)
        finished = self.finished_in(out)
        if not (child := os.fork()):
            self.be_done(out, call, count)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)  # one that ended waits for its parent: the number is its own
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        after = self.finished_in(out)
        assert {name: after.get(name) for name in finished} == finished, "something finished was made twice"
        if status:
            return None
        return int(count.read_text()) if count else 0

    def finished_in(self, out: Path) -> dict[str, int]:
        """When each finished design was written: those that have a row."""
        if not self.made_run:
            return {}
        files = {}
        for manifest in self.run_in(out).sheets.glob("*/images*.jsonl"):
            for row in checkpoint.read_json_lines(manifest):
                for path in (manifest.parent / row["base"], manifest.parent / row["refined"]):
                    files[str(path)] = path.stat().st_mtime_ns
        return files

    def be_done(self, out: Path, call: int | None, count: Path | None) -> None:
        """What a child does; it never returns."""
        from lace_lora import inference, train

        calls = 0

        def see(event: str, words: Any) -> None:
            nonlocal calls
            if event in CALLS and any(str(one) in str(words) for one in (out, "/runs/", "/sheets/")):
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(see)
        status = 1
        try:
            said: list[str] = []
            work: Any = inference.run if self.made_run else train.run
            made = work(self.settings(out), say=said.append)
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
