"""Blind pairs (P24, D8): what is asked, how answers are kept, and what they can and cannot show."""

import json
import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import blind
from lace_lora.blind import Answer, limits, pairs, record, result, take_back, unanswered
from lace_lora.errors import LaceError, PicturesError
from lace_lora.run_folder import RunFolder

BASE, LORA = "the base model", "your LoRA"


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "rose").create()


@pytest.fixture
def drawn(tmp_path):
    """Ten pictures of the base and ten of the LoRA, all different."""
    lists = []
    for side in range(2):
        paths = [tmp_path / f"{side}-{number}.png" for number in range(10)]
        for number, path in enumerate(paths):
            Image.new("RGB", (4, 4), (100 * side, number, 0)).save(path)
        lists.append(paths)
    return lists


def asked(drawn, seed=1):
    return pairs(BASE, drawn[0], LORA, drawn[1], seed)


def said(left=0, right=0, same=0, neither=0, names=(BASE, LORA)):
    """So many answers of each kind, the second name on the left of every other pair."""
    words = ["left"] * left + ["right"] * right + ["same"] * same + ["neither"] * neither
    return [Answer(f"{names} {number}", *names, word) for number, word in enumerate(words)]


# -- asking --


def test_P24_pairs_belong_together_in_a_random_order_with_half_of_the_sides_exchanged(drawn):
    """P24: the same seed and files give the same pairs; partners stay partners."""
    made = asked(drawn)
    assert made == asked(drawn) and made != asked(drawn, seed=2)
    for pair in made:
        names = {pair.left_name: pair.left, pair.right_name: pair.right}
        number = drawn[0].index(names[BASE])
        assert names[LORA] == drawn[1][number]
    numbers = [drawn[0].index({pair.left_name: pair.left, pair.right_name: pair.right}[BASE]) for pair in made]
    assert sorted(numbers) == list(range(10)) != numbers
    assert sum(pair.left_name == LORA for pair in made) == 5
    assert len({pair.key for pair in made}) == 10


def test_P24_sides_cannot_be_told_from_the_order(drawn):
    """P24: over many seeds every place has each name on the left about as often."""
    left = [[pair.left_name == LORA for pair in asked(drawn, seed)] for seed in range(200)]
    for place in zip(*left, strict=True):
        assert 65 < sum(place) < 135


def test_P24_a_pair_is_known_by_what_is_in_its_files(drawn, tmp_path):
    """P24: under whatever names and in whatever order; a picture drawn anew is another pair."""
    keys = {pair.key for pair in asked(drawn)}
    assert {pair.key for pair in pairs("a", drawn[1], "b", drawn[0], 7)} == keys
    moved = drawn[0][3].rename(tmp_path / "moved.png")
    assert {pair.key for pair in pairs(BASE, [*drawn[0][:3], moved, *drawn[0][4:]], LORA, drawn[1], 1)} == keys
    Image.new("RGB", (4, 4), "white").save(moved)
    changed = {pair.key for pair in pairs(BASE, [*drawn[0][:3], moved, *drawn[0][4:]], LORA, drawn[1], 1)}
    assert len(changed & keys) == 9


def test_P24_lists_that_do_not_belong_together_are_refused(drawn):
    """P24: all that is gone is named."""
    with pytest.raises(PicturesError, match="a partner for each picture: 9 of the base model, 10 of your LoRA"):
        pairs(BASE, drawn[0][:9], LORA, drawn[1], 1)
    drawn[0][2].unlink()
    drawn[1][5].unlink()
    with pytest.raises(PicturesError, match=r"cannot be read: 0-2.png, 1-5.png\. Draw them again"):
        asked(drawn)
    assert pairs(BASE, [], LORA, [], 1) == ()


# -- answers --


