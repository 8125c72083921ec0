"""What is drawn (L6, L15, P3): prompts, rows and alternatives shared out over exactly the pictures asked for."""

import itertools
import math
import re
from collections import Counter

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lace_lora import queries
from lace_lora.alternatives import alternatives, literal
from lace_lora.config import Config, bounds_of
from lace_lora.errors import SettingsError
from lace_lora.prompt_files import SEEDS, Asked, one_line
from lace_lora.queries import Query, near_seeds, shared_out, shares_of

TOKEN = "<lace>"


def asked(prompts, count: int = 24, *, say=lambda line: None, token: str = TOKEN, **more) -> list[Query]:
    """shared_out as a sheet calls it."""
    given = {
        "seed": 0,
        "negative_prompt": "blurred",
        "class_prompt": "a photo of a textile",
        "other_token": token,
    } | more
    return shared_out(prompts, count, concept_token=token, say=say, **given)


def pairs(found: list[Query]) -> list[tuple[str, int]]:
    return [(one.prompt, one.seed) for one in found]


def refusal(*arguments, **more) -> str:
    """What is said of prompts that cannot be drawn."""
    with pytest.raises(SettingsError) as caught:
        asked(*arguments, **more)
    return str(caught.value)


# -- exactly the pictures asked for --

TEXTS = st.text(st.sampled_from([*"ab c,", "{", "|", "}", "\\", "ş", "🧶"]), max_size=12).map(
    lambda text: one_line(f"{text} of {TOKEN}")
)
PROMPTS = TEXTS.map(literal)
ROWS = st.builds(
    Asked,
    prompt=PROMPTS,
    count=st.none() | st.integers(1, 6),
    seed=st.none() | st.integers(0, 40) | st.integers(SEEDS - 3, SEEDS - 1),
    negative_prompt=st.none() | st.sampled_from(["", "creases"]),
    width=st.none() | st.sampled_from([64, 96]),
    height=st.none() | st.sampled_from([64, 96]),
)


def test_plain_prompts_take_turns_and_picture_i_has_seed_i():
    """L6, L15: as every sheet so far, so that those begun before are finished with the same pictures."""
    found = asked(["a <lace>", "b <lace>", "c <lace>"], 7, seed=5)
    assert pairs(found) == [(f"{'abc'[i % 3]} <lace>", 5 + i) for i in range(7)]
    assert {(one.negative_prompt, one.width, one.height) for one in found} == {("blurred", None, None)}


@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 50))
@settings(max_examples=300, deadline=None)
def test_there_are_exactly_as_many_pictures_as_asked_for_and_no_two_have_one_prompt_and_seed(rows, count, seed):
    """L6: counts are honoured, the others share what is left as evenly as can be, or the reason is said."""
    own = sum(row.count or 0 for row in rows)
    has_sharing = any(row.count is None for row in rows)
    lines: list[str] = []
    try:
        found = asked(rows, count, seed=seed, say=lines.append)
    except SettingsError as error:
        assert (has_sharing and own > count) or "the same picture" in str(error)
        return
    assert len(found) == (count if has_sharing else own)
    drawn = Counter(one.prompt for one in found)
    for prompt in {one_line(row.prompt) for row in rows}:
        same = [row for row in rows if one_line(row.prompt) == prompt]
        least = sum(row.count or 0 for row in same)
        shown = alternatives(prompt).at(0)
        assert drawn[shown] >= least and (drawn[shown] == least or any(row.count is None for row in same))
    told = any("in another size" in line for line in lines)
    assert len(set(pairs(found))) == len(found) or told
    assert len(set(found)) == len(found)


