"""What this computer is, with reasons (L2)."""

import dataclasses
import inspect
import sys
import types

import pytest

from lace_lora import machine
from lace_lora.errors import MachineError
from lace_lora.machine import Machine

T4 = Machine(True, True, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)
L4 = dataclasses.replace(T4, gpu_name="NVIDIA L4", vram_gb=22.0, capability=(8, 9))
LAPTOP = dataclasses.replace(T4, gpu_name=None, vram_gb=0.0, capability=(0, 0), is_colab=False)


# The signature in google.colab's own source of 2026-04-07.
def colab_mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False): ...


@pytest.fixture
def colab(monkeypatch):
    """A google.colab whose drive.mount checks its arguments against the real signature and makes MyDrive appear."""
    calls = []

    def mount(*args, **kwargs):
        bound = inspect.signature(colab_mount).bind(*args, **kwargs)
        calls.append(bound.arguments)
        (root := bound.arguments["mountpoint"]) and (__import__("pathlib").Path(root) / "MyDrive").mkdir(parents=True)

    google, package, drive = (types.ModuleType(name) for name in ("google", "google.colab", "google.colab.drive"))
    drive.mount, package.drive, google.colab = mount, drive, package
    for module in (google, package, drive):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return types.SimpleNamespace(calls=calls, drive=drive)


def test_outside_colab_nothing_is_mounted_and_the_local_folder_comes_back(tmp_path, monkeypatch):
    """L2."""
    monkeypatch.chdir(tmp_path)
    folder, sentence = machine.mount_drive("/content/drive")
    assert folder == tmp_path and "not Colab" in sentence


def test_in_colab_drive_is_mounted_once_with_arguments_that_bind_to_the_real_signature(colab, tmp_path):
    """L2."""
    root = tmp_path / "drive"
    for _ in range(2):
        folder, sentence = machine.mount_drive(str(root))
    assert folder == root and "is mounted" in sentence
    assert len(colab.calls) == 1 and colab.calls[0]["mountpoint"] == str(root)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("Mountpoint must not already contain files"), "must not already contain files"),
        (RuntimeError("credential propagation was unsuccessful"), "allow access in the window"),
        (NotImplementedError(), "cannot mount Drive. Upload the pictures"),
    ],
)
def test_every_refusal_of_colab_has_its_sentence(colab, tmp_path, error, sentence):
    def refuse(*args, **kwargs):
        raise error

    colab.drive.mount = refuse
    with pytest.raises(MachineError) as caught:
        machine.mount_drive(str(tmp_path / "drive"))
    assert sentence in str(caught.value)


def test_a_mount_that_returns_but_does_not_answer_is_said(colab, tmp_path):
    colab.drive.mount = lambda *args, **kwargs: None
    with pytest.raises(MachineError, match="does not answer"):
        machine.mount_drive(str(tmp_path / "drive"))


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
    assert machine.models_folder() == tmp_path / ".cache/huggingface" and measured == [tmp_path]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "models"))
    assert machine.models_folder() == tmp_path / "models"
    rows = {name: row for name, *row in dataclasses.replace(T4, free_disk_gb=9.0, drive_mounted=False).reasons()}
    assert rows["disk"] == ["9 GB free", False, "Free some space: SDXL and its refiner take 13 GB."]
    assert rows["Drive"] == [
        "not mounted",
        False,
        "Run the cells again from the top, and allow access in the window that opens.",
    ]
