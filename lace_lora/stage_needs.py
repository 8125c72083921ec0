"""What each stage of a job needs: work, memory of the GPU and of the computer, disk. Arithmetic only.

Everything that a model takes comes from coefficients; workload turns it into seconds and GiB of a machine.
"""

from collections.abc import Iterator
from math import ceil

from lace_lora import demo, throughput, workload
from lace_lora.coefficients import Coefficients
from lace_lora.config import Config
from lace_lora.machine import GIB, Machine
from lace_lora.workload import Job as Job
from lace_lora.workload import Stage as Stage
from lace_lora.workload import cuts_a_picture, encoded_bytes, has_classes, learns_text

SPARE = 0.95  # part of a memory that can be used; the rest is lost between blocks of different sizes, or the system's
HELD_OUT_AT_MOST = 12  # pictures that a look is at, and as many that are learnt
FORWARDS_A_PAIR = 8  # of one held-out and one learnt picture at four noise levels each
PASSES = {"none": 3, "transformers": 4, "full": 4}  # forward, two backward; and forward again where it was not kept
SAMPLES_A_ROW = 4
# Bytes that an optimizer keeps for each learnt number: two moments of 4, or of 1 and their scales; prodigy also keeps
# where it began and a sum, adafactor only sums over rows and columns.
OPTIMIZER_BYTES = {
    "adamw": 8.0, "adamw8bit": 2.1, "paged_adamw8bit": 2.1, "prodigy": 16.0, "adafactor": 0.2, "schedulefree": 8.0,
}  # fmt: skip


def stages(job: Job) -> tuple[Stage, ...]:
    """All stages of a job in order; those that the settings leave out are not among them."""
    config = job.config
    found = [encode_pictures(job), encode_captions(job)]
    if config.prior_loss_weight:
        # By the base as it learns, in 4 bits or not: plain words shall stay what they are to that base.
        base = config.quantization
        found.append(
            drawn(job, "class pictures", config.num_class_images, job.cells, int(config.train_batch_size), base)
        )
    found.append(train(job))
    if config.sample_every:
        found.append(sample(job))
    at_once = throughput.pictures_at_once(job.design_cells, job.machine)
    found.append(generate(job, at_once))
    if config.refine != "none":
        found.append(refine(job, at_once))
    return (*found, decode(job))


# -- before training --


def encode_pictures(job: Job) -> Stage:
    """Every cut of every picture through the VAE, one at a time, always in fp32."""
    cuts = job.pictures * cuts_a_picture(job.config) + (job.config.num_class_images if has_classes(job) else 0)
    tflop = cuts * job.model.vae_flop("encode", job.cells) / 1e12
    return workload.stage(
        job, "encode pictures", tflop, layers=cuts * job.model.layers("vae", "encode"), is_fp32=True,
        weights=job.model.weight_bytes("vae", 4), activations=job.model.vae_bytes("encode", job.cells, 4),
        disk=encoded_bytes(job),
    )  # fmt: skip


def encode_captions(job: Job) -> Stage:
    """Every caption through both text encoders."""
    count = job.pictures + 1
    return workload.stage(
        job, "encode captions", count * job.model.caption_flop() / 1e12, layers=count * job.model.layers("text"),
        weights=job.model.weight_bytes("text", job.width), activations=job.model.caption_bytes(job.width),
    )  # fmt: skip


# -- training --


def train(job: Job) -> Stage:
    """All updates and the looks at held-out pictures."""
    config, model = job.config, job.model
    pictures = updates(config) * pictures_an_update(config) * (2 if has_classes(job) else 1)
    a_picture = picture_flop(job) + (_caption_step_flop(job) if learns_text(config) else 0.0)
    seen = looks(job) * FORWARDS_A_PAIR * held_out(job)
    tflop = (pictures * a_picture + seen * model.forward_flop("denoiser", job.cells)) / 1e12
    passes = PASSES[str(config.gradient_checkpointing)] * pictures / int(config.train_batch_size)
    layers = (passes + seen) * model.layers("denoiser") + (passes * model.layers("text") if learns_text(config) else 0)
    learnt = learnt_numbers(job)
    return workload.stage(
        job, "train", tflop, layers=layers, share=job.processes, quantization=config.quantization,
        passes=passes + seen, weights=_trained_weight_bytes(job), activations=activation_bytes(job),
        adapter=learnt * adapter_bytes_a_number(job), optimizer=learnt * optimizer_bytes_a_number(job),
        disk=(2 + config.checkpoints_to_keep) * checkpoint_bytes(job) + 2 * learnt * 4,
    )  # fmt: skip


def checkpoint_bytes(job: Job) -> float:
    """A checkpoint on the disk: the LoRA and what the optimizer keeps; as large as the last one of these settings."""
    figure = job.figure("train", job.config.quantization)
    if figure and figure.checkpoint_bytes and figure.detail == workload.detail(job, "train"):
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
    steps = updates(job.config) * pictures_an_update(job.config) * (2 if has_classes(job) else 1) * picture_flop(job)
    return looks(job) * FORWARDS_A_PAIR * held_out(job) * job.model.forward_flop("denoiser", job.cells) / steps


def held_out(job: Job) -> int:
    """Pictures that stand aside; none of a folder so small that the share is less than one."""
    return min(HELD_OUT_AT_MOST, int(job.config.validation_fraction * job.pictures))


def looks(job: Job) -> int:
    """How often the held-out pictures are looked at, before the first step included."""
    if not job.config.validate_every or not held_out(job):
        return 0
    return 1 + ceil(updates(job.config) / job.config.validate_every)


