"""ComfyUI workflows in the form that its HTTP API takes: nodes by number, each with its class, title and inputs.

One builder for designs that a server draws and for the workflow in a package. A link is [number of a node, which of its
outputs]. Only nodes that ComfyUI itself brings; nothing is asked of a server.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lace_lora.families.published import CHECKPOINTS

Node = dict[str, Any]
Workflow = dict[str, Node]
Link = list[Any]

# Our setting -> ComfyUI's sampler and its scheduler.
SAMPLERS = {
    "dpmpp_2m": ("dpmpp_2m", "normal"),
    "dpmpp_2m_karras": ("dpmpp_2m", "karras"),
    "unipc": ("uni_pc", "normal"),
    "euler": ("euler", "normal"),
    "ddim": ("ddim", "ddim_uniform"),
}
LAST_STEP = 10_000  # of KSamplerAdvanced: to the end, however many there are
_OF_PROMPTS = re.compile(r"([\\()])")  # signs with a meaning of their own in ComfyUI's prompts


@dataclass(frozen=True)
class _Kind:
    """With which nodes ComfyUI draws as a family's own pipeline does.

    latents      the node of an empty picture with as many channels as the family's
    has_zeros    whether no negative prompt means zeros, as SDXL's base was trained, and not the empty text
    is_told      whether it is told in one pass how strictly to follow, and nothing to avoid
    schedule     of the steps, where it is another than the sampler's usual one
    """

    latents: str = "EmptyLatentImage"
    has_zeros: bool = False
    is_told: bool = False
    schedule: str = ""


_KINDS = {
    "sdxl": _Kind(has_zeros=True),
    "sd15": _Kind(),
    "sd35": _Kind("EmptySD3LatentImage"),
    # simple takes even steps from 1 down to 1/steps and then shifts them, as FluxPipeline does.
    "flux": _Kind("EmptySD3LatentImage", has_zeros=True, is_told=True, schedule="simple"),
}
_SHIFTS = {"max_shift": 1.15, "base_shift": 0.5}  # of Flux-dev, for 4096 and for 256 places


@dataclass(frozen=True)
class Design:
    """One picture as ComfyUI is to draw it; names as in the settings.

    checkpoint       of the base model, as it lies in ComfyUI's models/checkpoints
    lora_name        of the LoRA as ComfyUI's list has it; None draws with the base model alone
    text_scale       strength of the LoRA on the text encoders; 0 where they were not trained
    refiner          checkpoint of the refiner; None refines nothing
    refine           ensemble or img2img; how the refiner works
    save_as          beginning of the name under which ComfyUI keeps the pictures; None keeps them until it ends
    embedding        name of the file that holds a learnt concept token, which stands in the prompts for concept_token
    predicts_v       whether the base model predicts v, which its checkpoint may not say
    family           of the base model
    shifts_by_size   whether its schedule depends on the size, as Flux-dev's does
    """

    checkpoint: str
    prompt: str
    seed: int
    width: int
    height: int
    negative_prompt: str = ""
    num_inference_steps: int = 30
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
    predicts_v: bool = False
    family: str = "sdxl"
    shifts_by_size: bool = False

    @property
    def handover(self) -> int:
        """The step at which an ensemble's refiner takes over: at least one is the base's, and one the refiner's."""
        return min(max(1, round(self.num_inference_steps * self.refiner_start)), self.num_inference_steps - 1)


@dataclass(frozen=True)
class Drawing:
    """A workflow, and the numbers of the nodes whose pictures are the unrefined and the refined design."""

    workflow: Workflow
    base: str
    refined: str | None


def design(asked: Design) -> Drawing:
    """The workflow of one design: base model with the LoRA, then the refiner, which never gets the LoRA.

    The unrefined picture is drawn to its end beside the refined one. ComfyUI begins with the noise that we begin with:
    standard normal of the seed, from torch's generator on the CPU. Its text nodes tell the models by themselves that
    the picture is uncut and of the size that is drawn, and the refiner what a good and a bad picture is (6 and 2.5).
    """
    nodes: Workflow = {}
    model, clip, vae = _base(nodes, asked)
    positive = _text(nodes, "Prompt", clip, _words(asked.prompt, asked))
    negative = _negative(nodes, asked, clip, positive)
    if _KINDS[asked.family].is_told:
        told_how = {"conditioning": positive, "guidance": asked.guidance_scale}
        positive = [_add(nodes, "FluxGuidance", "How strictly it follows", **told_how), 0]
    size = {"width": asked.width, "height": asked.height, "batch_size": 1}
    empty = [_add(nodes, _KINDS[asked.family].latents, "Size", **size), 0]
    two_stages = asked.refiner is not None and asked.refine == "ensemble"
    if not two_stages:
        drawn = [_sampler(nodes, "Draw", asked, model, positive, negative, empty, denoise=1.0), 0]
        base = _kept(nodes, asked, drawn, vae, "base")
        refined = _refined_afterwards(nodes, asked, drawn) if asked.refiner else None
        return Drawing(nodes, base, refined)
    at = asked.handover
    told = {"model": model, "positive": positive, "negative": negative}
    half = _stage(nodes, "Draw", asked, told | {"latent_image": empty}, steps=(0, at), begins=True)
    whole = _stage(nodes, "Draw to the end", asked, told | {"latent_image": [half, 0]}, steps=(at, LAST_STEP))
    base = _kept(nodes, asked, [whole, 0], vae, "base")
    other, other_vae, good, bad = _refiner(nodes, asked)
    told = {"model": other, "positive": good, "negative": bad}
    last = _stage(nodes, "Refine", asked, told | {"latent_image": [half, 0]}, steps=(at, LAST_STEP))
    return Drawing(nodes, base, _kept(nodes, asked, [last, 0], other_vae, "refined"))


