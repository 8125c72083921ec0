"""What to draw: prompts shared out over pictures, with the concept token for the base, without it for the refiner.

A prompt may hold alternatives (see that room). The combination depends on the picture's number among those of its
prompt and on nothing else, so more pictures only add to a sheet.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lace_lora import prompt_files
from lace_lora.alternatives import Alternatives, alternatives, literal
from lace_lora.errors import SettingsError
from lace_lora.prompt_files import SEEDS, Asked, most_pictures, one_line, text_fault

CAPTIONS = "captions"  # in place of a prompts file: what is written about the photographs
# What a class prompt says before it comes to what is shown: "a photo of a painting".
OPENING = r"^\s*(an?\s+|the\s+)?([\w-]+\s+)?(photo|photograph|picture|image|scan)\s+of\s+"
_NAMED_AT_MOST = 20  # faults of prompts in one message

Place = tuple[int, int]  # of a picture: the row that asks for it, and its number among that row's, both from 0


@dataclass(frozen=True)
class Query:
    """One picture to draw: what the base is told, what the refiner is told instead, and its own seed.

    width, height   in px where the row asks for a size of its own; None for the sheet's
    subset          by which the design is grouped, where the row says so
    reference_path  the picture that the design is to be like, where the row names one
    """

    prompt: str
    refiner_prompt: str
    negative_prompt: str
    seed: int
    width: int | None = None
    height: int | None = None
    subset: str | None = None
    reference_path: str | None = None


def rows_of(
    prompts: Sequence[str],
    prompts_file: str | None,
    *,
    captions: Callable[[], Iterable[str]],
    instance_prompt: str,
    say: Callable[[str], None],
) -> list[Asked]:
    """What is asked for: the prompts file's rows, else the prompts that are set, else the instance prompt.

    prompts_file  a file as prompt_files reads it, or `captions`
    captions      gives the photographs' captions; called only where they are asked for

    Raises SettingsError for a file that cannot be drawn from, or where there are no captions.
    """
    if not prompts_file:
        return [Asked(prompt) for prompt in prompts] or [Asked(literal(instance_prompt))]
    if prompts:
        name = Path(prompts_file).name
        say(f"prompts_file {name} counts; the {len(prompts)} prompts that are set beside it are not drawn.")
    if prompts_file.strip().casefold() != CAPTIONS:
        return list(prompt_files.read(prompts_file))
    rows = from_captions(captions())
    if not rows:
        raise SettingsError(
            "prompts_file is captions, but the photographs have none. Write them first (lace-lora annotate, or "
            "notebook 02), or name a file of prompts."
        )
    return rows


def from_captions(captions: Iterable[str]) -> list[Asked]:
    """A row for each different caption, word for word: braces in it are no alternatives."""
    texts = dict.fromkeys(map(one_line, captions))
    return [Asked(literal(text)) for text in texts if text]


def shared_out(
    prompts: Sequence[str | Asked],
    count: int,
    *,
    seed: int,
    negative_prompt: str,
    concept_token: str,
    other_token: str,
    class_prompt: str,
    say: Callable[[str], None],
    base_prompt: str = "",
) -> list[Query]:
    """Exactly as many queries as are asked for, the prompts taking turns; each can be drawn alone from what it says.

    prompts        texts, or rows with a count, seed, negative prompt or size of their own
    count          pictures in all (num_images): rows without a count share evenly what the others leave of it
    seed           picture j of row k of n has seed + j·n + k, so that of plain prompts picture i has seed + i; a row
                   with a seed s of its own has s, s + 1, … Seeds begin again at 2**32
    concept_token  the token that the adapter learnt
    other_token    the token of the settings: where a prompt says that one, the adapter's is put in its place
    base_prompt    put around every prompt at its {prompt}, or in front of it; it may hold alternatives too

    Whatever a row says decides its own pictures only (how many rows there are decides the seeds of all without one).
    One case is told: where a row asks by seed for a picture that another row would come to, that one passes over it.

    Raises SettingsError naming every prompt that is empty, too long or has unbalanced braces; where counts leave rows
    nothing; and where two rows ask for the same picture.
    """
    unwanted = one_line(negative_prompt)
    rows = [Asked(one) if isinstance(one, str) else one for one in prompts]
    rows = [
        replace(row, negative_prompt=unwanted if row.negative_prompt is None else one_line(row.negative_prompt))
        for row in rows
    ]
    texts = _read(rows, base_prompt, (concept_token, other_token))
    shares = shares_of([row.count for row in rows], count, say)
    plain = {(row, turn): one_line(texts[row].at(turn)) for row, share in enumerate(shares) for turn in range(share)}

    # In words that the models know.
    with_it = {text: with_token(text, concept_token, other_token) for text in plain.values()}
    told = {place: with_it[text] for place, text in plain.items()}
    refined = {text: refiner_prompt(text, concept_token, class_prompt) for text in with_it.values()}
    changed = {row: told[row, turn] for row, turn in reversed(plain) if told[row, turn] != plain[row, turn]}
    if changed:
        as_in = changed[min(changed)]
        say(f"! {len(changed)} of {len(rows)} prompts lacked {concept_token}; it is put in, as in {as_in!r}.")

    seeds = _seeds(rows, told, seed, say)
    return [
        Query(
            prompt=told[place],
            refiner_prompt=refined[told[place]],
            negative_prompt=row.negative_prompt or "",
            seed=seeds[place],
            width=row.width,
            height=row.height,
            subset=row.subset,
            reference_path=row.reference_path,
        )
        for place in sorted(told, key=lambda place: (place[1], place[0]))
        for row in (rows[place[0]],)
    ]


def fault_of(prompts: Sequence[str], base_prompt: str, concept_token: str) -> str:
    """What is wrong with prompts or with the base prompt, such as a brace without its other half; empty if nothing."""
    try:
        _read([Asked(prompt) for prompt in prompts], base_prompt, (concept_token,))
    except SettingsError as error:
        return str(error)
    return ""


def shares_of(counts: Sequence[int | None], total: int, say: Callable[[str], None]) -> list[int]:
    """Pictures of each row: its own count, else an even share of what is left of `total`, the first rows one more.

    Where every row has a count their sum is made, whatever `total` is, and that is said, as is a row without picture.

    Raises SettingsError where the counts alone exceed `total` and other rows would get nothing, or any sheet.
    """
    own = sum(count or 0 for count in counts)
    sharing = [row for row, count in enumerate(counts) if count is None]
    left, most = total - own, most_pictures()
    if own > most:
        raise SettingsError(
            f"The prompts ask for {own:,} pictures; {most:,} are the most of a sheet. Lower the counts."
        )
    if not sharing and left:
        say(f"The prompts' own counts make {own} pictures; num_images {total} is overruled.")
    if sharing and left < 0:
        raise SettingsError(
            f"The prompts with a count ask for {own} pictures, more than num_images {total}, which leaves "
            f"{len(sharing)} without a count nothing. Set num_images to {own + len(sharing)}, or give each a count."
        )
    if sharing and left < len(sharing):
        say(
            f"! {len(sharing) - left} of {len(counts)} prompts get no picture: num_images is {total}. "
            f"Set it to {own + len(sharing)} to see each."
        )
    shares = [count or 0 for count in counts]
    for number, row in enumerate(sharing):
        shares[row] = left // len(sharing) + (number < left % len(sharing))
    return shares


def near_seeds(seed: int, count: int) -> list[int]:
    """Seeds for variations of the picture of one seed: always the same ones, and the first stay when more are wanted.

    A seed says nothing about likeness, so any would do. Those that follow it are its neighbours' on the sheet, so these
    come from a hash of it and lie from 2**31 on, where no setting's seed is.
    """
    found = {seed: None}  # a variation may be varied too
    for number in itertools.count():
        if len(found) > count:
            break
        drawn = hashlib.sha256(f"variation {number} of {seed}".encode()).digest()
        found[SEEDS // 2 + int.from_bytes(drawn[:4], "big") % (SEEDS // 2)] = None
    return list(found)[1:]


# -- words --


def with_token(prompt: str, concept_token: str, other_token: str) -> str:
    """The prompt with the concept token: unchanged where it holds it, else in place of another token, else in front."""
    if re.search(token_pattern(concept_token), prompt, flags=re.I):
        return prompt
    exchanged = re.sub(token_pattern(other_token), lambda _: concept_token, prompt, flags=re.I)
    return exchanged if exchanged != prompt else f"{concept_token} {prompt}".rstrip()


def refiner_prompt(prompt: str, concept_token: str, class_prompt: str) -> str:
    """The prompt in words that the refiner knows: the concept token, which it never saw, becomes its class words.

    In the middle of a prompt the token becomes what the class prompt shows ("a painting" of "a photo of a painting"),
    without a second article; at its head, where it stands for the style of all that follows, the whole class prompt:

        a photo of <myspecialstyle> with leaves  →  a photo of a painting with leaves
        <myspecialstyle> rosette on blue         →  a photo of a painting, rosette on blue
    """
    shown = re.sub(OPENING, "", class_prompt, flags=re.I)
    without_article = re.sub(r"^(an?|the)\s+", "", shown, flags=re.I)
    word = token_pattern(concept_token)
    rest = re.sub(rf"^\s*{word}[\s,]*", "", prompt, flags=re.I)
    if rest != prompt:
        prompt = f"{class_prompt}, {rest}" if rest else class_prompt
    prompt = re.sub(rf"\b(an?|the)\s+{word}", lambda found: f"{found[1]} {without_article}", prompt, flags=re.I)
    return re.sub(word, lambda _: shown, prompt, flags=re.I)


def token_pattern(concept_token: str) -> str:
    """A regular expression for the token as a word of its own ("sks" is not in "asks"); case is ignored, as by CLIP."""
    return rf"(?<!\w){re.escape(concept_token)}(?!\w)"


def too_long(lost: Mapping[str, str], fits: int = 75) -> list[str]:
    """Lines about texts that do not fit into so many tokens, given with the end of each that the model never sees."""
    lines = [
        f"! Too long for the model ({fits} tokens): {text[:40]!r} … loses its end: {end[:200]!r}"
        for text, end in list(lost.items())[:5]
    ]
    return lines if len(lost) <= 5 else [*lines, f"! {len(lost) - 5} more prompts are too long."]


# -- inside --


def _read(rows: Sequence[Asked], base_prompt: str, tokens: Sequence[str]) -> list[Alternatives]:
    """Every row's prompt inside the base prompt, or one error for all that cannot be read."""
    texts = []
    faults = []
    try:
        if base_prompt.strip() and (fault := text_fault(base_prompt)):
            raise SettingsError(fault)
        frame = _frame(_with_plain(one_line(base_prompt), tokens)) if base_prompt.strip() else None
    except SettingsError as error:
        raise SettingsError(f"base_prompt {error}. Write \\{{ or \\}} for the sign itself.") from error
    for number, row in enumerate(rows, 1):
        try:
            if fault := text_fault(row.prompt):
                raise SettingsError(fault)
            text = alternatives(_with_plain(one_line(row.prompt), tokens))
            texts.append(frame(text) if frame else text)
        except SettingsError as error:
            faults.append(f"Prompt {number} {error}.")
    if faults:
        advice = "Correct this and run again; a brace as a sign of its own is written \\{ or \\}."
        raise SettingsError(_first(faults, "\n", "And {} more.") + "\n" + advice)
    return texts


