"""Two runs side by side: settings that differ, pictures, scores, and whether a difference is more than chance.

Intervals that do not overlap show a difference; of those that do, these numbers cannot tell. What was measured by
different judges cannot be compared, and is not.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lace_lora import config_text, journal, report_parts
from lace_lora.config import Config
from lace_lora.declarations import nearest
from lace_lora.errors import RunError
from lace_lora.file_names import printable
from lace_lora.report_parts import measured, plain, text
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation, Score

Finding = Literal["one is better", "other is better", "different", "cannot tell", "the same", "not comparable"]

# What decides the numbers that come out of a training, and how long it lasts.
DECIDING = (*journal.IDENTITY, *journal.WITH_CLASS_PICTURES, "max_train_steps", "num_train_epochs", "instance_prompt")
# Where files are and what a run is called: these differ between any two runs.
PLACES = {"run_name", "lora_output_dir", "cache_dir", "drive_mount_path", "preset", "images_dir", "sheet_name",
          "make_folders"}  # fmt: skip
# Which judge measured the scores of a topic; the others need none.
JUDGES = {
    "style": "style",
    "variety": "style",
    "drift": "style",
    "words": "words",
    "other": "other",
}
# Scores of what a LoRA is compared with: no run is better for them.
BESIDE = ("_base", "_held_out", "_training")
WIDEST = 44  # signs of one cell in a terminal
NAMED = 8  # runs in a sentence


@dataclass(frozen=True)
class SettingDifference:
    """A setting that the two runs do not share; `decides` tells whether it decides what a training gives."""

    name: str
    one: str
    other: str
    decides: bool


@dataclass(frozen=True)
class ScoreDifference:
    """One score of both runs, None where a run has it not, and what can be said of the difference."""

    id: str
    name: str
    one: Score | None
    other: Score | None
    finding: Finding
    says: str


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    one, other  their names; a number is added where both have the same
    settings    those that differ; None where the settings of one are not known
    pictures    whether they learnt the same ones, a sentence
    facts       steps, copies, photographs, answers: name, of the one, of the other
    notes       what else must be known before the scores are read
    closing     what to make of it, a sentence or two
    """

    one: str
    other: str
    settings: tuple[SettingDifference, ...] | None
    pictures: str
    facts: tuple[tuple[str, str, str], ...]
    scores: tuple[ScoreDifference, ...]
    notes: tuple[str, ...]
    closing: str

    def __str__(self) -> str:
        """Aligned tables for a terminal."""
        names = (self.one, self.other)
        parts = [_aligned(("", *names), self.facts), self.pictures]
        for title, decides in (("settings that decide the training", True), ("other settings", False)):
            rows = [(one.name, one.one, one.other) for one in self.settings or () if one.decides is decides]
            parts += [_aligned((title, *names), rows)] if rows else []
        if self.settings == ():
            parts.append("All settings are the same.")
        rows = [(one.name, _said(one.one), _said(one.other)) for one in self.scores]
        says = [one.says for one in self.scores]
        parts += [_aligned(("score", *names), rows, says)] if rows else []
        return "\n\n".join([*parts, *self.notes, self.closing])

    def _repr_html_(self) -> str:
        """The same as tables for a notebook."""
        columns = ("", self.one, self.other)
        body = report_parts.table(columns, [[text(cell) for cell in row] for row in self.facts])
        body += report_parts.paragraph(self.pictures)
        rows = [[f"<code>{text(one.name)}</code>", text(one.one), text(one.other),
                 "yes" if one.decides else "no"] for one in self.settings or ()]  # fmt: skip
        body += report_parts.table(("setting", *columns[1:], "decides the training"), rows)
        scores = [[text(one.name), *(_said_html(each) for each in (one.one, one.other)), text(one.says)]
                  for one in self.scores]  # fmt: skip
        body += report_parts.table(("score", *columns[1:], "what can be said"), scores)
        return body + "".join(f"<p>{text(one, 4000)}</p>" for one in (*self.notes, self.closing))


