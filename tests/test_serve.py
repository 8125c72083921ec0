"""The served door over HTTP: asked by real clients, fuzzed by schemathesis, killed and started again (P25, C1, L15)."""

import io
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from lace_lora import commissions, main, serve, serve_command
from lace_lora.commissions import Limits
from lace_lora.config import Config
from lace_lora.errors import AdapterError, MachineError
from lace_lora.families import sdxl as family
from lace_lora.prompt_files import one_line
from lace_lora.service import Service
from lace_lora.studio import Studio
from tests.drawing import picture_at, quiet_run, rows_of, settings_of
from tests.generated import ROOT
from tests.serving import Painter, asked, quiet, run_in, served, started, until

KEY = "k" * 32
HEALTH = list(HealthCheck)


@pytest.fixture
def door(tmp_path):
    with served(tmp_path) as (address, drawing), httpx.Client(base_url=address) as client:
        yield client, drawing


def finished(client, id):
    """The request once it is over."""
    until(lambda: client.get(f"/designs/{id}").json()["state"] not in ("waiting", "running"), 120)
    return client.get(f"/designs/{id}").json()


def sentence(answer):
    """The one sentence of an error; nothing else is in it."""
    (told,) = answer.json().items()
    assert told[0] == "error" and "Traceback" not in told[1] and "/" + "work" not in told[1]
    return told[1]


def test_designs_are_asked_for_followed_and_fetched(door):
    """P25: a request is answered at once, its place told, and each picture is a PNG."""
    client, _ = door
    answer = client.post("/designs", json={"prompts": ["a rose"], "num_images": 3, "seed": 5})
    assert answer.status_code == 202 and answer.headers["location"] == f"/designs/{answer.json()['id']}"
    found = finished(client, answer.json()["id"])
    assert (found["state"], found["total"], found["finished"], found["progress"]) == ("finished", 3, 3, 1.0)
    assert found["asked"]["prompts"] == ["a rose"] and [one["seed"] for one in found["designs"]] == [5, 6, 7]
    for one in found["designs"]:
        picture = client.get(one["url"])
        assert picture.headers["content-type"] == "image/png" and picture.content[:4] == b"\x89PNG"
    assert [one["id"] for one in client.get("/designs").json()] == [found["id"]]


def test_an_empty_request_draws_what_the_settings_say(door):
    """P25."""
    client, _ = door
    assert finished(client, client.post("/designs", json={}).json()["id"])["total"] == 2


