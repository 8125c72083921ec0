"""Places to work: one of somebody's own in a few lines, trainings by ComfyUI's nodes, the doors (C1, C16, C18)."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load as from_bytes
from safetensors.torch import save

from lace_lora import adapter as adapters
from lace_lora import backends, config, inference, landing, main, runs, train
from lace_lora.backends import Drawn, Place, Trained, comfy_server, comfy_training
from lace_lora.errors import AdapterError, BackendError, SettingsError
from lace_lora.run_folder import RunFolder
from tests.conftest import read_pixels
from tests.drawing import quiet_run, rows_of
from tests.fake_comfyui import FakeComfyUI, trained_lora


def test_a_place_of_ones_own_takes_a_few_lines(asked, settings):
    """C18: a backend added in fewer than 15 lines, which draws and trains; the rest is as everywhere."""

    def draw(wanted):
        for one in wanted.missing:
            yield Drawn(one, Image.new("RGB", (one.width, one.height), (one.seed % 256, 0, 0)))

    def learn(wanted):
        wanted.record.tell("elsewhere", step=5)
        return Trained(save({"lora_unet_x.alpha": torch.tensor(3.0)}), "my place 1.0")

    place = Place(draw=draw, train=learn)
    designs = inference.run(asked(refine="none"), place=place, say=lambda line: None)
    adapter = train.run(settings, place=place, say=lambda line: None)

    assert designs.is_complete and len(rows_of(designs.folder.root)) == 6
    assert adapter.facts.alpha == 3.0 and adapter.facts.versions["made_by"] == "my place 1.0"
    (found,) = runs.jobs(settings.lora_output_dir)
    assert (found.state, found.step, found.total) == ("finished", 10, 10)
    assert train.run(settings, place=place, say=lambda line: None).path == adapter.path


def test_a_place_that_cannot_do_it_says_so(asked, settings):
    """C18."""
    with pytest.raises(SettingsError, match="draws no designs"):
        quiet_run(asked(), place=Place())
    with pytest.raises(SettingsError, match="trains no LoRA"):
        train.run(settings, place=Place(), say=lambda line: None)


def test_names_of_places_are_those_of_the_setting():
    """C1: backend: local, comfyui or replicate."""
    choices = config.choices_of(config.Config.model_fields["backend"])
    assert set(choices) == {backends.LOCAL, *backends.FILES}
    assert backends.of("local") is None
    assert all(isinstance(backends.of(name), Place) for name in backends.FILES)
    with pytest.raises(SettingsError, match="No backend called 'comfyu'; did you mean comfyui?"):
        backends.of("comfyu")


@pytest.mark.parametrize("url", ["http://key@localhost:8188", "http://localhost:8188/?token=secret-word"])
def test_an_address_with_a_key_in_it_is_refused_and_not_shown(url):
    """C1: secrets stand in no file."""
    with pytest.raises(SettingsError, match="backend_url must be an address .* LACE_BACKEND_KEY") as caught:
        config.load(backend_url=url)
    assert "secret-word" not in str(caught.value) and "key@" not in str(caught.value)


def test_what_landed_and_was_changed_since_is_not_drawn_with(tmp_path):
    """C16."""
    run = RunFolder(tmp_path / "lace")
    facts = landing.AdapterFacts("sdxl", "x", 2, 2.0, (), versions={"made_by": "x"})
    data = save({"a.lora_up.weight": torch.ones(2)})
    landing.land(run, data, facts)
    assert run.adapter_for_tools.read_bytes() == data
    run.adapter_for_tools.write_bytes(save({"a.lora_up.weight": torch.zeros(2)}))
    with pytest.raises(AdapterError, match="its checksum in adapter.json differs"):
        landing.lora_of(run)
    with pytest.raises(AdapterError, match="holds NaN or infinity"):
        landing.land(run, save({"a": torch.tensor(float("nan"))}), facts)


def test_a_lora_that_was_trained_elsewhere_is_drawn_with_here(asked, tmp_path):
    """C1, C16, P25: kept as it came, and read for this machine: the same picture as the file that it was made of."""
    settings = asked(num_images=1, refine="none")
    before = quiet_run(settings)
    data = RunFolder.of(settings).adapter_for_tools.read_bytes()
    stripped = save(from_bytes(data))  # as another trainer writes it, without our facts
    facts = adapters.load(RunFolder.of(settings).root).facts
    told = replace(facts, rank=1, alpha=1.0, lora_targets=(), versions={"made_by": "a trainer 2"})
    run = RunFolder(Path(settings.lora_output_dir) / "far")
    landing.land(run, stripped, told, base_model=settings.pretrained_model)
    assert run.adapter_for_tools.read_bytes() == stripped and landing.is_there(run)
    assert adapters.load(run.root).facts.versions == {"made_by": "a trainer 2"}
    after = quiet_run(settings.model_copy(update={"run_name": "far"}))
    assert (read_pixels(after[0].path) == read_pixels(before[0].path)).all()


def test_a_lora_that_nobody_else_reads_stays_with_who_made_it(tmp_path):
    """C16."""
    said = []
    facts = landing.AdapterFacts("sdxl", "x", 2, 2.0, (), versions={"made_by": "a trainer 2"})
    run = RunFolder(tmp_path / "far")
    landing.land(run, save({"a.lora_up.weight": torch.ones(2)}), facts, say=said.append)
    assert said[0].startswith("! Only a trainer 2 can draw with this LoRA: ") and "does not fit SDXL" in said[0]
    with pytest.raises(AdapterError, match=r"lace-lora import .*far.safetensors --run-name far-here"):
        adapters.load(run.root)


def test_a_refused_training_leaves_nothing_to_be_followed(there, fake):
    """C1: what was never queued is not lost by a restart either."""
    fake.info["TrainLoraNode"]["input"]["required"]["steps"][1]["max"] = 1
    with pytest.raises(BackendError, match="refuses the workflow"):
        train.run(there, say=lambda line: None)
    assert not RunFolder.of(there).elsewhere.exists()
    assert [one.state for one in runs.jobs(there.lora_output_dir)] == ["failed"]


# -- ComfyUI's own training --


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(comfy_server, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(comfy_server, "LOOK_SECONDS", 0.1)
    server = FakeComfyUI()
    yield server
    server.close()


@pytest.fixture
def there(settings, fake):
    changes = {"backend": "comfyui", "backend_url": fake.url, "pretrained_model": "sd_xl_base_1.0.safetensors"}
    return settings.model_copy(update=changes)


def newer(info):
    """The nodes as later versions name and split them: pictures and texts in lists, encoded by a node of its own."""
    info["SaveLoRA"] = info.pop("SaveLoRANode")
    del info["LoadImageTextSetFromFolderNode"]
    folder = {"required": {"folder": ["COMBO", {"options": []}]}}
    info["LoadImageTextDataSetFromFolder"] = {"input": folder, "output": ["IMAGE", "STRING"], "output_node": False}
    texts = {"required": {"images": ["IMAGE"], "vae": ["VAE"], "clip": ["CLIP"]}, "optional": {"texts": ["STRING"]}}
    info["MakeTrainingDataset"] = {"input": texts, "output": ["LATENT", "CONDITIONING"], "output_node": False}
    return info


@pytest.mark.parametrize("change", [lambda info: info, newer])
def test_training_nodes_are_found_by_what_they_take_and_give(there, fake, pictures, change):
    """C1: names differ between versions."""
    change(fake.info)
    said = []
    adapter = train.run(there, say=said.append)
    run = RunFolder.of(there)
    assert run.adapter_for_tools.read_bytes() == trained_lora()
    assert json.loads(run.adapter_card.read_text())["sha256"] == {
        run.adapter_for_tools.name: hashlib.sha256(trained_lora()).hexdigest()
    }
    trainer = next(node["inputs"] for node in fake.prompts[fake.asked[0]].values() if "rank" in node["inputs"])
    given = {"steps": 10, "rank": 4, "batch_size": 2, "learning_rate": 1e-3, "seed": 0, "optimizer": "AdamW"}
    assert given.items() <= trainer.items()
    sent = {name: data for (kind, folder, name), data in fake.files.items() if kind == "input"}
    assert len(sent) == 2 * len(list(pictures.glob("*.jpg")))
    assert sent["00003.txt"].decode() == "a photo of <myspecialstyle>"
    assert any("ComfyUI's own training keeps no checkpoints" in line for line in said)
    assert adapter.facts.alpha == 1.0 and adapter.facts.versions["made_by"] == "ComfyUI 0.3.64"


def test_a_lora_of_comfyui_is_drawn_with_by_comfyui(there, fake):
    """C1."""
    train.run(there, say=lambda line: None)
    small = {"num_images": 2, "width": 32, "height": 32, "num_inference_steps": 4, "refine": "none"}
    assert quiet_run(there.model_copy(update=small)).is_complete


def test_a_training_there_is_followed_after_a_cut(there, fake, monkeypatch):
    """C1: job records like local runs; a lost connection resumes following."""

    def end(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(comfy_server, "follow", end)
        with pytest.raises(SystemExit):
            train.run(there, say=lambda line: None)
    assert json.loads(RunFolder.of(there).elsewhere.read_text())["id"] == fake.asked[0]
    train.run(there, say=lambda line: None)
    assert len(fake.asked) == 1 and not RunFolder.of(there).elsewhere.exists()


def test_a_training_that_fails_there_begins_anew(there, fake):
    """C1."""
    fake.fails_in = ("TrainLoraNode", "torch.OutOfMemoryError", "CUDA out of memory")
    with pytest.raises(BackendError, match=r"ran out of memory in node \d \(TrainLoraNode\)"):
        train.run(there, say=lambda line: None)
    (found,) = runs.jobs(there.lora_output_dir)
    assert found.state == "failed" and "ran out of memory" in found.problems[0]
    fake.fails_in = None
    assert train.run(there, say=lambda line: None).path.is_file()


def test_a_server_that_was_started_anew_lost_the_training(there, fake, monkeypatch):
    """C1: said, and begun once more."""
    monkeypatch.setattr(comfy_server, "outcome", lambda *given: (_ for _ in ()).throw(comfy_server.Unknown))
    with pytest.raises(BackendError, match="the training with it is lost. Run again to begin it once more"):
        train.run(there, say=lambda line: None)
    assert not RunFolder.of(there).elsewhere.is_file() or "id" not in RunFolder.of(there).elsewhere.read_text()


def test_a_server_without_training_nodes_is_a_sentence(there, fake):
    """C1."""
    for kind in ("TrainLoraNode", "SaveLoRANode"):
        del fake.info[kind]
    with pytest.raises(BackendError, match="has no nodes that train a LoRA"):
        train.run(there, say=lambda line: None)
    assert not fake.files
    with pytest.raises(BackendError):
        comfy_training.nodes_of({})


def test_the_command_draws_elsewhere_too(asked, fake, capsys):
    """C1: the same options; one sentence and exit code 1 where nothing answers."""
    here = asked(num_images=1)
    line = ["generate", "--preset", "none", "--lora_output_dir", here.lora_output_dir, "--backend", "comfyui"]
    more = ["--num_images", "1", "--width", "32", "--height", "32", "--refine", "none"]
    more += ["--pretrained_model", "sd_xl_base_1.0"]
    assert main.run([*line, *more, "--backend-url", fake.url]) == 0
    assert "1 designs in" in capsys.readouterr().out
    assert main.run([*line, *more, "--sheet_name", "other", "--backend-url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
