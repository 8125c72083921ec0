"""A sheet on Drive: drawn on this machine, every finished file delivered at once, whatever Drive does (L14, L7)."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lace_lora import checkpoint, delivery, inference, production, sheet, workplace
from lace_lora.errors import LaceError, MachineError, RunError
from lace_lora.lock import lock
from lace_lora.run_folder import RunFolder, Shard
from lace_lora.workplace import Workplace
from tests.drawing import cut_at, files_of, quiet_run, seeds_drawn, settings_of
from tests.drives import failing

MORE = {"num_images": 4, "repeat": "straight", "mask": True, "prompts": ("<lace> leaf", "<lace> star")}
REASONS = {
    errno.ENOSPC: "no room is left; empty Drive's bin or delete something there",
    errno.EDQUOT: "no room is left; empty Drive's bin or delete something there",
    errno.EROFS: "nothing may be written there: Read-only file system",
    errno.ENOTCONN: "Drive does not answer: Transport endpoint is not connected",
    errno.EIO: "Drive does not answer: Input/output error",
}


@pytest.fixture
def drive(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "SECONDS_FOR_DRIVE", 0.0)
    monkeypatch.setattr(workplace, "ATTEMPTS", (0.0,))
    return failing(tmp_path / "drive", monkeypatch)


@pytest.fixture
def on_drive(drive, made_run, models, tmp_path):
    """Settings of a sheet in a run on Drive, for this machine or another one."""

    def asked(machine="here", **changes):
        places = {"drive_mount_path": str(drive.root), "cache_dir": str(tmp_path / machine)}
        return settings_of(drive.root / "MyDrive" / "out", made_run, models, **MORE | places | changes)

    return asked


@pytest.fixture
def expected(made_run, models, tmp_path):
    """The files of the same sheet off Drive."""
    whole = settings_of(tmp_path / "off", made_run, models, **MORE)
    quiet_run(whole)
    return files_of(RunFolder.of(whole).sheets)


def sheets(settings):
    return files_of(RunFolder.of(settings).sheets)


def copies(machine):
    """The files in working folders of a machine."""
    return {name: data for name, data in files_of(machine).items() if "drawing" not in name and name != "measured.json"}


def test_a_sheet_on_drive_has_the_bytes_of_one_that_is_not_and_each_design_is_there_at_once(
    on_drive, expected, tmp_path
):
    """L7, L14."""
    settings, said, there = on_drive(), [], []
    kept = RunFolder.of(settings).sheet("sheet")

    def seen(one):
        rows = [row["index"] for row in checkpoint.read_json_lines(kept.manifest)]
        there.append((one.index in rows, [(kept.root / path.name).read_bytes() for path in one.files()]))
        assert there[-1] == (True, [path.read_bytes() for path in one.files()])
        assert not any(path.is_relative_to(kept.root) for path in one.files())

    made = inference.run(settings, say=said.append, show=seen)
    assert len(there) == 4 and made.is_complete and made.owed == "" and made.folder == kept
    assert sheets(settings) == expected and all(one.path.is_file() for one in made)
    assert copies(tmp_path / "here") == {} and not [path for path in kept.root.rglob("*") if path.is_dir()]
    assert not any(" Drive" in line for line in said)


def test_a_whole_sheet_is_not_copied_again_and_one_that_lacks_something_is_made_whole(
    on_drive, expected, tmp_path, monkeypatch
):
    settings = on_drive()
    quiet_run(settings)
    brought = []
    bring = delivery.Delivery.bring_file
    monkeypatch.setattr(delivery.Delivery, "bring_file", lambda self, path: brought.append(path) or bring(self, path))
    drawn = seeds_drawn(monkeypatch)
    quiet_run(settings)
    assert brought == drawn == [] and sheets(settings) == expected
    kept = RunFolder.of(settings).sheet("sheet")
    (kept.root / "refined_output_002_mask.png").unlink()
    quiet_run(settings)
    assert brought and drawn == [] and sheets(settings) == expected and copies(tmp_path / "here") == {}


@pytest.mark.parametrize("number", REASONS, ids=errno.errorcode.get)
def test_a_drive_that_fails_is_said_once_and_later_only_copied_to(
    number, on_drive, drive, expected, tmp_path, monkeypatch
):
    """L14, L7: full, read-only or gone."""
    settings, said = on_drive(), []
    is_gone = number in (errno.ENOTCONN, errno.EIO)

    def show(one):
        if one.index == 1:
            drive.fail(range(100_000), number, only_writes=not is_gone)

    made = inference.run(settings, say=said.append, show=show)
    drive.fail(())
    failures = [line for line in said if "Copying to Drive failed" in line]
    assert len(failures) == 1 and REASONS[number] in failures[0]
    assert said[-1] == f"! {made.owed}" and REASONS[number] in made.owed and str(made.folder.root) in made.owed
    assert "Do not close this session" in made.owed and "only copied" in made.owed
    assert made.is_complete and len(made) == 4 and made.folder.root.is_relative_to(tmp_path / "here")
    assert {f"sheet/{name}": data for name, data in files_of(made.folder.root).items()} == expected
    drawn, said = seeds_drawn(monkeypatch), []
    again = inference.run(settings, say=said.append)
    assert drawn == [] and again.owed == "" and sheets(settings) == expected and copies(tmp_path / "here") == {}


def test_a_drive_that_comes_back_gets_what_is_owed(on_drive, drive, expected, monkeypatch):
    settings, said = on_drive(), []
    monkeypatch.setattr(delivery, "PAUSES", (0.0, 0.0))

    def show(one):
        drive.fail(range(100_000) if one.index == 1 else (), errno.ENOTCONN)

    made = inference.run(settings, say=said.append, show=show)
    assert made.owed == "" and sheets(settings) == expected
    away = [number for number, line in enumerate(said) if "Copying to Drive failed" in line]
    back = [number for number, line in enumerate(said) if "Drive is back" in line]
    assert len(away) == len(back) == 1 and away < back


def test_another_machine_takes_up_what_drive_has_when_the_first_one_vanished(on_drive, expected, tmp_path, monkeypatch):
    """L14: also what was drawn and is no picture yet."""
    with monkeypatch.context() as patch:
        cut_at(patch, production.sheet, "add", 3)
        with pytest.raises(SystemExit):
            quiet_run(on_drive())
    shutil.rmtree(tmp_path / "here")
    drawn, finished = seeds_drawn(monkeypatch), []
    kept = RunFolder.of(on_drive()).sheet("sheet")
    before = {path: path.stat().st_mtime_ns for path in kept.root.glob("*.png")}
    made = quiet_run(on_drive("there"), show=lambda one: finished.append(one.index))
    assert drawn == [] and finished == [2, 3] and len(made) == 4
    assert sheets(on_drive()) == expected
    assert len(before) == 4 and before == {path: path.stat().st_mtime_ns for path in before}, "finished ones stay"


def test_nothing_is_written_into_the_place_of_a_drive_that_is_not_mounted(on_drive, drive, expected, tmp_path):
    """C12: with files in it Drive could not be mounted there again."""
    settings = on_drive()

    def show(one):
        if one.index == 1:
            drive.root.rename(tmp_path / "gone")
            drive.root.mkdir()

    made = quiet_run(settings, show=show)
    assert list(drive.root.iterdir()) == [] and "Drive is not mounted" in made.owed
    drive.root.rmdir()
    (tmp_path / "gone").rename(drive.root)
    assert quiet_run(settings).owed == "" and sheets(settings) == expected


def test_a_sheet_begun_while_drive_takes_nothing_is_gone_on_with_and_others_get_names_of_their_own(
    on_drive, drive, expected, tmp_path
):
    settings, others = on_drive(), on_drive(prompts=("<lace> rose",))
    drive.fail(range(100_000), errno.EROFS, only_writes=True)
    first, other = quiet_run(settings), quiet_run(others)
    assert (first.folder.root.name, other.folder.root.name) == ("sheet", "sheet-2")
    drive.fail(())
    assert quiet_run(on_drive()).owed == quiet_run(on_drive(prompts=("<lace> rose",))).owed == ""
    found = sheets(on_drive())
    assert {name: data for name, data in found.items() if name.startswith("sheet/")} == expected
    assert {name.split("/")[0] for name in found} == {"sheet", "sheet-2"}


def test_a_sheet_of_that_name_drawn_elsewhere_meanwhile_counts_and_ours_is_set_aside(on_drive, drive, tmp_path):
    settings = on_drive()
    drive.fail(range(100_000), errno.EROFS, only_writes=True)
    ours = files_of(quiet_run(settings).folder.root)
    drive.fail(())
    theirs = quiet_run(on_drive("there", prompts=("<lace> rose",))).folder
    before, said = files_of(theirs.root), []
    inference.run(on_drive(prompts=("<lace> rose",)), say=said.append)
    (theirs.root / "contact_sheet.png").unlink()
    inference.run(on_drive(prompts=("<lace> rose",)), say=said.append)
    assert files_of(theirs.root) == before
    aside = [Path(line.split(" is in ")[1].removesuffix(" now.")) for line in said if "Drive holds another" in line]
    assert len(aside) == 1 and files_of(aside[0]) == ours


def test_several_processes_share_the_folder_on_drive_itself(on_drive, expected, tmp_path):
    for shard in ("1/2", "2/2"):
        quiet_run(on_drive(shard=shard))
    names = {name for name in expected if not name.endswith(".zip")}
    assert names <= sheets(on_drive()).keys() and copies(tmp_path / "here") == {}


def test_two_machines_do_not_draw_one_sheet_on_drive(on_drive):
    settings = on_drive()
    made = quiet_run(settings)
    made.folder.zip.unlink()
    with (
        lock(made.folder.root, print, name="drawing.lock"),
        pytest.raises(RunError, match="is being drawn already"),
    ):
        quiet_run(settings)


# -- the place itself, at every call --


def draw(place, first, last):
    """What drawing writes, in its order."""
    folder, shard = place.folder, Shard()
    if not folder.request.is_file():
        checkpoint.write_json(folder.request, {"digest": "a"})
    for index in range(first, last):
        left = folder.latents / f"drawn-{index:06d}.safetensors"
        checkpoint.write_text(left, f"latents {index}")
        place.hand_over([left])
    for index in range(first, last):
        checkpoint.write_text(folder.refined(index, "png"), f"design {index} " * 50)
        checkpoint.append_line(folder.rows(shard), json.dumps({"index": index}))
        place.hand_over([folder.refined(index, "png"), folder.rows(shard)])
    shutil.rmtree(folder.latents)
    checkpoint.write_text(folder.contact_sheet, f"page of {last}")


def at(drive, cache, said):
    run = RunFolder(drive.root / "MyDrive" / "out" / "lace")
    run.root.mkdir(parents=True, exist_ok=True)
    return Workplace.of(run, run.sheet("sheet"), drive.root, cache, said.append)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("comes_back", [True, False], ids=["one call fails", "all calls from there on fail"])
def test_a_drive_that_fails_at_any_call_loses_nothing(comes_back, stride, drive, tmp_path):
    """L14: at every call in turn; what Drive has can be gone on from, and equals what was made afterwards."""
    failed, is_through = 0, False
    while not is_through:
        for place in (tmp_path / "cache", drive.root / "MyDrive" / "out"):
            shutil.rmtree(place, ignore_errors=True)
        said = []
        place = at(drive, tmp_path / "cache", said)
        drive.fail((failed + 1,) if comes_back else range(failed + 1, 100_000))
        draw(place, 0, 3)
        is_delivered = place.deliver()
        is_through = drive.calls <= failed
        drive.fail(())
        made = files_of(place.folder.root)
        told = len([line for line in said if "Copying to Drive failed" in line])
        assert told == (0 if is_through else 1) or is_delivered, said  # an empty folder stayed
        for row in checkpoint.read_json_lines(place.kept.manifest):
            assert place.kept.refined(row["index"], "png").read_text() == f"design {row['index']} " * 50
        assert is_delivered or place.finish("3 designs are finished", 0.0) == ""
        checkpoint.sweep(place.kept.root, also_own=True)
        assert files_of(place.kept.root) == made, f"failed at call {failed + 1}"
        failed += stride
    assert failed > 40


def test_bringing_is_tried_again_and_then_ends_with_a_sentence(drive, tmp_path, monkeypatch):
    draw(first := at(drive, tmp_path / "cache", []), 0, 3)
    assert first.deliver()
    monkeypatch.setattr(workplace, "READERS", 1)
    for failed in range(1, 60, 3):
        later = at(drive, tmp_path / f"other {failed}", [])
        drive.fail((failed,))
        later.bring()
        drive.fail(())
        assert files_of(later.folder.root) == files_of(first.kept.root)
    later = at(drive, tmp_path / "third", [])
    drive.fail(range(100_000), errno.EIO)
    with pytest.raises(MachineError, match="could not be copied to this machine .Drive does not answer.* Mount Drive"):
        later.bring()


def test_the_newer_side_counts_and_what_was_deleted_here_does_not_come_back(drive, tmp_path):
    here = at(drive, tmp_path / "here", [])
    draw(here, 0, 2)
    assert here.deliver()
    there = at(drive, tmp_path / "there", [])
    there.bring()
    draw(there, 2, 3)
    assert there.deliver()
    checkpoint.append_line(here.folder.rows(Shard()), json.dumps({"index": 9}))  # never delivered
    again = at(drive, tmp_path / "here", [])
    again.bring()
    assert files_of(again.folder.root) == files_of(there.folder.root)
    checkpoint.append_line(again.folder.rows(Shard()), json.dumps({"index": 3}))
    again.folder.contact_sheet.unlink()
    ahead = files_of(again.folder.root)
    again = at(drive, tmp_path / "here", [])
    again.bring()
    assert files_of(again.folder.root) == ahead and again.deliver()
    assert files_of(again.kept.root) == ahead


def test_a_working_folder_that_somebody_emptied_deletes_no_design_on_drive(drive, tmp_path):
    place = at(drive, tmp_path / "cache", [])
    draw(place, 0, 3)
    assert place.deliver()
    before = files_of(place.kept.root)
    for path in place.folder.root.iterdir():
        path.unlink()
    place = at(drive, tmp_path / "cache", [])
    place.deliver()
    left = files_of(place.kept.root)
    assert left == {name: data for name, data in before.items() if name != "contact_sheet.png"}
    place.bring()
    assert files_of(place.folder.root) == left


def test_a_drive_that_is_really_full_and_then_unmounted(made_run, models, expected, tmp_path, monkeypatch):
    """L14, C12: a small file system of its own stands for Drive."""
    monkeypatch.setattr(inference, "SECONDS_FOR_DRIVE", 0.0)
    disk, trained = tmp_path / "disk", sum(path.stat().st_size for path in made_run.rglob("*") if path.is_file())
    disk.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={trained + 2**17}", "tmpfs", str(disk)]
    try:
        done = subprocess.run(line, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        places = {"drive_mount_path": str(disk), "cache_dir": str(tmp_path / "cache")}
        settings, said = settings_of(disk / "out", made_run, models, **MORE | places), []
        (disk / "ballast").write_bytes(bytes(2**17 - 2**14))
        made = inference.run(settings, say=said.append)
        assert sum("no room is left" in line for line in said if "Copying" in line) == 1 and "no room" in made.owed
        assert {f"sheet/{name}": data for name, data in files_of(made.folder.root).items()} == expected
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert quiet_run(settings).owed == "" and sheets(settings) == expected

        def unmount(one):
            if os.path.ismount(disk):
                subprocess.run(["umount", "-l", str(disk)], check=True)  # the adapter is open

        made = quiet_run(settings.model_copy(update={"seed": 5}), show=unmount)
        assert "Drive is not mounted" in made.owed and len(made) == 4 and list(disk.iterdir()) == []
    finally:
        if os.path.ismount(disk):
            subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_list_of_many_designs_is_not_copied_for_each_of_them(drive, tmp_path, monkeypatch):
    place = at(drive, tmp_path / "cache", [])
    monkeypatch.setattr(workplace, "LARGE_ROWS", 10)
    draw(place, 0, 6)
    assert len(checkpoint.read_json_lines(place.kept.manifest)) < 6 and place.kept.refined(5, "png").is_file()
    assert place.deliver() and len(checkpoint.read_json_lines(place.kept.manifest)) == 6


def test_the_settings_of_a_sheet_name_what_stays(on_drive):
    """Designs and requests are never deleted on Drive."""
    names = ["refined_output_003.png", "base_result_012.jpg", "request.json", "images.jsonl", "starred.json"]
    assert not any(workplace.PASSING.fullmatch(name) for name in [*names, "finishing.json", "index.html"])
    passing = ["latents/drawn-000001.safetensors", "sheet.zip", "refined_output_003_mask.png", "images-1-of-2.jsonl"]
    assert all(workplace.PASSING.fullmatch(name) for name in passing)
    assert sheet.ON_CONTACT_SHEET  # the page of which is among what passes


def test_only_what_a_sheet_writes_is_brought_and_a_foreign_file_is_in_nobodys_way(on_drive, expected, tmp_path):
    """L14: a Google Doc cannot be read, a link leads nowhere, and a person's own files may be large."""
    kept = quiet_run(on_drive()).folder
    assert {f"sheet/{path.relative_to(kept.root)}" for path in kept.files()} == expected.keys()
    (kept.root / "ideas.gdoc").symlink_to("nowhere")
    (kept.root / "my own").mkdir()
    (kept.root / "my own" / "refined_output_000.tif").write_bytes(b"large")
    kept.contact_sheet.unlink()
    said = []
    inference.run(on_drive("there"), say=said.append)
    assert any(f"{len(expected) - 1} files of sheet from Drive" in line for line in said), said
    assert kept.contact_sheet.is_file() and (kept.root / "ideas.gdoc").is_symlink()
    assert (kept.root / "my own" / "refined_output_000.tif").read_bytes() == b"large"


