"""What does not fit, and the changes that are offered: proven, minimal, the mildest first (D10, P29)."""

import dataclasses
import itertools

import pytest

from lace_lora import config, estimate, fitting, presets, stage_needs, throughput
from lace_lora.fitting import DRAWING, RAM, TRAINING, VRAM
from tests.test_presets import A100, LAPTOP, T4

SMALL = dataclasses.replace(T4, vram_gb=7.7, ram_gb=32.0)
CARD = throughput.machine("3060")


def planned(machine, pictures=250, **overrides):
    return estimate.plan(presets.settle(config.load(**overrides), machine), machine, pictures)


def offered(machine, stages=TRAINING, pictures=250, **overrides):
    """The changes for the first memory that is short, through the very function that the plan uses."""
    found, seen = planned(machine, pictures, **overrides), []
    misfit = min((one for one in found.misfits if one.stage in stages), key=lambda one: not one.is_sure)
    real = fitting.changes

    def changes(*asked):
        seen.extend(real(*asked))
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "changes", changes)
        estimate.advice(found, misfit, stages)
    return misfit, seen


HEAVY = [
    (T4, TRAINING, 250, {"resolution": 1024, "train_batch_size": 64}),
    (T4, TRAINING, 250, {"resolution": 1024, "train_batch_size": 4, "gradient_checkpointing": "none",
                         "quantization": "none"}),
    (T4, TRAINING, 250, {"mixed_precision": "no", "gradient_checkpointing": "none", "quantization": "none",
                         "resolution": 1024}),
    (T4, TRAINING, 250, {"mixed_precision": "no", "sample_every": 50, "gradient_checkpointing": "none",
                         "quantization": "none", "resolution": 1024}),
    (T4, TRAINING, 16_000, {}), (T4, TRAINING, 3000, {"quarter_turns": True, "crop": "random"}),
    (SMALL, TRAINING, 250, {"resolution": 2048}), (T4, DRAWING, 250, {"width": 4096, "height": 4096}),
    (T4, DRAWING, 250, {"width": 4096, "height": 2048}), (CARD, DRAWING, 250, {"resolution": 2048}),
    (dataclasses.replace(A100, gpu_count=8, ram_gb=26.0), TRAINING, 250, {"num_processes": 8}),
    (dataclasses.replace(T4, vram_gb=5.0), TRAINING, 250, {"quantization": "none", "train_text_encoder": True}),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "stages", "pictures", "asked"), HEAVY)
def test_every_change_that_is_offered_is_what_a_person_gets_who_makes_it(machine, stages, pictures, asked):
    """D10: her settings with the change beside them are planned from the beginning; the figure is that plan's."""
    misfit, found = offered(machine, stages, pictures, **asked)
    assert found
    for change in (one for one in found if one.settings):
        after = planned(machine, pictures, **asked | change.settings)
        short = [one for one in after.misfits if one.stage in stages]
        needs = [one.memory_gb if misfit.memory == VRAM else one.ram_gb for one in after.stages if one.name in stages]
        assert not short and max(needs) == pytest.approx(change.needs_gb), change


@pytest.mark.parametrize(("machine", "stages", "pictures", "asked"), HEAVY)
def test_no_change_holds_more_than_is_needed(machine, stages, pictures, asked):
    """D10: with any one of its settings left out it does not fit; none is part of another."""
    _, found = offered(machine, stages, pictures, **asked)
    for one, other in itertools.permutations(found, 2):
        assert not one.settings or not one.settings.items() <= other.settings.items(), (one, other)
    pairs = ({"train_batch_size", "gradient_accumulation_steps"}, {"width", "height"})
    for change in found:
        parts = [set(pair) for pair in pairs if pair <= set(change.settings)]
        parts += [{name} for name in change.settings if not any(name in pair for pair in parts)]
        for left_out in parts if len(parts) > 1 else []:
            rest = {name: value for name, value in change.settings.items() if name not in left_out}
            after = planned(machine, pictures, **asked | rest)
            assert any(one.stage in stages for one in after.misfits), (change, left_out)


def test_what_a_folder_of_many_pictures_needs_is_less_without_their_mirrors():
    """D10: 16,000 pictures do not fit into 12.7 GB; neither change alone is enough, both are."""
    misfit, found = offered(T4, pictures=16_000)
    assert misfit.memory == RAM and found[0].settings == {"random_flip": False, "resolution": 512}
    assert "random_flip false and resolution 512" in str(found[0])
    alone = offered(T4, pictures=3000, quarter_turns=True)[1]
    assert {"quarter_turns": False} in [one.settings for one in alone]


def test_where_really_nothing_helps_that_is_said_and_of_what():
    """D10: the sentence is about settings that were all tried together."""
    words = estimate.refusal(planned(T4, 10**6))
    assert "nor do all of them together" in words and "or learn fewer pictures" in words


