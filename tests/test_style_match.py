"""Style match, variety and drift: what they are by definition, that they cover, when they are refused (D8, D9)."""

from types import SimpleNamespace

import numpy
import pytest

from benchmarks.coverage import gaussian_samples, population_distance, prompted_samples, repeated
from lace_lora import measuring
from lace_lora.mmd import Sample, distance
from lace_lora.resampling import Array, interval, symmetric_interval
from lace_lora.style_match import FEWEST, Reference, drift_score, style_scores, variety_scores
from tests.test_mmd import by_loops

FEATURES = 6


def rows(count: int, shift: float = 0.0, seed: int = 0, spread: float = 1.0) -> Array:
    """Around a place `shift` away from the training photographs."""
    around = numpy.random.default_rng(seed).normal(size=(count, FEATURES)) * spread
    return around + shift * numpy.eye(FEATURES)[0]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(rows(60, seed=1), rows(20, seed=2))


def by_id(scores):
    return {score.id: score for score in scores}


def test_scores_are_those_of_the_definition_in_the_unit_of_the_photographs(reference):
    """D8: computed again by slow loops; two training photographs lie 1 apart on average."""
    base, lora = rows(15, 5.0, seed=3), rows(15, 2.0, seed=4)
    scores = by_id(style_scores(base, lora, reference))
    assert list(scores) == ["style_base", "style_lora", "style_held_out", "style_match"]
    training, unseen = rows(60, seed=1), rows(20, seed=2)
    pairs = [numpy.linalg.norm(training[i] - training[j]) for i in range(60) for j in range(i)]
    unit = numpy.mean(pairs)
    far = {name: by_loops(one, training) for name, one in (("base", base), ("lora", lora), ("held_out", unseen))}
    for name, apart in far.items():
        assert scores[f"style_{name}"].value == pytest.approx(apart / unit)
    match = (far["base"] - far["lora"]) / (far["base"] - far["held_out"])
    assert scores["style_match"].value == pytest.approx(match)
    assert [one.count for one in scores.values()] == [15, 15, 20, 15]
    assert [one.better for one in scores.values()] == ["lower", "lower", "", "higher"]
    assert all(one.low < one.value < one.high and one.topic == "style" for one in scores.values())


def test_the_match_is_nothing_at_the_base_and_one_at_real_lace(reference):
    """D8: and past halfway when the pictures have gone half of the way, because distances grow faster than the way."""
    base = rows(30, 6.0, seed=3)
    values = [style_scores(base, rows(30, shift, seed=4), reference)[3] for shift in (6.0, 3.0, 0.0)]
    assert [one.value for one in values] == pytest.approx([0.0, 0.7, 1.0], abs=0.12)
    assert values[0].low < 0 < values[0].high < values[1].low and values[1].high < values[2].low < 1 < values[2].high


def test_the_sentences_say_what_was_found(reference):
    """D8."""
    base = rows(30, 6.0, seed=3)

    def say(lora: Array) -> str:
        return style_scores(base, lora, reference)[3].means

    assert "little of the way to your photographs, or nothing of it" in say(rows(30, 6.0, seed=4))
    assert "of the way to your photographs. 0 is the base" in say(rows(30, 3.0, seed=4))
    assert say(rows(30, seed=4)).startswith("As near to your photographs as unseen real lace")
    assert "draws further from your photographs than the base model" in say(rows(30, 12.0, seed=4))
    near = by_id(style_scores(base, rows(30, seed=4), reference))
    assert near["style_lora"].means == (
        "No difference from your photographs can be told with 30 of them; 0 would be none at all."
    )
    assert near["style_base"].means.startswith("0 would be no difference")
    other_kind = Reference.of(rows(60, seed=1), rows(20, 3.0, seed=2))
    held_out = style_scores(base, rows(30, seed=4), other_kind)
    assert "of a somewhat other kind than those learnt from" in held_out[2].means
    assert "Nearer to your photographs than unseen real lace is: look whether it copies" in held_out[3].means


def test_pictures_of_one_prompt_and_seed_vary_together(reference):
    """D8: where the LoRA moves each picture by the same step, the interval is narrower than for unrelated pictures."""
    base = rows(30, 6.0, seed=3)
    together = style_scores(base, base - 0.5 * numpy.eye(FEATURES)[0], reference)[3]
    apart = style_scores(base, rows(30, 5.5, seed=4), reference)[3]
    assert together.high - together.low < 0.5 * (apart.high - apart.low)
    with pytest.raises(ValueError, match="side by side, row by row; got 30 and 29 rows"):
        style_scores(base, base[1:], reference)


