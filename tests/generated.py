"""What the documents and the notebooks take from the code, and the command that writes it there: `make settings`."""

import ast
import re
import subprocess
from pathlib import Path

from lace_lora import address, config_text, options, presets
from tests import store_address

ROOT = Path(__file__).parent.parent
PACKAGE = "lace_lora"

# Rooms by level; a room imports only from lower levels. A folder is one room, but for the demo's job and builder.
LEVELS = {
    "__init__": 0,
    "errors": 0,
    "address": 0,
    "declarations": 0,
    "file_names": 0,
    "stopping": 0,
    "counting": 0,
    "decimals": 0,
    "style_claims": 0,
    "shapes": 0,
    "rules_of_thumb": 0,
    "quality": 0,
    "even_light": 0,
    "demo": 0,
    "config": 1,
    "machine": 1,
    "checkpoint": 1,
    "places": 1,
    "image_files": 1,
    "views": 0,
    "placements": 1,
    "registration": 1,
    "tables": 1,
    "alternatives": 1,
    "config_text": 2,
    "command_words": 2,
    "captioner_http": 2,
    "sheet_folder": 1,
    "run_folder": 2,
    "colab": 2,
    "presets": 2,
    "clashes": 2,
    "throughput": 2,
    "prompt_files": 2,
    "lock": 2,
    "near_duplicates": 2,
    "nearest": 2,
    "own_files": 2,
    "swatch": 2,
    "pictures": 2,
    "preprocessing": 2,
    "families": 3,
    "costs": 3,
    "cloth": 3,
    "page": 4,
    "stars": 3,
    "references": 3,
    "scores": 3,
    "unseen": 0,
    "ssim": 4,
    "schedule": 3,
    "copying": 3,
    "contents": 3,
    "defaults": 3,
    "kept_answers": 2,
    "own_programs": 1,
    "search_programs": 3,
    "comparisons": 4,
    "copy_check": 4,
    "copies": 5,
    "copy_pages": 6,
    "annotations": 3,
    "annotations_file": 4,
    "survey": 3,
    "check_sheet": 3,
    "captioners": 4,
    "listing": 4,
    "local_copies": 4,
    "own_folders": 5,
    "check_report": 4,
    "tensor_files": 4,
    "delivery": 4,
    "mirror": 5,
    "workplace": 5,
    "lean": 4,
    "coefficients": 4,
    "cuts": 4,
    "batches": 4,
    "between_stages": 4,
    "repeats": 4,
    "masks": 4,
    "outlines": 4,
    "lora": 4,
    "tokens": 4,
    "optimizers": 4,
    "mishaps": 4,
    "processes": 4,
    "journal": 4,
    "runs": 4,
    "launch": 4,
    "curves": 4,
    "trackers": 4,
    "queries": 4,
    "sampling": 4,
    "shelf": 4,
    "data_utils": 5,
    "experience": 4,
    "workload": 5,
    "stage_needs": 6,
    "fitting": 7,
    "plans": 8,
    "figures": 9,
    "settling": 8,
    "estimate": 9,
    "suggest": 5,
    "caption_lint": 5,
    "cache_file": 5,
    "cache_keys": 5,
    "adapter_facts": 4,
    "adapter": 5,
    "archives": 2,
    "workflow": 4,
    "workflow_page": 5,
    "model_card": 6,
    "hub": 3,
    "package": 9,
    "share_command": 13,
    "foreign_words": 1,
    "foreign": 6,
    "starting": 7,
    "quantize": 5,
    "four_bits": 6,
    "sheet": 6,
    "embedders": 5,
    "inception": 6,
    "blind": 5,
    "rating": 4,
    "film_strip": 5,
    "painting": 5,
    "conditions": 5,
    "caption_files": 6,
    "caption_export": 7,
    "cache": 6,
    "parts": 6,
    "stages": 6,
    "style_statistics": 1,
    "resampling": 1,
    "mmd": 2,
    "weight_free": 2,
    "intervals": 4,
    "style_match": 4,
    "leftovers": 6,
    "replanning": 10,
    "run_list": 7,
    "annotate": 7,
    "class_pictures": 7,
    "losses": 7,
    "report_parts": 2,
    "report_evidence": 4,
    "report_designs": 5,
    "report": 7,
    "compare": 7,
    "banner": 7,
    "install": 7,
    "album": 8,
    "check": 8,
    "examples": 8,
    "charts": 5,
    "exploring": 9,
    "steps": 8,
    "validation": 8,
    "samples": 8,
    "sitting": 9,
    "outcome": 9,
    "finishing": 7,
    "wanted": 8,
    "backends": 10,
    "landing": 7,
    "order": 9,
    "elsewhere": 11,
    "elsewhere_training": 11,
    "production": 10,
    "inference": 12,
    "train": 12,
    "selftest_work": 13,
    "selftest": 13,
    "selftest_command": 14,
    "candidates": 7,
    "exhibits": 7,
    "choosing": 5,
    "cells": 9,
    "grid": 13,
    "pairs": 14,
    "opinions": 8,
    "measuring": 15,
    "evaluate": 16,
    "verdicts": 4,
    "demo.build": 11,
    "demo.job": 17,
    "batch": 11,
    "sweep": 11,
    "combination": 11,
    "sweep_table": 12,
    "crew": 12,
    "batch_command": 13,
    "preflight": 11,
    "options": 11,
    "plan_command": 13,
    "runs_command": 13,
    "cancel_command": 13,
    "notebook": 13,
    "form_parts": 12,
    "swatch_form": 14,
    "gallery": 15,
    "design_gallery": 14,
    "answering": 14,
    "blind_form": 15,
    "rating_form": 15,
    "fields": 14,
    "entries": 11,
    "saving": 4,
    "plan_view": 13,
    "form_panel": 15,
    "forms": 16,
    "progress": 14,
    "takeaway": 14,
    "run_choice": 14,
    "gate": 1,
    "commissions": 5,
    "job_records": 4,
    "service": 10,
    "studio": 13,
    "serve": 13,
    "space": 14,
    "serve_command": 15,
    "claim_language": 1,
    "patent_recipe": 2,
    "patent_xml": 2,
    "patent_example": 3,
    "line_drawings": 3,
    "claims": 3,
    "claim_links": 4,
    "claim_prompts": 5,
    "claim_splits": 5,
    "claim_dataset": 6,
    "claim_folder": 7,
    "claims_command": 13,
    "frames": 3,
    "frames_command": 13,
    "claims_exploring": 14,
    "cad": 1,
    "graphs": 1,
    "recipe": 1,
    "validate": 2,
    "agreement": 3,
    "dialogues": 3,
    "text_folder": 3,
    "constraint": 2,
    "small_language": 4,
    "text_plan": 3,
    "language_models": 5,
    "text_course": 6,
    "writer": 6,
    "text": 7,
    "text_models": 8,
    "text_scores": 9,
    "text_report": 5,
    "text_request": 5,
    "text_command": 13,
    "main": 17,
}


