"""Judges of pictures, made by name: what a picture looks like as numbers, and how well it shows what its prompt says.

A judge is a plain function in a value that also says what it is. Whoever measures takes any such value, so another
model is another function handed in; nothing here decides what the numbers mean. The networks run in fp32, one at a
time, from safetensors only and without code of the model's own; torch is loaded when the first picture is looked at.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lace_lora import queries
from lace_lora.errors import LaceError, MachineError, ModelError
from lace_lora.families import transformers_models as models
from lace_lora.families.quiet import quiet
from lace_lora.file_names import public_name
from lace_lora.machine import is_out_of_memory
from lace_lora.preprocessing import Preprocessing
from lace_lora.prompt_files import one_line
from lace_lora.style_statistics import style_statistics

Features = NDArray[np.float64]
Say = Callable[[str], None]

NONE = "none"  # the name of no model
WEIGHT_FREE = "weight-free edges, texture and colour"
STYLE_MODEL, TEXT_MODEL = "facebook/dinov2-base", "openai/clip-vit-large-patch14"
_GIGABYTES = {STYLE_MODEL: 0.35, TEXT_MODEL: 1.7}
BATCH = 16  # pictures; of 224 px, so that a large model and they stay below 3 GB


def _nothing() -> None:
    """What a judge gives back that holds nothing."""


@dataclass(frozen=True)
class Embedder:
    """What tells how alike pictures look.

    label           what it is, for people: a model's name, or WEIGHT_FREE
    embed           pictures → one row of numbers each, float64 N×F; they are opened one batch after the other, so a
                    generator of 10,000 pictures is welcome. No pictures give 0×0
    is_weight_free  whether it is statistics and no trained network: then it does not see what a picture depicts
    why             why it is another one than was asked for; empty where it is that one
    give_back       lets go of the model's memory; the next `embed` loads it again
    """

    label: str
    embed: Callable[[Iterable[Image.Image]], Features]
    is_weight_free: bool
    why: str = ""
    give_back: Callable[[], None] = _nothing


@dataclass(frozen=True)
class PromptScorer:
    """What tells how well pictures show what their prompts say.

    label      what it is, for people
    scores     pictures and a text for each → a cosine in [-1, 1] each, float64 N
    give_back  lets go of the model's memory; the next `scores` loads it again

    A cosine has no scale of its own here: only differences between pictures of the same prompts mean something.
    """

    label: str
    scores: Callable[[Iterable[Image.Image], Sequence[str]], Features]
    give_back: Callable[[], None] = _nothing


def style_embedder(
    name: str,
    device: str = "cpu",
    say: Say = print,
    statistics: Callable[[Image.Image], Features] = style_statistics,
) -> Embedder:
    """The judge of style of that name: a DINOv2 or another vision model of transformers, or statistics for "none".

    name        a folder, a Hugging Face name, or "none"
    say         is told before something is fetched, and why there are statistics where a model was asked for
    statistics  a picture → its numbers, used where there is no model

    A row of a network's numbers has the length 1, so a product of two rows is their cosine; statistics are as they are.
    A model at Hugging Face that cannot be had (no network, no room) is replaced by the statistics, which is said and
    stands in `why`. Raises ModelError for a folder that is not there or holds no such model.
    """
    if name == NONE:
        return weight_free(statistics)
    folder, why = _folder(name, STYLE_MODEL, say)
    if folder is None:
        why += f" Pictures are compared by {WEIGHT_FREE} instead, which do not see what a picture shows."
        say(f"! {why}")
        return weight_free(statistics, why)
    network = Network("AutoModel", folder, public_name(name), device)
    return Embedder(public_name(name), lambda pictures: _looked_at(network, pictures), False, "", network.give_back)


def weight_free(statistics: Callable[[Image.Image], Features] = style_statistics, why: str = "") -> Embedder:
    """The judge of style that needs no model: numbers of each picture by itself."""

    def embed(pictures: Iterable[Image.Image]) -> Features:
        return _rows([np.asarray(statistics(picture), dtype=np.float64)[None] for picture in pictures])

    return Embedder(WEIGHT_FREE, embed, True, why)


def prompt_scorer(name: str, device: str = "cpu", say: Say = print) -> tuple[PromptScorer | None, str]:
    """The judge of prompts of that name and an empty text, or None and why there is none.

    name  a folder or a Hugging Face name of a CLIP model, or "none"

    There is nothing to measure this with where no model can be had, so then it is not measured. Raises ModelError for a
    folder that is not there or holds no CLIP.
    """
    if name == NONE:
        return None, "text_model is none, so how well pictures show their prompts is not measured."
    folder, why = _folder(name, TEXT_MODEL, say)
    if folder is None:
        why += " How well pictures show their prompts is not measured."
        say(f"! {why}")
        return None, why
    if (kind := models.kind_of(folder)) != "clip":
        raise ModelError(f"{name} is a model of the kind {kind}; text_model must be a CLIP, such as {TEXT_MODEL}.")
    network = Network("AutoModel", folder, public_name(name), device)

    def scores(pictures: Iterable[Image.Image], texts: Sequence[str]) -> Features:
        return _compared(network, pictures, texts, say)

    return PromptScorer(public_name(name), scores, network.give_back), ""


def words_for(prompt: str, concept_token: str, class_prompt: str = "") -> str:
    """A prompt in words that a judge of prompts knows: without the concept token, which it never saw.

    class_prompt  what the token is a kind of ("a photo of a painting"): its words take the token's place, as in the
                  prompt of the refiner; empty leaves the token out

        a photo of <myspecialstyle> with leaves  →  a photo of a painting with leaves, or: a photo with leaves
    """
    if class_prompt.strip():
        return queries.refiner_prompt(prompt, concept_token, class_prompt)
    word = queries.token_pattern(concept_token)
    # With the little word before it, where nothing follows that the little word could belong to.
    alone = rf"(?:\b(?:an?|the)\s+)?{word}"
    joined = rf"\s*\b(?:of|in|with|by)\s+{alone}(?=\s*(?:$|[,.;:]|(?:with|on|in|of|and|at|for|from|by|as)\b))"
    text = re.sub(joined, "", prompt, flags=re.I)
    text = re.sub(rf"\b(?:an?|the)\s+{word}(?=\s*(?:$|[,.;:]))|{word}", "", text, flags=re.I)
    text = re.sub(r"\s+(?=[,.;:])", "", text)
    text = re.sub(r"([,.;:])(?:\s*[,.;:])+", r"\1", text)
    return one_line(text).strip(" ,;:")


class Network:
    """A network that is loaded when it is first needed."""

    def __init__(self, auto_class: str, folder: Path, name: str, device: str) -> None:
        self.folder, self.name, self.device = folder, name, device
        self.prepare = Preprocessing.read(folder)
        self._auto_class, self._loaded = auto_class, None
        self._lacking: set[str] = set()

    @property
    def loaded(self) -> Any:
        """The network itself."""
        if self._loaded is None:
            self._loaded, self._lacking = models.load_network(self._auto_class, self.folder, self.name, self.device)
            needed = sorted(key for key in self._lacking if not _can_be_lacking(key))
            if needed:
                self.give_back()
                raise ModelError(
                    f"{self.name} lacks {len(needed)} weights that its config promises ({needed[0]} is one). Choose "
                    "another model."
                )
        return self._loaded

    @property
    def has_pooler(self) -> bool:
        """Whether what sums up the picture is the model's own; transformers invents one where a file has none."""
        return not any(key.startswith("pooler.") for key in self._lacking)

    def give_back(self) -> None:
        """Let go of the network."""
        if self._loaded is not None:
            self._loaded = None
            models.give_back_memory()

    def batches(self, pictures: Iterable[Image.Image]) -> Iterator[Any]:
        """Prepared pictures, a tensor B×3×H×W a batch on the network's device."""
        import torch

        left = iter(pictures)
        while batch := [self.prepare.pixels(picture) for picture in islice(left, BATCH)]:
            yield torch.from_numpy(np.stack(batch)).to(self.device)

    @contextmanager
    def looking(self) -> Iterator[Any]:
        """The network without gradients; what it cannot do with pictures becomes a sentence."""
        import torch

        network = self.loaded
        try:
            with torch.inference_mode(), quiet():
                yield network
        except LaceError:
            raise
        except Exception as error:  # each architecture raises its own
            if is_out_of_memory(error):
                raise MachineError(
                    f"Memory ran out while {self.name} looked at pictures. Close other notebooks, or choose a smaller "
                    "model."
                ) from error
            line = str(error).splitlines()[0][:200] if str(error) else ""
            raise ModelError(
                f"{self.name} cannot judge pictures ({type(error).__name__}: {line}). Choose another model."
            ) from error


