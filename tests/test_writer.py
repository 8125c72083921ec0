"""Writing under a grammar with an untrained model, bounded and asked again (J9, J12, D6). Skipped without xgrammar."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from lace_lora import constraint, dialogues, language_models, recipe, small_language, validate, writer
from lace_lora.errors import MachineError, SettingsError, TextError

HOT = {"base_model": "demo", "temperature": 3.0}
SKETCH = '{"op":"sketch","profile":"A","frame":"world","shape":"circle","size":[0.04,0.04],"at":[0,0]}'
GOOD = f'{{"units":"m","operations":[{SKETCH}]}}'

xgrammar = pytest.importorskip("xgrammar")


@pytest.fixture(scope="module", params=["cad", "dot"])
def untrained(request):
    """(recipe, model, tokenizer, validator) of one trade, with a model of weights drawn by chance."""
    found = recipe.read(request.param, HOT)
    model, words = small_language.made(found)
    return found, model, words, validate.validator(found)


def asked(found, count):
    """So many questions."""
    return [dialogues.messages(found, "forward", f"part number {number}") for number in range(count)]


def test_twenty_of_twenty_are_right_under_the_grammar_and_none_without(untrained):
    """J9, D6: an untrained model at a high temperature. CAD: by the schema; DOT: by every rule."""
    found, model, words, checks = untrained
    torch.manual_seed(1)
    bound = writer.writer(model, words, found, checks).complete(asked(found, 20))
    looked = [checks.check(text) for text in bound]
    right = [one.is_schema_valid if found.document == "json" else one.is_valid for one in looked]
    assert sum(right) == 20, [str(one.issues[0]) for one in looked if one.issues][:3]
    assert len(set(bound)) == 20  # chance, not one and the same
    free = writer.completion(model, words, found.changed({"max_new_tokens": 100}), None, [words.eos_token_id])
    assert not any(checks.check(text).is_schema_valid for text in free(asked(found, 20)))


class Longest(torch.nn.Module):
    """Scores that always wish to go on: a digit, a letter, a comma; never what closes anything."""

    def __init__(self, words):
        super().__init__()
        closing = [number for text, number in words.get_vocab().items() if set(text) & set(']}";\n') or text == "Ċ"]
        self.scores = torch.zeros(len(words))
        self.scores[closing] = -50.0
        self.scores[[number for text, number in words.get_vocab().items() if len(text) == 1 and text.isalnum()]] = 10.0
        self.scores[words.eos_token_id] = -90.0


def test_a_document_ends_even_where_everything_wishes_to_go_on(untrained):
    """J9: every repetition is bounded, so max_new_tokens is never what ends it."""
    found, model, words, checks = untrained
    rule = constraint.compiled(found, words, len(words), [words.eos_token_id])
    matcher, wish = xgrammar.GrammarMatcher(rule.compiled), Longest(words).scores
    mask = xgrammar.allocate_token_bitmask(1, len(words))
    written = []
    for _ in range(found.max_new_tokens):
        matcher.fill_next_token_bitmask(mask)
        scores = wish.clone()[None]
        xgrammar.apply_token_bitmask_inplace(scores, mask)
        written.append(int(scores.argmax()))
        assert matcher.accept_token(written[-1])
        if matcher.is_terminated():
            break
    assert matcher.is_terminated(), words.decode(written)[-200:]
    assert checks.check(words.decode(written, skip_special_tokens=True)).is_schema_valid


def test_xgrammars_own_numbers_texts_and_lists_have_no_end():
    """J9, J10: what `bounded` is for; should this fail, xgrammar does it by itself now."""
    schema = {"type": "object", "properties": {"x": {"type": "number"}, "t": {"type": "string", "maxLength": 3},
                                               "l": {"type": "array", "items": {"type": "integer"}}},
              "required": ["x", "t", "l"], "additionalProperties": False}  # fmt: skip
    loose = str(xgrammar.Grammar.from_json_schema(json.dumps(schema), any_whitespace=False, separators=(",", ":")))
    tight = constraint.bounded(loose, 6)

    def takes(grammar, text):
        return xgrammar.testing._is_grammar_accept_string(xgrammar.Grammar.from_ebnf(grammar), text)

    for text in ('{"x":1e400,"t":"a","l":[1]}', '{"x":1.23456789,"t":"a","l":[1]}', '{"x":1,"t":"\t","l":[1]}',
                 f'{{"x":1,"t":"a","l":[{",".join("1" * 100)}]}}', f'{{"x":{"9" * 50},"t":"a","l":[1]}}'):  # fmt: skip
        assert takes(loose, text) and not takes(tight, text), text
    for text in ('{"x":-0.123456,"t":"äb","l":[1,-2]}', '{"x":0,"t":"","l":[]}'):
        assert takes(tight, text), text


def test_a_grammar_that_cannot_be_used_is_told(tmp_path):
    """J17."""
    found = recipe.read("dot", {"constraint": "schema"})
    with pytest.raises(SettingsError, match="no such file lies in"):
        constraint.grammar_of(found)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(recipe.read("dot")), encoding="utf-8")
    (tmp_path / "grammar.ebnf").write_text("root ::= (", encoding="utf-8")
    with pytest.raises(TextError, match="The grammar in .* cannot be used"):
        constraint.grammar_of(recipe.read(tmp_path))
    assert constraint.grammar_of(recipe.read("dot", {"constraint": "none"})) == ""


def test_documents_that_the_grammar_would_refuse_are_told_before_they_are_learnt(monkeypatch):
    """J9, J17: by their lines; xgrammar's own matcher is the oracle in the other tests."""
    dot = recipe.read("dot")
    right, umlaut = (f'digraph G {{\n  n1 [label="{name}"];\n}}' for name in ("wash", "wäsche"))
    (told,) = constraint.notes(dot, {1: right, 4: umlaut, 9: "digraph G {\n", 10: right + "x"})
    assert "3 documents of 4 cannot be written" in told and "(lines 4, 9, 10)" in told and "grammar.ebnf" in told
    assert constraint.notes(dot, {1: right}) == [] == constraint.notes(dot.changed({"constraint": "none"}), {4: umlaut})
    cad = recipe.read("cad")
    (told,) = constraint.notes(cad, {1: GOOD, 2: GOOD.replace('"units":"m"', '"units":"km"')})
    assert "(lines 2)" in told and "schema.json" in told
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    assert "needs the package xgrammar" in constraint.notes(dot, {4: umlaut})[0]


