"""What a notebook's install cell calls: brings in what is missing and leaves everything that is there as it is.

Nothing here imports torch or any other library: versions are read from what lies on the disk, so a notebook on Colab
keeps the torch that Colab has tuned to its GPUs, and an already loaded module is never pulled away under a session.
What it cannot do is a sentence in the cell, not a traceback.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lace_lora.errors import MachineError

if TYPE_CHECKING:
    from lace_lora.config import Config

OURS = "lace-lora"
# What a notebook needs beside the package itself.
NOTEBOOK_EXTRA = "notebooks"
# papermill runs notebooks from a command line; inside a notebook nothing asks for it, and Colab does not bring it.
NOT_NEEDED_INSIDE = frozenset({"papermill"})
# Where a module is not called as its package is.
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
# What a choice of a setting needs beside all that; a test holds it against the rooms that import these packages.
ASKED_FOR = {
    "optimizer": {
        "adamw8bit": "bitsandbytes",
        "paged_adamw8bit": "bitsandbytes",
        "prodigy": "prodigyopt",
        "schedulefree": "schedulefree",
    },
    "quantization": {"nf4": "bitsandbytes"},
    "log_with": {"tensorboard": "tensorboard", "wandb": "wandb"},
    "outline": {"True": "vtracer"},
    "image_types": {".heic": "pillow-heif", ".heif": "pillow-heif"},
}
RESTART = (
    "This notebook still works with the {names} that it loaded before. Nothing is lost: choose Runtime → Restart "
    "session (in JupyterLab: Kernel → Restart Kernel), then run the notebook from the top."
)


class Need(NamedTuple):
    """One requirement of the package, and the version found on this machine (None: not installed)."""

    name: str
    requirement: str
    found: str | None
    is_met: bool


class Wish(NamedTuple):
    """What a setting needs that not everyone does, such as "optimizer prodigy" and prodigyopt."""

    setting: str
    need: Need


def needs() -> list[Need]:
    """Every requirement of the package and of its notebooks, held against what is installed."""
    return [need for need in _wanted(("", NOTEBOOK_EXTRA)) if need.name not in NOT_NEEDED_INSIDE]


def wishes(config: "Config") -> list[Wish]:
    """What the chosen settings need beside `needs`: packages that are fetched only where a setting asks for them."""
    found = []
    for setting, packages in ASKED_FOR.items():
        value = getattr(config, setting)
        for choice in value if isinstance(value, tuple) else (value,):
            if package := packages.get(str(choice)):
                found.append(Wish(setting if choice is True else f"{setting} {choice}", _need(package)))
    return found


def constraints() -> list[str]:
    """A line `name==version` for each thing installed here: given to pip, they keep it from replacing any of them."""
    version = _packaging().version
    lines: dict[str, str] = {}
    for found in metadata.distributions():
        name, number = found.metadata["Name"], found.metadata["Version"]
        if name and number and _plain(name) != OURS:
            try:
                version.Version(number)
            except version.InvalidVersion:  # pip would refuse the whole list for one old-fashioned number
                continue
            lines.setdefault(_plain(name), f"{name}=={number}")
    return sorted(lines.values())


def missing(say: Callable[[str], None] = print) -> None:
    """Install what Lace LoRA needs and this machine lacks; run twice, the second time finds nothing to do.

    Raises MachineError when something here is too old (it is never replaced behind your back), when this session has
    loaded another version than the one on the disk, or when pip fails.
    """
    with _told():
        found = needs()
        _refuse_old(found)
        absent = [need for need in found if need.found is None]
        if not absent:
            say("Everything that Lace LoRA needs is here already: nothing was installed, nothing was replaced.")
        else:
            _bring(absent, say)
            others = len(found) - len(absent)
            say(f"Installed {len(absent)} of {len(found)} packages; the other {others} stayed as they are.")
        if names := stale():
            raise MachineError(RESTART.format(names=", ".join(names)))


def for_settings(config: "Config", say: Callable[[str], None] = print) -> None:
    """Install what the chosen settings need and this machine lacks, so that no run fails for it an hour later.

    Raises MachineError as `missing` does.
    """
    add(*dict.fromkeys(wish.need.name for wish in wishes(config)), say=say)


def add(*packages: str, say: Callable[[str], None] = print) -> None:
    """Install these packages where they are missing, in a version that Lace LoRA works with. Raises as `missing`."""
    with _told():
        wanted = [_need(package) for package in packages]
        _refuse_old(wanted)
        if absent := [need for need in wanted if need.found is None]:
            _bring(absent, say)
            say(f"Installed {len(absent)}; everything else stayed as it is, and nothing has to be restarted.")


def extra(name: str, say: Callable[[str], None] = print) -> None:
    """The same for one of the package's extras, such as text."""
    own = {need.name for need in _wanted(("",))}
    wanted = [need for need in _wanted((name,)) if need.name not in own]
    add(*(need.name for need in wanted), say=say)
    if all(need.found is not None for need in wanted):
        say("All that this needs is here already: nothing was installed.")


