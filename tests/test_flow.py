"""SD 3.5 and Flux against diffusers' own pipelines: captions, predictions, whole samplings, times, targets (L3, C7)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lace_lora import families
from lace_lora.errors import AdapterError, ModelError, SettingsError
from lace_lora.families import flow, flow_text, flux, layouts, sd35
from lace_lora.families.quiet import quiet
from tests import tiny_flow

with quiet():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from diffusers.training_utils import compute_density_for_timestep_sampling
    from peft import LoraConfig, inject_adapter_in_model

KINDS = ("sd35", "flux", "schnell")
CAPTIONS = ["a photo of white lace", "rosette on dark <myspecialstyle>, " + "x " * 90]
# The transformers' configs as they are published.
SD35_LARGE = {
    "num_layers": 38, "num_attention_heads": 38, "attention_head_dim": 64, "caption_projection_dim": 2432,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
}  # fmt: skip
SD35_MEDIUM = SD35_LARGE | {
    "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
FLUX_DEV = {"guidance_embeds": True}  # the rest is diffusers' default


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("flow")
    tiny_flow.build_sd35(folder / "sd35")
    tiny_flow.build_flux(folder / "flux")
    tiny_flow.build_flux(folder / "schnell", schnell=True)
    return lambda kind: str(folder / kind)


def pipeline_of(model: str) -> Any:
    kind = FluxPipeline if families.of(model).FAMILY == "flux" else StableDiffusion3Pipeline
    with quiet():
        made = kind.from_pretrained(model)
    made.set_progress_bar_config(disable=True)
    return made


def noise_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- encoding --


def test_sd35_reads_captions_as_its_pipeline_does(built: Callable[[str], str]) -> None:
    pipeline = pipeline_of(built("sd35"))
    with quiet(), torch.no_grad():
        text_BLD, _, pooled_BP, _ = pipeline.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)
    ours = sd35.encode_captions(sd35.load_text(built("sd35"), torch.float32, "cpu"), CAPTIONS)
    assert torch.equal(ours.text_BLD, text_BLD) and torch.equal(ours.pooled_BP, pooled_BP)
    assert ours.text_BLD.shape == (2, 77 + 256, tiny_flow.T5_WIDTH) and ours.pooled_BP.shape == (2, 32)


@pytest.mark.parametrize(("kind", "tokens"), [("flux", 512), ("schnell", 256)])
def test_flux_reads_captions_as_its_pipeline_does(built: Callable[[str], str], kind: str, tokens: int) -> None:
    pipeline = pipeline_of(built(kind))
    with quiet(), torch.no_grad():
        text_BLD, pooled_BP, _ = pipeline.encode_prompt(CAPTIONS, max_sequence_length=tokens)
    ours = flux.encode_captions(flux.load_text(built(kind), torch.float32, "cpu"), CAPTIONS)
    assert torch.equal(ours.text_BLD, text_BLD) and torch.equal(ours.pooled_BP, pooled_BP)
    assert ours.text_BLD.shape[1] == tokens


def test_t5_never_computes_in_fp16(built: Callable[[str], str]) -> None:
    """It overflows there; the CLIPs do not."""
    dtypes = [encoder.dtype for encoder in sd35.load_text(built("sd35"), torch.float16, "cpu").encoders]
    assert dtypes == [torch.float16, torch.float16, torch.bfloat16]
    assert flow_text.t5_dtype(torch.float32) is torch.float32


def test_a_caption_is_cut_where_t5_stops_reading(built: Callable[[str], str]) -> None:
    for kind, fits in (("sd35", 255), ("flux", 511), ("schnell", 255)):
        family = families.of(built(kind))
        tokenizers = family.load_tokenizers(built(kind))
        assert family.count_tokens(tokenizers, "white lace") == 2
        assert family.words_cut(tokenizers, "lace " * fits) == ""
        assert family.words_cut(tokenizers, "lace " * fits + "rosette") == "rosette"


def test_latents_are_shifted_before_they_are_scaled(built: Callable[[str], str]) -> None:
    for kind in ("sd35", "flux"):
        family, sizes, vae = families.of(built(kind)), layouts.layout(built(kind)), pipeline_of(built(kind)).vae
        mean_BCHW, _ = family.encode_images(vae, noise_of(1, 3, 64, 96))
        scaled_BCHW = family.scale_latents(mean_BCHW, sizes)
        assert torch.equal(scaled_BCHW, (mean_BCHW - vae.config.shift_factor) * vae.config.scaling_factor)
        assert torch.allclose(family.unscale_latents(scaled_BCHW, sizes), mean_BCHW, atol=1e-6)


# -- one step, and all of them --


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_sampling_gives_the_pipelines_latents(built: Callable[[str], str], kind: str) -> None:
    """C7: the same times, the same transformer calls, the same guidance, for a picture that is not square."""
    model, steps, guidance = built(kind), 5, 4.0
    family, pipeline = families.of(model), pipeline_of(built(kind))
    start_BCHW = noise_of(2, tiny_flow.CHANNELS, 8, 12, seed=1)
    prompts = [caption[:60] for caption in CAPTIONS]
    tokens = {"schnell": {"max_sequence_length": 256}}.get(kind, {})
    packed = flux.pack(start_BCHW) if family.FAMILY == "flux" else start_BCHW
    theirs = pipeline(
        prompts, height=64, width=96, num_inference_steps=steps, guidance_scale=guidance, latents=packed.clone(),
        output_type="latent", **tokens,
    ).images  # fmt: skip
    if family.FAMILY == "flux":
        theirs = pipeline._unpack_latents(theirs, 64, 96, pipeline.vae_scale_factor)

    text = family.load_text(model, torch.float32, "cpu")
    words, nothing = family.encode_captions(text, prompts), family.encode_captions(text, ["", ""])
    denoiser, scheduler = family.load_denoiser(model, torch.float32, "cpu"), None
    scheduler = family.make_sampler("euler", model, steps, (8, 12))
    latents_BCHW, sizes_BS = start_BCHW, torch.zeros(2, 0)
    with torch.no_grad():
        for time in scheduler.timesteps:
            times_B = time.expand(2)
            if family.GUIDANCE == "embedded":
                strengths_B = torch.full((2,), guidance)
                said_BCHW = family.predict(denoiser, latents_BCHW, times_B, words, sizes_BS, strengths_B)
            else:
                with_words = family.predict(denoiser, latents_BCHW, times_B, words, sizes_BS)
                without = family.predict(denoiser, latents_BCHW, times_B, nothing, sizes_BS)
                said_BCHW = without + guidance * (with_words - without)
            latents_BCHW = scheduler.step(said_BCHW, time, latents_BCHW, return_dict=False)[0]
    assert torch.equal(scheduler.timesteps, pipeline.scheduler.timesteps)
    assert latents_BCHW.shape == theirs.shape and (theirs - start_BCHW).abs().max() > 0.5
    assert torch.allclose(latents_BCHW, theirs, atol=2e-5)


def test_packing_is_the_pipelines_and_is_undone(built: Callable[[str], str]) -> None:
    latents_BCHW = noise_of(2, 4, 6, 10)
    packed_BNc = flux.pack(latents_BCHW)
    assert torch.equal(packed_BNc, FluxPipeline._pack_latents(latents_BCHW, 2, 4, 6, 10))
    assert torch.equal(flux.unpack(packed_BNc, (6, 10)), latents_BCHW)
    assert torch.equal(flux.places(6, 10), FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))


def test_flux_dev_is_told_how_strictly_to_follow_and_learns_with_one(built: Callable[[str], str]) -> None:
    denoisers = {kind: flux.load_denoiser(built(kind), torch.float32, "cpu") for kind in ("flux", "schnell")}
    words = flux.Encoded(noise_of(1, 20, tiny_flow.T5_WIDTH), noise_of(1, 16))
    given = noise_of(1, 4, 8, 8), torch.tensor([300.0]), words, torch.zeros(1, 0)
    with torch.no_grad():
        for kind, is_told in (("flux", True), ("schnell", False)):
            one, strict, training = (
                flux.predict(denoisers[kind], *given, strength)
                for strength in (torch.tensor([1.0]), torch.tensor([4.0]), None)
            )
            assert torch.equal(one, training) and torch.equal(one, strict) is not is_told


@pytest.mark.parametrize("kind", ("sd35", "flux"))
def test_a_half_precision_transformer_answers_in_float32(built: Callable[[str], str], kind: str) -> None:
    family = families.of(built(kind))
    denoiser = family.load_denoiser(built(kind), torch.bfloat16, "cpu")
    words = families.seam.Encoded(noise_of(1, 9, tiny_flow.T5_WIDTH), noise_of(1, 32 if kind == "sd35" else 16))
    assert family.base_dtype(denoiser) is torch.bfloat16
    said = family.predict(denoiser, noise_of(1, 4, 8, 8), torch.tensor([300.0]), words, torch.zeros(1, 0))
    assert said.dtype is torch.float32 and said.shape == (1, 4, 8, 8)


def test_other_samplers_are_refused(built: Callable[[str], str]) -> None:
    with pytest.raises(SettingsError, match="scheduler ddim .* predicts flow. Use scheduler euler"):
        flux.make_sampler("ddim", built("flux"), 4, (8, 8))


# -- training's mathematics --


def test_times_are_drawn_as_diffusers_draws_them(built: Callable[[str], str]) -> None:
    """Logit-normal of mean 0 and spread 1, then SD3's shift: no two quantiles further apart than chance allows."""
    count = 20000
    drawn = compute_density_for_timestep_sampling(
        "logit_normal", count, logit_mean=0.0, logit_std=1.0, generator=torch.Generator().manual_seed(0)
    )
    theirs = (1000 * 3.0 * drawn / (1 + 2.0 * drawn)).sort().values
    ours = sd35.times(sd35.noising(built("sd35")), (torch.arange(count) + 0.5) / count)
    assert ours.dtype is torch.float32 and bool((ours.diff() >= 0).all())
    apart = (torch.searchsorted(ours.double(), theirs.double()) / count - (torch.arange(count) + 0.5) / count).abs()
    assert apart.max() < 1.63 / count**0.5  # Kolmogorov's bound at 1 %
    ends = sd35.times(sd35.noising(built("sd35")), torch.tensor([0.0, 1.0]))
    assert 0 < ends[0] < 50 and 950 < ends[1] < 1000


