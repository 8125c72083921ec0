"""How long a check of a folder of photographs takes, and how much memory: drawn lace, saved as a phone saves it.

python -m benchmarks.check                 300 photographs of 4000 × 3000 px; writes benchmarks/results/check-<date>.md
python -m benchmarks.check 40              another number of them, printed only

Photographs are drawn once into a folder of the machine's own temporary files, and deleted at the end. The program and
its workers are measured: the first by its own peak, the workers by the largest of theirs, times two.
"""

import datetime
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy
import PIL
import psutil
from PIL import Image, ImageDraw

from lace_lora.data_utils import check_images
from lace_lora.survey import WORKERS

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT, JPEG_QUALITY = 4000, 3000, 90
TARGET_SECONDS = 120.0  # for 300 photographs on two cores


def photograph(seed: int) -> Image.Image:
    """A piece of ground with pins set by eye, on cloth, with a sensor's noise."""
    by_hand = numpy.random.default_rng(seed)
    cell, columns = int(by_hand.integers(70, 130)), 64
    picture = Image.new("RGB", (WIDTH, HEIGHT), tuple(by_hand.integers(20, 70, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    down, right = numpy.mgrid[:64, :columns]
    pins = numpy.stack([right + down % 2 / 2 - 1, down - 1], axis=-1) * cell
    pins = pins + by_hand.normal(0, 0.07 * cell, pins.shape)
    for row in range(63):
        for column in range(1, columns - 1):
            for under in (column - 1 + row % 2, column + row % 2):
                pen.line([*pins[row, column], *pins[row + 1, under]], fill=(228, 222, 205), width=cell // 7)
    noise = by_hand.integers(-6, 7, (HEIGHT, WIDTH, 1), dtype=numpy.int16)
    return Image.fromarray((numpy.asarray(picture, numpy.int16) + noise).clip(0, 255).astype(numpy.uint8))


def measure(count: int) -> dict[str, float]:
    """Seconds and megabytes of a check of that many photographs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photographs")
        folder.mkdir()
        for number in range(count):
            photograph(number).save(folder / f"lace_{number:03d}.jpg", quality=JPEG_QUALITY)
        size_mb = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        done: list[float] = []
        cpu, began = _cpu_seconds(), time.perf_counter()
        report = check_images(
            folder,
            resolution=1024,
            cache_dir=Path(place, "cache"),
            progress=lambda *_: done.append(time.perf_counter()),
        )
        ended, cpu = time.perf_counter(), _cpu_seconds() - cpu
        assert len(report.usable) == count, report.as_table(only_problems=True)
    own, workers = (resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "folder_mb": size_mb,
        "looking_s": done[-1] - began,
        "comparing_s": ended - done[-1],
        "in_all_s": ended - began,
        "cpu_s": cpu,
        "own_peak_mb": own,
        "workers_peak_mb": WORKERS * workers,
    }


def as_table(count: int, found: dict[str, float]) -> str:
    """The numbers with what they were measured on."""
    rows = {
        "photographs": f"{count} of {WIDTH} × {HEIGHT} px ({WIDTH * HEIGHT / 1e6:.0f} MP), JPEG quality {JPEG_QUALITY}",
        "folder": f"{found['folder_mb']:.0f} MB",
        "reading, decoding, measuring, small pictures": f"{found['looking_s']:.1f} s",
        "comparing every picture with every other": f"{found['comparing_s']:.1f} s",
        "in all": f"{found['in_all_s']:.1f} s (target for 300: {TARGET_SECONDS:.0f} s)",
        "processor seconds of all programs": f"{found['cpu_s']:.1f} s",
        "peak memory of the program": f"{found['own_peak_mb']:.0f} MB (with the drawing of the photographs)",
        f"peak memory of its {WORKERS} workers": f"at most {found['workers_peak_mb']:.0f} MB",
    }
    memory = psutil.virtual_memory().total / 2**30
    lines = [
        f"# Check of {count} photographs, {datetime.date.today().isoformat()}",
        "",
        f"- command: `python -m benchmarks.check{'' if count == 300 else f' {count}'}`",
        f"- hardware: {_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB memory, no GPU used; "
        f"{os.getloadavg()[1]:.1f} programs ran at once in the last five minutes",
        f"- software: Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {numpy.__version__}",
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def _cpu_seconds() -> float:
    """Of this program and of its workers that have ended, in all."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    text = as_table(wanted, measure(wanted))
    print(text)
    if wanted == 300:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"check-{datetime.date.today().isoformat()}.md").write_text(text, encoding="utf-8")
