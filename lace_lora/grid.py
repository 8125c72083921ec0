"""A grid over checkpoints × lora_scale: which checkpoint, at which strength? And base against LoRA, as one strip.

A grid is a folder: each picture a file as soon as it is finished, and never drawn again; all of them on a page.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lace_lora import adapter as adapters
from lace_lora import (
    candidates,
    checkpoint,
    families,
    four_bits,
    inference,
    order,
    pictures,
    presets,
    queries,
    repeats,
    stopping,
    wanted,
)
from lace_lora.adapter import Adapter, AdapterFacts
from lace_lora.batches import check_size
from lace_lora.candidates import Candidate
from lace_lora.cells import Cell, Work, cells_at, cells_of, draw, is_drawn, key_in, key_of
from lace_lora.config import Config
from lace_lora.counting import counted
from lace_lora.errors import SettingsError
from lace_lora.families import known
from lace_lora.families.layouts import layout
from lace_lora.file_names import public_name
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder

SCALES = (0.0, 0.5, 0.75, 1.0, 1.25)
SEEDS_COMPARED = 3
ON_PAGE, SCALES_AT_MOST = 60, 20  # cells of a page, which must still open on a phone; strengths side by side
SIDE_PX = 320  # of a cell on the page
BLANK = (225, 223, 218)

Say = Callable[[str], None]
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Grid:
    """A grid as it is on the disk."""

    picture: Path | None  # the first page; None where nothing is finished yet
    pages: tuple[Path, ...]
    rows: tuple[str, ...]
    scales: tuple[float, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]  # each picture once
    missing: int  # cells that are not drawn, because somebody stopped or a checkpoint went away
    left_out: tuple[str, ...]  # why a checkpoint is not in it, a sentence each

    @property
    def is_complete(self) -> bool:
        """Whether every cell is drawn."""
        return self.missing == 0


# -- the two calls --


def run(
    config: Config,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
    scales: Sequence[float] = SCALES,
    steps: Sequence[int] | None = None,
    *,
    say: Say = print,
    name: str = "grid",
    calls_style: bool = True,
) -> Grid:
    """Draw every checkpoint of the run at every strength; called again, draw what is missing.

    prompts  as they are; none means the first of the settings', else the instance prompt that was learnt
    seeds    none means the setting seed
    scales   lora_scale from left to right; 0 is the base model alone, drawn once
    steps    checkpoints by their step; None means all that are kept, and the adapter
    name     of its folder in the run's evaluation
    calls_style  False where prompts lack the concept token on purpose, so that it is not told of each

    Raises AdapterError where nothing was trained yet, and SettingsError, ModelError or MachineError with what to do;
    what is finished stays.
    """
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settings = inference.for_drawing(presets.settle(config, machine))
    scales = _checked_scales(settings, scales)
    rows, left_out = candidates.of_run(RunFolder.of(settings), steps, say)
    told = _checked_prompts(settings, rows[0].facts, prompts)
    if calls_style:
        _say_without_token(settings, rows[0].facts, told, say)
    work = _prepared(settings, machine, rows, scales, told, seeds, steps, say, name)
    cells = cells_of(work)
    missing = _missing(RunFolder.of(settings), cells)
    if missing and work.four_bits:
        four_bits.check_package(begun="grid")
    say(f"grid      {work.folder.root}: {len(cells)} pictures, {len(missing)} to make")
    try:
        with stopping.on_request(say, "Stopping after this picture; stop again to stop at once.") as stop:
            draw(work, missing, left_out, stop, say)
    except KeyboardInterrupt:  # the second request, or one where Python delivers no signals
        say("Stopped at once; the picture in hand is lost.")
    return _close(work, cells, left_out, say)


def as_planned(config: Config, *, say: Say = print) -> Config:
    """The settings given with the quantization that a grid of them is drawn in: what it needs can be installed.

    Where it is left open it is decided as `run` decides it, so a model that is not here is fetched. Raises what that
    raises of settings, models and adapters.
    """
    machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
    settings = inference.for_drawing(presets.settle(config, machine))
    if settings.quantization != "auto":
        return config.with_preset({"quantization": settings.quantization})
    rows, _ = candidates.of_run(RunFolder.of(settings), None, lambda line: None)
    learnt = Adapter(rows[0].facts, {}, rows[0].file)
    for line in known.fetch_notice(learnt.facts.base_model):
        say(line)
    settings, base_model, size = _drawn_with(settings, learnt, lambda line: None)
    based = order.based_on(settings, learnt, base_model, size, machine)
    return config.with_preset({"quantization": based.quantization})


def compare(config: Config, prompts: Sequence[str] = (), seeds: Sequence[int] = (), *, say: Say = print) -> Path:
    """Base above LoRA at the same seeds, drawn anew and written as a strip into the run's evaluation folder.

    seeds    none means three, from the setting seed on
    returns  the strip; one of other prompts, seeds or settings is never overwritten, but for that of the same
    """
    settings = inference.for_drawing(
        presets.settle(config, Machine.here(config.drive_mount_path, config.lora_output_dir))
    )
    folder = RunFolder.of(settings)
    facts = adapters.load(folder.root).facts
    prompts = _checked_prompts(settings, facts, prompts)
    _say_without_token(settings, facts, prompts, say)
    seeds = _checked_seeds(settings, seeds or [(settings.seed + number) % 2**31 for number in range(SEEDS_COMPARED)])
    pairs = inference.compare_all(settings, prompts, seeds, say=say)
    labels, columns = ["base model", f"LoRA × {settings.lora_scale:g}"], [f"seed {seed}" for seed in seeds]
    thumb_px = _tile_px(max(pairs[0][0][0].size))
    strips = [
        (prompt, pictures.strip([[_shown(one) for one in row] for row in pair], labels, columns, thumb_px))
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]
    names = ("lora_scale", "negative_prompt", "width", "height", "vae_model", "pretrained_model", "mixed_precision")
    asked = {"prompts": prompts, "seeds": seeds, **asdict(order.sampling_of(settings))}
    asked |= {name: getattr(settings, name) for name in names}
    asked |= {"quantization": "nf4"} if settings.quantization == "nf4" else {}
    details = {"prompts": prompts, "seeds": seeds, "lora_scale": settings.lora_scale, "key": key_of(asked)}
    number = 1
    while (path := folder.other_strip(number)).exists() and key_in(path) != details["key"]:
        number += 1
    pictures.write_picture(pictures.stacked(strips), path, "", details)
    say(f"finished  base against LoRA: {path}")
    return path


# -- what is asked for --


def numbers(name: str, texts: Sequence[str] | None, kind: type[N]) -> list[N]:
    """Numbers as a command line gives them: `--scales 0,0.5 --scales 1`. Raises SettingsError for what is none."""
    found = []
    for text in ",".join(texts or ()).replace(",", " ").split():
        try:
            found.append(kind(text))
        except ValueError as error:
            example = "0,0.5,1" if kind is float else "1,2,3"
            raise SettingsError(f"{name}: {text!r} is no such number. Write them as in --{name} {example}") from error
    return found


def _checked_scales(settings: Config, scales: Sequence[float]) -> tuple[float, ...]:
    """From weak to strong, each once; the bounds are those of the setting lora_scale."""
    if not scales:
        raise SettingsError("A grid needs at least one lora_scale, such as 0, 0.5 and 1.")
    given = {float(settings.model_copy(update={"lora_scale": scale}).lora_scale) + 0.0 for scale in scales}
    if len(given) > SCALES_AT_MOST:
        raise SettingsError(f"{len(given)} strengths do not fit beside each other; give at most {SCALES_AT_MOST}.")
    return tuple(sorted(given))


def _checked_seeds(settings: Config, seeds: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(settings.model_copy(update={"seed": seed}).seed for seed in seeds))


def _checked_prompts(settings: Config, facts: AdapterFacts, prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts in one line each, as they are."""
    learnt = facts.instance_prompt or settings.instance_prompt
    told = tuple(dict.fromkeys(" ".join(prompt.split()) for prompt in prompts or settings.prompts[:1] or (learnt,)))
    if not all(told):
        raise SettingsError(f"A prompt is empty. Write what you want to see, such as {learnt!r}.")
    return told


