"""LoRAs made elsewhere: every tool's names are read to the same picture, and what does not fit is said (L3, P25)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lace_lora import adapter, foreign, foreign_words, inference, lora, main, starting, train
from lace_lora.errors import AdapterError, RunError, SettingsError
from lace_lora.families import foreign_names, sdxl, sdxl_names
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder
from tests.conftest import losses_of, read_pixels
from tests.test_adapter import ALPHA, FACTS, RANK, a_trained_state, output_of, sgm_name, trained_output, unet_of
from tests.test_families import load_pipeline

State = dict[str, torch.Tensor]
META = "lora_adapter_metadata"


@pytest.fixture(scope="module")
def state(tiny_sdxl: Path) -> State:
    """A LoRA on attention and feed-forward layers: rank 4, alpha 10."""
    return a_trained_state(tiny_sdxl)


@pytest.fixture(scope="module")
def theirs(tiny_sdxl: Path) -> torch.Tensor:
    """What the UNet gives with it, by PEFT."""
    return trained_output(tiny_sdxl)


def layers_in(state: State) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by the layer's name in the UNet."""
    names = [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]
    return {one.removeprefix("unet."): (state[f"{one}.lora_A.weight"], state[f"{one}.lora_B.weight"]) for one in names}


def kohya(state: State) -> tuple[State, dict[str, str]]:
    """kohya and A1111, with the places of Stability's UNet."""
    found: State = {}
    for layer, (down, up) in layers_in(state).items():
        key = sgm_name(layer)
        found |= {f"{key}.lora_down.weight": down.half(), f"{key}.lora_up.weight": up.half()}
        found[f"{key}.alpha"] = torch.tensor(float(ALPHA)).half()
    return found, {"ss_network_dim": str(RANK), "ss_network_alpha": str(ALPHA)}


def kohya_diffusers(state: State) -> tuple[State, dict[str, str]]:
    """The same with diffusers' places, as OneTrainer and others write it."""
    found: State = {}
    for layer, (down, up) in layers_in(state).items():
        key = "lora_unet_" + layer.replace(".", "_")
        found |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(10.0)}
    return found, {}


def comfy_trainer(state: State) -> tuple[State, dict[str, str]]:
    """ComfyUI's training node: names with dots, 16 bit, differences of norms and biases beside."""
    found: State = {"diffusion_model.out.0.diff": torch.zeros(8), "diffusion_model.out.2.diff_b": torch.zeros(4)}
    for layer, (down, up) in layers_in(state).items():
        key = "diffusion_model." + dotted(layer)
        found |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(10.0)}
    return found, {}


def peft(state: State) -> tuple[State, dict[str, str]]:
    """PEFT's save_pretrained with an adapter's name, and alpha in diffusers' metadata."""
    found: State = {}
    for layer, (down, up) in layers_in(state).items():
        key = f"base_model.model.{layer}"
        found |= {f"{key}.lora_A.default.weight": down, f"{key}.lora_B.default.weight": up}
    return found, {META: json.dumps({"r": RANK, "lora_alpha": ALPHA, "use_rslora": False})}


def old_diffusers(state: State) -> tuple[State, dict[str, str]]:
    """diffusers of 2023: lora.down behind the layer; the strength folded into up, since it had no alpha."""
    found: State = {}
    for layer, (down, up) in layers_in(state).items():
        found |= {f"unet.{layer}.lora.down.weight": down, f"unet.{layer}.lora.up.weight": up * ALPHA / RANK}
    return found, {}


def processors(state: State) -> tuple[State, dict[str, str]]:
    """diffusers before that: attention processors, whose output projection has no place in a list."""
    found: State = {}
    for layer, (down, up) in layers_in(state).items():
        if ".attn" in layer:
            place, _, name = layer.removesuffix(".0").rpartition(".")
            key = f"unet.{place}.processor.{name}_lora"
            found |= {f"{key}.down.weight": down, f"{key}.up.weight": up * ALPHA / RANK}
        else:
            found |= {f"unet.{layer}.lora.down.weight": down, f"unet.{layer}.lora.up.weight": up * ALPHA / RANK}
    return found, {}


