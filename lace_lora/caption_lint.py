"""What is wrong with the captions of a set, in words, and how it is mended where that is mechanical.

Captions are text and stay text: nothing in them is taken for HTML. Who shows findings on a web page escapes them there.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from lace_lora.families import Reader
from lace_lora.file_names import LINE_BREAKS, printable
from lace_lora.queries import token_pattern

Kind = Literal[
    "common word", "empty", "control signs", "token missing", "token twice", "token late", "too long", "not checked",
    "same text", "phrase",
]  # fmt: skip
Mend = Callable[[str], str]

LEAST_CAPTIONS = 5  # fewer have no shares to speak of
PHRASE_PERCENT = 80  # in more captions than this, a phrase is bound to the style
SAME_PERCENT = 50
WORDS_BEFORE_TOKEN = 5  # "a close up photo of <myspecialstyle>"

_LETTERS = r"(?:[^\W_][\u0300-\u036f]*)+"  # each with its accents, where these are signs of their own (NFD)
_WORD = re.compile(rf"{_LETTERS}(?:['’-]{_LETTERS})*")
_LINKS_WORDS = re.compile(r"[\s,;]*")  # between two words of one phrase; a full stop or bracket ends it
_BREAK = re.compile(f"[\t{LINE_BREAKS}]")
_INVISIBLE = "\ufeff\u200b\u2060\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_ARTICLES = frozenset(("a", "an", "the"))
STOP_WORDS = _ARTICLES | frozenset(
    "about above across after against along among and are around as at be before behind below beneath beside between "
    "both but by down each for from has have her here his in inside into is it its like my near no not of off on onto "
    "or our out over own so some such than that their there these this those through to under up upon very was were "
    "which while whose with within without your bir bu da de gibi ile için ve veya".split()
)
# Words that the model surely knows, as people choose them for a style. CLIP's tokenizers, where given, know the rest.
_COMMON_WORDS = frozenset(
    "abstract angel animal antique apple art artist baby bag beach bead beauty bed bee bell berry bird black bloom "
    "blossom blouse blue boat bobbin body book border bow box boy braid bride brown brush butterfly button cake "
    "canvas car castle cat chain chair cherry child church circle city classic clay cloth clothes cloud coat collar "
    "color colour corner cotton couture craft cream crochet crown crystal cup curtain custom daisy dance dark decor "
    "delicate design diamond dog doily doll door dot dragon drawing dream dress edge edging elegant embroidery eye "
    "fabric face family fan fancy fashion feather fern field filet fire fish flat floral flower flowers fog forest "
    "frame fruit gallery garden geometric girl glass gold golden good gothic grand grandma grandmother granny grass "
    "gray green grey grid ground guipure hair hand handmade happy hat heart heritage hobby home honey horse house ice "
    "illustration image ink iris iron island ivory ivy jewel joy king kitchen knit knitting knot lace lacy lady lake "
    "lamp leaf leather leaves letter light lilac lily linen lion living logo loop lotus love luxury machine magic man "
    "mandala map marble mask medallion melody mesh metal milk mirror model modern moon morning mother motif mountain "
    "music name nature navy neck necklace needle net new night object ocean old olive orange orchid organic ornament "
    "painting palace palm paper paris party pastel patch path pattern peace peacock pearl pen peony people person "
    "petal petals phoenix photo photograph picot picture piece pillow pink plant plate poem poppy portrait pottery "
    "pretty princess print project purple queen quilt rain rainbow red retro ribbon ring river robe romance romantic "
    "room rose rosette rosy round row royal ruby sand satin scallop scarf sea shawl shell shirt shoe signature silk "
    "silver simple skirt sky snow soft song soul special spider spiral spring square stained star stars stitch stone "
    "street stripe studio style sugar summer sun sunflower sunset swan sweet swirl table tablecloth tattoo tea "
    "textile texture thing thread time tower toy train travel treasure tree trim tulip turquoise veil velvet "
    "victorian village vine vintage violet wall watch water wave weave weaving web wedding white wild wind window "
    "wine wing winter woman wood wool word work world woven yarn yellow".split()
)


@dataclass(frozen=True)
class Finding:
    """Something wrong with captions: of which pictures, in a sentence, and a mend where that needs no judgement."""

    kind: Kind
    names: tuple[str, ...]  # the pictures concerned; empty where it is the setting, or the whole set
    sentence: str  # what is wrong and what to do
    mend: Mend | None = field(default=None, compare=False, repr=False)  # caption -> caption; safe for every caption


class _Piece(NamedTuple):
    """A word of a caption in small letters, or the concept token (None), and where it stands."""

    word: str | None
    start: int
    end: int


def lint(
    captions: Mapping[str, str],
    *,
    concept_token: str,
    reader: Reader | None = None,
    instance_prompt: str = "",
) -> tuple[Finding, ...]:
    """All that is wrong with the captions of a set, what concerns the whole set last.

    captions         picture's name -> caption, "" for a picture that has none
    reader           what reads captions for the base model; without it lengths are not checked, which is said
    instance_prompt  its words may stand in every caption, and it mends an empty one
    """
    if not captions:
        return ()
    filled = {name: caption for name, caption in captions.items() if caption.strip()}
    found = [
        _on_common_word(concept_token, reader.tokenizers if reader else None),
        _on_empty([name for name in captions if name not in filled], instance_prompt),
        _on_signs(filled),
        *_on_token(filled, concept_token, instance_prompt),
        *_on_length(filled, reader),
        _on_same_text(filled),
        *_on_phrases(filled, concept_token, instance_prompt),
    ]
    return tuple(one for one in found if one)


def describe(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding: what kind, which pictures, the sentence; the columns stand under each other."""
    rows = [(one.kind, _pictures(one.names), printable(one.sentence)) for one in findings]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    return ["  ".join([*map(str.ljust, row[:2], widths), row[2]]) for row in rows]


