"""An adapter measured against its base, its targets, its page, and the command (J8, J16, J18, D5, D8, D9, D12)."""

import json
import re
from types import SimpleNamespace

import pytest

from lace_lora import agreement, checkpoint, dialogues, main, recipe, text, text_report, text_request, text_scores
from lace_lora.errors import RunError, SettingsError
from lace_lora.scores import Evaluation
from lace_lora.text_folder import TextFolder
from tests.test_text import silently, small

pytest.importorskip("trl")
pytest.importorskip("xgrammar")

LEARNS = {"max_samples": 90, "train_batch_size": 8, "max_train_steps": 24, "validate_every": 12, "num_evaluated": 6}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run that has learnt from CAD pairs, and is measured."""
    place = TextFolder(tmp_path_factory.mktemp("scores") / "cad")
    text.run(small("cad", **LEARNS, targets={"schema_valid": 1.0, "loss_falls": 1.0}), place.root, say=silently)
    return place, text_scores.run(place.root, say=silently)


def checks_of(found):
    """Each check by its id, and whether it passed."""
    return {one["id"]: one["is_met"] for one in found.facts["checks"]}


def test_training_lowers_the_loss_and_the_checks_say_so(tuned):
    """J18, D5."""
    place, found = tuned
    losses = [row["loss"] for row in checkpoint.read_json_lines(place.run.log) if "loss" in row]
    course = found.facts["course"]  # its start and end are the mean of a tenth of the 24 steps
    assert sum(losses[-2:]) < 0.6 * sum(losses[:2])
    assert (course["loss_start"], course["loss_end"]) == (
        pytest.approx(sum(losses[:2]) / 2), pytest.approx(sum(losses[-2:]) / 2),
    )  # fmt: skip
    passed = checks_of(found)
    assert passed["loss_falls"] and passed["held_out_loss_falls"] and passed["target_loss_falls"]
    assert set(passed) >= {"order", "number_format", "reasonable"} and course["gap"] is not None
    assert "against the learnt ones at the end" in found.overfitting


def test_the_same_prompts_are_answered_by_the_base_and_it_is_worse(tuned):
    """D8, J8: under the same grammar both are right in form; the structure is nearer after training."""
    place, found = tuned
    rows = checkpoint.read_json_lines(place.answers)
    asked = {who: [row["asked"] for row in rows if row["who"] == who] for who in ("tuned", "base")}
    assert asked["tuned"] == asked["base"] and len(asked["base"]) == 6
    structure = found.score("structural_f1")
    base = float(re.search(r"the base model: (\d\.\d\d)", structure.means)[1])
    beside = {name: (own, before) for name, own, before in text_scores.beside_base(found)}
    assert beside["structure"] == (f"{structure.value:.2f}", f"{base:.2f}")
    assert structure.value > base + 0.1 and found.score("schema_valid").value == 1.0
    assert (found.score("copy").better, found.score("schema_valid").better) == ("lower", "higher")


def test_the_scores_are_the_means_of_the_marks(tuned):
    """J8: reckoned from the answers that were kept."""
    place, found = tuned
    from lace_lora import validate

    checks = validate.validator(recipe.read("cad"))
    learnt = {pair.document for pair in dialogues.read_kept(place.pairs).learnt}
    rows = [row for row in checkpoint.read_json_lines(place.answers) if row["who"] == "tuned"]
    marks = agreement.means([agreement.marks(agreement.Answer(**row["answer"]), checks, learnt) for row in rows])
    assert {one.id: one.value for one in found.scores} == pytest.approx(marks)


def test_called_again_nothing_is_written_twice(tuned, monkeypatch):
    """J8: answers that are there are taken; with another temperature they are not."""
    place, found = tuned
    monkeypatch.setattr(text_scores.text_models, "load", lambda *_, **__: pytest.fail("the model was loaded again"))
    again = text_scores.run(place.root, say=silently)
    assert again.scores == found.scores and Evaluation.read(place.run).scores == found.scores
    with pytest.raises(pytest.fail.Exception, match="loaded again"):
        text_scores.run(place.root, small("cad", **LEARNS, temperature=0.5), say=silently)


def test_two_pairs_that_ask_the_same_are_judged_each_by_its_own_document(tuned, monkeypatch, tmp_path):
    """J8: and taken up again as two."""
    pairs = [dialogues.Pair("the same", document) for document in ("a", "b")]
    written = [agreement.Answer("the same", "x", pair.document) for pair in pairs]
    monkeypatch.setattr(text_scores, "_written", lambda *_: iter(written))
    monkeypatch.setattr(text_scores.text_models, "load", lambda *_, **__: SimpleNamespace(how=""))
    place, adapter = TextFolder(tmp_path), text.load(tuned[0].root)
    for _ in range(2):
        found = text_scores._answers(place, adapter, recipe.read("cad"), "forward", pairs, silently)
        assert [one.wanted for one in found["tuned"]] == ["a", "b"]
        monkeypatch.setattr(text_scores, "_written", lambda *_: pytest.fail("written again"))


def test_a_missed_target_is_told_with_what_is_wanted(tuned):
    """J16."""
    place, found = tuned
    assert text_scores.missed(found) == []
    strict = TextFolder(place.root).read_recipe().changed({"targets": {"exact": 1.0, "copy": 0.0, "word_f1": 1.0}})
    missed = text_scores.missed(text_scores.run(place.root, strict, say=silently))
    assert len(missed) == 1 and re.fullmatch(r"target exact: 0\.\d\d, wanted is at least 1", missed[0])
    text_scores.run(place.root, say=silently)


def test_scores_are_told_apart_by_graph_type_and_kind():
    """D12, D8."""
    from lace_lora.agreement import Answer

    answers = {"tuned": [Answer("", "", "", "code", "FSM"), Answer("", "", "", "text", "network")]}
    answers["base"] = answers["tuned"]
    rows = {"tuned": [{"valid": 1.0}, {"valid": 0.0}], "base": [{"valid": 0.0}, {"valid": 0.0}]}
    told = [(row["of"], row["who"], row["count"], row["valid"]) for row in text_scores._by_type(answers, rows)]
    assert told == [
        ("FSM", "tuned", 1, 1.0), ("FSM", "base", 1, 0.0), ("network", "tuned", 1, 0.0), ("network", "base", 1, 0.0),
        ("code", "tuned", 1, 1.0), ("code", "base", 1, 0.0), ("text", "tuned", 1, 0.0), ("text", "base", 1, 0.0),
    ]  # fmt: skip


def test_the_page_has_a_line_for_each_check_and_runs_nothing(tuned):
    """J18: passed or failed in words; what was written stands beside what was wanted."""
    place, found = tuned
    page = text_report.write(place.root).read_text(encoding="utf-8")
    assert page.count(">passed<") + page.count("<strong>failed</strong>") == len(found.facts["checks"])
    for part in ("Is it good", "What it wrote", "The training", "the loss falls", "written", "wanted", "<svg"):
        assert part in page, part
    assert text_report.text_block('digraph {\n  a [label="<b>"];\n\n}').splitlines()[1].startswith("  a [label=")
    assert "<script" not in page and str(place.root.parent) not in page


def test_the_page_of_a_run_that_was_not_measured_says_so(tmp_path):
    """J18: and one of a folder with nonsense in its files is written all the same."""
    place = TextFolder(tmp_path / "cad")
    place.root.mkdir()
    assert "was not measured yet" in text_report.write(place.root).read_text(encoding="utf-8")
    place.answers.parent.mkdir()
    place.answers.write_text('{"who": "tuned", "answer": {"asked": "<b>x"}}\n', encoding="utf-8")
    place.run.log.write_text('{"step": 1, "loss": "x"}\n', encoding="utf-8")
    assert "left out" in (page := text_report.write(place.root).read_text(encoding="utf-8")) and "<b>" not in page


def test_without_held_out_pairs_nothing_can_be_measured(tmp_path):
    """D9."""
    text.run(small(validation_fraction=0.0, max_train_steps=1), tmp_path / "dot", say=silently)
    with pytest.raises(RunError, match="held no pairs out"):
        text_scores.run(tmp_path / "dot", say=silently)


# -- the command --


def test_the_command_evaluates_and_fails_where_a_target_is_missed(tuned, capsys):
    """J16: exit code 1 after the page is written, with the sentence."""
    place, _ = tuned
    line = ["text", "evaluate", "cad", "--output", str(place.root.parent)]
    assert main.run(line) == 0 and "report.html to see everything" in capsys.readouterr().out
    assert main.run([*line, "--set", "targets={exact: 1.0}"]) == 1
    told = capsys.readouterr()
    assert "1 of the targets are missed. target exact: 0." in told.err and "report.html" in told.out
    text_scores.run(place.root, say=silently)


def test_the_command_writes_a_document(tuned, capsys):
    """J9, J12: on stdout the document alone."""
    place, _ = tuned
    code = main.run(["text", "generate", "cad", "A disc of 40 mm, 3 mm thick.", "--output", str(place.root.parent)])
    told = capsys.readouterr()
    document = json.loads(told.out.strip().splitlines()[0])
    assert document["units"] == "m" and code == (1 if "not valid" in told.err else 0)


def test_the_command_checks_files(tmp_path, capsys):
    """J7."""
    (tmp_path / "good.dot").write_text("digraph { a -> b }", encoding="utf-8")
    (tmp_path / "bad.dot").write_text("digraph { a -- b }", encoding="utf-8")
    assert main.run(["text", "check", "dot", str(tmp_path / "good.dot")]) == 0
    assert main.run(["text", "check", "dot", str(tmp_path / "good.dot"), str(tmp_path / "bad.dot")]) == 1
    told = capsys.readouterr()
    assert "$.edges[0]: edges of a digraph are written ->, not -- (edge_operator)" in told.out
    assert "1 of 2 documents are not right." in told.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian", "dot"], "No verb 'trian'; did you mean train?"),
        (["train"], "Name a recipe, such as: lace-lora text train dot"),
        (["train", "dto"], "did you mean dot?"),
        (["plan", "dot", "--set", "rnak=3"], "did you mean rank?"),
        (["plan", "dot", "--set", "rank"], "--set needs a name and a value"),
        (["plan", "dot", "--direction", "up"], "must be forward or back"),
        (["plan", "dot", "--data", "none.jsonl"], "There is no file of pairs none.jsonl"),
        (["evaluate", "dot", "--output", "nowhere"], "There is no run nowhere/dot"),
        (["generate", "dot", "--output", "nowhere"], "Say what to write"),
        (["check", "dot", "none.dot"], "none.dot cannot be read"),
    ],
)
def test_wrong_words_are_told_in_a_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    """J17."""
    monkeypatch.chdir(tmp_path)
    assert main.run(["text", *words]) == 1
    assert sentence in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_the_command_plans_before_anything_is_loaded(capsys):
    """J5, J14: and without a GPU says that it is the demo."""
    assert main.run(["text", "plan", "cad", "--set", "rank=8"]) == 0
    told = capsys.readouterr()
    assert "rank 8" in told.out and "learning_rate" in told.out
    assert main.run(["text", "recipes"]) == 0 and "dot: " in capsys.readouterr().out


def test_a_word_without_a_value_is_refused():
    """J17."""
    assert text_request.changes(["rank=8", "kinds=code,text"]) == {"rank": 8, "kinds": "code,text"}
    with pytest.raises(SettingsError):
        text_request.changes(["rank"])
