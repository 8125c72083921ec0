"""Training of text adapters with a tiny model: TRL and peft as they are, cut off and gone on with (J1-J5, J13, D5)."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from lace_lora import checkpoint, dialogues, language_models, recipe, text, text_models, validate
from lace_lora.errors import AdapterError, LaceError, MachineError, RunError, TextError
from lace_lora.text_folder import TextFolder

pytest.importorskip("trl")

SMALL = {
    "base_model": "demo", "quantization": "none", "optimizer": "adamw", "max_length": 512, "train_batch_size": 2,
    "gradient_accumulation_steps": 1, "learning_rate": 5e-3, "max_samples": 12, "validation_fraction": 0.2,
    "max_train_steps": 6, "validate_every": 3, "num_evaluated": 2, "early_stopping_patience": 0,
}  # fmt: skip


def small(name="dot", **changes):
    """A recipe that is trained in a few seconds."""
    return recipe.read(name, SMALL | changes)


def silently(_):
    """Nothing is said."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of six steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "dot"
    said = []
    text.run(small(), folder, say=said.append)
    return TextFolder(folder), said


def rows(place):
    """What is logged, without clocks: losses of steps, and looks."""
    found = checkpoint.read_json_lines(place.run.log)
    return [{name: value for name, value in row.items() if name not in ("seconds",)} for row in found]


def test_a_run_has_exactly_these_files(whole):
    """J1, J13: the names are those of a run of pictures."""
    place, _ = whole
    found = sorted(path.relative_to(place.root).as_posix() for path in place.root.rglob("*") if path.is_file())
    outside = [name for name in found if not name.startswith("checkpoints/")]
    assert outside == [
        "adapter/adapter.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "adapter/complete.json", "best.json", "examples.jsonl", "grammar.ebnf", "log.jsonl", "pairs.jsonl",
        "recipe.yaml", "run.json",
    ]  # fmt: skip
    assert [path.name for path in checkpoint.numbered(place.run.checkpoints)] == ["step-000003", "step-000006"]
    assert all(checkpoint.problem_of(path) is None for path in checkpoint.numbered(place.run.checkpoints))


def test_run_json_and_the_log_tell_what_those_of_pictures_tell(whole):
    """J5, D5, D10."""
    place, said = whole
    facts = json.loads(place.run.record.read_text(encoding="utf-8"))
    assert (facts["state"], facts["step"], facts["total"], facts["percent"]) == ("finished", 6, 6, 100.0)
    assert {"id", "started", "updated", "versions", "data_digest", "settings", "peak_vram_gb"} <= set(facts)
    assert {"trl", "datasets", "peft", "transformers"} <= set(facts["versions"])
    steps = [row for row in rows(place) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6] and {"lr", "epoch"} <= set(steps[0])
    assert [row["step"] for row in rows(place) if "val_loss" in row] == [0, 3, 6]
    assert any(line.startswith("step 6/6  loss ") for line in said)


def test_the_runs_of_texts_are_listed_with_those_of_pictures(whole):
    """J1."""
    from lace_lora import runs

    (job,) = runs.jobs(whole[0].root.parent)
    assert (job.name, job.state, job.step, job.total, job.problems) == ("dot", "finished", 6, 6, ())


def test_peft_reads_the_adapter_and_the_values_are_the_recipes(whole):
    """J3: by peft itself."""
    from peft import LoraConfig

    place, _ = whole
    found = LoraConfig.from_pretrained(str(place.run.adapter))
    assert (found.r, found.lora_alpha, found.lora_dropout) == (16, 32, 0.05)
    assert found.target_modules == {"q_proj", "v_proj"}
    weights = load_file(place.adapter_weights)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32} and len(weights) == 2 * 2 * 2
    card = text.load(place.root).card
    assert card["sha256"][place.adapter_weights.name] == checkpoint.sha256(place.adapter_weights)


