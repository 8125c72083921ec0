"""What this computer is, with reasons (L2)."""

import dataclasses
import os

from lace_lora import machine
from lace_lora.machine import Machine
from tests.drives import failing

T4 = Machine(True, True, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)
L4 = dataclasses.replace(T4, gpu_name="NVIDIA L4", vram_gb=22.0, capability=(8, 9))
LAPTOP = dataclasses.replace(T4, gpu_name=None, vram_gb=0.0, capability=(0, 0), is_colab=False)


def test_bf16_is_chosen_by_capability_and_a_t4_gets_fp16():
    assert L4.precision()[0] == "bf16"
    assert T4.precision()[0] == "fp16" and "7.5 < 8.0" in T4.precision()[1]
    assert T4.precision("bf16")[0] == "fp16"
    assert LAPTOP.precision() == ("fp32", "fp32, because there is no GPU")
    assert LAPTOP.precision("fp16")[0] == "fp32"
    assert T4.precision("no")[0] == "fp32"


def test_this_computer_is_described_with_reasons_and_what_to_do():
    here = Machine.here(disk="not/there/yet")
    assert here.ram_gb > here.free_ram_gb > 0 and here.free_disk_gb > 0 and here.cpu_cores >= 1
    rows = {name: (good, advice) for name, _, good, advice in LAPTOP.reasons()}
    assert rows["GPU"][0] is False and "Change runtime type" in rows["GPU"][1]
    assert "Drive" not in rows and rows["memory"][0]
    assert all(advice == "" for _, _, good, advice in T4.reasons() if good)


def test_the_disk_is_that_where_models_are_kept_and_drive_needs_only_to_be_mounted(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    measured = []
    usage = machine.shutil.disk_usage
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: measured.append(path) or usage(path))
    Machine.here()
    assert machine.models_folder() == tmp_path / ".cache/huggingface" and measured[-1] == tmp_path
    monkeypatch.setenv("HF_HOME", str(tmp_path / "models"))
    assert machine.models_folder() == tmp_path / "models"
    free = machine.FREE_SOME_SPACE.format(gb=18)
    rows = {name: row for name, *row in dataclasses.replace(T4, free_disk_gb=9.0, drive_mounted=False).reasons()}
    assert rows["disk"] == ["9 GB free", False, free]
    assert rows["Drive"] == [
        "not mounted",
        False,
        "Run the cells again from the top, and allow access in the window that opens.",
    ]


def test_the_disk_has_to_hold_what_is_still_to_be_fetched_and_a_little_more():
    """L2: on a machine that has the models already, little is enough."""
    nearly_full = dataclasses.replace(T4, free_disk_gb=9.0)
    rows = {name: (good, advice) for name, _, good, advice in nearly_full.reasons(to_fetch_gb=0)}
    assert rows["disk"] == (True, "")
    good, advice = {name: row for name, _, *row in nearly_full.reasons(to_fetch_gb=14)}["disk"]
    assert not good and advice.startswith("Free some space: about 19 GB are needed. In Colab:")


def test_a_gpu_with_little_memory_is_told_from_none():
    """L2."""
    small = {name: row for name, *row in dataclasses.replace(T4, vram_gb=4.0).reasons()}
    assert small["GPU"][1] and small["GPU memory"][:2] == ["4.0 GB", False] and "T4 GPU" in small["GPU memory"][2]
    assert "GPU memory" not in {row[0] for row in LAPTOP.reasons()}


def test_a_folder_that_does_not_answer_is_passed_over_when_the_disk_is_measured(tmp_path, monkeypatch):
    """L2: of a Drive that was dropped every question fails, also whether it is there."""
    drive, usage = failing(tmp_path / "drive", monkeypatch), machine.shutil.disk_usage

    def ask(path):
        drive.touch("statvfs", path, ())
        return usage(path)

    monkeypatch.setattr(machine.shutil, "disk_usage", ask)
    drive.fail(range(100_000))
    assert Machine.here(disk=tmp_path / "drive/MyDrive/out").free_disk_gb > 0


def test_drive_is_mounted_has_one_meaning_in_colab_and_one_elsewhere(tmp_path, monkeypatch):
    """C12: in Colab files in the place of Drive are none; elsewhere Drive's own program may fill a plain folder."""
    mounts, place = set(), tmp_path / "drive"
    monkeypatch.setattr(os.path, "ismount", lambda path: path in mounts)
    assert not machine.drive_is_mounted(place)
    (place / "MyDrive").mkdir(parents=True)
    assert machine.drive_is_mounted(place)
    monkeypatch.setattr(machine, "in_colab", lambda: True)
    assert not machine.drive_is_mounted(place)
    mounts.add(place)
    assert machine.drive_is_mounted(str(place))
