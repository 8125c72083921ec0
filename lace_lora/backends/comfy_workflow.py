"""ComfyUI workflows in the form that its HTTP API takes: nodes by number, each with its class and its inputs.

A link is [number of a node, which of its outputs]. Every function here is pure: nothing is asked of a server.
"""

import re
from dataclasses import dataclass
from typing import Any

from lace_lora.workflow import SAMPLERS

Node = dict[str, Any]
Workflow = dict[str, Node]
Link = list[Any]

# What the refiner is told of a good and of a bad picture, as SDXL's own pipeline has it.
AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5
LAST_STEP = 10_000  # of KSamplerAdvanced: to the end, however many there are
_OF_PROMPTS = re.compile(r"([\\()])")  # signs with a meaning of their own in ComfyUI's prompts


@dataclass(frozen=True)
class Design:
    """One picture as ComfyUI is to draw it.

    lora_name        of the LoRA as ComfyUI's list has it; None draws with the base model alone
    text_scale       strength of the LoRA on the text encoders; 0 where they were not trained
    refiner          checkpoint of the refiner; None refines nothing
    refine           ensemble or img2img; how the refiner works
    save_as          beginning of the name under which ComfyUI keeps the pictures; None keeps them until it ends
    embedding        name of the file that holds a learnt concept token, which stands in the prompts for concept_token
    """

    checkpoint: str
    prompt: str
    seed: int
    width: int
    height: int
    negative_prompt: str = ""
    steps: int = 30
    guidance_scale: float = 5.0
    scheduler: str = "dpmpp_2m"
    lora_name: str | None = None
    lora_scale: float = 1.0
    text_scale: float = 0.0
    refiner: str | None = None
    refiner_prompt: str = ""
    refine: str = "ensemble"
    refiner_start: float = 0.85
    refine_strength: float = 0.3
    save_as: str | None = None
    embedding: str | None = None
    concept_token: str = ""

    @property
    def handover(self) -> int:
        """The step at which an ensemble's refiner takes over: at least one is the base's, and one the refiner's."""
        return min(max(1, round(self.steps * self.refiner_start)), self.steps - 1)


@dataclass(frozen=True)
class Drawing:
    """A workflow, and the numbers of the nodes whose pictures are the unrefined and the refined design."""

    workflow: Workflow
    base: str
    refined: str | None


def design(asked: Design) -> Drawing:
    """The workflow of one design: base model with the LoRA, then the refiner, which never gets the LoRA.

    The unrefined picture is drawn to its end beside the refined one. ComfyUI begins with the noise that we begin with:
    standard normal of the seed, from torch's generator on the CPU.
    """
    nodes: Workflow = {}
    model, clip, vae = _base(nodes, asked)
    positive = _text(nodes, asked, clip, _words(asked.prompt, asked))
    # SDXL's base was trained with zeros for "no negative prompt", not with the empty text.
    negative = (
        _text(nodes, asked, clip, _words(asked.negative_prompt, asked))
        if asked.negative_prompt.strip()
        else [_add(nodes, "ConditioningZeroOut", conditioning=positive), 0]
    )
    empty = [_add(nodes, "EmptyLatentImage", width=asked.width, height=asked.height, batch_size=1), 0]
    two_stages = asked.refiner is not None and asked.refine == "ensemble"
    if not two_stages:
        drawn = [_sampler(nodes, asked, model, positive, negative, empty, denoise=1.0), 0]
        base = _kept(nodes, asked, drawn, vae, "base")
        refined = _refined_afterwards(nodes, asked, drawn) if asked.refiner else None
        return Drawing(nodes, base, refined)
    at = asked.handover
    half = _stage(nodes, asked, model, positive, negative, empty, steps=(0, at), begins=True, ends=False)
    whole = _stage(nodes, asked, model, positive, negative, [half, 0], steps=(at, LAST_STEP), begins=False, ends=True)
    base = _kept(nodes, asked, [whole, 0], vae, "base")
    other, other_vae, good, bad = _refiner(nodes, asked)
    last = _stage(nodes, asked, other, good, bad, [half, 0], steps=(at, LAST_STEP), begins=False, ends=True)
    return Drawing(nodes, base, _kept(nodes, asked, [last, 0], other_vae, "refined"))


def escaped(text: str) -> str:
    """A prompt whose brackets mean brackets: ComfyUI would take them for weights."""
    return _OF_PROMPTS.sub(r"\\\1", text)


