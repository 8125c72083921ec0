"""The forms of notebook 05 (P24, L2): blind pairs and experts' ratings, clicked as a person clicks them."""

import base64
import html
import io
import json
import re

import ipywidgets
import pytest
from PIL import Image

from lace_lora import answering, blind, blind_form, rating, rating_form
from lace_lora.answering import LOOKED_SECONDS
from lace_lora.blind_form import BlindForm
from lace_lora.rating_form import ExpertForm
from lace_lora.run_folder import RunFolder

BASE, LORA = "the base model", "your LoRA"
MARKUP = "<img src=x onerror='alert(1)'> a photo of <lace>"


class Clock:
    """Seconds that go on when told, or by as much as a person needs to look with each reading."""

    def __init__(self, step=1.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "out" / "rose").create()


@pytest.fixture
def drawn(tmp_path):
    """Six pictures each: green for the base, red for the LoRA."""
    lists = {}
    for name, colour in ((BASE, (0, 200, 0)), (LORA, (200, 0, 0))):
        lists[name] = [tmp_path / f"{colour[0]}-{number}.png" for number in range(6)]
        for number, path in enumerate(lists[name]):
            Image.new("RGB", (30 + number, 30), colour).save(path)
    return lists


@pytest.fixture
def sitting(run, drawn):
    return blind_form.pairs(run, LORA, drawn[LORA], BASE, drawn[BASE], seed=3)


def form_of(sitting, clock=None):
    return BlindForm(sitting, clock or Clock())


def words(widget):
    return html.unescape(re.sub("<[^>]+>", " ", widget.value)).strip()


def shown(widget):
    """The colour of the middle of the picture that is shown."""
    picture = Image.open(io.BytesIO(base64.b64decode(re.search("base64,([^']+)'", widget.value)[1])))
    red, green, _ = picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))
    return LORA if red > green else BASE


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


# -- blind --


def test_P24_each_click_saves_the_answer_for_the_side_that_was_shown_and_brings_the_next_pair(run, sitting):
    """P24: whoever always takes the red one prefers the LoRA, whichever side it stands on."""
    form = form_of(sitting)
    sides = []
    for number in range(6):
        assert words(form.progress) == f"{number} of 6 answered"
        found = {side: shown(form.pictures[side]) for side in ("left", "right")}
        assert set(found.values()) == {BASE, LORA}
        side = next(side for side, name in found.items() if name == LORA)
        sides.append(side)
        form.buttons[side].click()
        assert len(blind.answers(run)) == number + 1 and blind.answers(run)[-1].better == LORA
    assert set(sides) == {"left", "right"}
    assert words(form.said).startswith("6 of 6 for your LoRA: more than chance (a coin does this in 3 of 100 tries).")
    assert form.sides.layout.display == "none" and not form.pictures["left"].value


def test_P24_typing_a_number_answers_in_every_front_end(run, sitting):
    """P24: 1 to 4, one after the other, with spaces; other keys say what there is to type."""
    form = form_of(sitting)
    for key, said in zip(("1", " 2", "3 ", "4"), blind.SAID, strict=True):
        form.typed.value = key
        assert blind.answers(run)[-1].said == said and form.typed.value == ""
    form.typed.value = "5"
    assert words(form.said) == "Type 1, 2, 3 or 4: left, right, same, neither." and form.typed.value == ""
    assert len(blind.answers(run)) == 4
    form.typed.value = " "
    assert len(blind.answers(run)) == 4 and form.typed.value == ""


def test_P24_the_second_half_of_a_double_click_is_no_answer(run, sitting):
    """P24: nor is a click that waited while the kernel was busy; the next one counts."""
    clock = Clock(step=0)
    form = form_of(sitting, clock)
    clock.now = 5.0
    form.buttons["left"].click()
    clock.now += LOOKED_SECONDS / 2
    form.buttons["left"].click()
    form.typed.value = "2"
    assert len(blind.answers(run)) == 1 and "does not count" in words(form.said)
    clock.now += LOOKED_SECONDS
    form.buttons["left"].click()
    assert len(blind.answers(run)) == 2 and not words(form.said)


def test_P24_nothing_in_the_notebook_tells_whose_picture_stands_where(sitting, drawn):
    """P24: no name of a side or a file before the end; a screen reader hears which side a picture is on."""
    ipywidgets.Widget.close_all()
    form = form_of(sitting)
    form.buttons["same"].click()
    state = json.dumps(ipywidgets.Widget.get_manager_state(drop_defaults=False))
    for secret in (BASE, LORA, "your", *(path.name for paths in drawn.values() for path in paths)):
        assert secret not in state
    for side in ("left", "right"):
        assert f"alt='{side} picture, pair 2'" in form.pictures[side].value
    form.so_far.click()
    assert words(form.said).startswith("No picture was preferred. Of 1 answers 1 “same” count for no side.")
    assert "whoever stops where the result pleases takes chance for a result" in words(form.said)


