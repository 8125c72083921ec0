"""What takes long to find is found once: by content and code, and whatever befalls the folder (P22, L1)."""

import numpy
import pytest

from benchmarks.planted import drawn
from lace_lora import comparisons, kept_answers, near_duplicates, nearest, views
from lace_lora.kept_answers import Answers


@pytest.fixture(scope="module")
def prints():
    """Three pieces, the first also mirrored."""
    pictures = [drawn(seed) for seed in range(3)]
    return [views.fingerprint(one) for one in (*pictures, pictures[0].transpose(0))]


@pytest.fixture
def counted(monkeypatch):
    """How often pictures were really compared."""
    calls, real = [], near_duplicates.pairs

    def counting(prints):
        calls.append(len(prints))
        return real(prints)

    monkeypatch.setattr(near_duplicates, "pairs", counting)
    return calls


def test_pictures_are_compared_once_in_whatever_run_they_are_asked_for(prints, counted, tmp_path):
    """L1: groups and pairs are those of near_duplicates, and of the same pictures nothing is computed again."""
    expected = near_duplicates.groups(prints), near_duplicates.pairs(prints)
    counted.clear()
    for _ in range(2):
        assert comparisons.groups(prints, tmp_path) == expected[0] == ((0, 3), (1,), (2,))
        assert comparisons.pairs(prints, tmp_path) == expected[1]
    assert counted == [4]
    assert comparisons.groups(prints, None) == expected[0] and counted == [4, 4]


def test_another_picture_order_or_code_asks_anew(prints, counted, tmp_path, monkeypatch):
    """L1."""
    comparisons.groups(prints, tmp_path)
    changed = [*prints[:3], numpy.maximum(prints[3], 2)]
    assert comparisons.groups(prints[::-1], tmp_path) == ((0, 3), (1,), (2,))
    comparisons.groups(changed, tmp_path)
    monkeypatch.setattr(kept_answers, "_code", lambda rooms: b"compared in another way")
    comparisons.groups(prints, tmp_path)
    assert len(counted) == 4 and len(list((tmp_path / kept_answers.FOLDER).iterdir())) == 4


def test_the_same_pictures_asked_for_twice_are_searched_for_once_and_told_of_twice(prints, tmp_path, monkeypatch):
    """P22: so that the count of what is compared comes to its end."""
    monkeypatch.setattr(comparisons, "TOGETHER", 2)
    searched, told, again = nearest.Searched([nearest.print_of(drawn(seed)) for seed in (1, 2)]), [], []
    one = nearest.print_of(drawn(1))
    questions = [([one] * 4, [], []), ([one], [], [])]
    kept = comparisons.Kept(searched, tmp_path)
    found = kept.nearest(questions, told.append)
    assert [len(rows) for rows in found] == [4, 1] and sum(told) == 5 and {row.place for row in found[0]} == {0}
    assert kept.known(questions) == 5 and kept.nearest(questions, again.append) == found and not again


@pytest.mark.parametrize("content", ["", "[1]", '{"pairs": [', "null"])
def test_a_damaged_file_is_found_anew(prints, counted, tmp_path, content):
    """L1."""
    expected = comparisons.groups(prints, tmp_path)
    [file] = (tmp_path / kept_answers.FOLDER).iterdir()
    file.write_text(content)
    assert comparisons.groups(prints, tmp_path) == expected and len(counted) == 2
    assert comparisons.groups(prints, tmp_path) == expected and len(counted) == 2


def test_a_folder_that_cannot_be_written_is_told_of_once_and_costs_nothing_else(tmp_path):
    """L1."""
    (tmp_path / kept_answers.FOLDER).write_text("a file where a folder should be")
    said = []
    answers = Answers(tmp_path, (views,), [b"asked"], said.append)
    answers.put("one", 1)
    answers.put("two", [2.5])
    assert answers.known == {"one": 1, "two": [2.5]} and len(said) == 1
    assert said[0].startswith(
        f"! {tmp_path / kept_answers.FOLDER} cannot be written, so what was compared is compared "
    )
    Answers(tmp_path, (views,), [b"another"], said.append).put("one", 1)
    assert len(said) == 1
    assert Answers(tmp_path, (views,), [b"asked"]).known == {}


def test_what_is_asked_is_told_apart_by_shape_order_and_cut():
    """L1: no two questions share a name."""
    row = numpy.arange(6, dtype=numpy.uint8)
    asked = [[row], [row.reshape(2, 3)], [row.astype(numpy.int8)], [row[:3], row[3:]], [b"ab", b"c"], [b"a", b"bc"]]
    assert len({kept_answers.digest(*parts) for parts in asked}) == len(asked)
