"""One ComfyUI server as its HTTP API and websocket speak: what it has, queueing, following, fetching, sentences.

Shapes as in ComfyUI's server.py and execution.py of version 0.3.64. A key for a server behind a door is sent as a
bearer token from the environment variable LACE_BACKEND_KEY, or Colab's secrets; it stands in no file and no message.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from lace_lora import colab
from lace_lora.backends import comfy_faults
from lace_lora.backends.packages import needed
from lace_lora.errors import BackendError, SettingsError
from lace_lora.file_names import printable

KEY_NAME = "LACE_BACKEND_KEY"
PATIENCE_SECONDS = 120.0  # for which a server that does not answer, or whose queue is full, is asked again
LONGEST_PAUSE_SECONDS = 10.0
LOOK_SECONDS = 5.0  # between two looks at the history where the websocket tells nothing
NEAR = ("localhost", "127.0.0.1", "::1")
REFUSED, BUSY = (401, 403), (429, 502, 503, 504)
GO_ON = "What is finished stays; run the same again to go on."

Say = Callable[[str], None]
Follow = Callable[[str, int, int], None]


class Failed(BackendError):
    """The work itself failed, or somebody stopped it: following the same number again would only fail again."""


class Refused(BackendError):
    """The server takes what is asked of it not at all: nothing of it is queued."""


class Unknown(Exception):
    """The server knows nothing of a prompt: it was started anew, or its history was cleared."""


@dataclass(frozen=True)
class Server:
    """Where it is, how it is asked, and who is told while it does not answer."""

    url: str
    say: Say
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    key: SecretStr | None = None
    wait: Callable[[float], None] = time.sleep

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key else {}

    @property
    def is_near(self) -> bool:
        """Whether it runs on this machine."""
        return urlsplit(self.url).hostname in NEAR

    @property
    def name(self) -> str:
        """In a sentence."""
        return f"ComfyUI at {printable(self.url)}"


def connect(url: str, say: Say, wait: Callable[[float], None] = time.sleep) -> tuple[Server, str]:
    """The server that listens there, and its version.

    Raises SettingsError for what is no address, BackendError where nothing of the kind answers.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise SettingsError(f"backend_url {printable(url)} is no address of a server. Write for example "
                            f"http://{printable(url.rpartition('//')[2])}.")  # fmt: skip
    server = Server(url.rstrip("/"), say, key=find_key(url), wait=wait)
    reply = _reply(server, "GET", "/system_stats", patience=0.0)
    if reply.status_code in REFUSED:
        raise _refusal(server, reply, "answer")
    found = _dict(server, reply) if reply.status_code == 200 else {}
    system = found.get("system")
    if not isinstance(system, dict) or not isinstance(found.get("devices"), list):
        raise _stranger(server, reply)
    return server, str(system.get("comfyui_version") or "unknown")


def find_key(url: str) -> SecretStr | None:
    """The key for a server behind a door, from the environment, else from Colab's secrets; most need none.

    Raises SettingsError where it would travel readably over a network.
    """
    key, parts = colab.key(KEY_NAME), urlsplit(url)
    if key and parts.scheme == "http" and parts.hostname not in NEAR:
        raise SettingsError(
            f"backend_url begins with http://, over which everyone on the way could read your key. Write https://, or "
            f"unset {KEY_NAME} if the server asks for none."
        )
    return key


def node_info(server: Server, kind: str | None = None) -> dict[str, Any]:
    """What nodes there are, by their class, each with inputs and outputs; of one kind, or of all."""
    return _json(server, "GET", f"/object_info/{quote(kind)}" if kind else "/object_info")


def choices(info: Mapping[str, Any], kind: str, name: str) -> list[str]:
    """The values that a node's list offers. Older servers write the list itself, newer ones ["COMBO", {options: …}]."""
    inputs = info.get(kind, {}).get("input", {})
    declared = (inputs.get("required", {}) | inputs.get("optional", {})).get(name, [[]])
    if isinstance(declared[0], list):
        return [str(one) for one in declared[0]]
    options = declared[1].get("options", []) if len(declared) > 1 and isinstance(declared[1], dict) else []
    return [str(one) for one in options]


