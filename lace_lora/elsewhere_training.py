"""A training that a place elsewhere does: the same settings, pictures, run folder and run.json as one on this machine.

Which training it is, is kept in the run's elsewhere.json before anybody waits: called again, the same one is followed,
and nothing is paid for twice.
"""

from collections.abc import Callable

from lace_lora import cache, checkpoint, config_text, estimate, journal, landing, mirror, own_folders, presets, stopping
from lace_lora import examples as words_and_pictures
from lace_lora.adapter import Adapter, AdapterFacts
from lace_lora.backends import Place, Trained, Training, records
from lace_lora.config import Config
from lace_lora.data_utils import Example
from lace_lora.errors import LaceError, RunError, SettingsError
from lace_lora.families import known
from lace_lora.families.layouts import FAMILIES
from lace_lora.file_names import public_name
from lace_lora.journal import Journal
from lace_lora.run_folder import RunFolder
from lace_lora.throughput import machine as machine_with

USUAL_GPU = "L4"  # for which numbers in place of auto are chosen, where a place does not say on what it computes

Say = Callable[[str], None]


def run(config: Config, place: Place, say: Say = print) -> Adapter:
    """Have the place train as the settings say, and bring the LoRA into the run's folder.

    Called again, it goes on with the training that was begun, or returns the finished LoRA. Raises SettingsError,
    BackendError or RunError with what to do; KeyboardInterrupt where it was stopped before there is a LoRA.
    """
    if place.train is None:
        raise SettingsError(f"backend {config.backend} trains no LoRA. Set backend to local, comfyui or replicate.")
    settings = estimate.prepare(config, machine_with(place.gpu(config) or USUAL_GPU), say).config
    _check_family(settings, place)
    kept = RunFolder.of(settings)
    own_folders.check_drive("lora_output_dir", kept.root.parent, settings.drive_mount_path)
    kept.create()
    with own_folders.answering(settings), mirror.lock(kept.root, say):
        drive = mirror.Mirror.of(kept, settings.drive_mount_path, settings.cache_dir, say)
        drive.bring()
        folder = drive.local
        examples = words_and_pictures.read(settings, say)
        record = journal.open_run(folder, settings, cache.data_digest(examples))
        if record.is_finished and landing.is_there(folder):
            drive.finish()
            say(f"{folder.name} is finished: {record.facts['step']} steps are made, in {drive.remote.root}.")
            return landing.lora_of(folder)
        _check_same(folder, record)
        checkpoint.write_text(folder.config, config_text.to_yaml(settings))
        checkpoint.write_text(folder.annotations, "".join(f"{one.path}\t{one.caption}\n" for one in examples))
        record.tell("preparing")
        trained = _trained(place, settings, folder, examples, record, say)
        if trained is None:
            drive.deliver()
            raise KeyboardInterrupt  # stopped: there is no LoRA to return
        facts, base = _facts(settings, record, trained), settings.pretrained_model
        found = landing.land(folder, trained.data, facts, base_model=base, say=say)
        record.tell("finished", step=int(settings.max_train_steps), made_by=trained.made_by, error=None)
        records.forget(folder.elsewhere)
        drive.finish()
    say(f"finished  the LoRA is {found.path}")
    return found


def _trained(
    place: Place, settings: Config, folder: RunFolder, examples: list[Example], record: Journal,
    say: Say,
) -> Trained | None:  # fmt: skip
    """What the place made of it, with run.json true whatever happens."""
    notice = "Stopping here; stop again to stop at once."
    try:
        with stopping.on_request(say, notice) as stop:
            records.keep(folder.elsewhere, run_id=record.facts["id"], backend=settings.backend)
            assert place.train is not None
            found = place.train(Training(settings, folder, examples, record, stop, say))
    except LaceError as error:
        record.tell("elsewhere" if "id" in records.read(folder.elsewhere) else "failed", error=str(error))
        raise
    except KeyboardInterrupt:
        record.tell("elsewhere" if "id" in records.read(folder.elsewhere) else "stopped")
        raise
    if found is None:
        record.tell("elsewhere" if "id" in records.read(folder.elsewhere) else "stopped")
    return found


def _check_family(settings: Config, place: Place) -> None:
    """Raises SettingsError for a base model of a family that the place does not train; SDXL's name stands in every file
    and asks for nothing there."""
    wanted, made = known.family_of(settings.pretrained_model), place.family(settings)
    if wanted not in (made, presets.USUAL):
        raise SettingsError(
            f"pretrained_model {public_name(settings.pretrained_model)} is {FAMILIES[wanted]}, and backend "
            f"{settings.backend} would train a LoRA for {FAMILIES.get(made, made)}. Set backend local, or choose what "
            "fits: pretrained_model, and at Replicate backend_trainer."
        )


def _check_same(folder: RunFolder, record: Journal) -> None:
    """Raises RunError where another training is under way for this run: it must not be paid for and forgotten."""
    under_way = records.read(folder.elsewhere)
    if "id" in under_way and under_way.get("run_id") not in (None, record.facts["id"]):
        raise RunError(
            f"A training of {folder.name} with other settings or pictures is under way at {under_way.get('backend')}. "
            "Put back what was changed to follow it, stop it with `lace-lora cancel`, or choose another run_name."
        )


def _facts(settings: Config, record: Journal, trained: Trained) -> AdapterFacts:
    """What is known of a LoRA that somebody else made; its alpha stands in its own tensors."""
    is_named = known.family_of(settings.pretrained_model) == trained.family
    return AdapterFacts(
        family=trained.family,
        base_model=public_name(settings.pretrained_model) if is_named else trained.family,
        rank=settings.rank,
        alpha=float(settings.lora_alpha()),
        lora_targets=(f"as {trained.made_by} chooses",),
        concept_token=settings.concept_token,
        instance_prompt=settings.instance_prompt,
        class_prompt=settings.class_prompt,
        resolution=int(settings.resolution),
        step=int(settings.max_train_steps),
        data_digest=record.facts["data_digest"],
        settings_digest=record.facts["id"],
        versions=journal.versions() | {"made_by": trained.made_by},
    )
