"""The notebooks as files (short cells, plain words, outputs that can be compared)."""

import ast
import re

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

from lace_lora import batch
from lace_lora.config import Config
from tests.generated import ROOT

NUMBERED = [path.name for path in sorted((ROOT / "notebooks").glob(batch.PATTERN))]
EXPLORATION = "exploration/pictures.ipynb"
OTHERS = [path.relative_to(ROOT / "notebooks").as_posix() for path in sorted((ROOT / "notebooks").glob("*/*.ipynb"))]
BOOKS = {name: nbformat.read(ROOT / "notebooks" / name, 4) for name in [*NUMBERED, *OTHERS]}
TEXT = "recipes/text_adapter.ipynb"  # its values are a recipe's, no settings: see test_recipe_notebook
OWN = {"claims_file", "claims_folder"}  # what is read, of the notebooks on claims
# Each tells which one to open next.
NEXT = dict(zip(NUMBERED[:-1], NUMBERED[1:], strict=True)) | {EXPLORATION: "02_annotate.ipynb"}

every_notebook = pytest.mark.parametrize("name", BOOKS)


def code_of(book):
    """The code cells of a notebook."""
    return [cell for cell in book.cells if cell.cell_type == "code"]


def parameters_of(book):
    """The one cell that papermill replaces values of."""
    (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def texts(cell):
    """Every text that a cell shows."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_there_are_five_numbered_from_one():
    names = ["01_set_up", "02_annotate", "03_train", "04_generate", "05_evaluate"]
    assert [f"{name}.ipynb" for name in names] == NUMBERED


@every_notebook
def test_it_is_a_valid_notebook_with_an_id_for_each_cell(name):
    nbformat.validate(BOOKS[name])
    ids = [cell.id for cell in BOOKS[name].cells]
    assert len(set(ids)) == len(ids)


@every_notebook
def test_it_begins_with_its_badge_and_a_title(name):
    """The badge itself is written from address.py; see test_address."""
    first = BOOKS[name].cells[0].source.splitlines()
    assert first[0].startswith("[![Open in Colab]")
    kind = {"exploration": "Explore", "recipes": "Recipe"}.get(name.partition("/")[0]) or int(name[:2])
    assert first[2].startswith(f"# {kind} · ")


@every_notebook
def test_cells_are_few_and_short_and_decide_nothing(name):
    code = code_of(BOOKS[name])
    assert len(code) <= 12
    for cell in code:
        # The parameters are a list of names, which nobody needs to follow.
        assert len(cell.source.splitlines()) <= (20 if cell is parameters_of(BOOKS[name]) else 15), cell.source
        assert max(map(len, cell.source.splitlines())) <= 120
        nodes = list(ast.walk(ast.parse(cell.source)))
        if cell is not code[0]:  # the install cell has nothing to call yet
            assert not [
                node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While | ast.For)
            ]
            assert not [node for node in nodes if isinstance(node, ast.If | ast.Try)], "a cell decides something"
            assert not re.search(r"^\s*[!%]|input\(", cell.source, re.M)


@every_notebook
def test_prose_stands_above_each_cell(name):
    cells = BOOKS[name].cells
    for above, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            assert above.cell_type == "markdown" and len(above.source) > 60
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## Next")
    if name in NEXT:
        assert f"**{NEXT[name]}**" in cells[-1].source


@every_notebook
def test_colab_hides_the_code_behind_its_title(name):
    for cell in code_of(BOOKS[name]):
        if cell is not parameters_of(BOOKS[name]):
            assert cell.source.startswith("#@title ") and cell.metadata["cellView"] == "form"


@every_notebook
def test_parameters_are_settings_and_plain_literals(name):
    cell = parameters_of(BOOKS[name])
    assert cell is code_of(BOOKS[name])[1]
    for line in ast.parse(cell.source).body:
        assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        assert name == TEXT or line.targets[0].id in {*Config.model_fields, *OWN}
        assert ast.literal_eval(line.value) is None or name == TEXT  # None: as config.yaml, or the plan, says
    later = "\n".join(cell.source for cell in code_of(BOOKS[name])[2:])
    for parameter in batch.parameters_of(ROOT / "notebooks" / name):
        handed = parameter if parameter in OWN or name == TEXT else f"{parameter}={parameter}"
        assert re.search(rf"\b{handed}\b", later), f"{parameter} has no effect"


@every_notebook
def test_it_is_stored_as_it_ran(name):
    """nbval runs a cell without an execution_count but does not compare it: a false green."""
    assert [cell.execution_count for cell in code_of(BOOKS[name])] == list(range(1, len(code_of(BOOKS[name])) + 1))
    assert not [output for cell in code_of(BOOKS[name]) for output in cell.outputs if output.output_type == "error"]
    assert all(cell.outputs for cell in code_of(BOOKS[name]) if cell is not parameters_of(BOOKS[name]))


@every_notebook
def test_outputs_are_small_and_carry_nothing_of_a_machine_or_of_dead_widgets(name):
    book, whole = BOOKS[name], (ROOT / "notebooks" / name).read_text(encoding="utf-8")
    assert len(whole) < 200_000
    assert "widgets" not in book.metadata and "papermill" not in book.metadata
    assert "application/vnd.jupyter.widget-view+json" not in whole
    assert not re.search(r"(?<![\w.])/(home|root|work|Users|tmp)/\w+|hf_\w{20}", whole)
    assert all(len(text.splitlines()) <= 60 for cell in code_of(book) for text in texts(cell))


# What a wrong result would change, in each notebook's compared outputs.
CHECKED = {
    "01_set_up.ipynb": r"✓ photographs .*\n✓ results ",
    "02_annotate.ipynb": r"120 usable(.|\n)*120 captions in demo_output/pictures/annotations.txt",
    "03_train.ipynb": r"step 6/6  loss \d\.\d(.|\n)*rank, alpha +16, 16 \(\d+ layers",
    "04_generate.ipynb": r"refined_output_003.png  seed 3 (.|\n)*crispness: 0\.\d\d\d unrefined, 0\.\d\d\d refined",
    EXPLORATION: r"8 pieces in 120 photographs of 120(.|\n)*the least typical: lace_094.jpg",
    "exploration/claims.ipynb": r"55 claims of 58 rows can be used(.|\n)*zigzag rack +5",
    "recipes/patent_drawings.ipynb": r"43 train, 6 validation, 6 test(.|\n)*sheet.*12 pictures, 12 to make",
    TEXT: r"schema_valid: 1.00(.|\n)*target node_f1: 0\.[1-9](.|\n)*it answers the same: yes",
    "05_evaluate.ipynb": r"LoRA's distance from your photographs +-?\d\.\d\d(.|\n)*13 pictures, 0 of them copies",
}


def sanitized(text):
    """A text as nbval compares it."""
    for pattern, instead in get_sanitize_patterns((ROOT / "tests/nbval_sanitize.cfg").read_text(encoding="utf-8")):
        text = re.sub(pattern, instead, text)
    return text


@every_notebook
def test_something_is_compared_that_a_wrong_result_would_change(name):
    whole = "\n".join(text for cell in code_of(BOOKS[name]) for text in texts(cell))
    assert re.search(CHECKED[name], whole)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("step 2/6  loss 0.264  0.6 s each  2 s left", "step 2/6  loss 0.2639  1.1 s each  14 min left"),
        ("✓ memory        23.5 GB, 21.8 GB free", "✗ memory        2.0 GB, 1 GB free  Close other programs."),
        ("✓ torch         2.13.0+cpu", "✓ torch         2.9.1"),
        ("crispness: 0.046 unrefined, 0.049 refined", "crispness: 0.047 unrefined, 0.048 refined"),
        ("machine     CPU, 2 cores", "machine     CPU, 16 cores"),
    ],
)
def test_what_differs_between_two_right_runs_is_not_compared(one, other):
    assert sanitized(one) == sanitized(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("step 2/6  loss 0.264", "step 2/6  loss 0.364"),
        ("step 2/6  loss 0.264", "step 2/5  loss 0.264"),
        ("✓ torch         2.13.0+cpu", "✗ torch         2.13.0+cpu"),
        ("✓ photographs   120 in x", "✗ photographs   120 in x"),
        ("crispness: 0.046 unrefined, 0.049 refined", "crispness: 0.146 unrefined, 0.049 refined"),
        ("120 captions in x", "119 captions in x"),
        ("rank, alpha    16, 16", "rank, alpha    16, 8"),
    ],
)
def test_what_a_wrong_result_would_change_is_compared(one, other):
    assert sanitized(one) != sanitized(other)


def test_an_error_that_was_shown_keeps_no_model_in_memory():
    """L19: run again after an out-of-memory, a cell must find the memory free."""
    import weakref

    from lace_lora import notebook
    from lace_lora.errors import MachineError

    class Model:
        pass

    held = []

    def load():
        model = Model()
        held.append(weakref.ref(model))
        raise RuntimeError("out of memory")

    class Shell:
        def showtraceback(self, triple, tb_offset=None):
            self.last = triple  # as IPython does

    shell = Shell()
    try:
        try:
            load()
        except RuntimeError as error:
            raise MachineError("The GPU ran out of memory.") from error
    except MachineError as error:
        kept = error
    assert held[0]() is not None
    notebook._show_sentence(shell, MachineError, kept, kept.__traceback__)
    assert held[0]() is None


@pytest.mark.parametrize(("code", "is_a_sentence"), [("print(settled)", True), ("broken()", False)])
def test_a_cell_out_of_order_is_told_which_cells_come_first(code, is_a_sentence):
    """L20: a name that the cells above make; a wrong name inside a function of ours keeps its traceback."""
    from types import SimpleNamespace

    from lace_lora import notebook

    inside: dict[str, object] = {}
    exec("def broken():\n    return no_such_name", inside)
    cells = {"broken": inside["broken"]}
    try:
        exec(code, cells)
    except NameError as error:
        said = notebook._sentence(SimpleNamespace(user_ns=cells), error, error.__traceback__)
    assert (said or "").startswith("‘settled’ is not there yet: a cell further up makes it") is is_a_sentence
    assert (said is None) is not is_a_sentence
