"""The measurements of an evaluation, question by question, each as scores that say what they mean.

Style: how near to the photographs, how varied, whether plain prompts moved too. Words: whether pictures show what their
prompts say. Sharpness: what the refiner did to the threads. References: designs that were to be like a drawing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy
from numpy.typing import NDArray
from PIL import Image

from lace_lora import embedders, inception, intervals, ssim, style_match, weight_free
from lace_lora.config import Config
from lace_lora.embedders import Embedder, PromptScorer
from lace_lora.errors import PicturesError
from lace_lora.exhibits import Design, Exhibit, Photographs, opened
from lace_lora.image_files import open_picture
from lace_lora.inception import Classifier
from lace_lora.machine import Machine
from lace_lora.pairs import Pairs
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Score
from lace_lora.style_match import Reference
from lace_lora.style_statistics import edge_energy

Say = Callable[[str], None]
Rows = NDArray[numpy.float64]

CRISP_PX = 512  # the longer side at which edges are compared, or that of the designs where it is less
CRISP_AT_MOST = 60  # pictures of each kind whose edges are measured


@dataclass(frozen=True)
class Judges:
    """Who measures: found before anything is drawn, so that a name that is wrong costs no evening.

    words_why, inception_why  why there is none; empty where there is one, or none was asked for
    """

    style: Embedder
    words: PromptScorer | None
    words_why: str
    inception: Classifier | None
    inception_why: str

    @classmethod
    def of(cls, config: Config, machine: Machine, say: Say) -> "Judges":
        """Those that the settings name. Raises ModelError for a folder that is not there or holds no such model."""
        words, words_why = embedders.prompt_scorer(config.text_model, machine.device, say)
        style = embedders.style_embedder(config.style_model, machine.device, say, weight_free.features)
        asked = config.inception_model
        sorting, why = inception.classifier(asked, machine.device, say) if asked else (None, "")
        return cls(style, words, words_why, sorting, why)


@dataclass(frozen=True)
class Looked:
    """What a judge of style made of the pictures: rows of features by the name of their set, all in one scale.

    made  rows of the pictures that are compared with the photographs, in their order; None where the judge is
          weight-free, which finds no copies
    """

    judge: Embedder
    learnt: Rows
    unseen: Rows
    base: Rows
    lora: Rows
    plain_base: Rows
    plain_lora: Rows
    made: Rows | None


def readable(judge: Embedder, exhibits: Sequence[Exhibit], say: Say) -> list[Exhibit]:
    """Those that the judge can be given; of the others the fault is said.

    A network looks at all of them, so that each is opened first. Statistics look at none (see Looked.made), and the
    look for copies says itself what it cannot read.
    """
    if judge.is_weight_free:
        return list(exhibits)
    found = []
    for one in exhibits:
        try:
            one.open()
            found.append(one)
        except PicturesError as error:
            say(f"! left out: {error}")
    return found


def look(judge: Embedder, photographs: Photographs, drawn: Pairs, made: Sequence[Exhibit], say: Say) -> Looked:
    """Let the judge of style look at everything, at the size that was learnt; its model is given back afterwards.

    A photograph of 12 MP shows threads that no picture of 1024 px can: larger ones would make every LoRA look bad.
    """
    say(f"style     by {judge.label}: {len(photographs.learnt)} photographs, {2 * len(drawn.lora)} pictures")
    side = drawn.candidate.facts.resolution or None
    sets = [photographs.learnt, photographs.unseen, drawn.base, drawn.lora, drawn.plain_base, drawn.plain_lora]
    try:
        rows = [judge.embed(opened(of, side)) for of in sets]
        found = None if judge.is_weight_free else judge.embed(opened(made, side))
    finally:
        judge.give_back()
    if judge.is_weight_free and len(rows[0]):
        scale = weight_free.Scale.of(rows[0])
        rows = [scale.apply(one) if len(one) else one for one in rows]
    return Looked(judge, rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], found)


def style(looked: Looked, photographs: Photographs, why_none: str, drawn: Pairs) -> list[Score]:
    """style_*, variety_* and drift_plain.

    why_none  why there are no photographs to measure against; empty where there are
    drawn     whose prompts say which pictures belong together
    """
    reference = Reference.of(
        looked.learnt, looked.unseen,
        [one.group for one in photographs.learnt], [one.group for one in photographs.unseen],
    ) if len(looked.learnt) else None  # fmt: skip
    scores = [
        *style_match.style_scores(looked.base, looked.lora, reference, drawn.told),
        style_match.drift_score(looked.plain_base, looked.plain_lora, reference, drawn.plain_told),
        *style_match.variety_scores(looked.base, looked.lora, reference, drawn.told),
    ]
    return [replace(one, refusal=why_none) if why_none and one.value is None else one for one in scores]


def words(judges: Judges, config: Config, drawn: Pairs) -> list[Score]:
    """words_base, words_lora and words_change; the token is left out of prompts."""
    judge = judges.words
    if judge is None:
        name = "how well pictures show their prompts"
        return [Score("words_change", name, "words", None, better="higher", refusal=judges.words_why)]
    names = {"words_base": "how well the base model shows its prompts", "words_lora": "how well your LoRA does"}
    facts = drawn.candidate.facts
    class_words = facts.class_prompt or config.class_prompt
    token = facts.concept_token or config.concept_token
    texts = [embedders.words_for(prompt, token, class_words) for prompt in drawn.told]
    try:
        found = {"words_base": judge.scores(opened(drawn.base), texts).tolist()}
        found["words_lora"] = judge.scores(opened(drawn.lora), texts).tolist()
    finally:
        judge.give_back()
    scores = [_mean(id, name, found[id], drawn.told) for id, name in names.items()]
    both = found["words_base"], found["words_lora"]
    who = ("the base model", "your LoRA")
    change = intervals.paired(
        "words_change", "what your LoRA changed in that", "words", *both, groups=drawn.told, who=who
    )
    return [*scores, change]


def sharpness(designs: Sequence[Design], photographs: Photographs, say: Say) -> list[Score]:
    """sharp_base and sharp_refined: edge energy of the designs before and after the refiner, photographs = 1.

    Only designs that were refined, and nothing where none was.
    """
    both = [(one.exhibit.path.with_name(str(one.row["base"])), one.exhibit.path) for one in designs
            if one.row.get("refined") and one.row.get("base")][:CRISP_AT_MOST]  # fmt: skip
    if not both or not photographs.learnt:
        return []
    measured: list[tuple[float, float]] = []
    side = 0
    for base, refined in both:
        try:
            before, after = _open(base), _open(refined)
        except PicturesError as error:
            say(f"! left out: {error}")
            continue
        side = side or min(CRISP_PX, max(after.size))
        measured.append((_edges(before, side), _edges(after, side)))
    if not measured:
        return []
    real = fmean(_edges(one.open(), side) for one in photographs.learnt[:CRISP_AT_MOST])
    found = []
    names = ("crispness of the designs before the refiner", "crispness of the designs, refined")
    for place, (id, name) in enumerate(zip(("sharp_base", "sharp_refined"), names, strict=True)):
        values = [edges[place] / real for edges in measured]
        low, high = intervals.mean_interval(values) or (None, None)
        means = "1 is as crisp as your photographs at the same size; below it threads are softer, above it harsher."
        found.append(Score(id, name, "refiner", fmean(values), low, high, len(values), means))
    return found


def likeness_to_references(run: RunFolder, designs: Sequence[Design]) -> list[Score]:
    """ssim of the designs whose rows name a picture that they were to be like; nothing where none does."""
    path_of = {id(one.row): one.exhibit.path for one in designs if one.row.get("reference")}
    rows = [one.row for one in designs if id(one.row) in path_of]
    return [ssim.against_references(run, rows, lambda row: path_of[id(row)])] if rows else []


def inception_score(judges: Judges, drawn: Pairs) -> list[Score]:
    """The Inception Score of the LoRA's pictures, only where it was asked for."""
    if judges.inception is None:
        why = judges.inception_why
        return [Score("inception_score", "Inception Score", "other", None, refusal=why)] if why else []
    try:
        found = judges.inception.probabilities(opened(drawn.lora))
    finally:
        judges.inception.give_back()
    return [inception.inception_score(found, classified_by=judges.inception.label)]


# -- inside --


def _mean(id: str, name: str, values: Sequence[float], groups: Sequence[object]) -> Score:
    low, high = intervals.mean_interval(values, groups) or (None, None)
    means = "A cosine of picture and words, which has no scale of its own: only differences mean something."
    return Score(id, name, "words", fmean(values), low, high, len(values), means, "higher")


def _edges(picture: Image.Image, side_px: int) -> float:
    """Edge energy with the longer side at side_px: it is per pixel, so pictures of two sizes cannot be compared."""
    scale = side_px / max(picture.size)
    width, height = (max(2, round(side * scale)) for side in picture.size)
    return edge_energy(picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0))


def _open(path: Path) -> Image.Image:
    return open_picture(path).convert("RGB")
