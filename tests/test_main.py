"""The command line: every setting an option, one sentence for a mistake, the right exit code (L12, P26, P28, C13)."""

import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from lace_lora import __version__, config, config_text, main, options
from lace_lora.config import Config
from lace_lora.errors import MachineError
from tests.generated import ROOT

COMMANDS = ("check annotate export-captions plan train generate grid star demo runs notebooks presets settings").split()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no config.yaml of the project is found
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What the verb `plan` was called with, in place of planning."""
    seen: list[Config] = []
    monkeypatch.setattr(main, "_planned", lambda given: seen.append(given) or mock.Mock(stages=()))
    return seen


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on stderr, which is all there is."""
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return err.strip()


def test_help_lists_the_commands(capsys):
    """P28."""
    assert main.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^│ {command} ", out, re.M) for command in COMMANDS)


def test_it_says_its_version(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"lace-lora {__version__}\n"


def test_runs_are_those_of_the_preset_that_will_run_and_none_are_said(capsys, monkeypatch):
    from lace_lora import machine

    monkeypatch.setattr(machine, "_gpu", lambda: (None, 0.0, (0, 0), 0))
    for line in (["runs"], ["runs", "--preset", "demo"]):
        assert main.run(line) == 0
        assert capsys.readouterr().out == "No runs in demo_output.\n"
    assert main.run(["runs", "--preset", "none", "--lora_output_dir", "out"]) == 0
    assert capsys.readouterr().out == "No runs in out.\n"


def test_no_words_at_all_show_the_help(capsys):
    assert main.run([]) == 0
    assert "Usage: lace-lora" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "train", "generate", "runs"])
def test_every_setting_is_an_option_with_its_unit_bounds_and_default(command, capsys):
    """P28: generated from the declarations, so that they cannot differ."""
    assert main.run([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, field in Config.model_fields.items():
        assert f"--{name} " in text
        assert field.description in text
        for note in (config.unit_of(field), config.bounds_text(field)):
            assert note in text
    assert "(1 to 128; default 16)" in text and "default a photo of <myspecialstyle>)" in text
    assert all(title in text for title in config.GROUPS.values())


def test_options_are_read_in_both_spellings_and_become_values_of_their_kind(asked):
    line = ["plan", "--max-train-steps=7", "--learning_rate", "1e-5", "--random-flip", "false", "--alpha", "none"]
    assert main.run(line) == 0
    settings = asked[0]
    assert (settings.max_train_steps, settings.learning_rate, settings.random_flip) == (7, 1e-5, False)
    assert settings.alpha is None
    assert {"max_train_steps", "learning_rate", "random_flip"} <= settings.overridden


def test_lists_are_repeated_options(asked):
    line = ["plan", "--prompts", "a rosette, white", "--prompts", "a border", "--image_types", ".jpg,png"]
    assert main.run(line) == 0
    assert asked[0].prompts == ("a rosette, white", "a border")
    assert asked[0].image_types == (".jpg", ".png")


def test_later_files_win_and_options_win_over_files(asked, tmp_path):
    """P26."""
    (tmp_path / "a.yaml").write_text("rank: 4\nseed: 1\nlearning_rate: 1e-4\n")
    (tmp_path / "b.yaml").write_text("rank: 8\n")
    assert main.run(["plan", "--config", "a.yaml", "--config", "b.yaml", "--seed", "3"]) == 0
    assert (asked[0].rank, asked[0].seed, asked[0].learning_rate) == (8, 3, 1e-4)


def test_a_setting_that_is_on_or_off_may_stand_as_a_switch(asked):
    """L5: --use-dora, --use_dora true and --use-dora=true are one."""
    assert main.run("plan --use-dora --rank 8 --quarter_turns true --use-rslora=true --random-flip false".split()) == 0
    assert main.run("plan --learn-concept-token".split()) == 0
    first, second = asked
    assert (first.use_dora, first.rank, first.quarter_turns, first.use_rslora, first.random_flip) == (
        True, 8, True, True, False,
    )  # fmt: skip
    assert second.learn_concept_token


def test_the_config_of_the_folder_is_read_without_asking(asked, tmp_path):
    (tmp_path / "config.yaml").write_text("rank: 5\n")
    assert main.run(["plan"]) == 0
    assert asked[0].rank == 5


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train --rnak 3", "no option --rnak; did you mean --rank?"),
        ("train --max-trian-steps 3", "no option --max_trian_steps; did you mean --max_train_steps?"),
        ("settings --yam", "no option --yam; did you mean --yaml?"),
        ("train --rank", "lace-lora train: --rank needs a value."),
        ("train --rank 500", "rank is 500 but must be 1 to 128."),
        ("train --rank four", "rank is 'four' but must be 1 to 128."),
        ("plan --resolution 1004", "use 1000 or 1008"),
        ("tarin", "No command 'tarin'; did you mean train?"),
        ("plan foo", "unexpected extra argument"),
        ("plan --config nowhere.yaml", "No settings file nowhere.yaml."),
        ("--rank 3", "Name a command first, such as: lace-lora train --rank 3"),
        ("--config a.yaml plan", "Name a command first, such as: lace-lora plan --config a.yaml"),
        ("--mode teach", "--mode is 'teach' but must be train or inference."),
        ("notebooks", "Missing option '--output'"),
        ("notebooks --output out -p rank", "-p needs a name and a value"),
        ("plan --preset sdlx", "No preset called 'sdlx'; did you mean sdxl?"),
        ("settings --yaml --markdown", "Choose one of --yaml and --markdown."),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(line, sentence, capsys):
    assert main.run(line.split()) == 1
    assert sentence in one_sentence(capsys)


def test_unreadable_files_are_sentences(capsys, tmp_path):
    (tmp_path / "bad.yaml").write_text("rank: [4\n")
    assert main.run(["plan", "--config", "bad.yaml"]) == 1
    assert "bad.yaml at line 2" in one_sentence(capsys)
    (tmp_path / "unknown.yaml").write_text("learning_rte: 1e-4\n")
    assert main.run(["plan", "--config", "unknown.yaml"]) == 1
    assert one_sentence(capsys) == "unknown.yaml: no setting called 'learning_rte'; did you mean learning_rate?"


@pytest.mark.parametrize("command", ["check", "annotate", "plan", "train"])
def test_a_folder_that_is_not_there_or_holds_no_picture_is_a_sentence_and_nothing_is_written(command, capsys, tmp_path):
    here = ["--preset", "none", "--pretrained_model", "lace-demo", "--lora_output_dir", "out"]
    assert main.run([command, "--images_dir", "nowhere", *here]) == 1
    assert "nowhere" in one_sentence(capsys)
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "one.HEIC").write_bytes(b"no jpeg")
    assert main.run([command, "--images_dir", "phone", *here]) == 1
    assert "HEIC" in one_sentence(capsys)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))
    assert [path.name for path in (tmp_path / "phone").iterdir()] == ["one.HEIC"]


