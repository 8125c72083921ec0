"""Pictures of base and LoRA at the same prompts and seeds, and the photographs that they are measured against (P20)."""

import shutil
from pathlib import Path

import pytest

from lace_lora import candidates, evaluate, exhibits, grid, pairs, pictures, train
from lace_lora.config import Config
from lace_lora.errors import PicturesError, SettingsError
from lace_lora.families import memory
from lace_lora.run_folder import RunFolder
from tests.conftest import draw_lace, draw_threads
from tests.drawing import seeds_drawn
from tests.test_grid import PROMPT, settings_of
from tests.training import quietly

FOUR = ("a photo of <lace> one", "two", "a {white|cream} <lace>")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures: six and the same six mirrored, so that half of them show a piece that is there twice."""
    from PIL import Image, ImageOps

    folder = draw_lace(tmp_path_factory.mktemp("pairs") / "pictures")
    for path in sorted(folder.glob("*.jpg"))[:2]:
        with Image.open(path) as picture:
            ImageOps.mirror(picture).save(folder / f"again_{path.name}", quality=95)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_sdxl: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    cache = tmp_path_factory.getbasetemp() / "shared_cache"
    config = settings_of(tiny_sdxl, photographs, tmp_path_factory.mktemp("pairs") / "out", cache)
    config = config.model_copy(update={"validation_fraction": 0.3, "validate_every": 5})
    train.run(config, say=quietly)
    return config


@pytest.fixture
def config(trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The same run in a folder of its own, to be evaluated with four pairs."""
    monkeypatch.setattr(memory, "give_back_memory", lambda: None)
    shutil.copytree(trained.lora_output_dir, tmp_path / "out")
    changes = {"num_evaluated": 4, "lora_output_dir": str(tmp_path / "out"), "plain_prompts": ("a chair",)}
    return trained.model_copy(update=changes)


def test_pairs_differ_by_the_lora_alone(config: Config) -> None:
    """P20: same prompt, same seed; the LoRA's strength is the one that is set."""
    drawn = pairs.draw(config.model_copy(update={"lora_scale": 0.5}), RunFolder.of(config), say=quietly)
    for base, lora, scale in ((drawn.base, drawn.lora, 0.5), (drawn.plain_base, drawn.plain_lora, 0.5)):
        both = zip(base, lora, strict=True)
        told = [(pictures.read_details(one.path), pictures.read_details(other.path)) for one, other in both]
        assert [(one["prompt"], one["seed"]) for one, _ in told] == [(one["prompt"], one["seed"]) for _, one in told]
        assert {(one["lora_scale"], other["lora_scale"]) for one, other in told} == {(0.0, scale)}
    assert (len(drawn.base), len(drawn.plain_base)) == (4, 2) and drawn.missing == 0
    assert [one.group for one in drawn.base] == [one.group for one in drawn.lora]
    assert all("<lace>" in prompt for prompt in drawn.prompts) and drawn.plain_prompts == ("a chair",)


