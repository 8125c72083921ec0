"""Pairs from files and as conversations (J2, J6, D1, D4, D9)."""

import json
from types import SimpleNamespace

import pytest

from lace_lora import dialogues, recipe, validate
from lace_lora.errors import SettingsError, TextError
from tests import drawn_pairs

# As in the tokenizer_config.json of Phi-3-mini and of Gemma; the second refuses a system role.
PHI3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SILENT = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['content'] }}{% endif %}{% endfor %}"
)
CAD = recipe.read("cad")
CHECKS = validate.validator(CAD)


class Words:
    """A tokenizer with a chat template and no words: transformers' own renderer of templates."""

    def __init__(self, template):
        from transformers import PreTrainedTokenizerFast

        from lace_lora import small_language

        made = small_language.tokenizer(["a b"])
        assert isinstance(made, PreTrainedTokenizerFast)
        made.chat_template = template
        self.inner, self.chat_template = made, template

    def apply_chat_template(self, *args, **options):
        """As the real one."""
        return self.inner.apply_chat_template(*args, **options)


def said(template, way="forward"):
    """What a model is given for one question."""
    words = Words(template)
    talk = dialogues.fitting(words, dialogues.messages(CAD.changed({"system_prompt": "Be brief."}), way, "A disc."))
    return words.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)


def test_the_chat_format_is_that_of_the_tokenizer():
    """J6: written out by hand."""
    assert said(PHI3) == "<|system|>\nBe brief.<|end|>\n<|user|>\nA disc.<|end|>\n<|assistant|>\n"


def test_where_a_system_role_is_refused_its_text_begins_the_users_turn():
    """D4."""
    wanted = "<start_of_turn>user\nBe brief.\n\nA disc.<end_of_turn>\n<start_of_turn>model\n"
    assert said(GEMMA) == wanted


def test_where_a_template_leaves_the_system_role_out_it_is_not_lost():
    """D4."""
    assert said(SILENT) == "Be brief.\n\nA disc."


def test_a_model_without_a_chat_template_is_refused():
    """J6."""
    with pytest.raises(TextError, match="has no chat template"):
        dialogues.fitting(SimpleNamespace(chat_template=None), dialogues.messages(CAD, "forward", "x"))


