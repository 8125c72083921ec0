"""Notebooks in JupyterLab and Debian's chromium, used as a person uses them: for the tests and for the screenshots.

    with browsing.lab(folder) as address, browsing.chromium() as browser:
        book = browsing.open_book(browser, address, browsing.put(folder, "03_train", max_train_steps=9))
        book.run_all()
        book.wait_for("Train", says="step 3/")
        book.stop()

Where the browser or JupyterLab is missing, tests skip with the reason; where LACE_BROWSER=required or CI=true is set,
that is a failure. The fixtures `browser` and `lab` of tests/conftest.py last as long as a test module.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = (1280, 1600), (390, 844)  # px, width and height of the window
# The first cell that imports torch takes its time on a machine with other work.
SECONDS = 240
SHORT = yaml.safe_load((ROOT / "tests/nbval_parameters.yaml").read_text(encoding="utf-8"))
# Lab draws only the cells in sight otherwise; and it asks a server for news.
LAB_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}
# What Lab itself writes on the console of a browser that is not online; nothing of ours.
HARMLESS = re.compile(r"Failed to load resource|favicon|\[FATAL\] .*rtc", re.I)
# In an output: what ends to the right of it, and what can be scrolled sideways. Of parts within parts the innermost.
WITH_WIDGETS = ".jp-OutputArea-output:has(.jupyter-widgets)"
TOO_WIDE = """all => all.flatMap(output => {
  const end = output.getBoundingClientRect().right
  const wide = [output, ...output.querySelectorAll('*')].filter(one => {
    const box = one.getBoundingClientRect()
    const scrolls = ['auto', 'scroll'].includes(getComputedStyle(one).overflowX)
    return box.width && (box.right > end + 1 || (scrolls && one.scrollWidth > one.clientWidth + 1))
  })
  return wide.filter(one => !wide.some(other => other !== one && one.contains(other))).map(one =>
    `${one.tagName} ${one.className}: ${one.scrollWidth} px in ${output.clientWidth}: ${one.textContent.slice(0, 60)}`)
})"""
# Errors and what libraries write to stderr: Lab shows both in red, and a designer must see neither.
RED = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
RUNS, RAN = "[*]:", re.compile(r"\[\d+\]:")


# -- what must be there --


def lacking(*modules: str) -> str:
    """Why no browser can be used here: a sentence with what to do, or nothing.

    modules  that are imported: playwright, jupyterlab
    """
    absent = [name for name in modules if find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed: pip install -c constraints.txt -e '.[browser]'"
    return "" if CHROMIUM else "no chromium here: apt install chromium (or google-chrome)"


def require(*modules: str) -> None:
    """Skip the test with the reason where a browser is missing; fail it where one was promised."""
    if why := lacking(*modules):
        promised = os.environ.get("LACE_BROWSER") == "required" or os.environ.get("CI", "").lower() in ("true", "1")
        (pytest.fail if promised else pytest.skip)(why)


# -- JupyterLab and the browser --


@contextmanager
def chromium() -> "Iterator[Browser]":
    """A browser. While it is open, nothing else in this thread may run an event loop: keep it inside a module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """A JupyterLab over `folder/books`, with its own settings, home and caches beside it; gives its address.

    GPUs are hidden from the notebooks, so that `preset: auto` takes the demo everywhere.
    """
    for name in ("books", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, values in LAB_SETTINGS.items():
        kept = folder / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "HOME": "home",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    line = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder / 'books'}",
        "--LabApp.extension_manager=readonly", "--ServerApp.disable_check_xsrf=True",
    ]  # fmt: skip
    own = {name: str(folder / below) for name, below in place.items()}
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(line, env=os.environ | own | more, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: server.poll() is not None or _answers(f"{address}/api/status"), "JupyterLab answers", 120)
        assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
        yield address
    finally:
        server.terminate()  # it ends its kernels, too
        server.wait(30)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2).close()
    except OSError:
        return False
    return True


# -- notebooks --


def put(folder: Path, name: str, **parameters: Any) -> Path:
    """Copy a notebook of the project without its outputs; the short runs of nbval, or what is given, are its values."""
    book = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in cell["metadata"].get("tags", []):
            own = "".join(cell["source"])
            known = {key: value for key, value in (SHORT | parameters).items() if f"\n{key} = " in f"\n{own}"}
            unknown = parameters.keys() - known.keys()
            assert not unknown, f"{name} takes no {unknown}"
            cell["source"] = "\n".join([own, *(f"{key} = {value!r}" for key, value in known.items())])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    return path


