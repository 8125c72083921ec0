"""What is learnt of a picture with a swatch (C6, D3)."""

from dataclasses import replace
from pathlib import Path

import torch

from lace_lora import cache
from lace_lora.annotations import Example
from lace_lora.swatch import Swatch, open_swatch
from tests.training import quietly


def built(one: Example, model: Path, folder: Path) -> cache.Cache:
    return cache.build(
        [one], str(model), 64, flips=False, dtype=torch.float32, device="cpu", cache_dir=folder, say=quietly
    )


def test_a_swatch_is_learnt_encoded_anew_and_names_the_data(tiny_sdxl, lace_folder, tmp_path) -> None:
    """C6: the latents are those of the swatch's pixels saved as a file; marking a centimetre encodes nothing anew."""
    plain = Example(lace_folder / "lace_1.jpg", "a <myspecialstyle>")
    cut = replace(plain, swatch=Swatch(crop=(0, 0, 0.5, 1), even_light=0.5))
    marked = replace(cut, swatch=replace(cut.swatch, cm=((0, 0), (1, 1), 2)))
    first, second, third = (built(one, tiny_sdxl, tmp_path / "cache") for one in (plain, cut, marked))
    open_swatch(cut.path, cut.swatch).save(tmp_path / "same.png")
    same = built(Example(tmp_path / "same.png", plain.caption), tiny_sdxl, tmp_path / "other")
    batches = [one.batch([(0, 0)], "cpu") for one in (first, second, third, same)]
    assert torch.equal(batches[1].mean_BCHW, batches[3].mean_BCHW) and torch.equal(
        batches[1].size_numbers_BS, batches[3].size_numbers_BS
    )
    assert not torch.equal(batches[0].mean_BCHW, batches[1].mean_BCHW)
    assert torch.equal(batches[1].mean_BCHW, batches[2].mean_BCHW) and second.samples == third.samples
    digests = [cache.data_digest([one]) for one in (plain, cut, marked)]
    assert digests[1] == digests[2] != digests[0]
