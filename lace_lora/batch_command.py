"""The command `notebooks`: the numbered notebooks once, or a sweep over settings, here or on Slurm."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lace_lora.errors import NotebookError, SettingsError


def notebooks(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="where the notebooks go once they have run")],
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME VALUE", help="a setting; may be repeated")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("-f", "--file", metavar="FILE", help="YAML file of settings; may be repeated")
    ] = None,
    sweep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with grid or list: many combinations of settings")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="with --sweep: combinations that run at a time")] = 1,
    verbs: Annotated[
        str,
        # Named here as well: typer 0.27, which Colab has, takes a metavar in the argument's own letters for its name.
        typer.Option("--verbs", metavar="VERBS", help="with --sweep: train,generate and the like, not the notebooks"),
    ] = "",
    slurm: Annotated[bool, typer.Option("--slurm", help="with --sweep: have Slurm run them, by submitit")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")] = False,
) -> None:
    """Run the numbered notebooks in order without a browser; or a sweep, each combination in a run of its own."""
    from lace_lora import batch

    given = dict(pair.partition("=")[::2] for pair in parameters or [])
    shared = batch.read_parameters(files or []) | given
    if sweep is not None:
        run_sweep(sweep, shared, output, verbs=_words(verbs), jobs=jobs, slurm=slurm)
    elif slurm or verbs or jobs != 1:
        raise SettingsError("--jobs, --verbs and --slurm are about a sweep. Add --sweep with its file.")
    else:
        batch.run(output, shared)


def run_sweep(
    path: Path, shared: dict[str, Any], output: Path, *, verbs: Sequence[str] = (), jobs: int = 1, slurm: bool = False
) -> Path:
    """Run every combination of a sweep and return the path of its table, results.md in `output`.

    shared  settings for all, beside those of the file
    verbs   none are the notebooks
    jobs    combinations at a time, on this machine

    Called again, it does what is missing. Raises SettingsError with all that is wrong before anything runs,
    NotebookError once all are done and some failed, KeyboardInterrupt where it was stopped.
    """
    from lace_lora import batch, combination, crew, machine, places, sweep_table
    from lace_lora import sweep as room

    read = room.read(path, shared, verbs, None if verbs else _taken())
    places.make(output, batch.OUTPUT, batch.ANOTHER)
    tasks = [combination.Task(one.name, one.settings, read.verbs, output / one.name) for one in read.combinations]
    print(f"{len(tasks)} combinations of {', '.join(read.varying)}", flush=True)
    records = [combination.Record.read(task) for task in tasks]
    try:
        if slurm:
            records = crew.submit(tasks, read.slurm, output / "slurm", _say)
        else:
            gpus = _gpus(machine.Machine.here().gpu_count)
            records = crew.run_here(tasks, jobs, _say, gpus)
    except KeyboardInterrupt:
        records = [combination.Record.read(task) for task in tasks]
        raise
    finally:  # also of a sweep that was stopped
        found = sweep_table.rows(read, records)
        written = sweep_table.write(output, read, found)
        print(f"\n{sweep_table.as_text(read, found)}\n\nKept as {written[0]} and {written[1]}.", flush=True)
    failed = [record for record in records if record.state == combination.FAILED]
    if failed:
        lines = [f"{record.name}: {record.sentence}" for record in failed]
        raise NotebookError("\n".join([f"{len(failed)} of {len(tasks)} combinations failed:", *lines]))
    if any(record.state != combination.FINISHED for record in records):
        raise KeyboardInterrupt  # stopped and saved: a script must not take it for finished
    return written[0]


def _taken() -> set[str]:
    from lace_lora import batch

    return set().union(*(batch.parameters_of(notebook) for notebook in batch.notebooks()))


def _gpus(count: int) -> list[str]:
    """The GPUs as CUDA names them: those that this process may see, else all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [name.strip() for name in visible.split(",") if name.strip()] if visible else []
    return named if len(named) == count else [str(number) for number in range(count)]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _say(line: str) -> None:
    print(line, flush=True)
