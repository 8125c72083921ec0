"""Repeats: rolling what goes in rolls what comes out, half-drop equals its doubled tile, and seams are told."""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lace_lora import adapter as adapters
from lace_lora import demo, lean, repeats, sampling, stages
from lace_lora.demo import draw
from lace_lora.errors import ModelError, SettingsError
from lace_lora.families import memory, sdxl
from lace_lora.sampling import Sampling

SHIFTED = ("half-drop", "brick")
ALL_ROUND = ("straight", *SHIFTED)
REPEATS = (*ALL_ROUND, "band")
PARTS = ("base", "refiner", "decoder", "encoder")
Part = tuple[nn.Module, Callable[[Tensor], Tensor], Tensor, int, int]


# -- networks --


@pytest.fixture(scope="module")
def parts(tiny_sdxl: Path, tiny_refiner: Path) -> dict[str, Part]:
    """For each part: the module, what it does, an input, the step by which it may be rolled, and cells out for one in.

    Steps of encoder and UNets are those of their coarsest level (8 px, 4 cells); encoder's cells out are given as -8.
    """
    base, refiner = (sdxl.load_denoiser(str(model), torch.float32, "cpu") for model in (tiny_sdxl, tiny_refiner))
    vae = sdxl.load_vae(str(tiny_sdxl), torch.float32, "cpu")
    latents, pixels = drawn(2, 4, 16, 24), drawn(1, 3, 64, 96)
    return {
        "base": (base, partial(predicted, base, 32, 6), latents, 4, 1),
        "refiner": (refiner, partial(predicted, refiner, 16, 5), latents, 4, 1),
        "decoder": (vae, partial(decoded, vae), latents[:1], 1, 8),
        "encoder": (vae, partial(encoded, vae), pixels, 8, -8),
    }


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predicted(unet: nn.Module, width: int, numbers: int, latents_BCHW: Tensor) -> Tensor:
    """With every input: text, pooled text, another time for each picture, and size numbers."""
    count = len(latents_BCHW)
    text, pooled = drawn(count, 77, width, seed=1), drawn(count, 16, seed=2)
    ids = torch.tensor([192.0, 128, 0, 0, 128, 192])[:numbers].repeat(count, 1)
    with torch.no_grad():
        return sdxl.predict(unet, latents_BCHW, torch.tensor([700, 30])[:count], sdxl.Encoded(text, pooled), ids)


