"""The LoRA on a UNet and in files: it draws the same in diffusers, in other tools' names, and fused (L3, P19)."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lace_lora import adapter, checkpoint, lora
from lace_lora.adapter import AdapterFacts
from lace_lora.errors import AdapterError, MachineError, ModelError
from lace_lora.families import sdxl, sdxl_names
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder
from tests.test_families import SDXL_UNET, load_pipeline

with quiet():
    from diffusers import UNet2DConditionModel

RANK, ALPHA = 4, 10
FACTS = AdapterFacts(
    family="sdxl",
    base_model="tiny",
    rank=RANK,
    alpha=ALPHA,
    lora_targets=tuple(sdxl.lora_targets("attention+ff")),
    concept_token="<myspecialstyle>",
    resolution=64,
    step=7,
    data_digest="d" * 64,
    settings_digest="s" * 64,
    versions={"torch": "2"},
)


def unet_of(model: Path) -> torch.nn.Module:
    return sdxl.load_denoiser(str(model), torch.float32, "cpu")


def a_trained_state(model: Path, targets: str = "attention+ff", rank: int = RANK) -> dict[str, torch.Tensor]:
    """A LoRA whose B is not zero, as training leaves it; small, since a wild UNet amplifies rounding without end."""
    unet = unet_of(model)
    adapter.attach(unet, "unet", adapter.Shape(rank, ALPHA, targets), 3)
    state = adapter.state_of({"unet": unet})
    numbers = torch.Generator().manual_seed(1)
    return {
        name: tensor if ".lora_A." in name else 0.1 * torch.randn(tensor.shape, generator=numbers)
        for name, tensor in state.items()
    }


@pytest.fixture
def saved(tiny_sdxl: Path, tmp_path: Path) -> adapter.Adapter:
    return adapter.save(a_trained_state(tiny_sdxl), RunFolder(tmp_path / "lace"), FACTS)


@torch.no_grad()
def output_of(unet: torch.nn.Module) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(0)
    noisy, text, pooled = (torch.randn(shape, generator=numbers) for shape in ((2, 4, 8, 8), (2, 77, 32), (2, 16)))
    return sdxl.predict(unet, noisy, torch.tensor([10, 600]), sdxl.Encoded(text, pooled), torch.full((2, 6), 64.0))


# -- on the UNet --


def test_a_new_lora_changes_nothing_and_only_it_learns(tiny_sdxl: Path) -> None:
    unet = unet_of(tiny_sdxl)
    before = output_of(unet)
    found = adapter.attach(unet, "unet", adapter.Shape(RANK, ALPHA, "attention"), 0)
    assert torch.equal(output_of(unet), before)
    learning = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert {id(one) for one in learning} == {id(one) for one in found.values()}
    assert {parameter.dtype for parameter in learning} == {torch.float32}


def test_lora_parameters_are_float32_on_a_half_precision_base(tiny_sdxl: Path) -> None:
    """fp16 ones end in "Attempting to unscale FP16 gradients", or lose small updates."""
    unet = sdxl.load_denoiser(str(tiny_sdxl), torch.bfloat16, "cpu")
    found = adapter.attach(unet, "unet", adapter.Shape(RANK, ALPHA, "attention"), 0)
    assert {parameter.dtype for parameter in found.values()} == {torch.float32}
    assert sdxl.base_dtype(unet) == torch.bfloat16
    output_of(unet)


def test_the_beginning_depends_on_the_seed_and_on_nothing_else(tiny_sdxl: Path) -> None:
    def begin(seed: int, targets: str = "attention") -> dict[str, torch.Tensor]:
        unet = unet_of(tiny_sdxl)
        torch.manual_seed(torch.seed() % 1000)
        return {
            name: one.detach()
            for name, one in adapter.attach(unet, "unet", adapter.Shape(RANK, ALPHA, targets), seed).items()
        }

    first, again, other, more = begin(1), begin(1), begin(2), begin(1, "attention+ff")
    assert all(torch.equal(first[name], again[name]) and torch.equal(first[name], more[name]) for name in first)
    downs = [name for name in first if ".lora_A." in name]
    assert not any(torch.equal(first[name], other[name]) for name in downs)
    for name in downs:
        bound = 1 / math.sqrt(first[name].shape[1])
        assert first[name].abs().max() <= bound and first[name].std() == pytest.approx(bound / math.sqrt(3), rel=0.4)


def test_targets_that_are_nowhere_are_refused(tiny_sdxl: Path) -> None:
    text = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    with pytest.raises(ModelError, match="no layers called to_q, to_k, to_v, to_out.0"):
        adapter.attach(text.encoders[0], "unet", adapter.Shape(RANK, ALPHA, "attention"), 0)


# -- the same output everywhere, with alpha other than rank --


def trained_output(model: Path) -> torch.Tensor:
    unet = unet_of(model)
    adapter.attach(unet, "unet", adapter.Shape(RANK, ALPHA, "attention+ff"), 0)
    set_state({"unet": unet}, a_trained_state(model))
    return output_of(unet)


def set_state(modules: dict[str, torch.nn.Module], state: dict[str, torch.Tensor]) -> None:
    found = adapter.parameters(modules)
    assert found.keys() == state.keys()
    with torch.no_grad():
        for name, one in found.items():
            one.copy_(state[name])


@pytest.mark.parametrize("file", ["adapter_weights", "adapter_for_tools"])
def test_diffusers_loads_either_file_to_the_same_output(tiny_sdxl: Path, saved: adapter.Adapter, file: str) -> None:
    """L3: with load_lora_weights alone, and every tensor is taken."""
    pipeline = load_pipeline(tiny_sdxl)
    plain = output_of(pipeline.unet)
    with quiet():
        path = getattr(RunFolder(saved.path.parents[1]), file)
        # Without weight_name, diffusers 0.39 asks the hub for a list of files, and fails where there is no network.
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
    loaded = {name: one for name, one in pipeline.unet.named_parameters() if "lora_" in name}
    assert len(loaded) == len(saved.state)
    ours = trained_output(tiny_sdxl)
    assert (ours - plain).abs().max() > 0.05
    assert torch.allclose(output_of(pipeline.unet), ours, atol=1e-5)


def test_fused_is_unfused(tiny_sdxl: Path, saved: adapter.Adapter) -> None:
    unet = unet_of(tiny_sdxl)
    plain = output_of(unet)
    adapter.fuse(unet, saved)
    assert torch.allclose(output_of(unet), trained_output(tiny_sdxl), atol=1e-5)
    adapter.fuse(unet, saved, scale=-1.0)
    assert torch.allclose(output_of(unet), plain, atol=1e-5)


def test_the_file_for_other_tools_by_its_published_formula(tiny_sdxl: Path, saved: adapter.Adapter) -> None:
    """W += alpha / rank · up · down, rank read off the shape, layers found by the names of Stability's own UNet."""
    folder = RunFolder(saved.path.parents[1])
    tensors = load_file(folder.adapter_for_tools)
    unet = unet_of(tiny_sdxl)
    layers = {sgm_name(name): module for name, module in unet.named_modules()}
    keys = {name.rsplit(".lora_down", 1)[0] for name in tensors if name.endswith("lora_down.weight")}
    assert len(tensors) == 3 * len(keys) == 3 * len(saved.state) // 2
    for key in keys:
        down, up, alpha = (tensors[f"{key}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert alpha.shape == () and float(alpha) == ALPHA
        layers[key].weight.data += alpha / down.shape[0] * (up @ down)
    assert torch.allclose(output_of(unet), trained_output(tiny_sdxl), atol=1e-5)


def sgm_name(name: str) -> str:
    """An oracle by table, not by arithmetic: SDXL's nine blocks down, the middle, nine up."""
    places = {f"down_blocks.{level}.attentions.{layer}.": f"input_blocks.{number}.1." for level, layer, number in
              ((1, 0, 4), (1, 1, 5), (2, 0, 7), (2, 1, 8))}  # fmt: skip
    places |= {f"up_blocks.{level}.attentions.{layer}.": f"output_blocks.{number}.1." for level, layer, number in
               ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4), (1, 2, 5))}  # fmt: skip
    places |= {"mid_block.attentions.0.": "middle_block.1."}
    for ours, theirs in places.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
    return "lora_unet_" + name.replace(".", "_")


