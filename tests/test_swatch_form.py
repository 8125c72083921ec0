"""The form that prepares one photograph: what its widgets say is the swatch, and nothing else (P4)."""

import dataclasses
import io

import ipywidgets
import numpy
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lace_lora import swatch, swatch_form
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.swatch import Swatch
from lace_lora.swatch_form import SwatchForm

CORNERS = ((0.1, 0.08), (0.92, 0.05), (0.95, 0.9), (0.06, 0.94))
CROP = (0.1, 0.2, 0.85, 0.9)
CM = ((0.25, 0.5), (0.7, 0.55), 12.5)


def lace(width: int = 300, height: int = 240) -> Image.Image:
    """Pale threads on grey-blue cloth, a lamp on the left."""
    picture = Image.new("RGB", (width, height), (70, 76, 90))
    pen = ImageDraw.Draw(picture)
    for place in range(-height, width + height, 16):
        pen.line((place, 0, place + height, height), fill=(200, 196, 186), width=4)
    fall = numpy.linspace(1, 0.6, width)[None, :, None]
    return Image.fromarray((numpy.asarray(picture) * fall).astype(numpy.uint8))


def shown(kept: Swatch | None = None, picture: Image.Image | None = None) -> tuple[SwatchForm, list[Swatch]]:
    """A form with a photograph in it, and the list of what it hands on."""
    handed: list[Swatch] = []
    form = SwatchForm(handed.append)
    form.fill(picture or lace(), kept)
    return form, handed


def through_jpeg(picture: Image.Image) -> Image.Image:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=swatch_form.JPEG_QUALITY, subsampling=0)
    return Image.open(encoded)


def decoded(image: ipywidgets.Image) -> Image.Image:
    return Image.open(io.BytesIO(image.value)).convert("RGB")


def pixels(picture: Image.Image) -> numpy.ndarray:
    return numpy.asarray(picture.convert("RGB")).astype(int)


def move(form: SwatchForm, wanted: Swatch) -> None:
    """Set the widgets by hand to a swatch, in percent."""
    form.straighten.value = wanted.corners is not None
    for sliders, point in zip(form.corners, wanted.corners or (), strict=False):
        for slider, part in zip(sliders, point, strict=True):
            slider.widget.value = part * 100
    form.even_light.widget.value = wanted.even_light * 100
    left, top, right, bottom = wanted.crop or (0, 0, 1, 1)
    form.crop_across.widget.value = (left * 100, right * 100)
    form.crop_down.widget.value = (top * 100, bottom * 100)
    form.mark.value = wanted.cm is not None
    if wanted.cm is not None:
        for sliders, point in zip(form.ends, wanted.cm[:2], strict=True):
            for slider, part in zip(sliders, point, strict=True):
                slider.widget.value = part * 100
        form.length_cm.value = wanted.cm[2]


@st.composite
def swatches(draw: st.DrawFn, parts: st.SearchStrategy[float]) -> Swatch:
    """A sound swatch whose numbers are drawn from `parts`."""

    def near(low: float, high: float) -> float:
        return round(low + (high - low) * draw(parts), 12)

    low, high = (0, 0.3), (0.7, 1)
    corners = tuple((near(*x), near(*y)) for x, y in ((low, low), (high, low), (high, high), (low, high)))
    crop = (near(0, 0.4), near(0, 0.4), near(0.6, 1), near(0.6, 1))
    mark = ((near(0.3, 0.45), near(0.3, 0.7)), (near(0.55, 0.7), near(0.3, 0.7)), draw(st.floats(0.01, 500)))
    none = st.none()
    drawn = (none | st.just(corners), parts, none | st.just(crop), none | st.just(mark))
    try:
        return Swatch(*map(draw, drawn))
    except SettingsError:
        reject()


ticks = st.integers(0, 10).map(lambda tenth: tenth / 10)  # of ranges of 0.1 to 0.4: ticks of 0.1 % at the finest
WHOLE_FORM = settings(max_examples=25, deadline=None)