def compare(one: RunFolder, other: RunFolder) -> Comparison:
    """Lay two runs side by side, from their files alone.

    Raises RunError for a folder without a run, and where scores.json is there and cannot be understood. A run that was
    not evaluated is compared by its settings.
    """
    for run in (one, other):
        if not run.record.is_file():
            raise RunError(f"{printable(run.root)} holds no run. Train first: lace-lora train")
    names = _names(one, other)
    found, other_found = evaluations = (Evaluation.read(one), Evaluation.read(other))
    records = (report_parts.read_object(one.record), report_parts.read_object(other.record))
    pictures, are_same = _pictures(records)
    scores = _scores(found, other_found, names, are_same) if found and other_found else ()
    settings, notes = _settings(one, other, names)
    notes += _notes(evaluations, names, are_same)
    facts = _facts((one, other), records, evaluations)
    closing = _closing(scores, evaluations, names)
    return Comparison(*names, settings, pictures, facts, scores, tuple(notes), closing)


def find(name_or_path: str | Path, lora_output_dir: str | Path) -> RunFolder:
    """The run that a person names: by its name in lora_output_dir, or by a path to its folder or a file in it.

    Raises RunError with the nearest name and those that there are.
    """
    folder = Path(lora_output_dir).expanduser()
    runs = [RunFolder(record.parent) for record in sorted(folder.glob("*/run.json"))]
    wanted = _same_form(str(name_or_path).strip())
    for run in runs:  # in one Unicode form, whatever the disk has
        if _same_form(run.name) == wanted:
            return run
    try:
        path = Path(name_or_path).expanduser()
        for place in (path, path.parent) if wanted else ():
            if (place / "run.json").is_file():
                return RunFolder(place.resolve())
    except (OSError, ValueError, RuntimeError):  # a name that no disk can hold
        pass
    known = [printable(run.name) for run in runs]
    where = printable(lora_output_dir)
    there = f"There are: {', '.join(known[:NAMED])}{', …' if len(known) > NAMED else ''}." if known else (
        "There is none yet. Train first: lace-lora train"
    )  # fmt: skip
    raise RunError(f"No run called {printable(name_or_path)!r} in {where}{nearest(wanted, known)} {there}")


def finding_of(one: Score | None, other: Score | None) -> Finding:
    """What two values and their intervals show; `better` decides which of two different ones is better."""
    numbers, other_numbers = _numbers(one), _numbers(other)
    if one is None or other is None or numbers is None or other_numbers is None:
        return "not comparable"
    (value, low, high), (other_value, other_low, other_high) = numbers, other_numbers
    if (value, low, high) == (other_value, other_low, other_high):
        return "the same"
    if low is None or high is None or other_low is None or other_high is None:
        return "cannot tell"
    if low <= other_high and other_low <= high:
        return "cannot tell"
    if one.better not in ("higher", "lower") or one.better != other.better or plain(one.id).endswith(BESIDE):
        return "different"
    return "one is better" if (value > other_value) == (one.better == "higher") else "other is better"


# -- scores --


def _scores(one: Evaluation, other: Evaluation, names: tuple[str, str], are_same: bool) -> tuple[ScoreDifference, ...]:
    found = []
    for id in dict.fromkeys(score.id for score in (*one.scores, *other.scores)):
        pair = (one.score(id), other.score(id))
        first = pair[0] or pair[1]
        assert first is not None, "every id is one of their scores'"
        finding, says = _finding(pair, (one, other), plain(first.topic), names, are_same)
        found.append(ScoreDifference(plain(id, 80), plain(first.name, 120), *pair, finding, says))
    return tuple(found)


