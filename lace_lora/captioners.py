"""Who writes a caption for a picture: a local vision-language model, a server, or any function that is handed in.

A captioner is a function `caption(picture) -> str`. Local models are loaded through transformers' own classes, never
with code from a model's folder, and only from safetensors. The room loads no torch before a local model is asked for.
"""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import SecretStr

from lace_lora import clashes, colab
from lace_lora.captioner_http import DEFAULT_URL, KEY_NAME, QUESTION, Captioner, http_chat, http_plain
from lace_lora.config import nearest
from lace_lora.errors import MachineError, ModelError, SettingsError
from lace_lora.families import transformers_models
from lace_lora.families.quiet import quiet
from lace_lora.image_files import as_rgb
from lace_lora.machine import Precision, is_out_of_memory

__all__ = ["PROVIDERS", "Captioner", "fetch_notice", "find_key", "http_chat", "http_plain", "local", "make"]

# Settings' names of local models and what each loads where caption_model is empty.
LOCAL_MODELS = {
    "florence2": "florence-community/Florence-2-base",
    "blip2": "Salesforce/blip2-opt-2.7b",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "qwen3_vl": "Qwen/Qwen3-VL-2B-Instruct",
}
PROVIDERS = ("none", *LOCAL_MODELS, "http_chat", "http_plain")
_DOWNLOAD_GB = dict(zip(LOCAL_MODELS.values(), (1, 15, 14, 4), strict=True))

FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
_NEEDS_TORCHVISION = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe")
_LLAVA_TURNS = "USER: <image>\n{question} ASSISTANT:"  # what LLaVA 1.5 was trained on, for folders without a template

_log = logging.getLogger(__name__)


def make(
    provider: str,
    *,
    model: str | None = None,
    url: str | None = None,
    prompt: str | None = None,
    device: str = "cpu",
    dtype: Precision = "fp32",
    say: Callable[[str], None] = _log.info,
) -> Captioner | None:
    """The captioner that the settings ask for, ready to be called; None for the provider "none".

    provider  one of PROVIDERS (setting captioner)
    model     another model than the provider's own (caption_model); its folder tells which kind it is
    url       where a server listens (caption_url); http_chat takes the usual local one when it is empty
    prompt    another question, or Florence-2's task (caption_prompt)
    device    torch's name of the device that computes a local model, dtype its number format

    Raises SettingsError for an unknown provider or a setting that it cannot use, and the errors of local, http_chat and
    find_key.
    """
    if provider == "none":
        return None
    if provider in LOCAL_MODELS:
        return local(model or LOCAL_MODELS[provider], device=device, dtype=dtype, prompt=prompt, say=say)
    if provider == "http_chat":
        return http_chat(url or DEFAULT_URL, model, key=find_key(), prompt=prompt)
    clashes.refuse(clashes.captioner(provider, url, prompt))
    if provider == "http_plain" and url:
        return http_plain(url, key=find_key())
    names = ", ".join(PROVIDERS)
    raise SettingsError(f"no captioner called {provider!r}{nearest(provider, PROVIDERS)} There are: {names}.")


def find_key() -> SecretStr | None:
    """The key for a caption server from the environment variable LACE_CAPTION_KEY, else from Colab's secrets.

    Raises the errors of colab.secret: where Colab has that secret but does not let this notebook read it.
    """
    if text := os.environ.get(KEY_NAME, "").strip():
        return SecretStr(text)
    return colab.secret(KEY_NAME)


def local(
    model: str = LOCAL_MODELS["florence2"],
    *,
    device: str = "cpu",
    dtype: Precision = "fp32",
    prompt: str | None = None,
    max_new_tokens: int = 100,
    say: Callable[[str], None] = _log.info,
) -> Captioner:
    """A captioner that runs a vision-language model on this machine: Florence-2, BLIP-2, LLaVA, or one that chats.

    model           a folder, or a Hugging Face name that is here already or can be fetched
    device          torch's name of a device, "cpu" or "cuda"
    dtype           number format of the weights, "fp32", "fp16" or "bf16"
    prompt          Florence-2: one of its three caption tasks; BLIP-2: a question, or the beginning of the sentence;
                    others: the question. None takes what the model does best
    max_new_tokens  longest answer

    The same picture always gets the same caption. Raises ModelError for a model that is missing, of an unknown kind or
    damaged, SettingsError for a prompt that the model cannot take, MachineError when memory runs out.
    """
    folder = _model_folder(model, say)
    kind, prompt = _kind(folder, model), (prompt or "").strip() or None
    if kind == "florence2" and prompt and prompt not in FLORENCE_TASKS:
        raise SettingsError(
            f"Florence-2 takes no questions; caption_prompt must be empty or {', '.join(FLORENCE_TASKS)}."
        )
    network, processor = _loaded(folder, model, device, dtype)
    text = _prompt_text(kind, processor, prompt, model)
    # As the authors of Florence-2 and BLIP-2 do; three beams of a 7 B chat model would take three times its cache.
    beams = 3 if kind in ("florence2", "blip-2") else 1

    def caption(picture: Image.Image, /) -> str:
        with quiet():
            import torch

            words = {"text": text} if text else {}
            try:
                inputs = processor(images=as_rgb(picture), **words, return_tensors="pt").to(device, network.dtype)
                with torch.inference_mode():
                    answer_L = network.generate(
                        **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=beams
                    )[0]
            except Exception as error:
                raise _failure(error, f"{model} could not describe the picture") from error
        return str(processor.batch_decode([_new_tokens(answer_L, inputs)], skip_special_tokens=True)[0]).strip()

    return caption


