"""The 4-bit base: its layers, the kept file, and a LoRA that learns on it (P13, P29)."""

import shutil
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lace_lora import losses, parts, quantize, steps
from lace_lora.config import Config
from lace_lora.errors import MachineError, ModelError
from lace_lora.families import loading, sdxl
from lace_lora.machine import GIB
from tests import wide_models
from tests.training import parts_and_pictures, quietly

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def wide_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_models.build("sdxl", tmp_path_factory.mktemp("models") / "wide-sdxl")


@pytest.fixture
def wide(settings: Config, wide_sdxl: Path, tmp_path: Path) -> Config:
    update = {"pretrained_model": str(wide_sdxl), "quantization": "nf4", "cache_dir": str(tmp_path / "cache")}
    return settings.model_copy(update=update)


def layers_of(unet: Any) -> dict[str, Any]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}


def load(model: Path, cache: Path, dtype: torch.dtype = torch.float32) -> Any:
    return quantize.load_nf4(str(model), dtype, "cpu", cache, quietly)


def answer(unet: Any) -> torch.Tensor:
    torch.manual_seed(3)
    conditions = {"text_embeds": torch.randn(1, 16), "time_ids": torch.ones(1, 6)}
    unet.train()
    with torch.no_grad():
        return unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 77, 32), added_cond_kwargs=conditions).sample


def test_layers_are_nf4_with_double_quantisation_and_narrow_ones_stay(wide_sdxl: Path, tmp_path: Path) -> None:
    """P13."""
    unet = load(wide_sdxl, tmp_path)
    layers = layers_of(unet)
    assert len(layers) > 20
    state = next(iter(layers.values())).weight.quant_state
    assert state.quant_type == "nf4" and state.nested and state.blocksize == 64
    plain = [module for module in unet.modules() if type(module) is torch.nn.Linear]
    assert plain and all(module.in_features % 64 or module.out_features % 64 for module in plain)
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_layers_are_quantised_as_they_are_read_and_are_those_that_bitsandbytes_makes_of_the_whole(
    wide_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P29: never two whole layers beside the one in hand; and each number is what its own function gives."""
    read, alive, most = loading.tensors, weakref.WeakSet(), 0

    def watched(*given: Any) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for name, tensor in read(*given):
            if tensor.dim() == 2 and not any(side % 64 for side in tensor.shape):
                alive.add(tensor)
            most = max(most, len(alive))
            yield name, tensor
            del tensor

    monkeypatch.setattr(loading, "tensors", watched)
    unet = load(wide_sdxl, tmp_path, torch.bfloat16)
    assert 0 < most <= 2
    whole = sdxl.load_denoiser(str(wide_sdxl), torch.bfloat16, "cpu")
    for name, layer in layers_of(unet).items():
        weight = whole.get_submodule(name).weight
        packed, state = bitsandbytes.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        assert torch.equal(layer.weight.data, packed) and torch.equal(layer.weight.quant_state.absmax, state.absmax)
    plain = {name: one for name, one in unet.named_parameters() if name.rpartition(".")[0] not in layers_of(unet)}
    assert plain and all(torch.equal(one, whole.get_parameter(name)) for name, one in plain.items())


def test_a_model_that_lacks_weights_or_has_others_is_refused(wide_sdxl: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(wide_sdxl, folder)
    [file] = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    name = "mid_block.attentions.0.proj_in.weight"
    for change, told in (
        ({name: None}, f"does not hold all weights .*first: {name}"), ({name: torch.zeros(64, 128)}, f"first: {name}"),
        ({"conv_in.bias": None}, "first: conv_in.bias"), ({"conv_in.bias": torch.zeros(3)}, "cannot be loaded"),
    ):  # fmt: skip
        save_file({key: one for key, one in (tensors | change).items() if one is not None}, file)
        with pytest.raises(ModelError, match=told):
            load(folder, tmp_path / "cache")


def test_a_layer_computes_with_its_dequantised_weights(wide_sdxl: Path, tmp_path: Path) -> None:
    layer = next(iter(layers_of(load(wide_sdxl, tmp_path)).values())).train()
    inputs = torch.randn(5, layer.in_features)
    weights = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.allclose(layer(inputs), F.linear(inputs, weights, layer.bias), atol=1e-5)


def test_memory_is_half_a_byte_a_number_and_a_little(wide_sdxl: Path, tmp_path: Path) -> None:
    """P29: what is planned from shapes is what is there."""
    whole = sdxl.load_denoiser(str(wide_sdxl), torch.float32, "cpu")
    unet = load(wide_sdxl, tmp_path)
    assert quantize.planned_bytes(whole, 4) / GIB == pytest.approx(quantize.size_gib(unet), rel=0.02)
    layer = next(iter(layers_of(unet).values()))
    numbers = layer.in_features * layer.out_features
    held = layer.weight.untyped_storage().nbytes() + layer.weight.quant_state.absmax.untyped_storage().nbytes()
    assert numbers / 2 <= held <= 0.53 * numbers


def test_the_kept_file_is_quantising_afresh_bit_for_bit(
    wide_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start never reads the half-precision UNet; another UNet of the same size never reads this file."""
    fresh = load(wide_sdxl, tmp_path)
    expected = answer(fresh)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "tensors", lambda *_: pytest.fail("read the UNet's own files"))
        kept = load(wide_sdxl, tmp_path)
    assert layers_of(kept).keys() == layers_of(fresh).keys()
    again = kept.state_dict()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    assert torch.equal(answer(kept), expected)
    assert quantize.kept_folder(str(wide_sdxl), torch.bfloat16, tmp_path) != quantize.kept_folder(
        str(wide_sdxl), torch.float32, tmp_path
    )


