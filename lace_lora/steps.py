"""The training loop: a generator that yields after every update, so that stopping between two loses nothing.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from lace_lora import adapter, schedule
from lace_lora.cache import Cache
from lace_lora.config import Config
from lace_lora.errors import RunError
from lace_lora.families import sdxl
from lace_lora.families.quiet import quiet

with quiet():
    import torch
    from safetensors.torch import load_file, save_file
    from torch import Tensor, nn

BETAS, WEIGHT_DECAY = (0.9, 0.999), 1e-2
LORA_FILE, OPTIMIZER_FILE, STATE_FILE = "lora.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Step:
    """One finished update."""

    number: int  # from 1
    total: int
    epoch: int  # from 0
    loss: float  # mean over its pictures, weighted as it was learnt
    prior_loss: float | None  # the same over its class pictures, before prior_loss_weight
    learning_rate: float
    gradient_norm: float
    seconds: float

    def as_row(self) -> dict[str, Any]:
        """The step as a line of log.jsonl."""
        row = {"step": self.number, "loss": self.loss, "lr": self.learning_rate, "epoch": self.epoch}
        if self.prior_loss is not None:
            row["prior_loss"] = self.prior_loss
        norm = self.gradient_norm if math.isfinite(self.gradient_norm) else None  # JSON has no infinity
        return row | {"gradient_norm": norm, "seconds": round(self.seconds, 4)}


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures and the order in which they are learnt."""

    cache: Cache
    stream: schedule.Stream


@dataclass(frozen=True)
class Parts:
    """What an update works on. `parameters` are the LoRA's, float32; all else is frozen."""

    unet: Any
    noising: Any  # the DDPM schedule that the base model was trained with
    sizes: sdxl.Layout
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: str


def assemble(settings: Config, dtype: torch.dtype, device: str) -> Parts:
    """Load the UNet alone, put the LoRA on it and make its optimizer."""
    unet = sdxl.load_unet(settings.pretrained_model, dtype, device)
    targets = sdxl.lora_targets(settings.lora_targets)
    parameters = adapter.attach(unet, settings.rank, settings.lora_alpha(), targets, settings.seed)
    # Half-precision parameters would fail in unscaling and lose updates smaller than their spacing.
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    if settings.gradient_checkpointing == "full":
        unet.enable_gradient_checkpointing()
    unet.train()  # checkpointing works in training mode only; SDXL has no dropout
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=settings.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    return Parts(
        unet=unet,
        noising=sdxl.training_scheduler(settings.pretrained_model),
        sizes=sdxl.layout(settings.pretrained_model),
        parameters=parameters,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device, enabled=dtype == torch.float16),
        device=device,
    )


def steps(
    parts: Parts, pictures: Pictures, class_pictures: Pictures | None, settings: Config, start: int
) -> Iterator[Step]:
    """Train from update `start` on; yield a Step after each optimizer update.

    Raises RunError, before anything is changed by it, when a loss or a gradient is not a number.
    """
    total = int(settings.max_train_steps)
    accumulate = int(settings.gradient_accumulation_steps)
    for number in range(start, total):
        began = perf_counter()
        rate = schedule.learning_rate(
            number, total, settings.learning_rate, settings.lr_scheduler, settings.lr_warmup_ratio
        )
        for group in parts.optimizer.param_groups:
            group["lr"] = rate

        batches = range(number * accumulate, (number + 1) * accumulate)
        loss = _backward(parts, pictures, batches, settings, weight=1.0)
        prior = None
        if class_pictures is not None:
            prior = _backward(parts, class_pictures, batches, settings, weight=settings.prior_loss_weight)
        norm = _update(parts, settings.max_grad_norm)

        _check_finite(number + 1, loss, prior, norm, parts, _names(pictures, batches))
        yield Step(
            number=number + 1,
            total=total,
            epoch=pictures.stream.epoch_of(batches[-1]),
            loss=loss,
            prior_loss=prior,
            learning_rate=rate,
            gradient_norm=norm,
            seconds=perf_counter() - began,
        )


