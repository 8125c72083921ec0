"""Notebooks without a browser: parameters checked first, the first failure ends it with its sentence (L12, P17)."""

import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lace_lora import batch, config, main
from lace_lora.errors import NotebookError, RunError, SettingsError
from tests.generated import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)

LOAD = """from lace_lora import config, notebook
page = notebook.open_page()"""


@pytest.fixture
def folder(tmp_path):
    """Two notebooks: the first knows steps and learning rate, the second the rank, which it refuses above 8."""
    first = "settings = config.load(max_train_steps=max_train_steps, learning_rate=learning_rate)"
    write(
        tmp_path / "notebooks/01_first.ipynb",
        "max_train_steps = None\nlearning_rate = None\nprompts = None",
        f"{LOAD}\n{first}\nprint(type(max_train_steps).__name__, type(learning_rate).__name__, prompts)",
    )
    write(
        tmp_path / "notebooks/02_second.ipynb",
        "rank = None",
        f"#@title Learn\n{LOAD}\nfrom lace_lora.errors import RunError\nif rank and rank > 8:"
        "\n    raise RunError('The disk is full. Make room.')\nif rank == 7:\n    {}['seven']\nprint('rank', rank)",
    )
    return tmp_path / "notebooks"


def write(path, parameters, code):
    """A notebook with a parameters cell and one other."""
    path.parent.mkdir(exist_ok=True)
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(code)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def printed(path):
    """All that a notebook printed."""
    cells = nbformat.read(path, 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def never(*_, **__):
    """For what must not be called."""
    raise AssertionError("a notebook was run")


def test_each_notebook_gets_the_parameters_that_it_knows_in_their_own_kind(folder, tmp_path, capsys):
    given = {"max_train_steps": "7", "learning_rate": "1e-4", "rank": "4", "prompts": "a rosette\na border"}
    made = batch.run(tmp_path / "out", given, folder=folder)
    assert [path.name for path in made] == ["01_first.ipynb", "02_second.ipynb"]
    assert printed(made[0]) == "int float ['a rosette', 'a border']\n"
    assert printed(made[1]) == "rank 4\n"
    assert "Parameters" not in nbformat.read(folder / "01_first.ipynb", 4).cells[1].source  # the originals stay
    out, err = capsys.readouterr()
    assert "02_second.ipynb  done in" in out and err == ""


def test_the_first_failure_ends_the_batch_with_its_sentence_and_exit_code_1(folder, tmp_path, capsys, monkeypatch):
    (folder / "02_second.ipynb").rename(folder / "00_second.ipynb")
    monkeypatch.chdir(tmp_path)
    assert main.run(["notebooks", "--output", "out", "-p", "rank", "9"]) == 1
    err = capsys.readouterr().err.strip()
    assert err == "00_second.ipynb, cell “Learn”: The disk is full. Make room. (see out/00_second.ipynb)"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00_second.ipynb"]
    outputs = [output for cell in nbformat.read("out/00_second.ipynb", 4).cells for output in cell.get("outputs", [])]
    errors = [output for output in outputs if output.output_type == "error"]
    assert errors and errors[0].traceback == ["The disk is full. Make room."]


def test_an_error_that_is_not_ours_is_named_by_its_kind(folder, tmp_path):
    with pytest.raises(NotebookError, match="02_second.ipynb, cell “Learn”: KeyError: 'seven'"):
        batch.run(tmp_path / "out", {"rank": 7}, folder=folder, say=lambda line: None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rnak": 3}, "no setting called 'rnak'; did you mean rank?"),
        ({"rank": 500}, "rank is 500 but must be 1 to 128."),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"noise_offset": 0.1}, "noise_offset is a setting, but no notebook takes it as a parameter."),
        ({"rank_": 3}, "no setting called 'rank_'; did you mean rank?"),
        ({"num_train_epochs": 3}, "takes it as a parameter. Write it into config.yaml"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(folder, tmp_path, given, sentence, monkeypatch):
    monkeypatch.setattr(batch, "_execute", never)
    with pytest.raises((SettingsError, NotebookError)) as error:
        batch.run(tmp_path / "out", given, folder=folder)
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()


def test_parameters_come_from_files_and_the_line_wins(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(batch, "_execute", lambda notebook, kept, parameters: seen.append(parameters))
    (tmp_path / "a.yaml").write_text("rank: 4\nlearning_rate: 1e-4\n")
    line = ["notebooks", "--output", "out", "-f", "a.yaml", "-p", "rank", "8", "-p", "max-train-steps=3"]
    assert main.run(line[:-2]) == 0
    assert seen == [{"learning_rate": 1e-4}, {"rank": 8}]
    assert main.run(line) == 1  # a parameter is written as in config.yaml


def test_a_value_may_look_like_an_option(monkeypatch):
    monkeypatch.setattr(batch, "run", lambda output, parameters: seen.update(parameters))
    seen: dict[str, str] = {}
    assert main.run(["notebooks", "--output", "out", "-p", "lora_scale", "-1", "-p", "negative_prompt", "a=b"]) == 0
    assert seen == {"lora_scale": "-1", "negative_prompt": "a=b"}


def test_a_folder_without_notebooks_or_that_cannot_be_made_is_a_sentence(tmp_path, folder):
    with pytest.raises(NotebookError, match="No numbered notebooks in .*Start this in the project's folder."):
        batch.run(tmp_path / "out", {}, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="^The folder .*out cannot be made .Not a directory.* Choose another --output"):
        batch.run(tmp_path / "file" / "out", {}, folder=folder)


def test_the_projects_own_notebooks_take_the_parameters_that_people_change(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # found beside the package, from wherever it is called
    found = batch.notebooks()
    assert [path.parent for path in found] == [ROOT / "notebooks"] * 5
    known = {path.name[:2]: batch.parameters_of(path) for path in found}
    assert {"max_train_steps", "rank", "images_dir", "run_name", "seed"} <= known["03"]
    assert {"prompts", "num_images", "num_inference_steps", "run_name"} <= known["04"]


def test_the_shipped_settings_may_be_given_as_a_file_to_the_notebooks():
    """L12: `lace-lora notebooks -f config.yaml`."""
    known = {path: batch.parameters_of(path) for path in batch.notebooks()}
    values = batch.checked(batch.read_parameters([ROOT / "config.yaml"]), known)
    assert set(values) == set(config.USER_KEYS) and values["resolution"] == "auto"


@pytest.mark.slow
def test_all_notebooks_run_in_order_on_the_demo(tmp_path, monkeypatch):
    """L12, P17: from an empty folder to refined designs and their scores, by the command."""
    monkeypatch.chdir(tmp_path)
    short = {"max_train_steps": 4, "num_class_images": 4, "num_images": 2, "num_inference_steps": 8, "num_evaluated": 4}
    words = [word for name, value in short.items() for word in ("-p", name, str(value))]
    assert main.run(["notebooks", "--output", "out", "-p", "preset", "demo", *words]) == 0
    assert len(list((tmp_path / "out").glob("*.ipynb"))) == 5
    assert len(list((tmp_path / "demo_output/demo/images/sheet").glob("refined_output_*.png"))) == 2
    assert (tmp_path / "demo_output/demo/evaluation/scores.json").is_file()


def papermill(tmp_path, *parameters):
    """`papermill notebooks/03_train.ipynb out.ipynb -p …`, as it is typed."""
    line = [sys.executable, "-m", "papermill", str(ROOT / "notebooks/03_train.ipynb"), "out.ipynb", "--no-progress-bar"]
    words = [word for name, value in parameters for word in ("-p", name, str(value))]
    place = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}  # the cache of pictures lies below HOME
    return subprocess.run([*line, *words], cwd=tmp_path, env=place, capture_output=True, text=True)


def test_plain_papermill_runs_one_from_the_checkout(tmp_path, lace_folder):
    """P17."""
    small = [("preset", "demo"), ("images_dir", lace_folder), ("resolution", 32), ("rank", 2), ("train_batch_size", 1)]
    done = papermill(tmp_path, *small, ("max_train_steps", 2), ("prior_loss_weight", 0.0))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step 2/2" in printed(tmp_path / "out.ipynb")


@pytest.mark.slow
def test_plain_papermill_fails_with_the_sentence(tmp_path):
    """P17."""
    bad = papermill(tmp_path, ("preset", "demo"), ("rank", 500))
    assert bad.returncode == 1 and "rank is 500 but must be 1 to 128." in bad.stderr
