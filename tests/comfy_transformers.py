"""Run in a process of its own, by ComfyUI's own code: load a LoRA for SD 3.5 or Flux, and say what came of it.

python tests/comfy_transformers.py CHECKOUT FOLDER: FOLDER holds transformer.safetensors, inputs.safetensors and
config.json (diffusers' names) and lora.safetensors; output.safetensors and said.json are written there.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from comfy_loader import stand_in


def main(checkout: str, folder: Path) -> None:
    sys.path.insert(0, checkout)
    stand_in("torchvision", "torchvision.transforms", "torchaudio", "torchaudio.functional", "torchsde", "kornia",
             "spandrel", "av", "scipy", "scipy.stats", "aiohttp", "sentencepiece")  # fmt: skip
    from comfy.cli_args import args as started

    started.cpu = True
    import comfy.lora
    import comfy.model_detection
    import comfy.model_patcher

    warned: list[str] = []
    logging.getLogger().addHandler(
        type("Kept", (logging.Handler,), {"emit": lambda self, record: warned.append(record.getMessage())})()
    )
    weights = load_file(folder / "transformer.safetensors")
    count = len(weights)
    moved = comfy.model_detection.convert_diffusers_mmdit(weights)
    assert not weights, f"{len(weights)} of {count} weights have no place in ComfyUI: {list(weights)[:3]}"
    told = json.loads((folder / "config.json").read_text())
    model = (_flux if "num_single_layers" in told else _sd3)(told, moved)
    lacking = model.diffusion_model.load_state_dict(moved, strict=False)
    assert not lacking.missing_keys and not lacking.unexpected_keys, lacking

    file = load_file(folder / "lora.safetensors")
    patches = comfy.lora.load_lora(file, comfy.lora.model_lora_keys_unet(model, {}))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    patched = patcher.add_patches(patches, 1.0)
    given = load_file(folder / "inputs.safetensors")
    with torch.no_grad():
        before = _said(model, given)
        patcher.patch_model(torch.device("cpu"))
        after = _said(model, given)
    save_file({"before": before.contiguous(), "after": after.contiguous()}, folder / "output.safetensors")
    said = {"keys": len(file), "layers": len(patches), "patched": len(patched),
            "not_loaded": [line for line in warned if "not loaded" in line],
            "failed": [line for line in warned if "ERROR" in line or "WARNING" in line]}  # fmt: skip
    (folder / "said.json").write_text(json.dumps(said))


def _said(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Flux takes times from 0 to 1, SD 3.5 from 0 to 1000."""
    if "guidance" in given:
        more = {"guidance": given["guidance"]}
        return model.diffusion_model(given["noisy"], given["times"] / 1000, given["text"], y=given["pooled"], **more)
    return model.diffusion_model(given["noisy"], given["times"], context=given["text"], y=given["pooled"])


def _flux(told: dict[str, Any], moved: dict[str, torch.Tensor]) -> Any:
    import comfy.model_base
    import comfy.supported_models

    width = told["attention_head_dim"] * told["num_attention_heads"]
    channels = told["in_channels"] // 4
    config = comfy.supported_models.Flux(
        {"image_model": "flux", "in_channels": channels, "out_channels": channels, "patch_size": 2,
         "vec_in_dim": told["pooled_projection_dim"], "context_in_dim": told["joint_attention_dim"],
         "hidden_size": width, "mlp_ratio": 4.0, "num_heads": told["num_attention_heads"],
         "depth": told["num_layers"], "depth_single_blocks": told["num_single_layers"],
         "axes_dim": told["axes_dims_rope"], "theta": 10000, "qkv_bias": True,
         "guidance_embed": told["guidance_embeds"], "dtype": torch.float32}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    return comfy.model_base.Flux(config, device=torch.device("cpu"))


def _sd3(told: dict[str, Any], moved: dict[str, torch.Tensor]) -> Any:
    import comfy.model_base
    import comfy.model_detection
    import comfy.supported_models

    found = comfy.model_detection.detect_unet_config(moved, "")
    config = comfy.supported_models.SD3(found | {"dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    return comfy.model_base.SD3(config, device=torch.device("cpu"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
