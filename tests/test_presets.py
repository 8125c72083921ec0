"""Presets are data; precedence is default < preset < config.yaml < override (C7, C10)."""

import pytest

from lace_lora import config, estimate, presets, throughput
from lace_lora.errors import SettingsError
from lace_lora.machine import Machine
from tests.generated import ROOT

LAPTOP = Machine(False, False, None, 0.0, (0, 0), 16.0, 8.0, 100.0, 2)
T4 = Machine(True, True, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)
A100 = Machine(True, True, "NVIDIA A100-SXM4-40GB", 39.5, (8, 0), 83.0, 80.0, 150.0, 12)


def given(tmp_path, text="", **overrides):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return config.load(path, **overrides)


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_that_ships_loads_and_gives_a_reason_only_for_what_it_sets(name):
    preset = presets.read(name)
    assert preset.about and preset.settings
    assert set(preset.why) <= set(preset.settings)


def test_the_presets_have_the_numbers_that_were_asked_for():
    """C7."""
    assert presets.read("sdxl").settings | {} == {
        "rank": 32, "alpha": 32, "resolution": 1024, "num_train_epochs": 10, "mixed_precision": "bf16",
    }  # fmt: skip
    fast, best, small = (presets.read(name).settings for name in ("fast", "high_quality", "consumer"))
    assert [fast[name] for name in ("rank", "alpha", "resolution", "num_train_epochs")] == [8, 8, 512, 5]
    assert [best[name] for name in ("rank", "alpha", "resolution", "num_train_epochs")] == [64, 64, 768, 20]
    assert [small[name] for name in ("rank", "resolution", "train_batch_size", "gradient_accumulation_steps")] == [
        16, 512, 2, 4,
    ]  # fmt: skip


def test_presets_of_other_families_have_their_numbers():
    """C7."""
    sd15 = presets.read("sd15")
    numbers = {"rank": 16, "alpha": 16, "resolution": 512, "num_train_epochs": 15, "mixed_precision": "fp16"}
    assert numbers.items() <= sd15.settings.items() and sd15.family == "sd15"
    assert presets.read("flux").settings["resolution"] == presets.read("sd35").settings["resolution"] == 1024
    assert presets.read("high_quality").settings["train_text_encoder"] is True
    assert {name for name in presets.names() if presets.read(name).family != "sdxl"} == {"sd15", "sd35", "flux"}


def planned(config, machine=T4):
    """The plan for 250 pictures, with what it chose, by setting."""
    found = estimate.plan(presets.settle(config, machine), machine, 250)
    return found, {one.setting: one for one in found.choices}


def test_a_preset_of_another_family_brings_its_model_although_every_file_names_sdxls(tmp_path):
    """C7, P20: planned by its own table while nothing of it is here; no refiner is chosen and said."""
    text = "pretrained_model: stabilityai/stable-diffusion-xl-base-1.0\nresolution: auto\n"
    found, chosen = planned(given(tmp_path, text, preset="sd15"))
    assert found.config.pretrained_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (found.job.model.name, found.is_counted, found.config.resolution) == ("sd15", True, 512)
    assert chosen["refine"].value == "none" and chosen["refine"].why == "Stable Diffusion 1.5 or 2 has no refiner"
    assert [name for name, _ in found.downloads] == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert found.fits and found.vram_gb < 6


def test_what_a_family_cannot_do_is_refused_where_a_person_asked_for_it(tmp_path):
    """P20: before anything is loaded or fetched."""
    for setting, value, sentence in (
        ("refine", "ensemble", "refine is ensemble, but Stable Diffusion 1.5 or 2 has no refiner. Set refine none."),
        (
            "learn_concept_token",
            True,
            "learn_concept_token is true, but .* cannot learn a new word here, only SDXL can",
        ),
    ):
        with pytest.raises(SettingsError, match=sentence):
            planned(given(tmp_path, preset="sd15", **{setting: value}))


def test_a_preset_for_one_family_is_refused_beside_a_model_of_another(tmp_path):
    """C7."""
    sdxl = "stabilityai/stable-diffusion-xl-base-1.0"
    with pytest.raises(SettingsError, match="preset sd15 is for Stable Diffusion 1.5 or 2, and pretrained_model sta"):
        planned(given(tmp_path, preset="sd15", pretrained_model=sdxl))


def test_the_machines_preset_learns_another_family_at_its_own_size(tmp_path):
    """C7: 1024 px are SDXL's."""
    found, chosen = planned(given(tmp_path, pretrained_model="stable-diffusion-v1-5/stable-diffusion-v1-5"))
    assert (found.preset, found.config.resolution) == ("lace-t4", 512)
    assert chosen["resolution"].why == "the size that the base model was trained at"


