"""What the tests share: one torch thread, a small SDXL and a small refiner of the true layout, six drawn pictures."""

import gc
import json
import os
import random
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import numpy
import pytest
from PIL import Image, ImageDraw

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
# No test times anything: on a busy machine an example may take longer than hypothesis allows by itself.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

WORDS = (
    "a photo of painting < my special style > lace white cream on dark ground leaf star rosette grainy low quality ,"
)

# Files that take minutes each. They begin first, so that no process waits for one of them at the end.
LONG = ("documentation", "browser", "job", "evaluate", "validation", "quantize", "kills", "train", "steps", "sheets")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, in the order of LONG; the rest as it was."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    # 20 LoRA steps of a tiny SDXL: 1.1 s with one thread, 9 to 16 s with two on a shared two-core machine.
    if find_spec("torch"):  # tests that need none also run without it: make test-colab
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL base of the true layout (ε-prediction, f = 8, two text encoders) with random weights, as a folder."""
    folder = build_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl")
    gc.freeze()  # the libraries' own objects need not be looked through each time a model is given back
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with v-prediction, as popular SDXL fine-tunes and the demo model have it."""
    return build_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refiner of the true layout: second text encoder only, five time ids with an aesthetic score."""
    return build_tiny_refiner(tmp_path_factory.mktemp("models") / "tiny-refiner")


@pytest.fixture(scope="session")
def models(tiny_sdxl: Path, tiny_refiner: Path) -> dict[str, str]:
    """The settings that name the small base and refiner."""
    return {"pretrained_model": str(tiny_sdxl), "refiner_model": str(tiny_refiner)}


@pytest.fixture(scope="session")
def made_run(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a finished adapter."""
    from lace_lora import run_folder
    from tests.test_stages import made_lora

    folder = run_folder.RunFolder(tmp_path_factory.mktemp("made") / "lace")
    facts = {"concept_token": "<lace>", "instance_prompt": "a photo of <lace>", "class_prompt": "a photo of a painting"}
    made_lora(tiny_sdxl, folder, resolution=32, step=9, **facts)
    return folder.root


