"""A folder made of claims, ready for the other commands: drawings with captions, prompts by subset, a dataset.

    <output>/faults.csv            every row that was set aside: place, column, reason
             claims.jsonl          the others as they were understood, each with its split
             drawings/train/       drawings that are learnt, with annotations.txt; validation/ and test/ beside it
             prompts.csv           what is drawn: a row a claim, with its subset and its reference
             dataset/              the same for other programs: datasets.load_from_disk
             patent.yaml           settings that name all this: lace-lora train --config <output>/patent.yaml
             dataset_config.json   what it was made of and how, so that it can be made again; written last

Called again, it writes what has changed; captions that a person corrected are kept beside the new ones.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lace_lora import (
    __version__,
    checkpoint,
    claim_dataset,
    claim_links,
    claim_prompts,
    claim_splits,
    claims,
    patent_recipe,
    places,
)
from lace_lora.annotations import ANNOTATIONS
from lace_lora.claim_prompts import Prompt
from lace_lora.claim_splits import SPLITS
from lace_lora.claims import Fault, Key
from lace_lora.counting import counted
from lace_lora.errors import MachineError, SettingsError
from lace_lora.file_names import printable, slug
from lace_lora.image_files import read_picture
from lace_lora.line_drawings import faults as drawing_faults
from lace_lora.line_drawings import measured
from lace_lora.own_files import OwnFile
from lace_lora.patent_recipe import Recipe

CONFIG, SETTINGS = "dataset_config.json", "patent.yaml"
FAULTS, CLAIMS, PROMPTS = "faults.csv", "claims.jsonl", "prompts.csv"
DRAWINGS, DATASET, WRITTEN = "drawings", "dataset", "files.json"
VERSION = 1
MEASURED = 8  # prompts by which a run is measured, at most
DRAWN = ("held-out", "all", *SPLITS)  # of which claims prompts are written
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """How a folder is made of claims: all that, with the same files, makes it the same again.

    shares  of train, validation and test
    drawn   whose prompts are written: one of DRAWN; held-out are validation and test
    count   pictures for each of these prompts
    """

    recipe: Recipe
    shares: tuple[float, ...] = claim_splits.SHARES
    seed: int = 0
    drawn: str = "held-out"
    count: int = 1


@dataclass(frozen=True)
class Made:
    """What became of the rows of claims files."""

    folder: Path
    prompts: tuple[Prompt, ...]
    splits: Mapping[Key, str]
    faults: tuple[Fault, ...]
    rows: int
    drawings: Mapping[Key, str]  # name of the drawing of each claim that has one, in drawings/
    not_drawings: Mapping[str, tuple[str, ...]]  # references that are no line drawings, and why
    config: Mapping[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        sizes = Counter(self.splits.values())
        learnt = len(list(_named(self, "train")))
        lines = [
            f"{counted(len(self.prompts), 'claim')} of {counted(self.rows, 'row')} can be used; "
            f"{counted(self.rows - len(self.prompts), 'row')} set aside (see {FAULTS})",
            f"split       {', '.join(f'{sizes[name]} {name}' for name in SPLITS)}, whole patents or trees of claims",
            f"drawings    {len(self.drawings)} of claims, {learnt} pictures to learn from, "
            f"{counted(len(self.prompts) - len(self.drawings), 'claim')} without one (for prompts only)",
            f"prompts     {self.config['prompts']} in {counted(len(subsets_of(self.prompts)), 'subset')}, "
            f"{sum(bool(one.lost) for one in self.prompts)} shortened to {self.config['recipe']['budget']} tokens",
            f"folder      {printable(self.folder)}",
        ]
        return "\n".join(lines)


def make(
    files: Sequence[str | Path],
    output: str | Path,
    wishes: Wishes,
    *,
    tokenizers: Sequence[Any] | None = None,
    dataset: bool = True,
    say: Say = print,
) -> Made:
    """Read claims, check them and their drawings, and write the folder; see the module's docstring.

    tokenizers  of the base model; without them lengths are estimated and the dataset has no tokens
    dataset     False leaves out the dataset for other programs

    Raises SettingsError where a file cannot be read as a whole or no claim can be used, MachineError where a package
    is missing, RunError or PicturesError where the folder cannot be written.
    """
    if wishes.drawn not in DRAWN:
        raise SettingsError(f"Prompts can be written of: {', '.join(DRAWN)}; not of {wishes.drawn!r}.")
    if dataset and (problem := claim_dataset.missing_package()):
        raise MachineError(problem)
    folder = Path(output).expanduser()

    # What the rows say.
    linked = claim_links.linked(claims.read(files, wishes.recipe), wishes.recipe)
    for note in linked.notes:
        say(f"! {note}")
    places.make(folder, "The folder", "Choose another --output.")
    told = [(one.place, one.field, one.said) for one in linked.faults]
    _write_table(folder / FAULTS, ("place", "field", "reason"), told)
    if not linked.claims:
        first = "; ".join(map(str, linked.faults[:3])) or "there are no rows"
        raise SettingsError(f"None of the claims can be used: {first}. See {printable(folder / FAULTS)}.")

    # Drawings, splits, prompts.
    references = {claim.key: claim.reference for claim in linked.claims if claim.reference}
    digests, wrong = _drawings(references, wishes.recipe, say)
    splits = claim_splits.split(linked.claims, wishes.shares, wishes.seed, digests)
    prompts = _prompts(linked.claims, wishes.recipe, tokenizers, say)
    names = _names(prompts, digests, splits, references)

    # The folder.
    _copy(folder, {names[key]: path for key, path in references.items() if key in names})
    _annotate(folder, prompts, names, splits, say)
    drawn = [one for one in prompts if _is_drawn(splits[one.claim.key], wishes.drawn)]
    if not drawn:
        say("! no claim is held out, since all belong together: prompts are written for all of them")
        drawn = list(prompts)
    _write_prompts(folder, drawn, names, wishes.count)
    rows = {name: _rows(prompts, names, splits, name) for name in SPLITS}
    lines = [json.dumps({"split": name} | row, ensure_ascii=False) for name in SPLITS for row in rows[name]]
    checkpoint.write_text(folder / CLAIMS, "\n".join(lines) + "\n")
    config = _config(files, wishes, splits, linked.claims, digests, len(drawn))
    if dataset:
        built = claim_dataset.build(rows, tokenizers)
        claim_dataset.save(built, folder / DATASET)
        config |= {"dataset": claim_dataset.digest(built), "is_tokenised": tokenizers is not None}
    _write_settings(folder, wishes.recipe, names, drawn)
    checkpoint.write_json(folder / CONFIG, config)
    return Made(folder, prompts, splits, linked.faults, linked.count, names, wrong, config)


def wishes_of(config_file: str | Path) -> Wishes:
    """What a folder was made with, from its dataset_config.json, so that another like it can be made.

    Raises SettingsError where the file is none.
    """
    path = Path(config_file).expanduser()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        recipe, split = dict(told["recipe"]), told["split"]
        shares = tuple(float(split["shares"][name]) for name in SPLITS)
        seed, drawn, count = int(split["seed"]), str(told["drawn"]), int(told["count"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise SettingsError(f"{printable(path)} is no {CONFIG} that can be read ({why}). Give another.") from error
    return Wishes(patent_recipe.of(recipe, printable(path)), shares, seed, drawn, count)


def subsets_of(prompts: Sequence[Prompt]) -> dict[str, int]:
    """Subsets of prompts, however they are capitalised, with how many each has; the largest first."""
    counts = Counter(one.subset.casefold() for one in prompts)
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


# -- inside --


def _prompts(
    found: Sequence[claim_links.Claim], recipe: Recipe, tokenizers: Sequence[Any] | None, say: Say
) -> tuple[Prompt, ...]:
    if tokenizers is None:
        say("! lengths were estimated: the base model's tokenizers are not on this machine yet")
        return claim_prompts.claims_to_prompts(found, recipe)
    from lace_lora.families.quiet import quiet

    def count(text: str) -> int:
        return max(len(one(text, add_special_tokens=False).input_ids) for one in tokenizers)

    with quiet():  # they warn of what is too long, which is what is being counted; once, since entering takes 25 ms
        return claim_prompts.claims_to_prompts(found, recipe, lru_cache(maxsize=100_000)(count))


def _drawings(
    references: Mapping[Key, Path], recipe: Recipe, say: Say
) -> tuple[dict[Key, str], dict[str, tuple[str, ...]]]:
    """Digest of each claim's drawing, and what is wrong with references that are none."""
    digest_of: dict[Path, str] = {}
    wrong: dict[str, tuple[str, ...]] = {}
    for path in dict.fromkeys(references.values()):
        opened = read_picture(path)
        found = (opened.fault,) if opened.image is None else drawing_faults(measured(opened.image, recipe), recipe)
        if found:
            wrong[path.name] = found
            say(f"! {printable(path.name)} is no line drawing and is not used: {'; '.join(found)}")
        else:
            digest_of[path] = opened.sha256
    return {key: digest_of[path] for key, path in references.items() if path in digest_of}, wrong


