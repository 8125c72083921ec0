"""What must be known to go on with work that a server does: its number there, kept before anybody waits for it."""

import json
from pathlib import Path
from typing import Any

from lace_lora import checkpoint


def read(path: Path) -> dict[str, Any]:
    """What was kept; empty where there is nothing, or nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(path: Path, **facts: Any) -> dict[str, Any]:
    """Add to what was kept, and return all of it. The file is complete or as it was before; it never holds a key."""
    found = read(path) | facts
    checkpoint.write_json(path, found)
    return found


def forget(path: Path) -> None:
    """Take the record away, once all that it speaks of is here."""
    path.unlink(missing_ok=True)
