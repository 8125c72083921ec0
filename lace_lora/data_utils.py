"""A folder of photographs: list, check, annotate.

In the person's folder only two files are ever written, annotations.txt and dataset.json, each whole or not at all, and
what they held before stays beside them as `….bak`. What stands in them is read by `annotations`; its functions that the
user named are also found here.
"""

import difflib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lace_lora.annotations import (
    ANNOTATIONS,
    DATASET,
    Dataset,
    Example,
    add_image,
    caption_fault,
    complaint,
    dataset_text,
    load_dataset,
    parse,
    read_annotations,
    to_examples,
)
from lace_lora.check_report import ADVISED_SIDE_PX, LONG_SHAPE, SMALLEST_SIDE_PX, CheckReport, ImageRecord
from lace_lora.checkpoint import PARTIAL, write_bytes, write_text
from lace_lora.errors import PicturesError, RunError, SettingsError
from lace_lora.file_names import LINE_BREAKS, entries, has_broken_unicode, printable, relative_name
from lace_lora.image_files import open_picture, read_picture

__all__ = [
    "CheckReport",
    "Dataset",
    "Example",
    "ImageRecord",
    "add_image",
    "check_images",
    "create_annotations",
    "list_images",
    "load_dataset",
    "open_picture",
    "read_annotations",
    "save_dataset",
]

_READABLE_KINDS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".jp2"}
_EXPORTED_KINDS = {".heic", ".heif"}

_log = logging.getLogger(__name__)


# Listing


def list_images(image_dir: str | Path, extensions: Collection[str] = {".jpg"}) -> list[Path]:
    """The pictures of a folder and its sub-folders, sorted by name; upper and lower case endings alike.

    Hidden files and folders are passed over. Raises PicturesError for a missing folder, or one without such pictures.
    """
    return _listing(_folder(image_dir), extensions)[0]


def _listing(folder: Path, extensions: Collection[str]) -> tuple[list[Path], list[Path]]:
    """The pictures asked for, and all other files; the folder is walked once, since Drive is slow at it."""
    wanted = _suffixes(extensions)
    files = _files(folder)
    images = [path for path in files if path.suffix.casefold() in wanted]
    if not images:
        raise PicturesError(_nothing_found(folder, wanted, files))
    return images, [path for path in files if path.suffix.casefold() not in wanted]


def _folder(image_dir: str | Path) -> Path:
    folder = Path(image_dir).expanduser()
    if folder.is_dir():
        return folder
    shown = printable(folder)
    if folder.exists():
        raise PicturesError(f"{shown} is a file; images_dir must be the folder that holds the pictures.")
    if not folder.parent.is_dir():
        first = "Mount Drive first, or correct" if folder.is_relative_to("/content/drive") else "Correct"
        raise PicturesError(f"There is no folder {shown}. {first} images_dir.")
    near = difflib.get_close_matches(folder.name, entries(folder.parent), 1)
    hint = f"Did you mean {printable(folder.parent / near[0])}? " if near else "Put the pictures there, or correct "
    raise PicturesError(f"There is no folder {shown}. {hint}{'Correct ' if near else ''}images_dir.")


def _suffixes(extensions: Collection[str]) -> set[str]:
    given = [extensions] if isinstance(extensions, str) else extensions
    wanted = {"." + ending.strip().lstrip(".").casefold() for ending in given} - {"."}
    if not wanted:
        raise SettingsError('image_types names no kind of file; write for example [".jpg", ".png"].')
    return wanted


def _files(folder: Path) -> list[Path]:
    """Every visible file, sorted by the composed form of its name. Links are followed: Drive's shortcuts are links."""
    found: list[Path] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise PicturesError(f"Cannot look into {printable(error.filename)} ({error.strerror}). Check who may read it.")

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]

    def order(path: Path) -> tuple[list[str], bool, Path]:
        name = path.relative_to(folder).as_posix()
        return _composed(name).split("/"), name != _composed(name), path

    return sorted(found, key=order)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_ours(path: Path) -> bool:
    return path.name.startswith((ANNOTATIONS, DATASET)) or path.name.endswith(PARTIAL)


def _kinds(files: Iterable[Path]) -> dict[str, int]:
    """How many files of each kind, most frequent first, each kind as the folder spells it most often."""
    spelt = Counter(path.suffix for path in files if path.suffix and not _is_ours(path))
    kinds: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for suffix, count in spelt.most_common():
        kinds[spelling.setdefault(suffix.casefold(), suffix)] += count
    return dict(kinds.most_common())


