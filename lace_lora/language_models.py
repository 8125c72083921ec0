"""Base models of text adapters: in 4 bits where there is a GPU, plain otherwise; their words, stops and layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lace_lora import recipe as recipes
from lace_lora import small_language
from lace_lora.errors import MachineError, ModelError, SettingsError
from lace_lora.families.quiet import quiet
from lace_lora.machine import Machine
from lace_lora.recipe import Recipe

with quiet():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

# Layers that some models have in one piece (Phi-3): what stands for the ones that are asked for.
JOINED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "dense": ("o_proj",),
    "fc1": ("gate_proj", "up_proj"),
    "fc2": ("down_proj",),
}


def load(recipe: Recipe, device: str | None = None) -> tuple[Any, Any, str]:
    """(model, tokenizer, how it was loaded and why) of a recipe's base model; the model is in eval mode, frozen.

    Raises ModelError where it cannot be had, MachineError where bitsandbytes is missing.
    """
    here = Machine.here()
    device = device or here.device
    with quiet():
        if recipe.base_model == recipes.DEMO:
            model, words = small_language.made(recipe)
            model, why = model.to(device), "a tiny model made on the spot"
        else:
            words = _from_hub(AutoTokenizer, recipe.base_model)
            options, why = options_of(recipe, device, here.precision()[0])
            model = _from_hub(AutoModelForCausalLM, recipe.base_model, **options)
            if "quantization_config" not in options:
                model = model.to(device)
    if words.pad_token_id is None:
        words.pad_token = words.eos_token
    words.padding_side = "left"
    model.requires_grad_(False)
    return model.eval(), words, why


def options_of(recipe: Recipe, device: str, precision: str) -> tuple[dict[str, Any], str]:
    """How a base model is loaded on a device, as `from_pretrained` takes it, and why."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    if not device.startswith("cuda"):
        return {"dtype": torch.float32}, "plain, in float32: there is no GPU"
    if recipe.quantization == "none":
        return {"dtype": dtype}, f"plain, in {precision}, as set"
    _check_bitsandbytes()
    return {
        "dtype": dtype, "device_map": {"": 0}, "quantization_config": four_bits(dtype),
    }, f"in 4 bits (NF4, double quantisation), computed in {precision}"  # fmt: skip


def four_bits(dtype: torch.dtype) -> Any:
    """NF4 with its scales quantised, too; computed in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def stops_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: those that model and tokenizer name, and what its template writes after one."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = list(named) if isinstance(named, list | tuple) else [named]
    found.append(tokenizer.eos_token_id)
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "@@"}]
    _, _, after = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("@@")
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    found += [number for text, number in special.items() if after.strip().startswith(text)]
    return sorted({number for number in found if number is not None})


def targets_of(model: Any, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The layers of a model that an adapter goes on, and a sentence for each that has another name there.

    Phi-3 has q, k and v in one layer qkv_proj: asked for q_proj, peft would leave it out without a word. Raises
    SettingsError where a layer that is asked for is nowhere, with those that there are.
    """
    here = {
        name.rpartition(".")[2]
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) or "Linear4bit" in type(layer).__name__
    } - {"lm_head", "embed_out"}
    found: list[str] = []
    notes: list[str] = []
    for name in wanted:
        real = (
            name
            if name in here
            else next((one for one, parts in JOINED.items() if name in parts and one in here), None)
        )
        if real is None:
            raise SettingsError(
                f"The model has no layer {name}. It has: {', '.join(sorted(here))}. Set lora_targets to some of these."
            )
        if real != name:
            notes.append(f"{name} is part of {real} in this model")
        if real not in found:
            found.append(real)
    return found, notes


def _from_hub(kind: Any, name: str, **options: Any) -> Any:
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise ModelError(f"There is no folder {path} with a language model. Correct base_model.")
    try:
        return kind.from_pretrained(str(path) if path.is_dir() else name, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:200]
        if path.is_dir():
            raise ModelError(
                f"The folder {path} holds no language model that can be loaded ({first}). It needs what "
                "save_pretrained writes: config.json, the tokenizer's files, and the weights as .safetensors."
            ) from error
        raise ModelError(
            f"The base model {name} could not be loaded ({first}). Is this machine connected to the internet, and is "
            "the name right? A model that asks for consent (Llama, Gemma) needs a token: put HF_TOKEN into Colab's "
            "secrets, and accept its terms on its page."
        ) from error


def _check_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "quantization nf4 needs the package bitsandbytes: pip install bitsandbytes. Or set quantization none."
        ) from error
