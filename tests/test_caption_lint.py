"""Caption lint: what is found, what is left alone, and mends that mend (P4, C4, C11)."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lace_lora import caption_lint, families
from lace_lora.annotations import caption_fault
from lace_lora.caption_lint import Finding, describe, lint, one_line, without_phrase
from lace_lora.families import Reader

TOKEN = "<myspecialstyle>"
PROMPT = f"a photo of {TOKEN}"
MOTIFS = ("rosette", "border", "mesh", "leaf", "scallop", "fan", "star", "heart", "diamond", "wave")


def found(captions: dict[str, str] | list[str], kind: str, **more: object) -> list[Finding]:
    """The findings of one kind; a list of captions is named 0.jpg, 1.jpg, …"""
    named = captions if isinstance(captions, dict) else {f"{number}.jpg": one for number, one in enumerate(captions)}
    findings = lint(named, **({"concept_token": TOKEN, "instance_prompt": PROMPT} | more))  # type: ignore[arg-type]
    return [one for one in findings if one.kind == kind]


class WordTokenizer:
    """Reads every word as `pieces` tokens: an oracle that anybody can count."""

    model_max_length = 77

    def __init__(self, pieces: int = 1) -> None:
        self.pieces = pieces

    def __call__(self, text: str, **_: object) -> SimpleNamespace:
        self.tokens = [word for word in text.split() for _ in range(self.pieces)]
        return SimpleNamespace(input_ids=list(range(len(self.tokens))))

    def decode(self, ids: list[int]) -> str:
        """The words of these tokens, each once."""
        return " ".join(dict.fromkeys(self.tokens[number] for number in ids))

    def tokenize(self, text: str) -> list[str]:
        """The last piece ends a word, as in CLIP's vocabulary."""
        return [text] * (self.pieces - 1) + [f"{text}</w>"]


def reading(*tokenizers: WordTokenizer) -> Reader:
    """SDXL's reading with other tokenizers."""
    return Reader(families.named("sdxl"), tokenizers)


WORDS = reading(WordTokenizer())


# The concept token


@pytest.mark.parametrize("token", ["flower", "Flower", "flowers", "lace", "style", "antique lace"])
def test_a_common_word_as_concept_token_warns(token):
    """C11."""
    (finding,) = found([f"a photo of {token}"], "common word", concept_token=token)
    assert finding.names == () and finding.mend is None
    assert repr(token) in finding.sentence and "such as <myspecialstyle>" in finding.sentence


@pytest.mark.parametrize("token", [TOKEN, "babannemdantel", "ohwx", "<flower>", "flower7", "lacebyayse"])
def test_a_word_of_its_own_does_not_warn(token):
    """C11."""
    assert found([f"a photo of {token}"], "common word", concept_token=token) == []


def test_with_the_models_tokenizers_any_word_that_it_reads_as_one_is_common():
    """C11: the small list does not hold it, the demo model's vocabulary does."""
    from lace_lora import demo

    reader = families.reader(str(demo.base_dir()))
    captions = ["a photo of gingham"]
    assert found(captions, "common word", concept_token="gingham") == []
    assert len(found(captions, "common word", concept_token="gingham", reader=reader)) == 1
    assert found([PROMPT], "common word", reader=reader) == []


def test_a_missing_token_is_named_and_put_first():
    """C4."""
    (finding,) = found({"a.jpg": "a rosette", "b.jpg": PROMPT, "c.jpg": "desks"}, "token missing", concept_token=TOKEN)
    assert finding.names == ("a.jpg", "c.jpg") and finding.mend
    assert finding.mend("a rosette") == f"{TOKEN} a rosette"
    assert finding.mend(PROMPT) == PROMPT
    assert found(["ask desks"], "token missing", concept_token="sks")[0].names == ("0.jpg",)
    assert found([PROMPT.upper()], "token missing") == []  # CLIP reads small letters


def test_a_token_that_stands_twice_is_kept_once_and_nothing_else_changes():
    """C4."""
    caption = f"{TOKEN}, a rosette in the style of {TOKEN}, white, {TOKEN.upper()}"
    (finding,) = found([caption], "token twice")
    assert finding.mend and finding.mend(caption) == f"{TOKEN}, a rosette, white"