def _nothing_found(folder: Path, wanted: set[str], files: list[Path]) -> str:
    kinds = _kinds(files)
    start = f"No {' or '.join(sorted(wanted))} in {printable(folder)}"
    if not kinds:
        return f"{start} (the folder is empty). Put the pictures there, or correct images_dir."
    found = ", ".join(f"{count} {printable(kind)}" for kind, count in list(kinds.items())[:5])
    kind = next((kind for kind in kinds if kind.casefold() in _READABLE_KINDS | _EXPORTED_KINDS), "").casefold()
    if kind in _READABLE_KINDS:
        advice = f'Add "{kind}" to image_types.'
    elif kind in _EXPORTED_KINDS:
        advice = f'Export them as JPEG, or add "{kind}" to image_types.'
    else:
        advice = "Export the pictures as JPEG, or correct images_dir."
    return f"{start} ({found} found). {advice}"


# Checking


def check_images(
    image_dir: str | Path, extensions: Collection[str] = {".jpg"}, resolution: int | None = None
) -> CheckReport:
    """Open every picture once and say what it is; no picture, however damaged, stops the check.

    resolution  side of the training square in px, to say which pictures would have to be enlarged
    returns     the report; print(report) shows a line a file, then the numbers and the advice

    Raises PicturesError only for a folder that is missing or has no such pictures.
    """
    folder = _folder(image_dir)
    images, others = _listing(folder, extensions)
    captions, notes = _captions_for_check(folder)
    records: list[ImageRecord] = []
    names: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for path in images:
        record = _checked(folder, path, resolution)
        notes_here = list(record.notes)
        if (twin := names.setdefault(record.name, path)) != path and not record.fault:
            fault = f"its name is that of {printable(twin.name)} in another Unicode spelling: rename one"
            record = replace(record, fault=fault)
        if record.sha256 and (first := digests.setdefault(record.sha256, record.name)) != record.name:
            notes_here.append(f"same bytes as {printable(first)}")
        if captions is not None and not captions.get(record.name):
            has_line = record.name in captions
            notes_here.append(f"its caption in {ANNOTATIONS} is empty" if has_line else f"has no line in {ANNOTATIONS}")
        caption = (captions or {}).get(record.name, "")
        records.append(replace(record, notes=tuple(notes_here), caption=caption))
    return CheckReport(folder, tuple(records), _kinds(others), tuple(notes), resolution)


def _checked(folder: Path, path: Path, resolution: int | None) -> ImageRecord:
    """One file by itself: its name, whether it opens, its size."""
    name = _composed(path.relative_to(folder).as_posix())
    opened = read_picture(path)
    width, height = opened.image.size if opened.image else (0, 0)
    fault = opened.fault or _name_fault(name)
    notes = list(opened.notes)
    if opened.image:
        short, long = sorted((width, height))
        if short < SMALLEST_SIDE_PX:
            fault = fault or f"only {width} × {height} px, too small to show a stitch"
        elif short < (resolution or ADVISED_SIDE_PX):
            notes.append(f"short side {short} px: {_size_wish(short, resolution)}")
        if long > LONG_SHAPE * short:
            notes.append(f"long shape, {long / short:.1f} : 1")
    return ImageRecord(path, name, width, height, opened.sha256, fault, tuple(notes))


def _size_wish(short: int, resolution: int | None) -> str:
    if not resolution:
        return f"{ADVISED_SIDE_PX} px or more are advised"
    factor = resolution / short
    return f"enlarged {factor:.{1 if factor >= 1.1 else 2}f}× to reach {resolution}"


def _name_fault(name: str) -> str:
    """Why a file of this name cannot stand in a line of text, or nothing."""
    if any(sign in name for sign in "\t\0" + LINE_BREAKS) or name.startswith("\ufeff"):
        return "its name holds a tab, a line break or an invisible mark: rename it"
    if has_broken_unicode(name):
        return "its name is not valid Unicode: rename it"
    return ""


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
    return {_name(folder, example): example.caption for example in examples}, notes


def _name(folder: Path, example: Example) -> str:
    return relative_name(folder, os.path.abspath(example.path)) or ""


# Annotating


