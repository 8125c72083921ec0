"""Count what the plan is made of, on the true architectures without weights: FLOPs, activations, parameters.

python -m benchmarks.count            print both tables that ship, SDXL's and the demo's; about ten minutes
python -m benchmarks.count --write    and write them to lace_lora/plan_data

Nothing is computed: the networks lie on torch's meta device. Attention is replaced by one that keeps what a fused
kernel keeps (query, key, value, output and one number a row), since the meta device would unfold it. Every number grows
with the latent cells n of a picture and with the LoRA's rank r as a polynomial (shapes and nothing else decide it), so
a few sizes and two ranks give its coefficients exactly; those of memory, which are a maximum over time, within 1 %.
tests/test_count.py holds the polynomials against sizes and ranks that they were not made from.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77)
"""

import argparse
import contextlib
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from lace_lora import adapter, lean, quantize
from lace_lora.demo import base_dir, refiner_dir
from lace_lora.families import sdxl
from lace_lora.families.quiet import quiet
from lace_lora.families.random_model import SDXL_REFINER_UNET, SDXL_UNET

GIB = 1024**3
TOKENS = 77
TARGETS = ("attention", "attention+ff", "attention+ff+conv", "up_blocks")
MODES = ("none", "transformers", "full")
SHAPE = ("block_out_channels", "cross_attention_dim", "layers_per_block", "transformer_layers_per_block")
RANKS = (8, 24)
SIDES = (32, 64, 128)  # latent cells; multiples of 8, so that every halving is exact
DTYPE = torch.bfloat16  # all bytes are those of half precision; of fp32 they are twice as many
DATA = Path(__file__).parent.parent / "lace_lora" / "plan_data"
SDXL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SDXL_TEXT = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
     "projection_dim": 768},
    {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
     "projection_dim": 1280},
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """The configs of all networks of a base model and its refiner."""

    unet: Mapping[str, Any]
    refiner: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: tuple[Mapping[str, Any], Mapping[str, Any]]

    @property
    def pooled(self) -> int:
        """Width of the pooled text."""
        return int(self.text[1]["projection_dim"])


SDXL = Architecture(SDXL_UNET, SDXL_REFINER_UNET, SDXL_VAE, SDXL_TEXT)


