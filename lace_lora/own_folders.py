"""A person's two folders, of photographs and of runs: made where they are missing and the setting make_folders is on.

Nothing is ever made in the place of a Drive that is not mounted: Colab mounts nothing onto a folder that holds files.
"""

import os
from pathlib import Path

from lace_lora.config import Config
from lace_lora.errors import MachineError, PicturesError, RunError
from lace_lora.file_names import printable
from lace_lora.local_copies import Say, is_on_drive


def make(config: Config, say: Say) -> None:
    """Make what is missing as `made` does. Raises PicturesError where images_dir is made, because it is empty then."""
    if empty := made(config, say):
        raise PicturesError(empty)


def made(config: Config, say: Say) -> str:
    """Make images_dir and lora_output_dir where they are missing, if make_folders is on; say which.

    returns  where images_dir is made, and so empty, a sentence on how photographs come into it; else nothing

    Raises MachineError where they lie on a Drive that is not mounted, RunError where they cannot be made.
    """
    if not config.make_folders:
        return ""
    folders = {name: Path(getattr(config, name)).expanduser() for name in ("lora_output_dir", "images_dir")}
    missing = {name: folder for name, folder in folders.items() if not folder.is_dir()}
    for name, folder in missing.items():
        check_drive(name, folder, config.drive_mount_path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{name} {printable(folder)} cannot be made ({error.strerror or error}). Choose another folder."
            ) from error
        say(f"made      the folder {printable(folder)}, which was missing")
    return (
        f"{printable(folders['images_dir'])} is made now and empty. {_how(config)}" if "images_dir" in missing else ""
    )


def check_drive(name: str, folder: Path, drive_mount_path: str) -> None:
    """Raises MachineError for a folder, the setting `name`, on a Drive that is not mounted."""
    if is_away(folder, drive_mount_path):
        raise MachineError(
            f"{name} {printable(folder)} lies on Drive, and Drive is not mounted at {printable(drive_mount_path)}. "
            f"Mount Drive first (in Colab: run the cells from the top and allow access), or choose another {name}."
        )


def is_away(folder: Path, drive_mount_path: str) -> bool:
    """Whether a folder lies on a Drive that is not mounted: its place is missing, empty or does not answer."""
    if not is_on_drive(folder, drive_mount_path):
        return False
    place = Path(drive_mount_path).expanduser()
    if os.path.ismount(place):
        return False
    try:
        return not os.listdir(place)
    except OSError:
        return True


def _how(config: Config) -> str:
    """How photographs come into the folder."""
    folder, drive = Path(config.images_dir).expanduser(), Path(config.drive_mount_path).expanduser()
    kinds = " or ".join(config.image_types)
    if not folder.is_relative_to(drive / "MyDrive"):
        return f"Put your photographs there ({kinds}): copy them with your file manager. Then run this again."
    inside = " → ".join(folder.relative_to(drive / "MyDrive").parts)
    return (
        f"Put your photographs there ({kinds}): open drive.google.com, go to My Drive → {printable(inside)}, and drop "
        "them into the window. Then run this again."
    )