def _with_plain(text: str, tokens: Sequence[str]) -> str:
    """A text in which the concept token is no group of alternatives, for one that is written {lace}."""
    for token in tokens:
        if literal(token) != token:
            text = re.sub(token_pattern(token), lambda found: literal(found[0]), text, flags=re.I)
    return text


def _frame(base: str) -> Callable[[Alternatives], Alternatives]:
    """What puts a prompt into the base prompt."""
    anything = Alternatives(("\0",))
    if alternatives(base, anything) != alternatives(base):
        return lambda prompt: alternatives(base, prompt)
    before = alternatives(base.rstrip(" ,;."))
    return lambda prompt: Alternatives((*before.parts, ", ", *prompt.parts))


def _seeds(rows: Sequence[Asked], told: Mapping[Place, str], seed: int, say: Callable[[str], None]) -> dict[Place, int]:
    """The seed of every picture: the row's own, or one that nobody has taken with that prompt."""
    seeds = {(row, turn): (own + turn) % SEEDS for row, turn in told if (own := rows[row].seed) is not None}
    _check_alike(rows, {place: (told[place], own) for place, own in seeds.items()}, say)
    taken = {(told[place], own) for place, own in seeds.items()}
    passed: Counter[int] = Counter()
    for (row, turn), text in told.items():
        while (row, turn) not in seeds:
            own = (seed + (turn + passed[row]) * len(rows) + row) % SEEDS
            if (text, own) in taken:
                passed[row] += 1
            else:
                seeds[row, turn] = own
                taken.add((text, own))
    if passed.total():
        names = _first([str(row + 1) for row in sorted(passed) if passed[row]], ", ", "and {} more")
        say(f"! Another prompt asks for the same picture by its seed; passed over that seed in prompt {names}.")
    return seeds