def decoded(vae: Any, latents_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.decode(latents_BCHW, return_dict=False)[0]


def encoded(vae: Any, pixels_BCHW: Tensor) -> Tensor:
    return sdxl.encode_images(vae, pixels_BCHW)[0]


def error(ours: Tensor, wanted: Tensor) -> float:
    """The largest difference, in parts of the values' own size."""
    return float((ours - wanted).abs().max() / wanted.abs().max())


def rolling_error(part: Part, repeat: repeats.Repeat, steps_down: int, steps_right: int, lattice: Any = None) -> float:
    """How much what comes out of a rolled input differs from what came out, rolled."""
    _, run, cells, step, out = part
    down, right = steps_down * step, steps_right * step
    moved = [side * out if out > 0 else side // -out for side in (down, right)]
    lattice = lattice or repeat
    return error(run(repeats.rolled(cells, lattice, down, right)), repeats.rolled(run(cells), lattice, *moved))


def ways(repeat: str) -> tuple[tuple[int, int], ...]:
    """Steps down and right, past the tile's edge among them."""
    return ((0, 1), (0, 5)) if repeat == "band" else ((1, 0), (3, 5), (-1, 30))


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("name", PARTS)
def test_rolling_what_goes_in_rolls_what_comes_out(parts: dict[str, Part], name: str, repeat: repeats.Repeat) -> None:
    """L15: no place in the tile is an edge, so there is none to be seen."""
    with repeats.padded(parts[name][0], repeat):
        assert max(rolling_error(parts[name], repeat, *way) for way in ways(repeat)) < 1e-5


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("name", PARTS)
def test_without_padding_it_does_not(parts: dict[str, Part], name: str, repeat: repeats.Repeat) -> None:
    """L15: so the test above can fail; none is no padding either."""
    with repeats.padded(parts[name][0], "none"):
        assert min(rolling_error(parts[name], "none", *way, lattice=repeat) for way in ways(repeat)) > 1e-3


@pytest.mark.parametrize("other", ["straight", "brick", "band"])
def test_another_repeats_padding_does_not_do(parts: dict[str, Part], other: repeats.Repeat) -> None:
    """L15: a half-drop drawn with any other padding has seams."""
    with repeats.padded(parts["base"][0], other):
        assert rolling_error(parts["base"], other, 1, 5, lattice="half-drop") > 1e-3


def test_a_band_keeps_its_foot(parts: dict[str, Part]) -> None:
    """L15: up and down it is no repeat, and its edges there are the network's own."""
    with repeats.padded(parts["base"][0], "band"):
        assert rolling_error(parts["base"], "band", 1, 0, lattice="straight") > 1e-3


@contextmanager
def circular(module: nn.Module) -> Iterator[Any]:
    """A copy that pads by torch's own circular mode: the oracle."""
    oracle = copy.deepcopy(module)
    for conv in oracle.modules():
        if isinstance(conv, nn.Conv2d):
            conv.padding_mode = "circular"
    yield oracle


@pytest.mark.parametrize("repeat", ALL_ROUND)
@pytest.mark.parametrize("name", ["base", "refiner", "decoder"])
def test_a_repeat_equals_its_doubled_tile_with_circular_padding(
    parts: dict[str, Part], name: str, repeat: repeats.Repeat
) -> None:
    """L15: two columns of a half-drop, or two rows of a brick, are a tile that repeats straight."""
    module, run, cells, _, _ = parts[name]
    with repeats.padded(module, repeat):
        ours = run(cells)
    half = cells.shape[-2] // 2 if repeat == "half-drop" else cells.shape[-1] // 2
    doubled = {
        "straight": cells,
        "half-drop": torch.cat([cells, cells.roll(half, -2)], -1),
        "brick": torch.cat([cells, cells.roll(half, -1)], -2),
    }[repeat]
    with circular(module) as oracle:
        whole = run.func(oracle, *run.args[1:], doubled)  # type: ignore[attr-defined]
    assert error(ours, whole[..., : ours.shape[-2], : ours.shape[-1]]) < 1e-5
    assert error(ours, run(cells)) > 1e-3


def test_a_bands_convolution_by_hand() -> None:
    """L15: torch's circular padding along, zeros above and below; at a stride as well."""
    cells = drawn(1, 2, 6, 8)
    for stride in (1, 2):
        conv = nn.Conv2d(2, 3, 3, stride=stride, padding=1)
        wide = functional.pad(functional.pad(cells, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1))
        with torch.no_grad(), repeats.padded(conv, "band"):
            assert torch.equal(conv(cells), functional.conv2d(wide, conv.weight, conv.bias, stride))


def test_uneven_kernels_pad_each_axis_by_its_own() -> None:
    """L15."""
    conv, cells = nn.Conv2d(2, 3, (3, 5), padding=(1, 2), dilation=1), drawn(1, 2, 6, 8)
    with torch.no_grad(), repeats.padded(conv, "straight"):
        wide = functional.pad(cells, (2, 2, 1, 1), mode="circular")
        assert torch.equal(conv(cells), functional.conv2d(wide, conv.weight, conv.bias))


# -- left as they were --


def looks(module: nn.Module) -> list[tuple[str, list[str], int]]:
    """Each module's own attributes, and where its weights lie."""
    return [
        (name, sorted(vars(one)), sum(weight.data_ptr() for weight in one.parameters(recurse=False)))
        for name, one in module.named_modules()
    ]


class Mishap(Exception):
    """Something that goes wrong in the middle."""


@pytest.mark.parametrize("name", PARTS)
def test_all_is_as_it_was_afterwards_also_after_a_mishap(parts: dict[str, Part], name: str) -> None:
    """L16: a plain picture drawn after a repeat is the one drawn before, bit for bit."""
    module, run, cells, _, _ = parts[name]
    before, plain = looks(module), run(cells)
    with pytest.raises(Mishap), repeats.padded(module, "half-drop"):
        assert not torch.equal(run(cells), plain)
        raise Mishap
    assert looks(module) == before and torch.equal(run(cells), plain)


def test_a_network_that_fails_half_way_is_put_back(parts: dict[str, Part]) -> None:
    """L16: an error from within the forward pass."""
    module, run, cells, _, _ = parts["base"]
    before = looks(module)
    with pytest.raises(SettingsError), repeats.padded(module, "half-drop"):
        run(cells[..., :12, :])
    assert looks(module) == before


def test_of_two_repeats_the_inner_one_holds_and_then_the_outer_again(parts: dict[str, Part]) -> None:
    """L16: and the same one can be used twice."""
    module, run, cells, _, _ = parts["base"]
    alone = {}
    for repeat in ALL_ROUND:
        with repeats.padded(module, repeat):
            alone[repeat] = run(cells)
    before = looks(module)
    with repeats.padded(module, "brick"):
        with repeats.padded(module, "half-drop"), repeats.padded(module, "straight"):
            assert torch.equal(run(cells), alone["straight"])
        with repeats.padded(module, "none"):
            assert torch.equal(run(cells), alone["brick"])
        with repeats.padded(module, "brick"):
            assert torch.equal(run(cells), alone["brick"])
    assert looks(module) == before


def test_weights_are_neither_copied_nor_moved(parts: dict[str, Part]) -> None:
    """L15: a UNet of 5 GB fits once; what is saved from it has the same names."""
    module = parts["base"][0]
    pointers = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    with repeats.padded(module, "half-drop"):
        assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == pointers


def test_other_attributes_of_the_same_name_are_kept() -> None:
    """L16: what someone else put on one layer is there again afterwards."""
    conv, cells = nn.Conv2d(2, 2, 3, padding=1), drawn(1, 2, 4, 4)
    theirs = lambda cells, weight, bias: functional.conv2d(cells, weight, bias, padding=1) + 1  # noqa: E731
    conv._conv_forward = theirs  # type: ignore[method-assign, assignment]
    with repeats.padded(conv, "straight"):
        conv(cells)
    assert vars(conv)["_conv_forward"] is theirs


def test_a_vae_that_decodes_in_tiles_is_refused(parts: dict[str, Part]) -> None:
    """L15: each of its tiles would get edges of its own."""
    vae: Any = parts["decoder"][0]
    vae.enable_tiling()
    try:
        with pytest.raises(ModelError, match="Turn its tiling off"), repeats.padded(vae, "straight"):
            pass
        with repeats.padded(vae, "none"):
            pass
    finally:
        vae.disable_tiling()


class OwnPadding(nn.Conv2d):
    """A convolution that does not pad as nn.Conv2d does."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(input, (1, 1, 1, 1), mode="reflect"), self.weight)


@pytest.mark.parametrize("odd", [OwnPadding(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding="same")])
def test_a_network_that_pads_in_its_own_way_is_refused(odd: nn.Module) -> None:
    """L15: silence would mean a seam."""
    whole = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), odd)
    before = looks(whole)
    with pytest.raises(ModelError, match="^1 of this network pads in a way of its own"):
        with repeats.padded(whole, "straight"):
            pass
    assert looks(whole) == before


# -- with a LoRA --


@pytest.fixture(scope="module")
def with_lora(tiny_sdxl: Path) -> tuple[nn.Module, nn.Module]:
    """The same LoRA, of convolutions too, unfused with lean layers and fused."""
    shape = adapters.Shape(4, 8, "attention+ff+conv")
    unfused, fused = (sdxl.load_denoiser(str(tiny_sdxl), torch.float32, "cpu") for _ in range(2))
    adapters.attach(unfused, "unet", shape, 3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in unfused.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    assert lean.make_lean(unfused) > 0
    facts = adapters.AdapterFacts("sdxl", str(tiny_sdxl), 4, 8, ())
    state = {name: tensor.detach().clone() for name, tensor in adapters.state_of({"unet": unfused}).items()}
    adapters.fuse(fused, adapters.Adapter(facts, state, Path("lora.safetensors")))
    return unfused.eval(), fused


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_lora_repeats_too_fused_and_unfused(
    with_lora: tuple[nn.Module, nn.Module], parts: dict[str, Part], repeat: repeats.Repeat
) -> None:
    """L15: a LoRA's own convolutions are padded as those that it changes."""
    results = []
    for unet in with_lora:
        part = (unet, partial(predicted, unet, 32, 6), *parts["base"][2:])
        before = looks(unet)
        with repeats.padded(unet, repeat):
            assert max(rolling_error(part, repeat, *way) for way in ways(repeat)) < 1e-5
            results.append(part[1](part[2]))
        assert looks(unet) == before
    with repeats.padded(parts["base"][0], repeat):
        plain = parts["base"][1](parts["base"][2])
    assert error(*results) < 1e-5 and error(results[0], plain) > 1e-2


# -- sizes --


@pytest.mark.parametrize(
    ("repeat", "size", "step", "message"),
    [
        (
            "straight",
            (1000, 1024),
            32,
            "width is 1000 px but a straight repeat needs a multiple of 32; use 992 or 1024.",
        ),
        (
            "half-drop",
            (1024, 960),
            64,
            "height is 960 px but a half-drop repeat needs a multiple of 128; use 896 or 1024.",
        ),
        ("brick", (96, 64), 64, "width is 96 px but a brick repeat needs a multiple of 128; use 128."),
        ("band", (1000, 1000), 32, "width is 1000 px but a band repeat needs a multiple of 32; use 992 or 1024."),
    ],
)
def test_a_size_that_cannot_repeat_is_told_with_the_nearest_that_can(
    repeat: repeats.Repeat, size: tuple[int, int], step: int, message: str
) -> None:
    """L15."""
    with pytest.raises(SettingsError) as caught:
        repeats.check_size(repeat, *size, step)
    assert str(caught.value) == message


def test_both_sides_are_told_at_once() -> None:
    """L15."""
    with pytest.raises(SettingsError) as caught:
        repeats.check_size("half-drop", 1000, 1000, 32)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["width", "height"]


def test_sdxls_own_sizes_repeat_in_every_way_with_its_refiner() -> None:
    """L17: 1024 px, the side that it was trained at; none takes any size."""
    for repeat in REPEATS:
        repeats.check_size(repeat, 1024, 1024, 64)
    repeats.check_size("none", 1000, 1003, 64)


@pytest.mark.parametrize("repeat", REPEATS)
def test_the_network_takes_the_sizes_that_are_allowed_and_no_others(
    parts: dict[str, Part], repeat: repeats.Repeat
) -> None:
    """L15: the size is asked for before anything is loaded, so the answer must be the network's own."""
    unet, run, _, _, _ = parts["base"]
    for height, width in itertools.product((4, 6, 8, 12, 15), (4, 8, 9, 12)):
        answers = []
        with repeats.padded(unet, repeat):
            for ask in (lambda: repeats.check_size(repeat, width * 8, height * 8, 32), lambda: run(cells)):  # noqa: B023
                cells = drawn(1, 4, height, width)
                try:
                    ask()
                    answers.append(True)
                except SettingsError:
                    answers.append(False)
        assert answers[0] == answers[1], f"{repeat} {width} × {height}: allowed {answers[0]}, works {answers[1]}"


# -- patterns --

TILE = np.array([[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("repeat", "wanted"),
    [
        ("straight", ["1212", "3434", "1212", "3434"]),
        ("band", ["1212", "3434", "1212", "3434"]),
        ("half-drop", ["1234", "3412", "1234", "3412"]),
        ("brick", ["1212", "3434", "2121", "4343"]),
    ],
)
def test_tiles_lie_as_each_repeat_says(repeat: repeats.Repeat, wanted: list[str]) -> None:
    """L15: by hand."""
    laid = repeats.tiled(TILE, repeat, 2, 2)
    assert ["".join(map(str, row)) for row in laid] == wanted
    assert torch.equal(repeats.tiled(torch.from_numpy(TILE)[None, None], repeat, 2, 2)[0, 0], torch.from_numpy(laid))


def test_a_taller_half_drop_by_hand() -> None:
    """L15: the second column lies two rows lower, and what is pushed out below comes in above."""
    tile = np.arange(4)[:, None, None]
    assert repeats.tiled(tile, "half-drop", 1, 3)[..., 0].tolist() == [[0, 2, 0], [1, 3, 1], [2, 0, 2], [3, 1, 3]]


moves = st.integers(-20, 20)


@given(repeat=st.sampled_from(ALL_ROUND), down=moves, right=moves, down2=moves, right2=moves)
@settings(max_examples=60, deadline=None)
def test_rolling_moves_over_the_pattern(repeat: repeats.Repeat, down: int, right: int, down2: int, right2: int) -> None:
    """L15: two moves are one, back is where it was, and a rolled tile is a window of the pattern."""
    tile = np.random.default_rng(0).integers(0, 255, (6, 8, 3))
    moved = repeats.rolled(tile, repeat, down, right)
    assert (
        repeats.rolled(moved, repeat, down2, right2) == repeats.rolled(tile, repeat, down + down2, right + right2)
    ).all()
    assert (repeats.rolled(moved, repeat, -down, -right) == tile).all()
    whole = repeats.tiled(tile, repeat, 4, 4)
    top, left = -down % 12, -right % 16  # the pattern begins anew after two tiles either way
    assert (moved == whole[top : top + 6, left : left + 8]).all()
    tensor = torch.from_numpy(tile).permute(2, 0, 1)
    assert (repeats.rolled(tensor, repeat, down, right).permute(1, 2, 0).numpy() == moved).all()


def test_what_cannot_be_moved_or_halved_is_refused() -> None:
    """L15."""
    for repeat, down, right in (("band", 1, 0), ("none", 0, 1)):
        with pytest.raises(ValueError, match="does not go on there"):
            repeats.rolled(TILE, repeat, down, right)  # type: ignore[arg-type]
    for repeat, shape in (("half-drop", (3, 4)), ("brick", (4, 3))):
        with pytest.raises(ValueError, match="cannot be shifted by half"):
            repeats.tiled(np.zeros(shape), repeat, 1, 1)  # type: ignore[arg-type]
    assert (repeats.rolled(TILE, "band", 0, 1) == [[2, 1], [4, 3]]).all()


# -- a seam's score --


def made(repeat: repeats.Repeat, seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A tile without a seam, made of soft rings and threads set down all over the pattern, and grain."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    tile = np.zeros((height, width))
    for _ in range(14):
        radius, thick = chance.uniform(6, 20), chance.uniform(1.5, 3)
        ring = np.clip(thick - np.abs(np.hypot(y - height / 2, x - width / 2) - radius), 0, 1)
        tile = np.maximum(tile, repeats.rolled(ring, repeat, *chance.integers(0, 500, 2)))
    grain = chance.normal(0, 2, tile.shape)
    return np.clip(40 + 190 * tile + grain, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("repeat", ALL_ROUND)
@pytest.mark.parametrize("seed", range(3))
def test_a_repeat_has_no_seam_wherever_it_is_cut(repeat: repeats.Repeat, seed: int) -> None:
    """L15: the score does not tell where the tile begins."""
    tile, chance = made(repeat, seed), np.random.default_rng(seed)
    scores = [repeats.seam_score(repeats.rolled(tile, repeat, *chance.integers(0, 500, 2)), repeat) for _ in range(8)]
    assert max(scores) < 1.25 and np.median(scores) == 1


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_cut_out_of_lace_has_a_seam(repeat: repeats.Repeat) -> None:
    """L15: drawn lace cut at any place, the way that photographs are."""
    chance = np.random.default_rng(0)
    for seed in range(6):
        picture, _ = draw.lace(seed, 192)
        left, top = chance.integers(10, 60, 2)
        score = repeats.seam_score(picture.crop((left, top, left + 110, top + 110)), repeat)
        assert score > 1.25, f"lace {seed}: {score}"


def test_a_half_drop_laid_straight_has_a_seam() -> None:
    """L15: the score is that of the way in which tiles lie."""
    for other in ("straight", "brick"):
        assert min(repeats.seam_score(made("half-drop", seed), other) for seed in range(3)) > 1.25


def test_a_stronger_step_scores_more_and_a_band_minds_one_axis_only() -> None:
    """L15."""
    tile = made("straight", 0).astype(float)
    across, along = np.linspace(-0.5, 0.5, tile.shape[0])[:, None], np.linspace(-0.5, 0.5, tile.shape[1])[None]
    scores = [repeats.seam_score(tile + step * across, "straight") for step in (0, 60, 120)]
    assert scores[0] < scores[1] < scores[2]
    assert repeats.seam_score(tile + 120 * across, "band") == repeats.seam_score(tile, "band") == 1
    assert repeats.seam_score(tile + 120 * along, "band") > 1.25


def test_flat_pictures_and_grain_have_no_seam_and_small_ones_cannot_be_told() -> None:
    """L15: nothing is divided by nothing."""
    assert repeats.seam_score(np.zeros((32, 32, 3), np.uint8), "straight") == 1
    grain = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert repeats.seam_score(grain, "straight") < 1.25
    with pytest.raises(ValueError, match="12 × 40 px"):
        repeats.seam_score(np.zeros((40, 12)), "straight")


# -- whole pictures --


@pytest.fixture
def repeating(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[repeats.Repeat], None]]:
    """Every network loaded from now on repeats."""
    with ExitStack() as stack:

        def repeat_all(repeat: repeats.Repeat) -> None:
            for name, load in (("load_denoiser", sdxl.load_denoiser), ("load_vae", sdxl.load_vae)):
                monkeypatch.setattr(sdxl, name, partial(loaded, load, repeat))

        def loaded(load: Callable[..., Any], repeat: repeats.Repeat, *given: Any) -> Any:
            module = load(*given)
            stack.enter_context(repeats.padded(module, repeat))
            return module

        monkeypatch.setattr(memory, "give_back_memory", lambda: None)
        yield repeat_all


def picture_of(model: str, side: int, prompt: str, scheduler: str) -> np.ndarray:
    """A picture by the stages, from noise to bytes."""
    here: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    batches = stages.in_batches([prompt], ["grainy"], [3], side, side, 1)
    words = stages.encode_prompts(model, stages.texts_of(batches), **here)
    [one] = stages.denoise(model, batches, words, Sampling(scheduler, 6, 4.0), **here)
    [image] = stages.decode(model, [("one", one.finished_BCHW[0])], device="cpu")
    return np.asarray(image)


@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "euler", "ddim"])
@pytest.mark.parametrize("repeat", ALL_ROUND)
def test_rolled_noise_draws_the_rolled_picture(
    tiny_sdxl: Path, repeating: Any, monkeypatch: pytest.MonkeyPatch, repeat: repeats.Repeat, scheduler: str
) -> None:
    """L15, L17: through text, guidance, every step of each sampler and the decoder, to the last byte but one."""
    repeating(repeat)
    plain = picture_of(str(tiny_sdxl), 64, "a photo of lace", scheduler)
    monkeypatch.setattr(stages, "noise", lambda *given: repeats.rolled(sampling.noise(*given), repeat, 4, 12))
    moved = picture_of(str(tiny_sdxl), 64, "a photo of lace", scheduler)
    wanted = repeats.rolled(plain, repeat, 32, 96)
    assert np.abs(moved.astype(int) - wanted).max() <= 1 and np.abs(moved.astype(int) - plain).max() > 20


@pytest.mark.parametrize("repeat", REPEATS)
def test_the_demos_designs_join(repeating: Any, repeat: repeats.Repeat) -> None:
    """L15, L16: a trained model; drawn as ever its picture has a seam, drawn as a repeat it has none."""
    prompt = "a photo of waves, blue on white"
    seam = repeats.seam_score(picture_of(demo.MODEL, 96, prompt, "dpmpp_2m"), repeat)
    repeating(repeat)
    assert repeats.seam_score(picture_of(demo.MODEL, 96, prompt, "dpmpp_2m"), repeat) < 1.25 < seam
