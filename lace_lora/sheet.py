"""A sheet of designs on the disk: what was asked for, its rows and its pictures.

request.json tells what was asked for, in which batches it is computed, and which pictures are those of an earlier
sheet; it is written once. images.jsonl has one row for each finished picture; of several processes each writes rows of
its own until the sheet is finished. So a sheet that was cut off is finished with the same bytes, by whomever.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import between_stages, checkpoint, page, pictures, stars
from lace_lora.between_stages import Pictures
from lace_lora.errors import PicturesError, RunError
from lace_lora.run_folder import RunFolder, Shard, SheetFolder, digest_of
from lace_lora.workplace import Workplace

# Not part of what was asked for: where it was drawn, and what was found. A sheet may be finished on another machine.
FOUND = ("precision", "versions", "seam")
PLACES = ("index", "base", "refined")  # where a picture lies in its sheet; the files themselves do not say it
OLDER = {"quantization": "none"}  # what rows do not tell that were written before there was a choice
LABELS = ("subset", "reference")  # what a design is counted to and compared with, later; nothing of the picture
ON_CONTACT_SHEET = 240  # pictures; with more the page could not be opened


@dataclass(frozen=True)
class Generation:
    """One picture and all that makes it. Paths are where it lies; a row of images.jsonl has file names."""

    index: int
    prompt: str
    refiner_prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    refine: str
    refiner_start: float | None
    refine_strength: float | None
    width: int
    height: int
    repeat: str
    repeat_from: float | None
    guidance_until: float
    start_picture: str | None  # its name; start_digest tells its content
    start_digest: str | None
    start_strength: float | None
    dpi: float
    lora_scale: float
    concept_token: str
    adapter_digest: str
    pretrained_model: str
    refiner_model: str | None
    precision: str
    base: Path
    refined: Path | None
    versions: Mapping[str, str] = field(repr=False)
    seam: float | None = None  # how much sharper its own border is than the sharpest lines inside; see repeats
    subset: str | None = None  # by which designs are grouped when they are evaluated
    reference: str | None = None  # the name of the picture that it is to be like; see references
    quantization: str = "none"  # of the base: none or nf4

    @property
    def path(self) -> Path:
        """The picture to look at: the refined one, or the base's where nothing was refined."""
        return self.refined or self.base

    def row(self) -> dict[str, Any]:
        """The picture as a row of images.jsonl: values that JSON knows, files by name only."""
        return asdict(self) | {"base": self.base.name, "refined": self.refined.name if self.refined else None}

    def details(self) -> dict[str, Any]:
        """What the file itself carries: all that is needed to draw it again, wherever it lies."""
        return {name: value for name, value in self.row().items() if name not in (*PLACES, *LABELS)}

    def files(self) -> list[Path]:
        """The unrefined and the refined picture, or the only one."""
        return [self.base, self.refined] if self.refined else [self.base]


@dataclass(frozen=True)
class Placed:
    """A request that has its folder: every picture with its paths, and which of them this process makes."""

    workplace: Workplace
    pictures: tuple[Generation, ...]  # of the whole sheet
    batches: list[Pictures]  # what is drawn
    reused: dict[int, str]  # what is taken over: numbers of pictures, and the sheet in which they lie already

    @property
    def folder(self) -> SheetFolder:
        """Where it is drawn."""
        return self.workplace.folder

    def lying_in(self, workplace: Workplace) -> "Placed":
        """The same in another folder."""
        return replace(self, workplace=workplace, pictures=lying_in(workplace.folder, self.pictures))


