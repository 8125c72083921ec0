"""One life for every family: cache, train 12 steps, kill, resume, adapter, designs; the same assertions for all (P20).

Whatever differs between base models is in their files of lace_lora/families and, here, in the table below.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lace_lora import (
    adapter,
    backends,
    cache,
    checkpoint,
    config,
    cuts,
    families,
    foreign,
    inference,
    losses,
    package,
    parts,
    schedule,
    stages,
    train,
)
from lace_lora.commissions import Limits, commission_model
from lace_lora.config import Config
from lace_lora.data_utils import open_picture
from lace_lora.errors import AdapterError, SettingsError
from lace_lora.families import flux, limits
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded
from lace_lora.run_folder import RunFolder
from lace_lora.sampling import Sampling
from lace_lora.studio import Studio
from tests.conftest import build_tiny_sdxl, draw_lace
from tests.tiny_flow import build_flux, build_sd35
from tests.tiny_models import build_tiny_sd15
from tests.training import assert_same, parts_and_pictures, quietly

STEPS, KILLED_AT = 12, 8
PROMPT, NEGATIVE = "a photo of <lace> leaf", "grainy"


@dataclass(frozen=True)
class Kind:
    """What a family's test needs beside the family itself.

    build    writes a small model folder
    sampler  a name of the setting scheduler, and its class in diffusers
    guided   what the pipeline is asked beside prompt, steps, size and seed
    unpacked the pipeline's latents in the shape of ours
    deaf     layers that can learn nothing, because nothing of what they say is used
    """

    build: Callable[[Path], Path]
    sampler: tuple[str, str]
    guided: dict[str, Any]
    unpacked: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda theirs, ours: theirs  # noqa: E731
    deaf: tuple[str, ...] = ()


GUIDED = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}
KINDS = {
    "sdxl": Kind(build_tiny_sdxl, ("euler", "EulerDiscreteScheduler"), GUIDED),
    "sd15": Kind(build_tiny_sd15, ("euler", "EulerDiscreteScheduler"), GUIDED),
    "sd35": Kind(
        build_sd35, ("euler", "FlowMatchEulerDiscreteScheduler"), GUIDED,
        deaf=("transformer.transformer_blocks.2.attn.add_q_proj.lora_B.weight",),  # the last block gives no words on
    ),
    "flux": Kind(
        build_flux, ("euler", "FlowMatchEulerDiscreteScheduler"), {"guidance_scale": 3.5},
        unpacked=lambda theirs, ours: flux.unpack(theirs, ours.shape[-2:]),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Life:
    """A finished life: settings of a run that was killed and went on, and of the same run unbroken."""

    name: str
    model: str
    broken: Config
    whole: Config

    @property
    def adapter(self) -> adapter.Adapter:
        """What the killed run has learnt."""
        return adapter.load(RunFolder.of(self.broken).root)


@pytest.fixture(scope="module", params=KINDS)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Two trainings with the same settings; the process of one is killed between two of its checkpoints."""
    folder, kind = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    pictures = draw_lace(folder / "pictures", ((64, 64), (96, 64), (64, 64), (72, 72)))
    model = kind.build(folder / "model")
    settings = config.load(
        preset="none", pretrained_model=str(model), images_dir=str(pictures), lora_output_dir=str(folder / "out"),
        cache_dir=str(folder / "cache"), run_name="whole", resolution=64, rank=4, alpha=8, max_train_steps=STEPS,
        train_batch_size=2, gradient_accumulation_steps=1, learning_rate=1e-2, checkpoint_every=5, log_with="none",
        concept_token="<lace>", instance_prompt="a photo of <lace>", caption_dropout=0.3, validation_fraction=0,
        random_flip=False, mixed_precision="no",
    )  # fmt: skip
    broken = settings.model_copy(update={"run_name": "broken"})
    train.run(settings, say=quietly)
    killed = os.fork()
    if not killed:  # what a session's end does to a run; nothing of the child gets any further
        train.run(broken, say=quietly, show=_kill_itself)
        os._exit(0)
    assert os.waitpid(killed, 0)[1] == signal.SIGKILL
    assert checkpoint.newest(RunFolder.of(broken).checkpoints)[0].name.endswith("5")
    train.run(broken, say=quietly)
    return Life(request.param, str(model), broken, settings)


def _kill_itself(step: train.Step) -> None:
    if step.number == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_ends_as_an_unbroken_one(life: Life) -> None:
    """P22: bit for bit, weights, optimizer and losses."""
    assert_same(RunFolder.of(life.whole), RunFolder.of(life.broken))
    unlearnt = [name for name, one in life.adapter.state.items() if "lora_B" in name and not bool(one.any())]
    assert unlearnt == list(KINDS[life.name].deaf)