def create_annotations(
    image_dir: str | Path,
    prompt: str,
    extensions: Collection[str] = {".jpg"},
    captions: Mapping[str | Path, str] | None = None,
    *,
    overwrite: bool = False,
    file: Path | None = None,
    checked: CheckReport | None = None,
    say: Callable[[str], None] = _log.info,
) -> Path:
    """Write annotations.txt: a line `<image_path>` TAB `<prompt>` for every picture that can be used.

    captions   texts for single pictures, by path or by name relative to the folder; they win over all else
    overwrite  False keeps the captions that annotations.txt already has; True gives every picture the prompt
    file       where to write instead of the folder itself (because it is read-only, or for a copy of one run)
    checked    the report of check_images, so that the pictures are not opened twice
    say        is told, a sentence each, what was left out and what was kept

    returns    the file written; it is left alone when it would not change, and an earlier one is kept as `….bak`

    Raises SettingsError for a prompt that is empty or holds a tab or line break; PicturesError when no picture can be
    used, a caption does not fit, the earlier file has lines that cannot be read, or the folder cannot be written.
    """
    folder = _folder(image_dir)
    if fault := caption_fault(prompt):
        raise SettingsError(f"The prompt {fault}; write it on one line, for example: a photo of <myspecialstyle>")
    report = checked or check_images(folder, extensions)
    names = [record.name for record in report.usable]
    for record in report.records:
        if record.fault:
            say(f"left out {printable(record.name)}: {record.fault}")
    if not names:
        first = next(f"{printable(record.name)}: {record.fault}" for record in report.records)
        raise PicturesError(f"None of the {len(report.records)} pictures in {printable(folder)} can be used ({first}).")

    target = file or folder / ANNOTATIONS
    own = folder / ANNOTATIONS if (folder / ANNOTATIONS).is_file() else target
    earlier = {} if overwrite else _earlier_captions(folder, own, names, say)
    given = _captions_by_name(folder, captions or {}, {record.name for record in report.records})
    chosen = {name: given.get(name) or earlier.get(name) or prompt.strip() for name in names}
    kept = [name for name in names if chosen[name] == earlier.get(name) and chosen[name] != prompt.strip()]
    if kept:
        say(
            f"kept {len(kept)} captions that {own.name} already had. To give these pictures the prompt too: "
            f"lace-lora annotate --overwrite, or delete {own.name} and annotate again"
        )
    _write_keeping_earlier(target, "".join(f"{name}\t{caption}\n" for name, caption in chosen.items()), say)
    return target


def _earlier_captions(folder: Path, file: Path, names: list[str], say: Callable[[str], None]) -> dict[str, str]:
    """The captions that a person's own annotations file gives to these pictures."""
    if not file.is_file():
        return {}
    rows, problems = parse(file)
    examples, wrong, gone = to_examples(folder, rows)
    if problems + wrong:
        advice = (
            f"Correct these lines; or give every picture the prompt: lace-lora annotate --overwrite, which keeps this "
            f"file as {file.name}.bak, or rename the file and annotate again."
        )
        raise complaint(file, problems + wrong, advice)
    captions = {_name(folder, example): example.caption for example in examples if example.caption}
    if lost := len(gone) + len(set(captions).difference(names)):
        say(f"{lost} lines of the earlier {file.name} name no usable picture of this set; they stay in its .bak")
    return {name: captions[name] for name in names if name in captions}


def _captions_by_name(folder: Path, captions: Mapping[str | Path, str], names: set[str]) -> dict[str, str]:
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
    _write_keeping_earlier(target, dataset_text(dataset), _log.info)
    return target


def _write_keeping_earlier(file: Path, text: str, say: Callable[[str], None]) -> None:
    """Write a text file whole or not at all; other content that was there is kept under the next free `.bak` name."""
    try:
        earlier = file.read_bytes() if file.exists() else None
        if earlier == text.encode("utf-8"):
            return
        if earlier is not None:
            backup = _backup_name(file, earlier)
            if not backup.exists():
                write_bytes(backup, earlier)
            say(f"the earlier {file.name} is kept as {backup.name}")
        write_text(file, text)
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        reason = getattr(cause, "strerror", None) or error
        advice = "Make its folder writable, or copy the pictures to a folder that is."
        raise PicturesError(f"Cannot write {printable(file)} ({reason}). {advice}") from error


def _backup_name(file: Path, content: bytes) -> Path:
    """The first of name.bak, name.bak2, … that is free or holds the same content."""
    number = 1
    while True:
        backup = file.with_name(f"{file.name}.bak{number if number > 1 else ''}")
        if not backup.exists() or backup.read_bytes() == content:
            return backup
        number += 1