def test_without_xgrammar_the_sentence_says_what_to_type(monkeypatch):
    """J17."""
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(MachineError, match=r"pip install 'lace-lora\[text\]'. Or set constraint none"):
        constraint.grammar_of(recipe.read("dot"))


# -- asked again --


class Scripted:
    """A model that says what it is told to, one text after the other, and notes what it was asked."""

    def __init__(self, words, texts):
        self.words, self.texts, self.asked = words, list(texts), []
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=len(words)))
        self.generation_config, self.device = SimpleNamespace(eos_token_id=None), "cpu"

    def generate(self, input_ids, **_):
        """The question and the next text."""
        self.asked.append(self.words.decode(input_ids[0]))
        told = self.words(self.texts.pop(0), add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, torch.tensor([told])], dim=1)


@pytest.fixture(scope="module")
def words():
    """The tiny model's tokenizer for CAD."""
    return small_language.tokenizer(small_language.texts_of(recipe.read("cad")))


def generator(words, texts, **changes):
    """A CADJSONGenerator whose model says these texts."""
    model = Scripted(words, texts)
    checks = validate.validator(recipe.read("cad", {"base_model": "demo", **changes}))
    return writer.CADJSONGenerator(model, words, checks), model


def test_what_is_not_valid_is_asked_for_again_with_the_reasons(words):
    """J12."""
    made, model = generator(words, [GOOD.replace('"m"', '"mm"'), GOOD])
    found = made.generate("A disc of 40 mm.")
    assert (found["attempts"], found["is_valid"], found["issues"]) == (2, True, [])
    assert found["json"] == json.loads(GOOD) and found["text"] == GOOD
    assert "units are 'mm' but must be 'm' everywhere (units)" in model.asked[1] and len(model.asked) == 2


def test_the_last_attempt_is_handed_out_with_what_is_wrong(words):
    """J12."""
    made, model = generator(words, ["{"] * 2, attempts=2)
    found = made.generate("A disc.")
    assert (found["json"], found["is_valid"], found["attempts"]) == (None, False, 2)
    assert "no JSON" in found["issues"][0] and len(model.asked) == 2