def test_near_duplicates_among_the_photographs_make_the_interval_no_narrower():
    """D8: every photograph twice, as one piece each, says as much as once."""
    base, lora, training, unseen = rows(20, 4.0, seed=3), rows(20, 2.0, seed=4), rows(20, seed=1), rows(8, seed=2)
    once = style_scores(base, lora, Reference.of(training, unseen))
    pieces = [number // 2 for number in range(40)], [number // 2 for number in range(16)]
    doubled = numpy.repeat(training, 2, axis=0), numpy.repeat(unseen, 2, axis=0)
    twice = style_scores(base, lora, Reference.of(*doubled, *pieces))
    for one, other in zip(once, twice, strict=True):
        assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high))
    blind = style_scores(base, lora, Reference.of(*doubled))
    assert blind[2].high - blind[2].low < 0.8 * (twice[2].high - twice[2].low)


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        (0, "it needs 5 or more pieces that were held out of training; none was. Raise validation_fraction"),
        (1, "it needs 5 or more pieces that were held out of training; one was."),
        (4, "it needs 5 or more pieces that were held out of training; only 4 were."),
    ],
)
def test_too_few_held_out_photographs_are_refused(pieces, says):
    """D8: the distances of base and LoRA are still told."""
    scores = by_id(style_scores(rows(20, 5.0, seed=3), rows(20, seed=4), Reference.of(rows(40), rows(pieces, seed=2))))
    assert scores["style_match"].value is None and scores["style_match"].refusal.startswith(says)
    assert scores["style_held_out"].value is None and "held out, 5 are needed" in scores["style_held_out"].refusal
    assert scores["style_base"].value > 1 and scores["style_lora"].value is not None


def test_five_photographs_of_one_piece_are_one_held_out_piece():
    """D8."""
    reference = Reference.of(rows(40), rows(9, seed=2), None, [0, 0, 0, 0, 0, 0, 1, 2, 3])
    assert reference.held_out is None and reference.pieces == 4


def test_a_base_that_cannot_be_told_from_lace_gives_no_match(reference):
    """D8: and neither does one that is nearer than what was held out."""
    near = style_scores(rows(30, 0.1, seed=3), rows(30, seed=4), reference)[3]
    assert near.value is None and "the base model cannot be told from real lace in this measure" in near.refusal
    odd = Reference.of(rows(60, seed=1), rows(20, 6.0, seed=2))
    nearer = style_scores(rows(30, 1.0, seed=3), rows(30, seed=4), odd)[3]
    assert nearer.value is None and "already lie nearer to the training photographs" in nearer.refusal


def test_too_few_pictures_and_too_few_photographs_are_refused(reference):
    """D8: each score says what to do, and none of them fails."""
    few = by_id(style_scores(rows(4, 5.0), rows(4), reference))
    assert few["style_lora"].refusal.startswith("4 pictures, 5 are needed. Draw more of them")
    assert "4 are there in both" in few["style_match"].refusal and few["style_held_out"].value is not None
    alone = by_id(style_scores(None, rows(30), reference))
    assert alone["style_base"].refusal.startswith("no pictures") and alone["style_match"].value is None
    assert alone["style_lora"].value is not None
    for learnt in (rows(4), numpy.zeros((9, FEATURES)), numpy.zeros((0, FEATURES))):
        assert Reference.of(learnt, rows(9)) is None
    nine = rows(9)
    every = [*style_scores(nine, nine, None), *variety_scores(nine, nine, None), drift_score(nine, nine, None)]
    assert len(every) == 8 and all(one.value is None and "fewer than 5 pieces" in one.refusal for one in every)


def test_variety_is_the_mean_distance_in_the_photographs_unit(reference):
    """D9: by loops; a set that is half as wide has half of the variety."""
    lora = rows(12, seed=5, spread=0.5)
    scores = by_id(variety_scores(rows(12, 4.0, seed=6), lora, reference))
    pairs = [numpy.linalg.norm(lora[i] - lora[j]) for i in range(12) for j in range(i)]
    assert scores["variety_lora"].value == pytest.approx(numpy.mean(pairs) / reference.unit.value)
    assert scores["variety_lora"].value == pytest.approx(0.5, abs=0.1)
    assert scores["variety_training"].value == 1 and scores["variety_training"].low < 1
    assert all(one.topic == "variety" and one.low <= one.value <= one.high for one in scores.values())


