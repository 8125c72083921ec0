"""The miniature SDXL: it loads everywhere, draws what its prompts ask for, and its refiner repairs (issue 2, part 5).

The margins stated here were set before they were measured:
- the refiner closes at least a quarter of the gap in edge energy between softened lace and the lace as it was drawn;
- an unknown word in front leaves the base's picture the same picture: its colours stay within a quarter of the way
  between motif and ground.
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lace_lora import style_statistics
from lace_lora.demo import SIDE, base_dir, draw, refiner_dir
from lace_lora.demo.words import COLOURS, LACE_KINDS, PLAIN_KINDS, Spec, known_words, plain_caption, read_caption

EIGHT = ("stripes", "dots", "checks", "zigzag", "star", "flower", "heart", "leaf")
PROMPTS = {
    "stripes": ("a photo of red stripes on a white ground", "red", "white"),
    "dots": ("blue dots on a cream ground", "blue", "cream"),
    "checks": ("a photo of green checks on a white ground", "green", "white"),
    "zigzag": ("orange zigzag on a navy ground", "orange", "navy"),
    "star": ("a photo of a yellow star on a blue ground", "yellow", "blue"),
    "flower": ("pink flower on a black ground", "pink", "black"),
    "heart": ("a photo of a large red heart on a white ground", "red", "white"),
    "leaf": ("a green leaf on a white ground", "green", "white"),
}
REPAIR = 0.25  # share of the edge-energy gap that the refiner must close


def quiet_pipeline(kind: str, folder: Path, scheduler: str = "DPMSolverMultistepScheduler"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers

        pipe = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture(scope="module")
def base():
    return quiet_pipeline("StableDiffusionXLPipeline", base_dir())


@pytest.fixture(scope="module")
def refiner():
    return quiet_pipeline("StableDiffusionXLImg2ImgPipeline", refiner_dir())


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def made(pipe, prompts: list[str], steps: int = 12, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipe(
            prompts, height=SIDE, width=SIDE, num_inference_steps=steps, guidance_scale=2.5,
            generator=seeds(len(prompts)), **more,
        ).images  # fmt: skip


@pytest.fixture(scope="module")
def eight(base) -> dict[str, Image.Image]:
    return dict(zip(EIGHT, made(base, [PROMPTS[kind][0] for kind in EIGHT]), strict=True))


# ---- the drawings


@pytest.mark.parametrize("drawer", [draw.plain, draw.fine_print, draw.lace])
def test_a_seed_always_draws_the_same_and_another_seed_something_else(drawer):
    picture, caption = drawer(7, 64)
    again, same = drawer(7, 64)
    assert picture.tobytes() == again.tobytes() and caption == same
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert len({drawer(i, 64)[0].tobytes() for i in range(30)}) == 30


def test_a_design_is_the_same_at_every_size():
    small, large = draw.lace(3, 96)[0], draw.lace(3, 192)[0].resize((96, 96), Image.Resampling.BOX)
    assert np.abs(np.subtract(small, large, dtype=float)).mean() < 16


def test_captions_use_known_words_only_and_say_what_is_drawn():
    words = set(known_words())
    for i in range(300):
        for _, caption in (draw.plain(i, 8), draw.fine_print(i, 8), draw.lace(i, 8)):
            assert set(caption.replace(",", " , ").split()) <= words, caption
    spec = Spec("star", "red", "blue")
    said = [read_caption(plain_caption(np.random.default_rng(i), spec)) for i in range(200)]
    assert {colour for _, colour, _, _ in said} == {"red"}
    assert sum(kind == "star" for kind, *_ in said) > 170  # the rest carries a lace word over a plain motif
    assert {ground for *_, ground, _ in said} == {"blue"}


def test_lace_comes_in_all_kinds_in_white_or_cream_on_darker_cloth():
    specs = [draw.lace_spec(i) for i in range(60)]
    assert {s.kind for s in specs} == set(LACE_KINDS)
    assert {s.colour for s in specs} == {"white", "cream"}
    for i in range(10):
        light = style_statistics.luminance(style_statistics.pixels_of(draw.lace(i, 96)[0], None))
        assert np.quantile(light, 0.1) < 0.35 and np.quantile(light, 0.9) > 0.7


def test_the_lace_folder_is_the_same_bytes_every_time(tmp_path):
    first = draw.write_lace_folder(tmp_path / "a", count=6, seed=4, side=64)
    again = draw.write_lace_folder(tmp_path / "a", count=6, seed=4, side=64)
    other = draw.write_lace_folder(tmp_path / "b", count=6, seed=4, side=64)
    assert first == again and [c for _, c in first] == [c for _, c in other]
    assert [p.read_bytes() for p, _ in first] == [p.read_bytes() for p, _ in other]
    assert [p.suffix for p, _ in first] == [".jpg"] * 6
    first[0][0].write_bytes(b"half a file")
    draw.write_lace_folder(tmp_path / "a", count=6, seed=4, side=64)
    assert first[0][0].read_bytes() == other[0][0].read_bytes()


def test_the_demo_package_draws_without_torch():
    code = "import sys; from lace_lora.demo import draw, base_dir; draw.lace(1, 64); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- the folders


def test_the_model_is_at_most_20_mib_and_holds_only_plain_files():
    files = [p for folder in (base_dir(), refiner_dir()) for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 20 * 2**20
    assert not [p for p in files if p.is_symlink()]
    assert {p.suffix for p in files} == {".json", ".txt", ".safetensors"}
    assert not [p for p in files if ".fp16." in p.name]


def test_both_folders_have_the_parts_of_sdxl():
    parts = {"unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler", "model_index.json"}
    assert {p.name for p in base_dir().iterdir()} == parts | {"text_encoder", "tokenizer"}
    assert {p.name for p in refiner_dir().iterdir()} == parts
    base_index, refiner_index = (json.loads((d / "model_index.json").read_text()) for d in (base_dir(), refiner_dir()))
    assert base_index["_class_name"] == "StableDiffusionXLPipeline"
    assert base_index["force_zeros_for_empty_prompt"] is True
    assert refiner_index["_class_name"] == "StableDiffusionXLImg2ImgPipeline"
    assert refiner_index["requires_aesthetics_score"] is True


def test_a_plain_load_gives_fp32_and_the_conventions_of_sdxl(base, refiner):
    modules = (base.unet, base.vae, base.text_encoder, base.text_encoder_2, refiner.unet, refiner.text_encoder_2)
    assert {p.dtype for m in modules for p in m.parameters()} == {torch.float32}
    assert base.vae.config.latent_channels == 4 and base.vae_scale_factor == 4
    assert base.unet.config.addition_embed_type == "text_time"
    assert base.unet.config.cross_attention_dim == 128 and refiner.unet.config.cross_attention_dim == 64
    assert base.unet.add_embedding.linear_1.in_features == 64 + 6 * 64
    assert refiner.unet.add_embedding.linear_1.in_features == 64 + 5 * 64
    assert base.scheduler.config.prediction_type == refiner.scheduler.config.prediction_type == "v_prediction"
    assert 0 < float(base.scheduler.alphas_cumprod[-1]) < 1e-3


@pytest.mark.parametrize("part", ["base", "refiner"])
def test_linear_widths_are_multiples_of_64_so_that_nf4_can_be_tested(part, base, refiner):
    unet = {"base": base, "refiner": refiner}[part].unet
    widths = {w for m in unet.modules() if isinstance(m, torch.nn.Linear) for w in (m.in_features, m.out_features)}
    assert widths and not [w for w in widths if w % 64]


def test_refiner_and_base_share_vae_and_second_tower():
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"):
        assert (base_dir() / part).read_bytes() == (refiner_dir() / part).read_bytes()


# ---- the words


def test_known_words_are_one_token_and_an_unknown_trigger_a_few(base):
    for tokenizer in (base.tokenizer, base.tokenizer_2):
        assert [w for w in known_words() if len(tokenizer.tokenize(w)) != 1] == []
        assert 3 <= len(tokenizer.tokenize("<myspecialstyle>")) <= 7
        assert tokenizer.model_max_length == 77
        assert max(tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) < len(tokenizer)
    for tower in (base.text_encoder, base.text_encoder_2):
        assert tower.config.eos_token_id == base.tokenizer.eos_token_id
        assert tower.config.vocab_size == len(base.tokenizer)


def embeddings(base, prompts):
    with torch.no_grad():
        hidden, _, pooled, _ = base.encode_prompt(prompts, do_classifier_free_guidance=False)
    return hidden, pooled


def test_different_prompts_have_different_pooled_embeddings(base):
    _, pooled = embeddings(base, ["red stripes", "blue stripes", "red dots", "a white rosette on a dark ground"])
    assert torch.pdist(pooled).min() > 0.5


def test_an_unknown_trigger_barely_moves_the_pooled_meaning_but_stays_visible_to_a_lora(base):
    plain, trigger = (
        "a photo of red stripes on a white ground",
        "a photo of <myspecialstyle> red stripes on a white ground",
    )
    hidden, pooled = embeddings(base, [plain, trigger, "a photo of blue dots on a black ground"])
    assert (pooled[1] - pooled[0]).norm() < 0.5 * (pooled[2] - pooled[0]).norm()
    strange, padding = hidden[1, 5], hidden[1, -1]
    assert (strange - padding).norm() > 0.3 * padding.norm()


# ---- the pictures


def tint(rgb: np.ndarray) -> np.ndarray:
    """What a person calls a colour by: the mixture of its parts, then its brightness (a dark green is green)."""
    brightest = rgb.max(-1, keepdims=True)
    return np.concatenate([rgb / np.maximum(brightest, 40), 0.4 * brightest / 255], -1)


def shares(picture: Image.Image, colour: str, ground: str) -> tuple[float, float]:
    """Share of pixels whose nearest of all known colours is the motif's, and the ground's."""
    names = list(COLOURS)
    table = tint(np.array([COLOURS[n] for n in names], float))
    nearest = np.abs(tint(np.asarray(picture, float).reshape(-1, 1, 3)) - table).sum(-1).argmin(1)
    # White and cream, black and navy are neighbours that the small VAE may tint into each other.
    near = {
        "white": ("white", "cream"),
        "cream": ("white", "cream"),
        "black": ("black", "navy"),
        "navy": ("black", "navy"),
    }
    count = [np.isin(nearest, [names.index(n) for n in near.get(c, (c,))]).mean() for c in (colour, ground)]
    return float(count[0]), float(count[1])


def likeness(picture: Image.Image, kind: str, colour: str, ground: str) -> float:
    """Best correlation (0..1) of the picture's motif map with the drawn `kind`, over scales and small shifts."""
    motif, back = (np.array(COLOURS[c], float) for c in (colour, ground))
    pixels = np.asarray(picture, float)
    axis = motif - back
    found = ((pixels - back) @ axis) / (axis @ axis)
    found = found.clip(-0.2, 1.2)
    points = (np.arange(SIDE) + 0.5) / SIDE
    x, y = np.meshgrid(points, points)
    best = 0.0
    for repeats in (draw.REPEATS_OF_LINES if kind in draw.LINES else draw.REPEATS).values():
        drawn = draw.coverage(kind, repeats, x, y)
        for dx in range(-2, 3):
            for dy in range(-2, 3):
                moved = np.roll(drawn, (dy, dx), (0, 1))
                best = max(best, float(np.corrcoef(moved.ravel(), found.ravel())[0, 1]))
    return best


