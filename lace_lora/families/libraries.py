"""Classes of the model libraries by their names, loaded when they are first wanted.

Loading UNets, pipelines and what they bring takes seconds, and who reads captions, names or files needs none of it.
"""

from importlib import import_module
from typing import Any

from lace_lora.families.quiet import quiet


def of_diffusers(name: str) -> Any:
    """A class of diffusers, such as UNet2DConditionModel."""
    with quiet():
        return getattr(import_module("diffusers"), name)


def of_transformers(name: str) -> Any:
    """A class of transformers, such as CLIPTextModel."""
    with quiet():
        return getattr(import_module("transformers"), name)
