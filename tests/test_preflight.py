"""Is everything in place: a row for each thing that can be missing, with a tick or what to click (L2)."""

import dataclasses
import subprocess
import sys
from importlib import metadata

import pytest

from lace_lora import config, install, preflight, presets
from lace_lora.errors import SettingsError
from lace_lora.families import known
from lace_lora.machine import Machine

T4 = Machine(True, True, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)


def rows(tmp_path, machine=None, **given):
    """The preflight's rows by name; the two models are "model", the base, and "refiner"."""
    here = {"images_dir": str(tmp_path / "pictures"), "lora_output_dir": str(tmp_path / "out"), "preset": "none"}
    machine = machine or Machine.here()
    found = preflight.rows(presets.settle(config.load(**here | given), machine), machine)
    models = [row[1:] for row in found if row[0] == "model"]
    by_name = {name: (what, good, advice) for name, what, good, advice in found}
    return by_name | dict(zip(("model", "refiner"), models, strict=False))


@pytest.fixture
def nothing_fetched(monkeypatch, tmp_path):
    """No model in Hugging Face's cache, no token, and a network that nobody asks."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path


def test_preflight_has_a_row_for_each_thing_that_can_be_missing(nothing_fetched):
    """L2: a tick, or what to click."""
    found = rows(nothing_fetched, T4)
    assert {
        "GPU",
        "GPU memory",
        "memory",
        "disk",
        "Drive",
        "Python",
        "torch",
        "model",
        "photographs",
        "results",
    } <= set(found)
    assert found["GPU"] == ("Tesla T4", True, preflight.GPU_MINUTES)  # set-up spends no GPU minutes
    assert all(good or advice for _, good, advice in found.values())
    elsewhere = rows(nothing_fetched, dataclasses.replace(T4, is_colab=False))
    assert elsewhere["GPU"] == ("Tesla T4", True, "") and "Drive" not in elsewhere


def test_the_disk_is_held_against_the_models_that_have_to_be_fetched(nothing_fetched):
    """L2: two of 7 GB and 5 to spare; one where nothing is refined; none for the demo."""
    small = dataclasses.replace(T4, free_disk_gb=15.0)
    base, refiner = (f"stabilityai/stable-diffusion-xl-{kind}-1.0" for kind in ("base", "refiner"))
    both = rows(nothing_fetched, small)
    assert both["disk"][1] is False and "about 19 GB are needed" in both["disk"][2]
    assert both["model"][0].startswith(f"{base}, about 7 GB") and both["refiner"][0].startswith(
        f"{refiner}, about 7 GB"
    )
    one = rows(nothing_fetched, small, refine="none")
    assert one["disk"][1] and "refiner" not in one
    demo = rows(nothing_fetched, dataclasses.replace(small, free_disk_gb=6.0), preset="demo")
    assert demo["disk"][1] and demo["model"] == ("lace-demo, comes with Lace LoRA", True, "")


def test_an_open_model_needs_no_token_and_a_gated_one_says_how_to_get_it(nothing_fetched, monkeypatch):
    """L2, L3."""
    assert rows(nothing_fetched, T4)["model"][0].endswith("CreativeML Open RAIL++-M, no account needed")
    gated = {"pretrained_model": "stabilityai/stable-diffusion-3.5-large", "refine": "none"}
    what, good, advice = rows(nothing_fetched, T4, **gated)["model"]
    assert "Stability AI Community License" in what and not good
    assert "open the page https://huggingface.co/stabilityai/stable-diffusion-3.5-large and accept" in advice
    monkeypatch.setenv("HF_TOKEN", "secret of mine")
    found = rows(nothing_fetched, T4, **gated)["model"]
    assert found[1:] == (True, "") and "secret of mine" not in str(found)
    monkeypatch.delenv("HF_TOKEN")
    (nothing_fetched / "token").write_text("secret of mine")
    assert rows(nothing_fetched, T4, **gated)["model"][1]
    (nothing_fetched / "token").unlink()
    monkeypatch.setattr(preflight.colab, "secret", lambda name: name)
    assert rows(nothing_fetched, T4, **gated)["model"][1]

    def withheld(name):
        raise SettingsError(f"Colab has the secret {name}, but this notebook may not read it.")

    monkeypatch.setattr(preflight.colab, "secret", withheld)
    assert rows(nothing_fetched, T4, **gated)["model"][1:] == (
        False,
        "Colab has the secret HF_TOKEN, but this notebook may not read it.",
    )


def test_a_model_that_is_nowhere_is_said_before_a_run(nothing_fetched, monkeypatch):
    """L2: a folder that does not exist, and a name where nothing may be fetched."""
    assert rows(nothing_fetched, T4, pretrained_model="./mine")["model"][1:][0] is False
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1 forbids fetching it" in rows(nothing_fetched, T4)["model"][2]


def test_preflight_says_what_the_settings_still_need_and_how_to_bring_it(nothing_fetched, monkeypatch):
    """L2, P14: also where the plan is what chooses 4 bits."""
    found = install._installed
    monkeypatch.setattr(install, "_installed", lambda name: None if name == "bitsandbytes" else found(name))
    what, good, advice = rows(nothing_fetched, T4, quantization="nf4")["bitsandbytes"]
    assert (what, good) == ("not installed, for quantization nf4", False)
    assert "install.add('bitsandbytes')" in advice
    assert "bitsandbytes" not in rows(nothing_fetched, T4)
    small = dataclasses.replace(T4, vram_gb=4.0)
    assert rows(nothing_fetched, small)["bitsandbytes"][1] is False


def test_looking_loads_no_torch():
    """L2: where no NVIDIA driver is."""
    code = (
        "from lace_lora import config, preflight, presets; from lace_lora.machine import Machine; import sys;"
        "here = Machine.here(); preflight.rows(presets.settle(config.load(), here), here);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_preflight_counts_the_photographs_or_says_what_to_do(tmp_path, lace_folder):
    found = rows(tmp_path)
    assert found["photographs"] == (f"6 in {lace_folder}", True, "")
    assert found["results"][1] and found["torch"][:2] == (metadata.version("torch"), True)
    assert {"GPU", "memory", "disk", "Python", "diffusers", "ipywidgets"} <= set(found)
    gone, good, advice = rows(tmp_path, images_dir=str(tmp_path / "nowhere"))["photographs"]
    assert not good and "nowhere" in advice


def test_preflight_knows_that_the_demo_draws_its_own_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settled = presets.settle(config.load(preset="demo"), Machine.here())
    found = {row[0]: row[1:] for row in preflight.rows(settled, Machine.here())}
    assert found["photographs"] == ("drawn by program on first use, in demo_output/pictures", True, "")


def test_preflight_says_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)
    assert rows(tmp_path)["results"][1:] == (
        False,
        "Choose another lora_output_dir, or mount Drive first: nothing can be written there.",
    )


def test_another_kind_of_model_is_counted_at_its_own_size_and_without_a_refiner(nothing_fetched):
    """L2, C7: SD 3.5 medium takes 17 GB and has no refiner, although the settings name SDXL's."""
    found = rows(nothing_fetched, T4, preset="sd35")
    assert "refiner" not in found
    assert found["model"][0].startswith("stabilityai/stable-diffusion-3.5-medium, about 17 GB")


def test_what_is_said_before_fetching_is_true_of_the_model(monkeypatch):
    """L3: its size; and a command that fetches all of a model that is not offered in half precision apart."""
    monkeypatch.setattr(known.folders, "is_to_fetch", lambda name: True)
    assert "FLUX.1-dev (about 34 GB, once;" in known.fetch_notice("black-forest-labs/FLUX.1-dev")[0]
    assert "(about 7 GB, once;" in known.fetch_notice("someone/some-sdxl")[0]
    told = known.folders._how_to_fetch("black-forest-labs/FLUX.1-dev")
    assert '"transformer/*.safetensors"' in told and '"text_encoder_2/*.safetensors"' in told and "*.model" in told
    assert "transformer" not in known.folders._how_to_fetch("stabilityai/stable-diffusion-xl-base-1.0")
