"""The numbers of an evaluation, on drawn pictures with a known answer and on real photographs (D8)."""

import os
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from benchmarks import coverage, evidence
from benchmarks.coverage import (
    BLURS,
    HELD_OUT,
    MADE,
    STEPS,
    TINTS,
    TRAINING,
    drawn_rows,
    drawn_samples,
    gaussian_distance,
    ordered,
    population_distance,
    populations,
    repeated,
)
from benchmarks.evidence import LEAST_COVERED, drawn_beside, from_half, halves, series
from benchmarks.planted import photographs
from lace_lora import weight_free
from lace_lora.mmd import Sample, distance
from lace_lora.resampling import interval, symmetric_interval
from tests.generated import ROOT

LACE = Path(os.environ.get("LACE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "lace"
FEW, FEW_PX = 36, 96  # pictures of a quick population, and their side
real_lace = pytest.mark.skipif(not LACE.is_dir(), reason="the shared photographs of lace are not on this machine")


@pytest.fixture(scope="module")
def small():
    """Populations small enough for a quick look."""
    patch = pytest.MonkeyPatch()
    draw = coverage.draw
    patch.setattr(coverage, "lace", lambda first, count: [draw.lace(first + n, FEW_PX)[0] for n in range(count)])
    patch.setattr(coverage, "plain", lambda count: [draw.plain(n, FEW_PX)[0] for n in range(count)])
    patch.setattr(coverage, "TINTS", TINTS[:1])
    drawn_rows.cache_clear()
    yield drawn_rows(FEW), populations(FEW)
    drawn_rows.cache_clear()
    patch.undo()


def shares(steps):
    return [f"mix {step:g}" for step in steps]


def test_drawn_styles_shifted_by_known_amounts_come_out_in_order(small):
    """D8: five shares of lace, five blurs; 30 made against 250."""
    rows, cases = small
    mixed = {f"mix {step:g}": cases[f"lace for {step:.0%} of the prompts"]["lora"] for step in STEPS}
    assert ordered({**rows, **mixed}, shares(reversed(STEPS)), 20) >= 0.9
    assert ordered(rows, ["other", *(f"blur {px:g}" for px in BLURS[1:])], 20) >= 0.9
    assert ordered({**rows, **mixed}, shares(STEPS), 20) == 0


@pytest.mark.parametrize(("share", "held_out"), [(75, 25), (50, 8)])
def test_intervals_of_drawn_styles_hold_the_truth(small, share, held_out):
    """D8: some of the prompts learnt, in at least 90 of 100 repeats."""
    case = small[1][f"lace for {share}% of the prompts"]
    found = repeated(drawn_samples(case, MADE, TRAINING, held_out), 100)
    assert min(found.covered.values()) >= LEAST_COVERED, found
    assert found.refused == 0


def two_halves_are_nearer(photographs, seeds) -> None:
    """Their interval ends before those of drawn lace, plain textile and the other series begin."""
    rows = {name: weight_free.features_of(own) for name, own in series(photographs).items()}
    assert [len(own) for own in rows.values()] == [17, 26, 16]
    for name, own in rows.items():
        for seed in seeds:
            half, rest = halves(own, seed)
            _, (_, near) = from_half(half, rest)
            others = {other: one for other, one in rows.items() if other != name}
            for other, one in (drawn_beside() | others).items():
                _, (far, _) = from_half(half, one)
                assert near < far, f"{name}, halves {seed}: {near:.2f} reaches {other}, from {far:.2f} on"


@pytest.fixture(scope="module")
def real() -> dict[str, Image.Image]:
    names = sorted(path.name for path in LACE.iterdir() if path.suffix.casefold() in evidence.READABLE_KINDS)
    return dict(zip(names, photographs(LACE), strict=True))


@real_lace
def test_two_halves_of_a_real_series_are_nearer_than_anything_drawn(real):
    """D8: one way to part each series."""
    two_halves_are_nearer(real, range(1))


# The whole of it


@pytest.mark.slow
@real_lace
def test_five_ways_to_part_each_series_say_the_same(real):
    """D8."""
    two_halves_are_nearer(real, range(5))


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"lace for {step:.0%} of the prompts" for step in (*STEPS, coverage.NEARLY)]
                         + [f"always lace, blurred by {px:g} px" for px in BLURS[1:]]
                         + ["base draws soft lace, LoRA half as soft"])  # fmt: skip
@pytest.mark.parametrize("held_out", HELD_OUT[:3])
def test_every_drawn_case_is_covered(name, held_out):
    """D8: in at least 90 of 100 repeats; the match is counted where it is not refused."""
    found = repeated(drawn_samples(populations(150)[name], MADE, TRAINING, held_out), 100)
    assert min(found.covered.values()) >= LEAST_COVERED, found


@pytest.mark.slow
def test_every_kind_of_shift_is_ordered():
    """D8: also a colour that fades."""
    rows = drawn_rows(150)
    assert ordered(rows, ["other", *(f"tint {red:g}" for red in TINTS[1:])], 50) >= 0.9
    assert ordered(rows, ["other", *(f"blur {px:g}" for px in BLURS[1:])], 50) >= 0.9


# What the benchmark measures with