@pytest.mark.parametrize(
    ("caption", "mended"),
    [
        (f"a white rosette on a blue ground, {TOKEN}", f"{TOKEN} a white rosette on a blue ground"),
        (f"a white rosette on blue in the style of {TOKEN}", f"{TOKEN} a white rosette on blue"),
        (f"a white rosette on blue in {TOKEN} style, soft", f"{TOKEN} a white rosette on blue, soft"),
    ],
)
def test_a_token_behind_the_first_words_is_put_first(caption, mended):
    """C4."""
    (finding,) = found([caption, PROMPT], "token late")
    assert finding.names == ("0.jpg",)
    assert finding.mend and finding.mend(caption) == mended


def test_the_token_may_stand_where_the_instance_prompt_has_it():
    """C4."""
    long = f"a very close photograph of the old lace of {TOKEN}"
    assert found([long], "token late", instance_prompt=long) == []
    assert found([f"a close up photo of {TOKEN}", f"{TOKEN}, a", f"a photo of the {TOKEN} lace"], "token late") == []


# Length


def test_the_words_that_would_be_lost_are_named():
    """P4: 75 tokens fit; the words are counted by hand."""
    words = [f"word{number}" for number in range(80)]
    (finding,) = found({"a.jpg": " ".join(words), "b.jpg": " ".join(words[:75])}, "too long",
                       reader=WORDS)  # fmt: skip
    assert finding.names == ("a.jpg",)
    assert finding.sentence.startswith("80 tokens, but 75 fit: the model would never see 'word75 word76 word77 word78 ")
    assert found(["x"], "not checked", reader=WORDS) == []


def test_the_tokenizer_that_needs_most_decides_whichever_of_the_two_it_is():
    """P4."""
    words = " ".join(f"word{number}" for number in range(40))
    assert found([words], "too long", reader=WORDS) == []
    for reader in (reading(WordTokenizer(), WordTokenizer(2)), reading(WordTokenizer(2), WordTokenizer())):
        (finding,) = found([words], "too long", reader=reader)
        assert "80 tokens" in finding.sentence and "'word37 word38 word39'" in finding.sentence


def test_without_tokenizers_it_is_said_once_that_lengths_were_not_checked():
    """P4."""
    assert len(found(["long " * 200] * 9, "not checked")) == 1
    assert found(["long " * 200], "too long") == []
    assert lint({}, concept_token=TOKEN) == ()


# Signs and emptiness


@pytest.mark.parametrize(
    ("caption", "mended"),
    [("a\tb", "a b"), ("a \r\n b", "a b"), ("a\u2028b", "a b"), ("a\x00b\x07", "ab"), ("\ufeffa", "a"),
     ("half \ud83d here", "half  here"), ("a\u202eb", "ab")],
)  # fmt: skip
def test_tabs_line_breaks_and_control_characters_are_found_and_mended(caption, mended):
    """P4."""
    (finding,) = found([caption], "control signs")
    assert finding.mend and finding.mend(caption) == mended
    assert found([mended], "control signs") == []


@pytest.mark.parametrize(
    "caption",
    ["büyükannemin danteli, İnce ve ışıl", "cafe\u0301", "a \U0001f469\u200d\U0001f467 motif", " two  spaces ",
     '"quoted" <b>&amp;</b>'],
)  # fmt: skip
def test_letters_of_any_script_and_html_are_ordinary_text(caption):
    """P4: nothing is unescaped, escaped or taken out."""
    assert found([caption], "control signs") == []
    assert one_line(caption) == caption.strip()


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_what_was_mended_fits_on_a_line_and_is_not_mended_again(text):
    """L11, P4: annotations.txt takes it."""
    line = one_line(text)
    assert caption_fault(line) in ("", "is empty")
    assert one_line(line) == line
    visible = [sign for sign in text if sign.isprintable() and not sign.isspace()]
    assert [sign for sign in line if sign in visible] == visible


def test_an_empty_caption_is_named_and_takes_the_instance_prompt():
    """P4."""
    (finding,) = found({"a.jpg": "", "b.jpg": " \n", "c.jpg": PROMPT}, "empty")
    assert finding.names == ("a.jpg", "b.jpg")
    assert finding.mend and finding.mend("") == PROMPT and finding.mend("a rosette") == "a rosette"
    assert found([""], "empty", instance_prompt="")[0].mend is None
    assert [one.kind for one in lint({"a.jpg": ""}, concept_token=TOKEN)] == ["empty", "not checked"]


