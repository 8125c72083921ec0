"""The order of learning: every picture as often as wished, in batches of one shape, the same for whoever asks."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lace_lora import schedule
from lace_lora.schedule import Stream, Visit

A, B, C = (64, 64), (64, 96), (96, 64)
SHAPES = {"a": (A,), "f": (A, A), "b": (B,), "t": (B, C, B, C), "x": (A, A, A, B, C)}


def stream(kinds: str, size: int = 2, repeats: int = 1, seed: int = 0) -> Stream:
    """A letter a sample: a and b have one cut, f two of one bucket, t those of quarter turns, x three buckets."""
    return Stream("pictures", tuple(SHAPES[one] for one in kinds), size, repeats, seed)


def batches(one: Stream, epoch: int) -> list[tuple[Visit, ...]]:
    first = sum(one.batches_in(before) for before in range(epoch))
    return [one.batch(first + place) for place in range(one.batches_in(epoch))]


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.text("abftx", min_size=1, max_size=9), size=st.integers(1, 4), repeats=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_each_epoch_visits_each_sample_as_often_as_wished_in_batches_of_one_bucket(
    kinds: str, size: int, repeats: int, seed: int
) -> None:
    """Issue 3, point 2: also where the number of batches differs from epoch to epoch."""
    one = stream(kinds, size, repeats, seed)
    wanted = Counter((sample, repeat) for sample in range(len(kinds)) for repeat in range(repeats))
    number = 0
    for epoch in range(4):
        found = batches(one, epoch)
        assert Counter((visit.sample, visit.repeat) for batch in found for visit in batch) == wanted
        for batch in found:
            assert {visit.epoch for visit in batch} == {epoch} and 1 <= len(batch) <= size
            assert len({one.buckets[visit.sample][visit.variant] for visit in batch}) == 1
            assert one.epoch_of(number) == epoch and one.batch(number) == batch
            number += 1


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 60), min_size=1, max_size=6), kinds=st.sampled_from(["aabab", "xtfab", "ttt"]))
def test_a_batch_is_the_same_whatever_was_asked_before(numbers: list[int], kinds: str) -> None:
    """Resume asks for batch 60 first, and an unbroken run for all before it."""
    forgotten = (schedule._epoch, schedule._ends, schedule._batches_in_each)
    for one in forgotten:
        one.cache_clear()
    jumping = [(stream(kinds).batch(number), stream(kinds).epoch_of(number)) for number in numbers]
    for one in forgotten:
        one.cache_clear()
    walking = [(stream(kinds).batch(number), stream(kinds).epoch_of(number)) for number in range(61)]
    assert jumping == [walking[number] for number in numbers]


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = [[visit.sample for batch in batches(stream("aaaaaaaa"), epoch) for visit in batch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert stream("xtfab").batch(7) == stream("xtfab").batch(7) != stream("xtfab", seed=1).batch(7)


def test_four_batches_of_one_are_one_batch_of_four() -> None:
    """P16: with one bucket, whatever the cuts."""
    by_one, by_four = stream("afffafafafff", size=1), stream("afffafafafff", size=4)
    for number in range(9):  # three epochs of three
        singles = [by_one.batch(4 * number + place)[0] for place in range(4)]
        assert tuple(singles) == by_four.batch(number)


def test_the_number_of_batches_is_counted_right() -> None:
    assert stream("aabab", repeats=2).batches_in(0) == stream("aabab", repeats=2).batches_in(9) == 5
    counts = {stream("tttttt").batches_in(epoch) for epoch in range(40)}
    assert counts == {3, 4}  # six turned pictures by twos: an odd number of either shape leaves two open batches


def test_cuts_are_drawn_alike_and_anew_at_every_visit() -> None:
    one = stream("x" * 5, size=1)
    seen = Counter(batch[0].variant for epoch in range(300) for batch in batches(one, epoch))
    assert set(seen) == set(range(5)) and all(count == pytest.approx(300, abs=75) for count in seen.values())
    of_first = [visit.variant for epoch in range(40) for (visit,) in batches(one, epoch) if visit.sample == 0]
    assert len(set(of_first)) == 5
    of_second = [visit.variant for epoch in range(40) for (visit,) in batches(one, epoch) if visit.sample == 1]
    assert of_first != of_second


def test_of_a_plain_and_a_mirrored_cut_the_mirrored_one_belongs_to_a_first_number_below_a_half() -> None:
    """Runs made before there were other cuts drew a flip by that number; they go on the same to the bit."""
    one = stream("f" * 6, size=3)
    for epoch in range(20):
        for visit in (visit for batch in batches(one, epoch) for visit in batch):
            place = f"0|pictures|{visit.epoch}|{visit.repeat}|{visit.sample}"
            number = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") >> 1
            first = float(torch.rand(2, generator=torch.Generator().manual_seed(number))[0])
            assert visit.variant == (first < 0.5)


def test_which_cut_is_looked_at_changes_nothing_else_that_is_drawn() -> None:
    """The numbers of a visit, by hand: the first is the cut's, then words, time, spread, noise, offset."""
    visit = Visit(3, 2, 1, 0)
    drawn = schedule.draw(stream("aaaa", seed=7), visit, (4, 6, 8), 0.5, 0.1)
    other = schedule.draw(stream("ffff", seed=7), Visit(3, 2, 1, 1), (4, 6, 8), 0.5, 0.1)
    number = int.from_bytes(hashlib.sha256(b"7|pictures|2|1|3").digest()[:8], "big") >> 1
    chance = torch.Generator().manual_seed(number)
    _, wordless = torch.rand(2, generator=chance).tolist()
    assert drawn.is_wordless == other.is_wordless == (wordless < 0.5)
    assert drawn.within == other.within and 0 < drawn.within < 1
    assert int(drawn.within * 1000) == int(torch.randint(1000, (1,), generator=chance))
    spread, noise = torch.randn(2, 4, 6, 8, generator=chance)
    noise = noise + 0.1 * torch.randn(4, 1, 1, generator=chance)
    for one in (drawn, other):
        assert torch.equal(one.spread_CHW, spread) and torch.equal(one.noise_CHW, noise)


def test_every_process_that_asks_gets_the_same_batches() -> None:
    """C9: processes have hashes of their own, which must not decide anything."""
    code = (
        "import json; from tests.test_schedule import stream; one = stream('xtfabxt', 2, 2, 5);"
        "print(json.dumps([[v.sample, v.repeat, v.variant] for n in range(30) for v in one.batch(n)]))"
    )
    here = [[v.sample, v.repeat, v.variant] for n in range(30) for v in stream("xtfabxt", 2, 2, 5).batch(n)]
    environment = os.environ | {"PYTHONHASHSEED": "321"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == here
