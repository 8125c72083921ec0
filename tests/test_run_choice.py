"""Which LoRA notebooks 04 and 05 work with: the one that is named, the newest, or the one that is chosen (L15, L20)."""

import os
import shutil

import pytest

from lace_lora import config, presets, run_choice
from lace_lora.adapter import AdapterFacts
from lace_lora.errors import AdapterError
from lace_lora.run_choice import RunChoice


class Known:
    """An adapter's facts without its tensors."""

    def __init__(self, folder):
        self.folder = folder
        self.facts = AdapterFacts("sdxl", "base", 4, 4, ("attention",))

    def rows(self):
        return [("adapter", str(self.folder)), ("<b>", "bold")]

    def __str__(self):
        return f"adapter        {self.folder}"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs with a LoRA, of which `leaf` is the newest, and one that was stopped before it had one."""

    def load(folder):
        if not (folder / "adapter").is_dir():
            raise AdapterError(f"No adapter in {folder}.")
        return Known(folder)

    monkeypatch.setattr(run_choice.adapters, "load", load)
    for age, name in enumerate(("leaf", "rose", "edging")):
        weights = tmp_path / name / "adapter/pytorch_lora_weights.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"x")
        os.utime(weights, (1000 - age, 1000 - age))
    (tmp_path / "stopped/checkpoints").mkdir(parents=True)
    return tmp_path


def choice_of(runs, **given):
    settings = config.load(preset="none", lora_output_dir=str(runs), **given)
    return RunChoice(settings, presets.settle(settings, None))


def test_the_newest_is_taken_where_none_is_named_and_there_is_none_of_the_usual_name(runs):
    """L20: a person who named a run in notebook 03 finds it in notebook 04."""
    found = choice_of(runs)
    assert found.names == ["leaf", "rose", "edging"] and found.run.name == "leaf"
    assert found.settings.run_name == "leaf" and "other runs     rose, edging" in repr(found)
    (runs / "edging").rename(runs / "lace")
    assert choice_of(runs).run.name == "lace"


def test_the_one_that_is_named_is_taken_or_said_to_be_missing(runs):
    """P17: a program that names a run never gets another one."""
    found = choice_of(runs, run_name="rose")
    assert found.run.root == runs / "rose" and found.settings == found._asked
    with pytest.raises(AdapterError, match="No adapter in .*rosette"):
        choice_of(runs, run_name="rosette")
    with pytest.raises(AdapterError, match="No adapter"):
        choice_of(runs / "nowhere")


def test_another_one_is_chosen_from_the_list_and_one_that_cannot_be_read_changes_nothing(runs, monkeypatch):
    """L15: the cells below then work with it."""
    shown = []
    monkeypatch.setattr(run_choice, "has_front_end", lambda: True)
    monkeypatch.setattr(run_choice, "display", shown.append)
    found = choice_of(runs)
    found._ipython_display_()
    chosen, facts, said = shown[0].children
    assert chosen.options == ("leaf", "rose", "edging") and "&lt;b&gt;" in facts.value
    chosen.value = "edging"
    assert found.run.root == runs / "edging" and found.settings.run_name == "edging"
    assert str(runs / "edging") in facts.value and "work with edging from now on" in said.value
    shutil.rmtree(runs / "rose/adapter")
    chosen.value = "rose"
    assert found.run.name == "edging" and "role='alert'" in said.value


def test_a_program_reads_it_as_lines_and_one_run_needs_no_list(runs, monkeypatch, capsys):
    """P17."""
    monkeypatch.setattr(run_choice, "has_front_end", lambda: False)
    choice_of(runs)._ipython_display_()
    assert capsys.readouterr().out == f"adapter        {runs / 'leaf'}\nother runs     rose, edging\n"
    for name in ("rose", "edging"):
        shutil.rmtree(runs / name)
    assert "other runs" not in repr(choice_of(runs)) and not hasattr(choice_of(runs)._drawn(), "children")
