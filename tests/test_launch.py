"""The launch line, and several processes that train together (L13, P17, C19)."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lace_lora import checkpoint, config, config_text, launch, main, train
from lace_lora.config import Config
from lace_lora.errors import MachineError, RunError
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder
from tests.conftest import draw_threads, losses_of
from tests.training import quietly

LAPTOP = Machine(False, False, None, 0.0, (0, 0), 16.0, 8.0, 100.0, 4, 0)
TWO_GPUS = dataclasses.replace(LAPTOP, gpu_name="NVIDIA L4", vram_gb=22.5, capability=(8, 9), gpu_count=2)


def test_the_launch_line_carries_the_settings(settings: Config) -> None:
    """L13."""
    words = launch.command(
        settings.model_copy(update={"random_flip": False, "num_images": 3, "image_types": (".jpg", ".png")}), LAPTOP
    )
    assert words[:4] == ["accelerate", "launch", "--num_processes", "1"]
    assert words[words.index("-m") :][:3] == ["-m", "lace_lora.main", "train"]
    given = dict(zip(words[words.index("train") + 1 :: 2], words[words.index("train") + 2 :: 2], strict=True))
    assert (given["--rank"], given["--random_flip"], given["--resolution"]) == ("4", "false", "64")
    assert words.count("--image_types") == 2 and "--num_images" not in given


def test_launched_processes_train_with_the_settings_of_the_plan(settings: Config, tmp_path: Path, monkeypatch) -> None:
    """L13, C19: whatever config.yaml or preset they would find, and with values that are the defaults."""
    (tmp_path / "config.yaml").write_text("rank: 64\nlearning_rate: 0.5\nvae_model: elsewhere\nmin_snr_gamma: 0\n")
    monkeypatch.chdir(tmp_path)
    planned = settings.model_copy(update={"rank": 16, "learning_rate": 1e-4, "num_processes": 2})
    words = launch.command(planned, LAPTOP)
    read: list[Config] = []

    def take(found: Config, **_: object) -> None:
        read.append(found)
        raise RunError("read")

    monkeypatch.setattr(train, "run", take)
    main.run(words[words.index("train") :])
    names = set(Config.model_fields) - {name for name, _ in config.fields_of("pictures out")}
    assert {name: getattr(read[0], name) for name in names} == {name: getattr(planned, name) for name in names}


def test_the_line_is_the_machines_own(settings: Config) -> None:
    """C19: one process for each GPU; on a CPU torchrun, because Accelerate's --cpu starts one whatever it is told."""
    on_gpus = launch.command(settings, TWO_GPUS)
    assert on_gpus[:4] == ["accelerate", "launch", "--num_processes", "2"] and "--multi_gpu" in on_gpus
    assert on_gpus[-2:] == ["--num_processes", "2"]
    on_cpu = launch.command(settings.model_copy(update={"num_processes": 3}), LAPTOP)
    assert on_cpu[:4] == ["torchrun", "--standalone", "--nproc_per_node", "3"]


