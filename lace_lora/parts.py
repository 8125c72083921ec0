"""What an update works on: the frozen denoiser with its LoRA, float32 masters, optimizer and loss scaling; kept whole.

A LoRA is computed in the base's own precision, without autocast, and learnt in float32: where the base is in half
precision, the layers hold working copies, and the optimizer the masters that every file is written from.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lace_lora import adapter, families, lean, optimizers, quantize, tensor_files, tokens
from lace_lora.config import Config
from lace_lora.errors import MachineError, RunError
from lace_lora.families import Family
from lace_lora.families.layouts import Layout, layout
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import TextParts

with quiet():
    import torch
    from safetensors.torch import load_file
    from torch import Tensor, nn

LORA_FILE, OPTIMIZER_FILE, STATE_FILE = "lora.safetensors", "optimizer.safetensors", "state.json"
# Ways to keep fewer activations, each slower than the one before; SDXL at 1024 px: 5.4, 1.7 and 0.5 GiB a picture.
CHECKPOINTING = ("none", "transformers", "full")
# One new row in a matrix of 49,408 gets a gradient in few pictures, and no decay: it must leave where it began.
TOKEN_RATE = 5.0


@dataclass
class Parts:
    """All that training holds in memory. Only `made` changes, and `checkpointing` when memory runs out."""

    family: Family
    denoiser: Any
    text: TextParts | None  # only where text encoders are trained too
    noising: Any  # what the base model was trained to mix noise by; only its family knows more
    sizes: Layout
    parameters: Mapping[str, nn.Parameter]  # in the layers, by the name under which they are saved
    masters: Mapping[str, nn.Parameter]  # float32, what the optimizer holds; the same where the base is float32
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: str
    checkpointing: str
    may_save_memory: bool
    made: int | None = 0  # updates that the weights hold; None while one is being applied

    @property
    def has_copies(self) -> bool:
        """Whether the layers compute with half-precision copies of the masters."""
        return next(iter(self.masters.values())) is not next(iter(self.parameters.values()))


def assemble(
    settings: Config, dtype: torch.dtype, device: str, *, may_save_memory: bool = False, say: Any = print
) -> Parts:
    """Load the denoiser, put the LoRA on it and make its optimizer; the text encoders too where they are trained.

    may_save_memory  whether gradient_checkpointing may be stepped up when memory runs out (it was left to auto)
    """
    model, family = settings.pretrained_model, families.of(settings.pretrained_model)
    if settings.quantization == "nf4":
        denoiser = quantize.load_nf4(model, dtype, device, settings.cache_dir, say)
    else:
        denoiser = family.load_denoiser(model, dtype, device)
    shape = shape_of(settings)
    parameters = adapter.attach(denoiser, family.DENOISER, shape, settings.seed, family.lora_targets(shape.targets))
    text = _text(family, settings, dtype, device) if trains_text(settings) else None
    if text is not None:
        parameters |= _text_parameters(text, settings, shape)
    masters = _masters(parameters, dtype)
    # Half-precision masters would fail in unscaling and lose updates smaller than their spacing.
    assert all(master.dtype == torch.float32 for master in masters.values())
    _prepare(denoiser, settings)
    parts = Parts(
        family=family,
        denoiser=denoiser,
        text=text,
        noising=family.noising(model, device, int(settings.resolution)),
        sizes=layout(model),
        parameters=parameters,
        masters=masters,
        optimizer=optimizers.make(settings.optimizer, _groups(masters), settings.learning_rate),
        scaler=torch.amp.GradScaler(device, enabled=dtype == torch.float16),
        device=device,
        checkpointing="none",
        may_save_memory=may_save_memory,
    )
    set_checkpointing(parts, str(settings.gradient_checkpointing))
    return parts


def shape_of(settings: Config) -> adapter.Shape:
    """What the LoRA is like, by the settings."""
    return adapter.Shape(
        settings.rank, settings.lora_alpha(), settings.lora_targets, settings.use_dora, settings.use_rslora
    )


def trains_text(settings: Config) -> bool:
    """Whether the text encoders are trained too, so that captions are encoded in every step."""
    return settings.train_text_encoder or settings.learn_concept_token


def set_checkpointing(parts: Parts, mode: str) -> None:
    """Keep all activations (none), or compute again those of the transformer blocks (transformers) or of all (full)."""
    parts.family.checkpoint_activations(parts.denoiser, mode)
    parts.checkpointing = mode


def save_memory(parts: Parts) -> bool:
    """Take the next way of CHECKPOINTING; False where there is none, or where the person chose this one."""
    place = CHECKPOINTING.index(parts.checkpointing)
    if not parts.may_save_memory or place + 1 == len(CHECKPOINTING):
        return False
    set_checkpointing(parts, CHECKPOINTING[place + 1])
    return True


def gather(parts: Parts) -> None:
    """Add the layers' gradients to the masters', in float32, so that accumulation does not round in half precision."""
    if not parts.has_copies:
        return
    for name, parameter in parts.parameters.items():
        if parameter.grad is None:
            continue
        master = parts.masters[name]
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None


@torch.no_grad()
def publish(parts: Parts) -> None:
    """Give the layers the masters' new values, rounded once."""
    if parts.has_copies:
        torch._foreach_copy_(list(parts.parameters.values()), list(parts.masters.values()))


def forget_gradients(parts: Parts) -> None:
    """Drop all gradients: of an update that is over, or that ran out of memory and is begun again."""
    for parameter in (*parts.parameters.values(), *parts.masters.values()):
        parameter.grad = None


