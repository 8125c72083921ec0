"""A sheet of designs to look through and to take away: one page beside the pictures, one zip of what is finished.

The page loads nothing from elsewhere and needs no script: it opens from Drive, from an unpacked zip and on a phone.
"""

from collections.abc import Collection, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lace_lora import archives, stars
from lace_lora.checkpoint import write_text
from lace_lora.errors import RunError
from lace_lora.file_names import printable
from lace_lora.run_folder import SheetFolder

# What may lie beside a picture, by the ending that takes the place of its own: refined_output_003_mask.png.
BESIDE = {
    "in repeat": "_repeat.png",
    "mask": "_mask.png",
    "cut out": "_cutout.png",
    "outline": "_outline.svg",
    "enlarged": "_enlarged.png",
}
ON_PAGE = 2000  # designs; with many more a phone would not open the page

_SAID_APART = {"index", "prompt", "seed", "base", "refined", "versions", "refiner_prompt"}

STYLE = """
:root { color-scheme: light dark; --ink: #23201c; --paper: #fbf8f2; --line: #d9d0c1; --soft: #6f675b;
  --accent: #7a3b3b }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee7db; --paper: #1d1b19; --line: #46413a; --soft: #a79d8d; --accent: #d8a1a1 } }
* { box-sizing: border-box } body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: var(--ink);
  background: var(--paper); max-width: 90rem; margin: 0 auto; padding: 1rem }
h1 { font-weight: normal; margin: 0 } a { color: var(--accent) } .soft { color: var(--soft); font-size: .92rem }
main { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)) }
article { min-width: 0; border-top: 1px solid var(--line); padding-top: .6rem } p { margin: .3rem 0;
  overflow-wrap: anywhere } img { display: block; width: 100%; height: auto; background: var(--line) }
.star { color: var(--accent) } nav a, .links a { display: inline-block; padding: .35rem .6rem .35rem 0 }
dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .8rem; margin: .3rem 0; font-size: .9rem }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere } summary { cursor: pointer; padding: .35rem 0 }
"""


def beside(picture: Path, what: str) -> Path:
    """Where something made of a picture lies; `what` is one of BESIDE."""
    return picture.with_name(picture.stem + BESIDE[what])


def write(folder: SheetFolder, starred: Collection[int] = ()) -> Path:
    """Write index.html into a sheet's folder: every finished design with its prompt, seed and files.

    starred  numbers of the favourites, marked and linked at the top

    Pictures that were deleted since are left out. Raises RunError when the folder holds no finished picture.
    """
    designs = _designs(folder)
    if not designs:
        raise RunError(
            f"{printable(folder.root)} holds no finished designs, so there is no page to write. Draw some first: "
            "lace-lora generate"
        )
    shown = designs[:ON_PAGE]
    said = f"{len(designs)} designs" + (f", the first {ON_PAGE} are shown" if len(designs) > ON_PAGE else "")
    if _is_there(folder.contact_sheet):
        said += f" · <a href='{_address(folder.contact_sheet)}'>all on one sheet</a>"
    stars = [row["index"] for row, _ in shown if row["index"] in starred]
    to_stars = " ".join(f"<a href='#design-{index}'>★&nbsp;{index}</a>" for index in stars)
    name = escape(printable(folder.root.name))
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{name}: {len(designs)} designs</title><style>{STYLE}</style></head>\n<body>\n"
        f"<header><h1>{name}</h1><p class='soft'>{said}</p>"
        + (f"<nav aria-label='favourites'>{to_stars}</nav>" if stars else "")
        + "</header>\n<main>\n"
        + "\n".join(_design(row, picture, _base_of(folder, row), row["index"] in starred) for row, picture in shown)
        + "\n</main>\n</body></html>\n"
    )
    target = folder.index
    write_text(target, page)
    return target


def zipped(folder: SheetFolder) -> Path:
    """Pack the finished designs of a sheet, with what was made of them, into <sheet>.zip in its folder.

    The page, the contact sheet and images.jsonl go with them; latents, unfinished pictures, links and all that is not
    the sheet's own stay out. The same files give the same bytes, whenever and wherever they were written.
    Raises RunError when the folder holds no finished picture.
    """
    files = [folder.index, folder.manifest, folder.contact_sheet]
    designs = _designs(folder)
    for row, picture in designs:
        before = _base_of(folder, row)
        files += [picture, *([before] if before else []), *(beside(picture, what) for what in BESIDE)]
    if not designs:
        raise RunError(
            f"{printable(folder.root)} holds no finished designs, so there is nothing to pack. Draw some first: "
            "lace-lora generate"
        )
    packed = {path for path in files if _is_there(path)}
    return archives.write(folder.zip, {f"{folder.root.name}/{path.name}": path for path in packed})


# -- what is there --


def _designs(folder: SheetFolder) -> list[tuple[dict[str, Any], Path]]:
    """The rows of finished designs in order, each with its picture."""
    return [(row, stars.picture_of(folder, row)) for row in stars.rows(folder).values()]


def _base_of(folder: SheetFolder, row: Mapping[str, Any]) -> Path | None:
    """The picture before the refiner, where it is there."""
    return folder.root / row["base"] if row["base"] else None


def _is_there(path: Path) -> bool:
    """A file of the sheet's own: a link could bring in anything, and hidden files are other programs'."""
    try:
        return path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    except (OSError, ValueError):  # a name that no disk can hold
        return False


# -- the page --


def _design(row: Mapping[str, Any], picture: Path, base: Path | None, is_starred: bool) -> str:
    index, prompt = row["index"], escape(str(row.get("prompt", "")))
    star = "<span class='star' role='img' aria-label='favourite'>★</span> " if is_starred else ""
    size = "".join(f" {side}='{row[side]}'" for side in ("width", "height") if isinstance(row.get(side), int))
    links = [("picture", picture)]
    if base is not None and base != picture:
        links.append(("before the refiner", base))
    links += [(what, path) for what in BESIDE if _is_there(path := beside(picture, what))]
    listed = " ".join(f"<a href='{_address(path)}'>{escape(what)}</a>" for what, path in links)
    facts = "".join(
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in row.items()
        if name not in _SAID_APART and value not in (None, "")
    )
    return (
        f"<article id='design-{index}'><a href='{_address(picture)}'>"
        f"<img loading='lazy' decoding='async' alt='{prompt}' src='{_address(picture)}'{size}></a>"
        f"<p>{star}<strong>{index}</strong> {prompt}</p>"
        f"<p class='soft'>seed {escape(str(row.get('seed', '?')))}</p><p class='links soft'>{listed}</p>"
        f"<details class='soft'><summary>how it was made</summary><dl>{facts}</dl></details></article>"
    )


def _address(path: Path) -> str:
    """A file beside the page as a link; quoted, so that no name can end the attribute or start a scheme."""
    return "./" + quote(path.name, safe="")
