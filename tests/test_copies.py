"""Is what was made new? The threshold and the check on plain numbers, then on pictures, and the pages to look at."""

import numpy
import pytest
from PIL import Image, ImageOps

from benchmarks.planted import drawn
from lace_lora import comparisons, copies, copy_pages, unseen
from lace_lora.copies import FLOOR, Features, Learnt, look
from lace_lora.copy_check import check, memorised, short_name, threshold
from lace_lora.copy_pages import sheets
from lace_lora.errors import PicturesError
from lace_lora.scores import CopyCheck, Nearest


def quietly(_: str) -> None:
    pass


def asked(likeness, unseen, **more):
    names = [f"images/sheet/design_{number}.png" for number in range(len(likeness))]
    learnt = [f"photo_{number}.jpg" for number in range(len(likeness))]
    return check(names, learnt, likeness, unseen, **({"floor": 0.5, "compares": "threads"} | more))


# ---- plain numbers, as texts will use them


def test_the_threshold_is_a_little_above_the_highest_of_the_unseen_but_never_below_the_floor():
    """P22, D9: a fifth of the way on to 1."""
    assert threshold([0.2, 0.7, 0.6], 0.5) == pytest.approx(0.76)
    assert threshold([0.2, 1.0], 0.5) == 1.0
    assert threshold([0.2, 0.3], 0.5) == threshold([], 0.5) == 0.5


def test_at_most_one_new_thing_in_n_plus_one_is_called_a_copy():
    """P22, D9: counted over 20,000 draws, against what CopyCheck.false_alarms promises for the highest of n."""
    chance = numpy.random.default_rng(4)
    draws = chance.random((20_000, 20))
    called = [asked([row[0]], row[1:].tolist(), floor=0.0) for row in draws[:2000]]
    assert called[0].false_alarms == 1 / 20
    above = float((draws[:, 0] > draws[:, 1:].max(axis=1)).mean())
    assert above == pytest.approx(1 / 20, abs=0.006)
    assert sum(len(one.copies) for one in called) == sum(row[0] > 0.8 * max(row[1:]) + 0.2 for row in draws[:2000])
    assert 0 < sum(len(one.copies) for one in called) <= 2000 / 20


def test_likeness_that_is_mutual_is_worth_half_as_many():
    """P22: drawn by lot which of 12 pieces are learnt, held out, new; counted how often the new one is called a copy.

    Likeness of each two is drawn at random: nearest neighbours of the learnt ones come in pairs that share it.
    """
    chance = numpy.random.default_rng(5)
    rounds, learnt, held = 6000, 8, 3
    alarms = 0
    for _ in range(rounds):
        alike = chance.random((learnt + held + 1, learnt))
        square = alike[:learnt]
        alike[:learnt] = numpy.triu(square, 1) + numpy.triu(square, 1).T
        numpy.fill_diagonal(alike[:learnt], -1)
        alarms += alike[-1].max() > alike[:-1].max()
    worth = unseen.worth(set(range(100, 100 + held)), range(learnt), range(learnt))
    assert worth == 3 + 3  # 28 pairs, 8 of them worth one piece
    exact = learnt / (learnt * (learnt - 1) / 2 + held * learnt + learnt)
    assert alarms / rounds == pytest.approx(exact, abs=0.012)
    assert exact <= 1 / (worth + 1) < 1.1 * exact, "what is promised is never too little"


def test_photographs_of_one_piece_count_once_and_some_can_stand_for_all():
    """P22: groups are counted, not pictures; five of eleven pieces asked give 5 * 10 - 10 pairs."""
    assert unseen.worth(set(), ["a", "a", "b", "b"], range(4)) == 0
    assert unseen.worth({"x"}, ["a"] * 9, range(9)) == 1
    assert unseen.worth(set(), range(11), range(5)) == 40 // 11


def test_what_was_made_comes_the_most_alike_first_with_those_above_the_threshold_as_copies():
    """P22, D9: by hand."""
    found = asked([0.6, 0.9, 0.7], [0.7, 0.1], how=["", "mirrored", ""], feature_distance=[0.3, 0.1, 0.2])
    assert [(pair.made[-5], pair.nearest, pair.is_copy) for pair in found.pairs] == [
        ("1", "photo_1.jpg", True), ("2", "photo_2.jpg", False), ("0", "photo_0.jpg", False),
    ]  # fmt: skip
    assert (found.threshold, found.calibrated_on, found.likeness) == (pytest.approx(0.76), 2, "threads")
    assert found.copies == (Nearest("images/sheet/design_1.png", "photo_1.jpg", 0.9, True, "mirrored", 0.1),)
    assert asked([0.9], [0.1, 0.2], calibrated_on=1).calibrated_on == 1
    with pytest.raises(ValueError):
        check(["a", "b"], ["c"], [0.1, 0.2], [], floor=0.5, compares="")