# What all captions share


def test_equal_captions_for_most_pictures_are_found():
    """C4."""
    captions = [PROMPT.upper(), f" {PROMPT}", PROMPT.replace(" ", "  "), f"{PROMPT}, rosette", f"{PROMPT}, border"]
    (finding,) = found(captions, "same text")
    assert finding.names == ("0.jpg", "1.jpg", "2.jpg") and finding.sentence.startswith("3 of 5 pictures")
    assert found([PROMPT] * 3 + list(MOTIFS[:3]), "same text") == []  # half is not most
    assert found([PROMPT] * 4, "same text") == []  # too few to speak of shares


def test_where_all_captions_are_equal_only_that_is_said():
    """C4."""
    findings = lint({f"{name}.jpg": f"{TOKEN} white cotton lace" for name in MOTIFS}, concept_token=TOKEN)
    assert [one.kind for one in findings] == ["not checked", "same text"]


def shared(count: int, total: int, phrase: str = "in white cotton thread") -> list[str]:
    """`total` different captions, `count` of them with the phrase."""
    return [f"{TOKEN}, a {MOTIFS[number % 10]} {number}" + f" {phrase}" * (number < count) for number in range(total)]


def test_a_phrase_in_over_four_fifths_of_the_captions_is_found():
    """C4: strictly over; the longest one, without the stop words at its ends."""
    (finding,) = found(shared(9, 10), "phrase")
    assert "9 of 10 captions say 'white cotton thread'" in finding.sentence
    assert finding.names == tuple(f"{number}.jpg" for number in range(9))
    assert found(shared(8, 10), "phrase") == []
    assert len(found(shared(5, 5), "phrase")) == 1
    assert found(shared(4, 4), "phrase") == []


def test_stop_words_the_token_and_the_instance_prompt_are_aside():
    """C4: "a photo of … lace" is what the person asked for."""
    captions = [f"a photo of {TOKEN} lace, {motif} and thread" for motif in MOTIFS]
    assert found(captions, "phrase", instance_prompt=f"a photo of {TOKEN} lace") == []
    captions = [f"a photo of the {TOKEN} with a {motif} in it" for motif in MOTIFS]
    assert found(captions, "phrase", instance_prompt="") == []


def test_two_phrases_are_told_one_by_one_and_none_within_another():
    """C4."""
    captions = [f"White lace doily, {motif}. On dark velvet ({TOKEN})" for motif in MOTIFS]
    said = [re.search(r"say '(.*)':", one.sentence)[1] for one in found(captions, "phrase")]  # type: ignore[index]
    assert said == ["white lace doily", "dark velvet"]


@pytest.mark.parametrize(
    ("caption", "phrase", "left"),
    [
        (f"{TOKEN}, white lace, rosette", "white lace", f"{TOKEN}, rosette"),
        (f"{TOKEN} rosette, White  Lace", "white lace", f"{TOKEN} rosette"),
        ("White lace, a rosette", "white lace", "a rosette"),
        ("a rosette on a dark ground with leaves", "dark ground", "a rosette with leaves"),
        ("a rosette, on a dark ground", "dark ground", "a rosette"),
        ("a dark ground with leaves", "dark ground", "leaves"),
        ("an antique handmade rosette", "antique handmade", "a rosette"),
        ("A fine old iris", "fine old", "An iris"),
        ("a rosette (fine lace) in white", "fine lace", "a rosette in white"),
        ("leaves, fine, lace, fine lace, fan", "fine lace", "leaves, fan"),
        ("a photo of white lace.", "white lace", "a photo."),
        ("white lacework", "white lace", "white lacework"),
        ("white. Lace", "white lace", "white. Lace"),
        (f"white {TOKEN} lace", "white lace", f"white {TOKEN} lace"),
        ("white lace", "white lace", "white lace"),
        ("I\u0307nce dantel i\u015fi, g\u00fcl", "i\u0307nce dantel i\u015fi", "g\u00fcl"),
        ("cafe\u0301 lace, fan", "caf\u00e9 lace", "fan"),
        ("<b>Tom & Jerry</b>, white lace", "white lace", "<b>Tom & Jerry</b>"),
    ],
)
def test_a_phrase_is_removed_with_its_comma_and_what_would_hang_in_the_air(caption, phrase, left):
    """C4."""
    assert without_phrase(caption, phrase.split(), TOKEN) == left


