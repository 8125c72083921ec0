"""A person's own defaults in config.yaml: found again as they were saved, and nothing else in the file touched (L9)."""

import errno
import os
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lace_lora import checkpoint, config, config_text, defaults
from lace_lora.config import Config
from lace_lora.errors import MachineError, SettingsError

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=20)
A_LINE = WORDS.map(str.strip)
# Texts that YAML would read as something else.
PATH = st.sampled_from(["~", "no", "null", "1e-4", "- a", "a: b", "a #b", "[x", "{x}", "'", '"', "#", "ığüş", "12"])
HELP = Config.model_fields["rank"].description
VALUES = {
    "rank": st.integers(1, 128),
    "alpha": st.none() | st.integers(1, 256),
    "resolution": st.just("auto") | st.integers(4, 256).map(lambda cells: 8 * cells),
    "learning_rate": st.floats(1e-9, 1, exclude_min=True),
    "max_train_steps": st.just("auto") | st.integers(1, 1_000_000),
    "use_dora": st.booleans(),
    "mixed_precision": st.sampled_from(["auto", "no", "fp16", "bf16"]),
    "negative_prompt": A_LINE | PATH,
    "images_dir": A_LINE.filter(bool) | PATH,
    "caption_prompt": st.none() | st.just("what is it: lace?"),
    "prompts": st.lists((A_LINE | PATH).filter(bool), max_size=3).map(tuple),
    "image_types": st.just((".jpg", ".png")),
    "print_width_cm": st.none() | st.floats(0.1, 500),
}
SETTINGS = st.fixed_dictionaries({}, optional=VALUES).filter(bool)
# What people write beside and between: comments, lists below their name, text over several lines, quotes, blank lines.
ODD = [
    "# my own notes: rank: 64 was too much\n",
    "\n",
    "# rank: 64\n",
    "rank:   4   # small\n",
    "alpha:\n",
    "alpha:    # as the rank\n",
    "resolution: 'auto'\n",
    "prompts:\n- a rosette # mine\n# and\n  # this\n- \"a: border\"\n# after the list\n",
    "prompts: # three\n  - a\n  - b\n\n",
    "prompts: [a, 'b, c',\n  d]  # flow\n",
    f"negative_prompt: |\n  grainy\n  # rank: 16   # {HELP}\n# rank: 16   # {HELP}\n\n",
    "negative_prompt: grainy,\n  low quality # over two lines\n",
    "images_dir: \"a \\\n  b\"\n",
    "mixed_precision: no\n",
    "learning_rate: 1e-4",
    "---\n",
    "use_dora: on\n",
]  # fmt: skip


def files():
    """Texts of settings files: the one that ships, a complete one, and odd ones that can be loaded."""
    odd = st.lists(st.sampled_from(ODD), max_size=5).map("".join).filter(is_settings)
    return st.one_of(st.just(config_text.shipped_yaml()), st.just(config_text.to_yaml(Config(rank=7))), odd)


def is_settings(text):
    try:
        config.Config().model_copy(update=yaml.safe_load(text) or {})
    except (yaml.YAMLError, SettingsError, AttributeError, ValueError, TypeError):
        return False
    return True


def loaded(text):
    return Config().model_copy(update=yaml.safe_load(text.removeprefix("\ufeff")) or {})


@settings(deadline=None, max_examples=40)
@given(files(), SETTINGS, st.booleans(), st.booleans())
def test_what_was_written_is_read_again_and_everything_else_is_as_before(text, values, is_windows, has_mark):
    """L9: PyYAML itself is the oracle, for files of any line ends, with and without the mark of some editors."""
    text = ("\ufeff" if has_mark else "") + (text.replace("\n", "\r\n") if is_windows else text)
    before, after = loaded(text), loaded(defaults.with_values(text, values))
    assert {name: getattr(after, name) for name in values} == values
    others = set(Config.model_fields) - set(values)
    assert {name: getattr(after, name) for name in others} == {name: getattr(before, name) for name in others}
    assert after.given == before.given | set(values)


@settings(deadline=None, max_examples=25)
@given(SETTINGS, st.booleans())
def test_in_a_file_as_it_ships_only_the_lines_of_these_settings_change(values, is_windows):
    """L9: byte for byte; each setting has its own line there, live or as a comment."""
    end = "\r\n" if is_windows else "\n"
    text = config_text.shipped_yaml().replace("\n", end)
    old, new = text.split(end), defaults.with_values(text, values).split(end)
    assert len(old) == len(new)
    for before, after in zip(old, new, strict=True):
        name = re.match(r"(?:# )?(\w+):", before)
        if name and name[1] in values:
            assert after.startswith(f"{name[1]}:")
            assert after.partition(" # ")[2] or before.partition(" # ")[2] == ""
            assert after.endswith(Config.model_fields[name[1]].description.split("; ")[-1][-10:]) or "[" in after
        else:
            assert after == before