# -- inside --


def _can_be_lacking(weight: str) -> bool:
    """Whether a model sees pictures as well without it; of those without a pooler the first token is taken."""
    return weight.startswith("pooler.") or weight.endswith(("mask_token", "position_ids"))


def _folder(name: str, example: str, say: Say) -> tuple[Path | None, str]:
    """Where a model lies, or None and why one at Hugging Face cannot be had."""
    try:
        return models.model_folder(name, example, "judge", say, _GIGABYTES.get(name)), ""
    except LaceError as error:
        if not models.is_hub_name(name):
            raise
        return None, str(error)


def _looked_at(network: Network, pictures: Iterable[Image.Image]) -> Features:
    """What a vision network says of pictures, one row of length 1 each."""
    rows: list[Features] = []
    for pixels_BCHW in network.batches(pictures):
        with network.looking() as model:
            if hasattr(model, "get_image_features"):  # a model of pictures and texts: its half for pictures
                features_BF = _summed_up(model.get_image_features(pixel_values=pixels_BCHW), True)
            else:
                features_BF = _summed_up(model(pixel_values=pixels_BCHW), network.has_pooler)
            rows.append(_unit(features_BF, network.name))
    return _rows(rows)


def _summed_up(found: Any, has_pooler: bool) -> Any:
    """What sums up each picture or text of a batch: the model's pooled output, else that of its first token."""
    pooled = getattr(found, "pooler_output", None) if has_pooler else None
    if pooled is not None:
        return pooled.flatten(1)  # ResNet's has two more sides, of 1
    return found if not hasattr(found, "last_hidden_state") else found.last_hidden_state[:, 0]


