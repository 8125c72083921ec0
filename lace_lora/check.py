"""The check of a run's photographs as its settings ask for it, kept in the run's folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lace_lora import annotate, data_utils
from lace_lora.check_report import CheckReport
from lace_lora.config import Config
from lace_lora.errors import LaceError, ModelError
from lace_lora.families import known
from lace_lora.own_folders import is_away
from lace_lora.rules_of_thumb import ADVISED_SIDE_PX
from lace_lora.run_folder import RunFolder
from lace_lora.survey import Progress


def run(settings: Config, progress: Progress | None = None, say: Callable[[str], None] = print) -> CheckReport:
    """Look at every picture once, with its caption from wherever there is one; keep check.json and problems.png.

    settings  of a plan: the resolution and the number of steps are known
    progress  is told after each picture how many are done, and of how many
    say       is told where the report is kept, or why it is not: it is shown all the same

    Raises the errors of data_utils.check_images.
    """
    family, own = _family_and_side(settings.pretrained_model)
    report = data_utils.check_images(
        settings.images_dir, set(settings.image_types), int(settings.resolution), cache_dir=settings.cache_dir,
        drive_mount_path=settings.drive_mount_path, steps=int(settings.max_train_steps),
        family=family, progress=progress, say=say,
    )  # fmt: skip
    notes: list[str] = []
    try:
        captions = annotate.captions_of(settings, report, lambda note: notes.append(note.removeprefix("! ")))
    except LaceError as error:  # a list of captions that cannot be read; annotating asks for it to be corrected
        captions, notes = {}, [str(error)]
    told = [replace(record, caption=captions.get(record.name, "")) for record in report.records]
    report = replace(report, records=tuple(told), notes=(*report.notes, *notes))
    if int(settings.resolution) < ADVISED_SIDE_PX:
        more = f"as set; the base model's own is {own}"
        more = "as the miniature learns; for SDXL check with resolution 1024" if own < ADVISED_SIDE_PX else more
        say(f"! judged at {settings.resolution} px, {more}")
    try:
        say(f"check     all of it in {report.write(folder_of(settings)).parent}")
    except LaceError as error:
        say(f"! the report of the check is not kept: {error}")
    return report


def _family_and_side(model: str) -> tuple[str, int]:
    """What photographs are judged for; SDXL where a folder holds no model: looking at pictures needs none."""
    try:
        return known.family_of(model), known.side_px(model)
    except ModelError:
        return known.SDXL.family, known.SDXL.side_px


def folder_of(settings: Config) -> Path:
    """The folder `check` of the run; below cache_dir while Drive is not mounted, whose place must stay empty."""
    folder = RunFolder.of(settings).check
    if is_away(folder, settings.drive_mount_path):
        return Path(settings.cache_dir).expanduser() / "check" / settings.run_name
    return folder
