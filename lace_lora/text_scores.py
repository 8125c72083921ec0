"""Measure a text adapter on the pairs that were held out: is it right, is it better than its base, does it copy?

`run(folder)` has the base model and the tuned one write the same answers, under the same grammar, and writes
scores.json and report.html. Called again, it takes up the answers that are there.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lace_lora import agreement, checkpoint, dialogues, intervals, lock, text, text_course, text_models, validate
from lace_lora.agreement import Answer
from lace_lora.dialogues import Pair, Pairs
from lace_lora.errors import RunError
from lace_lora.recipe import Direction, Recipe
from lace_lora.scores import Evaluation, Score
from lace_lora.text import TextAdapter
from lace_lora.text_folder import TextFolder
from lace_lora.validate import Validator

Say = Callable[[str], None]

TUNED, BASE = "tuned", "base"
BATCH = 8  # answers that are written at once, and kept before the next ones
# In words, and what each means.
NAMES = {
    "schema_valid": ("right in form", "answers that have the form of a document"),
    "valid": ("right by all rules", "answers in which the validator finds nothing wrong"),
    "structural_f1": ("structure", "how far operations and their values are the wanted ones (F1)"),
    "geometric": ("the same body", "answers whose volume and box are the wanted ones, within 1 %"),
    "shape": ("the same shape", "answers whose graph is the wanted one when words do not count"),
    "node_f1": ("nodes", "how far nodes are the wanted ones, by label (F1)"),
    "edge_f1": ("edges", "how far edges are the wanted ones, by label (F1)"),
    "word_f1": ("words", "how far the words are the wanted ones (F1)"),
    "exact": ("the same document", "answers that are the wanted document itself"),
    "copy": ("copied", "answers that are a learnt document and not the wanted one"),
}
LOWER = ("copy",)


def run(folder: Path, recipe: Recipe | None = None, say: Say = print) -> Evaluation:
    """Measure a run. recipe: instead of the run's own, with other values for writing or other targets.

    Raises AdapterError without a trained adapter, RunError where nothing was held out. Missed targets are told by
    `missed`, not raised.
    """
    place = TextFolder(folder)
    adapter = text.load(folder)
    chosen = recipe or place.read_recipe()
    pairs = dialogues.read_kept(place.pairs)
    if not pairs.held_out:
        raise RunError(
            f"{folder} held no pairs out, so nothing can be measured: validation_fraction is 0, or all pairs are about "
            "one document. Train again under another run_name, with more documents or a share above 0."
        )
    with lock.lock(folder, say, "evaluation.lock", "evaluated", "evaluate another run"):
        direction: Direction = adapter.card["direction"]
        asked = pairs.held_out[: chosen.num_evaluated]
        answers = _answers(place, adapter, chosen, direction, asked, say)
        found = _judged(place, adapter, chosen, direction, pairs, answers)
        found.write(place.run)
        return found


def missed(found: Evaluation) -> list[str]:
    """A sentence for each target that was missed."""
    return [one["says"] for one in found.facts.get("checks", []) if one["is_target"] and not one["is_met"]]


def beside_base(found: Evaluation) -> list[tuple[str, str, str]]:
    """Each measure in words, of the tuned and of the base model."""
    base: dict[str, float] = found.facts.get("base", {})
    return [(one.name, f"{one.value:.2f}", f"{base[one.id]:.2f}") for one in found.scores if one.id in base]


# -- writing --


def _answers(
    place: TextFolder, adapter: TextAdapter, recipe: Recipe, direction: Direction, asked: Sequence[Pair], say: Say
) -> dict[str, list[Answer]]:
    """What both models write for each pair; those of an earlier call are taken where nothing has changed."""
    digest = _digest(adapter, recipe)
    kept = {
        (row["who"], row["answer"]["wanted"], row["asked"]): Answer(**row["answer"])
        for row in checkpoint.read_json_lines(place.answers)
        if row.get("digest") == digest
    }
    place.answers.parent.mkdir(parents=True, exist_ok=True)

    def name(who: str, pair: Pair) -> tuple[str, str, str]:  # two pairs may ask the same
        return who, pair.wanted(direction), pair.asked(direction)

    wanted = [(who, pair) for who in (TUNED, BASE) for pair in asked if name(who, pair) not in kept]
    if wanted:
        loaded = text_models.load(place.root, recipe=recipe)
        say(f"base model  {recipe.base_model}, {loaded.how}")
        for who in (TUNED, BASE):
            left = [pair for one, pair in wanted if one == who]
            for start in range(0, len(left), BATCH):
                batch = left[start : start + BATCH]
                found = list(_written(loaded, direction, batch, who))
                rows = [
                    {"who": who, "asked": answer.asked, "digest": digest, "answer": asdict(answer)} for answer in found
                ]
                checkpoint.append_line(place.answers, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
                kept |= {name(who, pair): answer for pair, answer in zip(batch, found, strict=True)}
                say(f"answers     {min(start + BATCH, len(left))}/{len(left)} of the {who} model")
    return {who: [kept[name(who, pair)] for pair in asked] for who in (TUNED, BASE)}


def _written(loaded: text_models.Loaded, direction: Direction, pairs: Sequence[Pair], who: str) -> Iterator[Answer]:
    """One attempt each: what a second one mends is no merit of the adapter."""
    writer, asked = loaded.writer(direction), [pair.asked(direction) for pair in pairs]
    if who == BASE:
        with loaded.base():
            found = writer.write(asked, attempts=1)
    else:
        found = writer.write(asked, attempts=1)
    for pair, one in zip(pairs, found, strict=True):
        yield Answer(one.asked, one.text, pair.wanted(direction), pair.kind, pair.graph_type, one.attempts)


def _digest(adapter: TextAdapter, recipe: Recipe) -> str:
    """What decides the answers: the weights, and how is written."""
    how = recipe.model_dump(mode="json", include={"system_prompt", "system_prompt_back", "constraint", "max_new_tokens",
                                                  "temperature", "seed", "base_model", "rules"})  # fmt: skip
    told = json.dumps([adapter.card.get("sha256"), how, recipe.schema_, recipe.grammar], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


# -- judging --


def _judged(
    place: TextFolder, adapter: TextAdapter, recipe: Recipe, direction: Direction, pairs: Pairs,
    answers: Mapping[str, Sequence[Answer]],
) -> Evaluation:  # fmt: skip
    validator = validate.validator(recipe)
    learnt = frozenset(pair.document for pair in pairs.learnt)
    rows = {who: [_marks(one, validator, learnt, direction) for one in found] for who, found in answers.items()}
    scores = [_score(name, rows) for name in NAMES if any(name in row for row in rows[TUNED])]
    log = checkpoint.read_json_lines(place.run.log)
    course = _course(log)
    checks = [*_course_checks(course), *_rule_checks(answers[TUNED], validator, direction)]
    checks += _targets(recipe, scores, checks)
    types = _by_type(answers, rows)
    facts: dict[str, Any] = {
        "kind": "text", "direction": direction, "recipe": recipe.name, "adapter_digest": adapter.card.get("sha256"),
        "checks": checks, "course": course, "types": types, "versions": adapter.card.get("versions"),
        "base": agreement.means(rows[BASE]), "peak_vram_gb": text_course.peak_vram_gb(),
        "constraint": recipe.constraint,
    }  # fmt: skip
    unmet = [one for one in checks if not one["is_met"]]
    said = f"{len(checks) - len(unmet)} of {len(checks)} checks passed"
    verdict = (f"{said}." if not unmet else f"{said}; missed: {', '.join(one['name'] for one in unmet)}.",)
    return Evaluation(
        place.run.name, datetime.now(UTC).isoformat(timespec="seconds"), verdict,
        judges={"documents": f"the validator of the recipe {recipe.name}"},
        counts={"training": len(pairs.learnt), "held out": len(pairs.held_out), "measured": len(answers[TUNED])},
        scores=tuple(scores), overfitting=course["says"], facts=facts,
    )  # fmt: skip


def _marks(answer: Answer, validator: Validator, learnt: frozenset[str], direction: Direction) -> dict[str, float]:
    return agreement.marks(answer, validator, learnt) if direction == "forward" else agreement.text_marks(answer)


def _score(name: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> Score:
    """One measure of the tuned model, and in its sentence how the base model did."""
    values, base = ([row[name] for row in rows[who] if name in row] for who in (TUNED, BASE))
    mean, before = sum(values) / len(values), sum(base) / len(base) if base else 0.0
    is_share = set(values) <= {0.0, 1.0}
    bounds = intervals.share(round(sum(values)), len(values)) if is_share else intervals.mean_interval(values)
    title, means = NAMES[name]
    low, high = (None, None) if bounds is None else (float(bounds[0]), float(bounds[1]))
    return Score(
        name, title, "other", mean, low, high, len(values), f"{means}; the base model: {before:.2f}",
        "lower" if name in LOWER else "higher",
    )  # fmt: skip


def _by_type(answers: Mapping[str, Sequence[Answer]], rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The means of each measure by kind and graph type, for both models."""
    told = []
    for field in ("graph_type", "kind"):
        for name in sorted({getattr(one, field) for one in answers[TUNED]} - {""}):
            for who in (TUNED, BASE):
                own = [row for one, row in zip(answers[who], rows[who], strict=True) if getattr(one, field) == name]
                told.append({"of": name, "who": who, "count": len(own), **agreement.means(own)})
    return told