def _names(
    prompts: Sequence[Prompt], digests: Mapping[Key, str], splits: Mapping[Key, str], references: Mapping[Key, Path]
) -> dict[Key, str]:
    """Where each claim's drawing goes, below drawings/; claims that share a drawing share its name."""
    by_digest: dict[str, str] = {}
    taken: set[str] = set()
    found: dict[Key, str] = {}
    for one in prompts:
        key = one.claim.key
        if key not in digests:
            continue
        if digests[key] not in by_digest:
            stem = f"{splits[key]}/{slug(' '.join(part for part in key if part))}"
            ending = references[key].suffix.casefold()
            number = next(n for n in range(1, len(taken) + 2) if f"{stem}{_after(n)}" not in taken)
            taken.add(f"{stem}{_after(number)}")
            by_digest[digests[key]] = f"{stem}{_after(number)}{ending}"
        found[key] = by_digest[digests[key]]
    return found


def _after(number: int) -> str:
    return f"-{number}" if number > 1 else ""


def _copy(folder: Path, files: Mapping[str, Path]) -> None:
    """Copy drawings; those of an earlier time that are none any more go, and nothing else does.

    The list of files is written before the first of them, so that a cut leaves none that is not on it.
    """
    root = folder / DRAWINGS
    earlier: list[str] = []
    with suppress(OSError, ValueError, TypeError):
        earlier = [str(name) for name in json.loads((root / WRITTEN).read_text(encoding="utf-8"))]
    checkpoint.write_json(root / WRITTEN, sorted({*earlier, *files}))
    for name, source in files.items():
        data = source.read_bytes()
        target = root / name
        if checkpoint.size_of(target) != len(data) or target.read_bytes() != data:
            checkpoint.write_bytes(target, data)
    for name in {*earlier} - {*files}:
        target = root / name
        if target.resolve().is_relative_to(root.resolve()):
            target.unlink(missing_ok=True)
    checkpoint.write_json(root / WRITTEN, sorted(files))


