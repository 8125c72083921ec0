"""Claims in a notebook: charts and lines with known answers, and two notebooks run headless (P20, P22, P30)."""

import ast
import json
import re

import nbformat
import pytest

from lace_lora import batch, claims_exploring, config, presets
from lace_lora.claims_exploring import ClaimsFound
from lace_lora.machine import Machine
from tests.generated import ROOT
from tests.test_notebooks import code_of, texts

RECIPE, EXPLORATION = "recipes/patent_drawings.ipynb", "exploration/claims.ipynb"
BOOKS = {name: nbformat.read(ROOT / "notebooks" / name, 4) for name in (RECIPE, EXPLORATION)}
every_notebook = pytest.mark.parametrize("name", BOOKS)
# Parameters that are no settings: they say where claims are read and written.
PLACES = {"claims_file", "claims_folder"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> ClaimsFound:
    """The example, counted by the demo's tokenizers."""
    folder = tmp_path_factory.mktemp("claims")
    given = config.load(pretrained_model="lace-demo", lora_output_dir=str(folder), seed=7)
    return claims_exploring.read(None, None, given)


def test_the_example_is_described_as_it_was_written(found):
    """P30: ten subsets of five or six claims, whole patents held out, three faults, 55 drawings."""
    assert found.made.folder.name == "claims" and repr(found).startswith("55 claims of 58 rows can be used")
    assert found.faults().splitlines()[0].split() == ["1", "language"] and "row 58, dependent_on" in found.faults()
    subsets = found.subsets().text
    assert re.search(r"star wheel +6", subsets) and re.search(r"zigzag rack +5", subsets) and "10 patents" in subsets
    assert re.findall(r"(train|validation|test) +(\d+)", found.splits().text) == [
        ("train", "43"), ("validation", "6"), ("test", "6"), ("train", "8"), ("validation", "1"), ("test", "1"),
    ]  # fmt: skip
    assert "55 claims, " in found.lengths().text and "75 tokens" in found.lengths().text
    assert re.search(r"hole +\d\d", found.words().text) and re.search(r"en +55", found.words().text)
    assert found.prompts(5).count(" → <patentline> Patent drawing of ") == 5
    sheet = found.drawings()
    assert (
        repr(sheet) == "55 line drawings; 0 references that are none"
        and "data:image/jpeg" in sheet._repr_mimebundle_()["text/html"]
    )


def test_its_settings_name_what_was_made_and_keep_what_was_given(found):
    """P26, P27: what a person typed beats the folder's settings, and those beat the defaults."""
    settings = found.settings
    assert settings.images_dir == str(found.made.folder / "drawings/train") and settings.seed == 7
    assert settings.concept_token == "<patentline>" and settings.pretrained_model == "lace-demo"
    asked = ClaimsFound(found.made, config.load(preset="demo")).settings
    settled = presets.settle(asked, Machine.here()).config
    assert settled.images_dir == settings.images_dir and settled.prompts == settings.prompts


def test_where_nothing_is_wrong_and_nothing_is_drawn_that_is_said(tmp_path):
    """P2, P30."""
    file = tmp_path / "claims.jsonl"
    file.write_text(json.dumps({"claim_id": 1, "claim_text": "A wheel, comprising a hub."}), encoding="utf-8")
    found = claims_exploring.read(file, tmp_path / "o", config.load(pretrained_model="lace-demo"), drawn="all")
    assert found.faults() == "Nothing is wrong with any of 1 row."
    assert repr(found.drawings()) == "0 line drawings; 0 references that are none" and found.drawings().picture is None
    assert all(repr(one) for one in (found.subsets(), found.splits(), found.lengths(), found.words()))


# -- the notebooks --


@every_notebook
def test_cells_are_short_decide_nothing_and_have_prose_above(name):
    """P30: as in the numbered notebooks."""
    book = BOOKS[name]
    nbformat.validate(book)
    assert book.cells[0].source.startswith("[![Open in Colab]") and len(code_of(book)) <= 12
    for above, cell in zip(book.cells, book.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert above.cell_type == "markdown" and len(above.source) > 60
            assert len(cell.source.splitlines()) <= 15 and max(map(len, cell.source.splitlines())) <= 120
    for cell in code_of(book)[1:]:
        kinds = (ast.FunctionDef, ast.ClassDef, ast.While, ast.For, ast.If, ast.Try)
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]
    assert book.cells[-1].source.startswith("## Next")


@every_notebook
def test_parameters_are_settings_or_the_places_of_claims_and_all_are_used(name):
    """P30: papermill replaces them."""
    (cell,) = [cell for cell in BOOKS[name].cells if "parameters" in cell.metadata.get("tags", [])]
    lines = ast.parse(cell.source).body
    names = {line.targets[0].id for line in lines}
    assert names <= {*config.Config.model_fields, *PLACES} and PLACES <= names
    assert all(ast.literal_eval(line.value) is None for line in lines)
    later = "\n".join(one.source for one in code_of(BOOKS[name])[2:])
    assert all(one in later for one in PLACES) and all(f"{one}={one}" in later for one in names - PLACES)


@every_notebook
def test_stored_outputs_are_whole_small_and_carry_nothing_of_a_machine(name):
    """P30."""
    book, whole = BOOKS[name], (ROOT / "notebooks" / name).read_text(encoding="utf-8")
    assert [cell.execution_count for cell in code_of(book)] == list(range(1, len(code_of(book)) + 1))
    assert not [output for cell in code_of(book) for output in cell.outputs if output.output_type == "error"]
    assert len(whole) < 300_000 and "widgets" not in book.metadata
    assert not re.search(r"(?<![\w.])/(home|root|work|Users|tmp)/\w+", whole)
    assert "55 claims of 58 rows can be used" in "\n".join(text for cell in code_of(book) for text in texts(cell))


def run(name, tmp_path, monkeypatch, parameters) -> str:
    """What a notebook says that papermill runs in a folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept, book = tmp_path / "kept.ipynb", str(ROOT / "notebooks" / name)
    batch._papermill().execute_notebook(book, str(kept), parameters=parameters, cwd=tmp_path, **batch.QUIETLY)
    outputs = [one for cell in nbformat.read(kept, 4).cells for one in cell.get("outputs", [])]
    return "\n".join(one.get("text") or one["data"].get("text/plain", "") for one in outputs)


@pytest.mark.slow
def test_papermill_runs_the_exploration_on_claims_of_ones_own(tmp_path, monkeypatch):
    """P30: three claims, no drawing."""
    file = tmp_path / "mine.csv"
    file.write_text('claim_id,claim_text\n1,"A hub, comprising a pin"\n2,nice\n', encoding="utf-8")
    said = run(EXPLORATION, tmp_path, monkeypatch, {"claims_file": str(file), "preset": "demo"})
    assert "1 claim of 2 rows can be used" in said and "row 3, claim_text: has none of the words of a claim" in said


@pytest.mark.slow
def test_papermill_runs_the_recipe_end_to_end_on_the_demo(tmp_path, monkeypatch):
    """P20, P22: claims to a report with a page for each subset and SSIM against each reference."""
    few = {"preset": "demo", "max_train_steps": 6, "num_class_images": 4, "num_inference_steps": 10, "num_evaluated": 5}
    said = run(RECIPE, tmp_path, monkeypatch, few | {"lora_output_dir": str(tmp_path / "out")})
    root = tmp_path / "out/patent"
    assert "likeness to the reference drawings (SSIM)" in said and (root / "report.html").is_file()
    pages = {path.name for path in (root / "evaluation").glob("subset_*.png")}
    assert pages == {"subset_heart-cam.png", "subset_flower-knob.png"}
    rows = [json.loads(line) for line in (root / "images/sheet/images.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 12 and all(row["reference"] and row["subset"] in ("heart cam", "flower knob") for row in rows)
