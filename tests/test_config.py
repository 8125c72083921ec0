"""Settings: declared once, checked at the door (L8, L9, C9)."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lace_lora import config, config_text
from lace_lora.config import Config
from lace_lora.errors import SettingsError

ELEVEN_KEYS = """
drive_mount_path: /content/drive
images_dir: /content/drive/MyDrive/babanne-images
lora_output_dir: /content/drive/MyDrive/lora_output
instance_prompt: "a photo of <myspecialstyle>"
class_prompt: "a photo of a painting"
pretrained_model: "stabilityai/stable-diffusion-xl-base-1.0"
refiner_model: "stabilityai/stable-diffusion-xl-refiner-1.0"
resolution: 512
train_batch_size: 2
learning_rate: 1e-4
max_train_steps: 1000
"""


def file(folder, text, name="config.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_users_eleven_keys_load_unchanged_also_with_a_rate_that_yaml_reads_as_text(tmp_path):
    """L8: PyYAML reads 1e-4 as the text '1e-4'."""
    assert yaml.safe_load(ELEVEN_KEYS)["learning_rate"] == "1e-4"
    loaded = config.load(file(tmp_path, ELEVEN_KEYS))
    assert loaded.learning_rate == 1e-4
    assert (loaded.resolution, loaded.train_batch_size, loaded.max_train_steps) == (512, 2, 1000)
    assert loaded.given == set(config.USER_KEYS)


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path):
    """L9."""
    with pytest.raises(SettingsError, match="no setting called 'learning_rte'; did you mean learning_rate?"):
        config.load(file(tmp_path, "learning_rte: 1.0"))
    with pytest.raises(SettingsError, match="no setting called 'rnak'; did you mean rank?"):
        config.load(rnak=8)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "resolution",
            1004,
            "resolution is 1004 px but must be a multiple of 8; use 1000 or 1008 (SDXL was trained on",
        ),
        ("resolution", 515, "resolution is 515 px but must be a multiple of 8; use 512 or 520"),
        ("resolution", 4000, "resolution is 4000 px but must be 32 to 2048, multiple of 8, or auto."),
        ("rank", 0, "rank is 0 but must be 1 to 128."),
        ("rank", True, "rank is True but must be 1 to 128."),
        ("learning_rate", "fast", "learning_rate is 'fast' but must be above 0 to 1."),
        ("learning_rate", float("nan"), "learning_rate is nan but must be above 0 to 1."),
        ("lr_scheduler", "cosin", "lr_scheduler is 'cosin' but must be cosine, constant, linear."),
        ("random_flip", "maybe", "random_flip is 'maybe' but must be true or false."),
        ("run_name", "../elsewhere", "run_name is '../elsewhere' but must be letters, digits, spaces"),
        ("max_train_steps", "soon", "max_train_steps is 'soon' but must be 1 to 1000000, or auto."),
    ],
)
def test_a_bad_value_is_refused_with_its_bounds_and_the_nearest_good_one(name, value, sentence):
    """C9, L9."""
    with pytest.raises(SettingsError) as caught:
        config.load(**{name: value})
    assert sentence in str(caught.value)


def test_all_bad_values_are_said_at_once():
    with pytest.raises(SettingsError) as caught:
        config.load(rank=0, learning_rate="fast")
    assert len(str(caught.value).splitlines()) == 2


def test_an_unknown_name_is_said_with_the_file_it_stands_in(tmp_path):
    path = file(tmp_path, "rnak: 4")
    with pytest.raises(SettingsError, match=f"^{re.escape(str(path))}: no setting called 'rnak'; did you mean rank"):
        config.load(path)


def test_a_command_looks_into_its_folder_and_a_notebook_into_drive_and_its_checkout_too(tmp_path, monkeypatch):
    drive, checkout, below = tmp_path / "drive", tmp_path / "project", tmp_path / "project/notebooks"
    below.mkdir(parents=True)
    file(checkout, "rank: 1")
    monkeypatch.chdir(below)
    assert config.found() == [] and config.found(str(drive)) == []  # a folder above that is no checkout
    (checkout / "lace_lora").mkdir()
    (checkout / "lace_lora/config.py").touch()
    assert config.found() == [] and config.found(str(drive)) == [Path("../config.yaml")]
    (drive / config.DRIVE_FILE).parent.mkdir(parents=True)
    in_drive = file((drive / config.DRIVE_FILE).parent, "rank: 2")
    assert config.found() == [] and config.found(str(drive)) == [in_drive]
    file(below, "rank: 3")
    assert config.found() == config.found(str(drive)) == [Path("config.yaml")]


def test_later_files_win_and_overrides_win_over_files(tmp_path):
    """P26: --config may be repeated."""
    first = file(tmp_path, "rank: 4\nseed: 7\n", "a.yaml")
    second = file(tmp_path, "rank: 8\n", "b.yaml")
    assert config.load(first, second).rank == 8
    loaded = config.load(first, second, rank=32, seed=None)
    assert (loaded.rank, loaded.seed) == (32, 7)
    assert loaded.overridden == {"rank"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rank: [1", "Each line must read `name: value`."),
        ("- a\n- b\n", "holds a list, not settings"),
        ("just words", "holds a str, not settings"),
    ],
)
def test_an_unreadable_file_has_its_sentence(tmp_path, text, sentence):
    with pytest.raises(SettingsError) as caught:
        config.load(file(tmp_path, text))
    assert sentence in str(caught.value) and "config.yaml" in str(caught.value)


def test_a_missing_file_and_a_binary_file_have_their_sentences(tmp_path):
    with pytest.raises(SettingsError, match="No settings file"):
        config.load(tmp_path / "nowhere.yaml")
    binary = tmp_path / "config.yaml"
    binary.write_bytes(b"\xff\xfe\x00rank: 3\x81")
    with pytest.raises(SettingsError, match="cannot be read|Each line"):
        config.load(binary)


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert config.load(file(tmp_path, "")) == Config()


def test_settings_are_frozen_and_copies_are_checked_again():
    settings = Config()
    with pytest.raises(ValueError, match="frozen"):
        settings.rank = 3
    assert settings.model_copy(update={"rank": 8}).rank == 8
    with pytest.raises(SettingsError, match="rank is 500"):
        settings.model_copy(update={"rank": 500})


def test_alpha_left_empty_means_rank_so_that_the_strength_is_one():
    assert Config(rank=32).lora_alpha() == 32
    assert Config(rank=32, alpha=8).lora_alpha() == 8


def test_the_word_no_survives_yaml(tmp_path):
    assert config.load(file(tmp_path, "mixed_precision: no")).mixed_precision == "no"


@given(
    rate=st.floats(1e-12, 1, exclude_min=True),
    prompt=st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(str.strip),
    prompts=st.lists(
        st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(str.strip), max_size=3
    ),
)
def test_what_is_saved_loads_equal(tmp_path_factory, rate, prompt, prompts):
    settings = config.load(learning_rate=rate, instance_prompt=prompt, prompts=prompts, rank=4, alpha=None)
    path = file(tmp_path_factory.mktemp("saved"), config_text.to_yaml(settings))
    assert config.load(path) == settings


def test_the_shipped_file_holds_the_eleven_keys_and_every_other_setting_as_a_comment():
    text = config_text.shipped_yaml()
    assert tuple(yaml.safe_load(text)) == config.USER_KEYS
    for name in set(Config.model_fields) - set(config.USER_KEYS):
        assert f"\n# {name}:" in text


def test_taking_away_the_comment_sign_gives_the_default_back(tmp_path):
    lines = [line.removeprefix("# ") for line in config_text.shipped_yaml().splitlines()]
    names = tuple(f"{name}:" for name in Config.model_fields)
    text = "\n".join(line for line in lines if line.startswith(names))
    assert config.load(file(tmp_path, text)) == Config()


def test_every_setting_has_a_group_a_help_and_a_default():
    grouped = [name for group in config.GROUPS for name, _ in config.fields_of(group)]
    assert sorted(grouped) == sorted(Config.model_fields)
    for name, field in Config.model_fields.items():
        assert field.description and len(field.description) > 10, name
        assert not field.is_required(), name