def test_the_same_thing_again_and_again_is_called_out(reference):
    """D9: a LoRA that draws one picture for every prompt, and one that is as varied as the photographs."""

    def say(lora: Array) -> str:
        return variety_scores(None, lora, reference)[0].means

    one = numpy.repeat(rows(1, seed=5), 20, axis=0)
    assert "nearly the same thing is drawn again and again" in say(one)
    assert "nearly the same thing is drawn again and again" in say(one + 0.05 * rows(20, seed=6))
    assert "differ less from each other than your photographs" in say(rows(30, seed=6, spread=0.7))
    assert "about as much as your photographs" in say(rows(30, seed=6))
    assert "differ more from each other" in say(rows(30, seed=6, spread=1.6))


def test_drift_is_measured_as_the_match_is_and_nothing_is_untouched(reference):
    """D8: plain prompts that did not move, that moved, and that moved away."""
    plain = rows(30, 6.0, seed=3)
    towards = numpy.eye(FEATURES)[0]
    untouched = drift_score(plain, plain + 0.01 * rows(30, seed=4), reference)
    assert untouched.value == pytest.approx(0, abs=0.01) and untouched.better == "lower"
    moved, away = drift_score(plain, plain - 2 * towards, reference), drift_score(plain, plain + 2 * towards, reference)
    assert moved.value == pytest.approx(style_scores(plain, plain - 2 * towards, reference)[3].value)
    assert "have moved towards your lace too" in moved.means and "prior_loss_weight" in moved.means
    assert away.high < 0 and "away from your lace" in away.means
    assert "have not moved towards your lace" in drift_score(plain, rows(30, 6.0, seed=9), reference).means
    refusal = drift_score(None, None, reference).refusal
    assert "prompts without the token, drawn with and without the LoRA; none are there in both" in refusal
    assert drift_score(None, None, reference).topic == "drift"


@pytest.mark.parametrize("held_out", [25, 8, FEWEST])
def test_intervals_hold_the_truth_in_at_least_ninety_of_a_hundred(held_out):
    """D8: Gaussian features whose distances are an integral; 30 made, 250 training photographs."""
    found = repeated(gaussian_samples(10, 4.0, 0.5, 30, 250, held_out), 100)
    assert min(found.covered.values()) >= 0.9, found
    assert found.refused <= 5
    assert found.truth["match"] == pytest.approx(0.724, abs=0.001)


