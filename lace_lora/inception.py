"""The Inception Score, on request only: how surely and how variously a classifier of photographs sorts pictures."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lace_lora.embedders import Network, Say
from lace_lora.errors import LaceError, ModelError
from lace_lora.families import transformers_models as models
from lace_lora.file_names import public_name
from lace_lora.scores import Score

Probabilities = NDArray[np.float64]

PICTURES_A_SPLIT = 50  # with fewer, the score says more about their number than about them
_EXAMPLE = "microsoft/resnet-50"


@dataclass(frozen=True)
class Classifier:
    """What sorts pictures into kinds.

    label          what it is, for people
    probabilities  pictures → of each the probability of each kind, float64 N×K, rows sum to 1
    give_back      lets go of the model's memory
    """

    label: str
    probabilities: Callable[[Iterable[Image.Image]], Probabilities]
    give_back: Callable[[], None]


def classifier(name: str, device: str = "cpu", say: Say = print) -> tuple[Classifier | None, str]:
    """The classifier of that name and an empty text, or None and why it cannot be had.

    name  a folder or a Hugging Face name of any model that transformers loads to classify pictures

    Raises ModelError for a folder that is not there or holds no such model.
    """
    try:
        folder = models.model_folder(name, _EXAMPLE, "judge", say)
    except LaceError as error:
        if not models.is_hub_name(name):
            raise
        why = f"{error} The Inception Score is not measured."
        say(f"! {why}")
        return None, why
    network = Network("AutoModelForImageClassification", folder, public_name(name), device)
    return Classifier(public_name(name), lambda pictures: _sorted(network, pictures), network.give_back), ""


def inception_score(probabilities: Probabilities, splits: int = 1, classified_by: str = "a classifier") -> Score:
    """The Inception Score of pictures: exp of the mean KL divergence of each one's kinds from those of all.

    probabilities  N×K: of each picture the probability of each kind, rows sum to 1
    splits         parts of as equal a size as can be, in order; the score is the mean of theirs
    classified_by  the classifier's name; scores of different ones cannot be compared

    1 means that all pictures are sorted alike, K that each is surely of one of K kinds and all kinds come as often.
    Source: Salimans et al. 2016, https://arxiv.org/abs/1606.03498, section 4.
    """
    name = f"Inception Score, by {classified_by}"
    least = PICTURES_A_SPLIT * splits
    if len(probabilities) < least:
        why = f"it needs at least {least} pictures and there are {len(probabilities)}; set num_evaluated to {least}"
        return Score("inception_score", name, "other", None, count=len(probabilities), refusal=why)
    values = [_score_of(np.asarray(part, dtype=np.float64)) for part in np.array_split(probabilities, splits)]
    kinds = probabilities.shape[1]
    means = (
        f"From 1 (all sorted alike) to {kinds} (every picture surely of one kind, all kinds as often). This classifier "
        "learnt everyday things, not lace, so the number says little here; and with another classifier than the "
        "published one it cannot be compared with published numbers."
    )
    return Score("inception_score", name, "other", float(np.mean(values)), count=len(probabilities), means=means)


# -- inside --


def _score_of(probabilities: Probabilities) -> float:
    of_all = probabilities.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probabilities > 0, probabilities * np.log(probabilities / of_all), 0.0)
    return float(np.exp(terms.sum(1).mean()))


def _sorted(network: Network, pictures: Iterable[Image.Image]) -> Probabilities:
    parts: list[Probabilities] = []
    for pixels_BCHW in network.batches(pictures):
        with network.looking() as model:
            logits_BK = model(pixel_values=pixels_BCHW).logits
            values: Probabilities = logits_BK.double().softmax(-1).cpu().numpy()
        if not np.isfinite(values).all():
            raise ModelError(f"{network.name} gives no usable numbers for a picture; its files may be damaged.")
        parts.append(values)
    return np.concatenate(parts) if parts else np.zeros((0, 0))
