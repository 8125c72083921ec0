"""The install cell's function: only what is missing, nothing replaced, no torch loaded (L2)."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lace_lora import config, install
from lace_lora.errors import MachineError
from tests.generated import ROOT


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


@pytest.fixture
def pip(monkeypatch):
    """Notes what pip would be told, as (its words, the constraints); answers with `fails`, a log, where one is set."""
    said = SimpleNamespace(calls=[], fails="")

    def run(line, **_):
        pinned = Path(line[line.index("-c") + 1]).read_text(encoding="utf-8")
        said.calls.append((line, pinned.splitlines()))
        return subprocess.CompletedProcess(line, 1 if said.fails else 0, "", said.fails)

    monkeypatch.setattr(install.subprocess, "run", run)
    return said


def test_pip_is_given_the_constraints_and_never_told_to_upgrade_or_to_compile(pip):
    """L2."""
    install._pip(["peft>=0.18"])
    ((line, pinned),) = pip.calls
    assert line[-1] == "peft>=0.18" and not {"-U", "--upgrade", "--force-reinstall"} & set(line)
    assert line[line.index("--only-binary") + 1] == ":all:" and f"torch=={metadata.version('torch')}" in pinned


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (
            "ERROR: No matching distribution found for peft (from versions: none)",
            "connected to the internet. Run the cell",
        ),
        (
            "ERROR: ResolutionImpossible: for help visit",
            "What is here already does not go with it, and is not replaced",
        ),
        (
            "ERROR: Could not find a version that satisfies x (from versions: 1.0, 1.1)",
            "no ready-made file of it for this",
        ),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("/usr/bin/python3: No module named pip", "This Python has no pip"),
    ],
)
def test_a_failure_of_pip_is_a_sentence_with_its_log(pip, log, sentence):
    """L2: offline, and the others."""
    pip.fails = log
    with pytest.raises(
        MachineError, match=f"could not install peft>=0.18; nothing here was changed. .*{sentence}"
    ) as error:
        install._pip(["peft>=0.18"])
    assert str(error.value).endswith(log)


def test_the_sentence_stands_alone_also_before_a_page_is_opened(monkeypatch):
    """L2: in IPython; `notebook.open_page` needs ipywidgets, which may be what is missing."""
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setattr(install, "_installed", lambda name: "1.0")
    shown = []
    shell = InteractiveShell()
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, error, lines: shown.append(lines))
    shell.run_cell("from lace_lora import install; install.missing()")
    ((line,),) = shown
    assert line.startswith("Too old here: torch 1.0")


def test_another_version_on_the_disk_than_the_loaded_one_asks_for_a_restart(monkeypatch):
    """L2: and only then."""
    assert install.stale() == []
    version = metadata.version
    monkeypatch.setattr(install, "_installed", lambda name: "99.1" if name == "peft" else version(name))
    monkeypatch.delitem(sys.modules, "peft", raising=False)  # another test may have loaded it
    install.missing(str)
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace(__version__="99.1+cpu"))
    install.missing(str)
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace(__version__="99.0"))
    with pytest.raises(MachineError, match="works with the peft 99.0 that it .* Runtime → Restart session"):
        install.missing(str)


def test_another_wheel_of_the_same_version_asks_for_a_restart_too(monkeypatch):
    """L2: a wheel that is built again keeps its number; its files' digests tell them apart, where it lay does not."""
    a, b = (f"lace_lora/train.py,sha256={digest},120" for digest in ("abc", "xyz"))
    one, other = (f"lace_lora-0.1.0.dist-info/direct_url.json,sha256={digest},1" for digest in ("kl", "mn"))
    digests = []
    for listed in (f"{a}\n{one}\n", f"{a}\n{other}\n", f"{b}\n{one}\n"):
        with monkeypatch.context() as patched:
            found = SimpleNamespace(read_text={"RECORD": listed}.get)
            patched.setattr(install.metadata, "distribution", lambda name, found=found: found)
            digests.append(install._on_disk())
    assert digests[0] == digests[1] != digests[2]
    monkeypatch.setattr(install, "_on_disk", lambda: digests[2])
    monkeypatch.setattr(install, "_LOADED", digests[2])
    assert install.stale() == []
    monkeypatch.setattr(install, "_LOADED", digests[0])
    with pytest.raises(MachineError, match="still works with the Lace LoRA that it loaded before. Nothing is lost"):
        install.missing(str)


def test_out_of_a_wheel_the_requirements_are_those_of_its_metadata(monkeypatch, tmp_path):
    """L2: in a checkout those of pyproject.toml, whatever else is installed."""
    in_checkout = {need.requirement for need in install.needs()}
    assert {"torch>=2.9", "ipywidgets>=7.7"} <= in_checkout and "bitsandbytes>=0.46" not in in_checkout
    monkeypatch.setattr(install, "__file__", str(tmp_path / "lace_lora/install.py"))
    lines = ["torch>=2.10", 'ipykernel>=6; extra == "notebooks"', 'bitsandbytes>=0.44; extra == "training"']
    monkeypatch.setattr(install.metadata, "requires", lambda name: lines)
    assert [need.requirement for need in install.needs()] == ["torch>=2.10", "ipykernel>=6"]
    assert install._need("bitsandbytes").requirement == "bitsandbytes>=0.44"

    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(install.metadata, "requires", unknown)
    assert install.needs() == []


# -- what Colab has preinstalled --

LISTS = sorted((ROOT / "tests/colab").glob("20*.txt"))
TOO_OLD = "2026-01"
lists_that_will_do = pytest.mark.parametrize(
    "path", [path for path in LISTS if path.stem != TOO_OLD], ids=lambda p: p.stem
)


