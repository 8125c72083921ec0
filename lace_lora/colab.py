"""The one door to `google.colab`: Drive, downloads and secrets, and for each of its errors a sentence that says what
to do.

Everything here asks the person at the browser, so it works only in a notebook's own kernel that somebody looks at.
Where nobody does (papermill, nbval, a command), nothing is asked: google.colab would block for two minutes, or for
ever. Signatures and errors as in google.colab's own source of 2026-04-07. Loads no torch.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from pydantic import SecretStr

from lace_lora.errors import LaceError, MachineError, SettingsError
from lace_lora.machine import drive_is_mounted, in_colab

MOUNT_MS = 120_000
FLUSH_MS = 86_400_000  # a day: what is not in Drive when it is given up is lost with the machine

# What google.colab's texts hold when Drive cannot be mounted, and what is said instead. {path} is drive_mount_path.
_REFUSED = (
    (("space",), "drive_mount_path {path} holds a space, which Colab does not take. Write /content/drive."),
    (("symlink",), "drive_mount_path {path} is a link to another folder. Write /content/drive."),
    (
        ("already contain files",),
        "The folder {path} already holds files, so Drive cannot be mounted there. In Colab: Runtime → Disconnect and "
        "delete runtime, then run the notebook again; or choose another drive_mount_path.",
    ),
    (
        ("either be a directory", "in a directory that exists"),
        "{path} is no folder in which Drive can be mounted. Write /content/drive as drive_mount_path.",
    ),
    (
        ("domain", "policy"),
        "The organisation that your Google account belongs to has switched this use of Drive off. Choose a private "
        "account in the window that opens, or ask whoever looks after your accounts.",
    ),
    (
        ("timeout", "timed out", "time-out"),
        "Drive took too long to answer. Folders with thousands of files at the top of Drive make it slow: move them "
        "into a folder. Then run the cell again.",
    ),
)
_CANCELLED = (
    "Access to Drive was not allowed. Run the cell again, choose your account in the window that opens, and allow "
    "everything on the list."
)
_NO_DRIVE_HERE = "This kind of Colab cannot mount Drive. Upload the pictures and set images_dir."
_HALF_DEAD = (
    "Drive says it is mounted at {path}, but it does not answer. Runtime → Disconnect and delete runtime, then run the "
    "notebook again."
)
_NOBODY = (
    "Drive is not mounted at {path}, and nobody is here to allow access. Open 01_set_up.ipynb on this machine first "
    "and run its cells: Drive then stays mounted for everything that runs here."
)


def somebody_is_here() -> bool:
    """Whether a front-end with a person at it looks at this kernel: only such a one may be asked for input."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    return bool(getattr(kernel, "_allow_stdin", False))


def mount_drive(drive_mount_path: str, readonly: bool = False) -> tuple[Path, str]:
    """Mount Google Drive where that is possible; return the folder to work in and a sentence about it.

    readonly  mount it so that nothing in it can be changed

    Outside Colab nothing is mounted: the local folder comes back. Raises MachineError with what to do when Colab
    refuses, when nobody is here to allow access, and when Drive calls itself mounted and does not answer.
    """
    if not in_colab():
        return Path.cwd(), f"This is not Colab, so no Drive is mounted; files are read and written under {Path.cwd()}."
    if not drive_is_mounted(drive_mount_path):
        if not somebody_is_here():
            raise MachineError(_NOBODY.format(path=drive_mount_path))
        with _sentences(drive_mount_path):
            _part("drive").mount(drive_mount_path, force_remount=False, timeout_ms=MOUNT_MS, readonly=readonly)
        # "Already mounted" is printed, and nothing raised, also of a mount that has died.
        if not drive_is_mounted(drive_mount_path):
            raise MachineError(_HALF_DEAD.format(path=drive_mount_path))
    return Path(drive_mount_path), f"Drive is mounted at {drive_mount_path}."


