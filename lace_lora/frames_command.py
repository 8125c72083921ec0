"""The command `frames`: a video into a folder of pictures, from which on everything is as with photographs."""

from pathlib import Path
from typing import Annotated

import typer

EVERY = 30  # frames; the same as frames.EVERY, which is not loaded for --help


def frames(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="a film of lace, such as lace.mp4")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="where the pictures go; afterwards your images_dir")],
    every: Annotated[int, typer.Option(min=1, help="take one of so many frames, the sharpest near it")] = EVERY,
    keep_alike: Annotated[bool, typer.Option("--keep-alike", help="also frames that show the same piece")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")] = False,
) -> None:
    """Take sharp pictures out of a video, each piece once, for training."""
    from lace_lora import frames as room

    taken = room.take(video, output, every=every, keeps_alike=keep_alike)
    print(taken)
    print(f"Next: lace-lora check --images-dir {output}")
