"""Pictures and captions encoded once, into one file; afterwards neither the VAE nor the text encoders are needed.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
S size numbers (6)

The file is keyed by content: a changed picture is one new entry, another model another file. Latents' mean and standard
deviation are kept in float32, unscaled, one entry for each crop and flip.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from pathlib import Path
from time import monotonic

import numpy
from PIL import Image

from lace_lora import checkpoint
from lace_lora.data_utils import Example, open_picture
from lace_lora.errors import ModelError, PicturesError, RunError
from lace_lora.families import folders, sdxl
from lace_lora.families.quiet import quiet

with quiet():
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
    from torch import Tensor

Say = Callable[[str], None]
WIDEST = 3.0  # sides of a bucket are never more than 3 : 1
SAVE_EVERY_SECONDS = 60.0  # a cut-off while encoding loses at most this much


@dataclass(frozen=True)
class Cut:
    """Which pixels of an upright picture are learnt: it is scaled to resized_hw, then target_hw is cut out of it."""

    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_hw: tuple[int, int]
    is_flipped: bool

    def time_ids(self) -> Tensor:
        """SDXL's size numbers of these pixels, float32 [6]."""
        return sdxl.time_ids(self.original_hw, self.crop_top_left, self.target_hw)


@dataclass(frozen=True)
class Sample:
    """One picture with its caption and its cuts: as it is, and mirrored where flips are wanted."""

    path: Path
    caption: str
    sha256: str
    cuts: tuple[Cut, ...]

    @property
    def bucket(self) -> tuple[int, int]:
        """Height and width in px of its cuts."""
        return self.cuts[0].target_hw


@dataclass(frozen=True)
class Batch:
    """What the UNet trains on, of one bucket."""

    mean_BCHW: Tensor
    std_BCHW: Tensor
    text_BLD: Tensor
    pooled_BP: Tensor
    time_ids_BS: Tensor


@dataclass(frozen=True)
class Cache:
    """Everything encoded of some pictures, in memory."""

    samples: tuple[Sample, ...]
    entries: dict[str, Tensor]
    text_key: str

    def latent_shape(self, sample: int) -> tuple[int, int, int]:
        """C, H, W of a picture's latents."""
        _, channels, height, width = self.entries[_latent_key(self.samples[sample], 0)].shape
        return channels, height, width

    def batch(self, picks: Sequence[tuple[int, bool]], device: str) -> Batch:
        """Pictures of one bucket, each given as (number of the sample, whether its mirrored cut is wanted)."""
        chosen = [
            (self.samples[number], len(self.samples[number].cuts) - 1 if is_flipped else 0)
            for number, is_flipped in picks
        ]
        latents_B2CHW = torch.stack([self.entries[_latent_key(sample, cut)] for sample, cut in chosen])
        words = [_caption_key(sample.caption, self.text_key) for sample, _ in chosen]
        return Batch(
            mean_BCHW=latents_B2CHW[:, 0].to(device),
            std_BCHW=latents_B2CHW[:, 1].to(device),
            text_BLD=torch.stack([self.entries[f"text/{key}"] for key in words]).to(device),
            pooled_BP=torch.stack([self.entries[f"pooled/{key}"] for key in words]).to(device),
            time_ids_BS=torch.stack([sample.cuts[cut].time_ids() for sample, cut in chosen]).to(device),
        )


def build(
    examples: Sequence[Example], model: str, resolution: int, *,
    flips: bool, dtype: torch.dtype, device: str, cache_dir: str | Path, say: Say = print,
) -> Cache:  # fmt: skip
    """Encode what is not encoded yet and return everything of these examples.

    dtype  of the text encoders; the VAE always works in float32, because SDXL's overflows to NaN in fp16

    Raises PicturesError naming the file that cannot be read or gives NaN; what was encoded until then is kept.
    """
    sizes = sdxl.layout(model)
    if sizes.is_refiner:
        raise ModelError(
            f"{model} is a refiner; a LoRA is trained on a base model, "
            "such as stabilityai/stable-diffusion-xl-base-1.0."
        )
    step = bucket_step(resolution, sizes.pixel_step)
    file = _CacheFile.open(Path(cache_dir).expanduser() / f"{_model_key(model)}.safetensors", say)
    text_key = str(dtype).removeprefix("torch.")
    try:
        samples = tuple(_sample(example, resolution, step, flips, file) for example in examples)
        _encode_pictures(samples, model, device, file, say)
        _encode_captions(samples, model, dtype, device, file, text_key, say)
    finally:  # also when a picture is refused or the person stops: what is done is done
        file.save()
    latents = [_latent_key(sample, cut) for sample in samples for cut in range(len(sample.cuts))]
    words = {_caption_key(sample.caption, text_key) for sample in samples}
    wanted = [*latents, *(f"{kind}/{key}" for kind in ("text", "pooled") for key in words)]
    return Cache(samples, {key: file.entries[key] for key in wanted}, text_key)


