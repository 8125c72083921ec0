"""Programs of ours that work beside this one and are spoken with in lines: one for each thread that asks.

multiprocessing would run a person's script again in each of its workers, unless it is guarded, and its pool cannot end
a worker that hangs.
"""

import os
import subprocess
import sys
import threading
from contextlib import suppress

READY = "ready\n"  # what a program says first


class Programs:
    """All run one module; one that has ended is replaced when its thread asks again."""

    def __init__(self, module: str, *words: str) -> None:
        self._line = [sys.executable, "-m", module, *words]
        self._own, self._lock = threading.local(), threading.Lock()
        self._all: list[subprocess.Popen[str]] = []
        self.is_over = False

    def of_this_thread(self) -> "subprocess.Popen[str] | None":
        """This thread's program, ready to be asked; None where none can be started, or all is over."""
        program: subprocess.Popen[str] | None = getattr(self._own, "program", None)
        if program is not None and program.poll() is None:
            return program
        with self._lock:
            if self.is_over:
                return None
            try:
                program = self._started()
            except OSError:
                return None
            self._all.append(program)
        if program.stdout is None or program.stdout.readline() != READY:
            return None
        self._own.program = program
        return program

    def replace(self) -> None:
        """Have another one started when this thread asks again."""
        self._own.program = None

    def end(self) -> None:
        """End all programs; none is started any more."""
        with self._lock:
            self.is_over = True
        for program in self._all:
            with suppress(OSError):
                program.kill()
            program.wait()
            for pipe in (program.stdin, program.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def _started(self) -> "subprocess.Popen[str]":
        around = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self._line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="ascii", env=around,
        )  # fmt: skip
