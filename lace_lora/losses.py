"""The loss of a batch: draw noise and times, ask the denoiser, compare with what it should have said.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
S size numbers (6)
"""

from dataclasses import dataclass

from lace_lora import cache, schedule
from lace_lora.config import Config
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded
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
    """What the denoiser is asked about a batch, and what it should say; all that is in memory of it meanwhile."""

    noisy_BCHW: Tensor
    times_B: Tensor
    words: Encoded
    size_numbers_BS: Tensor
    wanted_BCHW: Tensor


def losses_of_batch(parts: Parts, pictures: Pictures, number: int, settings: Config) -> Tensor:
    """Each picture's loss in batch `number` of its stream, [B]."""
    return losses(parts, _question_of_batch(parts, pictures, number, settings), settings)


def losses(parts: Parts, asked: Question, settings: Config) -> Tensor:
    """How far the denoiser is from what it should predict, times the weight of each time, [B], float32."""
    family = parts.family
    prediction_BCHW = family.predict(
        parts.denoiser, asked.noisy_BCHW, asked.times_B, asked.words, asked.size_numbers_BS
    )
    error_B = _error(prediction_BCHW - asked.wanted_BCHW, settings.loss).mean(dim=(1, 2, 3))
    return error_B * family.weights(parts.noising, asked.times_B, settings.min_snr_gamma)


def question(
    parts: Parts,
    latents_BCHW: Tensor,
    noise_BCHW: Tensor,
    times_B: Tensor,
    words: Encoded,
    size_numbers_BS: Tensor,
) -> Question:
    """Noise mixed into latents, and what the model's kind of prediction (epsilon or v) says of it.

    latents_BCHW  float32, in the denoiser's units (scale_latents); noise_BCHW standard normal
    """
    family = parts.family
    noisy_BCHW = family.add_noise(parts.noising, latents_BCHW, noise_BCHW, times_B)
    wanted_BCHW = family.target(parts.noising, latents_BCHW, noise_BCHW, times_B)
    return Question(noisy_BCHW.to(family.base_dtype(parts.denoiser)), times_B, words, size_numbers_BS, wanted_BCHW)


def _question_of_batch(parts: Parts, pictures: Pictures, number: int, settings: Config) -> Question:
    """The pictures of a batch with the noise, times and dropped captions that their places in the run give them."""
    visits = pictures.stream.batch(number)
    shape = pictures.cache.latent_shape(visits[0].sample, visits[0].variant)
    draws = [
        schedule.draw(pictures.stream, visit, shape, settings.caption_dropout, settings.noise_offset)
        for visit in visits
    ]
    batch = pictures.cache.batch([(visit.sample, visit.variant) for visit in visits], parts.device)
    spread_BCHW = _to(torch.stack([one.spread_CHW for one in draws]), parts.device)
    noise_BCHW = _to(torch.stack([one.noise_CHW for one in draws]), parts.device)
    within_B = torch.tensor([one.within for one in draws], dtype=torch.float64)
    times_B = _to(parts.family.times(parts.noising, within_B), parts.device)
    captions = [pictures.cache.samples[visit.sample].caption for visit in visits]
    words = _words(parts, pictures.cache, batch, captions, [one.is_wordless for one in draws])
    latents_BCHW = parts.family.scale_latents(batch.mean_BCHW + batch.std_BCHW * spread_BCHW, parts.sizes)
    return question(parts, latents_BCHW, noise_BCHW, times_B, words, batch.size_numbers_BS)


def _error(difference: Tensor, kind: str) -> Tensor:
    """Squared, or pseudo-Huber: 2c(√(d² + c²) − c), which is c·2|d| for large d, so that a spot weighs less."""
    if kind == "mse":
        return difference.square()
    return 2 * HUBER_C * ((difference.square() + HUBER_C**2).sqrt() - HUBER_C)


def _words(
    parts: Parts, encoded: cache.Cache, batch: cache.Batch, captions: list[str], are_wordless: list[bool]
) -> Encoded:
    """The captions as they were encoded once, or, where text encoders are trained, as those read them now.

    A picture whose caption is dropped is learnt with what the model's pipeline guides with: zeros, or the empty text.
    """
    empty, words = encoded.wordless(parts.device), batch.words
    if parts.text is not None:
        if empty is not None:  # read like the others, by encoders that change
            read = zip(captions, are_wordless, strict=True)
            return parts.family.read_captions(parts.text, ["" if is_wordless else one for one, is_wordless in read])
        words = parts.family.read_captions(parts.text, captions)
    if not any(are_wordless):
        return words
    has_words_B = _to(torch.tensor([not one for one in are_wordless]), parts.device)
    if empty is None:
        return Encoded(words.text_BLD * has_words_B[:, None, None], words.pooled_BP * has_words_B[:, None])
    text_BLD = torch.where(has_words_B[:, None, None], words.text_BLD, empty.text_BLD)
    return Encoded(text_BLD, torch.where(has_words_B[:, None], words.pooled_BP, empty.pooled_BP))


def _to(tensor: Tensor, device: str) -> Tensor:
    """To the device without waiting for it, which takes memory that is pinned."""
    is_for_gpu = torch.device(device).type == "cuda"
    return (tensor.pin_memory() if is_for_gpu else tensor).to(device, non_blocking=True)
