"""Captions written for this project and for other tools, with copies of the pictures where they go elsewhere.

In the person's own folder only annotations.txt and dataset.json are ever written. Other kinds go to a folder of their
own, together with the pictures.
"""

import filecmp
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lace_lora.annotations import ANNOTATIONS, DATASET, DATASET_VERSION, Example, complaint
from lace_lora.caption_files import (
    METADATA,
    PRECEDENCE,
    SIDECARS,
    dataset_content,
    first_of,
    in_words,
    is_there,
    sidecar_name,
)
from lace_lora.caption_lint import one_line
from lace_lora.checkpoint import write_bytes, write_text
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.file_names import has_broken_unicode, line_fault, on_disk, printable, relative_name
from lace_lora.own_files import OwnFile, backup_name, writable

OWN_KINDS = (ANNOTATIONS, DATASET)  # all that is ever written into the person's folder
_SPLIT = "train"
# `datasets` takes folders and files of these names for splits, and leaves all others out.
_SPLIT_WORD = re.compile(
    r"(?:^|[-._ 0-9])(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?:[-._ 0-9]|$)", re.I
)

_log = logging.getLogger(__name__)


def write(
    folder: str | Path,
    captions: Mapping[str, str],
    kind: str,
    *,
    to: str | Path | None = None,
    keep_earlier: bool = True,
    say: Callable[[str], None] = _log.info,
) -> Path:
    """Write the captions of a folder's pictures as one kind of file, and return that file (for sidecars the folder).

    captions      name (relative to the folder, with /) -> caption; all there are: what the file held of other pictures
                  is left out, but in dataset.json. A picture whose caption is empty gets no line and no sidecar
    kind          one of PRECEDENCE
    to            a folder outside of `folder` that gets the file and a copy of each picture, in the same sub-folders;
                  needed for all but annotations.txt and dataset.json. metadata.jsonl and its pictures go to its
                  sub-folder `train`, so that load_dataset("imagefolder", data_dir=to) finds every one
    keep_earlier  keep other content that a file had as `….bak`; False for the second and later saves of one sitting
    say           is told what was left out, renamed and kept

    What dataset.json holds besides captions stays there.

    Raises SettingsError for another kind; PicturesError for pictures that are gone or outside the folder, captions and
    names that no line can hold, pictures that would share a sidecar, a folder `to` that is not apart, a damaged
    dataset.json that would be written over, and a folder that cannot be written.
    """
    if kind not in PRECEDENCE:
        raise SettingsError(f"There is no caption file of kind {kind!r}; take one of {', '.join(PRECEDENCE)}.")
    root = Path(folder).expanduser()
    chosen = _chosen(root, captions, kind)
    target = root
    if to is not None:
        target = _apart(root, Path(to).expanduser()) / (_SPLIT if kind == METADATA else "")
    elif kind not in OWN_KINDS:
        raise PicturesError(f"{in_words(kind)} are not written beside your own pictures. Name a folder to export to.")
    placed = _exported(chosen, say) if kind == METADATA else {name: name for name in chosen}
    if to is not None:
        _refuse_others(target, placed.values())
    if to is not None:
        for name, one in chosen.items():
            _put(root, one.path, target / placed[name])
    if without := [name for name, one in chosen.items() if not one.caption]:
        say(f"without a caption: {first_of(without)}")
    if kind in SIDECARS:
        for name, one in chosen.items():
            _save_sidecar(target / sidecar_name(name, kind), one.caption, keep_earlier, say)
        return target
    if kind == METADATA:
        rows = ({"file_name": placed[name], "text": one.caption} for name, one in chosen.items())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif kind == DATASET:
        text = _dataset_text(root / DATASET, chosen, say)
    else:
        text = "".join(f"{name}\t{one.caption}\n" for name, one in chosen.items() if one.caption)
    _save(target / kind, text, keep_earlier, say)
    return target / kind


def _chosen(folder: Path, captions: Mapping[str, str], kind: str) -> dict[str, Example]:
    """Every picture by its name; one PicturesError for all that cannot be written."""
    chosen: dict[str, Example] = {}
    problems = []
    first: dict[str, tuple[str, str]] = {}
    for written, text in captions.items():
        name, shown, caption = relative_name(folder, written), printable(written), text.strip()
        path = on_disk(folder, name) if name else None
        if name is None:
            problems.append(f"{shown} leads outside the folder")
        elif path is None:
            problems.append(f"{shown} is gone")
        elif fault := line_fault(name):
            problems.append(f"{shown}: {fault}")
        elif one_line(caption) != caption:
            problems.append(f"the caption of {shown} holds a tab, a line break or an invisible character")
        elif chosen.setdefault(name, Example(path, caption)).caption != caption:
            problems.append(f"{shown} is named twice, with different captions")
        elif kind in SIDECARS:
            sidecar = sidecar_name(name, kind)
            other, said = first.setdefault(sidecar, (shown, caption))
            if said != caption:
                problems.append(f"{other} and {shown} would share {printable(sidecar)}, but differ in their captions")
            if sidecar == ANNOTATIONS:
                problems.append(f"the sidecar of {shown} would be called {ANNOTATIONS}")
    if problems:
        raise complaint(folder, problems, "Correct the captions, or rename the pictures.")
    return chosen


