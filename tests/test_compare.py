"""Two runs side by side: what differs, and whether it is more than chance (D8, D9, C13, P21)."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lace_lora import compare
from lace_lora.errors import RunError
from lace_lora.scores import CopyCheck, Evaluation, Nearest, Score
from tests.reporting import EVALUATION, Seen, reported_run

COPY = CopyCheck("x", 0.6, 47, (Nearest("a.png", "b.jpg", 0.9, True), Nearest("c.png", "b.jpg", 0.2, False)))


def changed(id: str, **values: Any) -> tuple[Score, ...]:
    return tuple(replace(score, **values) if score.id == id else score for score in EVALUATION.scores)


@pytest.fixture
def pair(tmp_path):
    """Two runs; what the second one has differently is given."""

    def made(settings: dict[str, Any] | None = None, **differs: Any):
        one = reported_run(tmp_path / "rose")
        return one, reported_run(tmp_path / "lily", replace(EVALUATION, run="lily", **differs), **(settings or {}))

    return made


def by_id(comparison: compare.Comparison) -> dict[str, compare.ScoreDifference]:
    return {score.id: score for score in comparison.scores}


def test_a_run_beside_itself_is_the_same_in_everything_that_is_measured(pair):
    """D8."""
    one, _ = pair()
    found = compare.compare(one, one)
    assert found.settings == () and found.pictures == "They learnt the same photographs with the same captions."
    findings = {id: score.finding for id, score in by_id(found).items()}
    assert findings.pop("ssim") == "not comparable" and set(findings.values()) == {"the same"}
    assert (found.one, found.other) == ("rose (1)", "rose (2)")


@pytest.mark.parametrize(
    ("value", "low", "high", "finding", "words"),
    [
        (0.5, 0.4, 0.6, "one is better", "rose is clearly better"),  # 0.6 < 0.7112
        (0.97, 0.95, 0.99, "other is better", "lily is clearly better"),  # 0.95 > 0.9234
        (0.9, 0.85, 0.99, "cannot tell", "no difference that these numbers can show"),
        (0.5, 0.4, 0.7112, "cannot tell", "no difference that these numbers can show"),  # they touch
        (0.1, None, None, "cannot tell", "no interval, so chance cannot be told apart"),
        (None, None, None, "not comparable", "not measured in lily: too few"),
    ],
)
def test_a_difference_counts_where_the_intervals_lie_apart(pair, value, low, high, finding, words):
    """D8: style match of rose is 0.83, 0.7112 to 0.9234; higher is better."""
    scores = changed("style_match", value=value, low=low, high=high, refusal="too few" if value is None else "")
    found = by_id(compare.compare(*pair(scores=scores)))["style_match"]
    assert (found.finding, found.says) == (finding, words)


def test_where_lower_is_better_the_smaller_one_wins_and_where_neither_is_nobody_does(pair):
    """D8."""
    for better, finding in (("lower", "other is better"), ("higher", "one is better"), ("", "different")):
        ours, theirs = (Score("s", "s", "style", *numbers, better=better) for numbers in ((5, 4, 6), (2, 1, 3)))
        assert compare.finding_of(ours, theirs) == finding
        base, other_base = (replace(one, id="words_base") for one in (ours, theirs))
        assert compare.finding_of(base, other_base) == "different", "no LoRA is better for the base model"


NUMBERS = st.floats(-1e6, 1e6)


@given(
    st.tuples(NUMBERS, NUMBERS, NUMBERS), st.tuples(NUMBERS, NUMBERS, NUMBERS), st.sampled_from(["higher", "lower", ""])
)
def test_exchanging_the_runs_exchanges_the_finding(one, other, better):
    """D8: and a difference is only claimed where no value lies in both intervals."""
    (low, value, high), (other_low, other_value, other_high) = sorted(one), sorted(other)
    ours = Score("s", "s", "style", value, low, high, better=better)
    theirs = Score("s", "s", "style", other_value, other_low, other_high, better=better)
    finding = compare.finding_of(ours, theirs)
    turned = {"one is better": "other is better", "other is better": "one is better"}
    assert compare.finding_of(theirs, ours) == turned.get(finding, finding)
    if finding in (*turned, "different"):
        assert max(low, other_low) > min(high, other_high)


def test_what_other_judges_measured_is_not_compared(pair):
    """D8, P21: the scores of words are, where only the judge of style is another one."""
    found = by_id(compare.compare(*pair(judges={"style": "facebook/dinov2-base", "words": "openai/clip"})))
    assert found["style_match"].finding == "not comparable"
    assert found["style_match"].says == "not comparable: measured by weight-free and by facebook/dinov2-base"
    assert found["words_lora"].finding == "the same"


def test_a_score_that_one_run_has_not_is_said(pair):
    """D8."""
    found = by_id(compare.compare(*pair(scores=EVALUATION.scores[1:])))
    assert found["style_match"].says == "not measured in lily" and found["style_match"].other is None


def test_settings_that_decide_the_training_come_first_and_names_and_places_are_left_out(pair, tmp_path):
    """C13."""
    settings = {"guidance_scale": 7.0, "learning_rate": 1.00000001e-4, "rank": 32, "images_dir": "elsewhere"}
    found = compare.compare(*pair(settings))
    assert [(one.name, one.one, one.other, one.decides) for one in found.settings] == [
        ("rank", "16", "32", True),
        ("learning_rate", "0.0001", "0.000100000001", True),
        ("guidance_scale", "5.0", "7.0", False),
    ]


def test_a_run_of_an_earlier_version_has_the_defaults_of_what_it_does_not_tell(pair):
    """C13: no setting differs for being new."""
    one, other = pair()
    lines = other.config.read_text(encoding="utf-8").splitlines()
    other.config.write_text("\n".join(line for line in lines if not line.startswith("num_evaluated")), encoding="utf-8")
    assert compare.compare(one, other).settings == ()


def test_settings_that_cannot_be_read_are_not_called_equal(pair):
    """C13."""
    one, other = pair()
    for broken in (b"a: [", b"- a", b"\xff\xfe"):
        other.config.write_bytes(broken)
        found = compare.compare(one, other)
        assert "The settings of lily are not known" in str(found) and "All settings are the same" not in str(found)


def test_different_photographs_are_said_and_unknown_ones_too(pair):
    """D8."""
    one, other = pair()
    other.record.write_text(json.dumps(json.loads(other.record.read_text()) | {"data_digest": "d2"}))
    found = compare.compare(one, other)
    assert found.pictures == "They learnt different photographs or captions."
    assert any("against the run's own photographs" in note for note in found.notes)
    other.record.write_text("{}")
    assert "is not known" in compare.compare(one, other).pictures


def test_other_prompts_are_said(pair):
    """P21."""
    found = compare.compare(*pair(facts={**EVALUATION.facts, "prompts": ["another"]}))
    assert any("They were not measured alike (other prompts)" in note for note in found.notes)


def test_prompts_that_differ_by_the_token_alone_are_the_same(pair):
    """P21: each run calls its own style by its own word."""
    one = {"prompts": ["a photo of <lace> leaf"], "concept_token": "<lace>"}
    other = {"prompts": ["a photo of <lace2> leaf"], "concept_token": "<lace2>"}
    assert compare._drawn(one, "prompts") == compare._drawn(other, "prompts")
    assert compare._drawn(one, "prompts") != compare._drawn({**other, "prompts": ["a <lace2> rose"]}, "prompts")


def test_copies_weigh_most_in_the_closing_sentence(pair):
    """D9."""
    scores = changed("style_match", value=0.97, low=0.95, high=0.99)
    found = compare.compare(*pair(scores=scores, copies=COPY))
    assert found.closing == (
        "lily made copies of photographs and rose did not, which counts most. lily is clearly better in 1 of 5 scores: "
        "style match. 3 of 5 show no difference that these numbers can tell from chance."
    )
    assert ("called a copy", "0 of 2", "1 of 2") in found.facts


def test_runs_that_were_not_evaluated_are_compared_by_their_settings(pair):
    """C13."""
    one, other = pair({"rank": 8})
    other.scores.unlink()
    found = compare.compare(one, other)
    assert found.scores == () and [setting.name for setting in found.settings] == ["rank"]
    assert "lily was not evaluated yet" in str(found) and "only settings can be compared" in found.closing


def test_blind_answers_are_counted_where_there_are_any(pair):
    """P24."""
    one, other = pair()
    assert "blind answers" not in str(compare.compare(one, other))
    other.blind_answers.write_text('{"chosen": 1}\n' * 3)
    assert ("blind answers", "0", "3") in compare.compare(one, other).facts


def test_the_table_for_a_terminal_is_aligned(pair):
    """C13: every column begins at the same place in every row."""
    told = str(compare.compare(*pair({"rank": 32, "prompts": "a very long prompt " * 9})))
    for block in told.split("\n\n"):
        head, *rows = block.split("\n")
        if head.startswith(("settings", "score", "other settings")):
            for place in (head.index("rose"), head.index("lily")):
                assert all(row[place - 2 : place] == "  " and row[place] != " " for row in rows), block
    assert "style match      0.83 (0.71 to 0.92)" in told and max(map(len, told.split("\n"))) < 190


def test_the_table_for_a_notebook_shows_the_same_and_takes_nothing_for_html(pair):
    """C13."""
    found = compare.compare(*pair({"rank": 32, "class_prompt": "<script>alert(1)</script>"}))
    page = found._repr_html_()
    assert "<script" not in page
    said = Seen(page).text
    for words in ("rank 16 32 yes", "0.83 (0.71 to 0.92)", "<script>alert(1)</script>", found.closing, found.pictures):
        assert words in said


@pytest.mark.parametrize("told", [{"judges": [1]}, {"facts": 3}, {"counts": None}])
def test_values_of_another_kind_are_passed_over(pair, told):
    """C13."""
    one, other = pair()
    other.scores.write_text(json.dumps(json.loads(other.scores.read_text()) | told))
    assert Evaluation.read(other) is not None
    assert "style match" in str(compare.compare(one, other))


# -- naming a run --


def test_a_run_is_found_by_name_by_path_and_by_a_file_in_it(pair, tmp_path, monkeypatch):
    """C13."""
    one, _ = pair()
    assert compare.find("rose", tmp_path).root == one.root
    assert compare.find(" rose ", tmp_path).root == one.root
    for path in (one.root, f"{one.root}/", one.record, one.config):
        assert compare.find(path, tmp_path / "nowhere").root == one.root
    monkeypatch.chdir(tmp_path)
    assert compare.find("./rose", "nowhere").root.samefile(one.root)


def test_a_turkish_name_is_found_in_either_form(tmp_path):
    """C13: a Mac writes ğ as two signs."""
    run = reported_run(tmp_path / unicodedata.normalize("NFD", "dağ"))
    assert compare.find(unicodedata.normalize("NFC", "dağ"), tmp_path).root == run.root


@pytest.mark.parametrize("name", ["rosee", "ros", "ROSE2"])
def test_an_unknown_run_has_a_sentence_with_the_nearest_name(pair, tmp_path, name):
    """C13."""
    pair()
    with pytest.raises(RunError, match=f"No run called '{name}' in .*There are: (rose, lily|lily, rose)") as caught:
        compare.find(name, tmp_path)
    assert ("did you mean rose?" in str(caught.value)) is (name != "ROSE2")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_names_that_no_disk_can_hold_have_the_same_sentence(tmp_path, name):
    """C13."""
    with pytest.raises(RunError, match="There is none yet. Train first: lace-lora train"):
        compare.find(name, tmp_path)


def test_a_folder_without_a_run_is_refused(pair, tmp_path):
    """C13."""
    one, other = pair()
    Path(other.record).unlink()
    with pytest.raises(RunError, match="lily holds no run. Train first"):
        compare.compare(one, other)
