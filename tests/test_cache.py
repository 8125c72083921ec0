"""The cache: nothing is encoded twice or for another model, and what is read is what was encoded."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from lace_lora import cache, cache_file, cache_keys, cuts, near_duplicates, tensor_files
from lace_lora.cuts import Cutting
from lace_lora.data_utils import Example, open_picture
from lace_lora.errors import MachineError, ModelError, PicturesError, RunError
from lace_lora.families import layouts, sdxl, vae
from tests.conftest import draw_lace


def build(
    examples: list[Example], model: Path, folder: Path, flips: bool = True, said: list[str] | None = None, **more: Any
) -> cache.Cache:
    said = [] if said is None else said
    settings = {"flips": flips, "dtype": torch.float32, "device": "cpu", "cache_dir": folder, "say": said.append}
    return cache.build(examples, str(model), 64, **settings | more)


def kept_in(folder: Path) -> dict[str, torch.Tensor]:
    """All entries on the disk, newest last, read by the library."""
    kept: dict[str, torch.Tensor] = {}
    for path in [folder / "cache.safetensors", *sorted(folder.glob("cache-*.safetensors"))]:
        kept |= load_file(path) if path.is_file() else {}
    return kept


@pytest.fixture
def examples(lace_folder: Path) -> list[Example]:
    captions = ["a photo of <myspecialstyle>", "a photo of <myspecialstyle>, leaves"]
    return [Example(path, captions[number % 2]) for number, path in enumerate(sorted(lace_folder.glob("*.jpg")))]


# -- once --


@pytest.mark.parametrize("more", [{}, {"crop": "tiles", "quarter_turns": True}, {"crop": "random"}])
def test_what_is_cached_is_what_encoding_gives(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, more: dict[str, Any]
) -> None:
    """Every cut with the latents and the size numbers of its own pixels."""
    draw_lace(tmp_path / "scan", ((200, 150),))
    examples = [*examples[:2], Example(tmp_path / "scan" / "lace_0.jpg", "a scan of <myspecialstyle>")]
    made = build(examples, tiny_sdxl, tmp_path / "cache", **more)
    encoder = sdxl.load_vae(str(tiny_sdxl), torch.float32, "cpu")
    text = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    for number, sample in enumerate(made.samples):
        width, height = open_picture(sample.path).size
        assert sample.cuts == cuts.cuts_of(width, height, Cutting(64, 32, flips=True, **more))
        assert sample.buckets == tuple(cut.target_hw for cut in sample.cuts)
        for variant, cut in enumerate(sample.cuts):
            batch = made.batch([(number, variant)], "cpu")
            pixels_CHW = cuts.pixels_of(open_picture(sample.path), cut)
            mean_BCHW, std_BCHW = sdxl.encode_images(encoder, pixels_CHW[None])
            assert torch.equal(batch.mean_BCHW, mean_BCHW) and torch.equal(batch.std_BCHW, std_BCHW)
            assert made.latent_shape(number, variant) == tuple(mean_BCHW.shape[1:])
            told = [*cut.original_hw, *cut.crop_top_left, *cut.target_hw]
            assert batch.size_numbers_BS.tolist() == [told] and batch.size_numbers_BS.dtype == torch.float32
            words = sdxl.encode_captions(text, [sample.caption])
            assert torch.equal(batch.words.text_BLD, words.text_BLD)
            assert torch.equal(batch.words.pooled_BP, words.pooled_BP)
            assert batch.mean_BCHW.dtype == batch.std_BCHW.dtype == torch.float32


def test_a_picture_is_opened_once_and_scaled_once_for_all_cuts_of_one_size(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan of 100 MP takes seconds to open and to scale, and has up to 136 cuts."""
    path = draw_lace(tmp_path / "scan", ((200, 150),)) / "lace_0.jpg"
    opened: list[Path] = []
    sizes: list[tuple[int, int]] = []
    scaled = cuts.scaled
    monkeypatch.setattr(cache, "open_picture", lambda path: opened.append(path) or open_picture(path))
    monkeypatch.setattr(cuts, "scaled", lambda picture, cut: sizes.append(cut.scaled_hw) or scaled(picture, cut))
    made = build([Example(path, "x")], tiny_sdxl, tmp_path / "cache", crop="tiles", quarter_turns=True)
    assert len(set(made.samples[0].cuts)) > 30
    assert opened == [path] and len(sizes) == len(set(sizes)) == 2