def place(
    run: RunFolder,
    name: str,
    wanted: Sequence[Generation],
    models: Sequence[str],
    at_once: Mapping[tuple[int, int], int],
    shard: Shard,
    drawn_in: Callable[[SheetFolder], Workplace],
) -> Placed:
    """The folder for a request, which was begun for it or is free. Several processes may ask at one moment.

    models    texts that tell the models apart, since two may have one name
    at_once   pictures in a batch, for each width and height; once begun, a sheet keeps its batches
    drawn_in  the place in which a sheet of the run is drawn; the request is written there
    """
    told = [_told(one) for one in wanted]
    digest = _digest([list(models), told])
    while True:
        kept = run.free_sheet(name, digest, lambda one: drawn_in(one).folder)
        workplace = drawn_in(kept)
        begun_in = workplace.begun()
        if begun_in is None:
            reused = _earlier(run, kept, _digest(list(models)), wanted)
            shared = {name: value for name, value in told[0].items() if all(row.get(name) == value for row in told)}
            request = {
                "digest": digest,
                "models": _digest(list(models)),
                "pictures": len(wanted),
                "shared": shared,
                "reused": reused,
                "batches": _batches([one for one in wanted if str(one.index) not in reused], at_once),
            }
            begun_in = workplace.folder
            checkpoint.write_new(begun_in.request, _json(request))
        if digest_of(begun_in) == digest:
            break
    begun = _request(begun_in)
    placed = lying_in(workplace.folder, wanted)
    again = list(dict.fromkeys(batch for one in {kept, workplace.folder} for batch in _redrawn(one)))
    gone = set(chain(*again))
    batches = [batch for number, batch in enumerate(map(tuple, begun["batches"])) if shard.owns(number)]
    batches += [batch for batch in again if shard.owns(batch[0])]
    taken = {int(index): str(sheet) for index, sheet in begun["reused"].items() if int(index) not in gone}
    return Placed(workplace, placed, batches, {index: taken[index] for index in taken if shard.owns(index)})


def is_begun(
    run: RunFolder, name: str, wanted: Sequence[Generation], models: Sequence[str],
    drawn_in: Callable[[SheetFolder], Workplace],
) -> bool:  # fmt: skip
    """Whether a sheet was begun for exactly this request; the same as `place` takes, which would go on with it."""
    digest = _digest([list(models), [_told(one) for one in wanted]])
    begun_in = drawn_in(run.free_sheet(name, digest, lambda one: drawn_in(one).folder)).begun()
    return begun_in is not None and digest_of(begun_in) == digest


def lying_in(folder: SheetFolder, designs: Iterable[Generation]) -> tuple[Generation, ...]:
    """The same designs with the paths of their files in a folder."""
    return tuple(replace(one, base=folder.root / one.base.name, refined=_under(folder, one.refined)) for one in designs)


def halvings(folder: SheetFolder) -> list[between_stages.Halving]:
    """Batches that had to be halved, in order."""
    return between_stages.recorded(folder, _request(folder).get("halved", ()))


def read_finished(folder: SheetFolder, wanted: Sequence[Generation]) -> dict[int, Generation]:
    """Pictures that are complete, by whichever process: a row and its files."""
    rows = {row["index"]: row for row in _rows_of(folder)}
    return {
        one.index: replace(one, **{name: rows[one.index][name] for name in FOUND})
        for one in wanted
        if one.index in rows and all(checkpoint.size_of(path) for path in one.files())
    }


def mend(folder: SheetFolder, shard: Shard) -> None:
    """Put in order what a cut left: half a last row, to which the next would be added."""
    for path in (folder.rows(shard), folder.halved(shard), folder.redrawn(shard)):
        if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
            checkpoint.write_bytes(path, text[: text.rfind(b"\n") + 1])


def take_over(placed: Placed, run: RunFolder, indexes: Iterable[int], shard: Shard) -> Iterator[Generation]:
    """Take pictures from the sheets in which they lie already; those that are gone from there since are left out."""
    lying: dict[str, dict[str, dict[str, Any]]] = {}
    for index in indexes:
        one, name = placed.pictures[index], placed.reused[index]
        source = run.sheet(name)
        if name not in lying:
            lying[name] = {_recipe(row): row for row in _rows_of(source)}
        found = lying[name].get(_recipe(one.row()))
        if found is None:
            continue
        lie = [source.root / str(found[kind]) for kind in ("base", "refined")][: len(one.files())]
        if not all(_is_as_drawn(path, found) for path in lie):
            continue
        done = replace(one, **{name: found[name] for name in FOUND})
        for path, earlier in zip(one.files(), lie, strict=True):
            if found["dpi"] == one.dpi:
                checkpoint.write_bytes(path, earlier.read_bytes())
            else:  # the same pixels for another size in print
                with Image.open(earlier) as image:
                    _write(image.convert("RGB"), path, done)
        checkpoint.append_line(placed.folder.rows(shard), _line(done))
        yield done


