"""What a run needs on this machine, how long it takes, and the settings that are left to the plan. Arithmetic only.

Sizes and FLOPs of SDXL were counted on its real architecture; GPU speeds are estimates until measured, and say so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from lace_lora import demo, presets
from lace_lora.config import Config
from lace_lora.data_utils import create_annotations, list_images
from lace_lora.families import folders
from lace_lora.machine import Machine

GIB = 1024**3

# SDXL base UNet: parameters and TFLOP of one forward pass at an area of a × 1024² px, which is LINEAR·a + SQUARE·a²
# (attention grows with the square). Fitted to counts at 512² (1.59), 768² (3.64) and 1024² (6.76).
UNET_PARAMETERS = 2567.5e6
FORWARD_LINEAR, FORWARD_SQUARE = 6.23, 0.53
# Forward and backward of a LoRA step against one forward, counted at 1024²: 14.2 and 19.3 of 6.76 TFLOP.
STEP_OVER_FORWARD = {"none": 2.10, "full": 2.86}
# GiB of activations kept for the backward pass at 1024², one picture, base in half precision; they grow with the area.
# The LoRA computes in fp32, so each of its layers also keeps an fp32 copy of its input: 1.66 GiB for attention.
ACTIVATIONS_GIB = {"attention": 5.38 + 1.66, "attention+ff": 5.38 + 3.68}
ACTIVATIONS_CHECKPOINTED_GIB = 0.52
SPARE = 0.95  # part of the GPU's memory that can be used; the rest is lost between blocks of different sizes
LORA_PARAMETERS_A_RANK = {"attention": 1_451_520, "attention+ff": 2_616_320}
CUDA_GIB = 0.5  # context and workspace
# Effective TFLOP a second in half precision. All are estimates from user reports, none is measured by us.
GPU_TFLOPS = {"T4": 9.0, "L4": 40.0, "A100": 120.0, "H100": 250.0, "V100": 40.0, "3090": 40.0, "4090": 90.0}
DEMO_SECONDS_A_PICTURE = 0.05  # of a training step on a laptop's CPU; an estimate


@dataclass(frozen=True)
class Choice:
    """One setting that the plan or a preset chose; `why` is empty where a preset gives no reason of its own."""

    setting: str
    value: object
    why: str


@dataclass(frozen=True)
class Plan:
    """What will run and what it takes. `config` has no `auto` left."""

    config: Config
    machine: Machine
    preset: str
    preset_why: str
    banner: str
    pictures: int
    choices: tuple[Choice, ...]
    precision: str
    vram_gb: float
    minutes: float | None
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether training fits on this machine's GPU (a CPU has no such limit here)."""
        return self.machine.gpu_name is None or self.vram_gb <= self.machine.vram_gb * SPARE

    @property
    def epochs(self) -> float:
        """Passes over the pictures."""
        return _steps(self.config) * _pictures_a_step(self.config) / max(1, self.pictures * self.config.dataset_repeats)

    def __str__(self) -> str:
        """The plan as aligned lines, as doors print it."""
        config, machine = self.config, self.machine
        gpu = f"{machine.gpu_name} ({machine.vram_gb:.1f} GB)"
        need = f"{self.vram_gb:.1f} GB, {'fits' if self.fits else 'DOES NOT FIT'}" if machine.gpu_name else "no GPU"
        minutes = "not known for this machine" if self.minutes is None else f"about {self.minutes:.0f} min (estimated)"
        rows = [
            ("machine", gpu if machine.gpu_name else f"CPU, {machine.cpu_cores} cores"),
            ("preset", f"{self.preset} ({self.preset_why})"),
            ("base model", f"{config.pretrained_model} in {self.precision}"),
            ("pictures", f"{self.pictures}, at {config.resolution} px"),
            ("training", f"{_steps(config)} steps of {_pictures_a_step(config)} pictures, {self.epochs:.1f} passes"),
            ("GPU memory", need),
            ("time", minutes),
        ]
        lines = [f"{name:<12}{value}" for name, value in rows]
        lines += [f"  {choice.setting} = {choice.value}: {choice.why}" for choice in self.choices if choice.why]
        plain = [f"{choice.setting} {_short(choice.value)}" for choice in self.choices if not choice.why]
        lines += [f"  preset {self.preset} also sets {', '.join(plain)}"] if plain else []
        return "\n".join(lines + [f"! {warning}" for warning in self.warnings])


def prepare(config: Config, machine: Machine | None = None, say: Callable[[str], None] = print) -> Plan:
    """Settle a run: apply the preset, draw the demo's pictures where the demo wants them, count pictures, plan.

    Raises PicturesError or SettingsError where the folder or a setting cannot be used.
    """
    machine = machine or Machine.here(config.drive_mount_path, config.lora_output_dir)
    settled = presets.settle(config, machine)
    settings = settled.config
    # Only into the demo's own folder, and again where a cut left it half: annotations.txt is written last.
    is_ours = settled.preset == "demo" and "images_dir" not in config.overridden
    if is_ours and not (Path(settings.images_dir) / "annotations.txt").is_file():
        from lace_lora.demo.draw import write_lace_folder

        say(f"Drawing the demo's pictures of lace into {settings.images_dir} …")
        drawn = write_lace_folder(Path(settings.images_dir))
        captions: dict[str | Path, str] = {path: f"{settings.instance_prompt} {caption}" for path, caption in drawn}
        create_annotations(settings.images_dir, settings.instance_prompt, settings.image_types, captions)
    return plan(settled, machine, len(list_images(settings.images_dir, set(settings.image_types))))


