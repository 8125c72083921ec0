"""The language of patent claims: what a claim's text says of other claims, figures, classes and features.

Everything is read by regular expressions and the recipe's tables; nothing is guessed by a model but the human language,
which py3langid (extra `patent`) tells, and which is imported only when a text is asked about.
"""

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from lace_lora.errors import MachineError

PACKAGE = "py3langid"
UNKNOWN = "unknown"  # the language of a text that is too short to tell
_LIST = r"(?:\s*(?:,|;|-|–|to|through|and|or|und|,\s*and|,\s*or)\s*)"
_FIGURE = r"\d{1,3}\s?\(?[A-Za-z]?'?\)?(?![A-Za-z0-9])"
_FIGURES = re.compile(rf"\bfig(?:ure)?s?\b\.?\s*({_FIGURE}(?:{_LIST}(?:figs?\.?\s*)?{_FIGURE})*)", re.I)
_CLAIMS = re.compile(
    rf"\b(?:claims?|any\s+(?:one\s+)?of\s+(?:the\s+)?claims?)\s+(\d{{1,4}}(?:{_LIST}(?:claims?\s+)?\d{{1,4}})*)", re.I
)
# G06F 17/30, G06F017/30 and G06F17/30 are one class: section, class, subclass, main group, subgroup.
_CPC = re.compile(r"(?<![A-Za-z0-9])([A-HY])(\d{2})([A-Z])\s?0*(\d{1,4})\s?/\s?(\d{2,6})(?!\d)")
_ARTICLE = re.compile(r"^(?:an?|the|said|one or more|at least one)\s+", re.I)
_NUMBERED = re.compile(r"^\s*(?:\(?\d{1,4}\s*[.)]|\(?[a-z]\)|\([ivx]+\)|[•-])\s*", re.I)
_ORNAMENTAL = re.compile(
    r"\bornamental design\b.*?\bfor\s+(?:an?\s+|the\s+)?(.+?)\s*(?:,|;|\.|\bas shown\b)", re.I | re.S
)
_REFERS = re.compile(
    r"\b(?:as\s+)?(?:set forth|recited|claimed|defined|described|according|of|in|to|as|by|with)\s+(?:to\s+|in\s+)*"
    r"(?:any\s+(?:one\s+)?of\s+)?(?:the\s+)?(?:preceding\s+)?claims?\b[\s\d,;–-]*(?:(?:and|or|to)\s*\d+)*,?\s*", re.I
)  # fmt: skip
_AS_SHOWN = re.compile(
    r"\s*,?\s*(?:\bas\s+)?(?:(?:is|are|can be|may be)\s+)?(?:(?:shown|seen|depicted|illustrated)\s+in\s+|see\s+)?"
    r"\(?\bfig(?:ure)?s?\b\.?\s*\d[\w\s,()-]*$",
    re.I,
)
_LEADING = re.compile(r"^(?:and|wherein|whereby|in which|comprising|further comprising|the step of)\s+", re.I)
_ENDS_NOUN = re.compile(
    r"\s*(?:,|;|:|\b(?:for|of|to|that|which|in|on|with|having|configured|used|capable|by|from|over|using|via|according|as|wherein)\b)",
    re.I,
)
_OF_DOING = ("method", "process", "use", "computer-implemented method")  # nouns that say nothing without what follows
_TRAILING = frozenset("and or wherein whereby the a an of with to that which in for by".split())


def figures_in(text: str) -> tuple[str, ...]:
    """Figures that a text refers to, in its order, each once: "FIGS. 2A and 3" gives 2A and 3; ranges are filled."""
    found: list[str] = []
    for match in _FIGURES.finditer(text):
        found += _listed(match[1], _FIGURE)
    return tuple(dict.fromkeys(found))


def claims_in(text: str) -> tuple[int, ...]:
    """Numbers of the claims that a text refers to: "any one of claims 1 to 3" gives 1, 2 and 3."""
    found: list[str] = []
    for match in _CLAIMS.finditer(text):
        found += _listed(match[1], r"\d{1,4}")
    return tuple(dict.fromkeys(int(number) for number in found))


def cpc_in(text: str) -> tuple[str, ...]:
    """Classes of the CPC or IPC that a text names, spelled as G06F 17/30.

    Source: the CPC scheme's own symbols, https://www.cooperativepatentclassification.org/cpcSchemeAndDefinitions.
    """
    found = (f"{section}{number}{sub} {group}/{rest}" for section, number, sub, group, rest in _CPC.findall(text))
    return tuple(dict.fromkeys(found))


def figure_id(written: str) -> str | None:
    """A figure's name as it is written everywhere here: "Fig. 3a" is 3A; None where it is none."""
    bare = re.sub(r"^\s*fig(?:ure)?s?\b\.?\s*", "", str(written), flags=re.I).strip()
    return _plain(bare) if re.fullmatch(_FIGURE, bare) else None


def is_claim(text: str, claim_words: Sequence[str]) -> bool:
    """Whether a text has any of the words that a claim has; they are regular expressions."""
    return any(_compiled(one).search(text) for one in claim_words)