def dotted(layer: str) -> str:
    """Stability's name of a layer with dots, by the table of names without them."""
    tail = layer.split(".", 3 if layer.startswith("mid") else 4)[-1]
    return sgm_name(layer).removeprefix("lora_unet_").removesuffix(tail.replace(".", "_")).strip("_").replace(
        "input_blocks_", "input_blocks.").replace("output_blocks_", "output_blocks.").replace(
        "middle_block_", "middle_block.").replace("_", ".").replace("blocks.", "blocks.").replace(
        "input.blocks", "input_blocks").replace("output.blocks", "output_blocks").replace(
        "middle.block", "middle_block") + "." + tail  # fmt: skip


FORMS = {one.__name__: one for one in (kohya, kohya_diffusers, comfy_trainer, peft, old_diffusers, processors)}


def written(folder: Path, form: Any, state: State, name: str = "style.safetensors", **header: str) -> Path:
    tensors, told = form(state)
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / name, told | header)
    return folder / name


# -- every form --


@pytest.mark.parametrize("form", FORMS)
def test_every_tools_names_draw_the_same(tiny_sdxl: Path, tmp_path: Path, state: State, theirs: Any, form: str) -> None:
    """L3, P25: alpha is not rank; the oracle is PEFT on the UNet."""
    found = foreign.read(written(tmp_path, FORMS[form], state), str(tiny_sdxl))
    assert found.layers == {"unet": len(layers_in(state)), "text_encoder": 0, "text_encoder_2": 0}
    unet = unet_of(tiny_sdxl)
    adapter.fuse(unet, found.adapter)
    assert torch.allclose(output_of(unet), theirs, atol=2e-3 if form == "kohya" else 1e-5)  # kohya's file is fp16
    assert found.adapter.facts.lora_targets == tuple(sdxl.lora_targets("attention+ff"))
    left = {reason: len(names) for reason, names in found.left_out.items()}
    assert sum(left.values()) == (2 if form == "comfy_trainer" else 0)
    if left:
        assert "2 tensors left out, which change norms, biases" in found.notes()[0]
        assert "diffusion_model.out.0.diff" in found.notes()[0]


def test_our_file_for_other_tools_comes_back_bit_for_bit(tiny_sdxl: Path, tmp_path: Path, state: State) -> None:
    """P25: with its trigger word, class words and strength."""
    facts = replace(FACTS, class_prompt="a photo of a textile", instance_prompt="a photo of <myspecialstyle>")
    saved = adapter.save(state, RunFolder(tmp_path / "lace"), facts)
    found = foreign.read(RunFolder(tmp_path / "lace").adapter_for_tools, str(tiny_sdxl))
    assert found.adapter.state.keys() == saved.state.keys() and not found.left_out
    assert all(torch.equal(found.adapter.state[name], one) for name, one in saved.state.items())
    assert replace(found.adapter.facts, use_rslora=False) == facts
    assert foreign.read(tmp_path / "lace").adapter.facts == facts  # the folder of a run


def test_every_layer_of_sdxl_is_found_by_its_name_in_other_tools() -> None:
    """P25: 794 layers of the UNet and 265 of the text encoders, each by a name of its own."""
    layers = foreign_names.model_layers(None)
    assert {part: len(names) for part, names in layers.items()} == {
        "unet": 794,
        "text_encoder": 72,
        "text_encoder_2": 193,
    }
    keys = {
        f"{sdxl_names._tools_key(f'{part}.{name}', 2)}.{half}": (part, name)
        for part, names in layers.items() for name in names for half in ("lora_down.weight", "lora_up.weight")
    }  # fmt: skip
    named = foreign_names.read(keys, layers, 2)
    assert len(keys) == 2 * 1059 and not named.strange and len(named.layers) == 1059
    assert all(keys[name] == place for place, roles in named.layers.items() for name in roles.values())


