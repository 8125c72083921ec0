"""The notebook as a page: what people and papermill see of checks, pictures, banners and Drive (L2, L12)."""

import dataclasses

from lace_lora import config, notebook, style_statistics
from lace_lora.banner import boxed, framed
from tests.test_progress import generation


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
