"""The line that trains with several processes, and running it: one process for each GPU, by Accelerate or torchrun."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from lace_lora import config as settings_of
from lace_lora import contents, stopping
from lace_lora.config import Config
from lace_lora.errors import MachineError, RunError
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder

MARK = "LACE_LORA_LAUNCHED"  # tells a process that it was started by `run`, and must not start others
_SKIPPED = ("num_processes",)  # the line says it already

FAILED = "failed    "  # begins the line in which a launched process says why it ends

Say = Callable[[str], None]


def command(config: Config, machine: Machine | None = None) -> list[str]:
    """The words of the line that trains with these settings, on as many processes as num_processes says.

    With one process it is Accelerate's line, too, though `lace_lora.train.run` needs none. Accelerate's own --cpu
    starts a single process whatever it is told, so several on a CPU are started by torchrun.
    """
    machine = machine or Machine.here(config.drive_mount_path, config.lora_output_dir)
    count = max(1, machine.gpu_count) if config.num_processes == "auto" else int(config.num_processes)
    if count > 1 and machine.gpu_name is None:
        words = ["torchrun", "--standalone", "--nproc_per_node", str(count)]
    else:
        words = ["accelerate", "launch", "--num_processes", str(count), "--num_machines", "1"]
        words += ["--multi_gpu"] if count > 1 else []
        # The base's weights are held in the wished format by our own loader, so Accelerate converts nothing.
        words += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*words, "-m", "lace_lora.main", "train", *_given(config), "--num_processes", str(count)]


def is_needed(config: Config, launched: int) -> bool:
    """Whether several processes are wanted and this is a plain one. Raises MachineError where they were not started."""
    wanted = int(config.num_processes)
    if wanted == launched:
        return False
    if launched > 1 or os.environ.get(MARK):
        raise MachineError(
            f"num_processes is {wanted}, but {launched} {'was' if launched == 1 else 'were'} started. Start it with "
            f"torchrun --nproc_per_node {wanted} (or accelerate launch --multi_gpu --num_processes {wanted}), "
            "or set num_processes."
        )
    return True


def tells() -> bool:
    """Whether this process speaks for the training: not one that `run` started, nor a later one of several."""
    return not os.environ.get(MARK) and os.environ.get("RANK", "0") == "0"


def is_worker() -> bool:
    """Whether `run` started this process: a stop that was asked for is then no failure of it."""
    return bool(os.environ.get(MARK))


def run(config: Config, say: Say) -> None:
    """Train by the line that `command` gives, telling what it tells; raises RunError where it failed.

    A first interrupt or SIGTERM is handed on to the processes that train, which finish their step and save.
    """
    words = command(config)
    say(f"launching {' '.join(words[: words.index('-m')])} …")
    # By this Python, whatever stands first on the path, and without waiting for a buffer to fill.
    module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}[words[0]]
    line = [sys.executable, "-u", "-m", module, *words[2 if words[0] == "accelerate" else 1 :]]
    here = str(Path(__file__).parent.parent)
    more = {MARK: "1", "PYTHONUNBUFFERED": "1", "ACCELERATE_USE_CPU": "true"} if words[0] == "torchrun" else {MARK: "1"}
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | more | {"PYTHONPATH": paths}
    told: list[str] = []
    # A session of its own: Ctrl-C in a terminal would reach the launcher too, which then ends all others by force.
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    ) as launcher:
        assert launcher.stdout is not None
        with stopping.on_request(say, "Stopping: the processes finish their step and save.", lambda: _stop(launcher)):
            try:
                for text in launcher.stdout:
                    told.append(text.rstrip())
                    say(told[-1])
            except BaseException:  # a second request; nobody is left to tell, and no process may stay behind
                os.killpg(launcher.pid, signal.SIGKILL)
                raise
    if launcher.returncode != 0:
        raise RunError(_failure(RunFolder.of(config), launcher.returncode, told))


def _stop(launcher: "subprocess.Popen[str]") -> None:
    """SIGTERM to the processes that train, not to their launcher, which would leave them 30 seconds."""
    with suppress(psutil.Error):
        for process in psutil.Process(launcher.pid).children(recursive=True):
            with suppress(psutil.Error):
                if any(word.endswith("lace_lora.main") for word in process.cmdline()):
                    process.terminate()


def _failure(folder: RunFolder, code: int, told: Sequence[str]) -> str:
    """The error in run.json where there is one, else what the process said that failed by itself."""
    facts = contents.facts(folder)
    # One that fails takes the others with it, which then tell of a lost connection.
    said = [line.removeprefix(FAILED).strip() for line in told if line.startswith(FAILED)]
    said = [*(line for line in said if "unforeseen" not in line), *said, "it said nothing"]
    sentence = str(facts["error"]) if facts.get("state") == "failed" and facts.get("error") else said[0]
    return f"The launched training failed: {sentence[:600]} (exit code {code}; what was saved before stays.)"


def _given(config: Config) -> list[str]:
    """All settings of a training as words of a command line.

    Those at their default too: a config.yaml or a preset that the processes find would else take their place.
    """
    draws_only = dict(sum(map(settings_of.fields_of, ("pictures out", "finishing", "evidence")), []))
    words = []
    for name in Config.model_fields:
        value = getattr(config, name)
        if name in _SKIPPED or value == ():
            continue
        if name in draws_only and not _decides_training(name, config):
            continue
        texts = value if isinstance(value, tuple) else [value]
        for text in texts:
            words += [f"--{name}", "" if text is None else str(text).lower() if isinstance(text, bool) else str(text)]
    return words


def _decides_training(name: str, config: Config) -> bool:
    """Some settings of new designs are also those of class pictures and samples."""
    draws = bool(config.prior_loss_weight or config.sample_every)
    return draws and name in ("prompts", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler")
