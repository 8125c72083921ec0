"""One place that keeps libraries from talking over our own messages while they are imported or load a model."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

# They tell of missing torchvision and kernels, of deprecated calls of each other, and draw a bar for every file.
_TALKERS = ("transformers", "diffusers", "bitsandbytes", "huggingface_hub", "peft", "accelerate")
_DRAWERS = ("transformers.utils.logging", "diffusers.utils.logging")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence notes, warnings and bars of the model libraries inside the block; their errors still show."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), _environment(), _no_bars():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """transformers and the hub read their own levels from the environment when they are first imported."""
    names = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    added = {name for name in names if name not in os.environ}
    os.environ.update({name: names[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Switch off the bars of what is imported already, and put them back as they were."""
    drawing = [sys.modules[name] for name in _DRAWERS if name in sys.modules]
    drawing = [module for module in drawing if module.is_progress_bar_enabled()]
    for module in drawing:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in drawing:
            module.enable_progress_bar()