def test_key_names_at_sdxls_true_size_are_those_of_the_ecosystem() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
        with quiet():
            from peft import LoraConfig

            targets = sdxl.lora_targets("attention+ff")
            unet.add_adapter(LoraConfig(r=16, target_modules=targets), adapter_name=lora.NAME)
    found = adapter.parameters({"unet": unet})
    assert len(found) == 1400
    attention = {name: one for name, one in found.items() if ".attn" in name}
    assert len(attention) == 1120
    assert sum(one.numel() for one in attention.values()) == 1_451_520 * 16  # 23.2 million at rank 16
    state = {name: torch.empty(one.shape, device="meta") for name, one in found.items()}
    assert sdxl_names.format_of({name: tuple(one.shape) for name, one in state.items()}) == sdxl_names.OURS
    for_tools = sdxl_names.for_tools(state, alpha=8, layers_per_block=2)
    assert len(for_tools) == 2100
    # Key names as published LoRAs for SDXL have them.
    sample = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": (16, 640),
        "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.lora_A.weight": (16, 2048),
        "unet.mid_block.attentions.0.transformer_blocks.5.attn1.to_out.0.lora_B.weight": (1280, 16),
        "unet.up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj.lora_B.weight": (5120, 16),
    }
    assert {name: tuple(found[name].shape) for name in sample} == sample
    tools = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight": (16, 640),
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k.lora_down.weight": (16, 2048),
        "lora_unet_middle_block_1_transformer_blocks_5_attn1_to_out_0.lora_up.weight": (1280, 16),
        "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj.lora_up.weight": (5120, 16),
        "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_2.alpha": (),
    }
    assert {name: tuple(for_tools[name].shape) for name in tools} == tools
    assert sdxl_names.original_place("unet.down_blocks.0.resnets.1.conv1", 2) == "input_blocks.2.0.in_layers.2"
    assert sdxl_names.original_place("unet.mid_block.resnets.1.conv1", 2) == "middle_block.2.in_layers.2"
    assert sdxl_names.original_place("unet.up_blocks.2.resnets.0.conv1", 2) == "output_blocks.6.0.in_layers.2"


