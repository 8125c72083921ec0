"""Every kind of LoRA draws the same where it was trained, fused, in diffusers and in other tools' files (L3, L18, P19).

alpha is never the rank here: a scale that is lost or taken twice shows.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lace_lora import adapter, lora, tokens
from lace_lora.adapter import AdapterFacts, Shape
from lace_lora.errors import AdapterError, SettingsError
from lace_lora.families import clip, sdxl
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder
from tests.test_adapter import output_of, set_state, sgm_name
from tests.test_families import load_pipeline

TOKEN = "<myspecialstyle>"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"targets": "attention+ff"},
    "conv": {"targets": "attention+ff+conv"},
    "up_blocks": {"targets": "up_blocks"},
    "rslora": {"targets": "attention", "use_rslora": True},
    "dora": {"targets": "attention+ff", "use_dora": True},
    "dora and conv": {"targets": "attention+ff+conv", "use_dora": True, "use_rslora": True},
}


def shape_of(kind: str) -> Shape:
    return Shape(4, 10, **KINDS[kind])


def trained(module: Any, part: str, shape: Shape) -> dict[str, torch.Tensor]:
    """Put a LoRA on, as training leaves it: B is not zero, and lengths are not what they were."""
    adapter.attach(module, part, shape, 3)
    chance = torch.Generator().manual_seed(1)
    state = {}
    for name, one in adapter.state_of({part: module}).items():
        drawn = torch.randn(one.shape, generator=chance)
        state[name] = (
            one if name.endswith(lora.A) else 0.1 * drawn if name.endswith(lora.B) else one * (1 + 0.1 * drawn)
        )
    set_state({part: module}, state)
    return state


def facts_of(model: Path, shape: Shape, **more: Any) -> AdapterFacts:
    return AdapterFacts(
        "sdxl", str(model), shape.rank, shape.alpha, tuple(sdxl.lora_targets(shape.targets)),
        use_dora=shape.use_dora, use_rslora=shape.use_rslora, concept_token=TOKEN, versions={"torch": "2"}, **more,
    )  # fmt: skip


def unet_of(model: Path) -> Any:
    return sdxl.load_denoiser(str(model), torch.float32, "cpu")


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tiny_sdxl: Path, tmp_path: Path) -> tuple[adapter.Adapter, torch.Tensor]:
    """An adapter of every kind, saved, and what the UNet answers with it."""
    unet, shape = unet_of(tiny_sdxl), shape_of(request.param)
    state = trained(unet, "unet", shape)
    saved = adapter.save(state, RunFolder(tmp_path / "lace"), facts_of(tiny_sdxl, shape))
    return saved, output_of(unet)


def test_a_new_lora_of_any_kind_changes_nothing(tiny_sdxl: Path) -> None:
    plain = output_of(unet_of(tiny_sdxl))
    for kind in KINDS:
        unet = unet_of(tiny_sdxl)
        adapter.attach(unet, "unet", shape_of(kind), 0)
        assert torch.allclose(output_of(unet), plain, atol=1e-6), kind


def test_up_blocks_are_those_of_the_way_up_and_conv_adds_the_convolutions(tiny_sdxl: Path) -> None:
    def names(kind: str) -> set[str]:
        return set(adapter.attach(unet_of(tiny_sdxl), "unet", shape_of(kind), 0))

    assert all(name.startswith("unet.up_blocks.") for name in names("up_blocks"))
    everything = {name for name in names("plain") if ".attn" in name}
    assert {name for name in everything if name.startswith("unet.up_blocks.")} == names("up_blocks")
    added = names("conv") - names("plain")
    kinds = {name.split(".lora_")[0].rpartition(".")[2] for name in added}
    assert kinds == {"conv1", "conv2", "conv_shortcut", "conv"}
    assert not any("conv_in" in name or "conv_out" in name for name in added)


def test_fused_is_unfused(made: tuple[adapter.Adapter, torch.Tensor], tiny_sdxl: Path) -> None:
    saved, expected = made
    unet = unet_of(tiny_sdxl)
    plain = output_of(unet)
    adapter.fuse(unet, adapter.load(saved.path))
    assert (expected - plain).abs().max() > 0.02
    assert torch.allclose(output_of(unet), expected, atol=1e-5)


def test_diffusers_loads_it_to_the_same_output(made: tuple[adapter.Adapter, torch.Tensor], tiny_sdxl: Path) -> None:
    """L3: with load_lora_weights alone; every tensor is taken, rank, alpha and kind come from the file."""
    saved, expected = made
    pipeline = load_pipeline(tiny_sdxl)
    with quiet():
        pipeline.load_lora_weights(saved.path.parent, weight_name=saved.path.name)
    loaded = {name: one for name, one in pipeline.unet.named_parameters() if "lora_" in name}
    assert len(loaded) == len(saved.state)
    assert torch.allclose(output_of(pipeline.unet), expected, atol=1e-5)


def test_other_tools_read_it_by_their_formula(made: tuple[adapter.Adapter, torch.Tensor], tiny_sdxl: Path) -> None:
    """W + alpha / rank · up · down; with dora_scale each output's row then gets that length."""
    saved, expected = made
    tensors = load_file(RunFolder(saved.path.parents[1]).adapter_for_tools)
    unet = unet_of(tiny_sdxl)
    found = {tools_name(name): module for name, module in unet.named_modules()}
    keys = {name.rsplit(".lora_down", 1)[0] for name in tensors if name.endswith("lora_down.weight")}
    with torch.no_grad():
        for key in keys:
            down, up, alpha = (tensors[f"{key}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
            weight = found[key].weight
            whole = weight + (float(alpha) / down.shape[0]) * torch.einsum(
                "or,ri->oi", up.flatten(1), down.flatten(1)
            ).reshape(weight.shape)
            scale = tensors.get(f"{key}.dora_scale")
            if scale is not None:
                assert scale.shape == (weight.shape[0], *[1] * (weight.dim() - 1))
                whole = whole / whole.flatten(1).norm(dim=1).reshape(scale.shape) * scale
            weight.copy_(whole)
    assert torch.allclose(output_of(unet), expected, atol=1e-5)


def tools_name(name: str) -> str:
    """By table again: what the published UNet calls the parts of a residual block, and where halvings stand."""
    table = {
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    }
    if name in table:
        return "lora_unet_" + table[name].replace(".", "_")
    if ".resnets." not in name:
        return sgm_name(name)
    places = {f"down_blocks.{level}.resnets.{layer}": f"input_blocks.{number}.0" for level, layer, number in
              ((0, 0, 1), (0, 1, 2), (1, 0, 4), (1, 1, 5), (2, 0, 7), (2, 1, 8))}  # fmt: skip
    places |= {f"up_blocks.{number // 3}.resnets.{number % 3}": f"output_blocks.{number}.0" for number in range(9)}
    places |= {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    ends = {"conv1": "in_layers.2", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    block, _, end = name.rpartition(".")
    return "lora_unet_" + f"{places.get(block, block)}.{ends.get(end, end)}".replace(".", "_")


# -- text encoders --


def words_of(text: sdxl.TextParts, prompts: list[str]) -> sdxl.Encoded:
    return sdxl.encode_captions(text, prompts)


@pytest.fixture
def with_text(tiny_sdxl: Path, tmp_path: Path) -> tuple[adapter.Adapter, sdxl.Encoded]:
    """L18: a LoRA on the UNet and on both text encoders."""
    shape = Shape(4, 10, "attention")
    state = trained(unet_of(tiny_sdxl), "unet", shape)
    text = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    for part, encoder in zip(("text_encoder", "text_encoder_2"), text.encoders, strict=True):
        state |= trained(encoder, part, shape)
    saved = adapter.save(state, RunFolder(tmp_path / "lace"), facts_of(tiny_sdxl, shape, train_text_encoder=True))
    return saved, words_of(text, ["a lace star"])


def test_text_encoders_are_in_the_file_and_load_in_diffusers(
    with_text: tuple[adapter.Adapter, sdxl.Encoded], tiny_sdxl: Path
) -> None:
    saved, expected = with_text
    pipeline = load_pipeline(tiny_sdxl)
    plain = pipeline.encode_prompt("a lace star", device="cpu", do_classifier_free_guidance=False)[0]
    with quiet():
        pipeline.load_lora_weights(saved.path.parent, weight_name=saved.path.name)
    text_BLD, _, pooled_BP, _ = pipeline.encode_prompt("a lace star", device="cpu", do_classifier_free_guidance=False)
    assert (text_BLD - plain).abs().max() > 0.01
    assert torch.allclose(text_BLD, expected.text_BLD, atol=1e-5)
    assert torch.allclose(pooled_BP, expected.pooled_BP, atol=1e-5)


def test_text_encoders_are_fused_and_found_by_other_tools(
    with_text: tuple[adapter.Adapter, sdxl.Encoded], tiny_sdxl: Path
) -> None:
    saved, expected = with_text
    loaded = adapter.load(saved.path)
    assert loaded.changes_text
    text = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    adapter.fuse_text(text, loaded)
    assert torch.allclose(words_of(text, ["a lace star"]).text_BLD, expected.text_BLD, atol=1e-5)
    keys = load_file(RunFolder(saved.path.parents[1]).adapter_for_tools)
    for number in (1, 2):
        # As published SDXL LoRAs have them.
        assert f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in keys
    assert sum(name.startswith("lora_te1_") for name in keys) == 3 * 4 * 3


# -- a word of its own --


@pytest.fixture
def text(tiny_sdxl: Path) -> sdxl.TextParts:
    return sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")


def test_a_learnt_token_is_one_word_and_begins_as_the_class_words(text: sdxl.TextParts) -> None:
    """L4."""
    tables = [encoder.get_input_embeddings().weight.clone() for encoder in text.encoders]
    before = words_of(text, ["a lace star"])
    rows = tokens.add(text, TOKEN, "a star")
    assert {name: tuple(one.shape) for name, one in rows.items()} == {
        "text_encoder.concept_token": (1, 16),
        "text_encoder_2.concept_token": (1, 16),
    }
    for tokenizer in text.tokenizers:
        assert sdxl.count_tokens([tokenizer], TOKEN) == 1
        assert len(tokenizer(f"a {TOKEN.upper()}", add_special_tokens=False).input_ids) == 2, "in either case"
    ids = text.tokenizers[0]("a star", add_special_tokens=False).input_ids
    assert torch.allclose(rows["text_encoder.concept_token"][0], tables[0][ids].mean(dim=0))
    assert torch.equal(words_of(text, ["a lace star"]).text_BLD, before.text_BLD), "other prompts are as they were"


def test_only_the_new_row_gets_a_gradient(text: sdxl.TextParts) -> None:
    rows = tokens.add(text, TOKEN, "lace")
    encoded = sdxl.read_captions(text, [f"a photo of {TOKEN}", "a photo"])
    (encoded.text_BLD.square().sum() + encoded.pooled_BP.square().sum()).backward()
    assert all(float(row.grad.abs().sum()) > 0 for row in rows.values() if row.grad is not None)
    others = [
        one for encoder in text.encoders for one in encoder.parameters() if all(one is not row for row in rows.values())
    ]
    assert all(one.grad is None for one in others)


def test_prompts_with_the_new_word_are_pooled_at_their_end(text: sdxl.TextParts) -> None:
    """The trap: the second encoder's config says eos_token_id 2, and transformers then pools at the highest number."""
    tokens.add(text, TOKEN, "lace")
    pooled_BP = words_of(text, [f"{TOKEN} star", f"{TOKEN} leaf", f"white {TOKEN} leaf"]).pooled_BP
    for one in range(3):
        for other in range(one):
            assert (pooled_BP[one] - pooled_BP[other]).abs().max() > 1e-3


def test_learnt_rows_are_kept_apart_and_load_as_a_textual_inversion(
    tiny_sdxl: Path, text: sdxl.TextParts, tmp_path: Path
) -> None:
    """L4: in the names that A1111 and ComfyUI read; diffusers reads the same prompts with them."""
    shape = Shape(4, 10, "attention")
    rows = tokens.add(text, TOKEN, "lace")
    with torch.no_grad():
        for row in rows.values():
            row += torch.randn(row.shape, generator=torch.Generator().manual_seed(5))
    expected = words_of(text, [f"a photo of {TOKEN} star"])
    state = trained(unet_of(tiny_sdxl), "unet", shape) | {name: row.detach() for name, row in rows.items()}
    folder = RunFolder(tmp_path / "lace")
    adapter.save(state, folder, facts_of(tiny_sdxl, shape, learns_token=True))
    for file in (folder.adapter_weights, folder.adapter_for_tools):
        assert not any("concept_token" in name for name in load_file(file))
    kept = load_file(folder.concept_token)
    assert {name: tuple(one.shape) for name, one in kept.items()} == {"clip_l": (1, 16), "clip_g": (1, 16)}

    loaded = adapter.load(folder.root)
    assert loaded.state.keys() == state.keys() and loaded.changes_text
    fresh = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    tokens.put_in(fresh, TOKEN, loaded.token_rows)
    assert torch.allclose(words_of(fresh, [f"a photo of {TOKEN} star"]).text_BLD, expected.text_BLD, atol=1e-6)

    pipeline = load_pipeline(tiny_sdxl)
    for encoder, tokenizer in zip((pipeline.text_encoder, pipeline.text_encoder_2), text.tokenizers, strict=True):
        clip.set_end_token(encoder, tokenizer.eos_token_id)
    with quiet():
        pipeline.load_textual_inversion(
            kept["clip_l"], token=TOKEN, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
        )
        pipeline.load_textual_inversion(
            kept["clip_g"], token=TOKEN, text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
        )
    text_BLD, _, pooled_BP, _ = pipeline.encode_prompt(
        f"a photo of {TOKEN} star", device="cpu", do_classifier_free_guidance=False
    )
    assert torch.allclose(text_BLD, expected.text_BLD, atol=1e-5)
    assert torch.allclose(pooled_BP, expected.pooled_BP, atol=1e-5)

    data = bytearray(folder.concept_token.read_bytes())
    folder.concept_token.unlink()
    with pytest.raises(AdapterError, match="was trained with a word of its own, .* cannot be read .* Copy both files"):
        adapter.load(folder.root)

    data[-1] ^= 1
    folder.concept_token.write_bytes(bytes(data))
    with pytest.raises(AdapterError, match="concept_token.safetensors is not as it was written"):
        adapter.load(folder.root)


def test_a_word_that_is_there_already_is_refused(text: sdxl.TextParts) -> None:
    tokens.add(text, TOKEN, "lace")
    with pytest.raises(SettingsError, match="is a word of the model already"):
        tokens.add(text, TOKEN, "lace")


def test_headers_do_not_tell_where_a_model_lies(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Files go to strangers; the card beside them stays at home and leads back to the model."""
    shape = Shape(4, 10, "attention")
    folder = RunFolder(tmp_path / "lace")
    adapter.save(trained(unet_of(tiny_sdxl), "unet", shape), folder, facts_of(tiny_sdxl, shape))
    for file in (folder.adapter_weights, folder.adapter_for_tools):
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata()
        assert str(tiny_sdxl.parent) not in json.dumps(header) and header["ss_sd_model_name"] == tiny_sdxl.name
    assert adapter.load(folder.root).facts.base_model == str(tiny_sdxl)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(folder.adapter_weights.read_bytes())
    assert adapter.load(alone).facts.base_model == tiny_sdxl.name
