"""The album and the gallery form over it: what is typed is kept, what is decided is followed (L2, L11, C4, C6)."""

import html
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import ipywidgets
import pytest
from PIL import Image

from lace_lora import album as room
from lace_lora import (
    annotate,
    check,
    checkpoint,
    config,
    data_utils,
    gallery,
    local_copies,
    notebook,
    own_files,
    swatch,
)
from lace_lora.album import Album
from lace_lora.errors import PicturesError
from lace_lora.gallery import PAGE, Gallery, GalleryForm
from lace_lora.swatch import Swatch
from tests.conftest import draw_lace

PROMPT = "a photo of <myspecialstyle>"
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def settled(tmp_path):
    """Fifteen usable pictures, two of them of one piece, one with HTML for a name; and one that cannot be opened."""
    folder = draw_lace(tmp_path / "pictures")
    for number in range(6, 13):
        Image.new("RGB", (90, 70), (20 * number, 40, 90)).save(folder / f"plain_{number:02}.jpg")
    with Image.open(folder / "lace_0.jpg") as piece:
        piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "lace_0 again.jpg", quality=60)
        piece.save(folder / f"{MARKUP.replace('/', '')}.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return config.load(
        preset="none", images_dir=str(folder), lora_output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path / "cache"), resolution=64, max_train_steps=1, pretrained_model=str(tmp_path / "none"),
    )  # fmt: skip


def line(words: str) -> str:
    """A line as it is kept for words without the concept token."""
    return f"{PROMPT}, {words}"


def opened(settings) -> Album:
    return Album(check.run(settings, say=lambda _: None), settings, lambda _: None)


def lines(settings) -> dict[str, str]:
    text = (Path(settings.images_dir) / "annotations.txt").read_text()
    return dict(line.split("\t") for line in text.splitlines())


def shown(form: GalleryForm) -> list[gallery.Tile]:
    return [tile for tile in form.tiles if tile.widget.layout.display != "none"]


def tile_of(form: Gallery, name: str) -> gallery.Fields:
    """The fields of a picture that is on the page."""
    assert name in [tile.name for tile in shown(form)]
    return form.fields(name)


def place_of(form: Gallery, name: str) -> gallery.Tile:
    return next(tile for tile in shown(form) if tile.name == name)


def words(widget: ipywidgets.HTML) -> str:
    return html.unescape(re.sub("<[^>]+>", " ", widget.value)).strip()


# ---- the album


def test_what_is_decided_is_what_a_new_session_finds(settled):
    """C6, L11: captions, what is left out and swatches; and training reads the same."""
    photographs = opened(settled)
    photographs.write_caption("lace_1.jpg", f"  {PROMPT}   ring of\nthreads ")
    photographs.use("lace_2.jpg", False)
    cut = Swatch(crop=(0.1, 0.1, 0.9, 0.9))
    photographs.prepare("lace_3.jpg", cut)
    again = opened(settled)
    assert again.cards == photographs.cards
    assert again.cards["lace_1.jpg"].caption == f"{PROMPT} ring of threads"
    assert not again.cards["lace_2.jpg"].is_used and again.cards["lace_3.jpg"].swatch == cut
    found = {one.path.name: one for one in annotate_and_read(settled)}
    assert "lace_2.jpg" not in found and found["lace_3.jpg"].swatch == cut
    assert found["lace_1.jpg"].caption == f"{PROMPT} ring of threads" and found["lace_4.jpg"].caption == PROMPT
    assert lines(settled)["lace_2.jpg"] == PROMPT, "a picture that is left out keeps its line"


def annotate_and_read(settings):
    from lace_lora import examples

    annotate.run(settings, say=lambda _: None)
    return examples.read(settings, lambda _: None)


def test_only_two_files_are_written_and_the_earlier_ones_are_kept_once_a_sitting(settled):
    """L11."""
    folder = Path(settled.images_dir)
    (folder / "annotations.txt").write_text("lace_1.jpg\tby hand\n")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    photographs = opened(settled)
    for text in ("a", "ab", "abc"):
        photographs.write_caption("lace_2.jpg", text)
    photographs.use("lace_3.jpg", False)
    photographs.use("lace_4.jpg", False)
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    new = {"annotations.txt", "annotations.txt.bak", "dataset.json"}
    assert set(after) - set(before) == new - {"annotations.txt"}
    assert all(after[name] == before[name] for name in set(before) - new)
    assert after["annotations.txt.bak"] == before["annotations.txt"]


