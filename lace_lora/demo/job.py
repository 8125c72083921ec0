"""The demo: the whole job on the miniature model, then what was learnt, measured on lace that it never saw.

Distances are weight-free style statistics (lace_lora.evaluate): 0 is the style of unseen drawn lace, 1 is one standard
deviation of it away.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import checkpoint, data_utils, estimate, evaluate, inference, pictures, report, train
from lace_lora.config import Config
from lace_lora.demo.draw import lace
from lace_lora.run_folder import RunFolder

# Prompts in words of lace, the token put in front; none of them is a caption of a training picture.
LACE_PROMPTS = (
    "white rosette on a black ground",
    "cream border on a navy ground",
    "white mesh on a dark red ground",
    "cream leaves on a green ground",
    "white scallops on a brown ground",
    "cream doily on a purple ground",
)
# Plain cloth, without the token: it must stay plain.
PLAIN_PROMPTS = (
    "red stripes on a white ground",
    "yellow dots on a blue ground",
    "green zigzag on a cream ground",
    "pink hearts on a grey ground",
    "blue checks on a white ground",
    "orange star on a black ground",
)
SEEDS = (1001, 1002, 1003, 1004)
UNSEEN_SEED, UNSEEN_COUNT = 990_000, 60  # lace drawn with other numbers than the training pictures
HALF = 0.5  # the distance to unseen lace must fall to this part of its value, or lower

Say = Callable[[str], None]
Drawn = dict[str, list[list[Image.Image]]]  # "base" and "lora": for each seed, one picture a prompt


def run(config: Config, say: Say = print) -> Path:
    """Check, annotate, train, generate, measure, report; return the report's path. Called again, it goes on."""
    began = time.perf_counter()
    config = config.model_copy(update={"preset": "demo"})

    # The pictures.
    settings = estimate.prepare(config, say=say).config
    folder = RunFolder.of(settings)
    checked = data_utils.check_images(settings.images_dir, settings.image_types, int(settings.resolution))
    say(checked.summary())

    # The whole job.
    adapter = train.run(config, say=say)
    if not adapter.is_complete:
        return folder.root  # stopped by the person: the sentence is said, and the next call goes on
    designs = inference.run(config, say=say)
    if not designs.is_complete:
        return folder.root

    # What was learnt.
    say("Measuring what was learnt, on lace that was never shown …")
    scores = measure(settings, designs, say)
    checkpoint.write_json(folder.scores, scores)
    for score in scores["scores"]:
        spread = "" if score["spread"] is None else f" ± {score['spread']:.2f}"
        say(f"{score['name']:<46}{score['value']:>6.2f}{spread}")
    say(scores["verdict"])
    page = report.write(folder)
    say(f"{len(designs)} designs in {designs[0].path.parent}, in {(time.perf_counter() - began) / 60:.1f} min.")
    say(f"Open {page} to see everything on one page.")
    return page


def measure(settings: Config, designs: Sequence[inference.Generation], say: Say) -> dict[str, Any]:
    """Scores of the run as scores.json holds them; writes the strip of base against LoRA beside them."""
    unseen = [lace(UNSEEN_SEED + number, int(settings.resolution))[0] for number in range(UNSEEN_COUNT)]
    token = [f"{settings.instance_prompt} {prompt}" for prompt in LACE_PROMPTS]
    with_token = _both(settings, token)
    without = _both(settings, [f"a photo of {prompt}" for prompt in PLAIN_PROMPTS])
    _strip(settings, with_token, without)

    before, after = (_distance(with_token[who], unseen) for who in ("base", "lora"))
    plain_before, plain_after = (_distance(without[who], unseen) for who in ("base", "lora"))
    refined = _sharpness(designs, unseen)
    scores = [
        _entry("lace prompt, base model: distance to lace", before, "0 is the style of lace that was never shown"),
        _entry("lace prompt, with your LoRA", after, "smaller is nearer to lace; it should be half or less"),
        _entry("plain prompt, base model: distance to lace", plain_before, "plain cloth is far from lace"),
        _entry("plain prompt, with your LoRA", plain_after, "it should stay far: only the token calls the style"),
        *refined,
    ]
    fell = before.value - after.value
    learnt = after.value <= HALF * before.value and fell > max(before.spread, after.spread)
    verdict = f"The distance to unseen lace {'fell' if fell > 0 else 'rose'} from {before} to {after}: " + (
        "the style was learnt." if learnt else "not by half, so the style was not learnt well. Train longer."
    )
    return {"kind": "weight-free style statistics", "seeds": len(SEEDS), "scores": scores, "verdict": verdict}


def _both(settings: Config, prompts: Sequence[str]) -> Drawn:
    """Every prompt at every seed, by the base model and with the LoRA."""
    pairs = inference.compare_all(settings, prompts, SEEDS, say=_quietly)
    return {
        who: [[pair[side][place] for pair in pairs] for place in range(len(SEEDS))]
        for side, who in enumerate(("base", "lora"))
    }


def _distance(by_seed: list[list[Image.Image]], unseen: list[Image.Image]) -> evaluate.Score:
    return evaluate.score(evaluate.style_distance(drawn, unseen) for drawn in by_seed)


def _sharpness(designs: Sequence[inference.Generation], unseen: list[Image.Image]) -> list[dict[str, Any]]:
    """How far the designs' edge energy lies from drawn lace, before and after the refiner; nothing without one."""
    both = [(_open(design.base), _open(design.refined)) for design in designs if design.refined]
    if not both:
        return []
    names = ("edge energy against lace, before the refiner", "edge energy against lace, refined")
    gaps = [evaluate.edge_energy_gap([pair[side] for pair in both], unseen) for side in (0, 1)]
    means = "0 is as crisp as drawn lace; the refiner should come nearer"
    return [_entry(name, evaluate.Score(gap, 0.0, 1), means) for name, gap in zip(names, gaps, strict=True)]


def _strip(settings: Config, with_token: Drawn, without: Drawn) -> None:
    """The first seed of every prompt: base above LoRA, lace prompts on the left and plain ones on the right."""
    rows = [with_token[who][0] + without[who][0] for who in ("base", "lora")]
    image = pictures.strip(rows, ["base model", "with LoRA"], thumb_px=144)
    checkpoint.write_file(RunFolder.of(settings).strip, lambda path: image.save(path, "PNG"))


def _entry(name: str, score: evaluate.Score, means: str) -> dict[str, Any]:
    return {"name": name, "value": score.value, "spread": score.spread if score.count > 1 else None, "means": means}


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _quietly(line: str) -> None:
    """Measuring draws two hundred pictures; nobody wants a line for each."""
