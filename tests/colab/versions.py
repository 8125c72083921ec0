"""Holds an environment against Colab's own versions; `make test-colab` runs it before and after installing ours.

python -m tests.colab.versions              fails when a package here is not the one that Colab has
python -m tests.colab.versions constraints  what pip is held to: Colab's versions, and ours for what Colab lacks
python -m tests.colab.versions torch-free   what to install for the tests that need no torch
"""

import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
COLABS = HERE / "constraints.txt"
ROOT = HERE.parent.parent
OURS = ROOT / "constraints.txt"
OWN_NAME = "lace-lora"
# Packages that are of no use without torch, or bring it.
NEED_TORCH = {"torch", "accelerate", "diffusers", "peft", "tokenizers", "transformers", "trl"}
# Not among Colab's, and in our newest version wants a newer one of Colab's (datasets): the newest that goes with it.
INSTEAD = {"trl": Requirement("trl==0.29.1")}


def pinned(path: Path) -> dict[str, Requirement]:
    """The lines `name==version` of a file, by the package's canonical name."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = (Requirement(line) for line in lines if line)
    return {canonicalize_name(one.name): one for one in found}


def installed() -> dict[str, str]:
    """What this interpreter finds, by canonical name: the same as `pip freeze --all`."""
    return {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}


def constraints() -> list[str]:
    """Colab's lines, then the project's own for packages that Colab does not bring: no day's build differs."""
    colabs = pinned(COLABS)
    return [str(one) for name, one in {**pinned(OURS), **INSTEAD, **colabs}.items() if name != OWN_NAME]


def torch_free() -> list[str]:
    """Colab's packages but torch and what rests on it, and the project's extras for notebooks and tests."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = declared["optional-dependencies"]
    colabs = [str(one) for name, one in pinned(COLABS).items() if name not in NEED_TORCH]
    others = [line for line in extras["test"] if canonicalize_name(Requirement(line).name) not in NEED_TORCH]
    return [*colabs, *extras["notebooks"], *others]


def differing(found: Mapping[str, str], wanted: Mapping[str, Requirement]) -> list[str]:
    """A sentence for each package that is not as wanted; a package that is missing is none (see `missing`).

    A local part (2.13.0+cpu) is no difference where the wanted version names none.
    """
    return [
        f"{one.name} {found[name]} is installed, and Colab has {one.specifier}"
        for name, one in wanted.items()
        if name in found and not one.specifier.contains(Version(found[name]), prereleases=True)
    ]


def missing(found: Iterable[str], wanted: Mapping[str, Requirement]) -> list[str]:
    """Packages of Colab's that are not installed here."""
    return [one.name for name, one in wanted.items() if name not in set(found)]


def check() -> int:
    """Print how this environment differs from Colab's; 1 when it does."""
    colabs, here = pinned(COLABS), installed()
    wrong, absent = differing(here, colabs), missing(here, colabs)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    same = len(colabs) - len(wrong) - len(absent)
    print(f"{same} of {len(colabs)} packages are Colab's own versions; not installed: {', '.join(absent) or 'none'}.")
    print(f"Beside them: {', '.join(sorted(set(here) - set(colabs)))}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    lists = {"constraints": constraints, "torch-free": torch_free}
    if len(sys.argv) == 1:
        sys.exit(check())
    print(*lists[sys.argv[1]](), sep="\n")
