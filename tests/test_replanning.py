"""Planning again as settings change, and what a person reads of a plan before starting (L2, C14, C15)."""

import pytest

from lace_lora import config, costs, estimate, presets, replanning
from lace_lora.errors import PicturesError
from lace_lora.machine import Machine

T4 = Machine(False, False, "Tesla T4", 14.7, (7, 5), 12.7, 11.0, 60.0, 2)
A100 = ("NVIDIA A100-SXM4-40GB", 39.4)


def machine(gpu, vram_gb, is_colab=True):
    """A computer with that GPU, or with none."""
    return Machine(is_colab, is_colab, gpu, vram_gb, (8, 0) if gpu else (0, 0), 80.0, 70.0, 200.0, 8)


def rows(gpu, vram_gb, is_colab=True):
    """The summary of a plan for 250 pictures on a machine."""
    here = machine(gpu, vram_gb, is_colab)
    settled = presets.settle(config.load(preset="lace-t4" if gpu else "demo"), here)
    return dict(replanning.plan_summary(estimate.plan(settled, here, 250)))


def test_it_says_whether_it_fits_how_long_it_takes_and_what_it_costs():
    """C14, C15: on Colab's free T4, and on its A100 with the day of the prices."""
    free, paid = rows("Tesla T4", 14.7), rows(*A100)
    assert free["GPU memory"].startswith("fits: needs ") and paid["GPU memory"].startswith("fits: needs ")
    assert free["cost"] == "free on Colab"
    assert paid["cost"].startswith("about $") and paid["cost"].endswith(f" on Colab ({costs.as_of()})")
    assert free["steps"] == "625 of 4 pictures" and "estimated" in free["time"]


@pytest.mark.parametrize(
    ("gpu", "vram_gb", "is_colab"),
    [
        ("Some GPU that nobody measured", 24.0, True),
        ("NVIDIA GeForce RTX 3090", 24.0, False),
        (*A100, False),
        (None, 0.0, False),
        (None, 0.0, True),
    ],
)
def test_whoever_pays_nothing_is_told_no_price(gpu, vram_gb, is_colab):
    """C15: no number that nobody gave, and none on one's own machine or for the demo."""
    assert "cost" not in rows(gpu, vram_gb, is_colab)


# -- new designs --


def designs(here=None, **given):
    """What is said of new designs of an SDXL adapter that learnt at 768 px."""
    here = here or machine(*A100)
    settings = config.load(preset="none", **given)
    found = replanning.drawing(here, "stabilityai/stable-diffusion-xl-base-1.0", 768)(settings)
    return dict(replanning.drawing_summary(found)), found


def test_the_time_of_designs_is_that_of_their_stages_in_the_plan():
    """C14, C15: the plan's own table is the oracle, and nothing of the training counts."""
    said, found = designs(num_images=1000)
    minutes = round(sum(found.plan.stage(name).minutes for name in ("generate", "refine", "decode")))
    hours, rest = divmod(minutes, 60)
    assert said["time"] == f"about {f'{hours} h {rest} min' if hours else f'{rest} min'} (estimated)"
    assert said["designs"] == "1000 of 768 × 768 px" and said["cost"].endswith(f"on Colab ({costs.as_of()})")
    assert designs(num_images=1000, max_train_steps=9)[0] == said


def test_designs_that_do_not_fit_are_said_to_beside_their_width():
    """C14: training's warnings are not those of a person who draws."""
    said, found = designs(machine("NVIDIA A100-SXM4-40GB", 1.0), rank=128)
    assert said["GPU memory"].startswith("DOES NOT FIT")
    assert [one.setting for one in replanning.Shown.of(found.settled.config, found).cautions] == ["width"]


def test_how_long_unread_favourites_take_is_not_guessed():
    """C14."""
    said, _ = designs(favourites_of="sheet")
    assert "time" not in said and said["designs"] == "as many as favourites_of names"


# -- planning again --


@pytest.fixture
def plan(tmp_path):
    """A plan for twenty pictures on a T4."""
    for number in range(20):
        (tmp_path / f"{number}.jpg").touch()
    return estimate.prepare(config.load(images_dir=str(tmp_path), preset="none"), T4)


def test_planning_again_counts_pictures_only_where_their_folder_or_types_change(plan, tmp_path, monkeypatch):
    """L2: a folder in Drive with thousands of pictures is not listed at every tick of a slider."""
    counted = []
    count = replanning.count_pictures
    monkeypatch.setattr(replanning, "count_pictures", lambda *asked: counted.append(asked) or count(*asked))
    replan = replanning.replanner(plan)
    settings = config.load(images_dir=str(tmp_path), preset="none")
    for rank in range(1, 9):
        assert replan(settings.model_copy(update={"rank": rank})).pictures == 20
    assert counted == []
    nowhere = settings.model_copy(update={"images_dir": str(tmp_path / "nowhere")})
    for rank in (1, 2):
        with pytest.raises(PicturesError, match="There is no folder"):
            replan(nowhere.model_copy(update={"rank": rank}))
    assert len(counted) == 1
    (tmp_path / "one.png").touch()
    assert replan(settings.model_copy(update={"image_types": (".png",)})).pictures == 1 and len(counted) == 2


def test_planning_again_gives_the_plan_of_the_first_time(plan, tmp_path):
    """L2: estimate.prepare itself is the oracle."""
    settings = config.load(images_dir=str(tmp_path), preset="sdxl", rank=24)
    assert replanning.replanner(plan)(settings) == estimate.prepare(settings, T4)


def test_the_demos_pictures_are_not_drawn_by_a_form(plan, tmp_path, monkeypatch):
    """L2: planning writes nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PicturesError, match="not drawn yet: demo_output/pictures"):
        replanning.replanner(plan)(config.load(preset="demo"))
    assert not (tmp_path / "demo_output").exists()