# -- files --


def test_files_carry_what_made_them(saved: adapter.Adapter) -> None:
    folder = RunFolder(saved.path.parents[1])
    assert sorted(path.name for path in folder.adapter.iterdir()) == [
        "adapter.json",
        "lace.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    card = json.loads(folder.adapter_card.read_text())
    assert (card["rank"], card["alpha"], card["concept_token"], card["data_digest"]) == (
        RANK,
        ALPHA,
        "<myspecialstyle>",
        "d" * 64,
    )
    for path in (folder.adapter_weights, folder.adapter_for_tools):
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata()
        assert header["modelspec.sai_model_spec"] == "1.0.0"
        assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
        assert header["modelspec.trigger_phrase"] == "<myspecialstyle>"
        assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "10")
        assert header["ss_base_model_version"] == "sdxl_base_v1-0"
        assert json.loads(header["lace_lora"])["settings_digest"] == "s" * 64
    assert all(tensor.dtype == torch.float32 for tensor in load_file(folder.adapter_weights).values())


def test_loading_gives_back_facts_and_tensors(saved: adapter.Adapter, tmp_path: Path) -> None:
    folder = RunFolder(saved.path.parents[1])
    for place in (folder.root, folder.adapter, folder.adapter_weights):
        loaded = adapter.load(place)
        assert loaded.facts == FACTS and loaded.state.keys() == saved.state.keys()
        assert all(torch.equal(loaded.state[name], saved.state[name]) for name in saved.state)
    assert loaded.digest == checkpoint.sha256(folder.adapter_weights)
    alone = tmp_path / "copied_alone.safetensors"
    alone.write_bytes(saved.path.read_bytes())
    assert adapter.load(alone).facts == FACTS


