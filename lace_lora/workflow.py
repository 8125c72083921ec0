"""A ComfyUI workflow that draws as a run drew: base model with the LoRA, and the refiner where it was used.

One list of nodes gives both forms: the API's, for programs, and the editor's, to be dropped on ComfyUI's page.
Only nodes that ComfyUI itself brings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Link = tuple[str, int]  # a node's name, and which of its outputs

# Our setting -> ComfyUI's sampler and its scheduler.
SAMPLERS = {
    "dpmpp_2m": ("dpmpp_2m", "normal"),
    "dpmpp_2m_karras": ("dpmpp_2m", "karras"),
    "unipc": ("uni_pc", "normal"),
    "euler": ("euler", "normal"),
    "ddim": ("ddim", "ddim_uniform"),
}
# The files in which these models are published for ComfyUI.
CHECKPOINTS = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sd_xl_base_1.0.safetensors",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "sd_xl_refiner_1.0.safetensors",
}
# Each node's sockets with their types, its fields in the editor's order, and its outputs.
_SOCKETS: dict[str, tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "CheckpointLoaderSimple": ({}, ("ckpt_name",), ("MODEL", "CLIP", "VAE")),
    "ModelSamplingDiscrete": ({"model": "MODEL"}, ("sampling", "zsnr"), ("MODEL",)),
    "LoraLoader": (
        {"model": "MODEL", "clip": "CLIP"},
        ("lora_name", "strength_model", "strength_clip"),
        ("MODEL", "CLIP"),
    ),
    "CLIPTextEncode": ({"clip": "CLIP"}, ("text",), ("CONDITIONING",)),
    "EmptyLatentImage": ({}, ("width", "height", "batch_size"), ("LATENT",)),
    "KSampler": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        ("LATENT",),
    ),
    "KSamplerAdvanced": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        (
            "add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
            "return_with_leftover_noise",
        ),
        ("LATENT",),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, (), ("IMAGE",)),
    "SaveImage": ({"images": "IMAGE"}, ("filename_prefix",), ()),
}  # fmt: skip
_SEEDS = ("seed", "noise_seed")  # the editor keeps after these what becomes of them in the next run
_WIDE_PX, _APART_PX, _LINE_PX = 330, 70, 26


@dataclass(frozen=True)
class Drawing:
    """What a picture is drawn with; names as in the settings.

    lora_file   name of the LoRA's file, as it lies in ComfyUI's models/loras
    embedding   name of the file of a learnt word in models/embeddings, without its ending; empty without one
    predicts_v  whether the base model predicts v, which its checkpoint may not say
    """

    prompt: str
    refiner_prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    lora_scale: float
    refine: str
    refiner_start: float
    refine_strength: float
    base_model: str
    refiner_model: str
    lora_file: str
    concept_token: str = ""
    embedding: str = ""
    predicts_v: bool = False

    @property
    def is_refined(self) -> bool:
        """Whether a refiner takes part."""
        return self.refine != "none" and bool(self.refiner_model)

    @property
    def comfy_prompt(self) -> str:
        """The prompt as ComfyUI reads it: a learnt word is the file of its embedding there."""
        if not (self.embedding and self.concept_token):
            return self.prompt
        return self.prompt.replace(self.concept_token, f"embedding:{self.embedding}")


@dataclass(frozen=True)
class Node:
    """One step: its name in the workflow, ComfyUI's kind, its title and its inputs (a Link where it is another's)."""

    name: str
    kind: str
    title: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


def checkpoint_of(model: str) -> str:
    """The file of a base model among ComfyUI's checkpoints; of one that is not known, its own name."""
    return CHECKPOINTS.get(model, f"{model.rstrip('/').rpartition('/')[2]}.safetensors")


def as_api(drawing: Drawing, name: str) -> dict[str, Any]:
    """The workflow as a program sends it to /prompt.

    name  with which the names of the pictures begin
    """
    return {
        node.name: {
            "class_type": node.kind,
            "inputs": {key: list(value) if _is_link(value) else value for key, value in node.inputs.items()},
            "_meta": {"title": node.title},
        }
        for node in _nodes(drawing, name)
    }