def _apart(folder: Path, to: Path) -> Path:
    """The folder to export to, which has no part in the person's own."""
    own, other = (Path(os.path.realpath(path)) for path in (folder, to))
    if own == other or own in other.parents or other in own.parents:
        raise PicturesError(f"{printable(to)} and {printable(folder)} are not apart. Name a folder outside of it.")
    return to


def _exported(chosen: Iterable[str], say: Callable[[str], None]) -> dict[str, str]:
    """What each picture is called in an imagefolder: its own name, but for those that `datasets` would not open."""
    names = {name: name for name in chosen}
    taken = set(names)
    for name in names:
        *parents, _ = name.split("/")
        if "::" in name or any(_SPLIT_WORD.search(part) or part.startswith("__") for part in parents):
            new = name.replace("/", "_").replace("::", "_").lstrip("_")
            while new in taken:
                new = f"_{new}"
            taken.add(new)
            names[name] = new
            say(f"{printable(name)} is exported as {printable(new)}: `datasets` would miss it under its own name")
    return names


def _refuse_others(target: Path, names: Iterable[str]) -> None:
    """What an earlier export left would be learnt too."""
    wanted = set(names)
    kinds = {Path(name).suffix.casefold() for name in wanted}
    there = [path for path in sorted(target.rglob("*")) if path.suffix.casefold() in kinds and path.is_file()]
    others = [path for path in there if relative_name(target, path.absolute()) not in wanted]
    if others:
        raise PicturesError(
            f"{printable(target)} holds {len(others)} pictures that are not part of this export (first: "
            f"{printable(others[0].name)}). Name an empty folder."
        )


def _put(folder: Path, source: Path, target: Path) -> None:
    """A copy of a picture in the folder of an export, where no other file may have its name."""
    own, parent = Path(os.path.realpath(folder)), Path(os.path.realpath(target.parent))
    if own == parent or own in parent.parents:
        raise PicturesError(f"{printable(target.parent)} leads back into {printable(folder)}. Name another folder.")
    if target.exists():
        if not filecmp.cmp(source, target, shallow=False):
            raise PicturesError(f"{printable(target)} is another picture already. Export to an empty folder.")
        return
    with writable(target):
        write_bytes(target, source.read_bytes())


def _dataset_text(file: Path, chosen: Mapping[str, Example], say: Callable[[str], None]) -> str:
    """dataset.json with these captions; what else it holds stays, but for pictures in use that are gone."""
    version: dict[str, Any] = {"version": DATASET_VERSION}
    content = dataset_content(file) if file.is_file() else version | {"images": []}
    earlier = [one for one in content["images"] if isinstance(one, dict) and isinstance(one.get("path"), str)]
    kept = {relative_name(file.parent, one["path"]): one for one in earlier}
    told = {name: one.caption for name, one in chosen.items() if one.caption or name in kept}
    images = [kept.pop(name, {}) | {"path": name, "caption": caption} for name, caption in told.items()]
    images += [one for one in kept.values() if one.get("use") is False or is_there(file.parent, one["path"])]
    if lost := len(told.keys() | kept.keys()) - len(images):
        say(f"{lost} pictures of the earlier {file.name} are gone and left out")
    content |= version | {"images": images}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return (json.dumps(content, indent=2) if has_broken_unicode(text) else text) + "\n"


def _save_sidecar(file: Path, caption: str, keep_earlier: bool, say: Callable[[str], None]) -> None:
    if caption:
        _save(file, caption + "\n", keep_earlier, say)
    elif file.is_file():  # of an earlier export; an empty one would stop kohya's trainer
        with writable(file):
            os.replace(file, backup_name(file, file.read_bytes()))


def _save(file: Path, text: str, keep_earlier: bool, say: Callable[[str], None]) -> None:
    if keep_earlier:
        OwnFile(file, say).write(text)
    else:
        with writable(file):
            write_text(file, text)
