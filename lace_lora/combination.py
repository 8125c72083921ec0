"""One combination of a sweep: its command lines, running them one after the other, and what is kept of how it went.

Each verb is a process of its own, so that a combination that fails or is killed takes no other with it.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from lace_lora import checkpoint, lock, presets
from lace_lora import config as declared
from lace_lora.errors import LaceError
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder

LOCK = "combination.lock"
FINISHED, FAILED, STOPPED, RUNNING, WAITING = "finished", "failed", "stopped", "running", "waiting"
INTERRUPTED = 130  # the exit code of a command that somebody stopped
SENTENCE_LENGTH = 600
# Slurm announces the end of a job's time to every process with a signal that would end ours in the middle of a step.
BOOT = (
    "import signal, sys; hasattr(signal, 'SIGUSR2') and signal.signal(signal.SIGUSR2, signal.SIG_IGN); "
    "from lace_lora.main import run; sys.exit(run(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Task:
    """What is to be done for one combination.

    settings  of their own kinds, as JSON knows them
    verbs     none are the notebooks
    output    folder for the notebooks, log.txt, errors.txt and combination.json
    """

    name: str
    settings: Mapping[str, Any]
    verbs: tuple[str, ...]
    output: Path

    @property
    def digest(self) -> str:
        """Of what is asked for, config.yaml included; on every machine the same."""
        config = declared.load(*declared.found(), **_overrides(self.settings))
        given = {name: getattr(config, name) for name in sorted(config.given)}
        return hashlib.sha256(json.dumps([given, self.verbs], sort_keys=True).encode()).hexdigest()

    def lines(self) -> list[list[str]]:
        """The words behind `lace-lora` of each command, in order."""
        texts = {name: _texts(value) for name, value in self.settings.items()}
        if not self.verbs:
            words = [word for name, several in texts.items() for word in ("-p", f"{name}={_joined(name, several)}")]
            return [["notebooks", "--output", str(self.output), *words]]
        words = [f"--{name}={text}" for name, several in texts.items() for text in several]
        return [[verb, *words] for verb in self.verbs]

    def run_folder(self) -> RunFolder:
        """The run that it makes or works on, on this machine."""
        config = declared.load(*declared.found(), **_overrides(self.settings))
        return RunFolder.of(presets.settle(config, Machine.here(config.drive_mount_path)).config)


@dataclass(frozen=True)
class Record:
    """How a combination went, as combination.json holds it.

    state     waiting, running, finished, failed, stopped
    sentence  why it failed
    seconds   of work, over all that was done for it
    folder    of the run
    is_run    whether there was a run in it when it was finished
    """

    name: str
    digest: str = ""
    state: str = WAITING
    sentence: str = ""
    seconds: float = 0.0
    folder: str = ""
    is_run: bool = False
    updated: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, task: Task) -> "Record":
        """What is kept of a task; a new record where nothing is, or nothing that can be read."""
        fresh = cls(task.name, settings=dict(task.settings))
        try:
            told = json.loads(record_of(task).read_text(encoding="utf-8"))
            return cls(**{one.name: told[one.name] for one in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            return fresh

    def write(self, task: Task) -> "Record":
        """Keep it. Raises RunError or MachineError where it cannot be written."""
        now = replace(self, updated=datetime.now(UTC).isoformat(timespec="seconds"))
        checkpoint.write_json(record_of(task), asdict(now))
        return now


class Work:
    """Doing one task; it can be stopped from another thread, and be sent to a cluster."""

    def __init__(self, task: Task, environment: Mapping[str, str] | None = None) -> None:
        self.task = task
        self.environment = dict(environment or {})
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"task": self.task, "environment": self.environment}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self) -> Record:
        """Do what is missing, and return how it went; a mistake of the user's is in the record, not raised."""
        task = self.task
        try:
            task.output.mkdir(parents=True, exist_ok=True)
            with lock.lock(task.output, _silently, LOCK, "worked on", "choose another --output"):
                if is_finished(task):
                    return Record.read(task)
                return self._done()
        except (LaceError, OSError) as error:
            return replace(Record.read(task), state=FAILED, sentence=str(error))

    def stop(self) -> None:
        """Ask it to stop: what is in hand finishes its step and saves."""
        self._stop.set()
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, with all processes that it started."""
        self._stop.set()
        self._signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def checkpoint(self) -> Any:
        """Called by submitit when the time of a job ends: stop, and go on with the same in the job's next turn."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        if self._process is not None:
            self._process.wait(timeout=75)  # Slurm gives 90 seconds
        return DelayedSubmission(Work(self.task, self.environment))

    def _done(self) -> Record:
        task, began = self.task, perf_counter()
        earlier = Record.read(task)
        run = task.run_folder()
        record = replace(
            earlier, digest=task.digest, state=RUNNING, sentence="", folder=str(run.root), settings=dict(task.settings)
        ).write(task)
        code, sentence = 0, ""
        with open(task.output / "log.txt", "a", encoding="utf-8") as log:
            for words in task.lines():
                code, sentence = self._ran(words, log)
                if code:
                    sentence = f"{words[0]}: {sentence}" if sentence and task.verbs else sentence
                    break
        state = FINISHED if code == 0 else STOPPED if code == INTERRUPTED else FAILED
        seconds = round(earlier.seconds + perf_counter() - began, 1)
        is_run = run.record.is_file()
        return replace(record, state=state, sentence=sentence, seconds=seconds, is_run=is_run).write(task)

    def _ran(self, words: list[str], log: TextIO) -> tuple[int, str]:
        """The exit code of a command (INTERRUPTED where it was stopped), and its last sentence where it failed."""
        if self._stop.is_set():
            return INTERRUPTED, ""
        print(f"\n$ lace-lora {' '.join(words)}", file=log, flush=True)
        told = self.task.output / "errors.txt"
        here = str(Path(__file__).parent.parent)
        paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"} | self.environment
        with open(told, "wb") as errors:
            # A session of its own: Ctrl-C in a terminal reaches it through `stop` only, once.
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=errors, env=environment, start_new_session=True,
            )  # fmt: skip
            if self._stop.is_set():  # asked for while it was being started
                self._signal(signal.SIGINT)
            code = self._process.wait()
        said = told.read_text(encoding="utf-8", errors="replace")
        log.write(said)
        log.flush()
        if code == 0:
            return 0, ""
        if self._stop.is_set() or code == INTERRUPTED:
            return INTERRUPTED, ""
        return code, _sentence(code, said, told)

    def _signal(self, number: int) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        try:
            # The group dies as a whole; a request goes to the command alone, which hands it on.
            os.killpg(process.pid, number) if number != signal.SIGINT else process.send_signal(number)
        except (ProcessLookupError, PermissionError):
            pass


def record_of(task: Task) -> Path:
    """Where a task's record is kept."""
    return task.output / "combination.json"


def is_finished(task: Task) -> bool:
    """Whether all of it was done with the same settings, and its run is still there."""
    record = Record.read(task)
    if record.state != FINISHED or record.digest != task.digest:
        return False
    return not record.is_run or RunFolder(Path(record.folder)).record.is_file()


# -- inside --


def _sentence(code: int, said: str, path: Path) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return (
            f"it was killed ({name}), most often because memory ran out. Run the same again to go on, or take a "
            "smaller resolution or train_batch_size."
        )
    return lines[-1][:SENTENCE_LENGTH] if lines else f"it ended with code {code} and said nothing; see {path.parent}."


def _overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An empty value is one that is given, not one that is left out: as text, `load` reads it so."""
    return {name: "" if value is None else value for name, value in settings.items()}


def _texts(value: Any) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, list):
        return [str(one) for one in value]
    return ["" if value is None else str(value)]


def _joined(name: str, texts: list[str]) -> str:
    return ("\n" if name in declared.BY_LINE else ",").join(texts)


def _silently(_: str) -> None:
    """Taking over a lock of what was killed is no news: the next line says that it goes on."""
