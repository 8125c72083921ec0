"""A folder of photographs: list, check, annotate.

In the person's folder only two files are ever written, annotations.txt and dataset.json, each whole or not at all, and
what they held before stays beside them as `….bak`. What stands in them is read by `annotations`; its functions that the
user named are also found here.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lace_lora import comparisons, places, survey
from lace_lora.annotations import (
    ANNOTATIONS,
    DATASET,
    Dataset,
    Example,
    add_image,
    caption_fault,
    complaint,
    dataset_of,
    dataset_text,
    load_dataset,
    name_of,
    parse,
    read_annotations,
    to_examples,
)
from lace_lora.check_report import LONG_SHAPE, MAYBE, SMALLEST_SIDE_PX, CheckReport, ImageRecord, Likeness
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.file_names import line_fault, printable, relative_name
from lace_lora.image_files import open_picture
from lace_lora.listing import composed, folder_of, kinds_of, list_images, listed
from lace_lora.local_copies import Copies, copy_all, is_on_drive
from lace_lora.own_files import OwnFile
from lace_lora.rules_of_thumb import ADVISED_SIDE_PX

__all__ = [
    "CheckReport",
    "Dataset",
    "Example",
    "ImageRecord",
    "add_image",
    "check_images",
    "count_pictures",
    "create_annotations",
    "list_images",
    "load_dataset",
    "open_picture",
    "read_annotations",
    "save_dataset",
]

SDXL_SIDE_PX = 1024  # at which sharpness is judged where no resolution is given
DRIVE = "/content/drive"  # where Colab mounts it unless told otherwise

Captions = Mapping[str, str] | Mapping[Path, str] | Mapping[str | Path, str]  # by name, by path, or both

_log = logging.getLogger(__name__)


# Checking


def check_images(
    image_dir: str | Path,
    extensions: Collection[str] = {".jpg"},
    resolution: int | None = None,
    *,
    cache_dir: str | Path | None = None,
    drive_mount_path: str | Path = DRIVE,
    compare: bool = True,
    steps: int | None = None,
    family: str = "sdxl",
    workers: int | None = None,
    progress: survey.Progress | None = None,
    say: Callable[[str], None] = _log.info,
) -> CheckReport:
    """Open every picture once and say what it is; no picture, however damaged, stops the check.

    resolution        side of the training square in px, to say which pictures would have to be enlarged
    cache_dir         folder for small pictures, and for copies of what lies on Drive, each file read there once; None
                      makes neither. Nothing is written into image_dir itself.
    drive_mount_path  what counts as Drive: everything below it
    compare           look for copies and for pictures of one piece too; 300 pictures take some 15 s, once
    steps, family     planned updates and the base model's family, for the advice
    workers           programs that decode side by side; None takes two for many pictures, 0 does all in this one
    progress          is told after each picture how many were looked at, and of how many
    say               is told what is copied from Drive
    returns           the report; print(report) shows a line a file, then the numbers and the advice

    Raises PicturesError only for a folder that is missing or has no such pictures; RunError where cache_dir cannot be
    written.
    """
    folder = folder_of(image_dir)
    images, others = listed(folder, extensions)
    captions, notes = _captions_for_check(folder)
    cache = Path(cache_dir).expanduser() if cache_dir is not None else None
    copies = copy_all(images, cache, say) if cache and is_on_drive(folder, drive_mount_path) else Copies()
    looks = survey.look_at_all(
        images,
        max(survey.THUMBNAIL_PX, resolution or SDXL_SIDE_PX),
        cache_dir=cache,
        places=copies.places,
        faults=copies.faults,
        workers=workers,
        progress=progress,
    )
    records = [_checked(folder, path, look, resolution, cache) for path, look in zip(images, looks, strict=True)]
    records = _without_twin_names(records)
    likenesses = _likenesses(records, looks, cache, say) if compare else ()
    records = [_captioned(record, captions) for record in _with_notes_on_copies(records, likenesses)]
    records, problem = _as_decided(folder, records)
    notes += problem
    kinds = kinds_of(others)
    return CheckReport(folder, tuple(records), kinds, tuple(notes), resolution, likenesses, steps, family)


def _checked(folder: Path, path: Path, look: survey.Look, resolution: int | None, cache: Path | None) -> ImageRecord:
    """One file by itself: its name, whether it opens, its size."""
    name = composed(path.relative_to(folder).as_posix())
    fault = look.fault or line_fault(name)
    notes = list(look.notes)
    if look.width:
        short, long = sorted((look.width, look.height))
        if short < SMALLEST_SIDE_PX:
            fault = fault or f"only {look.width} × {look.height} px, too small to show a stitch"
        elif short < (resolution or ADVISED_SIDE_PX):
            notes.append(f"short side {short} px: {_size_wish(short, resolution)}")
        if long > LONG_SHAPE * short:
            notes.append(f"long shape, {long / short:.1f} : 1")
    small = survey.thumbnail_path(cache / survey.THUMBNAILS, look.sha256) if cache and look.width else None
    shown = small if small and small.is_file() else None
    size = look.width, look.height
    return ImageRecord(path, name, *size, look.sha256, fault, tuple(notes), "", look.quality, shown)


def _without_twin_names(records: list[ImageRecord]) -> list[ImageRecord]:
    """The records, each later one whose name differs in its Unicode spelling only with that as its fault."""
    first: dict[str, ImageRecord] = {}
    found = []
    for record in records:
        twin = first.setdefault(record.name, record)
        if twin is not record and not record.fault:
            fault = f"its name is that of {printable(twin.path.name)} in another Unicode spelling: rename one"
            record = replace(record, fault=fault)
        found.append(record)
    return found


def _likenesses(
    records: list[ImageRecord], looks: list[survey.Look], cache: Path | None, say: Callable[[str], None]
) -> tuple[Likeness, ...]:
    """Which of the usable pictures show, or may show, one piece."""
    names, prints = [], []
    for record, look in zip(records, looks, strict=True):
        if record.is_usable and look.fingerprint is not None:
            names.append(record.name)
            prints.append(look.fingerprint)
    return tuple(
        Likeness(names[pair.first], names[pair.second], pair.kind, pair.likeness)
        for pair in comparisons.pairs(prints, cache, say)
    )


def _with_notes_on_copies(records: list[ImageRecord], likenesses: tuple[Likeness, ...]) -> Iterator[ImageRecord]:
    """The records, each with what tells that another picture is the same; the first of a piece is not told of."""
    digests: dict[str, str] = {}
    joined = CheckReport(Path(), tuple(records), pairs=likenesses).groups
    later = {name for group in joined for name in group[1:]}
    for record in records:
        notes = list(record.notes)
        first = digests.setdefault(record.sha256, record.name) if record.sha256 else record.name
        if first != record.name:
            notes.append(f"same bytes as {printable(first)}")
        elif record.is_usable:
            notes += _notes_on_copies(record.name, record.name in later, likenesses)
        yield replace(record, notes=tuple(notes))


def _notes_on_copies(name: str, is_later: bool, likenesses: tuple[Likeness, ...]) -> Iterator[str]:
    """Of pictures of one piece the surest, an earlier one where there is one; and all that may be of one piece."""
    own = [pair for pair in likenesses if name in (pair.first, pair.second)]
    sure = [pair for pair in own if pair.kind != MAYBE]
    for pair in sorted(sure, key=lambda pair: pair.first == name)[:is_later]:
        yield f"same picture as {printable(pair.other(name))} ({pair.likeness:.0%} alike)"
    for pair in own:
        if pair.kind == MAYBE and pair.second == name:
            yield f"{MAYBE} as {printable(pair.first)} ({pair.likeness:.0%} alike)"


def _captioned(record: ImageRecord, captions: dict[str, str] | None) -> ImageRecord:
    """The record with its caption from annotations.txt, or with the note that it has none there."""
    if captions is None or captions.get(record.name) or not record.is_usable:
        return replace(record, caption=(captions or {}).get(record.name, ""))
    is_there = record.name in captions
    note = f"its caption in {ANNOTATIONS} is empty" if is_there else f"has no line in {ANNOTATIONS}"
    return replace(record, notes=(*record.notes, note))


def _as_decided(folder: Path, records: list[ImageRecord]) -> tuple[list[ImageRecord], list[str]]:
    """The records with what dataset.json says of them, and what is wrong with that file."""
    try:
        dataset = dataset_of(folder)
    except PicturesError as error:
        return records, [str(error)]
    known = {name_of(folder, one): one for one in dataset.examples}
    found = []
    for record in records:
        said = known.get(record.name)
        found.append(replace(record, is_used=said.use, swatch=said.swatch) if said else record)
    return found, []


def _size_wish(short: int, resolution: int | None) -> str:
    if not resolution:
        return f"{ADVISED_SIDE_PX} px or more are advised"
    factor = resolution / short
    return f"enlarged {factor:.{1 if factor >= 1.1 else 2}f}× to reach {resolution}"


def _captions_for_check(folder: Path) -> tuple[dict[str, str] | None, list[str]]:
    """What annotations.txt says of each name (None where there is none), and what is wrong with the file."""
    file = folder / ANNOTATIONS
    if not file.is_file():
        return None, []
    try:
        rows, problems = parse(file)
    except PicturesError as error:
        return None, [str(error)]
    examples, wrong, gone = to_examples(folder, rows)
    notes = [f"{ANNOTATIONS}: {problem}" for problem in problems + wrong + gone]
    return {name_of(folder, example): example.caption for example in examples}, notes


def count_pictures(image_dir: str | Path, extensions: Collection[str] = {".jpg"}) -> int:
    """How many pictures of a folder are to be learnt: those that dataset.json does not leave out; none is opened.

    Raises PicturesError for a missing folder, or one without such pictures.
    """
    folder = folder_of(image_dir)
    names = {composed(path.relative_to(folder).as_posix()) for path in list_images(folder, extensions)}
    try:
        dataset = dataset_of(folder)
    except PicturesError:  # training says what is wrong with it
        dataset = Dataset(folder)
    return len(names - {name_of(folder, one) for one in dataset.examples if not one.use})


# Annotating


def create_annotations(
    image_dir: str | Path,
    prompt: str,
    extensions: Collection[str] = {".jpg"},
    captions: Captions | None = None,
    *,
    overwrite: bool = False,
    file: Path | None = None,
    checked: CheckReport | None = None,
    say: Callable[[str], None] = _log.info,
    spare: Path | None = None,
) -> Path:
    """Write annotations.txt: a line `<image_path>` TAB `<prompt>` for every picture that can be used.

    captions   texts for single pictures, by path or by name relative to the folder; they win over all else
    overwrite  False keeps the captions that annotations.txt already has; True gives every picture the prompt
    file       where to write instead of the folder itself (because it is read-only, or for a copy of one run)
    checked    the report of check_images, so that the pictures are not opened twice
    say        is told, a sentence each, what was left out and what was kept
    spare      where the lines are put down on this machine if the file cannot be written

    returns    the file written; it is left alone when it would not change, and an earlier one is kept as `….bak`

    Raises SettingsError for a prompt that is empty or holds a tab or line break; PicturesError when no picture can be
    used, a caption does not fit, the earlier file has lines that cannot be read, or the folder cannot be written.
    """
    folder = folder_of(image_dir)
    if fault := caption_fault(prompt):
        raise SettingsError(f"The prompt {fault}; write it on one line, for example: a photo of <myspecialstyle>")
    report = checked or check_images(folder, extensions, compare=False)
    names = [record.name for record in report.usable]
    for record in report.records:
        if record.fault:
            say(f"left out {printable(record.name)}: {record.fault}")
    if not names:
        first = next(f"{printable(record.name)}: {record.fault}" for record in report.records)
        raise PicturesError(f"None of the {len(report.records)} pictures in {printable(folder)} can be used ({first}).")

    target = file or folder / ANNOTATIONS
    own = folder / ANNOTATIONS if (folder / ANNOTATIONS).is_file() else target
    earlier = {} if overwrite else _earlier_captions(folder, own, say)
    unused = {name: text for name, text in earlier.items() if name not in names and text != prompt.strip()}
    if target.parent == folder:
        put_by(folder, unused, say)
    given = _captions_by_name(folder, captions or {}, {record.name for record in report.records})
    chosen = {name: given.get(name) or earlier.get(name) or prompt.strip() for name in names}
    kept = [name for name in names if chosen[name] == earlier.get(name) and chosen[name] != prompt.strip()]
    if kept:
        say(f"kept {len(kept)} captions that are there already")
    base = folder if file is None else places.nearest(target.parent)
    OwnFile(target, say, spare, base).write("".join(f"{name}\t{caption}\n" for name, caption in chosen.items()))
    return target


def _earlier_captions(folder: Path, file: Path, say: Callable[[str], None]) -> dict[str, str]:
    """The captions that a person's own annotations file gives to pictures that are there."""
    if not file.is_file():
        return {}
    rows, problems = parse(file)
    examples, wrong, gone = to_examples(folder, rows)
    if problems + wrong:
        advice = "Correct these lines, or rename the file and annotate again."
        raise complaint(file, problems + wrong, advice)
    captions = {name_of(folder, example): example.caption for example in examples if example.caption}
    if gone:
        say(f"{len(gone)} lines of the earlier {file.name} name pictures that are gone; they stay in its .bak")
    return captions