def test_P24_each_answer_is_on_the_disk_at_once_and_is_not_asked_again(run, drawn):
    """P24: whoever comes back goes on where they stopped."""
    made = asked(drawn)
    assert blind.answers(run) == [] and unanswered(made, []) == list(made)
    for number, word in enumerate(blind.SAID):
        record(run, made[number], word)
        assert len(run.blind_answers.read_text().splitlines()) == number + 1
    found = blind.answers(run)
    assert [answer.said for answer in found] == ["left", "right", "same", "neither"]
    assert found[0].better == made[0].left_name and found[1].better == made[1].right_name
    assert found[2].better == found[3].better == ""
    assert unanswered(asked(drawn), found) == list(made[4:])
    other = unanswered(asked(drawn, seed=9), found)
    assert {pair.key for pair in other} == {pair.key for pair in made[4:]}
    renamed = pairs("step 250", drawn[0], "step 500", drawn[1], 1)
    assert len(unanswered(renamed, found)) == 10, "another comparison"
    assert take_back(run, renamed) is None
    twice = (made[5], made[6], made[5])
    assert unanswered(twice, found) == [made[5], made[6]], "the same pictures are asked once"


def test_P24_the_last_answer_is_taken_back_and_then_the_one_before(run, drawn):
    """P24: of these pairs alone; what was said of others stays."""
    made = asked(drawn)
    elsewhere = pairs("a", drawn[0][:1], "b", drawn[0][1:2], 0)
    record(run, made[0], "left")
    record(run, made[1], "right")
    record(run, elsewhere[0], "same")
    assert take_back(run, made) == made[1] and take_back(run, made) == made[0] and take_back(run, made) is None
    assert [answer.key for answer in blind.answers(run)] == [elsewhere[0].key]
    record(run, made[1], "neither")
    assert [answer.said for answer in blind.answers(run)] == ["same", "neither"]
    assert len(run.blind_answers.read_text().splitlines()) == 6, "nothing that was said is lost"


def test_P24_a_line_that_a_cut_left_half_costs_no_other_answer(run, drawn):
    """P24: nor do lines that somebody changed."""
    made = asked(drawn)
    record(run, made[0], "left")
    run.blind_answers.write_text(run.blind_answers.read_text() + '[1]\n{"pair": 3}\n{"pair": "x", "said": "up"}\n{"pa')
    record(run, made[1], "right")
    assert [answer.said for answer in blind.answers(run)] == ["left", "right"]
    run.blind_answers.unlink()
    run.blind_answers.mkdir()
    for act in (lambda: record(run, made[0], "left"), lambda: blind.answers(run)):
        with pytest.raises(LaceError, match="blind.jsonl"):
            act()


# -- what they show --


def test_D8_the_sign_test_is_that_of_all_ways_in_which_coins_can_fall():
    """D8: counted out, by fractions."""
    for tries in range(1, 11):
        ways = [sum(fall) for fall in product((0, 1), repeat=tries)]
        for wins in range(tries + 1):
            as_far = sum(abs(2 * way - tries) >= abs(2 * wins - tries) for way in ways)
            found = result(said(left=tries - wins, right=wins), LORA, BASE).chance
            assert found == pytest.approx(float(Fraction(as_far, 2**tries)))


@pytest.mark.parametrize(
    "wins, losses, begins",
    [
        (18, 12, "18 of 30 for your LoRA: not yet more than chance (a coin does this in 36 of 100 tries)."),
        (21, 9, "21 of 30 for your LoRA: more than chance (a coin does this in 4 of 100 tries)."),
        (20, 10, "20 of 30 for your LoRA: not yet more than chance (a coin does this in 10 of 100 tries)."),
        (9, 21, "21 of 30 for the base model: more than chance (a coin does this in 4 of 100 tries)."),
        (30, 0, "30 of 30 for your LoRA: more than chance (a coin does this in fewer than 1 of 100 tries)."),
        (5, 0, "5 of 5 for your LoRA: not yet more than chance (a coin does this in 6 of 100 tries). If it stays so, "
               "about 6 answers would show it."),
        (10, 10, "10 of 20 for each: no difference is to be seen."),
        (0, 0, "Nobody has said yet which picture is better."),
    ],
)  # fmt: skip
def test_D8_the_result_says_what_it_can_and_cannot_show(wins, losses, begins):
    """D8: 21 of 30 is more than chance, 18 and 20 are not."""
    assert result(said(left=losses, right=wins), LORA, BASE).sentence.startswith(begins)


