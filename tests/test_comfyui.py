"""Designs drawn by a ComfyUI: the same sheet as here, cuts, faults in sentences (C1, P25)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lace_lora import inference, pictures, runs
from lace_lora.backends import comfy_server, comfyui
from lace_lora.errors import BackendError, SettingsError
from lace_lora.run_folder import RunFolder
from tests.drawing import files_of, quiet_run, rows_of
from tests.fake_comfyui import FakeComfyUI


@pytest.fixture
def fake(monkeypatch):
    """A server that is patient with nobody: what would be asked again for minutes is given up in a moment."""
    monkeypatch.setattr(comfy_server, "PATIENCE_SECONDS", 0.4)
    monkeypatch.setattr(comfy_server, "LOOK_SECONDS", 0.1)
    monkeypatch.delenv(comfy_server.KEY_NAME, raising=False)
    server = FakeComfyUI()
    yield server
    server.close()


@pytest.fixture
def there(asked, fake):
    """Settings of a run that the server draws."""
    names = {"pretrained_model": "stabilityai/stable-diffusion-xl-base-1.0"}
    names["refiner_model"] = "stabilityai/stable-diffusion-xl-refiner-1.0"
    usual = {"backend": "comfyui", "backend_url": fake.url, "num_images": 3, "zip": False} | names
    return lambda **changes: asked(**usual | changes)


def kinds_in(prompt):
    return [node["class_type"] for node in prompt.values()]


def test_a_sheet_of_comfyui_has_the_files_and_rows_of_one_drawn_here(there, asked, fake):
    """C1: the same config submitted to each; gallery, page and report read what a local run writes."""
    here = quiet_run(asked(num_images=3, sheet_name="here"))
    designs = quiet_run(there(sheet_name="there", zip=True))
    assert designs.is_complete and not designs.owed
    mine, theirs = (files_of(one.folder.root) for one in (here, designs))
    assert {name.replace("here", "there") for name in mine} == set(theirs)
    rows, local = rows_of(designs.folder.root), rows_of(here.folder.root)
    assert [row.keys() for row in rows] == [row.keys() for row in local]
    same = ("prompt", "refiner_prompt", "negative_prompt", "seed", "width", "height", "adapter_digest", "lora_scale")
    assert [[row[name] for name in same] for row in rows] == [[row[name] for name in same] for row in local]
    for row, one in zip(rows, designs, strict=True):
        assert row["pretrained_model"] == "sd_xl_base_1.0.safetensors" and row["versions"]["comfyui"] == "0.3.64"
        assert pictures.read_details(one.path)["seed"] == row["seed"]
        for path, file in ((one.base, "base"), (one.refined, "refined")):
            assert path.name == row[file] and path.read_bytes() == theirs[row[file]]
    seeds = [prompt[number]["inputs"] for prompt in fake.prompts.values() for number in prompt]
    drawn_from = {given["noise_seed"] for given in seeds if "noise_seed" in given}
    assert drawn_from == {row["seed"] for row in rows}
    assert len(fake.asked) == 3


def test_the_lora_is_sent_once_and_as_it_is(there, fake):
    """P25, C1."""
    quiet_run(there(num_images=1))
    file = RunFolder.of(there()).adapter_for_tools
    sent = {name: data for (kind, folder, name), data in fake.files.items() if (kind, folder) == ("output", "loras")}
    assert list(sent.values()) == [file.read_bytes()]
    prompt = fake.prompts[fake.asked[0]]
    assert next(node["inputs"]["lora_name"] for node in prompt.values() if "lora_name" in node["inputs"]) in sent
    fake.takes_files = False
    assert quiet_run(there(num_images=2, sheet_name="more")).is_complete


def test_half_a_lora_is_sent_again(there, fake):
    """C1: its size is compared with ours."""
    quiet_run(there(num_images=1))
    place = next(place for place in fake.files if place[1] == "loras")
    fake.files[place] = fake.files[place][:100]
    quiet_run(there(num_images=2))
    assert fake.files[place] == RunFolder.of(there()).adapter_for_tools.read_bytes()


def test_where_no_file_is_taken_it_says_which_to_copy_where_and_then_goes_on(there, fake):
    """C1: else the sentence which file to put where."""
    fake.takes_files = False
    with pytest.raises(SettingsError, match="does not take the LoRA over the network") as caught:
        quiet_run(there())
    file = RunFolder.of(there()).adapter_for_tools
    assert str(file) in str(caught.value) and "models/loras" in str(caught.value)
    fake.put_by_hand("styles/" + str(caught.value).split("under the name ")[1].split(",")[0])
    assert len(quiet_run(there())) == 3


def cut_while_waiting(config, monkeypatch, after):
    """End the process, as it were, while it waits for a design, once `after` are finished."""
    working, calls = comfy_server.follow, []

    def follow(*given):
        calls.append(given)
        if len(calls) > after:
            raise SystemExit
        return working(*given)

    with monkeypatch.context() as patch:
        patch.setattr(comfy_server, "follow", follow)
        with pytest.raises(SystemExit):
            quiet_run(config)


def test_after_a_cut_the_same_prompts_are_followed_and_nothing_is_drawn_twice(there, fake, monkeypatch):
    """C1: a lost connection resumes following."""
    cut_while_waiting(there(), monkeypatch, after=1)
    sheet = RunFolder.of(there()).sheet("sheet")
    kept = json.loads(sheet.elsewhere.read_text())["prompts"]
    assert len(rows_of(sheet.root)) == 1 and set(kept) == {"1", "2"}
    assert [one["id"] for one in kept.values()] == fake.asked[1:]
    designs = quiet_run(there())
    assert len(designs) == 3 and designs.is_complete
    assert len(fake.asked) == 3 and not sheet.elsewhere.exists()


def test_what_a_server_that_was_started_anew_forgot_is_asked_for_again(there, fake, monkeypatch):
    """C1."""
    cut_while_waiting(there(), monkeypatch, after=0)
    fake.holds.clear()
    fake.forget()
    fake.holds.set()
    said = []
    designs = inference.run(there(), say=said.append)
    assert len(designs) == 3
    assert [line for line in said if "does not know design 0 any more" in line]


def test_an_older_server_gives_numbers_of_its_own(there, fake, monkeypatch):
    """C1."""
    fake.own_numbers = True
    cut_while_waiting(there(), monkeypatch, after=0)
    assert len(quiet_run(there())) == 3 and len(fake.asked) == 3


@pytest.mark.parametrize("way", ["no socket", "drops"])
def test_without_a_websocket_the_history_is_looked_at(there, fake, way):
    """C1: progress is a comfort, the history counts."""
    fake.has_socket = way == "drops"
    if way == "drops":
        show = lambda one: fake.drop_sockets()  # noqa: E731
        assert len(inference.run(there(), say=lambda line: None, show=show)) == 3
    else:
        assert len(quiet_run(there())) == 3


def test_a_node_that_the_server_refuses_is_named_with_what_to_do(there, fake, monkeypatch):
    """C1: HTTP 400, node_errors."""
    monkeypatch.setattr(comfyui, "put_lora", lambda *given: "gone.safetensors")
    with pytest.raises(BackendError, match=r"node 2 \(LoraLoader\), lora_name 'gone.safetensors': Value not in list"):
        quiet_run(there())
    record = RunFolder.of(there()).sheet(there().sheet_name).elsewhere
    assert not record.exists() or not json.loads(record.read_text())["prompts"]  # nothing to be followed
    monkeypatch.undo()
    fake.info["KSamplerAdvanced"]["input"]["required"]["steps"][1]["max"] = 1
    with pytest.raises(BackendError, match=r"\(KSamplerAdvanced\), steps '4': Value out of its bounds. Update ComfyUI"):
        comfy_server.queue(comfy_server.connect(fake.url, print)[0], workflow_of(there()), "number")


def workflow_of(config):
    from lace_lora import workflow

    design = workflow.Design(
        "sd_xl_base_1.0.safetensors", "lace", 1, 32, 32, refiner="sd_xl_refiner_1.0.safetensors",
        num_inference_steps=config.num_inference_steps,
    )  # fmt: skip
    return workflow.design(design).workflow


def test_nodes_that_an_old_server_lacks_are_named_before_anything_is_queued(there, fake):
    """C1."""
    del fake.info["KSamplerAdvanced"]
    with pytest.raises(BackendError, match="lacks the nodes KSamplerAdvanced. Update it."):
        quiet_run(there())
    assert len(quiet_run(there(refine="none"))) == 3 and len(fake.asked) == 3


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (("KSamplerAdvanced", "torch.OutOfMemoryError", "Allocation on device"), "ran out of memory in node"),
        (("VAEDecode", "RuntimeError", "tiles\nmore"), r"failed in node \d+ \(VAEDecode\): tiles. Look at its own"),
    ],
)
def test_a_node_that_fails_is_a_sentence_and_is_drawn_anew_next_time(there, fake, failure, sentence):
    """C1: out of memory."""
    fake.fails_in = failure
    with pytest.raises(BackendError, match=sentence):
        quiet_run(there())
    fake.fails_in = None
    assert len(quiet_run(there())) == 3


def test_what_somebody_else_stopped_is_a_sentence_and_what_is_finished_stays(there, fake):
    """C1: interruption."""
    fake.is_interrupted = True
    with pytest.raises(BackendError, match="Somebody stopped the work .* run the same again to go on"):
        quiet_run(there())
    fake.is_interrupted = False
    assert len(quiet_run(there())) == 3


def test_a_stop_takes_back_what_waits_there_and_run_again_goes_on(there, fake):
    """C1: interrupted = what was finished stays."""

    def stop(one):
        fake.holds.clear()
        os.kill(os.getpid(), signal.SIGINT)

    designs = inference.run(there(), say=lambda line: None, show=stop)
    assert not designs.is_complete and len(designs) == 1
    assert fake.queue == [] and (fake.running is None or fake.running in fake.interrupted)
    fake.holds.set()
    assert len(quiet_run(there())) == 3


def test_a_server_that_is_gone_is_a_sentence_and_nothing_is_lost(there, fake, monkeypatch):
    """C1: server gone, before and in the middle."""
    said = []
    with pytest.raises(SettingsError, match="no address of a server. Write for example http://localhost:8188"):
        quiet_run(there(backend_url="localhost:8188"))
    with pytest.raises(BackendError, match="does not answer .* Start it, or correct backend_url"):
        quiet_run(there(backend_url="http://127.0.0.1:9"))
    with pytest.raises(BackendError, match="does not answer"):
        inference.run(there(), say=said.append, show=lambda one: fake.close())
    assert len(rows_of(RunFolder.of(there()).sheet("sheet").root)) == 1
    assert any("trying again for a while" in line for line in said)


@pytest.mark.parametrize(
    ("status", "body", "more"),
    [
        (200, b"<html>", ""),
        (200, b"[1]", ""),
        (200, b'{"system": "x", "devices": []}', ""),
        (404, b"no", ""),
        (301, b"", " It sends on to https://other/."),
    ],
)
def test_another_program_at_that_address_is_a_sentence(there, status, body, more):
    """C1: a page, a list, another program's status, nothing, a proxy that sends on."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.send_response(status)
            self.send_header("Location", "https://other/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(BackendError, match=f"answers, but not as ComfyUI does.{more} Correct backend_url"):
        quiet_run(there(backend_url=f"http://127.0.0.1:{server.server_address[1]}"))
    server.shutdown()
    server.server_close()


def test_a_full_queue_is_waited_for_and_then_said(there, fake):
    """C1: queue full."""
    fake.busy = 1
    assert len(quiet_run(there(num_images=1))) == 1
    fake.busy = 1000
    with pytest.raises(BackendError, match=r"The queue of ComfyUI .* is full \(503\)"):
        quiet_run(there(num_images=2))


def test_a_checkpoint_that_is_not_there_is_a_sentence_with_those_that_are(there, fake):
    """C1."""
    choices = fake.info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
    with pytest.raises(SettingsError, match=r"refiner_model somebody/other means. It has: sd_xl_base.* refine none"):
        quiet_run(there(refiner_model="somebody/other"))
    choices[0] = ["juggernaut.safetensors"]
    with pytest.raises(SettingsError, match="Set pretrained_model to one of them"):
        quiet_run(there())
    assert len(quiet_run(there(pretrained_model="Juggernaut", refine="none"))) == 3


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "xl/sd_xl_base_1.0.safetensors"),
        ("sd_xl_base_1.0", "xl/sd_xl_base_1.0.safetensors"),
        ("SDXL\\Juggernaut-XL_v9.safetensors", "juggernautXL_v9.safetensors"),
        ("nothing", None),
    ],
)
def test_a_checkpoint_is_found_by_the_name_that_people_write(name, means):
    """C1."""
    listed = ["juggernautXL_v9.safetensors", "xl/sd_xl_base_1.0.safetensors"]
    assert comfy_server.chosen(listed, [name]) == means