def _check_alike(rows: Sequence[Asked], asked: Mapping[Place, tuple[str, int]], say: Callable[[str], None]) -> None:
    """Rows that ask for one prompt and seed: refused where the pictures would be the same, else told."""
    same: dict[tuple[int, int], str] = {}
    alike: dict[tuple[int, int], str] = {}
    first: dict[tuple[object, ...], int] = {}
    for (row, _), what in asked.items():
        one = rows[row]
        twin = first.setdefault((*what, one.negative_prompt, one.width, one.height), row)
        other = first.setdefault(what, row)
        pairs, earlier = (alike, other) if twin == row else (same, twin)
        if earlier != row:
            text = f"Prompts {earlier + 1} and {row + 1} ask for {what[0]!r} with seed {what[1]}"
            pairs.setdefault((earlier, row), text)
    if same:
        pictures = _first([f"{text}: the same picture." for text in same.values()], "\n", "And {} more.")
        raise SettingsError(f"{pictures}\nGive one of them another seed, or a smaller count.")
    if alike:
        say(
            _first(
                [f"{text}, in another size or with another negative prompt." for text in alike.values()],
                "\n",
                "And {} more.",
            )
        )


def _first(texts: Sequence[str], between: str, rest: str) -> str:
    """The first of many texts, and how many more there are."""
    more = [rest.format(len(texts) - _NAMED_AT_MOST)] if len(texts) > _NAMED_AT_MOST else []
    return between.join([*texts[:_NAMED_AT_MOST], *more])
