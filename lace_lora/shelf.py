"""Models that stay in memory between stages, between groups of batches and between two sheets, as far as there is room.

A stage borrows its model from the shelf and hands it back. Where there is room it lies there for whoever asks for the
same weights next; where memory is short it is let go at once, so that there are never two UNets.

What is on the shelf is never changed: a LoRA fused at another scale is another model, loaded afresh, so that pictures
have the same bytes with a shelf and without one.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from lace_lora.families import memory
from lace_lora.machine import GIB, Machine, is_out_of_memory

# What a GPU keeps free for working. SDXL's largest moment is decoding one picture of 1024 px in fp32: 3.0 GiB of
# activations, counted on the meta device (a UNet's pass takes 0.31 a picture with guidance). CUDA itself takes 0.5, a
# twentieth is lost between blocks of different sizes, and the fast convolutions want room to rearrange their input.
# It is not measured, so running out is provided for. 15 GB less this are less than SDXL's two UNets, 4.78 + 4.21 GiB.
WORKING_GIB = 6.5
# A CPU shares its memory with everything else and is stopped by the system, without an error, when it runs out. The
# other half holds the next model while it is read, and the work.
SHARE_OF_FREE_RAM = 0.5

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """Weights that a stage asks for. The key and the size are worked out only by a shelf that may keep them.

    load        the model from its files, complete: with the LoRA fused, on its device
    key         everything that decides the numbers: part, content of the files, dtype, device, LoRA and its scale
    size_bytes  of the weights once loaded, known before they are
    """

    load: Callable[[], Any]
    key: Callable[[], Hashable]
    size_bytes: Callable[[], int]


class Lent:
    """A model in the hands of a stage. A stage computes with it and keeps no reference: it is let go at the end."""

    def __init__(self, model: Any, shelf: "Shelf") -> None:
        self.model, self._shelf = model, shelf

    def compute(self, work: Callable[..., T], *given: Any) -> T:
        """work(model, *given). Where memory runs out, what else lies on the shelf is let go, and it is tried again."""
        return self._shelf.with_room(lambda: work(self.model, *given))


class Shelf:
    """Loaded models, the one used longest ago first to go.

    room_bytes  weights that may be in memory at a time, those lent counted; 0 keeps nothing
    say         told when memory runs out and the shelf is emptied for it
    """

    def __init__(self, room_bytes: float, say: Say = lambda line: None) -> None:
        self.room_bytes, self._say = room_bytes, say
        self._kept: dict[Hashable, tuple[Any, int]] = {}
        self._lent_bytes = 0

    @classmethod
    def of(cls, machine: Machine, say: Say = lambda line: None) -> "Shelf":
        """A shelf with the room that this machine has beside the work, see WORKING_GIB and SHARE_OF_FREE_RAM.

        Of SDXL in half precision (10.8 GiB) 24 GB hold all, 15 GB either UNet with the text encoders and the VAE.
        """
        gib = machine.vram_gb - WORKING_GIB if machine.gpu_name else machine.free_ram_gb * SHARE_OF_FREE_RAM
        return cls(max(0.0, gib) * GIB, say)

    def __str__(self) -> str:
        """How much may stay, as a sentence."""
        if self.room_bytes <= 0:
            return "every model is let go after its stage"
        return f"models stay in memory between stages, {self.room_bytes / GIB:.1f} GB of them at most"

    @contextmanager
    def lent(self, wanted: Wanted) -> Iterator[Lent]:
        """A model for the time of a stage, from the shelf or loaded; then back on the shelf, or let go.

        While it is lent it is not on the shelf. So a stage that was left half-way by somebody who still holds it, with
        its model padded for a repeat, can never share that model with the next.
        """
        may_keep = self.room_bytes > 0
        key, size = (wanted.key(), wanted.size_bytes()) if may_keep else (None, 0)
        lent = Lent(self._kept.pop(key, (None, 0))[0], self)
        if lent.model is None:
            self._make_room(size)
        self._lent_bytes += size
        is_sound = False
        try:
            if lent.model is None:
                lent.model = self.with_room(wanted.load)
            yield lent
            is_sound = True
        except (Exception, GeneratorExit):
            # Padding is back to normal by now, and nothing else changes a model. But Ctrl-C comes between any two
            # instructions, also between a change and the note that it is to be undone: then the model is let go.
            is_sound = lent.model is not None
            raise
        finally:
            self._lent_bytes -= size
            model, lent.model = lent.model, None
            is_kept = may_keep and is_sound and size <= self.room_bytes
            if is_kept:
                self._make_room(size)
                self._kept[key] = (model, size)
            del model
            if not is_kept:
                memory.give_back_memory()

    def with_room(self, work: Callable[[], T]) -> T:
        """work(), and once more with an empty shelf where memory ran out; from then on no more is kept than was lent.

        Raises what work raises where nothing is left to let go.
        """
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self.give_back():
                raise
        # Out here because an error holds on to all that its work had in memory.
        memory.give_back_memory()
        self.room_bytes = min(self.room_bytes, self._lent_bytes)
        self._say("memory    is short: fewer models are kept between stages from now on")
        return work()

    def give_back(self) -> bool:
        """Let go of everything that is not lent; True where there was anything."""
        had_any = bool(self._kept)
        self._kept.clear()
        if had_any:
            memory.give_back_memory()
        return had_any

    # -- inside --

    def _make_room(self, size_bytes: int) -> None:
        """Let go of what was used longest ago until as much fits."""
        before = len(self._kept)
        wanted = self._lent_bytes + size_bytes
        while self._kept and wanted + sum(size for _, size in self._kept.values()) > self.room_bytes:
            del self._kept[next(iter(self._kept))]
        if len(self._kept) < before:
            memory.give_back_memory()
