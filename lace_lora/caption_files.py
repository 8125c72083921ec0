"""Captions as this project and other tools keep them, in and out.

Where a picture has captions in several places, the first of these that is not empty counts, picture by picture:

1. annotations.txt   a line a picture, as training reads it, the gallery writes it and a person corrects it by hand
2. dataset.json      what programs wrote; of a picture that has a line it gives only the swatch, and whether it is used
3. metadata.jsonl    Hugging Face's imagefolder: {"file_name": "sub/a.jpg", "text": …} a line; the one nearest to the
                     picture counts where sub-folders have their own
4. a.caption         kohya's sidecar beside a.jpg
5. a.txt             its other ending, last, since a text beside a picture may be anything

Texts are UTF-8; with a byte order mark, as UTF-16 and with Windows' line ends they are read too. Writing them is
caption_export's.
"""

import codecs
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lace_lora.annotations import (
    ANNOTATIONS,
    DATASET,
    DATASET_VERSION,
    Row,
    complaint,
    json_of,
    name_of,
    parse,
    to_examples,
)
from lace_lora.caption_lint import one_line
from lace_lora.errors import PicturesError
from lace_lora.file_names import entries, on_disk, printable, relative_name

METADATA = "metadata.jsonl"
SIDECARS = (".caption", ".txt")
PRECEDENCE = (ANNOTATIONS, DATASET, METADATA, *SIDECARS)

_TEXT_COLUMNS = ("text", "caption", "prompt")
_LARGEST = 64 * 1024**2  # bytes; more is a text about something else


@dataclass(frozen=True)
class Captions:
    """What is written about each picture of a folder."""

    texts: Mapping[str, str]  # name (relative, with /, NFC) -> caption on one line, "" where there is none
    sources: Mapping[str, str]  # name -> the member of PRECEDENCE that it comes from
    notes: tuple[str, ...] = ()  # what could not be read, what was changed in reading, where two sources disagree


def read(folder: str | Path, images: Iterable[Path]) -> Captions:
    """The captions of these pictures, wherever they stand; the module's docstring tells what counts before what.

    images  files of the folder, as list_images gives them
    Whatever a person or another tool wrote is read or named in the notes; nothing that stands in a file raises. A path
    in it that leads outside the folder is named and passed over.

    Raises PicturesError for a picture that is not in the folder.
    """
    root = Path(folder).expanduser()
    names, notes = _names(root, images)
    by_kind: dict[str, dict[str, str]] = {}
    for kind in PRECEDENCE:
        raw, problems = _read_kind(root, kind, names)
        notes += problems
        by_kind[kind] = {name: one_line(text) for name, text in raw.items() if name in names}
        changed = [name for name, text in by_kind[kind].items() if text != raw[name].strip()]
        if changed:
            what = "tabs, line breaks or invisible characters are read as spaces or left out"
            notes.append(f"{in_words(kind)}: {what} ({first_of(changed)})")
    texts = dict.fromkeys(names, "")
    sources: dict[str, str] = {}
    differing: dict[tuple[str, str], list[str]] = {}
    for name in names:
        given = [(kind, text) for kind in PRECEDENCE if (text := by_kind[kind].get(name))]
        if given:
            sources[name], texts[name] = given[0]
        for kind, text in given[1:]:
            if _composed(text) != _composed(texts[name]):
                differing.setdefault((sources[name], kind), []).append(name)
    for (taken, left), found in differing.items():
        notes.append(f"{in_words(left)}: not as in {in_words(taken)}, which counts ({first_of(found)})")
    return Captions(texts, sources, tuple(notes))