@given(st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 60))
def test_shares_add_up_and_are_even(counts, total):
    """L6."""
    lines: list[str] = []
    own, sharing = sum(filter(None, counts)), counts.count(None)
    if sharing and own > total:
        with pytest.raises(SettingsError, match=f"Set num_images to {own + sharing}, or give each a count"):
            shares_of(counts, total, lines.append)
        return
    shares = shares_of(counts, total, lines.append)
    assert sum(shares) == (total if sharing else own)
    assert [share for share, count in zip(shares, counts, strict=True) if count] == [*filter(None, counts)]
    even = [share for share, count in zip(shares, counts, strict=True) if count is None]
    assert even == sorted(even, reverse=True) and (not even or even[0] - even[-1] <= 1)
    assert any("overruled" in line for line in lines) == (not sharing and own != total)
    assert any("get no picture" in line for line in lines) == (0 in shares)


def test_what_becomes_of_num_images_is_said():
    """L6: overruled by counts, or too small for all prompts."""
    lines: list[str] = []
    assert shares_of([2, 5], 24, lines.append) == [2, 5]
    assert lines == ["The prompts' own counts make 7 pictures; num_images 24 is overruled."]
    assert shares_of([3, None, None, None], 5, lines.append) == [3, 1, 1, 0]
    assert lines[1] == "! 1 of 4 prompts get no picture: num_images is 5. Set it to 6 to see each."
    assert shares_of([2, 22], 24, lines.append) == [2, 22] and len(lines) == 2
    with pytest.raises(
        SettingsError, match="ask for 9 pictures, more than num_images 5, which leaves 2 without a count"
    ):
        shares_of([9, None, None], 5, lines.append)
    most = int(bounds_of(Config.model_fields["num_images"])["le"])
    assert shares_of([most], 1, lines.append) == [most]
    with pytest.raises(SettingsError, match="ask for 100,001 pictures; 100,000 are the most of a sheet"):
        shares_of([most, 1], 1, lines.append)


def test_rows_take_turns_until_each_has_its_count():
    """L6, L15."""
    found = asked([Asked("a <lace>", count=3), Asked("b <lace>"), Asked("c <lace>", count=1)], 6)
    assert [one.prompt[0] for one in found] == [*"abc", *"ab", *"a"]


# -- each alone --


def test_a_row_with_a_seed_gets_it_and_those_that_follow():
    """L6: beyond 2**32 they begin again, since torch tells no more apart."""
    found = asked(
        [Asked("a <lace>", count=3, seed=7), Asked("b <lace>", count=2, seed=SEEDS - 1), Asked("c <lace>")], 6
    )
    assert sorted(pairs(found)) == [
        ("a <lace>", 7), ("a <lace>", 8), ("a <lace>", 9), ("b <lace>", 0), ("b <lace>", SEEDS - 1), ("c <lace>", 2),
    ]  # fmt: skip


def test_a_row_brings_its_own_negative_prompt_and_size():
    """P3, L15: an empty one is none; what it leaves out is the sheet's."""
    rows = [
        Asked("a <lace>", negative_prompt="  two\ncats "),
        Asked("b <lace>", width=64),
        Asked("c", negative_prompt=""),
    ]
    found = [(one.negative_prompt, one.width, one.height) for one in asked(rows, 3)]
    assert found == [("two cats", None, None), ("blurred", 64, None), ("", None, None)]


@given(st.lists(ROWS, min_size=1, max_size=5), st.integers(5, 30), st.sampled_from(["", "fine {prompt}, {soft|hard}"]))
@settings(max_examples=200, deadline=None)
def test_every_picture_can_be_drawn_again_alone_from_what_it_says(rows, count, base):
    """L6: prompt, seed and size out of its metadata give the same query, whatever stood around it."""
    try:
        found = asked(rows, count, base_prompt=base)
    except SettingsError:
        assume(False)
    for one in found:
        row = Asked(literal(one.prompt), 1, one.seed, one.negative_prompt, one.width, one.height)
        assert asked([row], 24, seed=99) == [one]


