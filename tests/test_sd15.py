"""Stable Diffusion 1.5 and 2 against diffusers' own pipeline and names (P20, P23)."""

from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from lace_lora import adapter, families
from lace_lora.errors import ModelError
from lace_lora.families import sd15
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from tests.test_families import change_json, copy_of
from tests.tiny_models import build_tiny_sd15


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("models") / "tiny-sd15")


def pipeline_of(model: Path) -> diffusers.StableDiffusionPipeline:
    with quiet():
        return diffusers.StableDiffusionPipeline.from_pretrained(model)


def test_captions_are_encoded_as_the_pipeline_does(model: Path) -> None:
    captions = ["a photo of lace", ""]
    wanted_BLD = pipeline_of(model).encode_prompt(captions, "cpu", 1, False)[0]
    ours = sd15.encode_captions(sd15.load_text(str(model), torch.float32, "cpu"), captions)
    assert torch.equal(ours.text_BLD, wanted_BLD) and ours.pooled_BP.shape == (2, 0)


def test_a_prediction_is_the_unets(model: Path) -> None:
    unet, times_B = sd15.load_denoiser(str(model), torch.float32, "cpu"), torch.tensor([3, 700])
    noisy_BCHW, text_BLD = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 16)
    with torch.no_grad():
        ours = sd15.predict(unet, noisy_BCHW, times_B, sd15.Encoded(text_BLD, torch.zeros(2, 0)), torch.zeros(2, 0))
        assert torch.equal(ours, unet(noisy_BCHW, times_B, encoder_hidden_states=text_BLD).sample)


def test_its_folder_tells_its_family_and_its_sizes(model: Path) -> None:
    sizes = layout(str(model))
    assert families.of(str(model)) is sd15
    assert (sizes.family, sizes.denoiser, sizes.downscale, sizes.side_px) == ("sd15", "unet", 8, 64)
    assert (sizes.scaling_factor, sizes.text_width, sizes.size_numbers, sizes.is_refiner) == (0.18215, 16, 0, False)
    assert sizes.pixel_step == 16  # two levels: the VAE's 8 px times one halving


def test_v_prediction_is_honoured_as_stable_diffusion_2_asks_for_it(tmp_path: Path) -> None:
    """P20: against diffusers' own velocity."""
    folder = build_tiny_sd15(tmp_path / "sd2", prediction_type="v_prediction")
    noising, times_B = sd15.noising(str(folder)), torch.tensor([5, 900])
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    wanted = noising.get_velocity(latents, noise, times_B)
    assert torch.allclose(sd15.target(noising, latents, noise, times_B), wanted, atol=1e-6)
    assert sd15.make_sampler("euler", str(folder), 4, (8, 8)).config.prediction_type == "v_prediction"


@pytest.mark.parametrize("channels", [9, 5])
def test_a_unet_for_inpainting_or_depth_is_refused(channels: int, model: Path, tmp_path: Path) -> None:
    other = copy_of(model, tmp_path / "other")
    change_json(other / "unet" / "config.json", in_channels=channels)
    with pytest.raises(ModelError, match=f"{channels} channels in and 4 out, made for inpainting or the like. Choose"):
        families.of(str(other))


def test_a_model_of_an_unknown_kind_is_told_with_the_kinds_that_there_are(model: Path, tmp_path: Path) -> None:
    other = copy_of(model, tmp_path / "other")
    (other / "unet").rename(other / "transformer")
    change_json(other / "model_index.json", unet=[None, None], transformer=["diffusers", "PixArtTransformer2DModel"])
    change_json(other / "transformer" / "config.json", _class_name="PixArtTransformer2DModel")
    with pytest.raises(ModelError, match="its transformer is a PixArtTransformer2DModel. Choose a base model"):
        families.of(str(other))


@pytest.mark.parametrize("targets", ["attention", "attention+ff+conv", "up_blocks"])
def test_kohyas_names_are_those_that_diffusers_reads(targets: str, model: Path, tmp_path: Path) -> None:
    """P24: the same answer as with the LoRA fused by us, its alpha not its rank."""
    unet = sd15.load_denoiser(str(model), torch.float32, "cpu")
    adapter.attach(unet, "unet", adapter.Shape(4, 8, targets), 3, sd15.lora_targets(targets))
    chance = torch.Generator().manual_seed(1)
    state = {
        name: 0.1 * torch.randn(one.shape, generator=chance) for name, one in adapter.state_of({"unet": unet}).items()
    }
    save_file(sd15.for_other_tools(state, 8.0, 2), tmp_path / "lora.safetensors")
    facts = adapter.AdapterFacts("sd15", str(model), 4, 8.0, tuple(sd15.lora_targets(targets)))
    fused, pipeline = sd15.load_denoiser(str(model), torch.float32, "cpu"), pipeline_of(model)
    adapter.fuse(fused, adapter.Adapter(facts, state, tmp_path))
    with quiet():
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    loaded = [name for name, _ in pipeline.unet.named_parameters() if "lora_" in name]
    assert len(loaded) == len(state)
    given = torch.randn(1, 4, 8, 8, generator=chance), torch.tensor([400]), torch.randn(1, 77, 16, generator=chance)
    with torch.no_grad():
        theirs, ours, plain = (one(*given).sample for one in (pipeline.unet, fused, sd15.load_denoiser(
            str(model), torch.float32, "cpu")))  # fmt: skip
    assert torch.allclose(theirs, ours, atol=1e-5) and not torch.allclose(ours, plain, atol=1e-3)
