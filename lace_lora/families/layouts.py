"""Of which family a model is, and what its configs say of its sizes. Reads JSON only, loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

from lace_lora.errors import ModelError
from lace_lora.families.folders import DENOISERS, model_folder, part_config, parts_of

# What can be trained and drawn with, as a person calls it.
FAMILIES = {
    "sdxl": "Stable Diffusion XL",
    "sd15": "Stable Diffusion 1.5 or 2",
    "sd35": "Stable Diffusion 3.5",
    "flux": "Flux.1",
}
# Denoisers that are no UNet, by the class that their configs name.
_TRANSFORMERS = {"SD3Transformer2DModel": "sd35", "FluxTransformer2DModel": "flux"}


@dataclass(frozen=True)
class Layout:
    """What the configs of a model's folder say: enough to plan, cut pictures and scale latents with no model loaded."""

    family: str
    denoiser: str  # the part that learns: unet or transformer
    latent_channels: int
    downscale: int  # px a latent cell: 8 for SDXL
    pixel_step: int  # both sides of a picture must be a multiple of this: 32 for SDXL (VAE times the UNet's halvings)
    side_px: int  # the side of the square that the model was trained on: 1024 for SDXL
    text_width: int
    prediction_type: str  # epsilon, v_prediction, or flow
    scaling_factor: float
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    size_numbers: int  # 6 for SDXL's base; 5 for its refiner, which has an aesthetic score; 0 where none are told
    layers_per_block: int  # of a UNet; 0 for a transformer
    shift_factor: float = 0.0  # taken off latents before they are scaled
    largest_px: int = 0  # a side; 0 where its places have no end

    @property
    def side_step(self) -> int:
        """Sides of a picture to be drawn are multiples of this, px; a UNet copes with half cells."""
        return self.downscale if self.denoiser == "unet" else self.pixel_step

    @property
    def is_refiner(self) -> bool:
        """True for an SDXL refiner, which has the second text encoder only."""
        return self.size_numbers == 5


def family_of(model: str) -> str:
    """The name of a model's family, told by its folder.

    Raises ModelError for a model that is not here, and for one of another kind, with the kinds that there are.
    """
    folder = Path(model_folder(model))
    part, config = _denoiser(model, folder)
    kind = str(config.get("_class_name", ""))
    if part == "transformer" and kind in _TRANSFORMERS:
        return _TRANSFORMERS[kind]
    if part == "unet" and config.get("addition_embed_type") == "text_time":
        return "sdxl"
    if part == "unet" and _is_plain(config) and "text_encoder_2" not in parts_of(folder):
        return "sd15"
    kinds = ", ".join(FAMILIES.values())
    raise ModelError(f"{model} cannot be used: its {part} is {_told(config)}. Choose a base model of: {kinds}.")


def layout(model: str) -> Layout:
    """What the configs of a model's folder say about its sizes. Raises ModelError as family_of does."""
    family, folder = family_of(model), Path(model_folder(model))
    try:
        return _LAYOUTS[family](model, folder)
    except KeyError as error:
        raise ModelError(f"{model}: its configs lack {error}. Fetch the model again.") from error


# -- inside --