def test_called_again_nothing_is_drawn(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """P20: what is finished stays; with more pictures wanted only the new ones are drawn."""
    seeds = seeds_drawn(monkeypatch)
    run = RunFolder.of(config)
    pairs.draw(config, run, say=quietly)
    count = len(seeds)
    again = pairs.draw(config, run, say=quietly)
    assert len(seeds) == count and len(again.lora) == 4
    pairs.draw(config.model_copy(update={"num_evaluated": 5}), run, say=quietly)
    assert len(seeds) == count + 2


def test_prompts_are_those_set_then_those_of_the_sheet_then_captions(config: Config) -> None:
    """P20: alternatives take turns, and the token is put in where it lacks."""
    run = RunFolder.of(config)
    [*_, chosen], _ = candidates.of_run(run, None, quietly)
    told = pairs.style_prompts(config.model_copy(update={"prompts": FOUR}), run, chosen, quietly)
    assert told == ("a photo of <lace> one", "<lace> two", "a white <lace>")
    eight = config.model_copy(update={"prompts": FOUR, "num_evaluated": 8})
    assert "a cream <lace>" in pairs.style_prompts(eight, run, chosen, quietly)
    assert pairs.style_prompts(config, run, chosen, quietly) == (PROMPT,)  # the caption of all photographs
    sheet = run.sheet("sheet")
    sheet.root.mkdir(parents=True)
    (sheet.root / "base_result_000.png").write_bytes(b"x")
    sheet.manifest.write_text('{"index": 0, "prompt": "a <lace> of the sheet", "base": "base_result_000.png"}\n')
    assert pairs.style_prompts(config, run, chosen, quietly) == ("a <lace> of the sheet",)


def test_captions_are_read_as_everywhere(config: Config) -> None:
    """P20, L14: each once, with a byte order mark or without; what cannot be read is no reason not to draw."""
    run = RunFolder.of(config)
    run.annotations.write_bytes("\ufeffa.jpg\t a rose \nno tab\nb.jpg\ta leaf\nc.jpg\ta rose\n".encode())
    assert pairs._captions(run, 4) == ["a rose", "a leaf"]
    run.annotations.write_bytes(b"a.jpg\t\xff\xfe\n")
    assert pairs._captions(run, 4) == []


def test_only_prompts_that_ought_to_hold_the_token_are_told_of(config: Config) -> None:
    """P20: plain prompts lack it on purpose; whoever asks a grid for such a prompt is told."""
    said: list[str] = []
    asked = config.model_copy(update={"plain_prompts": ("this does not hold much",)})
    pairs.draw(asked, RunFolder.of(config), say=said.append)
    assert not any("shows what the LoRA does to plain prompts" in line for line in said)
    grid.run(config, ["a chair"], [1], [0.0, 1.0], [10], say=said.append)
    assert sum("'a chair' does not hold <lace>, so it shows what" in line for line in said) == 1


def test_all_checkpoints_are_drawn_where_that_is_asked_for(config: Config) -> None:
    """D9: the step of each picture is known, and the finished adapter is measured."""
    drawn = pairs.draw(config.model_copy(update={"all_checkpoints": True}), RunFolder.of(config), say=quietly)
    assert sorted(drawn.of_step) == [5, 10] and drawn.candidate.step == 10
    assert {len(of) for of in drawn.of_step.values()} == {4}
    assert drawn.of_step[10] == drawn.lora


def test_without_strength_there_is_nothing_to_measure(config: Config) -> None:
    with pytest.raises(SettingsError, match="lora_scale is 0, so there is no LoRA to measure. Set it to 1."):
        pairs.draw(config.model_copy(update={"lora_scale": 0.0}), RunFolder.of(config), say=quietly)


def test_photographs_are_those_learnt_and_those_held_out(config: Config, photographs: Path) -> None:
    """P20: the split is the training's own, and pictures of one piece have one group on one side."""
    run = RunFolder.of(config)
    found = exhibits.photographs(run, config, quietly)
    held = {Path(line).name for line in run.held_out.read_text(encoding="utf-8").splitlines()}
    assert {one.name for one in found.unseen} == held and held
    assert {one.name for one in found.learnt} == {path.name for path in photographs.glob("*.jpg")} - held
    group = {one.name: one.group for one in (*found.learnt, *found.unseen)}
    assert group["again_lace_0.jpg"] == group["lace_0.jpg"] != group["lace_1.jpg"]
    assert found.learnt[0].open().mode == "RGB"


def test_a_folder_of_unseen_photographs_adds_to_those_held_out(config: Config, tmp_path: Path) -> None:
    """P20: each with the group of its piece, which is no learnt one's."""
    more = draw_threads(tmp_path / "more", 2)
    (more / "broken.jpg").write_bytes(b"no picture")
    said: list[str] = []
    found = exhibits.photographs(RunFolder.of(config), config.model_copy(update={"unseen_dir": str(more)}), said.append)
    mine = [one for one in found.unseen if one.name.startswith("more/")]
    assert len(mine) == 2 and len(found.unseen) > 2
    assert any(line.startswith("! left out") and "broken.jpg" in line for line in said)
    assert len({one.group for one in mine}) == 2
    assert not {one.group for one in mine} & {one.group for one in found.learnt}


def test_unseen_photographs_that_show_what_was_learnt_are_left_out_and_named(config: Config, tmp_path: Path) -> None:
    """P20, D9: a learnt photograph saved again and mirrored, beside one that is new, and the learnt folder itself."""
    from PIL import Image, ImageOps

    more = draw_threads(tmp_path / "more", 1)
    run = RunFolder.of(config)
    before = exhibits.photographs(run, config, quietly)
    with Image.open(before.learnt[0].path) as picture:
        ImageOps.mirror(picture).save(more / "looks_new.jpg", quality=80)
    said: list[str] = []
    found = exhibits.photographs(run, config.model_copy(update={"unseen_dir": str(more)}), said.append)
    assert len(found.unseen) == len(before.unseen) + 1 and "more/looks_new.jpg" not in found.by_name
    assert any(line.startswith("! of unseen_dir left out") and "looks_new.jpg" in line for line in said)
    itself = exhibits.photographs(run, config.model_copy(update={"unseen_dir": config.images_dir}), said.append)
    assert [one.path for one in itself.unseen] == [one.path for one in before.unseen]
    assert [one.path for one in itself.learnt] == [one.path for one in before.learnt]


def test_unseen_pieces_of_a_set_that_is_alike_by_design_stay() -> None:
    """P20: as in the demo, where 120 pieces make 8 groups; only the very same files are left out. By hand."""
    from unittest import mock

    def rows(letter: str, groups: list[int]) -> list[exhibits.Shown]:
        return [(exhibits.Example(Path(f"{letter}{number}"), ""), group) for number, group in enumerate(groups)]

    learnt, others = rows("learnt", [0, 0, 0, 1, 1, 1]), rows("new", [0, 1, 5])
    with mock.patch.object(exhibits.cache, "digest_of", lambda path: "same" if path.name[-1] == "1" else path.name):
        assert exhibits._not_learnt(others, learnt, [], quietly) == [others[0], others[2]]
        singles = rows("learnt", [0, 1, 2, 3, 4, 6])
        assert exhibits._not_learnt(others, singles, [], quietly) == [others[2]]


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_of_unseen_photographs_that_holds_none_is_refused_at_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: bool
) -> None:
    """P20: by the name of the setting, before anything is drawn."""
    folder = tmp_path / "unseen"
    if make:
        folder.mkdir()
    monkeypatch.setattr(pairs, "draw", None)
    with pytest.raises(SettingsError, match="unseen_dir is '.*unseen'.* Correct unseen_dir, or leave it empty."):
        evaluate.run(config.model_copy(update={"unseen_dir": str(folder), "style_model": "none"}), say=quietly)
    exhibits.check_unseen(config)