def test_an_unusable_picture_stays_out_and_a_caption_that_cannot_be_kept_changes_nothing(settled):
    """L11, P4."""
    photographs = opened(settled)
    with pytest.raises(PicturesError, match=r"broken\.jpg cannot be used"):
        photographs.use("broken.jpg", True)
    with pytest.raises(PicturesError, match="half a character"):
        photographs.write_caption("lace_1.jpg", "half \ud800 a character")
    assert photographs.cards["lace_1.jpg"].caption == "" and "broken.jpg" not in lines_or_none(settled)


def lines_or_none(settings) -> dict[str, str]:
    return lines(settings) if (Path(settings.images_dir) / "annotations.txt").is_file() else {}


def test_lines_that_cannot_be_read_are_not_written_over(settled):
    """L11."""
    file = Path(settled.images_dir) / "annotations.txt"
    file.write_text("lace_1.jpg without a tab\n")
    with pytest.raises(PicturesError, match="line 1 has no tab"):
        opened(settled)
    assert file.read_text() == "lace_1.jpg without a tab\n"


def test_many_captions_are_replaced_and_taken_back(settled):
    """C4."""
    photographs = opened(settled)
    told = {"lace_1.jpg": "white rings", "lace_2.jpg": "white white", "lace_3.jpg": "cream"}
    for name, text in told.items():
        photographs.write_caption(name, text)
    before = lines(settled)
    assert photographs.replace_all("white", "ivory") == 2 and photographs.replace_all("", "x") == 0
    assert lines(settled)["lace_1.jpg"] == line("ivory rings") and lines(settled)["lace_2.jpg"] == line("ivory ivory")
    assert photographs.undo() == 2 and lines(settled) == before
    assert photographs.undo() == 0


def test_suggestions_fill_what_is_empty_and_are_taken_back_as_one(settled):
    """C4: and one that the captioner gives to most pictures leaves no card with it."""
    photographs = opened(settled)
    photographs.write_caption("lace_1.jpg", f"{PROMPT} by hand")
    names = [f"lace_{n}.jpg" for n in range(6)]
    answers = iter(["a ring", "a star", "a fan", "a leaf", "a net"])
    found = photographs.suggest(lambda _: next(answers), names, say=lambda _: None)
    assert found.kept == ("lace_1.jpg",) and len(found.written) == 5
    assert lines(settled)["lace_0.jpg"] == f"{PROMPT}, a ring" and lines(settled)["lace_1.jpg"] == f"{PROMPT} by hand"
    photographs.undo()
    assert {name: card.caption for name, card in photographs.cards.items() if card.caption} == {
        "lace_1.jpg": f"{PROMPT} by hand"
    }
    every = [card.name for card in photographs.view() if card.is_used]
    found = photographs.suggest(lambda _: "lace", every, say=lambda _: None)
    assert not found.written and all("lace" not in text.rpartition(">")[2] for text in lines(settled).values())


def test_views_show_what_their_names_say(settled):
    """P4: pictures of one piece stand side by side."""
    photographs = opened(settled)
    photographs.use("lace_5.jpg", False)
    photographs.write_caption("lace_1.jpg", "rings")
    named = {view: [card.name for card in photographs.view(view)] for view in room.VIEWS}
    assert set(named["all"]) == set(photographs.cards) and "broken.jpg" in named["problems"]
    assert named["left out"] == ["broken.jpg", "lace_5.jpg"]
    assert "lace_1.jpg" not in named["without a caption"] and "broken.jpg" not in named["without a caption"]
    assert {"lace_0.jpg", "lace_0 again.jpg"} <= set(named["same piece"])
    numbers = [photographs.cards[name].group for name in named["same piece"]]
    assert numbers == sorted(numbers) and None not in numbers


def test_thumbnails_are_small_upright_and_show_the_swatch(settled):
    """L11: 256 px at most; made from the picture as it is learnt."""
    photographs = opened(settled)
    cut = Swatch(crop=(0, 0, 0.25, 1))
    photographs.prepare("lace_1.jpg", cut)
    with Image.open(io.BytesIO(photographs.thumbnail("lace_1.jpg"))) as small:
        expected = swatch.open_swatch(photographs.cards["lace_1.jpg"].path, cut).size
        assert small.size == pytest.approx(expected, abs=1) and max(small.size) <= 256
    with Image.open(io.BytesIO(photographs.thumbnail("broken.jpg"))) as small:
        assert len(small.convert("L").getcolors()) <= 4, "grey, for what cannot be shown"


