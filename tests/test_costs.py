"""Machines by name and what they cost: data with a date, worked out as anyone would by hand (C15, C14)."""

import datetime
import re

import pytest

from lace_lora import batches, costs, throughput
from lace_lora.errors import SettingsError
from lace_lora.machine import Machine
from tests.test_presets import A100, LAPTOP, T4


def test_costs_are_steps_times_seconds_times_the_rate():
    """C15: 600 steps of 2 s are 20 minutes: Replicate's T4 takes $0.000225 a second, its CPU $0.0001."""
    told = {price.offer: price for price in costs.of("T4", 600 * 2.0 / 60)}
    assert told["Replicate"].usd == pytest.approx(1200 * 0.000225)
    assert told["Replicate"].assumption == "1200 s × $0.000225"
    assert (told["Colab"].usd, str(told["Colab"])) == (0.0, "free on Colab")
    (cpu,) = costs.of(None, 600 * 2.0 / 60)
    assert cpu.usd == pytest.approx(0.12) and str(cpu) == "about $0.12 on Replicate"


def test_colab_takes_compute_units():
    """C15: half an hour of an A100 at 5.4 units of 10 cents; the cheapest offer stands first."""
    table = throughput.table()
    prices = costs.of("A100", 30)
    colab = next(price for price in prices if price.offer == "Colab")
    assert colab.usd == pytest.approx(0.5 * table["colab_units_an_hour"]["A100"] * table["colab_unit_usd"])
    assert [price.usd for price in prices] == sorted(price.usd for price in prices)
    assert costs.of("no such GPU", 30) == ()


def test_prices_and_speeds_carry_their_date_and_where_they_are_from():
    """C15, C14: a row is either measured, with a date and a command, or says that it is not."""
    table = throughput.table()
    for day in (table["prices_as_of"], table["speeds_as_of"]):
        assert isinstance(day, datetime.date) and day.year >= 2026
    assert table["prices_from"] and re.search(r"20\d\d-\d\d-\d\d", costs.as_of())
    for name, row in [*table["gpus"].items(), ("cpu", table["cpu"])]:
        is_told = row["source"] == throughput.ESTIMATED or re.search(r"20\d\d-\d\d-\d\d.*python -m", row["source"])
        assert is_told, name
    rates = table["replicate_usd_a_second"].values()
    assert min(rates) == 0.0001 and max(rates) < 0.002
    known = set(table["gpus"])
    for part in ("colab_units_an_hour", "rented_usd_an_hour", "colab"):
        assert set(table[part]) <= known
    assert set(table["replicate_usd_a_second"]) <= known | {"cpu"} and set(table["usual"]) <= known


@pytest.mark.parametrize(("driver", "vram_gb", "row"), [
    ("Tesla T4", 14.7, "T4"), ("NVIDIA L4", 22.2, "L4"), ("NVIDIA A100-SXM4-40GB", 39.5, "A100"),
    ("NVIDIA A100-SXM4-80GB", 79.2, "A100-80GB"), ("NVIDIA A100 80GB PCIe", 79.2, "A100-80GB"),
    ("NVIDIA L40S", 44.4, "L40S"), ("NVIDIA GeForce RTX 3090", 23.7, "3090"), ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
    ("Tesla V100-SXM2-16GB", 15.8, "V100"), ("NVIDIA H200", 139.8, "H200"), ("Quadro P4000", 8.0, None),
])  # fmt: skip
def test_a_gpu_is_known_by_what_its_driver_says(driver, vram_gb, row):
    """C14: an L4 is no L40S, and there are two kinds of A100."""
    assert throughput.name_of(driver, vram_gb) == row


def test_one_may_plan_for_a_machine_that_one_does_not_sit_at():
    """C14: Colab's own memory where Colab has the GPU; every row can be planned for."""
    there = throughput.machine("t4")
    assert (there.gpu_name, there.ram_gb, there.is_colab, there.capability) == ("T4", 12.7, True, (7, 5))
    assert throughput.machine("cpu", LAPTOP).gpu_name is None and throughput.machine("cpu", LAPTOP).ram_gb == 16.0
    for name in throughput.names():
        found = throughput.machine(name)
        assert throughput.of(found).name == name and found.vram_gb > 0
    with pytest.raises(SettingsError, match=r"No GPU called 'A1000' .*did you mean A100"):
        throughput.machine("A1000")


def test_larger_gpus_are_tried_from_the_smallest_usual_one_up():
    """D10."""
    found = throughput.by_size()
    assert found[:3] == ["T4", "L4", "A100"] and sorted(found) == sorted(throughput.names())
    rest = [throughput.table()["gpus"][name]["vram_gb"] for name in found[3:]]
    assert rest == sorted(rest)


def test_a_cpu_is_as_fast_as_its_cores_and_an_unknown_gpu_is_not_guessed():
    """C14."""
    two, four = (throughput.of(Machine(False, False, None, 0.0, (0, 0), 8, 8, 8, cores)) for cores in (2, 4))
    assert four.full_tflops == 2 * two.full_tflops and two.source == throughput.ESTIMATED
    assert throughput.of(Machine(False, False, "NVIDIA Unheard Of", 12.0, (8, 0), 8, 8, 8, 4)) is None


def test_the_plan_draws_as_many_designs_at_once_as_the_stages_do(tiny_sdxl):
    """C14: one number for both."""
    for machine in (T4, A100, LAPTOP):
        px = batches.layout(str(tiny_sdxl)).downscale
        cells = (128 // px) * (96 // px)
        assert batches.batch_size(str(tiny_sdxl), 128, 96, machine) == throughput.pictures_at_once(cells, machine)
    assert throughput.pictures_at_once(128 * 128, T4) == 1 and throughput.pictures_at_once(128 * 128, A100) == 4