def source_files() -> list[Path]:
    """Every Python file of the package."""
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file belongs to: families/sdxl.py is in families, demo/build_vae.py in demo.build."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts if path != ROOT / f"{PACKAGE}.py" else ("__init__",)
    if parts[0] == "demo" and len(parts) > 1 and parts[1].startswith(("job", "build")):
        return f"demo.{parts[1].split('_')[0]}"
    return parts[0]


def tracked_files() -> list[str]:
    """The files of the repository as git lists them; empty where there is no git."""
    try:
        done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(done.stdout.splitlines())


def first_sentence(path: Path) -> str:
    """What a file says of itself in its docstring's first sentence or two."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def rooms_table() -> str:
    """The rooms by level, each with its own first sentence."""
    lines = ["| level | room | what it is |", "|---|---|---|"]
    for room, level in LEVELS.items():
        path = ROOT / PACKAGE / (room.replace(".", "/") + ".py")
        path = path if path.is_file() else ROOT / PACKAGE / room / "__init__.py"
        if room != "__init__":
            lines.append(f"| {level} | `{room}` | {first_sentence(path)} |")
    return "\n".join(lines)


def presets_table() -> str:
    """The presets that ship, with what they set."""
    lines = ["| preset | for | sets |", "|---|---|---|"]
    for name in presets.names():
        preset = presets.read(name)
        sets = ", ".join(f"{key} {_short(value)}" for key, value in preset.settings.items())
        lines.append(f"| `{name}` | {preset.about} | {sets} |")
    return "\n".join(lines)


def directory_structure() -> str:
    """Every tracked file, Python files with what they say of themselves; the model's files by folder are data."""
    lines = []
    for name in tracked_files():
        is_python = name.endswith(".py") and (ROOT / name).is_file()
        about = first_sentence(ROOT / name) if is_python else ""
        lines.append(f"- `{name}`" + (f" — {about}" if about else ""))
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{len(value)} of them" if isinstance(value, list) and len(value) > 2 else str(value)


BLOCKS = {
    "documentation.md:settings": options.table,
    "documentation.md:presets": presets_table,
    "documentation.md:rooms": rooms_table,
    "README.md:address": address.readme,
    ".notes/directory_structure.md:files": directory_structure,
}


def block_in(path: str, block: str) -> str:
    """The text between the two marks of a generated block."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {block}: begin[^>]*-->\n(.*?)<!-- {block}: end -->", text, re.S)
    assert found, f"{path} has no block {block}"
    return found[1].strip()


def write() -> None:
    """Write config.yaml, the address in the notebooks, and every generated block."""
    store_address.write()
    (ROOT / "config.yaml").write_text(config_text.shipped_yaml(), encoding="utf-8")
    for name, make in BLOCKS.items():
        path, block = name.split(":")
        text = (ROOT / path).read_text(encoding="utf-8")
        text = re.sub(
            rf"(<!-- {block}: begin[^>]*-->\n).*?(<!-- {block}: end -->)",
            lambda found, make=make: found[1] + make().strip() + "\n" + found[2],
            text,
            flags=re.S,
        )
        (ROOT / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
