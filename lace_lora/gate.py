"""Who may come in at a served door, and with how much: key, host, origin and size, before anything else looks.

An ASGI application in front of another. What it refuses is answered in one JSON sentence that tells nothing of what
lies behind it: with a key, a path that exists and one that does not get the same answer.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from lace_lora.errors import SettingsError

KEY_VARIABLE = "LACE_SERVE_KEY"
SHORTEST_KEY = 16  # characters; it stands alone between the network and the GPU
BODY_SECONDS = 30.0  # in which a request must have arrived
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Gate:
    """The conditions of one door.

    key         that every request must carry; None takes requests without one
    hosts       names by which the door may be called, without the port; empty takes any
    body_bytes  the largest request
    """

    key: SecretStr | None
    hosts: tuple[str, ...]
    body_bytes: int

    @classmethod
    def of(cls, host: str, key: SecretStr | None, body_bytes: int) -> "Gate":
        """The gate of a server that listens at `host`. On loopback it answers to that name alone (DNS rebinding).

        Raises SettingsError where others could reach it without a key.
        """
        if not is_loopback(host):
            if key is None:
                raise SettingsError(
                    f"With --host {host} other computers could draw here, so a key is needed. Set the environment "
                    f"variable {KEY_VARIABLE} to a long random text, or leave --host out: then only this computer can."
                )
            return cls(key, (), body_bytes)
        return cls(key, tuple(dict.fromkeys((*LOCAL_NAMES, host.strip("[]").casefold()))), body_bytes)


def key_in_environment() -> SecretStr | None:
    """The key that requests must carry, from the environment; None where none is set.

    Raises SettingsError for one that is too short, or holds what a header cannot.
    """
    text = os.environ.get(KEY_VARIABLE, "").strip()
    if not text:
        return None
    if len(text) < SHORTEST_KEY or not (text.isascii() and text.isprintable()) or " " in text:
        raise SettingsError(
            f"The key in {KEY_VARIABLE} must be {SHORTEST_KEY} characters or more, plain letters, digits and signs "
            'without spaces. Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return SecretStr(text)


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


def guarded(app: Asgi, gate: Gate) -> Asgi:
    """The application behind its gate. Whole requests are read before it sees them, so none can keep it waiting."""
    digest = _digest(gate.key.get_secret_value().encode("ascii")) if gate.key else None

    async def asgi(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets: there are none behind it
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.lower(): value for name, value in reversed(scope["headers"])}
        refused = _refusal(headers, gate, digest)
        if refused is None:
            body, refused = await _body(headers, receive, gate.body_bytes)
        if refused is not None:
            await _answer(send, *refused)
            return
        await app(scope, _replayed(body, receive), send)

    return asgi


# -- inside --

Refusal = tuple[int, str, dict[str, str]]


def _refusal(headers: dict[bytes, bytes], gate: Gate, digest: bytes | None) -> Refusal | None:
    """Why a request is turned away by its headers alone: status, sentence, headers of the answer."""
    if gate.hosts and _name(headers.get(b"host", b"")) not in gate.hosts:
        return 421, "This server answers to its own address on this computer only.", {}
    # The digest of what was sent is as long as that of the key, and compare_digest reads both to their ends: neither
    # how long the key is nor how much of a guess is right can be told from the time that it takes.
    given = headers.get(b"authorization", b"")
    sent = given[7:].strip() if given[:7].lower() == b"bearer " else b""
    if digest is not None and not hmac.compare_digest(_digest(sent), digest):
        return 401, "The key is missing or wrong. Send it as: Authorization: Bearer …", {"www-authenticate": "Bearer"}
    # A page of another site in a browser on this computer; our own answers allow none to be read, but a request counts.
    origin, host = headers.get(b"origin"), headers.get(b"host", b"")
    if origin is not None and origin not in (b"http://" + host, b"https://" + host):
        return 403, "Pages of other sites may not draw here.", {}
    return None


def _name(host: bytes) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host.decode('latin-1')}").hostname or "").casefold()
    except ValueError:
        return ""


async def _body(headers: dict[bytes, bytes], receive: Receive, most: int) -> tuple[bytes, Refusal | None]:
    """The whole body, or why it is not taken."""
    too_large = 413, f"A request may have {most:,} bytes. Send fewer or shorter prompts.", {"connection": "close"}
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:19]) > most or len(length) > 19:
        return b"", too_large
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return b"", (400, "The request broke off.", {"connection": "close"})
                body += message.get("body", b"")
                if len(body) > most:
                    return b"", too_large
                if not message.get("more_body", False):
                    return body, None
    except TimeoutError:
        return b"", (408, f"The request did not arrive within {BODY_SECONDS:g} seconds.", {"connection": "close"})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, and then whatever comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


async def _answer(send: Send, status: int, sentence: str, headers: dict[str, str]) -> None:
    body = json.dumps({"error": sentence}, ensure_ascii=False).encode("utf-8")
    sent = {"content-type": "application/json", "content-length": str(len(body))} | headers
    start = {"type": "http.response.start", "status": status}
    await send(start | {"headers": [(name.encode(), value.encode()) for name, value in sent.items()]})
    await send({"type": "http.response.body", "body": body})


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