def test_the_adapter_and_the_health_are_told(door):
    """P25."""
    client, _ = door
    assert client.get("/adapter").json()["concept_token"] == "<lace>"
    health = client.get("/health").json()
    assert health["is_working"] and health["room"] == 16 and health["requests"]["waiting"] == 0


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"json": {"num_images": 99}}, 422, "num_images must be 1 to 32 (pictures)."),
        ({"json": {"rnak": 1}}, 422, "No setting called 'rnak'"),
        ({"json": {"prompts": ["a {rose"]}}, 422, "Prompt 1 has a { that is never closed"),
        ({"json": [1]}, 422, "Send the settings as one JSON object"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "Send the settings as one JSON"),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "cannot be read"),
        (
            {"content": b'{"seed":' + b"9" * 5000 + b"}", "headers": {"content-type": "application/json"}},
            400,
            "cannot be read",
        ),
        ({"content": b"[" * 20000, "headers": {"content-type": "application/json"}}, 400, "cannot be read"),
        ({"content": b"{}"}, 415, "Content-Type: application/json"),
        ({"data": {"num_images": 3}}, 415, "Content-Type: application/json"),
        ({"content": b"x" * 70_000}, 413, "65,536 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_will_not_do_is_answered_with_a_sentence(door, sent, status, said):
    """P25: and nothing of it waits."""
    client, drawing = door
    answer = client.post("/designs", **sent)
    assert answer.status_code == status and said in sentence(answer)
    assert drawing.jobs() == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/redoc", 404), ("PUT", "/designs", 405),
        ("GET", "/designs/nothing", 404), ("DELETE", "/designs/nothing", 404),
        ("GET", "/designs/nothing/pictures/0.png", 404), ("GET", "/designs/x/pictures/-1.png", 422),
        ("GET", "/designs/x/pictures/a.png", 422), ("GET", "/designs/..%2f..%2frun.json", 404),
        ("GET", "/designs/x/pictures/..%2f0.png", 404), ("OPTIONS", "/designs", 405), ("GET", "/%00", 404),
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_sentence_too(door, method, path, status):
    """P25: no path of a request becomes one on the disk."""
    client, _ = door
    answer = client.request(method, path)
    assert path != "/designs" or answer.headers["allow"] == "GET, POST"
    assert answer.status_code == status and sentence(answer)
    assert "access-control-allow-origin" not in answer.headers


def test_what_cannot_be_drawn_is_told_without_folders(tmp_path):
    """P25."""
    painter = Painter(run_in(tmp_path), error=AdapterError(f"No adapter in {tmp_path}/lace. Train first."))
    with served(tmp_path, painter) as (address, _), httpx.Client(base_url=address) as client:
        found = finished(client, client.post("/designs", json={}).json()["id"])
        assert (found["state"], found["error"]) == ("failed", "No adapter in lace. Train first.")


def test_an_unforeseen_error_is_a_500_with_a_sentence_and_no_more(tmp_path, monkeypatch):
    """P25."""
    with served(tmp_path) as (address, drawing), httpx.Client(base_url=address) as client:
        monkeypatch.setattr(drawing, "jobs", lambda: 1 / 0)
        answer = client.get("/designs")
        assert answer.status_code == 500 and "division" not in sentence(answer)


def test_a_disk_that_is_full_is_a_503(tmp_path, monkeypatch):
    """P25: and the folder is not told."""
    with served(tmp_path) as (address, drawing), httpx.Client(base_url=address) as client:

        def full(*given):
            raise MachineError(f"Nothing can be written to {tmp_path}/lace: the disk is full.")

        monkeypatch.setattr(drawing, "submit", full)
        answer = client.post("/designs", json={})
        assert (answer.status_code, sentence(answer)) == (503, "Nothing can be written to lace: the disk is full.")


def test_cancelling_over_http(tmp_path):
    """P25: what waits at once, what is drawn after its batch, and what is over is told so."""
    pause = threading.Event()
    painter = Painter(run_in(tmp_path), pause)
    with served(tmp_path, painter) as (address, _), httpx.Client(base_url=address) as client:
        first, second = (client.post("/designs", json={}).json()["id"] for _ in range(2))
        until(lambda: client.get(f"/designs/{first}").json()["state"] == "running")
        assert client.delete(f"/designs/{second}").json()["state"] == "cancelled"
        assert client.delete(f"/designs/{second}").status_code == 200
        assert client.delete(f"/designs/{first}").status_code == 200
        assert finished(client, first)["state"] == "cancelled"
        pause.set()
        third = finished(client, client.post("/designs", json={}).json()["id"])
        answer = client.delete(f"/designs/{third['id']}")
        assert answer.status_code == 409 and "finished already" in sentence(answer)


def test_200_requests_at_once_lose_nothing(tmp_path):
    """P25: each was taken and drawn exactly once, or was told to come again."""
    pause = threading.Event()  # so that the queue fills up: one is drawn, 16 wait, and there are no more
    painter = Painter(run_in(tmp_path), pause)
    with served(tmp_path, painter) as (address, drawing):
        with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(200) as callers:
            answers = list(
                callers.map(lambda n: client.post("/designs", json={"seed": n, "num_images": 2}), range(200))
            )
            taken = [one.json() for one in answers if one.status_code == 202]
            refused = [one for one in answers if one.status_code == 429]
            assert len(taken) + len(refused) == 200 and 16 <= len(taken) <= 17
            assert all(int(one.headers["retry-after"]) >= 1 and "waiting" in sentence(one) for one in refused)
            pause.set()
            until(lambda: all(job.is_over for job in drawing.jobs()), 60)
            told = client.get("/designs").json()
    assert sorted(one["id"] for one in told) == sorted(one["id"] for one in taken)
    assert {one["state"] for one in told} == {"finished"} and painter.most_at_once == 1
    assert sorted(painter.begun) == sorted(f"served-{one['id']}" for one in taken)
    assert sorted(painter.drawn) == sorted((f"served-{one['id']}", n) for one in taken for n in range(2))
    assert {one["id"]: one["asked"]["seed"] for one in taken} == {one["id"]: one["asked"]["seed"] for one in told}


def test_with_a_key_nothing_is_told_without_it(tmp_path):
    """P25: one answer to every path, the description's too; with the key all is as without."""
    with served(tmp_path, key=KEY) as (address, _), httpx.Client(base_url=address) as client:
        paths = ["/openapi.json", "/designs", "/adapter", "/health", "/docs", "/nothing"]
        sent = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {KEY[:-1]}"}]
        answers = [client.get(path, headers=headers) for path in paths for headers in sent]
        answers += [client.post("/designs", json={}, headers=headers) for headers in sent]
        told = {(one.status_code, one.content, one.headers["content-type"]) for one in answers}
        assert len(told) == 1 and told.pop()[0] == 401
        with_key = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/openapi.json", headers=with_key).json()["components"]["securitySchemes"]
        assert client.post("/designs", json={}, headers=with_key).status_code == 202


def test_the_description_has_units_bounds_and_every_answer(door):
    """P25, C1: OpenAPI from the declarations."""
    client, _ = door
    told = client.get("/openapi.json").json()
    asked = told["components"]["schemas"]["Commission"]["properties"]
    assert list(asked) == list(commissions.NAMES)
    assert asked["num_images"]["maximum"] == 32 and asked["num_images"]["unit"] == "pictures"
    assert asked["lora_scale"]["description"] == Config.model_fields["lora_scale"].description
    assert {"202", "413", "415", "422", "429"} <= told["paths"]["/designs"]["post"]["responses"].keys()


# -- schemathesis --


def is_drawable(case):
    """Whether no prompt has braces, whose balance a schema cannot describe, or none but invisible signs."""
    body = case.body if isinstance(case.body, dict) else {}
    prompts = [str(prompt) for prompt in body.get("prompts") or ()]
    return all(one_line(prompt) and not set("{}") & set(prompt) for prompt in prompts)


def fuzzed(address, examples, key, known):
    """Requests that schemathesis makes of the door's own description, sound ones and others; every check it has.

    known  the id of a request that is there: every other request is about it
    """
    headers, answered = {"Authorization": f"Bearer {key}"}, Counter()
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=headers)

    def check(case):
        if "id" in (case.path_parameters or {}) and answered.total() % 2:
            case.path_parameters["id"] = known
        unfit = [] if is_drawable(case) else [positive_data_acceptance]
        answer = case.call_and_validate(headers=headers, excluded_checks=unfit)
        answered[case.method, answer.status_code] += 1

    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in GenerationMode:
            limits = settings(max_examples=examples, database=None, derandomize=True, suppress_health_check=HEALTH)
            with suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parts
                limits(given(operation.as_strategy(generation_mode=mode))(check))()
    return answered


