"""A LoRA made elsewhere: read whatever its tool called its tensors, told honestly, and kept as an adapter of a run.

Strength comes from its own alpha tensors, or what PEFT's metadata says; without either it is 1, as every tool draws it.
Trigger word, base model and recommended strength come from its metadata and from the .json that A1111 keeps beside it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lace_lora import adapter as adapters
from lace_lora import checkpoint, contents, families, foreign_words, journal
from lace_lora import lora as learnt
from lace_lora.adapter import Adapter, AdapterFacts
from lace_lora.counting import counted
from lace_lora.errors import AdapterError, RunError
from lace_lora.families import folders, foreign_names, known, sdxl
from lace_lora.families import sdxl_names as naming
from lace_lora.families.quiet import quiet
from lace_lora.file_names import printable, slug
from lace_lora.run_folder import RunFolder

with quiet():
    import torch
    from safetensors import SafetensorError, safe_open
    from torch import Tensor

NAMED = 3  # tensors that are named of those that are left out
UNKNOWN_BASE = "not stated in the file"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Foreign:
    """A LoRA file as it was understood.

    adapter   in our names, ready to draw and to train on with
    tool      its format, in words
    words     what its metadata tells: trigger words, strength that is recommended, base model
    layers    how many layers of each part it changes
    left_out  tensors that have no place in it, by the reason in words
    """

    adapter: Adapter
    tool: str
    words: foreign_words.Words
    layers: Mapping[str, int]
    left_out: Mapping[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """All that is known of it, and what was left out, a line each."""
        facts = self.adapter.facts
        kind = "".join([", DoRA" if facts.use_dora else ""])
        parts = ", ".join(f"{counted(count, 'layer')} of {part}" for part, count in self.layers.items() if count)
        triggers = ", ".join(self.words.triggers)
        asked = self.words.preferred_strength
        rows = [
            ("file", printable(self.adapter.path)),
            ("format", self.tool),
            ("changes", parts),
            ("rank, alpha", f"{facts.rank}, {facts.alpha:g}{kind}: strength {facts.strength:g}"),
            ("trigger", triggers or "not stated in the file; set concept_token where you know it"),
            ("base model", self.words.base_model or UNKNOWN_BASE),
        ]
        rows += [("recommended", f"lora_scale {asked:g}, by the .json beside it")] if asked is not None else []
        return [*(f"{name:<12} {value}" for name, value in rows), *self.notes()]

    def notes(self) -> list[str]:
        """What was left out, a sentence a reason; nothing where every tensor has its place."""
        return [
            f"! {counted(len(names), 'tensor')} left out, which {reason}: {', '.join(names[:NAMED])}"
            f"{', …' if len(names) > NAMED else ''}"
            for reason, names in self.left_out.items()
        ]


def read(path: str | Path, base_model: str | None = None) -> Foreign:
    """Read a LoRA file of any tool, or a run of ours.

    base_model  whose layers it must fit; where it is not on this machine, or None, those of SDXL itself

    Raises AdapterError where it is damaged, or where less than half of its layers fit: then it was made for another
    model. What else has no place is left out and told in `left_out`.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        return _own(_of_folder(file))
    if not file.is_file():
        raise AdapterError(f"No LoRA file {printable(file)}. Give the path of a .safetensors file, or a run's folder.")
    if file.suffix.casefold() != ".safetensors":
        raise AdapterError(
            f"{printable(file)} is no .safetensors file. Others (.pt, .ckpt, .bin) can run code and are not read; "
            "have the tool that wrote it save it as safetensors."
        )
    shapes, header = _opened(file)
    own = _own_facts(header)
    if own is not None and own.family != sdxl.FAMILY:
        return _own(adapters.load(file))  # whole or not at all: other programs' names are known for SDXL alone
    _check_base(file, base_model)
    if own is not None and own.learns_token:
        return _own(_with_token(file, own))
    model = base_model if base_model and folders.is_here(base_model) else None
    layers = foreign_names.model_layers(model)
    named = foreign_names.read(shapes, layers, foreign_names.layers_per_block(model))
    tensors = _taken(file, [name for roles in named.layers.values() for name in roles.values()])
    found, left_out = _fitting(file, tensors, named, layers)
    words = foreign_words.read(file, header)
    _check_enough(file, shapes, len(found), len(named.layers), left_out, words)
    strengths = {
        place: _strength(one.down.shape[0], tensors, named.layers[place], header, place) for place, one in found.items()
    }
    known = replace(_known(own, words), layers_per_block=foreign_names.layers_per_block(model))
    adapter = _adapter(file, found, strengths, known, layers)
    counts = {part: sum(place[0] == part for place in found) for part in foreign_names.PARTS}
    return Foreign(adapter, naming.format_of(shapes), words, counts, left_out)


