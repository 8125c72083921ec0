"""Makes the miniature's two tokenizers and two text towers, and teaches the towers the caption grammar.

SDXL's conventions: both towers give the hidden states before their last layer, the second also a pooled projection.
The read-outs that teach them sit on exactly those outputs and are thrown away afterwards.
"""

# B batch · L tokens (77) · D width of one tower (64) · P pooled (64)

import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lace_lora.demo.words import (
    COLOURS,
    EMPTY_CAPTIONS,
    GROUNDS,
    KINDS,
    LACE_KINDS,
    PIECES,
    PLAIN_KINDS,
    SCALES,
    Spec,
    known_words,
    lace_caption,
    pick,
    plain_caption,
    read_caption,
)

TOKENS = 77
WIDTH = 64
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# CLIP's own spread of token embeddings; a never-used token's embedding is redrawn with it.
EMBEDDING_STD = 0.5
CLASSES = ((*KINDS, "none"), (*COLOURS, "none"), (*GROUNDS, "none"), (*SCALES, "none"))


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses, in CLIP's order ("!" is the first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def byte_pairs(words: list[str], pieces: list[str]) -> list[tuple[str, str]]:
    """Merges under which every word (and every piece inside a word) becomes one token.

    Byte-pair encoding learnt on the list itself until nothing is left to merge: replaying the merges in order repeats
    the learning, so each word ends as it ended here.
    """
    texts = [(*w[:-1], w[-1] + "</w>") for w in words] + [tuple(p) for p in pieces]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for text in texts for pair in itertools.pairwise(text))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        texts = [merged(text, best) for text in texts]


