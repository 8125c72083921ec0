"""The page about a run: one file, readable by itself, nothing from elsewhere (C13, L20)."""

import json
import re

import pytest
from PIL import Image

from lace_lora import report
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder


@pytest.fixture
def finished(tmp_path):
    run = RunFolder(tmp_path / "rose & <co>").create()
    run.record.write_text(json.dumps({"state": "finished", "step": 4, "total": 4, "versions": {"torch": "2"}}))
    run.log.write_text("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 5)))
    for folder in (run.adapter, run.evaluation, run.sheet("sheet").root):
        folder.mkdir(parents=True)
    run.adapter_card.write_text(json.dumps({"concept_token": "<sks>", "base_model": "demo", "rank": 4, "alpha": 2}))
    scores = [{"name": "distance", "value": 1.5, "spread": 0.25, "means": "smaller is nearer"}]
    run.scores.write_text(json.dumps({"scores": scores, "verdict": "It learnt <well>."}))
    Image.new("RGB", (3000, 400), "teal").save(run.strip)
    Image.new("RGB", (60, 40), "white").save(run.sheet("sheet").contact_sheet)
    run.sheet("sheet").manifest.write_text(json.dumps({"prompt": "<sks> with <b>bold</b> leaves"}) + "\n")
    return run


def test_the_page_holds_what_the_folder_holds_and_loads_nothing_from_elsewhere(finished):
    page = report.write(finished).read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and page.count("src='data:image/jpeg;base64,") == 2
    assert "1.50 ± 0.25" in page and "4 of 4" in page and "<polyline" in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page) and "<script" not in page


def test_text_from_prompts_and_names_is_shown_as_text(finished):
    page = report.write(finished).read_text(encoding="utf-8")
    assert "<b>bold</b>" not in page and "&lt;b&gt;bold" in page
    assert "rose &amp; &lt;co&gt;" in page and "It learnt &lt;well&gt;." in page


def test_wide_pictures_are_shrunk_so_that_the_page_can_be_mailed(finished):
    assert len(report.write(finished).read_text(encoding="utf-8")) < 200_000


def test_a_run_that_has_only_begun_gives_a_page_without_what_is_not_there(tmp_path):
    run = RunFolder(tmp_path / "begun").create()
    run.record.write_text(json.dumps({"state": "training", "step": 1, "total": 9}))
    page = report.write(run).read_text(encoding="utf-8")
    assert "1 of 9" in page and "<img" not in page and "<polyline" not in page


def test_a_folder_without_a_run_has_its_sentence(tmp_path):
    with pytest.raises(RunError, match="holds no run. Train first: lace-lora train"):
        report.write(RunFolder(tmp_path))
