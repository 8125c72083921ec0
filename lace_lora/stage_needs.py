"""What each stage of a job needs: work, memory of the GPU and of the computer, disk, seconds. Arithmetic only.

Sizes are GiB. Everything a model takes comes from coefficients, everything a machine does from throughput.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

from lace_lora import demo, throughput
from lace_lora.coefficients import Coefficients
from lace_lora.config import Config
from lace_lora.experience import NOTHING, Experience, Figure
from lace_lora.machine import GIB, Machine, Precision
from lace_lora.throughput import Speed, Work

CUDA_GIB = 0.5  # context and workspace of CUDA and its libraries; not measured yet
# What Python and its libraries hold of the computer's memory; with CUDA they are larger.
PROGRAM_GIB = {"cuda": 3.0, "cpu": 1.0}
FORWARDS_A_LOOK = 96  # at most 12 held-out and 12 learnt pictures at four noise levels each
SAMPLES_A_ROW = 4
# Bytes that an optimizer keeps for each learnt number: two moments of 4, or of 1 and their scales; prodigy also keeps
# where it began and a sum, adafactor only sums over rows and columns.
OPTIMIZER_BYTES = {
    "adamw": 8.0, "adamw8bit": 2.1, "paged_adamw8bit": 2.1, "prodigy": 16.0, "adafactor": 0.2, "schedulefree": 8.0,
}  # fmt: skip
# Bytes read and written for a number of the base in NF4 each time that it is computed with.
NF4_TRAFFIC = 4.5
NUMBERS = {"fp32": 4, "fp16": 2, "bf16": 2}
# Stages that do the same work as one that is measured: a picture through the UNet, or through the VAE.
SAME_WORK = {"class pictures": "generate", "sample": "generate", "encode pictures": "decode"}
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
    disk_gb: float = 0.0
    work: Work = Work(0.0)
    source: str = NOT_KNOWN  # of the seconds

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

    def figure(self, stage: str) -> Figure | None:
        """What the last run of a stage on this machine took, in this precision; None where there was none."""
        stage = SAME_WORK.get(stage, stage)
        is_training, config = stage == "train", self.config
        return self.known.find(
            stage, throughput.kind(self.machine), self.model.name, "fp32" if stage == "decode" else self.precision,
            config.quantization if is_training else "none", detail(self, stage),
        )  # fmt: skip


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


def stages(job: Job) -> tuple[Stage, ...]:
    """All stages of a job in order; those that the settings leave out are not among them."""
    config = job.config
    found = [encode_pictures(job), encode_captions(job)]
    if config.prior_loss_weight:
        found.append(_drawn(job, "class pictures", config.num_class_images, job.cells, int(config.train_batch_size)))
    found.append(train(job))
    if config.sample_every:
        found.append(sample(job))
    at_once = throughput.pictures_at_once(job.design_cells, job.machine)
    found.append(_drawn(job, "generate", config.num_images, job.design_cells, at_once))
    if config.refine != "none":
        found.append(refine(job, at_once))
    return (*found, decode(job))


# -- before training --


def encode_pictures(job: Job) -> Stage:
    """Every cut of every picture through the VAE, one at a time, always in fp32."""
    cuts = job.pictures * cuts_a_picture(job.config) + (job.config.num_class_images if _has_classes(job) else 0)
    tflop = cuts * job.model.vae_flop("encode", job.cells) / 1e12
    return _stage(
        job, "encode pictures", tflop, passes=cuts, is_fp32=True,
        weights=job.model.weight_bytes("vae", 4), activations=job.model.vae_bytes("encode", job.cells, 4),
        disk=encoded_bytes(job),
    )  # fmt: skip


def encode_captions(job: Job) -> Stage:
    """Every caption through both text encoders."""
    count = job.pictures + 1
    return _stage(
        job, "encode captions", count * job.model.caption_flop() / 1e12, passes=2 * count,
        weights=job.model.weight_bytes("text", job.width), activations=job.model.caption_bytes(job.width),
    )  # fmt: skip


def cuts_a_picture(config: Config) -> int:
    """How often a picture is encoded: mirrored, turned, at other places. A large scan's tiles come on top."""
    return (2 if config.random_flip else 1) * (4 if config.quarter_turns else 1) * (4 if config.crop == "random" else 1)


