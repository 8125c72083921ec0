"""What the plan's coefficients say, against what PyTorch itself counts and makes on the meta device (C14, C10)."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import count
from lace_lora import coefficients
from lace_lora.families import known

DEMO, SDXL, SD15 = (count.shipped()[name] for name in ("demo", "sdxl", "sd15"))
SIZES = {"512": (64, 64), "768": (96, 96), "1024": (128, 128), "832 × 1216": (104, 152)}  # latent cells, height × width


def table(name):
    return coefficients.Coefficients(coefficients.shipped(name))


def by_pytorch(work):
    """FLOP as PyTorch's own counter says, which follows what autograd does by another way than ours."""
    with count.fused_attention(), FlopCounterMode(display=False) as counter, torch.no_grad():
        count._counters.append(attention := count.Counter([]))  # which tells its work to whoever counts
        try:
            work()
        finally:
            count._counters.pop()
    return counter.get_total_flops() + attention.flop


def of_step(what, name, targets, mode, rank, height, width):
    """One training step counted now, and what the table says of it."""
    denoiser, learnt = count.denoiser_with_lora(what, targets, mode, rank)
    found = count.measured(denoiser, count.denoiser_pass(what, denoiser, height, width), learns=True)
    shipped = table(name)
    assert learnt == shipped.lora_parameters(targets, rank, False)
    return found, (
        shipped.step_flop(height * width, rank, targets, mode),
        shipped.step_bytes(height * width, rank, targets, mode, 2),
    )


@pytest.mark.parametrize("targets", count.TARGETS)
@pytest.mark.parametrize("mode", count.MODES)
def test_the_demos_coefficients_are_those_of_its_architecture(targets, mode):
    """C14: recounted at a rank and a shape that they were not made from."""
    found, told = of_step(DEMO, "demo", targets, mode, 64, 24, 40)
    assert told[0] == pytest.approx(found.flop, rel=1e-6)
    assert told[1] == pytest.approx(found.peak, rel=0.05)  # a maximum over time, of a model of few layers


def test_the_table_that_ships_is_the_one_that_is_counted():
    """C14: parts that are counted in a second, of the demo; the whole is the test marked slow."""
    unet, vae = count.denoiser_of(*DEMO.denoiser), count.vae_of(DEMO.vae)
    shipped = coefficients.shipped("demo")
    assert count._weights(unet).items() <= shipped["denoiser"].items()
    assert count._weights(vae).items() <= shipped["vae"].items()
    assert count.text_rows(DEMO) == shipped["text"]
    assert count.training(DEMO, "up_blocks", "full") == shipped["training"]["up_blocks"]["full"]


@pytest.mark.slow
def test_counting_the_demo_again_writes_the_same_file():
    """C14."""
    text = (coefficients.DATA / "demo.json").read_text(encoding="utf-8")
    assert count.as_text(count.counted(DEMO)) == text


@pytest.mark.parametrize("size", ["1024", *(pytest.param(one, marks=pytest.mark.slow) for one in list(SIZES)[:2]),
                                  pytest.param("832 × 1216", marks=pytest.mark.slow)])  # fmt: skip
def test_sdxls_passes_agree_with_pytorchs_own_counter(size):
    """C14, within 1 %: base, refiner, both text encoders and both ways through the VAE."""
    height, width = SIZES[size]
    cells, shipped = height * width, table("sdxl")
    for part, config in (("denoiser", SDXL.denoiser[1]), ("refiner", SDXL.refiner)):
        module = count.denoiser_of(SDXL.denoiser[0], config)
        pass_once = count.denoiser_pass(SDXL, module, height, width)
        assert shipped.forward_flop(part, cells) == pytest.approx(by_pytorch(pass_once), rel=0.001), part
        held = count.measured(module, pass_once).peak
        assert shipped.forward_bytes(part, cells, 2) == pytest.approx(held, rel=0.01), part
        assert shipped.parameters(part) == sum(one.numel() for one in module.parameters())
    vae = count.vae_of(SDXL.vae)
    for way in ("encode", "decode"):
        pass_once = count.vae_pass(vae, way, height, width)
        assert shipped.vae_flop(way, cells) == pytest.approx(by_pytorch(pass_once), rel=0.001), way
        assert shipped.vae_bytes(way, cells, 2) == pytest.approx(count.measured(vae, pass_once).peak, rel=0.01), way
    texts = [count.text_of(kind, config)[0] for kind, config, _ in SDXL.text]
    assert shipped.caption_flop() == pytest.approx(sum(by_pytorch(count.text_pass(one)) for one in texts), rel=0.001)
    assert shipped.parameters("text") == sum(one.numel() for text in texts for one in text.parameters())


