"""Drawing with a base in 4 bits: the LoRA beside its layers as in training, of every family (P13, P20, P29)."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lace_lora import adapter as adapters
from lace_lora import config, families, lora, parts, quantize, stages
from lace_lora.adapter_facts import AdapterFacts
from lace_lora.batches import in_batches
from lace_lora.errors import AdapterError
from lace_lora.families import memory
from lace_lora.run_folder import RunFolder
from lace_lora.sampling import Sampling
from lace_lora.shelf import Shelf
from tests import wide_models
from tests.training import quietly

bitsandbytes = pytest.importorskip("bitsandbytes")

PROMPTS, NEGATIVE = ("a photo of lace", "white leaf"), "grainy"
# Every family; and of a UNet, which alone has convolutions, all that a LoRA can be.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sdxl": ("sdxl", {}),
    "sdxl, convolutions": ("sdxl", {"lora_targets": "attention+ff+conv"}),
    "sdxl, DoRA": ("sdxl", {"lora_targets": "attention+ff+conv", "use_dora": True}),
    "sd15, rsLoRA": ("sd15", {"use_rslora": True, "lora_targets": "up_blocks"}),
    "sd35": ("sd35", {"lora_targets": "attention+ff"}),
    "flux, DoRA": ("flux", {"use_dora": True, "use_rslora": True}),
    "flux": ("flux", {"lora_targets": "attention+ff"}),
}


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folders of the wide models, by family; each is written once."""
    root = tmp_path_factory.mktemp("wide")
    return lambda name: str(root / name if (root / name).is_dir() else wide_models.build(name, root / name))


class Drawing:
    """A LoRA that was trained on a 4-bit base, that base as training holds it, and pictures to draw with both."""

    def __init__(self, kind: str, model_of: Callable[[str], str], folder: Path, dtype: torch.dtype) -> None:
        family, changes = KINDS[kind]
        self.model, self.dtype, self.folder = model_of(family), dtype, folder
        settings = config.load(
            preset="none", pretrained_model=self.model, quantization="nf4", cache_dir=str(folder / "cache"), rank=4,
            alpha=6, resolution=64, train_batch_size=1, max_train_steps=1, gradient_accumulation_steps=1,
            gradient_checkpointing="none", min_snr_gamma=0.0, **changes,
        )  # fmt: skip
        self.trained = parts.assemble(settings, dtype, "cpu", say=quietly)
        chance = torch.Generator().manual_seed(5)
        state = {name: one + 0.1 * torch.randn(one.shape, generator=chance)
                 for name, one in parts.learnt(self.trained).items()}  # fmt: skip
        parts.take_up(self.trained, state)
        facts = AdapterFacts(
            family=family, base_model=self.model, rank=4, alpha=6, lora_targets=("some",), versions={"lace_lora": "0"},
            use_dora=settings.use_dora, use_rslora=settings.use_rslora,
        )  # fmt: skip
        self.lora = adapters.save(state, RunFolder(folder / "run"), facts)
        negatives = [NEGATIVE if family != "flux" else ""] * 2
        self.batches = in_batches(PROMPTS, negatives, [7, 8], 32, 48, 2)
        self.sampling = Sampling("euler", 2, 4.0)
        texts = {*PROMPTS, *negatives}
        self.words = stages.encode_prompts(self.model, texts, dtype=dtype, device="cpu")

    def __call__(self, is_small: bool = True, **more: Any) -> torch.Tensor:
        """Finished latents by the stage, in 4 bits or whole."""
        four_bits = quantize.FourBits(self.folder / "cache", quietly) if is_small else None
        given = {"dtype": self.dtype, "device": "cpu", "four_bits": four_bits} | more
        [drawn] = stages.denoise(self.model, self.batches, self.words, self.sampling, **given)
        return drawn.finished_BCHW

    def by(self, denoiser: Any) -> torch.Tensor:
        """The same with a denoiser in hand."""
        [drawn] = stages.denoise_with(denoiser, self.model, self.batches, self.words, self.sampling, device="cpu")
        return drawn.finished_BCHW

    def whole(self) -> Any:
        """The denoiser as it is, float32."""
        return families.of(self.model).load_denoiser(self.model, torch.float32, "cpu")

    def dequantised(self) -> Any:
        """A plain denoiser whose weights are those of the 4-bit one."""
        whole, small = self.whole(), self.small()
        for name, layer in small.named_modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                whole.get_submodule(name).weight.copy_(lora._plain_weight(layer))
        return whole

    def small(self) -> Any:
        return quantize.load_nf4(self.model, self.dtype, "cpu", self.folder / "cache", quietly)