def test_more_or_fewer_processes_than_asked_for_are_refused(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings.model_copy(update={"num_processes": 2})
    assert launch.is_needed(asked, 1) and not launch.is_needed(asked, 2)
    with pytest.raises(MachineError, match="num_processes is 2, but 4 were started. Start it with torchrun --nproc"):
        launch.is_needed(asked, 4)
    monkeypatch.setenv(launch.MARK, "1")  # the launcher silently started a single one
    with pytest.raises(MachineError, match="num_processes is 2, but 1 was started"):
        launch.is_needed(asked, 1)


def test_of_several_processes_one_tells_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """C19: the launching one where there is one, else rank 0."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv(launch.MARK, raising=False)
    assert launch.tells()
    for rank, is_told in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert launch.tells() is is_told
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(launch.MARK, "1")
    assert not launch.tells()


def test_two_processes_equal_one_with_the_same_settings(settings: Config, tmp_path: Path) -> None:
    """P17, C19: started by `run` itself, on gloo; both end with the weights of one process, within rounding."""
    update = {
        "images_dir": str(draw_threads(tmp_path / "twelve", 12)),
        "gradient_accumulation_steps": 4,
        "train_batch_size": 1,
        "max_train_steps": 5,
        "validation_fraction": 0.2,
        "validate_every": 2,
        "caption_dropout": 0.3,
    }
    one = settings.model_copy(update=update | {"run_name": "one"})
    two = settings.model_copy(update=update | {"run_name": "two", "num_processes": 2})
    alone = train.run(one, say=quietly)
    said: list[str] = []
    together = train.run(two, say=said.append)
    assert together.is_complete and together.state.keys() == alone.state.keys()
    for name, tensor in alone.state.items():
        assert torch.allclose(tensor, together.state[name], atol=1e-5), name
    assert losses_of(RunFolder.of(two).log) == pytest.approx(losses_of(RunFolder.of(one).log), abs=1e-5)
    looks = [
        [row["val_loss"] for row in checkpoint.read_json_lines(RunFolder.of(run).log) if "val_loss" in row]
        for run in (one, two)
    ]
    assert looks[0] == pytest.approx(looks[1], abs=1e-5) and len(looks[0]) == 4
    assert any(line.startswith("step 5/5") for line in said), said
    assert sum(line.startswith("machine") for line in said) == 1, "one process speaks for all"


@pytest.mark.slow
def test_a_launched_run_that_is_stopped_goes_on_in_one_process(settings: Config, tmp_path: Path) -> None:
    """SIGTERM reaches every process; all stop after the same step, and the run goes on with another number of them."""
    update = {"gradient_accumulation_steps": 2, "max_train_steps": 200, "run_name": "broken", "checkpoint_every": 1000}
    asked = settings.model_copy(update=update)
    file = tmp_path / "config.yaml"
    file.write_text(config_text.to_yaml(asked.model_copy(update={"num_processes": 2})))
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line += ["-m", "lace_lora.main", "train", "--config", str(file)]
    worker = subprocess.Popen(line, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
    folder = RunFolder.of(asked)
    try:
        while worker.poll() is None and len(checkpoint.read_json_lines(folder.log)) < 10:
            pass
        worker.terminate()
        worker.wait(120)
    finally:
        worker.kill()
    record = json.loads(folder.record.read_text())
    assert record["state"] == "stopped" and 10 <= record["step"] < 200
    assert checkpoint.newest(folder.checkpoints)[0] == folder.checkpoint(record["step"])
    short = asked.model_copy(update={"max_train_steps": record["step"] + 3})
    assert train.run(short, say=quietly).facts.step == record["step"] + 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_handed_on_to_the_processes_that_were_launched(
    settings: Config, tmp_path: Path, number: signal.Signals
) -> None:
    """C19, L14: one signal to the process that launched them; they save, and it returns the adapter as far as it is."""
    update = {"gradient_accumulation_steps": 2, "max_train_steps": 2000, "checkpoint_every": 1000, "num_processes": 2}
    asked = settings.model_copy(update=update)
    file = tmp_path / "config.yaml"
    file.write_text(config_text.to_yaml(asked))
    code = (
        "from lace_lora import config, train; import sys; "
        "made = train.run(config.load(sys.argv[1])); print('made', made.facts.step, made.is_complete)"
    )
    line = [sys.executable, "-c", code, str(file)]
    worker = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = RunFolder.of(asked)
    try:
        while worker.poll() is None and len(checkpoint.read_json_lines(folder.log)) < 10:
            time.sleep(0.05)
        worker.send_signal(number)
        told, _ = worker.communicate(timeout=120)
    finally:
        worker.kill()
    record = json.loads(folder.record.read_text())
    assert worker.returncode == 0, told
    assert record["state"] == "stopped" and checkpoint.newest(folder.checkpoints)[0] == folder.checkpoint(
        record["step"]
    )
    assert f"made {record['step']} False" in told and "Traceback" not in told


def test_a_launched_training_that_fails_says_so(settings: Config, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = settings.model_copy(update={"num_processes": 2, "run_name": "broken"})
    with pytest.raises(RunError, match=r"The launched training failed: No .*empty.*\(exit code 1"):
        launch.run(broken.model_copy(update={"images_dir": str(tmp_path / "empty")}), quietly)
