"""Trainings and designs at Replicate, by its own client against its API's shapes (C1, C15, C16)."""

import hashlib
import io
import json
import os
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from lace_lora import colab, config, elsewhere_training, inference, main, runs, stopping, train
from lace_lora.backends import replicate_client, replicate_jobs, trainers
from lace_lora.errors import AdapterError, BackendError, MachineError, SettingsError
from lace_lora.run_folder import RunFolder
from tests.drawing import files_of, rows_of
from tests.fake_replicate import KEY, FakeReplicate, packed

replicate = pytest.importorskip("replicate", reason="the package replicate is not installed (extra replicate)")

LORA = save({"unet.x.lora_A.weight": torch.ones(2, 8), "unet.x.lora_B.weight": torch.ones(8, 2)})


@pytest.fixture
def fake(monkeypatch):
    """The service, which answers at once to a client that hardly waits."""
    server = FakeReplicate(packed(LORA))
    monkeypatch.setenv("REPLICATE_BASE_URL", server.url)
    monkeypatch.setenv(replicate_client.KEY_NAME, KEY)
    monkeypatch.setattr(replicate_jobs, "FIRST_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(replicate_jobs, "LONGEST_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(replicate_client, "LONGEST_PAUSE_SECONDS", 0.02)
    yield server
    server.close()


@pytest.fixture
def settings(pictures, tmp_path):
    """Settings that train ten steps at Replicate."""

    def make(**changes):
        usual = {
            "preset": "none", "backend": "replicate", "backend_model": "anna/my-lace", "max_cost_usd": 5,
            "images_dir": str(pictures), "lora_output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache"),
            "max_train_steps": 10, "resolution": 512, "rank": 8, "learning_rate": 2e-4, "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
        }  # fmt: skip
        return config.load(**usual | changes)

    return make


def quietly(settings):
    return train.run(settings, say=lambda line: None)


def test_a_training_is_sent_followed_brought_and_listed(fake, settings):
    """C1, C16: what lands is the backend's file, byte for byte; run.json is like that of a local run."""
    said = []
    adapter = train.run(settings(), say=said.append)
    run = RunFolder.of(settings())
    assert run.adapter_for_tools.read_bytes() == LORA and adapter.path == run.adapter_for_tools
    card = json.loads(run.adapter_card.read_text())
    assert card["sha256"][run.adapter_for_tools.name] == hashlib.sha256(LORA).hexdigest()
    assert card["versions"]["made_by"].startswith("anna/my-lace:0f3c")
    job = next(iter(fake.trainings.values()))
    told = {"max_train_steps": 10, "resolution": 512, "lora_rank": 8, "lora_lr": 2e-4, "train_batch_size": 1, "seed": 0}
    assert told.items() <= job["input"].items() and job["input"]["is_lora"] is True
    assert job["input"]["token_string"] == "<myspecialstyle>" and job["model"] == "stability-ai/sdxl"
    assert fake.made == [{"owner": "anna", "name": "my-lace", "visibility": "private", "hardware": "gpu-l40s"}]
    (found,) = runs.jobs(settings().lora_output_dir)
    assert (found.state, found.step, found.total, found.percent) == ("finished", 10, 10, 100)
    assert any(line.startswith("cost      this training by stability-ai/sdxl at Replicate: about $") for line in said)
    assert not run.elsewhere.exists() and "step 5/10" in said


def test_the_pictures_are_sent_with_their_captions_the_same_every_time(fake, settings, pictures):
    """C1: upload of the zip of pictures and captions."""
    quietly(settings())
    with zipfile.ZipFile(io.BytesIO(next(iter(fake.files.values())))) as sent:
        names = sent.namelist()
        assert len(names) == 2 * len(list(pictures.glob("*.jpg")))
        assert sent.read("00000.txt").decode() == "a photo of <myspecialstyle>"
        with Image.open(io.BytesIO(sent.read("00000.jpg"))) as opened:
            assert opened.format == "JPEG" and not opened.getexif()
    quietly(settings(run_name="again"))
    first, second = fake.files.values()
    assert first == second


def test_called_again_the_finished_training_is_not_begun_again(fake, settings):
    """C1: nothing is paid for twice."""
    quietly(settings())
    assert quietly(settings()).path.is_file()
    assert len(fake.trainings) == 1


