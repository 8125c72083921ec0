"""Every file of a run has one name, spelt in one place (L14, C13)."""

import json

import pytest

from lace_lora.config import Config
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder, Shard


def test_a_run_lies_below_the_output_folder_by_its_name(tmp_path):
    run = RunFolder.of(Config(lora_output_dir=str(tmp_path), run_name="rose"))
    assert run.root == tmp_path / "rose"
    assert run.checkpoint(250) == run.root / "checkpoints" / "step-000250"
    assert run.adapter_for_tools.name == "rose.safetensors"
    assert run.sheet("a").refined(3, "png").name == "refined_output_003.png"
    assert run.sheet("a").base(3, "jpg").name == "base_result_003.jpg"


def test_another_request_never_gets_the_folder_of_an_earlier_one(tmp_path):
    run = RunFolder(tmp_path)
    first = run.free_sheet("sheet", "one")
    first.root.mkdir(parents=True)
    first.request.write_text(json.dumps({"digest": "one"}))
    assert run.free_sheet("sheet", "one") == first
    second = run.free_sheet("sheet", "two")
    assert second.root.name == "sheet-2"
    second.root.mkdir()
    (second.root / "kept by hand.png").touch()  # no request: not ours to write into
    assert run.free_sheet("sheet", "two").root.name == "sheet-3"


def test_a_folder_that_cannot_be_made_has_its_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made .* lora_output_dir"):
        RunFolder(tmp_path / "file" / "run").create()


def test_a_sheet_knows_its_own_files_from_what_a_person_put_beside_them(tmp_path):
    """L14: the names themselves are compared with what is really written in test_workplace."""
    folder = RunFolder(tmp_path).sheet("sheet")
    assert folder.files() == []
    pictures = [folder.refined(3, "jpg"), folder.base(12, "png"), folder.latents / "base-fp16-000001.safetensors"]
    own = [folder.manifest, folder.request, folder.zip, folder.rows(Shard(1, 2)), folder.halved(Shard()), *pictures]
    foreign = ["notes.gdoc", "other.zip", "refined_output_003.psd", "latents/x.partial", "mine/request.json",
               "images.jsonl.abc-1-ff.partial", "drawing.lock"]  # fmt: skip
    for path in [*own, *(folder.root / name for name in foreign)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert folder.files() == sorted(own)
