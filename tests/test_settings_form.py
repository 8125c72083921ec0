"""Forms of settings: what a person sees, changes, plans and saves, and what papermill sees (L2, L9, P17).

These need no torch, so that they also run with Colab's ipywidgets 7.7.1 alone (pytest --noconftest).
"""

import html
import math
import re

import ipywidgets
import pytest

from lace_lora import annotate, config, declarations, defaults, estimate, forms, notebook, presets, replanning
from lace_lora.config import Config
from lace_lora.errors import MachineError, SettingsError
from lace_lora.machine import Machine

T4 = Machine(False, False, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)
EVERY = list(Config.model_fields)


def drawn(form, name):
    """The widget that carries a setting's value."""
    return form.panel.drawn[name].inputs[0]


def note(form, name):
    """What stands beside a field, without its markup."""
    return re.sub("<[^>]+>", "", form.panel.notes[name].value)


def widgets(form):
    """Every widget of a form that takes input."""
    return [widget for one in form.panel.drawn.values() for widget in one.inputs]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"resolution": 768, "max_train_steps": 7, "alpha": 8, "width": 512, "prompts": ("a", "b")},
        {"noise_offset": 0.0123, "lora_scale": 0.83, "learning_rate": 3e-6, "refiner_start": 0.871, "rank": 128},
    ],
)
def test_an_untouched_form_gives_exactly_the_config_it_was_drawn_from(given):
    settings = config.load(**given)
    form = forms.settings_form(settings, EVERY)
    assert form.config() is settings


def test_only_what_was_changed_differs_and_counts_as_an_override():
    form = forms.settings_form(config.load(seed=3), EVERY)
    drawn(form, "rank").value = 8
    drawn(form, "prompts").value = "a rosette\n\n  a border "
    drawn(form, "image_types").value = ".jpg, png"
    drawn(form, "refine").value = "none"
    changed = form.config()
    assert (changed.rank, changed.prompts, changed.image_types) == (8, ("a rosette", "a border"), (".jpg", ".png"))
    assert changed.overridden == {"seed", "rank", "prompts", "image_types", "refine"}
    drawn(form, "rank").value = 16
    assert "rank" not in form.config().overridden


def test_a_wrong_value_has_its_sentence_beside_the_field_and_config_raises_the_same():
    form = forms.settings_form(config.load(resolution=512), ["resolution", "rank"])
    assert "side of the training square" in note(form, "resolution")
    drawn(form, "resolution").value = 1004
    assert note(form, "resolution").startswith("resolution is 1004 px but must be a multiple of 8; use 1000 or 1008")
    assert "role='alert'" in form.panel.notes["resolution"].value
    with pytest.raises(SettingsError, match="use 1000 or 1008"):
        form.config()
    drawn(form, "resolution").value = 1024
    assert "side of the training square" in note(form, "resolution")
    assert form.config().resolution == 1024


def test_a_number_beyond_its_bounds_is_said_and_not_silently_cut():
    form = forms.settings_form(Config(), ["num_images", "learning_rate", "run_name"])
    drawn(form, "num_images").value = 0
    assert "num_images is 0 pictures but must be 1 to 100000" in note(form, "num_images")
    drawn(form, "learning_rate").value = 0
    assert "above 0 to 1" in note(form, "learning_rate")
    drawn(form, "run_name").value = "../elsewhere"
    assert "run_name" in note(form, "run_name")
    with pytest.raises(SettingsError) as error:
        form.config()
    assert all(name in str(error.value) for name in ("num_images", "learning_rate", "run_name"))


@pytest.mark.parametrize(
    ("name", "other", "open_value", "words"),
    [("resolution", "max_train_steps", "auto", "auto resolution"), ("alpha", "width", None, "leave alpha empty")],
)
def test_a_number_stays_open_until_its_tick_is_taken_away(name, other, open_value, words):
    """L9: auto and an empty number are the same to the hand, and one tick moves no other field."""
    form = forms.settings_form(Config(), [name, other])
    number, box = form.panel.drawn[name].inputs
    assert (box.value, box.description, number.disabled) == (True, words, True)
    box.value = False
    number.value = 64
    assert not number.disabled and form.changed() == {name: 64}
    box.value = True
    assert getattr(form.config(), name) == open_value and form.changed() == {}


