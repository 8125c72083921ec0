"""The demo: the whole job on the miniature model, then what was learnt, measured on lace that it never saw."""

import time
from collections.abc import Callable
from pathlib import Path

from lace_lora import data_utils, estimate, evaluate, inference, train
from lace_lora.config import Config
from lace_lora.run_folder import RunFolder

Say = Callable[[str], None]


def run(config: Config, say: Say = print) -> Path:
    """Check, annotate, train, generate, evaluate, report; return the report's path. Called again, it goes on.

    Stopped by the person, it returns the run's folder instead.
    """
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
        return folder.root  # the sentence is said, and the next call goes on
    designs = inference.run(config, say=say)
    if not designs.is_complete:
        return folder.root

    # What was learnt.
    say("Measuring what was learnt, on lace that was never shown …")
    found = evaluate.run(config, say=_quietly)
    say(str(found))
    if not found.is_complete:
        return folder.root
    say(f"{len(designs)} designs in {designs[0].path.parent}, in {(time.perf_counter() - began) / 60:.1f} min.")
    say(f"Open {folder.report} to see everything on one page.")
    return folder.report


def _quietly(line: str) -> None:
    """Measuring draws nearly a hundred pictures; nobody wants a line for each."""
