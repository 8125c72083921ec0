"""One self-contained HTML page about a run, read from its folder; opens from Drive, loads nothing from elsewhere.

The designer's part comes first: what was learnt, whether it is good and new, the designs. The engineer's part is folded
below. Each part names the file of the run that its numbers come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from lace_lora import annotations, config_text, curves, report_designs, report_evidence
from lace_lora import report_parts as parts
from lace_lora.checkpoint import write_text
from lace_lora.config import Config
from lace_lora.counting import seconds_in_words
from lace_lora.declarations import unit_of
from lace_lora.errors import RunError
from lace_lora.file_names import printable, public_name
from lace_lora.report_parts import Pictures, facts, measured, number, part, text
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation

# Settings that hold a model's name or a folder: a path tells of somebody's home, and the page is made to be sent.
MODELS = {"pretrained_model", "refiner_model", "vae_model", "caption_model", "style_model", "text_model",
          "inception_model", "base_model"}  # fmt: skip
FOLDERS = {"drive_mount_path", "images_dir", "lora_output_dir", "cache_dir", "prompts_file", "start_picture",
           "unseen_dir", "preset", "caption_url", "start_from", "push_to_hub", "backend_url",
           "backend_model"}  # fmt: skip


def write(run: RunFolder, *, people: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write report.html into a run folder from what the folder holds; what is not there yet is left out.

    people  what persons said, to be shown as given: each may have "title", "sentences" (texts), "rows" (of a table,
            each a mapping of column to value) and "file" (of the run, that it was worked out from)

    What is broken is left out with a note. Raises RunError when the folder holds no run, or when it cannot be written.
    """
    write_text(run.report, page(run, people=people))
    return run.report


def page(run: RunFolder, *, people: Sequence[Mapping[str, Any]] = (), is_public: bool = False) -> str:
    """The text of that page. Raises RunError when the folder holds no run.

    is_public  for strangers: no photograph that was learnt from, no name of one, no folder of this computer
    """
    if not run.record.is_file():
        raise RunError(f"{printable(run.root)} holds no run. Train first: lace-lora train")
    told = _Told.of(run, is_public)
    top = part("What was learnt", lambda: _head(told), run.root)
    top += part("The verdict", lambda: _verdict(told), run.root)
    links, body = "", ""
    for title, build in _sections(told, people).items():
        content = part(title, build, run.root)
        if content:
            address = title.casefold().replace(" ", "-")
            links += f"<a href='#{address}'>{text(title)}</a>"
            body += f"<section id='{address}'><h2>{text(title)}</h2>{content}</section>\n"
    return parts.page(f"Lace LoRA: {run.name}", f"{top}<nav>{links}</nav>\n{body}")


@dataclass(frozen=True)
class _Told:
    """What the run's files tell, each read once."""

    run: RunFolder
    record: dict[str, Any]
    card: dict[str, Any]
    log: list[dict[str, Any]]
    evaluation: Evaluation | None
    fault: str  # why there is no evaluation though there is a file
    pictures: Pictures
    is_public: bool

    @classmethod
    def of(cls, run: RunFolder, is_public: bool) -> "_Told":
        fault = ""
        try:
            evaluation = Evaluation.read(run)
        except (RunError, RecursionError, OSError):
            evaluation = None
            fault = f"{report_evidence.SCORES_FILE} cannot be understood. Write it again: lace-lora evaluate"
        return cls(run, parts.read_object(run.record), parts.read_object(run.adapter_card), parts.read_rows(run.log),
                   evaluation, fault, Pictures(run.root), is_public)  # fmt: skip


def _sections(told: _Told, people: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[], str]]:
    """Each part of the page by its title, the designer's first."""
    run, found, pictures = told.run, told.evaluation, told.pictures
    evidence: dict[str, Callable[[], str]] = {
        "Base model and LoRA": lambda: pictures.figure(
            run.pairs, "the base model above, your LoRA below, at the same seeds", most_bytes=450_000
        )
    }
    if found is not None:
        evidence |= {
            "Is it good": lambda: report_evidence.scores(found),
            "Is it new": lambda: report_evidence.copies(run, found.copies, pictures, told.is_public),
            "Which checkpoint": lambda: report_evidence.choice(found.choice) + _grid(told),
        }
    else:
        evidence["Which checkpoint"] = lambda: _grid(told)
    return evidence | {
        "The training": lambda: _training(told),
        "What people said": lambda: _people(told, people),
        "Designs": lambda: report_designs.sheets(run, pictures),
        "In repeat": lambda: report_designs.repeats(run, pictures),
        "For the engineer": lambda: _engineer(told),
    }


# -- the designer's part --


