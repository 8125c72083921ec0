"""What a step takes: seconds, FLOPs, and bytes of live tensors. Each is measured in a pass of its own.

Counting FLOPs keeps tensors alive that checkpointing would give back, and noting tensors takes time.
"""

import gc
import resource
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Meter = Callable[[], dict[str, float]]  # begun when made, read once
data_bytes = 0  # of all encoded pictures, where a loop holds more of them than those of its step


def seconds() -> Meter:
    """CPU seconds of this process (all its threads), and seconds of the clock after the GPU is done."""
    _wait()
    cpu, clock = time.process_time(), time.perf_counter()

    def read() -> dict[str, float]:
        _wait()
        return {"cpu_s": time.process_time() - cpu, "clock_s": time.perf_counter() - clock}

    return read


def flops() -> Meter:
    """FLOPs of all matrix products, convolutions and attentions, two a multiply-add, as PyTorch counts them.

    PyTorch counts nothing for the CPU's fused attention and for products that are added in place; they are counted
    here with PyTorch's formulas for their like.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_cpu_attention() | _in_place())
    counting = ExitStack()
    counting.enter_context(counter)

    def read() -> dict[str, float]:
        counting.close()
        return {"gflop": counter.get_total_flops() / 1e9}

    return read


def memory() -> Meter:
    """Bytes of all live tensors: held when the step begins, and at most while it runs.

    Every tensor that an operation gives back is noted by its storage until that is freed. Scratch memory inside one
    operation is not seen.
    """
    gc.collect()
    live = LiveTensors()
    held = live.note_all()
    noting = ExitStack()
    noting.enter_context(live)

    def read() -> dict[str, float]:
        noting.close()
        return {"held_mb": held / 1e6, "peak_mb": live.peak / 1e6, "data_mb": data_bytes / 1e6, "rss_mb": _rss_mb()}

    return read


def vram() -> Meter:
    """The most that PyTorch's allocator gave out on the GPU in a step; what CUDA itself takes is not in it."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()

    def read() -> dict[str, float]:
        _wait()
        return {"peak_vram_gib": torch.cuda.max_memory_allocated() / 1024**3, "data_mb": data_bytes / 1e6}

    return read


METERS: dict[str, Callable[[], Meter]] = {"seconds": seconds, "flops": flops, "memory": memory, "vram": vram}


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, notes every tensor made; `peak` is the most bytes that were alive together."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self._known: dict[int, Any] = {}

    def note_all(self) -> int:
        """Note what is alive already; returns its bytes."""
        for one in gc.get_objects():
            if issubclass(type(one), torch.Tensor):
                self._note(one)
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run the operation and note its results."""
        result = func(*args, **(kwargs or {}))
        for one in tree_iter(result):
            if isinstance(one, torch.Tensor):
                self._note(one)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta" or tensor.layout != torch.strided or isinstance(tensor, FakeTensor):
            return  # nothing of it is in memory; compiling leaves some behind
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        # A storage's Python object lives as long as the storage, so its end is the end of the memory.
        self._known[key] = weakref.finalize(storage, self._forget, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size


def matmul_rate(dtype: torch.dtype, device: str, side: int = 8192, repeats: int = 20) -> float:
    """FLOPs a second of the largest plain matrix products: what a step's rate is a share of."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        one @ other
    read = seconds()
    for _ in range(repeats):
        one @ other
    return 2 * side**3 * repeats / read()["clock_s"]


def _cpu_attention() -> dict[Any, Any]:
    def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(above: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_backward_flop_count(above, query, key, value))  # type: ignore[no-untyped-call]

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def _in_place() -> dict[Any, Any]:
    def added(held: Any, one: Any, other: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * int(one[0]) * int(one[1]) * int(other[1])

    return {torch.ops.aten.addmm_: added}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bytes_of_live_tensors() -> int:
    """Of all tensors of this process."""
    gc.collect()
    return LiveTensors().note_all()


def most_held_mb() -> float:
    """The most memory that this process has held, as the system counts it.

    Linux hands getrusage's number on to a new program that a process becomes, so a small one begins with its parent's.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 / 1e6 if found else _rss_mb()


def _rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