def _denoiser(model: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The part that learns, and its config."""
    parts = parts_of(folder)
    part = next((one for one in DENOISERS if one in parts), None)
    if part is None:
        raise ModelError(
            f"{model} has neither a UNet nor a transformer, so it draws no pictures. Choose another model."
        )
    return part, part_config(folder, part)


def _is_plain(unet: Mapping[str, Any]) -> bool:
    """Told of text alone, and given nothing but the latents: not a UNet for inpainting, depth or upscaling."""
    more = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "num_class_embeds")
    return (
        isinstance(unet.get("cross_attention_dim"), int)
        and unet.get("in_channels", 4) == unet.get("out_channels", 4)
        and not any(unet.get(name) for name in more)
    )


def _told(config: Mapping[str, Any]) -> str:
    kind = str(config.get("_class_name", "of an unknown class"))
    channels = (config.get("in_channels"), config.get("out_channels"))
    if kind == "UNet2DConditionModel" and channels[0] != channels[1]:
        return f"a {kind} with {channels[0]} channels in and {channels[1]} out, made for inpainting or the like"
    return f"a {kind}"


def _sdxl(model: str, folder: Path) -> Layout:
    unet = part_config(folder, "unet")
    pooled = int(part_config(folder, "text_encoder_2")["projection_dim"])
    count = (unet["projection_class_embeddings_input_dim"] - pooled) / unet["addition_time_embed_dim"]
    if count not in (5, 6):
        raise ModelError(
            f"{model}: its UNet and its second text encoder do not belong together "
            f"({count:g} size numbers instead of 6). Fetch the model again."
        )
    return _of_unet("sdxl", folder, unet, size_numbers=int(count), usual_cells=128)


def _sd15(model: str, folder: Path) -> Layout:
    return _of_unet("sd15", folder, part_config(folder, "unet"), size_numbers=0, usual_cells=64)


def _of_unet(family: str, folder: Path, unet: Mapping[str, Any], size_numbers: int, usual_cells: int) -> Layout:
    """What all Stable Diffusions with a UNet say in the same places."""
    vae, steps = part_config(folder, "vae"), part_config(folder, "scheduler")
    downscale = 2 ** (len(vae["block_out_channels"]) - 1)
    return Layout(
        family=family,
        denoiser="unet",
        latent_channels=vae["latent_channels"],
        downscale=downscale,
        pixel_step=lcm(8, downscale * 2 ** (len(unet["block_out_channels"]) - 1)),
        side_px=int(unet.get("sample_size") or usual_cells) * downscale,
        text_width=unet["cross_attention_dim"],
        prediction_type=steps.get("prediction_type", "epsilon"),
        scaling_factor=vae.get("scaling_factor", 0.18215),
        latents_mean=_plain(vae.get("latents_mean")),
        latents_std=_plain(vae.get("latents_std")),
        size_numbers=size_numbers,
        layers_per_block=unet["layers_per_block"],
    )


def _plain(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _sd35(model: str, folder: Path) -> Layout:
    return _of_transformer("sd35", model, folder, channels_a_cell=1)


def _flux(model: str, folder: Path) -> Layout:
    return _of_transformer("flux", model, folder, channels_a_cell=4)  # it is given cells 2 by 2


def _of_transformer(family: str, model: str, folder: Path, channels_a_cell: int) -> Layout:
    """What SD 3.5 and Flux say in the same places."""
    transformer, vae = part_config(folder, "transformer"), part_config(folder, "vae")
    downscale = 2 ** (len(vae["block_out_channels"]) - 1)
    given, wanted = transformer["in_channels"], channels_a_cell * vae["latent_channels"]
    if given != wanted:
        raise ModelError(
            f"{model} cannot be used: its transformer is given {given} channels, not the {wanted} of its latents "
            "alone, so it is made for inpainting or the like. Choose a model that draws from words."
        )
    return Layout(
        family=family,
        denoiser="transformer",
        latent_channels=vae["latent_channels"],
        downscale=downscale,
        pixel_step=2 * downscale,
        side_px=int(vae.get("sample_size") or 1024),
        text_width=transformer["joint_attention_dim"],
        prediction_type="flow",
        scaling_factor=vae["scaling_factor"],
        latents_mean=None,
        latents_std=None,
        size_numbers=0,
        layers_per_block=0,
        shift_factor=vae.get("shift_factor") or 0.0,
        largest_px=2 * downscale * int(transformer.get("pos_embed_max_size") or 0),
    )


_LAYOUTS: dict[str, Callable[[str, Path], Layout]] = {"sdxl": _sdxl, "sd15": _sd15, "sd35": _sd35, "flux": _flux}
