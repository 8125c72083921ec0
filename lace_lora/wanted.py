"""Every picture that the settings ask for, with all that makes it: prompts, starred designs, or variations of one.

What was learnt (concept token, class words, size) comes from the adapter, the rest from the settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lace_lora import adapter as adapters
from lace_lora import annotate, checkpoint, clashes, cloth, journal, queries, references, stars
from lace_lora.alternatives import literal
from lace_lora.config import Config
from lace_lora.errors import SettingsError
from lace_lora.families import folders
from lace_lora.families.layouts import layout
from lace_lora.file_names import public_name
from lace_lora.prompt_files import Asked
from lace_lora.run_folder import RunFolder, SheetFolder
from lace_lora.sheet import OLDER, Generation

# What may differ where the base model draws a design again: the refiner, and what is found or made afterwards.
MAY_DIFFER = {
    "index", "base", "refined", "versions", "seam", "refine", "refiner_start", "refine_strength",
    "refiner_model", "refiner_prompt", "start_picture", "subset", "reference",
}  # fmt: skip
# What a starred or varied design brings with it.
BROUGHT = ("prompts", "prompts_file", "base_prompt", "negative_prompt", "width", "height")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Models:
    """With what is drawn: names or folders as given, the refiner's empty where nothing is refined."""

    base: str
    refiner: str
    precision: str


def pictures(
    config: Config, run: RunFolder, lora: adapters.Adapter, models: Models, say: Say
) -> tuple[list[Generation], Mapping[str, Any] | None]:
    """Every picture asked for, in order; its files by name only, since the sheet is not chosen yet.

    returns  the pictures, and the row of the first design of before that they are made of; None for prompts

    Raises SettingsError for prompts, a sheet or a design that cannot be drawn from, and PicturesError for captions.
    """
    token = lora.facts.concept_token or config.concept_token
    rows, before = _rows(config, run, lora, say)
    asked = queries.shared_out(
        rows,
        len(rows) if before else config.num_images,
        base_prompt="" if before else config.base_prompt or "",
        seed=config.seed,
        negative_prompt=config.negative_prompt,
        concept_token=token,
        other_token=config.concept_token,
        class_prompt=lora.facts.class_prompt or config.class_prompt,
        say=say,
    )
    width, height = size_of(config, lora, models.base)
    nowhere, digest, versions = SheetFolder(Path()), lora.digest, journal.versions()
    start = start_of(config, run)
    kept = {path: references.keep(run, path) for one in asked if (path := one.reference_path)}
    drawn = [
        Generation(
            index=index,
            prompt=query.prompt,
            refiner_prompt=query.refiner_prompt,
            negative_prompt=query.negative_prompt,
            seed=query.seed,
            num_inference_steps=config.num_inference_steps,
            scheduler=config.scheduler,
            guidance_scale=config.guidance_scale,
            refine=config.refine,
            refiner_start=config.refiner_start if config.refine == "ensemble" else None,
            refine_strength=config.refine_strength if config.refine == "img2img" else None,
            width=query.width or width,
            height=query.height or height,
            repeat=config.repeat,
            repeat_from=config.repeat_from if config.repeat != "none" else None,
            guidance_until=config.guidance_until,
            start_picture=start.name if start else None,
            start_digest=checkpoint.sha256(start) if start else None,
            start_strength=config.start_strength if start else None,
            dpi=_dpi(config, query.width or width),
            lora_scale=config.lora_scale,
            concept_token=token,
            adapter_digest=digest,
            pretrained_model=public_name(models.base),
            refiner_model=public_name(models.refiner) if models.refiner else None,
            precision=models.precision,
            base=nowhere.base(index, config.image_format),
            refined=nowhere.refined(index, config.image_format) if models.refiner else None,
            versions=versions,
            subset=query.subset,
            reference=kept[query.reference_path] if query.reference_path else None,
        )
        for index, query in enumerate(asked)
    ]
    return drawn, before[0] if before else None


