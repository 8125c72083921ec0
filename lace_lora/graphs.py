"""Graphs in the DOT language: read by pydot, held as nodes and edges by label, checked by Graphviz where it is.

Text in, plain values out; nothing is drawn.
"""

import contextlib
import io
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lace_lora.errors import MachineError

GRAPHVIZ_SECONDS = 10
DEFAULTS = ("node", "edge", "graph")  # statements that set attributes for what follows; pydot lists them as nodes
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|^#[^\n]*|<[^<>\n]*>(?=\s*[,\];])', re.S | re.M)
_OPERATOR = re.compile(r"->|--")


@dataclass(frozen=True)
class Graph:
    """One graph.

    is_directed  digraph, or graph
    labels       of each node by its id; the id itself where it has no label
    edges        (from, to, label) by ids; the label is "" where there is none
    text         as it was written
    unkept       names of what else is said in it and not held here, such as shape or subgraph
    """

    is_directed: bool
    labels: dict[str, str]
    edges: tuple[tuple[str, str, str], ...]
    text: str = field(default="", compare=False)
    unkept: frozenset[str] = field(default=frozenset(), compare=False)

    def named_edges(self) -> list[tuple[str, str, str]]:
        """The edges by their nodes' labels; without a direction, both ends in the order of the alphabet."""
        found = []
        for start, end, label in self.edges:
            ends = (self.labels[start], self.labels[end])
            first, last = ends if self.is_directed else sorted(ends)
            found.append((first, last, label))
        return found


def read(text: str) -> Graph:
    """A graph from DOT. Raises ValueError where pydot cannot read one, or reads several; MachineError without pydot."""
    found = _parsed(text)
    if len(found) != 1:
        raise ValueError(f"one graph is wanted, and there are {len(found)}")
    graph = found[0]
    labels: dict[str, str] = {}
    edges: list[tuple[str, str, str]] = []
    unkept: set[str] = set()
    _collect(graph, labels, edges, unkept)
    return Graph(graph.get_type() == "digraph", labels, tuple(edges), text, frozenset(unkept))


def operators(text: str) -> list[str]:
    """The edge operators of a text in their order, without those in quotes and comments."""
    return _OPERATOR.findall(_QUOTED.sub(" ", text))


def graphviz_fault(text: str) -> str | None:
    """What Graphviz itself says is wrong, by `dot -Tcanon`; None where nothing is, or where it is not installed."""
    program = _graphviz()
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-Tcanon"], input=text.encode(), capture_output=True, timeout=GRAPHVIZ_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"dot -Tcanon did not answer ({type(error).__name__})"
    said = done.stderr.decode(errors="replace").strip()
    return (said.splitlines()[0] if said else f"exit code {done.returncode}") if done.returncode else None


def has_graphviz() -> bool:
    """Whether `dot` is installed here."""
    return _graphviz() is not None


def write(graph: Graph) -> str:
    """A graph as DOT in one form: nodes n1, n2, … in their order with their labels, then edges."""
    sign = "->" if graph.is_directed else "--"
    names = {name: f"n{number}" for number, name in enumerate(graph.labels, 1)}
    lines = [f'  {names[name]} [label="{_escaped(label)}"];' for name, label in graph.labels.items()]
    for start, end, label in graph.edges:
        named = f' [label="{_escaped(label)}"]' if label else ""
        lines.append(f"  {names[start]} {sign} {names[end]}{named};")
    return "\n".join([f"{'digraph' if graph.is_directed else 'graph'} G {{", *lines, "}"])


@lru_cache(maxsize=1)
def _graphviz() -> str | None:
    return shutil.which("dot")


def _parsed(text: str) -> list[Any]:
    try:
        import pydot
    except ImportError as error:
        raise MachineError(
            "Reading DOT needs the package pydot, which is not installed. Type: pip install 'lace-lora[text]'"
        ) from error
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls its parser by names that this has given up
        try:
            found = pydot.graph_from_dot_data(text)
        except Exception as error:  # its parser raises what it likes on what is no DOT
            raise ValueError(str(error).strip().splitlines()[0] if str(error).strip() else "unreadable") from error
    if not found:
        lines = [line for line in said.getvalue().strip().splitlines() if line.startswith("Expected")]
        raise ValueError(lines[0] if lines else "there is no graph in it")
    return list(found)


def _collect(graph: Any, labels: dict[str, str], edges: list[tuple[str, str, str]], unkept: set[str]) -> None:
    """Nodes and edges of a graph and of all within it, in the order in which they are written."""
    unkept.update(set(graph.get_attributes()) - {"label"})
    for node in graph.get_nodes():
        name = _plain(node.get_name())
        unkept.update(set(node.get_attributes()) - {"label"})
        if name not in DEFAULTS:
            label = node.get_attributes().get("label")
            labels[name] = labels.get(name, name) if label is None else _plain(label)
    for inner in graph.get_subgraphs():
        unkept.add("subgraph")
        _collect(inner, labels, edges, unkept)
    for edge in graph.get_edges():
        unkept.update(set(edge.get_attributes()) - {"label"})
        label = _plain(edge.get_attributes().get("label") or "")
        for start in _ends(edge.get_source(), labels):
            edges += [(start, end, label) for end in _ends(edge.get_destination(), labels)]


def _ends(end: Any, labels: dict[str, str]) -> Iterator[str]:
    """The nodes at one end of an edge: one, or all of a group in braces. A port (n1:p) is left out."""
    if isinstance(end, str):
        name = _plain(end) if end.startswith('"') else end.partition(":")[0]
        names = [name]
    else:
        nodes = end.get("nodes", {}) if hasattr(end, "get") else {}
        names = [_plain(name) for name in nodes if name not in DEFAULTS]
    for name in names:
        labels.setdefault(name, name)
        yield name


def _plain(text: Any) -> str:
    said = str(text).strip()
    return said[1:-1].replace('\\"', '"') if len(said) > 1 and said[0] == said[-1] == '"' else said


def _escaped(text: str) -> str:
    return text.replace('"', '\\"')