def test_locon_layers_of_other_ranks_are_drawn_by_the_published_formula(tiny_sdxl: Path, tmp_path: Path) -> None:
    """P25: W += alpha / rank · up · mid · down; convolutions whole, flat and cut in three, each with its own alpha."""
    unet, chance = unet_of(tiny_sdxl), torch.Generator().manual_seed(5)
    modules = dict(unet.named_modules())

    def drawn(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=chance)

    cut, whole, flat, plain = (
        "down_blocks.1.resnets.0.conv1", "mid_block.resnets.1.conv2", "conv_in",
        "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    )  # fmt: skip
    file: State = {}
    for layer, rank, alpha in ((cut, 3, 1.5), (whole, 2, 8.0), (flat, 5, 5.0), (plain, 4, 1.0)):
        weight, key = modules[layer].weight, "lora_unet_" + layer.replace(".", "_")
        wide, inner = weight.shape[0], weight.shape[1]
        file[f"{key}.alpha"] = torch.tensor(alpha)
        if layer == cut:
            down, mid, up = drawn(rank, inner, 1, 1), drawn(rank, rank, 3, 3), drawn(wide, rank, 1, 1)
            file[f"{key}.lora_mid.weight"] = mid
            whole_weight = torch.einsum("op,pqkl,qi->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
        else:
            down, up = drawn(rank, *weight.shape[1:]), drawn(wide, rank)
            whole_weight = (up @ down.flatten(1)).view(weight.shape)
            down = down.flatten(1) if layer == flat else down
            up = up[:, :, None, None] if layer == whole else up
        file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        weight.data += alpha / rank * whole_weight
    path = written(tmp_path, lambda _: (file, {}), {})
    found = foreign.read(path, str(tiny_sdxl)).adapter
    ours = unet_of(tiny_sdxl)
    adapter.fuse(ours, found)
    assert torch.allclose(output_of(ours), output_of(unet), atol=1e-5)
    assert found.facts.rank == 5 and found.facts.strength == 1
    kept = foreign.keep(foreign.read(path, str(tiny_sdxl)), RunFolder(tmp_path / "kept"), lambda line: None)
    pipeline = load_pipeline(tiny_sdxl)
    with quiet():
        pipeline.load_lora_weights(kept.path.parent, weight_name=kept.path.name)
    assert torch.allclose(output_of(pipeline.unet), output_of(unet), atol=1e-5)


def test_dora_is_drawn_as_peft_draws_it_and_lengths_of_inputs_are_left_out(tiny_sdxl: Path, tmp_path: Path) -> None:
    """P25: dora_scale is a length for each output; the older kind, one for each input, is no DoRA of PEFT's."""
    unet = unet_of(tiny_sdxl)
    adapter.attach(unet, "unet", adapter.Shape(RANK, ALPHA, "attention", use_dora=True), 3)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, one in adapter.parameters({"unet": unet}).items():
            one += 0.05 * torch.randn(one.shape, generator=chance) if ".lora_A." not in name else 0.0
    state = adapter.state_of({"unet": unet})
    facts = replace(FACTS, use_dora=True, lora_targets=tuple(sdxl.lora_targets("attention")))
    adapter.save(state, RunFolder(tmp_path / "dora"), facts)
    path = RunFolder(tmp_path / "dora").adapter_for_tools
    found = foreign.read(path, str(tiny_sdxl)).adapter
    fused = unet_of(tiny_sdxl)
    adapter.fuse(fused, found)
    assert found.facts.use_dora and torch.allclose(output_of(fused), output_of(unet), atol=1e-5)
    keys = {name: one for name, one in load_file(path).items() if "attn2_to_k" in name}  # 32 wide, 16 high
    keys |= {name: torch.ones(1, 32) for name in keys if name.endswith("dora_scale")}
    with pytest.raises(AdapterError, match="does not fit SDXL.*lengths along the inputs") as caught:
        foreign.read(written(tmp_path, lambda _: (keys, {}), {}), str(tiny_sdxl))
    assert "0 of its layers" in str(caught.value)


def test_text_encoders_are_read_too(tiny_sdxl: Path, tmp_path: Path) -> None:
    """P25: te1 and te2, also the layers between, which kohya trains and we do not."""
    layers = foreign_names.model_layers(str(tiny_sdxl))
    file, chance = {}, torch.Generator().manual_seed(2)
    for number, part in ((1, "text_encoder"), (2, "text_encoder_2")):
        for name, shape in layers[part].items():
            if name.endswith(("q_proj", "fc1")):
                root = name if name.startswith("text_model.") else f"text_model.{name}"
                key = f"lora_te{number}_{root.replace('.', '_')}"
                file[f"{key}.lora_down.weight"] = torch.randn(2, shape[1], generator=chance)
                file[f"{key}.lora_up.weight"] = torch.randn(shape[0], 2, generator=chance)
    found = foreign.read(written(tmp_path, lambda _: (file, {}), {}), str(tiny_sdxl))
    assert found.layers == {"unet": 0, "text_encoder": 6, "text_encoder_2": 6} and not found.left_out
    assert found.adapter.facts.train_text_encoder and found.adapter.facts.text_targets == ("fc1", "q_proj")
    assert found.adapter.facts.strength == 1  # no alpha anywhere: as every other tool draws it
    text = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    before = text.encoders[0].get_submodule(next(n for n in layers["text_encoder"] if n.endswith("fc1"))).weight.clone()
    adapter.fuse_text(text, found.adapter)
    name = next(n for n in layers["text_encoder"] if n.endswith("fc1"))
    key = "lora_te1_" + (name if name.startswith("text_model") else f"text_model.{name}").replace(".", "_")
    wanted = before + file[f"{key}.lora_up.weight"] @ file[f"{key}.lora_down.weight"]
    assert torch.allclose(text.encoders[0].get_submodule(name).weight, wanted, atol=1e-6)


@pytest.mark.parametrize(("patterns", "rslora"), [({}, False), ({"to_q": 3, "attn2.to_k": 20}, False), ({}, True)])
def test_pefts_metadata_is_read_as_diffusers_reads_it(
    tiny_sdxl: Path, tmp_path: Path, state: State, patterns: Any, rslora: bool
) -> None:
    """P25: alpha of single layers and rsLoRA; the oracle is load_lora_weights."""
    told = {"r": RANK, "lora_alpha": 6, "target_modules": sdxl.lora_targets("attention+ff"), "use_rslora": rslora}
    told |= {"alpha_pattern": patterns, "rank_pattern": {}}
    header = {META: json.dumps({f"unet.{name}": value for name, value in told.items()})}
    path = written(tmp_path, lambda one: (one, header), state)
    pipeline = load_pipeline(tiny_sdxl)
    with quiet():
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    unet = unet_of(tiny_sdxl)
    adapter.fuse(unet, foreign.read(path, str(tiny_sdxl)).adapter)
    assert torch.allclose(output_of(unet), output_of(pipeline.unet), atol=1e-5)


# -- what does not fit --


def sd15(state: State) -> State:
    found = {}
    for block in range(3):
        for name, wide in (("attn1_to_q", 320), ("attn2_to_k", 768), ("ff_net_2", 1280)):
            key = f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_{name}"
            found |= {f"{key}.lora_down.weight": torch.zeros(4, wide), f"{key}.lora_up.weight": torch.zeros(320, 4)}
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    return found | {f"{key}.lora_down.weight": torch.zeros(4, 768), f"{key}.lora_up.weight": torch.zeros(3072, 4)}


def loha(state: State) -> State:
    return {
        f"{sgm_name(layer)}.{end}": torch.zeros(()) if end == "alpha" else torch.zeros(2, 2)
        for layer in layers_in(state) for end in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha")
    }  # fmt: skip


def flux(state: State) -> State:
    names = [
        f"transformer.single_transformer_blocks.{n}.attn.to_q.lora_{half}.weight" for n in range(4) for half in "AB"
    ]
    return {name: torch.zeros(4, 4) for name in names}


def too_wide(state: State) -> State:
    return {name: torch.cat([one, one], dim=1) if ".lora_A." in name else one for name, one in state.items()}


def one_half(state: State) -> State:
    return {name: one for name, one in state.items() if ".lora_A." in name}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (sd15, ["for SD 1.5 or another model", "layers that an SDXL model does not have", "lora_te_text_model"]),
        (loha, ["another kind of adapter (LyCORIS: LoHa", "hada_w1_a"]),
        (flux, ["a LoRA for a transformer model such as Flux", "8 tensors belong to layers"]),
        (too_wide, ["have another shape than the model's layers"]),
        (one_half, ["lack their other half"]),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_lora_for_something_else_is_refused_with_what_it_is(
    tiny_sdxl: Path, tmp_path: Path, state: State, other: Any, said: list[str]
) -> None:
    """P25, L3: counts and names; nothing is left out silently."""
    path = written(tmp_path, lambda one: (other(one), {"modelspec.architecture": "stable-diffusion-v1/lora"}), state)
    with pytest.raises(AdapterError) as caught:
        foreign.read(path, str(tiny_sdxl))
    assert all(
        part in str(caught.value) for part in ["does not fit SDXL", "Its metadata says stable-diffusion-v1", *said]
    )


def test_what_has_no_place_is_counted_and_named_and_the_rest_is_drawn(
    tiny_sdxl: Path, tmp_path: Path, state: State, theirs: Any
) -> None:
    """P25."""
    strange = {f"lora_unet_input_blocks_11_{n}_x.lora_down.weight": torch.zeros(4, 4) for n in range(5)}
    strange["unet.nothing.that.we.know"] = torch.zeros(1)
    path = written(tmp_path, lambda one: (kohya_diffusers(one)[0] | strange, {}), state)
    found = foreign.read(path, str(tiny_sdxl))
    notes = found.notes()
    assert any(note.startswith("! 5 tensors left out, which belong to layers that an SDXL model") for note in notes)
    assert any("1 tensor left out, which are of no kind that is known: unet.nothing.that.we.know" in n for n in notes)
    unet = unet_of(tiny_sdxl)
    adapter.fuse(unet, found.adapter)
    assert torch.allclose(output_of(unet), theirs, atol=1e-5)


def test_files_that_cannot_be_read_have_their_sentences(tiny_sdxl: Path, tmp_path: Path, state: State) -> None:
    """P25."""
    whole = written(tmp_path, kohya, state)
    (tmp_path / "half.safetensors").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "old.pt").write_bytes(b"x")
    bad, header = kohya_diffusers(state)
    name = next(name for name in bad if name.endswith("lora_up.weight"))
    bad[name] = torch.full_like(bad[name], float("nan"))
    written(tmp_path, lambda _: (bad, header), {}, "nan.safetensors")
    for name, said in {
        "half.safetensors": "is damaged or no safetensors file",
        "old.pt": "can run code and are not read",
        "none.safetensors": "No LoRA file",
        "nan.safetensors": "holds NaN or infinity",
    }.items():
        with pytest.raises(AdapterError, match=said):
            foreign.read(tmp_path / name, str(tiny_sdxl))


# -- words --


FREQUENCY = json.dumps({"10_lace": {"grandmalace": 40, "white": 38, "rosette": 12}, "5_more": {"grandmalace": 9}})


@pytest.mark.parametrize(
    ("header", "beside", "triggers"),
    [
        ({"modelspec.trigger_phrase": "grandma lace", "ss_tag_frequency": FREQUENCY}, None, ("grandma lace",)),
        ({"ss_tag_frequency": FREQUENCY}, None, ("grandmalace",)),
        ({"ss_tag_frequency": '{"10_grandmalace": {}}'}, None, ("grandmalace",)),
        ({"ss_tag_frequency": FREQUENCY}, {"activation text": "irish crochet, rose"}, ("irish crochet", "rose")),
        ({"ss_tag_frequency": "[not json"}, None, ()),
        ({"ss_tag_frequency": '{"a": {"b": "c"}, "d": 3}'}, {"preferred weight": "x"}, ()),
        ({}, None, ()),
    ],
)
def test_the_trigger_word_comes_from_the_surest_source(tmp_path: Path, header: Any, beside: Any, triggers: Any) -> None:
    """P25: ModelSpec, then A1111's note beside the file, then kohya's captions, then its folder."""
    if beside:
        (tmp_path / "a.json").write_text(json.dumps(beside), encoding="utf-8")
    assert foreign_words.read(tmp_path / "a.safetensors", header).triggers == triggers


def test_strength_and_base_model_are_told_without_the_strangers_folders(tmp_path: Path) -> None:
    """P25, C2."""
    (tmp_path / "a.json").write_text('{"preferred weight": 0.8}', encoding="utf-8")
    header = {
        "ss_sd_model_name": "C:\\people\\somebody\\models\\juggernaut.safetensors",
        "modelspec.prediction_type": "v",
    }
    found = foreign_words.read(tmp_path / "a.safetensors", header)
    assert (found.preferred_strength, found.predicts_v) == (0.8, True)
    assert found.base_model.endswith("juggernaut.safetensors") and "somebody" not in found.base_model


@pytest.mark.parametrize("pattern", ["(.+)+x", ".*.*.*.*.*x", r"(\\w+\\.?)+x", "a" * 500])
def test_a_pattern_that_never_ends_is_a_mere_name(pattern: str) -> None:
    """P25: files come from strangers; PEFT's alpha_pattern holds regular expressions."""
    from time import process_time

    header = {foreign_words.PEFT_KEY: json.dumps({"lora_alpha": 8, "alpha_pattern": {pattern: 2, r".*\.to_q": 4}})}
    began = process_time()
    for layer, alpha in (("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 4), ("mid_block.to_k", 8)):
        assert foreign_words.peft_strength(header, ("unet", layer), 4) == alpha / 4
    assert process_time() - began < 1


def test_a_whole_model_is_told_from_a_lora_and_not_read_into_memory(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P25: a checkpoint of SDXL has 7 GB, and Colab 12."""
    weights = load_file(next((tiny_sdxl / "unet").glob("*.safetensors")))
    save_file({f"model.diffusion_model.{name}": one for name, one in weights.items()}, tmp_path / "model.safetensors")
    taken = []
    monkeypatch.setattr(foreign, "_taken", lambda file, names: taken.extend(names) or {})
    with pytest.raises(AdapterError, match=r"is a whole model and no LoRA: \d+ tensors, such as model.diffusion_model"):
        foreign.read(tmp_path / "model.safetensors", str(tiny_sdxl))
    assert not taken
    with pytest.raises(AdapterError, match="no package and no run. Name one of its files: model.safetensors"):
        foreign.read(tmp_path)


def test_a_lora_for_a_model_of_other_depth_keeps_its_names_for_other_tools(tmp_path: Path) -> None:
    """P25: what is written again for ComfyUI is what was read, also for the miniature with one layer a block."""
    layers = foreign_names.model_layers("lace-demo")["unet"]
    name = next(one for one in layers if one.startswith(("down_blocks.1.", "down_blocks.2.")) and one.endswith("to_q"))
    wide, inner = layers[name]
    state = {f"unet.{name}.lora_A.weight": torch.ones(2, inner), f"unet.{name}.lora_B.weight": torch.ones(wide, 2)}
    there = sdxl_names.for_tools(state, 2.0, 1)
    save_file(there, tmp_path / "a.safetensors")
    found = foreign.read(tmp_path / "a.safetensors", "lace-demo")
    kept = foreign.keep(found, RunFolder(tmp_path / "run"), lambda line: None)
    assert kept.facts.layers_per_block == 1
    assert load_file(RunFolder(tmp_path / "run").adapter_for_tools).keys() == there.keys()


# -- as a run --


def test_an_imported_lora_draws_what_the_run_drew_that_it_came_from(asked: Any, tmp_path: Path, capsys: Any) -> None:
    """P25, L15: through the command, from the file for other tools, found by another name."""
    settings = asked(num_images=1)
    before = inference.run(settings, say=lambda line: None)
    shutil.copy(RunFolder.of(settings).adapter_for_tools, tmp_path / "From Elsewhere.safetensors")
    line = ["--preset", "none", "--lora_output_dir", settings.lora_output_dir]
    line += ["--pretrained_model", settings.pretrained_model, "--refiner_model", settings.refiner_model]
    assert main.run(["import", str(tmp_path / "From Elsewhere.safetensors"), *line]) == 0
    said = capsys.readouterr().out
    assert "trigger      <lace>" in said and "Draw with it: lace-lora generate --run-name from-elsewhere" in said
    after = inference.run(settings.model_copy(update={"run_name": "from-elsewhere"}), say=lambda line: None)
    assert (read_pixels(after[0].path) == read_pixels(before[0].path)).all()
    assert main.run(["runs", *line]) == 0 and "imported" in capsys.readouterr().out
    assert main.run(["import", str(tmp_path / "From Elsewhere.safetensors"), *line]) == 0  # again: the same
    assert main.run(["import", str(RunFolder.of(settings).root), *line, "--run-name", "from-elsewhere"]) == 1
    assert "holds another run already" in capsys.readouterr().err


def test_training_never_overwrites_an_imported_lora(settings: Any, tmp_path: Path, state: State) -> None:
    """P25: the sentence says how to train on from it, and that does."""
    found = foreign.read(written(tmp_path, kohya_diffusers, state), settings.pretrained_model)
    theirs = RunFolder(Path(settings.lora_output_dir) / "theirs")
    kept = foreign.keep(found, theirs, lambda line: None)
    with pytest.raises(RunError, match="was made elsewhere, which training would overwrite.*start_from"):
        train.run(settings.model_copy(update={"run_name": "theirs"}), say=lambda line: None)
    assert adapter.load(theirs.root).digest == kept.digest
    said: list[str] = []
    mine = {"start_from": str(theirs.root), "lora_targets": "attention+ff", "max_train_steps": 1}
    train.run(settings.model_copy(update=mine), say=said.append)
    assert any("begins    with what" in line for line in said)


def test_inspect_says_what_a_file_is(tiny_sdxl: Path, tmp_path: Path, state: State, capsys: Any) -> None:
    """P25."""
    told = {"ss_tag_frequency": FREQUENCY, "ss_sd_model_name": str(tmp_path / "pony.safetensors")}
    path = written(tmp_path, comfy_trainer, state, **told)
    model = ["--preset", "none", "--pretrained_model", str(tiny_sdxl)]
    assert main.run(["inspect", str(path), *model]) == 0
    said = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in said.splitlines() if not line.startswith(("rank", "base", "!")))
    assert rows["trigger"] == "grandmalace" and rows["changes"] == f"{len(layers_in(state))} layers of unet"
    assert "rank, alpha  4, 10: strength 2.5\n" in said and "base model   pony.safetensors\n" in said
    assert "! 2 tensors left out, which change norms" in said
    assert f"base model   {tmp_path}" not in said
    assert main.run(["inspect", *model]) == 1 and "Name a file" in capsys.readouterr().err


def test_a_lora_for_sdxl_is_known_as_one_also_where_the_miniature_model_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """P25: on a laptop without a GPU, with no model of that size on it."""
    monkeypatch.setattr(main, "_open", lambda given: given.with_preset({"pretrained_model": "lace-demo"}))
    key = "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k"
    file = {f"{key}.lora_down.weight": torch.ones(1, 2048), f"{key}.lora_up.weight": torch.ones(1280, 1)}
    path = written(tmp_path, lambda _: (file, {}), {})
    assert main.run(["inspect", str(path)]) == 0 and "1 layer of unet" in capsys.readouterr().out
    assert main.run(["inspect", str(path), "--pretrained-model", "lace-demo"]) == 1  # that one was asked for
    assert "0 of its layers do" in capsys.readouterr().err
    key = next(name for name in foreign_names.model_layers("lace-demo")["unet"] if name.endswith("attn2.to_k"))
    wide, inner = foreign_names.model_layers("lace-demo")["unet"][key]
    small = {f"unet.{key}.lora_A.weight": torch.ones(1, inner), f"unet.{key}.lora_B.weight": torch.ones(wide, 1)}
    path = written(tmp_path, lambda _: (small, {}), {}, "small.safetensors")
    assert main.run(["inspect", str(path)]) == 0 and "1 layer of unet" in capsys.readouterr().out
    path = written(tmp_path, lambda _: (flux({}), {}), {}, "flux.safetensors")
    assert main.run(["inspect", str(path)]) == 1 and "such as Flux" in capsys.readouterr().err


# -- as a start --


def test_a_training_that_starts_from_it_begins_with_its_pictures(tiny_sdxl: Path, tmp_path: Path, state: State) -> None:
    """P25: another alpha and a larger rank; fused, the beginning draws as the file does."""
    found = foreign.read(written(tmp_path, kohya_diffusers, state), str(tiny_sdxl)).adapter
    unet, shape = unet_of(tiny_sdxl), adapter.Shape(RANK + 3, 2, "attention+ff+conv")
    fresh = adapter.attach(unet, "unet", shape, 0)
    begun = starting.laid_into(found, fresh, shape.strength)
    with torch.no_grad():
        for name, one in fresh.items():
            one.copy_(begun[name])
    fused = unet_of(tiny_sdxl)
    adapter.fuse(fused, found)
    assert torch.allclose(output_of(unet), output_of(fused), atol=1e-5)
    spare = begun[next(name for name in begun if name.endswith(lora.A) and name in found.state)]
    assert spare[RANK:].abs().min() > 0  # the rest of the rank can learn: its A is not zero


def test_training_on_from_a_file_resumes_like_any_other(settings: Any, tmp_path: Path, state: State) -> None:
    """P25, P15: 3 + 3 steps are 6, also when the file is gone by then; the first loss is not that of the base."""
    path = written(tmp_path, kohya_diffusers, state)
    shared = {"start_from": str(path), "lora_targets": "attention+ff", "checkpoint_every": 3, "max_train_steps": 6}
    shared |= {"lr_scheduler": "constant", "lr_warmup_ratio": 0.0}  # the same rates whatever the number of steps

    def losses(name: str, **changes: Any) -> list[float]:
        config = settings.model_copy(update=shared | {"run_name": name} | changes)
        said: list[str] = []
        train.run(config, say=said.append)
        assert any(line.startswith("begins    with what style.safetensors") for line in said) == path.is_file()
        return losses_of(RunFolder.of(config).log)

    whole = losses("whole")
    anew = settings.model_copy(update=shared | {"start_from": None, "run_name": "anew", "max_train_steps": 1})
    train.run(anew, say=lambda line: None)
    assert abs(losses_of(RunFolder.of(anew).log)[0] - whole[0]) > 1e-4
    losses("cut", max_train_steps=3)
    path.unlink()
    assert losses("cut") == whole
    with pytest.raises(RunError, match="start_from .*style.safetensors → .*other"):
        losses("cut", start_from=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": 2}, "has rank 4 and rank is 2: set rank 4"),
        ({"lora_targets": "attention"}, "also changes 34 layers that would not learn, such as unet."),
        ({"lora_targets": "attention+ff", "use_dora": True}, "was trained without DoRA: set use_dora false"),
    ],
)
def test_a_start_that_the_settings_cannot_go_on_from_is_refused_before_anything_runs(
    settings: Any, tmp_path: Path, state: State, changes: Any, sentence: str
) -> None:
    """P25: never silently half of it."""
    path = written(tmp_path, kohya_diffusers, state)
    config = settings.model_copy(update={"start_from": str(path), "run_name": "x"} | changes)
    with pytest.raises(SettingsError, match=sentence):
        train.run(config, say=lambda line: None)
    assert not RunFolder.of(config).record.exists()
