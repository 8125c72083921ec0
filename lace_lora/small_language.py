"""A tiny language model and its tokenizer, made on the spot: for rehearsals and tests without a GPU or a download.

Its weights are drawn by chance, its words are learnt from a recipe's own texts; made again, it is the same.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from lace_lora.families.quiet import quiet
from lace_lora.recipe import Recipe

with quiet():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, WIDTH, LAYERS, HEADS, LONGEST = 640, 96, 2, 4, 4096
# Of the weights drawn by chance. With the 0.02 that large models begin with, a LoRA on this small one learns next to
# nothing (loss on held-out CAD pairs after 72 steps 4.85); with these it falls from 8.4 to 0.3.
SPREAD, WORDS = 0.08, 0.2
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
END, PAD, START = "<|end|>", "<|pad|>", "<s>"
# The chat format of Phi-3: a role's mark, the text, its end.
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def made(recipe: Recipe, seed: int = 0) -> tuple[Any, Any]:
    """(model, tokenizer): a Llama of about 0.3 million numbers in float32, and byte-level BPE."""
    words = tokenizer(texts_of(recipe))
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LONGEST,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        tie_word_embeddings=True, initializer_range=SPREAD,
    )  # fmt: skip
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(WORDS / SPREAD)
    finally:
        torch.random.set_rng_state(state)
    return model.eval(), words


def tokenizer(texts: Iterable[str]) -> Any:
    """Byte-level BPE learnt from these texts, with the chat format of Phi-3."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    special = [START, END, PAD, *ROLES]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=START, eos_token=END, pad_token=PAD,
        additional_special_tokens=list(ROLES), chat_template=CHAT, model_max_length=LONGEST, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def texts_of(recipe: Recipe) -> list[str]:
    """The texts of a recipe's examples and its prompts; a line that is no pair has none."""
    found = [recipe.system_prompt, recipe.system_prompt_back]
    if recipe.examples.is_file():
        for line in recipe.examples.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                asked, document = row[recipe.fields.input], row[recipe.fields.output]
                written = document if isinstance(document, str) else json.dumps(document, separators=(",", ":"))
                found += [str(asked), written]
    return found
