"""One page about a text adapter: what it was made from, whether it is good, what it wrote, how it was trained.

It is written into the same report.html, from the same pieces, as that of a run of pictures.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lace_lora import checkpoint, curves
from lace_lora import report_parts as parts
from lace_lora.report_parts import facts, number, text, with_interval
from lace_lora.scores import Evaluation
from lace_lora.text_folder import TextFolder

SHOWN = 6  # answers
LONGEST = 1200  # signs of one
WRAPPED = "white-space: pre-wrap; margin: 0"


def write(folder: Path) -> Path:
    """Write report.html from what the run's folder holds, and return its path."""
    place = TextFolder(folder)
    run = place.run
    found = Evaluation.read(run)
    record, card = parts.read_object(run.record), parts.read_object(run.adapter_card)
    log = parts.read_rows(run.log)
    body = parts.part("What was learnt", lambda: _head(place, record, card), run.root)
    sections = {
        "The verdict": lambda: _verdict(found),
        "Is it good": lambda: _scores(found),
        "By kind": lambda: _types(found),
        "What it wrote": lambda: _answers(place),
        "The training": lambda: _training(log, found),
        "For the engineer": lambda: _engineer(place, record, card),
    }
    for title, build in sections.items():
        content = parts.part(title, build, run.root)
        if content:
            body += f"<section><h2>{text(title)}</h2>{content}</section>\n"
    checkpoint.write_text(run.report, parts.page(f"Lace LoRA: {run.name}", body))
    return run.report


def _head(place: TextFolder, record: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    rows = [
        ("recipe", text(card.get("recipe"))),
        ("direction", text(card.get("direction"))),
        ("base model", text(card.get("base_model"))),
        ("learnt from", f"{number(card.get('pairs'))} pairs, {number(card.get('held_out'))} more held out to judge by"),
        ("training steps", f"{number(record.get('step'))} of {number(record.get('total'))}"),
        ("state", text(record.get("state"))),
    ]
    title = f"<h1>{text(place.run.name)}</h1><p class='soft'>a text adapter, and how well it writes</p>"
    return f"<header>{title}{facts(rows)}{parts.source('run.json', 'adapter/adapter.json')}</header>"


def _verdict(found: Evaluation | None) -> str:
    """Each check with whether it passed: the word, not only a colour, says it."""
    if found is None:
        return parts.note("Whether it writes well was not measured yet: lace-lora text evaluate")
    checks = found.facts.get("checks", [])
    is_good = all(one["is_met"] for one in checks)
    has_missed_target = any(one["is_target"] and not one["is_met"] for one in checks)
    mark = parts.mark("good" if is_good else "problem" if has_missed_target else "closer")
    kind = "good" if is_good else "problem" if has_missed_target else "closer"
    rows = [["passed" if one["is_met"] else "<strong>failed</strong>", text(one["says"])] for one in checks]
    said = "".join(parts.paragraph(one) for one in found.verdict)
    listed = parts.table(("", "check"), rows)
    return f"<div class='verdict {kind}'>{mark}{said}</div>{listed}{parts.source('evaluation/scores.json')}"


def _scores(found: Evaluation | None) -> str:
    if found is None:
        return ""
    rows = [[text(one.name), with_interval(one.value, one.low, one.high, 2), text(one.means)] for one in found.scores]
    told = parts.table(("", "value (95 of 100)", "what it means"), rows)
    count = found.counts.get("measured", 0)
    is_free = found.facts.get("constraint") == "none"
    how = "nothing kept them right" if is_free else "both wrote under the recipe's grammar, so their form is right"
    return told + parts.note(f"Both models answered the same {count} held-out pairs once; {how}.")


def _types(found: Evaluation | None) -> str:
    rows = found.facts.get("types", []) if found else []
    if not rows:
        return ""
    names = [name for name in rows[0] if name not in ("of", "who", "count")]
    cells = [
        [text(row["of"]), text(row["who"]), number(row["count"]), *(number(row.get(name), 2) for name in names)]
        for row in rows
    ]
    return parts.table(("", "model", "answers", *(name.replace("_", " ") for name in names)), cells)


def _answers(place: TextFolder) -> str:
    rows = [row for row in parts.read_rows(place.answers) if row.get("who") == "tuned"][-SHOWN:]
    shown = ""
    for row in rows:
        answer = row["answer"]
        shown += f"<h3>{text(answer['asked'], LONGEST)}</h3><div class='side'>"
        for title, name in (("written", "text"), ("wanted", "wanted")):
            written = f"<pre style={WRAPPED!r}>{text_block(answer[name])}</pre>"
            shown += f"<figure><figcaption>{title}</figcaption>{written}</figure>"
        shown += "</div>"
    return shown + (parts.source("evaluation/answers.jsonl") if rows else "")


def text_block(written: Any) -> str:
    """A text of several lines as safe HTML, each as far from the edge as it was."""
    lines = str(written)[:LONGEST].split("\n")
    far = (" " * (len(line) - len(line.lstrip())) for line in lines)
    return "\n".join(f"{space}{text(line, LONGEST)}" if line else "" for space, line in zip(far, lines, strict=True))


def _training(log: list[dict[str, Any]], found: Evaluation | None) -> str:
    rows = [{**row, "train_probe_loss": None} if "val_loss" in row else row for row in log]
    chart = f"<figure>{curves.chart(rows, of='pairs')}</figure>" if rows else ""
    return chart + (parts.paragraph(found.overfitting) if found else "") + parts.source("log.jsonl")


def _engineer(place: TextFolder, record: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    recipe = place.recipe.read_text(encoding="utf-8") if place.recipe.is_file() else ""
    versions = card.get("versions") or record.get("versions") or {}
    seconds = record.get("seconds_per_step")
    cost = [("a step", f"{number(seconds)} s"), ("most GPU memory used", f"{number(record.get('peak_vram_gb'))} GB")]
    known = [row for row in cost if "–" not in row[1]]
    return (
        parts.fold("the recipe", f"<pre style={WRAPPED!r}>{text_block(recipe[: 8 * LONGEST])}</pre>")
        + parts.fold("time and memory", facts(known))
        + parts.fold("versions", facts((name, text(value)) for name, value in versions.items()))
    )
