"""The plan: what fits, how long, and every `auto` with its reason (C10, C14 at working depth, P28)."""

import dataclasses
import json

import pytest

from lace_lora import config, estimate, presets
from lace_lora.errors import PicturesError
from tests.test_presets import A100, LAPTOP, T4


def planned(machine, pictures=250, **overrides):
    return estimate.plan(presets.settle(config.load(**overrides), machine), machine, pictures)


@pytest.mark.parametrize("machine", [LAPTOP, T4, A100])
def test_no_setting_is_left_to_auto_and_every_choice_has_a_reason(machine):
    plan = planned(machine)
    # No choices of the plan: log_with takes what is installed, and what is made of a design is chosen for each design.
    others = {"log_with", *dict(config.fields_of("finishing"))}
    assert "auto" not in {value for name, value in plan.config.model_dump().items() if name not in others}
    given_by_preset = presets.read(plan.preset).settings
    assert all(choice.why or choice.setting in given_by_preset for choice in plan.choices)
    assert {choice.setting for choice in plan.choices} >= {"mixed_precision", "gradient_checkpointing"}


def test_planning_what_is_planned_already_changes_nothing():
    plan = planned(T4)
    again = estimate.plan(presets.settle(plan.config, T4), T4, 250)
    assert again.config == plan.config and again.choices == ()


def test_the_steps_are_ten_passes_over_the_pictures_rounded_up():
    """250 pictures × 10 passes / (1 × 4) = 625."""
    assert planned(T4, 250).config.max_train_steps == 625
    assert planned(T4, 251).config.max_train_steps == 628
    assert planned(T4, 250).epochs == 10


def test_a_number_that_was_written_always_wins():
    plan = planned(T4, max_train_steps=7, train_batch_size=3, gradient_checkpointing="none")
    assert (plan.config.max_train_steps, plan.config.train_batch_size) == (7, 3)
    assert plan.config.gradient_checkpointing == "none"


def test_memory_agrees_with_what_was_counted_for_sdxl():
    """Counted apart from our own script, for attention, batch 1, rank 16, fp16, in GiB."""
    for side, none, full in ((512, 6.5, 5.3), (768, 8.1, 5.4), (1024, 10.4, 5.6)):
        settings = planned(T4, resolution=side, train_batch_size=1).config
        assert estimate.training_gib(settings, "fp16", "none") == pytest.approx(none, rel=0.03)
        assert estimate.training_gib(settings, "fp16", "full") == pytest.approx(full, rel=0.05)
        nf4 = estimate.training_gib(settings, "fp16", "none", "nf4")
        assert nf4 == pytest.approx(none - 4.78 + 1.70, rel=0.03)


def test_text_encoders_that_are_trained_are_counted():
    """L18: both stay in memory, 1.5 GiB in half precision."""
    plain, text, token = (
        planned(T4, gradient_checkpointing="none", **more).vram_gb
        for more in ({}, {"train_text_encoder": True}, {"learn_concept_token": True})
    )
    assert text > token > plain + 1.5


def test_the_plan_says_what_text_encoders_and_looks_cost():
    """L18: 1.5 GiB of weights and 0.35 of activations; 3 × 0.126 TFLOP a caption beside 2.14 × 6.76 for a picture."""
    lines = estimate.prices(planned(T4, learn_concept_token=True, validate_every=0, resolution=1024).config, "fp16")
    assert lines == [
        "learn_concept_token: both text encoders stay in memory, 1.9 GB more, and every caption is encoded in its "
        "step, 3% more work"
    ]
    looks = estimate.prices(planned(T4, 250, validate_every=125, max_train_steps=625, resolution=1024).config, "fp16")
    # 6 looks of 96 forward passes beside 625 × 4 pictures of 2.14 forward passes
    assert looks == ["looks at held-out pictures: 6, at most 11% more work"]
    assert str(planned(T4, validate_every=125)).count("looks at held-out pictures") == 1


def test_8_bit_adam_without_its_package_becomes_adam_and_says_so(monkeypatch):
    """P14: 6 bytes less for each of 16 × 1,451,520 trained numbers."""
    with_package = planned(T4, optimizer="adamw8bit")
    assert with_package.config.optimizer == "adamw8bit"
    monkeypatch.setattr(estimate.importlib.util, "find_spec", lambda name: None)
    without = planned(T4, optimizer="paged_adamw8bit", rank=16, train_text_encoder=False)
    assert without.config.optimizer == "adamw"
    assert "pip install bitsandbytes); adamw learns the same and takes 139 MB more" in str(without)