# -- inside --


def _add(nodes: Workflow, kind: str, **inputs: Any) -> str:
    number = str(len(nodes) + 1)
    nodes[number] = {"class_type": kind, "inputs": inputs}
    return number


def _words(text: str, asked: Design) -> str:
    if not (asked.embedding and asked.concept_token):
        return escaped(text)
    parts = [escaped(part) for part in text.split(asked.concept_token)]
    return f"embedding:{asked.embedding}".join(parts)


def _base(nodes: Workflow, asked: Design) -> tuple[Link, Link, Link]:
    """Model, text encoders and VAE, with the LoRA on them."""
    loaded = _add(nodes, "CheckpointLoaderSimple", ckpt_name=asked.checkpoint)
    if asked.lora_name is None:
        return [loaded, 0], [loaded, 1], [loaded, 2]
    styled = _add(
        nodes, "LoraLoader", model=[loaded, 0], clip=[loaded, 1], lora_name=asked.lora_name,
        strength_model=asked.lora_scale, strength_clip=asked.text_scale,
    )  # fmt: skip
    return [styled, 0], [styled, 1], [loaded, 2]


def _text(nodes: Workflow, asked: Design, clip: Link, text: str) -> Link:
    """What the base is told: the words, and an uncut picture of the size that it draws."""
    size = {"width": asked.width, "height": asked.height, "target_width": asked.width, "target_height": asked.height}
    return [_add(nodes, "CLIPTextEncodeSDXL", clip=clip, text_g=text, text_l=text, crop_w=0, crop_h=0, **size), 0]


def _refiner(nodes: Workflow, asked: Design) -> tuple[Link, Link, Link, Link]:
    """The refiner's model and VAE, and what it is told of the picture and of what it shall not be."""
    loaded = _add(nodes, "CheckpointLoaderSimple", ckpt_name=asked.refiner)
    told = [
        _add(
            nodes, "CLIPTextEncodeSDXLRefiner", clip=[loaded, 1], text=escaped(text), ascore=score,
            width=asked.width, height=asked.height,
        )
        for text, score in (
            (asked.refiner_prompt or asked.prompt, AESTHETIC),
            (asked.negative_prompt, NEGATIVE_AESTHETIC),
        )
    ]  # fmt: skip
    return [loaded, 0], [loaded, 2], [told[0], 0], [told[1], 0]


def _sampler(
    nodes: Workflow, asked: Design, model: Link, positive: Link, negative: Link, latent: Link, denoise: float
) -> str:
    name, schedule = SAMPLERS[asked.scheduler]
    return _add(
        nodes, "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=asked.seed,
        steps=asked.steps, cfg=asked.guidance_scale, sampler_name=name, scheduler=schedule, denoise=denoise,
    )  # fmt: skip


def _stage(
    nodes: Workflow, asked: Design, model: Link, positive: Link, negative: Link, latent: Link, *,
    steps: tuple[int, int], begins: bool, ends: bool,
) -> str:  # fmt: skip
    """Some steps of one schedule: the first stage adds the noise, all but the last leave theirs in the latents."""
    name, schedule = SAMPLERS[asked.scheduler]
    return _add(
        nodes, "KSamplerAdvanced", model=model, positive=positive, negative=negative, latent_image=latent,
        add_noise="enable" if begins else "disable", noise_seed=asked.seed, steps=asked.steps,
        cfg=asked.guidance_scale, sampler_name=name, scheduler=schedule, start_at_step=steps[0], end_at_step=steps[1],
        return_with_leftover_noise="disable" if ends else "enable",
    )  # fmt: skip


def _refined_afterwards(nodes: Workflow, asked: Design, drawn: Link) -> str:
    """img2img: the refiner redoes the last part of the finished latents."""
    model, vae, good, bad = _refiner(nodes, asked)
    again = _sampler(nodes, asked, model, good, bad, drawn, denoise=asked.refine_strength)
    return _kept(nodes, asked, [again, 0], vae, "refined")


def _kept(nodes: Workflow, asked: Design, latent: Link, vae: Link, what: str) -> str:
    decoded = [_add(nodes, "VAEDecode", samples=latent, vae=vae), 0]
    if asked.save_as is None:
        return _add(nodes, "PreviewImage", images=decoded)
    return _add(nodes, "SaveImage", images=decoded, filename_prefix=f"{asked.save_as}_{what}")