def again(earlier: Plan, settings: Config, gradient_checkpointing: str) -> Plan:
    """The plan once more, for settings that a run keeps from its first session, maybe on another GPU.

    gradient_checkpointing  as it was asked for: auto is chosen anew, for what really runs here
    """
    free = settings.with_preset({"gradient_checkpointing": gradient_checkpointing})
    settled = presets.Settled(free, earlier.preset, earlier.preset_why, {}, earlier.banner)
    return plan(settled, earlier.machine, earlier.pictures)


def plan(settled: presets.Settled, machine: Machine, pictures: int) -> Plan:
    """Fill in what is still `auto`, each with its reason, and say what the run will need."""
    config = settled.config
    choices = [Choice(name, getattr(config, name), why) for name, why in settled.reasons.items()]

    def choose(name: str, value: object, why: str) -> None:
        nonlocal config
        if getattr(config, name) == "auto":
            config = config.with_preset({name: value})
            choices.append(Choice(name, value, why))

    precision, why = machine.precision(config.mixed_precision)
    choose("mixed_precision", {"fp32": "no"}.get(precision, precision), why)
    choose("resolution", _native_side(config.pretrained_model), "the size that the base model was trained at")
    choose("train_batch_size", 1, "the least memory; accumulation makes up for it")
    batch = int(config.train_batch_size)
    choose("gradient_accumulation_steps", max(1, 4 // batch), "four pictures an update make its direction steady")
    limit = machine.vram_gb * SPARE - CUDA_GIB
    needs_less = bool(machine.gpu_name) and training_gib(config, precision, "none") > limit
    why = "activations would not fit beside the model" if needs_less else "it fits without, and is faster"
    choose("gradient_checkpointing", "full" if needs_less else "none", why)
    steps = ceil(pictures * config.dataset_repeats * config.num_train_epochs / _pictures_a_step(config))
    choose("max_train_steps", max(1, steps), f"{config.num_train_epochs} passes over {pictures} pictures")

    vram = training_gib(config, precision, str(config.gradient_checkpointing)) + CUDA_GIB
    return Plan(
        config=config,
        machine=machine,
        preset=settled.preset,
        preset_why=settled.why,
        banner=settled.banner,
        pictures=pictures,
        choices=tuple(choices),
        precision=precision,
        vram_gb=vram,
        minutes=training_minutes(config, machine),
        warnings=_warnings(config, machine, vram),
    )


def training_gib(config: Config, precision: str, checkpointing: str) -> float:
    """GiB on the GPU while training: frozen weights, LoRA with gradient and two AdamW moments in fp32, activations."""
    width = 4 if precision == "fp32" else 2
    weights = UNET_PARAMETERS * width
    adapter = LORA_PARAMETERS_A_RANK[config.lora_targets] * config.rank * 4 * 4
    kept = ACTIVATIONS_GIB[config.lora_targets] if checkpointing == "none" else ACTIVATIONS_CHECKPOINTED_GIB
    activations = kept * _area(config) * int(config.train_batch_size) * width / 2
    return (weights + adapter) / GIB + activations


def training_minutes(config: Config, machine: Machine) -> float | None:
    """Minutes of the training steps, or None where this machine's speed is not known."""
    pictures = _steps(config) * _pictures_a_step(config)
    classes = 2 if config.prior_loss_weight else 1
    if config.pretrained_model == demo.MODEL:
        return pictures * classes * DEMO_SECONDS_A_PICTURE / 60
    speed = next((speed for name, speed in GPU_TFLOPS.items() if name in (machine.gpu_name or "")), None)
    if speed is None:
        return None
    area = _area(config)
    forward = FORWARD_LINEAR * area + FORWARD_SQUARE * area**2
    return pictures * classes * forward * STEP_OVER_FORWARD[str(config.gradient_checkpointing)] / speed / 60


def _short(value: object) -> str:
    """A value in few words: a list as its items, or as their number where they are many."""
    if not isinstance(value, tuple):
        return str(value)
    return " ".join(map(str, value)) if len(value) <= 2 else f"({len(value)} of them)"


def _warnings(config: Config, machine: Machine, vram: float) -> tuple[str, ...]:
    warnings = []
    if machine.gpu_name and vram > machine.vram_gb * SPARE:
        warnings.append(
            f"Training needs {vram:.1f} GB and {machine.gpu_name} has {machine.vram_gb:.1f} GB. "
            "Next to try: train_batch_size 1, gradient_checkpointing full, or resolution 768."
        )
    if config.rank >= 64 and machine.gpu_name and machine.vram_gb < 24:
        warnings.append(f"rank {config.rank} on {machine.vram_gb:.0f} GB is tight and overfits soon; 16 holds a style.")
    if machine.gpu_name is None and _native_side(config.pretrained_model) >= 512:
        warnings.append("SDXL on a CPU takes hours for a few steps. Choose a GPU, or preset demo for a first look.")
    return tuple(warnings)


def _native_side(model: str) -> int:
    """The side that a model was trained at; read from its folder where it is one, else SDXL's 1024 px."""
    path = Path(demo.locate(model)).expanduser()
    return folders.layout(str(path)).side_px if path.is_dir() else 1024


def _area(config: Config) -> float:
    """Area of a training picture in units of 1024² px."""
    return (int(config.resolution) / 1024) ** 2


def _pictures_a_step(config: Config) -> int:
    return int(config.train_batch_size) * int(config.gradient_accumulation_steps)


def _steps(config: Config) -> int:
    return int(config.max_train_steps)
