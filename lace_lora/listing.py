"""The files of a folder of photographs: which are pictures of the kinds asked for, and what lies there besides."""

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from lace_lora.annotations import ANNOTATIONS, DATASET
from lace_lora.checkpoint import PARTIAL
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.file_names import entries, printable
from lace_lora.image_files import HEIC_KINDS, READABLE_KINDS, how_to_include

_OR_MAKE = " To have it made, switch make_folders on."
TEXTS = (".txt", ".caption", ".jsonl", ".json", ".csv")  # captions and lists of other tools, no pictures


def list_images(image_dir: str | Path, extensions: Collection[str] = {".jpg"}) -> list[Path]:
    """The pictures of a folder and its sub-folders, sorted by name; upper and lower case endings alike.

    Hidden files and folders are passed over. Raises PicturesError for a missing folder, or one without such pictures.
    """
    return listed(folder_of(image_dir), extensions)[0]


def listed(folder: Path, extensions: Collection[str]) -> tuple[list[Path], list[Path]]:
    """The pictures asked for, and all other files; the folder is walked once, since Drive is slow at it."""
    wanted = _suffixes(extensions)
    files = _files(folder)
    images = [path for path in files if path.suffix.casefold() in wanted]
    if not images:
        raise PicturesError(_nothing_found(folder, wanted, files))
    return images, [path for path in files if path.suffix.casefold() not in wanted]


def folder_of(image_dir: str | Path) -> Path:
    """The folder of photographs. Raises PicturesError where there is none, with the nearest name."""
    folder = Path(image_dir).expanduser()
    if folder.is_dir():
        return folder
    shown = printable(folder)
    if folder.exists():
        raise PicturesError(f"{shown} is a file; images_dir must be the folder that holds the pictures.")
    if not folder.parent.is_dir():
        first = "Mount Drive first, or correct" if folder.is_relative_to("/content/drive") else "Correct"
        raise PicturesError(f"There is no folder {shown}. {first} images_dir.{_OR_MAKE}")
    near = difflib.get_close_matches(folder.name, entries(folder.parent), 1)
    hint = f"Did you mean {printable(folder.parent / near[0])}? " if near else ""
    raise PicturesError(f"There is no folder {shown}. {hint}Correct images_dir.{_OR_MAKE}")


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
        words = f"Cannot look into {printable(error.filename)} ({error.strerror}). Check who may read it."
        raise PicturesError(words) from error

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
        return composed(name).split("/"), name != composed(name), path

    return sorted(found, key=order)


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


def _is_ours(path: Path) -> bool:
    return path.name.startswith((ANNOTATIONS, DATASET)) or path.name.endswith((PARTIAL, *TEXTS))


def kinds_of(files: Iterable[Path]) -> dict[str, int]:
    """How many files of each kind, most frequent first, each kind as the folder spells it most often."""
    spelt = Counter(path.suffix for path in files if path.suffix and not _is_ours(path))
    kinds: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for suffix, count in spelt.most_common():
        kinds[spelling.setdefault(suffix.casefold(), suffix)] += count
    return dict(kinds.most_common())


def _nothing_found(folder: Path, wanted: set[str], files: list[Path]) -> str:
    kinds = kinds_of(files)
    start = f"No {' or '.join(sorted(wanted))} in {printable(folder)}"
    if not kinds:
        return f"{start} (the folder is empty). Put the pictures there, or correct images_dir."
    found = ", ".join(f"{count} {printable(kind)}" for kind, count in list(kinds.items())[:5])
    kind = next((kind for kind in kinds if kind.casefold() in READABLE_KINDS | HEIC_KINDS), "")
    advice = how_to_include(kind) if kind else "export the pictures as JPEG, or correct images_dir"
    return f"{start} ({found} found). {advice[0].upper()}{advice[1:]}."
