"""One address: what notebooks and README say of where Lace LoRA comes from is what address.py declares (L2, L20)."""

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from lace_lora import address
from tests import generated, store_address
from tests.generated import ROOT

BOOKS = {path.relative_to(store_address.NOTEBOOKS).as_posix(): path for path in store_address.notebooks()}
every_notebook = pytest.mark.parametrize("name", BOOKS)


@pytest.fixture(params=["nothing", "GitHub", "index", "both"])
def published(request, monkeypatch):
    """Where the project is public: nowhere, or where it may be one day."""
    monkeypatch.setattr(address, "GITHUB", "somebody/lace-lora" if request.param in ("GitHub", "both") else "")
    monkeypatch.setattr(address, "INDEX", "lace-lora" if request.param in ("index", "both") else "")
    return request.param


def book(name):
    """A notebook as it is stored."""
    return nbformat.read(BOOKS[name], 4)


@every_notebook
def test_every_notebook_says_what_is_declared(name):
    """L20: a failure is mended by `make address`. Only the source of cells is written: outputs stay as they are."""
    stored = book(name)
    assert store_address.written(book(name), name) == stored


def test_the_numbered_notebooks_are_all_among_them():
    """L2."""
    assert {path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")} <= set(BOOKS)


@every_notebook
def test_writing_twice_changes_nothing_and_leaves_what_people_wrote(name, published):
    """L20: with any address, and going back to none gives the file as it is stored."""
    once = store_address.written(book(name), name)
    assert store_address.written(nbformat.reads(nbformat.writes(once), 4), name) == once
    for before, after in zip(book(name).cells, once.cells, strict=True):
        assert {**before, "source": ""} == {**after, "source": ""}
    changed = [before.id for before, after in zip(book(name).cells, once.cells, strict=True) if before != after]
    place = store_address.install_place(once)
    assert set(changed) <= {once.cells[number].id for number in (0, place - 1, place)}


@every_notebook
def test_the_contents_lead_to_every_heading(name):
    """L20: by one link that Colab reads as the id of a cell, and JupyterLab as the id of an element."""
    cells = book(name).cells
    (line,) = [line for line in cells[0].source.splitlines() if line.startswith(address.CONTENTS)]
    headed = [cell for cell in cells[1:] if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    assert len(headed) >= 4 and line.count("](#") == len(headed)
    for cell in headed:
        title = cell.source.splitlines()[0]
        text = title[3:].partition(" <a")[0]
        assert f"[{text}](#scrollTo={cell.id})" in line and title == f'## {text} <a id="scrollTo={cell.id}"></a>'


def test_the_badge_opens_the_notebook_once_there_is_an_address(published):
    """L2."""
    badge = address.badge("01_set_up.ipynb")
    if published in ("nothing", "index"):
        assert badge.endswith("(https://colab.research.google.com/)") and "Upload" in address.badge_note()
    else:
        whole = "(https://colab.research.google.com/github/somebody/lace-lora/blob/main/notebooks/01_set_up.ipynb)"
        assert badge.endswith(whole) and "Upload" not in address.badge_note()


def test_readme_and_prose_name_the_places_that_there_are(published):
    """L20."""
    for text in (address.readme(), address.install_prose()):
        assert ("github.com/somebody/lace-lora" in text) is (
            published in ("GitHub", "both")
        ) or text == address.readme()
    assert ("make wheel" in address.readme()) is (published == "nothing")
    assert "make wheel" in address.install_prose()
    assert ("package index" in address.install_prose()) is (published in ("index", "both"))
    assert generated.BLOCKS["README.md:address"] is address.readme


def test_the_install_cell_is_short_and_never_upgrades(published):
    """L2: and what it tells pip to replace is the package alone."""
    cell = address.install_cell()
    ast.parse(cell)
    lines = cell.splitlines()
    assert lines[0].startswith("#@title ") and len(lines) <= 15 and max(map(len, lines)) <= 120
    assert "--no-deps" in cell and "-U" not in cell and "--upgrade" not in cell and "torch" not in cell
    assert lines[-1].endswith("from lace_lora import install; install.missing()")
    assert ("drive.mount" in cell or "colab.mount" in cell) is (published == "nothing")
    assert [part in cell for part in ('"lace-lora"', "git+https://github.com/somebody/lace-lora@main")] == [
        published in ("index", "both"), published in ("GitHub", "both"),
    ]  # fmt: skip


# -- the cell, where no package is installed: `python -S` sees none, and no pip --

SEES = "import lace_lora; print(lace_lora.__file__)"


def cell(drive, end=SEES):
    """The install cell without the call in its last line, with Drive in another place."""
    above, _, _ = address.install_cell().rpartition("\n")
    return above.replace("/content/drive", str(drive)) + f"\nimportlib.invalidate_caches()\n{end}"


def ran(code, folder, *options, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    line = [sys.executable, *options, "-c", code]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, env=kept)


@pytest.mark.parametrize("place", [".", "notebooks"])
def test_the_install_cell_finds_the_checkout_it_lies_in(place, tmp_path, published):
    """L2: and looks no further, even where a wheel is in Drive."""
    (tmp_path / "MyDrive").mkdir()
    (tmp_path / "MyDrive/lace_lora-9.9-py3-none-any.whl").write_text("no wheel")
    done = ran(cell(tmp_path), ROOT / place, "-S")
    assert done.stdout.strip() == str(ROOT / "lace_lora" / "__init__.py"), done.stderr


def test_where_nothing_is_found_it_says_what_to_do(tmp_path, published):
    """L2: no pip is here, so that nothing can be brought from anywhere."""
    done = ran(cell(tmp_path), tmp_path, "-S")
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and said == f"Stop: {address._what_to_do()}"
    assert ("lace_lora-….whl" in said) is (published == "nothing")


def test_in_a_notebook_that_is_a_sentence_without_a_traceback(tmp_path, monkeypatch):
    """L2: and the cell still fails."""
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    shown = []
    shell = InteractiveShell()
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, error, lines: shown.append(lines))
    code = cell(tmp_path).replace('find_spec("lace_lora")', 'find_spec("no_lace_lora")')
    assert not shell.run_cell(code).success
    assert shown == [["Put lace_lora-….whl, whole and with its own name, into Drive, and run this again."]]


def test_drive_is_asked_for_once_and_only_in_colab(tmp_path):
    """L2: with the arguments of drive.mount, and its refusal is a sentence."""
    stand_in = (
        "import sys, types, pathlib\n"
        "google, colab, drive = (types.ModuleType(n) for n in ('google', 'google.colab', 'google.colab.drive'))\n"
        "google.colab, colab.drive = colab, drive\n"
        "sys.modules.update({'google': google, 'google.colab': colab, 'google.colab.drive': drive})\n"
        "def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):\n"
        "    print('mounted', mountpoint); raise ValueError('mount failed')\n"
        "drive.mount = mount\n"
    )
    done = ran(stand_in + cell(tmp_path), tmp_path, "-S")
    assert done.stdout == f"mounted {tmp_path}\n" and done.stderr.splitlines()[-1].startswith("Stop: Put lace")
    done = ran(stand_in + cell(tmp_path), ROOT, "-S")
    assert "mounted" not in done.stdout and done.returncode == 0


# -- the wheel --


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as `make wheel` makes it, out of the files that git would keep."""
    folder = tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "lace_lora", folder / "source/lace_lora", ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "./source"]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "dist").iterdir()
    return path


def brought(drive, site, code=SEES):
    """Run the cell in an empty folder, where pip puts packages into `site` and our checkout is not seen."""
    (here := drive / "here").mkdir(exist_ok=True)
    site.mkdir(exist_ok=True)
    return ran(
        f"import sys; sys.path[:] = [{str(site)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n" + cell(drive, code),
        here, PIP_TARGET=str(site), PIP_UPGRADE="1",
    )  # fmt: skip


def test_the_wheel_holds_everything_and_the_cell_brings_it(wheel, tmp_path):
    """L2: into an empty place, with --no-deps; the demo's model and the presets are in it."""
    drive, site = tmp_path / "drive", tmp_path / "site"
    (drive / "MyDrive/lace_lora").mkdir(parents=True)
    shutil.copy(wheel, drive / "MyDrive/lace_lora")
    code = (
        "import lace_lora, pathlib; from lace_lora import demo, install\n"
        "print(lace_lora.__file__); print(sorted(p.name for p in pathlib.Path(lace_lora.__file__).parent.rglob('*')))\n"
        "print(demo.base_dir().is_dir() and demo.refiner_dir().is_dir())\n"
        "print([need.name for need in install.needs()])"
    )
    for _ in range(2):  # also the second time
        done = brought(drive, site, code)
        where, names, has_demo, needs = done.stdout.splitlines()
        assert Path(where) == site / "lace_lora/__init__.py" and has_demo == "True", done.stderr
        assert {"lace-t4.yaml", "model_index.json", "diffusion_pytorch_model.safetensors"} <= set(
            ast.literal_eval(names)
        )
        assert {"torch", "ipywidgets"} <= set(ast.literal_eval(needs)), done.stderr
    tracked = {name for name in generated.tracked_files() if name.startswith("lace_lora/")}
    there = {path.relative_to(site).as_posix() for path in (site / "lace_lora").rglob("*") if path.suffix != ".pyc"}
    assert not tracked - there


def test_the_newest_wheel_is_taken_also_over_one_that_is_installed(wheel, tmp_path):
    """L2: by its time: as names, 0.10 comes before 0.9. A damaged one is said, and nothing older taken for it."""
    drive, site = tmp_path / "drive/MyDrive", tmp_path / "site"
    drive.mkdir(parents=True)
    shutil.copy(wheel, drive)
    now = time.time()
    os.utime(drive / wheel.name, (now - 100, now - 100))
    assert brought(drive.parent, site).returncode == 0
    (drive / "lace_lora-0.0.1-py3-none-any.whl").write_text("no wheel")
    done = brought(drive.parent, site)
    assert (
        done.returncode == 1 and "lace_lora-0.0.1" in done.stderr and "Stop: Put lace_lora-….whl, whole" in done.stderr
    )
    os.utime(drive / "lace_lora-0.0.1-py3-none-any.whl", (now - 200, now - 200))
    assert brought(drive.parent, site).returncode == 0
