"""A run as a package: it loads elsewhere, explains itself, and tells nothing of the person's computer (P25, C1)."""

import json
import re
import runpy
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lace_lora import (
    adapter,
    config_text,
    demo,
    hub,
    inference,
    main,
    model_card,
    package,
    report,
    stars,
    workflow_page,
)
from lace_lora.config import Config, load
from lace_lora.errors import AdapterError, LaceError
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder
from lace_lora.scores import CopyCheck, Evaluation, Nearest
from lace_lora.workflow import Design
from tests.conftest import read_pixels
from tests.drawing import picture_at
from tests.test_adapter import output_of, unet_of
from tests.test_families import load_pipeline
from tests.test_stages import made_lora

# Settings whose text is a person's own words or a choice, and so no path, address or account.
WORDS = {
    "run_name", "instance_prompt", "class_prompt", "concept_token", "caption_prompt", "sheet_name", "base_prompt",
    "negative_prompt", "favourites_of", "vary", "shard",
}  # fmt: skip
SECRET = "ayse-secret"  # stands for a person's name in every path

Packed = Callable[..., package.Package]


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def drawn(models: Any, made_run: Path, tmp_path_factory: Any) -> RunFolder:
    """A finished run below a folder with a person's name: settings, record, two refined designs, an evaluation."""
    home = tmp_path_factory.mktemp(SECRET)
    shutil.copytree(made_run, home / "out/lace")
    folder = RunFolder(home / "out/lace")
    private = {name: f"{home}/{name}" for name in report.FOLDERS | report.MODELS if name in Config.model_fields}
    private |= models | {
        "caption_url": f"http://{SECRET}.local:8000",
        "push_to_hub": f"{SECRET}/lace",
        "preset": "none",
    }
    private |= {"preset": "none", "lora_output_dir": str(home / "out"), "unseen_dir": str(home / "unseen")}
    del private["vae_model"], private["prompts_file"], private["start_picture"]
    settings = load(**private, width=32, height=32, num_images=2, num_inference_steps=4, refiner_start=0.5)
    inference.run(settings, say=silent)
    (folder.config).write_text(config_text.to_yaml(settings), encoding="utf-8")
    record = {"id": "a" * 64, "state": "finished", "step": 9, "total": 9, "settings": {}, "versions": {}}
    folder.record.write_text(json.dumps(record), encoding="utf-8")
    folder.log.write_text("".join(json.dumps({"step": n, "loss": 1 / n, "seconds": 1}) + "\n" for n in range(1, 10)))
    folder.evaluation.mkdir()
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder.nearest(1))
    near = Nearest("images/sheet/refined_output_000.png", f"{SECRET}/rose.jpg", 0.4, False)
    checked = CopyCheck("correlation", 0.5, 20, (near,))
    digest = adapter.load(folder.root).digest
    Evaluation("lace", "now", ("The style was learnt.", "None is a copy | <b>."), copies=checked,
               facts={"adapter_digest": digest}).write(folder)  # fmt: skip
    return folder