def test_on_drive_the_last_change_is_written_when_the_pause_is_over(settled, monkeypatch):
    """L11: few uploads while a person types, and none of it lost."""
    monkeypatch.setattr(room, "SECONDS_BETWEEN_WRITES_ON_DRIVE", 0.2)
    monkeypatch.setattr(local_copies, "is_on_drive", lambda folder, drive: True)
    photographs = opened(settled)
    written = []
    real = photographs._captions._file.change
    monkeypatch.setattr(photographs._captions._file, "change", lambda told: (written.append(told), real(told)))
    for number in range(30):
        photographs.write_caption("lace_1.jpg", "x" * (number + 1))
    until = time.monotonic() + 20
    while lines(settled)["lace_1.jpg"] != line("x" * 30) and time.monotonic() < until:
        time.sleep(0.02)
    assert lines(settled)["lace_1.jpg"] == line("x" * 30) and len(written) < 30


def test_what_fails_during_the_pause_is_said_with_the_next_change(settled, monkeypatch):
    """L11."""
    monkeypatch.setattr(room, "SECONDS_BETWEEN_WRITES_ON_DRIVE", 0.05)
    monkeypatch.setattr(local_copies, "is_on_drive", lambda folder, drive: True)
    photographs = opened(settled)
    photographs.write_caption("lace_1.jpg", "a")

    def gone(text):
        raise PicturesError("Drive is gone.")

    monkeypatch.setattr(photographs._captions._file, "change", gone)
    photographs.write_caption("lace_1.jpg", "ab")
    until = time.monotonic() + 20
    while not photographs._captions._failure and time.monotonic() < until:
        time.sleep(0.02)
    with pytest.raises(PicturesError, match="Drive is gone"):
        photographs.write_caption("lace_2.jpg", "star")
    monkeypatch.undo()
    photographs.write_caption("lace_1.jpg", "abc")
    photographs.save()
    assert lines(settled)["lace_2.jpg"] == line("star") and lines(settled)["lace_1.jpg"] == line("abc"), (
        "what waited is written once Drive is back"
    )


