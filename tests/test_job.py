"""The demo: the whole job in one call, and what it writes (L1 to L7, L14 to L16, C13)."""

import json

import pytest

from lace_lora import config, inference
from lace_lora.demo import job
from lace_lora.run_folder import SheetFolder

SHORT = {
    "preset": "demo",
    "max_train_steps": 3,
    "num_class_images": 2,
    "num_images": 2,
    "num_inference_steps": 8,
    "cache_dir": "cache",
    "log_with": "none",
}


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """The demo with two prompts of each kind and two seeds, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "LACE_PROMPTS", job.LACE_PROMPTS[:2])
    monkeypatch.setattr(job, "PLAIN_PROMPTS", job.PLAIN_PROMPTS[:2])
    monkeypatch.setattr(job, "SEEDS", job.SEEDS[:2])
    return tmp_path


def test_one_call_leaves_exactly_these_files_and_says_what_was_learnt(quick):
    said = []
    page = job.run(config.load(**SHORT), said.append)
    run = quick / "demo_output/demo"
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith(("checkpoints/", "class_images/"))} == {
        "config.yaml",
        "run.json",
        "log.jsonl",
        "best.json",
        "annotations.txt",
        "adapter/pytorch_lora_weights.safetensors",
        "adapter/demo.safetensors",
        "adapter/adapter.json",
        *(f"images/sheet/{kind}_00{number}.png" for kind in ("refined_output", "base_result") for number in (0, 1)),
        "images/sheet/images.jsonl",
        "images/sheet/request.json",
        "images/sheet/contact_sheet.png",
        "images/sheet/index.html",
        "images/sheet/sheet.zip",
        "evaluation/scores.json",
        "evaluation/base_versus_lora.png",
        "report.html",
    }
    assert page.resolve() == (run / "report.html").resolve()
    scores = json.loads((run / "evaluation/scores.json").read_text())
    names = [score["name"] for score in scores["scores"]]
    assert len(names) == 6 and any("plain prompt" in name for name in names)
    assert all(score["value"] >= 0 for score in scores["scores"])
    assert scores["verdict"] in said
    # Three steps teach nothing: the verdict must be able to say so.
    assert "not learnt well" in scores["verdict"]


def test_a_demo_that_is_stopped_while_it_draws_ends_without_an_error(quick, monkeypatch):
    nothing = inference.Designs([], SheetFolder(quick / "sheet"), is_complete=False)
    monkeypatch.setattr(inference, "run", lambda *args, **kwargs: nothing)
    folder = job.run(config.load(**SHORT), lambda line: None)
    assert folder.name == "demo" and not (folder / "evaluation").exists()
