"""What a step draws and how large it is: order, flips, times, noise and learning rate as functions of (seed, place).

No state is kept: any step can be asked for at any time and gives the same answer on every device, so that a resumed run
needs no saved random state and equals an unbroken one.

B batch · C latent channels (4) · H,W latent cells (px/8)
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

WARMUP_AT_MOST = 50  # steps: a 500-step warmup would be most of a 625-update run


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on nothing but the place, such as (seed, "noise", epoch, sample)."""
    digest = hashlib.sha256("|".join(str(part) for part in place).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def learning_rate(step: int, total: int, peak: float, kind: str, warmup_ratio: float) -> float:
    """The learning rate of update `step` (counted from 0) of `total`: a rise, then cosine, linear or constant.

    The last update of a cosine or linear schedule is above zero, so that no update is without effect.
    """
    warmup = min(round(warmup_ratio * total), WARMUP_AT_MOST)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if kind == "constant":
        return peak
    done = (step - warmup) / max(1, total - warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done)


@dataclass(frozen=True)
class Visit:
    """One look at one picture: which one, in which epoch, and the how-manieth repeat of that epoch."""

    sample: int
    epoch: int
    repeat: int


@dataclass(frozen=True)
class Stream:
    """An endless sequence of batches: every epoch holds each sample `repeats` times, each batch from one bucket.

    Samples are walked through in an order drawn for the epoch; each joins the open batch of its bucket, which is given
    out when full; what is left open at the end of the epoch follows as smaller batches. With one bucket, four batches
    of one are therefore the same pictures as one batch of four.
    """

    name: str
    buckets: tuple[tuple[int, int], ...]  # of each sample
    batch_size: int
    repeats: int
    seed: int

    @property
    def batches_in_epoch(self) -> int:
        """The same in every epoch, whatever the order."""
        counts = [self.buckets.count(bucket) * self.repeats for bucket in set(self.buckets)]
        return sum(math.ceil(count / self.batch_size) for count in counts)

    def epoch_of(self, number: int) -> int:
        """The epoch, from 0, that batch `number` belongs to."""
        return number // self.batches_in_epoch

    def batch(self, number: int) -> tuple[Visit, ...]:
        """Batch `number`, counted from 0 through all epochs."""
        epoch, place = divmod(number, self.batches_in_epoch)
        return _epoch(self, epoch)[place]


@lru_cache(maxsize=8)
def _epoch(stream: Stream, epoch: int) -> tuple[tuple[Visit, ...], ...]:
    count = len(stream.buckets)
    order = torch.randperm(
        count * stream.repeats, generator=generator(stream.seed, stream.name, "order", epoch)
    ).tolist()
    finished: list[tuple[Visit, ...]] = []
    open_batches: dict[tuple[int, int], list[Visit]] = {}
    for place in order:
        repeat, sample = divmod(place, count)
        batch = open_batches.setdefault(stream.buckets[sample], [])
        batch.append(Visit(sample, epoch, repeat))
        if len(batch) == stream.batch_size:
            finished.append(tuple(open_batches.pop(stream.buckets[sample])))
    return (*finished, *(tuple(batch) for batch in open_batches.values()))


@dataclass(frozen=True)
class Draws:
    """All chance of one visit, drawn in a fixed order from one generator."""

    is_flipped: bool
    is_wordless: bool  # learnt without its caption
    timestep: int
    spread_CHW: Tensor  # where in the VAE's posterior the latent lies, standard normal
    noise_CHW: Tensor  # with the offset


def draw(
    stream: Stream, visit: Visit, shape: Sequence[int], timesteps: int, caption_dropout: float, noise_offset: float
) -> Draws:
    """The chance of one visit; `shape` is its latent's C, H, W, and `timesteps` the length of the noise schedule.

    noise_offset adds one number a channel, so that overall brightness is learnt (crosslabs.org, 2023).
    """
    chance = generator(stream.seed, stream.name, visit.epoch, visit.repeat, visit.sample)
    flip, wordless = torch.rand(2, generator=chance).tolist()
    timestep = int(torch.randint(timesteps, (1,), generator=chance))
    spread, noise = torch.randn(2, *shape, generator=chance)
    offset = torch.randn(shape[0], 1, 1, generator=chance)
    return Draws(flip < 0.5, wordless < caption_dropout, timestep, spread, noise + noise_offset * offset)
