"""Networks on their way from files to a device: straight to a GPU, with the same numbers (P29, D10)."""

import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lace_lora import families
from lace_lora.families import loading
from lace_lora.families.layouts import layout
from lace_lora.machine import GIB
from tests import tiny_flow
from tests.conftest import build_tiny_sdxl
from tests.tiny_models import build_tiny_sd15

BUILDERS = {
    "sdxl": build_tiny_sdxl,
    "sd15": build_tiny_sd15,
    "sd35": tiny_flow.build_sd35,
    "flux": tiny_flow.build_flux,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of the small models, by family; each is written once."""
    root = tmp_path_factory.mktemp("models")
    return lambda name: str(root / name if (root / name).is_dir() else BUILDERS[name](root / name))


def networks(model: str, dtype: torch.dtype) -> dict[str, Any]:
    """Every network of a model, by name."""
    family = families.of(model)
    text = family.load_text(model, dtype, "cpu")
    encoders = {f"text {number}": one for number, one in enumerate(text.encoders)}
    return {
        "denoiser": family.load_denoiser(model, dtype, "cpu"),
        "vae": family.load_vae(model, dtype, "cpu"),
        **encoders,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BUILDERS)
def test_tensor_by_tensor_onto_a_device_gives_the_same_numbers(
    name: str, dtype: torch.dtype, built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU gets, shown on the CPU as the device: every network of every family, bit for bit."""
    model = built(name)
    before = networks(model, dtype)
    monkeypatch.setattr(loading, "straight_to", lambda device: {"device_map": {"": torch.device(device)}})
    for part, network in networks(model, dtype).items():
        expected = before[part].state_dict()
        assert network.state_dict().keys() == expected.keys() and not network.training
        for key, tensor in network.state_dict().items():
            assert tensor.dtype == expected[key].dtype and torch.equal(tensor, expected[key]), (part, key)
        assert not any(one.is_meta or one.requires_grad for one in (*network.parameters(), *network.buffers()))


def test_both_libraries_are_told_the_device_and_nothing_for_the_cpu(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Network(torch.nn.Linear):
        @classmethod
        def from_pretrained(cls, folder: Path, **given: Any) -> Any:
            told.append(given.get("device_map"))
            return cls(2, 2), {"missing_keys": []}

        def to(self, device: str) -> Any:
            told.append(device)
            return self

    for library in ("of_diffusers", "of_transformers"):
        monkeypatch.setattr(loading, library, lambda name: Network)
    for load in (loading.load_network, loading.load_encoder):
        for device in ("cpu", "cuda:1"):
            load("Network", built("sdxl"), "unet", torch.float32, device)
    assert told == 2 * [None, "cpu", {"": torch.device("cuda:1")}, "cuda:1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", BUILDERS)
def test_tensors_one_by_one_are_those_of_the_loaded_network(name: str, dtype: torch.dtype, built: Any) -> None:
    model = built(name)
    part = layout(model).denoiser
    expected = families.of(model).load_denoiser(model, dtype, "cpu").state_dict()
    found = dict(loading.tensors(model, part, dtype))
    assert found.keys() == expected.keys()
    assert all(one.dtype == dtype and torch.equal(one, expected[key]) for key, one in found.items())


def test_files_of_half_precision_are_read_where_half_is_wanted(tmp_path: Path) -> None:
    """P29: fp16 files are half as long to read; a folder that has no others serves fp32, too."""
    half = build_tiny_sdxl(tmp_path / "half", variant="fp16")
    found = dict(loading.tensors(str(half), "unet", torch.float32))
    expected = families.of(str(half)).load_denoiser(str(half), torch.float32, "cpu").state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(one, expected[key]) for key, one in found.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the computer's memory beside one is not shown")
def test_beside_a_gpu_the_computer_never_holds_a_whole_encoder(tmp_path: Path) -> None:
    """D10: of 2 GB of weights less than a quarter is in memory of our own at a time; mapped files are the system's."""
    from transformers import CLIPTextConfig, CLIPTextModel

    wide = CLIPTextConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=20, num_attention_heads=16)
    encoder = CLIPTextModel(wide).half()
    whole = sum(one.numel() * one.element_size() for one in encoder.parameters())
    encoder.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    del encoder
    torch.zeros(1, device="cuda")  # CUDA's own memory is there before
    this, stop = psutil.Process(), threading.Event()
    before, most = _own_bytes(this), 0

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.005):
            most = max(most, _own_bytes(this) - before)

    watching = threading.Thread(target=watch)
    watching.start()
    loading.load_encoder("CLIPTextModel", str(tmp_path), "text_encoder", torch.float16, "cuda")
    stop.set()
    watching.join()
    assert whole > 1.5 * GIB and most < whole / 4


def _own_bytes(process: psutil.Process) -> int:
    """Resident memory without files that are mapped."""
    found = process.memory_info()
    return int(found.rss - found.shared)
