"""What work takes of a machine: processes side by side, layers beside FLOPs, one run that tells the pace (C14, C19)."""

import dataclasses

import pytest

from lace_lora import coefficients, config, costs, estimate, experience, figures, presets, stage_needs, throughput
from lace_lora.throughput import Work
from lace_lora.validation import PICTURES_AT_MOST
from lace_lora.workload import PROGRAM_GIB
from tests.test_presets import A100, LAPTOP, T4

TWO = dataclasses.replace(T4, gpu_count=2, ram_gb=32.0)
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def planned(machine, pictures=250, known=experience.NOTHING, **overrides):
    return estimate.plan(presets.settle(config.load(**overrides), machine), machine, pictures, known)


@pytest.mark.parametrize("processes", [2, 4, 64])
def test_processes_without_a_gpu_of_their_own_shorten_nothing_and_are_warned_of(processes):
    """C19, C14."""
    one, many = (planned(T4, num_processes=count, gradient_accumulation_steps=64) for count in (1, processes))
    assert many.minutes == one.minutes and many.ram_gb == one.ram_gb
    told = [warning.sentence for warning in many.warnings if warning.setting == "num_processes"]
    assert told and "has 1 GPU, and each process needs one of its own. Take num_processes 1" in told[0]
    assert not any(warning.setting == "num_processes" for warning in one.warnings)


def test_a_cpu_is_filled_by_one_process_and_each_more_holds_a_model():
    """C14: on two cores one process takes as long as eight."""
    asked = {"preset": "none", "pretrained_model": SDXL, "gradient_accumulation_steps": 8,
             "gradient_checkpointing": "full"}  # fmt: skip
    one, eight = (planned(LAPTOP, num_processes=count, **asked) for count in (1, 8))
    assert one.minutes == eight.minutes
    assert eight.stage("train").ram_gb == pytest.approx(8 * one.stage("train").ram_gb)
    assert any("one process uses all cores of a CPU" in str(warning) for warning in eight.warnings)


def test_a_process_for_each_gpu_holds_a_model_of_its_own_and_every_gpu_costs():
    """C15, D10: half the time in twice the memory, for the same money."""
    one, two = planned(T4), planned(TWO)
    train = two.stage("train")
    assert train.seconds == pytest.approx(one.stage("train").seconds / 2)
    assert train.ram_gb == pytest.approx(2 * one.stage("train").ram_gb) and train.program_gb == 2 * PROGRAM_GIB["cuda"]
    assert two.stage("decode").ram_gb == one.stage("decode").ram_gb
    eight = dataclasses.replace(A100, gpu_name="A100-80GB", vram_gb=79.2, gpu_count=8, ram_gb=400.0)
    told = {price.offer: price for price in planned(eight).prices}
    minutes = planned(eight).total_minutes
    rate = throughput.table()["rented_usd_an_hour"]["A100-80GB"]
    assert told[costs.RENTED].usd == pytest.approx(8 * minutes / 60 * rate)
    assert told[costs.RENTED].assumption.startswith("8 × ") and "Colab" not in told


def test_as_many_gpus_train_as_the_computers_memory_holds_models():
    """C19, D10: each makes its base 4-bit and copies it for the file, 1.7 GB; four such are more than 7 GB hold."""
    four = dataclasses.replace(T4, gpu_count=4, ram_gb=7.0)
    found = planned(four, gradient_accumulation_steps=4, quantization="nf4")
    assert found.config.num_processes == 3 and estimate.refusal(found) is None
    assert "would not hold a model for each of 4 GPUs" in {one.setting: one.why for one in found.choices}[
        "num_processes"
    ]  # fmt: skip


def test_layers_cost_beside_the_flops_on_a_cpu_and_in_their_place_on_a_gpu():
    """C14: by hand: 2 TFLOP at 4 a second, 10,000 layers of 44 µs."""
    row = {"half_tflops": 4.0, "full_tflops": 4.0, "gb_s": 1.0, "source": "", "seconds_a_layer": 44e-6}
    cpu, gpu = (throughput.Speed("one", queues=queues, **row) for queues in (False, True))
    assert cpu.seconds(Work(2.0, 10_000)) == pytest.approx(0.94)
    assert (gpu.seconds(Work(2.0, 10_000)), gpu.seconds(Work(0.1, 10_000))) == pytest.approx((0.5, 0.44))
    demo = planned(T4, preset="demo")
    assert demo.minutes * 60 > 600 * 3 * 2 * 118 * 1e-5, "600 steps of the miniature are not done in a second or two"


def test_the_layers_of_a_model_are_those_that_hold_its_numbers():
    """C14: the demo's folder itself, by diffusers."""
    from diffusers import UNet2DConditionModel

    from lace_lora.demo import base_dir

    unet = UNet2DConditionModel.from_pretrained(base_dir() / "unet")
    holding = {name.rpartition(".")[0] for name, _ in unet.named_parameters()}
    assert coefficients.of(str(base_dir())).layers("denoiser") == len(holding) == 118


SEEN = [(5, 0), (9, 0), (10, 8), (12, 8), (47, 32), (120, 96), (5000, 96)]


@pytest.mark.parametrize(("pictures", "forwards"), SEEN)
def test_a_look_is_at_the_pictures_that_are_really_held_out(pictures, forwards):
    """C14: eight passes for each held-out picture and the learnt one beside it; a tenth of the folder, twelve at most.

    The held-out ones are those of examples.apart: int(fraction × pictures).
    """
    asked = {"max_train_steps": 100, "validate_every": 100, "resolution": 1024}
    found, without = planned(T4, pictures, **asked), planned(T4, pictures, **asked | {"validate_every": 0})
    extra = found.stage("train").tflop - without.stage("train").tflop
    assert extra == pytest.approx(2 * forwards * 6.76, rel=0.01)
    assert any("looks at" in one for one in found.remarks) == bool(forwards)
    assert stage_needs.HELD_OUT_AT_MOST == PICTURES_AT_MOST


def test_one_run_tells_the_pace_of_runs_of_another_size_on_a_computer_that_the_table_describes():
    """C14: a machine of twice the FLOPs' and layers' time, learnt from one small run, is right for a large one."""
    small, large = (
        planned(LAPTOP, preset="demo", resolution=side, train_batch_size=batch, validate_every=0).job
        for side, batch in ((64, 1), (192, 8))
    )
    stage = stage_needs.train(small)
    figure = figures.of_stage(small, stage, 2 * stage.seconds)
    after = stage_needs.train(dataclasses.replace(large, known=experience.Experience((figure,))))
    assert after.seconds == pytest.approx(2 * stage_needs.train(large).seconds)
    assert after.source == "scaled from your last run"
