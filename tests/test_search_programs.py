"""Searches in programs of their own answer as one program does, also where they end in the middle of it (P22)."""

import subprocess
import tempfile
import threading

import pytest

from benchmarks.planted import drawn
from lace_lora import search_programs
from lace_lora.nearest import Searched, print_of


@pytest.fixture(scope="module")
def asked():
    """A search among three pieces, and three questions of one or two pictures each."""
    prints = [print_of(drawn(seed)) for seed in range(5)]
    searched = Searched(prints[:3])
    return searched, [([prints[3], prints[0]], [], []), ([prints[4]], [[2]], []), ([prints[1]], [], [[1]])]


def found(asked, programs, told=None):
    tell = (told if told is not None else []).append
    rows = dict(search_programs.answers(*asked, tell, programs))
    return [rows[place] for place in range(len(asked[1]))]


def test_two_programs_answer_as_one_does(asked):
    """P22: every search is told of once, in the thread that asks, and each answer is the one of Searched.nearest."""
    told, threads = [], set()
    expected = [asked[0].nearest(*question) for question in asked[1]]

    def tell(more):
        told.append(more)
        threads.add(threading.current_thread())

    rows = dict(search_programs.answers(*asked, tell, 2))
    assert [rows[place] for place in range(3)] == found(asked, 0) == expected
    assert told == [1, 1, 1, 1] and threads == {threading.current_thread()}


def test_what_a_program_ends_over_is_searched_for_here(asked, monkeypatch):
    """P22: one that is killed at once, and one that cannot be started."""
    expected, real = found(asked, 0), subprocess.Popen

    def killed(*words, **named):
        program = real(*words, **named)
        program.kill()
        return program

    def refused(*words, **named):
        raise OSError("no more processes")

    for start in (killed, refused):
        monkeypatch.setattr(subprocess, "Popen", start)
        told = []
        assert found(asked, 2, told) == expected and told == [1, 1, 1, 1]


def test_a_full_disk_costs_time_only(asked, monkeypatch):
    """P22: the programs read a file; where it cannot be written, there are none."""

    def full(*words, **named):
        raise OSError(28, "No space left on device")

    expected = found(asked, 0)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "__init__", full)
    assert found(asked, 2) == expected


def test_a_person_who_stops_it_leaves_no_program_behind(asked, monkeypatch):
    """P22."""
    started, real = [], subprocess.Popen

    def noted(*words, **named):
        started.append(real(*words, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    answering = search_programs.answers(*asked, programs=2)
    next(answering)
    answering.close()
    assert started and all(program.poll() is not None for program in started)