# ---- what the widgets say


ONE_BY_ONE = [Swatch(corners=CORNERS), Swatch(even_light=0.35), Swatch(crop=CROP), Swatch(cm=CM)]


@pytest.mark.parametrize("wanted", [*ONE_BY_ONE, Swatch(CORNERS, 1, CROP, CM)])
def test_what_is_set_on_the_widgets_is_exactly_the_swatch_that_is_handed_on(wanted):
    """P4."""
    form, handed = shown()
    move(form, wanted)
    assert handed[-1] == wanted == form.swatch
    assert swatch.from_json(swatch.as_json(handed[-1])) == wanted


@WHOLE_FORM
@given(swatches(ticks), swatches(ticks))
def test_any_swatch_of_whole_ticks_can_be_set_in_place_of_any_other(first, second):
    """P4."""
    form, handed = shown(first, lace(90, 80))
    move(form, second)
    assert form.swatch == second
    assert handed[-1:] == ([second] if first != second or handed else [])


@WHOLE_FORM
@given(swatches(ticks | st.floats(0, 1)))
def test_showing_a_swatch_calls_nobody_and_keeps_its_last_digit(kept):
    """P4: sliders stand on ticks, the numbers do not."""
    form, handed = shown(kept, lace(90, 80))
    assert form.swatch == kept and form._read() == kept
    assert handed == []


@WHOLE_FORM
@given(swatches(st.floats(0, 1)))
def test_a_change_in_one_place_leaves_every_other_number_as_it_was(kept):
    """P4: what was measured more finely than a slider's tick is not rounded by moving another one."""
    form, handed = shown(kept, lace(90, 80))
    light = 0.5 if round(kept.even_light, 3) != 0.5 else 0.25  # another tick: the same one would be no move
    form.even_light.widget.value = light * 100
    assert handed == [dataclasses.replace(kept, even_light=light)]


def test_a_crop_of_everything_is_no_crop_unless_it_was_kept_as_one():
    """P4."""
    form, handed = shown(Swatch(crop=CROP))
    form.crop_across.widget.value = (0, 100)
    form.crop_down.widget.value = (0, 100)
    assert handed[-1] == Swatch()
    form, handed = shown(Swatch(crop=(0, 0, 1, 1)))
    form.even_light.widget.value = 10
    assert handed == [Swatch(even_light=0.1, crop=(0, 0, 1, 1))]


def test_every_sound_change_is_handed_on_at_once_and_once():
    """P4."""
    form, handed = shown()
    form.straighten.value = True
    form.corners[2][1].widget.value = 90.0
    form.corners[2][1].widget.value = 90.0
    assert handed == [
        Swatch(corners=((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95))),
        Swatch(corners=((0.05, 0.05), (0.95, 0.05), (0.95, 0.9), (0.05, 0.95))),
    ]


def test_a_line_without_a_length_is_no_mark_yet_and_says_what_is_missing():
    """P4: a length that nobody measured must not be kept as one."""
    form, handed = shown()
    form.mark.value = True
    form.ends[0][0].widget.value = 20.0
    assert handed == [] and "write the length of the line in cm" in form.sizes.value and form.fault.value == ""
    form.length_cm.value = 4.0
    assert handed == [Swatch(cm=((0.2, 0.5), (0.7, 0.5), 4))]
    assert "write the length" not in form.sizes.value


def test_another_photograph_takes_nothing_over_from_the_one_before():
    """P4."""
    form, handed = shown(Swatch(CORNERS, 0.123456, CROP, CM))
    form.fill(lace(100, 80), None)
    assert handed == [] and form.swatch == Swatch() == form._read()
    assert not form.straighten.value and not form.mark.value
    form.straighten.value = True
    assert handed == [Swatch(corners=swatch_form.START_CORNERS)]


