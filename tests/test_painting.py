"""Latents to pictures: in half precision where the VAE allows it, again in fp32 where that failed, and never black."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from lace_lora import painting
from lace_lora.errors import MachineError
from lace_lora.families import memory, sdxl
from lace_lora.families.quiet import quiet
from lace_lora.mishaps import OutOfMemory
from lace_lora.shelf import Shelf
from tests import conftest

HALF = torch.float16
SMALL, LARGE = 1.0, 200.0  # latents that the touchy VAE below can paint in fp16, and that overflow in it


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes 0.3 s each time with all these libraries loaded."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


def with_vae(base: Path, folder: Path, change: Callable[[Any], None] = lambda vae: None, **config: Any) -> str:
    """A copy of a base model with a VAE of its own, changed."""
    shutil.copytree(base, folder)
    shutil.rmtree(folder / "vae")
    torch.manual_seed(5)
    vae = AutoencoderKL(**conftest.vae_config() | {"force_upcast": False} | config)
    with quiet(), torch.no_grad():
        change(vae)
        vae.eval().save_pretrained(folder / "vae")
    return str(folder)


def touchy(vae: Any) -> None:
    """Values of some thousands behind the first convolution, which the norms take back: fp16 ends at 65504."""
    vae.decoder.conv_in.weight.mul_(1000)


@pytest.fixture(scope="module")
def safe_model(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return with_vae(tiny_sdxl, tmp_path_factory.mktemp("models") / "safe")


@pytest.fixture(scope="module")
def touchy_model(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return with_vae(tiny_sdxl, tmp_path_factory.mktemp("models") / "touchy", touchy)


def latents_of(seed: int, size: float = SMALL) -> Tensor:
    return size * 0.13 * torch.randn((4, 6, 8), generator=torch.Generator().manual_seed(seed))


def decoded(model: str, latents: list[Tensor], **more: Any) -> list[Image.Image]:
    named = [(f"{number}.png", one) for number, one in enumerate(latents)]
    return list(painting.decode(model, named, device="cpu", **{"say": unsaid} | more))


def unsaid(line: str) -> None:
    raise AssertionError(f"nothing was to be said: {line}")


def theirs(model: str, latents_CHW: Tensor, dtype: torch.dtype) -> Image.Image:
    """The picture by diffusers alone."""
    with quiet():
        vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=dtype)
    with torch.no_grad():
        pixels_BCHW = vae.decode((latents_CHW[None] / 0.13025).to(dtype), return_dict=False)[0]
    (image,) = VaeImageProcessor().postprocess(pixels_BCHW.float())
    return image


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest, in grey levels of 255."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def loads_of(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtype of every VAE that is loaded from now on."""
    loads: list[torch.dtype] = []
    load = sdxl.load_vae
    monkeypatch.setattr(
        sdxl, "load_vae", lambda model, dtype, device: (loads.append(dtype), load(model, dtype, device))[1]
    )
    return loads


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_L15_a_picture_is_the_one_that_diffusers_vae_decodes_in_the_same_dtype(
    safe_model: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = loads_of(monkeypatch)
    [picture] = decoded(safe_model, [latents_of(1)], dtype=dtype)
    assert picture.size == (64, 48) and np.ptp(np.asarray(picture)) > 50
    assert difference(picture, theirs(safe_model, latents_of(1), dtype)) <= 1
    assert loads == [dtype]


@pytest.mark.parametrize("config", [{"force_upcast": True}, None])
def test_L15_a_vae_that_overflows_in_half_precision_by_its_config_decodes_in_fp32(
    tiny_sdxl: Path, tmp_path: Path, config: dict[str, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL's own says so; of one that says nothing the same is believed."""
    model = with_vae(tiny_sdxl, tmp_path / "model", touchy, **(config or {}))
    if config is None:
        path = tmp_path / "model" / "vae" / "config.json"
        said = json.loads(path.read_text())
        del said["force_upcast"]
        path.write_text(json.dumps(said))
    loads = loads_of(monkeypatch)
    [picture] = decoded(model, [latents_of(1, LARGE)], dtype=HALF)
    assert loads == [torch.float32] and difference(picture, theirs(model, latents_of(1, LARGE), torch.float32)) <= 1


def test_L15_a_picture_that_overflows_in_half_precision_is_decoded_again_in_fp32_and_that_is_said_once(
    touchy_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    loads = loads_of(monkeypatch)
    latents = [latents_of(seed, LARGE) for seed in range(3)]
    assert not torch.isfinite(raw(touchy_model, latents[0], HALF)).all()
    pictures = decoded(touchy_model, latents, dtype=HALF, say=lines.append)
    for picture, one in zip(pictures, latents, strict=True):
        assert difference(picture, theirs(touchy_model, one, torch.float32)) <= 1
        assert np.ptp(np.asarray(picture)) > 50
    assert lines == ["! 0.png is NaN or one colour in fp16: decoded again in fp32, like all such."]
    assert loads == [HALF, torch.float32]


def raw(model: str, latents_CHW: Tensor, dtype: torch.dtype) -> Tensor:
    with quiet():
        vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=dtype)
    with torch.no_grad():
        pixels: Tensor = vae.decode((latents_CHW[None] / 0.13025).to(dtype), return_dict=False)[0]
    return pixels.float()


@pytest.mark.parametrize("repeat", ["none", "straight"])
def test_L6_a_pictures_bytes_do_not_depend_on_the_failures_of_others(touchy_model: str, repeat: Any) -> None:
    """A sheet that is finished later, or shared out, has the same files: each is decoded as if it were alone."""
    latents = [latents_of(1), latents_of(2, LARGE), latents_of(3)]
    ways: dict[str, Any] = {"repeat": repeat, "say": lambda line: None}
    together = decoded(touchy_model, latents, dtype=HALF, **ways)
    alone = [decoded(touchy_model, [one], dtype=HALF, **ways)[0] for one in latents]
    assert [one.tobytes() for one in together] == [one.tobytes() for one in alone]
    whole = decoded(touchy_model, latents, **ways)
    assert [difference(*pair) == 0 for pair in zip(together, whole, strict=True)] == [False, True, False]


def test_L15_a_black_picture_is_decoded_again_in_fp32(safe_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AutoencoderKL.decode

    def black(vae: Any, latents: Tensor, **more: Any) -> Any:
        [pixels] = plain(vae, latents, **more)
        return (torch.full_like(pixels, -1.0),) if vae.dtype == HALF else (pixels,)

    monkeypatch.setattr(AutoencoderKL, "decode", black)
    lines: list[str] = []
    [picture] = decoded(safe_model, [latents_of(1)], dtype=HALF, say=lines.append)
    monkeypatch.undo()
    assert len(lines) == 1 and difference(picture, theirs(safe_model, latents_of(1), torch.float32)) <= 1


def test_L15_a_picture_that_is_of_one_colour_in_fp32_too_is_that_picture(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Plain cloth is no fault."""
    model = with_vae(tiny_sdxl, tmp_path / "plain", lambda vae: vae.decoder.conv_out.weight.zero_())
    [picture] = decoded(model, [latents_of(1)], dtype=HALF, say=lambda line: None)
    assert np.ptp(np.asarray(picture), axis=(0, 1)).max() == 0
    [picture] = decoded(model, [latents_of(1)])
    assert np.ptp(np.asarray(picture), axis=(0, 1)).max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_L15_a_picture_that_is_not_finite_in_fp32_is_named_and_never_made_black(
    safe_model: str, dtype: torch.dtype
) -> None:
    bad = latents_of(2)
    bad[0, 0, 0] = torch.nan
    named = [("good.png", latents_of(1)), ("bad.png", bad)]
    decoding = painting.decode(safe_model, named, device="cpu", dtype=dtype, say=lambda line: None)
    assert next(decoding).size == (64, 48)
    with pytest.raises(
        MachineError, match=r"^bad\.png became NaN while decoding, so there is no picture to write\. Next"
    ):
        next(decoding)


def test_L19_where_memory_runs_out_the_shelf_is_emptied_and_the_picture_tried_once_more(
    safe_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in tiles, which have seams, nor in half precision: the same bytes."""
    lines: list[str] = []
    shelf, tries = Shelf(1e9, lines.append), []
    plain, wanted = AutoencoderKL.decode, decoded(safe_model, [latents_of(1)])
    with shelf.lent(painting._vae(safe_model, None, HALF, "cpu")):
        pass  # something else lies there

    def short(vae: Any, latents: Tensor, **more: Any) -> Any:
        tries.append(len(shelf._kept))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(vae, latents, **more)

    monkeypatch.setattr(AutoencoderKL, "decode", short)
    [picture] = decoded(safe_model, [latents_of(1)], shelf=shelf)
    assert tries == [1, 0] and picture.tobytes() == wanted[0].tobytes()
    assert lines == ["memory    is short: fewer models are kept between stages from now on"]

    tries.clear()
    with pytest.raises(OutOfMemory, match="ran out of memory while turning latents into pictures"):
        decoded(safe_model, [latents_of(1)], shelf=shelf)
    assert tries == [0]


def test_a_vae_that_needs_fp32_is_told_by_its_config(safe_model: str, tiny_sdxl: Path) -> None:
    """L15: also of another VAE, given as a folder of its own or as a whole model."""
    assert painting.needs_fp32(str(tiny_sdxl)) and not painting.needs_fp32(safe_model)
    assert not painting.needs_fp32(str(tiny_sdxl), safe_model) and painting.needs_fp32(safe_model, str(tiny_sdxl))
    assert not painting.needs_fp32(str(tiny_sdxl), f"{safe_model}/vae")