def test_the_loss_is_that_of_the_answers_alone(whole):
    """J1: the first look, reckoned the slow way: pair by pair, over the tokens of the answers, from the base model."""
    place, _ = whole
    found = small()
    model, words, _ = language_models.load(found)
    pairs = dialogues.read_kept(place.pairs)
    sums, counts = 0.0, 0
    for pair in pairs.held_out:
        row = dialogues.row_of(pair, found, "forward", words)
        asked = words.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        both = words.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        ids = words(both, return_tensors="pt", add_special_tokens=False)["input_ids"]
        begin = len(words(asked, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].log_softmax(-1)
        losses = -scores[torch.arange(len(scores)), ids[0, 1:]][begin - 1 :]
        sums, counts = sums + float(losses.sum()), counts + len(losses)
    (first, *_) = [row for row in rows(place) if "val_loss" in row]
    assert len(pairs.held_out) == 2 and first["val_loss"] == pytest.approx(sums / counts, rel=1e-3)


class Cut(BaseException):
    """The power goes."""


def cut_at(step):
    """A `say` in which the power goes when this step has been logged."""

    def say(line):
        if line.startswith(f"step {step}/"):
            raise Cut

    return say


def test_cut_off_and_gone_on_with_it_ends_with_the_same_numbers(whole, tmp_path):
    """J5: losses and the adapter's weights are those of the unbroken run, bit for bit."""
    place = TextFolder(tmp_path / "dot")
    with pytest.raises(Cut):
        text.run(small(), place.root, say=cut_at(5))
    assert checkpoint.newest(place.run.checkpoints)[0].name == "step-000003" and not place.is_whole
    said = []
    text.run(small(), place.root, say=said.append)
    assert "resumed     after step 3" in said and rows(place) == rows(whole[0])
    one, other = (load_file(run.adapter_weights) for run in (place, whole[0]))
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert not place.working.exists()


def test_a_checkpoint_that_was_cut_off_or_damaged_is_passed_over(whole, tmp_path):
    """J5: the one before it is taken, and the result is the same."""
    place = TextFolder(tmp_path / "dot")
    shutil.copytree(whole[0].root, place.root)
    shutil.rmtree(place.run.adapter)
    (place.run.checkpoint(6) / "optimizer.pt").write_bytes(b"half")
    said = []
    text.run(small(), place.root, say=said.append)
    assert "resumed     after step 3" in said and any("step-000006 is passed over" in line for line in said)
    one, other = (load_file(run.adapter_weights) for run in (place, whole[0]))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_an_adapter_that_was_not_written_any_more_is_that_of_the_last_checkpoint(whole, tmp_path):
    """J5: the power went after the last step."""
    place = TextFolder(tmp_path / "dot")
    shutil.copytree(whole[0].root, place.root)
    shutil.rmtree(place.run.adapter)
    adapter = text.run(small(), place.root, say=silently)
    one, other = (load_file(run.adapter_weights) for run in (place, whole[0]))
    assert adapter.is_complete and all(torch.equal(one[name], other[name]) for name in other)


def test_a_finished_run_is_not_trained_again(whole):
    """J5."""
    said = []
    before = whole[0].run.log.stat().st_mtime_ns
    adapter = text.run(small(), whole[0].root, say=said.append)
    assert adapter.is_complete and "dot is finished: 6 steps are made." in said
    assert whole[0].run.log.stat().st_mtime_ns == before


def test_a_run_that_was_begun_otherwise_is_refused_with_what_differs(whole):
    """J17: what decides no number may change."""
    with pytest.raises(RunError, match="rank 16 → 4"):
        text.run(small(rank=4), whole[0].root, say=silently)
    with pytest.raises(RunError, match="the pairs"):
        text.run(small(max_samples=11, validation_fraction=0.2), whole[0].root, say=silently)
    assert text.run(small(attempts=1), whole[0].root, say=silently).is_complete


def test_more_steps_go_on_where_it_ended(whole, tmp_path):
    """J5."""
    place = TextFolder(tmp_path / "dot")
    shutil.copytree(whole[0].root, place.root)
    adapter = text.run(small(max_train_steps=8), place.root, say=silently)
    assert adapter.card["step"] == 8 and [row["step"] for row in rows(place) if "loss" in row] == list(range(1, 9))


def test_it_stops_early_where_the_held_out_loss_is_flat(tmp_path):
    """J5: a learning rate of next to nothing; two looks without progress after the best one."""
    said = []
    flat = small(learning_rate=1e-12, early_stopping_patience=1, max_train_steps=30, validate_every=1)
    adapter = text.run(flat, tmp_path / "dot", say=said.append)
    facts = json.loads((tmp_path / "dot/run.json").read_text(encoding="utf-8"))
    assert facts["stopped_early_at"] < 30 and facts["state"] == "finished" and adapter.is_complete
    assert any(line.startswith("stopped     early: no progress since step") for line in said)
    assert adapter.card["best_step"] < facts["stopped_early_at"]
    best = load_file(
        TextFolder(tmp_path / "dot").run.checkpoint(adapter.card["best_step"]) / "adapter_model.safetensors"
    )
    kept = load_file(adapter.folder.adapter_weights)
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_a_request_to_stop_saves_and_says_so(tmp_path):
    """J5: and the next call goes on from that very step."""
    import os
    import signal

    def say(line):
        if line.startswith("step 2/"):
            os.kill(os.getpid(), signal.SIGINT)

    adapter = text.run(small(), tmp_path / "dot", say=say)
    assert not adapter.is_complete and adapter.card["step"] in (2, 3)
    assert json.loads((tmp_path / "dot/run.json").read_text(encoding="utf-8"))["state"] == "stopped"
    said = []
    assert text.run(small(), tmp_path / "dot", say=said.append).is_complete
    assert f"resumed     after step {adapter.card['step']}" in said


def test_without_trl_the_sentence_says_what_to_type(monkeypatch, tmp_path):
    """J17: before anything is written."""
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MachineError, match=r"trl and datasets.*pip install 'lace-lora\[text\]'"):
        text.run(small(), tmp_path / "dot", say=silently)
    assert not (tmp_path / "dot").exists()


