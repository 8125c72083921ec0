"""The pairs of texts that ship with the recipes, drawn up by program: python -m tests.drawn_pairs

160 CAD pairs, and 92 + 68 pairs of code and text for DOT; the same every time.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lace_lora import cad, graphs, recipe
from lace_lora.graphs import Graph

MM = 0.001
CAD_PAIRS, CODE_PAIRS, TEXT_PAIRS = 160, 92, 68

STATES = ["idle", "open", "closed", "locked", "paused", "running", "stopped", "waiting", "ready", "done"]
EVENTS = ["start", "stop", "push", "pull", "reset", "coin", "timer", "key"]
STEPS = ["read file", "check size", "cut cloth", "wash", "dry", "press", "pack", "send", "count", "print", "sort"]
PLACES = ["router", "switch", "server", "printer", "laptop", "phone", "camera", "loom", "archive"]


def cad_rows() -> list[dict[str, Any]]:
    """Parts with their descriptions."""
    chance = random.Random(1)
    return [_part(chance) for _ in range(CAD_PAIRS)]


def dot_rows() -> list[dict[str, str]]:
    """Graphs with a description in code or in words."""
    chance = random.Random(2)
    kinds = ["code"] * CODE_PAIRS + ["text"] * TEXT_PAIRS
    makers = [_machine, _flow, _network]
    return [makers[place % 3](chance, kind) for place, kind in enumerate(kinds)]


def _part(chance: random.Random) -> dict[str, Any]:
    is_round = chance.random() < 0.4
    first, second = (chance.choice(range(10, 100, 5)) for _ in range(2))
    height, depth = (first if is_round else second), chance.choice((2, 3, 4, 5, 8, 10))
    sketch = {
        "op": "sketch", "profile": "A", "frame": "world", "shape": "circle" if is_round else "rectangle",
        "size": [first * MM, height * MM], "at": [0, 0],
    }  # fmt: skip
    parts: list[dict[str, Any]] = [sketch, {"op": "extrusion", "profile": "A", "depth": depth * MM}]
    what = f"disc of {first} mm diameter" if is_round else f"plate {first} by {height} mm"
    said = f"A {what}, {depth} mm thick"
    if chance.random() < 0.5:
        hole = chance.choice((2, 3, 4, 5))
        parts.append({"op": "hole", "profile": "A", "diameter": hole * MM, "depth": depth * MM, "at": [0, 0]})
        said += f", with a {hole} mm hole in the middle"
    if chance.random() < 0.3:
        parts.append({"op": "fillet", "profile": "A", "radius": MM})
        said += ", edges rounded by 1 mm"
    if chance.random() < 0.3:
        up = chance.choice((5, 10, 20))
        parts.append({"op": "transform", "profile": "A", "frame": "world", "move": [0, 0, up * MM]})
        said += f", raised by {up} mm"
    return {"annotation": f"{said}.", "json_desc": cad.round_numbers({"units": "m", "operations": parts})}


def _graph(is_directed: bool, names: list[str], edges: list[tuple[int, int, str]]) -> Graph:
    ids = [f"n{place + 1}" for place in range(len(names))]
    return Graph(
        is_directed,
        dict(zip(ids, names, strict=True)),
        tuple((ids[one], ids[other], label) for one, other, label in edges),
    )


def _row(kind: str, graph_type: str, said: str, graph: Graph) -> dict[str, str]:
    return {"kind": kind, "graph_type": graph_type, "input": said, "output": graphs.write(graph)}


def _machine(chance: random.Random, kind: str) -> dict[str, str]:
    names = chance.sample(STATES, chance.choice((2, 3)))
    edges = [(place, (place + 1) % len(names), event) for place, event in enumerate(chance.sample(EVENTS, len(names)))]
    if kind == "code":
        said = "table = {" + ", ".join(f"({names[a]!r}, {e!r}): {names[b]!r}" for a, b, e in edges) + "}"
    else:
        said = f"A machine with {len(names)} states. " + " ".join(
            f"On {e} it goes from {names[a]} to {names[b]}." for a, b, e in edges
        )
    return _row(kind, "FSM", said, _graph(True, names, edges))


def _flow(chance: random.Random, kind: str) -> dict[str, str]:
    names = chance.sample(STEPS, chance.choice((3, 4)))
    edges = [(place, place + 1, "") for place in range(len(names) - 1)]
    if kind == "code":
        said = "def work():\n" + "\n".join(f"    {name.replace(' ', '_')}()" for name in names)
    else:
        said = f"First {names[0]}, " + ", ".join(f"then {name}" for name in names[1:]) + "."
    return _row(kind, "flowchart", said, _graph(True, names, edges))


def _network(chance: random.Random, kind: str) -> dict[str, str]:
    middle, *others = chance.sample(PLACES, chance.choice((3, 4)))
    edges = [(0, place + 1, "") for place in range(len(others))]
    if kind == "code":
        said = "\n".join(f"connect({middle!r}, {other!r})" for other in others)
    else:
        said = f"A {middle} that is connected with {' and '.join(others)}."
    return _row(kind, "network", said, _graph(False, [middle, *others], edges))


def texts() -> Iterator[tuple[Path, str]]:
    """Each file with what it must hold."""
    for name, rows in (("cad", cad_rows()), ("dot", dot_rows())):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        yield recipe.FOLDER / name / recipe.EXAMPLES, lines


if __name__ == "__main__":
    for path, text in texts():
        path.write_text(text, encoding="utf-8")
