"""The miniature SDXL that ships with the package, and the pictures it was made from.

A whole SDXL in small: base and refiner in diffusers' folder layout, pre-trained on plain textile patterns drawn by
program (`draw.plain`) and ready to learn lace (`draw.lace`) in a minute on a laptop. `build` makes it from a seed.
Importing this loads no torch.
"""

from pathlib import Path

# The picture side the model was trained at, in px; it also draws at 64.
SIDE: int = 96
# Pictures of lace that are drawn for it to learn.
PICTURES: int = 120

# The names by which settings and pictures' metadata speak of the two models, wherever the package lies.
MODEL = "lace-demo"
REFINER = "lace-demo-refiner"

_MODEL = Path(__file__).parent / "model"


def base_dir() -> Path:
    """Folder of the base model, for StableDiffusionXLPipeline.from_pretrained."""
    return _MODEL / "base"


def refiner_dir() -> Path:
    """Folder of the refiner, for StableDiffusionXLImg2ImgPipeline.from_pretrained."""
    return _MODEL / "refiner"


def locate(model: str) -> str:
    """The folder of a model that ships with the package (lace-demo, lace-demo-refiner); any other name as it is."""
    return {MODEL: str(base_dir()), REFINER: str(refiner_dir())}.get(model, model)
