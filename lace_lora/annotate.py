"""Every usable picture of a folder gets its caption: the one that it has somewhere, a suggestion, else the prompt.

From the first moment annotations.txt has a line for each picture, so that whatever cuts the work leaves a set that can
be trained on.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lace_lora import caption_files, caption_lint, captioners, clashes, data_utils, families, stopping, suggest
from lace_lora.annotations import ANNOTATIONS, dataset_of, name_of
from lace_lora.captioners import Captioner
from lace_lora.check_report import CheckReport
from lace_lora.config import Config
from lace_lora.errors import LaceError
from lace_lora.families import folders
from lace_lora.file_names import slug
from lace_lora.local_copies import is_on_drive
from lace_lora.machine import Machine
from lace_lora.own_files import spare_of
from lace_lora.own_folders import is_away

Say = Callable[[str], None]


def run(
    settings: Config,
    *,
    report: CheckReport | None = None,
    captioner: Captioner | None = None,
    overwrite: bool = False,
    mend: bool = False,
    stop: stopping.Stop | None = None,
    say: Say = print,
) -> Path:
    """Write annotations.txt: a line for every picture that can be used; returns the file.

    report     of check_images, so that pictures are not opened twice
    captioner  asked for each picture that has no caption of its own; see captioner_of
    overwrite  with a captioner: ask for every picture; without: give every picture the prompt. What stood there is
               kept as `….bak`
    mend       also mend what lint can mend without judgement: the concept token first, tabs and invisible signs, and a
               phrase that nearly all captions share taken out

    Captions that other tools wrote (dataset.json, metadata.jsonl, .caption and .txt files) are taken where
    annotations.txt has none. Raises SettingsError for a prompt without the concept token, and the errors of
    data_utils.create_annotations and suggest.captions.
    """
    check_words(settings)
    folder, file = Path(settings.images_dir).expanduser(), file_of(settings)
    report = report or _checked(settings, say)
    replaces_all = overwrite and captioner is None
    told = {} if replaces_all else captions_of(settings, report, say)
    data_utils.create_annotations(
        folder, settings.instance_prompt, set(settings.image_types), told, overwrite=replaces_all,
        file=file, checked=report, say=say, spare=spare_of(file, settings.cache_dir),
    )  # fmt: skip
    if captioner is not None:
        _suggested(settings, report, file, captioner, overwrite, stop, say)
    if mend:
        _mended(settings, report, file, say)
    return file


def _checked(settings: Config, say: Say) -> CheckReport:
    """Which pictures can be used; those on Drive are copied to this machine, where training reads them too."""
    is_far = is_on_drive(Path(settings.images_dir).expanduser(), settings.drive_mount_path)
    return data_utils.check_images(
        settings.images_dir, set(settings.image_types), compare=False, say=say,
        cache_dir=settings.cache_dir if is_far else None, drive_mount_path=settings.drive_mount_path,
    )  # fmt: skip


def check_words(settings: Config) -> None:
    """Raises SettingsError where the instance prompt lacks the concept token: all its pictures would lack it too."""
    clashes.refuse(clashes.words(settings))


def _suggested(
    settings: Config, report: CheckReport, file: Path, captioner: Captioner, overwrite: bool,
    stop: stopping.Stop | None, say: Say,
) -> None:  # fmt: skip
    folder = report.folder
    dataset = dataset_of(folder)
    left_out = {name_of(folder, one) for one in dataset.examples if not one.use}
    swatches = {name_of(folder, one): one.swatch for one in dataset.examples if one.swatch}
    names = [one.name for one in report.usable if one.name not in left_out]
    found = suggest.captions(
        folder, names, captioner, concept_token=settings.concept_token,
        existing=suggest.written(folder, file), swatches=swatches,
        save=suggest.saver(folder, file, say, settings.cache_dir),
        instance_prompt=settings.instance_prompt, overwrite=overwrite, stop=stop, say=say,
    )  # fmt: skip
    say(found.summary)


def _mended(settings: Config, report: CheckReport, file: Path, say: Say) -> None:
    before = suggest.written(report.folder, file)
    captions = dict(before)
    for finding in lint(settings, before):
        for name in finding.names:
            captions[name] = finding.mend(captions[name]) if finding.mend else captions[name]
    count = sum(captions[name] != before[name] for name in before)
    if count:
        suggest.saver(report.folder, file, say, settings.cache_dir)(captions)
    say(f"captions  {count} mended")


def file_of(settings: Config) -> Path:
    """annotations.txt among the photographs, or below lora_output_dir where their folder is shared to be read only."""
    folder = Path(settings.images_dir).expanduser()
    return folder / ANNOTATIONS if os.access(folder, os.W_OK) else _elsewhere(settings)


def _elsewhere(settings: Config) -> Path:
    """One file for each folder of photographs, whatever the run."""
    folder = Path(settings.images_dir).expanduser().absolute()
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    place = Path(settings.lora_output_dir).expanduser()
    place = Path(settings.cache_dir).expanduser() if is_away(place, settings.drive_mount_path) else place
    return place / "annotations" / f"{slug(folder.name)}-{digest}.txt"


def captions_of(settings: Config, report: CheckReport, say: Say) -> dict[str, str]:
    """The captions that the usable pictures have by now, by name, wherever they stand; see caption_files."""
    found = caption_files.read(report.folder, [record.path for record in report.usable])
    if any(found.sources.get(record.name) != ANNOTATIONS for record in report.usable):  # else the others do not matter
        for note in found.notes:
            say(f"! {note}")
    texts = {name: text for name, text in found.texts.items() if text}
    bare = settings.instance_prompt.strip()
    # Written while the folder could only be read: they count before its own then, and fill gaps when it can be written.
    elsewhere = suggest.written(report.folder, _elsewhere(settings))
    first, second = (elsewhere, texts) if file_of(settings) == _elsewhere(settings) else (texts, elsewhere)
    own = {name: text for name, text in first.items() if text != bare}
    return first | second | own


def learnt(settings: Config) -> dict[str, str]:
    """The captions of annotations.txt by name, as training reads them. Raises the errors of read_annotations."""
    folder = Path(settings.images_dir).expanduser()
    return {name_of(folder, one): one.caption for one in data_utils.read_annotations(file_of(settings), folder)}


def planned(settings: Config, say: Say) -> dict[str, str]:
    """The captions that training would read, by name, without writing anything: of usable pictures not left out."""
    report = _checked(settings, say)
    texts = captions_of(settings, report, say)
    return {record.name: texts.get(record.name, settings.instance_prompt) for record in report.learnt}


def captioner_of(settings: Config, machine: Machine, say: Say = print) -> Captioner | None:
    """The captioner that the settings ask for, loaded and ready; None where they ask for none.

    Raises the errors of captioners.make.
    """
    if settings.captioner == "none":
        return None
    return captioners.make(
        settings.captioner, model=settings.caption_model, url=settings.caption_url, prompt=settings.caption_prompt,
        device="cuda" if machine.gpu_name else "cpu", dtype=machine.precision("auto")[0], say=say,
    )  # fmt: skip


def lint(settings: Config, captions: Mapping[str, str]) -> tuple[caption_lint.Finding, ...]:
    """What is wrong with the captions of a set; their length too, where the base model is on this machine already."""
    return caption_lint.lint(
        captions,
        concept_token=settings.concept_token,
        reader=reader_here(settings),
        instance_prompt=settings.instance_prompt,
    )


def tokenizers_here(settings: Config) -> Sequence[Any] | None:
    """What the base model cuts a caption into tokens with; None where it is not on this machine already."""
    reader = reader_here(settings)
    return reader.tokenizers if reader else None


def reader_here(settings: Config) -> families.Reader | None:
    """What reads captions for the base model; None where it is not on this machine already. Loads torch."""
    try:
        if folders.is_to_fetch(settings.pretrained_model):
            return None
        return families.reader(settings.pretrained_model)
    except LaceError:  # no model here, and none may be fetched: training says so in its own words
        return None
