"""The pictures of a grid over checkpoints × lora_scale: what decides each, and drawing those that are missing.

Every model is loaded once, one after the other. A picture is drawn alone, so that it depends on nothing but what its
metadata tells: inference.run draws the same bytes with its adapter, strength and seed, and refine none.

C latent channels (4) · H,W latent cells (px/8)
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lace_lora import adapter as adapters
from lace_lora import (
    candidates,
    checkpoint,
    counting,
    families,
    journal,
    pictures,
    quantize,
    stages,
    stopping,
    tensor_files,
    tokens,
)
from lace_lora import lora as layers
from lace_lora.adapter import Adapter
from lace_lora.batches import in_batches
from lace_lora.candidates import Candidate
from lace_lora.errors import LaceError, ModelError, PicturesError
from lace_lora.families import Family, folders, memory
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded, TextParts
from lace_lora.file_names import public_name
from lace_lora.image_files import read_picture
from lace_lora.mishaps import out_of_memory
from lace_lora.quantize import FourBits
from lace_lora.run_folder import GridFolder
from lace_lora.sampling import Sampling

with quiet():
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file
    from torch import Tensor

Say = Callable[[str], None]
Voice = tuple[str, float]  # whose reading of the prompts: the digest of a LoRA that changed it, and its strength
PLAIN: Voice = ("", 0.0)


@dataclass(frozen=True)
class Cell:
    """One picture. The base model's, lora_scale 0, belongs to every row and has step None."""

    step: int | None
    digest: str
    lora_scale: float
    prompt: str
    seed: int
    key: str
    path: Path


@dataclass(frozen=True)
class Work:
    """What decides the pictures, checked before a model is loaded."""

    folder: GridFolder
    rows: tuple[Candidate, ...]
    scales: tuple[float, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompt: str
    sampling: Sampling
    width: int
    height: int
    base_model: str
    vae_model: str | None
    precision: str
    device: str
    shared: Mapping[str, Any]  # what all cells have in common, as their key takes it
    four_bits: FourBits | None = None  # the base in NF4; None as it is

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in, but for the VAE."""
        return stages.DTYPES[self.precision]

    def row_of(self, cell: Cell) -> Candidate:
        """Whose picture a cell is; not for the base model's."""
        return next(row for row in self.rows if row.digest == cell.digest)


def draw(work: Work, missing: Sequence[Cell], left_out: list[str], stop: stopping.Stop, say: Say) -> None:
    """Make the missing cells, stage by stage; what a stage leaves of a cell is on the disk, so a cut costs one cell.

    left_out  gets a sentence for each checkpoint that went away since
    """
    to_draw = [cell for cell in missing if _kept(work, cell) is None]
    if to_draw:
        shelf = _Shelf(work, left_out, say)
        _draw(work, to_draw, _read(work, to_draw, shelf), shelf, stop, say)
    if missing and not stop.asked:
        _decode(work, missing, stop, say)


def cells_of(work: Work) -> list[Cell]:
    """Every picture once: the base model's first, then row by row from weak to strong."""
    found: dict[str, Cell] = {}
    for row in work.rows:
        for scale in work.scales:
            for cell in cells_at(work, row, scale):
                found.setdefault(cell.key, cell)
    return sorted(found.values(), key=lambda cell: cell.step is not None)


def cells_at(work: Work, row: Candidate, scale: float) -> list[Cell]:
    """The pictures of one place of the grid: every prompt at every seed."""
    step, digest = (row.step, row.digest) if scale else (None, "")
    cells = []
    for prompt in work.prompts:
        for seed in work.seeds:
            key = key_of({"lora": digest, "lora_scale": scale, "prompt": prompt, "seed": seed, **work.shared})
            place = f"step-{row.step:06d}_scale-{scale:g}" if scale else "base"
            path = work.folder.cells / f"{place}_seed-{seed}_{key[:12]}.png"
            cells.append(Cell(step, digest, scale, prompt, seed, key, path))
    return cells


def key_of(facts: Mapping[str, Any]) -> str:
    """sha256 of plain values, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def key_in(path: Path) -> str | None:
    """What a picture's metadata says decided it; None where it says nothing or cannot be read."""
    try:
        return str(pictures.read_details(path).get("key"))
    except PicturesError:
        return None


def is_drawn(cell: Cell, path: Path) -> bool:
    """Whether a file is this cell's picture, and whole."""
    return path.is_file() and key_in(path) == cell.key and read_picture(path).image is not None


# -- inside --


def _voice(work: Work, cell: Cell) -> Voice:
    """Who reads the prompt of a cell: the base model's encoders, or those that a LoRA changed."""
    if cell.step is None or not (work.rows[0].facts.train_text_encoder or work.rows[0].facts.learns_token):
        return PLAIN
    return cell.digest, cell.lora_scale


def _by_place(cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Cell]]]:
    """Cells of the same LoRA at the same strength, together with the first of them."""
    places: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        places.setdefault((cell.digest, cell.lora_scale), []).append(cell)
    yield from ((group[0], group) for group in places.values())


