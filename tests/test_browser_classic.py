"""Forms and notebooks in classic Notebook 6 with ipywidgets 7, the versions that Colab has, clicked by a browser (L2).

They run within `make test-colab`, which builds an environment with these versions; elsewhere they are skipped.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from tests import browsing
from tests.browsing import ROOT, SECONDS, until

THERE = {one.metadata["Name"]: one.version for one in metadata.distributions()}
IS_CLASSIC = THERE.get("ipywidgets", "").startswith("7.") and THERE.get("notebook", "").startswith("6.")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not IS_CLASSIC, reason="needs Notebook 6 and ipywidgets 7, as Colab has: make test-colab"),
]
RUNS, RAN = "In [*]:", re.compile(r"In \[\d+\]:")
DRAWN = ["prompts", "learning_rate", "rank", "lora_scale", "random_flip", "refine", "max_train_steps", "seed"]
FORM = f"""#@title Form
from lace_lora import config, forms
form = forms.settings_form(config.load(preset="none"), {DRAWN})
form"""
READ = """#@title Read
for name, value in form.changed().items():
    print(name, repr(value))
print("in all:", form.config().rank)"""
WORK = """#@title Work
from time import sleep
from lace_lora import progress, stopping
bar = progress.Bar("step")
with stopping.on_request(print, "Stopping after this step.") as stop:
    for number in stop.until(range(1, 601)):
        sleep(0.1)
        bar.move(number, 600, "loss 0.081")
print("saved at step", number)"""
AFTER = """#@title After
print("the notebook goes on after step", number)"""


class Book(browsing.Book):
    """A notebook in classic Notebook, where cells, menus and buttons have other names than in JupyterLab."""

    def load(self) -> None:
        parts = self.path.parts
        self.page.goto(f"{self._address}/notebooks/{'/'.join(parts[parts.index('books') + 1 :])}")
        self.page.wait_for_selector("#notebook-container .cell")
        self.page.wait_for_selector("#kernel_indicator_icon.kernel_idle_icon")
        self.page.wait_for_function("Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()")

    def cell(self, title: str):  # type: ignore[no-untyped-def]
        found = self.page.locator(".code_cell", has=self.page.locator(".input_area", has_text=f"#@title {title}"))
        return found.first

    def output(self, title: str):  # type: ignore[no-untyped-def]
        return self.cell(title).locator(".output_wrapper")

    def run_all(self) -> None:
        self.page.locator("#celllink").click()
        self.page.locator("#run_all_cells a").click()

    def run(self, title: str) -> None:
        prompt = self.cell(title).locator(".input_prompt")
        prompt.scroll_into_view_if_needed()
        prompt.click()
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+Enter")

    def stop(self) -> None:
        self.page.locator("button[data-jupyter-action='jupyter-notebook:interrupt-kernel']").click()

    def is_running(self, title: str) -> bool:
        return self._prompt(title) == RUNS

    def _prompt(self, title: str) -> str:
        words = self.cell(title).locator(".input_prompt").inner_text()
        return str(words).strip().replace("\xa0", " ")

    def wait_for(self, title: str, says: str = "", seconds: float = SECONDS) -> str:
        words = self.output(title)

        def is_there() -> bool:
            wrong = self.page.locator(".output_error")
            assert wrong.count() == 0, wrong.first.inner_text()
            return bool(re.search(says, words.inner_text()) if says else RAN.fullmatch(self._prompt(title)))

        until(is_there, f"the cell {title!r} {f'says {says}' if says else 'ends'}", seconds)
        return str(words.inner_text())


@contextmanager
def classic(folder: Path) -> Iterator[str]:
    """A classic Notebook over `folder/books`, with its own settings and home beside it; gives its address."""
    for name in ("books", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
             "IPYTHONDIR": "ipython", "HOME": "home"}  # fmt: skip
    own = {name: str(folder / below) for name, below in place.items()}
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    line = [
        sys.executable, "-m", "notebook", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
        "--NotebookApp.token=", "--NotebookApp.password=", "--NotebookApp.disable_check_xsrf=True",
        f"--notebook-dir={folder / 'books'}",
    ]  # fmt: skip
    with (folder / "notebook.log").open("w") as log:
        server = subprocess.Popen(line, env=os.environ | own | more, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: server.poll() is not None or browsing._answers(f"{address}/api/status"), "Notebook answers", 120)
        assert server.poll() is None, (folder / "notebook.log").read_text()[-2000:]
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Opens notebooks: a function of the notebook's file below the folder that it gives."""
    browsing.require("playwright")
    folder = tmp_path_factory.mktemp("classic")
    with classic(folder) as address, browsing.chromium() as browser:

        def opened(path: Path) -> Book:
            page = browser.new_context(viewport={"width": 1280, "height": 1600}).new_page()
            page.set_default_timeout(SECONDS * 1000)
            book = Book(page, address, path)
            book.load()
            return book

        yield opened, folder / "books"