@pytest.fixture
def asked(models: dict[str, str], made_run: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Settings of a run with a finished adapter, small and quick; see tests.drawing."""
    from tests.drawing import settings_of

    return lambda **changes: settings_of(tmp_path / "out", made_run, models, **changes)


@pytest.fixture(scope="module")
def browser():  # type: ignore[no-untyped-def]
    """Debian's chromium; for the tests of one module, since no other event loop can run beside it."""
    from tests import browsing

    browsing.require("playwright")
    with browsing.chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A JupyterLab: its address, and the folder in whose folders tests put notebooks."""
    from tests import browsing

    browsing.require("jupyterlab", "playwright")
    folder = tmp_path_factory.mktemp("lab")
    with browsing.lab(folder) as address:
        yield address, folder / "books"


@pytest.fixture
def lace_folder(tmp_path: Path) -> Path:
    """Six jpgs of different shape: pale rings and threads on a dark ground."""
    return draw_lace(tmp_path / "pictures")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same six, drawn once for all tests of training."""
    return draw_lace(tmp_path_factory.mktemp("train") / "pictures")


@pytest.fixture
def settings(tiny_sdxl: Path, pictures: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Ten updates of two pictures with a small SDXL; the cache is shared by all tests."""
    from lace_lora import config

    return config.load(
        preset="none",
        pretrained_model=str(tiny_sdxl),
        images_dir=str(pictures),
        lora_output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path_factory.getbasetemp() / "shared_cache"),
        resolution=64,
        rank=4,
        alpha=8,
        max_train_steps=10,
        train_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        checkpoint_every=5,
        log_with="none",
    )


def draw_lace(folder: Path, sizes: tuple[tuple[int, int], ...] | None = None) -> Path:
    """Draw one jpg for each (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(
        sizes or ((96, 96), (128, 80), (80, 128), (100, 100), (140, 90), (64, 64))
    ):
        picture = Image.new("RGB", (width, height), (20, 24, 30 + 20 * number))
        pen = ImageDraw.Draw(picture)
        for left in range(4, width, 14 + number):
            for top in range(4, height, 12 + number):
                pen.ellipse((left, top, left + 9, top + 9), outline=(235, 230, 215), width=2)
        picture.save(folder / f"lace_{number}.jpg", quality=92)
    return folder


def draw_threads(folder: Path, count: int) -> Path:
    """Draw square jpgs that are no copies of each other: pale threads on a dark ground, each in its own way."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for number in range(count):
        picture = Image.new("RGB", (72, 72), (20, 24, 40))
        pen = ImageDraw.Draw(picture)
        for _ in range(12):
            ends = [(chance.randrange(72), chance.randrange(72)) for _ in range(2)]
            pen.line(ends, fill=(235, 230, 215), width=3)
        picture.save(folder / f"threads_{number}.jpg")
    return folder


def build_tiny_sdxl(folder: Path, prediction_type: str = "epsilon", variant: str | None = None) -> Path:
    """Write a small SDXL base folder. The widths are small; classes, names and wiring are those of the real one."""
    import torch

    from lace_lora.families.quiet import quiet

    with quiet():
        from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**unet_config(cross_attention_dim=32, pooled=16, time_ids=6))
    vae = AutoencoderKL(**vae_config())
    for part, module in (
        ("unet", unet),
        ("vae", vae),
        ("text_encoder", _tower(False)),
        ("text_encoder_2", _tower(True)),
    ):
        with quiet():
            module.eval().save_pretrained(folder / part, variant=variant)
    for part in ("tokenizer", "tokenizer_2"):
        _save_tokenizer(folder / part, pad="<|endoftext|>" if part == "tokenizer" else "!")
    EulerDiscreteScheduler(**scheduler_config(prediction_type)).save_pretrained(folder / "scheduler")
    _write_index(folder, "StableDiffusionXLPipeline", {"force_zeros_for_empty_prompt": True}, with_first_tower=True)
    return folder


def build_tiny_refiner(folder: Path) -> Path:
    """Write a small SDXL refiner folder."""
    import torch

    from lace_lora.families.quiet import quiet

    with quiet():
        from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**unet_config(cross_attention_dim=16, pooled=16, time_ids=5))
    for part, module in (("unet", unet), ("vae", AutoencoderKL(**vae_config())), ("text_encoder_2", _tower(True))):
        with quiet():
            module.eval().save_pretrained(folder / part)
    _save_tokenizer(folder / "tokenizer_2", pad="!")
    EulerDiscreteScheduler(**scheduler_config("epsilon")).save_pretrained(folder / "scheduler")
    extra = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    _write_index(folder, "StableDiffusionXLImg2ImgPipeline", extra, with_first_tower=False)
    return folder


def unet_config(cross_attention_dim: int, pooled: int, time_ids: int) -> dict[str, object]:
    """SDXL's UNet with narrow layers: three levels, no attention on the first, two resnets a level."""
    return {
        "sample_size": 8,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 2),
        "norm_num_groups": 4,
        "use_linear_projection": True,
        "cross_attention_dim": cross_attention_dim,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": pooled + 8 * time_ids,
    }


def vae_config() -> dict[str, object]:
    """SDXL's VAE with narrow layers: four levels, so 8 px a latent cell, 4 latent channels."""
    return {
        "block_out_channels": (4, 4, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }


def scheduler_config(prediction_type: str) -> dict[str, object]:
    """The scheduler settings that SDXL ships."""
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }


def losses_of(log: Path) -> list[float]:
    """The training losses in a log.jsonl."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def read_pixels(path: Path) -> numpy.ndarray:
    """A picture as an array of bytes."""
    return numpy.asarray(Image.open(path).convert("RGB"))


def _tower(with_projection: bool):  # type: ignore[no-untyped-def]
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = len(_vocabulary())
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=16,
        hidden_act="gelu" if with_projection else "quick_gelu",
        bos_token_id=vocabulary - 2,
        # The real second tower says 2 here, which is not its end token: the trap that our loader closes.
        eos_token_id=2 if with_projection else vocabulary - 1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config) if with_projection else CLIPTextModel(config)


def _vocabulary() -> dict[str, int]:
    """CLIP's byte pairs without merges: every byte alone and as the end of a word, then the words we use."""
    printable = [chr(code) for code in range(33, 127)]
    tokens = printable + [f"{sign}</w>" for sign in printable]
    return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def _save_tokenizer(folder: Path, pad: str) -> None:
    from transformers import CLIPTokenizer

    from lace_lora.families.quiet import quiet

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    ends = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    settings = ends | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(ends), encoding="utf-8")
    with quiet():
        assert CLIPTokenizer.from_pretrained(folder)("a photo").input_ids[-1] == len(_vocabulary()) - 1


def _write_index(folder: Path, pipeline: str, extra: dict[str, object], with_first_tower: bool) -> None:
    first = ["transformers", "CLIPTextModel"] if with_first_tower else [None, None]
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.39.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": first,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"] if with_first_tower else [None, None],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index | extra), encoding="utf-8")