def test_P24_one_goes_on_where_one_stopped_and_can_take_answers_back(run, sitting, drawn):
    """P24: also in another notebook, and after the end."""
    first = form_of(sitting)
    assert first.back.disabled
    for _ in range(2):
        first.buttons["left"].click()
    again = form_of(blind_form.pairs(run, LORA, drawn[LORA], BASE, drawn[BASE], seed=3))
    assert words(again.progress) == "2 of 6 answered"
    seen = again.pictures["left"].value
    again.back.click()
    assert words(again.progress) == "1 of 6 answered" and "Your last answer is taken back" in words(again.said)
    assert again.pair == sitting.asked[1] and again.pictures["left"].value != seen
    again.buttons["right"].click()
    assert [answer.said for answer in blind.answers(run)] == ["left", "right"]
    for _ in range(4):
        again.buttons["neither"].click()
    assert "Of 6 answers 4 “neither” count for no side." in words(again.said)
    again.buttons["left"].click()
    assert len(blind.answers(run)) == 6, "a late click answers nothing"
    again.back.click()
    assert words(again.progress) == "5 of 6 answered" and again.sides.layout.display is None
    assert again.pair == sitting.asked[5]


def test_P24_what_cannot_be_saved_is_said_and_the_pair_stays(run, sitting):
    """P24, L2: a widget's callback has no traceback that anybody sees."""
    form = form_of(sitting)
    pair = form.pair
    run.blind_answers.mkdir(parents=True)
    form.buttons["left"].click()
    assert "blind.jsonl" in words(form.said) and "alert" in form.said.value and form.pair == pair
    run.blind_answers.rmdir()
    sitting.asked[0].left.unlink()
    form = form_of(sitting)
    assert "its file is gone" in form.pictures["left"].value


def test_P24_four_checkpoints_are_not_ranked(run, drawn):
    """P24: said at the end where one file holds the answers of several comparisons."""
    for names in (("step 250", "step 500"), ("step 500", "step 750"), ("step 750", "step 1000")):
        form = form_of(blind_form.pairs(run, names[0], drawn[BASE][:2], names[1], drawn[LORA][:2], seed=1))
        while form.pair:
            form.buttons["left"].click()
    assert "Four of them cannot be ranked from 6 answers" in words(form.said)


def test_L2_without_a_front_end_a_line_is_printed_and_no_widget_is_made(run, sitting, capsys, monkeypatch):
    """L2: papermill and nbval; and the result where all is answered."""
    monkeypatch.setattr(blind_form, "BlindForm", lambda _: pytest.fail("a widget was made"))
    monkeypatch.setattr(rating_form, "ExpertForm", lambda _: pytest.fail("a widget was made"))
    sitting._ipython_display_()
    assert capsys.readouterr().out == (
        "Blind pairs of the base model and your LoRA: 0 of 6 answered. Open this notebook in a browser and run this "
        "cell to answer.\n"
    )
    for pair in sitting.asked:
        blind.record(run, pair, "left" if pair.left_name == LORA else "right")
    sitting._ipython_display_()
    assert capsys.readouterr().out.startswith("6 of 6 for your LoRA: more than chance")
    rating_form.experts(run)._ipython_display_()
    assert "holds no designs yet" in capsys.readouterr().out


def test_L2_with_a_front_end_the_same_widgets_are_shown_each_time(run, sitting, monkeypatch):
    """L2."""
    seen = []
    monkeypatch.setattr(answering, "display", seen.append)
    monkeypatch.setattr(answering, "has_front_end", lambda: True)
    for _ in range(2):
        sitting._ipython_display_()
    assert seen == [sitting.form.widget] * 2


def test_P24_no_pairs_are_a_sentence(run):
    """P24: Run all where nothing was drawn."""
    empty = blind_form.pairs(run, LORA, [], BASE, [])
    form = form_of(empty)
    form.buttons["left"].click()
    form.back.click()
    assert form.back.disabled and repr(empty).startswith("Blind pairs of the base model and your LoRA: 0 of 0")


# -- experts --


@pytest.fixture
def sheet(run):
    """Three designs; the second was to be like a drawing."""
    made = run.sheet("sheet")
    made.root.mkdir(parents=True)
    run.references.mkdir()
    Image.new("RGB", (20, 20), (0, 200, 0)).save(run.references / "rose.png")
    lines = []
    for index in range(3):
        Image.new("RGB", (20, 20), (200, 0, 0)).save(made.base(index, "png"))
        row = {"index": index, "base": made.base(index, "png").name, "refined": None, "prompt": MARKUP}
        lines.append(row | {"adapter_digest": "a1" * 32, "reference": "rose.png" if index == 1 else None})
    made.manifest.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return made


def expert_form(run, clock=None, **more):
    return ExpertForm(rating_form.experts(run, **more), clock or Clock())


