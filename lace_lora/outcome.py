"""How a run tells what becomes of it: progress in a few lines, the state it ends in, sentences for what went wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lace_lora.config import Config
from lace_lora.counting import seconds_in_words
from lace_lora.errors import LaceError, MachineError
from lace_lora.families.quiet import quiet
from lace_lora.journal import Journal
from lace_lora.machine import GIB, is_out_of_memory
from lace_lora.mirror import Mirror
from lace_lora.steps import Step

with quiet():
    import torch

LINES_A_RUN = 25  # of progress

Say = Callable[[str], None]


@contextmanager
def told(record: Journal, settings: Config, drive: Mirror) -> Iterator[None]:
    """Keep run.json true when something ends the run, and turn running out of memory into a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        record.tell("stopped")
        raise
    except LaceError as error:
        _tell_failed(record, drive, str(error))
        raise
    except Exception as error:
        is_memory = is_out_of_memory(error)
        sentence = _out_of_memory(record, settings) if is_memory else f"{type(error).__name__}: {error}"
        _tell_failed(record, drive, sentence)
        if not is_memory:
            raise
        raise MachineError(sentence) from error


def _tell_failed(record: Journal, drive: Mirror, sentence: str) -> None:
    # What is finished stays so when only its copy on Drive is missing: called again, it copies and does not train.
    state = record.facts["state"] if record.facts["state"] in ("finished", "stopped") else "failed"
    with suppress(LaceError):  # a disk that is full for a checkpoint is full for run.json too; the first error counts
        record.tell(state, error=sentence)
        if record.writes:
            drive.deliver()


def _out_of_memory(record: Journal, settings: Config) -> str:
    """The sentence with the next three settings to try, those that help most first.

    Only checkpointing leaves the numbers as they are, so only that can be changed under the same name.
    """
    used = ""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        used = f" ({torch.cuda.max_memory_reserved() / GIB:.1f} of {total / GIB:.1f} GB)"
    batch, resolution = int(settings.train_batch_size), int(settings.resolution)
    smaller = next((side for side in (1024, 768, 512) if side < resolution), resolution // 2)
    same_run = ["gradient_checkpointing full"] if settings.gradient_checkpointing != "full" else []
    advice = [
        f"train_batch_size 1 with gradient_accumulation_steps {batch * int(settings.gradient_accumulation_steps)}"
        if batch > 1
        else "",
        "quantization nf4" if settings.quantization != "nf4" and torch.cuda.is_available() else "",
        f"resolution {smaller}",
        "lora_targets attention" if settings.lora_targets not in ("attention", "up_blocks") else "",
        f"rank {max(4, settings.rank // 2)}" if settings.rank > 4 else "",
        "a GPU with more memory",
    ]
    others = [one for one in advice if one][: 3 - len(same_run)]
    listed = f"{', '.join(others[:-1])} or {others[-1]}" if len(others) > 1 else others[0]
    best = "; or, ".join([*same_run, f"under another run_name, {listed}"])
    where = f"after step {len(record.losses)}" if record.facts["state"] == "running" else "before the first step"
    what = "The GPU" if torch.cuda.is_available() else "This computer"
    return f"{what} ran out of memory {where}{used}. Next to try: {best}."


def printer(record: Journal, say: Say) -> Callable[[Step], None]:
    """Progress as a few aligned lines, whatever the length of the run."""

    def show(step: Step) -> None:
        every = max(1, -(-step.total // (LINES_A_RUN - 2)))
        if step.number not in (1, step.total) and step.number % every:
            return
        memory = f"  {torch.cuda.max_memory_allocated() / GIB:.1f} GB" if torch.cuda.is_available() else ""
        left = record.seconds_left(step.number, step.total)
        remaining = f"{seconds_in_words(left)} left"
        width = len(str(step.total))
        say(
            f"step {step.number:>{width}}/{step.total}  loss {record.recent_loss():.4f}  "
            f"{record.seconds_a_step():.2f} s/step{memory}  {remaining}"
        )

    return show
