"""Captions from a server: OpenAI-compatible chat with pictures, and plain captioning endpoints.

A picture leaves this machine as a JPEG of at most 1024 px without its metadata (place, camera), to the one address that
was given: redirections are not followed. The key travels in one header and is never shown: what went wrong becomes
plain values before an error is raised, so that no traceback leads to the frame of the library that holds the header.
"""

import base64
import http.client
import io
import ipaddress
import json
import re
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qsl, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from PIL import Image
from pydantic import SecretStr

from lace_lora.errors import LaceError, ModelError, SettingsError
from lace_lora.file_names import printable
from lace_lora.image_files import as_rgb

DEFAULT_URL = "http://localhost:8000"  # where LLaVA servers such as vLLM and SGLang are started in their own guides
KEY_NAME = "LACE_CAPTION_KEY"
QUESTION = (
    "Describe the lace in this photograph in one plain sentence of at most thirty words: its motifs, the ground "
    "between them, the edge and the colours. Begin with the thing itself."
)
LONGEST_SIDE_PX = 1024
LARGEST_ANSWER_BYTES = 1_000_000
LONGEST_ANSWER_TOKENS = 150
TRIES = 4
LONGEST_PAUSE_SECONDS = 60.0
_SECRET_NAME = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)  # of a part of an address
_SHORTEST_SECRET = 8  # shorter keys are the dummies of local servers ("EMPTY"), and may be words of a caption


class Captioner(Protocol):
    """Any function from a picture (of any mode) to a sentence about it."""

    def __call__(self, picture: Image.Image, /) -> str:
        """What the picture shows, in one sentence. Raises a LaceError, or anything else, when it cannot tell."""
        ...


@dataclass(frozen=True)
class _Server:
    url: str
    key: SecretStr | None
    content_type: str
    timeout_seconds: float
    wait: Callable[[float], None]
    model: str = ""

    @property
    def shown(self) -> str:
        return printable(self.url.partition("?")[0])  # a token may stand behind its question mark


@dataclass(frozen=True)
class _Reply:
    """What came back: a status with a body, or status 0 with the reason why nothing did."""

    status: int
    body: bytes = field(default=b"", repr=False)
    problem: str = ""
    location: str = field(default="", repr=False)
    pause_seconds: float | None = None
    may_pass: bool = False  # worth asking again


class _AnswerTooLarge(Exception):
    """More bytes came than any caption has."""


def http_chat(
    url: str = DEFAULT_URL,
    model: str | None = None,
    *,
    key: SecretStr | str | None = None,
    prompt: str | None = None,
    timeout_seconds: float = 120.0,
    wait: Callable[[float], None] = time.sleep,
) -> Captioner:
    """A captioner that asks a server with OpenAI's chat protocol, as LLaVA servers offer.

    url              the server ("http://localhost:8000"), its …/v1, or the whole address of its chat completions
    model            the name by which the server knows the model; many local servers do not care
    key              sent as a bearer token; see captioners.find_key
    prompt           the question; None asks for one plain sentence about the lace
    timeout_seconds  how long one answer may take
    wait             sleeps between two tries

    Raises SettingsError for an address that cannot be one. The captioner raises SettingsError for what only a setting
    can mend (refused key, wrong address or model), ModelError for a server that cannot be reached, fails or answers
    something else than a caption.
    """
    address = _checked(url)
    if not address.partition("?")[0].endswith("/chat/completions"):
        base, mark, query = address.partition("?")
        base = base.rstrip("/")
        address = f"{base}{'' if base.endswith('/v1') else '/v1'}/chat/completions{mark}{query}"
    server = _Server(address, _secret(key, address), "application/json", timeout_seconds, wait, model or "")
    question = (prompt or "").strip() or QUESTION

    def caption(picture: Image.Image, /) -> str:
        data_url = "data:image/jpeg;base64," + base64.b64encode(jpeg(picture)).decode("ascii")
        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": data_url}}]
        body = {
            "model": model or "default",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": LONGEST_ANSWER_TOKENS,
            "temperature": 0,
        }
        return _asked(server, json.dumps(body).encode("utf-8"), _chat_text)

    return caption


def http_plain(
    url: str,
    *,
    key: SecretStr | str | None = None,
    timeout_seconds: float = 120.0,
    wait: Callable[[float], None] = time.sleep,
) -> Captioner:
    """A captioner that posts the JPEG itself, as Hugging Face's image-to-text endpoints and small services take it.

    The answer is [{"generated_text": …}], or an object with one of generated_text, caption and text. Arguments and
    errors are those of http_chat.
    """
    address = _checked(url)
    server = _Server(address, _secret(key, address), "image/jpeg", timeout_seconds, wait)

    def caption(picture: Image.Image, /) -> str:
        return _asked(server, jpeg(picture), _plain_text)

    return caption


