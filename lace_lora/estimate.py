"""What a run needs on this machine, how long it takes, and the settings that are left to the plan. Arithmetic only.

Sizes and FLOPs of SDXL were counted on its real architecture; GPU speeds are estimates until measured, and say so.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from lace_lora import demo, own_folders, presets
from lace_lora.config import Config
from lace_lora.data_utils import count_pictures, create_annotations
from lace_lora.families import folders
from lace_lora.machine import Machine

GIB = 1024**3

# SDXL base UNet: parameters and TFLOP of one forward pass at an area of a × 1024² px, which is LINEAR·a + SQUARE·a²
# (attention grows with the square). Fitted to counts at 512² (1.59), 768² (3.64) and 1024² (6.76).
UNET_PARAMETERS = 2567.5e6
FORWARD_LINEAR, FORWARD_SQUARE = 6.23, 0.53
# Forward and backward of a LoRA step against one forward, and GiB of activations kept for the backward pass, both at
# 1024² and rank 16, counted on the meta device (benchmarks/count.py). Activations grow with the area; they are those of
# a base and a LoRA in half precision.
STEP_OVER_FORWARD = {
    "attention": {"none": 2.14, "transformers": 2.76, "full": 2.90},
    "attention+ff": {"none": 2.15, "transformers": 2.90, "full": 3.04},
    "attention+ff+conv": {"none": 2.18, "transformers": 2.92, "full": 3.12},
    "up_blocks": {"none": 1.65, "transformers": 1.97, "full": 2.09},
}
ACTIVATIONS_GIB = {
    "attention": {"none": 5.22, "transformers": 0.87, "full": 0.46},
    "attention+ff": {"none": 6.20, "transformers": 0.87, "full": 0.46},
    "attention+ff+conv": {"none": 6.35, "transformers": 1.02, "full": 0.47},
    "up_blocks": {"none": 2.94, "transformers": 0.75, "full": 0.42},
}
RECOMPUTED_GIB = 0.16  # activations of the one block that is computed again
LORA_PARAMETERS_A_RANK = {
    "attention": 1_451_520, "attention+ff": 2_616_320, "attention+ff+conv": 2_995_200, "up_blocks": 738_816,
}  # fmt: skip
# Both text encoders: 817.8 million parameters, of which a trained one also keeps activations (77 tokens a caption).
TEXT_PARAMETERS, TEXT_ACTIVATIONS_GIB = 817.8e6, 0.35
TEXT_LORA_PARAMETERS_A_RANK = 663_552
TEXT_STEP_TFLOP = 3 * 2 * TEXT_PARAMETERS * 77 / 1e12  # forward and backward of a caption, two a multiply-add
# 4-bit NF4 with double quantisation: linear layers of the UNet in 4 bits and a little, the rest in half precision.
NF4_WEIGHTS_GIB = 1.70
SPARE = 0.95  # part of the GPU's memory that can be used; the rest is lost between blocks of different sizes
CUDA_GIB = 0.5  # context and workspace
# Effective TFLOP a second in half precision. All are estimates from user reports, none is measured by us.
GPU_TFLOPS = {"T4": 9.0, "L4": 40.0, "A100": 120.0, "H100": 250.0, "V100": 40.0, "3090": 40.0, "4090": 90.0}
FORWARDS_A_LOOK = 96  # at most 12 held-out and 12 learnt pictures at four noise levels each
DEMO_SECONDS_A_PICTURE = 0.05  # of a training step on a laptop's CPU; an estimate


@dataclass(frozen=True)
class Choice:
    """One setting that the plan or a preset chose; `why` is empty where a preset gives no reason of its own."""

    setting: str
    value: object
    why: str


@dataclass(frozen=True)
class Caution:
    """A warning, and the setting that it is about; a form shows it beside that field."""

    setting: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


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
    warnings: tuple[Caution, ...]
    may_save_memory: bool = False  # whether checkpointing was left to the plan, which may then step it up in the run

    @property
    def fits(self) -> bool:
        """Whether training fits on this machine's GPU (a CPU has no such limit here)."""
        return self.machine.gpu_name is None or self.vram_gb <= self.machine.vram_gb * SPARE

    @property
    def free_bytes(self) -> float:
        """What is left of the GPU's memory beside the training, for encoded pictures."""
        return max(0.0, self.machine.vram_gb * SPARE - self.vram_gb) * GIB

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
        lines += [f"  {price}" for price in prices(config, self.precision)]
        return "\n".join(lines + [f"! {warning}" for warning in self.warnings])


