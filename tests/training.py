"""What the tests of training share: results of a run without its clock, stops, and the parts of one step."""

import os
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from safetensors.torch import load_file

from lace_lora import checkpoint, examples, parts, steps, train
from lace_lora.config import Config
from lace_lora.losses import Pictures
from lace_lora.run_folder import RunFolder

CLOCK = ("seconds", "started", "updated", "seconds_per_step", "eta_seconds", "figures")


def quietly(_: str) -> None:
    pass


def result_of(folder: RunFolder) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """LoRA, optimizer state and log without the clock of a finished run."""
    newest, _ = checkpoint.newest(folder.checkpoints)
    assert newest is not None
    rows = [
        {name: value for name, value in row.items() if name not in CLOCK}
        for row in checkpoint.read_json_lines(folder.log)
    ]
    return load_file(folder.adapter_weights), load_file(newest / parts.OPTIMIZER_FILE), rows


def assert_same(one: RunFolder, other: RunFolder) -> None:
    """Bit for bit."""
    for mine, theirs in zip(result_of(one)[:2], result_of(other)[:2], strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert result_of(one)[2] == result_of(other)[2]


def stop_after(number: int) -> Callable[[train.Step], None]:
    """What a person does who presses stop while that step is shown."""

    def show(step: train.Step) -> None:
        if step.number == number:
            os.kill(os.getpid(), signal.SIGINT)

    return show


def grow(made: parts.Parts) -> None:
    """Give B of every LoRA some weight: it begins at zero, and then no gradient reaches A."""
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, master in made.masters.items():
            if ".lora_B." in name:
                master.copy_(0.05 * torch.randn(master.shape, generator=chance))
    parts.publish(made)


def same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float) -> bool:
    """No number differs by more than `atol`, nor by a ten-thousandth of its tensor's largest; A and B alike."""
    sizes = {name: float(tensor.abs().max()) for name, tensor in one.items()}
    assert one.keys() == other.keys() and min(sizes.values()) > 0
    apart = {name: float((one[name] - other[name]).abs().max()) for name in one}
    return all(apart[name] <= min(atol, 1e-4 * sizes[name]) for name in one)


def parts_and_pictures(settings: Config, dtype: torch.dtype = torch.float32) -> tuple[parts.Parts, Pictures]:
    """What a training holds before its first step."""
    torch.manual_seed(99)
    if settings.gradient_checkpointing == "auto":  # a plan would have settled it
        settings = settings.model_copy(update={"gradient_checkpointing": "none"})
    made = parts.assemble(settings, dtype, "cpu", say=quietly)
    found = examples.read(settings, quietly)
    encoded = train.encode(found, settings, dtype, "cpu", quietly)
    return made, train._stream("pictures", encoded, settings, settings.dataset_repeats)


def one_update(settings: Config, count: int = 1) -> dict[str, torch.Tensor]:
    """What is learnt in the first updates."""
    made, encoded = parts_and_pictures(settings)
    for _ in islice(steps.steps(made, encoded, None, settings, 0), count):
        pass
    return parts.learnt(made)


def first_steps(settings: Config, count: int) -> Iterator[train.Step]:
    """The first updates, one by one."""
    made, encoded = parts_and_pictures(settings)
    return islice(steps.steps(made, encoded, None, settings, 0), count)
