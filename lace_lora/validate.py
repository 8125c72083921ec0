"""Is a document right? Rules for CAD JSON and DOT, each issue with a code and the place in the document.

A recipe names the rules that hold for it; a rule of your own is a plain function handed to `Validator.with_rules`.
Nothing here loads torch or a model.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from lace_lora import cad, graphs
from lace_lora.declarations import nearest
from lace_lora.errors import MachineError, SettingsError
from lace_lora.graphs import Graph
from lace_lora.recipe import Recipe


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong: its code (the same for ever), where (a JSON path such as $.operations[1].depth), why."""

    code: str
    path: str
    says: str

    def __str__(self) -> str:
        return f"{self.path}: {self.says} ({self.code})"


@dataclass(frozen=True)
class Checked:
    """A text that was looked at: the document in it (None where there is none), and what is wrong with it."""

    text: str
    document: Any
    issues: tuple[Issue, ...]

    @property
    def is_valid(self) -> bool:
        """Whether nothing is wrong."""
        return not self.issues

    @property
    def is_schema_valid(self) -> bool:
        """Whether it is a document of the right shape, whatever rules beyond that say."""
        return not {issue.code for issue in self.issues} & {"json", "schema", "missing_field", "dot"}


Rule = Callable[[Any, Recipe], Iterable[Issue]]


@dataclass(frozen=True)
class Validator:
    """The rules of one recipe, and rules of your own after them."""

    recipe: Recipe
    rules: tuple[Rule, ...]
    reader: Callable[[str], Any]

    def check(self, text: str) -> Checked:
        """Look at a text: everything that is wrong with it, once each, in the order of the rules."""
        try:
            document = self.reader(text)
        except ValueError as error:
            code = "json" if self.recipe.document == "json" else "dot"
            kind = "JSON" if code == "json" else "DOT"
            return Checked(text, None, (Issue(code, "$", f"this is no {kind}: {error}"),))
        return Checked(text, document, self.issues_of(document))

    def issues_of(self, document: Any) -> tuple[Issue, ...]:
        """The same for a document that is read already."""
        found = [issue for rule in self.rules for issue in rule(document, self.recipe)]
        # A rule says better what is wrong at a place than the schema, or than Graphviz, which may refuse the same.
        told = {issue.path for issue in found if issue.code != "schema"}
        kept = [issue for issue in found if issue.code != "schema" or issue.path not in told]
        kept = [issue for issue in kept if issue.code != "graphviz"] or kept
        return tuple(dict.fromkeys(kept))

    def with_rules(self, *rules: Rule) -> "Validator":
        """The same with rules of your own: functions of a document and the recipe that yield Issues."""
        return replace(self, rules=(*self.rules, *rules))

    def finished(self, document: Any) -> Any:
        """A document as it is handed out: of JSON, numbers rounded and operations in order; a graph as it is."""
        rules = self.recipe.rules
        if self.recipe.document == "dot" or document is None:
            return document
        return cad.canonical(document, rules.order, rules.parts_in, rules.kind_of_part, rules.decimals)

    def put_right(self, document: Any) -> Checked:
        """A document that was read, in the one form in which it is handed out, and what is still wrong with it then."""
        text = self.written(document)
        again = replace(document, text=text) if isinstance(document, Graph) else self.reader(text)
        return Checked(text, again, self.issues_of(again))

    def written(self, document: Any) -> str:
        """A document as text, in the one form that is learnt and compared."""
        if document is None:
            return ""
        if isinstance(document, Graph):
            return graphs.write(document)
        return cad.write(self.finished(document), self.recipe.rules.decimals)


def validator(recipe: Recipe) -> Validator:
    """The validator of a recipe. Raises SettingsError for a rule that there is not, with the nearest one."""
    for name in recipe.rules.check:
        if name not in RULES:
            raise SettingsError(
                f"The recipe {recipe.name} checks {name!r}, and there is no such rule{nearest(name, list(RULES))} "
                f"There are: {', '.join(RULES)}. A rule of your own is a function: validator.with_rules(rule)."
            )
    reader = cad.read if recipe.document == "json" else graphs.read
    return Validator(recipe, tuple(RULES[name] for name in recipe.rules.check), reader)


