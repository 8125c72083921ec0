"""Figures of work that was just done: what it took beside what was planned for exactly that much work."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, TypeVar

from lace_lora import coefficients, experience, stage_needs, throughput, workload
from lace_lora.errors import LaceError
from lace_lora.experience import NOTHING, Figure
from lace_lora.fitting import DRAWING
from lace_lora.plans import Plan
from lace_lora.workload import Job, Stage

FEWEST_STEPS = 3  # below them the first one, which is slower, would count too much

T = TypeVar("T")


@dataclass
class Watch:
    """Seconds that stages compute, without loading their models: from when work is taken up until it is there."""

    pieces: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # rows and seconds of each
    designs: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=monotonic)

    def begins(self, work: Iterable[T]) -> Iterator[T]:
        """The pieces of work; the clock starts as each is taken up."""
        for piece in work:
            self.began = monotonic()
            yield piece

    def made(self, stage: str, rows: int, designs: int) -> None:
        """The piece that was taken up last is there. designs: how many it ends, 0 where more is to be done for one."""
        self.pieces.setdefault(stage, []).append((rows, monotonic() - self.began))
        self.designs[stage] = self.designs.get(stage, 0) + designs

    def seconds(self, stage: str) -> float:
        """Of all pieces of a stage, at the pace of those after the first, which may wait for a model; 0 for none."""
        pieces = self.pieces.get(stage, [])
        later = pieces[1:] or pieces
        rows = sum(one for one, _ in later)
        return sum(seconds for _, seconds in later) / rows * sum(one for one, _ in pieces) if rows else 0.0


def of_training(
    plan: Plan, seconds_a_step: float, checkpointing: str, peak_gb: float, checkpoint_bytes: float
) -> list[Figure]:
    """The figure of a training.

    checkpointing  as it was in the end: a run whose memory ran out has stepped it up
    peak_gb        most of the GPU's memory in use, GiB; 0 on a CPU
    """
    settings = plan.config.model_copy(
        update={"max_train_steps": 1, "validate_every": 0, "gradient_checkpointing": checkpointing}
    )
    job = replace(plan.job, config=settings, known=NOTHING)
    train, memory = stage_needs.train(job), {}
    if peak_gb and not plan.config.sample_every:  # sample pictures may take more than a step
        fixed = train.weights_gb + train.adapter_gb + train.optimizer_gb + (plan.encoded_gb * plan.cache_is_on_gpu)
        memory = {"peak_gb": peak_gb, "fixed_gb": fixed, "planned_gb": train.activations_gb}
    whole = replace(job, config=plan.config.model_copy(update={"gradient_checkpointing": checkpointing}))
    return [of_stage(whole, train, seconds_a_step, checkpoint_bytes=checkpoint_bytes, **memory)]


def of_drawing(plan: Plan, watch: Watch, base_model: str, sizes: Collection[tuple[int, int]]) -> list[Figure]:
    """The figures of a sheet's stages; none where its designs are of several sizes.

    base_model  what it was drawn with
    sizes       width and height of the designs, px
    """
    if len(sizes) != 1:
        return []
    width, height = next(iter(sizes))
    found = []
    for stage in DRAWING:
        designs, seconds = watch.designs.get(stage, 0), watch.seconds(stage)
        if not designs or not seconds:
            continue
        settings = plan.config.model_copy(update={"num_images": designs, "width": width, "height": height})
        job = replace(plan.job, config=settings, model=coefficients.of(base_model), known=NOTHING)
        found += [of_stage(job, one, seconds) for one in stage_needs.stages(job) if one.name == stage]
    return found


def keep_drawing(plan: Plan, watch: Watch, base_model: str, sizes: Collection[tuple[int, int]]) -> None:
    """Keep them below cache_dir, where the next plan finds them."""
    with suppress(LaceError):  # a figure is worth no sheet
        experience.keep(plan.config.cache_dir, of_drawing(plan, watch, base_model, sizes))


def of_stage(job: Job, stage: Stage, seconds: float, **more: Any) -> Figure:
    """The figure of a stage of a job that took so many seconds; more: what else of Figure was measured."""
    return Figure(
        stage.name, throughput.kind(job.machine), job.model.name,
        "fp32" if stage.name == "decode" else job.precision, stage.quantization,
        workload.detail(job, stage.name), seconds, stage.work, str(job.config.gradient_checkpointing),
        at=datetime.now(UTC).isoformat(timespec="seconds"), **more,
    )  # fmt: skip