@settings(deadline=None, max_examples=10)
@given(SETTINGS)
def test_writing_the_same_again_changes_nothing(values):
    """L9."""
    once = defaults.with_values(config_text.shipped_yaml(), values)
    assert defaults.with_values(once, values) == once


def test_a_comment_behind_a_value_keeps_its_column_and_a_persons_own_comments_stay():
    """L9."""
    text = "# rank: 64 was too much\nrank: 8      # small\nseed: 1\nprompts: # mine\n- a\n# good\n- b\n# end\n"
    done = defaults.with_values(text, {"rank": 128, "prompts": ("c",), "alpha": 4})
    assert done.startswith(
        "# rank: 64 was too much\nrank: 128    # small\nseed: 1\nprompts: [c] # mine\n# good\n# end\nalpha: 4"
    )


@pytest.mark.parametrize(
    ("text", "name", "value", "expected"),
    [
        ("base_prompt: |\n  a\n\n# mine\nseed: 1\n", "base_prompt", "b", "base_prompt: b\n\n# mine\nseed: 1\n"),
        ("prompts:\n- a\n\n# mine\nseed: 1\n", "prompts", ("b",), "prompts: [b]\n\n# mine\nseed: 1\n"),
        ("prompts:\r\n- a\r\n# mine\r\n- b\r\n", "prompts", ("c",), "prompts: [c]\r\n# mine\r\n"),
        ("seed: 1\r\n", "rank", 8, f"seed: 1\r\n{config_text.line('rank', 8)}\r\n"),
        (f"base_prompt: |\n# rank: 16 # {HELP}\n", "rank", 8, f"base_prompt: |\nrank: 8  # {HELP}\n"),
        (
            f"negative_prompt: 'a\n\n# rank: 16 # {HELP}'\n", "rank", 8,
            f"negative_prompt: 'a\n\n# rank: 16 # {HELP}'\n{config_text.line('rank', 8)}\n",
        ),
    ],
)  # fmt: skip
def test_what_stands_behind_and_inside_values_of_several_lines_stays_byte_for_byte(text, name, value, expected):
    """L9."""
    assert defaults.with_values(text, {name: value}) == expected


def test_a_missing_name_stands_below_the_heading_of_its_group_or_at_the_end():
    """L9."""
    text = "# -- Size of the LoRA --\n\n# -- Training --\nseed: 3"
    lines = defaults.with_values(text, {"rank": 8, "num_images": 4}).splitlines()
    assert lines[0] == "# -- Size of the LoRA --" and lines[1] == config_text.line("rank", 8)
    assert lines[-2:] == ["seed: 3", config_text.line("num_images", 4)]


@pytest.mark.parametrize(
    "text",
    ["rank: &r 4\nalpha: *r\n", "{rank: 4}\n", "rank: 4\n...\n", "rank: [\n", "- rank\n", "rank: 4\n---\nrank: 5\n"],
)
def test_a_file_that_cannot_be_changed_line_by_line_is_refused_with_the_lines_to_write(text):
    """L9."""
    with pytest.raises(SettingsError, match=r"cannot be changed line by line.* rank: 8, seed: 3\."):
        defaults.with_values(text, {"rank": 8, "seed": 3})


# -- where, and what stands in the way --


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, in no project and on no Colab machine."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_file_that_was_found_is_changed_and_what_it_held_is_kept_once(here):
    """L9: ten times saved in a sitting leaves one earlier file."""
    (here / "config.yaml").write_text("rank: 4 # mine\n")
    mine = defaults.Defaults()
    said = mine.save({"rank": 8}, "/nowhere")
    assert said == (
        f"Saved in {here / 'config.yaml'}: rank: 8. Every notebook that reads this file begins with it. "
        "The earlier config.yaml is kept as config.yaml.bak."
    )
    assert "kept" not in mine.save({"rank": 9}, "/nowhere")
    assert (here / "config.yaml").read_text() == "rank: 9 # mine\n"
    assert (here / "config.yaml.bak").read_text() == "rank: 4 # mine\n"
    assert sorted(path.name for path in here.iterdir()) == ["config.yaml", "config.yaml.bak"]