def pinned_in(path):
    """A list of packages as {name: version}."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.M))


def colab(monkeypatch, path):
    """Let importlib.metadata know a list of packages and nothing else."""
    plain = {canonicalize_name(name): version for name, version in pinned_in(path).items()}

    def version(name):
        if canonicalize_name(name) not in plain:
            raise metadata.PackageNotFoundError(name)
        return plain[canonicalize_name(name)]

    found = [SimpleNamespace(metadata={"Name": name, "Version": number}) for name, number in pinned_in(path).items()]
    monkeypatch.setattr(install.metadata, "version", version)
    monkeypatch.setattr(install.metadata, "distributions", lambda: iter(found))
    monkeypatch.setattr(install, "stale", list)


def test_lists_of_several_releases_are_kept():
    """L2: over the moves of torch, diffusers, transformers and Python within 2026."""
    torches = [pinned_in(path)["torch"] for path in LISTS]
    assert torches == ["2.9.0+cu126", "2.9.0+cu128", "2.11.0+cu128", "2.11.0+cu128"]


@lists_that_will_do
def test_colab_has_everything_that_a_notebook_needs(path, monkeypatch, pip, capsys):
    """L2: nothing is fetched; papermill and bitsandbytes are not there, and not asked for."""
    colab(monkeypatch, path)
    assert not {"papermill", "bitsandbytes"} & set(pinned_in(path))
    assert all(need.is_met for need in install.needs()) and len(install.needs()) >= 15
    install.missing()
    assert pip.calls == [] and "nothing was replaced" in capsys.readouterr().out


@lists_that_will_do
def test_the_floors_are_met_by_what_colab_has_so_that_nothing_there_is_replaced(path):
    """L2: every requirement, of the core and of every extra, and of requirements.txt."""
    have = {canonicalize_name(name): version for name, version in pinned_in(path).items()}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    wanted += [Requirement(line) for line in install._declared()]
    known = [one for one in wanted if canonicalize_name(one.name) in have]
    unmet = [
        str(one) for one in known if not one.specifier.contains(have[canonicalize_name(one.name)], prereleases=True)
    ]
    assert unmet == [] and len(known) >= 30


@lists_that_will_do
def test_what_settings_ask_for_is_brought_with_everything_on_colab_held(path, monkeypatch, pip):
    """L2, P14: pip is told the missing package alone, and a constraint for each of Colab's own."""
    colab(monkeypatch, path)
    chosen = config.load(
        optimizer="adamw8bit", quantization="nf4", log_with="tensorboard", image_types=[".jpg", ".heic"]
    )
    install.for_settings(chosen, str)
    ((line, constraints),) = pip.calls
    assert line[line.index("-c") + 2 :] == ["bitsandbytes>=0.46", "pillow-heif>=0.16"]
    assert sorted(constraints) == sorted(f"{name}=={version}" for name, version in pinned_in(path).items())


def test_a_release_before_transformers_5_is_refused_and_nothing_is_changed(monkeypatch, pip):
    """L2."""
    (path,) = [path for path in LISTS if path.stem == TOO_OLD]
    colab(monkeypatch, path)
    with pytest.raises(MachineError, match=r"Too old here: transformers 4.57.3, huggingface_hub 0.36.0. Nothing was"):
        install.missing(str)
    assert pip.calls == []


def test_a_number_that_pip_cannot_read_does_not_spoil_the_constraints(monkeypatch):
    """L2."""
    found = [
        {"Name": "torch", "Version": "2.11.0+cu128"},
        {"Name": "old", "Version": "2004d-x"},
        {"Name": None, "Version": "1"},
    ]
    monkeypatch.setattr(install.metadata, "distributions", lambda: [SimpleNamespace(metadata=one) for one in found])
    assert install.constraints() == ["torch==2.11.0+cu128"]


# -- what settings ask for --


def test_what_the_settings_ask_for_is_told_before_a_run():
    """P14, P18: and nothing where they ask for nothing."""
    assert install.wishes(config.load(log_with="none")) == []
    asked = config.load(optimizer="prodigy", quantization="nf4", log_with="wandb", outline=True, image_types=[".heic"])
    found = {wish.setting: wish.need.requirement for wish in install.wishes(asked)}
    assert found == {
        "optimizer prodigy": "prodigyopt>=1.1",
        "quantization nf4": "bitsandbytes>=0.46",
        "log_with wandb": "wandb",
        "outline": "vtracer>=0.6",
        "image_types .heic": "pillow-heif>=0.16",
    }


def test_the_table_of_wishes_is_that_of_the_rooms_that_import_the_packages():
    """P14, P18: names of settings and of choices are real ones."""
    from lace_lora import optimizers, outlines

    assert install.ASKED_FOR["optimizer"] == optimizers._PACKAGES
    assert set(install.ASKED_FOR["outline"].values()) == {outlines.PACKAGE}
    for setting, packages in install.ASKED_FOR.items():
        for choice in packages:
            value = True if choice == "True" else [choice] if setting == "image_types" else choice
            assert install.wishes(config.load(**{"log_with": "none", setting: value}))


def test_a_package_that_is_here_is_not_brought_again(pip, capsys):
    """L2."""
    install.add("peft", "pillow")
    assert pip.calls == [] and capsys.readouterr().out == ""
    install.add("no-such-package-of-lace", say=str)
    assert pip.calls[0][0][-1] == "no-such-package-of-lace"


def test_looking_at_the_machine_and_its_packages_loads_no_torch():
    code = "from lace_lora import install; install.missing(); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
