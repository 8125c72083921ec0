"""The pictures in the documentation: the five notebooks on the demo in a real browser, as the tests click them.

    python -m tests.screenshots           all, into documentation/
    python -m tests.screenshots 03 04     only these

To be run when the notebooks look different, and looked at before it is committed. 04 and 05 show what 03 has trained,
so they train a run of their own where 03 is not asked for. All of it takes some minutes.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests import browsing
from tests.browsing import ROOT, Book

if TYPE_CHECKING:
    from playwright.sync_api import Locator

FOLDER = ROOT / "documentation"
MOST_BYTES, WIDTH_PX = 60_000, 1000
WINDOW = (1060, 3000)  # px; outputs are then about 860 px wide, and a whole one is seen at once
COLOURS, QUALITIES = (256, 128, 64, 32), (85, 72, 60, 48)  # of a palette, of a JPEG: until the file is small enough
STEPS = 200  # the chart has a shape then, and the samples are lace; the miniature takes some minutes


def main(numbers: list[str]) -> None:
    """Take the pictures of the notebooks with these numbers."""
    if why := browsing.lacking("jupyterlab", "playwright"):
        sys.exit(why)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        books = Path(place) / "books/lace"
        with browsing.lab(Path(place)) as address, browsing.chromium() as browser:
            for number, (name, values, show) in WALKS.items():
                if number in numbers or (number == "03" and {"04", "05"} & set(numbers)):
                    print(f"{name} …", flush=True)
                    book = browsing.open_book(browser, address, browsing.put(books, name, **values), WINDOW)
                    show(book)
                    book.close()


def of_01(book: Book) -> None:
    """The ticks."""
    book.run_all()
    book.wait_for("Check")
    keep(book, "01_check.png", book.output("Check"))


def of_02(book: Book) -> None:
    """The first photographs with their captions."""
    book.run_all()
    book.wait_for("Gallery")
    keep(book, "02_gallery.jpg", book.output("Gallery"), height=520)


def of_03(book: Book) -> None:
    """The form, and a training with its chart and samples."""
    book.run_all()
    book.wait_for("Form")
    keep(book, "03_form.png", book.output("Form"), height=900)
    book.wait_for("Train", seconds=1800)
    keep(book, "03_training.jpg", book.output("Train"), height=620)
    book.wait_for("Before and after")
    keep(book, "03_before_and_after.jpg", book.output("Before and after").locator("img"))


def of_04(book: Book) -> None:
    """The form, and the designs with two favourites."""
    book.run_all()
    book.wait_for("Favourites again, or variations")
    for place in (0, 2):
        book.page.locator("button.lace-designs-star").nth(place).click()
    book.page.locator(".lace-designs-starred").nth(1).wait_for()
    keep(book, "04_designs.jpg", book.output("Favourites"), height=560)


def of_05(book: Book) -> None:
    """The scores, and a blind pair."""
    book.run_all()
    book.wait_for("The report, and what to take with you", seconds=900)
    keep(book, "05_scores.png", book.output("The numbers"))
    keep(book, "05_blind_pair.jpg", book.output("Decide blind"))


WALKS = {
    "01": ("01_set_up", {}, of_01),
    "02": ("02_annotate", {}, of_02),
    "03": ("03_train", {"max_train_steps": STEPS, "num_class_images": 8, "sample_every": STEPS // 4}, of_03),
    "04": ("04_generate", {"num_images": 8, "num_inference_steps": 20}, of_04),
    "05": ("05_evaluate", {"num_evaluated": 8, "num_inference_steps": 20}, of_05),
}


def keep(book: Book, name: str, part: "Locator", height: int | None = None) -> None:
    """Keep a part of the notebook, its upper `height` px at most; a .jpg where there are pictures, else a .png."""
    part.evaluate("one => one.scrollIntoView()")
    book.page.mouse.move(0, 0)  # a row under the mouse would be coloured
    book.page.wait_for_timeout(500)  # pictures are decoded, folds are drawn
    beside = part.locator(".jp-OutputPrompt")  # the empty column to the left of an output
    left = round(beside.first.bounding_box()["width"]) if beside.count() else 0
    with Image.open(io.BytesIO(part.screenshot())) as taken:
        shown = taken.convert("RGB").crop((left, 2, taken.width, min(taken.height, height or taken.height)))
    if shown.width > WIDTH_PX:
        shown = shown.resize((WIDTH_PX, round(shown.height * WIDTH_PX / shown.width)), Image.Resampling.LANCZOS)
    path = FOLDER / name
    path.write_bytes(small(shown, is_photo=path.suffix == ".jpg"))
    print(f"  {path.relative_to(ROOT)}  {shown.width} × {shown.height} px  {path.stat().st_size / 1000:.0f} kB")


def small(picture: Image.Image, is_photo: bool) -> bytes:
    """A file as good as there is room for: with fewer colours or of a lower quality, then a smaller picture."""
    for colours, quality in zip(COLOURS, QUALITIES, strict=True):
        buffer = io.BytesIO()
        if is_photo:
            picture.save(buffer, "JPEG", quality=quality, optimize=True)
        else:
            picture.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            return buffer.getvalue()
    size = (picture.width * 4 // 5, picture.height * 4 // 5)
    return small(picture.resize(size, Image.Resampling.LANCZOS), is_photo)


if __name__ == "__main__":
    main(sys.argv[1:] or list(WALKS))
