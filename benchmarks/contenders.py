"""Who is measured: a training loop in a process of its own, which makes a step when it is asked and says what it took.

So all of them stay loaded, and their steps can be measured in turns: what slows the machine down slows all alike.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "nf4": "bf16"}  # by dtype: mixed_precision


@dataclass(frozen=True)
class Task:
    """What all of them train: the same model folder, pictures, size and LoRA."""

    model: str
    pictures: str
    work: str  # a folder for what they write
    side_px: int
    rank: int = 16
    targets: str = "attention"
    device: str = "cpu"
    threads: int = 1
    script: str = ""  # diffusers' train_text_to_image_lora_sdxl.py
    extra_packages: str = ""  # a folder with the packages that only the script needs


@dataclass(frozen=True)
class Contender:
    """One way to make a step."""

    loop: str  # of benchmarks.loops.LOOPS, or diffusers
    dtype: str  # of PRECISIONS; nf4 computes in bf16
    batch: int
    checkpointing: str = "none"
    compile: str = "none"

    @property
    def name(self) -> str:
        """For tables and file names."""
        more = [f"checkpointing {self.checkpointing}"] if self.checkpointing != "none" else []
        more += [f"compile {self.compile}"] if self.compile != "none" else []
        return ", ".join([self.loop, self.dtype, f"batch {self.batch}", *more])


class Finished(BaseException):
    """Raised in a loop that nobody asks for another step; no `except Exception` of a script catches it."""


@dataclass
class Pace:
    """What a loop calls after each step: ends one measurement, waits to be asked, begins the next."""

    connection: Connection
    steps_left: int = 1  # the first step is not measured: it makes the optimizer's state
    steps: int = 1
    read: Any = None

    def step_done(self) -> None:
        """Raises Finished where no further step is asked for."""
        from benchmarks.meters import METERS

        self.steps_left -= 1
        if self.steps_left:
            return
        taken = self.read() if self.read else {}
        self.connection.send({name: value / self._share(name) for name, value in taken.items()})
        asked = self.connection.recv()
        if asked is None:
            raise Finished
        meter, self.steps = asked
        self.steps_left = self.steps
        self.read = METERS[meter]()

    def _share(self, name: str) -> int:
        return self.steps if name in ("cpu_s", "clock_s", "gflop") else 1


@dataclass
class Runner:
    """A contender that was started."""

    contender: Contender
    connection: Connection
    process: Any
    log: Path

    def ask(self, meter: str, steps: int = 1) -> dict[str, float]:
        """Let it make steps under this meter; returns what one of them took."""
        with suppress(BrokenPipeError):  # it ended; what its log says is told below
            self.connection.send((meter, steps))
        return self._answer()

    def _answer(self) -> dict[str, float]:
        try:
            found: dict[str, float] = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            said = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
            last = "\n".join(said.splitlines()[-12:])
            raise RuntimeError(
                f"{self.contender.name} ended before its time. The end of {self.log}:\n{last}"
            ) from error
        return found


@contextmanager
def started(task: Task, contender: Contender) -> Iterator[Runner]:
    """The contender, loaded and with its first step made; ended afterwards."""
    context = multiprocessing.get_context("spawn")  # nothing of torch or of another contender is inherited
    ours, theirs = context.Pipe()
    log = Path(task.work) / f"{contender.name.replace(', ', '_').replace(' ', '_')}.log"
    process = context.Process(target=work, args=(task, contender, theirs, str(log)), daemon=True)
    process.start()
    theirs.close()
    runner = Runner(contender, ours, process, log)
    try:
        runner._answer()
        yield runner
    finally:
        with suppress(OSError):  # where it ended by itself
            ours.send(None)
        process.join(timeout=20)
        process.kill()


def work(task: Task, contender: Contender, connection: Connection, log: str) -> None:
    """The process of a contender; what it prints goes to `log`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    import torch

    if task.device == "cpu":
        torch.set_num_threads(task.threads)
    pace = Pace(connection)
    try:
        if contender.loop == "diffusers":
            from benchmarks import diffusers_script

            diffusers_script.run(task, contender, pace)
        else:
            from benchmarks import loops

            for _ in loops.LOOPS[contender.loop](task, contender):
                pace.step_done()
    except Finished:
        pass