def encoded_bytes(job: Job) -> float:
    """All encoded pictures and captions: mean and deviation of 4 channels in fp32, 77 tokens in half precision."""
    latents = 2 * 4 * 4 * job.cells * cuts_a_picture(job.config)
    text = job.width * (77 * job.model.table["shape"]["cross_attention_dim"] + 1280)
    classes = job.config.num_class_images if _has_classes(job) else 0
    return job.pictures * (latents + text) + classes * 2 * latents


# -- training --


def train(job: Job) -> Stage:
    """All updates and the looks at held-out pictures."""
    config, model = job.config, job.model
    pictures = updates(config) * pictures_an_update(config) * (2 if _has_classes(job) else 1)
    a_picture = picture_flop(job) + (_caption_step_flop(job) if learns_text(config) else 0.0)
    seen = looks(config) * FORWARDS_A_LOOK
    tflop = (pictures * a_picture + seen * model.forward_flop("unet", job.cells)) / 1e12
    passes = 3 * pictures / int(config.train_batch_size) + seen
    learnt = learnt_numbers(job)
    return _stage(
        job, "train", tflop, passes=passes, share=int(config.num_processes), nf4_passes=passes,
        weights=_trained_weight_bytes(job), activations=activation_bytes(job),
        adapter=learnt * adapter_bytes_a_number(job), optimizer=learnt * optimizer_bytes_a_number(job),
        disk=(2 + config.checkpoints_to_keep) * checkpoint_bytes(job) + 2 * learnt * 4,
    )  # fmt: skip


def checkpoint_bytes(job: Job) -> float:
    """A checkpoint on the disk: the LoRA and what the optimizer keeps; as large as the last one of these settings."""
    figure = job.figure("train")
    if figure and figure.checkpoint_bytes and figure.detail == detail(job, "train"):
        return figure.checkpoint_bytes
    return learnt_numbers(job) * 12


def training_gib(job: Job) -> float:
    """GiB on the device while training, without what CUDA takes for itself."""
    learnt = learnt_numbers(job) * (adapter_bytes_a_number(job) + optimizer_bytes_a_number(job))
    return (_trained_weight_bytes(job) + learnt + activation_bytes(job)) / GIB


def learnt_numbers(job: Job) -> float:
    """Numbers of the LoRA, without a new word's 2,048."""
    config = job.config
    return job.model.lora_parameters(config.lora_targets, config.rank, config.train_text_encoder)


def adapter_bytes_a_number(job: Job) -> float:
    """A float32 master and, beside a base in half precision, a working copy."""
    return 4 if job.width == 4 else 6


def optimizer_bytes_a_number(job: Job) -> float:
    """A float32 gradient, and what the optimizer keeps."""
    return 4 + OPTIMIZER_BYTES[job.config.optimizer]


def activation_bytes(job: Job) -> float:
    """What forward and backward pass of a batch hold beside weights and gradients."""
    config = job.config
    one = job.model.step_bytes(
        job.cells, config.rank, config.lora_targets, str(config.gradient_checkpointing), job.width
    )
    text_rank = config.rank if config.train_text_encoder else 0
    text = job.model.caption_step_bytes(text_rank, job.width) if learns_text(config) else 0.0
    share = job.known.activations_share(throughput.kind(job.machine), job.model.name, job.precision,
                                        str(config.gradient_checkpointing))  # fmt: skip
    return share * int(config.train_batch_size) * (one + text)


def text_gib(job: Job) -> float:
    """GiB that trained text encoders take: their weights, and activations of a batch's captions."""
    text_rank = job.config.rank if job.config.train_text_encoder else 0
    activations = int(job.config.train_batch_size) * job.model.caption_step_bytes(text_rank, job.width)
    return (job.model.weight_bytes("text", job.width) + activations) / GIB


