"""Pictures and captions encoded once; afterwards neither the VAE nor the text encoders are needed.

B batch · C latent channels (4) · H,W latent cells (px/8) · L tokens (77) · D text width (2048) · P pooled (1280)
S size numbers (6)

Entries are keyed by content: a changed picture or caption is encoded anew, and so is everything for another VAE or
other text encoders, while another UNet changes nothing. Latents' mean and standard deviation are kept in float32,
unscaled, one entry for each cut.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from lace_lora import checkpoint, counting, cuts, families, near_duplicates, shapes, swatch
from lace_lora.cache_file import Store, open_store
from lace_lora.cache_keys import latent_key, model_keys, print_key, size_key, text_keys
from lace_lora.cuts import Cut, Cutting
from lace_lora.data_utils import Example, open_picture
from lace_lora.errors import ModelError, PicturesError
from lace_lora.families import Family, memory, vae
from lace_lora.families.layouts import layout
from lace_lora.families.quiet import quiet
from lace_lora.families.seam import Encoded

with quiet():
    import torch
    from torch import Tensor

Say = Callable[[str], None]
MB = 1024**2


@dataclass(frozen=True)
class Sample:
    """One picture with its caption and its cuts; one of these is looked at at a time.

    sha256  what names its pixels: the digest of its file, and of what its swatch does to it
    """

    path: Path
    caption: str
    sha256: str
    cuts: tuple[Cut, ...]

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Height and width in px of each cut."""
        return tuple(cut.target_hw for cut in self.cuts)


@dataclass(frozen=True)
class Batch:
    """What is trained on, of one bucket."""

    mean_BCHW: Tensor
    std_BCHW: Tensor
    words: Encoded
    size_numbers_BS: Tensor


@dataclass(frozen=True)
class Cache:
    """Everything encoded of some pictures, on one device or streamed to it.

    has_wordless  whether the empty text is there too: what a picture is learnt with when its caption is dropped
    """

    samples: tuple[Sample, ...]
    entries: dict[str, Tensor]
    size_numbers: dict[Cut, Tensor]
    vae_key: str
    text_key: str
    has_wordless: bool = False

    @property
    def size_bytes(self) -> int:
        """Of all entries."""
        return sum(tensor.nbytes for tensor in self.entries.values())

    def latent_shape(self, sample: int, variant: int) -> tuple[int, int, int]:
        """C, H, W of the latents of one cut of a picture."""
        one = self.samples[sample]
        _, channels, height, width = self.entries[latent_key(one.sha256, one.cuts[variant], self.vae_key)].shape
        return channels, height, width

    def batch(self, picks: Sequence[tuple[int, int]], device: str) -> Batch:
        """Cuts of one bucket, each given as (number of the sample, number of its cut).

        Nothing here waits for the GPU: what lies there is gathered, what does not goes there from pinned memory.
        """
        chosen = [(self.samples[number], self.samples[number].cuts[variant]) for number, variant in picks]
        latents = [self.entries[latent_key(sample.sha256, cut, self.vae_key)] for sample, cut in chosen]
        text, pooled = zip(*(text_keys(sample.caption, self.text_key) for sample, _ in chosen), strict=True)
        latents_B2CHW = _gathered(latents, device)
        return Batch(
            mean_BCHW=latents_B2CHW[:, 0],
            std_BCHW=latents_B2CHW[:, 1],
            words=Encoded(
                _gathered([self.entries[key] for key in text], device),
                _gathered([self.entries[key] for key in pooled], device),
            ),
            size_numbers_BS=_gathered([self.size_numbers[cut] for _, cut in chosen], device),
        )

    def wordless(self, device: str) -> Encoded | None:
        """The empty text, of one row; None for a model that is told zeros instead."""
        if not self.has_wordless:
            return None
        text, pooled = (_gathered([self.entries[key]], device) for key in text_keys("", self.text_key))
        return Encoded(text, pooled)

    def only(self, numbers: Sequence[int]) -> "Cache":
        """The same of some of its samples, in the given order."""
        samples = tuple(self.samples[number] for number in numbers)
        wanted = _wanted_keys(samples, self.vae_key, self.text_key, self.has_wordless)
        sizes = {cut: self.size_numbers[cut] for sample in samples for cut in sample.cuts}
        return replace(self, samples=samples, entries={key: self.entries[key] for key in wanted}, size_numbers=sizes)

    def to_device(self, device: str, free_bytes: float, say: Say = print) -> "Cache":
        """Copied to the GPU where it fits into what is free there, else itself, to be streamed batch by batch."""
        size = f"{self.size_bytes / MB:.0f} MB"
        if torch.device(device).type == "cpu":
            return self
        if self.size_bytes > free_bytes:
            say(f"cache     {size} streamed ({max(0.0, free_bytes) / MB:.0f} MB are free on the GPU)")
            return self
        entries = {key: tensor.to(device) for key, tensor in self.entries.items()}
        sizes = {cut: tensor.to(device) for cut, tensor in self.size_numbers.items()}
        say(f"cache     {size} on the GPU")
        return replace(self, entries=entries, size_numbers=sizes)


