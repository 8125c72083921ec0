"""The gallery of notebook 04: stars are kept as they are clicked, and only what is looked at is made (L2, L15)."""

import base64
import html
import io
import json
import os
import re

import ipywidgets
import pytest
from PIL import Image

from lace_lora import design_gallery, form_parts, notebook, page, stars
from lace_lora.design_gallery import CARD_BYTES, LARGE_BYTES, PAGE
from lace_lora.run_folder import RunFolder, SheetFolder

MARKUP = "<img src=x onerror=alert(1)> & 'gül' \"ışık\""


def draw(sheet: SheetFolder, count: int, drawn_at: float = 1e9, prompt: str = MARKUP) -> SheetFolder:
    sheet.root.mkdir(parents=True)
    rows = []
    for index in range(count):
        names = {"refined": sheet.refined(index, "png").name, "base": sheet.base(index, "png").name}
        rows.append({"index": index, "prompt": prompt, "seed": 100 + index, **names})
        for kind, name in names.items():
            Image.new("RGB", (16, 16), (index % 256, 200 * (kind == "base"), 0)).save(sheet.root / name)
    sheet.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.utime(sheet.manifest, (drawn_at, drawn_at))
    return sheet


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run with a sheet of 30 designs, drawn last, and one of 3."""
    made = RunFolder(tmp_path / "out" / "rose")
    draw(made.sheet("sheet"), 3)
    draw(made.sheet("sheet-2"), 30, 1.1e9)
    return made


@pytest.fixture
def form(run):
    """Its gallery, as drawn in a browser."""
    return design_gallery.open(run).form


def indices(form) -> list[int]:
    return [index for index, card in form._cards.items() if card.widget in form.cards.children]


def is_large(form) -> bool:
    return form.large.widget in form.cards.children


def words(widget: ipywidgets.HTML) -> str:
    return html.unescape(re.sub("<[^>]+>", " ", widget.value)).strip()


def shown_picture(widget: ipywidgets.HTML) -> Image.Image:
    data = re.search("base64,([^']+)'", widget.value)
    assert data, widget.value[:200]
    return Image.open(io.BytesIO(base64.b64decode(data[1])))


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


# ---- stars


def test_a_star_is_on_the_disk_as_soon_as_it_is_clicked_and_is_taken_back_the_same_way(run, form):
    """L15."""
    card = form.card(3)
    assert card.star.description == "☆ star"
    card.star.click()
    assert stars.read(run.sheet("sheet-2")) == {3} and card.star.description == "★ starred"
    assert "30 designs, 1 favourite (3)" in words(form.counts)
    assert "lace-designs-starred" in card.widget._dom_classes
    card.star.click()
    assert stars.read(run.sheet("sheet-2")) == frozenset() and card.star.description == "☆ star"
    assert "lace-designs-starred" not in card.widget._dom_classes


def test_two_galleries_in_turn_keep_the_stars_of_both(run):
    """L15: and each sees the other's when it shows a page."""
    one, other = design_gallery.open(run).form, design_gallery.open(run).form
    one.card(1).star.click()
    other.card(2).star.click()
    one.card(5).star.click()
    other.card(2).star.click()
    assert stars.read(run.sheet("sheet-2")) == {1, 5}
    other.show(0)
    assert other.card(5).star.description == "★ starred" and other.card(2).star.description == "☆ star"


def test_only_favourites_shows_them_and_one_that_loses_its_star_stays_until_it_is_chosen_anew(run, form):
    """L15."""
    for index in (2, 9):
        form.card(index).star.click()
    form.only.value = True
    assert indices(form) == [2, 9]
    form.card(2).star.click()
    assert indices(form) == [2, 9], "a slip is mended in place"
    form.only.value = False
    form.only.value = True
    assert indices(form) == [9]


def test_what_cannot_be_saved_is_said_and_the_star_is_not_shown(run, form):
    """L15: a widget's callback has no traceback that anybody sees."""
    run.sheet("sheet-2").stars.mkdir()
    form.card(3).star.click()
    assert "cannot be read" in words(form.said) and "alert" in form.said.value
    assert form.card(3).star.description == "☆ star"
    form.back.click()
    assert "cannot be read" in words(form.said)