def test_the_next_photograph_shows_its_own_after_though_the_swatch_is_the_same():
    """P4: what is shown after belongs to the photograph that is shown before."""
    form, _ = shown(Swatch(crop=(0, 0, 0.5, 1)))
    first = form.after.value
    form.fill(lace().transpose(Image.Transpose.ROTATE_180), Swatch(crop=(0, 0, 0.5, 1)))
    assert form.after.value != first


def test_the_button_takes_all_away_and_a_tick_brings_the_corners_back():
    """P4: also what is finer than a tick of a slider."""
    kept = Swatch(((0.10004, 0.08), *CORNERS[1:]), 0.0004, (0.0004, 0, 0.9996, 1), CM)
    form, handed = shown(kept)
    form.as_it_is.click()
    assert handed == [Swatch()] and form._read() == Swatch()
    form.straighten.value = True
    form.mark.value = True
    assert handed[-1] == Swatch(corners=kept.corners, cm=CM)


# ---- what is refused


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda form: setattr(form.corners[1][0].widget, "value", 0.5), "Two corners of a swatch lie on each"),
        (lambda form: setattr(form.crop_down.widget, "value", (40.0, 40.0)), "The crop (0, 0.4, 1, 0.4) of a swatch"),
        (lambda form: setattr(form.length_cm, "value", -2.0), "cm of a swatch has a length of -2 cm"),
        (lambda form: setattr(form.length_cm, "value", float("nan")), "found nan"),
        (lambda form: setattr(form.crop_across.widget, "value", (40.0, 42.0)), "Only 6 × 237 px would be left"),
    ],
)
def test_what_cannot_be_is_said_and_not_handed_on(act, sentence):
    """P4, C6: and once it is mended, everything is handed on."""
    form, handed = shown(Swatch(corners=((0, 0), (1, 0), (1, 1), (0, 1)), cm=CM))
    form.crop_down.widget.value = (1.0, 99.5)
    kept, after = form.swatch, form.after.value
    act(form)
    assert sentence in form.fault.value and "role='alert'" in form.fault.value
    assert handed == [kept] and form.swatch == kept and form.after.value == after
    form.as_it_is.click()
    assert form.fault.value == "" and handed == [kept, Swatch()]


def test_what_the_receiver_cannot_keep_is_said_as_text_whatever_it_holds():
    """P4: HTML in a message shows as text."""

    def refuse(_: Swatch) -> None:
        raise PicturesError("<img src=x onerror=alert(1)> & co")

    form = SwatchForm(refuse)
    form.fill(lace(), None)
    form.even_light.widget.value = 50.0
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; co" in form.fault.value and "<img" not in form.fault.value
    assert form.swatch == Swatch(), "nobody has kept it"


def test_a_kept_swatch_that_leaves_almost_nothing_is_shown_with_its_sentence():
    """P4: it stays as it is until a person changes it."""
    kept = Swatch(crop=(0, 0, 0.011, 1))
    form, handed = shown(kept)
    assert "Only 3 × 240 px would be left" in form.fault.value
    assert handed == [] and form.swatch == kept
    form.crop_across.widget.value = (0.0, 50.0)
    assert form.fault.value == "" and handed == [Swatch(crop=(0, 0, 0.5, 1))]


# ---- what is seen


@pytest.mark.parametrize("kept", [None, *ONE_BY_ONE, Swatch(CORNERS, 1, CROP, CM)])
@pytest.mark.parametrize("size", [(300, 240), (1500, 1000)])
def test_the_picture_after_is_what_apply_makes_of_the_view(kept, size):
    """P4, C6: both through JPEG, compared by the mean of all differences."""
    picture = lace(*size)
    form, _ = shown(kept, picture)
    view = picture.resize((720, 480), Image.Resampling.LANCZOS, reducing_gap=2.0) if size[0] > 720 else picture
    wanted = swatch.apply(view, kept).copy()
    wanted.thumbnail((360, 360), Image.Resampling.LANCZOS)
    after = decoded(form.after)
    assert max(after.size) <= 360 and after.size == wanted.size
    assert abs(pixels(after) - pixels(through_jpeg(wanted))).mean() < 0.5
    if kept is not None and kept.changes_pixels:
        before = decoded(form.before).resize(after.size)
        assert abs(pixels(before) - pixels(wanted)).mean() > 4


