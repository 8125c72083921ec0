"""A concept token that is a word of its own: one new row for each text encoder, all other rows frozen.

As plain text a token such as <myspecialstyle> is read as five tokens that mean other things. As a new word it has an
embedding that is learnt (textual inversion, Gal et al. 2022, https://arxiv.org/abs/2208.01618), beside the LoRA.

B batch · L tokens (77) · d width of one encoder
"""

from collections.abc import Mapping
from typing import Any

from lace_lora.errors import SettingsError
from lace_lora.families import quiet
from lace_lora.families.sdxl_names import TOKEN_ROWS
from lace_lora.families.seam import TextParts

with quiet.quiet():
    import torch
    from torch import Tensor, nn
    from transformers import AddedToken


class _WithRow(nn.Module):
    """An embedding and one row behind it. The frozen matrix is looked up as it is, never copied or extended."""

    def __init__(self, frozen: nn.Embedding, row_1d: nn.Parameter, number: int) -> None:
        super().__init__()
        self.frozen, self.row, self.number = frozen, row_1d, number

    @property
    def weight(self) -> Tensor:
        """The frozen rows: what asks for a dtype or device gets theirs."""
        return self.frozen.weight

    def forward(self, ids_BL: Tensor) -> Tensor:
        is_new_BL = ids_BL == self.number
        found_BLd: Tensor = self.frozen(ids_BL.masked_fill(is_new_BL, 0))
        return torch.where(is_new_BL[..., None], self.row.to(found_BLd.dtype), found_BLd)


def add(text: TextParts, token: str, initial_text: str) -> dict[str, nn.Parameter]:
    """Make `token` a word that both encoders read as one; return its rows, [1, d] each, float32, to be trained.

    initial_text  words whose mean embedding the rows begin with
    Raises SettingsError where the tokenizers know the token already, or initial_text is empty.
    """
    rows: dict[str, nn.Parameter] = {}
    for name, tokenizer, encoder in _each(text):
        ids = tokenizer(initial_text, add_special_tokens=False).input_ids
        if not ids:
            raise SettingsError("learn_concept_token begins with the words of class_prompt, which is empty. Set it.")
        with torch.no_grad():
            start_1d = encoder.get_input_embeddings().weight[ids].float().mean(dim=0, keepdim=True)
        rows[name] = nn.Parameter(start_1d.clone())
        _put(tokenizer, encoder, token, rows[name])
    return rows


def put_in(text: TextParts, token: str, rows: Mapping[str, Tensor]) -> None:
    """The same for generation, with rows that were learnt."""
    for name, tokenizer, encoder in _each(text):
        row_1d = rows[name].to(encoder.device, encoder.dtype)
        _put(tokenizer, encoder, token, nn.Parameter(row_1d, requires_grad=False))


def _each(text: TextParts) -> list[tuple[str, Any, Any]]:
    return list(zip(TOKEN_ROWS, text.tokenizers, text.encoders, strict=True))


def _put(tokenizer: Any, encoder: Any, token: str, row_1d: nn.Parameter) -> None:
    """Its number is the first free one. Pooling stays at the end token, which load_text has set on the encoder:
    transformers would otherwise pool at the highest number, and all prompts with the new word would be alike."""
    # As normalised, because the tokenizer turns captions into small letters before it looks for it.
    if tokenizer.add_tokens([AddedToken(token, normalized=True)]) != 1:
        raise SettingsError(
            f"concept_token {token!r} is a word of the model already, so it cannot be learnt as a new one. "
            "Choose another, such as <myspecialstyle>, or switch learn_concept_token off."
        )
    number = tokenizer.convert_tokens_to_ids(token)
    encoder.set_input_embeddings(_WithRow(encoder.get_input_embeddings(), row_1d, number))