def tell_changes(config: Config, before: Mapping[str, Any] | None, pictures: Sequence[Generation], say: Say) -> None:
    """A design is drawn again, or varied alone, only where everything else is as it was; what is not, is named.

    before, pictures  as `pictures` returns them, once all that makes them is decided
    """
    if before is None:
        return
    besides = ("seed", "start_digest", "start_strength", "precision") if config.vary else ("dpi",)
    told, before = pictures[0].row(), OLDER | dict(before)
    changed = [name for name in told if name not in (*MAY_DIFFER, *besides) and before.get(name) != told[name]]
    if changed:
        words = [
            "another training" if name == "adapter_digest" else "another start_picture" if name == "start_digest"
            else f"{name} {_short(before.get(name))} → {_short(told[name])}" for name in changed
        ]  # fmt: skip
        say(f"! The designs of before were drawn otherwise, so these will look different: {', '.join(words)}.")


def size_of(config: Config, lora: adapters.Adapter, base_model: str) -> tuple[int, int]:
    """Width and height: as set, else the side that the adapter learnt, else the base model's own."""
    side = lora.facts.resolution or layout(base_model).side_px
    if folders.is_here(base_model):  # and not a name that means something elsewhere only
        step = layout(base_model).side_step
        side = max(step, side // step * step)
    return config.width or side, config.height or side


def start_of(config: Config, run: RunFolder) -> Path | None:
    """The file of the picture that every design begins with: the one that is set, or the design that is varied."""
    if config.vary and config.vary_by == "picture":
        return stars.picture_of(*_varied(config.vary, run))
    return Path(config.start_picture).expanduser() if config.start_picture else None


# -- inside --


def _rows(config: Config, run: RunFolder, lora: adapters.Adapter, say: Say) -> tuple[list[Asked], list[dict[str, Any]]]:
    """What is asked for, and the rows of earlier designs that it is made of; none for prompts."""
    clashes.refuse(clashes.designs(config))
    if config.favourites_of or config.vary:
        unused = [name for name in BROUGHT if name in config.overridden]
        unused += ["start_picture"] if config.vary and config.vary_by == "picture" and config.start_picture else []
        if unused:
            say(f"! Not used, because the designs bring their own: {', '.join(unused)}.")
    if config.favourites_of:
        earlier = list(stars.favourites(stars.sheet_of(run, config.favourites_of)).values())
        return [_again(run, row) for row in earlier], earlier
    if config.vary:
        row = _varied(config.vary, run)[1]
        own = _again(run, row)
        return [replace(own, seed=seed) for seed in queries.near_seeds(own.seed or 0, config.num_images)], [row]
    rows = queries.rows_of(
        config.prompts if "prompts" in config.overridden or not config.prompts_file else (),
        config.prompts_file,
        captions=lambda: annotate.learnt(config).values(),
        instance_prompt=_instance_prompt(config, lora),
        say=say,
    )
    return rows, []


def _varied(named: str, run: RunFolder) -> tuple[SheetFolder, dict[str, Any]]:
    """The sheet and the row of the design to vary. A bare number would mean another one after each new sheet."""
    folder, index = stars.place_of(run, named)
    if named.strip().isdecimal():
        raise SettingsError(f"vary is {named}, but must say of which sheet: {folder.root.name}/{index}.")
    return folder, stars.rows(folder)[index]


def _again(run: RunFolder, row: Mapping[str, Any]) -> Asked:
    """A row of an earlier sheet as one that is asked for."""
    try:
        return Asked(
            literal(str(row["prompt"])),
            count=1,
            seed=int(row["seed"]),
            negative_prompt=str(row["negative_prompt"]),
            width=int(row["width"]),
            height=int(row["height"]),
            subset=subset if isinstance(subset := row.get("subset"), str) else None,
            reference_path=str(reference) if (reference := references.of(run, row)) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"The row of design {row.get('index')} in images.jsonl does not tell how it was made ({error}). Star or "
            "vary another one."
        ) from error


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) and value > 10 else str(value)


def _dpi(config: Config, width: int) -> float:
    """Px an inch in print: what makes a design as wide as it shall be, else as set."""
    return cloth.dpi_for(width, config.print_width_cm) if config.print_width_cm else config.dpi


def _instance_prompt(config: Config, lora: adapters.Adapter) -> str:
    """What is drawn where no prompts are set: the instance prompt that is set, else the one that was learnt."""
    is_set = "instance_prompt" in config.given or not lora.facts.instance_prompt
    return config.instance_prompt if is_set else lora.facts.instance_prompt