def _finding(
    pair: tuple[Score | None, Score | None], evaluations: tuple[Evaluation, Evaluation], topic: str,
    names: tuple[str, str], are_same: bool,
) -> tuple[Finding, str]:  # fmt: skip
    """are_same  whether both learnt the same photographs, against which style is measured"""
    for score, name in zip(pair, names, strict=True):
        if score is None:
            return "not comparable", f"not measured in {name}"
        if _numbers(score) is None:
            return "not comparable", f"not measured in {name}: {plain(score.refusal, 200)}"
    judge = JUDGES.get(topic)
    judges = [plain(_mapping(one.judges).get(judge)) if judge else "" for one in evaluations]
    if judges[0] != judges[1]:
        return "not comparable", f"not comparable: measured by {judges[0]} and by {judges[1]}"
    if not are_same and judge == "style":
        return "not comparable", "not comparable: each is measured against its own photographs"
    finding = finding_of(*pair)
    says = {
        "one is better": f"{names[0]} is clearly better",
        "other is better": f"{names[1]} is clearly better",
        "different": "clearly different, which makes neither better",
        "the same": "the same",
        "cannot tell": "no difference that these numbers can show",
        "not comparable": "not comparable",
    }[finding]
    has_interval = all(score is not None and (_numbers(score) or (0, None))[1] is not None for score in pair)
    return finding, says if has_interval or finding == "the same" else "no interval, so chance cannot be told apart"


def _numbers(score: Score | None) -> tuple[float, float | None, float | None] | None:
    value = measured(score.value) if score else None
    return None if score is None or value is None else (value, measured(score.low), measured(score.high))


# -- settings and pictures --


def _settings(
    one: RunFolder, other: RunFolder, names: tuple[str, str]
) -> tuple[tuple[SettingDifference, ...] | None, list[str]]:
    """The settings that differ, those that decide the training first; and a sentence where a file is not there."""
    values, notes = [], []
    for run, name in zip((one, other), names, strict=True):
        found = _read_settings(run)
        values.append(found or {})
        if found is None:
            notes.append(f"The settings of {name} are not known: its config.yaml is missing or cannot be understood.")
    if notes:
        return None, notes
    differences = []
    for name in dict.fromkeys([*Config.model_fields, *values[0], *values[1]]):
        first, second = (_setting(name, given) for given in values)
        if first != second and name not in PLACES:
            differences.append(SettingDifference(plain(name, 80), first, second, name in DECIDING))
    differences.sort(key=lambda one: (not one.decides, _place(one.name)))
    return tuple(differences), []


