"""Trackers: TensorBoard read back with its own reader, wandb against a stand-in, and none that can stop a run (P18)."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lace_lora import trackers, train
from lace_lora.config import Config
from lace_lora.errors import MachineError
from lace_lora.run_folder import RunFolder
from tests.training import quietly, stop_after


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(folder)
    )
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


@pytest.mark.filterwarnings("default")
def test_tensorboard_holds_the_losses_of_the_log_also_after_a_cut(settings: Config) -> None:
    """P18: no point stands there twice."""
    pytest.importorskip("tensorboard")
    changed = settings.model_copy(
        update={"max_train_steps": 8, "sample_every": 4, "num_inference_steps": 2, "log_with": "auto"}
    )
    train.run(changed, say=quietly, show=stop_after(5))
    train.run(changed, say=quietly)
    folder = RunFolder.of(changed)
    found = scalars(folder.tensorboard, "loss")
    rows = [row for row in train.journal.checkpoint.read_json_lines(folder.log) if "loss" in row]
    assert [step for step, _ in found] == list(range(1, 9))
    assert [value for _, value in found] == pytest.approx([row["loss"] for row in rows], rel=1e-6)


def test_without_tensorboard_nothing_is_said_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    made = trackers.open_tracker("auto", tmp_path, "lace", {}, 0, said.append)
    made.log(1, {"loss": 1.0})
    made.close()
    assert not said and not list(tmp_path.iterdir())
    for name in ("tensorboard", "wandb"):
        with pytest.raises(MachineError, match=f"needs the package {name}: pip install {name}. Or set log_with none"):
            trackers.open_tracker(name, tmp_path, "lace", {}, 0, said.append)


def test_a_tracker_that_fails_is_said_once_and_dropped(tmp_path: Path) -> None:
    def broken(step: int, values: trackers.Values) -> None:
        raise ConnectionError("network is down")

    said: list[str] = []
    made = trackers.Tracker("Somewhere", broken, lambda *_: None, lambda: None, said.append)
    made.log(1, {"loss": 1.0})
    made.log(2, {"loss": 1.0})
    made.close()
    assert said == ["! Somewhere failed (ConnectionError: network is down); training goes on without it."]


def test_wandb_gets_numbers_pictures_and_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """P18: by the names and arguments of its public calls."""
    calls: list[Any] = []

    class Run:
        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            calls.append((step, data))

        def finish(self) -> None:
            calls.append("finished")

    def init(project: str, name: str, id: str | None, config: dict[str, Any], dir: str, resume: str) -> Run:
        assert resume == "allow"
        calls.append((project, name, id, config))
        return Run()

    fake = types.ModuleType("wandb")
    fake.init, fake.Image = init, lambda picture: picture.size  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(trackers, "_is_there", lambda package: package == "wandb")
    made = trackers.open_tracker("wandb", tmp_path / "tensorboard", "lace", {"rank": 4}, 0, quietly, "one")
    made.log(3, {"loss": 0.5})
    Image.new("RGB", (6, 4)).save(tmp_path / "one.png")
    made.picture(3, "sample_0", tmp_path / "one.png")
    made.close()
    assert calls == [
        ("lace-lora", "lace", "one", {"rank": 4}),
        (3, {"loss": 0.5}),
        (3, {"sample_0": (6, 4)}),
        "finished",
    ]


def test_every_session_of_a_run_goes_on_in_the_same_curves(
    settings: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P18: wandb joins sessions by their id alone; another run has another."""
    ids: list[str] = []

    def noted(name: str, run_id: str, *_: Any) -> trackers.Tracker:
        ids.append(run_id)
        return trackers.silent()

    monkeypatch.setattr(trackers, "_wandb", noted)
    monkeypatch.setattr(trackers, "_is_there", lambda package: True)
    asked = settings.model_copy(update={"log_with": "wandb"})
    train.run(asked, say=quietly, show=stop_after(3))
    train.run(asked, say=quietly)
    train.run(asked.model_copy(update={"run_name": "other", "seed": 5}), say=quietly)
    assert ids[0] == ids[1] != ids[2] and ids[0]
