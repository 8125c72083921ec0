"""Model folders of SDXL's and its refiner's layout with random weights, of any size; nothing is fetched.

SDXL_SIZE is the true one: what such a model takes, the real one takes too. Its pictures are noise.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lace_lora.errors import MachineError
from lace_lora.families.known import SDXL_REFINER_UNET, SDXL_UNET
from lace_lora.machine import GIB

TRUE_GIB = 13.5  # both folders at the true size: 5.5 and 4.9 billion bytes of UNets, 3 of text encoders, VAEs
TRUE_WORDS = 49408  # of CLIP's vocabulary


@dataclass(frozen=True)
class Tower:
    """A text encoder's size."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Size:
    """What decides the sizes of a model; the rest is the same for all.

    words    of the vocabulary; None for as many as the tokenizer knows
    is_half  whether the weights are kept in half precision
    """

    unet: Mapping[str, Any]
    refiner: Mapping[str, Any]
    vae_widths: tuple[int, ...]
    vae_layers: int
    norm_groups: int
    towers: tuple[Tower, Tower]
    side_px: int
    words: int | None = None
    is_half: bool = False


SDXL_SIZE = Size(
    SDXL_UNET, SDXL_REFINER_UNET, (128, 256, 512, 512), 2, 32, (Tower(768, 12, 12), Tower(1280, 32, 20)), 1024,
    TRUE_WORDS, is_half=True,
)  # fmt: skip


def check_room(folder: Path, gib: float = TRUE_GIB) -> None:
    """Raises MachineError where the disk has no room for both models at their true size."""
    free = shutil.disk_usage(folder).free / GIB
    if free < gib:
        raise MachineError(
            f"Models of SDXL's true size take {gib:.0f} GB, and {folder} has {free:.0f} GB free. Free some space, name "
            "a folder on another disk (--cache-dir FOLDER), or a model that you have (--pretrained-model FOLDER)."
        )


def build(folder: Path, size: Size = SDXL_SIZE, device: str = "cpu") -> Path:
    """Write the model folder, drawn from a fixed seed. Built already: nothing.

    device  where the weights are drawn; 2.6 billion numbers take minutes on a CPU
    """
    if (folder / "model_index.json").is_file():
        return folder
    from diffusers import UNet2DConditionModel

    makers = {
        "unet": lambda: UNet2DConditionModel(**size.unet),
        "vae": lambda: vae_of(size),
        "text_encoder": lambda: text_encoder(size.towers[0], with_projection=False, words=size.words),
        "text_encoder_2": lambda: text_encoder(size.towers[1], with_projection=True, words=size.words),
    }
    _write_networks(folder, makers, seed=0, is_half=size.is_half, device=device)
    for part, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        _write_tokenizer(folder / part, pad)
    _write_scheduler(folder)
    _write_index(folder, "StableDiffusionXLPipeline", {"force_zeros_for_empty_prompt": True})
    return folder


def build_refiner(folder: Path, size: Size = SDXL_SIZE, device: str = "cpu") -> Path:
    """The same of a refiner: another UNet, a VAE and the second text encoder."""
    if (folder / "model_index.json").is_file():
        return folder
    from diffusers import UNet2DConditionModel

    makers = {
        "unet": lambda: UNet2DConditionModel(**size.refiner),
        "vae": lambda: vae_of(size),
        "text_encoder_2": lambda: text_encoder(size.towers[1], with_projection=True, words=size.words),
    }
    _write_networks(folder, makers, seed=1, is_half=size.is_half, device=device)
    _write_tokenizer(folder / "tokenizer_2", "!")
    _write_scheduler(folder)
    more = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    nothing = {"text_encoder": [None, None], "tokenizer": [None, None]}
    _write_index(folder, "StableDiffusionXLImg2ImgPipeline", more | nothing)
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


def text_encoder(tower: Tower, with_projection: bool, words: int | None = None) -> Any:
    """A text encoder of that size; the second one of SDXL has a projection. words: None, as the tokenizer knows."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=words or len(_vocabulary()),
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
