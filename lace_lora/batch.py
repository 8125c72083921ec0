"""The numbered notebooks, one after the other, without a browser: parameters checked first, then papermill.

A name that no notebook knows is refused before anything runs (papermill alone warns, and runs with the default), and
values are turned into the kind that the setting has (papermill alone hands over the text "1e-4").
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from lace_lora import config as declared
from lace_lora import places
from lace_lora.errors import NotebookError

OUTPUT, ANOTHER = "The folder", "Choose another --output."  # in the sentence where it cannot be made
PATTERN = "[0-9][0-9]_*.ipynb"
# No bar of papermill's, no state of widgets that nobody saw, and of the kernel's own log only what ends it: it calls an
# error what is none, such as being asked to stop while it answers the last question.
QUIETLY = {"progress_bar": False, "store_widget_state": False, "extra_arguments": ["--Application.log_level=50"]}


def notebooks(folder: Path | None = None) -> list[Path]:
    """The numbered notebooks in order: of the folder, else of ./notebooks, else of the checkout that this code lies in.

    Raises NotebookError where there are none.
    """
    looked_in = [folder] if folder else [Path("notebooks"), Path(__file__).parent.parent / "notebooks"]
    for place in looked_in:
        found = sorted(place.glob(PATTERN))
        if found:
            return found
    where = " or ".join(str(place) for place in looked_in)
    raise NotebookError(f"No numbered notebooks in {where}. Start this in the project's folder.")


def read_parameters(files: Iterable[Path]) -> dict[str, Any]:
    """The settings that YAML files name, each of its own kind; later files win.

    Raises SettingsError for a file that cannot be read or a name or value that will not do.
    """
    values = declared.load(*files)
    return {name: getattr(values, name) for name in values.given}


def parameters_of(notebook: Path) -> set[str]:
    """The names in a notebook's `parameters` cell."""
    return set(_papermill().inspect_notebook(str(notebook)))


def checked(parameters: Mapping[str, Any], known: Mapping[Path, set[str]]) -> dict[str, Any]:
    """The parameters, each in the kind that its setting has.

    Raises SettingsError for a name that is no setting or a value out of bounds, NotebookError for a setting that none
    of the notebooks takes.
    """
    typed = declared.load(**parameters)
    everywhere = set().union(*known.values())
    for name in parameters:
        if name not in everywhere:
            raise NotebookError(
                f"{name} is a setting, but no notebook takes it as a parameter. "
                "Write it into config.yaml, which the notebooks read, "
                f"or choose one of: {', '.join(sorted(everywhere))}."
            )
    values = {name: getattr(typed, name) for name in parameters}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def run(
    output: Path,
    parameters: Mapping[str, Any],
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Run the notebooks in order into `output`; return the files. Nothing runs when a parameter is wrong.

    Raises NotebookError with the notebook, the cell and its sentence at the first failure; what ran is kept. RunError
    where output cannot be made.
    """
    chosen = notebooks(folder)
    known = {notebook: parameters_of(notebook) for notebook in chosen}
    values = checked(parameters, known)
    places.make(output, OUTPUT, ANOTHER)
    done = []
    for notebook in chosen:
        say(f"{notebook.name} …")
        began = perf_counter()
        _execute(notebook, output / notebook.name, {n: value for n, value in values.items() if n in known[notebook]})
        say(f"{notebook.name}  done in {perf_counter() - began:.0f} s, kept as {output / notebook.name}")
        done.append(output / notebook.name)
    return done


def _execute(notebook: Path, kept: Path, parameters: dict[str, Any]) -> None:
    papermill = _papermill()
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a kernel's note to those who debug it

    try:
        papermill.execute_notebook(str(notebook), str(kept), parameters=parameters, **QUIETLY)
    except papermill.PapermillExecutionError as error:
        # Our own errors are sentences; another one needs its kind to be understood.
        sentence = error.evalue if _is_ours(error.ename) else f"{error.ename}: {error.evalue}"
        raise NotebookError(f"{notebook.name}, {_cell(error)}: {sentence} (see {kept})") from error
    except (DeadKernelError, CellTimeoutError) as error:
        raise NotebookError(
            f"{notebook.name}: its kernel died, most often because memory ran out. "
            "Run again with a smaller resolution or train_batch_size; training goes on where it stopped."
        ) from error


def _cell(error: Any) -> str:
    """The cell that failed, by the title that Colab shows for it, else by its number."""
    first = str(error.source).partition("\n")[0]
    title = first.removeprefix("#@title").strip()
    return f"cell “{title}”" if title != first.strip() else f"cell {error.exec_count}"


def _is_ours(name: str) -> bool:
    from lace_lora import errors

    kind = getattr(errors, name, None)
    return isinstance(kind, type) and issubclass(kind, errors.LaceError)


def _papermill() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its libraries' notes to each other
            import papermill
    except ImportError as error:
        raise NotebookError("papermill is not installed. Type: pip install 'lace-lora[notebooks]'") from error
    return papermill
