"""`lace-lora selftest`: what works on this machine in plain words, and its figures for the plan (C14, L14, P19)."""

import copy
import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lace_lora import config, experience, main, selftest
from lace_lora.demo import base_dir
from lace_lora.families import random_model
from lace_lora.selftest import Worked
from tests.test_presets import T4

NAMES = ["encode", "train", "kill", "resume", "draw"]
SEEN = {"seconds": 1.0, "is_finite": True}
LOSSES = [0.5, 0.4, 0.3, 0.2, 0.1]
MEMORY = {"pictures": 6, "planned_gb": 5.0}
TRAINED = SEEN | {"resumed": "", "learnt_norm": 1.0, "seconds_a_step": 0.2, "steps": 5}
PICTURE = {"name": "a.png", "width": 96, "height": 96, "range": 200}
GOOD = {
    "whole": Worked({"encode": SEEN | MEMORY, "train": TRAINED}, 0),
    "killed": Worked({}, -9, "step 3"),
    "resumed": Worked(
        {"train": TRAINED | {"resumed": "resumed   after step 2"},
         "draw": SEEN | {"designs": 1, "pictures": [PICTURE, PICTURE]}}, 0,
    ),
}  # fmt: skip


@pytest.mark.slow
def test_the_self_test_passes_on_the_miniature_model_and_the_plan_takes_its_figures_in(tmp_path, capsys):
    """C14, L14: five real parts, a process really killed; one JSON, which also goes where --json says."""
    asked = ["--cache-dir", str(tmp_path / "cache"), "--json", str(tmp_path / "out.json")]
    assert main.run(["selftest", *asked, "--resolution", "64", "--num-inference-steps", "8"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("  passed ")] == NAMES
    assert "all 5 losses are those of the unbroken training, bit for bit" in out and "Everything passed." in out
    told = json.loads((tmp_path / "out.json").read_text())
    assert told == json.loads((tmp_path / "cache" / "selftest.json").read_text())
    assert told["passed"] and told["losses"]["whole"] == told["losses"]["killed"]
    assert told["processes"]["killed"]["exit_code"] == -9 and told["processes"]["resumed"]["train"]["peak_ram_gb"] > 0.1
    assert told["hardware"]["cpu_cores"] and told["versions"]["torch"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["selftest.json"]
    stages = {one.stage for one in experience.read(tmp_path / "cache").figures}
    assert stages == {"train", "generate", "refine", "decode"}
    line = ["plan", "--preset", "demo", "--cache-dir", str(tmp_path / "cache"), "--json"]
    where = ["--images-dir", str(tmp_path / "pictures"), "--lora-output-dir", str(tmp_path / "out"), "--gpu", "cpu"]
    assert main.run([*line, *where]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["time_is"] == "scaled from the self-test"  # which learnt at 64 px


@pytest.mark.slow
def test_a_model_whose_numbers_are_not_finite_fails_with_exit_code_1(tmp_path, capsys):
    """C14, P19: one NaN in the UNet; what comes after is not tried, and the plan takes nothing in."""
    model = tmp_path / "model"
    shutil.copytree(base_dir(), model)
    (weights,) = (model / "unet").glob("*.safetensors")
    state = load_file(weights)
    state["conv_out.bias"] = torch.full_like(state["conv_out.bias"], math.nan)
    save_file(state, weights, metadata={"format": "pt"})
    line = ["selftest", "--pretrained-model", str(model), "--cache-dir", str(tmp_path / "cache"), "--preset", "demo"]
    assert main.run([*line, "--resolution", "64"]) == 1
    out, err = capsys.readouterr()
    assert "  passed    encode" in out and "  FAILED    train" in out and "  not tried draw" in out
    assert err.startswith("The self-test did not pass: train.") and "Traceback" not in err
    assert not experience.read(tmp_path / "cache").figures
    assert not json.loads((tmp_path / "cache" / "selftest.json").read_text())["passed"]


def judged(tmp_path, monkeypatch, whole=LOSSES, killed=LOSSES, **changes):
    """The report of a self-test whose processes left these facts and losses."""
    left = copy.deepcopy(GOOD)
    for path, value in changes.items():
        process, part, name = path.split("__")
        left[process].facts[part][name] = value
    trial = selftest.Trial.of(config.load(), T4, tmp_path, lambda _: None)
    trial.model = selftest.MINIATURE
    seen = {"whole": list(whole), "killed": list(killed[: selftest.KILLED_IN])}

    def work(job, path):
        if path.name.startswith("resumed"):
            seen["killed"] = list(killed)
        return left[path.name.split(".")[0]]

    monkeypatch.setattr(selftest, "work", work)
    monkeypatch.setattr(selftest.Trial, "_losses", lambda self, run: seen[run])
    monkeypatch.setattr(selftest.Trial, "_prepare", lambda self: True)
    trial.run()
    return trial.report(tmp_path / "selftest.json")


def test_what_is_good_passes(tmp_path, monkeypatch):
    report = judged(tmp_path, monkeypatch)
    assert report.passed and [check.name for check in report.checks] == NAMES


@pytest.mark.parametrize(("changes", "name", "sentence"), [
    ({"killed": [*LOSSES[:4], 0.10000001]}, "resume", "the resumed training differs: .* from step 5 on"),
    ({"killed": [0.6, *LOSSES[1:]]}, "resume", "two equal trainings differ on this machine"),
    ({"killed": LOSSES[:4]}, "resume", "from step 5 on"),
    ({"resumed__train__resumed": ""}, "resume", "it did not go on after step 2"),
    ({"whole": [*LOSSES[:4], math.nan]}, "train", "not finite"),
    ({"whole": LOSSES[:3]}, "train", "3 of 5 steps were made"),
    ({"whole__train__is_finite": False}, "train", "not finite"),
    ({"whole__train__learnt_norm": 0.0}, "train", "nothing was learnt"),
    ({"whole__encode__is_finite": False}, "encode", "not finite"),
    ({"whole__encode__error": "The disk is full."}, "encode", "The disk is full."),
    ({"resumed__draw__pictures": [PICTURE, PICTURE | {"range": 0}]}, "draw", "one flat colour"),
    ({"resumed__draw__designs": 0}, "draw", "no design came out"),
    ({"killed": LOSSES[:2]}, "kill", "ended otherwise"),
])  # fmt: skip
def test_whatever_is_wrong_is_found_and_told_by_its_name(tmp_path, monkeypatch, changes, name, sentence):
    """L14, P19: each fault alone; what comes after it is not tried."""
    import re

    report = judged(tmp_path, monkeypatch, **changes)
    verdicts = {check.name: check.passed for check in report.checks}
    assert [one for one, passed in verdicts.items() if passed is False] == [name]
    assert [verdicts[one] for one in NAMES[NAMES.index(name) + 1 :]] == [None] * (4 - NAMES.index(name))
    assert re.search(sentence, str(report)) and not report.passed
    assert report.facts["figures"] == [] and json.dumps(report.facts, allow_nan=False)


def test_a_process_that_dies_is_told_with_its_last_words(tmp_path, monkeypatch):
    """L9."""
    monkeypatch.setitem(GOOD, "whole", Worked({}, -11, "Segmentation fault"))
    report = judged(tmp_path, monkeypatch)
    assert "its process ended with code -11; it said last: Segmentation fault" in str(report)


def test_a_gpu_is_tried_at_true_size_with_the_weights_that_are_here(tmp_path, tiny_sdxl, monkeypatch):
    """C14: real ones where they are, random ones otherwise; without a GPU the miniature."""
    laptop = dataclasses.replace(T4, gpu_name=None)

    def model(machine, **asked):
        return selftest.Trial.of(config.load(**asked), machine, tmp_path, lambda _: None)

    assert model(T4).model == selftest.RANDOM and model(laptop).model == selftest.MINIATURE
    assert model(T4).values["pretrained_model"] == str(tmp_path / "models/base")
    assert model(T4, pretrained_model=str(tiny_sdxl)).model == selftest.REAL
    assert model(T4, preset="demo").model == selftest.MINIATURE
    monkeypatch.setattr(selftest.folders, "is_here", lambda name: True)
    assert model(T4).model == selftest.REAL


def test_a_disk_without_room_for_random_weights_is_said_before_anything_is_drawn(tmp_path):
    """L9: how much is needed, how much there is, what to do."""
    with pytest.raises(random_model.MachineError, match=r"take 1000000 GB, and .* Free some space, name a folder"):
        random_model.check_room(tmp_path, 1e6)


def test_a_gpus_speed_becomes_a_row_of_the_table(tmp_path):
    """C14: TFLOP a second of the steps, and of the VAE in fp32; with hardware, versions, date and command."""
    trial = selftest.Trial.of(config.load(), T4, tmp_path, lambda _: None)
    work = selftest.throughput.Work
    rows = [
        experience.Figure(stage, "T4", "sdxl", "fp16", "none", "", 2.0, work(tflop, is_fp32=is_fp32))
        for stage, tflop, is_fp32 in (("train", 20.0, False), ("decode", 7.0, True))
    ]
    row = trial._speeds(rows)["T4"]
    assert (row["half_tflops"], row["full_tflops"]) == (10.0, 3.5)
    assert "lace-lora selftest" in row["source"] and "torch" in row["source"]
    assert experience._speeds({"T4": row})["T4"].source == row["source"] != selftest.throughput.ESTIMATED
    assert trial._speeds([dataclasses.replace(one, model="demo") for one in rows]) == {}