def test_schemathesis_finds_no_500_and_nothing_that_is_not_described(tmp_path):
    """P25: statuses, bodies and headers as OpenAPI says, a key that is asked for, sound requests taken, others not."""
    with served(tmp_path, key=KEY) as (address, drawing):
        known = drawing.submit(asked(), 2).id
        until(lambda: drawing.job(known).is_over)
        answered = fuzzed(address, 8, KEY, known)
    assert not [status for _, status in answered if status >= 500]
    assert {("POST", 202), ("POST", 422), ("GET", 200), ("GET", 404), ("DELETE", 409)} <= set(answered)


@pytest.mark.slow
def test_schemathesis_itself_finds_nothing_in_many_more_requests_and_in_chains_of_them(tmp_path):
    """P25: its own program, all checks and phases; prompts with braces are refused as they should be."""
    with served(tmp_path, key=KEY) as (address, _):
        line = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks", "all",
                "--exclude-checks", "positive_data_acceptance", "--max-examples", "100", "--seed", "1",
                "--header", f"Authorization: Bearer {KEY}", "--generation-database", "none"]  # fmt: skip
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


# -- the command --


def failed(words, capsys):
    """The sentence of a command that fails."""
    assert main.run(words) == 1
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "LACE_SERVE_KEY"),
        (["--port", "x"], "--port is 'x' but must be a whole number, 0 to 65535."),
        (["--port", "70000"], "--port is '70000'"),
        (["--queue", "0"], "--queue is '0' but must be a whole number, 1 to 10000."),
        (["--most-images", "-1"], "--most-images is '-1'"),
        (["one", "other"], "Give one of these, not 2: one, other."),
        (["nothing"], "No adapter called 'nothing'"),
        ([], "No adapter in"),
    ],
)
def test_a_server_that_cannot_be_started_says_why(tmp_path, monkeypatch, capsys, words, said):
    """P25: before anything is loaded."""
    monkeypatch.delenv("LACE_SERVE_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    assert said in failed(["serve", *words, "--preset", "none", "--lora-output-dir", "out"], capsys)


def test_a_key_that_is_too_short_is_refused_and_not_shown(tmp_path, monkeypatch, capsys):
    """P25."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LACE_SERVE_KEY", "swordfish")
    said = failed(["serve", "--preset", "none", "--lora-output-dir", "out"], capsys)
    assert "16 characters" in said and "swordfish" not in said


def test_without_the_packages_the_sentence_says_what_to_type(monkeypatch, capsys):
    """P25."""
    monkeypatch.setattr(serve_command, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert "pip install 'lace-lora[serve]'" in failed(["serve"], capsys)


def test_a_port_that_is_taken_is_a_sentence():
    """P25."""
    taken = serve.listen("127.0.0.1", 0)
    with closing(taken), pytest.raises(MachineError, match="another with --port"):
        serve.listen("127.0.0.1", taken.getsockname()[1])


# -- the whole of it, with models --


VALUES = {"prompts": ["a photo of <lace> leaf", "a photo of <lace> star"], "num_images": 12,
          "num_inference_steps": 6, "refiner_start": 0.5, "width": 32, "height": 32, "seed": 3}  # fmt: skip


def check_same(client, told, plain):
    """The pictures over HTTP have the pixels of those of `lace-lora generate`."""
    assert (told["state"], told["finished"], told["error"]) == ("finished", len(plain), "")
    for one, design in zip(told["designs"], plain, strict=True):
        picture = Image.open(io.BytesIO(client.get(one["url"]).content))
        assert picture.tobytes() == picture_at(design.path).tobytes()
        assert (one["seed"], one["prompt"]) == (design.seed, design.prompt)


def test_a_server_that_is_killed_and_one_that_is_ended_lose_nothing(tmp_path):
    """P25: each design of each request that was taken is drawn, by whichever process; those that there were stay."""
    drawing = ["tests.serving", str(tmp_path)]
    with started(drawing, ROOT) as (process, client, _):
        ids = [client.post("/designs", json={"num_images": 12}).json()["id"] for _ in range(2)]
        until(lambda: client.get(f"/designs/{ids[0]}").json()["finished"])
        process.kill()
    with started(drawing, ROOT) as (process, client, said):
        assert [one["id"] for one in client.get("/designs").json()] == ids
        until(lambda: client.get(f"/designs/{ids[0]}").json()["drawn"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        until(lambda: any("parked    2 unfinished" in line for line in said))
    records = [json.loads((tmp_path / f"lace/served/{id}.json").read_text()) for id in ids]
    assert [record["state"] for record in records] == ["waiting"] * 2
    with started(drawing, ROOT) as (process, client, said):
        assert [finished(client, id)["finished"] for id in ids] == [12, 12]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0 and not any("Traceback" in line for line in said)
    rows = [rows_of(tmp_path / f"lace/images/served-{id}") for id in ids]
    assert [sorted(row["index"] for row in one) for one in rows] == [list(range(12))] * 2


@pytest.mark.slow
def test_a_killed_server_goes_on_and_its_designs_are_those_of_lace_lora_generate(tmp_path, made_run, models):
    """P25, L15: every picture has the pixels of an unbroken sheet, and stands in a sheet of the run like any other."""
    plain = quiet_run(settings_of(tmp_path / "plain", made_run, models, **VALUES))
    shutil.copytree(made_run, tmp_path / "out/lace")
    line = command("lace", "--preset", "none", "--lora-output-dir", "out", *named(models))
    with started(line, tmp_path) as (process, client, _):
        id = client.post("/designs", json=VALUES).json()["id"]
        until(lambda: client.get(f"/designs/{id}").json()["state"] == "running")
        process.kill()
    with started(line, tmp_path) as (process, client, said):
        check_same(client, finished(client, id), plain)
        assert client.get("/adapter").json()["step"] == 9
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, said
    assert len(rows_of(tmp_path / f"out/lace/images/served-{id}")) == 12


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_end_parks_what_it_draws(tmp_path, made_run, models, number):
    """P25, L15: it ends by itself with exit code 0, says so, and the next one goes on with it."""
    values = VALUES | {"num_images": 30, "num_inference_steps": 30}
    plain = quiet_run(settings_of(tmp_path / "plain", made_run, models, **values))
    shutil.copytree(made_run, tmp_path / "out/lace")
    line = command("lace", "--preset", "none", "--lora-output-dir", "out", *named(models))
    with started(line, tmp_path) as (process, client, said):
        id = client.post("/designs", json=values).json()["id"]
        until(lambda: client.get(f"/designs/{id}").json()["drawn"])
        process.send_signal(number)
        assert process.wait(60) == 0, said
        until(lambda: any("parked    1 unfinished" in line for line in said))
    assert json.loads((tmp_path / f"out/lace/served/{id}.json").read_text())["state"] == "waiting"
    with started(line, tmp_path) as (process, client, _):
        check_same(client, finished(client, id), plain)


def command(*words):
    """`lace-lora serve` as a line for Python."""
    return ["lace_lora.main", "serve", "--port", "0", *words]


def named(models):
    """Settings as options."""
    return [word for name, value in models.items() for word in (f"--{name}", value)]


def test_models_are_loaded_once_for_all_requests_and_draw_what_lace_lora_generate_draws(
    tmp_path, made_run, models, monkeypatch
):
    """P25, L15: they stay on the shelf from one request to the next; the pictures have the bytes of a plain sheet."""
    plain = quiet_run(settings_of(tmp_path / "plain", made_run, models, **VALUES))
    loads = Counter()
    for name in ("load_text", "load_denoiser", "load_vae"):
        true = getattr(family, name)
        monkeypatch.setattr(
            family, name, lambda *a, _name=name, _true=true, **b: loads.update([_name]) or _true(*a, **b)
        )
    config = settings_of(tmp_path / "out", made_run, models)
    studio = Studio.open("lace", config, Limits(), quiet)
    drawn = []
    with Service(studio.run, studio.draw, 4, quiet) as drawing:
        for seed in (3, 50):
            id = drawing.submit(asked(**VALUES | {"seed": seed}), 12).id
            until(lambda id=id: drawing.job(id).is_over)
            assert drawing.job(id).state == "finished", drawing.job(id).error
            drawn.append((dict(loads), [one.path.read_bytes() for one in drawing.pictures(id).values()]))
    assert drawn[0][0] == drawn[1][0] == {"load_text": 1, "load_denoiser": 2, "load_vae": 1}
    assert drawn[0][1] == [one.path.read_bytes() for one in plain] and drawn[0][1] != drawn[1][1]