def written(path: Path, *cells: str) -> Path:
    """A notebook of those cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


def test_what_is_changed_in_a_form_is_read_by_the_next_cell(notebook, tmp_path):
    """L2: prompts, a slider, a checkbox, a list, a number left open; what is wrong is said beside its field."""
    opened, books = notebook
    book = opened(written(books / "form/form.ipynb", FORM, READ))
    book.run("Form")
    book.wait_for("Form", says="rank")
    book.set_text("prompts", "a photo of <myspecialstyle> ığüş <b>bold</b>\na star")
    book.set_number("rank", 24)
    book.set_number("lora_scale", 0.8)
    book.set_number("max_train_steps", 120)
    book.choose("refine", "none")
    book.page.locator(".lace-random_flip input[type=checkbox]").uncheck()
    book.run("Read")
    said = book.wait_for("Read", says="in all: 24")
    assert said.strip().splitlines() == [
        "prompts ('a photo of <myspecialstyle> ığüş <b>bold</b>', 'a star')",
        "rank 24",
        "lora_scale 0.8",
        "random_flip False",
        "refine 'none'",
        "max_train_steps 120",
        "in all: 24",
    ]
    book.set_number("learning_rate", -1)
    wrong = book.page.locator(".lace-learning_rate-note [role=alert]")
    wrong.wait_for()
    assert "learning_rate is -1.0 but must be above 0 to 1." in wrong.inner_text()
    book.page.screenshot(path=str(tmp_path / "form.png"))
    book.set_number("learning_rate", 0.0001)
    wrong.wait_for(state="detached")
    book.close()


def test_progress_moves_while_a_cell_runs_and_the_stop_button_ends_it_after_a_step(notebook, tmp_path):
    """L2: by the front-end's own button; what stands after the loop still runs, and so do later cells."""
    opened, books = notebook
    book = opened(written(books / "work/work.ipynb", WORK, AFTER))
    book.run("Work")
    book.wait_for("Work", says=r"step \d+/600")
    seen = book.output("Work").inner_text()
    until(lambda: book.output("Work").inner_text() != seen, "the words beside the bar change")
    bar = book.page.locator(".lace-progress-bar .progress-bar, .lace-progress-bar .bar").first
    until(lambda: bar.evaluate("one => one.getBoundingClientRect().width") > 1, "the bar grows")
    assert book.is_running("Work")
    book.page.screenshot(path=str(tmp_path / "work.png"))
    book.stop()
    said = book.wait_for("Work", says="saved at step")
    assert "Stopping after this step." in said
    book.run("After")
    saved = re.search(r"saved at step (\d+)", said)
    assert saved is not None and 1 < int(saved[1]) < 600
    assert book.wait_for("After", says="goes on").strip() == f"the notebook goes on after step {saved[1]}"
    book.close()


def test_the_gallery_of_notebook_02_pages_and_keeps_what_is_typed(notebook, tmp_path):
    """L2, L11: run from the top; a caption typed before paging on stands in annotations.txt and in the box again."""
    opened, books = notebook
    folder = books / "gallery"
    book = opened(browsing.put(folder, "02_annotate"))
    book.run_all()
    book.page.wait_for_selector(".lace-gallery-card img")
    file = folder / "demo_output/pictures/annotations.txt"
    box = book.page.locator(".lace-gallery-caption textarea").first
    box.fill("")
    typed = "a photo of <myspecialstyle> typed in classic Notebook, ığüş"
    box.press_sequentially(typed, delay=5)
    until(lambda: f"lace_000.jpg\t{typed}\n" in file.read_text(encoding="utf-8"), "it is saved")
    book.page.locator("button.lace-gallery-next").click()
    book.page.get_by_text("page 2 of").wait_for()
    book.page.screenshot(path=str(tmp_path / "gallery.png"))
    book.page.locator("button.lace-gallery-back").click()
    book.page.get_by_text("page 1 of").wait_for()
    until(lambda: box.input_value() == typed, "the caption stands in its box again")
    book.close()
