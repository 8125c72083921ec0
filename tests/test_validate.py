"""One broken document per rule gives exactly that code and path; rules of one's own (J7, J10, J11, J15, D6)."""

import json
import shutil

import pytest

from lace_lora import cad, graphs, recipe, validate
from lace_lora.errors import MachineError, SettingsError
from lace_lora.validate import Issue

SKETCH = {"op": "sketch", "profile": "A", "frame": "world", "shape": "rectangle", "size": [0.04, 0.02], "at": [0, 0]}
EXTRUSION = {"op": "extrusion", "profile": "A", "depth": 0.005}
GOOD = {"units": "m", "operations": [SKETCH, EXTRUSION]}


@pytest.fixture(scope="module")
def checks():
    """The CAD validator."""
    return validate.validator(recipe.read("cad"))


@pytest.fixture(scope="module")
def dot():
    """The DOT validator."""
    return validate.validator(recipe.read("dot"))


def changed(path, value):
    """GOOD as text with one value changed, by its path; None takes it away."""
    document = json.loads(json.dumps(GOOD))
    *above, last = path
    inner = document
    for step in above:
        inner = inner[step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(document)


def test_a_right_document_has_no_issues(checks):
    """J7."""
    assert checks.check(json.dumps(GOOD)).is_valid


BROKEN = {
    "json": ("{", ("json", "$")),
    "no object": ("[1]", ("json", "$")),
    "form": (changed(("operations", 0, "at"), [0]), ("schema", "$.operations[0].at")),
    "kind": (changed(("operations", 1, "op"), "melt"), ("schema", "$.operations[1]")),
    "missing": (changed(("operations", 1, "depth"), None), ("missing_field", "$.operations[1].depth")),
    "missing above": (changed(("units",), None), ("missing_field", "$.units")),
    "units": (changed(("units",), "mm"), ("units", "$.units")),
    "frame": (changed(("operations", 0, "frame"), "moon"), ("frame", "$.operations[0].frame")),
    "order": (changed(("operations",), [EXTRUSION, SKETCH]), ("order", "$.operations[1]")),
    "exponent": (json.dumps(GOOD).replace("0.005", "5e-3"), ("number_format", "$.operations[1].depth")),
    "decimals": (json.dumps(GOOD).replace("0.005", "0.0050001"), ("number_format", "$.operations[1].depth")),
    "no number": (json.dumps(GOOD).replace("0.005", "NaN"), ("number_format", "$.operations[1].depth")),
    "profile": (changed(("operations", 1, "profile"), "B"), ("profile", "$.operations[1].profile")),
    "too large": (changed(("operations", 1, "depth"), 11), ("reasonable", "$.operations[1].depth")),
    "nothing": (changed(("operations", 0, "size"), [0, 1]), ("reasonable", "$.operations[0].size[0]")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_document_a_rule_gives_that_code_and_path(checks, name):
    """J7."""
    text, wanted = BROKEN[name]
    assert [(issue.code, issue.path) for issue in checks.check(text).issues] == [wanted]


def test_every_rule_of_the_recipe_is_broken_above():
    """J7."""
    rules = set(recipe.read("cad").rules.check)
    assert rules <= {code for _, (code, _) in BROKEN.values()}


def test_an_issue_is_a_sentence_with_its_place():
    """J7."""
    assert str(Issue("units", "$.units", "units are 'mm'")) == "$.units: units are 'mm' (units)"


def test_a_rule_of_ones_own_is_a_plain_function(checks):
    """J15."""

    def thin(document, found):
        for number, part in enumerate(document["operations"]):
            if part["op"] == "extrusion" and part["depth"] < 0.01:
                yield Issue("too_thin", f"$.operations[{number}].depth", "thinner than 10 mm")

    stricter = checks.with_rules(thin)
    assert [issue.code for issue in stricter.check(json.dumps(GOOD)).issues] == ["too_thin"]
    assert checks.check(json.dumps(GOOD)).is_valid


def test_an_operation_of_ones_own_is_a_line_of_the_schema(tmp_path):
    """J15: nothing of the program is touched."""
    shutil.copytree(recipe.FOLDER / "cad", tmp_path / "mine")
    schema = json.loads((tmp_path / "mine/schema.json").read_text(encoding="utf-8"))
    schema["$defs"]["chamfer"] = {
        "type": "object", "additionalProperties": False, "required": ["op", "profile", "size"],
        "properties": {"op": {"const": "chamfer"}, "profile": {"$ref": "#/$defs/profile"}, "size": {"type": "number"}},
    }  # fmt: skip
    schema["properties"]["operations"]["items"]["anyOf"].append({"$ref": "#/$defs/chamfer"})
    (tmp_path / "mine/schema.json").write_text(json.dumps(schema), encoding="utf-8")
    new = json.dumps(GOOD | {"operations": [SKETCH, EXTRUSION, {"op": "chamfer", "profile": "A", "size": 0.001}]})
    mine = validate.validator(recipe.read(tmp_path / "mine"))
    assert mine.check(new).is_valid and not validate.validator(recipe.read("cad")).check(new).is_valid


def test_an_unknown_rule_and_a_wrong_schema_are_told(tmp_path):
    """J15."""
    with pytest.raises(SettingsError, match="'unit', and there is no such rule; did you mean units"):
        validate.validator(recipe.read("cad", {"rules.check": ["unit"]}))
    shutil.copytree(recipe.FOLDER / "cad", tmp_path / "mine")
    (tmp_path / "mine/schema.json").write_text('{"type": "thing"}', encoding="utf-8")
    with pytest.raises(SettingsError, match="schema.json is no JSON schema"):
        validate.validator(recipe.read(tmp_path / "mine")).check(json.dumps(GOOD))


def test_a_missing_package_is_named_with_what_to_type(checks, dot, monkeypatch):
    """J17: checking does not work without these, and the rest of the package does."""
    import sys

    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MachineError, match=r"jsonschema.*pip install 'lace-lora\[text\]'"):
        checks.check(json.dumps(GOOD))
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(MachineError, match=r"pydot.*pip install 'lace-lora\[text\]'"):
        dot.check("digraph { a }")


# -- numbers and order --


@pytest.mark.parametrize(
    ("number", "text"),
    [(1e-7, "0"), (0.1 + 0.2, "0.3"), (1e-6, "0.000001"), (-0.0, "0"), (2.0, "2"), (1e9, "1000000000"), (-1.5, "-1.5")],
)
def test_numbers_are_written_in_digits(number, text):
    """J10."""
    assert cad.number_text(number) == text and cad.write({"x": number}) == f'{{"x":{text}}}'
    assert cad.round_numbers([number])[0] == float(text)


def test_what_is_no_number_stays():
    """J10."""
    assert cad.round_numbers({"a": [True, None, "1e-7"]}) == {"a": [True, None, "1e-7"]}


def test_operations_are_brought_into_order_and_stay_as_they_are_within_a_class(checks):
    """J11."""
    parts = [
        {"op": "transform", "id": 1}, {"op": "extrusion", "id": 2}, {"op": "sketch", "id": 3},
        {"op": "melt", "id": 4}, {"op": "sketch", "id": 5}, {"op": "extrusion", "id": 6},
    ]  # fmt: skip
    found = checks.finished({"operations": parts})["operations"]
    assert [part["id"] for part in found] == [3, 5, 2, 6, 1, 4]
    assert checks.finished({"operations": found})["operations"] == found


def test_what_is_finished_keeps_the_rules_of_order_and_number(checks):
    """J10, J11."""
    text = checks.written({"units": "m", "operations": [EXTRUSION | {"depth": 5.00000001e-3}, SKETCH]})
    assert checks.check(text).is_valid and '"depth":0.005' in text


# -- DOT --


@pytest.mark.parametrize(
    ("text", "code", "path"),
    [
        ("digraph { a -> ", "dot", "$"),
        ("a -> b", "dot", "$"),
        ("", "dot", "$"),
        ("graph { a } graph { b }", "dot", "$"),
        ("digraph { a -> b; c -- d }", "edge_operator", "$.edges[1]"),
        ("graph { a -> b }", "edge_operator", "$.edges[0]"),
        ("digraph { }", "empty", "$.nodes"),
    ],
)
def test_one_broken_graph_a_rule_gives_that_code_and_path(dot, text, code, path):
    """D6."""
    assert [(issue.code, issue.path) for issue in dot.check(text).issues] == [(code, path)]


@pytest.mark.parametrize(
    "text",
    [
        'digraph { a [label="x -- y"]; a -> b }',
        "graph { a -- b /* -> */ // -> \n }",
        "strict digraph G { rankdir=LR; node [shape=box]; a -> b -> c [label=x]; subgraph s { d } }",
    ],
)
def test_right_graphs_have_no_issues(dot, text):
    """D6: an operator in quotes or in a comment is none."""
    assert dot.check(text).issues == ()


def test_a_graph_is_read_with_its_groups_and_labels():
    """D6."""
    found = graphs.read(
        'digraph { "a b" [label="A \\"x\\""]; "a b" -> {c d} [label=e]; c:port -> f; node [shape=box] }'
    )
    assert found.labels == {"a b": 'A "x"', "c": "c", "d": "d", "f": "f"}
    assert set(found.edges) == {("a b", "c", "e"), ("a b", "d", "e"), ("c", "f", "")}
    again = graphs.read(graphs.write(found))
    assert list(again.labels) == ["n1", "n2", "n3", "n4"] and list(again.labels.values()) == list(found.labels.values())
    assert again.named_edges() == found.named_edges() and graphs.write(again) == graphs.write(found)


def test_what_a_graph_says_beside_labels_is_told_and_not_kept():
    """D6: so that a file of pairs can say what is not learnt of it."""
    found = graphs.read(
        'digraph { rankdir=LR; a [shape=box, label=x]; subgraph s { label="g"; b } a -> b [color=red] }'
    )
    assert found.unkept == {"rankdir", "shape", "subgraph", "color"}
    assert graphs.read(graphs.write(found)).unkept == frozenset()


@pytest.fixture
def dot_program(tmp_path, monkeypatch):
    """A `dot` that refuses graphs with the word wrong, as Graphviz does: a sentence on stderr and exit code 1."""
    program = tmp_path / "dot"
    program.write_text(
        "#!/bin/sh\nif grep -q wrong; then echo 'Error: <stdin>: syntax error in line 1' >&2; exit 1; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    graphs._graphviz.cache_clear()
    yield
    graphs._graphviz.cache_clear()


def test_graphviz_is_asked_where_it_is_installed(dot, dot_program):
    """D6."""
    (issue,) = dot.check("digraph { wrong -> b }").issues
    assert (issue.code, issue.path) == ("graphviz", "$") and "syntax error in line 1" in issue.says
    assert dot.check("digraph { a -> b }").is_valid


def test_without_graphviz_graphs_are_checked_all_the_same(dot, monkeypatch, tmp_path):
    """D6."""
    monkeypatch.setenv("PATH", str(tmp_path))
    graphs._graphviz.cache_clear()
    assert not graphs.has_graphviz() and dot.check("digraph { wrong -> b }").is_valid
    graphs._graphviz.cache_clear()


@pytest.mark.skipif(not graphs.has_graphviz(), reason="Graphviz is not installed here")
def test_the_real_graphviz_takes_what_the_grammar_writes():
    """D6."""
    assert graphs.graphviz_fault('digraph G {\n  n1 [label="a b, c."];\n  n1 -> n2 [label="x"];\n}') is None
    assert "syntax error" in (graphs.graphviz_fault("digraph { a -> ") or "")