def losses_of_batch(parts: Parts, pictures: Pictures, number: int, settings: Config) -> Tensor:
    """Each picture's loss in batch `number` of its stream, [B]: squared error times its min-SNR weight."""
    visits = pictures.stream.batch(number)
    shape = pictures.cache.latent_shape(visits[0].sample)
    times = parts.noising.config.num_train_timesteps
    draws = [
        schedule.draw(pictures.stream, visit, shape, times, settings.caption_dropout, settings.noise_offset)
        for visit in visits
    ]
    picks = [(visit.sample, one.is_flipped) for visit, one in zip(visits, draws, strict=True)]
    batch = pictures.cache.batch(picks, parts.device)
    spread_BCHW = torch.stack([one.spread_CHW for one in draws]).to(parts.device)
    noise_BCHW = torch.stack([one.noise_CHW for one in draws]).to(parts.device)
    timesteps_B = torch.tensor([one.timestep for one in draws], device=parts.device)
    # Without its caption a picture is learnt with zeros, as the SDXL pipeline guides with zeros.
    has_words_B = torch.tensor([not one.is_wordless for one in draws], device=parts.device)

    latents_BCHW = sdxl.scale_latents(batch.mean_BCHW + batch.std_BCHW * spread_BCHW, parts.sizes)
    prediction_BCHW = sdxl.predict(
        parts.unet,
        sdxl.add_noise(parts.noising, latents_BCHW, noise_BCHW, timesteps_B),
        timesteps_B,
        batch.text_BLD * has_words_B[:, None, None],
        batch.pooled_BP * has_words_B[:, None],
        batch.time_ids_BS,
    )
    wanted_BCHW = sdxl.target(parts.noising, latents_BCHW, noise_BCHW, timesteps_B)
    error_B = (prediction_BCHW - wanted_BCHW).square().mean(dim=(1, 2, 3))
    return error_B * sdxl.min_snr(parts.noising, timesteps_B, settings.min_snr_gamma)


def save(parts: Parts, folder: Path, number: int, run_id: str) -> None:
    """Write what an unbroken run would have after update `number` into an empty folder (no pickle)."""
    state = parts.optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    save_file(adapter.state_of(parts.unet), folder / LORA_FILE)
    save_file(tensors, folder / OPTIMIZER_FILE)
    rest = {"step": number, "run": run_id, "names": list(parts.parameters), "scaler": parts.scaler.state_dict()}
    (folder / STATE_FILE).write_text(json.dumps(rest, indent=2), encoding="utf-8")


def restore(parts: Parts, folder: Path, run_id: str) -> int:
    """Take up a checkpoint; return the number of updates that it holds. Raises RunError where it is of another run."""
    rest = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    if rest["run"] != run_id or rest["names"] != list(parts.parameters):
        raise RunError(
            f"{folder} is a checkpoint of other settings or pictures. "
            "Choose another run_name, or delete the folder to begin anew."
        )
    adapter.restore(parts.unet, load_file(folder / LORA_FILE))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / OPTIMIZER_FILE).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    parts.optimizer.load_state_dict({"state": state, "param_groups": parts.optimizer.state_dict()["param_groups"]})
    if rest["scaler"]:  # empty when the run was on a machine that needs no loss scaling
        parts.scaler.load_state_dict(rest["scaler"])
    return int(rest["step"])


def _backward(parts: Parts, pictures: Pictures, batches: range, settings: Config, weight: float) -> float:
    """Gradients of the mean loss over all pictures of an update, however they are batched; returns that mean."""
    count = sum(len(pictures.stream.batch(number)) for number in batches)
    loss = torch.zeros((), device=parts.device)
    for number in batches:
        share = losses_of_batch(parts, pictures, number, settings).sum() / count
        parts.scaler.scale(share * weight).backward()
        loss += share.detach()
    return float(loss)


def _update(parts: Parts, max_grad_norm: float) -> float:
    """Clip and apply the gradients, unless they are not numbers; returns their length."""
    parts.scaler.unscale_(parts.optimizer)
    norm = nn.utils.clip_grad_norm_(parts.parameters.values(), max_grad_norm or math.inf)
    # With loss scaling an overflow is expected now and then: the scaler skips that update and lowers its scale.
    if parts.scaler.is_enabled() or bool(torch.isfinite(norm)):
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    return float(norm)


def _names(pictures: Pictures, batches: range) -> list[str]:
    samples = dict.fromkeys(visit.sample for number in batches for visit in pictures.stream.batch(number))
    return [pictures.cache.samples[sample].path.name for sample in samples]


def _check_finite(number: int, loss: float, prior: float | None, norm: float, parts: Parts, names: list[str]) -> None:
    is_bad_loss = not math.isfinite(loss) or (prior is not None and not math.isfinite(prior))
    # An overflow now and then only lowers the loss scale; below 1 nothing is learnt any more.
    is_scaled = parts.scaler.is_enabled() and parts.scaler.get_scale() >= 1
    if is_bad_loss or (not math.isfinite(norm) and not is_scaled):
        raise RunError(
            f"The {'loss' if is_bad_loss else 'gradient'} became NaN at step {number}, with {', '.join(names)}. "
            "The last checkpoint is kept. Next to try: mixed_precision bf16 or no, a smaller learning_rate (under "
            "another run_name), or leave these pictures out."
        )
