"""A server on this machine that speaks the Hub's shapes, as far as an upload by the real client needs them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "t" * 34


@dataclass
class Hub:
    """What was asked of it, what it holds, and what it answers.

    refuse  a status with which it answers everything, and what it says
    refuse_objects  a status with which it answers large files
    lfs     endings of the files that it wants apart, as large ones
    """

    asked: list[tuple[str, str]] = field(default_factory=list)
    repositories: dict[str, bool] = field(default_factory=dict)  # name, and whether it is private
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    refuse: tuple[int, str] | None = None
    refuse_objects: int = 0
    lfs: tuple[str, ...] = (".safetensors",)
    address: str = ""


@contextmanager
def running() -> Iterator[Hub]:
    """The server, for as long as it is needed."""
    hub = Hub()

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *given: Any) -> None:
            pass

        def answer(self, status: int, value: Any = None) -> None:
            body = json.dumps(value or {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            if path.startswith("/objects/"):  # a signed address: no token is sent there
                hub.objects[path.rpartition("/")[2]] = body
                self.answer(hub.refuse_objects or 200)
            elif hub.refuse:
                self.answer(hub.refuse[0], {"error": hub.refuse[1]})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
            else:
                self.answer(*of(hub, self.command, path, body))

        do_GET = do_POST = do_PUT = do_HEAD = do_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def of(hub: Hub, method: str, path: str, body: bytes) -> tuple[int, Any]:
    """What the Hub answers."""
    told: Any = json.loads(body) if body.startswith(b"{") and path != "" and "/commit/" not in path else {}
    if path == "/api/repos/create":
        name = f"{told.get('organization') or 'somebody'}/{told['name']}"
        if name in hub.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{hub.address}/{name}"}
        hub.repositories[name] = told.get("visibility") == "private" or bool(told.get("private"))  # by version
        return 200, {"url": f"{hub.address}/{name}", "name": name}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if "/preupload/" in path:
        kinds = [(one["path"], "lfs" if one["path"].endswith(hub.lfs) else "regular") for one in told["files"]]
        return 200, {"files": [{"path": name, "uploadMode": kind, "shouldIgnore": False} for name, kind in kinds]}
    if path.endswith("/info/lfs/objects/batch"):
        found = [
            {"oid": one["oid"], "size": one["size"],
             "actions": {"upload": {"href": f"{hub.address}/objects/{one['oid']}", "header": {}}}}
            for one in told["objects"]
        ]  # fmt: skip
        return 200, {"transfer": "basic", "objects": found}
    if "/commit/" in path:
        for line in body.decode().splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                hub.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                content = hub.objects[row["value"]["oid"]]
                assert hashlib.sha256(content).hexdigest() == row["value"]["oid"]
                hub.files[row["value"]["path"]] = content
        hub.commits += 1
        return 200, {"commitUrl": f"{hub.address}/somebody/lace/commit/abc", "commitOid": "abc", "success": True}
    if path.startswith("/api/models/"):
        name = path.removeprefix("/api/models/").split("/revision")[0]
        return (200, {"id": name, "sha": "abc", "private": True}) if name in hub.repositories else (404, {})
    return 404, {"error": "Not found"}
