"""The parts of a run's page that tell what an evaluation found: verdict, scores, copies, which checkpoint, and people.

Every number shown here stands in evaluation/scores.json, and carries its unrounded value with it.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lace_lora import report_parts as parts
from lace_lora import style_claims
from lace_lora.counting import counted
from lace_lora.report_parts import Pictures, measured, number, text
from lace_lora.run_folder import RunFolder
from lace_lora.scores import LEVEL, CopyCheck, Evaluation, Score

SCORES_FILE = "evaluation/scores.json"
MOST_SCORES, MOST_PAIRS, MOST_ROWS = 60, 200, 100
PAGES = 4  # of nearest neighbours that are shown, the first one open
TOPICS = {
    "style": "Style",
    "words": "Words",
    "variety": "Variety",
    "drift": "Prompts without the concept token",
    "refiner": "Refiner",
    "reference": "Against reference pictures",
    "other": "Other",
}
COPYING = "copying since"  # how curves.verdict begins where the log shows it
BETTER = {"higher": "higher is better", "lower": "lower is better"}
# What the rows of a choice call their columns.
COLUMNS = {
    "step": "step",
    "val_loss": "held-out loss (one standard error down and up)",
    "copies": "copies",
    "looked_at": "designs looked at",
    "is_kept": "still on the disk",
    "is_lowest": "lowest loss",
    "is_advised": "advised",
}


_STYLE: dict[style_claims.Style, str] = {
    "away": "The style is no nearer to your photographs than that of the base model.",
    "little": "Little of the style was learnt.",
    "not shown": "The style may be no nearer to your photographs than that of the base model.",
    "part": "The style was learnt in part.",
    "learnt": "The style was learnt, and nothing that was made is a copy.",
    "nearer": "The pictures lie nearer to your photographs than unseen lace: look whether they are copies.",
    "cannot tell": "How much of the style was learnt cannot be told.",
}


@dataclass(frozen=True)
class Standing:
    """How a run stands, in one word and why: `kind` is one of report_parts.MARKS."""

    kind: str
    why: str


def standing(evaluation: Evaluation) -> Standing:
    """Good, worth a closer look, or a problem.

    A problem: something that was made is called a copy, the log shows copying, or little or less of the style was
    learnt. Good: none of these, the style was learnt, and copies were looked for. A closer look: all else.
    """
    copied = len(evaluation.copies.copies)
    if copied:
        return Standing("problem", f"{counted(copied, 'picture')} too much like a photograph that was learnt.")
    if str(evaluation.overfitting).casefold().startswith(COPYING):
        return Standing("problem", "The log shows that it copies.")
    style = evaluation.score("style_match")
    value = measured(style.value) if style else None
    if style is None or value is None:
        return Standing("closer", "Whether the style was learnt could not be measured.")
    claim = style_claims.style(value, measured(style.low), measured(style.high))
    if claim in style_claims.PROBLEMS:
        return Standing("problem", _STYLE[claim])
    if evaluation.copies.refusal or not evaluation.copies.pairs:
        return Standing("closer", "Whether anything is a copy could not be measured.")
    return Standing("good" if claim == "learnt" else "closer", _STYLE[claim])


def verdict(evaluation: Evaluation) -> str:
    """The mark and the sentences on what to think of the run."""
    stands = standing(evaluation)
    said = [*_listed(evaluation.verdict)] or [stands.why]
    body = parts.paragraph(said[0]) + "".join(parts.paragraph(one) for one in said[1:20])
    body = parts.mark(stands.kind) + body + parts.source(SCORES_FILE)
    return f"<div class='verdict {stands.kind}' role='note'>{body}</div>"


# -- scores --


def scores(evaluation: Evaluation) -> str:
    """Every score with its interval, drawn and in numbers, and what it means, by topic."""
    found = evaluation.scores[:MOST_SCORES]
    topics = dict.fromkeys([*TOPICS, *(parts.plain(score.topic) for score in found)])
    tables = ""
    for topic in topics:
        own = [score for score in found if parts.plain(score.topic) == topic]
        rows = [_score_row(score, axis_of(score, own)) for score in own]
        if rows:
            heading = f"<h3>{text(TOPICS.get(topic, topic))}</h3>"
            tables += heading + parts.table(("score", "value and interval", "", "what it means"), rows, kind="scores")
    if not tables:
        return ""
    judges = "; ".join(f"{parts.plain(name)}: {parts.plain(judge)}" for name, judge in evaluation.judges.items())
    by = parts.paragraph(f"measured by {judges}.", "soft") if judges else ""
    interval = parts.paragraph(
        f"The interval is where the value would lie in {LEVEL * 100:g} of 100 repetitions with other pictures of the "
        "same kind. Two values whose intervals overlap cannot be told apart.",
        "soft",
    )
    return f"<div id='scores'>{tables}{interval}{by}{parts.source(SCORES_FILE)}</div>"


def axis_of(score: Score, others: Sequence[Score]) -> tuple[float, float]:
    """The ends of a score's axis: round numbers, 0 within. Those of one topic that can be compared share an axis.

    What is better in another direction, or more than four times larger, counts as another kind of number, such as a
    share beside a distance.
    """
    reaches = [reach for one in others if one.better == score.better and (reach := _reach(one))]
    own = _reach(score) or (0.0, 1.0)
    size = max(map(abs, own))
    alike = [reach for reach in reaches if max(map(abs, reach)) <= 4 * size] + [own]
    low, high = min(0.0, *(one[0] for one in alike)), max(0.0, *(one[1] for one in alike))
    return 0.0 - _rounded_up(-low), _rounded_up(high) or (0.0 if low else 1.0)


def _score_row(score: Score, axis: tuple[float, float]) -> list[str]:
    name = f"<span data-score='{text(score.id, 80)}'>{text(score.name, 160)}</span>"
    value, low, high = (measured(one) for one in (score.value, score.low, score.high))
    said = text(score.means)
    direction = BETTER.get(parts.plain(score.better))
    said += f" <span class='soft'>({direction}.)</span>" if direction else ""
    if value is None:
        return [name, "not measured", "", text(score.refusal)]
    count = f"<br><span class='soft'>{number(score.count)} measured</span>" if measured(score.count) else ""
    drawn = parts.bar(value, low, high, axis)
    return [name, parts.with_interval(score.value, score.low, score.high) + count, drawn, said]


def _reach(score: Score) -> tuple[float, float] | None:
    numbers = [one for one in map(measured, (score.value, score.low, score.high)) if one is not None]
    return (min(numbers), max(numbers)) if numbers and measured(score.value) is not None else None


def _rounded_up(value: float) -> float:
    """The next of 1, 2 or 5 times a power of ten; 0 for 0."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(factor for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9)) * power:.6g}")


