"""Optimizers: each by name from its package, each resumed bit for bit (P14, C10)."""

import importlib.util
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lace_lora import optimizers
from lace_lora.errors import MachineError

NAMES = ("adamw", "adamw8bit", "paged_adamw8bit", "prodigy", "adafactor", "schedulefree")


def usable(name: str) -> None:
    if optimizers.missing(name):
        pytest.skip(str(optimizers.missing(name)))


def fresh(name: str) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    """A matrix large enough for 8-bit states (4096 numbers), a small one, and a row with a rate of its own."""
    chance = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=chance)) for shape in ((80, 64), (4, 8), (1, 16))]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr_ratio": 5.0, "weight_decay": 0.0}]
    return parameters, optimizers.make(name, groups, 1.0 if name == "prodigy" else 1e-2)


def walk(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizers.set_rate(optimizer, 1e-2 / (1 + step) if "d0" not in optimizer.param_groups[0] else 1.0)
        for place, parameter in enumerate(parameters):
            chance = torch.Generator().manual_seed(100 * step + place)
            parameter.grad = parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=chance)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", NAMES)
def test_five_and_five_steps_equal_ten_bit_for_bit(name: str, tmp_path: Any) -> None:
    """Through files, into fresh objects; a look at the averaged weights in between changes nothing either."""
    usable(name)
    whole, optimizer = fresh(name)
    walk(whole, optimizer, range(10))
    broken, first = fresh(name)
    walk(broken, first, range(5))
    with optimizers.averaged(first):
        pass
    tensors, rest = optimizers.state_of(first)
    save_file(tensors, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(rest, allow_nan=False))
    save_file({str(place): one.detach() for place, one in enumerate(broken)}, tmp_path / "weights.safetensors")

    resumed, second = fresh(name)
    weights = load_file(tmp_path / "weights.safetensors")
    with torch.no_grad():
        for place, one in enumerate(resumed):
            one.copy_(weights[str(place)])
    optimizers.restore(
        second, load_file(tmp_path / "state.safetensors"), json.loads((tmp_path / "state.json").read_text())
    )
    walk(resumed, second, range(5, 10))
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    mine, theirs = optimizers.state_of(optimizer), optimizers.state_of(second)
    assert mine[0].keys() == theirs[0].keys() and mine[1] == theirs[1]
    for key, one in mine[0].items():
        assert torch.equal(one, theirs[0][key]) and one.dtype == theirs[0][key].dtype, key


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(name: str) -> None:
    usable(name)
    parameters, optimizer = fresh(name)
    before = sum(float(one.detach().square().sum()) for one in parameters)
    walk(parameters, optimizer, range(40))
    with optimizers.averaged(optimizer):
        assert sum(float(one.detach().square().sum()) for one in parameters) < before


def test_names_give_the_packages_own_optimizers() -> None:
    """P14."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    assert type(fresh("adamw8bit")[1]) is bitsandbytes.optim.AdamW8bit
    assert type(fresh("paged_adamw8bit")[1]) is bitsandbytes.optim.PagedAdamW8bit
    _, made = fresh("adamw")
    assert type(made) is torch.optim.AdamW and made.defaults["fused"]
    states = optimizers.state_of(walked("adamw8bit"))[0]
    assert states["0.state1"].dtype == torch.uint8 and states["1.state1"].dtype == torch.float32


def walked(name: str) -> torch.optim.Optimizer:
    parameters, optimizer = fresh(name)
    walk(parameters, optimizer, range(2))
    return optimizer


def test_adamw_is_torchs_own_by_the_numbers() -> None:
    """C10: the same as the unfused reference, with a group of another rate and no decay."""
    parameters, optimizer = fresh("adamw")
    reference = [torch.nn.Parameter(one.detach().clone()) for one in parameters]
    plain = torch.optim.AdamW(
        [{"params": reference[:2]}, {"params": reference[2:], "weight_decay": 0.0}],
        lr=1e-2, betas=optimizers.BETAS, weight_decay=optimizers.WEIGHT_DECAY, foreach=False,
    )  # fmt: skip
    walk(parameters, optimizer, range(5))
    for step in range(5):
        plain.param_groups[0]["lr"], plain.param_groups[1]["lr"] = 1e-2 / (1 + step), 5e-2 / (1 + step)
        for place, one in enumerate(reference):
            one.grad = one.detach() + 0.1 * torch.randn(
                one.shape, generator=torch.Generator().manual_seed(100 * step + place)
            )
        plain.step()
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(parameters, reference, strict=True))


def test_averaged_weights_are_the_packages_and_nothing_moves() -> None:
    usable("schedulefree")
    parameters, optimizer = fresh("schedulefree")
    walk(parameters, optimizer, range(5))
    before = [one.detach().clone() for one in parameters]
    with optimizers.averaged(optimizer):
        inside = [one.detach().clone() for one in parameters]
        # x = (y - (1 - β1) z) / β1, the average of all z so far.
        z = optimizer.state[parameters[0]]["z"]
        by_hand = (before[0] - (1 - optimizers.BETAS[0]) * z) / optimizers.BETAS[0]
        assert torch.allclose(inside[0], by_hand, atol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))
    assert not torch.equal(inside[0], before[0])
    walk(parameters, optimizer, range(5, 6))  # and it can go on


def test_a_missing_package_is_said_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """P14, L20."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert optimizers.missing("adamw") is None and optimizers.missing("adafactor") is None
    for name, package in (("prodigy", "prodigyopt"), ("schedulefree", "schedulefree"), ("adamw8bit", "bitsandbytes")):
        with pytest.raises(
            MachineError, match=f"The optimizer {name} needs the package {package}: pip install {package}"
        ):
            optimizers.make(name, [{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1e-4)
