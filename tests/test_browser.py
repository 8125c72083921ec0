"""The five notebooks in a real browser: JupyterLab and Debian's chromium, clicked as a person clicks (L2, L20).

They are opened in their order in one folder, as a designer does: 04 and 05 use what 03 has trained. Each also runs
alone: `pytest tests/test_browser.py -k 05`. Whatever a page writes on its console as an error fails its test.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from lace_lora.demo.draw import UNSEEN_SEED, write_lace_folder
from tests import browsing
from tests.browsing import PHONE, ROOT, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
STEPS, PICTURES = 12, 30  # a gallery of three pages
REPORT = "The report, and what to take with you"
TYPED = "a photo of <myspecialstyle> typed in a browser, ığüş <b>bold</b>"


@pytest.fixture(scope="module")
def folder(lab):
    """The folder that all five share, with a few photographs: drawn by program, as the demo's."""
    shared = lab[1] / "shared"
    write_lace_folder(shared / "lace", count=PICTURES)
    write_lace_folder(shared / "unseen", count=8, seed=UNSEEN_SEED)
    return shared


@pytest.fixture
def opened(browser, lab, folder):
    """Open a notebook in the shared folder; it is closed after the test, and its console looked at."""
    address, _ = lab
    made = []

    def open_book(name, **parameters):
        path = browsing.put(folder, name, **parameters)
        made.append(browsing.open_book(browser, address, path))
        return made[-1]

    yield open_book
    for book in made:
        book.close()


@pytest.fixture
def trained(folder):
    """The shared folder with a trained run: that of 03, or a short one where 03 was not run."""
    if not (folder / "demo_output/demo/adapter/adapter.json").is_file():
        line = "train --preset demo --images-dir lace --max-train-steps 2 --prior-loss-weight 0 --log-with none"
        lace_lora(folder, line)
    return folder


def lace_lora(folder, line):
    """A command, typed in a folder."""
    place = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    typed = [sys.executable, "-m", "lace_lora.main", *line.split()]
    subprocess.run(typed, cwd=folder, check=True, capture_output=True, env=place)