def test_a_learning_rate_that_fits_no_optimizer_is_said():
    """P14: prodigy's is 1, all others' about 1e-4."""
    assert "1 is usual, 0.0001 learns little" in str(planned(T4, optimizer="prodigy", learning_rate=1e-4))
    assert "0.5 is far above the usual 1e-4" in str(planned(T4, learning_rate=0.5))
    for name, rate in (("prodigy", 1.0), ("adamw", 1e-4)):
        assert planned(T4, optimizer=name, learning_rate=rate).warnings == ()


def test_two_gpus_share_the_batches_of_an_update():
    """C19: the update is the same, so the same settings give the same result on one or two."""
    two = dataclasses.replace(T4, gpu_count=2)
    assert (planned(T4).config.num_processes, planned(two).config.num_processes) == (1, 2)
    assert planned(two).config.max_train_steps == planned(T4).config.max_train_steps
    assert planned(two).minutes == pytest.approx(planned(T4).minutes / 2)


def test_every_gpu_has_a_batch_of_an_update_or_stays_out_of_it():
    """C19: a preset's two batches become eight on eight GPUs; a number that a person wrote stays."""
    eight = dataclasses.replace(A100, gpu_count=8)
    raised = planned(eight).config
    assert (raised.num_processes, raised.gradient_accumulation_steps) == (8, 8)
    kept = planned(eight, gradient_accumulation_steps=3).config
    assert (kept.num_processes, kept.gradient_accumulation_steps) == (3, 3)
    idle = planned(eight, gradient_accumulation_steps=3, num_processes=8)
    assert any("the other processes have nothing to do" in str(warning) for warning in idle.warnings)


def test_checkpointing_is_chosen_only_where_memory_asks_for_it():
    assert planned(T4).config.gradient_checkpointing == "none"
    assert planned(A100).config.gradient_checkpointing == "none"
    small = dataclasses.replace(T4, gpu_name="Small", vram_gb=8.0)
    assert planned(small).config.gradient_checkpointing == "transformers"
    smaller = dataclasses.replace(T4, gpu_name="Smaller", vram_gb=6.8)
    assert (planned(smaller).config.gradient_checkpointing, planned(smaller).config.quantization) == ("full", "none")
    smallest = dataclasses.replace(T4, gpu_name="Smallest", vram_gb=5.0)
    assert planned(smallest).config.quantization == "nf4"


def test_more_rank_pixels_or_batch_never_needs_less():
    """C14."""

    def need(**overrides):
        return planned(A100, gradient_checkpointing="none", **overrides).vram_gb

    for name, values in (("rank", [4, 16, 64]), ("resolution", [512, 768, 1024]), ("train_batch_size", [1, 2, 4])):
        needs = [need(**{name: value}) for value in values]
        assert needs == sorted(needs) and len(set(needs)) == 3, name


def test_what_does_not_fit_is_said_with_three_things_to_try():
    small = dataclasses.replace(T4, vram_gb=3.0)
    plan = planned(small)
    assert not plan.fits and "DOES NOT FIT" in str(plan)
    assert "train_batch_size 1, gradient_checkpointing full, or resolution 768" in str(plan.warnings[0])


def test_a_large_rank_on_a_small_card_is_warned_about():
    """C8."""
    assert any("rank 64" in str(warning) for warning in planned(T4, rank=64).warnings)
    assert not any("rank" in str(warning) for warning in planned(A100, rank=64).warnings)
    assert [warning.setting for warning in planned(T4, rank=64).warnings] == ["rank"]


def test_the_size_of_a_local_model_is_read_from_its_folder(tiny_sdxl):
    plan = planned(LAPTOP, pretrained_model=str(tiny_sdxl))
    unet, vae = (json.loads((tiny_sdxl / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert plan.config.resolution == unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def test_preparing_the_demo_draws_its_pictures_with_their_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    plan = estimate.prepare(config.load(preset="demo"), say=said.append)
    assert plan.pictures >= 100 and plan.config.resolution == 96
    lines = (tmp_path / "demo_output/pictures/annotations.txt").read_text().splitlines()
    assert len(lines) == plan.pictures and all("<myspecialstyle>" in line for line in lines)
    assert len(set(line.split("\t")[1] for line in lines)) > 10
    assert "demo" in str(plan) and len(said) >= 1
    assert estimate.prepare(config.load(preset="demo"), say=said.append).config == plan.config


def test_a_missing_folder_of_pictures_has_its_sentence(tmp_path):
    with pytest.raises(PicturesError, match="nowhere"):
        estimate.prepare(config.load(preset="none", images_dir=str(tmp_path / "nowhere")), T4)
