"""What a step draws and how large it is: order, cuts, times, noise and learning rate as functions of (seed, place).

No state is kept: any step can be asked for at any time and gives the same answer on every device, so that a resumed run
needs no saved random state and equals an unbroken one.

B batch · C latent channels (4) · H,W latent cells (px/8)
"""

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

# Places in the noise schedule that are told apart: a multiple of SDXL's 1000 steps. The place modulo 1000 is what torch
# draws for 1000 steps, so that runs of before go on as they began. From 2**28 on it would draw twice as many bits.
PLACES, STEPS = 268_000_000, 1000
WARMUP_AT_MOST = 50  # steps: a 500-step warmup would be most of a 625-update run


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on nothing but the place, such as (seed, "noise", epoch, sample)."""
    digest = hashlib.sha256("|".join(str(part) for part in place).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seed(*place: int | str) -> int:
    """A seed below 2**31 that depends on nothing but the place."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, place)).encode()).digest()[:4], "big") >> 1


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
    """One look at one picture: which one, in which epoch, the how-manieth repeat there, and which of its cuts."""

    sample: int
    epoch: int
    repeat: int
    variant: int


@dataclass(frozen=True)
class Stream:
    """An endless sequence of batches: every epoch holds each sample `repeats` times, each batch from one bucket.

    Samples are walked through in an order drawn for the epoch; of each, one of its cuts is drawn and joins the open
    batch of its bucket, which is given out when full; what is left open at the end of the epoch follows as smaller
    batches. With one bucket, four batches of one are therefore the same pictures as one batch of four.
    """

    name: str
    buckets: tuple[tuple[tuple[int, int], ...], ...]  # of each sample's cuts
    batch_size: int
    repeats: int
    seed: int

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.buckets, self.batch_size, self.repeats, self.seed))

    def __hash__(self) -> int:
        """Counted once: a thousand pictures with many cuts would be walked through at every look into a cache."""
        return self._hash

    def batches_in(self, epoch: int) -> int:
        """How many batches an epoch has: all the same, unless a sample's cuts are of different buckets."""
        same = _batches_in_each(self)
        return same if same is not None else len(_epoch(self, epoch))

    def epoch_of(self, number: int) -> int:
        """The epoch, from 0, that batch `number` belongs to."""
        return self._place_of(number)[0]

    def batch(self, number: int) -> tuple[Visit, ...]:
        """Batch `number`, counted from 0 through all epochs."""
        epoch, place = self._place_of(number)
        return _epoch(self, epoch)[place]

    def _place_of(self, number: int) -> tuple[int, int]:
        """Epoch of a batch, and its place in it."""
        same = _batches_in_each(self)
        if same is not None:
            return divmod(number, same)
        ends = _ends(self)
        while not ends or ends[-1] <= number:
            ends.append((ends[-1] if ends else 0) + len(_epoch(self, len(ends))))
        epoch = bisect_right(ends, number)
        return epoch, number - (ends[epoch - 1] if epoch else 0)


@lru_cache(maxsize=8)
def _batches_in_each(stream: Stream) -> int | None:
    """The number of batches of every epoch, or None where it depends on which cuts were drawn."""
    if any(len(set(shapes)) > 1 for shapes in stream.buckets):
        return None
    counts = Counter(shapes[0] for shapes in stream.buckets)
    return sum(math.ceil(count * stream.repeats / stream.batch_size) for count in counts.values())


@lru_cache(maxsize=8)
def _ends(stream: Stream) -> list[int]:
    """Where each epoch ends, counted in batches, as far as was asked for. The list grows; what is in it stays."""
    return []


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
        visit = Visit(sample, epoch, repeat, _variant(stream, sample, epoch, repeat))
        bucket = stream.buckets[sample][visit.variant]
        batch = open_batches.setdefault(bucket, [])
        batch.append(visit)
        if len(batch) == stream.batch_size:
            finished.append(tuple(open_batches.pop(bucket)))
    return (*finished, *(tuple(batch) for batch in open_batches.values()))


def _variant(stream: Stream, sample: int, epoch: int, repeat: int) -> int:
    """Which cut is looked at, each as likely as the others: by the first number that `draw` draws for the visit.

    Counted from the last one, so that of a plain and a mirrored cut the mirrored one belongs to numbers below a half.
    """
    count = len(stream.buckets[sample])
    if count == 1:
        return 0
    first = float(torch.rand(2, generator=_chance(stream, sample, epoch, repeat))[0])
    return count - 1 - int(first * count)


def _chance(stream: Stream, sample: int, epoch: int, repeat: int) -> torch.Generator:
    return generator(stream.seed, stream.name, epoch, repeat, sample)


@dataclass(frozen=True)
class Draws:
    """All chance of one visit, drawn in a fixed order from one generator."""

    is_wordless: bool  # learnt without its caption
    within: float  # where in the noise schedule: uniform between 0 and 1
    spread_CHW: Tensor  # where in the VAE's posterior the latent lies, standard normal
    noise_CHW: Tensor  # with the offset


def draw(stream: Stream, visit: Visit, shape: Sequence[int], caption_dropout: float, noise_offset: float) -> Draws:
    """The chance of one visit; `shape` is its latent's C, H, W.

    noise_offset adds one number a channel, so that overall brightness is learnt (crosslabs.org, 2023).
    """
    chance = _chance(stream, visit.sample, visit.epoch, visit.repeat)
    _, wordless = torch.rand(2, generator=chance).tolist()  # the first number chose the cut: see _variant
    fine, step = divmod(int(torch.randint(PLACES, (1,), generator=chance)), STEPS)
    within = (step + (fine + 0.5) / (PLACES // STEPS)) / STEPS
    spread, noise = torch.randn(2, *shape, generator=chance)
    offset = torch.randn(shape[0], 1, 1, generator=chance)
    return Draws(wordless < caption_dropout, within, spread, noise + noise_offset * offset)
