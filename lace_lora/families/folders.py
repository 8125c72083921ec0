"""Where a base model lies on this machine and what its folder says about itself. Reads JSON only, loads no torch."""

import errno
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from lace_lora.errors import MachineError, ModelError

DENOISERS = ("unet", "transformer")  # a model has one of them
NETWORKS = (*DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
PARTS = (*NETWORKS, *TOKENIZERS, "scheduler")
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_CONFIG_OF = {"scheduler": "scheduler_config.json"} | dict.fromkeys(TOKENIZERS, "tokenizer_config.json")


def model_folder(name: str) -> str:
    """The folder of a model: a demo name, a folder, or a Hugging Face name that is here already or can be fetched.

    Only the files that are needed are fetched: fp16 where the model offers it, the VAE in fp32.
    Raises ModelError with the command to type where the model is not there; a local-looking path is never looked up on
    the network, and nothing is when HF_HUB_OFFLINE=1.
    """
    if name in ("lace-demo", "lace-demo-refiner"):
        from lace_lora.demo import locate

        return str(locate(name))
    path = Path(name).expanduser()
    if path.is_dir():
        _check_whole(path, name)
        return str(path)
    if path.is_file():
        raise ModelError(
            f"{name} is a single file; a folder in the diffusers layout (unet, vae, text_encoder, …) is needed."
        )
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"No model folder {name}. Give an existing folder, "
            "or a Hugging Face name such as stabilityai/stable-diffusion-xl-base-1.0."
        )
    return str(_snapshot(name))


def is_here(name: str) -> bool:
    """Whether a model is on this machine, whole, so that nothing need be fetched."""
    if name in ("lace-demo", "lace-demo-refiner") or Path(name).expanduser().is_dir():
        return True
    if not _HUB_NAME.fullmatch(name):
        return False
    from huggingface_hub import snapshot_download

    try:
        return not _missing_parts(Path(snapshot_download(name, local_files_only=True)))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both; nothing of it is here
        return False


def part_config(folder: str | Path, part: str) -> dict[str, Any]:
    """The config of one part as a dict. Raises ModelError where it is missing or unreadable."""
    path = Path(folder) / part / _CONFIG_OF.get(part, "config.json")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing: the model folder is not complete. Fetch it again, or choose another model."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Fetch the model again.") from error
    return values


def parts_of(folder: str | Path) -> tuple[str, ...]:
    """The parts that a model's index names; a refiner has no text_encoder and no tokenizer."""
    path = Path(folder) / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} holds no readable model_index.json, so it is not a model in the diffusers layout."
        ) from error
    return tuple(part for part in PARTS if isinstance(index.get(part), list) and index[part][1])


def weight_variant(folder: str | Path, wants_half: bool) -> str | None:
    """ "fp16" where that file should be read, None for the plain file: the wanted one, or the only one there.

    Raises ModelError where there are no safetensors.
    """
    names = [path.name for path in Path(folder).glob("*.safetensors")]
    half = [name for name in names if ".fp16" in name]
    if not names:
        pickled = (
            " Its .bin files are not read, because such files can run code." if list(Path(folder).glob("*.bin")) else ""
        )
        raise ModelError(
            f"No .safetensors weights in {folder}.{pickled} Fetch the model again with its safetensors files."
        )
    return "fp16" if half and (wants_half or len(half) == len(names)) else None


def weight_files(folder: str | Path, wants_half: bool) -> list[Path]:
    """The files of a part that are read, see weight_variant; of a large one there are several. Raises ModelError."""
    is_half = weight_variant(folder, wants_half) == "fp16"
    return sorted(path for path in Path(folder).glob("*.safetensors") if (".fp16" in path.name) is is_half)


