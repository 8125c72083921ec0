"""SDXL parts, encodings and formulas against diffusers itself; model folders and what is wrong with them (L3, L4)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lace_lora.errors import ModelError
from lace_lora.families import folders, layouts, sdxl
from lace_lora.families.quiet import quiet
from tests.conftest import build_tiny_sdxl, unet_config

with quiet():
    from diffusers import (
        DDPMScheduler,
        EulerDiscreteScheduler,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

# The UNet's config as SDXL base 1.0 publishes it.
SDXL_UNET = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}


def load_pipeline(folder: Path, kind: type = StableDiffusionXLPipeline) -> object:
    with quiet():
        pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# -- encoding --


def test_captions_are_encoded_as_the_pipeline_encodes_them(tiny_sdxl: Path) -> None:
    pipeline = load_pipeline(tiny_sdxl)
    captions = ["a photo of <myspecialstyle>", "white lace on a dark ground, rosette"]
    text_BLD, _, pooled_BP, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    ours = sdxl.encode_captions(sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu"), captions)
    assert torch.equal(ours.text_BLD, text_BLD)
    assert torch.equal(ours.pooled_BP, pooled_BP)
    assert ours.text_BLD.shape == (2, 77, 32)


def test_the_refiner_reads_its_second_encoder_as_its_pipeline_does(tiny_refiner: Path) -> None:
    pipeline = load_pipeline(tiny_refiner, StableDiffusionXLImg2ImgPipeline)
    text_BLD, _, pooled_BP, _ = pipeline.encode_prompt(["lace"], do_classifier_free_guidance=False)
    ours = sdxl.encode_captions(sdxl.load_text(str(tiny_refiner), torch.float32, "cpu"), ["lace"])
    assert torch.equal(ours.text_BLD, text_BLD)
    assert torch.equal(ours.pooled_BP, pooled_BP)


def test_with_an_added_token_two_prompts_still_differ(tiny_sdxl: Path) -> None:
    """The second encoder's config says eos 2: left so, every prompt with a higher token is pooled at that token."""
    text = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    for tokenizer, encoder in zip(text.tokenizers, text.encoders, strict=True):
        tokenizer.add_tokens("<style>")
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        assert encoder.config.eos_token_id == tokenizer.eos_token_id
    pooled_BP = sdxl.encode_captions(text, ["<style> red rose", "<style> blue star"]).pooled_BP
    assert (pooled_BP[0] - pooled_BP[1]).abs().max() > 1e-3


def test_a_long_caption_is_counted_and_its_lost_end_is_named(tiny_sdxl: Path) -> None:
    tokenizers = sdxl.load_tokenizers(str(tiny_sdxl))
    assert sdxl.count_tokens(tokenizers, "lace") == 4  # the test's tokenizer has one token a letter
    assert sdxl.words_cut(tokenizers, "lace") == ""
    assert sdxl.words_cut(tokenizers, "x " * 75 + "rosette") == "rosette"


def test_latents_are_the_vaes_own_and_scaling_is_undone_exactly(tiny_sdxl: Path) -> None:
    vae = sdxl.load_vae(str(tiny_sdxl), torch.float32, "cpu")
    pixels_BCHW = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean_BCHW, std_BCHW = sdxl.encode_images(vae, pixels_BCHW)
    with torch.no_grad():
        posterior = vae.encode(pixels_BCHW).latent_dist
    assert torch.equal(mean_BCHW, posterior.mean) and torch.equal(std_BCHW, posterior.std)
    assert mean_BCHW.shape == (1, 4, 8, 12)
    sizes = layouts.layout(str(tiny_sdxl))
    assert torch.equal(sdxl.scale_latents(mean_BCHW, sizes), mean_BCHW * 0.13025)
    shifted = layouts.Layout(**vars(sizes) | {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (2.0,) * 4})
    back_BCHW = sdxl.unscale_latents(sdxl.scale_latents(mean_BCHW, shifted), shifted)
    assert torch.allclose(back_BCHW, mean_BCHW, atol=1e-6)


