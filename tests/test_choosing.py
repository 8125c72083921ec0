"""Which checkpoint to take: no copies, then the earliest within one standard error of the lowest loss (D9, P20)."""

import math
import random

import pytest

from lace_lora.choosing import choose


def look(step: int, *losses: float) -> dict[str, object]:
    return {"step": step, "val_loss": sum(losses) / len(losses), "val_losses": list(losses)}


FALLING = [look(0, 0.9, 0.7), look(100, 0.50, 0.30), look(200, 0.41, 0.19), look(300, 0.395, 0.20)]


def test_the_lowest_is_taken_where_nothing_before_it_is_as_good():
    """D9: step 100 is worse on both pictures by the same amount, so its difference has no error at all."""
    looks = [look(100, 0.50, 0.30), look(200, 0.40, 0.20)]
    choice = choose(looks, [100, 200], {200: [False] * 8})
    assert choice.step == 200 and "Take step 200: it has the lowest loss" in choice.advice
    assert [row.is_advised for row in choice.rows] == [False, True]


def test_the_earliest_that_is_as_good_is_taken_before_the_lowest():
    """D9: at step 200 one picture is better and the other worse than at step 300, and the means are alike."""
    choice = choose(FALLING, [100, 200, 300], {step: [False] for step in (100, 200, 300)})
    assert choice.step == 200 and "as good on held-out pictures as step 300" in choice.advice
    assert choice.finalists == (200, 300)


def test_the_standard_error_is_that_of_the_differences_by_hand():
    """D9: differences to the best are 0.02 and 0.00: mean 0.01, sample deviation 0.01414, over the root of two 0.01."""
    looks = [look(100, 0.42, 0.20), look(200, 0.40, 0.20)]
    row = choose(looks, [100, 200], {}).rows[0]
    assert row.low == pytest.approx(0.31 - 0.01) and row.high == pytest.approx(0.31 + 0.01)


def test_a_checkpoint_that_copies_is_never_taken_however_good_its_loss():
    choice = choose(FALLING, [200, 300], {200: [False, True], 300: [False, False]})
    assert choice.step == 300 and "Step 200 is not to be taken" in choice.advice
    assert choice.finalists == ()
    assert [row.copies for row in choice.rows if row.step == 200] == [1]


def test_where_all_copy_none_is_taken_and_what_to_do_is_said():
    choice = choose(FALLING, [200, 300], {200: [True], 300: [True]})
    assert choice.step is None and "Every checkpoint that is kept copies" in choice.advice
    assert not any(row.is_advised for row in choice.rows)


def test_one_that_was_deleted_is_named_and_not_taken():
    choice = choose(FALLING, [300], {300: [False]})
    assert choice.step == 300
    assert "Step 200 would have done already" in choice.advice and "checkpoints_to_keep" in choice.advice


def test_one_alone_is_taken_without_comparing_it_with_others():
    choice = choose([look(6, 0.5, 0.4)], [6], {6: [False]})
    assert choice.advice == "Take step 6: it is the only one that there is." and choice.finalists == ()


def test_where_nothing_that_is_kept_is_as_good_the_last_is_taken_and_the_better_one_named():
    looks = [look(100, 0.20, 0.10), look(200, 0.40, 0.30)]
    choice = choose(looks, [200], {})
    assert choice.step == 200 and "as good on held-out pictures as step 100 was" in choice.advice


def test_what_nobody_looked_at_is_not_said_to_copy_nothing():
    choice = choose([], [5, 10], {10: [True, False]})
    assert choice.step == 5 and "copies nothing" not in choice.advice
    assert "No pictures of it were compared" in choice.advice and "pictures of it are copies" in choice.advice
    both = choose([], [5, 10, 15], {10: [True], 15: [True]})
    assert "Steps 10 and 15 are not to be taken: pictures of them are copies." in both.advice


def test_without_looks_the_last_is_taken_and_eyes_are_asked():
    choice = choose([], [100, 200], {})
    assert choice.step == 200 and "compare the checkpoints by eye: lace-lora grid" in choice.advice
    assert choice.finalists == (200, 100)


def test_logs_without_single_losses_count_the_usual_jitter():
    """D9: 0.4 % of the loss; 0.501 is within it of 0.5, and 0.51 is not."""
    looks = [{"step": 100, "val_loss": 0.51}, {"step": 200, "val_loss": 0.501}, {"step": 300, "val_loss": 0.5}]
    assert choose(looks, [100, 200, 300], {}).step == 200


def test_looks_that_were_no_number_and_the_one_before_training_are_no_choice():
    looks = [look(0, 0.1, 0.1), {"step": 100, "val_loss": None, "val_losses": [None, 0.1]}, look(200, 0.4, 0.4)]
    choice = choose(looks, [100, 200], {})
    assert choice.step == 200 and choice.rows[0].val_loss is None


def test_the_choice_never_copies_is_always_kept_and_is_the_earliest_of_its_kind():
    """D9, over chance: whatever was looked at and kept."""
    chance = random.Random(0)
    for _ in range(200):
        steps = sorted(chance.sample(range(1, 30), 6))
        looks = [look(step, *(chance.uniform(0.3, 0.5) for _ in range(6))) for step in steps]
        kept = chance.sample(steps, chance.randint(1, 6))
        seen = {step: [chance.random() < 0.2 for _ in range(chance.randint(0, 4))] for step in steps}
        choice = choose(looks, kept, seen)
        clean = [row for row in choice.rows if row.is_kept and not row.copies]
        if not clean:
            assert choice.step is None
            continue
        taken = next(row for row in choice.rows if row.is_advised)
        assert taken in [*clean, *(row for row in choice.rows if row.is_advised and row.is_kept and not row.copies)]
        lowest = min(row.val_loss for row in choice.rows if row.val_loss is not None)
        good = [row.step for row in clean if row.is_lowest or (row.low is not None and row.low <= lowest)]
        assert taken.step == (good[0] if good else clean[-1].step)
        assert all(row.is_lowest or (math.isfinite(row.low) and row.low <= row.high) for row in choice.rows)