def test_nothing_is_begun_before_its_cost_is_agreed_to(fake, settings):
    """C15: the assumption is printed; steps × seconds a step × rate; the table has a date."""
    said = []
    with pytest.raises(SettingsError, match=r"max_cost_usd is 0. To agree, set max_cost_usd to \d") as caught:
        train.run(settings(max_cost_usd=0), say=said.append)
    assert fake.requests == []
    assert any("× $0.000975 on L40S; prices of 2026-08-19" in line for line in said)
    enough = float(str(caught.value).split("set max_cost_usd to ")[1].split()[0])
    quietly(settings(max_cost_usd=enough))
    assert len(fake.trainings) == 1


def test_the_cost_is_minutes_times_rate(settings):
    """C15: by hand: at least ten minutes of an L40S at $0.000975 a second; one price for fast-flux."""
    assert replicate_jobs.training_cost(settings(), 6).usd == pytest.approx(600 * 0.000975)
    many = replicate_jobs.training_cost(settings(max_train_steps=10_000, resolution=1024), 6).usd
    assert many > 1.5 * 600 * 0.000975
    assert replicate_jobs.training_cost(settings(backend_trainer="fast-flux"), 6).usd == 2.0
    assert trainers.drawing_cost(trainers.table()["sdxl"], 24).usd == pytest.approx(240 * 0.000975)


