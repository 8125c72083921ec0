"""What a run needs on this machine, how long it takes, and the settings that are left to the plan. Arithmetic only.

What a model takes was counted on its architecture (coefficients), what a machine does stands in a table of which each
row says whether it was measured (throughput). Nothing here loads torch, so that a form can plan at every change.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lace_lora import (
    demo,
    experience,
    fitting,
    own_folders,
    plans,
    presets,
    settling,
    stage_needs,
    throughput,
    workload,
)
from lace_lora.config import Config
from lace_lora.data_utils import count_pictures, create_annotations
from lace_lora.errors import MachineError, PicturesError
from lace_lora.experience import NOTHING, Experience
from lace_lora.families import known, limits
from lace_lora.families.layouts import FAMILIES
from lace_lora.machine import GIB, Machine, models_folder
from lace_lora.plans import Caution as Caution
from lace_lora.plans import Plan as Plan
from lace_lora.plans import side_by_side as side_by_side
from lace_lora.presets import Choice as Choice
from lace_lora.settling import Choosing
from lace_lora.workload import Job, Stage

LONG_CLASSES = 0.5  # of the training's time: class pictures that take more are worth a word


def prepare(config: Config, machine: Machine | None = None, say: Callable[[str], None] = print) -> Plan:
    """Settle a run: apply the preset, draw the demo's pictures where the demo wants them, count pictures, plan.

    What earlier runs on this machine took is read here, once, and kept in the plan.

    Raises PicturesError or SettingsError where the folder or a setting cannot be used; and the errors of
    own_folders.make, which makes missing folders where that is wanted.
    """
    machine = machine or Machine.here(config.drive_mount_path, config.lora_output_dir)
    settled = presets.settle(config, machine)
    settings = settled.config
    if _is_to_be_drawn(settled):
        from lace_lora.demo.draw import write_lace_folder

        say(f"Drawing the demo's pictures of lace into {settings.images_dir} …")
        drawn = write_lace_folder(Path(settings.images_dir))
        captions: dict[str | Path, str] = {path: f"{settings.instance_prompt} {caption}" for path, caption in drawn}
        create_annotations(settings.images_dir, settings.instance_prompt, settings.image_types, captions)
    with own_folders.answering(settings):
        own_folders.make(settings, say)
        return _counted(settled, machine)


def foresee(config: Config, machine: Machine | None = None) -> Plan:
    """The plan that `prepare` would make, with nothing written: the demo's pictures are counted as if drawn.

    Raises PicturesError or SettingsError where the folder or a setting cannot be used.
    """
    machine = machine or Machine.here(config.drive_mount_path, config.lora_output_dir)
    settled = presets.settle(config, machine)
    with own_folders.answering(settled.config):
        return _counted(settled, machine)


def elsewhere(config: Config, machine: Machine, usual: int) -> Plan:
    """The plan for another machine than this one, whose pictures may not lie here.

    usual  pictures that are assumed, and said to be, where there is no folder to count them in
    """
    settled = presets.settle(config, machine)
    try:
        return _counted(settled, machine)
    except PicturesError as error:
        known = experience.read(settled.config.cache_dir, machine, settled.config.lora_output_dir)
        return plan(settled, machine, usual, known, assumed=str(error))


def _counted(settled: presets.Settled, machine: Machine) -> Plan:
    """The plan for the pictures that are there, or that will be drawn first."""
    settings = settled.config
    pictures = (
        demo.PICTURES if _is_to_be_drawn(settled) else count_pictures(settings.images_dir, set(settings.image_types))
    )
    return plan(settled, machine, pictures, experience.read(settings.cache_dir, machine, settings.lora_output_dir))


def _is_to_be_drawn(settled: presets.Settled) -> bool:
    """Whether the demo's pictures are wanted and not there: only in its own folder, and again where a cut left it half.

    annotations.txt is written last.
    """
    return presets.draws_its_own(settled) and not (Path(settled.config.images_dir) / "annotations.txt").is_file()


def for_looking(config: Config, say: Callable[[str], None] = print) -> Config:
    """The settings under which photographs are looked at and captioned: a person's own are judged for SDXL.

    Without a GPU the demo's miniature learns at 96 px, at which no photograph is too small; but she looks through her
    photographs on such a machine for the training on another one. Raises as `prepare`.
    """
    settled = presets.settle(config, Machine.here(config.drive_mount_path, config.lora_output_dir))
    found = prepare(config, say=say).config
    is_judged_for_sdxl = settled.preset == "demo" and not presets.draws_its_own(settled)
    if is_judged_for_sdxl and "resolution" in settled.reasons:
        return found.with_preset(
            {"resolution": settling.SIDES[0] if config.resolution == "auto" else config.resolution}
        )
    return found


def again(earlier: Plan, settings: Config, gradient_checkpointing: str) -> Plan:
    """The plan once more, for settings that a run keeps from its first session, maybe on another GPU.

    gradient_checkpointing  as it was asked for: auto is chosen anew, for what really runs here
    """
    free = settings.with_preset({"gradient_checkpointing": gradient_checkpointing})
    settled = presets.Settled(free, earlier.preset, earlier.preset_why, {}, earlier.banner)
    return plan(settled, earlier.machine, earlier.pictures, earlier.known)


def plan(
    settled: presets.Settled, machine: Machine, pictures: int, known: Experience = NOTHING, assumed: str = ""
) -> Plan:
    """Fill in what is still `auto`, each with its reason, and say what every stage will need.

    known    what earlier runs took, which corrects times and memory where they were on such a machine
    assumed  why the pictures were not counted; nothing where they were

    What a person wrote is never changed; what it costs is said. Reads no file of a run: it is asked at every change.
    """
    choosing = _chosen(settled, machine, pictures, known)
    job = choosing.job()
    stages = stage_needs.stages(job)
    training = next(stage for stage in stages if stage.name == "train")
    found = Plan(
        config=job.config,
        machine=machine,
        preset=settled.preset,
        preset_why=settled.why,
        banner=settled.banner,
        pictures=pictures,
        choices=tuple(choosing.choices),
        precision=job.precision,
        vram_gb=training.memory_gb,
        minutes=training.minutes,
        warnings=(),
        may_save_memory=choosing.may_save_memory,
        stages=stages,
        misfits=tuple(fitting.misfits(stages, machine)),
        is_counted=job.model.is_counted,
        encoded_gb=workload.encoded_bytes(job) / GIB,
        downloads=tuple(one for one in stage_needs.downloads(job.config, job.model) if not _is_here(one[0])),
        remarks=(*_remarks(job, stages), *choosing.costs()),
        elsewhere=plans.elsewhere(job),
        known=known,
        assumed=assumed,
        settled=settled,
    )
    return replace(found, warnings=tuple(_warnings(found)))


def _chosen(settled: presets.Settled, machine: Machine, pictures: int, known: Experience) -> Choosing:
    choosing = Choosing(settled, machine, pictures, known)
    choosing.settle()
    return choosing


def advice(found: Plan, misfit: fitting.Misfit, stages: tuple[str, ...]) -> str:
    """What does not fit, and at most three changes, each of which was planned again just as a person would make it."""

    def trial(changes: Mapping[str, Any], machine: Machine) -> Job:
        settled = found.settled.changed(changes, machine) if found.settled else presets.settle(found.config, machine)
        return _chosen(settled, machine, found.pictures, found.known).job()

    return fitting.sentence(misfit, found.machine, fitting.changes(found.job, stages, misfit.memory, trial))


def refusal(found: Plan, stages: tuple[str, ...] = fitting.TRAINING) -> str | None:
    """Why the plan's named stages cannot begin, with up to three changes that would fit; None where nothing forbids it.

    Only what was counted on this very architecture is refused, and only into memories whose size is known; must_fit
    false lets a person try all the same. Of the computer's memory only what was counted refuses: what Python and its
    libraries hold of it is an estimate, so that a computer that is short by less is warned (see Plan.warnings).
    """
    misfits = [one for one in found.misfits if one.stage in stages and one.is_sure]
    if not misfits or not found.is_counted or not found.config.must_fit:
        return None
    last = "To begin all the same, because this machine may do better than the plan thinks: must_fit false."
    return f"{advice(found, misfits[0], stages)}\n{last}"


def check_fits(found: Plan, stages: tuple[str, ...] = fitting.TRAINING) -> None:
    """Raises MachineError with the refusal, before anything is loaded or fetched."""
    words = refusal(found, stages)
    if words:
        raise MachineError(words)


def check_drawing(config: Config, machine: Machine) -> Plan:
    """The same for new designs, before their models are loaded; returns their plan.

    config  settled, its numbers may still be auto; its base model and sizes are those that will be drawn with
    """
    found = plan(settling.for_drawing(config), machine, 1)
    check_fits(found, fitting.DRAWING)
    return found


# -- what is said --


def _remarks(job: Job, stages: Sequence[Stage]) -> list[str]:
    """What costs memory or time beside the UNet's steps, a sentence each: trained text, looks, class pictures, DoRA."""
    config, found = job.config, []
    if workload.learns_text(config) and config.pretrained_model != demo.MODEL:  # its encoders weigh next to nothing
        asked = [name for name in ("train_text_encoder", "learn_concept_token") if getattr(config, name)]
        found.append(
            f"{' and '.join(asked)}: both text encoders stay in memory, {stage_needs.text_gib(job):.1f} GB more, and "
            f"every caption is encoded in its step, {stage_needs.text_share(job):.0%} more work"
        )
    if count := stage_needs.looks(job):
        found.append(f"looks at held-out pictures: {count}, at most {stage_needs.look_share(job):.0%} more work")
    minutes = {stage.name: stage.minutes or 0.0 for stage in stages}
    if minutes.get("class pictures", 0.0) > max(1.0, LONG_CLASSES * minutes["train"]):
        found.append(
            f"num_class_images {config.num_class_images}: {plans.time(minutes['class pictures'])} to draw them, for "
            f"{plans.time(minutes['train'])} of training; fewer are drawn sooner"
        )
    if job.draws_in == "auto":
        base, why = settling.drawing_base(job)
        if base == "nf4":
            found.append(f"designs are drawn with the base in 4 bits: {why}")
    if config.use_dora:
        found.append("use_dora: what it takes beside a plain LoRA was not counted; expect more memory and time")
    if not job.model.is_counted:
        found.append(
            "this base model has a shape of its own: its numbers are those of its family, scaled by its weights"
        )
    return found


