"""The stages against diffusers' own pipelines, and what they say when something goes wrong."""

import contextlib
import dataclasses
import functools
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from lace_lora import adapter as adapters
from lace_lora import queries, repeats, sampling, stages
from lace_lora.batches import Batch, check_pair
from lace_lora.errors import MachineError, ModelError, SettingsError
from lace_lora.families import memory, sdxl
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder
from lace_lora.sampling import Refining, Sampling
from tests import conftest

# The pipelines that serve as oracles warn of numpy 2; our own path is silent (test_inference has no such filter).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HERE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
PROMPTS, REFINER_PROMPTS = ("a photo of lace", "white leaf"), ("a painting of lace", "white star")
SEEDS = (7, 1000)
STEPS, GUIDANCE, WIDTH, HEIGHT = 6, 5.0, 64, 48
ENSEMBLE, IMG2IMG = Refining("ensemble", 0.7, 0.0), Refining("img2img", 0.0, 0.4)
# As diffusers documents each sampler that is known elsewhere by our name for it.
THEIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"use_karras_sigmas": False}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {"use_karras_sigmas": False}),
    "euler": (EulerDiscreteScheduler, {"use_karras_sigmas": False}),
    "ddim": (DDIMScheduler, {}),
}
SCHEDULERS = list(THEIRS)
LORA = [pytest.param(False, id="base"), pytest.param(True, id="lora")]


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes 0.3 s each time with all these libraries loaded."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


@pytest.fixture(scope="module")
def lora(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> adapters.Adapter:
    """A LoRA that changes the picture much, with alpha ≠ rank."""
    return made_lora(tiny_sdxl, RunFolder(tmp_path_factory.mktemp("runs") / "lace"))


def made_lora(model: Path, folder: RunFolder, **facts: Any) -> adapters.Adapter:
    unet = sdxl.load_denoiser(str(model), torch.float32, "cpu")
    targets = sdxl.lora_targets("attention")
    adapters.attach(unet, "unet", adapters.Shape(4, 8, "attention"), 3)
    generator = torch.Generator().manual_seed(4)
    state = {
        name: tensor if ".lora_A." in name else 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapters.state_of({"unet": unet}).items()
    }
    known = {"family": "sdxl", "base_model": str(model), "rank": 4, "alpha": 8, "lora_targets": tuple(targets)}
    return adapters.save(state, folder, adapters.AdapterFacts(**known | {"versions": {"lace_lora": "0"}} | facts))


@pytest.fixture(scope="module")
def base_pipeline(tiny_sdxl: Path) -> Any:
    return opened(StableDiffusionXLPipeline, tiny_sdxl)


@pytest.fixture(scope="module")
def lora_pipeline(tiny_sdxl: Path, lora: adapters.Adapter) -> Any:
    pipeline = opened(StableDiffusionXLPipeline, tiny_sdxl)
    with quiet():
        pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name)
    return pipeline


@pytest.fixture(scope="module")
def refiner_pipeline(tiny_refiner: Path, base_pipeline: Any) -> Any:
    """As diffusers documents it: the refiner shares the base's VAE and second text encoder."""
    parts = ("vae", "text_encoder_2", "tokenizer_2")
    return opened(
        StableDiffusionXLImg2ImgPipeline, tiny_refiner, **{part: getattr(base_pipeline, part) for part in parts}
    )


