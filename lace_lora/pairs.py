"""Base model and LoRA at the same prompts and seeds: the pictures that an evaluation measures.

They are cells of grids (see grid): each a file as soon as it is finished, never drawn twice, taken over from any other
grid of the run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lace_lora import annotations, candidates, grid, queries, stars
from lace_lora.candidates import Candidate
from lace_lora.cells import Cell
from lace_lora.config import Config
from lace_lora.errors import LaceError, PicturesError, SettingsError
from lace_lora.exhibits import Exhibit
from lace_lora.run_folder import RunFolder

# Everyday things without the token, far from lace: what the LoRA does to them, nobody asked for.
PLAIN_PROMPTS = (
    "a photo of a wooden chair",
    "a photo of a street in the rain",
    "a portrait of an old man",
    "a bowl of oranges on a table",
    "a red bicycle against a wall",
)
PLAIN_SHARE = 3  # one plain picture for so many of the style

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pairs:
    """Pictures drawn in pairs: place by place the same prompt and seed.

    base, lora              prompts that call the style
    plain_base, plain_lora  prompts that do not
    of_step                 pictures of other checkpoints by their step, and those of the LoRA that was measured
    told, plain_told        the prompt of each pair that calls the style, and of each that does not
    prompts, plain_prompts  what was drawn, each once
    candidate, kept         the LoRA that was measured, and the steps of all that are kept
    missing                 pictures that are not drawn, because somebody stopped
    """

    base: tuple[Exhibit, ...]
    lora: tuple[Exhibit, ...]
    plain_base: tuple[Exhibit, ...]
    plain_lora: tuple[Exhibit, ...]
    of_step: dict[int, tuple[Exhibit, ...]]
    told: tuple[str, ...]
    plain_told: tuple[str, ...]
    prompts: tuple[str, ...]
    plain_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    candidate: Candidate
    kept: tuple[int, ...]
    missing: int


def draw(config: Config, run: RunFolder, *, say: Say) -> Pairs:
    """Draw what is missing of the pairs: num_evaluated with the style, a third as many without.

    config  settled settings; all_checkpoints draws with each that is kept

    Raises AdapterError where nothing was trained yet, SettingsError for a lora_scale of 0.
    """
    if not config.lora_scale:
        raise SettingsError("lora_scale is 0, so there is no LoRA to measure. Set it to 1.")
    rows, _ = candidates.of_run(run, None, say)
    chosen = rows[-1]
    prompts = style_prompts(config, run, chosen, say)
    seeds = _seeds(config.seed, config.num_evaluated, len(prompts))
    scales, steps = (0.0, config.lora_scale), None if config.all_checkpoints else [chosen.step]
    plain = (config.plain_prompts or PLAIN_PROMPTS)[: -(-config.num_evaluated // PLAIN_SHARE)]
    plain_seeds = _seeds(config.seed, -(-config.num_evaluated // PLAIN_SHARE), len(plain))
    styled = grid.run(config, prompts, seeds, scales, steps, say=say, name="measured")
    if styled.missing:
        return _pairs(run, rows, styled, None)
    unstyled = grid.run(
        config, plain, plain_seeds, scales, [chosen.step], say=say, name="measured_plain", calls_style=False
    )
    return _pairs(run, rows, styled, unstyled)


def style_prompts(config: Config, run: RunFolder, chosen: Candidate, say: Say) -> tuple[str, ...]:
    """What is drawn in the style: the prompts that are set, else those of the newest sheet, else the captions learnt.

    Each once and with the concept token; as many as num_evaluated at most.
    """
    facts = chosen.facts
    token = facts.concept_token or config.concept_token
    if config.prompts:
        asked = queries.shared_out(
            config.prompts, config.num_evaluated, seed=config.seed, negative_prompt=config.negative_prompt,
            concept_token=token, other_token=config.concept_token,
            class_prompt=facts.class_prompt or config.class_prompt, base_prompt=config.base_prompt or "", say=_silently,
        )  # fmt: skip
        found: Iterable[str] = (one.prompt for one in asked)
    else:
        found = (
            _of_sheets(run) or _captions(run, config.num_evaluated) or [facts.instance_prompt or config.instance_prompt]
        )
    told = tuple(dict.fromkeys(queries.with_token(prompt, token, config.concept_token) for prompt in found))
    if len(told) > config.num_evaluated or len(config.prompts) > config.num_evaluated:
        say(f"! Only the first {config.num_evaluated} prompts are measured: num_evaluated is {config.num_evaluated}.")
    return told[: config.num_evaluated]


# -- inside --


def _of_sheets(run: RunFolder) -> list[str]:
    for sheet in stars.sheets_in(run.sheets):
        try:
            prompts = [str(row.get("prompt") or "") for row in stars.rows(sheet, ("prompt",)).values()]
        except LaceError:
            continue
        if any(prompts):
            return [prompt for prompt in prompts if prompt]
    return []


def _captions(run: RunFolder, most: int) -> list[str]:
    """The captions of the photographs, each once, evenly taken from the list."""
    if not run.annotations.is_file():
        return []
    try:
        rows, _ = annotations.parse(run.annotations)
    except PicturesError:  # told where the photographs are looked for; the pairs do not need it
        return []
    captions = list(dict.fromkeys(caption for _, _, caption in rows if caption))
    return captions[:: -(-len(captions) // most) or 1]


def _seeds(first: int, count: int, prompts: int) -> list[int]:
    """As many as make at least `count` pictures of so many prompts."""
    return [(first + number) % 2**31 for number in range(-(-count // prompts))]


def _pairs(run: RunFolder, rows: Sequence[Candidate], styled: grid.Grid, plain: grid.Grid | None) -> Pairs:
    chosen = rows[-1]
    base, lora, told = _beside(run, styled, chosen)
    plain_base, plain_lora, plain_told = _beside(run, plain, chosen) if plain else ((), (), ())
    of_step: dict[int, tuple[Exhibit, ...]] = {chosen.step: lora}
    for step in sorted({cell.step for cell in styled.cells if cell.step is not None and cell.digest != chosen.digest}):
        cells = [cell for cell in styled.cells if cell.step == step and cell.digest != chosen.digest]
        of_step[step] = tuple(_exhibit(run, cell, number) for number, cell in enumerate(cells) if cell.path.is_file())
    missing = styled.missing + (plain.missing if plain else 0)
    return Pairs(
        base, lora, plain_base, plain_lora, of_step, told, plain_told, styled.prompts,
        plain.prompts if plain else (), styled.seeds, chosen, tuple(sorted({row.step for row in rows})), missing,
    )  # fmt: skip


def _beside(
    run: RunFolder, drawn: grid.Grid, chosen: Candidate
) -> tuple[tuple[Exhibit, ...], tuple[Exhibit, ...], tuple[str, ...]]:
    """The base model's and the LoRA's pictures of a grid in pairs, and their prompts; what is not drawn is left out."""
    own = [cell for cell in drawn.cells if cell.step is not None and cell.digest == chosen.digest]
    base = {(cell.prompt, cell.seed): cell for cell in drawn.cells if cell.step is None}
    both = [(base[cell.prompt, cell.seed], cell) for cell in own]
    there = [pair for pair in both if all(cell.path.is_file() for cell in pair)]
    bases, loras = ([_exhibit(run, pair[side], number) for number, pair in enumerate(there)] for side in (0, 1))
    return tuple(bases), tuple(loras), tuple(cell.prompt for cell, _ in there)


def _exhibit(run: RunFolder, cell: Cell, group: int) -> Exhibit:
    return Exhibit(cell.path.relative_to(run.root).as_posix(), cell.path, group)


def _silently(_: str) -> None:
    """What is told of prompts when a sheet is drawn; here each gets as many pictures as the others."""