def draw_anew(placed: Placed, indexes: Sequence[int], at_once: Mapping[tuple[int, int], int], shard: Shard) -> None:
    """Draw own pictures that were to be taken from an earlier sheet and are gone from there; their batches are kept."""
    for batch in _batches([placed.pictures[index] for index in indexes], at_once):
        checkpoint.append_line(placed.folder.redrawn(shard), json.dumps(batch))
        placed.batches.append(tuple(batch))
    for index in indexes:
        del placed.reused[index]


def add(folder: SheetFolder, one: Generation, base: Image.Image, refined: Image.Image | None, shard: Shard) -> None:
    """Write a finished picture, unrefined and refined, and then its row. The files carry what made them."""
    for image, path in zip((base, refined), one.files(), strict=False):
        if image is not None:
            _write(image, path, one)
    checkpoint.append_line(folder.rows(shard), _line(one))


def close(folder: SheetFolder, done: Sequence[Generation], *, pack: bool) -> None:
    """Finish a sheet: rows in order, all pictures on one page and in one zip, nothing left between stages.

    Several processes may do it at one moment: each writes the same.
    """
    rows = "".join(_line(one) + "\n" for one in done).encode("utf-8")
    if not folder.manifest.is_file() or folder.manifest.read_bytes() != rows:
        checkpoint.write_bytes(folder.manifest, rows)
    request = _request(folder)
    halved, again = halvings(folder), _redrawn(folder)
    if halved or again:
        reused = {index: sheet for index, sheet in request["reused"].items() if int(index) not in set(chain(*again))}
        batches = [*request["batches"], *(list(batch) for batch in again if list(batch) not in request["batches"])]
        more = {"halved": [asdict(one) for one in halved]} if halved else {}
        checkpoint.write_bytes(folder.request, _json(request | {"reused": reused, "batches": batches} | more))
    show(folder, done)
    if pack:
        page.zipped(folder)
    else:
        folder.zip.unlink(missing_ok=True)  # one of earlier would not hold what came since
    for path in [*folder.all_rows()[1:], *folder.all_halved(), *folder.all_redrawn()]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.latents, ignore_errors=True)


def is_closed(folder: SheetFolder, *, pack: bool) -> bool:
    """Whether a sheet of which no picture is missing was finished as a whole."""
    whole = [folder.contact_sheet, folder.index, *([folder.zip] if pack else [])]
    left = [*folder.all_rows()[1:], *folder.all_halved(), *folder.all_redrawn()]
    return all(path.is_file() for path in whole) and not left


def write_page(folder: SheetFolder) -> None:
    """Write the page to look through, with the stars that are set by now."""
    page.write(folder, stars.read(folder))


def show(folder: SheetFolder, done: Sequence[Generation]) -> None:
    """Put the finished pictures on one sheet and one page: all, or those that there are when somebody stopped."""
    shown = done[:ON_CONTACT_SHEET]
    labels = [f"{one.index}: {words}" for one, words in zip(shown, _apart([one.prompt for one in shown]), strict=True)]
    laid = pictures.contact_sheet([one.path for one in shown], labels=labels)
    checkpoint.write_file(folder.contact_sheet, lambda path: laid.save(path, "PNG"))
    write_page(folder)


# -- inside --


def _apart(prompts: Sequence[str]) -> list[str]:
    """Prompts without the words with which all of them begin: the concept token would take the room of what differs."""
    words = [prompt.split() for prompt in prompts]
    same = 0
    while (
        len(set(prompts)) > 1 and all(len(one) > same + 1 for one in words) and len({one[same] for one in words}) == 1
    ):
        same += 1
    return [" ".join(["…", *one[same:]]) if same else prompt for one, prompt in zip(words, prompts, strict=True)]