# -- formulas --


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_target_are_those_of_ddpm(kind: str, tiny_sdxl: Path, tiny_sdxl_v: Path) -> None:
    scheduler = sdxl.noising(str(tiny_sdxl if kind == "epsilon" else tiny_sdxl_v))
    oracle = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    latents_BCHW, noise_BCHW = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times_B = torch.tensor([0, 1, 500, 900, 999])
    noisy_BCHW = sdxl.add_noise(scheduler, latents_BCHW, noise_BCHW, times_B)
    assert torch.equal(noisy_BCHW, oracle.add_noise(latents_BCHW, noise_BCHW, times_B))
    wanted_BCHW = noise_BCHW if kind == "epsilon" else oracle.get_velocity(latents_BCHW, noise_BCHW, times_B)
    assert torch.equal(sdxl.target(scheduler, latents_BCHW, noise_BCHW, times_B), wanted_BCHW)


def test_training_never_noises_with_the_sampler_that_the_model_ships(tiny_sdxl: Path) -> None:
    shipped = EulerDiscreteScheduler.from_pretrained(tiny_sdxl / "scheduler")
    zeros_BCHW, noise_BCHW = torch.zeros(1, 4, 32, 32), torch.randn(1, 4, 32, 32)
    at_900 = torch.tensor([900])
    euler = shipped.add_noise(zeros_BCHW, noise_BCHW, shipped.timesteps[(shipped.timesteps - 900).abs().argmin()][None])
    ours = sdxl.add_noise(sdxl.noising(str(tiny_sdxl)), zeros_BCHW, noise_BCHW, at_900)
    assert euler.std() > 5 and ours.std() < 1.1


def test_min_snr_weights_are_those_of_the_paper(tiny_sdxl: Path, tiny_sdxl_v: Path) -> None:
    times_B = torch.arange(1000)
    for model, divisor in ((tiny_sdxl, 0.0), (tiny_sdxl_v, 1.0)):
        scheduler = sdxl.noising(str(model))
        alphas_B = scheduler.alphas_cumprod
        snr_B = alphas_B / (1 - alphas_B)
        weights_B = sdxl.weights(scheduler, times_B, 5.0)
        assert torch.allclose(weights_B, torch.minimum(snr_B, torch.tensor(5.0)) / (snr_B + divisor))
        assert torch.equal(sdxl.weights(scheduler, times_B, 0.0), torch.ones(1000))
    assert sdxl.weights(sdxl.noising(str(tiny_sdxl)), times_B, 5.0).mean() == pytest.approx(0.917, abs=0.001)


def test_one_time_for_each_image_is_asked_for(tiny_sdxl: Path) -> None:
    scheduler = sdxl.noising(str(tiny_sdxl))
    with pytest.raises(ValueError, match="one time per image: got 1 for 2"):
        sdxl.add_noise(scheduler, torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8), torch.tensor([3]))


def test_size_numbers_reach_the_sinusoid_in_float32(tiny_sdxl: Path) -> None:
    """bfloat16 has no 1333, only 1328 and 1336, which turns the fastest sinusoid by half a circle."""
    unet = sdxl.load_denoiser(str(tiny_sdxl), torch.bfloat16, "cpu")
    seen: list[torch.Tensor] = []
    unet.add_time_proj.register_forward_hook(lambda _, __, output: seen.append(output))
    ids_BS = sdxl.size_numbers((1333, 1024), (0, 0), (1024, 1024))[None]
    zeros = torch.zeros(1, 4, 8, 8), torch.tensor([5]), sdxl.Encoded(torch.zeros(1, 77, 32), torch.zeros(1, 16))
    prediction_BCHW = sdxl.predict(unet, *zeros, ids_BS)
    assert prediction_BCHW.dtype == torch.float32
    exact = sdxl.load_denoiser(str(tiny_sdxl), torch.float32, "cpu").add_time_proj(ids_BS.flatten())
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], exact)