def open_book(browser: "Browser", address: str, path: Path, size: tuple[int, int] = DESKTOP) -> "Book":
    """Open a notebook below the folder `books` in a window of its own, and wait until its kernel is ready."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    page.set_default_timeout(60_000)
    book = Book(page, address, path)
    book.load()
    return book


class Book:
    """A notebook on the screen. Cells go by the words after `#@title`; red text fails what waits for a cell.

    page    Playwright's page, for whatever a test clicks itself
    errors  what the page wrote on its console or threw; `close` fails when there is any
    """

    def __init__(self, page: "Page", address: str, path: Path) -> None:
        self.page, self.path, self.errors = page, path, list[str]()
        self._address = address
        page.on("console", lambda said: self._note(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self._note(str(error)))

    def _note(self, text: str) -> None:
        if not HARMLESS.search(text):
            self.errors.append(text)

    def load(self) -> None:
        """Open the notebook, or open it again as it was saved; its kernel goes on."""
        parts = self.path.parts
        below = "/".join(parts[parts.index("books") + 1 :])
        self.page.goto(f"{self._address}/lab/workspaces/{self.path.stem}/tree/{below}?reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        self.page.get_by_text(re.compile(r"\| Idle$")).wait_for()  # before, cells would not run
        self._hide_files()

    def cell(self, title: str) -> "Locator":
        """The code cell with that title; "" is the parameters cell."""
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        first_lines = ["".join(cell["source"]).split("\n")[0] for cell in code]
        wanted = re.compile(rf"#@title {re.escape(title)}( \(.*)?$")
        (place,) = (
            number
            for number, cell in enumerate(code)
            if ("parameters" in cell["metadata"].get("tags", []) if not title else wanted.match(first_lines[number]))
        )
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(place)

    def output(self, title: str) -> "Locator":
        """What stands below a cell."""
        return self.cell(title).locator(".jp-Cell-outputArea")

    def run_all(self) -> None:
        """Run → Run All Cells, by the menu."""
        self.page.keyboard.press("Escape")
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def run(self, title: str) -> None:
        """Select a cell and press Ctrl+Enter."""
        prompt = self.cell(title).locator(".jp-InputPrompt").first
        prompt.scroll_into_view_if_needed()
        prompt.click()
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+Enter")

    def stop(self) -> None:
        """The ■ of the notebook's toolbar."""
        self.page.locator(".jp-NotebookPanel-toolbar [data-jp-item-name=interrupt]").first.click()

    def is_running(self, title: str) -> bool:
        """Whether the cell runs or waits for others."""
        return self.cell(title).locator(".jp-InputPrompt").first.inner_text().strip() == RUNS

    def wait_for(self, title: str, says: str = "", seconds: float = SECONDS) -> str:
        """Wait until a cell has ended, or says what matches a pattern; return its words. Red text anywhere fails."""
        words, prompt = self.output(title), self.cell(title).locator(".jp-InputPrompt").first

        def is_there() -> bool:
            red = self.page.locator(RED)
            assert red.count() == 0, f"in red: {red.first.inner_text()}"
            if says:
                return bool(re.search(says, words.inner_text()))
            return bool(RAN.fullmatch(prompt.inner_text().strip()))

        try:
            until(is_there, f"the cell {title!r} {f'says {says}' if says else 'ends'}", seconds)
        except AssertionError as error:
            prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
            raise AssertionError(
                f"{error}; cells {' '.join(prompts)}; it says:\n{words.inner_text()[-2000:]}"
            ) from None
        return words.inner_text()

    def set_number(self, name: str, value: float) -> None:
        """Write a number into a form: into a slider's readout or a box, taking the tick of *auto* away first."""
        left_open = self.page.locator(f".lace-{name}-open input[type=checkbox]")
        if left_open.count() and left_open.is_checked():
            left_open.uncheck()
        field = self.page.locator(f".lace-{name}")
        readout = field.locator(".widget-readout")
        place = readout if readout.count() else field.locator("input")
        place.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(f"{value}")
        self.page.keyboard.press("Enter")

    def set_text(self, name: str, text: str) -> None:
        """Write a text into a form, in place of the one there."""
        place = self.page.locator(f".lace-{name} input, .lace-{name} textarea").first
        place.fill(text)
        place.blur()

    def choose(self, name: str, value: str) -> None:
        """Choose in a form's list."""
        self.page.locator(f".lace-{name} select").select_option(value)

    def resize(self, size: tuple[int, int]) -> None:
        """Make the window that large, in px; a narrow one is seen without Lab's list of files."""
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self._hide_files()

    def _hide_files(self) -> None:
        if self.page.locator("#jp-left-stack").is_visible():
            self.page.keyboard.press("Escape")
            self.page.keyboard.press("Control+b")
            self.page.locator("#jp-left-stack").wait_for(state="hidden")

    def too_wide(self) -> list[str]:
        """What must be scrolled sideways to be seen, or is cut off, in the outputs that hold widgets."""
        assert self.page.locator(WITH_WIDGETS).count(), "no widgets are drawn"
        found: list[str] = self.page.locator(WITH_WIDGETS).evaluate_all(TOO_WIDE)
        return found

    def close(self) -> None:
        """Close the window and end the kernel; fails with what the page wrote on its console."""
        self.page.context.close()
        with urllib.request.urlopen(f"{self._address}/api/sessions", timeout=20) as answer:
            running = json.load(answer)
        for session in running:
            if Path(session["path"]).name == self.path.name:
                ask = urllib.request.Request(f"{self._address}/api/sessions/{session['id']}", method="DELETE")
                urllib.request.urlopen(ask, timeout=20).close()
        assert not self.errors, "\n".join(self.errors)


def until(what: Callable[[], bool], told: str, seconds: float = 30) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain until {told}"
        time.sleep(0.1)
