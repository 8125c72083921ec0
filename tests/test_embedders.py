"""Judges of pictures against the models called directly (P21), and what is said where there is none (D8)."""

import gc
import shutil
import sys
import weakref

import numpy
import pytest
import torch
from PIL import Image

from lace_lora import embedders
from lace_lora.embedders import WEIGHT_FREE, prompt_scorer, style_embedder, words_for
from lace_lora.errors import MachineError, ModelError
from lace_lora.families import transformers_models
from lace_lora.families.quiet import quiet
from lace_lora.style_statistics import statistics_of
from tests.judging import tiny_clip, tiny_dinov2

with quiet():
    from transformers import (
        CLIPModel,
        CLIPTokenizer,
        Dinov2Model,
        ViTConfig,
        ViTForImageClassification,
        ViTModel,
    )
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


def fail(*_):
    pytest.fail("nothing was to be said or asked")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return tiny_dinov2(tmp_path_factory.mktemp("judges") / "dinov2")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("judges") / "clip")


def pictures(count=5, seed=0):
    """Noise of different shapes and colours."""
    chance = numpy.random.default_rng(seed)
    for number in range(count):
        values = chance.integers(0, 80 + 40 * (number % 4), (33 + 7 * (number % 5), 60, 3), dtype=numpy.uint8)
        yield Image.fromarray(values)


def lengths(rows):
    return numpy.linalg.norm(rows, axis=1)


# -- style --


def test_D8_a_style_model_sees_what_transformers_gives_for_the_same_pictures(dinov2, monkeypatch):
    """D8: over several batches, the last one not full; each row brought to length 1."""
    monkeypatch.setattr(embedders, "BATCH", 2)
    judge = style_embedder(str(dinov2), say=fail)
    found = judge.embed(pictures())
    with torch.no_grad():
        prepared = BitImageProcessorPil.from_pretrained(dinov2)(list(pictures()), return_tensors="pt")
        theirs = Dinov2Model.from_pretrained(dinov2)(**prepared).pooler_output.numpy()
    assert found.dtype == numpy.float64 and found.shape == (5, 24)
    assert numpy.allclose(found, theirs / lengths(theirs)[:, None], atol=1e-5)
    assert (judge.label, judge.is_weight_free, judge.why) == ("dinov2", False, "")
    assert judge.embed([]).shape == (0, 0)


def test_D8_pictures_are_opened_a_batch_at_a_time(dinov2, monkeypatch):
    """D8: thousands of designs must not stand in memory at once."""
    monkeypatch.setattr(embedders, "BATCH", 2)
    given = []

    def opened():
        for picture in pictures(9):
            given.append(weakref.ref(picture))
            gc.collect()
            assert sum(one() is not None for one in given) <= 3
            yield picture

    assert len(style_embedder(str(dinov2)).embed(opened())) == 9


def test_D8_the_half_for_pictures_of_a_clip_judges_style_too(clip):
    """D8: another model is another name."""
    found = style_embedder(str(clip)).embed(pictures())
    with torch.no_grad():
        prepared = CLIPImageProcessorPil.from_pretrained(clip)(list(pictures()), return_tensors="pt")
        seen = CLIPModel.from_pretrained(clip).vision_model(**prepared).pooler_output
        theirs = CLIPModel.from_pretrained(clip).visual_projection(seen).numpy()
    assert numpy.allclose(found, theirs / lengths(theirs)[:, None], atol=1e-5)