def test_a_damaged_file_of_stars_is_said(run):
    """L15."""
    run.sheet("sheet-2").stars.write_text('{"starred": [1,')
    form = design_gallery.open(run).form
    assert "cannot be understood" in words(form.said) and indices(form) == list(range(PAGE))


# ---- looking


def test_pages_and_sheets_show_every_design_once(run, form):
    """L15: the sheet drawn last comes first."""
    assert [name for name, _ in form.sheet.options] == ["sheet-2", "sheet"] and form.where.value == "page 1 of 2"
    seen = indices(form)
    assert form.back.disabled and not form.next.disabled
    form.next.click()
    seen += indices(form)
    assert seen == list(range(30)) and form.next.disabled and form.again[1].disabled and not form.back.disabled
    form.sheet.value = 1
    assert indices(form) == [0, 1, 2] and "sheet: 3 designs, 0 favourites" in words(form.counts)
    assert form.back.disabled and form.next.disabled
    form.card(0).star.click()
    assert stars.read(run.sheet("sheet")) == {0} and not run.sheet("sheet-2").stars.exists()


def test_a_late_click_reaches_its_own_design(run, form):
    """L15: the page was turned while the click waited for the kernel."""
    star, larger = form.card(3).star, form.card(4).look
    form.next.click()
    star.click()
    larger.click()
    assert stars.read(run.sheet("sheet-2")) == {3} and not is_large(form)
    form.back.click()
    assert form.card(3).star.description == "★ starred"
    form.card(0).look.click()
    late = [form.large.versions["before the refiner"], form.large.after, star, form.card(0).vary]
    form.sheet.value = 1
    for button in late:
        button.click()
        assert not is_large(form) and not words(form.said)
    assert not run.sheet("sheet").stars.exists() and not form._designs.wish


def test_a_design_is_shown_large_with_what_lies_beside_it_one_at_a_time(run, form):
    """L15: in repeat, before the refiner; a link is not followed."""
    sheet = run.sheet("sheet-2")
    own = sheet.refined(3, "png")
    Image.new("RGB", (48, 48), (0, 0, 250)).save(page.beside(own, "in repeat"))
    page.beside(own, "mask").symlink_to(sheet.base(0, "png"))
    form.card(3).look.click()
    place = form.cards.children.index(form.large.widget)
    assert form.cards.children[place - 1] is form.card(3).widget
    assert "sheet-2/3" in words(form.large.head) and own.name in words(form.large.head)
    there = [name for name, one in form.large.versions.items() if one.layout.display != "none"]
    assert there == ["the design", "before the refiner", "in repeat"]
    assert shown_picture(form.large.picture).getpixel((9, 9))[1] < 40
    form.large.versions["before the refiner"].click()
    assert shown_picture(form.large.picture).getpixel((9, 9))[1] > 160
    form.large.versions["in repeat"].click()
    assert shown_picture(form.large.picture).getpixel((9, 9))[2] > 200
    assert "sheet-2/3, in repeat" in words(form.large.head)
    form.card(5).look.click()
    assert list(form.cards.children).count(form.large.widget) == 1 and "sheet-2/5" in words(form.large.head)
    form.large.close.click()
    assert not is_large(form) and not form.large.picture.value


def test_the_large_picture_goes_from_design_to_design_and_over_the_page(form):
    """L15: its buttons stay the same, so that the keyboard's focus does."""
    form.card(PAGE - 2).look.click()
    before, after = form.large.before, form.large.after
    after.click()
    assert f"sheet-2/{PAGE - 1}" in words(form.large.head) and form.where.value == "page 1 of 2"
    after.click()
    assert f"sheet-2/{PAGE}" in words(form.large.head) and form.where.value == "page 2 of 2"
    assert form.cards.children[:2] == (form.card(PAGE).widget, form.large.widget)
    for _ in range(29 - PAGE):
        after.click()
    assert "sheet-2/29" in words(form.large.head) and after.disabled and not before.disabled
    assert (form.large.before, form.large.after) == (before, after)


