"""Forms, progress and the page: what a person sees, and what papermill sees (L2, L12)."""

import dataclasses
import re

import ipywidgets
import pytest

from lace_lora import config, forms, notebook, presets, progress, style_statistics
from lace_lora.banner import boxed, framed
from lace_lora.config import Config
from lace_lora.errors import SettingsError
from lace_lora.inference import Generation
from lace_lora.train import Step

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


# -- progress --


def step(number, total, loss=0.25, **events):
    """A finished update."""
    import torch

    numbers = torch.tensor([loss, loss, 1.0], dtype=torch.float64)
    return Step(number, total, 0, 1e-4, 0.1, ("one.jpg",), _numbers=numbers, **events)


def test_progress_without_a_front_end_is_at_most_a_dozen_lines_however_long_the_run(capsys):
    for total in (1, 2, 7, 1000):
        show = progress.training()
        for number in range(1, total + 1):
            show(step(number, total))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 12
        assert lines[0].startswith(f"step 1/{total}  loss 0.250") and lines[-1].startswith(f"step {total}/{total} ")


def test_progress_of_a_run_that_goes_on_counts_from_where_it_stopped(capsys):
    show = progress.training()
    for number in (501, 502, 600):
        show(step(number, 1000))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 501/1000  loss 0.250"  # no time yet: one step says nothing of the next
    assert not [line for line in lines if re.search(r"\d{3,} (s|min) left", line)]


def test_progress_with_a_front_end_moves_a_bar_in_place(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(progress, "display", shown.append)
    monkeypatch.setattr(progress, "has_front_end", lambda: True)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0)
    show = progress.training()
    for number in range(1, 6):
        show(step(number, 10, loss=0.1 * number))
    line, chart, samples = shown[0].children
    bar, words = line.children
    assert (bar.value, bar.max) == (5, 10)
    assert chart.value.startswith("<svg") and not samples.children
    assert words.value.startswith("step 5/10  loss 0.300")
    assert len(shown) == 1 and capsys.readouterr().out == ""


def test_looks_and_sample_pictures_appear_below_the_bar(monkeypatch, tmp_path):
    from PIL import Image

    shown = []
    monkeypatch.setattr(progress, "display", shown.append)
    monkeypatch.setattr(progress, "has_front_end", lambda: True)
    path = tmp_path / "sample_00.png"
    Image.new("RGB", (64, 64), "white").save(path)
    show = progress.training()
    for number in range(1, 9):
        row = {"step": number, "val_loss": 0.2, "train_probe_loss": 0.2, "is_best": True} if number == 4 else None
        show(step(number, 10, validation=row, samples=(path,) if number == 8 else ()))
        if number == 4:
            assert "best: step 4" in shown[0].children[1].value, "a look is drawn at once"
    (tile,) = shown[0].children[2].children
    assert tile.children[1].value == "step 8"


def test_the_gallery_fills_up_and_stays_light(monkeypatch, tmp_path):
    from PIL import Image

    shown = []
    monkeypatch.setattr(progress, "display", shown.append)
    monkeypatch.setattr(progress, "has_front_end", lambda: True)
    show = progress.gallery(40)
    for number in range(40):
        path = tmp_path / f"refined_output_{number:03d}.png"
        Image.effect_noise((512, 256), 80).save(path)
        show(generation(number, path))
    tiles = shown[0].children[2].children
    assert len(tiles) == progress.THUMBNAILS
    assert tiles[-1].children[1].value == "39"
    # Seen in a browser: a tooltip on a picture ends in a javascript error in ipywidgets 8.1.
    assert not any(tile.children[0].tooltip for tile in tiles)
    assert sum(len(tile.children[0].value) for tile in tiles) < 300_000


def generation(number, path):
    """A finished picture of which only index, path and prompt matter here."""
    values = dict.fromkeys(Generation.__dataclass_fields__)
    return Generation(**values | {"index": number, "prompt": "a rosette", "base": path, "refined": path})


# -- the page --


def test_a_plan_that_stands_on_the_page_is_not_said_again_but_a_line_is(capsys):
    page = notebook.open_page()
    for text in ("the plan\nof two lines", "drawn 20 pictures", "the plan\nof two lines", "drawn 20 pictures"):
        page.say(text)
    assert capsys.readouterr().out == "the plan\nof two lines\ndrawn 20 pictures\ndrawn 20 pictures\n"


def test_an_empty_banner_shows_nothing(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda bundle, raw: shown.append(bundle["text/plain"]))
    page = notebook.open_page()
    page.banner("")
    page.banner("DEMO\nno GPU")
    assert len(shown) == 1 and shown[0].startswith("╔")