def put_by(folder: Path, captions: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Keep captions of pictures that cannot be used now in dataset.json, from where they come back once they can.

    Raises PicturesError for a dataset.json that cannot be read or written.
    """
    if not captions:
        return
    dataset = dataset_of(folder)
    for name, caption in captions.items():
        dataset = add_image(dataset, name, caption)
    OwnFile(folder / DATASET, say).write(dataset_text(dataset))
    say(f"{len(captions)} captions of pictures that cannot be used now are put by in {DATASET}")


def _captions_by_name(folder: Path, captions: Captions, names: set[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    problems = []
    for path, caption in captions.items():
        ways = (relative_name(folder, path), relative_name(folder, os.path.abspath(path)))
        name = next((name for name in ways if name in names), None)
        if name is None:
            problems.append(f"{printable(path)} is no picture of this folder")
        elif fault := caption_fault(caption):
            problems.append(f"the caption of {printable(path)} {fault}")
        else:
            given[name] = caption.strip()
    if problems:
        raise complaint(folder, problems, "Correct the captions handed in.")
    return given


def save_dataset(dataset: Dataset, file: Path | None = None) -> Path:
    """Write dataset.json into the dataset's folder (or to `file` in it); other content is kept as `….bak`."""
    target = file or dataset.folder / DATASET
    OwnFile(target).write(dataset_text(dataset))
    return target