@given(st.lists(ROWS, min_size=2, max_size=5, unique_by=lambda row: row.prompt), st.integers(30, 40), st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_prompt_changes_only_its_own_pictures(rows, count, data):
    """L6: and its own keep their seeds; another picture of the sheet stays in its place."""
    place = data.draw(st.integers(0, len(rows) - 1))
    changed = [*rows]
    changed[place] = Asked("{new|other} of <lace>", *list(vars(rows[place]).values())[1:])
    before, after = asked(rows, count), asked(changed, count)
    own = alternatives(rows[place].prompt).at(0)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old == new or (old.prompt, old.seed) == (own, new.seed)


@given(st.lists(PROMPTS, min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 20))
def test_more_pictures_only_add_to_a_sheet(prompts, count, more):
    """L6."""
    few, many = (asked([f"{text} {{x|y|z}}" for text in prompts], number) for number in (count, count + more))
    assert many[:count] == few


def test_two_rows_that_ask_for_the_same_picture_are_refused():
    """L6: also where it is one of several alternatives, or the token is all that differs."""
    rows = [Asked("{a|b} <lace>", count=2, seed=5), Asked("c <lace>"), Asked("b <LACE>", count=1, seed=6)]
    assert pairs(asked(rows, 4))  # the token is written otherwise: another prompt
    rows[2] = Asked("<lace>  b", count=1, seed=6)
    assert len(asked(rows, 4)) == 4
    rows[2] = Asked("b <lace>", count=4, seed=3, negative_prompt="blurred")
    said = refusal(rows, 7)
    assert said.startswith(
        "Prompts 1 and 3 ask for 'b <lace>' with seed 6: the same picture.\nGive one of them another"
    )


def test_one_prompt_and_seed_at_two_sizes_is_told_and_drawn():
    """L6, P3."""
    lines: list[str] = []
    rows = [Asked("a <lace>", 1, 5), Asked("a <lace>", 1, 5, width=64), Asked("a <lace>", 1, 5, negative_prompt="x")]
    assert len(set(asked(rows, 3, say=lines.append))) == 3
    assert lines == [
        "Prompts 1 and 2 ask for 'a <lace>' with seed 5, in another size or with another negative prompt.\n"
        "Prompts 1 and 3 ask for 'a <lace>' with seed 5, in another size or with another negative prompt."
    ]
    assert "Prompts 2 and 4 ask for" in refusal([*rows[:3], rows[1]], 4)
    many = [Asked("a <lace>", 1, 5, width=32 + 8 * number) for number in range(100)]
    assert asked(many, 1, say=lines.append) and lines[-1].endswith("And 79 more.")
    assert refusal(many * 2, 1).splitlines()[-2] == "And 80 more."


def test_a_seed_asked_for_is_passed_over_by_another_row_of_the_same_prompt():
    """L6: told, and only there: other prompts keep their seeds."""
    lines: list[str] = []
    rows = [Asked("a <lace>", count=3), Asked("b <lace>", count=3), Asked("a <lace>", count=2, seed=3)]
    found = asked(rows, 8, say=lines.append)
    assert sorted(pairs(found)) == [("a <lace>", s) for s in (0, 3, 4, 6, 9)] + [("b <lace>", s) for s in (1, 4, 7)]
    assert lines == ["! Another prompt asks for the same picture by its seed; passed over that seed in prompt 1."]


def test_one_row_of_thousands_beside_thousands_of_rows():
    """L6: seeds that go in steps of as many as there are rows, and are all different."""
    rows = [Asked("a <lace>", count=3000), *(Asked(f"{number} <lace>") for number in range(3000))]
    found = asked(rows, 6000)
    assert len({one.seed for one in found}) == 6000 and max(one.seed for one in found) == 2999 * 3001


# -- alternatives --


@pytest.mark.parametrize(
    ("text", "combinations"),
    [
        ("plain", ["plain"]),
        ("a {b}", ["a b"]),
        ("a {} b", ["a  b"]),
        ("{a|b|c}", ["a", "b", "c"]),
        ("{white|cream} {rosette|border}", ["white rosette", "cream border", "white border", "cream rosette"]),
        ("{a|b}{1|2|3}", ["a1", "b2", "a3", "b1", "a2", "b3"]),
        ("a {fine |}doily", ["a fine doily", "a doily"]),
        ("{a|b {c|d}|{e}}", ["a", "b c", "b d", "e"]),
        ("{{a|b}|{c|d}}", ["a", "b", "c", "d"]),
        (r"a | b \{c\|d\} \\ \( \n", r"a | b {c|d} \ \( \n".split("!")),
        (r"{a\|b|c\}}", ["a|b", "c}"]),
        ("{prompt}", ["prompt"]),
    ],
)
def test_alternatives_take_turns_in_every_group(text, combinations):
    """L15: worked by hand."""
    found = alternatives(text)
    assert found.size == len(combinations)
    assert [found.at(number) for number in range(2 * found.size)] == combinations * 2


GROUPS = st.recursive(
    st.text("abç ,", max_size=3),
    lambda inner: st.lists(st.lists(inner, max_size=3).map(tuple), min_size=1, max_size=3).map(list),
    max_leaves=8,
)
"""A text, or a group: a list of alternatives, each a tuple of texts and groups."""


def written(part) -> str:
    if isinstance(part, str):
        return part
    return "{" + "|".join("".join(map(written, option)) for option in part) + "}"


def meant(part) -> list[str]:
    """Every text of a part, by itertools: an oracle that knows nothing of turns."""
    if isinstance(part, str):
        return [part]
    return [text for option in part for text in product(option)]


def product(parts) -> list[str]:
    return ["".join(texts) for texts in itertools.product(*map(meant, parts))]


@given(st.lists(GROUPS, max_size=4))
@example([[("a",), ("b",)], [("c",), ("d",)], [("e",), ("f",)]])
@settings(max_examples=300, deadline=None)
def test_every_combination_comes_exactly_once(parts):
    """L15: as many as itertools finds, and the same ones."""
    expected = product(parts)
    assume(len(expected) <= 5000)
    found = alternatives("".join(map(written, parts)))
    assert found.size == len(expected)
    assert Counter(found.at(number) for number in range(found.size)) == Counter(expected)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_a_few_pictures_show_every_alternative_of_every_group(sizes):
    """L15: of 10^30 combinations too, as many pictures as the largest group has alternatives show all."""
    found = alternatives(" ".join("{" + "|".join(map(str, range(size))) + "}" for size in sizes))
    assert found.size == math.prod(sizes)
    seen = list(zip(*(found.at(number).split() for number in range(max(sizes))), strict=True))
    assert [len(set(column)) for column in seen] == sizes


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab{|}\\ "))
def test_a_text_made_literal_is_itself(text):
    """L15: captions and prompts out of metadata hold no alternatives."""
    found = alternatives(literal(text))
    assert (found.size, found.at(0), found.at(7)) == (1, text, text)


@given(st.text("ab {|}\\", max_size=20))
@settings(max_examples=300)
def test_any_text_is_read_or_refused_with_the_place(text):
    """L15: by what remains when escapes and the braces that belong together are taken away."""
    rest, before = re.sub(r"\\[{|}\\]", "", text), ""
    while rest != before:
        before, rest = rest, re.sub(r"\{[^{}]*\}", "", rest)
    if not set(rest) & {"{", "}"}:
        assert alternatives(text).size >= 1
        return
    with pytest.raises(SettingsError, match=r"(is never closed|without its \{) at character \d+, before '"):
        alternatives(text)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a {b <lace>", "Prompt 2 has a { that is never closed at character 3, before 'b <lace>'."),
        ("a {b|{c} d", "Prompt 2 has a { that is never closed at character 3, before 'b|{c} d'."),
        ("a b} <lace>", "Prompt 2 has a } without its { at character 4, before ' <lace>'."),
        ("{" * 21 + "}" * 21, "Prompt 2 has groups more than 20 deep at character 20"),
        (" \n ", "Prompt 2 is empty."),
        ("a" * 10_001, "Prompt 2 has 10,001 characters; 10,000 are the most, and the models read 75 tokens."),
        ("half \ud800 of it", "Prompt 2 holds half a character (broken Unicode)."),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_read_is_named_with_the_place(prompt, said):
    """L15: all of them at once."""
    lines = refusal(["good <lace>", prompt, "{never"]).splitlines()
    assert lines[0].startswith(said) and lines[1].startswith("Prompt 3 has a { that is never closed")
    assert lines[-1] == "Correct this and run again; a brace as a sign of its own is written \\{ or \\}."
    assert len(refusal(["{"] * 500).splitlines()) == 22 and "And 480 more." in refusal(["{"] * 500)


def test_groups_as_deep_as_allowed_are_read():
    """L15."""
    assert alternatives("{" * 19 + "a|b" + "}" * 19).size == 2


# -- words --


@pytest.mark.parametrize(
    ("base", "prompt", "told"),
    [
        ("", "rose <lace>", ["rose <lace>"]),
        ("a fine photo, ", "rose", ["<lace> a fine photo, rose"]),
        ("a scan of <lace>", "rose", ["a scan of <lace>, rose"]),
        ("a {prompt} of <lace>, {prompt}!", "rose", ["a rose of <lace>, rose!"]),
        ("{photo|scan} of {prompt} in <lace>", "{red|blue} rose",
         ["photo of red rose in <lace>", "scan of blue rose in <lace>",
          "photo of blue rose in <lace>", "scan of red rose in <lace>"]),
        ("{photo of {prompt}|plain {prompt}}, <lace>", "a|b", ["photo of a|b, <lace>", "plain a|b, <lace>"]),
        (r"\{prompt\} <lace>", "rose", ["{prompt} <lace>, rose"]),
        (r"\\{prompt} <lace>", "rose", ["\\rose <lace>"]),
        ("photo of {prompt} <lace>", "prompt", ["photo of prompt <lace>"]),
        ("photo of <lace>", "prompt", ["photo of <lace>, prompt"]),
    ],
)  # fmt: skip
def test_the_base_prompt_is_put_around_every_prompt(base, prompt, told):
    """L15."""
    assert [one.prompt for one in asked([prompt], len(told), base_prompt=base)] == told


def test_a_base_prompt_that_cannot_be_read_is_named():
    """L15."""
    said = refusal(["a"], base_prompt="a {photo of {prompt}")
    assert said.startswith("base_prompt has a { that is never closed at character 3, before 'photo of {prompt}'. Write")
    assert "base_prompt has 10,001 characters" in refusal(["a"], base_prompt="a" * 10_001)


def test_the_token_is_put_in_where_it_is_missing_and_said_once_for_each_prompt():
    """L15: for the base; the refiner gets class words, in every alternative."""
    lines: list[str] = []
    found = asked(["{a|b|} leaf", "{|star of <lace>}", "rose <lace>"], 9, say=lines.append)
    assert [one.prompt for one in found] == [
        "<lace> a leaf", "<lace>", "rose <lace>", "<lace> b leaf", "star of <lace>", "rose <lace>", "<lace> leaf",
        "<lace>", "rose <lace>",
    ]  # fmt: skip
    assert lines == ["! 2 of 3 prompts lacked <lace>; it is put in, as in '<lace> a leaf'."]
    assert {one.refiner_prompt for one in found} == {
        "a photo of a textile, a leaf", "a photo of a textile", "rose a textile", "a photo of a textile, b leaf",
        "star of a textile", "a photo of a textile, leaf",
    }  # fmt: skip


def test_another_settings_token_is_exchanged_for_the_adapters():
    """L15: and one written with braces is no group of alternatives."""
    [one] = asked(["a {LACE|other} of {style}"], 1, token="{lace}", other_token="{style}")
    assert (one.prompt, one.refiner_prompt) == ("a LACE of {lace}", "a LACE of a textile")


def test_prompts_of_any_kind_stay_one_line_of_text():
    """L15: paths, line breaks, emoji, quotes, control signs, 500 words."""
    told = [
        "../../<lace>",
        "two\nlines\u2028of\t<lace>",
        'a "fine" <lace> 👩‍🎨',
        "bell\x07 <lace>",
        "<lace> " + "leaf " * 500,
    ]
    shown = ["../../<lace>", "two lines of <lace>", told[2], "bell <lace>", told[4].strip()]
    assert [one.prompt for one in asked(told, 5, negative_prompt=" two\ncats ")] == shown
    assert asked(told, 1, negative_prompt=" two\ncats ")[0].negative_prompt == "two cats"


# -- where prompts come from --


def rows_of(prompts, prompts_file, captions=(), say=lambda line: None):
    return queries.rows_of(
        prompts, prompts_file, captions=lambda: captions, instance_prompt="a {lace} in {b|c}", say=say
    )


def test_prompts_come_from_the_file_else_the_setting_else_the_instance_prompt(tmp_path):
    """L15: which of two counts is said."""
    lines: list[str] = []
    (tmp_path / "mine.csv").write_text("prompt;seed\nrose;3\n", encoding="utf-8")
    assert rows_of(["a", "b"], str(tmp_path / "mine.csv"), say=lines.append) == [Asked("rose", seed=3)]
    assert lines == ["prompts_file mine.csv counts; the 2 prompts that are set beside it are not drawn."]
    assert rows_of(["a {b|c}"], None) == [Asked("a {b|c}")]
    assert asked(rows_of([], ""), 1, token="{lace}")[0].prompt == "a {lace} in {b|c}"


def test_captions_are_drawn_word_for_word_each_once():
    """L15: a caption's braces are no alternatives; pictures without one are left out."""
    captions = ["a {fine|old} rose", "", " two\nlines ", "two lines", "back\\slash"]
    rows = rows_of([], " Captions", captions)
    assert [one.prompt for one in asked(rows, 3, token="rose")] == [
        "a {fine|old} rose", "rose two lines", "rose back\\slash",
    ]  # fmt: skip
    assert queries.from_captions(captions) == rows
    with pytest.raises(
        SettingsError, match="prompts_file is captions, but the photographs have none. Write them first"
    ):
        rows_of([], "captions", ["", " "])


def test_captions_are_asked_for_only_where_they_are_drawn():
    """L15: no folder of photographs is needed for prompts."""

    def never():
        raise AssertionError("nobody asked")

    more = {"captions": never, "instance_prompt": "a", "say": print}
    assert queries.rows_of(["b"], None, **more) == [Asked("b")]


# -- variations --


@given(st.integers(0, SEEDS - 1), st.integers(1, 60), st.integers(0, 20))
def test_near_seeds_are_always_the_same_all_different_and_nobody_elses(seed, count, more):
    """L6: the first stay when more are wanted; none is a seed that a setting can have, nor the picture's own."""
    found = near_seeds(seed, count)
    assert len({seed, *found}) == count + 1 and all(2**31 <= one < SEEDS for one in found)
    assert near_seeds(seed, count + more)[:count] == found


def test_variations_of_neighbours_share_no_seed():
    """L6: and they are what they were in earlier versions, so that a picture can be found again."""
    assert len({near for seed in range(100) for near in near_seeds(seed, 20)}) == 2000
    assert near_seeds(0, 3) == [2542163031, 2297786789, 2238050287]


def test_variations_can_be_asked_for_as_rows():
    """L6: what "vary this one" does with a picture."""
    [one] = asked(["{a|b} <lace>"], 1)
    rows = [Asked(literal(one.prompt), 1, seed, one.negative_prompt) for seed in near_seeds(one.seed, 4)]
    found = asked(rows, 24)
    assert {one.prompt for one in found} == {"a <lace>"} and [one.seed for one in found] == near_seeds(0, 4)
