"""SD 3.5 and Flux in four bits, planned for by their names alone, and what they cannot do refused (P20, C7, C14)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lace_lora import coefficients, estimate, families, lora, presets, quantize, settling, throughput
from lace_lora.config import load
from lace_lora.errors import SettingsError
from lace_lora.machine import Machine
from tests import tiny_flow
from tests.test_flow import noise_of


@pytest.mark.parametrize("name", ("sd35", "flux"))
def test_a_transformer_in_four_bits_is_kept_and_learns(name: str, tmp_path: Path) -> None:
    """P20: nearly what it says whole; the kept file gives the same; gradients reach every layer that has a say."""
    pytest.importorskip("bitsandbytes")
    wide = {"sd35": {"attention_head_dim": 32, "caption_projection_dim": 64},
            "flux": {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}}[name]  # fmt: skip
    model = str({"sd35": tiny_flow.build_sd35, "flux": tiny_flow.build_flux}[name](tmp_path / "model", **wide))
    family, lines = families.of(model), []
    whole = family.load_denoiser(model, torch.float32, "cpu")
    small, again = (quantize.load_nf4(model, torch.float32, "cpu", tmp_path / "cache", lines.append) for _ in range(2))
    assert len(lines) == 1 and "linear layers in 4 bits" in lines[0], "the second was read from the kept file"
    assert quantize.size_gib(small) < 0.45 * quantize.size_gib(whole)
    assert family.base_dtype(small) is torch.float32
    targets = family.lora_targets("attention")
    learning = lora.attach(small.train(), family.DENOISER, lora.Shape(4, 4, "attention"), 0, targets)
    words = families.seam.Encoded(noise_of(1, 9, tiny_flow.T5_WIDTH), noise_of(1, 32 if name == "sd35" else 16))
    given = noise_of(1, 4, 8, 8), torch.tensor([300.0]), words, torch.zeros(1, 0)
    said = family.predict(small, *given)
    said.square().mean().backward()
    with torch.no_grad():
        exact, kept = family.predict(whole, *given), family.predict(again.train(), *given)
    assert torch.equal(said, kept) and 0 < (said - exact).abs().max() < 0.1 * exact.abs().max()
    deaf = [key for key, one in learning.items() if "lora_B" in key and not bool(one.grad.any())]
    assert all("2.attn.add_q_proj" in key for key in deaf)


GPUS = {"T4": (14.7, (7, 5), 12.7), "L4": (22.2, (8, 9), 53.0), "A100": (39.5, (8, 0), 83.5)}


def planned(tmp_path: Path, gpu: str, **settings: Any) -> Any:
    """The plan for 250 pictures on a machine of Colab's, with no settings file and no model here."""
    machine = throughput.machine(gpu, Machine.here(str(tmp_path)))
    assert (machine.vram_gb, machine.capability, machine.ram_gb) == GPUS[gpu]
    config = load(cache_dir=str(tmp_path), lora_output_dir=str(tmp_path), **settings)
    return estimate.plan(presets.settle(config, machine), machine, 250)


@pytest.mark.parametrize(("preset", "gpu", "fits", "draws"), [
    ("flux", "T4", True, True), ("flux", "L4", True, True), ("flux", "A100", True, True),
    ("sd35", "T4", True, True), ("sd35", "L4", True, True), ("sd35", "A100", True, True),
])  # fmt: skip
def test_presets_are_planned_for_before_anything_is_fetched(
    tmp_path: Path, preset: str, gpu: str, fits: bool, draws: bool
) -> None:
    """C7, C14: both memories suffice, Flux in 4 bits on an L4 and a T4; a T4 lacks the format that it was made in."""
    found = planned(tmp_path, gpu, preset=preset)
    assert found.is_counted and found.config.resolution == 1024 and found.config.rank == 16
    assert (found.fits, "designs do not fit" not in str(found)) == (fits, draws)
    assert ("was made in bf16, and this is computed in fp16" in str(found)) == (gpu == "T4")
    if preset == "flux":
        assert (found.config.max_train_steps, found.config.negative_prompt) == (1200, "")
        assert found.config.quantization == ("none" if gpu == "A100" else "nf4")
    is_small = preset == "flux" and gpu != "A100"
    assert found.stage("generate").quantization == ("nf4" if is_small else "none")
    assert ("designs are drawn with the base in 4 bits: 2" in str(found)) == is_small
    chosen = {one.setting: one for one in found.choices}
    for name, value in (("min_snr_gamma", 0.0), ("noise_offset", 0.0), ("refine", "none"), ("scheduler", "euler")):
        assert getattr(found.config, name) == value and chosen[name].why