def _warnings(found: Plan) -> Iterator[Caution]:
    """What a person should know before it begins, each beside the setting that it is about."""
    config, machine, job = found.config, found.machine, found.job
    if found.assumed:
        yield Caution("images_dir", f"{found.pictures} pictures are assumed, because none could be counted: "
                                    f"{found.assumed}")  # fmt: skip
    for stages, setting in ((fitting.TRAINING, "train_batch_size"), (fitting.DRAWING, "width")):
        short = sorted((one for one in found.misfits if one.stage in stages), key=lambda one: not one.is_sure)
        if short and job.model.is_counted:
            yield Caution(setting, advice(found, short[0], stages))
    asked = {"no": "fp32"}.get(config.mixed_precision, config.mixed_precision)
    if asked != found.precision:
        _, why = machine.precision(config.mixed_precision)
        yield Caution("mixed_precision", f"mixed_precision is {asked}, but it is computed in {why}.")
    family = known.family_of(config.pretrained_model)
    if found.precision == "fp16" and family in limits.MADE_IN_BF16:
        yield Caution("mixed_precision", f"{FAMILIES[family]} was made in bf16, and this is computed in fp16, whose "
                                         "largest number is 65,504: not tried yet. A loss or design that is no number "
                                         "is said at once; then choose a GPU with bf16, such as an L4.")  # fmt: skip
    yield from _processes(found)
    rate = config.learning_rate
    if config.optimizer == "prodigy" and rate < 0.1:
        yield Caution("learning_rate", f"prodigy finds its own rate, times learning_rate: 1 is usual, {rate:g} learns "
                                       "little.")  # fmt: skip
    elif config.optimizer != "prodigy" and rate > 1e-2:
        yield Caution(
            "learning_rate", f"learning_rate {rate:g} is far above the usual 1e-4; the LoRA may turn to noise."
        )
    if 0 < machine.free_disk_gb < found.disk_gb:
        yield Caution("lora_output_dir", f"{found.disk_gb:.1f} GB are to be written, and {machine.free_disk_gb:.1f} GB "
                                         "are free. Free some space, or keep fewer checkpoints: "
                                         "checkpoints_to_keep.")  # fmt: skip
    if config.rank >= 64 and machine.gpu_name and machine.vram_gb < 24:
        yield Caution("rank", f"rank {config.rank} on {machine.vram_gb:.0f} GB is tight and overfits soon; 16 holds a "
                              "style.")  # fmt: skip
    if machine.gpu_name is None and settling.native_side(config.pretrained_model) >= 512:
        yield Caution(
            "pretrained_model",
            f"{FAMILIES[family]} on a CPU takes hours for a few steps. Choose a GPU, or preset demo for a first look.",
        )