@pytest.mark.parametrize(("prompts", "seeds"), [(30, 1), (8, 4), (6, 5), (5, 6)])
def test_intervals_of_few_prompts_hold_the_truth_of_all(prompts, seeds):
    """D8: also the mean is not off; taken each for itself, six prompts of five seeds miss in one of five repeats."""
    told = [number // seeds for number in range(prompts * seeds)]
    fresh = prompted_samples(10, 4.0, 0.5, prompts, seeds, 250, 25, only=False)
    found = repeated(fresh, 60, groups=told)
    assert min(found.covered.values()) >= 0.9, found
    assert found.mean == pytest.approx(found.truth["lora"], abs=0.08) and found.refused <= 3
    if seeds > 1:
        blind = repeated(fresh, 60)
        assert blind.covered["lora"] < 0.85 and blind.mean > found.truth["lora"] + 0.08


@pytest.mark.parametrize(("prompts", "seeds"), [(3, 10), (1, 30)])
def test_intervals_of_very_few_prompts_hold_what_is_true_of_these(prompts, seeds):
    """D8: which is all that is claimed then."""
    found = repeated(prompted_samples(10, 4.0, 0.5, prompts, seeds, 250, 25, only=True), 60)
    assert min(found.covered.values()) >= 0.9, found


def test_a_lora_that_fails_for_one_prompt_in_four_is_covered():
    """D8: of thirty pictures about seven decide, so the estimate is skewed; value ± t · error misses one in ten."""
    chance, away = numpy.random.default_rng(3), 6 * numpy.eye(FEATURES)[0]
    population = rows(3000, seed=12)
    population[:750] += away
    far = population_distance(population, rows(3000, seed=13))
    ours, symmetric = 0, 0
    for _ in range(200):
        lora = chance.normal(size=(30, FEATURES)) + (chance.random(30) < 0.25)[:, None] * away
        found = distance(Sample.of("made", lora), Sample.of("training", chance.normal(size=(100, FEATURES))))
        (low, high), (least, most) = interval(found, 0.95), symmetric_interval(found, 0.95)
        ours += low <= far <= high
        symmetric += least <= far <= most
    assert ours >= 180 and ours > symmetric


# Prompts that are drawn several times


def of_prompts(prompts: int, seeds: int, seed: int = 0, shift: float = 4.0) -> tuple[Array, list[str]]:
    """Rows of pictures that are alike where they show one prompt, and their prompts."""
    subjects = numpy.repeat(rows(prompts, shift, seed=seed), seeds, axis=0)
    return subjects + 0.3 * rows(prompts * seeds, seed=seed + 1), [f"p{n // seeds}" for n in range(prompts * seeds)]


def test_seeds_of_one_prompt_say_no_more_than_one_of_them(reference):
    """D8: where all five seeds of a prompt give one picture, the numbers and intervals are those of a picture each."""
    base, lora = rows(8, 4.0, seed=3), rows(8, 2.0, seed=4)
    again, told = [numpy.repeat(one, 5, axis=0) for one in (base, lora)], [n // 5 for n in range(40)]
    one = [*style_scores(base, lora, reference), drift_score(base, lora, reference)]
    five = [*style_scores(*again, reference, told), drift_score(*again, reference, told)]
    one, five = [*one, *variety_scores(base, lora, reference)], [*five, *variety_scores(*again, reference, told)]
    for single, many in zip(one, five, strict=True):
        assert (many.value, many.low, many.high) == pytest.approx((single.value, single.low, single.high)), many.id
        assert many.means.replace("40", "8") == single.means
    blind = style_scores(*again, reference)
    assert blind[1].high - blind[1].low < 0.7 * (five[1].high - five[1].low) and blind[1].value > five[1].value


@pytest.mark.parametrize(
    ("prompts", "only"),
    [
        (1, "For this one prompt only: other prompts may differ."),
        (4, "For these 4 prompts only: other prompts may differ."),
    ],
)
def test_numbers_of_few_prompts_say_that_they_hold_for_these(reference, prompts, only):
    """D8: what was refused says nothing of it, nor does what photographs alone tell."""
    (base, told), (lora, _) = of_prompts(prompts, 6, 3), of_prompts(prompts, 6, 5, 2.0)
    scores = [*style_scores(base, lora, reference, told), *variety_scores(base, lora, reference, told)]
    scores.append(drift_score(base, lora, reference, told))
    for score in scores:
        is_of_photographs = score.id in ("style_held_out", "variety_training")
        assert score.means.endswith(only) == (score.value is not None and not is_of_photographs), score
    loose = style_scores(base, lora, reference)
    assert (loose[1].value, loose[1].low, loose[1].high) == (scores[1].value, scores[1].low, scores[1].high)
    five = style_scores(*(of_prompts(5, 6, seed)[0] for seed in (3, 5)), reference, of_prompts(5, 6)[1])
    assert all("other prompts" not in score.means for score in five)


def test_the_measuring_of_style_groups_by_the_prompts_that_were_drawn(reference):
    """D8: styled pictures by theirs, plain ones by theirs."""
    drawn = {}
    for name, prompts, shift in (("base", 6, 4.0), ("lora", 6, 2.0), ("plain_base", 3, 4.0), ("plain_lora", 3, 3.0)):
        drawn[name], told = of_prompts(prompts, 4, len(drawn), shift)
        drawn["plain_told" if "plain" in name else "told"] = told
    looked = SimpleNamespace(learnt=rows(60, seed=1), unseen=rows(20, seed=2), **drawn)
    shown = SimpleNamespace(learnt=[SimpleNamespace(group=n) for n in range(60)],
                            unseen=[SimpleNamespace(group=n) for n in range(20)])  # fmt: skip
    scores = by_id(measuring.style(looked, shown, "", looked))
    expected = style_scores(drawn["base"], drawn["lora"], reference, drawn["told"])
    assert scores["style_match"] == expected[3] != style_scores(drawn["base"], drawn["lora"], reference)[3]
    assert scores["variety_lora"] == variety_scores(drawn["base"], drawn["lora"], reference, drawn["told"])[0]
    assert "For these 3 prompts only" in scores["drift_plain"].means
