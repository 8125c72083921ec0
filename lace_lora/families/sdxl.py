"""Stable Diffusion XL: load its parts one at a time, encode pictures and captions, noise, target, predict.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
S size numbers (6 for the base, 5 for the refiner). Widths come from the model's configs, never from here.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lace_lora.errors import ModelError
from lace_lora.families.folders import Layout as Layout
from lace_lora.families.folders import layout as layout
from lace_lora.families.folders import model_folder as model_folder
from lace_lora.families.folders import part_config, weight_variant
from lace_lora.families.quiet import quiet
from lace_lora.machine import is_out_of_memory

with quiet():
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.models import Transformer2DModel
    from safetensors import SafetensorError
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


FAMILY = "sdxl"
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
_CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
_TARGETS = {
    "attention": _ATTENTION,
    "attention+ff": [*_ATTENTION, *_FEED_FORWARD],
    "attention+ff+conv": [*_ATTENTION, *_FEED_FORWARD, *_CONVOLUTIONS],
    "up_blocks": [r"up_blocks\..*\.(to_q|to_k|to_v|to_out\.0)"],  # a pattern for the whole name
}


@dataclass(frozen=True)
class TextParts:
    """Tokenizers and text encoders, in the order in which outputs are joined; a refiner has only the second pair."""

    tokenizers: tuple[Any, ...]
    encoders: tuple[Any, ...]


@dataclass(frozen=True)
class Encoded:
    """Captions as the UNet reads them."""

    text_BLD: Tensor
    pooled_BP: Tensor


# -- parts, one at a time: all of SDXL in fp32 is 12.9 GiB, more than Colab's memory --


def load_unet(model: str, dtype: torch.dtype, device: str) -> Any:
    """The frozen UNet in the given dtype. Raises ModelError where it is missing or damaged."""
    return _load(UNet2DConditionModel, model, "unet", {"torch_dtype": dtype}, dtype).to(device)


def empty_unet(model: str) -> Any:
    """The UNet's layers without weights, on the meta device: for filling from elsewhere, and for counting."""
    config = part_config(model_folder(model), "unet")
    with quiet(), torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def load_vae(model: str, dtype: torch.dtype, device: str) -> Any:
    """The frozen VAE. SDXL's own overflows to NaN in fp16: ask for float32."""
    return _load(AutoencoderKL, model, "vae", {"torch_dtype": dtype}, dtype).to(device)


def load_text(model: str, dtype: torch.dtype, device: str) -> TextParts:
    """Both tokenizers and text encoders of a base model; of a refiner the second pair, the only one it has."""
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    if layout(model).is_refiner:
        del kinds["text_encoder"]
    tokenizers = load_tokenizers(model)
    encoders = tuple(_load(kind, model, part, {"dtype": dtype}, dtype).to(device) for part, kind in kinds.items())
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        _set_end_token(encoder, tokenizer.eos_token_id)
    return TextParts(tokenizers, encoders)


def load_tokenizers(model: str) -> tuple[Any, ...]:
    """The tokenizers alone: small and quick, for counting tokens before anything is loaded."""
    folder = Path(model_folder(model))
    parts = ("tokenizer_2",) if layout(model).is_refiner else ("tokenizer", "tokenizer_2")
    try:
        with quiet():
            return tuple(CLIPTokenizer.from_pretrained(folder / part) for part in parts)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"The tokenizers in {folder} cannot be read ({_first_line(error)}). Fetch the model again."
        ) from error


def training_scheduler(model: str) -> DDPMScheduler:
    """The forward process that the model was trained with, taken from the scheduler that it ships.

    A sampler such as Euler is never used for noising: its add_noise gives a standard deviation of 8.5 at step 900.
    """
    shipped = part_config(model_folder(model), "scheduler")
    names = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "rescale_betas_zero_snr",
    )
    values = {name: shipped[name] for name in names if name in shipped}
    kind = values.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"{model} predicts {kind!r}; only epsilon and v_prediction models can be trained here.")
    if kind == "epsilon" and values.get("rescale_betas_zero_snr"):
        raise ModelError(
            f"{model} asks for zero terminal SNR with epsilon prediction: at the last time it would see nothing. "
            "Choose a v-prediction model."
        )
    return DDPMScheduler(**values, clip_sample=False)


