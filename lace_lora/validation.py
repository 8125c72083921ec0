"""Looking at held-out pictures while training: is it still learning, or already copying?

The same noise and the same times at every look, so that two looks differ by what was learnt and by nothing else: drawn
anew each time, the loss would jump by more than it falls in a hundred steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lace_lora import cache, schedule
from lace_lora.config import Config
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded
from lace_lora.losses import losses, question
from lace_lora.parts import Parts, averaged
from lace_lora.processes import Processes

with quiet():
    import torch
    from torch import Tensor

PICTURES_AT_MOST = 12  # a look at 12 and as many of the training set is 96 forward passes, about a minute on a T4
TIMES = 4  # noise levels of each picture, one in every quarter of the schedule


@dataclass(frozen=True)
class Views:
    """What is looked at: held-out pictures, and as many of those that are learnt, for comparison."""

    held_out: cache.Cache
    learnt: cache.Cache
    probe: tuple[int, ...]  # numbers of the samples of `learnt` that are looked at

    @classmethod
    def of(cls, held_out: cache.Cache, learnt: cache.Cache, seed: int) -> "Views":
        """As many learnt pictures as there are held-out ones, always the same."""
        order = torch.randperm(len(learnt.samples), generator=schedule.generator(seed, "probe")).tolist()
        return cls(held_out, learnt, tuple(sorted(order[: len(held_out.samples)])))


def look(parts: Parts, views: Views, settings: Config, step: int, processes: Processes) -> dict[str, Any]:
    """A row of the log: the mean loss of both sets after `step` updates, and that of each held-out picture in order.

    The share of each process is summed exactly: every picture's loss stands in one place of one vector.
    """
    work = [(views.held_out, number) for number in range(len(views.held_out.samples))]
    work += [(views.learnt, number) for number in views.probe]
    found = torch.zeros(len(work), device=parts.device)
    with torch.no_grad(), averaged(parts):
        for place in processes.share(range(len(work))):
            found[place] = _loss(parts, *work[place], settings)
    processes.sum_([found])
    numbers, count = found.tolist(), len(views.held_out.samples)
    held_out, probe = numbers[:count], numbers[count:]
    each = [_mean([loss]) for loss in held_out]
    return {"step": step, "val_loss": _mean(held_out), "train_probe_loss": _mean(probe), "val_losses": each}


def is_best(row: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> bool:
    """Whether no earlier look found a lower loss. The look before training is no choice: nothing was learnt yet."""
    if row["step"] == 0 or row["val_loss"] is None:
        return False
    return all(row["val_loss"] < one["val_loss"] for one in chosen_from(earlier))


def chosen_from(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The looks that a best one can be among: after the first step, and with a loss that is a number."""
    return [row for row in rows if row["step"] > 0 and row["val_loss"] is not None]


def looks_since_best(rows: Sequence[dict[str, Any]]) -> int:
    """How many looks came after the best one; looks before training count as none."""
    later = [row for row in rows if row["step"] > 0]
    losses = [math.inf if row["val_loss"] is None else row["val_loss"] for row in later]
    return max(0, len(later) - 1 - losses.index(min(losses))) if losses else 0


def _mean(numbers: Sequence[float]) -> float | None:
    """None where it is no number (half precision can overflow in a look too), as JSON knows no NaN."""
    mean = sum(numbers) / len(numbers)
    return mean if math.isfinite(mean) else None


def _loss(parts: Parts, encoded: cache.Cache, number: int, settings: Config) -> Tensor:
    """One picture's mean loss over its fixed times and noise, in its first cut and not mirrored."""
    sample = encoded.samples[number]
    shape = encoded.latent_shape(number, 0)
    # By content: another order or another set leaves each picture's noise as it was.
    chance = schedule.generator(settings.seed, "validation", sample.sha256)
    noise_BCHW = torch.randn((TIMES, *shape), generator=chance)
    within_B = (torch.arange(TIMES) + torch.rand(TIMES, generator=chance)) / TIMES
    times_B = parts.family.times(parts.noising, within_B).to(parts.device)
    batch = encoded.batch([(number, 0)], parts.device)
    words = batch.words
    if parts.text is not None:
        words = parts.family.encode_captions(parts.text, [sample.caption])
    latents_BCHW = parts.family.scale_latents(batch.mean_BCHW, parts.sizes).expand(TIMES, -1, -1, -1)
    same = Encoded(words.text_BLD.expand(TIMES, -1, -1), words.pooled_BP.expand(TIMES, -1))
    ids_BS = batch.size_numbers_BS.expand(TIMES, -1)
    asked = question(parts, latents_BCHW, noise_BCHW.to(parts.device), times_B, same, ids_BS)
    return losses(parts, asked, settings).mean()