def in_order(examples: Iterable[Example]) -> list[Example]:
    """Examples by content and caption: chance is drawn by place, so a renamed file must not change its place."""
    return sorted(examples, key=lambda one: (_digest_of(one.path), one.caption))


def data_digest(examples: Iterable[Example]) -> str:
    """sha256 (hex) of the pictures' contents and captions, whatever their folder or order."""
    rows = sorted(f"{_digest_of(example.path)}\t{example.caption}" for example in examples)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


# -- which pixels --


def bucket_step(resolution: int, pixel_step: int) -> int:
    """Sides of buckets are multiples of this: 64 px as SDXL was trained (16 below 512 px), if the model can take it."""
    return lcm(64 if resolution >= 512 else 16, pixel_step)


def buckets(resolution: int, step: int) -> list[tuple[int, int]]:
    """All (height, width) of about resolution² px and at most 3 : 1; never more px than resolution²."""
    square = max(step, resolution // step * step)
    found = {(square, square)}
    for short in range(step, square + 1, step):
        long = resolution * resolution // short // step * step
        if short <= long <= WIDEST * short:
            found |= {(short, long), (long, short)}
    return sorted(found)


def cut_of(width: int, height: int, resolution: int, step: int, is_flipped: bool = False) -> Cut:
    """The cut of an upright picture of this size: the bucket of the nearest shape, from the middle.

    A mirrored cut comes from the mirrored picture, so its left edge is what was on the right.
    """
    shape = width / height
    target_h, target_w = min(
        buckets(resolution, step), key=lambda hw: (max(shape * hw[0] / hw[1], hw[1] / (shape * hw[0])), -hw[0] * hw[1])
    )
    scale = max(target_h / height, target_w / width)
    resized_h, resized_w = max(target_h, round(height * scale)), max(target_w, round(width * scale))
    top, left = (resized_h - target_h) // 2, (resized_w - target_w) // 2
    if is_flipped:
        left = resized_w - target_w - left
    return Cut((height, width), (resized_h, resized_w), (top, left), (target_h, target_w), is_flipped)


def pixels_of(picture: Image.Image, cut: Cut) -> Tensor:
    """The cut's pixels, CHW, float32, -1..1."""
    resized_h, resized_w = cut.resized_hw
    (top, left), (target_h, target_w) = cut.crop_top_left, cut.target_hw
    scaled = picture.resize((resized_w, resized_h), Image.Resampling.LANCZOS)
    if cut.is_flipped:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels_HWC = numpy.asarray(scaled.crop((left, top, left + target_w, top + target_h)), dtype=numpy.float32)
    return torch.from_numpy(pixels_HWC / 127.5 - 1).permute(2, 0, 1).contiguous()


# -- inside --


@dataclass
class _CacheFile:
    """The file's entries in memory; written whole and atomically, so it is the old one or the new one."""

    path: Path
    entries: dict[str, Tensor]
    is_changed: bool = False
    saved_at: float = 0.0

    @classmethod
    def open(cls, path: Path, say: Say) -> "_CacheFile":
        entries: dict[str, Tensor] = {}
        try:
            if path.is_file():
                with safe_open(path, framework="pt") as file:
                    entries = {key: file.get_tensor(key) for key in file.keys()}
        except (OSError, SafetensorError) as error:
            say(f"The cache {path} cannot be read ({error}); pictures and captions are encoded again.")
        return cls(path, entries, saved_at=monotonic())

    def add(self, entries: dict[str, Tensor]) -> None:
        self.entries |= {key: tensor.detach().to("cpu").contiguous() for key, tensor in entries.items()}
        self.is_changed = True
        if monotonic() - self.saved_at > SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        if not self.is_changed:
            return

        def write(partial: Path) -> None:
            save_file(self.entries, partial)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())

        try:
            checkpoint.write_file(self.path, write)
        except RunError as error:
            reason = error.__cause__ or error
            raise RunError(f"The cache {self.path} cannot be written ({reason}). Choose another cache_dir.") from error
        self.is_changed, self.saved_at = False, monotonic()


