"""Places elsewhere where designs are drawn and LoRAs trained: a ComfyUI of one's own, and Replicate.

A place is two functions, one that draws and one that trains. What is asked for, what is kept of it and how it goes on
after a cut is the same wherever the work is done: see elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

from PIL import Image

from lace_lora.adapter import Adapter
from lace_lora.config import Config
from lace_lora.data_utils import Example
from lace_lora.declarations import nearest
from lace_lora.errors import SettingsError
from lace_lora.journal import Journal
from lace_lora.run_folder import RunFolder, SheetFolder
from lace_lora.sheet import Generation
from lace_lora.stopping import Stop
from lace_lora.wanted import Models

LOCAL = "local"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Drawing:
    """Designs that a place is asked for.

    models   with which, as the place's own `models` named them
    missing  the designs, in order; each has its prompts, seed, size and all that makes it
    folder   the sheet's, for what must be known to go on after a cut (SheetFolder.elsewhere)
    stop     asked now and then: work that waits is then taken back
    """

    config: Config
    run: RunFolder
    folder: SheetFolder
    lora: Adapter
    models: Models
    missing: Sequence[Generation]
    stop: Stop
    say: Say


@dataclass(frozen=True)
class Drawn:
    """A design that is finished: the unrefined picture, and the refined one where there is any."""

    design: Generation
    base: Image.Image
    refined: Image.Image | None = None


@dataclass(frozen=True)
class Training:
    """A training that a place is asked for; the settings hold numbers in place of auto.

    record  of the run, to be told of progress: record.tell("elsewhere", step=…)
    """

    config: Config
    folder: RunFolder
    examples: Sequence[Example]
    record: Journal
    stop: Stop
    say: Say


@dataclass(frozen=True)
class Trained:
    """What came of it: the LoRA's bytes as the place made them, in which version of what, and for which models."""

    data: bytes
    made_by: str
    family: str = "sdxl"


def _as_set(config: Config, lora: Adapter, say: Say) -> Models:
    """The models that the settings name."""
    return Models(config.pretrained_model, config.refiner_model if config.refine != "none" else "", "elsewhere")


@dataclass(frozen=True)
class Place:
    """A place to work.

    draw    gives finished designs one by one, in any order; what is missing when it returns was stopped
    train   gives the LoRA, or None when it was stopped
    models  with which models it draws; asked before anything else, so it may refuse what it cannot do
    cancel  ends the training that is kept in the run's elsewhere.json, and says what became of it
    family  of the models for which it trains
    gpu     on which a training is planned (a name of `lace-lora plan --gpu`); None plans for this machine
    """

    draw: Callable[[Drawing], Iterator[Drawn]] | None = None
    train: Callable[[Training], Trained | None] | None = None
    cancel: Callable[[RunFolder, Say], str] | None = None
    models: Callable[[Config, Adapter, Say], Models] = _as_set
    gpu: Callable[[Config], str | None] = lambda config: None
    family: Callable[[Config], str] = lambda config: "sdxl"


# The file in this folder that holds PLACE, by the word of the setting.
FILES = {"comfyui": "comfyui", "replicate": "replicate_jobs"}


def of(backend: str) -> Place | None:
    """The place of that name; None for this machine. Its file is imported only now.

    Raises SettingsError for a name that there is not, with the nearest one.
    """
    if backend == LOCAL:
        return None
    if backend not in FILES:
        raise SettingsError(f"No backend called {backend!r}{nearest(backend, [LOCAL, *FILES])}")
    place: Place = import_module(f"{__name__}.{FILES[backend]}").PLACE
    return place