def test_prediction_is_the_unets_own(tiny_sdxl: Path) -> None:
    unet = sdxl.load_denoiser(str(tiny_sdxl), torch.float32, "cpu")
    noisy_BCHW, text_BLD, pooled_BP = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32), torch.randn(2, 16)
    ids_BS = torch.tensor([[64.0, 80, 0, 8, 64, 64]] * 2)
    with torch.no_grad():
        ours = sdxl.predict(unet, noisy_BCHW, torch.tensor([3, 700]), sdxl.Encoded(text_BLD, pooled_BP), ids_BS)
        conditions = {"text_embeds": pooled_BP, "time_ids": ids_BS}
        theirs = unet(noisy_BCHW, torch.tensor([3, 700]), text_BLD, added_cond_kwargs=conditions).sample
    assert torch.equal(ours, theirs)


# -- folders --


def test_layout_reads_sizes_from_the_configs(tiny_sdxl: Path, tiny_sdxl_v: Path, tiny_refiner: Path) -> None:
    base, refiner = layouts.layout(str(tiny_sdxl)), layouts.layout(str(tiny_refiner))
    assert (base.latent_channels, base.downscale, base.pixel_step, base.side_px, base.text_width) == (4, 8, 32, 64, 32)
    assert (base.is_refiner, refiner.is_refiner) == (False, True)
    assert layouts.layout(str(tiny_sdxl_v)).prediction_type == "v_prediction"


@pytest.mark.parametrize("name", ["/nowhere/sdxl", "./sdxl", "models/here/sdxl", "sdxl-folder"])
def test_a_missing_local_folder_is_said_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_snapshot", lambda _: pytest.fail("looked up on the network"))
    with pytest.raises(ModelError, match="No model folder .*Give an existing folder"):
        folders.model_folder(name)


def test_a_hub_model_that_is_not_here_gives_the_command_to_type(tmp_path: Path) -> None:
    """In a process of its own, because the hub reads its environment when it is imported."""
    code = "from lace_lora.families import folders; folders.model_folder('someone/some-sdxl')"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=Path.cwd())
    sentence = done.stderr.strip().splitlines()[-1]
    assert "someone/some-sdxl is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it." in sentence
    assert "hf download someone/some-sdxl --include" in sentence


def test_a_hub_model_in_the_cache_is_found_without_a_network(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "models--someone--some-sdxl" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_sdxl, snapshot)
    reference = snapshot.parents[1] / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("0" * 40)
    find = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **words: find(name, cache_dir=tmp_path, **words)
    )
    assert folders.model_folder("someone/some-sdxl") == str(snapshot)
    shutil.rmtree(snapshot / "unet")
    with pytest.raises(ModelError, match="not on this machine"):
        folders.model_folder("someone/some-sdxl")