def test_an_adapter_of_another_trainer_tells_rank_and_alpha(saved: adapter.Adapter, tmp_path: Path) -> None:
    plain, stated = tmp_path / "plain.safetensors", tmp_path / "stated.safetensors"
    save_file(dict(saved.state), plain)
    save_file(
        dict(saved.state), stated, {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": ALPHA})}
    )
    assert (adapter.load(plain).facts.rank, adapter.load(plain).facts.alpha) == (RANK, RANK)
    assert adapter.load(stated).facts.alpha == ALPHA


def test_an_adapter_shows_itself_as_a_table(saved: adapter.Adapter) -> None:
    assert "concept token  <myspecialstyle>" in repr(saved)
    assert "rank, alpha    4, 10 (170 layers" in str(saved)
    assert "&lt;myspecialstyle&gt;" in saved._repr_html_()
    assert "7 steps at 64 px, not finished" in str(replace(saved, facts=replace(FACTS, is_complete=False)))


def halves(*names: str, rank: int = 4, width: int = 768) -> dict[str, torch.Tensor]:
    return {name: torch.zeros((rank, width)) for name in names}


FOREIGN = {
    "SD 1.5 LoRA in the format of the early": halves("unet:0:up", "unet:0:down", "text_encoder:0:up"),
    "in the names of ComfyUI, A1111 and kohya": halves("lora_unet_input_blocks_4_1_proj_in.lora_down.weight"),
    "a LoRA in kohya's names, for SD 1.5": halves("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
    "a transformer model such as Flux": halves("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"),
    "a PEFT adapter for a language model": halves("base_model.model.layers.0.q_proj.lora_A.weight"),
    "in diffusers' older names": halves("unet.down_blocks.1.attentions.0.to_q.lora.down.weight"),
    "a LyCORIS adapter": halves("lycoris_unet_x.lokr_w1"),
    "a textual inversion, not a LoRA": halves("clip_l", "clip_g"),
    "something unknown \\(its first tensor is called 'weights'\\)": halves("weights"),
    "a LoRA for SD 1.5": halves(
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight",
    ),
    "a LoRA for SD 2": halves("unet.down_blocks.0.attentions.0.x.attn2.to_k.lora_A.weight", width=1024),
}


@pytest.mark.parametrize("words", FOREIGN)
def test_foreign_adapters_are_named_and_refused(words: str, tmp_path: Path) -> None:
    file = tmp_path / "foreign.safetensors"
    save_file(FOREIGN[words], file)
    with pytest.raises(AdapterError, match=f"is not an SDXL LoRA in diffusers' names: it looks like .*{words}"):
        adapter.load(file)


def test_what_is_wrong_with_a_file_is_said(saved: adapter.Adapter, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="No adapter in .*Train one first"):
        adapter.load(tmp_path / "nowhere")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(saved.path.read_bytes()[:-50])
    with pytest.raises(AdapterError, match="is damaged or no safetensors file"):
        adapter.load(bad)
    save_file(dict(list(saved.state.items())[1:]), bad)
    with pytest.raises(AdapterError, match="only one half of"):
        adapter.load(bad)
    name = next(iter(saved.state))
    save_file(dict(saved.state) | {name: saved.state[name] * float("nan")}, bad)
    with pytest.raises(AdapterError, match="holds NaN or infinity"):
        adapter.load(bad)
    with safe_open(saved.path, framework="pt") as opened:
        header = opened.metadata()
    other = json.dumps(json.loads(header["lace_lora"]) | {"family": "pixels"})
    save_file(dict(saved.state), bad, {"lace_lora": other})
    with pytest.raises(AdapterError, match="is an adapter for pixels, which cannot be used here"):
        adapter.load(bad)
    save_file(dict(saved.state), bad, {"lace_lora": json.dumps(json.loads(header["lace_lora"]) | {"rank": 8})})
    with pytest.raises(AdapterError, match="says rank 8, but"):
        adapter.load(bad)
    save_file(dict(saved.state), bad, {"lace_lora": "{"})
    with pytest.raises(AdapterError, match="its header cannot be read"):
        adapter.load(bad)


def test_an_adapter_that_does_not_fit_leaves_the_unet_as_it_was(
    tiny_sdxl: Path, tiny_refiner: Path, saved: adapter.Adapter
) -> None:
    """The base's LoRA does not fit the refiner; and one key that finds no layer is an error, not a warning."""
    unet = unet_of(tiny_refiner)
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    with pytest.raises(AdapterError, match="does not fit this base model: .*attn2.to_k .shape .*It was made for tiny"):
        adapter.fuse(unet, saved)
    assert all(torch.equal(before[name], parameter) for name, parameter in unet.named_parameters())
    renamed = {
        name.replace("blocks.1.", "blocks.7.") if "blocks.1." in name else name: one
        for name, one in saved.state.items()
    }
    with pytest.raises(AdapterError, match="no such layer"):
        adapter.fuse(unet_of(tiny_sdxl), replace(saved, state=renamed))


def test_the_same_adapter_is_the_same_file_and_its_tensors_read_back(saved: adapter.Adapter) -> None:
    """L14: safetensors itself writes metadata in chance order, which would give every save another digest."""
    folder = RunFolder(saved.path.parents[1])
    digests = set()
    for _ in range(8):
        adapter.save(saved.state, folder, FACTS)
        digests.add((checkpoint.sha256(folder.adapter_weights), checkpoint.sha256(folder.adapter_for_tools)))
    assert len(digests) == 1
    read = load_file(folder.adapter_weights)
    assert read.keys() == saved.state.keys()
    assert all(torch.equal(read[name], saved.state[name]) for name in read)


def test_numbers_that_are_not_finite_are_not_saved_and_the_earlier_file_stays(saved: adapter.Adapter) -> None:
    folder, before = RunFolder(saved.path.parents[1]), saved.digest
    name = next(iter(saved.state))
    with pytest.raises(AdapterError, match="holds NaN or infinity .*so it is not saved"):
        adapter.save(dict(saved.state) | {name: saved.state[name] / 0}, folder, FACTS)
    assert checkpoint.sha256(folder.adapter_weights) == before


def test_a_full_disk_leaves_the_earlier_adapter(saved: adapter.Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, before = RunFolder(saved.path.parents[1]), saved.digest

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="The disk is full: .*pytorch_lora_weights.safetensors could not be written"):
        adapter.save(saved.state, folder, FACTS)
    assert checkpoint.sha256(folder.adapter_weights) == before
    assert not list(folder.adapter.glob("*.partial"))
