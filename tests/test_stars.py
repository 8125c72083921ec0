"""Favourites of a sheet on the disk, and the names by which people call one design (L15, L16)."""

import json
import os
import random
import re

import pytest
from PIL import Image

from lace_lora import stars
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder, SheetFolder


def row(index: int, **changes: object) -> dict[str, object]:
    names = {"refined": f"refined_output_{index:03d}.png", "base": f"base_result_{index:03d}.png"}
    return {"index": index, "prompt": f"rosette {index}", "seed": 100 + index, **names, **changes}


def write_rows(path, rows) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def draw(sheet: SheetFolder, count: int, drawn_at: float = 1e9) -> SheetFolder:
    """A sheet of finished designs, drawn at a time in seconds since 1970."""
    sheet.root.mkdir(parents=True)
    for index in range(count):
        for path in (sheet.refined(index, "png"), sheet.base(index, "png")):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    write_rows(sheet.manifest, [row(index) for index in range(count)])
    os.utime(sheet.manifest, (drawn_at, drawn_at))
    return sheet


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run with three sheets; `spring` was drawn last."""
    made = RunFolder(tmp_path / "out" / "rose")
    draw(made.sheet("sheet"), 8, 1e9)
    draw(made.sheet("sheet-2"), 4, 1.1e9)
    draw(made.sheet("spring"), 3, 1.2e9)
    return made


@pytest.fixture
def sheet(run) -> SheetFolder:
    return run.sheet("sheet")


def content(sheet: SheetFolder):
    return json.loads(sheet.stars.read_text(encoding="utf-8"))


# ---- what is starred


def test_what_is_starred_is_in_the_file_at_once_with_the_name_of_its_picture(sheet):
    """L15."""
    assert stars.read(sheet) == frozenset()
    assert stars.set_star(sheet, 3) == {3} and stars.set_star(sheet, 1) == {1, 3}
    assert content(sheet) == {"starred": [
        {"index": 1, "file": "refined_output_001.png"}, {"index": 3, "file": "refined_output_003.png"},
    ]}  # fmt: skip
    assert stars.read(SheetFolder(sheet.root)) == {1, 3}
    assert stars.set_star(sheet, 3, on=False) == {1} == stars.read(sheet)
    assert not list(sheet.root.glob("*.bak*")) and not list(sheet.root.glob("*.partial"))


def test_writers_in_turn_change_only_their_own_stars(sheet):
    """L15: two galleries and a command, against a set that is kept beside."""
    chance, expected = random.Random(1), set()
    for _ in range(60):
        some, on = chance.sample(range(8), chance.randrange(1, 4)), chance.random() < 0.6
        on = on or not set(some) <= expected
        expected = expected | set(some) if on else expected - set(some)
        assert stars.set_stars(sheet, some, on) == stars.read(sheet) == expected
    assert [entry["index"] for entry in content(sheet)["starred"]] == sorted(expected)


@pytest.mark.parametrize("index", [8, -1, 10**12])
def test_a_number_that_the_sheet_does_not_have_is_refused_and_changes_nothing(sheet, index):
    """L15."""
    stars.set_star(sheet, 2)
    before = sheet.stars.read_bytes()
    with pytest.raises(RunError, match=rf"sheet has no finished design {index}\. There are: 0 to 7\."):
        stars.set_stars(sheet, [0, index])
    assert sheet.stars.read_bytes() == before


def test_a_star_outlives_its_picture_and_can_be_taken_away(sheet):
    """L15: a design that was deleted by hand."""
    stars.set_stars(sheet, [2, 4])
    sheet.refined(2, "png").unlink()
    assert stars.read(sheet) == {2, 4} and list(stars.favourites(sheet)) == [4]
    with pytest.raises(RunError, match="no finished design 2"):
        stars.set_star(sheet, 2)
    assert stars.set_star(sheet, 2, on=False) == {4}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[3, 1]", {1, 3}),
        ('{"starred": ["3", "refined_output_001.png", {"file": "base_result_002.jpg"}]}', {1, 2, 3}),
        ('\ufeff{"starred": [{"index": 5}]}', {5}),
        ("{}", set()),
    ],
)
def test_what_people_write_by_hand_is_understood(sheet, text, expected):
    """L15: a byte-order mark of Windows' editor too."""
    sheet.stars.write_text(text, encoding="utf-8")
    said = []
    assert stars.read(sheet, said.append) == expected and not said
    assert stars.set_star(sheet, 7, say=said.append) == expected | {7} == stars.read(sheet)


def test_entries_and_notes_that_are_not_understood_stay_in_the_file(sheet):
    """L15."""
    odd = ["the blue one", None, True, 2.5, {"index": "x"}, {"index": -4}, [], "9" * 5000]
    note = {"index": 2, "file": "refined_output_002.png", "note": "for the border"}
    sheet.stars.write_text(json.dumps({"for": "Ayşe", "starred": [*odd, note]}), encoding="utf-8")
    said = []
    assert stars.read(sheet, said.append) == {2}
    assert "8 of 9 entries name no design" in said[0]
    assert stars.set_star(sheet, 5) == {2, 5}
    found = content(sheet)
    assert found["for"] == "Ayşe" and note in found["starred"] and all(one in found["starred"] for one in odd)


