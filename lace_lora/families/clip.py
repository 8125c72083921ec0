"""CLIP's tokenizers and text encoders, as several families have them: loading, reading, and what of a caption is lost.

B batch · L tokens (77) · d width of one encoder
"""

from collections.abc import Sequence
from typing import Any

from lace_lora.families.loading import load_encoder, load_tokenizer
from lace_lora.families.quiet import quiet
from lace_lora.families.token_ids import padded_ids, plain_ids

with quiet():
    import torch

TOKENS_FIT = 75  # of a caption; the other two of 77 are its beginning and its end


def load_clip_tokenizer(model: str, part: str) -> Any:
    """A CLIP tokenizer of the model's folder."""
    return load_tokenizer("CLIPTokenizer", model, part)


def load_clip(kind: str, model: str, part: str, tokenizer: Any, dtype: torch.dtype, device: str) -> Any:
    """A CLIP text encoder, which pools at its tokenizer's end token."""
    encoder = load_encoder(kind, model, part, dtype, device)
    set_end_token(encoder, tokenizer.eos_token_id)
    return encoder


def outputs(tokenizer: Any, encoder: Any, captions: Sequence[str]) -> Any:
    """What an encoder gives for captions: its result, and the hidden states of all layers. Cut at 77 tokens."""
    return encoder(padded_ids(tokenizer, captions).to(encoder.device), output_hidden_states=True)


def count_tokens(tokenizers: Sequence[Any], caption: str) -> int:
    """How many tokens a caption takes (75 fit), by the tokenizer that needs most."""
    return max(len(plain_ids(tokenizer, caption)) for tokenizer in tokenizers)


def words_cut(tokenizers: Sequence[Any], caption: str) -> str:
    """The end of a caption that the model would never see, or an empty text."""
    cut = ""
    for tokenizer in tokenizers:
        lost = plain_ids(tokenizer, caption)[tokenizer.model_max_length - 2 :]
        text = str(tokenizer.decode(lost)) if lost else ""
        cut = max(cut, text, key=len)
    return cut.strip()


def set_end_token(encoder: Any, end_token: int) -> None:
    """Pool at the end token. SDXL's second encoder says 2, which makes transformers pool at the highest token number:
    right by luck, until an added token is higher, and then all prompts with it are pooled alike."""
    encoder.config.eos_token_id = end_token
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end_token