def test_fetching_takes_what_is_read_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    weights = [
        f"{part}/{stem}{kind}"
        for part, stem in (
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
        )
        for kind in (".safetensors", ".fp16.safetensors", ".bin")
    ]
    others = [
        "model_index.json",
        "unet/config.json",
        "tokenizer/merges.txt",
        "sd_xl_base_1.0.safetensors",
        "unet/model.onnx",
    ]
    asked: list[list[str]] = []

    def download(name: str, local_files_only: bool = False, allow_patterns: list[str] | None = None) -> str:
        if local_files_only:
            raise FileNotFoundError
        asked.append(allow_patterns or [])
        raise ConnectionError("the line is dead")

    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in weights + others])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda _: listed))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        ModelError, match="could not be fetched: ConnectionError, the line is dead. Fetch it on a machine"
    ):
        folders.model_folder("someone/some-sdxl")
    assert sorted(asked[0]) == [
        "model_index.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_fp16_files_are_read_where_they_are_the_only_ones(tiny_sdxl: Path, tmp_path: Path) -> None:
    half = build_tiny_sdxl(tmp_path / "half", variant="fp16")
    assert list((half / "unet").glob("*.safetensors"))[0].name == "diffusion_pytorch_model.fp16.safetensors"
    plain = sdxl.load_denoiser(str(tiny_sdxl), torch.float32, "cpu")
    ours = sdxl.load_denoiser(str(half), torch.float32, "cpu")
    assert torch.equal(ours.conv_in.weight, plain.conv_in.weight)
    assert len(sdxl.load_text(str(half), torch.float32, "cpu").encoders) == 2
    assert folders.weight_variant(tiny_sdxl / "unet", wants_half=True) is None
    shutil.copy(half / "unet" / "diffusion_pytorch_model.fp16.safetensors", tmp_path / "a.fp16.safetensors")
    shutil.copy(tiny_sdxl / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "a.safetensors")
    assert folders.weight_variant(tmp_path, wants_half=True) == "fp16"
    assert folders.weight_variant(tmp_path, wants_half=False) is None


def copy_of(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return folder


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_wrong_with_a_folder_is_named(tiny_sdxl: Path, tmp_path: Path) -> None:
    no_unet = copy_of(tiny_sdxl, tmp_path / "no_unet")
    shutil.rmtree(no_unet / "unet")
    with pytest.raises(ModelError, match="not a complete model in the diffusers layout: unet missing"):
        sdxl.load_denoiser(str(no_unet), torch.float32, "cpu")

    pickled = copy_of(tiny_sdxl, tmp_path / "pickled")
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"No .safetensors weights .*\.bin files are not read"):
        sdxl.load_denoiser(str(pickled), torch.float32, "cpu")

    cut_off = copy_of(tiny_sdxl, tmp_path / "cut_off")
    weights = cut_off / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="unet cannot be loaded .*damaged or of another model"):
        sdxl.load_denoiser(str(cut_off), torch.float32, "cpu")

    deeper = copy_of(tiny_sdxl, tmp_path / "deeper")
    change_json(deeper / "unet" / "config.json", transformer_layers_per_block=[1, 1, 3])
    with pytest.raises(ModelError, match="does not hold all weights that its config promises"):
        sdxl.load_denoiser(str(deeper), torch.float32, "cpu")

    other = copy_of(tiny_sdxl, tmp_path / "other")
    change_json(other / "unet" / "config.json", addition_embed_type=None)
    with pytest.raises(ModelError, match="its unet is a UNet2DConditionModel. Choose a base model of: Stable Diff"):
        layouts.layout(str(other))

    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a single file; a folder in the diffusers layout"):
        folders.model_folder(str(tmp_path / "model.safetensors"))


def test_schedules_that_cannot_be_learnt_are_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_sdxl, tmp_path / "model")
    change_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    with pytest.raises(ModelError, match="zero terminal SNR with epsilon prediction"):
        sdxl.noising(str(folder))
    change_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample", rescale_betas_zero_snr=False)
    with pytest.raises(ModelError, match="predicts 'sample'; only epsilon and v_prediction"):
        sdxl.noising(str(folder))


# -- SDXL's true sizes, on the meta device --


@pytest.fixture(scope="module")
def true_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL_UNET)


def test_every_lora_target_of_the_true_sdxl_is_found(true_unet: UNet2DConditionModel) -> None:
    assert sum(parameter.numel() for parameter in true_unet.parameters()) == pytest.approx(2567.5e6, rel=1e-4)
    names = [name for name, _ in true_unet.named_modules()]
    counts = {kind: 0 for kind in ("attention", "attention+ff")}
    for kind in counts:
        targets = sdxl.lora_targets(kind)
        counts[kind] = sum(any(name.endswith(f".{target}") for target in targets) for name in names)
    assert counts == {"attention": 560, "attention+ff": 700}  # 70 transformer blocks: 8 in attention, 2 in feed-forward


def test_the_tiny_sdxl_has_the_true_layout(true_unet: UNet2DConditionModel) -> None:
    tiny = UNet2DConditionModel(**unet_config(cross_attention_dim=32, pooled=16, time_ids=6))
    theirs = {type(module).__name__ for _, module in true_unet.named_modules()}
    assert {type(module).__name__ for _, module in tiny.named_modules()} == theirs
    assert {name for name, _ in tiny.named_children()} == {name for name, _ in true_unet.named_children()}


def test_importing_and_loading_says_nothing(tiny_sdxl: Path) -> None:
    code = (
        "import torch; from lace_lora.families import sdxl; "
        f"model = {str(tiny_sdxl)!r}; "
        "sdxl.load_denoiser(model, torch.float32, 'cpu'); sdxl.load_text(model, torch.float32, 'cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), check=True)
    assert (done.stdout, done.stderr) == ("", "")
