"""Recipes as data: the values that the trades ask for, own folders, and mistakes told in a sentence (J3-J5, D2, D3)."""

import shutil

import pytest
import yaml

from lace_lora import recipe, text_plan, validate
from lace_lora.errors import SettingsError
from lace_lora.machine import Machine
from tests import drawn_pairs

GPU = Machine.here()


def test_the_cad_recipe_holds_the_values_that_were_asked_for():
    """J3, J4, J5, J7."""
    found = recipe.read("cad")
    assert (found.rank, found.alpha, found.lora_dropout) == (16, 16, 0.05)
    assert found.lora_targets == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert (found.learning_rate, found.lr_scheduler, found.lr_warmup_ratio) == (2e-4, "cosine", 0.03)
    assert (found.max_length, found.train_batch_size, found.gradient_accumulation_steps) == (2048, 1, 8)
    assert (found.num_train_epochs, found.quantization, found.optimizer) == (3, "nf4", "paged_adamw8bit")
    assert (found.fields.input, found.fields.output, found.max_samples) == ("annotation", "json_desc", 5000)
    assert found.rules.frames == ("world", "part", "sketch") and found.rules.units == "m"
    assert found.rules.order[:3] == ("sketch", "feature", "extrusion") and found.rules.order[-1] == "transform"


def test_the_dot_recipe_holds_the_values_that_were_asked_for():
    """D2, D3, D12."""
    found = recipe.read("dot")
    assert (found.rank, found.alpha, found.lora_targets) == (16, 32, ("q_proj", "v_proj"))
    assert (found.learning_rate, found.lr_warmup_ratio, found.num_train_epochs) == (2e-4, 0.1, 4)
    assert found.train_batch_size * found.gradient_accumulation_steps == 16
    assert {found.base_model, *found.base_models} == {
        "Qwen/Qwen2.5-1.5B-Instruct", "google/gemma-2b-it", "microsoft/phi-2",
    }  # fmt: skip
    assert (found.fields.kind, found.fields.graph_type) == ("kind", "graph_type")


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_that_ships_can_be_used(name):
    """J15: its rules exist, what constrains it lies beside it, and its examples are those of the program."""
    found = recipe.read(name)
    validate.validator(found)
    assert found.schema_ if found.constraint == "schema" else found.grammar
    assert dict(drawn_pairs.texts())[found.examples] == found.examples.read_text(encoding="utf-8")


def test_the_dot_examples_are_92_of_code_and_68_of_text():
    """D1."""
    kinds = [row["kind"] for row in drawn_pairs.dot_rows()]
    assert (kinds.count("code"), kinds.count("text")) == (92, 68)
    assert {row["graph_type"] for row in drawn_pairs.dot_rows()} == {"FSM", "flowchart", "network"}


def test_a_folder_of_ones_own_is_a_recipe(tmp_path):
    """J15."""
    shutil.copytree(recipe.FOLDER / "cad", tmp_path / "mine")
    data = yaml.safe_load((tmp_path / "mine/recipe.yaml").read_text(encoding="utf-8"))
    (tmp_path / "mine/recipe.yaml").write_text(yaml.safe_dump(data | {"rank": 8}), encoding="utf-8")
    found = recipe.read(tmp_path / "mine")
    assert (found.name, found.rank) == ("mine", 8) and found.schema_ == recipe.read("cad").schema_


def test_values_typed_on_a_command_line_are_converted():
    """J5: YAML reads 1e-4 as text; a list may be typed with commas, and a rule by its path."""
    found = recipe.read("cad", {"learning_rate": "1e-4", "lora_targets": "q_proj,v_proj", "rules.units": "mm"})
    assert (found.learning_rate, found.lora_targets, found.rules.units) == (1e-4, ("q_proj", "v_proj"), "mm")
    assert recipe.value_of("8") == 8 and recipe.value_of("nf4") == "nf4" and recipe.value_of("a: b: c") == "a: b: c"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rnak": 3}, "no value called 'rnak'; did you mean rank?"),
        ({"rules.uints": "m"}, "no value called 'rules.uints'; did you mean units?"),
        ({"rank": 0}, "rank is 0: input should be greater than or equal to 1."),
        ({"quantization": "int3"}, "quantization is 'int3': input should be 'nf4' or 'none'."),
    ],
)
def test_a_wrong_value_is_told_with_the_nearest_name(changes, sentence):
    """J17."""
    with pytest.raises(SettingsError) as told:
        recipe.read("cad", changes)
    assert sentence in str(told.value)