def weight_bytes(parts: Iterable[str | Path], bytes_a_number: int) -> int:
    """What the weights in some folders take in memory once they are loaded, before they are.

    bytes_a_number  of the dtype that they are loaded in: 2 for half precision, which may have files of its own

    Counted from the shapes in the headers of the files that would be read: their own size tells of another dtype.
    Raises ModelError where a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    numbers = 0
    for folder in map(Path, parts):
        for path in weight_files(folder, wants_half=bytes_a_number == 2):
            try:
                with safe_open(path, framework="np") as opened:
                    numbers += sum(prod(opened.get_slice(name).get_shape()) for name in opened.keys())
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} is damaged ({str(error).splitlines()[0]}). Fetch the model again.") from error
    return numbers * bytes_a_number


def identity(model: str, parts: Collection[str] = ()) -> str:
    """A text that differs wherever the VAE, a text encoder or a tokenizer does: it keys what they have computed.

    parts  other parts that are to count instead, such as ["unet"]

    Models of a kind have files of the same size, so contents are compared; Hugging Face's cache names files by theirs.
    """
    folder = Path(model_folder(model))
    counted = parts or [part for part in parts_of(folder) if part not in (*DENOISERS, "scheduler")]
    files = sorted(path for part in counted for path in (folder / part).iterdir() if path.is_file())
    return "\n".join(f"{path.parent.name}/{path.name} {_content(path)}" for path in files)


def _content(path: Path) -> str:
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    facts = real.stat()
    return _digest(real, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """Read once in a session: a plain folder's text encoders are 3 GB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of all files of a model repository, those that are read: fp16 weights where offered, the VAE in fp32."""
    names = list(names)
    wanted = []
    for name in names:
        part, _, file = name.rpartition("/")
        if name == "model_index.json" or (part in PARTS and file.endswith((".json", ".txt", ".model"))):
            wanted.append(name)
        if part not in NETWORKS or not file.endswith(".safetensors"):
            continue
        in_part = [other for other in names if other.startswith(f"{part}/") and other.endswith(".safetensors")]
        half, plain = ([other for other in in_part if (".fp16" in other) is is_half] for is_half in (True, False))
        best = (plain or half) if part == "vae" else (half or plain)
        if name in best:
            wanted.append(name)
    return wanted


def is_to_fetch(name: str) -> bool:
    """Whether a model would have to be fetched, and may be."""
    from lace_lora.demo import locate
    from lace_lora.families.quiet import quiet

    if Path(locate(name)).expanduser().exists() or not _HUB_NAME.fullmatch(name):
        return False
    with quiet():
        from huggingface_hub import constants, snapshot_download

        try:
            is_whole = not _missing_parts(Path(snapshot_download(name, local_files_only=True)))
        except (OSError, ValueError):
            is_whole = False
    return not (is_whole or constants.HF_HUB_OFFLINE)


def _snapshot(name: str) -> Path:
    """A hub model's folder in the local cache, fetched if need be."""
    from lace_lora.families.quiet import quiet

    with quiet():
        from huggingface_hub import HfApi, constants, snapshot_download

        missing: tuple[str, ...] = PARTS
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
            missing = _missing_parts(folder)
        except (OSError, ValueError):  # LocalEntryNotFoundError is both; nothing of it is here
            folder = Path()
        if not missing:
            return folder
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"{name} is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it. {_how_to_fetch(name)}"
            )
        try:
            files = wanted_files(sibling.rfilename for sibling in HfApi().model_info(name).siblings or [])
            folder = Path(snapshot_download(name, allow_patterns=files))
        except Exception as error:  # the hub's, httpx's and requests' errors have no common base
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise MachineError(
                    f"The disk is full while fetching {name}. Free some space and run this again."
                ) from error
            raise ModelError(f"{name} could not be fetched: {_reason(error)}. {_how_to_fetch(name)}") from error
    _check_whole(folder, name)
    return folder


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "accept its licence on its page at huggingface.co first, and log in with `hf auth login`"
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return "there is no such model at huggingface.co, or it is private"
    return f"{kind}, {str(error).splitlines()[0] if str(error) else 'no reason given'}".rstrip(".")


def _how_to_fetch(name: str) -> str:
    """The command that fetches what is read; models with a transformer are not offered in half precision apart."""
    from lace_lora.families import known  # which reads folders

    named = known.by_name(name)
    weights = ["*/*.fp16.safetensors", "vae/*.safetensors"]
    if named is not None and named.denoiser[0] != "UNet2DConditionModel":
        weights = [f"{part}/*.safetensors" for part in NETWORKS]
    included = " ".join(f'--include "{kind}"' for kind in ("*.json", "*.txt", "*.model", *weights))
    return f"Fetch it on a machine with a network: hf download {name} {included}"


def _missing_parts(folder: Path) -> tuple[str, ...]:
    if not (folder / "model_index.json").is_file():
        return ("model_index.json",)
    return tuple(part for part in parts_of(folder) if not _is_there(folder, part))


def _is_there(folder: Path, part: str) -> bool:
    has_config = (folder / part / _CONFIG_OF.get(part, "config.json")).is_file()
    return has_config and (
        part not in NETWORKS or any((folder / part).glob("*.safetensors")) or any((folder / part).glob("*.bin"))
    )


def _check_whole(folder: Path, name: str) -> None:
    missing = _missing_parts(folder)
    if missing:
        raise ModelError(
            f"{name} is not a complete model in the diffusers layout: {', '.join(missing)} missing in {folder}."
        )