@pytest.mark.parametrize("has_pooler", [True, False])
def test_D8_a_summary_that_the_model_never_learnt_is_not_used(has_pooler, tmp_path):
    """D8: transformers fills a pooler that a file lacks with random numbers, other ones each time."""
    torch.manual_seed(1)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**small, image_size=32, patch_size=8)
    (ViTModel if has_pooler else ViTForImageClassification)(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    found = style_embedder(str(tmp_path)).embed(pictures())
    with torch.no_grad(), quiet():
        prepared = ViTImageProcessorPil.from_pretrained(tmp_path)(list(pictures()), return_tensors="pt")
        theirs = ViTModel.from_pretrained(tmp_path).eval()(**prepared)
        theirs = (theirs.pooler_output if has_pooler else theirs.last_hidden_state[:, 0]).numpy()
    assert numpy.allclose(found, theirs / lengths(theirs)[:, None], atol=1e-5)


def test_D8_none_is_statistics_that_load_no_network(monkeypatch):
    """D8: a weight-free set, labelled as such; its own numbers, not scaled."""
    monkeypatch.setattr(transformers_models, "load_network", fail)
    judge = style_embedder("none", say=fail)
    assert numpy.array_equal(judge.embed(pictures()), statistics_of(list(pictures())))
    assert (judge.label, judge.is_weight_free, judge.why) == (WEIGHT_FREE, True, "")
    assert judge.embed(list(pictures(1))).shape == (1, 10) and judge.embed([]).shape == (0, 0)
    other = style_embedder("none", statistics=lambda picture: numpy.array(picture.size, dtype=float))
    assert other.embed(pictures(2)).tolist() == [[60.0, 33.0], [60.0, 40.0]]


def test_D8_a_model_that_cannot_be_had_is_replaced_by_statistics_and_that_is_said():
    """D8: offline, as the tests are."""
    said = []
    judge = style_embedder("facebook/dinov2-base", say=said.append)
    assert judge.is_weight_free and judge.label == WEIGHT_FREE and said == [f"! {judge.why}"]
    assert judge.why.startswith("facebook/dinov2-base is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it.")
    assert "hf download facebook/dinov2-base" in judge.why and WEIGHT_FREE in judge.why
    assert numpy.array_equal(judge.embed(pictures()), statistics_of(list(pictures())))


@pytest.mark.parametrize("make", [style_embedder, prompt_scorer])
def test_D8_a_folder_that_is_not_there_is_an_error_at_once(make, tmp_path):
    """D8: a typing mistake must not end in other numbers."""
    for name in (str(tmp_path / "dinov2"), "./dinov2", "~/no/dinov2"):
        with pytest.raises(ModelError, match=r"No model folder .+dinov2\. Give an existing folder, or a Hugging Face"):
            make(name, say=fail)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="config.json, preprocessor_config.json, model.safetensors missing"):
        make(str(tmp_path / "empty"), say=fail)