def checkpoint_of(model: str) -> str:
    """The file of a base model among ComfyUI's checkpoints; of one that is not known, its own name."""
    name = model.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
    return CHECKPOINTS.get(model, f"{name}.safetensors")


def escaped(text: str) -> str:
    """A prompt whose brackets mean brackets: ComfyUI would take them for weights."""
    return _OF_PROMPTS.sub(r"\\\1", text)


# -- inside --


def _add(nodes: Workflow, kind: str, title: str, **inputs: Any) -> str:
    number = str(len(nodes) + 1)
    nodes[number] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return number


def _words(text: str, asked: Design) -> str:
    if not (asked.embedding and asked.concept_token):
        return escaped(text)
    parts = [escaped(part) for part in text.split(asked.concept_token)]
    return f"embedding:{asked.embedding}".join(parts)


def _base(nodes: Workflow, asked: Design) -> tuple[Link, Link, Link]:
    """Model, text encoders and VAE, with the LoRA on them."""
    loaded = _add(nodes, "CheckpointLoaderSimple", "Base model", ckpt_name=asked.checkpoint)
    model, clip, vae = ([loaded, output] for output in range(3))
    if asked.predicts_v:
        changed = {"model": model, "sampling": "v_prediction", "zsnr": False}
        model = [_add(nodes, "ModelSamplingDiscrete", "It predicts v", **changed), 0]
    if asked.shifts_by_size:
        changed = {"model": model, **_SHIFTS, "width": asked.width, "height": asked.height}
        model = [_add(nodes, "ModelSamplingFlux", "Steps for this size", **changed), 0]
    if asked.lora_name is None:
        return model, clip, vae
    styled = _add(
        nodes, "LoraLoader", "Your LoRA", model=model, clip=clip, lora_name=asked.lora_name,
        strength_model=asked.lora_scale, strength_clip=asked.text_scale,
    )  # fmt: skip
    return [styled, 0], [styled, 1], vae


def _text(nodes: Workflow, title: str, clip: Link, text: str) -> Link:
    return [_add(nodes, "CLIPTextEncode", title, clip=clip, text=text), 0]


def _negative(nodes: Workflow, asked: Design, clip: Link, positive: Link) -> Link:
    """What is not wanted, or what says that nothing is."""
    if _KINDS[asked.family].has_zeros and not asked.negative_prompt.strip():
        return [_add(nodes, "ConditioningZeroOut", "No negative prompt", conditioning=positive), 0]
    return _text(nodes, "What you do not want", clip, _words(asked.negative_prompt, asked))


def _refiner(nodes: Workflow, asked: Design) -> tuple[Link, Link, Link, Link]:
    """The refiner's model and VAE, and what it is told of a good and of a bad picture."""
    loaded = _add(nodes, "CheckpointLoaderSimple", "Refiner", ckpt_name=asked.refiner)
    good, bad = (
        _text(nodes, title, [loaded, 1], escaped(text))
        for title, text in (
            ("Prompt for the refiner", asked.refiner_prompt or asked.prompt),
            ("What the refiner leaves out", asked.negative_prompt),
        )
    )
    return [loaded, 0], [loaded, 2], good, bad


def _sampler(
    nodes: Workflow, title: str, asked: Design, model: Link, positive: Link, negative: Link, latent: Link, *,
    denoise: float,
) -> str:  # fmt: skip
    (name, schedule), kind = SAMPLERS[asked.scheduler], _KINDS[asked.family]
    return _add(
        nodes, "KSampler", title, model=model, positive=positive, negative=negative, latent_image=latent,
        seed=asked.seed, steps=asked.num_inference_steps, cfg=1.0 if kind.is_told else asked.guidance_scale,
        sampler_name=name, scheduler=kind.schedule or schedule, denoise=denoise,
    )  # fmt: skip


def _stage(
    nodes: Workflow, title: str, asked: Design, told: Mapping[str, Link], *, steps: tuple[int, int],
    begins: bool = False,
) -> str:  # fmt: skip
    """Some steps of one schedule: the first stage adds the noise, all but the last leave theirs in the latents."""
    name, schedule = SAMPLERS[asked.scheduler]
    return _add(
        nodes, "KSamplerAdvanced", title, **told, add_noise="enable" if begins else "disable",
        noise_seed=asked.seed, steps=asked.num_inference_steps, cfg=asked.guidance_scale, sampler_name=name,
        scheduler=schedule, start_at_step=steps[0], end_at_step=steps[1],
        return_with_leftover_noise="disable" if steps[1] == LAST_STEP else "enable",
    )  # fmt: skip


def _refined_afterwards(nodes: Workflow, asked: Design, drawn: Link) -> str:
    """img2img: the refiner redoes the last part of the finished latents."""
    model, vae, good, bad = _refiner(nodes, asked)
    again = _sampler(nodes, "Refine", asked, model, good, bad, drawn, denoise=asked.refine_strength)
    return _kept(nodes, asked, [again, 0], vae, "refined")


def _kept(nodes: Workflow, asked: Design, latent: Link, vae: Link, what: str) -> str:
    picture = f"Picture, {'unrefined' if what == 'base' else what}" if asked.refiner else "Picture"
    decoded = [_add(nodes, "VAEDecode", picture, samples=latent, vae=vae), 0]
    if asked.save_as is None:
        return _add(nodes, "PreviewImage", "Show", images=decoded)
    return _add(nodes, "SaveImage", "Keep", images=decoded, filename_prefix=f"{asked.save_as}_{what}")