def _say_without_token(settings: Config, facts: AdapterFacts, told: Sequence[str], say: Say) -> None:
    """Name the prompts without the concept token, since they call no style."""
    token = facts.concept_token or settings.concept_token
    for prompt in told:
        if queries.with_token(prompt, token, token) != prompt:
            say(f"! {prompt[:60]!r} does not hold {token}, so it shows what the LoRA does to plain prompts.")


def _drawn_with(settings: Config, learnt: Adapter, say: Say) -> tuple[Config, str, tuple[int, int]]:
    """The settings as the base model can draw by them, that model, and the width and height in px."""
    for line in known.fetch_notice(learnt.facts.base_model):
        say(line)
    base_model = order.base_model_of(settings, learnt, say)
    settings = order.within_family(settings.with_preset({"refine": "none"}), learnt, base_model, say)
    return settings, base_model, wanted.size_of(settings, learnt, base_model)


def _prepared(
    settings: Config, machine: Machine, rows: tuple[Candidate, ...], scales: tuple[float, ...], told: tuple[str, ...],
    seeds: Sequence[int], steps: Sequence[int] | None, say: Say, name: str,
) -> Work:  # fmt: skip
    """All that decides the pictures, and the folder: that of the same request, or a new one."""
    learnt = Adapter(rows[0].facts, {}, rows[0].file)
    drawn_from = _checked_seeds(settings, seeds or (settings.seed,))
    settings, base_model, (width, height) = _drawn_with(settings, learnt, say)
    check_size(base_model, width, height)
    repeats.check_size(settings.repeat, width, height, layout(base_model).pixel_step)
    reader = families.reader(base_model)
    for line in queries.too_long(reader.cut_of(told), reader.fits):
        say(line)
    precision, why = machine.precision(settings.mixed_precision)
    say(f"drawing   with {public_name(base_model)} in {why}")
    sampling = replace(order.sampling_of(settings), start_strength=1.0)  # every picture begins with noise
    models = order.models_of([base_model], settings.vae_model)
    shared = asdict(sampling) | {"negative_prompt": settings.negative_prompt, "width": width, "height": height}
    shared |= {"models": models, "precision": precision}
    based = order.based_on(settings, learnt, base_model, (width, height), machine)
    shared |= {"quantization": "nf4"} if based.quantization == "nf4" else {}
    asked = {"prompts": told, "seeds": drawn_from, "scales": scales, "steps": sorted(set(steps)) if steps else None}
    digest = key_of({"asked": asked, "drawn": shared})
    folder = RunFolder.of(settings).free_grid(digest, name)
    is_begun = folder.request.is_file()
    in_bits = four_bits.base(settings, replace(based, is_begun=is_begun), say)
    if not is_begun:
        checkpoint.write_json(folder.request, {"digest": digest, "asked": asked})
    return Work(
        folder, rows, scales, told, drawn_from, settings.negative_prompt, sampling, width, height, base_model,
        settings.vae_model, precision, machine.device, shared, in_bits,
    )  # fmt: skip


