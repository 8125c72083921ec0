"""The install cell's function and the preflight: only what is missing, nothing replaced, no torch loaded."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from lace_lora import config, install, preflight, presets
from lace_lora.errors import MachineError
from lace_lora.machine import Machine


def test_everything_that_the_package_and_its_notebooks_need_is_found():
    found = {need.name: need for need in install.needs()}
    assert {"torch", "diffusers", "peft", "pydantic", "ipywidgets", "ipykernel"} <= set(found)
    assert "papermill" not in found and "pytest" not in found
    assert all(need.is_met and need.found == metadata.version(need.name) for need in found.values())


def test_where_nothing_is_missing_nothing_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(install, "_pip", lambda wanted: pytest.fail("pip was called"))
    install.missing()
    install.missing()
    assert capsys.readouterr().out.count("nothing was installed, nothing was replaced") == 2


def test_only_what_is_missing_is_installed(monkeypatch):
    called, said = [], []
    version = metadata.version
    monkeypatch.setattr(install, "_installed", lambda name: None if name == "peft" else version(name))
    monkeypatch.setattr(install, "_pip", lambda wanted: called.append(list(wanted)))
    install.missing(said.append)
    assert [[name.partition(">")[0] for name in names] for names in called] == [["peft"]]
    assert "Installing what is missing: peft" in said[0]


def test_what_is_too_old_is_said_and_never_replaced(monkeypatch):
    version = metadata.version
    monkeypatch.setattr(install, "_installed", lambda name: "2.1.0+cu118" if name == "torch" else version(name))
    monkeypatch.setattr(install, "_pip", lambda wanted: pytest.fail("pip was called"))
    with pytest.raises(
        MachineError, match=r'^Too old here: torch 2.1.0\+cu118. Nothing .*pip install "torch>='
    ) as error:
        install.missing()
    assert "In Colab: Runtime → Disconnect and delete runtime, then run from the top." in str(error.value)


def test_constraints_hold_every_installed_version_also_that_of_colabs_torch(monkeypatch):
    lines = install.constraints()
    assert f"torch=={metadata.version('torch')}" in lines
    assert not [line for line in lines if line.startswith("lace")]
    assert len({line.partition("==")[0].casefold() for line in lines}) == len(lines)


def test_pip_is_given_the_constraints_and_never_told_to_upgrade(monkeypatch):
    lines = []

    def run(line, **_):
        pinned = line[line.index("-c") + 1]
        lines.append((line, Path(pinned).read_text(encoding="utf-8")))
        return subprocess.CompletedProcess(line, 0, "", "")

    monkeypatch.setattr(install.subprocess, "run", run)
    install._pip(["peft>=0.18"])
    line, pinned = lines[0]
    assert line[-1] == "peft>=0.18" and not {"-U", "--upgrade", "--force-reinstall"} & set(line)
    assert f"torch=={metadata.version('torch')}\n" in pinned


def test_without_a_network_the_cell_fails_with_a_sentence_and_pips_log(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for peft")
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(MachineError, match="Is this machine connected to the internet(.|\n)*No matching distribution"):
        install._pip(["peft>=0.18"])


def test_out_of_a_checkout_the_requirements_are_those_of_pyproject(monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    installed = {need.requirement for need in install.needs()}
    monkeypatch.setattr(install.metadata, "requires", unknown)
    assert {need.requirement for need in install.needs()} == installed


def test_looking_at_the_machine_and_its_packages_loads_no_torch():
    code = "from lace_lora import install; install.missing(); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_badge_opens_the_notebook_once_there_is_an_address(monkeypatch):
    assert install.badge("01_set_up.ipynb").endswith("(https://colab.research.google.com/)")
    monkeypatch.setattr(install, "PUBLIC_ADDRESS", "somebody/lace")
    whole = "(https://colab.research.google.com/github/somebody/lace/blob/main/notebooks/01_set_up.ipynb)"
    assert install.badge("01_set_up.ipynb").endswith(whole)


# -- preflight --


def rows(tmp_path, **given):
    """The preflight's rows by name."""
    here = {"images_dir": str(tmp_path / "pictures"), "lora_output_dir": str(tmp_path / "out"), "preset": "none"}
    settled = presets.settle(config.load(**here | given), Machine.here())
    return {name: (found, good, advice) for name, found, good, advice in preflight.rows(settled, Machine.here())}


def test_preflight_counts_the_photographs_or_says_what_to_do(tmp_path, lace_folder):
    found = rows(tmp_path)
    assert found["photographs"] == (f"6 in {lace_folder}", True, "")
    assert found["results"][1] and found["torch"][:2] == (metadata.version("torch"), True)
    assert {"GPU", "memory", "disk", "Python", "diffusers", "ipywidgets"} <= set(found)
    gone, good, advice = rows(tmp_path, images_dir=str(tmp_path / "nowhere"))["photographs"]
    assert not good and "nowhere" in advice


def test_preflight_knows_that_the_demo_draws_its_own_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settled = presets.settle(config.load(preset="demo"), Machine.here())
    found = {row[0]: row[1:] for row in preflight.rows(settled, Machine.here())}
    assert found["photographs"] == ("drawn by program on first use, in demo_output/pictures", True, "")


def test_preflight_says_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)
    assert rows(tmp_path)["results"][1:] == (
        False,
        "Choose another lora_output_dir, or mount Drive first: nothing can be written there.",
    )