def rows_of(path):
    """The lines of a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def assert_it_fits_a_phone(book):
    """L20: no widget has to be scrolled sideways in a window of 390 px."""
    book.resize(PHONE)
    book.page.wait_for_timeout(500)
    assert book.too_wide() == []


def test_01_every_line_of_the_check_has_a_tick_but_for_the_missing_gpu(opened):
    """L2, C12: what is found stands beside a tick; what is missing beside a cross, with what to click."""
    book = opened("01_set_up")
    book.run_all()
    lines = book.wait_for("Check").splitlines()
    assert [line for line in lines if line.startswith("✗")] == [f"✗\tGPU\tnone\t{next_click()}"]
    assert len([line for line in lines if line.startswith("✓")]) > 5
    assert_it_fits_a_phone(book)


def next_click():
    """What the check advises where there is no GPU."""
    from lace_lora import preflight, presets
    from lace_lora.config import load
    from lace_lora.machine import Machine

    bare = Machine.here()
    return next(row[3] for row in preflight.rows(presets.settle(load(preset="demo"), bare), bare) if row[0] == "GPU")


def test_02_a_caption_typed_in_the_gallery_is_kept_and_still_there_after_paging(opened):
    """L2, L11: it stands in annotations.txt, and as text, not as HTML."""
    book = opened("02_annotate", images_dir="lace")
    book.run_all()
    book.wait_for("Gallery")
    page, file = book.page, book.path.parent / "lace/annotations.txt"
    box = page.locator(".lace-gallery-caption textarea").first
    box.fill("")
    box.press_sequentially(TYPED, delay=2)
    until(lambda: f"lace_000.jpg\t{TYPED}\n" in file.read_text(encoding="utf-8"), "the caption is kept")
    page.locator("button.lace-gallery-next").first.click()
    page.get_by_text("page 2 of").wait_for()
    assert page.locator(".lace-gallery-card img").first.evaluate("one => one.naturalWidth > 0")
    page.locator("button.lace-gallery-back").first.click()
    page.get_by_text("page 1 of").wait_for()
    until(lambda: page.locator(".lace-gallery-caption textarea").first.input_value() == TYPED, "it stands there")
    assert page.locator(".lace-gallery-card b", has_text="bold").count() == 0
    assert_it_fits_a_phone(book)


def test_03_a_training_is_changed_in_the_form_watched_stopped_and_goes_on(opened):
    """L2, L14: prompt and steps as typed; ■ ends it after a step; the same cell again goes on to the end."""
    book = opened("03_train", images_dir="lace", train_batch_size=2, prior_loss_weight=0.0)
    for title in ("Install", "", "Plan", "Form"):
        book.run(title)
        book.wait_for(title)
    book.set_text("instance_prompt", TYPED)
    book.set_number("max_train_steps", STEPS)
    book.set_number("sample_every", 3)
    book.run("Train")
    book.wait_for("Train", says=rf"step [2-9]/{STEPS}")
    assert 0 < book.page.locator(".lace-progress-bar .progress-bar").bounding_box()["width"]
    book.stop()
    said = book.wait_for("Train")
    stopped = int(re.search(rf"Stopped at step (\d+) of {STEPS}", said)[1])
    assert 2 <= stopped < STEPS
    run = book.path.parent / "demo_output/demo"
    assert (run / f"checkpoints/step-{stopped:06d}").is_dir()

    book.run("Train")
    book.wait_for("Train", says=f"after step {stopped}")
    until(lambda: not book.is_running("Train"), "the training ends", 120)
    output = book.output("Train")
    assert f"step {STEPS}/{STEPS}" in output.inner_text()
    assert output.locator(".lace-progress-chart svg path, .lace-progress-chart svg polyline").count()
    samples = output.locator(".lace-thumbnail img")
    until(lambda: samples.evaluate_all("all => all.length && all.every(one => one.naturalWidth > 0)"), "samples stand")
    facts = json.loads((run / "adapter/adapter.json").read_text(encoding="utf-8"))
    assert (facts["step"], facts["instance_prompt"]) == (STEPS, TYPED)
    assert [row["step"] for row in rows_of(run / "log.jsonl") if "loss" in row] == list(range(1, STEPS + 1))

    book.run("Before and after")
    book.wait_for("Before and after")
    strip = book.output("Before and after").locator("img")
    assert strip.evaluate("one => one.naturalWidth") > 300
    assert_it_fits_a_phone(book)


def test_04_designs_fill_the_gallery_and_a_starred_one_is_refined_alone(opened, trained):
    """L7, L11: three are drawn unrefined, one is starred, the form is changed, and only that one is drawn again."""
    book = opened("04_generate", num_images=3, num_inference_steps=8, refine="none", seed=0)
    images = book.path.parent / "demo_output/demo/images"
    book.run_all()
    book.wait_for("Favourites again, or variations")
    page = book.page
    assert page.locator(".lace-designs-card img").count() == 3
    page.locator("button.lace-designs-star").nth(2).click()
    stars = images / "sheet/starred.json"
    until(lambda: stars.is_file() and [one["index"] for one in json.loads(stars.read_text())["starred"]] == [2], "a ★")
    page.locator("button.lace-designs-look").nth(2).click()
    page.wait_for_selector(".lace-designs-large img")

    book.choose("refine", "ensemble")
    page.locator("button.lace-designs-redraw").click()
    page.get_by_text("are to be drawn again: run the next cell").wait_for()
    book.run("Favourites again, or variations")
    book.wait_for("Favourites again, or variations", says="designs in .*sheet-2")
    assert (images / "sheet-2/sheet-2.zip").is_file()
    assert [(row["seed"], row["refine"]) for row in rows_of(images / "sheet-2/images.jsonl")] == [(2, "ensemble")]
    assert not list((images / "sheet").glob("refined_output_*"))
    assert_it_fits_a_phone(book)


def test_05_pairs_are_chosen_blind_by_button_and_by_key_and_designs_are_rated(opened, trained):
    """P24: an answer by button, one typed, one taken back; what was said stands on the disk and in the report."""
    if not (trained / "demo_output/demo/images").is_dir():
        lace_lora(trained, "generate --preset demo --num-images 2 --num-inference-steps 4 --refine none")
    book = opened("05_evaluate", images_dir="lace", unseen_dir="unseen", num_evaluated=4, num_inference_steps=4)
    evaluation = book.path.parent / "demo_output/demo/evaluation"
    book.run_all()
    book.wait_for(REPORT)
    page = book.page

    def said():
        return [row["said"] for row in rows_of(evaluation / "blind.jsonl")]

    page.wait_for_timeout(1500)  # an answer within a second is not taken
    blind = book.output("Decide blind")  # there may be two checkpoints to choose between, too
    blind.locator("button.lace-rating-left").click()
    until(lambda: said() == ["left"], "the answer is kept")
    page.wait_for_timeout(1500)
    blind.locator(".lace-rating-typed input").fill("4")
    until(lambda: said() == ["left", "neither"], "the answer is kept")
    blind.locator("button.lace-rating-back").click()
    until(lambda: said() == ["left", "neither", None], "the answer is taken back")
    experts = book.output("Rate designs")
    for scale in ("clarity", "compliance"):
        experts.locator(f".lace-rating-{scale} button", has_text="4").click()
    experts.locator("button.lace-rating-save").click()
    ratings = evaluation / "ratings.csv"
    until(lambda: ratings.is_file() and "\nsheet" in ratings.read_text(encoding="utf-8"), "the rating is kept")
    book.run(REPORT)
    book.wait_for(REPORT)
    report = (evaluation.parent / "report.html").read_text(encoding="utf-8")
    assert "ratings" in report
    assert_it_fits_a_phone(book)
