"""A grid over checkpoints and strengths, and base against LoRA (L16, C12; issue "Compare")."""

import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from lace_lora import adapter as adapters
from lace_lora import candidates, cells, checkpoint, grid, inference, main, optimizers, pictures, train
from lace_lora.config import Config, load
from lace_lora.errors import AdapterError, LaceError, PicturesError, SettingsError
from lace_lora.families import memory, sdxl
from lace_lora.run_folder import RunFolder
from tests.conftest import draw_lace, read_pixels
from tests.drawing import cut_at, seeds_drawn
from tests.test_stages import watch_networks
from tests.training import quietly, stop_after

PROMPT = "a photo of <lace> leaf"
SCALES = (0.0, 0.5, 1.0)
SMALL = {"num_inference_steps": 3, "width": 32, "height": 32, "seed": 7}
# A LoRA on both text encoders, a word of its own and DoRA: whatever a checkpoint may hold beside the UNet's LoRA.
TEXT = {"train_text_encoder": True, "learn_concept_token": True, "use_dora": True}


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage takes 0.3 s each time with all these libraries loaded."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)


def settings_of(tiny_sdxl: Path, photographs: Path, folder: Path, cache: Path, **more: Any) -> Config:
    """Ten updates that change the picture much, a checkpoint after five."""
    learning = {"max_train_steps": 10, "checkpoint_every": 5, "learning_rate": 5e-2, "rank": 4, "alpha": 8}
    plain = {"train_batch_size": 2, "gradient_accumulation_steps": 1, "log_with": "none", "resolution": 64}
    words = {"concept_token": "<lace>", "instance_prompt": PROMPT}
    places = {"images_dir": str(photographs), "lora_output_dir": str(folder), "cache_dir": str(cache)}
    known = {"preset": "none", "pretrained_model": str(tiny_sdxl), "lora_scale": 1.0}
    return load(**known | places | learning | plain | words | SMALL | more)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "shared_cache"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of its own: these trainings write captions beside them, with another concept token."""
    return draw_lace(tmp_path_factory.mktemp("grid") / "pictures")


@pytest.fixture(scope="module")
def trained(tiny_sdxl: Path, photographs: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a run that is finished, with checkpoints of the steps 5 and 10."""
    config = settings_of(tiny_sdxl, photographs, tmp_path_factory.mktemp("grid") / "out", cache_dir)
    train.run(config, say=quietly)
    return config


@pytest.fixture(scope="module")
def whole(trained: Config) -> dict[str, bytes]:
    """The files of a grid that was drawn without a break."""
    assert quiet_run(trained).is_complete
    folder = RunFolder.of(trained).evaluation
    found = files_of(folder)
    shutil.rmtree(folder)
    return found


@pytest.fixture
def config(trained: Config, tmp_path: Path) -> Config:
    """The same run in a folder of its own."""
    shutil.copytree(trained.lora_output_dir, tmp_path / "out")
    return trained.model_copy(update={"lora_output_dir": str(tmp_path / "out")})


def quiet_run(config: Config, **more: Any) -> grid.Grid:
    return grid.run(config, **{"scales": SCALES, "say": quietly} | more)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn_by_inference(config: Config, scale: float, seed: int = 7) -> bytes:
    """The pixels that generating one picture gives."""
    asked = {"lora_scale": scale, "seed": seed, "refine": "none", "num_images": 1, "prompts": (PROMPT,)}
    [made] = inference.run(config.model_copy(update=asked), say=quietly)
    return read_pixels(made.base).tobytes()


def pixels_of(made: grid.Grid) -> dict[tuple[int | None, float, int], bytes]:
    return {(cell.step, cell.lora_scale, cell.seed): read_pixels(cell.path).tobytes() for cell in made.cells}


def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load_denoiser", "load_vae", "load_text"):
        monkeypatch.setattr(sdxl, name, None)


# -- what is drawn --


