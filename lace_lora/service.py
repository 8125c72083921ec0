"""Requests for designs, one after the other: a bounded queue, one worker with the models, and how far each one is.

The door and the drawing are handed in or built around it; nothing here knows HTTP or torch.
"""

import math
import secrets
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from lace_lora import job_records, lock
from lace_lora.errors import LaceError
from lace_lora.figures import Watch
from lace_lora.file_names import without_folders
from lace_lora.job_records import CANCELLED, FAILED, FINISHED, RUNNING, WAITING, Job, Picture
from lace_lora.run_folder import RunFolder
from lace_lora.stopping import Stop

KEPT = 500  # requests that are over and still told of; older ones are forgotten, their sheets stay
LATER_SECONDS = 10  # after which to ask again where nothing is known of the pace
LATEST_SECONDS = 600
CLOSE_SECONDS = 120.0  # for which closing waits for the batch in hand
STAGES = ("generate", "refine", "decode")
LOCK = "serving.lock"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Drawn:
    """What came of drawing a request: its finished pictures, the sheet in which they lie, whether that is all.

    notes  what was said of it that whoever asked should know, in sentences
    """

    pictures: tuple[Picture, ...]
    sheet: str
    is_complete: bool
    notes: tuple[str, ...] = ()


# asked, sheet, stop, watch, show: draws until all is done or stop.asked, calling show with each finished picture.
Draw = Callable[[Mapping[str, Any], str, Stop, Watch, Callable[[Picture], None]], Drawn]

Check = Callable[[Mapping[str, Any]], None]


