"""The plan: what fits, how long, and every `auto` with its reason (C10, C14 at working depth, P28)."""

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lace_lora import config, estimate, presets, settling, stage_needs
from lace_lora.errors import MachineError, PicturesError
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
        told = [
            stage_needs.training_gib(
                planned(T4, resolution=side, train_batch_size=1, gradient_checkpointing=mode, quantization=base).job
            )
            for mode, base in (("none", "none"), ("full", "none"), ("none", "nf4"))
        ]
        assert told[0] == pytest.approx(none, rel=0.03) and told[1] == pytest.approx(full, rel=0.05)
        assert told[2] == pytest.approx(none - 4.78 + 1.70, rel=0.03)


def test_text_encoders_that_are_trained_are_counted():
    """L18: both stay in memory, 1.5 GiB in half precision."""
    plain, text, token = (
        planned(T4, gradient_checkpointing="none", **more).vram_gb
        for more in ({}, {"train_text_encoder": True}, {"learn_concept_token": True})
    )
    assert text > token > plain + 1.5


def test_the_plan_says_what_text_encoders_and_looks_cost():
    """L18: 1.52 GiB of weights and 0.11 of activations; 0.22 TFLOP a caption beside 14.6 for a picture."""
    lines = planned(T4, learn_concept_token=True, validate_every=0, resolution=1024).remarks
    assert lines == (
        "learn_concept_token: both text encoders stay in memory, 1.6 GB more, and every caption is encoded in its "
        "step, 2% more work",
    )
    looks = planned(T4, 250, validate_every=125, max_train_steps=625, resolution=1024).remarks
    # 6 looks of 96 forward passes beside 625 × 4 pictures of 2.14 forward passes
    assert looks == ("looks at held-out pictures: 6, at most 11% more work",)
    assert str(planned(T4, validate_every=125)).count("looks at held-out pictures") == 1


def test_8_bit_adam_without_its_package_becomes_adam_and_says_so(monkeypatch):
    """P14: 6 bytes less for each of 16 × 1,451,520 trained numbers."""
    with_package = planned(T4, optimizer="adamw8bit")
    assert with_package.config.optimizer == "adamw8bit"
    monkeypatch.setattr(settling.importlib.util, "find_spec", lambda name: None)
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
    silent = planned(smaller, sample_every=0)
    assert (silent.config.gradient_checkpointing, silent.config.quantization) == ("full", "none")
    # Sample pictures need the VAE beside the base: those of a preset are left out, those that are asked for shrink it.
    assert planned(smaller).config.sample_every == 0 and planned(smaller).fits
    assert planned(smaller, sample_every=50).config.quantization == "nf4" and planned(smaller, sample_every=50).fits
    smallest = dataclasses.replace(T4, gpu_name="Smallest", vram_gb=5.0)
    assert planned(smallest).config.quantization == "nf4"


RANKS, SIDES, BATCHES = st.integers(1, 128), st.integers(8, 256).map(lambda step: 8 * step), st.integers(1, 16)
TARGETS = st.sampled_from(["attention", "attention+ff", "attention+ff+conv", "up_blocks"])
MODES = st.sampled_from(["none", "transformers", "full"])
QUICK = settings(max_examples=30, deadline=None)


@QUICK
@given(RANKS, SIDES, BATCHES, TARGETS, MODES, st.sampled_from(["rank", "resolution", "train_batch_size"]))
def test_more_rank_pixels_or_batch_never_needs_less(rank, side, batch, targets, mode, grown):
    """C14: neither memory of the GPU nor of the computer, nor work."""
    given_ones = {"rank": rank, "resolution": side, "train_batch_size": batch}
    limits = {"rank": 128, "resolution": 2048, "train_batch_size": 256}
    more = given_ones | {grown: min(limits[grown], 2 * given_ones[grown])}
    fixed = {"lora_targets": targets, "gradient_checkpointing": mode, "quantization": "none", "max_train_steps": 10,
             "gradient_accumulation_steps": 2}  # fmt: skip
    small, large = (planned(A100, **one, **fixed) for one in (given_ones, more))
    for name in [stage.name for stage in small.stages]:
        one, other = small.stage(name), large.stage(name)
        assert one.tflop <= other.tflop, name
        if name not in ("generate", "refine"):  # larger designs are drawn fewer at once
            assert one.memory_gb <= other.memory_gb and one.ram_gb <= other.ram_gb, name


