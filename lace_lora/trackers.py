"""Where losses are also sent: TensorBoard where it is installed, wandb by setting. Neither can stop a run."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from lace_lora.errors import MachineError
from lace_lora.families.quiet import quiet

Say = Callable[[str], None]
Values = Mapping[str, float]


@dataclass
class Tracker:
    """A place that losses and pictures are sent to; the first failure is said, and ends the sending."""

    name: str
    send: Callable[[int, Values], None]
    show: Callable[[int, str, Image.Image], None]
    end: Callable[[], None]
    say: Say
    is_open: bool = field(default=True)

    def log(self, step: int, values: Values) -> None:
        """Send numbers of a step by their names."""
        self._try(lambda: self.send(step, values))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Send a picture of a step."""

        def work() -> None:
            with Image.open(path) as picture:
                self.show(step, name, picture.convert("RGB"))

        self._try(work)

    def close(self) -> None:
        """Send what is waiting."""
        self._try(self.end)
        self.is_open = False

    def _try(self, work: Callable[[], None]) -> None:
        if not self.is_open:
            return
        try:
            work()
        except Exception as error:  # a full disk, a lost network, a library's own trouble: none is worth a run
            self.is_open = False
            self.say(f"! {self.name} failed ({type(error).__name__}: {error}); training goes on without it.")


def silent() -> Tracker:
    """A tracker that sends nothing."""
    return Tracker("nothing", lambda *_: None, lambda *_: None, lambda: None, lambda _: None, is_open=False)


def open_tracker(
    log_with: str, folder: Path, run_name: str, settings: Mapping[str, Any], start: int, say: Say, run_id: str = ""
) -> Tracker:
    """The tracker of the setting log_with: auto, none, tensorboard or wandb.

    folder  for TensorBoard's event files
    start   the step that a resumed run goes on from; later points of a session that was cut are dropped
    run_id  the same in every session of a run: wandb goes on in the curves of that id

    Raises MachineError with the line to type where a package that was asked for by name is missing.
    """
    if log_with == "none" or (log_with == "auto" and not _is_there("tensorboard")):
        return silent()
    package = "wandb" if log_with == "wandb" else "tensorboard"
    if not _is_there(package):
        raise MachineError(
            f"log_with {log_with} needs the package {package}: pip install {package}. Or set log_with none."
        )
    try:
        if package == "wandb":
            return _wandb(run_name, run_id, settings, folder.parent, say)
        return _tensorboard(folder, start, say)
    except Exception as error:  # a broken installation raises whatever it likes
        say(f"! {package} cannot be used ({type(error).__name__}: {error}); training goes on without it.")
        return silent()


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _tensorboard(folder: Path, start: int, say: Say) -> Tracker:
    with quiet():
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None, flush_secs=30)

    def send(step: int, values: Values) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def show(step: int, name: str, picture: Image.Image) -> None:
        writer.add_image(name, numpy.asarray(picture), step, dataformats="HWC")

    return Tracker("TensorBoard", send, show, writer.close, say)


def _wandb(run_name: str, run_id: str, settings: Mapping[str, Any], folder: Path, say: Say) -> Tracker:
    with quiet():
        import wandb

        # A resumed session goes on in the same curves: wandb knows them by their id alone.
        run = wandb.init(
            project="lace-lora", name=run_name, id=run_id or None, config=dict(settings), dir=str(folder),
            resume="allow",
        )  # fmt: skip
    return Tracker(
        "Weights & Biases",
        lambda step, values: run.log(dict(values), step=step),
        lambda step, name, picture: run.log({name: wandb.Image(picture)}, step=step),
        run.finish,
        say,
    )
