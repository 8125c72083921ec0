"""The notebooks in a real browser: JupyterLab and Debian's chromium, clicked as a person clicks (L2, L11).

Run by name: pytest -m slow tests/test_browser.py, with the packages of the extra `browser`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.generated import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("jupyterlab", "playwright") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -e '.[browser]'"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium"),
]
WAIT_MS = 240_000  # the first cells import torch
TYPED = "a photo of <myspecialstyle> typed in a browser, ığüş <b>bold</b>"


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab over a folder with the second notebook; gives its address and the folder."""
    book = json.loads((ROOT / "notebooks/02_annotate.ipynb").read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "02_annotate.ipynb").write_text(json.dumps(book), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
         "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
             "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address, folder
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def page():
    """A page of a fresh browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 1600})
        browser.close()


def open_book(page, address: str) -> None:
    page.goto(f"{address}/lab/tree/02_annotate.ipynb")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=WAIT_MS)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=WAIT_MS)  # before, cells would not run


def run_all(page) -> None:
    page.keyboard.press("Escape")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def until(what, seconds: float = 30):
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.1)
    assert what()


def test_a_caption_typed_in_the_gallery_outlives_paging_and_a_reload(lab, page, tmp_path):
    """L2, L11: typed, paged on, page reloaded: it stands in annotations.txt and in the gallery run again."""
    address, folder = lab
    file = folder / "demo_output/pictures/annotations.txt"
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if "TypeError" in said.text else None)
    open_book(page, address)
    run_all(page)
    page.wait_for_selector(".lace-gallery-card img", timeout=WAIT_MS)
    box = page.locator(".lace-gallery-caption textarea").first
    box.fill("")
    box.press_sequentially(TYPED, delay=5)
    until(lambda: f"lace_000.jpg\t{TYPED}\n" in file.read_text(encoding="utf-8"))
    page.locator("button.lace-gallery-next").click()
    page.get_by_text("page 2 of").wait_for()
    page.locator("button.lace-gallery-back").click()
    page.get_by_text("page 1 of").wait_for()
    until(lambda: page.locator(".lace-gallery-caption textarea").first.input_value() == TYPED)
    assert page.locator(".lace-gallery-card b", has_text="bold").count() == 0, "what is typed is text, not HTML"

    page.locator(".lace-gallery-use input").nth(1).uncheck()
    until(lambda: (folder / "demo_output/pictures/dataset.json").is_file())
    page.screenshot(path=str(tmp_path / "gallery.png"))
    page.keyboard.press("Control+s")
    time.sleep(2)
    assert (folder / "02_annotate.ipynb").stat().st_size < 1_000_000

    open_book(page, address)
    assert f"lace_000.jpg\t{TYPED}\n" in file.read_text(encoding="utf-8")
    run_all(page)
    until(lambda: _first_caption(page) == TYPED, seconds=240)
    assert not page.locator(".lace-gallery-use input").nth(1).is_checked()
    assert not errors


def test_text_typed_right_before_paging_on_stays_with_its_picture(lab, page):
    """L11: a click overtakes text that the browser still holds back."""
    address, folder = lab
    file = folder / "demo_output/pictures/annotations.txt"
    open_book(page, address)
    run_all(page)
    page.wait_for_selector(".lace-gallery-card img", timeout=WAIT_MS)
    before = dict(line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
    box = page.locator(".lace-gallery-caption textarea").first
    box.fill("a photo of <myspecialstyle> ")
    box.press_sequentially("x" * 60)  # without a pause: the kernel lags behind
    page.locator("button.lace-gallery-next").first.click()
    page.get_by_text("page 2 of").wait_for()
    expected = before | {"lace_000.jpg": "a photo of <myspecialstyle> " + "x" * 60}
    until(lambda: dict(line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()) == expected)


def test_a_photograph_is_prepared_with_the_sliders(lab, page):
    """L11: a corner typed into its slider is kept in dataset.json; the file itself is left alone."""
    address, folder = lab
    open_book(page, address)
    run_all(page)
    page.wait_for_selector(".lace-gallery-card img", timeout=WAIT_MS)
    before = (folder / "demo_output/pictures/lace_000.jpg").read_bytes()
    page.locator("button.lace-gallery-prepare").first.click()
    page.locator(".lace-swatch-straighten input").check()
    dataset = folder / "demo_output/pictures/dataset.json"
    until(lambda: dataset.is_file() and "corners" in dataset.read_text(encoding="utf-8"))
    readout = page.locator(".lace-swatch-corner-1-across .widget-readout")
    readout.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("12.5")
    page.keyboard.press("Enter")
    until(lambda: json.loads(dataset.read_text())["images"][0]["swatch"]["corners"][0][0] == 0.125)
    assert (folder / "demo_output/pictures/lace_000.jpg").read_bytes() == before
    page.get_by_text("prepared").first.wait_for()


def _first_caption(page) -> str:
    boxes = page.locator(".lace-gallery-caption textarea")
    return boxes.first.input_value() if boxes.count() else ""


def test_the_browser_is_the_one_of_this_machine():
    """The skip reasons above must not hide a browser that is there."""
    assert Path(str(CHROMIUM)).is_file()
