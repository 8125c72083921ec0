"""What is claimed of a style: mark, verdict and sentence from one table, on both sides of every limit (D8, P20)."""

import pytest

from lace_lora import report_evidence, style_claims
from lace_lora.scores import CopyCheck, Evaluation, Nearest, Score
from lace_lora.style_match import _drift_sentence, _match_sentence
from lace_lora.verdicts import verdict

FRESH = CopyCheck("likeness", 0.6, 20, (Nearest("a.png", "b.jpg", 0.2, False),))
COPIED = CopyCheck("likeness", 0.6, 20, (Nearest("a.png", "b.jpg", 0.9, True),))

STYLES = [
    ((-0.5, -0.9, -0.1), "away"),
    ((0.1, 0.02, 0.18), "little"),
    ((0.0, 0.0, 0.0), "little"),
    ((-0.1, -0.3, 0.1), "little"),
    ((0.15, -0.1, 0.35), "little"),
    ((0.15, -0.1, 0.36), "not shown"),
    ((0.15, 0.01, 0.36), "cannot tell"),
    ((0.5, -0.1, 1.2), "not shown"),
    ((0.9, 0.05, 1.6), "cannot tell"),
    ((0.9, 0.24, 1.6), "cannot tell"),
    ((0.9, 0.25, 1.6), "learnt"),
    ((0.5, 0.4, 0.6), "learnt"),
    ((0.49, 0.4, 0.6), "part"),
    ((0.2, 0.1, 0.75), "part"),
    ((0.2, 0.09, 0.75), "cannot tell"),
    ((0.2, 0.1, 0.76), "cannot tell"),
    ((0.19, 0.1, 0.75), "cannot tell"),
    ((1.2, 1.0, 1.4), "learnt"),
    ((1.2, 1.01, 1.4), "nearer"),
    ((0.9, None, None), "cannot tell"),
]
DRIFTS = [
    ((0.0, -0.1, 0.1), "untouched"),
    ((0.0, -0.25, 0.25), "untouched"),
    ((0.1, 0.05, 0.2), "moved a little"),
    ((0.1, 0.05, 0.25), "moved a little"),
    ((0.1, 0.05, 0.26), "cannot tell"),
    ((0.0, -0.26, 0.1), "cannot tell"),
    ((0.4, 0.25, 0.5), "cannot tell"),
    ((0.4, 0.26, 0.5), "moved"),
    ((-0.2, -0.3, -0.1), "away"),
    ((0.1, None, None), "cannot tell"),
]
# Of each claim: how the verdict begins, what the score's sentence holds, and the mark where nothing is a copy.
SAID = {
    "away": ("The style was not learnt: the pictures lie further", "draws further from your photographs", "problem"),
    "little": ("Little of the style was learnt:", "little of the way", "problem"),
    "not shown": ("That anything of the style was learnt is not shown:", "Whether the LoRA draws nearer", "closer"),
    "part": ("The style was learnt in part:", "a part of it", "closer"),
    "learnt": ("The style was learnt:", "", "good"),
    "nearer": ("With your LoRA the pictures lie nearer to your photographs than lace", "whether it copies", "closer"),
    "cannot tell": ("How much of the style was learnt cannot be told:", "how much nearer cannot be told", "closer"),
}
DRIFT_SAID = {
    "untouched": ("stay what they were", "have not moved"),
    "moved a little": ("move a little towards your style", "moved a little towards"),
    "moved": ("turn into your style too", "have moved towards your lace too"),
    "away": ("away from your lace", "away from your lace"),
    "cannot tell": ("cannot be told", "cannot be told"),
}


def found(style=None, drift=None, copies: CopyCheck = FRESH, **facts: object) -> Evaluation:
    numbers = (("style_match", "style", style), ("drift_plain", "drift", drift))
    scores = tuple(Score(id, id, topic, *one) for id, topic, one in numbers if one)
    return Evaluation("run", "today", scores=scores, copies=copies, facts=facts)


@pytest.mark.parametrize(("numbers", "claim"), STYLES)
def test_verdict_sentence_and_mark_claim_the_same_of_a_style(numbers, claim):
    """P20, D8: where one says that little was learnt, none says that it was."""
    assert style_claims.style(*numbers) == claim
    begins, holds, mark = SAID[claim]
    said = verdict(found(numbers), "")
    assert len(said) == 1 and said[0].startswith(begins)
    assert report_evidence.standing(found(numbers)).kind == mark
    if numbers[1] is not None:
        sentence = _match_sentence(numbers[0], numbers[1:])
        assert holds in sentence
        if claim == "learnt":
            assert sentence.startswith(("As near to your photographs as unseen", "The LoRA has gone about 50 %"))