def test_a_mark_alone_changes_no_pixel_after(monkeypatch):
    """P4: nor is the light measured again for it."""
    form, _ = shown(Swatch(even_light=1))
    after = form.after.value
    monkeypatch.setattr(swatch, "apply", lambda *_: pytest.fail("nothing has changed"))
    move(form, Swatch(even_light=1, cm=CM))
    assert form.after.value == after and form.swatch.cm == CM


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_persons_picture_is_never_touched(mode):
    """L11, C6."""
    picture = lace(900, 700).convert(mode)
    before = picture.tobytes()
    form, _ = shown(Swatch(CORNERS, 1, CROP, CM), picture)
    form.even_light.widget.value = 20.0
    assert (picture.mode, picture.size, picture.tobytes()) == (mode, (900, 700), before)


def is_ink(picture: Image.Image) -> numpy.ndarray:
    """Where something coloured was drawn on grey."""
    found = pixels(picture)
    return found.max(axis=2) - found.min(axis=2) > 60


@pytest.mark.parametrize("ground", [(12, 12, 12), (128, 128, 128), (250, 250, 250)])
@pytest.mark.parametrize("corners", [CORNERS, ((0.3, 0.1), (0.8, 0.3), (0.7, 0.8), (0.2, 0.6))])
def test_the_picture_before_carries_the_corners_where_they_are(corners, ground):
    """P4: on dark and on light lace; nowhere but at the corners and the lines between them."""
    form, _ = shown(Swatch(corners=corners), Image.new("RGB", (720, 540), ground))
    before = decoded(form.before)
    assert before.size == (360, 270)
    ink = is_ink(before)
    places = numpy.array(corners) * (359, 269)
    for (x, y), (to_x, to_y) in zip(places, numpy.roll(places, -1, axis=0), strict=True):
        for part in (0, 0.5):
            column, row = round(x + part * (to_x - x)), round(y + part * (to_y - y))
            assert ink[row - 1 : row + 2, column - 1 : column + 2].any()
            assert abs(pixels(before)[row, column] - ground).max() > 60
    rows, columns = numpy.nonzero(ink)
    spread = numpy.array([columns.min(), rows.min(), columns.max(), rows.max()])
    assert spread == pytest.approx(numpy.concatenate([places.min(axis=0), places.max(axis=0)]), abs=7)
    assert not is_ink(decoded(form.after)).any()


def test_a_moved_corner_is_drawn_where_it_went_also_while_it_is_refused():
    """P4: so that a person sees what is wrong."""
    form, handed = shown(Swatch(corners=CORNERS), Image.new("RGB", (360, 360), "grey"))
    form.corners[1][0].widget.value = 2.0
    assert "cross" in form.fault.value and handed == []
    ink = is_ink(decoded(form.before))
    assert ink[round(0.05 * 359), round(0.02 * 359)] and not ink[round(0.05 * 359), round(0.92 * 359)]


def test_the_marked_line_is_drawn_with_its_length():
    """P4: another length is other pixels beside the same line."""
    form, _ = shown(Swatch(cm=CM), Image.new("RGB", (360, 360), "grey"))
    ink = is_ink(decoded(form.before))
    for part in (0, 0.25, 0.5, 1):
        x, y = (round(359 * (one + part * (other - one))) for one, other in zip(CM[0], CM[1], strict=True))
        assert ink[y - 1 : y + 2, x - 1 : x + 2].any()
    before = form.before.value
    form.length_cm.value = 7.0
    assert form.before.value != before
    form.mark.value = False
    assert not is_ink(decoded(form.before)).any()