def test_the_verdict_says_what_is_a_copy_of_what_and_what_to_do():
    """P22."""
    assert memorised(asked([0.6, 0.61], [0.7])) == (
        "None of 2 designs is a copy of the photographs that were learnt. The most alike, sheet/design_1.png beside "
        "photo_1.jpg, has a likeness of 0.61; copies begin above 0.76."
    )
    assert memorised(asked([0.9, 0.91, 0.92, 0.93, 0.94, 0.2], [0.6] * 9)) == (
        "5 of 6 designs are copies of photographs that were learnt: sheet/design_4.png of photo_4.jpg, "
        "sheet/design_3.png of photo_3.jpg, sheet/design_2.png of photo_2.jpg and 2 more. "
        "Do not show or sell them as new. Take an earlier "
        "checkpoint, train fewer steps, or learn more photographs."
    )
    one = memorised(asked([0.8] + [0.1] * 29, [0.6] * 19), "drawings", "documents")
    assert one.startswith(
        "1 of 30 drawings is a copy of documents that were learnt: sheet/design_0.png of photo_0.jpg. "
    )
    assert one.endswith(" By chance alone up to 1 of 20 new drawings is called a copy: look yourself.")
    assert memorised(CopyCheck(refusal="no picture.")) == "Whether designs are copies was not measured: no picture."
    assert memorised(asked([], [])) == "There were no designs to compare with the photographs that were learnt."


# ---- pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight pieces as files; the last is also there upside down, as of the same piece."""
    place = tmp_path_factory.mktemp("learnt")
    for seed in range(8):
        drawn(seed).save(place / f"{seed}.jpg", quality=92)
    ImageOps.flip(drawn(7)).save(place / "7-again.jpg", quality=92)
    return place