def picture_flop(job: Job) -> float:
    """FLOP of one picture forward and backward."""
    config = job.config
    return job.model.step_flop(job.cells, config.rank, config.lora_targets, str(config.gradient_checkpointing))


def text_share(job: Job) -> float:
    """Work of a caption that is encoded in its step, against that of its picture."""
    return _caption_step_flop(job) / picture_flop(job)


def look_share(job: Job) -> float:
    """Work of all looks at held-out pictures, against that of all steps."""
    steps = updates(job.config) * pictures_an_update(job.config) * (2 if _has_classes(job) else 1) * picture_flop(job)
    return looks(job.config) * FORWARDS_A_LOOK * job.model.forward_flop("unet", job.cells) / steps


def learns_text(config: Config) -> bool:
    """Whether the text encoders are in memory while training."""
    return config.train_text_encoder or config.learn_concept_token


def looks(config: Config) -> int:
    """How often the held-out pictures are looked at, before the first step included."""
    if not config.validate_every or not config.validation_fraction:
        return 0
    return 1 + ceil(updates(config) / config.validate_every)


def updates(config: Config) -> int:
    """Optimizer updates in all."""
    return int(config.max_train_steps)


def pictures_an_update(config: Config) -> int:
    """Batch times accumulation."""
    return int(config.train_batch_size) * int(config.gradient_accumulation_steps)


# -- pictures out --


