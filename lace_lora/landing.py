"""The LoRA of a training that was done elsewhere: into the run's folder as it came, and read from there.

It stays, byte for byte, in the format of the program that made it; the place that made it draws with it. Where it fits
SDXL it lies beside it in our own names too, so that it is drawn with here, packed and learnt on from like any other.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lace_lora import adapter as adapters
from lace_lora import checkpoint, contents, foreign
from lace_lora.adapter import Adapter, AdapterFacts
from lace_lora.errors import AdapterError
from lace_lora.families import quiet, sdxl
from lace_lora.run_folder import RunFolder

with quiet.quiet():
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes
    from torch import Tensor

# What the tensors themselves decide of a LoRA's facts.
OF_ITS_TENSORS = (
    "rank", "alpha", "lora_targets", "text_targets", "train_text_encoder", "use_dora", "use_rslora",
    "layers_per_block",
)  # fmt: skip

Say = Callable[[str], None]


def land(
    folder: RunFolder, data: bytes, facts: AdapterFacts, *, base_model: str | None = None, say: Say = lambda line: None
) -> Adapter:
    """Write a LoRA's file, as it came, with a card that says what it is and its sha256; returns it as loaded.

    base_model  whose layers it is read into for this machine; where it is not here, or None, those of SDXL itself

    Raises AdapterError where it is no safetensors file, is empty, or holds NaN.
    """
    state = _read(data, folder)
    alphas = {float(one) for name, one in state.items() if name.endswith(".alpha") and one.numel() == 1}
    facts = replace(facts, alpha=alphas.pop()) if len(alphas) == 1 else facts  # as the trainer has it
    bad = [name for name, one in state.items() if not bool(torch.isfinite(one).all())]
    if bad:
        raise AdapterError(f"The LoRA that came holds NaN or infinity ({len(bad)} tensors, first: {bad[0]}). Train it "
                           "again, with a smaller learning_rate.")  # fmt: skip
    for earlier in (folder.adapter_weights, folder.concept_token):  # of a training that was begun here and not ended
        earlier.unlink(missing_ok=True)
    file = folder.adapter_for_tools
    checkpoint.write_bytes(file, data)
    facts = _for_here(folder, facts, base_model, say) if facts.family == sdxl.FAMILY else facts
    files = [one for one in (file, folder.adapter_weights) if one.is_file()]
    sums = {one.name: checkpoint.sha256(one) for one in files}
    checkpoint.write_json(folder.adapter_card, asdict(facts) | {"sha256": sums})
    return Adapter(facts, state, file)


def lora_of(run: RunFolder) -> Adapter:
    """A run's LoRA in whatever format, for a place that can draw with it. Raises AdapterError as adapter.load does."""
    card = contents.json_in(run.adapter_card)
    if "made_by" not in card.get("versions", {}) or not run.adapter_for_tools.is_file():
        return adapters.load(run.root)
    if card.get("sha256", {}).get(run.adapter_for_tools.name) != checkpoint.sha256(run.adapter_for_tools):
        raise AdapterError(f"{run.adapter_for_tools} is not as it was written (its checksum in adapter.json differs). "
                           "Copy or train it again.")  # fmt: skip
    known = {name: value for name, value in card.items() if name in AdapterFacts.__dataclass_fields__}
    facts = AdapterFacts(**known | {"lora_targets": tuple(known.get("lora_targets", ()))})
    return Adapter(facts, _read(run.adapter_for_tools.read_bytes(), run), run.adapter_for_tools)


def is_there(run: RunFolder) -> bool:
    """Whether a run's LoRA is there in whatever format, and as it was written."""
    try:
        lora_of(run)
    except (AdapterError, TypeError):
        return False
    return True


def _for_here(folder: RunFolder, facts: AdapterFacts, base_model: str | None, say: Say) -> AdapterFacts:
    """Write it in our own names too, and return the facts as they are there; without that where it cannot be read."""
    try:
        found = foreign.read(folder.adapter_for_tools, base_model)
        for note in found.notes():
            say(note)
        theirs = {name: getattr(found.adapter.facts, name) for name in OF_ITS_TENSORS}
        facts = replace(facts, **theirs)
        with TemporaryDirectory() as place:
            kept = adapters.save(found.adapter.state, RunFolder(Path(place) / folder.name), facts)
            checkpoint.write_bytes(folder.adapter_weights, kept.path.read_bytes())
    except AdapterError as error:
        say(f"! Only {facts.versions.get('made_by') or 'what trained it'} can draw with this LoRA: {error}")
    return facts


def _read(data: bytes, folder: RunFolder) -> Mapping[str, Tensor]:
    try:
        state = from_bytes(data)
    except (SafetensorError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AdapterError(f"What came for {folder.name} is no safetensors file ({reason}).") from error
    if not state:
        raise AdapterError(f"What came for {folder.name} is an empty file. Train it again.")
    return {name: one.float() for name, one in sorted(state.items())}