def file_of(tmp_path, rows):
    """A JSONL file of rows, texts as they are."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_rows_become_pairs_with_documents_in_one_form(tmp_path):
    """J2: json_desc may be text or JSON; numbers and order are put right, so that one document is one text."""
    rows = drawn_pairs.cad_rows()[:8]
    untidy = json.loads(json.dumps(rows[0]))
    untidy["json_desc"]["operations"].reverse()
    as_text = {"annotation": "same", "json_desc": json.dumps(untidy["json_desc"], indent=2)}
    found = dialogues.read(file_of(tmp_path, [*rows, untidy, as_text]), CAD, CHECKS)
    every = {pair.line: pair for pair in (*found.learnt, *found.held_out)}
    assert len(every) == 10 and every[1].document == every[9].document == every[10].document
    row = dialogues.row_of(every[1], CAD, "forward", Words(PHI3))
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["completion"] == [{"role": "assistant", "content": every[1].document}]
    assert dialogues.row_of(every[1], CAD, "back", Words(PHI3))["completion"][0]["content"] == rows[0]["annotation"]


def test_rows_that_cannot_be_used_are_named_and_left_out(tmp_path):
    """J2."""
    rows = drawn_pairs.cad_rows()[:5]
    bad = ["{", "[1]", {"annotation": "x"}, {"annotation": "x", "json_desc": "nothing"},
           {"annotation": "x", "json_desc": rows[0]["json_desc"] | {"units": "mm"}}]  # fmt: skip
    found = dialogues.read(file_of(tmp_path, [*rows, *bad]), CAD, CHECKS)
    assert len(found.learnt) + len(found.held_out) == 5
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "line 6 is no JSON", "line 7 is no object with names and values", "line 8 has no json_desc",
        "line 9 has no document that can be read", "line 10",
    ]  # fmt: skip
    assert "units are 'mm'" in found.problems[4] and "! line 6" in str(found)


def test_too_little_and_no_file_are_told(tmp_path):
    """J2."""
    with pytest.raises(TextError, match="0 pairs that can be used, and 4 are needed.*annotation and json_desc"):
        dialogues.read(file_of(tmp_path, ["{}"]), CAD, CHECKS)
    with pytest.raises(TextError, match="no file of pairs"):
        dialogues.read(tmp_path / "none.jsonl", CAD, CHECKS)


def test_awkward_lines_are_read_or_named(tmp_path):
    """J2: breaks of a line that are none in JSON, blank words, a line of megabytes, another encoding."""
    rows = drawn_pairs.cad_rows()[:5]
    odd = rows[0] | {"annotation": "a\u2028b\x85c"}
    huge = {"annotation": "word " * 1_000_000, "json_desc": rows[0]["json_desc"]}
    path = file_of(tmp_path, [*rows, json.dumps(odd, ensure_ascii=False), rows[0] | {"annotation": "  "}, huge])
    found = dialogues.read(path, CAD, CHECKS)
    assert "a\u2028b\x85c" in {pair.text for pair in (*found.learnt, *found.held_out)}
    assert found.problems[0] == "line 7 has no annotation"
    assert found.problems[1].startswith("line 8 has 5,000,") and "max_length 2048" in found.problems[1]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert dialogues.read(path, CAD, CHECKS).digest == found.digest
    path.write_text('{"a": 1}\n{"a": "ö"}', encoding="cp1252")
    with pytest.raises(TextError, match=r"no UTF-8 text \(line 2\). Save it with the encoding UTF-8"):
        dialogues.read(path, CAD, CHECKS)


def test_what_is_lost_of_good_rows_is_told(tmp_path):
    """D1, D9: attributes beside labels, and a file in which nothing can be held out."""
    dot = recipe.read("dot")
    checks = validate.validator(dot)
    rows = [{"input": f"{n}", "output": "digraph { a [shape=box]; a -> b }"} for n in range(6)]
    told = str(dialogues.read(file_of(tmp_path, rows), dot, checks))
    assert "! shape is not learnt: only labels are (in 6 of the graphs)" in told
    assert "6 learnt, 0 held out" in told and "! nothing is held out, so nothing can be measured" in told


def test_at_most_max_samples_and_only_the_kinds_that_are_asked_for(tmp_path):
    """J2, D1."""
    found = dialogues.read(CAD.examples, CAD.changed({"max_samples": 20}), CHECKS)
    assert len(found.learnt) + len(found.held_out) == 20
    code = recipe.read("dot", {"kinds": ["code"]})
    only = dialogues.read(code.examples, code, validate.validator(code))
    assert {pair.kind for pair in (*only.learnt, *only.held_out)} == {"code"}
    assert len(only.learnt) + len(only.held_out) == drawn_pairs.CODE_PAIRS


def test_pairs_about_one_document_are_held_out_together():
    """D5, D9: the same every time; more pairs move none of the earlier ones."""
    pairs = [dialogues.Pair(f"t{n}", f"d{n // 2}", group=f"d{n // 2}") for n in range(60)]
    learnt, held = dialogues.apart(pairs, 0.2, seed=3)
    assert len(held) == 12 and not {pair.group for pair in learnt} & {pair.group for pair in held}
    assert dialogues.apart(pairs, 0.2, seed=3) == (learnt, held) != dialogues.apart(pairs, 0.2, seed=4)
    more = pairs + [dialogues.Pair("new", "new", group="new")]
    assert {pair.group for pair in held} - {pair.group for pair in dialogues.apart(more, 0.2, 3)[1]} == set()
    assert dialogues.apart(pairs, 0.0, 3)[1] == [] and dialogues.apart(pairs[:2], 0.9, 3)[0]
    assert len(dialogues.apart(pairs[:8:2], 0.1, 3)[1]) == 1  # of four pairs a tenth is none, and nothing to judge by


def test_pairs_kept_with_a_run_are_read_again(tmp_path):
    """D5."""
    found = dialogues.read(CAD.examples, CAD, CHECKS)
    dialogues.write(tmp_path / "pairs.jsonl", found)
    again = dialogues.read_kept(tmp_path / "pairs.jsonl")
    assert (again.learnt, again.held_out, again.digest) == (found.learnt, found.held_out, found.digest)
    with pytest.raises(TextError, match="holds no pairs"):
        dialogues.read_kept(tmp_path / "none.jsonl")


def test_a_recipe_without_a_way_back_says_so():
    """J13."""
    with pytest.raises(SettingsError, match="knows no way back"):
        dialogues.messages(CAD.changed({"system_prompt_back": ""}), "back", "x")


def test_a_second_attempt_is_told_what_was_wrong():
    """J12."""
    talk = dialogues.again(dialogues.messages(CAD, "forward", "A disc."), "{", ["$: no JSON (json)"])
    assert [one["role"] for one in talk] == ["system", "user", "assistant", "user"]
    assert "no JSON (json)" in talk[-1]["content"]