def test_a_run_on_drive_is_written_here_first_and_goes_on_on_another_machine(whole, tmp_path, monkeypatch):
    """J1: as a run of pictures; what was learnt is the same."""
    from tests.drives import failing

    drive = failing(tmp_path / "drive", monkeypatch)
    folder, said = drive.root / "MyDrive/text_output/dot", []
    folder.parent.mkdir(parents=True)
    places = {"drive_mount_path": str(drive.root), "say": said.append}

    class Cut(RuntimeError):
        pass

    def say(line):
        said.append(line)
        if line.startswith("step 4/6"):
            raise Cut

    with pytest.raises(Cut):
        text.run(small(), folder, cache_dir=str(tmp_path / "one"), **(places | {"say": say}))
    assert [path.name for path in checkpoint.numbered(folder / "checkpoints")] == ["step-000003"]
    adapter = text.run(small(), folder, cache_dir=str(tmp_path / "two"), **places)
    assert "resumed     after step 3" in said and adapter.is_complete and adapter.folder.root == folder
    assert load_file(TextFolder(folder).adapter_weights).keys() == load_file(whole[0].adapter_weights).keys()
    wanted = load_file(whole[0].adapter_weights)
    assert all(torch.equal(value, wanted[name]) for name, value in load_file(adapter.folder.adapter_weights).items())
    assert rows(TextFolder(folder)) == rows(whole[0])
    assert not list(folder.rglob("working*"))
    text.run(small(), folder, cache_dir=str(tmp_path / "three"), **places)
    assert said[-1] == "dot is finished: 6 steps are made."


def test_what_cannot_be_used_is_told_before_anything_is_written(tmp_path):
    """J17: no pairs, and a grammar that is none; neither leaves a folder, or trains for nothing."""
    with pytest.raises(TextError, match="no file of pairs"):
        text.run(small(), tmp_path / "dot", tmp_path / "none.jsonl", say=silently)
    shutil.copytree(recipe.FOLDER / "dot", tmp_path / "own")
    for written, sentence in ((b"root ::= foo", "cannot be used"), (b"\xff\xfe", "no UTF-8 text")):
        (tmp_path / "own/grammar.ebnf").write_bytes(written)
        with pytest.raises(LaceError, match=sentence):
            text.run(recipe.read(tmp_path / "own", SMALL), tmp_path / "dot", say=silently)
    assert not (tmp_path / "dot").exists()


