"""Pictures that designs are to be like, kept in the run by their content, and designs by the subset they belong to.

The run keeps copies: the notebook that evaluates is another machine, on which the prompts file's folder may be gone. A
copy's name begins with the digest of what is in it, so the same drawing is kept once, and one that was changed is
another one.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import checkpoint, pictures
from lace_lora.errors import RunError, SettingsError
from lace_lora.file_names import printable, slug
from lace_lora.run_folder import RunFolder

ON_PAGE = 240  # pictures; with more a page could not be opened
_DIGITS = 12  # of a digest, in a name
_REST = "other"  # the name of the page of designs that belong to no subset, where others do


def keep(run: RunFolder, path: str | Path) -> str:
    """Keep a picture in the run; returns the name under which `of` finds it.

    Raises SettingsError where it cannot be read, RunError where it cannot be written.
    """
    source = Path(path)
    if source.parent == run.references:
        return source.name  # of a design that is drawn again
    try:
        data = source.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"The reference {printable(source)} cannot be read ({error.strerror or error}). Put it back, or take it "
            "out of the prompts file."
        ) from error
    kind = source.suffix.casefold()
    name = f"{hashlib.sha256(data).hexdigest()[:_DIGITS]}-{slug(source.stem, 40)}{kind}"
    target = run.references / name
    try:
        if checkpoint.size_of(target) != len(data):
            checkpoint.write_bytes(target, data)
    except OSError as error:
        raise RunError(f"The reference {printable(target)} cannot be written ({error.strerror or error}).") from error
    return name


def of(run: RunFolder, row: Mapping[str, Any]) -> Path | None:
    """The picture that a row of images.jsonl was to be like; None where it names none, or one that is gone.

    A row may have been changed by hand: nothing but a file of the run's own references is given.
    """
    name = row.get("reference")
    if not isinstance(name, str) or not name or name != Path(name).name or name.startswith("."):
        return None
    path = run.references / name
    try:
        return path if path.is_file() and not path.is_symlink() else None
    except (OSError, ValueError):  # a name that no disk can hold
        return None


def subsets(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of the designs of each subset, in the order in which subsets come; "" for designs of none.

    A subset is the same however it is capitalised; its first spelling counts.
    """
    spelled: dict[str, str] = {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        told = row.get("subset")
        subset = " ".join(told.split()) if isinstance(told, str) else ""
        found.setdefault(spelled.setdefault(subset.casefold(), subset), []).append(row)
    return found


def subset_pages(
    run: RunFolder,
    rows: Sequence[Mapping[str, Any]],
    picture_of: Callable[[Mapping[str, Any]], Path | Image.Image],
    thumb_px: int = 256,
) -> dict[str, Path]:
    """Write a contact sheet for each subset of designs; returns its file by the subset's name. No subsets, no pages.

    rows        of images.jsonl, with `index`, and `subset`, `prompt` and `reference` where they have them
    picture_of  the picture of a row
    thumb_px    side of a picture on the page

    A design with a reference stands behind it. Designs of no subset have a page of their own where others have one.
    """
    groups = subsets(rows)
    if set(groups) <= {""}:
        return {}
    names = _names(list(groups))
    written = {}
    for subset, members in groups.items():
        shown: list[tuple[Path | Image.Image, str]] = []
        for row in members:
            shown.append((picture_of(row), f"{row['index']}: {row.get('prompt', '')}"))
            if reference := of(run, row):
                shown.append((reference, f"{row['index']} was to be like this"))
        more = f", the first {ON_PAGE} pictures" if len(shown) > ON_PAGE else ""
        title = f"{subset or 'of no subset'}: {len(members)} designs{more}"
        shown = shown[:ON_PAGE]
        sheet = pictures.contact_sheet(
            [one for one, _ in shown], labels=[label for _, label in shown], title=title, thumb_px=thumb_px
        )
        path = run.subset(names[subset])
        checkpoint.write_file(path, lambda partial, sheet=sheet: sheet.save(partial, "PNG"))  # type: ignore[misc]
        written[subset] = path
    return written


# -- inside --


def _names(subsets: Sequence[str]) -> dict[str, str]:
    """A safe name for each subset, no two alike on any disk."""
    taken: dict[str, str] = {}
    for subset in subsets:
        plain = name = slug(subset) if subset else _REST
        number = 2
        while name in taken.values():
            name, number = f"{plain}-{number}", number + 1
        taken[subset] = name
    return taken