def _new_tokens(answer_L: Any, inputs: Any) -> Any:
    """The answer without the question, which models that only go on writing (LLaVA, BLIP-2 with OPT) repeat."""
    asked_L = inputs["input_ids"][0] if "input_ids" in inputs else answer_L[:0]
    repeats = len(answer_L) >= len(asked_L) and bool((answer_L[: len(asked_L)] == asked_L).all())
    return answer_L[len(asked_L) :] if repeats else answer_L


def _prompt_text(kind: str, processor: Any, prompt: str | None, model: str) -> str | None:
    """What is written beside the picture, in the form that each kind of model was trained with."""
    if kind == "florence2":
        return prompt or "<DETAILED_CAPTION>"
    if kind == "blip-2":  # by itself it goes on from the picture alone
        return f"Question: {prompt} Answer:" if prompt and prompt.endswith("?") else prompt
    question = prompt or QUESTION
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    if kind == "llava":
        return _LLAVA_TURNS.format(question=question)
    raise ModelError(
        f"{model} ({kind}) has no chat template, so there is no telling how to ask it. Choose one of "
        f"{', '.join(LOCAL_MODELS.values())}."
    )


# Loading


def _loaded(folder: Path, model: str, device: str, dtype: Precision) -> tuple[Any, Any]:
    """The network in eval mode on its device, and its processor."""
    with quiet():
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        formats = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        own = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(folder, **own)
            network, notes = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=formats[dtype], use_safetensors=True, output_loading_info=True, **own
            )
            network = network.eval().to(device)
        except Exception as error:
            raise _failure(error, f"{model} could not be loaded") from error
    if missing := sorted(notes["missing_keys"]):
        # transformers would fill them with random numbers. Microsoft's own Florence-2 repositories are of this kind.
        raise ModelError(
            f"{model} lacks {len(missing)} weights that transformers' own class of it has ({missing[0]} is one): "
            f"it was made for another class. Choose {LOCAL_MODELS['florence2']} for Florence-2, or another model."
        )
    if (
        getattr(processor, "num_query_tokens", 1) is None
    ):  # older BLIP-2 folders; without it the picture is not looked at
        processor.num_query_tokens = network.config.num_query_tokens
    return network, processor


def _failure(error: Exception, what: str) -> MachineError | ModelError:
    if is_out_of_memory(error):
        return MachineError(
            f"Memory ran out: {what}. Next to try: captioner florence2, the smallest, or http_chat with a "
            "server on another machine."
        )
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return ModelError(f"{what} ({type(error).__name__}: {line.rstrip('.')}). Choose another caption_model.")


def _kind(folder: Path, model: str) -> str:
    """The model_type of a folder. Raises ModelError where torchvision is needed and not installed."""
    kind = transformers_models.kind_of(folder)
    if kind in _NEEDS_TORCHVISION and find_spec("torchvision") is None:
        raise ModelError(
            f"{model} needs torchvision, which is not installed here (Colab has it). Install the build of your torch: "
            f"pip install torchvision; or choose {LOCAL_MODELS['florence2']}."
        )
    return kind


# Fetching


def fetch_notice(model: str) -> list[str]:
    """A line to say before a model is fetched; none where it is on this machine already, or must not be fetched."""
    return transformers_models.fetch_notice(model, "captioner", _DOWNLOAD_GB.get(model))


def _model_folder(model: str, say: Callable[[str], None]) -> Path:
    return transformers_models.model_folder(model, LOCAL_MODELS["florence2"], "captioner", say, _DOWNLOAD_GB.get(model))