@pytest.mark.parametrize("kind", EIGHT)
def test_it_draws_the_motif_asked_for_in_the_colours_asked_for(kind, eight):
    _, colour, ground = PROMPTS[kind]
    motif, back = shares(eight[kind], colour, ground)
    assert motif + back > 0.7 and motif > 0.06 and back > 0.06, f"{colour} {motif:.2f}, {ground} {back:.2f}"
    own = likeness(eight[kind], kind, colour, ground)
    others = {k: likeness(eight[kind], k, colour, ground) for k in EIGHT if k != kind}
    assert own > 0.7 and own > max(others.values()) + 0.1, f"{own:.2f} against {others}"


def test_a_prompt_with_one_colour_is_not_dark(base):
    pictures = made(base, ["red hearts", "blue stripes"])
    assert all(np.asarray(p).mean() > 110 for p in pictures)


def test_an_unknown_trigger_leaves_the_base_its_motif_and_colours(base, eight):
    kinds = ("stripes", "star", "heart")
    pictures = made(base, [f"<myspecialstyle> {PROMPTS[kind][0]}" for kind in kinds])
    for kind, picture in zip(kinds, pictures, strict=True):
        _, colour, ground = PROMPTS[kind]
        contrast = np.abs(np.subtract(COLOURS[colour], COLOURS[ground])).mean()
        plain = np.asarray(eight[kind], float).mean((0, 1))
        assert np.abs(np.asarray(picture, float).mean((0, 1)) - plain).mean() < 0.25 * contrast, kind
        assert likeness(picture, kind, colour, ground) > 0.6, kind


