"""How often each part of the models is loaded and computed, and what each takes at any size: a count, not a timing.

parts  base unet, refiner unet, text 1, text 2, vae (loaded); vae encode, vae decode (computed)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import meters
from benchmarks.model import SIZES
from lace_lora import lora
from lace_lora.families.quiet import quiet
from lace_lora.families.random_model import Size, text_encoder, vae_of

with quiet():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

TOKENS = 77


@dataclass
class Tally:
    """What was done while it ran: loads by part, bytes of the files loaded, rows computed by part.

    A row is one picture or text in a batch; guidance makes two rows of a picture.
    """

    loads: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0


@contextmanager
def tally() -> Iterator[Tally]:
    """Count all loads and passes of SDXL's networks within it, made by our stages or diffusers' pipelines."""
    found, running = Tally(), [False]
    with ExitStack() as stack:
        for kind in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection):
            stack.enter_context(mock.patch.object(kind, "from_pretrained", _loading(kind, found)))
        for kind, method in (
            (UNet2DConditionModel, "forward"),
            (CLIPTextModel, "forward"),
            (CLIPTextModelWithProjection, "forward"),
            (AutoencoderKL, "encode"),
            (AutoencoderKL, "decode"),
        ):
            stack.enter_context(mock.patch.object(kind, method, _counted(kind, method, found, running)))
        yield found


def gflop_a_row(size: str, side_px: int, rank: int = 0) -> dict[str, float]:
    """GFLOP of one row of each part at a size, counted on torch's meta device, so nothing is computed.

    rank  of a LoRA on the base UNet's attention that is not fused; 0 for none, or one that is fused
    """
    wanted, cells = SIZES[size], side_px // 8
    with torch.device("meta"), quiet():
        passes = {
            "base unet": _unet_pass(wanted.unet, wanted, cells, 6, rank),
            "refiner unet": _unet_pass(wanted.refiner, wanted, cells, 5),
            "text 1": _text_pass(wanted, 0),
            "text 2": _text_pass(wanted, 1),
            "vae encode": _vae_pass(wanted, "encode", (1, 3, side_px, side_px)),
            "vae decode": _vae_pass(wanted, "decode", (1, 4, cells, cells)),
        }
        return {part: _gflop(make) for part, make in passes.items()}


# -- inside: counting what runs --


def _loading(kind: Any, found: Tally) -> Callable[..., Any]:
    original = kind.from_pretrained

    def from_pretrained(folder: Any, *given: Any, **named: Any) -> Any:
        made = original(folder, *given, **named)
        module = made[0] if isinstance(made, tuple) else made
        found.loads[_part(kind, module)] += 1
        found.bytes_read += sum(one.stat().st_size for one in Path(folder).glob("*.safetensors"))
        return made

    return from_pretrained


def _counted(kind: Any, method: str, found: Tally, running: list[bool]) -> Callable[..., Any]:
    """The method, noted; not where another part runs it within itself, as the second text encoder does the first's."""
    original = getattr(kind, method)

    def counted(module: Any, *given: Any, **named: Any) -> Any:
        if running[0]:
            return original(module, *given, **named)
        part = _part(kind, module)
        first: Tensor = given[0] if given else next(iter(named.values()))
        found.rows[f"{part} {method}" if part == "vae" else part] += len(first)
        running[0] = True
        try:
            return original(module, *given, **named)
        finally:
            running[0] = False

    return counted


def _part(kind: Any, module: Any) -> str:
    """Which part of the models it is; SDXL's refiner alone has four levels."""
    if kind is UNet2DConditionModel:
        return "refiner unet" if len(module.config.block_out_channels) == 4 else "base unet"
    return {AutoencoderKL: "vae", CLIPTextModel: "text 1", CLIPTextModelWithProjection: "text 2"}[kind]


# -- inside: one pass on the meta device --


def _unet_pass(config: Mapping[str, Any], size: Size, cells: int, numbers: int, rank: int = 0) -> Callable[[], Any]:
    unet = UNet2DConditionModel(**config)
    if rank:
        lora.attach(unet, "unet", lora.Shape(rank, rank, "attention"), 0)
    told = {"text_embeds": torch.zeros(1, size.towers[1].width), "time_ids": torch.zeros(1, numbers)}
    text_BLD = torch.zeros(1, TOKENS, config["cross_attention_dim"])
    noisy_BCHW = torch.zeros(1, 4, cells, cells)
    return lambda: unet(noisy_BCHW, torch.zeros(1), text_BLD, added_cond_kwargs=told)


def _text_pass(size: Size, number: int) -> Callable[[], Any]:
    encoder = text_encoder(size.towers[number], with_projection=number == 1)
    ids_BL = torch.zeros(1, TOKENS, dtype=torch.long)
    return lambda: encoder(ids_BL, output_hidden_states=True)


def _vae_pass(size: Size, method: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    vae = vae_of(size)
    return lambda: getattr(vae, method)(torch.zeros(shape))


def _gflop(make: Callable[[], Any]) -> float:
    read = meters.flops()
    with torch.no_grad():
        make()
    return read()["gflop"]