# -- CAD: JSON documents --


def _is_json(document: Any, recipe: Recipe) -> Iterator[Issue]:
    if not isinstance(document, dict):
        yield Issue("json", "$", "a document is an object in braces { }")


def _fits_schema(document: Any, recipe: Recipe) -> Iterator[Issue]:
    """What the recipe's schema forbids; what is missing has a code of its own."""
    if not recipe.schema_:
        return
    for error in _schema_validator(recipe).iter_errors(_plain(document)):
        yield from _told(error)


def _numbers_are_plain(document: Any, recipe: Recipe) -> Iterator[Issue]:
    for path, number in _numbers(document):
        written = cad.text_of(number)
        if "e" in written.lower() or "n" in written.lower():
            yield Issue("number_format", path, f"{written} must be written in digits")
        elif len(written.partition(".")[2]) > recipe.rules.decimals:
            yield Issue("number_format", path, f"{written} has more than {recipe.rules.decimals} decimals")


def _units_agree(document: Any, recipe: Recipe) -> Iterator[Issue]:
    """Every `units` in the document, wherever it stands."""
    for path, value in _named(document, "units"):
        if value != recipe.rules.units:
            yield Issue("units", path, f"units are {value!r} but must be {recipe.rules.units!r} everywhere")


def _frames_are_known(document: Any, recipe: Recipe) -> Iterator[Issue]:
    for path, value in _named(document, "frame"):
        if value not in recipe.rules.frames:
            yield Issue("frame", path, f"frame is {value!r} but must be one of {', '.join(recipe.rules.frames)}")


def _parts_are_in_order(document: Any, recipe: Recipe) -> Iterator[Issue]:
    """The first part that comes after one which it should precede."""
    rules = recipe.rules
    place = {name: number for number, name in enumerate(rules.order)}
    furthest, before = -1, ""
    for number, part in enumerate(_parts(document, recipe)):
        kind = str(part.get(rules.kind_of_part))
        here = place.get(kind, len(place))
        if here < furthest:
            yield Issue("order", f"$.{rules.parts_in}[{number}]", f"{kind} must come before {before}")
            return
        furthest, before = here, kind


def _profiles_exist(document: Any, recipe: Recipe) -> Iterator[Issue]:
    """What works on a profile needs a sketch of that name."""
    rules = recipe.rules
    parts = list(_parts(document, recipe))
    drawn = {str(part.get("profile")) for part in parts if part.get(rules.kind_of_part) == "sketch"}
    for number, part in enumerate(parts):
        profile = part.get("profile")
        if profile is not None and str(profile) not in drawn:
            path = f"$.{rules.parts_in}[{number}].profile"
            yield Issue("profile", path, f"there is no sketch of the profile {profile}")


def _sizes_are_reasonable(document: Any, recipe: Recipe) -> Iterator[Issue]:
    """Sizes are above nothing and below the recipe's largest; places may be anything up to that."""
    rules = recipe.rules
    for path, number in _numbers(document):
        name = path.rpartition(".")[2].partition("[")[0]
        must_be_more = name in ("size", "depth", "diameter", "radius")
        if (must_be_more and number <= 0) or abs(number) > rules.largest:
            low = "more than 0" if must_be_more else f"{-rules.largest:g}"
            yield Issue(
                "reasonable",
                path,
                f"{name} is {cad.text_of(number)} but must be {low} to {rules.largest:g} {rules.units}",
            )


# -- DOT: graphs --


def _is_dot(document: Any, recipe: Recipe) -> Iterator[Issue]:
    if not isinstance(document, Graph):
        yield Issue("dot", "$", "there is no graph")


