"""ComfyUI's workflows, for programs and for its page: what is asked of each node, however it is refined (C1, P25)."""

import json
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from lace_lora import workflow, workflow_page
from lace_lora.families.layouts import FAMILIES
from lace_lora.workflow import Design
from tests.fake_comfyui import RECORDED

INFO = json.loads(RECORDED.read_text(encoding="utf-8"))
SIMPLE = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
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
        num_inference_steps=st.integers(2, 200),
        scheduler=st.sampled_from(sorted(workflow.SAMPLERS)),
        lora_name=st.sampled_from([None, "lace.safetensors"]),
        refiner=st.sampled_from([None, REFINER]),
        refine=st.sampled_from(["ensemble", "img2img"]),
        refiner_start=st.floats(0.01, 0.99),
        save_as=st.sampled_from([None, "lace"]),
        predicts_v=st.booleans(),
        family=st.sampled_from(sorted(FAMILIES)),
        shifts_by_size=st.booleans(),
    )


@given(designs())
def test_every_node_is_known_and_every_link_fits_what_a_real_server_listed(design):
    """C1: types, names, bounds and choices against the recorded /object_info."""
    drawing = workflow.design(design)
    for place, node in drawing.workflow.items():
        recorded = INFO[node["class_type"]]["input"]
        declared = {**recorded.get("required", {}), **recorded.get("optional", {})}
        assert node["_meta"]["title"]
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
def test_the_page_opens_the_same_steps_as_programs_send(design):
    """P25, C1: the editor's form, read as ComfyUI's page reads it, gives the API's."""
    api = workflow.design(replace(design, save_as="lace")).workflow
    page = json.loads(json.dumps(workflow_page.laid_out(api)))
    links, givers = {link[0]: link for link in page["links"]}, {node["id"]: node for node in page["nodes"]}
    again = {}
    for node in page["nodes"]:
        kind = workflow_page.KINDS[node["type"]]
        # The page writes after each seed what becomes of it in the next run.
        names = [one for name in kind.fields for one in ([name, ""] if name in ("seed", "noise_seed") else [name])]
        inputs = dict(zip(names, node["widgets_values"], strict=True))
        assert inputs.pop("", "fixed") == "fixed"
        for slot in node["inputs"]:
            _, source, output, target, _, given_kind = links[slot["link"]]
            giver = givers[source]
            assert target == node["id"] and given_kind == slot["type"] == giver["outputs"][output]["type"]
            assert slot["link"] in giver["outputs"][output]["links"] and giver["order"] < node["order"]
            inputs[slot["name"]] = [str(source), output]
        again[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}
    assert again == api
    assert len({tuple(node["pos"]) for node in page["nodes"]}) == len(page["nodes"])


def test_the_page_knows_each_kind_of_node_as_a_real_server_listed_it():
    """P25: sockets, fields and outputs by their types."""
    for name, kind in workflow_page.KINDS.items():
        recorded = INFO[name]["input"]
        declared = {**recorded.get("required", {}), **recorded.get("optional", {})}
        is_field = {one: isinstance(what[0], list) or what[0] in SIMPLE for one, what in declared.items()}
        assert {one: declared[one][0] for one in declared if not is_field[one]} == kind.sockets
        assert {one for one in declared if is_field[one]} == set(kind.fields)
        assert tuple(INFO[name]["output"]) == kind.outputs


@given(designs())
def test_the_refiner_never_gets_the_lora_and_shares_the_schedule(design):
    """C1: base + refiner on one schedule; the LoRA was never made for the refiner."""
    drawing = workflow.design(design)
    assert len(nodes_of(drawing, "LoraLoader")) == (design.lora_name is not None)
    stages = nodes_of(drawing, "KSamplerAdvanced")
    if not (design.refiner and design.refine == "ensemble"):
        assert not stages
        return
    half, whole, last = stages
    assert half["end_at_step"] == whole["start_at_step"] == last["start_at_step"] == design.handover
    assert 1 <= design.handover < design.num_inference_steps
    assert {one["noise_seed"] for one in stages} == {design.seed} and {one["steps"] for one in stages} == {
        design.num_inference_steps
    }
    assert [one["add_noise"] for one in stages] == ["enable", "disable", "disable"]
    assert [one["return_with_leftover_noise"] for one in stages] == ["enable", "disable", "disable"]
    assert drawing.workflow[last["model"][0]]["inputs"] == {"ckpt_name": REFINER}


def test_a_refiner_takes_over_where_the_schedule_says():
    """C1: by hand: 30 steps at 0.85 are 25.5, so 26 of the base; 24 of 30 at 0.8."""
    assert Design(BASE, "", 0, 8, 8, num_inference_steps=30, refiner_start=0.8).handover == 24
    assert Design(BASE, "", 0, 8, 8, num_inference_steps=30, refiner_start=0.85).handover == 26


def test_no_negative_prompt_is_zeros_for_the_base_and_an_empty_text_for_the_refiner():
    """C1: as SDXL's own pipelines have it."""
    drawing = workflow.design(Design(BASE, "lace", 0, 8, 8, refiner=REFINER))
    (zeros,) = nodes_of(drawing, "ConditioningZeroOut")
    told, positive, negative = nodes_of(drawing, "CLIPTextEncode")
    assert drawing.workflow[zeros["conditioning"][0]]["inputs"] == told and told["text"] == "lace"
    assert (positive["text"], negative["text"]) == ("lace", "")