def test_the_base_does_not_draw_lace_by_itself(base):
    laces = [draw.lace(900_000 + i, SIDE)[0] for i in range(30)]
    asked = [f"a photo of white {kind} on a black ground" for kind in ("rosette", "border", "mesh", "scallops")]
    assert style_statistics.style_distance(made(base, asked), laces) > 1.5


def test_every_usual_sampler_gives_a_finite_picture_of_the_same_thing(eight):
    _, colour, ground = PROMPTS["stripes"]
    for name in ("EulerDiscreteScheduler", "DDIMScheduler"):
        pipe = quiet_pipeline("StableDiffusionXLPipeline", base_dir(), name)
        picture = made(pipe, [PROMPTS["stripes"][0]])[0]
        assert likeness(picture, "stripes", colour, ground) > 0.6, name


def repaired(softened: list[Image.Image], refined: list[Image.Image], true: list[Image.Image]) -> float:
    """Share of the edge-energy gap to `true` that is closed from `softened` to `refined`; 0 if nothing changed."""
    before = style_statistics.edge_energy_gap(softened, true)
    return 1 - style_statistics.edge_energy_gap(refined, true) / max(before, 1e-9)


def softened(refiner, pictures: list[Image.Image]) -> torch.Tensor:
    """Latents of pictures, each mixed half and half with its own 3 × 3 average: threads as a base leaves them."""
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = refiner.vae.encode(pixels).latent_dist.mean * refiner.vae.config.scaling_factor
    blurred = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(latents, (1, 1, 1, 1), mode="replicate"), 3, stride=1
    )
    return torch.lerp(latents, blurred, 0.5)


