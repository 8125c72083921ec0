"""The command `selftest`: what works on this machine in plain words, and its figures as JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from lace_lora.config import Config
from lace_lora.errors import MachineError

TEXTS = {"json": typer.Option(metavar="FILE", help="also write what was measured to this file, as JSON")}


def run(config: Config, json: Sequence[str] | str | None, say: Callable[[str], None] = print) -> None:
    """Run the self-test of this machine and say what passed.

    config  of which only what was given as an option counts, and cache_dir
    json    a file that is written too

    Raises MachineError where anything did not pass.
    """
    from lace_lora import selftest

    asked = (json if isinstance(json, str) else json[0]) if json else None
    report = selftest.run(config, json_file=Path(asked).expanduser() if asked else None, say=say)
    say(str(report))
    if not report.passed:
        wrong = ", ".join(check.name for check in report.checks if check.passed is False)
        raise MachineError(f"The self-test did not pass: {wrong}. See above; what was measured is in {report.path}.")
