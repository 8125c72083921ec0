"""The loops: our step, and as its limit bare loops on ready tensors — UNet forward, backward, optimizer, nothing else.

hand           the leanest LoRA written by hand: its product is added in place by the matrix product that makes it
peft           PEFT's layers
lean           PEFT's layers with our forward and backward pass (lace_lora.lean): what ours adds to it is the loop's own
peft-autocast  PEFT's layers, float32, under autocast: how most trainers do it
ours           lace_lora.steps with its cache, chance, loss weights, clipping and schedule
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import meters
from benchmarks.contenders import PRECISIONS, Contender, Task
from lace_lora import lean
from lace_lora.families import sdxl
from lace_lora.families.quiet import quiet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "nf4": torch.bfloat16}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class HandLora(nn.Module):
    """A frozen linear layer and its LoRA in as few operations as autograd allows. I in · O out · R rank."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.scale = base, 1.0  # alpha is the rank
        device = base.weight.device
        self.down_RI = nn.Parameter(torch.randn(rank, base.in_features, device=device) / base.in_features**0.5)
        self.up_OR = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the LoRA in it."""
        rows = x.reshape(-1, x.shape[-1])
        output = functional.linear(rows, self.base.weight, self.base.bias)
        output.addmm_(functional.linear(rows, self.down_RI), self.up_OR.t(), alpha=self.scale)
        return output.view(*x.shape[:-1], -1)


def bare(task: Task, contender: Contender) -> Iterator[Any]:
    """Steps on ready tensors with one of the four LoRAs."""
    is_autocast, dtype = contender.loop == "peft-autocast", DTYPES[contender.dtype]
    unet = sdxl.load_denoiser(task.model, dtype, task.device)
    parameters = _with_hand_lora(unet, task.rank) if contender.loop == "hand" else _with_peft(unet, task.rank)
    if contender.loop == "lean":
        lean.make_lean(unet)
    unet.train()
    sdxl.checkpoint_activations(unet, contender.checkpointing)
    if contender.compile == "blocks":
        unet.compile_repeated_blocks()
    has_copies = dtype != torch.float32 and not is_autocast
    masters = [nn.Parameter(one.detach().float().clone()) for one in parameters] if has_copies else parameters
    copied: tuple[list[Tensor], list[Tensor]] = ([*parameters], [*masters])
    for one in parameters:
        one.data = one.data.to(dtype if has_copies else torch.float32)
    optimizer = torch.optim.AdamW(masters, lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(task.device, enabled=dtype == torch.float16)
    inputs, wanted_BCHW = _ready(unet, task, contender.batch, dtype)
    while True:
        with torch.autocast(task.device, dtype, enabled=is_autocast):
            prediction_BCHW = unet(**inputs, return_dict=False)[0]
        scaler.scale(functional.mse_loss(prediction_BCHW.float(), wanted_BCHW)).backward()  # type: ignore[no-untyped-call]
        del prediction_BCHW
        if has_copies:
            for one, master in zip(parameters, masters, strict=True):
                assert one.grad is not None
                master.grad, one.grad = one.grad.float(), None
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if has_copies:
            with torch.no_grad():
                torch._foreach_copy_(*copied)
        yield


def ours(task: Task, contender: Contender) -> Iterator[Any]:
    """The updates of lace_lora.steps, with everything that a run does in them."""
    from lace_lora import cache, config, examples, parts, schedule, steps
    from lace_lora.losses import Pictures

    settings = config.load(
        preset="none",
        pretrained_model=task.model,
        images_dir=task.pictures,
        lora_output_dir=str(Path(task.work) / "runs"),
        cache_dir=str(Path(task.work) / "cache"),
        resolution=task.side_px,
        rank=task.rank,
        alpha=task.rank,
        lora_targets=task.targets,
        train_batch_size=contender.batch,
        gradient_accumulation_steps=1,
        max_train_steps=100_000,
        mixed_precision=PRECISIONS[contender.dtype],
        quantization="nf4" if contender.dtype == "nf4" else "none",
        gradient_checkpointing=contender.checkpointing,
        compile=contender.compile,
    )
    dtype = DTYPES[contender.dtype]
    before = meters.bytes_of_live_tensors()
    encoded = cache.build(
        examples.read(settings, print), task.model, task.side_px,
        flips=settings.random_flip, dtype=dtype, device=task.device, cache_dir=settings.cache_dir,
    )  # fmt: skip
    meters.data_bytes = meters.bytes_of_live_tensors() - before
    made = parts.assemble(settings, dtype, task.device)
    if task.device != "cpu":
        encoded = encoded.to_device(task.device, torch.cuda.mem_get_info()[0], print)
    buckets = tuple(sample.buckets for sample in encoded.samples)
    stream = schedule.Stream("pictures", buckets, contender.batch, 1, settings.seed)
    yield from steps.steps(made, Pictures(encoded, stream), None, settings, 0)


LOOPS: dict[str, Callable[[Task, Contender], Iterator[Any]]] = {
    "hand": bare, "peft": bare, "peft-autocast": bare, "lean": bare, "ours": ours,
}  # fmt: skip


def _with_hand_lora(unet: nn.Module, rank: int) -> list[nn.Parameter]:
    found = []
    for name, layer in list(unet.named_modules()):
        if name.endswith(tuple(f".{target}" for target in ATTENTION)):
            parent, _, own = name.rpartition(".")
            made = HandLora(layer, rank)
            setattr(unet.get_submodule(parent), own, made)
            found += [made.down_RI, made.up_OR]
    return found


def _with_peft(unet: Any, rank: int) -> list[nn.Parameter]:
    with quiet():
        from peft import LoraConfig

        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ATTENTION)))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def _ready(unet: Any, task: Task, batch: int, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """The UNet's arguments and what it should say: nothing is left to compute but the step itself."""
    chance = torch.Generator().manual_seed(0)
    cells, text = task.side_px // 8, unet.config.cross_attention_dim
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim

    def drawn(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=chance).to(task.device)

    side = float(task.side_px)
    sizes_BS = torch.tensor([[side, side, 0, 0, side, side]] * batch, device=task.device)
    inputs = {
        "sample": drawn(4, cells, cells).to(dtype),
        "timestep": torch.randint(1000, (batch,), generator=chance).to(task.device),
        "encoder_hidden_states": drawn(77, text).to(dtype),
        "added_cond_kwargs": {"text_embeds": drawn(pooled).to(dtype), "time_ids": sizes_BS},
    }
    return inputs, drawn(4, cells, cells)