def test_html_in_prompts_and_names_is_text_and_pictures_say_what_they_are(run, form):
    """L2: nothing of a prompt is taken for HTML, in an attribute neither."""
    form.card(3).look.click()
    form.card(3).vary.click()
    texts = [one.value for one in walk(form.widget) if isinstance(one, ipywidgets.HTML)]
    assert sum("onerror" in text for text in texts) == 2 * PAGE + 2
    for text in texts:
        assert not re.search(r"<img src=x|<[^>]*\sonerror\s*=[^>]*>", re.sub("'[^']*'", "''", text))
    alt = re.search("alt='([^']*)'", form.card(3).picture.value)
    assert alt and html.unescape(alt[1]) == f"design 3: {MARKUP}"
    for one in walk(form.widget):
        if isinstance(one, ipywidgets.Button):
            assert one.description, "a button without words is not read out"
    assert "3" in form.card(3).star.tooltip and form.card(3).look.description == "show design 3 larger"


def test_values_of_rows_that_are_no_text_do_no_harm(tmp_path):
    """L15: rows that were changed by hand."""
    sheet = draw(RunFolder(tmp_path).sheet("sheet"), 3)
    rows = [json.loads(line) for line in sheet.manifest.read_text().splitlines()]
    rows[0] |= {"prompt": None, "seed": [1, "<b>"]}
    rows[1] |= {"prompt": "lace " * 100_000, "seed": {"a": 1}}
    del rows[2]["prompt"], rows[2]["seed"]
    sheet.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sheet.refined(2, "png").write_bytes(b"no picture")
    form = design_gallery.open(sheet).form
    assert not words(form.said) and indices(form) == [0, 1, 2] and "?" in words(form.card(0).about)
    assert len(form.card(1).picture.value) < 30_000, "an endless prompt is cut"
    assert shown_picture(form.card(2).picture).size[0] > 100, "a tile that says so"


# ---- varying


def test_a_wish_is_kept_for_the_next_cell_and_a_callback_is_told(run):
    """L15: `settings.model_copy(update=gallery.wish)`."""
    told = []
    designs = design_gallery.open(run)
    assert designs.wish == {}
    designs.form.card(4).vary.click()
    assert designs.wish == {"vary": "sheet-2/4", "favourites_of": None}
    assert "sheet-2/4 is to be varied: run the next cell" in words(designs.form.said)
    assert stars.place_of(run, designs.wish["vary"]) == (run.sheet("sheet-2"), 4)
    assert designs.form.redraw.disabled
    designs.form.card(4).star.click()
    assert not designs.form.redraw.disabled
    designs.form.redraw.click()
    assert designs.wish == {"vary": None, "favourites_of": "sheet-2"}
    designs.form.sheet.value = 1
    assert designs.wish == {}, "another sheet, another wish"
    listening = design_gallery.open(run.sheet("sheet"), on_vary=told.append)
    listening.form.card(2).vary.click()
    assert told == ["sheet/2"] and not words(listening.form.said)


def test_a_callback_that_fails_is_said(run):
    """L2."""
    form = design_gallery.open(run, on_vary=lambda named: 1 / 0).form
    form.card(1).vary.click()
    assert "unforeseen" in words(form.said) and "division" in words(form.said)


# ---- sizes


def test_a_notebook_that_keeps_all_widgets_stays_below_a_megabyte(tmp_path):
    """L15: 24 designs of pure noise and a large one, as Colab stores them."""
    sheet = draw(RunFolder(tmp_path).sheet("sheet"), 2 * PAGE, prompt="a photo of <myspecialstyle> " * 8)
    for index in range(PAGE):
        noise = [Image.effect_noise((512, 512), 120 + index) for _ in "RGB"]
        Image.merge("RGB", noise).save(sheet.refined(index, "png"), compress_level=1)
    ipywidgets.Widget.close_all()
    form = design_gallery.open(sheet).form
    form.next.click()
    form.back.click()
    form.card(3).look.click()
    assert shown_picture(form.card(3).picture).size == (216, 216) and indices(form) == list(range(PAGE))
    state = ipywidgets.Widget.get_manager_state(drop_defaults=False)
    assert 300_000 < len(json.dumps(state)) < 1_000_000