def _unit(features_BF: Any, name: str) -> Features:
    """Rows of length 1. Raises ModelError where a network gave no usable numbers."""
    values: Features = features_BF.double().cpu().numpy()
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not (np.isfinite(values).all() and (lengths > 0).all()):
        raise ModelError(f"{name} gives no usable numbers for a picture or text; its files may be damaged.")
    return values / lengths


def _rows(rows: Sequence[Features]) -> Features:
    return np.concatenate(rows) if rows else np.zeros((0, 0))


def _compared(network: Network, pictures: Iterable[Image.Image], texts: Sequence[str], say: Say) -> Features:
    """The cosine of each picture with its text."""
    seen = _looked_at(network, pictures)
    if len(seen) != len(texts):
        raise ValueError(f"one text a picture: got {len(texts)} texts for {len(seen)} pictures.")
    different = list(dict.fromkeys(texts))
    read: list[Features] = []
    with network.looking() as model:
        tokenizer, most = _tokenizer(network)
        lost = {text: end for text in different if (end := _cut_off(tokenizer, text, most))}
        for first in range(0, len(different), BATCH):
            tokens = tokenizer(
                different[first : first + BATCH], truncation=True, max_length=most, padding=True, return_tensors="pt"
            ).to(network.device)
            read.append(_unit(_summed_up(model.get_text_features(**tokens), True), network.name))
    for line in queries.too_long(lost):
        say(line)
    place = {text: number for number, text in enumerate(different)}
    words = _rows(read)[[place[text] for text in texts]] if texts else seen
    cosines: Features = np.clip((seen * words).sum(1), -1, 1)  # rounding may give 1 + 1e-16
    return cosines


def _tokenizer(network: Network) -> tuple[Any, int]:
    """What cuts texts into tokens, and how many the network reads at most; the network is set to pool at their end."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(network.folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"The tokenizer in {network.folder} cannot be read ({error}). Fetch it again.") from error
    model = network.loaded
    # Older configs say 2, which makes transformers pool at the highest token number: right only by luck.
    for module in model.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id
    return tokenizer, int(model.config.text_config.max_position_embeddings)


def _cut_off(tokenizer: Any, text: str, most: int) -> str:
    """The end of a text that the network does not read, or an empty text."""
    lost = tokenizer(text, add_special_tokens=False).input_ids[most - 2 :]
    return str(tokenizer.decode(lost)).strip() if lost else ""