def test_in_colab_it_is_drives_file_and_nothing_is_made_where_drive_will_be_mounted(here, tmp_path, monkeypatch):
    """L9, L2: a folder made there would stand in the way of the mount."""
    monkeypatch.setattr(defaults, "in_colab", lambda: True)
    drive = tmp_path / "drive"
    with pytest.raises(MachineError, match="Drive is not mounted at"):
        defaults.Defaults().save({"rank": 8}, str(drive))
    assert not drive.exists()
    (drive / "MyDrive").mkdir(parents=True)
    said = defaults.Defaults().save({"rank": 8}, str(drive))
    assert config.load(*config.found(str(drive))).rank == 8 and "Colab machine" not in said
    (here / "config.yaml").write_text("")
    assert "It lies on this Colab machine and goes with it." in defaults.Defaults().save({"rank": 9}, str(drive))


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, MachineError, "The disk is full"),
        (errno.EROFS, SettingsError, r"cannot be written \(Read-only file system\), and stays as it was"),
        (errno.EACCES, SettingsError, r"write into a file config.yaml beside the notebook: rank: 8\."),
        (errno.ENOTCONN, MachineError, "Drive is not answering"),
    ],
)
def test_a_disk_that_cannot_be_written_is_a_sentence_and_leaves_the_file(here, monkeypatch, code, kind, words):
    """L9."""
    (here / "config.yaml").write_text("rank: 4\n")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(kind, match=words):
        defaults.Defaults().save({"rank": 8}, "/nowhere")
    assert (here / "config.yaml").read_text() == "rank: 4\n" and not list(here.glob("*.partial*"))


@pytest.mark.parametrize("text", ["rank: [4\n", "rnak: 4\n", "rank: 0\n"])
def test_a_broken_file_is_said_and_left_alone(here, text):
    """L9."""
    (here / "config.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"config\.yaml|rank is 0"):
        defaults.Defaults().save({"rank": 8}, "/nowhere")
    assert [path.name for path in here.iterdir()] == ["config.yaml"] and (here / "config.yaml").read_text() == text


def test_a_link_to_a_file_stays_a_link(here, tmp_path):
    """L9: some keep their settings in a folder of their own."""
    (tmp_path / "mine.yaml").write_text("rank: 4\n")
    (here / "config.yaml").symlink_to(tmp_path / "mine.yaml")
    defaults.Defaults().save({"rank": 8}, "/nowhere")
    assert (here / "config.yaml").is_symlink() and (tmp_path / "mine.yaml").read_text() == "rank: 8\n"


# -- as before --


@settings(deadline=None, max_examples=25)
@given(files(), SETTINGS, SETTINGS)
def test_what_is_taken_back_leaves_the_file_as_if_it_had_never_been_saved(tmp_path_factory, text, first, second):
    """L9: byte for byte, whatever was saved between; only what is new stays."""
    folder = tmp_path_factory.mktemp("here")
    path = folder / "config.yaml"
    path.write_bytes(text.encode())
    mine = defaults.Defaults()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(defaults.clashes, "found", lambda _: [])
        mine.save(first, "/nowhere")
        mine.save(second, "/nowhere", as_before=set(first) - set(second))
        assert path.read_bytes().decode() == defaults.with_values(text, first_kept(first, second))
        mine.save({}, "/nowhere", as_before=[*first, *second])
    assert path.read_bytes().decode() == text


def first_kept(first, second):
    """What stands there at the end, in the order in which it was saved."""
    return {name: second[name] for name in first if name in second} | second


def test_what_another_program_wrote_meanwhile_stays_when_something_is_taken_back(here):
    """L9: the earlier value, the earlier comment line, or no line."""
    comment = f"# {config_text.line('alpha', None)}\n"
    (here / "config.yaml").write_text(f"rank: 4 # mine\n{comment}")
    mine = defaults.Defaults()
    mine.save({"rank": 8, "alpha": 2, "seed": 3}, "/nowhere")
    with (here / "config.yaml").open("a") as file:
        file.write("resolution: 512\n")
    said = mine.save({}, "/nowhere", as_before=["rank", "alpha", "seed"])
    assert "config.yaml: rank, alpha, seed as before the first save. Every" in said
    assert (here / "config.yaml").read_text() == f"rank: 4 # mine\n{comment}resolution: 512\n"


def test_a_file_whose_settings_could_not_work_together_is_not_written(here):
    """L9: a token that the prompt lacks; one that stood there before stands in nobody's way."""
    mine = defaults.Defaults()
    with pytest.raises(SettingsError, match=r"With this, config.yaml would not work: .* Change instance_prompt"):
        mine.save({"concept_token": "<lace>"}, "/nowhere")
    assert list(here.iterdir()) == []
    (here / "config.yaml").write_text("concept_token: <lace>\n")
    assert "rank: 8" in mine.save({"rank": 8}, "/nowhere")
