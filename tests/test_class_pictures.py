"""Class pictures: drawn once by the base model, and again where anything about them changed (L5)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lace_lora import checkpoint, class_pictures, stages, train
from lace_lora.config import Config
from lace_lora.data_utils import open_picture
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder
from tests import wide_models
from tests.training import quietly, stop_after


def test_prior_preservation_adds_a_second_term_from_pictures_of_the_base_model(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: drawn once, by the base model, from class_prompt; each with its own size; the weight is a setting."""
    drawn: list[list[int]] = []
    original = stages.draw_plain

    def spy(model: str, prompts: list[str], seeds: list[int], *words: Any, **named: Any) -> Iterator[Any]:
        drawn.append(seeds)
        assert set(prompts) == {settings.class_prompt}
        return original(model, prompts, seeds, *words, **named)

    monkeypatch.setattr(stages, "draw_plain", spy)
    update = {"prior_loss_weight": 0.7, "num_class_images": 3, "num_inference_steps": 2, "max_train_steps": 4}
    changed = settings.model_copy(update=update)
    train.run(changed, say=quietly, show=stop_after(2))
    folder = RunFolder.of(changed)
    assert [path.name for path in sorted(folder.class_images.glob("*.png"))] == [
        "class_0000.png",
        "class_0001.png",
        "class_0002.png",
    ]
    assert open_picture(folder.class_images / "class_0000.png").size == (64, 64)
    before = {path.name: path.read_bytes() for path in folder.class_images.glob("*.png")}
    (folder.class_images / "class_0001.png").unlink()
    with pytest.raises(RunError, match="num_class_images 3 → 5"):
        train.run(changed.model_copy(update={"num_class_images": 5}), say=quietly)
    made = train.run(changed, say=quietly)
    # Drawn among the same neighbours, whose last bits it shares in; what was there is not written again.
    assert made.is_complete and drawn == [drawn[0], drawn[0]]
    assert {path.name: path.read_bytes() for path in folder.class_images.glob("*.png")} == before
    rows = checkpoint.read_json_lines(folder.log)
    assert len(rows) == 4 and all(row["prior_loss"] > 0 and row["prior_loss"] != row["loss"] for row in rows)


def test_class_pictures_of_another_prompt_are_drawn_again(settings: Config) -> None:
    """L5: a first try that was stopped before its first step may have left pictures of other words."""
    update = {"prior_loss_weight": 1.0, "num_class_images": 2, "num_inference_steps": 2, "max_train_steps": 1}
    folder = RunFolder.of(settings)

    def bytes_after(prompt: str) -> bytes:
        asked = settings.model_copy(update=update | {"class_prompt": prompt})
        class_pictures.draw(asked, folder, torch.float32, "cpu", quietly)
        return (folder.class_images / "class_0000.png").read_bytes()

    first = bytes_after("a photo of a painting")
    assert bytes_after("a white star") != first
    assert bytes_after("a photo of a painting") == first


def test_a_base_that_learns_in_four_bits_draws_its_class_pictures_so(settings: Config, tmp_path: Path) -> None:
    """P13, L5: and those that were drawn before it was are drawn again."""
    pytest.importorskip("bitsandbytes")
    model = str(wide_models.build("sdxl", tmp_path / "model"))
    update = {"prior_loss_weight": 1.0, "num_class_images": 1, "num_inference_steps": 2, "pretrained_model": model}
    folder, found = RunFolder.of(settings), {}
    for kind in ("none", "nf4", "none"):
        asked = settings.model_copy(update=update | {"quantization": kind, "cache_dir": str(tmp_path / "cache")})
        class_pictures.draw(asked, folder, torch.float32, "cpu", quietly)
        drawn = (folder.class_images / "class_0000.png").read_bytes()
        assert found.setdefault(kind, drawn) == drawn
        made_from = json.loads((folder.class_images / "made_from.json").read_text(encoding="utf-8"))
        assert made_from.get("quantization") == ("nf4" if kind == "nf4" else None)
    assert found["none"] != found["nf4"]
