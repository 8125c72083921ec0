"""A run as something to give away: the LoRA in both forms, its card, samples, workflow and report, as folder and zip.

Nothing in it tells of the person's computer or Drive, and no photograph that was learnt from is in it, unless asked.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from lace_lora import adapter as adapters
from lace_lora import (
    archives,
    checkpoint,
    config_text,
    contents,
    hub,
    journal,
    model_card,
    opinions,
    pictures,
    report,
    schedule,
    stars,
    workflow,
    workflow_page,
)
from lace_lora.adapter import Adapter
from lace_lora.config import Config, load
from lace_lora.errors import LaceError, RunError, SettingsError
from lace_lora.families import folders, known, limits
from lace_lora.families.published import GIVEN
from lace_lora.file_names import printable, public_name
from lace_lora.model_card import Sample
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation
from lace_lora.workflow import Design

SAMPLES = 6
# Where a picture lay, and what names a file of the person's.
NOT_SAID = ("index", "base", "refined", "start_picture", "start_digest", "reference", "versions")
TRAINING_SAMPLES = 4  # prompts of which samples are drawn while training
README, SETTINGS, REPORT = "README.md", "config.yaml", "report.html"
WORKFLOW, API, EXAMPLE = "comfyui_workflow.json", "comfyui_workflow_api.json", "example.py"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """What was packed.

    folder   in which it lies
    zip      the same as one file
    files    names in the folder, with `/` between folders
    is_new   whether anything differed from what was there
    address  of its repository on Hugging Face; empty where it was not uploaded
    """

    folder: Path
    zip: Path
    files: tuple[str, ...]
    is_new: bool
    address: str = ""


def run(
    folder: RunFolder, *, push_to_hub: str | None = None, shows_photographs: bool = False, say: Say = print
) -> Package:
    """Pack a run; called again, it writes only where something changed since.

    push_to_hub        a repository on Hugging Face to upload to, too
    shows_photographs  also those that were learnt from, in the report beside what was drawn, and designs that begin
                       with a picture of the person's

    Raises AdapterError where nothing was trained yet, RunError where it cannot be written, and what hub.push raises.
    """
    lora = adapters.load(folder.root)
    with TemporaryDirectory() as place:
        _write_all(Path(place), folder, lora, shows_photographs, say)
        sums = checkpoint.sums_of(Path(place))
        is_new = not _is_there(folder, sums)
        if is_new:
            folder.package_zip.unlink(missing_ok=True)  # it would not hold what comes now
            _set_aside(folder, say)
            checkpoint.save_folder(folder.package, lambda partial: _copy(Path(place), partial), sums)
    if not folder.package_zip.is_file():
        is_new = True
        archives.write(folder.package_zip, {f"{folder.name}/{name}": folder.package / name for name in sums})
    made = Package(folder.package, folder.package_zip, tuple(sorted(sums)), is_new)
    say(f"package   {printable(made.folder)}{'' if is_new else ': nothing changed since it was made'}")
    if not push_to_hub:
        return made
    address = hub.push(made.folder, push_to_hub, list(made.files))
    say(f"uploaded  {address}")
    say(f"          It is private unless you made it public: {address}/settings, Change visibility.")
    return replace(made, address=address)


# -- what goes in --


def _write_all(place: Path, folder: RunFolder, lora: Adapter, shows_photographs: bool, say: Say) -> None:
    settings = _settings(folder)
    samples = list(_samples(place, folder, settings, shows_photographs, say))
    design = design_of(lora, folder.name, samples, settings)
    files = {
        folder.adapter_for_tools.name: f"the LoRA for ComfyUI, {GIVEN[lora.facts.family].programs}",
        folder.adapter_weights.name: "the same LoRA for diffusers",
        folder.adapter_card.name: "what it is: rank, alpha, trigger word, checksums, versions",
    }
    if lora.facts.learns_token:
        files[folder.concept_token.name] = "the word that it learnt, as an embedding"
    for name in files:
        shutil.copyfile(folder.adapter / name, place / name)
    _write_json(place / folder.adapter_card.name, _public_card(folder))
    if settings is not None:
        (place / SETTINGS).write_text(public_settings(settings), encoding="utf-8")
        files[SETTINGS] = "the settings that it was trained with, without folders"
    if folder.record.is_file() and contents.facts(folder).get("state") != journal.IMPORTED:
        people = opinions.for_report(folder) if shows_photographs else ()
        text = report.page(folder, people=people, is_public=not shows_photographs)
        (place / REPORT).write_text(text, encoding="utf-8")
        files[REPORT] = "how it was trained and what was measured, on one page"
    drawing = workflow.design(design).workflow
    _write_json(place / WORKFLOW, workflow_page.laid_out(drawing))
    _write_json(place / API, drawing)
    files |= {WORKFLOW: "a workflow for ComfyUI's page", API: "the same for programs", EXAMPLE: "a first picture"}
    told = model_card.Told(
        folder.name, _base_model(lora, settings), lora.facts, design, samples, *_evaluation(folder, lora), files
    )
    (place / EXAMPLE).write_text(model_card.example(told), encoding="utf-8")
    (place / README).write_text(model_card.write(told), encoding="utf-8")


def design_of(lora: Adapter, name: str, samples: list[Sample], settings: Config | None) -> Design:
    """With what a first picture is drawn: as the first sample was, else as the run's settings say.

    name  of the run, which is that of the LoRA's file
    """
    facts, said, base_model = lora.facts, settings or Config(), _base_model(lora, settings)
    changed = limits.changes(said, facts.family, frozenset(), limits.DRAWING)
    said = said.with_preset({one.setting: one.value for one in changed})
    side = facts.resolution or known.side_px(base_model)
    first = samples[0].details if samples else {}
    names = ("negative_prompt", "num_inference_steps", "guidance_scale", "scheduler", "lora_scale", "refine")
    drawn: dict[str, Any] = {one: getattr(said, one) for one in (*names, "refiner_start", "refine_strength", "seed")}
    drawn |= {
        "prompt": facts.instance_prompt
        or facts.concept_token
        or (said.instance_prompt if facts.versions else said.class_prompt),
        "refiner_prompt": facts.class_prompt or said.class_prompt,
        "width": said.width or side,
        "height": said.height or side,
    }
    drawn |= {one: first[one] for one in drawn if first.get(one) is not None}
    drawn["scheduler"] = drawn["scheduler"] if drawn["scheduler"] in workflow.SAMPLERS else said.scheduler
    refiner = public_name(str(first.get("refiner_model") or said.refiner_model))
    return Design(
        **drawn,
        checkpoint=workflow.checkpoint_of(public_name(base_model)),
        lora_name=RunFolder(Path(name)).adapter_for_tools.name,
        text_scale=drawn["lora_scale"] if facts.train_text_encoder else 0.0,
        refiner=workflow.checkpoint_of(refiner) if drawn["refine"] != "none" else None,
        save_as=name,
        concept_token=facts.concept_token,
        embedding=f"{name}_word" if facts.learns_token else None,
        predicts_v=facts.prediction_type == "v_prediction",
        family=facts.family,
        shifts_by_size=facts.family == "flux" and _shifts_by_size(base_model),
    )


def public_settings(settings: Config) -> str:
    """The text of a config.yaml without folders, addresses and accounts of a person; models by their names alone."""
    named = {name: getattr(settings, name) for name in report.MODELS & set(Config.model_fields)}
    public = {name: public_name(value) for name, value in named.items() if isinstance(value, str)}
    return config_text.to_yaml(settings.with_preset(public), but=report.FOLDERS)


# -- inside --


def _shifts_by_size(base_model: str) -> bool:
    """Whether the steps of a Flux depend on the size, by its scheduler where it is here: dev's do, schnell's not."""
    try:
        if folders.is_here(base_model):
            told = folders.part_config(folders.model_folder(base_model), "scheduler")
            return bool(told.get("use_dynamic_shifting"))
    except LaceError:  # damaged, which is said where it is drawn with
        pass
    return "schnell" not in base_model.casefold()


def _samples(
    place: Path, folder: RunFolder, settings: Config | None, shows_photographs: bool, say: Say
) -> Iterator[Sample]:
    """Write sample pictures: favourites first, then of the newest sheet; without any, the last of the training."""
    number = 0
    for path, row in [*_designs(folder, shows_photographs), *_of_training(folder, settings)]:
        if number == SAMPLES or (number and "index" not in row):
            return
        kept = {name: value for name, value in row.items() if value is not None and name not in NOT_SAID}
        kept |= {name: public_name(str(kept[name])) for name in ("pretrained_model", "refiner_model") if name in kept}
        target = place / "samples" / f"sample_{number:02d}{path.suffix.casefold()}"
        target.parent.mkdir(exist_ok=True)
        try:
            with Image.open(path) as opened:
                opened.load()
                picture = opened.convert("RGB")
        except (OSError, ValueError):
            say(f"! {path.name} cannot be read and is left out of the package.")
            continue
        pictures.write_picture(picture, target, pictures.parameters_text(kept), kept, dpi=kept.get("dpi"))
        yield Sample(target.relative_to(place).as_posix(), kept)
        number += 1


def _designs(folder: RunFolder, shows_photographs: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    sheets = stars.sheets_in(folder.sheets)
    chosen: list[tuple[Path, dict[str, Any]]] = []
    for sheet in sheets:
        try:
            starred = stars.read(sheet)
        except RunError:
            starred = frozenset()
        rows = stars.rows(sheet)
        chosen += [(stars.picture_of(sheet, rows[index]), rows[index]) for index in rows if index in starred]
    for sheet in sheets[:1]:
        chosen += [(stars.picture_of(sheet, row), row) for row in stars.rows(sheet).values()]
    seen = set()
    for path, row in chosen:  # the same design may have been drawn again for another sheet
        is_shown = shows_photographs or not row.get("start_digest")
        if is_shown and (row.get("prompt"), row.get("seed")) not in seen:
            seen.add((row.get("prompt"), row.get("seed")))
            yield path, row


def _of_training(folder: RunFolder, settings: Config | None) -> list[tuple[Path, dict[str, Any]]]:
    """The newest row of samples drawn while training, with the prompts and seeds that the settings give them."""
    steps = checkpoint.numbered(folder.samples)
    if not steps or settings is None:
        return []
    prompts = (settings.prompts or (settings.instance_prompt,))[:TRAINING_SAMPLES]
    shared = {
        name: getattr(settings, name)
        for name in ("negative_prompt", "num_inference_steps", "guidance_scale", "scheduler", "pretrained_model")
    }
    rows = [
        (steps[-1] / f"sample_{number:02d}.png",
         {"prompt": prompt, "seed": schedule.seed(settings.seed, "sample", number), **shared, "refine": "none"})
        for number, prompt in enumerate(prompts)
    ]  # fmt: skip
    return [(path, row) for path, row in rows if path.is_file()]


def _settings(folder: RunFolder) -> Config | None:
    """Of the run; None where there are none that can be read."""
    try:
        return load(folder.config)
    except SettingsError:
        return None


def _base_model(lora: Adapter, settings: Config | None) -> str:
    """What the adapter was made for; of another trainer's file, which seldom says it, what it is drawn with here."""
    return lora.facts.base_model if lora.facts.versions else (settings or Config()).pretrained_model