def test_a_model_that_is_not_there_is_a_sentence(capsys, lace_folder):
    line = ["train", "--preset", "none", "--images_dir", str(lace_folder), "--lora_output_dir", "out"]
    assert main.run([*line, "--pretrained_model", "./no-such-model"]) == 1
    assert "no-such-model" in one_sentence(capsys)


def test_generating_before_training_is_a_sentence(capsys):
    assert main.run(["generate", "--preset", "none", "--lora_output_dir", "out"]) == 1
    assert "out/lace" in one_sentence(capsys)


def test_debug_shows_the_traceback_anywhere_in_the_line(capsys, monkeypatch):
    def fail(config: Config) -> None:
        raise MachineError("The disk is full. Make room.")

    monkeypatch.setattr(main, "_planned", fail)
    assert main.run(["plan"]) == 1
    assert one_sentence(capsys) == "The disk is full. Make room."
    for line in (["plan", "--debug"], ["--debug", "plan"]):
        assert main.run(line) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err and err.rstrip().endswith("The disk is full. Make room.")


def test_what_nobody_foresaw_is_a_sentence_too(capsys, monkeypatch):
    monkeypatch.setattr(main, "_planned", lambda config: {}["missing"])
    assert main.run(["plan"]) == 1
    assert one_sentence(capsys) == "Something unforeseen went wrong (KeyError: 'missing'). Add --debug to see where."


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    def interrupt(config: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_planned", interrupt)
    assert main.run(["plan"]) == 130
    assert one_sentence(capsys) == ""


def test_a_training_that_was_stopped_is_no_success_for_a_script(monkeypatch):
    from lace_lora import train

    class Half:
        is_complete = False

    monkeypatch.setattr(train, "run", lambda config, say: Half())
    assert main.run(["train", "--preset", "none"]) == 130


@pytest.mark.parametrize(("mode", "room"), [("train", "train"), ("inference", "inference")])
def test_mode_stands_for_its_command_anywhere_in_the_line(mode, room, monkeypatch, tmp_path):
    """L12."""
    import importlib

    module = importlib.import_module(f"lace_lora.{room}")
    seen = []

    def run(config: Config, say: object) -> object:
        seen.append(config.rank)
        raise MachineError("enough")

    monkeypatch.setattr(module, "run", run)
    (tmp_path / "my.yaml").write_text("rank: 4\npreset: none\n")
    for line in (["--mode", mode, "--config", "my.yaml"], ["--config", "my.yaml", f"--mode={mode}"]):
        assert main.run(line) == 1
    assert seen == [4, 4]


def test_both_modes_run_on_the_demo_model(lace_folder, tmp_path, capsys):
    """L12, L22: real training and generation, as small as they get."""
    line = ["--preset", "none", "--pretrained_model", "lace-demo", "--refiner_model", "lace-demo-refiner"]
    line += ["--images_dir", str(lace_folder), "--lora_output_dir", "out", "--cache_dir", "cache"]
    small = ["--max_train_steps", "2", "--train_batch_size", "2", "--num_images", "2", "--num_inference_steps", "8"]
    assert main.run(["--mode", "train", *line, *small]) == 0
    assert (tmp_path / "out/lace/adapter/pytorch_lora_weights.safetensors").is_file()
    assert main.run(["--mode", "inference", *line, *small]) == 0
    assert (tmp_path / "out/lace/images/sheet/refined_output_001.png").is_file()
    capsys.readouterr()
    assert main.run(["runs", "--lora_output_dir", "out"]) == 0
    assert re.search(r"^lace +finished +█+ 100% ", capsys.readouterr().out, re.M)


def test_check_and_annotate_say_what_they_found(lace_folder, capsys):
    here = ["--preset", "none", "--pretrained_model", "lace-demo", "--images_dir", str(lace_folder)]
    (lace_folder / "broken.jpg").write_bytes(b"not a picture")
    assert main.run(["check", *here]) == 0
    out = capsys.readouterr().out
    assert "7 pictures" in out and "broken.jpg" in out and "6 usable" in out
    assert main.run(["annotate", *here, "--instance_prompt", "a photo of <myspecialstyle> doily"]) == 0
    assert "6 captions in" in capsys.readouterr().out
    assert "a photo of <myspecialstyle> doily" in (lace_folder / "annotations.txt").read_text()
    assert main.run(["annotate", *here]) == 0
    assert "kept 6 captions" in capsys.readouterr().out
    assert main.run(["annotate", *here, "--overwrite"]) == 0
    assert "annotations.txt.bak" in capsys.readouterr().out
    assert "doily" not in (lace_folder / "annotations.txt").read_text()


def test_the_demo_is_announced_in_a_frame_where_there_is_no_gpu(capsys, monkeypatch, lace_folder):
    from lace_lora import machine

    monkeypatch.setattr(machine, "_gpu", lambda: (None, 0.0, (0, 0), 0))
    assert main.run(["plan", "--images_dir", str(lace_folder)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("╔") and "DEMO" in err and "T4 GPU" in err
    assert "preset      demo" in out and "DEMO" not in out


def test_settings_and_presets_are_printed(capsys):
    assert main.run(["settings"]) == 0
    assert capsys.readouterr().out == config_text.shipped_yaml()
    assert main.run(["settings", "--markdown"]) == 0
    assert capsys.readouterr().out == options.table()
    assert main.run(["presets"]) == 0
    assert "demo: the miniature SDXL" in capsys.readouterr().out


def test_both_entry_points_start_and_fail_as_programs_do(tmp_path):
    """L12: `lace-lora` and `python -m lace_lora.main`."""
    for door in ([str(Path(sys.executable).parent / "lace-lora")], [sys.executable, "-m", "lace_lora.main"]):
        if not Path(door[0]).exists():
            pytest.skip("the package is not installed here, so there is no lace-lora command")
        done = subprocess.run([*door, "plan", "--rank", "0"], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("rank is 0 but must be 1 to 128.")