@pytest.fixture(scope="module")
def drawings(model_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drawing]:
    """A drawing of each kind in float32, made once; a copy, so that a test may ask for other pictures."""
    made: dict[str, Drawing] = {}

    def of(kind: str) -> Drawing:
        if kind not in made:
            made[kind] = Drawing(kind, model_of, tmp_path_factory.mktemp("drawing"), torch.float32)
        return copy.copy(made[kind])

    return of


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_design_in_four_bits_is_what_training_would_draw_bit_for_bit(
    kind: str, drawings: Callable[[str], Drawing]
) -> None:
    """P13, P20: and, by other means, what the dequantised weights draw with the LoRA fused into them."""
    drawing = drawings(kind)
    ours = drawing(lora=drawing.lora)
    assert torch.equal(ours, drawing.by(drawing.trained.denoiser))
    fused = drawing.dequantised()
    adapters.fuse(fused, drawing.lora)
    assert torch.allclose(ours, drawing.by(fused), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(ours, drawing(), atol=1e-2), "the LoRA does nothing"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sdxl, DoRA", "flux"])
def test_a_strength_is_that_of_a_fused_lora_and_none_is_the_base(kind: str, drawings: Callable[[str], Drawing]) -> None:
    """P13: 0.6 as strong, and 0 is the 4-bit base without any LoRA, bit for bit."""
    drawing = drawings(kind)
    fused = drawing.dequantised()
    adapters.fuse(fused, drawing.lora, 0.6)
    assert torch.allclose(drawing(lora=drawing.lora, lora_scale=0.6), drawing.by(fused), atol=2e-4, rtol=1e-3)
    assert torch.equal(drawing(lora=drawing.lora, lora_scale=0.0), drawing())
    assert torch.equal(drawing(), drawing.by(drawing.small().train()))


@pytest.mark.parametrize("kind", ["sdxl, convolutions", "sd35"])
def test_in_half_precision_too(kind: str, model_of: Callable[[str], str], tmp_path: Path) -> None:
    """P13: the LoRA is computed in the base's precision, as in training."""
    drawing = Drawing(kind, model_of, tmp_path, torch.bfloat16)
    assert torch.equal(drawing(lora=drawing.lora), drawing.by(drawing.trained.denoiser))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sdxl", "sd15, rsLoRA", "sd35", "flux"])
def test_it_differs_from_the_whole_base_by_what_four_bits_explain(
    kind: str, drawings: Callable[[str], Drawing]
) -> None:
    """P29: a number is off by half a gap between NF4's levels at most, and designs by what such noise explains.

    Of 16 levels from -1 to 1 the first two lie farthest apart, 0.304; the scale of a block is rounded by 1 % more.
    """
    drawing = drawings(kind)
    small, whole = drawing.small(), drawing.whole()
    sizes = {}
    for name, layer in small.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = whole.get_submodule(name).weight
            off = (lora._plain_weight(layer) - weight).view(-1, quantize.BLOCK)
            largest = weight.view(-1, quantize.BLOCK).abs().amax(dim=1, keepdim=True)
            assert bool((off.abs() <= (0.304 / 2 + 0.02) * largest).all()), name
            sizes[name] = off.square().mean().sqrt()
    plain, coarse = drawing(False), drawing()
    noisy = []
    for seed in range(3):
        disturbed, chance = drawing.whole(), torch.Generator().manual_seed(seed)
        for name, size in sizes.items():
            weight = disturbed.get_submodule(name).weight
            weight.add_(size * torch.randn(weight.shape, generator=chance))
        noisy.append(float((drawing.by(disturbed) - plain).norm()))
    assert 0 < float((coarse - plain).norm()) < 2 * max(noisy)


@torch.no_grad()
def test_edges_are_joined_for_a_repeat_in_the_loras_convolutions_too(drawings: Callable[[str], Drawing]) -> None:
    """P13."""
    drawing = drawings("sdxl, convolutions")
    drawing.batches = in_batches(PROMPTS[:1], [NEGATIVE], [7], 64, 64, 1)
    plain = drawing(lora=drawing.lora)
    drawing.sampling = Sampling("euler", 2, 4.0, repeat="straight")
    fused = drawing.dequantised()
    adapters.fuse(fused, drawing.lora)
    joined = drawing(lora=drawing.lora)
    assert torch.allclose(joined, drawing.by(fused), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(joined, plain, atol=1e-2)


def test_a_lora_of_another_model_is_refused(drawings: Callable[[str], Drawing], tmp_path: Path) -> None:
    drawing = drawings("sdxl")
    state = {name: torch.zeros(one.shape[0], 32) if name.endswith("attn1.to_q.lora_A.weight") else one
             for name, one in drawing.lora.state.items()}  # fmt: skip
    other = adapters.save(state, RunFolder(tmp_path / "other"), drawing.lora.facts)
    with pytest.raises(AdapterError, match=r"does not fit this base model: .* \(shape \(64, 64\), not \(64, 32\)\)"):
        drawing(lora=other)


def test_a_shelf_keeps_it_apart_from_the_whole_base_and_knows_its_size(drawings: Callable[[str], Drawing]) -> None:
    """P13: the second sheet is the first, bit for bit, without loading anything; another strength is another model."""
    drawing = drawings("sdxl")
    shelf, loaded = Shelf(1e9), []

    def told(is_small: bool, **more: Any) -> torch.Tensor:
        before = len(shelf._kept)
        found = drawing(is_small, lora=drawing.lora, shelf=shelf, **more)
        loaded.append(len(shelf._kept) - before)
        return found

    first, plain, again = told(True), told(False), told(True)
    assert torch.equal(first, again) and not torch.equal(first, plain)
    told(True, lora_scale=0.5)
    assert loaded == [1, 1, 0, 1]
    sizes = [size for _, size in shelf._kept.values()]
    assert min(sizes) < 0.6 * max(sizes)


@pytest.mark.parametrize("four_bits", [False, True])
def test_class_pictures_are_drawn_so_too(four_bits: bool, model_of: Callable[[str], str], tmp_path: Path) -> None:
    """P13: by the plain base."""
    model = model_of("sdxl")
    kept = quantize.FourBits(tmp_path, quietly) if four_bits else None
    [picture] = stages.draw_plain(
        model, ["white leaf"], [3], 64, 64, steps=2, guidance_scale=3.0, dtype=torch.float32, device="cpu",
        four_bits=kept, say=quietly,
    )  # fmt: skip
    assert picture.size == (64, 64) and len(list(tmp_path.glob("unet-nf4-*"))) == four_bits
