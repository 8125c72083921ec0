"""Reading captions with CLIP and T5, as SD 3.5 and Flux do.

B batch · L tokens · D text width · P pooled
T5 is large (4.8 billion numbers at the true size) and overflows in fp16: it takes bf16 wherever fp16 is asked for, also
on GPUs that only emulate it, because captions are read once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lace_lora.errors import ModelError
from lace_lora.families import clip
from lace_lora.families.folders import model_folder, parts_of
from lace_lora.families.loading import load_encoder, load_tokenizer
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import TextParts
from lace_lora.families.token_ids import padded_ids, plain_ids

with quiet():
    import torch
    from torch import Tensor

T5 = "T5EncoderModel"


def t5_dtype(dtype: torch.dtype) -> torch.dtype:
    """What T5 computes in where the other encoders compute in `dtype`."""
    return torch.bfloat16 if dtype is torch.float16 else dtype


def load(model: str, kinds: Mapping[str, str], tokens: int, dtype: torch.dtype, device: str) -> TextParts:
    """Tokenizers and text encoders; `kinds` are the encoders' classes by part, in the order in which they are read."""
    tokenizers = load_tokenizers(model, kinds, tokens)
    encoders = tuple(
        load_encoder(kind, model, part, t5_dtype(dtype), device)
        if kind == T5
        else clip.load_clip(kind, model, part, tokenizer, dtype, device)
        for (part, kind), tokenizer in zip(kinds.items(), tokenizers, strict=True)
    )
    return TextParts(tokenizers, encoders)


def load_tokenizers(model: str, kinds: Mapping[str, str], tokens: int) -> tuple[Any, ...]:
    """The tokenizers of those encoders alone; T5's is told how many tokens the model reads.

    Raises ModelError where one is missing or cannot be read.
    """
    absent = [part for part in kinds if part not in parts_of(Path(model_folder(model)))]
    if absent:
        raise ModelError(f"{model} has no {absent[0]}, and {', '.join(kinds)} are all needed. Fetch the whole model.")
    tokenizers = []
    for part, kind in kinds.items():
        own = "T5TokenizerFast" if kind == T5 else "CLIPTokenizer"
        tokenizers.append(load_tokenizer(own, model, part.replace("text_encoder", "tokenizer")))
    tokenizers[-1].model_max_length = tokens
    return tuple(tokenizers)


def t5(tokenizer: Any, encoder: Any, captions: Sequence[str]) -> Tensor:
    """T5's last states, BLD. Padding is read along, unmasked: so the models were trained, and so their pipelines do."""
    read_BLD: Tensor = encoder(padded_ids(tokenizer, captions).to(encoder.device))[0]
    return read_BLD


def count_tokens(tokenizers: Sequence[Any], caption: str) -> int:
    """How many tokens a caption takes by T5, which comes last and reads the most of it."""
    return len(plain_ids(tokenizers[-1], caption))


def words_cut(tokenizers: Sequence[Any], caption: str) -> str:
    """The end of a caption that even T5 would never see, or an empty text; CLIP sees 75 tokens of it."""
    lost = plain_ids(tokenizers[-1], caption)[tokenizers[-1].model_max_length - 1 :]  # one of them is the end
    return str(tokenizers[-1].decode(lost)).strip() if lost else ""
