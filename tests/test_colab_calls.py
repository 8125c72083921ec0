"""Calls to google.colab: our arguments fit its signatures, and each of its errors is a sentence (L2)."""

import ast
import inspect
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from pydantic import SecretStr

from lace_lora import captioners, colab, machine, notebook
from lace_lora.errors import LaceError, MachineError, SettingsError
from tests.generated import PACKAGE, ROOT, source_files


# The signatures in google.colab's own source of 2026-04-07.
def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False): ...


def flush_and_unmount(timeout_ms=86400000): ...


def download(filename): ...


def get(key): ...


SIGNATURES = {"drive.mount": mount, "drive.flush_and_unmount": flush_and_unmount, "files.download": download,
              "userdata.get": get}  # fmt: skip


class Error(Exception):
    """google.colab.errors.Error, the base of its own errors but for one."""


class MessageError(Error): ...


class SecretNotFoundError(Error): ...


class TimeoutException(Error): ...


class NotebookAccessError(Exception): ...


@pytest.fixture
def google(monkeypatch, tmp_path):
    """A google.colab with these functions: each binds what it is given to the real signature, notes it, then answers.

    answers  by function: an exception to raise, or a value to return
    """
    calls, answers = [], {}
    package = types.ModuleType("google.colab")
    package.__spec__ = ModuleSpec("google.colab", None)
    modules = [types.ModuleType("google"), package]
    modules[0].colab = package
    for name, signature in SIGNATURES.items():
        part, _, function = name.partition(".")

        def call(*args, _name=name, _signature=signature, **given):
            calls.append((_name, inspect.signature(_signature).bind(*args, **given).arguments))
            if isinstance(answers.get(_name), BaseException):
                raise answers[_name]
            if _name == "drive.mount" and "drive.mount" not in answers:
                (Path(calls[-1][1]["mountpoint"]) / "MyDrive").mkdir(parents=True)
            return answers.get(_name)

        module = next((one for one in modules if one.__name__ == f"google.colab.{part}"), None)
        if module is None:
            module = types.ModuleType(f"google.colab.{part}")
            modules.append(module)
            setattr(package, part, module)
        setattr(module, function, call)
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(colab, "somebody_is_here", lambda: True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "drive")
    return types.SimpleNamespace(calls=calls, answers=answers, drive=tmp_path / "drive")


def test_only_one_room_calls_google_colab():
    """L2: the install cells of notebooks are the one other place, since they run before the package is there."""
    callers = set()
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                names.append(ast.unparse(node))
            if any("google" in name for name in names):
                callers.add(path.relative_to(ROOT / PACKAGE).as_posix())
    assert callers == {"colab.py"}


# -- Drive --


def test_outside_colab_nothing_is_mounted_and_the_local_folder_comes_back(tmp_path, monkeypatch):
    """L2."""
    monkeypatch.chdir(tmp_path)
    folder, sentence = colab.mount_drive("/content/drive")
    assert folder == tmp_path and "not Colab" in sentence
    assert colab.flush_and_unmount().startswith("This is not Colab")
    assert colab.download("a.zip") == "The file is a.zip." and colab.secret("HF_TOKEN") is None


@pytest.mark.parametrize("readonly", [False, True])
def test_in_colab_drive_is_mounted_once_with_arguments_that_bind_to_the_real_signature(google, readonly):
    """L2."""
    for _ in range(2):
        folder, sentence = colab.mount_drive(str(google.drive), readonly=readonly)
    assert folder == google.drive and "is mounted" in sentence
    ((name, given),) = google.calls
    assert name == "drive.mount" and given["mountpoint"] == str(google.drive) and given["readonly"] is readonly
    assert given["force_remount"] is False and given["timeout_ms"] == 120_000


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NotImplementedError("Mounting drive is unsupported"), "cannot mount Drive. Upload the pictures"),
        (ValueError("Mountpoint must not contain a space."), "holds a space"),
        (ValueError("Mountpoint must not be a symlink"), "is a link to another folder. Write /content/drive"),
        (ValueError("Mountpoint must not already contain files"), "already holds files"),
        (ValueError("Mountpoint must either be a directory or not exist"), "is no folder in which"),
        (ValueError("Mountpoint must be in a directory that exists"), "is no folder in which"),
        (ValueError("The domain policy has disabled Drive File Stream: https://s"), "organisation .* switched"),
        (
            ValueError("mount failed: timeout during initial read of root folder"),
            "took too long .* Folders with thousands",
        ),
        (ValueError("mount failed"), "could not be mounted at .*: mount failed. Run the cell again"),
        (MessageError("Error: credential propagation was unsuccessful"), "was not allowed. Run the cell again, choose"),
        (RuntimeError(""), "could not be mounted at .*: RuntimeError. Run"),
    ],
)
def test_every_refusal_of_a_mount_has_its_sentence(google, error, sentence):
    """L2: and keeps what Colab said as its cause."""
    google.answers["drive.mount"] = error
    with pytest.raises(MachineError, match=sentence) as caught:
        colab.mount_drive(str(google.drive))
    assert caught.value.__cause__ is error