def of_folders(base: Path, refiner: Path) -> Architecture:
    """What the configs in two model folders say."""

    def config(folder: Path, part: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        return values

    unet, refiner_unet, vae = config(base, "unet"), config(refiner, "unet"), config(base, "vae")
    return Architecture(unet, refiner_unet, vae, (config(base, "text_encoder"), config(base, "text_encoder_2")))


# -- one pass on the meta device --


@dataclass(frozen=True)
class Pass:
    """What one pass takes: FLOPs (two a multiply-add), and bytes that it holds at most beside the weights."""

    flop: int
    peak: int


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, adds up PyTorch's own FLOP formulas, and the bytes of tensors that are made and alive.

    FlopCounterMode would keep tensors alive that checkpointing gives back, so one pass could not do both.

    weights  of the module, which are there already; a view of one is no new tensor
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flop, self.now, self.peak = 0, 0, 0
        self._known: dict[int, Any] = {one.untyped_storage()._cdata: None for one in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run the operation, count it and note its results."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flop += int(formula(*args, **(kwargs or {}), out_val=result))
        elif func._overloadpacket is torch.ops.aten.addmm_:  # PyTorch has no formula for what is added in place
            self.flop += 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
        for one in tree_iter(result):
            if isinstance(one, Tensor):
                self._note(one)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.finalize(storage, self._forget, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size


_counters: list[Counter] = []


class _Attention(torch.autograd.Function):
    """Fused attention's shapes: 4·N·M·d forward, 10 backward (five products where forward has two)."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        _count(4 * query[..., 0].numel() * key.shape[-2] * query.shape[-1])
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        context.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = context.saved_tensors
        _count(10 * query[..., 0].numel() * key.shape[-2] * query.shape[-1])
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _count(flop: int) -> None:
    for counter in _counters:
        counter.flop += flop


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """In place of PyTorch's, which has no fused kernel for the meta device."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(query, key, value)  # type: ignore[no-any-return, no-untyped-call]

    # A lean LoRA asks whether autocast is on, which PyTorch cannot say of the meta device.
    is_off = mock.patch.object(torch, "is_autocast_enabled", lambda *_: False)
    with is_off, mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fused):
        yield


def measured(module: Any, work: Callable[[], Tensor], learns: bool = False) -> Pass:
    """One pass of a module; with `learns` backward too, its LoRA's gradients dropped as soon as they are made."""
    counter = Counter([*module.parameters(), *module.buffers()])
    _counters.append(counter)
    try:
        with fused_attention(), counter, torch.set_grad_enabled(learns):
            output = work()
            if learns:
                output.square().mean().backward()  # type: ignore[no-untyped-call]
    finally:
        _counters.pop()
    return Pass(counter.flop, counter.peak)


# -- the networks --


def unet_of(config: Mapping[str, Any]) -> Any:
    """A UNet without weights, half precision."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"), quiet():
        return UNet2DConditionModel.from_config(dict(config)).to(DTYPE).requires_grad_(False)


def unet_with_lora(config: Mapping[str, Any], targets: str, mode: str, rank: int) -> tuple[Any, int]:
    """The UNet with a LoRA on it as it is trained, both in half precision; and the LoRA's parameters."""
    unet = unet_of(config)
    parameters = adapter.attach(unet, "unet", adapter.Shape(rank, rank, targets), 0)
    _in_half(parameters.values())
    unet.train()
    lean.make_lean(unet)
    sdxl.checkpoint_activations(unet, mode)
    return unet, sum(one.numel() for one in parameters.values())


def unet_pass(unet: Any, height: int, width: int, pooled: int = 1280, batch: int = 1) -> Callable[[], Tensor]:
    """A prediction for noisy latents of so many cells. pooled: width of the pooled text, 1280 for SDXL."""
    config = unet.config
    numbers = (config.projection_class_embeddings_input_dim - pooled) // config.addition_time_embed_dim

    def empty(*shape: int) -> Tensor:
        return torch.empty(batch, *shape, device="meta", dtype=DTYPE)

    given = empty(4, height, width), torch.zeros(batch, device="meta"), empty(TOKENS, config.cross_attention_dim)
    return lambda: sdxl.predict(unet, *given, empty(pooled), torch.zeros(batch, numbers, device="meta"))


def vae_of(config: Mapping[str, Any]) -> Any:
    """A VAE without weights, half precision."""
    from diffusers import AutoencoderKL

    with torch.device("meta"), quiet():
        return AutoencoderKL.from_config(dict(config)).to(DTYPE).requires_grad_(False)


def vae_pass(vae: Any, way: str, height: int, width: int) -> Callable[[], Tensor]:
    """Encode or decode a picture of so many latent cells."""
    if way == "decode":
        latents_BCHW = torch.empty(1, vae.config.latent_channels, height, width, device="meta", dtype=DTYPE)
        return lambda: vae.decode(latents_BCHW, return_dict=False)[0]  # type: ignore[no-any-return]
    px = 2 ** (len(vae.config.block_out_channels) - 1)
    pixels_BCHW = torch.empty(1, 3, height * px, width * px, device="meta", dtype=DTYPE)
    return lambda: vae.encode(pixels_BCHW).latent_dist.mean  # type: ignore[no-any-return]


def text_of(config: Mapping[str, Any], has_projection: bool, rank: int = 0) -> tuple[Any, int]:
    """A text encoder without weights, with a LoRA where a rank is given; and that LoRA's parameters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if has_projection else CLIPTextModel
    with torch.device("meta"), quiet():
        encoder = kind(CLIPTextConfig(**dict(config))).to(DTYPE).requires_grad_(False)
    if not rank:
        return encoder, 0
    parameters = adapter.attach(encoder, "text_encoder", adapter.Shape(rank, rank, "attention"), 0)
    _in_half(parameters.values())
    return encoder.train(), sum(one.numel() for one in parameters.values())


def text_pass(encoder: Any) -> Callable[[], Tensor]:
    """Encode one caption."""
    ids_BL = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    return lambda: encoder(ids_BL, output_hidden_states=True).hidden_states[-2]  # type: ignore[no-any-return]


def _in_half(parameters: Any) -> None:
    """Working copies as in training; their gradients go as soon as they are made, and are planned apart."""
    for parameter in parameters:
        parameter.data = parameter.data.to(DTYPE)
        parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))


# -- polynomials --


def _polynomial(points: Sequence[tuple[int, float]]) -> list[float]:
    """Coefficients [1, n, n²…] through as many points."""
    cells, values = zip(*points, strict=True)
    matrix = torch.tensor([[float(n) ** power for power in range(len(points))] for n in cells], dtype=torch.float64)
    found = torch.linalg.solve(matrix, torch.tensor(values, dtype=torch.float64)).tolist()
    return [round(one, 3) + 0.0 for one in found]  # and no -0.0


def _line(points: Sequence[tuple[int, float]]) -> list[float]:
    return _polynomial([points[0], points[-1]])


def _of_size(module: Any, work: Callable[[int, int], Callable[[], Tensor]]) -> dict[str, list[float]]:
    """FLOP and peak of a pass without gradients."""
    found = [(side * side, measured(module, work(side, side))) for side in SIDES]
    return {
        "flop": _polynomial([(cells, one.flop) for cells, one in found]),
        "peak": _line([(cells, one.peak) for cells, one in found]),
    }


def training(what: Architecture, targets: str, mode: str) -> dict[str, Any]:
    """Coefficients of one picture's forward and backward pass: FLOP and peak bytes, and those a rank."""
    found: dict[tuple[int, int], Pass] = {}
    for rank in RANKS:
        unet, _ = unet_with_lora(what.unet, targets, mode, rank)
        for side in SIDES if rank == RANKS[0] else (SIDES[0], SIDES[-1]):
            found[rank, side] = measured(unet, unet_pass(unet, side, side, what.pooled), learns=True)
    low, high = RANKS
    table = {}
    for name in ("flop", "peak"):
        at = {key: float(getattr(one, name)) for key, one in found.items()}
        slope = [(side**2, (at[high, side] - at[low, side]) / (high - low)) for side in (SIDES[0], SIDES[-1])]
        a_rank = _line(slope)
        rest = [(side**2, at[low, side] - low * (a_rank[0] + a_rank[1] * side**2)) for side in SIDES]
        table[name] = _polynomial(rest) if name == "flop" else _line(rest)
        table[f"{name}_a_rank"] = a_rank
    return table


def counted(
    what: Architecture, say: Callable[[str], None] = lambda line: None, kinds: Sequence[str] = TARGETS
) -> dict[str, Any]:
    """The table of coefficients of a model; lace_lora/coefficients.py says what they mean.

    kinds  of LoRA that are counted; all, unless time is short
    """
    table: dict[str, Any] = {"shape": {name: what.unet[name] for name in SHAPE}}
    for name, config in (("unet", what.unet), ("refiner", what.refiner)):
        unet = unet_of(config)
        table[name] = _weights(unet) | _of_size(unet, partial(unet_pass, unet, pooled=what.pooled))
    vae = vae_of(what.vae)
    halves = {"encode": vae.encoder, "decode": vae.decoder}
    table["vae"] = _weights(vae) | {
        way: {"layers": layers(half)} | _of_size(vae, partial(vae_pass, vae, way)) for way, half in halves.items()
    }
    table["text"] = [_text(config, number == 1) for number, config in enumerate(what.text)]
    table["training"] = {}
    for targets in kinds:
        parameters = unet_with_lora(what.unet, targets, "none", RANKS[0])[1]
        table["training"][targets] = {"parameters_a_rank": parameters // RANKS[0]}
        for mode in MODES:
            say(f"{targets}, checkpointing {mode}")
            table["training"][targets][mode] = training(what, targets, mode)
    return table


def _weights(module: Any) -> dict[str, int]:
    """Numbers in all, and in the layers that NF4 makes smaller; and how many layers have numbers."""
    small = [layer for _, _, layer in quantize._linear_layers(module) if quantize.can_be_quantised(layer)]
    return {
        "parameters": sum(one.numel() for one in module.parameters()),
        "quantizable": sum(layer.weight.numel() for layer in small),
        "layers": layers(module),
    }


def layers(module: Any) -> int:
    """Layers that have numbers of their own: each is a few kernels, which take time however small a picture is."""
    return sum(1 for one in module.modules() if next(one.parameters(recurse=False), None) is not None)


def _text(config: Mapping[str, Any], has_projection: bool) -> dict[str, Any]:
    """Coefficients of a text encoder; those of training are [all, a rank]."""
    plain, _ = text_of(config, has_projection)
    read = measured(plain, text_pass(plain))
    trained = {}
    for rank in RANKS:
        encoder, parameters = text_of(config, has_projection, rank)
        trained[rank] = measured(encoder, text_pass(encoder), learns=True)
    step = {}
    for name in ("flop", "peak"):
        low, high = (float(getattr(trained[rank], name)) for rank in RANKS)
        slope = (high - low) / (RANKS[1] - RANKS[0])
        step[f"step_{name}"] = [low - RANKS[0] * slope, slope]
    return {
        "parameters": sum(one.numel() for one in plain.parameters()), "layers": layers(plain),
        "flop": read.flop, "peak": read.peak, "parameters_a_rank": parameters // RANKS[-1],
    } | step  # fmt: skip


def as_text(table: Mapping[str, Any]) -> str:
    """The table as it ships."""
    return json.dumps(table, indent=1) + "\n"


def shipped() -> dict[str, Architecture]:
    """The architectures whose tables ship, by file name."""
    return {"sdxl": SDXL, "demo": of_folders(base_dir(), refiner_dir())}


def main() -> None:
    """Print or write the tables that ship."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.count", description="Count what the plan is made of.")
    parser.add_argument("models", nargs="*", default=list(shipped()), help="sdxl, demo or both")
    parser.add_argument("--write", action="store_true", help="to lace_lora/plan_data")
    given = parser.parse_args()
    for name in given.models:
        text = as_text(counted(shipped()[name], print if given.write else lambda line: None))
        if given.write:
            DATA.mkdir(exist_ok=True)
            (DATA / f"{name}.json").write_text(text, encoding="utf-8")
        else:
            print(text, end="")


if __name__ == "__main__":
    main()