def test_a_batch_holds_its_picks_in_order(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    made = build(examples, tiny_sdxl, tmp_path / "cache")
    square = [number for number, one in enumerate(made.samples) if one.buckets[0] == (64, 64)]
    picks = [(square[1], 1), (square[0], 0), (square[1], 0)]
    together = made.batch(picks, "cpu")
    for place, pick in enumerate(picks):
        alone = made.batch([pick], "cpu")
        for name in ("mean_BCHW", "std_BCHW", "size_numbers_BS"):
            assert torch.equal(getattr(together, name)[place], getattr(alone, name)[0])
        for name in ("text_BLD", "pooled_BP"):
            assert torch.equal(getattr(together.words, name)[place], getattr(alone.words, name)[0])


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
    pictures.clear()
    shutil.copy(tmp_path / "other" / "lace_0.jpg", examples[2].path)
    changed = [*examples[:5], Example(examples[5].path, "a new caption <myspecialstyle>")]
    build(changed, tiny_sdxl, tmp_path / "cache")
    assert len([one for one in pictures if isinstance(one, torch.Tensor)]) == 2  # one picture, two sides
    assert [one for one in pictures if isinstance(one, Path)] == [examples[2].path]  # opened once, for all that is kept
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


def with_changed(model: Path, file: str, folder: Path) -> Path:
    """A copy of a model with one bit of its weights turned: same names, same sizes."""
    shutil.copytree(model, folder)
    data = bytearray((folder / file).read_bytes())
    data[-2] ^= 1
    (folder / file).write_bytes(bytes(data))
    return folder


@pytest.mark.parametrize(
    ("file", "is_encoded"),
    [
        ("unet/diffusion_pytorch_model.safetensors", (0, 0)),
        ("vae/diffusion_pytorch_model.safetensors", (6, 0)),
        ("text_encoder_2/model.safetensors", (0, 2)),
    ],
)
def test_another_models_entries_are_never_read_and_what_is_alike_is(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, file: str, is_encoded: tuple[int, int]
) -> None:
    """Fine-tunes of SDXL have files of the same name and size: contents decide, part by part."""
    build(examples, tiny_sdxl, tmp_path / "cache")
    said: list[str] = []
    build(examples, with_changed(tiny_sdxl, file, tmp_path / "other"), tmp_path / "cache", said=said)
    pictures, captions = is_encoded
    assert f"pictures  {6 - pictures} encoded before, {pictures} to encode" in said
    assert f"captions  {2 - captions} encoded before, {captions} to encode" in said
    said.clear()
    build(examples, tiny_sdxl, tmp_path / "cache", said=said)  # what the first had encoded is still there
    assert {"pictures  6 encoded before, 0 to encode", "captions  2 encoded before, 0 to encode"} <= set(said)


def test_another_vae_has_latents_of_its_own_and_must_fit(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path
) -> None:
    """vae_model: a folder of a VAE alone, or of a whole model; the same weights are the same VAE wherever they lie."""
    own = build(examples[:1], tiny_sdxl, tmp_path / "cache")
    weights = "vae/diffusion_pytorch_model.safetensors"
    other = with_changed(tiny_sdxl, weights, tmp_path / "other")
    data = bytearray((other / weights).read_bytes())
    data[-400:] = torch.randn(100, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    (other / weights).write_bytes(bytes(data))
    shutil.copytree(other / "vae", tmp_path / "alone")
    said: list[str] = []
    for name, line in ((other, "0 encoded before, 1 to"), (tmp_path / "alone", "1 encoded before, 0 to")):
        made = build(examples[:1], tiny_sdxl, tmp_path / "cache", said=said, vae_model=str(name))
        assert f"pictures  {line} encode" in said and "captions  1 encoded before, 0 to encode" in said
        assert made.vae_key != own.vae_key and made.text_key == own.text_key
    as_base = build(examples[:1], other, tmp_path / "second")
    for key in ("mean_BCHW", "std_BCHW"):
        of_other, of_base = (getattr(one.batch([(0, 0)], "cpu"), key) for one in (made, as_base))
        assert torch.equal(of_other, of_base)
    same = build(examples[:1], tiny_sdxl, tmp_path / "cache", said=said, vae_model=str(tiny_sdxl))
    assert same.vae_key == own.vae_key

    facts = json.loads((tmp_path / "alone" / "config.json").read_text())
    (tmp_path / "alone" / "config.json").write_text(json.dumps(facts | {"scaling_factor": 0.18215}))
    with pytest.raises(ModelError, match="does not fit the base model: scaling factor 0.18215 instead of 0.13025"):
        build(examples[:1], tiny_sdxl, tmp_path / "cache", vae_model=str(tmp_path / "alone"))


def test_a_vae_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No VAE folder .*nowhere. Give vae_model an existing folder"):
        vae.folder_of(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="holds no VAE"):
        vae.folder_of(str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE=1 forbids fetching it"):
        vae.folder_of("nobody/no-such-vae")


def test_damaged_weights_of_another_vae_are_a_sentence(tiny_sdxl: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sdxl / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModelError, match="cannot be loaded .*Choose another vae_model"):
        vae.load(str(tmp_path), layouts.layout(str(tiny_sdxl)), torch.float32, "cpu")


def test_a_distinct_caption_is_encoded_once(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    build(examples, tiny_sdxl, tmp_path / "cache", flips=False)
    kinds = [key.split("/")[0] for key in kept_in(tmp_path / "cache")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "latents": 6, "size": 6, "fingerprint": 6, "text": 2, "pooled": 2,
    }  # fmt: skip


def test_a_picture_that_is_there_twice_is_encoded_once(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path
) -> None:
    shutil.copy(examples[0].path, examples[1].path)
    said: list[str] = []
    made = build(examples[:2], tiny_sdxl, tmp_path / "cache", said=said)
    assert "pictures  0 encoded before, 1 to encode" in said
    assert [one.path for one in made.samples] == [one.path for one in examples[:2]]
    assert made.samples[0].sha256 == made.samples[1].sha256 and made.samples[0].caption != made.samples[1].caption


# -- the file --


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
    kept = kept_in(tmp_path / "cache")
    assert any(key.startswith("latents/") for key in kept)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


def test_a_cache_that_cannot_be_read_is_made_anew(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    whole = build(examples, tiny_sdxl, tmp_path / "cache")
    file = tmp_path / "cache" / "cache.safetensors"
    for damaged in (file.read_bytes()[:-100], b"", b"not a safetensors file at all", b"\xff" * 64):
        file.write_bytes(damaged)
        said: list[str] = []
        again = build(examples, tiny_sdxl, tmp_path / "cache", said=said)
        assert "cannot be read" in said[0] and "encoded again" in said[0]
        assert "pictures  0 encoded before, 6 to encode" in said
        assert all(torch.equal(whole.entries[key], again.entries[key]) for key in whole.entries)
    said = []
    build(examples, tiny_sdxl, tmp_path / "cache", said=said)
    assert said == ["pictures  6 encoded before, 0 to encode", "captions  2 encoded before, 0 to encode"]


def test_one_changed_byte_costs_one_entry(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    """safetensors itself would read it without a word."""
    whole = build(examples, tiny_sdxl, tmp_path / "cache")
    file = tmp_path / "cache" / "cache.safetensors"
    digest = whole.samples[3].sha256
    wanted = next(key for key in whole.entries if digest in key)
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])[wanted]["data_offsets"]
    data[8 + length + (start + end) // 2] ^= 4
    file.write_bytes(bytes(data))
    said: list[str] = []
    again = build(examples, tiny_sdxl, tmp_path / "cache", said=said)
    assert f"An entry of the cache {file} is damaged; what it held is encoded again." in said
    assert "pictures  5 encoded before, 1 to encode" in said
    assert all(torch.equal(whole.entries[key], again.entries[key]) for key in whole.entries)
    said.clear()
    build(examples, tiny_sdxl, tmp_path / "cache", said=said)  # the sound entry counts, though the other came first
    assert said == ["pictures  6 encoded before, 0 to encode", "captions  2 encoded before, 0 to encode"]


def test_what_is_new_is_written_every_minute_and_alone(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed loses a minute: nothing else is written again with it."""
    written: list[set[str]] = []
    original = tensor_files.save_file

    def spy_on(tensors: dict[str, torch.Tensor], *words: Any, **named: Any) -> None:
        written.append({key.split("/")[0] for key in tensors})
        original(tensors, *words, **named)

    monkeypatch.setattr(tensor_files, "save_file", spy_on)
    monkeypatch.setattr(cache_file, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(cache_file.Store, "close", lambda store: store.save())
    made = build(examples[:3], tiny_sdxl, tmp_path / "cache")
    assert len(written) == 3 * 3 + 2 and {"size", "fingerprint"} in written and {"latents"} in written
    assert not (tmp_path / "cache" / "cache.safetensors").exists()
    assert set(made.entries) <= set(kept_in(tmp_path / "cache"))


def test_pieces_are_put_together_when_they_are_worth_it(tmp_path: Path) -> None:
    """One caption is written as 0.6 MB, not with the 400 MB that are there; a piece of an eighth joins the file."""

    def add(name: str, floats: int) -> list[str]:
        store = cache_file.open_store(tmp_path, [].append)
        store.add({f"text/v/{name}": torch.ones(floats)})
        store.close()
        return sorted(path.name.split("-")[0] for path in tmp_path.glob("*.safetensors"))

    assert add("a", 20_000) == ["cache.safetensors"]
    before = (tmp_path / "cache.safetensors").stat().st_mtime_ns
    assert add("b", 200) == ["cache", "cache.safetensors"]
    assert (tmp_path / "cache.safetensors").stat().st_mtime_ns == before
    assert add("c", 3_000) == ["cache.safetensors"]
    assert set(kept_in(tmp_path)) == {"text/v/a", "text/v/b", "text/v/c"}
    for number in range(17):
        found = add(f"small{number}", 1)
    assert found == ["cache.safetensors"]


def test_a_file_that_cannot_be_put_together_is_only_said(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cache_file._write

    def full(path: Path, *words: Any) -> None:
        if path.name == "cache.safetensors":
            raise MachineError("The disk is full.")
        original(path, *words)

    monkeypatch.setattr(cache_file, "_write", full)
    said: list[str] = []
    made = build(examples, tiny_sdxl, tmp_path / "cache", said=said)
    assert said[-1] == "The cache stays in pieces for now. The disk is full." and len(made.samples) == 6
    monkeypatch.undo()
    said.clear()
    build(examples, tiny_sdxl, tmp_path / "cache", said=said)
    assert said == ["pictures  6 encoded before, 0 to encode", "captions  2 encoded before, 0 to encode"]
    assert [path.name for path in (tmp_path / "cache").glob("*.safetensors")] == ["cache.safetensors"]


def test_the_file_has_a_bound_and_what_was_not_used_for_longest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other runs' entries stay until there is no room; what this run wants stays in any case."""
    now = 1_000_000.0
    monkeypatch.setattr(cache_file, "LARGEST_BYTES", 3 * 4000)
    monkeypatch.setattr(cache_file.time, "time", lambda: now)
    said: list[str] = []
    for name in ("a", "b", "c"):
        now += 10
        store = cache_file.open_store(tmp_path, said.append)
        store.add({f"latents/v/{name}/whole": torch.ones(500), f"latents/v/{name}/flipped": torch.zeros(500)})
        store.close()
    now += 10
    store = cache_file.open_store(tmp_path, said.append)
    assert "latents/v/a/whole" in store  # used again: now b is the oldest
    store.close()
    assert said == []
    now += 10
    store = cache_file.open_store(tmp_path, said.append)
    store.add({"latents/v/d/whole": torch.ones(900)})
    store.close()
    assert {key.split("/")[2] for key in kept_in(tmp_path)} == {"a", "c", "d"}
    assert said == ["cache     1 pictures and captions of other runs, unused for longest, are forgotten to make room"]
    store = cache_file.open_store(tmp_path, said.append)
    store.add({f"latents/v/{name}/whole": torch.ones(900) for name in "efghi"})
    store.close()
    assert {key.split("/")[2] for key in kept_in(tmp_path)} == set("efghi")
    assert set(json.loads((tmp_path / "cache_used.json").read_text())) == {f"latents/v/{name}" for name in "efghi"}


def test_half_written_files_of_killed_processes_are_swept_away(tmp_path: Path) -> None:
    for name, age in (
        ("cache-1.safetensors.partial", 7200),
        ("cache-2.safetensors.partial", 5),
        ("other.partial", 7200),
    ):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    store = cache_file.open_store(tmp_path, [].append)
    store.add({"size/a": torch.ones(2)})
    store.close()
    assert {path.name for path in tmp_path.glob("*.partial")} == {"cache-2.safetensors.partial", "other.partial"}


WRITER = """
import sys, torch
from lace_lora import cache_file
folder, name = sys.argv[1:]
for turn in range(12):
    store = cache_file.open_store(folder, print)
    store.add({f"latents/v/{name}{turn}/{cut}": torch.full((1000,), float(turn)) for cut in range(4)})
    if turn % 3 == 0:
        store.save()
    store.close()
"""


def test_processes_that_share_a_folder_lose_nothing_of_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    running = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    assert [one.communicate()[0] for one in running] == ["", ""] and {one.returncode for one in running} == {0}
    store = cache_file.open_store(tmp_path, [].append)
    for name in ("a", "b"):
        for turn in range(12):
            for cut in range(4):
                key = f"latents/v/{name}{turn}/{cut}"
                assert key in store and torch.equal(store[key], torch.full((1000,), float(turn)))


def test_one_process_at_a_time_puts_pieces_together(tmp_path: Path) -> None:
    """Two at once would each write the file from what they had read, and one's pieces would be gone."""
    fcntl = pytest.importorskip("fcntl")
    store = cache_file.open_store(tmp_path, [].append)
    store.add({"size/a": torch.ones(2)})
    with open(tmp_path / "cache.lock", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.close()
        assert not store.path.exists() and set(kept_in(tmp_path)) == {"size/a"}
    store.close()
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["cache.safetensors"]
    assert set(kept_in(tmp_path)) == {"size/a"}


def test_only_what_is_wanted_is_brought_into_memory(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds other runs' entries too, and a large set is read from the disk at need."""
    build(examples, tiny_sdxl, tmp_path / "cache")
    few = build(examples[:1], tiny_sdxl, tmp_path / "cache")
    assert {key.split("/")[0] for key in few.entries} == {"latents", "text", "pooled"} and len(few.entries) == 4
    no_room = type("Memory", (), {"available": 100})()
    monkeypatch.setattr(cache_file.psutil, "virtual_memory", lambda: no_room)
    streamed = build(examples[:1], tiny_sdxl, tmp_path / "cache")
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert str(tmp_path / "cache" / "cache.safetensors") in maps.read_text()
    assert all(torch.equal(streamed.entries[key], few.entries[key]) for key in few.entries)


def test_a_full_disk_is_a_sentence_and_the_earlier_cache_stays(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(examples[:3], tiny_sdxl, tmp_path / "cache")
    before = kept_in(tmp_path / "cache")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(MachineError, match="The disk is full"):
        build(examples, tiny_sdxl, tmp_path / "cache")
    after = kept_in(tmp_path / "cache")
    assert set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in before)


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


# -- where it lies while training --


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.startswith(("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"))
        return func(*args, **kwargs or {})


def test_a_cache_goes_to_the_gpu_where_it_fits_and_is_streamed_otherwise(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path
) -> None:
    """PyTorch's meta device stands in for the GPU: it has no numbers, so reading one there raises."""
    made = build(examples, tiny_sdxl, tmp_path / "cache")
    said: list[str] = []
    size = sum(tensor.numel() * 4 for tensor in made.entries.values())
    assert made.size_bytes == size
    streamed = made.to_device("meta", size - 1, said.append)
    assert all(tensor.device.type == "cpu" for tensor in streamed.entries.values())
    there = made.to_device("meta", size, said.append)
    assert all(tensor.device.type == "meta" for tensor in [*there.entries.values(), *there.size_numbers.values()])
    megabytes = f"{size / 2**20:.0f} MB"
    assert said == [
        f"cache     {megabytes} streamed ({megabytes} are free on the GPU)",
        f"cache     {megabytes} on the GPU",
    ]
    for one in (streamed, there):
        with Waits() as waits:
            batch = one.batch([(0, 0), (3, 1)], "meta")
        assert waits.count == 0 and batch.mean_BCHW.device.type == "meta" and batch.mean_BCHW.shape == (2, 4, 8, 8)
        assert one.latent_shape(0, 0) == (4, 8, 8)
    assert made.to_device("cpu", 0, said.append) is made and len(said) == 2


def test_some_samples_of_a_cache_are_a_cache(tiny_sdxl: Path, examples: list[Example], tmp_path: Path) -> None:
    made = build(examples, tiny_sdxl, tmp_path / "cache")
    some = made.only([4, 1])
    assert some.samples == (made.samples[4], made.samples[1])
    for place, number in enumerate((4, 1)):
        one, other = some.batch([(place, 1)], "cpu"), made.batch([(number, 1)], "cpu")
        assert torch.equal(one.mean_BCHW, other.mean_BCHW) and torch.equal(one.words.text_BLD, other.words.text_BLD)
    digests = {some.samples[0].sha256, some.samples[1].sha256}
    assert {key.split("/")[2] for key in some.entries if key.startswith("latents")} == digests


# -- fingerprints --


def test_fingerprints_are_made_once_and_survive(
    tiny_sdxl: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the examples, before anything else is there, and equal to what near_duplicates makes."""
    opened: list[Path] = []
    monkeypatch.setattr(cache, "open_picture", lambda path: opened.append(path) or open_picture(path))
    said: list[str] = []
    first = cache.fingerprints(examples[:3], tmp_path / "cache", said.append)
    assert opened == [one.path for one in examples[:3]]
    assert said == ["pictures  3 to look at, for pieces that are there more than once"]
    for one, example in zip(first, examples, strict=False):
        assert numpy.array_equal(one, near_duplicates.fingerprint(open_picture(example.path)))
    build(examples, tiny_sdxl, tmp_path / "cache")  # opens each picture once, whatever is kept of it
    assert opened[3:] == [one.path for one in examples]
    again = cache.fingerprints(examples[::-1], tmp_path / "cache", said.append)
    assert len(opened) == 9 and len(said) == 1
    assert all(numpy.array_equal(one, other) for one, other in zip(again[::-1], first, strict=False))


def test_fingerprints_made_otherwise_are_made_anew(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fingerprints(examples[:2], tmp_path / "cache", [].append)
    cache_keys._fingerprint_kind.cache_clear()
    monkeypatch.setattr(near_duplicates, "fingerprint", lambda one: numpy.asarray(one.convert("L").resize((3, 3))))
    made = cache.fingerprints(examples[:2], tmp_path / "cache", [].append)
    cache_keys._fingerprint_kind.cache_clear()
    assert [one.shape for one in made] == [(3, 3)] * 2


def test_class_pictures_have_their_own_size(tiny_sdxl: Path, tmp_path: Path) -> None:
    """L5: a picture that the base model drew tells of its own size, not of a photograph's."""
    Image.new("RGB", (64, 64), (90, 120, 30)).save(tmp_path / "class_0000.png")
    made = build([Example(tmp_path / "class_0000.png", "a photo of a painting")], tiny_sdxl, tmp_path / "cache", False)
    assert made.batch([(0, 0)], "cpu").size_numbers_BS.tolist() == [[64, 64, 0, 0, 64, 64]]