def prepare(config: Config, machine: Machine | None = None, say: Callable[[str], None] = print) -> Plan:
    """Settle a run: apply the preset, draw the demo's pictures where the demo wants them, count pictures, plan.

    Raises PicturesError or SettingsError where the folder or a setting cannot be used; and the errors of
    own_folders.make, which makes missing folders where that is wanted.
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
    own_folders.make(settings, say)
    return plan(settled, machine, count_pictures(settings.images_dir, set(settings.image_types)))


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

    if config.optimizer.endswith("8bit") and importlib.util.find_spec("bitsandbytes") is None:
        choices.append(Choice("optimizer", "adamw", _without_8bit(config)))
        config = config.with_preset({"optimizer": "adamw"})
    may_save_memory = config.gradient_checkpointing == "auto"
    precision, why = machine.precision(config.mixed_precision)
    choose("mixed_precision", {"fp32": "no"}.get(precision, precision), why)
    choose("resolution", _native_side(config.pretrained_model), "the size that the base model was trained at")
    choose("train_batch_size", 1, "the least memory; accumulation makes up for it")
    batch, count = int(config.train_batch_size), max(1, machine.gpu_count if machine.gpu_name else 1)
    batches = config.gradient_accumulation_steps
    if config.num_processes == "auto" and "gradient_accumulation_steps" in settled.reasons and int(batches) < count:
        config = config.with_preset({"gradient_accumulation_steps": count})
        choices = [one for one in choices if one.setting != "gradient_accumulation_steps"]
        choices.append(Choice("gradient_accumulation_steps", count, f"a batch for each of {count} GPUs"))
    elif batches != "auto" and config.num_processes == "auto" and int(batches) < count:
        choose("num_processes", batches, f"an update has {batches} batches, so that {count} GPUs have no work for all")
    choose("num_processes", count, f"one for each of {count} GPUs" if count > 1 else "one GPU, or none")
    least = max(4 // batch, int(config.num_processes))
    choose("gradient_accumulation_steps", max(1, least), "four pictures an update make its direction steady")
    for name, value, why in _memory(config, machine, precision):
        choose(name, value, why)
    steps = ceil(pictures * config.dataset_repeats * config.num_train_epochs / _pictures_a_step(config))
    choose("max_train_steps", max(1, steps), f"{config.num_train_epochs} passes over {pictures} pictures")

    vram = training_gib(config, precision, str(config.gradient_checkpointing), config.quantization) + CUDA_GIB
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
        may_save_memory=may_save_memory,
    )


def training_gib(config: Config, precision: str, checkpointing: str, quantization: str = "none") -> float:
    """GiB on the GPU while training: frozen weights, LoRA with gradient and two AdamW moments in fp32, activations.

    precision  fp32, fp16 or bf16; in the latter two the layers hold copies of the LoRA in it
    """
    width = 4 if precision == "fp32" else 2
    weights = UNET_PARAMETERS * width / GIB if quantization != "nf4" else NF4_WEIGHTS_GIB * width / 2
    adapter = _trained_parameters(config) * (4 * 4 + (2 if width == 2 else 0)) / GIB
    kept = ACTIVATIONS_GIB[config.lora_targets][checkpointing] + (RECOMPUTED_GIB if checkpointing != "none" else 0)
    text = _text_gib(config, width) if _learns_text(config) else 0.0
    return weights + adapter + text + kept * _area(config) * int(config.train_batch_size) * width / 2


def training_minutes(config: Config, machine: Machine) -> float | None:
    """Minutes of the training steps and of the looks at held-out pictures, or None where the speed is not known."""
    pictures = _steps(config) * _pictures_a_step(config)
    classes = 2 if config.prior_loss_weight else 1
    if config.pretrained_model == demo.MODEL:
        return pictures * classes * DEMO_SECONDS_A_PICTURE / 60
    speed = next((speed for name, speed in GPU_TFLOPS.items() if name in (machine.gpu_name or "")), None)
    if speed is None:
        return None
    picture = _picture_tflop(config) + (TEXT_STEP_TFLOP if _learns_text(config) else 0.0)
    work = pictures * classes * picture + _looks(config) * FORWARDS_A_LOOK * _forward_tflop(config)
    return work / speed / 60 / int(config.num_processes)


def prices(config: Config, precision: str) -> list[str]:
    """What costs memory or time beside the UNet's steps, a sentence each: trained text encoders, looks."""
    steps = _steps(config) * _pictures_a_step(config) * (2 if config.prior_loss_weight else 1) * _picture_tflop(config)
    found = []
    if _learns_text(config) and config.pretrained_model != demo.MODEL:  # its encoders weigh next to nothing
        asked = [name for name in ("train_text_encoder", "learn_concept_token") if getattr(config, name)]
        gib = _text_gib(config, 4 if precision == "fp32" else 2)
        share = TEXT_STEP_TFLOP / _picture_tflop(config)
        found.append(
            f"{' and '.join(asked)}: both text encoders stay in memory, {gib:.1f} GB more, and every caption is "
            f"encoded in its step, {share:.0%} more work"
        )
    if looks := _looks(config):
        share = looks * FORWARDS_A_LOOK * _forward_tflop(config) / steps
        found.append(f"looks at held-out pictures: {looks}, at most {share:.0%} more work")
    return found


