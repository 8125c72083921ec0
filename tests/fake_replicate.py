"""Replicate's HTTP API for tests: the shapes that its Python client's own recordings show, and their error bodies."""

import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = "r8_a-key-of-no-use"


class FakeReplicate:
    """The service's state, and what a test asks of it.

    looks    how often a job must be looked at before it ends
    ends     the state in which jobs end
    answers  (method, end of the path): statuses given first, one a request, before it does what it is asked
    cuts     as answers, but the connection is cut after it did what it was asked
    """

    def __init__(self, weights: bytes = b"") -> None:
        self.models = {"stability-ai/sdxl", "ostris/flux-dev-lora-trainer", "replicate/fast-flux-trainer"}
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.trainings: dict[str, dict[str, Any]] = {}
        self.predictions: dict[str, dict[str, Any]] = {}
        self.weights = weights
        self.store: dict[str, bytes] = {}
        self.store_headers: list[dict[str, str]] = []
        self.requests: list[tuple[str, str]] = []
        self.looks, self.ends, self.error = 2, "succeeded", None
        self.answers: dict[tuple[str, str], list[int]] = {}
        self.cuts: dict[tuple[str, str], int] = {}
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, is_store=False))
        self.delivery = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, is_store=True))
        for server in (self.http, self.delivery):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        for server in (self.http, self.delivery):
            server.shutdown()
            server.server_close()

    def give(self, name: str, data: bytes) -> str:
        """An address in the store of files, which is another host than the API."""
        self.store[f"/{name}"] = data
        return f"http://127.0.0.1:{self.delivery.server_address[1]}/{name}"

    def look(self, job: dict[str, Any]) -> dict[str, Any]:
        job["looks"] += 1
        if job["status"] in ("starting", "processing"):
            job["status"] = "processing"
            job["logs"] = f"flux_train: {50 * job['looks']}%| {5 * job['looks']}/10 [00:01<00:01]"
            if job["looks"] >= self.looks:
                job["status"], job["error"] = self.ends, self.error
                if self.ends == "succeeded":
                    job["output"] = job["result"]()
        return _told(job)

    def begin(self, kind: str, asked: dict[str, Any], model: str, version: str) -> dict[str, Any]:
        jobs = getattr(self, kind)
        number = f"{kind[:4]}{len(jobs) + 1:022d}"
        job = {
            "id": number, "model": model, "version": version, "status": "starting", "input": asked["input"],
            "output": None, "logs": None, "error": None, "created_at": "2026-11-21T19:33:26.906823Z",
            "started_at": None, "completed_at": None, "looks": 0,
            "urls": {"get": f"{self.url}/v1/{kind}/{number}", "cancel": f"{self.url}/v1/{kind}/{number}/cancel"},
        }  # fmt: skip
        if kind == "trainings":
            made = {"version": f"{asked['destination']}:{'0f3c' * 16}"}
            job["result"] = lambda: made | {"weights": self.give(f"{number}/trained_model.tar", self.weights)}
        else:
            job["result"] = lambda: [self.give(f"{number}.png", _png(job["input"]))]
        jobs[number] = job
        return _told(job)


def _told(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name not in ("looks", "result")}


def packed(lora: bytes, name: str = "output/flux_train_replicate/lora.safetensors") -> bytes:
    """A trained_model.tar as trainers pack it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        for path, content in (("output/config.yaml", b"job: x"), (name, lora)):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def _png(asked: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (asked["width"], asked["height"]), (asked["seed"] % 256, 80, 120)).save(data, "PNG")
    return data.getvalue()


def _handler(fake: FakeReplicate, is_store: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _json(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:  # noqa: N802
            if is_store:
                self._give()
            else:
                self._answer()

        do_POST = do_GET  # noqa: N815

        def _give(self) -> None:
            fake.store_headers.append(dict(self.headers))
            data = fake.store.get(self.path)
            whole = data or b""
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(whole)))
            self.send_header("ETag", f'"{hashlib.md5(whole).hexdigest()}"')
            self.end_headers()
            key = ("GET", "store")
            if fake.cuts.get(key, 0) > 0:
                fake.cuts[key] -= 1
                self.wfile.write(whole[: len(whole) // 2])
                self.close_connection = True
            else:
                self.wfile.write(whole)

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self.path.strip("/").split("/")[1:]
            key = (
                self.command,
                parts[-1] if parts[-1] in ("trainings", "predictions", "files", "cancel") else parts[0],
            )
            fake.requests.append(key)
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                self._json({"title": "Unauthenticated", "detail": "You did not pass a valid token", "status": 401}, 401)
                return
            waiting = fake.answers.get(key, [])
            if waiting:
                status = waiting.pop(0)
                self._json({"title": "no", "detail": f"the reason of {status}", "status": status}, status)
                return
            status, value = self._done(parts, body)
            if fake.cuts.get(key, 0) > 0:
                fake.cuts[key] -= 1
                self.connection.close()
                return
            self._json(value, status)

        def _done(self, parts: list[str], body: bytes) -> tuple[int, Any]:
            if parts[0] == "files":
                number = f"file{len(fake.files)}"
                data = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
                fake.files[number] = data
                sums = {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
                return 201, {"id": number, "name": "pictures.zip", "content_type": "application/zip", "size": len(data),
                             "etag": "", "checksums": sums, "metadata": {}, "created_at": "", "expires_at": None,
                             "urls": {"get": f"{fake.url}/v1/files/{number}"}}  # fmt: skip
            if parts[0] == "models" and parts[-1] == "trainings":
                return 201, fake.begin("trainings", json.loads(body), "/".join(parts[1:3]), parts[4])
            if parts[0] == "models" and self.command == "POST":
                asked = json.loads(body)
                fake.made.append(asked)
                fake.models.add(f"{asked['owner']}/{asked['name']}")
                return 201, _model(asked["owner"], asked["name"])
            if parts[0] == "models":
                if "/".join(parts[1:3]) not in fake.models:
                    return 404, {"detail": "The requested resource could not be found.", "status": 404}
                return 200, _model(*parts[1:3])
            if parts == ["predictions"]:
                asked = json.loads(body)
                return 201, fake.begin("predictions", asked, "anna/my-lace", asked["version"])
            jobs = getattr(fake, parts[0])
            if len(parts) == 1:
                rows = [
                    {name: one for name, one in job.items() if name not in ("looks", "result")} for job in jobs.values()
                ]
                return 200, {"previous": None, "next": None, "results": rows[::-1]}
            if parts[-1] == "cancel":
                jobs[parts[1]]["status"] = "canceled"
            return 200, fake.look(jobs[parts[1]])

    return Handler


def _model(owner: str, name: str) -> dict[str, Any]:
    version = {"id": "39ed52f2" * 8, "created_at": "2023-08-16T19:33:26.906823Z", "cog_version": "0.9",
               "openapi_schema": {}}  # fmt: skip
    return {
        "url": f"https://replicate.com/{owner}/{name}", "owner": owner, "name": name, "description": None,
        "visibility": "private", "github_url": None, "paper_url": None, "license_url": None, "run_count": 0,
        "cover_image_url": None, "default_example": None, "latest_version": version,
    }  # fmt: skip
