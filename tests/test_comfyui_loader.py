"""ComfyUI's own loader takes the file for other tools, every key of it, to the same output (L3, P25, C1).

Needs a checkout of ComfyUI: LACE_COMFYUI=/path/to/ComfyUI, and LACE_COMFYUI_PYTHON where it has a Python of its own.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lace_lora import adapter
from lace_lora.families import foreign_names, sdxl
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder
from tests.conftest import unet_config
from tests.generated import ROOT
from tests.test_adapter import FACTS

with quiet():
    from diffusers import UNet2DConditionModel

CHECKOUT = os.environ.get("LACE_COMFYUI", "")
pytestmark = pytest.mark.skipif(
    not Path(CHECKOUT, "comfy/lora.py").is_file() if CHECKOUT else True,
    reason="LACE_COMFYUI names no checkout of ComfyUI (git clone https://github.com/comfyanonymous/ComfyUI)",
)
# ComfyUI normalises in 32 groups and has one width of heads, so this one is a little wider than the other tests' model.
WIDTHS = {"block_out_channels": (32, 64, 128), "attention_head_dim": (1, 2, 4), "norm_num_groups": 32}
RANK, ALPHA = 4, 10


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(**unet_config(cross_attention_dim=32, pooled=16, time_ids=6) | WIDTHS).eval()


def learnt(unet: Any, kind: str, use_dora: bool = False) -> tuple[dict[str, torch.Tensor], Any]:
    """A LoRA whose B is not zero, and the UNet that carries it by PEFT."""
    carrying = UNet2DConditionModel(**unet.config).eval()
    carrying.load_state_dict(unet.state_dict())
    adapter.attach(carrying, "unet", adapter.Shape(RANK, ALPHA, kind, use_dora=use_dora), 3)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, one in adapter.parameters({"unet": carrying}).items():
            if ".lora_B." in name:
                one.copy_(0.05 * torch.randn(one.shape, generator=chance))
    return adapter.state_of({"unet": carrying}), carrying


def in_comfyui(folder: Path, unet: Any, lora: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor]:
    """What ComfyUI says and gives, and what the inputs were for ours."""
    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    noisy, text, pooled = (torch.randn(shape, generator=chance) for shape in ((2, 4, 16, 16), (2, 77, 32), (2, 16)))
    sizes = torch.full((2, 6), 64.0)
    steps = torch.tensor([10, 600])
    y = torch.cat([pooled, unet.add_time_proj(sizes.flatten()).reshape(2, -1)], dim=1)
    save_file({"noisy": noisy, "text": text, "timesteps": steps, "y": y}, folder / "inputs.safetensors")
    save_file({name: one.contiguous() for name, one in unet.state_dict().items()}, folder / "unet.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(unet.config)))
    (folder / "lora.safetensors").write_bytes(lora.read_bytes())
    python = os.environ.get("LACE_COMFYUI_PYTHON", sys.executable)
    script = ROOT / "tests/comfy_loader.py"
    done = subprocess.run([python, str(script), CHECKOUT, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    given = {"noisy": noisy, "text": text, "pooled": pooled, "sizes": sizes, "steps": steps}
    return json.loads((folder / "said.json").read_text()), load_file(folder / "output.safetensors"), given


@torch.no_grad()
def ours(unet: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return sdxl.predict(
        unet, given["noisy"], given["steps"], sdxl.Encoded(given["text"], given["pooled"]), given["sizes"]
    )


@pytest.mark.parametrize("kind", ["attention", "attention+ff", "attention+ff+conv"])
def test_comfyui_takes_every_key_and_gives_the_same_output(unet: Any, tmp_path: Path, kind: str) -> None:
    """L3, P25: alpha is not rank; within 1e-4 of PEFT on diffusers' UNet."""
    state, carrying = learnt(unet, kind)
    targets = tuple(sdxl.lora_targets(kind))
    adapter.save(state, RunFolder(tmp_path / "lace"), replace(FACTS, rank=RANK, alpha=ALPHA, lora_targets=targets))
    said, outputs, given = in_comfyui(tmp_path / "comfy", unet, RunFolder(tmp_path / "lace").adapter_for_tools)
    assert said["keys"] == 3 * said["layers"] and said["layers"] == said["patched_in_unet"] == len(state) // 2
    assert not said["not_loaded"] and not said["failed"]
    assert torch.allclose(outputs["before"], ours(unet, given), atol=1e-4)
    changed, difference = (outputs["before"] - outputs["after"]).abs().max(), outputs["after"] - ours(carrying, given)
    print(f"{kind}: {said['keys']} keys, {said['layers']} layers, {difference.abs().max():.2e} of {changed:.2f}")
    assert changed > 0.05 and difference.abs().max() < 1e-4


