"""Names of files: how they are compared, shown in messages, kept inside a folder, and made from a sentence."""

import os
import re
import unicodedata
from pathlib import Path

_ON_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # all that Python and other tools take for the end of a line

# A slash, a tilde or a drive letter that begins a word, and folders; then a name. No part of an address on the network.
_ABSOLUTE = re.compile(
    r"""(?<![\w.:/\\~-])(?:file://|~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\s/\\'"()<>]*[/\\])*([^\s/\\'"()<>,;]*)"""
)


def printable(path: str | Path) -> str:
    """A path or name for a message: what cannot be shown (control characters, broken encodings) is spelled out."""
    text = unicodedata.normalize("NFC", str(path))
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def has_broken_unicode(text: str) -> bool:
    """Whether half a character is in it, as in names that are not UTF-8 on disk; such text cannot be written."""
    return any("\ud800" <= sign <= "\udfff" for sign in text)


def line_fault(name: str) -> str:
    """Why a file of this name cannot stand in a line of text, or nothing."""
    if any(sign in name for sign in "\t\0" + LINE_BREAKS) or name.startswith("\ufeff"):
        return "its name holds a tab, a line break or an invisible mark: rename it"
    if has_broken_unicode(name):
        return "its name is not valid Unicode: rename it"
    return ""


def relative_name(folder: Path, path: str | Path) -> str | None:
    """The name by which a picture is known: relative to its folder, with `/`, in Unicode's composed form (NFC).

    `path` is absolute or relative to the folder. None if it leads out of the folder, or to the folder itself.
    """
    if not _can_be_on_disk(str(path)):
        return None
    root = os.path.abspath(folder)
    inside = os.path.relpath(os.path.normpath(os.path.join(root, path)), root)
    if inside.split(os.sep)[0] == os.pardir and os.path.isabs(path):  # the same folder under another name, by a link
        inside = os.path.relpath(os.path.realpath(path), os.path.realpath(root))
    if inside.split(os.sep)[0] in (os.curdir, os.pardir):
        return None
    return unicodedata.normalize("NFC", Path(inside).as_posix())


def _can_be_on_disk(path: str) -> bool:
    """Whether a disk can hold such a name; others, out of a JSON file, make Python's functions raise."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def on_disk(folder: Path, name: str) -> Path | None:
    """The file of that name, also where the disk spells the same name in another Unicode form; None if it is gone."""
    path = folder / name
    if os.path.isfile(path):  # unlike Path.is_file(), False for a name that is too long
        return path
    if name.isascii():
        return None
    here = folder
    for part in name.split("/"):
        found = [entry for entry in entries(here) if unicodedata.normalize("NFC", entry) == part]
        if not found:
            return None
        here = here / min(found)
    return here if os.path.isfile(here) else None


def slug(text: str, longest: int = 60) -> str:
    """A prompt as part of a file name: letters and digits of any script, the rest as single hyphens.

    Never empty, never a path, never a name that Windows keeps for itself.
    """
    signs = [sign if sign.isalnum() else "-" for sign in unicodedata.normalize("NFC", text).casefold()]
    words = [word for word in unicodedata.normalize("NFC", "".join(signs)).split("-") if word]
    short = "-".join(words)[:longest].strip("-")
    reserved = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
    return f"picture-{short}" if short in reserved else short or "picture"


def entries(folder: Path) -> list[str]:
    """The names in a folder; none where it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def public_name(model: str) -> str:
    """A model's name as metadata may carry it: a folder by its own name, since its path tells of somebody's home."""
    if _ON_WINDOWS.match(model):  # as it may stand in a file from there
        return model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    is_path = model.startswith((".", "~", "/")) or Path(model).is_dir()
    return Path(model).expanduser().absolute().name if is_path else model


def without_folders(text: str) -> str:
    """A sentence for somebody elsewhere: of every absolute path in it only the last name, since folders tell of homes.

    A path ends at a space; what follows of a name with spaces stays as it is.
    """
    return _ABSOLUTE.sub(lambda found: found[1], text)