def test_P24_a_rating_is_in_the_table_as_soon_as_it_is_saved_and_the_next_design_comes(run, sheet):
    """P24: ratings.csv; the mean of each checkpoint is printed."""
    form = expert_form(run, names={"a1" * 32: "step 750"})
    assert words(form.head).startswith("sheet/0") and words(form.progress) == "design 1 of 3, 0 rated by you"
    form.asked["clarity"].value, form.asked["compliance"].value = 5, 2
    form.save.click()
    [one] = rating.read(run).rows
    assert (one.sheet, one.design, one.clarity, one.compliance, one.adapter) == ("sheet", 0, 5, 2, "a1" * 32)
    assert words(form.head).startswith("sheet/1") and form.asked["clarity"].value is None
    assert shown(form.picture) == LORA and shown(form.reference) == BASE, "the drawing stands beside its design"
    form.asked["clarity"].value = 3
    form.save.click()
    assert not form.reference.value and words(form.progress) == "design 3 of 3, 2 rated by you"
    form.means.click()
    assert words(form.said) == "step 750: clarity 4.0, compliance 2.0 of 5 (2 ratings of 2 designs by 1 person)"
    form.asked["clarity"].value = 4
    form.save.click()
    assert words(form.said).startswith("That was the last design.") and "3 ratings of 3 designs" in words(form.said)


def test_P24_one_goes_on_with_the_first_design_that_one_has_not_rated_and_may_change_ones_mind(run, sheet):
    """P24: each person has their own ratings, by their name."""
    rating.add(run, rating.Rating("sheet", 0, "a1" * 32, 4, 4))
    form = expert_form(run)
    assert form.index == 1
    form.back.click()
    assert (form.index, form.asked["clarity"].value) == (0, 4) and form.back.disabled
    form.asked["clarity"].value = 1
    form.save.click()
    assert [(one.clarity, one.compliance) for one in rating.read(run).rows] == [(1, 4)]
    form.rater.value = "Ayşe"
    form.back.click()
    assert form.asked["clarity"].value is None and words(form.progress) == "design 1 of 3, 0 rated by Ayşe"
    form.asked["compliance"].value = 5
    form.save.click()
    assert [one.rater for one in rating.read(run).rows] == ["", "Ayşe"]
    form.skip.click()
    assert form.index == 2 and form.skip.disabled and len(rating.read(run).rows) == 2


def test_P24_nothing_chosen_and_a_double_click_save_nothing(run, sheet):
    """P24."""
    clock = Clock(step=0)
    form = expert_form(run, clock)
    clock.now = 5.0
    form.save.click()
    assert words(form.said) == "Choose a number for clarity or compliance first, or skip this design."
    form.asked["clarity"].value = 3
    form.save.click()
    form.asked["clarity"].value = 3
    form.save.click()
    assert len(rating.read(run).rows) == 1 and "does not count" in words(form.said) and form.index == 1


def test_P24_a_table_that_cannot_be_used_is_said(run, sheet):
    """P24: and no form without designs raises."""
    run.evaluation.mkdir()
    run.ratings.write_bytes("sheet;design\nGül;1\n".encode("cp1254"))
    form = expert_form(run)
    assert "is not UTF-8 text in line 2" in words(form.said) and "alert" in form.said.value
    assert "is not UTF-8 text" in repr(rating_form.experts(run))
    run.ratings.unlink()
    sheet.manifest.unlink()
    empty = expert_form(run, sheet=sheet)
    empty.save.click()
    empty.skip.click()
    assert "no finished designs yet" in words(empty.said)


def test_L2_html_in_prompts_is_text_and_every_button_has_words(run, sheet, sitting):
    """L2: nothing of a prompt is taken for HTML; a button without words is not read out."""
    forms = [expert_form(run), form_of(sitting)]
    texts = [one.value for form in forms for one in walk(form.widget) if isinstance(one, ipywidgets.HTML)]
    assert sum("onerror" in text for text in texts) == 2
    for text in texts:
        assert not re.search(r"<img src=x|<[^>]*\sonerror\s*=[^>]*>", re.sub("'[^']*'", "''", text))
    for one in (one for form in forms for one in walk(form.widget)):
        if isinstance(one, ipywidgets.Button | ipywidgets.Text | ipywidgets.ToggleButtons):
            assert one.description


def test_P24_the_forms_keep_the_notebook_small(run, tmp_path):
    """P24: two pictures of pure noise at a time, whatever the size of the files."""
    lists = []
    for side in range(2):
        paths = [tmp_path / f"{side}-{number}.png" for number in range(2)]
        for number, path in enumerate(paths):
            noise = [Image.effect_noise((1024, 1024), 120 + side + number) for _ in "RGB"]
            Image.merge("RGB", noise).save(path, compress_level=1)
        lists.append(paths)
    ipywidgets.Widget.close_all()
    form = form_of(blind_form.pairs(run, LORA, lists[0], BASE, lists[1]))
    form.buttons["left"].click()
    state = json.dumps(ipywidgets.Widget.get_manager_state(drop_defaults=False))
    assert 50_000 < len(state) < 600_000