def test_what_is_left_of_dora_in_comfyui(unet: Any, tmp_path: Path) -> None:
    """P25: every key is taken; ComfyUI divides by the length of the base's rows and not of the changed ones."""
    state, carrying = learnt(unet, "attention", use_dora=True)
    facts = replace(FACTS, rank=RANK, alpha=ALPHA, lora_targets=tuple(sdxl.lora_targets("attention")), use_dora=True)
    adapter.save(state, RunFolder(tmp_path / "lace"), facts)
    said, outputs, given = in_comfyui(tmp_path / "comfy", unet, RunFolder(tmp_path / "lace").adapter_for_tools)
    assert said["keys"] == 4 * said["layers"] and said["layers"] == len(state) // 3 and not said["not_loaded"]
    difference = (outputs["after"] - ours(carrying, given)).abs().max()
    changed = (outputs["after"] - outputs["before"]).abs().max()
    print(f"DoRA: {said['keys']} keys, {difference:.2e} of {changed:.2f}")
    assert difference < changed


def test_comfyui_takes_the_text_encoders_layers_too(unet: Any, tmp_path: Path) -> None:
    """P25: te1 and te2 at SDXL's true size, by name."""
    layers = foreign_names.model_layers(None)
    state = {}
    for part in ("text_encoder", "text_encoder_2"):
        for name, (wide, inner) in layers[part].items():
            if name.endswith(("q_proj", "k_proj", "v_proj", "out_proj")):
                state[f"{part}.{name}.lora_A.weight"] = torch.zeros(1, inner)
                state[f"{part}.{name}.lora_B.weight"] = torch.zeros(wide, 1)
    facts = replace(FACTS, rank=1, alpha=1, train_text_encoder=True)
    adapter.save(state, RunFolder(tmp_path / "lace"), facts)
    said, _, _ = in_comfyui(tmp_path / "comfy", unet, RunFolder(tmp_path / "lace").adapter_for_tools)
    assert said["layers"] == 4 * (12 + 32) and not said["not_loaded"]


def test_what_comfyuis_trainer_writes_is_read_back(unet: Any, tmp_path: Path) -> None:
    """P25: its own names for every layer of the UNet, convolutions flat, to the same output as ComfyUI's own."""
    state, carrying = learnt(unet, "attention+ff+conv")
    targets = tuple(sdxl.lora_targets("attention+ff+conv"))
    adapter.save(state, RunFolder(tmp_path / "lace"), replace(FACTS, rank=RANK, alpha=ALPHA, lora_targets=targets))
    file = load_file(RunFolder(tmp_path / "lace").adapter_for_tools)
    flat = {name: one.flatten(1) if name.endswith("lora_down.weight") else one for name, one in file.items()}
    save_file(flat, tmp_path / "trained.safetensors")
    said, outputs, given = in_comfyui(tmp_path / "comfy", unet, tmp_path / "trained.safetensors")
    assert not said["not_loaded"] and not said["failed"]
    layers = {"unet": {name: tuple(one.weight.shape) for name, one in unet.named_modules() if hasattr(one, "weight")
                       and one.weight is not None and one.weight.dim() > 1}}  # fmt: skip
    named = foreign_names.read(flat, layers, 2)
    for (_, layer), roles in named.layers.items():
        halves = foreign_names.halves({role: flat[name] for role, name in roles.items()}, layers["unet"][layer])
        assert not isinstance(halves, str) and torch.equal(halves[0], state[f"unet.{layer}.lora_A.weight"])
    assert not named.strange
    assert (outputs["after"] - ours(carrying, given)).abs().max() < 1e-4


def test_our_workflows_hold_what_comfyuis_nodes_ask_for(tmp_path: Path) -> None:
    """P25, C1: every input is there, of the right kind and within bounds; the editor's fields stand in its order."""
    from lace_lora import workflow, workflow_page

    asked = workflow.Design("sd_xl_base_1.0.safetensors", "a rosette", 7, 512, 768, lora_name="lace.safetensors")
    asked = replace(asked, save_as="lace", refiner_prompt="a textile")
    for sampler in workflow.SAMPLERS:
        for refine in ("none", "img2img", "ensemble"):
            refiner = None if refine == "none" else "sd_xl_refiner_1.0.safetensors"
            negative = "" if refine == "none" else "blurred"
            one = replace(asked, refine=refine, refiner=refiner, scheduler=sampler, predicts_v=sampler == "euler")
            flow = workflow.design(replace(one, negative_prompt=negative)).workflow
            (tmp_path / f"{sampler}-{refine}.json").write_text(json.dumps(flow))
    python = os.environ.get("LACE_COMFYUI_PYTHON", sys.executable)
    line = [python, str(ROOT / "tests/comfy_nodes.py"), CHECKOUT, *map(str, sorted(tmp_path.glob("*.json")))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert "\nSAID " in done.stdout, done.stderr[-2000:]
    faults, fields = json.loads(done.stdout.split("\nSAID ")[1])
    assert len(faults) == 15 and not any(faults.values()), faults
    assert fields == {name: list(kind.fields) for name, kind in workflow_page.KINDS.items()}