def chosen(there: Sequence[str], names: Sequence[str]) -> str | None:
    """The checkpoint that one of the names means, the first that there is: a file's name, or a Hugging Face model's.

    stabilityai/stable-diffusion-xl-base-1.0 is sd_xl_base_1.0.safetensors.
    """
    for name in names:
        for same in (str.casefold, _plain):
            found = next((one for one in there if same(one) == same(name)), None)
            if found:
                return found
    return None


def embeddings(server: Server) -> list[str]:
    """Names of the learnt words that it has."""
    reply = _reply(server, "GET", "/embeddings")
    if reply.status_code != 200:
        raise _refusal(server, reply, "answer /embeddings")
    found = _parsed(reply)
    return [str(one) for one in found] if isinstance(found, list) else []


def upload(server: Server, path: Path, name: str, *, kind: str, subfolder: str) -> None:
    """Put a file into the server's folder input or output, below `subfolder`; one of that name is replaced.

    Raises BackendError where it does not take files of that size, or at all.
    """
    with path.open("rb") as data:
        files = {"image": (name, data, "application/octet-stream")}
        asked = {"type": kind, "subfolder": subfolder, "overwrite": "true"}
        reply = _reply(server, "POST", "/upload/image", files=files, data=asked, timeout=600.0)
    if reply.status_code == 413:
        raise BackendError(f"{server.name} takes no file as large as {path.name} ({path.stat().st_size / 1e6:.0f} MB).")
    if reply.status_code != 200:
        raise _refusal(server, reply, f"take {path.name}")


def size_of(server: Server, name: str, *, kind: str, subfolder: str) -> int | None:
    """Bytes of a file there; None where there is none."""
    reply = _reply(server, "HEAD", "/view", params={"filename": name, "type": kind, "subfolder": subfolder})
    length = reply.headers.get("Content-Length", "")
    return int(length) if reply.status_code == 200 and length.isdecimal() else None


def fetch(server: Server, place: Mapping[str, str]) -> bytes:
    """A file there: its filename, subfolder and type, as the history names it."""
    asked = {name: str(place.get(name, "")) for name in ("filename", "subfolder", "type")}
    reply = _reply(server, "GET", "/view", params=asked, timeout=600.0)
    if reply.status_code != 200:
        raise BackendError(f"{server.name} does not give {printable(asked['filename'])} back ({reply.status_code}). "
                           f"{GO_ON}")  # fmt: skip
    return bytes(reply.content)


def queue(server: Server, workflow: Mapping[str, Any], prompt_id: str) -> str:
    """Queue a workflow, and return the number under which the server follows it: ours, or its own on older servers.

    Raises Refused naming the node that it does not take, and what to do; BackendError where it does not answer: then it
    may be queued all the same.
    """
    body = {"prompt": workflow, "client_id": server.client_id, "prompt_id": prompt_id}
    reply = _reply(server, "POST", "/prompt", json=body)
    if reply.status_code == 200:
        return str(_dict(server, reply).get("prompt_id") or prompt_id)
    refused = _refusal(server, reply, "draw this")
    raise Refused(str(refused)) if isinstance(refused, BackendError) else refused


def is_waiting(server: Server, prompt_id: str) -> bool:
    """Whether a prompt is being worked at, or waits its turn."""
    found = _json(server, "GET", "/queue")
    rows = [*found.get("queue_running", []), *found.get("queue_pending", [])]
    return any(row[1] == prompt_id for row in rows)


def outcome(server: Server, prompt_id: str) -> dict[str, Any] | None:
    """What became of a prompt: its outputs by node; None while it is under way.

    Raises Failed where a node failed or somebody interrupted it, Unknown where the server knows nothing of it.
    """
    found = _json(server, "GET", f"/history/{quote(prompt_id)}").get(prompt_id)
    if found is None:
        if is_waiting(server, prompt_id):
            return None
        # It may have ended between the two questions.
        found = _json(server, "GET", f"/history/{quote(prompt_id)}").get(prompt_id)
        if found is None:
            raise Unknown
    status = found.get("status") or {}
    for kind, told in status.get("messages") or []:
        if kind == "execution_error":
            raise _failure(server, told)
        if kind == "execution_interrupted":
            raise Failed(f"Somebody stopped the work at {server.name}. {GO_ON}")
    if status.get("status_str", "success") != "success":
        raise Failed(f"{server.name} did not finish the work and does not say why. {GO_ON}")
    outputs: dict[str, Any] = found.get("outputs", {})
    return outputs