@pytest.mark.parametrize("family", ["sd15", "sd35"])
def test_no_negative_prompt_is_the_empty_text_for_the_families_that_learnt_so(family):
    """P25, P20: zeros would draw other pictures than their pipelines do."""
    drawing = workflow.design(Design(BASE, "lace", 0, 8, 8, family=family))
    assert not nodes_of(drawing, "ConditioningZeroOut")
    assert [one["text"] for one in nodes_of(drawing, "CLIPTextEncode")] == ["lace", ""]


@pytest.mark.parametrize(
    ("family", "latents"),
    [("sd15", "EmptyLatentImage"), ("sd35", "EmptySD3LatentImage"), ("flux", "EmptySD3LatentImage")],
)
def test_a_picture_begins_with_as_many_channels_as_the_family_has(family, latents):
    """P25, P20: four of the older models, sixteen of those that learn flow."""
    drawing = workflow.design(Design(BASE, "lace", 0, 64, 64, family=family))
    (sampler,) = nodes_of(drawing, "KSampler")
    assert drawing.workflow[sampler["latent_image"][0]]["class_type"] == latents


def test_flux_is_told_how_strictly_to_follow_and_takes_the_steps_of_its_size():
    """P25, P20: in one pass, which cfg 1 is; FluxGuidance lies on the prompt, the shift before the LoRA."""
    design = Design(BASE, "lace", 0, 64, 32, guidance_scale=3.5, scheduler="euler", lora_name="lace.safetensors",
                    family="flux", shifts_by_size=True)  # fmt: skip
    drawing = workflow.design(design)
    (sampler,), (told,), (shift,) = (
        nodes_of(drawing, kind) for kind in ("KSampler", "FluxGuidance", "ModelSamplingFlux")
    )
    assert (sampler["cfg"], sampler["sampler_name"], sampler["scheduler"]) == (1.0, "euler", "simple")
    assert told["guidance"] == 3.5 and drawing.workflow[sampler["positive"][0]]["inputs"] == told
    assert (shift["width"], shift["height"]) == (64, 32)
    assert drawing.workflow[nodes_of(drawing, "LoraLoader")[0]["model"][0]]["inputs"] == shift


def test_comfyuis_steps_of_flow_are_those_that_are_drawn_with_here(tmp_path):
    """P25, P20: by hand, as ComfyUI's simple and normal schedules count them: even steps, then shifted."""
    import math

    from lace_lora.families import flow, flux, sd35
    from tests import tiny_flow

    dev, steps = tiny_flow.build_flux(tmp_path / "flux"), 5
    places = 64 * 64 / 16**2
    shift = math.exp((1.15 - 0.5) / (4096 - 256) * (places - 256) + 0.5)
    simple = [flow.shifted(1 - step / steps, shift) for step in range(steps)] + [0.0]
    sigmas = flux.make_sampler("euler", str(dev), steps, (8, 8)).sigmas.tolist()
    assert sigmas == pytest.approx(simple, abs=1e-6)
    medium = tiny_flow.build_sd35(tmp_path / "sd35")
    least = flow.shifted(1 / 1000, 3.0)
    normal = [flow.shifted(1 - step / (steps - 1) * (1 - least), 3.0) for step in range(steps)] + [0.0]
    assert sd35.make_sampler("euler", str(medium), steps, (8, 8)).sigmas.tolist() == pytest.approx(normal, abs=1e-5)


def test_a_base_that_predicts_v_is_told_so_before_the_lora():
    """C1, D2: its checkpoint may not say it, and it would draw noise."""
    drawing = workflow.design(Design(BASE, "lace", 0, 8, 8, lora_name="lace.safetensors", predicts_v=True))
    ((number, told),) = [
        (n, one) for n, one in drawing.workflow.items() if one["class_type"] == "ModelSamplingDiscrete"
    ]
    assert told["inputs"] == {"model": ["1", 0], "sampling": "v_prediction", "zsnr": False}
    assert nodes_of(drawing, "LoraLoader")[0]["model"] == [number, 0]


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", BASE),
        ("somebody/Fine-Tune", "Fine-Tune.safetensors"),
        ("/models/mine/", "mine.safetensors"),
        ("juggernautXL_v9.safetensors", "juggernautXL_v9.safetensors"),
    ],
)
def test_the_checkpoint_of_a_model_is_the_file_that_people_have(model, file):
    """P25: also where a ComfyUI drew, which names files."""
    assert workflow.checkpoint_of(model) == file


def test_img2img_redoes_the_last_part_of_the_finished_latents():
    """C1."""
    design = Design(BASE, "lace", 7, 8, 8, refiner=REFINER, refine="img2img", refine_strength=0.3)
    first, second = nodes_of(workflow.design(design), "KSampler")
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
    assert nodes_of(workflow.design(design), "CLIPTextEncode")[0]["text"] == told


def test_the_same_noise_begins_a_picture_there_and_here():
    """C1: seeds as ours: ComfyUI draws (1, 4, h, w) from torch's CPU generator with the seed, and so do we."""
    import torch

    from lace_lora import sampling

    theirs = torch.randn([1, 4, 6, 5], generator=torch.manual_seed(11), device="cpu")
    assert torch.equal(theirs, sampling.noise([11], (4, 6, 5)))