def _annotate(
    folder: Path, prompts: Sequence[Prompt], names: Mapping[Key, str], splits: Mapping[Key, str], say: Say
) -> None:
    """annotations.txt beside the drawings of each split: of claims that share one, the first captions it."""
    for split in SPLITS:
        place = folder / DRAWINGS / split
        texts: dict[str, str] = {}
        for one in prompts:
            if splits[one.claim.key] == split and one.claim.key in names:
                texts.setdefault(Path(names[one.claim.key]).name, one.text)
        if texts or (place / ANNOTATIONS).is_file():
            place.mkdir(parents=True, exist_ok=True)
            OwnFile(place / ANNOTATIONS, say).write("".join(f"{name}\t{text}\n" for name, text in texts.items()))


def _is_drawn(split: str, drawn: str) -> bool:
    return drawn == "all" or split == drawn or (drawn == "held-out" and split != SPLITS[0])


def _write_prompts(folder: Path, prompts: Sequence[Prompt], names: Mapping[Key, str], count: int) -> None:
    header = ("prompt", "count", "negative_prompt", "subset", "reference_path")
    rows = []
    for one in prompts:
        name = names.get(one.claim.key)
        rows.append((one.as_query, count, one.negative, one.subset, f"{DRAWINGS}/{name}" if name else ""))
    _write_table(folder / PROMPTS, header, rows)


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([header, *rows])
    checkpoint.write_text(path, "\ufeff" + out.getvalue())  # Excel reads UTF-8 by its mark


def _rows(
    prompts: Sequence[Prompt], names: Mapping[Key, str], splits: Mapping[Key, str], split: str
) -> list[claim_dataset.Row]:
    chosen = [one for one in prompts if splits[one.claim.key] == split]
    paths = [f"{DRAWINGS}/{names[one.claim.key]}" if one.claim.key in names else None for one in chosen]
    return [claim_dataset.row_of(one, path) for one, path in zip(chosen, paths, strict=True)]


def _config(
    files: Sequence[str | Path], wishes: Wishes, splits: Mapping[Key, str], found: Sequence[claim_links.Claim],
    digests: Mapping[Key, str], drawn: int,
) -> dict[str, Any]:  # fmt: skip
    """What dataset_config.json tells: sources with their sha256, the whole recipe, the split."""
    sizes = Counter(splits.values())
    sources = [{"file": Path(one).name, "sha256": checkpoint.sha256(Path(one).expanduser())} for one in files]
    return {
        "version": VERSION,
        "lace_lora": __version__,
        "sources": sources,
        "drawings": hashlib.sha256("".join(sorted({*digests.values()})).encode()).hexdigest(),
        "template": wishes.recipe.template,
        "split": {
            "seed": wishes.seed,
            "shares": dict(zip(SPLITS, wishes.shares, strict=True)),
            "sizes": {name: sizes[name] for name in SPLITS},
            "groups": len(claim_splits.groups_of(found, digests)),
        },
        "drawn": wishes.drawn,
        "count": wishes.count,
        "prompts": drawn,
        "recipe": wishes.recipe.model_dump(mode="json"),
    }


def _write_settings(folder: Path, recipe: Recipe, names: Mapping[Key, str], drawn: Sequence[Prompt]) -> None:
    shown = {one.subset.casefold(): one.as_query for one in reversed(drawn)}  # the first of each subset
    settings: dict[str, Any] = {
        "images_dir": str((folder / DRAWINGS / SPLITS[0]).absolute()),
        "prompts_file": str((folder / PROMPTS).absolute()),
        "concept_token": recipe.concept_token,
        "instance_prompt": recipe.instance_prompt,
        "class_prompt": recipe.class_prompt,
        "negative_prompt": recipe.negative_prompt,
        "image_types": sorted({Path(name).suffix for name in names.values()}) or [".png"],
        "prompts": list(shown.values())[: -MEASURED - 1 : -1],  # by which the style is measured
        "random_flip": False,  # numerals read one way only
        "run_name": "patent",
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=10_000)
    checkpoint.write_text(folder / SETTINGS, f"# Written by lace-lora claims. Use: --config {SETTINGS}\n{text}")


def _named(made: Made, split: str) -> set[str]:
    return {name for name in made.drawings.values() if name.startswith(f"{split}/")}