def build(
    examples: Sequence[Example], model: str, resolution: int, *,
    flips: bool, dtype: torch.dtype, device: str, cache_dir: str | Path, vae_model: str | None = None,
    crop: cuts.Crop = "center", quarter_turns: bool = False, say: Say = print,
) -> Cache:  # fmt: skip
    """Encode what is not encoded yet and return everything of these examples.

    dtype      of the text encoders; the VAE always works in float32, because SDXL's overflows to NaN in fp16
    vae_model  another VAE than the model's own

    Raises PicturesError naming the file that cannot be read or gives NaN; what was encoded until then is kept.
    """
    family, sizes = families.of(model), layout(model)
    if sizes.is_refiner:
        raise ModelError(
            f"{model} is a refiner; a LoRA is trained on a base model, "
            "such as stabilityai/stable-diffusion-xl-base-1.0."
        )
    step = shapes.bucket_step(resolution, sizes.pixel_step)
    cutting = Cutting(resolution, step, crop, flips, quarter_turns)
    vae_key, text_key = model_keys(family, model, vae_model, dtype)
    has_wordless = family.WORDLESS == "empty"
    store = open_store(cache_dir, say)
    try:
        encode = _PictureEncoder(family, model, vae_model, device, store, vae_key)
        samples = _encode_pictures(examples, cutting, encode)
        captions = [*(sample.caption for sample in samples), *([""] if has_wordless else [])]
        _encode_captions(captions, family, model, dtype, device, store, text_key)
    finally:  # also when a picture is refused or the person stops: what is done is done
        store.save()
    entries = store.load(_wanted_keys(samples, vae_key, text_key, has_wordless))
    store.close()
    told = {cut: size_numbers(family, cut) for sample in samples for cut in sample.cuts}
    return Cache(samples, entries, told, vae_key, text_key, has_wordless)


def fingerprints(
    examples: Sequence[Example], cache_dir: str | Path, say: Say = print
) -> list[near_duplicates.Fingerprint]:
    """What near_duplicates compares, of each picture; decoded once, since 300 large photographs take a minute.

    Raises PicturesError naming the file that cannot be read.
    """
    store = open_store(cache_dir, say)
    digests = [digest_of(example.file) for example in examples]
    of_digest = dict(zip(digests, examples, strict=True))
    missing = [digest for digest in of_digest if print_key(digest) not in store]
    if missing:
        say(f"pictures  {len(missing)} to look at, for pieces that are there more than once")
    try:
        for digest in missing:
            store.add(_seen(digest, opened(of_digest[digest]), store))
    finally:
        store.save()
    found = [store[print_key(digest)].numpy().copy() for digest in digests]
    store.close()
    return found


