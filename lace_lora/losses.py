"""The loss of a batch: draw noise and times, ask the UNet, compare with what it should have said.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
S size numbers (6)
"""

from dataclasses import dataclass

from lace_lora import cache, schedule
from lace_lora.config import Config
from lace_lora.families import sdxl
from lace_lora.families.quiet import quiet
from lace_lora.parts import Parts

with quiet():
    import torch
    from torch import Tensor

HUBER_C = 0.1  # below it errors count squared, far above it by their length; diffusers' and kohya's default


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures and the order in which they are learnt."""

    cache: cache.Cache
    stream: schedule.Stream


@dataclass(frozen=True)
class Question:
    """What the UNet is asked about a batch, and what it should say; all that is in memory of it meanwhile."""

    noisy_BCHW: Tensor
    timesteps_B: Tensor
    words: sdxl.Encoded
    time_ids_BS: Tensor
    wanted_BCHW: Tensor


def losses_of_batch(parts: Parts, pictures: Pictures, number: int, settings: Config) -> Tensor:
    """Each picture's loss in batch `number` of its stream, [B]."""
    return losses(parts, _question_of_batch(parts, pictures, number, settings), settings)


def losses(parts: Parts, asked: Question, settings: Config) -> Tensor:
    """How far the UNet is from what it should predict, times the weight of each time, [B], float32."""
    prediction_BCHW = sdxl.predict(
        parts.unet, asked.noisy_BCHW, asked.timesteps_B, asked.words.text_BLD, asked.words.pooled_BP, asked.time_ids_BS
    )
    error_B = _error(prediction_BCHW - asked.wanted_BCHW, settings.loss).mean(dim=(1, 2, 3))
    return error_B * sdxl.min_snr(parts.noising, asked.timesteps_B, settings.min_snr_gamma)


def question(
    parts: Parts,
    latents_BCHW: Tensor,
    noise_BCHW: Tensor,
    timesteps_B: Tensor,
    words: sdxl.Encoded,
    time_ids_BS: Tensor,
) -> Question:
    """Noise mixed into latents, and what the model's kind of prediction (epsilon or v) says of it.

    latents_BCHW  float32, in the UNet's units (sdxl.scale_latents); noise_BCHW standard normal
    """
    noisy_BCHW = sdxl.add_noise(parts.noising, latents_BCHW, noise_BCHW, timesteps_B)
    wanted_BCHW = sdxl.target(parts.noising, latents_BCHW, noise_BCHW, timesteps_B)
    return Question(noisy_BCHW.to(sdxl.base_dtype(parts.unet)), timesteps_B, words, time_ids_BS, wanted_BCHW)


def _question_of_batch(parts: Parts, pictures: Pictures, number: int, settings: Config) -> Question:
    """The pictures of a batch with the noise, times and dropped captions that their places in the run give them."""
    visits = pictures.stream.batch(number)
    shape = pictures.cache.latent_shape(visits[0].sample, visits[0].variant)
    times = parts.noising.config.num_train_timesteps
    draws = [
        schedule.draw(pictures.stream, visit, shape, times, settings.caption_dropout, settings.noise_offset)
        for visit in visits
    ]
    batch = pictures.cache.batch([(visit.sample, visit.variant) for visit in visits], parts.device)
    spread_BCHW = _to(torch.stack([one.spread_CHW for one in draws]), parts.device)
    noise_BCHW = _to(torch.stack([one.noise_CHW for one in draws]), parts.device)
    timesteps_B = _to(torch.tensor([one.timestep for one in draws]), parts.device)
    words = _words(parts, batch, [pictures.cache.samples[visit.sample].caption for visit in visits])
    if any(one.is_wordless for one in draws):
        # Without its caption a picture is learnt with zeros, as the SDXL pipeline guides with zeros.
        has_words_B = _to(torch.tensor([not one.is_wordless for one in draws]), parts.device)
        words = sdxl.Encoded(words.text_BLD * has_words_B[:, None, None], words.pooled_BP * has_words_B[:, None])
    latents_BCHW = sdxl.scale_latents(batch.mean_BCHW + batch.std_BCHW * spread_BCHW, parts.sizes)
    return question(parts, latents_BCHW, noise_BCHW, timesteps_B, words, batch.time_ids_BS)


def _error(difference: Tensor, kind: str) -> Tensor:
    """Squared, or pseudo-Huber: 2c(√(d² + c²) − c), which is c·2|d| for large d, so that a spot weighs less."""
    if kind == "mse":
        return difference.square()
    return 2 * HUBER_C * ((difference.square() + HUBER_C**2).sqrt() - HUBER_C)


def _words(parts: Parts, batch: cache.Batch, captions: list[str]) -> sdxl.Encoded:
    """The captions as they were encoded once, or, where text encoders are trained, as those read them now."""
    if parts.text is None:
        return sdxl.Encoded(batch.text_BLD, batch.pooled_BP)
    return sdxl.read_captions(parts.text, captions)


def _to(tensor: Tensor, device: str) -> Tensor:
    """To the device without waiting for it, which takes memory that is pinned."""
    is_for_gpu = torch.device(device).type == "cuda"
    return (tensor.pin_memory() if is_for_gpu else tensor).to(device, non_blocking=True)