def test_what_comfyui_cannot_draw_is_refused_before_it_is_asked(there):
    """C1: it would draw something else without a word."""
    with pytest.raises(SettingsError, match="no nodes of its own for repeat straight, guidance_until 0.8. Take it out"):
        quiet_run(there(repeat="straight", guidance_until=0.8, backend_url="http://127.0.0.1:9"))


def test_the_key_goes_in_a_header_and_into_no_file_or_sentence(there, fake, monkeypatch):
    """C1: secrets come from the environment, never into a file, log or error message."""
    fake.key = "a-very-secret-key"
    with pytest.raises(SettingsError, match="asks for a key .* LACE_BACKEND_KEY"):
        quiet_run(there())
    monkeypatch.setenv(comfy_server.KEY_NAME, "another-secret-key")
    with pytest.raises(SettingsError, match="refuses the key") as caught:
        quiet_run(there())
    assert "another-secret-key" not in str(caught.value)
    monkeypatch.setenv(comfy_server.KEY_NAME, fake.key)
    said = []
    designs = inference.run(there(), say=said.append)
    kept = files_of(Path(there().lora_output_dir))
    assert designs.is_complete and not any(fake.key in line for line in said)
    assert not [name for name, data in kept.items() if fake.key.encode() in data]
    with pytest.raises(SettingsError, match="begins with http://, over which everyone"):
        comfy_server.find_key("http://10.0.0.1:8188")