def _evaluation(folder: RunFolder, lora: Adapter) -> tuple[Evaluation | None, bool]:
    try:
        found = Evaluation.read(folder)
    except RunError:
        return None, False
    return found, found is not None and found.facts.get("adapter_digest") == lora.digest


def _public_card(folder: RunFolder) -> dict[str, Any]:
    card = contents.json_in(folder.adapter_card)
    return card | {"base_model": public_name(str(card.get("base_model", "")))}


def _is_there(folder: RunFolder, sums: Mapping[str, str]) -> bool:
    """Whether the package is there as it would be written now."""
    try:
        return checkpoint.marked_sums(folder.package) == sums and checkpoint.problem_of(folder.package) is None
    except (OSError, ValueError):
        return False


def _set_aside(folder: RunFolder, say: Say) -> None:
    """Keep what a person changed or put into the package's folder."""
    if not folder.package.is_dir():
        return
    try:
        told = checkpoint.marked_sums(folder.package)
    except (OSError, ValueError):
        told = {}  # somebody took the marker away, and nobody knows what else
    now = {name: sha for name, sha in checkpoint.sums_of(folder.package).items() if name != checkpoint.MARKER}
    if all(told.get(name) == sha for name, sha in now.items()):
        return
    number = 1
    while (aside := folder.root / f"package-changed-{number}").exists():
        number += 1
    os.replace(folder.package, aside)
    say(f"! The package was changed by hand; that one is kept as {aside.name}.")


def _copy(place: Path, partial: Path) -> None:
    shutil.copytree(place, partial, dirs_exist_ok=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