def _pictures(names: Sequence[str]) -> str:
    if not names:
        return "-"
    return printable(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def words_of(caption: str, concept_token: str) -> list[str]:
    """The words of a caption in small letters, in order, without the concept token."""
    return [piece.word for piece in _pieces(caption, concept_token) if piece.word]


def one_line(text: str) -> str:
    """A text as a caption can be kept: tabs and line breaks as spaces, control and invisible characters left out."""
    parts = (part.strip() for part in _BREAK.split(text))
    return "".join(sign for sign in " ".join(filter(None, parts)) if not _is_unwanted(sign)).strip()


def without_phrase(caption: str, phrase: Sequence[str], concept_token: str) -> str:
    """The caption without a run of words, and without the comma, article or preposition that it leaves hanging.

    phrase  words in small letters; case, and commas between them, do not matter
    The caption stays as it is where nothing else would be left.
    """
    wanted, text = tuple(phrase), caption
    while wanted:
        pieces = _pieces(text, concept_token)
        hit = next((run for run in _runs(text, pieces, len(wanted)) if tuple(one.word for one in run) == wanted), None)
        if hit is None:
            break
        text = _cut(text, hit[0].start, hit[-1].end, concept_token)
    return text if _pieces(text, concept_token) else caption


# One rule each


def _on_common_word(token: str, tokenizers: Sequence[Any] | None) -> Finding | None:
    """C11: a word that means something already keeps that meaning, and drags it into every picture."""
    words = token.casefold().split()
    if not words or not all(_is_common(word, tokenizers or ()) for word in words):
        return None
    return Finding(
        "common word",
        (),
        f"{token!r} is a word that the model knows, so its own meaning gets into the style. Choose a concept_token "
        "that means nothing else, such as <myspecialstyle>, and put it into the captions.",
    )


def _is_common(word: str, tokenizers: Sequence[Any]) -> bool:
    if not word.isalpha():
        return False
    if {word, word.removesuffix("s")} & _COMMON_WORDS:
        return True
    pieces = [tokenizer.tokenize(word) for tokenizer in tokenizers]
    return any(len(one) == 1 and one[0].endswith("</w>") for one in pieces)


def _on_empty(names: list[str], instance_prompt: str) -> Finding | None:
    if not names:
        return None
    advice = f"Write what it shows, or take {instance_prompt!r}." if instance_prompt else "Write what it shows."
    mend: Mend = lambda caption: caption if caption.strip() else instance_prompt  # noqa: E731
    return Finding("empty", tuple(names), f"There is no caption. {advice}", mend if instance_prompt else None)


def _on_signs(filled: Mapping[str, str]) -> Finding | None:
    names = tuple(name for name, caption in filled.items() if one_line(caption) != caption.strip())
    sentence = "A tab, a line break or an invisible character stands in it. Write it on one line of plain text."
    return Finding("control signs", names, sentence, one_line) if names else None


def _on_token(filled: Mapping[str, str], token: str, instance_prompt: str) -> Iterator[Finding]:
    """The token must stand in each caption once, and early: CLIP reads forwards, so it colours what follows it."""
    if not token.strip():
        return
    most = max(WORDS_BEFORE_TOKEN, _words_before_token(instance_prompt, token) or 0)
    before = {name: _words_before_token(caption, token) for name, caption in filled.items()}
    if missing := tuple(name for name, count in before.items() if count is None):
        sentence = f"{token} is missing, so the style goes into pictures that do not ask for it. Put it first."
        yield Finding("token missing", missing, sentence, lambda caption: _with_token(caption, token))
    twice = tuple(name for name, caption in filled.items() if len(_token_places(caption, token)) > 1)
    if twice:
        yield Finding("token twice", twice, f"{token} stands in it more than once. Keep the first.",
                      lambda caption: _token_once(caption, token))  # fmt: skip
    if late := tuple(name for name, count in before.items() if count is not None and count > most):
        sentence = f"{token} comes after more than {most} words, which the style then hardly reaches. Put it first."
        yield Finding("token late", late, sentence, lambda caption: _token_first(caption, token, most))


def _on_length(filled: Mapping[str, str], reader: Reader | None) -> Iterator[Finding]:
    if reader is None:
        yield Finding("not checked", (), "Lengths were not checked (75 tokens fit): the model is not here yet.")
        return
    for name, caption in filled.items():
        if words := reader.cut(caption):
            count = reader.count(caption)
            sentence = f"{count} tokens, but {reader.fits} fit: the model would never see {words!r}. Shorten it."
            yield Finding("too long", (name,), sentence)


def _on_same_text(filled: Mapping[str, str]) -> Finding | None:
    if len(filled) < LEAST_CAPTIONS:
        return None
    most, count = _most_common(filled)
    if count * 100 <= SAME_PERCENT * len(filled):
        return None
    names = tuple(name for name, caption in filled.items() if _folded(caption) == most)
    sentence = (
        f"{count} of {len(filled)} pictures have the same caption, so all that they show becomes the style. "
        "Say in each what it alone shows: motif, colour, ground."
    )
    return Finding("same text", names, sentence)


def _most_common(filled: Mapping[str, str]) -> tuple[str, int]:
    return Counter(map(_folded, filled.values())).most_common(1)[0]


def _folded(caption: str) -> str:
    return " ".join(caption.casefold().split())


def _on_phrases(filled: Mapping[str, str], token: str, instance_prompt: str) -> Iterator[Finding]:
    """The longest phrases of two or more words with a meaning that stand in nearly all captions."""
    if len(filled) < LEAST_CAPTIONS or _most_common(filled)[1] * 100 > PHRASE_PERCENT * len(filled):
        return  # where all captions are the same there is nothing to single out
    aside = STOP_WORDS | {one.word for one in _pieces(instance_prompt, token) if one.word}
    for phrase in _frequent([*filled.values()], token, aside):
        names = tuple(name for name, text in filled.items() if without_phrase(text, phrase, token) != text)
        said = " ".join(phrase)
        sentence = (
            f"{len(names)} of {len(filled)} captions say {said!r}: it will be bound to the style, which then needs "
            "these words to come out. Remove it, unless every prompt is to say it."
        )
        yield Finding("phrase", names, sentence, partial(without_phrase, phrase=phrase, concept_token=token))


def _frequent(captions: Sequence[str], token: str, aside: frozenset[str] | set[str]) -> list[tuple[str, ...]]:
    """Phrases in more than PHRASE_PERCENT of the captions, none within another; longest first.

    A run of n + 1 words can only be frequent where its first n and its last n words are: so runs grow word by word.
    """
    phrases: set[tuple[str, ...]] = set()
    frequent: set[tuple[str, ...]] = {()}
    places = [[(words, at) for words in _linked(text, token) for at in range(len(words))] for text in captions]
    length = 0
    while frequent:
        length += 1
        counts: Counter[tuple[str, ...]] = Counter()
        for starts in places:
            runs = {tuple(words[at : at + length]) for words, at in starts if at + length <= len(words)}
            counts.update(run for run in runs if run[1:] in frequent)
        frequent = {run for run, count in counts.items() if count * 100 > PHRASE_PERCENT * len(captions)}
        places = [
            [(words, at) for words, at in starts if tuple(words[at : at + length]) in frequent] for starts in places
        ]
        phrases |= {_trimmed(run, aside) for run in frequent}
    kept: list[tuple[str, ...]] = []
    for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)):
        if sum(word not in aside for word in phrase) >= 2 and not any(_holds(longer, phrase) for longer in kept):
            kept.append(phrase)
    return kept