@dataclass
class _Shelf:
    """The run's LoRAs, one in hand: all of them at once would be too much to hold, and Drive is slow to read again."""

    work: Work
    left_out: list[str]
    say: Say
    digest: str = ""
    lora: Adapter | None = None

    def of(self, cell: Cell) -> Adapter | None:
        """The LoRA of a cell; None where the checkpoint went away since, which is told once."""
        if cell.digest != self.digest:
            row = self.work.row_of(cell)
            self.digest, self.lora = cell.digest, None
            try:
                self.lora = candidates.load(row)
            except (LaceError, OSError) as error:
                line = f"step {row.step} is left out: {error}"
                if line not in self.left_out:
                    self.left_out.append(line)
                    self.say(f"! {line}")
        return self.lora


def _read(work: Work, cells: Sequence[Cell], shelf: _Shelf) -> dict[Voice, stages.Words]:
    """The prompts as every LoRA in question reads them, with the text encoders loaded once."""
    family = families.of(work.base_model)
    with out_of_memory("reading the prompts"):
        text = family.load_text(work.base_model, work.dtype, work.device)
        try:
            return _readings(work, family, text, cells, shelf)
        finally:
            del text
            memory.give_back_memory()


def _readings(
    work: Work, family: Family, text: TextParts, cells: Sequence[Cell], shelf: _Shelf
) -> dict[Voice, stages.Words]:
    """Before another LoRA is fused, the layers of the one before get their own weights back from a copy, bit for bit:
    of SDXL's encoders that is half a gigabyte at most."""
    texts = sorted({*work.prompts, work.negative_prompt})
    words = {PLAIN: _encoded(family, text, texts)}
    modules = adapters.text_modules(text)
    own: dict[str, Tensor] = {}
    for first, _ in _by_place(cells):
        voice = _voice(work, first)
        lora = shelf.of(first) if voice != PLAIN else None
        if lora is None:
            continue
        weights = {name: one for part, module in modules.items() for name, one in _touched(module, lora, part).items()}
        own = own or {name: one.clone() for name, one in weights.items()}
        for name, one in weights.items():
            one.copy_(own[name])
        if lora.facts.train_text_encoder:
            adapters.fuse_text(text, lora, voice[1])
        if lora.token_rows and len(words) == 1:
            tokens.put_in(text, lora.facts.concept_token, lora.token_rows)
        elif lora.token_rows:  # the word is there already
            for encoder, row_1d in zip(text.encoders, lora.token_rows.values(), strict=True):
                encoder.get_input_embeddings().row.data.copy_(row_1d)
        words[voice] = _encoded(family, text, texts)
    return words


def _encoded(family: Family, text: TextParts, texts: Sequence[str]) -> stages.Words:
    """One text at a time, as stages.encode_prompts does it."""
    found = {one: family.encode_captions(text, [one]) for one in texts}
    return {name: Encoded(one.text_BLD.cpu(), one.pooled_BP.cpu()) for name, one in found.items()}


def _touched(module: Any, lora: Adapter, part: str) -> dict[str, Tensor]:
    """The weights that a LoRA changes, by their names in the module's files, with the part in front."""
    modules = dict(module.named_modules())
    return {f"{part}.{name}.weight": modules[name].weight for name in layers.layers_of(lora.state, part)}


def _draw(
    work: Work, cells: Sequence[Cell], words: Mapping[Voice, stages.Words], shelf: _Shelf, stop: stopping.Stop, say: Say
) -> None:
    """The denoiser, loaded once: every LoRA at every strength fused into it in turn; latents are kept on the disk.

    One in 4 bits gets each LoRA beside its layers; the base model's own pictures come before the first of them.
    """
    tell = counting.lines(say, "drawn", len(cells))
    family = families.of(work.base_model)
    with out_of_memory("drawing"):
        denoiser = _loaded(work, family)
        try:
            fused: Adapter | None = None
            for first, group in _by_place(cells):
                if first.step is not None:
                    lora = shelf.of(first) if _voice(work, first) in words else None
                    if lora is None:
                        continue
                    if work.four_bits is not None:
                        adapters.put_on(denoiser, lora, first.lora_scale)
                    else:
                        if fused is not None:
                            _put_back(family, denoiser, work.base_model, fused)
                        adapters.fuse(denoiser, lora, first.lora_scale)
                        fused = lora
                for cell in stop.until(group):
                    _draw_one(work, denoiser, cell, words[_voice(work, cell)])
                    tell(1)
                if stop.asked:
                    return
        finally:
            del denoiser
            memory.give_back_memory()