def as_editor(drawing: Drawing, name: str) -> dict[str, Any]:
    """The same workflow as ComfyUI's page opens it, laid out from left to right."""
    nodes = _nodes(drawing, name)
    kinds = {node.name: node.kind for node in nodes}
    links: list[list[Any]] = []
    for node in nodes:
        for slot, (socket, kind) in enumerate(_SOCKETS[node.kind][0].items()):
            source, output = node.inputs[socket]
            assert _SOCKETS[kinds[source]][2][output] == kind, "nodes are joined by what they give"
            links.append([len(links) + 1, int(source), output, int(node.name), slot, kind])
    places = _places(nodes)
    return {
        "last_node_id": max(int(node.name) for node in nodes),
        "last_link_id": len(links),
        "nodes": [_editor_node(order, node, links, places[node.name]) for order, node in enumerate(nodes)],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


# -- inside --


def _nodes(drawing: Drawing, name: str) -> list[Node]:
    """All steps in an order in which each comes after what it needs."""
    sampler, schedule = SAMPLERS.get(drawing.scheduler, ("dpmpp_2m", "normal"))
    steps: dict[str, Any] = {"steps": drawing.num_inference_steps, "cfg": drawing.guidance_scale}
    steps |= {"sampler_name": sampler, "scheduler": schedule}
    base = Node("1", "CheckpointLoaderSimple", "Base model", {"ckpt_name": checkpoint_of(drawing.base_model)})
    found, model = [base], ("1", 0)
    if drawing.predicts_v:
        found.append(
            Node("2", "ModelSamplingDiscrete", "It predicts v",
                 {"model": model, "sampling": "v_prediction", "zsnr": False})
        )  # fmt: skip
        model = ("2", 0)
    lora: dict[str, Any] = {"model": model, "clip": ("1", 1), "lora_name": drawing.lora_file}
    lora |= {"strength_model": drawing.lora_scale, "strength_clip": drawing.lora_scale}
    size = {"width": drawing.width, "height": drawing.height, "batch_size": 1}
    found += [
        Node("3", "LoraLoader", "Your LoRA", lora),
        Node("4", "CLIPTextEncode", "Prompt", {"clip": ("3", 1), "text": drawing.comfy_prompt}),
        Node("5", "CLIPTextEncode", "What you do not want", {"clip": ("3", 1), "text": drawing.negative_prompt}),
        Node("6", "EmptyLatentImage", "Size", size),
    ]
    drawn = {"model": ("3", 0), "positive": ("4", 0), "negative": ("5", 0), "latent_image": ("6", 0)}
    last: Link = ("7", 0)
    if drawing.is_refined:
        found += _refined(drawing, drawn, steps)
        last = ("11", 0)
    else:
        found.append(Node("7", "KSampler", "Draw", drawn | {"seed": drawing.seed} | steps | {"denoise": 1.0}))
    return [
        *found,
        Node("12", "VAEDecode", "Picture", {"samples": last, "vae": ("1", 2)}),
        Node("13", "SaveImage", "Keep", {"images": ("12", 0), "filename_prefix": name}),
    ]


def _refined(drawing: Drawing, drawn: Mapping[str, Any], steps: Mapping[str, Any]) -> list[Node]:
    """Base, then refiner: in one schedule that is cut in two (ensemble), or on the finished picture (img2img)."""
    refiner = [
        Node("8", "CheckpointLoaderSimple", "Refiner", {"ckpt_name": checkpoint_of(drawing.refiner_model)}),
        Node("9", "CLIPTextEncode", "Prompt for the refiner", {"clip": ("8", 1), "text": drawing.refiner_prompt}),
        Node("10", "CLIPTextEncode", "What the refiner leaves out",
             {"clip": ("8", 1), "text": drawing.negative_prompt}),
    ]  # fmt: skip
    again = {"model": ("8", 0), "positive": ("9", 0), "negative": ("10", 0), "latent_image": ("7", 0)}
    if drawing.refine == "img2img":
        return [
            Node("7", "KSampler", "Draw", {**drawn, "seed": drawing.seed, **steps, "denoise": 1.0}),
            *refiner,
            Node("11", "KSampler", "Refine",
                 {**again, "seed": drawing.seed, **steps, "denoise": drawing.refine_strength}),
        ]  # fmt: skip
    total = drawing.num_inference_steps
    cut = min(max(1, round(total * drawing.refiner_start)), total - 1)
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": cut, "return_with_leftover_noise": "enable"}
    then = {"add_noise": "disable", "start_at_step": cut, "end_at_step": total, "return_with_leftover_noise": "disable"}
    seed = {"noise_seed": drawing.seed}
    return [
        Node("7", "KSamplerAdvanced", "Draw", {**drawn, **seed, **steps, **first}),
        *refiner,
        Node("11", "KSamplerAdvanced", "Refine", {**again, **seed, **steps, **then}),
    ]


def _is_link(value: Any) -> bool:
    return isinstance(value, tuple)


def _places(nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """Where each node stands, px: a column right of all that it needs."""
    columns: dict[str, int] = {}
    for node in nodes:
        columns[node.name] = 1 + max((columns[one[0]] for one in node.inputs.values() if _is_link(one)), default=-1)
    tops: dict[int, int] = {}
    found = {}
    for node in nodes:
        column = columns[node.name]
        found[node.name] = (column * (_WIDE_PX + _APART_PX), tops.get(column, 0))
        tops[column] = tops.get(column, 0) + _height(node) + _APART_PX
    return found


def _height(node: Node) -> int:
    sockets, fields, outputs = _SOCKETS[node.kind]
    text = 4 * _LINE_PX if node.kind == "CLIPTextEncode" else 0
    return _LINE_PX * (1 + max(len(sockets), len(outputs)) + len(fields)) + text


def _editor_node(order: int, node: Node, links: Sequence[Sequence[Any]], place: tuple[int, int]) -> dict[str, Any]:
    sockets, fields, outputs = _SOCKETS[node.kind]
    number = int(node.name)
    values: list[Any] = []
    for one in fields:
        values += [node.inputs[one], *(["fixed"] if one in _SEEDS else [])]
    into = {link[4]: link[0] for link in links if link[3] == number}
    return {
        "id": number,
        "type": node.kind,
        "title": node.title,
        "pos": list(place),
        "size": [_WIDE_PX, _height(node)],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [
            {"name": name, "type": kind, "link": into[slot]} for slot, (name, kind) in enumerate(sockets.items())
        ],
        "outputs": [
            {
                "name": kind,
                "type": kind,
                "slot_index": slot,
                "links": [link[0] for link in links if link[1] == number and link[2] == slot],
            }
            for slot, kind in enumerate(outputs)
        ],
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": values,
    }
