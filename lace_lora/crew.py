"""Doing all tasks of a sweep: in processes of this machine, or by submitit on Slurm. One that fails stops no other."""

import os
import queue
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, stopping
from lace_lora.combination import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    WAITING,
    Record,
    Task,
    Work,
    is_finished,
)
from lace_lora.errors import MachineError, SettingsError
from lace_lora.sweep import Slurm

LOOK_SECONDS = 2.0
TIMES_OVER = 20  # so often a job whose time ended is put in the queue again, and goes on

Say = Callable[[str], None]


def run_here(tasks: Sequence[Task], jobs: int, say: Say, gpus: Sequence[str] = ()) -> list[Record]:
    """Do the tasks, `jobs` at a time; return how each went, in their order.

    gpus  names of the GPUs as CUDA_VISIBLE_DEVICES has them; where there are several, each process gets one of them

    A first Ctrl-C lets what runs finish its step and save, and begins nothing new; a second one ends everything at
    once, with KeyboardInterrupt.
    """
    works: dict[Future[Record], Work] = {}
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(jobs):
        places.put(place)

    def one(work: Work, number: int) -> Record:
        place = places.get()
        work.environment |= _share(place, jobs, gpus)
        if not stop.asked:
            say(f"{_at(number, tasks)} begins")
        try:
            return work() if not stop.asked else Record.read(work.task)
        finally:
            places.put(place)

    def ask_all() -> None:
        for work in works.values():
            work.stop()

    ends = "what runs finishes its step and saves" if all(task.verbs for task in tasks) else "the notebooks end"
    notice = f"Stopping: {ends}. The same line again goes on; stop again to stop at once."
    with ThreadPoolExecutor(jobs) as threads, stopping.on_request(say, notice, ask_all) as stop:
        numbers: dict[Future[Record], int] = {}
        for number, task in enumerate(tasks):
            if is_finished(task):
                say(f"{_at(number, tasks)} is finished already")
                continue
            work = Work(task)
            future = threads.submit(one, work, number)
            works[future], numbers[future] = work, number
        try:
            _until_done(numbers, lambda future: say(f"{_at(numbers[future], tasks)} {_told(future.result())}"))
        except BaseException:
            stop.asked = True
            for work in works.values():
                work.kill()
            raise
    done = {numbers[future]: future.result() for future in works}
    return [done.get(number) or Record.read(task) for number, task in enumerate(tasks)]


def submit(tasks: Sequence[Task], slurm: Slurm, folder: Path, say: Say) -> list[Record]:
    """Have the tasks done by Slurm, wait for them, and return how each went; those that wait there are not sent twice.

    folder  on a disk that all machines of the cluster see; submitit keeps its files there

    Ctrl-C ends the waiting only: the jobs go on. Raises SettingsError where submitit is not installed, MachineError
    where this is no machine of a cluster.
    """
    executor = _executor(slurm, folder)
    jobs: dict[int, Any] = {}
    for number, task in enumerate(tasks):
        if is_finished(task):
            say(f"{_at(number, tasks)} is finished already")
        elif job := _earlier_job(slurm, executor, task):
            jobs[number] = job
            say(f"{_at(number, tasks)} is job {job.job_id}, sent before")
    new = [number for number in range(len(tasks)) if number not in jobs and not is_finished(tasks[number])]
    if new:
        for number in new:
            # What an earlier try ended with is no news of this one.
            replace(Record.read(tasks[number]), state=WAITING, sentence="").write(tasks[number])
        with executor.batch():
            sent = [executor.submit(Work(tasks[number])) for number in new]
        for number, job in zip(new, sent, strict=True):
            jobs[number] = job
            checkpoint.write_text(_number_file(tasks[number]), f"{job.job_id}\n")
            say(f"{_at(number, tasks)} is job {job.job_id}")
    try:
        _await(jobs, tasks, say)
    except KeyboardInterrupt:
        say("No longer waiting. The jobs go on; the same line again waits for them, and scancel ends one.")
        raise
    return [Record.read(task) for task in tasks]


# -- inside --


def _until_done(futures: Mapping[Future[Record], int], tell: Callable[[Future[Record]], None]) -> None:
    left = set(futures)
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=futures.__getitem__):
            tell(future)


def _share(place: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """What a process is told of the machine it shares with others."""
    told = {}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        told["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    if jobs > 1 and len(gpus) > 1:
        told["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return told


def _executor(slurm: Slurm, folder: Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise SettingsError(
            "submitit is not installed. Type: pip install 'lace-lora[slurm]', or leave out --slurm to run here."
        ) from error
    if slurm.cluster == "slurm" and shutil.which("sbatch") is None:
        raise MachineError(
            "There is no Slurm on this machine (no command sbatch). Call it on the cluster, or leave out --slurm."
        )
    here = str(Path(__file__).parent.parent)
    more = {"slurm_max_num_timeout": TIMES_OVER} if slurm.cluster == "slurm" else {}
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=slurm.cluster, **more)
    executor.update_parameters(
        name="lace-lora",
        timeout_min=slurm.minutes,
        mem_gb=slurm.memory_gb,
        cpus_per_task=slurm.cpus,
        gpus_per_node=slurm.gpus,
        nodes=1,
        tasks_per_node=1,
        slurm_partition=slurm.partition,
        slurm_account=slurm.account,
        slurm_constraint=slurm.constraint,
        slurm_array_parallelism=slurm.at_once,
        slurm_setup=[*slurm.setup, f"export PYTHONPATH={here}${{PYTHONPATH:+:$PYTHONPATH}}"],
    )
    return executor


def _earlier_job(slurm: Slurm, executor: Any, task: Task) -> Any:
    """The job that does a task already, from an earlier call; None where it has ended, or nobody can tell."""
    if slurm.cluster != "slurm" or not _number_file(task).is_file():
        return None
    import submitit

    job = submitit.SlurmJob(executor.folder, _number_file(task).read_text(encoding="utf-8").strip())
    return None if job.done(force_check=True) else job


def _number_file(task: Task) -> Path:
    """Where the number of its job is kept: the job itself writes the record at any moment."""
    return task.output / "slurm_job.txt"


def _await(jobs: Mapping[int, Any], tasks: Sequence[Task], say: Say) -> None:
    left, begun = dict(jobs), set()
    while left:
        for number, job in list(left.items()):
            record = Record.read(tasks[number])
            if record.state == RUNNING and number not in begun:
                begun.add(number)
                say(f"{_at(number, tasks)} begins")
            if not job.done():
                continue
            del left[number]
            record = Record.read(tasks[number])
            if record.state in (RUNNING, WAITING):  # it could write no word any more
                sentence = f"its job ended without a word; what it said is in {job.paths.stderr}."
                record = replace(record, state=FAILED, sentence=sentence).write(tasks[number])
            say(f"{_at(number, tasks)} {_told(record)}")
        if left:
            time.sleep(LOOK_SECONDS)


def _at(number: int, tasks: Sequence[Task]) -> str:
    return f"{number + 1:>{len(str(len(tasks)))}}/{len(tasks)}  {tasks[number].name}"


def _told(record: Record) -> str:
    if record.state == FINISHED:
        return f"is finished, {record.seconds:.0f} s"
    if record.state == STOPPED:
        return "is stopped"
    return f"failed: {record.sentence}" if record.state == FAILED else f"is {record.state}"