def test_a_program_that_ends_before_the_pause_is_over_writes_first(settled, tmp_path):
    """L11: the kernel is restarted right after typing."""
    program = f"""
from lace_lora import album, check, config, local_copies
album.SECONDS_BETWEEN_WRITES_ON_DRIVE = 60.0
local_copies.is_on_drive = lambda folder, drive: True
settings = config.load(preset="none", images_dir={settled.images_dir!r}, lora_output_dir={str(tmp_path / "out")!r},
                       cache_dir={settled.cache_dir!r}, resolution=64, max_train_steps=1)
photographs = album.Album(check.run(settings), settings, print)
for text in ("a", "ab", "abc"):
    photographs.write_caption("lace_1.jpg", text)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, capture_output=True)
    assert lines(settled)["lace_1.jpg"] == line("abc")


# ---- the form


def test_what_is_typed_is_in_the_file_at_once_and_paging_changes_nothing(settled):
    """L2, L11."""
    form = GalleryForm(opened(settled))
    assert len(shown(form)) == PAGE and form.back.disabled and not form.next.disabled
    tile_of(form, "lace_1.jpg").caption.value = f"{PROMPT} rings"
    assert lines(settled)["lace_1.jpg"] == f"{PROMPT} rings"
    before = lines(settled)
    form.next.click()
    assert len(shown(form)) == len(form._album.cards) - PAGE and form.next.disabled
    form.back.click()
    assert tile_of(form, "lace_1.jpg").caption.value == f"{PROMPT} rings" and lines(settled) == before
    assert "1 of them with a caption of their own" in form.counts.value


def test_a_switch_leaves_a_picture_out_and_the_views_follow(settled):
    """C6."""
    form = GalleryForm(opened(settled))
    tile_of(form, "lace_1.jpg").use.value = False
    content = json.loads((Path(settled.images_dir) / "dataset.json").read_text())
    assert [(one["path"], one["use"]) for one in content["images"]] == [("lace_1.jpg", False)]
    form.view.value = "left out"
    assert [tile.name for tile in shown(form)] == ["broken.jpg", "lace_1.jpg"]
    assert tile_of(form, "broken.jpg").use.disabled and tile_of(form, "broken.jpg").caption.disabled


def test_html_in_names_captions_and_messages_is_shown_as_text(settled):
    """HTML in a caption or file name shows as text in the gallery (L2)."""
    form = GalleryForm(opened(settled))
    name = next(name for name in form._album.cards if name.startswith("<img"))
    tile_of(form, name).caption.value = MARKUP
    form.show(0)
    everything = [widget.value for tile in shown(form) for widget in (tile.about, form.fields(tile.name).note)]
    form._say(MARKUP)
    form.lint.click()
    everything += [form.said.value, *(one.value for one in found_html(form.findings))]
    assert any("&lt;img" in text for text in everything)
    assert not any("<img" in text for text in everything)
    assert tile_of(form, name).caption.value == MARKUP, "a text area shows no HTML"


def found_html(box) -> list[ipywidgets.HTML]:
    return [part for row in box.children for part in getattr(row, "children", (row,)) if hasattr(part, "placeholder")]


def test_what_cannot_be_kept_is_said_beside_the_picture_and_unforeseen_errors_are_said_too(settled, monkeypatch):
    """L2: a widget's callback has no traceback that anybody sees."""
    form = GalleryForm(opened(settled))
    tile = tile_of(form, "lace_1.jpg")
    tile.caption.value = "half \ud800"
    assert "half a character" in words(tile.note) and "alert" in tile.note.value
    tile.caption.value = "whole"
    assert words(tile.note) == f"kept as: {PROMPT}, whole"
    monkeypatch.setattr(form._album, "replace_all", lambda find, by: 1 / 0)
    form.replace.click()
    assert "unforeseen" in words(form.said) and "division" in words(form.said)


def test_find_and_replace_undo_and_mending_show_what_they_did(settled):
    """C4, C11."""
    form = GalleryForm(opened(settled))
    for name in ("lace_1.jpg", "lace_2.jpg"):
        tile_of(form, name).caption.value = f"white {name[5]}"
    form.find.value, form.by.value = "white", "ivory"
    form.replace.click()
    assert "replaced in 2 captions" in words(form.said) and tile_of(form, "lace_1.jpg").caption.value == "ivory 1"
    form.undo.click()
    assert tile_of(form, "lace_1.jpg").caption.value == "white 1"
    for number, name in enumerate(card.name for card in form._album.view() if card.is_used):
        form._album.write_caption(
            name, f"{'fern star leaf rose fan heart'.split()[number % 6]} {number} on a white table"
        )
    form.lint.click()
    row = next(row for row in form.findings.children if "white table" in str([c.value for c in found_html_of(row)]))
    row.children[0].click()
    assert tile_of(form, "lace_0.jpg").caption.value == "leaf 2"
    assert "mended" in words(form.said) and not [
        row for row in form.findings.children if "white table" in str([c.value for c in found_html_of(row)])
    ]


def found_html_of(row) -> list[ipywidgets.HTML]:
    return [part for part in getattr(row, "children", (row,)) if isinstance(part, ipywidgets.HTML)]


def test_suggesting_shows_what_came(settled):
    """C4."""
    locked = []

    def captioner(picture):
        locked.append(form.fields("lace_0.jpg").caption.disabled)
        return f"a piece of {picture.size[0]} {picture.getpixel((5, 5))}"

    form = GalleryForm(opened(settled), captioner)
    tile_of(form, "lace_1.jpg").caption.value = f"{PROMPT} by hand"
    form.suggest.click()
    form.suggest.click()
    assert "kept as they were" in words(form.said)
    assert tile_of(form, "lace_0.jpg").caption.value.startswith("a piece of")
    assert lines(settled)["lace_0.jpg"].startswith(line("a piece of"))
    assert set(locked) == {True}, "what is typed meanwhile would be overwritten: the boxes are locked"
    assert not form.fields("lace_0.jpg").caption.disabled
    assert tile_of(form, "lace_1.jpg").caption.value == f"{PROMPT} by hand"
    assert GalleryForm(opened(settled)).suggest.disabled, "where the settings ask for no captioner"