@pytest.mark.parametrize("size", [(1, 1), (5, 900), (3000, 4)])
def test_a_very_small_or_narrow_picture_can_be_shown(size):
    """P4."""
    form, handed = shown(Swatch(CORNERS, 1, CROP, CM), Image.new("RGB", size, "grey"))
    assert max(*decoded(form.before).size, *decoded(form.after).size) <= 360 and handed == []
    assert ("would be left of the photograph" in form.fault.value) == (size == (1, 1))


# ---- sizes


def test_sizes_are_those_of_the_original_where_a_view_of_it_is_shown():
    """P4: half of a photograph of 4000 px, of which 3000 px are 60 cm."""
    form = SwatchForm(lambda _: None)
    form.fill(lace(400, 300), Swatch(crop=(0.25, 0, 0.75, 0.5), cm=((0.1, 0.5), (0.85, 0.5), 60)), (4000, 3000))
    assert "before 4000 × 3000 px · after 2000 × 1500 px · 50 px per cm · 40 × 30 cm" in form.sizes.value


@WHOLE_FORM
@given(swatches(st.floats(0, 1)), st.integers(60, 140), st.integers(60, 140))
def test_the_sizes_that_are_said_are_those_of_the_picture_that_is_made(kept, width, height):
    """P4, C6."""
    picture = lace(width, height)
    form, _ = shown(kept, picture)
    made = swatch.apply(picture, kept)
    assert f"after {made.width} × {made.height} px" in form.sizes.value
    assert (kept.cm is not None) == ("px per cm" in form.sizes.value)


# ---- as a page and as text


def every(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """A widget and all that it holds."""
    return [widget, *(one for child in getattr(widget, "children", ()) for one in every(child))]


def test_every_field_has_words_for_a_screen_reader_and_a_name_of_its_own():
    """P4."""
    form, _ = shown()
    fields = [one for one in every(form.widget) if isinstance(one, ipywidgets.ValueWidget | ipywidgets.Button)]
    inputs = [one for one in fields if not isinstance(one, ipywidgets.HTML | ipywidgets.Image)]
    assert (
        len(inputs) == 19 and len({one.description for one in inputs}) == 19 and all(one.description for one in inputs)
    )
    named = [name for one in [*inputs, form.before, form.after] for name in one._dom_classes]
    assert len(named) == len(set(named)) == 21 and all(name.startswith("lace-swatch-") for name in named)


def test_fields_are_folded_away_until_they_are_ticked():
    """P4."""
    form, _ = shown()
    boxes = {name: one for one in every(form.widget) for name in one._dom_classes}
    folded = boxes["lace-swatch-corners"], boxes["lace-swatch-marking"]
    assert [box.layout.display for box in folded] == ["none", "none"]
    form.straighten.value = form.mark.value = True
    assert [box.layout.display for box in folded] == ["flex", "flex"]


def test_without_a_front_end_the_form_says_in_plain_lines_what_is_done(monkeypatch, capsys):
    """P4."""
    monkeypatch.setattr(swatch_form, "has_front_end", lambda: False)
    form = SwatchForm(lambda _: None)
    form._ipython_display_()
    assert capsys.readouterr().out == "No photograph is shown yet.\n"
    form.even_light.widget.value = 50.0
    assert form.swatch == Swatch(), "there is no photograph whose light it could be"
    form.fill(lace(), None)
    assert repr(form) == "before 300 × 240 px · after 300 × 240 px\nleft as it is"
    form.fill(lace(), Swatch(CORNERS, 0.5, CROP, ((0.1, 0.5), (0.6, 0.5), 3)))
    form._ipython_display_()
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "straightened by its corners 1 top left (10.0 %, 8.0 %), 2 top right (92.0 %, 5.0 %), "
        "3 bottom right (95.0 %, 90.0 %), 4 bottom left (6.0 %, 94.0 %)",
        "light evened out by 50.0 %",
        "cropped to (10.0 %, 20.0 %, 85.0 %, 90.0 %): left, top, right, bottom",
        "marked: 3 cm from (10.0 %, 50.0 %) to (60.0 %, 50.0 %)",
    ]
