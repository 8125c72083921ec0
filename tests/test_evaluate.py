"""A run is measured: good, new, which checkpoint; every number in scores.json, and a page to read (P20 to P24, C13)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lace_lora import (
    blind,
    blind_form,
    evaluate,
    exhibits,
    grid,
    main,
    measuring,
    opinions,
    pairs,
    pictures,
    report,
    train,
)
from lace_lora.config import Config, load
from lace_lora.demo import draw
from lace_lora.embedders import Embedder
from lace_lora.errors import AdapterError, ModelError, RunError
from lace_lora.families import memory
from lace_lora.image_files import open_picture
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation
from tests.conftest import draw_threads
from tests.drawing import seeds_drawn
from tests.judging import tiny_classifier, tiny_clip, tiny_dinov2
from tests.test_grid import settings_of
from tests.training import quietly

JUDGES = {"style_model": "none", "text_model": "none"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pictures that differ."""
    return draw_threads(tmp_path_factory.mktemp("evaluate") / "pictures", 14)


@pytest.fixture(scope="module")
def trained(tiny_sdxl: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with checkpoints of the steps 5 and 10, each with a look at five held-out pictures."""
    cache = tmp_path_factory.getbasetemp() / "shared_cache"
    config = settings_of(tiny_sdxl, photographs, tmp_path_factory.mktemp("evaluate") / "out", cache)
    config = config.model_copy(
        update={"validation_fraction": 0.36, "validate_every": 5, "num_evaluated": 5, "all_checkpoints": True} | JUDGES
    )
    train.run(config, say=quietly)
    return config


@pytest.fixture(scope="module")
def evaluated(trained: Config) -> Config:
    """The same run, evaluated with all checkpoints."""
    evaluate.run(trained, say=quietly)
    return trained


@pytest.fixture
def config(evaluated: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The evaluated run in a folder of its own."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)
    shutil.copytree(evaluated.lora_output_dir, tmp_path / "out")
    return evaluated.model_copy(update={"lora_output_dir": str(tmp_path / "out")})


def found_of(config: Config) -> Evaluation:
    found = Evaluation.read(RunFolder.of(config))
    assert found is not None
    return found


def test_an_evaluation_answers_every_question_and_keeps_its_files(config: Config) -> None:
    """P20, D9: style with intervals, copies, drift, variety, and which checkpoint."""
    run, found = RunFolder.of(config), found_of(config)
    ids = {score.id for score in found.scores}
    assert ids >= {"style_base", "style_lora", "style_held_out", "style_match", "drift_plain", "variety_lora"}
    assert all((score.value is None) == bool(score.refusal) for score in found.scores)
    measured = [score for score in found.scores if score.value is not None and score.low is not None]
    assert measured and all(score.low <= score.value <= score.high for score in measured)
    assert found.counts["training"] == 9 and found.counts["held out"] == 5 and found.counts["pairs"] == 5
    assert {pair.made for pair in found.copies.pairs} == {
        one.relative_to(run.root).as_posix() for one in (run.evaluation / "measured/cells").glob("step-*.png")
    }
    assert found.choice["step"] in (5, 10) and found.verdict
    for path in (run.scores, run.pairs, run.nearest(1), run.report):
        assert path.is_file()
    assert not run.nearest(2).exists()


def test_what_is_kept_reads_back_as_it_was_written(config: Config) -> None:
    """C13: nothing is lost between memory and scores.json."""
    found = evaluate.run(config, say=quietly)
    assert json.loads(json.dumps(found_of(config).facts["versions"])) == found.facts["versions"]
    assert found_of(config).scores == found.scores and found_of(config).copies == found.copies
    assert str(found_of(config)) == str(found)


def test_called_again_nothing_is_drawn_and_the_numbers_are_the_same(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, before = seeds_drawn(monkeypatch), found_of(config)
    again = evaluate.run(config, say=quietly)
    assert seeds == [] and again.scores == before.scores and again.copies == before.copies


def test_stopped_while_drawing_nothing_is_written_and_what_to_do_is_said(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation of half of the pictures would be taken for a whole one."""
    run = RunFolder.of(config)
    before = run.scores.read_bytes()
    working = grid._close

    def cut_short(*given: object) -> grid.Grid:
        made = working(*given)
        return grid.Grid(**{name: getattr(made, name) for name in made.__dataclass_fields__} | {"missing": 3})

    monkeypatch.setattr(grid, "_close", cut_short)
    found = evaluate.run(config, say=quietly)
    assert not found.is_complete and "3 pictures unfinished; what is drawn stays. Run the same again to go on." in str(
        found
    )
    assert run.scores.read_bytes() == before
    assert main.run(["evaluate", *words_of(config)]) == main.INTERRUPTED


def words_of(config: Config) -> list[str]:
    """The run and its judges, for a command line."""
    names = ("preset", "lora_output_dir", "images_dir", "cache_dir", "pretrained_model", "num_evaluated", "style_model",
             "text_model", "num_inference_steps", "width", "height", "seed")  # fmt: skip
    told = [[f"--{name}", str(getattr(config, name))] for name in names] + [["--lora_scale", "1"]]
    return [word for pair in told for word in pair]


def test_a_photograph_among_the_designs_is_called_a_copy(config: Config, photographs: Path) -> None:
    """D9: the whole way, from a file in a sheet to the verdict, the page and the advice."""
    run = RunFolder.of(config)
    digest = found_of(config).facts["adapter_digest"]
    sheet = run.sheet("sheet")
    sheet.root.mkdir(parents=True)
    learnt = sorted({path.name for path in photographs.glob("*.jpg")} - held_out(run))
    turned = open_picture(photographs / learnt[0]).rotate(90)
    pictures.write_picture(turned, sheet.root / "refined_output_000.png", "", {})
    row = {"index": 0, "prompt": "x", "refined": "refined_output_000.png", "adapter_digest": digest}
    sheet.manifest.write_text(json.dumps(row) + "\n")
    found = evaluate.run(config, say=quietly)
    [copy] = found.copies.copies
    assert (copy.made, copy.nearest) == ("images/sheet/refined_output_000.png", learnt[0])
    assert any("copy" in line and f"sheet/0 of {learnt[0]}" in line for line in found.verdict)
    assert found.choice["step"] == 5 and "Step 10 is not to be taken" in found.choice["advice"]
    assert "refined_output_000.png" in run.report.read_text(encoding="utf-8")


def held_out(run: RunFolder) -> set[str]:
    return {Path(line).name for line in run.held_out.read_text(encoding="utf-8").splitlines()}


def test_models_judge_where_they_are_named(config: Config, tmp_path: Path) -> None:
    """P21, P23: DINOv2, CLIP and a classifier, with random weights; every picture has a cosine in -1 … 1."""
    named = {
        "style_model": str(tiny_dinov2(tmp_path / "dino")), "text_model": str(tiny_clip(tmp_path / "clip")),
        "inception_model": str(tiny_classifier(tmp_path / "classifier")),
    }  # fmt: skip
    found = evaluate.run(config.model_copy(update=named), say=quietly)
    assert found.judges == {"style": "dino", "words": "clip", "other": "classifier"}
    for id in ("words_base", "words_lora"):
        score = found.score(id)
        assert score is not None and -1 <= score.value <= 1 and score.count == 5
    change = found.score("words_change")
    assert change.value == pytest.approx(found.score("words_lora").value - found.score("words_base").value)
    assert all(pair.feature_distance is not None for pair in found.copies.pairs)
    asked = found.score("inception_score")
    assert asked is not None and (asked.value is not None or "needs" in asked.refusal)
    assert found_of(config).score("inception_score") is not None  # only where it is asked for:
    assert evaluate.run(config, say=quietly).score("inception_score") is None


@pytest.mark.parametrize("name", ["style_model", "text_model", "inception_model"])
def test_a_judge_that_is_not_there_is_refused_before_anything_is_drawn(
    config: Config, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = seeds_drawn(monkeypatch)
    with pytest.raises(ModelError, match="nowhere"):
        evaluate.run(config.model_copy(update={name: "./nowhere", "seed": 99}), say=quietly)
    assert seeds == []


def test_without_its_photographs_a_run_is_measured_as_far_as_can_be(config: Config, tmp_path: Path) -> None:
    gone = config.model_copy(update={"images_dir": str(tmp_path / "gone")})
    run = RunFolder.of(gone)
    lines = run.annotations.read_text(encoding="utf-8").replace("pictures/", "elsewhere/")
    run.annotations.write_text(lines, encoding="utf-8")
    said: list[str] = []
    found = evaluate.run(gone, say=said.append)
    match = found.score("style_match")
    assert match is not None and match.value is None and "Mount Drive, or set images_dir" in match.refusal
    assert "Mount Drive" in found.copies.refusal and not found.copies.pairs
    assert any(line.startswith("! None of the 14 photographs") for line in said)


def test_a_run_that_has_learnt_nothing_is_refused(config: Config, tmp_path: Path) -> None:
    empty = config.model_copy(update={"lora_output_dir": str(tmp_path / "empty")})
    with pytest.raises(AdapterError):
        evaluate.run(empty, say=quietly)


def test_the_demos_unseen_lace_is_drawn_only_for_a_run_that_is_there(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P20, L13: sixty pictures, once the pairs are there; not for photographs that somebody brought."""
    drawn: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(draw, "write_lace_folder", lambda folder, *rest: drawn.append(draw_threads(folder, 2)))
    demo = load(preset="demo", lora_output_dir=str(tmp_path / "none"))
    with pytest.raises(AdapterError):
        evaluate.run(demo, say=quietly)
    assert not drawn
    words = [*words_of(config), "--preset", "demo", "--run_name", RunFolder.of(config).name]
    assert main.run(["evaluate", *words]) == 0 and not drawn
    at = words.index("--images_dir")
    assert main.run(["evaluate", *words[:at], *words[at + 2 :]]) == 0 and drawn == [Path("demo_output/unseen")]


def test_only_a_network_has_every_design_opened_for_it(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """P20: statistics look at no design, and the look for copies opens each itself: 2,000 need not be read twice."""
    opened: list[str] = []
    working = exhibits.Exhibit.open
    monkeypatch.setattr(
        exhibits.Exhibit, "open", lambda self, side=None: opened.append(self.name) or working(self, side)
    )
    made = pairs.draw(config, RunFolder.of(config), say=quietly).lora
    for is_weight_free in (True, False):
        judge = Embedder("judge", lambda pictures: None, is_weight_free)
        assert measuring.readable(judge, made, quietly) == list(made)
        assert opened == ([] if is_weight_free else [one.name for one in made])


def test_people_choose_between_the_pairs_that_were_measured(config: Config) -> None:
    """P24: LoRA against base, and the two checkpoints that are left to a person."""
    run = RunFolder.of(config)
    lora, made, base, plain = opinions.base_and_lora(run)
    assert (lora, base) == (opinions.LORA, opinions.BASE) and len(made) == len(plain) == 5
    told = [(pictures.read_details(one), pictures.read_details(other)) for one, other in zip(made, plain, strict=True)]
    assert all((one["prompt"], one["seed"]) == (other["prompt"], other["seed"]) for one, other in told)
    assert {(one["lora_scale"], other["lora_scale"]) for one, other in told} == {(1.0, 0.0)}
    name, ours, other_name, others = opinions.finalists(run)
    assert {name, other_name} == {"step 5", "step 10"}
    told = [(pictures.read_details(one), pictures.read_details(two)) for one, two in zip(ours, others, strict=True)]
    assert all((one["prompt"], one["seed"]) == (two["prompt"], two["seed"]) for one, two in told)
    assert {one["step"] for one, _ in told} == {int(name.split()[1])}


def test_what_cannot_be_asked_yet_has_its_sentence(config: Config, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="was not evaluated yet"):
        opinions.base_and_lora(RunFolder(tmp_path / "none"))
    evaluate.run(config.model_copy(update={"all_checkpoints": False}), say=quietly)
    with pytest.raises(RunError, match="lace-lora evaluate --all-checkpoints"):
        opinions.finalists(RunFolder.of(config))
    assert opinions.for_report(RunFolder.of(config)) == []


def test_answers_about_other_pictures_are_not_counted(config: Config) -> None:
    """P24: thirty answers about an earlier LoRA must not outvote those about this one."""
    run = RunFolder.of(config)
    sides = opinions.base_and_lora(run)
    asked = blind.pairs(*sides, 0)
    for number in range(30):
        blind.record(
            run, replace(asked[0], key=f"earlier-{number}", left_name=opinions.BASE, right_name=opinions.LORA), "left"
        )
    for pair in asked:
        blind.record(run, pair, "left" if pair.left_name == opinions.LORA else "right")
    [part] = opinions.for_report(run)
    said = " ".join(part["sentences"])
    assert "5 of 5" in said and "30 answers are about pictures of before" in said
    run.blind_answers.write_text('{"pair": "x", "left": "same", "right": "same", "said": "left"}\n', encoding="utf-8")
    [part] = opinions.for_report(run)
    assert part["sentences"] == ["1 answer is about pictures of before, and is not counted."]


def test_forms_say_what_is_lacking(config: Config, tmp_path: Path) -> None:
    assert "was not evaluated yet" in repr(blind_form.base_and_lora(RunFolder(tmp_path / "none")))
    assert "0 of 5 answered" in repr(blind_form.base_and_lora(RunFolder.of(config)))
    assert "step" in repr(blind_form.finalists(RunFolder.of(config)))


def test_a_damaged_design_is_left_out_and_costs_nothing_else(config: Config, photographs: Path) -> None:
    run = RunFolder.of(config)
    sheet = run.sheet("sheet")
    sheet.root.mkdir(parents=True)
    rows = []
    for number in range(3):
        for name in (f"base_result_{number:03d}.png", f"refined_output_{number:03d}.png"):
            pictures.write_picture(open_picture(photographs / "threads_0.jpg"), sheet.root / name, "", {})
        rows.append({"index": number, "prompt": "x", "base": f"base_result_{number:03d}.png",
                     "refined": f"refined_output_{number:03d}.png"})  # fmt: skip
    sheet.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("base_result_001.png", "refined_output_002.png"):
        (sheet.root / name).write_bytes((sheet.root / name).read_bytes()[:200])
    said: list[str] = []
    found = evaluate.run(config, say=said.append)
    assert found.score("sharp_refined").count == 1
    assert "images/sheet/refined_output_002.png" not in {pair.made for pair in found.copies.pairs}
    assert any("refined_output_002.png" in line for line in said) and any(
        "base_result_001.png" in line for line in said
    )


def test_scores_with_words_for_numbers_are_refused(config: Config) -> None:
    run = RunFolder.of(config)
    told = json.loads(run.scores.read_text())
    told["scores"][0]["value"] = "many"
    run.scores.write_text(json.dumps(told))
    with pytest.raises(RunError, match="cannot be understood. Write it again: lace-lora evaluate"):
        Evaluation.read(run)


def test_the_commands_measure_report_and_compare(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """P28: evaluate, report and compare by command; the run compared with itself differs in nothing."""
    run = RunFolder.of(config)
    assert main.run(["evaluate", *words_of(config)]) == 0
    assert found_of(config).verdict[0] in capsys.readouterr().out
    run.report.unlink()
    where = ["--preset", "none", "--lora_output_dir", config.lora_output_dir]
    assert main.run(["report", *where]) == 0 and run.report.is_file()
    assert main.run(["compare", run.name, run.name, *where]) == 0
    assert main.run(["compare", run.name, *where]) == 1
    assert "Name two runs" in capsys.readouterr().err
    assert report.write(run) == run.report
