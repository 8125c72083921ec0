"""`pytest --nbval notebooks`: each notebook against its stored outputs, on the demo, in a fresh folder, with few steps.

After each `parameters` cell come the values of tests/nbval_parameters.yaml, as papermill would put them there. GPUs are
hidden, so `preset: auto` takes the demo. tests/store_notebooks.py writes the stored outputs under the same conditions.
"""

import tempfile
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).parent.parent / "tests"
SHORT = yaml.safe_load((TESTS / "nbval_parameters.yaml").read_text(encoding="utf-8"))
FOLDER: pytest.StashKey[tempfile.TemporaryDirectory[str]] = pytest.StashKey()


def short_run(parameters_cell: str, folder: str) -> str:
    """What follows a `parameters` cell in a check: a folder of its own, also for the cache, no GPU, and short runs."""
    place = {"HOME": folder, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    lines = [f"import os; os.chdir({folder!r}); os.environ.update({place!r})"]
    lines += [f"{name} = {value!r}" for name, value in SHORT.items() if f"\n{name} = " in f"\n{parameters_cell}"]
    return "\n".join(lines)


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "nbval", False) and config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(TESTS / "nbval_sanitize.cfg")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[FOLDER] = tempfile.TemporaryDirectory(prefix="lace-lora-notebooks-", ignore_cleanup_errors=True)
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + short_run(cell.source, config.stash[FOLDER].name)


def pytest_unconfigure(config: pytest.Config) -> None:
    if FOLDER in config.stash:
        config.stash[FOLDER].cleanup()
