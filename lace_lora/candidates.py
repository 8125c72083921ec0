"""What a run has learnt and kept: the LoRA of every checkpoint, and the finished adapter; to choose among them.

A checkpoint keeps what a training goes on with. Here it is read as the adapter that the run would have become there.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lace_lora import adapter as adapters
from lace_lora import checkpoint, contents, families, journal, optimizers
from lace_lora import config as declared
from lace_lora import parts as state
from lace_lora.adapter import Adapter, AdapterFacts
from lace_lora.errors import AdapterError, LaceError, SettingsError
from lace_lora.families.quiet import quiet
from lace_lora.run_folder import RunFolder

with quiet():
    from safetensors.torch import load_file
    from torch import nn

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """One LoRA of the run: that of a checkpoint, or the finished adapter's."""

    step: int
    file: Path
    facts: AdapterFacts
    digest: str  # of its numbers: a checkpoint and the adapter made of it have the same
    is_best: bool
    is_finished: bool

    @property
    def label(self) -> str:
        """What stands beside the row, such as "step 250, best"."""
        return f"step {self.step}{', best' if self.is_best else ''}{', finished' if self.is_finished else ''}"


def of_run(run: RunFolder, steps: Sequence[int] | None, say: Say) -> tuple[tuple[Candidate, ...], list[str]]:
    """The checkpoints that are whole, oldest first, and the finished adapter last; and what is left out, and why."""
    places = {checkpoint.number_in(path.name) or 0: path for path in checkpoint.numbered(run.checkpoints)}
    left_out: list[str] = []
    finished = _adapter(run, bool(places), left_out)
    known = sorted({*places, *([finished.facts.step] if finished else [])})
    for step in steps or ():
        if step not in known:
            near = sorted(known, key=lambda one: abs(one - step))[:2]
            raise SettingsError(
                f"{run.root} has no checkpoint of step {step}; the nearest: {' and '.join(map(str, sorted(near)))}. "
                "Older ones were deleted; checkpoints_to_keep says how many stay."
            )
    facts = finished.facts if finished else _facts_of(run)
    best = contents.best_step(run.log, max(known))
    rows: list[Candidate] = []
    for step in known if steps is None else sorted(set(steps)):
        if step in places:
            try:
                found = of_checkpoint(places[step], replace(facts, step=step, is_complete=False))
                rows.append(Candidate(step, found.path, found.facts, digest_of(found), step == best, False))
            except (LaceError, OSError) as error:
                left_out.append(f"{places[step].name} is left out: {error}")
    if finished and (steps is None or finished.facts.step in steps):
        step, is_finished = finished.facts.step, finished.is_complete
        row = Candidate(step, finished.path, finished.facts, digest_of(finished), step == best, is_finished)
        # The last checkpoint is the finished adapter itself, unless the training went back to an earlier one.
        if rows and rows[-1].digest == row.digest:
            rows[-1] = row
        elif is_finished or all(one.digest != row.digest for one in rows):
            rows.append(row)
            rows.sort(key=lambda one: (one.is_finished, one.step))
    for line in left_out:
        say(f"! {line}")
    if not rows:
        raise AdapterError(f"No checkpoint in {run.checkpoints} can be used. lace-lora train makes new ones.")
    if not (finished and finished.is_complete):
        told = contents.facts(run)
        reached = f"step {told.get('step', '?')} of {told.get('total', '?')}"
        say(f"! The training is not finished ({reached}); these are the checkpoints so far.")
    return tuple(rows), left_out


def _adapter(run: RunFolder, has_checkpoints: bool, left_out: list[str]) -> Adapter | None:
    """The run's adapter, None where the checkpoints must do. Raises AdapterError where there are none either."""
    try:
        return adapters.load(run.root)
    except AdapterError as error:
        if not has_checkpoints:
            raise AdapterError(f"{error} There is no checkpoint either.") from error
        if run.adapter_weights.exists():
            left_out.append(f"The adapter is left out: {error}")
        return None


def _facts_of(run: RunFolder) -> AdapterFacts:
    """What an adapter of the run would tell of itself, from the settings that ran."""
    if not run.config.is_file():
        raise AdapterError(
            f"{run.root} holds checkpoints and no {run.config.name}, so they do not tell what they are of. "
            "lace-lora train, with the settings of this run, writes it again."
        )
    settings = declared.load(run.config)
    family = families.of(settings.pretrained_model)
    return AdapterFacts(
        family=family.FAMILY, base_model=settings.pretrained_model, rank=settings.rank, alpha=settings.lora_alpha(),
        lora_targets=tuple(family.lora_targets(settings.lora_targets)), use_dora=settings.use_dora,
        use_rslora=settings.use_rslora, train_text_encoder=settings.train_text_encoder,
        learns_token=settings.learn_concept_token, concept_token=settings.concept_token,
        instance_prompt=settings.instance_prompt, class_prompt=settings.class_prompt,
        resolution=int(settings.resolution), versions=journal.versions(),
    )  # fmt: skip


def of_checkpoint(folder: Path, facts: AdapterFacts) -> Adapter:
    """What the adapter would be if the training ended with this checkpoint. Raises AdapterError where it is damaged."""
    if problem := checkpoint.problem_of(folder):
        raise AdapterError(f"{problem}.")
    found = adapters.read_state(folder / state.LORA_FILE, facts)
    told = json.loads((folder / state.STATE_FILE).read_text(encoding="utf-8"))
    if "train_mode" not in told["optimizer"]["groups"][0]:
        return found
    # schedulefree: the weights that count are the average of the way, which its own package makes of what it kept.
    masters = {name: nn.Parameter(found.state[name]) for name in told["names"]}
    optimizer = optimizers.make("schedulefree", state._groups(masters), 1.0)
    optimizers.restore(optimizer, load_file(folder / state.OPTIMIZER_FILE), told["optimizer"])
    with optimizers.averaged(optimizer):
        return replace(found, state={name: one.detach().clone() for name, one in masters.items()})


def load(row: Candidate) -> Adapter:
    """The LoRA of a row, read again: all of them at once would be too much to hold."""
    is_checkpoint = row.file.name == state.LORA_FILE
    found = of_checkpoint(row.file.parent, row.facts) if is_checkpoint else adapters.load(row.file)
    if digest_of(found) != row.digest:
        raise AdapterError(f"{row.file} is another one since. Draw the grid again.")
    return found


def digest_of(lora: Adapter) -> str:
    """What a LoRA does to a model, whatever file it stands in."""
    facts = lora.facts
    token = facts.concept_token if lora.token_rows else ""
    found = hashlib.sha256(json.dumps([facts.strength, facts.train_text_encoder, token]).encode())
    for name, tensor in sorted(lora.state.items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()
