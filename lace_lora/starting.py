"""What a training begins with where it does not begin anew: the LoRA that the setting start_from names, of any tool."""

import re
from collections.abc import Callable, Mapping

from lace_lora import checkpoint, contents, families, foreign, parts
from lace_lora import lora as layers
from lace_lora.adapter import Adapter
from lace_lora.config import Config
from lace_lora.counting import counted
from lace_lora.errors import SettingsError
from lace_lora.families import known
from lace_lora.families.folders import DENOISERS
from lace_lora.families.quiet import quiet
from lace_lora.parts import Parts
from lace_lora.run_folder import RunFolder

with quiet():
    from torch import Tensor

Say = Callable[[str], None]


def check(settings: Config, folder: RunFolder) -> None:
    """Refuse a start that these settings cannot go on from, before anything is loaded; a run that goes on needs none.

    Raises AdapterError where the file cannot be read or is for another model, SettingsError with the setting to change.
    """
    if settings.start_from and not contents.has_learnt(folder):
        _checked(_read(settings).adapter, settings)


def begin(trained: Parts, settings: Config, say: Say) -> None:
    """Give the LoRA that is going to learn what the one of start_from has learnt: it then changes pictures as much.

    Layers that the file lacks begin as ever, and so does the rest of a rank that is larger than the file's.
    """
    if not settings.start_from:
        return
    found = _read(settings)
    for note in found.notes():
        say(note)
    adapter = _checked(found.adapter, settings)
    state = laid_into(adapter, trained.masters, parts.shape_of(settings).strength)
    parts.take_up(trained, state)
    begun = sum(name.endswith(layers.A) for name in adapter.state)
    total = sum(name.endswith(layers.A) for name in state)
    said = f"begins    with what {adapter.path.name} has learnt, in {begun} of {counted(total, 'layer')}"
    say(f"{said}; sha256 {checkpoint.sha256(adapter.path)[:12]}")


def laid_into(adapter: Adapter, fresh: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """The values of a LoRA that is `strength` times B·A and draws exactly as the adapter does.

    fresh  the values that it has now, by name, with B = 0 and a rank at least as large as the adapter's
    """
    state = {name: tensor.detach().float().cpu().clone() for name, tensor in fresh.items()}
    ratio, rank = adapter.facts.strength / strength, adapter.facts.rank
    for name, tensor in adapter.state.items():
        if name not in state:
            continue
        if name.endswith(layers.A):
            state[name][:rank] = tensor
        elif name.endswith(layers.B):
            state[name][:, :rank] = ratio * tensor
        else:
            state[name] = tensor.reshape(state[name].shape).clone()
    return state


# -- inside --


def _read(settings: Config) -> foreign.Foreign:
    return foreign.read(str(settings.start_from), settings.pretrained_model)


def _checked(adapter: Adapter, settings: Config) -> Adapter:
    facts, where = adapter.facts, f"start_from {adapter.path.name}"
    family = known.family_of(settings.pretrained_model)
    if facts.family != family:
        made_for, wanted = (families.FAMILIES.get(one, one) for one in (facts.family, family))
        raise SettingsError(f"{where} was made for {made_for}, and {settings.pretrained_model} is {wanted}.")
    problems = []
    if facts.rank > settings.rank:
        problems.append(f"has rank {facts.rank} and rank is {settings.rank}: set rank {facts.rank}")
    if facts.use_dora != settings.use_dora:
        problems.append(f"was trained {'with' if facts.use_dora else 'without'} DoRA: set use_dora "
                        f"{str(facts.use_dora).lower()}")  # fmt: skip
    if facts.train_text_encoder and not settings.train_text_encoder:
        problems.append("also changes the text encoders: set train_text_encoder true")
    if facts.learns_token and not settings.learn_concept_token:
        problems.append("has a word of its own: set learn_concept_token true")
    targets = families.named(adapter.facts.family).lora_targets(settings.lora_targets)
    names = [name.removesuffix(layers.A) for name in adapter.state if name.endswith(layers.A)]
    more = [name for name in names if not _learns(name, targets, settings.train_text_encoder)]
    if more and not problems:
        problems.append(
            f"also changes {counted(len(more), 'layer')} that would not learn, such as {more[0]}: set lora_targets to "
            "attention+ff or attention+ff+conv, or choose another file"
        )
    if problems:
        raise SettingsError(f"{where} {'; it '.join(problems)}.")
    return adapter


def _learns(name: str, targets: list[str], has_text: bool) -> bool:
    part, _, layer = name.partition(".")
    if part not in DENOISERS:
        return has_text and layer.endswith(tuple(f".{ending}" for ending in layers.TEXT_TARGETS))
    if len(targets) == 1 and "(" in targets[0]:
        return re.fullmatch(targets[0], layer) is not None
    return layer.endswith(tuple(f".{ending}" for ending in targets))
