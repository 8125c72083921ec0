"""What a ComfyUI finds wrong with the nodes of a workflow, in words, and what a person can do about it."""

from collections.abc import Mapping
from typing import Any

from lace_lora.file_names import printable


def told(node_errors: Any) -> str:
    """The faults of all nodes, from `node_errors` of an answer to /prompt; empty where there are none."""
    nodes = node_errors.items() if isinstance(node_errors, dict) else ()
    return "; ".join(_fault(number, node) for number, node in nodes if isinstance(node, dict))


# -- inside --


def _fault(number: str, node: Mapping[str, Any]) -> str:
    """What is wrong with one node, and what to do."""
    parts = []
    for error in node.get("errors", []):
        about = error.get("extra_info") or {}
        name, value = about.get("input_name", ""), about.get("received_value")
        shown = f" {printable(str(value))!r}" if value is not None else ""
        parts.append(f"{name}{shown}: {printable(str(error.get('message', '')))}. {_advice(name)}".strip())
    return f"node {number} ({printable(str(node.get('class_type', '')))}), {' '.join(parts)}".rstrip(".")


def _advice(name: str) -> str:
    """What a person can do about an input that is refused."""
    if name == "ckpt_name":
        return "Put that checkpoint into its folder models/checkpoints, or set pretrained_model or refiner_model"
    if name == "lora_name":
        return "Copy the LoRA into its folder models/loras"
    return "Update ComfyUI, or choose backend local"
