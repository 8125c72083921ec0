"""Model folders of SDXL's and its refiner's layout with random weights, a LoRA, pictures to train on.

Nothing is fetched.

tiny   for the tests: wiring only
mini   8 million UNet parameters, fewer layers: whole sheets of pictures on a CPU
small  57 million UNet parameters: SDXL's shape with its widths divided by 6.7, and a VAE as dear as SDXL's
sdxl   SDXL's true configuration, for a GPU
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks import hardware
from lace_lora.families import random_model
from lace_lora.families.known import SDXL_REFINER_UNET, SDXL_UNET
from lace_lora.families.random_model import Size, Tower

CAPTION = "a photo of <myspecialstyle> lace, piece {number}"
RANK = 16  # of the LoRA that is drawn with
PICTURES = 8  # a multiple of every batch size that is measured, so that no batch is smaller than the others


def _unet(
    widths: list[int], heads: list[int], layers: list[int], text: int, pooled: int, groups: int
) -> dict[str, Any]:
    return SDXL_UNET | {
        "block_out_channels": widths,
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "transformer_layers_per_block": layers,
        "cross_attention_dim": text,
        "norm_num_groups": groups,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": pooled + 6 * 32,
        "sample_size": 64,
    }


def _refiner(widths: list[int], heads: list[int], layers: int, pooled: int, groups: int) -> dict[str, Any]:
    """It reads the second text encoder only, and five size numbers."""
    return SDXL_REFINER_UNET | {
        "block_out_channels": widths,
        "attention_head_dim": heads,
        "transformer_layers_per_block": layers,
        "cross_attention_dim": pooled,
        "norm_num_groups": groups,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": pooled + 5 * 32,
        "sample_size": 64,
    }


SIZES = {
    "tiny": Size(
        _unet([8, 16, 16], [1, 2, 2], [1, 1, 1], 32, 16, 4), _refiner([8, 16, 16, 16], [1, 2, 2, 2], 1, 16, 4),
        (4, 4, 8, 8), 1, 4, (Tower(16, 3, 2), Tower(16, 3, 2)), 64,
    ),
    # In FLOPs of one pass of the base's UNet, one of the refiner's is 1.1 and a decoded picture 1.5 at SDXL's size and
    # 1024 px, and here at 128 px about as much.
    "mini": Size(
        _unet([32, 64, 128], [1, 2, 4], [1, 1, 2], 96, 64, 8), _refiner([40, 72, 144, 144], [1, 2, 4, 4], 1, 64, 8),
        (8, 16, 40, 40), 2, 8, (Tower(32, 6, 2), Tower(64, 8, 2)), 128,
    ),
    # Of a step's FLOPs the VAE's encoder takes 1/3 at SDXL's size and at 1024 px, and here about as much.
    "small": Size(
        _unet([48, 96, 192], [1, 2, 3], [1, 2, 10], 288, 180, 16),
        _refiner([64, 128, 256, 256], [1, 2, 4, 4], 4, 180, 16),
        (20, 40, 80, 80), 2, 4, (Tower(108, 6, 2), Tower(180, 8, 3)), 512,
    ),
    "sdxl": random_model.SDXL_SIZE,
}  # fmt: skip


def build(folder: Path, size: str, device: str = "cpu") -> Path:
    """Write the model folder; see random_model.build."""
    return random_model.build(folder, SIZES[size], device)


def build_refiner(folder: Path, size: str, device: str = "cpu") -> Path:
    """The same of a refiner."""
    return random_model.build_refiner(folder, SIZES[size], device)


def build_adapter(run: Path, base: Path, side_px: int, rank: int = RANK) -> Path:
    """A finished adapter of random numbers for a base, in a run's folder; returns its weights in diffusers' names."""
    import torch

    from lace_lora import adapter as adapters
    from lace_lora.families import sdxl
    from lace_lora.run_folder import RunFolder

    folder = RunFolder(run)
    if folder.adapter_weights.is_file():
        return folder.adapter_weights
    unet = sdxl.empty_denoiser(str(base))
    parameters = adapters.attach(unet, "unet", adapters.Shape(rank, rank, "attention"), 0)
    chance = torch.Generator().manual_seed(0)
    state = {name: torch.randn(one.shape, generator=chance) * 0.02 for name, one in parameters.items()}
    facts = adapters.AdapterFacts(
        family=sdxl.FAMILY, base_model=str(base), rank=rank, alpha=rank, resolution=side_px,
        lora_targets=tuple(sdxl.lora_targets("attention")), concept_token="<myspecialstyle>",
        instance_prompt="a photo of <myspecialstyle>", class_prompt="a photo of a painting",
        versions=hardware.versions(),
    )  # fmt: skip
    return adapters.save(state, folder, facts).path


def draw_pictures(folder: Path, side_px: int, count: int = PICTURES) -> Path:
    """Draw square pictures a quarter larger than `side_px`, so that they are resized, and write their captions.

    annotations.txt is for us, metadata.jsonl for the `datasets` package.
    """
    if (folder / "annotations.txt").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    side = side_px * 5 // 4
    captions = {f"lace_{number}.jpg": CAPTION.format(number=number) for number in range(count)}
    for number, name in enumerate(captions):
        picture = Image.new("RGB", (side, side), (20, 24, 30 + 15 * number))
        pen = ImageDraw.Draw(picture)
        step = 14 + 2 * number
        for left in range(0, side, step):
            for top in range(0, side, step):
                pen.ellipse((left, top, left + step, top + step), outline=(235, 230, 215), width=2)
        picture.save(folder / name, quality=92)
    rows = [json.dumps({"file_name": name, "text": caption}) for name, caption in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    lines = [f"{folder / name}\t{caption}\n" for name, caption in captions.items()]
    (folder / "annotations.txt").write_text("".join(lines), encoding="utf-8")
    return folder