@QUICK
@given(RANKS, SIDES, BATCHES, TARGETS, MODES, st.sampled_from(["auto", "no", "fp16"]))
def test_four_bits_never_need_more_than_half_precision(rank, side, batch, targets, mode, precision):
    """C14, P29."""
    fixed = {"rank": rank, "resolution": side, "train_batch_size": batch, "lora_targets": targets,
             "gradient_checkpointing": mode, "mixed_precision": precision, "max_train_steps": 10}  # fmt: skip
    plain, small = (planned(A100, quantization=kind, **fixed) for kind in ("none", "nf4"))
    assert small.vram_gb < plain.vram_gb
    assert small.vram_gb == pytest.approx(plain.vram_gb - plain.stage("train").weights_gb
                                          + small.stage("train").weights_gb)  # fmt: skip


@QUICK
@given(st.floats(3, 80), st.floats(1, 3), RANKS, SIDES, BATCHES)
def test_what_fits_stays_fitting_on_a_larger_gpu(vram_gb, times, rank, side, batch):
    """D10."""
    overrides = {"rank": rank, "resolution": side, "train_batch_size": batch}
    small = dataclasses.replace(A100, vram_gb=vram_gb)
    large = dataclasses.replace(A100, vram_gb=vram_gb * times)
    assert planned(large, **overrides).fits >= planned(small, **overrides).fits


@QUICK
@given(st.floats(0, 80), RANKS, SIDES, BATCHES, TARGETS, MODES, st.sampled_from(["none", "nf4"]))
def test_what_a_person_sets_is_never_changed(vram_gb, rank, side, batch, targets, mode, quantization):
    """C10: whatever the machine."""
    machine = dataclasses.replace(A100, vram_gb=vram_gb)
    overrides = {"rank": rank, "resolution": side, "train_batch_size": batch, "lora_targets": targets,
                 "gradient_checkpointing": mode, "quantization": quantization, "max_train_steps": 3,
                 "gradient_accumulation_steps": 5, "mixed_precision": "bf16", "num_processes": 1}  # fmt: skip
    found = planned(machine, **overrides)
    assert {name: getattr(found.config, name) for name in overrides} == overrides
    assert not {choice.setting for choice in found.choices} & set(overrides)


def test_a_setting_of_ones_own_is_told_what_it_costs():
    """C9, C10: 1536 px are 2.25 times the cells, and attention grows with their square."""
    told = str(planned(T4, resolution=1536))
    assert "resolution 1536, as set: 2.8 times the work of 1024" not in str(planned(T4, resolution=1024))
    assert re.search(r"resolution 1536, as set: 2\.[3-9] times the work of 1024", told)
    assert "gradient_checkpointing full, as set: 42% more work, and everything would fit without" in str(
        planned(A100, gradient_checkpointing="full")
    )
    assert "quantization nf4, as set: " in str(planned(T4, quantization="nf4"))
    assert "mixed_precision no, as set: 4.8 GB more for the base" in str(planned(A100, mixed_precision="no"))


