"""Models kept between stages: the same pictures, fewer loads, never more than fits (L15, L19)."""

import dataclasses
import functools
import gc
import json
import random
import shutil
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lace_lora import adapter as adapters
from lace_lora import demo, stages
from lace_lora.batches import Batch, texts_of
from lace_lora.errors import ModelError
from lace_lora.families import folders, memory, sdxl
from lace_lora.families.libraries import of_diffusers
from lace_lora.families.quiet import quiet
from lace_lora.machine import Machine
from lace_lora.mishaps import OutOfMemory
from lace_lora.run_folder import RunFolder
from lace_lora.sampling import Refining, Sampling
from lace_lora.shelf import GIB, Shelf, Wanted

HERE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
FIRST, SECOND = Batch(("white leaf",), ("grainy",), (7,), 64, 64), Batch(("lace star",), ("grainy",), (8,), 64, 64)
ENSEMBLE = Refining("ensemble", 0.6, 0.0)
PLENTY = 1e12


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes 0.3 s each time with all these libraries loaded; what counts memory undoes this."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


@pytest.fixture(scope="module")
def lora(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> adapters.Adapter:
    """A LoRA of the UNet and both text encoders, with a learnt word."""
    return made_lora(tiny_sdxl, RunFolder(tmp_path_factory.mktemp("runs") / "lace"), seed=4)


def made_lora(model: Path, folder: RunFolder, seed: int) -> adapters.Adapter:
    unet, text = sdxl.load_denoiser(str(model), torch.float32, "cpu"), sdxl.load_text(str(model), torch.float32, "cpu")
    parts = {"unet": unet, "text_encoder": text.encoders[0], "text_encoder_2": text.encoders[1]}
    for part, module in parts.items():
        adapters.attach(module, part, adapters.Shape(4, 8, "attention"), 3)
    chance = torch.Generator().manual_seed(seed)
    state = {
        name: tensor if ".lora_A." in name else 0.1 * torch.randn(tensor.shape, generator=chance)
        for name, tensor in adapters.state_of(parts).items()
    }
    state |= {f"{part}.concept_token": torch.randn((1, 16), generator=chance) for part in list(parts)[1:]}
    facts = adapters.AdapterFacts(
        "sdxl", str(model), 4, 8, tuple(sdxl.lora_targets("attention")), train_text_encoder=True, learns_token=True,
        concept_token="<lacework>", versions={"lace_lora": "0"},
    )  # fmt: skip
    return adapters.save(state, folder, facts)


def sheet(
    base: Path, refiner: Path, lora: adapters.Adapter | None, shelf: Shelf | None, *, scale: float = 1.0
) -> list[bytes]:
    """Two pictures through all stages as a sheet is made: the unrefined ones and the refined ones."""
    ways: dict[str, Any] = HERE | {"shelf": shelf}
    batches, sampled = [FIRST, SECOND], Sampling("dpmpp_2m", 4, 4.0, repeat="straight")
    learnt: dict[str, Any] = {"lora": lora, "lora_scale": scale}
    words = stages.encode_prompts(str(base), texts_of(batches), **learnt, **ways)
    told = stages.encode_prompts(str(base), texts_of(batches), **ways)
    drawn = list(stages.denoise(str(base), batches, words, sampled, refining=ENSEMBLE, **learnt, **ways))
    work = [(batch, one.handed_over_BCHW) for batch, one in zip(batches, drawn, strict=True)]
    refined = list(stages.refine(str(refiner), work, told, sampled, ENSEMBLE, base_model=str(base), **ways))
    latents = [("one", one[0]) for one in [*(one.finished_BCHW for one in drawn), *refined]]
    decoding = stages.decode(str(base), latents, device="cpu", repeat="straight", shelf=shelf)
    return [picture.tobytes() for picture in decoding]


@functools.cache
def words_of() -> stages.Words:
    """Texts in numbers of the right shape: what they mean is nothing to these tests."""
    chance = torch.Generator().manual_seed(0)
    one = (torch.randn(size, generator=chance) for size in [(1, 77, 32), (1, 16)] * 9)
    return {text: sdxl.Encoded(next(one), next(one)) for text in sorted(texts_of([FIRST, SECOND]))}


def draw(model: Path, shelf: Shelf | None = None, lora: adapters.Adapter | None = None, **more: Any) -> torch.Tensor:
    """One picture's latents."""
    sampled = Sampling("euler", 3, 4.0, repeat=more.pop("repeat", "none"))
    [drawn] = stages.denoise(str(model), [FIRST], words_of(), sampled, lora=lora, shelf=shelf, **more, **HERE)
    return drawn.finished_BCHW


def networks(loaded: Any) -> list[Any]:
    return list(loaded.encoders) if isinstance(loaded, sdxl.TextParts) else [loaded]


def size_of(*loaded: Any) -> int:
    """What a model's weights take, by torch."""
    return sum(
        one.numel() * one.element_size() for some in loaded for net in networks(some) for one in net.parameters()
    )


class Watch:
    """Every load from now on by part, and the UNets that are alive at each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads: Counter[str] = Counter()
        self.unets: list[weakref.ref[Any]] = []
        self.most_at_once = 0
        for name in ("load_text", "load_denoiser", "load_vae"):
            monkeypatch.setattr(sdxl, name, self._counted(name, getattr(sdxl, name)))

    def _counted(self, name: str, load: Any) -> Any:
        def loading(*given: Any) -> Any:
            self.loads[name] += 1
            loaded = load(*given)
            if name == "load_denoiser":
                self.unets.append(weakref.ref(loaded))
                self.most_at_once = max(self.most_at_once, self.alive())
            return loaded

        return loading

    def alive(self) -> int:
        return sum(one() is not None for one in self.unets)


# -- whole sheets --


@pytest.fixture(scope="module")
def plain_sheet(tiny_sdxl: Path, tiny_refiner: Path, lora: adapters.Adapter) -> list[bytes]:
    """The sheet where each stage loads its own model and lets it go."""
    return sheet(tiny_sdxl, tiny_refiner, lora, None)


def test_L15_with_room_each_model_is_loaded_once_in_two_sheets_and_the_bytes_are_those_without_a_shelf(
    tiny_sdxl: Path, tiny_refiner: Path, lora: adapters.Adapter, plain_sheet: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The text encoders count twice: with the LoRA for the base, without it for the refiner."""
    watch, shelf = Watch(monkeypatch), Shelf(PLENTY)
    for _ in range(2):
        assert sheet(tiny_sdxl, tiny_refiner, lora, shelf) == plain_sheet
        assert watch.loads == {"load_text": 2, "load_denoiser": 2, "load_vae": 1}
    assert len(set(plain_sheet)) == 4 and shelf.give_back() and not shelf.give_back()
    assert sheet(tiny_sdxl, tiny_refiner, lora, shelf) == plain_sheet
    assert watch.loads == {"load_text": 4, "load_denoiser": 4, "load_vae": 2}


@pytest.mark.parametrize("room", ["none", "for one UNet", "for less than two"])
def test_L15_where_memory_is_short_there_is_never_more_than_one_unet(
    tiny_sdxl: Path, tiny_refiner: Path, lora: adapters.Adapter, plain_sheet: list[bytes], room: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base, refiner = (
        size_of(sdxl.load_denoiser(str(model), torch.float32, "cpu")) for model in (tiny_sdxl, tiny_refiner)
    )
    shelf = Shelf({"none": 0, "for one UNet": max(base, refiner), "for less than two": base + refiner - 1}[room])
    monkeypatch.undo()  # here memory is really given back
    watch = Watch(monkeypatch)
    for _ in range(2):
        assert sheet(tiny_sdxl, tiny_refiner, lora, shelf) == plain_sheet
    assert watch.loads["load_denoiser"] == 4 and watch.most_at_once == 1
    shelf.give_back()
    assert watch.alive() == 0


def test_L15_another_scale_or_another_adapter_draws_what_a_fresh_load_draws(
    tiny_sdxl: Path, lora: adapters.Adapter, tmp_path: Path
) -> None:
    """A kept UNet is never unfused; and a file that was trained anew under its old name is another adapter."""
    shelf, pictures = Shelf(PLENTY), []
    for scale in (1.0, 0.5, 0.0, 1.0):
        pictures.append(draw(tiny_sdxl, shelf, lora, lora_scale=scale))
        assert torch.equal(pictures[-1], draw(tiny_sdxl, None, lora, lora_scale=scale))
    file = shutil.copytree(lora.path.parent, tmp_path / "lace" / "adapter") / lora.path.name
    same = adapters.load(file)
    assert torch.equal(draw(tiny_sdxl, shelf, same), pictures[0])
    other = made_lora(tiny_sdxl, RunFolder(tmp_path / "lace"), 5)
    assert other.path == same.path and not torch.equal(draw(tiny_sdxl, shelf, other), pictures[0])
    for one in (same, other):
        assert torch.equal(draw(tiny_sdxl, shelf, one), draw(tiny_sdxl, None, one))
    assert len({one.sum().item() for one in pictures}) == 3
    stronger = dataclasses.replace(other, facts=dataclasses.replace(other.facts, alpha=16))
    assert torch.equal(draw(tiny_sdxl, shelf, stronger), draw(tiny_sdxl, None, stronger))
    assert torch.equal(draw(tiny_sdxl, shelf), draw(tiny_sdxl))


def test_L15_a_base_model_that_was_changed_in_its_folder_is_loaded_again(tiny_sdxl: Path, tmp_path: Path) -> None:
    """And the same files under another name are the same model, in the other model's own schedule."""
    model = tmp_path / "model"
    shutil.copytree(tiny_sdxl, model)
    shelf = Shelf(PLENTY)
    before = draw(model, shelf)
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({name: 1.5 * tensor for name, tensor in state.items()}, file, metadata={"format": "pt"})
    after = draw(model, shelf)
    assert torch.equal(after, draw(model)) and not torch.equal(after, before)

    schedule = model / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"prediction_type": "v_prediction"}))
    assert torch.equal(draw(model, shelf), draw(model)) and not torch.equal(draw(model, shelf), after)