def keep(found: Foreign, run: RunFolder, say: Say) -> Adapter:
    """Write it as the adapter of a run of its own, from which designs are drawn as from any other.

    Raises RunError where that folder holds another run: what was trained is never overwritten.
    """
    source = checkpoint.sha256(found.adapter.path)
    earlier = contents.facts(run)
    if contents.holds_run(run) and earlier.get("source_sha256") != source:
        raise RunError(f"{printable(run.root)} holds another run already. Choose another run_name for this LoRA.")
    run.create()
    record = {
        "id": source,
        "state": journal.IMPORTED,
        "step": found.adapter.facts.step,
        "total": found.adapter.facts.step,
    }
    record |= {"source": found.adapter.path.name, "source_sha256": source, "format": found.tool}
    record |= {"left_out": {reason: len(names) for reason, names in found.left_out.items()}}
    checkpoint.write_json(run.record, record)
    kept = adapters.save(found.adapter.state, run, found.adapter.facts)
    say(f"kept      {counted(sum(found.layers.values()), 'layer')} in {printable(run.adapter)}")
    return kept


def title_of(path: Path) -> str:
    """A run's name for a file, such as lace-v2 for lace v2.safetensors."""
    return slug(path.stem)


# -- inside --


def _check_base(file: Path, base_model: str | None) -> None:
    """A file that does not say that it is of our own making is read by SDXL's layers."""
    family = known.family_of(base_model) if base_model else sdxl.FAMILY
    if family != sdxl.FAMILY:
        raise AdapterError(
            f"{printable(file)} is read as a LoRA for SDXL, and {base_model} is {families.FAMILIES[family]}: of other "
            "base models only LoRAs that were trained here are read. Choose one of those, or a base model of SDXL."
        )


def _own(adapter: Adapter) -> Foreign:
    facts = adapter.facts
    words = foreign_words.Words((facts.concept_token,) if facts.concept_token else (), None, facts.base_model)
    parts = dict.fromkeys(name.partition(".")[0] for name in adapter.state)
    counts = {part: len(learnt.layers_of(adapter.state, part)) for part in (*foreign_names.PARTS, *parts)}
    return Foreign(adapter, adapters.format_of(facts.family), words, counts, {})


def _with_token(file: Path, own: AdapterFacts) -> Adapter:
    """Of a LoRA of ours that has a word of its own: both lie in one folder, in either form."""
    whole = file.with_name(RunFolder(file.parent).adapter_weights.name)
    if not whole.is_file():
        raise AdapterError(
            f"{printable(file)} was trained with a word of its own, {own.concept_token}, and {whole.name} with its "
            "rows is not beside it. Take the whole folder."
        )
    return adapters.load(whole)


def _of_folder(folder: Path) -> Adapter:
    """Of a package or a run; of a folder with LoRA files of any tool, which one is meant must be said."""
    try:
        return adapters.load(folder)
    except AdapterError:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names:
            raise
        listed = ", ".join(map(printable, names[:NAMED])) + (", …" if len(names) > NAMED else "")
        raise AdapterError(f"{printable(folder)} is no package and no run. Name one of its files: {listed}.") from None


