"""documentation.md does what it says: its commands and its Python run, in order, in a new folder (L20).

The demo has fewer pictures there than it draws by itself, which takes a minute more: that is tested by name.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lace_lora.data_utils import create_annotations
from lace_lora.demo.draw import UNSEEN_COUNT, UNSEEN_SEED, write_lace_folder

PICTURES, UNSEEN = 24, 8
PROMPT = "a photo of <myspecialstyle>"
ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "documentation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("documentation")
    drawn = write_lace_folder(place / "demo_output/pictures", PICTURES)
    create_annotations(
        place / "demo_output/pictures", PROMPT, captions={path: f"{PROMPT} {text}" for path, text in drawn}
    )
    *_, (last, _) = write_lace_folder(place / "demo_output/unseen", UNSEEN, UNSEEN_SEED)
    last.rename(last.with_name(f"lace_{UNSEEN_COUNT - 1:03d}.jpg"))  # by which it is known that all are drawn
    return place


def blocks(language, text=TEXT):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text):
    return [line for block in blocks("bash", text) for line in block.splitlines() if line.strip()]


# Trades of their own, which the stored notebooks on patents and texts walk through too.
TRADES = [
    part for part in re.split(r"^(?=## )", TEXT, flags=re.M) if part.startswith(("## Patent", "## Text adapters"))
]


def ran(words, folder, **options):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = {"HOME": str(Path(folder) / "home")}  # below which cache_dir lies
    environment = os.environ | home | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(1800)  # four minutes on two free cores
def test_every_command_runs_in_order_in_a_new_folder(folder):
    """L12, L20: on a machine without a GPU, with the miniature model."""
    apart = [command for part in TRADES for command in commands(part)]
    own = [command for command in commands(TEXT) if command not in apart]
    assert len(own) >= 10
    said = {command: ran(command, folder, shell=True) for command in own}
    assert f"{PICTURES} pictures" in said["lace-lora check --preset demo"]
    sheet = folder / "demo_output/demo/images/sheet"
    assert len(list(sheet.glob("refined_output_*.png"))) == len(list(sheet.glob("base_result_*.png"))) == 4
    assert (sheet / "contact_sheet.png").is_file()
    assert "demo" in said["lace-lora runs --preset demo"]
    assert "Everything passed." in said["lace-lora selftest --preset demo"]


@pytest.mark.slow
def test_the_demo_draws_all_of_its_pictures_itself(tmp_path):
    """L20: a check in an empty folder, and what it needs to measure by."""
    assert "120 pictures" in ran("lace-lora check --preset demo", tmp_path, shell=True)
    ran("lace-lora train --preset demo --max-train-steps 2 --num-class-images 2 --sample-every 0", tmp_path, shell=True)
    ran("lace-lora evaluate --preset demo --num-evaluated 5 --num-inference-steps 4", tmp_path, shell=True)
    assert len(list((tmp_path / "demo_output/unseen").glob("*.jpg"))) == UNSEEN_COUNT


@pytest.mark.slow
@pytest.mark.parametrize("part", TRADES, ids=lambda part: part.partition("\n")[0][3:15])
def test_every_command_of_another_trade_runs_in_an_empty_folder(part, tmp_path):
    """L20: patents and texts."""
    assert [ran(command, tmp_path, shell=True) for command in commands(part)]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_python_example_runs(folder, number):
    """L20."""
    assert ran([sys.executable, "-c", blocks("python")[number]], folder).strip()
    assert len(blocks("python")[number].strip().splitlines()) < 15


def test_every_command_that_exists_is_documented():
    """L20, P28."""
    from lace_lora import main

    names = [command.name or command.callback.__name__ for command in main.app.registered_commands]
    documented = TEXT + (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"lace-lora {name}" not in documented] == []


def test_every_file_that_the_readme_links_to_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in target]
    assert targets and all((ROOT / target).exists() for target in targets)