def test_a_drive_that_takes_no_lock_is_told_in_words_of_its_own(on_drive, drive):
    """L2: nothing was copied yet."""
    settings, said = on_drive(), []
    kept = quiet_run(settings).folder
    kept.zip.unlink()
    drive.fail(range(100_000), errno.EROFS, only_writes=True)
    inference.run(settings, say=said.append)
    told = [line for line in said if "nothing may be written there" in line]
    assert told[0].startswith("This sheet could not be marked on Drive as being drawn, so do not draw it on another")
    assert not any("Copying to Drive failed" in line for line in said)


@pytest.mark.parametrize("comes_back", [True, False], ids=["one call fails", "all calls from there on fail"])
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO], ids=errno.errorcode.get)
def test_a_drive_that_fails_at_any_call_while_a_sheet_is_begun_gives_a_sentence(
    number, stride, comes_back, on_drive, drive, tmp_path, monkeypatch
):
    """L14, L2: until the sheet's own folder on this machine takes over; all later calls are below."""
    monkeypatch.setattr(inference, "_made", lambda *_: True)
    monkeypatch.setattr(inference, "_ended", lambda *_: True)
    monkeypatch.setattr(inference, "_delivered", lambda *_: "begun")
    settings, failed, is_through, told = on_drive(), 1, False, 0
    while not is_through:
        for place in (tmp_path / "here", RunFolder.of(settings).sheets):
            shutil.rmtree(place, ignore_errors=True)
        drive.fail((failed,) if comes_back else range(failed, 100_000), number)
        try:
            assert quiet_run(settings) == "begun"
        except LaceError as error:
            assert "Drive" in str(error), f"call {failed}: {error!r}"
            told += 1
        is_through = drive.calls < failed
        drive.fail(())
        failed += stride
    assert told


def test_a_name_that_is_no_unicode_is_delivered_and_brought_like_any_other(drive, tmp_path):
    """L14: as old disks and archives leave them."""
    place = os.fsdecode(b"caf\xe9")
    for name in ("here", "there"):
        run = RunFolder(drive.root / "MyDrive" / place / "lace")
        run.root.mkdir(parents=True, exist_ok=True)
        at_work = Workplace.of(run, run.sheet("sheet"), drive.root, tmp_path / name, lambda _: None)
        if name == "here":
            draw(at_work, 0, 2)
            assert at_work.deliver()
            made = files_of(at_work.folder.root)
        else:
            at_work.bring()
    assert files_of(at_work.kept.root) == made == files_of(at_work.folder.root)
    again = Workplace.of(run, run.sheet("sheet"), drive.root, tmp_path / "there", lambda _: None)
    assert again.delivery.seen.keys() == made.keys(), "it is remembered"
