"""Progress and the page: what a person sees, and what papermill sees (L2, L12). Forms: test_settings_form."""

import dataclasses
import re

from lace_lora import config, notebook, progress, style_statistics
from lace_lora.banner import boxed, framed
from lace_lora.inference import Generation
from lace_lora.train import Step

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
    monkeypatch.setattr(notebook.machine, "mount_drive", mount)
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
    monkeypatch.setattr(notebook.machine, "mount_drive", lambda path: asked.append(path) or (path, "Drive is mounted."))
    assert "not mounted" in notebook.mount_drive("/content/drive") and not asked
    monkeypatch.setattr(notebook, "has_front_end", lambda: True)
    assert notebook.mount_drive("/content/drive") == "Drive is mounted." and asked == ["/content/drive"]


def test_a_banner_cannot_be_overlooked():
    text = "DEMO — no GPU\n" + "To use your own photographs choose a <T4>. " * 4
    lines = framed(text, 60).splitlines()
    assert {len(line) for line in lines} == {60} and lines[0][0] == "╔" and len(lines) > 4
    assert "&lt;T4&gt;" in boxed(text) and "role='alert'" in boxed(text)
