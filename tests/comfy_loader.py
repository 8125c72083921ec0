"""Run in a process of its own, by ComfyUI's own code: load a LoRA as its nodes do, and say what came of it.

python tests/comfy_loader.py CHECKOUT FOLDER: FOLDER holds unet.safetensors and inputs.safetensors (diffusers' names),
config.json of the UNet and lora.safetensors; output.safetensors and said.json are written there.
"""

import importlib.machinery
import importlib.util
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class Empty(types.ModuleType):
    """A package whose every name is a class that does nothing."""

    __path__: list[str] = []

    def __getattr__(self, one: str) -> Any:
        if one.startswith("__"):
            raise AttributeError(one)
        return type(one, (), {"__init__": lambda self, *given, **more: None})


def stand_in(*names: str) -> None:
    """Empty packages where there are none: ComfyUI imports some that loading a LoRA never calls."""
    missing = {root for root in {name.partition(".")[0] for name in names} if importlib.util.find_spec(root) is None}
    for name in names:
        if name.partition(".")[0] in missing:
            sys.modules[name] = Empty(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)


def main(checkout: str, folder: Path) -> None:
    sys.path.insert(0, checkout)
    stand_in("torchvision", "torchvision.transforms", "torchaudio", "torchaudio.functional", "torchsde", "kornia",
             "spandrel", "av", "scipy", "scipy.stats", "aiohttp", "sentencepiece")  # fmt: skip
    from comfy.cli_args import args as started

    started.cpu = True
    import comfy.lora
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    warned: list[str] = []
    logging.getLogger().addHandler(
        type("Kept", (logging.Handler,), {"emit": lambda self, record: warned.append(record.getMessage())})()
    )
    told = json.loads((folder / "config.json").read_text())
    channels, depths = told["block_out_channels"], told["transformer_layers_per_block"]
    per_level = told["layers_per_block"]
    depth = [0] * per_level + [one for one in depths[1:] for _ in range(per_level)]
    back = [0] * (per_level + 1) + [one for one in depths[1:] for _ in range(per_level + 1)]
    config = comfy.supported_models.SDXL(
        {
            "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4, "out_channels": 4,
            "model_channels": channels[0], "num_res_blocks": [per_level] * 3, "channel_mult": [
                one // channels[0] for one in channels], "transformer_depth": depth,
            "transformer_depth_output": back, "transformer_depth_middle": depths[-1], "num_classes": "sequential",
            "adm_in_channels": told["projection_class_embeddings_input_dim"], "use_linear_in_transformer": True,
            "context_dim": told["cross_attention_dim"], "dtype": torch.float32,
        }
    )  # fmt: skip
    config.unet_config["num_head_channels"] = channels[1] // told["attention_head_dim"][1]  # SDXL's own is 64
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SDXL(config, device=torch.device("cpu"))
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = load_file(folder / "unet.safetensors")
    moved = {names[name]: one for name, one in weights.items() if name in names}
    lacking = model.diffusion_model.load_state_dict(moved, strict=False)
    assert len(moved) == len(weights) and not lacking.missing_keys, (len(moved), len(weights), lacking)

    file = load_file(folder / "lora.safetensors")
    places = comfy.lora.model_lora_keys_unet(model, {})
    clip = type("Clip", (), {"state_dict": lambda self: dict.fromkeys(clip_names())})()
    places = comfy.lora.model_lora_keys_clip(clip, places)
    patches = comfy.lora.load_lora(file, places)
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    patched = patcher.add_patches(patches, 1.0)
    given = load_file(folder / "inputs.safetensors")
    with torch.no_grad():
        args = (given["noisy"], given["timesteps"], given["text"])
        before = model.diffusion_model(*args, y=given["y"])
        patcher.patch_model(torch.device("cpu"))
        after = model.diffusion_model(*args, y=given["y"])
    save_file({"before": before, "after": after}, folder / "output.safetensors")
    said = {"keys": len(file), "layers": len(patches), "patched_in_unet": len(patched),
            "not_loaded": [line for line in warned if "not loaded" in line],
            "failed": [line for line in warned if "ERROR" in line or "WARNING" in line]}  # fmt: skip
    (folder / "said.json").write_text(json.dumps(said))


def clip_names() -> list[str]:
    """The weights of SDXL's text encoders as ComfyUI names them, those that a LoRA changes."""
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    return [
        f"{tower}.transformer.text_model.encoder.layers.{number}.{kind}.weight"
        for tower, count in (("clip_l", 12), ("clip_g", 32)) for number in range(count) for kind in kinds
    ]  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