def test_a_plan_shows_what_will_run_and_why_and_changes_nothing():
    class NoGpu:
        gpu_name = None

    settings = Config()
    settled = presets.settle(settings, NoGpu())
    form = forms.settings_form(settings, ["resolution", "rank", "run_name", "images_dir"], settled)
    assert drawn(form, "run_name").value == "demo" and drawn(form, "images_dir").value == "demo_output/pictures"
    assert [widget.value for widget in form.panel.drawn["resolution"].inputs] == [96, True]
    assert "(auto takes 96: the size at which the miniature was trained)" in note(form, "resolution")
    assert form.config() is settings
    assert re.search(r"resolution +auto: 96 +px +the size at which", repr(form))


@pytest.mark.parametrize(("typed", "said"), [(1e3, ""), (7.5, "max_train_steps is 7.5"), (math.inf, "max_train_steps")])
def test_a_whole_number_is_read_as_it_is_typed_and_half_a_step_is_refused(typed, said):
    """L9: an IntText of ipywidgets takes 1e3 for 1 and 7.5 for 7."""
    form = forms.settings_form(config.load(preset="none", max_train_steps=5), ["max_train_steps"])
    drawn(form, "max_train_steps").value = typed
    if not said:
        assert form.changed() == {"max_train_steps": 1000} and repr(form.config().max_train_steps) == "1000"
    else:
        with pytest.raises(SettingsError, match=said):
            form.config()


def test_each_kind_of_setting_has_the_widget_that_suits_it():
    kinds = {name: type(drawn(forms.settings_form(Config(), [name]), name)).__name__ for name in EVERY}
    slides = {name for name in EVERY if forms.settings_form(Config(), [name]).panel.drawn[name].aid}
    assert slides >= {"rank", "num_inference_steps", "guidance_scale", "lora_scale", "refiner_start"}
    assert not slides & {"learning_rate", "max_grad_norm", "seed", "num_images", "resolution"}
    assert kinds["learning_rate"] == kinds["max_grad_norm"] == kinds["guidance_scale"] == "FloatText"
    assert kinds["seed"] == kinds["num_images"] == kinds["resolution"] == kinds["rank"] == "FloatText"
    assert kinds["prompts"] == "Textarea" and kinds["negative_prompt"] == "Text"
    assert kinds["scheduler"] == kinds["mixed_precision"] == "Dropdown" and kinds["random_flip"] == "Checkbox"


def test_sliders_end_at_the_bounds_and_keep_out_of_open_ends():
    form = forms.settings_form(Config(), ["rank", "refiner_start", "refine_strength", "guidance_scale"])
    ends = {name: (one.aid.min, one.aid.max) for name, one in form.panel.drawn.items()}
    assert ends["rank"] == (1, 128) and ends["guidance_scale"] == (1, 30)
    assert ends["refiner_start"] == pytest.approx((0.05, 0.95)) and ends["refine_strength"] == pytest.approx((0.05, 1))


def test_every_widget_has_a_name_a_label_with_its_unit_and_no_markup_in_it():
    """ipywidgets 7 draws HTML in descriptions; tests in a browser find widgets by their class."""
    form = forms.settings_form(Config(), EVERY)
    for name, one in form.panel.drawn.items():
        unit = config.unit_of(Config.model_fields[name])
        assert one.inputs[0].description == (f"{name} ({unit})" if unit else name)
        assert f"lace-{name}" in one.inputs[0]._dom_classes
    assert not any(re.search("[<>]", widget.description) for widget in widgets(form))
    assert all(
        getattr(widget, notebook.HOVER) for widget in widgets(form) if not isinstance(widget, ipywidgets.Checkbox)
    )


