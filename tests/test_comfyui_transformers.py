"""ComfyUI's own loader takes the file for other tools of SD 3.5 and Flux, every key of it, to the same output (P25).

Needs a checkout of ComfyUI: LACE_COMFYUI=/path/to/ComfyUI, and LACE_COMFYUI_PYTHON where it has a Python of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lace_lora.families import flow, flux, sd35
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded
from tests import tiny_flow
from tests.generated import ROOT

with quiet():
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

CHECKOUT = os.environ.get("LACE_COMFYUI", "")
pytestmark = pytest.mark.skipif(
    not Path(CHECKOUT, "comfy/lora.py").is_file() if CHECKOUT else True,
    reason="LACE_COMFYUI names no checkout of ComfyUI (git clone https://github.com/comfyanonymous/ComfyUI)",
)
RANK, ALPHA = 4, 10
# ComfyUI tells SD 3.5's number of blocks by its width: 64 a block.
SD35 = tiny_flow.sd35_config(num_layers=2, attention_head_dim=64, num_attention_heads=2, caption_projection_dim=128)


@pytest.mark.parametrize("kind", ("attention", "attention+ff"))
@pytest.mark.parametrize("name", ("sd35", "flux"))
def test_comfyui_takes_every_key_and_gives_the_same_output(tmp_path: Path, name: str, kind: str) -> None:
    """Alpha is not rank; within 1e-4 of PEFT on diffusers' transformer."""
    torch.manual_seed(0)
    family = {"sd35": sd35, "flux": flux}[name]
    make = {"sd35": lambda: SD3Transformer2DModel(**SD35),
            "flux": lambda: FluxTransformer2DModel(**tiny_flow.flux_config())}[name]  # fmt: skip
    base = tiny_flow._rouse(make()).eval()
    given = inputs(32 if name == "sd35" else 16)
    if name == "flux":
        given["guidance"] = torch.tensor([3.0, 3.0])
    save_file({key: one.contiguous() for key, one in base.state_dict().items()}, tmp_path / "transformer.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(base.config)))
    save_file(given, tmp_path / "inputs.safetensors")
    before = ours(family, base, given)

    targets = family.lora_targets(kind)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets[0] if len(targets) == 1 else targets)
    inject_adapter_in_model(config, base)
    with torch.no_grad():
        for key, one in base.named_parameters():
            if "lora_B" in key:
                one.copy_(0.05 * torch.randn(one.shape))
    state = {f"transformer.{key}": one for key, one in get_peft_model_state_dict(base).items()}
    save_file(flow.for_other_tools(state, ALPHA), tmp_path / "lora.safetensors")
    python = os.environ.get("LACE_COMFYUI_PYTHON", sys.executable)
    line = [python, str(ROOT / "tests/comfy_transformers.py"), CHECKOUT, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

    said, outputs = json.loads((tmp_path / "said.json").read_text()), load_file(tmp_path / "output.safetensors")
    assert said["keys"] == 3 * said["layers"] == 3 * len(state) // 2 and not said["not_loaded"] and not said["failed"]
    assert torch.allclose(outputs["before"], before, atol=1e-4)
    changed, apart = (outputs["before"] - outputs["after"]).abs().max(), outputs["after"] - ours(family, base, given)
    print(f"{name} {kind}: {said['keys']} keys, {said['layers']} layers, {apart.abs().max():.2e} of {changed:.3f}")
    assert changed > 0.02 and apart.abs().max() < 1e-4


def inputs(pooled: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    shapes = {"noisy": (2, tiny_flow.CHANNELS, 8, 12), "text": (2, 20, tiny_flow.T5_WIDTH), "pooled": (2, pooled)}
    drawn = {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    return drawn | {"times": torch.tensor([10.0, 600.0])}


@torch.no_grad()
def ours(family: Any, base: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    words = Encoded(given["text"], given["pooled"])
    said: torch.Tensor = family.predict(
        base, given["noisy"], given["times"], words, torch.zeros(2, 0), given.get("guidance")
    )
    return said
