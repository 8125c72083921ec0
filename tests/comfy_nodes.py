"""Run in a process of its own: check workflows against the nodes that a checkout of ComfyUI brings.

python tests/comfy_nodes.py CHECKOUT FILE…: each FILE is a workflow in the API's form; what is wrong is printed as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any


def faults(nodes: dict[str, Any], flow: dict[str, Any]) -> list[str]:
    """What a workflow's nodes lack, have too much, or hold that ComfyUI does not offer."""
    found = []
    for name, node in flow.items():
        kind = nodes[node["class_type"]]
        asked = kind.INPUT_TYPES()
        required, known = asked["required"], {**asked["required"], **asked.get("optional", {})}
        given = node["inputs"]
        found += [f"{name}: lacks {one}" for one in required.keys() - given.keys()]
        found += [f"{name}: does not know {one}" for one in given.keys() - known.keys()]
        for one, value in given.items():
            kind_of = known.get(one, ("?",))[0]
            if isinstance(value, list):
                giver = nodes[flow[value[0]]["class_type"]]
                if giver.RETURN_TYPES[value[1]] != kind_of:
                    found.append(f"{name}: {one} is {kind_of}, not {giver.RETURN_TYPES[value[1]]}")
            elif isinstance(kind_of, list | tuple) and not one.endswith("_name") and value not in kind_of:
                found.append(f"{name}: {one} cannot be {value}")
            elif one in ("sampler_name",) and value not in kind_of:
                found.append(f"{name}: no sampler {value}")
            elif kind_of in ("INT", "FLOAT"):
                bounds = known[one][1]
                if not bounds["min"] <= value <= bounds["max"]:
                    found.append(f"{name}: {one} {value} is out of bounds")
    return found


def main(checkout: str, files: list[str]) -> None:
    """Print the faults of each file, and the order of each node's fields in the editor."""
    sys.path.insert(0, checkout)
    from comfy.cli_args import args as started

    started.cpu = True
    import nodes
    from comfy_extras.nodes_flux import FluxGuidance
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingFlux
    from comfy_extras.nodes_sd3 import EmptySD3LatentImage

    more = (ModelSamplingDiscrete, ModelSamplingFlux, FluxGuidance, EmptySD3LatentImage)
    known = nodes.NODE_CLASS_MAPPINGS | {kind.__name__: kind for kind in more}
    fields = {}
    for name in ("CheckpointLoaderSimple", "ModelSamplingDiscrete", "LoraLoader", "CLIPTextEncode",
                 "ConditioningZeroOut", "EmptyLatentImage", "ModelSamplingFlux",
                 "FluxGuidance", "EmptySD3LatentImage", "KSampler", "KSamplerAdvanced", "VAEDecode",
                 "SaveImage"):  # fmt: skip
        asked = known[name].INPUT_TYPES()["required"]
        fields[name] = [one for one, kind in asked.items() if not str(kind[0]).isupper() or kind[0] in
                        ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")]  # fmt: skip
    print("\nSAID " + json.dumps([{file: faults(known, json.loads(Path(file).read_text())) for file in files}, fields]))


if __name__ == "__main__":
    from comfy_loader import stand_in

    stand_in("torchvision", "torchvision.transforms", "torchaudio", "torchaudio.functional", "torchaudio.transforms")
    main(sys.argv[1], sys.argv[2:])