@pytest.fixture
def run(drawn: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, to be packed."""
    shutil.copytree(drawn.root.parent, tmp_path / SECRET / "out")
    return RunFolder(tmp_path / SECRET / "out/lace")


@pytest.fixture
def bare(made_run: Path, tmp_path: Path) -> RunFolder:
    """A run of which there is nothing but its adapter."""
    shutil.copytree(made_run, tmp_path / "bare/lace")
    return RunFolder(tmp_path / "bare/lace")


def front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


# -- what is in it --


def test_it_holds_what_is_promised_and_the_zip_holds_the_same(run: RunFolder) -> None:
    """P25."""
    made = package.run(run, say=silent)
    assert set(made.files) == {
        "README.md", "adapter.json", "comfyui_workflow.json", "comfyui_workflow_api.json", "config.yaml", "example.py",
        "lace.safetensors", "pytorch_lora_weights.safetensors", "report.html", "samples/sample_00.png",
        "samples/sample_01.png",
    }  # fmt: skip
    with zipfile.ZipFile(made.zip) as archive:
        assert archive.namelist() == [f"lace/{name}" for name in made.files] and archive.testzip() is None
        assert all(archive.read(f"lace/{name}") == (made.folder / name).read_bytes() for name in made.files)
    for file in (run.adapter_for_tools, run.adapter_weights):
        assert (made.folder / file.name).read_bytes() == file.read_bytes()
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"- `{name}`: " in card for name in made.files if not name.startswith(("README", "samples/")))


def test_the_package_loads_elsewhere_to_the_same_output(tiny_sdxl: Path, run: RunFolder, tmp_path: Path) -> None:
    """P25, L3: unpacked in another folder, by diffusers and by us; alpha is twice the rank."""
    with zipfile.ZipFile(package.run(run, say=silent).zip) as archive:
        archive.extractall(tmp_path / "elsewhere")
    unpacked = tmp_path / "elsewhere/lace"
    ours = unet_of(tiny_sdxl)
    adapter.fuse(ours, adapter.load(unpacked))
    plain = output_of(unet_of(tiny_sdxl))
    for name in ("pytorch_lora_weights.safetensors", "lace.safetensors"):
        pipeline = load_pipeline(tiny_sdxl)
        with quiet():
            pipeline.load_lora_weights(unpacked, weight_name=name)
        loaded = [key for key, _ in pipeline.unet.named_parameters() if "lora_" in key]
        assert len(loaded) == len(adapter.load(unpacked).state)
        assert torch.allclose(output_of(pipeline.unet), output_of(ours), atol=1e-4)
    assert (output_of(ours) - plain).abs().max() > 0.01


@pytest.mark.parametrize("shows_photographs", [False, True])
def test_nothing_of_the_persons_computer_is_in_it(run: RunFolder, tmp_path: Path, shows_photographs: bool) -> None:
    """P25, C2: no path, no account, no name of a photograph: in texts, headers, PNG chunks, report and zip."""
    made = package.run(run, shows_photographs=shows_photographs, say=silent)
    found = {}
    for name in made.files:
        data = (made.folder / name).read_bytes()
        found[name] = [one for one in (SECRET, str(tmp_path), "/MyDrive", "babanne") if one.encode() in data]
    with zipfile.ZipFile(made.zip) as archive:
        found["names"] = [name for name in archive.namelist() if SECRET in name]
    told = found.pop("report.html")
    assert not any(found.values()), found
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    if shows_photographs:
        assert "rose.jpg" in page and "most like" in page  # asked for: the photograph's name, its place within a folder
    else:
        assert not told and "rose.jpg" not in page and "nearest.jpg" not in page
    assert "None of 1 picture" in page  # what was found is said in words
    with Image.open(made.folder / "samples/sample_00.png") as picture:
        details = json.loads(picture.info["lace_lora"])
    assert details["seed"] == 0 and "tiny-sdxl" == details["pretrained_model"] and "start_picture" not in details


def test_every_setting_that_is_a_text_is_known_to_be_harmless_or_left_out() -> None:
    """P25: a new setting must be put into one of these sets."""
    texts = {name for name, field in Config.model_fields.items() if field.annotation in (str, str | None)}
    assert texts == (texts & (report.FOLDERS | report.MODELS)) | WORDS
    assert not (report.FOLDERS | report.MODELS) & WORDS


def test_the_settings_in_it_can_be_read_and_are_those_that_ran(run: RunFolder) -> None:
    """P25: but for folders."""
    made = package.run(run, say=silent)
    there, ran = load(made.folder / "config.yaml"), load(run.config)
    differ = {name for name in Config.model_fields if getattr(there, name) != getattr(ran, name)}
    assert differ <= report.FOLDERS | report.MODELS and {"images_dir", "pretrained_model"} <= differ
    assert (there.pretrained_model, there.num_inference_steps) == ("tiny-sdxl", 4)


def test_samples_are_favourites_first_with_prompt_and_seed(run: RunFolder) -> None:
    """P25: pixel for pixel, each with what drew it."""
    stars.set_all(run, ["sheet/1"])
    made = package.run(run, say=silent)
    assert (
        read_pixels(made.folder / "samples/sample_00.png") == read_pixels(run.sheet("sheet").refined(1, "png"))
    ).all()
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    rows = {row["index"]: row for row in map(json.loads, run.sheet("sheet").manifest.read_text().splitlines())}
    widget = front_matter(card)["widget"]
    assert [one["text"] for one in widget] == [rows[1]["prompt"], rows[0]["prompt"]]
    assert [one["output"]["url"] for one in widget] == ["samples/sample_00.png", "samples/sample_01.png"]
    assert f"seed {rows[1]['seed']}, steps 4" in card and "refined" in card


def test_a_run_without_designs_report_or_settings_is_packed_too(bare: RunFolder) -> None:
    """P25: and one with samples of its training shows these."""
    made = package.run(bare, say=silent)
    assert "report.html" not in made.files and not [name for name in made.files if name.startswith("samples/")]
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "Not measured." in card and "## Samples" not in card and "`a photo of <lace>`" in card
    bare.sample(5, 0).parent.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(bare.sample(5, 0))
    bare.config.write_text("prompts: [a rosette]\n", encoding="utf-8")
    made = package.run(bare, say=silent)
    assert made.is_new and front_matter((made.folder / "README.md").read_text())["widget"][0]["text"] == "a rosette"


def test_designs_begun_with_a_picture_of_hers_are_shown_only_where_that_is_asked_for(run: RunFolder) -> None:
    """P25: what is drawn over a photograph shows it."""
    manifest = run.sheet("sheet").manifest
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0] |= {"start_picture": "rose.jpg", "start_digest": "d" * 64}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len([name for name in package.run(run, say=silent).files if name.startswith("samples/")]) == 1
    asked = package.run(run, shows_photographs=True, say=silent)
    assert len([name for name in asked.files if name.startswith("samples/")]) == 2


# -- made once, whole, and the same everywhere --


def test_the_same_run_gives_the_same_bytes_anywhere(run: RunFolder, tmp_path: Path) -> None:
    """P25."""
    first = package.run(run, say=silent).zip.read_bytes()
    shutil.copytree(run.root, tmp_path / "other place" / "lace", ignore=shutil.ignore_patterns("package*", "*.zip"))
    other = RunFolder(tmp_path / "other place/lace")
    assert not other.package.exists()
    assert package.run(other, say=silent).zip.read_bytes() == first


def test_it_is_written_again_only_where_something_changed(run: RunFolder) -> None:
    """P25."""
    said: list[str] = []
    made = package.run(run, say=said.append)
    times = {path: path.stat().st_mtime_ns for path in (*made.folder.rglob("*"), made.zip)}
    again = package.run(run, say=said.append)
    assert made.is_new and not again.is_new and "nothing changed since it was made" in said[-1]
    assert times == {path: path.stat().st_mtime_ns for path in (*made.folder.rglob("*"), made.zip)}
    stars.set_all(run, ["sheet/1"])
    assert package.run(run, say=said.append).is_new


def test_what_a_person_changed_in_it_is_kept(run: RunFolder) -> None:
    """P25."""
    made = package.run(run, say=silent)
    (made.folder / "README.md").write_text("my own words")
    (made.folder / "mine.txt").write_text("a note")
    said: list[str] = []
    package.run(run, say=said.append)
    aside = run.root / "package-changed-1"
    assert (aside / "README.md").read_text() == "my own words" and (aside / "mine.txt").is_file()
    assert "! The package was changed by hand; that one is kept as package-changed-1." in said
    assert "my own words" not in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("room, name", [("checkpoint", "save_folder"), ("archives", "write")])
def test_a_cut_leaves_no_half_package_and_no_old_zip(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, room: str, name: str
) -> None:
    """P25, P15: the power goes before the folder or before the zip is written."""
    package.run(run, say=silent)
    stars.set_all(run, ["sheet/1"])

    def cut(*given: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as here:
        here.setattr(getattr(package, room), name, cut)
        with pytest.raises(SystemExit):
            package.run(run, say=silent)
    assert not run.package_zip.exists()
    made = package.run(run, say=silent)
    with zipfile.ZipFile(made.zip) as archive:
        assert archive.read("lace/README.md") == (made.folder / "README.md").read_bytes()


# -- the card --


def test_the_card_is_what_hugging_face_reads(run: RunFolder) -> None:
    """P25: its own reader gives back what we said; nothing is said of an unknown base."""
    from huggingface_hub import ModelCard

    made = package.run(run, say=silent)
    data = ModelCard.load(made.folder / "README.md").data
    assert data.instance_prompt == "a photo of <lace>" and data.library_name == "diffusers"
    assert data.license == "unknown" and data.base_model is None
    assert {"text-to-image", "lora", "stable-diffusion-xl", "template:sd-lora"} <= set(data.tags)


@pytest.mark.parametrize(
    ("base", "licence", "is_linked"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++", True),
        ("somebody/fine-tune", "unknown", True),
        ("lace-demo", "apache-2.0", False),
        ("FOLDER", "cc-by-nc-4.0", False),
    ],
)
def test_the_licence_is_the_bases_own_and_never_invented(
    run: RunFolder, tmp_path: Path, base: str, licence: str, is_linked: bool
) -> None:
    """P25."""
    if base == "FOLDER":
        (tmp_path / "base").mkdir()
        (tmp_path / "base/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# a base\n")
        base = str(tmp_path / "base")
    card = json.loads(run.adapter_card.read_text())
    lora = adapter.load(run.root)
    facts = replace(lora.facts, base_model=base)
    adapter.save(lora.state, run, facts)
    assert card["sha256"] != json.loads(run.adapter_card.read_text())["sha256"]
    text = (package.run(run, say=silent).folder / "README.md").read_text(encoding="utf-8")
    found = front_matter(text)
    assert found["license"] == licence and (found.get("base_model") == base) == is_linked
    assert str(tmp_path) not in text


def test_the_verdict_is_told_as_it_was_found_also_where_it_is_of_an_earlier_lora(run: RunFolder) -> None:
    """P25, P24: nothing that was measured is left out or taken for more."""
    text = (package.run(run, say=silent).folder / "README.md").read_text(encoding="utf-8")
    assert "- The style was learnt.\n- None is a copy \\| \\<b\\>." in text and "earlier state" not in text
    lora = adapter.load(run.root)
    adapter.save({name: 1.5 * one for name, one in lora.state.items()}, run, lora.facts)
    text = (package.run(run, say=silent).folder / "README.md").read_text(encoding="utf-8")
    assert "measured on an earlier state of the LoRA" in text


def test_the_card_of_somebody_elses_lora_claims_nothing_for_us(tiny_sdxl: Path, tmp_path: Path) -> None:
    """P25: maker, base model, trigger and licence are not known; the example names a model that there is."""
    folder = RunFolder(tmp_path / "friend")
    lora = made_lora(tiny_sdxl, folder, resolution=0, concept_token="", instance_prompt="")
    adapter.save(lora.state, folder, replace(lora.facts, versions={}, base_model="not stated in the file"))
    made = package.run(folder, say=silent)
    text = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "made with another program and packed by Lace LoRA" in text and "| trained | with another program |" in text
    assert "The licence of the base model is not known" in text and "the licence that its maker gave it" in text
    assert not {"instance_prompt", "base_model"} & front_matter(text).keys() and "<myspecialstyle>" not in text
    assert "from_pretrained('stabilityai/stable-diffusion-xl-base-1.0')" in (made.folder / "example.py").read_text()
    assert "asks for the checkpoint `sd_xl_base_1.0.safetensors`" in text


def test_the_card_of_a_rehearsal_says_that_no_other_program_draws_with_it(tmp_path: Path) -> None:
    """P25."""
    folder = RunFolder(tmp_path / "demo")
    lora = made_lora(demo.base_dir(), folder, resolution=64, prediction_type="v_prediction", layers_per_block=1)
    adapter.save(lora.state, folder, replace(lora.facts, base_model="lace-demo"))
    text = (package.run(folder, say=silent).folder / "README.md").read_text(encoding="utf-8")
    assert "A rehearsal: a LoRA for the miniature model" in text and "cannot load the miniature model" in text
    assert "Stable Diffusion XL" not in text and "models/loras" not in text


def test_strength_and_repeats_of_the_samples_are_told(run: RunFolder) -> None:
    """P25: the example draws at the samples' strength; seamless repeats it cannot draw."""
    manifest = run.sheet("sheet").manifest
    rows = [json.loads(line) | {"lora_scale": 0.8, "repeat": "half-drop"} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = package.run(run, say=silent)
    assert 'cross_attention_kwargs={"scale": 0.8}' in (made.folder / "example.py").read_text()
    assert "seamless repeats (half-drop): these Lace LoRA alone draws" in (made.folder / "README.md").read_text()


def test_a_package_without_its_marker_is_kept_too(run: RunFolder) -> None:
    """P25: nobody knows what a person changed in it."""
    made = package.run(run, say=silent)
    (made.folder / "complete.json").unlink()
    (made.folder / "README.md").write_text("my own words")
    package.run(run, say=silent)
    assert (run.root / "package-changed-1/README.md").read_text() == "my own words"


# -- the example --


def drew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Path]:
    monkeypatch.chdir(folder)
    with quiet():
        return runpy.run_path("example.py"), folder / "design.png"


def test_the_example_is_three_lines_and_draws(tiny_sdxl: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """P25: executed as it is, where the base model lies in a folder of its name; the card shows the same lines."""
    made = package.run(run, say=silent)
    code = (made.folder / "example.py").read_text(encoding="utf-8")
    lines = [line for line in code.splitlines() if line and not line.startswith("from ")]
    assert len(lines) == 3 and code in (made.folder / "README.md").read_text(encoding="utf-8")
    (made.folder / "tiny-sdxl").symlink_to(tiny_sdxl)
    found, design = drew(made.folder, monkeypatch)
    assert picture_at(design).size == (32, 32)
    assert found["pipeline"].get_active_adapters()


def test_the_example_for_a_learnt_word_loads_it_into_both_encoders(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P25."""
    folder = RunFolder(tmp_path / "word")
    lora = made_lora(tiny_sdxl, folder, resolution=32, concept_token="<lace>", instance_prompt="<lace>")
    rows = {"text_encoder.concept_token": torch.ones(1, 16), "text_encoder_2.concept_token": torch.full((1, 16), 2.0)}
    adapter.save({**lora.state, **rows}, folder, replace(lora.facts, learns_token=True))
    folder.config.write_text("num_inference_steps: 2\n", encoding="utf-8")
    made = package.run(folder, say=silent)
    (made.folder / "tiny-sdxl").symlink_to(tiny_sdxl)
    pipeline = drew(made.folder, monkeypatch)[0]["pipeline"]
    for encoder, tokenizer, value in (
        (pipeline.text_encoder, pipeline.tokenizer, 1.0),
        (pipeline.text_encoder_2, pipeline.tokenizer_2, 2.0),
    ):
        number = tokenizer.convert_tokens_to_ids("<lace>")
        assert (encoder.get_input_embeddings().weight[number] == value).all()
    flow = json.loads((made.folder / "comfyui_workflow_api.json").read_text(encoding="utf-8"))
    assert next(node["inputs"]["text"] for node in flow.values() if "text" in node["inputs"]) == "embedding:word_word"
    assert "models/embeddings/word_word.safetensors" in (made.folder / "README.md").read_text(encoding="utf-8")


def test_the_example_for_the_model_that_ships_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P25: its folder is found by its name."""
    folder = RunFolder(tmp_path / "demo")
    lora = made_lora(demo.base_dir(), folder, resolution=64, prediction_type="v_prediction", layers_per_block=1)
    adapter.save(lora.state, folder, replace(lora.facts, base_model="lace-demo"))
    folder.config.write_text("num_inference_steps: 2\n", encoding="utf-8")
    made = package.run(folder, say=silent)
    assert picture_at(drew(made.folder, monkeypatch)[1]).size == (64, 64)


# -- the command --


def test_the_command_packs_a_run_by_its_name_and_uploads_where_that_is_set(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """P25, L12."""
    sent: list[Any] = []
    monkeypatch.setattr(hub, "push", lambda *given: sent.append(given) or "https://huggingface.co/me/lace")
    line = ["package", "lace", "--preset", "none", "--lora_output_dir", str(run.root.parent)]
    assert main.run(line) == 0 and not sent
    assert f"zip       {run.package_zip}" in capsys.readouterr().out
    assert main.run([*line, "--push-to-hub", "me/lace"]) == 0
    assert sent[0][:2] == (run.package, "me/lace") and "complete.json" not in sent[0][2]
    said = capsys.readouterr().out
    assert "uploaded  https://huggingface.co/me/lace" in said and "It is private unless you made it public" in said
    assert main.run(["package", "lacy", *line[2:]]) == 1
    assert "No run called 'lacy'" in capsys.readouterr().err


def test_without_an_adapter_there_is_nothing_to_pack(tmp_path: Path) -> None:
    """P25."""
    with pytest.raises(AdapterError, match="Train one first"):
        package.run(RunFolder(tmp_path / "none"), say=silent)
    assert not (tmp_path / "none").exists() and issubclass(AdapterError, LaceError)


# -- the workflow --


def test_the_workflow_draws_as_the_run_drew(run: RunFolder) -> None:
    """P25: prompt, seed, size, sampler and refiner of the first sample; both forms are the same steps."""
    made = package.run(run, say=silent)
    api = json.loads((made.folder / "comfyui_workflow_api.json").read_text(encoding="utf-8"))
    page = json.loads((made.folder / "comfyui_workflow.json").read_text(encoding="utf-8"))
    assert page == workflow_page.laid_out(api)
    row = json.loads(run.sheet("sheet").manifest.read_text().splitlines()[0])
    assert package.design_of(adapter.load(run.root), "lace", [model_card.Sample("", row)], load(run.config)) == Design(
        "tiny-sdxl.safetensors", row["prompt"], row["seed"], 32, 32, row["negative_prompt"], 4, row["guidance_scale"],
        row["scheduler"], "lace.safetensors", row["lora_scale"], 0.0, "tiny-refiner.safetensors", row["refiner_prompt"],
        row["refine"], 0.5, row["refine_strength"] or load(run.config).refine_strength, "lace",
        concept_token="<lace>",
    )  # fmt: skip
    saved = [node["inputs"]["filename_prefix"] for node in api.values() if node["class_type"] == "SaveImage"]
    assert saved == ["lace_base", "lace_refined"]


def test_a_run_that_was_not_refined_asks_for_one_checkpoint(bare: RunFolder) -> None:
    """P25."""
    bare.config.write_text("prompts: [a rosette]\nrefine: none\n", encoding="utf-8")
    made = package.run(bare, say=silent)
    api = json.loads((made.folder / "comfyui_workflow_api.json").read_text(encoding="utf-8"))
    assert [node["class_type"] for node in api.values()].count("CheckpointLoaderSimple") == 1


def test_markdown_shows_prompts_letter_by_letter() -> None:
    """P25: a token in angle brackets would vanish as HTML, a backtick would end the code."""
    assert model_card._code("a `b` <c>|d") == "`` a `b` <c>|d ``" and model_card._code("") == "empty"
    assert re.fullmatch(r"\\<b\\> \\\[x\\\]", model_card._plain("<b> [x]"))