def test_pairs_that_are_longer_than_max_length_are_named_and_left_out(tmp_path):
    """J5, D10: cut off they would teach answers without an end. A blank line of examples is no word of the model."""
    rows = [json.loads(line) for line in recipe.read("dot").examples.read_text(encoding="utf-8").splitlines()[:8]]
    rows[2]["input"] = "wash, then " * 200
    own = tmp_path / "own"
    shutil.copytree(recipe.FOLDER / "dot", own)
    (own / "examples.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows) + "{bad", encoding="utf-8")
    said = []
    adapter = text.run(recipe.read(own, SMALL | {"max_train_steps": 1}), tmp_path / "dot", say=said.append)
    (told,) = [line for line in said if "are left out" in line]
    assert told.startswith("! 1 of 8 pairs have more than max_length 512 tokens") and "(line 5: " in told
    assert adapter.card["pairs"] + adapter.card["held_out"] == 7
    with pytest.raises(TextError, match="No pair fits max_length 64 tokens; the shortest has"):
        text.run(small(max_length=64, max_train_steps=1, max_samples=5), tmp_path / "none", say=silently)


def test_an_adapter_that_is_not_there_or_damaged_is_told(whole, tmp_path):
    """J17."""
    with pytest.raises(AdapterError, match="it is not there. Train it"):
        text.load(tmp_path)
    shutil.copytree(whole[0].run.adapter, tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterError, match="is not as it was written"):
        text.load(tmp_path)


# -- two directions on one base --


@pytest.fixture(scope="module")
def both(whole, tmp_path_factory):
    """Both directions on one base model."""
    folder = tmp_path_factory.mktemp("back") / "dot-back"
    text.run(small(max_train_steps=3), folder, direction="back", say=silently)
    return text_models.load(whole[0].root, folder), folder


def scores_of(loaded):
    """What the model thinks of a text, with the adapter that is in use."""
    ids = loaded.tokenizer("First wash, then dry.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return loaded.model(ids).logits


def test_switching_back_gives_the_same_scores_bit_for_bit(both):
    """J13."""
    loaded, folder = both
    loaded.use("forward")
    first = scores_of(loaded)
    loaded.use("back")
    other = scores_of(loaded)
    loaded.use("forward")
    assert not torch.equal(first, other) and torch.equal(first, scores_of(loaded))
    with loaded.base():
        assert not torch.equal(scores_of(loaded), first)
    assert torch.equal(scores_of(loaded), first)
    assert (folder / "adapter/adapter_model.safetensors").is_file()


def test_each_adapter_writes_as_it_does_alone(both, whole):
    """J13: the other one, loaded beside it, changes nothing."""
    loaded, folder = both
    alone = text_models.load(folder)
    loaded.use("back")
    alone.use("back")
    assert torch.equal(scores_of(loaded), scores_of(alone))


def test_adapters_that_do_not_go_together_are_refused(both, whole, tmp_path):
    """J13."""
    loaded, _ = both
    with pytest.raises(AdapterError, match="Both adapters go forward"):
        text_models.load(whole[0].root, whole[0].root)
    place = TextFolder(tmp_path / "other")
    shutil.copytree(whole[0].root, place.root)

    def write(partial):
        ignored = shutil.ignore_patterns(checkpoint.MARKER)
        shutil.copytree(whole[0].run.adapter, partial, dirs_exist_ok=True, ignore=ignored)
        card = partial / "adapter.json"
        card.write_text(card.read_text(encoding="utf-8").replace('"demo"', '"another"'), encoding="utf-8")

    checkpoint.save_folder(place.run.adapter, write)
    with pytest.raises(AdapterError, match="only adapters of one base model can be switched"):
        text_models.load(whole[0].root, place.root)


def test_the_way_back_writes_words_without_a_grammar(both):
    """J13."""
    loaded, _ = both
    found = loaded.recipe.changed({"max_new_tokens": 5})
    from dataclasses import replace

    (answer,) = replace(loaded, recipe=found).writer("back").write(["digraph { a -> b }"])
    assert answer.document is None and answer.issues == () and answer.attempts == 1


def test_the_validator_of_a_run_is_that_of_its_recipe(both):
    """J7."""
    assert (
        both[0].validator.check("digraph { a -- b }").issues
        == validate.validator(recipe.read("dot")).check("digraph { a -- b }").issues
    )
