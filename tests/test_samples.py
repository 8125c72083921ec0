"""Sample pictures while training: the same prompts and seeds, one row a step, and a film strip (L14)."""

from pathlib import Path

import numpy
import torch
from PIL import Image

from lace_lora import parts, samples, stages, train
from lace_lora.config import Config
from lace_lora.run_folder import RunFolder
from tests.conftest import read_pixels
from tests.training import parts_and_pictures, quietly, stop_after

WISH = {
    "sample_every": 4,
    "num_inference_steps": 3,
    "max_train_steps": 8,
    "prompts": ("a <myspecialstyle> star", "a <myspecialstyle> leaf"),
}


def test_rows_are_drawn_from_step_0_on_and_stand_on_the_film_strip(settings: Config) -> None:
    changed = settings.model_copy(update=WISH)
    seen: list[train.Step] = []
    train.run(changed, say=quietly, show=seen.append)
    folder = RunFolder.of(changed)
    drawn = sorted(path.relative_to(folder.samples).as_posix() for path in folder.samples.rglob("sample_*.png"))
    assert drawn == [f"step-{step:06d}/sample_{number:02d}.png" for step in (0, 4, 8) for number in (0, 1)]
    assert [step.number for step in seen if step.samples] == [4, 8]
    with Image.open(folder.film_strip) as strip:
        assert strip.width > 2 * 64 and strip.height > 3 * 64


def test_the_row_of_step_0_is_what_the_base_model_draws(settings: Config, tiny_sdxl: Path) -> None:
    """The LoRA adds nothing yet: the same pictures as the stages draw of the base alone."""
    changed = settings.model_copy(update=WISH | {"max_train_steps": 1})
    train.run(changed, say=quietly)
    wanted = samples.prepare(changed, torch.float32, "cpu")
    assert wanted is not None
    alone = stages.draw_plain(
        str(tiny_sdxl), changed.prompts, [batch.seeds[0] for batch in wanted.batches], 64, 64,
        steps=3, guidance_scale=changed.guidance_scale, negative_prompt=changed.negative_prompt,
        dtype=torch.float32, device="cpu", say=quietly,
    )  # fmt: skip
    for number, picture in enumerate(alone):
        assert numpy.array_equal(read_pixels(RunFolder.of(changed).sample(0, number)), numpy.asarray(picture))


def test_drawing_samples_changes_nothing_of_the_training(settings: Config) -> None:
    plain, drawing = settings.model_copy(update=WISH | {"sample_every": 0}), settings.model_copy(update=WISH)
    first = train.run(plain.model_copy(update={"run_name": "plain"}), say=quietly)
    second = train.run(drawing.model_copy(update={"run_name": "drawing"}), say=quietly, show=stop_after(5))
    second = train.run(drawing.model_copy(update={"run_name": "drawing"}), say=quietly)
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)


def test_trained_text_encoders_read_the_prompts_as_they_are_now(settings: Config) -> None:
    changed = settings.model_copy(update=WISH | {"learn_concept_token": True})
    made, _ = parts_and_pictures(changed)
    wanted = samples.prepare(changed, torch.float32, "cpu")
    assert wanted is not None and not wanted.words
    folder = RunFolder.of(changed).create()
    samples.draw(made, wanted, changed, folder, 0)
    with torch.no_grad():
        for name, master in made.masters.items():
            if name.endswith(".concept_token"):
                master.add_(1.0)
    parts.publish(made)
    samples.draw(made, wanted, changed, folder, 4)
    assert not numpy.array_equal(read_pixels(folder.sample(0, 0)), read_pixels(folder.sample(4, 0)))
