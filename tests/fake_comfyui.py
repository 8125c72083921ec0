"""A ComfyUI for tests: the HTTP and websocket shapes of version 0.3.64, with nodes as a real one listed them.

A prompt is checked as the real server checks it, in the same words, and takes a moment; what would be computed is a
picture of one colour that its workflow decides.
"""

import base64
import hashlib
import io
import json
import struct
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

RECORDED = Path(__file__).parent / "recorded" / "comfyui_nodes.json"
GREETING = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of every websocket, RFC 6455


class FakeComfyUI:
    """The server's state, and what a test asks of it.

    busy        answers 503 to so many prompts
    fails_in    class of a node that fails, and the exception's type and message
    is_interrupted  somebody stops every prompt
    holds       prompts wait until this is set
    takes_files whether uploads are taken
    has_socket  whether there is a websocket
    key         bearer token that is asked for
    own_numbers whether a prompt's number is the server's own, as in older versions
    """

    def __init__(self) -> None:
        self.info: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.by_hand: list[str] = []
        self.prompts: dict[str, dict[str, Any]] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self.queue: list[str] = []
        self.running: str | None = None
        self.interrupted: set[str] = set()
        self.asked: list[str] = []
        self.headers: list[Any] = []
        self.sockets: list[Any] = []
        self.words: list[str] = []
        self.busy, self.is_interrupted = 0, False
        self.fails_in: tuple[str, str, str] | None = None
        self.holds = threading.Event()
        self.holds.set()
        self.takes_files, self.has_socket, self.own_numbers, self.key = True, True, False, ""
        self.work_seconds = 0.02
        self.over = False
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        for work in (lambda: self.http.serve_forever(poll_interval=0.02), self._work):
            threading.Thread(target=work, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.over = True
        self.holds.set()
        self.http.shutdown()
        self.http.server_close()

    def forget(self) -> None:
        """As after a new start."""
        self.queue, self.history, self.running = [], {}, None

    def put_by_hand(self, name: str) -> None:
        self.by_hand.append(name)

    def listed(self) -> dict[str, Any]:
        """All nodes, with the files that are there in their lists."""
        info = json.loads(json.dumps(self.info))
        loras = [name for kind, sub, name in self.files if (kind, sub) == ("output", "loras")] + self.by_hand
        folders = sorted({sub for kind, sub, _ in self.files if kind == "input" and sub})
        info["LoraLoader"]["input"]["required"]["lora_name"] = [loras]
        for node in info.values():
            for given in node["input"].values():
                if "folder" in given and isinstance(given["folder"][0], list):
                    given["folder"] = [folders]
        return info

    def check(self, prompt: dict[str, Any]) -> dict[str, Any] | None:
        """The body of the 400 that the real server would give, or None."""
        info, faults = self.listed(), {}
        for number, node in prompt.items():
            kind = node["class_type"]
            if kind not in info:
                message = f"Cannot execute because node {kind} does not exist."
                details = {"type": "invalid_prompt", "message": message, "details": f"Node ID '#{number}'"}
                return {"error": details, "node_errors": {}}
            errors = [one for name, declared in info[kind]["input"].get("required", {}).items()
                      if (one := _fault(name, declared, node["inputs"], prompt, info))]  # fmt: skip
            if errors:
                faults[number] = {"errors": errors, "dependent_outputs": [], "class_type": kind}
        if not faults:
            return None
        error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
        return {"error": error | {"details": ""}, "node_errors": faults}

    def tell(self, kind: str, **data: Any) -> None:
        text = json.dumps({"type": kind, "data": data}).encode()
        head = b"\x81" + (bytes([len(text)]) if len(text) < 126 else b"\x7e" + struct.pack(">H", len(text)))
        for socket in list(self.sockets):
            try:
                socket.sendall(b"\x82\x02\x00\x01" + head + text)  # a preview in bytes first
            except OSError:
                self.sockets.remove(socket)

    def drop_sockets(self) -> None:
        for socket in self.sockets:
            socket.close()
        self.sockets.clear()

    def _work(self) -> None:
        while not self.over:
            if not self.queue:
                time.sleep(0.01)
                continue
            self.running = number = self.queue.pop(0)
            time.sleep(self.work_seconds)
            while not self.holds.is_set() and number not in self.interrupted and not self.over:
                time.sleep(0.01)
            if self.running == number:
                self.history[number] = self._done(number)
                self.running = None
                self.tell(self.history[number]["status"]["messages"][-1][0], prompt_id=number)

    def _done(self, number: str) -> dict[str, Any]:
        prompt, outputs = self.prompts[number], {}
        if number in self.interrupted or self.is_interrupted:
            messages = [["execution_start", {}], ["execution_interrupted", {"prompt_id": number}]]
            return {"outputs": {}, "status": {"status_str": "error", "completed": False, "messages": messages}}
        for place, node in prompt.items():
            kind = node["class_type"]
            if self.fails_in and kind == self.fails_in[0]:
                told = {"node_id": place, "node_type": kind, "exception_type": self.fails_in[1]}
                told["exception_message"] = self.fails_in[2]
                messages = [["execution_start", {}], ["execution_error", told]]
                return {"outputs": {}, "status": {"status_str": "error", "completed": False, "messages": messages}}
            if "steps" in node["inputs"]:
                self.tell("progress", value=node["inputs"]["steps"], max=node["inputs"]["steps"], prompt_id=number,
                          node=place)  # fmt: skip
            if kind in ("PreviewImage", "SaveImage"):
                name = f"ComfyUI_temp_{len(self.files):05}_.png"
                self.files["temp", "", name] = _png(prompt, place)
                outputs[place] = {"images": [{"filename": name, "subfolder": "", "type": "temp"}]}
            if "prefix" in node["inputs"]:  # of what saves a LoRA
                folder, _, begins = node["inputs"]["prefix"].rpartition("/")
                self.files["output", folder, f"{begins}_00001_.safetensors"] = trained_lora()
        messages = [["execution_start", {}], ["execution_success", {"prompt_id": number}]]
        return {"outputs": outputs, "status": {"status_str": "success", "completed": True, "messages": messages}}


def trained_lora() -> bytes:
    """A LoRA as ComfyUI's trainer names its tensors."""
    import torch
    from safetensors.torch import save

    name = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_up.weight": torch.ones(8, 2), f"{name}.lora_down.weight": torch.ones(2, 8)}
    return save(tensors | {f"{name}.alpha": torch.tensor(1.0), f"{name}.diff_b": torch.zeros(8)})


def _png(prompt: dict[str, Any], place: str) -> bytes:
    sizes = [node["inputs"] for node in prompt.values() if node["class_type"] == "EmptyLatentImage"]
    seen = hashlib.sha256(json.dumps([prompt, place], sort_keys=True).encode()).digest()
    data = io.BytesIO()
    Image.new("RGB", (sizes[0]["width"], sizes[0]["height"]), tuple(seen[:3])).save(data, "PNG")
    return data.getvalue()


def _fault(name: str, declared: Any, given: Any, prompt: Any, info: Any) -> dict[str, Any] | None:
    """What the real server says of one input."""
    about = {"input_name": name, "received_value": given.get(name)}
    if name not in given:
        return {"type": "required_input_missing", "message": "Required input is missing", "details": name,
                "extra_info": {"input_name": name}}  # fmt: skip
    value, kind = given[name], declared[0]
    if isinstance(value, list):
        source = prompt.get(str(value[0]))
        gives = info[source["class_type"]]["output"][value[1]] if source else None
        if gives != kind:
            return {"type": "return_type_mismatch", "message": "Return type mismatch between linked nodes",
                    "details": f"{gives} {kind}", "extra_info": about}  # fmt: skip
        return None
    if isinstance(kind, list) and value not in kind:
        return {"type": "value_not_in_list", "message": "Value not in list", "details": name, "extra_info": about}
    more = declared[1] if len(declared) > 1 else {}
    if kind in ("INT", "FLOAT") and not more.get("min", value) <= value <= more.get("max", value):
        return {"type": "value_smaller_than_min", "message": "Value out of its bounds", "details": name,
                "extra_info": about}  # fmt: skip
    return None


def _handler(fake: FakeComfyUI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _json(self, value: Any, status: int = 200) -> None:
            self._bytes(json.dumps(value).encode(), status)

        def _bytes(self, data: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _is_refused(self) -> bool:
            fake.headers.append(dict(self.headers))
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                self._json({"error": "no"}, 401)
                return True
            return False

        def do_GET(self) -> None:  # noqa: N802
            path, _, last = urlsplit(self.path).path.rpartition("/")
            if path == "" and last == "ws":
                self._socket()
            elif self._is_refused():
                pass
            elif last == "system_stats":
                self._json({"system": {"comfyui_version": "0.3.64"}, "devices": [{"name": "cpu"}]})
            elif self.path == "/object_info":
                self._json(fake.listed())
            elif path == "/object_info":
                self._json({last: fake.listed()[last]} if last in fake.info else {})
            elif last == "embeddings":
                self._json(fake.words)
            elif path == "/history":
                self._json({last: fake.history[last]} if last in fake.history else {})
            elif last == "queue":
                running = [[0, fake.running, {}, {}, []]] if fake.running else []
                self._json({"queue_running": running, "queue_pending": [[1, one, {}, {}, []] for one in fake.queue]})
            elif last == "view":
                query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                data = fake.files.get((query["type"], query.get("subfolder", ""), query["filename"]))
                self._bytes(data or b"", 200 if data is not None else 404)
            else:
                self._json({}, 404)

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self._is_refused():
                return
            if self.path == "/upload/image":
                self._upload(body)
            elif self.path == "/prompt":
                self._prompt(json.loads(body))
            elif self.path == "/queue":
                fake.queue = [one for one in fake.queue if one not in json.loads(body)["delete"]]
                self._bytes(b"")
            elif self.path == "/interrupt":
                fake.interrupted.add(json.loads(body)["prompt_id"])
                self._bytes(b"")

        def _prompt(self, asked: dict[str, Any]) -> None:
            if fake.busy > 0:
                fake.busy -= 1
                self._json({}, 503)
                return
            fault = fake.check(asked["prompt"])
            if fault:
                self._json(fault, 400)
                return
            number = str(uuid.uuid4()) if fake.own_numbers else asked["prompt_id"]
            fake.prompts[number] = asked["prompt"]
            fake.asked.append(number)
            fake.queue.append(number)
            self._json({"prompt_id": number, "number": len(fake.asked), "node_errors": {}})

        def _upload(self, body: bytes) -> None:
            if not fake.takes_files:
                self._bytes(b"", 413)
                return
            border = b"--" + self.headers["Content-Type"].rpartition("boundary=")[2].encode()
            fields: dict[str, Any] = {}
            for part in body.split(border)[1:-1]:
                head, _, data = part[2:-2].partition(b"\r\n\r\n")
                words = dict(one.split("=", 1) for one in head.decode().split("\r\n")[0].split("; ")[1:])
                fields[words["name"].strip('"')] = data
                fields |= {"filename": words["filename"].strip('"')} if "filename" in words else {}
            place = (fields["type"].decode(), fields["subfolder"].decode(), fields["filename"])
            fake.files[place] = fields["image"]
            self._json({"name": place[2], "subfolder": place[1], "type": place[0]})

        def _socket(self) -> None:
            if not fake.has_socket:
                self._json({}, 404)
                return
            key = hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + GREETING).digest()
            self.wfile.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + base64.b64encode(key) + b"\r\n\r\n"
            )
            fake.sockets.append(self.connection)
            try:
                while self.connection.recv(1024):
                    pass
            except OSError:
                pass
            self.close_connection = True

    return Handler
