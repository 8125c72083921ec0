"""What to draw: prompts shared out over pictures, with the concept token for the base, without it for the refiner."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# What a class prompt says before it comes to what is shown: "a photo of a painting".
OPENING = r"^\s*(an?\s+|the\s+)?([\w-]+\s+)?(photo|photograph|picture|image|scan)\s+of\s+"


@dataclass(frozen=True)
class Query:
    """One picture to draw: what the base is told, what the refiner is told instead, and its own seed."""

    prompt: str
    refiner_prompt: str
    negative_prompt: str
    seed: int


def shared_out(
    prompts: Sequence[str],
    count: int,
    *,
    seed: int,
    negative_prompt: str,
    concept_token: str,
    other_token: str,
    class_prompt: str,
    say: Callable[[str], None],
) -> list[Query]:
    """Exactly `count` queries, the prompts taking turns; picture i has the seed `seed` + i and can be drawn alone.

    concept_token  the token that the adapter learnt
    other_token    the token of the settings: where a prompt says that one, the adapter's is put in its place
    """
    asked = [_one_line(prompt) for prompt in prompts]
    told = [with_token(prompt, concept_token, other_token) for prompt in asked]
    refined = [refiner_prompt(prompt, concept_token, class_prompt) for prompt in told]
    changed = [new for old, new in zip(asked, told, strict=True) if old != new]
    if changed:
        say(f"! {len(changed)} of {len(asked)} prompts lacked {concept_token}; it is put in, as in {changed[0]!r}.")
    turns = [number % len(told) for number in range(count)]
    negative = _one_line(negative_prompt)
    return [Query(told[turn], refined[turn], negative, seed + number) for number, turn in enumerate(turns)]


def with_token(prompt: str, concept_token: str, other_token: str) -> str:
    """The prompt with the concept token: unchanged where it holds it, else in place of another token, else in front."""
    if re.search(token_pattern(concept_token), prompt, flags=re.I):
        return prompt
    exchanged = re.sub(token_pattern(other_token), lambda _: concept_token, prompt, flags=re.I)
    return exchanged if exchanged != prompt else f"{concept_token} {prompt}"


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


def too_long(lost: Mapping[str, str]) -> list[str]:
    """Lines about texts that do not fit into 75 tokens, given with the end of each that the model never sees."""
    lines = [
        f"! Too long for the model (75 tokens): {text[:40]!r} … loses its end: {end[:200]!r}"
        for text, end in list(lost.items())[:5]
    ]
    return lines if len(lost) <= 5 else [*lines, f"! {len(lost) - 5} more prompts are too long."]


def _one_line(text: str) -> str:
    """Without line breaks, tabs and double spaces, which tokenizers ignore and lists of prompts cannot hold."""
    return " ".join(text.split())