def _edges_suit_the_graph(document: Any, recipe: Recipe) -> Iterator[Issue]:
    """pydot and Graphviz read the wrong one differently, so the text itself is looked at."""
    right, kind = ("->", "digraph") if document.is_directed else ("--", "graph")
    for number, sign in enumerate(graphs.operators(document.text)):
        if sign != right:
            yield Issue("edge_operator", f"$.edges[{number}]", f"edges of a {kind} are written {right}, not {sign}")


def _has_nodes(document: Any, recipe: Recipe) -> Iterator[Issue]:
    if not document.labels:
        yield Issue("empty", "$.nodes", "the graph has no nodes")


def _graphviz_takes_it(document: Any, recipe: Recipe) -> Iterator[Issue]:
    """Only where Graphviz is installed."""
    if fault := graphs.graphviz_fault(document.text):
        yield Issue("graphviz", "$", f"Graphviz refuses it: {fault}")


RULES: dict[str, Rule] = {
    "json": _is_json,
    "schema": _fits_schema,
    "number_format": _numbers_are_plain,
    "units": _units_agree,
    "frame": _frames_are_known,
    "order": _parts_are_in_order,
    "profile": _profiles_exist,
    "reasonable": _sizes_are_reasonable,
    "dot": _is_dot,
    "edge_operator": _edges_suit_the_graph,
    "empty": _has_nodes,
    "graphviz": _graphviz_takes_it,
}


# -- inside --


def _schema_validator(recipe: Recipe) -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise MachineError(
            "Checking CAD documents needs the package jsonschema, which is not installed. "
            "Type: pip install 'lace-lora[text]'"
        ) from error
    try:
        return _compiled(json.dumps(recipe.schema_))
    except jsonschema.SchemaError as error:
        raise SettingsError(f"{recipe.where / 'schema.json'} is no JSON schema: {error.message}.") from error


@lru_cache(maxsize=8)
def _compiled(schema: str) -> Any:
    """Looking a schema over takes longer than checking a document by it."""
    import jsonschema

    read = json.loads(schema)
    kind = jsonschema.validators.validator_for(read, default=jsonschema.Draft202012Validator)
    kind.check_schema(read)
    return kind(read)


def _told(error: Any) -> Iterator[Issue]:
    """What jsonschema found; of several kinds of part, what is wrong with the kind that it says it is."""
    branches: dict[int, list[Any]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)
    meant = [found for found in branches.values() if not any(_denies_the_kind(inner) for inner in found)]
    if error.validator in ("anyOf", "oneOf") and len(meant) == 1:
        for inner in meant[0]:
            yield from _told(inner)
        return
    path = error.json_path
    if error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield Issue("missing_field", f"{path}.{name}", f"{name} is missing")
        return
    if error.validator in ("anyOf", "oneOf"):
        yield Issue("schema", path, f"{json.dumps(error.instance)[:80]} is none of the kinds that the schema knows")
        return
    yield Issue("schema", path, error.message[:200])


def _denies_the_kind(error: Any) -> bool:
    return error.validator == "const"


def _plain(value: Any) -> Any:
    """A document without what only its numbers know, and with whole numbers as such."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, cad.Literal):
        return int(value) if value.is_integer() else float(value)
    return value


def _numbers(value: Any) -> list[tuple[str, float]]:
    found = ((path, leaf) for path, leaf in cad.leaves(value, "$") if not isinstance(leaf, bool))
    return [(path, leaf) for path, leaf in found if isinstance(leaf, int | float)]


def _named(value: Any, name: str, path: str = "$") -> Iterator[tuple[str, Any]]:
    """Every value of that name, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == name:
                yield f"{path}.{key}", inner
            else:
                yield from _named(inner, name, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _named(inner, name, f"{path}[{number}]")


def _parts(document: Any, recipe: Recipe) -> Sequence[dict[str, Any]]:
    parts = document.get(recipe.rules.parts_in) if isinstance(document, dict) else None
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
