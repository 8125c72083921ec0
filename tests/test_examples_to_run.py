"""The files in examples: loaded, every name known, every command line taken by the command's own reader (P27)."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lace_lora import config, main, options, sweep
from tests.generated import ROOT

FOLDER = ROOT / "examples"
# The parts of a task that SkyPilot's documentation of its YAML names.
SKY = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
SKY_RESOURCES = {"infra", "accelerators", "cpus", "memory", "use_spot", "disk_size", "disk_tier", "any_of", "ordered"}


def commands_in(text: str) -> list[list[str]]:
    """The words behind `lace-lora` of each command in a script or in a comment of a YAML file."""
    found = re.findall(r"(?:^|[ \t])lace-lora[ \t]+([a-z][^\n|;]*)", text, re.M)
    return [shlex.split(line) for line in found]


def taken(words: list[str]) -> dict[str, Any]:
    """What the command's own reader makes of a line, without running it; it raises for a line that it does not take."""
    group: Any = typer.main.get_command(main.app)
    line = main.rewritten(words, main._commands())
    outer = group.make_context(main.PROGRAM, list(line))
    return dict(group.commands[line[0]].make_context(line[0], line[1:], parent=outer).params)


def checked(words: list[str]) -> None:
    """Every option of a line is one that there is, with a value that will do; its files are there."""
    given = taken([word.replace("$RUN", "lace") for word in words])
    files = [FOLDER.parent / path for path in given.get("config_files") or [] + [given.get("sweep")] if path]
    assert files and all(path.is_file() for path in files), words
    values = {
        name: options.as_text(name, value)
        for name, value in given.items()
        if name in config.Config.model_fields and value != ()
    }
    config.load(*[path for path in files if path.name == "lace.yaml"], **values)


def test_the_settings_are_read() -> None:
    """P27."""
    assert config.load(FOLDER / "lace.yaml").run_name == "lace"


def test_the_sky_job_has_only_parts_that_skypilot_has_and_lines_that_we_take() -> None:
    """P27."""
    text = (FOLDER / "sky.yaml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)
    assert set(job) <= SKY and set(job["resources"]) <= SKY_RESOURCES
    assert job["file_mounts"]["/outputs"]["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")
    lines = commands_in(job["run"])
    assert [words[0] for words in lines] == ["plan", "train", "generate"]
    for words in lines:
        checked(words)
        given = taken(words)
        assert Path(given["images_dir"]).parts[1] in {Path(path).parts[1] for path in job["file_mounts"]}
        assert (
            given["lora_output_dir"].startswith(given["drive_mount_path"]) and given["drive_mount_path"] == "/outputs"
        )
    assert (ROOT / "constraints.txt").is_file() and "-c constraints.txt" in job["setup"]


def test_the_slurm_job_is_a_script_and_does_the_same() -> None:
    """P27."""
    text = (FOLDER / "slurm.sh").read_text(encoding="utf-8")
    lines = commands_in(text)
    assert [words[0] for words in lines] == ["train", "generate"]
    for words in lines:
        checked(words)
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    assert subprocess.run([bash, "-n", str(FOLDER / "slurm.sh")], capture_output=True).returncode == 0


def test_the_sweep_is_one_and_its_own_line_is_taken() -> None:
    """P27."""
    text = (FOLDER / "sweep.yaml").read_text(encoding="utf-8")
    (line,) = commands_in(text)
    checked(line)
    given = taken(line)
    found = sweep.read(FOLDER / "sweep.yaml", {}, given["verbs"].split(","))
    assert [one.name for one in found.combinations][0] == "lace-rank-8-learning_rate-0.0001"
    assert len(found.combinations) == 6 and found.slurm.partition == "gpu" and found.verbs == ("train", "generate")


def test_a_line_with_a_slip_is_noticed() -> None:
    """P27: of the reader that the tests above rely on."""
    with pytest.raises(main.UsageError):
        taken(["train", "--conifg", "examples/lace.yaml"])
    assert commands_in("srun lace-lora train --rank 8 || code=$?\n# pip install 'lace-lora[slurm]'\n") == [
        ["train", "--rank", "8"]
    ]
