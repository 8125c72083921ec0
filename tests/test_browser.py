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
# Instead of the cell with that tag: quick to draw, and not refined yet.
PARAMETERS = {
    "04_generate": "preset = lora_output_dir = run_name = sheet_name = prompts = prompts_file = None\n"
    "negative_prompt = guidance_scale = lora_scale = refiner_model = repeat = print_width_cm = None\n"
    "favourites_of = vary = seed = image_format = None\n"
    "num_images, num_inference_steps, refine = 4, 8, 'none'\n",
    "05_evaluate": "preset = images_dir = lora_output_dir = run_name = unseen_dir = prompts = plain_prompts = None\n"
    "lora_scale = style_model = text_model = seed = None\n"
    "num_evaluated, num_inference_steps = 5, 8\n",
}
TYPED = "a photo of <myspecialstyle> typed in a browser, ığüş <b>bold</b>"


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab over a folder with three notebooks; gives its address and the folder."""
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("02_annotate", "04_generate", "05_evaluate"):
        book = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))
        for cell in book["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
            if "parameters" in cell["metadata"].get("tags", []) and name in PARAMETERS:
                cell["source"] = PARAMETERS[name]
        (folder / f"{name}.ipynb").write_text(json.dumps(book), encoding="utf-8")
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


def open_book(page, address: str, name: str = "02_annotate") -> None:
    page.goto(f"{address}/lab/tree/{name}.ipynb")
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


def test_a_starred_design_is_refined_alone(lab, page, tmp_path):
    """L7, L11: four are drawn unrefined, one is starred, the form is changed, and only that one is drawn again."""
    address, folder = lab
    line = "train --preset demo --max-train-steps 2 --num-class-images 2 --log-with none"
    subprocess.run(
        [sys.executable, "-m", "lace_lora.main", *line.split()], cwd=folder, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    images = folder / "demo_output/demo/images"
    open_book(page, address, "04_generate")
    run_all(page)
    page.wait_for_selector(".lace-designs-card img", timeout=WAIT_MS)
    page.locator("button.lace-designs-star").nth(2).click()
    stars = images / "sheet/starred.json"
    until(lambda: stars.is_file() and [one["index"] for one in json.loads(stars.read_text())["starred"]] == [2])
    page.locator("button.lace-designs-look").nth(2).click()
    page.wait_for_selector(".lace-designs-large img")
    page.screenshot(path=str(tmp_path / "designs.png"))

    page.locator(".lace-refine select").select_option("ensemble")
    page.locator("button.lace-designs-redraw").click()
    page.get_by_text("are to be drawn again: run the next cell").wait_for()
    last = page.locator(".jp-CodeCell").last
    last.scroll_into_view_if_needed()
    last.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Shift+Enter")
    until(lambda: (images / "sheet-2/sheet-2.zip").is_file(), seconds=120)
    rows = [json.loads(row) for row in (images / "sheet-2/images.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["refine"]) for row in rows] == [(2, "ensemble")]
    assert not list((images / "sheet").glob("refined_output_*"))


def test_pairs_are_chosen_blind_by_button_and_by_key_and_designs_are_rated(lab, page, tmp_path):
    """P24: two answers by button, one typed, one taken back; what was said stands on the disk and in the report."""
    address, folder = lab
    training = "train --max-train-steps 2 --num-class-images 2 --log-with none"
    for line in (training, "generate --num-images 2 --refine none"):
        subprocess.run(
            [sys.executable, "-m", "lace_lora.main", *line.split(), "--preset", "demo"], cwd=folder, check=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    evaluation = folder / "demo_output/demo/evaluation"
    answers = evaluation / "blind.jsonl"
    open_book(page, address, "05_evaluate")
    run_all(page)
    page.wait_for_selector(".lace-rating-picture img", timeout=2 * WAIT_MS)

    def said() -> list[str]:
        return [json.loads(line)["said"] for line in answers.read_text().splitlines()] if answers.is_file() else []

    page.screenshot(path=str(tmp_path / "blind.png"))
    page.wait_for_timeout(1500)  # an answer within a second is not taken
    page.locator("button.lace-rating-left").click()
    until(lambda: said() == ["left"])
    page.wait_for_timeout(1500)
    page.locator(".lace-rating-typed input").fill("4")
    until(lambda: said() == ["left", "neither"])
    page.locator("button.lace-rating-back").first.click()
    until(lambda: said() == ["left", "neither", None])
    for scale in ("clarity", "compliance"):
        page.locator(f".lace-rating-{scale} button", has_text="4").click()
    page.locator("button.lace-rating-save").click()
    until(lambda: "sheet,0," in (evaluation / "ratings.csv").read_text(encoding="utf-8"))
    page.screenshot(path=str(tmp_path / "experts.png"))
    assert (folder / "demo_output/demo/report.html").is_file()


def _first_caption(page) -> str:
    boxes = page.locator(".lace-gallery-caption textarea")
    return boxes.first.input_value() if boxes.count() else ""


def test_the_browser_is_the_one_of_this_machine():
    """The skip reasons above must not hide a browser that is there."""
    assert Path(str(CHROMIUM)).is_file()