@pytest.mark.parametrize(
    "data", [b'{"starred": [1, 2', b"\xff\xfe\0", b"", b'{"starred": 5}', b"7", b"null", b"[" * 100_000]
)
def test_a_damaged_file_is_said_and_kept_beside_before_it_is_written_over(sheet, data):
    """L15: nothing is lost, and reading alone writes nothing."""
    sheet.stars.write_bytes(data)
    said = []
    assert stars.read(sheet, said.append) == frozenset()
    assert re.search(r"starred\.json cannot be understood .+ nothing counts as starred", said[0])
    assert sheet.stars.read_bytes() == data and not list(sheet.root.glob("*.bak"))
    assert stars.set_star(sheet, 6, say=said.append) == {6} == stars.read(sheet)
    assert (sheet.root / "starred.json.bak").read_bytes() == data and "kept as starred.json.bak" in said[-1]


def test_a_file_that_cannot_be_read_is_not_taken_for_an_empty_one(sheet):
    """L15: a Drive that does not answer must not cost the stars."""
    sheet.stars.mkdir()
    for act in (lambda: stars.read(sheet), lambda: stars.set_star(sheet, 1)):
        with pytest.raises(RunError, match=r"starred\.json cannot be read .* mount it and try again"):
            act()


def test_favourites_are_the_rows_of_what_is_starred(sheet):
    """L15."""
    with pytest.raises(RunError, match=r"No design of sheet is a favourite.*lace-lora star sheet/0"):
        stars.favourites(sheet)
    stars.set_stars(sheet, [5, 1])
    assert stars.favourites(sheet) == {1: row(1), 5: row(5)}


# ---- rows


def test_rows_are_those_of_finished_designs_from_all_shards_and_the_last_one_counts(sheet):
    """L15, L16: images.jsonl comes after the shards; what is half written or gone is left out."""
    write_rows(sheet.root / "images-1-of-2.jsonl", [row(0, seed=1), row(6, seed=2), row(7, seed=3)])
    write_rows(sheet.root / "images-2-of-2.jsonl", [row(7, seed=4), row(5, seed=5), row(99)])
    write_rows(sheet.manifest, [row(3, seed=6), row(0, seed=7), row(3, seed=8)])
    with open(sheet.manifest, "a", encoding="utf-8") as file:
        file.write(json.dumps(row(1))[:40])
    sheet.refined(5, "png").unlink()
    assert {index: one["seed"] for index, one in stars.rows(sheet).items()} == {0: 7, 3: 8, 6: 2, 7: 4}
    assert list(stars.rows(sheet)) == [0, 3, 6, 7]
    assert stars.rows(sheet, ("seed",))[3].keys() == {"index", "seed", "base", "refined"}


def test_a_design_without_a_refiner_is_its_base(sheet):
    """L16."""
    write_rows(sheet.manifest, [row(2, refined=None)])
    found = stars.rows(sheet)
    assert stars.picture_of(sheet, found[2]) == sheet.base(2, "png")


