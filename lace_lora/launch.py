"""The line that trains with several processes, and running it: one process for each GPU, by Accelerate or torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lace_lora import config as settings_of
from lace_lora.config import Config
from lace_lora.errors import MachineError, RunError
from lace_lora.machine import Machine

MARK = "LACE_LORA_LAUNCHED"  # tells a process that it was started by `run`, and must not start others
# What a launched process needs no word of: it is for generating, or this line says it already.
_SKIPPED = ("num_processes", "preset")

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


def run(config: Config, say: Say) -> None:
    """Train by the line that `command` gives, telling what it tells; raises RunError where it failed.

    An interrupt reaches all processes of a terminal by itself; a notebook's stop is handed on.
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
    last = ""
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as worker:
        assert worker.stdout is not None
        try:
            for told in worker.stdout:
                last = told.strip() or last
                say(told.rstrip())
        except KeyboardInterrupt:
            worker.terminate()  # the processes finish their step and save
            for told in worker.stdout:
                say(told.rstrip())
    if worker.returncode != 0:
        raise RunError(f"The launched training ended with exit code {worker.returncode} (last line: {last[:200]}).")


def _given(config: Config) -> list[str]:
    """The settings that differ from their defaults, as words of a command line."""
    words = []
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if value == field.default or value is None or name in _SKIPPED:
            continue
        if name in dict(settings_of.fields_of("pictures out")) and not _decides_training(name, config):
            continue
        texts = value if isinstance(value, tuple) else [value]
        for text in texts:
            words += [f"--{name}", str(text).lower() if isinstance(text, bool) else str(text)]
    return words


def _decides_training(name: str, config: Config) -> bool:
    """Some settings of new designs are also those of class pictures and samples."""
    draws = bool(config.prior_loss_weight or config.sample_every)
    return draws and name in ("prompts", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler")
