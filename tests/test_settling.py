"""Reasons that are true of what is chosen, and number formats that a machine has (P29, C7, C10)."""

import dataclasses

import pytest

from lace_lora import config, estimate, presets
from tests.test_presets import A100, LAPTOP, T4


def planned(machine, pictures=250, **overrides):
    return estimate.plan(presets.settle(config.load(**overrides), machine), machine, pictures)


def why(found, name):
    return {one.setting: one.why for one in found.choices}[name]


def test_a_format_that_the_gpu_has_not_is_told_whoever_asked_for_it():
    """C7, C10: a person's stays and is warned of, a preset's is replaced; the page says one thing."""
    own = planned(T4, mixed_precision="bf16")
    assert (own.config.mixed_precision, own.precision) == ("bf16", "fp16")
    (told,) = [one for one in own.warnings if one.setting == "mixed_precision"]
    assert "mixed_precision is bf16, but it is computed in fp16, because Tesla T4 has no bf16 units" in str(told)
    preset = planned(T4, preset="sdxl")
    assert preset.config.mixed_precision == "fp16" and "bf16 units" in why(preset, "mixed_precision")
    assert "mixed_precision bf16" not in str(preset) and preset.warnings == ()
    assert planned(A100, preset="sdxl").config.mixed_precision == "bf16" and not planned(A100).warnings
    cpu = planned(LAPTOP, preset="consumer")
    assert (cpu.config.mixed_precision, cpu.precision) == ("no", "fp32")


@pytest.mark.parametrize("batch", [1, 2, 4, 64])
def test_a_presets_updates_keep_their_size_under_another_batch(batch):
    """P29: lace-t4's are of four pictures."""
    found = planned(T4, 12, preset="lace-t4", train_batch_size=batch)
    assert found.config.gradient_accumulation_steps == max(1, 4 // batch)
    said = planned(T4, 12, preset="lace-t4", train_batch_size=batch, gradient_accumulation_steps=3)
    assert said.config.gradient_accumulation_steps == 3, "what a person wrote stays"
    if batch == 64:
        assert why(found, "gradient_accumulation_steps") == "64 pictures an update, the nearest to the preset's 4"
        assert "four pictures" not in str(found) and "2 steps of 64 pictures, 10.7 passes" in str(found)
        assert "10 passes over 12 pictures, rounded up to whole updates of 64" in str(found)


def test_four_bits_are_chosen_for_the_reason_that_is_given():
    """P29: on a T4 the base fits in half precision (4.8 GB); two pictures without checkpointing do not beside it."""
    found = planned(T4, train_batch_size=2, gradient_checkpointing="none")
    assert found.config.quantization == "nf4"
    assert why(found, "quantization") == "in fp16 the base model would leave too little room for what is computed"
    tiny = planned(dataclasses.replace(T4, vram_gb=5.0, ram_gb=32.0))
    assert tiny.config.quantization == "nf4" and "would not fit in fp16" in why(tiny, "quantization")
    nothing = planned(T4, resolution=1024, train_batch_size=64)
    assert "even that does not fit" in why(nothing, "quantization") and not nothing.fits


def test_where_four_bits_would_be_faster_that_is_said_and_true():
    """P29: two pictures on a T4 are computed with checkpointing, because 4 bits make the base coarser."""
    asked = {"train_batch_size": 2, "sample_every": 0, "validate_every": 0}
    slow, fast = planned(T4, **asked), planned(T4, quantization="nf4", gradient_checkpointing="none", **asked)
    assert (slow.config.quantization, slow.config.gradient_checkpointing) == ("none", "transformers")
    share = 1 - fast.minutes / slow.minutes
    assert fast.fits and share > 0.1
    assert f"quantization nf4 would fit without, {share:.0%} faster" in why(slow, "gradient_checkpointing")


def test_no_preset_gives_a_reason_that_other_settings_make_false():
    """C7: what a preset says of its own numbers stands also beside a person's resolution."""
    told = str(planned(T4, resolution=2048))
    assert "gradient_checkpointing = " in told and "without checkpointing" not in told


def test_the_page_says_first_what_a_designer_decides_by():
    """P29: one process on one GPU is no news, and no reason says its value twice."""
    lines = str(planned(T4)).splitlines()
    assert not any("num_processes =" in line for line in lines[10:14])
    assert "  mixed_precision = fp16: because Tesla T4 has no bf16 units (capability 7.5 < 8.0)" in lines
    assert "one GPU, or none" not in str(planned(T4))


def test_numbers_are_read_aloud_as_a_person_says_them():
    """C15: one step, and prices and sessions as they are."""
    from lace_lora import costs

    assert "1 step of 64 pictures" in str(planned(T4, 5, train_batch_size=64))
    assert str(costs.Price("Colab", 0.004, "")) == "under $0.01 on Colab"
    assert str(costs.Price("Colab", 0.04, "")) == "about $0.04 on Colab"
    endless, short = str(planned(T4, max_train_steps=1_000_000)), str(planned(T4))
    assert "but not in one session: a free one ends after 12 h" in endless and "about 2,000 h" in endless
    assert "session" not in short and "all of it free on Colab" in short


def test_a_price_is_told_of_every_gpu_that_the_list_has():
    """C15."""
    from lace_lora import throughput

    for name in ("H100", "4090", "A40"):
        assert "all of it " in str(planned(throughput.machine(name))) and "if the machine is not yours" in str(
            planned(throughput.machine(name))
        )


def test_class_pictures_that_take_longer_than_the_training_are_said_to():
    """C14: 200 of them for nine minutes of training."""
    asked = {"prior_loss_weight": 1.0, "num_class_images": 200, "max_train_steps": 30}
    assert any("num_class_images 200: 2.5 h to draw them" in one for one in planned(T4, **asked).remarks)
    assert not any("num_class_images" in one for one in planned(T4, **asked | {"num_class_images": 2}).remarks)


def test_a_disk_that_is_too_small_for_the_run_is_said():
    """C14."""
    full = dataclasses.replace(T4, free_disk_gb=2.0)
    (told,) = [one for one in planned(full, rank=128).warnings if one.setting == "lora_output_dir"]
    assert "10.1 GB are to be written, and 2.0 GB are free" in str(told)
    assert not [one for one in planned(T4, rank=128).warnings if one.setting == "lora_output_dir"]