def test_the_shift_is_that_of_the_shipped_schedule(built: Callable[[str], str]) -> None:
    """Flux-dev's depends on the size that is learnt, by the line that its pipeline draws with; the others' do not."""
    plain = torch.linspace(1, 1 / 1000, 1000)
    shipped = FlowMatchEulerDiscreteScheduler.from_pretrained(built("sd35"), subfolder="scheduler")
    for side in (512, 1024):
        shift = flow.noising(built("sd35"), side_px=side).shift
        assert torch.allclose(flow.shifted(plain, shift), shipped.sigmas, atol=1e-6)
        assert flow.noising(built("schnell"), side_px=side).shift == 1.0
    dev = FlowMatchEulerDiscreteScheduler.from_pretrained(built("flux"), subfolder="scheduler")
    for side, mu in ((256, 0.5), (512, calculate_shift(32 * 32)), (1024, 1.15)):
        theirs = torch.as_tensor(dev.time_shift(mu, 1.0, plain.numpy()))
        ours = flow.shifted(plain, flow.noising(built("flux"), side_px=side).shift)
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert flow.noising(built("flux")).shift == flow.noising(built("flux"), side_px=64).shift


def test_noise_is_mixed_as_the_scheduler_mixes_it_and_the_target_leads_back() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents_BCHW, noise_BCHW = noise_of(3, 4, 8, 8), noise_of(3, 4, 8, 8, seed=1)
    times_B = scheduler.timesteps[torch.tensor([10, 500, 990])]
    noisy_BCHW = flow.add_noise(flow.Noising(3.0), latents_BCHW, noise_BCHW, times_B)
    assert torch.allclose(noisy_BCHW, scheduler.scale_noise(latents_BCHW, times_B, noise_BCHW), atol=1e-6)
    wanted_BCHW = flow.target(flow.Noising(3.0), latents_BCHW, noise_BCHW, times_B)
    back_BCHW = noisy_BCHW - (times_B / 1000)[:, None, None, None] * wanted_BCHW
    assert torch.allclose(back_BCHW, latents_BCHW, atol=1e-5)
    with pytest.raises(ValueError, match="one time per image: got 1 for 3"):
        flow.add_noise(flow.Noising(3.0), latents_BCHW, noise_BCHW, times_B[:1])