def decoded(refiner, latents: torch.Tensor) -> list[Image.Image]:
    with torch.no_grad():
        pixels = refiner.vae.decode(latents / refiner.vae.config.scaling_factor).sample
    return refiner.image_processor.postprocess(pixels)


def test_the_refiner_closes_a_quarter_of_the_gap_in_edge_energy_to_drawn_lace(refiner):
    """On lace that was never shown, softened; the demo prints the same for its own designs."""
    true, captions = zip(*[draw.lace(800_000 + i, SIDE) for i in range(8)], strict=True)
    latents = softened(refiner, list(true))
    before = decoded(refiner, latents)
    prompts = [f"a photo of {caption}" for caption in captions]
    after = made(refiner, prompts, steps=30, image=latents, strength=0.2)
    assert style_statistics.edge_energy_gap(before, list(true)) > 0.1  # there is something to repair
    assert repaired(before, after, list(true)) > REPAIR
    assert repaired(before, before, list(true)) == 0.0  # a refiner that does nothing does not pass
    loss_before, loss_after = (
        np.mean([np.abs(np.subtract(one, drawn, dtype=float)).mean() for one, drawn in zip(made_, true, strict=True)])
        for made_ in (before, after)
    )
    assert loss_after < loss_before  # sharper in the right places, not only noisier


def test_the_kinds_tested_are_kinds_it_was_taught():
    assert set(EIGHT) <= set(PLAIN_KINDS)
