"""How fast a machine computes, and what machines there are: a table of GPUs, each row measured or an estimate.

The table is plan_data/machines.yaml. A speed is what SDXL reaches, not the maker's figure, in TFLOP a second: in half
precision, and in fp32, in which the VAE runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lace_lora.declarations import nearest
from lace_lora.errors import SettingsError
from lace_lora.machine import Machine

FILE = Path(__file__).parent / "plan_data" / "machines.yaml"
ESTIMATED = "estimated from FLOPs"


@dataclass(frozen=True)
class Work:
    """What takes time.

    layers     passed through in all, each of which costs something beside its FLOPs
    nf4_gb     of weights in 4 bits that are read and made wide again, GB of 10^9 bytes
    processes  that share it
    """

    tflop: float
    layers: float = 0.0
    is_fp32: bool = False
    nf4_gb: float = 0.0
    processes: int = 1


@dataclass(frozen=True)
class Speed:
    """What a machine does a second, and where that is known from ("estimated from FLOPs", or how it was measured)."""

    name: str
    half_tflops: float
    full_tflops: float
    gb_s: float  # of its memory
    source: str
    seconds_a_layer: float = 0.0  # beside its FLOPs
    queues: bool = False  # whether the next layer is started while one computes, as on a GPU

    def seconds(self, work: Work) -> float:
        """How long work takes."""
        rate = self.full_tflops if work.is_fp32 else self.half_tflops
        computing, starting = work.tflop / rate + work.nf4_gb / self.gb_s, work.layers * self.seconds_a_layer
        return (max(computing, starting) if self.queues else computing + starting) / work.processes


@lru_cache(maxsize=1)
def table() -> Mapping[str, Any]:
    """The whole file."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def names() -> list[str]:
    """The GPUs that the table knows."""
    return list(table()["gpus"])


def name_of(gpu: str, vram_gb: float = 0.0) -> str | None:
    """The row of a GPU by the name that its driver gives, or None: "Tesla T4" is T4, an A100 with 80 GB A100-80GB."""
    words = gpu.upper().replace("-", " ").split()
    fitting = [name for name in names() if name.partition("-")[0] in words]
    if not fitting:
        return None
    if "80GB" in words and f"{fitting[0]}-80GB" in fitting:
        return f"{fitting[0]}-80GB"
    return min(fitting, key=lambda name: abs(table()["gpus"][name]["vram_gb"] - vram_gb)) if vram_gb else fitting[0]


def kind(machine: Machine) -> str:
    """What machines of one speed share: the GPU's row or name, or without one the processor and its cores."""
    if machine.gpu_name is None:
        return f"CPU, {machine.cpu_cores} cores, {machine.cpu_name or 'of no name'}"
    return name_of(machine.gpu_name, machine.vram_gb) or machine.gpu_name


def of(machine: Machine) -> Speed | None:
    """How fast a machine is, or None for a GPU that the table does not know."""
    if machine.gpu_name is None:
        row, cores = table()["cpu"], machine.cpu_cores
        return Speed("CPU", row["half_tflops_a_core"] * cores, row["full_tflops_a_core"] * cores, row["gb_s"],
                     row["source"], row["seconds_a_layer"])  # fmt: skip
    name = name_of(machine.gpu_name, machine.vram_gb)
    if name is None:
        return None
    row = table()["gpus"][name]
    return Speed(name, row["half_tflops"], row["full_tflops"], row["gb_s"], row["source"],
                 table()["gpu_seconds_a_layer"], queues=True)  # fmt: skip


def machine(gpu: str, here: Machine | None = None) -> Machine:
    """A machine with this GPU, to plan for while sitting at another: Colab's where Colab has it.

    gpu  a name of the table, or cpu: no GPU, the rest as it is here

    Raises SettingsError for a GPU that the table does not know, with the nearest one.
    """
    if gpu.casefold() in ("cpu", "none"):
        there = {name: getattr(here, name) for name in ("ram_gb", "free_disk_gb", "cpu_cores")} if here else {}
        return Machine(False, False, None, 0.0, (0, 0), there.get("ram_gb", 16.0), there.get("ram_gb", 16.0),
                       there.get("free_disk_gb", 100.0), there.get("cpu_cores", 4),
                       cpu_name=here.cpu_name if here else "")  # fmt: skip
    known = {name.casefold(): name for name in names()}
    name = known.get(gpu.casefold()) or name_of(gpu)
    if name is None:
        raise SettingsError(f"No GPU called {gpu!r} in the plan's table{nearest(gpu, names())} "
                            f"There are: {', '.join(names())} and cpu.")  # fmt: skip
    row = table()["gpus"][name]
    rest = table()["colab"].get(name) or table()["elsewhere"]
    return Machine(
        is_colab=name in table()["colab"],
        drive_mounted=False,
        gpu_name=name,
        vram_gb=row["vram_gb"],
        capability=(row["capability"][0], row["capability"][1]),
        ram_gb=rest["ram_gb"],
        free_ram_gb=rest["ram_gb"],
        free_disk_gb=rest["disk_gb"],
        cpu_cores=rest["cpu_cores"],
        gpu_count=1,
    )


def by_size() -> list[str]:
    """The GPUs, usual ones first, each kind from the smallest memory up."""
    usual = table()["usual"]
    return sorted(names(), key=lambda name: (name not in usual, table()["gpus"][name]["vram_gb"]))


def side_by_side(processes: int, here: Machine) -> int:
    """How many processes compute at the same time on one machine: one a GPU; and one of a CPU, whose cores it fills."""
    return max(1, min(processes, here.gpu_count)) if here.gpu_name else 1


def in_one_memory(processes: int, here: Machine) -> int:
    """How many of the processes lie in one computer's memory: all, but for those that need a GPU elsewhere."""
    return side_by_side(processes, here) if here.gpu_name else processes


def pictures_at_once(cells: int, here: Machine) -> int:
    """Pictures of so many latent cells that are drawn together, 8 at most: on a GPU as many cells as one SDXL picture
    of 1024 px has, which with guidance fits beside the UNet in 15 GB, and two or four times as many in 20 or 36 GB.

    On a CPU a batch saves next to nothing (the demo's 96 px: 8 at once 2.92 s, one by one 3.02 s), and a small one
    loses less when it is cut off.
    """
    room = 128 * 128 * (4 if here.vram_gb >= 36 else 2 if here.vram_gb >= 20 else 1)
    return max(1, min(8, (room if here.gpu_name else 48 * 48) // cells))
