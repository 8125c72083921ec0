"""What the tests of drawing share: settings of a small run with an adapter, and what lies in a sheet's folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lace_lora import inference, stages
from lace_lora.config import Config, load

Asked = Callable[..., Config]


def settings_of(folder: Path, made_run: Path, models: dict[str, str], **changes: Any) -> Config:
    """Settings that draw in a copy of a run's folder, small and quick."""
    if not folder.exists():
        shutil.copytree(made_run, folder / "lace")
    small = {"num_images": 6, "num_inference_steps": 4, "refiner_start": 0.5, "width": 32, "height": 32}
    return load(preset="none", lora_output_dir=str(folder), **models | small | changes)


def quiet_run(config: Config, **more: Any) -> list[inference.Generation]:
    return inference.run(config, **{"say": lambda line: None} | more)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def picture_at(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        opened.load()
        return opened


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()]


def seeds_drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of all pictures that the base draws from now on."""
    drawn: list[int] = []
    working = stages._draw

    def noted(net: Any, batch: Any, *rest: Any) -> Any:
        drawn.extend(batch.seeds)
        return working(net, batch, *rest)

    monkeypatch.setattr(stages, "_draw", noted)
    return drawn


def cut_at(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, call: int) -> None:
    """End the process, as it were, at that call of a function."""
    working, calls = getattr(room, name), 0

    def cut(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise SystemExit
        return working(*given, **more)

    monkeypatch.setattr(room, name, cut)