def test_min_snr_is_not_taken_for_flow() -> None:
    assert torch.equal(flow.weights(flow.Noising(3.0), torch.tensor([1.0, 900.0]), 0.0), torch.ones(2))
    with pytest.raises(ValueError, match="no meaning for flow matching"):
        flow.weights(flow.Noising(3.0), torch.tensor([1.0]), 5.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_learns_one_picture(built: Callable[[str], str], kind: str) -> None:
    """The loss at fixed noise and times falls, below that of saying nothing, which needs no picture."""
    model = built(kind)
    family = families.of(model)
    words = family.encode_captions(family.load_text(model, torch.float32, "cpu"), ["white lace"])
    words = families.seam.Encoded(words.text_BLD[:, :20], words.pooled_BP)  # quicker, and padding says nothing
    denoiser = family.load_denoiser(model, torch.float32, "cpu")
    torch.manual_seed(0)
    targets = family.lora_targets("attention+ff")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets[0] if len(targets) == 1 else targets)
    inject_adapter_in_model(config, denoiser)
    learning = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=2e-2)
    noising, latents_BCHW = family.noising(model), noise_of(1, 4, 8, 8, seed=5)

    def losses(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        times_B = family.times(noising, torch.rand(count, generator=torch.Generator().manual_seed(seed)))
        noise_BCHW = noise_of(count, 4, 8, 8, seed=seed)
        given_BCHW = latents_BCHW.expand(count, -1, -1, -1)
        said_BCHW = family.predict(
            denoiser,
            family.add_noise(noising, given_BCHW, noise_BCHW, times_B),
            times_B,
            families.seam.Encoded(words.text_BLD.expand(count, -1, -1), words.pooled_BP.expand(count, -1)),
            torch.zeros(count, 0),
        )
        wanted_BCHW = family.target(noising, given_BCHW, noise_BCHW, times_B)
        return (said_BCHW - wanted_BCHW).square().mean(), wanted_BCHW.square().mean()

    with torch.no_grad():
        before, of_silence = losses(8, 999)
    for step in range(60):
        losses(4, step)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        after, _ = losses(8, 999)
    assert after < 0.85 * before and after < 0.95 * of_silence


@pytest.mark.parametrize("kind", ("sd35", "flux"))
def test_checkpointing_changes_no_gradient(built: Callable[[str], str], kind: str) -> None:
    family = families.of(built(kind))
    denoiser = family.load_denoiser(built(kind), torch.float32, "cpu")
    words = families.seam.Encoded(noise_of(1, 9, tiny_flow.T5_WIDTH), noise_of(1, 32 if kind == "sd35" else 16))
    weight = denoiser.get_submodule("transformer_blocks.0.attn.to_q").weight.requires_grad_(True)
    gradients = []
    for mode in ("none", "transformers", "full", "none"):
        family.checkpoint_activations(denoiser, mode)
        assert denoiser.is_gradient_checkpointing is (mode != "none")
        said = family.predict(denoiser, noise_of(1, 4, 8, 8), torch.tensor([300.0]), words, torch.zeros(1, 0))
        gradients.append(torch.autograd.grad(said.square().mean(), weight)[0])
    assert all(torch.allclose(one, gradients[0], atol=1e-7) for one in gradients) and gradients[0].abs().max() > 0


# -- layers, names, folders --


def count_targets(denoiser: Any, targets: list[str]) -> int:
    """Matched as PEFT does."""
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=targets[0] if len(targets) == 1 else targets)
    return sum(bool(check_target_module_exists(config, name)) for name, _ in denoiser.named_modules())