def _told(one: Generation) -> dict[str, Any]:
    """What was asked for with a picture; labels only where it has some, so that earlier requests stay the same."""
    row = one.row()
    left_out = {*FOUND, *(name for name in LABELS if row[name] is None)}
    left_out |= {name for name, value in OLDER.items() if row[name] == value}
    return {name: value for name, value in row.items() if name not in left_out}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _request(folder: SheetFolder) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(folder.request.read_text(encoding="utf-8"))
        if {"digest", "models", "reused", "batches"} <= found.keys():
            return found
    except (ValueError, AttributeError) as error:
        raise RunError(_damaged(folder)) from error
    raise RunError(_damaged(folder))


def _damaged(folder: SheetFolder) -> str:
    return f"{folder.request} is damaged. Choose another sheet_name; the pictures that are there stay."


def _redrawn(folder: SheetFolder) -> list[Pictures]:
    """Batches of pictures that were gone from the earlier sheet, by whichever process."""
    rows: list[Any] = [row for path in folder.all_redrawn() for row in checkpoint.read_json_lines(path)]
    return [tuple(row) for row in rows if isinstance(row, list) and row]


def _under(folder: SheetFolder, path: Path | None) -> Path | None:
    return folder.root / path.name if path else None


def _batches(wanted: Sequence[Generation], at_once: Mapping[tuple[int, int], int]) -> list[list[int]]:
    """Pictures of one size in batches, sizes in the order in which they come."""
    batches: list[list[int]] = []
    for size in dict.fromkeys((one.width, one.height) for one in wanted):
        same = [one.index for one in wanted if (one.width, one.height) == size]
        batches += map(list, between_stages.cut(same, at_once[size]))
    return batches


def _earlier(run: RunFolder, folder: SheetFolder, models: str, wanted: Sequence[Generation]) -> dict[str, str]:
    """Which of the wanted pictures lie in an earlier sheet of the run already, drawn by the same models: its name."""
    lying: dict[str, str] = {}
    for sheet in map(SheetFolder, sorted(run.sheets.glob("*/"))):
        if sheet.root != folder.root and _models_of(sheet) == models:
            lying |= {_recipe(row): sheet.root.name for row in _rows_of(sheet)}
    found = {str(one.index): lying.get(_recipe(one.row())) for one in wanted} if lying else {}
    return {index: sheet for index, sheet in found.items() if sheet}


def _models_of(sheet: SheetFolder) -> str | None:
    try:
        return str(_request(sheet)["models"])
    except (OSError, RunError):  # another folder, or a damaged request
        return None


def _rows_of(sheet: SheetFolder) -> list[dict[str, Any]]:
    """The rows of pictures that are there, by whichever process, that tell all that ours tell."""
    told = {one.name for one in fields(Generation)} - {*LABELS}
    rows = [OLDER | row for row in stars.rows(sheet).values()]
    return [row for row in rows if told <= row.keys() and row["base"]]


def _is_as_drawn(path: Path, row: Mapping[str, Any]) -> bool:
    """Whether a picture is the one that its row tells of, and no other program saved it since."""
    try:
        details = pictures.read_details(path)
    except PicturesError:
        return False
    return details == {name: row[name] for name in details if name in row} and "seed" in details


def _recipe(row: Mapping[str, Any]) -> str:
    """All that decides the pixels and the kind of file. Resolution in print can be changed in a PNG, not in a JPEG."""
    is_png = row["base"].endswith(".png")
    left_out = ("versions", "seam", *PLACES, *LABELS, *(["dpi"] if is_png else []))
    told = {name: value for name, value in row.items() if name not in left_out}
    return json.dumps([told, Path(row["base"]).suffix], sort_keys=True)


def _write(image: Image.Image, path: Path, one: Generation) -> None:
    details = one.details()
    pictures.write_picture(image, path, pictures.parameters_text(details), details, dpi=one.dpi)


def _line(one: Generation) -> str:
    return json.dumps(one.row(), ensure_ascii=False)