def test_an_unknown_recipe_and_a_broken_one_are_told(tmp_path):
    """J17."""
    with pytest.raises(SettingsError, match="did you mean cad"):
        recipe.read("cda")
    (tmp_path / "recipe.yaml").write_text("rank: [", encoding="utf-8")
    with pytest.raises(SettingsError, match="cannot be read as YAML"):
        recipe.read(tmp_path)
    (tmp_path / "recipe.yaml").write_text("about: x", encoding="utf-8")
    with pytest.raises(SettingsError, match="document is missing"):
        recipe.read(tmp_path)


def test_what_is_written_is_read_again_as_the_same(tmp_path):
    """J17."""
    found = recipe.read("dot", {"rank": 4})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(found), encoding="utf-8")
    assert recipe.read(tmp_path).model_dump(exclude={"where"}) == found.model_dump(exclude={"where"})


# -- the plan --


def machine(gpu, vram_gb):
    """This machine, with another GPU."""
    from dataclasses import replace

    return replace(GPU, gpu_name=gpu, vram_gb=vram_gb)


def test_the_plan_prints_every_value_and_the_planning_figures():
    """J5, J14: what is no measurement is called so."""
    plan = text_plan.plan(recipe.read("cad"), 100, machine("T4", 15.0))
    assert plan.steps == 3 * 13  # 100 pairs by 8, rounded up, three times
    said = str(plan)
    for part in ("learning_rate 0.0002, cosine", "lr_warmup_ratio 0.03", "early_stopping_patience 3", "about 120 MB",
                 "10 to 30 min, 8 to 12 GB of GPU memory", "planning figures, not measurements"):  # fmt: skip
        assert part in said, said


@pytest.mark.parametrize(("pairs", "figures"), [(100, "10 to 30 min"), (1000, "1 to 3 h"), (5000, "8 to 24 h")])
def test_more_pairs_take_longer(pairs, figures):
    """J14."""
    assert figures in str(text_plan.plan(recipe.read("cad"), pairs, machine("A100", 40.0)))


def test_an_adapters_size_is_counted_from_the_models_shape():
    """J14: a layer of in × out has rank × (in + out) numbers of four bytes. 20 to 100 MB for the smaller model."""
    only_q = recipe.read("cad", {"lora_targets": ["q_proj"], "rank": 1})
    assert text_plan.adapter_mb(only_q) == 32 * (3072 + 3072) * 4 / 1e6
    qwen = recipe.read("cad", {"base_model": "Qwen/Qwen2.5-1.5B-Instruct"})
    assert 20 < text_plan.adapter_mb(qwen) < 100


def test_too_small_a_gpu_is_said_before_anything_starts():
    """D10."""
    plan = text_plan.plan(recipe.read("cad"), 100, machine("small", 4.0))
    assert not plan.fits and "! memory    this machine has 4 GB. Next to try: max_length 1024" in str(plan)
    assert text_plan.plan(recipe.read("cad"), 100, machine("T4", 15.0)).fits


def test_without_a_gpu_the_demo_takes_over_and_says_so(tmp_path):
    """J1: what was chosen stays; a model that is a folder here is taken."""
    asked = recipe.read("cad", {"rank": 4})
    found, banner = text_plan.settled(asked, machine(None, 0.0), {"rank": 4})
    assert (found.base_model, found.quantization, found.rank) == ("demo", "none", 4) and "DEMO" in banner
    assert text_plan.settled(asked, machine("T4", 15.0), {}) == (asked, "")
    own = recipe.read("dot", {"num_evaluated": 3})  # has a demo.yaml of its own
    dot = text_plan.settled(own, machine(None, 0.0), {"num_evaluated": 3})[0]
    assert (dot.num_train_epochs, dot.num_evaluated, dot.learning_rate, len(dot.lora_targets)) == (12, 3, 5e-3, 7)
    own = recipe.read("cad", {"base_model": str(tmp_path)})
    assert text_plan.settled(own, machine(None, 0.0), {}) == (own, "")
    chosen = {"base_model": "Qwen/Qwen2.5-1.5B-Instruct"}
    assert text_plan.settled(recipe.read("cad", chosen), machine(None, 0.0), chosen)[1] == ""
