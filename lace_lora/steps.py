"""The training loop: a generator that yields after every update, so that stopping between two loses nothing."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from lace_lora import parts as state
from lace_lora import schedule
from lace_lora.config import Config
from lace_lora.errors import RunError
from lace_lora.families import memory
from lace_lora.families.quiet import quiet
from lace_lora.losses import Pictures, losses_of_batch
from lace_lora.machine import is_out_of_memory
from lace_lora.optimizers import set_rate
from lace_lora.parts import Parts
from lace_lora.processes import Processes

with quiet():
    import torch
    from torch import Tensor, nn

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One finished update. Its numbers are still on the device: the first look at one waits for the GPU."""

    number: int  # from 1
    total: int
    epoch: int  # from 0
    learning_rate: float
    seconds: float  # until it was handed to the device, which is until it was done on a CPU
    names: tuple[str, ...]  # of its pictures
    someone_stops: bool = False  # whether any of the processes was asked to
    validation: dict[str, Any] | None = None  # the look at the held-out pictures that followed, as a row of the log
    samples: tuple[Path, ...] = ()  # sample pictures that were drawn after it
    _numbers: Tensor | None = None  # loss, loss of the class pictures (NaN: none), length of the gradient
    _has_prior: bool = False

    @cached_property
    def numbers(self) -> tuple[float, float | None, float]:
        """Loss, class pictures' loss and gradient norm, read from the device."""
        assert self._numbers is not None
        loss, prior, norm = self._numbers.tolist()
        return loss, prior if self._has_prior else None, norm

    @property
    def loss(self) -> float:
        """Mean over its pictures, weighted as it was learnt."""
        return self.numbers[0]

    @property
    def prior_loss(self) -> float | None:
        """The same over its class pictures, before prior_loss_weight."""
        return self.numbers[1]

    @property
    def gradient_norm(self) -> float:
        """Length of the gradient before clipping."""
        return self.numbers[2]

    def with_events(self, validation: dict[str, Any] | None, samples: tuple[Path, ...]) -> "Step":
        """The same step with what was done after it."""
        return replace(self, validation=validation, samples=samples)

    def as_row(self) -> dict[str, Any]:
        """The step as a line of log.jsonl."""
        row = {"step": self.number, "loss": self.loss, "lr": self.learning_rate, "epoch": self.epoch}
        if self.prior_loss is not None:
            row["prior_loss"] = self.prior_loss
        norm = self.gradient_norm if math.isfinite(self.gradient_norm) else None  # JSON has no infinity
        return row | {"gradient_norm": norm, "seconds": round(self.seconds, 4)}


def steps(
    parts: Parts,
    pictures: Pictures,
    class_pictures: Pictures | None,
    settings: Config,
    start: int,
    *,
    processes: Processes | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    say: Say = print,
) -> Iterator[Step]:
    """Train from update `start` on; yield a Step after each optimizer update.

    gradient_accumulation_steps counts the batches of an update over all processes together, so the same settings give
    the same result, within rounding, however many processes share the work.

    Nothing here waits for a GPU; a loss that is not a number shows when a Step is read, and must be read before
    anything is saved (see check_finite).
    """
    processes = processes or Processes(0, 1, parts.device)
    total, accumulate = int(settings.max_train_steps), int(settings.gradient_accumulation_steps)
    for number in range(start, total):
        began = perf_counter()
        rate = schedule.learning_rate(
            number, total, settings.learning_rate, settings.lr_scheduler, settings.lr_warmup_ratio
        )
        set_rate(parts.optimizer, rate)

        batches = range(number * accumulate, (number + 1) * accumulate)
        work = [(pictures, 1.0)]
        work += [(class_pictures, settings.prior_loss_weight)] if class_pictures is not None else []
        losses = _gradients(parts, work, batches, settings, processes, say)
        stops = _sum_up(parts, losses, processes, asked_to_stop())
        parts.made = None
        norm = _update(parts, settings.max_grad_norm)
        parts.made = number + 1
        yield Step(
            number=number + 1,
            total=total,
            epoch=pictures.stream.epoch_of(batches[-1]),
            learning_rate=rate,
            seconds=perf_counter() - began,
            names=_names(pictures, batches),
            someone_stops=stops,
            _numbers=torch.stack([losses[0], losses[-1], norm]),
            _has_prior=class_pictures is not None,
        )