def test_help_with_the_concept_token_is_text_and_not_markup():
    form = forms.settings_form(Config(), ["concept_token"])
    drawn(form, "concept_token").value = ""
    assert "<div role='alert'" in form.panel.notes["concept_token"].value
    assert "<myspecialstyle>" not in form.panel.notes["concept_token"].value


def test_a_name_that_is_no_setting_is_refused():
    with pytest.raises(SettingsError, match="no setting called 'rnak'; did you mean rank?"):
        forms.settings_form(Config(), ["rnak"])


def test_a_form_is_drawn_for_a_person_and_told_in_lines_for_papermill(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(forms, "display", shown.append)
    form = forms.settings_form(config.load(prompts="a\nb"), ["rank", "alpha", "prompts"])
    monkeypatch.setattr(forms, "has_front_end", lambda: False)
    form._ipython_display_()
    assert capsys.readouterr().out.splitlines() == ["rank     16", "alpha    (empty)", "prompts  a | b"]
    monkeypatch.setattr(forms, "has_front_end", lambda: True)
    form._ipython_display_()
    assert shown == [form.widget] and isinstance(form.widget, ipywidgets.VBox)


def test_a_slider_follows_the_number_and_leads_it_and_never_rounds_what_was_typed():
    """L9: 500 is said and not cut to 128; 0.0357 lies between two ticks and stays."""
    form = forms.settings_form(Config(), ["rank", "noise_offset"])
    rank, noise = form.panel.drawn["rank"], form.panel.drawn["noise_offset"]
    rank.aid.value = 40
    assert rank.inputs[0].value == 40 and form.config().rank == 40
    rank.inputs[0].value = 500
    assert (rank.inputs[0].value, rank.aid.value) == (500, 128) and "must be 1 to 128" in note(form, "rank")
    assert noise.inputs[0].value == 0.0357 and noise.aid.value == pytest.approx(0.05)
    noise.aid.value = 0.15
    assert noise.inputs[0].value == 0.15
    assert not rank.aid.readout, "its number is the box beside it, which has a label"


def test_every_control_says_what_it_is_by_a_name_of_its_own():
    """L2: a screen reader that goes from control to control reads these names; none stands twice."""
    form = forms.settings_form(Config(), ["prompts"], groups=list(declarations.GROUPS))
    buttons = [one for one in walk(form.widget) if isinstance(one, ipywidgets.Button | ipywidgets.ToggleButton)]
    names = [one.description for one in [*widgets(form), *buttons]]
    assert all(names) and len(set(names)) == len(names)
    assert not any(isinstance(one, ipywidgets.Accordion | ipywidgets.Tab) for one in walk(form.widget))


def walk(widget):
    """A widget and all inside it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


# -- groups --


def test_every_other_setting_of_a_group_is_folded_away_and_opens_by_a_button():
    """L9."""
    form = forms.settings_form(Config(), ["rank", "seed"], groups=["adapter", "training"])
    fold, inside = form.panel.folds["adapter"]
    assert [name for name, _ in config.fields_of("adapter")] == ["rank", *inside]
    assert set(form.panel.drawn) == {name for group in ("adapter", "training") for name, _ in config.fields_of(group)}
    assert fold.body.layout.display == "none"
    assert fold.button.description == "Show Size of the LoRA (7 settings, all defaults)"
    fold.button.value = True
    assert fold.body.layout.display == "flex" and fold.button.description.startswith("Hide Size of the LoRA")


def test_a_fold_tells_how_many_values_differ_are_warned_of_or_wrong():
    """L9: what is folded away must not hide that something was changed or needs a look."""
    form = forms.settings_form(config.load(use_dora=True), ["seed"], groups=["adapter"])
    fold = form.panel.folds["adapter"][0]
    assert "(8 settings, 1 differs from the defaults)" in fold.button.description
    drawn(form, "rank").value = 200
    assert "2 differ from the defaults, to be mended: 1)" in fold.button.description
    drawn(form, "rank").value, drawn(form, "use_dora").value = 16, False
    assert "(8 settings, all defaults)" in fold.button.description


def test_folded_settings_count_and_papermill_sees_those_that_are_no_defaults():
    """L2, P17."""
    form = forms.settings_form(config.load(use_dora=True), ["seed"], groups=["adapter", "keeping"])
    drawn(form, "checkpoint_every").value = 7
    assert form.config().checkpoint_every == 7 and form.config().overridden == {"use_dora", "checkpoint_every"}
    assert [line.split()[0] for line in repr(form).splitlines()] == ["seed", "use_dora", "checkpoint_every"]


def test_a_group_that_is_none_is_refused():
    """L9."""
    with pytest.raises(SettingsError, match="no group of settings called 'trainin'; did you mean training?"):
        forms.settings_form(Config(), [], groups=["trainin"])


# -- the plan --


@pytest.fixture
def plan(tmp_path):
    """A plan for twenty pictures on a T4."""
    for number in range(20):
        (tmp_path / f"{number}.jpg").touch()
    return estimate.prepare(config.load(images_dir=str(tmp_path), preset="none"), T4)


def planned_form(plan, basic=("rank", "resolution", "max_train_steps", "learning_rate"), **given):
    settings = config.load(images_dir=plan.config.images_dir, preset="none", **given)
    return forms.settings_form(settings, basic, plan, replan=replanning.replanner(plan))


def summary(form):
    """The plan above the fields, without its markup."""
    return re.sub("<[^>]+>", " ", form.panel.summary.value)


def test_the_plan_follows_what_is_typed(plan):
    """L2: 20 pictures × 10 passes / 4 = 50 steps; twice the passes are 100; a rank of 64 is warned of."""
    form = planned_form(plan, ["rank", "num_train_epochs", "max_train_steps"])
    number, box = form.panel.drawn["max_train_steps"].inputs
    assert "50 of 4 pictures" in summary(form) and "fits" in summary(form) and number.value == 50
    drawn(form, "num_train_epochs").value = 20
    assert "100 of 4 pictures" in summary(form) and number.value == 100 and box.value
    assert form.config().max_train_steps == "auto" and form.changed() == {"num_train_epochs": 20}
    drawn(form, "rank").value = 64
    assert "rank 64 on 15 GB is tight" in note(form, "rank") and "rank 64" not in summary(form)
    assert "read what stands below rank" in summary(form)
    drawn(form, "rank").value = 16
    assert "tight" not in note(form, "rank") and "read what" not in summary(form)


def test_fields_that_nobody_touched_show_what_another_preset_brings_and_go_back_with_it(plan):
    """L2: sdxl brings rank 32; what was asked for stays as it is, and a reset leaves nothing behind."""
    form = planned_form(plan, ["preset", "rank", "resolution"], resolution=512)
    number, box = form.panel.drawn["resolution"].inputs
    drawn(form, "preset").value = "sdxl"
    assert drawn(form, "rank").value == 32 and number.value == 512
    assert form.changed() == {"preset": "sdxl"}
    box.value = True
    assert (form.config().resolution, number.value) == ("auto", 1024), "auto shows what the new plan takes"
    form.reset()
    assert (drawn(form, "rank").value, number.value, box.value) == (16, 512, False) and form.changed() == {}


def test_a_warning_without_a_field_stands_in_the_plan(plan):
    """L2: every warning is said once, somewhere."""
    form = planned_form(plan, ["resolution"], rank=64)
    assert "rank 64 on 15 GB is tight" not in summary(form), "the plan that it was drawn from does not warn"
    form.panel.drawn["resolution"].inputs[1].value = False
    assert "Warning:  rank 64 on 15 GB is tight" in summary(form)


def test_a_wrong_value_keeps_the_plan_of_the_last_good_ones_and_says_so(plan):
    """L9."""
    form = planned_form(plan, ["num_train_epochs", "rank"])
    drawn(form, "num_train_epochs").value = 20
    drawn(form, "rank").value = 0
    assert "of the last good values: correct rank" in summary(form) and "100 of 4 pictures" in summary(form)
    assert "role='alert'" in form.panel.notes["rank"].value
    drawn(form, "rank").value = 8
    assert "last good" not in summary(form)


def test_a_folder_that_cannot_be_used_is_said_beside_its_field(plan, tmp_path):
    """L9."""
    form = planned_form(plan, ["images_dir", "rank"])
    drawn(form, "images_dir").value = str(tmp_path / "nowhere")
    assert "There is no folder" in note(form, "images_dir") and "see images_dir" in summary(form)
    assert "50 of 4 pictures" in summary(form), "the last plan that could be made stays"
    drawn(form, "images_dir").value = str(tmp_path)
    assert "There is no folder" not in note(form, "images_dir")


def test_a_form_without_a_plan_makes_one_where_it_is_told_how(plan):
    """L2."""
    settings = config.load(images_dir=plan.config.images_dir, preset="none")
    form = forms.settings_form(settings, ["resolution"], replan=replanning.replanner(plan))
    assert "50 of 4 pictures" in summary(form) and drawn(form, "resolution").value == 1024


@pytest.mark.parametrize("preset", ["none", "sdxl", "lace-a100", "auto"])
def test_without_a_plan_what_stands_in_the_fields_is_what_will_run(preset):
    """L2: presets.settle of what the form gives is the oracle, for every field of it."""
    nobody = Machine(False, False, None, 0.0, (0, 0), 8.0, 6.0, 40.0, 2)
    settings = config.load(seed=5)
    form = forms.settings_form(settings, EVERY, presets.settle(settings, nobody))
    assert drawn(form, "run_name").value == "demo"
    drawn(form, "preset").value = preset
    runs = presets.settle(form.config(), nobody).config
    shown = {name: one.read() for name, one in form.panel.drawn.items() if name != "preset"}
    expected = {name: getattr(settings if getattr(settings, name) == "auto" else runs, name) for name in shown}
    assert {name: value or None for name, value in shown.items()} == {n: v or None for n, v in expected.items()}
    assert form.changed() == ({"preset": preset} if preset != "auto" else {})


def test_a_preset_that_is_none_is_said_and_the_fields_stay():
    """L9."""
    form = forms.settings_form(Config(), ["preset", "rank"], presets.settle(Config(), T4))
    drawn(form, "preset").value = "sdx"
    assert "No preset called 'sdx'" in html.unescape(note(form, "preset"))
    assert "the last values that could be used; see preset" in summary(form)
    press(form, "Reset")
    assert "No preset" not in note(form, "preset") and summary(form) == ""


def test_a_form_for_designs_tells_their_time_and_follows_their_number():
    """L2: twice the designs take twice the time."""
    machine = Machine(True, True, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)
    settings = config.load(preset="none", num_images=100)
    settled = presets.settle(settings, machine)
    replan = replanning.drawing(machine, "stabilityai/stable-diffusion-xl-base-1.0", 768)
    form = forms.settings_form(settings, ["num_images", "width"], settled, replan=replan)
    assert "100 of 768 × 768 px" in summary(form) and "fits: needs" in summary(form)
    assert "steps" not in summary(form) and drawn(form, "width").disabled
    drawn(form, "num_images").value = 200
    assert "200 of 768 × 768 px" in summary(form)


# -- where nobody draws widgets --


def test_a_form_that_is_not_drawn_makes_no_widgets(plan, monkeypatch, capsys):
    """P17: a notebook that papermill runs would store each of them."""
    made = []
    monkeypatch.setattr(ipywidgets.Widget, "open", lambda widget: made.append(widget))
    settings = config.load(images_dir=plan.config.images_dir, preset="none")
    form = forms.settings_form(settings, ["rank"], plan, list(declarations.GROUPS), replanning.replanner(plan))
    monkeypatch.setattr(forms, "has_front_end", lambda: False)
    form._ipython_display_()
    form.reset()
    assert form.config() is settings and form.changed() == {} and "rank" in capsys.readouterr().out
    assert made == []
    assert form.widget and made


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")  # of Colab's jupyter_client on 3.13
def test_a_notebook_that_papermill_runs_stores_no_widgets():
    """P17: the form's lines are there, and nothing of its widgets."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cell = "from lace_lora import config, forms\nforms.settings_form(config.load(), ['rank'], groups=['training'])"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    assert "rank  16" in book.cells[0].outputs[0].text
    assert "widgets" not in book.metadata


# -- reset, and a person's own defaults --


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, of no Colab machine."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def press(form, words):
    """Press a button as a front-end does, and give what the form then says."""
    (found,) = [one for one in walk(form.widget) if isinstance(one, ipywidgets.Button) and one.description == words]
    found.click()
    return html.unescape(re.sub("<[^>]+>", "", form.panel.said.value))


def test_reset_gives_every_field_what_it_began_with_also_the_open_ones():
    """L9."""
    settings = config.load(alpha=8, prompts=("a", "b"))
    form = forms.settings_form(settings, EVERY)
    before = [widget.value for widget in widgets(form)]
    for widget in widgets(form):
        if isinstance(widget, ipywidgets.Checkbox):
            widget.value = not widget.value
        elif isinstance(widget, ipywidgets.Dropdown):
            widget.value = widget.options[-1]
        else:
            widget.value = widget.value + (1 if isinstance(widget.value, int | float) else "x")
    assert len(form.changed()) > 90
    assert press(form, "Reset") == "Every field shows again what it began with."
    assert form.config() is settings and [widget.value for widget in widgets(form)] == before


def test_what_was_changed_is_saved_and_read_again_and_stays_the_forms(here):
    """L9."""
    form = forms.settings_form(Config(), ["rank", "max_train_steps", "prompts"])
    drawn(form, "rank").value = 8
    drawn(form, "prompts").value = "a, b\nc: d #e"
    said = press(form, "Save as my defaults")
    assert said.startswith(f"Saved in {here / 'config.yaml'}: rank: 8, prompts: ['a, b', 'c: d #e'].")
    loaded = config.load(*config.found("/nowhere"))
    assert (loaded.rank, loaded.prompts, loaded.given) == (8, ("a, b", "c: d #e"), {"rank", "prompts"})
    assert form.config().rank == 8 and form.config().overridden == {"rank", "prompts"}
    assert press(form, "Save as my defaults") == (
        "Nothing was changed in this form since it was saved, so nothing was written."
    )
    form.panel.drawn["max_train_steps"].inputs[1].value = False
    assert "max_train_steps: 1." in press(form, "Save as my defaults")


@pytest.mark.parametrize("earlier", ["", "seed: 3  # mine\nrank: 4 # small\nprompts:\n- a # one\n- b\n", None])
def test_what_was_saved_and_then_reset_leaves_the_file_as_it_was(here, earlier):
    """L9: a miniature's 64 and a declared 16 are both wrong there; without the line, preset and plan count again."""
    if earlier is not None:
        (here / "config.yaml").write_text(earlier)
    before = config.load(*config.found("/nowhere"))
    settled = presets.settle(before, T4)
    form = forms.settings_form(before, ["rank", "prompts", "seed"], settled)
    drawn(form, "rank").value, drawn(form, "prompts").value = 8, "c"
    press(form, "Save as my defaults")
    press(form, "Reset")
    drawn(form, "seed").value = 5
    said = press(form, "Save as my defaults")
    assert "config.yaml: seed: 5; rank, prompts as before the first save. Every" in said
    assert config.load("config.yaml") == before.model_copy(update={"seed": 5})
    assert config.load("config.yaml").given == before.given | {"seed"}
    press(form, "Reset")
    press(form, "Save as my defaults")
    assert (here / "config.yaml").read_text() == (defaults.NEW_FILE if earlier is None else earlier)
    assert presets.settle(config.load("config.yaml"), T4).config == settled.config


def test_a_declared_default_is_written_too_since_a_preset_would_take_its_place(here):
    """L9."""
    settled = presets.settle(config.load(preset="sdxl"), T4)
    form = forms.settings_form(config.load(preset="sdxl"), ["rank"], settled)
    assert drawn(form, "rank").value == 32
    drawn(form, "rank").value = 16
    press(form, "Save as my defaults")
    assert config.load("config.yaml").given == {"rank"}
    again = presets.settle(config.load("config.yaml", preset="sdxl"), T4)
    assert again.config.rank == 16


def test_nothing_is_written_while_a_value_is_wrong_or_nothing_was_changed(here):
    """L9."""
    form = forms.settings_form(Config(), ["rank", "seed"])
    assert press(form, "Save as my defaults") == "Nothing was changed in this form, so nothing was written."
    drawn(form, "seed").value, drawn(form, "rank").value = 3, 0
    assert press(form, "Save as my defaults").startswith("Nothing was saved. rank is 0 but must be 1 to 128")
    assert "role='alert'" in form.panel.said.value and list(here.iterdir()) == []


def test_what_the_demo_brings_itself_is_said_when_it_is_saved(here):
    """L9: it beats the eleven keys in a file; every other setting that is saved counts at once."""

    class NoGpu:
        gpu_name = None

    form = forms.settings_form(Config(), ["rank", "learning_rate"], presets.settle(Config(), NoGpu()))
    drawn(form, "rank").value, drawn(form, "learning_rate").value = 8, 3e-5
    assert "the demo is in force, which brings its own learning_rate:" in press(form, "Save as my defaults")
    again = presets.settle(config.load("config.yaml"), NoGpu()).config
    assert again.rank == 8 and again.learning_rate == presets.read("demo").settings["learning_rate"] != 3e-5


def test_a_concept_token_alone_is_said_beside_the_prompt_and_not_saved(here):
    """L9: notebook 02 would refuse the pair only when it is read again."""
    form = forms.settings_form(Config(), ["instance_prompt", "concept_token", "rank"])
    drawn(form, "concept_token").value = "<lace>"
    assert "does not hold the concept token <lace>" in html.unescape(note(form, "instance_prompt"))
    assert "role='alert'" in form.panel.notes["instance_prompt"].value
    said = press(form, "Save as my defaults")
    assert said.startswith("Nothing was saved. With this, config.yaml would not work: instance_prompt")
    assert list(here.iterdir()) == []
    drawn(form, "instance_prompt").value = "a photo of <LACE>"
    assert "does not hold" not in note(form, "instance_prompt")
    assert "instance_prompt: a photo of <LACE>, concept_token: <lace>." in press(form, "Save as my defaults")
    annotate.check_words(config.load("config.yaml"))


def test_a_brace_without_its_other_half_is_said_beside_the_prompts():
    """L9: before minutes of a GPU are spent on loading models."""
    form = forms.settings_form(Config(), ["prompts"])
    drawn(form, "prompts").value = "a rosette\n{white|cream lace"
    assert "Prompt 2 has a {" in html.unescape(note(form, "prompts"))
    drawn(form, "prompts").value = "{white|cream} lace"
    assert "Prompt" not in note(form, "prompts")


def test_settings_that_a_captioner_refuses_are_said_in_their_fold():
    """L9: http_plain sends no question; what is folded away is counted as to be mended."""
    form = forms.settings_form(Config(), ["captioner"], groups=["captions"])
    drawn(form, "captioner").value = "http_plain"
    assert "needs caption_url" in note(form, "caption_url")
    assert "to be mended: 1)" in form.panel.folds["captions"][0].button.description
    drawn(form, "caption_url").value, drawn(form, "caption_prompt").value = "http://localhost:1", "what is it?"
    assert "sends no question" in note(form, "caption_prompt") and "needs" not in note(form, "caption_url")


def test_what_stands_in_the_way_of_saving_is_a_sentence(here, monkeypatch):
    """L9: also what nobody foresaw must not vanish in a log."""
    form = forms.settings_form(Config(), ["rank"])
    drawn(form, "rank").value = 8
    for error, sentence in (
        (MachineError("The disk is full."), "The disk is full."),
        (ZeroDivisionError("x"), "Something unforeseen went wrong (ZeroDivisionError: x)."),
    ):

        def fail(*asked, error=error, **more):
            raise error

        monkeypatch.setattr(defaults.Defaults, "save", fail)
        assert press(form, "Save as my defaults") == f"Nothing was saved. {sentence}"