def _trained_parameters(config: Config) -> int:
    text = TEXT_LORA_PARAMETERS_A_RANK if config.train_text_encoder else 0
    return (LORA_PARAMETERS_A_RANK[config.lora_targets] + text) * config.rank


def _learns_text(config: Config) -> bool:
    return config.train_text_encoder or config.learn_concept_token


def _text_gib(config: Config, width: int) -> float:
    """Both text encoders and what they keep for the backward pass, in numbers of `width` bytes."""
    return TEXT_PARAMETERS * width / GIB + TEXT_ACTIVATIONS_GIB * int(config.train_batch_size) * width / 2


def _forward_tflop(config: Config) -> float:
    """TFLOP of the UNet's forward pass for one picture."""
    area = _area(config)
    return FORWARD_LINEAR * area + FORWARD_SQUARE * area**2


def _picture_tflop(config: Config) -> float:
    """TFLOP of the UNet's forward and backward pass for one picture."""
    return _forward_tflop(config) * STEP_OVER_FORWARD[config.lora_targets][str(config.gradient_checkpointing)]


def _without_8bit(config: Config) -> str:
    more = 6 * _trained_parameters(config) / 1e6  # two moments of four bytes instead of one
    return (
        f"{config.optimizer} needs the package bitsandbytes, which is not installed (pip install bitsandbytes); adamw "
        f"learns the same and takes {more:.0f} MB more"
    )


def _looks(config: Config) -> int:
    """How often the held-out pictures are looked at, before the first step included."""
    if not config.validate_every or not config.validation_fraction:
        return 0
    return 1 + ceil(_steps(config) / config.validate_every)


def _memory(config: Config, machine: Machine, precision: str) -> list[tuple[str, str, str]]:
    """Checkpointing and quantization: the fastest that fits on this GPU, in the order in which they cost time."""
    modes = ("none", "transformers", "full")
    ways = [(kind, mode) for kind in ("none", "nf4") for mode in modes if config.quantization in ("auto", kind)]
    limit = machine.vram_gb * SPARE - CUDA_GIB if machine.gpu_name else float("inf")
    fitting = [way for way in ways if training_gib(config, precision, way[1], way[0]) <= limit]
    quantization, mode = fitting[0] if fitting else ways[-1]
    why = {
        "none": "everything fits without, and is faster",
        "transformers": "activations of the transformer blocks would not fit beside the model",
        "full": "activations would not fit beside the model",
    }[mode]
    small = (
        "the base model would not fit in half precision" if quantization == "nf4" else "the base model fits as it is"
    )
    return [("quantization", quantization, small), ("gradient_checkpointing", mode, why)]


def _short(value: object) -> str:
    """A value in few words: a list as its items, or as their number where they are many."""
    if not isinstance(value, tuple):
        return str(value)
    return " ".join(map(str, value)) if len(value) <= 2 else f"({len(value)} of them)"


def _warnings(config: Config, machine: Machine, vram: float) -> tuple[Caution, ...]:
    found: list[Caution] = []

    def warn(setting: str, sentence: str) -> None:
        found.append(Caution(setting, sentence))

    if machine.gpu_name and vram > machine.vram_gb * SPARE:
        warn(
            "train_batch_size",
            f"Training needs {vram:.1f} GB and {machine.gpu_name} has {machine.vram_gb:.1f} GB. "
            "Next to try: train_batch_size 1, gradient_checkpointing full, or resolution 768.",
        )
    rate = config.learning_rate
    if config.optimizer == "prodigy" and rate < 0.1:
        warn(
            "learning_rate",
            f"prodigy finds its own rate, times learning_rate: 1 is usual, {rate:g} learns little.",
        )
    elif config.optimizer != "prodigy" and rate > 1e-2:
        warn("learning_rate", f"learning_rate {rate:g} is far above the usual 1e-4; the LoRA may turn to noise.")
    if int(config.num_processes) > int(config.gradient_accumulation_steps):
        warn(
            "num_processes",
            f"num_processes is {config.num_processes}, but an update has gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} batches: the other processes have nothing to do. Raise it, or take "
            "fewer processes.",
        )
    if config.rank >= 64 and machine.gpu_name and machine.vram_gb < 24:
        warn("rank", f"rank {config.rank} on {machine.vram_gb:.0f} GB is tight and overfits soon; 16 holds a style.")
    if machine.gpu_name is None and _native_side(config.pretrained_model) >= 512:
        warn(
            "pretrained_model",
            "SDXL on a CPU takes hours for a few steps. Choose a GPU, or preset demo for a first look.",
        )
    return tuple(found)


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