def test_preparing_keeps_the_swatch_and_shows_it(settled):
    """L11: never touching the original; a slider's late message reaches the picture it was moved for."""
    form = GalleryForm(opened(settled))
    path = form._album.cards["lace_1.jpg"].path
    before, shown_before = path.read_bytes(), place_of(form, "lace_1.jpg").picture.value
    tile_of(form, "lace_1.jpg").prepare.click()
    first = form.preparing.children[1]
    crop = next(one for one in walk(first) if "lace-swatch-crop-across" in getattr(one, "_dom_classes", ()))
    tile_of(form, "lace_2.jpg").prepare.click()
    crop.value = (25.0, 75.0)
    assert form._album.cards["lace_1.jpg"].swatch == Swatch(crop=(0.25, 0.0, 0.75, 1.0))
    assert form._album.cards["lace_2.jpg"].swatch is None and path.read_bytes() == before
    place = place_of(form, "lace_1.jpg")
    assert place.picture.value != shown_before and "prepared" in words(place.about)


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def test_text_that_comes_after_paging_on_reaches_its_own_picture(settled):
    """L2, L11: browsers hold text back while the kernel is busy, and a click overtakes it."""
    form = GalleryForm(opened(settled))
    box, first = tile_of(form, "lace_1.jpg").caption, [tile.name for tile in shown(form)]
    form.next.click()
    others = [tile.name for tile in shown(form)]
    box.value = "late"
    assert not set(first) & set(others) and lines(settled)["lace_1.jpg"] == line("late")
    assert all(not form._album.cards[name].caption for name in others)


def test_pages_of_a_view_skip_nobody_when_cards_leave_it(settled):
    """L2: captioning every picture of the first page of those without one, then the next."""
    form = GalleryForm(opened(settled))
    form.view.value = "without a caption"
    seen = [tile.name for tile in shown(form)]
    for name in seen:
        tile_of(form, name).caption.value = f"of {name.strip('<>')}"
    form.next.click()
    seen += [tile.name for tile in shown(form)]
    assert set(seen) == {name for name, card in form._album.cards.items() if card.verdict != "unusable"}


def test_what_others_write_meanwhile_stays(settled):
    """L11: a text editor, a second notebook, a command; only the lines that are changed here are changed there."""
    folder = Path(settled.images_dir)
    annotate.run(settled, say=lambda _: None)
    one, other = opened(settled), opened(settled)
    one.write_caption("lace_1.jpg", "typed in one")
    other.write_caption("lace_2.jpg", "typed in the other")
    file = folder / "annotations.txt"
    file.write_text(file.read_text() + "new.jpg\tby hand\n")
    one.write_caption("lace_3.jpg", "typed later")
    GalleryForm(other).next.click()
    found = lines(settled)
    assert [found[f"lace_{n}.jpg"] for n in (1, 2, 3)] == [
        line(f"typed {what}") for what in ("in one", "in the other", "later")
    ]
    assert found["new.jpg"] == "by hand"
    kept = [kept.read_text() for kept in folder.glob("annotations.txt.bak*")]
    assert any("by hand" in text for text in kept), "what somebody else wrote is kept beside, too"

    one.use("lace_4.jpg", False)
    other.use("lace_5.jpg", False)
    content = json.loads((folder / "dataset.json").read_text())
    assert [row["path"] for row in content["images"]] == ["lace_4.jpg", "lace_5.jpg"]


def test_a_hand_edit_while_captions_are_suggested_stays(settled):
    """L11, C4."""
    folder = Path(settled.images_dir)
    file = folder / "annotations.txt"
    asked = []

    def captioner(picture):
        asked.append(picture)
        if len(asked) == 2:
            file.write_text(file.read_text().replace(f"lace_5.jpg\t{PROMPT}", "lace_5.jpg\tby hand"))
        return f"piece {len(asked)} of lace {chr(96 + len(asked))}"

    settings = settled.model_copy(update={"image_types": (".jpg",)})
    annotate.run(settings, captioner=captioner, say=lambda _: None)
    kept = [kept.read_text() for kept in folder.glob("annotations.txt.bak*")]
    assert any("by hand" in text for text in [file.read_text(), *kept])


