"""The names of what is kept in the cache: by content, never by the folder or the name of a file."""

import hashlib
from functools import lru_cache

from PIL import Image

from lace_lora import near_duplicates
from lace_lora.cuts import Cut
from lace_lora.families import Family, folders, vae
from lace_lora.families.quiet import quiet

with quiet():
    import torch


def model_keys(family: Family, model: str, vae_model: str | None, dtype: torch.dtype) -> tuple[str, str]:
    """What names the VAE, and what names the text encoders and their precision: their contents, never their folder."""
    lines = folders.identity(model).splitlines()
    encoder = vae.identity(vae_model) if vae_model else "\n".join(one for one in lines if one.startswith("vae/"))
    text = "\n".join(one for one in lines if not one.startswith("vae/"))
    vae_key, text_key = (f"{family.FAMILY}-{_short_digest(one)}" for one in (encoder, text))
    return vae_key, f"{text_key}-{str(dtype).removeprefix('torch.')}"


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def latent_key(digest: str, cut: Cut, vae_key: str) -> str:
    """Of the latents of one cut of a picture."""
    place = "-".join(str(number) for number in (*cut.resized_hw, *cut.crop_top_left, *cut.target_hw))
    turned = f"-turned{90 * cut.quarter_turns}" if cut.quarter_turns else ""
    return f"latents/{vae_key}/{digest}/{place}{turned}{'-flipped' if cut.is_flipped else ''}"


def text_keys(caption: str, text_key: str) -> tuple[str, str]:
    """Of a caption's text and its pooled text."""
    digest = hashlib.sha256(caption.encode()).hexdigest()
    return f"text/{text_key}/{digest}", f"pooled/{text_key}/{digest}"


def size_key(digest: str) -> str:
    """Of a picture's width and height."""
    return f"size/{digest}"


def print_key(digest: str) -> str:
    """Of what a photograph is compared by."""
    return f"fingerprint/{_fingerprint_kind()}/{digest}"


@lru_cache(maxsize=1)
def _fingerprint_kind() -> str:
    """Names how fingerprints are made, by that of a drawn picture: those made otherwise are never compared."""
    wedge = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    return hashlib.sha256(near_duplicates.fingerprint(wedge).tobytes()).hexdigest()[:8]