@pytest.mark.parametrize(("numbers", "claim"), DRIFTS)
def test_verdict_and_sentence_claim_the_same_of_a_drift(numbers, claim):
    """D8: what has moved a little does not stay what it was."""
    assert style_claims.drift(*numbers) == claim
    in_verdict, in_score = DRIFT_SAID[claim]
    said = verdict(found(drift=numbers), "")
    assert len(said) == 1 and in_verdict in said[0]
    assert ("prior_loss_weight" in said[0]) == (claim in ("moved", "away"))
    if numbers[1] is not None:
        assert in_score in _drift_sentence(numbers[0], numbers[1:])


def test_every_claim_has_its_sentences():
    """P20: none of the table's claims is forgotten, and none is left without a case."""
    assert {claim for _, claim in STYLES} == set(SAID) and {claim for _, claim in DRIFTS} == set(DRIFT_SAID)


@pytest.mark.parametrize(
    ("copies", "mark"), [(FRESH, "good"), (COPIED, "problem"), (CopyCheck(refusal="no photographs"), "closer")]
)
def test_a_style_is_good_only_where_copies_were_looked_for_and_none_found(copies, mark):
    """P20, D9: the sentence on copies stands beside that on the style, and before it where copies were found."""
    looked = found((0.7, 0.6, 0.8), copies=copies)
    assert report_evidence.standing(looked).kind == mark
    style = "The style was learnt: 70 % of the way from the base model to your own photographs, between 60 and 80 %."
    both = (style, "what was copied.")
    assert verdict(looked, "what was copied.") == (both[::-1] if copies is COPIED else both)


def test_a_style_that_was_not_learnt_is_a_problem_also_without_a_look_for_copies():
    """P20."""
    stands = report_evidence.standing(found((0.1, 0.02, 0.18), copies=CopyCheck(refusal="no photographs")))
    assert stands.kind == "problem" and stands.why == "Little of the style was learnt."


@pytest.mark.parametrize(
    ("prompts", "adds"),
    [
        (["a"], " For this one prompt only: other prompts may differ."),
        (["a", "b", "b", "c", "d"], " For these 4 prompts only: other prompts may differ."),
        (["a", "b", "c", "d", "e"], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_a_verdict_on_few_prompts_claims_no_more_than_these(prompts, adds):
    """D8: those with the token and those without each have their own number."""
    style, drift = verdict(found((0.7, 0.6, 0.8), (0.4, 0.3, 0.5), prompts=prompts, plain_prompts=["a"] * 3), "")
    assert style.endswith(f"between 60 and 80 %.{adds}")
    assert drift.endswith(" For this one prompt only: other prompts may differ.")


def test_without_judges_or_numbers_there_is_no_verdict_on_the_style():
    """P20: a number that was refused claims nothing; without the ratio the two distances speak."""
    refused = Score("style_match", "style match", "style", None, refusal="too few")
    assert verdict(Evaluation("run", "today", scores=(refused,)), "") == ()
    assert verdict(Evaluation("run", "today"), "no copies.") == ("no copies.",)
    assert report_evidence.standing(Evaluation("run", "today", scores=(refused,), copies=FRESH)).kind == "closer"

    def distances(lora, base):
        scores = (refused, Score("style_lora", "", "style", *lora), Score("style_base", "", "style", *base))
        return verdict(Evaluation("run", "today", scores=scores), "")[0]

    nearer = distances((0.012, 0.010, 0.014), (0.034, 0.030, 0.038))
    assert "nearer to your photographs than without (0.012 and 0.034; 0 is the same style)" in nearer
    assert "further from" in distances((3.0, 2.5, 3.5), (1.0, 0.5, 1.5))
    assert "as far from your photographs" in distances((1.4, 0.5, 2.0), (1.0, 0.5, 1.5))
    assert "as far from your photographs" in distances((3.0, None, None), (1.0, None, None))


def test_words_and_advice_follow_the_style():
    """P21: worse, better and not told apart; the log and the choice of a checkpoint come last."""
    for bounds, says in (((-0.03, -0.01), "less well"), ((0.01, 0.03), "better than"), ((-0.01, 0.03), "as well as")):
        change = Score("words_change", "words", "words", sum(bounds) / 2, *bounds)
        looked = Evaluation("run", "today", scores=(change,), overfitting="it copies.", choice={"advice": "Take 3."})
        said = verdict(looked, "None is a copy.")
        assert says in said[1] and (said[0], *said[2:]) == ("None is a copy.", "Training: it copies.", "Take 3.")