def follow(server: Server, prompt_id: str, is_stopped: Callable[[], bool], told: Follow) -> dict[str, Any] | None:
    """Wait for a prompt to end, by the websocket where there is one; returns its outputs, or None when stopped.

    told  called with the number of a node, its step and of how many, as they come

    A connection that is lost is opened anew; what counts is the history. Raises the errors of outcome.
    """
    for event in _events(server, is_stopped):
        kind, about = event.get("type"), event.get("data") or {}
        if about.get("prompt_id") not in (None, prompt_id):
            continue
        if kind == "progress":
            told(str(about.get("node") or ""), int(about.get("value", 0)), int(about.get("max", 0)))
        elif kind in (None, *_ENDS) and (found := outcome(server, prompt_id)) is not None:
            return found
    return None


def take_back(server: Server, prompt_ids: list[str]) -> None:
    """Take what waits out of the queue, and stop what is being worked at, if it is ours. Never raises."""
    if not prompt_ids:
        return
    with suppress(BackendError):
        _reply(server, "POST", "/queue", json={"delete": prompt_ids}, patience=0.0)
        running = _json(server, "GET", "/queue", patience=0.0).get("queue_running", [])
        for prompt_id in {row[1] for row in running} & set(prompt_ids):
            _reply(server, "POST", "/interrupt", json={"prompt_id": prompt_id}, patience=0.0)


# -- inside --

_ENDS = ("execution_success", "execution_error", "execution_interrupted", "status")


def _plain(name: str) -> str:
    """A model's name without owner, folder, ending and signs; SDXL's long name as files shorten it."""
    stem = PurePosixPath(name.replace("\\", "/")).name.casefold().removesuffix(".safetensors").removesuffix(".ckpt")
    return re.sub(r"[^a-z0-9]", "", stem).replace("stablediffusionxl", "sdxl")