def test_a_photograph_that_cannot_be_read_today_loses_no_caption(settled):
    """L11: a Drive that hiccups, a broken file, narrower image_types: the caption comes back with the picture."""
    folder = Path(settled.images_dir)
    photographs = opened(settled)
    photographs.write_caption("lace_1.jpg", "rings")
    whole = (folder / "lace_1.jpg").read_bytes()
    (folder / "lace_1.jpg").write_bytes(whole[:100])
    opened(settled).write_caption("lace_2.jpg", "star")
    annotate.run(settled, say=lambda _: None)
    assert "lace_1.jpg" not in lines(settled), "training could not open it"
    (folder / "lace_1.jpg").write_bytes(whole)
    assert opened(settled).cards["lace_1.jpg"].caption == "rings"
    annotate.run(settled, say=lambda _: None)
    assert lines(settled)["lace_1.jpg"] == line("rings")


def test_a_photograph_that_was_deleted_shuts_no_door(settled):
    """C6: dataset.json names it still; the gallery, the check and training go on."""
    folder = Path(settled.images_dir)
    photographs = opened(settled)
    photographs.prepare("lace_1.jpg", Swatch(crop=(0, 0, 0.5, 1)))
    (folder / "lace_1.jpg").unlink()
    opened(settled).use("lace_2.jpg", False)
    annotate.run(settled, say=lambda _: None)
    assert {one.path.name for one in annotate_and_read(settled)} == {file.name for file in folder.glob("*.jpg")} - {
        "lace_2.jpg",
        "broken.jpg",
    }


def test_undo_leaves_what_was_typed_since(settled):
    """C4."""
    photographs = opened(settled)
    photographs.write_caption("lace_1.jpg", "white rings")
    photographs.write_caption("lace_2.jpg", "white star")
    photographs.replace_all("white", "ivory")
    photographs.write_caption("lace_1.jpg", "ivory rings and a border")
    assert photographs.undo() == 1
    found = lines(settled)
    assert found["lace_1.jpg"] == line("ivory rings and a border") and found["lace_2.jpg"] == line("white star")


def test_a_replacement_that_cannot_be_kept_changes_nothing(settled):
    """C4, L11."""
    photographs = opened(settled)
    photographs.write_caption("lace_1.jpg", "white rings")
    with pytest.raises(PicturesError, match="nothing was changed"):
        photographs.replace_all("white", "\ud800")
    assert lines(settled)["lace_1.jpg"] == line("white rings")


def test_partial_files_of_killed_kernels_are_taken_away(settled):
    """L11: nothing of ours stays in her folder but the two files."""
    folder = Path(settled.images_dir)
    left = checkpoint.partial_of(folder / "annotations.txt")
    dead = left.with_name(left.name.replace(f"-{os.getpid()}-", "-4194303-"))
    hers = folder / "film.mp4.partial"
    for file in (dead, hers):
        file.write_text("x")
    opened(settled).write_caption("lace_1.jpg", "rings")
    assert not dead.exists() and hers.exists()


def test_a_page_of_the_largest_photographs_stays_small_in_the_saved_notebook(settled):
    """L2: the pictures of a page as the notebook saves them, in base64, under 1 MB with all else."""
    noise = Image.effect_noise((3000, 2000), 90).convert("RGB")
    for number in range(PAGE):
        noise.rotate(number).save(Path(settled.images_dir) / f"0 large {number}.jpg", quality=90)
    form = GalleryForm(opened(settled))
    assert sum(len(tile.picture.value) for tile in shown(form)) * 4 / 3 < 900_000


def test_without_a_front_end_it_is_plain_text_and_makes_no_widgets(settled, monkeypatch, capsys):
    """L12: papermill and nbval see names and captions."""
    album = opened(settled)
    tile_of(GalleryForm(album), "lace_1.jpg").caption.value = "rings"
    made = []
    monkeypatch.setattr(ipywidgets.Widget, "open", lambda widget: made.append(widget))
    monkeypatch.setattr(gallery, "has_front_end", lambda: False)
    looked_at = Gallery(album)
    looked_at._ipython_display_()
    text = capsys.readouterr().out.rstrip("\n")
    assert text == repr(looked_at) and made == [], "papermill would store every widget in the notebook"
    assert "lace_1.jpg  rings" in text and f"lace_2.jpg  ({PROMPT})" in text and "(left out)" in text
    assert notebook.has_front_end() is False


