"""What every base model's file offers: the same plain functions on plain tensors, and the values that they pass on.

B batch · C latent channels · H,W latent cells · L tokens · D text width · P pooled width · S size numbers; P and S may
be 0. Latents are BCHW everywhere outside these files, whatever shape a network takes them in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lace_lora.families.layouts import Layout


@dataclass(frozen=True)
class TextParts:
    """Tokenizers and text encoders, in the order in which outputs are joined; an SDXL refiner has only the second."""

    tokenizers: tuple[Any, ...]
    encoders: tuple[Any, ...]


@dataclass(frozen=True)
class Encoded:
    """Captions as the denoiser reads them; pooled text of width 0 where it reads none."""

    text_BLD: "Tensor"
    pooled_BP: "Tensor"


@dataclass(frozen=True)
class Reader:
    """What a model's tokenizers make of a text, before any encoder is loaded."""

    family: "Family"
    tokenizers: tuple[Any, ...]

    @property
    def fits(self) -> int:
        """Tokens of a caption that are read."""
        return self.family.TOKENS_FIT

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self.family.count_tokens(self.tokenizers, text)

    def cut(self, text: str) -> str:
        """The end of a text that the model would never see, or an empty text."""
        return self.family.words_cut(self.tokenizers, text)

    def cut_of(self, texts: Iterable[str]) -> dict[str, str]:
        """Those texts that lose their end, with it."""
        return {text: end for text in texts if (end := self.cut(text))}


class Family(Protocol):
    """A module of plain functions; families.of finds the one of a model, and mypy holds each against this.

    FAMILY      its name in adapters and tables
    DENOISER    the folder of the network that learns, and what its LoRA's names begin with in files
    WORDLESS    what a picture is learnt with when its caption is dropped, and what an empty negative prompt means:
                zeros, or the empty text as the encoders read it
    GUIDANCE    classifier-free (a second pass for what is not wanted), or embedded (the network is told a number)
    TOKENS_FIT  tokens of a caption that are read
    HEADER      how other programs call this kind of model in a LoRA's metadata
    """

    FAMILY: str
    DENOISER: str
    WORDLESS: Literal["zeros", "empty"]
    GUIDANCE: Literal["classifier-free", "embedded"]
    TOKENS_FIT: int
    HEADER: Mapping[str, str]

    # -- parts, each loaded alone and frozen --

    def load_denoiser(self, model: str, dtype: "torch.dtype", device: str) -> Any:
        """The network that learns. Raises ModelError where it is missing or damaged."""

    def empty_denoiser(self, model: str) -> Any:
        """The same without weights, on the meta device."""

    def load_vae(self, model: str, dtype: "torch.dtype", device: str) -> Any:
        """The model's own VAE."""

    def load_text(self, model: str, dtype: "torch.dtype", device: str) -> TextParts:
        """All tokenizers and text encoders."""

    def load_tokenizers(self, model: str) -> tuple[Any, ...]:
        """The tokenizers alone."""

    def base_dtype(self, denoiser: Any) -> "torch.dtype":
        """The dtype of the frozen weights, whatever dtype a LoRA in them has."""

    def checkpoint_activations(self, denoiser: Any, mode: str) -> None:
        """Which activations are computed again in the backward pass: none, transformers, or full (all)."""

    def lora_targets(self, kind: str) -> list[str]:
        """Endings of the module names that get a LoRA, or one pattern, for a value of the setting lora_targets."""

    # -- encoding --

    def encode_images(self, vae: Any, pixels_BCHW: "Tensor") -> "tuple[Tensor, Tensor]":
        """Mean and standard deviation of the latents, float32, unscaled."""

    def encode_captions(self, text: TextParts, captions: Sequence[str]) -> Encoded:
        """Captions as the model's pipeline encodes them."""

    def read_captions(self, text: TextParts, captions: Sequence[str]) -> Encoded:
        """The same with gradients, for encoders that are trained."""

    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        """How many tokens a caption takes."""

    def words_cut(self, tokenizers: Sequence[Any], caption: str) -> str:
        """The end of a caption that the model would never see, or an empty text."""

    def size_numbers(
        self, original_hw: tuple[int, int], crop_top_left: tuple[int, int], target_hw: tuple[int, int]
    ) -> "Tensor":
        """What the denoiser is told of a picture's size, float32 [S]."""

    def scale_latents(self, latents_BCHW: "Tensor", sizes: "Layout") -> "Tensor":
        """From the VAE's units to the denoiser's."""

    def unscale_latents(self, latents_BCHW: "Tensor", sizes: "Layout") -> "Tensor":
        """From the denoiser's units back to the VAE's."""

    # -- one training step's mathematics --

    def noising(self, model: str, device: str = "cpu", side_px: int | None = None) -> Any:
        """What training mixes noise by; opaque to all others. Raises ModelError for a model that cannot be trained.

        side_px  of the square that is learnt, on which Flux' noise depends; None for the model's own
        """

    def times(self, noising: Any, within_B: "Tensor") -> "Tensor":
        """The model's times [B] for numbers uniform in 0..1 (float64 keeps the last digits that a schedule has)."""

    def add_noise(self, noising: Any, latents_BCHW: "Tensor", noise_BCHW: "Tensor", times_B: "Tensor") -> "Tensor":
        """Latents mixed with noise at each picture's own time."""

    def target(self, noising: Any, latents_BCHW: "Tensor", noise_BCHW: "Tensor", times_B: "Tensor") -> "Tensor":
        """What the denoiser should say of them."""

    def weights(self, noising: Any, times_B: "Tensor", gamma: float) -> "Tensor":
        """What each picture's error counts, [B]; ones where gamma is 0."""

    def predict(
        self,
        denoiser: Any,
        noisy_BCHW: "Tensor",
        times_B: "Tensor",
        words: Encoded,
        size_numbers_BS: "Tensor",
        guidance_B: "Tensor | None" = None,
    ) -> "Tensor":
        """The denoiser's answer, BCHW, float32.

        guidance_B  how strictly the prompt is followed, where GUIDANCE is embedded; None while training
        """

    # -- drawing, and files --

    def make_sampler(
        self, name: str, model: str, steps: int, cells_hw: tuple[int, int], prediction_type: str | None = None
    ) -> Any:
        """A scheduler of diffusers by a name of the setting `scheduler`, its times set for latents of so many cells.

        prediction_type  of another model that shares the schedule, such as a refiner; None for this one's own
        """

    def for_other_tools(
        self, state: "Mapping[str, Tensor]", alpha: float, layers_per_block: int
    ) -> "dict[str, Tensor]":
        """A LoRA in the names that ComfyUI and A1111 read, with its alpha (which they divide by the rank)."""
