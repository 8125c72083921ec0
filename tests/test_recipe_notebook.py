"""The notebook of text adapters: short cells, plain words, a run by papermill with either recipe (J1, D11, D12)."""

import ast
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from tests.generated import ROOT
from tests.test_notebooks import code_of, parameters_of, texts

PATH = ROOT / "notebooks/recipes/text_adapter.ipynb"
BOOK = nbformat.read(PATH, 4)


def test_it_has_about_twenty_cells_that_are_short_and_decide_nothing():
    """J1."""
    nbformat.validate(BOOK)
    assert 18 <= len(BOOK.cells) <= 24 and len(code_of(BOOK)) <= 12
    for place, cell in enumerate(BOOK.cells):
        if cell.cell_type == "code":
            above = BOOK.cells[place - 1]
            assert above.cell_type == "markdown" and above.source.startswith("## ") and len(above.source) > 60
            assert len(cell.source.splitlines()) <= 15 and max(map(len, cell.source.splitlines())) <= 120
            nodes = list(ast.walk(ast.parse(cell.source)))
            kinds = ast.FunctionDef | ast.ClassDef | ast.While | ast.For | ast.If | ast.Try
            assert cell is code_of(BOOK)[0] or not [node for node in nodes if isinstance(node, kinds)]
            if cell is not parameters_of(BOOK):
                assert cell.source.startswith("#@title ") and cell.metadata["cellView"] == "form"
    assert BOOK.cells[-1].source.startswith("## Next")


def test_its_parameters_are_plain_values_of_which_each_has_an_effect():
    """J1: recipe is one of those that ship."""
    from lace_lora import recipe

    given = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(parameters_of(BOOK).source).body}
    assert given["recipe"] in recipe.names() and given["direction"] == "forward"
    later = "\n".join(cell.source for cell in code_of(BOOK)[2:])
    assert all(re.search(rf"\b{name}\b", later) for name in given)


def test_it_is_stored_as_it_ran_and_carries_nothing_of_a_machine():
    """J1: nbval compares only what was run."""
    assert [cell.execution_count for cell in code_of(BOOK)] == list(range(1, len(code_of(BOOK)) + 1))
    assert all(cell.outputs for cell in code_of(BOOK) if cell is not parameters_of(BOOK))
    whole = PATH.read_text(encoding="utf-8")
    assert len(whole) < 200_000 and "widgets" not in BOOK.metadata
    assert not re.search(r"(?<![\w.])/(home|root|work|Users|tmp)/\w+|hf_\w{20}", whole)
    shown = "\n".join(text for cell in code_of(BOOK) for text in texts(cell))
    for wanted in (
        r"step 216/216  loss \d\.\d",
        r"passed +the loss falls",
        r"right in form +1\.00",
        r"passed +target shape",
        r"it answers the same: yes",
    ):
        assert re.search(wanted, shown), wanted


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cad", "dot"])
def test_papermill_runs_it_without_a_gpu(recipe, tmp_path):
    """J1, D11: with the tiny model; under a minute of one core, and every file of the run is there afterwards."""
    pytest.importorskip("trl")
    pytest.importorskip("xgrammar")
    line = [sys.executable, "-m", "papermill", "--cwd", str(tmp_path), str(PATH), str(tmp_path / "out.ipynb"),
            "-p", "recipe", recipe, "-p", "output", str(tmp_path / "runs")]  # fmt: skip
    place = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, env=os.environ | place, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (recipe, f"{recipe}-back"):
        assert json.loads((tmp_path / "runs" / name / "run.json").read_text(encoding="utf-8"))["state"] == "finished"
    scores = json.loads((tmp_path / "runs" / recipe / "evaluation/scores.json").read_text(encoding="utf-8"))
    assert {one["id"]: one["value"] for one in scores["scores"]}["schema_valid"] == 1.0
    assert "<!doctype html>" in (tmp_path / "runs" / recipe / "report.html").read_text(encoding="utf-8")


def test_the_image_side_needs_none_of_it():
    """J1: `import lace_lora`, its commands and the images' rooms load no package of texts."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['trl', 'datasets', 'xgrammar', 'jsonschema', 'pydot']);"
        "from lace_lora import main, train, inference, evaluate, report, forms, notebook;"
        "code = main.run(['text', '--help']); print('CODE', code, [n for n in sys.modules if 'lace_lora.text' in n])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("CODE 0 ['lace_lora.text_command']"), done.stdout[-300:] + done.stderr[-600:]


def test_no_room_of_pictures_imports_one_of_texts():
    """J1: only the door does, and when it is asked."""
    texts_of = {path.stem for path in (ROOT / "lace_lora").glob("*.py") if path.stem.startswith("text")}
    texts_of |= {"recipe", "validate", "agreement", "dialogues", "constraint", "writer", "cad", "graphs"}
    texts_of |= {"small_language", "language_models"}
    for path in (ROOT / "lace_lora").rglob("*.py"):
        if path.stem not in texts_of | {"main"}:
            found = re.findall(r"^\s*(?:from lace_lora import|from lace_lora\.)(.+)$", path.read_text("utf-8"), re.M)
            words = {word for line in found for word in re.findall(r"\w+", line.partition("#")[0])}
            assert not words & (texts_of - {"text", "writer"}), (path.name, words & texts_of)