def test_a_damaged_file_is_passed_over_with_a_sentence(wide_sdxl: Path, tmp_path: Path) -> None:
    expected = answer(load(wide_sdxl, tmp_path))
    file = quantize.kept_folder(str(wide_sdxl), torch.float32, tmp_path) / quantize.file_name(str(wide_sdxl), 1)
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))
    said: list[str] = []
    again = quantize.load_nf4(str(wide_sdxl), torch.float32, "cpu", tmp_path, said.append)
    assert "is passed over" in said[0] and torch.equal(answer(again), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_on_it_learns_and_loads_on_the_unquantised_base(
    dtype: torch.dtype, wide: Config, wide_sdxl: Path
) -> None:
    """P13: loss falls; only the LoRA gets gradients; looks in between do not spoil the backward pass."""
    changed = wide.model_copy(
        update={"max_train_steps": 30, "learning_rate": 5e-3, "lr_scheduler": "constant", "caption_dropout": 0.0,
                "train_batch_size": 4, "lora_targets": "attention+ff"}
    )  # fmt: skip
    made, encoded = parts_and_pictures(changed, dtype)
    assert layers_of(made.denoiser), "PEFT wraps the 4-bit layers"
    seen = []
    for step in steps.steps(made, encoded, None, changed, 0):
        seen.append(step.loss)
        if step.number == 2 and dtype == torch.float32:
            answer(made.denoiser)
    assert sum(seen[-8:]) < sum(seen[:8])
    trained = {id(parameter) for parameter in made.parameters.values()}
    assert all(id(one) in trained for one in made.denoiser.parameters() if one.requires_grad)
    # On the unquantised base: what was learnt on 4 bits makes the same pictures' losses smaller there too.
    plain, pictures = parts_and_pictures(changed.model_copy(update={"quantization": "none"}))
    before = loss_over(plain, pictures, changed)
    parts.take_up(plain, parts.learnt(made))
    assert loss_over(plain, pictures, changed) < 0.98 * before


def loss_over(made: parts.Parts, pictures: losses.Pictures, settings: Config) -> float:
    """The mean loss of the first batches."""
    with torch.no_grad():
        return sum(float(losses.losses_of_batch(made, pictures, number, settings).mean()) for number in range(8)) / 8


def test_a_run_on_it_is_resumed_bit_for_bit(wide: Config, tmp_path: Path) -> None:
    """P13, L14: also when the resumed session reads the kept file and the first one quantised."""
    changed = wide.model_copy(update={"max_train_steps": 6})
    made, encoded = parts_and_pictures(changed)
    whole = [step.loss for step in steps.steps(made, encoded, None, changed, 0)]
    first, _ = parts_and_pictures(changed)
    half = [step.loss for step in islice(steps.steps(first, encoded, None, changed, 0), 3)]
    (tmp_path / "saved").mkdir()
    parts.save(first, tmp_path / "saved", 3, "this run")
    second, _ = parts_and_pictures(changed)
    start = parts.restore(second, tmp_path / "saved", "this run")
    assert half + [step.loss for step in steps.steps(second, encoded, None, changed, start)] == whole


def test_without_bitsandbytes_it_says_what_to_do(
    wide_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MachineError, match="nf4 needs the package bitsandbytes: pip install bitsandbytes"):
        load(wide_sdxl, tmp_path)
