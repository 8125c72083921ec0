"""What a notebook's install cell calls: brings in what is missing and leaves everything that is there as it is.

Nothing here imports torch or any other library: versions are read from what lies on the disk, so a notebook on Colab
keeps the torch that Colab has tuned to its GPUs, and an already loaded module is never pulled away under a session.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from lace_lora.errors import MachineError

# Where the project can be fetched by everyone, as owner/name on GitHub. There is no such place yet: the badges then
# open Colab's start page, where a notebook is uploaded by hand, and install cells look on this machine and in Drive.
PUBLIC_ADDRESS = ""
BRANCH = "main"
# What a notebook needs beside the package itself.
NOTEBOOK_EXTRA = "notebooks"
# papermill runs notebooks from a command line; inside a notebook nothing asks for it, and Colab does not bring it.
NOT_NEEDED_INSIDE = frozenset({"papermill"})


class Need(NamedTuple):
    """One requirement of the package, and the version found on this machine (None: not installed)."""

    name: str
    requirement: str
    found: str | None
    is_met: bool


def badge(notebook: str) -> str:
    """The "Open in Colab" badge of a notebook, in Markdown."""
    start = "https://colab.research.google.com/"
    address = f"{start}github/{PUBLIC_ADDRESS}/blob/{BRANCH}/notebooks/{notebook}" if PUBLIC_ADDRESS else start
    return f"[![Open in Colab]({start}assets/colab-badge.svg)]({address})"


def needs() -> list[Need]:
    """Every requirement of the package and of its notebooks, held against what is installed."""
    from packaging.requirements import Requirement

    found = []
    for line in _declared():
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", NOTEBOOK_EXTRA)
        )
        if wanted and requirement.name not in NOT_NEEDED_INSIDE:
            version = _installed(requirement.name)
            met = version is not None and requirement.specifier.contains(version, prereleases=True)
            found.append(Need(requirement.name, f"{requirement.name}{requirement.specifier}", version, met))
    return found


def constraints() -> list[str]:
    """A line `name==version` for each thing installed here: given to pip, they keep it from replacing any of them."""
    lines: dict[str, str] = {}
    for found in metadata.distributions():
        name, version = found.metadata["Name"], found.metadata["Version"]
        if name and version and name.casefold().replace("_", "-") != "lace-lora":
            lines.setdefault(name.casefold().replace("_", "-"), f"{name}=={version}")
    return sorted(lines.values())


def missing(say: Callable[[str], None] = print) -> None:
    """Install what Lace LoRA needs and this machine lacks; run twice, the second time finds nothing to do.

    Raises MachineError when something here is too old (it is never replaced behind your back) or pip fails.
    """
    found = needs()
    old = [need for need in found if need.found is not None and not need.is_met]
    if old:
        here = ", ".join(f"{need.name} {need.found}" for need in old)
        wanted = " ".join(f'"{need.requirement}"' for need in old)
        raise MachineError(
            f"Too old here: {here}. Nothing was changed. In Colab: Runtime → Disconnect and delete runtime, then run "
            f"from the top. On your own computer: type pip install {wanted} and restart the notebook."
        )
    absent = [need.requirement for need in found if need.found is None]
    if not absent:
        say("Everything that Lace LoRA needs is here already: nothing was installed, nothing was replaced.")
        return
    say(f"Installing what is missing: {', '.join(absent)} …")
    _pip(absent)
    say(f"Installed {len(absent)} of {len(found)} packages; the others were here already and stayed as they are.")


def _pip(requirements: Iterable[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "constraints.txt"
        pinned.write_text("\n".join(constraints()) + "\n", encoding="utf-8")
        line = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*line, "-c", str(pinned), *requirements], capture_output=True, text=True)
    if done.returncode:
        log = (done.stdout + done.stderr).strip()
        raise MachineError(
            f"pip could not install {', '.join(requirements)}. Is this machine connected to the internet? "
            f"Run the cell again; if it fails again, this is what pip said:\n{log[-2000:]}"
        )


def _declared() -> list[str]:
    """The package's own requirements: from its metadata, or from pyproject.toml where it runs out of a checkout."""
    try:
        return list(metadata.requires("lace-lora") or [])
    except metadata.PackageNotFoundError:
        file = Path(__file__).parent.parent / "pyproject.toml"
        if not file.is_file():
            return []
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extra = project["optional-dependencies"][NOTEBOOK_EXTRA]
        return [*project["dependencies"], *(f"{line}; extra == '{NOTEBOOK_EXTRA}'" for line in extra)]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