class Full(LaceError):
    """The queue is full; `seconds` is when to ask again."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting already. Send yours again in {seconds} seconds.")
        self.seconds = seconds


class Closing(LaceError):
    """The server is ending."""

    def __init__(self) -> None:
        super().__init__("The server is being shut down and takes no more requests. Send yours again later.")


@dataclass(frozen=True)
class Progress:
    """How far a request is.

    drawn, refined, finished   designs that have passed each stage, those of this start of the server
    share                      of all stages of all designs, 0 to 1
    ahead                      requests before it, the one that is drawn among them
    eta_seconds                until it is over, from the pace of what was drawn before; None while that is not known
    """

    drawn: int
    refined: int
    finished: int
    share: float
    ahead: int
    eta_seconds: float | None


@dataclass
class _Work:
    """The request in hand."""

    id: str
    stop: Stop = field(default_factory=Stop)
    watch: Watch = field(default_factory=Watch)
    began: float = field(default_factory=monotonic)
    is_cancelled: bool = False


class Service:
    """The requests of one run. `with service.open():` takes up what an earlier process left, and parks at the end.

    run      whose adapter draws, and in whose folder requests and sheets are kept
    draw     see Draw; called by the worker alone
    waiting  requests that may wait
    check    raises SettingsError for settings that drawing would only refuse when their turn comes
    """

    def __init__(
        self, run: RunFolder, draw: Draw, waiting: int, say: Say = print, check: Check = lambda asked: None
    ) -> None:
        self.run, self.waiting = run, waiting
        self._draw, self._say, self._check = draw, say, check
        self._change = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._pictures: dict[str, dict[int, Picture]] = {}
        self._queue: deque[str] = deque()
        self._work: _Work | None = None
        self._is_closing = False
        self._pace: float | None = None  # seconds a unit of work, see _effort
        self._thread: threading.Thread | None = None
        self._lock = lock.lock(run.served, say, LOCK, "served", "serve another run")

    def __enter__(self) -> "Service":
        """Take up what an earlier process left, and begin to draw. Raises RunError where another one serves the run."""
        self._lock.__enter__()
        for job in job_records.read_all(self.run, self._say):
            self._jobs[job.id] = job
            if not job.is_over:
                self._queue.append(job.id)
            if job.cut_offs or not job.is_over:
                self._keep(job)
        if self._queue:
            self._say(f"going on  with {len(self._queue)} requests of before")
        self._thread = threading.Thread(target=self._draw_all, name="designs", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Park the request in hand after its batch; the next start goes on with it."""
        with self._change:
            self._is_closing = True
            if self._work is not None:
                self._work.stop.asked = True
                self._say("Stopping after this batch; stop again to stop at once.")
            self._change.notify_all()
        try:
            if self._thread is not None:
                self._thread.join(CLOSE_SECONDS)
        finally:
            self._lock.__exit__(None, None, None)
        left = sum(not job.is_over for job in self._jobs.values())
        if left:
            self._say(f"parked    {left} unfinished requests; the next start goes on with them")

    def submit(self, asked: Mapping[str, Any], total: int) -> Job:
        """Take a request, once it is on the disk.

        asked  its settings, as `draw` takes them; total: the designs that they ask for

        Raises what `check` does, Full, Closing, and MachineError or RunError where it cannot be kept.
        """
        self._check(asked)
        with self._change:
            if self._is_closing:
                raise Closing
            if len(self._queue) >= self.waiting:
                raise Full(len(self._queue), self._later())
            id = secrets.token_hex(8)
            job = Job(id, dict(asked), f"served-{id}", total, job_records.now())
            job_records.write(self.run, job)
            self._jobs[id] = job
            self._queue.append(id)
            self._change.notify_all()
            return job

    @property
    def is_working(self) -> bool:
        """Whether requests are being drawn, or would be if there were any."""
        return self._thread is not None and self._thread.is_alive() and not self._is_closing

    def jobs(self) -> list[Job]:
        """All requests, the oldest first."""
        with self._change:
            return list(self._jobs.values())

    def job(self, id: str) -> Job | None:
        """One request, or None where there is none of that id."""
        return self._jobs.get(id)

    def cancel(self, id: str) -> Job | None:
        """Take a request out of the queue, or stop it after the batch in hand; what is over stays as it is."""
        with self._change:
            job = self._jobs.get(id)
            if job is None or job.is_over:
                return job
            if self._work is not None and self._work.id == id:
                self._work.is_cancelled = self._work.stop.asked = True
            else:
                with suppress(ValueError):  # parked already
                    self._queue.remove(id)
                self._end(job.ending(CANCELLED))
            return self._jobs[id]

    def is_cancelling(self, id: str) -> bool:
        """Whether a request is stopped as soon as the batch in hand is done."""
        work, job = self._work, self._jobs.get(id)
        return work is not None and work.id == id and work.is_cancelled and job is not None and not job.is_over

    def pictures(self, id: str) -> dict[int, Picture]:
        """The finished designs of a request by their numbers in its sheet."""
        with self._change:
            job = self._jobs.get(id)
            if job is None:
                return {}
            if id in self._pictures:
                return dict(self._pictures[id])
        found = job_records.pictures_in(self.run.sheet(job.sheet))  # of an earlier process
        with self._change:
            if job.is_over:
                self._pictures.setdefault(id, found)
        return dict(sorted(found.items()))

    def progress(self, job: Job) -> Progress:
        """How far a request is now."""
        finished = len(self.pictures(job.id))
        with self._change:
            work = self._work
            ahead = 0 if job.is_over else self._ahead(job.id)
            if job.is_over or work is None or work.id != job.id:
                share = 1.0 if job.state == FINISHED else 0.0
                eta = None if job.is_over else self._left(job.id)
                return Progress(0, 0, finished, share, ahead, eta)
            made = work.watch.designs
            drawn, refined = made.get(STAGES[0], 0), made.get(STAGES[1], 0)
            return Progress(drawn, refined, finished, self._share(work), 0, self._left(job.id))

    # -- the worker --

    def _draw_all(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._draw_one(job)
            finally:
                with self._change:
                    self._work = None
                    self._change.notify_all()

    def _next(self) -> Job | None:
        """The request whose turn it is, marked as under way; None once the server is to end."""
        with self._change:
            while not self._queue and not self._is_closing:
                self._change.wait()
            if self._is_closing:
                return None
            job = replace(self._jobs[self._queue.popleft()], state=RUNNING, started=job_records.now())
            self._work = _Work(job.id)
            self._keep(job)
            return job

    def _draw_one(self, job: Job) -> None:
        work = self._work
        assert work is not None

        def show(picture: Picture) -> None:
            with self._change:
                self._pictures[job.id][picture.number] = picture

        try:
            before = job_records.pictures_in(self.run.sheet(job.sheet))
            with self._change:
                self._pictures[job.id] = before
            drawn = self._draw(job.asked, job.sheet, work.stop, work.watch, show)
        except LaceError as error:
            self._say(f"! request {job.id} failed: {error}")
            self._end(job.ending(FAILED, without_folders(str(error))))
            return
        except Exception:
            self._say(f"! request {job.id} failed:\n{traceback.format_exc()}")
            unforeseen = "Something unforeseen went wrong; the server's own log tells what. The next request may do."
            self._end(job.ending(FAILED, unforeseen))
            return
        with self._change:
            self._pictures[job.id] = {picture.number: picture for picture in drawn.pictures}
            job = replace(job, sheet=drawn.sheet, notes=tuple(map(without_folders, drawn.notes)))
            if drawn.is_complete:
                spent = monotonic() - work.began
                self._pace = spent / _effort(job) if _share_new(work, job) else self._pace
                self._end(job.ending(FINISHED))
            elif work.is_cancelled:
                self._end(job.ending(CANCELLED))
            else:  # the server ends; the next start goes on with it
                self._keep(replace(job, state=WAITING))
                self._work = None  # who cancels from now on cancels what waits

    def _keep(self, job: Job) -> None:
        """Keep how a request stands. It was accepted and goes on, also where that cannot be written now."""
        self._jobs[job.id] = job
        try:
            job_records.write(self.run, job)
        except LaceError as error:
            self._say(f"! how request {job.id} stands could not be kept: {error}")

    def _end(self, job: Job) -> None:
        with self._change:
            self._keep(job)
            over = [one.id for one in self._jobs.values() if one.is_over]
            for id in over[: max(0, len(over) - KEPT)]:
                del self._jobs[id]
                self._pictures.pop(id, None)
                with suppress(OSError):
                    self.run.served_job(id).unlink(missing_ok=True)
            self._change.notify_all()

    # -- how long --

    def _share(self, work: _Work) -> float:
        """Of all stages of all designs of the request in hand, 0 to 1."""
        job, made = self._jobs[work.id], work.watch.designs
        stages = [stage for stage in STAGES if stage != "refine" or job.asked.get("refine") != "none"]
        return min(1.0, sum(made.get(stage, 0) for stage in stages) / (len(stages) * max(1, job.total)))

    def _left(self, id: str) -> float | None:
        """Seconds until a request is over: what is left of the one in hand, and all that stands before this one."""
        left = 0.0
        if self._work is not None:
            share, spent = self._share(self._work), monotonic() - self._work.began
            if self._pace is not None:
                left = max(0.0, self._pace * _effort(self._jobs[self._work.id]) - spent)
            elif share >= 0.1:
                left = spent * (1 - share) / share
            else:
                return None
        before = [*self._queue][: self._queue.index(id) + 1] if id in self._queue else []
        if before and self._pace is None:
            return None
        return left + sum((self._pace or 0.0) * _effort(self._jobs[one]) for one in before)

    def _ahead(self, id: str) -> int:
        if self._work is not None and self._work.id == id or id not in self._queue:
            return 0
        return self._queue.index(id) + (self._work is not None)

    def _later(self) -> int:
        """Seconds until there may be room in the queue again."""
        left = self._left(self._work.id) if self._work is not None else 0.0
        return LATER_SECONDS if left is None else min(LATEST_SECONDS, max(1, math.ceil(left)))


def _effort(job: Job) -> float:
    """The work of a request in designs × steps × px, by which the pace of one tells the time of another."""
    asked = job.asked
    sides = [float(asked.get(name) or 1024) for name in ("width", "height")]
    return max(1, job.total) * float(asked.get("num_inference_steps") or 30) * math.prod(sides)


def _share_new(work: _Work, job: Job) -> bool:
    """Whether all designs of a request were drawn just now, not before or taken from another sheet."""
    return work.watch.designs.get(STAGES[0], 0) >= job.total


def summary(jobs: Sequence[Job]) -> dict[str, int]:
    """How many requests are in each state."""
    return {state: sum(job.state == state for job in jobs) for state in job_records.STATES}
