"""The command `cancel`: stop a training that a place elsewhere does for a run."""

from collections.abc import Callable

from lace_lora.config import Config
from lace_lora.errors import RunError


def run(config: Config, say: Callable[[str], None] = print) -> None:
    """Stop it, and say what became of it. Raises RunError where none is under way, BackendError as the place does."""
    from lace_lora import backends, checkpoint, contents
    from lace_lora.backends import records
    from lace_lora.run_folder import RunFolder

    folder = RunFolder.of(config)
    kept = records.read(folder.elsewhere)
    place = backends.of(str(kept.get("backend", backends.LOCAL)))
    if "id" not in kept or place is None or place.cancel is None:
        raise RunError(f"No training of {folder.root} is under way elsewhere. `lace-lora runs` lists the runs.")
    say(place.cancel(folder, say))
    record = contents.json_in(folder.record)
    if record.get("state") == "elsewhere":
        checkpoint.write_json(folder.record, record | {"state": "stopped"})