def test_each_box_has_a_name_for_screen_readers(settled):
    """L2: ipywidgets sets it as the title of the text area."""
    form = GalleryForm(opened(settled))
    assert getattr(tile_of(form, "lace_1.jpg").caption, gallery.HOVER) == "caption of lace_1.jpg"


def test_the_report_of_a_check_is_kept_with_the_run(settled):
    """C3: check.json and problems.png in the run's folder, nothing among the photographs."""
    before = sorted(Path(settled.images_dir).iterdir())
    check.run(settled)
    folder = Path(settled.lora_output_dir) / "lace" / "check"
    content = json.loads((folder / "check.json").read_text())
    assert content["statistics"]["total_images"] == len(before) and (folder / "problems.png").is_file()
    assert sorted(Path(settled.images_dir).iterdir()) == before


def test_a_page_of_problems_is_drawn_from_the_same_report(settled):
    """C3."""
    report = data_utils.check_images(settled.images_dir)
    assert report.sheet(2).height < report.sheet().height


def test_no_folder_is_made_where_drive_is_to_be_mounted(settled, tmp_path):
    """L2: Colab mounts nothing onto a folder that holds something."""
    away = settled.model_copy(
        update={"drive_mount_path": str(tmp_path / "drive"), "lora_output_dir": str(tmp_path / "drive/MyDrive/out")}
    )
    said = []
    check.run(away, say=said.append)
    assert not (tmp_path / "drive").exists() and (Path(settled.cache_dir) / "check/lace/check.json").is_file()
    assert str(Path(settled.cache_dir) / "check") in said[-1]


def test_a_report_that_cannot_be_kept_is_said_and_shown_all_the_same(settled, tmp_path):
    """C3: a run's folder inside that of the photographs, where nothing is written."""
    said = []
    inside = settled.model_copy(update={"lora_output_dir": settled.images_dir})
    assert check.run(inside, say=said.append).records
    assert "is not kept" in said[-1] and "left alone" in said[-1]


def test_the_report_counts_what_is_learnt_and_knows_the_scale(settled):
    """C5, C17: pictures left out do not count, a cropped one counts as it is learnt; centimetres by hand."""
    folder = Path(settled.images_dir)
    with Image.open(folder / "lace_1.jpg") as picture:
        width, height = picture.size
    photographs = opened(settled)
    photographs.use("lace_2.jpg", False)
    photographs.prepare("lace_1.jpg", Swatch(crop=(0, 0, 0.5, 1), cm=((0, 0), (0.5, 0), 2.0)))
    (folder / "lace_3.txt").write_text("from kohya")
    report = check.run(settled, say=lambda _: None)
    assert len(report.learnt) == len(report.usable) - 1 == sum(report.statistics["buckets"].values())
    assert "1 left out" in report.summary() and f"number: {len(report.learnt)}" in report.summary()
    learnt = next(one for one in report.records if one.name == "lace_1.jpg").learnt_size
    assert learnt == (round(width / 2), height)
    expected = width / 4 * 64 / (learnt[0] * learnt[1]) ** 0.5
    assert report.statistics["px_per_cm"] == pytest.approx(expected, abs=0.01)
    assert next(one for one in report.records if one.name == "lace_3.jpg").caption in ("from kohya", PROMPT)
    assert ".txt" not in report.summary(), "captions are no pictures to include"


def test_pictures_that_a_finding_names_are_shown_on_request(settled):
    """C4."""
    form = GalleryForm(opened(settled))
    for card in form._album.view():
        if card.is_used:
            form._album.write_caption(card.name, "the same words")
    form._album.write_caption("lace_1.jpg", "another")
    form.lint.click()
    row = next(row for row in form.findings.children if "same caption" in str([c.value for c in found_html_of(row)]))
    next(one for one in row.children if one.description == "show them").click()
    assert "lace_1.jpg" not in [tile.name for tile in shown(form)] and "14 pictures" in form.where.value


def test_pieces_begin_their_own_rows_and_the_form_opens_below_its_card(settled):
    """L2: a flex row breaks at a box of full width."""
    form = GalleryForm(opened(settled))
    tile_of(form, "lace_2.jpg").prepare.click()
    order = list(form.cards.children)
    assert order.index(form.preparing) == order.index(place_of(form, "lace_2.jpg").widget) + 1
    form.preparing.children[-1].click()
    assert form.preparing not in form.cards.children
    form.view.value = "same piece"
    breaks = [one for one in form.cards.children if one.layout.width == "100%"]
    assert len(breaks) == len({card.group for card in form._album.view("same piece")}) - 1 > 0


