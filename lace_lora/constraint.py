"""Writing under a grammar: what the recipe's schema or grammar does not allow cannot be written at all (xgrammar).

Every repetition is bounded, so that a document always ends: also one that an untrained model writes by chance.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lace_lora.counting import counted
from lace_lora.errors import MachineError, SettingsError, TextError
from lace_lora.recipe import GRAMMAR, SCHEMA, Recipe

PACKAGE = "xgrammar"
# Of a number in a document: at most 999.999999, in digits. xgrammar's own takes any length, and 1e400.
_NUMBER = r'("-"? ("0" | [1-9] [0-9]{0,2}) ("." [0-9]{1,%d})?)'
_WHOLE = r'("-"? ("0" | [1-9] [0-9]{0,5}))'
_TEXT = r'("\"" [^\0-\x1f\"\\]{0,120} "\"")'
_MOST = 16  # items of a list without maxItems


@dataclass(frozen=True)
class Constraint:
    """A grammar made ready for one model's tokens."""

    grammar: str
    compiled: Any

    def processors(self) -> list[Any]:
        """What `model.generate` takes as logits_processor: new ones for each call."""
        import xgrammar.contrib.hf

        return [xgrammar.contrib.hf.LogitsProcessor(self.compiled)]


def grammar_of(recipe: Recipe) -> str:
    """The grammar of a recipe as EBNF; of a JSON schema, bounded. "" where nothing constrains.

    Raises TextError where the schema or grammar cannot be used, MachineError where xgrammar is not installed.
    """
    if recipe.constraint == "none":
        return ""
    xgrammar = _xgrammar()
    source = recipe.schema_ if recipe.constraint == "schema" else recipe.grammar
    if not source:
        raise SettingsError(
            f"The recipe {recipe.name} has constraint {recipe.constraint}, and no such file lies in {recipe.where}. "
            "Put it there, or set constraint none."
        )
    try:
        if isinstance(source, str):
            return str(xgrammar.Grammar.from_ebnf(source))
        found = xgrammar.Grammar.from_json_schema(
            json.dumps(source), any_whitespace=False, separators=(",", ":"), strict_mode=True
        )
        return bounded(str(found), recipe.rules.decimals)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:300]
        raise TextError(f"The {recipe.constraint} in {recipe.where} cannot be used: {first}") from error


def bounded(grammar: str, decimals: int) -> str:
    """xgrammar's grammar of a JSON schema, where numbers, texts and lists end and no control signs are written.

    Its numbers may have any length and an exponent; its texts of at most n signs may hold a tab, which JSON forbids.
    """
    rules = {"basic_number": _NUMBER % max(1, decimals), "basic_integer": _WHOLE, "basic_string": _TEXT}
    for name, body in rules.items():
        grammar = re.sub(rf"^{name} ::= .*$", lambda _, name=name, body=body: f"{name} ::= {body}", grammar, flags=re.M)  # type: ignore[misc]
    grammar = grammar.replace(r"[^\"\\\r\n]", r"[^\0-\x1f\"\\]")
    return re.sub(r"\{(\d+), -1\}", lambda found: f"{{{found[1]}, {int(found[1]) + _MOST}}}", grammar)


def compiled(recipe: Recipe, tokenizer: Any, vocabulary: int, stops: list[int]) -> Constraint | None:
    """The constraint of a recipe for a tokenizer; None where nothing constrains.

    vocabulary  how many tokens the model can write, which may be more than the tokenizer has
    stops       tokens that end an answer
    """
    grammar = grammar_of(recipe)
    if not grammar:
        return None
    xgrammar = _xgrammar()
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=stops)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    return Constraint(grammar, compiler.compile_grammar(xgrammar.Grammar.from_ebnf(grammar)))


def notes(recipe: Recipe, documents: Mapping[int, str]) -> list[str]:
    """What to say, before anything is learnt, of documents that the grammar would not let the model write.

    documents  in canonical form, by the line on which each stands

    Raises what `grammar_of` raises, but MachineError: training needs no xgrammar.
    """
    try:
        grammar = grammar_of(recipe)
        xgrammar = _xgrammar()
    except MachineError as error:
        return [str(error)]
    if not grammar:
        return []
    # A tokenizer of single bytes, so that a text is taken or refused as it is.
    info = xgrammar.TokenizerInfo([bytes([number]) for number in range(256)], stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_grammar(xgrammar.Grammar.from_ebnf(grammar))
    refused = []
    for line, document in documents.items():
        matcher = xgrammar.GrammarMatcher(compiled)
        if not (matcher.accept_string(document) and matcher.is_completed()):
            refused.append(line)
    if not refused:
        return []
    first = ", ".join(str(line) for line in refused[:5])
    return [
        f"{counted(len(refused), 'document')} of {len(documents)} cannot be written under the recipe's "
        f"{recipe.constraint}, so they are learnt in vain (lines {first}{' …' if len(refused) > 5 else ''}). Widen "
        f"{SCHEMA if recipe.constraint == 'schema' else GRAMMAR} in a copy of the recipe, or set constraint none."
    ]


def _xgrammar() -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise MachineError(
            f"Writing under a grammar needs the package {PACKAGE}: pip install 'lace-lora[text]'. "
            "Or set constraint none; then documents are checked, but nothing keeps them right."
        ) from error
    return xgrammar