def first_of(names: list[str]) -> str:
    """The first of names and how many more there are, for a message."""
    return printable(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def in_words(kind: str) -> str:
    """A member of PRECEDENCE as messages call it."""
    return f"{kind} files" if kind in SIDECARS else kind


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _names(folder: Path, images: Iterable[Path]) -> tuple[dict[str, Path], list[str]]:
    """Each picture by its name, and a note for each whose name another has in another Unicode spelling."""
    names: dict[str, Path] = {}
    notes = []
    for path in images:
        name = relative_name(folder, os.path.abspath(path))
        if name is None:
            raise PicturesError(f"{printable(path)} is not in {printable(folder)}. Copy the picture there first.")
        if names.setdefault(name, path) != path:
            notes.append(f"two pictures are called {printable(name)} in different Unicode spellings: rename one")
    return names, notes


def _read_kind(folder: Path, kind: str, names: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """What one kind of file says of the pictures, as it is written there, and what is wrong with it."""
    if kind in SIDECARS:
        return _from_sidecars(folder, kind, names)
    parents = {parent for name in names for parent in PurePosixPath(name).parents} if kind == METADATA else {Path()}
    near_last = sorted(parents, key=lambda parent: (len(parent.parts), parent.as_posix()))
    texts: dict[str, str] = {}
    notes = []
    for file in (folder / parent / kind for parent in near_last):
        if not file.is_file():
            continue
        try:
            rows, problems = _READERS[kind](file)
        except PicturesError as error:
            notes.append(str(error))
            continue
        found, wrong, gone = to_examples(file.parent, rows, unit="image" if kind == DATASET else "line")
        texts |= {name_of(folder, one): one.caption for one in found}
        if problems + wrong + gone:
            notes.append(str(complaint(file, problems + wrong + gone, "What stands there is passed over.")))
    return texts, notes


def _from_dataset(file: Path) -> tuple[list[Row], list[str]]:
    """More patient than load_dataset: one picture that is gone does not hide the captions of the others."""
    rows = []
    problems = []
    for number, image in enumerate(dataset_content(file)["images"], 1):
        told = (image.get("path"), image.get("caption", "")) if isinstance(image, dict) else (None, None)
        if not isinstance(told[0], str) or not isinstance(told[1], str):
            problems.append(f"image {number} has no path and caption")
        elif image.get("use") is not False or is_there(file.parent, told[0]):  # what is left out may be gone
            rows.append((number, *told))
    return rows, problems


def is_there(folder: Path, path: str) -> bool:
    """Whether the picture of that name is in the folder, or the name leads outside of it."""
    name = relative_name(folder, path)
    return name is None or on_disk(folder, name) is not None


def dataset_content(file: Path) -> dict[str, Any]:
    """dataset.json as it stands, with all that is kept there besides captions."""
    try:
        content = json_of(_text_of(file))
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise ValueError("it lists no images")
    except (ValueError, RecursionError) as error:
        raise PicturesError(
            f"{printable(file)} is damaged, or no dataset of Lace LoRA ({printable(str(error))}). "
            f"Take {file.name}.bak or build it anew."
        ) from error
    if content.get("version") not in range(1, DATASET_VERSION + 1):
        shown = printable(str(content.get("version")))
        raise PicturesError(f"{printable(file)} has version {shown}, not {DATASET_VERSION}. Update Lace LoRA first.")
    return content


def _from_metadata(file: Path) -> tuple[list[Row], list[str]]:
    rows = []
    problems = []
    for number, line in enumerate(_text_of(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = next((row[column] for column in _TEXT_COLUMNS if row.get(column) is not None), "")
            rows.append((number, row["file_name"] + "", text + ""))
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            problems.append(f"line {number} is not JSON with a file_name and a text")
    return rows, problems


_READERS = {ANNOTATIONS: parse, DATASET: _from_dataset, METADATA: _from_metadata}


def _from_sidecars(folder: Path, ending: str, names: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    texts: dict[str, str] = {}
    notes = []
    listed: dict[Path, dict[str, str]] = {}  # each folder is listed once: Drive is slow at it
    pictures: dict[str, list[str]] = {}
    for name, path in names.items():
        sidecar = sidecar_name(name, ending)
        if sidecar == ANNOTATIONS:
            continue
        if path.parent not in listed:
            listed[path.parent] = {_composed(entry): entry for entry in entries(path.parent)}
        entry = listed[path.parent].get(PurePosixPath(sidecar).name)
        if entry is None or not (path.parent / entry).is_file():
            continue
        pictures.setdefault(sidecar, []).append(name)
        try:
            texts[name] = _text_of(path.parent / entry)
        except PicturesError as error:
            notes.append(str(error))
    for sidecar, sharing in pictures.items():
        if len(sharing) > 1:
            both = " and ".join(printable(PurePosixPath(name).name) for name in sharing)
            notes.append(f"{printable(sidecar)} stands beside {both} and is taken for each: rename one of them")
    return texts, list(dict.fromkeys(notes))


def sidecar_name(name: str, ending: str) -> str:
    """The name of a picture's sidecar: the same stem, with `ending` (".txt", ".caption")."""
    return os.path.splitext(name)[0] + ending


def _text_of(file: Path) -> str:
    """A text file of this system or of Windows. Raises PicturesError where it is neither UTF-8 nor marked UTF-16."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(_LARGEST + 1)
    except OSError as error:
        raise PicturesError(f"Cannot read {printable(file)} ({error.strerror}). Check who may read it.") from error
    if len(data) > _LARGEST:
        raise PicturesError(f"{printable(file)} is too large for captions and passed over. Move it elsewhere.")
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", data, data.find(0), data.find(0) + 1, "it holds zero bytes")
    except UnicodeDecodeError as error:
        raise PicturesError(
            f"{printable(file)} is not UTF-8 text ({error.reason} at byte {error.start}). Save it again as UTF-8."
        ) from error
    return text
