"""ComfyUI's workflows as plain dicts: what is asked of each node, for every way of refining (C1, P25)."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from lace_lora.backends import comfy_workflow
from lace_lora.backends.comfy_workflow import Design
from tests.fake_comfyui import RECORDED

INFO = json.loads(RECORDED.read_text(encoding="utf-8"))
BASE, REFINER = "sd_xl_base_1.0.safetensors", "sd_xl_refiner_1.0.safetensors"


def nodes_of(drawing, kind):
    return [node["inputs"] for node in drawing.workflow.values() if node["class_type"] == kind]


def designs():
    """Designs of every kind."""
    text = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20)
    return st.builds(
        Design,
        checkpoint=st.just(BASE),
        prompt=text,
        seed=st.integers(0, 2**31 - 1),
        width=st.integers(4, 256).map(lambda cells: 8 * cells),
        height=st.integers(4, 256).map(lambda cells: 8 * cells),
        negative_prompt=text,
        steps=st.integers(2, 200),
        scheduler=st.sampled_from(sorted(comfy_workflow.SAMPLERS)),
        lora_name=st.sampled_from([None, "lace.safetensors"]),
        refiner=st.sampled_from([None, REFINER]),
        refine=st.sampled_from(["ensemble", "img2img"]),
        refiner_start=st.floats(0.01, 0.99),
        save_as=st.sampled_from([None, "lace"]),
    )


@given(designs())
def test_every_node_is_known_and_every_link_fits_what_a_real_server_listed(design):
    """C1: types, names, bounds and choices against the recorded /object_info."""
    drawing = comfy_workflow.design(design)
    for place, node in drawing.workflow.items():
        recorded = INFO[node["class_type"]]["input"]
        declared = {**recorded.get("required", {}), **recorded.get("optional", {})}
        assert set(recorded["required"]) <= set(node["inputs"]) <= set(declared)
        for name, value in node["inputs"].items():
            kind, *more = declared[name]
            if isinstance(value, list):
                assert int(value[0]) < int(place), "a node stands behind what it takes"
                assert INFO[drawing.workflow[value[0]]["class_type"]]["output"][value[1]] == kind
            elif isinstance(kind, list) and kind:
                assert value in kind
            elif more and kind in ("INT", "FLOAT"):
                assert more[0].get("min", value) <= value <= more[0].get("max", value)
    outputs = [place for place, node in drawing.workflow.items() if INFO[node["class_type"]]["output_node"]]
    assert outputs == [one for one in (drawing.base, drawing.refined) if one]


@given(designs())
def test_the_refiner_never_gets_the_lora_and_shares_the_schedule(design):
    """C1: base + refiner on one schedule; the LoRA was never made for the refiner."""
    drawing = comfy_workflow.design(design)
    assert len(nodes_of(drawing, "LoraLoader")) == (design.lora_name is not None)
    stages = nodes_of(drawing, "KSamplerAdvanced")
    if not (design.refiner and design.refine == "ensemble"):
        assert not stages
        return
    half, whole, last = stages
    assert half["end_at_step"] == whole["start_at_step"] == last["start_at_step"] == design.handover
    assert 1 <= design.handover < design.steps
    assert {one["noise_seed"] for one in stages} == {design.seed} and {one["steps"] for one in stages} == {design.steps}
    assert [one["add_noise"] for one in stages] == ["enable", "disable", "disable"]
    assert [one["return_with_leftover_noise"] for one in stages] == ["enable", "disable", "disable"]
    assert drawing.workflow[last["model"][0]]["inputs"] == {"ckpt_name": REFINER}


def test_a_refiner_takes_over_where_the_schedule_says():
    """C1: by hand: 30 steps at 0.85 are 25.5, so 26 of the base; 24 of 30 at 0.8."""
    assert Design(BASE, "", 0, 8, 8, steps=30, refiner_start=0.8).handover == 24
    assert Design(BASE, "", 0, 8, 8, steps=30, refiner_start=0.85).handover == 26


def test_no_negative_prompt_is_zeros_for_the_base_and_an_empty_text_for_the_refiner():
    """C1: as SDXL's own pipelines have it."""
    drawing = comfy_workflow.design(Design(BASE, "lace", 0, 8, 8, refiner=REFINER))
    (zeros,) = nodes_of(drawing, "ConditioningZeroOut")
    positive, negative = nodes_of(drawing, "CLIPTextEncodeSDXLRefiner")
    assert drawing.workflow[zeros["conditioning"][0]]["inputs"]["text_g"] == "lace"
    assert (positive["ascore"], negative["ascore"], negative["text"]) == (6.0, 2.5, "")


def test_img2img_redoes_the_last_part_of_the_finished_latents():
    """C1."""
    design = Design(BASE, "lace", 7, 8, 8, refiner=REFINER, refine="img2img", refine_strength=0.3)
    first, second = nodes_of(comfy_workflow.design(design), "KSampler")
    assert (first["denoise"], second["denoise"], first["seed"], second["seed"]) == (1.0, 0.3, 7, 7)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("lace (white) on ground", r"lace \(white\) on ground"),
        ("a\\b", r"a\\b"),
        ("<lace> rosette", "embedding:lace-1 rosette"),
    ],
)
def test_brackets_mean_brackets_and_a_learnt_word_is_called_by_its_file(prompt, told):
    """C1: ComfyUI reads brackets as weights, ours does not."""
    design = Design(BASE, prompt, 0, 8, 8, embedding="lace-1", concept_token="<lace>")
    assert nodes_of(comfy_workflow.design(design), "CLIPTextEncodeSDXL")[0]["text_g"] == told


def test_the_same_noise_begins_a_picture_there_and_here():
    """C1: seeds as ours: ComfyUI draws (1, 4, h, w) from torch's CPU generator with the seed, and so do we."""
    import torch

    from lace_lora import sampling

    theirs = torch.randn([1, 4, 6, 5], generator=torch.manual_seed(11), device="cpu")
    assert torch.equal(theirs, sampling.noise([11], (4, 6, 5)))