def test_a_learnt_word_is_asked_for_by_name_and_stands_in_the_prompt(there, fake):
    """C1: core ComfyUI takes no embedding over the network."""
    import dataclasses

    import torch

    from lace_lora import adapter

    run = RunFolder.of(there())
    lora = adapter.load(run.root)
    rows = {"text_encoder.concept_token": torch.ones(1, 16), "text_encoder_2.concept_token": torch.ones(1, 16)}
    adapter.save({**lora.state, **rows}, run, dataclasses.replace(lora.facts, learns_token=True))
    with pytest.raises(SettingsError, match="models/embeddings under the name") as caught:
        quiet_run(there())
    word = str(caught.value).split("under the name ")[1].split(".safetensors")[0]
    fake.words.append(word)
    quiet_run(there(num_images=1, refine="none"))
    prompt = fake.prompts[fake.asked[0]]
    told = next(node["inputs"]["text"] for node in prompt.values() if "text" in node["inputs"])
    assert f"embedding:{word}" in told and "<lace>" not in told


def test_the_machine_without_a_gpu_takes_no_demo_for_work_elsewhere(there):
    """C1: the demo's model and sizes are for work on this machine."""
    from lace_lora import presets
    from lace_lora.machine import Machine

    assert presets.settle(there().model_copy(update={"preset": "auto"}), Machine.here()).preset == "none"


