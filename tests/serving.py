"""What the tests of the served doors share: a drawing that is none, a server over it in a thread."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from PIL import Image

from lace_lora import checkpoint, commissions, config, gate, serve
from lace_lora.commissions import Limits
from lace_lora.figures import Watch
from lace_lora.job_records import Picture
from lace_lora.run_folder import RunFolder
from lace_lora.service import Drawn, Service
from lace_lora.stopping import Stop

ROOT = Path(__file__).parent.parent
FACTS = {
    "name": "lace", "base_model": "tiny", "concept_token": "<lace>", "instance_prompt": "a photo of <lace>",
    "class_prompt": "a photo of a painting", "rank": 4, "alpha": 8.0, "resolution": 32, "step": 9,
    "is_complete": True, "sha256": "0" * 64,
}  # fmt: skip


class Turnstile:
    """In place of an event: lets as many pictures through as were paid for."""

    def __init__(self, pictures: int) -> None:
        self._paid = threading.Semaphore(pictures)

    def wait(self, seconds: float) -> bool:
        return self._paid.acquire(timeout=seconds)


class _Slow:
    """In place of an event: lets a picture through after a while."""

    def wait(self, seconds: float) -> bool:
        time.sleep(0.1)
        return True


SLOW: Any = _Slow()


class Painter:
    """Draws squares of one colour, as `service.Draw` asks; notes what it was asked for.

    pause   an event, or a turnstile, that each picture waits for
    error   raised instead of drawing
    """

    def __init__(self, run: RunFolder, pause: Any = None, error: Exception | None = None) -> None:
        self.run, self.pause, self.error = run, pause, error
        self.begun, self.drawn = list[str](), list[tuple[str, int]]()
        self.at_once, self.most_at_once = 0, 0

    def __call__(
        self, asked: Mapping[str, Any], sheet: str, stop: Stop, watch: Watch, show: Callable[[Picture], None]
    ) -> Drawn:
        self.begun.append(sheet)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self._drawn(asked, sheet, stop, watch, show)
        finally:
            self.at_once -= 1

    def _drawn(
        self, asked: Mapping[str, Any], sheet: str, stop: Stop, watch: Watch, show: Callable[[Picture], None]
    ) -> Drawn:
        if self.error is not None:
            raise self.error
        folder, made, total = self.run.sheet(sheet), list[Picture](), int(asked.get("num_images", 1))
        rows = {row["index"] for row in checkpoint.read_json_lines(folder.manifest)}
        folder.root.mkdir(parents=True, exist_ok=True)
        for number in range(total):
            path = folder.base(number, "png")
            picture = Picture(number, "a doily", int(asked.get("seed", 0)) + number, 8, 8, path)
            if number not in rows:
                while self.pause is not None and not self.pause.wait(0.01) and not stop.asked:
                    pass
                if stop.asked:
                    break
                Image.new("RGB", (8, 8), (number * 7 % 256, 90, 20)).save(path)
                row = {"index": number, "prompt": "a doily", "seed": picture.seed, "width": 8, "height": 8}
                checkpoint.append_line(folder.manifest, checkpoint.json.dumps(row | {"base": path.name}))
                self.drawn.append((sheet, number))
                watch.made("generate", 1, 1)
                show(picture)
            made.append(picture)
        return Drawn(tuple(made), sheet, len(made) == total)


def run_in(folder: Path) -> RunFolder:
    run = RunFolder(folder / "lace")
    run.served.mkdir(parents=True, exist_ok=True)
    return run


def quiet(line: str) -> None:
    """Says nothing."""


@contextmanager
def served(
    folder: Path, draw: Any = None, *, limits: Limits = Limits(), key: str | None = None,  # noqa: B008
) -> Iterator[tuple[str, Service]]:  # fmt: skip
    """A real server in a thread of its own, over a painter; gives its address and the service behind it."""
    run = run_in(folder)
    settings = config.load(preset="none", lora_output_dir=str(folder), num_images=2)
    with served_app(
        run, draw or Painter(run), limits,
        lambda drawing: serve.application(drawing, lambda: FACTS, settings, limits, key is not None), key,
    ) as found:  # fmt: skip
        yield found


@contextmanager
def served_app(
    run: RunFolder, draw: Any, limits: Limits, app_of: Callable[[Service], Any], key: str | None = None
) -> Iterator[tuple[str, Service]]:
    """The same for any application that is made of a service."""
    drawing = Service(run, draw, limits.waiting, quiet)
    door = gate.Gate.of("127.0.0.1", gate.SecretStr(key) if key else None, limits.body_bytes)
    app = gate.guarded(app_of(drawing), door)
    listening = serve.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    with drawing:
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", drawing
        finally:
            server.should_exit = True
            thread.join(20)
            listening.close()


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def asked(**changes: Any) -> dict[str, Any]:
    """A whole request as the door hands it on."""
    settings = config.load(preset="none", num_images=2)
    return commissions.commission_model(settings, Limits())(**changes).model_dump()


@contextmanager
def started(line: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client, list[str]]]:
    """A server in a process of its own: the process, a client once it says where it is, and what it says."""
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", *line], cwd=folder, env=os.environ | more, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said, address, reader = list[str](), "", threading.Thread()
    try:
        for text in process.stdout:
            said.append(text)
            if found := re.search(r"http://127\.0\.0\.1:\d+", text):
                address = found[0]
                break
        assert address, "".join(said)
        reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
        reader.start()
        with httpx.Client(base_url=address, timeout=30) as client:
            yield process, client, said
    finally:
        process.kill()
        process.wait(20)
        if reader.is_alive():
            reader.join(20)
        process.stdout.close()


if __name__ == "__main__":  # a whole server over a painter that takes its time
    place = Path(sys.argv[1])
    serve.run(
        Service(run_in(place), Painter(run_in(place), pause=SLOW), 16),
        lambda: FACTS, config.load(preset="none", num_images=2), Limits(), "127.0.0.1", 0,
    )  # fmt: skip