# -- files and pages --


def _missing(run: RunFolder, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are no file yet; one that another grid of the run has is taken over from there."""
    missing, grids = [], run.grids()
    for cell in cells:
        others = [cell.path, *(grid.cells / cell.path.name for grid in grids)]
        found = next((path for path in others if is_drawn(cell, path)), None)
        if found is None:
            missing.append(cell)
        elif found != cell.path:
            checkpoint.write_bytes(cell.path, found.read_bytes())
    return missing


def _close(work: Work, cells: Sequence[Cell], left_out: Sequence[str], say: Say) -> Grid:
    """The pages, grid.json, and what there is in the end."""
    done = {cell.key for cell in cells if is_drawn(cell, cell.path)}
    pages, missing = _write_pages(work, done), len(cells) - len(done)
    labels, root = tuple(row.label for row in work.rows), f"{work.folder.root.parent.parent}/"
    told = json.loads(work.folder.request.read_text(encoding="utf-8"))
    told |= {
        "rows": [{"label": row.label, "step": row.step, "lora_digest": row.digest} for row in work.rows],
        "cells": [asdict(cell) | {"path": f"{cell.path.parent.name}/{cell.path.name}"} for cell in cells],
        "pages": [path.name for path in pages],
        "missing": missing,
        "left_out": [line.replace(root, "") for line in left_out],
    }
    checkpoint.write_json(work.folder.request, told)
    if missing:
        say(f"The grid has {len(done)} of {len(cells)} pictures. Run the same again to go on.")
    else:
        shutil.rmtree(work.folder.latents, ignore_errors=True)
        of_what = counted(len(work.rows), "LoRA")
        say(f"finished  {of_what} at {counted(len(work.scales), 'strength')}: {', '.join(map(str, pages))}")
    first = pages[0] if pages else None
    return Grid(first, pages, labels, work.scales, work.prompts, work.seeds, tuple(cells), missing, tuple(left_out))


def _write_pages(work: Work, done: set[str]) -> tuple[Path, ...]:
    """One block for each prompt and seed, a row a LoRA, as many to a page as may stand there; rows are never parted."""
    at_once = max(1, ON_PAGE // len(work.scales))
    parts = [work.rows[start : start + at_once] for start in range(0, len(work.rows), at_once)]
    blocks = [(prompt, seed, rows) for prompt in work.prompts for seed in work.seeds for rows in parts]
    sheets: list[list[tuple[str, Image.Image]]] = []
    room = 0
    for prompt, seed, rows in blocks if done else ():
        if len(rows) > room:
            sheets.append([])
            room = at_once
        room -= len(rows)
        sheets[-1].append((f"{prompt} (seed {seed})", _block(work, prompt, seed, rows, done)))
    paths = tuple(work.folder.page(number) for number in range(1, len(sheets) + 1))
    for path, sheet in zip(paths, sheets, strict=True):
        page = pictures.stacked(sheet)
        checkpoint.write_file(path, partial(page.save, format="PNG"))
    for path in {work.folder.page(1), *work.folder.root.glob("grid-*.png")} - {*paths}:
        path.unlink(missing_ok=True)
    return paths


def _block(work: Work, prompt: str, seed: int, rows: Sequence[Candidate], done: set[str]) -> Image.Image:
    """Rows and columns of one prompt and seed, with what they are beside and above them."""
    side = max(work.width, work.height)
    tiles = []
    for row in rows:
        cells = [cell for scale in work.scales for cell in cells_at(work, row, scale)]
        here = [cell for cell in cells if (cell.prompt, cell.seed) == (prompt, seed)]
        tiles.append([
            _shown(pictures.thumbnail(cell.path, min(side, SIDE_PX))) if cell.key in done
            else Image.new("RGB", (SIDE_PX, SIDE_PX), BLANK)
            for cell in here
        ])  # fmt: skip
    columns = [f"lora_scale {scale:g}" if scale else "base model" for scale in work.scales]
    return pictures.strip(tiles, [row.label for row in rows], columns, _tile_px(side))


def _tile_px(side: int) -> int:
    """Side of a cell on the page: small pictures are enlarged by whole pixels, so that they are not blurred."""
    return side * (SIDE_PX // side) if side < SIDE_PX else SIDE_PX


def _shown(picture: Image.Image) -> Image.Image:
    times = SIDE_PX // max(picture.size)
    enlarged = (picture.width * times, picture.height * times)
    return picture.resize(enlarged, Image.Resampling.NEAREST) if times > 1 else picture
