"""All that differs between base models, one file each, the same few plain functions in every file.

What the functions are stands in seam; words that the files share (B batch, C latent channels, H,W latent cells, L
tokens, D text width, P pooled width, S size numbers) are explained at the top of each. A new base model is a new file
with the functions of sdxl.py, its layout and what it cannot do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from lace_lora.families.layouts import FAMILIES as FAMILIES
from lace_lora.families.layouts import family_of as family_of
from lace_lora.families.seam import Family as Family
from lace_lora.families.seam import Reader as Reader

if TYPE_CHECKING:
    from lace_lora.families import flux, sd15, sd35, sdxl

    _SAME_FUNCTIONS: tuple[Family, ...] = (sdxl, sd15, sd35, flux)


def of(model: str) -> Family:
    """The functions for a model, told by its folder. Loads torch.

    Raises ModelError for a model that is not here, and for one that none of the families is.
    """
    return named(family_of(model))


def reader(model: str) -> Reader:
    """What reads captions for a model. Raises ModelError as `of` does."""
    family = of(model)
    return Reader(family, family.load_tokenizers(model))


def named(family: str) -> Family:
    """The functions of a family by its name, such as the one in an adapter's facts."""
    return cast(Family, import_module(f"{__name__}.{family}"))