def opened(kind: Any, folder: Path, **parts: Any) -> Any:
    with quiet():
        pipeline = kind.from_pretrained(folder, add_watermarker=False, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def same_sampler(name: str, *pipelines: Any, **changes: Any) -> None:
    """Give pipelines a sampler as diffusers documents it, from the first one's config."""
    kind, own = THEIRS[name]
    with quiet():
        config = kind.from_config(pipelines[0].scheduler.config, clip_sample=False, **own).config
        for pipeline in pipelines:
            pipeline.scheduler = kind.from_config(config, **changes)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def asked(**more: Any) -> dict[str, Any]:
    return {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"} | more


def batch_of(prompts: tuple[str, ...] = PROMPTS, negative: str = "grainy", seeds: tuple[int, ...] = SEEDS) -> Batch:
    return Batch(prompts, (negative,) * len(prompts), seeds, WIDTH, HEIGHT)


@functools.cache
def words_of(model: Path) -> stages.Words:
    """Every text that these tests use, encoded once."""
    return stages.encode_prompts(str(model), {*PROMPTS, *REFINER_PROMPTS, "grainy", ""}, **HERE)


def draw(model: Path, batch: Batch, scheduler: str = "dpmpp_2m", **more: Any) -> stages.Drawn:
    words = words_of(model)
    [drawn] = stages.denoise(str(model), [batch], words, Sampling(scheduler, STEPS, GUIDANCE), **more, **HERE)
    return drawn


def touch_up(
    base: Path, refiner: Path, batch: Batch, latents: torch.Tensor, scheduler: str, refining: Refining
) -> torch.Tensor:
    words, sampled = words_of(base), Sampling(scheduler, STEPS, GUIDANCE)
    work = [(batch, latents)]
    [refined] = stages.refine(str(refiner), work, words, sampled, refining, base_model=str(base), **HERE)
    return refined


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal within the rounding of float32: 1e-5 of the values' own size."""
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def watch_networks(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Every network that is loaded from now on; loading one while another is in memory fails."""
    loaded_ones: list[weakref.ref[Any]] = []

    def counted(load: Any) -> Any:
        def loading(*given: Any) -> Any:
            assert not [one for one in loaded_ones if one() is not None], "the one before is still there"
            loaded = load(*given)
            loaded_ones.extend(map(weakref.ref, loaded.encoders if isinstance(loaded, sdxl.TextParts) else [loaded]))
            return loaded

        return loading

    for name in ("load_text", "load_denoiser", "load_vae"):
        monkeypatch.setattr(sdxl, name, counted(getattr(sdxl, name)))
    return loaded_ones


@pytest.mark.parametrize("with_lora", LORA)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_L15_the_base_alone_equals_the_base_pipeline(
    tiny_sdxl: Path, base_pipeline: Any, lora_pipeline: Any, lora: Any, scheduler: str, with_lora: bool
) -> None:
    pipeline = lora_pipeline if with_lora else base_pipeline
    ours = draw(tiny_sdxl, batch_of(), scheduler, lora=lora if with_lora else None).finished_BCHW
    same_sampler(scheduler, pipeline)
    told = {"prompt": list(PROMPTS), "negative_prompt": ["grainy"] * 2}
    theirs = pipeline(**told, **asked(width=WIDTH, height=HEIGHT, generator=generators())).images
    assert_same(ours, theirs)


@pytest.mark.parametrize("with_lora", LORA)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_L7_an_ensemble_equals_both_pipelines_with_denoising_end_and_start(
    tiny_sdxl: Path, tiny_refiner: Path, base_pipeline: Any, lora_pipeline: Any, refiner_pipeline: Any, lora: Any,
    scheduler: str, with_lora: bool,
) -> None:  # fmt: skip
    pipeline = lora_pipeline if with_lora else base_pipeline
    drawn = draw(tiny_sdxl, batch_of(), scheduler, refining=ENSEMBLE, lora=lora if with_lora else None)
    assert drawn.handed_over_BCHW is not None
    ours = touch_up(tiny_sdxl, tiny_refiner, batch_of(REFINER_PROMPTS), drawn.handed_over_BCHW, scheduler, ENSEMBLE)

    same_sampler(scheduler, pipeline, refiner_pipeline)
    told = {"negative_prompt": ["grainy"] * 2}
    sizes = asked(width=WIDTH, height=HEIGHT, generator=generators())
    noisy = pipeline(list(PROMPTS), **told, denoising_end=0.7, **sizes).images
    assert_same(drawn.handed_over_BCHW, noisy)
    theirs = refiner_pipeline(list(REFINER_PROMPTS), image=noisy, **told, denoising_start=0.7, **asked()).images
    assert_same(ours, theirs)


@pytest.mark.parametrize("with_lora", LORA)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_L7_img2img_equals_the_img2img_pipeline(
    tiny_sdxl: Path, tiny_refiner: Path, base_pipeline: Any, lora_pipeline: Any, refiner_pipeline: Any, lora: Any,
    scheduler: str, with_lora: bool,
) -> None:  # fmt: skip
    pipeline = lora_pipeline if with_lora else base_pipeline
    drawn = draw(tiny_sdxl, batch_of(), scheduler, refining=IMG2IMG, lora=lora if with_lora else None)
    assert drawn.handed_over_BCHW is None
    ours = touch_up(tiny_sdxl, tiny_refiner, batch_of(REFINER_PROMPTS), drawn.finished_BCHW, scheduler, IMG2IMG)

    same_sampler(scheduler, pipeline, refiner_pipeline)
    told = {"negative_prompt": ["grainy"] * 2}
    going_on = generators()  # the base draws from them first: the refiner's noise is their next draw
    whole = pipeline(list(PROMPTS), **told, **asked(width=WIDTH, height=HEIGHT, generator=going_on)).images
    theirs = refiner_pipeline(
        list(REFINER_PROMPTS), image=whole, **told, strength=0.4, **asked(generator=going_on)
    ).images
    assert_same(ours, theirs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_P3_guidance_that_ends_early_equals_the_pipeline_that_is_told_to(
    tiny_sdxl: Path, base_pipeline: Any, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last third of the steps without the unwanted half: the pipeline does it in a callback."""
    passes: list[int] = []
    predict = sdxl.predict
    monkeypatch.setattr(
        sdxl, "predict", lambda unet, cells, *rest: (passes.append(len(cells)), predict(unet, cells, *rest))[1]
    )
    sampled = Sampling(scheduler, STEPS, GUIDANCE, guidance_until=0.7)
    [drawn] = stages.denoise(str(tiny_sdxl), [batch_of()], words_of(tiny_sdxl), sampled, **HERE)
    guided = round(0.7 * STEPS)
    assert passes == [4] * guided + [2] * (STEPS - guided)

    def end_guidance(pipeline: Any, step: int, time: Any, kept: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == guided:
            pipeline._guidance_scale = 0.0
            return {name: value.chunk(2)[1] for name, value in kept.items()}
        return kept

    same_sampler(scheduler, base_pipeline)
    told = {"prompt": list(PROMPTS), "negative_prompt": ["grainy"] * 2}
    theirs = base_pipeline(
        **told, **asked(width=WIDTH, height=HEIGHT, generator=generators()), callback_on_step_end=end_guidance,
        callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds", "add_time_ids"],
    ).images  # fmt: skip
    assert_same(drawn.finished_BCHW, theirs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_P3_beginning_from_a_picture_equals_the_img2img_pipeline(
    tiny_sdxl: Path, base_pipeline: Any, scheduler: str
) -> None:
    """A sketch or photograph as start: the same latents, noise and steps as diffusers' pipeline of the base."""
    sketch = Image.effect_mandelbrot((WIDTH, HEIGHT), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    start = stages.encode_start(sketch, str(tiny_sdxl), WIDTH, HEIGHT, device="cpu")
    sampled = Sampling(scheduler, STEPS, GUIDANCE, start_strength=0.6)
    begun = dataclasses.replace(batch_of(), start_CHW=start)
    [drawn] = stages.denoise(str(tiny_sdxl), [begun], words_of(tiny_sdxl), sampled, **HERE)

    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
    parts = {name: getattr(base_pipeline, name) for name in names}
    pipeline = opened(StableDiffusionXLImg2ImgPipeline, tiny_sdxl, **parts)
    same_sampler(scheduler, pipeline)
    told = {"prompt": list(PROMPTS), "negative_prompt": ["grainy"] * 2}
    theirs = pipeline(**told, image=torch.stack([start] * 2), strength=0.6, **asked(generator=generators())).images
    assert_same(drawn.finished_BCHW, theirs)
    assert not torch.equal(drawn.finished_BCHW, draw(tiny_sdxl, batch_of(), scheduler).finished_BCHW)


def test_a_start_that_leaves_the_base_no_step_is_refused(tiny_sdxl: Path) -> None:
    """P3: with the strength that would do."""
    start = torch.zeros(4, HEIGHT // 8, WIDTH // 8)
    sampled = Sampling("euler", STEPS, GUIDANCE, start_strength=0.2)
    begun = dataclasses.replace(batch_of(), start_CHW=start)
    with pytest.raises(
        SettingsError, match=r"start_strength 0\.2 .* before the refiner takes over\. Use start_strength"
    ):
        list(stages.denoise(str(tiny_sdxl), [begun], words_of(tiny_sdxl), sampled, refining=ENSEMBLE, **HERE))


@pytest.fixture(scope="module")
def whole_lora(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> adapters.Adapter:
    """A LoRA of everything that one can be of: attention, feed-forward, convolutions and both text encoders."""
    unet, text = (
        sdxl.load_denoiser(str(tiny_sdxl), torch.float32, "cpu"),
        sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu"),
    )
    parts = {"unet": unet, "text_encoder": text.encoders[0], "text_encoder_2": text.encoders[1]}
    for part, module in parts.items():
        adapters.attach(module, part, adapters.Shape(4, 8, "attention+ff+conv"), 3)
    chance = torch.Generator().manual_seed(4)
    state = {
        name: tensor if ".lora_A." in name else 0.1 * torch.randn(tensor.shape, generator=chance)
        for name, tensor in adapters.state_of(parts).items()
    }
    facts = adapters.AdapterFacts(
        "sdxl", str(tiny_sdxl), 4, 8, tuple(sdxl.lora_targets("attention+ff+conv")), train_text_encoder=True,
        versions={"lace_lora": "0"},
    )  # fmt: skip
    return adapters.save(state, RunFolder(tmp_path_factory.mktemp("runs") / "whole"), facts)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_L7_a_lora_of_text_and_convolutions_equals_both_pipelines_at_any_scale(
    tiny_sdxl: Path, tiny_refiner: Path, base_pipeline: Any, refiner_pipeline: Any, whole_lora: Any, scale: float
) -> None:
    """By load_lora_weights and diffusers' own scale; the refiner reads its prompts without the LoRA."""
    with_lora: dict[str, Any] = {"lora": whole_lora, "lora_scale": scale}
    words = stages.encode_prompts(str(tiny_sdxl), {*PROMPTS, "grainy"}, **with_lora, **HERE)
    sampled = Sampling("dpmpp_2m", STEPS, GUIDANCE)
    [drawn] = stages.denoise(str(tiny_sdxl), [batch_of()], words, sampled, refining=ENSEMBLE, **with_lora, **HERE)
    assert drawn.handed_over_BCHW is not None
    ours = touch_up(tiny_sdxl, tiny_refiner, batch_of(REFINER_PROMPTS), drawn.handed_over_BCHW, "dpmpp_2m", ENSEMBLE)

    pipeline = opened(StableDiffusionXLPipeline, tiny_sdxl)
    with quiet():
        pipeline.load_lora_weights(whole_lora.path.parent, weight_name=whole_lora.path.name)
    same_sampler("dpmpp_2m", pipeline, refiner_pipeline)
    told = {"prompt": list(PROMPTS), "negative_prompt": ["grainy"] * 2, "cross_attention_kwargs": {"scale": scale}}
    sizes: dict[str, Any] = {"width": WIDTH, "height": HEIGHT}
    assert_same(drawn.finished_BCHW, pipeline(**told, **asked(**sizes, generator=generators())).images)
    noisy = pipeline(**told, denoising_end=0.7, **asked(**sizes, generator=generators())).images
    assert_same(drawn.handed_over_BCHW, noisy)
    theirs = refiner_pipeline(
        list(REFINER_PROMPTS), image=noisy, negative_prompt=["grainy"] * 2, denoising_start=0.7, **asked()
    ).images
    assert_same(ours, theirs)
    same_sampler("dpmpp_2m", base_pipeline)
    without = base_pipeline(list(PROMPTS), negative_prompt=["grainy"] * 2, **asked(**sizes, generator=generators()))
    assert float((without.images - drawn.finished_BCHW).abs().max()) > 0.1


@pytest.mark.parametrize("repeat", ["none", "straight"])
def test_L15_a_fused_lora_draws_what_the_one_of_peft_draws_while_it_is_trained(
    tiny_sdxl: Path, whole_lora: Any, repeat: Any
) -> None:
    """Also as a repeat: a LoRA's own convolutions are padded like those that they lie on."""
    batch = Batch(PROMPTS, ("grainy",) * 2, SEEDS, 64, 64)
    words, sampled = words_of(tiny_sdxl), Sampling("euler", STEPS, GUIDANCE, repeat=repeat)
    [fused] = stages.denoise(str(tiny_sdxl), [batch], words, sampled, lora=whole_lora, **HERE)
    unet = sdxl.load_denoiser(str(tiny_sdxl), torch.float32, "cpu")
    adapters.attach(unet, "unet", adapters.Shape(4, 8, "attention+ff+conv"), 3)
    with torch.no_grad():
        for name, one in adapters.parameters({"unet": unet}).items():
            one.copy_(whole_lora.state[name])
    [wrapped] = stages.denoise_with(unet, str(tiny_sdxl), [batch], words, sampled, device="cpu")
    assert_same(fused.finished_BCHW, wrapped.finished_BCHW)


@pytest.mark.parametrize("repeat", ["straight", "half-drop"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_L15_rolled_noise_draws_the_rolled_picture_through_base_and_refiner(
    tiny_sdxl: Path, tiny_refiner: Path, scheduler: str, repeat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sampler, in both ways to refine."""
    batch = Batch(PROMPTS[:1], ("grainy",), SEEDS[:1], 64, 64)

    def refined() -> list[torch.Tensor]:
        sampled, words, found = Sampling(scheduler, STEPS, GUIDANCE, repeat=repeat), words_of(tiny_sdxl), []
        for refining in (ENSEMBLE, IMG2IMG):
            [drawn] = stages.denoise(str(tiny_sdxl), [batch], words, sampled, refining=refining, **HERE)
            left = drawn.finished_BCHW if drawn.handed_over_BCHW is None else drawn.handed_over_BCHW
            found += stages.refine(
                str(tiny_refiner), [(batch, left)], words, sampled, refining, base_model=str(tiny_sdxl), **HERE
            )
        return found

    plain = refined()
    monkeypatch.setattr(
        stages, "noise", lambda *given, **more: repeats.rolled(sampling.noise(*given, **more), repeat, 4, 12)
    )
    for moved, one in zip(refined(), plain, strict=True):
        wanted = repeats.rolled(one, repeat, 4, 12)
        assert float((moved - wanted).abs().max()) <= 1e-4 * float(one.abs().max())
        assert float((moved - one).abs().max()) > 0.1 * float(one.abs().max())


def test_L15_edges_joined_from_a_step_on_are_those_of_a_pipeline_that_is_padded_in_the_middle(
    tiny_sdxl: Path, base_pipeline: Any
) -> None:
    """The first half is the picture with edges, bit for bit; and the UNet has its own padding back, stopped or not."""
    batch = Batch(PROMPTS, ("grainy",) * 2, SEEDS, 64, 64)
    half = Refining("ensemble", 0.5, 0)

    def drawn(**more: Any) -> stages.Drawn:
        sampled = Sampling("euler", STEPS, GUIDANCE, **more)
        [found] = stages.denoise(str(tiny_sdxl), [batch], words_of(tiny_sdxl), sampled, refining=half, **HERE)
        return found

    plain, late, early = drawn(), drawn(repeat="half-drop", repeat_from=0.5), drawn(repeat="half-drop")
    assert plain.handed_over_BCHW is not None and late.handed_over_BCHW is not None
    assert torch.equal(late.handed_over_BCHW, plain.handed_over_BCHW)
    for other in (plain, early):
        assert float((late.finished_BCHW - other.finished_BCHW).abs().max()) > 0.1

    same_sampler("euler", base_pipeline)
    with contextlib.ExitStack() as joined:

        def join(pipeline: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
            if step == STEPS // 2 - 1:
                joined.enter_context(repeats.padded(pipeline.unet, "half-drop"))
            return given

        theirs = base_pipeline(
            list(PROMPTS), negative_prompt=["grainy"] * 2, width=64, height=64, callback_on_step_end=join,
            **asked(generator=generators()),
        ).images  # fmt: skip
    assert_same(late.finished_BCHW, theirs)

    unet = sdxl.load_denoiser(str(tiny_sdxl), torch.float32, "cpu")
    fine, broken = words_of(tiny_sdxl), {**words_of(tiny_sdxl)}
    sampled = Sampling("euler", STEPS, GUIDANCE, repeat="half-drop", repeat_from=0.5)
    before = [one.padding_mode for one in unet.modules() if isinstance(one, torch.nn.Conv2d)]
    [first] = stages.denoise_with(unet, str(tiny_sdxl), [batch], fine, sampled, device="cpu")
    broken["grainy"] = sdxl.Encoded(fine["grainy"].text_BLD * float("nan"), fine["grainy"].pooled_BP)
    with pytest.raises(MachineError, match="NaN"):
        list(stages.denoise_with(unet, str(tiny_sdxl), [batch], broken, sampled, device="cpu"))
    [again] = stages.denoise_with(unet, str(tiny_sdxl), [batch], fine, sampled, device="cpu")
    assert torch.equal(first.finished_BCHW, again.finished_BCHW)
    assert [one.padding_mode for one in unet.modules() if isinstance(one, torch.nn.Conv2d)] == before


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [30, 80])
def test_L7_every_sampler_shares_its_steps_between_base_and_refiner(
    tiny_sdxl: Path, scheduler: str, steps: int
) -> None:
    """One pass a step, the base's in more noise than the refiner's. Karras puts more steps into little noise, so that
    the refiner has more of them, and when there are many has whole times twice."""
    made = sdxl.make_sampler(scheduler, str(tiny_sdxl), steps, (8, 8))
    begin = sampling.refiner_begin(made, steps, Refining("ensemble", 0.85, 0))
    times = made.timesteps.tolist()
    assert len(times) == steps and getattr(made, "order", 1) == 1
    assert min(times[:begin]) >= 150 > max(times[begin:]) and 0.6 * steps < begin < steps


def test_L17_no_negative_prompt_is_zeros_for_the_base_and_the_empty_text_for_the_refiner(
    tiny_sdxl: Path, tiny_refiner: Path, base_pipeline: Any, refiner_pipeline: Any
) -> None:
    drawn = draw(tiny_sdxl, batch_of(negative=""), "euler")
    ours = touch_up(tiny_sdxl, tiny_refiner, batch_of(REFINER_PROMPTS, ""), drawn.finished_BCHW, "euler", IMG2IMG)
    same_sampler("euler", base_pipeline, refiner_pipeline)
    going_on = generators()
    whole = base_pipeline(list(PROMPTS), **asked(width=WIDTH, height=HEIGHT, generator=going_on)).images
    assert_same(drawn.finished_BCHW, whole)
    theirs = refiner_pipeline(list(REFINER_PROMPTS), image=whole, strength=0.4, **asked(generator=going_on)).images
    assert_same(ours, theirs)
    assert not torch.allclose(draw(tiny_sdxl, batch_of(negative="grainy"), "euler").finished_BCHW, whole, atol=1e-3)


def test_without_guidance_the_unwanted_half_is_not_computed(tiny_sdxl: Path, base_pipeline: Any) -> None:
    [ours] = stages.denoise(str(tiny_sdxl), [batch_of()], words_of(tiny_sdxl), Sampling("euler", STEPS, 1.0), **HERE)
    same_sampler("euler", base_pipeline)
    sizes = asked(width=WIDTH, height=HEIGHT, generator=generators(), guidance_scale=1.0)
    assert_same(ours.finished_BCHW, base_pipeline(list(PROMPTS), **sizes).images)


@pytest.fixture(scope="module")
def small_cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A v-predicting base with 4 px a latent cell, like the demo's, and an ε-predicting refiner to it."""
    folder = tmp_path_factory.mktemp("models")
    base = conftest.build_tiny_sdxl(folder / "base", prediction_type="v_prediction")
    refiner = conftest.build_tiny_refiner(folder / "refiner")
    levels = {"block_out_channels": (4, 4, 8), "down_block_types": ("DownEncoderBlock2D",) * 3}
    config = conftest.vae_config() | levels | {"up_block_types": ("UpDecoderBlock2D",) * 3, "scaling_factor": 1.0}
    for model in (base, refiner):
        shutil.rmtree(model / "vae")
        AutoencoderKL(**config).eval().save_pretrained(model / "vae")
    return base, refiner


def test_a_model_of_other_sizes_and_prediction_type_equals_its_pipelines_too(small_cells: tuple[Path, Path]) -> None:
    base, refiner = small_cells
    drawn = draw(base, batch_of(), refining=ENSEMBLE)
    assert drawn.finished_BCHW.shape == (2, 4, HEIGHT // 4, WIDTH // 4) and drawn.handed_over_BCHW is not None
    ours = touch_up(base, refiner, batch_of(REFINER_PROMPTS), drawn.handed_over_BCHW, "dpmpp_2m", ENSEMBLE)

    first = opened(StableDiffusionXLPipeline, base)
    parts = {"vae": first.vae, "text_encoder_2": first.text_encoder_2, "tokenizer_2": first.tokenizer_2}
    second = opened(StableDiffusionXLImg2ImgPipeline, refiner, **parts)
    same_sampler("dpmpp_2m", first, second)
    same_sampler("dpmpp_2m", second, prediction_type="epsilon")  # the same schedule, by what this UNet predicts
    told = {"negative_prompt": ["grainy"] * 2}
    sizes = asked(width=WIDTH, height=HEIGHT, generator=generators())
    noisy = first(list(PROMPTS), **told, denoising_end=0.7, **sizes).images
    theirs = second(list(REFINER_PROMPTS), image=noisy, **told, denoising_start=0.7, **asked()).images
    assert_same(ours, theirs)


def test_decoded_pictures_equal_the_pipelines_to_one_grey_level(tiny_sdxl: Path, base_pipeline: Any) -> None:
    ours = list(stages.draw_plain(
        str(tiny_sdxl), PROMPTS, SEEDS, WIDTH, HEIGHT, steps=STEPS, guidance_scale=GUIDANCE, negative_prompt="grainy",
        batch=2, say=lambda line: None, **HERE,
    ))  # fmt: skip
    same_sampler("dpmpp_2m", base_pipeline)
    sizes = asked(width=WIDTH, height=HEIGHT, generator=generators(), output_type="pil")
    theirs = base_pipeline(list(PROMPTS), negative_prompt=["grainy"] * 2, **sizes).images
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == other.size == (WIDTH, HEIGHT)
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 1


def test_a_picture_is_the_same_alone_and_in_a_batch(tiny_sdxl: Path) -> None:
    """L6: each picture's own seed gives its own noise."""
    together = draw(tiny_sdxl, batch_of())
    alone = draw(tiny_sdxl, batch_of(PROMPTS[1:], seeds=SEEDS[1:]))
    assert_same(together.finished_BCHW[1:], alone.finished_BCHW)


def test_a_scale_of_zero_is_the_base_model(tiny_sdxl: Path, lora: Any) -> None:
    plain, none, whole = (
        draw(tiny_sdxl, batch_of(), lora=one, lora_scale=scale).finished_BCHW
        for one, scale in ((None, 1.0), (lora, 0.0), (lora, 1.0))
    )
    assert torch.equal(plain, none) and not torch.allclose(plain, whole, atol=1e-2)


def test_there_is_never_more_than_one_network_in_memory(
    tiny_sdxl: Path, tiny_refiner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # here memory is really given back
    alive = watch_networks(monkeypatch)
    words_of.cache_clear()
    drawn = draw(tiny_sdxl, batch_of(), refining=ENSEMBLE)
    assert drawn.handed_over_BCHW is not None
    refined = touch_up(tiny_sdxl, tiny_refiner, batch_of(), drawn.handed_over_BCHW, "dpmpp_2m", ENSEMBLE)
    list(stages.decode(str(tiny_sdxl), [("one", refined[0])], device="cpu"))
    assert len(alive) == 5 and not [one for one in alive if one() is not None]


@pytest.mark.parametrize(
    ("refining", "said"),
    [
        (
            Refining("img2img", 0, 0.1),
            "refine_strength 0.1 of 8 steps leaves the refiner none. Use num_inference_steps 10",
        ),
        (
            Refining("ensemble", 0.9995, 0),
            "refiner_start 0.9995 of 8 steps leaves the refiner none. Use a smaller refiner_start",
        ),
        (
            Refining("ensemble", 0.01, 0),
            "refiner_start 0.01 of 8 steps leaves the base none. Use a larger refiner_start",
        ),
    ],
)
def test_a_refiner_or_base_without_a_step_is_refused(tiny_sdxl: Path, refining: Refining, said: str) -> None:
    """In diffusers the first raises IndexError and the others leave a noisy or an unrefined picture."""
    scheduler = sdxl.make_sampler("euler", str(tiny_sdxl), 8, (8, 8))
    with pytest.raises(SettingsError, match=said):
        sampling.refiner_begin(scheduler, 8, refining)
    ten = sdxl.make_sampler("euler", str(tiny_sdxl), 10, (8, 8))
    assert sampling.refiner_begin(ten, 10, Refining("img2img", 0, 0.1)) == 9


def test_thirty_steps_are_shared_by_base_and_refiner(tiny_sdxl: Path) -> None:
    """L17: an ensemble's steps are counted together."""
    scheduler = sdxl.make_sampler("dpmpp_2m", str(tiny_sdxl), 30, (8, 8))
    assert len(scheduler.timesteps) == 30
    assert sampling.refiner_begin(scheduler, 30, Refining("ensemble", 0.85, 0)) == 26
    assert sampling.refiner_begin(scheduler, 30, Refining("img2img", 0, 0.3)) == 21


def test_ddim_does_not_clip_latents_unless_the_model_says_so(tiny_sdxl: Path) -> None:
    assert sdxl.make_sampler("ddim", str(tiny_sdxl), 8, (8, 8)).config.clip_sample is False


def test_the_refiners_noise_is_neither_the_pictures_own_nor_anothers() -> None:
    """torch's CPU generator drops all but 32 bits of a seed, so a shifted seed would repeat some picture's noise."""
    cells = (4, 8, 8)
    first, second = (sampling.noise([7], cells, draw=draw) for draw in (1, 2))
    assert torch.equal(sampling.noise([7 + 2**32], cells), first)
    others = [sampling.noise([seed], cells) for seed in range(50)]
    assert not [one for one in others if torch.allclose(one, second)]
    assert torch.equal(sampling.noise([7, 8], cells, draw=2)[:1], second)


def test_nan_while_drawing_names_the_picture(tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(unet: Any, noisy: torch.Tensor, *rest: Any) -> torch.Tensor:
        predicted = torch.zeros_like(noisy)
        predicted[1::2] = torch.nan
        return predicted

    monkeypatch.setattr(sdxl, "predict", overflow)
    with pytest.raises(MachineError, match="^The picture of seed 1000 became NaN while drawing.*mixed_precision no"):
        draw(tiny_sdxl, batch_of())


@pytest.mark.parametrize(
    ("error", "who"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "The GPU"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "This computer"),
    ],
)
def test_L19_running_out_of_memory_names_what_to_try(
    tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, who: str
) -> None:
    def too_much(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(sdxl, "predict", too_much)
    knobs = (
        f"^{who} ran out of memory while drawing. Next to try: smaller width and height, quantization nf4.*refine none"
    )
    with pytest.raises(MachineError, match=knobs):
        draw(tiny_sdxl, batch_of())


def test_other_errors_keep_their_name(tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(sdxl, "predict", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        draw(tiny_sdxl, batch_of())


def test_a_refiner_for_other_latents_is_refused(tiny_sdxl: Path, small_cells: tuple[Path, Path]) -> None:
    check_pair(str(small_cells[0]), str(small_cells[1]))
    with pytest.raises(ModelError, match="does not fit the base .* Choose the refiner that belongs to this base"):
        check_pair(str(tiny_sdxl), str(small_cells[1]))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a photo of <myspecialstyle>", "a photo of a painting"),
        ("a photo of <myspecialstyle> with leaves", "a photo of a painting with leaves"),
        ("a fine <MySpecialStyle> doily", "a fine a painting doily"),
        ("a <myspecialstyle> doily", "a painting doily"),
        ("<myspecialstyle> rosette on blue", "a photo of a painting, rosette on blue"),
        ("<myspecialstyle>, rosette", "a photo of a painting, rosette"),
        ("<myspecialstyle>", "a photo of a painting"),
        ("plain stripes", "plain stripes"),
    ],
)
def test_the_refiner_gets_class_words_in_place_of_the_token_it_never_saw(prompt: str, told: str) -> None:
    assert queries.refiner_prompt(prompt, "<myspecialstyle>", "a photo of a painting") == told
