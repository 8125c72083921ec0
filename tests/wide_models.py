"""A small model of each family with widths of 64, as 4-bit blocks need; the rest is as in the tiny ones."""

import shutil
from pathlib import Path

from tests.conftest import build_tiny_refiner, build_tiny_sdxl
from tests.tiny_models import build_tiny_sd15

FAMILIES = ("sdxl", "sd15", "sd35", "flux")


def build(family: str, folder: Path) -> Path:
    """Write one; random weights, the same each time."""
    from tests import tiny_flow  # which loads torch

    if family == "sd35":
        return tiny_flow.build_sd35(folder, attention_head_dim=32, caption_projection_dim=64)
    if family == "flux":
        return tiny_flow.build_flux(folder, attention_head_dim=32, axes_dims_rope=(8, 12, 12))
    builder = {"sdxl": build_tiny_sdxl, "sd15": build_tiny_sd15, "refiner": build_tiny_refiner}[family]
    return _with_wide_unet(builder(folder))


def _with_wide_unet(folder: Path) -> Path:
    import torch

    from lace_lora.families.quiet import quiet

    with quiet():
        from diffusers import UNet2DConditionModel
    old = UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(0)
    wide = {"block_out_channels": tuple(64 for _ in old.config.block_out_channels), "norm_num_groups": 8}
    unet = UNet2DConditionModel.from_config({**old.config, **wide})
    shutil.rmtree(folder / "unet")
    unet.eval().save_pretrained(folder / "unet")
    return folder