def updates(config: Config) -> int:
    """Optimizer updates in all."""
    return int(config.max_train_steps)


def pictures_an_update(config: Config) -> int:
    """Batch times accumulation."""
    return int(config.train_batch_size) * int(config.gradient_accumulation_steps)


# -- pictures out --


def sample(job: Job) -> Stage:
    """Rows of sample pictures while training: beside what training holds, a guided pass or the VAE."""
    config, model = job.config, job.model
    prompts = min(SAMPLES_A_ROW, max(1, len(config.prompts)))
    pictures = prompts * (updates(config) // config.sample_every)
    flop = model.guided_rows * config.num_inference_steps * model.forward_flop("denoiser", job.cells)
    tflop = pictures * (flop + 2 * model.vae_flop("decode", job.cells)) / 1e12
    beside = training_gib(job) * GIB - activation_bytes(job)
    drawing = model.guided_rows * model.forward_bytes("denoiser", job.cells, job.width)
    decoding = model.weight_bytes("vae", 4) + model.vae_bytes("decode", job.cells, 4)
    passes = pictures * config.num_inference_steps
    return workload.stage(
        job, "sample", tflop, layers=passes * model.layers("denoiser"), weights=beside,
        quantization=config.quantization, passes=passes,
        activations=max(drawing, decoding), disk=pictures * 1.5e6,
    )  # fmt: skip


def generate(job: Job, at_once: int) -> Stage:
    """The designs, by the base as it is wherever that fits into the GPU's memory, else in 4 bits; or as was asked for.

    A CPU draws as it is unless it is told otherwise: 4 bits are chosen for a GPU's memory only.
    """
    asked = "none" if job.draws_in == "auto" else job.draws_in
    stage = drawn(job, "generate", job.config.num_images, job.design_cells, at_once, asked)
    if job.draws_in == "auto" and not has_room(stage, job.machine):
        return drawn(job, "generate", job.config.num_images, job.design_cells, at_once, "nf4")
    return stage


def has_room(stage: Stage, machine: Machine) -> bool:
    """Whether a stage fits into the GPU's memory, where there is a GPU and its memory is known."""
    return not machine.gpu_name or not 0 < machine.vram_gb * SPARE < stage.memory_gb


def refine(job: Job, at_once: int) -> Stage:
    """The refiner's share of the schedule, or of the finished picture's.

    Never in 4 bits: it is there for the finest detail, and where it does not fit designs are drawn without it.
    """
    steps = refiner_steps(job.config)
    rows = job.config.num_images * steps * (2 if job.config.guidance_scale > 1 else 1)
    return workload.stage(
        job, "refine", rows * job.model.forward_flop("refiner", job.design_cells) / 1e12,
        layers=steps * job.config.num_images / at_once * job.model.layers("refiner"),
        weights=job.model.weight_bytes("refiner", job.width),
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
    return workload.stage(
        job, "decode", pictures * job.model.vae_flop("decode", cells) / 1e12,
        layers=pictures * job.model.layers("vae", "decode"), is_fp32=True,
        weights=job.model.weight_bytes("vae", 4), activations=job.model.vae_bytes("decode", cells, 4),
        disk=pictures * cells * job.model.px_a_cell**2 * (2.0 if config.image_format == "png" else 0.5),
    )  # fmt: skip


def drawn(job: Job, name: str, pictures: int, cells: int, at_once: int, quantization: str) -> Stage:
    """Pictures by the base, from noise or from a picture to their end.

    quantization  none: the LoRA is fused in; nf4: it is beside the layers
    """
    config = job.config
    share = config.start_strength if config.start_picture and name == "generate" else 1.0
    rows = job.model.guided_rows
    guided = 1 + (rows - 1) * config.guidance_until if config.guidance_scale > 1 else 1.0
    passes = config.num_inference_steps * share * pictures / at_once
    has_lora = quantization == "nf4" and name == "generate"
    return workload.stage(
        job, name, passes * at_once * guided * job.model.forward_flop("denoiser", cells) / 1e12,
        layers=passes * job.model.layers("denoiser"), quantization=quantization, passes=passes,
        weights=job.model.weight_bytes("denoiser", job.width, quantization),
        adapter=learnt_numbers(job) * job.width if has_lora else 0.0,
        activations=rows * at_once * job.model.forward_bytes("denoiser", cells, job.width),
    )  # fmt: skip


# -- inside --


def _trained_weight_bytes(job: Job) -> float:
    text = job.model.weight_bytes("text", job.width) if learns_text(job.config) else 0.0
    return job.model.weight_bytes("denoiser", job.width, job.config.quantization) + text


def _caption_step_flop(job: Job) -> float:
    return job.model.caption_step_flop(job.config.rank if job.config.train_text_encoder else 0)


def downloads(config: Config, model: Coefficients) -> Iterator[tuple[str, float]]:
    """Models that would be fetched, each with its GiB: half precision where it is offered, the VAE in fp32."""
    vae = model.weight_bytes("vae", 4)
    if config.pretrained_model != demo.MODEL:
        parts = model.weight_bytes("denoiser", 2) + model.weight_bytes("text", 2) + vae
        yield config.pretrained_model, parts / GIB
    if config.refine != "none" and config.refiner_model != demo.REFINER:
        second = float(model.table["text"][1]["parameters"])
        yield config.refiner_model, (model.weight_bytes("refiner", 2) + 2 * second + vae) / GIB
