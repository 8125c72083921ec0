"""One self-contained HTML page about a run, read from its folder; opens from Drive, loads nothing from elsewhere."""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora.checkpoint import read_json_lines, write_text
from lace_lora.curves import chart, verdict
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder, SheetFolder

WIDEST_PX = 1600  # pictures on the page are shrunk to this, so that the page stays small enough to mail

STYLE = """
:root { color-scheme: light dark; --ink: #23201c; --paper: #fbf8f2; --line: #d9d0c1; --soft: #6f675b;
  --accent: #7a3b3b }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee7db; --paper: #1d1b19; --line: #46413a; --soft: #a79d8d; --accent: #d8a1a1 } }
body { font: 16px/1.55 Georgia, "Times New Roman", serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 1.5rem }
h1 { font-weight: normal; margin: 0 0 .2rem } h2 { font-weight: normal; color: var(--accent); margin: 2.2rem 0 .5rem;
  border-bottom: 1px solid var(--line) } p.soft, figcaption { color: var(--soft); font-size: .92rem }
figure { margin: 0 } img { max-width: 100%; height: auto; border: 1px solid var(--line); image-rendering: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .95rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line) }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap } details { margin-top: .6rem }
svg { width: 100%; height: 9rem } polyline { fill: none; stroke: var(--accent); stroke-width: 1.5;
  vector-effect: non-scaling-stroke }
"""


def write(run: RunFolder) -> Path:
    """Write report.html into a run folder from what the folder holds; what is not there yet is left out.

    Raises RunError when the folder holds no run.
    """
    if not run.record.is_file():
        raise RunError(f"{run.root} holds no run. Train first: lace-lora train")
    record = _json(run.record)
    card = _json(run.adapter_card)
    parts = [
        _head(run, record, card),
        _scores(_json(run.scores), run.strip),
        *[_sheet(SheetFolder(path)) for path in sorted(run.sheets.glob("*")) if path.is_dir()],
        _loss(read_json_lines(run.log), run.film_strip),
        _facts("Settings and versions", card | {"versions": record.get("versions", card.get("versions", {}))}),
    ]
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Lace LoRA: {escape(run.name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )
    write_text(run.report, page)
    return run.report


def _head(run: RunFolder, record: dict[str, Any], card: dict[str, Any]) -> str:
    rows = [
        ("concept token", card.get("concept_token")),
        ("base model", card.get("base_model")),
        ("state", record.get("state")),
        ("steps", f"{record.get('step', '?')} of {record.get('total', '?')}"),
        ("rank, alpha", f"{card.get('rank')}, {card.get('alpha')}" if card else None),
    ]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows if value)
    return f"<h1>{escape(run.name)}</h1><p class='soft'>a LoRA and the designs drawn with it</p><table>{cells}</table>"


def _scores(scores: dict[str, Any], strip: Path) -> str:
    if not scores and not strip.is_file():
        return ""
    rows = "".join(
        f"<tr><th>{escape(score['name'])}</th><td class='number'>{_number(score)}</td>"
        f"<td>{escape(score['means'])}</td></tr>"
        for score in scores.get("scores", [])
    )
    verdict = f"<p><strong>{escape(scores['verdict'])}</strong></p>" if scores.get("verdict") else ""
    table = f"<div class='wide'><table>{rows}</table></div>" if rows else ""
    return (
        f"<h2>What it learnt</h2>{verdict}{_picture(strip, 'the base model and your LoRA, at the same seeds')}{table}"
    )


def _number(score: dict[str, Any]) -> str:
    spread = score.get("spread")
    return f"{score['value']:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")


def _sheet(sheet: SheetFolder) -> str:
    rows = read_json_lines(sheet.manifest)
    if not rows or not sheet.contact_sheet.is_file():
        return ""
    prompts = list(dict.fromkeys(str(row.get("prompt", "")) for row in rows))
    listed = "".join(f"<li>{escape(prompt)}</li>" for prompt in prompts)
    return (
        f"<h2>Designs: {escape(sheet.root.name)}</h2>"
        + _picture(sheet.contact_sheet, f"{len(rows)} designs, in images/{sheet.root.name}")
        + f"<details><summary>{len(prompts)} prompts</summary><ol>{listed}</ol></details>"
    )


def _picture(path: Path, caption: str) -> str:
    if not path.is_file():
        return ""
    with Image.open(path) as image:
        image.thumbnail((WIDEST_PX, 4 * WIDEST_PX))
        data = io.BytesIO()
        image.convert("RGB").save(data, "JPEG", quality=88)
    encoded = base64.b64encode(data.getvalue()).decode()
    return (
        f"<figure><img alt='{escape(caption, quote=True)}' src='data:image/jpeg;base64,{encoded}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _loss(rows: list[dict[str, Any]], film_strip: Path) -> str:
    """The course of the training: its chart, what the looks say, and the sample pictures, a row a step."""
    if len(rows) < 2:
        return ""
    looks = [row for row in rows if "val_loss" in row]
    says = f"<p>{escape(verdict(looks))[:1].upper()}{escape(verdict(looks))[1:]}</p>" if looks else ""
    strip = (
        _picture(film_strip, "the same prompts and seeds in the course of the training") if film_strip.is_file() else ""
    )
    return f"<h2>Training</h2>{chart(rows)}{says}{strip}"


def _facts(title: str, facts: dict[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        rows.append(f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>")
    table = f"<div class='wide'><table>{''.join(rows)}</table></div>"
    return f"<h2>For the engineer</h2><details><summary>{escape(title)}</summary>{table}</details>" if rows else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