@lru_cache(maxsize=1 << 16)  # it is asked when a row is checked, and again for the claim
def language_of(text: str, least_letters: int) -> tuple[str, float]:
    """The language of a text by its two letters, and how sure that is, 0..1; "unknown" and 0 where it is too short.

    Raises MachineError where py3langid is not installed.
    """
    if sum(sign.isalpha() for sign in text) < least_letters:
        return UNKNOWN, 0.0
    ranked = _identifier().rank(text)
    # py3langid gives log-likelihoods that grow with the text; its root keeps long claims from being sure of everything.
    scale = math.sqrt(max(1, len(text.encode("utf-8", "replace"))))
    best = float(ranked[0][1])
    total = sum(math.exp(max(-700.0, (float(score) - best) / scale)) for _, score in ranked)
    return str(ranked[0][0]), 1 / total


def normalized(text: str, terms: Mapping[str, str]) -> str:
    """A text with the words of the table in place of its own; a word that began with a capital still does."""
    if not terms:
        return " ".join(text.split())
    lower = {key.casefold(): value for key, value in terms.items()}

    def instead(found: re.Match[str]) -> str:
        value = lower[" ".join(found[0].split()).casefold()]
        return value[:1].upper() + value[1:] if found[0][0].isupper() else value

    text = _alternatives(tuple(sorted(lower, key=len, reverse=True))).sub(instead, text)
    return re.sub(r"\s+([,;:.])", r"\1", " ".join(text.split()))


def body_of(text: str, transitions: Sequence[str]) -> tuple[str, str]:
    """A claim as what is claimed and what characterises it: before and after its first transition.

    The second is empty where there is no transition: then nothing tells them apart.
    """
    text = _NUMBERED.sub("", " ".join(text.split()))
    match = _alternatives(tuple(sorted((one.casefold() for one in transitions), key=len, reverse=True))).search(text)
    if match is None:
        return text.strip(" ,;:."), ""
    head = re.sub(r"\s*,?\s*further$", "", text[: match.start()].strip(" ,;:"))
    return head, text[match.end() :].strip(" ,;:.")


def features_of(text: str, transitions: Sequence[str], longest: int) -> tuple[str, ...]:
    """What characterises a claim, element by element, each of at most `longest` words.

    A design claim, which has no elements, gives its name: "ornamental design for a disc cartridge".
    """
    if design := _ORNAMENTAL.search(text):
        return (f"ornamental design for a {design[1].strip()}",)
    head, body = body_of(text, transitions)
    body = re.sub(r"^(?:the\s+)?steps?(?:\s+of)?\s*:?\s*", "", body)
    elements = re.split(r"\s*;\s*(?:and\s+|or\s+)?|\s*,\s*(?:and\s+)?(?=wherein\b|whereby\b)", body) if body else []
    found = [shortened(_clean(one), longest) for one in elements]
    if not any(found):
        rest = _REFERS.sub("", head)
        found = [shortened(_clean(rest), longest)] if rest != head else []
    return tuple(dict.fromkeys(one for one in found if one))


def subject_of(text: str, transitions: Sequence[str]) -> str:
    """What a claim is about in a few words, such as "simulation device"; empty where nothing tells."""
    if design := _ORNAMENTAL.search(text):
        return design[1].strip().casefold()
    head = _ARTICLE.sub("", _REFERS.sub(" ", body_of(text, transitions)[0]).strip())
    end = _ENDS_NOUN.search(head)
    noun = head[: end.start()] if end else head
    if noun.casefold() in _OF_DOING and end:
        end = _ENDS_NOUN.search(head, end.end())
        noun = head[: end.start()] if end else head
    words = noun.casefold().split()
    while words and words[-1] in _TRAILING:
        words.pop()
    return " ".join(words[:7]) if any(sign.isalpha() for sign in noun) else ""


def shortened(text: str, longest: int) -> str:
    """At most so many words, without a word at the end that leads nowhere."""
    words = text.split()
    if len(words) > longest:
        words = words[:longest]
        while len(words) > 1 and words[-1].strip(",;").casefold() in _TRAILING:
            words.pop()
    return " ".join(words).strip(" ,;:.")


# -- inside --


def _listed(text: str, one: str) -> list[str]:
    """The members of a list; "2 to 4" and "2-4" are filled."""
    numbers = list(re.finditer(one, text))
    found: list[str] = []
    for place, number in enumerate(numbers):
        between = text[numbers[place - 1].end() : number.start()].strip() if place else ""
        first, last = found[-1] if found else "", _plain(number[0])
        if between in ("-", "–", "to", "through") and first.isdecimal() and last.isdecimal():
            found += [str(middle) for middle in range(int(first) + 1, min(int(last), int(first) + 200))]
        found.append(last)
    return found


def _plain(figure: str) -> str:
    return re.sub(r"[\s()]", "", figure).upper()


def _clean(element: str) -> str:
    """An element without its number, its leading "wherein", and the sign that ends it."""
    text = _NUMBERED.sub("", element.strip(" ,;:."))
    text = _LEADING.sub("", text)
    text = _AS_SHOWN.sub("", text)
    return " ".join(text.split()).strip(" ,;:.")


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.I | re.S)


@cache
def _alternatives(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of these words, longest first, with any white space between them."""
    spaced = (r"\s+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"(?<!\w)(?:{'|'.join(spaced)})(?!\w)", re.I)


@cache
def _identifier() -> Any:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise MachineError(
            f"Telling the language of claims needs the package {PACKAGE}, which is not installed. "
            f"Type pip install {PACKAGE} (in a notebook: %pip install {PACKAGE}), then run this again."
        ) from error
