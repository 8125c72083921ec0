"""The example of the patent recipe: claims that were written for it, and their drawings, drawn by program on demand."""

import csv
import io
from pathlib import Path

from lace_lora import checkpoint, places
from lace_lora.demo import mechanism
from lace_lora.demo.mechanism import Part
from lace_lora.errors import SettingsError
from lace_lora.file_names import printable
from lace_lora.patent_recipe import FOLDER

CLAIMS = FOLDER / "example/claims.csv"
COLUMN = "reference_path"


def write(folder: str | Path, side: int = mechanism.SIDE) -> Path:
    """Write the example's claims.csv and its drawings into a folder, and return the file; what is there stays as it is.

    side  of the drawings, px

    Raises RunError where the folder cannot be written.
    """
    root = Path(folder).expanduser()
    places.make(root, "The example's folder", "Choose another --output.")
    text = CLAIMS.read_text(encoding="utf-8")
    for row in csv.DictReader(io.StringIO(text)):
        if name := row[COLUMN]:
            with checkpoint.writing(root / name):
                mechanism.write(part_of(name), root / name, side)
    file = root / CLAIMS.name
    if not file.is_file():
        checkpoint.write_text(file, text)
    return file


def part_of(name: str) -> Part:
    """The part that a drawing's name tells: drawings/star-wheel_7_round_10_12.png has seven teeth and two numerals.

    Raises SettingsError for a name that tells none.
    """
    try:
        kind, count, hole, *numerals = Path(name).stem.split("_")
        return Part(kind.replace("-", " "), int(count), hole, tuple(int(one) for one in numerals))
    except ValueError as error:
        raise SettingsError(
            f"{printable(name)} is no drawing of the example; its name should be such as star-wheel_7_round_10_12.png."
        ) from error
