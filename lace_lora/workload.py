"""A job and its stages as values; what a stage's work takes of this machine's time and memory. Arithmetic only.

Sizes are GiB. What a job does in each stage is in stage_needs, what a machine does in a second in throughput.
"""

from dataclasses import dataclass, field

from lace_lora import throughput
from lace_lora.coefficients import NF4_FILE_BYTES, Coefficients
from lace_lora.config import Config
from lace_lora.experience import NOTHING, Experience, Figure
from lace_lora.machine import GIB, Machine, Precision
from lace_lora.throughput import Speed, Work

CUDA_GIB = 0.5  # context and workspace of CUDA and its libraries; not measured yet
# What Python and its libraries hold of the computer's memory, in each process; with CUDA they are larger.
PROGRAM_GIB = {"cuda": 3.0, "cpu": 1.0}
# Bytes read and written for a number of the base in NF4 each time that it is computed with.
NF4_TRAFFIC = 4.5
# A part goes onto a GPU tensor by tensor. Own memory is taken by those that are made another dtype, as float32 at most:
# transformers reads four at a time, and of the others the last one is still there when the next one is made.
IN_HAND = {"text": 4}
IN_HAND_OF_OTHERS = 2
NUMBERS = {"fp32": 4, "fp16": 2, "bf16": 2}
# Stages that do the same work as one that is measured: a picture through the UNet, or through the VAE.
SAME_WORK = {"class pictures": "generate", "sample": "generate", "encode pictures": "decode"}
ENCODING = ("encode pictures", "encode captions")  # by the first process, while the others wait
TOGETHER = ("train", "sample")  # with all that training takes in every process
WITH_ENCODED = (*ENCODING, *TOGETHER)  # stages in which the encoded pictures are in memory
NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Stage:
    """One stage; `tflop` and `seconds` are of all its work, memory is what is held at most. None: speed not known."""

    name: str
    tflop: float
    seconds: float | None
    weights_gb: float
    activations_gb: float
    adapter_gb: float = 0.0
    optimizer_gb: float = 0.0  # with the gradients
    workspace_gb: float = 0.0
    ram_gb: float = 0.0
    program_gb: float = 0.0  # of ram_gb, what Python and its libraries hold: an estimate, where the rest is counted
    disk_gb: float = 0.0
    work: Work = Work(0.0)
    source: str = NOT_KNOWN  # of the seconds
    quantization: str = "none"  # in which the base is held

    @property
    def memory_gb(self) -> float:
        """All of it together: of the GPU where there is one, else part of ram_gb."""
        parts = (self.weights_gb, self.activations_gb, self.adapter_gb, self.optimizer_gb, self.workspace_gb)
        return sum(parts)

    @property
    def minutes(self) -> float | None:
        """The same as seconds."""
        return None if self.seconds is None else self.seconds / 60


@dataclass(frozen=True)
class Job:
    """What decides the stages: settings without auto, how many pictures, the machine, and the model's coefficients."""

    config: Config
    pictures: int
    machine: Machine
    precision: Precision
    model: Coefficients
    known: Experience = field(default=NOTHING, repr=False)  # what earlier runs took
    draws_in: str = "auto"  # the quantization that was asked for in drawing; config's is the training's

    @property
    def width(self) -> int:
        """Bytes of a number of the base's weights."""
        return NUMBERS[self.precision]

    @property
    def cells(self) -> int:
        """Latent cells of a training picture; other shapes have the same area."""
        side = int(self.config.resolution)
        return self.model.cells(side, side)

    @property
    def design_cells(self) -> int:
        """Latent cells of a new design."""
        side = int(self.config.resolution)
        return self.model.cells(self.config.width or side, self.config.height or side)

    @property
    def speed(self) -> Speed | None:
        """How fast the machine is, as its self-test found or as the table has it."""
        return self.known.speed(self.machine)

    def figure(self, stage: str, quantization: str) -> Figure | None:
        """What the last run of a stage on this machine took, in this precision; None where there was none."""
        stage = SAME_WORK.get(stage, stage)
        return self.known.find(
            stage, throughput.kind(self.machine), self.model.name, "fp32" if stage == "decode" else self.precision,
            quantization, detail(self, stage),
        )  # fmt: skip

    @property
    def processes(self) -> int:
        """That train side by side here; those beyond need GPUs of other machines, or are no help."""
        return throughput.side_by_side(int(self.config.num_processes), self.machine)

    @property
    def processes_in_memory(self) -> int:
        """That hold a model each in this computer's memory."""
        return throughput.in_one_memory(int(self.config.num_processes), self.machine)


