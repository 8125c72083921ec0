"""Forms: what a person sees, and what papermill sees (L2, L12)."""

import re

import ipywidgets
import pytest

from lace_lora import config, forms, presets
from lace_lora.config import Config
from lace_lora.errors import SettingsError

EVERY = list(Config.model_fields)


def drawn(form, name):
    """The widget that carries a setting's value."""
    return form._drawn[name].inputs[0]


def note(form, name):
    """What stands beside a field, without its markup."""
    return re.sub("<[^>]+>", "", form._notes[name].value)


def widgets(form):
    """Every widget of a form that takes input."""
    return [widget for one in form._drawn.values() for widget in one.inputs]


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
    assert "role='alert'" in form._notes["resolution"].value
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


def test_auto_stays_auto_until_its_tick_is_taken_away():
    form = forms.settings_form(Config(), ["resolution", "max_train_steps"])
    number, box = form._drawn["resolution"].inputs
    assert (box.value, box.description, number.disabled) == (True, "auto", True)
    box.value = False
    number.value = 640
    assert not number.disabled
    assert (form.config().resolution, form.config().max_train_steps) == (640, "auto")
    box.value = True
    assert form.config().resolution == "auto"


def test_an_empty_number_is_a_tick_too():
    form = forms.settings_form(Config(), ["alpha", "width"])
    number, box = form._drawn["alpha"].inputs
    assert (box.value, box.description, number.disabled) == (True, "leave empty", True)
    box.value = False
    number.value = 4
    assert form.config().alpha == 4 and form.config().width is None


def test_a_plan_shows_what_will_run_and_why_and_changes_nothing():
    class NoGpu:
        gpu_name = None

    settings = Config()
    settled = presets.settle(settings, NoGpu())
    form = forms.settings_form(settings, ["resolution", "rank", "run_name", "images_dir"], settled)
    assert drawn(form, "run_name").value == "demo" and drawn(form, "images_dir").value == "demo_output/pictures"
    assert [widget.value for widget in form._drawn["resolution"].inputs] == [96, True]
    assert "(chosen: the size at which the miniature was trained)" in note(form, "resolution")
    assert form.config() is settings
    assert re.search(r"resolution +auto: 96 +px +the size at which", repr(form))


def test_each_kind_of_setting_has_the_widget_that_suits_it():
    kinds = {name: type(drawn(forms.settings_form(Config(), [name]), name)).__name__ for name in EVERY}
    assert kinds["rank"] == kinds["num_inference_steps"] == "IntSlider"
    assert kinds["guidance_scale"] == kinds["lora_scale"] == kinds["refiner_start"] == "FloatSlider"
    assert kinds["learning_rate"] == kinds["max_grad_norm"] == "FloatText"
    assert kinds["seed"] == kinds["num_images"] == kinds["resolution"] == "IntText"
    assert kinds["prompts"] == "Textarea" and kinds["negative_prompt"] == "Text"
    assert kinds["scheduler"] == kinds["mixed_precision"] == "Dropdown" and kinds["random_flip"] == "Checkbox"


def test_sliders_end_at_the_bounds_and_keep_out_of_open_ends():
    form = forms.settings_form(Config(), ["rank", "refiner_start", "refine_strength", "guidance_scale"])
    ends = {name: (drawn(form, name).min, drawn(form, name).max) for name in form._drawn}
    assert ends["rank"] == (1, 128) and ends["guidance_scale"] == (1, 30)
    assert ends["refiner_start"] == pytest.approx((0.05, 0.95)) and ends["refine_strength"] == pytest.approx((0.05, 1))


def test_every_widget_has_a_name_a_label_with_its_unit_and_no_markup_in_it():
    """ipywidgets 7 draws HTML in descriptions; tests in a browser find widgets by their class."""
    form = forms.settings_form(Config(), EVERY)
    for name, one in form._drawn.items():
        unit = config.unit_of(Config.model_fields[name])
        assert one.inputs[0].description == (f"{name} ({unit})" if unit else name)
        assert f"lace-{name}" in one.inputs[0]._dom_classes
    assert not any(re.search("[<>]", widget.description) for widget in widgets(form))
    assert all(widget.tooltip for widget in widgets(form) if widget.description not in ("auto", "leave empty"))


def test_help_with_the_concept_token_is_text_and_not_markup():
    form = forms.settings_form(Config(), ["concept_token"])
    drawn(form, "concept_token").value = ""
    assert "<b role='alert'" in form._notes["concept_token"].value
    assert "<myspecialstyle>" not in form._notes["concept_token"].value


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