def test_what_is_typed_while_captions_are_suggested_wins(settled):
    """C4, L11: a message that came through although the boxes are locked; undo leaves it, too."""
    photographs = opened(settled)
    photographs.write_caption("lace_1.jpg", "old words")
    told = []

    def captioner(picture):
        if not told:
            photographs.write_caption("lace_1.jpg", "typed meanwhile")
        told.append(picture)
        return f"piece {len(told)} of {'fern star leaf rose fan heart'.split()[len(told) - 1]}"

    names = [f"lace_{n}.jpg" for n in range(6)]
    photographs.suggest(captioner, names, overwrite=True, say=lambda _: None)
    assert lines(settled)["lace_1.jpg"] == line("typed meanwhile")
    assert lines(settled)["lace_2.jpg"] == line("piece 3 of leaf")
    photographs.undo()
    assert lines(settled)["lace_1.jpg"] == line("typed meanwhile") and lines(settled)["lace_2.jpg"] == PROMPT


def test_an_editor_that_saves_an_old_buffer_loses_nothing_for_good(settled):
    """L11: what the gallery wrote and the editor wrote over lies beside the file, and that is said."""
    file, said = Path(settled.images_dir) / "annotations.txt", []
    annotate.run(settled, say=lambda _: None)
    buffer = file.read_text()
    photographs = Album(check.run(settled, say=lambda _: None), settled, said.append)
    photographs.write_caption("lace_0.jpg", "typed in the gallery")
    file.write_text(buffer.replace(f"lace_2.jpg\t{PROMPT}", f"lace_2.jpg\t{PROMPT} by hand"))
    photographs.write_caption("lace_1.jpg", "later")
    assert lines(settled)["lace_2.jpg"] == f"{PROMPT} by hand" and lines(settled)["lace_1.jpg"] == line("later")
    kept = [kept.read_text() for kept in file.parent.glob("annotations.txt.bak*")]
    assert any("typed in the gallery" in text for text in kept)
    assert any("1 captions of this sitting were changed elsewhere" in text for text in said)


def test_decisions_of_two_galleries_on_one_picture_are_both_kept(settled):
    """C6."""
    one, other, cut = opened(settled), opened(settled), Swatch(crop=(0, 0, 0.5, 1))
    one.prepare("lace_0.jpg", cut)
    other.use("lace_0.jpg", False)
    other.prepare("lace_1.jpg", cut)
    one.use("lace_1.jpg", False)
    found = opened(settled).cards
    assert all(found[name].swatch == cut and not found[name].is_used for name in ("lace_0.jpg", "lace_1.jpg"))


def test_two_writers_in_one_program_at_one_moment_both_stay(settled, monkeypatch):
    """L11: the gallery's timer and a cell, on a Drive that takes its time."""
    annotate.run(settled, say=lambda _: None)
    one, other = opened(settled), opened(settled)
    real = own_files.write_bytes
    monkeypatch.setattr(own_files, "write_bytes", lambda path, data: (time.sleep(0.1), real(path, data)))
    threads = [
        threading.Thread(target=album.write_caption, args=(name, "words"))
        for album, name in ((one, "lace_0.jpg"), (other, "lace_1.jpg"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines(settled)["lace_0.jpg"] == lines(settled)["lace_1.jpg"] == line("words")


def test_captions_in_the_file_that_lack_the_token_are_found_and_mended(settled):
    """C11: as they stand, not as the gallery would write them; training refuses them."""
    folder = Path(settled.images_dir)
    for number in range(3):
        (folder / f"lace_{number}.txt").write_text(f"white doily {number}")
    annotate.run(settled, say=lambda _: None)
    form = GalleryForm(opened(settled))
    form.lint.click()
    row = next(row for row in form.findings.children if "is missing" in str([c.value for c in found_html_of(row)]))
    row.children[0].click()
    assert all("<myspecialstyle>" in text for text in lines(settled).values())
    form.every.click()
    assert f"({len(form._album.cards)} pictures)" in form.where.value
