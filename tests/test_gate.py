"""Who may come in at a served door: key, host, origin and size, told by nothing but a sentence (P25)."""

import asyncio
import json

import pytest
from pydantic import SecretStr

from lace_lora import gate
from lace_lora.errors import SettingsError
from lace_lora.gate import Gate

KEY = "k" * 24


def asked(door, path="/designs", headers=(), chunks=(b"",), method="POST"):
    """(status, headers, text) of a request that goes through the gate to an application that says what it got."""
    seen, sent = [], []

    async def behind(scope, receive, send):
        message = await receive()
        seen.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    waiting = [{"type": "http.request", "body": one, "more_body": True} for one in chunks]
    waiting[-1]["more_body"] = False

    async def receive():
        return waiting.pop(0) if waiting else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    named = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": named}
    asyncio.run(gate.guarded(behind, door)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"], seen


LOCAL = Gate.of("127.0.0.1", None, 100)
KEYED = Gate.of("0.0.0.0", SecretStr(KEY), 100)
HERE = ("Host", "127.0.0.1:8000")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_on_loopback_a_door_answers_to_its_own_names(host):
    """P25."""
    assert asked(LOCAL, headers=[("Host", host)])[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "evil@127.0.0.1.x", "0.0.0.0"])
def test_on_loopback_another_name_is_turned_away_against_dns_rebinding(host):
    """P25: a page whose name was pointed at this computer does not get in."""
    status, _, body, seen = asked(LOCAL, headers=[("Host", host)])
    assert (status, seen) == (421, []) and "own address" in json.loads(body)["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://[", "x"])
def test_a_page_of_another_site_may_not_ask(origin):
    """P25: CORS is off, and also a request whose answer no page can read is not taken."""
    assert asked(LOCAL, headers=[HERE, ("Origin", origin)])[0] == 403


def test_its_own_page_may_ask():
    """P25."""
    assert asked(LOCAL, headers=[HERE, ("Origin", "http://127.0.0.1:8000")])[0] == 200


WRONG = ["", "Bearer", "Bearer ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", KEY, f"Bearer {KEY.upper()}",
         f"Bearer ü{KEY}", f"Bearer {'x' * 5000}"]  # fmt: skip


def test_a_wrong_key_learns_nothing():
    """P25: the same answer to every path, method, body and wrong key; nothing behind the gate is asked."""
    answers = set()
    for sent in WRONG:
        for path in ("/designs", "/openapi.json", "/docs", "/nothing", "/health"):
            for method, chunks in (("GET", [b""]), ("POST", [b"x" * 1000]), ("DELETE", [b""])):
                headers = [("Authorization", sent)] if sent else []
                status, more, body, seen = asked(KEYED, path, headers, chunks, method)
                answers.add((status, tuple(sorted(more.items())), body))
                assert seen == []
    assert len(answers) == 1 and answers.pop()[0] == 401


def test_digests_of_one_length_are_compared_in_constant_time(monkeypatch):
    """P25: by construction: hmac.compare_digest, on texts whose length does not depend on what was sent."""
    compared = []
    true = gate.hmac.compare_digest
    monkeypatch.setattr(
        gate.hmac, "compare_digest", lambda one, other: compared.append((one, other)) or true(one, other)
    )
    for sent in [*WRONG, f"Bearer {KEY}"]:
        asked(KEYED, headers=[("Authorization", sent)])
    assert len(compared) == len(WRONG) + 1
    assert {(len(one), len(other)) for one, other in compared} == {(32, 32)}


@pytest.mark.parametrize("sent", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY}"])
def test_the_key_comes_in(sent):
    """P25."""
    assert asked(KEYED, headers=[("Authorization", sent)])[0] == 200


def test_a_key_that_is_set_is_asked_for_on_loopback_too():
    """P25."""
    door = Gate.of("127.0.0.1", SecretStr(KEY), 100)
    assert asked(door, headers=[HERE])[0] == 401
    assert asked(door, headers=[HERE, ("Authorization", f"Bearer {KEY}")])[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "lace.example"])
def test_without_a_key_others_cannot_be_let_in(host):
    """P25: refused before anything is served, in a sentence."""
    with pytest.raises(SettingsError, match="LACE_SERVE_KEY"):
        Gate.of(host, None, 100)
    assert Gate.of(host, SecretStr(KEY), 100).hosts == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.4.5", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_key(host):
    """P25."""
    assert Gate.of(host, None, 100).key is None


@pytest.mark.parametrize(("text", "is_key"), [("", None), ("  ", None), (KEY, True)])
def test_the_key_is_read_from_the_environment(monkeypatch, text, is_key):
    """P25."""
    monkeypatch.setenv("LACE_SERVE_KEY", text)
    found = gate.key_in_environment()
    assert (found.get_secret_value() if found else None) == (KEY if is_key else None)
    assert KEY not in repr(Gate.of("127.0.0.1", found, 1))


@pytest.mark.parametrize("text", ["short", "k" * 15, "k" * 20 + " k", "ü" * 20])
def test_a_poor_key_is_refused_without_being_shown(monkeypatch, text):
    """P25."""
    monkeypatch.setenv("LACE_SERVE_KEY", text)
    with pytest.raises(SettingsError, match="16 characters") as raised:
        gate.key_in_environment()
    assert text not in str(raised.value)


def test_a_body_within_the_limit_arrives_whole():
    """P25."""
    assert asked(LOCAL, headers=[HERE], chunks=[b"a" * 60, b"b" * 40])[3] == [b"a" * 60 + b"b" * 40]


@pytest.mark.parametrize(
    ("headers", "chunks"),
    [
        ([("Content-Length", "101")], [b""]),
        ([("Content-Length", "9" * 400)], [b""]),
        ([("Content-Length", "-1")], [b""]),
        ([], [b"a" * 60, b"b" * 41]),
        ([("Content-Length", "5")], [b"a" * 60, b"b" * 60]),
    ],
)
def test_a_body_beyond_it_is_refused_by_its_length_or_as_it_comes(headers, chunks):
    """P25: 413, and the application sees nothing of it."""
    status, _, body, seen = asked(LOCAL, headers=[HERE, *headers], chunks=chunks)
    assert (status, seen) == (413, []) and "100 bytes" in json.loads(body)["error"]


def test_a_body_that_never_comes_is_given_up(monkeypatch):
    """P25."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.01)
    waiting = []

    async def receive():
        waiting.append(1)
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", b"localhost")]}
    asyncio.run(gate.guarded(None, LOCAL)(scope, receive, send))
    assert sent[0]["status"] == 408 and len(waiting) == 1


def test_websockets_are_closed():
    """P25: nothing behind the gate speaks them."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(gate.guarded(None, LOCAL)({"type": "websocket", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