@pytest.mark.parametrize(
    ("family", "kind", "config", "millions", "attention", "with_ff"),
    [
        (sd35, SD3Transformer2DModel, SD35_LARGE, 8146.3, 38 * 8 - 1, 38 * 8 - 1 + 38 * 4 - 2),
        (sd35, SD3Transformer2DModel, SD35_MEDIUM, 2469.7, 24 * 8 - 1 + 13 * 4, 24 * 8 - 1 + 13 * 4 + 24 * 4 - 2),
        (flux, FluxTransformer2DModel, FLUX_DEV, 11901.4, 19 * 8 + 38 * 3, 19 * 12 + 38 * 5),
    ],
    ids=("sd35-large", "sd35-medium", "flux-dev"),
)
def test_every_lora_target_of_the_true_sizes_is_found(
    family: Any, kind: Any, config: dict[str, Any], millions: float, attention: int, with_ff: int
) -> None:
    """The last block of SD 3.5 gives no words on, so it lacks to_add_out and the words' feed-forward."""
    with torch.device("meta"):
        denoiser = kind(**config)
    numbers = sum(
        one.numel() for one in denoiser.state_dict().values()
    )  # with SD 3.5's table of places, 226 M of medium
    assert numbers / 1e6 == pytest.approx(millions, rel=1e-4)
    assert count_targets(denoiser, family.lora_targets("attention")) == attention
    assert count_targets(denoiser, family.lora_targets("attention+ff")) == with_ff


