"""Count what the plan is made of, on the true architectures without weights: FLOPs, activations, parameters.

python -m benchmarks.count                 print all tables that ship, of families/known.py and the demo's; ten minutes
python -m benchmarks.count sd15 --write    count one of them and write it to lace_lora/plan_data

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

from lace_lora import adapter, families, lean, quantize
from lace_lora.demo import base_dir, refiner_dir
from lace_lora.families import known, limits
from lace_lora.families.known import Known
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded

GIB = 1024**3
TOKENS = 77
TARGETS = ("attention", "attention+ff", "attention+ff+conv", "up_blocks")
MODES = ("none", "transformers", "full")
RANKS = (8, 24)
SIDES = (32, 64, 128)  # latent cells; multiples of 8, so that every halving is exact
DTYPE = torch.bfloat16  # all bytes are those of half precision; of fp32 they are twice as many
DATA = Path(__file__).parent.parent / "lace_lora" / "plan_data"


def of_folders(base: Path, refiner: Path, name: str) -> Known:
    """An SDXL base and its refiner as the configs in two model folders describe them."""

    def config(folder: Path, part: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        return values

    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    text = tuple((kind, config(base, part), TOKENS) for part, kind in kinds.items())
    denoiser = known.SDXL.denoiser[0], config(base, "unet")
    sizes = layout(str(base))
    return Known(
        name, "sdxl", (), sizes.side_px, 0.0, denoiser, config(base, "vae"), text, known.SDXL.shape,
        refiner=config(refiner, "unet"),
    )  # fmt: skip


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


def denoiser_of(kind: str, config: Mapping[str, Any]) -> Any:
    """A denoiser of diffusers without weights, half precision."""
    import diffusers

    with torch.device("meta"), quiet():
        return getattr(diffusers, kind).from_config(dict(config)).to(DTYPE).requires_grad_(False)


def denoiser_with_lora(what: Known, targets: str, mode: str, rank: int) -> tuple[Any, int]:
    """The denoiser with a LoRA on it as it is trained, both in half precision; and the LoRA's parameters."""
    family = families.named(what.family)
    denoiser = denoiser_of(*what.denoiser)
    shape = adapter.Shape(rank, rank, targets)
    parameters = adapter.attach(denoiser, family.DENOISER, shape, 0, family.lora_targets(targets))
    _in_half(parameters.values())
    denoiser.train()
    lean.make_lean(denoiser)
    family.checkpoint_activations(denoiser, mode)
    return denoiser, sum(one.numel() for one in parameters.values())


def denoiser_pass(what: Known, denoiser: Any, height: int, width: int) -> Callable[[], Tensor]:
    """A prediction of the base's denoiser, or of its refiner's, for noisy latents of so many cells."""
    config, family = denoiser.config, families.named(what.family)

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta", dtype=DTYPE)

    pooled, numbers = _told(what, config)
    words = Encoded(empty(what.tokens, _text_width(config)), empty(pooled))
    given = empty(what.vae["latent_channels"], height, width), torch.zeros(1, device="meta")
    return lambda: family.predict(denoiser, *given, words, torch.zeros(1, numbers, device="meta"))


def encoded(what: Known) -> dict[str, int]:
    """What is kept of a picture and of a caption once they are encoded: channels a cell, numbers a caption."""
    config = what.denoiser[1]
    caption = what.tokens * _text_width(config) + _told(what, config)[0]
    return {"channels": what.vae["latent_channels"], "caption": caption}


def guided_rows(what: Known) -> int:
    """Rows of a pass that follows a prompt: two, or one where the denoiser is told how strictly to follow it."""
    return 1 if families.named(what.family).GUIDANCE == "embedded" else 2


def _text_width(config: Mapping[str, Any]) -> int:
    return int(config.get("cross_attention_dim") or config["joint_attention_dim"])


def _told(what: Known, config: Mapping[str, Any]) -> tuple[int, int]:
    """Width of the pooled text, and how many size numbers."""
    if config.get("addition_embed_type") == "text_time":
        pooled = int(what.text[-1][1]["projection_dim"])
        return pooled, (config["projection_class_embeddings_input_dim"] - pooled) // config["addition_time_embed_dim"]
    return int(config.get("pooled_projection_dim") or 0), 0


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


def text_of(kind: str, config: Mapping[str, Any], rank: int = 0) -> tuple[Any, int]:
    """A text encoder without weights, with a LoRA where a rank is given; and that LoRA's parameters."""
    import transformers

    made = getattr(transformers, kind)
    with torch.device("meta"), quiet():
        encoder = made(made.config_class(**dict(config))).to(DTYPE).requires_grad_(False)
    if not rank:
        return encoder, 0
    parameters = adapter.attach(encoder, "text_encoder", adapter.Shape(rank, rank, "attention"), 0)
    _in_half(parameters.values())
    return encoder.train(), sum(one.numel() for one in parameters.values())


def text_pass(encoder: Any, tokens: int = TOKENS) -> Callable[[], Tensor]:
    """Encode one caption."""
    ids_BL = torch.zeros(1, tokens, dtype=torch.long, device="meta")
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