@contextmanager
def averaged(parts: Parts) -> Iterator[None]:
    """The weights that count, where an optimizer averages its way (schedulefree); afterwards all is as it was."""
    try:
        with optimizers.averaged(parts.optimizer):
            publish(parts)
            yield
    finally:
        publish(parts)


def learnt(parts: Parts) -> dict[str, Tensor]:
    """A copy of what an adapter is made of, on the CPU, float32 (averaged, where the optimizer averages)."""
    with optimizers.averaged(parts.optimizer):
        return {name: master.detach().to("cpu", copy=True) for name, master in parts.masters.items()}


def take_up(parts: Parts, state: Mapping[str, Tensor]) -> None:
    """Give the LoRA these values. Raises RunError unless names and shapes are exactly its own."""
    wrong = sorted(parts.masters.keys() ^ state.keys())
    wrong = wrong or [name for name, master in parts.masters.items() if master.shape != state[name].shape]
    if wrong:
        raise RunError(
            f"The saved LoRA does not fit the one that is trained ({len(wrong)} tensors differ, first: {wrong[0]}). "
            "Choose another run_name to train anew."
        )
    with torch.no_grad():
        for name, master in parts.masters.items():
            master.copy_(state[name])
    publish(parts)


def save(parts: Parts, folder: Path, number: int, run_id: str) -> None:
    """Write what an unbroken run would have after update `number` into an empty folder (no pickle)."""
    masters = {name: master.detach().cpu().contiguous() for name, master in parts.masters.items()}
    tensors, rest = optimizers.state_of(parts.optimizer)
    tensor_files.write(folder / LORA_FILE, masters)
    tensor_files.write(folder / OPTIMIZER_FILE, tensors)
    facts = {
        "step": number,
        "run": run_id,
        "names": list(masters),
        "gradient_checkpointing": parts.checkpointing,
        "scaler": parts.scaler.state_dict(),
        "optimizer": rest,
    }
    (folder / STATE_FILE).write_text(json.dumps(facts, indent=2), encoding="utf-8")


def restore(parts: Parts, folder: Path, run_id: str) -> int:
    """Take up a checkpoint; return the number of updates that it holds. Raises RunError where it is of another run."""
    facts = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    if facts["run"] != run_id or facts["names"] != list(parts.masters):
        raise RunError(
            f"{folder} is a checkpoint of other settings or pictures. "
            "Choose another run_name, or delete the folder to begin anew."
        )
    take_up(parts, load_file(folder / LORA_FILE))
    optimizers.restore(parts.optimizer, load_file(folder / OPTIMIZER_FILE), facts["optimizer"])
    if facts["scaler"]:  # empty when the run was on a machine that needs no loss scaling
        parts.scaler.load_state_dict(facts["scaler"])
    reached = facts["gradient_checkpointing"]
    # What ran out of memory once would do so again; on a larger GPU a person says none, and is heard.
    if parts.may_save_memory and CHECKPOINTING.index(reached) > CHECKPOINTING.index(parts.checkpointing):
        set_checkpointing(parts, reached)
    parts.made = int(facts["step"])
    return parts.made


# -- inside --


def _text(family: Family, settings: Config, dtype: torch.dtype, device: str) -> TextParts:
    text = family.load_text(settings.pretrained_model, dtype, device)
    for encoder in text.encoders:
        encoder.train()  # CLIP has no dropout; checkpointing and PEFT look at the mode
    return text


def _text_parameters(text: TextParts, settings: Config, shape: adapter.Shape) -> dict[str, nn.Parameter]:
    """The trained parameters of the encoders: their LoRA, and the rows of a new word."""
    found: dict[str, nn.Parameter] = {}
    if settings.train_text_encoder:
        for part, encoder in adapter.text_modules(text).items():
            found |= adapter.attach(encoder, part, shape, settings.seed)
    if settings.learn_concept_token:
        found |= tokens.add(text, settings.concept_token, settings.class_prompt)
    return found


def _masters(parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Float32 masters; the layers keep copies in the base's dtype where that is another one."""
    if dtype == torch.float32:
        return dict(parameters)
    masters = {name: nn.Parameter(parameter.detach().float().clone()) for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.data = parameter.data.to(dtype)
    return masters


def _groups(masters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    rows = [master for name, master in masters.items() if name.endswith(".concept_token")]
    layers = [master for name, master in masters.items() if not name.endswith(".concept_token")]
    groups: list[dict[str, Any]] = [{"params": layers}]
    return [*groups, {"params": rows, "lr_ratio": TOKEN_RATE, "weight_decay": 0.0}] if rows else groups


def _prepare(denoiser: Any, settings: Config) -> None:
    """Attention and compilation as the settings say."""
    # No family has dropout. Checkpointing works in training mode only, and an NF4 layer that ran once in evaluation
    # mode on a CPU cannot be trained any more.
    denoiser.train()
    if settings.attention_backend == "xformers":
        try:
            denoiser.enable_xformers_memory_efficient_attention()
        except Exception as error:  # missing, or built for another torch: each says it its own way
            raise MachineError(
                f"xformers cannot be used here ({str(error).splitlines()[0][:120]}). "
                "Set attention_backend sdpa, which is as lean, or install the xformers that fits this torch."
            ) from error
    lean.make_lean(denoiser)
    if settings.compile == "blocks":
        # Blocks of three kinds, for every bucket's shape and with or without a gradient for their input.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        denoiser.compile_repeated_blocks()
