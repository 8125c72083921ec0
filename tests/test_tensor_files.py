"""Tensor files on a disk that is full or missing: an OSError, as from every other file (P19)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lace_lora import checkpoint, tensor_files
from lace_lora.errors import MachineError


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    tensor_files.write(tmp_path / "a.safetensors", {"one": torch.arange(6.0)}, {"made": "here"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["one"], torch.arange(6.0))


def test_the_sentence_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise tensor_files.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", refuse)
    with pytest.raises(MachineError, match="The disk is full: .* Free some space"):
        checkpoint.save_folder(
            tmp_path / "step-1", lambda folder: tensor_files.write(folder / "a", {"one": torch.zeros(1)})
        )
    assert not (tmp_path / "step-1").exists()
