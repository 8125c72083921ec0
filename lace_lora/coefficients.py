"""What a model takes at any size, as polynomials whose coefficients were counted on its architecture. Loads no torch.

`python -m benchmarks.count --write` counts them on torch's meta device and writes plan_data, a table for each base
model that families/known.py describes and for the demo; a test counts them again. n is the number of latent cells of a
picture (128 × 128 for SDXL at 1024 px), r a LoRA's rank:

flop         [1, n, n²]  of one pass of one row; two a multiply-add. Attention grows with the square
flop_a_rank  [1, n]      what each rank adds to a training step
peak         [1, n]      bytes held at most in one pass beside weights and gradients, in half precision; twice in fp32
encoded                  channels of a latent cell, and numbers of a caption as the denoiser reads it
guided_rows              of a pass that follows a prompt by guidance
largest                  numbers of the largest tensor, since a part is loaded onto a GPU tensor by tensor
quantizable              numbers in linear layers, which NF4 keeps in 4 bits and a little
layers                   that have numbers of their own: each takes some time however small a picture is
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lace_lora import demo
from lace_lora.errors import ModelError
from lace_lora.families import folders, known
from lace_lora.families.layouts import layout

DATA = Path(__file__).parent / "plan_data"
# Bytes of a number in NF4 with double quantisation: 4 bits, its share of an 8-bit scale for 64, and of that one's own.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
NF4_FILE_BYTES = 1_000_000_000  # of one of the files in which a base in 4 bits is kept; a tensor more at the most


@dataclass(frozen=True)
class Coefficients:
    """The table of one model; sizes in bytes, work in FLOP.

    is_counted  whether it was counted on this very architecture; else SDXL's is scaled by the number of weights
    name        of the table: models of one name take the same
    """

    table: Mapping[str, Any] = field(repr=False)
    is_counted: bool = True
    scale: float = 1.0
    px_a_cell: int = 8
    name: str = "sdxl"

    @property
    def guided_rows(self) -> int:
        """Rows of a pass that follows a prompt: with it and without it, or one of a model that is told how strictly."""
        return int(self.table["guided_rows"])

    def cells(self, width_px: int, height_px: int) -> int:
        """Latent cells of a picture."""
        return max(1, width_px // self.px_a_cell) * max(1, height_px // self.px_a_cell)

    def weight_bytes(self, part: str, width: int, quantization: str = "none") -> float:
        """Weights of denoiser, refiner, vae or text (all of them) in numbers of `width` bytes; denoisers in nf4 too."""
        whole = self.parameters(part)
        if quantization != "nf4":
            return whole * width
        small = self.table[part]["quantizable"] * self.scale
        return small * NF4_BYTES + (whole - small) * width

    def parameters(self, part: str) -> float:
        """Numbers of a part."""
        rows = self.table["text"] if part == "text" else [self.table[part]]
        return self.scale * sum(float(row["parameters"]) for row in rows)

    def largest(self, part: str) -> float:
        """Numbers of the largest tensor of a part. One of a shape of its own: as much larger as all of it is."""
        rows = self.table["text"] if part == "text" else [self.table[part]]
        return self.scale * max(float(row["largest"]) for row in rows)

    def layers(self, part: str, way: str = "") -> int:
        """Layers that one pass through a part goes through; way: encode or decode, of the vae."""
        rows = self.table["text"] if part == "text" else [self.table[part][way] if way else self.table[part]]
        return sum(int(row["layers"]) for row in rows)

    def forward_flop(self, part: str, cells: int) -> float:
        """One pass of one row through the denoiser or refiner, a LoRA fused in."""
        return self.scale * _value(self.table[part]["flop"], cells)

    def forward_bytes(self, part: str, cells: int, width: int) -> float:
        """What such a pass holds at most beside the weights."""
        return self.scale * _value(self.table[part]["peak"], cells) * width / 2

    def vae_flop(self, way: str, cells: int) -> float:
        """One picture through the VAE: encode or decode."""
        return self.scale * _value(self.table["vae"][way]["flop"], cells)

    def vae_bytes(self, way: str, cells: int, width: int) -> float:
        """What that holds at most beside the weights."""
        return self.scale * _value(self.table["vae"][way]["peak"], cells) * width / 2

    def caption_flop(self) -> float:
        """One caption through all text encoders."""
        return self.scale * sum(float(row["flop"]) for row in self.table["text"])

    def caption_bytes(self, width: int) -> float:
        """What that holds at most beside the weights."""
        return self.scale * max(float(row["peak"]) for row in self.table["text"]) * width / 2

    def caption_step_flop(self, rank: int) -> float:
        """One caption forward and backward through the text encoders with a LoRA of this rank; 0 for none."""
        return self.scale * sum(_value(row["step_flop"], rank) for row in self.table["text"])

    def caption_step_bytes(self, rank: int, width: int) -> float:
        """What that holds at most beside weights and gradients."""
        return self.scale * sum(_value(row["step_peak"], rank) for row in self.table["text"]) * width / 2

    def lora_parameters(self, targets: str, rank: int, has_text: bool) -> float:
        """Numbers that a LoRA learns, with that of the text encoders where they have one."""
        text = sum(row["parameters_a_rank"] for row in self.table["text"]) if has_text else 0
        return self.scale * rank * (self.table["training"][targets]["parameters_a_rank"] + text)

    def step_flop(self, cells: int, rank: int, targets: str, mode: str) -> float:
        """Forward and backward pass of one picture through the denoiser with its LoRA."""
        return self._step("flop", cells, rank, targets, mode)

    def step_bytes(self, cells: int, rank: int, targets: str, mode: str, width: int) -> float:
        """What that holds at most beside weights and gradients."""
        return self._step("peak", cells, rank, targets, mode) * width / 2

    def _step(self, name: str, cells: int, rank: int, targets: str, mode: str) -> float:
        row = self.table["training"][targets][mode]
        return self.scale * (_value(row[name], cells) + rank * _value(row[f"{name}_a_rank"], cells))


def of(model: str) -> Coefficients:
    """The table of a base model: for a folder the one of its shape, for a Hugging Face name the one that is known.

    A folder of another shape has its family's, scaled by its weights, and is_counted False; an unknown name that is not
    on this machine has SDXL's.
    """
    if named := known.by_name(model):
        return Coefficients(shipped(named.name), name=named.name)
    path = _folder(model)
    if path is None:
        return Coefficients(shipped("sdxl"))
    try:
        sizes = layout(str(path))
        config = folders.part_config(path, sizes.denoiser)
    except (ModelError, KeyError):  # said in its own words when the model is loaded
        return Coefficients(shipped("sdxl"), is_counted=False)
    alike = [one.name for one in known.ALL.values() if one.family == sizes.family]
    for name in [*alike, *(["demo"] if sizes.family == "sdxl" else [])]:
        table = shipped(name)
        if all(_plain(config.get(key)) == _plain(value) for key, value in table["shape"].items()):
            return Coefficients(table, px_a_cell=sizes.downscale, name=name)
    table = shipped(alike[0])
    scale = _weights_of(path / sizes.denoiser, table["denoiser"]["parameters"]) / table["denoiser"]["parameters"]
    return Coefficients(table, False, scale, sizes.downscale, f"{alike[0]} × {scale:.3g}")


@lru_cache(maxsize=16)
def shipped(name: str) -> Mapping[str, Any]:
    """A table that ships, such as sdxl or demo."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return found


@lru_cache(maxsize=64)
def _weights_of(folder: Path, usual: float) -> float:
    """Numbers in a denoiser's files; as many as usual where they cannot be read."""
    try:
        return max(1.0, float(folders.weight_bytes([folder], 1)))
    except (ModelError, OSError):
        return usual


def _folder(model: str) -> Path | None:
    """Where a model lies on this machine, None where it does not; nothing is fetched."""
    path = Path(demo.locate(model)).expanduser()
    if path.is_dir():
        return path
    return Path(folders.model_folder(model)) if folders.is_here(model) else None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _value(coefficients: Sequence[float], at: float) -> float:
    return sum(one * at**power for power, one in enumerate(coefficients))
