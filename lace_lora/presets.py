"""Named partial settings. A preset is a YAML file with `about`, `settings` and `why`; this room applies it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lace_lora import demo
from lace_lora.config import USER_KEYS, Config, load, nearest
from lace_lora.errors import SettingsError
from lace_lora.machine import CHOOSE_A_GPU, Machine

FOLDER = Path(__file__).parent / "preset_files"
USUAL = "sdxl"  # the family of presets that name none, and of the default pretrained_model

DEMO_BANNER = (
    "DEMO — no GPU was found, so the miniature model that ships with Lace LoRA is used, with {pictures}.\n"
    f"To use your own photographs with SDXL: {CHOOSE_A_GPU}"
)
DRAWN = "pictures of lace drawn by program. It shows the whole job in minutes; it does not learn your photographs"
OWN = "your photographs at {resolution} px. It is a rehearsal: the designs show little of what SDXL can do"


@dataclass(frozen=True)
class Preset:
    """Partial settings with a reason each, for the models of one family."""

    name: str
    about: str
    settings: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)
    family: str = USUAL


@dataclass(frozen=True)
class Choice:
    """One setting that the plan or a preset chose; `why` is empty where a preset gives no reason of its own."""

    setting: str
    value: object
    why: str


@dataclass(frozen=True)
class Settled:
    """Settings with their preset applied: its name, why it was chosen, and a banner where one must be seen.

    The settled settings stand by themselves: their own `preset` is none, so settling them again changes nothing.

    machine  the one that they were settled for, so that a form can settle changed settings again
    asked    the settings before the preset was applied
    """

    config: Config
    preset: str
    why: str
    reasons: dict[str, str]
    banner: str = ""
    machine: Machine | None = field(default=None, repr=False, compare=False)
    asked: Config | None = field(default=None, repr=False, compare=False)

    @property
    def draws_in(self) -> str:
        """The quantization that a person asked for in drawing; a preset's is about training, so auto stands for it."""
        is_presets = "quantization" in self.reasons or "quantization" in self.config.by_preset
        return "auto" if is_presets else self.config.quantization

    def changed(self, settings: Mapping[str, Any], machine: Machine) -> "Settled":
        """What a person gets who also asks for these settings, on this machine or another."""
        asked = self.asked or self.config
        return settle(asked.model_copy(update=dict(settings)) if settings else asked, machine)


def names() -> list[str]:
    """The presets that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Preset:
    """The preset of that name, or from a YAML file of your own (`preset: my_lace.yaml`).

    Raises SettingsError for an unknown name (with the nearest one) or a file that holds something else.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ["auto", "none", *names()]
        raise SettingsError(f"No preset called {name!r}{nearest(name, known)} There are: {', '.join(known)}.")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int) -> Preset:
    """The file, read again only where it has changed: a form, and every change that a plan tries, settles anew."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        why, family = dict(data.get("why") or {}), str(data.get("family", USUAL))
        preset = Preset(path.stem, str(data["about"]), dict(data["settings"]), why, family)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{path} is no preset: it must hold `about: …` and, below `settings:`, names.") from error
    load(**preset.settings)  # a wrong name or value is said now, not in the middle of a run
    return preset


def choose(config: Config, machine: Machine) -> tuple[str, str]:
    """The preset that `auto` stands for on this machine, and why."""
    if config.preset != "auto":
        return config.preset, "as set"
    if config.backend != "local":
        return "none", f"the work is done by {config.backend}"
    if config.pretrained_model == demo.MODEL:
        return "demo", f"pretrained_model is {demo.MODEL}"
    if machine.gpu_name is None:
        if Path(config.pretrained_model).expanduser().is_dir():
            return "none", f"there is no GPU, but {config.pretrained_model} is a folder on this machine"
        return "demo", "there is no GPU"
    gpu = f"{machine.gpu_name} has {machine.vram_gb:.0f} GB"
    if machine.vram_gb >= 36 and machine.capability >= (8, 0):
        return "lace-a100", gpu
    if machine.vram_gb >= 20 and machine.capability >= (8, 0):
        return "lace-l4", gpu
    return "lace-t4", gpu


def settle(config: Config, machine: Machine) -> Settled:
    """Apply the preset below what was given: default < preset < config.yaml < override.

    Whoever says auto leaves the choice to the preset, and what that leaves open to the plan: the shipped file says so
    of most. The demo is the exception (see `beaten_by`). Passes that somebody asks for count before a preset's steps.
    """
    name, why = choose(config, machine)
    if name == "none":
        return Settled(config, "none", why, {}, machine=machine, asked=config)
    preset = read(name)
    kept = kept_beside(name, config)
    used = {setting: value for setting, value in preset.settings.items() if setting not in kept}
    if "num_train_epochs" in (config.overridden if name == "demo" else kept):
        used.pop("max_train_steps", None)
    reasons = {setting: preset.why.get(setting, "") for setting in used}
    was_chosen = config.preset == "auto" and config.pretrained_model != demo.MODEL
    filled = config.with_preset(used | {"preset": "none"}, by_preset=used)
    pictures = DRAWN if "images_dir" in used else OWN.format(resolution=filled.resolution)
    banner = DEMO_BANNER.format(pictures=pictures) if name == "demo" and was_chosen else ""
    return Settled(filled, name, why, reasons, banner, machine, config)


def kept_beside(preset: str, config: Config) -> set[str]:
    """Settings that a preset leaves as they are: what was given, unless it is auto or the preset beats it."""
    said = {name for name in config.given if getattr(config, name) != "auto"}
    return said - (beaten_by(preset, config) - config.overridden)


def beaten_by(preset: str, config: Config) -> set[str]:
    """Settings that count for nothing in a settings file with this preset in force: explicit overrides alone beat it.

    The demo brings its own model, pictures and sizes. Where it was not asked for, it beats no more than the eleven
    keys, which stand in every shipped file and name SDXL and Drive; and it leaves a person's folder of photographs:
    they can be looked at and captioned without a GPU.

    A preset for another family brings its model where the file names the default one, as every shipped file does.
    """
    if preset != "demo":
        names_default = config.pretrained_model == Config.model_fields["pretrained_model"].default
        is_others = names_default and preset not in ("", "none") and read(preset).family != USUAL
        return {"pretrained_model"} if is_others else set()
    brought = set(read(preset).settings)
    if config.preset != "auto":
        return brought
    return brought & set(USER_KEYS) - ({"images_dir"} if _is_folder(config.images_dir) else set())


def draws_its_own(settled: Settled) -> bool:
    """Whether the pictures are those that the demo draws by program, and not a person's photographs."""
    return settled.preset == "demo" and "images_dir" in settled.reasons


def _is_folder(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except OSError:  # a Drive that has dropped
        return False
