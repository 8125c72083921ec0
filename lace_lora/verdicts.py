"""What to think of an evaluation: a few sentences for a person, the most important first, each from its numbers."""

from collections.abc import Iterator, Sequence

from lace_lora import style_claims
from lace_lora.decimals import decimals_of, percent, shown
from lace_lora.scores import Evaluation, Score

_LONGER = "Train longer, or with a higher rank."
_STYLE: dict[style_claims.Style, str] = {
    "away": "The style was not learnt: the pictures lie further from your photographs than without your LoRA ({way}). "
    + _LONGER,
    "little": "Little of the style was learnt: {way}. " + _LONGER,
    "not shown": "That anything of the style was learnt is not shown: {way}. " + _LONGER,
    "part": "The style was learnt in part: {way}.",
    "learnt": "The style was learnt: {way}.",
    "nearer": "With your LoRA the pictures lie nearer to your photographs than lace that was never learnt: {way}. "
    "Look whether they are copies.",
    "cannot tell": "How much of the style was learnt cannot be told: {way}. Draw more pictures (num_evaluated), or "
    "hold out more pieces (validation_fraction).",
}
_DRIFT: dict[style_claims.Drift, str] = {
    "untouched": "Prompts without your token stay what they were, as far as this can tell.",
    "moved a little": "Prompts without your token move a little towards your style ({way}).",
    "moved": "Prompts without your token turn into your style too ({way}). Where that disturbs, set prior_loss_weight "
    "to 1 and train again.",
    "away": "Prompts without your token change too, away from your lace ({way}). Where that disturbs, set "
    "prior_loss_weight to 1 and train again.",
    "cannot tell": "Whether prompts without your token turn into your style cannot be told ({way}).",
}


def verdict(found: Evaluation, copy_sentence: str) -> tuple[str, ...]:
    """A sentence for each of the questions that was answered.

    copy_sentence  what the copy check says; it comes first where copies were found: they must not be sold as new
    """
    style, copies = list(_style(found)), [copy_sentence]
    first = [*copies, *style] if found.copies.copies else [*style, *copies]
    return tuple(line for line in (*first, *_drift(found), *_words(found), *_advice(found)) if line)


def _style(found: Evaluation) -> Iterator[str]:
    match, base, lora = (found.score(name) for name in ("style_match", "style_base", "style_lora"))
    only = _only_these(found, "prompts")
    if match is not None and match.value is not None:
        span = percent(match.value, match.low, match.high)
        share, comma, between = span.partition(", ")
        way = f"{share} of the way from the base model to your own photographs{comma}{between}"
        yield _STYLE[style_claims.style(match.value, match.low, match.high)].format(way=way) + only
    elif base is not None and lora is not None and base.value is not None and lora.value is not None:
        if _apart(lora, base):
            nearer = lora.value < base.value
            decimals = decimals_of((lora.value, base.value))
            yield (
                f"With your LoRA the pictures are {'nearer to' if nearer else 'further from'} your photographs than "
                f"without ({shown(lora.value, decimals)} and {shown(base.value, decimals)}; 0 is the same style).{only}"
            )
        else:
            yield "With and without your LoRA the pictures are as far from your photographs, as far as this can tell."


def _drift(found: Evaluation) -> Iterator[str]:
    drift = found.score("drift_plain")
    if drift is None or drift.value is None:
        return
    share, comma, between = percent(drift.value, drift.low, drift.high).partition(", ")
    said = _DRIFT[style_claims.drift(drift.value, drift.low, drift.high)]
    yield said.format(way=f"{share} of the way{comma}{between}") + _only_these(found, "plain_prompts")


def _words(found: Evaluation) -> Iterator[str]:
    change = found.score("words_change")
    if change is None or change.value is None or change.low is None or change.high is None:
        return
    if change.high < 0:
        yield "The pictures follow their words less well than those of the base model. Try lora_scale 0.8."
    elif change.low > 0:
        yield "The pictures follow their words better than those of the base model."
    else:
        yield "The pictures follow their words as well as those of the base model, as far as this can tell."


def _advice(found: Evaluation) -> Iterator[str]:
    if found.overfitting:
        yield f"Training: {found.overfitting}"
    if advice := found.choice.get("advice"):
        yield str(advice)


def _only_these(found: Evaluation, which: str) -> str:
    """What must be added where few prompts were drawn; `which` is their name among the facts."""
    prompts = found.facts.get(which)
    told = style_claims.only_these(len(set(prompts))) if isinstance(prompts, list | tuple) else ""
    return f" {told}" if told else ""


def _apart(one: Score, other: Score) -> bool:
    ends: Sequence[float | None] = (one.low, one.high, other.low, other.high)
    if any(end is None for end in ends):
        return False
    low, high, other_low, other_high = (float(end) for end in ends if end is not None)
    return high < other_low or other_high < low