def _loaded(work: Work, family: Family) -> Any:
    """The base's denoiser, as it is or in 4 bits."""
    if work.four_bits is None:
        return family.load_denoiser(work.base_model, work.dtype, work.device)
    kept = work.four_bits
    return quantize.load_nf4(work.base_model, work.dtype, work.device, kept.cache_dir, kept.say).train()


def _draw_one(work: Work, denoiser: Any, cell: Cell, words: stages.Words) -> None:
    """Alone: in a batch the last bits would depend on which other pictures are still missing."""
    batches = in_batches([cell.prompt], [work.negative_prompt], [cell.seed], work.width, work.height, 1)
    [drawn] = stages.denoise_with(denoiser, work.base_model, batches, words, work.sampling, device=work.device)
    kept = {"finished": drawn.finished_BCHW[0].contiguous()}
    checkpoint.write_file(_latents_at(work, cell), lambda path: tensor_files.write(path, kept))


def _put_back(family: Family, denoiser: Any, model: str, lora: Adapter) -> None:
    """Give the layers that a LoRA was fused into the weights of the model's own file again, bit for bit as loaded.

    Subtracting the LoRA would leave its rounding. A copy of these layers would be nearly a second model in memory: with
    feed-forward layers a LoRA is on 85 % of SDXL's weights. Loading anew would read the other layers for nothing.
    """
    part = family.DENOISER
    waiting = {name.removeprefix(f"{part}."): one for name, one in _touched(denoiser, lora, part).items()}
    folder = Path(folders.model_folder(model)) / part
    is_half = family.base_dtype(denoiser) in (torch.float16, torch.bfloat16)
    for file in folders.weight_files(folder, wants_half=is_half):
        with safe_open(file, framework="pt") as opened:
            for name in [name for name in opened.keys() if name in waiting]:
                waiting.pop(name).copy_(opened.get_tensor(name))
    if waiting:
        raise ModelError(f"{folder} changed while the grid was drawn ({next(iter(waiting))} is gone). Draw it again.")


def _latents_at(work: Work, cell: Cell) -> Path:
    return work.folder.latents / f"{cell.key}.safetensors"


def _kept(work: Work, cell: Cell) -> Tensor | None:
    """Latents CHW of a cell that is drawn and no picture yet; None where there are none that can be read."""
    try:
        return load_file(_latents_at(work, cell))["finished"]
    except (OSError, SafetensorError, KeyError):
        return None


def _decode(work: Work, cells: Sequence[Cell], stop: stopping.Stop, say: Say) -> None:
    """The VAE: every cell that is drawn becomes a file, which tells all that made it."""
    drawn = [(cell, kept) for cell in cells if (kept := _kept(work, cell)) is not None]
    named = ((cell.path.name, kept) for cell, kept in stop.until(drawn))
    images = stages.decode(
        work.base_model, named, device=work.device, dtype=work.dtype, vae_model=work.vae_model,
        repeat=work.sampling.repeat, say=say,
    )  # fmt: skip
    tell, versions = counting.lines(say, "picture", len(drawn)), journal.versions()
    for image, (cell, _) in zip(images, drawn, strict=False):  # the images first: so the VAE is given back
        details = _details(work, cell) | {"versions": versions}
        pictures.write_picture(image, cell.path, pictures.parameters_text(details), details)
        _latents_at(work, cell).unlink(missing_ok=True)
        tell(1)


def _details(work: Work, cell: Cell) -> dict[str, Any]:
    """Everything that makes a cell, as its file carries it: by the names of the settings."""
    sampling = work.sampling
    return {
        "prompt": cell.prompt, "negative_prompt": work.negative_prompt, "seed": cell.seed,
        "num_inference_steps": sampling.steps, "scheduler": sampling.scheduler,
        "guidance_scale": sampling.guidance_scale, "guidance_until": sampling.guidance_until,
        "repeat": sampling.repeat, "repeat_from": sampling.repeat_from, "refine": "none",
        "width": work.width, "height": work.height,
        "lora_scale": cell.lora_scale, "step": cell.step, "lora_digest": cell.digest,
        "concept_token": work.rows[0].facts.concept_token, "pretrained_model": public_name(work.base_model),
        "vae_model": public_name(work.vae_model) if work.vae_model else None, "precision": work.precision,
        "quantization": "nf4" if work.four_bits else "none", "key": cell.key,
    }  # fmt: skip
