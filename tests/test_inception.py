"""The Inception Score (P23): hand-computed, refused for few pictures, by a classifier that is handed in."""

import math

import numpy
import pytest
import torch
from PIL import Image

from lace_lora.errors import ModelError
from lace_lora.families.quiet import quiet
from lace_lora.inception import classifier, inception_score
from tests.judging import tiny_classifier, tiny_dinov2


def pictures(count=5):
    chance = numpy.random.default_rng(0)
    for number in range(count):
        yield Image.fromarray(chance.integers(0, 60 + 40 * number, (50, 40, 3), dtype=numpy.uint8))


def test_P23_pictures_that_are_all_sorted_alike_have_one_and_sure_ones_the_number_of_kinds():
    """P23: whether all are of one kind, or of none in particular."""
    for rows in (numpy.full((60, 7), 1 / 7), numpy.eye(7)[[2] * 60], numpy.tile([0.5, 0.25, 0.25], (60, 1))):
        assert inception_score(rows).value == pytest.approx(1)
    assert inception_score(numpy.eye(7)[list(range(7)) * 10]).value == pytest.approx(7)


def test_P23_two_kinds_by_hand_and_the_mean_over_splits():
    """P23: 3/4 and 1/4 in turn: exp(¾ ln(¾/½) + ¼ ln(¼/½)); split by kind, every part is sorted alike."""
    pair = numpy.array([[0.75, 0.25], [0.25, 0.75]])
    by_hand = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    in_turn = pair[[0, 1] * 50]
    assert inception_score(in_turn).value == pytest.approx(by_hand)
    assert inception_score(in_turn, splits=2).value == pytest.approx(by_hand)
    assert inception_score(pair[[0] * 50 + [1] * 50], splits=2).value == pytest.approx(1)
    mixed = numpy.concatenate([in_turn, numpy.full((100, 2), 0.5)])
    assert inception_score(mixed, splits=2).value == pytest.approx((by_hand + 1) / 2)


@pytest.mark.parametrize("count, splits, least", [(49, 1, 50), (0, 1, 50), (99, 2, 100)])
def test_P23_too_few_pictures_are_refused_with_the_number_that_is_needed(count, splits, least):
    """P23: "needs >= N images"."""
    score = inception_score(numpy.full((count, 3), 1 / 3), splits)
    assert score.value is None and f"needs at least {least} pictures and there are {count}" in score.refusal


def test_P23_the_score_says_that_it_says_little_about_lace_and_by_whom():
    """P23: and takes no side."""
    score = inception_score(numpy.full((50, 3), 1 / 3), classified_by="resnet")
    assert (score.id, score.topic, score.count, score.better) == ("inception_score", "other", 50, "")
    assert score.name == "Inception Score, by resnet"
    assert "says little here" in score.means and "cannot be compared with published numbers" in score.means


def test_P23_any_classifier_of_transformers_gives_its_own_probabilities(tmp_path):
    """P23."""
    with quiet():
        from transformers import ResNetForImageClassification
        from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    folder = tiny_classifier(tmp_path / "sorter", kinds=4)
    made, why = classifier(str(folder))
    found = made.probabilities(pictures())
    with torch.no_grad(), quiet():
        prepared = ConvNextImageProcessorPil.from_pretrained(folder)(list(pictures()), return_tensors="pt")
        theirs = ResNetForImageClassification.from_pretrained(folder).eval()(**prepared).logits.softmax(-1).numpy()
    assert why == "" and made.label == "sorter" and found.shape == (5, 4)
    assert numpy.allclose(found, theirs, atol=1e-6) and numpy.allclose(found.sum(1), 1)
    assert numpy.ptp(found, axis=0).max() > 1e-4, "pictures are told apart"
    made.give_back()
    assert made.probabilities([]).shape == (0, 0)


def test_P23_a_model_that_cannot_be_had_is_said_and_one_that_is_no_classifier_refused(tmp_path):
    """P23."""
    said = []
    made, why = classifier("microsoft/resnet-50", say=said.append)
    assert made is None and said == [f"! {why}"] and why.endswith("The Inception Score is not measured.")
    with pytest.raises(ModelError, match="No model folder"):
        classifier(str(tmp_path / "nowhere"))
    made, _ = classifier(str(tiny_dinov2(tmp_path / "dinov2")))
    with pytest.raises(ModelError, match="dinov2 lacks 2 weights that its config promises"):
        made.probabilities(pictures())