@pytest.mark.parametrize("kind", ("attention+ff+conv", "up_blocks"))
def test_layers_that_only_a_unet_has_are_refused(kind: str) -> None:
    for family, name in ((sd35, "Stable Diffusion 3.5"), (flux, "Flux")):
        with pytest.raises(SettingsError) as caught:
            family.lora_targets(kind)
        assert str(caught.value).startswith(f"lora_targets {kind} has no meaning for {name}")
        assert "Use attention or attention+ff." in str(caught.value)


def test_other_tools_get_onetrainers_names_with_alpha() -> None:
    layer = "transformer.transformer_blocks.0.attn.to_out.0"
    down, up, length = noise_of(4, 8), noise_of(6, 4), noise_of(6)
    state = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, f"{layer}.lora_magnitude_vector": length}
    named = flow.for_other_tools(state, 10.0)
    key = "lora_transformer_transformer_blocks_0_attn_to_out_0"
    assert sorted(named) == [f"{key}.{end}" for end in ("alpha", "dora_scale", "lora_down.weight", "lora_up.weight")]
    assert float(named[f"{key}.alpha"]) == 10.0 and torch.equal(named[f"{key}.lora_up.weight"], up)
    assert named[f"{key}.dora_scale"].shape == (6, 1)
    with pytest.raises(AdapterError, match="has no name for other tools"):
        flow.for_other_tools({"text_encoder.x.lora_A.weight": down, "text_encoder.x.lora_B.weight": up}, 1.0)
    with pytest.raises(AdapterError, match="only one half"):
        flow.for_other_tools({f"{layer}.lora_A.weight": down}, 1.0)


def test_a_model_without_t5_is_refused(built: Callable[[str], str], tmp_path: Path) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(built("sd35"), tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_3": [None, None]}))
    with pytest.raises(ModelError, match="has no text_encoder_3, and .* are all needed"):
        sd35.load_tokenizers(str(folder))


def test_layouts_are_read_from_the_configs(built: Callable[[str], str], tmp_path: Path) -> None:
    medium, dev = layouts.layout(built("sd35")), layouts.layout(built("flux"))
    assert (medium.family, dev.family) == ("sd35", "flux") and medium.denoiser == dev.denoiser == "transformer"
    assert (medium.pixel_step, medium.side_px, medium.text_width) == (16, 64, tiny_flow.T5_WIDTH)
    assert (medium.shift_factor, dev.shift_factor) == (0.0609, 0.1159) and dev.size_numbers == 0
    filling = tiny_flow.build_flux(tmp_path / "fill", in_channels=40)
    with pytest.raises(ModelError, match="its transformer is given 40 channels, not the 16 of its latents"):
        layouts.layout(str(filling))