# Pictures


def jpeg(picture: Image.Image, longest_px: int = LONGEST_SIDE_PX) -> bytes:
    """The picture as a JPEG whose longer side is at most `longest_px`, without any of its metadata."""
    small = as_rgb(picture).copy()
    small.info = {}  # Pillow would pass a comment on
    small.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=90)
    return file.getvalue()


# Addresses and keys


def _checked(url: str) -> str:
    """The address, once it can be one. Raises SettingsError; a user name or password in it is refused and not shown."""
    text = url.strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise SettingsError(f"caption_url {printable(text.rpartition('@')[2])!r} holds signs that no address has.")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"caption_url is no address ({error}). Write for example {DEFAULT_URL}.") from None
    if "@" in parts.netloc:
        raise SettingsError(
            f"caption_url holds a user name or password. Take it out; a key belongs into the environment variable "
            f"{KEY_NAME}, or into Colab's secrets under that name."
        )
    if secrets := [name for name, _ in parse_qsl(parts.query) if _SECRET_NAME.search(name)]:
        raise SettingsError(
            f"caption_url holds {printable(secrets[0])} behind its question mark, and would be kept in config.yaml. "
            f"Take it out; a key belongs into the environment variable {KEY_NAME}, or into Colab's secrets."
        )
    if parts.scheme not in ("http", "https") or not host:
        shown = printable(text.partition("?")[0])
        hint = f"http://{shown}" if re.fullmatch(r"[\w.-]+(:\d+)?(/.*)?", shown) else DEFAULT_URL
        raise SettingsError(f"caption_url {shown!r} is no address of a server. Write for example {hint}.")
    return text.partition("#")[0]


def _secret(key: SecretStr | str | None, url: str) -> SecretStr | None:
    """The key, if it can travel in a header to this address; a key that is refused is not shown."""
    text = key.get_secret_value() if isinstance(key, SecretStr) else key or ""
    text = text.strip()
    if not text:
        return None
    if not text.isascii() or not text.isprintable() or " " in text:
        raise SettingsError(
            f"The key in {KEY_NAME} holds a space, a line break or a letter that no key has. Copy it anew."
        )
    parts = urlsplit(url)
    if parts.scheme == "http" and not _is_near(parts.hostname or ""):
        raise SettingsError(
            f"caption_url begins with http://, over which everyone on the way could read your key. Write "
            f"https://{parts.netloc}, or unset {KEY_NAME} if the server asks for none."
        )
    return SecretStr(text)


def _is_near(host: str) -> bool:
    """Whether a host is this machine or stands in its own network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".internal", ".localhost"))
    return address.is_private or address.is_loopback


def _without_key(text: str, key: SecretStr | None) -> str:
    """The text with every word blotted out that holds the key, or eight signs of it in a row."""
    secret = key.get_secret_value() if key else ""
    if not secret:
        return text
    if len(secret) < _SHORTEST_SECRET:
        return text.replace(secret, "…")
    parts = [secret[at : at + _SHORTEST_SECRET] for at in range(len(secret) - _SHORTEST_SECRET + 1)]
    return re.sub(r"\S+", lambda word: "…" if any(part in word[0] for part in parts) else word[0], text)


# Asking


def _asked(server: _Server, data: bytes, read: Callable[[Any], str | None]) -> str:
    """The caption in the server's answer; the errors of http_chat."""
    reply = _reply(server, data)
    if reply.status != 200:
        raise _complaint(server, reply)
    text, problem = _read(reply.body, server.key, read)
    if problem:
        raise ModelError(f"{server.shown} {problem}")
    return text


def _read(body: bytes, key: SecretStr | None, read: Callable[[Any], str | None]) -> tuple[str, str]:
    """The caption in a body, or what is wrong with it."""
    try:
        text = read(json.loads(body))
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        text = None
    if text is None:
        kind = "Is it a captioning server of the kind that captioner names?"
        return "", f"gave an answer that is no caption: {_excerpt(body, key) or 'nothing'}. {kind}"
    if key and len(key.get_secret_value()) >= _SHORTEST_SECRET and _without_key(text, key) != text:
        return "", "gave back the key instead of a caption. Do not trust this server."
    return text, ""


def _reply(server: _Server, data: bytes) -> _Reply:
    """The server's reply, asked again with growing pauses while it is busy, failing or out of reach."""
    for number in range(1, TRIES + 1):
        reply = _once(server, data)
        if not reply.may_pass or number == TRIES:
            break
        pause = 2.0 ** (number - 1) if reply.pause_seconds is None else reply.pause_seconds
        server.wait(min(max(pause, 0.0), LONGEST_PAUSE_SECONDS))
    return reply


