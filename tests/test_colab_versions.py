"""The list of Colab's versions, and the check of an environment against it, that `make test-colab` rests on (issue 7).

What Colab has must be good enough for the project's requirements, or its install cell would replace it (L9).
"""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.colab import versions
from tests.generated import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Colab does not bring it; the list says so in its head.
ABSENT = {"papermill"}


def test_what_colab_has_meets_every_requirement_of_ours():
    """L9: so that pip has nothing to replace there."""
    colabs = versions.pinned(versions.COLABS)
    needed = [Requirement(line) for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["notebooks"])]
    assert {one.name for one in needed if canonicalize_name(one.name) not in colabs} == ABSENT
    for one in needed:
        if one.name not in ABSENT:
            (pin,) = colabs[canonicalize_name(one.name)].specifier
            assert pin.operator == "==" and one.specifier.contains(pin.version), f"{one} and Colab's {pin}"


def test_the_packages_that_colab_users_meet_are_pinned_exactly():
    """L9."""
    colabs = versions.pinned(versions.COLABS)
    expected = {
        "diffusers": "0.39.0", "transformers": "5.15.0", "peft": "0.20.0", "accelerate": "1.14.0",
        "huggingface-hub": "1.27.0", "numpy": "2.1.3", "pillow": "11.3.0", "ipywidgets": "7.7.1", "ipykernel": "6.17.1",
        "ipython": "7.34.0", "traitlets": "5.7.1", "jupyter-client": "7.4.9", "notebook": "6.5.7",
        "pydantic": "2.13.4", "typer": "0.27.1",
    }  # fmt: skip
    assert {name: str(colabs[name].specifier) for name in expected} == {
        name: f"=={version}" for name, version in expected.items()
    }


def test_a_package_that_was_replaced_or_is_missing_is_told():
    """L9: the local part of torch is no difference; another version is one."""
    wanted = {name: Requirement(f"{name}=={version}") for name, version in (("torch", "2.13.0"), ("pillow", "11.3.0"))}
    assert versions.differing({"torch": "2.13.0+cpu", "pillow": "11.3.0", "own": "1"}, wanted) == []
    assert versions.differing({"torch": "2.13.1+cpu", "pillow": "13.0.0"}, wanted) == [
        "torch 2.13.1+cpu is installed, and Colab has ==2.13.0",
        "pillow 13.0.0 is installed, and Colab has ==11.3.0",
    ]
    assert versions.missing({"pillow": "11.3.0"}, wanted) == ["torch"]


@pytest.mark.parametrize("same", [True, False])
def test_the_check_fails_when_one_differs(same, monkeypatch, capsys):
    """L9."""
    found = {name: str(one.specifier).removeprefix("==") for name, one in versions.pinned(versions.COLABS).items()}
    monkeypatch.setattr(versions, "installed", lambda: found if same else found | {"numpy": "2.4.6"})
    assert versions.check() == (0 if same else 1)
    assert ("numpy 2.4.6 is installed, and Colab has ==2.1.3" in capsys.readouterr().out) != same


def test_what_colab_lacks_is_held_to_the_projects_own_versions():
    """L9: Colab's version wins where both name one."""
    lines = {canonicalize_name(Requirement(line).name): line for line in versions.constraints()}
    assert lines["numpy"] == "numpy==2.1.3"
    own = versions.pinned(versions.OURS)
    assert lines["papermill"] == str(own["papermill"])
    assert set(own) <= set(lines)


@pytest.mark.parametrize("name", ["torch_free", "short"])
def test_the_lists_of_tests_name_tests_that_exist(name):
    """L9: pytest says nothing of a test that it is told to leave out and cannot find."""
    lines = (ROOT / f"tests/colab/{name}.args").read_text(encoding="utf-8").splitlines()
    named = [line.removeprefix("--deselect=").partition("::") for line in lines]
    assert len(named) > 15 and len(set(lines)) == len(lines)
    for file, _, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_what_is_installed_without_torch_brings_no_torch():
    """L9."""
    names = {canonicalize_name(Requirement(line).name) for line in versions.torch_free()}
    assert not names & versions.NEED_TORCH and {"numpy", "pillow", "ipywidgets", "pytest", "papermill"} <= names
