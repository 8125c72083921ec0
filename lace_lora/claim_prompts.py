"""Claims as prompts: the recipe's template filled in, with what distinguishes a claim in front, within CLIP's budget.

A dependent claim adds to its parent: what it adds is its main feature, and its parent's comes behind it as a detail.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lace_lora.alternatives import literal
from lace_lora.claim_language import shortened
from lace_lora.claim_links import Claim
from lace_lora.claims import Key
from lace_lora.patent_recipe import Recipe
from lace_lora.prompt_files import LONGEST_SUBSET

MOST_DETAILS = 12  # of a claim and those above it; more never fit
Count = Callable[[str], int]


@dataclass(frozen=True)
class Prompt:
    """What is drawn for a claim.

    text      for a caption: the concept token first, then the filled template
    negative  what must not be seen
    subset    by which designs are grouped: the category
    tokens    that the text takes, of those the budget allows
    lost      what of the claim's features did not fit, in their words
    """

    claim: Claim
    text: str
    negative: str
    subset: str
    main_feature: str
    details: tuple[str, ...]
    tokens: int
    lost: str = ""

    @property
    def as_query(self) -> str:
        """The text as a prompts file holds it, where { and | would mean a choice."""
        return literal(self.text)


def claims_to_prompts(claims: Sequence[Claim], recipe: Recipe, count: Count | None = None) -> tuple[Prompt, ...]:
    """A prompt for each claim, in their order.

    count  how many tokens a text takes; without it, an estimate from its letters, which is rather too high
    """
    by_key = {claim.key: claim for claim in claims}
    return tuple(_prompt(claim, by_key, recipe, count or estimated_tokens) for claim in claims)


def estimated_tokens(text: str) -> int:
    """Tokens of a text by its signs: CLIP has one for a common word, and about one for four letters of another."""
    return sum(1 + max(0, len(word) - 3) // 5 for word in re.findall(r"\w+|[^\w\s]", text))


def features_of(claim: Claim, by_key: Mapping[Key, Claim]) -> tuple[str, tuple[str, ...]]:
    """The main feature of a claim and its details: what is its own first, then what it has from its parents."""
    found = list(claim.features)
    above, seen = [*claim.parents], {claim.key}
    while above:
        key = above.pop(0)
        if key in by_key and key not in seen:
            found += by_key[key].features[: None if not found else 1]
            above += by_key[key].parents
        seen.add(key)
    named = list(dict.fromkeys(found)) or [claim.title or claim.category]
    return named[0], tuple(named[1 : MOST_DETAILS + 1])


def negative_of(claim: Claim, recipe: Recipe) -> str:
    """The recipe's negative prompt, with what it adds for words of the claim's category or text."""
    text = f"{claim.category} {claim.normalized}".casefold()
    more = [
        added for word, added in recipe.negative_by_word.items()
        if re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", text)
    ]  # fmt: skip
    return ", ".join(one for one in (recipe.negative_prompt, *more) if one.strip())


# -- inside --


def _prompt(claim: Claim, by_key: Mapping[Key, Claim], recipe: Recipe, count: Count) -> Prompt:
    main, details = features_of(claim, by_key)
    long = len(main.split())

    def filled(most_words: int, most_details: int) -> str:
        return _filled(claim, recipe, shortened(main, most_words), details[:most_details])

    def fits(most_words: int, most_details: int) -> bool:
        return count(filled(most_words, most_details)) <= recipe.budget

    kept = _largest(lambda number: fits(long, number), len(details))
    shown = shortened(main, long if kept else max(1, _largest(lambda number: fits(number, 0), long)))
    text = filled(len(shown.split()), kept)
    lost = ", ".join(part for part in (main.removeprefix(shown).strip(" ,;:"), *details[kept:]) if part)
    return Prompt(
        claim, text, negative_of(claim, recipe), claim.category[:LONGEST_SUBSET].strip(),
        shown, details[:kept], count(text), lost,
    )  # fmt: skip


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, by halving; 0 where none does."""
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _filled(claim: Claim, recipe: Recipe, main: str, details: Sequence[str]) -> str:
    """The template with these features, the token in front, and without the signs that an empty field leaves."""
    text = recipe.template.format(
        category=claim.category, main_feature=main, details=", ".join(details), claim_id=claim.claim_id,
        patent_id=claim.patent_id, figures=", ".join(claim.figures), title=claim.title,
    )  # fmt: skip
    text = re.sub(r"\s+([,;.])", r"\1", " ".join(text.split()))
    text = re.sub(r"([,;])(?:[,;\s]*)(?=[,;.]|$)|^[\s,;]+", "", text)
    has_token = re.search(rf"(?<!\w){re.escape(recipe.concept_token)}(?!\w)", text, re.I)
    return text if has_token else f"{recipe.concept_token} {text}"
