"""A workflow as ComfyUI's page opens it, derived from the form that its API takes and laid out from left to right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lace_lora.workflow import Node, Workflow


@dataclass(frozen=True)
class Kind:
    """A class of nodes as the page knows it.

    sockets  what other nodes give it, each with its type, in the page's order
    fields   what is written into it, in the page's order
    outputs  the types of what it gives
    """

    sockets: Mapping[str, str]
    fields: tuple[str, ...]
    outputs: tuple[str, ...]


_SAMPLED = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"}
KINDS = {
    "CheckpointLoaderSimple": Kind({}, ("ckpt_name",), ("MODEL", "CLIP", "VAE")),
    "ModelSamplingDiscrete": Kind({"model": "MODEL"}, ("sampling", "zsnr"), ("MODEL",)),
    "ModelSamplingFlux": Kind({"model": "MODEL"}, ("max_shift", "base_shift", "width", "height"), ("MODEL",)),
    "LoraLoader": Kind(
        {"model": "MODEL", "clip": "CLIP"}, ("lora_name", "strength_model", "strength_clip"), ("MODEL", "CLIP")
    ),
    "CLIPTextEncode": Kind({"clip": "CLIP"}, ("text",), ("CONDITIONING",)),
    "ConditioningZeroOut": Kind({"conditioning": "CONDITIONING"}, (), ("CONDITIONING",)),
    "FluxGuidance": Kind({"conditioning": "CONDITIONING"}, ("guidance",), ("CONDITIONING",)),
    "EmptySD3LatentImage": Kind({}, ("width", "height", "batch_size"), ("LATENT",)),
    "EmptyLatentImage": Kind({}, ("width", "height", "batch_size"), ("LATENT",)),
    "KSampler": Kind(_SAMPLED, ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"), ("LATENT",)),
    "KSamplerAdvanced": Kind(
        _SAMPLED,
        (
            "add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
            "return_with_leftover_noise",
        ),
        ("LATENT",),
    ),
    "VAEDecode": Kind({"samples": "LATENT", "vae": "VAE"}, (), ("IMAGE",)),
    "SaveImage": Kind({"images": "IMAGE"}, ("filename_prefix",), ()),
}  # fmt: skip
_SEEDS = ("seed", "noise_seed")  # the page keeps after these what becomes of them in the next run
_WIDE_PX, _APART_PX, _LINE_PX = 330, 70, 26


def laid_out(workflow: Workflow) -> dict[str, Any]:
    """The workflow for the page. Its nodes stand in an order in which each comes after what it needs."""
    links: list[list[Any]] = []
    for number, node in workflow.items():
        for slot, (socket, kind) in enumerate(KINDS[node["class_type"]].sockets.items()):
            source, output = node["inputs"][socket]
            links.append([len(links) + 1, int(source), output, int(number), slot, kind])
    places = _places(workflow)
    return {
        "last_node_id": max(map(int, workflow)),
        "last_link_id": len(links),
        "nodes": [_node(order, number, workflow[number], links, places) for order, number in enumerate(workflow)],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


# -- inside --


def _places(workflow: Workflow) -> dict[str, tuple[int, int]]:
    """Where each node stands, px: a column right of all that it needs."""
    columns: dict[str, int] = {}
    tops: dict[int, int] = {}
    found = {}
    for number, node in workflow.items():
        needed = [columns[value[0]] for value in node["inputs"].values() if isinstance(value, list)]
        column = columns[number] = 1 + max(needed, default=-1)
        found[number] = (column * (_WIDE_PX + _APART_PX), tops.get(column, 0))
        tops[column] = tops.get(column, 0) + _height(node["class_type"]) + _APART_PX
    return found


def _height(name: str) -> int:
    kind = KINDS[name]
    text = 4 * _LINE_PX if name == "CLIPTextEncode" else 0
    return _LINE_PX * (1 + max(len(kind.sockets), len(kind.outputs)) + len(kind.fields)) + text


def _node(
    order: int, number: str, node: Node, links: Sequence[Sequence[Any]], places: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    kind = KINDS[node["class_type"]]
    values: list[Any] = []
    for one in kind.fields:
        values += [node["inputs"][one], *(["fixed"] if one in _SEEDS else [])]
    into = {link[4]: link[0] for link in links if link[3] == int(number)}
    return {
        "id": int(number),
        "type": node["class_type"],
        "title": node["_meta"]["title"],
        "pos": list(places[number]),
        "size": [_WIDE_PX, _height(node["class_type"])],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [
            {"name": name, "type": given, "link": into[slot]} for slot, (name, given) in enumerate(kind.sockets.items())
        ],
        "outputs": [
            {
                "name": given,
                "type": given,
                "slot_index": slot,
                "links": [link[0] for link in links if link[1] == int(number) and link[2] == slot],
            }
            for slot, given in enumerate(kind.outputs)
        ],
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": values,
    }