def training(what: Known, targets: str, mode: str) -> dict[str, Any]:
    """Coefficients of one picture's forward and backward pass: FLOP and peak bytes, and those a rank."""
    found: dict[tuple[int, int], Pass] = {}
    for rank in RANKS:
        denoiser, _ = denoiser_with_lora(what, targets, mode, rank)
        for side in SIDES if rank == RANKS[0] else (SIDES[0], SIDES[-1]):
            found[rank, side] = measured(denoiser, denoiser_pass(what, denoiser, side, side), learns=True)
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


def kinds_of(what: Known) -> tuple[str, ...]:
    """The values of lora_targets that mean something for its family."""
    limit = limits.LIMITS[what.family].get("lora_targets")
    return tuple(kind for kind in TARGETS if limit is None or kind in limit.allowed)


def counted(
    what: Known, say: Callable[[str], None] = lambda line: None, kinds: Sequence[str] | None = None
) -> dict[str, Any]:
    """The table of coefficients of a model; lace_lora/coefficients.py says what they mean.

    kinds  of LoRA that are counted; all, unless time is short
    """
    table: dict[str, Any] = {"shape": what.shape_values, "encoded": encoded(what), "guided_rows": guided_rows(what)}
    networks = {"denoiser": what.denoiser} | ({"refiner": (what.denoiser[0], what.refiner)} if what.refiner else {})
    for name, (kind, config) in networks.items():
        denoiser = denoiser_of(kind, config)
        table[name] = _weights(denoiser) | _of_size(denoiser, partial(denoiser_pass, what, denoiser))
    vae = vae_of(what.vae)
    halves = {"encode": vae.encoder, "decode": vae.decoder}
    table["vae"] = _weights(vae) | {
        way: {"layers": layers(half)} | _of_size(vae, partial(vae_pass, vae, way)) for way, half in halves.items()
    }
    table["text"] = text_rows(what)
    table["training"] = {}
    for targets in kinds or kinds_of(what):
        parameters = denoiser_with_lora(what, targets, "none", RANKS[0])[1]
        table["training"][targets] = {"parameters_a_rank": parameters // RANKS[0]}
        for mode in MODES:
            say(f"{what.name}: {targets}, checkpointing {mode}")
            table["training"][targets][mode] = training(what, targets, mode)
    return table


def text_rows(what: Known) -> list[dict[str, Any]]:
    """Coefficients of each text encoder; nothing for training where the family's cannot be trained."""
    limit = limits.LIMITS[what.family].get("train_text_encoder")
    return [_text(*one, learns=limit is None or True in limit.allowed) for one in what.text]


def _weights(module: Any) -> dict[str, int]:
    """Numbers in all, in the largest tensor, and in layers that NF4 makes smaller; and how many layers have numbers."""
    small = [layer for _, _, layer in quantize._linear_layers(module) if quantize.can_be_quantised(layer)]
    return {
        "parameters": sum(one.numel() for one in module.state_dict().values()),  # SD 3.5 keeps a table of places beside
        "largest": largest(module),
        "quantizable": sum(layer.weight.numel() for layer in small),
        "layers": layers(module),
    }


def largest(module: Any) -> int:
    """Numbers of the largest tensor: a network passes through the computer's memory tensor by tensor."""
    return max(one.numel() for one in module.state_dict().values())


def layers(module: Any) -> int:
    """Layers that have numbers of their own: each is a few kernels, which take time however small a picture is."""
    return sum(1 for one in module.modules() if next(one.parameters(recurse=False), None) is not None)


def _text(kind: str, config: Mapping[str, Any], tokens: int, learns: bool) -> dict[str, Any]:
    """Coefficients of a text encoder; those of training are [all, a rank]."""
    plain, parameters = text_of(kind, config)
    read = measured(plain, text_pass(plain, tokens))
    trained = {}
    for rank in RANKS if learns else ():
        encoder, parameters = text_of(kind, config, rank)
        trained[rank] = measured(encoder, text_pass(encoder, tokens), learns=True)
    step = {}
    for name in ("flop", "peak"):
        low, high = (float(getattr(trained[rank], name)) if learns else 0.0 for rank in RANKS)
        slope = (high - low) / (RANKS[1] - RANKS[0])
        step[f"step_{name}"] = [low - RANKS[0] * slope, slope]
    return {
        "parameters": sum(one.numel() for one in plain.parameters()), "largest": largest(plain),
        "layers": layers(plain),
        "flop": read.flop, "peak": read.peak, "parameters_a_rank": parameters // RANKS[-1],
    } | step  # fmt: skip


def as_text(table: Mapping[str, Any]) -> str:
    """The table as it ships."""
    return json.dumps(table, indent=1) + "\n"


def shipped() -> dict[str, Known]:
    """The architectures whose tables ship, by file name."""
    return {**known.ALL, "demo": of_folders(base_dir(), refiner_dir(), "demo")}


def main() -> None:
    """Print or write the tables that ship."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.count", description="Count what the plan is made of.")
    parser.add_argument(
        "models", nargs="*", default=list(shipped()), help="such as sdxl or demo; all where none is named"
    )
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