# -- copies --


def copies(run: RunFolder, check: CopyCheck, pictures: Pictures, is_public: bool = False) -> str:
    """Whether anything is a copy, each thing beside what it is most like, and all of it in numbers.

    is_public  only in words, without photographs and their names
    """
    if is_public:
        return "".join(parts.paragraph(sentence) for sentence in copy_sentences(check))
    pages = []
    for place in range(1, PAGES + 1):
        shown = pictures.figure(
            run.nearest(place), f"what was made beside the photograph it is most like, page {place}",
            most_bytes=500_000 if place == 1 else 250_000,
        )  # fmt: skip
        pages += [shown] if shown else []
    more = sum(1 for _ in takewhile(Path.is_file, map(run.nearest, itertools.count(PAGES + 1))))
    rest = parts.note(f"{more} more pages: evaluation/{run.nearest(PAGES + 1).name} and on.") if more else ""
    body = "".join(parts.paragraph(sentence) for sentence in copy_sentences(check))
    body += pages[0] if pages else ""
    body += parts.fold("the next pages: those less alike", "".join(pages[1:]) + rest)
    return body + parts.fold(f"all {counted(len(check.pairs), 'pair')} in numbers", _pairs(check)) if body else ""


def copy_sentences(check: CopyCheck) -> list[str]:
    """What the copy check found, and how far it can be trusted."""
    if check.refusal:
        return [f"Whether anything is a copy was not measured: {parts.plain(check.refusal)}"]
    if not check.pairs:
        return []
    found, looked = len(check.copies), len(check.pairs)
    if found:
        files = parts.plain([one.made for one in check.copies[:6]])
        more = f" and {found - 6} more" if found > 6 else ""
        said = [f"{found} of {looked} pictures {'is' if found == 1 else 'are'} called a copy: {files}{more}. Leave "
                f"{'it' if found == 1 else 'them'} out, or take an earlier checkpoint."]  # fmt: skip
    else:
        said = [f"None of {counted(looked, 'picture')} is called a copy."]
    threshold = measured(check.threshold)
    if threshold is not None:
        what = f" Likeness is {parts.plain(check.likeness)}." if check.likeness else ""
        shown = f"{threshold:.{parts.decimals_of([threshold])}f}"
        said.append(f"A picture is called a copy if its likeness to a learnt photograph is above {shown}.{what}")
    if check.false_alarms:
        said.append(
            "No photographs of two different pieces are so alike. That was measured on as many comparisons as "
            f"{counted(check.calibrated_on, 'unseen piece')} give: at most 1 in {check.calibrated_on + 1} new designs "
            "is called a copy by chance, on average. Look before you throw away."
        )
    return said