SOME_WORDS = st.lists(
    st.sampled_from(["a", "an", "white", "lace", "on", "the", "rosette", "Ivory", TOKEN, ",", ".", "(", ")", "and"]),
    max_size=14,
)  # fmt: skip


@given(SOME_WORDS, st.sampled_from([("white", "lace"), ("lace", "on", "the", "rosette"), ("ivory", "rosette")]))
@settings(max_examples=300, deadline=None)
def test_removing_a_phrase_takes_words_away_and_adds_none(parts, phrase):
    """C4: the token stays, the other words with a meaning stay in their order, no comma is doubled."""
    caption = " ".join(parts)
    left = without_phrase(caption, phrase, TOKEN)
    before, after = (re.findall(r"<\w+>|\w+", text.casefold()) for text in (caption, left))
    assert before.count(TOKEN) == after.count(TOKEN)
    meaning = [word for word in after if word not in ("a", "an", "the", "on", "and")]
    rest = iter(before)
    assert all(word in rest for word in meaning)
    assert left == caption or len(after) <= len(before) - len(phrase)
    assert bool(before) == bool(after)
    assert without_phrase(left, phrase, TOKEN) == left


# All together


@given(st.lists(st.one_of(SOME_WORDS.map(" ".join), st.text(max_size=20)), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_mends_made_one_after_the_other_leave_nothing_that_can_be_mended(texts):
    """C4: every picture named is one of the set, and mending ends."""
    captions = {f"{number}.jpg": text for number, text in enumerate(texts)}
    for _ in range(30):
        mends = [one for one in lint(captions, concept_token=TOKEN, instance_prompt=PROMPT) if one.mend]
        if not mends:
            break
        for one in mends:
            assert set(one.names) <= set(captions) and one.names
        for name in mends[0].names:
            captions[name] = mends[0].mend(captions[name])  # type: ignore[misc]
    assert not mends
    assert all(captions.values())
    assert all(caption.casefold().count(TOKEN) == 1 for caption in captions.values())


def test_good_captions_have_no_findings():
    """P4."""
    colours, grounds = ("white", "cream") * 5, ("blue", "black", "red", "green", "brown") * 2
    captions = {
        f"{motif}.jpg": f"{TOKEN} a {motif} in {colour} on {ground}"
        for motif, colour, ground in zip(MOTIFS, colours, grounds, strict=True)
    }
    assert lint(captions, concept_token=TOKEN, instance_prompt=PROMPT, reader=WORDS) == ()


def test_findings_are_described_a_line_each_in_columns():
    """P4: names and captions cannot break the table."""
    lines = describe(lint({"a\n<b>.jpg": "", "b.jpg": "", "c.jpg": "a rosette"}, concept_token=TOKEN))
    assert [line.split("  ")[0] for line in lines] == ["empty", "token missing", "not checked"]
    assert "a\\n<b>.jpg and 1 more  There is no caption." in lines[0]
    assert len({line.index(start) for line, start in zip(lines, ("There", TOKEN, "Lengths"), strict=True)}) == 1
    assert describe(()) == []


@given(st.lists(st.lists(st.sampled_from("a b c d e , .".split()), max_size=9).map(" ".join), min_size=1, max_size=7))
@settings(max_examples=300, deadline=None)
def test_the_phrases_found_are_those_that_trying_all_runs_finds(captions):
    """C4: the oracle takes every run of words of every caption, by splitting at full stops and leaving out commas."""
    sentences = [[part.replace(",", " ").split() for part in text.split(".")] for text in captions]
    runs = [
        {tuple(words[start:end]) for words in parts for end in range(len(words) + 1) for start in range(end)}
        for parts in sentences
    ]
    common = {run for run in set().union(*runs) if sum(run in found for found in runs) / len(runs) > 0.8}
    trimmed = {run for run in common if run[0] != "a" and run[-1] != "a" and sum(word != "a" for word in run) > 1}
    longest = {
        run
        for run in trimmed
        if not any(run != other and f" {' '.join(run)} " in f" {' '.join(other)} " for other in trimmed)
    }
    assert set(caption_lint._frequent(captions, TOKEN, {"a"})) == longest