def _processes(found: Plan) -> Iterator[Caution]:
    """Processes that have no GPU, or nothing to do."""
    config, machine = found.config, found.machine
    wanted, batches = int(config.num_processes), int(config.gradient_accumulation_steps)
    real = throughput.side_by_side(wanted, machine)
    if wanted > real and machine.gpu_name:
        yield Caution(
            "num_processes",
            f"num_processes is {wanted}, but this machine has {machine.gpu_count} "
            f"GPU{'s' if machine.gpu_count != 1 else ''}, and each process needs one of its own. Take num_processes "
            f"{real}, or start the others on other machines; the time told here is that of {real}.",
        )
    elif wanted > real:
        yield Caution(
            "num_processes",
            f"num_processes is {wanted}, but one process uses all cores of a CPU: more are no faster, and each holds "
            "a model of its own in memory. Take num_processes 1.",
        )
    if wanted > batches:
        yield Caution(
            "num_processes",
            f"num_processes is {wanted}, but an update has gradient_accumulation_steps {batches} batches: the other "
            "processes have nothing to do. Raise it, or take fewer processes.",
        )


def _is_here(model: str) -> bool:
    """Whether a model is a folder of this machine, or lies in Hugging Face's cache, whole or in part."""
    if Path(demo.locate(model)).expanduser().is_dir():
        return True
    name = f"models--{model.replace('/', '--')}"
    return any((place / name).is_dir() for place in (models_folder(), models_folder() / "hub"))