def test_colabs_own_machine_with_more_memory_is_named_where_pictures_do_not_fit():
    """D10."""
    here = throughput.machine("T4")
    assert any(
        "another machine in Colab, such as one with an L4" in str(one) for one in offered(here, pictures=30_000)[1]
    )


def test_a_base_that_does_not_fit_as_it_is_is_offered_in_four_bits_for_drawing_too():
    """D10, P29: where a person said none; left to auto it is in 4 bits already."""
    flux, l4 = {"preset": "flux"}, throughput.machine("L4")
    misfit, found = offered(l4, DRAWING, quantization="none", **flux)
    assert misfit.stage == "generate" and found[0].settings == {"quantization": "nf4"}
    assert planned(l4, **flux).stage("generate").quantization == "nf4"
    assert not [one for one in planned(l4, **flux).misfits if one.stage in DRAWING]


def test_the_largest_size_that_fits_is_offered_in_the_shape_that_was_asked_for():
    """D10."""
    sizes = [offered(T4, DRAWING, width=width, height=height)[1][0].settings
             for width, height in ((4096, 4096), (4096, 2048))]  # fmt: skip
    assert sizes[0] == {"width": 2048, "height": 2048}
    assert sizes[1]["width"] == 2 * sizes[1]["height"] and sizes[1]["width"] > 2048
    assert offered(SMALL, resolution=2048)[1][0].settings == {"resolution": 1024}


def test_designs_of_the_trained_size_are_mended_by_their_own_size_and_not_by_the_trainings():
    """D10: width and height are empty, and a 3060 decodes 2048 px no more."""
    _, found = offered(CARD, DRAWING, resolution=2048)
    assert found[0].settings == {"width": 1792, "height": 1792}
    assert not any("gradient_checkpointing" in one.settings or "resolution" in one.settings for one in found)


@pytest.mark.parametrize(("batch", "batches"), [(4, 100), (8, 64), (4, 4), (6, 10)])
def test_the_same_updates_are_the_same(batch, batches):
    """D10: an update has 256 batches at most, so that a large one cannot be kept with a picture at a time."""
    asked = {"resolution": 1024, "train_batch_size": batch, "gradient_accumulation_steps": batches,
             "gradient_checkpointing": "none", "quantization": "none"}  # fmt: skip
    _, found = offered(T4, **asked)
    for change in found:
        seen = change.settings.get("train_batch_size", batch) * change.settings.get(
            "gradient_accumulation_steps", batches
        )
        assert ("the same updates" in change.cost) <= (seen == batch * batches)
        assert ("instead of" in change.cost) == (seen != batch * batches)


def test_a_misfit_says_whether_what_was_counted_is_too_much_or_only_with_what_python_holds():
    """D10."""
    stage = dataclasses.replace(stage_needs.train(planned(T4).job), ram_gb=13.0, program_gb=3.0)
    unsure, sure = (fitting.misfits([dataclasses.replace(stage, program_gb=gb)], T4)[0].is_sure for gb in (3.0, 0.5))
    assert (unsure, sure) == (False, True)
    told = str(planned(dataclasses.replace(T4, ram_gb=4.0)))
    assert "may not fit (“encode captions” needs" in told and "DOES NOT FIT" not in told


def test_the_row_of_the_gpus_memory_is_about_training():
    """D10: designs that are too large are no word against a training that fits."""
    found = planned(T4, width=4096, height=4096)
    row = next(line for line in str(found).splitlines() if line.startswith("GPU memory"))
    assert found.fits and ", fits: " in row and "DOES NOT FIT" not in row and row.endswith("; designs do not fit")
    large = planned(SMALL, resolution=2048)
    row = next(line for line in str(large).splitlines() if line.startswith("GPU memory"))
    assert "DOES NOT FIT (“encode pictures” needs 10.8 GB)" in row


def test_a_cpu_is_never_offered_four_bits():
    """D10: they are for a GPU's memory; a person may ask for them all the same."""
    sdxl = {"preset": "none", "pretrained_model": "stabilityai/stable-diffusion-xl-base-1.0", "train_batch_size": 16,
            "resolution": 1024}  # fmt: skip
    asked = sdxl | {"gradient_checkpointing": "full"}
    plain, small = (planned(LAPTOP, quantization=kind, **asked).stage("train").ram_gb for kind in ("none", "nf4"))
    between = dataclasses.replace(LAPTOP, ram_gb=(plain + small) / 2 / fitting.SPARE)
    found = planned(between, **sdxl)
    assert not found.fits and found.config.quantization == "none"
    assert not any("quantization" in one.settings for one in offered(between, **sdxl)[1])
    why = {one.setting: one.why for one in found.choices}["quantization"]
    assert why == "4 bits are chosen for a GPU's memory only"
