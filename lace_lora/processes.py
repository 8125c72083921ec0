"""The processes that train together: who this one is, sums over all of them, and waiting for the first.

Started by `accelerate launch` or `torchrun`; Accelerate reads what they tell through the environment. A run that was
started plainly is one process, and nothing here then costs anything.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from lace_lora.errors import MachineError
from lace_lora.families.quiet import quiet

with quiet():
    import torch
    import torch.distributed as dist
    from torch import Tensor
    from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


LONGEST_WAIT = timedelta(hours=12)


@dataclass(frozen=True)
class Processes:
    """One process among `count`; `device` is the one it computes on."""

    rank: int
    count: int
    device: str

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, batches: Sequence[int]) -> list[int]:
        """The batches of an update that are this process's work: every count-th, so that all differ by one at most."""
        return list(batches[self.rank :: self.count])

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 tensors of one device by their sums over all processes, in a single message."""
        if self.count == 1:
            return
        flat = _flatten_dense_tensors(list(tensors))
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, _unflatten_dense_tensors(flat, list(tensors)), strict=True):
            tensor.copy_(summed)

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.count > 1:
            dist.barrier()

    def check_same(self, number: int, what: str) -> None:
        """Raises MachineError where the processes do not agree on a number."""
        if self.count == 1:
            return
        found = torch.zeros(self.count, device=self.device)
        found[self.rank] = number
        dist.all_reduce(found)
        if len(set(found.tolist())) > 1:
            raise MachineError(
                f"The processes do not agree on {what} ({found.tolist()}). They must all see the same run folder: "
                "set lora_output_dir to a folder that every machine shares."
            )

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block in the first process, and then in the others, which find the files that it wrote."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def launched() -> int:
    """How many processes a launcher started; 1 where there was none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> Processes:
    """Find the other processes, if a launcher started any; each on a GPU of its own where there are GPUs.

    Raises MachineError where they do not find each other.
    """
    count, device = launched(), "cuda" if torch.cuda.is_available() else "cpu"
    if count == 1:
        return Processes(0, 1, device)
    with quiet():
        from accelerate import PartialState

        # One waits for the first while it encodes hundreds of pictures and draws class pictures; torch's own limit for
        # GPUs is ten minutes.
        state = PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)
    if state.num_processes != count:
        raise MachineError(
            f"{count} processes were started, but only {state.num_processes} found each other. "
            "Start them with torchrun, which tells each its number."
        )
    if device == "cuda":
        torch.cuda.set_device(state.local_process_index)  # "cuda" now means this one
    return Processes(state.process_index, count, device)