def detail(job: Job, stage: str) -> str:
    """What else a stage's pace depends on a little; a figure of the same detail is taken before others."""
    config = job.config
    if stage != "train":
        return f"{job.design_cells} cells"
    learnt = "with text" if learns_text(config) else "unet"
    return (
        f"{job.cells} cells, {config.lora_targets} r{config.rank}, {learnt}, batch {config.train_batch_size}, "
        f"{config.gradient_checkpointing}"
    )


def learns_text(config: Config) -> bool:
    """Whether the text encoders are in memory while training."""
    return config.train_text_encoder or config.learn_concept_token


def has_classes(job: Job) -> bool:
    """Whether class pictures are drawn and learnt beside the others."""
    return bool(job.config.prior_loss_weight)


def cuts_a_picture(config: Config) -> int:
    """How often a picture is encoded: mirrored, turned, at other places. A large scan's tiles come on top."""
    return (2 if config.random_flip else 1) * (4 if config.quarter_turns else 1) * (4 if config.crop == "random" else 1)


def encoded_bytes(job: Job) -> float:
    """All encoded pictures and captions: mean and deviation of each channel in fp32, captions in half precision."""
    kept = job.model.table["encoded"]
    latents = 2 * 4 * kept["channels"] * job.cells * cuts_a_picture(job.config)
    text = job.width * kept["caption"]
    classes = job.config.num_class_images if has_classes(job) else 0
    return job.pictures * (latents + text) + classes * 2 * latents


def stage(
    job: Job, name: str, tflop: float, *, layers: float, weights: float, activations: float, adapter: float = 0.0,
    optimizer: float = 0.0, disk: float = 0.0, is_fp32: bool = False, share: int = 1, quantization: str = "none",
    passes: float = 0.0,
) -> Stage:  # fmt: skip
    """A stage on this machine; bytes are given, GiB come out.

    layers        that are passed through in all
    share         of how many processes this one is
    quantization  in which the base is held
    passes        through the base, which take more where it is in 4 bits
    """
    nf4_gb = passes * NF4_TRAFFIC * job.model.parameters("denoiser") / 1e9 if quantization == "nf4" else 0.0
    work = Work(tflop, layers, is_fp32 or job.width == 4, nf4_gb, share)
    took, source = seconds(job, name, work, quantization)
    has_gpu = job.machine.gpu_name is not None
    held = weights + adapter + optimizer + activations
    encoded = encoded_bytes(job) if name in WITH_ENCODED else 0.0
    passing = _passing(job, name, quantization) if has_gpu else max(held, _largest_part(job, name))
    processes = job.processes_in_memory if name in TOGETHER else 1
    program = PROGRAM_GIB[job.machine.device] * (job.processes_in_memory if name in WITH_ENCODED else 1)
    return Stage(
        name, tflop, took, weights / GIB, activations / GIB, adapter / GIB, optimizer / GIB,
        CUDA_GIB if has_gpu else 0.0, program + processes * (passing + encoded) / GIB, program, disk / GIB,
        work, source, quantization,
    )  # fmt: skip


def seconds(job: Job, name: str, work: Work, quantization: str = "none") -> tuple[float | None, str]:
    """How long a stage's work takes, and where that is known from: the table, corrected by what the last run took.

    One run is enough: it tells how many times as long as by the table this machine takes, and the table knows what
    grows with the FLOPs and what with the layers alone. benchmarks/plan.py holds exactly this against measurement.
    """
    speed, figure = job.speed, job.figure(name, quantization)
    if figure is None:
        return (speed.seconds(work), speed.source) if speed else (None, NOT_KNOWN)
    source = figure.source_for(name, detail(job, name))
    if speed is None:
        return figure.seconds * work.tflop * figure.work.processes / (figure.work.tflop * work.processes), source
    return speed.seconds(work) * figure.seconds / speed.seconds(figure.work), source


def _passing(job: Job, name: str, quantization: str) -> float:
    """Bytes of a part that are in the computer's memory while it is loaded onto a GPU, but for files that are mapped.

    What is made 4-bit is kept in files, of which one is in memory at a time, twice with safetensors before 0.8.
    """
    part = _part(name)
    in_hand = IN_HAND.get(part, IN_HAND_OF_OTHERS) * job.model.largest(part) * NUMBERS["fp32"]
    if quantization != "nf4":
        return in_hand
    return max(in_hand, 2 * min(NF4_FILE_BYTES, job.model.weight_bytes(part, job.width, "nf4")))


def _largest_part(job: Job, name: str) -> float:
    """Bytes of the largest network that a stage loads."""
    part = _part(name)
    return job.model.weight_bytes(part, 4 if part == "vae" else job.width)


def _part(name: str) -> str:
    """The network that a stage is about."""
    parts = {"encode pictures": "vae", "decode": "vae", "encode captions": "text", "refine": "refiner"}
    return parts.get(name, "denoiser")
