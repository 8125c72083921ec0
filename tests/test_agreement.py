"""Measures against numbers reckoned by hand and against networkx (J8, D7, D9, D12)."""

import networkx
import pytest

from lace_lora import agreement, cad, graphs, recipe, validate
from lace_lora.agreement import Answer
from tests import drawn_pairs
from tests.test_validate import EXTRUSION, GOOD, SKETCH

RULES = recipe.read("cad").rules
HOLE = {"op": "hole", "profile": "A", "diameter": 0.01, "depth": 0.005, "at": [0, 0]}


@pytest.fixture(scope="module")
def checks():
    """Both validators by document."""
    return {name: validate.validator(recipe.read(name)) for name in ("cad", "dot")}


def test_gold_against_itself_is_one():
    """J8: for every pair that ships."""
    for row in drawn_pairs.cad_rows():
        assert agreement.structure(row["json_desc"], row["json_desc"], RULES).f1 == pytest.approx(1.0)


def test_one_operation_of_two_left_out():
    """J8: P = 1, R = 0.5, F1 = 2/3, also where the operations are of different length."""
    for kept in (SKETCH, EXTRUSION):
        found = agreement.structure(GOOD | {"operations": [kept]}, GOOD, RULES)
        assert (found.precision, found.recall, found.f1) == pytest.approx((1.0, 0.5, 2 / 3))


def test_order_does_not_count_and_rounding_forgives_a_billionth():
    """J8, J11."""
    shuffled = {"operations": [EXTRUSION | {"depth": 0.005 + 1e-9}, SKETCH], "units": "m"}
    assert agreement.structure(shuffled, GOOD, RULES).f1 == pytest.approx(1.0)


def test_one_wrong_value_costs_its_share():
    """J8: one of three values of one of two operations: a sixth."""
    wrong = GOOD | {"operations": [SKETCH, EXTRUSION | {"depth": 0.006}]}
    assert agreement.structure(wrong, GOOD, RULES).f1 == pytest.approx(1 - 1 / 6)


def test_a_document_without_operations_is_one_part():
    """J8."""
    assert agreement.structure({"a": 1, "b": 2}, {"a": 1, "b": 3}, RULES).f1 == pytest.approx(0.5)
    assert agreement.structure({"operations": []}, {"operations": []}, RULES).f1 == 1.0


def test_a_body_is_reckoned_from_its_operations():
    """J8: 40 × 20 × 5 mm, less a hole of 10 mm, raised by 10 mm."""
    moved = {"op": "transform", "profile": "A", "frame": "world", "move": [0, 0, 0.01]}
    body = cad.body_of(GOOD | {"operations": [SKETCH, EXTRUSION, HOLE, moved]})
    assert body.volume == pytest.approx(0.04 * 0.02 * 0.005 - 3.14159265 / 4 * 0.01**2 * 0.005)
    assert body.low == pytest.approx((-0.02, -0.01, 0.01)) and body.high == pytest.approx((0.02, 0.01, 0.015))
    assert cad.body_of(GOOD | {"operations": [SKETCH]}) is None and cad.body_of({"operations": [{}]}) is None


@pytest.mark.parametrize(("depth", "is_alike"), [(0.00501, True), (0.0052, False), (-0.005, False)])
def test_bodies_are_alike_within_a_hundredth(depth, is_alike):
    """J8: a body drawn out to the other side is another one."""
    other = cad.body_of(GOOD | {"operations": [SKETCH, EXTRUSION | {"depth": depth}]})
    assert cad.body_of(GOOD).is_like(other) is is_alike


def test_renamed_ids_and_equal_labels_agree_fully():
    """D7: networkx calls them isomorphic, and both F1 are 1."""
    one = graphs.read('digraph { a [label="x"]; b [label="y"]; a -> b [label="z"]; b -> a }')
    other = graphs.read('digraph { q [label="y"]; p [label="x"]; q -> p; p -> q [label="z"] }')

    def labelled(graph):
        found = networkx.MultiDiGraph()
        for name, label in graph.labels.items():
            found.add_node(name, label=label)
        for start, end, label in graph.edges:
            found.add_edge(start, end, label=label)
        return found

    assert networkx.is_isomorphic(
        labelled(one), labelled(other), networkx.algorithms.isomorphism.categorical_node_match("label", None),
        networkx.algorithms.isomorphism.categorical_multiedge_match("label", None),
    )  # fmt: skip
    assert [one_of.f1 for one_of in agreement.labelled(one, other)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("found", "nodes", "edges"),
    [
        ("digraph { x -> y; y -> z }", 1.0, 1.0),
        ("digraph { x -> y; z }", 1.0, 2 / 3),
        ("digraph { x -> y }", 0.8, 2 / 3),
        ("digraph { y -> x; z -> y }", 1.0, 0.0),
        ("graph { x -- y; y -- z }", 1.0, 0.0),
        ("digraph { q }", 0.0, 0.0),
    ],
)
def test_nodes_and_edges_are_counted_by_label(found, nodes, edges):
    """D7: against x → y → z."""
    wanted = graphs.read("digraph { x -> y; y -> z }")
    assert [one.f1 for one in agreement.labelled(graphs.read(found), wanted)] == pytest.approx([nodes, edges])


@pytest.mark.parametrize(
    ("found", "is_same"),
    [
        ("digraph { q -> p; p -> r }", True),
        ("digraph { p -> q; r -> q }", False),
        ("digraph { p -> q; q -> r; s }", False),
        ("digraph { p -> q; q -> r; q -> r }", False),
        ("graph { p -- q; q -- r }", False),
    ],
)
def test_a_shape_is_that_of_the_graph_without_its_words(found, is_same):
    """D7: against x → y → z; what was wrong is told apart: the words, or the graph."""
    assert agreement.is_same_shape(graphs.read(found), graphs.read("digraph { x -> y; y -> z }")) is is_same


def test_edges_without_a_direction_are_alike_both_ways():
    """D7."""
    assert agreement.labelled(graphs.read("graph { a -- b }"), graphs.read("graph { b -- a }"))[1].f1 == 1.0


def test_the_marks_of_an_answer(checks):
    """J8, D9: right, unreadable, and a copy of what was learnt."""
    gold = checks["cad"].written(GOOD)
    learnt = checks["cad"].written(GOOD | {"operations": [SKETCH, EXTRUSION, HOLE]})
    right = agreement.marks(Answer("", gold, gold), checks["cad"], [gold, learnt])
    assert right == {"valid": 1, "schema_valid": 1, "exact": 1, "copy": 0, "structural_f1": 1, "geometric": 1}
    wrong = agreement.marks(Answer("", "{", gold), checks["cad"])
    assert set(wrong.values()) == {0.0} and set(wrong) == set(right)
    assert agreement.marks(Answer("", learnt, gold), checks["cad"], [learnt])["copy"] == 1


def test_the_marks_of_a_graph_and_of_words(checks):
    """D6, D7, J13."""
    found = agreement.marks(Answer("", "graph { a -> b }", "digraph { a -> b }"), checks["dot"])
    assert (found["valid"], found["schema_valid"], found["node_f1"], found["edge_f1"]) == (0, 1, 1, 0)
    assert found["shape"] == 0
    assert agreement.marks(Answer("", "x", "digraph { a }"), checks["dot"])["node_f1"] == 0
    assert agreement.text_marks(Answer("", "A thin plate", "a plate"))["word_f1"] == pytest.approx(0.8)


def test_means_are_over_the_answers_that_have_a_measure():
    """D12."""
    assert agreement.means([{"a": 1.0}, {"a": 0.0, "b": 0.5}]) == {"a": 0.5, "b": 0.5}