def flush_and_unmount() -> str:
    """Wait until everything that was written is in Drive, let go of it, and return a sentence: the very last act.

    Outside Colab nothing is done. Raises MachineError when Colab could not bring everything there.
    """
    if not in_colab():
        return "This is not Colab, so there is no Drive to wait for."
    try:
        _part("drive").flush_and_unmount(timeout_ms=FLUSH_MS)
    except Exception as error:  # ValueError by its source; an OSError where its program is gone
        raise MachineError(
            f"Not everything may have reached Drive ({_reason(error)}). Leave this machine on, run the cell again, "
            "and look for your files at drive.google.com before you close it."
        ) from error
    return "Everything is in Drive now. Run the notebook from the top to use Drive again."


def download(path: str | Path) -> str:
    """Hand a file to the person's browser, and return a sentence about it. Outside Colab it lies where it lies.

    Raises MachineError where the file is not there or the browser did not take it.
    """
    if not in_colab() or not somebody_is_here():
        return f"The file is {path}."
    try:
        _part("files").download(str(path))
    except FileNotFoundError as error:
        raise MachineError(f"There is no file {path} to download. Run the cell that makes it first.") from error
    except Exception as error:  # MessageError and others, each with a text of its own
        raise MachineError(
            f"The browser did not take {Path(path).name} ({_reason(error)}). Allow downloads from "
            f"colab.research.google.com and run the cell again, or click the folder on the left and download "
            f"{path} there."
        ) from error
    return f"Your browser downloads {Path(path).name}."


def key(name: str) -> SecretStr | None:
    """A key that stands in no file: the environment variable of that name, else the secret in Colab. Raises as secret.

    Colab is asked only where the environment has none.
    """
    text = os.environ.get(name, "").strip()
    return SecretStr(text) if text else secret(name)


def secret(name: str) -> SecretStr | None:
    """One of the person's secrets in Colab (the key on the left); None where there is none, or nobody to ask for it.

    Raises SettingsError where this notebook may not read it, MachineError where Colab does not answer.
    """
    if not in_colab() or not somebody_is_here():
        return None
    try:
        text = str(_part("userdata").get(name) or "").strip()
    except Exception as error:
        # By name: NotebookAccessError is none of google.colab's own errors, and where they are kept has moved.
        if type(error).__name__ == "SecretNotFoundError":
            return None
        raise _withheld(name, error) from None
    return SecretStr(text) if text else None


def _withheld(name: str, error: Exception) -> LaceError:
    if type(error).__name__ == "NotebookAccessError":
        return SettingsError(
            f"Colab has the secret {name}, but this notebook may not read it. Click the key on the left and switch on "
            "“Notebook access” beside it."
        )
    return MachineError(
        f"Colab did not answer when it was asked for the secret {name} ({_reason(error)}). Keep this page open in your "
        "browser and run the cell again."
    )


@contextmanager
def _sentences(drive_mount_path: str) -> Iterator[None]:
    """Turn what drive.mount raises into a MachineError."""
    try:
        yield
    except NotImplementedError as error:
        raise MachineError(_NO_DRIVE_HERE) from error
    except Exception as error:
        raise MachineError(_refusal(drive_mount_path, error)) from error


def _refusal(drive_mount_path: str, error: Exception) -> str:
    text = str(error).casefold()
    for words, sentence in _REFUSED:
        if isinstance(error, ValueError) and any(word in text for word in words):
            return sentence.format(path=drive_mount_path)
    # A consent that was cancelled or closed: "Error: credential propagation was unsuccessful".
    if type(error).__name__ == "MessageError" or "credential" in text or "oauth" in text:
        return _CANCELLED
    return (
        f"Drive could not be mounted at {drive_mount_path}: {_reason(error)}. Run the cell again and allow access in "
        "the window that opens; if that does not help: Runtime → Disconnect and delete runtime, then run the "
        "notebook again."
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _part(name: str) -> ModuleType:
    """google.colab.drive, .files or .userdata, which exist in Colab only; each alone, since not every Colab has all."""
    return import_module(f"google.colab.{name}")
