"""A part of the self-test, in a process of its own, which may be killed: `python -m lace_lora.selftest_work JOB.json`.

It only calls what every run calls, and leaves a JSON of what it saw; selftest starts it and judges.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from lace_lora import checkpoint, config, estimate, examples, inference, stages, train
from lace_lora.config import Config
from lace_lora.errors import LaceError
from lace_lora.families import random_model
from lace_lora.families.quiet import quiet
from lace_lora.machine import GIB
from lace_lora.run_folder import RunFolder

with quiet():
    import torch

# A process that is killed so has no chance to save anything. Windows has another word for the same.
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

Facts = dict[str, Any]


def models(settings: Config, job: Facts) -> Facts:
    """Draw models of SDXL's true size into the folders that the settings name."""
    base, refiner = Path(settings.pretrained_model), Path(settings.refiner_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random_model.check_room(base.parent)
    random_model.build(base, device=device)
    random_model.build_refiner(refiner, device=device)
    return {"gb": sum(path.stat().st_size for path in base.parent.rglob("*.safetensors")) / GIB}


def encode(settings: Config, job: Facts) -> Facts:
    """Pictures and captions through the cache, as a training does it."""
    plan = estimate.prepare(settings, say=_say)
    found = examples.read(plan.config, _say)
    encoded = train.encode(found, plan.config, stages.DTYPES[plan.precision], plan.machine.device, _say)
    tensors = encoded.entries.values()
    is_finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    return {"pictures": len(found), "precision": plan.precision, "planned_gb": plan.vram_gb, "is_finite": is_finite,
            "planned_minutes": plan.minutes}  # fmt: skip


def training(settings: Config, job: Facts) -> Facts:
    """Train, or go on; and kill this process while a step is shown, where that is asked for."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        _say(line)

    def show(step: train.Step) -> None:
        _say(f"step {step.number}  loss {step.loss!r}")
        if step.number == job.get("kill_at"):
            sys.stdout.flush()
            os.kill(os.getpid(), KILL)

    adapter = train.run(settings, say=say, show=show)
    folder = RunFolder.of(settings)
    facts = json.loads(folder.record.read_text(encoding="utf-8"))
    tensors = adapter.state.values()
    return {
        "resumed": next((line for line in said if line.startswith("resumed")), ""),
        "steps": facts["step"], "seconds_a_step": facts.get("seconds_per_step"),
        "peak_vram_gb": facts.get("peak_vram_gb"), "is_complete": adapter.is_complete,
        "is_finite": all(bool(torch.isfinite(tensor).all()) for tensor in tensors),
        "learnt_norm": float(sum(tensor.float().square().sum() for tensor in tensors)) ** 0.5,
    }  # fmt: skip


def draw(settings: Config, job: Facts) -> Facts:
    """One design, refined."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    designs = inference.run(settings, say=_say)
    pictures = [path for one in designs for path in (one.base, one.refined) if path is not None]
    return {"designs": len(designs), "pictures": [_look(path) for path in pictures]}


PARTS: dict[str, Callable[[Config, Facts], Facts]] = {
    "models": models, "encode": encode, "train": training, "draw": draw
}  # fmt: skip


def main(path: Path) -> int:
    """Do the parts that the job names, and leave what they saw after each; 1 where one failed."""
    job = json.loads(path.read_text(encoding="utf-8"))
    settings, result = config.load(**job["values"]), Path(job["result"])
    facts: Facts = {}
    for part in job["parts"]:
        began = monotonic()
        try:
            facts[part] = PARTS[part](settings, job)
        except Exception as error:
            traceback.print_exc()
            reason = str(error) if isinstance(error, LaceError) else f"{type(error).__name__}: {error}"
            facts[part] = {"error": reason or type(error).__name__}
        facts[part] |= {"seconds": monotonic() - began} | _memory()
        checkpoint.write_json(result, facts)
        if "error" in facts[part]:
            return 1
    return 0


def _memory() -> Facts:
    """Most memory of the GPU and of this computer that this process held so far, GiB."""
    held: Facts = {}
    if torch.cuda.is_available():
        held["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / GIB
    try:
        import resource
    except ImportError:  # Windows
        return held
    unit = 1 if sys.platform == "darwin" else 1024
    return held | {"peak_ram_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}


def _look(path: Path) -> Facts:
    """A picture's size, and how far apart its darkest and lightest number are: 0 is one flat colour."""
    from PIL import Image

    with Image.open(path) as picture:
        bounds = picture.convert("RGB").getextrema()
        return {"name": path.name, "width": picture.width, "height": picture.height,
                "range": max(high - low for low, high in bounds)}  # type: ignore[misc]  # fmt: skip


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