def test_photographs_that_are_gone_are_named_and_none_at_all_is_a_sentence(
    config: Config, photographs: Path, tmp_path: Path
) -> None:
    """P20: on another machine the lists name folders that are not there."""
    folder, run = tmp_path / "moved", RunFolder.of(config)
    shutil.copytree(photographs, folder)
    for listing in (run.annotations, run.held_out):
        text = listing.read_text(encoding="utf-8")
        listing.write_text(text.replace(str(photographs), "/gone/pictures"), encoding="utf-8")
    (folder / "lace_3.jpg").write_bytes(b"")
    moved, said = config.model_copy(update={"images_dir": str(folder)}), []
    found = exhibits.photographs(run, moved, said.append)
    assert len(found.learnt) + len(found.unseen) == 7
    assert {one.name for one in found.unseen} == {Path(line).name for line in run.held_out.read_text().split()}
    assert any("lace_3.jpg" in line for line in said)
    (folder / "lace_1.jpg").unlink()
    assert len(exhibits.photographs(run, moved, said.append).by_name) == 6
    assert "! left out, for they are gone: /gone/pictures/lace_1.jpg" in said
    nowhere = config.model_copy(update={"images_dir": str(tmp_path / "nowhere")})
    with pytest.raises(PicturesError, match="can be read in .*nowhere. Mount Drive, or set images_dir"):
        exhibits.photographs(run, nowhere, quietly)