def _read_settings(run: RunFolder) -> Mapping[str, Any] | None:
    try:
        found = yaml.safe_load(run.config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else None


def _setting(name: str, given: Mapping[str, Any]) -> str:
    """A setting as text; one that a run of another version does not tell has its default."""
    field = Config.model_fields.get(name)
    value = given[name] if name in given else field.default if field else None
    if isinstance(value, list | tuple):
        return plain([plain(one) for one in value], 2000)
    return "–" if value is None else plain(config_text.scalar(value) if isinstance(value, bool | float) else value)


def _place(name: str) -> int:
    """Where a setting stands in config.yaml; the groups are in the order in which a person decides."""
    known = list(Config.model_fields)
    return known.index(name) if name in known else len(known)


def _pictures(records: tuple[Mapping[str, Any], Mapping[str, Any]]) -> tuple[str, bool]:
    digests = [record.get("data_digest") for record in records]
    if not all(isinstance(digest, str) and digest for digest in digests):
        return "Whether they learnt the same photographs is not known.", False
    if digests[0] == digests[1]:
        return "They learnt the same photographs with the same captions.", True
    return "They learnt different photographs or captions.", False


# -- what is said --


def _facts(
    runs: tuple[RunFolder, RunFolder], records: tuple[Mapping[str, Any], Mapping[str, Any]],
    evaluations: tuple[Evaluation | None, Evaluation | None],
) -> tuple[tuple[str, str, str], ...]:  # fmt: skip
    def copies(found: Evaluation | None) -> str:
        if found is None or found.copies.refusal or not found.copies.pairs:
            return "not measured"
        return f"{len(found.copies.copies)} of {len(found.copies.pairs)}"

    rows = [("state", *(plain(record.get("state"), 40) for record in records))]
    rows += [("steps", *(f"{plain(one.get('step'), 20)} of {plain(one.get('total'), 20)}" for one in records))]
    if any(evaluations):
        rows.append(("called a copy", *(copies(found) for found in evaluations)))
    answers = [len(report_parts.read_rows(run.blind_answers)) for run in runs]
    if any(answers):
        rows.append(("blind answers", *(str(many) for many in answers)))
    return tuple((name, one, other) for name, one, other in rows)


def _notes(
    evaluations: tuple[Evaluation | None, Evaluation | None], names: tuple[str, str], are_same: bool
) -> list[str]:
    one, other = evaluations
    missing = [name for name, found in zip(names, evaluations, strict=True) if found is None]
    notes = [f"{name} was not evaluated yet: lace-lora evaluate --run-name {name}" for name in missing]
    if one is None or other is None:
        return notes
    if not are_same:
        notes.append(
            "Each style score is measured against the run's own photographs: read these differences with care."
        )
    facts = [_mapping(found.facts) for found in (one, other)]
    drawn = {
        "prompts": "prompts",
        "plain_prompts": "prompts without the token",
        "seeds": "seeds",
        "lora_scale": "lora_scale",
    }
    others = [words for name, words in drawn.items() if _drawn(facts[0], name) != _drawn(facts[1], name)]
    if others:
        notes.append(f"They were not measured alike (other {', other '.join(others)}), which alone can change scores.")
    return notes


def _drawn(facts: Mapping[str, Any], name: str) -> Any:
    """What was drawn, in words that two runs share: each calls its own style by its own token."""
    told, token = facts.get(name), facts.get("concept_token")
    if isinstance(told, list) and isinstance(token, str) and token:
        return [text.replace(token, "<token>") if isinstance(text, str) else text for text in told]
    return told


def _closing(
    scores: Sequence[ScoreDifference], evaluations: tuple[Evaluation | None, Evaluation | None], names: tuple[str, str]
) -> str:
    one, other = evaluations
    if one is None or other is None:
        return "Without scores of both, only settings can be compared."
    said = []
    copied = [len(found.copies.copies) for found in (one, other)]
    for place in (0, 1):
        if copied[place] and not copied[1 - place] and (one, other)[1 - place].copies.pairs:
            said.append(f"{names[place]} made copies of photographs and {names[1 - place]} did not, which counts most.")
    for finding, name in (("one is better", names[0]), ("other is better", names[1])):
        won = [score.name for score in scores if score.finding == finding]
        if won:
            said.append(f"{name} is clearly better in {len(won)} of {len(scores)} scores: {', '.join(won)}.")
    open_ones = sum(score.finding in ("cannot tell", "the same") for score in scores)
    if open_ones:
        said.append(f"{open_ones} of {len(scores)} show no difference that these numbers can tell from chance.")
    return " ".join(said) or "No score can be compared."


def _said(score: Score | None) -> str:
    """A score in a terminal's cell."""
    numbers = _numbers(score)
    if numbers is None:
        return "not measured"
    decimals = report_parts.decimals_of(numbers)
    value, low, high = numbers
    interval = "" if low is None or high is None else f" ({low:.{decimals}f} to {high:.{decimals}f})"
    return f"{value:.{decimals}f}{interval}"


def _said_html(score: Score | None) -> str:
    if score is None or _numbers(score) is None:
        return "not measured"
    return report_parts.with_interval(score.value, score.low, score.high)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], after: Sequence[str] = ()) -> str:
    """Columns below each other; what comes after them may be as long as it likes."""
    cells = [[_cut(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
    ends = ["", *(after or [""] * len(rows))]
    return "\n".join(f"{line}  {end}".rstrip() for line, end in zip(lines, ends, strict=True))


def _cut(cell: str) -> str:
    return cell if len(cell) <= WIDEST else f"{cell[: WIDEST - 1].rstrip()}…"


def _names(one: RunFolder, other: RunFolder) -> tuple[str, str]:
    names = plain(one.root.resolve().name, 40), plain(other.root.resolve().name, 40)
    return names if names[0] != names[1] else (f"{names[0]} (1)", f"{names[1]} (2)")


def _mapping(value: Any) -> Mapping[str, Any]:
    """What a file may hold as something else."""
    return value if isinstance(value, Mapping) else {}


def _same_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)