def sample(job: Job) -> Stage:
    """Rows of sample pictures while training: beside what training holds, a pass of two rows or the VAE."""
    config, model = job.config, job.model
    prompts = min(SAMPLES_A_ROW, max(1, len(config.prompts)))
    pictures = prompts * (updates(config) // config.sample_every)
    flop = 2 * config.num_inference_steps * model.forward_flop("unet", job.cells)
    tflop = pictures * (flop + 2 * model.vae_flop("decode", job.cells)) / 1e12
    beside = training_gib(job) * GIB - activation_bytes(job)
    drawing = 2 * model.forward_bytes("unet", job.cells, job.width)
    decoding = model.weight_bytes("vae", 4) + model.vae_bytes("decode", job.cells, 4)
    return _stage(
        job, "sample", tflop, passes=pictures * config.num_inference_steps, weights=beside,
        activations=max(drawing, decoding), disk=pictures * 1.5e6,
    )  # fmt: skip


def refine(job: Job, at_once: int) -> Stage:
    """The refiner's share of the schedule, or of the finished picture's."""
    steps = refiner_steps(job.config)
    rows = job.config.num_images * steps * (2 if job.config.guidance_scale > 1 else 1)
    return _stage(
        job, "refine", rows * job.model.forward_flop("refiner", job.design_cells) / 1e12,
        passes=steps * job.config.num_images / at_once, weights=job.model.weight_bytes("refiner", job.width),
        activations=2 * at_once * job.model.forward_bytes("refiner", job.design_cells, job.width),
    )  # fmt: skip


def refiner_steps(config: Config) -> int:
    """Steps that the refiner makes; Karras' schedule has a third of its steps in the little noise of the end."""
    if config.refine == "img2img":
        return min(int(config.num_inference_steps * config.refine_strength), config.num_inference_steps)
    share = 1 - config.refiner_start
    share = max(share, share ** (2 / 3)) if config.scheduler.endswith("karras") else share
    return max(1, round(config.num_inference_steps * share))


def decode(job: Job) -> Stage:
    """Every design, and the unrefined one beside it, through the VAE one at a time, in fp32."""
    config = job.config
    pictures = config.num_images * (1 if config.refine == "none" else 2)
    cells = job.design_cells
    return _stage(
        job, "decode", pictures * job.model.vae_flop("decode", cells) / 1e12, passes=pictures, is_fp32=True,
        weights=job.model.weight_bytes("vae", 4), activations=job.model.vae_bytes("decode", cells, 4),
        disk=pictures * cells * job.model.px_a_cell**2 * (2.0 if config.image_format == "png" else 0.5),
    )  # fmt: skip


def _drawn(job: Job, name: str, pictures: int, cells: int, at_once: int) -> Stage:
    """Pictures by the base, from noise or from a picture to their end."""
    config = job.config
    share = config.start_strength if config.start_picture and name == "generate" else 1.0
    guided = 1 + config.guidance_until if config.guidance_scale > 1 else 1.0
    steps = config.num_inference_steps * share
    return _stage(
        job, name, pictures * steps * guided * job.model.forward_flop("unet", cells) / 1e12,
        passes=steps * pictures / at_once, weights=job.model.weight_bytes("unet", job.width),
        activations=2 * at_once * job.model.forward_bytes("unet", cells, job.width),
    )  # fmt: skip


# -- inside --


def _stage(
    job: Job, name: str, tflop: float, *, passes: float, weights: float, activations: float, adapter: float = 0.0,
    optimizer: float = 0.0, disk: float = 0.0, is_fp32: bool = False, share: int = 1, nf4_passes: float = 0.0,
) -> Stage:  # fmt: skip
    """A stage on this machine. share: of how many processes this one is; bytes are given, GiB come out."""
    is_small = job.config.quantization == "nf4" and nf4_passes
    nf4_gb = nf4_passes * NF4_TRAFFIC * job.model.parameters("unet") / 1e9 if is_small else 0.0
    work = Work(tflop, passes, is_fp32 or job.width == 4, nf4_gb, share)
    seconds, source = _seconds(job, name, work)
    has_gpu = job.machine.gpu_name is not None
    held = weights + adapter + optimizer + activations
    encoded = encoded_bytes(job) if name in ("encode pictures", "encode captions", "train", "sample") else 0.0
    # Each part of a model passes whole through the computer's memory, one after the other, in 4 bits later or not.
    passing = _largest_part(job, name) if has_gpu else max(held, _largest_part(job, name))
    return Stage(
        name, tflop, seconds, weights / GIB, activations / GIB, adapter / GIB, optimizer / GIB,
        CUDA_GIB if has_gpu else 0.0, PROGRAM_GIB[job.machine.device] + (passing + encoded) / GIB, disk / GIB,
        work, source,
    )  # fmt: skip


def _seconds(job: Job, name: str, work: Work) -> tuple[float | None, str]:
    """How long work takes, and where that is known from: the table, corrected by what it said of the last run."""
    speed, figure = job.speed, job.figure(name)
    if speed is None and figure is None:
        return None, NOT_KNOWN
    if figure is None or not figure.seconds:
        return (speed.seconds(work), speed.source) if speed else (None, NOT_KNOWN)
    if speed is None:
        return figure.seconds * work.tflop * figure.work.processes / (figure.work.tflop * work.processes), figure.source
    return speed.seconds(work) * figure.seconds / speed.seconds(figure.work), figure.source


def _largest_part(job: Job, name: str) -> float:
    """Bytes of the largest network that a stage loads."""
    part = {"encode pictures": "vae", "decode": "vae", "encode captions": "text", "refine": "refiner"}.get(name, "unet")
    return job.model.weight_bytes(part, 4 if part == "vae" else job.width)


def _trained_weight_bytes(job: Job) -> float:
    text = job.model.weight_bytes("text", job.width) if learns_text(job.config) else 0.0
    return job.model.weight_bytes("unet", job.width, job.config.quantization) + text


def _caption_step_flop(job: Job) -> float:
    return job.model.caption_step_flop(job.config.rank if job.config.train_text_encoder else 0)


def _has_classes(job: Job) -> bool:
    return bool(job.config.prior_loss_weight)


def downloads(config: Config, model: Coefficients) -> Iterator[tuple[str, float]]:
    """Models that would be fetched, each with its GiB: half precision where it is offered, the VAE in fp32."""
    vae = model.weight_bytes("vae", 4)
    if config.pretrained_model != demo.MODEL:
        parts = model.weight_bytes("unet", 2) + model.weight_bytes("text", 2) + vae
        yield config.pretrained_model, parts / GIB
    if config.refine != "none" and config.refiner_model != demo.REFINER:
        second = float(model.table["text"][1]["parameters"])
        yield config.refiner_model, (model.weight_bytes("refiner", 2) + 2 * second + vae) / GIB
