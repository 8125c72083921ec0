"""Planted copies are found and different pieces are left apart (P4); the full count is that of benchmarks.planted."""

import itertools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from PIL import Image, ImageChops

from benchmarks import planted
from benchmarks.planted import KINDS, LEAST_FOUND, MOST_FALSE, found_of, pieces
from tests.generated import ROOT

LACE = Path(os.environ.get("LACE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "lace"
FEW = 20  # pieces of the quick test, all drawn
real_lace = pytest.mark.skipif(not LACE.is_dir(), reason="the shared photographs of lace are not on this machine")


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return planted.photographs(LACE)


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return pieces([], FEW)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_drawn_pieces_are_found_and_nothing_else(kind, drawn, tmp_path):
    """P4: at least 95 of 100 copies, at most 1 of 100 pairs false; every piece has the same lattice and cloth."""
    found = found_of(kind, drawn, tmp_path, 0)
    assert found.share_found >= LEAST_FOUND, f"{kind}: {found.missed} were not found"
    assert found.share_false <= MOST_FALSE, f"{kind}: {found.false} were taken for one"


@pytest.mark.slow
@real_lace
@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_a_hundred_pieces_are_found_and_nothing_else(kind, photographs, tmp_path):
    """P4: the same of the real photographs and as many drawn pieces as make up a hundred."""
    found = found_of(kind, pieces(photographs, 100), tmp_path, 0)
    assert found.count == 100 and len(photographs) >= 50
    assert found.share_found >= LEAST_FOUND, f"{kind}: {found.missed} were not found"
    assert found.share_false <= MOST_FALSE, f"{kind}: {found.false} were taken for one"
    assert found.mixed <= MOST_FALSE * 200, f"{kind}: {found.mixed} pictures stand in a false pair"


@pytest.mark.slow
@real_lace
def test_a_small_hash_takes_real_pieces_for_one_and_the_check_does_not(photographs):
    """P4: 8 × 8 bits at the usual threshold, of averages and of differences."""
    for name in planted.HASHES:
        assert planted.taken_for_one(photographs, name), f"the {name} should fail here, or this test shows nothing"
    assert planted.our_pairs(photographs) == []


# What is counted, by hand


def test_the_counts_are_those_of_a_folder_counted_by_hand(monkeypatch, tmp_path):
    """P4: of three pieces one copy is missed, and two pieces fall into one group with one copy."""

    def check(folder: Path) -> SimpleNamespace:
        """Groups by the pixels, which tell the piece; of the last two pictures one stands alone."""
        files: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for path in folder.iterdir():
            with Image.open(path) as picture:
                files[round(picture.getpixel((9, 9))[0] / 100)].append(path.name)
        return SimpleNamespace(groups=[files[0], [*files[1], files[2][0]]])

    monkeypatch.setattr(planted, "check_images", check)
    found = found_of("re-saved", [Image.new("RGB", (64, 64), (red, 0, 0)) for red in (0, 100, 200)], tmp_path, 0)
    assert len(list(tmp_path.iterdir())) == 6
    assert (found.missed, found.joined, len(found.false), found.mixed) == ((2,), 4, 2, 3)
    assert found.share_found == pytest.approx(2 / 3) and found.share_false == 0.5


def test_every_kind_alters_its_copy_as_it_says():
    """P4: against the pixels of a picture of four colours, and never by more than it says."""
    picture = Image.new("RGB", (200, 100), "white")
    for number, at in enumerate([(0, 0), (100, 0), (0, 50), (100, 50)]):
        picture.paste([(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)][number], (*at, at[0] + 100, at[1] + 50))
    chances = [numpy.random.default_rng(seed) for seed in range(40)]
    seen = {kind: [alter(picture, chance) for chance in chances] for kind, alter in KINDS.items()}
    assert all(one is picture for one in seen["re-saved"])
    assert {one.size for one in seen["cropped"]} == {*itertools.product((200, 190, 180), (100, 95, 90))} - {(200, 100)}
    turns = {one.tobytes() for one in seen["turned"]}
    assert turns == {picture.rotate(degrees, expand=True).tobytes() for degrees in (90, 180, 270)}
    halves = [one.getpixel((10, 10)) for one in seen["flipped"]]
    assert set(halves) == {(0, 200, 0), (0, 0, 200)}
    for one in seen["shifted"]:
        assert one.size == (200, 100) and {one.getpixel((85, 40)), one.getpixel((115, 60))} == {(200, 0, 0), (90,) * 3}
    assert sum(ImageChops.difference(one, picture).getbbox() is not None for one in seen["shifted"]) > 30
    for one in seen["tilted"]:
        assert min(one.size) >= 85 and one.getpixel((one.width // 4, one.height // 4)) == (200, 0, 0)


def test_the_benchmark_writes_its_page(monkeypatch, tmp_path, capsys):
    """P4: with a row for each kind, from three pieces of which one is a photograph."""
    (tmp_path / "lace").mkdir()
    pieces([], 1)[0].save(tmp_path / "lace" / "a.JPG")
    monkeypatch.setattr(planted, "PIECES", 3)
    monkeypatch.setattr(planted, "SEEDS", 1)
    monkeypatch.setattr(planted, "RESULTS", tmp_path / "results")
    words = ["planted", "--photographs", str(tmp_path / "lace"), "--count", "3"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(planted, "pieces", lambda real, count: [*real, *(planted.drawn(seed) for seed in (7, 8))])
    planted.main()
    page = next((tmp_path / "results").glob("planted-*.md")).read_text(encoding="utf-8")
    assert capsys.readouterr().out == page + "\n"
    assert all(f"| {kind} | 3 | 0, 0 | 3 | 0 | 0.0 | 0.0 |" in page for kind in KINDS)
    assert str(tmp_path) not in page