def checkpoint_activations(unet: Any, mode: str) -> None:
    """Which activations are computed again in the backward pass instead of kept: none, transformers, or full (all).

    At 1024 px `transformers` saves all but the convolutions' for a third more work; `full` those too, for a bit more.
    """
    if mode == "none":
        unet.disable_gradient_checkpointing()
        return
    unet.enable_gradient_checkpointing()
    if mode == "transformers":
        for module in unet.modules():
            if hasattr(module, "gradient_checkpointing") and not isinstance(module, Transformer2DModel):
                module.gradient_checkpointing = False


def give_back_memory() -> None:
    """Let go of what deleted models held, so that the next one finds room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- encoding --


@torch.no_grad()
def encode_images(vae: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents, both BCHW, float32, not scaled.

    pixels_BCHW  float32, -1..1, sides divisible by the layout's pixel_step
    """
    posterior = vae.encode(pixels_BCHW.to(device=vae.device, dtype=vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.std.float()


@torch.no_grad()
def encode_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """Captions as the pipeline encodes them: penultimate layers of all encoders side by side, pooled by the last one.

    Longer captions are cut at 77 tokens; see words_cut. Tests compare with StableDiffusionXLPipeline.encode_prompt.
    """
    return read_captions(text, captions)


def read_captions(text: TextParts, captions: Sequence[str]) -> Encoded:
    """The same with gradients, for encoders that are trained."""
    hidden_BLd, pooled_BP = [], None
    for tokenizer, encoder in zip(text.tokenizers, text.encoders, strict=True):
        ids_BL = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        output = encoder(ids_BL.to(encoder.device), output_hidden_states=True)
        hidden_BLd.append(output.hidden_states[-2])
        pooled_BP = output[0] if output[0].ndim == 2 else pooled_BP
    if pooled_BP is None:
        raise ModelError("The text encoders give no pooled text: text_encoder_2 must be a CLIPTextModelWithProjection.")
    return Encoded(torch.cat(hidden_BLd, dim=-1), pooled_BP)


def count_tokens(tokenizers: Sequence[Any], caption: str) -> int:
    """How many tokens a caption takes (75 fit), by the tokenizer that needs most."""
    return max(len(_token_ids(tokenizer, caption)) for tokenizer in tokenizers)


def words_cut(tokenizers: Sequence[Any], caption: str) -> str:
    """The end of a caption that the model would never see, or an empty text."""
    cut = ""
    for tokenizer in tokenizers:
        lost = _token_ids(tokenizer, caption)[tokenizer.model_max_length - 2 :]
        text = str(tokenizer.decode(lost)) if lost else ""
        cut = max(cut, text, key=len)
    return cut.strip()


def time_ids(original_hw: tuple[int, int], crop_top_left: tuple[int, int], target_hw: tuple[int, int]) -> Tensor:
    """SDXL's size numbers as float32 [6]: original height, width, crop top, left, target height, width, in px.

    float32 all the way through the sinusoid: bfloat16 would turn 1333 into 1336 and change the embedding (cosine 0.82).
    """
    return torch.tensor([*original_hw, *crop_top_left, *target_hw], dtype=torch.float32)


# -- one training step's mathematics --


def scale_latents(latents_BCHW: Tensor, sizes: Layout) -> Tensor:
    """From the VAE's units to the UNet's."""
    if sizes.latents_mean is not None and sizes.latents_std is not None:
        mean, std = (_per_channel(values, latents_BCHW) for values in (sizes.latents_mean, sizes.latents_std))
        return (latents_BCHW - mean) * sizes.scaling_factor / std
    return latents_BCHW * sizes.scaling_factor


def unscale_latents(latents_BCHW: Tensor, sizes: Layout) -> Tensor:
    """From the UNet's units back to the VAE's."""
    if sizes.latents_mean is not None and sizes.latents_std is not None:
        mean, std = (_per_channel(values, latents_BCHW) for values in (sizes.latents_mean, sizes.latents_std))
        return latents_BCHW * std / sizes.scaling_factor + mean
    return latents_BCHW / sizes.scaling_factor


def add_noise(scheduler: DDPMScheduler, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
    """Mix latents with noise at each image's own time: the forward process of DDPM.

    latents_BCHW  float32, in the UNet's units (scale_latents)
    noise_BCHW    same shape, standard normal
    returns       noisy latents, BCHW
    Source: Ho et al. 2020, eq. 4, https://arxiv.org/abs/2006.11239 (tests compare with DDPMScheduler.add_noise).
    """
    keep, lose = _keep_and_lose(scheduler, timesteps_B, latents_BCHW)
    return keep * latents_BCHW + lose * noise_BCHW


def target(scheduler: DDPMScheduler, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
    """What the UNet should predict, BCHW: the noise, or the velocity.

    Source: Salimans and Ho 2022, appendix D, https://arxiv.org/abs/2202.00512 (tests compare with get_velocity).
    """
    if scheduler.config.prediction_type == "epsilon":
        return noise_BCHW
    keep, lose = _keep_and_lose(scheduler, timesteps_B, latents_BCHW)
    return keep * noise_BCHW - lose * latents_BCHW


def min_snr(scheduler: DDPMScheduler, timesteps_B: Tensor, gamma: float) -> Tensor:
    """Weight of each image's loss, [B]: min(snr, γ)/snr for ε, min(snr, γ)/(snr + 1) for v; ones where gamma is 0.

    Source: Hang et al. 2023, https://arxiv.org/abs/2303.09556; its mean over all times is about 0.917 for ε and γ = 5.
    """
    if gamma == 0:
        return torch.ones(len(timesteps_B), device=timesteps_B.device)
    alphas_B = scheduler.alphas_cumprod.to(timesteps_B.device)[timesteps_B].float()
    snr_B = alphas_B / (1 - alphas_B)
    divisor_B = snr_B if scheduler.config.prediction_type == "epsilon" else snr_B + 1
    return snr_B.clamp(max=gamma) / divisor_B


def predict(
    unet: Any, noisy_BCHW: Tensor, timesteps_B: Tensor, text_BLD: Tensor, pooled_BP: Tensor, time_ids_BS: Tensor
) -> Tensor:
    """The UNet's prediction, BCHW, float32. All but times and size numbers enters in the base weights' dtype."""
    dtype = base_dtype(unet)
    conditions = {"text_embeds": pooled_BP.to(dtype), "time_ids": time_ids_BS.float()}
    prediction_BCHW = unet(
        noisy_BCHW.to(dtype),
        timesteps_B,
        encoder_hidden_states=text_BLD.to(dtype),
        added_cond_kwargs=conditions,
        return_dict=False,
    )[0]
    return torch.as_tensor(prediction_BCHW).float()


def base_dtype(unet: Any) -> torch.dtype:
    """The dtype of the frozen weights, whatever dtype a LoRA in them has."""
    dtype: torch.dtype = unet.conv_in.weight.dtype
    return dtype


def lora_targets(kind: str) -> list[str]:
    """Endings of the module names that get a LoRA, or one pattern: attention has 560 in SDXL's UNet, +ff 700."""
    return list(_TARGETS[kind])


# -- inside --


def _load(kind: Any, model: str, part: str, dtype_argument: dict[str, torch.dtype], dtype: torch.dtype) -> Any:
    """One frozen part. diffusers below 0.40 knows only torch_dtype=, transformers 5 prefers dtype=."""
    folder = Path(model_folder(model)) / part
    variant = weight_variant(folder, wants_half=dtype in (torch.float16, torch.bfloat16))
    try:
        with quiet():
            module, report = kind.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **dtype_argument,
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{folder} cannot be loaded ({_first_line(error)}). "
            "Its files are damaged or of another model; fetch it again."
        ) from error
    lacking = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    if lacking or report.get("mismatched_keys"):
        example = lacking[0] if lacking else str(next(iter(report["mismatched_keys"])))
        raise ModelError(
            f"{folder} does not hold all weights that its config promises (first: {example}). Fetch the model again."
        )
    return module.requires_grad_(False).eval()


def _set_end_token(encoder: Any, end_token: int) -> None:
    """Pool at the end token. SDXL's second encoder says 2, which makes transformers pool at the highest token number:
    right by luck, until an added token is higher, and then all prompts with it are pooled alike."""
    encoder.config.eos_token_id = end_token
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end_token


def _token_ids(tokenizer: Any, caption: str) -> list[int]:
    with quiet():  # it warns that more than 77 tokens would fail, which is what is being counted
        ids: list[int] = tokenizer(caption, add_special_tokens=False).input_ids
    return ids


def _keep_and_lose(scheduler: DDPMScheduler, timesteps_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alphas_B = scheduler.alphas_cumprod.to(device=like.device, dtype=like.dtype)[timesteps_B.to(like.device)]
    if len(alphas_B) != len(like):
        raise ValueError(f"one time per image: got {len(alphas_B)} for {len(like)} images.")
    return alphas_B.sqrt()[:, None, None, None], (1 - alphas_B).sqrt()[:, None, None, None]


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
