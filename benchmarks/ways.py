"""The ways to draw a sheet of designs: ours by stages, and diffusers' pipelines as people write them.

All draw the same prompts with the same seeds, negative prompt, sampler, guidance, size, precision and LoRA. Each begins
with nothing loaded and ends with pictures on the disk and nothing loaded.
"""

import gc
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count as numbers
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from lace_lora import config, inference, order
from lace_lora.families.diffusion import SCHEDULERS
from lace_lora.families.libraries import of_diffusers
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder
from lace_lora.shelf import Shelf

with quiet():
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # by dtype: mixed_precision
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STRENGTH = 0.3  # diffusers' default for img2img
DOCUMENTED_SPLIT = 0.8  # of diffusers' documentation of an ensemble of expert denoisers
RUN_NAME = "lace"


@dataclass(frozen=True)
class Sheet:
    """What all of them draw."""

    base: str
    refiner: str
    work: str  # the folder with the run, and for what is written
    prompts: tuple[str, ...]
    side_px: int
    steps: int = 30
    guidance_scale: float = 5.0
    negative_prompt: str = "grainy, low quality"
    scheduler: str = "dpmpp_2m"
    device: str = "cpu"
    dtype: str = "fp32"

    @property
    def lora(self) -> Path:
        """The adapter in diffusers' names."""
        return RunFolder(Path(self.work) / RUN_NAME).adapter_weights


@dataclass(frozen=True)
class Way:
    """One way to draw a sheet.

    kind            ours, img2img (a whole picture, then the img2img pipeline), ensemble (the refiner takes over noise)
    batch           pictures at once; 0 is our own choice
    keeps_models    both pipelines stay loaded from one prompt to the next; ours: models stay where there is room
    refiner_steps   img2img: steps that the refiner makes, STRENGTH of the schedule that it is given
    is_fused        the LoRA is fused into the base; ours always does so
    is_offloaded    diffusers' enable_model_cpu_offload, for a GPU
    settings        ours: what is set otherwise than by default
    """

    name: str
    kind: str = "ours"
    batch: int = 1
    keeps_models: bool = True
    refiner_steps: int = 9
    is_fused: bool = False
    is_offloaded: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def for_cpu(batch: int, steps: int) -> list[Way]:
    """All of them. 'base + refiner' are the steps that are made in full."""
    usual = int(steps * STRENGTH)
    plain = f"diffusers, {steps} + {usual}"
    literal = f"diffusers, {steps} + {steps}"
    return [
        Way("ours"),
        Way(f"{literal}, loaded for each picture", "img2img", 1, False, steps),
        Way(literal, "img2img", refiner_steps=steps),
        Way(f"{plain}, loaded for each picture", "img2img", 1, False, usual),
        Way(plain, "img2img", refiner_steps=usual),
        Way(f"{plain}, LoRA fused", "img2img", refiner_steps=usual, is_fused=True),
        Way("diffusers, ensemble at 0.8", "ensemble"),
        Way("diffusers, ensemble at 0.8, LoRA fused", "ensemble", is_fused=True),
        Way("ours, img2img 0.3", settings={"refine": "img2img", "refine_strength": STRENGTH}),
        Way("ours, guidance_until 0.8", settings={"guidance_until": 0.8}),
        Way("ours, repeat straight", settings={"repeat": "straight"}),
        Way("ours, in batches", batch=batch),
        Way("diffusers, ensemble at 0.8, LoRA fused, in batches", "ensemble", batch, is_fused=True),
    ]


def for_gpu(batch: int, steps: int) -> list[Way]:
    """Ours beside both pipelines kept on the GPU, and beside diffusers' way where memory is short."""
    usual = int(steps * STRENGTH)
    plain = f"diffusers, {steps} + {usual}"
    kept = [
        Way(plain, "img2img", refiner_steps=usual),
        Way(f"diffusers, {steps} + {steps}", "img2img", refiner_steps=steps),
        Way("diffusers, ensemble at 0.8", "ensemble"),
    ]
    offloaded = [
        Way(f"{one.name}, cpu offload", one.kind, refiner_steps=one.refiner_steps, is_offloaded=True) for one in kept
    ]
    batches = [Way("ours, our own batch", batch=0), Way("diffusers, ensemble at 0.8, in batches", "ensemble", batch)]
    ours = [
        Way("ours"),
        Way("ours, short of memory", keeps_models=False),
        Way("ours, guidance_until 0.8", settings={"guidance_until": 0.8}),
    ]
    return [*ours, *kept, *offloaded, *batches]


def draw(sheet: Sheet, way: Way, count: int) -> list[Path]:
    """The first `count` pictures of a sheet; returns the files of the refined ones, in order."""
    try:
        return _ours(sheet, way, count) if way.kind == "ours" else _theirs(sheet, way, count)
    finally:
        gc.collect()
        if sheet.device == "cuda":
            torch.cuda.empty_cache()


