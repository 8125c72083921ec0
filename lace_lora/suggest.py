"""Captions suggested for the pictures of a folder: asked for one by one, cleaned, refused when worthless, kept at once.

A suggestion reads `<instance prompt>, <what the picture shows>`, for example `a photo of <myspecialstyle>, a round
doily with leaves`, so that the concept token stands first and where every prompt has it. What a person wrote is never
replaced unless that is asked for. The bare instance prompt counts as not written: `lace-lora annotate` puts it behind
every picture that has no caption, it says nothing of the picture, and who asks for suggestions wants more than that.
"""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from lace_lora import counting, stopping
from lace_lora.annotations import caption_fault, complaint
from lace_lora.annotations_file import AnnotationsFile
from lace_lora.captioners import Captioner
from lace_lora.errors import ModelError, PicturesError, SettingsError
from lace_lora.file_names import line_fault, on_disk, printable, relative_name
from lace_lora.swatch import Swatch, open_swatch

FAILURES_IN_A_ROW = 3
WORTHLESS_FROM_THE_START = 10
SAME_FROM = 8  # answers before it can be told that a captioner says the same of every picture
# CLIP reads 75 tokens, a token and a bit per English word; the instance prompt takes about a dozen of them.
LONGEST_WORDS = 45

_SEES = (
    r"(?:shows?|depicts?|displays?|features?|presents?|captures?|contains?|of|is\ of|is(?=\ an?\ )"
    r"|(?:we|you|one)\ (?:can\ )?see|there\ (?:is|are))"
)
_LEAD_IN = re.compile(
    rf"""(?:(?:sure|certainly|of\ course)[,!.:]?\s+
    |here\ ?(?:'s|’s|is)\ [^:]{{0,60}}:\s*
    |(?:caption|description|answer|assistant)\s*:\s*
    |(?:in\ )?(?:the|this|an?)\ (?:image|picture|photo|photograph)\b,?\ {_SEES}\s+
    |(?:there\ (?:is|are)|(?:this|it|that)\ is(?=\ an?\ ))\s+)""",
    re.IGNORECASE | re.VERBOSE,
)
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)
_MARKS = re.compile(r"</?s>|<pad>|<unk>|<\|[^<>|]{1,40}\|>")  # of models whose servers leave them in
_MARKDOWN = re.compile(r"\*\*|__|(?:^|\s)[-*•]\s(?=\S)|#{2,}")
_REFUSAL = re.compile(
    r"\bi['’]?m sorry\b|\bi (?:cannot|can['’]?t|am unable)\b|\bas an ai\b|\bunable to (?:see|view)\b", re.I
)
_ARTICLES = {"A", "An", "The", "This", "These", "Some", "Several", "Two", "Three", "There", "It"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestions:
    """What came of one run of suggestions."""

    captions: Mapping[str, str]  # all captions of the folder now, by name: those that were there, and the new ones
    written: tuple[str, ...] = ()  # names of pictures that got a caption in this run
    kept: tuple[str, ...] = ()  # names that had one
    refused: Mapping[str, str] = field(default_factory=dict)  # name -> why it got none
    is_stopped: bool = False

    @property
    def summary(self) -> str:
        """The run in one line."""
        parts = [f"{len(self.written)} suggested"]
        parts += [f"{len(self.kept)} kept as they were"] if self.kept else []
        parts += [f"{len(self.refused)} without a suggestion"] if self.refused else []
        parts += ["stopped, run again to go on"] if self.is_stopped else []
        return f"captions  {', '.join(parts)}"


@dataclass
class _Sitting:
    """Captions as they stand while pictures are gone through."""

    captions: dict[str, str]
    before: dict[str, str]
    texts: dict[str, str] = field(default_factory=dict)  # name -> sound answer, as compared with others
    written: dict[str, None] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    failures: int = 0


def captions(
    folder: str | Path,
    names: Iterable[str | Path],
    captioner: Captioner,
    *,
    concept_token: str,
    existing: Mapping[str, str],
    save: Callable[[Mapping[str, str]], None],
    instance_prompt: str = "",
    swatches: Mapping[str, Swatch] = MappingProxyType({}),
    overwrite: bool = False,
    stop: stopping.Stop | None = None,
    say: Callable[[str], None] = _log.info,
) -> Suggestions:
    """Ask the captioner for each picture that has no caption yet, and save after every one.

    names            pictures of the folder, by name relative to it or by path
    existing         captions that are there, by name (see `written`); all of them are passed on to `save`
    save             gets all captions by name after every picture, and writes them whole or not at all (see `saver`)
    instance_prompt  what stands before each suggestion, when the concept token is in it; else the token alone does
    swatches         by name: pictures that are shown to the captioner as they are learnt, without table and hands
    overwrite        True asks for every picture; a caption is still only replaced by a suggestion that is sound
    stop             a form's stop button; Ctrl-C and SIGTERM are heeded without one
    say              is told, a sentence each, what was refused and why

    Raises ModelError when the captioner fails for three pictures in a row, SettingsError at once when it says that only
    a setting can mend it (a refused key), PicturesError for a name outside the folder. Everything before is saved then.
    """
    folder = Path(folder).expanduser()
    lead = lead_of(concept_token, instance_prompt)
    chosen = _names(folder, names)
    before = {relative_name(folder, name) or name: text for name, text in existing.items()}
    bare = {_one_line(text) for text in ("", instance_prompt, concept_token, lead)}
    kept = tuple(name for name in chosen if not overwrite and _one_line(before.get(name, "")) not in bare)
    if kept:
        say(f"kept {len(kept)} captions that are there already")
    asked = [name for name in chosen if name not in set(kept)]
    sitting = _Sitting(dict(before), before)
    tell = counting.lines(say, "captions", len(asked))
    notice = "stopping after this picture; every caption so far is saved, run again to go on …"
    done = 0
    with stopping.on_request(say, notice) as request:
        for name in asked:
            if request.asked or (stop and stop.asked):
                break
            if _suggest(sitting, folder, name, swatches.get(name), captioner, lead, concept_token, say):
                save(_in_order(sitting.captions, chosen))
            done += 1
            tell(1)
    now = _in_order(sitting.captions, chosen)
    return Suggestions(now, tuple(sitting.written), kept, sitting.refused, is_stopped=done < len(asked))


def _suggest(
    sitting: _Sitting,
    folder: Path,
    name: str,
    swatch: Swatch | None,
    captioner: Captioner,
    lead: str,
    concept_token: str,
    say: Callable[[str], None],
) -> bool:
    """One picture; True if a caption has changed."""
    try:
        picture = open_swatch(_file(folder, name), swatch)
    except PicturesError as error:
        return _refuse(sitting, name, str(error), say)
    try:
        answer = captioner(picture)
    except SettingsError:
        raise
    except Exception as error:  # a captioner is any function
        sitting.failures += 1
        said = str(error).strip() or type(error).__name__
        if sitting.failures == FAILURES_IN_A_ROW:
            raise ModelError(
                f"No caption for {FAILURES_IN_A_ROW} pictures in a row, last for {printable(name)}: {said} "
                f"{len(sitting.written)} suggestions of this run are saved; run again to go on from there."
            ) from error
        return _refuse(sitting, name, f"no caption: {said}", say)
    sitting.failures = 0
    text = clean(answer, concept_token) if isinstance(answer, str) else ""
    if fault := fault_of(text):
        _refuse(sitting, name, f"its suggestion {fault}", say)
        if not sitting.texts and len(sitting.refused) >= WORTHLESS_FROM_THE_START:
            raise ModelError(
                f"Nothing of use came for the first {len(sitting.refused)} pictures (the last answer {fault}). Choose "
                "another captioner or caption_model."
            )
        return False
    sitting.texts[name] = text.casefold()
    if _is_repeated(sitting, text.casefold()):
        return _take_back(sitting, name, text, say)
    sitting.captions[name] = f"{lead}, {shortened(text)}"
    sitting.written[name] = None
    return True


def _refuse(sitting: _Sitting, name: str, reason: str, say: Callable[[str], None]) -> bool:
    sitting.refused[name] = reason
    say(reason if printable(name) in reason else f"{printable(name)}: {reason}")
    return False


def _is_repeated(sitting: _Sitting, text: str) -> bool:
    """Whether the captioner says this of most pictures, and so says it of none."""
    same = sum(other == text for other in sitting.texts.values())
    if len(sitting.texts) >= SAME_FROM and 2 * same > len(sitting.texts):
        sitting.repeated.add(text)
    return text in sitting.repeated


def _take_back(sitting: _Sitting, name: str, text: str, say: Callable[[str], None]) -> bool:
    """Refuse a text that most pictures got, and put back what stood before where this run has written it already."""
    reason = f"its suggestion is that of most other pictures ({printable(text[:60])!r})"
    earlier = [other for other in sitting.written if sitting.texts[other] == text.casefold()]
    for other in earlier:
        del sitting.written[other]
        sitting.refused[other] = reason
        if other in sitting.before:
            sitting.captions[other] = sitting.before[other]
        else:
            del sitting.captions[other]
    if earlier:
        say(f"took back {len(earlier)} suggestions of this run, because most pictures got the same")
    _refuse(sitting, name, reason, say)
    return bool(earlier)


# Texts


def clean(text: str, concept_token: str = "") -> str:
    """An answer as the part of a caption that tells what is seen: one line, no lead-in, no final dot.

    Taken away are beginnings such as "The image shows", "A photo of" and "Sure, here is a caption:", a concept token at
    the beginning (it is put there anyway), quotes around the whole, and signs that cannot be shown.
    """
    text = _one_line(_MARKDOWN.sub(" ", _one_line(_MARKS.sub(" ", _REASONING.sub(" ", text)))))
    for _ in range(3):
        text = text.strip(" \"'“”‘’«»*`#:,;–—-")
        text = _LEAD_IN.sub("", text, count=1) if _LEAD_IN.match(text) else text
    if concept_token and text.casefold().startswith(_one_line(concept_token).casefold()):
        text = text[len(_one_line(concept_token)) :].lstrip(" ,:;.")
    text = text.rstrip(' .…,;:"”’*')
    first, blank, rest = text.partition(" ")
    return first.lower() + blank + rest if first in _ARTICLES else text


def shortened(text: str) -> str:
    """At most 45 words: whole sentences where that can be, else up to a comma, because CLIP reads no further.

    A last sentence that was cut off goes too, when there is another before it.
    """
    words = text.split(" ")
    if len(words) <= LONGEST_WORDS:
        return text
    start = " ".join(words[:LONGEST_WORDS])
    ends = [match.start() for match in re.finditer(r"[.!?;](?=\s)", start)] or [
        match.start() for match in re.finditer(r",(?=\s)", start) if match.start() > len(start) // 2
    ]
    return start[: ends[-1]] if ends else start.rstrip(" .,;:")


def fault_of(text: str) -> str:
    """Why a suggestion says nothing about its picture, or an empty text."""
    words = re.findall(r"\w+", text.casefold())
    letters = [sign for sign in text.casefold() if sign.isalpha()]
    if not text.strip():
        return "is empty"
    if not letters:
        return "holds no word"
    if _REFUSAL.search(text):
        return "is a refusal"
    if len(set(letters)) == 1 or re.search(r"(\S)\1{7}", text):
        return "repeats one letter"
    if len(words) > 1 and len(set(words)) == 1:
        return "repeats one word"
    if len(words) >= 6 and 3 * len(set(words)) <= len(words):
        return "repeats itself"
    return caption_fault(text)


def _one_line(text: str) -> str:
    signs = [sign if sign.isprintable() else " " for sign in unicodedata.normalize("NFC", text)]
    return " ".join("".join(signs).split())


def lead_of(concept_token: str, instance_prompt: str) -> str:
    """What stands before each suggestion: the prompt where it holds the token, else the token alone."""
    token, prompt = concept_token.strip(), instance_prompt.strip().rstrip(".,;: ")
    if fault := caption_fault(token):
        raise SettingsError(f"The concept token {fault}; write for example <myspecialstyle>.")
    return _one_line(prompt) if token in prompt else token


# Names and files


def _names(folder: Path, names: Iterable[str | Path]) -> list[str]:
    chosen: dict[str, None] = {}
    wrong = []
    for given in names:
        name = relative_name(folder, given)
        if name is None and (absolute := Path(given).absolute()).is_file():
            name = relative_name(folder, absolute)
        if name is None:
            wrong.append(f"{printable(given)} leads outside the folder")
        elif line_fault(name):
            wrong.append(f"{printable(name)} has a name that no line of text can hold: rename it")
        else:
            chosen[name] = None
    if wrong:
        raise complaint(folder, wrong, "Leave these out.")
    return list(chosen)


def _file(folder: Path, name: str) -> Path:
    return on_disk(folder, name) or folder / name


def _in_order(captions: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: captions[name] for name in names if name in captions} | dict(captions)


def written(folder: str | Path, file: Path | None = None) -> dict[str, str]:
    """The captions of annotations.txt by name; see AnnotationsFile.captions."""
    return AnnotationsFile(Path(folder), file).captions()


def saver(
    folder: str | Path,
    file: Path | None = None,
    say: Callable[[str], None] = _log.info,
    cache_dir: str | Path | None = None,
) -> Callable[[Mapping[str, str]], None]:
    """A `save` for annotations.txt. It writes what has changed since it was called last; the rest stays as it stands.

    What stood there before is kept as `….bak`. It raises PicturesError when the folder cannot be written; what was to
    be written is then below cache_dir, where that is given.
    """
    annotations = AnnotationsFile(Path(folder), file, say, cache_dir)
    before: dict[str, str] = annotations.captions()

    def save(captions: Mapping[str, str]) -> None:
        nonlocal before
        changed: dict[str, str | None] = {name: text for name, text in captions.items() if before.get(name) != text}
        changed |= dict.fromkeys(before.keys() - captions.keys())
        annotations.change(changed)
        before = dict(captions)

    return save