def stale() -> list[str]:
    """What this session has loaded and is another version on the disk by now: "numpy 2.0.2"; most often nothing."""
    found = ["Lace LoRA"] if _on_disk() != _LOADED else []
    for need in needs():
        module = sys.modules.get(MODULES.get(need.name, need.name.replace("-", "_")))
        loaded = getattr(module, "__version__", None)
        if isinstance(loaded, str) and need.found and _public(loaded) != _public(need.found):
            found.append(f"{need.name} {loaded}")
    return found


def _bring(needed: Iterable[Need], say: Callable[[str], None]) -> None:
    requirements = [need.requirement for need in needed]
    say(f"Installing what is missing: {', '.join(requirements)} …")
    _pip(requirements)


def _refuse_old(found: Iterable[Need]) -> None:
    old = [need for need in found if need.found is not None and not need.is_met]
    if old:
        here = ", ".join(f"{need.name} {need.found}" for need in old)
        wanted = " ".join(f'"{need.requirement}"' for need in old)
        raise MachineError(
            f"Too old here: {here}. Nothing was changed. In Colab: Runtime → Disconnect and delete runtime, then run "
            f"from the top. On your own computer: type pip install {wanted} and restart the notebook."
        )


def _pip(requirements: list[str]) -> None:
    """Never -U; and ready-made wheels only, since compiling takes minutes and fails for reasons of its own."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "constraints.txt"
        pinned.write_text("\n".join(constraints()) + "\n", encoding="utf-8")
        line = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        line += ["--retries", "2", "--only-binary", ":all:", "-c", str(pinned), *requirements]
        done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        log = (done.stdout + done.stderr).strip()
        raise MachineError(
            f"pip could not install {', '.join(requirements)}; nothing here was changed. {_what_to_do(log)} "
            f"This is what pip said:\n{log[-2000:]}"
        )


def _what_to_do(log: str) -> str:
    """What to do about a failure of pip, by its log."""
    if re.search(r"No module named '?pip\b", log):
        return "This Python has no pip: start the notebook from an environment that has it."
    if "No space left" in log:
        return "The disk is full: free some space and run the cell again."
    if re.search("ResolutionImpossible|conflicting dependencies|conflict is caused", log):
        return (
            "What is here already does not go with it, and is not replaced. In Colab: Runtime → Disconnect and delete "
            "runtime, then run from the top; on your own computer, make a new environment."
        )
    if re.search(r"from versions: \d|none of the wheels|Ignored the following", log):
        return "There is no ready-made file of it for this Python. Take another setting, or another version of Python."
    return "Is this machine connected to the internet? Run the cell again."


def _wanted(extras: Iterable[str]) -> list[Need]:
    """The requirements that hold with any of these extras ("" is the package alone)."""
    parse = _packaging().requirements.Requirement
    found = []
    for requirement in map(parse, _declared()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            version = _installed(requirement.name)
            met = version is not None and requirement.specifier.contains(version, prereleases=True)
            found.append(Need(requirement.name, f"{requirement.name}{requirement.specifier}", version, met))
    return found


def _need(package: str) -> Need:
    """A package with the floor that it is declared with in any extra; without one, where it is in none."""
    have = _installed(package)
    declared = {_plain(need.name): need for need in _wanted(_extras())}
    return declared.get(_plain(package), Need(package, package, have, have is not None))


def _extras() -> list[str]:
    return sorted(set(re.findall(r"extra == ['\"]([\w-]+)['\"]", " ".join(_declared()))))


def _declared() -> list[str]:
    """The package's own requirements: from pyproject.toml where it runs out of a checkout, or from its metadata."""
    file = Path(__file__).parent.parent / "pyproject.toml"
    if not file.is_file():
        try:
            return list(metadata.requires(OURS) or [])
        except metadata.PackageNotFoundError:
            return []
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    return [*project["dependencies"], *(f"{line}; extra == '{extra}'" for extra, lines in extras for line in lines)]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _on_disk() -> str:
    """What tells one installed wheel of ours from another, also of the same version: its own list of files' digests."""
    try:
        listed = metadata.distribution(OURS).read_text("RECORD") or ""
    except metadata.PackageNotFoundError:
        return ""
    ours = sorted(line for line in listed.splitlines() if re.match(r"lace_lora/.*,sha256=", line))
    return hashlib.sha256("\n".join(ours).encode()).hexdigest()


def _public(version: str) -> str:
    """A version without its local part: a CPU build says 2.13.0+cpu of itself and 2.13.0 on the disk."""
    return version.partition("+")[0]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).casefold()


def _packaging() -> Any:
    """The library that reads requirements; a bare Python has it inside pip only."""
    try:
        import packaging.requirements
        import packaging.version
    except ImportError:
        import pip._vendor.packaging.requirements
        import pip._vendor.packaging.version

        return pip._vendor.packaging
    return packaging


@contextmanager
def _told() -> Iterator[None]:
    """Let IPython draw a MachineError as its sentence, also before `notebook.open_page` (which needs ipywidgets)."""
    try:
        yield
    except MachineError as error:
        sentence = str(error)
        error._render_traceback_ = lambda: [sentence]  # type: ignore[attr-defined]
        raise


_LOADED = _on_disk()  # as this session has it: read once, when the room is loaded