def test_cached_losses_are_those_of_pictures_encoded_anew(life: Life) -> None:
    """The whole path again without cache: decode, cut, encode, read the caption or the empty text, mix, compare."""
    family, model = families.named(life.name), life.model
    settings, _ = limits.within(life.whole.model_copy(update={"caption_dropout": 0.5}), life.name)
    made, encoded = parts_and_pictures(settings)
    vae, text = family.load_vae(model, torch.float32, "cpu"), family.load_text(model, torch.float32, "cpu")
    wordless = 0
    for number in range(3):
        cached = losses.losses_of_batch(made, encoded, number, settings)
        for place, visit in enumerate(encoded.stream.batch(number)):
            sample = encoded.cache.samples[visit.sample]
            shape = encoded.cache.latent_shape(visit.sample, visit.variant)
            chance = schedule.draw(encoded.stream, visit, shape, 0.5, settings.noise_offset)
            wordless += chance.is_wordless
            cut = sample.cuts[visit.variant]
            mean, std = family.encode_images(vae, cuts.pixels_of(open_picture(sample.path), cut)[None])
            latents = family.scale_latents(mean + std * chance.spread_CHW, layout(model))
            words = family.encode_captions(text, ["" if chance.is_wordless else sample.caption])
            if chance.is_wordless and family.WORDLESS == "zeros":
                words = Encoded(torch.zeros_like(words.text_BLD), torch.zeros_like(words.pooled_BP))
            times = family.times(made.noising, torch.tensor([chance.within], dtype=torch.float64))
            noise_BCHW = chance.noise_CHW[None]
            with torch.no_grad():
                noisy = family.add_noise(made.noising, latents, noise_BCHW, times)
                said = family.predict(made.denoiser, noisy, times, words, cache.size_numbers(family, cut)[None])
            error = (said - family.target(made.noising, latents, noise_BCHW, times)).square().mean()
            loss = float(error * family.weights(made.noising, times, settings.min_snr_gamma))
            assert float(cached[place].detach()) == pytest.approx(loss, rel=1e-5)
    assert 0 < wordless < 6


def test_the_pipeline_takes_every_tensor_of_the_adapter_and_draws_what_we_draw(life: Life) -> None:
    """P23, P24: diffusers' load_lora_weights and whole pipeline, against our stages with the LoRA fused."""
    import diffusers

    kind, found = KINDS[life.name], life.adapter
    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(life.model)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(found.path.parent, weight_name=found.path.name)
    denoiser = getattr(pipeline, families.named(life.name).DENOISER)
    loaded = [one.detach() for name, one in denoiser.named_parameters() if "lora_" in name]
    assert len(loaded) == len(found.state)
    assert sum(float(one.detach().abs().sum()) for one in loaded) == pytest.approx(
        sum(float(one.abs().sum()) for one in found.state.values()), rel=1e-6
    )
    pipeline.scheduler = getattr(diffusers, kind.sampler[1]).from_config(pipeline.scheduler.config)
    side = 64
    with quiet():
        theirs = pipeline(
            PROMPT, num_inference_steps=4, height=side, width=side, output_type="latent",
            generator=torch.Generator().manual_seed(3), **kind.guided,
        ).images  # fmt: skip

    batches = stages.in_batches([PROMPT], [NEGATIVE], [3], side, side, 1)
    words = stages.encode_prompts(life.model, stages.texts_of(batches), dtype=torch.float32, device="cpu")
    sampling = Sampling(kind.sampler[0], 4, kind.guided["guidance_scale"])
    (ours,) = stages.denoise(life.model, batches, words, sampling, lora=found, dtype=torch.float32, device="cpu")
    assert torch.allclose(ours.finished_BCHW, kind.unpacked(theirs, ours.finished_BCHW), atol=1e-4)


def test_a_sheet_is_drawn_with_what_was_learnt(life: Life) -> None:
    """P26: and what the family cannot do is chosen otherwise and said, or refused where it was asked for."""
    lines: list[str] = []
    asked = {"prompts": (PROMPT,), "num_images": 2, "num_inference_steps": 2, "scheduler": KINDS[life.name].sampler[0]}
    has_refiner = life.name == "sdxl"
    drawn = life.broken.model_copy(update=asked | ({"refine": "none"} if has_refiner else {}))
    made = inference.run(drawn, say=lines.append)
    assert len(made) == 2 and all(one.base.is_file() for one in made) and made.is_complete
    if not has_refiner:
        assert any(line.startswith("refine: none is used, because ") and "has no refiner" in line for line in lines)
        with pytest.raises(SettingsError, match="refine is img2img, but .* has no refiner. Set refine none"):
            inference.run(drawn.model_copy(update={"refine": "img2img"}), say=quietly)


