"""Giving memory back once a model is let go."""

import gc

from lace_lora.families.quiet import quiet

with quiet():
    import torch


def give_back_memory() -> None:
    """Let go of what deleted models held, so that the next one finds room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