def test_held_out_photographs_of_one_name_are_told_by_their_folders() -> None:
    """P20: by hand: the longest end counts, and an exact path before it; what cannot be told is said."""

    class Lines:
        def __init__(self, *lines: str) -> None:
            self.held_out = self
            self.lines = lines

        def is_file(self) -> bool:
            return True

        def read_text(self, encoding: str) -> str:
            return "\n".join(self.lines)

    listed, said = ["/x/a/IMG.jpg", "/x/b/IMG.jpg", "/x/c.jpg"], []
    for lines, found in (
        (["/x/b/IMG.jpg"], {"/x/b/IMG.jpg"}), (["/y/b/IMG.jpg"], {"/x/b/IMG.jpg"}),
        (["D:\\a\\IMG.jpg"], {"/x/a/IMG.jpg"}),
        (["/y/b/IMG.jpg", "", "/x/a/IMG.jpg"], {"/x/a/IMG.jpg", "/x/b/IMG.jpg"}),
    ):  # fmt: skip
        assert exhibits._held_out(Lines(*lines), listed, said.append) == found
    assert said == []
    assert exhibits._held_out(Lines("/y/IMG.jpg", "/z/d.jpg"), listed, said.append) == set()
    assert [line.split()[1] for line in said] == ["/y/IMG.jpg", "/z/d.jpg"]


def test_where_the_held_out_ones_are_not_known_that_is_said(config: Config) -> None:
    """P20: they count as learnt; where nothing was held out there is nothing to say."""
    run, said = RunFolder.of(config), []
    run.held_out.unlink()
    found = exhibits.photographs(run, config, said.append)
    assert not found.unseen
    assert "! held_out.txt is not there: photographs that were held out of the training count as learnt." in said
    run.config.write_text("validation_fraction: 0\n")
    again: list[str] = []
    exhibits.photographs(run, config, again.append)
    run.config.write_text("no setting: [")
    exhibits.photographs(run, config, again.append)
    assert not any("held_out" in line for line in again)


def test_photographs_outside_images_dir_are_found_under_names_of_their_own(
    config: Config, photographs: Path, tmp_path: Path
) -> None:
    """P20: as what a preprocessor made lies in the cache; two of one name, and one of a name that images_dir has."""
    run, paths = RunFolder.of(config), []
    for folder, name in (("a", "lace_0.jpg"), ("b", "lace_0.jpg"), ("a", "one.jpg")):
        paths.append(tmp_path / folder / name)
        paths[-1].parent.mkdir(exist_ok=True)
        shutil.copy(photographs / "lace_0.jpg", paths[-1])
    paths.append(photographs / "lace_0.jpg")
    run.annotations.write_text("".join(f"{path}\tlace\n" for path in paths), encoding="utf-8")
    run.held_out.unlink()
    found = exhibits.photographs(run, config, quietly)
    assert [one.path for one in found.learnt] == paths and len(found.by_name) == 4
    assert [one.name for one in found.learnt] == ["a/lace_0.jpg", "b/lace_0.jpg", "one.jpg", "pictures/lace_0.jpg"]


@pytest.mark.parametrize("which", ["annotations", "held_out"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00caption", b"\tno path\n"])
def test_a_list_that_cannot_be_understood_is_a_sentence(config: Config, which: str, content: bytes) -> None:
    """P20: text of another encoding, and a line without a path (which in held_out.txt names nothing)."""
    run = RunFolder.of(config)
    getattr(run, which).write_bytes(content)
    if which == "held_out" and content.startswith(b"\t"):
        assert not exhibits.photographs(run, config, quietly).unseen
        return
    with pytest.raises(PicturesError, match=f"{which}.txt (is not UTF-8|has a problem: line 1 has no path|cannot be)"):
        exhibits.photographs(run, config, quietly)


def test_designs_are_those_of_all_sheets(config: Config) -> None:
    assert exhibits.designs(RunFolder.of(config), quietly) == []