def test_D8_pickled_weights_are_not_read(dinov2, tmp_path):
    """D8, L2: such files can run code."""
    folder = tmp_path / "pickled"
    shutil.copytree(dinov2, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model.safetensors missing\. Its \.bin files are not read"):
        style_embedder(str(folder))


def test_D8_weights_that_a_file_lacks_and_numbers_that_are_none_are_refused(dinov2, tmp_path):
    """D8: transformers would go on with random ones."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(dinov2, folder)
    weights = load_file(folder / "model.safetensors")
    norm = next(key for key in weights if key.endswith("layernorm.weight"))
    save_file({key: value for key, value in weights.items() if key != norm}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="broken lacks 1 weights that its config promises"):
        style_embedder(str(folder)).embed(pictures())
    save_file(weights | {norm: weights[norm] * float("nan")}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="broken gives no usable numbers"):
        style_embedder(str(folder)).embed(pictures())


def test_D8_what_a_network_cannot_do_is_a_sentence(dinov2, monkeypatch):
    """D8: also where memory runs out in the middle."""
    judge = style_embedder(str(dinov2))

    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Dinov2Model, "forward", fails)
    with pytest.raises(MachineError, match="Memory ran out while dinov2 looked at pictures"):
        judge.embed(pictures())
    monkeypatch.setattr(Dinov2Model, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match=r"dinov2 cannot judge pictures \(ZeroDivisionError: division by zero\)"):
        judge.embed(pictures())


def test_D8_a_network_is_loaded_once_and_given_back_when_told(dinov2, monkeypatch):
    """D8: one model at a time."""
    loaded = []
    load = transformers_models.load_network

    def watched(*given):
        network, lacking = load(*given)
        loaded.append(weakref.ref(network))
        return network, lacking

    monkeypatch.setattr(transformers_models, "load_network", watched)
    judge = style_embedder(str(dinov2))
    assert not loaded, "nothing is loaded before a picture is looked at"
    first = judge.embed(pictures())
    judge.embed(pictures(1))
    assert len(loaded) == 1 and loaded[0]() is not None
    judge.give_back()
    assert loaded[0]() is None
    assert numpy.array_equal(judge.embed(pictures()), first) and len(loaded) == 2
    judge.give_back()
    style_embedder("none").give_back()


def test_P28_making_a_judge_without_weights_loads_no_torch():
    """P28: an evaluation without models must start at once."""
    import subprocess

    code = (
        "import sys; from lace_lora import embedders; from PIL import Image; "
        "embedders.style_embedder('none').embed([Image.new('RGB', (9, 9))]); "
        "print('LOADED', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "LOADED []", done.stdout + done.stderr


# -- words --


TEXTS = ["a photo of lace", "white star on dark ground", "a photo of lace", "rosette", "cream leaf , low quality"]


@pytest.mark.parametrize("eos", [None, 2])
def test_P21_each_picture_has_the_cosine_that_transformers_gives(clip, tmp_path, monkeypatch, eos):
    """P21: and where the config says 2 for the end of a text, as older CLIPs do."""
    monkeypatch.setattr(embedders, "BATCH", 2)
    folder = clip if eos is None else tiny_clip(tmp_path / "old", eos_token_id=eos)
    scorer, why = prompt_scorer(str(folder), say=fail)
    found = scorer.scores(pictures(), TEXTS)
    with torch.no_grad(), quiet():
        pixels = CLIPImageProcessorPil.from_pretrained(folder)(list(pictures()), return_tensors="pt")
        tokens = CLIPTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
        model = CLIPModel.from_pretrained(clip)
        theirs = (model(**pixels, **tokens).logits_per_image / model.logit_scale.exp()).diagonal().numpy()
    assert found.shape == (5,) and numpy.allclose(found, theirs, atol=1e-5)
    assert (numpy.abs(found) <= 1).all() and numpy.unique(found.round(6)).size == 5
    assert scorer.label == folder.name and why == ""
    scorer.give_back()
    assert scorer.scores([], []).shape == (0,)


def test_P21_two_texts_of_one_length_differ_whatever_the_config_says_of_their_end(tmp_path):
    """P21: a number of an end that no text holds would pool them all at their first token."""
    scorer, _ = prompt_scorer(str(tiny_clip(tmp_path / "clip", eos_token_id=3)))
    picture = next(pictures())
    one, other = scorer.scores([picture, picture], ["white leaf", "dark star"])
    assert abs(one - other) > 1e-4


def test_P21_a_text_that_is_too_long_is_cut_with_a_word_about_it(clip):
    """P21: 77 tokens with those for its beginning and end."""
    said = []
    scorer, _ = prompt_scorer(str(clip), say=said.append)
    picture = next(pictures())
    fits, long = " ".join("a" * 75), " ".join("a" * 75 + "st")  # the small tokenizer reads letter by letter
    last = " ".join("a" * 74 + "s")
    one, other, third = scorer.scores([picture] * 3, [fits, long, last])
    assert one == pytest.approx(other) and abs(one - third) > 1e-6, "the 75th is still read"
    assert len(said) == 1 and "Too long for the model (75 tokens)" in said[0] and said[0].endswith("'s t'")


def test_P21_as_many_texts_as_pictures(clip):
    """P21: else a score would belong to another picture."""
    scorer, _ = prompt_scorer(str(clip))
    with pytest.raises(ValueError, match="one text a picture: got 2 texts for 3 pictures"):
        scorer.scores(pictures(3), ["a", "b"])


def test_P21_without_a_model_prompts_are_not_scored_and_it_says_why(dinov2):
    """P21: nothing else can measure it."""
    said = []
    assert prompt_scorer("none", say=fail) == (
        None,
        "text_model is none, so how well pictures show their prompts is not measured.",
    )
    scorer, why = prompt_scorer("openai/clip-vit-large-patch14", say=said.append)
    assert scorer is None and said == [f"! {why}"]
    assert why.startswith("openai/clip-vit-large-patch14 is not on this machine") and "not measured" in why
    with pytest.raises(ModelError, match="is a model of the kind dinov2; text_model must be a CLIP, such as openai"):
        prompt_scorer(str(dinov2), say=fail)


@pytest.mark.parametrize(
    "prompt, without, with_class",
    [
        ("a photo of <lace>", "a photo", "a photo of a painting"),
        ("a photo of <lace> with leaves", "a photo with leaves", "a photo of a painting with leaves"),
        ("<lace> rosette on blue", "rosette on blue", "a photo of a painting, rosette on blue"),
        ("a photo of a <LACE> doily", "a photo of a doily", "a photo of a painting doily"),
        ("white rosette, <lace>", "white rosette", "white rosette, a painting"),
        ("leaves, <lace>, white", "leaves, white", "leaves, a painting, white"),
        ("a photo of the <lace>, on dark ground", "a photo, on dark ground", "a photo of the painting, on dark ground"),
        ("a white star", "a white star", "a white star"),
        ("a <laced> star", "a <laced> star", "a <laced> star"),
    ],
)
def test_P21_the_token_is_stripped_from_a_prompt_and_what_stood_around_it_is_put_in_order(prompt, without, with_class):
    """P21: the judge never saw the token; its letters would count for words."""
    assert words_for(prompt, "<lace>") == without
    assert words_for(prompt, "<lace>", "a photo of a painting") == with_class
