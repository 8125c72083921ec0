"""What people are asked about a run's pictures, and what they said, for the report: blind pairs and experts' ratings.

The pairs are those that an evaluation measured: scores.json names their files.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lace_lora import blind, rating
from lace_lora.counting import counted
from lace_lora.errors import LaceError, RunError
from lace_lora.run_folder import RunFolder
from lace_lora.scores import Evaluation

BASE, LORA = "the base model", "your LoRA"
PAIRS, OF_STEP = "pairs", "pictures_of_step"  # in Evaluation.facts

Sides = tuple[str, list[Path], str, list[Path]]


def base_and_lora(run: RunFolder) -> Sides:
    """Whose pictures, and the pictures, of both sides: the LoRA's and the base model's at the same prompts and seeds.

    Raises RunError where nothing was evaluated yet.
    """
    told = _facts(run).get(PAIRS)
    rows = [row for row in told if isinstance(row, list | tuple) and len(row) == 2] if isinstance(told, list) else []
    both = [_paths(run, row) for row in rows]
    there = [pair for pair in both if all(path.is_file() for path in pair)]
    if not there:
        raise RunError(
            f"{run.root} has no pairs to choose between. Draw them first: lace-lora evaluate, or notebook 05."
        )
    return LORA, [pair[1] for pair in there], BASE, [pair[0] for pair in there]


def finalists(run: RunFolder) -> Sides:
    """The same of the two checkpoints that the advice left to a person: the advised one, and the other one.

    Raises RunError where there are no two, or no pictures of both.
    """
    evaluation = _evaluation(run)
    steps: Sequence[Any] = evaluation.choice.get("finalists") or ()
    told = evaluation.facts.get(OF_STEP) or {}
    found = [_paths(run, told.get(str(step), ())) for step in steps]
    if len(found) != 2 or not all(found) or len(found[0]) != len(found[1]):
        raise RunError(
            "There are no pictures of two checkpoints to choose between. Keep more of them (checkpoints_to_keep), and "
            "draw with all: lace-lora evaluate --all-checkpoints"
        )
    return f"step {steps[0]}", found[0], f"step {steps[1]}", found[1]


def for_report(run: RunFolder) -> list[dict[str, Any]]:
    """What people said, as parts of the report; none where nobody was asked. What cannot be read says so in a part."""
    return [part for part in (_part(run, _blind), _part(run, _ratings)) if part]


def adapter_names(run: RunFolder) -> dict[str, str]:
    """What the run's adapter is called, by its digest: its step. Adapters of before are known by their digests only."""
    evaluation = Evaluation.read(run)
    digest, step = (evaluation.facts.get(name) for name in ("adapter_digest", "step")) if evaluation else (None, None)
    return {digest: f"step {step}"} if isinstance(digest, str) else {}


# -- inside --


def _part(run: RunFolder, make: Callable[[RunFolder], dict[str, Any]]) -> dict[str, Any]:
    try:
        return make(run)
    except LaceError as error:
        return {"title": "What people said", "sentences": [str(error)]}


def _blind(run: RunFolder) -> dict[str, Any]:
    """What was answered about the pictures that the last evaluation measured; answers about others are counted only."""
    given = blind.answers(run)
    if not given:
        return {}
    sentences, known = [], set()
    for sides in (base_and_lora, finalists):
        try:
            name, pictures, other, others = sides(run)
        except RunError:
            continue
        places = {pair.place for pair in blind.pairs(name, pictures, other, others, 0)}
        here = [answer for answer in given if answer.place in places]
        known |= {answer.place for answer in here}
        if here:
            sentences.append(blind.result(here, name, other).sentence)
    if earlier := sum(answer.place not in known for answer in given):
        verb = "is" if earlier == 1 else "are"
        sentences.append(f"{counted(earlier, 'answer')} {verb} about pictures of before, and {verb} not counted.")
    file = run.blind_answers.relative_to(run.root).as_posix()
    return {"title": "Decided blind", "sentences": sentences, "file": file}


def _ratings(run: RunFolder) -> dict[str, Any]:
    if not run.ratings.is_file():
        return {}
    lines = rating.summary(rating.read(run), adapter_names(run))
    file = run.ratings.relative_to(run.root).as_posix()
    return {"title": "Rated by experts, 1 to 5", "sentences": lines, "file": file}


def _facts(run: RunFolder) -> Mapping[str, Any]:
    return _evaluation(run).facts


def _evaluation(run: RunFolder) -> Evaluation:
    found = Evaluation.read(run)
    if found is None:
        raise RunError(f"{run.root} was not evaluated yet. Do that first: lace-lora evaluate, or notebook 05.")
    return found


def _paths(run: RunFolder, names: Sequence[Any]) -> list[Path]:
    """Files of the run's own evaluation, whatever a file that was changed by hand may name."""
    paths = [(run.root / str(name)).resolve() for name in names]
    return [path for path in paths if path.is_relative_to(run.root.resolve())]