@pytest.mark.parametrize("name", ["lace-t4", "lace-t4-qlora", "fast", "high_quality", "style-blocks"])
def test_every_preset_for_a_free_t4_fits_on_it(tmp_path, name):
    """C7, P29."""
    found = estimate.plan(presets.settle(given(tmp_path, preset=name), T4), T4, 250)
    assert found.fits and not found.misfits


@pytest.mark.parametrize(
    ("name", "gpu"), [("lace-l4", "L4"), ("lace-a100", "A100"), ("consumer", "3060"), ("sdxl", "L4")]
)
def test_every_other_preset_fits_on_the_card_that_it_is_for(tmp_path, name, gpu):
    """C7."""
    machine = throughput.machine(gpu)
    assert estimate.plan(presets.settle(given(tmp_path, preset=name), machine), machine, 250).fits


def test_a_file_beats_a_preset_and_an_override_beats_the_file(tmp_path):
    settled = presets.settle(given(tmp_path, "preset: sdxl\nrank: 4\n", num_train_epochs=3), T4).config
    assert (settled.rank, settled.num_train_epochs, settled.alpha) == (4, 3, 32)


@pytest.mark.parametrize("name", [name for name in presets.names() if name != "demo"])
def test_the_file_that_ships_leaves_every_number_of_a_preset_as_it_is(name):
    """C7: it says auto of sizes, batches and steps, which leaves them to the preset; its own numbers beat it."""
    shipped = config.load(ROOT / "config.yaml", preset=name)
    settled = presets.settle(shipped, T4).config
    wanted = presets.read(name).settings
    assert {setting: getattr(settled, setting) for setting in wanted} == wanted
    assert settled.learning_rate == shipped.learning_rate and settled.images_dir == shipped.images_dir


def test_the_machines_preset_with_the_file_that_ships_computes_as_many_pictures_at_once_as_it_says():
    """C7, L8: four on an A100, where a forgotten auto once made it one."""
    for machine, sizes in ((A100, (1024, 4, 2)), (throughput.machine("L4"), (1024, 2, 2)), (T4, (1024, 1, 4))):
        found = estimate.plan(presets.settle(config.load(ROOT / "config.yaml"), machine), machine, 250).config
        assert (found.resolution, found.train_batch_size, found.gradient_accumulation_steps) == sizes


def test_auto_means_the_same_in_a_file_and_in_a_form(tmp_path):
    """C7, L9: a form whose ticked auto is saved trains as the form said."""
    assert presets.settle(given(tmp_path, "resolution: auto\n", preset="fast"), T4).config.resolution == 512
    assert presets.settle(given(tmp_path, "resolution: 768\n", preset="fast"), T4).config.resolution == 768
    form = given(tmp_path, "resolution: 768\n", preset="fast", resolution="auto")
    assert presets.settle(form, T4).config.resolution == 512
    assert presets.settle(given(tmp_path, preset="none", resolution="auto"), T4).config.resolution == "auto"


@pytest.mark.parametrize("machine", [A100, LAPTOP])
@pytest.mark.parametrize("preset", ["flux", "demo"])
def test_passes_that_somebody_asks_for_count_before_a_presets_steps(tmp_path, preset, machine):
    """C7, L9: they were ignored in silence, for the shipped file leaves the steps open."""
    shipped = config.load(ROOT / "config.yaml", preset=preset)
    assert presets.settle(shipped, machine).config.max_train_steps == {"flux": 1200, "demo": 600}[preset]
    asked = presets.settle(shipped.model_copy(update={"num_train_epochs": 3}), machine)
    found = estimate.plan(asked, machine, 100).config
    assert found.max_train_steps * found.train_batch_size * found.gradient_accumulation_steps == 300
    both = presets.settle(shipped.model_copy(update={"num_train_epochs": 3, "max_train_steps": 7}), machine)
    assert both.config.max_train_steps == 7


