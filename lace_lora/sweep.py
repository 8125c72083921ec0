"""A sweep: one YAML file that stands for many combinations of settings, each checked and named before anything runs.

    parameters: {images_dir: photos, run_name: rose}   # the same for all
    grid: {rank: [8, 16], learning_rate: [1e-4, 5e-5]}  # every value with every other
    list: [{resolution: 768}, {resolution: 1024, train_batch_size: 1}]  # settings that change together
    slurm: {partition: gpu, minutes: 240}

Where there are both, every entry of the list meets every combination of the grid.
"""

import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from lace_lora import config as declared
from lace_lora import presets
from lace_lora.errors import LaceError, SettingsError

PARTS = ("parameters", "grid", "list", "slurm")
MOST = 1000  # combinations; more are a slip of the pen
NAME_LENGTH = 64  # of run_name and sheet_name
SHOWN_LENGTH = 16  # of a text in a name
TRAIN, GENERATE = "train", "generate"
VERBS = ("check", TRAIN, GENERATE, "evaluate", "report")  # in the order in which they may run


class Slurm(BaseModel, frozen=True, extra="forbid"):
    """What one combination asks of Slurm. `cluster: local` runs the same by submitit on this machine, for a try."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    gpus: Annotated[int, Field(ge=0, le=16)] = 1
    cpus: Annotated[int, Field(ge=1, le=256)] = 4
    memory_gb: Annotated[float, Field(gt=0, le=4096)] = 32
    minutes: Annotated[int, Field(ge=1, le=40_320)] = 240
    at_once: Annotated[int, Field(ge=1, le=MOST)] = 8
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Combination:
    """One set of settings.

    name      of its run (or of its sheet, where nothing is trained), and of its folder below the output
    varied    the settings in which combinations differ, as plain values
    settings  all that it gives, `varied` and the name among them; of the kinds that the settings have
    """

    name: str
    varied: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """All combinations in order, what is done for each (no verbs are the notebooks), and how Slurm is asked."""

    combinations: tuple[Combination, ...]
    verbs: tuple[str, ...] = ()
    slurm: Slurm = Slurm()

    @property
    def varying(self) -> tuple[str, ...]:
        """The settings in which combinations differ."""
        return tuple(dict.fromkeys(name for one in self.combinations for name in one.varied))


def read(
    path: Path, shared: Mapping[str, Any], verbs: Sequence[str] = (), taken: Collection[str] | None = None
) -> Sweep:
    """The sweep of a YAML file.

    shared  settings given beside the file, such as -p; they stand for all, like its own parameters
    verbs   what is done for each combination, see VERBS; none are the notebooks
    taken   the names that notebooks take as parameters; None where any setting will do

    Raises SettingsError with everything that is wrong, a line each: unknown parts, names and values, settings that no
    notebook takes, combinations that are the same.
    """
    verbs = checked_verbs(verbs)
    told, wrong = _parts(path)
    common, grid, rows = _mapping(told, "parameters", wrong), _grid(told, wrong), _rows(told, wrong)
    slurm = _slurm(told, wrong)
    if not grid and not any(rows):
        wrong.append("there is nothing to vary: it needs a grid or a list.")
    varied_names = list(dict.fromkeys([*(name for row in rows for name in row), *grid]))
    wrong += _twice(common, shared, grid, rows)
    wrong += [*_unfit(common, "parameters", taken), *_unfit(shared, "given beside it", taken)]
    wrong += [
        line for name, values in grid.items() for value in values for line in _unfit({name: value}, "grid", taken)
    ]
    wrong += [line for row in rows for line in _unfit(row, "list", taken)]
    if taken is not None and "run_name" not in taken:
        wrong.append("no notebook takes run_name, so that all combinations would share one folder.")
    count = len(rows) * _count(grid)
    if count > MOST:
        wrong.append(f"these are {count} combinations; {MOST} are the most.")
    if wrong:
        raise SettingsError("\n".join(f"{path}: {line}" for line in dict.fromkeys(wrong)))
    given = {**common, **shared}
    base = str(given.get("run_name") or path.stem)
    naming = "run_name" if TRAIN in verbs or not verbs else "sheet_name"
    if naming == "sheet_name":
        base = str(given.get("sheet_name") or path.stem)
    made = [_combination(base, naming, given, varied) for varied in _each(rows, grid, varied_names)]
    if problems := list(_same(made)):
        raise SettingsError("\n".join(f"{path}: {line}" for line in problems))
    return Sweep(tuple(made), verbs, slurm)


def checked_verbs(verbs: Sequence[str]) -> tuple[str, ...]:
    """The verbs, in the order in which they were given. Raises SettingsError for one that will not do."""
    for verb in verbs:
        if verb not in VERBS:
            near = declared.nearest(verb, VERBS)
            raise SettingsError(f"--verbs: there is no {verb!r}{near} There are: {', '.join(VERBS)}.")
    if verbs and TRAIN not in verbs and GENERATE not in verbs:
        raise SettingsError("--verbs needs train or generate: combinations would else write over each other.")
    return tuple(dict.fromkeys(verbs))


def name_of(base: str, varied: Mapping[str, Any]) -> str:
    """A name for a combination: safe as the name of a run and of a folder, and always the same for the same settings.

    It says the settings as far as they fit: "rose-rank-8-learning_rate-0.0001". Where a text had to be shortened or
    changed, a few signs of its digest tell it from others.
    """
    said = {name: _said(value) for name, value in varied.items()}
    head = _safe(base).lstrip(" .-").rstrip(" .") or "_"
    shown = {name: _safe(text)[:SHOWN_LENGTH] for name, text in said.items()}
    text = "-".join([head, *(f"{name}-{value}" for name, value in shown.items())])
    is_exact = head == base and shown == said and text == text.rstrip(" .")
    if is_exact and len(text) <= NAME_LENGTH:
        return text
    digest = hashlib.sha256(json.dumps([base, said], sort_keys=True).encode()).hexdigest()[:8]
    return f"{text[: NAME_LENGTH - 9].rstrip(' .-_')}-{digest}"


# -- inside --


def _parts(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The file's parts by name, and a line for each part that there is not. Raises SettingsError where none is read."""
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{path}{where}: {getattr(error, 'problem', None) or 'not readable as YAML'}.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"The sweep {path} cannot be read ({reason}).") from error
    if not isinstance(told, dict):
        raise SettingsError(f"{path} is no sweep: it needs a `grid:` of lists, or a `list:` of settings.")
    wrong = []
    for name in told:
        if name not in PARTS:
            is_setting = name in declared.Config.model_fields
            near = f"{declared.nearest(str(name), PARTS)} There are: {', '.join(PARTS)}."
            advice = "; it is a setting: write it below parameters." if is_setting else near
            wrong.append(f"no part called {name!r}{advice}")
    return told, wrong


