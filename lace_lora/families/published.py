"""How base models are published elsewhere: their licences, their files for ComfyUI, and what the Hub calls their LoRAs.

Written down, not looked up while anything runs: a model's own page has the last word. Loads no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lace_lora.demo import MODEL as DEMO_MODEL


@dataclass(frozen=True)
class Licence:
    """A licence as the Hub abbreviates it; one that it calls other has a name and a page of its own."""

    hub: str
    name: str = ""
    link: str = ""

    def __str__(self) -> str:
        """What a person can look up."""
        return self.name or self.hub


@dataclass(frozen=True)
class Given:
    """What others call a family's LoRA, and which programs read its file beside ComfyUI."""

    tags: tuple[str, ...]
    programs: str = "A1111, Forge and the like"


UNKNOWN = Licence("unknown")
_OPENRAIL = Licence("creativeml-openrail-m")
_PAGE = "https://huggingface.co/{}/blob/main/LICENSE.md"


def _own(name: str, *models: str) -> dict[str, Licence]:
    return {model: Licence("other", name, _PAGE.format(model)) for model in models}


LICENCES: Mapping[str, Licence] = {
    "stabilityai/stable-diffusion-xl-base-1.0": Licence("openrail++"),
    "stabilityai/stable-diffusion-xl-refiner-1.0": Licence("openrail++"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _OPENRAIL,
    "runwayml/stable-diffusion-v1-5": _OPENRAIL,
    "CompVis/stable-diffusion-v1-4": _OPENRAIL,
    **_own(
        "stabilityai-ai-community",
        "stabilityai/stable-diffusion-3.5-medium",
        "stabilityai/stable-diffusion-3.5-large",
        "stabilityai/stable-diffusion-3.5-large-turbo",
    ),
    **_own("flux-1-dev-non-commercial-license", "black-forest-labs/FLUX.1-dev"),
    "black-forest-labs/FLUX.1-schnell": Licence("apache-2.0"),
    DEMO_MODEL: Licence("apache-2.0"),
}
# Single files with all text encoders and the VAE, as CheckpointLoaderSimple takes them.
CHECKPOINTS: Mapping[str, str] = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sd_xl_base_1.0.safetensors",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "sd_xl_refiner_1.0.safetensors",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "v1-5-pruned-emaonly.safetensors",
    "runwayml/stable-diffusion-v1-5": "v1-5-pruned-emaonly.safetensors",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5_large_fp8_scaled.safetensors",
    "black-forest-labs/FLUX.1-dev": "flux1-dev-fp8.safetensors",
    "black-forest-labs/FLUX.1-schnell": "flux1-schnell-fp8.safetensors",
}
GIVEN: Mapping[str, Given] = {
    "sdxl": Given(("stable-diffusion-xl", "stable-diffusion-xl-diffusers")),
    "sd15": Given(("stable-diffusion", "stable-diffusion-diffusers")),
    "sd35": Given(("sd3", "sd3-diffusers"), "Forge and the like"),
    "flux": Given(("flux", "flux-diffusers"), "Forge and the like"),
}