def _head(told: _Told) -> str:
    record, card, run = told.record, told.card, told.run
    settings = record["settings"] if isinstance(record.get("settings"), dict) else {}
    learnt = card.get("instance_prompt") or card.get("concept_token") or settings.get("concept_token")
    state = f", {text(record['state'], 40)}" if record.get("state") else ""
    steps = f"{_or_unknown(record.get('step'))} of {_or_unknown(record.get('total'))}{state}"
    rows = [
        ("learnt from", _pictures_learnt(told)),
        ("write in a prompt", f"<strong>{text(learnt)}</strong>" if learnt else ""),
        ("base model", _setting("base_model", card.get("base_model") or settings.get("pretrained_model"))),
        ("training steps", steps),
        ("trained on", text(str(record.get("updated", ""))[:10]) if record.get("updated") else ""),
    ]
    named = facts((name, value) for name, value in rows if value and value != "–")
    return (
        f"<header><h1>{text(run.name)}</h1><p class='soft'>a LoRA and the designs drawn with it</p>{named}"
        f"{parts.source('run.json', *(['adapter/adapter.json'] if card else []))}</header>"
    )


def _pictures_learnt(told: _Told) -> str:
    """How many photographs, as the evaluation counted them, else as many as annotations.txt names."""
    counts = dict(told.evaluation.counts) if told.evaluation and isinstance(told.evaluation.counts, dict) else {}
    listed = [(name, counts[name]) for name in counts if measured(counts[name]) is not None]
    learnt = next((value for name, value in listed if name.casefold().startswith("train")), None)
    held_out = next((value for name, value in listed if name.casefold().replace("_", " ") == "held out"), None)
    if learnt is not None:
        return f"{number(learnt)} photographs" + (f", {number(held_out)} more held out to judge by" if held_out else "")
    if not told.run.annotations.is_file():
        return ""
    return f"{len(annotations.parse(told.run.annotations)[0]):,} photographs, some held out to judge by"


def _verdict(told: _Told) -> str:
    if told.evaluation is None:
        said = told.fault or "Whether it is good and new was not measured yet: lace-lora evaluate, or notebook 05."
        return parts.note(said)
    return _stale(told) + report_evidence.verdict(told.evaluation)


def _stale(told: _Told) -> str:
    """A note where the scores are of another adapter than the one that lies in the run now."""
    sums = told.card.get("sha256")
    now = sums.get(told.run.adapter_weights.name) if isinstance(sums, dict) else None
    facts_of = told.evaluation.facts if told.evaluation and isinstance(told.evaluation.facts, dict) else {}
    judged = facts_of.get("adapter_digest")
    if not (isinstance(now, str) and isinstance(judged, str)) or now == judged:
        return ""
    return parts.note("The LoRA was trained on since it was measured. Measure it again: lace-lora evaluate")


def _grid(told: _Told) -> str:
    """The first page of the grid of checkpoints that was drawn last; one row alone is no choice."""
    grids = sorted(told.run.grids(), key=lambda grid: (grid.request.stat().st_mtime, grid.root.name), reverse=True)
    said = "the same prompt and seed, each checkpoint at each strength; the base model on the left"
    grids = [grid for grid in grids if len(_rows_of(grid.request)) > 1]
    return next((shown for grid in grids if (shown := told.pictures.figure(grid.page(1), said))), "")


def _rows_of(request: Path) -> list[Any]:
    rows = parts.read_object(request).get("rows")
    return rows if isinstance(rows, list) else []


def _training(told: _Told) -> str:
    """The course of the training: its chart, what the looks say, and the sample pictures, a row a step."""
    rows = [row for row in told.log if (measured(row.get("step")) or 0) >= 0 and measured(row.get("step")) is not None]
    steps = [row for row in rows if measured(row.get("loss")) is not None]
    looks = [row for row in rows if (measured(row.get("val_loss")) or 0) > 0]
    looks = [{**row, "train_probe_loss": measured(row.get("train_probe_loss"))} for row in looks]
    body = ""
    if len(steps) > 1 or len(looks) > 1:
        said = told.evaluation.overfitting if told.evaluation and told.evaluation.overfitting else ""
        said = said or (curves.verdict(looks) if looks else "")
        chart = part("The chart", lambda: f"<figure>{curves.chart([*steps, *looks])}</figure>", told.run.root)
        body = chart + (parts.paragraph(said) if said else "") + parts.source("log.jsonl")
    return body + told.pictures.figure(
        told.run.film_strip, "the same prompts and seeds in the course of the training", most_bytes=350_000
    )


def _people(told: _Told, people: Sequence[Mapping[str, Any]]) -> str:
    shown = report_evidence.people(people)
    kept = [path for path in (told.run.blind_answers, told.run.ratings) if path.is_file()]
    if shown or not kept:
        return shown
    files = " and ".join(told.pictures.name_of(path) for path in kept)
    return parts.note(f"Answers are kept in {files}; lace-lora evaluate works out what they show.")