def _mapping(told: Mapping[str, Any], part: str, wrong: list[str]) -> dict[str, Any]:
    found = told.get(part)
    if found is not None and not isinstance(found, dict):
        wrong.append(f"{part} must hold `name: value` lines.")
    return found if isinstance(found, dict) else {}


def _grid(told: Mapping[str, Any], wrong: list[str]) -> dict[str, list[Any]]:
    grid = {}
    for name, values in _mapping(told, "grid", wrong).items():
        if isinstance(values, list) and values:
            grid[name] = values
        else:
            wrong.append(f"grid: {name} needs a list of values, such as {name}: [1, 2].")
    return grid


def _rows(told: Mapping[str, Any], wrong: list[str]) -> list[dict[str, Any]]:
    rows = told.get("list") or [{}]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        wrong.append("list must hold entries such as `- {rank: 8, alpha: 16}`.")
        return [{}]
    return rows


def _slurm(told: Mapping[str, Any], wrong: list[str]) -> Slurm:
    given = _mapping(told, "slurm", wrong)
    try:
        return Slurm(**given)
    except (ValidationError, TypeError) as error:
        for problem in error.errors() if isinstance(error, ValidationError) else []:
            name, known = str(problem["loc"][0]), Slurm.model_fields
            said = problem["msg"][:1].lower() + problem["msg"][1:]
            near = f"nothing is called {name!r}{declared.nearest(name, known)}"
            wrong.append(f"slurm: {near if name not in known else f'{name} is {given[name]!r}: {said}.'}")
        return Slurm()


def _twice(
    common: Mapping[str, Any], shared: Mapping[str, Any], grid: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """A name that stands in two places would have two values."""
    listed = {name for row in rows for name in row}
    for name in grid:
        if name in listed:
            yield f"{name} stands in the grid and in the list; keep one."
    for name in (*grid, *listed):
        if name in common:
            yield f"{name} varies, and stands below parameters too; keep one."
        if name in shared:
            yield f"{name} varies, and is given beside the file too; keep one."


def _unfit(settings: Mapping[str, Any], where: str, taken: Collection[str] | None) -> Iterator[str]:
    """A line for each setting that does not exist, has a value that will not do, or is taken by no notebook."""
    for name, value in settings.items():
        field = declared.Config.model_fields.get(name)
        if value is None and field is not None and field.default is not None:
            yield f"{where}: {name} is empty; give it a value."
            continue
        try:
            loaded = declared.load(**{str(name): value})
            if name == "preset" and loaded.preset not in ("auto", "none"):
                presets.read(loaded.preset)
        except (LaceError, TypeError) as error:
            yield f"{where}: {str(error).removeprefix('settings: ')}"
            continue
        if taken is not None and name not in taken:
            yield (
                f"{where}: {name} is a setting, but no notebook takes it as a parameter. Write it into config.yaml, "
                "or use --verbs train,generate, which takes every setting."
            )


def _count(grid: Mapping[str, Sequence[Any]]) -> int:
    count = 1
    for values in grid.values():
        count *= len(values)
    return count


def _each(
    rows: Sequence[Mapping[str, Any]], grid: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Every row of the list with every combination of the grid; names in the order in which they are first said."""
    for row in rows:
        for values in product(*grid.values()):
            varied = {**row, **dict(zip(grid, values, strict=True))}
            yield {name: varied[name] for name in names if name in varied}


def _combination(base: str, naming: str, given: Mapping[str, Any], varied: Mapping[str, Any]) -> Combination:
    kinds = declared.load(**given, **varied)
    plain = {name: _plain(getattr(kinds, name)) for name in varied}
    # Who varies the name gives the names; for a name that another part of the combination shares, see _same.
    name = str(plain[naming]) if plain.get(naming) else name_of(base, plain)
    every = {one: getattr(kinds, one) for one in (*given, *varied)} | {naming: name}
    return Combination(name, plain, {one: _plain(value) for one, value in every.items()})


def _same(made: Sequence[Combination]) -> Iterator[str]:
    """Runs that would share a folder, also on a disk that does not tell capitals from small letters."""
    first: dict[str, int] = {}
    for number, one in enumerate(made, 1):
        other = first.setdefault(one.name.casefold(), number)
        if other != number:
            yield f"combinations {other} and {number} are both called {one.name!r}; make them differ, or take one away."


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _said(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _safe(text: str) -> str:
    """Only letters, digits and what stands well in the name of a folder; accents in the form that all disks keep."""
    signs = unicodedata.normalize("NFC", text)
    return "".join(sign if sign.isalpha() or sign.isdecimal() or sign in "_ .-" else "_" for sign in signs)
