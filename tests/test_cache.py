"""The cache: which pixels are learnt, their size numbers, and that nothing is encoded twice or for another model."""

import hashlib
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lace_lora import cache
from lace_lora.data_utils import Example, open_picture
from lace_lora.errors import MachineError, ModelError, PicturesError, RunError
from lace_lora.families import sdxl
from tests.conftest import draw_lace

ORIENTATION = 0x0112


def build(
    examples: list[Example], model: Path, folder: Path, flips: bool = True, said: list[str] | None = None
) -> cache.Cache:
    said = [] if said is None else said
    settings = {"flips": flips, "dtype": torch.float32, "device": "cpu", "cache_dir": folder, "say": said.append}
    return cache.build(examples, str(model), 64, **settings)


@pytest.fixture
def examples(lace_folder: Path) -> list[Example]:
    captions = ["a photo of <myspecialstyle>", "a photo of <myspecialstyle>, leaves"]
    return [Example(path, captions[number % 2]) for number, path in enumerate(sorted(lace_folder.glob("*.jpg")))]


# -- which pixels --


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (768, 64), (512, 64), (96, 16), (64, 32), (40, 32)])
def test_buckets_have_at_most_the_wished_area_and_sides_that_the_model_takes(resolution: int, step: int) -> None:
    found = cache.buckets(resolution, step)
    assert (resolution // step * step,) * 2 in found
    assert all(height * width <= resolution**2 and height % step == 0 and width % step == 0 for height, width in found)
    assert all(max(one) <= 3 * min(one) for one in found)
    assert {(width, height) for height, width in found} == set(found)


def test_bucket_steps_suit_the_training_size_and_the_model() -> None:
    assert [cache.bucket_step(side, pixel_step=32) for side in (1024, 512, 256)] == [64, 64, 32]
    assert cache.bucket_step(96, pixel_step=16) == 16


def test_cuts_by_hand() -> None:
    square = cache.cut_of(1500, 1500, 1024, 64)
    assert (square.resized_hw, square.crop_top_left, square.target_hw) == ((1024, 1024), (0, 0), (1024, 1024))
    # 3 : 2 → 832 × 1216 is the nearest shape; scaled to cover it, 1248 px wide, of which 16 fall on each side.
    wide = cache.cut_of(3000, 2000, 1024, 64)
    assert (wide.target_hw, wide.resized_hw, wide.crop_top_left) == ((832, 1216), (832, 1248), (0, 16))
    assert wide.time_ids().tolist() == [2000, 3000, 0, 16, 832, 1216]
    assert wide.time_ids().dtype == torch.float32
    # Odd rest: 33 px too wide; 16 fall left, 17 right, and the other way round in the mirrored picture.
    odd, mirrored = (cache.cut_of(97, 64, 64, 32, is_flipped) for is_flipped in (False, True))
    assert (odd.resized_hw, odd.crop_top_left, mirrored.crop_top_left) == ((64, 97), (0, 16), (0, 17))


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose red says how far right, and whose green how far down, a pixel lies."""
    across, down = numpy.meshgrid(numpy.arange(width), numpy.arange(height))
    pixels = numpy.stack([across * 255 / (width - 1), down * 255 / (height - 1), 0 * across], axis=-1)
    return Image.fromarray(pixels.round().astype(numpy.uint8))


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("size", [(320, 200), (200, 320), (300, 300), (480, 160)])
def test_size_numbers_tell_of_the_pixels_really_cut(
    orientation: int, is_flipped: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    """The upright picture is a gradient, so each cut pixel tells where it was; time_ids must say the same."""
    upright = gradient(*size)
    # How a camera stores this upright picture when it writes that orientation: the inverse of what a viewer does.
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose members
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turn[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "picture.png", exif=exif)

    picture = open_picture(tmp_path / "picture.png")
    assert picture.size == size
    cut = cache.cut_of(*picture.size, 128, 16, is_flipped)
    pixels_CHW = cache.pixels_of(picture, cut)
    height, width, top, left, target_h, target_w = cut.time_ids().tolist()
    assert (width, height) == size and pixels_CHW.shape == (3, target_h, target_w)
    resized_h, resized_w = cut.resized_hw

    seen_x = (pixels_CHW[0] + 1) / 2 * resized_w  # where, in px of the scaled picture, each pixel was
    seen_y = (pixels_CHW[1] + 1) / 2 * resized_h
    if is_flipped:
        seen_x = resized_w - seen_x
    told_x = left + torch.arange(target_w) + 0.5
    told_y = top + torch.arange(target_h) + 0.5
    assert (seen_x - told_x).abs().median() < 1 and (seen_x - told_x).abs().max() < 2.5
    assert (seen_y - told_y[:, None]).abs().median() < 1 and (seen_y - told_y[:, None]).abs().max() < 2.5


# -- once --


def test_what_is_cached_is_what_encoding_gives(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    made = build(examples, tiny_sdxl, tmp_path / "cache")
    vae, text = (
        sdxl.load_vae(str(tiny_sdxl), torch.float32, "cpu"),
        sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu"),
    )
    for number, sample in enumerate(made.samples):
        for is_flipped in (False, True):
            batch = made.batch([(number, is_flipped)], "cpu")
            pixels_CHW = cache.pixels_of(open_picture(sample.path), sample.cuts[is_flipped])
            mean_BCHW, std_BCHW = sdxl.encode_images(vae, pixels_CHW[None])
            assert torch.equal(batch.mean_BCHW, mean_BCHW) and torch.equal(batch.std_BCHW, std_BCHW)
            assert torch.equal(batch.time_ids_BS[0], sample.cuts[is_flipped].time_ids())
            words = sdxl.encode_captions(text, [sample.caption])
            assert torch.equal(batch.text_BLD, words.text_BLD) and torch.equal(batch.pooled_BP, words.pooled_BP)
            assert batch.mean_BCHW.dtype == batch.std_BCHW.dtype == torch.float32


def test_only_what_is_new_is_encoded(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(examples, tiny_sdxl, tmp_path / "cache")
    pictures, captions = spy(monkeypatch, "encode_images"), spy(monkeypatch, "encode_captions")
    monkeypatch.setattr(cache, "open_picture", lambda path: pictures.append(path) or open_picture(path))
    again = build(examples, tiny_sdxl, tmp_path / "cache")
    assert (pictures, captions) == ([], [])
    assert all(torch.equal(before.entries[key], again.entries[key]) for key in before.entries)

    draw_lace(tmp_path / "other", ((90, 90),))
    shutil.copy(tmp_path / "other" / "lace_0.jpg", examples[2].path)
    changed = [*examples[:5], Example(examples[5].path, "a new caption <myspecialstyle>")]
    build(changed, tiny_sdxl, tmp_path / "cache")
    assert len([one for one in pictures if isinstance(one, torch.Tensor)]) == 2  # one picture, two sides
    assert captions == [["a new caption <myspecialstyle>"]]


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    seen: list[object] = []
    original = getattr(sdxl, name)
    monkeypatch.setattr(sdxl, name, lambda model, things: seen.append(things) or original(model, things))
    return seen


def test_names_and_order_do_not_matter_but_contents_do(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path
) -> None:
    digest = cache.data_digest(examples)
    moved = [Example(tmp_path / f"renamed_{number}.jpg", one.caption) for number, one in enumerate(examples)]
    for one, other in zip(examples, moved, strict=True):
        shutil.copy(one.path, other.path)
    assert cache.data_digest(moved[::-1]) == digest
    other_words = [*moved[:5], Example(moved[5].path, "else")]
    assert cache.data_digest(other_words) != digest


def test_another_models_latents_are_never_read(
    tiny_sdxl: Path, tiny_sdxl_v: Path, examples: list[Example], tmp_path: Path
) -> None:
    """Fine-tunes of SDXL have files of the same name and size: contents decide, and the UNet does not count."""
    folder = tmp_path / "cache"
    build(examples, tiny_sdxl, folder)
    build(examples, tiny_sdxl_v, folder)
    assert len(list(folder.glob("*.safetensors"))) == 1  # it differs in its scheduler only
    other = tmp_path / "other_vae"
    shutil.copytree(tiny_sdxl, other)
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(bytes(data))
    build(examples, other, folder)
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_a_distinct_caption_is_encoded_once(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    build(examples, tiny_sdxl, tmp_path / "cache", flips=False)
    kept = load_file(next((tmp_path / "cache").glob("*.safetensors")))
    kinds = [key.split("/")[0] for key in kept]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"latents": 6, "size": 6, "text": 2, "pooled": 2}


def test_a_cut_off_keeps_what_was_encoded(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = sdxl.encode_images, 0

    def interrupted(vae: object, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return original(vae, pixels)

    monkeypatch.setattr(sdxl, "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(examples, tiny_sdxl, tmp_path / "cache")
    said: list[str] = []
    build(examples, tiny_sdxl, tmp_path / "cache", said=said)
    assert "pictures  2 encoded before, 4 to encode" in said
    assert count == 5 + 8


def test_a_picture_that_gives_nan_is_named(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sdxl.encode_images
    calls: list[int] = []

    def overflowing(vae: object, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        mean, std = original(vae, pixels)
        return (mean * float("nan"), std) if len(calls) == 3 else (mean, std)

    monkeypatch.setattr(sdxl, "encode_images", overflowing)
    with pytest.raises(PicturesError, match="lace_1.jpg gives NaN or infinity in the VAE"):
        build(examples, tiny_sdxl, tmp_path / "cache")
    kept = load_file(next((tmp_path / "cache").glob("*.safetensors")))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


def test_a_cache_that_cannot_be_read_is_made_anew(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    whole = build(examples, tiny_sdxl, tmp_path / "cache")
    file = next((tmp_path / "cache").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    said: list[str] = []
    again = build(examples, tiny_sdxl, tmp_path / "cache", said=said)
    assert "cannot be read" in said[0] and "encoded again" in said[0]
    assert all(torch.equal(whole.entries[key], again.entries[key]) for key in whole.entries)


def test_a_full_disk_is_a_sentence_and_the_earlier_cache_stays(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(examples[:3], tiny_sdxl, tmp_path / "cache")
    file = next((tmp_path / "cache").glob("*.safetensors"))
    before = hashlib.sha256(file.read_bytes()).digest()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(MachineError, match="The disk is full"):
        build(examples, tiny_sdxl, tmp_path / "cache")
    assert hashlib.sha256(file.read_bytes()).digest() == before


def test_a_cache_folder_that_cannot_be_made_names_the_setting(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="The cache .* cannot be written .*Choose another cache_dir"):
        build(examples[:1], tiny_sdxl, tmp_path / "file" / "cache")


def test_a_refiner_and_a_missing_picture_are_refused(
    tiny_sdxl: Path, tiny_refiner: Path, examples: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="is a refiner; a LoRA is trained on a base model"):
        build(examples, tiny_refiner, tmp_path / "cache")
    examples[1].path.unlink()
    with pytest.raises(PicturesError, match="lace_1.jpg cannot be read"):
        build(examples, tiny_sdxl, tmp_path / "cache")


def test_vae_and_text_encoders_are_never_in_memory_together(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc

    kinds = {"AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection", "UNet2DConditionModel"}
    before = [one for one in gc.get_objects() if type(one).__name__ in kinds]  # held, so that no id is used twice

    def alive() -> set[str]:
        gc.collect()
        known = {id(one) for one in before}
        return {type(one).__name__ for one in gc.get_objects() if type(one).__name__ in kinds and id(one) not in known}

    seen: list[set[str]] = []
    for name in ("load_vae", "load_text"):
        load = getattr(sdxl, name)
        monkeypatch.setattr(sdxl, name, lambda *words, load=load: seen.append(alive()) or load(*words))
    build(examples, tiny_sdxl, tmp_path / "cache")
    assert seen == [set(), set()] and alive() == set()