@pytest.mark.parametrize("most", [CARD_BYTES, LARGE_BYTES, 900])
def test_a_picture_has_at_most_so_many_bytes(tmp_path, most):
    """L15: coarser first, and smaller where that does not do."""
    path = tmp_path / "noise.png"
    Image.merge("RGB", [Image.effect_noise((640, 400), 200) for _ in "RGB"]).save(path)
    side = 216 if most == CARD_BYTES else 900
    made = ipywidgets.HTML(form_parts.picture(path, "noise", side, most))
    data = base64.b64decode(re.search("base64,([^']+)'", made.value)[1])
    assert len(data) <= most and max(shown_picture(made).size) <= side


def test_a_picture_drawn_anew_is_shown_anew(run, form):
    """L15: not the one that was seen before."""
    sheet = run.sheet("sheet-2")
    Image.new("RGB", (16, 16), (0, 0, 255)).save(sheet.refined(3, "png"))
    os.utime(sheet.refined(3, "png"), (2e9, 2e9))
    form.show(0)
    assert shown_picture(form.card(3).picture).getpixel((9, 9))[2] > 200
    sheet.refined(4, "png").unlink()
    form.show(0)
    assert "its file is gone" in form.card(4).picture.value and not words(form.said)


def test_only_the_page_that_is_shown_is_made(tmp_path, monkeypatch):
    """L15: a sheet of 100,000; here of 3,000 whose pictures are empty files."""
    sheet = RunFolder(tmp_path).sheet("sheet")
    sheet.root.mkdir(parents=True)
    count, opened = 3000, []
    for index in range(count):
        sheet.base(index, "png").touch()
    names = ((index, sheet.base(index, "png").name) for index in range(count))
    sheet.manifest.write_text("".join(json.dumps({"index": i, "base": name}) + "\n" for i, name in names))
    monkeypatch.setattr(
        form_parts.pictures, "thumbnail", lambda path, side: opened.append(path) or Image.new("L", (9, 9))
    )
    form = design_gallery.open(sheet).form
    assert len(opened) == len(form._cards) == PAGE
    form.show(10**9)
    assert form.where.value == "page 125 of 125" and len(opened) == 2 * PAGE
    for number in range(6):
        form.show(number)
    assert len(form._cards) == 3 * PAGE, "buttons far behind are given back"
    assert sum(bool(card.picture.value) for card in form._cards.values()) == PAGE


# ---- without a front-end


def test_without_a_front_end_the_favourites_are_printed_and_no_widget_is_made(run, capsys, monkeypatch):
    """L2: papermill and nbval; widgets would be stored in the notebook."""
    stars.set_stars(run.sheet("sheet-2"), [4, 1])
    monkeypatch.setattr(design_gallery, "DesignForm", lambda designs: pytest.fail("a widget was made"))
    design_gallery.open(run)._ipython_display_()
    assert capsys.readouterr().out.splitlines() == [
        "sheet-2: 30 designs, 2 favourites (1, 4)",
        f"★ sheet-2/1  seed 101  {MARKUP}",
        f"★ sheet-2/4  seed 104  {MARKUP}",
    ]


def test_with_a_front_end_the_same_widgets_are_shown_each_time(run, monkeypatch):
    """L2."""
    shown = []
    monkeypatch.setattr(design_gallery, "display", shown.append)
    monkeypatch.setattr(design_gallery, "has_front_end", lambda: True)
    designs = design_gallery.open(run)
    designs._ipython_display_()
    designs._ipython_display_()
    assert shown == [designs.form.widget, designs.form.widget]
    assert getattr(designs.form.sheet, notebook.HOVER)


def test_a_run_without_designs_and_a_sheet_that_cannot_be_read_are_said_and_raise_nothing(tmp_path, run):
    """L15: Run all in a notebook where nothing was drawn yet."""
    for one in (RunFolder(tmp_path / "none"), SheetFolder(tmp_path / "none" / "images" / "sheet")):
        designs = design_gallery.open(one)
        assert re.search(r"No finished designs in .+ yet\. Draw some first", repr(designs))
        assert "No finished designs" in words(designs.form.counts) and indices(designs.form) == []
        designs.form.next.click()
        designs.form.redraw.click()
    run.sheet("sheet-2").manifest.unlink()
    run.sheet("sheet-2").manifest.mkdir()
    designs = design_gallery.open(run)
    assert "images.jsonl cannot be read" in repr(designs) and "alert" in designs.form.counts.value