def test_an_sdxl_step_is_what_was_counted():
    """C14: rank 4 at the shape of a bucket, the quickest of all that the slow test goes through."""
    found, (flop, peak) = of_step(SDXL, "sdxl", "attention", "none", 4, 64, 96)
    assert flop == pytest.approx(found.flop, rel=1e-4)
    assert peak == pytest.approx(found.peak, rel=0.01)


def test_an_sd15_step_is_what_was_counted():
    """C14, P20: the same of Stable Diffusion 1.5."""
    found, (flop, peak) = of_step(SD15, "sd15", "attention", "none", 4, 64, 96)
    assert flop == pytest.approx(found.flop, rel=1e-4)
    assert peak == pytest.approx(found.peak, rel=0.01)


@pytest.mark.parametrize("name", ["sd35-medium", pytest.param("sd35-large", marks=pytest.mark.slow),
                                  pytest.param("flux", marks=pytest.mark.slow)])  # fmt: skip
def test_a_step_of_flow_is_what_was_counted(name):
    """C14, P20: the same of SD 3.5 and Flux; the two larger ones take half a minute each."""
    found, (flop, peak) = of_step(known.ALL[name], name, "attention", "none", 4, 64, 96)
    assert flop == pytest.approx(found.flop, rel=1e-4)
    assert peak == pytest.approx(found.peak, rel=0.01)


@pytest.mark.parametrize("name", ["sd35-medium", "flux"])
def test_a_picture_of_flow_takes_what_was_counted(name):
    """C14: one pass of the true transformer at a size that the table was not made from, and all text encoders."""
    what, shipped = known.ALL[name], table(name)
    denoiser = count.denoiser_of(*what.denoiser)
    found = count.measured(denoiser, count.denoiser_pass(what, denoiser, 64, 96))
    assert shipped.forward_flop("denoiser", 64 * 96) == pytest.approx(found.flop, rel=1e-5)
    assert shipped.forward_bytes("denoiser", 64 * 96, 2) == pytest.approx(found.peak, rel=0.05)  # of 70 MB
    assert (count.encoded(what), count.guided_rows(what)) == (shipped.table["encoded"], shipped.guided_rows)


@pytest.mark.parametrize("name", known.ALL)
def test_a_known_model_is_planned_for_by_its_name_alone(name):
    """P20: with its own table, before anything of it is fetched."""
    for model in known.ALL[name].models:
        found = coefficients.of(model)
        assert (found.name, found.is_counted) == (name, True)
        assert known.family_of(model) == known.ALL[name].family and known.side_px(model) == known.ALL[name].side_px


@pytest.mark.slow
@pytest.mark.parametrize("targets", count.TARGETS)
@pytest.mark.parametrize("mode", count.MODES)
def test_every_sdxl_step_is_what_was_counted(targets, mode):
    """C14, within 1 %: ranks 4 and 128, a square and a bucket that the coefficients were not made from."""
    for rank, (height, width) in ((4, SIZES["768"]), (128, SIZES["832 × 1216"])):
        found, (flop, peak) = of_step(SDXL, "sdxl", targets, mode, rank, height, width)
        assert flop == pytest.approx(found.flop, rel=1e-4)
        assert peak == pytest.approx(found.peak, rel=0.01)


def test_memory_is_that_of_tensors_which_are_really_made():
    """C14: a pass made by hand: 3 tensors of 4 MB, of which one is dropped before the third is made."""

    def work():
        one = torch.empty(1_000_000, dtype=torch.float32, device="meta")
        other = one + 1
        del one
        return other + 1

    found = count.measured(torch.nn.Linear(1, 1, device="meta"), work)
    assert (found.peak, found.flop) == (8_000_000, 0)


def test_flops_are_those_that_are_computed_by_hand():
    """C14: 2·m·n·k of a product; 4·N·M·d of attention forward and 10 backward."""
    layer = torch.nn.Linear(30, 20, bias=False, device="meta", dtype=torch.bfloat16)
    given = torch.empty(10, 30, device="meta", dtype=torch.bfloat16)
    assert count.measured(layer, lambda: layer(given)).flop == 2 * 10 * 20 * 30
    query, key, value = (torch.empty(2, 4, n, 8, device="meta", requires_grad=True) for n in (16, 6, 6))

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    assert count.measured(layer, attend).flop == 4 * 2 * 4 * 16 * 6 * 8
    assert count.measured(layer, attend, learns=True).flop == 14 * 2 * 4 * 16 * 6 * 8


def test_the_tables_are_as_python_writes_them():
    """C14: so that a change made by hand shows."""
    for name in count.shipped():
        text = (coefficients.DATA / f"{name}.json").read_text(encoding="utf-8")
        assert count.as_text(json.loads(text)) == text