def test_a_mount_that_calls_itself_mounted_but_does_not_answer_is_said(google):
    """L2: google.colab prints "already mounted" and returns."""
    google.answers["drive.mount"] = None
    with pytest.raises(MachineError, match="does not answer. Runtime → Disconnect and delete runtime"):
        colab.mount_drive(str(google.drive))


def test_where_nobody_can_consent_nothing_is_asked(google, monkeypatch):
    """L2: drive.mount would block for two minutes, and userdata.get for ten seconds."""
    monkeypatch.setattr(colab, "somebody_is_here", lambda: False)
    with pytest.raises(MachineError, match="nobody is here to allow access. Open 01_set_up.ipynb"):
        colab.mount_drive(str(google.drive))
    assert "Nobody is here" in notebook.mount_drive(str(google.drive))
    assert colab.secret("HF_TOKEN") is None and colab.download("a.zip") == "The file is a.zip."
    assert google.calls == []
    (google.drive / "MyDrive").mkdir(parents=True)
    assert "is mounted" in colab.mount_drive(str(google.drive))[1] and machine.drive_is_mounted(str(google.drive))


def test_a_kernel_is_looked_at_only_where_its_front_end_takes_input(monkeypatch):
    """L2: papermill and nbval do not; a plain Python has no kernel at all."""
    assert colab.somebody_is_here() is False
    for allows in (False, True):
        shell = types.SimpleNamespace(kernel=types.SimpleNamespace(_allow_stdin=allows))
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert colab.somebody_is_here() is allows


def test_drive_is_let_go_of_only_when_everything_is_there(google):
    """L2."""
    assert colab.flush_and_unmount().startswith("Everything is in Drive now")
    assert google.calls == [("drive.flush_and_unmount", {"timeout_ms": 86_400_000})]
    google.answers["drive.flush_and_unmount"] = ValueError("flush_and_unmount failed")
    with pytest.raises(MachineError, match="Not everything may .*flush_and_unmount failed.* Leave this machine on"):
        colab.flush_and_unmount()


# -- files and secrets --


def test_a_file_is_downloaded_or_it_is_said_why_not(google):
    """L2."""
    assert colab.download(Path("out/a.zip")) == "Your browser downloads a.zip."
    assert google.calls == [("files.download", {"filename": "out/a.zip"})]
    for error, sentence in (
        (FileNotFoundError("Cannot find file: a.zip"), "no file out/a.zip to download. Run the cell that makes it"),
        (
            MessageError("TypeError: Failed to fetch"),
            "did not take a.zip .TypeError: Failed to fetch.. Allow downloads",
        ),
    ):
        google.answers["files.download"] = error
        with pytest.raises(MachineError, match=sentence):
            colab.download("out/a.zip")


def test_a_secret_is_read_or_it_is_said_what_to_click(google, monkeypatch):
    """C4: a secret that is not there is no error; one that is withheld is."""
    google.answers["userdata.get"] = " abc\n"
    found = colab.secret("HF_TOKEN")
    assert found == SecretStr("abc") and "abc" not in repr(found)
    assert google.calls == [("userdata.get", {"key": "HF_TOKEN"})]
    monkeypatch.delenv("LACE_CAPTION_KEY", raising=False)
    assert captioners.find_key() == SecretStr("abc")
    for nothing in ("", None, SecretNotFoundError("Secret HF_TOKEN does not exist.")):
        google.answers["userdata.get"] = nothing
        assert colab.secret("HF_TOKEN") is None
    for error, kind, sentence in (
        (NotebookAccessError("Notebook does not have access"), SettingsError, "Click the key .* “Notebook access”"),
        (
            TimeoutException("Requesting secret HF_TOKEN timed out."),
            MachineError,
            "did not answer .* Keep this page open",
        ),
    ):
        google.answers["userdata.get"] = error
        with pytest.raises(kind, match=sentence) as caught:
            colab.secret("HF_TOKEN")
        assert isinstance(caught.value, LaceError)
