"""What is written about the pictures of a folder: annotations.txt and dataset.json, read and checked.

annotations.txt has one line a picture, `<image_path>` TAB `<prompt>`, in UTF-8. The path is relative to the folder,
with `/`, in Unicode's composed form (NFC), so that the file stays right wherever Drive is mounted and on every system;
when reading, absolute paths into the folder are understood too.

dataset.json holds the same for programs: {"version": 1, "images": [{"path": …, "caption": …}]}.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lace_lora.errors import PicturesError
from lace_lora.file_names import LINE_BREAKS, has_broken_unicode, on_disk, printable, relative_name

ANNOTATIONS = "annotations.txt"
DATASET = "dataset.json"
DATASET_VERSION = 1
_NAMED_AT_MOST = 5

Row = tuple[int, str, str]  # line number, path as written, caption


@dataclass(frozen=True)
class Example:
    """One picture and the text that it is trained with."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Dataset:
    """Pictures of one folder with their captions, as kept in dataset.json."""

    folder: Path
    examples: tuple[Example, ...] = ()


def caption_fault(caption: str) -> str:
    """Why a text cannot stand behind the tab of a line, or nothing."""
    if not caption.strip():
        return "is empty"
    if "\t" in caption.strip() or any(sign in caption.strip() for sign in LINE_BREAKS):
        return "holds a tab or a line break"
    if has_broken_unicode(caption):
        return "holds half a character (broken Unicode)"
    return ""


def read_annotations(
    source: str | Path, image_dir: str | Path | None = None, *, skip_missing: bool = False
) -> list[Example]:
    """The pictures of annotations.txt with their captions, in the order of its lines.

    source        the folder of pictures, or an annotations file
    image_dir     the folder that the paths are relative to, when the file lies elsewhere
    skip_missing  pass over lines whose picture is gone, instead of refusing the file

    Raises one PicturesError that names what is wrong, the first few lines by number: not exactly one tab, empty path or
    caption, a picture named twice, a path that leads outside the folder, a picture that is gone.
    """
    path = Path(source).expanduser()
    file = path / ANNOTATIONS if path.is_dir() else path
    if not file.is_file():
        raise PicturesError(f"There is no {printable(file)}. Write it first: lace-lora annotate, or notebook 02.")
    folder = Path(image_dir).expanduser() if image_dir is not None else file.parent
    rows, problems = parse(file)
    problems += [f"line {number} has no caption" for number, _, caption in rows if not caption]
    examples, wrong, gone = to_examples(folder, rows)
    if found := problems + wrong + ([] if skip_missing else gone):
        raise complaint(file, found, "Correct or remove these lines, or annotate again.")
    if not examples:
        raise PicturesError(f"{printable(file)} names no picture. Annotate again: lace-lora annotate, or notebook 02.")
    return examples


def parse(file: Path) -> tuple[list[Row], list[str]]:
    """Line number, path as written and caption of each line that has these, and what is wrong with the others."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PicturesError(
            f"{printable(file)} is not UTF-8 text ({error.reason} at byte {error.start}). Save it again as UTF-8."
        ) from error
    except OSError as error:
        raise PicturesError(f"Cannot read {printable(file)} ({error.strerror}). Check who may read it.") from error
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        written, *rest = line.split("\t")
        if len(rest) != 1:
            problems.append(f"line {number} has {len(rest) or 'no'} tab{'s' * (len(rest) > 1)}, not exactly one")
        elif not written.strip() or "\0" in written:
            problems.append(f"line {number} has no path before its tab")
        else:
            rows.append((number, written, rest[0].strip()))
    return rows, problems


def to_examples(folder: Path, rows: Iterable[Row], unit: str = "line") -> tuple[list[Example], list[str], list[str]]:
    """An Example for each row whose picture is there; what is wrong with other rows; and rows whose picture is gone."""
    examples: list[Example] = []
    wrong: list[str] = []
    gone: list[str] = []
    first: dict[str, int] = {}
    for number, written, caption in rows:
        name = relative_name(folder, written)
        if name is None:
            wrong.append(f"{unit} {number} leads outside the folder: {printable(written)}")
        elif first.setdefault(name, number) != number:
            wrong.append(f"{unit} {number} names {printable(name)} again (first in {unit} {first[name]})")
        elif found := on_disk(folder, name):
            examples.append(Example(found, caption))
        else:
            gone.append(f"{unit} {number} names a picture that is gone: {printable(written)}")
    return examples, wrong, gone


def complaint(file: Path, problems: list[str], advice: str) -> PicturesError:
    """One error for all problems of a file: how many, the first few, and what to do."""
    first = "; ".join(problems[:_NAMED_AT_MOST])
    more = f"; and {len(problems) - _NAMED_AT_MOST} more" if len(problems) > _NAMED_AT_MOST else ""
    count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    return PicturesError(f"{printable(file)} has {count}: {first}{more}. {advice}")


def add_image(dataset: Dataset, path: str | Path, caption: str) -> Dataset:
    """The dataset with one more picture, or with another caption for one that it has.

    `path` is absolute, or relative to the dataset's folder or the working folder.

    Raises PicturesError if it is not in the folder, or the caption is empty or holds a tab or line break.
    """
    if fault := caption_fault(caption):
        raise PicturesError(f"The caption of {printable(path)} {fault}; write it on one line.")
    names = (relative_name(dataset.folder, way) for way in (path, os.path.abspath(path)))
    found = next((there for name in names if name and (there := on_disk(dataset.folder, name))), None)
    if found is None:
        folder = printable(dataset.folder)
        raise PicturesError(f"There is no {printable(path)} in {folder}. Copy the picture there first.")
    new = Example(found, caption.strip())
    if any(example.path == found for example in dataset.examples):
        kept = tuple(new if example.path == found else example for example in dataset.examples)
        return replace(dataset, examples=kept)
    return replace(dataset, examples=(*dataset.examples, new))


def dataset_text(dataset: Dataset) -> str:
    """The content of dataset.json."""
    images = [{"path": relative_name(dataset.folder, one.path), "caption": one.caption} for one in dataset.examples]
    return json.dumps({"version": DATASET_VERSION, "images": images}, indent=2, ensure_ascii=False) + "\n"


def load_dataset(source: str | Path) -> Dataset:
    """The dataset of a folder of pictures, or of a dataset.json.

    Raises one PicturesError that names all that is wrong with it: pictures that are gone, lead outside, or lack a text.
    """
    path = Path(source).expanduser()
    file = path / DATASET if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        rows = [(number, image["path"], image["caption"]) for number, image in enumerate(content["images"], 1)]
        version = content["version"]
        if not all(isinstance(text, str) for _, *texts in rows for text in texts):
            raise TypeError("a path or caption is no text")
    except OSError as error:
        raise PicturesError(f"Cannot read {printable(file)} ({error.strerror}). Save the dataset first.") from error
    except (ValueError, KeyError, TypeError) as error:
        why = printable(str(error))
        raise PicturesError(
            f"{printable(file)} is damaged, or no dataset of Lace LoRA ({why}). Take {file.name}.bak or build it anew."
        ) from error
    if version != DATASET_VERSION:
        raise PicturesError(f"{printable(file)} has version {version}, not {DATASET_VERSION}. Update Lace LoRA first.")
    examples, wrong, gone = to_examples(file.parent, rows, unit="image")
    wrong += [f"the caption of image {number} {fault}" for number, _, text in rows if (fault := caption_fault(text))]
    if wrong + gone:
        raise complaint(file, wrong + gone, "Correct it, or build it again.")
    return Dataset(file.parent, tuple(examples))
