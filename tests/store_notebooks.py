"""Run the notebooks and store their outputs in them, for `pytest --nbval notebooks`: python -m tests.store_notebooks

To be run when a notebook's outputs change on purpose, and looked at before it is committed.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbval.plugin import coalesce_streams

from notebooks.conftest import short_run

ROOT = Path(__file__).parent.parent


def store(path: Path, folder: str) -> None:
    """Run a notebook under the conditions of its check, and write it back with its outputs and its own parameters."""
    book = nbformat.read(path, 4)
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    own = cell.source
    cell.source = own + "\n" + short_run(own, folder)
    client = NotebookClient(
        book, store_widget_state=False, record_timing=False, resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    cell.source = own
    book.metadata.pop("widgets", None)
    book.metadata.language_info = {"name": "python"}
    for code in (cell for cell in book.cells if cell.cell_type == "code"):
        code.outputs = coalesce_streams(code.outputs)
    path.write_text(nbformat.writes(book) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        notebooks = ROOT / "notebooks"
        for path in [*sorted(notebooks.glob("[0-9][0-9]_*.ipynb")), *sorted(notebooks.glob("*/*.ipynb"))]:
            print(f"{path.name} …")
            store(path, folder)