def test_the_truth_of_gaussians_is_that_of_a_large_sample():
    """D8: the integral against 1200 pictures of each."""
    for features, shift in ((1, 2.0), (10, 4.0)):
        chance = numpy.random.default_rng(features)
        one, other = (chance.normal(size=(1200, features)) for _ in range(2))
        found = distance(Sample.of("a", one + shift * numpy.eye(features)[0]), Sample.of("b", other))
        low, high = interval(found, 0.999)
        assert low < gaussian_distance(features, shift) < high
    assert gaussian_distance(5, 0.0) == pytest.approx(0)


def test_the_truth_of_a_few_prompts_is_that_of_a_large_sample():
    """D8: three prompts of four features, drawn 500 times each; one of them at zero is the same as the rest."""
    chance, centres = numpy.random.default_rng(5), numpy.array([[0.0, 0, 0, 0], [2, 1, 0, 0], [0, 0, 0, -3]])
    made = numpy.repeat(centres, 500, axis=0) + 0.7 * chance.normal(size=(1500, 4))
    found = distance(Sample.of("a", made), Sample.of("b", chance.normal(size=(1500, 4))))
    low, high = interval(found, 0.999)
    assert low < coverage.mixture_distance(centres, 0.49) < high
    assert high - low < 0.4 * found.value
    assert coverage.mixture_distance(numpy.zeros((2, 4)), 1.0) == pytest.approx(0)
    assert coverage.mixture_distance(numpy.eye(4)[:1] * 2, 1.0) == pytest.approx(gaussian_distance(4, 2.0))


def test_one_section_has_a_page_of_its_own(monkeypatch, tmp_path, capsys):
    """D8: few prompts, which need no photographs; each is measured as the evaluation takes it."""
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    monkeypatch.setattr(evidence, "REPEATS", 2)
    monkeypatch.setattr(evidence, "PROMPTS", ((6, 2), (3, 4)))
    monkeypatch.setattr(sys, "argv", ["evidence", "--only", "prompts", "--repeats", "2"])
    evidence.main()
    (page,) = tmp_path.iterdir()
    text = page.read_text(encoding="utf-8")
    assert page.name.startswith("evidence-prompts-") and "evidence --only prompts`" in text
    used = [line for line in text.splitlines() if line.endswith("| yes |")]
    assert [line[:30] for line in used] == ["| 6 × 2 | by prompt | for all ", "| 3 × 4 | each | for these | 1"]
    assert "## Gaussian" not in text and "## Few prompts" in capsys.readouterr().out


def test_the_truth_of_a_population_is_what_fresh_samples_are_on_average():
    """D8: drawn with replacement; three against three, two thousand times."""
    chance = numpy.random.default_rng(0)
    one, other = chance.normal(size=(6, 2)), chance.normal(size=(7, 2)) + 1
    found = [
        distance(Sample.of("a", one[chance.integers(6, size=3)]), Sample.of("b", other[chance.integers(7, size=3)]))
        for _ in range(2000)
    ]
    values = [each.value for each in found]
    assert numpy.mean(values) == pytest.approx(population_distance(one, other), abs=3 * numpy.std(values) / 2000**0.5)


def test_an_interval_that_is_too_narrow_is_found_out(monkeypatch):
    """D8: a benchmark that could not fail would show nothing."""
    fresh = coverage.gaussian_samples(10, 4.0, 0.5, 30, 100, 25)
    monkeypatch.setattr(coverage, "LEVEL", 0.5)
    found = repeated(fresh, 40)
    assert found.covered["base"] < 0.75


def test_other_kernels_are_measured_as_ours_is():
    """D8: with minus the distance as its kernel, the general way gives our distance and our interval."""
    chance = numpy.random.default_rng(0)
    one, other = chance.normal(size=(9, 3)) + 1, chance.normal(size=(12, 3))
    value, bounds = evidence.kernel_distance(evidence.minus_distance, one, other)
    ours = distance(Sample.of("a", one), Sample.of("b", other))
    assert value == pytest.approx(ours.value) and bounds == pytest.approx(symmetric_interval(ours, 0.95))


def test_the_page_has_every_section_and_is_kept_only_where_all_was_measured(monkeypatch, tmp_path, capsys):
    """D8: sections may be added; nothing of this machine's paths stands in it."""
    (tmp_path / "lace").mkdir()
    Image.new("RGB", (80, 80), "white").save(tmp_path / "lace" / "ASN01.jpg")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(evidence, "REPEATS", 3)
    monkeypatch.setattr(evidence, "SECTIONS", {
        "real": evidence.real_series,
        "means": evidence.means_of_few,
        "more": lambda asked: [f"## Copies of {len(asked.photographs)}"],
    })  # fmt: skip
    asked = ["evidence", "--photographs", str(tmp_path / "lace"), "--repeats", "3"]
    monkeypatch.setattr(sys, "argv", asked)
    evidence.main()
    page = next((tmp_path / "results").glob("evidence-*.md")).read_text(encoding="utf-8")
    assert capsys.readouterr().out == page + "\n"
    assert "## Copies of 1" in page and "| exponential | 30 |" in page and str(tmp_path) not in page
    monkeypatch.setattr(sys, "argv", [*asked[:-1], "2"])
    (tmp_path / "results").joinpath(next((tmp_path / "results").iterdir()).name).unlink()
    evidence.main()
    assert list((tmp_path / "results").iterdir()) == []
