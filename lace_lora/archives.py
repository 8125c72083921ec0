"""Zips whose bytes depend on nothing but the names and contents in them, whenever and wherever they are written."""

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from lace_lora.checkpoint import write_file

_PACKED = {".png", ".jpg", ".jpeg", ".safetensors"}  # deflating these again saves nothing
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can hold


def write(target: Path, contents: Mapping[str, Path]) -> Path:
    """Write a zip, whole or not at all.

    contents  the file for each name in the zip, with `/` between folders; written in the order of the names
    """

    def pack(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, path in sorted(contents.items()):
                entry = zipfile.ZipInfo(name, _LONG_AGO)
                entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Linux, on every system
                is_packed = PurePosixPath(name).suffix.casefold() in _PACKED
                entry.compress_type = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())

    write_file(target, pack)
    return target
