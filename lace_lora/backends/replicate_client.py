"""Replicate's own Python client, with a sentence for whatever it raises and patience for what passes.

The key comes from the environment variable REPLICATE_API_TOKEN, or Colab's secrets; it stands in no file and no
message, and it is sent to Replicate's API alone, not to where its files are kept.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lace_lora import checkpoint, colab
from lace_lora.backends.packages import needed
from lace_lora.errors import BackendError, SettingsError
from lace_lora.file_names import printable

KEY_NAME = "REPLICATE_API_TOKEN"
TRIES = 6  # of what may pass: a lost connection, too many requests, a server that is down for a moment
LONGEST_PAUSE_SECONDS = 60.0
GOES_ON = "What was begun goes on there; run the same again to follow it."

Say = Callable[[str], None]


@dataclass
class Account:
    """Somebody's access to Replicate.

    pause  seconds that the last answer asked to wait, where it did
    """

    client: Any
    say: Say
    wait: Callable[[float], None]
    pause: list[float] = field(default_factory=list)


def connect(say: Say, wait: Callable[[float], None] = time.sleep) -> Account:
    """Access with the key that there is.

    Raises SettingsError where there is none, MachineError where the package replicate is missing.
    """
    replicate = needed("replicate", "replicate", "replicate")
    found = colab.key(KEY_NAME)
    if found is None:
        raise SettingsError(
            f"Replicate asks for a key. Make one at replicate.com/account/api-tokens and put it into the environment "
            f"variable {KEY_NAME}, or into Colab's secrets under that name; it does not belong into config.yaml."
        )
    pause: list[float] = []

    def heard(response: Any) -> None:
        asked = response.headers.get("Retry-After", "")
        pause[:] = [float(asked)] if asked.isdecimal() else []

    client = replicate.Client(api_token=found.get_secret_value(), event_hooks={"response": [heard]})
    return Account(client, say, wait, pause)


def call(
    account: Account, what: str, work: Callable[..., Any], *given: Any, may_repeat: bool = True, **more: Any
) -> Any:
    """work(*given, **more), a call of the client; tried again where that may help.

    what        is being done, for the sentence
    may_repeat  whether it may be asked again where no answer came; what costs money may not, or it is paid for twice

    Raises SettingsError or BackendError that says what to do.
    """
    exceptions = needed("replicate.exceptions", "replicate", "replicate")
    httpx = needed("httpx", "httpx", "replicate")
    pause = 1.0
    for number in range(1, TRIES + 1):
        account.pause.clear()
        try:
            return work(*given, **more)
        except exceptions.ReplicateError as error:
            may_pass = error.status == 429 or (error.status or 0) >= 500
            if not may_pass or number == TRIES or (error.status != 429 and not may_repeat):
                raise _complaint(what, error.status, error.detail or error.title) from None
            reason = f"it answers {error.status}"
        except httpx.TransportError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if number == TRIES or not may_repeat:
                raise BackendError(f"Replicate cannot be reached to {what} ({printable(reason)}). {GOES_ON}") from None
        seconds = account.pause[0] if account.pause else pause
        if number == 1:
            account.say(f"! Replicate does not {what} yet ({printable(reason)}); trying again for a while.")
        account.wait(min(seconds, LONGEST_PAUSE_SECONDS))
        pause *= 2
    raise AssertionError("the last try returns or raises")


def fetch(account: Account, url: str, path: Path) -> str:
    """Bring a file that Replicate gives to `path`, complete or not at all; returns its sha256 (hex).

    Its length and, where the store tells one, its md5 are compared. The key goes with it only to the API itself.
    """
    httpx = needed("httpx", "httpx", "replicate")
    api = account.client._client
    own = (
        {"Authorization": api.headers["Authorization"]} if urlsplit(url).netloc == api.base_url.netloc.decode() else {}
    )

    def bring(partial: Path) -> None:
        with httpx.stream("GET", url, headers=own, timeout=60.0, follow_redirects=not own) as reply:
            if reply.status_code != 200:
                raise BackendError(f"Replicate does not give the file back ({reply.status_code}). {GOES_ON}")
            md5, size = hashlib.md5(usedforsecurity=False), 0
            with partial.open("wb") as file:
                for part in reply.iter_raw():
                    file.write(part)
                    md5.update(part)
                    size += len(part)
        told = reply.headers.get("Content-Length")
        tag = reply.headers.get("ETag", "").strip('"')
        is_md5 = re.fullmatch(r"[0-9a-f]{32}", tag) is not None
        if (told is not None and int(told) != size) or (is_md5 and tag != md5.hexdigest()):
            raise httpx.RemoteProtocolError(f"{size:,} bytes came, which are not the file")

    path.parent.mkdir(parents=True, exist_ok=True)
    call(account, "give the file", checkpoint.write_file, path, bring)
    return checkpoint.sha256(path)


def _complaint(what: str, status: int | None, detail: str | None) -> BackendError | SettingsError:
    """The sentence for an answer that refuses."""
    said = printable(" ".join(str(detail or "").split())[:300]).rstrip(".")
    told = f"{status}: {said}" if said else str(status)
    if status == 401:
        return SettingsError(
            f"Replicate does not take the key in {KEY_NAME} (401). Copy it anew from replicate.com/account/api-tokens "
            "into that environment variable, or into Colab's secrets under that name."
        )
    if status == 402:
        return BackendError(
            f"Replicate asks for a means of payment, or your credit is used up ({told}). See "
            "replicate.com/account/billing, then run again."
        )
    if status == 403:
        return SettingsError(f"Your Replicate account may not {what} ({told}). Set backend_model to a model of yours.")
    if status == 404:
        return SettingsError(f"Replicate finds nothing there to {what} ({told}). Correct backend_model.")
    if status == 422:
        return SettingsError(f"Replicate refuses the input to {what} ({told}). Correct the settings that it names.")
    if status == 429:
        return BackendError(f"Replicate takes no more requests for now ({told}), also after {TRIES} tries. Run again "
                            "later.")  # fmt: skip
    return BackendError(f"Replicate could not {what} ({told}). Run again later. {GOES_ON}")