def _pairs(check: CopyCheck) -> str:
    pairs = check.pairs
    has_features = any(measured(pair.feature_distance) is not None for pair in pairs)
    columns = ["made", "most like", "likeness", "copy", "how it lies on it", *(["style distance"] * has_features)]
    rows = []
    for pair in pairs[:MOST_PAIRS]:
        verdict = "<strong class='problem'>copy</strong>" if pair.is_copy else "no"
        cells = [text(pair.made, 120), text(pair.nearest, 120), number(pair.likeness), verdict, text(pair.how, 120)]
        rows.append([*cells, *([number(pair.feature_distance)] * has_features)])
    left = len(pairs) - len(rows)
    said = parts.note(f"{left} more are in {SCORES_FILE}.") if left else ""
    known = [("a copy is above", number(check.threshold)), ("worth as many unseen pieces", number(check.calibrated_on))]
    return parts.facts(known) + parts.table(columns, rows) + said + parts.source(SCORES_FILE) if rows else ""


# -- which checkpoint --


def choice(told: Mapping[str, Any]) -> str:
    """Which checkpoint to take and why: the advice, and the checkpoints side by side."""
    if not told:
        return ""
    rows = [row for row in _listed(told.get("rows")) if isinstance(row, Mapping)]
    body = parts.paragraph(f"{told['advice']}") if isinstance(told.get("advice"), str) else ""
    others = {name: value for name, value in told.items() if name not in ("advice", "rows")}
    body += "".join(parts.paragraph(value) for value in others.values() if isinstance(value, str) and " " in value)
    body += _choice_table(rows[:MOST_ROWS])
    known = [(name.replace("_", " "), cell(value)) for name, value in others.items()
             if not (isinstance(value, str) and " " in value)]  # fmt: skip
    body += parts.fold("how it was chosen", parts.facts(known))
    return body + parts.source(SCORES_FILE) if body else ""


def _choice_table(rows: Sequence[Mapping[str, Any]]) -> str:
    has_interval = {"val_loss", "low", "high"} <= {name for row in rows for name in row}
    hidden = {"low", "high"} if has_interval else set()
    names = list(dict.fromkeys([*(name for name in COLUMNS if any(name in row for row in rows)),
                                *(str(name) for row in rows for name in row)]))  # fmt: skip
    names = [name for name in names if name not in hidden][:10]
    table = []
    for row in rows:
        cells = [
            parts.with_interval(row.get(name), row.get("low"), row.get("high"), 4)
            if name == "val_loss" and has_interval
            else cell(row.get(name))
            for name in names
        ]  # fmt: skip
        table.append([f"{'★ ' if row.get('is_advised') is True else ''}{cells[0]}", *cells[1:]] if cells else [])
    advised = [place for place, row in enumerate(rows) if row.get("is_advised") is True]
    columns = [COLUMNS.get(name, name.replace("_", " ")) for name in names]
    return parts.table(columns, table, advised) if names else ""


# -- people --


def people(told: Iterable[Mapping[str, Any]]) -> str:
    """What people said of the pictures, as given: each a title, sentences, rows of a table and the file behind it."""
    body = ""
    for one in told:
        rows = [row for row in _listed(one.get("rows")) if isinstance(row, Mapping)][:MOST_ROWS]
        names = list(dict.fromkeys(name for row in rows for name in row))[:10]
        cells = [[cell(row.get(name)) for name in names] for row in rows]
        said = "".join(parts.paragraph(sentence) for sentence in _listed(one.get("sentences")))
        shown = said + (parts.table([str(name).replace("_", " ") for name in names], cells) if names else "")
        if shown:
            title = f"<h3>{text(one['title'], 120)}</h3>" if one.get("title") else ""
            body += title + shown + (parts.source(parts.plain(one["file"], 120)) if one.get("file") else "")
    return body


def cell(value: Any) -> str:
    """A value of a table: a number that can be traced, or text."""
    return number(value) if measured(value) is not None else text(value, 200)


def _listed(value: Any) -> Sequence[Any]:
    """A list as it is; a text alone as the only one of a list, nothing as none."""
    if isinstance(value, list | tuple):
        return value
    return [value] if value else []