def test_four_pictures_at_once_where_they_fit_and_one_on_a_small_card():
    """P29: the update is of four pictures either way."""
    for machine, batch in ((A100, 4), (dataclasses.replace(A100, vram_gb=22.0), 2), (T4, 1), (LAPTOP, 1)):
        config_of = planned(machine, preset="none").config
        assert (config_of.train_batch_size, config_of.gradient_accumulation_steps) == (batch, 4 // batch)


def test_the_resolution_steps_down_only_where_nothing_else_helps():
    """P29, D10."""
    assert planned(dataclasses.replace(T4, vram_gb=5.0), preset="none").config.resolution == 1024
    small = planned(dataclasses.replace(T4, vram_gb=2.9), preset="none", rank=8)
    assert small.config.resolution < 1024 and small.fits
    assert "1024 px, at which the base model was trained, would not fit" in str(small)


def test_both_memories_count():
    """D10: 12,000 encoded pictures are 15 GB, which no GPU has to hold, and Colab's 12.7 GB of RAM do not."""
    found = planned(T4, 12_000)
    short = [one for one in found.misfits if one.stage == "train"]
    assert [one.memory for one in short] == ["memory (RAM)"] and not found.fits
    assert planned(dataclasses.replace(T4, ram_gb=52.0), 12_000).fits


def test_a_base_of_any_size_passes_through_a_small_computer_on_its_way_to_a_gpu():
    """D10, P29: SDXL in fp32 is 9.6 GB, which a T4 holds, and Colab's 12.7 GB of RAM need not.

    Its largest tensor has 29.5 million numbers: two of them, in fp32, are in hand at most. In 4 bits a gigabyte is
    copied at a time for the files that the next start reads, twice with older safetensors. Without a GPU it lies in the
    computer's memory.
    """
    found = planned(T4, 1, mixed_precision="no", resolution=512)
    train = found.stage("train")
    assert found.fits and train.ram_gb - train.program_gb == pytest.approx(2 * 29_491_200 * 4 / 1024**3, abs=0.005)
    small = planned(T4, 1, quantization="nf4").stage("train")
    assert small.ram_gb - small.program_gb == pytest.approx(2e9 / 1024**3, abs=0.005)
    here = planned(LAPTOP, 1, preset="none", pretrained_model="stabilityai/stable-diffusion-xl-base-1.0")
    assert here.stage("train").ram_gb - here.stage("train").program_gb > 2_567_463_684 * 4 / 1024**3


def test_a_refusal_names_three_changes_each_of_which_fits():
    """D10, P29: every one is planned again with the settings that it names."""
    heavy = {"resolution": 1024, "train_batch_size": 4, "gradient_checkpointing": "none", "quantization": "none",
             "sample_every": 0}  # fmt: skip
    found = planned(T4, **heavy)
    words = estimate.refusal(found)
    listed = re.findall(r"^  \d\. (.+?) \(.*would fit: ([\d.]+) of 14\.7 GB$", words, re.M)
    assert len(listed) == 3 and "must_fit false" in words
    for told, gib in listed:
        changed = dict(part.rsplit(" ", 1) for part in told.split(" and "))
        again = planned(T4, **heavy | changed)
        assert again.fits and again.vram_gb == pytest.approx(float(gib), abs=0.05), told
    # The mildest first: the same updates, one picture at a time.
    assert listed[0][0] == "train_batch_size 1 and gradient_accumulation_steps 4"
    with pytest.raises(MachineError, match="needs 26.8 GB of GPU memory, and Tesla T4 has 14.7 GB"):
        estimate.check_fits(found)


def test_a_person_may_try_all_the_same_and_what_is_not_known_refuses_nothing(tiny_sdxl):
    """D10: must_fit false, a GPU whose memory nobody knows, and a model that was not counted."""
    large = {"train_batch_size": 64, "gradient_checkpointing": "none"}
    assert estimate.refusal(planned(T4, **large))
    assert estimate.refusal(planned(T4, must_fit=False, **large)) is None
    assert estimate.refusal(planned(dataclasses.replace(T4, vram_gb=0.0), **large)) is None
    small = dataclasses.replace(LAPTOP, ram_gb=0.5)
    assert estimate.refusal(planned(small, pretrained_model=str(tiny_sdxl), **large)) is None
    assert "scaled by its weights" in str(planned(small, pretrained_model=str(tiny_sdxl)))


def test_a_computer_without_a_gpu_runs_out_of_its_own_memory():
    """D10."""
    asked = {"preset": "none", "pretrained_model": "stabilityai/stable-diffusion-xl-base-1.0"}
    words = estimate.refusal(planned(dataclasses.replace(LAPTOP, ram_gb=8.0), **asked))
    assert "needs" in words and "of memory (RAM), and this computer has 8.0 GB" in words
    assert estimate.refusal(planned(dataclasses.replace(LAPTOP, ram_gb=64.0), **asked)) is None


def test_drawing_that_cannot_fit_is_refused_before_a_model_is_looked_for():
    """D10: decoding 2048 px takes four times the 3.0 GB of 1024 px."""
    asked = config.load(preset="none", width=2048, height=2048, pretrained_model="nobody/nothing")
    small = dataclasses.replace(T4, vram_gb=11.0)
    with pytest.raises(
        MachineError, match="Drawing designs would not fit: the stage “decode” needs 12.8 GB"
    ) as refused:
        estimate.check_drawing(asked, small)
    assert "width 1792 and height 1792 (smaller designs); would fit" in str(refused.value)
    estimate.check_drawing(asked, T4)


def test_a_plan_stays_on_a_page_and_has_every_stage():
    """P28, C14: at most 25 lines; the table has a row a stage, and JSON holds them all."""
    for machine, more in ((T4, {}), (A100, {"sample_every": 50, "prior_loss_weight": 1.0}), (LAPTOP, {})):
        found = planned(machine, **more)
        assert len(str(found).splitlines()) <= 25
        rows = found.table().splitlines()[1:-1]
        assert [row.split("  ")[0] for row in rows] == [stage.name for stage in found.stages]
        assert json.loads(json.dumps(found.as_json()))["stages"][0]["name"] == "encode pictures"
    names = [stage.name for stage in planned(A100, sample_every=50, prior_loss_weight=1.0).stages]
    assert names == ["encode pictures", "encode captions", "class pictures", "train", "sample", "generate", "refine",
                     "decode"]  # fmt: skip


def test_times_are_work_by_speed():
    """C14: 2,500 pictures of 14.58 TFLOP, and 8 looks of 96 passes of 6.76, at a T4's 9 TFLOP a second."""
    seconds = (2500 * 14.58 + 8 * 96 * 6.76) / 9
    assert planned(T4, 250).minutes == pytest.approx(seconds / 60, rel=0.005)
    known = dataclasses.replace(T4, gpu_name="NVIDIA Unheard Of")
    assert planned(known).minutes is None and "not known for this machine" in str(planned(known))


def test_the_usual_machines_are_told_with_their_price_while_one_sits_at_another():
    """C15, C14: 6 minutes of an A100 at 5.4 units an hour of 10 cents."""
    told = str(planned(T4))
    assert re.search(r"elsewhere +training on an L4 17 min, .*on an A100 6 min, about \$0\.05 on Colab", told)
    assert "estimated, prices of 20" in told
    assert "on a T4 77 min, free on Colab" in str(planned(A100, preset="lace-t4"))
    assert "elsewhere" not in str(planned(LAPTOP))  # the demo


def test_where_the_encoded_pictures_lie_is_told():
    """D10: beside the training where there is room, else streamed."""
    assert planned(T4).cache_is_on_gpu and "326 MB of encoded pictures beside it" in str(planned(T4))
    assert not planned(dataclasses.replace(T4, vram_gb=11.6)).cache_is_on_gpu
    # 250 pictures and their mirrors: 2 × (mean, deviation) × 4 × 128² × 4 bytes, and 77 × 2048 + 1280 half numbers
    each = 2 * 2 * 4 * 128 * 128 * 4 + 2 * (77 * 2048 + 1280)
    assert planned(T4).encoded_gb == pytest.approx(250 * each / 1024**3)


def test_what_does_not_fit_is_said_with_three_things_to_try():
    plan = planned(T4, resolution=1024, train_batch_size=64)
    assert not plan.fits and "DOES NOT FIT" in str(plan)
    assert plan.warnings[0].setting == "train_batch_size"
    assert [line[:4] for line in str(plan.warnings[0]).splitlines()[1:]] == ["  1.", "  2.", "  3."]


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


@pytest.mark.parametrize("vram_gb", [6.0, 8.0, 10.0, 11.0, 12.0, 16.0, 24.0])
@pytest.mark.parametrize("preset", ["auto", "lace-t4", "lace-t4-qlora", "fast", "consumer", "style-blocks"])
def test_what_the_plan_chooses_by_itself_is_never_refused_by_it(preset, vram_gb):
    """P29, D10: rows of samples that only a preset wishes are left out where they would not fit, and that is said."""
    machine = dataclasses.replace(T4, vram_gb=vram_gb, ram_gb=32.0)
    found = planned(machine, preset=preset, train_batch_size="auto", resolution="auto")
    assert estimate.refusal(found) is None, str(found)
    if preset == "lace-t4":
        told = {one.setting: one.why for one in found.choices}
        assert (found.config.sample_every == 0) == ("would not fit" in told["sample_every"]) == (vram_gb < 10)


def test_rows_of_samples_that_a_person_asks_for_are_made_to_fit():
    """P29: what is written wins, so memory is chosen for it."""
    found = planned(dataclasses.replace(T4, vram_gb=8.0, ram_gb=32.0), sample_every=50)
    assert found.config.sample_every == 50 and found.config.quantization == "nf4" and estimate.refusal(found) is None


def test_a_memory_that_is_short_by_an_estimate_is_warned_of_and_by_a_count_refused():
    """D10: what Python and CUDA's libraries hold of the computer's memory is an estimate; weights are counted."""
    small = dataclasses.replace(T4, vram_gb=15.0, ram_gb=4.0)
    found = planned(small)
    assert estimate.refusal(found) is None
    assert any("may not fit" in str(one) and "memory (RAM)" in str(one) for one in found.warnings)
    assert found.config.quantization == "none", "another format of the base is no help against a small computer"
    tiny = planned(dataclasses.replace(T4, vram_gb=15.0, ram_gb=1.0))
    assert "would not fit" in estimate.refusal(tiny) and "another GPU" not in estimate.refusal(tiny)