def test_no_row_leads_out_of_the_sheets_folder(sheet, tmp_path):
    """L15: rows and folders that come from elsewhere."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (sheet.root / "link.png").symlink_to(secret)
    (sheet.root / ".hidden.png").write_bytes(secret.read_bytes())
    (sheet.root / "folder.png").mkdir()
    names = [str(secret), "../../../../secret.png", "link.png", ".hidden.png", "folder.png", "images.jsonl", "a\0.png",
             "", ".", 5, ["refined_output_001.png"], {"a": 1}]  # fmt: skip
    write_rows(sheet.manifest, [row(index, refined=name, base=name) for index, name in enumerate(names)])
    assert stars.rows(sheet) == {}
    write_rows(sheet.manifest, [row(0, base=str(secret)), row(1, refined=[1], base="base_result_001.png")])
    assert [(one["base"], one["refined"]) for one in stars.rows(sheet).values()] == [(None, "refined_output_000.png")]


def test_lines_that_are_no_rows_are_passed_over(sheet):
    """L15."""
    odd = ["[]", "3", "null", '{"index": true}', '{"index": -1}', '{"index": "2"}', "{}", "[" * 100_000, "9" * 9999]
    text = "\n".join([*odd, json.dumps(row(2, prompt="one\u2028line"), ensure_ascii=False), "\udcff"])
    sheet.manifest.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert list(stars.rows(sheet)) == [2], "a line separator inside a prompt ends no row"


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    """L15."""
    assert stars.rows(SheetFolder(tmp_path / "none")) == {} and stars.sheets_in(tmp_path / "none") == []


def test_sheets_are_listed_by_when_they_were_drawn_and_a_star_draws_nothing(run):
    """L15: other folders and files are no sheets."""
    (run.sheets / "notes").mkdir()
    (run.sheets / "file").touch()
    assert [one.root.name for one in stars.sheets_in(run.sheets)] == ["spring", "sheet-2", "sheet"]
    stars.set_star(run.sheet("sheet"), 0)
    assert stars.sheets_in(run.sheets)[0].root.name == "spring"


# ---- names


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("sheet/3", ("sheet", 3)),
        (" sheet-2/002 ", ("sheet-2", 2)),
        ("2", ("spring", 2)),
        ("refined_output_001.png", ("spring", 1)),
        ("base_result_001", ("spring", 1)),
        ("sheet/refined_output_007_repeat.png", ("sheet", 7)),
        ("'sheet\\refined_output_007.png'", ("sheet", 7)),
        ("images/sheet-2/3", ("sheet-2", 3)),
        ("sheet/./../sheet-2/3", ("sheet-2", 3)),
    ],
)
def test_a_design_is_found_by_what_people_type(run, named, expected):
    """L15."""
    folder, index = stars.place_of(run, named)
    assert (folder.root.name, index) == expected and folder == run.sheet(expected[0])


def test_a_design_is_found_by_the_path_of_its_picture(run, monkeypatch, tmp_path):
    """L15: absolute, from where one stands, and through a link to the folder."""
    path = run.sheet("sheet").refined(3, "png")
    (tmp_path / "drive").symlink_to(run.root.parent)
    monkeypatch.chdir(run.root)
    for named in (str(path), "images/sheet/refined_output_003.png", f"{tmp_path}/drive/rose/images/sheet/3"):
        assert stars.place_of(run, named) == (run.sheet("sheet"), 3)


def test_a_path_into_another_run_is_no_design_of_this_one(run, tmp_path):
    """L15: a sheet of the same name does not count."""
    other = draw(RunFolder(tmp_path / "out" / "tulip").sheet("sheet"), 2)
    for named in (str(other.refined(1, "png")), "../../tulip/images/sheet/1", "~nobody/sheet/1", "a\0b/1"):
        with pytest.raises(RunError, match="rose has no sheet"):
            stars.place_of(run, named)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("shet/3", "rose has no sheet 'shet'; did you mean sheet? There are: spring, sheet-2, sheet."),
        ("sheet/8", "sheet has no finished design 8. There are: 0 to 7."),
        ("3", "spring has no finished design 3. There are: 0 to 2."),
        ("sheet-2", "'sheet-2' names no design. Write a sheet and a number, such as sheet-2/3"),
        ("sheet-2/rosette", "sheet-2 has: 0 to 3."),
        ("", "'' names no design. Write a sheet and a number, such as spring/3"),
        ("-1", "'-1' names no design."),
        ("9" * 6000, "names no design."),
    ],
)
def test_a_name_that_means_no_design_is_answered_with_those_there_are(run, named, said):
    """L15."""
    with pytest.raises(RunError) as error:
        stars.place_of(run, named)
    assert said in str(error.value)


def test_a_run_without_designs_says_how_to_draw_some(tmp_path):
    """L15."""
    run = RunFolder(tmp_path / "rose")
    for act in (lambda: stars.place_of(run, "3"), lambda: stars.sheet_of(run, "sheet")):
        with pytest.raises(RunError, match="holds no designs yet. Draw some first: lace-lora generate"):
            act()
    assert stars.set_all(run, []) == []


def test_numbers_in_words():
    """L15: those in the middle of a long list are left out."""
    assert stars.spans([]) == "" and stars.spans([5]) == "5" and stars.spans({2, 0, 1, 4}) == "0 to 2, 4"
    assert stars.spans(range(0, 100, 2)) == "0, 2, 4, 6, 8, …, 98"


# ---- the command's part


def test_designs_are_starred_by_name_and_the_lines_say_which(run):
    """L15: what `lace-lora star` prints."""
    assert stars.set_all(run, ["sheet/3", "sheet/refined_output_001.png", "0"]) == [
        "★ sheet/1  seed 101  rosette 1",
        "★ sheet/3  seed 103  rosette 3",
        "★ spring/0  seed 100  rosette 0",
        "sheet: 8 designs, 2 favourites (1, 3)",
        "spring: 3 designs, 1 favourite (0)",
    ]
    assert stars.read(run.sheet("sheet")) == {1, 3} and stars.read(run.sheet("spring")) == {0}
    assert stars.set_all(run, ["sheet/3"], on=False) == [
        "☆ sheet/3  seed 103  rosette 3",
        "sheet: 8 designs, 1 favourite (1)",
    ]
    assert stars.set_all(run, []) == [
        "spring: 3 designs, 1 favourite (0)",
        "sheet-2: 4 designs, 0 favourites",
        "sheet: 8 designs, 1 favourite (1)",
    ]


def test_one_wrong_name_among_several_changes_nothing_and_all_wrong_ones_are_said(run):
    """L15."""
    with pytest.raises(RunError) as error:
        stars.set_all(run, ["sheet/3", "sheet/50", "shet/1"])
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and "design 50" in lines[0] and "'shet'" in lines[1] and lines[2] == "Nothing was changed."
    assert not run.sheet("sheet").stars.exists()
