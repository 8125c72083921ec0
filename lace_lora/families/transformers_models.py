"""Where a model in transformers' layout lies on this machine, fetching it once, and loading it: safetensors only, and
never code from a model's folder. Loads no torch before a model is asked for."""

import errno
import gc
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lace_lora.errors import MachineError, ModelError
from lace_lora.families.quiet import quiet
from lace_lora.machine import is_out_of_memory

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_INDEX = "model.safetensors.index.json"
_SMALL_FILES = (".json", ".txt", ".model", ".jinja")


def is_hub_name(model: str) -> bool:
    """Whether a name is looked for at Hugging Face: nothing of that name lies here, and no path is spelled so."""
    return bool(not Path(model).expanduser().exists() and _HUB_NAME.fullmatch(model) and not model.startswith("."))


def fetch_notice(model: str, heading: str, gigabytes: float | None = None) -> list[str]:
    """A line to say before a model is fetched; none where it is on this machine already, or must not be fetched.

    heading    the line's first word, such as "captioner"
    gigabytes  what is fetched, where that is known
    """
    if not is_hub_name(model):
        return []
    with quiet():
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE or not _missing(_cached(model)):
            return []
    size = "once" if gigabytes is None else f"about {gigabytes:g} GB, once"
    return [f"{heading:<9} fetching {model} ({size}; minutes in which nothing seems to happen) …"]


def model_folder(
    model: str, example: str, heading: str, say: Callable[[str], None], gigabytes: float | None = None
) -> Path:
    """The folder of a model: one on this machine, or Hugging Face's cache, fetched if need be.

    example  a Hugging Face name to give as an example
    heading, gigabytes  for the line that is said before it is fetched

    Raises ModelError where it is not there, with the command that fetches it, and MachineError for a full disk.
    """
    path = Path(model).expanduser()
    if path.exists():
        if missing := ["a folder"] if path.is_file() else _missing(path):
            raise ModelError(_incomplete(model, path, missing))
        return path
    if not is_hub_name(model):
        raise ModelError(f"No model folder {model}. Give an existing folder, or a Hugging Face name such as {example}.")
    for line in fetch_notice(model, heading, gigabytes):
        say(line)
    with quiet():
        return _snapshot(model)


def kind_of(folder: Path) -> str:
    """The model_type of a folder's config. Raises ModelError where there is none."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} names no model_type. Fetch the model again.") from error


def load_network(auto_class: str, folder: Path, model: str, device: str) -> tuple[Any, set[str]]:
    """A network in fp32 and eval mode on its device, and the names of weights that its files lack.

    auto_class  a class of transformers that chooses the network, such as "AutoModel"

    transformers fills what is lacking with random numbers; whoever uses the network decides whether it needs them.
    Raises ModelError where it cannot be loaded, MachineError where memory runs out.
    """
    with quiet():
        import torch
        import transformers

        own = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        try:
            network, notes = getattr(transformers, auto_class).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **own
            )
            network = network.requires_grad_(False).eval().to(device)
        except Exception as error:  # each architecture raises its own
            line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
            if is_out_of_memory(error):
                raise MachineError(
                    f"Memory ran out when {model} was loaded. Close other notebooks, or choose a smaller model."
                ) from error
            raise ModelError(
                f"{model} could not be loaded ({type(error).__name__}: {line.rstrip('.')}). Choose another model."
            ) from error
    return network, set(notes["missing_keys"])


def give_back_memory() -> None:
    """Let go of what models held that are deleted by now, so that the next one finds room."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- inside --


def _snapshot(model: str) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    folder = _cached(model)
    if not _missing(folder):
        return folder
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{model} is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it. {_how_to_fetch(model)}"
        )
    try:
        names = [sibling.rfilename for sibling in HfApi().model_info(model).siblings or []]
        wanted = [name for name in names if "/" not in name and name.endswith(_SMALL_FILES)]
        if _INDEX in names:  # some repositories hold the weights twice, in small and in large pieces
            index = Path(hf_hub_download(model, _INDEX)).read_text(encoding="utf-8")
            wanted += sorted(set(json.loads(index)["weight_map"].values()))
        else:
            wanted.append("model.safetensors")
        folder = Path(snapshot_download(model, allow_patterns=wanted))
    except Exception as error:  # the hub's, httpx's and requests' errors have no common base
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise MachineError(
                f"The disk is full while fetching {model}. Free some space and run this again."
            ) from error
        reason = next(iter(str(error).splitlines()), "no reason given").rstrip(".")
        raise ModelError(
            f"{model} could not be fetched: {type(error).__name__}, {reason}. {_how_to_fetch(model)}"
        ) from error
    if missing := _missing(folder):
        raise ModelError(_incomplete(model, folder, missing))
    return folder


def _cached(model: str) -> Path:
    """What Hugging Face's cache has of a model; a folder without files where that is nothing."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return Path(os.devnull)


def _missing(folder: Path) -> list[str]:
    """Which of the files are not there that every model needs."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        missing.append("preprocessor_config.json")
    weights = ["model.safetensors"]
    if (folder / _INDEX).is_file():
        try:
            weights = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [*missing, f"a readable {_INDEX}"]
    return missing + [name for name in weights if not (folder / name).is_file()]


def _incomplete(model: str, folder: Path, missing: list[str]) -> str:
    return f"{model} is no model in transformers' layout: {', '.join(missing)} missing.{_pickled(folder)}"


def _pickled(folder: Path) -> str:
    has_bin = folder.is_dir() and any(folder.glob("*.bin"))
    return " Its .bin files are not read, because such files can run code." if has_bin else ""


def _how_to_fetch(model: str) -> str:
    kinds = " ".join(f'--include "*{ending}"' for ending in (*_SMALL_FILES, ".safetensors"))
    return f"Fetch it on a machine with a network: hf download {model} {kinds}"
