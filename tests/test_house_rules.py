"""House rules as tests: levels, docstrings, sizes, documents that agree with the code (L20, L21, L22, P28)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lace_lora import config_text
from tests import generated
from tests.generated import LEVELS, PACKAGE, ROOT, room_of, source_files

FILES = source_files()
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes"}
DOORS = {"fields", "forms", "main", "batch", "options", "install"}
LIGHT_ROOMS = {room for room, level in LEVELS.items() if level <= 2} | DOORS


def imports_of(path, top_only=False):
    """Every (module, line) imported in a file, also inside functions unless top_only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == PACKAGE:
                rooms = [name.name for name in node.names if not name.name.startswith("_")]
                yield from ((f"{PACKAGE}.{room}", node.lineno) for room in rooms)
            else:
                yield node.module, node.lineno


def test_every_room_has_a_level():
    """L22."""
    assert {room_of(path) for path in FILES} == set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / PACKAGE).as_posix())
def test_rooms_import_only_from_lower_levels(path):
    """L22: the demo's pictures and folders (level 0) may be named by anyone; its job is a door."""
    own = room_of(path)
    for module, line in imports_of(path):
        if module.startswith(f"{PACKAGE}."):
            other = room_of(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
            is_below = LEVELS[other] < LEVELS[own] or other == own
            assert is_below, f"{path.name}:{line}: {own} (level {LEVELS[own]}) imports {other} (level {LEVELS[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / PACKAGE).as_posix())
def test_low_rooms_and_doors_load_no_torch_at_the_top(path):
    if room_of(path) in LIGHT_ROOMS:
        heavy = [module for module, _ in imports_of(path, top_only=True) if module.split(".")[0] in HEAVY]
        assert not heavy, f"{path.name} imports {heavy} at the top"


def test_torchvision_is_imported_nowhere():
    """Its build from the package index does not load beside a CPU torch."""
    for path in FILES:
        assert not [module for module, _ in imports_of(path) if module.startswith("torchvision")], path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / PACKAGE).as_posix())
def test_every_public_name_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.name} does not say what it is"
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    inner = [
        child
        for node in public
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, ast.FunctionDef) and not child.name.startswith("_")
    ]
    assert [node.name for node in [*public, *inner] if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / PACKAGE).as_posix())
def test_files_and_functions_stay_short_enough_to_read(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 410, f"{path.name}: a second noun is hiding inside"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 65, f"{path.name}: {node.name} has {length} lines"


def test_importing_the_package_and_asking_for_help_load_no_torch():
    """P28."""
    for code in ("import lace_lora", "from lace_lora import main; main.run(['--help']); main.run(['train', '--help'])"):
        check = f"import sys; {code}; print('LOADED', sorted({HEAVY!r} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
        assert done.stdout.strip().endswith("LOADED []"), done.stdout[-300:] + done.stderr[-300:]


@pytest.mark.parametrize("name", [name for name in generated.BLOCKS if name != "config.yaml"])
def test_generated_parts_of_the_documents_are_up_to_date(name):
    """L20: a failure is mended by `make settings`."""
    path, block = name.split(":")
    assert generated.block_in(path, block) == generated.BLOCKS[name]().strip()


def test_the_shipped_config_is_up_to_date():
    """L8: a failure is mended by `make settings`."""
    assert (ROOT / "config.yaml").read_text(encoding="utf-8") == config_text.shipped_yaml()


def test_the_list_of_files_is_that_of_git():
    """L21."""
    tracked = generated.tracked_files()
    if not tracked:
        pytest.skip("no git here, so there is no list to compare with")
    listed = re.findall(r"^- `([^`]+)`", (ROOT / ".notes/directory_structure.md").read_text(encoding="utf-8"), re.M)
    assert listed == tracked


def test_the_task_list_has_its_four_parts_and_every_task_its_status_and_notes():
    """L21."""
    text = (ROOT / ".notes/task_list.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == ["High", "Medium", "Low", "Completed"]
    tasks = re.split(r"^- ", text, flags=re.M)[1:]
    assert tasks and all(re.search(r"\*\*Status:\*\* .+ \*\*Notes:\*\* .+", task) for task in tasks)
    assert (ROOT / ".notes/project_overview.md").is_file() and (ROOT / ".notes/meeting_notes.md").is_file()


def test_the_cards_packages_are_all_in_requirements():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:# )?([a-z-]+)", text, re.M))
    card = "diffusers transformers peft bitsandbytes accelerate torch ipywidgets google-colab pyyaml pillow papermill"
    assert {*card.split(), "nbval"} <= named
    assert not re.search(r"^google-colab", text, re.M)


def test_constraints_meet_the_floors_of_requirements():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            wanted = Requirement(line)
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), line


def test_no_document_or_source_names_a_folder_of_a_machine():
    for name in generated.tracked_files():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".ipynb", ".txt", ".cfg") and path.is_file():
            found = re.search(r"(?<![\w.])/(home|root|work|Users)/\w+", path.read_text(encoding="utf-8"))
            assert found is None or name == Path(__file__).relative_to(ROOT).as_posix(), f"{name}: {found}"