def cut(monkeypatch, settings, room, name):
    """End the process, as it were, where it comes to a function."""

    def end(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(room, name, end)
        with pytest.raises(SystemExit):
            quietly(settings)


def test_after_a_cut_the_same_training_is_followed(fake, settings, monkeypatch):
    """C1, C16: a second call follows instead of paying twice, also with no cost agreed to any more."""
    cut(monkeypatch, settings(), replicate_jobs, "_followed")
    (found,) = runs.jobs(settings().lora_output_dir)
    assert found.state == "cut off"  # here; it goes on there
    quietly(settings(max_cost_usd=0))
    assert len(fake.trainings) == 1 and len(fake.files) == 1


def test_a_training_whose_beginning_was_not_heard_of_is_found_again(fake, settings):
    """C16: the connection is lost between the beginning and its answer."""
    fake.cuts["POST", "trainings"] = 1
    with pytest.raises(BackendError, match="run the same again to follow it"):
        quietly(settings())
    assert len(fake.trainings) == 1
    quietly(settings())
    assert len(fake.trainings) == 1


def test_another_training_under_the_same_name_is_refused_while_one_is_under_way(fake, settings, monkeypatch):
    """C1: what was paid for must not be forgotten."""
    from lace_lora.errors import RunError

    cut(monkeypatch, settings(), replicate_jobs, "_followed")
    with pytest.raises(RunError, match="with other settings or pictures is under way at replicate"):
        quietly(settings(rank=4))
    assert len(fake.trainings) == 1


def test_a_lost_connection_while_following_is_waited_for(fake, settings):
    """C1: lost connection; 429 with Retry-After; a server that is down for a moment."""
    fake.cuts["GET", "trainings"] = 2
    fake.answers["POST", "files"] = [429, 503]
    fake.answers["POST", "trainings"] = [429, 429]
    said = []
    assert train.run(settings(), say=said.append).path.is_file()
    assert any("does not begin the training yet (it answers 429)" in line for line in said)


def test_what_came_half_is_brought_again(fake, settings):
    """C16: length and md5 are compared."""
    fake.cuts["GET", "store"] = 1
    quietly(settings())
    assert RunFolder.of(settings()).adapter_for_tools.read_bytes() == LORA


def test_download_weights_gives_the_backends_file(fake, settings, tmp_path):
    """C16: sha256 equal to the backend's file."""
    quietly(settings())
    account = replicate_client.connect(print)
    job = account.client.trainings.get(next(iter(fake.trainings)))
    found = replicate_jobs.download_weights(account, job, tmp_path / "trained_model.tar")
    assert found == hashlib.sha256(fake.weights).hexdigest()
    assert (tmp_path / "trained_model.tar").read_bytes() == fake.weights


def test_the_key_goes_to_the_api_alone_and_into_no_file_or_line(fake, settings):
    """C1: the client's own download would send it to the store of files too."""
    said = []
    train.run(settings(), say=said.append)
    assert fake.store_headers and not any("Authorization" in headers for headers in fake.store_headers)
    kept = files_of(Path(settings().lora_output_dir))
    assert not [name for name, data in kept.items() if KEY.encode() in data]
    assert not any(KEY in line for line in said)


@pytest.mark.parametrize(
    ("key", "status", "sentence", "kind"),
    [
        (("POST", "trainings"), 402, "asks for a means of payment, or your credit is used up", BackendError),
        (("POST", "trainings"), 403, "may not begin the training", SettingsError),
        (("POST", "trainings"), 422, "refuses the input .*the reason of 422.* Correct the settings", SettingsError),
        (("POST", "files"), 500, "could not take the pictures .500: the reason of 500", BackendError),
    ],
)
def test_an_answer_that_refuses_is_a_sentence(fake, settings, key, status, sentence, kind):
    """C1."""
    fake.answers[key] = [status] * replicate_client.TRIES
    with pytest.raises(kind, match=sentence):
        quietly(settings())
    fake.answers.clear()
    assert quietly(settings()).path.is_file()


def test_a_wrong_key_and_none_are_sentences(fake, settings, monkeypatch):
    """C1: 401; the token from the environment or Colab's secrets."""
    monkeypatch.setenv(replicate_client.KEY_NAME, "r8_wrong")
    with pytest.raises(SettingsError, match=r"does not take the key in REPLICATE_API_TOKEN \(401\)") as caught:
        quietly(settings())
    assert "r8_wrong" not in str(caught.value)
    monkeypatch.delenv(replicate_client.KEY_NAME)
    with pytest.raises(SettingsError, match="asks for a key. Make one .* REPLICATE_API_TOKEN"):
        quietly(settings())
    from pydantic import SecretStr

    monkeypatch.setattr(colab, "secret", lambda name: SecretStr(KEY) if name == replicate_client.KEY_NAME else None)
    assert quietly(settings()).path.is_file()


def test_a_training_that_fails_is_a_sentence_and_begins_anew(fake, settings):
    """C1."""
    fake.ends, fake.error = "failed", "CUDA out of memory"
    with pytest.raises(BackendError, match=r"it failed \(CUDA out of memory\). Run again to begin it anew"):
        quietly(settings())
    (found,) = runs.jobs(settings().lora_output_dir)
    assert found.state == "failed" and "CUDA out of memory" in found.problems[0]
    fake.ends, fake.error = "succeeded", None
    quietly(settings())
    assert len(fake.trainings) == 2


def test_a_stop_leaves_the_training_running_there_and_cancel_ends_it(fake, settings, capsys):
    """C1: cancel."""
    fake.looks = 10_000
    said = []

    def stop(line):
        said.append(line)
        if line.startswith("following"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train.run(settings(), say=stop)
    assert any("goes on at Replicate and costs money" in line for line in said)
    (found,) = runs.jobs(settings().lora_output_dir)
    assert found.state == "elsewhere"
    line = ["cancel", "--preset", "none", "--lora_output_dir", settings().lora_output_dir]
    assert main.run(line) == 0
    assert "is canceled; what it took until now is billed" in capsys.readouterr().out
    assert next(iter(fake.trainings.values()))["status"] == "canceled"
    assert [one.state for one in runs.jobs(settings().lora_output_dir)] == ["stopped"]
    assert main.run(line) == 1
    assert "No training of" in capsys.readouterr().err


def test_somebody_who_cancels_there_is_told_so_here(fake, settings):
    """C1: canceled."""
    fake.ends = "canceled"
    with pytest.raises(BackendError, match="it was stopped there"):
        quietly(settings())


def test_a_model_to_train_into_must_be_named(fake, settings):
    """C1."""
    for wrong in (None, "my-lace", "anna/my lace"):
        with pytest.raises(SettingsError, match="set backend_model to your name there"):
            quietly(settings(backend_model=wrong))


def test_what_is_no_lora_is_a_sentence(fake, settings):
    """C16."""
    fake.weights = packed(b"no tensors at all")
    with pytest.raises(AdapterError, match="is no safetensors file"):
        quietly(settings())
    fake.weights = packed(b"x", name="output/model.ckpt")
    with pytest.raises(BackendError, match="holds no LoRA"):
        quietly(settings(run_name="other"))


def test_a_run_that_was_trained_there_says_who_can_draw_it_here(fake, settings):
    """C1: its LoRA is not in our format."""
    fake.weights = packed(save({"lora_unet_x.lora_down.weight": torch.ones(2, 8)}))
    quietly(settings())
    with pytest.raises(AdapterError, match="was trained elsewhere .* Draw with the backend that trained it"):
        inference.run(settings(backend="local", pretrained_model="lace-demo"), say=lambda line: None)


def drawn(settings, **changes):
    return settings(num_images=3, width=64, height=64, **changes)


def test_designs_are_drawn_by_the_trained_version(fake, settings):
    """C1, C15: the same sheet as a local one; the cost is agreed to first."""
    quietly(settings())
    with pytest.raises(SettingsError, match="The estimate for 3 designs at Replicate is about"):
        inference.run(drawn(settings, max_cost_usd=0), say=lambda line: None)
    assert not fake.predictions
    designs = inference.run(drawn(settings), say=lambda line: None)
    assert designs.is_complete
    rows = rows_of(designs.folder.root)
    asked = [job["input"] for job in fake.predictions.values()]
    assert [one["seed"] for one in asked] == [row["seed"] for row in rows]
    assert asked[0]["prompt"] == rows[0]["prompt"] and asked[0]["refine"] == "no_refiner"
    assert rows[0]["refined"] is None and rows[0]["pretrained_model"].startswith("anna/my-lace:0f3c")
    with Image.open(designs[1].path) as opened:
        assert opened.size == (64, 64) and opened.getpixel((0, 0)) == (rows[1]["seed"] % 256, 80, 120)


def test_a_cut_while_drawing_follows_the_same_pictures(fake, settings):
    """C1."""
    quietly(settings())

    class Cut(BaseException):
        pass

    def end(one):
        raise Cut

    with pytest.raises(Cut):
        inference.run(drawn(settings), say=lambda line: None, show=end)
    assert inference.run(drawn(settings), say=lambda line: None).is_complete
    assert len(fake.predictions) == 3


def test_a_stop_takes_back_what_can_be_and_keeps_the_rest_to_be_fetched(fake, settings):
    """C1: nothing that is paid for is lost, and a refusal to stop it is no error of the person's."""
    quietly(settings())
    stop = stopping.Stop()
    fake.answers["POST", "cancel"] = [404]

    def ask(one):
        stop.asked = True

    inference.run(drawn(settings), say=lambda line: None, show=ask, stop=stop)
    states = [one["status"] for one in fake.predictions.values()]
    assert states.count("canceled") == 1  # of the two that were under way one would not be stopped
    assert inference.run(drawn(settings), say=lambda line: None).is_complete
    assert len(fake.predictions) == 4


def test_what_is_not_trained_there_is_not_drawn_there(fake, settings, made_run):
    """C1."""
    import shutil

    shutil.copytree(made_run, RunFolder.of(settings()).root)
    with pytest.raises(SettingsError, match="Replicate draws with what was trained there, and this run was not"):
        inference.run(drawn(settings), say=lambda line: None)


@pytest.mark.parametrize("name", list(trainers.table()))
def test_every_trainer_says_its_source_and_maps_settings_that_there_are(name, settings):
    """C1: the input mapping per trainer as data."""
    row = trainers.table()[name]
    assert row["source"] and row["draw"]["source"] and "/" in row["model"]
    found = trainers.inputs(row, settings(backend_trainer=name))
    assert set(row["settings"].values()) <= set(found)
    assert "<myspecialstyle>" in found.values()
    assert config.load(backend_trainer=name).backend_trainer == name


def test_bounds_of_a_trainer_are_kept_and_settings_it_does_not_know_are_said(settings):
    """C1."""
    row = trainers.table()["flux-dev"]
    found = trainers.inputs(row, settings(max_train_steps=20_000))
    assert found["steps"] == 6000 and found["resolution"] == "512"
    assert trainers.unused(row, settings(use_dora=True, noise_offset=0.1)) == [
        "use_dora", "gradient_accumulation_steps", "noise_offset",
    ]  # fmt: skip


def test_without_the_package_it_names_the_pip_install(settings, monkeypatch):
    """C1."""
    import sys

    monkeypatch.setitem(sys.modules, "replicate", None)
    with pytest.raises(MachineError, match=r"pip install replicate \(or lace-lora\[replicate\]\)"):
        quietly(settings())


def test_equal_tensors_come_out(fake, settings):
    """C16: what landed reads as what was trained."""
    adapter = quietly(settings())
    assert all(torch.equal(adapter.state[name], one) for name, one in load(LORA).items())
    assert elsewhere_training.USUAL_GPU == "L4"