def test_what_is_put_right_by_itself_is_not_asked_for_again(words):
    """J10, J11, J12: order and decimals."""
    untidy = json.loads(GOOD)
    untidy["operations"] = [{"op": "extrusion", "profile": "A", "depth": 0.0050000001}, *untidy["operations"]]
    made, _ = generator(words, [json.dumps(untidy)])
    found = made.generate("A disc.")
    assert found["attempts"] == 1 and [part["op"] for part in found["json"]["operations"]] == ["sketch", "extrusion"]
    assert found["json"]["operations"][1]["depth"] == 0.005


def test_only_those_that_are_wrong_are_asked_again(words):
    """J12."""
    texts = {"one": [GOOD], "two": ["{", GOOD]}

    def complete(talks):
        return [texts[talk[1]["content"]].pop(0) for talk in talks]

    found = recipe.read("cad")
    made = writer.Writer(found, complete, validate.validator(found))
    assert [one.attempts for one in made.write(["one", "two"])] == [1, 2]


def test_a_document_is_asked_about_in_the_form_in_which_it_was_learnt():
    """J13: the way back reads what people type; what is no document is asked as it is."""
    asked = []
    found = recipe.read("dot")
    made = writer.Writer(found, lambda talks: [asked.append(talk[1]["content"]) or "x" for talk in talks],
                         validate.validator(found), "back")  # fmt: skip
    made.write(["digraph  flow{ a->b }", "no graph"])
    assert asked == ['digraph G {\n  n1 [label="a"];\n  n2 [label="b"];\n  n1 -> n2;\n}', "no graph"]


# -- models --


def test_an_answer_ends_where_the_chat_format_ends_it(words):
    """J6: Phi-3 ends an answer with <|end|>, which is not the token that its tokenizer calls the end."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[0]))
    end = words.convert_tokens_to_ids("<|end|>")
    assert language_models.stops_of(model, words) == sorted({0, end})
    other = small_language.tokenizer(["a b"])
    other.eos_token = "<s>"
    assert language_models.stops_of(SimpleNamespace(), other) == sorted(other.convert_tokens_to_ids(["<s>", "<|end|>"]))


def test_layers_in_one_piece_stand_for_those_that_are_asked_for():
    """J3: a real tiny Phi-3, on which peft finds q_proj nowhere and leaves it out without a word."""
    from transformers import Phi3Config, Phi3ForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0}  # fmt: skip
    found, notes = language_models.targets_of(Phi3ForCausalLM(Phi3Config(**shape)), recipe.read("cad").lora_targets)
    assert found == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert "q_proj is part of qkv_proj in this model" in notes and len(notes) == 5
    model, _ = small_language.made(recipe.read("dot"))
    assert language_models.targets_of(model, ["q_proj", "v_proj"]) == (["q_proj", "v_proj"], [])
    with pytest.raises(SettingsError, match="no layer w_proj. It has: down_proj, gate_proj"):
        language_models.targets_of(model, ["w_proj"])


def test_four_bits_are_nf4_with_double_quantisation():
    """J4: in bf16 where the GPU has it, in fp16 on a T4; plain without a GPU."""
    pytest.importorskip("bitsandbytes")
    found = recipe.read("cad")
    options, why = language_models.options_of(found, "cuda", "bf16")
    bits = options["quantization_config"]
    assert (bits.load_in_4bit, bits.bnb_4bit_quant_type, bits.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert bits.bnb_4bit_compute_dtype is torch.bfloat16 and "double quantisation" in why
    assert language_models.options_of(found, "cuda", "fp16")[0]["quantization_config"].bnb_4bit_compute_dtype is (
        torch.float16
    )
    assert language_models.options_of(found, "cpu", "fp32")[0] == {"dtype": torch.float32}
    plain = found.changed({"quantization": "none"})
    assert "quantization_config" not in language_models.options_of(plain, "cuda", "bf16")[0]


def test_a_model_that_is_not_there_is_told(tmp_path):
    """J17."""
    from lace_lora.errors import ModelError

    with pytest.raises(ModelError, match="There is no folder"):
        language_models.load(recipe.read("cad", {"base_model": str(tmp_path / "none")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no language model that can be loaded.*config.json"):
        language_models.load(recipe.read("cad", {"base_model": str(tmp_path / "empty")}))


def test_the_tiny_model_is_the_same_each_time_and_leaves_chance_alone():
    """J1."""
    found = recipe.read("cad")
    before = torch.random.get_rng_state()
    one, other = (small_language.made(found)[0].state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