def _course(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the training went: loss at its start and end, the best look, and how far the held-out loss lies above."""
    losses = [row["loss"] for row in log if "loss" in row]
    looks = [row for row in log if row.get("val_loss") is not None]
    tenth = max(1, len(losses) // 10)
    later = [row for row in looks if row["step"] > 0]
    best = min(later, key=lambda row: row["val_loss"], default=None)
    start, end = (sum(part) / len(part) if part else None for part in (losses[:tenth], losses[-tenth:]))
    gap = best["val_loss"] - end if best and end is not None else None
    first = looks[0]["val_loss"] if looks else None
    says = ""
    if start is not None and end is not None:
        says = f"The loss went from {start:.3f} to {end:.3f}."
    if best is not None:
        says += f" On held-out pairs it was lowest at step {best['step']}: {best['val_loss']:.3f}"
        says += f", {gap:+.3f} against the learnt ones at the end." if gap is not None else "."
    return {
        "loss_start": start, "loss_end": end, "best_step": best["step"] if best else None, "gap": gap,
        "val_loss_start": first, "val_loss_best": best["val_loss"] if best else None, "says": says.strip(),
    }  # fmt: skip


def _course_checks(course: Mapping[str, Any]) -> list[dict[str, Any]]:
    start, end = course["loss_start"], course["loss_end"]
    if start is None or end is None:
        return []
    found = [_check("loss_falls", "the loss falls", end < 0.9 * start, f"from {start:.3f} to {end:.3f}")]
    before, best = course["val_loss_start"], course["val_loss_best"]
    if before is not None and best is not None:
        told = f"from {before:.3f} to {best:.3f}"
        found.append(_check("held_out_loss_falls", "the loss on held-out pairs falls", best < 0.9 * before, told))
    return found


def _rule_checks(answers: Sequence[Answer], validator: Validator, direction: Direction) -> list[dict[str, Any]]:
    """Whether operations come in their order, and numbers are reasonable and written in digits."""
    if direction == "back" or validator.recipe.document != "json":
        return []
    issues = [issue.code for answer in answers for issue in validator.check(answer.text).issues]
    wanted = {"order": "operations are in their order", "number_format": "numbers are written in digits",
              "reasonable": "sizes are reasonable"}  # fmt: skip
    names = {name for name in wanted if name in validator.recipe.rules.check}
    return [
        _check(name, title, code_count == 0, f"{code_count} issues in {len(answers)} answers")
        for name, title in wanted.items()
        if name in names
        for code_count in [issues.count(name)]
    ]


def _targets(recipe: Recipe, scores: Sequence[Score], checks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The recipe's targets: scores, or checks by their id, that must be reached."""
    values = {score.id: score.value for score in scores} | {one["id"]: float(one["is_met"]) for one in checks}
    found = []
    for name, least in recipe.targets.items():
        value = values.get(name)
        if value is None:
            continue  # of the other direction
        is_met = value <= least if name in LOWER else value >= least
        word = "at most" if name in LOWER else "at least"
        told = f"{value:.2f}, wanted is {word} {least:g}"
        found.append(_check(f"target_{name}", f"target {name}", is_met, told, is_target=True))
    return found


def _check(id: str, name: str, is_met: bool, told: str, is_target: bool = False) -> dict[str, Any]:
    return {"id": id, "name": name, "is_met": is_met, "is_target": is_target, "says": f"{name}: {told}"}
