"""What is written about the pictures of a folder: annotations.txt and dataset.json, read and checked.

annotations.txt has one line a picture, `<image_path>` TAB `<prompt>`, in UTF-8. The path is relative to the folder,
with `/`, in Unicode's composed form (NFC), so that the file stays right wherever Drive is mounted and on every system;
when reading, absolute paths into the folder are understood too.

dataset.json holds more, for programs and for the gallery:
{"version": 2, "images": [{"path": …, "caption": …, "use": false, "swatch": {…}}]}. `use` is left away where it is true,
`swatch` where nothing is done to the picture; a caption may be empty, then other files give it. Keys of newer versions
and of other tools are kept on saving. Files of version 1, which knew path and caption only, are read too.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lace_lora import swatch as swatches
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.file_names import LINE_BREAKS, has_broken_unicode, on_disk, printable, relative_name
from lace_lora.swatch import Swatch

ANNOTATIONS = "annotations.txt"
DATASET = "dataset.json"
DATASET_VERSIONS = (1, 2)  # that are read; the last is written
DATASET_VERSION = DATASET_VERSIONS[-1]
_NAMED_AT_MOST = 5
_DEEPEST = 50  # Python reads JSON that is deeper than what it writes with line breaks

Row = tuple[int, str, str]  # line number, path as written, caption


@dataclass(frozen=True)
class Example:
    """One picture and the text that it is trained with.

    swatch  what is done to the picture on opening it; None for nothing
    use     False for a picture that is left out of training, as its person decided
    place   where it is read: a copy on this machine of one that lies on Drive; None where it is the picture itself
    """

    path: Path
    caption: str
    swatch: Swatch | None = None
    use: bool = True
    place: Path | None = field(default=None, compare=False, repr=False)

    @property
    def file(self) -> Path:
        """The file to read."""
        return self.place or self.path


@dataclass(frozen=True)
class Dataset:
    """Pictures of one folder with their captions, as kept in dataset.json.

    other  what else stood in the file that was loaded, and is saved again: the picture's name ("" for the file as a
           whole) and its unknown keys as JSON
    """

    folder: Path
    examples: tuple[Example, ...] = ()
    other: tuple[tuple[str, str], ...] = ()


def name_of(folder: Path, example: Example) -> str:
    """The name by which an example is known in its folder, however both are written; empty outside of it."""
    return relative_name(folder, os.path.abspath(example.path)) or ""


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


def add_image(
    dataset: Dataset,
    path: str | Path,
    caption: str | None = None,
    *,
    use: bool | None = None,
    swatch: Swatch | None = None,
) -> Dataset:
    """The dataset with one more picture, or with what is given changed for one that it has.

    path     absolute, or relative to the dataset's folder or the working folder
    caption  None keeps the one there is, or leaves a new picture without: other files may give it one
    use      False leaves the picture out of training; None keeps what was decided, True for a new one
    swatch   what is done to it on opening; None keeps what there is, Swatch() takes it away

    Raises PicturesError if it is not in the folder, or the caption is empty or holds a tab or line break.
    """
    if caption is not None and (fault := caption_fault(caption)):
        raise PicturesError(f"The caption of {printable(path)} {fault}; write it on one line.")
    names = (relative_name(dataset.folder, way) for way in (path, os.path.abspath(path)))
    found = next((there for name in names if name and (there := on_disk(dataset.folder, name))), None)
    if found is None:
        folder = printable(dataset.folder)
        raise PicturesError(f"There is no {printable(path)} in {folder}. Copy the picture there first.")
    earlier = next((example for example in dataset.examples if example.path == found), None)
    new = earlier or Example(found, "")
    if caption is not None:
        new = replace(new, caption=caption.strip())
    if use is not None:
        new = replace(new, use=use)
    if swatch is not None:
        new = replace(new, swatch=swatch if swatch != Swatch() else None)
    if earlier:
        kept = tuple(new if example is earlier else example for example in dataset.examples)
        return replace(dataset, examples=kept)
    return replace(dataset, examples=(*dataset.examples, new))


def dataset_text(dataset: Dataset) -> str:
    """The content of dataset.json."""
    other = dict(dataset.other)
    images = []
    for one in dataset.examples:
        name = name_of(dataset.folder, one)
        unknown = json.loads(other.get(name, "{}"))
        numbers = swatches.as_json(one.swatch) if one.swatch else {}
        numbers |= unknown.pop("swatch", {}) if one.swatch else {}
        row: dict[str, Any] = {"path": name, "caption": one.caption}
        row |= ({} if one.use else {"use": False}) | ({"swatch": numbers} if numbers else {})
        images.append(row | unknown)
    content = {"version": DATASET_VERSION, "images": images} | json.loads(other.get("", "{}"))
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # Another tool's text may hold half a character, which UTF-8 cannot write and JSON can.
    return (json.dumps(content, indent=2) if has_broken_unicode(text) else text) + "\n"


def load_dataset(source: str | Path) -> Dataset:
    """The dataset of a folder of pictures, or of a dataset.json.

    A picture that is gone keeps its place, with a path where nothing lies: it may come back.

    Raises one PicturesError that names all that is wrong with it: pictures that lead outside, captions that cannot
    stand on a line, swatches that cannot be.
    """
    path = Path(source).expanduser()
    file = path / DATASET if path.is_dir() else path
    content, rows = _parsed(file)
    version = content["version"]
    examples, wrong, _ = to_examples(file.parent, rows, unit="image")
    by_name: dict[str | None, Example] = {name_of(file.parent, one): one for one in examples}
    found: list[Example] = []
    other = {"": _unknown(content, {"version", "images"})}
    for number, (row, (_, written, caption)) in enumerate(zip(content["images"], rows, strict=True), 1):
        name = relative_name(file.parent, written)
        use = row.get("use", True)
        if (fault := caption_fault(caption)) and (caption.strip() or version == 1):
            wrong.append(f"the caption of image {number} {fault}")
        if not isinstance(use, bool):
            wrong.append(f"use of image {number} is neither true nor false")
        swatch, fault = _swatch_of(row)
        wrong += [f"image {number}: {fault}"] if fault else []
        example = by_name.pop(name, None)
        if name and not example and name not in other:
            example = Example(file.parent / name, "")
        if name and example:
            found.append(replace(example, caption=caption.strip(), swatch=swatch, use=bool(use)))
            other[name] = _unknown(row, {"path", "caption", "use", "swatch"})
    if wrong:
        raise complaint(file, wrong, "Correct it, or build it again.")
    kept = ((name, json.dumps(keys)) for name, keys in other.items() if keys)
    return Dataset(file.parent, tuple(found), tuple(kept))


def dataset_of(folder: Path) -> Dataset:
    """The dataset of a folder as it stands now, an empty one where it has none. Raises as load_dataset does."""
    return load_dataset(folder) if (folder / DATASET).is_file() else Dataset(folder)


def _parsed(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """What stands in a dataset.json, with number, path and caption of each of its images."""
    try:
        content = json_of(file.read_text(encoding="utf-8-sig"))
        version = content["version"]
        if version not in DATASET_VERSIONS or isinstance(version, bool):
            newer = isinstance(version, int) and version > DATASET_VERSION
            advice = "Update Lace LoRA first." if newer else f"Take {file.name}.bak or build it anew."
            known = " or ".join(map(str, DATASET_VERSIONS))
            raise PicturesError(f"{printable(file)} has version {printable(str(version))}, not {known}. {advice}")
        rows = []
        for number, image in enumerate(content["images"], 1):
            caption = image["caption"] if version == 1 else image.get("caption", "")
            if not isinstance(image["path"], str) or not isinstance(caption, str):
                raise TypeError("a path or caption is no text")
            rows.append((number, image["path"], caption))
    except OSError as error:
        raise PicturesError(f"Cannot read {printable(file)} ({error.strerror}). Save the dataset first.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = printable(str(error))
        raise PicturesError(
            f"{printable(file)} is damaged, or no dataset of Lace LoRA ({why}). Take {file.name}.bak or build it anew."
        ) from error
    return content, rows


def json_of(text: str) -> Any:
    """What a text in JSON holds. Raises ValueError where it is none, or so deep that it could not be written again."""
    content = json.loads(text)
    level = [content]
    for _ in range(_DEEPEST):
        level = [part for one in level if isinstance(one, dict | list) for part in _parts(one)]
        if not level:
            return content
    raise ValueError(f"nested more than {_DEEPEST} deep")


def _parts(one: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return one.values() if isinstance(one, dict) else one


def _swatch_of(row: dict[str, Any]) -> tuple[Swatch | None, str]:
    """The swatch of an image of dataset.json, and what is wrong with it."""
    if row.get("swatch") is None:
        return None, ""
    try:
        swatch = swatches.from_json(row["swatch"])
    except SettingsError as error:
        return None, str(error)
    return (swatch if swatch != Swatch() else None), ""


def _unknown(content: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """What is not ours, also inside a swatch."""
    found = {key: value for key, value in content.items() if key not in known}
    numbers = content.get("swatch")
    if "swatch" in known and isinstance(numbers, dict):
        inside = {key: value for key, value in numbers.items() if key not in {one.name for one in fields(Swatch)}}
        found |= {"swatch": inside} if inside else {}
    return found


def chosen(examples: Iterable[Example], dataset: Dataset) -> tuple[list[Example], list[Example]]:
    """Examples with what dataset.json does to their pictures, and those of them that it leaves out.

    Captions stay as they are: which file's caption counts is decided where captions are read.
    """
    known = {name_of(dataset.folder, one): one for one in dataset.examples}
    kept: list[Example] = []
    left_out: list[Example] = []
    for one in examples:
        said = known.get(name_of(dataset.folder, one), one)
        (kept if said.use else left_out).append(replace(one, swatch=said.swatch, use=said.use))
    return kept, left_out