def test_D8_it_says_how_many_answers_would_show_it():
    """D8: about a hundred where it stays 18 of 30; no number where the two are as good as alike."""
    assert "about 110 answers would show it" in result(said(left=12, right=18), LORA, BASE).sentence
    assert "hundreds of answers would not tell them apart" in result(said(left=14, right=16), LORA, BASE).sentence


def test_D8_same_and_neither_count_for_no_side_and_that_is_said():
    """D8."""
    found = result(said(left=1, right=7, same=3, neither=2), LORA, BASE)
    assert (found.wins, found.losses, found.undecided) == (7, 1, 5)
    assert found.chance == result(said(left=1, right=7), LORA, BASE).chance
    assert found.sentence.endswith("Of 13 answers 3 “same” and 2 “neither” count for no side.")
    assert found.score.value == pytest.approx(7 / 8) and found.score.count == 8
    none = result(said(same=2), LORA, BASE).score
    assert none.value is None and none.refusal.startswith("No picture was preferred.") and none.count == 2


@pytest.mark.parametrize(
    "wins, tries, low, high",
    [(21, 30, 0.5060, 0.8527), (18, 30, 0.4060, 0.7734), (0, 10, 0, 0.3085), (10, 10, 0.6915, 1)],
)  # fmt: skip
def test_D8_the_interval_is_the_exact_one(wins, tries, low, high):
    """D8: of none or all of n by its closed form, 1 − (α/2)^(1/n); the others from tables of the binomial."""
    score = result(said(left=tries - wins, right=wins), LORA, BASE).score
    assert (score.low, score.high) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))
    if wins == 0:
        assert score.high == pytest.approx(1 - 0.025 ** (1 / tries))


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_D8_interval_test_and_sentence_agree_and_sides_are_alike(wins, losses):
    """D8: the interval leaves out a half exactly where it is more than chance; names exchanged, all is mirrored."""
    found, mirrored = (result(said(left=losses, right=wins), *names) for names in ((LORA, BASE), (BASE, LORA)))
    assert found.chance == mirrored.chance and (found.wins, found.losses) == (mirrored.losses, mirrored.wins)
    if wins + losses:
        score = found.score
        assert (not score.low <= 0.5 <= score.high) == (found.chance < 0.05) == (": more than chance" in found.sentence)
        assert math.isclose(score.low, 1 - mirrored.score.high, abs_tol=1e-9)
        assert 0 <= score.low <= score.value <= score.high <= 1


def test_D8_four_checkpoints_cannot_be_ranked_from_thirty_answers():
    """D8: answers of other comparisons are passed over, and that a ranking needs more is said."""
    steps = [f"step {number}" for number in (250, 500, 750, 1000)]
    mixed = said(left=10, names=steps[:2]) + said(right=10, names=steps[1:3]) + said(left=10, names=steps[2:])
    assert limits(mixed).startswith("Four of them cannot be ranked from 30 answers: each two need 30 of their own.")
    assert limits(said(left=30)) == "" == limits([])
    assert (result(mixed, steps[0], steps[1]).wins, result(mixed, steps[0], steps[1]).losses) == (10, 0)


def test_P24_what_is_written_is_plain_json_a_line(run, drawn):
    """P24: for whoever counts themselves."""
    [pair] = asked([drawn[0][:1], drawn[1][:1]])
    record(run, pair, "left")
    row = json.loads(run.blind_answers.read_text())
    assert row.pop("at") and row == {"pair": pair.key, "left": pair.left_name, "right": pair.right_name, "said": "left"}
