"""Write lace_lora/address.py into every notebook: its badge, its contents and its install cell; see `make address`.

Cells' outputs and their numbers stay as they are. What a person wrote stays too, but for the lines that are generated.
"""

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lace_lora import address

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
_ANCHOR = re.compile(r' *<a id="scrollTo=[^"]*"></a>')


def notebooks() -> list[Path]:
    """Every notebook that has an install cell."""
    paths = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    return [path for path in paths if install_place(nbformat.read(path, 4)) is not None]


def install_place(book: NotebookNode) -> int | None:
    """Where among the cells the install cell is."""
    places = (place for place, cell in enumerate(book.cells) if cell.source.startswith("#@title Install"))
    return next(places, None)


def written(book: NotebookNode, name: str) -> NotebookNode:
    """A notebook with what address.py says written into it. name: its path below notebooks/."""
    headings = []
    for cell in book.cells[1:]:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            title, *rest = cell.source.split("\n")
            text = _ANCHOR.sub("", title)[3:].strip()
            headings.append((text, cell.id))
            cell.source = "\n".join([f"## {text} {address.anchor(cell.id)}", *rest])
    first = [line for line in book.cells[0].source.rstrip().split("\n") if not line.startswith(address.CONTENTS)]
    first = [address.badge_note() if line.startswith(address.BADGE_NOTE) else line for line in first]
    first[0] = address.badge(name)
    book.cells[0].source = "\n".join(first).rstrip() + "\n\n" + address.contents(headings)
    place = install_place(book)
    assert place, f"{name} has no install cell"
    title = book.cells[place - 1].source.split("\n")[0]
    book.cells[place - 1].source = f"{title}\n\n{address.install_prose()}"
    book.cells[place].source = address.install_cell()
    book.cells[place].metadata["cellView"] = "form"
    return book


def write() -> None:
    """Write it into every notebook."""
    for path in notebooks():
        book = written(nbformat.read(path, 4), path.relative_to(NOTEBOOKS).as_posix())
        path.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
