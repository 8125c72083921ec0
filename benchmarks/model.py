"""Model folders of SDXL's and its refiner's layout with random weights, a LoRA, pictures to train on.

Nothing is fetched.

tiny   for the tests: wiring only
mini   8 million UNet parameters, fewer layers: whole sheets of pictures on a CPU
small  57 million UNet parameters: SDXL's shape with its widths divided by 6.7, and a VAE as dear as SDXL's
sdxl   SDXL's true configuration, for a GPU
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks import hardware
from benchmarks.count import SDXL_REFINER_UNET, SDXL_UNET

CAPTION = "a photo of <myspecialstyle> lace, piece {number}"
RANK = 16  # of the LoRA that is drawn with
PICTURES = 8  # a multiple of every batch size that is measured, so that no batch is smaller than the others


@dataclass(frozen=True)
class Tower:
    """A text encoder's size."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Size:
    """What decides the sizes of a model; the rest is the same for all."""

    unet: Mapping[str, Any]
    refiner: Mapping[str, Any]
    vae_widths: tuple[int, ...]
    vae_layers: int
    norm_groups: int
    towers: tuple[Tower, Tower]
    side_px: int


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
    "sdxl": Size(
        SDXL_UNET, SDXL_REFINER_UNET, (128, 256, 512, 512), 2, 32, (Tower(768, 12, 12), Tower(1280, 32, 20)), 1024
    ),
}  # fmt: skip


def build(folder: Path, size: str, device: str = "cpu") -> Path:
    """Write the model folder, drawn from a fixed seed; SDXL's own size in half precision. Built already: nothing.

    device  where the weights are drawn; 2.6 billion numbers take minutes on a CPU
    """
    if (folder / "model_index.json").is_file():
        return folder
    from diffusers import UNet2DConditionModel

    wanted = SIZES[size]
    makers = {
        "unet": lambda: UNet2DConditionModel(**wanted.unet),
        "vae": lambda: vae_of(wanted),
        "text_encoder": lambda: text_encoder(wanted.towers[0], with_projection=False),
        "text_encoder_2": lambda: text_encoder(wanted.towers[1], with_projection=True),
    }
    _write_networks(folder, makers, seed=0, is_half=size == "sdxl", device=device)
    for part, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        _write_tokenizer(folder / part, pad)
    _write_scheduler(folder)
    _write_index(folder, "StableDiffusionXLPipeline", {"force_zeros_for_empty_prompt": True})
    return folder


def build_refiner(folder: Path, size: str, device: str = "cpu") -> Path:
    """The same of a refiner: another UNet, a VAE and the second text encoder."""
    if (folder / "model_index.json").is_file():
        return folder
    from diffusers import UNet2DConditionModel

    wanted = SIZES[size]
    makers = {
        "unet": lambda: UNet2DConditionModel(**wanted.refiner),
        "vae": lambda: vae_of(wanted),
        "text_encoder_2": lambda: text_encoder(wanted.towers[1], with_projection=True),
    }
    _write_networks(folder, makers, seed=1, is_half=size == "sdxl", device=device)
    _write_tokenizer(folder / "tokenizer_2", "!")
    _write_scheduler(folder)
    more = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    nothing = {"text_encoder": [None, None], "tokenizer": [None, None]}
    _write_index(folder, "StableDiffusionXLImg2ImgPipeline", more | nothing)
    return folder


def build_adapter(run: Path, base: Path, side_px: int, rank: int = RANK) -> Path:
    """A finished adapter of random numbers for a base, in a run's folder; returns its weights in diffusers' names."""
    import torch

    from lace_lora import adapter as adapters
    from lace_lora.families import sdxl
    from lace_lora.run_folder import RunFolder

    folder = RunFolder(run)
    if folder.adapter_weights.is_file():
        return folder.adapter_weights
    unet = sdxl.empty_unet(str(base))
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


def vae_of(size: Size) -> Any:
    """A VAE of that size, with SDXL's four levels."""
    from diffusers import AutoencoderKL

    config = {
        "block_out_channels": size.vae_widths,
        "layers_per_block": size.vae_layers,
        "norm_num_groups": size.norm_groups,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "sample_size": size.side_px,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }
    return AutoencoderKL(**config)


def text_encoder(tower: Tower, with_projection: bool) -> Any:
    """A text encoder of that size; the second one of SDXL has a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        projection_dim=tower.width,
        max_position_embeddings=77,
        bos_token_id=len(_vocabulary()) - 2,
        eos_token_id=len(_vocabulary()) - 1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config) if with_projection else CLIPTextModel(config)


def _vocabulary() -> dict[str, int]:
    """CLIP's bytes without a merge: every printable sign, alone and as the end of a word."""
    signs = [chr(code) for code in range(33, 127)]
    return {
        token: number
        for number, token in enumerate([*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"])
    }


def _write_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    ends = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    rest = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(ends | rest), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(ends), encoding="utf-8")


def _write_networks(
    folder: Path, makers: Mapping[str, Callable[[], Any]], seed: int, is_half: bool, device: str
) -> None:
    """Draw and save the parts one after the other."""
    import torch

    from lace_lora.families.quiet import quiet

    torch.manual_seed(seed)
    for part, make in makers.items():
        with torch.device(device):
            module = make()
        with quiet():
            module.to(torch.float16 if is_half else torch.float32).save_pretrained(folder / part)
        del module


def _write_scheduler(folder: Path) -> None:
    from diffusers import EulerDiscreteScheduler

    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    ).save_pretrained(folder / "scheduler")


def _write_index(folder: Path, pipeline: str, more: Mapping[str, Any]) -> None:
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.39.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index | dict(more)), encoding="utf-8")