def _ours(sheet: Sheet, way: Way, count: int) -> list[Path]:
    """lace_lora.inference as a run makes it: manifest, both pictures of each, contact sheet."""
    shutil.rmtree(RunFolder(Path(sheet.work) / RUN_NAME).root / "images", ignore_errors=True)
    settings = config.load(
        preset="none", pretrained_model=sheet.base, refiner_model=sheet.refiner, lora_output_dir=sheet.work,
        run_name=RUN_NAME, prompts=sheet.prompts[:count], num_images=count, negative_prompt=sheet.negative_prompt,
        num_inference_steps=sheet.steps, guidance_scale=sheet.guidance_scale, scheduler=sheet.scheduler,
        width=sheet.side_px, height=sheet.side_px, mixed_precision=PRECISIONS[sheet.dtype], **way.settings,
    )  # fmt: skip
    with ExitStack() as stack:
        if way.batch:
            stack.enter_context(mock.patch.object(order, "batch_size", lambda *_: way.batch))
        shelf = None if way.keeps_models else Shelf(0)
        return [one.path for one in inference.run(settings, say=lambda line: None, shelf=shelf)]


def _theirs(sheet: Sheet, way: Way, count: int) -> list[Path]:
    """Both pipelines, a prompt or a batch of them at a time; of each picture the refined one is saved."""
    folder = Path(sheet.work) / "diffusers_pictures"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files: list[Path] = []
    pipelines: tuple[Any, Any] | None = None
    for start in range(0, count, way.batch):
        seeds = range(start, min(start + way.batch, count))
        with quiet():  # diffusers' multistep scheduler warns of numpy 2
            pipelines = pipelines or opened(sheet, way)
            pictures = (_ensemble if way.kind == "ensemble" else _img2img)(sheet, way, *pipelines, seeds)
        for seed, picture in zip(seeds, pictures, strict=True):
            files.append(folder / f"{seed:03d}.png")
            picture.save(files[-1])
        if not way.keeps_models:
            pipelines = None
            gc.collect()
    return files


def opened(sheet: Sheet, way: Way) -> tuple[Any, Any]:
    """Base and refiner as diffusers documents them: the refiner shares the base's VAE and second text encoder.

    The LoRA is as load_lora_weights leaves it, not fused, unless the way says so.
    """
    named: dict[str, Any] = {"torch_dtype": DTYPES[sheet.dtype], "use_safetensors": True, "add_watermarker": False}
    base = StableDiffusionXLPipeline.from_pretrained(sheet.base, **named)
    base.load_lora_weights(sheet.lora.parent, weight_name=sheet.lora.name)
    if way.is_fused:
        base.fuse_lora()
        base.unload_lora_weights()  # leaves the fused weights, and takes PEFT's layers away
    shared = {"vae": base.vae, "text_encoder_2": base.text_encoder_2}
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(sheet.refiner, **shared, **named)
    name, changes = SCHEDULERS[sheet.scheduler]
    kind = of_diffusers(name)
    sampler = kind.from_config(base.scheduler.config, **changes)
    for pipeline in (base, refiner):
        pipeline.scheduler = kind.from_config(sampler.config)
        pipeline.set_progress_bar_config(disable=True)
        if way.is_offloaded:
            pipeline.enable_model_cpu_offload(device=sheet.device)
        else:
            pipeline.to(sheet.device)
    return base, refiner


def _img2img(sheet: Sheet, way: Way, base: Any, refiner: Any, seeds: Sequence[int]) -> list[Image.Image]:
    """Every step of the base and a picture of it, then the refiner over that picture."""
    asked = _asked(sheet, seeds)
    steps, size = sheet.steps, {"width": sheet.side_px, "height": sheet.side_px}
    images = base(num_inference_steps=steps, **size, **asked).images
    schedule = next(number for number in numbers(1) if int(number * STRENGTH) == way.refiner_steps)
    pictures: list[Image.Image] = refiner(
        image=images, num_inference_steps=schedule, strength=STRENGTH, **asked | {"generator": _generators(seeds)}
    ).images
    return pictures


def _ensemble(sheet: Sheet, way: Way, base: Any, refiner: Any, seeds: Sequence[int]) -> list[Image.Image]:
    """One schedule: the base hands its noisy latents over to the refiner; no picture of the base alone."""
    asked = _asked(sheet, seeds) | {"num_inference_steps": sheet.steps}
    size = {"width": sheet.side_px, "height": sheet.side_px}
    latents_BCHW = base(denoising_end=DOCUMENTED_SPLIT, output_type="latent", **size, **asked).images
    pictures: list[Image.Image] = refiner(
        image=latents_BCHW, denoising_start=DOCUMENTED_SPLIT, **asked | {"generator": _generators(seeds)}
    ).images
    return pictures


def _asked(sheet: Sheet, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": [sheet.prompts[seed] for seed in seeds],
        "negative_prompt": [sheet.negative_prompt] * len(seeds),
        "guidance_scale": sheet.guidance_scale,
        "generator": _generators(seeds),
    }


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """On the CPU, so that each picture's noise is ours."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
