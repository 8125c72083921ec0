"""What a run gives to take away: listed with its purpose, downloaded in Colab by a button (L6, P25)."""

import os
from pathlib import Path

import pytest

from lace_lora import blind, data_utils, defaults, machine, own_folders, rating, stars, takeaway
from lace_lora.annotations_file import AnnotationsFile
from lace_lora.errors import LaceError, MachineError
from lace_lora.own_files import spare_of
from lace_lora.rating import Rating
from lace_lora.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    """A run with a LoRA, a report and two sheets, of which the second is packed."""
    found = RunFolder(tmp_path / "lace")
    for path in (found.adapter_for_tools, found.adapter_weights, found.report, found.sheet("a").request):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 250_000)
    for number, name in enumerate(("old", "again")):
        found.sheet(name).root.mkdir(parents=True)
        found.sheet(name).request.write_text("{}")
        found.sheet(name).zip.write_bytes(b"z" * 900)
        os.utime(found.sheet(name).zip, (number, number))
    return found


def test_what_is_there_is_listed_with_what_it_is_for(run):
    """L6, P25: the newest sheet last; a sheet that is not packed yet and a token that was not learnt are not listed."""
    listed = repr(takeaway.TakeAway(run)).splitlines()
    assert [line.split(": ")[1].split(" (")[0] for line in listed] == [
        str(path)
        for path in (
            run.adapter_for_tools,
            run.adapter_weights,
            run.report,
            run.sheet("old").zip,
            run.sheet("again").zip,
        )
    ]
    assert listed[0].startswith("the LoRA for ComfyUI, A1111 and the like: ") and listed[0].endswith("(0.2 MB)")
    assert listed[-1].endswith("(1 kB)")


def test_without_a_run_it_says_what_to_do(tmp_path):
    """L20."""
    assert "train first with 03_train.ipynb" in repr(takeaway.TakeAway(RunFolder(tmp_path / "none")))


def test_in_colab_each_has_a_button_and_a_refusal_is_a_sentence(run, monkeypatch):
    """L2: elsewhere the list is printed; nothing is downloaded unasked."""
    asked, shown = [], []

    def download(path):
        asked.append(path)
        if path == run.report:
            raise MachineError("The browser did not take it.")
        return f"Your browser downloads {path.name}."

    monkeypatch.setattr(takeaway.colab, "download", download)
    monkeypatch.setattr(takeaway.colab, "flush_and_unmount", lambda: "Everything is in Drive now.")
    monkeypatch.setattr(takeaway.machine, "in_colab", lambda: True)
    monkeypatch.setattr(takeaway, "has_front_end", lambda: True)
    monkeypatch.setattr(takeaway, "display", shown.append)
    form = takeaway.TakeAway(run)
    form._ipython_display_()
    *rows, flush, said = shown[0].children
    assert len(rows) == 5 and not asked
    rows[0].children[0].click()
    assert asked == [run.adapter_for_tools] and "Your browser downloads lace.safetensors." in said.value
    rows[2].children[0].click()
    assert "role='alert'" in said.value and "did not take it" in said.value
    flush.click()
    assert "Everything is in Drive now." in said.value


def test_elsewhere_it_is_a_list(run, capsys):
    """L2."""
    listed = takeaway.TakeAway(run)
    listed._ipython_display_()
    assert capsys.readouterr().out.count("\n") == 5 and "widget" not in vars(listed)  # none is made for nobody


def test_after_drive_is_let_go_of_no_form_writes_below_its_empty_place(tmp_path, monkeypatch):
    """L2, C12: the forms above are still alive; with a file in its place Drive could not be mounted again."""
    place, gone = tmp_path / "drive", tmp_path / "gone"
    run, photographs = RunFolder(place / "MyDrive/out/lace"), place / "MyDrive/photographs"
    for path in (run.adapter_for_tools, run.report, run.sheet("a").request, photographs / "rose.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    (elsewhere := tmp_path / "here.zip").write_bytes(b"a zip that Drive did not take")
    owed = takeaway.Thing(elsewhere, "owed")
    monkeypatch.setattr(takeaway, "things", lambda run, real=takeaway.things: [*real(run), owed])
    monkeypatch.chdir(tmp_path)
    for room in (machine, defaults):
        monkeypatch.setattr(room, "in_colab", lambda: True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == place and (place / "MyDrive").is_dir())

    def let_go():
        place.rename(gone)
        place.mkdir()
        return "Everything is in Drive now."

    monkeypatch.setattr(takeaway.colab, "flush_and_unmount", let_go)
    form, captions = takeaway.TakeAway(run), AnnotationsFile(photographs, cache_dir=tmp_path / "cache")
    elsewhere = AnnotationsFile(photographs, run.root.parent / "annotations/a.txt", cache_dir=tmp_path / "cache")
    captions.change({"rose.jpg": "a rose"})
    design, pair = Rating("a", 0, "d" * 64, 4, 4), blind.Pair(Path("a"), Path("b"), "one", "other", "key")
    presses = [row.children[0] for row in form.widget.children[:3]]
    assert machine.drive_is_mounted(place) and not any(press.disabled for press in presses)

    form.widget.children[3].click()
    assert [press.disabled for press in presses] == [True, True, False]
    assert "Everything is in Drive now. Until then the forms of this notebook save nothing" in form.said.value
    for write in (
        lambda: blind.record(run, pair, "left"),
        lambda: rating.add(run, design),
        lambda: stars.set_star(run.sheet("a"), 0, designs={0: {}}),
        lambda: captions.change({"leaf.jpg": "a leaf"}),
        lambda: elsewhere.change({"leaf.jpg": "a leaf"}),
        lambda: data_utils.save_dataset(data_utils.Dataset(photographs, ())),
        lambda: defaults.Defaults().save({"rank": 8}, str(place)),
    ):
        with pytest.raises(LaceError, match="Drive is not (connected any more: run the notebook again|mounted)"):
            write()
    assert list(place.iterdir()) == [] and not machine.drive_is_mounted(place)
    kept = spare_of(photographs / "annotations.txt", tmp_path / "cache").read_text(encoding="utf-8")
    assert kept == "rose.jpg\ta rose\nleaf.jpg\ta leaf\n"

    (place / "MyDrive").mkdir()  # whatever another program writes there: it is no Drive
    assert machine.drive_is_mounted(place), "the test's own mount"
    monkeypatch.setattr(os.path, "ismount", lambda path: False)
    assert not machine.drive_is_mounted(place) and own_folders.is_away(run.root, str(place))
