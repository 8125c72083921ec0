"""How far written documents agree with those that were wanted: F1 of structure, of nodes and edges, bodies, copies."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lace_lora import cad
from lace_lora.graphs import Graph
from lace_lora.recipe import Rules
from lace_lora.validate import Validator


@dataclass(frozen=True)
class Agreement:
    """precision: how much of what was written was wanted; recall: how much of what was wanted was written. 0 to 1."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def structure(found: Any, wanted: Any, rules: Rules) -> Agreement:
    """Structural agreement of two JSON documents, whatever the order of their operations.

    A document is taken as a multiset of (canonical path, rounded value): the path is that of a value within its
    operation, after the operation's kind, such as ("sketch", "size[0]", 0.04); where an operation stands in the list
    does not count. Each operation weighs 1, shared equally by its values, so that long ones count no more than short
    ones: one of two operations left out gives P = 1, R = 0.5, F1 = 0.667. Without operations the whole document is one.
    """
    one, other = _weights(found, rules), _weights(wanted, rules)
    return _agreement(one, other)


def labelled(found: Graph, wanted: Graph) -> tuple[Agreement, Agreement]:
    """Agreement of two graphs in their nodes and in their edges, by labels: what the ids are called does not count.

    Nodes are a multiset of labels, edges one of (label of the start, label of the end, own label); in a graph without
    directions both ends are alike. A digraph and a graph have no edge in common. A graph without edges that was wanted
    so agrees fully.
    """
    nodes = _agreement(Counter(found.labels.values()), Counter(wanted.labels.values()))
    marked = [Counter((graph.is_directed, *edge) for edge in graph.named_edges()) for graph in (found, wanted)]
    edges = _agreement(marked[0], marked[1])
    return nodes, edges


def is_same_shape(found: Graph, wanted: Graph) -> bool:
    """Whether two graphs are the same one when nothing is said of labels and ids (isomorphic, as networkx finds).

    It tells a graph that has wrong words from one that is wrong itself.
    """
    import networkx  # comes with torch

    made = []
    for graph in (found, wanted):
        drawn = networkx.MultiDiGraph() if graph.is_directed else networkx.MultiGraph()
        drawn.add_nodes_from(graph.labels)
        drawn.add_edges_from((start, end) for start, end, _ in graph.edges)
        made.append(drawn)
    alike = found.is_directed == wanted.is_directed and networkx.faster_could_be_isomorphic(*made)
    return alike and bool(networkx.is_isomorphic(*made))


@dataclass(frozen=True)
class Answer:
    """What was written for one pair, and what was wanted.

    graph_type  the type that scores are told apart by; "" where there is none
    attempts    how often the model was asked
    """

    asked: str
    text: str
    wanted: str
    kind: str = ""
    graph_type: str = ""
    attempts: int = 1


def marks(answer: Answer, validator: Validator, learnt: Iterable[str] = ()) -> dict[str, float]:
    """Every measure of one answer, 0 to 1, by its id.

    valid, schema_valid        as the validator says
    structural_f1              see `structure`; 0 for what cannot be read
    geometric                  1 where volume and box are those of the wanted body, within 1 %
    node_f1, edge_f1           see `labelled`
    shape                      1 where the graph without its words is the wanted one, see `is_same_shape`
    exact                      1 where it is the wanted document itself
    copy                       1 where it is one of `learnt` (texts in canonical form) and not the wanted one
    """
    checked, wanted = validator.check(answer.text), validator.check(answer.wanted).document
    found = validator.finished(checked.document)
    written, right = validator.written(checked.document), validator.written(wanted)
    told = {
        "valid": float(checked.is_valid),
        "schema_valid": float(checked.is_schema_valid),
        "exact": float(bool(written) and written == right),
        "copy": float(written in frozenset(learnt) and written != right),
    }
    if validator.recipe.document == "dot":
        if found is None or wanted is None:
            return told | {"shape": 0.0, "node_f1": 0.0, "edge_f1": 0.0}
        nodes, edges = labelled(found, wanted)
        return told | {"shape": float(is_same_shape(found, wanted)), "node_f1": nodes.f1, "edge_f1": edges.f1}
    meant = validator.finished(wanted)
    made, body = cad.body_of(found), cad.body_of(meant)
    told["structural_f1"] = structure(found, meant, validator.recipe.rules).f1 if found is not None else 0.0
    if body is not None:
        told["geometric"] = float(made is not None and made.is_like(body))
    return told


def text_marks(answer: Answer) -> dict[str, float]:
    """Measures of an answer in words, of the way back: F1 of its words, and whether it is the wanted one itself."""
    words = [Counter(text.casefold().split()) for text in (answer.text, answer.wanted)]
    return {"word_f1": _agreement(words[0], words[1]).f1, "exact": float(answer.text.strip() == answer.wanted.strip())}


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over the answers that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _weights(document: Any, rules: Rules) -> Mapping[Any, float]:
    parts = document.get(rules.parts_in) if isinstance(document, dict) else None
    parts = parts if isinstance(parts, list) else [document]
    weights: dict[Any, float] = defaultdict(float)
    for part in parts:
        kind = part.get(rules.kind_of_part) if isinstance(part, dict) else ""
        found = cad.leaves(cad.round_numbers(part, rules.decimals))
        for path, value in found:
            weights[(str(kind), path, repr(value))] += 1 / len(found)
    return weights


def _agreement(found: Mapping[Any, float], wanted: Mapping[Any, float]) -> Agreement:
    if not found and not wanted:
        return Agreement(1.0, 1.0)
    common = sum(min(weight, wanted[one]) for one, weight in found.items() if one in wanted)
    all_found, all_wanted = sum(found.values()), sum(wanted.values())
    return Agreement(common / all_found if all_found else 0.0, common / all_wanted if all_wanted else 0.0)