def check_finite(step: Step, scaler: torch.amp.GradScaler) -> None:
    """Raises RunError, which names the pictures, where a loss or gradient of a step is not a number."""
    losses = [loss for loss in (step.loss, step.prior_loss) if loss is not None]
    is_bad_loss = not all(math.isfinite(loss) for loss in losses)
    # An overflow now and then only lowers the loss scale; below 1 nothing is learnt any more.
    is_scaled = scaler.is_enabled() and (math.isfinite(step.gradient_norm) or scaler.get_scale() >= 1)
    if is_bad_loss or (not math.isfinite(step.gradient_norm) and not is_scaled):
        raise RunError(
            f"The {'loss' if is_bad_loss else 'gradient'} became NaN at step {step.number}, with "
            f"{', '.join(step.names)}. The last checkpoint is kept. Next to try: mixed_precision bf16 or no, a smaller "
            "learning_rate or leaving these pictures out, both under another run_name."
        )


def _gradients(
    parts: Parts,
    work: Sequence[tuple[Pictures, float]],
    batches: Sequence[int],
    settings: Config,
    processes: Processes,
    say: Say,
) -> list[Tensor]:
    """The gradients of one update and its losses, begun again with fewer activations kept where memory runs out.

    Nothing is lost by that, and nothing changes: all chance is drawn by place.
    """
    while True:
        try:
            return [_backward(parts, pictures, batches, settings, weight, processes) for pictures, weight in work]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not state.save_memory(parts):
                raise
        state.forget_gradients(parts)  # outside the except block: the error holds what filled the memory
        memory.give_back_memory()
        say(f"memory    ran out; from here on gradient_checkpointing is {parts.checkpointing}, and nothing is lost")


def _backward(
    parts: Parts, pictures: Pictures, batches: Sequence[int], settings: Config, weight: float, processes: Processes
) -> Tensor:
    """Gradients of this process's share of the mean loss over all pictures of an update, however they are batched.

    returns  this share of the mean, 0-dimensional, on the device
    """
    count = sum(len(pictures.stream.batch(number)) for number in batches)
    loss = torch.zeros((), device=parts.device)
    for number in processes.share(batches):
        share = losses_of_batch(parts, pictures, number, settings).sum() / count
        parts.scaler.scale(share * weight).backward()
        state.gather(parts)
        loss += share.detach()
    return loss


def _sum_up(parts: Parts, losses: list[Tensor], processes: Processes, asked_to_stop: bool) -> bool:
    """Gradients and losses over all processes; returns whether any of them was asked to stop."""
    if processes.count == 1:
        return asked_to_stop
    for master in parts.masters.values():  # a process without a batch of its own has no gradients
        if master.grad is None:
            master.grad = torch.zeros_like(master)
    stop = torch.tensor(float(asked_to_stop), device=parts.device)
    processes.sum_([*(master.grad for master in parts.masters.values() if master.grad is not None), *losses, stop])
    # The one number that several processes wait for in every update: they must all stop after the same one.
    return bool(stop)


def _update(parts: Parts, max_grad_norm: float) -> Tensor:
    """Clip and apply the gradients; returns their length, 0-dimensional, on the device.

    With loss scaling an overflow is expected now and then: the scaler skips that update and lowers its scale.
    """
    parts.scaler.unscale_(parts.optimizer)
    norm = nn.utils.clip_grad_norm_(parts.masters.values(), max_grad_norm or math.inf)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    state.publish(parts)
    state.forget_gradients(parts)
    return norm


def _names(pictures: Pictures, batches: Sequence[int]) -> tuple[str, ...]:
    samples = dict.fromkeys(visit.sample for number in batches for visit in pictures.stream.batch(number))
    return tuple(pictures.cache.samples[sample].path.name for sample in samples)