def merged(text: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`text` with every occurrence of `pair` joined, left to right."""
    out: list[str] = []
    for letter in text:
        if out and (out[-1], letter) == pair and not out[-1].endswith("</w>"):
            out[-1] += letter
        else:
            out.append(letter)
    return tuple(out)


def save_tokenizers(folder: Path) -> None:
    """Write tokenizer/ and tokenizer_2/ under `folder`; as in SDXL they differ in what they pad with (eos and "!")."""
    letters = byte_letters()
    merges = byte_pairs(known_words(), list(dict.fromkeys(PIECES)))
    entries = [*letters, *(c + "</w>" for c in letters), *dict.fromkeys(a + b for a, b in merges), BOS, EOS]
    vocab = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    for name, pad in (("tokenizer", EOS), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=TOKENS)
        tokenizer.save_pretrained(folder / name)
        # transformers 5 saves tokenizer.json alone; older readers and other tools want the two classic files as well.
        (folder / name / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        lines = "\n".join(f"{a} {b}" for a, b in merges)
        (folder / name / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", encoding="utf-8")


def new_towers(tokenizer: CLIPTokenizer, pad_2: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two untrained two-layer towers, WIDTH wide, with this vocabulary's own bos, eos and pad.

    An eos outside the vocabulary would silently make all pooled embeddings equal.
    """
    towers = []
    for kind, pad in ((CLIPTextModel, tokenizer.pad_token_id), (CLIPTextModelWithProjection, pad_2)):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        tower = kind(config)
        nn.init.normal_(token_table(tower), std=EMBEDDING_STD)
        towers.append(tower)
    return towers[0], towers[1]


def token_table(tower: CLIPTextModel | CLIPTextModelWithProjection) -> Tensor:
    """The tower's token embeddings, one row a token."""
    weight: Tensor = tower.get_input_embeddings().weight
    return weight


class Wording:
    """Captions to token ids, quickly: every known word is one token, so encoding is a look-up."""

    def __init__(self, tokenizer: CLIPTokenizer, pads: tuple[int, int]) -> None:
        self.words = {w: tokenizer(w, add_special_tokens=False).input_ids for w in known_words()}
        split = [w for w, ids in self.words.items() if len(ids) != 1]
        if split:
            raise ValueError(f"words that are not one token: {split}")
        self.bos, self.eos, self.pads = tokenizer.bos_token_id, tokenizer.eos_token_id, pads
        used = {ids[0] for ids in self.words.values()} | {self.bos, self.eos, *pads}
        self.unused = np.array([i for i in range(len(tokenizer)) if i not in used])

    def ids(self, caption: str, rng: np.random.Generator, unknown: bool) -> tuple[list[int], list[int]]:
        """Ids with bos and eos, not padded; with `unknown`, 1-7 never-used ids are put in. Second: their places."""
        body = [self.words[w][0] for w in caption.replace(",", " , ").split()]
        if not unknown:
            return [self.bos, *body, self.eos], []
        strangers = rng.choice(self.unused, int(rng.integers(1, 8))).tolist()
        words = caption.replace(",", " , ").split()
        starts = [0, len(body)] + [i + 1 for i, w in enumerate(words) if w in ("of", "a", "the")] * 2
        at = int(rng.choice(starts))
        return [self.bos, *body[:at], *strangers, *body[at:], self.eos], list(range(at + 1, at + 1 + len(strangers)))

    def padded(self, rows: list[list[int]], tower: int, length: int = TOKENS) -> Tensor:
        """Rows padded to `length` as tokenizer `tower` (0 or 1) pads: int64, BL."""
        pad = self.pads[tower]
        return torch.tensor([row[:length] + [pad] * (length - len(row)) for row in rows])


def redraw_unused(towers: tuple[nn.Module, ...], unused: NDArray[np.int64], generator: torch.Generator) -> None:
    """Give never-used tokens new random embeddings, so that the towers learn to live with any unknown word."""
    rows = torch.from_numpy(unused)
    with torch.no_grad():
        for tower in towers:
            table = token_table(tower)
            table[rows] = torch.randn(len(rows), table.shape[1], generator=generator) * EMBEDDING_STD


def encode(
    towers: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    wording: Wording,
    rows: list[list[int]],
    length: int = TOKENS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Penultimate hidden states of both towers (BLD each) and the second tower's pooled projection (BP).

    length  tokens to pad to; the towers look only backwards, so fewer give the same states, sooner
    """
    first = towers[0](wording.padded(rows, 0, length), output_hidden_states=True)
    second = towers[1](wording.padded(rows, 1, length), output_hidden_states=True)
    return first.hidden_states[-2], second.hidden_states[-2], second.text_embeds


class ReadOut(nn.Module):
    """Names kind, colour, ground and scale from hidden states (attention pooling) or from the pooled vector."""

    def __init__(self, pools: bool) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, len(CLASSES)) if pools else None
        self.answers = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in CLASSES)

    def forward(self, states: Tensor) -> list[Tensor]:
        """Scores of every class, one BK tensor for each of CLASSES."""
        if self.query is None:
            return [answer(states) for answer in self.answers]
        weights = self.query(states).softmax(1)
        pooled = torch.einsum("blq,bld->qbd", weights, states)
        return [answer(p) for answer, p in zip(self.answers, pooled, strict=True)]


def any_caption(rng: np.random.Generator) -> str:
    """A caption of the grammar: plain 75 %, lace 20 %, wordless 5 %."""
    draw = rng.random()
    if draw < 0.05:
        return pick(rng, EMPTY_CAPTIONS)
    colour, ground = pick(rng, tuple(COLOURS)), pick(rng, tuple(COLOURS))
    if draw < 0.25:
        return lace_caption(rng, Spec(pick(rng, tuple(LACE_KINDS)), colour, ground))
    return plain_caption(rng, Spec(pick(rng, tuple(PLAIN_KINDS)), colour, ground, pick(rng, tuple(SCALES))))


def targets(captions: list[str]) -> list[Tensor]:
    """What the words say, as class numbers: one B tensor for each of kind, colour, ground, scale."""
    read = [read_caption(c) for c in captions]
    return [torch.tensor([names.index(r[i]) for r in read]) for i, names in enumerate(CLASSES)]


def train_towers(folder: Path, seed: int, steps: int, minutes: float) -> None:
    """Teach both towers the grammar and save them (fp32) under `folder`, next to the tokenizers.

    Each step redraws the embeddings of never-used ids, half of the captions hold some of them, and one read-out must
    tell where they stand: the towers' pooled meaning ignores an unknown word while its hidden states stay visible,
    which is what lets a LoRA bind a style to it.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pads = (tokenizer.pad_token_id, CLIPTokenizer.from_pretrained(folder / "tokenizer_2").pad_token_id)
    wording = Wording(tokenizer, pads)
    torch.manual_seed(seed)
    towers = new_towers(tokenizer, pads[1])
    heads = nn.ModuleList([ReadOut(True), ReadOut(True), ReadOut(False)])
    strangeness = nn.ModuleList([nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)])
    parameters = [p for m in (*towers, heads, strangeness) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-3)
    generator, began, batch = torch.Generator().manual_seed(seed), time.monotonic(), 64
    for step in range(steps):
        progress = max(step / steps, (time.monotonic() - began) / 60 / minutes)
        if progress >= 1:
            break
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 30) * (1 - progress) + 1e-5
        rng = np.random.default_rng((seed, 31, step))
        captions = [any_caption(rng) for _ in range(batch)]
        redraw_unused(towers, wording.unused, generator)
        rows, places = zip(*(wording.ids(c, rng, unknown=rng.random() < 0.5) for c in captions), strict=True)
        length = max(map(len, rows)) + 1
        hidden_1, hidden_2, pooled = encode(towers, wording, list(rows), length)
        answers = [head(s) for head, s in zip(heads, (hidden_1, hidden_2, pooled), strict=True)]
        truth = targets(captions)
        losses = [functional.cross_entropy(a, t) for answer in answers for a, t in zip(answer, truth, strict=True)]
        strange = torch.zeros(batch, length)
        for i, where in enumerate(places):
            strange[i, list(where)] = 1
        for probe, states in zip(strangeness, (hidden_1, hidden_2), strict=True):
            losses.append(functional.binary_cross_entropy_with_logits(probe(states)[..., 0], strange))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            right = [
                sum((a.argmax(-1) == t).float().mean().item() for a, t in zip(ans, truth, strict=True)) / len(CLASSES)
                for ans in answers
            ]
            print(f"text {step}/{steps}  loss {loss.item():.3f}  right {[round(r, 3) for r in right]}", flush=True)
    redraw_unused(towers, wording.unused, torch.Generator().manual_seed(seed + 1))
    for tower, name in zip(towers, ("text_encoder", "text_encoder_2"), strict=True):
        tower.save_pretrained(folder / name)