def learnt_in(folder):
    return [Learnt(path.name, path, path.stem[0]) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """Two copies and two new pieces, one of each as a file."""
    file = tmp_path_factory.mktemp("made") / "new.png"
    drawn(301).save(file)
    copy = file.with_name("copy.jpg")
    ImageOps.mirror(drawn(3)).save(copy, quality=80)
    width, height = drawn(5).size
    return [
        ("copy", copy),
        ("part", drawn(5).crop((0, 0, round(0.85 * width), round(0.85 * height)))),
        ("new file", file),
        ("new", drawn(300)),
    ]


def test_copies_are_called_copies_and_new_pieces_are_not(folder, made):
    """P22, D8: with the name of the photograph and how it lies; what is told ends with all compared."""
    said = []
    found = look(made, learnt_in(folder), [Learnt("held", drawn(900), "held")], say=said.append)
    assert [(pair.made, pair.nearest, pair.how) for pair in found.copies] in (
        [("copy", "3.jpg", "mirrored"), ("part", "5.jpg", "a cut-out")],
        [("part", "5.jpg", "a cut-out"), ("copy", "3.jpg", "mirrored")],
    )
    assert {pair.made for pair in found.pairs[2:]} == {"new", "new file"}
    assert found.threshold == FLOOR and found.pairs[1].likeness > 0.95 > FLOOR > found.pairs[2].likeness
    assert found.calibrated_on == 1 + 28 // 8, "8 pieces, though 9 photographs"
    assert said[-1].startswith("compared  14/14") and any(line.startswith("copies    ") for line in said)


def test_photographs_are_compared_with_each_other_once(folder, made, tmp_path, monkeypatch):
    """P22: the same answer with what is kept and without; another piece is compared by itself."""
    held, every = [Learnt("held", drawn(900), "held")], []
    monkeypatch.setattr(comparisons, "TOGETHER", 3)

    class Counted(copies.Searched):
        def nearest(self, asked, *more, **named):
            every.append(len(asked))
            return super().nearest(asked, *more, **named)

    monkeypatch.setattr(copies, "Searched", Counted)

    def looked(held, cache_dir=tmp_path):
        every.clear()
        said = []
        return look(made, learnt_in(folder), held, say=said.append, cache_dir=cache_dir), sum(every), said

    plain, count, _ = looked(held, None)
    assert looked(held)[:2] == (plain, count) == (plain, 14)
    again, asked, said = looked(held)
    assert (again, asked) == (plain, 0) and not any(line.startswith("compared") for line in said)
    other, asked, said = looked([Learnt("other", drawn(901), "other")])
    assert asked == 1 and other.pairs == plain.pairs and said[-1].startswith("compared  14/14")


def test_learnt_photographs_of_one_piece_that_nobody_grouped_set_no_threshold(folder, made):
    """P22: a close-up of another photograph is not told by near_duplicates; of 9 pieces two are left out, and named."""
    apart, said = [Learnt(one.name, one.picture, one.name) for one in learnt_in(folder)], []
    found = look(made, apart, say=said.append)
    assert found.threshold == FLOOR and {pair.made for pair in found.copies} == {"copy", "part"}
    assert found.calibrated_on == (7 * 8 - 7 * 6 // 2) // 9
    [line] = [line for line in said if line.startswith("! not taken")]
    assert "7-again.jpg (like 7.jpg, " in line and "7.jpg (like 7-again.jpg, " in line


@pytest.mark.parametrize("poisoned", [(3,), (0, 1, 2, 3, 4)])
def test_copies_in_the_folder_of_unseen_ones_do_not_switch_the_check_off(folder, made, poisoned):
    """P22: one mirrored learnt photograph among five unseen, and five of five, leave the threshold where it was."""
    fresh = [Learnt(f"new{seed}", drawn(seed), seed) for seed in range(900, 905 - len(poisoned))]
    bad = [Learnt(f"bad{seed}", ImageOps.mirror(drawn(seed)), f"bad{seed}") for seed in poisoned]
    said = []
    found = look(made, learnt_in(folder), [*fresh, *bad], say=said.append)
    assert found.threshold == FLOOR and {pair.made for pair in found.copies} == {"copy", "part"}
    [line] = [line for line in said if line.startswith("! not taken")]
    assert f"bad{poisoned[0]} (like {poisoned[0]}.jpg, " in line and "new" not in line
    assert ("and 2 more" in line) == (len(poisoned) == 5)
    assert found.calibrated_on == len(fresh) + 28 // 8


def test_where_pieces_are_near_copies_by_design_the_threshold_says_so(folder, made):
    """P22: every learnt piece is there again as another one, as the demo's lace is; no "none is a copy" is said."""
    twice = learnt_in(folder)[:-1]
    twice = [*(Learnt(one.name, one.picture, one.name) for one in twice)]
    twice += [Learnt(f"again{seed}", ImageOps.flip(drawn(seed)), f"again{seed}") for seed in range(7)]
    said = []
    found = look([made[3]], twice, say=said.append)
    assert found.threshold is not None and found.threshold > 0.98 and found.calibrated_on > 0
    assert not any(line.startswith("! not taken") for line in said)
    told = memorised(found)
    assert told.startswith("The photographs of this set are so alike (threshold 1.00) that a copy can hardly be told ")
    assert "is a copy" not in told and "None of 1 designs was called a copy." in told


def test_what_is_alike_by_design_is_told_from_a_poisoned_folder():
    """P22: by hand: the demo's 120 pieces in 8 groups; pieces each of its own; and a folder of photographs."""
    singles, eight = list(range(120)), [number % 8 for number in range(120)]
    assert unseen.are_alike_by_design(eight, [0.5] * 40, [0.98] * 60)
    assert unseen.are_alike_by_design(singles, [0.98] * 39 + [0.5], [])
    assert not unseen.are_alike_by_design(singles, [0.5] * 40, [0.99] * 60)
    assert not unseen.are_alike_by_design(eight, [0.5] * 40, [0.99] * 10 + [0.5] * 10)
    assert not unseen.are_alike_by_design([1, 2], [0.99, 0.99], [0.99]), "too few to tell"


def test_small_copies_do_not_escape_beside_large_pictures(folder, made):
    """P22: 64 px hold no thread of 256 px; those are searched among photographs of as much detail."""
    small = [(f"small {seed}", drawn(seed).resize((64, 52))) for seed in (0, 1, 2)]
    new = [("small new", drawn(700).resize((64, 52)))]
    found = look([*made, *small, *new], learnt_in(folder), say=quietly)
    assert {pair.made for pair in found.copies} == {"copy", "part", "small 0", "small 1", "small 2"}
    alone = {pair.made: pair for pair in look([*small, *new], learnt_in(folder), say=quietly).pairs}
    assert {pair.made: pair for pair in found.pairs if pair.made in alone} == alone
    assert [pair.likeness for pair in found.pairs] == sorted((pair.likeness for pair in found.pairs), reverse=True)


def test_pictures_of_one_class_are_searched_once():
    """P22: by hand: what has 256 px or more is one class; the most pictures come first, with their longest side."""
    sides = {0: 1024, 1: 300, 2: 256, 3: 255, 4: 128, 5: 96}
    assert copies._by_size(sides) == [(1024, [0, 1, 2]), (255, [3, 4]), (96, [5])]


def test_photographs_are_opened_one_by_one_by_what_opens_them(folder, made):
    """P22: no picture is kept; one that cannot be opened is named."""

    def fails() -> Image.Image:
        raise PicturesError("bad.jpg cannot be opened.")

    said, opened = [], []
    lazily = [
        Learnt(one.name, lambda one=one: opened.append(one.name) or Image.open(one.picture), one.group)
        for one in learnt_in(folder)
    ]
    found = look(made[:1], [*lazily, Learnt("bad.jpg", fails, "bad")], say=said.append)
    assert opened == [one.name for one in lazily] and [pair.nearest for pair in found.copies] == ["3.jpg"]
    assert "left out of the copy check: bad.jpg: bad.jpg cannot be opened." in said
    tile = Image.new("RGB", (9, 9))
    assert len(list(sheets(found, lambda name: lambda: tile, lambda name: fails))) == 1


def test_names_tell_sheets_cells_and_folders_apart():
    """P22: by hand."""
    assert [short_name(name) for name in (
        "images/one/refined_output_000.png", "images/two/base_result_012.png",
        "evaluation/grid/cells/step-000600_scale-1_seed-0_0123456789ab.png", "samples/step-000250/sample_03.png",
        "IMG.jpg", "old/a/IMG.jpg",
    )] == ["one/0", "two/12", "step 600, seed 0", "step 250, sample 3", "IMG.jpg", "a/IMG.jpg"]  # fmt: skip


def test_what_cannot_be_read_is_named_and_left_out(folder, made, tmp_path):
    """P22: on both sides; and where nothing is left, the check is refused with a sentence."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    said = []
    bad = Learnt("bad\n.jpg", broken, "bad")
    found = look([("gone", tmp_path / "gone.png"), *made[:1]], [bad, *learnt_in(folder)], [bad], say=said.append)
    assert [(pair.made, pair.nearest) for pair in found.pairs] == [("copy", "3.jpg")]
    left_out = [line for line in said if line.startswith("left out")]
    assert left_out[0] == "left out of the copy check: gone: gone, or not a file"
    assert [line.split(":")[1] for line in left_out[1:]] == [" bad\\n.jpg", " bad\\n.jpg"]
    nothing_made = look([("gone", tmp_path / "gone.png")], learnt_in(folder), say=quietly)
    assert nothing_made.refusal == "no picture that was made could be read." and not nothing_made.pairs
    assert look(made[:1], [bad], say=quietly).refusal == "no photograph that was learnt could be read."


def test_a_style_model_adds_its_neighbours_and_its_distance(monkeypatch, folder, made):
    """P22, D8: rows of hand-made features; the second learnt photograph cannot be read, so that rows move up."""
    learnt = learnt_in(folder)
    learnt[1] = Learnt("1.jpg", folder / "gone.jpg", "1")
    rows = numpy.eye(len(learnt))
    mine = numpy.array([3 * rows[3] + 4 * rows[5]])
    looked = []
    search = copies.Searched.nearest
    monkeypatch.setattr(
        copies.Searched, "nearest", lambda self, prints, also=(), *rest, **more: (
            looked.append([list(one) for one in also]) or search(self, prints, also, *rest, **more)
        ),
    )  # fmt: skip
    monkeypatch.setattr(copies, "FEATURE_NEIGHBOURS", 1)
    found = look(made[:1], learnt, features=Features(mine, rows), say=quietly)
    assert looked[0] == [[4, 2]], "places among those that were read: 0, 2, 3, 4, 5 …"
    assert looked[1][0][0] == 0
    assert found.pairs[0].nearest == "3.jpg" and found.pairs[0].feature_distance == pytest.approx(1 - 3 / 5)
    assert look(made[:1], learnt, say=quietly).pairs[0].feature_distance is None


def test_only_so_many_unseen_are_compared_and_always_the_same(monkeypatch, folder, made):
    """P22: drawn by lot from the names, whatever their order."""
    monkeypatch.setattr(unseen, "MOST", 3)
    names = [f"{number}.jpg" for number in range(40)]
    chosen = unseen.asked(names, range(40), ())
    assert len(chosen) == 3 and chosen == sorted(chosen)
    assert {names[place] for place in chosen} == {
        names[::-1][place] for place in unseen.asked(names[::-1], range(40), ())
    }
    said = []
    look(made[:1], learnt_in(folder), say=said.append)
    assert said[-1].startswith("compared  4/4")
    monkeypatch.setattr(unseen, "MOST", 250)
    assert len(unseen.asked([str(number) for number in range(250)], range(250), range(125))) == 0
    assert len(unseen.asked([str(number) for number in range(250)], range(250), ())) == 250


def test_every_file_is_read_once_and_a_stop_passes_through(monkeypatch, folder, made):
    """P22: nothing is written, so that a stop costs nothing but time."""
    read = []
    real = copies.read_picture
    monkeypatch.setattr(copies, "read_picture", lambda path, **more: read.append(path) or real(path, **more))
    look(made, learnt_in(folder), say=quietly)
    assert len(read) == len(set(read)) == 11
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def stop(line: str) -> None:
        if line.startswith("compared"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(made, learnt_in(folder), say=stop)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


# ---- pages


def pages_of(likeness, **more):
    tile = Image.new("RGB", (60, 40), (10, 90, 40))
    return list(sheets(asked(likeness, [0.7]), lambda name: tile, lambda name: more.get(name, tile)))


def share_of(page: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((numpy.asarray(page) == colour).all(axis=-1).mean())


def test_every_pair_is_on_a_page_and_only_copies_are_red(tmp_path):
    """P22: 24 pairs a page; the page with the copies holds the colour, the last one does not."""
    pages = pages_of([0.9, 0.8] + [0.1] * 48)
    assert len(pages) == 3
    red = [share_of(page, copy_pages._COPY) for page in pages]
    assert red[0] > 0.01 and red[1:] == [0, 0]
    tiles = [share_of(page, (10, 90, 40)) * page.width * page.height for page in pages]
    assert [round(area / (250 * 167)) for area in tiles] == [48, 48, 4]
    assert len({page.width for page in pages}) == 1 and pages[0].width <= 1200
    assert list(sheets(CopyCheck(refusal="nothing."), str, str)) == []


def test_the_page_opens_what_the_check_names_and_says_what_cannot_be_opened(tmp_path):
    """P22: the made one on the left, the learnt one on the right."""
    opened = []
    found = asked([0.9], [0.7])
    blue, gone = Image.new("RGB", (50, 50), "blue"), tmp_path / "gone.jpg"
    (page,) = sheets(found, lambda name: opened.append(name) or blue, lambda name: opened.append(name) or gone)
    assert opened == ["images/sheet/design_0.png", "photo_0.jpg"]
    left, right = (page.crop(box) for box in ((0, 0, page.width // 4, page.height), (page.width // 4, 0, *page.size)))
    assert share_of(left, (0, 0, 255)) > 0.1 and share_of(right, (0, 0, 255)) < 0.05


def test_what_is_written_on_a_page(monkeypatch):
    """P22: likeness, names, and for a copy the word and how it lies."""
    written = []
    write = copy_pages._write
    monkeypatch.setattr(copy_pages, "_write", lambda *rest: written.append(" ".join(rest[3])) or write(*rest))
    found = asked([0.9, 0.4], [0.7], how=["mirrored", "shifted"])
    tile = Image.new("RGB", (9, 9))
    list(sheets(found, lambda name: tile, lambda name: tile))
    assert written[:2] == [
        "COPY, likeness 0.90: mirrored sheet/design_0.png | photo_0.jpg",
        "new, likeness 0.40 sheet/design_1.png | photo_1.jpg",
    ]  # fmt: skip
    assert written[2].startswith(
        "1 of 2 designs is a copy of photographs that were learnt: sheet/design_0.png of photo_0.jpg"
    )
