"""What a person reads of a plan before starting (C14, C15)."""

import pytest

from lace_lora import config, costs, estimate, presets, replanning
from lace_lora.machine import Machine


def rows(gpu, vram_gb):
    """The summary of a plan for 250 pictures on a machine."""
    machine = Machine(True, True, gpu, vram_gb, (8, 0) if gpu else (0, 0), 80.0, 70.0, 200.0, 8)
    settled = presets.settle(config.load(preset="lace-t4" if gpu else "demo"), machine)
    return dict(replanning.plan_summary(estimate.plan(settled, machine, 250)))


def test_it_says_whether_it_fits_how_long_it_takes_and_what_it_costs():
    """C14, C15: on a free T4 and on an A100, with the day of the prices."""
    free, paid = rows("Tesla T4", 14.7), rows("NVIDIA A100-SXM4-40GB", 39.4)
    assert free["GPU memory"].startswith("fits: needs ") and paid["GPU memory"].startswith("fits: needs ")
    assert free["cost"].startswith("free on Colab") and free["cost"].endswith(f"({costs.as_of()})")
    assert "$" in paid["cost"] and "free" not in paid["cost"]
    assert free["steps"] == "625 of 4 pictures" and "estimated" in free["time"]


@pytest.mark.parametrize("gpu", ["Some GPU that nobody measured"])
def test_of_a_machine_that_has_no_price_none_is_told(gpu):
    """C15: no number that nobody gave."""
    assert "cost" not in rows(gpu, 24.0)