# -- the engineer's part --


def _engineer(told: _Told) -> str:
    found, run = told.evaluation, told.run
    card = {name: value for name, value in told.card.items() if name not in ("versions", "sha256", "base_model")}
    folds = {
        "the settings that ran": lambda: _settings(run, told.is_public),
        "time and memory": lambda: _costs(told),
        "the adapter": lambda: _facts(card, "adapter/adapter.json") if card else "",
        "how it was measured": lambda: _measured(found) if found else "",
        "versions": lambda: _versions(told),
    }
    return "".join(parts.fold(title, part(title.capitalize(), build, run.root)) for title, build in folds.items())


def _settings(run: RunFolder, is_public: bool) -> str:
    """Every setting of the run's config.yaml, those that differ from the default first."""
    if not run.config.is_file():
        return ""
    values = yaml.safe_load(run.config.read_text(encoding="utf-8-sig"))
    if not isinstance(values, dict):
        return parts.note("config.yaml holds no settings.")
    rows: dict[bool, list[list[str]]] = {True: [], False: []}
    for name, value in list(values.items())[:400]:
        if is_public and name in FOLDERS:
            continue
        field = Config.model_fields.get(str(name))
        default = field.default if field else None
        is_default = field is not None and config_text.scalar(_flat(value)) == config_text.scalar(_flat(default))
        unit = f" {text(unit_of(field))}" if field and unit_of(field) and value not in (None, "auto") else ""
        about = text(field.description) if field else "a setting of another version"
        rows[is_default].append(
            [f"<code>{text(name, 80)}</code>", _setting(str(name), value) + unit, _setting(str(name), default), about]
        )
    columns = ("setting", "value", "default", "what it is")
    changed = parts.table(columns, rows[False], kind="settings") or parts.note("All settings have their defaults.")
    return (
        changed
        + parts.fold(f"{len(rows[True])} settings have their defaults", parts.table(columns, rows[True]))
        + (parts.source("config.yaml"))
    )


def _setting(name: str, value: Any) -> str:
    """A setting's value; of a path on somebody's computer only its last part."""
    if isinstance(value, bool):
        value = str(value).lower()  # as it stands in config.yaml
    if isinstance(value, str) and name in MODELS:
        value = public_name(value)
    if isinstance(value, str) and name in FOLDERS and "/" in value.replace("\\", "/"):
        value = f"…/{value.replace(chr(92), '/').rstrip('/').rpartition('/')[2]}"
    return text(value)


def _flat(value: Any) -> Any:
    """A setting's value without lists in lists, which no setting has and a damaged file may."""
    return [str(one)[:200] for one in value] if isinstance(value, list | tuple) else value


def _costs(told: _Told) -> str:
    """Seconds a step, time in all and memory, as far as the run noted them; money only where its record knows it."""
    seconds = [value for row in told.log if (value := measured(row.get("seconds"))) is not None and value >= 0]
    record = told.record
    rows = []
    if seconds:
        rows.append(("a training step, median", f"{number(round(median(seconds), 4))} s, from log.jsonl"))
        whole = seconds_in_words(sum(seconds))
        rows.append(("all training steps", f"{whole} for {len(seconds):,} steps, from log.jsonl"))
    if measured(record.get("seconds_per_step")) is not None:
        rows.append(
            ("a step with what comes between, lately", f"{number(record['seconds_per_step'])} s, from run.json")
        )
    if measured(record.get("peak_vram_gb")) is not None:
        rows.append(("most GPU memory used", f"{number(record['peak_vram_gb'])} GB, from run.json"))
    known = [name for name in record if name.startswith(("cost", "price")) and record[name] is not None]
    rows += [(name.replace("_", " "), f"{report_evidence.cell(record[name])}, from run.json") for name in known[:10]]
    rows += [(name, f"{text(record[name], 40)}, from run.json") for name in ("started", "updated") if record.get(name)]
    return facts(rows)


def _measured(found: Evaluation) -> str:
    told: dict[str, Any] = {"written": found.written}
    told |= {f"judge of {name}": judge for name, judge in found.judges.items()}
    told |= {f"how many: {name}": count for name, count in found.counts.items()}
    return _facts(told | dict(found.facts), report_evidence.SCORES_FILE)


def _versions(told: _Told) -> str:
    versions = told.record.get("versions") or told.card.get("versions")
    return _facts(versions, "run.json") if isinstance(versions, dict) else ""


def _facts(told: Mapping[str, Any], file: str) -> str:
    rows = [(str(name).replace("_", " "), _setting(str(name), value)) for name, value in list(told.items())[:200]]
    return facts(rows) + parts.source(file)


def _or_unknown(value: Any) -> str:
    return number(value) if measured(value) is not None else "?"
