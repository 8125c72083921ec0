"""Between latents and pictures: the VAE's two ways, one picture at a time, in numbers that stay finite.

SDXL's own VAE overflows in fp16 and says so in its config (force_upcast): it always runs in fp32. One that says it need
not, such as the fp16-fixed one, decodes in the sheet's number format, and a picture that fails in it is done again.

B batch · C latent channels (4), or 3 colours · H,W latent cells (px/8), or px
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lace_lora import families, repeats
from lace_lora.cloth import Repeat
from lace_lora.families import folders
from lace_lora.families import vae as other_vae
from lace_lora.families.layouts import layout
from lace_lora.mishaps import check_finite, out_of_memory
from lace_lora.shelf import Lent, Shelf, Wanted


def decode(
    model: str,
    work: Iterable[tuple[str, Tensor]],
    *,
    device: str,
    dtype: torch.dtype = torch.float32,
    vae_model: str | None = None,
    repeat: Repeat = "none",
    shelf: Shelf | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Image.Image]:
    """Latents to pictures, one at a time.

    work       a name for each picture, used when it fails, and its latents CHW
    dtype      the sheet's; where the VAE is not safe in it, fp32 is used
    vae_model  another VAE than the model's own
    repeat     how the pictures join themselves at their edges
    shelf      where the VAE is borrowed; without one it is loaded, and let go at the end

    A picture that half precision leaves not finite, or all of one colour, is decoded again in fp32, and that is said
    once. Each picture is judged alone, so that its bytes depend on no other: a sheet may be finished later, or shared.

    Where memory runs out, what else is on the shelf is let go and the picture tried once more, and that is all: the
    VAE's slicing shares out a batch, and one picture is none; its tiles have seams; half precision is what fails.

    Raises MachineError naming a picture that is not finite in fp32; nothing is ever replaced by black.
    """
    shelf = shelf or Shelf(0)
    family, sizes = families.of(model), layout(model)
    first = torch.float32 if needs_fp32(model, vae_model) else dtype
    with out_of_memory("turning latents into pictures"), ExitStack() as borrowed:
        vaes: dict[torch.dtype, Lent] = {}

        def decoded(latents_BCHW: Tensor, number_format: torch.dtype) -> Tensor:
            if number_format not in vaes:
                vaes[number_format] = borrowed.enter_context(shelf.lent(_vae(model, vae_model, number_format, device)))
                borrowed.enter_context(repeats.padded(vaes[number_format].model, repeat))
            return vaes[number_format].compute(_decoded, latents_BCHW)

        was_said = False
        for name, latents_CHW in work:
            latents_BCHW = family.unscale_latents(latents_CHW[None].to(device).float(), sizes)
            pixels_BCHW = decoded(latents_BCHW, first)
            if first != torch.float32 and not _is_picture(pixels_BCHW[0]):
                if not was_said:
                    say(f"! {name} is NaN or one colour in {_name(first)}: decoded again in fp32, like all such.")
                was_said = True
                pixels_BCHW = decoded(latents_BCHW, torch.float32)
            check_finite(pixels_BCHW, [name], "decoding")
            yield _picture(pixels_BCHW[0])


def encode_start(
    picture: Image.Image,
    model: str,
    width: int,
    height: int,
    *,
    device: str,
    vae_model: str | None = None,
    repeat: Repeat = "none",
    shelf: Shelf | None = None,
) -> Tensor:
    """Latents CHW on the CPU, in the denoiser's units, of a sketch or photograph to begin with; computed in fp32.

    picture  upright RGB; scaled to cover width × height px and cut to it in the middle
    shelf    where the VAE is borrowed; without one it is loaded, and let go at the end
    """
    shelf, family = shelf or Shelf(0), families.of(model)
    fitted = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    pixels_HWC = torch.from_numpy(np.array(fitted)).float() / 127.5 - 1
    pixels_BCHW = pixels_HWC.permute(2, 0, 1)[None].to(device)
    with (
        out_of_memory("reading the picture to begin with"),
        shelf.lent(_vae(model, vae_model, torch.float32, device)) as vae,
        repeats.padded(vae.model, repeat),
    ):
        mean_BCHW, _ = vae.compute(family.encode_images, pixels_BCHW)
        check_finite(mean_BCHW, ["The picture to begin with"], "encoding")
        return family.scale_latents(mean_BCHW, layout(model))[0].cpu()


def needs_fp32(model: str, vae_model: str | None = None) -> bool:
    """Whether a VAE's own config says that it overflows in half precision; one that says nothing is SDXL's own."""
    folder = _folder(model, vae_model)
    return bool(folders.part_config(folder.parent, folder.name).get("force_upcast", True))


# -- inside --


def _folder(model: str, vae_model: str | None) -> Path:
    return other_vae.folder_of(vae_model) if vae_model else Path(folders.model_folder(model)) / "vae"


def _vae(model: str, vae_model: str | None, dtype: torch.dtype, device: str) -> Wanted:
    """The VAE as a shelf knows it: one that was found to fit this base's latents may not fit another's."""
    sizes = layout(model)

    def load() -> Any:
        if vae_model:
            return other_vae.load(vae_model, sizes, dtype, device)
        return families.of(model).load_vae(model, dtype, device)

    def key() -> tuple[object, ...]:
        content = other_vae.identity(vae_model) if vae_model else folders.identity(model, ["vae"])
        return "vae", content, dtype, device, sizes

    return Wanted(load, key, lambda: folders.weight_bytes([_folder(model, vae_model)], dtype.itemsize))


@torch.no_grad()
def _decoded(vae: Any, latents_BCHW: Tensor) -> Tensor:
    """Pixels BCHW, float32, about -1..1."""
    pixels_BCHW: Tensor = vae.decode(latents_BCHW.to(vae.dtype), return_dict=False)[0]
    return pixels_BCHW.float()


def _is_picture(pixels_CHW: Tensor) -> bool:
    """Whether all is finite and not of one colour."""
    if not bool(torch.isfinite(pixels_CHW).all()):
        return False
    return bool(np.ptp(np.asarray(_picture(pixels_CHW)), axis=(0, 1)).any())


def _picture(pixels_CHW: Tensor) -> Image.Image:
    """From -1..1 to a picture of bytes."""
    pixels_HWC = (pixels_CHW / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((pixels_HWC * 255).round().astype(np.uint8))


def _name(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, str(dtype))