def _opened(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of each tensor and the metadata; no tensor is read: the file may be a model of many gigabytes."""
    with _readable(file), safe_open(file, framework="pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
        return shapes, dict(opened.metadata() or {})


def _taken(file: Path, names: Sequence[str]) -> dict[str, Tensor]:
    with _readable(file), safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in names}


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AdapterError(f"{printable(file)} is damaged or no safetensors file ({reason}). Copy it again.") from error


def _fitting(
    file: Path,
    tensors: Mapping[str, Tensor],
    named: foreign_names.Named,
    layers: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> tuple[dict[tuple[str, str], learnt.Learnt], dict[str, tuple[str, ...]]]:
    """The layers whose tensors have the model's shapes, and all that has no place."""
    found: dict[tuple[str, str], learnt.Learnt] = {}
    left_out: dict[str, list[str]] = {reason: list(names) for reason, names in named.strange.items()}
    for (part, layer), roles in sorted(named.layers.items()):
        halves = foreign_names.halves({role: tensors[name] for role, name in roles.items()}, layers[part][layer])
        if isinstance(halves, str):
            left_out.setdefault(halves, []).extend(sorted(roles.values()))
            continue
        if not all(bool(torch.isfinite(one).all()) for one in halves if one is not None):
            raise AdapterError(
                f"{printable(file)} holds NaN or infinity in {part}.{layer}: it would only draw black pictures. "
                "Take another of its checkpoints."
            )
        found[part, layer] = learnt.Learnt(*halves)
    return found, {reason: tuple(names) for reason, names in left_out.items()}


def _check_enough(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    fitting: int,
    named: int,
    left_out: Mapping[str, tuple[str, ...]],
    words: foreign_words.Words,
) -> None:
    """Refuse a LoRA for another model: of one that fits hardly anything, the rest would be a mere accident."""
    misfit = sum(map(len, left_out.values()))
    if fitting and len(shapes) - misfit >= len(shapes) / 2:
        return
    if _is_whole_model(shapes):
        raise AdapterError(
            f"{printable(file)} is a whole model and no LoRA: {counted(len(shapes), 'tensor')}, such as "
            f"{sorted(shapes)[0]}. Choose the file of a LoRA, which is a few hundred megabytes at most."
        )
    kind = naming.format_of(shapes)
    said = f" Its metadata says {words.architecture}." if words.architecture else ""
    reasons = "; ".join(
        f"{counted(len(names), 'tensor')} {reason}, such as {names[0]}" for reason, names in left_out.items() if names
    )
    raise AdapterError(
        f"{printable(file)} does not fit SDXL: {fitting} of its layers do, of {len(shapes)} tensors. It looks like "
        f"{kind}.{said} {reasons}. Choose a LoRA that was made for SDXL."
    )


def _is_whole_model(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these are a network's own weights, as in a checkpoint or a part of a diffusers folder."""
    weights = [name for name in shapes if name.endswith((".weight", ".bias"))]
    return len(weights) >= len(shapes) / 2 and not any(re.search("lora|dora|hada|lokr|oft", name) for name in shapes)


def _adapter(
    file: Path,
    found: Mapping[tuple[str, str], learnt.Learnt],
    strengths: Mapping[tuple[str, str], float],
    known: AdapterFacts,
    layers: Mapping[str, Mapping[str, Any]],
) -> Adapter:
    """One rank and one alpha for all: where they differ, the strength goes into B, and zeros fill up the rank.

    known  what is known of it beside its tensors
    """
    ranks, dora = {one.down.shape[0] for one in found.values()}, [one for one in found.values() if one.is_dora]
    if dora and len(dora) < len(found):
        raise AdapterError(
            f"{printable(file)} holds DoRA's lengths for {len(dora)} of {len(found)} layers only, which cannot be "
            "drawn with. Train it again with DoRA on all layers, or on none."
        )
    rank, is_even = max(ranks), len(ranks) == 1 and len(set(strengths.values())) == 1
    state: dict[str, Tensor] = {}
    for (part, layer), one in found.items():
        up = one.up if is_even else strengths[part, layer] * one.up
        state[f"{part}.{layer}{learnt.A}"] = _padded(one.down, 0, rank)
        state[f"{part}.{layer}{learnt.B}"] = _padded(up, 1, rank)
        if one.magnitude is not None:
            state[f"{part}.{layer}{learnt.MAGNITUDE}"] = one.magnitude
    text = [(part, name) for part, name in found if part != "unet"]
    facts = replace(
        known,
        rank=rank,
        alpha=rank * (next(iter(strengths.values())) if is_even else 1.0),
        use_rslora=False,
        use_dora=bool(dora),
        lora_targets=_targets([name for part, name in found if part == "unet"], layers["unet"]),
        text_targets=_text_targets(text, layers),
        train_text_encoder=bool(text),
    )
    return Adapter(facts, state, file)


def _known(own: AdapterFacts | None, words: foreign_words.Words) -> AdapterFacts:
    """What a file tells beside its tensors; of another trainer's no versions, so that nothing is taken for ours."""
    if own is not None:
        return own
    token, predicts = words.triggers[0] if words.triggers else "", "v_prediction" if words.predicts_v else "epsilon"
    base = words.base_model or UNKNOWN_BASE
    return AdapterFacts(
        sdxl.FAMILY, base, 1, 1, (), concept_token=token, instance_prompt=token, prediction_type=predicts
    )


def _strength(
    rank: int,
    tensors: Mapping[str, Tensor],
    roles: Mapping[str, str],
    header: Mapping[str, str],
    place: tuple[str, str],
) -> float:
    """What B·A of a layer is multiplied by."""
    if "alpha" in roles:
        return float(tensors[roles["alpha"]].float()) / rank
    return foreign_words.peft_strength(header, place, rank)


def _padded(tensor: Tensor, side: int, rank: int) -> Tensor:
    lacking = rank - tensor.shape[side]
    if not lacking:
        return tensor.contiguous()
    more = list(tensor.shape)
    more[side] = lacking
    return torch.cat([tensor, tensor.new_zeros(more)], dim=side)


def _own_facts(header: Mapping[str, str]) -> AdapterFacts | None:
    """Of a file that this package wrote, in either form; None for any other."""
    if adapters.FACTS_KEY not in header:
        return None
    try:
        known = asdict(AdapterFacts("", "", 1, 1, ()))
        values = {name: value for name, value in json.loads(header[adapters.FACTS_KEY]).items() if name in known}
        return AdapterFacts(**values)
    except (ValueError, TypeError, AttributeError):
        return None


def _targets(names: list[str], layers: Mapping[str, Any]) -> tuple[str, ...]:
    """Endings that mean these layers and no others, where one of our own sets does; else every name."""
    for kind in ("attention", "attention+ff", "attention+ff+conv"):
        endings = tuple(sdxl.lora_targets(kind))
        if sorted(names) == sorted(name for name in layers if name.endswith(tuple(f".{end}" for end in endings))):
            return endings
    return tuple(sorted(names))


def _text_targets(found: Sequence[tuple[str, str]], layers: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The same for the text encoders, one of which may be left as it is."""
    endings = {name.rpartition(".")[2] for _, name in found}
    parts = {part for part, _ in found}
    meant = [(part, name) for part in parts for name in layers[part] if name.rpartition(".")[2] in endings]
    if sorted(meant) != sorted(found):
        return tuple(sorted({name for _, name in found}))
    return learnt.TEXT_TARGETS if endings <= set(learnt.TEXT_TARGETS) else tuple(sorted(endings))