def size_numbers(family: Family, cut: Cut) -> Tensor:
    """What is told of the size of a cut's pixels, float32 [S]."""
    return family.size_numbers(cut.original_hw, cut.crop_top_left, cut.target_hw)


def in_order(examples: Iterable[Example]) -> list[Example]:
    """Examples by content and caption: chance is drawn by place, so a renamed file must not change its place."""
    return sorted(examples, key=lambda one: (digest_of(one.file), one.caption, pixels_digest(one)))


def data_digest(examples: Iterable[Example]) -> str:
    """sha256 (hex) of the pictures' contents, swatches and captions, whatever their folder or order."""
    rows = sorted(f"{pixels_digest(example)}\t{example.caption}" for example in examples)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


# -- encoding --


@dataclass(frozen=True)
class _PictureEncoder:
    """With what pictures are encoded, and where that is kept; the VAE is loaded only where it is needed."""

    family: Family
    model: str
    vae_model: str | None
    device: str
    store: Store
    vae_key: str

    def load(self) -> Any:
        """The VAE, float32."""
        if self.vae_model is None:
            return self.family.load_vae(self.model, torch.float32, self.device)
        return vae.load(self.vae_model, layout(self.model), torch.float32, self.device)


def _encode_pictures(examples: Sequence[Example], cutting: Cutting, encode: _PictureEncoder) -> tuple[Sample, ...]:
    """The VAE alone in memory, float32, one cut at a time, so that a latent never depends on its neighbours.

    A picture that was never seen is opened once, for its size, its fingerprint and its pixels.
    """
    store = encode.store
    digests = [pixels_digest(example) for example in examples]
    of_digest = dict(zip(digests, examples, strict=True))

    def is_whole(digest: str) -> bool:
        found = _cuts(digest, cutting, store)
        return bool(found) and all(latent_key(digest, cut, encode.vae_key) in store for cut in found)

    missing = [digest for digest in of_digest if not is_whole(digest)]
    store.say(f"pictures  {len(of_digest) - len(missing)} encoded before, {len(missing)} to encode")
    if missing:
        encoder = encode.load()
        tell = counting.lines(store.say, "encoded", len(missing))
        for digest in missing:
            one = of_digest[digest]
            photograph = opened(one)
            store.add(_seen(digest_of(one.file), photograph, store))
            picture = swatch.apply(photograph, one.swatch, one.path)
            store.add(_sized(digest, picture, store))
            _encode_cuts(picture, one.path, digest, _cuts(digest, cutting, store), encoder, encode)
            tell(1)
        del encoder
        memory.give_back_memory()
    return tuple(
        Sample(example.path, example.caption, digest, _cuts(digest, cutting, store))
        for example, digest in zip(examples, digests, strict=True)
    )


def _encode_cuts(
    picture: Image.Image, path: Path, digest: str, wanted: Sequence[Cut], encoder: Any, encode: _PictureEncoder
) -> None:
    """Those cuts of one picture that are not there yet; it is scaled once for all cuts of one size."""
    store, vae_key = encode.store, encode.vae_key
    missing = [cut for cut in dict.fromkeys(wanted) if latent_key(digest, cut, vae_key) not in store]
    for _, same in groupby(sorted(missing, key=lambda cut: cut.scaled_hw), key=lambda cut: cut.scaled_hw):
        of_one_size = list(same)
        scaled = cuts.scaled(picture, of_one_size[0])
        for cut in of_one_size:
            mean_1CHW, std_1CHW = encode.family.encode_images(encoder, cuts.cut_out(scaled, cut)[None])
            latents_2CHW = torch.cat([mean_1CHW, std_1CHW])
            if not bool(torch.isfinite(latents_2CHW).all()):
                raise PicturesError(
                    f"{path} gives NaN or infinity in the VAE. "
                    "Take it out of the folder, or save it anew, and run again."
                )
            store.add({latent_key(digest, cut, vae_key): latents_2CHW})


