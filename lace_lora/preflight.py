"""Is everything in place? One row a fact about this machine, its libraries, models and folders, before work begins."""

import os
import platform
from pathlib import Path

from lace_lora import colab, data_utils, demo, estimate, install, own_folders, places, presets
from lace_lora.config import Config
from lace_lora.errors import LaceError
from lace_lora.families import folders, known, limits
from lace_lora.machine import Machine
from lace_lora.presets import Settled

Row = tuple[str, str, bool, str]  # name, what was found, whether that will do, what to do when it will not

# Versions worth reading in a report of a fault; the others are checked too, but shown only when they are wrong.
SHOWN = ("torch", "diffusers", "transformers", "peft", "accelerate", "ipywidgets")

TOKEN = "HF_TOKEN"
# Models on Hugging Face by the beginning of their names, and the licence that has to be accepted there before they can
# be fetched. All others that are named here need no account. As their pages said in November 2026.
GATED = {
    "stabilityai/stable-diffusion-3": "Stability AI Community License",
    "black-forest-labs/FLUX.1-dev": "FLUX.1 [dev] Non-Commercial License",
    "black-forest-labs/FLUX.1-Kontext-dev": "FLUX.1 [dev] Non-Commercial License",
    "black-forest-labs/FLUX.2-dev": "FLUX Non-Commercial License",
}
OPEN = {
    "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML Open RAIL++-M",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "CreativeML Open RAIL++-M",
}
GET_A_TOKEN = (
    "Log in at huggingface.co, open the page https://huggingface.co/{model} and accept its licence; then make a token "
    f"(Settings → Access Tokens → Read) and keep it as {TOKEN}: in Colab under the key on the left, with “Notebook "
    "access” switched on; elsewhere type hf auth login."
)
ADD_IT = "Click + Code, write: from lace_lora import install; install.add('{package}') and press ▶; then go on here."
GPU_MINUTES = "Setting up needs no GPU, and its minutes count while it is attached: begin to train soon, or disconnect."


def rows(settled: Settled, machine: Machine) -> list[Row]:
    """What was found, what will do, and what to click or type where it will not."""
    models = _models(settled)
    to_fetch = [model for model in models if folders.is_to_fetch(model)]
    return [
        *_machine(machine, sum(map(known.fetch_gb, to_fetch))),
        *_libraries(),
        *_packages(settled, machine),
        *(_licence(model, model in to_fetch) for model in models),
        _photographs(settled),
        _output(settled.config),
    ]


def _machine(machine: Machine, to_fetch_gb: float) -> list[Row]:
    found = machine.reasons(to_fetch_gb)
    if machine.is_colab and machine.gpu_name:
        return [(name, what, good, GPU_MINUTES if name == "GPU" else advice) for name, what, good, advice in found]
    return found


def _libraries() -> list[Row]:
    found: list[Row] = [("Python", platform.python_version(), True, "")]
    for need in install.needs():
        if need.name in SHOWN or not need.is_met:
            advice = "" if need.is_met else f'Run the install cell, or type: pip install "{need.requirement}"'
            found.append((need.name, need.found or "not installed", need.is_met, advice))
    return found


def _packages(settled: Settled, machine: Machine) -> list[Row]:
    """What the chosen settings need beside that, as the plan settles them."""
    config = settled.config
    try:
        planned = estimate.plan(settled, machine, pictures=100).config
        config = config.model_copy(update={"quantization": planned.quantization})
    except LaceError:
        pass  # a model that cannot be planned for has a row of its own
    return [
        (
            wish.need.name,
            f"{wish.need.found or 'not installed'}, for {wish.setting}",
            wish.need.is_met,
            "" if wish.need.is_met else ADD_IT.format(package=wish.need.name),
        )
        for wish in install.wishes(config)
    ]


def _models(settled: Settled) -> list[str]:
    """The models that this job uses, each once."""
    config = settled.config
    try:
        config, _ = limits.within(config, known.family_of(config.pretrained_model), limits.DRAWING)
    except LaceError:
        pass  # said by the plan, and by the model's own row
    refiner = config.refiner_model if config.refine != "none" else None
    names = [config.pretrained_model, refiner]
    return list(dict.fromkeys(name for name in names if name))


def _licence(model: str, is_to_fetch: bool) -> Row:
    """Whether a model is here, or can be fetched, and whether that takes an account."""
    if model in (demo.MODEL, demo.REFINER):
        return "model", f"{model}, comes with Lace LoRA", True, ""
    gate = next((licence for start, licence in GATED.items() if model.startswith(start)), None)
    if not is_to_fetch:
        try:
            folders.model_folder(model)  # asks no network: what has to be fetched has been told apart above
        except LaceError as error:
            return "model", model, False, str(error)
        return "model", f"{model}, on this machine", True, ""
    size = f"{model}, about {known.fetch_gb(model):g} GB to fetch once"
    if gate is None:
        licence = f", {OPEN[model]}, no account needed" if model in OPEN else ", if its page asks for nothing"
        return "model", size + licence, True, ""
    try:
        has_token = _has_token()
    except LaceError as error:
        return "model", f"{size}, {gate}", False, str(error)
    return "model", f"{size}, {gate}", has_token, "" if has_token else GET_A_TOKEN.format(model=model)


def _has_token() -> bool:
    """Whether Hugging Face's token is in the environment, on this machine, or among Colab's secrets."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    kept = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return kept.is_file() or colab.key(TOKEN) is not None


def _photographs(settled: Settled) -> Row:
    config = settled.config
    if presets.draws_its_own(settled) and not Path(config.images_dir).exists():
        return "photographs", f"drawn by program on first use, in {config.images_dir}", True, ""
    try:
        count = data_utils.count_pictures(config.images_dir, set(config.image_types))
    except LaceError as error:
        return "photographs", config.images_dir, False, str(error)
    return "photographs", f"{count} in {config.images_dir}", True, ""


def _output(config: Config) -> Row:
    if not own_folders.is_away(Path(config.lora_output_dir), config.drive_mount_path) and _can_write(
        config.lora_output_dir
    ):
        return "results", config.lora_output_dir, True, ""
    advice = "Choose another lora_output_dir, or mount Drive first: nothing can be written there."
    return "results", config.lora_output_dir, False, advice


def _can_write(folder: str) -> bool:
    """Whether a folder can be written, or made."""
    return os.access(places.nearest(Path(folder)), os.W_OK)
