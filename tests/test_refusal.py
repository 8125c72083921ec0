"""What cannot fit is refused by the verbs themselves, before anything is written, loaded or fetched (D10)."""

from types import SimpleNamespace

import pytest

from lace_lora import config, demo, inference, train
from lace_lora.adapter_facts import AdapterFacts
from lace_lora.errors import MachineError
from lace_lora.families import folders
from lace_lora.machine import Machine
from tests.test_presets import T4

TOO_LARGE = {"train_batch_size": 8, "gradient_checkpointing": "none", "resolution": 1024}


@pytest.fixture
def on_a_t4(monkeypatch):
    """A machine that says that it is a T4, on which no model may be looked for."""

    def touched(*_, **__):
        raise AssertionError("a model was looked for")

    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, *_, **__: T4))
    monkeypatch.setattr(folders, "_snapshot", touched)


def test_training_that_cannot_fit_is_refused_and_leaves_no_run_behind(on_a_t4, lace_folder, tmp_path):
    """D10: with the changes in the sentence, which would else be another run's settings."""
    asked = config.load(images_dir=str(lace_folder), lora_output_dir=str(tmp_path / "out"), **TOO_LARGE)
    with pytest.raises(MachineError, match="Training would not fit: ") as refused:
        train.run(asked, say=lambda line: None)
    assert "train_batch_size 2" in str(refused.value) and "must_fit false" in str(refused.value)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_person_who_knows_better_is_heard(on_a_t4, lace_folder, tmp_path):
    """D10: must_fit false goes on to the model."""
    asked = config.load(images_dir=str(lace_folder), lora_output_dir=str(tmp_path), must_fit=False, **TOO_LARGE)
    with pytest.raises(AssertionError, match="a model was looked for"):
        train.run(asked, say=lambda line: None)


def ordered(base_model, side):
    """A sheet that was asked for, as far as the refusal looks at it."""
    picture = SimpleNamespace(width=side, height=side)
    return SimpleNamespace(
        base_model=base_model,
        lora=SimpleNamespace(facts=AdapterFacts("sdxl", base_model, 16, 16, ("to_q", "to_k", "to_v", "to_out.0"))),
        quantization="none",
        refiner_model=demo.REFINER,
        refining=None,
        pictures=(picture,),
        workplace=None,
        shard=None,
    )


def test_designs_that_cannot_fit_are_refused_by_the_model_and_the_size_of_the_lora(on_a_t4, tmp_path, monkeypatch):
    """D10: settings that name nothing of it; a LoRA for the miniature fits where SDXL would not."""
    asked = config.load(lora_output_dir=str(tmp_path), preset="none")
    sdxl = asked.pretrained_model
    monkeypatch.setattr(inference.orders, "prepare", lambda *_: ordered(sdxl, 4096))
    with pytest.raises(MachineError, match="Drawing designs would not fit: the stage “decode”"):
        inference.run(asked, say=lambda line: None)
    monkeypatch.setattr(inference.orders, "prepare", lambda *_: ordered(demo.MODEL, 128))
    with pytest.raises(AttributeError, match="locked"):  # it went on to draw
        inference.run(asked, say=lambda line: None)