def test_flux_in_four_bits_is_planned_by_its_counted_weights(tmp_path: Path) -> None:
    """C14, P29: 11,898 of 11,901 million numbers at 0.5159 bytes, the rest at 2, and a LoRA of rank 16 beside them.

    T5's largest tensor has 131.6 million numbers; four tensors are in hand, in float32 at most.
    """
    found = planned(tmp_path, "L4", preset="flux", num_images=2, num_inference_steps=10)
    drawing, reading = found.stage("generate"), found.stage("encode captions")
    weights = 11_898_322_944 * (0.5 + 1 / 64 + 4 / (64 * 256)) + 3_085_376 * 2
    assert drawing.weights_gb * 1024**3 == pytest.approx(weights)
    assert drawing.adapter_gb == pytest.approx(found.job.model.lora_parameters("attention", 16, False) * 2 / 1024**3)
    assert drawing.work.nf4_gb == pytest.approx(10 * 4.5 * 11.901408320)
    assert drawing.seconds and drawing.seconds > drawing.tflop / 40, "reading 4 bits takes time beside the FLOPs"
    assert (reading.ram_gb - reading.program_gb - found.encoded_gb) * 1024**3 == pytest.approx(4 * 131_596_288 * 4)


@pytest.mark.parametrize(("asked", "trains", "draws"), [
    ({}, "nf4", "nf4"), ({"quantization": "none"}, "none", "none"), ({"quantization": "nf4"}, "nf4", "nf4"),
])  # fmt: skip
def test_what_a_person_sets_counts_for_training_and_drawing(
    tmp_path: Path, asked: dict[str, str], trains: str, draws: str
) -> None:
    """C10, P13."""
    found = planned(tmp_path, "L4", preset="flux", **asked)
    assert (found.stage("train").quantization, found.stage("generate").quantization) == (trains, draws)


def test_how_sdxl_was_learnt_does_not_keep_flux_from_drawing(tmp_path: Path) -> None:
    """P20: a file that still holds SDXL's settings of training; those of drawing are a person's wish."""
    machine = throughput.machine("L4", Machine.here(str(tmp_path)))
    given = {"preset": "none", "pretrained_model": "black-forest-labs/FLUX.1-dev", "min_snr_gamma": 5.0,
             "train_text_encoder": True, "cache_dir": str(tmp_path)}  # fmt: skip
    assert settling.drawn_in(load(**given), machine)[0] == "nf4"
    assert estimate.check_drawing(load(**given), machine).config.min_snr_gamma == 0
    for check in (settling.drawn_in, estimate.check_drawing):
        with pytest.raises(SettingsError, match="refine is img2img, but Flux.1 has no refiner"):
            check(load(**given, refine="img2img"), machine)


def test_a_presets_four_bits_are_for_training_alone(tmp_path: Path) -> None:
    """P13: SDXL is drawn as it is where that fits, however it was learnt; class pictures as it learns."""
    found = planned(tmp_path, "T4", preset="lace-t4-qlora", prior_loss_weight=1.0)
    kinds = {stage.name: stage.quantization for stage in found.stages}
    assert (kinds["train"], kinds["class pictures"], kinds["generate"], kinds["refine"]) == (
        "nf4",
        "nf4",
        "none",
        "none",
    )


@pytest.mark.parametrize(("setting", "value", "sentence"), [
    ("refine", "img2img", "refine is img2img, but Flux.1 has no refiner. Set refine none."),
    ("repeat", "straight", "repeat is straight, but Flux.1 is a transformer without convolutions"),
    ("train_text_encoder", True, "train_text_encoder is true, but Flux.1 has its text encoders used as they are"),
    ("learn_concept_token", True, "learn_concept_token is true, but Flux.1 cannot learn a new word here"),
    ("min_snr_gamma", 5.0, "min_snr_gamma is 5.0, but Flux.1 learns flow"),
    ("noise_offset", 0.05, "noise_offset is 0.05, but Flux.1 learns flow"),
    ("scheduler", "ddim", "scheduler is ddim, but Flux.1 learns flow, .* Set scheduler euler."),
    ("lora_targets", "up_blocks", "lora_targets is up_blocks, but .* Set lora_targets attention or attention"),
    ("negative_prompt", "grain", "negative_prompt is grain, but Flux.1 is told .* Set negative_prompt empty"),
    ("guidance_until", 0.8, "guidance_until is 0.8, but Flux.1 is guided without a second pass"),
])  # fmt: skip
def test_what_flow_cannot_do_is_refused_where_it_was_asked_for(
    tmp_path: Path, setting: str, value: object, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        planned(tmp_path, "A100", preset="flux", **{setting: value})


def test_a_picture_of_flux_is_planned_with_one_pass_a_step(tmp_path: Path) -> None:
    """74.4 TFLOP of one pass at 1024 px, as it was counted; SD 3.5 makes two, with the words and without."""
    for preset, rows in (("flux", 1), ("sd35", 2)):
        found = planned(tmp_path, "A100", preset=preset, num_images=1, num_inference_steps=10)
        drawing = next(stage for stage in found.stages if stage.name == "generate")
        assert drawing.tflop == pytest.approx(rows * 10 * found.job.model.forward_flop("denoiser", 128 * 128) / 1e12)
    assert coefficients.of("black-forest-labs/FLUX.1-dev").forward_flop("denoiser", 128 * 128) == pytest.approx(
        74.385e12, rel=1e-4
    )
