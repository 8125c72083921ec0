"""Another VAE than the base model's own, such as one that is safe in fp16: where it lies, and loading it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lace_lora.errors import ModelError
from lace_lora.families import folders
from lace_lora.families.layouts import Layout
from lace_lora.families.libraries import of_diffusers
from lace_lora.families.loading import straight_to
from lace_lora.families.quiet import quiet
from lace_lora.machine import is_out_of_memory

with quiet():
    import torch
    from safetensors import SafetensorError


def folder_of(name: str) -> Path:
    """The folder that holds a VAE's config and weights: it itself, or the vae of a whole model.

    name  a folder, or a Hugging Face name, of a VAE alone or of a whole model
    Raises ModelError where there is none.
    """
    path = Path(name).expanduser()
    if not path.exists() and (path.is_absolute() or name.startswith(".") or name.count("/") != 1):
        raise ModelError(
            f"No VAE folder {name}. Give vae_model an existing folder, or a Hugging Face name such as "
            "madebyollin/sdxl-vae-fp16-fix, or leave it empty for the base model's own."
        )
    folder = _inside(path) if path.exists() else _inside(_snapshot(name))
    if folder is None:
        raise ModelError(
            f"{name} holds no VAE: a config.json and its .safetensors, side by side or in a folder vae. "
            "Choose another vae_model."
        )
    return folder


def identity(name: str) -> str:
    """A text that differs wherever the VAE does, whatever its folder is called."""
    files = sorted(path for path in folder_of(name).iterdir() if path.suffix in (".json", ".safetensors"))
    return "\n".join(f"vae/{path.name} {folders._content(path)}" for path in files)


def load(name: str, base: Layout, dtype: torch.dtype, device: str) -> Any:
    """The frozen VAE, in place of the base model's own.

    Raises ModelError where its latents are not of the kind that the base model was trained on.
    """
    folder = folder_of(name)
    variant = folders.weight_variant(folder, wants_half=dtype in (torch.float16, torch.bfloat16))
    try:
        with quiet():
            module, report = of_diffusers("AutoencoderKL").from_pretrained(
                folder, variant=variant, use_safetensors=True, torch_dtype=dtype, output_loading_info=True,
                **straight_to(device),
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"{folder} cannot be loaded ({type(error).__name__}: {reason[0][:160]}). Choose another vae_model."
        ) from error
    if report["missing_keys"] or report.get("mismatched_keys"):
        raise ModelError(f"{folder} does not hold all weights that its config promises. Choose another vae_model.")
    _check_fits(name, module.config, base)
    return module.requires_grad_(False).eval().to(device)


def _check_fits(name: str, config: Mapping[str, Any], base: Layout) -> None:
    """Latents of another scale would be learnt and drawn without a word of complaint, and look washed out or burnt."""
    found = {
        "latent channels": (config["latent_channels"], base.latent_channels),
        "px a latent cell": (2 ** (len(config["block_out_channels"]) - 1), base.downscale),
        "scaling factor": (config["scaling_factor"], base.scaling_factor),
        "shift factor": (config.get("shift_factor") or 0.0, base.shift_factor),
        "latents_mean": (_plain(config.get("latents_mean")), base.latents_mean),
        "latents_std": (_plain(config.get("latents_std")), base.latents_std),
    }
    for what, (own, wanted) in found.items():
        if own != wanted:
            raise ModelError(
                f"The VAE {name} does not fit the base model: {what} {own} instead of {wanted}. Choose one made for "
                "it, or leave vae_model empty."
            )


def _plain(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _inside(root: Path) -> Path | None:
    places = (root, root / "vae")
    return next((one for one in places if (one / "config.json").is_file() and any(one.glob("*.safetensors"))), None)


def _snapshot(name: str) -> Path:
    """A hub VAE's folder in the local cache, fetched if need be: 335 MB."""
    fetch = f"Fetch it on a machine with a network: hf download {name}"
    with quiet():
        from huggingface_hub import constants, snapshot_download

        try:
            here = Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):  # LocalEntryNotFoundError is both; nothing of it is here
            here = Path()
        if here.is_absolute() and _inside(here) is not None:
            return here
        if constants.HF_HUB_OFFLINE:
            raise ModelError(f"{name} is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it. {fetch}")
        others = ["unet/*", "text_encoder*/*", "*.bin"]  # of a whole model only its vae is wanted
        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=others))
        except Exception as error:  # the hub's, httpx's and requests' errors have no common base
            raise ModelError(f"{name} could not be fetched ({type(error).__name__}). {fetch}") from error