def _encode_captions(
    captions: Iterable[str], family: Family, model: str, dtype: torch.dtype, device: str, store: Store, text_key: str
) -> None:
    """The text encoders alone in memory; each distinct caption once."""
    captions = dict.fromkeys(captions)
    missing = [one for one in captions if not all(key in store for key in text_keys(one, text_key))]
    store.say(f"captions  {len(captions) - len(missing)} encoded before, {len(missing)} to encode")
    if not missing:
        return
    text = family.load_text(model, dtype, device)
    for caption in missing:
        encoded = family.encode_captions(text, [caption])
        if not bool(torch.isfinite(encoded.text_BLD).all() and torch.isfinite(encoded.pooled_BP).all()):
            raise PicturesError(
                f"The caption {caption!r} gives NaN in the text encoders. "
                "Set mixed_precision to bf16 or no, and run again."
            )
        store.add(dict(zip(text_keys(caption, text_key), (encoded.text_BLD[0], encoded.pooled_BP[0]), strict=True)))
    del text
    memory.give_back_memory()


def _wanted_keys(samples: Sequence[Sample], vae_key: str, text_key: str, has_wordless: bool) -> list[str]:
    """Each key that these samples need, once."""
    latents = [latent_key(sample.sha256, cut, vae_key) for sample in samples for cut in sample.cuts]
    captions = [*(one.caption for one in samples), *([""] if has_wordless else [])]
    return list(dict.fromkeys([*latents, *(key for one in captions for key in text_keys(one, text_key))]))


# -- what is known of a picture --


def opened(example: Example) -> Image.Image:
    """The picture upright, in RGB. Raises PicturesError that names the photograph, not the copy that is read of it."""
    try:
        return open_picture(example.file)
    except PicturesError as error:
        raise PicturesError(str(error).replace(str(example.file), str(example.path))) from error


def digest_of(path: Path) -> str:
    """sha256 of a picture's file. Raises PicturesError where it cannot be read."""
    try:
        facts = path.stat()
        return _read_digest(path, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PicturesError(f"{path} cannot be read ({reason}). Take its line out of annotations.txt.") from error


def pixels_digest(example: Example) -> str:
    """What names a picture's pixels as they are learnt (hex): its file, and what its swatch does to it."""
    return swatch.digest(digest_of(example.file), example.swatch)


@lru_cache(maxsize=10_000)
def _read_digest(path: Path, size: int, changed_ns: int) -> str:
    """Read once in a session: a run asks for its data's digest before it encodes, and Drive is slow."""
    return checkpoint.sha256(path)


def _seen(digest: str, photograph: Image.Image, store: Store) -> dict[str, Tensor]:
    """What is kept of a photograph that was opened, so that it need not be opened again: its size, its fingerprint.

    Pieces are compared on whole photographs, so that another crop parts no copies and moves nobody out of training.
    """
    key = print_key(digest)
    found = _sized(digest, photograph, store)
    if key not in store:
        found[key] = torch.from_numpy(near_duplicates.fingerprint(photograph).copy())
    return found


def _sized(digest: str, picture: Image.Image, store: Store) -> dict[str, Tensor]:
    key = size_key(digest)
    return {} if key in store else {key: torch.tensor(picture.size)}


def _cuts(digest: str, cutting: Cutting, store: Store) -> tuple[Cut, ...]:
    """The cuts of a picture; none where its size is not known yet."""
    if size_key(digest) not in store:
        return ()
    width, height = store[size_key(digest)].tolist()
    return cuts.cuts_of(width, height, cutting)


# -- to the device --


def _gathered(tensors: Sequence[Tensor], device: str) -> Tensor:
    """Side by side on the device; from memory to a GPU without waiting for it."""
    together = torch.stack(list(tensors))
    if together.device.type == "cpu" and torch.device(device).type == "cuda":
        return together.pin_memory().to(device, non_blocking=True)
    return together.to(device)