def _once(server: _Server, data: bytes) -> _Reply:
    headers = {"Content-Type": server.content_type, "Accept": "application/json", "User-Agent": "lace-lora"}
    if server.key:
        headers["Authorization"] = f"Bearer {server.key.get_secret_value()}"
    request = Request(server.url, data=data, headers=headers, method="POST")
    deadline = time.monotonic() + server.timeout_seconds
    try:
        with _opener(server.url).open(request, timeout=server.timeout_seconds) as response:
            return _Reply(response.status, _body(response, deadline))
    except HTTPError as error:
        with error:
            return _refused(error, deadline)
    except _AnswerTooLarge:
        return _Reply(0, problem=f"its answer is larger than {LARGEST_ANSWER_BYTES // 1_000_000} MB")
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a host that is none, as a..b
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return _Reply(0, problem=f"no answer within {server.timeout_seconds:g} s")
        text = str(getattr(reason, "strerror", None) or reason or type(reason).__name__)
        can_change = isinstance(reason, (OSError, http.client.HTTPException))
        may_pass = can_change and not isinstance(reason, ssl.SSLCertVerificationError)
        return _Reply(0, problem=printable(_without_key(text, server.key)), may_pass=may_pass)


def _refused(error: HTTPError, deadline: float) -> _Reply:
    body = b""
    with suppress(OSError, http.client.HTTPException, _AnswerTooLarge):
        body = _body(error, deadline)
    pause = error.headers.get("Retry-After", "")
    return _Reply(
        error.code,
        body,
        location=error.headers.get("Location", ""),
        pause_seconds=float(pause) if pause.isdecimal() and pause.isascii() else None,
        may_pass=error.code == 429 or error.code >= 500,
    )


def _body(response: Any, deadline: float) -> bytes:
    """The body, of bounded size and within the time, also where it comes a byte at a time."""
    body = b""
    while part := response.read1(65536):
        body += part
        if len(body) > LARGEST_ANSWER_BYTES:
            raise _AnswerTooLarge
        if time.monotonic() > deadline:
            raise TimeoutError
    return body


class _Stay(HTTPRedirectHandler):
    """Follows no redirection: urllib would send the key along, and turn a POST into a GET."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _opener(url: str) -> OpenerDirector:
    # A proxy named in the environment cannot see the servers of this machine and its network.
    direct = [ProxyHandler({})] if _is_near(urlsplit(url).hostname or "") else []
    return build_opener(_Stay(), *direct)


def _complaint(server: _Server, reply: _Reply) -> LaceError:
    """The sentence for a reply that is no answer."""
    where, status, said = server.shown, reply.status, _excerpt(reply.body, server.key)
    told = f"{status}: {said}" if said else str(status)
    if status == 0:
        return ModelError(f"{where} cannot be asked: {reply.problem}. Start the server, or correct caption_url.")
    if status in (401, 403):  # what the server says here often repeats the key
        wrong = "refuses the key" if server.key else "asks for a key"
        return SettingsError(
            f"{where} {wrong} ({status}). Put a valid one into the environment variable {KEY_NAME}, or into Colab's "
            "secrets under that name; it does not belong into config.yaml."
        )
    if 300 <= status < 400:
        to = printable(_without_key(reply.location, server.key).partition("?")[0]) or "another address"
        return SettingsError(f"{where} sends on to {to} ({status}). Write the right address into caption_url.")
    if status in (404, 405):
        model = f", or knows no model {printable(server.model)}" if server.model else ""
        return SettingsError(f"{where} has nothing there{model} ({told}). Correct caption_url or caption_model.")
    if status == 429:
        return ModelError(
            f"{where} is busy, or your quota there is used up ({told}), also after {TRIES} tries. Run again later to "
            "go on from there."
        )
    if status >= 500:
        return ModelError(f"{where} failed ({told}), also after {TRIES} tries. Look at the server's own messages.")
    return ModelError(f"{where} does not take this request ({told}). Correct captioner or caption_model.")


def _excerpt(body: bytes, key: SecretStr | None) -> str:
    """The first words of what a server said, fit to be shown."""
    try:
        said = json.loads(body)
        for name in ("error", "message", "detail"):
            said = said.get(name, said) if isinstance(said, dict) else said
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = body[:2000].decode("utf-8", "replace")
    text = " ".join(_without_key(text[:2000], key).split())
    return printable(text[:160] + ("…" if len(text) > 160 else "")).rstrip(".")


# Reading answers


def _chat_text(answer: Any) -> str | None:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    if isinstance(content, list):  # parts, of which those with a text count
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else None


def _plain_text(answer: Any) -> str | None:
    first = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(first, dict):
        return None
    return next((first[key] for key in ("generated_text", "caption", "text") if isinstance(first.get(key), str)), None)