def _events(server: Server, is_stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """What the websocket tells, until stopped; an empty event now and then, so that the history is looked at."""
    websocket = needed("websocket", "websocket-client", "comfyui")
    address = f"ws{server.url.removeprefix('http')}/ws?clientId={server.client_id}"
    line, looked = None, -LOOK_SECONDS
    try:
        while not is_stopped():
            try:
                if line is None:
                    carried = [f"{name}: {value}" for name, value in server.headers.items()]
                    line = websocket.create_connection(address, timeout=1.0, header=carried)
                    looked = -LOOK_SECONDS  # what ended before it listened is told by nobody
            except (OSError, websocket.WebSocketException):
                server.wait(min(1.0, LOOK_SECONDS))
            if time.monotonic() - looked >= LOOK_SECONDS:
                yield {}
                looked = time.monotonic()
            try:
                text = line.recv() if line else ""
            except websocket.WebSocketTimeoutException:
                continue
            except (OSError, websocket.WebSocketException):
                line = None
                continue
            if isinstance(text, str) and text:  # bytes are previews
                with suppress(ValueError):
                    event = json.loads(text)
                    if isinstance(event, dict):
                        yield event
    finally:
        if line is not None:
            line.shutdown()  # close() would wait for the server's goodbye


def _json(server: Server, method: str, path: str, patience: float | None = None) -> dict[str, Any]:
    reply = _reply(server, method, path, patience=patience)
    if reply.status_code != 200:
        raise _refusal(server, reply, f"answer {path}")
    return _dict(server, reply)


def _dict(server: Server, reply: Any) -> dict[str, Any]:
    """The names and values of an answer. Raises BackendError where it has none."""
    found = _parsed(reply)
    if not isinstance(found, dict):
        raise _stranger(server, reply)
    return found


def _parsed(reply: Any) -> Any:
    try:
        return reply.json()
    except (ValueError, RecursionError):
        return None


def _stranger(server: Server, reply: Any) -> BackendError:
    """The sentence for a server of another kind."""
    moved = reply.headers.get("Location", "") if 300 <= reply.status_code < 400 else ""
    more = f" It sends on to {printable(moved)[:200]}." if moved else ""
    return BackendError(f"{server.url} answers, but not as ComfyUI does.{more} Correct backend_url.")


def _reply(server: Server, method: str, path: str, patience: float | None = None, **more: Any) -> Any:
    """The server's answer, asked again with growing pauses while it is away or busy."""
    httpx = needed("httpx", "httpx", "comfyui")
    pause, left, is_told = 0.5, PATIENCE_SECONDS if patience is None else patience, False
    while True:
        try:
            for file in (one[1] for one in more.get("files", {}).values()):
                file.seek(0)
            timeout = more.get("timeout", 30.0)
            # A proxy named in the environment cannot see the servers of this machine.
            asked = more | {"timeout": timeout, "trust_env": not server.is_near}
            reply = httpx.request(method, server.url + path, headers=server.headers, **asked)
            problem = f"it answers {reply.status_code}" if reply.status_code in BUSY else ""
            pause = _retry_after(reply.headers.get("Retry-After"), pause)
        except httpx.TransportError as error:
            reply, problem = None, str(error).splitlines()[0] if str(error) else type(error).__name__
        except httpx.InvalidURL as error:
            raise SettingsError(f"backend_url {printable(server.url)} is no address ({error}).") from None
        if not problem:
            return reply
        if left <= 0:
            raise _away(server, problem, reply)
        if not is_told:
            server.say(f"! {server.name} does not take it yet ({printable(problem)}); trying again for a while.")
            is_told = True
        server.wait(pause)
        left, pause = left - pause, min(2 * pause, LONGEST_PAUSE_SECONDS)


def _retry_after(text: str | None, pause: float) -> float:
    return min(float(text), 60.0) if text and text.isdecimal() else pause


def _away(server: Server, problem: str, reply: Any) -> BackendError:
    if reply is not None and reply.status_code in (429, 503):
        return BackendError(f"The queue of {server.name} is full ({reply.status_code}). Run again later. {GO_ON}")
    return BackendError(
        f"{server.name} does not answer ({printable(problem)}). Start it, or correct backend_url. {GO_ON}"
    )


def _refusal(server: Server, reply: Any, what: str) -> BackendError | SettingsError:
    """The sentence for an answer that is none."""
    if reply.status_code in REFUSED:
        wrong = "refuses the key" if server.key else "asks for a key"
        return SettingsError(
            f"{server.name} {wrong} ({reply.status_code}). Put a valid one into the environment variable {KEY_NAME}, "
            "or into Colab's secrets under that name; it does not belong into config.yaml."
        )
    said = _parsed(reply)
    said = said if isinstance(said, dict) else {}
    if faults := comfy_faults.told(said.get("node_errors")):
        return BackendError(f"{server.name} refuses the workflow: {faults}.")
    error = said.get("error")
    told = f"{error.get('message', '')} {error.get('details', '')}" if isinstance(error, dict) else str(error or "")
    if "does not exist" in told:
        return BackendError(f"{server.name} lacks a node: {printable(told.strip())} Update ComfyUI, then run again.")
    reason = printable(told.strip()[:300]) or f"it answers {reply.status_code}"
    return BackendError(f"{server.name} does not {what}: {reason}. Look at its own messages.")


def _failure(server: Server, told: Mapping[str, Any]) -> Failed:
    """The sentence for a node that failed while it worked."""
    kind, text = str(told.get("exception_type", "")), str(told.get("exception_message", "")).strip()
    where = f"in node {told.get('node_id')} ({printable(str(told.get('node_type', '')))})"
    if "OutOfMemory" in kind or "out of memory" in text.casefold() or "allocation on device" in text.casefold():
        return Failed(
            f"{server.name} ran out of memory {where}. Next to try: smaller width and height, refine none, or start "
            f"it with --lowvram. {GO_ON}"
        )
    first = printable((text.splitlines() or [kind])[0][:300])
    return Failed(f"{server.name} failed {where}: {first.rstrip('.')}. Look at its own messages. {GO_ON}")
