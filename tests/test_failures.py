"""Whatever goes wrong at the door has one sentence, exit code 1, and leaves finished work as it was (P28, L9, L19)."""

import errno
import hashlib
import os

import pytest
import yaml

from lace_lora import main
from tests.conftest import draw_lace


def contents(folder):
    """Every file below a folder with its sha256."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_sdxl, tiny_refiner):
    """A small run with an adapter and a sheet, and the config.yaml that made it."""
    folder = tmp_path_factory.mktemp("finished")
    settings = {
        "preset": "none",
        "images_dir": str(draw_lace(folder / "pictures")),
        "lora_output_dir": str(folder / "runs"),
        "cache_dir": str(folder / "cache"),
        "pretrained_model": str(tiny_sdxl),
        "refiner_model": str(tiny_refiner),
        "resolution": 64,
        "max_train_steps": 2,
        "rank": 2,
        "num_images": 1,
        "num_inference_steps": 4,
        "refiner_start": 0.5,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main.run(["train", "--config", str(folder / "config.yaml")]) == 0
    assert main.run(["generate", "--config", str(folder / "config.yaml")]) == 0
    return folder


@pytest.fixture
def refused(finished, capsys):
    """Run a command line on the finished run; return what it said after checking that it failed and broke nothing."""
    before = contents(finished / "runs")

    def run(command, *words):
        code = main.run([command, "--config", str(finished / "config.yaml"), *words])
        said = capsys.readouterr().err.strip()
        after = {name: digest for name, digest in contents(finished / "runs").items() if name in before}
        assert code == 1 and said and "Traceback" not in said
        assert after == before, "a finished file was changed"
        return said

    return run


def test_an_unknown_setting_names_the_nearest(refused):
    assert "--rnak" in (said := refused("train", "--rnak", "4")) and "--rank" in said


def test_an_unreadable_config_says_where(refused, tmp_path):
    (tmp_path / "broken.yaml").write_text("rank: [4\nalpha: 2")
    assert "broken.yaml at line" in refused("train", "--config", str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize("command", ["check", "annotate", "plan", "train"])
def test_a_missing_folder_of_pictures_is_named(refused, tmp_path, command):
    assert "nowhere" in refused(command, "--images-dir", str(tmp_path / "nowhere"), "--run-name", "other")


@pytest.mark.parametrize("command", ["check", "train"])
def test_an_empty_folder_of_pictures_is_said(refused, tmp_path, command):
    (tmp_path / "empty").mkdir()
    said = refused(command, "--images-dir", str(tmp_path / "empty"), "--run-name", "other")
    assert said.startswith("No .jpeg or .jpg in") and "(the folder is empty)" in said


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_folder_of_heic_only_says_how_to_go_on(refused, tmp_path, command):
    for number in range(3):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    said = refused(command, "--images-dir", str(tmp_path), "--run-name", "other")
    assert "3 .HEIC" in said and "JPEG" in said


def test_a_model_that_is_not_there_is_said_with_the_command_to_type(refused, tmp_path):
    """No network is asked when HF_HUB_OFFLINE=1 (conftest sets it)."""
    said = refused("train", "--pretrained-model", "someone/some-sdxl", "--run-name", "other")
    assert "hf download someone/some-sdxl" in said
    said = refused("train", "--pretrained-model", str(tmp_path / "gone"), "--run-name", "other")
    assert "No model folder" in said


def test_annotations_that_name_gone_files_are_said(refused, tmp_path):
    folder = draw_lace(tmp_path / "pictures")
    lines = [f"{path.name}\ta photo of <myspecialstyle>" for path in sorted(folder.glob("*.jpg"))]
    (folder / "annotations.txt").write_text("\n".join([*lines, "gone.jpg\ta photo of <myspecialstyle>"]) + "\n")
    assert "gone.jpg" in refused("train", "--images-dir", str(folder), "--run-name", "other")


@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_full_disk_is_said_and_what_was_finished_stays(refused, monkeypatch, command):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = ["--run-name", "other"] if command == "train" else ["--sheet-name", "other"]
    assert "The disk is full" in refused(command, *words)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_an_output_folder_without_permission_is_said(refused, monkeypatch, number):
    def forbidden(self, *args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.mkdir", forbidden)
    said = refused("train", "--run-name", "other")
    assert "lora_output_dir" in said


def test_generating_before_training_says_to_train_first(refused):
    assert "lace-lora train" in refused("generate", "--run-name", "never-trained")


def test_training_again_with_other_settings_names_what_differs(refused):
    assert "rank 2 → 4" in refused("train", "--rank", "4")


def test_a_bad_value_names_its_bounds(refused):
    assert "use 1000 or 1008" in refused("train", "--resolution", "1004")


def test_debug_shows_the_traceback_and_still_fails(finished, capsys):
    code = main.run(["train", "--config", str(finished / "config.yaml"), "--images-dir", "nowhere", "--debug"])
    assert code == 1 and "Traceback" in capsys.readouterr().err
