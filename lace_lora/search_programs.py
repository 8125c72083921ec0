"""Many searches at once, each core with a program of its own; the answers are those that one program gives.

The programs are handed a folder with what is searched and asked, and are told which question is whose.
"""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

import numpy

from lace_lora.machine import cores
from lace_lora.nearest import Found, Searched
from lace_lora.own_programs import READY, Programs
from lace_lora.views import Fingerprint

PRINTS, ASKED = "prints.npz", "asked.json"
FEWEST = 40  # searches; for fewer, starting a program takes longer than it saves
MOST = 8  # programs; each holds the views of all photographs, 30 MB of 250
TELL_SECONDS = 0.2

Question = tuple[Sequence[Fingerprint], Sequence[Collection[int]], Sequence[Collection[int]]]  # as Searched.nearest has
Answer = list[Found | None]
Tell = Callable[[int], None]


def answers(
    searched: Searched, questions: Sequence[Question], tell: Tell = lambda more: None, programs: int | None = None
) -> Iterator[tuple[int, Answer]]:
    """The place of each question with what Searched.nearest answers, whichever is ready first.

    tell      is told, in the caller's own thread, that some more searches are done: front-ends show nothing from others
    programs  that search side by side; 0 does all in this one; None takes one for each core where there is enough to do
    """
    if programs is None:
        enough = sum(len(made) for made, _, _ in questions) >= FEWEST
        programs = min(MOST, cores()) if enough else 0
    programs = min(programs, len(questions))
    with ExitStack() as opened:
        folder = _handed_over(opened, searched.prints, questions) if programs > 1 else None
        if folder is None:
            yield from ((place, searched.nearest(*one, tell=tell)) for place, one in enumerate(questions))
            return
        done: SimpleQueue[int] = SimpleQueue()
        crew = _Crew(Programs("lace_lora.search_programs", str(folder)), searched, questions, done.put)
        with ThreadPoolExecutor(programs) as threads:
            try:
                work = {threads.submit(crew.answer, place): place for place in range(len(questions))}
                left = set(work)
                while left:
                    ready, left = wait(left, TELL_SECONDS, FIRST_COMPLETED)
                    while not done.empty():
                        tell(done.get())
                    yield from ((work[one], one.result()) for one in ready)
            finally:  # also where the person stops it
                threads.shutdown(wait=False, cancel_futures=True)
                crew.programs.end()


def _handed_over(opened: ExitStack, prints: Sequence[Fingerprint], questions: Sequence[Question]) -> Path | None:
    """A folder with what the programs read; None where it cannot be written."""
    try:
        folder = Path(opened.enter_context(TemporaryDirectory(prefix="lace_lora-", ignore_cleanup_errors=True)))
        _write(folder, prints, questions)
    except OSError:
        return None
    return folder


@dataclass(frozen=True)
class _Crew:
    """Answers by programs that have read a folder; what one ended over is searched for here."""

    programs: Programs
    searched: Searched
    questions: Sequence[Question]
    tell: Tell

    def answer(self, place: int) -> Answer:
        """The answer to one question."""
        told, program = 0, self.programs.of_this_thread()
        with suppress(OSError, ValueError):  # it ended before, or all is ended
            if program is not None and program.stdin is not None and program.stdout is not None:
                program.stdin.write(f"{place}\n")
                program.stdin.flush()
                for line in program.stdout:
                    if line.startswith("["):
                        return [Found(**one) if one else None for one in json.loads(line)]
                    told += 1
                    self.tell(1)
        if self.programs.is_over:
            return []
        told_before = iter(range(told))
        return self.searched.nearest(
            *self.questions[place], tell=lambda more: self.tell(more if next(told_before, None) is None else 0)
        )


def _write(folder: Path, prints: Sequence[Fingerprint], questions: Sequence[Question]) -> None:
    made = [print_ for one, _, _ in questions for print_ in one]
    numpy.savez(folder / PRINTS, searched=numpy.stack(prints), made=numpy.stack(made))
    rows = [[len(one), *([sorted(map(int, row)) for row in rows] for rows in rest)] for one, *rest in questions]
    (folder / ASKED).write_text(json.dumps(rows), encoding="ascii")


def _read(folder: Path) -> tuple[Searched, list[Question]]:
    with numpy.load(folder / PRINTS, allow_pickle=False) as kept:
        searched, made = Searched(list(kept["searched"])), list(kept["made"])
    questions: list[Question] = []
    for count, also, barred in json.loads((folder / ASKED).read_text(encoding="ascii")):
        questions.append((made[:count], also, barred))
        made = made[count:]
    return searched, questions


def _answer_lines(folder: Path) -> None:
    """Answer each number on the standard input: a dot for each search, then all answers in a line."""
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    searched, questions = _read(folder)

    def say(line: str) -> None:
        out.write(line)
        out.flush()

    say(READY)

    for line in sys.stdin:
        found = searched.nearest(*questions[int(line)], tell=lambda more: say(".\n"))
        say(json.dumps([asdict(one) if one else None for one in found]) + "\n")


if __name__ == "__main__":
    _answer_lines(Path(sys.argv[1]))
