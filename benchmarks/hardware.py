"""What a benchmark ran on, without the name of the machine or of anybody on it."""

import os
import platform
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")


def name(device: str) -> str:
    """The processor or the GPU."""
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 1024**3:.0f} GiB"
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    wide = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if any(f" {flag}" in line for line in lines)
    ]
    return f"{model}, {os.cpu_count()} cores, {' '.join(wide)}"


def versions() -> dict[str, str]:
    """Python and the libraries that compute."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def matmul_rate() -> dict[str, float]:
    """FLOP a second of plain matrix products on the GPU, by number format."""
    import torch

    from benchmarks import meters

    found = {kind: meters.matmul_rate(getattr(torch, kind), "cuda") for kind in ("bfloat16", "float16")}
    torch.cuda.empty_cache()  # the steps are made by other processes
    return found
