"""Captions as numbers of tokens, the same for every tokenizer: padded for an encoder, and plain for counting.

B batch · L tokens that the encoder reads
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def padded_ids(tokenizer: Any, captions: Sequence[str]) -> "Tensor":
    """What an encoder reads, [B, L]: beginning and end added, padded to and cut at the tokenizer's own length."""
    ids_BL: Tensor = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids_BL


def plain_ids(tokenizer: Any, caption: str) -> list[int]:
    """All tokens of a caption, however long, without beginning and end."""
    # verbose: it would warn that more than it can read fails, which is what is being counted.
    ids: list[int] = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
    return ids
