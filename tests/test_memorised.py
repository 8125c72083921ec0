"""A run that learnt its pictures by heart is called out, and one that learnt a style is not (P22)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lace_lora import config, copies, copy_check, inference, train
from lace_lora.demo.draw import lace
from lace_lora.scores import CopyCheck
from tests.training import quietly

SIX = (700_000, 700_001, 700_002, 700_003, 700_004, 700_015)  # six different designs; other seeds often repeat one
# What makes the miniature learn by heart; at rank 64 on attention and ff alone, 250 steps did not.
BY_HEART: dict[str, Any] = {
    "rank": 64, "lora_targets": "attention+ff+conv", "max_train_steps": 450, "learning_rate": 3e-3,
    "train_batch_size": 6, "prior_loss_weight": 0.0, "caption_dropout": 0.0, "validation_fraction": 0.0,
}  # fmt: skip


def checked(folder: Path, seeds: Sequence[int], **settings: Any) -> CopyCheck:
    """Train on pieces of the demo's lace, draw 12 designs, and compare them with the pieces, each of its own."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    captions = []
    for seed in seeds:
        picture, caption = lace(seed, 192)
        picture.save(pictures / f"{seed}.jpg", quality=95, subsampling=0)
        captions.append(f"a photo of <myspecialstyle> {caption}")
    lines = [f"{pictures / str(seed)}.jpg\t{caption}" for seed, caption in zip(seeds, captions, strict=True)]
    (pictures / "annotations.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = {
        "preset": "demo", "images_dir": str(pictures), "lora_output_dir": str(folder), "run_name": "run",
        "cache_dir": str(folder / "cache"), "num_images": 12, "refine": "none", "log_with": "none",
    }  # fmt: skip
    if len(seeds) <= 12:
        asked["prompts"] = captions
    loaded = config.load(**(asked | settings))
    assert train.run(loaded, say=quietly).is_complete
    designs = inference.run(loaded, say=quietly)
    learnt = [copies.Learnt(str(seed), pictures / f"{seed}.jpg", seed) for seed in seeds]
    return copies.look([(one.path.name, one.path) for one in designs], learnt, say=quietly)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # three to four minutes on a free core
def test_a_run_trained_to_memorise_six_pictures_is_called_out(tmp_path):
    """P22, D8: each of the six is drawn again from its caption."""
    found = checked(tmp_path, SIX, **BY_HEART)
    assert len(found.pairs) == 12 and len(found.copies) >= 10, [pair.likeness for pair in found.pairs]
    assert {pair.nearest for pair in found.copies} == {str(seed) for seed in SIX}
    assert copy_check.memorised(found).startswith(f"{len(found.copies)} of 12 designs are copies")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_trained_as_usual_on_120_pictures_copies_none(tmp_path):
    """P22, D8: the demo's own settings; its scallops are all of one design, which unseen ones show as well."""
    found = checked(tmp_path, range(100_000, 100_120))
    assert len(found.pairs) == 12 and not found.copies, [pair.likeness for pair in found.pairs]
    assert copy_check.memorised(found).startswith("The photographs of this set are so alike")