@pytest.mark.parametrize("changes", [{}, TEXT, {"optimizer": "schedulefree", "lora_targets": "attention+ff+conv"}])
def test_L16_every_cell_is_what_generating_gives_with_the_adapter_of_that_step(
    changes: dict[str, Any], tiny_sdxl: Path, photographs: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """L16: the training is stopped at step 5, which writes its adapter; what that draws is the oracle of the row."""
    if "optimizer" in changes and optimizers.missing("schedulefree"):
        pytest.skip(str(optimizers.missing("schedulefree")))
    config = settings_of(tiny_sdxl, photographs, tmp_path / "out", cache_dir, **changes)
    expected = {}
    for step in (5, 10):
        made = train.run(config, say=quietly, show=stop_after(5) if step == 5 else None)
        assert made.facts.step == step
        expected |= {(step, scale, 7): drawn_by_inference(config, scale) for scale in (0.5, 1.0)}
    found = grid.run(config, scales=SCALES, say=quietly)
    [base], [lora] = inference.compare(config, PROMPT, [7], say=quietly)
    expected[None, 0.0, 7] = numpy.asarray(base).tobytes()
    assert found.rows == ("step 5", "step 10, finished")
    assert pixels_of(found) == expected and numpy.asarray(lora).tobytes() == expected[10, 1.0, 7]
    assert len(set(expected.values())) == 5


def test_P3_every_network_is_loaded_once_and_never_beside_another(
    tiny_sdxl: Path, photographs: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: two text encoders, the UNet and the VAE for two checkpoints at three strengths that change the words too."""
    config = settings_of(tiny_sdxl, photographs, tmp_path / "out", cache_dir, **TEXT)
    train.run(config, say=quietly)
    monkeypatch.setattr(memory, "give_back_memory", gc.collect)
    loaded = watch_networks(monkeypatch)
    made = quiet_run(config, seeds=[1, 2])
    assert len(loaded) == 4 and len(made.cells) == 2 * (1 + 2 * 2) and made.is_complete


@pytest.mark.parametrize(
    ("kept", "computed"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
    ],
)
def test_L16_a_unet_whose_lora_is_taken_off_is_bit_for_bit_as_loaded(
    kept: torch.dtype, computed: torch.dtype, tiny_sdxl: Path, tmp_path: Path
) -> None:
    """L16: whatever number format the file holds and is computed in; of a half and a plain file one is meant."""
    model = str(shutil.copytree(tiny_sdxl, tmp_path / "model"))
    unet = sdxl.load_denoiser(model, torch.float32, "cpu")
    adapters.attach(unet, "unet", adapters.Shape(4, 8, "attention+ff+conv"), 3)
    state = {name: torch.full_like(one, 0.1) for name, one in adapters.state_of({"unet": unet}).items()}
    lora = adapters.Adapter(adapters.AdapterFacts("sdxl", model, 4, 8, ()), state, tmp_path)
    if kept == torch.float16:
        half = sdxl.load_denoiser(model, torch.float32, "cpu").half()
        half.save_pretrained(Path(model) / "unet", variant="fp16")
    unet, fresh = (sdxl.load_denoiser(model, computed, "cpu") for _ in range(2))
    own, changed = fresh.state_dict(), unet.state_dict()
    adapters.fuse(unet, lora, 0.3)
    assert sum(not torch.equal(changed[name], one) for name, one in own.items()) == len(state) // 2
    cells._put_back(sdxl, unet, model, lora)
    assert all(torch.equal(changed[name], one) for name, one in own.items())


def test_L16_a_finished_adapter_of_an_earlier_step_stands_last_and_is_not_drawn_twice(config: Config) -> None:
    """L16: what early stopping leaves: the adapter is the best checkpoint's, and the last one is another."""
    folder = RunFolder.of(config)
    made = adapters.load(folder.root)
    earlier = candidates.of_checkpoint(folder.checkpoint(5), made.facts)
    checkpoint.append_line(folder.log, json.dumps({"step": 5, "val_loss": 0.1, "train_probe_loss": 0.1}))
    facts = candidates.replace(made.facts, step=5, is_complete=True)
    adapters.save(earlier.state, folder, facts)
    found = quiet_run(config)
    assert found.rows == ("step 5, best", "step 10", "step 5, best, finished")
    assert {(cell.step, cell.lora_scale) for cell in found.cells} == {(None, 0), (5, 0.5), (5, 1), (10, 0.5), (10, 1)}
    assert len(found.cells) == 5 and found.is_complete


def test_a_cell_carries_what_made_it_and_no_path_of_a_home(config: Config, whole: dict[str, bytes]) -> None:
    """C7."""
    made = quiet_run(config)
    [cell] = [cell for cell in made.cells if (cell.step, cell.lora_scale) == (5, 0.5)]
    told = pictures.read_details(cell.path)
    expected = {"prompt": PROMPT, "seed": 7, "num_inference_steps": 3, "lora_scale": 0.5, "step": 5, "width": 32}
    assert told | expected == told and told["pretrained_model"] == "tiny-sdxl" and told["precision"] == "fp32"
    assert pictures.read_parameters(cell.path).startswith(f"{PROMPT}\nNegative prompt: grainy, low quality\nSteps: 3")
    everything = b"".join(files_of(RunFolder.of(config).evaluation).values())
    assert config.lora_output_dir.encode() not in everything and str(Path.home()).encode() + b"/" not in everything
    assert files_of(RunFolder.of(config).evaluation) == whole


# -- the page --


def test_L6_the_page_has_a_row_for_each_checkpoint_and_a_column_for_each_strength(config: Config) -> None:
    """L6: the base model's picture stands in every row, and each prompt and seed has a block of its own."""
    made = quiet_run(config, seeds=[7, 8])
    assert made.picture == made.pages[0] == RunFolder.of(config).evaluation / "grid/grid.png" and len(made.pages) == 1
    page, side, pitch = read_pixels(made.pages[0]), 320, 320 + 8
    tops = []
    for seed in (7, 8):
        by_place = {(cell.step, cell.lora_scale): cell.path for cell in made.cells if cell.seed == seed}
        tiles = [[by_place[step if scale else None, scale] for scale in SCALES] for step in (5, 10)]
        enlarged = [[numpy.kron(read_pixels(path), numpy.ones((10, 10, 1), int)) for path in row] for row in tiles]
        x0, y0 = place_of(page, enlarged[0][0])
        for row in range(2):
            for column in range(3):
                x, y = x0 + column * pitch, y0 + row * pitch
                assert (page[y : y + side, x : x + side] == enlarged[row][column]).all()
        tops.append(y0)
        assert (page[y0 - 40 : y0 - 8, x0:] < 100).any() and (page[y0 : y0 + side, :x0] < 100).any()  # labels
    assert tops[0] + 2 * pitch < tops[1]


def place_of(page: numpy.ndarray, tile: numpy.ndarray) -> tuple[int, int]:
    """Left and top of the first place where a picture stands."""
    height, width = tile.shape[:2]
    for y, x in numpy.argwhere((page == tile[0, 0]).all(axis=2)):
        if numpy.array_equal(page[y : y + height, x : x + width], tile):
            return int(x), int(y)
    raise AssertionError("the picture is nowhere on the page")


@pytest.mark.parametrize("side", [32, 96, 161, 200, 320, 512, 1024, 2048])
def test_labels_are_never_cut_off(side: int) -> None:
    """L6: by the fonts and widths that a strip gives its labels at that size of a cell."""
    tile_px = grid._tile_px(side)
    assert 160 < tile_px <= 320
    font = pictures.font_of(max(11, min(20, tile_px // 14)))
    facts = adapters.AdapterFacts("sdxl", "", 4, 8, ())
    row = candidates.Candidate(1_000_000, Path(), facts, "", True, True)
    beside = pictures.wrapped(row.label, font, tile_px * 2 // 3)
    assert " ".join(beside) == "step 1000000, best, finished"
    for text in ("lora_scale -1.25", "lora_scale 0.333333", "base model"):
        assert pictures.wrapped(text, font, tile_px, 1) == [text]


def test_a_page_holds_no_more_cells_than_can_be_opened(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """L6: two rows of three on a page, then one; pages of earlier, longer ones go."""
    monkeypatch.setattr(grid, "ON_PAGE", 3)
    made = quiet_run(config, seeds=[7, 8])
    assert [path.name for path in made.pages] == ["grid.png", "grid-2.png", "grid-3.png", "grid-4.png"]
    monkeypatch.setattr(grid, "ON_PAGE", 6)
    made = quiet_run(config, seeds=[7, 8])
    assert [path.name for path in made.pages] == ["grid.png", "grid-2.png"]
    assert sorted(path.name for path in made.pages[0].parent.glob("*.png")) == ["grid-2.png", "grid.png"]
    assert len({read_pixels(path).shape for path in made.pages}) == 1


def test_sheets_are_stacked_under_their_headings_however_long() -> None:
    """L6."""
    colours = [(200, 30, 30), (30, 30, 200)]
    sheets = [
        ("word " * 60 + "end", Image.new("RGB", (300, 50), colours[0])),
        ("b", Image.new("RGB", (200, 40), colours[1])),
    ]
    page = numpy.asarray(pictures.stacked(sheets))
    tops = [int(numpy.argwhere((page == colour).all(axis=2))[0][0]) for colour in colours]
    assert page.shape[1] == 300 and tops[0] > 5 * 18 and tops[1] > tops[0] + 50 + 18 and page.shape[0] == tops[1] + 40
    assert (page[: tops[0]] < 100).any() and (page[tops[0] + 50 : tops[1]] < 100).any()
    with pytest.raises(PicturesError, match="no sheets"):
        pictures.stacked([])


# -- again, and after a cut --


@pytest.mark.parametrize(
    ("room", "name", "call"),
    [(cells, "_draw_one", 1), (cells, "_draw_one", 4), (pictures, "write_picture", 3), (grid, "_write_pages", 1)],
)
def test_C12_a_grid_that_was_cut_off_is_finished_with_the_same_bytes_and_loses_one_cell_at_most(
    config: Config, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, room: Any, name: str, call: int
) -> None:
    """C12: before the first and the fourth picture is drawn, the third is written, and the page."""
    drawn = seeds_drawn(monkeypatch)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        cut_at(patched, room, name, call)
        quiet_run(config)
    assert quiet_run(config).is_complete
    assert len(drawn) == 5
    assert files_of(RunFolder.of(config).evaluation) == whole


def test_C12_stopping_keeps_what_is_drawn(config: Config, whole: dict[str, bytes]) -> None:
    """C12: the stop button at the second picture, and at the third that is written; twice stops at once."""
    for begins, times in (("drawn", 1), ("drawn", 2), ("picture", 1)):
        said: list[str] = []

        def stop(line: str, said: list[str] = said, begins: str = begins, times: int = times) -> None:
            said.append(line)
            if line.startswith(begins) and not any(one.startswith("Stopping") for one in said):
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)

        made = grid.run(config, scales=SCALES, say=stop)
        assert not made.is_complete and "Run the same again to go on." in said[-1]
        assert (made.picture is not None) == (begins == "picture")
    assert 0 < made.missing < 5
    assert len(list((RunFolder.of(config).evaluation / "grid/latents").iterdir())) == made.missing
    assert quiet_run(config).is_complete
    assert files_of(RunFolder.of(config).evaluation) == whole


def test_C12_a_second_call_loads_nothing_and_other_requests_never_overwrite(
    config: Config, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C12: another prompt, seed, setting or set of strengths gets a folder of its own; cells are taken over."""
    quiet_run(config)
    drawn = seeds_drawn(monkeypatch)
    others: list[tuple[Config, dict[str, Any], int]] = [
        (config, {"prompts": ["<lace> star"]}, 5),
        (config, {"seeds": [8]}, 5),
        (config.model_copy(update={"guidance_scale": 3.0}), {}, 5),
        (config, {"scales": (1.0, 0.5, 0.75)}, 2),
        (config, {"steps": [5]}, 0),
    ]
    for number, (changed, more, new) in enumerate(others, 2):
        drawn.clear()
        made = quiet_run(changed, **more)
        assert made.picture is not None and made.picture.parent.name == f"grid-{number}" and len(drawn) == new
    assert quiet_run(config, scales=(1.0, 0.5, 0.75)).scales == (0.5, 0.75, 1.0)
    no_models(monkeypatch)
    assert quiet_run(config).is_complete
    first = {name: data for name, data in files_of(RunFolder.of(config).evaluation).items() if name.startswith("grid/")}
    assert first == whole


def test_C12_a_cell_that_was_damaged_is_drawn_again(config: Config, whole: dict[str, bytes]) -> None:
    """C12."""
    made = quiet_run(config)
    data = made.cells[1].path.read_bytes()
    made.cells[1].path.write_bytes(data[:-200])
    made.cells[2].path.unlink()
    assert quiet_run(config).is_complete and files_of(RunFolder.of(config).evaluation) == whole


# -- runs as they are --


def test_a_training_that_is_half_done_shows_its_checkpoints_and_says_so(config: Config) -> None:
    """L16: no adapter yet; what the checkpoints are of is told by the run's settings, and draws the same."""
    expected = pixels_of(quiet_run(config))
    folder = RunFolder.of(config)
    shutil.rmtree(folder.adapter)
    shutil.rmtree(folder.evaluation)
    shutil.rmtree(folder.checkpoint(10))
    said: list[str] = []
    made = grid.run(config, scales=SCALES, say=said.append)
    assert made.rows == ("step 5",) and not made.left_out
    assert [line for line in said if line.startswith("! The training is not finished (step 10 of 10)")]
    assert pixels_of(made) == {place: one for place, one in expected.items() if place[0] != 10}
    folder.config.unlink()
    with pytest.raises(AdapterError, match="holds checkpoints and no config.yaml.*lace-lora train"):
        quiet_run(config)


def test_a_damaged_checkpoint_is_said_and_left_out(config: Config) -> None:
    """P19."""
    folder = RunFolder.of(config)
    file = folder.checkpoint(5) / "lora.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    said: list[str] = []
    made = grid.run(config, scales=SCALES, say=said.append)
    assert made.rows == ("step 10, finished",) and made.is_complete
    line = "step-000005 is left out: lora.safetensors is not as it was written (its checksum differs)."
    assert made.left_out == (line,) and f"! {line}" in said
    folder.adapter_weights.write_bytes(b"nothing")
    [adapter, _] = grid.run(config, scales=SCALES, say=said.append).left_out
    assert adapter.startswith("The adapter is left out: ") and f"! {adapter}" in said
    told = b"".join(files_of(folder.evaluation).values())
    assert str(folder.root).encode() not in told and b"The adapter is left out: adapter/pytorch_lora" in told
    shutil.rmtree(folder.adapter)
    shutil.rmtree(folder.checkpoint(10))
    with pytest.raises(AdapterError, match="No checkpoint in .* can be used. lace-lora train"):
        quiet_run(config)


def test_a_checkpoint_that_goes_away_while_others_are_drawn_costs_only_its_row(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C12: a training that goes on beside it deletes its oldest checkpoint."""
    working = candidates.load

    def gone(row: candidates.Candidate) -> adapters.Adapter:
        if row.step == 5:
            shutil.rmtree(row.file.parent)
        return working(row)

    monkeypatch.setattr(candidates, "load", gone)
    said: list[str] = []
    made = grid.run(config, scales=SCALES, say=said.append)
    assert made.missing == 2 and made.picture is not None and made.picture.is_file()
    assert [line for line in said if line.startswith("! step 5 is left out: it was cut off while being written")]
    assert quiet_run(config).rows == ("step 10, finished",)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"steps": [5, 7]}, SettingsError, "no checkpoint of step 7; the nearest: 5 and 10"),
        ({"scales": [0, 9]}, SettingsError, "lora_scale is 9 but must be -2 to 3"),
        ({"scales": [float("nan")]}, SettingsError, "lora_scale is nan but must be"),
        ({"scales": []}, SettingsError, "at least one lora_scale"),
        ({"scales": [number / 20 for number in range(21)]}, SettingsError, "21 strengths .* at most 20"),
        ({"seeds": [-1]}, SettingsError, "seed is -1 but must be"),
        ({"prompts": ["<lace> leaf", " \n "]}, SettingsError, "A prompt is empty. Write what you want to see"),
    ],
)
def test_bad_input_is_a_sentence_before_a_model_is_loaded(
    config: Config, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], kind: type[LaceError], said: str
) -> None:
    """L16."""
    no_models(monkeypatch)
    with pytest.raises(kind, match=said):
        quiet_run(config, **more)
    assert not RunFolder.of(config).evaluation.exists()


def test_a_run_without_anything_learnt_says_train_first(config: Config) -> None:
    """L16."""
    for call in (quiet_run, lambda one: grid.compare(one, say=quietly)):
        with pytest.raises(AdapterError, match=r"Train one first \(lace-lora train"):
            call(config.model_copy(update={"run_name": "another"}))


def test_without_a_prompt_the_first_that_is_set_is_drawn(config: Config) -> None:
    """L16: the instance prompt where none is set; a sheet's hundred prompts would be hundreds of pictures."""
    assert quiet_run(config, scales=[0.0]).prompts == (PROMPT,)
    set_ones = config.model_copy(update={"prompts": ("<lace> star", "<lace> rose")})
    assert quiet_run(set_ones, scales=[0.0]).prompts == ("<lace> star",)


def test_a_prompt_without_the_concept_token_is_drawn_as_it_is_and_told(config: Config) -> None:
    """L16: as compare takes it: it shows whether plain prompts stay plain."""
    said: list[str] = []
    made = grid.run(config, ["white star"], scales=[1.0], steps=[10], say=said.append)
    assert [line for line in said if line.startswith("! 'white star' does not hold <lace>")]
    _, [lora] = inference.compare(config, "white star", [7], say=quietly)
    assert pixels_of(made) == {(10, 1.0, 7): numpy.asarray(lora).tobytes()}


# -- the command line --


@pytest.fixture
def line(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`lace-lora grid` with what is given, in the run's folder."""
    monkeypatch.chdir(tmp_path)
    given = {name: getattr(config, name) for name in ("pretrained_model", "lora_output_dir", "concept_token", *SMALL)}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    yield lambda *words: main.run(["grid", *words, "--preset", "none", *options])


def test_P28_the_command_line_draws_the_same_grid(
    line: Callable[..., int], config: Config, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """P28: numbers stand with commas or repeated, the instance prompt is what was learnt."""
    assert line("--scales", "0,0.5", "--scales=1") == 0
    assert "grid.png" in capsys.readouterr().out and files_of(RunFolder.of(config).evaluation) == whole
    assert line(PROMPT, "<lace> star", "--scales", "1", "--steps", "5", "--seeds", "1,2") == 0
    told = json.loads((RunFolder.of(config).evaluation / "grid-2/grid.json").read_text())
    assert told["asked"] == {"prompts": [PROMPT, "<lace> star"], "seeds": [1, 2], "scales": [1.0], "steps": [5]}
    assert len(told["cells"]) == 4 and [row["label"] for row in told["rows"]] == ["step 5"] and told["missing"] == 0


def test_P28_base_against_lora_is_a_strip_of_the_run_and_another_overwrites_none(
    line: Callable[..., int], config: Config
) -> None:
    """P28: three seeds next to each other, base above LoRA; a strip that something else wrote stays too."""
    folder = RunFolder.of(config)
    assert line("--compare") == 0
    first = read_pixels(folder.strip)
    base, lora = inference.compare(config, PROMPT, [7, 8, 9], say=quietly)
    x0, y0 = place_of(first, numpy.kron(numpy.asarray(base[0]), numpy.ones((10, 10, 1), int)))
    last = numpy.kron(numpy.asarray(lora[2]), numpy.ones((10, 10, 1), int))
    assert place_of(first, last) == (x0 + 2 * 328, y0 + 328)
    before = folder.strip.read_bytes()
    assert line("--compare", "--seeds", "1", "<lace> star") == 0 and folder.other_strip(2).is_file()
    assert line("--compare") == 0 and folder.strip.read_bytes() == before
    assert not folder.other_strip(3).exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--scales", "0,half"], "scales: 'half' is no such number. Write them as in --scales 0,0.5,1"),
        (["--steps", "5.5"], "steps: '5.5' is no such number. Write them as in --steps 1,2,3"),
        (["--compare", "--steps", "5"], "--compare takes no --scales and no --steps"),
        (["--scale", "1"], "no option --scale; did you mean --scales?"),
        ([" "], "A prompt is empty."),
    ],
)
def test_P28_mistakes_are_sentences(
    line: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    """P28."""
    assert line(*words) == 1
    out, err = capsys.readouterr()
    assert sentence in err and "Traceback" not in out + err