def test_the_file_for_other_programs_loads_too(life: Life) -> None:
    """P24: as many layers, and its alpha in it."""
    run = RunFolder.of(life.broken)
    others = load_file(run.adapter_for_tools)
    assert sum(name.endswith(".alpha") for name in others) == len(life.adapter.state) // 2
    assert json.loads(run.adapter_card.read_text(encoding="utf-8"))["family"] == life.name
    assert parts.shape_of(life.whole).strength == 2.0
    assert {float(one) for name, one in others.items() if name.endswith(".alpha")} == {8.0}


def test_a_package_says_what_its_lora_is_for(life: Life) -> None:
    """P25: the card, the tags and the example are true of the family."""
    label, tag, said = {
        "sdxl": ("Stable Diffusion XL", "stable-diffusion-xl", "negative_prompt="),
        "sd15": ("Stable Diffusion 1.5 or 2", "stable-diffusion", "negative_prompt="),
        "sd35": ("Stable Diffusion 3.5", "sd3", "negative_prompt="),
        "flux": ("Flux.1", "flux", "guidance_scale=5)"),
    }[life.name]
    made = package.run(RunFolder.of(life.broken), say=quietly)
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert f"A LoRA for {label}, made with Lace LoRA." in card and f"\n- {tag}\n" in card
    example = (made.folder / "example.py").read_text(encoding="utf-8")
    assert said in example and ("negative_prompt" in example) is (life.name != "flux")
    flow = json.loads((made.folder / "comfyui_workflow_api.json").read_text(encoding="utf-8"))
    kinds = {node["class_type"] for node in flow.values()}
    assert ("ModelSamplingFlux" in kinds) is (life.name == "flux")
    assert ("EmptySD3LatentImage" in kinds) is (life.name in ("sd35", "flux"))


def test_its_own_files_are_read_and_named_as_what_they_are(life: Life) -> None:
    """P24, P25: the file for other programs only where its names are known."""
    run = RunFolder.of(life.broken)
    found = foreign.read(run.adapter_weights, life.model)
    assert set(found.adapter.state) == set(life.adapter.state)
    label = families.FAMILIES[life.name]
    assert found.tool == ("an SDXL LoRA in diffusers' names" if life.name == "sdxl" else
                          f"a LoRA for {label} in diffusers' names")  # fmt: skip
    if life.name == "sdxl":
        assert set(foreign.read(run.adapter_for_tools, life.model).adapter.state) == set(life.adapter.state)
    else:
        with pytest.raises(AdapterError, match="names that other programs read. Use pytorch_lora_weights.safetensors"):
            foreign.read(run.adapter_for_tools)


def test_a_size_that_cannot_be_drawn_is_a_sentence_before_any_work(life: Life) -> None:
    """P26: 72 px are 9 latent cells, which a transformer cannot read in twos; a UNet can."""
    asked = life.broken.model_copy(update={"width": 72, "num_images": 1, "num_inference_steps": 2, "sheet_name": "odd"})
    asked = asked.with_preset({"refine": "none", "scheduler": "euler"})
    if life.name in ("sd35", "flux"):
        with pytest.raises(SettingsError, match="width is 72 px, and .* needs a multiple of 16; use 64 or 80"):
            inference.run(asked, say=quietly)
    else:
        assert inference.run(asked, say=quietly).is_complete


def test_a_request_that_says_nothing_of_a_family_is_taken_by_a_served_door(life: Life) -> None:
    """P25: what a request leaves out is as the family can do it; how the LoRA was learnt does not matter any more."""
    lines: list[str] = []
    assert (life.broken.refine, life.broken.scheduler, life.broken.min_snr_gamma) == ("ensemble", "dpmpp_2m", 5.0)
    studio = Studio.open(None, life.broken, Limits(), lines.append)
    values = commission_model(studio.config, Limits())(num_images=1).model_dump()
    if life.name != "sdxl":  # whose refiner is not on this machine
        studio.check(values)
    assert not [line for line in lines if "min_snr_gamma" in line]
    if life.name != "sdxl":
        assert values["refine"] == "none"
        with pytest.raises(SettingsError, match="has no refiner. Set refine none"):
            studio.check(values | {"refine": "img2img"})


@pytest.mark.parametrize("backend", ["comfyui", "replicate"])
def test_a_place_that_trains_another_kind_of_lora_says_so_before_it_is_asked(life: Life, backend: str) -> None:
    """C18: nothing is sent and nothing is paid."""
    if life.name == "sdxl":
        return
    place = backends.of(backend)
    with pytest.raises(SettingsError, match="would train a LoRA for Stable Diffusion XL"):
        train.run(life.broken.model_copy(update={"backend": backend, "run_name": "away"}), place=place, say=quietly)