@pytest.mark.parametrize("model", ["stabilityai/stable-diffusion-3.5-medium", "black-forest-labs/FLUX.1-dev"])
def test_the_machines_preset_says_nothing_of_batches_of_another_family(model):
    """C7: four of SDXL's pictures at once would make Flux keep fewer activations, and learn in half as many updates."""
    shipped = config.load(ROOT / "config.yaml", pretrained_model=model)
    found = estimate.plan(presets.settle(shipped, A100), A100, 250)
    free = config.load(ROOT / "config.yaml", pretrained_model=model, preset="none", num_train_epochs=10, rank=32,
                       lora_targets="attention+ff")  # fmt: skip
    alone = estimate.plan(presets.settle(free, A100), A100, 250).config
    for name in ("train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "max_train_steps"):
        assert getattr(found.config, name) == getattr(alone, name), name


def test_auto_is_nothing_that_a_person_set(tmp_path):
    """C8: what the plan chose where a file says auto is not told as the person's own."""
    text = "quantization: auto\ngradient_checkpointing: auto\nresolution: auto\n"
    small = Machine(True, True, "Tesla T4", 4.0, (7, 5), 32.0, 30.0, 60.0, 2)
    assert "as set" not in str(estimate.plan(presets.settle(given(tmp_path, text), small), small, 250))


def test_auto_takes_the_preset_of_the_machine(tmp_path):
    assert presets.settle(given(tmp_path), T4).preset == "lace-t4"
    assert presets.settle(given(tmp_path), A100).preset == "lace-a100"


def test_auto_without_a_gpu_takes_the_demo_with_a_banner_and_only_overrides_beat_it(tmp_path):
    text = "pretrained_model: stabilityai/stable-diffusion-xl-base-1.0\nresolution: 512\nmax_train_steps: 1000\n"
    settled = presets.settle(given(tmp_path, text, max_train_steps=5), LAPTOP)
    assert settled.preset == "demo"
    assert "DEMO" in settled.banner and "Change runtime type" in settled.banner
    assert settled.config.pretrained_model == "lace-demo"
    assert (settled.config.resolution, settled.config.max_train_steps) == (96, 5)


def test_auto_without_a_gpu_keeps_a_model_folder_that_is_on_this_machine(tmp_path):
    settled = presets.settle(given(tmp_path, f"pretrained_model: {tmp_path}\n"), LAPTOP)
    assert (settled.preset, settled.banner) == ("none", "")


@pytest.mark.parametrize("machine", [LAPTOP, T4])
def test_settling_twice_changes_nothing(tmp_path, machine):
    once = presets.settle(given(tmp_path, "resolution: 512\n", rank=4), machine).config
    assert presets.settle(once, machine).config == once


def test_settling_twice_leaves_in_what_is_drawn(tmp_path):
    """P13: a preset's quantization stays one for training, until somebody asks for it or a plan chooses."""
    for asked, expected in (({}, "auto"), ({"quantization": "nf4"}, "nf4"), ({"quantization": "none"}, "none")):
        once = presets.settle(config.load(preset="lace-t4-qlora", cache_dir=str(tmp_path), **asked), LAPTOP)
        twice = presets.settle(once.config.model_copy(update={"seed": 3}).with_preset({"refine": "none"}), LAPTOP)
        assert once.draws_in == twice.draws_in == expected
    learnt = presets.settle(config.load(preset="lace-t4-qlora"), LAPTOP).config
    assert presets.settle(learnt.model_copy(update={"quantization": "nf4"}), LAPTOP).draws_in == "nf4"
    assert presets.settle(learnt.with_preset({"quantization": "nf4"}), LAPTOP).draws_in == "nf4"


def test_an_unknown_preset_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(SettingsError, match="No preset called 'lace-t5'; did you mean lace-t4?"):
        presets.settle(given(tmp_path, "preset: lace-t5"), T4)


def test_a_preset_of_your_own_is_a_yaml_file(tmp_path):
    """C18."""
    own = tmp_path / "mine.yaml"
    own.write_text("about: my card\nsettings:\n  rank: 12\n")
    assert presets.settle(given(tmp_path, f"preset: {own}\n"), T4).config.rank == 12
    own.write_text("about: my card\nsettings:\n  rnak: 12\n")
    with pytest.raises(SettingsError, match="did you mean rank?"):
        presets.settle(given(tmp_path, f"preset: {own}\n"), T4)
    own.write_text("rank: 12\n")
    with pytest.raises(SettingsError, match="is no preset"):
        presets.settle(given(tmp_path, f"preset: {own}\n"), T4)


def test_own_photographs_are_kept_where_the_demo_was_not_asked_for(tmp_path, monkeypatch):
    """L2: without a GPU they can be looked at and captioned; a folder of the settings that is not there is not kept."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "config.yaml").write_text("images_dir: mine\n", encoding="utf-8")
    own = presets.settle(config.load("config.yaml"), LAPTOP)
    assert (own.preset, own.config.images_dir, presets.draws_its_own(own)) == ("demo", "mine", False)
    assert "your photographs at 96 px" in own.banner
    asked = presets.settle(config.load("config.yaml", preset="demo"), LAPTOP)
    assert asked.config.images_dir == "demo_output/pictures" and presets.draws_its_own(asked)
    (tmp_path / "mine").rmdir()
    assert presets.draws_its_own(presets.settle(config.load("config.yaml"), LAPTOP))


def test_own_photographs_are_judged_for_sdxl_also_without_a_gpu(lace_folder, monkeypatch):
    """L1: at the miniature's 96 px none would be too small; the drawn ones are judged at what they are learnt at."""
    monkeypatch.setattr(estimate.Machine, "here", classmethod(lambda cls, *_: LAPTOP))
    monkeypatch.chdir(lace_folder.parent)
    assert estimate.for_looking(config.load(images_dir=str(lace_folder)), say=print).resolution == 1024
    assert estimate.for_looking(config.load(images_dir=str(lace_folder), resolution=768), say=print).resolution == 768
    assert estimate.for_looking(config.load(preset="demo"), say=lambda _: None).resolution == 96
