"""More of the gallery of notebook 02 in a real browser: typed in haste, loaded again (L2, L11)."""

import json

import pytest

from lace_lora.demo.draw import write_lace_folder
from tests import browsing
from tests.browsing import until

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(900)]
TYPED = "a photo of <myspecialstyle> typed in a browser, ığüş"


@pytest.fixture
def gallery(browser, lab, tmp_path):
    """Notebook 02, run in a folder of its own, with its gallery on the screen."""
    address, books = lab
    folder = books / tmp_path.name
    write_lace_folder(folder / "lace", count=30)
    book = browsing.open_book(browser, address, browsing.put(folder, "02_annotate", images_dir="lace"))
    book.run_all()
    book.wait_for("Gallery")
    yield book
    book.close()


def captions(book):
    """What stands in annotations.txt, by file."""
    lines = (book.path.parent / "lace/annotations.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def first_caption(book):
    """What stands in the first box; nothing while there is none."""
    boxes = book.page.locator(".lace-gallery-caption textarea")
    return boxes.first.input_value() if boxes.count() else ""


def test_a_caption_outlives_a_reload_of_the_page(gallery):
    """L2, L11: page reloaded, cells run again: the caption and what is left out stand there; the notebook is small."""
    page, folder = gallery.page, gallery.path.parent
    box = page.locator(".lace-gallery-caption textarea").first
    box.fill(TYPED)
    until(lambda: captions(gallery)["lace_000.jpg"] == TYPED, "the caption is kept")
    page.locator(".lace-gallery-use input").nth(1).uncheck()
    until(lambda: (folder / "lace/dataset.json").is_file(), "what is left out is kept")
    page.keyboard.press("Control+s")
    page.wait_for_timeout(2000)
    assert gallery.path.stat().st_size < 1_000_000
    gallery.load()
    assert captions(gallery)["lace_000.jpg"] == TYPED
    gallery.run_all()
    until(lambda: first_caption(gallery) == TYPED, "the caption stands there again", 240)
    assert not page.locator(".lace-gallery-use input").nth(1).is_checked()


def test_text_typed_right_before_paging_on_stays_with_its_picture(gallery):
    """L11: a click overtakes text that the browser still holds back."""
    page, before = gallery.page, captions(gallery)
    box = page.locator(".lace-gallery-caption textarea").first
    box.fill("a photo of <myspecialstyle> ")
    box.press_sequentially("x" * 60)  # without a pause: the kernel lags behind
    page.locator("button.lace-gallery-next").first.click()
    page.get_by_text("page 2 of").wait_for()
    expected = before | {"lace_000.jpg": "a photo of <myspecialstyle> " + "x" * 60}
    until(lambda: captions(gallery) == expected, "it stands beside its own picture")


def test_a_photograph_is_prepared_with_the_sliders(gallery):
    """L11: a corner typed into its slider is kept in dataset.json; the file itself is left alone."""
    page, folder = gallery.page, gallery.path.parent / "lace"
    before = (folder / "lace_000.jpg").read_bytes()
    page.locator("button.lace-gallery-prepare").first.click()
    page.locator(".lace-swatch-straighten input").check()
    dataset = folder / "dataset.json"
    until(lambda: dataset.is_file() and "corners" in dataset.read_text(encoding="utf-8"), "corners are kept")
    readout = page.locator(".lace-swatch-corner-1-across .widget-readout")
    readout.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("12.5")
    page.keyboard.press("Enter")
    until(
        lambda: json.loads(dataset.read_text())["images"][0]["swatch"]["corners"][0][0] == 0.125, "the corner is kept"
    )
    assert (folder / "lace_000.jpg").read_bytes() == before
    page.locator(".lace-gallery-card").get_by_text("prepared").first.wait_for()