def _sample(example: Example, resolution: int, step: int, flips: bool, file: _CacheFile) -> Sample:
    """Look at one picture; its size is kept beside its latents, so that a second run need not decode it."""
    digest = _digest_of(example.path)
    if f"size/{digest}" not in file.entries:
        width, height = open_picture(example.path).size
        file.add({f"size/{digest}": torch.tensor([width, height])})
    width, height = file.entries[f"size/{digest}"].tolist()
    sides = (False, True) if flips else (False,)
    cuts = tuple(cut_of(width, height, resolution, step, is_flipped) for is_flipped in sides)
    return Sample(example.path, example.caption, digest, cuts)


def _digest_of(path: Path) -> str:
    """sha256 of a picture's file. Raises PicturesError where it cannot be read."""
    try:
        facts = path.stat()
        return _read_digest(path, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PicturesError(f"{path} cannot be read ({reason}). Take its line out of annotations.txt.") from error


@lru_cache(maxsize=10_000)
def _read_digest(path: Path, size: int, changed_ns: int) -> str:
    """Read once in a session: a run asks for its data's digest before it encodes, and Drive is slow."""
    return checkpoint.sha256(path)


def _encode_pictures(samples: Sequence[Sample], model: str, device: str, file: _CacheFile, say: Say) -> None:
    """The VAE alone in memory, float32, one picture at a time, so that a latent never depends on its neighbours."""
    missing = [
        sample
        for sample in samples
        if any(_latent_key(sample, cut) not in file.entries for cut in range(len(sample.cuts)))
    ]
    say(f"pictures  {len(samples) - len(missing)} encoded before, {len(missing)} to encode")
    if not missing:
        return
    vae = sdxl.load_vae(model, torch.float32, device)
    for number, sample in enumerate(missing, start=1):
        picture = open_picture(sample.path)
        for index, cut in enumerate(sample.cuts):
            mean_1CHW, std_1CHW = sdxl.encode_images(vae, pixels_of(picture, cut)[None])
            latents_2CHW = torch.cat([mean_1CHW, std_1CHW])
            if not bool(torch.isfinite(latents_2CHW).all()):
                raise PicturesError(
                    f"{sample.path} gives NaN or infinity in the VAE. "
                    "Take it out of the folder, or save it anew, and run again."
                )
            file.add({_latent_key(sample, index): latents_2CHW})
        if number % -(-len(missing) // 5) == 0:
            say(f"pictures  {number}/{len(missing)} encoded")
    del vae
    sdxl.give_back_memory()


def _encode_captions(
    samples: Sequence[Sample], model: str, dtype: torch.dtype, device: str, file: _CacheFile, text_key: str, say: Say
) -> None:
    """The text encoders alone in memory; each distinct caption once."""
    captions = dict.fromkeys(sample.caption for sample in samples)
    missing = [caption for caption in captions if f"text/{_caption_key(caption, text_key)}" not in file.entries]
    say(f"captions  {len(captions) - len(missing)} encoded before, {len(missing)} to encode")
    if not missing:
        return
    text = sdxl.load_text(model, dtype, device)
    for caption in missing:
        encoded = sdxl.encode_captions(text, [caption])
        if not bool(torch.isfinite(encoded.text_BLD).all() and torch.isfinite(encoded.pooled_BP).all()):
            raise PicturesError(
                f"The caption {caption!r} gives NaN in the text encoders. "
                "Set mixed_precision to bf16 or no, and run again."
            )
        key = _caption_key(caption, text_key)
        file.add({f"text/{key}": encoded.text_BLD[0], f"pooled/{key}": encoded.pooled_BP[0]})
    del text
    sdxl.give_back_memory()


def _model_key(model: str) -> str:
    return f"{sdxl.FAMILY}-{hashlib.sha256(folders.identity(model).encode()).hexdigest()[:24]}"


def _latent_key(sample: Sample, index: int) -> str:
    cut = sample.cuts[index]
    place = "-".join(str(number) for number in (*cut.resized_hw, *cut.crop_top_left, *cut.target_hw))
    return f"latents/{sample.sha256}/{place}{'-flipped' if cut.is_flipped else ''}"


def _caption_key(caption: str, text_key: str) -> str:
    return f"{hashlib.sha256(caption.encode()).hexdigest()}/{text_key}"
