"""The demo: the whole job in one call, and what it writes (L1 to L7, L14 to L16, C13)."""

import pytest

from lace_lora import config, inference, unseen
from lace_lora.demo import draw, job
from lace_lora.run_folder import RunFolder, SheetFolder
from lace_lora.scores import Evaluation

PICTURES = 40
SHORT = {
    "preset": "demo",
    "max_train_steps": 3,
    "num_class_images": 2,
    "num_images": 2,
    "num_inference_steps": 8,
    "cache_dir": "cache",
    "num_evaluated": 4,
    "plain_prompts": "red stripes on a white ground",
    "log_with": "none",
}


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """An empty folder, in which little lace is drawn, and few pictures are compared."""
    monkeypatch.chdir(tmp_path)
    every = draw.write_lace_folder
    monkeypatch.setattr(draw, "write_lace_folder", lambda folder, count=PICTURES, *rest: every(folder, count, *rest))
    monkeypatch.setattr(unseen, "MOST", 4)
    monkeypatch.setattr(draw, "UNSEEN_COUNT", 6)
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
        "held_out.txt",
        "adapter/pytorch_lora_weights.safetensors",
        "adapter/demo.safetensors",
        "adapter/adapter.json",
        *(f"samples/step-00000{step}/sample_0{number}.png" for step in (0, 3) for number in range(4)),
        "samples/film_strip.png",
        *(f"images/sheet/{kind}_00{number}.png" for kind in ("refined_output", "base_result") for number in (0, 1)),
        "images/sheet/images.jsonl",
        "images/sheet/request.json",
        "images/sheet/contact_sheet.png",
        "images/sheet/index.html",
        "images/sheet/sheet.zip",
        "evaluation/scores.json",
        "evaluation/pairs.png",
        "evaluation/nearest.jpg",
        *(name for name in found if name.startswith("evaluation/measured")),
        "report.html",
    }
    assert page.resolve() == (run / "report.html").resolve()
    scores = Evaluation.read(RunFolder(run))
    assert scores is not None and scores.verdict[0] in "\n".join(said)
    assert scores.counts["pairs"] == 4 and scores.counts["held out"] == 6 + PICTURES // 10
    # Three steps teach nothing: the verdict must be able to say so.
    assert not scores.verdict[0].startswith("The style was learnt")


def test_a_demo_that_is_stopped_while_it_draws_ends_without_an_error(quick, monkeypatch):
    nothing = inference.Designs([], SheetFolder(quick / "sheet"), is_complete=False)
    monkeypatch.setattr(inference, "run", lambda *args, **kwargs: nothing)
    folder = job.run(config.load(**SHORT), lambda line: None)
    assert folder.name == "demo" and not (folder / "evaluation").exists()
