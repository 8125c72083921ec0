"""Notebook 03 by the command, its kernel killed while it trains: the same command goes on (L12, L14, P17)."""

import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from lace_lora import checkpoint, config, main, train
from lace_lora.run_folder import RunFolder
from tests.generated import ROOT
from tests.killing import assert_trained_alike

STEPS, EVERY = 40, 5
IN_FILE = ("checkpoint_every", "cache_dir", "alpha", "gradient_accumulation_steps", "log_with")


@pytest.fixture
def given(settings):
    """Settings of a short training with a small SDXL: parameters of notebook 03, and what stands in config.yaml."""
    values = {name: getattr(settings, name) for name in settings.given}
    values |= {"max_train_steps": STEPS, "checkpoint_every": EVERY, "prior_loss_weight": 0.0, "run_name": "killed"}
    return {name: value for name, value in values.items() if name != "lora_output_dir"}


@pytest.fixture
def start(given, tmp_path):
    """Start `lace-lora notebooks` in a folder that holds notebook 03 and a config.yaml."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks/03_train.ipynb", tmp_path / "notebooks")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({name: given[name] for name in IN_FILE}), encoding="utf-8")

    def command(**changes):
        parameters = given | {"lora_output_dir": str(tmp_path / "runs")} | changes
        words = [["-p", name, str(value)] for name, value in parameters.items() if name not in IN_FILE]
        line = [sys.executable, "-m", "lace_lora.main", "notebooks", "--output", "out", *sum(words, [])]
        place = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            line, cwd=tmp_path, env=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return command


def kernel_of(process):
    """The kernel that a running command has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    (kernel,) = [child for child in children if any("ipykernel" in word for word in child.cmdline())]
    return kernel


def test_a_kernel_that_is_killed_while_it_trains_fails_the_command_and_the_next_one_goes_on(start, given, tmp_path):
    """L14, P17: exit code 1 with a sentence; then the numbers of a run that was never broken, bit for bit."""
    broken = RunFolder.of(config.load(**given | {"lora_output_dir": str(tmp_path / "runs")}))
    process = start()
    while checkpoint.newest(broken.checkpoints)[0] is None:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    kernel_of(process).kill()
    _, wrong = process.communicate(timeout=120)
    assert (
        process.returncode == 1 and "03_train.ipynb: its kernel died" in wrong and "goes on where it stopped" in wrong
    )
    stopped = int(checkpoint.newest(broken.checkpoints)[0].name.removeprefix("step-"))
    assert 0 < stopped < STEPS and not broken.adapter_weights.is_file()

    said, wrong = (again := start()).communicate(timeout=300)
    assert again.returncode == 0, wrong
    assert f"after step {stopped}" in (tmp_path / "out/03_train.ipynb").read_text(encoding="utf-8")
    whole = config.load(**given | {"lora_output_dir": str(tmp_path / "whole")})
    train.run(whole, say=lambda _: None)
    assert_trained_alike(RunFolder.of(whole), broken)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("rnak", "3", "no setting called 'rnak'; did you mean rank?"),
        ("rank", "500", "rank is 500 but must be 1 to 128."),
    ],
)
def test_a_wrong_parameter_is_a_sentence_and_exit_code_1_before_anything_runs(
    tmp_path, monkeypatch, capsys, name, value, sentence
):
    """P17."""
    monkeypatch.chdir(tmp_path)
    assert main.run(["notebooks", "--output", "out", "-p", name, value]) == 1
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_photographs_that_is_missing_ends_the_notebook_with_its_sentence(start, tmp_path):
    """P17: before a run is begun; the notebook that failed is kept."""
    process = start(images_dir=str(tmp_path / "nowhere"))
    _, wrong = process.communicate(timeout=120)
    assert process.returncode == 1
    assert wrong.startswith(f"03_train.ipynb, cell “Plan”: There is no folder {tmp_path / 'nowhere'}.")
    assert (tmp_path / "out/03_train.ipynb").is_file() and not list((tmp_path / "runs").glob("*"))