# -- interruptions --


def interrupting(monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int = 2) -> None:
    """Let the UNet fail in its `at`-th pass, after it has computed."""
    passes, predict = Counter[str](), sdxl.predict

    def failing(*given: Any) -> Any:
        passes["all"] += 1
        predicted = predict(*given)
        if passes["all"] == at:
            raise error
        return predicted

    monkeypatch.setattr(sdxl, "predict", failing)


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [(RuntimeError("a fault"), True), (SystemExit(1), False), (KeyboardInterrupt(), False)],
)
def test_L15_after_an_error_in_the_middle_the_next_picture_is_that_of_a_fresh_model(
    tiny_sdxl: Path, lora: adapters.Adapter, error: BaseException, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a repeat: padding is back to normal. What came from outside may have come anywhere: no model
    is kept of it."""
    fresh, watch, shelf = draw(tiny_sdxl, None, lora), Watch(monkeypatch), Shelf(PLENTY)
    with monkeypatch.context() as patch:
        interrupting(patch, error)
        with pytest.raises(type(error)):
            draw(tiny_sdxl, shelf, lora, repeat="half-drop")
    assert torch.equal(draw(tiny_sdxl, shelf, lora), fresh)
    assert watch.loads["load_denoiser"] == (1 if is_kept else 2)


@pytest.mark.parametrize("is_closed", [True, False])
def test_L15_after_a_stop_the_next_picture_is_that_of_a_fresh_model(
    tiny_sdxl: Path, lora: adapters.Adapter, is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody still holds the stage that was left, as a notebook holds the last error: its model is padded
    for a repeat, and is lent to nobody else."""
    fresh, watch, shelf = draw(tiny_sdxl, None, lora), Watch(monkeypatch), Shelf(PLENTY)
    sampled = Sampling("euler", 3, 4.0, repeat="half-drop")
    drawing = stages.denoise(str(tiny_sdxl), [FIRST, SECOND], words_of(), sampled, lora=lora, shelf=shelf, **HERE)
    next(drawing)
    if is_closed:
        drawing.close()  # type: ignore[attr-defined]
    assert torch.equal(draw(tiny_sdxl, shelf, lora), fresh)
    assert watch.loads["load_denoiser"] == (1 if is_closed else 2)
    assert len(list(drawing)) == (0 if is_closed else 1)  # who holds it may go on with it
    assert torch.equal(draw(tiny_sdxl, shelf, lora), fresh)


def test_L15_a_lora_that_is_half_fused_is_not_kept(
    tiny_sdxl: Path, lora: adapters.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, shelf = draw(tiny_sdxl, None, lora), Shelf(PLENTY)

    def half(unet: Any, *rest: Any) -> None:
        unet.conv_in.weight.mul_(2)
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "fuse", half)
        with pytest.raises(RuntimeError, match="a fault"):
            draw(tiny_sdxl, shelf, lora)
    assert not shelf.give_back() and torch.equal(draw(tiny_sdxl, shelf, lora), fresh)


# -- memory --


def test_L19_where_memory_runs_out_the_shelf_is_emptied_and_the_same_batch_tried_again(
    tiny_sdxl: Path, tiny_refiner: Path, lora: adapters.Adapter, plain_sheet: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A card where a UNet's pass fits beside nothing else: the sheet is made all the same, in the same batches."""
    monkeypatch.undo()
    watch, lines, predict = Watch(monkeypatch), [], sdxl.predict
    shelf = Shelf(PLENTY, lines.append)

    def short(*given: Any) -> Any:
        if watch.alive() > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(*given)

    monkeypatch.setattr(sdxl, "predict", short)
    assert sheet(tiny_sdxl, tiny_refiner, lora, shelf) == plain_sheet
    assert lines == ["memory    is short: fewer models are kept between stages from now on"]
    # What was learnt of this machine is remembered: the second sheet runs into nothing.
    assert sheet(tiny_sdxl, tiny_refiner, lora, shelf) == plain_sheet and len(lines) == 1


def test_L19_memory_that_runs_out_with_an_empty_shelf_is_told_at_once(
    tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the batch is halved, and not tried twice for nothing."""
    tries, shelf = Counter[str](), Shelf(PLENTY)

    def short(*given: Any) -> Any:
        tries["all"] += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(sdxl, "predict", short)
        with pytest.raises(OutOfMemory, match="while drawing"):
            draw(tiny_sdxl, shelf)
    assert tries["all"] == 1
    watch = Watch(monkeypatch)
    draw(tiny_sdxl, shelf)  # the halved batch
    assert watch.loads["load_denoiser"] == 0


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_L19_memory_that_runs_out_while_a_model_is_loaded_empties_the_shelf(
    tiny_sdxl: Path, lora: adapters.Adapter, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of reading its files, where the libraries hide a reason behind their own."""
    shelf, kind, failures = Shelf(PLENTY), of_diffusers("UNet2DConditionModel"), [error]
    wanted, read = draw(tiny_sdxl), kind.from_pretrained
    draw(tiny_sdxl, shelf, lora)

    def short(*given: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return read(*given, **more)

    monkeypatch.setattr(kind, "from_pretrained", short)
    assert torch.equal(draw(tiny_sdxl, shelf), wanted) and not failures
    failures.append(error)
    with pytest.raises(OutOfMemory, match="while drawing"):
        draw(tiny_sdxl, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_L15_what_a_model_takes_is_known_before_it_is_loaded(
    tiny_sdxl: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """From the headers of its files, whatever their own dtype is and however many there are."""
    model = tmp_path / "model"
    shutil.copytree(tiny_sdxl, model)
    unet = sdxl.load_denoiser(str(model), torch.float16, "cpu")
    with quiet():
        unet.save_pretrained(model / "unet", variant="fp16")  # beside the file in fp32
        shutil.rmtree(model / "vae")
        sdxl.load_vae(str(tiny_sdxl), torch.float32, "cpu").save_pretrained(model / "vae", max_shard_size="9KB")
    assert len(list((model / "vae").glob("*.safetensors"))) > 1
    loads = {"unet": sdxl.load_denoiser, "vae": sdxl.load_vae}
    for part, load in loads.items():
        assert folders.weight_bytes([model / part], dtype.itemsize) == size_of(load(str(model), dtype, "cpu"))
    both = [model / "text_encoder", model / "text_encoder_2"]
    assert folders.weight_bytes(both, dtype.itemsize) == size_of(sdxl.load_text(str(model), dtype, "cpu"))


def test_a_damaged_file_is_told_before_room_is_made_for_it(tiny_sdxl: Path, tmp_path: Path) -> None:
    """L19."""
    shutil.copytree(tiny_sdxl / "unet", tmp_path / "unet")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"is damaged .*Fetch the model again\."):
        folders.weight_bytes([tmp_path / "unet"], 2)


# -- machines, with SDXL's true sizes: millions of parameters as counted on its real architecture --

MILLIONS = {"text": 817.8, "base": 2567.5, "refiner": 2259.5, "vae": 83.7}
BYTES = {name: int(count * 1e6) * (4 if name == "vae" else 2) for name, count in MILLIONS.items()}
STAGES = ["text", "base", "refiner", "vae"]


class Weights:
    """Something that takes room."""

    def __init__(self, name: str) -> None:
        self.name = name


def machine(vram_gb: float = 0.0, free_ram_gb: float = 10.0) -> Machine:
    return Machine(
        is_colab=True, drive_mounted=True, gpu_name="GPU" if vram_gb else None, vram_gb=vram_gb, capability=(7, 5),
        ram_gb=12.7, free_ram_gb=free_ram_gb, free_disk_gb=50.0, cpu_cores=2,
    )  # fmt: skip


def borrowed(shelf: Shelf, names: list[str], alive: "weakref.WeakSet[Weights]") -> Iterator[tuple[set[str], bool]]:
    """What is in memory while each of the named is borrowed, and whether it had to be loaded."""
    for name in names:
        loads: list[str] = []

        def load(name: str = name, loads: list[str] = loads) -> Weights:
            loads.append(name)
            made = Weights(name)
            alive.add(made)
            return made

        with shelf.lent(Wanted(load, lambda name=name: name, lambda name=name: BYTES[name])):  # type: ignore[misc]
            yield {one.name for one in alive}, bool(loads)


@pytest.mark.parametrize("vram_gb", [14.56, 14.75, 15.0])
def test_L19_a_t4_never_holds_two_unets_and_is_never_fuller_than_its_room(vram_gb: float) -> None:
    """In any order of stages."""
    shelf, alive, chance = Shelf.of(machine(vram_gb)), weakref.WeakSet[Weights](), random.Random(1)
    names = STAGES * 3 + [chance.choice(STAGES) for _ in range(100)]
    held = [held for held, _ in borrowed(shelf, names, alive)]
    assert not [one for one in held if {"base", "refiner"} <= one]
    assert max(sum(BYTES[name] for name in one) for one in held) <= shelf.room_bytes
    assert {"base", "text", "vae"} in held  # what is small stays


@pytest.mark.parametrize("vram_gb", [22.2, 39.4])
def test_L19_larger_cards_hold_all_and_load_each_once(vram_gb: float) -> None:
    shelf, alive = Shelf.of(machine(vram_gb)), weakref.WeakSet[Weights]()
    loaded = [is_loaded for _, is_loaded in borrowed(shelf, STAGES * 3, alive)]
    assert loaded == [True] * 4 + [False] * 8
    assert "models stay in memory between stages" in str(shelf)


@pytest.mark.parametrize("found", [machine(6.0), machine(free_ram_gb=0.0)])
def test_L19_a_machine_without_room_keeps_nothing(found: Machine) -> None:
    shelf, alive = Shelf.of(found), weakref.WeakSet[Weights]()
    for held, is_loaded in borrowed(shelf, STAGES * 2, alive):
        assert len(held) == 1 and is_loaded
    assert not alive and str(shelf) == "every model is let go after its stage"


def test_L19_a_cpu_keeps_what_half_of_its_free_memory_holds() -> None:
    """Colab without a GPU: the base UNet alone in fp32 is 9.6 GiB."""
    assert Shelf.of(machine(free_ram_gb=11.0)).room_bytes == 5.5 * GIB < 4e6 * MILLIONS["base"]


def test_L19_what_was_used_longest_ago_goes_first() -> None:
    shelf, alive = Shelf(BYTES["base"] + BYTES["refiner"] + BYTES["vae"]), weakref.WeakSet[Weights]()
    held = [held for held, _ in borrowed(shelf, ["text", "vae", "base", "vae", "refiner", "text"], alive)]
    assert held[3:] == [{"text", "vae", "base"}, {"vae", "base", "refiner"}, {"vae", "refiner", "text"}]


def test_L19_the_demo_is_kept_on_any_machine() -> None:
    """It is small beside half of what any computer has free."""
    parts = [Path(demo.locate(model)) / part for model in (demo.MODEL, demo.REFINER) for part in ("unet", "vae")]
    assert 4 * folders.weight_bytes(parts, 4) < Shelf.of(machine(free_ram_gb=1.0)).room_bytes


def test_L15_a_shelf_that_is_gone_leaves_no_model_behind(tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    watch, shelf = Watch(monkeypatch), Shelf(PLENTY)
    draw(tiny_sdxl, shelf)
    assert watch.alive() == 1
    del shelf
    gc.collect()
    assert watch.alive() == 0