def test_pictures_on_the_page_are_small_and_say_what_they_are(monkeypatch, tmp_path):
    from PIL import Image

    shown = []
    monkeypatch.setattr(notebook, "display", lambda bundle, raw: shown.append(bundle))
    Image.effect_noise((3000, 2000), 60).save(tmp_path / "sheet.png")
    notebook.open_page().picture(tmp_path / "sheet.png", "24 designs")
    assert shown[0]["text/plain"] == "24 designs: 3000 × 2000 px"
    assert len(shown[0]["image/jpeg"]) < 500_000 < (tmp_path / "sheet.png").stat().st_size


def test_the_sheet_of_a_stopped_run_shows_what_is_finished_or_says_that_nothing_is(monkeypatch, tmp_path, capsys):
    from PIL import Image

    shown = []
    monkeypatch.setattr(notebook, "display", lambda bundle, raw: shown.append(bundle["text/plain"]))
    page = notebook.open_page()
    page.sheet([])
    assert capsys.readouterr().out == "No picture is finished yet. Run the cell above again.\n" and not shown
    for name in ("contact_sheet.png", "one.png"):
        Image.effect_noise((64, 64), 60).save(tmp_path / name)
    one = generation(0, tmp_path / "one.png")
    page.sheet([dataclasses.replace(one, refined=None)])
    assert shown == [f"1 designs in {tmp_path}: 64 × 64 px"] and capsys.readouterr().out == ""
    page.sheet([one])
    with Image.open(tmp_path / "one.png") as picture:
        strength = f"{style_statistics.edge_energy(picture):.3f}"
    assert capsys.readouterr().out == f"crispness: {strength} unrefined, {strength} refined\n"


def test_a_notebooks_settings_come_from_drive_which_is_mounted_only_where_a_folder_of_it_is_used(
    monkeypatch, tmp_path, capsys
):
    """L2: as in Colab, with a person there."""
    drive = tmp_path / "drive"
    monkeypatch.chdir(tmp_path)
    where = {"drive_mount_path": str(drive), "preset": "none"}
    assert notebook.settings(images_dir=None, **where).rank == 16 and capsys.readouterr().out == ""

    def mount(path):
        (drive / config.DRIVE_FILE).parent.mkdir(parents=True)
        (drive / config.DRIVE_FILE).write_text("rank: 4\nseed: 5\n")
        return path, "Drive is mounted."

    monkeypatch.setattr(notebook.machine, "in_colab", lambda: True)
    monkeypatch.setattr(notebook, "has_front_end", lambda: True)
    monkeypatch.setattr(notebook.colab, "mount_drive", mount)
    notebook.settings(images_dir="photos", **where)
    notebook.settings(lora_output_dir="runs", images_dir=None, **where | {"preset": "demo"})
    assert capsys.readouterr().out == "" and not drive.exists()
    used = notebook.settings(images_dir=str(drive / "MyDrive/lace"), seed=7, **where)
    assert capsys.readouterr().out == "Drive is mounted.\n"
    assert (used.rank, used.seed) == (4, 7) and "rank" not in used.overridden


def test_checks_are_ticks_and_crosses_with_what_to_do(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda bundle, raw: shown.append(bundle))
    notebook.open_page().checks([("GPU", "none", False, "Choose <T4>."), ("disk", "70 GB free", True, "")])
    assert shown[0]["text/plain"] == "✗ GPU   none        Choose <T4>.\n✓ disk  70 GB free"
    assert "Choose &lt;T4&gt;." in shown[0]["text/html"]


def test_drive_is_mounted_only_in_colab_and_only_when_a_person_is_there(monkeypatch):
    """L2."""
    assert notebook.mount_drive("/content/drive").startswith("This is not Colab")
    asked = []
    monkeypatch.setattr(notebook.machine, "in_colab", lambda: True)
    monkeypatch.setattr(notebook.colab, "mount_drive", lambda path: asked.append(path) or (path, "Drive is mounted."))
    assert "not mounted" in notebook.mount_drive("/content/drive") and not asked
    monkeypatch.setattr(notebook, "has_front_end", lambda: True)
    assert notebook.mount_drive("/content/drive") == "Drive is mounted." and asked == ["/content/drive"]


def test_a_banner_cannot_be_overlooked():
    text = "DEMO — no GPU\n" + "To use your own photographs choose a <T4>. " * 4
    lines = framed(text, 60).splitlines()
    assert {len(line) for line in lines} == {60} and lines[0][0] == "╔" and len(lines) > 4
    assert "&lt;T4&gt;" in boxed(text) and "role='alert'" in boxed(text)