def _trimmed(run: tuple[str, ...], aside: frozenset[str] | set[str]) -> tuple[str, ...]:
    inner = [number for number, word in enumerate(run) if word not in aside]
    return run[inner[0] : inner[-1] + 1] if inner else ()


def _holds(longer: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    return any(longer[start : start + len(phrase)] == phrase for start in range(len(longer) - len(phrase) + 1))


# Words and cuts


def _is_unwanted(sign: str) -> bool:
    return sign in _INVISIBLE or unicodedata.category(sign) in ("Cc", "Cs")


def _token_places(text: str, token: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(token_pattern(token), text, re.I)] if token else []


def _pieces(text: str, token: str) -> list[_Piece]:
    """The words and tokens of a caption in order."""
    pieces: list[_Piece] = []
    at = 0
    for start, end in [*_token_places(text, token), (len(text), len(text))]:
        words = _WORD.finditer(text, at, start)
        pieces += [_Piece(unicodedata.normalize("NFC", one[0].casefold()), *one.span()) for one in words]
        pieces += [_Piece(None, start, end)] if end > start else []
        at = end
    return pieces


def _runs(text: str, pieces: list[_Piece], length: int) -> Iterator[list[_Piece]]:
    """Every `length` words that follow each other with nothing but spaces and commas between them."""
    linked = 0
    for number, piece in enumerate(pieces):
        gap = text[pieces[number - 1].end : piece.start] if number else ""
        linked = 0 if piece.word is None else linked + 1 if _LINKS_WORDS.fullmatch(gap) else 1
        if linked >= length:
            yield pieces[number - length + 1 : number + 1]


def _linked(text: str, token: str) -> list[list[str]]:
    """The words of a caption, in lists of those that follow each other with nothing but spaces and commas between."""
    lists: list[list[str]] = []
    end = -1  # of the word before; negative where none can be linked to
    for piece in _pieces(text, token):
        if piece.word is None:
            end = -1
            continue
        if end < 0 or not _LINKS_WORDS.fullmatch(text, end, piece.start):
            lists.append([])
        lists[-1].append(piece.word)
        end = piece.end
    return lists


def _words_before_token(text: str, token: str) -> int | None:
    """How many words stand before the first token; None where it is missing."""
    words = [one.word for one in _pieces(text, token)]
    return words.index(None) if None in words else None


def _with_token(caption: str, token: str) -> str:
    is_there = not caption.strip() or _token_places(caption, token)
    return caption if is_there else f"{token} {caption.strip()}"


def _token_once(caption: str, token: str) -> str:
    while len(places := _token_places(caption, token)) > 1:
        caption = _without_token(caption, token, places[0][1])
    return caption


def _token_first(caption: str, token: str, most: int) -> str:
    if (_words_before_token(caption, token) or 0) <= most:
        return caption
    return f"{token} {_without_token(caption, token, 0)}".strip()


def _without_token(caption: str, token: str, at: int) -> str:
    """The caption without the first token from `at` on, and without "in the style of" before it."""
    word = token_pattern(token)
    around = rf"\bin\s+(?:the\s+)?style\s+of\s+{word}|\bin\s+(?:an?\s+|the\s+)?{word}\s+style\b|{word}"
    found = re.compile(around, re.I).search(caption, at)
    return _cut(caption, found.start(), found.end(), token) if found else caption


def _cut(text: str, start: int, end: int, token: str) -> str:
    """The text without text[start:end], nor what would hang in the air without it."""
    pieces = _pieces(text, token)
    before = [one for one in pieces if one.end <= start]
    after = [one for one in pieces if one.start >= end]
    follows = after[0] if after and not text[end : after[0].start].strip() else None
    if follows is None or follows.word in STOP_WORDS:
        while before and before[-1].word in STOP_WORDS and not text[before[-1].end : start].strip():
            start = before.pop().start
    head = text[:start].rstrip()
    if not head or head[-1] in ",;":
        while after and after[0].word in STOP_WORDS - _ARTICLES and not text[end : after[0].start].strip():
            end = after.pop(0).end
    return _joined(head, text[end:].lstrip())


def _joined(head: str, tail: str) -> str:
    """Two parts of a caption with the one comma, space and article that belong between them."""
    while head[-1:] + tail[:1] in ("()", "[]", "{}"):
        head, tail = head[:-1].rstrip(), tail[1:].lstrip()
    if not tail or tail[0] in ",;.!?":
        head = head.rstrip(" ,;")
    if not head:
        return tail.lstrip(" ,;")
    if (article := re.search(r"(?<!\w)(an?)$", head, re.I)) and tail[:1].isalpha():
        right = "an" if tail[0].casefold() in "aeiou" else "a"
        head = head[: article.start()] + (right.capitalize() if article[1][0].isupper() else right)
    opens = head[-1] in "([{" or not tail or tail[0] in ",;.!?)]}"
    return f"{head}{'' if opens else ' '}{tail}"
