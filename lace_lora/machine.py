"""What this computer is, as one value with reasons: Colab, Drive, GPU, memory, disk, usable number format."""

import importlib.util
import os
import platform
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Precision = Literal["fp32", "fp16", "bf16"]
GIB = 1024**3

CHOOSE_A_GPU = "In Colab: Runtime → Change runtime type → T4 GPU → Save, then run the notebook again from the top."

FREE_SOME_SPACE = (
    "Free some space: about {gb:.0f} GB are needed. In Colab: Runtime → Disconnect and delete runtime brings a machine "
    "with an empty disk."
)
LARGER_GPU = (
    "Too small for SDXL. In Colab: Runtime → Change runtime type → T4 GPU or a larger one → Save; elsewhere, set "
    "preset demo."
)
LEAST_VRAM_GB = 6.0  # SDXL in 4 bits with checkpointing takes 2.7 at 1024 px; drawing in halves takes 4.8 and a picture
LEAST_DISK_GB = 5.0  # beside models: local copies of the pictures, the cache, checkpoints
ALLOW_DRIVE = "Run the cells again from the top, and allow access in the window that opens."


@dataclass(frozen=True)
class Machine:
    """One computer as it was found; sizes in GiB."""

    is_colab: bool
    drive_mounted: bool
    gpu_name: str | None
    vram_gb: float
    capability: tuple[int, int]
    ram_gb: float
    free_ram_gb: float
    free_disk_gb: float
    cpu_cores: int
    gpu_count: int = 1  # of the kind that is named, where one is
    cpu_name: str = ""  # of the processor, as the system gives it

    @classmethod
    def here(cls, drive_mount_path: str = "/content/drive", disk: str | Path | None = None) -> "Machine":
        """Look at this computer. Loads torch only where an NVIDIA driver is installed.

        disk  a folder on the disk to measure; without one, where base models are kept once they are downloaded
        """
        gpu_name, vram_gb, capability, gpu_count = _gpu()
        memory = psutil.virtual_memory()
        return cls(
            is_colab=in_colab(),
            drive_mounted=drive_is_mounted(drive_mount_path),
            gpu_name=gpu_name,
            vram_gb=vram_gb,
            capability=capability,
            ram_gb=memory.total / GIB,
            free_ram_gb=memory.available / GIB,
            free_disk_gb=_free_bytes(Path(disk or models_folder())) / GIB,
            cpu_cores=cores(),
            gpu_count=gpu_count,
            cpu_name=_cpu_name(),
        )

    @property
    def device(self) -> str:
        """torch's name of the device that computes: cuda or cpu."""
        return "cuda" if self.gpu_name else "cpu"

    def precision(self, mixed_precision: str = "auto") -> tuple[Precision, str]:
        """The number format of the frozen weights, and why. `mixed_precision` is the setting of that name."""
        if mixed_precision == "no":
            return "fp32", "fp32, as set"
        if mixed_precision == "bf16" and self.gpu_name and self.capability < (8, 0):
            # is_bf16_supported() says yes by emulation on such cards; a T4 has capability 7.5.
            return "fp16", f"fp16, because {self.gpu_name} has no bf16 units (capability {self._capability_text} < 8.0)"
        if mixed_precision == "fp16" and not self.gpu_name:
            return "fp32", "fp32, because fp16 on a CPU is far slower than fp32"
        if mixed_precision != "auto":
            return ("bf16" if mixed_precision == "bf16" else "fp16"), f"{mixed_precision}, as set"
        if not self.gpu_name:
            return "fp32", "fp32, because there is no GPU"
        if self.capability >= (8, 0):
            return "bf16", f"bf16, because {self.gpu_name} has units for it (capability {self._capability_text})"
        return "fp16", f"fp16, because {self.gpu_name} has no bf16 units (capability {self._capability_text} < 8.0)"

    def reasons(self, to_fetch_gb: float = 13.0) -> list[tuple[str, str, bool, str]]:
        """One row a fact: its name, what was found, whether that is good, and what to do when it is not.

        to_fetch_gb  what is still to be downloaded; SDXL and its refiner take 13
        """
        memory = f"{self.ram_gb:.1f} GB, {self.free_ram_gb:.1f} GB free"
        disk_gb = to_fetch_gb + LEAST_DISK_GB
        too_full = FREE_SOME_SPACE.format(gb=disk_gb)
        rows = [("GPU", self.gpu_name or "none", bool(self.gpu_name), CHOOSE_A_GPU)]
        if self.gpu_name:
            rows.append(("GPU memory", f"{self.vram_gb:.1f} GB", self.vram_gb >= LEAST_VRAM_GB, LARGER_GPU))
        rows += [
            ("memory", memory, self.free_ram_gb > 4, "Close other programs or notebooks."),
            ("disk", f"{self.free_disk_gb:.0f} GB free", self.free_disk_gb > disk_gb, too_full),
        ]
        if self.is_colab:
            drive = "mounted" if self.drive_mounted else "not mounted"
            rows.append(("Drive", drive, self.drive_mounted, ALLOW_DRIVE))
        return [(name, found, good, "" if good else advice) for name, found, good, advice in rows]

    @property
    def _capability_text(self) -> str:
        return ".".join(str(part) for part in self.capability)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch and the libraries below it say it in many ways."""
    text = str(error)
    says_so = any(part in text for part in ("out of memory", "allocate memory", "CUBLAS_STATUS_ALLOC_FAILED"))
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or says_so


def cores() -> int:
    """Cores of the CPU that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_colab() -> bool:
    """Whether this is a Colab machine: its own package is there (it is not on PyPI)."""
    return "google.colab" in sys.modules or _has_module("google.colab")


def drive_is_mounted(drive_mount_path: str | Path) -> bool:
    """Whether Drive is there and answers: the one definition (a dropped mount exists but cannot be listed).

    In Colab it must be a mount: files may have been written below the empty folder that an unmounted Drive leaves.
    Elsewhere any folder that holds something will do, for instance the one that Drive's own program keeps in step.
    """
    place = Path(drive_mount_path).expanduser()
    try:
        names = os.listdir(place)
    except OSError:
        return False
    is_mount = os.path.ismount(place)
    return is_mount and "MyDrive" in names if in_colab() else is_mount or bool(names)


def models_folder() -> Path:
    """Where base models are kept once they are downloaded, by the environment variables of Hugging Face."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def _gpu() -> tuple[str | None, float, tuple[int, int], int]:
    """Name, memory in GiB and compute capability of the first CUDA device, and how many there are.

    torch is asked only where a driver is.
    """
    has_driver = Path("/proc/driver/nvidia").exists() or Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")
    if not has_driver and "torch" not in sys.modules:
        return None, 0.0, (0, 0), 0
    try:
        import torch

        if torch.cuda.is_available():
            found = torch.cuda.get_device_properties(0)
            return found.name, found.total_memory / GIB, (found.major, found.minor), torch.cuda.device_count()
    except (ImportError, RuntimeError):
        pass  # a driver without a usable device is a machine without a GPU
    return None, 0.0, (0, 0), 0


def _cpu_name() -> str:
    """The processor's name; "" where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    told = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return told or platform.processor() or platform.machine()


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _free_bytes(path: Path) -> int:
    """What is free at a folder or the nearest one above it: a run's is often not made yet, or its Drive is gone."""
    path = path.expanduser().absolute()
    for folder in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0
