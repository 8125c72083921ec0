"""A package goes to Hugging Face with the real client, privately, and each refusal is a sentence (P25)."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from pydantic import SecretStr

from lace_lora import hub
from lace_lora.errors import LaceError, MachineError, SettingsError
from tests import hub_server
from tests.hub_server import TOKEN, Hub

# The client's own way of sending a large file, with the library that it speaks HTTP with.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
CONTENTS = {
    "README.md": b"---\nlicense: unknown\n---\n# lace\n",
    "lace.safetensors": b"w" * 3000,
    "samples/a.png": b"p",
}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub on this machine, with a token for it, and without Xet, which needs a service of its own."""
    with hub_server.running() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        yield found


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_bytes(content)
    (tmp_path / "package/complete.json").write_text("{}")
    return tmp_path / "package"


def test_it_becomes_a_private_repository_with_exactly_the_packages_files(served: Hub, package: Path) -> None:
    """P25: one commit; again it is not made a second time, and stays as private or public as it is."""
    address = hub.push(package, "somebody/lace", list(CONTENTS))
    assert address == f"{served.address}/somebody/lace"
    assert served.repositories == {"somebody/lace": True} and served.files == CONTENTS and served.commits == 1
    served.repositories["somebody/lace"] = False
    hub.push(package, "somebody/lace", list(CONTENTS))
    assert served.repositories == {"somebody/lace": False}


def test_a_name_alone_is_of_the_tokens_own_account(served: Hub, package: Path) -> None:
    """P25."""
    assert hub.push(package, "lace", list(CONTENTS)) == f"{served.address}/somebody/lace"


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, SettingsError, "does not know the token in HF_TOKEN (401). Make a new one"),
        (403, SettingsError, "may not write to somebody/lace (403). Give it write access"),
        (404, SettingsError, "no account for somebody/lace"),
        (413, MachineError, "refused the upload to somebody/lace (status 413)"),
    ],
)
def test_a_refusal_says_what_to_do_and_never_the_token(
    served: Hub, package: Path, status: int, kind: type[LaceError], said: str
) -> None:
    """P25, L12."""
    served.refuse = (status, f"no, {TOKEN}")
    with pytest.raises(kind) as caught:
        hub.push(package, "somebody/lace", list(CONTENTS))
    assert said in str(caught.value) and TOKEN not in str(caught.value) and not served.files


def test_no_network_a_bad_name_offline_and_a_large_file_refused_have_their_sentences(
    served: Hub, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P25, L12."""
    with pytest.raises(SettingsError, match="push_to_hub is 'a/b/c' but must be a name"):
        hub.push(package, "a/b/c", list(CONTENTS))
    with monkeypatch.context() as here:
        here.setattr(constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.close_session()
        with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
            hub.push(package, "somebody/lace", list(CONTENTS))
    huggingface_hub.close_session()
    served.refuse_objects = 403
    with pytest.raises(SettingsError, match="may not write to somebody/lace"):
        hub.push(package, "somebody/lace", list(CONTENTS))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="Hugging Face does not answer"):
        hub.push(package, "somebody/lace", list(CONTENTS))


def test_the_token_comes_from_the_environment_then_from_colabs_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """P25, L2: and without one the sentence says where to put it."""
    monkeypatch.setattr(hub.colab, "secret", lambda name: SecretStr("of Colab") if name == "HF_TOKEN" else None)
    monkeypatch.setenv("HF_TOKEN", " mine ")
    assert hub.token().get_secret_value() == "mine" and "mine" not in repr(hub.token())
    monkeypatch.delenv("HF_TOKEN")
    assert hub.token().get_secret_value() == "of Colab"
    monkeypatch.setattr(hub.colab, "secret", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SettingsError, match="Colab's secrets .*HF_TOKEN"):
        hub.token()
