"""`lace-lora plan`: a page and a table, JSON, presets side by side, another machine than this one (C14, C15, P29)."""

import json

import pytest

from lace_lora import main


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(capsys, *words):
    code = main.run(["plan", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_plan_for_another_gpu_needs_neither_it_nor_pictures(capsys):
    """C14: for a T4 from wherever one sits, with 250 pictures where there are none to count."""
    code, out, _ = said(capsys, "--gpu", "T4")
    assert code == 0
    assert "machine     T4 (14.7 GB)" in out and "pictures    250 assumed, at 1024 px" in out
    stages = ("encode pictures", "encode captions", "train", "generate", "refine", "decode")
    assert all(f"\n{stage} " in out for stage in stages)


def test_presets_stand_side_by_side_with_both_the_plain_and_the_4_bit_numbers(capsys):
    """P29: a column each, the 4-bit one needs less."""
    code, out, _ = said(capsys, "--gpu", "T4", "--compare", "fast,lace-t4", "--compare", "lace-t4-qlora")
    rows = {line.split("  ")[0]: line.split()[len(line.split("  ")[0].split()) :] for line in out.splitlines()}
    assert code == 0 and rows[""][-3:] == ["fast", "lace-t4", "lace-t4-qlora"]
    assert rows["quantization"] == ["none", "none", "nf4"] and rows["resolution"] == ["512", "1024", "1024"]
    fast, plain, small = (float(one) for one in rows["GPU memory"][::2])
    assert fast < plain and small < plain and rows["fits"] == ["yes"] * 3


def test_what_a_file_sets_beats_the_presets_and_is_said(capsys, tmp_path):
    """C10."""
    (tmp_path / "config.yaml").write_text("resolution: 768\n")
    _, out, _ = said(capsys, "--gpu", "T4", "--compare", "fast,lace-t4")
    assert out.splitlines()[1].split() == ["resolution", "768", "768"]
    assert "Set by you, so by no preset: resolution." in out


def test_json_is_for_other_programs(capsys):
    """C14, C15: every stage with its numbers, every price with its assumption."""
    _, out, _ = said(capsys, "--gpu", "L4", "--json")
    told = json.loads(out)
    train = next(stage for stage in told["stages"] if stage["name"] == "train")
    assert train["memory_gb"] == pytest.approx(told["vram_gb"]) and train["tflop"] > 1000
    assert all(price["assumption"] for price in told["prices"]) and told["prices_as_of"]
    _, out, _ = said(capsys, "--gpu", "L4", "--json", "--compare", "fast,sdxl")
    assert set(json.loads(out)) == {"fast", "sdxl"}


@pytest.mark.parametrize(("words", "sentence"), [
    (("--gpu", "A1000"), "did you mean A100"),
    (("--compare", "fast,lace-t5"), "did you mean lace-t4?"),
    (("--preset", "sd15", "--refine", "img2img", "--gpu", "T4"), "has no refiner. Set refine none"),
])  # fmt: skip
def test_a_wrong_word_has_its_sentence(capsys, words, sentence):
    """L9, C7."""
    code, _, err = said(capsys, *words)
    assert code == 1 and sentence in err and "Traceback" not in err


def test_json_is_json_in_an_empty_folder_and_nothing_is_written_there(capsys, tmp_path):
    """C14: the demo's pictures are counted as they will be drawn."""
    import inspect

    from lace_lora import demo
    from lace_lora.demo.draw import write_lace_folder

    code, out, err = said(capsys, "--json", "--preset", "demo")
    told = json.loads(out)
    assert code == 0 and (told["pictures"], told["pictures_are"]) == (demo.PICTURES, "counted")
    assert list(tmp_path.iterdir()) == []
    assert inspect.signature(write_lace_folder).parameters["count"].default == demo.PICTURES


def test_pictures_that_are_not_there_are_said_to_be_assumed(capsys, tmp_path):
    """C14: a name that was mistyped shows, on the page, side by side and as JSON."""
    missing = str(tmp_path / "nowhere")
    _, out, _ = said(capsys, "--gpu", "T4", "--images-dir", missing)
    assert "pictures    250 assumed" in out
    assert f"! 250 pictures are assumed, because none could be counted: There is no folder {missing}" in out
    _, out, _ = said(capsys, "--gpu", "T4", "--images-dir", missing, "--json")
    assert json.loads(out)["pictures_are"] == "assumed" and "nowhere" in json.loads(out)["warnings"][0]["sentence"]
    _, out, _ = said(capsys, "--gpu", "T4", "--images-dir", missing, "--compare", "fast,lace-t4")
    assert out.count("250 pictures are assumed") == 1
    code, _, err = said(capsys, "--images-dir", missing, "--preset", "none")
    assert code == 1 and "There is no folder" in err


def test_comparing_nothing_is_a_mistake(capsys):
    """C14."""
    code, _, err = said(capsys, "--compare", ",")
    assert code == 1 and "--compare names no preset" in err