def test_runs_that_are_drawn_elsewhere_are_listed(there):
    """C1."""
    quiet_run(there())
    assert [job.name for job in runs.jobs(there().lora_output_dir)] == ["lace"]


@pytest.fixture
def real(tmp_path):
    """A real ComfyUI on the CPU, from the checkout at LACE_COMFYUI.

    LACE_COMFYUI_PYTHON is its Python, and LACE_COMFYUI_BASE the folder whose models/checkpoints has both of SDXL's.
    """
    checkout = os.environ.get("LACE_COMFYUI")
    if not checkout:
        pytest.skip("no ComfyUI: set LACE_COMFYUI to a checkout of it, and see the fixture `real` for the rest")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [os.environ.get("LACE_COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--listen", "127.0.0.1"]
    words += ["--port", str(port), "--disable-all-custom-nodes", "--dont-print-server"]
    words += ["--base-directory", os.environ.get("LACE_COMFYUI_BASE", checkout)]
    words += os.environ.get("LACE_COMFYUI_OPTIONS", "").split()
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(words, cwd=checkout, stdout=log, stderr=log)
        try:
            for _ in range(240):
                try:
                    comfy_server.connect(f"http://127.0.0.1:{port}", print)
                    break
                except BackendError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.mark.slow
def test_a_real_comfyui_draws_a_sheet(asked, real):
    """C1: ComfyUI verified against a real server: upload, queue, websocket, both checkpoints, pictures fetched."""
    names = {"pretrained_model": "sd_xl_base_1.0", "refiner_model": "sd_xl_refiner_1.0"}
    designs = quiet_run(asked(backend="comfyui", backend_url=real, num_images=2, width=64, height=64, **names))
    assert designs.is_complete
    assert all(pictures.read_details(path)["seed"] == one.seed for one in designs for path in one.files())
    different = {one.base.read_bytes() for one in designs} | {one.path.read_bytes() for one in designs}
    assert len(different) == 4
